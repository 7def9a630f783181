"""The bars an exchange will have, from exchange-calendars: holidays, half days, lunch breaks."""

from __future__ import annotations

from datetime import date, datetime, timedelta, timezone
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.data.calendar.clock import DAY, LONGEST_INTRADAY
from kronos_qlib.data.calendar.clock_reading import usual
from kronos_qlib.data.calendar.time_text import Times, duration, show_span, show_time
from kronos_qlib.errors import CalendarError, ConfigError

ALWAYS = (date(1800, 1, 1), date(2199, 12, 31))
"""Stands for the bounds of a calendar whose rules have none."""
WAYS_ON = (
    "A newer exchange-calendars may reach further; without the exchange the bars go on at the "
    "weekdays and times of the past (daily ones also by freq='B') and know no holidays"
)
STRAY_SHARE = 0.1
"""More bars off an exchange's grid are no odd bars: it is another exchange, or another zone."""
WITHOUT = "leave the exchange out to go on at the weekdays and times of the past"


SAME_CALENDAR = {"XSHE": "XSHG"}
"""Exchanges that exchange-calendars leaves out (Shenzhen), and whose days and hours they keep."""


def exchange_times(past: Times, count: int, code: str) -> Times:
    """The `count` bars of an exchange after past[-1]; see `stamps.future_times`.

    Args:
        past: (L,) increasing datetime64[ns], wall-clock time of the exchange.
        code: as exchange-calendars knows it: "XSHG", "XNYS", "24/7".

    Returns:
        (count,) datetime64[ns].

    Raises:
        CalendarError: the past is not daily or shorter, or not on the exchange's grid; whether it
            labels bars at open or close is not clear and matters; or the calendar ends.
        ConfigError: no such exchange.
    """
    code = check_exchange(code)
    low, high = _bounds(code)
    first, last = past[[0, -1]].astype("datetime64[D]").tolist()
    if len(past) < 2:
        raise CalendarError(
            f"the step from bar to bar is read off the past, which needs 2 bars, got {len(past)}"
        )
    if not low <= last <= high:
        raise CalendarError(
            f"exchange-calendars knows {code} from {low} to {high}; the last bar is at "
            f"{show_time(past[-1])}. {WAYS_ON}"
        )
    step, _ = usual(np.diff(past))  # of equals the shortest: a session's, not a night's
    is_daily = step > LONGEST_INTRADAY
    if is_daily and step % DAY:
        raise CalendarError(
            f"the most common step of a past that ends with {show_time(past[-2])} and "
            f"{show_time(past[-1])} is {duration(step)}: neither a bar within a session of {code} "
            "nor whole days; give more bars, or the bars to come"
        )
    seen = past[past >= np.datetime64(low)]  # what came before is not on record
    since = max(first - timedelta(days=7), low)  # a session may begin on an earlier day
    days = 30 + int(4 * count * (step / DAY))
    while True:
        until = min(last + timedelta(days=min(days, (high - last).days)), high)
        grids = (
            [_daily_grid(seen, code, since, until)]
            if is_daily
            else _bar_grids(seen, code, step, since, until)
        )
        ahead = [grid[np.searchsorted(grid, past[-1], side="right") :][:count] for grid in grids]
        short = count - min(len(times) for times in ahead)
        if not short:
            break
        if until == high:
            raise CalendarError(
                f"the calendar of {code} in exchange-calendars ends at {high}, {short} short of "
                f"the {count} bars that follow {show_time(past[-1])}. {WAYS_ON}"
            )
        days *= 2
    if not all(np.array_equal(times, ahead[0]) for times in ahead):
        raise CalendarError(
            f"the past, {show_span(past)}, has no bar at the beginning or the "
            f"end of a session of {code}: whether bars bear the time of their open or of their "
            "close is not clear; give a past that reaches over one, or the bars to come"
        )
    return np.array(ahead[0])


def check_exchange(code: object) -> str:
    """The code under which exchange-calendars has an exchange.

    Raises:
        ConfigError: it has none of that name.
    """
    if not isinstance(code, str):
        raise ConfigError(f"exchange is a code such as 'XSHG', got {code!r}")
    known: str = SAME_CALENDAR.get(code, code)
    _kind(known)
    return known


def exchange_zone(code: str) -> str:
    """The time zone that an exchange keeps, such as "America/New_York".

    Raises:
        ConfigError: there is no exchange of that name.
    """
    kind = _kind(check_exchange(code))
    return str(kind.tz)


def session_open(day: date, code: str) -> datetime:
    """When an exchange opens on a day, in UTC.

    Raises:
        CalendarError: the day is outside what is recorded.
        ConfigError: no such exchange, or no session on that day (names the next).
    """
    code = check_exchange(code)
    low, high = _bounds(code)
    if not low <= day <= high:
        raise CalendarError(f"exchange-calendars knows {code} from {low} to {high}, asked is {day}")
    until = min(day + timedelta(days=20), high)
    sessions = _sessions(code, day, until)
    if not len(sessions) or sessions[0] != np.datetime64(day):
        following = f": the next session is {sessions[0]}" if len(sessions) else ""
        raise ConfigError(f"{code} does not open on {day}{following}")
    calendar = _calendar(code, day.year, until.year)
    found: datetime = calendar.session_open(pd.Timestamp(day)).to_pydatetime()
    return found.astimezone(timezone.utc)


