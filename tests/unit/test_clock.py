"""How bars of a past follow one another, go on, and are held against what is asked of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.data.calendar.clock_reading import read_clock
from kronos_qlib.data.calendar.stamps import bars_ahead, doubt_of_given, future_times, next_times
from kronos_qlib.data.calendar.time_text import duration
from kronos_qlib.errors import CalendarError, ConfigError

DATA = Path(__file__).parents[3] / "shared" / "data"
CHINA = (("09:30", "11:30"), ("13:00", "15:00"))
NEW_YORK = (("09:30", "16:00"),)


def sessions(days, step="5min", hours=CHINA):
    """Bars of these days, labelled by their close."""
    parts = [
        pd.date_range(f"{day:%Y-%m-%d} {opened}", f"{day:%Y-%m-%d} {closed}", freq=step)[1:]
        for day in pd.DatetimeIndex(days)
        for opened, closed in hours
    ]
    return pd.DatetimeIndex(np.concatenate(parts))


def weekdays(first, count):
    return pd.bdate_range(first, periods=count)


def on(days, periods=60, first="2024-01-01"):
    """Dates of these weekdays, Monday 0."""
    dates = pd.date_range(first, periods=periods)
    return dates[dates.day_of_week.isin(days)]


def foreign_exchange(weeks):
    """Hours from Sunday 17:00 to Friday 16:00."""
    hours = pd.date_range("2024-01-07 17:00", periods=weeks * 168, freq="h")
    day, hour = hours.day_of_week, hours.hour
    is_closed = (day == 5) | ((day == 4) & (hour > 16)) | ((day == 6) & (hour < 17))
    return hours[~is_closed]


def texts(times):
    return pd.DatetimeIndex(times).strftime("%a %m-%d %H:%M").tolist()


def go_on(past, count=3):
    return texts(bars_ahead(past, count).times)


@pytest.mark.parametrize(
    ("past", "words", "freq", "ahead"),
    [
        (
            sessions(weekdays("2024-01-02", 9)),
            "every 5 minutes, Monday to Friday, 09:35 to 11:30, 13:05 to 15:00",
            "5min",
            ["Mon 01-15 09:35", "Mon 01-15 09:40"],
        ),
        (
            sessions(weekdays("2024-01-02", 9))[:-24],
            "every 5 minutes, Monday to Friday, 09:35 to 11:30, 13:05 to 15:00",
            "5min",
            ["Fri 01-12 13:05", "Fri 01-12 13:10"],
        ),
        (
            pd.date_range("2024-01-01", periods=300, freq="h"),
            "every hour, every day of the week, around the clock",
            "h",
            ["Sat 01-13 12:00", "Sat 01-13 13:00"],
        ),
        (
            pd.DatetimeIndex(["2024-01-04 15:00", "2024-01-05 11:30", "2024-01-05 15:00"]).append(
                sessions(weekdays("2024-01-08", 5), "2h")
            ),
            "every 3.5 hours, Monday to Friday, 11:30 to 15:00",
            "210min",
            ["Mon 01-15 11:30", "Mon 01-15 15:00"],
        ),
        (
            weekdays("2024-01-02", 60) + pd.Timedelta("15h"),
            "daily, Monday to Friday",
            "B",
            ["Tue 03-26 15:00", "Wed 03-27 15:00"],
        ),
        (
            pd.date_range("2024-01-01", periods=30),
            "daily, every day of the week",
            "D",
            ["Wed 01-31 00:00", "Thu 02-01 00:00"],
        ),
        (
            on([6, 0, 1, 2, 3]),
            "daily, Sunday to Thursday",
            None,
            ["Sun 03-03 00:00", "Mon 03-04 00:00"],
        ),
        (
            on([0, 2, 4]),
            "on Mondays, Wednesdays and Fridays",
            None,
            ["Fri 03-01 00:00", "Mon 03-04 00:00"],
        ),
        (on([4]), "weekly, on Fridays", "W-FRI", ["Fri 03-01 00:00", "Fri 03-08 00:00"]),
        (
            pd.date_range("2024-01-05", periods=8, freq="2W-FRI"),
            "every 2 weeks, on Fridays",
            "2W-FRI",
            ["Fri 04-26 00:00", "Fri 05-10 00:00"],
        ),
        (
            pd.date_range("2024-01-01", periods=20, freq="2D"),
            "every 2 days",
            "2D",
            ["Sat 02-10 00:00", "Mon 02-12 00:00"],
        ),
        (
            pd.date_range("2023-01-31", periods=12, freq="ME"),
            "monthly, on the last day",
            "ME",
            ["Wed 01-31 00:00", "Thu 02-29 00:00"],
        ),
        (
            pd.date_range("2023-01-31", periods=12, freq="BME"),
            "monthly, on the last weekday",
            "BME",
            ["Wed 01-31 00:00", "Thu 02-29 00:00"],
        ),
        (
            pd.date_range("2020-01-01", periods=12, freq="QS"),
            "every 3 months, on the first day",
            "3MS",
            ["Sun 01-01 00:00", "Sat 04-01 00:00"],
        ),
        (
            pd.date_range("2023-01-01", periods=9, freq="MS") + pd.Timedelta(days=14),
            "monthly, on day 15",
            None,
            ["Sun 10-15 00:00", "Wed 11-15 00:00"],
        ),
        (
            foreign_exchange(4),
            "every hour, Sunday to Friday, around the clock",
            "h",
            ["Sun 02-04 17:00", "Sun 02-04 18:00"],
        ),
        (
            pd.date_range("2024-01-01", periods=60, freq="7h"),
            "every 7 hours, every day of the week",
            "7h",
            ["Thu 01-18 12:00", "Thu 01-18 19:00"],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bars_go_on_as_they_came(past, words, freq, ahead):
    """Five minutes after an A-share's 15:00 no bar ever came; crypto has Saturdays."""
    clock = read_clock(past.to_numpy("datetime64[ns]"))
    assert (clock.words, clock.freq) == (words, freq)
    assert go_on(past, 2) == ahead
    assert (future_times(past, 2) == bars_ahead(past, 40).times[:2]).all()


