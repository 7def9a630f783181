"""Tables of days by names, and the row by row operations on them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.errors import UndefinedMetricError

Floats = npt.NDArray[np.float64]


LEAST_PAIRS = 5
"""Names with both a score and a return that a day needs; of two names every IC is 1 or -1."""


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


def full_days(score: pd.DataFrame, least: int = LEAST_PAIRS) -> pd.DataFrame:
    """The days on which a score has at least `least` names.

    A calendar may hold a stray day, a Saturday on which two names traded: next to it all names
    but two would seem new, and the best of the day before gone.
    """
    many = np.isfinite(score.to_numpy(dtype=np.float64)).sum(axis=1) >= least
    kept: pd.DataFrame = score.loc[many]
    return kept


def paired(score: pd.DataFrame, returns: pd.DataFrame) -> tuple[Floats, Floats]:
    """Both as (days, names) on the score's days and names, NaN where either is not finite."""
    one = score.to_numpy(dtype=np.float64, copy=True)
    other = returns.reindex(index=score.index, columns=score.columns)
    there = other.to_numpy(dtype=np.float64, copy=True)
    lacking = ~(np.isfinite(one) & np.isfinite(there))
    one[lacking] = there[lacking] = np.nan
    return one, there


def rank_rows(values: Floats) -> Floats:
    """Ranks (days, names) from 1 in each row, ties at their mean, NaN where NaN."""
    return pd.DataFrame(values).rank(axis=1).to_numpy()


def rows_vary(values: Floats) -> npt.NDArray[np.bool_]:
    """(days,) whether a row of (days, names) holds two different numbers."""
    highest = np.where(np.isnan(values), -np.inf, values).max(axis=1, initial=-np.inf)
    lowest = np.where(np.isnan(values), np.inf, values).min(axis=1, initial=np.inf)
    varies: npt.NDArray[np.bool_] = highest > lowest
    return varies


def correlate_rows(one: Floats, other: Floats) -> Floats:
    """(days,) Pearson correlation of each row of (days, names), NaN for one that does not vary."""
    count = np.maximum(np.isfinite(one).sum(axis=1, keepdims=True), 1)
    one = np.nan_to_num(one - np.nansum(one, axis=1, keepdims=True) / count)
    other = np.nan_to_num(other - np.nansum(other, axis=1, keepdims=True) / count)
    product = np.einsum("ij,ij->i", one, other)
    norm = np.sqrt(np.einsum("ij,ij->i", one, one) * np.einsum("ij,ij->i", other, other))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(product / norm)
