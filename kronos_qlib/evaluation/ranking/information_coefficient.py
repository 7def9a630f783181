"""How well a score orders the returns that follow it, and the uncertainty of that.

Everything here takes tables of days by names, made by `to_wide`. For bars of minutes a row is a
bar: each time has an IC of its own. Means, errors and tests are of days all the same: several times
of one day are averaged first, since they share its news (`uncertainty.by_day`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from kronos_qlib.errors import UndefinedMetricError
from kronos_qlib.evaluation.ranking.day_tables import (
    LEAST_PAIRS,
    correlate_rows,
    paired,
    rank_rows,
    rows_vary,
)
from kronos_qlib.evaluation.ranking.uncertainty import (
    LEAST_DAYS,
    LEVEL,
    by_day,
    daily_mean,
    fewest_days,
    varies,
)

SUMMARY = (*("mean", "std", "ratio", "t", "p", "low", "high", "phi", "covers", "days", "left_out"),)
"""The keys that `summarise` returns of a daily IC."""


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
    one, other = paired(score, returns)
    pairs = np.isfinite(one).sum(axis=1)
    is_ranked = (pairs >= least_pairs) & rows_vary(one) & rows_vary(other)
    table = pd.DataFrame(
        {
            "ic": np.where(is_ranked, correlate_rows(one, other), np.nan),
            "rank_ic": np.where(
                is_ranked, correlate_rows(rank_rows(one), rank_rows(other)), np.nan
            ),
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
        rows[year] = summarise_if_enough(daily[years == year], **how)
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


def rank_correlation(one: pd.DataFrame, other: pd.DataFrame) -> pd.Series[float]:
    """Spearman of two scores over the names of each day that have both; NaN where one is flat."""
    return daily_ic(one, other)["rank_ic"]


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


def summarise_if_enough(daily: pd.Series[float], **how: Any) -> dict[str, float]:
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
