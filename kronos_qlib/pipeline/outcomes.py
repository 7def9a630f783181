"""Windows whose future has come, with paths drawn for them: what forecasts are judged by.

Shape letters: N windows, P paths, H bars of the horizon.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kronos_qlib.data.windows.known import times_ahead
from kronos_qlib.data.windows.window import Windows
from kronos_qlib.data.windows.window_dataset import WindowDataset
from kronos_qlib.errors import BarDataError, ConfigError
from kronos_qlib.evaluation.forecasts.distributions import Outcomes
from kronos_qlib.inference.calibrating import AT_ONCE
from kronos_qlib.inference.sampling import SamplingConfig
from kronos_qlib.pipeline.scoring import draw_paths
from kronos_qlib.schema import CLOSE

if TYPE_CHECKING:
    from kronos_qlib.inference.predictor import KronosPredictor

Floats = npt.NDArray[np.float64]

HISTORY_BARS = 1000
"""Bars before a forecast that baselines are estimated on: four years of days."""


def outcomes_of(
    source: WindowDataset, windows: Windows, volatility_bars: int, history_bars: int = HISTORY_BARS
) -> Outcomes:
    """What was known of windows that `known_windows` gave, and what came.

    Args:
        volatility_bars: returns that make the historical volatility.
        history_bars: at most this many bars seen make the history: also those before a window's
            first, back to the instrument's first in the table.

    Raises:
        BarDataError: a close that is needed is not positive; names instrument and time. Of the
            history the bars up to such a one are left out.
        ConfigError: windows are shorter than `volatility_bars` returns.
    """
    shortest = source.min_bars or source.lookback
    if not 1 <= volatility_bars < shortest:
        raise ConfigError(
            f"volatility_bars must lie from 1 to {shortest - 1}, the returns of the shortest "
            f"window, got {volatility_bars}"
        )
    ends = windows.ends[:][:, None].astype(np.int64)
    table = source.table
    past = table.values[ends + np.arange(-volatility_bars, 1), CLOSE].astype(np.float64)
    came = table.values[ends + np.arange(1, source.horizon + 1), CLOSE].astype(np.float64)
    _check_positive(np.concatenate((past, came), axis=1), windows, "has a close")
    return Outcomes(
        windows.times,
        past,
        came,
        times_ahead(windows),
        volatility_bars,
        history_of(windows, max(history_bars, volatility_bars + 1)),
    )


def history_of(windows: Windows, bars: int) -> npt.NDArray[np.float32]:
    """(N, T, 4) open, high, low, close of at most `bars` bars seen, in money; see `Outcomes`.

    A history begins after a close that is not positive; another such price is the bar's close.
    """
    table = windows.table
    ends = windows.ends[:].astype(np.int64)
    known = ends + 1 - table.offsets[table.instrument_of(ends)]
    steps = np.arange(1 - min(bars, int(known.max())), 1)
    prices = table.values[np.maximum(ends[:, None] + steps, 0), : CLOSE + 1]
    good = np.isfinite(prices) & (prices > 0)
    # Nothing before a close that has no return: bars of a history stand side by side.
    bad = ~good[..., CLOSE] | (steps < 1 - known[:, None])
    spoilt = np.logical_or.accumulate(bad[:, ::-1], axis=1)[:, ::-1]
    prices = np.where(good, prices, prices[..., CLOSE:])
    prices[spoilt] = np.nan
    return np.asarray(prices)


def draw_closes(
    predictor: KronosPredictor,
    source: WindowDataset,
    windows: Windows,
    sampling: SamplingConfig,
    seed: int,
    show_progress: bool = False,
) -> Floats:
    """(N, P, H) closes of coherent paths in money, independent of each other.

    Args:
        sampling: how; neither `stratified` nor `common`, which make paths depend on each other.

    Raises:
        BarDataError: a close is not positive; names instrument and time.
    """
    sampling = replace(sampling, stratified=False, common=False)
    stamps_ahead = source.future_stamps(windows)
    closes = np.empty((len(windows), sampling.paths, source.horizon))
    for which, group in windows.by_length():
        for start in range(0, len(group), AT_ONCE):
            some = slice(start, start + AT_ONCE)
            places = which[some]
            drawn = draw_paths(
                predictor,
                group.take(some),
                stamps_ahead[places],
                sampling,
                seed,
                verbose=show_progress,
            )
            closes[places] = drawn[..., CLOSE]
    _check_positive(closes.reshape(len(windows), -1), windows, "has a path with a close")
    return closes


def _check_positive(closes: Floats, windows: Windows, what: str) -> None:
    bad = np.flatnonzero(~(closes > 0).all(axis=1))
    if len(bad):
        (name,) = windows.describe(bad[:1])
        raise BarDataError(
            f"the window of {name} {what} of {closes[bad[0]].min():g}: forecasts are judged by "
            "returns, which need positive prices"
        )
