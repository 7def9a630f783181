"""Raw bars and their factors as the schema has them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.schema import BAR_COLUMNS, LONG_COLUMNS, PRICE_COLUMNS


def adjusted(
    bars: pd.DataFrame, factor: pd.Series[float] | npt.NDArray[np.float64] | float
) -> pd.DataFrame:
    """Prices times the factor, shares divided by it.

    Args:
        bars: date and `schema.BAR_COLUMNS`: (n) rows of raw prices, shares and money.
        factor: (n,), or one for all.
    """
    bars = bars.assign(factor=factor, date=pd.to_datetime(bars["date"]))
    for name in PRICE_COLUMNS:
        bars[name] = bars[name] * bars["factor"]
    bars["volume"] = bars["volume"] / bars["factor"]
    return bars[["date", *BAR_COLUMNS, "factor"]]


def joined(parts: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One long table of each symbol's bars; those without any are left out."""
    own = [part.assign(symbol=symbol) for symbol, part in parts.items() if len(part)]
    if not own:
        return pd.DataFrame(columns=list(LONG_COLUMNS))
    return pd.concat(own, ignore_index=True)[list(LONG_COLUMNS)]
