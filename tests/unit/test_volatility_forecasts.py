"""EWMA, GARCH, log-range HAR and the oracle: right on worlds that are theirs, counted where not."""

from __future__ import annotations

from types import MappingProxyType

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.errors import BarDataError, MissingDependencyError
from kronos_qlib.evaluation.forecasts.baselines import volatility_forecasts
from kronos_qlib.evaluation.forecasts.baselines.named_baselines import (
    EWMA,
    EWMA_CALIBRATED,
    GARCH,
    GARCH_CALIBRATED,
    HAR,
    HAR_CALIBRATED,
    ORACLE,
    WALK,
    Baselines,
)
from kronos_qlib.evaluation.forecasts.baselines.volatility_forecasts import (
    LogRangeHar,
    ewma,
    fit_garch,
    garch,
    log_variance,
    realised,
)
from kronos_qlib.evaluation.forecasts.distributions import STILL, Outcomes
from kronos_qlib.schema import CLOSE, OPEN

STEPS = 150
"""Of a bar's own path, from which its range comes."""


def market(seed, *, days=12, names=5, bars=300, horizon=4, persistence=0.97, start="2024-01-01"):
    """Outcomes with histories whose log volatility is an AR(1), and the true volatility ahead."""
    rng = np.random.default_rng(seed)
    length = bars + days + horizon
    level = np.zeros((names, length))
    for bar in range(1, length):
        level[:, bar] = persistence * level[:, bar - 1] + 0.2 * rng.normal(size=names)
    volatility = 0.015 * np.exp(level)
    steps = rng.normal(size=(names, length, STEPS)) * volatility[..., None] / np.sqrt(STEPS)
    path = 10 * np.exp(np.cumsum(steps.reshape(names, -1), axis=1)).reshape(names, length, STEPS)
    opened = np.concatenate([np.full((names, 1), 10.0), path[:, :-1, -1]], axis=1)
    every = np.concatenate([opened[..., None], path], axis=-1)
    prices = np.stack([opened, every.max(-1), every.min(-1), path[..., -1]], axis=-1)
    calendar = pd.bdate_range(start, periods=days + horizon).to_numpy()
    ends = np.repeat(np.arange(days), names)
    owner = np.tile(np.arange(names), days)
    history = np.stack([prices[n, e : e + bars] for n, e in zip(owner, ends, strict=True)])
    ahead = np.arange(horizon)
    closes = np.stack(
        [prices[n, e + bars + ahead, CLOSE] for n, e in zip(owner, ends, strict=True)]
    )
    true = np.stack([volatility[n, e + bars + ahead] for n, e in zip(owner, ends, strict=True)])
    outcomes = Outcomes(
        calendar[ends],
        history[:, -21:, CLOSE],
        closes,
        calendar[ends[:, None] + 1 + ahead],
        history=history,
    )
    return outcomes, true


def correlation(forecast, true):
    return np.corrcoef(np.log(forecast), np.log(true))[0, 1]


@pytest.fixture(scope="module")
def world():
    return market(1, names=20, days=5)


def test_an_ewma_is_its_recursion():
    outcomes, _ = market(0, days=2, names=1, bars=60)
    moves = np.diff(np.log(outcomes.history[0, :, CLOSE]))
    variance = moves[0] ** 2
    for move in moves[1:]:
        variance = 0.94 * variance + 0.06 * move**2
    # Scaled weights and a recursion from its first return differ by what .94^59 is worth.
    weights = 0.94 ** np.arange(59)[::-1]
    assert ewma(outcomes).per_bar[0] == pytest.approx(
        np.full(4, np.sqrt((weights * moves**2).sum() / weights.sum()))
    )
    assert ewma(outcomes).per_bar[0, 0] == pytest.approx(np.sqrt(variance), rel=0.05)


def test_bars_before_an_instruments_first_weigh_nothing():
    outcomes, _ = market(0, days=2, names=1, bars=60)
    padded = np.concatenate([np.full((2, 30, 4), np.nan), outcomes.history], axis=1)
    again = replaced(outcomes, padded)
    assert ewma(again).per_bar == pytest.approx(ewma(outcomes).per_bar)
    assert log_variance(again)[:, 30:] == pytest.approx(log_variance(outcomes))


