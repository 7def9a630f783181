"""Scores and orders as entries of the ledger: what the report reads later stands here."""

from __future__ import annotations

import datetime as dt
from dataclasses import asdict
from typing import Any

import pandas as pd
from qlib.config import C

from kronos_qlib.data.calendar.exchanges import session_open
from kronos_qlib.errors import ConfigError
from kronos_qlib.ledger.entry import Entry
from kronos_qlib.ledger.ledger import Ledger
from kronos_qlib.plugin.orders.book import Book
from kronos_qlib.plugin.orders.making import Orders
from kronos_qlib.plugin.records.backtest_record import BacktestConfig
from kronos_qlib.plugin.registry.newest_scores import NewestScores
from kronos_qlib.settings import from_mapping

SCORES, ORDERS = "scores", "orders"
"""Kinds of entries."""


def opening_of(day: pd.Timestamp, exchange: str) -> dt.datetime:
    """When an exchange opens on a day, in UTC.

    Args:
        exchange: as exchange-calendars knows it: "XSHG", "XNYS", "24/7".

    Raises:
        ConfigError: no such exchange, or it does not open on that day.
    """
    return session_open(day.date(), exchange)


def record_scores(ledger: Ledger, scores: NewestScores, *, opens: dt.datetime | None) -> Entry:
    """Append the scores of a day; raises as `Ledger.append`.

    Args:
        opens: when the market opens next: `opening_of` the day that orders are for.
    """
    table = scores.table.rename_axis("instrument").reset_index()
    return ledger.append(SCORES, scores.day.date(), table, scores.facts, opens=opens)


def record_orders(ledger: Ledger, orders: Orders, *, opens: dt.datetime | None) -> Entry:
    """Append the orders that came of a day's scores, with the book; raises as `Ledger.append`."""
    settings: dict[str, Any] = asdict(orders.settings)
    benchmark = settings["benchmark"]
    settings["benchmark"] = benchmark if isinstance(benchmark, str) else list(benchmark)
    if settings["limit_threshold"] == float("inf"):  # which JSON does not know
        settings["limit_threshold"] = "inf"
    book = {
        "cash": float(orders.book.cash),
        "holdings": {
            str(name): [float(row["quantity"]), int(row["days"])]
            for name, row in orders.book.holdings.iterrows()
        },
    }
    facts = {
        "for": f"{orders.day:%Y-%m-%d}",
        "region": str(C.region),
        "settings": settings,
        "book": book,
        "left_alone": orders.left_alone.to_dict("records"),
        "notes": list(orders.notes),
        **({} if orders.weights is None else {"weights": asdict(orders.weights)}),
    }
    return ledger.append(ORDERS, orders.evening.date(), orders.table, facts, opens=opens)


def read_settings(entry: Entry) -> BacktestConfig:
    """The strategy's settings of an entry of orders.

    Raises:
        ConfigError: they cannot be read.
    """
    settings = dict(entry.facts.get("settings", {}))
    if settings.get("limit_threshold") == "inf":
        settings["limit_threshold"] = float("inf")
    return from_mapping(BacktestConfig, settings, where=f"entry {entry.number} of the ledger")


def read_book(entry: Entry) -> Book:
    """What was held when an entry's orders were made.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        book = entry.facts["book"]
        holdings = pd.DataFrame.from_dict(
            book["holdings"], orient="index", columns=["quantity", "days"]
        )
        return Book(float(book["cash"]), holdings.rename_axis("instrument"))
    except (KeyError, TypeError, ValueError) as problem:
        raise ConfigError(f"entry {entry.number} of the ledger has no book: {problem}") from problem
