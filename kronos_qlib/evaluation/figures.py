"""Figures from tables. matplotlib is imported when one is drawn, without pyplot's global state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kronos_qlib.markup import figure_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, for readers who do not distinguish red and green.
STRATEGY, BEFORE_COST, BENCHMARK, FALL = "#0072B2", "#56B4E9", "#6E6E6E", "#D55E00"


def new_figure(title: str, height: float = 6.0, width: float = 9.6) -> Figure:
    """An empty figure on an Agg canvas, its title at the left; sizes are inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(figure_text(title), x=0.01, ha="left", fontsize=13, fontweight="bold")
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
    figure = new_figure(title, height=6.4)
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


def small_legend(axes: Axes) -> None:
    """A legend in small type, without a frame, where it covers least."""
    axes.legend(loc="best", frameon=True, framealpha=0.9, edgecolor="none", fontsize=8.5)


def dress_percent(axes: Axes) -> None:
    """The vertical axis in percent, with as many digits as its range needs."""
    from matplotlib.ticker import PercentFormatter

    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0))


def dress(axes: Axes) -> None:
    """Thin grid behind, no box, small ticks."""
    axes.grid(True, color="#D9D9D9", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)


def dress_dates(axes: Axes) -> None:
    """`dress`, and short dates along the horizontal axis."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(minticks=4, maxticks=10)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    dates = ConciseDateFormatter(locator)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_formatter(dates)
    axes.margins(x=0.01)
    dress(axes)
