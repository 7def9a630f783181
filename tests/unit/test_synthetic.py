"""The simulated market: bars without fault, noise without signal, signal as strong as planted."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.data.files.check import check_bars
from kronos_qlib.data.files.synthetic import MarketConfig, make_market
from kronos_qlib.errors import ConfigError
from kronos_qlib.schema import LONG_COLUMNS


@pytest.fixture(scope="module")
def market():
    return make_market(MarketConfig())


def closes_of(bars: pd.DataFrame) -> pd.DataFrame:
    return bars.pivot(index="date", columns="symbol", values="close")


def labels_of(bars: pd.DataFrame) -> pd.DataFrame:
    """Qlib's Ref($close, -2) / Ref($close, -1) - 1, days by instruments."""
    closes = closes_of(bars)
    return closes.shift(-2) / closes.shift(-1) - 1


def daily_correlation(left: pd.DataFrame, right: pd.DataFrame, *, ranks: bool) -> pd.Series:
    """Cross-sectional correlation per day over the instruments that both sides know."""
    known = left.notna() & right.notna()
    left, right = left.where(known), right.where(known)
    if ranks:
        left, right = left.rank(axis=1), right.rank(axis=1)
    return left.corrwith(right, axis=1).dropna()


def t_statistic(values: pd.Series) -> float:
    return float(values.mean() / (values.std() / np.sqrt(len(values))))


def ic_over_seeds(effect: float, score: str) -> pd.Series:
    """Daily rank IC of a score made of past bars, over eight small markets."""
    days = []
    for seed in range(8):
        config = MarketConfig(instruments=40, years=1.5, effect=effect, seed=seed)
        bars = make_market(config).bars
        closes = closes_of(bars)
        returns = closes / closes.shift() - 1
        scores = {
            "reversal": -(closes / closes.shift(5) - 1),
            "volatility": returns.rolling(20, min_periods=15).std(),
            "mean return": returns.expanding(60).mean(),
            "volume": bars.pivot(index="date", columns="symbol", values="amount"),
        }
        days.append(daily_correlation(scores[score], labels_of(bars), ranks=True))
    return pd.concat(days)


def test_the_same_seed_gives_the_same_bits(market):
    again, other = make_market(MarketConfig()), make_market(MarketConfig(seed=1))
    pd.testing.assert_frame_equal(market.bars, again.bars, check_exact=True)
    pd.testing.assert_series_equal(market.oracle, again.oracle, check_exact=True)
    assert not market.bars["close"].head(50).equals(other.bars["close"].head(50))


def test_bars_keep_every_promise_of_the_schema(market):
    assert tuple(market.bars.columns) == LONG_COLUMNS
    report = check_bars(market.bars, max_move=0.5)
    assert set(report["rule"]) == {"gap"}, report[report["rule"] != "gap"]
    vwap = market.bars["amount"] / market.bars["volume"]
    assert (vwap <= market.bars["high"] * (1 + 1e-12)).all()
    assert (vwap >= market.bars["low"] * (1 - 1e-12)).all()


def test_some_days_are_suspended_some_shares_split_some_list_late(market):
    dates = pd.bdate_range("2020-01-01", "2022-12-30")
    first = market.bars.groupby("symbol")["date"].min()
    due = sum((dates >= begin).sum() for begin in first)
    assert len(market.bars) < due
    assert 1 - len(market.bars) / due == pytest.approx(0.003, rel=0.4)
    assert 0 < (first > dates[0]).sum() < 25
    factors = market.bars.groupby("symbol")["factor"]
    assert (factors.first() == 1).all()
    assert set(market.bars["factor"]) >= {1.0, 2.0}
    assert factors.apply(lambda factor: factor.is_monotonic_increasing).all()


def test_a_split_does_not_move_the_adjusted_price(market):
    bars = market.bars
    split = bars.groupby("symbol")["factor"].diff() > 0
    moves = bars.groupby("symbol")["close"].pct_change()[split].abs()
    assert len(moves) > 10
    assert moves.max() < 0.25, "an unadjusted two-for-one split would be a move of one half"


def test_the_market_has_the_habits_of_markets(market):
    closes = closes_of(market.bars)
    returns = closes / closes.shift() - 1
    assert returns.stack().kurt() > 1.5, "fat tails"
    size = returns.abs()
    assert size.corrwith(size.shift(5)).mean() > 0.03, "volatility comes in spells"
    amount = market.bars.pivot(index="date", columns="symbol", values="amount")
    assert amount.corrwith(size, method="spearman").mean() > 0.2, "volume follows moves"
    same = market.sectors.to_numpy()[:, None] == market.sectors.to_numpy()[None, :]
    alike = returns.corr().to_numpy()
    off_diagonal = ~np.eye(len(alike), dtype=bool)
    assert alike[same & off_diagonal].mean() > alike[~same].mean() + 0.03 > 0.13
    opens = market.bars.pivot(index="date", columns="symbol", values="open")
    assert (opens / closes.shift() - 1).stack().std() > 0.003, "prices move overnight"


