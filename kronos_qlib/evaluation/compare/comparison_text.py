"""A comparison in words and tables, as text for a terminal or as Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pandas as pd

from kronos_qlib.evaluation.compare.comparison import Blend, Comparison, Equity, Pair
from kronos_qlib.evaluation.compare.verdicts import (
    interval_text,
    money_pair_verdicts,
    run_verdicts,
    verdict,
)
from kronos_qlib.evaluation.ranking.day_tables import LEAST_PAIRS
from kronos_qlib.evaluation.ranking.uncertainty import LEVEL, PROMISED
from kronos_qlib.evaluation.text_table import DASH, format_rows
from kronos_qlib.markup import markdown as as_markdown
from kronos_qlib.markup import one_line

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
    "deflated_sharpe": ("Deflated Sharpe ratio of the excess", "{:.0%}".format),
    "trials": ("Trials it is deflated by", "{:.0f}".format),
    "max_drawdown": ("Maximum drawdown, after cost", "{:.2%}".format),
    "turnover": ("Turnover a day", "{:.2%}".format),
    "capacity": ("Capacity, money", "{:,.0f}".format),
    "wall_seconds": ("Wall time", "{:.1f} s".format),
    "run_id": ("MLflow run", "{:.8}".format),
}
"""Column of a comparison's table, what a reader calls it, and how its value is written."""

HOLDINGS: dict[str, tuple[str, Callable[[float], str]]] = {
    "rank_ic.rest": ("Rank IC, styles taken out", "{:+.4f}".format),
    "rank_ic.delayed": ("Rank IC, traded a bar later", "{:+.4f}".format),
    "long_only_net": ("Best over the mean, after cost, bp a bar", lambda it: f"{it * 1e4:+.1f}"),
    "long_short_net": ("Best less worst, after cost, bp a bar", lambda it: f"{it * 1e4:+.1f}"),
}
"""What stands below the exposures of a score, what a reader calls it, and how it is written."""
HELD = (
    "Rank correlation by day with styles that cost nothing to hold, and what is left without them, "
    "or after a delay, or after cost; each over the run's own rows."
)
"""What the section of holdings says of itself."""

TEST = (f"{LEVEL:.0%} interval", "t", f"significant at {1 - LEVEL:.0%}")
"""Headings of a test."""


DEFINITIONS = (
    "IC and Rank IC: mean over days of the correlation, within a day, of score and label over the "
    "instruments; the ratios divide by the standard deviation of the days. Each over the run's own "
    "rows in the table, over the common rows in the tests.",
    "Excess return: daily return after cost less the benchmark's, summed and not compounded; the "
    "information ratio divides its mean by its standard deviation. It is called significant where "
    "the interval of the excess return leaves zero out. Return a year is compounded, after cost.",
    "Turnover counts what was bought and what was sold, as a fraction of the account. Capacity: "
    "the account of which 95 % of orders take 5 % or less of what is traded in their bar.",
    "Tests pair the days: mean of the daily difference of Rank IC, of several bars a day their "
    f"mean, or of excess return after cost. Intervals of {LEVEL:.0%} and t: standard error by "
    "equal-weighted cosines, Student's t (Lazarus, Lewis, Stock and Watson "
    "2018), wide enough for labels that overlap. Significant at "
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
    "deflated_sharpe": "The deflated Sharpe ratio is the probability that the ratio of the excess "
    "over the benchmark to its risk is above what the best of all trials has without skill. Trials "
    "are counted alike for all runs: the sum, over the runs compared, of the signals that each "
    "kept, its score included, or of the trials that its workflow says. Trials before those are "
    "not known here.",
}
"""Definitions of columns that not every table has."""


