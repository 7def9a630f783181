"""What a score holds, when it works and what its books earn: by hand, and on planted numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kronos_qlib.errors import UndefinedMetricError
from kronos_qlib.evaluation.portfolio.paper_books import paper_books
from kronos_qlib.evaluation.ranking.conditions import (
    LEAST_PAST,
    STATES,
    by_state,
    known_terciles,
)
from kronos_qlib.evaluation.ranking.exposure import (
    REST,
    SECTOR,
    TOTAL,
    attribution,
    daily_exposures,
)
from kronos_qlib.evaluation.ranking.information_coefficient import daily_ic
from kronos_qlib.signals.past_bars import BASELINES, STYLES, bars_needed

DAYS = pd.bdate_range("2024-01-01", periods=60)
NAMES = [f"S{number:02d}" for number in range(30)]


def table(seed: int, days=DAYS) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(rng.normal(size=(len(days), len(NAMES))), index=days, columns=NAMES)


def test_parts_of_the_return_add_up_to_the_books():
    score, styles = table(0), {"one": table(1), "two": table(2)}
    returns = table(3) * 0.01
    sectors = {name: f"sector {number % 4}" for number, name in enumerate(NAMES)}
    found = attribution(score, returns, styles, sectors).returns
    assert list(found) == [TOTAL, "one", "two", SECTOR, REST] and len(found) == len(DAYS)
    np.testing.assert_allclose(found.drop(columns=TOTAL).sum(axis=1), found[TOTAL], atol=1e-12)
    ranks = score.rank(axis=1)
    weights = ranks.sub(ranks.mean(axis=1), axis=0)
    weights = weights.div(weights.abs().sum(axis=1) / 2, axis=0)
    np.testing.assert_allclose(found[TOTAL], (weights * returns).sum(axis=1), atol=1e-12)


def test_a_score_that_is_a_style_earns_what_the_style_does_and_leaves_nothing():
    style, noise = table(1), table(2)
    returns = 0.01 * style.rank(axis=1) / len(NAMES) + 0.001 * noise
    found = attribution(np.exp(style), returns, {"style": style, "other": table(5)})
    assert found.left == pytest.approx(0, abs=1e-9)
    assert found.rest_rank_ic.isna().all(), "0 by construction, not by the days"
    np.testing.assert_allclose(found.returns[REST], 0, atol=1e-12)
    assert found.returns["style"].mean() > 0.9 * found.returns[TOTAL].mean()
    assert daily_exposures(np.exp(style), {"style": style})["style"].eq(1).all()


def test_what_a_score_knows_beyond_a_style_is_left():
    style, own = table(1), table(2)
    found = attribution(style + own, 0.01 * own, {"style": style})
    assert 0.3 < found.left < 0.7
    assert found.rest_rank_ic.mean() > 0.9
    assert found.returns[REST].mean() > 5 * abs(found.returns["style"].mean())


def test_missing_styles_count_as_the_middle_and_too_few_names_as_no_day():
    score, returns, style = table(0), table(3) * 0.01, table(1)
    style.iloc[:, ::2] = np.nan
    found = attribution(score, returns, {"style": style})
    assert len(found.returns) == len(DAYS) and np.isfinite(found.returns).all(axis=None)
    flat = attribution(score, returns, {"style": style * 0, "unknown": style * np.nan})
    assert flat.returns[["style", "unknown"]].eq(0).all(axis=None)
    np.testing.assert_allclose(flat.returns[REST], flat.returns[TOTAL], atol=1e-15)
    assert daily_exposures(score, {"flat": style * 0})["flat"].isna().all()
    few = score.copy()
    few.iloc[3, 6:] = np.nan
    few.iloc[4] = 1.0
    assert not {DAYS[3], DAYS[4]} & set(attribution(few, returns, {"style": style}).returns.index)
    nothing = attribution(score * np.nan, returns, {"style": style})
    assert nothing.returns.empty and np.isnan(nothing.left)


def test_sectors_hold_a_score_that_is_made_of_them_and_none_of_noise():
    sectors = {name: f"sector {number % 3}" for number, name in enumerate(NAMES[:-1])}
    kind = pd.Series({name: number % 3 for number, name in enumerate(NAMES)}, dtype=float)
    made = table(0) * 1e-3 + kind
    found = daily_exposures(made, {}, sectors)[SECTOR]
    assert found.min() > 0.7
    assert abs(daily_exposures(table(0), {}, sectors)[SECTOR].mean()) < 0.03
    alone = {name: name for name in NAMES}  # as many sectors as names: nothing can be said
    assert daily_exposures(table(0), {}, alone)[SECTOR].isna().all()


@given(st.integers(0, 50), st.integers(LEAST_PAST + 1, 59))
def test_a_state_of_the_market_is_known_at_its_close(seed, cut):
    """Terciles of the whole test segment would have known its calm second half."""
    market = pd.Series(np.random.default_rng(seed).normal(size=60).cumsum(), index=DAYS)
    whole = known_terciles(market)
    pd.testing.assert_series_equal(known_terciles(market.iloc[:cut]), whole.iloc[:cut])
    assert whole.iloc[:LEAST_PAST].isna().all() and whole.iloc[LEAST_PAST:].isin(STATES).all()
    later = market.copy()
    later.iloc[cut:] += 100
    pd.testing.assert_series_equal(known_terciles(later).iloc[:cut], whole.iloc[:cut])


def test_a_market_that_never_moves_is_in_its_middle():
    states = known_terciles(pd.Series(0.0, index=DAYS))
    assert states.iloc[LEAST_PAST:].eq("middle").all()
    found = pd.DataFrame(by_state(table(0).iloc[:, 0], states)).T
    assert found.loc[["low", "high", "high less low"], "mean"].isna().all()
    assert found.loc["middle", "days"] == 60 - LEAST_PAST


def test_the_difference_of_states_is_that_of_their_means_and_finds_what_was_planted():
    days = pd.bdate_range("2022-01-03", periods=400)
    rng = np.random.default_rng(0)
    market = pd.Series(rng.normal(size=400), index=days)
    states = known_terciles(market)
    daily = pd.Series(rng.normal(0, 0.1, 400), index=days)
    noise = pd.DataFrame(by_state(daily, states)).T
    gap = noise.loc["high", "mean"] - noise.loc["low", "mean"]
    assert noise.loc["high less low", "mean"] == pytest.approx(gap)
    assert noise.loc["high less low", "low"] < 0 < noise.loc["high less low", "high"]
    found = pd.DataFrame(by_state(daily + 0.05 * (states == "high"), states)).T
    assert found.loc["high less low", "low"] > 0
    assert found.loc[list(STATES), "days"].sum() == states.notna().sum()


def test_books_by_hand():
    days, names = DAYS[:3], list("ABCD")
    score = pd.DataFrame([[4, 3, 2, 1], [4, 3, 2, 1], [1, 2, 3, 4]], days, names, dtype=float)
    returns = pd.DataFrame(
        [[0.10, 0.0, 0.0, -0.10], [0.0, 0.0, 0.0, np.nan], [0.02, 0.0, 0.0, 0.04]], days, names
    )
    found = paper_books(score, returns, top=0.25, cost_bp=100)
    assert found["long_only"].tolist() == pytest.approx([0.10, 0.0, 0.04 - 0.015])
    assert found["long_short"].tolist() == pytest.approx([0.20, 0.0, 0.02])
    # A is bought; it is held; it is sold for D. Of the short side the like.
    assert found["long_only_traded"].tolist() == pytest.approx([1.0, 0.0, 2.0])
    # 1.1 long and 0.9 short of 1.2 are brought to 1 and 1.
    assert found["long_short_traded"].tolist() == pytest.approx(
        [2.0, abs(1 - 1.1 / 1.2) + abs(1 - 0.9 / 1.2), 4.0]
    )
    np.testing.assert_allclose(
        found["long_only_net"], found["long_only"] - 0.01 * found["long_only_traded"]
    )
    for top, cost in ((0, 1), (0.6, 1), (0.1, -1)):
        with pytest.raises(UndefinedMetricError, match="a book holds a share"):
            paper_books(score, returns, top=top, cost_bp=cost)


def test_books_leave_out_days_without_a_return_and_hold_at_least_one_name():
    score, returns = table(0), table(1) * 0.01
    returns.iloc[-2:] = np.nan
    found = paper_books(score, returns, top=0.001)
    assert found.index.equals(DAYS[:-2])
    best = score.iloc[:-2].idxmax(axis=1)
    expected = [returns.loc[day, best[day]] - returns.loc[day].mean() for day in DAYS[:-2]]
    np.testing.assert_allclose(found["long_only"], expected)


def test_a_book_of_what_is_known_earns_and_one_of_noise_pays_the_cost():
    returns = table(1) * 0.01
    known, noise = paper_books(returns, returns), paper_books(table(2), returns, cost_bp=50)
    assert known["long_short_net"].min() > 0
    assert daily_ic(returns, returns)["rank_ic"].eq(1).all()
    assert noise["long_short_net"].mean() < noise["long_short"].mean() - 0.01


@pytest.mark.parametrize("name", STYLES)
def test_a_style_reads_no_more_bars_than_it_says(name):
    rng = np.random.default_rng(0)
    bars = rng.uniform(1, 2, size=(7, 40, 6)).astype(np.float32)
    style, needed = STYLES[name], bars_needed(name)
    found = style.find(bars, style.bars, style.skip)
    assert found.shape == (7,) and np.isfinite(found).all() and np.ptp(found) > 0
    np.testing.assert_array_equal(found, style.find(bars[:, -needed:], style.bars, style.skip))
    assert not np.array_equal(found, style.find(bars[:, -needed + 1 :], style.bars, style.skip)), (
        "it needs them all"
    )


def test_styles_are_what_their_definitions_say():
    rng = np.random.default_rng(0)
    bars = rng.uniform(1, 2, size=(3, 30, 6)).astype(np.float32)
    amount, close = bars[..., 5].astype(float), np.log(bars[..., 3].astype(float))

    def of(name):
        return STYLES[name].find(bars, STYLES[name].bars, STYLES[name].skip)

    usual = np.log1p(amount[:, -20:].mean(axis=1))
    np.testing.assert_allclose(of("size"), usual)
    np.testing.assert_allclose(of("turnover"), np.log1p(amount[:, -5:].mean(axis=1)) - usual)
    np.testing.assert_allclose(of("volatility"), np.diff(close, axis=1)[:, -20:].std(axis=1))
    for name in ("momentum", "reversal"):
        assert STYLES[name] is BASELINES[name], "one word, one definition"