def test_holidays_half_days_and_missing_bars_do_not_change_the_pattern():
    days = weekdays("2024-09-02", 40).drop(pd.to_datetime(["2024-09-16", "2024-09-17"]))
    days = days.drop(pd.date_range("2024-10-01", "2024-10-07", freq="B"))
    assert go_on(days) == ["Mon 10-28 00:00", "Tue 10-29 00:00", "Wed 10-30 00:00"]
    bars = sessions(days)
    rng = np.random.default_rng(0)
    thinned = bars[rng.random(len(bars)) < 0.9]
    wanted = go_on(bars, 50)
    assert go_on(thinned.union(bars[-1:]), 50) == wanted
    half_day = bars[~((bars.normalize() == "2024-10-22") & (bars.hour > 11))]
    assert go_on(half_day, 50) == wanted
    odd = bars.append(pd.DatetimeIndex(["2024-10-19 10:03", "2024-10-21 15:04"])).sort_values()
    assert go_on(odd, 50) == wanted  # a Saturday's test run, an auction's late print


def test_a_week_that_a_holiday_moves_ends_on_its_day_all_the_same():
    """Good Friday: the week's bar is Thursday's, and the next is not Thursday's."""
    fridays = on([4], 89)  # to 29 March 2024
    moved = fridays[:-1].append(pd.DatetimeIndex(["2024-03-28"]))
    assert go_on(moved, 2) == ["Fri 04-05 00:00", "Fri 04-12 00:00"]
    unfinished = fridays.append(pd.DatetimeIndex(["2024-04-02"]))
    assert go_on(unfinished, 1) == ["Fri 04-12 00:00"]


def test_in_utc_the_session_moves_with_the_clocks():
    """New York's summer began on 10 March 2024: an hour earlier, by UTC."""
    local = sessions(weekdays("2024-02-20", 18), "30min", NEW_YORK)
    past = local.tz_localize("America/New_York").tz_convert("UTC").tz_localize(None)
    assert go_on(past, 14)[::13] == ["Fri 03-15 14:00", "Mon 03-18 14:00"]


