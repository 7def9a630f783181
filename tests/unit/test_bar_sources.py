"""Adapters of services against hand-made answers of the shape that their documents give.

None was run against a live service.
"""

from __future__ import annotations

import datetime as dt
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.daily.bar_sources.choosing import SOURCES, make_source
from kronos_qlib.data.files.check import check_bars
from kronos_qlib.errors import BarDataError, ConfigError, MissingDependencyError
from kronos_qlib.schema import LONG_COLUMNS

FIRST, LAST = dt.date(2024, 3, 4), dt.date(2024, 3, 5)


def install(monkeypatch, name, **functions):
    module = ModuleType(name)
    vars(module).update(functions)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def hist(symbol, period, start_date, end_date, adjust):
    """akshare.stock_zh_a_hist: volume in lots; adjusted backward by 2."""
    assert (period, start_date, end_date) == ("daily", "20240304", "20240305")
    if symbol == "600001":
        return pd.DataFrame()
    ratio = {"": 1.0, "hfq": 2.0}[adjust]
    rows = [
        [dt.date(2024, 3, 4), symbol, 10.0, 11.0, 12.0, 9.0, 30, 31_500.0, 3.0, 1.0, 0.1, 0.2],
        [dt.date(2024, 3, 5), symbol, 11.0, 10.0, 11.5, 9.5, 40, 42_000.0, 3.0, -1.0, -0.1, 0.2],
    ]
    names = [
        *("日期", "股票代码", "开盘", "收盘", "最高", "最低", "成交量", "成交额"),
        *("振幅", "涨跌幅", "涨跌额", "换手率"),
    ]
    table = pd.DataFrame(rows, columns=names)
    table[["开盘", "收盘", "最高", "最低"]] *= ratio
    return table


class BaostockAnswer:
    """An answer of baostock: rows one by one, all as text."""

    def __init__(self, rows, code="0"):
        self.rows, self.error_code, self.error_msg = list(rows), code, "no such code"

    def next(self):
        return bool(self.rows)

    def get_row_data(self):
        return self.rows.pop(0)


def query(code, fields, start_date, end_date, frequency, adjustflag):
    assert (code, start_date, frequency) == ("sh.600000", "2024-03-04", "d")
    assert fields == "date,open,high,low,close,volume,amount,tradestatus"
    close = {"3": "11.0", "1": "22.0"}[adjustflag]
    return BaostockAnswer(
        [
            ["2024-03-04", "10.0", "12.0", "9.0", close, "3000", "31500.0", "1"],
            ["2024-03-05", "11.0", "11.0", "11.0", close, "", "", "0"],
        ]
    )


def download(tickers, start, end, auto_adjust, group_by, progress):
    """yfinance.download: a column of two levels for each ticker; the end is left out."""
    assert (start, end, auto_adjust, group_by) == ("2024-03-04", "2024-03-06", False, "ticker")
    names = ["Open", "High", "Low", "Close", "Adj Close", "Volume"]
    one = pd.DataFrame([[10, 12, 9, 11, 5.5, 300], [11, 11.5, 9.5, 10, 5.0, 400]], columns=names)
    table = pd.concat({tickers[0]: one, tickers[1]: one * np.nan}, axis=1)
    table.index = pd.DatetimeIndex(["2024-03-04", "2024-03-05"], name="Date")
    return table


class Binance:
    def fetch_ohlcv(self, symbol, timeframe, since, limit):
        assert (symbol, timeframe, limit) == ("BTC/USDT", "1d", 2)
        day = 86_400_000
        assert since % day == 0
        return [
            [since, 10.0, 12.0, 9.0, 11.0, 3.0],
            [since + day, 11.0, 11.5, 9.5, 10.0, 4.0],
            [since + 2 * day, 1.0, 1.0, 1.0, 1.0, 1.0],
        ]


@pytest.fixture
def services(monkeypatch):
    monkeypatch.delenv("KRONOS_CCXT_EXCHANGE", raising=False)
    install(monkeypatch, "akshare", stock_zh_a_hist=hist)
    install(
        monkeypatch,
        "baostock",
        login=lambda: SimpleNamespace(error_code="0"),
        logout=lambda: None,
        query_history_k_data_plus=query,
    )
    install(monkeypatch, "yfinance", download=download)
    install(monkeypatch, "ccxt", binance=Binance)


@pytest.mark.parametrize(
    ("name", "symbols", "factor", "shares", "days"),
    [
        ("akshare", ["SH600000", "SH600001"], 2.0, 3000, 2),
        ("baostock", ["SH600000"], 2.0, 3000, 1),
        ("yfinance", ["AAPL", "GONE"], 0.5, 300, 2),
        ("ccxt", ["BTC-USDT"], 1.0, 3.0, 2),
    ],
)
def test_answers_become_bars_of_the_schema(services, name, symbols, factor, shares, days):
    bars = make_source(name).bars(symbols, FIRST, LAST)
    assert list(bars.columns) == list(LONG_COLUMNS)
    assert set(bars["symbol"]) == {symbols[0]}
    assert bars["date"].tolist() == [pd.Timestamp(FIRST), pd.Timestamp(LAST)][:days]
    first = bars.iloc[0]
    raw = (10.0, 12.0, 9.0, 11.0)
    assert tuple(first[["open", "high", "low", "close"]] / factor) == pytest.approx(raw)
    assert first["factor"] == pytest.approx(factor)
    assert first["volume"] * factor == pytest.approx(shares)
    assert first["amount"] == pytest.approx(31_500.0 / 3000 * shares)
    assert check_bars(bars, find_gaps=False).empty


def test_nothing_known_is_an_empty_table(monkeypatch):
    install(monkeypatch, "akshare", stock_zh_a_hist=lambda **how: pd.DataFrame())
    bars = make_source("akshare").bars(["SH600001"], FIRST, LAST)
    assert bars.empty
    assert list(bars.columns) == list(LONG_COLUMNS)


def test_a_refusal_of_the_service_is_said(monkeypatch, services):
    install(monkeypatch, "baostock", login=lambda: BaostockAnswer([], code="10001001"))
    with pytest.raises(BarDataError, match="10001001 no such code"):
        make_source("baostock").bars(["SH600000"], FIRST, LAST)


@pytest.mark.parametrize("name", SOURCES)
def test_without_its_package_the_extra_is_named(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=rf"kronos-qlib\[{name}\]"):
        make_source(name)


def test_a_service_that_is_not_known():
    with pytest.raises(ConfigError, match="akshare, baostock, yfinance, ccxt"):
        make_source("bloomberg")
