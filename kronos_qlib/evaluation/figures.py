"""Figures from tables. matplotlib is imported when one is drawn, without pyplot's global state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def training_figure(
    history: Sequence[Mapping[str, float]], steps: Sequence[Mapping[str, float]], title: str
) -> Figure:
    """Draw how a stage went: losses, learning rate and gradient, and what validation measured.

    Args:
        history: a row per epoch, epoch 0 first; see `TrainingReport`.
        steps: a row per some steps; may be empty.
        title: a line above the figure.

    Returns:
        A figure on an Agg canvas, ready for `savefig`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 6.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    epochs, rates, measured, speed = figure.subplots(2, 2).flat
    losses = [name for name in LOSSES if any(name in row for row in history)]
    _draw_columns(epochs, history, "epoch", losses, "Loss")
    _draw_columns(rates, steps, "step", ("gradient_norm",), "Gradient norm, before clipping")
    if steps:
        rate = rates.twinx()
        _draw_columns(rate, steps, "step", ("learning_rate",), "", color=FALL)
        rate.set_ylabel("Learning rate", color=FALL)
        rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    shown = [name for name in WORTH_SEEING if any(name in row for row in history)]
    _draw_columns(measured, history, "epoch", shown, "Validation")
    _draw_columns(speed, steps, "step", ("loss",), "Training loss, mean of some steps")
    for axes in (epochs, rates, measured, speed):
        axes.grid(True, color="#D9D9D9", linewidth=0.5)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=9)
    return figure


LOSSES = ("train_loss", "valid_loss", "valid_recon_s1", "valid_recon")
WORTH_SEEING = (
    "valid_rank_ic",
    "valid_ic",
    "valid_loss_s1",
    "valid_loss_s2",
    "valid_s1_used",
    "valid_s2_used",
)
"""What validation measures beside the loss, where a stage has it."""


def _draw_columns(
    axes: Axes,
    rows: Sequence[Mapping[str, float]],
    along: str,
    names: Sequence[str],
    title: str,
    color: str | None = None,
) -> None:
    """A line for each name over the rows that have it; says so where there is none."""
    from matplotlib.ticker import MaxNLocator

    palette = (STRATEGY, FALL, "#009E73", BENCHMARK)
    for place, name in enumerate(names):
        points = [(row[along], row[name]) for row in rows if name in row]
        if points:
            axes.plot(
                *zip(*points, strict=True),
                color=color or palette[place % len(palette)],
                linewidth=1.3,
                marker="o" if len(points) < 20 else None,
                markersize=3,
                label=name,
            )
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(along.capitalize(), fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if not axes.lines:
        axes.text(0.5, 0.5, "too few steps for a row", ha="center", transform=axes.transAxes)
    elif len(names) > 1:
        axes.legend(loc="best", frameon=False, fontsize=8)


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
