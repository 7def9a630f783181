"""A comparison as one HTML file that asks nothing of a network."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import pandas as pd

from kronos_qlib.evaluation.compare.comparison import Comparison, Equity, Pair, SignalComparison
from kronos_qlib.evaluation.compare.comparison_text import (
    HELD,
    blend_rows,
    common_sentence,
    correlation_rows,
    holding_rows,
    mean_rows,
    measure_rows,
    notes_of,
    pair_rows,
)
from kronos_qlib.evaluation.compare.verdicts import money_pair_verdicts, run_verdicts, verdict
from kronos_qlib.evaluation.html_page import (
    GREY,
    HINT,
    PAGE,
    PALETTE,
    curves_figure,
    dress_figure,
    html_figure,
    html_page,
    html_section,
    html_table,
)
from kronos_qlib.evaluation.ranking.uncertainty import LEVEL
from kronos_qlib.extras import require

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

ROW_LETTERS = 34
"""Of a line of a test's name beside its interval."""


def comparison_page(comparison: Comparison, title: str = "Runs side by side") -> str:
    """Write a comparison as a page: verdict, tables, curves, tests, settings and footnotes.

    Args:
        title: the page's heading.

    Returns:
        HTML with style, script (plotly.js, some 4.5 MB) and data inside; it loads nothing.

    Raises:
        MissingDependencyError: plotly, of the extra "report", is not installed.
    """
    require("plotly.offline", for_=PAGE)  # before any work
    runs = [str(name) for name in comparison.table.index]
    colors = {name: PALETTE[place % len(PALETTE)] for place, name in enumerate(runs)}
    body = [f"<h1>{escape(title)}</h1>", f'<p class="quiet">{escape(", ".join(runs))}</p>']
    body += _verdicts(comparison)
    body += html_section("What each run measured", html_table(measure_rows(comparison)))
    if comparison.equity is not None:
        body += _equity_sections(comparison.equity, colors)
    if comparison.signals is not None:
        body += _signal_sections(comparison, comparison.signals, colors)
    if held := holding_rows(comparison):
        body += html_section("What each score holds", html_table(held), HELD)
    if not comparison.settings.empty:
        body += html_section(
            "What each run was asked for",
            _settings_table(comparison.settings),
            "Rows that differ are tinted.",
        )
    notes = "".join(f"<li>{escape(note)}</li>" for note in notes_of(comparison))
    body += html_section("Notes and definitions", f"<ol>{notes}</ol>")
    return html_page(title, body)


def _verdicts(comparison: Comparison) -> list[str]:
    signals, equity = comparison.signals, comparison.equity
    sentences = run_verdicts(comparison)
    sentences += [verdict(pair) for pair in signals.pairs] if signals is not None else []
    if equity is not None and len(equity.pairs) == 1:  # of more they stand in their section
        sentences += money_pair_verdicts(equity)
    if not sentences:
        sentences = ["Nothing is tested: no run here has both scores and labels, or a backtest."]
    return ['<div class="verdicts">', *(f"<p>{escape(each)}</p>" for each in sentences), "</div>"]


def _equity_sections(equity: Equity, colors: dict[str, str]) -> list[str]:
    wealth = (1 + equity.net).cumprod() - 1
    bench = (1 + equity.bench).cumprod() - 1
    first, last = equity.net.index[[0, -1]]
    days = f"{len(equity.net)} days that all backtests have, {first:%Y-%m-%d} to {last:%Y-%m-%d}."
    return [
        *html_section(
            "Equity after cost",
            html_figure(
                curves_figure(wealth, colors, "Compounded return", percent=True, beside=bench)
            ),
            f"Returns after cost, compounded; {days}",
        ),
        *html_section(
            "Excess over the benchmark, after cost",
            html_figure(
                curves_figure(equity.excess.cumsum(), colors, "Summed excess return", percent=True)
            ),
            "Daily return after cost less the benchmark's, summed, not compounded, as Qlib does.",
        ),
        *(f"<p>{escape(sentence)}</p>" for sentence in money_pair_verdicts(equity)),
    ]


def _signal_sections(
    comparison: Comparison, signals: SignalComparison, colors: dict[str, str]
) -> list[str]:
    found = html_section(
        "Rank IC on the same rows", html_table(mean_rows(comparison)), common_sentence(comparison)
    )
    found += html_section(
        "Cumulative Rank IC",
        html_figure(curves_figure(signals.daily.cumsum(), colors, "Sum of daily Rank IC")),
        "A straight climb is a signal that works all the time; steps are noise or seasons.",
    )
    if not signals.pairs:
        return found
    tests = [*signals.pairs, *(blend.test for blend in signals.blends)]
    tested = [test for test in tests if test.difference is not None]
    forest = html_figure(_forest(tested), roomy=True) if tested else ""
    found += html_section(
        "Is the difference significant?",
        forest + html_table(pair_rows(signals.pairs)),
        f"Mean daily difference of Rank IC, the first less the second, with {LEVEL:.0%} intervals. "
        "Blends are set against their better member.",
    )
    found += html_section(
        "Correlation of the signals",
        html_table(correlation_rows(comparison)),
        "Mean over days of the rank correlation of two runs' scores within the day.",
    )
    found += html_section(
        "What a blend adds",
        html_table(blend_rows(signals.blends)),
        "Equal-weight mean of percentile ranks, against its better member; no weight is tuned.",
    )
    return found


def _settings_table(settings: pd.DataFrame) -> str:
    head = "".join(f"<th>{escape(str(name))}</th>" for name in ("", *settings.columns))
    lines = []
    for name, values in settings.iterrows():
        mark = ' class="differs"' if values.nunique() > 1 else ""
        cells = "".join(f"<td>{escape(str(value)) or '-'}</td>" for value in (name, *values))
        lines.append(f"<tr{mark}>{cells}</tr>")
    return (
        f'{HINT}<div class="wide words" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _forest(tested: Sequence[Pair]) -> Figure:
    """Every test's interval; each has a difference."""
    go = require("plotly.graph_objects", for_=PAGE)
    figure = go.Figure()
    for pair in reversed(tested):
        assert pair.difference is not None
        color = PALETTE[0] if pair.is_significant else GREY
        name = _row_name(pair)
        figure.add_scatter(
            x=list(pair.difference.interval()),
            y=[name, name],
            mode="lines",
            line={"color": color, "width": 7},
            opacity=0.45,
            hoverinfo="x",
        )
        figure.add_scatter(
            x=[pair.difference.mean],
            y=[name],
            mode="markers",
            marker={"color": color, "size": 11},
            hovertemplate="%{x:.4f}<extra></extra>",
        )
    figure.add_vline(x=0, line_color="#1b1f24", line_width=0.8)
    figure.update_layout(showlegend=False)
    bounds = [
        bound
        for pair in tested
        if pair.difference is not None
        for bound in pair.difference.interval()
    ]
    low, high = min(0.0, *bounds), max(0.0, *bounds)
    margin = 0.04 * (high - low)
    figure.update_xaxes(
        title_text="Mean daily difference of Rank IC", range=[low - margin, high + margin]
    )
    figure.update_yaxes(automargin=True)
    lines = max(_row_name(pair).count("<br>") + 1 for pair in tested)
    figure = dress_figure(figure, height=110 + (18 + 16 * lines) * len(tested))
    return figure.update_layout(hovermode="closest")


def _row_name(pair: Pair) -> str:
    """A test's name in lines that leave room for its interval."""
    return "<br>".join(
        escape(line) for line in textwrap.wrap(f"{pair.one} vs {pair.other}", ROW_LETTERS)
    )
