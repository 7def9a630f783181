"""Bars out of CSV and Parquet files, into one long table with the schema's names, and back.

Reading is strict about what it does not understand and says what it filled in: every error names
file, row and column, every derived column leaves a note.
"""

from __future__ import annotations

import csv
import logging
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.errors import BarDataError, CalendarError, ConfigError
from kronos_qlib.schema import BAR_COLUMNS, LONG_COLUMNS, PRICE_COLUMNS

logger = logging.getLogger(__name__)

SUFFIXES = (".csv", ".parquet")

ALIASES: Mapping[str, tuple[str, ...]] = {
    "date": ("date", "datetime", "timestamp", "timestamps", "time"),
    "symbol": ("symbol", "instrument", "code", "ticker"),
    "volume": ("volume", "vol"),
}
"""Names understood without being told, in any case; a column not listed goes by its own name.
"turnover" is missing on purpose: some vendors mean money by it, others a rate."""

NO_NUMBER = frozenset({"", "nan", "na", "n/a", "null", "none", "<na>"})
"""Cells of a number column that say there is no number; any other word is an error."""

DATE_TEXT = re.compile(
    r"(?P<year>\d{4})(?:(?P<sep>[-/.])(?P<month>\d{1,2})(?P=sep)(?P<day>\d{1,2})|(?P<packed>\d{4}))"
    r"(?:[ T](?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?:\.0+)?)?)?",
    re.ASCII,
)
"""Year first, so that no day can be taken for a month; no time zone, no fraction of a second."""


@dataclass(frozen=True)
class BarFile:
    """Bars as they were read, and what had to be filled in."""

    bars: pd.DataFrame
    """`schema.LONG_COLUMNS` and the extra columns asked for; sorted by symbol and date, unless
    read as it is."""
    notes: tuple[str, ...]
    """What was derived, assumed or left out, one sentence each."""


@dataclass(frozen=True)
class _RawTable:
    """One file's cells before they mean anything."""

    path: Path
    columns: dict[str, npt.NDArray[Any]]
    rows: npt.NDArray[np.int64]
    """Each entry's row, from 1, as a text editor counts lines; for Parquet without a header."""

    def fail(self, entry: int, column: str, problem: str) -> BarDataError:
        return BarDataError(f"{self.path}, row {self.rows[entry]}, column {column!r}: {problem}")


def read_bars(
    source: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    extra: Sequence[str] = (),
    as_is: bool = False,
) -> BarFile:
    """Read bars from a CSV or Parquet file, or from a folder of them.

    Args:
        source: A file, or a folder whose files are read together. Where a file has no symbol
            column, its stem is the symbol.
        columns: Our name to the file's, for example {"date": "trade_date"}; overrides `ALIASES`.
        extra: Further number columns to keep, by the file's name.
        as_is: Keep the order of the rows and several bars at one time, for `check_bars` to report
            and `repair_bars` to mend; everything else stays as strict.

    Returns:
        Bars and notes. Symbols are upper-cased, as Qlib does. A missing `amount` becomes volume x
        the mean of the four prices: both are adjusted, in opposite ways, so that is money. A
        missing `factor` becomes 1. An empty number cell becomes NaN, which `check_bars` reports.

    Raises:
        BarDataError: A file is missing, empty or of another kind; a column is missing or could be
            one of two; a date or a number cannot be read; two symbols differ only by case; an
            instrument has two bars at one time (unless `as_is`). The message names file, row and
            column.
        ConfigError: `columns` maps a name that bars do not have.
    """
    mapping = dict(columns or {})
    for ours in mapping:
        if ours not in LONG_COLUMNS:
            raise ConfigError(f"columns: bars have no {ours!r}; known: {', '.join(LONG_COLUMNS)}")
    paths, notes = _find_files(Path(source))
    parts = []
    for path in paths:
        part, said = _read_one(path, mapping, extra)
        parts.append(part)
        notes.extend(note for note in said if note not in notes)
    _check_spelling(parts)
    bars = pd.concat([part.frame for part in parts], ignore_index=True)
    if not as_is:
        _check_single(bars, parts)
    bars["symbol"] = bars["symbol"].str.upper()
    for note in notes:
        logger.info("%s: %s", source, note)
    order = [*LONG_COLUMNS, *(name for name in extra if name not in LONG_COLUMNS)]
    bars = bars[order]
    if not as_is:
        bars = bars.sort_values(["symbol", "date"], kind="stable", ignore_index=True)
    return BarFile(bars, tuple(notes))


