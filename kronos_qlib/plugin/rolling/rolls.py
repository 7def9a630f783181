"""Which days each roll learns from, is chosen by and scores: Qlib's RollingGen, purged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from qlib.workflow.task.gen import RollingGen

from kronos_qlib.data.calendar.stamps import Times
from kronos_qlib.data.windows.segments import (
    ORDER,
    bounds_of,
    describe_segments,
    order_problems,
    places_of,
)
from kronos_qlib.errors import ConfigError

Segments = dict[str, tuple[str, str]]
"""Name to first and last moment, both inclusive, as text: a bare date covers its whole day."""

EXPANDING, SLIDING = RollingGen.ROLL_EX, RollingGen.ROLL_SD
TRAIN = (EXPANDING, SLIDING)


def rolls_of(
    segments: Mapping[str, Any], calendar: Times, every: int, train: str
) -> list[Segments]:
    """The segments of each roll, in time; Qlib is open.

    `test` is parted into `every` trading days each; `valid` moves on by as many, and so does
    `train`, with its beginning ("sliding") or without ("expanding").

    Args:
        segments: train, valid and test of the first roll; test reaches to the last one's end.
        calendar: (K,) of the bars; nothing is scored beyond.

    Raises:
        ConfigError: a segment is missing or open, they are out of order, or a roll would have no
            day to learn from or to score. Names the roll's segment and its days.
    """
    missing = [name for name in ORDER if name not in segments]
    if missing:
        raise ConfigError(
            f"rolling needs the segments {', '.join(ORDER)}; {', '.join(missing)} is missing"
        )
    bounds = {name: bounds_of(segments, name) for name in ORDER}
    for name, ends in bounds.items():
        if None in ends:
            raise ConfigError(
                f"rolling moves the segment {name} on, and it has an open end, {ends}: name both "
                "its days"
            )
    if problems := order_problems(bounds, calendar):
        raise ConfigError(problems[0])
    for name in ORDER:
        start, stop = places_of(calendar, *bounds[name])
        if start == stop:
            raise ConfigError(_empty(name, bounds[name], calendar))
    stop = places_of(calendar, *bounds["test"])[1]
    last = pd.Timestamp(calendar[stop - 1]).normalize()
    rolling = RollingGen(step=every, rtype=train, ds_extra_mod_func=None)
    # The bars' own days, of minutes too, and some after them: where its calendar ends with the
    # last roll it compares None with a date.
    days = pd.DatetimeIndex(np.unique(calendar.astype("datetime64[D]")))
    rolling.ta.cals = [*days, *pd.date_range(days[-1], periods=every + 2)[1:]]
    given = {name: tuple(map(_day, bounds[name])) for name in ORDER}
    rolls: list[Segments] = []
    for each in rolling.generate({"dataset": {"kwargs": {"segments": given}}}):
        found = each["dataset"]["kwargs"]["segments"]
        if found["test"][0] > last:
            break
        cut = {**found, "test": (found["test"][0], min(found["test"][1], last))}
        rolls.append({name: (_text(cut[name][0]), _text(cut[name][1])) for name in ORDER})
    return rolls


def purged(segments: Mapping[str, tuple[str, str]], calendar: Times, ahead: int) -> Segments:
    """Segments without the last `ahead` times of train and of valid, whose labels reach beyond.

    Raises:
        ConfigError: nothing is left of one.
    """
    found = dict(segments)
    for name in ORDER[:-1]:
        first, last = segments[name]
        start, stop = places_of(calendar, first, last)
        if stop - ahead <= start:
            raise ConfigError(
                f"{_empty(name, (first, last), calendar)} but the {stop - start} whose labels are "
                f"known {ahead} later, after its end"
            )
        if ahead:
            found[name] = (first, moment_text(calendar, stop - ahead - 1))
    return found


def moment_text(calendar: Times, place: int) -> str:
    """A time of a calendar as a segment's end: a date, or of bars of minutes the moment."""
    time = pd.Timestamp(calendar[place])
    has_times = (calendar != calendar.astype("datetime64[D]")).any()
    return f"{time:%Y-%m-%d %H:%M:%S}" if has_times else f"{time:%Y-%m-%d}"


def moved_to(
    segments: Mapping[str, Any], calendar: Times, day: pd.Timestamp, train: str
) -> Segments:
    """Train and valid moved on so that valid ends with this day; nothing is tested.

    Args:
        calendar: (K,) of the bars, this day in it.

    Raises:
        ConfigError: a segment is missing or open, or lies after the day.
    """
    bounds = {name: bounds_of(segments, name) for name in ORDER[:-1] if name in segments}
    if len(bounds) < 2 or any(None in ends for ends in bounds.values()):
        raise ConfigError(
            "retraining moves the segments train and valid on, and the model has "
            f"{describe_segments(segments)}: both are needed, with both their ends"
        )
    days = np.unique(calendar.astype("datetime64[D]"))
    places = {
        name: (
            int(np.searchsorted(days, np.datetime64(_day(first), "D"))),
            int(np.searchsorted(days, np.datetime64(_day(last), "D"), side="right")) - 1,
        )
        for name, (first, last) in bounds.items()
    }
    step = int(np.searchsorted(days, np.datetime64(day, "D"))) - places["valid"][1]
    if step < 0:
        raise ConfigError(
            f"the model's segment valid ends on {bounds['valid'][1]}, after {_text(day)}: it has "
            "seen this day"
        )
    found = {}
    for name, (first, last) in places.items():
        start = first + (step if name == "valid" or train == SLIDING else 0)
        found[name] = (str(days[start]), str(days[last + step]))
    if train == EXPANDING:  # as it was given: before the bars begin, too
        found["train"] = (_text(_day(bounds["train"][0])), found["train"][1])
    return found


def _day(moment: Any) -> pd.Timestamp:
    return pd.Timestamp(moment).normalize()


def _text(moment: Any) -> str:
    return f"{pd.Timestamp(moment):%Y-%m-%d}"


def _empty(name: str, ends: tuple[Any, Any], calendar: Times) -> str:
    return (
        f"a roll's segment {name}, {ends[0]} to {ends[1]}, has no time in the bars, which go from "
        f"{str(calendar[0])[:10]} to {str(calendar[-1])[:10]}"
    )
