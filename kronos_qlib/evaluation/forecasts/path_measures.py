"""The measures of the Kronos paper: rank correlations of paths and returns, volatility explained.

They are pooled over windows and say nothing of a cross-section: `evaluation.ranking` does. Each is
a number of all windows, so its error comes from leaving out one day after another.

Shape letters: N windows, H bars of the horizon.

Source:
    Shi and others, "Kronos: a foundation model for the language of financial markets", arXiv
    2508.02739 (2025), which leaves details open; each function says how it reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import rankdata

from kronos_qlib.errors import BarDataError, UndefinedMetricError
from kronos_qlib.evaluation.ranking.day_tables import correlate_rows, rank_rows, rows_vary
from kronos_qlib.evaluation.ranking.uncertainty import LEVEL, daily_mean, varies

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Clustered:
    """A measure of all windows with an interval that takes those of a day as one piece of evidence.

    low and high are NaN where the measure itself is, or where no day changes it.
    """

    value: float
    low: float
    high: float


def path_rank_ic(predicted: Floats, came: Floats) -> Floats:
    """(N,) Spearman correlation of each predicted path with the one that came, along the horizon.

    The last close seen is not part of either path. Ties share their mean rank. NaN where either
    path is flat: it has no order.

    Args:
        predicted, came: (N, H) prices, or returns from the last close, which have the same ranks.

    Raises:
        BarDataError: shapes differ, or a value is not finite.
    """
    _check_pairs(predicted, came, dimensions=2)
    found = correlate_rows(rank_rows(predicted), rank_rows(came))
    return np.where(rows_vary(predicted) & rows_vary(came), found, np.nan)


def pooled_rank_ic(predicted: Floats, came: Floats) -> float:
    """Spearman correlation over all values of two arrays of one shape (...), windows pooled.

    Ties share their mean rank. NaN where one of them is the same everywhere.

    Raises:
        BarDataError: shapes differ, or a value is not finite.
    """
    _check_pairs(predicted, came)
    return _correlation(rankdata(predicted), rankdata(came))


def r_squared(predicted: Floats, came: Floats) -> float:
    """1 - squared error / squares of what came about its mean, values of shape (...) pooled.

    Below 0 where the mean of what came, known in hindsight, would have predicted better.

    Raises:
        BarDataError: shapes differ, or a value is not finite.
        UndefinedMetricError: what came never varies.
    """
    _check_pairs(predicted, came)
    if not varies(came):
        raise UndefinedMetricError(
            f"all {came.size} values that came are {came.flat[0]:g}: there is nothing to explain"
        )
    return float(1 - np.square(came - predicted).sum() / np.square(came - came.mean()).sum())


def squared_correlation(predicted: Floats, came: Floats) -> float:
    """`r_squared` of the best a + b x predicted in hindsight: it forgives any bias and scale.

    Values of shape (...), pooled. NaN where one of the two never varies.

    Raises:
        BarDataError: shapes differ, or a value is not finite.
    """
    _check_pairs(predicted, came)
    return _correlation(np.ravel(predicted), np.ravel(came)) ** 2


def clustered_by_day(
    measure: Callable[[Flags], float],
    days: pd.DatetimeIndex,
    *,
    label_days: int = 1,
    level: float = LEVEL,
) -> Clustered:
    """A measure of windows with its interval, whole days being left out one after another.

    With D days the jackknife's pseudo-value of a day is D x measure - (D - 1) x measure without
    that day; of a mean it is that day's mean, where days have equally many windows. The interval is
    that of the pseudo-values by `uncertainty.daily_mean`, which counts how days depend on each
    other, about the measure itself.

    Args:
        measure: of the windows that an (N,) flag keeps; smooth in them, as means, correlations and
            R2 are.
        days: (N,) the day of each window.
        label_days: days that a return to the end of the horizon runs over.
        level: confidence.

    Raises:
        UndefinedMetricError: fewer days than an error needs, see `daily_mean`; or as of `measure`.

    Source:
        Efron and Stein, "The jackknife estimate of variance", Annals of Statistics 9 (1981), with
        days as the units.
    """
    value = measure(np.ones(len(days), dtype=bool))
    each = days.unique().sort_values()
    if np.isnan(value):
        return Clustered(np.nan, np.nan, np.nan)
    place, count = each.get_indexer(days), len(each)
    without = np.array([measure(place != day) for day in range(count)])
    pseudo = pd.Series(count * value - (count - 1) * without, index=each)
    if not varies(without):
        return Clustered(value, np.nan, np.nan)
    found = daily_mean(pseudo, label_bars=label_days, name="the measure by day")
    low, high = found.interval(level)
    return Clustered(value, value + low - found.mean, value + high - found.mean)


def _correlation(one: Floats, other: Floats) -> float:
    """Pearson correlation of (M,) values, NaN where one does not vary."""
    if not varies(one) or not varies(other):
        return float("nan")
    return float(correlate_rows(one[None], other[None])[0])


def _check_pairs(predicted: Floats, came: Floats, dimensions: int | None = None) -> None:
    if predicted.shape != came.shape or not came.size or dimensions not in (None, came.ndim):
        expected = f"of {dimensions} dimensions" if dimensions else "of one shape"
        raise BarDataError(
            f"expected predictions and what came {expected}, alike and not empty, got "
            f"{predicted.shape} and {came.shape}"
        )
    for what, values in (("a prediction", predicted), ("a value that came", came)):
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            place = tuple(bad[0].tolist())
            raise BarDataError(f"{what} is {values[place]} at {place}: leave such windows out")
