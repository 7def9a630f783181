"""Which windows exist over a table of bars, and why others do not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from kronos_qlib.data.rules import RULES
from kronos_qlib.data.windows.bar_table import BarTable
from kronos_qlib.data.windows.segments import Bounds, Moment, places_of
from kronos_qlib.data.windows.window import Rows, RunRows, Windows
from kronos_qlib.errors import BarDataError

Spans = Mapping[str, Sequence[Bounds]]
"""For each instrument, the bounds between which it is in the universe."""

OUTSIDE = "outside the universe"
TOO_FEW = "too few bars before"
TOO_OLD = "oldest bar too old"
CUT = "horizon cut by the segment's end"
UNFINISHED = "horizon not there yet"
NO_BAR = "no bar that day"
LONGEST_AGE = 100_000
"""Days that nanoseconds can still count."""
REASONS = (NO_BAR, *RULES, OUTSIDE, TOO_FEW, TOO_OLD, CUT, UNFINISHED)
"""Why an instrument has no window that ends at a moment; the first that applies is counted. There
is no bar, or there was one that broke a rule and was left out."""


def windows_to_score(
    table: BarTable,
    lookback: int,
    first: Moment | None = None,
    last: Moment | None = None,
    spans: Spans | None = None,
    max_age_days: int | None = None,
    min_bars: int | None = None,
    leave_out: int = 0,
) -> Windows:
    """Windows whose last bar lies in a segment, whatever comes after it.

    Args:
        lookback: bars a window sees; with `min_bars`, at most.
        first, last: the segment, both inclusive, see `segments.last_instant`; None leaves it open.
        spans: the universe: the last bar must lie in one of its instrument's spans. The bars
            before it may be older than the span.
        max_age_days: calendar days the oldest bar may lie before the last one, so that an
            instrument back from a long suspension does not reach years back.
        min_bars: bars a window needs. None: exactly `lookback`. Fewer lets windows begin later,
            where an instrument has no older bars or these are too old.
        leave_out: times of the calendar at the segment's end at which no window ends, such as
            those whose label is a return beyond it.

    Returns:
        The windows by (time, instrument), and in `dropped` what became of the other candidates:
        every time of the calendar in the segment at which an instrument is in the universe
        (without `spans`: from its first bar to its last, those that were left out too), and bars
        outside the universe.

    Raises:
        BarDataError: the numbers of bars make no window.
    """
    start, stop = places_of(table.calendar, first, last)
    segment = _Era(start, max(start, stop - leave_out))
    found = _find(table, lookback, 0, segment, spans, max_age_days, min_bars)
    return replace(found.by_time(), begin=0)


def windows_to_train(
    table: BarTable,
    lookback: int,
    horizon: int,
    first: Moment | None = None,
    last: Moment | None = None,
    spans: Spans | None = None,
    max_age_days: int | None = None,
    min_bars: int | None = None,
) -> Windows:
    """Windows whose horizon lies in a segment: no bar after `last`, the next after `first`.

    Their lookbacks may begin before the segment. Only bars inside it are targets (`Windows.begin`,
    and `gather`, which marks them), so two segments share none: the purge.

    Args:
        lookback, first, last, spans, max_age_days, min_bars: as of `windows_to_score`.
        horizon: bars to forecast.

    Returns:
        The windows by (instrument, time), and in `dropped` why others are none.

    Raises:
        BarDataError: the numbers of bars make no window.
    """
    segment = _Era(*places_of(table.calendar, first, last))
    return _find(table, lookback, horizon, segment, spans, max_age_days, min_bars)


@dataclass(frozen=True)
class _Era:
    """A stretch of the calendar: the places from `start` up to, without, `stop`."""

    start: int
    stop: int

    def within(self, other: _Era) -> _Era:
        start = max(self.start, other.start)
        return _Era(start, max(start, min(self.stop, other.stop)))


def _find(
    table: BarTable,
    lookback: int,
    ahead: int,
    segment: _Era,
    spans: Spans | None,
    max_age_days: int | None,
    min_bars: int | None,
) -> Windows:
    least = lookback if min_bars is None else min_bars
    if lookback < 2:
        raise BarDataError(f"a window needs a lookback of at least 2 bars, got {lookback}")
    if not 2 <= least <= lookback:
        raise BarDataError(f"min_bars must lie from 2 to the lookback of {lookback}, got {least}")
    if ahead < 0:
        raise BarDataError(f"a horizon cannot be negative, got {ahead}")
    known: dict[Bounds, _Era] = {}  # most instruments share their spans

    def era_of(span: Bounds) -> _Era:
        if span not in known:
            known[span] = _Era(*places_of(table.calendar, *span))
        return known[span]

    dropped: Counter[str] = Counter()
    runs: list[tuple[int, int]] = []
    instruments = table.instruments if segment.start < segment.stop else ()
    for number, name in enumerate(instruments):
        eras = None
        if spans is not None:
            eras = _merged([era_of((since, until)) for since, until in spans.get(name, ())])
        runs += _runs_of(table, number, segment, eras, least, ahead, dropped)
    ends: Rows = RunRows(runs)
    lengths = None
    if least < lookback:
        last_rows = ends[:]
        begins = table.offsets[table.instrument_of(last_rows)]
        lengths = np.minimum(last_rows - begins + 1, lookback).astype(np.int32)
    if max_age_days is not None:
        ends, lengths = _young(table, ends[:], lengths, least, max_age_days, dropped)
    if lengths is not None and (lengths == lookback).all():
        lengths = None
    found = {reason: int(dropped[reason]) for reason in REASONS if dropped[reason]}
    return Windows(table, ends, lookback, ahead, lengths, found, segment.start)


def _runs_of(
    table: BarTable,
    number: int,
    segment: _Era,
    universe: Sequence[_Era] | None,
    least: int,
    ahead: int,
    dropped: Counter[str],
) -> list[tuple[int, int]]:
    """Runs of rows, [start, stop), at which windows of one instrument end, age not looked at.

    An instrument's bars stand in a row, so each condition cuts its rows at one place, and only
    bounds are computed, not a flag for every bar.
    """
    begin, end = table.offsets[number : number + 2].tolist()
    places = table.places[begin:end]
    left_out = table.left_out.of(number)

    def rows_of(era: _Era) -> tuple[int, int]:
        # Of the places' own type: numpy would copy them all to search for a wider one.
        ends = np.array((era.start, era.stop), dtype=places.dtype)
        start, stop = np.searchsorted(places, ends).tolist()
        return begin + start, begin + stop

    start, stop = rows_of(segment)
    if ahead and begin < start < stop:
        start -= 1  # a window to train on belongs to the segment in which its horizon begins
    if universe is None:
        there = [*places[[0, -1]].tolist()] if begin < end else []
        there += table.left_out.places[left_out][[0, -1]].tolist() if len(left_out) else []
        universe = [_Era(min(there), max(there) + 1) if there else _Era(0, 0)]
    members = []
    for era in universe:
        due = era.within(segment)
        traded_from, traded_to = rows_of(due)
        dropped[NO_BAR] += (due.stop - due.start) - (traded_to - traded_from)
        if len(left_out):
            broken = table.left_out.counts(left_out, due.start, due.stop)
            dropped.update(broken)
            dropped[NO_BAR] -= sum(broken.values())
        mine = rows_of(era)
        members.append((max(start, mine[0]), min(stop, mine[1])))
    members = [(one, other) for one, other in members if one < other]
    dropped[OUTSIDE] += max(0, stop - start) - sum(other - one for one, other in members)
    finished, whole = end - ahead, rows_of(segment)[1] - ahead
    runs = []
    for one, other in members:
        run = _Run(one, other)
        dropped[TOO_FEW] += run.begin_at(begin + least - 1)
        # First whether the horizon is there at all: that says more than where the segment ends.
        dropped[UNFINISHED] += run.stop_at(finished)
        dropped[CUT] += run.stop_at(whole)
        if run.start < run.stop:
            runs.append((run.start, run.stop))
    return runs


@dataclass
class _Run:
    """Rows [start, stop) that conditions shorten; each says how many rows it took."""

    start: int
    stop: int

    def begin_at(self, row: int) -> int:
        kept = min(max(self.start, row), self.stop)
        taken, self.start = kept - self.start, kept
        return taken

    def stop_at(self, row: int) -> int:
        kept = max(min(self.stop, row), self.start)
        taken, self.stop = self.stop - kept, kept
        return taken


def _merged(eras: Sequence[_Era]) -> list[_Era]:
    """In order, those that touch or overlap as one, so that no bar is counted twice."""
    merged: list[_Era] = []
    for one in sorted((one for one in eras if one.start < one.stop), key=lambda one: one.start):
        if merged and one.start <= merged[-1].stop:
            merged[-1] = _Era(merged[-1].start, max(merged[-1].stop, one.stop))
        else:
            merged.append(one)
    return merged


def _young(
    table: BarTable,
    ends: npt.NDArray[np.signedinteger],
    lengths: npt.NDArray[np.int32] | None,
    least: int,
    max_age_days: int,
    dropped: Counter[str],
) -> tuple[npt.NDArray[np.signedinteger], npt.NDArray[np.int32] | None]:
    """Without the windows whose `least` newest bars reach too far back; others shortened."""
    age = np.timedelta64(min(max_age_days, LONGEST_AGE), "D")
    # The first place of the calendar that is young enough, as seen from each place.
    youngest = np.searchsorted(table.calendar, table.calendar - age, side="left")
    floor = youngest[table.places[ends]]
    fits = table.places[ends - (least - 1)] >= floor
    dropped[TOO_OLD] += int((~fits).sum())
    ends, floor = ends[fits], floor[fits]
    if lengths is None:
        return ends, None
    # Halve the range in which the longest young window lies until it is known.
    low, high = np.full(len(ends), least, dtype=np.int32), lengths[fits]
    while (unsure := np.flatnonzero(low < high)).size:
        middle = (low[unsure] + high[unsure] + 1) // 2
        good = table.places[ends[unsure] - (middle - 1)] >= floor[unsure]
        low[unsure[good]] = middle[good]
        high[unsure[~good]] = middle[~good] - 1
    return ends, low
