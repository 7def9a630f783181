"""BarTable: the bars of many instruments in one piece of memory, and how it is filled.

Shape letters: M bars in all, K times of the calendar, I instruments.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.data.calendar import Times, stamps_of, to_times
from kronos_qlib.errors import BarDataError
from kronos_qlib.schema import BAR_COLUMNS, PRICE_COLUMNS

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Incomplete = Literal["error", "skip"]
"""What to do with a bar that has some of its values and lacks others."""

COLUMNS = len(BAR_COLUMNS)
PRICES = len(PRICE_COLUMNS)


@dataclass(frozen=True, eq=False)
class BarTable:
    """The bars of many instruments, one instrument after another, each in order of time.

    A bar's time is kept as its place in the calendar, in 2 bytes where that has fewer than 65,536
    entries: 12 million datetimes would take a third of the room of their bars.

    values: (M, 6) float32, contiguous, columns as in `schema.BAR_COLUMNS`.
    places: (M,) uint16 or uint32, where in `calendar` each bar stands.
    calendar: (K,) datetime64[ns], increasing: the moments at which bars close (or their days).
    instruments: (I) their names. offsets: (I + 1,) int64, where each one's rows begin.
    skipped: incomplete bars that were left out when it was filled.
    """

    values: Floats
    places: npt.NDArray[np.unsignedinteger[Any]]
    calendar: Times
    instruments: tuple[str, ...]
    offsets: Ints
    skipped: int = 0

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, incomplete: Incomplete = "error") -> BarTable:
        """Fill from a frame indexed by (instrument, datetime) in any row order.

        A row whose bar is missing (every price NaN, as Qlib has it on a suspended day) is no bar
        and is left out. The calendar is made of the times of all other rows.

        Args:
            frame: columns as in `schema.BAR_COLUMNS`.
            incomplete: see `Incomplete`; an incomplete bar that is skipped is no bar either.

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
        frame = frame[frame[list(PRICE_COLUMNS)].notna().any(axis=1)]
        codes, names = pd.factorize(frame.index.get_level_values(0), sort=True)
        if (codes < 0).any():
            raise BarDataError(f"{int((codes < 0).sum())} bars have no instrument's name")
        times = to_times(frame.index.get_level_values(1))
        order = np.lexsort((times, codes))
        codes, times = codes[order], times[order]
        calendar, places = np.unique(times, return_inverse=True)
        with np.errstate(over="ignore"):
            values = frame.to_numpy(dtype=np.float64)[order].astype(np.float32)
        bounds = np.searchsorted(codes, np.arange(len(names) + 1))
        builder = TableBuilder(calendar, len(values), incomplete)
        for number, name in enumerate(names):
            own = slice(*bounds[number : number + 2])
            builder.add(str(name), places[own], values[own])
        return builder.finish()

    @classmethod
    def from_bars(cls, bars: pd.DataFrame, incomplete: Incomplete = "error") -> BarTable:
        """Fill from a long table with columns symbol and date, as `tables.read_bars` gives it."""
        for name in ("symbol", "date"):
            if name not in bars:
                raise BarDataError(f"bars have no column {name!r}")
        return cls.from_frame(bars.set_index(["symbol", "date"]), incomplete)

    @classmethod
    def empty(cls) -> BarTable:
        """A table of no instrument."""
        return TableBuilder(np.array([], dtype="datetime64[ns]"), 0).finish()

    def __len__(self) -> int:
        return len(self.values)

    @property
    def nbytes(self) -> int:
        """Bytes of the bars and their places."""
        return int(self.values.nbytes + self.places.nbytes)

    @property
    def times(self) -> Times:
        """(M,) datetime64[ns] of every bar, made anew: 8 bytes a bar. `times_at` takes few."""
        return np.asarray(self.calendar[self.places])

    def times_at(self, rows: Any) -> Times:
        """(...) datetime64[ns] of the bars in these rows."""
        return np.asarray(self.calendar[self.places[rows]])

    def stamps_at(self, rows: Any) -> npt.NDArray[np.int64]:
        """(..., 5) time fields of the bars in these rows."""
        return np.asarray(self.calendar_stamps[self.places[rows]])

    @cached_property
    def calendar_stamps(self) -> npt.NDArray[np.int64]:
        """(K, 5) time fields of the calendar."""
        return stamps_of(self.calendar)

    def instrument_of(self, rows: Any) -> Ints:
        """Places in `instruments` of the owners of rows."""
        return np.asarray(np.searchsorted(self.offsets, rows, side="right") - 1)

    def name(self, row: int) -> str:
        """Instrument and time of a row, for a message."""
        return f"{self.instruments[int(self.instrument_of(row))]} at {_text(self.times_at(row))}"


