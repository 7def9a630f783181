"""How much of a score changes from day to day, and how many names have one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from kronos_qlib.errors import UndefinedMetricError
from kronos_qlib.evaluation.ranking.day_tables import (
    LEAST_PAIRS,
    correlate_rows,
    rank_rows,
    rows_vary,
)


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
    ranks = rank_rows(score.to_numpy(dtype=np.float64))
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
        now[gaps], before[gaps] = rank_rows(now[gaps]), rank_rows(before[gaps])
        is_ranked = (both.sum(axis=1) >= LEAST_PAIRS) & rows_vary(now) & rows_vary(before)
        known = correlate_rows(now, before)[is_ranked]
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
