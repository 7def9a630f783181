"""How sure one can be of a daily mean, and of the difference of two, when days are not independent.

A day's Rank IC resembles the day before's: labels overlap, and what a signal is good at comes and
goes. The usual standard error takes the days for independent, and is too small.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from arch.bootstrap import StationaryBootstrap, optimal_block_length
from scipy.stats import t as student
from statsmodels.regression.linear_model import OLS

from kronos_qlib.errors import UndefinedMetricError

Floats = npt.NDArray[np.float64]

LEAST_DAYS = 10
"""Fewer days than these say nothing about how days depend on each other."""


@dataclass(frozen=True)
class DailyMean:
    """The mean of a daily series, with the error that Newey and West give it."""

    mean: float
    standard_error: float
    days: int
    lags: int
    """Days back that autocovariances were counted to."""

    @property
    def t(self) -> float:
        """The mean in standard errors."""
        return self.mean / self.standard_error

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Where the mean lies with that confidence, by Student's t with days - 1."""
        _check_level(level)
        reach = float(student.ppf((1 + level) / 2, self.days - 1)) * self.standard_error
        return self.mean - reach, self.mean + reach


@dataclass(frozen=True)
class PairedDifference:
    """The mean of one daily series less another's, day by day, with two intervals for it."""

    difference: DailyMean
    level: float
    """Confidence of both intervals."""
    interval: tuple[float, float]
    """By Newey and West."""
    bootstrap: tuple[float, float]
    """By the stationary bootstrap, which takes no distribution for granted."""
    block_days: int
    """Mean length of the bootstrap's blocks."""


def daily_mean(daily: pd.Series[float], lags: int | None = None) -> DailyMean:
    """The mean of a daily series and its standard error after Newey and West.

    A regression on a constant with a covariance that holds under heteroscedasticity and
    autocorrelation: Bartlett weights, 1 - j / (lags + 1) for j days apart, and the correction
    n / (n - 1), so that 0 lags give the usual standard error.

    Args:
        daily: a number a day, on the days in their order.
        lags: days back to count; None: `usual_lags`.

    Raises:
        UndefinedMetricError: too few days, days out of order, a value that is no finite number,
            or a series that never varies: it has no error to measure a mean by.

    Source:
        Newey and West, "A simple, positive semi-definite, heteroskedasticity and autocorrelation
        consistent covariance matrix", Econometrica 55 (1987); statsmodels' HAC covariance.
    """
    values = _checked(daily)
    if lags is None:
        lags = usual_lags(len(values))
    elif not isinstance(lags, int) or not 0 <= lags < len(values):
        raise UndefinedMetricError(
            f"lags must be a whole number from 0 to {len(values) - 1}, one less than there are "
            f"days, got {lags!r}"
        )
    if np.ptp(values) == 0:
        raise UndefinedMetricError(
            f"the series is {values[0]:g} on every one of {len(values)} days, so its mean has no "
            "error to be measured by"
        )
    fit = OLS(values, np.ones(len(values))).fit(
        cov_type="HAC", cov_kwds={"maxlags": lags, "use_correction": True}
    )
    return DailyMean(float(fit.params[0]), float(fit.bse[0]), len(values), lags)


def usual_lags(days: int) -> int:
    """Days back to count where nothing else is known: floor(4 (days / 100)^(2/9)).

    Source:
        Newey and West, "Automatic lag selection in covariance matrix estimation", Review of
        Economic Studies 61 (1994): the first step of their choice for Bartlett weights, much used
        as the choice itself; statsmodels' default too.
    """
    return int(4 * (days / 100) ** (2 / 9))


