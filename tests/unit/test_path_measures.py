"""The paper's measures: by hand, against scipy, and how often their intervals hold."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import spearmanr

from kronos_qlib.errors import BarDataError, UndefinedMetricError
from kronos_qlib.evaluation.forecasts.path_measures import (
    clustered_by_day,
    path_rank_ic,
    pooled_rank_ic,
    r_squared,
    squared_correlation,
)
from kronos_qlib.evaluation.ranking.uncertainty import daily_mean


def days_of(count, windows):
    """`windows` windows on each of `count` business days."""
    return pd.bdate_range("2024-01-01", periods=count).repeat(windows)


def test_a_path_is_ranked_along_its_own_horizon():
    came = np.array([[10.0, 11, 12, 13]] * 4)
    predicted = np.array([[1.0, 2, 3, 4], [4, 3, 2, 1], [2, 1, 4, 3], [5, 5, 5, 5]])
    # 1 - 6 x (4 x 1) / (4 x 15) of the third; a flat path has no order.
    np.testing.assert_allclose(path_rank_ic(predicted, came), [1, -1, 0.6, np.nan])
    np.testing.assert_allclose(path_rank_ic(came, predicted), [1, -1, 0.6, np.nan])


@given(arrays(np.float64, (2, 3, 5), elements=st.integers(-4, 4).map(float)))
def test_rank_correlations_are_scipys_ties_included(values):
    predicted, came = values
    found = path_rank_ic(predicted, came)
    for one, other, rank_ic in zip(predicted, came, found, strict=True):
        if np.ptp(one) and np.ptp(other):
            assert rank_ic == pytest.approx(spearmanr(one, other).statistic, abs=1e-12)
        else:
            assert np.isnan(rank_ic)
    pooled = pooled_rank_ic(predicted, came)
    if np.ptp(predicted) and np.ptp(came):
        known = spearmanr(predicted.ravel(), came.ravel()).statistic
        assert pooled == pytest.approx(known, abs=1e-12)
    else:
        assert np.isnan(pooled)


def test_returns_are_pooled_over_windows_not_ranked_within_them():
    predicted = np.array([[0.01, 0.02], [0.11, 0.12]])
    came = np.array([[0.02, 0.01], [0.12, 0.11]])
    assert path_rank_ic(predicted, came).tolist() == [-1, -1]
    assert pooled_rank_ic(predicted, came) == pytest.approx(0.6)


def test_r_squared_punishes_bias_and_its_regression_forgives_it():
    came = np.array([1.0, 2, 3])
    assert r_squared(came, came) == 1
    assert r_squared(np.full(3, 2.0), came) == 0
    # Errors 1, 1, 1 over squares 1, 0, 1 about the mean.
    assert r_squared(came + 1, came) == pytest.approx(1 - 3 / 2)
    assert squared_correlation(2 * came + 1, came) == pytest.approx(1)
    assert np.isnan(squared_correlation(np.full(3, 2.0), came))
    with pytest.raises(UndefinedMetricError, match="nothing to explain"):
        r_squared(came, np.full(3, 2.0))


@given(st.integers(0, 2**32 - 1))
def test_no_prediction_explains_more_than_its_regression(seed):
    rng = np.random.default_rng(seed)
    came, predicted = rng.lognormal(size=(2, 30))
    left = squared_correlation(predicted, came)
    assert r_squared(predicted, came) <= left + 1e-12
    slope, level = np.polyfit(predicted, came, 1)
    assert r_squared(level + slope * predicted, came) == pytest.approx(left, abs=1e-9)


def test_of_a_mean_the_interval_is_that_of_the_daily_means():
    rng = np.random.default_rng(0)
    days = days_of(60, 5)
    values = rng.normal(0.1, 1, 300)
    shuffled = rng.permutation(300)  # the order of windows decides nothing
    found = clustered_by_day(
        lambda kept: float(values[shuffled][kept].mean()), days[shuffled], label_days=3
    )
    known = daily_mean(pd.Series(values).groupby(days).mean(), label_bars=3)
    assert found.value == pytest.approx(known.mean)
    assert (found.low, found.high) == pytest.approx(known.interval())


def test_windows_of_a_day_are_one_piece_of_evidence():
    """Five copies of each window must not make the interval narrower."""
    rng = np.random.default_rng(1)
    came = rng.normal(size=(2, 80))
    widths = []
    for copies in (1, 5):
        predicted, true = np.repeat(came, copies, axis=1)

        def measure(kept, predicted=predicted, true=true):
            return pooled_rank_ic(predicted[kept], true[kept])

        found = clustered_by_day(measure, days_of(80, copies))
        widths.append(found.high - found.low)
    assert widths[1] == pytest.approx(widths[0], rel=0.02)


def test_intervals_of_a_pooled_rank_ic_cover_it():
    """Shared shocks of a day: intervals of independent windows would cover about half."""
    rng, held, plain, runs = np.random.default_rng(2), 0, 0, 150
    days, known = days_of(60, 10), 6 / np.pi * np.arcsin(0.3 / 2)
    for _ in range(runs):
        noise = rng.normal(size=(2, 600)) + 1.5 * np.repeat(rng.normal(size=(2, 60)), 10, axis=1)
        one, other = noise[0], 0.3 * noise[0] + np.sqrt(1 - 0.3**2) * noise[1]

        def measure(kept, one=one, other=other):
            return pooled_rank_ic(one[kept], other[kept])

        found = clustered_by_day(measure, days)
        held += found.low <= known <= found.high
        plain += abs(found.value - known) < 1.96 / np.sqrt(600)
    assert 0.9 <= held / runs <= 1
    assert plain / runs < 0.7


def test_what_has_no_value_or_no_error_says_so():
    days = days_of(20, 2)
    assert np.isnan(clustered_by_day(lambda kept: float("nan"), days).value)
    certain = clustered_by_day(lambda kept: 1.0, days)
    assert certain.value == 1 and np.isnan([certain.low, certain.high]).all()
    values = np.random.default_rng(3).normal(size=12)
    with pytest.raises(UndefinedMetricError, match="days"):
        clustered_by_day(lambda kept: float(values[kept].mean()), days_of(6, 2))


@pytest.mark.parametrize("measure", [path_rank_ic, pooled_rank_ic, r_squared, squared_correlation])
def test_arrays_that_cannot_be_compared_are_refused(measure):
    good = np.arange(6.0).reshape(2, 3)
    with pytest.raises(BarDataError, match=r"\(2, 3\) and \(3, 2\)"):
        measure(good, good.T)
    with pytest.raises(BarDataError, match="not empty"):
        measure(good[:0], good[:0])
    broken = good.copy()
    broken[1, 2] = np.nan
    with pytest.raises(BarDataError, match=r"a value that came is nan at \(1, 2\)"):
        measure(good, broken)
    with pytest.raises(BarDataError, match="a prediction is nan"):
        measure(broken, good)