class TableBuilder:
    """Fills a table instrument by instrument, in memory taken once.

    Args:
        calendar: (K,) datetime64[ns], increasing.
        capacity: bars at most; what is not used is never touched, so it costs no memory.
        incomplete: see `Incomplete`.
    """

    def __init__(self, calendar: Times, capacity: int, incomplete: Incomplete = "error") -> None:
        self.calendar = calendar
        self.incomplete = incomplete
        narrow = len(calendar) <= np.iinfo(np.uint16).max
        self._values = np.empty((capacity, COLUMNS), dtype=np.float32)
        kind: type[np.unsignedinteger[Any]] = np.uint16 if narrow else np.uint32
        self._places = np.empty(capacity, dtype=kind)
        self._filled = 0
        self._names: list[str] = []
        self._offsets = [0]
        self._skipped = 0

    def add(self, name: str, places: npt.NDArray[Any], bars: Floats) -> None:
        """The next instrument's bars; one without any keeps its (empty) place among the names.

        Args:
            places: (n,) where in the calendar the bars stand.
            bars: (n, 6) float32; a row without any price (all four NaN) is no bar.

        Raises:
            BarDataError: names the instrument and time of the first bar that is incomplete, or
                stands not after the one before it.
        """
        if not np.isfinite(bars).all():
            there = ~np.all(np.isnan(bars[:, :PRICES]), axis=1)
            broken = np.asarray(there & ~np.all(np.isfinite(bars), axis=1))
            if broken.any() and self.incomplete == "error":
                raise self._incomplete(name, places, bars, broken)
            self._skipped += int(broken.sum())
            whole = there & ~broken
            places, bars = places[whole], bars[whole]
        steps = np.diff(places.astype(np.int64))
        if (steps <= 0).any():
            at = places[int(np.argmax(steps <= 0)) + 1]
            problem = "two bars of one time" if (steps == 0).any() else "bars out of order"
            raise BarDataError(f"{name} at {_text(self.calendar[at])}: {problem}")
        stop = self._filled + len(bars)
        self._values[self._filled : stop] = bars
        self._places[self._filled : stop] = places
        self._filled = stop
        self._names.append(name)
        self._offsets.append(stop)

    def finish(self) -> BarTable:
        """The table. The builder must not be used after that."""
        return BarTable(
            values=self._values[: self._filled],
            places=self._places[: self._filled],
            calendar=self.calendar,
            instruments=tuple(self._names),
            offsets=np.array(self._offsets, dtype=np.int64),
            skipped=self._skipped,
        )

    def _incomplete(
        self, name: str, places: npt.NDArray[Any], bars: Floats, broken: npt.NDArray[np.bool_]
    ) -> BarDataError:
        row = int(np.argmax(broken))
        lacking = [BAR_COLUMNS[place] for place in np.flatnonzero(~np.isfinite(bars[row]))]
        verb = "is" if len(lacking) == 1 else "are"
        return BarDataError(
            f"{name} at {_text(self.calendar[places[row]])}: {', '.join(lacking)} {verb} missing "
            f"or not finite beside values that are given ({int(broken.sum())} such bars of "
            f"{name}); repair the bars (data_prep/check_bars.py lists them) or leave such bars out "
            "with incomplete='skip'"
        )


def _text(moment: Any) -> str:
    return str(np.datetime_as_string(moment, unit="m"))
