"""The times that a folder's calendar announces after its last bar."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from kronos_qlib.data.calendar.clock import DAY
from kronos_qlib.data.calendar.clock_reading import read_clock
from kronos_qlib.data.calendar.stamps import to_times
from kronos_qlib.data.calendar.steps import market_times
from kronos_qlib.errors import CalendarError, ConfigError


def times_ahead(
    table: pd.DataFrame, calendar: pd.DatetimeIndex, freq: str, count: int
) -> tuple[pd.DatetimeIndex, str]:
    """The next `count` times as bars came so far, and what to say of them."""
    none = calendar[:0]
    if not count:
        return none, ""
    clock = read_clock(market_times(table["date"]))
    better = "give the exchange's own (future_times; --exchange or --future-calendar)"
    try:
        # The last bars may be one instrument's alone.
        ahead = pd.DatetimeIndex(clock.after(count, calendar[-1].to_datetime64())[-count:])
    except CalendarError as problem:
        few = len(calendar.normalize().unique()) < 10 and clock.kind in ("days", "minutes")
        if len(calendar) > 2 and not few:
            return none, f"no future calendar: {problem}; {better}"
        if (calendar.day_of_week > 4).any() or (clock.step or DAY) > 4 * DAY:
            return (
                none,
                f"no future calendar: the bars are too few to show how they go on; {better}",
            )
        ahead = _weekdays_ahead(calendar, freq, count)
        by = "by weekdays"
    else:
        by = "by weekdays" if clock.freq == "B" else f"as the bars did ({clock.words})"
        if not clock.has_holidays:
            return ahead, f"the future calendar goes on {by} to {ahead[-1]:%Y-%m-%d}"
    assumed = "".join(f"; {doubt}" for doubt in clock.doubts(ahead.to_numpy()))
    return ahead, (
        f"the future calendar goes on {by} to {ahead[-1]:%Y-%m-%d} and knows no holidays: better "
        f"{better}{assumed}"
    )


def _weekdays_ahead(calendar: pd.DatetimeIndex, freq: str, count: int) -> pd.DatetimeIndex:
    """The next `count` times, if the exchange opened on every weekday."""
    last = calendar[-1]
    if freq == "day":
        return pd.bdate_range(last + pd.Timedelta(days=1), periods=count)
    # Many times a day can only give too many days.
    return _at_usual_times(calendar, pd.bdate_range(last.normalize(), periods=count + 2))[:count]


def given_ahead(calendar: pd.DatetimeIndex, freq: str, given: Iterable[Any]) -> pd.DatetimeIndex:
    """What of the exchange's own calendar is still to come.

    Raises:
        ConfigError: a daily calendar is given times of day.
    """
    last = calendar[-1]
    times = pd.DatetimeIndex(to_times(list(given))).unique().sort_values()
    ahead = times[times > last]
    timed = ahead[ahead != ahead.normalize()]
    if freq == "day" and len(timed):
        raise ConfigError(f"future_times: a daily calendar has no time of day, got {timed[0]}")
    if freq == "day" or len(timed):
        return ahead
    # A list of days says which days are open; the last bar's own day may have times left.
    return _at_usual_times(calendar, ahead.insert(0, last.normalize()))


def _at_usual_times(calendar: pd.DatetimeIndex, days: pd.DatetimeIndex) -> pd.DatetimeIndex:
    """The days at the times of day that half of the calendar's days have, after its end."""
    known = calendar.normalize()
    clock = pd.Series(calendar - known).value_counts()
    usual = np.sort(clock[clock >= known.nunique() / 2].index.to_numpy())
    if not len(usual):
        usual = np.sort(clock.index.to_numpy())
    times = pd.DatetimeIndex((days.to_numpy()[:, None] + usual[None, :]).ravel())
    return times[times > calendar[-1]]
