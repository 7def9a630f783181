"""Distributions of paths hold what they promise for any law that these are drawn from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kronos_qlib.evaluation.forecasts.distributions import PathDistribution

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
