"""How well a score orders the returns that follow it, and the uncertainty of that.

Everything here takes tables of days by names, made by `to_wide`. For bars of minutes a row is a
bar: each time has an IC of its own. Means, errors and tests are of days all the same: several times
of one day are averaged first, since they share its news (`uncertainty.by_day`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import rankdata

from kronos_qlib.errors import UndefinedMetricError
from kronos_qlib.evaluation.ranking.uncertainty import (
    LEAST_DAYS,
    LEVEL,
    by_day,
    daily_mean,
    fewest_days,
    statistic_interval,
    varies,
)

Floats = npt.NDArray[np.float64]

LEAST_PAIRS = 5
"""Names with both a score and a return that a day needs; of two names every IC is 1 or -1."""

SUMMARY = (*("mean", "std", "ratio", "t", "p", "low", "high", "phi", "covers", "days", "left_out"),)
"""The keys that `summarise` returns of a daily IC."""


def to_wide(values: pd.Series[float]) -> pd.DataFrame:
    """(datetime, instrument) to days by names, NaN where there is no row.

    Raises:
        UndefinedMetricError: other levels, or a day has a name twice.
    """
    if list(values.index.names) != ["datetime", "instrument"]:
        raise UndefinedMetricError(
            f"expected values on (datetime, instrument), got {values.index.names}"
        )
    index = values.index
    assert isinstance(index, pd.MultiIndex)
    index = index.remove_unused_levels()
    places, labels = [], []
    for codes, level in zip(index.codes, index.levels, strict=True):
        order = np.argsort(level.to_numpy(), kind="stable")
        places.append(np.argsort(order, kind="stable")[codes])
        labels.append(level[order])
    shape = len(labels[0]), len(labels[1])
    flat = places[0] * shape[1] + places[1]
    if np.bincount(flat, minlength=1).max(initial=0) > 1:
        day, name = index[index.duplicated()][0]
        raise UndefinedMetricError(f"{name} has two values on {day}")
    wide = np.full(shape, np.nan)
    wide.ravel()[flat] = values.to_numpy(dtype=np.float64)
    return pd.DataFrame(
        wide,
        index=pd.DatetimeIndex(labels[0], name="datetime"),
        columns=pd.Index(labels[1], name="instrument"),
    )


def daily_ic(
    score: pd.DataFrame, returns: pd.DataFrame, *, least_pairs: int = LEAST_PAIRS
) -> pd.DataFrame:
    """Correlation over the names of each day, of values and of ranks.

    Args:
        score, returns: days by names.
        least_pairs: names that a day needs.

    Returns:
        On the score's days on which any of its names has a return: `ic` (Pearson), `rank_ic`
        (Spearman, ties share their mean rank), `pairs`. A day with too few pairs, or on which the
        score or the return is the same for all, orders nothing: its ICs are NaN, not 0, and
        `summarise` counts it as left out.

    Source:
        Grinold, "The fundamental law of active management", Journal of Portfolio Management 15
        (1989); Qlib's `calc_ic` is the same without a least number of pairs.
    """
    one, other = _paired(score, returns)
    pairs = np.isfinite(one).sum(axis=1)
    is_ranked = (pairs >= least_pairs) & _varies(one) & _varies(other)
    table = pd.DataFrame(
        {
            "ic": np.where(is_ranked, _correlate_rows(one, other), np.nan),
            "rank_ic": np.where(is_ranked, _correlate_rows(_ranks(one), _ranks(other)), np.nan),
            "pairs": pairs,
        },
        index=score.index,
    )
    kept: pd.DataFrame = table.loc[pairs > 0]
    return kept


def summarise(
    daily: pd.Series[float], *, horizon: int = 1, level: float = LEVEL
) -> dict[str, float]:
    """The mean of a daily IC with its standard error, test and interval.

    Args:
        daily: NaN on days that have none; of several times a day the mean counts.
        horizon: bars of the returns. Those of neighbouring bars overlap over horizon - 1.
        level: confidence of the interval.

    Returns:
        SUMMARY: mean; std (ddof 1) of a day; ratio, mean / std of a day, not annualised (ICIR); t,
        p, low and high as of `uncertainty.daily_mean`, one test: p is below 0.05 where the interval
        of 95 % leaves zero out; phi, how neighbouring days correlate with the labels' overlap taken
        off; covers, how often such an interval of 95 % covers at that phi; days counted; days left
        out.

    Raises:
        UndefinedMetricError: fewer days than LEAST_DAYS or than a horizon, or no variation.

    Source:
        The standard error is `daily_mean`'s: Lazarus, Lewis, Stock and Watson (2018).
    """
    known = daily.dropna()
    if not len(known) and len(daily):
        raise UndefinedMetricError(
            f"none of {_days(daily)} days has a value: on each the score or the return is the same "
            "for all names, or too few have both"
        )
    found = daily_mean(known, label_bars=horizon)
    low, high = found.interval(level)
    std = float(by_day(known).std(ddof=1))
    return {
        "mean": found.mean,
        "std": std,
        "ratio": found.mean / std,
        "t": found.t,
        "p": found.p,
        "low": low,
        "high": high,
        "phi": found.phi,
        "covers": found.covers,
        **count_days(daily),
    }


def by_year(daily: pd.Series[float], **how: Any) -> pd.DataFrame:
    """`summarise` for each calendar year; a year of too few days has its mean alone.

    Args:
        daily: NaN on days that have none; on dates.
        how: as of `summarise`.

    Returns:
        A row a year, SUMMARY as columns; NaN where too few days say nothing of an error.
    """
    years = pd.DatetimeIndex(daily.index).year
    rows = {}
    for year in sorted(set(years)):
        rows[year] = _summarise_if_enough(daily[years == year], **how)
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("year")


def decay(score: pd.DataFrame, returns: Mapping[int, pd.DataFrame]) -> pd.DataFrame:
    """Rank IC against returns over more and more bars.

    Args:
        score: days by names.
        returns: by horizon in bars, each from the close of the bar after the score.

    Returns:
        A row per horizon, SUMMARY as columns. The later days of a long horizon have no return
        yet, so rows may count different days.

    Raises:
        UndefinedMetricError: as of `summarise` (names the horizon).
    """
    rows = {}
    for horizon in sorted(returns):
        daily = daily_ic(score, returns[horizon])["rank_ic"]
        try:
            rows[horizon] = summarise(daily, horizon=horizon)
        except UndefinedMetricError as problem:
            raise UndefinedMetricError(f"returns over {horizon} bars: {problem}") from problem
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("horizon")


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
    one, other = _paired(score, returns)
    pairs = np.isfinite(one).sum(axis=1)
    kept = (pairs >= groups) & _varies(one)
    if not kept.any():
        raise UndefinedMetricError(
            f"no day has {groups} names with a score and a return, and more than one score; the "
            f"fullest has {int(pairs.max(initial=0))}: ask for fewer groups"
        )
    one, other, pairs = one[kept], other[kept], pairs[kept]
    # The mean rank of ties, from 1/2 to n - 1/2 in the middle of their places: never on an edge.
    place = (_ranks(one) - 0.5) / pairs[:, None]
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
    rows = {group: _summarise_if_enough(daily[group], horizon=horizon) for group in daily}
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


def rank_correlation(one: pd.DataFrame, other: pd.DataFrame) -> pd.Series[float]:
    """Spearman of two scores over the names of each day that have both; NaN where one is flat."""
    return daily_ic(one, other)["rank_ic"]


def rank_autocorrelation(score: pd.DataFrame, lags: Sequence[int] = range(1, 11)) -> pd.DataFrame:
    """Rank correlation of a day's scores with those of `lag` days before.

    Args:
        score: days by names.
        lags: days between; days of the score, whatever lies between them.

    Returns:
        A row per lag: `mean` over the days of Spearman's correlation over the names that both days
        have, and `days`.

    Raises:
        UndefinedMetricError: a lag is below 1, or leaves no day.
    """
    ranks = _ranks(score.to_numpy(dtype=np.float64))
    rows = {}
    for lag in lags:
        if not 1 <= lag < len(ranks):
            raise UndefinedMetricError(
                f"a lag lies between 1 and {len(ranks) - 1}, one less than the score has days, "
                f"got {lag}"
            )
        now, before = ranks[lag:].copy(), ranks[:-lag].copy()
        both = np.isfinite(now) & np.isfinite(before)
        now[~both] = before[~both] = np.nan
        lone = np.isfinite(ranks[lag:]).sum(axis=1) + np.isfinite(ranks[:-lag]).sum(axis=1)
        gaps = lone > 2 * both.sum(axis=1)  # a name of one day only: others move up in its place
        now[gaps], before[gaps] = _ranks(now[gaps]), _ranks(before[gaps])
        is_ranked = (both.sum(axis=1) >= LEAST_PAIRS) & _varies(now) & _varies(before)
        known = _correlate_rows(now, before)[is_ranked]
        mean = float(known.mean()) if len(known) else np.nan
        rows[lag] = {"mean": mean, "days": float(len(known))}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("lag")


def top_turnover(score: pd.DataFrame, top: float = 0.1) -> pd.Series[float]:
    """Share of a day's best names that were not among the best of the day before.

    Args:
        score: days by names.
        top: names, where 1 or more; below 1 a share of the day's names, rounded, at least one.
            Among equal scores the first name by the alphabet goes before.

    Returns:
        From the second day on; 0 keeps all, 1 replaces all.

    Raises:
        UndefinedMetricError: top is not above 0, or there is one day only.
    """
    if top <= 0:
        raise UndefinedMetricError(f"top counts names, or is a share of them; got {top}")
    if len(score) < 2:
        raise UndefinedMetricError("turnover needs two days or more")
    best_first = score.rank(axis=1, ascending=False, method="first").to_numpy()
    names = np.isfinite(best_first).sum(axis=1)
    held = np.minimum(top, names) if top >= 1 else np.maximum(np.rint(top * names), 1)
    best = best_first <= held[:, None]
    new = (best[1:] & ~best[:-1]).sum(axis=1) / best[1:].sum(axis=1)
    return pd.Series(new, index=score.index[1:], name="turnover")


def coverage(score: pd.DataFrame, labels: pd.DataFrame) -> float:
    """Share of all days' names with a label that have a score too.

    Args:
        score, labels: days by names.

    Raises:
        UndefinedMetricError: no name has a label.
    """
    labelled = labels.notna()
    scored = score.reindex(index=labels.index, columns=labels.columns).notna()
    total = int(labelled.to_numpy().sum())
    if not total:
        raise UndefinedMetricError("no name has a label on any day: check the label's expression")
    return float((labelled & scored).to_numpy().sum() / total)


def paired_rank_ic(score: pd.DataFrame, other: pd.DataFrame, returns: pd.DataFrame) -> pd.DataFrame:
    """Daily Rank IC of two scores on the rows that both have, so that neither has easier names.

    Args:
        score, other, returns: days by names.

    Returns:
        As `daily_ic` on the days of `score`: `score`, `other`, and `pairs` of both with a return.
    """
    there = other.reindex(index=score.index, columns=score.columns)
    common = pd.DataFrame(
        np.isfinite(score.to_numpy()) & np.isfinite(there.to_numpy()), score.index, score.columns
    )
    ours, theirs = daily_ic(score.where(common), returns), daily_ic(there.where(common), returns)
    return pd.DataFrame(
        {"score": ours["rank_ic"], "other": theirs["rank_ic"], "pairs": ours["pairs"]}
    )


def summarise_difference(
    one: pd.Series[float], other: pd.Series[float], **how: Any
) -> dict[str, float]:
    """`summarise` of the daily differences: what moves both alike cancels.

    Args:
        one, other: of the same days, NaN on days that have none; a day counts that has both.
        how: as of `summarise`.

    Returns:
        SUMMARY, as of `uncertainty.paired_difference`. Two series that are one and the same differ
        by 0 exactly: low and high are 0, and t is NaN.

    Raises:
        UndefinedMetricError: as of `summarise`.
    """
    apart = one - other
    known = apart.dropna()
    if _days(known) < LEAST_DAYS or known.any():
        return summarise(apart, **how)
    return {**exact_zero(0, 0), **count_days(apart)}


def exact_zero(days: int, left_out: int) -> dict[str, float]:
    """SUMMARY of a series that is 0 on every day by construction."""
    zeros = dict.fromkeys(("mean", "std", "low", "high"), 0.0)
    counts = {"days": float(days), "left_out": float(left_out)}
    return {**dict.fromkeys(SUMMARY, np.nan), **zeros, **counts}


def full_days(score: pd.DataFrame, least: int = LEAST_PAIRS) -> pd.DataFrame:
    """The days on which a score has at least `least` names.

    A calendar may hold a stray day, a Saturday on which two names traded: next to it all names
    but two would seem new, and the best of the day before gone.
    """
    many = np.isfinite(score.to_numpy(dtype=np.float64)).sum(axis=1) >= least
    kept: pd.DataFrame = score.loc[many]
    return kept


def _summarise_if_enough(daily: pd.Series[float], **how: Any) -> dict[str, float]:
    """`summarise`, or the mean alone where the days are too few for an error."""
    known = daily.dropna()
    days = by_day(known)
    if len(days) >= fewest_days(how.get("horizon", 1), len(known), len(days)) and varies(
        days.to_numpy()
    ):
        return summarise(daily, **how)
    return {**dict.fromkeys(SUMMARY, np.nan), "mean": float(days.mean()), **count_days(daily)}


def count_days(daily: pd.Series[float]) -> dict[str, float]:
    """Days that have a value, and days that have none at any time."""
    days = _days(daily.dropna())
    return {"days": float(days), "left_out": float(_days(daily) - days)}


def _days(daily: pd.Series[float]) -> int:
    return len(by_day(daily))


def _paired(score: pd.DataFrame, returns: pd.DataFrame) -> tuple[Floats, Floats]:
    """Both on the score's days and names, NaN where either is not finite."""
    one = score.to_numpy(dtype=np.float64, copy=True)
    other = returns.reindex(index=score.index, columns=score.columns)
    there = other.to_numpy(dtype=np.float64, copy=True)
    lacking = ~(np.isfinite(one) & np.isfinite(there))
    one[lacking] = there[lacking] = np.nan
    return one, there


def _ranks(values: Floats) -> Floats:
    """From 1 in each row, ties at their mean, NaN where NaN."""
    return pd.DataFrame(values).rank(axis=1).to_numpy()


def _varies(values: Floats) -> npt.NDArray[np.bool_]:
    """Rows that hold two different numbers."""
    highest = np.where(np.isnan(values), -np.inf, values).max(axis=1, initial=-np.inf)
    lowest = np.where(np.isnan(values), np.inf, values).min(axis=1, initial=np.inf)
    varies: npt.NDArray[np.bool_] = highest > lowest
    return varies


def _correlate_rows(one: Floats, other: Floats) -> Floats:
    """Pearson of each row; NaN in both where in either, and for a row that does not vary."""
    count = np.maximum(np.isfinite(one).sum(axis=1, keepdims=True), 1)
    one = np.nan_to_num(one - np.nansum(one, axis=1, keepdims=True) / count)
    other = np.nan_to_num(other - np.nansum(other, axis=1, keepdims=True) / count)
    product = np.einsum("ij,ij->i", one, other)
    norm = np.sqrt(np.einsum("ij,ij->i", one, one) * np.einsum("ij,ij->i", other, other))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(product / norm)
