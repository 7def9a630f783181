"""What one column's cells mean: symbols, dates, times of day, numbers; or which cell is none."""

from __future__ import annotations

import re
from datetime import datetime
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt

from kronos_qlib.data.readers import RawTable
from kronos_qlib.errors import BarDataError

Times = npt.NDArray[np.datetime64]

NO_NUMBER = frozenset({"", "nan", "na", "n/a", "null", "none", "<na>"})
"""Cells of a number column that say there is no number; any other word is an error."""

DATE_TEXT = re.compile(
    r"(?P<year>\d{4})(?:(?P<sep>[-/.])(?P<month>\d{1,2})(?P=sep)(?P<day>\d{1,2})|(?P<packed>\d{4}))"
    r"(?:[ T](?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?:\.0+)?)?)?",
    re.ASCII,
)
"""Year first, so that no day can be taken for a month; no time zone, no fraction of a second."""

CLOCK_TEXT = re.compile(
    r"(?=\d{1,2}:|\d{4}(?:\d\d)?$)(\d{1,2}):?(\d{2})(?::?(\d{2})(?:\.0+)?)?", re.ASCII
)
"""09:35, 09:35:00, 0935 or 093500. Not 935: it may be five past nine or nine past midnight."""

ZONE = re.compile(r"\d(Z|[+-]\d{2}:?\d{2})$")

EPOCH_TEXT = re.compile(r"(1\d{9}(?:\d{3}){0,3})(?:\.0+)?", re.ASCII)
"""A count since 1970 from 2001 to 2033. Not 2024010209, an hour without its marks."""

EPOCH_UNITS = {
    10: ("seconds", "s"),
    13: ("milliseconds", "ms"),
    16: ("microseconds", "us"),
    19: ("nanoseconds", "ns"),
}
"""By its digits: what such a count counts, and what pandas calls that."""

FIRST_YEAR, LAST_YEAR = 1678, 2261
"""What pandas' nanoseconds hold."""


def to_symbols(raw: RawTable, column: str, notes: list[str]) -> npt.NDArray[Any]:
    """Text without blanks around it; whole numbers are taken with a note.

    Raises:
        BarDataError: A cell is empty or no text.
    """
    cells = raw.columns[column]
    if cells.dtype.kind in "iu":
        notes.append(f"column {column!r} holds numbers: leading zeros, if any, were lost before")
        return cells.astype(str).astype(object)
    if cells.dtype.kind != "O":
        raise BarDataError(
            f"{raw.source}, column {column!r}: symbols must be text, got {cells.dtype}"
        )
    symbols = np.empty(len(cells), dtype=object)
    for entry, cell in enumerate(cells):
        symbol = cell.strip() if isinstance(cell, str) else ""
        if not symbol:
            raise raw.fail(entry, column, f"expected a symbol, got {_show(cell)}")
        symbols[entry] = symbol
    for symbol in set(symbols.tolist()):
        if not is_writable(symbol):
            entry = int((symbols == symbol).argmax())
            raise raw.fail(entry, column, f"the symbol {symbol!r} cannot be written as UTF-8")
    return symbols


