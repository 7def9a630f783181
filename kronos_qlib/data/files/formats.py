"""Files and frames as raw tables: text as it stands, rows counted."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as arrow_csv

from kronos_qlib.data.columns.levels import Name, flatten_header, flatten_levels
from kronos_qlib.data.files.raw import AS_SHOWN, RawTable, ValueFormat, Values, headerless_hint
from kronos_qlib.errors import BarDataError, ConfigError, NoBarsError

SUFFIXES = (".csv", ".parquet", ".feather")

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "|"}
"""What is recognised between the values of a CSV file, and what messages call it."""

BYTE_ORDER_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

UNNAMED_TIMES = "(index)"
"""What a frame's unnamed index of times is called in a message."""

LINE_END = re.compile("\r\n|\r|\n")
LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
LINES_ABOVE = re.compile(rf'(?:[ "\ufeff{"".join(DELIMITERS)}]*(?:\r\n|\r|\n))*')
"""Those above a header that hold nothing."""

BLOCK = 2**24
"""Bytes that Arrow reads at a time; no line may be longer."""


def find_files(source: Path) -> tuple[list[Path], list[str]]:
    """The files that a source stands for, and the names of those in a folder that are left out.

    Raises:
        BarDataError: There is no such file or folder, or none in it that can be read.
    """
    if source.is_file():
        return [source], []
    if not source.is_dir():
        raise BarDataError(f"{source}: no such file or folder")
    inside = sorted(p for p in source.iterdir() if p.is_file() and not p.name.startswith("."))
    paths = [path for path in inside if path.suffix.lower() in SUFFIXES]
    if not paths:
        raise BarDataError(f"{source}: the folder holds no {' or '.join(SUFFIXES)} file")
    return paths, [path.name for path in inside if path.suffix.lower() not in SUFFIXES]


def read_file(
    path: Path,
    *,
    encoding: str = "utf-8",
    delimiter: str | None = None,
    how: ValueFormat = AS_SHOWN,
) -> RawTable:
    """The values of a CSV, Parquet or Feather file, by its suffix.

    Args:
        encoding: Of a CSV file, as Python calls it.
        delimiter: Of a CSV file: one character, or "tab"; None finds it in the header.
        how: How values are written.

    Raises:
        BarDataError: The file is empty or of another kind, a record is longer or shorter than the
            header, two columns share a name, or the delimiter is not clear. Names the file.
        ConfigError: Python knows no such encoding, or `delimiter` cannot be one.
    """
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return _read_csv(path, _check_encoding(encoding), _check_delimiter(delimiter), how)
    if suffix not in SUFFIXES:
        raise BarDataError(f"{path}: expected a file ending in {' or '.join(SUFFIXES)}")
    is_parquet = suffix == ".parquet"
    try:
        if not is_parquet:
            _check_feather(path)
        frame = pd.read_parquet(path) if is_parquet else pd.read_feather(path)
    except Exception as problem:  # pyarrow raises many kinds, OSError and ValueError among them
        kind = "Parquet" if is_parquet else "Feather"
        raise BarDataError(f"{path}: cannot be read as {kind}: {problem}") from problem
    return read_frame(frame, source=str(path), stem=path.stem.strip(), how=how)


def _check_feather(path: Path) -> None:
    """Look whether a file's offsets stay inside it: Arrow trusts them, and crashes the process."""
    as_stored = pd.read_feather(path, dtype_backend="pyarrow")
    for place in range(as_stored.shape[1]):
        column: Any = as_stored.iloc[:, place].array
        column.__arrow_array__().validate(full=True)


