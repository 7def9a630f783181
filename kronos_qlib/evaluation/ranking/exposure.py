"""What a score holds besides its own: exposure to styles by day, and returns attributed to them.

Tables are days by names, made by `to_wide`. Styles are known at the close of their day, by its bars
and those before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import rankdata

from kronos_qlib.evaluation.ranking.day_tables import (
    LEAST_PAIRS,
    correlate_rows,
    rank_rows,
    rows_vary,
)
from kronos_qlib.evaluation.ranking.information_coefficient import rank_correlation

Floats = npt.NDArray[np.float64]

SECTOR, TOTAL, REST = "sector", "total", "rest"
"""Columns beside those of the styles."""

NOTHING_LEFT = 1e-9
"""What styles leave of a day's ranks is rounding if its share of their spread is less."""


@dataclass(frozen=True)
class Attribution:
    """Where the return of a score's book came from, day by day.

    returns: on the days, `total`, a column a style, `sector` where there are sectors, and `rest`:
        they add up. Of the book that holds the day's ranks, the upper half long and the lower
        short by their distance from the middle, 1 of money on either side; before cost.
    rest_rank_ic: Rank IC of what the styles leave of the day's ranks of the score.
    left: mean share of the variance of the score's ranks that the styles leave.
    """

    returns: pd.DataFrame
    rest_rank_ic: pd.Series[float]
    left: float


def daily_exposures(
    score: pd.DataFrame,
    styles: Mapping[str, pd.DataFrame],
    sectors: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Rank correlation of a score with each style, day by day; with `sectors` a last column.

    Args:
        score: days by names.
        styles: by name, each days by names; NaN where not known.
        sectors: of the names; one that is not there is in a sector of its own kind, "unknown".

    Returns:
        On the score's days. `sector` is the share of the variance of the day's ranks that lies
        between sectors, less what as many sectors without meaning would hold (adjusted R²). NaN
        on a day on which fewer than LEAST_PAIRS names have both, or one of them is the same for
        all.
    """
    found = {
        name: rank_correlation(score, style).reindex(score.index) for name, style in styles.items()
    }
    if sectors is not None:
        found[SECTOR] = _between_sectors(score, sectors)
    return pd.DataFrame(found, index=score.index)


def attribution(
    score: pd.DataFrame,
    returns: pd.DataFrame,
    styles: Mapping[str, pd.DataFrame],
    sectors: Mapping[str, str] | None = None,
) -> Attribution:
    """Part the return of a score's book into what styles and sectors earned, and the rest.

    Each day's returns are regressed over the names on the styles' ranks, standardised, and on a
    dummy a sector; a style's part is the book's exposure to it times its return that day, and
    the rest is the book's return on the residuals. A style that is not known of a name counts as
    the day's middle.

    Args:
        score, returns: days by names.
        styles, sectors: as of `daily_exposures`.

    Returns:
        On the score's days on which LEAST_PAIRS names more than coefficients have a score and a
        return, and these vary. A style that is the same for all names that day has a part of 0.

    Source:
        Fama and MacBeth, "Risk, return, and equilibrium: empirical tests" (1973); Grinold and
        Kahn, "Active portfolio management" (2000), chapter 17, on attribution.
    """
    names = score.columns
    wide = score.to_numpy(dtype=np.float64)
    earned = returns.reindex(index=score.index, columns=names).to_numpy(dtype=np.float64)
    known = {
        name: style.reindex(index=score.index, columns=names).to_numpy(dtype=np.float64)
        for name, style in styles.items()
    }
    codes = None
    if sectors is not None:
        codes = pd.factorize(pd.Series([sectors.get(str(name), "unknown") for name in names]))[0]
    columns = [*known, *([SECTOR] if codes is not None else [])]
    rows, correlations, left_shares, days = [], [], [], []
    for place in range(len(wide)):
        both = np.isfinite(wide[place]) & np.isfinite(earned[place])
        count = int(both.sum())
        dummies = np.zeros((count, 0))
        if codes is not None and count:
            there = np.unique(codes[both])
            dummies = (codes[both][:, None] == there[None, 1:]).astype(np.float64)
        if count < 1 + len(known) + dummies.shape[1] + LEAST_PAIRS:
            continue
        ranks, day_returns = _standardised(wide[place][both]), earned[place][both]
        if not (ranks.any() and np.ptp(day_returns) > 0):
            continue
        design = np.column_stack(
            [np.ones(count), *(_standardised(style[place][both]) for style in known.values())]
        )
        design = np.concatenate([design, dummies], axis=1)
        both_sides = np.linalg.lstsq(design, np.column_stack([day_returns, ranks]), rcond=None)[0]
        beta, holds = both_sides.T
        weights = 2 * ranks / np.abs(ranks).sum()
        parts = (weights @ design) * beta
        rest = float(weights @ (day_returns - design @ beta))
        own = parts[1 : 1 + len(known)].tolist()
        if codes is not None:
            own.append(float(parts[1 + len(known) :].sum()))
        rows.append([float(weights @ day_returns), *own, rest])
        left = ranks - design @ holds
        share = float(left @ left / (ranks @ ranks))
        left_shares.append(share)
        is_nothing = share <= NOTHING_LEFT
        correlations.append(np.nan if is_nothing else _rank_correlation(left, day_returns))
        days.append(score.index[place])
    index = pd.DatetimeIndex(days, name="datetime")
    return Attribution(
        returns=pd.DataFrame(rows, index=index, columns=[TOTAL, *columns, REST], dtype=np.float64),
        rest_rank_ic=pd.Series(correlations, index=index, name="rank_ic", dtype=np.float64),
        left=float(np.mean(left_shares)) if left_shares else float("nan"),
    )


def _standardised(values: Floats) -> Floats:
    """(N,) ranks with mean 0 and deviation 1; what is not known, or the same for all, is 0."""
    found = np.zeros(len(values))
    known = np.isfinite(values)
    if not known.any():
        return found
    ranks = rankdata(values[known])
    ranks = ranks - ranks.mean()
    spread = ranks.std()
    if spread > 0:
        found[known] = ranks / spread
    return found


def _rank_correlation(one: Floats, other: Floats) -> float:
    return float(correlate_rows(rankdata(one)[None], rankdata(other)[None])[0])


def _between_sectors(score: pd.DataFrame, sectors: Mapping[str, str]) -> pd.Series[float]:
    ranks = rank_rows(score.to_numpy(dtype=np.float64))
    codes = pd.factorize(pd.Series([sectors.get(str(name), "unknown") for name in score]))[0]
    found = np.full(len(ranks), np.nan)
    varies = rows_vary(ranks)
    for place, row in enumerate(ranks):
        known = np.isfinite(row)
        own = codes[known]
        count, kinds = len(own), len(np.unique(own))
        if count < LEAST_PAIRS or not varies[place] or count <= kinds:
            continue
        values = row[known]
        means = np.bincount(own, weights=values) / np.maximum(np.bincount(own), 1)
        within = float(np.square(values - means[own]).sum())
        total = float(np.square(values - values.mean()).sum())
        found[place] = 1 - (within / (count - kinds)) / (total / (count - 1))
    return pd.Series(found, index=score.index)
