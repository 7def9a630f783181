"""What orders of the ledger would have earned: each day's book, its orders, and the next close."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from qlib.backtest.decision import Order
from qlib.backtest.position import Position

from kronos_qlib.errors import ConfigError
from kronos_qlib.ledger.entry import Entry
from kronos_qlib.plugin.exchange import BarExchange
from kronos_qlib.plugin.live.recording import read_book, read_settings
from kronos_qlib.plugin.orders.coming_day import BEFORE
from kronos_qlib.plugin.orders.making import BUY, last_quotes, rows_of
from kronos_qlib.plugin.records.backtest_record import benchmark_returns, exchange_settings
from kronos_qlib.plugin.runs.quiet import quiet_backtest

COLUMNS = ("net_return", "bench", "excess_return", "cost", "turnover", "orders", "filled")


def earned_on(entry: Entry, table: pd.DataFrame, calendar: pd.DatetimeIndex) -> pd.Series | None:
    """What came of an entry of orders, on the day that they were for or, if that had no trade, on
    the next one.

    Args:
        table: of the entry.
        calendar: of the bars that are there.

    Returns:
        COLUMNS: fractions of the book's value at the close before; `orders` and `filled` are
        counts. None where the day's bars are not there yet, or the book was empty of value.

    Raises:
        ConfigError: settings or book cannot be read, or a name has no bars.
    """
    day, evening = pd.Timestamp(str(entry.facts.get("for"))), pd.Timestamp(entry.day)
    # Where nobody named the exchange, the day that they were for may have been a holiday.
    coming = calendar[calendar >= day]
    if not len(coming):
        return None
    day = coming[0]
    settings, book = read_settings(entry), read_book(entry)
    names = sorted({*map(str, book.holdings.index), *map(str, table["instrument"])})
    before, after = last_quotes(names, evening), last_quotes(names, day)
    held = {
        str(name): {
            "amount": float(row["quantity"]) / float(before["factor"][name]),
            "price": float(before["close"][name]),
        }
        for name, row in rows_of(book.holdings)
    }
    lost = [name for name in held if not np.isfinite(before["close"][name])]
    if lost:
        raise ConfigError(f"entry {entry.number}: {lost[0]} is held and has no bar up to {evening}")
    position = Position(book.cash, held)
    start = _value(position, before)
    if start <= 0:
        return None
    cost, traded, filled = 0.0, 0.0, 0
    if names:
        with quiet_backtest():
            exchange = BarExchange(
                freq="day",
                start_time=evening - BEFORE,
                end_time=day,
                codes=names,
                **exchange_settings(settings),
            )
        dealt: dict[str, float] = defaultdict(float)
        row: Any
        for row in table.itertuples():
            factor = float(after["factor"][row.instrument])
            if exchange.trade_w_adj_price:
                factor = 1.0
            is_buy = row.side == BUY
            order = Order(
                stock_id=row.instrument,
                amount=float(row.quantity) / factor,
                start_time=day,
                end_time=day + pd.Timedelta(days=1) - pd.Timedelta(seconds=1),
                direction=Order.BUY if is_buy else Order.SELL,
            )
            price = exchange.get_deal_price(row.instrument, day, day, order.direction)
            if not _fills(price, factor, float(row.limit), is_buy):
                continue
            value, fee, _ = exchange.deal_order(order, position=position, dealt_order_amount=dealt)
            dealt[row.instrument] += order.deal_amount
            cost, traded, filled = cost + fee, traded + value, filled + (value > 0)
    net = _value(position, after) / start - 1
    bench = float(benchmark_returns(settings.benchmark or (), day, day, "day").iloc[-1])
    return pd.Series(
        [net, bench, net - bench, cost / start, traded / start, len(table), filled],
        index=list(COLUMNS),
        name=day,
    )


def earned_table(
    entries: Sequence[tuple[Entry, pd.DataFrame]], calendar: pd.DatetimeIndex
) -> pd.DataFrame:
    """`earned_on` of several entries, a row a day, COLUMNS; empty where none has its day yet."""
    rows = [found for each in entries if (found := earned_on(*each, calendar)) is not None]
    if not rows:
        return pd.DataFrame(columns=list(COLUMNS), dtype=float)
    return pd.DataFrame(rows).sort_index()


def _fills(price: float | None, factor: float, limit: float, is_buy: bool) -> bool:
    """Whether a real share's price is within an order's limit; a market order has none."""
    if price is None or not np.isfinite(price):
        return True  # no bar: the exchange refuses it
    if not np.isfinite(limit):
        return True
    real = price / factor
    slack = 1e-6 * limit  # prices are float32
    return real <= limit + slack if is_buy else real >= limit - slack


def _value(position: Position, quotes: pd.DataFrame) -> float:
    """Cash and what is held, at the last known closes."""
    held = sum(
        position.get_stock_amount(name) * float(quotes["close"][name])
        for name in position.get_stock_list()
    )
    return float(position.get_cash() + held)
