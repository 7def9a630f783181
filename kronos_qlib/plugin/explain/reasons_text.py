"""`Reasons` in words and tables."""

from __future__ import annotations

import math

import pandas as pd

from kronos_qlib.data.calendar.time_text import show_time
from kronos_qlib.errors import in_words
from kronos_qlib.evaluation.text_table import DASH, format_rows
from kronos_qlib.markup import one_line
from kronos_qlib.pipeline.contributions import GRADIENT, Contributions
from kronos_qlib.plugin.explain.reasons import Reasons

NAMED = 3
"""Inputs that a sentence names."""
WORTH_NAMING = 0.05
"""Standard deviations of the day's scores that an input adds, for a sentence to name it."""
AGREED = 0.9
"""Correlation of contributions with what leaving out says below which they are said to differ."""


def reasons_text(reasons: Reasons, top: int = 20) -> str:
    """The reasons as a page for a terminal.

    Args:
        top: inputs of each model that its table shows, the largest contributions first.
    """
    head = (
        f"{one_line(reasons.instrument)} is number {reasons.rank} of {reasons.names} on "
        f"{show_time(reasons.day)}, with a score of {reasons.score:.6g}."
    )
    if reasons.weights:
        members = [f"{one_line(name)} ({share:.0%})" for name, share in reasons.weights.items()]
        head += f" The score is the weighted mean of the day's percentiles of {in_words(members)}."
    pages = [head]
    for name, part in reasons.parts.items():
        pages.append(f"{one_line(name)}: {part_sentences(part)}")
        pages.append(format_rows(part_rows(part, top)))
    pages += [f"note: {one_line(name)}: {why}" for name, why in reasons.unexplained.items()]
    pages += [f"note: {note}" for note in reasons.notes]
    return "\n\n".join(pages)


def part_sentences(part: Contributions) -> str:
    """Where a model puts the name, what raised and what lowered it, and how sure that is.

    Amounts are in standard deviations of the day's scores.
    """
    unit = part.day_deviation
    if not unit > 0:
        return f"all {part.names} names have the same score that day, so nothing sets this apart."
    apart = (part.score - part.day_mean) / unit
    side = "above" if apart >= 0 else "below"
    parts = part.table["contribution"] / unit
    lines = [
        f"number {part.rank} of {part.names}, {abs(apart):.2f} standard deviations of the day's "
        f"scores {side} their mean."
    ]
    for word, sign in (("Raised", 1), ("Lowered", -1)):
        most = (parts * sign)[parts * sign >= WORTH_NAMING].head(NAMED)
        if len(most):
            named = [
                f"{one_line(str(name))} ({_standing(name, part)}{sign * value:+.2f})"
                for name, value in most.items()
            ]
            lines.append(f"{word} most by {in_words(named)}.")
    kinds = part.by_kind()
    if len(kinds) > 1:
        sums = [
            f"{_kind(str(kind), int(row['inputs']))} {row['contribution'] / unit:+.2f}"
            for kind, row in kinds.iterrows()
        ]
        lines.append(f"In sum: {in_words(sums)}.")
    if part.method == GRADIENT and abs(part.rest) / unit >= WORTH_NAMING:
        lines.append(
            f"The head is not linear: {part.rest / unit:+.2f} is not parted among its inputs."
        )
    agreement = part.agreement
    if math.isfinite(agreement):
        doubt = "" if agreement >= AGREED else ": inputs that say much the same share what they add"
        lines.append(
            f"What leaving out each input loses correlates with this by {agreement:.2f}{doubt}."
        )
    return " ".join(lines)


def part_rows(part: Contributions, top: int) -> list[list[str]]:
    """The largest contributions as rows of text, the first the heading."""
    unit = part.day_deviation if part.day_deviation > 0 else math.nan
    rows = [["input", "higher than", "adds", "without it"]]
    for name, row in part.table.head(top).iterrows():
        above = row["percentile"]
        rows.append(
            [
                one_line(str(name)),
                DASH if math.isnan(above) else f"{above:.0%}",
                _signed(row["contribution"] / unit),
                _signed(-row["left_out"] / unit),
            ]
        )
    if len(part.table) > top:
        others = part.table.iloc[top:]["contribution"].sum() / unit
        rows.append([f"{len(part.table) - top} others", "", _signed(others), ""])
    return rows


def reasons_table(reasons: Reasons) -> pd.DataFrame:
    """Every input of every part, in the score's own units: for a CSV file.

    Returns:
        `model`, `input`, and the columns of `Contributions.table`.
    """
    frames = [part.table.reset_index().assign(model=name) for name, part in reasons.parts.items()]
    columns = ["model", "input", "kind", "percentile", "contribution", "left_out"]
    if not frames:
        return pd.DataFrame(columns=columns)
    return pd.concat(frames, ignore_index=True)[columns]


def _standing(name: object, part: Contributions) -> str:
    """As "higher than 7% of the others; "; "" where the input's value is not known."""
    above = float(part.table["percentile"].to_numpy()[list(part.table.index).index(name)])
    return "" if math.isnan(above) else f"higher than {above:.0%} of the others; "


def _kind(kind: str, inputs: int) -> str:
    if kind == "context":
        return "Kronos' context"
    return f"{inputs} {'scale features' if kind == 'scale' else 'columns'}"


def _signed(value: float) -> str:
    return DASH if math.isnan(value) else f"{value:+.3f}"
