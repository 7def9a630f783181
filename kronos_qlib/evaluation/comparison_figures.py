"""Signals and runs beside one another, as pictures for a notebook or a report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from kronos_qlib.errors import ConfigError
from kronos_qlib.evaluation.comparison import Comparison, Pair
from kronos_qlib.evaluation.figures import (
    BENCHMARK,
    FALL,
    STRATEGY,
    dress,
    dress_dates,
    dress_percent,
    new_figure,
    small_legend,
)
from kronos_qlib.evaluation.markup import figure_text
from kronos_qlib.evaluation.uncertainty import LEVEL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = (STRATEGY, FALL, "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Of runs in their order, Okabe and Ito's."""


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
    for place, (mean, low, high) in enumerate(
        table[["mean", "low", "high"]].itertuples(index=False, name=None)
    ):
        color = STRATEGY if low > 0 else FALL if high < 0 else BENCHMARK
        axes.plot([low, high], [place, place], color=color, linewidth=2.2, solid_capstyle="butt")
        axes.plot([mean], [place], color=color, marker="o", markersize=6.5)
    _dress_rows(axes, [figure_text(str(name)) for name in table.index], what)
    return figure


def comparison_figure(comparison: Comparison, title: str) -> Figure:
    """Draw runs side by side: Rank IC as it adds up, wealth after cost, and every paired test.

    Args:
        comparison: of two runs or more with signals; without backtests there is no wealth.
        title: a line above the figure.

    Returns:
        A figure on an Agg canvas, ready for `savefig`.

    Raises:
        ConfigError: fewer than two runs have signals to compare.
    """
    signals, equity = comparison.signals, comparison.equity
    if signals is None or not signals.pairs:
        raise ConfigError("comparison_figure: expected the signals of two runs or more")
    tests = [*signals.pairs, *(blend.test for blend in signals.blends)]
    tested = [test for test in tests if test.difference is not None]
    figure = new_figure(title, height=4.2 + 0.4 * len(tested))
    heights = [3.0, 0.9 + 0.38 * len(tested)]
    upper, lower = figure.subfigures(2, 1, height_ratios=heights, squeeze=False)[:, 0]
    ranks, *wealths = np.atleast_1d(upper.subplots(1, 1 if equity is None else 2))
    colors = dict(zip(comparison.table.index, COLORS * len(comparison.table), strict=False))
    total = signals.daily.cumsum()
    for name in total:
        label = f"{figure_text(str(name))}, {signals.daily[name].mean():.3f} a day"
        ranks.plot(total.index, total[name], color=colors[name], linewidth=1.7, label=label)
    ranks.set_title("Daily Rank IC, summed", loc="left", fontsize=10)
    for axes in wealths:
        assert equity is not None
        _draw_wealth(axes, equity.net, equity.bench, colors)
    for axes in (ranks, *wealths):
        axes.axhline(0, color="black", linewidth=0.6)
        dress_dates(axes)
        small_legend(axes)
    _draw_tests(lower.subplots(), tested)
    return figure


def _draw_wealth(
    axes: Axes, net: pd.DataFrame, bench: pd.Series[float], colors: dict[Any, str]
) -> None:
    wealth = (1 + net).cumprod() - 1
    for name in wealth:
        label = f"{figure_text(str(name))} ({wealth[name].iloc[-1]:+.1%})"
        axes.plot(wealth.index, wealth[name], color=colors[name], linewidth=1.7, label=label)
    grown = (1 + bench).cumprod() - 1
    label = f"benchmark ({grown.iloc[-1]:+.1%})"
    axes.plot(grown.index, grown, color=BENCHMARK, linestyle=":", linewidth=1.3, label=label)
    axes.set_title("Return after cost, compounded", loc="left", fontsize=10)
    dress_percent(axes)


def _draw_tests(axes: Axes, tested: list[Pair]) -> None:
    """The interval of each test."""
    for place, pair in enumerate(tested):
        assert pair.difference is not None
        color = STRATEGY if pair.is_significant else BENCHMARK
        row = [place, place]
        axes.plot(pair.difference.interval(), row, color=color, linewidth=6, alpha=0.4)
        axes.plot([pair.difference.mean], [place], color=color, marker="o", markersize=7)
    names = [f"{figure_text(pair.one)}\nless {figure_text(pair.other)}" for pair in tested]
    _dress_rows(axes, names, f"Mean daily difference of Rank IC, {LEVEL:.0%} interval")


def _dress_rows(axes: Axes, names: list[str], what: str) -> None:
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel(what, fontsize=9)
    dress(axes)
    axes.grid(False, axis="y")
