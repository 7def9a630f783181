"""How sure one can be of a daily mean: by hand, on series of known dependence, and when refused."""

import numpy as np
import pandas as pd
import pytest
from scipy.signal import lfilter

from kronos_qlib.errors import UndefinedMetricError
from kronos_qlib.evaluation.uncertainty import (
    bootstrap_interval,
    bootstrap_statistic,
    daily_mean,
    paired_difference,
    usual_lags,
)


def series_of(values):
    return pd.Series(values, index=pd.bdate_range("2024-01-01", periods=len(values)))


def autoregressive(rng, days, memory, mean=0.0):
    """AR(1) from its stationary law, of variance 1."""
    shocks = rng.normal(size=days) * np.sqrt(1 - memory**2)
    shocks[0] /= np.sqrt(1 - memory**2)
    return mean + lfilter([1.0], [1.0, -memory], shocks)


def by_hand(values, lags):
    apart = values - values.mean()
    n = len(values)
    long_run = apart @ apart / n
    for lag in range(1, lags + 1):
        long_run += 2 * (1 - lag / (lags + 1)) * (apart[lag:] @ apart[:-lag]) / n
    return np.sqrt(long_run / n * n / (n - 1))


@pytest.mark.parametrize("lags", [0, 1, 4, 20])
def test_the_error_is_newey_and_wests(lags):
    values = autoregressive(np.random.default_rng(0), 60, 0.5, mean=0.1)
    found = daily_mean(series_of(values), lags)
    assert found.mean == pytest.approx(values.mean())
    assert found.standard_error == pytest.approx(by_hand(values, lags))
    assert found.t == pytest.approx(values.mean() / by_hand(values, lags))
    assert (found.days, found.lags) == (60, lags)


def test_ten_days_on_paper():
    """0 and 1 in turn: deviations of 1/2, neighbours 9 times opposed, so 10/4 - 9/4 over 100."""
    found = daily_mean(series_of([0.0, 1.0] * 5), 1)
    assert found.standard_error == pytest.approx(np.sqrt((2.5 - 2.25) / 10 / 9))


def test_no_lags_are_the_usual_standard_error():
    values = np.random.default_rng(1).normal(size=50)
    found = daily_mean(series_of(values), 0)
    assert found.standard_error == pytest.approx(values.std(ddof=1) / np.sqrt(50))


@pytest.mark.parametrize(("days", "lags"), [(10, 2), (100, 4), (122, 4), (252, 4), (300, 5)])
def test_the_rule_for_lags(days, lags):
    assert usual_lags(days) == lags
    values = np.random.default_rng(2).normal(size=days)
    assert daily_mean(series_of(values)).lags == lags


def test_intervals_hold_the_true_mean_about_as_often_as_they_say():
    """Of days that depend on each other, where the usual interval holds it far less often."""
    rng = np.random.default_rng(3)
    held, held_usually = [], []
    for _ in range(400):
        daily = series_of(autoregressive(rng, 250, 0.4, mean=0.05))
        for lags, found in ((None, held), (0, held_usually)):
            low, high = daily_mean(daily, lags).interval(0.95)
            found.append(low <= 0.05 <= high)
    assert 0.88 < np.mean(held) < 0.97
    assert np.mean(held_usually) < np.mean(held) - 0.05


def test_a_paired_difference_forgets_what_both_share():
    rng = np.random.default_rng(4)
    shared = rng.normal(size=120)
    one = series_of(shared + 0.1 + rng.normal(size=120) * 0.1)
    other = series_of(shared + rng.normal(size=120) * 0.1)
    found = paired_difference(one, other)
    low, high = found.interval
    assert 0 < low < found.difference.mean < high
    assert found.difference.standard_error < daily_mean(one).standard_error / 4
    assert found.interval == found.difference.interval(0.95)
    assert paired_difference(other, one).difference.mean == -found.difference.mean
    wider = paired_difference(one, other, level=0.99)
    assert wider.interval[0] < low < high < wider.interval[1]
    assert wider.bootstrap[0] < found.bootstrap[0] < found.bootstrap[1] < wider.bootstrap[1]


def test_the_bootstrap_holds_the_true_difference_about_as_often_as_it_says():
    rng = np.random.default_rng(5)
    held = []
    for seed in range(150):
        one, other = (series_of(autoregressive(rng, 200, 0.3, mean)) for mean in (0.1, 0.0))
        low, high = paired_difference(one, other, draws=300, seed=seed).bootstrap
        held.append(low <= 0.1 <= high)
    assert 0.85 < np.mean(held) < 0.98


