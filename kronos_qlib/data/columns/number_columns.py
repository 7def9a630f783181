"""Columns of numbers: their decimal mark, found over all columns of a table, and their values."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from kronos_qlib.data.columns.numerals import (
    decimal_shown_by,
    is_ambiguous,
    read_numbers,
)
from kronos_qlib.data.files.raw import RawTable, Values, show_value
from kronos_qlib.errors import BarDataError

Numbers = npt.NDArray[np.float64]


def to_numbers(
    raw: RawTable, columns: Sequence[str], sizes: Collection[str] = ()
) -> dict[str, Numbers]:
    """Several columns' numbers, NaN where a value is empty or says that there is none.

    All at once, because the values of one show the decimal mark of the others.

    Args:
        sizes: columns after whose numbers K, M or B may stand.

    Raises:
        BarDataError: A value is something else, True and False among them, or may be one number or
            another.
    """
    found: dict[str, Numbers] = {}
    given = raw.how.decimal
    for column in columns:
        values = raw.columns[column]
        if values.dtype.kind in "iuf":
            found[column] = values.astype(np.float64)
        elif values.dtype.kind != "O":
            raise BarDataError(
                f"{raw.source}, column {column!r}: expected numbers, got {values.dtype}"
            )
        elif raw.is_text and given != ",":
            numbers = _all_numbers(values)
            # Where semicolons part the values, a point may part thousands: 1.234 shares.
            if numbers is not None and not (
                _may_part(raw, column, sizes) and "." in "".join(values)
            ):
                found[column] = numbers
    if len(found) == len(columns):
        return found
    # An empty value, a bad one, or a mark between digits: read one by one.
    decimals = _decimals_of(raw, columns, sizes)
    for column, decimal in decimals.items():
        if decimal == "." and column in found:
            continue
        values = raw.columns[column]
        read, bad = read_numbers(values, decimal, scaled=column in sizes)
        if bad is not None:
            entry, problem = bad
            reason = f"; {problem.problem}" if problem.problem else ""
            raise raw.fail(
                entry, column, f"expected a number, got {show_value(values[entry])}{reason}"
            )
        assert read is not None
        found[column] = read
    return {column: found[column] for column in columns}


@dataclass
class _Marks:
    """What the values of a column show of its decimal mark, each with the first entry that does."""

    plain: dict[str, int] = field(default_factory=dict)
    """Marks that a value such as 12,5 proves."""
    grouped: dict[str, int] = field(default_factory=dict)
    """Marks that a value such as 1.234,5 proves."""
    doubtful: int | None = None
    """A value with a mark that proves nothing, where it matters."""


def _decimals_of(raw: RawTable, columns: Iterable[str], sizes: Collection[str]) -> dict[str, str]:
    """Each text column's decimal mark: what its own values show, else what was asked for, else what
    thousands show anywhere, else for sizes what the prices show.

    Raises:
        BarDataError: They show both, or none where it matters.
    """
    marks = {
        column: _marks_of(raw, column, _may_part(raw, column, sizes))
        for column in columns
        if raw.columns[column].dtype.kind == "O"
    }
    grouped = {mark for each in marks.values() for mark in each.grouped}
    prices = {mark for name, each in marks.items() if name not in sizes for mark in each.plain}
    decimals = {}
    for column, shown in marks.items():
        own = {**shown.plain, **shown.grouped}
        if len(own) == 2:
            entry, other = own[","], own["."]
            raise raw.fail(
                entry,
                column,
                f"expected a number, got {show_value(raw.columns[column][entry])}, whose decimal "
                f"mark is a comma, but {show_value(raw.columns[column][other])} in row "
                f"{raw.rows[other]} has a decimal point; write both alike",
            )
        for known in (own, {raw.how.decimal} - {None}, grouped, prices if column in sizes else ()):
            if len(known) == 1:
                decimals[column] = str(next(iter(known)))
                break
        else:
            if shown.doubtful is not None:
                raise raw.fail(shown.doubtful, column, _doubt_message(raw, column, shown.doubtful))
            decimals[column] = "."
    return decimals


def _may_part(raw: RawTable, column: str, sizes: Collection[str]) -> bool:
    """Whether a size's points may part thousands, unless some value shows that they do not."""
    return raw.delimiter == ";" and raw.how.decimal is None and column in sizes


def _marks_of(raw: RawTable, column: str, may_part: bool) -> _Marks:
    marks = _Marks()
    # Where commas part the values, one within quotes is more likely a slip than a decimal mark.
    is_slip = raw.delimiter in (None, ",") and raw.how.decimal != ","
    for entry, value in enumerate(raw.columns[column]):
        if not isinstance(value, str):
            continue
        has_comma = "," in value
        if not has_comma and ("." not in value or ("." in marks.plain and value.count(".") < 2)):
            continue
        shown = decimal_shown_by(value)
        if shown is None or (shown == (",", False) and is_slip):
            if (
                marks.doubtful is None
                and (has_comma or may_part)
                and (shown or is_ambiguous(value))
            ):
                marks.doubtful = entry
        else:
            mark, by_thousands = shown
            (marks.grouped if by_thousands else marks.plain).setdefault(mark, entry)
    return marks


def _doubt_message(raw: RawTable, column: str, entry: int) -> str:
    value = str(raw.columns[column][entry]).strip()
    read = "whose comma may be a decimal mark or a slip"
    if is_ambiguous(value):
        whole = value.replace(",", "").replace(".", "")
        read = f"which may be {whole} or {value.replace(',', '.')}"
    return f"expected a number, got {show_value(value)}, {read}; {raw.decimal_hint(column)}"


def _all_numbers(values: Values) -> Numbers | None:
    """All values of a CSV column in one go: float() of each, which would take "1_000"."""
    if "_" in "".join(values):
        return None
    try:
        return values.astype(np.float64)
    except ValueError:
        pass
    try:
        return np.where(values == "", "nan", values).astype(np.float64)
    except ValueError:
        return None