def replaced(outcomes, history):
    return Outcomes(outcomes.times, outcomes.past, outcomes.closes, outcomes.until, history=history)


def test_a_price_that_stood_still_has_a_volatility():
    outcomes, _ = market(0, days=2, names=1, bars=150)
    still = np.full_like(outcomes.history, 10.0)
    flat = Outcomes(
        outcomes.times, still[:, -21:, CLOSE], outcomes.closes, outcomes.until, history=still
    )
    har = LogRangeHar.fit(market(3, names=3)[0])
    for forecast in (ewma(flat), garch(flat), har.forecast(flat)):
        assert np.isfinite(forecast.per_bar).all()
        assert (forecast.per_bar >= STILL).all()
    assert garch(flat).fallbacks.all()


def test_without_a_history_an_ewma_reads_the_few_closes_seen():
    outcomes, _ = market(0)
    few = Outcomes(outcomes.times, outcomes.past, outcomes.closes, outcomes.until)
    assert ewma(few).per_bar.shape == (60, 4)
    with pytest.raises(BarDataError, match="a range needs bars: give `history`"):
        LogRangeHar.fit(few)


# GARCH.


def garch_world(windows, nu=6.0, bars=900, seed=0):
    """Windows of a GARCH(1,1)-t and the variance of their next bar."""
    rng = np.random.default_rng(seed)
    variance = np.full(windows, 1.0)
    moves = np.empty((windows, bars))
    for bar in range(bars):
        moves[:, bar] = np.sqrt(variance * (nu - 2) / nu) * rng.standard_t(nu, windows)
        variance = 0.05 + 0.1 * moves[:, bar] ** 2 + 0.85 * variance
    closes = 10 * np.exp(np.cumsum(0.01 * moves, axis=1))
    history = np.repeat(closes[..., None], 4, axis=2)
    days = pd.bdate_range("2024-01-01", periods=windows + 10).to_numpy()
    until = days[np.arange(windows)[:, None] + np.arange(1, 11)]
    ahead = np.repeat(closes[:, -1:], 10, axis=1)
    outcomes = Outcomes(days[:windows], closes[:, -21:], ahead, until, history=history)
    return outcomes, 0.01 * np.sqrt(variance)


def test_a_garch_finds_the_next_volatility_and_reverts_to_the_mean():
    outcomes, true = garch_world(12)
    found = garch(outcomes)
    assert not found.fallbacks.any()
    assert found.per_bar[:, 0] == pytest.approx(true, rel=0.25)
    assert np.abs(np.log(found.per_bar[:, 0] / true)).mean() < 0.1
    # Long-run deviation .01: forecasts of ten bars lie between it and that of the next.
    apart = np.abs(np.log(found.per_bar / 0.01))
    assert (apart[:, 9] <= apart[:, 0] + 0.08).all()
    assert 4 < np.median(found.degrees[:, 0]) < 11
    assert found.degrees[:, 9] == pytest.approx(
        np.where(found.degrees[:, 0] > 4, 4 + 10 * (found.degrees[:, 0] - 4), found.degrees[:, 0])
    )


@pytest.mark.parametrize("how", ["short", "flag", "wild", "raises"])
def test_a_garch_without_a_fit_is_the_ewma_and_is_counted(monkeypatch, how):
    outcomes, _ = garch_world(3, bars=60 if how == "short" else 300)

    class Found:
        convergence_flag = int(how == "flag")
        params = MappingProxyType({"nu": 5.0})

        def forecast(self, horizon, reindex):
            return type("F", (), {"variance": pd.DataFrame([[1e6] * horizon])})

    def model(*_, **__):
        def fit(self, **_):
            if how == "raises":
                raise np.linalg.LinAlgError("singular")
            return Found()

        return type("M", (), {"fit": fit})()

    if how != "short":
        monkeypatch.setattr("arch.arch_model", model)
    found = garch(outcomes)
    assert found.fallbacks.tolist() == [True] * 3
    assert found.per_bar == pytest.approx(ewma(outcomes).per_bar)
    assert np.isinf(found.degrees).all()


