"""Shares from Yahoo by yfinance: `download`, whose adjusted close is on the newest base."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

import pandas as pd

from kronos_qlib.daily.bar_sources.adjusting import adjusted, joined
from kronos_qlib.extras import require

PRICES = ["Open", "High", "Low", "Close"]


class Source:
    """Names as Yahoo spells them, such as AAPL and BRK-B."""

    def __init__(self) -> None:
        self.service: Any = require("yfinance", for_="bars of yfinance")

    def bars(self, symbols: Sequence[str], first: dt.date, last: dt.date) -> pd.DataFrame:
        """As `BarSource.bars`."""
        table = self.service.download(
            list(symbols),
            start=str(first),
            end=str(last + dt.timedelta(days=1)),  # the end is left out
            auto_adjust=False,
            group_by="ticker",
            progress=False,
        )
        if table.empty:
            return joined({})
        return joined({symbol: self._of(table, symbol) for symbol in symbols})

    def _of(self, table: pd.DataFrame, symbol: str) -> pd.DataFrame:
        if symbol not in table.columns.get_level_values(0):
            return table.iloc[:0]
        own = table[[symbol]].droplevel(0, axis=1)
        own = own.dropna(subset=PRICES)
        bars = own[[*PRICES, "Volume"]].rename(columns=str.lower).astype(float)
        bars["amount"] = bars["volume"] * bars[["open", "high", "low", "close"]].mean(axis=1)
        bars = bars.rename_axis("date").reset_index()
        return adjusted(bars, (own["Adj Close"] / own["Close"]).to_numpy())