def read_frame(
    frame: pd.DataFrame,
    *,
    source: str = "the frame",
    stem: str | None = None,
    how: ValueFormat = AS_SHOWN,
    is_series: bool = False,
) -> RawTable:
    """The values of a frame, and of the levels of its index that have a name or hold times.

    Args:
        is_series: see `RawTable`; then the index is left out, since times come beside the frame.

    Raises:
        BarDataError: The columns have several levels and are no table of prices by ticker, or share
            a name; or a level of the index among several has none.
    """
    named: list[tuple[Name, Values]] = []
    time_index = None
    for place, level in enumerate([] if is_series else _levels(frame)):
        holds_times = isinstance(level, pd.DatetimeIndex)
        if level.name is None and frame.index.nlevels > 1:
            raise BarDataError(
                f"{source}: level {place} of the index has no name; give it one, such as "
                "frame.index.names = ['symbol', 'date']"
            )
        if level.name is None and not holds_times:
            continue  # row numbers
        name = UNNAMED_TIMES if level.name is None else str(level.name)
        time_index = name if holds_times else time_index
        named.append((name, _as_array(source, name, level)))
    for place, label in enumerate(frame.columns):
        whole = isinstance(label, tuple) and frame.columns.nlevels > 1
        own: Name = tuple(str(part) for part in label) if whole else str(label)
        named.append((own, _as_array(source, str(label), frame.iloc[:, place])))
    rows = np.arange(1, len(frame) + 1)
    notes: tuple[str, ...] = ()
    if frame.columns.nlevels > 1:
        flat = flatten_levels(named, rows)
        if flat is None:
            raise BarDataError(
                f"{source}: the columns have {frame.columns.nlevels} levels, of which none holds "
                f"open, high, low and close for each ticker; keep one, with names such as 'open', "
                "and one row per instrument and time"
            )
        named, rows, notes = list(flat.columns), flat.rows, (flat.note,)
    _check_header(source, [str(name) for name, _ in named])
    return RawTable(
        source,
        {str(name): values for name, values in named},
        rows,
        stem=stem,
        time_index=time_index,
        how=how,
        is_series=is_series,
        notes=notes,
    )


def _levels(frame: pd.DataFrame) -> list[Any]:
    index = frame.index
    return [index.get_level_values(place) for place in range(index.nlevels)]


def _as_array(source: str, name: str, column: Any) -> Values:
    """Numpy's own types as they are, others value by value: nullable, categories, zoned times."""
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "biufM":
        return np.asarray(column.to_numpy())
    try:
        return np.asarray(column.to_numpy(dtype=object))
    except Exception as problem:  # Arrow looks at text only now, and a broken file's may be none
        raise BarDataError(f"{source}, column {name!r}: cannot be read: {problem}") from problem


