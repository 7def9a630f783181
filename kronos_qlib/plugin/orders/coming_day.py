"""The market of the day that orders are for: its exchange, as an evening knows it or as it came."""

from __future__ import annotations

from typing import Any

import pandas as pd

from kronos_qlib.plugin.exchange import BarExchange

BEFORE = pd.Timedelta(days=92)
"""Bars read before the evening: whether one repeats another is seen beside the one before it."""


class EveningExchange(BarExchange):
    """The evening's quotes as those of the day to come.

    Prices are the evening's closes. What did not trade in the evening's bar is not traded; limits
    of the day to come are not known, and none is assumed.

    Args:
        evening, day: whose quotes stand for which day's.
    """

    def __init__(self, *args: Any, evening: pd.Timestamp, day: pd.Timestamp, **kwargs: Any) -> None:
        self._evening = evening
        self._day = day
        kwargs |= {"start_time": evening - BEFORE, "end_time": evening}
        # No limits: they are the coming day's, and its prices are not known.
        super().__init__(*args, limit_threshold=float("inf"), **kwargs)

    def get_quote_from_qlib(self) -> None:
        """Qlib's, and then the last bar of each name under the other day."""
        super().get_quote_from_qlib()
        times = self.quote_df.index.get_level_values("datetime")
        quotes = self.quote_df[times == self._evening].copy()
        for price in {self.buy_price, self.sell_price}:
            quotes[price] = quotes["$close"]
        names = quotes.index.get_level_values("instrument")
        quotes.index = pd.MultiIndex.from_arrays(
            [names, pd.DatetimeIndex([self._day] * len(quotes))], names=["instrument", "datetime"]
        )
        self.quote_df = quotes


class OneStep:
    """A trading calendar of one day, in the words that Qlib's strategies ask."""

    def __init__(self, evening: pd.Timestamp, day: pd.Timestamp) -> None:
        self._days = {0: day, 1: evening}

    def get_freq(self) -> str:
        """Of the steps."""
        return "day"

    def get_trade_step(self) -> int:
        """Steps that are over."""
        return 0

    def get_step_time(
        self, trade_step: int | None = None, shift: int = 0
    ) -> tuple[pd.Timestamp, pd.Timestamp]:
        """First and last moment of the step, or of that `shift` steps before."""
        day = self._days[shift]
        return day, day + pd.Timedelta(days=1) - pd.Timedelta(seconds=1)
