"""Qlib's exchange with price limits that hold, and no trade in a bar in which nothing traded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from qlib.backtest.exchange import Exchange
from qlib.data import D
from qlib.log import get_module_logger
from qlib.utils.time import Freq

from kronos_qlib.data.rules import FLOAT32_SLACK, Flags, is_repeated, is_untraded, starts_of
from kronos_qlib.errors import some_of
from kronos_qlib.schema import BAR_COLUMNS, PRICE_COLUMNS
from kronos_qlib.schema import VOLUME as VOLUME_PLACE

logger = get_module_logger(__name__)  # Qlib shows its own loggers only

CLOSE, CHANGE, VOLUME = "$close", "$change", "$volume"
BAR_FIELDS = tuple(f"${name}" for name in BAR_COLUMNS)
OTHER_PRICES = tuple(f"${name}" for name in PRICE_COLUMNS if f"${name}" != CLOSE)
ADDED = (*OTHER_PRICES, "$amount")
"""Fields of a bar that Qlib's exchange does not ask for by itself."""
RECENT = pd.Timedelta(days=31)
"""How far before the span the last known close is looked for first."""


class BarExchange(Exchange):
    """Refuses the orders that the bars themselves rule out. `BacktestRecord` trades here.

    **Price limits.** Qlib compares `$change` with `limit_threshold`, and without that field lets
    every order pass in silence. Here a change that the folder lacks is made from closes: since
    the last known one, however long the suspension before it. In bars of minutes the change since
    the day before's last close is what counts, as on exchanges, whatever `$change` says: from one
    bar to the next no limit would ever be reached.

    **Bars that did not trade.** A close that is missing is a suspended bar to Qlib, and here so is
    one of 0. Many folders keep such days as bars: those that `data.rules` leaves out of windows are
    not bought or sold either. Volume 0 beside prices that moved is taken for a volume that is not
    known, as the converter writes it.

    Args:
        as of Qlib's Exchange.
    """

    quote_df: pd.DataFrame

    def __init__(self, *args: Any, subscribe_fields: Sequence[str] = (), **kwargs: Any) -> None:
        self._subscribed = tuple(subscribe_fields)
        super().__init__(*args, subscribe_fields=[*subscribe_fields, *ADDED], **kwargs)

    def _update_limit(self, limit_threshold: Any) -> None:
        quotes = self.quote_df
        quotes[CLOSE] = quotes[CLOSE].where(quotes[CLOSE] > 0)
        is_limit = self._get_limit_type(limit_threshold) == self.LT_FLT
        if is_limit and math.isfinite(limit_threshold):
            quotes[CHANGE] = self._changes()
        super()._update_limit(limit_threshold)
        untraded = untraded_quotes(quotes)
        _report_untraded(quotes, untraded)
        for side in ("limit_buy", "limit_sell"):
            quotes[side] = quotes[side] | untraded
        by_volume = self._get_vol_limit(self.volume_threshold)[2]
        used = {self.buy_price, self.sell_price, *self._subscribed, *by_volume}
        self.quote_df = quotes.drop(columns=[field for field in ADDED if field not in used])

    def _changes(self) -> pd.Series:
        """Each bar's return since the close that its limit counts from; NaN where there is none."""
        quotes = self.quote_df
        is_minutes = Freq(self.freq).base == Freq.NORM_FREQ_MINUTE
        wanted = quotes[CLOSE].notna()
        if not is_minutes:
            wanted &= quotes[CHANGE].isna()
            _report_changes(quotes, self.limit_threshold)
        if not wanted.any():
            return quotes[CHANGE]

        def made_of(rows: pd.Index, first: pd.Timestamp | None) -> pd.Series:
            names = sorted(rows.get_level_values("instrument").unique())
            closes = D.features(names, [CLOSE], first, self.end_time, freq=self.freq)[CLOSE]
            return returns_since(closes[closes > 0], by_day=is_minutes).reindex(quotes.index)

        first = None if self.start_time is None else pd.Timestamp(self.start_time) - RECENT
        made = made_of(quotes.index[wanted], first)
        # Listed in the span, or suspended for months before it: only the first bar on knows.
        unknown = quotes.index[wanted & made.isna()]
        if first is not None and len(unknown):
            made = made.fillna(made_of(unknown, None))
        return made.where(wanted, quotes[CHANGE]).astype(np.float32)


def returns_since(closes: pd.Series, *, by_day: bool) -> pd.Series:
    """Each close's return since the one before, or since the last of an earlier day.

    Args:
        closes: on (instrument, datetime), in order; all of them known.
        by_day: count from the last close of the instrument's day before.

    Returns:
        float64, NaN where no close comes before.
    """
    if not by_day:
        since = closes.groupby(level="instrument").shift()
    else:
        names = closes.index.get_level_values("instrument")
        days = pd.DatetimeIndex(closes.index.get_level_values("datetime")).normalize()
        before = closes.groupby([names, days]).last().groupby(level=0).shift()
        since = pd.Series(before.reindex(pd.MultiIndex.from_arrays([names, days])).array)
        since.index = closes.index
    return closes.astype(np.float64) / since - 1.0


def untraded_quotes(quotes: pd.DataFrame) -> Flags:
    """(rows,) whether nothing traded in a bar, by the rules that bars of windows are held to.

    Args:
        quotes: the fields of `BAR_FIELDS` on (instrument, datetime), in order. A row without a
            close is no bar.
    """
    found = np.zeros(len(quotes), dtype=bool)
    there = quotes[CLOSE].notna().to_numpy()
    bars = quotes.loc[there, list(BAR_FIELDS)].to_numpy(dtype=np.float64)
    starts = starts_of(quotes.index.get_level_values("instrument").to_numpy()[there])
    trades = bool((bars[:, VOLUME_PLACE] > 0).any())
    untraded = is_untraded(bars, starts, slack=FLOAT32_SLACK, others_trade=trades)
    found[there] = untraded | is_repeated(bars, starts)
    return found


def _report_untraded(quotes: pd.DataFrame, untraded: Flags) -> None:
    if untraded.any():
        logger.warning(
            f"{_bars_of(quotes.index[untraded])} did not trade, by the rules for bars: they are "
            "neither bought nor sold then"
        )
    elif not (quotes[VOLUME].to_numpy() > 0).any():
        prices = quotes[list(OTHER_PRICES)].eq(quotes[CLOSE], axis=0).all(axis=1)
        flat = prices & quotes[CLOSE].eq(quotes.groupby(level="instrument")[CLOSE].shift())
        if flat.any():
            logger.warning(
                f"{_bars_of(quotes.index[flat.to_numpy()])} stand still at the close before. The "
                "folder has no $volume to tell whether they traded: they are bought and sold as "
                "any other"
            )


def _bars_of(index: pd.Index) -> str:
    names = index.get_level_values("instrument").unique()
    return f"{len(index)} bars of {len(names)} instruments ({some_of(names.tolist(), 5)})"


def _report_changes(quotes: pd.DataFrame, threshold: float) -> None:
    """Say whose limits are made of closes: of those with bars and no change at all."""
    known = quotes[[CLOSE, CHANGE]].notna().groupby(level="instrument").any()
    lacking = known.index[known[CLOSE] & ~known[CHANGE]]
    if len(lacking):
        whose = f" of {some_of(lacking.tolist(), 5)}" if known[CHANGE].any() else ""
        logger.info(
            f"the folder has no $change{whose}: the limit of {threshold:g} counts the return since "
            f"the last known close ({len(lacking)} instruments)"
        )
