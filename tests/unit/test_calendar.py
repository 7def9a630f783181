"""Time fields of bars, and the bars to come."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.data.calendar.stamps import future_times, next_times, stamps_of
from kronos_qlib.errors import CalendarError, ConfigError

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


# --- bars to come, from an exchange or a frequency ---


def bars(day, first, last, step="5min"):
    """The times of one day's bars from first to last."""
    return pd.date_range(f"{day} {first}", f"{day} {last}", freq=step)


def texts(times):
    assert times.dtype == np.dtype("datetime64[ns]")
    return pd.DatetimeIndex(times).strftime("%m-%d %H:%M").tolist()


SHANGHAI_WEEK = pd.DatetimeIndex(["2024-02-05", "2024-02-06", "2024-02-07", "2024-02-08"])
"""The last sessions before Spring Festival 2024; trade went on on the 19th."""


def test_daily_bars_go_on_after_spring_festival():
    found = future_times(SHANGHAI_WEEK, 3, exchange="XSHG")
    assert texts(found) == ["02-19 00:00", "02-20 00:00", "02-21 00:00"]


def test_daily_bars_keep_the_last_ones_time_of_day():
    """Also after a half day, whose bar closed early."""
    found = future_times(SHANGHAI_WEEK + pd.Timedelta("15h"), 2, exchange="XSHG")
    assert texts(found) == ["02-19 15:00", "02-20 15:00"]
    past = ["2023-11-20 16:00", "2023-11-21 16:00", "2023-11-24 13:00", "2023-11-27 16:00"]
    assert texts(future_times(past, 1, exchange="XNYS")) == ["11-28 16:00"]


def test_weekends_and_suspended_days_do_not_confuse_the_step():
    past = ["2024-01-05", "2024-01-08"]  # a Friday, a Monday
    assert texts(future_times(past, 1, exchange="XSHG")) == ["01-09 00:00"]
    past = ["2024-01-04", "2024-01-05", "2024-01-08", "2024-01-09", "2024-01-29"]
    assert texts(future_times(past, 1, exchange="XSHG")) == ["01-30 00:00"]


def test_minute_bars_labelled_by_their_close_keep_the_lunch_break():
    past = bars("2024-02-08", "13:05", "15:00")
    found = texts(future_times(past, 49, exchange="XSHG"))
    assert found[0] == "02-19 09:35"
    assert found[22:26] == ["02-19 11:25", "02-19 11:30", "02-19 13:05", "02-19 13:10"]
    assert found[47:] == ["02-19 15:00", "02-20 09:35"]


def test_minute_bars_labelled_by_their_open_keep_the_lunch_break():
    past = bars("2024-02-08", "13:00", "14:55")
    found = texts(future_times(past, 49, exchange="XSHG"))
    assert found[0] == "02-19 09:30"
    assert found[22:26] == ["02-19 11:20", "02-19 11:25", "02-19 13:00", "02-19 13:05"]
    assert found[47:] == ["02-19 14:55", "02-20 09:30"]


def test_two_bars_a_session_are_understood():
    """Their step, 3.5 hours over lunch, is longer than either half of the session."""
    past = ["2024-02-07 11:30", "2024-02-07 15:00", "2024-02-08 11:30"]
    found = texts(future_times(past, 3, exchange="XSHG"))
    assert found == ["02-08 15:00", "02-19 11:30", "02-19 15:00"]


@pytest.mark.parametrize(
    ("step", "first", "last", "half_day"),
    [
        ("30min", "09:30", "15:30", "09:30 10:00 10:30 11:00 11:30 12:00 12:30"),
        ("30min", "10:00", "16:00", "10:00 10:30 11:00 11:30 12:00 12:30 13:00"),
        ("60min", "09:30", "15:30", "09:30 10:30 11:30 12:30"),
    ],
)
def test_a_half_day_ends_early(step, first, last, half_day):
    """Thanksgiving 2023: Thursday closed, on Friday the close was at 13:00."""
    expected = [f"11-24 {time}" for time in half_day.split()]
    past = bars("2023-11-22", first, last, step)
    found = texts(future_times(past, len(expected) + 1, exchange="XNYS"))
    assert found == [*expected, f"11-27 {first}"]


