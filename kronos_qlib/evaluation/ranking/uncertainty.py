"""Standard errors of a daily mean, and of the difference of two, when days are not independent.

A day's Rank IC resembles the day before's: labels overlap, and what a signal is good at comes and
goes. The usual standard error assumes independent days and is too small; Newey and West's
with few lags, and a block bootstrap's percentiles, are too small too: on 120 days of an AR(1) of
.5 their intervals of 95 % cover 89 %, with labels of ten bars 80 to 84 %. This one covers 94 %.
`benchmarks/intervals.py` compares the methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.fft import dct
from scipy.integrate import quad
from scipy.linalg import matmul_toeplitz
from scipy.stats import t as student

from kronos_qlib.errors import UndefinedMetricError

Floats = npt.NDArray[np.float64]
Rows = TypeVar("Rows", "pd.Series[float]", pd.DataFrame)

LEAST_DAYS = 10
"""Days needed to measure how days depend on each other."""

LEVEL = 0.95
"""Confidence of every interval that is reported."""

PROMISED = 0.93
"""An interval of 95 % that covers less than this is reported with its coverage."""

ROUNDING = 1e-12
"""Relative size below which a difference is rounding."""

LARGEST_PHI = 0.99
"""Of what a series' own phi is taken for."""


@dataclass(frozen=True)
class DailyMean:
    """The mean of a daily series with its standard error: see `daily_mean`."""

    mean: float
    standard_error: float
    days: int
    cosines: int
    """Degrees of freedom of the standard error: cosines that it was measured on."""
    label_days: int
    """Days that a label's return runs over."""
    phi: float
    """Autocorrelation of neighbouring days as an AR(1), the overlap of labels taken off."""

    @property
    def t(self) -> float:
        """The mean in standard errors."""
        return self.mean / self.standard_error

    @property
    def p(self) -> float:
        """Two-sided, by Student's t with `cosines` degrees of freedom."""
        return float(2 * student.sf(abs(self.t), self.cosines))

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Where the mean lies with that confidence; it leaves out what the t test rejects."""
        _check_level(level)
        reach = float(student.ppf((1 + level) / 2, self.cosines)) * self.standard_error
        return self.mean - reach, self.mean + reach

    def is_significant(self, level: float = LEVEL) -> bool:
        """Whether the interval leaves zero out, which is whether p is below 1 - level."""
        low, high = self.interval(level)
        return low > 0 or high < 0

    @property
    def covers(self) -> float:
        """How often the interval of `LEVEL` covers the mean of such days: see `coverage_of`."""
        return coverage_of(self.days, self.label_days, round(self.phi, 2))


def daily_mean(
    daily: pd.Series[float], *, label_bars: int = 1, name: str = "the series"
) -> DailyMean:
    """The mean of a daily series and a standard error that counts how days depend on each other.

    The variance of a mean is the strength of the series' slow waves. It is measured as the mean
    square of the series' first B cosines (type II: B waves of 1/2, 1, 3/2, ... periods over the
    days), and mean / error then has Student's t distribution with B degrees of freedom, the more
    nearly the slower these waves are beside the dependence. B = 0.4 min(n^(2/3), n / label_days),
    rounded, at least 1: the first is the literature's rule, the second keeps every wave longer
    than five labels, since returns over h bars overlap with those of h - 1 bars before.

    Days are what is counted: of several times a day their mean is one day's evidence.

    Args:
        daily: a number a day or several, on their times in order.
        label_bars: bars, as many as there are times in the series, that a label's return runs
            over.
        name: of the series, for errors.

    Raises:
        UndefinedMetricError: too few days, days out of order, a value that is no finite number,
            or a series that never varies: it has no error to measure a mean by.

    Source:
        Lazarus, Lewis, Stock and Watson, "HAR inference: recommendations for practice", Journal
        of Business & Economic Statistics 36 (2018): the equal-weighted cosine test. The error is
        Müller's, "HAC corrections for strongly autocorrelated time series", same journal 32
        (2014).
    """
    values: Floats = np.asarray(by_day(_checked(daily, name)), dtype=np.float64)
    days = len(values)
    label_days = label_days_of(label_bars, len(daily), days)
    if days < LEAST_DAYS:
        raise UndefinedMetricError(
            f"{name} has {days} days, and {LEAST_DAYS} are the fewest for a standard error that "
            "counts their dependence"
        )
    if days <= label_days:
        raise UndefinedMetricError(
            f"returns over {label_days} days overlap, and {days} days are too few for a standard "
            "error: leave the horizon out or test longer"
        )
    if not varies(values):
        raise UndefinedMetricError(
            f"{name} is {values[0]:g} on every one of {days} days, so its mean has no standard "
            "error"
        )
    count = cosines_for(days, label_days)
    error = float(cosine_error(values, count))
    if error <= ROUNDING * float(values.std()):
        raise UndefinedMetricError(
            f"{name} is the same back and forth over its {days} days, so that its {count} slowest "
            "cosines vanish and its mean has no standard error; test longer"
        )
    return DailyMean(float(values.mean()), error, days, count, label_days, _phi(values, label_days))


def paired_difference(
    one: pd.Series[float], other: pd.Series[float], *, label_bars: int = 1
) -> DailyMean:
    """How much higher the mean of `one` is than `other`'s on the same days.

    What moves both alike on a day cancels, so this knows more than two errors side by side.

    Args:
        one, other: as of `daily_mean`, of the same times.
        label_bars: as of `daily_mean`.

    Raises:
        UndefinedMetricError: as of `daily_mean`, or the days are not the same.
    """
    _checked(one, "the first series")
    _checked(other, "the second series")
    if not one.index.equals(other.index):
        strange = one.index.symmetric_difference(other.index)
        raise UndefinedMetricError(
            f"days to pair must be the same: {len(strange)} are in one series only, the first of "
            f"them {_day(strange[0])}"
        )
    return daily_mean(one - other, label_bars=label_bars, name="the difference")


def statistic_interval(
    daily: pd.DataFrame,
    statistic: Callable[[Floats], float],
    *,
    label_bars: int = 1,
    level: float = LEVEL,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Where a statistic of several daily means lies: `daily_mean`'s interval, of several at once.

    Means are drawn from the joint t distribution that `daily_mean` gives to each of them and to
    every weighted sum. Of a weighted sum this is `DailyMean.interval`, up to the number of draws.

    Args:
        daily: a row a time, as of `daily_mean`; at least one column varies.
        statistic: of the means of the columns, (columns,).
        label_bars: as of `daily_mean`.
        level: confidence.
        draws: of the means.
        seed: of these draws.

    Raises:
        UndefinedMetricError: as of `daily_mean`, or no column varies.
    """
    _check_level(level)
    found = {}
    for column in daily:
        if varies(_checked(daily[column], f"column {column!r}").to_numpy()):
            found[column] = daily_mean(
                daily[column], label_bars=label_bars, name=f"column {column!r}"
            )
    if not found:
        raise UndefinedMetricError(
            f"every column is the same on each of {len(daily)} days: there is nothing to draw from"
        )
    count = next(iter(found.values())).cosines
    values: Floats = by_day(daily).to_numpy(dtype=np.float64)
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=(draws, count))
    scale = np.sqrt(rng.chisquare(count, size=(draws, 1)) * len(values))
    means = values.mean(axis=0) + normal @ _cosines(values, count) / scale
    drawn = np.array([statistic(each) for each in means])
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return low, high


