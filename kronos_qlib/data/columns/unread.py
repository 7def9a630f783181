"""Columns that are not read and distinguish bars: several shares, or the bars of a day."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.data.calendar.timestamps import parse_time
from kronos_qlib.data.columns.numerals import MARKED, NO_NUMBER
from kronos_qlib.data.columns.spelling import STATES, TIME
from kronos_qlib.data.columns.values import is_clock, to_dates, to_moments
from kronos_qlib.data.files.raw import Match, RawTable, Values, mapping_hint, no_column_hint
from kronos_qlib.errors import BarDataError, some_of

LOOKS_LIKE_SYMBOL = re.compile(
    r"code|symbol|ticker|\btic|instr|stock|share|asset|contract|secu|_id$|^id$|代码|证券|股票|合约|品种"
)

LOOKS_LIKE_CLOCK = re.compile(r"time|hhmm|clock|minute|时间|时刻")

WEEKDAYS = re.compile(
    r"(?:\d{4}[- ]?)?[qh][1-4]|"
    r"(mon|tue|wed|thu|fri|sat|sun)[a-z]*|(星期|周|礼拜)[一二三四五六日天]|"
    r"(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
)


def check_unread(raw: RawTable, match: Match, extra: Sequence[str], dates: Values | None) -> None:
    """Refuse a table whose bars an unread column distinguishes: several shares, or bars of a day.

    Args:
        dates: (n,) the rows' times; None where they stand elsewhere and increase.

    Raises:
        BarDataError: it names the column, some of its values and what to do.
    """
    symbol = match.names.get("symbol")
    spare = [name for name in match.spare(raw, extra) if name]
    if not spare:
        return
    keys = np.zeros(len(raw.rows), dtype=np.int64)
    if symbol is not None:
        keys = pd.factorize(raw.columns[symbol])[0]
    repeats = 0 if dates is None else _count_repeats(keys, dates)
    for name in spare:
        labels = labels_of(raw.columns[name])
        if labels is None:
            continue
        codes, values = labels
        if repeats and LOOKS_LIKE_CLOCK.search(name.lower()) and is_clock(values):
            continue  # see _check_times
        # A bar or two may be written twice; of several shares, or periods, most times repeat.
        if dates is not None and repeats * (20 if symbol is None else 4) >= len(dates):
            is_apart = _count_repeats(_pair(keys, codes), dates) * 10 <= repeats
        elif symbol is None:
            is_named = _is_text(values) or LOOKS_LIKE_SYMBOL.search(name.lower()) is not None
            is_apart = is_named and not _are_states(values) and _in_runs(codes, dates)
        else:
            continue
        if is_apart:
            raise BarDataError(_labels_message(raw, name, values, repeats, symbol))
    if dates is not None and 2 * repeats >= len(dates):
        _check_times(raw, match, spare, keys, dates, repeats)


def _count_repeats(codes: Values, dates: Values) -> int:
    return int(pd.DataFrame({"code": codes, "date": dates}).duplicated().sum())


def labels_of(values: Values) -> tuple[npt.NDArray[np.int64], list[str]] | None:
    """Each row's label and the labels, where a column could name instruments.

    Args:
        values: (n,) of the column.

    That is, where it has several values, each of several rows, and none is missing, a time or a
    number with decimals.
    """
    if values.dtype.kind not in "OiuUS" or not len(values):
        return None
    if values.dtype.kind == "O":
        try:
            codes, unique = pd.factorize(values)
        except TypeError:  # lists and their like
            return None
    else:
        codes, unique = pd.factorize(values)
    if (codes < 0).any() or not 1 < len(unique) <= max(2, len(values) // 2):
        return None
    labels = [str(value).strip() for value in unique]
    if any(value.lower() in NO_NUMBER for value in labels):
        return None
    if all(MARKED.fullmatch(value.rstrip("%")) for value in labels) and not all(
        value.isdigit() for value in labels
    ):
        return None
    return None if all(map(_is_time, labels)) else (codes, labels)


def _is_text(values: Sequence[str]) -> bool:
    """Whether labels are words: not numbers, but for the 000001 of a share."""
    return not all(value.isdigit() for value in values) or any(
        len(value) == 6 or (len(value) > 1 and value.startswith("0")) for value in values
    )


def _is_time(text: str) -> bool:
    if is_clock([text]) and not text.isdigit():
        return True
    try:
        parse_time(text)
    except ValueError:
        return False
    return True


def _are_states(values: Sequence[str]) -> bool:
    """Whether labels are weekdays, months, or yes and no."""
    small = [value.lower() for value in values]
    return all(value in STATES for value in small) or all(map(WEEKDAYS.fullmatch, small))


def _in_runs(codes: npt.NDArray[np.int64], dates: Values | None) -> bool:
    """Whether each label has its rows in one block, as one share after another has.

    A label that comes and goes while time goes on is a state of one share.
    """
    orders = [codes] if dates is None else [codes, codes[np.argsort(dates, kind="stable")]]
    labels = len(np.unique(codes))
    return any(int((order[1:] != order[:-1]).sum()) + 1 == labels for order in orders)


def _labels_message(
    raw: RawTable, name: str, values: Sequence[str], repeats: int, symbol: str | None
) -> str:
    some = some_of(values, 4)
    if raw.is_series:
        return (
            f"{raw.source}: column {name!r} has several values ({some}), so the frame may hold "
            "several instruments: give one frame for each, or drop the column if it is one"
        )
    if symbol is not None:
        return (
            f"{raw.source}: {repeats} of {len(raw.rows)} bars have the symbol and the time of "
            f"another, and {name!r} ({some}) distinguishes them: keep the rows of one value, or if "
            f"these are the instruments, {mapping_hint(raw, 'symbol', name)}"
        )
    why = f", which distinguishes the {repeats} bars that share a time with another" * bool(repeats)
    # Without the symbol the bars of one time would be refused next.
    none = "keep the rows of one value and " * bool(repeats) + no_column_hint(raw, "symbol")
    return (
        f"{raw.source}: no column of symbols is known, but {name!r} has several values ({some})"
        f"{why}: if they are the instruments, {mapping_hint(raw, 'symbol', name)}; if all is one "
        f"instrument, {none}"
    )


def _check_times(
    raw: RawTable,
    match: Match,
    spare: Sequence[str],
    keys: Values,
    dates: Values,
    repeats: int,
) -> None:
    """Where most times repeat, name an unread column that holds the time of day."""
    for name in spare:
        values = raw.columns[name]
        if values.dtype.kind not in "OMiu":
            continue
        texts = [str(value).strip() for value in values]
        distinct = list(dict.fromkeys(texts))
        ours = TIME if values.dtype.kind != "M" and is_clock(distinct) else "date"
        if len(distinct) < 2 or (ours == "date" and not _is_time(distinct[0])):
            continue
        try:
            # What is advised here must not be refused when it is followed.
            day = match.names["date"]
            times = to_moments(raw, day, name) if ours == TIME else to_dates(raw, name)
        except BarDataError:
            continue
        if _count_repeats(keys, _pair(times, dates)) * 10 > repeats:
            continue
        raise BarDataError(
            f"{raw.source}: {repeats} of {len(dates)} bars have a time that another bar has, as "
            f"{match.names['date']!r} is read without the time of day; column {name!r} has it "
            f"(such as {texts[0]!r}): {mapping_hint(raw, ours, name)}"
        )


def _pair(times: Values, dates: Values) -> npt.NDArray[np.int64]:
    """One number for each pair of two columns' values."""
    one, two = pd.factorize(times)[0], pd.factorize(dates)[0]
    paired: npt.NDArray[np.int64] = one.astype(np.int64) * (int(two.max()) + 1) + two
    return paired
