"""Clock: how the bars of a past follow one another, how they go on, and what does not fit them.

`clock_reading.read_clock` makes one from timestamps. It knows weekdays and times of day, and no
holidays.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from pandas.tseries.offsets import BaseOffset

from kronos_qlib.data.calendar.time_text import (
    WEEKDAYS,
    Times,
    duration,
    hour_text,
    show_span,
    show_time,
    tick_text,
    weekday_names,
    weekday_of,
    weekday_span,
)
from kronos_qlib.errors import CalendarError

States = npt.NDArray[np.int8]
Kind = Literal["minutes", "days", "weeks", "months", "irregular"]
MonthRule = Literal["MS", "ME", "BMS", "BME", "day"]

OPEN, CLOSED, UNKNOWN = 1, 0, -1
"""What the past says of a weekday or of a time on a weekday."""
MINUTE = np.timedelta64(60_000_000_000, "ns")
HOUR, DAY = 60 * MINUTE, 1440 * MINUTE
LONGEST_INTRADAY = 20 * HOUR
"""Bars further apart are of a day or longer."""
LAST_DAY = np.datetime64("2262-04-10", "D")
"""Nanoseconds since 1970 end on the day after."""
MONTH_WORDS = {
    "MS": "on the first day",
    "ME": "on the last day",
    "BMS": "on the first weekday",
    "BME": "on the last weekday",
}
WAYS = (
    "give the exchange, such as 'XSHG' or '24/7', a freq such as '5min', 'B' or 'W-FRI', more of "
    "the past, or the bars to come"
)


@dataclass(frozen=True, eq=False)
class Clock:
    """When bars come.

    kind: "minutes": several a day; "days": one on some weekdays or all; "weeks": one every few
    days, mostly whole weeks; "months"; "irregular": no step is usual.
    """

    kind: Kind
    first: np.datetime64
    last: np.datetime64
    """The past's ends, datetime64[ns]."""
    step: np.timedelta64 | None = None
    """The usual step from bar to bar (of months, a month's as they come); None if there is none."""
    why: str = ""
    """Why the past does not say how it goes on, if it does not."""
    week: States = field(default_factory=lambda: np.full(7, UNKNOWN, dtype=np.int8))
    """(7,) of each weekday, Monday first."""
    clock: npt.NDArray[np.timedelta64] = field(
        default_factory=lambda: np.zeros(1, dtype="timedelta64[ns]")
    )
    """(S,) the times of day, increasing; one of bars of a day or longer."""
    slots: States = field(default_factory=lambda: np.full((7, 1), UNKNOWN, dtype=np.int8))
    """(7, S) of each time of day on each weekday."""
    shorter: frozenset[int] = frozenset()
    """Of minutes: shorter steps, in nanoseconds, that explain the past as well: of thin bars."""
    assumed: tuple[int, ...] = ()
    """Weekdays that the past does not reach over, taken as open because they mostly are."""
    anchor: np.datetime64 | None = None
    """Of weeks, and of minutes that do not divide a day: the day, datetime64[D], on which the last
    bar is due; a holiday may have moved it."""
    months: int = 0
    month_rules: tuple[MonthRule, ...] = ()
    """Of months: how many, and every rule that explains the past."""
    month_day: int = 0
    """Of the rule "day": of the month."""

    def after(self, count: int, reach: np.datetime64 | None = None) -> Times:
        """The bars that follow the past as bars did within it.

        Args:
            count: how many at least.
            reach: as many after this moment too.

        Returns:
            (count or more,) datetime64[ns], increasing.

        Raises:
            CalendarError: the past is too short or irregular to show how, or they lead beyond 2262.
        """
        if self.why:
            raise CalendarError(f"{self.why}, so how bars go on is not known: {WAYS}")
        reach = self.last if reach is None else max(reach, self.last)
        if self.kind == "months":
            return self._by_months(count, reach)
        if self.anchor is not None:
            return self._by_steps(count, reach)
        return self._by_week(count, reach)

    def doubts(self, ahead: Times) -> tuple[str, ...]:
        """What is assumed of bars made by `after` that the past does not show, in words."""
        days = set(weekday_of(ahead.astype("datetime64[D]")).tolist())
        used = [day for day in self.assumed if day in days]
        if not used:
            return ()
        return (
            f"the past, {self._reach}, reaches over no {weekday_names(used)}: "
            "taken as open, as Mondays to Fridays mostly are",
        )

    @cached_property
    def words(self) -> str:
        """How bars come: "every 5 minutes, Monday to Friday, 09:35 to 11:30, 13:05 to 15:00"."""
        if self.kind == "irregular" or self.step is None:
            return "irregularly"
        if self.kind == "months":
            often = "monthly" if self.months == 1 else f"every {self.months} months"
            if "day" in self.month_rules:
                return f"{often}, on day {self.month_day}"
            return f"{often}, {MONTH_WORDS[self.month_rules[0]]}" if self.month_rules else often
        days = int(self.step // DAY)
        if self.kind == "weeks":
            often = "weekly" if days == 7 else f"every {days} days"
            if days % 7 == 0 and days > 7:
                often = f"every {days // 7} weeks"
            if days % 7 or self.anchor is None:
                return often
            return f"{often}, on {WEEKDAYS[int(weekday_of(self.anchor))]}s"
        if self.kind == "days":
            known = np.flatnonzero(self.week == OPEN).tolist()
            if (
                " to " not in weekday_span(known)
                and not (self.week == UNKNOWN).any()
                and len(known) < 7
            ):
                return f"on {weekday_names(known, 's')}"
            return f"daily, {self.week_words}"
        often = f"every {duration(self.step).removeprefix('1 ')}"
        return ", ".join(part for part in (often, self.week_words, self._hours) if part)

    @cached_property
    def week_words(self) -> str:
        """The open weekdays: "Monday to Friday", "Monday, Wednesday and Friday"."""
        days = np.flatnonzero(self.week == OPEN).tolist()
        if (self.week == UNKNOWN).any() and not self.why:
            return f"{weekday_span(days)} as far as seen"
        return "" if self.why else weekday_span(days)

    @cached_property
    def _reach(self) -> str:
        return show_span([self.first, self.last])

    @property
    def has_weekends(self) -> bool:
        """Whether Saturdays and Sundays have bars like any day."""
        return bool((self.week[5:] == OPEN).all())

    @property
    def has_holidays(self) -> bool:
        """Whether such a market closes on days that its week does not show: one that trades at
        weekends never does."""
        return self.kind == "weeks" or not self.has_weekends

    @cached_property
    def freq(self) -> str | None:
        """The pandas frequency that goes on as the past did, but for closing times."""
        if self.step is None:
            return None
        if self.kind == "minutes":
            return tick_text(self.step)
        if self.kind == "days":
            days = self.week == OPEN
            if days.all():
                return "D"
            return "B" if days[:5].all() and not days[5:].any() else None
        if self.kind == "weeks":
            count, rest = divmod(int(self.step // DAY), 7)
            if rest:
                return f"{self.step // DAY}D"
            name = WEEKDAYS[int(weekday_of(self.anchor))][:3].upper()
            return f"{count if count > 1 else ''}W-{name}"
        known = [rule for rule in self.month_rules if rule != "day"]
        return f"{self.months if self.months > 1 else ''}{known[0]}" if known else None

    def misfit(self, offset: BaseOffset, freq: str) -> str | None:
        """Why bars that follow one another by `offset` are not like those of the past.

        Returns:
            A sentence that names the usual step and what would fit; None if it fits, or if the
            past is too short or irregular to say.
        """
        if self.step is None or self._fits(offset):
            return None
        ways = ["leave freq out to go on as they do"] if not self.why else []
        if self.freq is not None:
            ways.append(f"give freq {self.freq!r}")
        if self.has_weekends and self.kind in ("days", "minutes"):
            ways.append("exchange '24/7'")
        ways = ways or ["give the bars to come"]
        return (
            f"freq {freq!r} does not fit the past, whose bars come {self.words}: "
            f"{', or '.join(ways)}"
        )

    def strange(self, ahead: Times) -> npt.NDArray[np.bool_]:
        """(N,) which of these moments are on weekdays or times of day at which no bar ever came."""
        if self.kind != "minutes" or self.why or self.anchor is not None:
            return np.zeros(len(ahead), dtype=bool)
        days = ahead.astype("datetime64[D]")
        clock = ahead - days
        place = np.minimum(np.searchsorted(self.clock, clock), len(self.clock) - 1)
        known: npt.NDArray[np.bool_] = self.clock[place] == clock
        return np.asarray(~known | (self.slots[weekday_of(days), place] == CLOSED))

    def unlike(self, ahead: Times) -> str | None:
        """How the step of given bars to come plainly differs from the past's, in words, if so."""
        if self.step is None or not len(ahead):
            return None
        gaps = np.diff(np.concatenate(([self.last], ahead)))
        own = gaps[1:]
        usual = np.median(gaps.astype(np.int64)) / self.step.astype(np.int64)
        if usual >= 0.5 and not (len(own) > 2 and own.min() > self._longest_usual):
            return None
        given = duration(np.timedelta64(int(np.median(gaps.astype(np.int64))), "ns"))
        return (
            f"the bars to come stand {given} apart, while those of the past come {self.words}: a "
            "forecast bar moves as a bar of the past did"
        )

    @cached_property
    def _longest_usual(self) -> np.timedelta64:
        """A step beyond which bars are not those of this clock, whatever closes in between."""
        assert self.step is not None
        if self.kind == "days":
            return 4 * DAY
        return np.timedelta64(int(1.5 * self.step.astype(np.int64)), "ns")

    @cached_property
    def _hours(self) -> str:
        """The times of day of a week's days, as spans: "09:35 to 11:30, 13:05 to 15:00"."""
        is_open = (self.slots == OPEN).any(axis=0)
        times = self.clock[is_open]
        if self.why or not len(times) or self.step is None:
            return ""
        if len(times) * self.step >= DAY:
            return "around the clock"
        breaks = np.flatnonzero(np.diff(times) > self.step) + 1
        spans = np.split(times, breaks)
        if len(spans) > 3:
            return f"{hour_text(times[0])} to {hour_text(times[-1])}"
        return ", ".join(
            hour_text(span[0])
            if len(span) == 1
            else f"{hour_text(span[0])} to {hour_text(span[-1])}"
            for span in spans
        )

    def _fits(self, offset: BaseOffset) -> bool:
        assert self.step is not None
        try:
            start = pd.Timestamp(self.last)
            ahead = pd.date_range(start, periods=15, freq=offset).to_numpy("datetime64[ns]")
        except (pd.errors.OutOfBoundsDatetime, OverflowError):
            return True  # the caller says so
        gap = np.median(np.diff(ahead).astype(np.int64))
        ratio = float(gap / self.step.astype(np.int64))
        if self.kind == "minutes":
            return ratio == 1 or int(gap) in self.shorter
        visited = np.unique(weekday_of(ahead.astype("datetime64[D]")))
        if self.kind == "days":
            left_out = np.setdiff1d(np.arange(7), visited)
            return (
                ratio == 1
                and not (self.week[visited] == CLOSED).any()
                and not (self.week[left_out] == OPEN).any()
            )
        if not 0.8 <= ratio <= 1.25:
            return False
        weekly = self.kind == "weeks" and not int(self.step // DAY) % 7
        return not weekly or visited.tolist() == [int(weekday_of(self.anchor))]

    def _by_week(self, count: int, reach: np.datetime64) -> Times:
        """Days block by block, at the times of day that their weekdays have."""
        begin = self.last.astype("datetime64[D]")
        if self.kind == "days":
            begin = begin + 1  # one bar a day, be it earlier than usual
        later = int((reach.astype("datetime64[D]") - begin) / np.timedelta64(1, "D"))
        days = 15 + max(0, later) + 2 * count // max(1, int((self.slots == OPEN).sum(axis=1).max()))
        while True:
            dates = np.arange(begin, max(begin, min(begin + days, LAST_DAY)))
            states = self.slots[weekday_of(dates)]
            moments = (dates.astype("datetime64[ns]")[:, None] + self.clock).ravel()
            due = (states != CLOSED).ravel() & (moments > self.last)
            moments, known = moments[due], states.ravel()[due] == OPEN
            stop = int(np.searchsorted(moments, reach, side="right")) + count
            unknown = np.flatnonzero(~known[:stop])
            if len(unknown):
                raise CalendarError(self._cannot_tell(moments[unknown[0]]))
            if stop <= len(moments):
                return np.asarray(moments[:stop])
            if begin + days >= LAST_DAY:
                raise CalendarError(_beyond(count, reach))
            days *= 2

    def _by_steps(self, count: int, reach: np.datetime64) -> Times:
        assert self.step is not None and self.anchor is not None
        start = self.anchor.astype("datetime64[ns]") + self.clock[0]
        behind = max(0, int((reach - start) // self.step))
        if behind + count + 1 > int((LAST_DAY - start) // self.step):
            raise CalendarError(_beyond(count, reach))
        ahead = start + self.step * np.arange(1, behind + count + 2)
        ahead = ahead[ahead > self.last]
        stop = int(np.searchsorted(ahead, reach, side="right")) + count
        return np.asarray(ahead[:stop])

    def _by_months(self, count: int, reach: np.datetime64) -> Times:
        month = self.last.astype("datetime64[M]")
        behind = int((reach.astype("datetime64[M]") - month).astype(int)) // self.months
        if (behind + count + 2) * self.months > (LAST_DAY.astype("datetime64[M]") - month).astype(
            int
        ):
            raise CalendarError(_beyond(count, reach))
        ahead = month + self.months * np.arange(1, behind + count + 2)
        found = [month_days(ahead, rule, self.month_day) for rule in self.month_rules]
        if not all(np.array_equal(found[0], other) for other in found[1:]):
            rules = " or ".join(MONTH_WORDS[rule] for rule in self.month_rules)
            raise CalendarError(
                f"the past, {self._reach}, does not show whether its "
                f"bars come {rules} of the month: {WAYS}"
            )
        moments = found[0].astype("datetime64[ns]") + self.clock[0]
        stop = int(np.searchsorted(moments, reach, side="right")) + count
        return np.asarray(moments[:stop])

    def _cannot_tell(self, moment: np.datetime64) -> str:
        day = WEEKDAYS[int(weekday_of(moment.astype("datetime64[D]")))]
        at = (
            ""
            if self.kind == "days"
            else f" at {hour_text(moment - moment.astype('datetime64[D]'))}"
        )
        return (
            f"the past, {self._reach}, is too short to show whether bars "
            f"come on {day}s{at}, where they would go on: {WAYS}"
        )


def _beyond(count: int, reach: np.datetime64) -> str:
    return f"{count} bars after {show_time(reach)} lead beyond the year 2262"


def month_days(months: Times, rule: MonthRule, day: int = 0) -> Times:
    """(N,) datetime64[D]: the day of each month, datetime64[M], that a rule means."""
    first = months.astype("datetime64[D]")
    last = (months + 1).astype("datetime64[D]") - 1
    if rule == "MS":
        return np.asarray(first)
    if rule == "ME":
        return np.asarray(last)
    if rule == "BMS":
        return np.asarray(np.busday_offset(first, 0, roll="forward"))
    if rule == "BME":
        return np.asarray(np.busday_offset(last, 0, roll="backward"))
    return np.asarray(np.minimum(first + (day - 1), last))