def varies(values: npt.NDArray[Any]) -> bool:
    """Whether values, of any shape (...), differ by more than the rounding of one number."""
    return bool(np.ptp(values) > ROUNDING * np.abs(values).max())


def by_day(values: Rows) -> Rows:
    """Of several rows a day their mean, by day; rows that are days already as they are.

    Bars of one day share its news: they are one day's evidence, not several days'.
    """
    if not isinstance(values.index, pd.DatetimeIndex):
        return values
    days = values.index.normalize()
    if days.is_unique:
        return values
    found: Rows = values.groupby(days).mean()
    return found


def cosines_for(days: int, label_days: int = 1) -> int:
    """How many cosines a standard error is measured on: see `daily_mean`."""
    count = round(0.4 * min(math.pow(days, 2 / 3), days / label_days))
    return max(1, count)


def cosine_error(values: Floats, count: int) -> Floats:
    """Standard error of the mean of each series from its first cosines: (days, ...) to (...)."""
    return np.asarray(np.sqrt(np.mean(_cosines(values, count) ** 2, axis=0) / len(values)))


@lru_cache(maxsize=4096)
def coverage_of(days: int, label_days: int, phi: float) -> float:
    """How often the interval of `LEVEL` covers the mean of such a daily series.

    The series is normal: an AR(1) of coefficient phi, averaged over label_days as overlapping
    returns are. It covers where mean² <= c² (mean square of the cosines) / n: a quadratic form in
    normal numbers, whose probability is computed, not simulated.

    Source:
        Imhof, "Computing the distribution of quadratic forms in normal variables", Biometrika 48
        (1961).
    """
    count = cosines_for(days, label_days)
    reach = label_days + days
    memory = np.abs(np.arange(1 - reach, reach))
    overlap = label_days - np.abs(np.arange(1 - label_days, label_days))
    # From here on of the days 0, 1, ... apart.
    covariance = np.convolve(np.power(phi, memory), overlap, mode="same")[reach - 1 :][:days]
    waves = np.sqrt(2 / days) * np.cos(
        np.pi * np.outer(np.arange(days) + 0.5, np.arange(count + 1)) / days
    )
    waves[:, 0] = days**-0.5  # n^(1/2) mean
    joint = waves.T @ matmul_toeplitz(covariance, waves)
    critical = float(student.ppf((1 + LEVEL) / 2, count))
    weights = np.array([1.0, *[-(critical**2) / count] * count])
    root = np.linalg.cholesky(joint)
    parts = np.linalg.eigvalsh(root.T @ (weights[:, None] * root))
    parts /= np.abs(parts).max()

    def integrand(u: float) -> float:
        size = np.exp(0.25 * np.log1p((parts * u) ** 2).sum())
        return float(np.sin(0.5 * np.arctan(parts * u).sum()) / (u * size))

    beyond, _ = quad(integrand, 0, np.inf, limit=500)
    return float(0.5 - beyond / np.pi)


