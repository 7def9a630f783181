"""What a message says of a table's columns, and how the caller may say which is which."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from kronos_qlib.data.readers import RawTable, tell_headerless
from kronos_qlib.errors import BarDataError


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


def tell_missing(raw: RawTable, name: str) -> str:
    """What to say where a table lacks a column."""
    have = ", ".join(repr(column) for column in raw.columns)
    return f"{raw.source}: no column {name!r}; it has {have}{tell_headerless(raw.columns)}"


def tell_mapping(raw: RawTable, ours: str, theirs: str) -> str:
    """How to say that a column is one of ours."""
    if raw.is_series:
        return f"rename it to {ours}: frame.rename(columns={{{theirs!r}: {ours!r}}})"
    shown = theirs if re.fullmatch(r"\w+", theirs) else f'"{theirs}"'
    return f"say --columns {ours}={shown} (in Python columns={{{ours!r}: {theirs!r}}})"


def tell_none(raw: RawTable, ours: str) -> str:
    """How to say that a table has no such column."""
    if raw.is_series:
        return "drop it"
    return f"say --columns {ours}= (in Python columns={{{ours!r}: ''}})"


def ambiguous(raw: RawTable, ours: str, near: Sequence[str]) -> BarDataError:
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
    return " and ".join(repr(name) for name in names)
