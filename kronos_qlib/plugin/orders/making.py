"""Orders of the next day: Qlib's TopkDropoutStrategy on the evening's book and scores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from kronos_qlib.plugin.orders.book import Book
from kronos_qlib.plugin.records.backtest_record import BacktestConfig


@dataclass(frozen=True, kw_only=True)
class OrderConfig:
    """What orders need beside the strategy's settings (`BacktestConfig`)."""

    limit_distance: float | None = 0.02
    """How far from the evening's close an order's limit lies, as a fraction: above to buy, below
    to sell, never beyond the day's price limits. None: market orders, the column is empty."""
    tick: float = 0.01
    """Limits are whole multiples of it."""


@dataclass(frozen=True)
class Orders:
    """What to trade on a day.

    table: by side (sells first) and rank: `instrument`, `side` ("buy", "sell"), `quantity` (real
        shares), `limit` (money a real share, NaN for a market order), `reason` (a sentence).
    left_alone: `instrument`, `reason`: names that the strategy would have traded and did not.
    """

    evening: pd.Timestamp
    """The day whose close and scores they come from."""
    day: pd.Timestamp
    """The day that they are for."""
    table: pd.DataFrame
    left_alone: pd.DataFrame
    book: Book
    """What was held when they were made."""
    settings: BacktestConfig
    notes: tuple[str, ...]

    def write(self, path: Path | str) -> None:
        """`table` as CSV, atomically."""
        raise NotImplementedError


def make_orders(
    scores: pd.Series[float],
    book: Book,
    settings: BacktestConfig,
    *,
    evening: pd.Timestamp,
    day: pd.Timestamp | None = None,
    how: OrderConfig | None = None,
    hindsight: bool = False,
) -> Orders:
    """The orders that Qlib's backtest would give with this book and these scores.

    Qlib is open on the folder of bars (`qlib.init`).

    Args:
        scores: of the evening, on instrument.
        evening: the day of the scores.
        day: that the orders are for; None takes the next of Qlib's calendar and its future days.
        hindsight: take prices, limits and suspensions of `day` itself, as a backtest does: for
            replays. False takes the evening's: what is suspended then is left alone, and the
            limits of the day to come are not known.

    Raises:
        ConfigError: bars are not of days; the calendar has no day after the evening; a holding
            has no price.
    """
    raise NotImplementedError