def comparison_text(comparison: Comparison, *, markdown: bool = False) -> str:
    """The whole comparison: aligned columns for a terminal, or the same as Markdown tables.

    Names are others' choice: nothing in them becomes Markdown, or a command to the terminal.
    """
    line = as_markdown if markdown else one_line
    heading = "## {}".format if markdown else "{}".format
    parts = [format_rows(measure_rows(comparison), markdown=markdown)]
    signals = comparison.signals
    verdicts = run_verdicts(comparison)
    if verdicts:
        parts.append(heading("Does it order returns, and does the money come from that?"))
        parts.append("\n\n".join(line(each) for each in verdicts))
    if held := holding_rows(comparison):
        parts += [heading("What each score holds"), HELD, format_rows(held, markdown=markdown)]
    equity = comparison.equity
    if equity is not None and equity.pairs:
        parts.append(heading("Excess return after cost on the same days"))
        parts.append("\n\n".join(line(each) for each in money_pair_verdicts(equity)))
    if signals is not None and len(signals.daily.columns) > 1:
        parts += [heading("Rank IC on the same rows"), common_sentence(comparison)]
        parts.append(format_rows(mean_rows(comparison), markdown=markdown))
        parts.append("\n\n".join(line(verdict(pair)) for pair in signals.pairs))
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
    """A line per measure that some run has; a column per run, and one of the benchmark."""
    table, equity = comparison.table, comparison.equity
    bench = None if equity is None else equity.benchmark
    heading = [] if equity is None else [benchmark_name(equity, list(map(str, table.index)))]
    rows = [["", *map(str, table.index), *heading]]
    for column, (name, write) in MEASURES.items():
        if column not in table or not table[column].notna().any():
            continue
        cells = [_written(value, write) for value in table[column]]
        if column == "information_ratio":  # never without whether it is significant
            cells = [
                cell if cell == DASH else f"{cell} ({word})"
                for cell, word in zip(cells, map(_significance, *_bounds(table)), strict=True)
            ]
        beside = [] if bench is None else [_written(bench.get(column, math.nan), write)]
        rows.append([name, *cells, *beside])
        if column == "excess_return":
            low, high = _bounds(table)
            intervals = [
                DASH if math.isnan(one) else f"{one:+.1%} to {other:+.1%}"
                for one, other in zip(low, high, strict=True)
            ]
            rows.append([f"its {LEVEL:.0%} interval", *intervals, *[DASH] * len(beside)])
    return rows


def holding_rows(comparison: Comparison) -> list[list[str]]:
    """What each run's score holds, a line a style; then what is left of it. [] of no run known."""
    held = comparison.holdings
    names = list(dict.fromkeys(str(name) for table in held.values() for name in table.index))
    if not names:
        return []
    names = [
        *(name for name in names if name not in HOLDINGS),
        *(name for name in HOLDINGS if name in names),
    ]
    runs = [str(name) for name in comparison.table.index]
    rows = [["", *runs]]
    for name in names:
        title, write = HOLDINGS.get(name, (name.partition(".")[2], "{:+.2f}".format))
        cells = []
        for run in runs:
            if run not in held or name not in held[run].index:
                cells.append(DASH)
                continue
            table = held[run]
            mean, low, high = (float(table[end][name]) for end in ("mean", "low", "high"))
            cell = _written(mean, write)
            cells.append(cell if cell == DASH else f"{cell} ({_significance(low, high)})")
        rows.append([title, *cells])
    return rows


def benchmark_name(equity: Equity, runs: Sequence[str]) -> str:
    """What the benchmark's column is called: no run's name, and whose it is if runs differ."""
    name = "benchmark" if equity.same_bench else f"benchmark of {equity.net.columns[0]}"
    return f"the {name}" if name in runs else name


def mean_rows(comparison: Comparison) -> list[list[str]]:
    """Mean Rank IC of each run on the common rows, with its interval."""
    signals = comparison.signals
    assert signals is not None
    rows = [["", "Rank IC", f"{LEVEL:.0%} interval", "t"]]
    for name in signals.daily:
        mean = f"{signals.daily[name].mean():.4f}"
        known = signals.means.get(str(name))
        interval = (
            [interval_text(known.interval(LEVEL)), f"{known.t:.2f}"] if known else [DASH, DASH]
        )
        rows.append([str(name), mean, *interval])
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


def notes_of(comparison: Comparison) -> list[str]:
    """Notes on these runs, then the definitions that their numbers need."""
    notes = list(comparison.notes)
    signals, equity = comparison.signals, comparison.equity
    tests = 0
    if equity is not None:
        tests += len(equity.tests) + len(equity.pairs)
        notes.append(
            f"Figures of backtests are of the {len(equity.net)} days that all of them have, "
            f"{equity.days_per_year:g} days to a year for all."
        )
    if signals is not None:
        tests += len(signals.means) + len(signals.pairs) + len(signals.blends)
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
    asides = [text for column, text in MORE_DEFINITIONS.items() if column in shown]
    return [*notes, *DEFINITIONS, *asides]


def _test_cells(pair: Pair) -> list[str]:
    test = pair.difference
    if test is None:
        return [DASH] * 3 + [f"no: {pair.reason}"]
    return [
        f"{test.mean:+.4f}",
        interval_text(test.interval()),
        f"{test.t:.2f}",
        "yes" if pair.is_significant else "no",
    ]


def _bounds(table: pd.DataFrame) -> tuple[list[float], list[float]]:
    """The interval of each run's excess return a year, NaN where it is not known."""
    unknown = pd.Series(math.nan, table.index)
    low, high = (table.get(name, unknown) for name in ("excess_low", "excess_high"))
    return low.tolist(), high.tolist()


def _significance(low: float, high: float) -> str:
    if math.isnan(low):
        return "not tested"
    return "significant" if low > 0 or high < 0 else "not significant"


def _written(value: object, write: Callable[..., str]) -> str:
    return DASH if isinstance(value, float) and math.isnan(value) else write(value)