@pytest.mark.parametrize("score", ["reversal", "volatility", "mean return", "volume"])
def test_noise_holds_no_signal(score):
    """A Jensen term, a constant drift or a bid-ask bounce would show in one of these."""
    assert abs(t_statistic(ic_over_seeds(0.0, score))) < 3


def test_the_noise_test_would_notice_a_third_of_the_usual_effect():
    assert t_statistic(ic_over_seeds(0.035, "reversal")) > 3


def test_the_oracle_is_as_good_as_planted(market):
    """Were the drift a day early or late, or in log units, slope and IC would tell."""
    oracle, label = market.oracle.unstack(), labels_of(market.bars)
    ic = daily_correlation(oracle, label, ranks=False)
    theory = (oracle.std(axis=1) / label.std(axis=1)).dropna().mean()
    assert theory == pytest.approx(0.1, abs=0.01), "effect is about the IC to be had"
    error = ic.std() / np.sqrt(len(ic))
    assert abs(ic.mean() - theory) < 3 * error
    assert 3 * error < 0.3 * theory, "or the line above could not fail"

    residual = label.sub(label.mean(axis=1), axis=0)
    planted = oracle.sub(oracle.mean(axis=1), axis=0)
    slopes = (residual * planted).sum(axis=1) / (planted**2).sum(axis=1).where(lambda s: s > 0)
    assert abs(slopes.mean() - 1) < 3 * slopes.std() / np.sqrt(slopes.count())
    for days in (-1, 1):
        elsewhere = daily_correlation(oracle, label.shift(days), ranks=False)
        assert elsewhere.mean() < 0.9 * ic.mean()


def oracle_from_past_bars(bars: pd.DataFrame, effect: float) -> pd.Series:
    """The planted drift at the last close of `bars`, written down a second time."""
    closes = closes_of(bars)
    returns = (closes.ffill() / closes.ffill().shift() - 1).where(closes.notna())
    residual = returns.sub(returns.mean(axis=1), axis=0).fillna(0.0).tail(20)
    volatility = np.sqrt((residual**2).mean())
    age = len(closes) - 1 - closes.notna().to_numpy().argmax(axis=0)
    known = closes.iloc[-1].notna() & (age >= 20)
    signal = (-residual.tail(5).sum() / volatility)[known]
    z = ((signal - signal.mean()) / signal.std(ddof=0)).clip(-3, 3)
    return effect * volatility[known] * z


@pytest.mark.parametrize("day", [20, 21, 100, 333, 600])
def test_the_oracle_knows_only_bars_up_to_its_day(market, day):
    date = closes_of(market.bars).index[day]
    past = market.bars[market.bars["date"] <= date]
    told = market.oracle.xs(date, level="datetime")
    expected = oracle_from_past_bars(past, 0.1)
    pd.testing.assert_series_equal(
        told, expected, check_names=False, check_index_type=False, rtol=1e-8, atol=1e-12
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"instruments": 1},
        {"sectors": 0},
        {"years": 0.0},
        {"effect": -0.1},
        {"effect": float("nan")},
        {"intraday_steps": 0},
        {"suspended_share": 1.0},
        {"start": "someday"},
        {"seed": -1},
    ],
    ids=str,
)
def test_a_market_that_cannot_be_is_refused_at_birth(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        MarketConfig(**wrong)


def test_the_smallest_market_works():
    market = make_market(
        MarketConfig(instruments=2, sectors=1, years=0.2, intraday_steps=1, late_share=0.0)
    )
    assert market.bars["symbol"].nunique() == 2


def test_bars_of_five_minutes_follow_the_same_law_on_a_trading_day():
    config = MarketConfig(instruments=12, sectors=3, years=0.2, freq="5min", seed=2)
    market = make_market(config)
    bars = market.bars
    clock = sorted(set(bars["date"].dt.strftime("%H:%M")))
    assert len(clock) == config.bars_a_day == 48
    assert (clock[0], clock[23], clock[24], clock[-1]) == ("09:35", "11:30", "13:05", "15:00")
    closes = bars.set_index(["date", "symbol"])["close"].unstack()
    daily = closes.groupby(closes.index.normalize()).last().pct_change(fill_method=None)
    usual = make_market(MarketConfig(instruments=12, sectors=3, years=0.2, seed=2)).bars
    closes = usual.set_index(["date", "symbol"])["close"].unstack()
    expected = closes.pct_change(fill_method=None)
    ratio = float(np.nanstd(daily.to_numpy()) / np.nanstd(expected.to_numpy()))
    assert 0.7 < ratio < 1.4, f"a day of minutes moves {ratio:.2f} times a daily bar"
    factors = bars.groupby("symbol")["factor"].agg(lambda one: (one.diff() > 0).sum())
    days = bars[bars.groupby("symbol")["factor"].diff() > 0]["date"].dt.strftime("%H:%M")
    assert set(days) <= {"09:35"} and factors.sum() == len(days)


def test_an_unknown_frequency_is_refused():
    with pytest.raises(ConfigError, match="is one of day, 5min"):
        MarketConfig(freq="1h")
