"""Windows whose future has come: what forecasts are judged by, and calibrated on.

Shape letters: N windows, H bars of the horizon.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.data.windows.segments import Segment
from kronos_qlib.data.windows.window import Windows
from kronos_qlib.data.windows.window_dataset import WindowDataset
from kronos_qlib.errors import BarDataError

logger = logging.getLogger(__name__)

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
        as_announced = (times_ahead(windows) == announced).all(axis=1)
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


def times_ahead(windows: Windows) -> npt.NDArray[np.datetime64]:
    """(N, H) times of the bars that came."""
    ends = windows.ends[:][:, None].astype(np.int64)
    return np.asarray(windows.table.times_at(ends + np.arange(1, windows.ahead + 1)))


def _reasons(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "nothing left out"
