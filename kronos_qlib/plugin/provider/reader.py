"""Bars, universes and calendars out of Qlib storage, straight from its files where that can be."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import pandas as pd
from qlib.config import C
from qlib.data import D
from qlib.log import get_module_logger
from qlib.utils.time import Freq

from kronos_qlib.data.calendar.stamps import Times
from kronos_qlib.data.windows.bar_table import BarTable, TableBuilder
from kronos_qlib.data.windows.faulty_bars import Floats, Incomplete, Invalid, Untraded
from kronos_qlib.data.windows.find import Spans
from kronos_qlib.data.windows.segments import places_of
from kronos_qlib.errors import BarDataError, ConfigError, some_of
from kronos_qlib.plugin.provider.faults import (
    check_calendar,
    check_frequency,
    check_future,
    check_market,
    missing_folders,
    why_missing,
)
from kronos_qlib.plugin.provider.feature_files import Dense, FeatureFiles
from kronos_qlib.plugin.qlib_internals import data_folder, market_read_anew, reads_files
from kronos_qlib.schema import AMOUNT, BAR_COLUMNS, CLOSE, PRICE_COLUMNS, VOLUME

if TYPE_CHECKING:
    from typing_extensions import Unpack

logger = get_module_logger(__name__)  # Qlib shows its own loggers only

STORED: Mapping[str, str] = {name: f"${name}" for name in BAR_COLUMNS}
"""Qlib's usual field for each column."""

PLAIN_FIELD = re.compile(r"\$\w+", re.ASCII)
FACTOR = "$factor"


class BarOptions(TypedDict, total=False):
    """Keywords of `read_table`, `write_table` and `read_mapped`: fields of `BarsAsked`."""

    fields: Mapping[str, str]
    raw_volume: bool
    first: Any
    last: Any
    incomplete: Incomplete
    invalid: Invalid
    untraded: Untraded


@dataclass(frozen=True, kw_only=True)
class BarsAsked:
    """The options, each with its default."""

    fields: Mapping[str, str] = field(default_factory=lambda: STORED)
    """For each of `schema.BAR_COLUMNS` a field ("$close") or an expression ("$volume * $vwap")."""
    raw_volume: bool = False
    """Multiply volume by $factor, which turns Qlib's adjusted volume into the shares that changed
    hands. A split then shows as a jump of volume."""
    first: Any = None
    """Of the bars' times; a bare date is the whole day. None: from the first one on."""
    last: Any = None
    """As `first`, inclusive too."""
    incomplete: Incomplete = "error"
    """What to do with bars that lack a number, see `bar_table.Incomplete`."""
    invalid: Invalid = "error"
    """With bars that cannot be, see `bar_table.Invalid`."""
    untraded: Untraded = "skip"
    """With bars in which nothing traded, see `bar_table.Untraded`."""

    @property
    def ways(self) -> dict[str, Any]:
        """What to do with bars that break a rule, as `TableBuilder` takes it."""
        return {
            "incomplete": self.incomplete,
            "invalid": self.invalid,
            "untraded": self.untraded,
        }


def read_table(
    names: Iterable[str],
    freq: str = "day",
    *,
    direct: bool | None = None,
    **how: Unpack[BarOptions],
) -> BarTable:
    """The bars of some instruments, those of a suspended day (no price) left out.

    They keep the rules of `data.rules`, as bars out of files do.

    Plain fields of a provider that is files on this machine are read from those files; anything
    else goes through `D.features`, which is the same and some 40 times slower. Volume that the
    storage has for no instrument is taken as zeros, amount as volume x mean price.

    Args:
        names: instruments, as Qlib spells them.
        freq: "day", "1min", "5min".
        direct: True reads files or raises, False always asks Qlib, None chooses.
        how: fields of `BarsAsked`; the log counts what is left out.

    Raises:
        BarDataError: a bar breaks a rule (named by instrument and time), an instrument lacks a
            column that others have, no instrument has a field, a file is not what Qlib writes, or
            nothing is there.
        CalendarError: as `read_calendar`.
        ConfigError: `fields` are not those of a bar; direct reading was demanded and cannot be; or
            the folder has no bars of this frequency.
    """
    names = list(dict.fromkeys(names))
    options = BarsAsked(**how)
    asked = open_bars(names, freq, options, direct)
    builder = TableBuilder(asked.calendar, asked.capacity, **options.ways)
    columns = StoredColumns()
    for name, places, bars in asked.bars(names, columns):
        builder.add(name, places, bars)
    table = builder.finish()
    report_read(table, names, freq, asked, columns)
    return table


@dataclass(frozen=True)
class OpenedBars:
    """Where the bars of some instruments come from, after every check that needs no bar.

    calendar: (K,) datetime64[ns]. bounds: the places in it that were asked for.
    files: of the provider, where it is files on this machine.
    folder: that provider's; None elsewhere.
    """

    calendar: Times
    bounds: tuple[int, int]
    raw_volume: bool
    files: FeatureFiles | None
    folder: Path | None
    capacity: int
    dense: Dense | None

    def bars(self, names: Iterable[str], columns: StoredColumns) -> Dense:
        """Instruments one after another, places in the calendar (n,) and bars (n, 6).

        From files each name is taken when its bars are read.
        """
        dense = self.dense
        if dense is None:
            assert self.files is not None
            dense = self.files.read(names, self.bounds)
        for name, places, values in dense:
            bars = columns.complete(name, values[:, : len(BAR_COLUMNS)])
            if self.raw_volume:  # after an amount was made of adjusted volume and prices
                bars[:, VOLUME] *= _factors(name, self.calendar[places], values)
            yield name, places, bars


