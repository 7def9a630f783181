"""Coins by CCXT: `fetch_ohlcv` of one exchange, days of UTC."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Sequence
from typing import Any

import pandas as pd

from kronos_qlib.daily.bar_sources.adjusting import adjusted, joined
from kronos_qlib.extras import require

EXCHANGE = "KRONOS_CCXT_EXCHANGE"
"""The variable that names the exchange, as CCXT spells it; binance where it is not set."""
DAY = 24 * 3600 * 1000
COLUMNS = ["date", "open", "high", "low", "close", "volume"]


class Source:
    """Names such as BTC-USDT, which CCXT spells BTC/USDT."""

    def __init__(self) -> None:
        ccxt: Any = require("ccxt", for_="bars of ccxt")
        self.service = getattr(ccxt, os.environ.get(EXCHANGE, "binance"))()

    def bars(self, symbols: Sequence[str], first: dt.date, last: dt.date) -> pd.DataFrame:
        """As `BarSource.bars`."""
        return joined({symbol: self._of(symbol, first, last) for symbol in symbols})

    def _of(self, symbol: str, first: dt.date, last: dt.date) -> pd.DataFrame:
        since = int(
            dt.datetime(first.year, first.month, first.day, tzinfo=dt.timezone.utc).timestamp()
        )
        rows = self.service.fetch_ohlcv(
            symbol.replace("-", "/"), "1d", since=since * 1000, limit=(last - first).days + 1
        )
        bars = pd.DataFrame(rows, columns=COLUMNS).astype(dict.fromkeys(COLUMNS[1:], float))
        bars["date"] = pd.to_datetime(bars["date"] // DAY, unit="D")
        bars = bars[bars["date"] <= pd.Timestamp(last)]
        bars["amount"] = bars["volume"] * bars[["open", "high", "low", "close"]].mean(axis=1)
        return adjusted(bars, 1.0)
