"""What a signal's order of names is worth, drawn from the tables of `evaluation.ranking`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from kronos_qlib.errors import ConfigError
from kronos_qlib.evaluation.figures import (
    BENCHMARK,
    FALL,
    STRATEGY,
    dress,
    dress_dates,
    new_figure,
    small_legend,
)
from kronos_qlib.markup import figure_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMOOTHED_DAYS = 20
"""Days of the moving mean over daily ICs."""


def ic_figure(daily: pd.Series[float], summary: Mapping[str, float], title: str) -> Figure:
    """Draw a Rank IC day by day with its moving mean, and its running sum.

    Args:
        daily: on times, NaN where a day has none.
        summary: of `information_coefficient.summarise`.
        title: a line above the figure.
    """
    figure = new_figure(title)
    each, total = figure.subplots(2, 1, sharex=True, height_ratios=[1.6, 1.0])
    colors = np.where(daily > 0, STRATEGY, FALL)
    each.vlines(daily.index, 0, daily, color=colors, linewidth=1.0, alpha=0.45)
    smooth = daily.rolling(SMOOTHED_DAYS, min_periods=SMOOTHED_DAYS // 2).mean()
    each.plot(
        smooth.index, smooth, color="black", linewidth=1.4, label=f"Mean of {SMOOTHED_DAYS} days"
    )
    each.axhline(0, color="black", linewidth=0.6)
    each.axhline(
        summary["mean"], color=BENCHMARK, linewidth=1.1, linestyle="--", label="Mean of all days"
    )
    each.set_ylabel("Rank IC")
    each.set_title(
        f"mean {summary['mean']:+.4f}, 95 % interval {summary['low']:+.4f} to "
        f"{summary['high']:+.4f}, t {summary['t']:.1f}, {summary['days']:.0f} days",
        loc="left",
        fontsize=9.5,
    )
    small_legend(each)
    grown = daily.fillna(0.0).cumsum()
    total.plot(grown.index, grown, color=STRATEGY, linewidth=1.5)
    total.axhline(0, color="black", linewidth=0.6)
    total.set_ylabel("Sum of Rank ICs")
    for axes in (each, total):
        dress_dates(axes)
    figure.align_ylabels()
    return figure


def interval_figure(table: pd.DataFrame, title: str, what: str) -> Figure:
    """Draw a mean with its interval for each row, the first row at the top.

    Rows whose interval leaves zero out are coloured, by their side of it.

    Args:
        table: a row for each name, with mean, low and high in one unit.
        title: a line above the figure.
        what: the horizontal axis, with its unit.

    Returns:
        A figure on an Agg canvas, ready for `savefig`.

    Raises:
        ConfigError: there is no row.
    """
    if table.empty:
        raise ConfigError("interval_figure: the table has no row")
    figure = new_figure(title, height=1.3 + 0.3 * len(table))
    axes = figure.subplots()
    _draw_rows(axes, table[["mean", "low", "high"]], what)
    return figure


def decay_figure(table: pd.DataFrame, title: str) -> Figure:
    """Draw Rank IC by horizon with intervals; `table` is of `information_coefficient.decay`."""
    figure = new_figure(title, height=4.4)
    axes = figure.subplots()
    places = np.arange(len(table))
    _draw_intervals(axes, places, table)
    axes.set_xticks(places, [str(horizon) for horizon in table.index])
    axes.set_xlim(-0.5, len(table) - 0.5)
    axes.set_xlabel("Bars of the return, from the close of the bar after the score")
    axes.set_ylabel("Rank IC, 95 % interval")
    dress(axes)
    return figure


def group_figure(table: pd.DataFrame, order: tuple[float, float, float], title: str) -> Figure:
    """Draw each group's mean return less the day's mean, with intervals.

    Args:
        table: of `groups.group_table`.
        order: of `groups.monotonicity`.
        title: a line above the figure.
    """
    figure = new_figure(title, height=4.6)
    axes = figure.subplots()
    basis = table[["mean", "low", "high"]] * 1e4
    colors = [STRATEGY if mean > 0 else FALL for mean in basis["mean"]]
    axes.bar(basis.index, basis["mean"], color=colors, alpha=0.75, width=0.72)
    reach = [basis["mean"] - basis["low"], basis["high"] - basis["mean"]]
    axes.errorbar(
        basis.index, basis["mean"], yerr=reach, fmt="none", ecolor="black", elinewidth=1, capsize=3
    )
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_xticks(list(basis.index))
    axes.set_xlabel("Names by score, 1 the lowest")
    axes.set_ylabel("Label's return less the day's mean, bp")
    axes.set_title(
        f"monotonicity {order[0]:+.2f}, 95 % interval {order[1]:+.2f} to {order[2]:+.2f}",
        loc="left",
        fontsize=9.5,
    )
    dress(axes)
    axes.grid(False, axis="x")
    return figure


def autocorrelation_figure(table: pd.DataFrame, turnover: float, title: str) -> Figure:
    """Draw the rank autocorrelation by lag; `table` is of `stability.rank_autocorrelation`."""
    figure = new_figure(title, height=4.0)
    axes = figure.subplots()
    axes.bar(table.index, table["mean"], color=STRATEGY, alpha=0.75, width=0.72)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_xticks(list(table.index))
    highest, lowest = table["mean"].max(), table["mean"].min()
    axes.set_ylim(min(0.0, 1.1 * lowest), min(1.0, max(0.2, 1.1 * highest)))
    axes.set_xlabel("Bars between the two scores")
    axes.set_ylabel("Correlation of ranks")
    axes.set_title(
        f"{turnover:.0%} of the best names are new at every bar", loc="left", fontsize=9.5
    )
    dress(axes)
    axes.grid(False, axis="x")
    return figure


def _draw_intervals(axes: Axes, places: np.ndarray, table: pd.DataFrame) -> None:
    reach = [table["mean"] - table["low"], table["high"] - table["mean"]]
    axes.errorbar(
        places,
        table["mean"],
        yerr=reach,
        color=STRATEGY,
        marker="o",
        markersize=5,
        linewidth=1.4,
        elinewidth=1.2,
        capsize=4,
    )
    axes.axhline(0, color="black", linewidth=0.6)


def style_figure(
    daily: pd.DataFrame, exposures: pd.DataFrame, parts: pd.DataFrame, title: str
) -> Figure:
    """Draw what a score holds: exposures over the days, their means, and what each part earned.

    Args:
        daily: of `exposure.daily_exposures`.
        exposures, parts: SUMMARY as columns, on the styles and on the parts of the return.
        title: a line above the figure.
    """
    figure = new_figure(title, height=7.2)
    grid = figure.add_gridspec(2, 2, height_ratios=[1.1, 1.0])
    axes = figure.add_subplot(grid[0, :])
    for place, name in enumerate(daily):
        smooth = daily[name].rolling(SMOOTHED_DAYS, min_periods=SMOOTHED_DAYS // 2).mean()
        axes.plot(
            smooth.index,
            smooth,
            color=STYLE_COLORS[place % len(STYLE_COLORS)],
            linestyle=STYLE_LINES[place % len(STYLE_LINES)],
            linewidth=1.6,
            label=figure_text(str(name)),
        )
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_ylabel("Rank correlation with the score")
    axes.set_title(f"exposure, moving mean of {SMOOTHED_DAYS} bars", loc="left", fontsize=9.5)
    dress_dates(axes)
    if len(daily.columns):
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8.5)
    else:
        axes.text(0.5, 0.5, "no style is known", ha="center", transform=axes.transAxes)
    held = figure.add_subplot(grid[1, 0])
    _draw_rows(held, exposures[["mean", "low", "high"]], "Mean exposure, 95 % interval")
    _draw_rows(
        figure.add_subplot(grid[1, 1]),
        parts[["mean", "low", "high"]] * 1e4,
        "Earned before cost, bp a bar, 95 % interval",
    )
    return figure


STYLE_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#6E6E6E", "#E69F00")
STYLE_LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))
"""A colour and a dash each, so that lines differ without colour."""


def _draw_rows(axes: Axes, table: pd.DataFrame, what: str) -> None:
    """A mean with its interval a row, coloured where the interval leaves zero out."""
    for place, (mean, low, high) in enumerate(table.itertuples(index=False, name=None)):
        color = STRATEGY if low > 0 else FALL if high < 0 else BENCHMARK
        axes.plot([low, high], [place, place], color=color, linewidth=2.2, solid_capstyle="butt")
        axes.plot([mean], [place], color=color, marker="o", markersize=6)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(table)), [figure_text(str(name)) for name in table.index])
    axes.set_ylim(len(table) - 0.4, -0.6)
    axes.set_xlabel(what, fontsize=9)
    dress(axes)
    axes.grid(False, axis="y")
