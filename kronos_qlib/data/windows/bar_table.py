"""BarTable: the bars of many instruments in one piece of memory, and how it is filled.

Shape letters: M bars in all, K times of the calendar, I instruments.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.data.calendar.stamps import Times, stamps_of, to_times
from kronos_qlib.data.calendar.time_text import show_span, show_time
from kronos_qlib.data.rules import (
    MAX_MOVE,
    PRICES,
    RULES,
    find_jumps,
    find_small_splits,
    is_sound,
)
from kronos_qlib.data.windows.faulty_bars import (
    EXAMPLES,
    FaultPolicy,
    Floats,
    Incomplete,
    Ints,
    Invalid,
    LeftOut,
    Untraded,
    count_of,
    fault_error,
)
from kronos_qlib.errors import BarDataError, some_of
from kronos_qlib.schema import BAR_COLUMNS, CLOSE, PRICE_COLUMNS, VOLUME

CHUNK = 1 << 20
"""Rows whose closes are looked at together."""

COLUMNS = len(BAR_COLUMNS)


@dataclass(frozen=True, eq=False)
class BarTable:
    """The bars of many instruments, one instrument after another, each in order of time.

    A bar's time is kept as its place in the calendar, in 2 bytes where that has fewer than 65,536
    entries: 12 million datetimes would take a third of the memory of their bars.

    values: (M, 6) float32, contiguous, columns as in `schema.BAR_COLUMNS`.
    places: (M,) uint16 or uint32, where in `calendar` each bar stands.
    calendar: (K,) datetime64[ns], increasing: the moments at which bars close (or their days).
    instruments: (I) their names. offsets: (I + 1,) int64, where each one's rows begin.
    left_out: bars that broke a rule and were left out when it was filled.
    file: the folder that bars and places are mapped from, see `table_files`; None: in memory. A
        pickle of such a table is that folder's name.
    known_checksums: its `checksums`, where they were computed when it was written.
    """

    values: Floats
    places: npt.NDArray[np.unsignedinteger]
    calendar: Times
    instruments: tuple[str, ...]
    offsets: Ints
    left_out: LeftOut = field(default_factory=LeftOut)
    file: Path | None = None
    known_checksums: str | None = None

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self.file is None:
            return super().__reduce_ex__(protocol)
        from kronos_qlib.data.windows.table_files import open_again

        return open_again, (str(self.file), self.known_checksums)

    def __repr__(self) -> str:
        names = some_of(self.instruments)
        span = ""
        if len(self.calendar):
            span = f", {len(self.calendar):,} times from {show_span(self.calendar)}"
        return (
            f"BarTable({len(self.values):,} bars of {len(self.instruments):,} instruments"
            f"{f' ({names})' if names else ''}{span})"
        )

    @classmethod
    def from_frame(
        cls,
        frame: pd.DataFrame,
        incomplete: Incomplete = "error",
        invalid: Invalid = "error",
        untraded: Untraded = "skip",
    ) -> BarTable:
        """Fill from a frame indexed by (instrument, datetime) in any row order.

        A row whose bar is missing (every price NaN, as Qlib has it on a suspended day) is no bar
        and is left out. The calendar is made of the times of all other rows.

        Args:
            frame: columns as in `schema.BAR_COLUMNS`.
            incomplete, invalid, untraded: see `Incomplete`, `Invalid` and `Untraded`; a bar that is
                skipped is no bar either.

        Raises:
            BarDataError: the index has not two levels; a column lacks; a bar has no instrument; an
                instrument has two bars of one time; a bar is incomplete, not finite in float32, or
                breaks a rule.
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
        builder = TableBuilder(calendar, len(values), incomplete, invalid, untraded)
        for number, name in enumerate(names):
            own = slice(*bounds[number : number + 2])
            builder.add(str(name), places[own], values[own])
        return builder.finish()

    @classmethod
    def from_bars(
        cls,
        bars: pd.DataFrame,
        incomplete: Incomplete = "error",
        invalid: Invalid = "error",
        untraded: Untraded = "skip",
    ) -> BarTable:
        """Fill from a long table with columns symbol and date, as `read_bars` gives it.

        Args:
            bars: `schema.LONG_COLUMNS`; factor is not read.
            incomplete, invalid, untraded: as of `from_frame`.

        Raises:
            BarDataError, CalendarError: as of `from_frame`.
        """
        for name in ("symbol", "date"):
            if name not in bars:
                raise BarDataError(f"bars have no column {name!r}")
        return cls.from_frame(bars.set_index(["symbol", "date"]), incomplete, invalid, untraded)

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
    def skipped(self) -> dict[str, int]:
        """How many bars were left out when it was filled, by the rule that they broke."""
        return self.left_out.counts()

    @property
    def checksums(self) -> str:
        """Of values, places, offsets and calendar: other bars, other numbers, names aside."""
        if self.known_checksums is not None:
            return self.known_checksums
        parts = (self.values, self.places, self.offsets, self.calendar.view(np.int64))
        return " ".join(str(zlib.crc32(np.ascontiguousarray(part).data)) for part in parts)

    @cached_property
    def jumps(self) -> Ints:
        """Rows at which a close arrives that is implausible, see `rules.find_jumps` and
        `find_small_splits`."""
        begins = np.unique(self.offsets[:-1])
        begins = begins[begins < len(self)]
        found = [np.zeros(0, dtype=np.int64)]
        for start in range(0, len(self), CHUNK):
            closes = self.values[max(0, start - 1) : start + CHUNK, CLOSE]
            starts = np.zeros(len(closes), dtype=bool)  # none: an instrument's first row goes below
            rows = find_jumps(closes, starts, MAX_MOVE) + max(0, start - 1)
            found.append(rows[~np.isin(rows, begins)])
        # Whole instruments at a time, so that no flag of every bar is needed.
        edges = [*begins[np.diff(begins // CHUNK, prepend=-1) > 0].tolist(), len(self)]
        for start, stop in pairwise(edges):
            first = np.zeros(stop - start, dtype=bool)
            own = slice(*np.searchsorted(begins, (start, stop)))
            first[begins[own] - start] = True
            found.append(find_small_splits(self.values[start:stop], first) + start)
        return np.unique(np.concatenate(found))

    @property
    def times(self) -> Times:
        """(M,) datetime64[ns] of every bar, made anew: 8 bytes a bar. `times_at` takes few."""
        return np.asarray(self.calendar[self.places])

    def times_at(self, rows: Ints | slice) -> Times:
        """(...) datetime64[ns] of the bars in these rows."""
        return np.asarray(self.calendar[self.places[rows]])

    def stamps_at(self, rows: Ints | slice) -> npt.NDArray[np.int64]:
        """(..., 5) time fields of the bars in these rows."""
        return np.asarray(self.calendar_stamps[self.places[rows]])

    @cached_property
    def calendar_stamps(self) -> npt.NDArray[np.int64]:
        """(K, 5) time fields of the calendar."""
        return stamps_of(self.calendar)

    def instrument_of(self, rows: npt.NDArray[np.signedinteger] | int) -> Ints:
        """Places in `instruments` of the owners of rows."""
        return np.asarray(np.searchsorted(self.offsets, rows, side="right") - 1)

    def name(self, row: int) -> str:
        """Instrument and time of a row, for a message."""
        owner, time = int(self.instrument_of(row)), self.calendar[self.places[row]]
        return f"{self.instruments[owner]} at {show_time(time)}"

    def describe_left_out(self) -> str:
        """What was left out when it was filled, in one sentence; "" if nothing was."""
        out = self.left_out
        if not len(out):
            return ""
        by_rule = ", ".join(f"{count} {rule}" for rule, count in self.skipped.items())
        owners, firsts = np.unique(out.owners, return_index=True)
        names = []
        for owner, first, last in zip(owners, firsts, [*firsts[1:], len(out)], strict=True):
            days = [show_time(self.calendar[place]) for place in out.places[[first, last - 1]]]
            span = days[0] if last - first == 1 else f"{last - first} from {days[0]} to {days[1]}"
            names.append(f"{self.instruments[owner]} {span}")
        return (
            f"{count_of(len(out), 'bar')} left out, as if suspended ({by_rule}): "
            f"{some_of(names, EXAMPLES)}"
        )


class Room(Protocol):
    """Rows that are read and written by slices: an array, or a file of them."""

    def __getitem__(self, rows: Any, /) -> Any: ...

    def __setitem__(self, rows: Any, values: Any, /) -> None: ...


def kind_of_places(calendar: Times) -> type[np.unsignedinteger]:
    """The number type of places in a calendar (K,): uint16 where that is enough, else uint32."""
    return np.uint16 if len(calendar) <= np.iinfo(np.uint16).max else np.uint32


class TableBuilder:
    """Fills a table instrument by instrument, in memory taken once.

    Args:
        calendar: (K,) datetime64[ns], increasing.
        capacity: bars at most; what is not used is never touched, so it costs no memory.
        incomplete, invalid, untraded: see `Incomplete`, `Invalid` and `Untraded`.
        room: of the bars and of their places, in the place of new memory; then `settle` ends it,
            and not `finish`.

    Raises:
        ConfigError: one of them is no such word.
    """

    def __init__(
        self,
        calendar: Times,
        capacity: int,
        incomplete: Incomplete = "error",
        invalid: Invalid = "error",
        untraded: Untraded = "skip",
        room: tuple[Room, Room] | None = None,
    ) -> None:
        self.calendar = calendar
        self._policy = FaultPolicy(incomplete, invalid, untraded)
        self._values: Any
        self._places: Any
        self._values, self._places = room or (
            np.empty((capacity, COLUMNS), dtype=np.float32),
            np.empty(capacity, dtype=kind_of_places(calendar)),
        )
        self._names: list[str] = []
        self._offsets = [0]
        # Instruments to look at again when all are there: whether no volume means no trade
        # depends on the others, and a fault's message counts all of its kind.
        self._suspects: list[int] = []
        self._silent: list[int] = []

    def add(self, name: str, places: npt.NDArray[np.integer], bars: Floats) -> None:
        """The next instrument's bars; one without any keeps its (empty) place among the names.

        Args:
            places: (n,) where in the calendar the bars stand.
            bars: (n, 6) float32; a row without any price (all four NaN) is no bar.

        Raises:
            BarDataError: names the instrument and time of a bar that stands not after the one
                before it.
        """
        is_whole = bool(np.isfinite(bars).all())
        if not is_whole:
            there = ~np.all(np.isnan(bars[:, :PRICES]), axis=1)
            places, bars = places[there], bars[there]
            is_whole = bool(np.isfinite(bars).all())
        steps = np.diff(places.astype(np.int64))
        if (steps <= 0).any():
            at = places[int(np.argmax(steps <= 0)) + 1]
            problem = "two bars of one time" if (steps == 0).any() else "bars out of order"
            raise BarDataError(f"{name} at {show_time(self.calendar[at])}: {problem}")
        if not (is_whole and is_sound(bars)):
            self._suspects.append(len(self._names))
        elif not bars[:, VOLUME:].any():
            self._silent.append(len(self._names))
        start, stop = self._offsets[-1], self._offsets[-1] + len(bars)
        self._values[start:stop] = bars
        self._places[start:stop] = places
        self._names.append(name)
        self._offsets.append(stop)

    def finish(self) -> BarTable:
        """The table. The builder must not be used after that.

        Raises:
            BarDataError: bars break a rule that is an error: names the first by instrument and
                time, and counts them all.
        """
        left_out = self.settle()
        filled = self._offsets[-1]
        return BarTable(
            values=self._values[:filled],
            places=self._places[:filled],
            calendar=self.calendar,
            instruments=tuple(self._names),
            offsets=np.array(self._offsets, dtype=np.int64),
            left_out=left_out,
        )

    def settle(self, into: tuple[Room, Room] | None = None) -> LeftOut:
        """Judge all bars by the rules and leave out what is skipped.

        Args:
            into: where all bars go if some are left out; None closes the gaps where they are.

        Raises:
            BarDataError: as of `finish`.
        """
        return self._leave_out(self._find_faults(), into)

    @property
    def names(self) -> tuple[str, ...]:
        """The instruments so far."""
        return tuple(self._names)

    @property
    def offsets(self) -> Ints:
        """(I + 1,) int64 where each one's rows begin."""
        return np.array(self._offsets, dtype=np.int64)

    def last_added(self) -> dict[str, Any]:
        """What `go_on` needs to know of the instrument added last; numbers and text."""
        number = len(self._names) - 1
        return {
            "name": self._names[-1],
            "stop": self._offsets[-1],
            "suspect": number in self._suspects[-1:],
            "silent": number in self._silent[-1:],
        }

    def go_on(self, added: Mapping[str, Any]) -> None:
        """Take an instrument as added whose bars are in the room already."""
        number = len(self._names)
        self._suspects += [number] * bool(added["suspect"])
        self._silent += [number] * bool(added["silent"])
        self._names.append(str(added["name"]))
        self._offsets.append(int(added["stop"]))

    def _find_faults(self) -> dict[int, tuple[Ints, Ints]]:
        """For each instrument with faults the bars that have one, (n,) counted from its first, and
        for each the place in RULES of the first rule that it breaks."""
        silent = set(self._silent)
        trades = {number: self._trades(number) for number in self._suspects}
        # An instrument that is neither suspect nor silent has volume in every bar.
        others = len(self._names) > len(self._suspects) + len(silent) or any(trades.values())
        found = {}
        for number in sorted([*self._suspects, *(silent if others else ())]):
            bars = self._values[slice(*self._offsets[number : number + 2])]
            rules = self._policy.broken_rules(bars, others_trade=others)
            if len(broken := np.flatnonzero(rules >= 0)):
                found[number] = broken, rules[broken]
        return found

    def _trades(self, number: int) -> bool:
        bars = self._values[slice(*self._offsets[number : number + 2])]
        return bool((bars[:, VOLUME:] > 0).any())

    def _leave_out(
        self, found: Mapping[int, tuple[Ints, Ints]], into: tuple[Room, Room] | None
    ) -> LeftOut:
        """Close the gaps of what is skipped; refuse what is an error."""
        wrong = self._policy.errors
        for number, (_, rules) in found.items():
            if np.isin(rules, wrong).any():
                raise self._refused(number, found, wrong)
        if not found:
            return LeftOut()
        owners, places, broken = [], [], []
        first = min(found) if into is None else 0
        to_values, to_places = into or (self._values, self._places)
        filled = self._offsets[first]
        starts = list(self._offsets)
        for number in range(first, len(self._names)):
            own = slice(*starts[number : number + 2])
            values, times = self._values[own], self._places[own]
            if number in found:
                gone, rules = found[number]
                owners.append(np.full(len(gone), number, dtype=np.int64))
                places.append(times[gone].astype(np.int64))
                broken.append(rules)
                kept = np.ones(len(values), dtype=bool)
                kept[gone] = False
                values, times = values[kept], times[kept]
            stop = filled + len(values)
            to_values[filled:stop] = values
            to_places[filled:stop] = times
            filled = self._offsets[number + 1] = stop
        return LeftOut(np.concatenate(owners), np.concatenate(places), np.concatenate(broken))

    def _refused(
        self, number: int, found: Mapping[int, tuple[Ints, Ints]], wrong: list[int]
    ) -> BarDataError:
        """The first bar at fault, and how many more there are of its kind and of others."""
        broken, rules = found[number]
        which = int(np.argmax(np.isin(rules, wrong)))
        rule, at = RULES[rules[which]], self._offsets[number] + int(broken[which])
        alike = {
            self._names[other]: int((rules == RULES.index(rule)).sum())
            for other, (_, rules) in found.items()
            if (rules == RULES.index(rule)).any()
        }
        others = sum(int(np.isin(rules, wrong).sum()) for _, rules in found.values())
        others -= sum(alike.values())
        row = slice(at, at + 1)
        time = self.calendar[self._places[row][0]]
        where = f"{self._names[number]} at {show_time(time)}"
        return fault_error(where, rule, self._values[row][0], alike, others)
