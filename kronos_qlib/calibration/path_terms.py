"""What sampled paths add to the spread and the centre that past volatility gives.

Shape letters: N windows, P paths, H bars of the horizon.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from kronos_qlib.calibration.student import student_crps
from kronos_qlib.settings import check_number, require

Floats = npt.NDArray[np.float64]

LEAST_PATHS = 10
"""Paths of a window whose spread and mean are of use; fewer say nothing."""
FOLDS = 5
"""Blocks of days of the cross-validation."""
LEAST_DAYS = 20
"""Days of windows for it; with fewer, paths add nothing."""
SIGNIFICANT = 1.64
"""Least t of the gain in held-out CRPS, day by day: 5 % to one side."""
LEAST_SPREAD = 1e-6


@dataclass(frozen=True)
class PathTerms:
    """Factors on what the paths of a window say: 0 where it earns nothing on held-out days.

    log scale + spread x (log spread of paths - log scale - usual), and a centre of
    `centre` x mean of paths, in log returns from the last close.

    Raises:
        ConfigError: a number is not finite.
    """

    spread: float
    centre: float
    usual: tuple[float, ...]
    """(H,) mean of log spread of paths - log scale where it was fitted; the last holds beyond."""
    windows: int
    """That it was fitted on."""

    def __post_init__(self) -> None:
        check_number(self, "spread", "centre")
        is_good = bool(self.usual) and bool(np.isfinite(self.usual).all())
        require(is_good, f"usual must be finite numbers, at least one, got {self.usual}")

    @classmethod
    def fit(
        cls,
        paths: Floats,
        returns: Floats,
        log_scale: Floats,
        dof: float,
        days: npt.NDArray[np.datetime64],
    ) -> PathTerms:
        """The factors of the least mean CRPS, of those terms that lower it on held-out days.

        Args:
            paths: (N, P, H) log returns of paths. returns: (N, H) those that came.
            log_scale: (N, H) of past volatility. dof: of its t.
            days: (N,) of the windows' last bars.
        """
        # Here: scipy adds filters of warnings, and importing the networks changes no global state.
        from scipy.optimize import minimize

        mean, spread = _moments(paths)
        usual = (spread - log_scale).mean(axis=0)
        apart = spread - log_scale - usual
        usually = np.maximum(np.abs(returns).mean(axis=0), 1e-12)

        def crps(factors: Floats, rows: slice | npt.NDArray[np.bool_]) -> Floats:
            scale = np.exp(log_scale[rows] + factors[0] * apart[rows])
            z = (returns[rows] - factors[1] * mean[rows]) / scale
            found, _ = student_crps(z, dof)
            return np.asarray((found * scale / usually).mean(axis=1))

        def best(terms: tuple[int, ...], rows: slice | npt.NDArray[np.bool_]) -> Floats:
            def loss(tried: Floats) -> float:
                return float(crps(_spread_over(terms, tried), rows).mean())

            found = minimize(loss, np.zeros(len(terms)), method="Nelder-Mead").x
            return _spread_over(terms, found)

        sampled, day = np.unique(days, return_inverse=True)
        chosen: tuple[int, ...] = ()
        gained = 0.0
        if len(sampled) >= LEAST_DAYS and paths.shape[1] >= LEAST_PATHS:
            folds = np.linspace(0, len(sampled), FOLDS + 1).round().astype(int)
            for terms in ((0,), (1,), (0, 1)):
                gains = np.zeros(len(returns))
                for first, last in pairwise(folds):
                    held = (day >= first) & (day < last)
                    factors = best(terms, ~held)
                    gains[held] = crps(np.zeros(2), held) - crps(factors, held)
                daily = np.bincount(day, gains) / np.bincount(day)
                error = daily.std(ddof=1) / np.sqrt(len(daily))
                if daily.mean() > max(gained, SIGNIFICANT * error):
                    chosen, gained = terms, float(daily.mean())
        factors = best(chosen, slice(None)) if chosen else np.zeros(2)
        return cls(float(factors[0]), float(factors[1]), tuple(usual.tolist()), len(returns))

    def apply(self, paths: Floats, log_scale: Floats) -> tuple[Floats, Floats]:
        """Centre and log scale, (N, H) each, of paths (N, P, H) and past volatility (N, H)."""
        if paths.shape[1] < LEAST_PATHS or not (self.spread or self.centre):
            return np.zeros_like(log_scale), log_scale
        mean, spread = _moments(paths)
        places = np.minimum(np.arange(log_scale.shape[1]), len(self.usual) - 1)
        apart = spread - log_scale - np.array(self.usual)[places]
        return self.centre * mean, log_scale + self.spread * apart


def _moments(paths: Floats) -> tuple[Floats, Floats]:
    """(N, P, H) to mean and log standard deviation, (N, H) each."""
    spread = paths.std(axis=1, ddof=min(1, paths.shape[1] - 1))
    return paths.mean(axis=1), np.log(np.maximum(spread, LEAST_SPREAD))


def _spread_over(terms: tuple[int, ...], values: Floats) -> Floats:
    found = np.zeros(2)
    found[list(terms)] = values
    return found
