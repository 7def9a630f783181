"""The report of live days in words and tables, as text for a terminal or as Markdown."""

from __future__ import annotations

import math

from kronos_qlib.evaluation.live.drift import LARGE, MODERATE, drift_word
from kronos_qlib.evaluation.live.live_quality import EWMA, LiveQuality, Measure
from kronos_qlib.evaluation.ranking.uncertainty import LEVEL, DailyMean
from kronos_qlib.evaluation.text_table import DASH, format_rows
from kronos_qlib.markup import markdown as as_markdown
from kronos_qlib.markup import one_line

DEFINITIONS = (
    "Every entry counts that stood in the ledger before the market opened; of several of a day the "
    "newest. Means are over days.",
    f"Intervals of {LEVEL:.0%}: standard error by equal-weighted cosines, Student's t (Lazarus, "
    "Lewis, Stock and Watson 2018), wide enough for labels that overlap. Fewer than 10 days have "
    "none.",
    "Promised: the mean of the backtest's days, as it was written into the ledger with the scores. "
    "Live less promised has both errors (Welch). Shares within intervals are promised by their "
    "levels.",
    f"CRPS by the quantiles of the ledger: twice their mean pinball loss, in basis points of "
    f"return; {EWMA} is a random walk of RiskMetrics' volatility, known at the same close.",
    "Returns: what the book of the day and the day's orders would have earned to the next close, "
    "at the backtest's prices and costs; an order beyond its limit, or of a name that did not "
    "trade, is not filled.",
    f"Population stability index: below {MODERATE:g} small, from {LARGE:g} large, by convention "
    "and no test. A market that grows calmer or wilder moves it without any fault.",
)


def live_text(quality: LiveQuality, *, markdown: bool = False) -> str:
    """The whole report: aligned columns for a terminal, or the same as Markdown tables."""
    line = as_markdown if markdown else one_line
    heading = "## {}".format if markdown else "{}".format
    parts = ["\n".join(f"{name}: {line(words)}" for name, words in quality.about.items())]
    parts += [line(f"Warning: {warning}") for warning in quality.warnings]
    if not quality.warnings:
        parts.append("Nothing differs significantly from what was promised.")
    parts.append(heading("Live beside promised"))
    if quality.measures:
        parts.append(format_rows(measure_rows(quality), markdown=markdown))
    else:
        parts.append("No outcome is known yet.")
    if quality.drift:
        parts.append(heading("Drift"))
        parts.append(format_rows(drift_rows(quality), markdown=markdown))
    numbered = enumerate((*quality.notes, *DEFINITIONS), start=1)
    parts.append("\n".join(f"{number}. {line(note)}" for number, note in numbered))
    return "\n\n".join(part for part in parts if part)


def measure_rows(quality: LiveQuality) -> list[list[str]]:
    """The table of measures, the heading first."""
    rows = [["", "live", f"{LEVEL:.0%} interval", "days", "promised", "difference", "p", "differs"]]
    for measure in quality.measures:
        gap, promised = measure.gap, measure.promised
        mean = promised.mean if isinstance(promised, DailyMean) else promised
        rows.append(
            [
                measure.name,
                _written(measure.value, measure),
                " to ".join(_written(end, measure) for end in measure.live.interval())
                if measure.live is not None
                else DASH,
                str(measure.days),
                DASH if mean is None else _written(mean, measure),
                DASH if gap is None else _written(gap.difference, measure),
                DASH if gap is None else f"{gap.p:.2g}",
                DASH if gap is None else "yes" if gap.is_significant else "no",
            ]
        )
    return rows


def drift_rows(quality: LiveQuality) -> list[list[str]]:
    """The table of population stability indices, the heading first."""
    rows = [["", "index", "shift"]]
    for name, index in quality.drift.items():
        rows.append([name, DASH if math.isnan(index) else f"{index:.3f}", drift_word(index)])
    return rows


def _written(value: float, measure: Measure) -> str:
    if math.isnan(value):
        return DASH
    if measure.form == "percent":
        return f"{value:.1%}"
    if measure.form == "basis points":
        return f"{value * 1e4:.1f} bp"
    return f"{value:.4f}"
