"""What one column's values mean: symbols, dates and times of day."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
import pandas as pd

from kronos_qlib.data.calendar.time_messages import (
    epoch_message,
    mixed_offsets_message,
    time_message,
    zone_message,
)
from kronos_qlib.data.calendar.timestamps import (
    FIRST_YEAR,
    LAST_YEAR,
    Times,
    TimeTextError,
    instants,
    read_texts,
    split_half,
    texts_of,
    to_zone,
)
from kronos_qlib.data.files.raw import RawTable, Values, show_value
from kronos_qlib.errors import BarDataError

CLOCK_TEXT = re.compile(
    r"(?=\d{1,2}:|\d{4}(?:\d\d)?$)(\d{1,2}):?(\d{2})(?::?(\d{2})(?:\.0+)?)?", re.ASCII
)
"""09:35, 09:35:00, 0935 or 093500."""

BARE_CLOCK = re.compile(r"(\d{1,6})(?:\.0+)?", re.ASCII)
"""A time of day that was a number on its way and lost its zeros: 93500, 935, 0."""

NO_DAYS = "0 days "
"""What pandas writes before a time of day that is a duration since midnight."""

LONGEST_SYMBOL = 200
"""Bytes of UTF-8: a symbol names a folder, and file systems allow 255."""


def to_symbols(raw: RawTable, column: str, notes: list[str]) -> Values:
    """(n,) text without blanks around it; whole numbers are taken with a note.

    Raises:
        BarDataError: A value is empty, no text, or a name that no folder can have.
    """
    values = raw.columns[column]
    if values.dtype.kind in "iu":
        notes.append(f"column {column!r} holds numbers: leading zeros, if any, were lost before")
        return values.astype(str).astype(object)
    if values.dtype.kind != "O":
        raise BarDataError(
            f"{raw.source}, column {column!r}: symbols must be text, got {values.dtype}"
        )
    symbols = [value.strip() if isinstance(value, str) else "" for value in values]
    distinct = set(symbols)
    if "" in distinct:
        entry = symbols.index("")
        raise raw.fail(entry, column, f"expected a symbol, got {show_value(values[entry])}")
    for symbol in distinct:
        if problem := symbol_problem(symbol):
            raise raw.fail(symbols.index(symbol), column, problem)
    return np.array(symbols, dtype=object)


def symbol_problem(symbol: str) -> str | None:
    """Why a symbol cannot name an instrument; None if it can.

    A byte-order mark or a zero-width space would make two instruments of one, alike on the screen.
    """
    try:
        size = len(symbol.encode())
    except UnicodeEncodeError:  # half a surrogate pair, which Python lets pass
        return f"the symbol {symbol!r} cannot be written as UTF-8"
    for mark in symbol:
        if unicodedata.category(mark) in ("Cc", "Cf", "Zl", "Zp", "Cn", "Co"):
            name = unicodedata.name(mark, "a control character").lower()
            name = "byte-order mark" if mark == "\ufeff" else name
            return (
                f"the symbol {symbol[:60]!a} holds the invisible character U+{ord(mark):04X} "
                f"({name}); remove it"
            )
    if size > LONGEST_SYMBOL:
        return (
            f"the symbol {symbol[:40]!r}... has {len(symbol)} letters, {size} bytes; it names a "
            f"folder, so at most {LONGEST_SYMBOL} bytes: is the column one of symbols?"
        )
    return None


def to_dates(raw: RawTable, column: str, notes: list[str] | None = None) -> Times:
    """Datetimes as they are, or times in text; see `timestamps`.

    Args:
        notes: takes a sentence where a time zone was dropped or converted.

    Raises:
        BarDataError: A value is missing, no such time, a count since 1970 or in UTC where no zone
            is given, or lies beyond what pandas' nanoseconds hold.
    """
    values = raw.columns[column]
    if values.dtype.kind == "M":
        return _check_span(raw, column, values)
    texts = _texts(raw, column)
    try:
        read = read_texts(texts, raw.how.date_order)
    except TimeTextError as problem:
        raise raw.fail(
            problem.entry, column, problem.problem or time_message(problem.text)
        ) from problem
    zone, prefix = raw.how.zone, "" if notes is None else f"column {column!r}"
    if zone is None and read.epoch is not None:
        raise raw.fail(0, column, epoch_message(texts[0], read.epoch))
    if zone is None and read.is_utc:
        raise raw.fail(0, column, zone_message(texts[0]))
    if zone is None and read.apart is not None:
        raise raw.fail(0, column, mixed_offsets_message(read.apart))
    if zone is None or read.offset is None:
        if read.offset is not None and notes is not None:
            notes.append(
                f"{prefix}: the time zone ({read.offset}) is dropped, times are as they are written"
            )
        return _check_span(raw, column, read.times)
    utc = read.times if read.epoch else instants(texts, raw.how.date_order)
    local = to_zone(utc, zone)
    if notes is not None:
        what = f"{read.epoch} since 1970" if read.epoch else f"times with a zone ({read.offset})"
        how = f"are converted to {zone}" if local is not utc else "are days, and stay"
        notes.append(f"{prefix}: {what} {how}")
    return local


def to_moments(raw: RawTable, day: str, clock: str, notes: list[str] | None = None) -> Times:
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
        moments = _read_clock(raw, clock, midnights, notes)
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


def _texts(raw: RawTable, column: str) -> list[str]:
    try:
        return texts_of(raw.columns[column])
    except ValueError as problem:  # see show_value
        raise BarDataError(f"{raw.source}, column {column!r}: {problem}") from problem


def _check_span(raw: RawTable, column: str, values: Values) -> Times:
    if np.isnat(values).any():
        raise raw.fail(int(np.isnat(values).argmax()), column, "the date is missing")
    years = values.astype("datetime64[Y]").astype(np.int64) + 1970
    beyond = (years < FIRST_YEAR) | (years > LAST_YEAR)
    if beyond.any():
        entry = int(beyond.argmax())
        raise raw.fail(
            entry, column, f"the year {years[entry]} is not from {FIRST_YEAR} to {LAST_YEAR}"
        )
    return values


def _read_clock(raw: RawTable, column: str, midnights: Times, notes: list[str] | None) -> Times:
    """The moments that times of day say, one on each day; full times stand for themselves."""
    if raw.columns[column].dtype.kind == "M":
        return to_dates(raw, column)
    texts = [text.removeprefix(NO_DAYS) for text in _texts(raw, column)]
    codes, unique = pd.factorize(np.array(texts, dtype=object))
    distinct: list[str] = unique.tolist()
    if is_clock(distinct):
        seconds = _seconds_of_day(distinct)
        for place, second in enumerate(seconds):
            if second is None:
                entry = int((codes == place).argmax())
                raise raw.fail(
                    entry,
                    column,
                    f"expected a time of day like 09:35 or 09:35:00, got {texts[entry]!r}",
                )
        of_day = np.array(seconds, dtype="timedelta64[s]")[codes]
        moments: Times = (midnights + of_day).astype("datetime64[us]")
        return moments
    return to_dates(raw, column, notes)


def is_clock(distinct: Sequence[str]) -> bool:
    """Whether values are times of day, by the first of them, and not full times."""
    if CLOCK_TEXT.fullmatch(split_half(distinct[0])[0]) is not None:
        return True
    bare = [BARE_CLOCK.fullmatch(text) for text in distinct]
    return all(bare) and not all(match and len(match[1]) == 3 for match in bare)


def _seconds_of_day(distinct: Sequence[str]) -> list[int | None]:
    """Seconds since midnight, None of a text that is no time of day or may be two.

    Times of day that were numbers get their zeros back: of 93500 to 150000, and of 935 to 1500.
    """
    bare = [BARE_CLOCK.fullmatch(text) for text in distinct]
    if not all(bare):
        return [_parse_clock(text) if ":" in text else None for text in distinct]
    numbers = [match[1] for match in bare if match]
    sizes = {len(number) for number in numbers}
    if sizes <= {4} or sizes <= {6}:
        return [_parse_clock(number) for number in numbers]
    digits = 4 if max(sizes) <= 4 and sizes != {1} else 6
    # 1035 among 103000 may be 10:35 or 00:10:35: only whole minutes are taken for what they seem.
    padded = [number.zfill(digits) for number in numbers]
    return [_parse_clock(text) if digits == 4 or text.endswith("00") else None for text in padded]


def _parse_clock(text: str) -> int | None:
    """Seconds since midnight."""
    text, half = split_half(text)
    match = CLOCK_TEXT.fullmatch(text)
    if match is None:
        return None
    hour, minute, second = (int(part or 0) for part in (match[1], match[2], match[3]))
    if half is not None:
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12 + half
    return hour * 3600 + minute * 60 + second if max(minute, second) < 60 and hour < 24 else None
