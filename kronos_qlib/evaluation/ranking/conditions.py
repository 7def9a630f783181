"""When a score works: by the market's state as it was known, and if one trades a bar late."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from kronos_qlib.errors import UndefinedMetricError
from kronos_qlib.evaluation.ranking.information_coefficient import (
    SUMMARY,
    count_days,
    summarise,
    summarise_if_enough,
)

STATES = ("low", "middle", "high")
"""Terciles of a measure of the market, among its own past."""
LEAST_PAST = 20
"""Earlier times that a tercile is taken among, at least."""


def known_terciles(market: pd.Series[float]) -> pd.Series[Any]:
    """In which third of its own past, today included, a measure of the market stands.

    Nothing later is read: the bounds of a time are quantiles of the times up to it, so that a
    trader could have said it at that close.

    Args:
        market: a number a time, in order; NaN where not known.

    Returns:
        Of STATES on the same index; NaN where not known, or while there are fewer than LEAST_PAST
        times before; "middle" for a measure that never varied.
    """
    past = market.expanding(min_periods=LEAST_PAST + 1)
    lower, upper = past.quantile(1 / 3), past.quantile(2 / 3)
    known = market.notna() & lower.notna()
    thirds = np.where(market < lower, "low", np.where(market > upper, "high", "middle"))
    found: pd.Series[Any] = pd.Series(thirds, index=market.index, dtype=object).where(known)
    return found


def by_state(
    daily: pd.Series[float], states: pd.Series[Any], **how: int
) -> dict[str, dict[str, float]]:
    """The mean of a daily series in each state of the market, and how much the outer two differ.

    Args:
        daily: NaN on days that have none.
        states: of `known_terciles`, on times that cover the days.
        how: as of `information_coefficient.summarise`.

    Returns:
        SUMMARY of each of STATES and of "high less low"; the mean alone, if that, where too few
        days are in a state.
    """
    own = states.reindex(daily.index)
    rows = {}
    for state in STATES:
        inside = daily[own == state]
        rows[state] = summarise_if_enough(inside, **how) if len(inside) else _unknown(inside)
    rows["high less low"] = _difference(daily, own, **how)
    return rows


def _difference(daily: pd.Series[float], states: pd.Series[Any], **how: int) -> dict[str, float]:
    """The mean in "high" less that in "low", with an error that counts how days depend.

    To first order a difference of means over parts of the days is the mean over all days of what
    each adds to it, and of a mean over all days the error is known.
    """
    known = daily[states.notna()].dropna()
    own = states.reindex(known.index)
    high, low = own == "high", own == "low"
    if not (high.any() and low.any()):
        return _unknown(known)
    means = known[high].mean(), known[low].mean()
    adds = (known - means[0]).where(high, 0.0) / high.mean()
    adds -= (known - means[1]).where(low, 0.0) / low.mean()
    try:
        return summarise(adds + (means[0] - means[1]), **how)
    except UndefinedMetricError:  # too few days
        return {**_unknown(known), "mean": float(means[0] - means[1])}


def _unknown(daily: pd.Series[float]) -> dict[str, float]:
    return {**dict.fromkeys(SUMMARY, np.nan), **count_days(daily)}
