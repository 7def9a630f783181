"""What a score holds, when it works and what it earns after cost, in sentences and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping

from kronos_qlib.errors import in_words
from kronos_qlib.evaluation.ranking.exposure import REST, SECTOR, TOTAL
from kronos_qlib.evaluation.ranking.uncertainty import LEVEL
from kronos_qlib.evaluation.text_table import DASH, format_rows, interval_text, number_text

WORTH_SAYING = 0.1
"""Rank correlation with a style below which a score is not called exposed to it."""
Row = Mapping[str, float]
"""SUMMARY of a daily series."""
STATE_WORDS = {
    "trend": ("the market fell most", "it rose most"),
    "turbulence": ("it was calm", "it was turbulent"),
}
"""Of each measure of the market, its lowest and its highest third."""


def style_page(
    exposures: Mapping[str, Row],
    parts: Mapping[str, Row],
    conditions: Mapping[tuple[str, str], Row],
    books: Mapping[tuple[str, str], Row],
    definitions: Mapping[str, str],
    *,
    left: float,
    top: float,
    cost_bp: float,
) -> str:
    """Sections of summary.md, as Markdown.

    Args:
        exposures, parts: by style, and by part of the return.
        conditions: by condition and state of the market, "" where there is one only.
        books: by book, and "on time" or "a bar later".
        definitions: of the styles.
        left: share of the variance of the score's ranks that the styles leave.
        top: share of the names on a side of a book.
        cost_bp: basis points of the money traded.
    """
    return "\n\n".join(
        [
            "## What the score holds",
            " ".join(_holding_sentences(exposures, parts, conditions, left)),
            _exposure_table(exposures, parts),
            "Exposure: mean over days of the rank correlation of the score with the style"
            + (
                "; of sector, the share of the variance of ranks between sectors beyond what "
                "as many sectors without meaning would hold"
                if SECTOR in exposures
                else ""
            )
            + ". Earned: of the return of a book that holds the day's ranks, 1 of money long and 1 "
            "short, before cost, the part that a regression on the styles over the names gives to "
            "each; parts add up. Styles are of bars up to the score's own: "
            + "; ".join(f"{name}, {text}" for name, text in definitions.items())
            + ".",
            "## When it works, and what a delay costs",
            " ".join(_condition_sentences(conditions)),
            _condition_table(conditions),
            "Trend and turbulence: mean over the day's names of the return and of the volatility "
            "of their past 20 bars, in the third of its own past up to that close; the first 20 "
            "times are in none.",
            f"## Best and worst {top:.0%}, after {cost_bp:g} bp",
            " ".join(_book_sentences(books, top, cost_bp)),
            _book_table(books),
            "Equal parts, made anew at every bar, without lots, limits, borrowing or fees but the "
            "cost of what is traded; long only is over the mean of all names. What the backtest "
            "earns, and how much money it bears, is in portfolio_report.",
        ]
    )


def _holding_sentences(
    exposures: Mapping[str, Row],
    parts: Mapping[str, Row],
    conditions: Mapping[tuple[str, str], Row],
    left: float,
) -> list[str]:
    known = {
        name: row["mean"]
        for name, row in exposures.items()
        if name != SECTOR and math.isfinite(row["mean"])
    }
    strong = [
        name
        for name in sorted(known, key=lambda name: -abs(known[name]))
        # One that is the same on all days has no interval, and needs none.
        if abs(known[name]) >= WORTH_SAYING
        and (math.isnan(exposures[name]["low"]) or _significant(exposures[name]))
    ]
    lines = []
    if strong:
        named = [
            f"{'high' if known[name] > 0 else 'low'} {name} ({known[name]:+.2f})" for name in strong
        ]
        lines.append(f"The score leans to {in_words(named)}: mean rank correlations by day.")
    elif known:
        lines.append(
            f"The score leans significantly to no style by a rank correlation of {WORTH_SAYING:g} "
            "or more."
        )
    else:
        lines.append("No style is known of the score's names.")
    if math.isfinite(left):
        lines.append(f"The styles explain {1 - left:.0%} of its ranks' variance.")
    rest = conditions["styles taken out", ""]
    if math.isnan(rest["mean"]):
        lines.append("What they leave has no Rank IC: nothing is left, or on too few days.")
    else:
        word = "significant" if _significant(rest) else "not significant"
        lines.append(
            f"What they leave has a Rank IC of {rest['mean']:+.4f} ({interval_text(rest)}), {word}."
        )
    if math.isfinite(parts[TOTAL]["mean"]):
        total, own = parts[TOTAL], parts[REST]
        lines.append(
            f"Of {_bp(total['mean'])} a bar that its ranks earn before cost, "
            f"{_bp(total['mean'] - own['mean'])} come from styles and {_bp(own['mean'])} from the "
            f"rest ({interval_text(own, 1e4, '{:+.1f}')} bp, "
            f"{'' if _significant(own) else 'not '}significant)."
        )
    return lines


def _condition_sentences(conditions: Mapping[tuple[str, str], Row]) -> list[str]:
    lines = []
    for measure, (low, high) in STATE_WORDS.items():
        if (measure, "low") not in conditions:
            continue
        first, last = conditions[measure, "low"], conditions[measure, "high"]
        apart = conditions[measure, "high less low"]
        if math.isnan(first["mean"]) or math.isnan(last["mean"]):
            lines.append(f"Days on which {low}, or {high}, are too few to say anything.")
            continue
        lines.append(
            f"On days on which {low} its Rank IC is {first['mean']:+.4f}, on which {high} "
            f"{last['mean']:+.4f}; the difference is {_judged(apart)}."
        )
    late, lost = (
        conditions["a bar later", ""],
        conditions["a bar later", "less on time"],
    )
    if math.isnan(late["mean"]) or math.isnan(lost["mean"]):
        lines.append("What a delay of one bar costs is not known.")
    else:
        lines.append(
            f"Traded one bar later it has {late['mean']:+.4f}; the change of {lost['mean']:+.4f} "
            f"is {_judged(lost)}."
        )
    return lines


def _book_sentences(books: Mapping[tuple[str, str], Row], top: float, cost_bp: float) -> list[str]:
    lines = []
    for book, words in (
        ("long_only", f"The best {top:.0%} earn"),
        ("long_short", "The best less the worst earn"),
    ):
        net, late = books[f"{book}_net", "on time"], books[f"{book}_net", "a bar later"]
        if math.isnan(net["mean"]):
            lines.append(f"What {book.replace('_', ' ')} earns is not known.")
            continue
        gross = books[book, "on time"]["mean"]
        over = " over the mean of all names" if book == "long_only" else ""
        lines.append(
            f"{words} {_bp(gross)} a bar{over} before cost and {_bp(net['mean'])} after it "
            f"({interval_text(net, 1e4, '{:+.1f}')} bp, {_judged(net)}); traded a bar later "
            f"{_bp(late['mean'])}."
        )
    return lines


def _exposure_table(exposures: Mapping[str, Row], parts: Mapping[str, Row]) -> str:
    rows = [["", "exposure", f"{LEVEL:.0%} interval", "earned, bp a bar", f"{LEVEL:.0%} interval"]]
    for name in dict.fromkeys([*exposures, *parts]):
        held = [DASH, DASH]
        if name in exposures:
            row = exposures[name]
            held = [number_text(row["mean"], "{:+.3f}"), interval_text(row, how="{:+.3f}")]
        earned = [DASH, DASH]
        if name in parts:
            row = parts[name]
            earned = [number_text(row["mean"] * 1e4, "{:+.2f}"), interval_text(row, 1e4, "{:+.2f}")]
        rows.append([str(name), *held, *earned])
    return format_rows(rows, markdown=True)


def _condition_table(conditions: Mapping[tuple[str, str], Row]) -> str:
    rows = [["", "Rank IC", f"{LEVEL:.0%} interval", "t", "days"]]
    for (condition, state), row in conditions.items():
        name = f"{condition}, {state}" if state else str(condition)
        t = number_text(row["t"], "{:+.2f}")
        rows.append([name, number_text(row["mean"]), interval_text(row), t, f"{row['days']:.0f}"])
    return format_rows(rows, markdown=True)


def _book_table(books: Mapping[tuple[str, str], Row]) -> str:
    rows = [["", "bp a bar", f"{LEVEL:.0%} interval", "t", "a bar later", f"{LEVEL:.0%} interval"]]
    for name in dict.fromkeys(book for book, _ in books):
        now, late = books[name, "on time"], books[name, "a bar later"]
        if name.endswith("_traded"):
            traded = [number_text(row["mean"], "{:.0%}") for row in (now, late)]
            rows.append([f"{_words(name)}, of the account", traded[0], DASH, DASH, traded[1], DASH])
            continue
        cells = [
            [number_text(row["mean"] * 1e4, "{:+.2f}"), interval_text(row, 1e4, "{:+.2f}")]
            for row in (now, late)
        ]
        rows.append([_words(name), *cells[0], number_text(now["t"], "{:+.2f}"), *cells[1]])
    return format_rows(rows, markdown=True)


def _words(book: str) -> str:
    return book.replace("_net", ", after cost").replace("_traded", ", traded").replace("_", " ")


def _significant(row: Row) -> bool:
    return bool(row["low"] > 0 or row["high"] < 0)


def _judged(row: Row) -> str:
    if math.isnan(row["low"]):
        return "not tested: too few days"
    return "significant" if _significant(row) else "not significant"


def _bp(value: float) -> str:
    return f"{value * 1e4:+.1f} bp"
