"""Rows of a signal report's tables: of a signal, and of what baselines leave of a score."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from kronos_qlib.errors import UndefinedMetricError
from kronos_qlib.evaluation.ranking.day_tables import full_days
from kronos_qlib.evaluation.ranking.information_coefficient import (
    SUMMARY,
    count_days,
    daily_ic,
    rank_correlation,
    summarise,
)
from kronos_qlib.evaluation.ranking.stability import coverage, rank_autocorrelation, top_turnover
from kronos_qlib.evaluation.ranking.uncertainty import daily_mean
from kronos_qlib.signals.shaping import Neutralise

logger = logging.getLogger(__name__)


def neutralised(score: pd.Series[float], baselines: pd.DataFrame) -> pd.Series[float]:
    """What baselines do not explain of a score's order.

    Ranks on ranks, so that neither a heavy tail nor the score's unit matters.

    Args:
        score: on (datetime, instrument), finite, sorted.
        baselines: on the same index, NaN where not known.

    Returns:
        The day's residuals of the score's percentile ranks after least squares on those of all
        baselines that are known anywhere, over the rows on which all of these are.
    """
    known = baselines.dropna(axis=1, how="all")
    both = pd.concat([score.rename("score"), known], axis=1).dropna()
    ranks = both.groupby(level="datetime").rank(pct=True)
    step = Neutralise(tuple(map(str, known)))
    left = [
        step.of_day(day["score"].to_numpy(dtype=np.float64), day)
        for _, day in ranks.groupby(level="datetime", sort=False)
    ]
    return pd.Series(np.concatenate(left) if left else [], index=ranks.index, dtype=np.float64)


def baseline_metrics(
    beside: pd.DataFrame, differences: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    """Names and numbers as MLflow gets them; what is not known is not logged."""
    found = {
        f"baseline.{name}.{what}": float(row[what])
        for name, row in beside.iterrows()
        for what in ("rank_ic", "with_score")
    }
    for name, row in differences.items():
        found[name] = row["mean"]
        found |= {f"{name}_{end}": row[end] for end in ("low", "high", "t")}
    return {name: value for name, value in found.items() if np.isfinite(value)}


def or_unknown(
    what: str,
    measure: Callable[..., dict[str, float]],
    *series: pd.Series[float],
    how: Mapping[str, int],
) -> dict[str, float]:
    """SUMMARY, or NaN and a warning where too few days have what is compared."""
    try:
        return measure(*series, **how)
    except UndefinedMetricError as reason:
        logger.warning("%s is not known: %s", what, reason)
        has_all = pd.concat(list(series), axis=1).notna().all(axis=1).astype(float)
        return {**dict.fromkeys(SUMMARY, np.nan), **count_days(has_all.where(has_all > 0))}


def signal_row(
    signal: pd.DataFrame, score: pd.DataFrame, labels: pd.DataFrame, top: float, **how: int
) -> dict[str, float]:
    """A signal's row of signals.csv; NaN where it orders nothing or has too few days.

    Args:
        signal, score, labels: days by names.
        top: as of `evaluation.ranking.information_coefficient.top_turnover`.
        how: as of `evaluation.ranking.information_coefficient.summarise`.

    Returns:
        `ic`, `ic_t`; of the Rank IC SUMMARY, its mean as `rank_ic`; `autocorrelation` at one bar,
        `turnover` of the best, mean rank correlation `with_score`, `coverage`.
    """
    daily = daily_ic(signal, labels)
    try:
        ranked = summarise(daily["rank_ic"], **how)
        plain = daily["ic"].dropna()
        found = daily_mean(plain, label_bars=how["horizon"])
        ic, ic_t = found.mean, found.t
    except UndefinedMetricError as reason:
        logger.warning("a signal orders nothing: %s", reason)
        ranked = {
            **dict.fromkeys(SUMMARY, np.nan),
            **count_days(daily["rank_ic"]),
        }
        ic = ic_t = np.nan
    whole = full_days(signal)
    has_neighbours = len(whole) > 1
    return {
        "ic": ic,
        "ic_t": ic_t,
        "rank_ic": ranked["mean"],
        **{name: ranked[name] for name in SUMMARY if name != "mean"},
        "autocorrelation": float(rank_autocorrelation(whole, [1])["mean"].iloc[0])
        if has_neighbours
        else np.nan,
        "turnover": float(top_turnover(whole, top).mean()) if has_neighbours else np.nan,
        "with_score": float(rank_correlation(signal, score).mean()),
        "coverage": coverage(signal, labels),
    }
