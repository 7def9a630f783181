"""Figures from tables. matplotlib is imported when one is drawn, without pyplot's global state."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from kronos_qlib.evaluation.metrics import check_report, drawdown, net_returns

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart by readers who see no red or green (Okabe and Ito).
STRATEGY, BEFORE_COST, BENCHMARK, FALL = "#0072B2", "#56B4E9", "#6E6E6E", "#D55E00"


def equity_figure(report: pd.DataFrame, title: str) -> Figure:
    """Draw compounded return with and without cost beside the benchmark, and the drawdown.

    Args:
        report: Qlib's daily report, one row per trading day; see metrics.REPORT_COLUMNS.
        title: a line above the figure.

    Returns:
        A figure on an Agg canvas, ready for `savefig`.

    Raises:
        UndefinedMetricError: the report has holes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    check_report(report)
    figure = Figure(figsize=(9.6, 6.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    wealth, fall = figure.subplots(2, 1, sharex=True, height_ratios=[2.6, 1.0])
    _draw_wealth(wealth, report)
    _draw_drawdown(fall, report)
    for axes in (wealth, fall):
        _dress(axes)
    return figure


def _draw_wealth(axes: Axes, report: pd.DataFrame) -> None:
    lines = {
        "Strategy, after cost": (net_returns(report), STRATEGY, "-", 1.8),
        "Strategy, before cost": (report["return"], BEFORE_COST, "--", 1.1),
        "Benchmark": (report["bench"], BENCHMARK, "-", 1.2),
    }
    for name, (returns, color, style, width) in lines.items():
        grown = (1 + returns).cumprod() - 1
        label = f"{name} ({grown.iloc[-1]:+.1%})"
        axes.plot(grown.index, grown, color=color, linestyle=style, linewidth=width, label=label)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_ylabel("Compounded return")
    axes.legend(loc="best", frameon=True, framealpha=0.9, edgecolor="none", fontsize=9)


def _draw_drawdown(axes: Axes, report: pd.DataFrame) -> None:
    falls = drawdown(net_returns(report))
    axes.fill_between(falls.index, falls, 0, color=FALL, alpha=0.25, linewidth=0)
    axes.plot(falls.index, falls, color=FALL, linewidth=1.0)
    axes.set_ylabel("Drawdown")
    axes.set_title(f"After cost, deepest {falls.min():.1%}", loc="right", fontsize=9, color=FALL)
    axes.set_ylim(top=0)


def _dress(axes: Axes) -> None:
    """Percent, thin grid, short dates, no box."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.ticker import PercentFormatter

    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0))
    locator = AutoDateLocator(minticks=4, maxticks=10)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    dates = ConciseDateFormatter(locator)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_formatter(dates)
    axes.grid(True, color="#D9D9D9", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.margins(x=0.01)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
