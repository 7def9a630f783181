"""Bars, universes and calendars out of Qlib storage, straight from its files where that can be."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from qlib.config import C
from qlib.data import D
from qlib.log import get_module_logger
from qlib.utils.time import Freq

from kronos_qlib.data.calendar.stamps import Times
from kronos_qlib.data.windows.bar_table import (
    BarTable,
    Floats,
    Incomplete,
    Invalid,
    TableBuilder,
    Untraded,
)
from kronos_qlib.data.windows.find import Spans
from kronos_qlib.data.windows.segments import places_of
from kronos_qlib.errors import BarDataError, ConfigError
from kronos_qlib.plugin.provider.faults import (
    RECONVERT,
    check_calendar,
    check_frequency,
    check_future,
    check_market,
    feature_folder,
    missing_folders,
    why_missing,
)
from kronos_qlib.plugin.qlib_internals import data_folder, market_read_anew, reads_files
from kronos_qlib.schema import AMOUNT, BAR_COLUMNS, CLOSE, PRICE_COLUMNS, VOLUME

logger = get_module_logger(__name__)  # Qlib shows its own loggers only

STORED: Mapping[str, str] = {name: f"${name}" for name in BAR_COLUMNS}
"""Qlib's usual field for each column."""

PLAIN_FIELD = re.compile(r"\$\w+", re.ASCII)
FACTOR = "$factor"

Dense = Iterator[tuple[str, npt.NDArray[np.int64], Floats]]
"""For each instrument its name, places in the calendar (n,), and values (n, fields) with NaN."""


def read_table(
    names: Iterable[str],
    freq: str = "day",
    *,
    fields: Mapping[str, str] = STORED,
    raw_volume: bool = False,
    first: Any = None,
    last: Any = None,
    incomplete: Incomplete = "error",
    invalid: Invalid = "error",
    untraded: Untraded = "skip",
    direct: bool | None = None,
) -> BarTable:
    """The bars of some instruments, those of a suspended day (no price) left out.

    They keep the rules of `data.rules`, as bars out of files do.

    Plain fields of a provider that is files on this machine are read from those files; anything
    else goes through `D.features`, which is the same and some 40 times slower. Volume that the
    storage has for no instrument is taken as zeros, amount as volume x mean price.

    Args:
        names: instruments, as Qlib spells them.
        freq: "day", "1min", "5min".
        fields: for each of `schema.BAR_COLUMNS` a field ("$close") or an expression
            ("$volume * $vwap").
        raw_volume: multiply volume by $factor, which turns Qlib's adjusted volume into the shares
            that changed hands. A split then shows as a jump of volume.
        first, last: of the bars' times, both inclusive, a bare date being the whole day.
        incomplete, invalid, untraded: what to do with bars that break a rule, see
            `bar_table.Incomplete`, `Invalid` and `Untraded`; the log counts what is left out.
        direct: True reads files or raises, False always asks Qlib, None chooses.

    Raises:
        BarDataError: a bar breaks a rule (named by instrument and time), an instrument lacks a
            column that others have, no instrument has a field, a file is not what Qlib writes, or
            nothing is there.
        CalendarError: as `read_calendar`.
        ConfigError: `fields` are not those of a bar; direct reading was demanded and cannot be; or
            the folder has no bars of this frequency.
    """
    names = list(dict.fromkeys(names))
    if set(fields) != set(BAR_COLUMNS):
        raise ConfigError(
            f"fields names {', '.join(BAR_COLUMNS)}, each once, got {', '.join(fields) or 'none'}"
        )
    asked = [fields[name] for name in BAR_COLUMNS] + [FACTOR] * raw_volume
    # Volume and amount may be missing from a storage; what was named by hand, or is a price, not.
    needed = {name for name in asked if name not in (STORED["volume"], STORED["amount"])}
    calendar = read_calendar(freq)
    bounds = places_of(calendar, first, last)
    folder = local_folder(freq)
    plain = all(PLAIN_FIELD.fullmatch(name) for name in asked)
    if direct and (folder is None or not plain):
        expressions = [name for name in asked if not PLAIN_FIELD.fullmatch(name)]
        raise ConfigError(
            f"{', '.join(expressions)} cannot be read from files"
            if expressions
            else "the provider is not files on this machine"
        )
    files = None
    if folder is not None:
        files = _Files(folder, freq, asked if plain else _fields_in(asked), calendar)
        if plain:
            _check_stored(needed, files.stored(names), names, freq, folder)
    if files is not None and plain and direct is not False:
        capacity = sum(files.count(name, fields["close"], bounds) for name in names)
        dense: Dense = files.read(names, bounds)
    else:
        if files is not None:  # Qlib reads a damaged file in silence, or names none
            files.check(names)
        capacity, dense = _ask_qlib(names, asked, needed, freq, calendar, bounds, folder)
    builder = TableBuilder(calendar, capacity, incomplete, invalid, untraded)
    columns = _Columns()
    for name, places, values in dense:
        bars = columns.complete(name, values[:, : len(BAR_COLUMNS)])
        if raw_volume:  # after an amount was made of adjusted volume and prices
            bars[:, VOLUME] *= _factors(name, calendar[places], values)
        builder.add(name, places, bars)
    table = builder.finish()
    columns.tell()
    left_out = table.describe_left_out()
    if not len(table):
        reason = _nothing(names, freq, calendar, bounds, folder)
        raise BarDataError(f"{reason}; {left_out}" if left_out else reason)
    if left_out:
        logger.warning(left_out)
    empty = [name for name, bars in zip(names, np.diff(table.offsets), strict=True) if not bars]
    if empty:
        hint = missing_folders(folder, empty) if folder is not None else ""
        logger.warning(
            f"{len(empty)} of {len(names)} instruments have no bars: {', '.join(empty[:10])}"
            f"{', ...' if len(empty) > 10 else ''}{hint}"
        )
    return table


