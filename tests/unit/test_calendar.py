"""Time fields of bars, and the bars to come."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.data.calendar import next_times, stamps_of
from kronos_qlib.errors import CalendarError

NOON = pd.Timestamp("2024-02-29 11:30")  # a Thursday
FIELDS = [30, 11, 3, 29, 2]
WEEK = pd.bdate_range("2024-01-01", "2024-01-05").to_numpy().astype("datetime64[ns]")


@pytest.mark.parametrize(
    "times",
    [
        pd.Series([NOON]),
        pd.DatetimeIndex([NOON]),
        np.array([NOON], dtype="datetime64[s]"),
        np.array([NOON], dtype=object),
        [NOON],
        [NOON.to_pydatetime()],
        ["2024-02-29 11:30"],
        pd.Series(["2024-02-29 11:30"]),
        [NOON.tz_localize("Asia/Shanghai")],
        pd.DatetimeIndex([NOON]).tz_localize("Asia/Shanghai"),
    ],
    ids=lambda times: f"{type(times).__name__} of {getattr(times, 'dtype', type(times[0]))}",
)
def test_every_usual_kind_of_timestamp_is_read(times):
    """The published code refuses a DatetimeIndex. A zone is dropped: noon stays noon."""
    assert stamps_of(times).tolist() == [FIELDS]


def test_the_shape_of_an_array_is_kept():
    assert stamps_of(WEEK.reshape(5, 1)).shape == (5, 1, 5)
    assert stamps_of(WEEK)[:, 2].tolist() == [0, 1, 2, 3, 4]  # Monday is 0


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([NOON, None], "number 2 is missing"),
        (np.array(["NaT"], dtype="datetime64[ns]"), "number 1 is missing"),
        (["next Tuesday week"], "cannot be read"),
        (pd.RangeIndex(3), "expected timestamps, got numbers such as 0"),
        ([20240229], "expected timestamps, got numbers such as 20240229"),
        (np.array([1.5], dtype=object), "expected timestamps, got numbers"),
    ],
)
def test_what_is_no_timestamp_is_refused(times, message):
    """Pandas reads 20240229 as 20 milliseconds past 1970: a wrong month without a word."""
    with pytest.raises(CalendarError, match=message):
        stamps_of(times)


def days(*texts):
    return np.array(texts, dtype="datetime64[ns]")


def test_the_next_bars_are_the_calendars():
    found = next_times(WEEK, days("2024-01-01", "2024-01-02T15:00"), 2)
    assert found.tolist() == [days(*row).tolist() for row in (WEEK[1:3], WEEK[2:4])]


def test_a_calendar_that_ends_says_how_far_it_reaches():
    with pytest.raises(CalendarError, match=r"ends at 2024-01-05.*2 bars short of the 3.*01-04"):
        next_times(WEEK, days("2024-01-01", "2024-01-04"), 3)


def test_weekdays_go_on_where_the_calendar_ends():
    found = next_times(WEEK, days("2024-01-04"), 3, "weekdays")
    assert found[0].tolist() == days("2024-01-05", "2024-01-08", "2024-01-09").tolist()


def test_weekdays_come_after_a_bar_beyond_the_calendar():
    """They once began at the calendar's end: bars to come that lay before the bar seen."""
    found = next_times(WEEK, days("2024-01-04", "2024-01-20"), 2, "weekdays")
    assert found[0].tolist() == days("2024-01-05", "2024-01-08").tolist()
    assert found[1].tolist() == days("2024-01-22", "2024-01-23").tolist()


def test_weekdays_keep_the_time_of_day():
    closes = WEEK + np.timedelta64(15, "h")
    found = next_times(closes, closes[-1:], 1, "weekdays")
    assert found[0].tolist() == days("2024-01-08T15:00").tolist()


def test_weekdays_cannot_extend_a_calendar_of_minutes():
    """Also when its last day has one bar only."""
    minutes = days("2024-01-04T10:00", "2024-01-04T11:00", "2024-01-05T10:00")
    with pytest.raises(CalendarError, match="several bars a day"):
        next_times(minutes, minutes[-1:], 1, "weekdays")
    with pytest.raises(CalendarError, match="empty"):
        next_times(WEEK[:0], WEEK[:1], 1, "weekdays")
