"""Returns of groups of names by score, such as tenths, and whether they rise with the score."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from kronos_qlib.errors import UndefinedMetricError
from kronos_qlib.evaluation.ranking.day_tables import (
    Floats,
    paired,
    rank_rows,
    rows_vary,
)
from kronos_qlib.evaluation.ranking.information_coefficient import summarise_if_enough
from kronos_qlib.evaluation.ranking.uncertainty import (
    LEAST_DAYS,
    LEVEL,
    by_day,
    statistic_interval,
)


def group_returns(score: pd.DataFrame, returns: pd.DataFrame, groups: int = 10) -> pd.DataFrame:
    """Mean return of each tenth (or `groups`-th) of the day's names, less the day's mean.

    Args:
        score, returns: days by names.
        groups: how many; the last holds the highest scores.

    Returns:
        Days by 1 … groups. Names of one score share one group, so that ties are not split by the
        alphabet; a group that a day leaves empty is NaN. A day with fewer names than groups, or
        one score for all, is left out.

    Raises:
        UndefinedMetricError: groups is no number from 2, or no day is left.
    """
    if groups < 2:
        raise UndefinedMetricError(f"names are parted into 2 groups or more, got {groups}")
    one, other = paired(score, returns)
    pairs = np.isfinite(one).sum(axis=1)
    kept = (pairs >= groups) & rows_vary(one)
    if not kept.any():
        raise UndefinedMetricError(
            f"no day has {groups} names with a score and a return, and more than one score; the "
            f"fullest has {int(pairs.max(initial=0))}: ask for fewer groups"
        )
    one, other, pairs = one[kept], other[kept], pairs[kept]
    # The mean rank of ties, from 1/2 to n - 1/2 in the middle of their places: never on an edge.
    place = (rank_rows(one) - 0.5) / pairs[:, None]
    excess = other - np.nanmean(other, axis=1, keepdims=True)
    rows, columns = np.nonzero(np.isfinite(one))
    group = np.minimum((place[rows, columns] * groups).astype(np.int64), groups - 1)
    cell = rows * groups + group
    size = len(one) * groups
    total = np.bincount(cell, weights=excess[rows, columns], minlength=size)
    count = np.bincount(cell, minlength=size)
    with np.errstate(invalid="ignore"):
        mean = (total / count).reshape(len(one), groups)
    return pd.DataFrame(
        mean,
        index=score.index[kept],
        columns=pd.RangeIndex(1, groups + 1, name="group"),
    )


def best_less_worst(daily: pd.DataFrame) -> pd.Series[float]:
    """Each day's return of the highest group that holds a name less that of the lowest.

    Args:
        daily: of `group_returns`. Where ties leave the outer groups empty, the next ones count; a
            score of two values still has two groups.
    """
    lowest = daily.bfill(axis=1).iloc[:, 0]
    highest = daily.ffill(axis=1).iloc[:, -1]
    return (highest - lowest).rename("spread")


def group_table(daily: pd.DataFrame, *, horizon: int = 1) -> pd.DataFrame:
    """The mean of each group over the days, with its error: rows 1 … groups, SUMMARY as columns.

    A group that ties leave empty on most days has its mean alone, if that.

    Args:
        daily: of `group_returns`.
        horizon: bars of the returns.
    """
    rows = {group: summarise_if_enough(daily[group], horizon=horizon) for group in daily}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("group")


def monotonicity(
    daily: pd.DataFrame,
    *,
    horizon: int = 1,
    level: float = LEVEL,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Whether higher groups earn more: Spearman of the group's number and its mean return.

    Args:
        daily: of `group_returns`.
        horizon: bars of the returns.
        level, draws, seed: of the interval, see `uncertainty.statistic_interval`. Noise in a
            drawn mean unsettles the order, so the interval reaches lower than the figure more
            easily than higher.

    Returns:
        The figure, from -1 to 1, over the groups that are filled on LEAST_DAYS or more, and the
        ends of its interval.

    Raises:
        UndefinedMetricError: there are not two such groups.
    """
    there = daily.notna()
    filled = daily.loc[:, by_day(there.astype(float)).gt(0).sum() >= LEAST_DAYS]
    if filled.shape[1] < 2:
        raise UndefinedMetricError(
            f"{filled.shape[1]} of {daily.shape[1]} groups hold a name on {LEAST_DAYS} days or "
            "more; ask for fewer groups, or a score with fewer ties"
        )
    # A group's mean is over the times that it is filled: total / count. To first order that is a
    # mean over all times of what each adds to it, which has no gaps.
    mean, share = filled.mean(), there[list(filled)].mean()
    adds = mean + (filled - mean).fillna(0.0) / share

    def order(values: Floats) -> float:
        ranks = rankdata(values)
        ranks -= ranks.mean()
        number = np.arange(len(values)) - (len(values) - 1) / 2
        norm = np.linalg.norm(number) * np.linalg.norm(ranks)
        return float(number @ ranks / norm) if norm else 0.0

    low, high = statistic_interval(
        adds, order, label_bars=horizon, level=level, draws=draws, seed=seed
    )
    return order(mean.to_numpy()), low, high
