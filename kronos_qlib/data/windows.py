"""Windows over a table of bars: which exist, why others do not, and where their bars are.

Nothing is materialised: bars stay in one table, a window is the row of its last bar seen.
Shape letters: M bars in all, N windows, B windows of a batch, T bars of a window.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.data.calendar import Times
from kronos_qlib.data.table import BarTable, Floats, Ints
from kronos_qlib.errors import BarDataError
from kronos_qlib.schema import CLOSE

Spans = Mapping[str, Sequence[tuple[Any, Any]]]
"""For each instrument, the (first, last) timestamps between which it is in the universe."""

OUTSIDE = "outside the universe"
TOO_FEW = "too few bars before"
TOO_OLD = "oldest bar too old"
CUT = "horizon cut by the segment's end"
UNFINISHED = "horizon not there yet"
NO_BAR = "no bar that day"
REASONS = (NO_BAR, OUTSIDE, TOO_FEW, TOO_OLD, CUT, UNFINISHED)
"""Why an instrument has no window that ends at a moment; the first that applies is counted."""


class RunRows:
    """The rows of runs, one run after another, computed when asked for.

    Windows to train on end at nearly every bar: a number for each would take a sixth of the room
    of the bars, two numbers for each run take none to speak of.

    Args:
        runs: [start, stop) of each, none empty.
    """

    def __init__(self, runs: Sequence[tuple[int, int]]) -> None:
        bounds = np.array(runs, dtype=np.int64).reshape(-1, 2)
        self._starts = bounds[:, 0]
        self._firsts = np.concatenate(([0], np.cumsum(bounds[:, 1] - bounds[:, 0])))

    def __len__(self) -> int:
        return int(self._firsts[-1])

    @property
    def nbytes(self) -> int:
        return int(self._starts.nbytes + self._firsts.nbytes)

    def __getitem__(self, which: Any) -> Ints:
        """As of an array: a slice or numbers of rows, to these rows."""
        if isinstance(which, slice):
            which = np.arange(*which.indices(len(self)))
        which = np.asarray(which)
        if which.size and not -len(self) <= which.min() <= which.max() < len(self):
            raise IndexError(f"{which.min()} to {which.max()} of {len(self)} rows")
        which = np.where(which < 0, which + len(self), which)
        run = np.searchsorted(self._firsts, which, side="right") - 1
        return np.asarray(self._starts[run] + (which - self._firsts[run]))


Rows = npt.NDArray[np.signedinteger[Any]] | RunRows


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows over a table: each is some bars seen, `lookback` at most, and `ahead` bars after.

    ends: (N,) the table's row of each window's last bar seen. Windows to score stand by (time,
        instrument), windows to train on by (instrument, time).
    lengths: (N,) int32, bars seen of each; None where all have `lookback`.
    dropped: how many candidates were no window, by reason; only as found, not after `take`.
    """

    table: BarTable
    ends: Rows
    lookback: int
    ahead: int = 0
    lengths: npt.NDArray[np.int32] | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def index(self) -> pd.MultiIndex:
        """(datetime, instrument) of each window, datetime being its last bar seen."""
        names = np.asarray(self.table.instruments, dtype=object)
        owners = names[self.table.instrument_of(self.ends[:])]
        return pd.MultiIndex.from_arrays(
            [pd.DatetimeIndex(self.times), owners], names=["datetime", "instrument"]
        )

    @property
    def times(self) -> Times:
        """(N,) datetime64[ns] of the last bars seen."""
        return self.table.times_at(self.ends[:])

    @property
    def last_close(self) -> Floats:
        """(N,) close of the last bar seen, in money."""
        closes: Floats = self.table.values[self.ends[:], CLOSE]
        return closes

    def rows(self, which: Ints | slice) -> Ints:
        """(B, lookback + ahead) table rows of the chosen windows.

        Raises:
            BarDataError: windows differ in length; take them `by_length`.
        """
        if self.lengths is not None:
            raise BarDataError("windows of several lengths have no rows in one array: by_length()")
        offsets = np.arange(1 - self.lookback, self.ahead + 1)
        return self.ends[which][:, None].astype(np.int64) + offsets

    def bars(self, which: Ints | slice) -> Floats:
        """(B, lookback + ahead, 6) bars of the chosen windows, in their own units."""
        return self.table.values[self.rows(which)]

    def take(self, which: Ints | slice) -> Windows:
        """The chosen windows only."""
        lengths = None if self.lengths is None else self.lengths[which]
        return Windows(self.table, self.ends[which], self.lookback, self.ahead, lengths)

    def by_time(self) -> Windows:
        """All of them by (time, instrument)."""
        ends, lengths = _by_time(self.table, self.ends[:], self.lengths)
        return Windows(self.table, ends, self.lookback, self.ahead, lengths, self.dropped)

    def by_length(self) -> Iterator[tuple[Ints, Windows]]:
        """Groups of windows that have seen equally many bars: places among these, and windows."""
        if self.lengths is None:
            if len(self):
                yield np.arange(len(self)), self.take(slice(None))
            return
        for length in np.unique(self.lengths).tolist():
            which = np.flatnonzero(self.lengths == length)
            yield which, Windows(self.table, self.ends[which], length, self.ahead)

    def moments(self) -> list[slice]:
        """The runs of windows that end at one moment, in order of time.

        Raises:
            BarDataError: they do not stand by time; take them `by_time`.
        """
        steps = np.diff(self.table.places[self.ends[:]].astype(np.int64))
        if (steps < 0).any():
            raise BarDataError("windows stand by instrument, not by time: by_time()")
        starts = [0, *(np.flatnonzero(steps) + 1).tolist(), len(self)]
        return [slice(*pair) for pair in pairwise(starts)] if len(self) else []

    def describe(self, which: Ints | slice) -> list[str]:
        """Names of windows for a message: instrument and last bar seen."""
        return [f"{name} at {moment:%Y-%m-%d %H:%M}" for moment, name in self.take(which).index]


