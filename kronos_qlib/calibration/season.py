"""The time of day in the volatility of markets that trade around the clock.

Shape letters: N windows, T bars, H bars of the horizon.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kronos_qlib.calibration.past_volatility import bar_variances
from kronos_qlib.schema import TIME_FIELDS
from kronos_qlib.settings import check_numbers

Floats = npt.NDArray[np.float64]

HOURS = 24
MOST_FACTOR = 10.0
"""Largest log factor; a floor in the fit keeps them above -2.4."""
HOUR = TIME_FIELDS.index("hour")


@dataclass(frozen=True)
class Season:
    """Log factors on the volatility of a bar by the hour in which it closes, of mean square 1.

    A market with nights has gaps instead, in other hours at each exchange: only windows that have
    seen bars in every hour of the day have a season.

    Raises:
        ConfigError: there are not 24 numbers, or one cannot be.
    """

    factors: tuple[float, ...]

    def __post_init__(self) -> None:
        check_numbers(self, "factors", count=HOURS, most=MOST_FACTOR)

    @classmethod
    def fit(cls, bars: Floats, stamps: npt.NDArray[np.integer]) -> Season | None:
        """Root mean variance of the bars of each hour, relative to all; None without all hours.

        Each window's bars are relative to its own mean variance, so that wild ones and calm ones
        count alike.

        Args:
            bars: (N, T, at least 4) positive prices. stamps: (N, T, 5) time fields.
        """
        is_known = has_all_hours(stamps)
        if not is_known.any():
            return None
        variances = bar_variances(bars[is_known])
        usual = variances.mean(axis=1, keepdims=True)
        shares = np.divide(variances, usual, out=np.ones_like(variances), where=usual > 0)
        hours = stamps[is_known, 1:, HOUR]
        sums = np.bincount(hours.ravel(), shares.ravel(), HOURS)
        counts = np.bincount(hours.ravel(), minlength=HOURS)
        # The first bar of a window has no move: an hour that no other bar of any closes in is as
        # usual.
        mean = np.divide(sums, counts, out=np.ones(HOURS), where=counts > 0)
        return cls(tuple((0.5 * np.log(np.maximum(mean / mean.mean(), 0.01))).tolist()))

    def of_bars(self, stamps: npt.NDArray[np.integer], is_known: npt.NDArray[np.bool_]) -> Floats:
        """(N, T) log factors of bars with these stamps (N, T, 5); 0 where not `is_known` (N,)."""
        found = np.array(self.factors)[stamps[..., HOUR]]
        return np.where(is_known[:, None], found, 0.0)

    def ahead(self, stamps: npt.NDArray[np.integer], is_known: npt.NDArray[np.bool_]) -> Floats:
        """(N, H) log factors of the whole time up to each bar to come."""
        squares = np.exp(2 * self.of_bars(stamps, is_known))
        bars = np.arange(1, stamps.shape[1] + 1)
        return np.asarray(0.5 * np.log(np.cumsum(squares, axis=1) / bars))


def has_all_hours(stamps: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
    """(N,) whether the bars of a window, (N, T, 5) stamps, close in every hour of the day."""
    hours = stamps[..., HOUR]
    seen = np.zeros((len(hours), HOURS), dtype=bool)
    np.put_along_axis(seen, hours, True, axis=1)
    return np.asarray(seen.all(axis=1))
