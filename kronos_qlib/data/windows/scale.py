"""The level and spread of a window's lookback: bars to z-scores and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

SPREAD_FLOOR = 1e-5
"""Added to the spread in the published code, whatever the price. Here to columns of only zeros,
and to those whose level is `ORDINARY_LEVEL`; to others in proportion."""
ORDINARY_LEVEL = 10.0
"""The level at which the floor is the published number: the price of most A-shares."""
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

        The floor is a millionth of the column's level, its largest magnitude, so that no factor
        on a whole column (a split long after, another currency or unit) changes its z-scores: at
        a level of 10 the published 1e-5. At a price P the bars made of the same z differ from the
        published rule's by |z| times |1e-6 P - 1e-5|: less than |z| millionths of the price from
        P = 5 upwards, 9 |z| millionths at P = 1. Far below 1 the published floor swallows the
        spread (fault 8). A millionth is also above what float32 rounds (6e-8), so a price that
        stands still but for rounding stays near 0. A column of only zeros has floor 1e-5.

        Args:
            past: (B, T, C) bars, or with the time axis elsewhere.
            axis: the time axis. Bars are added one after another along it, so the same window
                gets the same bits whatever other windows are in the array. The last axis would be
                added in pairs.

        Source:
            Kronos `KronosPredictor` and `QlibDataset`, but for the floor.
        """
        wide = past.astype(np.float64)  # volumes near 1e9 lose digits in a float32 sum
        mean = wide.mean(axis=axis, keepdims=True)
        level = np.maximum(wide.max(axis=axis, keepdims=True), -wide.min(axis=axis, keepdims=True))
        wide -= mean
        spread = np.sqrt(np.square(wide, out=wide).mean(axis=axis, keepdims=True))
        spread += SPREAD_FLOOR * np.where(level > 0, level / ORDINARY_LEVEL, 1.0)
        return cls(mean, spread)

    def to_z(self, bars: Floats, clip: float = Z_LIMIT) -> Floats:
        """Bars to z-scores, clipped; a clipped entry does not invert."""
        z = bars - self.mean
        z /= self.spread
        return np.clip(z, -clip, clip, out=z).astype(np.float32)

    def to_bars(self, z: Floats) -> Floats:
        """Z-scores to bars (B, T, C) float32."""
        return np.asarray(z * self.spread + self.mean, dtype=np.float32)
