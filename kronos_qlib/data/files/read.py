"""Bars out of CSV, Parquet and Feather files or frames, into one long table with the schema's
names, and back.

Reading is strict about what it does not understand and says what it filled in: every error names
file, row and column, every derived column leaves a note.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kronos_qlib.data.calendar.time_messages import time_message
from kronos_qlib.data.calendar.timestamps import parse_date
from kronos_qlib.data.columns.matching import OPTIONAL, check_mapping, match_columns
from kronos_qlib.data.columns.number_columns import to_numbers
from kronos_qlib.data.columns.spelling import TIME, compact
from kronos_qlib.data.columns.unread import check_unread
from kronos_qlib.data.columns.values import (
    symbol_problem,
    to_dates,
    to_moments,
    to_symbols,
)
from kronos_qlib.data.files.check import derive_amount
from kronos_qlib.data.files.formats import SUFFIXES, find_files, read_file, read_frame
from kronos_qlib.data.files.raw import (
    RawTable,
    ValueFormat,
    headerless_hint,
    missing_column_message,
)
from kronos_qlib.errors import BarDataError, CalendarError, ConfigError, NoBarsError
from kronos_qlib.files import replacing
from kronos_qlib.schema import BAR_COLUMNS, LONG_COLUMNS, SIZE_COLUMNS

logger = logging.getLogger(__name__)

ADJUSTED_CLOSE = ("adjclose", "adjustedclose")
"""A second close, of which a factor can be made."""

OTHER_SPELLING = re.compile(
    r"(?P<number>\d{6})\.(?P<after>SH|SZ|BJ|SS|XSHG|XSHE)|(?P<before>SH|SZ|BJ)\.(?P<digits>\d{6})",
    re.ASCII,
)
"""600000.SH and SH.600000, where Qlib's own data say SH600000."""
EXCHANGES = {"SS": "SH", "XSHG": "SH", "XSHE": "SZ"}


@dataclass(frozen=True)
class BarFile:
    """Bars as they were read, and what had to be filled in."""

    bars: pd.DataFrame
    """`schema.LONG_COLUMNS` and the extra columns asked for; sorted by symbol and date, unless
    read as it is."""
    notes: tuple[str, ...]
    """What was derived, assumed, left out or read under another name, one sentence each."""