def test_normal_innovations_with_a_mean_are_fitted_too():
    outcomes, true = garch_world(1)
    moves = np.diff(np.log(outcomes.closes_seen[0])) + 0.01
    found = fit_garch(moves, 2, mean="Constant", dist="normal")
    assert np.isinf(found.degrees)
    assert np.sqrt(found.variance[0]) == pytest.approx(true[0], rel=0.3)
    assert fit_garch(moves[:99], 2) is None
    assert fit_garch(moves[:99], 2, least=50).variance.shape == (2,)


def test_a_garch_needs_arch_and_says_which_extra_brings_it(monkeypatch):
    def missing(module, *, for_):
        raise MissingDependencyError(f"{for_} needs {module}")

    monkeypatch.setattr(volatility_forecasts, "require", missing)
    with pytest.raises(MissingDependencyError, match="a GARCH forecast needs arch"):
        garch(garch_world(2, bars=50)[0])


# HAR.


def test_the_variance_of_a_bar_is_that_of_garman_and_klass_with_its_gap():
    bars = np.array([[[10.0, 10.0, 10.0, 10.0], [10.5, 11.0, 10.0, 10.8]]])
    days = pd.bdate_range("2024-01-01", periods=2).to_numpy()
    past = bars[:, :, CLOSE]
    outcomes = Outcomes(days[:1], past, np.ones((1, 1)), days[1:, None], 1, bars)
    gap, reach, body = np.log(10.5 / 10), np.log(11 / 10), np.log(10.8 / 10.5)
    expected = gap**2 + reach**2 / 2 - (2 * np.log(2) - 1) * body**2
    assert log_variance(outcomes)[0, 0] == pytest.approx(np.log(expected))


def test_that_variance_is_unbiased_on_walks_seen_often_enough():
    outcomes, _ = market(5, persistence=0.0, names=30)
    variance = np.exp(log_variance(outcomes))
    closes = np.diff(np.log(outcomes.history[:, :, CLOSE]), axis=1)
    # A range of 150 steps is a little below that of a continuous path.
    assert variance.mean() == pytest.approx((closes**2).mean(), rel=0.2)
    assert np.log(variance).std() < 0.6 * np.log(closes**2).std()


def test_a_high_below_its_close_is_widened():
    outcomes, _ = market(0, days=2, names=1, bars=60)
    dirty = outcomes.history.copy()
    dirty[:, 30, 1] = dirty[:, 30, OPEN] * 0.5
    assert np.isfinite(log_variance(replaced(outcomes, dirty))).all()


def test_a_har_knows_clustered_volatility_better_than_twenty_days(world):
    outcomes, true = world
    har = LogRangeHar.fit(market(2, names=20)[0])
    assert har.rows > 1000
    found = har.forecast(outcomes).per_bar
    assert found.shape == (100, 4)
    known = correlation(found[:, 0], true[:, 0])
    assert known > 0.8
    assert known > correlation(outcomes.historical_volatility, true[:, 0]) + 0.05
    level = np.sqrt(np.cumsum(true**2, axis=1) / np.arange(1, 5)).mean(axis=0)
    assert found.mean(axis=0) == pytest.approx(level, rel=0.2)


def test_a_hars_coefficients_are_those_of_the_world():
    """Of independent log variances nothing is known but their mean: coefficients of 0."""
    har = LogRangeHar.fit(market(4, names=20, persistence=0.0)[0])
    assert np.abs(har.coefficients[:, 1:]).max() < 0.2
    clustered = LogRangeHar.fit(market(4, names=20)[0])
    assert 0.7 < clustered.coefficients[0, 1:].sum() < 1.05


def test_a_har_reads_nothing_that_came():
    earlier, _ = market(6)
    fitted = LogRangeHar.fit(earlier)
    other = Outcomes(
        earlier.times, earlier.past, earlier.closes * 3, earlier.until, history=earlier.history
    )
    assert (LogRangeHar.fit(other).coefficients == fitted.coefficients).all()
    assert (fitted.forecast(other).per_bar == fitted.forecast(earlier).per_bar).all()


