"""A-shares from AKShare: `stock_zh_a_hist`, unadjusted and adjusted backward."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

import pandas as pd

from kronos_qlib.daily.bar_sources.adjusting import adjusted, joined
from kronos_qlib.extras import require

COLUMNS = {"日期": "date", "开盘": "open", "最高": "high", "最低": "low", "收盘": "close"}
COLUMNS |= {"成交量": "volume", "成交额": "amount"}
LOT = 100
"""Shares per unit of 成交量."""


class Source:
    """Names such as SH600000 and SZ000001."""

    def __init__(self) -> None:
        self.service: Any = require("akshare", for_="bars of akshare")

    def bars(self, symbols: Sequence[str], first: dt.date, last: dt.date) -> pd.DataFrame:
        """As `BarSource.bars`."""
        return joined({symbol: self._of(symbol, first, last) for symbol in symbols})

    def _of(self, symbol: str, first: dt.date, last: dt.date) -> pd.DataFrame:
        span = {"start_date": f"{first:%Y%m%d}", "end_date": f"{last:%Y%m%d}"}
        raw: pd.DataFrame
        back: pd.DataFrame
        raw, back = (
            self.service.stock_zh_a_hist(symbol=symbol[-6:], period="daily", adjust=how, **span)
            for how in ("", "hfq")
        )
        if raw.empty:
            return raw
        bars = raw.rename(columns=COLUMNS)[list(COLUMNS.values())]
        bars["volume"] *= LOT
        closes = back.rename(columns=COLUMNS).set_index("date")["close"]
        return adjusted(bars, bars["date"].map(closes) / bars["close"])
