"""Rows of text as an aligned table for a terminal, or as a Markdown table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from kronos_qlib.markup import inline_markdown, one_line

DASH = "-"
"""Stands where a run has no such number; a note says so."""


def number_text(value: float, how: str = "{:+.4f}") -> str:
    """A number by a format, or DASH where it is not known (NaN)."""
    return DASH if math.isnan(value) else how.format(value)


def interval_text(row: Mapping[str, float], times: float = 1.0, how: str = "{:+.4f}") -> str:
    """`low` to `high` of a row, both `times` so much, or DASH where they are not known (NaN)."""
    if math.isnan(row["low"]):
        return DASH
    return f"{how.format(row['low'] * times)} to {how.format(row['high'] * times)}"


def format_rows(rows: Sequence[Sequence[str]], *, markdown: bool = False) -> str:
    """Rows of equal length, the first the heading: aligned, or as a Markdown table."""
    cleaned = inline_markdown if markdown else one_line
    rows = [[cleaned(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *values in rows:
        cells = [first.ljust(widths[0])]
        cells += [value.rjust(width) for value, width in zip(values, widths[1:], strict=True)]
        lines.append(f"| {' | '.join(cells)} |" if markdown else "  ".join(cells).rstrip())
    rule = "-" * (sum(widths) + 2 * len(widths) - 2)
    if markdown:
        dashes = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
        rule = f"| {' | '.join(dashes)} |"
    lines.insert(1, rule)
    return "\n".join(lines)
