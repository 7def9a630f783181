"""The report of live days as one HTML file that asks nothing of a network."""

from __future__ import annotations

from html import escape

from kronos_qlib.evaluation.html_page import (
    PALETTE,
    curves_figure,
    html_figure,
    html_page,
    html_section,
    html_table,
)
from kronos_qlib.evaluation.live.live_quality import LiveQuality
from kronos_qlib.evaluation.live.live_text import DEFINITIONS, drift_rows, measure_rows


def live_page(quality: LiveQuality, title: str = "Live beside promised") -> str:
    """Write the report as a page: warnings, table, curves, drift and notes.

    Returns:
        HTML with style, script (plotly.js, some 4.5 MB) and data inside; it loads nothing.

    Raises:
        MissingDependencyError: plotly, of the extra "report", is not installed.
    """
    body = [f"<h1>{escape(title)}</h1>"]
    body += [
        f'<p class="quiet">{escape(name)}: {escape(words)}</p>'
        for name, words in quality.about.items()
    ]
    sentences = quality.warnings or ("Nothing differs significantly from what was promised.",)
    said = "".join(f"<p>{escape(each)}</p>" for each in sentences)
    body.append(f'<div class="verdicts">{said}</div>')
    if quality.measures:
        body += html_section(
            "What came, beside what was promised", html_table(measure_rows(quality))
        )
    else:
        body.append("<p>No outcome is known yet.</p>")
    for place, name in enumerate(quality.curves):
        line = quality.curves[[name]].dropna()
        if len(line) > 1:
            colors = {str(name): PALETTE[place % len(PALETTE)]}
            percent = "return" in str(name)
            figure = curves_figure(line, colors, str(name), percent=percent)
            body += html_section(str(name), html_figure(figure))
    if quality.drift:
        body += html_section("Drift", html_table(drift_rows(quality)))
    notes = "".join(f"<li>{escape(note)}</li>" for note in (*quality.notes, *DEFINITIONS))
    body += html_section("Notes and definitions", f"<ol>{notes}</ol>")
    return html_page(title, body)