def write_bars(bars: pd.DataFrame, target: str | Path, *, overwrite: bool = False) -> None:
    """Write a long table that `read_bars` reads back: the whole file, or none.

    Args:
        bars: The table; its index is left out.
        target: A name ending in .csv or .parquet.
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
    target.parent.mkdir(parents=True, exist_ok=True)
    building = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.new")
    try:
        if target.suffix.lower() == ".csv":
            bars.to_csv(building, index=False, lineterminator="\n")
        else:
            bars.to_parquet(building, index=False)
        _check_free(target, overwrite)  # it may have appeared meanwhile
        building.replace(target)
    finally:
        building.unlink(missing_ok=True)


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
                        times.append(_parse_date(text))
                    except ValueError as problem:
                        raise CalendarError(
                            f"{path}, line {number}: {_wrong_date(text)}"
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
    raw: _RawTable
    date_column: str


def _check_free(target: Path, overwrite: bool) -> None:
    if target.is_dir():
        raise ConfigError(f"{target} is a folder; name a file")
    if target.exists() and not overwrite:
        raise ConfigError(f"{target} exists; name another file or ask to overwrite it")


def _find_files(source: Path) -> tuple[list[Path], list[str]]:
    if source.is_file():
        return [source], []
    if not source.is_dir():
        raise BarDataError(f"{source}: no such file or folder")
    inside = sorted(p for p in source.iterdir() if p.is_file() and not p.name.startswith("."))
    paths = [path for path in inside if path.suffix.lower() in SUFFIXES]
    if not paths:
        raise BarDataError(f"{source}: the folder holds no {' or '.join(SUFFIXES)} file")
    others = [path.name for path in inside if path.suffix.lower() not in SUFFIXES]
    return paths, [f"files left out: {', '.join(others)}"] if others else []


def _read_one(
    path: Path, mapping: Mapping[str, str], extra: Sequence[str]
) -> tuple[_Part, list[str]]:
    raw = _read_raw(path)
    if not len(raw.rows):
        raise BarDataError(f"{path}: the file holds no bars")
    found = _match_columns(raw, mapping)
    notes: list[str] = []
    dates = _as_dates(raw, found["date"])
    if "symbol" in found:
        symbols = _as_symbols(raw, found["symbol"], notes)
    else:
        symbols = np.full(len(raw.rows), path.stem.strip(), dtype=object)
    frame = pd.DataFrame({"symbol": symbols, "date": dates})
    for name in (*BAR_COLUMNS, "factor"):
        if name in found:
            frame[name] = _as_numbers(raw, found[name])
    for name in extra:
        if name not in raw.columns:
            raise BarDataError(_missing(raw, name))
        frame[name] = _as_numbers(raw, name)

    if "amount" not in frame:
        frame["amount"] = frame["volume"] * frame[list(PRICE_COLUMNS)].mean(axis=1)
        notes.append("amount is missing: derived as volume x mean of open, high, low, close")
    if "factor" not in frame:
        frame["factor"] = 1.0
        notes.append("factor is missing: set to 1, prices are taken as adjusted")
    spare = [name for name in raw.columns if name not in {*found.values(), *extra}]
    if spare:
        notes.append(f"columns left out: {', '.join(spare)}")
    return _Part(frame, raw, found["date"]), notes


def _read_raw(path: Path) -> _RawTable:
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return _read_csv(path)
    if suffix == ".parquet":
        return _read_parquet(path)
    raise BarDataError(f"{path}: expected a file ending in {' or '.join(SUFFIXES)}")


def _read_csv(path: Path) -> _RawTable:
    # Not pandas: it would guess types (000001 to 1, the symbol NA to missing) and lose the rows.
    cells: list[list[str]] = []
    rows: list[int] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header: list[str] | None = None
            for record in reader:
                if not any(record):
                    continue  # a blank line, or nothing but commas
                if header is None:
                    header = [name.strip() for name in record]
                elif len(record) != len(header):
                    raise BarDataError(
                        f"{path}, row {reader.line_num}: {len(record)} cells, the header has "
                        f"{len(header)} columns"
                    )
                else:
                    cells.append(record)
                    rows.append(reader.line_num)
    except UnicodeDecodeError as problem:
        raise BarDataError(f"{path}: not UTF-8 text ({problem.reason})") from problem
    except csv.Error as problem:
        raise BarDataError(f"{path}, row {reader.line_num}: not CSV: {problem}") from problem
    if header is None:
        raise BarDataError(f"{path}: the file is empty")
    _check_header(path, header)
    columns = zip(header, zip(*cells, strict=True), strict=False)
    return _RawTable(
        path,
        {name: np.array(column, dtype=object) for name, column in columns},
        np.array(rows, dtype=np.int64),
    )


def _read_parquet(path: Path) -> _RawTable:
    try:
        frame = pd.read_parquet(path)
    except Exception as problem:  # pyarrow raises many kinds, OSError and ValueError among them
        raise BarDataError(f"{path}: cannot be read as Parquet: {problem}") from problem
    if any(name is not None for name in frame.index.names):
        frame = frame.reset_index()
    frame.columns = frame.columns.map(str)
    _check_header(path, list(frame.columns))
    return _RawTable(
        path,
        {name: _as_array(path, name, frame[name]) for name in frame.columns},
        np.arange(1, len(frame) + 1),
    )


def _as_array(path: Path, name: str, column: pd.Series[Any]) -> npt.NDArray[Any]:
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        raise BarDataError(
            f"{path}, column {name!r}: times carry the zone {column.dtype.tz}; "
            "convert to the exchange's local time and drop the zone"
        )
    if column.dtype.kind in "biufM":
        return column.to_numpy()
    return column.to_numpy(dtype=object)


def _check_header(path: Path, names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise BarDataError(f"{path}: two columns are called {name!r}")
        seen.add(name)


def _missing(raw: _RawTable, name: str) -> str:
    have = ", ".join(repr(column) for column in raw.columns)
    return f"{raw.path}: no column {name!r}; the file has {have}"


def _match_columns(raw: _RawTable, mapping: Mapping[str, str]) -> dict[str, str]:
    """Our name to the file's; optional names are absent where the file has none."""
    found: dict[str, str] = {}
    for ours in LONG_COLUMNS:
        if ours in mapping:
            if mapping[ours] not in raw.columns:
                raise BarDataError(_missing(raw, mapping[ours]))
            found[ours] = mapping[ours]
            continue
        known = ALIASES.get(ours, (ours,))
        claimed = set(mapping.values())
        near = [name for name in raw.columns if name.lower() in known and name not in claimed]
        if len(near) > 1:
            both = " and ".join(repr(name) for name in near)
            raise BarDataError(
                f"{raw.path}: columns {both} could both be {ours!r}; say which with a mapping "
                f"such as {ours}={near[0]}"
            )
        if near:
            found[ours] = near[0]
        elif ours not in ("symbol", "amount", "factor"):
            raise BarDataError(
                f"{_missing(raw, ours)}; name it with a mapping such as {ours}=THEIR_NAME"
            )
    return found


