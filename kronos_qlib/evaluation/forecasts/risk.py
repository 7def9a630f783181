"""Value at risk and expected shortfall of forecasts: how often, when and how far they failed.

A value at risk of level a, here signed as a return, is the quantile that the return stays below
with probability a; the expected shortfall is the mean return where it does. Windows of one day
fail together, in the crash that they share, and returns over h bars overlap for h days: tests that
take failures for independent reject every forecast. Here a day's share of failures is one
observation, and the error of its mean counts the dependence of days (`uncertainty.daily_mean`).

Shape letters: N windows, H bars of the horizon.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import xlogy
from scipy.stats import chi2
from scipy.stats import t as student

from kronos_qlib.errors import ConfigError, UndefinedMetricError
from kronos_qlib.evaluation.forecasts.distributions import Distribution, Floats, Outcomes
from kronos_qlib.evaluation.ranking.uncertainty import (
    LEAST_DAYS,
    daily_mean,
    varies,
)

TAILS = (0.01, 0.05)
"""Levels of value at risk that are reported."""
LEAST_LOSS = 1e-4
"""Of a shortfall in the joint score: a basis point."""
LEAST_P = 1e-300
"""In place of a p-value of 0, which has no log."""


@dataclass(frozen=True)
class RiskQuality:
    """Of the values at risk of one level, to one bar of the horizon."""

    hits: float
    """Share of windows whose return fell below, a day counting once; right is the level."""
    expected_hits: float
    """Level x windows: below some five no test knows much."""
    kupiec: float
    """p-value of the right share of failures (unconditional coverage)."""
    christoffersen: float
    """p-value of that and of failures that do not follow failures (conditional coverage)."""
    fissler_ziegel: float
    """Mean joint score of value at risk and shortfall; the lower the better. NaN of a forecast that
    expects no loss in any window."""


def risk_quality(
    distribution: Distribution, outcomes: Outcomes, bar: int, level: float
) -> RiskQuality | None:
    """How good the values at risk of a level are; None where the paths are too few for it.

    Args:
        bar: of the horizon, from 1.
        level: such as 0.05.
    """
    try:
        value = distribution.quantile(level)[:, bar - 1]
        shortfall = distribution.shortfall(level)[:, bar - 1]
    except ConfigError:
        return None
    returns = outcomes.returns[:, bar - 1]
    failed = (returns < value).astype(np.float64)
    daily = pd.Series(failed).groupby(outcomes.days).mean()
    label_days = outcomes.label_days(bar)
    kupiec, christoffersen = coverage_tests(daily, level, label_days, len(returns))
    scores = fissler_ziegel(value, shortfall, returns, level)
    joint = float(pd.Series(scores).groupby(outcomes.days).mean().mean())
    return RiskQuality(
        hits=float(daily.mean()),
        expected_hits=level * len(returns),
        kupiec=kupiec,
        christoffersen=christoffersen,
        fissler_ziegel=joint if (shortfall < 0).any() else np.nan,
    )


def coverage_tests(
    daily: pd.Series[float], level: float, label_days: int = 1, windows: int | None = None
) -> tuple[float, float]:
    """P-values of Kupiec's and of Christoffersen's question, days being what is counted.

    Kupiec, is the share of failures the level: his likelihood ratio, of as many independent trials
    as would give the share the error that it has, share (1 - share) / error^2, since windows of a
    day are worth less than they are. The error, and with it Student's distribution in place of a
    normal one, is `daily_mean`'s. Where no day differs, as when nothing failed, there is no error
    and a label of days is a trial.

    Christoffersen, is it and do failures not follow failures: his sum of two likelihood ratios is
    here Fisher's sum of the logs of two p-values, Kupiec's and that of `memory_p`.

    Args:
        daily: share of windows that failed, by day.
        level: that it should be.
        label_days: days that a return runs over.
        windows: in all, which are the most trials there can be; None: as many as days.

    Returns:
        Both; the latter is NaN where no day differs.

    Source:
        Kupiec, "Techniques for verifying the accuracy of risk measurement models", Journal of
        Derivatives 3 (1995). Christoffersen, "Evaluating interval forecasts", International
        Economic Review 39 (1998). Trials of clustered windows: Kish, "Survey sampling", 1965.
    """
    share, most = float(daily.mean()), windows or len(daily)
    kupiec, memory = np.nan, memory_p(daily, label_days)
    if varies(daily.to_numpy()):
        try:
            found = daily_mean(daily, label_bars=label_days, name="failures")
        except UndefinedMetricError:
            return np.nan, np.nan
        trials = min(share * (1 - share) / found.standard_error**2, most)
        ratio = kupiec_ratio(share, trials, level)
        kupiec = float(2 * student.sf(np.sqrt(ratio), found.cosines))
    else:
        trials = max(1.0, len(daily) / label_days)
        kupiec = float(chi2.sf(kupiec_ratio(share, trials, level), 1))
    fisher = -2 * (np.log(max(kupiec, LEAST_P)) + np.log(memory))
    return kupiec, float(chi2.sf(fisher, 4))


def memory_p(daily: pd.Series[float], label_days: int = 1) -> float:
    """P-value of failures that follow failures, a label of days later.

    The covariance of the daily share with that of the day whose return no longer overlaps, among
    those at all longer distances, days taken as a circle. If failures have no memory beyond the
    overlap these are alike whatever the overlap does, and the place of the first among them is
    even. Ties count against rejecting; NaN where no day differs or the days are too few.

    Args:
        daily, label_days: as of `coverage_tests`.
    """
    apart = daily.to_numpy(dtype=np.float64) - float(daily.mean())
    farthest = len(apart) // 2
    if farthest < label_days + LEAST_DAYS or not varies(apart):
        return np.nan
    covariance = np.fft.irfft(np.abs(np.fft.rfft(apart)) ** 2, len(apart))
    here, others = covariance[label_days], covariance[label_days : farthest + 1]
    return float((others >= here - 1e-9 * covariance[0]).mean())


def kupiec_ratio(share: float, trials: float, level: float) -> float:
    """Kupiec's likelihood ratio of a share of failures in independent trials; chi-squared(1).

    Source:
        Kupiec (1995), as of `coverage_tests`.
    """

    def likelihood(rate: float) -> float:
        return float(trials * (xlogy(share, rate) + xlogy(1 - share, 1 - rate)))

    return max(0.0, 2 * (likelihood(share) - likelihood(level)))


def fissler_ziegel(value: Floats, shortfall: Floats, returns: Floats, level: float) -> Floats:
    """(...) joint score of values at risk and shortfalls (...), signed as returns; lower is better.

    The one whose differences have no unit. A shortfall that is no loss, or one below `LEAST_LOSS`,
    is taken for that: it has no log, and the score of a forecast without risk is infinite.

    Source:
        Fissler and Ziegel, "Higher order elicitability and Osband's principle", Annals of
        Statistics 44 (2016); this member: Patton, Ziegel and Chen, "Dynamic semiparametric models
        for expected shortfall (and value-at-risk)", Journal of Econometrics 211 (2019), FZ0.
    """
    loss = np.minimum(shortfall, -LEAST_LOSS)
    beyond = np.maximum(value - returns, 0)
    return np.asarray(-beyond / (level * loss) + value / loss + np.log(-loss) - 1)
