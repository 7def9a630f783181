"""Scores and orders as entries of the ledger: what the report reads later stands here."""

from __future__ import annotations

import datetime as dt

import pandas as pd

from kronos_qlib.ledger.entry import Entry
from kronos_qlib.ledger.ledger import Ledger
from kronos_qlib.plugin.orders.making import Orders
from kronos_qlib.plugin.registry.newest_scores import NewestScores

SCORES, ORDERS = "scores", "orders"
"""Kinds of entries."""


def opening_of(day: pd.Timestamp, exchange: str) -> dt.datetime:
    """When an exchange opens on a day, in UTC.

    Args:
        exchange: as exchange-calendars knows it: "XSHG", "XNYS", "24/7".

    Raises:
        ConfigError: no such exchange, or it does not open on that day.
    """
    raise NotImplementedError


def record_scores(ledger: Ledger, scores: NewestScores, *, opens: dt.datetime | None) -> Entry:
    """Append the scores of a day; raises as `Ledger.append`."""
    raise NotImplementedError


def record_orders(ledger: Ledger, orders: Orders, *, opens: dt.datetime | None) -> Entry:
    """Append the orders that came of a day's scores, with the book; raises as `Ledger.append`."""
    raise NotImplementedError
