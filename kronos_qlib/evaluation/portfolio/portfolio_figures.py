"""What a backtest earned and lost, and what other costs would have left, as figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

from kronos_qlib.evaluation.figures import (
    BEFORE_COST,
    BENCHMARK,
    FALL,
    STRATEGY,
    dress,
    dress_dates,
    dress_percent,
    new_figure,
    small_legend,
)
from kronos_qlib.evaluation.portfolio.metrics import check_report, drawdown, net_returns

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def equity_figure(report: pd.DataFrame, title: str) -> Figure:
    """Draw wealth, excess over the benchmark and drawdown, each with cost and without.

    Args:
        report: Qlib's daily report, one row per trading day; see metrics.REPORT_COLUMNS.
        title: a line above the figure.

    Returns:
        A figure on an Agg canvas, ready for `savefig`.

    Raises:
        UndefinedMetricError: the report has holes.
    """
    check_report(report)
    figure = new_figure(title, height=7.6)
    wealth, excess, fall = figure.subplots(3, 1, sharex=True, height_ratios=[2.4, 1.5, 1.2])
    _draw_wealth(wealth, report)
    _draw_excess(excess, report)
    _draw_drawdown(fall, report)
    for axes in (wealth, excess, fall):
        dress_percent(axes)
        dress_dates(axes)
    figure.align_ylabels()
    return figure


def cost_figure(table: pd.DataFrame, paid: float, break_even: float, title: str) -> Figure:
    """Draw what is left at other costs.

    Args:
        table: of `costs.cost_table`.
        paid, break_even: basis points of the money traded, each side; see `costs`.
        title: a line above the figure.
    """
    figure = new_figure(title, height=4.4)
    axes = figure.subplots()
    # Where the benchmark went nowhere one line lies on the other, and has to let it through.
    lines = {
        "net_return": ("Return", BENCHMARK, "-", 7),
        "excess_return": ("Return less the benchmark's", STRATEGY, "--", 4),
    }
    for column, (name, color, style, size) in lines.items():
        axes.plot(
            table.index,
            table[column],
            color=color,
            linestyle=style,
            marker="o",
            markersize=size,
            label=name,
        )
    axes.axhline(0, color="black", linewidth=0.6)
    axes.axvline(paid, color=FALL, linewidth=1.0, linestyle=":", label=f"Paid here: {paid:.1f} bp")
    axes.set_xlabel("Cost of a side: basis points of the money bought, and of the money sold")
    axes.set_ylabel("A year, daily mean x days")
    axes.set_title(f"nothing over the benchmark at {break_even:.1f} bp", loc="left", fontsize=9.5)
    dress_percent(axes)
    dress(axes)
    small_legend(axes)
    return figure


def _draw_wealth(axes: Axes, report: pd.DataFrame) -> None:
    lines = {
        "Strategy, after cost": (net_returns(report), STRATEGY, "-", 1.8),
        "Strategy, before cost": (report["return"], BEFORE_COST, "--", 1.1),
        "Benchmark": (report["bench"], BENCHMARK, "-", 1.2),
    }
    _draw_growth(axes, {name: (1 + line[0], *line[1:]) for name, line in lines.items()})
    axes.set_ylabel("Compounded return")


def _draw_excess(axes: Axes, report: pd.DataFrame) -> None:
    """Wealth in units of the benchmark, so that it cannot be mistaken for a sum of returns."""
    lines = {
        "After cost": (net_returns(report), STRATEGY, "-", 1.5),
        "Before cost": (report["return"], BEFORE_COST, "--", 1.1),
    }
    against = 1 + report["bench"]
    _draw_growth(axes, {name: ((1 + line[0]) / against, *line[1:]) for name, line in lines.items()})
    axes.set_ylabel("Against the benchmark")


def _draw_growth(axes: Axes, lines: Mapping[str, tuple[pd.Series[float], str, str, float]]) -> None:
    """Daily growth factors by name, with colour, style and width, compounded."""
    for name, (growth, color, style, width) in lines.items():
        grown = growth.cumprod() - 1
        label = f"{name} ({grown.iloc[-1]:+.1%})"
        axes.plot(grown.index, grown, color=color, linestyle=style, linewidth=width, label=label)
    axes.axhline(0, color="black", linewidth=0.6)
    small_legend(axes)


def _draw_drawdown(axes: Axes, report: pd.DataFrame) -> None:
    falls, free = drawdown(net_returns(report)), drawdown(report["return"])
    axes.fill_between(falls.index, falls, 0, color=FALL, alpha=0.25, linewidth=0)
    label = f"After cost (deepest {falls.min():.1%})"
    axes.plot(falls.index, falls, color=FALL, linewidth=1.0, label=label)
    label = f"Before cost ({free.min():.1%})"
    axes.plot(free.index, free, color=BENCHMARK, linestyle="--", linewidth=0.9, label=label)
    axes.set_ylabel("Drawdown")
    axes.set_ylim(top=0)
    small_legend(axes)
