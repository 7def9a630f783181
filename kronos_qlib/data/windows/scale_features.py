"""What a window's normalisation takes away: its scale, in features to compare a day's shares by.

Shape letters: B windows, T bars of a window, F features.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kronos_qlib.schema import AMOUNT, CLOSE, HIGH, LOW, OPEN

Floats = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]

RETURN_BARS = (1, 2, 3, 5, 10, 20, 40, 60)
VOLATILITY_BARS = (5, 10, 20, 60, 89)
SPREAD_BARS = (5, 20, 60)
SHAPE_BARS = (1, 5, 20)
AGREEMENT_BARS = (10, 20)
LONG = 60
"""Bars over which the usual amount is taken."""
TINY = 1e-6

SCALE_FEATURES = (
    "amount",
    *(f"return_{bars}" for bars in RETURN_BARS),
    *(f"volatility_{bars}" for bars in VOLATILITY_BARS),
    *(f"range_{bars}" for bars in SPREAD_BARS),
    *(f"place_{bars}" for bars in SPREAD_BARS),
    *(f"{part}_{bars}" for bars in SHAPE_BARS for part in ("body", "upper", "lower")),
    *(f"amount_{bars}" for bars in SHAPE_BARS),
    *(f"agreement_{bars}" for bars in AGREEMENT_BARS),
)
"""Names of the columns of `scale_features`, in order; a number counts bars, newest first."""


def scale_features(bars: Floats) -> Floats:
    """Features of raw bars that a z-scored window no longer shows, or shows too coarsely.

    The level of prices is not among them: adjusted prices are rescaled when a later split comes,
    so a low level would predict one. Nothing here changes if all of a share's prices do alike.

    A window that is shorter than a feature's number of bars uses all it has.

    Args:
        bars: (B, T, 6) lookbacks in their own units, at least 2 bars. Prices are to be positive
            and amounts not negative: of others the features are not finite.

    Returns:
        (B, F) float32, columns as in `SCALE_FEATURES`: log of the mean amount; log returns; log of
        the volatility of a bar's return; mean log range of a bar; place of the close between the
        lowest low (0) and highest high (1); mean log body, upper and lower shadow; log amount
        relative to the usual; correlation of returns with changes of amount.
    """
    wide = bars.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return _features(wide)


def _features(wide: Wide) -> Floats:
    opened, high, low, close = (np.log(wide[..., column]) for column in (OPEN, HIGH, LOW, CLOSE))
    amount = np.log1p(wide[..., AMOUNT])
    moves, changes = np.diff(close, axis=1), np.diff(amount, axis=1)
    last = close[:, -1]

    def newest(values: Wide, count: int) -> Wide:
        return values[:, -count:]

    columns = [np.log1p(wide[..., AMOUNT].mean(axis=1))]
    columns += [newest(moves, count).sum(axis=1) for count in RETURN_BARS]
    columns += [np.log(newest(moves, count).std(axis=1) + TINY) for count in VOLATILITY_BARS]
    columns += [newest(high - low, count).mean(axis=1) for count in SPREAD_BARS]
    for count in SPREAD_BARS:
        bottom, top = newest(low, count).min(axis=1), newest(high, count).max(axis=1)
        columns.append((last - bottom) / (top - bottom + TINY))
    for count in SHAPE_BARS:
        for part in (
            close - opened,
            high - np.maximum(opened, close),
            np.minimum(opened, close) - low,
        ):
            columns.append(newest(part, count).mean(axis=1))
    usual = newest(amount, LONG).mean(axis=1)
    columns += [newest(amount, count).mean(axis=1) - usual for count in SHAPE_BARS]
    for count in AGREEMENT_BARS:
        one, other = (
            part - part.mean(axis=1, keepdims=True)
            for part in (newest(moves, count), newest(changes, count))
        )
        norms = np.sqrt(np.square(one).sum(axis=1) * np.square(other).sum(axis=1))
        columns.append((one * other).sum(axis=1) / (norms + TINY))
    return np.stack(columns, axis=1).astype(np.float32)


def standardised_over_day(features: Floats) -> Floats:
    """Each feature's rank among one day's windows, spread evenly with mean 0 and deviation 1.

    Ranks, since amounts and levels have tails in which a mean and a deviation drown. What is the
    same for all, or stands alone, becomes 0, and so does a value that is not known (NaN): 0 is the
    median of those that are, and no other value is made up.

    Args:
        features: (B, F) of the windows that end at one moment.

    Returns:
        (B, F) float32 between -sqrt(3) and sqrt(3).
    """
    # Here: it takes half as long as torch to import, and training without a head needs none.
    from scipy.stats import rankdata

    unknown = np.isnan(features)
    known = len(features) - unknown.sum(axis=0)
    ranks = rankdata(features, axis=0, nan_policy="omit" if unknown.any() else "propagate")
    ranks = ranks / (known + 1) - 0.5
    ranks[unknown] = 0
    return np.asarray(ranks * np.sqrt(12.0), dtype=np.float32)