def read_spans(instruments: Any, freq: str = "day") -> Spans | None:
    """When each instrument is in a universe; None for a plain list of names: always.

    Args:
        instruments: a market's name, a Qlib stock pool, or a list of names.

    Raises:
        BarDataError: a line of the market's file cannot be used, or it names nobody.
        ConfigError: the market has no file.
    """
    if isinstance(instruments, (list, tuple, pd.Index, np.ndarray)):
        return None
    pool = D.instruments(instruments) if isinstance(instruments, str) else instruments
    folder = local_folder(freq)
    market = pool.get("market") if isinstance(pool, Mapping) else None
    if folder is not None and isinstance(market, str) and reads_files("instrument"):
        read_calendar(freq)  # says what is wrong with it; Qlib's IndexError names no file
        check_market(folder, market)
    with market_read_anew(pool):
        spans: Spans = D.list_instruments(pool, freq=freq, as_list=False)
    if not spans and folder is not None and not pool.get("filter_pipe"):
        days = read_calendar(freq).astype("datetime64[D]")
        raise BarDataError(
            f"no instrument of the market {market!r} in {folder} is listed on a day of its "
            f"calendar, {days[0]} to {days[-1]}"
        )
    return spans


def read_calendar(freq: str = "day", future: bool = False) -> Times:
    """(K,) datetime64[ns] of the storage's calendar; with `future`, and of what it says is to come.

    Raises:
        CalendarError: a file's line is no time or out of order, or the future calendar is not
            that of these bars. Names file and line.
        ConfigError: the folder is not there, or has no bars of this frequency.
    """
    folder = local_folder(freq)
    if folder is None or not reads_files("calendar"):
        return np.asarray(D.calendar(freq=freq, future=future), dtype="datetime64[ns]")
    check_frequency(folder, freq)
    path = folder / "calendars" / f"{Freq(freq)}{'_future' if future else ''}.txt"
    try:
        found = D.calendar(freq=freq, future=future)
        if len(found) and getattr(found[0], "tzinfo", None) is not None:
            check_calendar(path, None)  # to numpy they would be times of Greenwich
        times = np.asarray(found, dtype="datetime64[ns]")
    except (IndexError, TypeError, ValueError):
        if path.is_file():
            check_calendar(path, None)
        raise
    if path.is_file():
        check_calendar(path, times)
    if future:
        check_future(folder, freq, read_calendar(freq), times)
    return times


def local_folder(freq: str = "day") -> Path | None:
    """The folder of a provider that is files on this machine, as Qlib itself would read them.

    Returns:
        None where bars come from a server or another storage.

    Raises:
        ConfigError: Qlib has no such frequency, or no folder for it.
    """
    if not reads_files():
        return None
    try:
        return data_folder(freq)
    except ValueError as unknown:
        raise ConfigError(f"Qlib knows no freq {freq!r}: give day or as 5min") from unknown
    except KeyError as missing:
        known = ", ".join(C["provider_uri"])
        raise ConfigError(f"there is no folder for freq {freq!r}, only {known}") from missing


