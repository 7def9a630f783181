"""The level and spread of a window's lookback: bars to z-scores and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

SPREAD_FLOOR = 1e-5
"""Added to the spread, as in the published code."""
LEAST_LEVEL = 0.01
"""Columns whose largest value is below this get a smaller floor."""
Z_LIMIT = 5.0


@dataclass(frozen=True)
class WindowScale:
    """Level and spread of each window's lookback, from past bars only.

    mean, spread: as the lookbacks they are of, with a time axis of length 1: (B, 1, C) float64,
        each in its column's own unit (price, shares, money). A float32 mean would do for daily
        bars; in minute bars of a price of 100,000 its rounding is 1e-4 of a spread.
    """

    mean: npt.NDArray[np.float64]
    spread: npt.NDArray[np.float64]

    @classmethod
    def of(cls, past: Floats, axis: int = 1) -> WindowScale:
        """Of lookbacks: mean, and population standard deviation plus a floor.

        The floor is 1e-5 in the column's own unit, as published. For a column whose level is
        below 0.01 (a coin at 0.00001) it would swallow the spread (fault 8): there it is 1e-5 of
        a millionth, or of a millionth of that, as if prices were quoted per million coins.

        Args:
            past: (B, T, C) bars, or with the time axis elsewhere.
            axis: the time axis. Bars are added one after another along it, so the same window
                gets the same bits whatever other windows are in the array. The last axis would be
                added in pairs.
        """
        wide = past.astype(np.float64)  # volumes near 1e9 lose digits in a float32 sum
        mean = wide.mean(axis=axis, keepdims=True)
        level = np.maximum(wide.max(axis=axis, keepdims=True), -wide.min(axis=axis, keepdims=True))
        wide -= mean
        spread = np.sqrt(np.square(wide, out=wide).mean(axis=axis, keepdims=True))
        spread += SPREAD_FLOOR * _floor_unit(level)
        return cls(mean, spread)

    def to_z(self, bars: Floats, clip: float = Z_LIMIT) -> Floats:
        """Bars to z-scores, clipped; a clipped entry does not invert."""
        z = bars - self.mean
        z /= self.spread
        return np.clip(z, -clip, clip, out=z).astype(np.float32)

    def to_bars(self, z: Floats) -> Floats:
        """Z-scores to bars (B, T, C) float32."""
        return np.asarray(z * self.spread + self.mean, dtype=np.float32)


def _floor_unit(level: npt.NDArray[np.float64]) -> npt.NDArray[np.float64] | float:
    """What the floor is counted in: 1, or for very cheap columns a power of a millionth."""
    is_cheap = (level > 0) & (level < LEAST_LEVEL)
    if not is_cheap.any():
        return 1.0
    millions = np.ceil(np.log(np.where(is_cheap, LEAST_LEVEL / level, 1.0)) / np.log(1e6))
    return np.where(is_cheap, 1e-6 ** np.clip(millions, 0, 5), 1.0)