def test_the_newest_weeks_say_which_days_are_open():
    """Tel Aviv traded from Sunday to Thursday until 2025, and from Monday to Friday since."""
    past = on([6, 0, 1, 2, 3], 91, "2025-10-05").append(on([0, 1, 2, 3, 4], 35, "2026-01-05"))
    assert go_on(past) == ["Mon 02-09 00:00", "Tue 02-10 00:00", "Wed 02-11 00:00"]


@pytest.mark.parametrize(
    ("past", "message"),
    [
        (weekdays("2024-01-01", 1), "a single bar"),
        (weekdays("2024-01-01", 5), "too short to show whether bars come on Saturdays"),
        (weekdays("2024-01-02", 3), "too short to show whether bars come on Fridays"),
        (sessions(weekdays("2024-01-02", 1)), "reaches over no whole day"),
        (foreign_exchange(1), "whether bars come on Fridays at 17:00"),
        (pd.date_range("2024-01-04", periods=40, freq="h"), "bars come on Fridays at 16:00"),
        (pd.DatetimeIndex(["2024-01-05", "2024-01-19"]), "show no step"),
        (pd.DatetimeIndex(["2024-01-04 15:00", "2024-01-05 09:35"]), "show no step"),
        (
            pd.to_datetime(["2024-01-02", "2024-01-05", "2024-01-20", "2024-02-09", "2024-02-11"]),
            "irregular steps",
        ),
        (
            pd.to_datetime(["2024-12-31", "2025-01-31", "2025-02-28", "2025-03-31"]),
            "does not show whether",
        ),
        (
            pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(40) ** 2, unit="min"),
            "irregular steps",
        ),
    ],
)
def test_a_past_too_short_or_irregular_says_what_to_give(past, message):
    with pytest.raises(CalendarError, match=rf"(?s){message}.*give the exchange, such as 'XSHG'"):
        future_times(past, 3)


def test_what_is_assumed_is_said(caplog):
    """Three days of A-shares show no Friday; a session market has one, as a rule."""
    past = sessions(weekdays("2024-01-02", 3))
    assert texts(future_times(past, 1)) == ["Fri 01-05 09:35"]
    assert "knows no holidays" in caplog.text
    assert "reaches over no Friday: taken as open" in caplog.text


def test_a_market_that_never_closes_has_no_holidays_to_doubt():
    hours = pd.date_range("2024-01-01", periods=300, freq="h")
    assert bars_ahead(hours, 3).doubts == ()
    assert bars_ahead(pd.date_range("2024-01-01", periods=60, freq="D"), 3).doubts == ()
    (doubt,) = bars_ahead(pd.date_range("2024-01-05", periods=60, freq="W-SAT"), 3).doubts
    assert "knows no holidays" in doubt


# --- a frequency that was given ---

FRIDAYS, DAILY, ALWAYS = on([4], 200), weekdays("2024-01-02", 60), on(range(7))
MINUTES = sessions(weekdays("2024-01-02", 3))
HOURS = pd.date_range("2024-01-01", periods=100, freq="h")