def open_bars(
    names: Sequence[str],
    freq: str,
    options: BarsAsked,
    direct: bool | None = None,
) -> OpenedBars:
    """What `read_table` reads from; arguments and errors as of it.

    Raises:
        BarDataError, CalendarError, ConfigError: as of `read_table`.
    """
    fields, raw_volume = options.fields, options.raw_volume
    if set(fields) != set(BAR_COLUMNS):
        raise ConfigError(
            f"fields names {', '.join(BAR_COLUMNS)}, each once, got {', '.join(fields) or 'none'}"
        )
    asked = [fields[name] for name in BAR_COLUMNS] + [FACTOR] * raw_volume
    # Volume and amount may be missing from a storage; what was named by hand, or is a price, not.
    needed = {name for name in asked if name not in (STORED["volume"], STORED["amount"])}
    calendar = read_calendar(freq)
    bounds = places_of(calendar, options.first, options.last)
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
        files = FeatureFiles(folder, freq, asked if plain else _fields_in(asked), calendar)
        if plain:
            _check_stored(needed, files.stored(names), names, freq, folder)
    dense: Dense | None = None
    if files is not None and plain and direct is not False:
        capacity = sum(files.count(name, fields["close"], bounds) for name in names)
    else:
        if files is not None:  # Qlib reads a damaged file in silence, or names none
            files.check(names)
        capacity, dense = _ask_qlib(names, asked, needed, freq, calendar, bounds, folder)
    return OpenedBars(calendar, bounds, raw_volume, files, folder, capacity, dense)


def report_read(
    table: BarTable,
    names: Sequence[str],
    freq: str,
    asked: OpenedBars,
    columns: StoredColumns,
) -> None:
    """Warn of what was filled, left out and not found.

    Raises:
        BarDataError: the table has no bar.
    """
    folder = asked.folder
    columns.log_filled()
    left_out = table.describe_left_out()
    if not len(table):
        reason = _nothing(names, freq, asked.calendar, asked.bounds, folder)
        raise BarDataError(f"{reason}; {left_out}" if left_out else reason)
    if left_out:
        logger.warning(left_out)
    empty = [name for name, bars in zip(names, np.diff(table.offsets), strict=True) if not bars]
    if empty:
        hint = missing_folders(folder, empty) if folder is not None else ""
        logger.warning(
            f"{len(empty)} of {len(names)} instruments have no bars: {some_of(empty, 10)}{hint}"
        )


def read_spans(instruments: Any, freq: str = "day") -> Spans | None:
    """When each instrument is in a universe; None for a plain list of names: always.

    Args:
        instruments: a market's name, a Qlib stock pool, or a list of names.

    Raises:
        BarDataError: a line of the market's file cannot be used, or it names no instrument.
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
        files = FeatureFiles(folder, freq, parts, np.empty(0, dtype="datetime64[ns]"))
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


class StoredColumns:
    """Fills volume and amount where the storage has none at all; some with and some without is
    a fault of the storage."""

    def __init__(self) -> None:
        self.having: dict[int, str] = {}
        self.lacking: dict[int, str] = {}
        self.last: dict[str, bool] = {}
        """Of the instrument before: whether it lacked a column, by the column's name."""

    def note(self, last: Mapping[str, bool], name: str) -> None:
        """Take an instrument's `last` as of one completed before, by another process."""
        for column in (VOLUME, AMOUNT):
            if BAR_COLUMNS[column] in last:
                absent = last[BAR_COLUMNS[column]]
                (self.lacking if absent else self.having).setdefault(column, name)

    def complete(self, name: str, bars: Floats) -> Floats:
        """The bars (n, 6) of an instrument with volume and amount filled where all lack them.

        Raises:
            BarDataError: some instruments have a column and others have not; names one of each.
        """
        self.last = {}
        if np.isnan(bars[:, : CLOSE + 1]).all():
            return bars  # no bar at all: nothing is lacking
        if np.isnan(bars[:, VOLUME:]).all() and _stands_still(bars):
            bars[:, VOLUME:] = 0.0  # nothing is lacking either: it did not trade
            return bars
        for column in (VOLUME, AMOUNT):
            absent = bool(np.isnan(bars[:, column]).all())
            (self.lacking if absent else self.having).setdefault(column, name)
            self.last[BAR_COLUMNS[column]] = absent
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

    def log_filled(self) -> None:
        """Warn of what was filled."""
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
    cause = why_missing(folder, freq, names) if folder is not None and names else ""
    return (
        f"no bars of {len(names)} instruments ({some_of(names)}) at freq {freq!r} {span}{where}; "
        f"{cause or f'its calendar goes over {reach}'}"
    )
