"""A forecast as a picture: candles of the past, a fan of quantiles for the bars to come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.errors import ConfigError
from kronos_qlib.evaluation.figures import BENCHMARK, FALL, STRATEGY, dress, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Distinct without red and green. A rise is hollow besides, a fall filled.
RISE, FAN, GREY = STRATEGY, "#009E73", BENCHMARK


def candle_figure(
    past: pd.DataFrame,
    mean: pd.DataFrame,
    quantiles: pd.DataFrame,
    title: str,
    *,
    paths: npt.NDArray[np.floating] | None = None,
    came: pd.Series[float] | None = None,
    mean_label: str = "mean",
) -> Figure:
    """Draw bars seen as candles and what was sampled of the bars to come.

    Bars stand side by side, so that nights and holidays take no space.

    Args:
        past: (L rows) by time; open, high, low, close, volume in their own units.
        mean: (H rows) by time; close and volume, the mean of the sampled paths.
        quantiles: (H rows) of the close; columns are levels in [0, 1], such as 0.05. Levels q and
            1 - q make a band of the fan; 0.5 is drawn as a line. Without columns there is no fan.
        title: a line above the figure.
        paths: (P, H) closes of some paths, drawn thin, in the same unit.
        came: (H,) closes that came, where they are known.
        mean_label: what the legend calls `mean`, where it is of a single path.

    Returns:
        A figure on an Agg canvas, ready for `savefig`.

    Raises:
        ConfigError: no bars, or rows of `mean` and `quantiles` that are not the same; `paths` or
            `came` of another number of bars.
    """
    if past.empty or mean.empty or not mean.index.equals(quantiles.index):
        raise ConfigError(
            f"expected bars seen, and a mean and quantiles of the same bars to come, got "
            f"{len(past)}, {len(mean)} and {len(quantiles)} rows"
        )
    for name, lines in (("paths", paths), ("came", came)):
        if lines is not None and lines.shape[-1] != len(mean):
            raise ConfigError(
                f"{name}: expected {len(mean)} bars as of the mean, got {lines.shape[-1]}"
            )
    has_volume = bool((past["volume"] > 0).any())
    figure = new_figure(title, height=6.0, width=10.4)
    ratios = [3.4, 1.0] if has_volume else [1.0]
    panels = list(
        figure.subplots(len(ratios), 1, sharex=True, height_ratios=ratios, squeeze=False)[:, 0]
    )
    _draw_candles(panels[0], past)
    _draw_fan(panels[0], past, mean, quantiles, mean_label)
    _draw_lines(panels[0], past, paths, came)
    # Above the axes: inside it would sooner or later hide a candle.
    panels[0].legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=7,
        frameon=False,
        fontsize=9,
        borderpad=0.2,
        handlelength=1.3,
        columnspacing=1.2,
    )
    if has_volume:
        _draw_volume(panels[1], past, mean)
    times = past.index.append(mean.index)
    for axes in panels:
        axes.axvline(len(past) - 0.5, color=GREY, linewidth=0.8, linestyle=":")
        dress(axes)
        axes.set_xlim(-1, len(times))
    _label_times(panels[-1], pd.DatetimeIndex(times))
    return figure


def fan_bands(levels: Sequence[float]) -> list[tuple[float, float]]:
    """The pairs q and 1 - q among levels, the widest first."""
    ordered = sorted(levels)
    return [
        (low, high)
        for low in ordered
        for high in reversed(ordered)
        if low < 0.5 and abs(low + high - 1) < 1e-9
    ]


def _draw_candles(axes: Axes, past: pd.DataFrame) -> None:
    places = np.arange(len(past))
    opened, close = past["open"].to_numpy(), past["close"].to_numpy()
    rises = close >= opened
    low, high = np.minimum(opened, close), np.maximum(opened, close)
    for which, color, face in ((rises, RISE, "white"), (~rises, FALL, FALL)):
        at = places[which]
        # Two wicks that spare the body, or a hollow one would show its wick inside.
        axes.vlines(at, past["low"].to_numpy()[which], low[which], color=color, linewidth=0.9)
        axes.vlines(at, high[which], past["high"].to_numpy()[which], color=color, linewidth=0.9)
        axes.bar(
            at,
            (high - low)[which],
            bottom=low[which],
            width=0.64,
            facecolor=face,
            edgecolor=color,
            linewidth=0.9,
        )


def _draw_fan(
    axes: Axes, past: pd.DataFrame, mean: pd.DataFrame, quantiles: pd.DataFrame, mean_label: str
) -> None:
    """Every line and band starts from the last close seen."""
    last = float(past["close"].iloc[-1])
    places = np.arange(len(past) - 1, len(past) + len(mean))

    def grown(values: pd.Series[float]) -> np.ndarray:
        return np.concatenate(([last], values.to_numpy(dtype=float)))

    bands = fan_bands([float(level) for level in quantiles.columns])
    for place, (low, high) in enumerate(bands):
        axes.fill_between(
            places,
            grown(quantiles[low]),
            grown(quantiles[high]),
            color=FAN,
            alpha=0.16 + 0.14 * place,
            linewidth=0,
            label=f"{high - low:.0%} of the paths",
        )
    if 0.5 in quantiles:
        axes.plot(places, grown(quantiles[0.5]), color=FAN, linewidth=1.8, label="median")
    axes.plot(
        places, grown(mean["close"]), color="black", linewidth=1.1, linestyle="--", label=mean_label
    )
    axes.plot(
        [len(past) - 1, places[-1]],
        [last, last],
        color=GREY,
        linewidth=0.9,
        linestyle=":",
        label=f"last close {last:.6g}",
    )
    axes.set_ylabel("Price")
    axes.margins(y=0.05)


def _draw_lines(
    axes: Axes,
    past: pd.DataFrame,
    paths: npt.NDArray[np.floating] | None,
    came: pd.Series[float] | None,
) -> None:
    """Single paths, and what came, from the last close seen."""
    last = float(past["close"].iloc[-1])
    drawn = np.empty((0, 0)) if paths is None else paths
    for place, path in enumerate(drawn):
        axes.plot(
            len(past) - 1 + np.arange(len(path) + 1),
            np.concatenate(([last], path)),
            color=FAN,
            alpha=0.35,
            linewidth=0.6,
            label=f"{'_' * place}{len(drawn)} of them",  # a legend leaves out what begins with _
        )
    if came is not None:
        axes.plot(
            len(past) - 1 + np.arange(len(came) + 1),
            np.concatenate(([last], came.to_numpy(dtype=float))),
            color=FALL,
            linewidth=1.9,
            label="what came",
        )


def _draw_volume(axes: Axes, past: pd.DataFrame, mean: pd.DataFrame) -> None:
    from matplotlib.ticker import EngFormatter

    rises = (past["close"] >= past["open"]).to_numpy()
    colors = np.where(rises, RISE, FALL)
    axes.bar(np.arange(len(past)), past["volume"], width=0.64, color=colors, alpha=0.55)
    ahead = np.arange(len(past), len(past) + len(mean))
    axes.bar(ahead, mean["volume"], width=0.64, color=FAN, alpha=0.55)
    axes.set_ylabel("Volume")
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))


def _label_times(axes: Axes, times: pd.DatetimeIndex, most: int = 8) -> None:
    """A label for some bars: the day, and the time where bars are shorter."""
    places = np.unique(np.linspace(0, len(times) - 1, min(most, len(times))).round().astype(int))
    is_daily = bool((times == times.normalize()).all())
    form = "%Y-%m-%d" if is_daily else "%m-%d\n%H:%M"
    axes.set_xticks(places, [f"{times[place]:{form}}" for place in places])
