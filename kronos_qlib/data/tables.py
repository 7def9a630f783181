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

from kronos_qlib.data.cells import (
    DATE_TEXT,
    NO_NUMBER,
    Times,
    is_writable,
    parse_date,
    to_dates,
    to_moments,
    to_numbers,
    to_symbols,
    wrong_date,
)
from kronos_qlib.data.readers import (
    SUFFIXES,
    RawTable,
    find_files,
    read_file,
    read_frame,
    tell_headerless,
)
from kronos_qlib.errors import BarDataError, CalendarError, ConfigError
from kronos_qlib.files import replacing
from kronos_qlib.schema import BAR_COLUMNS, LONG_COLUMNS, PRICE_COLUMNS

__all__ = [
    "ALIASES",
    "DATE_TEXT",
    "NO_NUMBER",
    "SUFFIXES",
    "BarFile",
    "check_apart",
    "columns_from_pairs",
    "read_bars",
    "read_times",
    "write_bars",
]

logger = logging.getLogger(__name__)

DAY_NAMES = ("date", "trade_date", "日期", "交易日期")
CLOCK_NAMES = ("time", "时间", "交易时间")
"""A column of each make one time: the day and the time of day."""

ALIASES: Mapping[str, tuple[str, ...]] = {
    "date": (*DAY_NAMES, *CLOCK_NAMES, "datetime", "timestamp", "timestamps", "open_time"),
    "symbol": (
        *("symbol", "instrument", "code", "ticker", "ts_code"),
        *("代码", "股票代码", "证券代码"),
    ),
    "open": ("open", "开盘", "开盘价"),
    "high": ("high", "最高", "最高价"),
    "low": ("low", "最低", "最低价"),
    "close": ("close", "收盘", "收盘价"),
    "volume": ("volume", "vol", "成交量"),
    "amount": ("amount", "amt", "money", "quote_volume", "成交额", "成交金额"),
    "factor": ("factor", "复权因子"),
}
"""Names understood without being told, in any case. "turnover" is missing on purpose: some vendors
mean money by it, others a rate."""

ADJUSTED_CLOSE = ("adj close", "adj_close", "adjclose", "adj. close", "adjusted close")
"""A second close, of which a factor can be made."""

OTHER_SPELLING = re.compile(
    r"(?P<number>\d{6})\.(?P<after>SH|SZ|BJ|SS|XSHG|XSHE)|(?P<before>SH|SZ|BJ)\.(?P<digits>\d{6})",
    re.ASCII,
)
"""600000.SH and SH.600000, where Qlib's own data say SH600000."""
EXCHANGES = {"SS": "SH", "XSHG": "SH", "XSHE": "SZ"}

OPTIONAL = ("symbol", "volume", "amount", "factor")
"""What a table may lack."""


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
) -> BarFile:
    """Read bars from a CSV, Parquet or Feather file, from a folder of them, or from a frame.

    Args:
        source: A file; a folder, whose files are read together; or a frame, which stays as it is.
            A frame's times may be in its index, named or not. Where a file has no symbol column,
            its stem is the symbol.
        columns: Our name to the source's, for example {"date": "day"}; overrides `ALIASES`.
        extra: Further number columns to keep, by the source's name.
        as_is: Keep the order of the rows and several bars at one time, for `check_bars` to report
            and `repair_bars` to mend; everything else stays as strict.
        symbol: The one instrument of a file or frame that has no symbol column.
        encoding: Of CSV files, as Python calls it; Chinese vendors often write "gb18030".
        delimiter: Of CSV files; None finds comma, semicolon, tab or | in the header.

    Returns:
        Bars and notes. Symbols are upper-cased, as Qlib does. A missing `volume` becomes 0. A
        missing `amount` becomes volume x the mean of the four prices: both are adjusted, in
        opposite ways, so that is money. A missing `factor` becomes 1. An empty number cell becomes
        NaN, which `check_bars` reports.

    Raises:
        BarDataError: A file is missing, empty or of another kind; a column is missing or could be
            one of two; date and time of day stand apart and do not fit; a date or a number cannot
            be read; two symbols differ only by case; an instrument has two bars at one time
            (unless `as_is`). The message names file, row and column; a frame's rows count from 1.
        ConfigError: `columns` maps a name that bars do not have; `symbol` is given where it
            cannot be one; `encoding` or `delimiter` is none.
    """
    mapping = dict(columns or {})
    for ours in mapping:
        if ours not in LONG_COLUMNS:
            raise ConfigError(f"columns: bars have no {ours!r}; known: {', '.join(LONG_COLUMNS)}")
    tables: list[RawTable] | Iterable[RawTable]
    if isinstance(source, pd.DataFrame):
        name, notes, tables = "the frame", [], [read_frame(source)]
    else:
        name = str(source)
        paths, others = find_files(Path(source))
        notes = [f"files left out: {', '.join(others)}"] if others else []
        tables = (read_file(path, encoding=encoding, delimiter=delimiter) for path in paths)
        if symbol is not None and Path(source).is_dir():
            raise ConfigError(f"{source}: a folder's files are not all the one symbol {symbol!r}")
    if symbol is not None and not (symbol.strip() and is_writable(symbol)):
        raise ConfigError(f"symbol must name an instrument, got {symbol!r}")
    parts = []
    for raw in tables:
        part, said = _read_one(raw, mapping, extra, symbol)
        parts.append(part)
        notes.extend(note for note in said if note not in notes)
    _check_spelling(parts)
    bars = pd.concat([part.frame for part in parts], ignore_index=True)
    if not as_is:
        _check_single(bars, parts)
    # Python's upper case and not Arrow's, which differs for such as "ß", as the check above has it.
    bars["symbol"] = bars["symbol"].map({name: name.upper() for name in bars["symbol"].unique()})
    notes += _tell_spelling(bars["symbol"].unique())
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
                            f"{path}, line {number}: {wrong_date(text)}"
                        ) from problem
    except UnicodeDecodeError as problem:
        raise CalendarError(f"{path}: not UTF-8 text ({problem.reason})") from problem
    if not times:
        raise CalendarError(f"{path}: the file holds no dates")
    return pd.DatetimeIndex(times)