def _check_header(source: str, names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            advice = headerless_hint(names) or "; rename or drop one"
            raise BarDataError(f"{source}: two columns are called {name!r}{advice}")
        seen.add(name)


def _check_encoding(encoding: str) -> str:
    try:
        "a".encode(encoding)  # some codecs are none for text
        name = codecs.lookup(encoding).name
    except (LookupError, ValueError) as problem:
        raise ConfigError(
            f"Python knows no text encoding {encoding!r}; utf-8, gb18030 and utf-16 are usual"
        ) from problem
    return "utf-8-sig" if name == "utf-8" else name


def _check_delimiter(delimiter: str | None) -> str | None:
    if delimiter in (None, "tab"):
        return "\t" if delimiter else None
    if len(delimiter) != 1 or not delimiter.isascii() or delimiter in '"\r\n\0':
        raise ConfigError(
            f"a delimiter is one character of ASCII, such as ';', or the word tab, got "
            f"{delimiter!r}"
        )
    return delimiter


def _read_csv(path: Path, encoding: str, delimiter: str | None, how: ValueFormat) -> RawTable:
    try:
        with path.open(encoding=encoding, newline="") as file:
            return _read_text(path, file.read(), delimiter, how)
    except UnicodeError as problem:
        reason = getattr(problem, "reason", problem)
        name = "UTF-8" if encoding == "utf-8-sig" else encoding
        with path.open("rb") as opened:
            is_utf16 = opened.read(2) in BYTE_ORDER_MARKS
        proposed = "utf-16" if is_utf16 and encoding != "utf-16" else "gb18030"
        hint = "" if encoding == proposed else " (Chinese vendors often write gb18030)"
        if proposed == "utf-16":
            hint = ", with whose mark it begins"
        raise BarDataError(
            f'{path}: not {name} text ({reason}); name its encoding, such as encoding="{proposed}" '
            f"or --encoding {proposed}{hint}"
        ) from problem


def _read_text(path: Path, text: str, delimiter: str | None, how: ValueFormat) -> RawTable:
    above = LINES_ABOVE.match(text)
    assert above is not None  # it may be empty
    text = text[above.end() :]
    first_row = 1 + len(LINE_END.findall(above[0]))
    if not text.strip(' "\ufeff' + "".join(DELIMITERS)):
        raise NoBarsError(f"{path}: the file is empty")
    first = LINE_END.split(text, maxsplit=1)[0]
    mark = delimiter or _find_delimiter(path, first_row, first)
    header, ends = _check_quotes(path, text, mark, first_row)
    columns, blank = _split_values(path, text, mark, len(header), ends, _comment_hint(first))
    rows = np.delete(ends[: len(columns[0]) + len(blank)], blank)
    is_empty = np.ones(len(rows), dtype=bool)
    for values in columns:
        if not is_empty.any():
            break
        is_empty &= values == ""
    is_empty[0] = True  # the header
    lines = rows[~is_empty]
    names = [name.strip().lstrip("\ufeff") for name in header]
    named: list[tuple[Name, Values]] = [
        (name, values[~is_empty]) for name, values in zip(names, columns, strict=True)
    ]
    notes: tuple[str, ...] = ()
    if (flat := flatten_header(named, lines)) is not None:
        named, lines, notes = list(flat.columns), flat.rows, (flat.note,)
    _check_header(str(path), [str(name) for name, _ in named])
    return RawTable(
        str(path),
        {str(name): values for name, values in named},
        lines,
        stem=path.stem.strip(),
        is_text=True,
        how=how,
        delimiter=mark,
        notes=notes,
    )


def _check_quotes(
    path: Path, text: str, mark: str, first_row: int
) -> tuple[list[str], Sequence[int]]:
    """The header's names, and the row in which each record ends, or more of them; the header and
    blank lines are records too.

    Where values stand in quotes, which may span lines, the csv module goes over the text first:
    Arrow takes text after a closing quote for a part of the value and a missing one for the file's
    end, both in silence, and counts records where an editor counts lines.
    """
    lines = (match[0] for match in LINE.finditer(text))
    reader = csv.reader(lines, delimiter=mark, strict=True)
    try:
        header = next(reader)
        if '"' not in text:
            return header, range(first_row, first_row + len(text))
        ends = [reader.line_num, *(reader.line_num for _ in reader)]
    except csv.Error as problem:
        row = first_row - 1 + reader.line_num
        raise BarDataError(f"{path}, row {row}: not CSV: {problem}") from problem
    return header, [first_row - 1 + end for end in ends]


def _split_values(
    path: Path, text: str, mark: str, width: int, ends: Sequence[int], comment: str
) -> tuple[list[Values], list[int]]:
    """The values of each column, the header's first, equal ones as one object; and the places of
    empty records of another width, which are left out.

    Arrow's reader and not pandas': that fills short records up in silence, so that another pass
    would have to find them, and is no faster (a second for 757,956 rows of 9 values, either way).
    """
    blank: list[int] = []
    ragged: list[tuple[int, int]] = []

    def skip(record: Any) -> str:
        if any(next(csv.reader([record.text], delimiter=mark))):
            ragged.append((record.number - 1, record.actual_columns))
        else:
            blank.append(record.number - 1)
        return "skip"

    names = [str(place) for place in range(width)]
    has_quotes = '"' in text
    try:
        table = arrow_csv.read_csv(
            io.BytesIO(text.encode()),
            arrow_csv.ReadOptions(column_names=names, use_threads=False, block_size=BLOCK),
            arrow_csv.ParseOptions(
                delimiter=mark,
                quote_char='"' if has_quotes else False,
                newlines_in_values=has_quotes,
                ignore_empty_lines=False,
                invalid_row_handler=skip,
            ),
            arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.dictionary(pa.int32(), pa.string())),
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowException as problem:
        raise BarDataError(f"{path}: not CSV: {problem}") from problem
    if ragged:
        place, found = ragged[0]
        raise BarDataError(
            f"{path}, row {ends[place]}: {found} values, the header has {width} columns"
            f"{comment if place == 1 else ''}"
        )
    columns = []
    for column in table.unify_dictionaries().combine_chunks().columns:
        coded = column.chunk(0)
        columns.append(coded.dictionary.to_numpy(zero_copy_only=False)[coded.indices.to_numpy()])
    return columns, blank


def _comment_hint(header: str) -> str:
    """Hint where the first line is a comment above the table; else ""."""
    shown = header.strip("\ufeff \r\n")[:80]
    if not shown.startswith("#"):
        return ""
    return f"; the first line is {shown!r}, a comment: remove what stands above the header"


def _find_delimiter(path: Path, row: int, header: str) -> str:
    bare = re.sub('"[^"]*"', "", header)  # a name in quotes may hold any of them
    found = [mark for mark in DELIMITERS if mark in bare]
    if len(found) == 1:
        return found[0]
    known = " or ".join(DELIMITERS[mark] for mark in found or DELIMITERS)
    problem = "could be split at" if found else "has no"
    shown = header.strip()[:80]
    advice = "; name the delimiter, such as delimiter=';' or --delimiter ';'"
    if not found:
        advice += ", or remove the line if it is no header"
    advice = _comment_hint(header) or advice
    raise BarDataError(f"{path}, row {row}: the header {shown!r} {problem} {known}{advice}")
