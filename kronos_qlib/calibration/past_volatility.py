"""What a window's bars say of the volatility to come.

Shape letters: N windows, L bars seen, K estimates.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kronos_qlib.errors import BarDataError
from kronos_qlib.schema import CLOSE, PRICE_COLUMNS

Floats = npt.NDArray[np.float64]

LEAST_BARS = 23
"""Bars seen: 22 moves, a month of days."""
DECAY = 0.94
"""Of the exponentially weighted estimate.

Source: RiskMetrics Technical Document, 4th edition (1996), for daily bars."""
CLOSES = (5, 20, 60)
"""Moves from close to close of the other estimates; a shorter window takes all it has."""
RANGES = (1, 5, 22, 60)
"""Bars of the estimates from ranges: a day, a week, a month, and a quarter of daily bars."""
ESTIMATES = (
    "ewma",
    *(f"close_{bars}" for bars in CLOSES),
    *(f"range_{bars}" for bars in RANGES),
)
"""In the order of the columns of `log_volatilities`."""
STILL = 1e-6
"""Least volatility per bar: a price that stood still has no logarithm of it."""
FLOOR = 0.05
"""Least share of an estimate in that of the longest: one bar at one price says little."""

OPEN, HIGH, LOW = (PRICE_COLUMNS.index(name) for name in ("open", "high", "low"))


STOOD_STILL = "no price has moved, which says nothing of how far the next move goes"
"""Why a window that `stood_still` finds is not calibrated."""


def are_prices(values: npt.NDArray[Any]) -> bool:
    """Whether all values, an array of any shape, are positive and finite."""
    return bool(((values > 0) & (values < np.inf)).all())


def stood_still(bars: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """(N,) whether no price of (N, L, at least 4) bars moved as far back as estimates look.

    Such a past, of a halted name or a dead pair, says nothing of how far the next move goes.
    """
    newest = bars[:, -max(*CLOSES, *RANGES) - 1 :, : len(PRICE_COLUMNS)]
    return np.asarray((newest == bars[:, -1:, CLOSE, None]).all(axis=(1, 2)))


def bar_variances(prices: Floats) -> Floats:
    """(..., T - 1) variance of the log price over each bar but the first, from its range.

    The squared gap from the last close to the open, plus Garman and Klass' estimate of what came
    after: 0.5 (log high / low)^2 - (2 log 2 - 1) (log close / open)^2, never below 0.

    Args:
        prices: (..., T, at least 4) positive open, high, low, close.

    Source:
        Garman and Klass, "On the estimation of security price volatilities from historical data",
        Journal of Business 53 (1980), their estimator with an opening gap.
    """
    logs = np.log(prices[..., : len(PRICE_COLUMNS)])
    gap = logs[..., 1:, OPEN] - logs[..., :-1, CLOSE]
    span = logs[..., 1:, HIGH] - logs[..., 1:, LOW]
    body = logs[..., 1:, CLOSE] - logs[..., 1:, OPEN]
    within = 0.5 * span**2 - (2 * np.log(2) - 1) * body**2
    return np.asarray(gap**2 + np.maximum(within, 0))


def log_volatilities(bars: Floats, season: Floats | None = None) -> Floats:
    """(N, K) logarithm of each estimate of the volatility of one bar, columns as in
    `ESTIMATES`.

    Args:
        bars: (N, L, at least 4) open, high, low, close, all positive; L at least `LEAST_BARS`.
        season: (N, L) log factors on the volatility of these bars by their time of day, which is
            taken off; None: none.

    Raises:
        BarDataError: a price is not positive, or there are too few bars.

    Source:
        The horizons of the ranges are those of Corsi, "A simple approximate long-memory model of
        realized volatility", Journal of Financial Econometrics 7 (2009).
    """
    bars = np.asarray(bars, dtype=np.float64)
    if bars.ndim != 3 or bars.shape[1] < LEAST_BARS:
        raise BarDataError(
            f"expected bars (N, L, 6) with L at least {LEAST_BARS}, got shape {bars.shape}"
        )
    if not are_prices(bars[..., : len(PRICE_COLUMNS)]):
        raise BarDataError("volatility needs positive finite prices, and a bar has another")
    moves = np.diff(np.log(bars[..., CLOSE]), axis=1) ** 2
    ranges = bar_variances(bars)
    if season is not None:
        usual = np.exp(2 * season[:, 1:])
        moves, ranges = moves / usual, ranges / usual
    weights = DECAY ** np.arange(moves.shape[1])[::-1]
    # No product of matrices: its last bits depend on how many windows there are.
    variances = [(moves * (weights / weights.sum())).sum(axis=1)]
    variances += [moves[:, -bars_used:].mean(axis=1) for bars_used in CLOSES]
    variances += [ranges[:, -bars_used:].mean(axis=1) for bars_used in RANGES]
    longest = np.maximum(variances[ESTIMATES.index(f"close_{max(CLOSES)}")], STILL**2)
    found = np.maximum(np.stack(variances, axis=1), FLOOR**2 * longest[:, None])
    return np.asarray(0.5 * np.log(found))
