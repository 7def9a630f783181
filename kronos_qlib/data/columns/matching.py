"""Which column of a table is which: one set of rules for files, frames and the predictor's frames.

A column that looks like volume or money is mapped where it can be one thing only, else refused with
its name: left out, it would be zero to the network. So is a column that looks like the symbol where
none is known: left out, it would make one share of several.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kronos_qlib.data.calendar.timestamps import parse_time
from kronos_qlib.data.columns.size_columns import look_for_size, match_size
from kronos_qlib.data.columns.spelling import (
    COMPACT,
    COMPACT_CLOCKS,
    COMPACT_DAYS,
    COMPACT_NAMES,
    TIME,
    compact,
    find_named,
)
from kronos_qlib.data.columns.unread import labels_of
from kronos_qlib.data.files.raw import Match, RawTable, ambiguous, missing_column_message
from kronos_qlib.errors import BarDataError, ConfigError
from kronos_qlib.schema import LONG_COLUMNS, SIZE_COLUMNS

OPTIONAL = ("symbol", "volume", "amount", "factor")
"""What a table may lack."""


def check_mapping(mapping: Mapping[str, str]) -> None:
    """Refuse a mapping of what bars do not have, or "there is none" of what they must have.

    Raises:
        ConfigError
    """
    for ours, theirs in mapping.items():
        if ours not in (*LONG_COLUMNS, TIME):
            known = ", ".join((*LONG_COLUMNS, TIME))
            raise ConfigError(f"columns: bars have no {ours!r}; known: {known}")
        if not theirs and ours not in (*OPTIONAL, TIME):
            raise ConfigError(f"columns: {ours!r} must name a column of the source")


def match_columns(raw: RawTable, mapping: Mapping[str, str], wanted: Sequence[str]) -> Match:
    """Find a table's columns by the caller's mapping and by the names that vendors use.

    Args:
        mapping: ours to the table's; "" says that the table has none.
        wanted: ours to look for. Whether one that lacks is an error the caller decides, but for
            sizes: those may not be passed over.

    Raises:
        BarDataError: a mapped column lacks; a column could be one of two; one looks like a size
            and is not certainly one.
    """
    match = Match()
    for theirs in mapping.values():
        if theirs and theirs not in raw.columns:
            raise BarDataError(missing_column_message(raw, theirs))
    claimed = set(mapping.values())
    free = [name for name in raw.columns if name not in claimed]
    for ours in wanted:
        if ours in mapping:
            if mapping[ours]:
                match.names[ours] = mapping[ours]
        elif ours == "date":
            _match_date(raw, free, match, has_clock=TIME in mapping)
        elif ours in SIZE_COLUMNS:
            match_size(raw, ours, free, match)
        else:
            near = find_named(ours, free, match.names.values())
            if ours == "symbol":
                near = _finest(raw, near, free)
            if len(near) > 1:
                raise ambiguous(raw, ours, near)
            if near:
                match.names[ours] = near[0]
    match.clock = mapping.get(TIME, match.clock) or None
    for ours in SIZE_COLUMNS:
        if ours in wanted and ours not in mapping and ours not in match.names:
            look_for_size(raw, ours, match)
    return match


def _finest(raw: RawTable, near: list[str], free: Sequence[str]) -> list[str]:
    """Of several ways to name an instrument the one with most names: a constant `asset_id` beside
    `tic` would make one share of several.
    """
    if len(near) == 1 or any(compact(name) in COMPACT["symbol"] for name in near):
        return near
    counts = {name: len(set(map(str, raw.columns[name]))) for name in near}
    if not near:
        # A share's name, or a word that need not mean one, such as "asset": only if it varies.
        names = [name for name in free if compact(name) in COMPACT_NAMES]
        labels = {name: labels_of(raw.columns[name]) for name in names}
        counts = {name: len(found[1]) for name, found in labels.items() if found is not None}
    return [max(counts, key=lambda name: counts[name])] if counts else []


def _match_date(raw: RawTable, free: Sequence[str], match: Match, has_clock: bool) -> None:
    near = find_named("date", free, match.names.values())
    days = [name for name in near if compact(name) in COMPACT_DAYS]
    others = [name for name in near if name not in days]
    if has_clock and len(days) == 1:
        near = days
    elif len(days) == len(others) == 1 and (
        compact(others[0]) in COMPACT_CLOCKS or _is_whole_time(raw, days[0], others[0])
    ):
        near, match.clock = days, others[0]
    if not near and raw.time_index is not None:
        near = [raw.time_index]
    if not near and (unnamed := _unnamed_times(raw)) is not None:
        near = [unnamed]
    if len(near) > 1:
        raise ambiguous(raw, "date", near)
    if near:
        match.names["date"] = near[0]


def _is_whole_time(raw: RawTable, day: str, other: str) -> bool:
    """Whether two columns begin with one day, of which the second is the whole time."""
    try:
        first, _ = parse_time(str(raw.columns[day][0]).strip(), raw.how.date_order)
        whole, _ = parse_time(str(raw.columns[other][0]).strip(), raw.how.date_order)
    except (ValueError, IndexError):
        return False
    return first.date() == whole.date()


def _unnamed_times(raw: RawTable) -> str | None:
    """The first column where it has no name and holds times: the index of a frame in CSV."""
    first = next(iter(raw.columns), None)
    if first is None or compact(first) not in ("", "unnamed0", "index"):
        return None
    try:
        parse_time(str(raw.columns[first][0]).strip())
    except (ValueError, IndexError):
        return None
    return first
