"""The market files of a Qlib folder, carried on with new bars."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from kronos_qlib.data.calendar.stamps import Times
from kronos_qlib.plugin.provider.faults import check_market
from kronos_qlib.plugin.provider.writable_bars import ALL_MARKET
from kronos_qlib.plugin.provider.writer import time_format, write_lines

Span = tuple[pd.Timestamp, pd.Timestamp]


def extend_markets(
    folder: Path,
    freq: str,
    before: Times,
    calendar: Times,
    spans: Mapping[str, Span],
    renamed: Mapping[str, str],
) -> dict[str, pd.Timestamp]:
    """Carry every market on with the bars of its instruments.

    `all`, and a market that is a copy of it, gets each instrument's first and last bar, and the
    instruments that are new. In another market a span that ended with the bars of its instrument,
    or with the calendar, goes on with them; who is new in it, others say (`data members`).

    Args:
        folder: changed in place.
        before: (K,) the calendar as it was.
        calendar: (L,) as it is now.
        spans: first and last bar of the instruments that have new ones.
        renamed: old name to new one.

    Returns:
        Where each instrument's span in `all` ended before.
    """
    files = folder / "instruments"
    whole = (files / f"{ALL_MARKET}.txt").read_bytes()
    stored = check_market(folder, ALL_MARKET)
    ended: dict[str, pd.Timestamp] = {}
    for name, last in zip(stored.names, stored.last, strict=True):
        new_name = renamed.get(name.upper(), name.upper())
        ended[new_name] = max(pd.Timestamp(last), ended.get(new_name, pd.Timestamp(last)))
    old_end, new_end = pd.Timestamp(before[-1]), pd.Timestamp(calendar[-1])
    for path in sorted(files.glob("*.txt")):
        copied = path.read_bytes() == whole
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [line.split("\t") for line in lines if line.strip()]
        is_sorted = [row[0] for row in rows] == sorted(row[0] for row in rows)
        rows = [_row(row, freq, renamed, ended, spans, old_end, new_end) for row in rows]
        if copied:
            _bring_up(rows, freq, spans)
        if is_sorted:
            rows.sort(key=lambda row: row[0])  # one instrument's spans stay in their order
        write_lines(path, ["\t".join(row) for row in rows])
    return ended


def _row(
    row: list[str],
    freq: str,
    renamed: Mapping[str, str],
    ended: Mapping[str, pd.Timestamp],
    spans: Mapping[str, Span],
    old_end: pd.Timestamp,
    new_end: pd.Timestamp,
) -> list[str]:
    """A line of a market with its new name, and its new end where the span was open."""
    name = renamed.get(row[0].strip().upper(), row[0].strip())
    last = pd.Timestamp(row[2].strip())
    own_end = ended.get(name.upper())
    if name.upper() in spans and own_end is not None and last == own_end:
        last = max(last, spans[name.upper()][1])
    elif last == old_end and own_end is not None and own_end < old_end:
        last = new_end  # open beyond the instrument's own bars
    else:
        return [name, *row[1:]]
    return [name, row[1], last.strftime(time_format(freq)), *row[3:]]


def _bring_up(rows: list[list[str]], freq: str, spans: Mapping[str, Span]) -> None:
    """First bars that are earlier now, and instruments that are new."""
    form = time_format(freq)
    known: dict[str, list[str]] = {}
    for row in rows:
        known.setdefault(row[0].upper(), row)
    for name, (first, last) in spans.items():
        if name not in known:
            rows.append([name, first.strftime(form), last.strftime(form)])
        elif first < pd.Timestamp(known[name][1]):
            known[name][1] = first.strftime(form)
