"""A comparison as one HTML file that asks nothing of a network."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

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
from kronos_qlib.evaluation.ranking.uncertainty import LEVEL
from kronos_qlib.extras import require

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# Okabe and Ito's palette, for readers who do not distinguish red and green.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D1F", "#5B4B8A")
GREY = "#6E6E6E"
ROW_LETTERS = 34
"""Of a line of a test's name beside its interval."""

# A browser that minds this fetches nothing, whatever a script in the page would like. plotly.js
# draws with inline styles, and saves pictures through data and blob addresses.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:"
)

STYLE = """
:root { color: #1b1f24; background: #f6f7f9;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
body { margin: 0 auto; padding: 32px 20px 60px; max-width: 1040px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; }
h2 { font-size: 18px; margin: 40px 0 6px; }
p { margin: 6px 0; }
.quiet { color: #59636e; }
.verdicts { background: #fff; border-left: 4px solid #0072B2; margin: 18px 0; padding: 12px 18px; }
.wide { overflow-x: auto; background: #fff; border: 1px solid #e2e5e9; border-radius: 6px; }
.hint { font-size: 13px; color: #59636e; margin: 8px 0 4px; }
.roomy { min-width: 600px; }
.hint[hidden] { display: none; }
h1, h2, p, li { overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 14px; text-align: right; border-top: 1px solid #eceef1; }
thead th { border-top: 0; background: #fafbfc; font-weight: 600; white-space: nowrap; }
td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; font-weight: 400; }
.words td { white-space: normal; text-align: left; vertical-align: top; min-width: 140px;
  overflow-wrap: anywhere; }
.words thead th { text-align: left; }
.differs td { background: #fff8e6; }
ol { padding-left: 22px; color: #3d454d; font-size: 14px; }
li { margin: 4px 0; }
@media (max-width: 640px) {
  body { padding: 20px 12px 40px; }
  h1 { font-size: 22px; }
  .verdicts { padding: 8px 12px; }
  th, td { padding: 6px 10px; }
  th:first-child, td:first-child { position: sticky; left: 0; background: #fff; min-width: 104px;
    max-width: 132px; white-space: normal; overflow-wrap: anywhere;
    box-shadow: 1px 0 #e2e5e9; }
  thead th { white-space: normal; min-width: 84px; vertical-align: bottom; }
  .differs td:first-child { background: #fff8e6; }
}
@media print { :root { background: #fff; } h2 { break-after: avoid; } }
"""


# A hint stands above what can be scrolled, and only while there is something to scroll to. Without
# scripts it stays.
HINTS = """
function hints() {
  document.querySelectorAll(".hint").forEach(function (hint) {
    var box = hint.nextElementSibling;
    hint.hidden = box.scrollWidth <= box.clientWidth + 1;
  });
}
window.addEventListener("load", hints);
window.addEventListener("resize", hints);
"""
PAGE = "the page of a comparison"
"""As messages name what this module writes."""
HINT = '<p class="hint">&#8596; Scroll sideways for the rest of it.</p>'


def comparison_page(comparison: Comparison, title: str = "Runs side by side") -> str:
    """Write a comparison as a page: verdict, tables, curves, tests, settings and footnotes.

    Args:
        title: the page's heading.

    Returns:
        HTML with style, script (plotly.js, some 4.5 MB) and data inside; it loads nothing.

    Raises:
        MissingDependencyError: plotly, of the extra "report", is not installed.
    """
    get_plotlyjs = require("plotly.offline", for_=PAGE).get_plotlyjs
    runs = [str(name) for name in comparison.table.index]
    colors = {name: PALETTE[place % len(PALETTE)] for place, name in enumerate(runs)}
    body = [f"<h1>{escape(title)}</h1>", f'<p class="quiet">{escape(", ".join(runs))}</p>']
    body += _verdicts(comparison)
    body += _section("What each run measured", _table(measure_rows(comparison)))
    if comparison.equity is not None:
        body += _equity_sections(comparison.equity, colors)
    if comparison.signals is not None:
        body += _signal_sections(comparison, comparison.signals, colors)
    if held := holding_rows(comparison):
        body += _section("What each score holds", _table(held), HELD)
    if not comparison.settings.empty:
        body += _section(
            "What each run was asked for",
            _settings_table(comparison.settings),
            "Rows that differ are tinted.",
        )
    notes = "".join(f"<li>{escape(note)}</li>" for note in notes_of(comparison))
    body += _section("Notes and definitions", f"<ol>{notes}</ol>")
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>\n<style>{STYLE}</style>",
            f"<script>{get_plotlyjs()}</script>\n</head>\n<body>",
            *body,
            f"<script>{HINTS}</script>",
            "</body>\n</html>\n",
        ]
    )


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
        *_section(
            "Equity after cost",
            _embed(_curves(wealth, colors, "Compounded return", percent=True, beside=bench)),
            f"Returns after cost, compounded; {days}",
        ),
        *_section(
            "Excess over the benchmark, after cost",
            _embed(_curves(equity.excess.cumsum(), colors, "Summed excess return", percent=True)),
            "Daily return after cost less the benchmark's, summed, not compounded, as Qlib does.",
        ),
        *(f"<p>{escape(sentence)}</p>" for sentence in money_pair_verdicts(equity)),
    ]