def test_a_bar_cut_short_by_the_close_is_labelled_by_the_close():
    hours = bars("2023-11-22", "10:30", "15:30", "60min")
    past = hours.append(pd.DatetimeIndex(["2023-11-22 16:00"]))
    found = texts(future_times(past, 5, exchange="XNYS"))
    assert found == [
        *(f"11-24 {time}" for time in ("10:30", "11:30", "12:30", "13:00")),
        "11-27 10:30",
    ]


def test_a_time_zone_is_dropped_from_the_past():
    past = bars("2023-11-22", "09:30", "15:30", "30min").tz_localize("America/New_York")
    assert texts(future_times(past, 1, exchange="XNYS")) == ["11-24 09:30"]


def test_labels_need_not_be_known_where_they_make_no_difference():
    past = bars("2024-02-08", "10:00", "10:30")
    assert texts(future_times(past, 2, exchange="XSHG")) == ["02-08 10:35", "02-08 10:40"]
    with pytest.raises(CalendarError, match=r"no bar at the beginning or the end.* XSHG"):
        future_times(past, 30, exchange="XSHG")


@pytest.mark.parametrize("step", ["5min", "D"])
def test_a_market_that_never_closes_has_every_bar(step):
    past = pd.date_range("2024-03-10", periods=70, freq=step)
    ahead = future_times(past, 31, exchange="24/7")
    expected = pd.date_range(past[-1], periods=32, freq=step)[1:]
    assert texts(ahead) == texts(expected.to_numpy().astype("datetime64[ns]"))


def test_bars_far_ahead_are_found():
    """500 sessions of New York, counted by hand over its 20 holidays in two years."""
    assert future_times(SHANGHAI_WEEK, 500, exchange="XNYS")[-1] == np.datetime64("2026-02-06")


@pytest.mark.parametrize(
    ("past", "exchange", "message"),
    [
        (bars("2024-02-08", "09:30", "11:30"), "XSHG", "02-08 09:30 .*open.*02-08 11:30 .*close"),
        (
            bars("2024-02-08", "09:31", "11:26"),
            "XSHG",
            "02-08 11:26 is no bar of XSHG in steps of 5",
        ),
        (bars("2024-02-08", "11:05", "11:45"), "XSHG", r"02-08 11:45 is no bar of XSHG.*\(3 such"),
        (bars("2023-11-22", "10:00", "16:00", "60min"), "XNYS", "11-22 10:00 is no bar of XNYS"),
        (pd.date_range("2024-01-05", "2024-01-09"), "XSHG", "01-07 is on no session of XSHG"),
        (
            pd.date_range("2024-01-05", periods=9, freq="W-FRI"),
            "XSHG",
            "5 sessions.*leave the exchange out",
        ),
        (
            pd.date_range("2023-01-31", periods=9, freq="BME"),
            "XSHG",
            "sessions.*leave the exchange out",
        ),
        (days("2024-01-05T15:00", "2024-01-08T09:35"), "XSHG", "neither a bar within a session"),
        (SHANGHAI_WEEK[:1], "XSHG", "needs 2 bars, got 1"),
        (days("1985-01-02", "1985-01-03"), "XSHG", "knows XSHG from 1990-12-03 to"),
        (days("2150-01-02", "2150-01-03"), "XHKG", "to 2049-12-31; the last.*freq='B'"),
    ],
)
def test_a_past_that_does_not_fit_the_exchange_is_refused(past, exchange, message):
    with pytest.raises(CalendarError, match=message):
        future_times(past, 30, exchange=exchange)