def is_writable(text: str) -> bool:
    """Whether text can be stored; half a surrogate pair, which Python lets pass, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def to_dates(raw: RawTable, column: str) -> Times:
    """Datetimes as they are, or dates in text, year first.

    Raises:
        BarDataError: A cell is missing, no such date, carries a time zone, or lies beyond what
            pandas' nanoseconds hold.
    """
    cells = raw.columns[column]
    if cells.dtype.kind == "M":
        return _check_span(raw, column, cells)
    known: dict[str, datetime] = {}  # dates repeat across instruments: read each once
    texts = _texts(raw, column)
    for entry, text in enumerate(texts):
        if text not in known:
            try:
                known[text] = parse_date(text)
            except ValueError as problem:
                raise raw.fail(entry, column, wrong_date(text)) from problem
    return np.array([known[text] for text in texts], dtype="datetime64[us]")


def to_moments(raw: RawTable, day: str, clock: str) -> Times:
    """The times of a table that has the date in one column and the time of day in another.

    Args:
        day: The column of dates.
        clock: The column of times of day, or of full times on those dates.

    Raises:
        BarDataError: The two make no time.
    """
    days = to_dates(raw, day)
    midnights = days.astype("datetime64[D]")
    advice = f"name the column that holds the whole time with a mapping such as date={day}"
    try:
        moments = _read_clock(raw, clock, midnights)
    except BarDataError as problem:
        raise BarDataError(f"{problem}; {day!r} and {clock!r} make no time: {advice}") from problem
    misfit = (moments.astype("datetime64[D]") != midnights) | (
        (days != midnights) & (days != moments)
    )
    if misfit.any():
        entry = int(misfit.argmax())
        raise raw.fail(
            entry, clock, f"{moments[entry]} does not fit {day!r}, {days[entry]}; {advice}"
        )
    return moments


def to_numbers(raw: RawTable, column: str) -> npt.NDArray[np.float64]:
    """Numbers, NaN where a cell is empty or says that there is none.

    Raises:
        BarDataError: A cell is something else, True and False among them.
    """
    cells = raw.columns[column]
    if cells.dtype.kind in "iuf":
        return cells.astype(np.float64)
    if cells.dtype.kind != "O":
        raise BarDataError(f"{raw.source}, column {column!r}: expected numbers, got {cells.dtype}")
    if raw.is_text:
        try:
            return _all_numbers(cells)
        except ValueError:
            pass  # an empty cell, or a bad one: go and see
    numbers = np.empty(len(cells))
    for entry, cell in enumerate(cells):
        try:
            numbers[entry] = _number(cell)
        except (ValueError, OverflowError) as problem:
            raise raw.fail(entry, column, f"expected a number, got {_show(cell)}") from problem
    return numbers


def parse_date(text: str) -> datetime:
    """A date such as 2024-06-18 or 20240618, with a time of day or without.

    Raises:
        ValueError: It is none.
    """
    match = DATE_TEXT.fullmatch(text)
    if match is None:
        raise ValueError(text)
    part = match.groupdict()
    year = int(part["year"])
    if not FIRST_YEAR <= year <= LAST_YEAR:
        raise ValueError(text)
    month, day = part["month"] or part["packed"][:2], part["day"] or part["packed"][2:]
    hour, minute, second = (int(part[name] or 0) for name in ("hour", "minute", "second"))
    return datetime(year, int(month), int(day), hour, minute, second)


def wrong_date(text: str) -> str:
    """What to say of text that is no date."""
    if ZONE.search(text) and ":" in text:
        return (
            f"the time {text!r} carries a time zone; convert to the exchange's local time and drop "
            "the zone: .tz_localize(None), of a column .dt.tz_localize(None), keeps the local "
            "wall-clock time"
        )
    if epoch := EPOCH_TEXT.fullmatch(text):
        name, unit = EPOCH_UNITS[len(epoch[1])]
        return (
            f"{text!r} looks like {name} since 1970; convert them before, with "
            f'pd.to_datetime(..., unit="{unit}"), which gives UTC'
        )
    return f"expected a date like 2024-06-18 or 2024-06-18 09:35:00, got {text!r}"


def _all_numbers(cells: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """All cells of a CSV column in one go: float() of each, which would take "1_000"."""
    if "_" in "".join(cells):
        raise ValueError("an underscore")
    return cells.astype(np.float64)


def _number(cell: Any) -> float:
    is_bool = isinstance(cell, (bool, np.bool_))
    if isinstance(cell, (int, float, np.integer, np.floating, Decimal)) and not is_bool:
        return float(cell)
    text = str(cell).strip()
    if text.lower() in NO_NUMBER:
        return float("nan")
    if "_" in text:  # float() would take "1_000"
        raise ValueError(text)
    return float(text)


def _show(cell: Any) -> str:
    """A cell for a message."""
    if isinstance(cell, str):
        return repr(cell.strip()[:60])
    try:
        return repr(str(cell)[:60])
    except ValueError:  # Python writes out no whole number of thousands of digits
        return "a number too long to show"


def _texts(raw: RawTable, column: str) -> list[str]:
    try:
        return [str(cell).strip() for cell in raw.columns[column]]
    except ValueError as problem:  # see _show
        raise BarDataError(f"{raw.source}, column {column!r}: {problem}") from problem


def _check_span(raw: RawTable, column: str, cells: npt.NDArray[Any]) -> Times:
    if np.isnat(cells).any():
        raise raw.fail(int(np.isnat(cells).argmax()), column, "the date is missing")
    years = cells.astype("datetime64[Y]").astype(np.int64) + 1970
    beyond = (years < FIRST_YEAR) | (years > LAST_YEAR)
    if beyond.any():
        entry = int(beyond.argmax())
        raise raw.fail(
            entry, column, f"the year {years[entry]} is not from {FIRST_YEAR} to {LAST_YEAR}"
        )
    return cells


def _read_clock(raw: RawTable, column: str, midnights: Times) -> Times:
    """The moments that times of day say, one on each day; full times stand for themselves."""
    if raw.columns[column].dtype.kind == "M":
        return to_dates(raw, column)
    texts = _texts(raw, column)
    if CLOCK_TEXT.fullmatch(texts[0]) is None:
        return to_dates(raw, column)
    known: dict[str, int] = {}
    for entry, text in enumerate(texts):
        if text not in known:
            # Where zeros are lost, 1035 is 10:35 or 00:10:35: digits alone must be equally many.
            fits = ":" in text or len(text) == len(texts[0])
            seconds = _parse_clock(text) if fits else None
            if seconds is None:
                raise raw.fail(
                    entry, column, f"expected a time of day like 09:35 or 09:35:00, got {text!r}"
                )
            known[text] = seconds
    seconds_of_day = np.array([known[text] for text in texts], dtype="timedelta64[s]")
    moments: Times = (midnights + seconds_of_day).astype("datetime64[us]")
    return moments


def _parse_clock(text: str) -> int | None:
    """Seconds since midnight."""
    match = CLOCK_TEXT.fullmatch(text)
    if match is None:
        return None
    hour, minute, second = (int(part or 0) for part in (match[1], match[2], match[3]))
    return hour * 3600 + minute * 60 + second if max(minute, second) < 60 and hour < 24 else None
