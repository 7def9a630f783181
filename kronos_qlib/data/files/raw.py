"""A table of unparsed values, and the hints that error messages give about it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from kronos_qlib.data.calendar.timestamps import DATE_ORDERS, find_zone
from kronos_qlib.errors import BarDataError, ConfigError

Values = npt.NDArray[Any]
"""One column's values: of a type that numpy has, or objects."""

NUMBER_TEXT = re.compile(r"[+-]?\d[\d.:/-]*(?:[eE][+-]?\d+)?", re.ASCII)
"""A number or a date, which no column is called."""


@dataclass(frozen=True, kw_only=True)
class ValueFormat:
    """How values are written, where they do not show it themselves."""

    zone: str | None = None
    """The exchange's time zone, such as "Asia/Shanghai": times with an offset and counts since 1970
    are converted to it. None drops offsets and refuses what is in UTC. Times without an offset
    stay."""
    date_order: str = "ymd"
    """"dmy" or "mdy" where dates do not begin with the year: 02/01/2024."""
    decimal: str | None = None
    """"," or "."; the other one is the thousands separator. None goes by what the values show."""

    def __post_init__(self) -> None:
        if self.zone is not None:
            find_zone(self.zone)
        if self.date_order not in DATE_ORDERS:
            raise ConfigError(
                f"date_order must be one of {', '.join(DATE_ORDERS)}, got {self.date_order!r}"
            )
        if self.decimal not in (None, ".", ","):
            raise ConfigError(f"decimal must be '.' or ',', got {self.decimal!r}")


AS_SHOWN = ValueFormat()
"""The format where the caller gave none."""


@dataclass(frozen=True)
class RawTable:
    """The values of one file or frame."""

    source: str
    """What to call it in a message: the file's path."""
    columns: dict[str, Values]
    """Numbers or datetime64 where numpy has such a type, else objects: text from CSV."""
    rows: npt.NDArray[np.int64]
    """Each entry's row, from 1, as a text editor counts lines; without a header elsewhere."""
    stem: str | None = None
    """The symbol if no column has it: a file's name without its ending."""
    time_index: str | None = None
    """The column that was a frame's index of times."""
    is_text: bool = False
    """Whether every value is a `str`."""
    how: ValueFormat = AS_SHOWN
    """How the values are written."""
    delimiter: str | None = None
    """Of a CSV file."""
    is_series: bool = False
    """Whether it is a frame for the predictor, which has no settings for reading: messages then
    say how to change the frame."""
    notes: tuple[str, ...] = ()
    """What was done to the header."""

    def fail(self, entry: int, column: str, problem: str) -> BarDataError:
        """The error to raise for one value: it names the source, row and column."""
        return BarDataError(f"{self.source}, row {self.rows[entry]}, column {column!r}: {problem}")

    def decimal_hint(self, column: str) -> str:
        """Hint for an error: how to name a column's decimal mark."""
        if self.is_series:
            return (
                f'make it numbers before, with frame[{column!r}].str.replace(",", ".")'
                '.astype(float) if the comma is the decimal mark, with "" for "." if it parts '
                "thousands"
            )
        return 'say which mark is the decimal one, with decimal="," or "." (--decimal ",")'


@dataclass
class Match:
    """Which column is which.

    names: ours to the table's; optional ones are absent where the table has none. clock: the column
    with the time of day, where it stands apart. scales: by what to multiply a column of ours.
    notes: what was decided, a sentence each.
    """

    names: dict[str, str] = field(default_factory=dict)
    clock: str | None = None
    scales: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def spare(self, raw: RawTable, extra: Sequence[str] = ()) -> list[str]:
        """The table's columns that are none of ours."""
        used = {*self.names.values(), *extra, self.clock}
        return [name for name in raw.columns if name not in used]


def missing_column_message(raw: RawTable, name: str) -> str:
    """Error message where a table lacks a column: it lists those that there are."""
    have = ", ".join(repr(column) for column in raw.columns)
    return f"{raw.source}: no column {name!r}; it has {have}{headerless_hint(raw.columns)}"


def mapping_hint(raw: RawTable, ours: str, theirs: str) -> str:
    """Hint for an error: how to map a column of the table to one of ours."""
    if raw.is_series:
        return f"rename it to {ours}: frame.rename(columns={{{theirs!r}: {ours!r}}})"
    shown = theirs if re.fullmatch(r"\w+", theirs) else f'"{theirs}"'
    return f"say --columns {ours}={shown} (in Python columns={{{ours!r}: {theirs!r}}})"


def no_column_hint(raw: RawTable, ours: str) -> str:
    """Hint for an error: how to declare that a table has no such column."""
    if raw.is_series:
        return "drop it"
    return f"say --columns {ours}= (in Python columns={{{ours!r}: ''}})"


def ambiguous(raw: RawTable, ours: str, near: Sequence[str]) -> BarDataError:
    """The error to raise where several columns could be one of ours."""
    both = list_names(near)
    if raw.is_series:
        return BarDataError(
            f"{raw.source}: columns {both} could both be {ours!r}; keep one of them"
        )
    return BarDataError(
        f"{raw.source}: columns {both} could both be {ours!r}; say which with a mapping such as "
        f"{ours}={near[0]}"
    )


def list_names(names: Sequence[str]) -> str:
    """Names of columns for a message: 'a' and 'b'."""
    return " and ".join(repr(name) for name in names)


def headerless_hint(names: Iterable[str]) -> str:
    """Hint for an error where names are mostly numbers, as of a file without header; else ""."""
    given = [name for name in names if name]
    if 2 * sum(NUMBER_TEXT.fullmatch(name.strip()) is not None for name in given) <= len(given):
        return ""
    if given == [str(number) for number in range(len(given))]:
        return (
            "; these are numbers and no names: give it some, such as frame.columns = ['date', "
            "'open', 'high', 'low', 'close', 'volume']"
        )
    return (
        "; the first row looks like a bar, so a header is missing: write one above it, such as "
        "date,open,high,low,close,volume,amount"
    )


def show_value(value: object) -> str:
    """A value for a message."""
    if isinstance(value, str):
        return repr(value.strip()[:60])
    try:
        return repr(str(value)[:60])
    except ValueError:  # Python writes out no whole number of thousands of digits
        return "a number too long to show"
