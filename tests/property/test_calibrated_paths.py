"""Calibration holds what it promises for any exchangeable paths, units and shapes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kronos_qlib.evaluation.forecasts.calibration import Calibration, ConformalIntervals
from kronos_qlib.evaluation.forecasts.distributions import PathDistribution, sample_quantile

LAWS = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "heavy": lambda rng, shape: rng.standard_t(3, size=shape),
    "skewed": lambda rng, shape: rng.exponential(size=shape) - 1,
    "ticks": lambda rng, shape: rng.integers(-3, 4, size=shape).astype(float),
}


def draws(seed, law="normal", windows=40, paths=20, horizon=3, spread=0.02):
    rng = np.random.default_rng(seed)
    last = rng.uniform(1, 100, windows)
    shape = (windows, paths + 1, horizon)
    closes = last[:, None, None] * np.exp(spread * LAWS[law](rng, shape))
    return closes[:, 1:], last, closes[:, 0]


@given(st.integers(0, 999), st.floats(0.1, 10), st.floats(0.01, 100))
def test_the_unit_of_prices_decides_nothing(seed, factor, unit):
    closes, last, came = draws(seed)
    calibration = Calibration((factor,) * 3, 1)
    moved = calibration.apply(closes, last)
    assert calibration.apply(closes * unit, last * unit) == pytest.approx(moved * unit)
    fitted = Calibration.fit(closes, last, came).factors
    assert Calibration.fit(closes * unit, last * unit, came * unit).factors == pytest.approx(
        fitted, rel=1e-3
    )


@given(st.integers(0, 999), st.floats(0.1, 10))
def test_a_factor_and_its_inverse_undo_each_other(seed, factor):
    closes, last, _ = draws(seed, windows=5)
    there = Calibration((factor,) * 3, 1).apply(closes, last)
    back = Calibration((1 / factor,) * 3, 1).apply(there, last)
    assert back == pytest.approx(closes)
    assert Calibration((1.0,) * 3, 1).apply(closes, last) == pytest.approx(closes)


@given(st.integers(0, 999), st.floats(0.1, 10))
def test_the_order_of_paths_stays_and_prices_stay_positive(seed, factor):
    closes, last, _ = draws(seed, "heavy", spread=0.3)
    moved = Calibration((factor,) * 3, 1).apply(closes, last)
    assert (moved > 0).all()
    order = np.argsort(closes, axis=1, kind="stable")
    assert (np.diff(np.take_along_axis(moved, order, axis=1), axis=1) >= 0).all()


@given(st.integers(0, 999), st.sampled_from(sorted(LAWS)), st.sampled_from([0.5, 0.8, 0.9]))
def test_on_its_own_windows_an_interval_lets_in_its_share(seed, law, level):
    """The order statistic, exactly: at least ceil((N + 1) level) of N lie within."""
    closes, last, came = draws(seed, law)
    low, high = np.log([sample_quantile(closes.transpose(0, 2, 1), tail) for tail in (0.05, 0.95)])
    assume((high > low).all())
    tails = ((1 - level) / 2, (1 + level) / 2)
    narrow = [sample_quantile(closes.transpose(0, 2, 1), tail) for tail in tails]
    assume((narrow[1] > narrow[0]).all())
    found = ConformalIntervals.fit(closes, last, came, (level,))
    bottom, top = found.apply(closes, last, level)
    slack = 1e-9 * last[:, None]
    within = ((bottom - slack <= came) & (came <= top + slack)).sum(axis=0)
    assert (within >= np.ceil((len(last) + 1) * level - 1e-9)).all()


@given(st.integers(0, 99), st.sampled_from(sorted(LAWS)), st.integers(2, 30))
def test_any_exchangeable_paths_have_even_ranks(seed, law, paths):
    closes, last, came = draws(seed, law, windows=1500, paths=paths, horizon=1)
    distribution = PathDistribution(closes, last)
    pits = distribution.pit(came / last[:, None] - 1, np.random.default_rng(seed))
    assert ((pits >= 0) & (pits <= 1)).all()
    assert np.mean(pits) == pytest.approx(0.5, abs=0.04)  # 5 standard errors
    assert np.mean(pits < 0.25) == pytest.approx(0.25, abs=0.06)


@given(st.integers(0, 999), st.sampled_from(["normal", "heavy", "skewed"]))
def test_the_fair_crps_is_that_of_all_pairs(seed, law):
    closes, last, came = draws(seed, law, windows=4, paths=5)
    returns, truth = closes / last[:, None, None] - 1, came / last[:, None] - 1
    apart = np.abs(returns[:, :, None] - returns[:, None]).sum(axis=(1, 2)) / (2 * 5 * 4)
    expected = np.abs(returns - truth[:, None]).mean(axis=1) - apart
    assert PathDistribution(closes, last).crps(truth) == pytest.approx(expected, abs=1e-12)