def _cosines(values: Floats, count: int) -> Floats:
    """(count, ...) orthonormal cosines of (days, ...), from the slowest; the mean is not among
    them."""
    found: Floats = dct(values, type=2, axis=0, norm="ortho")[1 : count + 1]
    return found


def _phi(values: Floats, label_days: int) -> float:
    """Lag-one autocorrelation, less what labels of h days share.

    If a day's number is the mean of h neighbouring ones of an AR(1) series a, as returns over h
    days are, it changes by (a[t] - a[t - h]) / h, and neighbouring changes correlate as below.
    Of one day alone, with Kendall's correction of its bias: a short series looks too free.
    """
    apart = values - values.mean()
    if label_days > 1:
        apart = np.diff(values)
    norm = float(apart @ apart)
    found = float(apart[1:] @ apart[:-1]) / norm if norm > 0 else 0.0
    if label_days == 1:
        found += (1 + 3 * found) / len(values)
        return float(np.clip(found, -LARGEST_PHI, LARGEST_PHI))
    phi = np.linspace(0, LARGEST_PHI, 100)
    changes = (2 * phi - phi ** (label_days - 1) - phi ** (label_days + 1)) / (
        2 - 2 * phi**label_days
    )
    return float(np.interp(found, changes, phi))


def fewest_days(label_bars: int, times: int, days: int) -> int:
    """Days that `daily_mean` needs for such labels, at least."""
    return max(LEAST_DAYS, label_days_of(label_bars, times, days) + 1)


def label_days_of(label_bars: int, times: int, days: int) -> int:
    """Days that labels of `label_bars` bars run over, in a series of `times` times on `days` days.

    Raises:
        UndefinedMetricError: label_bars is no whole number from 1.
    """
    if int(label_bars) != label_bars or label_bars < 1:
        raise UndefinedMetricError(f"label_bars must be a whole number from 1, got {label_bars!r}")
    return math.ceil(label_bars * days / times) if times else label_bars


def _checked(daily: pd.Series[float], name: str) -> pd.Series[float]:
    values: Floats = np.asarray(daily, dtype=np.float64)
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
    return daily


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise UndefinedMetricError(f"a confidence level lies between 0 and 1, got {level}")


def _day(moment: object) -> str:
    return f"{moment:%Y-%m-%d}" if isinstance(moment, pd.Timestamp) else str(moment)