def test_a_calendar_that_ends_says_where_and_what_to_do():
    past = days("2049-12-29", "2049-12-30")
    with pytest.raises(
        CalendarError, match=r"XHKG .*ends at 2049-12-31, 2 short of the 3.*freq='B'"
    ):
        future_times(past, 3, exchange="XHKG")


@pytest.mark.parametrize(
    ("exchange", "message"),
    [("XSGH", "did you mean XSHG"), ("xnys", "did you mean XNYS"), ("?", "such as XSHG")],
)
def test_an_unknown_exchange_is_told_the_near_ones(exchange, message):
    with pytest.raises(ConfigError, match=message):
        future_times(SHANGHAI_WEEK, 1, exchange=exchange)


def test_a_calendar_the_library_cannot_build_says_so(monkeypatch):
    """exchange-calendars 4.13 fails on Easter in Athens with pandas 3."""
    import exchange_calendars

    def fail(code):
        raise NotImplementedError("implemented by subclasses")

    monkeypatch.setattr(exchange_calendars, "get_calendar", fail)
    with pytest.raises(CalendarError, match=r"fails to build the calendar of XLUX \(implemented"):
        future_times(SHANGHAI_WEEK, 1, exchange="XLUX")


@pytest.mark.parametrize(
    ("last", "freq", "expected"),
    [
        ("2024-01-05", "B", ["01-08 00:00", "01-09 00:00"]),  # a Friday
        ("2024-01-05 15:00", "B", ["01-08 15:00", "01-09 15:00"]),
        ("2024-01-05", "D", ["01-06 00:00", "01-07 00:00"]),
        ("2024-01-05 15:00", "5min", ["01-05 15:05", "01-05 15:10"]),
        ("2024-01-07", "W", ["01-14 00:00", "01-21 00:00"]),
        ("2024-01-05", "W-FRI", ["01-12 00:00", "01-19 00:00"]),
        ("2024-03-29", "BME", ["04-30 00:00", "05-31 00:00"]),
    ],
)
def test_a_frequency_goes_on_from_the_last_bar(last, freq, expected):
    assert texts(future_times([last], 2, freq=freq)) == expected


@pytest.mark.parametrize(
    ("last", "freq", "message"),
    [
        ("2024-01-05", "W", r"Friday 2024-01-05 00:00, is not on freq 'W' \(W-SUN\).*'W-FRI'"),
        ("2024-03-29", "ME", "is not on freq 'ME'.*'BME'"),
        ("2024-01-06", "B", "Saturday 2024-01-06 00:00, is not on freq 'B'"),
        ("2261-12-31", "YE", "3 bars of freq 'YE' lead beyond the year 2262"),
        ("2262-04-09", "D", "3 bars of freq 'D' lead beyond the year 2262"),
    ],
)
def test_a_last_bar_off_the_frequency_is_refused(last, freq, message):
    """From a Friday, "W" would lead to the Sunday two days later."""
    with pytest.raises(CalendarError, match=message):
        future_times([last], 3, freq=freq)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"exchange": "XSHG", "freq": "B"}, "need only one of"),
        ({"freq": "fortnight"}, "knows no frequency 'fortnight'"),
        ({"freq": "-1D"}, "forward"),
        ({"freq": "0min"}, "forward"),
        ({"freq": 5}, "knows no frequency 5"),
    ],
)
def test_one_known_rule_at_most_is_given(rules, message):
    with pytest.raises(ConfigError, match=message):
        future_times(SHANGHAI_WEEK, 1, **rules)


def test_the_past_must_be_a_past():
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        future_times(SHANGHAI_WEEK, 0, freq="B")
    with pytest.raises(CalendarError, match=r"shape \(0,\)"):
        future_times(SHANGHAI_WEEK[:0], 1, freq="B")
    with pytest.raises(
        CalendarError, match=r"does not increase: 2024-02-08.* followed by 2024-02-07"
    ):
        future_times(SHANGHAI_WEEK[::-1], 1, freq="B")


