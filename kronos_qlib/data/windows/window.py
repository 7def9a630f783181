"""Windows over a table of bars: where each one's bars are.

Nothing is materialised: bars stay in one table, a window is the row of its last bar seen.
Shape letters: M bars in all, N windows, B windows of a batch, T bars of a window.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.data.calendar.stamps import Times
from kronos_qlib.data.calendar.time_text import show_span
from kronos_qlib.data.rules import MAX_MOVE, show_jump
from kronos_qlib.data.windows.bar_table import BarTable
from kronos_qlib.data.windows.faulty_bars import Floats, Ints
from kronos_qlib.errors import BarDataError, some_of
from kronos_qlib.log import progress
from kronos_qlib.schema import CLOSE

AT_ONCE = 1024
"""Windows of a moment that are read together, at most, so that scoring a day of 5,000 names takes
no more memory than one of 1,000."""


class RunRows:
    """The rows of runs, one run after another, computed when asked for.

    Windows to train on end at nearly every bar: a number for each would take a sixth of the memory
    of the bars, two numbers for each run take next to nothing.

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
        """Bytes of the bounds of the runs."""
        return int(self._starts.nbytes + self._firsts.nbytes)

    def __getitem__(self, which: Any) -> Ints:
        """As of an array: a slice or numbers of rows, to these rows."""
        if isinstance(which, slice):
            which = np.arange(*which.indices(len(self)))
        which = np.asarray(which)
        if which.dtype == bool and which.shape == (len(self),):
            which = np.flatnonzero(which)
        if which.dtype.kind not in "iu" and which.size:
            raise IndexError(f"rows are chosen by whole numbers or a flag each, got {which.dtype}")
        which = which.astype(np.int64)
        if which.size and not -len(self) <= which.min() <= which.max() < len(self):
            raise IndexError(f"{which.min()} to {which.max()} of {len(self)} rows")
        which = np.where(which < 0, which + len(self), which)
        run = np.searchsorted(self._firsts, which, side="right") - 1
        return np.asarray(self._starts[run] + (which - self._firsts[run]))