def _as_symbols(raw: _RawTable, column: str, notes: list[str]) -> npt.NDArray[Any]:
    cells = raw.columns[column]
    if cells.dtype.kind in "iu":
        notes.append(f"column {column!r} holds numbers: leading zeros, if any, were lost before")
        return cells.astype(str).astype(object)
    if cells.dtype.kind != "O":
        raise BarDataError(
            f"{raw.path}, column {column!r}: symbols must be text, got {cells.dtype}"
        )
    symbols = np.empty(len(cells), dtype=object)
    for entry, cell in enumerate(cells):
        symbol = cell.strip() if isinstance(cell, str) else ""
        if not symbol:
            raise raw.fail(entry, column, f"expected a symbol, got {cell!r}")
        symbols[entry] = symbol
    return symbols


def _as_dates(raw: _RawTable, column: str) -> npt.NDArray[np.datetime64]:
    cells = raw.columns[column]
    if cells.dtype.kind == "M":
        if np.isnat(cells).any():
            raise raw.fail(int(np.isnat(cells).argmax()), column, "the date is missing")
        return cells
    texts = [str(cell).strip() for cell in cells]
    known: dict[str, datetime] = {}  # dates repeat across instruments: read each once
    for entry, text in enumerate(texts):
        if text not in known:
            try:
                known[text] = _parse_date(text)
            except ValueError as problem:
                raise raw.fail(entry, column, _wrong_date(text)) from problem
    return np.array([known[text] for text in texts], dtype="datetime64[us]")


def _wrong_date(text: str) -> str:
    return f"expected a date like 2024-06-18 or 2024-06-18 09:35:00, got {text!r}"


def _parse_date(text: str) -> datetime:
    match = DATE_TEXT.fullmatch(text)
    if match is None:
        raise ValueError(text)
    part = match.groupdict()
    year = int(part["year"])
    if not 1678 <= year <= 2261:  # what pandas' nanoseconds hold
        raise ValueError(text)
    month, day = part["month"] or part["packed"][:2], part["day"] or part["packed"][2:]
    hour, minute, second = (int(part[name] or 0) for name in ("hour", "minute", "second"))
    return datetime(year, int(month), int(day), hour, minute, second)


def _as_numbers(raw: _RawTable, column: str) -> npt.NDArray[np.float64]:
    cells = raw.columns[column]
    if cells.dtype.kind in "iuf":
        return cells.astype(np.float64)
    if cells.dtype.kind != "O":
        raise BarDataError(f"{raw.path}, column {column!r}: expected numbers, got {cells.dtype}")
    numbers = np.empty(len(cells))
    for entry, cell in enumerate(cells):
        # float() alone would take "1_000"; str() lets Decimal and None through the same door.
        text = str(cell).strip()
        try:
            numbers[entry] = np.nan if text.lower() in NO_NUMBER else float(text)
        except ValueError as problem:
            raise raw.fail(entry, column, f"expected a number, got {text!r}") from problem
        if "_" in text:
            raise raw.fail(entry, column, f"expected a number, got {text!r}")
    return numbers


def _check_spelling(parts: Iterable[_Part]) -> None:
    """Two spellings of one symbol would share a folder in Qlib's storage."""
    spelled: dict[str, tuple[str, Path]] = {}
    for part in parts:
        for symbol in pd.unique(part.frame["symbol"]):
            key = str(symbol).upper().lower()
            first, where = spelled.setdefault(key, (str(symbol), part.raw.path))
            if first != symbol:
                raise BarDataError(
                    f"symbols {first!r} in {where} and {symbol!r} in {part.raw.path} differ only "
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
