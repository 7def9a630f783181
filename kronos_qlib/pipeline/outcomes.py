"""Windows whose future has come, with paths drawn for them: what forecasts are judged by.

Shape letters: N windows, P paths, H bars of the horizon.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.data.windows.segments import Segment
from kronos_qlib.data.windows.window import Windows
from kronos_qlib.data.windows.window_dataset import WindowDataset
from kronos_qlib.errors import BarDataError, ConfigError
from kronos_qlib.evaluation.forecasts.distributions import Outcomes
from kronos_qlib.inference.sampling import SamplingConfig
from kronos_qlib.pipeline.scoring import draw_paths
from kronos_qlib.schema import CLOSE

if TYPE_CHECKING:
    from kronos_qlib.inference.predictor import KronosPredictor

logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]

AT_ONCE = 500
"""Windows whose paths are held in memory with all six columns."""
HISTORY_BARS = 1000
"""Bars before a forecast that baselines are estimated on: four years of days."""
MANY = 1 / 3
"""Share of windows whose absence is worth a warning."""


def known_windows(source: WindowDataset, segment: Segment) -> tuple[Windows, int]:
    """By time, those windows of a segment whose next bars are the calendar's; how many are not.

    A warning where these are many: a moment at which few instruments have a bar, such as a
    stray one on a holiday, leaves out the windows of all others.

    Raises:
        BarDataError: there is none.
    """
    windows = source.training_windows(segment).by_time()
    if len(windows):
        announced = source.future_times(windows)
        as_announced = (_times_ahead(windows) == announced).all(axis=1)
        left_out = int((~as_announced).sum())
        if left_out > MANY * len(windows):
            logger.warning(_suspect(source, announced, left_out, len(windows)))
        if left_out < len(windows):
            return windows.take(np.flatnonzero(as_announced)), left_out
    raise BarDataError(
        f"{segment}: no window with {source.lookback} bars seen and the calendar's next "
        f"{source.horizon} traded within the segment ({_reasons(windows.dropped)}); give the "
        "segment more days, or shorten lookback or horizon"
    )


def _suspect(
    source: WindowDataset, announced: npt.NDArray[np.datetime64], left_out: int, windows: int
) -> str:
    calendar = source.table.calendar
    traded = np.bincount(source.table.places, minlength=len(calendar))
    moments = np.unique(announced)
    place = np.searchsorted(calendar, moments)
    # A moment of the exchange's that is none of the bars' has none.
    is_bar = calendar[np.minimum(place, len(calendar) - 1)] == moments
    counts = np.where(is_bar, traded[np.minimum(place, len(calendar) - 1)], 0)
    fewest = int(counts.argmin())
    when = pd.Timestamp(moments[fewest])
    return (
        f"{left_out} of {windows} windows lack one of the calendar's next bars, which leaves a "
        f"peculiar sample; the calendar's moment with the fewest bars is {when:%Y-%m-%d %H:%M}, "
        f"with {counts[fewest]} of {len(source.table.instruments)} names: is it a trading day?"
    )


def sample_windows(windows: Windows, count: int, seed: int) -> Windows:
    """At most `count` windows by time, evenly spaced in it, drawn among a moment's instruments.

    Evenly spaced places in a list by (time, instrument) would meet the same instruments again and
    again where a day has about as many windows as lie between two places.
    """
    if len(windows) <= count:
        return windows
    draws = np.random.default_rng(seed).random(len(windows))
    order = np.lexsort((draws, windows.times))
    places = np.linspace(0, len(windows) - 1, count).round().astype(np.int64)
    return windows.take(np.sort(order[places]))


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
        _times_ahead(windows),
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


def _times_ahead(windows: Windows) -> npt.NDArray[np.datetime64]:
    """(N, H) times of the bars that came."""
    ends = windows.ends[:][:, None].astype(np.int64)
    return np.asarray(windows.table.times_at(ends + np.arange(1, windows.ahead + 1)))


def _check_positive(closes: Floats, windows: Windows, what: str) -> None:
    bad = np.flatnonzero(~(closes > 0).all(axis=1))
    if len(bad):
        (name,) = windows.describe(bad[:1])
        raise BarDataError(
            f"the window of {name} {what} of {closes[bad[0]].min():g}: forecasts are judged by "
            "returns, which need positive prices"
        )


def _reasons(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "nothing left out"
