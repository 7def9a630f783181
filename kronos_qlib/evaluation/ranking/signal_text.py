"""What a score knew on one page: the verdict first, then every number beside its baselines."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from kronos_qlib.errors import in_words
from kronos_qlib.evaluation.ranking.day_tables import LEAST_PAIRS
from kronos_qlib.evaluation.ranking.uncertainty import LEVEL, PROMISED
from kronos_qlib.evaluation.text_table import format_rows, interval_text, number_text
from kronos_qlib.markup import markdown

Rows = dict[str, dict[str, float]]

DEFINITIONS = (
    "IC and Rank IC: mean over days of the correlation, within a day, of score and return over the "
    "instruments, by value and by rank. Of bars of minutes each has one, and a day's is the mean "
    f"of its bars'. A time with fewer than {LEAST_PAIRS} names, or at which score or return is "
    "the same for all, is left out. Days on which no name has a return (the last, those before a "
    "stray day of trade) do not count.",
    "t: the mean in standard errors that count how neighbouring days depend on each other, by "
    "equal-weighted cosines (Lazarus, Lewis, Stock and Watson 2018); where returns overlap, no "
    f"wave is shorter than five labels. Intervals: {LEVEL:.0%}, and p, by Student's t with as many "
    "degrees of freedom as there are cosines. They cover 93 to 97 % from 120 days on where "
    "neighbouring days correlate by .5 or less, the overlap of labels aside; where it is less this "
    "page says so. Ratio: mean by standard deviation of a day, not annualised.",
    f"Significant at {1 - LEVEL:.0%}: p is below {1 - LEVEL:.2f}, which is where the interval "
    "leaves zero out; for the score after Holm's correction for all signals that the run tried. "
    "Other runs, and other settings tried before, are not known here.",
    "Baselines are computed from the bars up to the score's own, for the score's rows; where one "
    "is not known (a young name) the row counts for neither. A difference pairs the days.",
    "Neutralised: what is left of a day's ranks of the score after least squares on the ranks of "
    "all baselines. It costs nothing to hold the baselines, so this is what a model adds to them.",
    "Nothing on this page is after cost unless it says so: see portfolio_report for the backtest.",
)
"""What every page says of its numbers."""


def is_significant(row: Mapping[str, float]) -> bool:
    """Whether what SUMMARY describes is significant: its p, or its interval, which agree."""
    return row["p"] < 1 - LEVEL


def signal_page(
    title: str,
    summary: pd.DataFrame,
    years: pd.DataFrame,
    horizons: pd.DataFrame,
    signals: pd.DataFrame,
    baselines: pd.DataFrame,
    definitions: Mapping[str, str],
    *,
    tried: int = 1,
    more: str = "",
) -> str:
    """The page, as Markdown.

    Args:
        title: of the run.
        summary: SUMMARY as columns; the rows ic, rank_ic, and with baselines
            `rank_ic.less_NAME` and `rank_ic.neutralised`.
        years, horizons: of `information_coefficient.by_year` and `information_coefficient.decay`.
        signals: signals.csv of SignalReportRecord; the first row is the score's.
        baselines: on their names, `rank_ic` and `score_rank_ic` on common rows, `with_score`,
            `pairs` and `pairs_left_out`; empty where there is none.
        definitions: of the baselines, by name.
        tried: signals that Holm's correction was made for.
        more: sections before the definitions, as Markdown.
    """
    own = _own(signals)
    found = _rows(summary)
    parts = [
        f"# {markdown(title)}: what the score knew",
        signal_verdict(summary, years, signals, baselines, tried=tried),
        "## The score against its label",
        format_rows(
            [
                ["", "mean", f"{LEVEL:.0%} interval", "t", "ratio", "days", "left out"],
                *(
                    [word, *_cells(row), f"{row['ratio']:+.3f}", *_counts(row)]
                    for word, row in (("IC", found["ic"]), ("Rank IC", found["rank_ic"]))
                ),
            ],
            markdown=True,
        ),
    ]
    if len(baselines):
        parts += ["## Beside baselines, on the same rows", _baseline_table(found, baselines)]
    parts += [
        "## By year",
        _plain_table("Rank IC", years),
        "## By bars of the return, from the bar after the score",
        _plain_table("Rank IC", horizons),
        *_coverage_notes(found, years, horizons),
        "## Signals tried",
        format_rows(
            [
                ["", "Rank IC", f"{LEVEL:.0%} interval", "t", "p, Holm", "like the score", "new"],
                *(_signal_cells(name, row) for name, row in _rows(own).items()),
            ],
            markdown=True,
        ),
        "Like the score: mean rank correlation with it. New: share of the best that were not among "
        "the best a bar before.",
        *([more] if more else []),
        "## What the numbers mean",
        "\n".join(f"- {line}" for line in DEFINITIONS),
    ]
    if len(baselines):
        parts.append("\n".join(f"- {name}: {definitions[str(name)]}." for name in baselines.index))
    return "\n\n".join(parts) + "\n"


def _own(signals: pd.DataFrame) -> pd.DataFrame:
    """The score and the run's signals, without the baselines."""
    return signals[signals["kind"] != "baseline"].drop(columns="kind")


