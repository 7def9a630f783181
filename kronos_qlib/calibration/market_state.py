"""How wild a whole market is at a moment, from the bars of all its instruments up to it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.calibration.past_volatility import FLOOR, bar_variances
from kronos_qlib.data.windows.bar_table import BarTable
from kronos_qlib.data.windows.window import Windows
from kronos_qlib.schema import PRICE_COLUMNS

Floats = npt.NDArray[np.float64]

MARKET = ("market_1", "market_5")
"""Names of the columns of `market_states`."""
RECENT = (1, 5)
"""Bars whose variance is compared with that of `USUAL` bars."""
USUAL = 22
LEAST_NAMES = 20
"""Instruments with a bar at a moment; fewer are no market, and say nothing: 0."""


def market_states(table: BarTable) -> Floats:
    """(K, 2) state at each moment of the calendar, columns as in `MARKET`.

    The mean over instruments of log(volatility of the newest bar, or of the last 5) - log(that of
    the last 22), each instrument by its own bars up to that moment. 0 says as usual. A
    price that is not positive counts as next to nothing.
    """
    if not len(table):
        return np.zeros((len(table.calendar), len(RECENT)))
    prices = table.values[:, : len(PRICE_COLUMNS)].astype(np.float64)
    variances = np.concatenate(([np.nan], bar_variances(np.maximum(prices, 1e-12))))
    begins = table.offsets[:-1]
    variances[begins[begins < len(table)]] = np.nan  # no bar before it, or another instrument's
    owner = np.repeat(np.arange(len(table.instruments)), np.diff(table.offsets))
    by_owner = pd.Series(variances).groupby(owner)

    def mean(bars: int) -> Floats:
        if bars == 1:
            return variances
        rolled = by_owner.rolling(bars, min_periods=bars).mean()
        return np.asarray(rolled.to_numpy(), dtype=np.float64)

    usual = mean(USUAL)
    found = np.zeros((len(table.calendar), len(RECENT)))
    for column, bars in enumerate(RECENT):
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = 0.5 * np.log(np.maximum(mean(bars) / usual, FLOOR**2))
        good = np.isfinite(ratio)
        count = np.bincount(table.places[good], minlength=len(found))
        total = np.bincount(table.places[good], ratio[good], len(found))
        found[:, column] = np.where(count >= LEAST_NAMES, total / np.maximum(count, 1), 0.0)
    return found


def states_of(windows: Windows) -> Floats:
    """(N, 2) state of the market at the last bar that each window has seen.

    Every bar of the table counts, whether in the universe of that moment or not.
    """
    return np.asarray(market_states(windows.table)[windows.table.places[windows.ends[:]]])
