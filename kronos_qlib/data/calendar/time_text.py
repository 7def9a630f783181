"""Moments, spans, steps and weekdays as text for messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.errors import in_words

Times = npt.NDArray[np.datetime64]

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def show_time(moment: Any) -> str:
    """A moment for a message, without seconds of 0 and without midnight."""
    return str(pd.Timestamp(moment)).removesuffix(" 00:00:00").removesuffix(":00")


def show_span(moments: Sequence[Any] | Times) -> str:
    """From the first moment to the last, for a message."""
    first, last = show_time(moments[0]), show_time(moments[-1])
    return first if first == last else f"{first} to {last}"


def duration(step: np.timedelta64) -> str:
    """A step in words: "5 minutes", "1 hour", "3.5 hours", "7 days"."""
    seconds = step / np.timedelta64(1, "s")
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second")):
        if seconds >= size:
            count = seconds / size
            if unit == "hour" and count != int(2 * count) / 2:
                continue  # 95 minutes, rather than 1.58333 hours
            return f"{count:g} {unit}{'' if count == 1 else 's'}"
    return f"{seconds:g} seconds"


def tick_text(step: np.timedelta64) -> str:
    """A step as a pandas frequency: "5min", "h", "30s"."""
    seconds = step / np.timedelta64(1, "s")
    for size, unit in ((3600, "h"), (60, "min"), (1, "s")):
        count, rest = divmod(seconds, size)
        if count and not rest:
            return unit if unit == "h" and count == 1 else f"{count:g}{unit}"
    return f"{step.astype(int)}ns"


def weekday_of(days: Any) -> npt.NDArray[np.int64]:
    """Weekdays, Monday 0, of the same shape as `days`, which are datetime64[D]."""
    return np.asarray((np.asarray(days).astype("datetime64[D]").astype(np.int64) + 3) % 7)


def hour_text(time: np.timedelta64) -> str:
    """A time of day, since midnight, as 09:35 or 09:35:30."""
    minutes, seconds = divmod(int(time / np.timedelta64(1, "s")), 60)
    text = f"{minutes // 60:02d}:{minutes % 60:02d}"
    return f"{text}:{seconds:02d}" if seconds else text


def weekday_names(days: list[int], ending: str = "") -> str:
    """Weekdays, Monday 0, as a list in words: "Monday, Tuesday and Friday"."""
    return in_words([WEEKDAYS[day] + ending for day in days])


def weekday_span(days: list[int]) -> str:
    """Weekdays in a row, which may go over Sunday, as "Sunday to Thursday"; others as a list."""
    if len(days) in (0, 7):
        return "every day of the week" if days else ""
    if len(days) < 3:
        return weekday_names(days)
    start = next(day for day in days if (day - 1) % 7 not in days)
    run = [(start + step) % 7 for step in range(len(days))]
    if sorted(run) == days:
        return f"{WEEKDAYS[run[0]]} to {WEEKDAYS[run[-1]]}"
    return weekday_names(days)