def read_bars(
    source: str | Path | pd.DataFrame,
    *,
    columns: Mapping[str, str] | None = None,
    extra: Sequence[str] = (),
    as_is: bool = False,
    symbol: str | None = None,
    encoding: str = "utf-8",
    delimiter: str | None = None,
    zone: str | None = None,
    date_order: str = "ymd",
    decimal: str | None = None,
) -> BarFile:
    """Read bars from a CSV, Parquet or Feather file, from a folder of them, or from a frame.

    Args:
        source: A file; a folder, whose files are read together; or a frame, which stays as it is.
            A frame's times may be in its index, named or not; its columns may have two levels, a
            price and a ticker. Where a file has no symbol column, its stem is the symbol.
        columns: Our name to the source's, for example {"date": "day"}; overrides `ALIASES`. "time"
            is the column with the time of day. {"volume": ""} declares that there is none, which
            works for symbol, volume, amount, factor and time.
        extra: Further number columns to keep, by the source's name.
        as_is: Keep the order of the rows and several bars at one time, for `check_bars` to report
            and `repair_bars` to correct; everything else stays as strict.
        symbol: The one instrument of a file or frame that has no symbol column.
        encoding: Of CSV files, as Python calls it; Chinese vendors often write "gb18030".
        delimiter: Of CSV files; None finds comma, semicolon, tab or | in the header.
        zone, date_order, decimal: How times and numbers are written, see `raw.ValueFormat`.

    Returns:
        Bars and notes. Symbols are upper-cased, as Qlib does. Times are the exchange's wall-clock
        time: an offset is dropped with a note, or converted where `zone` is given. A missing
        `volume` becomes 0, but a column that looks like it is mapped or refused. A
        missing `amount` becomes volume x the mean of the four prices: both are adjusted, in
        opposite ways, so that is money. A missing `factor` becomes 1. An empty number value becomes
        NaN, which `check_bars` reports.

    Raises:
        BarDataError: A file is missing, empty or of another kind; a column is missing or could be
            one of two; a column that is not read looks like a size that is missing, or like the
            symbol; date and time of day stand apart and do not fit; a date or a number cannot
            be read or may be two; two symbols differ only by case; an instrument has two bars at
            one time (unless `as_is`). The message names file, row and column; a frame's rows count
            from 1.
        ConfigError: `columns` maps a name that bars do not have; `symbol` is given where it
            cannot be one; `encoding`, `delimiter`, `zone`, `date_order` or `decimal` is none.
    """
    mapping = dict(columns or {})
    check_mapping(mapping)
    how = ValueFormat(zone=zone, date_order=date_order, decimal=decimal)
    tables: list[RawTable] | Iterable[RawTable]
    if isinstance(source, pd.DataFrame):
        name, notes, tables = "the frame", [], [read_frame(source, how=how)]
    else:
        name = str(source)
        paths, others = find_files(Path(source))
        notes = [f"files left out: {', '.join(others)}"] if others else []
        tables = (
            read_file(path, encoding=encoding, delimiter=delimiter, how=how) for path in paths
        )
        if symbol is not None and Path(source).is_dir():
            raise ConfigError(f"{source}: a folder's files are not all the one symbol {symbol!r}")
    if symbol is not None and (not symbol.strip() or symbol_problem(symbol.strip())):
        raise ConfigError(
            symbol_problem(symbol.strip()) or f"symbol must name an instrument, got {symbol!r}"
        )
    parts = []
    for raw in tables:
        part, own_notes = _read_one(raw, mapping, extra, symbol)
        parts.append(part)
        notes.extend(note for note in own_notes if note not in notes)
    _check_spelling(parts)
    bars = pd.concat([part.frame for part in parts], ignore_index=True)
    if not as_is:
        _check_single(bars, parts)
    # Python's upper case and not Arrow's, which differs for such as "ß", as the check above has it.
    bars["symbol"] = bars["symbol"].map({name: name.upper() for name in bars["symbol"].unique()})
    notes += _spelling_notes(bars["symbol"].unique())
    for note in notes:
        logger.info("%s: %s", name, note)
    bars = bars[[*LONG_COLUMNS, *(each for each in extra if each not in LONG_COLUMNS)]]
    if not as_is:
        bars = bars.sort_values(["symbol", "date"], kind="stable", ignore_index=True)
    return BarFile(bars, tuple(notes))


def write_bars(bars: pd.DataFrame, target: str | Path, *, overwrite: bool = False) -> None:
    """Write a long table that `read_bars` reads back: the whole file, or none.

    Args:
        bars: The table; its index is left out.
        target: A name ending in .csv, .parquet or .feather.
        overwrite: Replace an existing file.

    Raises:
        BarDataError: There are no bars.
        ConfigError: `target` has another ending, or exists and may not be replaced.
    """
    target = Path(target)
    if target.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{target}: expected a name ending in {' or '.join(SUFFIXES)}")
    if bars.empty:
        raise BarDataError(f"{target}: there are no bars to write")
    _check_free(target, overwrite)
    with replacing(target) as draft:
        if target.suffix.lower() == ".csv":
            bars.to_csv(draft, index=False, lineterminator="\n")
        elif target.suffix.lower() == ".parquet":
            bars.to_parquet(draft, index=False)
        else:
            bars.reset_index(drop=True).to_feather(draft)
        _check_free(target, overwrite)  # it may have appeared meanwhile


def check_apart(written: str | Path, *others: str | Path) -> None:
    """Refuse to write onto a source or a target, or into its folder.

    A source would hold every bar twice the next time it is read; a target loses what is not its.

    Raises:
        ConfigError: `written` is one of the others, or lies in one.
    """
    place = Path(written).resolve()
    for other in others:
        if Path(other).resolve() in (place, *place.parents):
            raise ConfigError(f"{written} is {other}, or lies in it; write it elsewhere")