@pytest.mark.parametrize(
    ("past", "freq", "usual", "fitting"),
    [
        (FRIDAYS, "B", "weekly, on Fridays", "'W-FRI'"),
        (FRIDAYS, "D", "weekly, on Fridays", "'W-FRI'"),
        (FRIDAYS, "W-THU", "weekly, on Fridays", "'W-FRI'"),
        (FRIDAYS, "ME", "weekly, on Fridays", "'W-FRI'"),
        (FRIDAYS, "5min", "weekly, on Fridays", "'W-FRI'"),
        (DAILY, "W-MON", "daily, Monday to Friday", "'B'"),
        (DAILY, "D", "daily, Monday to Friday", "'B'"),
        (DAILY, "24h", "daily, Monday to Friday", "'B'"),
        (DAILY, "2B", "daily, Monday to Friday", "'B'"),
        (DAILY, "5min", "daily, Monday to Friday", "'B'"),
        (DAILY, "ME", "daily, Monday to Friday", "'B'"),
        (ALWAYS, "B", "every day of the week", "'D', or exchange '24/7'"),
        (on([6, 0, 1, 2, 3]), "B", "Sunday to Thursday", "leave freq out"),
        (on([6, 0, 1, 2, 3]), "D", "Sunday to Thursday", "leave freq out"),
        (on([0, 2, 4]), "B", "on Mondays, Wednesdays and Fridays", "leave freq out"),
        (MINUTES, "1min", "every 5 minutes", "'5min'"),
        (MINUTES, "h", "every 5 minutes", "'5min'"),
        (MINUTES, "B", "every 5 minutes", "'5min'"),
        (HOURS, "30min", "every hour", "'h'"),
        (HOURS, "D", "every hour", "'h'"),
        (MINUTES[:2], "h", "every 5 minutes", "'5min'"),
        (sessions(weekdays("2024-01-02", 9), "60min", NEW_YORK), "30min", "every hour", "'h'"),
        (pd.date_range("2023-01-31", periods=12, freq="ME"), "B", "monthly", "'ME'"),
        (pd.date_range("2023-01-31", periods=12, freq="ME"), "QE", "monthly", "'ME'"),
    ],
)
def test_a_frequency_that_is_not_the_pasts_step_is_refused(past, freq, usual, fitting):
    """A return of five weekly bars was printed as that of three days, without a word."""
    wanted = rf"freq '{freq}' does not fit the past, whose bars come .*{usual}.*{fitting}"
    with pytest.raises(CalendarError, match=wanted):
        future_times(past, 3, freq=freq)


@pytest.mark.parametrize(
    ("past", "freq"),
    [
        *((HOURS, freq) for freq in ("h", "1h", "60min", "3600s")),
        *((ALWAYS, freq) for freq in ("D", "1D", "24h", "1440min")),
        *((FRIDAYS, freq) for freq in ("W-FRI", "7D", "168h")),
        (DAILY, "B"),
        (DAILY, "C"),
        (DAILY[:3], "D"),  # three days show no weekend
        (DAILY[:1], "5min"),
        (MINUTES, "5min"),
        (MINUTES[::3][:20], "15min"),
        (pd.date_range("2023-01-31", periods=12, freq="ME"), "ME"),
        (pd.date_range("2023-03-31", periods=9, freq="QE"), "QE"),
        (pd.date_range("2023-03-31", periods=9, freq="QE"), "3ME"),
        (FRIDAYS.delete(slice(3, 8)), "W-FRI"),
        (DAILY.delete(slice(20, 45)), "B"),
        (DAILY.insert(30, pd.Timestamp("2024-02-10")).sort_values(), "B"),
    ],
)
def test_a_frequency_that_fits_is_taken(past, freq):
    """Equal steps are equal, whatever they are called; gaps and single odd bars do not matter."""
    expected = pd.date_range(past[-1], periods=4, freq=freq)[1:]
    assert (future_times(past, 3, freq=freq) == expected.to_numpy("datetime64[ns]")).all()


def test_thin_minutes_keep_their_own_step():
    """Of a share that trades every other minute, two minutes may be the most common step."""
    bars = sessions(weekdays("2024-01-02", 6), "1min")
    thin = bars[np.random.default_rng(1).random(len(bars)) < 0.5]
    assert len(future_times(thin, 3, freq="1min")) == 3
    with pytest.raises(CalendarError, match="every minute"):
        future_times(thin, 3, freq="5min")


def test_minutes_beyond_the_close_are_literal_and_doubted():
    """Documented: a frequency knows no closing time. No day of the past has a bar at 15:05."""
    ahead = bars_ahead(MINUTES, 2, freq="5min")
    assert texts(ahead.times) == ["Thu 01-04 15:05", "Thu 01-04 15:10"]
    (doubt,) = ahead.doubts
    assert "2 of the 2 bars to come by freq '5min', the first Thursday 2024-01-04 15:05" in doubt
    assert "leave freq out, or give the exchange" in doubt
    assert not bars_ahead(MINUTES[:-10], 2, freq="5min").doubts
    assert not bars_ahead(HOURS, 2, freq="h").doubts


