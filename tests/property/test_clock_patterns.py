"""Any pattern of weekdays and times of day is read off its bars, and goes on as it made them."""

from __future__ import annotations

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from kronos_qlib.data.calendar.stamps import bars_ahead, next_times

MINUTES = np.timedelta64(1, "m")
WEEKDAYS = st.one_of(
    st.just((0, 1, 2, 3, 4)),
    st.just((0, 1, 2, 3, 6)),
    st.just(tuple(range(7))),
    st.sets(st.integers(0, 6), min_size=2, max_size=6).map(lambda days: tuple(sorted(days))),
)


@st.composite
def clocks(draw):
    """Minutes of the day at which bars come: one time, or one or two sessions of a step."""
    step = draw(st.sampled_from([5, 15, 30, 60, 120, 240]))
    opened = draw(st.integers(0, 20)) * 30
    first = opened + step * np.arange(1, draw(st.integers(2, 6)) + 1)
    if draw(st.booleans()):
        return first[first < 1440]
    second = first[-1] + draw(st.integers(2, 4)) * step + step * np.arange(draw(st.integers(2, 6)))
    times = np.concatenate((first, second))
    return times[times < 1440]


def bars_of(dates, clock):
    moments = dates.astype("datetime64[ns]")[:, None] + clock.astype("timedelta64[m]")
    return moments.ravel().astype("datetime64[ns]")


def dates_of(weekdays, days):
    """Dates from Monday 2024-01-01 on."""
    dates = np.datetime64("2024-01-01", "D") + np.arange(days)
    return dates[np.isin(np.arange(days) % 7, weekdays)]


def without_holidays(dates, rng, share):
    """At most a day a week: what closes more often is no open day."""
    keep = rng.random(len(dates)) >= share
    return dates[keep | (np.arange(len(dates)) >= len(dates) - 2)]


@given(WEEKDAYS, clocks(), st.integers(0, 2**32 - 1), st.integers(0, 6))
@settings(max_examples=150, deadline=None)
def test_minutes_go_on_exactly_as_the_pattern(weekdays, clock, seed, cut):
    """Twelve weeks with holidays, the last day broken off anywhere."""
    times = clock
    rng = np.random.default_rng(seed)
    dates = dates_of(weekdays, 84 + int(rng.integers(7)))
    past = bars_of(without_holidays(dates, rng, 0.05), times)
    past = past[: len(past) - cut] if cut else past
    everything = bars_of(dates_of(weekdays, 200), times)
    wanted = everything[everything > past[-1]][:60]
    assert (bars_ahead(past, 60).times == wanted).all()
    found = next_times(past, past[[-5, -1]], 60, "pattern")
    assert (found[1] == wanted).all()
    assert (found[0] == np.concatenate((past[-4:], wanted))[:60]).all()


@given(WEEKDAYS, st.integers(0, 23), st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_days_go_on_exactly_as_the_pattern(weekdays, hour, seed):
    rng = np.random.default_rng(seed)
    dates = dates_of(weekdays, 84 + int(rng.integers(7)))
    clock = np.array([60 * hour])
    past = bars_of(without_holidays(dates, rng, 0.05), clock)
    everything = bars_of(dates_of(weekdays, 200), clock)
    assert (bars_ahead(past, 20).times == everything[everything > past[-1]][:20]).all()


@given(
    st.sampled_from(["W-MON", "W-WED", "W-FRI", "W-SUN", "2W-THU", "MS", "ME", "BMS", "BME", "QE"]),
    st.integers(0, 300),
    st.integers(0, 23),
)
@settings(max_examples=100, deadline=None)
def test_weeks_and_months_go_on_as_pandas_has_them(freq, start, hour):
    first = pd.Timestamp("2020-01-01") + pd.Timedelta(days=start)
    times = pd.date_range(first, periods=40, freq=freq) + pd.Timedelta(hours=hour)
    past, ahead = times[:30], times[30:]
    assert (bars_ahead(past, 10).times == ahead.to_numpy("datetime64[ns]")).all()