class _Files:
    """Feature files: one per instrument and field, a first place and a value per place."""

    def __init__(self, folder: Path, freq: str, fields: Sequence[str], calendar: Times) -> None:
        self.root = f"{folder / 'features'}/"
        self.freq = str(Freq(freq))
        self.fields = fields
        self.calendar = calendar
        # One value more than can be right, so that a longer file is noticed.
        self.buffers = [np.empty(len(calendar) + 2, dtype="<f4") for _ in fields]

    def path(self, name: str, field: str) -> str:
        # A plain string: a Path for each of many thousand files would take as long as reading.
        return f"{self.root}{feature_folder(name)}/{field[1:].lower()}.{self.freq}.bin"

    def count(self, name: str, field: str, bounds: tuple[int, int]) -> int:
        """Values at most that an instrument has within the bounds."""
        try:
            size = Path(self.path(name, field)).stat().st_size
        except FileNotFoundError:
            return 0
        return min(size // 4, bounds[1] - bounds[0])

    def stored(self, names: Iterable[str]) -> set[str]:
        """The fields that are asked for and that some instrument has."""
        wanted, found = set(self.fields), set()
        for name in names:
            found |= {field for field in wanted if Path(self.path(name, field)).is_file()}
            wanted -= found
            if not wanted:
                break
        return found

    def check(self, names: Iterable[str]) -> None:
        """Refuse a file that is not what Qlib writes, whoever is to read it."""
        for name in names:
            for field in dict.fromkeys(self.fields):
                self._values(self.path(name, field), self.buffers[0])

    def read(self, names: Iterable[str], bounds: tuple[int, int]) -> Dense:
        """Instruments one after another, those without a price too: with no bars."""
        for name in names:
            parts = [
                self._values(self.path(name, field), buffer)
                for field, buffer in zip(self.fields, self.buffers, strict=True)
            ]
            prices = [part for part in parts[: CLOSE + 1] if part is not None]
            start = max(bounds[0], min((first for first, _ in prices), default=0))
            stop = min(bounds[1], max((first + len(values) for first, values in prices), default=0))
            stop = max(start, stop)
            dense = np.full((len(parts), stop - start), np.nan, dtype=np.float32)
            for row, part in zip(dense, parts, strict=True):
                if part is not None:
                    first, values = part
                    begin, end = max(start, first), min(stop, first + len(values))
                    if begin < end:
                        row[begin - start : end - start] = values[begin - first : end - first]
            yield name, np.arange(start, stop), dense.T

    def _values(self, path: str, buffer: Floats) -> tuple[int, Floats] | None:
        """The first place and the values of one file, in the buffer; None without a file."""
        try:
            with open(path, "rb", buffering=0) as file:  # noqa: PTH123, as for `path`
                size = file.readinto(buffer.data.cast("B"))
        except FileNotFoundError:
            return None
        if size < 4:
            raise BarDataError(
                f"{path} is no feature file: {size} bytes, as of a write that was cut short; "
                f"{RECONVERT}"
            )
        first = float(buffer[0])
        stop = first + size // 4 - 1
        if size % 4 or not first.is_integer() or first < 0 or stop > len(self.calendar):
            raise BarDataError(self._fault(path, first))
        return int(first), buffer[1 : size // 4]

    def _fault(self, path: str, first: float) -> str:
        size = Path(path).stat().st_size  # the buffer may be shorter
        count = size // 4 - 1
        if size % 4:
            return (
                f"{path} is no feature file of this provider: {size} bytes, of which each number "
                f"takes 4: it was cut short or is something else; {RECONVERT}"
            )
        if not first.is_integer() or first < 0:
            return (
                f"{path} is no feature file of this provider: its {count} values begin at place "
                f"{first:g} of the calendar, and places are whole numbers from 0 on; {RECONVERT}"
            )
        known = len(self.calendar)
        unit = "days" if self.freq == "day" else "times"
        begin = f"place {first:.0f}"
        if first < known:
            begin = str(pd.Timestamp(self.calendar[int(first)])).removesuffix(" 00:00:00")
        return (
            f"{path} holds {count} values from {begin} on, and calendars/{self.freq}.txt has "
            f"{known} {unit}: the calendar is too short, {first + count - known:.0f} values have "
            "no time. File and calendar were written apart: put the calendar back that the files "
            "were written with, or convert the bars again into a new folder"
        )


def _ask_qlib(
    names: Sequence[str],
    fields: Sequence[str],
    needed: Iterable[str],
    freq: str,
    calendar: Times,
    bounds: tuple[int, int],
    folder: Path | None,
) -> tuple[int, Dense]:
    """The same through `D.features`; how many values there are at most, and instruments."""
    start, stop = bounds
    if start >= stop:
        return 0, iter(())
    # A list of names, not the market: Qlib would cut each history where the span begins.
    unique = list(dict.fromkeys(fields))
    frame = D.features(
        list(names),
        unique,
        pd.Timestamp(calendar[start]),
        pd.Timestamp(calendar[stop - 1]),
        freq=freq,
    )
    if len(frame):
        found = {name for name in unique if frame[name].notna().any()}
        _check_stored(needed, found, names, freq, folder)
    frame = frame[list(fields)]

    def instruments() -> Dense:
        groups = dict(tuple(frame.groupby(level=0, sort=False)))
        for name in names:
            own = groups.get(name, frame.iloc[:0])
            times = own.index.get_level_values(1).to_numpy().astype("datetime64[ns]")
            places = np.searchsorted(calendar, times)
            yield name, places, own.to_numpy(dtype=np.float32, copy=True)

    return len(frame), instruments()


def _check_stored(
    needed: Iterable[str],
    found: Iterable[str],
    names: Sequence[str],
    freq: str,
    folder: Path | None,
) -> None:
    """Refuse a field that no instrument has: taken as missing, its numbers would be invented."""
    lacking = sorted(set(needed) - set(found))
    if not lacking:
        return
    field, cause = lacking[0], ""
    if folder is not None:
        # Of an expression, the first field that there is no file of.
        parts = _fields_in([field])
        files = _Files(folder, freq, parts, np.empty(0, dtype="datetime64[ns]"))
        stored = files.stored(names)
        part = next((part for part in parts if part not in stored), field)
        cause = why_missing(folder, freq, names, part.strip("$"))
        if part != field and cause:
            cause = f"{part}: {cause}"
    raise BarDataError(f"no instrument has a value of {field}{f'; {cause}' if cause else ''}")


def _fields_in(expressions: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(PLAIN_FIELD.findall(" ".join(expressions))))


def _factors(name: str, times: Times, values: Floats) -> Floats:
    """(n,) the last column of values: $factor, which every bar needs."""
    lacking = np.isnan(values[:, -1]) & ~np.isnan(values[:, : CLOSE + 1]).all(axis=1)
    if lacking.any():
        when = np.datetime_as_string(times[int(np.argmax(lacking))], unit="m")
        raise BarDataError(
            f"{name} at {when}: {FACTOR} is missing, which raw_volume needs ({int(lacking.sum())} "
            f"such bars of {name})"
        )
    return values[:, -1]


class _Columns:
    """Fills volume and amount where the storage has none at all; some with and some without is
    a fault of the storage."""

    def __init__(self) -> None:
        self.having: dict[int, str] = {}
        self.lacking: dict[int, str] = {}

    def complete(self, name: str, bars: Floats) -> Floats:
        if np.isnan(bars[:, : CLOSE + 1]).all():
            return bars  # no bar at all: nothing is lacking
        if np.isnan(bars[:, VOLUME:]).all() and _stands_still(bars):
            bars[:, VOLUME:] = 0.0  # nothing is lacking either: it did not trade
            return bars
        for column in (VOLUME, AMOUNT):
            absent = bool(np.isnan(bars[:, column]).all())
            (self.lacking if absent else self.having).setdefault(column, name)
            if column in self.lacking and column in self.having:
                raise BarDataError(
                    f"the storage has {BAR_COLUMNS[column]} for {self.having[column]} and none for "
                    f"{self.lacking[column]}: write the folder again, leave that instrument out, "
                    "or say with `fields` where the column comes from"
                )
            if absent and column == VOLUME:
                bars[:, VOLUME] = 0.0
            elif absent:
                bars[:, AMOUNT] = bars[:, VOLUME] * bars[:, : len(PRICE_COLUMNS)].mean(axis=1)
        return bars

    def tell(self) -> None:
        filled = {VOLUME: "zeros", AMOUNT: "volume x the mean of the four prices"}
        for column in self.lacking:
            logger.warning(f"the storage has no {BAR_COLUMNS[column]}: taken as {filled[column]}")


def _stands_still(bars: Floats) -> bool:
    """Whether an instrument's prices are one and the same throughout: suspended all the time."""
    prices = bars[:, : CLOSE + 1]
    given = prices[prices > 0]
    return not len(given) or bool(given.min() == given.max())


def _nothing(
    names: Sequence[str],
    freq: str,
    calendar: Times,
    bounds: tuple[int, int],
    folder: Path | None,
) -> str:
    start, stop = bounds
    shown = np.datetime_as_string(calendar, unit="m")
    reach = f"{shown[0]} to {shown[-1]}" if len(shown) else "nothing"
    span = f"from {shown[start]} to {shown[stop - 1]}" if start < stop else "in no time"
    where = f" in {folder}" if folder is not None else ""
    some = ", ".join(map(str, names[:3])) + (", ..." if len(names) > 3 else "")
    cause = why_missing(folder, freq, names) if folder is not None and names else ""
    return (
        f"no bars of {len(names)} instruments ({some}) at freq {freq!r} {span}{where}; "
        f"{cause or f'its calendar goes over {reach}'}"
    )