def windows_to_score(
    table: BarTable,
    lookback: int,
    first: Any = None,
    last: Any = None,
    spans: Spans | None = None,
    max_age_days: int | None = None,
    min_bars: int | None = None,
) -> Windows:
    """Windows whose last bar lies in a segment, whatever comes after it.

    Args:
        lookback: bars a window sees; with `min_bars`, at most.
        first, last: the segment, both inclusive; None leaves it open.
        spans: the universe: the last bar must lie in one of its instrument's spans. The bars
            before it may be older than the span.
        max_age_days: calendar days the oldest bar may lie before the last one, so that an
            instrument back from a long suspension does not reach years back.
        min_bars: bars a window needs. None: exactly `lookback`. Fewer lets windows begin later,
            where an instrument has no older bars or these are too old.

    Returns:
        The windows by (time, instrument), and in `dropped` what became of the other candidates:
        every time of the calendar in the segment at which an instrument is in the universe
        (without `spans`: from its first bar to its last), and bars outside the universe.

    Raises:
        BarDataError: the numbers of bars make no window.
    """
    found = _find(table, lookback, 0, first, last, spans, max_age_days, min_bars)
    return found.by_time()


def windows_to_train(
    table: BarTable,
    lookback: int,
    horizon: int,
    first: Any = None,
    last: Any = None,
    spans: Spans | None = None,
    max_age_days: int | None = None,
    min_bars: int | None = None,
) -> Windows:
    """Windows whose horizon lies in a segment: no bar after `last`, the next after `first`.

    Their lookbacks may begin before the segment; whoever trains on them counts only bars inside
    it (`gather` says which), so two segments share no target: the purge.
    """
    return _find(table, lookback, horizon, first, last, spans, max_age_days, min_bars)


def end_of_day(moment: Any) -> np.datetime64:
    """The last instant that `moment` covers: a bare date covers its whole day."""
    stamp = pd.Timestamp(moment)
    if stamp == stamp.normalize():
        stamp = stamp + pd.Timedelta(days=1) - pd.Timedelta(nanoseconds=1)
    return stamp.as_unit("ns").to_datetime64()


@dataclass(frozen=True)
class _Era:
    """A stretch of the calendar: the places from `start` up to, without, `stop`."""

    start: int
    stop: int

    def within(self, other: _Era) -> _Era:
        start = max(self.start, other.start)
        return _Era(start, max(start, min(self.stop, other.stop)))


def _era_of(calendar: Times, first: Any, last: Any) -> _Era:
    start, stop = 0, len(calendar)
    if first is not None:
        begin = pd.Timestamp(first).as_unit("ns").to_datetime64()
        start = int(np.searchsorted(calendar, begin, side="left"))
    if last is not None:
        stop = int(np.searchsorted(calendar, end_of_day(last), side="right"))
    return _Era(start, max(start, stop))


def _find(
    table: BarTable,
    lookback: int,
    ahead: int,
    first: Any,
    last: Any,
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
    segment = _era_of(table.calendar, first, last)
    known: dict[tuple[Any, Any], _Era] = {}  # most instruments share their spans

    def era_of(span: tuple[Any, Any]) -> _Era:
        if span not in known:
            known[span] = _era_of(table.calendar, *span)
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
    return Windows(table, ends, lookback, ahead, lengths, found)


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

    def rows_of(era: _Era) -> tuple[int, int]:
        start, stop = np.searchsorted(places, (era.start, era.stop)).tolist()
        return begin + start, begin + stop

    start, stop = rows_of(segment)
    if ahead and begin < start < end:
        start -= 1  # a window to train on belongs to the segment in which its horizon begins
    if universe is None:
        listed = _Era(int(places[0]), int(places[-1]) + 1) if begin < end else _Era(0, 0)
        universe = [listed]
    members = []
    for era in universe:
        due = era.within(segment)
        traded_from, traded_to = rows_of(due)
        dropped[NO_BAR] += (due.stop - due.start) - (traded_to - traded_from)
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
    ends: npt.NDArray[np.signedinteger[Any]],
    lengths: npt.NDArray[np.int32] | None,
    least: int,
    max_age_days: int,
    dropped: Counter[str],
) -> tuple[npt.NDArray[np.signedinteger[Any]], npt.NDArray[np.int32] | None]:
    """Without the windows whose `least` newest bars reach too far back; others shortened."""
    age = np.timedelta64(max_age_days, "D")
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


def _by_time(
    table: BarTable,
    ends: npt.NDArray[np.signedinteger[Any]],
    lengths: npt.NDArray[np.int32] | None,
) -> tuple[npt.NDArray[np.signedinteger[Any]], npt.NDArray[np.int32] | None]:
    """Both by (time, instrument): in the order of rows, which stand by instrument, among times.

    Ends take 4 bytes where the table allows, as many windows as bars there may be.
    """
    small = len(table) <= np.iinfo(np.int32).max
    if lengths is not None or not small:
        order = np.lexsort((ends, table.places[ends]))
        ends = ends[order].astype(np.int32 if small else np.int64)
        return ends, None if lengths is None else lengths[order]
    # Place and row in one number: one sort in place of an order and a gather, in less memory.
    keys = table.places[ends].astype(np.int64)
    keys <<= 32
    keys |= ends
    keys.sort()
    keys &= 0xFFFFFFFF
    return keys.astype(np.int32), None