@pytest.mark.parametrize(
    ("past", "ahead", "given"),
    [
        (FRIDAYS, pd.date_range("2024-07-13", periods=5), "1 day apart.*weekly, on Fridays"),
        (DAILY, pd.date_range("2024-03-26 00:05", periods=5, freq="5min"), "5 minutes apart"),
        (MINUTES, pd.date_range("2024-01-05 10:00", periods=5, freq="h"), "1 hour apart"),
        (DAILY, pd.date_range("2024-03-29", periods=4, freq="W-FRI"), "7 days apart"),
    ],
)
def test_given_bars_to_come_of_another_step_are_doubted(past, ahead, given):
    with_step = doubt_of_given(past.to_numpy("datetime64[ns]"), ahead.to_numpy("datetime64[ns]"))
    assert with_step is not None
    assert pd.Series([with_step]).str.contains(given).all()


@pytest.mark.parametrize(
    ("past", "ahead"),
    [
        (MINUTES[:-24], MINUTES[-24:]),
        (MINUTES, sessions(["2024-01-05"])[:1]),
        (MINUTES[:-26], MINUTES[-26:-24]),
        (sessions(["2024-01-02"]).append(sessions(["2024-01-03"])[:20]), MINUTES[70:74]),
        (DAILY, pd.DatetimeIndex(["2024-04-08", "2024-04-09"])),
        (DAILY, pd.date_range("2024-03-26", periods=9)),  # weekends: another calendar, one step
        (FRIDAYS, pd.DatetimeIndex(["2024-08-01", "2024-08-09"])),
        (DAILY[:1], pd.DatetimeIndex(["2025-01-01"])),
    ],
)
def test_given_bars_to_come_of_the_same_step_are_not(past, ahead):
    found = doubt_of_given(past.to_numpy("datetime64[ns]"), ahead.to_numpy("datetime64[ns]"))
    assert found is None


# --- where a calendar ends ---


def times_of(index):
    return index.to_numpy("datetime64[ns]")


def test_a_calendar_goes_on_by_its_pattern():
    calendar = times_of(sessions(weekdays("2024-01-02", 9)))
    after = calendar[[-30, -1]]
    found = next_times(calendar, after, 40, "pattern")
    assert (found[0][:29] == calendar[-29:]).all()
    assert texts(found[0][29:31]) == ["Mon 01-15 09:35", "Mon 01-15 09:40"]
    assert (found[1][:11] == found[0][29:]).all()
    late = next_times(calendar, times_of(pd.DatetimeIndex(["2024-03-01 10:00"])), 1, "pattern")
    assert texts(late[0]) == ["Fri 03-01 10:05"]
    with pytest.raises(CalendarError, match=r"beyond_calendar 'pattern'.*no whole day"):
        next_times(calendar[:20], calendar[19:20], 1, "pattern")
    with pytest.raises(CalendarError, match="beyond the year 2262"):
        next_times(times_of(ALWAYS), times_of(ALWAYS[-1:]), 100_000, "pattern")


@pytest.mark.parametrize(
    ("calendar", "message"),
    [
        (FRIDAYS, "weekly, on Fridays: weekdays are not.*'pattern'"),
        (ALWAYS, "every day of the week.*'pattern' is; '24/7'"),
        (on([6, 0, 1, 2, 3]), "Sunday to Thursday.*'pattern'"),
        (MINUTES, "several bars a day.*'pattern'"),
        (pd.date_range("2023-01-31", periods=12, freq="ME"), "monthly.*'pattern'"),
    ],
)
def test_weekdays_are_refused_where_the_calendar_is_no_weekdays(calendar, message):
    """A market of seven days went on from Friday to Monday, a weekly series from day to day."""
    times = times_of(calendar)
    with pytest.raises(CalendarError, match=message):
        next_times(times, times[-1:], 3, "weekdays")
    assert next_times(times, times[-1:], 3, "pattern").shape == (1, 3)


def test_steps_are_named_in_round_units():
    steps = (30, 60, 300, 3600, 12_600, 5700, 86_400, 604_800)
    assert [duration(np.timedelta64(step, "s")) for step in steps] == [
        *("30 seconds", "1 minute", "5 minutes", "1 hour", "3.5 hours", "95 minutes"),
        *("1 day", "7 days"),
    ]