def read_times(path: str | Path) -> pd.DatetimeIndex:
    """The times of a text file, one date or time per line, in the file's order.

    Raises:
        CalendarError: The file is missing or holds none, or a line cannot be read. The message
            names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise CalendarError(f"{path}: no such file")
    times = []
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                text = line.strip()
                if text:
                    try:
                        times.append(parse_date(text))
                    except ValueError as problem:
                        raise CalendarError(
                            f"{path}, line {number}: {time_message(text, in_table=False)}"
                        ) from problem
    except UnicodeDecodeError as problem:
        raise CalendarError(f"{path}: not UTF-8 text ({problem.reason})") from problem
    if not times:
        raise CalendarError(f"{path}: the file holds no dates")
    return pd.DatetimeIndex(times)


def columns_from_pairs(pairs: Iterable[str]) -> dict[str, str]:
    """The `columns` of `read_bars` from words such as "date=trade_date", or "volume=" for none.

    Raises:
        ConfigError: one is no such pair, or a column is named twice.
    """
    columns: dict[str, str] = {}
    for pair in pairs:
        ours, equals, theirs = pair.partition("=")
        if not (ours and equals) or not (theirs or ours in (*OPTIONAL, TIME)):
            raise ConfigError(f"expected OURS=THEIRS, such as date=trade_date, got {pair!r}")
        if ours in columns:
            raise ConfigError(f"column {ours!r} is named twice: {columns[ours]!r} and {theirs!r}")
        columns[ours] = theirs
    return columns


@dataclass(frozen=True)
class _Part:
    """One file's bars, symbols as spelled there, with what is needed to name a row."""

    frame: pd.DataFrame
    raw: RawTable
    date_column: str


def _check_free(target: Path, overwrite: bool) -> None:
    if target.is_dir():
        raise ConfigError(f"{target} is a folder; name a file")
    if target.exists() and not overwrite:
        raise ConfigError(
            f"{target} exists; name another file or ask to overwrite it (overwrite=True, "
            "--overwrite)"
        )


def _read_one(
    raw: RawTable, mapping: Mapping[str, str], extra: Sequence[str], symbol: str | None
) -> tuple[_Part, list[str]]:
    if not len(raw.rows):
        raise NoBarsError(f"{raw.source}: it holds no bars")
    match = match_columns(raw, mapping, LONG_COLUMNS)
    found, clock = match.names, match.clock
    for ours in LONG_COLUMNS:
        if ours not in found and ours not in OPTIONAL:
            advice = f"; name it with a mapping such as {ours}=THEIR_NAME"
            raise BarDataError(
                missing_column_message(raw, ours) + ("" if headerless_hint(raw.columns) else advice)
            )
    if clock is not None and clock not in raw.columns:
        raise BarDataError(missing_column_message(raw, clock))
    notes: list[str] = [*raw.notes, *match.notes]
    if clock is None:
        dates = to_dates(raw, found["date"], notes)
    else:
        dates = to_moments(raw, found["date"], clock, notes)
    # A caller who declares one instrument has looked.
    if "symbol" in found or (symbol is None and "symbol" not in mapping):
        check_unread(raw, match, extra, dates)
    frame = pd.DataFrame({"symbol": _symbols(raw, found, symbol, notes), "date": dates})
    for name in extra:
        if name not in raw.columns:
            raise BarDataError(missing_column_message(raw, name))
    theirs_of = {name: found[name] for name in (*BAR_COLUMNS, "factor") if name in found}
    sizes = [*(found[name] for name in SIZE_COLUMNS if name in found), *extra]
    numbers = to_numbers(raw, list(dict.fromkeys([*theirs_of.values(), *extra])), sizes)
    for name, theirs in theirs_of.items():
        scale = match.scales.get(name)
        frame[name] = numbers[theirs] if scale is None else numbers[theirs] * scale
    for name in extra:
        frame[name] = numbers[name]
    notes += _fill(frame)
    renamed = {ours: theirs for ours, theirs in found.items() if theirs.lower() != ours}
    if renamed or clock:
        renames = [f"{ours} from {theirs!r}" for ours, theirs in renamed.items()]
        renames += [f"time of day from {clock!r}"] if clock else []
        notes.append(f"columns read under another name: {', '.join(renames)}")
    spare = match.spare(raw, extra)
    if spare:
        notes.append(f"columns left out: {', '.join(spare)}")
    adjusted = [name for name in spare if compact(name) in ADJUSTED_CLOSE]
    if adjusted and "factor" not in found:
        theirs = found["close"]
        notes.append(
            f"{adjusted[0]!r} is left out; for adjusted prices make a column factor = "
            f"{adjusted[0]} / {theirs}, multiply open, high, low and close by it and divide volume"
        )
    return _Part(frame, raw, found["date"]), notes