def test_the_seed_decides_the_bootstrap_and_nothing_else():
    rng = np.random.default_rng(6)
    one, other = (series_of(rng.normal(size=80)) for _ in range(2))
    first, same, another = (paired_difference(one, other, seed=seed) for seed in (0, 0, 1))
    assert first == same
    assert first.bootstrap != another.bootstrap
    assert first.interval == another.interval
    np.testing.assert_allclose(first.bootstrap, first.interval, atol=0.1)


def test_a_constant_series_has_no_error():
    with pytest.raises(UndefinedMetricError, match=r"is 0.02 on every one of 30 days"):
        daily_mean(series_of([0.02] * 30))
    same = series_of(np.random.default_rng(7).normal(size=30))
    with pytest.raises(UndefinedMetricError, match="is 0 on every one of 30 days"):
        paired_difference(same, same)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_is_named_by_its_day(bad):
    daily = series_of(np.random.default_rng(8).normal(size=30))
    daily.iloc[[4, 9]] = bad
    with pytest.raises(UndefinedMetricError, match="finite number on 2024-01-05 and 2 of 30 days"):
        daily_mean(daily)
    with pytest.raises(UndefinedMetricError, match="the second series is not a finite number"):
        paired_difference(daily.fillna(0.0).replace(np.inf, 0.0), daily)


def test_too_few_days_are_refused():
    with pytest.raises(UndefinedMetricError, match="has 9 days, and 10 are the fewest"):
        daily_mean(series_of(np.arange(9.0)))


def test_days_must_stand_in_order_and_be_the_same():
    daily = series_of(np.random.default_rng(9).normal(size=30))
    with pytest.raises(UndefinedMetricError, match="each day once and in order"):
        daily_mean(daily.iloc[::-1])
    with pytest.raises(UndefinedMetricError, match=r"1 are in one series only.*2024-01-01"):
        paired_difference(daily, daily.iloc[1:])


@pytest.mark.parametrize("lags", [-1, 30, 2.5])
def test_lags_that_cannot_work_are_refused(lags):
    with pytest.raises(UndefinedMetricError, match="whole number from 0 to 29"):
        daily_mean(series_of(np.random.default_rng(10).normal(size=30)), lags)


def test_a_level_is_a_share():
    daily = daily_mean(series_of(np.random.default_rng(11).normal(size=30)))
    with pytest.raises(UndefinedMetricError, match="between 0 and 1, got 95"):
        daily.interval(95)


def test_the_interval_of_a_mean_holds_it_about_as_often_as_it_says():
    rng = np.random.default_rng(12)
    held = []
    for seed in range(100):
        daily = series_of(autoregressive(rng, 200, 0.3, mean=0.1))
        low, high = bootstrap_interval(daily, draws=300, seed=seed)
        held.append(low <= 0.1 <= high)
    assert 0.85 < np.mean(held) < 0.99


def test_longer_blocks_widen_the_interval_of_days_that_overlap():
    values = autoregressive(np.random.default_rng(13), 400, 0.9)
    short = bootstrap_interval(series_of(values))
    long = bootstrap_interval(series_of(values), least_block=60)
    assert np.ptp(long) > 1.02 * np.ptp(short)
    white = series_of(np.random.default_rng(14).normal(size=200))
    assert bootstrap_interval(white, level=0.99)[0] < bootstrap_interval(white)[0]


def test_a_statistic_of_several_series_draws_their_days_together():
    one = autoregressive(np.random.default_rng(15), 100, 0.2)
    daily = pd.DataFrame({"one": one, "other": one + 2.0}, index=series_of(one).index)
    low, high = bootstrap_statistic(daily, lambda values: float(np.ptp(values.mean(axis=0))))
    assert (low, high) == pytest.approx((2.0, 2.0))
    with pytest.raises(UndefinedMetricError, match="nothing to draw from"):
        bootstrap_statistic(daily * 0, lambda values: float(values.mean()))
    daily.iloc[3, 1] = np.nan
    with pytest.raises(UndefinedMetricError, match="column 'other' is not a finite number on"):
        bootstrap_statistic(daily, lambda values: float(values.mean()))