def test_a_har_of_too_short_histories_says_how_many_it_has():
    with pytest.raises(BarDataError, match=r"40 moments at least.*got 0"):
        LogRangeHar.fit(market(0, bars=25)[0])
    har = LogRangeHar.fit(market(0)[0])
    with pytest.raises(BarDataError, match="fitted for 4 bars, got 3"):
        har.forecast(market(0, horizon=3)[0])
    assert np.isfinite(har.forecast(market(0, bars=22)[0]).per_bar).all(), "fewer bars will do"


def test_the_oracle_knows_the_volatility_that_came_and_not_its_sign():
    outcomes, _ = market(0)
    found = realised(outcomes).per_bar
    moves = np.diff(np.log(np.c_[outcomes.last_close, outcomes.closes]), axis=1)
    assert found == pytest.approx(np.repeat(np.sqrt((moves**2).mean(1))[:, None], 4, 1))
    assert (realised(outcomes).walk().mean() == 0).all()
    assert realised(outcomes, 0).per_bar == pytest.approx(ewma(outcomes).per_bar)
    half = np.sqrt(found * ewma(outcomes).per_bar)
    assert realised(outcomes, 0.5).per_bar == pytest.approx(half)


# All by name.


@pytest.fixture(scope="module")
def baselines(world):
    return Baselines.of_windows(world[0], market(2, days=4, names=15, bars=250)[0])


def test_all_baselines_are_there_and_finite(baselines, world):
    outcomes, _ = world
    assert {EWMA, EWMA_CALIBRATED, GARCH, GARCH_CALIBRATED, HAR, HAR_CALIBRATED} < {*baselines.of}
    assert set(baselines.bounds) == {ORACLE}
    assert not baselines.left_out
    for one in {**baselines.of, **baselines.bounds}.values():
        assert np.isfinite(one.crps(outcomes.returns)).all()
        assert (one.quantile(0.05) <= 0).all()
        assert (one.shortfall(0.05) <= one.quantile(0.05)).all()


def test_the_order_is_that_of_what_each_knows(baselines, world):
    """Volatility clusters here: a range knows more of it than twenty days, the oracle most."""
    outcomes, _ = world
    crps = {
        name: one.crps(outcomes.returns).mean()
        for name, one in {**baselines.of, **baselines.bounds}.items()
    }
    assert crps[ORACLE] < crps[HAR_CALIBRATED] < crps[WALK]


def test_nothing_of_the_judged_windows_reaches_what_was_fitted():
    outcomes, earlier = market(1, days=2, names=3)[0], market(2, days=2, names=3)[0]
    other = Outcomes(
        outcomes.times,
        outcomes.past,
        outcomes.closes * 1.5,
        outcomes.until,
        history=outcomes.history,
    )
    one, again = (Baselines.of_windows(each, earlier) for each in (outcomes, other))
    for name, walk in one.fitted.items():
        assert (again.fitted[name].scale == walk.scale).all()
        assert (again.fitted[name].degrees == walk.degrees).all()
    for name, distribution in one.of.items():
        assert (again.of[name].quantile(0.1) == distribution.quantile(0.1)).all()


def test_without_histories_garch_and_har_are_left_out_and_named():
    outcomes, _ = market(1, days=2, names=3)
    bare = Outcomes(outcomes.times, outcomes.past, outcomes.closes, outcomes.until)
    found = Baselines.of_windows(outcomes, bare)
    assert set(found.left_out) == {GARCH, HAR}
    assert GARCH not in found.of and EWMA_CALIBRATED in found.of
    short = market(0, bars=22, names=20)[0]
    found = Baselines.of_windows(short, short)
    assert "got 0" in found.left_out[HAR]
    assert found.garch_fallbacks == len(short.times)


# Histories that cannot be.


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda h: h[:, :, :3], r"history \(N, T, 4\)"),
        (lambda h: h * 2, "last close of `history` is not that of `past`"),
        (lambda h: np.where(np.arange(60)[:, None] == 30, np.nan, h), "before an instrument's"),
        (lambda h: np.where(np.arange(60)[:, None] == 30, -1.0, h), "a price of the history is -1"),
    ],
)
def test_a_history_that_cannot_be_is_refused(spoil, message):
    outcomes, _ = market(0, days=2, names=1, bars=60)
    with pytest.raises(BarDataError, match=message):
        replaced(outcomes, spoil(outcomes.history))