Rows = npt.NDArray[np.signedinteger] | RunRows


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows over a table: each is some bars seen, `lookback` at most, and `ahead` bars after.

    ends: (N,) the table's row of each window's last bar seen. Windows to score stand by (time,
        instrument), windows to train on by (instrument, time).
    lengths: (N,) int32, bars seen of each; None where all have `lookback`.
    dropped: how many candidates were no window, by reason; only as found, not after `take`.
    begin: place in the table's calendar of the first bar that is a target; a loss counts none
        before it. Of windows to train on it is where their segment begins, else 0.
    """

    table: BarTable
    ends: Rows
    lookback: int
    ahead: int = 0
    lengths: npt.NDArray[np.int32] | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)
    begin: int = 0

    def __len__(self) -> int:
        return len(self.ends)

    def __repr__(self) -> str:
        span = f", ending from {show_span(np.sort(self.times))}" if len(self) else ""
        seen = f"{self.lookback} bars" if self.lengths is None else f"up to {self.lookback} bars"
        ahead = f" and {self.ahead} ahead" if self.ahead else ""
        return f"Windows({len(self):,} of {seen}{ahead}{span})"

    @property
    def index(self) -> pd.MultiIndex:
        """(datetime, instrument) of each window, datetime being its last bar seen."""
        names = np.asarray(self.table.instruments, dtype=object)
        owners = names[self.table.instrument_of(self.ends[:])]
        return pd.MultiIndex.from_arrays(
            [pd.DatetimeIndex(self.times), owners], names=["datetime", "instrument"]
        )

    def keys(self, by_name: bool = True) -> list[str]:
        """What the random numbers of each window's paths are drawn by: its moment and its name.

        Args:
            by_name: False leaves the name out, so that all windows of a moment have the same.
        """
        return [
            f"{name} {moment.isoformat()}" if by_name else moment.isoformat()
            for moment, name in self.index
        ]

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
        return replace(self, ends=self.ends[which], lengths=lengths, dropped={})

    def cut(self, lookback: int) -> Windows:
        """The same windows with at most `lookback` bars seen: the newest.

        Raises:
            BarDataError: `lookback` is not from 2 to the windows' own.
        """
        if not 2 <= lookback <= self.lookback:
            raise BarDataError(
                f"windows of {self.lookback} bars are cut to 2 to {self.lookback}, got {lookback}"
            )
        lengths = None if self.lengths is None else np.minimum(self.lengths, lookback)
        if lengths is not None and (lengths == lookback).all():
            lengths = None
        return replace(self, lookback=lookback, lengths=lengths)

    def by_time(self) -> Windows:
        """All of them by (time, instrument)."""
        ends, lengths = _by_time(self.table, self.ends[:], self.lengths)
        return replace(self, ends=ends, lengths=lengths)

    def by_length(self) -> Iterator[tuple[Ints, Windows]]:
        """Groups of windows that have seen equally many bars: places among these, and windows."""
        if self.lengths is None:
            if len(self):
                yield np.arange(len(self)), self.take(slice(None))
            return
        for length in np.unique(self.lengths).tolist():
            which = np.flatnonzero(self.lengths == length)
            yield which, replace(self.take(which), lookback=length, lengths=None)

    def in_blocks(self) -> Iterator[tuple[Ints, Windows]]:
        """As `by_length`, but of at most AT_ONCE windows each: places among these, and windows."""
        for which, group in self.by_length():
            count = -(-len(group) // AT_ONCE)
            edges = [len(group) * part // count for part in range(count + 1)]
            for start, stop in pairwise(edges):
                yield which[start:stop], group.take(slice(start, stop))

    def seen(self, last: int | None = None) -> tuple[Floats, npt.NDArray[np.int64]]:
        """What a predictor reads of windows of one length.

        Args:
            last: number of newest bars to return; None: all that each window has seen.

        Returns:
            (N, T, 6) bars in their own units, and (N, T, 5) time fields.

        Raises:
            BarDataError: windows differ in length; take them `by_length`.
        """
        length = self.lookback if last is None else min(last, self.lookback)
        rows = self.rows(slice(None))[:, self.lookback - length : self.lookback]
        return self.table.values[rows], self.table.stamps_at(rows)

    def by_day(self, what: str = "", show_progress: bool = False) -> Iterator[DayGroup]:
        """Those of each moment that have seen equally many bars: the order of all scoring.

        Of a moment with very many names they come `in_blocks`, one group after another. A batch is
        made of one day's windows alone, since a matrix product rounds by its shape: a day scored by
        itself, in a backtest, or before later bars existed gets the same bits.

        Args:
            what, show_progress: title of a progress bar over the days, and whether there is one.

        Raises:
            BarDataError: they do not stand by time; take them `by_time`.
        """
        days = progress(self.moments(), what, unit="day", show=show_progress)
        for day, places in enumerate(days):
            for which, group in self.take(places).in_blocks():
                yield DayGroup(day, places.start + which, group)

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

    def jumps(self) -> tuple[Ints, Ints]:
        """Places of the windows in whose lookback a close jumps, and the row of the newest jump.

        A jump is what `rules.find_jumps` finds: a split that was not adjusted is one, and seems to
        the network to be a crash.
        """
        jumps, ends = self.table.jumps, np.asarray(self.ends[:])
        if not len(jumps) or not len(ends):
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        newest = jumps[np.maximum(np.searchsorted(jumps, ends, side="right") - 1, 0)]
        lengths = self.lookback if self.lengths is None else self.lengths
        # It arrives at a bar of the window whose bar before is in the window too.
        inside = (newest <= ends) & (newest > ends - lengths + 1)
        return np.flatnonzero(inside), newest[inside]

    def describe_jumps(self) -> str:
        """How many windows span a jump, with some of these, in one sentence; "" if none does."""
        which, rows = self.jumps()
        if not len(which):
            return ""
        table, each = self.table, np.unique(rows)
        closes = table.values[each[:, None] + [-1, 0], CLOSE].astype(np.float64)
        shown = [
            f"{table.name(row)} {show_jump(before, after)}"
            for row, (before, after) in zip(each.tolist(), closes, strict=True)
        ]
        return (
            f"{len(which)} of {len(self)} windows span a close that moves by more than "
            f"{MAX_MOVE:.0%} to the next, or as a split 3:2 or 4:3 would, {len(each)} in all: "
            f"{some_of(shown, between='; ')}. A split that the prices are not adjusted for reads "
            "as a crash: see that they are (repair split-jumps where the data were made)"
        )

    def describe(self, which: Ints | slice) -> list[str]:
        """Names of windows for a message: instrument and last bar seen."""
        return [f"{name} at {moment:%Y-%m-%d %H:%M}" for moment, name in self.take(which).index]


class DayGroup(NamedTuple):
    """Windows of one moment and one length, all or a block, that `Windows.by_day` walks through."""

    day: int
    """Which of the moments, from 0."""
    places: Ints
    """(B,) where they stand among all windows."""
    windows: Windows


def _by_time(
    table: BarTable,
    ends: npt.NDArray[np.signedinteger],
    lengths: npt.NDArray[np.int32] | None,
) -> tuple[npt.NDArray[np.signedinteger], npt.NDArray[np.int32] | None]:
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
