"""Windows over an instrument's bars: which exist, how they are gathered, how they are scaled.

Nothing is materialised: bars stay in one table, a window is the row of its last bar seen.
Shape letters: M bars in all, N windows, B windows of a batch, T bars of a window, C columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.data.calendar import Times, stamps_of, to_times
from kronos_qlib.errors import BarDataError
from kronos_qlib.schema import BAR_COLUMNS, CLOSE

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Spans = Mapping[str, Sequence[tuple[Any, Any]]]
"""For each instrument, the (first, last) timestamps between which it is in the universe."""

SPREAD_FLOOR = 1e-5
"""Added to the spread, as in the published code."""
LEAST_LEVEL = 0.01
"""Columns whose largest value is below this get a smaller floor."""
Z_LIMIT = 5.0


@dataclass(frozen=True)
class WindowScale:
    """Level and spread of each window's lookback, from past bars only.

    mean, spread: (B, 1, C) float32, each in its column's own unit (price, shares, money).
    """

    mean: Floats
    spread: Floats

    @classmethod
    def of(cls, past: Floats) -> WindowScale:
        """Of lookbacks (B, T, C): mean, and population standard deviation plus a floor.

        The floor is 1e-5 in the column's own unit, as published. For a column whose level is
        below 0.01 (a coin at 0.00001) it would swallow the spread (fault 8): there it is 1e-5 of
        a millionth, or of a millionth of that, as if prices were quoted per million coins.
        """
        wide = past.astype(np.float64)  # volumes near 1e9 lose digits in a float32 sum
        mean = wide.mean(axis=1, keepdims=True)
        level = np.abs(wide).max(axis=1, keepdims=True)
        with np.errstate(divide="ignore"):
            millions = np.ceil(np.log(LEAST_LEVEL / level) / np.log(1e6))
        unit = np.where((level > 0) & (level < LEAST_LEVEL), 1e-6 ** np.clip(millions, 0, 5), 1.0)
        spread = wide.std(axis=1, keepdims=True) + SPREAD_FLOOR * unit
        return cls(mean.astype(np.float32), spread.astype(np.float32))

    def to_z(self, bars: Floats, clip: float = Z_LIMIT) -> Floats:
        """Bars (B, T, C) to z-scores, clipped; a clipped entry does not invert."""
        z: Floats = np.clip((bars - self.mean) / self.spread, -clip, clip)
        return z

    def to_bars(self, z: Floats) -> Floats:
        return z * self.spread + self.mean


@dataclass(frozen=True)
class BarTable:
    """The bars of many instruments, one instrument after another, each in order of time.

    values: (M, 6) float32, columns as in `schema.BAR_COLUMNS`.
    times: (M,) datetime64[ns], the moment each bar closes (or its day).
    instruments: their names. offsets: (instruments + 1,) int64, where each one's rows begin.
    """

    values: Floats
    times: Times
    instruments: tuple[str, ...]
    offsets: Ints

    @classmethod
    def from_frame(cls, frame: pd.DataFrame) -> BarTable:
        """Build from a frame indexed by (instrument, datetime) in any row order.

        A row whose bar is missing (every price NaN, as Qlib has it on a suspended day) is no bar
        and is left out.

        Args:
            frame: columns as in `schema.BAR_COLUMNS`.

        Raises:
            BarDataError: the index has not two levels; a column lacks; a bar has no instrument; an
                instrument has two bars of one time; a bar is incomplete, or not finite in float32.
            CalendarError: a bar's time is missing or cannot be read.
        """
        if frame.index.nlevels != 2:
            raise BarDataError(
                "bars need an index of (instrument, datetime), got one of "
                f"{frame.index.nlevels} level(s): {', '.join(map(str, frame.index.names))}"
            )
        missing = [name for name in BAR_COLUMNS if name not in frame.columns]
        if missing:
            raise BarDataError(f"bars lack the columns {', '.join(missing)}")
        frame = frame.loc[:, list(BAR_COLUMNS)]
        frame = frame[frame[list(BAR_COLUMNS[:4])].notna().any(axis=1)]
        codes, names = pd.factorize(frame.index.get_level_values(0), sort=True)
        if (codes < 0).any():
            raise BarDataError(f"{int((codes < 0).sum())} bars have no instrument's name")
        times = to_times(frame.index.get_level_values(1))
        order = np.lexsort((times, codes))
        codes, times = codes[order], times[order]
        with np.errstate(over="ignore"):
            values = frame.to_numpy(dtype=np.float64)[order].astype(np.float32)
        table = cls(
            values=np.ascontiguousarray(values),
            times=times,
            instruments=tuple(str(name) for name in names),
            offsets=np.searchsorted(codes, np.arange(len(names) + 1)).astype(np.int64),
        )
        table._check(codes)
        return table

    def _check(self, codes: npt.NDArray[np.intp]) -> None:
        finite = np.isfinite(self.values)
        if not finite.all():
            row, column = np.argwhere(~finite)[0]
            raise BarDataError(
                f"{self._name(row)}: {BAR_COLUMNS[column]} is missing or not finite beside prices "
                f"that are given; repair the bars first (data_prep/check_bars.py lists them)"
            )
        twice = (np.diff(codes) == 0) & (np.diff(self.times) == np.timedelta64(0, "ns"))
        if twice.any():
            raise BarDataError(f"{self._name(int(np.argmax(twice)))}: two bars of one time")

    def _name(self, row: int) -> str:
        when = np.datetime_as_string(self.times[row], unit="m")
        return f"{self.instruments[int(self.instrument_of(np.array([row]))[0])]} at {when}"

    def __len__(self) -> int:
        return len(self.times)

    def instrument_of(self, rows: Ints) -> Ints:
        """Places in `instruments` of the owners of rows."""
        return np.searchsorted(self.offsets, rows, side="right") - 1

    @cached_property
    def stamps(self) -> npt.NDArray[np.uint8]:
        """(M, 5) time fields of every bar; they all fit a byte."""
        return stamps_of(self.times).astype(np.uint8)


@dataclass(frozen=True)
class Windows:
    """Windows of one shape over a table: each is `lookback` bars seen and `ahead` bars after.

    ends: (N,) int64, the table's row of each window's last bar seen, by (time, instrument).
    """

    table: BarTable
    ends: Ints
    lookback: int
    ahead: int = 0

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def index(self) -> pd.MultiIndex:
        """(datetime, instrument) of each window, datetime being its last bar seen."""
        names = np.asarray(self.table.instruments, dtype=object)
        owners = names[self.table.instrument_of(self.ends)]
        return pd.MultiIndex.from_arrays(
            [pd.DatetimeIndex(self.table.times[self.ends]), owners],
            names=["datetime", "instrument"],
        )

    @property
    def last_close(self) -> Floats:
        """(N,) close of the last bar seen, in money."""
        closes: Floats = self.table.values[self.ends, CLOSE]
        return closes

    def rows(self, which: Ints | slice) -> Ints:
        """(B, lookback + ahead) table rows of the chosen windows."""
        offsets = np.arange(1 - self.lookback, self.ahead + 1)
        return self.ends[which][:, None] + offsets

    def bars(self, which: Ints | slice) -> Floats:
        """(B, lookback + ahead, 6) bars of the chosen windows, in their own units."""
        return self.table.values[self.rows(which)]

    def take(self, which: Ints | slice) -> Windows:
        """The chosen windows only."""
        return Windows(self.table, self.ends[which], self.lookback, self.ahead)

    def moments(self) -> list[slice]:
        """The runs of windows that end at one moment, in order of time."""
        times = self.table.times[self.ends]
        starts = [0, *(np.flatnonzero(np.diff(times)) + 1).tolist(), len(self)]
        return [slice(*pair) for pair in pairwise(starts)] if len(self) else []

    def describe(self, which: Ints | slice) -> list[str]:
        """Names of windows for a message: instrument and last bar seen."""
        return [f"{name} at {moment:%Y-%m-%d %H:%M}" for moment, name in self.index[which]]


def windows_to_score(
    table: BarTable,
    lookback: int,
    first: Any = None,
    last: Any = None,
    spans: Spans | None = None,
    max_age_days: int | None = None,
) -> Windows:
    """Windows whose last bar lies in a segment, whatever comes after it.

    Args:
        lookback: bars a window needs.
        first, last: the segment, both inclusive; None leaves it open.
        spans: the universe: the last bar must lie in one of its instrument's spans. The bars
            before it may be older than the span.
        max_age_days: calendar days the oldest bar may lie before the last one, so that an
            instrument back from a long suspension does not reach years back.
    """
    return _find(table, lookback, 0, first, last, spans, max_age_days)


def windows_to_train(
    table: BarTable,
    lookback: int,
    horizon: int,
    first: Any = None,
    last: Any = None,
    spans: Spans | None = None,
    max_age_days: int | None = None,
) -> Windows:
    """Windows whose horizon lies in a segment: no bar after `last`, the next after `first`.

    Their lookbacks may begin before the segment; whoever trains on them counts only bars inside
    it (`Windows.rows` and the table's times say which), so two segments share no target: the
    purge.
    """
    return _find(table, lookback, horizon, first, last, spans, max_age_days)


def _find(
    table: BarTable,
    lookback: int,
    ahead: int,
    first: Any,
    last: Any,
    spans: Spans | None,
    max_age_days: int | None,
) -> Windows:
    if lookback < 2:
        raise BarDataError(f"a window needs a lookback of at least 2 bars, got {lookback}")
    if ahead < 0:
        raise BarDataError(f"a horizon cannot be negative, got {ahead}")
    rows = np.arange(len(table), dtype=np.int64)
    owner = table.instrument_of(rows)
    fits = (rows - lookback + 1 >= table.offsets[owner]) & (rows + ahead < table.offsets[owner + 1])
    ends = rows[fits]
    if first is not None:
        ends = ends[table.times[ends + min(ahead, 1)] >= np.datetime64(pd.Timestamp(first), "ns")]
    if last is not None:
        ends = ends[table.times[ends + ahead] <= end_of_day(last)]
    if max_age_days is not None:
        age = table.times[ends] - table.times[ends - lookback + 1]
        ends = ends[age <= np.timedelta64(max_age_days, "D")]
    if spans is not None:
        ends = ends[_in_spans(table, ends, spans)]
    by_time = np.lexsort((table.instrument_of(ends), table.times[ends]))
    return Windows(table, ends[by_time], lookback, ahead)


def end_of_day(moment: Any) -> np.datetime64:
    """The last instant that `moment` covers: a bare date covers its whole day."""
    stamp = pd.Timestamp(moment)
    if stamp == stamp.normalize():
        stamp = stamp + pd.Timedelta(days=1) - pd.Timedelta(nanoseconds=1)
    return stamp.as_unit("ns").to_datetime64()


def _in_spans(table: BarTable, ends: Ints, spans: Spans) -> npt.NDArray[np.bool_]:
    inside = np.zeros(len(ends), dtype=bool)
    owner = table.instrument_of(ends)
    times = table.times[ends]
    order = np.argsort(owner, kind="stable")
    bounds = np.searchsorted(owner[order], np.arange(len(table.instruments) + 1))
    for place, name in enumerate(table.instruments):
        mine = order[bounds[place] : bounds[place + 1]]
        for first, last in spans.get(name, ()):
            begin = np.datetime64(pd.Timestamp(first), "ns")
            inside[mine] |= (times[mine] >= begin) & (times[mine] <= end_of_day(last))
    return inside