def test_rules_are_one_at_most():
    with pytest.raises(ConfigError, match=r"only one of.*without both they go on"):
        future_times(DAILY, 2, exchange="XSHG", freq="B")


# --- real bars ---


@pytest.mark.skipif(not DATA.exists(), reason=f"{DATA} is not there")
def test_real_minutes_go_on_over_lunch():
    times = pd.read_csv(DATA / "cn_5min_one_stock.csv", parse_dates=["timestamps"])["timestamps"]
    for end in range(400, len(times) - 48, 211):
        found = bars_ahead(times[end - 400 : end], 48).times
        ahead = times[end : end + 48].to_numpy("datetime64[ns]")
        same_day = ahead.astype("datetime64[D]") == ahead[0].astype("datetime64[D]")
        assert (found[same_day] == ahead[same_day]).all()
        assert len(np.unique(found - found.astype("datetime64[D]"))) == 48


@pytest.mark.skipif(not DATA.exists(), reason=f"{DATA} is not there")
def test_real_hours_of_crypto_go_on_around_the_clock():
    """A few hours lack for all pairs, and more for some."""
    bars = pd.read_parquet(DATA / "crypto_1h_2021_2022.parquet", columns=["symbol", "date"])
    for _, own in bars.groupby("symbol"):
        past = own["date"].to_numpy("datetime64[ns]")[2000:2400]
        wanted = past[-1] + np.arange(1, 49) * np.timedelta64(1, "h")
        assert (bars_ahead(past, 48).times == wanted).all()


@pytest.mark.skipif(not DATA.exists(), reason=f"{DATA} is not there")
@pytest.mark.parametrize("lookback", [20, 90, 400])
def test_real_a_shares_go_on_by_weekdays_through_golden_weeks(lookback):
    bars = pd.read_parquet(DATA / "cn_daily_2020_2023.parquet", columns=["date"])
    days = np.unique(bars["date"].to_numpy("datetime64[ns]"))
    for end in range(lookback, len(days), 5):
        found = bars_ahead(days[end - lookback : end], 10).times
        wanted = pd.bdate_range(days[end - 1], periods=11)[1:].to_numpy("datetime64[ns]")
        assert (found == wanted).all()


@pytest.mark.parametrize("freq", ["D", "B", "30min", "W-FRI", "MS", "7h"])
def test_a_past_that_ends_with_pandas_nanoseconds_goes_on_nowhere(freq):
    """Bars up to April 2262 ended in an IndexError."""
    past = pd.date_range(end="2262-04-10 20:00", periods=400, freq=freq)
    with pytest.raises(CalendarError, match="beyond the year 2262"):
        bars_ahead(past, 3)


@pytest.mark.parametrize("beyond", ["error", "pattern", "weekdays", "XSHG"])
def test_no_moment_needs_no_bars_to_come(beyond):
    """A segment without windows ended in numpy's ValueError where a calendar goes on by pattern."""
    calendar = pd.date_range("2024-01-01", periods=20, freq="B").to_numpy()
    assert next_times(calendar, calendar[:0], 30, beyond).shape == (0, 30)


def test_series_of_the_same_times_share_their_clock(monkeypatch):
    """A thousand names of one market had their clock read a thousand times."""
    from kronos_qlib.inference import frames

    reads = []
    real = frames.bars_ahead
    monkeypatch.setattr(frames, "bars_ahead", lambda *a, **k: reads.append(1) or real(*a, **k))
    days = weekdays("2024-01-01", 20)
    prices = pd.DataFrame({name: np.linspace(10, 11, 20) for name in ("open", "high", "low")})
    bars = prices.assign(close=prices["open"], volume=np.arange(1.0, 21.0))
    pasts = [days, days, days + pd.Timedelta(days=7)]
    found = frames.series_of_frames([bars] * 3, pasts, None, 2, None, None, None)
    assert len(reads) == 2
    assert [f"{one.ahead[0]}"[:10] for one in found] == ["2024-01-29", "2024-01-29", "2024-02-05"]