def paired_difference(
    one: pd.Series[float],
    other: pd.Series[float],
    *,
    lags: int | None = None,
    level: float = 0.95,
    draws: int = 5000,
    seed: int = 0,
    least_block: int = 1,
) -> PairedDifference:
    """How much higher the mean of `one` is than `other`'s on the same days.

    What moves both alike on a day cancels, so this knows more than two errors side by side.

    Args:
        one, other: a number a day each, of the same days.
        lags: as of `daily_mean`.
        level: confidence of the intervals.
        draws: bootstrap samples.
        seed: of these samples.
        least_block: mean days of a block at least; labels of h days overlap over h - 1.

    Raises:
        UndefinedMetricError: as of `daily_mean`, or the days are not the same.

    Source:
        Politis and Romano, "The stationary bootstrap", JASA 89 (1994), percentiles; the blocks'
        length by Politis and White (2004), as corrected by Patton, Politis and White (2009). Both
        are arch's.
    """
    _check_level(level)
    for name, series in (("the first series", one), ("the second series", other)):
        _checked(series, name)
    if not one.index.equals(other.index):
        strange = one.index.symmetric_difference(other.index)
        raise UndefinedMetricError(
            f"days to pair must be the same: {len(strange)} are in one series only, the first of "
            f"them {_day(strange[0])}"
        )
    apart = one - other
    found = daily_mean(apart, lags)
    values: Floats = np.asarray(apart, dtype=np.float64)
    length = min(max(_block_days(values), least_block), len(values) // 2)
    bootstrap = StationaryBootstrap(length, values, seed=np.random.default_rng(seed))
    low, high = bootstrap.conf_int(_mean, draws, method="percentile", size=level).ravel().tolist()
    return PairedDifference(found, level, found.interval(level), (low, high), length)


def bootstrap_interval(
    daily: pd.Series[float],
    *,
    level: float = 0.95,
    draws: int = 5000,
    seed: int = 0,
    least_block: int = 1,
) -> tuple[float, float]:
    """Where the mean of a daily series lies with that confidence, whatever its distribution.

    Args:
        daily: a number a day, on the days in their order.
        level: confidence.
        draws: bootstrap samples.
        seed: of these samples.
        least_block: mean days of a block at least; labels of h days overlap over h - 1.

    Raises:
        UndefinedMetricError: as of `daily_mean`.

    Source:
        As of `paired_difference`.
    """
    return bootstrap_statistic(
        daily.to_frame(),
        lambda values: float(values.mean()),
        level=level,
        draws=draws,
        seed=seed,
        least_block=least_block,
    )


def bootstrap_statistic(
    daily: pd.DataFrame,
    statistic: Callable[[Floats], float],
    *,
    level: float = 0.95,
    draws: int = 5000,
    seed: int = 0,
    least_block: int = 1,
) -> tuple[float, float]:
    """Where a statistic of several daily series lies, their days drawn together in blocks.

    Args:
        daily: a row a day in their order, finite; at least one column that varies.
        statistic: of (days, columns).
        level, draws, seed, least_block: as of `bootstrap_interval`. Blocks are as long as the
            column that remembers longest needs them.

    Raises:
        UndefinedMetricError: as of `daily_mean`, or no column varies.
    """
    _check_level(level)
    columns = [_checked(daily[name], f"column {name!r}") for name in daily]
    varying = [values for values in columns if np.ptp(values) > 0]
    if not varying:
        raise UndefinedMetricError(
            f"the same on every one of {len(daily)} days: there is nothing to draw from"
        )
    length = max(least_block, *(_block_days(values) for values in varying))
    length = min(length, len(daily) // 2)
    bootstrap = StationaryBootstrap(
        length, np.column_stack(columns), seed=np.random.default_rng(seed)
    )
    drawn = bootstrap.apply(lambda values: np.asarray([statistic(values)]), draws)[:, 0]
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return low, high


def _mean(values: Floats) -> Floats:
    return np.asarray([values.mean()])


def _block_days(values: Floats) -> int:
    """Mean length of blocks, from 1 to a third of the days."""
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore")
        found = float(optimal_block_length(values)["stationary"].iloc[0])
    # Where a short series' autocovariances sum to nothing there is no finite length.
    most = len(values) // 3
    return int(np.clip(np.ceil(found), 1, most)) if np.isfinite(found) else most


def _checked(daily: pd.Series[float], name: str = "the series") -> Floats:
    values: Floats = np.asarray(daily, dtype=np.float64)
    if len(values) < LEAST_DAYS:
        raise UndefinedMetricError(
            f"{name} has {len(values)} days, and {LEAST_DAYS} are the fewest from which an error "
            "that minds their dependence can be told"
        )
    good = np.isfinite(values)
    if not good.all():
        first = daily.index[int(good.argmin())]
        raise UndefinedMetricError(
            f"{name} is not a finite number on {_day(first)} and {int((~good).sum())} of "
            f"{len(values)} days; leave such days out on purpose, or look into them"
        )
    if not (daily.index.is_monotonic_increasing and daily.index.is_unique):
        raise UndefinedMetricError(
            f"{name} must have each day once and in order, since neighbours are compared; sort it"
        )
    return values


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise UndefinedMetricError(f"a confidence level lies between 0 and 1, got {level}")


def _day(moment: object) -> str:
    return f"{moment:%Y-%m-%d}" if isinstance(moment, pd.Timestamp) else str(moment)