def test_the_times_are_the_callers_own():
    """They are cut from a cached calendar; writing to them must not reach it."""
    first = future_times(SHANGHAI_WEEK, 2, exchange="XSHG")
    first[0] = np.datetime64("1999-01-01")
    assert texts(future_times(SHANGHAI_WEEK, 2, exchange="XSHG"))[0] == "02-19 00:00"


def minutes_of(days: list[str], step: str = "5min") -> np.ndarray:
    """A-share bars of these days, labelled by their close."""
    sessions = [("09:30", "11:30"), ("13:00", "15:00")]
    parts = [
        pd.date_range(f"{day} {opened}", f"{day} {closed}", freq=step)[1:]
        for day in days
        for opened, closed in sessions
    ]
    return np.concatenate([part.to_numpy() for part in parts]).astype("datetime64[ns]")


def test_an_exchange_goes_on_where_the_calendar_ends():
    """The week of China's national day is closed: weekdays would forecast bars that never come."""
    calendar = pd.to_datetime(["2024-09-26", "2024-09-27", "2024-09-30"]).to_numpy()
    ahead = next_times(calendar, calendar[[1, 2]], 3, "XSHG")
    expected = [
        ["2024-09-30", "2024-10-08", "2024-10-09"],
        ["2024-10-08", "2024-10-09", "2024-10-10"],
    ]
    assert (ahead == np.array(expected, dtype="datetime64[ns]")).all()
    assert (next_times(calendar, calendar[[1, 2]], 3, "weekdays")[1] != ahead[1]).any()


def test_minutes_go_on_over_lunch_and_holidays():
    calendar = minutes_of(["2024-09-27", "2024-09-30"])[:-26]  # the last morning's 11:20
    assert calendar[-1] == np.datetime64("2024-09-30T11:20")
    ahead = next_times(calendar, calendar[-1:], 28, "XSHG")[0]
    assert [str(time)[:16] for time in ahead[[0, 1, 2, 25, 26]]] == [
        "2024-09-30T11:25",
        "2024-09-30T11:30",
        "2024-09-30T13:05",
        "2024-09-30T15:00",
        "2024-10-08T09:35",
    ]


def test_half_days_end_early():
    """New York closes at 13:00 on the day after Thanksgiving."""
    calendar = pd.date_range("2024-11-27 09:35", "2024-11-27 16:00", freq="5min").to_numpy()
    ahead = next_times(calendar, calendar[-1:], 80, "XNYS")[0]
    days = ahead.astype("datetime64[D]")
    friday = ahead[days == np.datetime64("2024-11-29")]
    assert len(friday) == 42
    assert friday[-1] == np.datetime64("2024-11-29T13:00")
    assert not (days == np.datetime64("2024-11-28")).any()


def test_moments_far_past_the_calendars_end_have_a_future_too():
    calendar = pd.bdate_range("2024-06-03", "2024-06-07").to_numpy().astype("datetime64[ns]")
    after = np.array(["2024-06-07", "2024-07-01"], dtype="datetime64[ns]")
    ahead = next_times(calendar, after, 2, "XSHG")
    assert str(ahead[1, 0])[:10] == "2024-07-02"
    assert str(ahead[0, 1])[:10] == "2024-06-12"  # the 10th was a holiday


def test_minutes_cannot_go_on_by_weekdays():
    calendar = minutes_of(["2024-09-27"])
    with pytest.raises(CalendarError, match=r"several bars a day.*an exchange's code"):
        next_times(calendar, calendar[-1:], 1, "weekdays")


@pytest.mark.parametrize("beyond", ["weekday", "XSHGG", "", 3, None])
def test_a_misspelt_way_beyond_the_calendar_is_refused_at_once(beyond):
    calendar = pd.bdate_range("2024-06-03", "2024-06-07").to_numpy()
    with pytest.raises(ConfigError, match="must be 'error', 'pattern', 'weekdays' or"):
        next_times(calendar, calendar[:1], 1, beyond)