def columns_from_pairs(pairs: Iterable[str]) -> dict[str, str]:
    """The `columns` of `read_bars` from words such as "date=trade_date"."""
    columns: dict[str, str] = {}
    for pair in pairs:
        ours, equals, theirs = pair.partition("=")
        if not (ours and equals and theirs):
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
        raise BarDataError(f"{raw.source}: it holds no bars")
    found, clock = _match_columns(raw, mapping)
    notes: list[str] = []
    dates = _dates(raw, found["date"], clock)
    frame = pd.DataFrame({"symbol": _symbols(raw, found, symbol, notes), "date": dates})
    for name in (*BAR_COLUMNS, "factor"):
        if name in found:
            frame[name] = to_numbers(raw, found[name])
    for name in extra:
        if name not in raw.columns:
            raise BarDataError(_missing(raw, name))
        frame[name] = to_numbers(raw, name)
    notes += _fill(frame)
    renamed = {ours: theirs for ours, theirs in found.items() if theirs.lower() != ours}
    if renamed or clock:
        told = [f"{ours} from {theirs!r}" for ours, theirs in renamed.items()]
        told += [f"time of day from {clock!r}"] if clock else []
        notes.append(f"columns read under another name: {', '.join(told)}")
    used = {*found.values(), *extra, clock}
    spare = [name for name in raw.columns if name not in used]
    if spare:
        notes.append(f"columns left out: {', '.join(spare)}")
    adjusted = [name for name in spare if name.strip().lower() in ADJUSTED_CLOSE]
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
            f"{_missing(raw, 'symbol')}; say which instrument it is with symbol='SH600000'"
        )
    return np.full(len(raw.rows), only, dtype=object)


def _dates(raw: RawTable, column: str, clock: str | None) -> Times:
    return to_dates(raw, column) if clock is None else to_moments(raw, column, clock)


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
            frame["amount"] = frame["volume"] * frame[list(PRICE_COLUMNS)].mean(axis=1)
        notes.append("amount is missing: derived as volume x mean of open, high, low, close")
    if "factor" not in frame:
        frame["factor"] = 1.0
        notes.append("factor is missing: set to 1, prices are taken as adjusted")
    return notes


def _missing(raw: RawTable, name: str) -> str:
    have = ", ".join(repr(column) for column in raw.columns)
    return f"{raw.source}: no column {name!r}; it has {have}{tell_headerless(raw.columns)}"


def _match_columns(raw: RawTable, mapping: Mapping[str, str]) -> tuple[dict[str, str], str | None]:
    """Our name to the source's, and the column with the time of day if it stands apart.

    Optional names are absent where the source has none.
    """
    found: dict[str, str] = {}
    clock = None
    claimed = set(mapping.values())
    free = [name for name in raw.columns if name not in claimed]
    for ours in LONG_COLUMNS:
        if ours in mapping:
            if mapping[ours] not in raw.columns:
                raise BarDataError(_missing(raw, mapping[ours]))
            found[ours] = mapping[ours]
            continue
        near = [name for name in free if name.strip().lower() in ALIASES[ours]]
        if ours == "date":
            near, clock = _split_clock(near)
            if not near and raw.time_index is not None:
                near = [raw.time_index]
        if len(near) > 1:
            both = " and ".join(repr(name) for name in near)
            raise BarDataError(
                f"{raw.source}: columns {both} could both be {ours!r}; say which with a mapping "
                f"such as {ours}={near[0]}"
            )
        if near:
            found[ours] = near[0]
        elif ours not in OPTIONAL:
            advice = f"; name it with a mapping such as {ours}=THEIR_NAME"
            if tell_headerless(raw.columns):
                advice = ""
            raise BarDataError(_missing(raw, ours) + advice)
    return found, clock


def _split_clock(near: list[str]) -> tuple[list[str], str | None]:
    """A day's column and a clock's are one time; anything else is left to be doubted."""
    days = [name for name in near if name.strip().lower() in DAY_NAMES]
    clocks = [name for name in near if name.strip().lower() in CLOCK_NAMES]
    if len(near) == 2 and len(days) == len(clocks) == 1:
        return days, clocks[0]
    return near, None


def _tell_spelling(symbols: Iterable[str]) -> list[str]:
    """A word on symbols that Qlib's own data spell otherwise."""
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
            raise part.raw.fail(entry, part.date_column, f"a second bar for {symbol} at {date}")
        entry -= len(part.frame)
