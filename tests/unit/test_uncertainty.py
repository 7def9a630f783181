"""How sure one can be of a daily mean: by hand, on series of known dependence, and when refused."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import lfilter
from scipy.stats import t as student

from kronos_qlib.errors import UndefinedMetricError
from kronos_qlib.evaluation.ranking.uncertainty import (
    by_day,
    cosines_for,
    coverage_of,
    daily_mean,
    label_days_of,
    paired_difference,
    statistic_interval,
)


def series_of(values):
    return pd.Series(values, index=pd.bdate_range("2024-01-01", periods=len(values)))


def autoregressive(rng, days, memory, mean=0.0):
    """AR(1) from its stationary law, of variance 1."""
    shocks = rng.normal(size=days) * np.sqrt(1 - memory**2)
    shocks[0] /= np.sqrt(1 - memory**2)
    return mean + lfilter([1.0], [1.0, -memory], shocks)


def bars_a_day(values):
    """(days, bars) on times of five minutes."""
    days = pd.bdate_range("2024-01-01", periods=len(values))
    times = [day + pd.Timedelta(minutes=5 * bar) for day in days for bar in range(values.shape[1])]
    return pd.Series(values.ravel(), index=pd.DatetimeIndex(times, name="datetime"))


def by_hand(values, cosines):
    n = len(values)
    places = np.arange(1, n + 1) - 0.5
    squares = [
        2 / n * (np.cos(np.pi * j * places / n) @ values) ** 2 for j in range(1, cosines + 1)
    ]
    return np.sqrt(np.mean(squares) / n)


@pytest.mark.parametrize(
    ("days", "bars", "cosines"),
    [(10, 1, 2), (60, 1, 6), (120, 1, 10), (250, 1, 16), (120, 5, 10), (120, 10, 5), (12, 10, 1)],
)
def test_the_error_is_of_the_first_cosines(days, bars, cosines):
    values = autoregressive(np.random.default_rng(0), days, 0.5, mean=0.1)
    found = daily_mean(series_of(values), label_bars=bars)
    assert cosines_for(days, bars) == found.cosines == cosines
    assert found.mean == pytest.approx(values.mean())
    assert found.standard_error == pytest.approx(by_hand(values, cosines))
    assert found.t == pytest.approx(values.mean() / by_hand(values, cosines))
    reach = student.ppf(0.975, cosines) * by_hand(values, cosines)
    assert found.interval() == pytest.approx((values.mean() - reach, values.mean() + reach))
    assert (found.days, found.label_days) == (days, bars)


def test_ten_days_on_paper():
    """A step from 0 to 1: by symmetry its second cosine is none, and the first is a sum of 5."""
    places = np.cos(np.pi * (np.arange(5) + 0.5) / 10)
    first = -np.sqrt(2 / 10) * places.sum()
    found = daily_mean(series_of([0.0] * 5 + [1.0] * 5))
    assert found.standard_error == pytest.approx(np.sqrt(first**2 / 2 / 10))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    days=st.integers(10, 300),
    bars=st.integers(1, 9),
    memory=st.floats(-0.9, 0.95),
    mean=st.floats(-1, 1),
    level=st.floats(0.5, 0.999),
)
def test_the_t_test_and_the_interval_agree(seed, days, bars, memory, mean, level):
    """A t past 2 once stood beside an interval that held zero: they were of two methods."""
    values = autoregressive(np.random.default_rng(seed), days, memory, mean)
    found = daily_mean(series_of(values), label_bars=bars)
    low, high = found.interval(level)
    assert (low > 0 or high < 0) == found.is_significant(level) == (found.p < 1 - level)
    assert (found.t > 0) == (found.mean > 0)
    scaled = daily_mean(series_of(3 * values), label_bars=bars)
    assert scaled.t == pytest.approx(found.t) and scaled.phi == pytest.approx(found.phi)
    assert daily_mean(series_of(-values), label_bars=bars).p == pytest.approx(found.p)


def test_labels_that_overlap_are_measured_on_longer_waves():
    """Waves shorter than five labels are damped by the overlap: an error of them is too small."""
    for days in (20, 60, 120, 250, 1000):
        for bars in (1, 2, 5, 10):
            shortest = 2 * days / cosines_for(days, bars)
            assert shortest >= 4 * bars or cosines_for(days, bars) == 1
            assert cosines_for(days, bars) <= cosines_for(days)


def test_a_paired_difference_forgets_what_both_share():
    rng = np.random.default_rng(4)
    shared = rng.normal(size=120)
    one = series_of(shared + 0.1 + rng.normal(size=120) * 0.1)
    other = series_of(shared + rng.normal(size=120) * 0.1)
    found = paired_difference(one, other)
    low, high = found.interval()
    assert 0 < low < found.mean < high
    assert found.standard_error < daily_mean(one).standard_error / 4
    assert found == daily_mean(one - other)
    assert paired_difference(other, one).t == -found.t
    wider = found.interval(0.99)
    assert wider[0] < low < high < wider[1]


# Several times a day.


def test_bars_of_one_day_are_one_days_evidence():
    """t once took each of 48 bars for a day, and was past 2 for most series of no mean."""
    rng = np.random.default_rng(5)
    rejected = 0
    for _ in range(100):
        news = rng.normal(size=(40, 1))  # shared by the bars of a day
        found = daily_mean(bars_a_day(news + 0.3 * rng.normal(size=(40, 12))), label_bars=2)
        assert found.days == 40
        rejected += found.is_significant()
    assert rejected <= 100 * 0.05 + 3 * np.sqrt(100 * 0.05 * 0.95)
    bars = bars_a_day(rng.normal(size=(30, 6)))
    daily = by_day(bars)
    assert len(daily) == 30 and daily.index.name == "datetime"
    assert daily.iloc[3] == pytest.approx(bars.iloc[18:24].mean())
    assert daily_mean(bars) == daily_mean(daily)


def test_days_that_close_at_three_stay_days():
    daily = series_of(np.arange(12.0))
    late = daily.set_axis(daily.index + pd.Timedelta(hours=15))
    assert by_day(late) is late
    assert daily_mean(late) == daily_mean(daily)


@pytest.mark.parametrize(
    ("bars", "times", "days", "expected"),
    [(10, 120, 120, 10), (1, 480, 10, 1), (48, 480, 10, 1), (49, 480, 10, 2), (96, 480, 10, 2)],
)
def test_bars_of_a_label_are_counted_in_days(bars, times, days, expected):
    assert label_days_of(bars, times, days) == expected


# What an interval covers.


def test_coverage_is_what_the_promise_says():
    """93 to 97 % from 120 days on at a dependence of .5 or less; the pages repeat it."""
    for phi in (0.0, 0.2, 0.5):
        for days in (120, 170, 250, 1000):
            for bars in (1, 2, 5, 10, 20):
                assert 0.93 < coverage_of(days, bars, phi) < 0.97, (phi, days, bars)
    assert coverage_of(120, 1, 0.0) == pytest.approx(0.95, abs=1e-4), "exact for independent days"
    assert coverage_of(120, 1, 0.8) < 0.92


def test_the_dependence_of_days_is_seen_through_labels_that_overlap():
    rng = np.random.default_rng(6)
    for memory in (0.0, 0.4, 0.8):
        own = autoregressive(rng, 4009, memory)
        for bars in (1, 2, 5, 10):
            seen = np.convolve(own, np.ones(bars) / bars, mode="valid")[:4000]
            found = daily_mean(series_of(seen), label_bars=bars)
            assert found.phi == pytest.approx(memory, abs=0.08), bars
    white = [daily_mean(series_of(rng.normal(size=40))).phi for _ in range(400)]
    assert np.mean(white) == pytest.approx(0, abs=0.03), "Kendall's correction"


def test_a_series_that_hardly_moves_says_that_its_interval_is_too_narrow():
    rng = np.random.default_rng(7)
    found = daily_mean(series_of(autoregressive(rng, 100, 0.95)))
    assert found.covers < 0.85
    assert daily_mean(series_of(rng.normal(size=120))).covers > 0.93


# A statistic of several means.


def test_of_a_weighted_sum_the_interval_is_the_same():
    rng = np.random.default_rng(8)
    daily = pd.DataFrame(rng.normal(size=(120, 3)) + 0.2, series_of(range(120)).index)
    weights = np.array([1.0, -2.0, 0.5])
    found = statistic_interval(daily, lambda means: float(means @ weights), draws=20000)
    expected = daily_mean(daily @ weights).interval()
    np.testing.assert_allclose(found, expected, atol=0.04 * np.ptp(expected))


def test_a_statistic_of_several_series_draws_their_means_together():
    one = autoregressive(np.random.default_rng(15), 100, 0.2)
    daily = pd.DataFrame({"one": one, "other": one + 2.0}, index=series_of(one).index)
    low, high = statistic_interval(daily, lambda means: float(np.ptp(means)))
    assert (low, high) == pytest.approx((2.0, 2.0))
    first = statistic_interval(daily, lambda means: float(means[0]))
    assert first == statistic_interval(daily, lambda means: float(means[0]))
    assert first != statistic_interval(daily, lambda means: float(means[0]), seed=1)
    with pytest.raises(UndefinedMetricError, match="nothing to draw from"):
        statistic_interval(daily * 0, lambda means: float(means.mean()))
    daily.iloc[3, 1] = np.nan
    with pytest.raises(UndefinedMetricError, match="column 'other' is not a finite number on"):
        statistic_interval(daily, lambda means: float(means.mean()))


# Refusals.


def test_a_constant_series_has_no_error():
    with pytest.raises(UndefinedMetricError, match=r"is 0.02 on every one of 30 days"):
        daily_mean(series_of([0.02] * 30))
    same = series_of(np.random.default_rng(7).normal(size=30))
    with pytest.raises(UndefinedMetricError, match="the difference is 0 on every one of 30 days"):
        paired_difference(same, same)


def test_a_series_without_slow_waves_has_no_error():
    """Mirrored in its middle it has no first cosine, and no error would make any mean sure."""
    with pytest.raises(UndefinedMetricError, match="1 slowest cosines vanish"):
        daily_mean(series_of([1.0, 2, 3, 4, 5, 6, 6, 5, 4, 3, 2, 1]), label_bars=10)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_is_named_by_its_day(bad):
    daily = series_of(np.random.default_rng(8).normal(size=30))
    daily.iloc[[4, 9]] = bad
    with pytest.raises(UndefinedMetricError, match="finite number on 2024-01-05 and 2 of 30 days"):
        daily_mean(daily)
    with pytest.raises(UndefinedMetricError, match="the second series is not a finite number"):
        paired_difference(daily.fillna(0.0).replace(np.inf, 0.0), daily)


@pytest.mark.parametrize("days", [0, 1, 9])
def test_too_few_days_are_refused(days):
    with pytest.raises(UndefinedMetricError, match=f"has {days} days, and 10 are the fewest"):
        daily_mean(series_of(np.arange(float(days))))
    nine = bars_a_day(np.random.default_rng(0).normal(size=(days, 48)))
    with pytest.raises(UndefinedMetricError, match=f"has {days} days, and 10 are the fewest"):
        daily_mean(nine)


def test_days_must_stand_in_order_and_be_the_same():
    daily = series_of(np.random.default_rng(9).normal(size=30))
    with pytest.raises(UndefinedMetricError, match="each day once and in order"):
        daily_mean(daily.iloc[::-1])
    with pytest.raises(UndefinedMetricError, match=r"1 are in one series only.*2024-01-01"):
        paired_difference(daily, daily.iloc[1:])


@pytest.mark.parametrize("bars", [-1, 0, 2.5])
def test_bars_that_cannot_be_are_refused(bars):
    with pytest.raises(UndefinedMetricError, match="label_bars must be a whole number from 1"):
        daily_mean(series_of(np.random.default_rng(10).normal(size=30)), label_bars=bars)


def test_labels_longer_than_the_series_are_refused():
    with pytest.raises(UndefinedMetricError, match="over 30 days overlap, and 30 days are too few"):
        daily_mean(series_of(np.random.default_rng(10).normal(size=30)), label_bars=30)


def test_a_level_is_a_share():
    daily = daily_mean(series_of(np.random.default_rng(11).normal(size=30)))
    with pytest.raises(UndefinedMetricError, match="between 0 and 1, got 95"):
        daily.interval(95)


@pytest.mark.parametrize("value", [0.1, 1.0, -3e-9, 1e6])
def test_rounding_is_no_variation(value):
    """A Rank IC of 1 on every day, and of 1 - 1e-16 on some, had a t of 10**16."""
    rng = np.random.default_rng(0)
    noise = value * (1 + rng.choice([0.0, 2.3e-16], 60))
    daily = pd.Series(noise, index=pd.bdate_range("2024-01-01", periods=60))
    assert np.ptp(daily) > 0
    with pytest.raises(UndefinedMetricError, match="on every one of 60 days"):
        daily_mean(daily)
