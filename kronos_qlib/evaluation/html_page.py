"""HTML pages that ask nothing of a network: style, tables, curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import pandas as pd

from kronos_qlib.extras import require

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# Okabe and Ito's palette, for readers who do not distinguish red and green.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D1F", "#5B4B8A")
GREY = "#6E6E6E"

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
PAGE = "a page of figures"
"""As messages name what is written here."""
HINT = '<p class="hint">&#8596; Scroll sideways for the rest of it.</p>'


def html_page(title: str, body: Sequence[str]) -> str:
    """A whole page around its parts, with style, script (plotly.js, some 4.5 MB) and data inside.

    Raises:
        MissingDependencyError: plotly, of the extra "report", is not installed.
    """
    get_plotlyjs = require("plotly.offline", for_=PAGE).get_plotlyjs
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


def html_section(heading: str, content: str, explanation: str = "") -> list[str]:
    """A heading, a quiet sentence, and what belongs under it."""
    sentences = [f'<p class="quiet">{escape(explanation)}</p>'] if explanation else []
    return [f"<h2>{escape(heading)}</h2>", *sentences, content]


def html_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text, the first the heading."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
    lines = [
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows[1:]
    ]
    return (
        f'{HINT}<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def curves_figure(
    lines: pd.DataFrame,
    colors: Mapping[str, str],
    what: str,
    *,
    percent: bool = False,
    beside: pd.Series[float] | None = None,
) -> Figure:
    """A line a column over the days.

    Args:
        colors: by column.
        what: the axis.
        beside: a dotted line, the benchmark's.
    """
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
    return dress_figure(figure, height=390 + 22 * len(drawn))


def dress_figure(figure: Figure, height: int) -> Figure:
    """A figure in the page's style."""
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


def html_figure(figure: Figure, *, roomy: bool = False) -> str:
    """The figure, as wide as the page; if `roomy`, one that scrolls where the page is narrow."""
    drawn: str = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        config={"displaylogo": False, "responsive": True},
    )
    if roomy:
        return f'{HINT}<div class="wide" tabindex="0"><div class="roomy">{drawn}</div></div>'
    return f'<div class="wide">{drawn}</div>'
