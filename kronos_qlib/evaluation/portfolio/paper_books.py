"""Books of the best and the worst by a score, held a bar: what they earn after cost."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.errors import UndefinedMetricError

Floats = npt.NDArray[np.float64]

BOOKS = ("long_only", "long_short")


def paper_books(
    score: pd.DataFrame, returns: pd.DataFrame, *, top: float = 0.1, cost_bp: float = 10.0
) -> pd.DataFrame:
    """Two books that hold equal parts of the names by a score and are made anew at every bar.

    `long_only` holds the best `top`, and its return is counted over the mean of all names that
    were scored; `long_short` holds the best and is short of the worst as much. No lots, no limits,
    no borrowing fee: a picture of the score, not a backtest. Among equal scores the first name by
    the alphabet goes before.

    Args:
        score: days by names.
        returns: over one bar, of the bar that a book of that day's scores is held. A name
            without one, such as a suspended name, neither gains nor loses: who will be suspended
            is not known before.
        top: share of the day's names on a side, at least one.
        cost_bp: basis points of the money traded, bought and sold alike.

    Returns:
        On the days that have a score and any return: for each of BOOKS `NAME` before cost,
        `NAME_net` after it, and `NAME_traded`, money bought and sold as a fraction of the account.
        The first day pays for buying the book.

    Raises:
        UndefinedMetricError: top is not in (0, 0.5], or the cost is negative.
    """
    if not 0 < top <= 0.5 or cost_bp < 0:
        raise UndefinedMetricError(
            f"a book holds a share in (0, 0.5] of the names at a cost from 0, got {top} and "
            f"{cost_bp}"
        )
    earned = returns.reindex(index=score.index, columns=score.columns)
    is_day = earned.notna().any(axis=1) & score.notna().any(axis=1)
    score, earned = score[is_day], earned[is_day]
    values = score.to_numpy(dtype=np.float64)
    gains = np.nan_to_num(earned.to_numpy(dtype=np.float64))
    scored = np.isfinite(values)
    count = scored.sum(axis=1, keepdims=True)
    held = np.minimum(np.maximum(np.round(top * count), 1), np.maximum(count // 2, 1))
    best = score.rank(axis=1, ascending=False, method="first").to_numpy() <= held
    worst = score.rank(axis=1, ascending=True, method="first").to_numpy() <= held
    long, short, everything = best / held, worst / held, scored / np.maximum(count, 1)
    books = {
        "long_only": (long, (long - everything) * gains),
        "long_short": (long - short, (long - short) * gains),
    }
    found = {}
    for name, (weights, parts) in books.items():
        traded = _traded(weights, gains)
        found[name] = parts.sum(axis=1)
        found[f"{name}_net"] = found[name] - traded * cost_bp / 1e4
        found[f"{name}_traded"] = traded
    return pd.DataFrame(found, index=score.index)


def _traded(weights: Floats, gains: Floats) -> Floats:
    """(days,) money bought and sold, from what the weights of the day before had become."""
    grown = weights * (1 + gains)
    before = np.zeros_like(weights)
    account = 1 + (weights * gains).sum(axis=1, keepdims=True)
    before[1:] = grown[:-1] / np.where(account[:-1] > 0, account[:-1], 1.0)
    return np.asarray(np.abs(weights - before).sum(axis=1))