def _symbols(
    raw: RawTable, found: Mapping[str, str], symbol: str | None, notes: list[str]
) -> np.ndarray:
    if "symbol" in found and symbol is not None:
        raise ConfigError(
            f"{raw.source}: the symbol {symbol!r} is given, and column {found['symbol']!r} has "
            "symbols too; leave out one of them"
        )
    if "symbol" in found:
        return to_symbols(raw, found["symbol"], notes)
    only = raw.stem if symbol is None else symbol.strip()
    if not only:
        raise BarDataError(
            f"{missing_column_message(raw, 'symbol')}; say which instrument it is with "
            "symbol='SH600000'"
        )
    if problem := symbol_problem(only):
        raise BarDataError(f"{raw.source}: the file's name is its symbol, but {problem}")
    return np.full(len(raw.rows), only, dtype=object)


def _fill(frame: pd.DataFrame) -> list[str]:
    """Add the columns that a table may lack; what was put there."""
    notes = []
    if "volume" not in frame:
        frame["volume"] = 0.0
        notes.append("volume is missing: set to 0")
        if "amount" not in frame:
            frame["amount"] = 0.0
            notes.append("amount is missing: set to 0, like volume")
    if "amount" not in frame:
        with np.errstate(over="ignore", invalid="ignore"):
            frame["amount"] = derive_amount(frame)
        notes.append("amount is missing: derived as volume x mean of open, high, low, close")
    if "factor" not in frame:
        frame["factor"] = 1.0
        notes.append("factor is missing: set to 1, prices are taken as adjusted")
    return notes


def _spelling_notes(symbols: Iterable[str]) -> list[str]:
    """A note on symbols that Qlib's own data spell otherwise."""
    for symbol in symbols:
        if match := OTHER_SPELLING.fullmatch(symbol):
            exchange = match["before"] or match["after"]
            qlibs = EXCHANGES.get(exchange, exchange) + (match["digits"] or match["number"])
            return [f"symbols such as {symbol} are kept as they are; Qlib's own data say {qlibs}"]
    return []


def _check_spelling(parts: Iterable[_Part]) -> None:
    """Two spellings of one symbol would share a folder in Qlib's storage."""
    spelled: dict[str, tuple[str, str]] = {}
    for part in parts:
        for symbol in pd.unique(part.frame["symbol"]):
            key = str(symbol).upper().lower()
            first, where = spelled.setdefault(key, (str(symbol), part.raw.source))
            if first != symbol:
                raise BarDataError(
                    f"symbols {first!r} in {where} and {symbol!r} in {part.raw.source} differ only "
                    "by case, and Qlib keeps one folder for both; rename one"
                )


def _check_single(bars: pd.DataFrame, parts: Sequence[_Part]) -> None:
    """`bars` holds the parts' rows one after another."""
    repeated = bars.duplicated(["symbol", "date"]).to_numpy()
    if not repeated.any():
        return
    entry = int(repeated.argmax())
    symbol, date = bars["symbol"].iloc[entry], bars["date"].iloc[entry]
    for part in parts:
        if entry < len(part.frame):
            problem = (
                f"a second bar for {symbol} at {date}; `kronos-qlib data check` says why and what "
                "to do"
            )
            raise part.raw.fail(entry, part.date_column, problem)
        entry -= len(part.frame)
