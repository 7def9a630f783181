"""What is looked at for drift: a few measures of bars that every model sees in some form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from qlib.data import D

from kronos_qlib.errors import ConfigError
from kronos_qlib.evaluation.live.drift import Reference, counts_in, reference_of

INPUTS: Mapping[str, str] = {
    "return of a bar": "$close / Ref($close, 1) - 1",
    "range of a bar": "$high / $low - 1",
    "return of 20 bars": "$close / Ref($close, 20) - 1",
    "volatility of 20 bars": "Std($close / Ref($close, 1) - 1, 20)",
    "volume beside its mean of 20 bars": "$volume / Mean($volume, 20)",
}
"""By name: expressions of Qlib that look at no later bar."""
SCORE = "score"
"""The one beside them that comes out."""
DAYS = 250
"""Last days of the reference's span that are read."""


def input_values(names: Sequence[str], first: Any, last: Any, freq: str) -> pd.DataFrame:
    """INPUTS of instruments from one time to another, on (instrument, datetime)."""
    frame = D.features(list(names), list(INPUTS.values()), first, last, freq=freq)
    return frame.set_axis(list(INPUTS), axis=1)


def references_of(
    scores: pd.Series[float], names: Sequence[str], days: pd.DatetimeIndex, freq: str
) -> dict[str, dict[str, list[float]]]:
    """Spreads to compare with later, as JSON: of scores, and of INPUTS on these days.

    Args:
        scores: of the backtest.
        days: whose last DAYS are read.
    """
    spreads = {SCORE: reference_of(scores.to_numpy())}
    if len(days):
        frame = input_values(names, days[-DAYS:][0], days[-1], freq)
        spreads |= {name: reference_of(frame[name].to_numpy()) for name in INPUTS}
    return {
        name: {"edges": list(spread.edges), "shares": list(spread.shares)}
        for name, spread in spreads.items()
        if spread is not None
    }


def counts_of(
    references: Mapping[str, Any], scores: pd.Series[float], day: pd.Timestamp, freq: str
) -> dict[str, list[int]]:
    """How a day's scores and inputs fall into the bins of references."""
    frame = input_values(list(scores.index), day, day, freq)
    values = {SCORE: scores.to_numpy(), **{name: frame[name].to_numpy() for name in frame}}
    return {
        name: counts_in(values[name], read_reference(spread).edges)
        for name, spread in references.items()
        if name in values
    }


def read_reference(found: Any) -> Reference:
    """A reference out of JSON.

    Raises:
        ConfigError: it is none.
    """
    try:
        return Reference(tuple(map(float, found["edges"])), tuple(map(float, found["shares"])))
    except (KeyError, TypeError, ValueError) as problem:
        raise ConfigError(f"{found!r:.200} is no reference of a drift: {problem}") from problem
