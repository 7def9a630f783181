"""Figures of forecast quality, from the tables of `forecast_tables`; drawn as in `figures`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.evaluation.figures import (
    BEFORE_COST,
    BENCHMARK,
    FALL,
    STRATEGY,
    dress,
    dress_percent,
    new_figure,
)
from kronos_qlib.evaluation.forecasts.baselines.named_baselines import (
    LAST_PRICE,
    WALK,
    WALK_CALIBRATED,
)
from kronos_qlib.evaluation.forecasts.day_means import ALL
from kronos_qlib.evaluation.forecasts.distributions import sample_quantile, tail_levels
from kronos_qlib.evaluation.forecasts.forecast_tables import CALIBRATED, KRONOS
from kronos_qlib.markup import figure_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]

LOOKS: dict[str, dict[str, Any]] = {
    KRONOS: {"label": "Kronos", "color": BEFORE_COST, "linestyle": "--"},
    CALIBRATED: {"label": "Kronos, calibrated", "color": STRATEGY, "linewidth": 1.9},
    LAST_PRICE: {"label": "Last price", "color": "black", "linestyle": ":"},
    WALK: {"label": "Historical volatility", "color": BENCHMARK, "linestyle": "--"},
    WALK_CALIBRATED: {"label": "Historical volatility, calibrated", "color": FALL},
}
"""Of each forecaster in every figure; others are in the tables only."""
SHADES = ("#D6E7F3", "#A9CDE6", "#7CB3D8")
"""Of intervals, the widest first."""


def crps_figure(scores: pd.DataFrame, differences: pd.DataFrame, title: str) -> Figure:
    """Draw CRPS by bar of the horizon, and the skill of calibrated paths against each baseline.

    Args:
        scores, differences: of `ForecastQuality`.
        title: a line above the figure.

    Returns:
        A figure on an Agg canvas, ready for `savefig`.
    """
    figure = new_figure(title, height=4.6)
    level, skill = figure.subplots(1, 2)
    crps = _bars_only(scores.xs("crps", level="measure"))
    for name in (one for one in crps if one in LOOKS):
        level.plot(crps.index, crps[name], **_look(str(name)))
    level.set_title("CRPS, in return; lower is better", loc="left", fontsize=10)
    level.set_ylim(bottom=0)
    dress_percent(level)
    ours = differences.xs((CALIBRATED, "crps"), level=("forecaster", "measure"))
    for name in (LAST_PRICE, WALK, WALK_CALIBRATED):
        rows = _bars_only(ours.xs(name, level="baseline"))
        # The interval is of the difference; the baseline's own mean is taken as known.
        low, high = (-rows[end] / rows["baseline_value"] for end in ("high", "low"))
        look = _look(name)
        skill.plot(rows.index, rows["skill"], **look)
        skill.fill_between(rows.index, low, high, color=look["color"], alpha=0.15, linewidth=0)
    skill.axhline(0, color="black", linewidth=0.6)
    skill.set_title("Skill of calibrated Kronos against each, with 95 %", loc="left", fontsize=10)
    dress_percent(skill)
    for axes in (level, skill):
        _dress(axes)
    _legend_below(figure, level)
    return figure


def coverage_figure(coverage: pd.DataFrame, title: str) -> Figure:
    """Draw how often intervals held what came, by bar of the horizon: a panel for each level.

    Args:
        coverage: of `ForecastQuality`.
        title: a line above the figure.

    Returns:
        A figure on an Agg canvas, ready for `savefig`.
    """
    levels = coverage.index.get_level_values("level").unique()
    figure = new_figure(title, height=4.4)
    panels = figure.subplots(1, len(levels), squeeze=False)[0]
    for axes, level in zip(panels, levels, strict=True):
        for name in (WALK, WALK_CALIBRATED, KRONOS, CALIBRATED):
            rows = _bars_only(coverage.xs((name, level), level=("forecaster", "level")))
            look = _look(name)
            axes.plot(rows.index, rows["coverage"], **look)
            if name in (KRONOS, CALIBRATED):
                axes.fill_between(
                    rows.index,
                    rows["low"].clip(0, 1),  # a share
                    rows["high"].clip(0, 1),
                    color=look["color"],
                    alpha=0.18,
                    linewidth=0,
                )
        axes.axhline(level, color="black", linewidth=0.9)
        axes.set_title(f"{level:.0%} intervals", loc="left", fontsize=10)
        dress_percent(axes)
        _dress(axes)
    panels[0].set_ylabel("Share of what came that lay within")
    _legend_below(figure, panels[0])
    return figure


def pit_figure(pit: pd.DataFrame, title: str) -> Figure:
    """Draw histograms of the probability integral transform over all bars, before and after.

    Args:
        pit: of `ForecastQuality`.
        title: a line above the figure.

    Returns:
        A figure on an Agg canvas, ready for `savefig`.
    """
    figure = new_figure(title, height=3.9)
    panels = figure.subplots(1, 3, sharey=True)
    of_all = pit.xs(ALL, level="horizon")
    shares = of_all.drop(columns=["mean", "spread", "distance"])
    even = 1 / shares.shape[1]
    for axes, name in zip(panels, (KRONOS, CALIBRATED, WALK), strict=True):
        look, row = LOOKS[name], of_all.loc[name]
        middles = (np.arange(shares.shape[1]) + 0.5) * even
        axes.bar(middles, shares.loc[name].to_numpy() / even, even * 0.94, color=look["color"])
        axes.axhline(1, color="black", linewidth=0.9)
        axes.set_title(
            f"{look['label']}\nspread {row['spread']:.2f}, distance {row['distance']:.3f}",
            loc="left",
            fontsize=10,
        )
        axes.set_xlabel("Probability given to less than what came", fontsize=9)
        _dress(axes)
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    panels[0].set_ylabel("Share of windows, 1 is even")
    figure.supxlabel(
        "U-shaped: intervals too narrow. Hump-shaped: too wide. Leaning right: forecasts too low.",
        fontsize=9,
        color="#444444",
    )
    return figure


def fan_figure(
    examples: Sequence[tuple[str, Floats, Floats, Floats, Floats]],
    levels: Sequence[float],
    title: str,
) -> Figure:
    """Draw a few windows: the closes seen, calibrated and raw intervals, and what came.

    Args:
        examples: of each window its name, closes seen (bars,), raw and calibrated closes of
            paths (P, H) each, and the closes that came (H,).
        levels: central intervals, shaded; the widest one's raw ends are dashed.
        title: a line above the figure.

    Returns:
        A figure on an Agg canvas, ready for `savefig`.
    """
    rows = -(-len(examples) // 2)
    figure = new_figure(title, height=0.9 + 2.9 * rows)
    panels = figure.subplots(rows, 2, squeeze=False).ravel()
    for axes in panels[len(examples) :]:
        axes.set_axis_off()
    for axes, (name, seen, raw, calibrated, came) in zip(panels, examples, strict=False):
        ahead = np.arange(len(came) + 1)
        axes.plot(np.arange(1 - len(seen), 1), seen, color=BENCHMARK, linewidth=1.2, label="Seen")

        def ends(
            paths: Floats, level: float, stratified: bool, start: float = float(seen[-1])
        ) -> list[Floats]:
            tails = [
                sample_quantile(paths.T, tail, stratified=stratified) for tail in tail_levels(level)
            ]
            return [np.concatenate(([start], tail)) for tail in tails]

        for place, level in enumerate(sorted(levels, reverse=True)):
            shade = SHADES[min(place, len(SHADES) - 1)]
            label = f"{level:.0%}, calibrated"
            axes.fill_between(
                ahead, *ends(calibrated, level, True), color=shade, linewidth=0, label=label
            )
        widest = max(levels)
        for place, end in enumerate(ends(raw, widest, False)):
            once = "_" * place  # the legend leaves out what begins with it
            label = f"{once}{widest:.0%}, as drawn"
            axes.plot(ahead, end, color=STRATEGY, linestyle="--", linewidth=0.9, label=label)
        path = np.concatenate((seen[-1:], came))
        axes.plot(ahead, path, color=FALL, linewidth=1.6, label="What came")
        axes.axvline(0, color="black", linewidth=0.6)
        axes.set_title(figure_text(name), loc="left", fontsize=10)
        _dress(axes)
        axes.set_xlabel("")
    for axes in panels[max(0, len(examples) - 2) : len(examples)]:
        axes.set_xlabel("Bars from the last one seen", fontsize=9)
    _legend_below(figure, panels[0])
    return figure


def _look(name: str) -> dict[str, Any]:
    return {"linewidth": 1.4, **LOOKS[name]}


def _bars_only(table: pd.DataFrame | pd.Series[float]) -> pd.DataFrame:
    """Without the row of all bars, on whole numbers."""
    assert isinstance(table, pd.DataFrame)
    rows = table.drop(index=ALL)
    return rows.set_axis(rows.index.astype(int))


def _legend_below(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=3, frameon=False, fontsize=9)


def _dress(axes: Axes) -> None:
    """`dress`, and whole numbers of bars along the horizontal axis."""
    from matplotlib.ticker import MaxNLocator

    dress(axes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if not axes.get_xlabel():
        axes.set_xlabel("Bar of the horizon", fontsize=9)
