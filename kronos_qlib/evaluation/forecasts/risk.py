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

from kronos_qlib.errors import ConfigError, UndefinedMetricError
from kronos_qlib.evaluation.forecasts.distributions import STILL, Distribution, Floats, Outcomes
from kronos_qlib.evaluation.ranking.uncertainty import (
    LEAST_DAYS,
    daily_mean,
    joint_p,
    varies,
)

TAILS = (0.01, 0.05)
"""Levels of value at risk that are reported."""


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
    """Mean joint score of value at risk and shortfall; the lower the better."""


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
    kupiec, christoffersen = coverage_tests(daily, level, label_days)
    scores = fissler_ziegel(value, shortfall, returns, level)
    return RiskQuality(
        hits=float(daily.mean()),
        expected_hits=level * len(returns),
        kupiec=kupiec,
        christoffersen=christoffersen,
        fissler_ziegel=float(pd.Series(scores).groupby(outcomes.days).mean().mean()),
    )


def coverage_tests(
    daily: pd.Series[float], level: float, label_days: int = 1
) -> tuple[float, float]:
    """P-values of Kupiec's and of Christoffersen's question, days being what is counted.

    Kupiec: is the mean of the daily shares of failures the level? Christoffersen: is it, and does a
    day's excess of failures say nothing about that of the day whose returns no longer overlap, a
    label before? The latter asks whether (share - level), and its product with that of the day a
    label before, have mean zero at once: the first of the moments that conditional coverage makes
    zero, as his Markov chain tests it for one series. Both by `daily_mean`'s error.

    Where no day differs, as when nothing failed, there is no such error: Kupiec's likelihood ratio
    with one observation for each label of days takes its place, which windows of a day that move
    as one would give; Christoffersen's is NaN then.

    Args:
        daily: share of windows that failed, by day.
        level: that it should be.
        label_days: days that a return runs over.

    Source:
        Kupiec, "Techniques for verifying the accuracy of risk measurement models", Journal of
        Derivatives 3 (1995). Christoffersen, "Evaluating interval forecasts", International
        Economic Review 39 (1998). Moments: Engle and Manganelli, "CAViaR", Journal of Business &
        Economic Statistics 22 (2004).
    """
    excess = daily - level
    if len(daily) < LEAST_DAYS or not varies(daily.to_numpy()):
        count = max(1, len(daily) // label_days)
        return kupiec_p(float(daily.mean()) * count, count, level), np.nan
    try:
        kupiec = daily_mean(excess, label_bars=label_days, name="failures").p
    except UndefinedMetricError:
        return np.nan, np.nan
    both = pd.DataFrame({"share": excess, "memory": excess * excess.shift(label_days)}).dropna()
    try:
        return kupiec, joint_p(both, label_bars=label_days)
    except UndefinedMetricError:
        return kupiec, np.nan


def kupiec_p(hits: float, count: int, level: float) -> float:
    """P-value of Kupiec's likelihood ratio: `hits` failures of `count` independent trials.

    Source:
        Kupiec (1995), as of `coverage_tests`.
    """
    share = hits / count

    def likelihood(rate: float) -> float:
        return float(xlogy(hits, rate) + xlogy(count - hits, 1 - rate))

    return float(chi2.sf(2 * (likelihood(share) - likelihood(level)), 1))


def fissler_ziegel(value: Floats, shortfall: Floats, returns: Floats, level: float) -> Floats:
    """(...) joint score of values at risk and shortfalls (...), signed as returns; lower is better.

    The one whose differences have no unit. A shortfall that is no loss, or less than `STILL`,
    is taken for that: it has no log.

    Source:
        Fissler and Ziegel, "Higher order elicitability and Osband's principle", Annals of
        Statistics 44 (2016); this member: Patton, Ziegel and Chen, "Dynamic semiparametric models
        for expected shortfall (and value-at-risk)", Journal of Econometrics 211 (2019), FZ0.
    """
    loss = np.minimum(shortfall, -STILL)
    beyond = np.maximum(value - returns, 0)
    return np.asarray(-beyond / (level * loss) + value / loss + np.log(-loss) - 1)
