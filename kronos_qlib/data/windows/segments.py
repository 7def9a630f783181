"""Segments of time: what their ends mean, and how they are named, paired or shared out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date, datetime
from itertools import pairwise
from numbers import Number, Real
from typing import Any

import numpy as np
import pandas as pd

from kronos_qlib.data.calendar.stamps import Times
from kronos_qlib.errors import ConfigError

Moment = str | date | np.datetime64
"""A date or a time, such as "2024-06-18" or a pandas Timestamp."""
Bounds = tuple[Moment | None, Moment | None]
"""First and last moment of a segment, both inclusive; None leaves an end open."""
Segment = str | slice | Bounds
"""A segment's name, or its first and last moment."""

ORDER = ("train", "valid", "test")
"""Segments that must follow one another."""
PART_OF_A_DATE = re.compile(r"\d{4}(-\d{1,2})?")
END_OF_DAY = pd.Timedelta(days=1) - pd.Timedelta(nanoseconds=1)


def first_instant(moment: Moment) -> np.datetime64:
    """Where a segment that begins at `moment` begins.

    Raises:
        ConfigError: it is no date or time.
    """
    return _timestamp(moment).as_unit("ns").to_datetime64()


def last_instant(moment: Moment, calendar: Times) -> np.datetime64:
    """The last instant of a segment that ends at `moment`: a bare date covers its whole day.

    A midnight given as a time (a Timestamp, not a date or "2024-06-18") is that instant where the
    calendar has bars at midnight, as of a market that never closes; elsewhere it stands for its
    day, as Qlib means it.

    Args:
        calendar: (K,) datetime64[ns], increasing.

    Raises:
        ConfigError: it is no date or time.
    """
    stamp = _timestamp(moment)
    is_day = isinstance(moment, date) and not isinstance(moment, datetime)
    is_day |= isinstance(moment, str) and ":" not in moment
    instant = stamp.as_unit("ns").to_datetime64()
    if stamp == stamp.normalize():
        place = int(np.searchsorted(calendar, instant))
        is_bar = place < len(calendar) and calendar[place] == instant
        if is_day or not is_bar:
            return (stamp + END_OF_DAY).as_unit("ns").to_datetime64()
    return instant


def places_of(calendar: Times, first: Moment | None, last: Moment | None) -> tuple[int, int]:
    """[start, stop) of a segment in places of the calendar; None leaves an end open."""
    start, stop = 0, len(calendar)
    if first is not None:
        start = int(np.searchsorted(calendar, first_instant(first), side="left"))
    if last is not None:
        stop = int(np.searchsorted(calendar, last_instant(last, calendar), side="right"))
    return start, max(start, stop)


def bounds_of(segments: Mapping[str, Any], segment: Segment) -> Bounds:
    """First and last moment of a segment, by name, slice or pair.

    Raises:
        ConfigError: no segment has that name, it is no pair of moments, or it ends before it
            begins.
    """
    chosen, name = segment, ""
    if isinstance(segment, str):
        if segment not in segments:
            raise ConfigError(f"no segment {segment!r}; there are {', '.join(segments) or 'none'}")
        chosen, name = segments[segment], f" {segment}"
    if isinstance(chosen, slice):
        first, last = chosen.start, chosen.stop
    elif isinstance(chosen, (tuple, list)) and len(chosen) == 2:
        first, last = chosen
    else:
        raise ConfigError(f"the segment{name} is a pair (first, last), got {chosen!r}")
    ends = [None if moment is None else _timestamp(moment) for moment in (first, last)]
    if ends[0] is not None and ends[1] is not None and ends[0] > ends[1] + END_OF_DAY:
        raise ConfigError(f"the segment{name} ends at {last}, before it begins at {first}")
    return first, last


def order_problems(segments: Mapping[str, Any], calendar: Times) -> list[str]:
    """Which of train, valid and test do not end before the next one begins, a sentence for each.

    Args:
        segments: name to (first, last); those of other names may lie anywhere.
        calendar: (K,) datetime64[ns], as of `last_instant`.

    Raises:
        ConfigError: a segment is no pair of moments, or ends before it begins.
    """
    found = []
    for earlier, later in pairwise(name for name in ORDER if name in segments):
        end, begin = bounds_of(segments, earlier)[1], bounds_of(segments, later)[0]
        if end is None or begin is None or last_instant(end, calendar) >= first_instant(begin):
            found.append(
                f"the segment {earlier} ends at {end} and {later} begins at {begin}: what is "
                "learned or chosen on one would be known in the next; let each end before the "
                "following one begins"
            )
    return found


def describe_segments(segments: Mapping[str, Any]) -> str:
    """Segments in a line, as they were given: "train 2020-01-01 to 2021-12-31"."""
    parts = []
    for name, chosen in segments.items():
        ends = chosen
        if isinstance(chosen, slice):
            ends = (chosen.start, chosen.stop)
        if not isinstance(ends, tuple | list) or len(ends) != 2:
            parts.append(f"{name} {chosen!r:.40}")
            continue
        first, last = (str(end).removesuffix(" 00:00:00") for end in ends)
        parts.append(f"{name} {first} to {last}")
    return ", ".join(parts) or "no segments"


def split_by_share(calendar: Times, shares: Mapping[str, float]) -> dict[str, Bounds]:
    """Segments that follow one another, each with its share of the calendar's times.

    Raises:
        ConfigError: a share is no number, not positive, all exceed 1 together, or one has no time.
    """
    for name, share in shares.items():
        if isinstance(share, bool) or not isinstance(share, Real):
            raise ConfigError(
                f"segments are shares of the times or pairs of dates, all of one kind; {name!r} is "
                f"{share!r}"
            )
    if min(shares.values()) <= 0 or sum(shares.values()) > 1 + 1e-9:
        raise ConfigError(f"shares must be positive and not exceed 1 together, got {dict(shares)}")
    segments: dict[str, Bounds] = {}
    done, start = 0.0, 0
    for name, share in shares.items():
        done += share
        stop = round(done * len(calendar))
        if stop <= start:
            raise ConfigError(f"the share {share} of {len(calendar)} times leaves {name!r} none")
        segments[name] = (pd.Timestamp(calendar[start]), pd.Timestamp(calendar[stop - 1]))
        start = stop
    return segments


def _timestamp(moment: Any) -> pd.Timestamp:
    if isinstance(moment, str) and PART_OF_A_DATE.fullmatch(moment.strip()):
        raise ConfigError(f"a segment's end names its day, such as 2024-06-18, got {moment!r}")
    try:
        stamp = pd.Timestamp(moment)
    except (ValueError, TypeError) as bad:
        raise ConfigError(f"a segment's end is a date or time, got {moment!r}") from bad
    if pd.isna(stamp) or isinstance(moment, Number):  # pandas reads 20240618 as nanoseconds
        raise ConfigError(f"a segment's end is a date or time, got {moment!r}")
    return stamp.tz_localize(None)