def signal_verdict(
    summary: pd.DataFrame,
    years: pd.DataFrame,
    signals: pd.DataFrame,
    baselines: pd.DataFrame,
    *,
    tried: int = 1,
) -> str:
    """The first paragraph of the page, as Markdown; the arguments are those of `signal_page`."""
    found, own = _rows(summary), _own(signals)
    score, corrected = found["rank_ic"], own["p_holm"].iloc[0]
    significant = is_significant({"p": corrected})
    order = "orders returns" if score["mean"] > 0 else "orders returns the wrong way round"
    lines = [
        f"**The score {order}: significant at {1 - LEVEL:.0%}.**"
        if significant
        else f"**That the score orders returns is not significant at {1 - LEVEL:.0%}.**",
        f"Its Rank IC is {score['mean']:+.4f} a day ({interval_text(score)}, t {score['t']:+.1f}, "
        f"{score['days']:.0f} days; p {_p(corrected)} after Holm's correction for "
        f"{tried} signal{'s' if tried > 1 else ''}).",
    ]
    if score["covers"] < PROMISED:
        lines.append(
            f"This interval is known to cover about {score['covers']:.0%} at such dependence: "
            f"neighbouring days correlate by {score['phi']:.2f}, the overlap of labels aside, and "
            f"there are {score['days']:.0f} of them."
        )
    means = years["mean"].dropna()
    if len(means) > 1:
        lines.append(f"It is above zero in {(means > 0).sum()} of {len(means)} calendar years.")
    by_outcome: dict[str, list[str]] = {}
    for name in map(str, baselines.index):
        by_outcome.setdefault(_outcome(found[f"rank_ic.less_{name}"]), []).append(name)
    lines += [f"It is {outcome} {in_words(names)}." for outcome, names in by_outcome.items()]
    if len(baselines):
        left = found["rank_ic.neutralised"]
        if math.isnan(left["mean"]):
            lines.append("What is left of it without the baselines is not known.")
        elif left["low"] == left["high"] == 0:
            lines.append("Without the baselines nothing is left of it: it is made of them.")
        else:
            lines.append(
                f"Neutralised against {in_words(list(map(str, baselines.index)))}, "
                f"{left['mean']:+.4f} is left ({interval_text(left)}, t {left['t']:+.1f}), "
                f"{'' if is_significant(left) else 'not '}significant."
            )
        alike = baselines["with_score"].dropna()
        if len(alike):
            most = int(alike.abs().argmax())
            lines.append(
                f"Of the baselines it resembles {alike.index[most]} most: rank correlation "
                f"{alike.iloc[most]:+.2f}."
            )
    return " ".join(lines)


def _coverage_notes(found: Rows, years: pd.DataFrame, horizons: pd.DataFrame) -> list[str]:
    """Which intervals cover less than promised, as a paragraph; none where all do."""
    rows = {
        **found,
        **{f"year {year}": row for year, row in _rows(years).items()},
        **{f"{horizon} bars": row for horizon, row in _rows(horizons).items()},
    }
    less = [f"{name} {row['covers']:.0%}" for name, row in rows.items() if row["covers"] < PROMISED]
    if not less:
        return []
    return [
        f"Intervals of {LEVEL:.0%} that are known to cover less, by how neighbouring days "
        f"correlate and how many there are: {', '.join(less)}."
    ]


def _outcome(less: Mapping[str, float]) -> str:
    """How a score stands to a baseline, by the daily differences of their Rank IC."""
    if math.isnan(less["mean"]):
        return "on too few common days to be compared with"
    if not is_significant(less):
        return "not significantly different from"
    return f"significantly {'better' if less['mean'] > 0 else 'WORSE'} than"


def _baseline_table(found: Rows, baselines: pd.DataFrame) -> str:
    head = ["", "Rank IC", "score's there", "score less it", f"{LEVEL:.0%} interval", "t"]
    rows = [[*head, "like the score", "rows", "left out"]]
    for name, row in _rows(baselines).items():
        own = [name, number_text(row["rank_ic"]), number_text(row["score_rank_ic"])]
        counts = [f"{row['pairs']:.0f}", f"{row['pairs_left_out']:.0f}"]
        less = _cells(found[f"rank_ic.less_{name}"])
        rows.append([*own, *less, number_text(row["with_score"], "{:+.2f}"), *counts])
    left = found["rank_ic.neutralised"]
    line = (
        f"Rank IC of the score neutralised against all of them: {number_text(left['mean'])} "
        f"({interval_text(left)}, t {number_text(left['t'], '{:+.1f}')}, {left['days']:.0f} days)."
    )
    return f"{format_rows(rows, markdown=True)}\n\n{line}"


def _signal_cells(name: str, row: Mapping[str, float]) -> list[str]:
    alike, new = number_text(row["with_score"], "{:+.2f}"), number_text(row["turnover"], "{:.0%}")
    cells = _cells({**row, "mean": row["rank_ic"]})
    return [name, *cells, _p(row["p_holm"]), alike, new]


def _rows(table: pd.DataFrame) -> Rows:
    """A table of numbers by the names of its rows and columns."""
    return {
        str(name): dict(zip(map(str, table.columns), values, strict=True))
        for name, values in zip(table.index, table.to_numpy(dtype=np.float64).tolist(), strict=True)
    }


def _plain_table(name: str, table: pd.DataFrame) -> str:
    rows = [["", name, f"{LEVEL:.0%} interval", "t", "days", "left out"]]
    rows += [[key, *_cells(row), *_counts(row)] for key, row in _rows(table).items()]
    return format_rows(rows, markdown=True)


def _cells(row: Mapping[str, float]) -> list[str]:
    return [number_text(row["mean"]), interval_text(row), number_text(row["t"], "{:+.2f}")]


def _counts(row: Mapping[str, float]) -> list[str]:
    return [f"{row['days']:.0f}", f"{row['left_out']:.0f}"]


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else number_text(value, "{:.3f}")
