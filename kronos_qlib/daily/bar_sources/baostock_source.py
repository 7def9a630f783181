"""A-shares from BaoStock: `query_history_k_data_plus`, unadjusted and adjusted backward."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

import pandas as pd

from kronos_qlib.daily.bar_sources.adjusting import adjusted, joined
from kronos_qlib.errors import BarDataError
from kronos_qlib.extras import require

FIELDS = ["date", "open", "high", "low", "close", "volume", "amount", "tradestatus"]


class Source:
    """Names such as SH600000, which BaoStock spells sh.600000."""

    def __init__(self) -> None:
        self.service: Any = require("baostock", for_="bars of baostock")

    def bars(self, symbols: Sequence[str], first: dt.date, last: dt.date) -> pd.DataFrame:
        """As `BarSource.bars`."""
        self._checked(self.service.login())
        try:
            return joined({symbol: self._of(symbol, first, last) for symbol in symbols})
        finally:
            self.service.logout()

    def _of(self, symbol: str, first: dt.date, last: dt.date) -> pd.DataFrame:
        raw, back = (self._rows(symbol, first, last, flag) for flag in ("3", "1"))
        bars = raw[raw["tradestatus"] == "1"].drop(columns="tradestatus")
        numbers = bars.columns.drop("date")
        bars[numbers] = bars[numbers].astype(float)
        closes = back.set_index("date")["close"].astype(float)
        return adjusted(bars, bars["date"].map(closes) / bars["close"])

    def _rows(self, symbol: str, first: dt.date, last: dt.date, flag: str) -> pd.DataFrame:
        code, fields = f"{symbol[:2].lower()}.{symbol[2:]}", ",".join(FIELDS)
        span = {"start_date": str(first), "end_date": str(last)}
        ask = self.service.query_history_k_data_plus
        found = self._checked(ask(code, fields, frequency="d", adjustflag=flag, **span))
        rows = []
        while found.next():
            rows.append(found.get_row_data())
        return pd.DataFrame(rows, columns=FIELDS)

    def _checked(self, answer: Any) -> Any:
        if answer.error_code != "0":
            raise BarDataError(f"baostock: {answer.error_code} {answer.error_msg}")
        return answer
