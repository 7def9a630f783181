"""A comparison in words and tables, as text for a terminal or as Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from kronos_qlib.evaluation.comparison import Blend, Comparison, Pair
from kronos_qlib.evaluation.ic import LEAST_PAIRS
from kronos_qlib.evaluation.markup import inline_markdown, one_line
from kronos_qlib.evaluation.markup import markdown as as_markdown
from kronos_qlib.evaluation.uncertainty import LEVEL, PROMISED, DailyMean

MEASURES: dict[str, tuple[str, Callable[[float], str]]] = {
    "ic": ("IC", "{:.4f}".format),
    "icir": ("ICIR", "{:.4f}".format),
    "rank_ic": ("Rank IC", "{:.4f}".format),
    "rank_icir": ("Rank ICIR", "{:.4f}".format),
    "rank_ic_t": ("t of Rank IC", "{:.2f}".format),
    "oracle_share": ("Share of the oracle's Rank IC", "{:.0%}".format),
    "excess_return": ("Excess return a year, after cost", "{:.2%}".format),
    "information_ratio": ("Information ratio, after cost", "{:.2f}".format),
    "annual_return": ("Return a year, after cost", "{:.2%}".format),
    "sharpe": ("Sharpe ratio, after cost", "{:.2f}".format),
    "deflated_sharpe": ("Deflated Sharpe ratio", "{:.0%}".format),
    "max_drawdown": ("Maximum drawdown, after cost", "{:.2%}".format),
    "turnover": ("Turnover a day", "{:.2%}".format),
    "wall_seconds": ("Wall time", "{:.1f} s".format),
    "run_id": ("MLflow run", "{:.8}".format),
}
"""Column of a comparison's table, what a reader calls it, and how its value is written."""

TEST = (f"{LEVEL:.0%} interval", "t", f"significant at {1 - LEVEL:.0%}")
"""Headings of a test."""

DASH = "-"
"""Stands where a run has no such number; a note says so."""

DEFINITIONS = (
    "IC and Rank IC: mean over days of the correlation, within a day, of score and label over the "
    "instruments; the ratios divide by the standard deviation of the days. Each over the run's own "
    "rows in the table, over the common rows in the tests.",
    "Excess return a year and information ratio are Qlib's: daily return after cost less the "
    "benchmark's, summed and not compounded, 238 days to a year.",
    "Return a year is compounded, after cost; it, the Sharpe ratio and the drawdown are "
    "PortfolioReportRecord's, with 252 days to a year unless a workflow says otherwise.",
    "Turnover counts what was bought and what was sold, as a fraction of the account.",
    "Tests pair the days: mean of the daily difference of Rank IC, of several bars a day their "
    f"mean. Intervals of {LEVEL:.0%} and t: standard error by equal-weighted cosines, Student's t "
    "(Lazarus, Lewis, Stock and Watson 2018), wide enough for labels that overlap. Significant at "
    f"{1 - LEVEL:.0%}: the interval leaves zero out. Intervals cover 93 to 97 % of the time from "
    "120 days on where neighbouring days correlate by .5 or less.",
    "A blend is the mean of its members' percentile ranks of the day, equal weights; no weight is "
    "tuned on the days that judge it. It is tested against the member that was better on these "
    "very days, which favours the member.",
)
"""What every comparison says of its numbers."""

MORE_DEFINITIONS = {
    "oracle_share": "The oracle knows the planted effect of a simulated market; no score does "
    "better in the long run.",
    "deflated_sharpe": "The deflated Sharpe ratio is the chance that a Sharpe ratio is more than "
    "the luck of the best of all signals tried.",
}
"""What is said where the table has such a column."""


def comparison_text(comparison: Comparison, *, markdown: bool = False) -> str:
    """The whole comparison: aligned columns for a terminal, or the same as Markdown tables.

    Names are others' choice: nothing in them becomes Markdown, or a command to the terminal.
    """
    line = as_markdown if markdown else one_line
    parts = [format_rows(measure_rows(comparison), markdown=markdown)]
    signals = comparison.signals
    if signals is not None and len(signals.daily.columns) > 1:
        heading = "## {}".format if markdown else "{}".format
        parts += [heading("Rank IC on the same rows"), common_sentence(comparison)]
        parts.append(format_rows(mean_rows(comparison), markdown=markdown))
        parts.append("\n".join(line(verdict(pair)) for pair in signals.pairs))
        parts.append(heading("What an equal-weight blend adds to its better member"))
        parts.append(format_rows(blend_rows(signals.blends), markdown=markdown))
        parts.append(heading("Mean daily rank correlation of the signals"))
        parts.append(format_rows(correlation_rows(comparison), markdown=markdown))
    notes = notes_of(comparison)
    if notes:
        numbered = enumerate(notes, start=1)
        parts.append("\n".join(f"{number}. {line(note)}" for number, note in numbered))
    return "\n\n".join(parts)


def measure_rows(comparison: Comparison) -> list[list[str]]:
    """A line per measure that some run has, a column per run."""
    table = comparison.table
    rows = [["", *map(str, table.index)]]
    for column, (name, write) in MEASURES.items():
        if column in table and table[column].notna().any():
            rows.append([name, *(_written(value, write) for value in table[column])])
    return rows


