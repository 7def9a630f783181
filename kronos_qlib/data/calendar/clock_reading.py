"""Timestamps to the `Clock` by which they came: robust to holidays, gaps, half days, odd bars.

Shape letters: D days with bars, S times of day.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from kronos_qlib.data.calendar.clock import (
    CLOSED,
    DAY,
    HOUR,
    OPEN,
    UNKNOWN,
    Clock,
    MonthRule,
    States,
    month_days,
)
from kronos_qlib.data.calendar.time_text import Times, duration, show_span, show_time, weekday_of

Flags = npt.NDArray[np.bool_]
Days = npt.NDArray[np.datetime64]
Making = Callable[..., Clock]
"""Makes a clock of whose fields some are set."""

RECENT_BARS = 30_000
"""What came earlier says nothing: 25 days of minutes around the clock are 36,000 bars, of a session
far fewer."""
RECENT_WEEKS, RECENT_DAYS = 12, 25
"""Weeks with bars that say which weekdays are open; days that say at which times."""
LATELY = 4
"""Weeks that decide alone: Tel Aviv moved its week from Sunday to Monday in 2026."""
A_SESSION = 0.15
"""The share of a day's times that a half day, or a weekday's own hours, lack: a bar or two may lack
for any reason."""
SATURDAY = 5


def read_clock(past: Times) -> Clock:
    """How the bars of a past came; never an error: a clock says in `why` that it is not known.

    Args:
        past: (L,) increasing datetime64[ns], L at least 1.
    """
    past = past[-RECENT_BARS:]
    clock = partial(Clock, first=past[0], last=past[-1])
    days = past.astype("datetime64[D]")
    if len(past) < 2:
        return clock("irregular", why="the past is a single bar")
    same_day = days[1:] == days[:-1]
    # A daily bar repeated at another time does not make minutes of days.
    if 3 * same_day.sum() >= len(same_day):
        return _of_minutes(past, days, same_day, clock)
    return _of_days(past, days, clock)


def usual(values: npt.NDArray[Any]) -> tuple[Any, float]:
    """The most common of (n,) values, the least of equals, and its share."""
    found, counts = np.unique(values, return_counts=True)
    return found[counts.argmax()], float(counts.max() / len(values))


def week_of(days: Days) -> States:
    """(7,) which weekdays have bars, from (D,) increasing dates. Closed weeks do not count.

    A weekday that is passed over once or twice may have been a holiday: unless it is at a weekend
    it stays unknown.
    """
    place = days.astype(np.int64) + 3  # weeks begin on Mondays
    weeks = np.unique(place // 7)[-RECENT_WEEKS:]
    due = (weeks[:, None] * 7 + np.arange(7)).ravel()
    due = due[(due >= place[0]) & (due <= place[-1])]
    seen, weekday = np.isin(due, place), due % 7
    count = np.bincount(weekday, minlength=7)
    rate = np.bincount(weekday, seen, minlength=7) / np.maximum(count, 1)
    relative = rate / rate.max()
    week = np.full(7, UNKNOWN, dtype=np.int8)
    # A calendar of a thousand names has a Saturday now and then, by one name's mistake.
    week[relative >= np.where(np.arange(7) < SATURDAY, 0.4, 0.6)] = OPEN
    odd_week = bool((week[SATURDAY:] == OPEN).any())  # its free days are others than ours
    enough = np.full(7, 2 if odd_week else 3)
    if not odd_week:
        enough[SATURDAY:] = 1
    rare = np.where((np.arange(7) < SATURDAY) | (count <= LATELY), 0.25, 0.6)
    week[(relative < rare) & (count >= enough)] = CLOSED
    if rate.max() >= 0.6:
        for day in np.flatnonzero(count > LATELY):
            lately = seen[weekday == day][-LATELY:]
            if lately.all() or not lately.any():
                week[day] = OPEN if lately.all() else CLOSED
    if (week[[4, 5, 6]] == OPEN).all():  # few markets but those of seven days have all three
        week[(week == UNKNOWN) & (count == 0)] = OPEN
    return week


def _of_days(past: Times, days: Days, clock: Making) -> Clock:
    """Of bars of a day or longer."""
    times = past - days
    timed = partial(clock, clock=np.array([usual(times[-5:])[0]]))
    days = np.unique(days)
    recent = days[-8 * RECENT_WEEKS :]
    gaps = np.diff(recent).astype(np.int64)
    gap, share = usual(gaps)
    middle = float(np.median(gaps))
    if len(days) < 3:
        if gap > 4 or (len(past) == 2 and times[0] != times[1]):
            why = f"two bars, {show_time(past[-2])} and {show_time(past[-1])}, show no step"
            return clock("irregular", why=why)
        return timed("days", step=DAY, week=week_of(days), slots=week_of(days)[:, None])
    if middle >= 26:
        return _of_months(recent, clock, timed)
    weeks = round(middle / 7)
    if weeks and share >= 0.5 and gap == 7 * weeks:
        return _of_weeks(recent, weeks, timed)
    if gap > 1 and share >= 0.8:
        if len(np.unique(weekday_of(recent))) >= 5:
            return timed("weeks", step=gap * DAY, anchor=days[-1])
        why = f"{len(days)} bars, mostly {gap} days apart, show no week"
        return clock("irregular", why=why)
    week = week_of(days)
    apart = np.diff(np.unique((recent.astype(np.int64) + 3) // 7))
    if (len(apart) and (apart == 1).mean() < 0.5) or _density(days, week) < 0.5:
        why = f"the bars from {show_span(past)} come at irregular steps"
        return clock("irregular", why=why)
    return timed("days", step=gap * DAY, week=week, slots=week[:, None])


def _density(days: Days, week: States) -> float:
    """The share of the open weekdays' dates that have a bar, in weeks that have any."""
    place = days.astype(np.int64) + 3
    weeks = np.unique(place // 7)[-RECENT_WEEKS:]
    due = (weeks[:, None] * 7 + np.flatnonzero(week == OPEN)).ravel()
    due = due[(due >= place[0]) & (due <= place[-1])]
    return float(np.isin(due, place).mean()) if len(due) else 0.0


def _of_weeks(days: Days, weeks: int, timed: Making) -> Clock:
    weekday, _ = usual(weekday_of(days))
    # The last bar stands for the nearest such day: a holiday moves it by a day or two.
    off = (weekday - int(weekday_of(days)[-1])) % 7
    anchor = days[-1] + (off if off <= 3 else off - 7)
    if anchor <= days[-2] + 3:  # that was the bar before: a week not over yet
        anchor += 7
    return timed("weeks", step=7 * weeks * DAY, anchor=anchor)


def _of_months(days: Days, clock: Making, timed: Making) -> Clock:
    months = days.astype("datetime64[M]")
    number, share = usual(np.diff(months).astype(np.int64))
    day_of_month = (days - months.astype("datetime64[D]")).astype(np.int64) + 1
    step = usual(np.diff(days).astype(np.int64))[0] * DAY
    if share < 0.7 or number < 1:
        why = f"the bars from {show_span(days)} come at irregular steps"
        return clock("irregular", why=why)
    rules: tuple[MonthRule, ...] = ("MS", "ME", "BMS", "BME")
    fits = {rule: float((month_days(months, rule) == days).mean()) for rule in rules}
    best = max(fits.values())
    day, same = usual(day_of_month)
    found = timed("months", step=step, months=int(number))
    if best >= 0.6 and best >= same:
        fitting = tuple(rule for rule in rules if fits[rule] == best)
        return replace(found, month_rules=fitting)
    if same >= 0.6:
        return replace(found, month_rules=("day",), month_day=int(day))
    why = f"the monthly bars from {show_span(days)} keep to no day of the month"
    return replace(found, why=why)


def _of_minutes(past: Times, days: Days, same_day: Flags, clock: Making) -> Clock:
    """Of several bars a day."""
    within = np.diff(past)[same_day]
    step, share = usual(within)
    if share < 0.25:
        why = (
            f"the bars from {show_span(past)} come at irregular steps, of which "
            f"{duration(step)} is the most common with a share of {share:.0%}"
        )
        return clock("irregular", why=why)
    shorter = _shorter(within) if share < 0.6 else frozenset()
    stepped = partial(clock, step=step, shorter=shorter)
    dates = np.unique(days)
    week = week_of(dates)
    if DAY % step and (np.diff(past) == step).mean() >= 0.9:
        # Times of day that move from day to day: nothing but the step goes on.
        stepped = partial(stepped, anchor=days[-1], clock=(past - days)[-1:])
        if len(np.unique(weekday_of(dates))) == 7:
            return stepped("minutes", week=np.full(7, OPEN, dtype=np.int8))
        why = f"bars every {duration(step)} for less than a week do not show its days"
        return stepped("minutes", week=week, why=why)
    recent = _recent(past, days)
    times, slots, covered = _slots(recent, week, step)
    if len(dates) < 2 or (len(dates) == 2 and past[-1] - days[-1] < past[0] - days[0] - step):
        why = f"the past, {show_span(past)}, reaches over no whole day and does not show its times"
        return stepped("minutes", week=week, why=why)
    if covered < 0.6:
        why = f"the bars from {show_span(past)} keep to no times of day"
        return stepped("minutes", week=week, why=why)
    reached = np.isin(np.arange(7), weekday_of(np.arange(dates[0], dates[-1] + 1)))
    week, slots, assumed = _usual_week(week, slots, step, reached)
    return stepped("minutes", week=week, clock=times, slots=slots, assumed=assumed)


def _shorter(within: npt.NDArray[np.timedelta64]) -> frozenset[int]:
    """The true step of bars so thin that a longer one is more common, in nanoseconds."""
    least = within.min()
    is_grid = not (within % least).astype(np.int64).any()
    common = (within == least).mean() >= 0.1
    return frozenset([int(least.astype(np.int64))] if is_grid and common else [])


def _recent(past: Times, days: Days) -> Times:
    """The last days, since clocks changed if they did: in UTC a session moves by an hour."""
    dates, begin = np.unique(days, return_index=True)
    dates, begin = dates[-RECENT_DAYS:], begin[-RECENT_DAYS:]
    clock = past - days
    start, end = clock[begin], np.append(clock[begin[1:] - 1], clock[-1])
    run = int((start[::-1] != start[-1]).argmax()) if (start != start[-1]).any() else 0
    if run >= 2 and len(start) - run >= 4:
        usual_start, usual_end = usual(start[1:-run])[0], usual(end[1:-run])[0]
        shift = start[-1] - usual_start
        if abs(shift) == HOUR and (end[-run:-1] == usual_end + shift).all():
            begin = begin[-run:]
    return past[begin[0] :]


def _slots(
    past: Times, week: States, step: np.timedelta64
) -> tuple[npt.NDArray[np.timedelta64], States, float]:
    """Times of day (S,), which of them are open on which weekday (7, S), share of bars on these."""
    days = past.astype("datetime64[D]")
    dates, row = np.unique(days, return_inverse=True)
    clock, column = np.unique(past - days, return_inverse=True)
    weekday = weekday_of(dates)
    seen = np.zeros((len(dates), len(clock)), dtype=bool)
    seen[row, column] = True
    due = np.ones_like(seen)
    due[0] &= clock >= clock[column[0]]
    due[-1] &= clock <= clock[column[-1]]
    due[week[weekday] == CLOSED] = False
    seen &= due
    rate = seen.sum(axis=0) / np.maximum(due.sum(axis=0), 1)
    typical = _typical(rate, seen.sum(axis=0))
    if len(dates) >= 5 and typical < 0.2:
        return clock, np.full((7, len(clock)), UNKNOWN, dtype=np.int8), 0.0
    usual_times = rate >= max(0.5 * typical, 1e-9)
    around = bool(usual_times.sum() * step >= DAY - HOUR)
    slots = np.where(usual_times, week[:, None], CLOSED).astype(np.int8)
    for day in np.flatnonzero(week == OPEN):
        own = weekday == day
        if own.any():
            hours = _DayHours(clock, seen[own].sum(axis=0), due[own].sum(axis=0))
            beside = week[(day - 1) % 7], week[(day + 1) % 7]
            slots[day] = hours.states(usual_times, rate, beside, around)
    return clock, slots, float((slots[weekday[row], column] == OPEN).mean())


def _typical(rate: npt.NDArray[np.float64], bars: npt.NDArray[np.int64]) -> float:
    """How often a time that is open has its bar: three in four bars are at times less regular."""
    order = np.argsort(rate)
    total = np.cumsum(bars[order])
    return float(rate[order[np.searchsorted(total, 0.75 * total[-1])]]) if total[-1] else 0.0


@dataclass(frozen=True, eq=False)
class _DayHours:
    """One weekday's bars. clock: (S,). seen, due: (S,) on how many of its days."""

    clock: npt.NDArray[np.timedelta64]
    seen: npt.NDArray[np.int64]
    due: npt.NDArray[np.int64]

    def states(
        self,
        usual_times: Flags,
        rate: npt.NDArray[np.float64],
        beside: tuple[np.int8, np.int8],
        around: bool,
    ) -> States:
        """(S,) when the weekday is open: as others are, but for what it shows itself.

        Args:
            beside: states of the days before and after it: a week may begin on Sunday evening and
                end on Friday.
            around: others are open around the clock.
        """
        seen, due = self.seen, self.due
        own = (due > 0) & (seen >= 0.5 * due)
        if seen.sum() and seen[usual_times].sum() < 0.5 * seen.sum():
            return own.astype(np.int8)  # other hours than the other days'
        states = usual_times.astype(np.int8)
        states[~usual_times & (due >= 3) & (seen >= 0.7 * due)] = OPEN
        lacking = usual_times & (seen == 0) & (due > 0)
        by_accident = (1 - rate) ** due
        closed = lacking & (due >= 3) & (by_accident < 0.05)
        if closed.sum() >= A_SESSION * usual_times.sum():
            states[closed] = CLOSED
        places = np.flatnonzero(seen)
        if not len(places):
            return states
        place = np.arange(len(self.clock))
        edges = ((place < places[0], beside[0]), (place > places[-1], beside[1]))
        for side, neighbour in edges:
            if around and neighbour != OPEN:
                states[usual_times & side & (due == 0)] = UNKNOWN
            doubtful = lacking & side & (due < 3) & (by_accident < 0.3)
            if doubtful.sum() >= A_SESSION * usual_times.sum():
                settled = (neighbour == CLOSED) & (due[doubtful] == 2)
                states[doubtful] = np.where(settled, CLOSED, UNKNOWN)
        return states


def _usual_week(
    week: States,
    slots: States,
    step: np.timedelta64,
    reached: Flags,
) -> tuple[States, States, tuple[int, ...]]:
    """What is not known of the week, as other markets have it; and the weekdays so assumed.

    A market with sessions, seen on Mondays to Fridays only, is taken to be open on all of these.
    One that goes on over a Saturday around the clock never closes. A weekday that was passed over
    stays unknown: it is not assumed against what was seen.

    Args:
        reached: (7,) the weekdays that the past reaches over.
    """
    is_open = week == OPEN
    hours = slots[is_open] == OPEN
    unknown = np.flatnonzero((week == UNKNOWN) & ~reached)
    if not len(unknown) or not len(hours):
        return week, slots, ()
    usual_times = hours.any(axis=0)
    week, slots = week.copy(), slots.copy()
    around = usual_times.sum() * step >= DAY - HOUR
    if around and is_open[SATURDAY] and 2 * (slots[SATURDAY] == OPEN).sum() >= usual_times.sum():
        week[unknown] = OPEN
        slots[unknown] = usual_times
        return week, slots, ()
    if around or is_open[SATURDAY:].any():
        return week, slots, ()
    assumed = tuple(unknown[unknown < SATURDAY].tolist())
    week[unknown] = np.where(unknown < SATURDAY, OPEN, CLOSED)
    slots[unknown] = np.where((unknown < SATURDAY)[:, None], usual_times, CLOSED)
    return week, slots, assumed