def _signal_sections(
    comparison: Comparison, signals: SignalComparison, colors: dict[str, str]
) -> list[str]:
    found = _section(
        "Rank IC on the same rows", _table(mean_rows(comparison)), common_sentence(comparison)
    )
    found += _section(
        "Cumulative Rank IC",
        _embed(_curves(signals.daily.cumsum(), colors, "Sum of daily Rank IC")),
        "A straight climb is a signal that works all the time; steps are noise or seasons.",
    )
    if not signals.pairs:
        return found
    tests = [*signals.pairs, *(blend.test for blend in signals.blends)]
    tested = [test for test in tests if test.difference is not None]
    forest = _embed(_forest(tested), roomy=True) if tested else ""
    found += _section(
        "Is the difference significant?",
        forest + _table(pair_rows(signals.pairs)),
        f"Mean daily difference of Rank IC, the first less the second, with {LEVEL:.0%} intervals. "
        "Blends are set against their better member.",
    )
    found += _section(
        "Correlation of the signals",
        _table(correlation_rows(comparison)),
        "Mean over days of the rank correlation of two runs' scores within the day.",
    )
    found += _section(
        "What a blend adds",
        _table(blend_rows(signals.blends)),
        "Equal-weight mean of percentile ranks, against its better member; no weight is tuned.",
    )
    return found


def _section(heading: str, content: str, explanation: str = "") -> list[str]:
    sentences = [f'<p class="quiet">{escape(explanation)}</p>'] if explanation else []
    return [f"<h2>{escape(heading)}</h2>", *sentences, content]


def _table(rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
    lines = [
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows[1:]
    ]
    return (
        f'{HINT}<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


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


def _curves(
    lines: pd.DataFrame,
    colors: dict[str, str],
    what: str,
    *,
    percent: bool = False,
    beside: pd.Series[float] | None = None,
) -> Figure:
    """A line per run over the days."""
    go = require("plotly.graph_objects", for_=PAGE)
    form = ".2%" if percent else ".3f"
    is_daily = bool((lines.index == pd.DatetimeIndex(lines.index).normalize()).all())
    form_of_time = "%Y-%m-%d" if is_daily else "%Y-%m-%d %H:%M"
    figure = go.Figure()
    drawn: list[tuple[str, Any, dict[str, Any]]] = [
        (str(name), lines[name], {"color": colors[str(name)], "width": 2}) for name in lines
    ]
    if beside is not None:
        drawn.append(("benchmark", beside, {"color": GREY, "width": 1.5, "dash": "dot"}))
    for name, values, style in drawn:
        figure.add_scatter(
            # As text, so that the page shows the days and not the machine's idea of their zone.
            x=[f"{time:{form_of_time}}" for time in values.index],
            y=values.round(6).tolist(),
            name=f"{escape(name)} ({values.iloc[-1]:{'+.1%' if percent else '.2f'}})",
            mode="lines",
            line=style,
            hovertemplate=f"%{{y:{form}}}<extra>{escape(name)}</extra>",
        )
    figure.add_hline(y=0, line_color="#1b1f24", line_width=0.8)
    figure.update_yaxes(title_text=what, tickformat=".0%" if percent else None)
    # A line each in the legend where the page is narrow; beside one another they take less.
    return _dress(figure, height=390 + 22 * len(drawn))


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
    figure = _dress(figure, height=110 + (18 + 16 * lines) * len(tested))
    return figure.update_layout(hovermode="closest")


def _row_name(pair: Pair) -> str:
    """A test's name in lines that leave room for its interval."""
    return "<br>".join(
        escape(line) for line in textwrap.wrap(f"{pair.one} vs {pair.other}", ROW_LETTERS)
    )


def _dress(figure: Figure, height: int) -> Figure:
    figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 60, "r": 20, "t": 40, "b": 45},
        # Below: above, it would grow into the figure's buttons.
        legend={"orientation": "h", "y": -0.12, "yanchor": "top", "x": 0},
        hovermode="x unified",
        font={"family": "system-ui, sans-serif", "size": 13},
    )
    return figure


def _embed(figure: Figure, *, roomy: bool = False) -> str:
    """The figure, as wide as the page; if `roomy`, one that scrolls where the page is narrow."""
    drawn: str = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        config={"displaylogo": False, "responsive": True},
    )
    if roomy:
        return f'{HINT}<div class="wide" tabindex="0"><div class="roomy">{drawn}</div></div>'
    return f'<div class="wide">{drawn}</div>'