def _daily_grid(past: Times, code: str, since: date, until: date) -> Times:
    """The sessions of these dates, at the last bar's time of day."""
    sessions = _sessions(code, since, until)
    days = past.astype("datetime64[D]")
    places = np.searchsorted(sessions, days)
    if len(places) > 1 and (apart := usual(np.diff(places))[0]) > 1:
        raise CalendarError(
            f"the bars up to {show_time(past[-1])} are {apart} sessions of {code} "
            f"apart, and an exchange's calendar gives bars of a day or shorter; {WITHOUT}"
        )
    closed = past[~np.isin(days, sessions)]
    if len(closed):
        raise CalendarError(
            f"{show_time(closed[-1])} is on no session of {code} ({len(closed)} such bars): is "
            "that the exchange, and its local time? '24/7' has a bar every day"
        )
    return np.asarray(sessions.astype("datetime64[ns]") + (past[-1] - days[-1]))


def _bar_grids(
    past: Times, code: str, step: np.timedelta64, since: date, until: date
) -> list[Times]:
    """The bars within the sessions of these dates, labelled as the past is; both ways if either."""
    opens, closes = (_bar_times(code, int(step), side, since, until) for side in ("left", "right"))
    at_open, at_close = np.isin(past, opens), np.isin(past, closes)
    stray = past[~at_open & ~at_close]
    if len(stray):
        named = past[-1] if stray[-1] == past[-1] else stray[0]
        advice = (
            f"drop those bars, or {WITHOUT}"
            if len(stray) <= STRAY_SHARE * len(past)
            else f"is that the exchange, and are the times its own, not UTC? Or {WITHOUT}"
        )
        raise CalendarError(
            f"{show_time(named)} is no bar of {code} in steps of {duration(step)} from the open, "
            f"labelled by open or close, in the exchange's local time ({len(stray)} such bars of "
            f"the {len(past)}); {advice}"
        )
    only_open, only_close = past[at_open & ~at_close], past[at_close & ~at_open]
    if len(only_open) and len(only_close):
        raise CalendarError(
            f"{show_time(only_open[-1])} is a bar of {code} labelled by its open, "
            f"{show_time(only_close[-1])} one labelled by its close: the past contradicts itself; "
            "drop the bars of one kind (such as an auction's), or give the bars to come"
        )
    if len(only_open):
        return [opens]
    return [closes] if len(only_close) else [opens, closes]


@lru_cache(maxsize=64)
def _bounds(code: str) -> tuple[date, date]:
    """First and last day for which the exchange's holidays are recorded."""
    kind = _kind(code)
    low, high = kind.bound_min(), kind.bound_max()
    return ALWAYS[0] if low is None else low.date(), ALWAYS[1] if high is None else high.date()


@lru_cache(maxsize=64)
def _kind(code: str) -> Any:
    """The class of an exchange's calendars."""
    import exchange_calendars  # takes a second, which only those who ask for it should wait

    try:
        return type(exchange_calendars.get_calendar(code))
    except exchange_calendars.errors.InvalidCalendarName:
        known = exchange_calendars.get_calendar_names(include_aliases=True)
        near = get_close_matches(str(code).upper(), known, n=3)
        hint = (
            f"did you mean {' or '.join(near)}?" if near else "give one such as XSHG, XNYS or 24/7"
        )
        raise ConfigError(f"exchange-calendars knows no exchange {code!r}: {hint}") from None
    except Exception as bad:  # 4.13 cannot build five of its calendars with pandas 3
        raise CalendarError(
            f"exchange-calendars fails to build the calendar of {code} ({bad}); {WITHOUT}"
        ) from bad


@lru_cache(maxsize=16)
def _calendar(code: str, first_year: int, last_year: int) -> Any:
    """The exchange's calendar over whole years, as far as its bounds allow."""
    low, high = _bounds(code)
    start, end = max(date(first_year, 1, 1), low), min(date(last_year, 12, 31), high)
    return _kind(code)(start=pd.Timestamp(start), end=pd.Timestamp(end))


def _sessions(code: str, since: date, until: date) -> npt.NDArray[np.datetime64]:
    """(K,) datetime64[D]."""
    calendar = _calendar(code, since.year, until.year)
    sessions = calendar.sessions.to_numpy().astype("datetime64[D]")
    return np.asarray(
        sessions[(sessions >= np.datetime64(since)) & (sessions <= np.datetime64(until))]
    )


@lru_cache(maxsize=32)
def _bar_times(code: str, step_ns: int, side: str, since: date, until: date) -> Times:
    """All bars of the sessions of these dates, in local time."""
    sessions = _sessions(code, since, until)
    calendar = _calendar(code, since.year, until.year)
    # A last bar cut short by the close is labelled by the close: 16:00, not 16:30.
    index = calendar.trading_index(
        pd.Timestamp(sessions[0]),
        pd.Timestamp(sessions[-1]),
        pd.Timedelta(step_ns, unit="ns"),
        intervals=False,
        closed=side,
        force=True,
    )
    local = index.tz_convert(calendar.tz).tz_localize(None)
    times: Times = np.unique(local.to_numpy().astype("datetime64[ns]"))
    times.flags.writeable = False  # it is cached
    return times