def mean_rows(comparison: Comparison) -> list[list[str]]:
    """Mean Rank IC of each run on the common rows, with its interval."""
    signals = comparison.signals
    assert signals is not None
    rows = [["", "Rank IC", f"{LEVEL:.0%} interval", "t"]]
    for name in signals.daily:
        mean = f"{signals.daily[name].mean():.4f}"
        known = signals.means.get(str(name))
        told = [_interval(known.interval(LEVEL)), f"{known.t:.2f}"] if known else [DASH, DASH]
        rows.append([str(name), mean, *told])
    return rows


def pair_rows(pairs: Sequence[Pair]) -> list[list[str]]:
    """A line per test: the first run less the second."""
    rows = [["", "difference", *TEST]]
    for pair in pairs:
        rows.append([f"{pair.one} vs {pair.other}", *_test_cells(pair)])
    return rows


def blend_rows(blends: Sequence[Blend]) -> list[list[str]]:
    """A line per blend and its test against the better member."""
    rows = [["", "Rank IC", "better member", "adds", *TEST]]
    for blend in blends:
        first = [" + ".join(blend.members), f"{blend.rank_ic:.4f}", blend.test.other]
        rows.append([*first, *_test_cells(blend.test)])
    return rows


def correlation_rows(comparison: Comparison) -> list[list[str]]:
    """The matrix of mean daily rank correlations."""
    signals = comparison.signals
    assert signals is not None
    table = signals.correlation
    return [
        ["", *map(str, table.columns)],
        *([str(name), *(f"{value:.2f}" for value in table.loc[name])] for name in table.index),
    ]


def common_sentence(comparison: Comparison) -> str:
    """Which rows all runs were judged on."""
    signals = comparison.signals
    assert signals is not None
    first, last = signals.daily.index[[0, -1]]
    return (
        f"{signals.rows} rows of {signals.instruments} instruments on {len(signals.daily)} days, "
        f"{first:%Y-%m-%d} to {last:%Y-%m-%d}, where every run has a score and the label is known."
    )


def verdict(pair: Pair) -> str:
    """A test in a sentence."""
    test = pair.difference
    if test is None:
        return f"{pair.one} and {pair.other}: not tested, {pair.reason}."
    gap = test.mean
    better, worse = (pair.one, pair.other) if gap >= 0 else (pair.other, pair.one)
    low, high = test.interval()
    bounds = (low, high) if gap >= 0 else (-high, -low)
    said = "significant" if pair.is_significant else "not significant"
    return (
        f"{better} has a daily Rank IC {abs(gap):.4f} above {worse}'s; the difference is {said} "
        f"at {1 - LEVEL:.0%} ({LEVEL:.0%} interval {_interval(bounds)}; p {test.p:.2g}, "
        f"{test.days} days).{coverage_sentence(test)}"
    )


def coverage_sentence(found: DailyMean) -> str:
    """What an interval covers where that is less than its name; else nothing."""
    if not found.covers < PROMISED:
        return ""
    return (
        f" This interval is known to cover about {found.covers:.0%} at such dependence: "
        f"neighbouring days correlate by {found.phi:.2f} beside the labels' overlap, and there are "
        f"{found.days}."
    )


def notes_of(comparison: Comparison) -> list[str]:
    """Notes on these runs, then the definitions that their numbers need."""
    notes = list(comparison.notes)
    signals = comparison.signals
    tests = 0
    if signals is not None:
        tests = len(signals.pairs) + len(signals.blends)
        more = [f"{name} {rows}" for name, rows in signals.own_rows.items() if rows != signals.rows]
        if more:
            notes.append(
                f"Rows with a score, of which {signals.rows} are common to all runs and have a "
                f"label: {', '.join(more)}."
            )
        if signals.times_left_out:
            notes.append(
                f"{signals.times_left_out} common times are left out, on which some run gives "
                f"every instrument the same score, or fewer than {LEAST_PAIRS} instruments are "
                "common."
            )
        less = [
            f"{name} {found.covers:.0%} (correlation {found.phi:.2f}, {found.days} days)"
            for name, found in [
                *((f"mean of {name}", found) for name, found in signals.means.items()),
                *((" + ".join(blend.members), blend.test.difference) for blend in signals.blends),
            ]
            if found is not None and found.covers < PROMISED
        ]
        if less:
            notes.append(
                f"Intervals of {LEVEL:.0%} that are known to cover less where neighbouring days "
                f"depend on each other as here: {', '.join(less)}."
            )
    if tests > 2:
        notes.append(
            f"{tests} tests at {LEVEL:.0%}: with nothing to find, about one in "
            f"{1 / (1 - LEVEL):.0f} is significant by chance."
        )
    shown = [column for column in comparison.table if comparison.table[column].notna().any()]
    asides = [said for column, said in MORE_DEFINITIONS.items() if column in shown]
    return [*notes, *DEFINITIONS, *asides]


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


def _test_cells(pair: Pair) -> list[str]:
    test = pair.difference
    if test is None:
        return [DASH] * 3 + [f"no: {pair.reason}"]
    return [
        f"{test.mean:+.4f}",
        _interval(test.interval()),
        f"{test.t:.2f}",
        "yes" if pair.is_significant else "no",
    ]


def _interval(bounds: tuple[float, float]) -> str:
    return f"{bounds[0]:.4f} to {bounds[1]:.4f}"


def _written(value: object, write: Callable[..., str]) -> str:
    return DASH if isinstance(value, float) and math.isnan(value) else write(value)
