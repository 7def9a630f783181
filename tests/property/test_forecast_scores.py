"""Scores and walks hold what they promise whatever the spread, the tails and the unit."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kronos_qlib.evaluation.forecasts.baselines.baseline_distributions import VolatilityWalk
from kronos_qlib.evaluation.forecasts.distributions import PathDistribution
from kronos_qlib.evaluation.forecasts.energy import energy_score
from kronos_qlib.evaluation.forecasts.risk import coverage_tests, fissler_ziegel, kupiec_ratio

SPREADS = st.floats(1e-4, 0.2)
DEGREES = st.sampled_from([2.5, 3.0, 8.0, np.inf])
LEVELS = st.floats(0.005, 0.5)


def walk(spread, degrees, horizon=3):
    return VolatilityWalk(
        np.array([spread, 2 * spread]), np.ones(horizon), np.full(horizon, degrees)
    )


@given(SPREADS, DEGREES, LEVELS)
def test_a_quantile_is_what_so_much_lies_below_and_the_shortfall_is_below_it(
    spread, degrees, level
):
    one = walk(spread, degrees)
    quantile = one.quantile(level)
    pit = one.pit(np.maximum(quantile, -1 + 1e-9), np.random.default_rng(0))
    above = quantile > -0.99
    assert pit[above] == pytest.approx(np.full(above.sum(), level), rel=1e-6)
    assert (one.shortfall(level) <= quantile + 1e-12).all()
    assert (np.diff(one.quantile(min(level, 0.4)), axis=1) < 0).all(), "spreads grow along the way"


@given(SPREADS, DEGREES, st.floats(-0.9, 1.0))
def test_crps_is_positive_and_at_most_what_a_point_would_lose_and_the_spread(spread, degrees, came):
    one = walk(spread, degrees)
    crps = one.crps(np.full((2, 3), came))
    assert (crps > 0).all()
    reach = spread * np.sqrt([1, 2, 3]) * np.array([[1], [2]])
    assert (crps <= abs(came) + reach).all()


@given(st.integers(0, 999), st.floats(0.01, 100), st.booleans())
def test_energy_has_the_unit_of_its_paths_and_the_order_of_paths_is_nothing(seed, unit, is_fair):
    rng = np.random.default_rng(seed)
    paths, came = rng.normal(size=(4, 6, 3)), rng.normal(size=(4, 3))
    score = energy_score(paths, came, is_fair=is_fair)
    assert energy_score(unit * paths, unit * came, is_fair=is_fair) == pytest.approx(unit * score)
    assert energy_score(paths[:, ::-1], came, is_fair=is_fair) == pytest.approx(score)
    moved = energy_score(paths + 5, came + 5, is_fair=is_fair)
    assert moved == pytest.approx(score)
    assert is_fair or (score >= -1e-12).all()


@given(st.integers(0, 999), st.integers(2, 30))
def test_the_empirical_crps_is_never_below_zero_and_never_below_the_fair_one(seed, paths):
    rng = np.random.default_rng(seed)
    closes, came = np.exp(0.1 * rng.normal(size=(5, paths, 2))), 0.1 * rng.normal(size=(5, 2))
    fair = PathDistribution(closes, np.ones(5)).crps(came)
    plain = PathDistribution(closes, np.ones(5), stratified=True).crps(came)
    assert (plain >= -1e-12).all()
    assert (plain >= fair - 1e-12).all()


@given(st.floats(0.001, 0.5), st.floats(0.001, 0.5), st.floats(1, 1e4))
def test_kupiecs_ratio_is_zero_at_the_level_alone_and_grows_with_trials(share, level, trials):
    ratio = kupiec_ratio(share, trials, level)
    assert ratio >= 0
    assert kupiec_ratio(share, 2 * trials, level) == pytest.approx(2 * ratio, abs=1e-6)
    assert kupiec_ratio(level, trials, level) == pytest.approx(0, abs=1e-6)


@given(st.integers(0, 999), st.integers(1, 10), st.integers(12, 80))
def test_p_values_are_probabilities_or_undefined(seed, label_days, days):
    rng = np.random.default_rng(seed)
    daily = pd.Series(rng.integers(0, 3, days) / 2 * (rng.random(days) < 0.2))
    for p in coverage_tests(daily, 0.05, label_days, days * 2):
        assert np.isnan(p) or 0 <= p <= 1


@given(st.floats(-0.5, -0.001), st.floats(1, 5), st.floats(-0.9, 0.9), st.floats(0.005, 0.2))
def test_the_joint_score_is_finite_and_worse_the_further_beyond(value, more, came, level):
    def score(returns):
        return fissler_ziegel(
            np.array([value]), np.array([value * more]), np.array([returns]), level
        )[0]

    assert np.isfinite(score(came))
    assert score(value - 0.1) > score(value - 0.05) > score(value) == score(value + 0.1)
