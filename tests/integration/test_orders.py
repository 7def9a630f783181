"""Orders of a day are those of Qlib's backtest with the same book, on every day of a year."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from qlib.data import D

from kronos_qlib.data.files.synthetic import MarketConfig, make_market
from kronos_qlib.plugin.lookahead import open_provider
from kronos_qlib.plugin.orders.book import Book
from kronos_qlib.plugin.orders.making import make_orders
from kronos_qlib.plugin.provider.writer import write_provider
from kronos_qlib.plugin.records.backtest_record import BacktestConfig, BacktestRecord

pytestmark = pytest.mark.integration

SETTINGS = {
    "benchmark": "BENCH",
    "topk": 4,
    "n_drop": 2,
    "hold_thresh": 2,
    "account": 3e5,
    "limit_threshold": 0.035,
    "trade_unit": 100,
    "volume_share": 0.02,
}
"""A limit that is reached often, and money that volume and cash hold back."""


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    bars = make_market(
        MarketConfig(instruments=9, sectors=2, years=1.2, suspended_share=0.04, seed=5)
    ).bars
    folder = tmp_path_factory.mktemp("market") / "qlib"
    write_provider(bars, folder, benchmark="BENCH", future_bars=20)
    return folder


@pytest.fixture
def opened(market):
    open_provider(market)
    return market


def scores_on(days, seed=0):
    names = sorted(set(D.list_instruments(D.instruments("all"), as_list=True)) - {"BENCH"})
    rng = np.random.default_rng(seed)
    index = pd.MultiIndex.from_product([days, names], names=["datetime", "instrument"])
    steps = rng.normal(size=(len(days), len(names))).cumsum(axis=0)
    return pd.DataFrame({"score": steps.ravel()}, index=index)


def book_of(position, day):
    names = sorted(position.get_stock_list())
    factor = D.features(names, ["$factor"], None, day)["$factor"].groupby(level=0).last()
    holdings = pd.DataFrame(
        {
            "quantity": [position.get_stock_amount(name) * factor[name] for name in names],
            "days": [int(position.get_stock_count(name, "day")) for name in names],
        },
        index=pd.Index(names, name="instrument"),
    )
    return Book(position.get_cash(), holdings)


def signed(orders):
    sign = orders.table["side"].map({"buy": 1.0, "sell": -1.0})
    return dict(zip(orders.table["instrument"], orders.table["quantity"] * sign, strict=True))


def test_the_orders_of_every_day_of_a_year_are_the_backtests(opened, recorder):
    days = pd.DatetimeIndex(D.calendar())[-252:]
    pred = scores_on(days)
    recorder.save_objects(**{"pred.pkl": pred})
    BacktestRecord(recorder, backtest=SETTINGS).generate()
    positions = recorder.load_object("portfolio_analysis/positions_normal_1day.pkl")
    assert list(positions) == list(days)
    settings = BacktestConfig(**SETTINGS)
    factors = D.features(D.instruments("all"), ["$factor"])["$factor"]
    traded, alike, reasons = 0, 0, []
    for evening, day in itertools.pairwise(days):
        before, after = positions[evening], positions[day]
        scores = pred["score"].xs(evening)
        book = book_of(before, evening)
        orders = make_orders(scores, book, settings, evening=evening, hindsight=True)
        assert orders.day == day
        names = {*before.get_stock_list(), *after.get_stock_list()}
        moved = {
            name: (after.get_stock_amount(name) - before.get_stock_amount(name))
            * factors.get((name, day), np.nan)
            for name in names
        }
        moved = {name: shares for name, shares in moved.items() if abs(shares) > 1e-3}
        assert signed(orders) == pytest.approx(moved, abs=1e-3), day
        traded += len(moved)
        reasons += orders.left_alone["reason"].tolist()
        if len(reasons) % 5:
            continue
        as_known = make_orders(scores, book, settings, evening=evening)
        alike += set(zip(as_known.table["instrument"], as_known.table["side"], strict=True)) == set(
            zip(orders.table["instrument"], orders.table["side"], strict=True)
        )
    assert traded > 300
    words = " ".join(reasons)
    for reason in ("at its limit", "suspended: it has no bar", "are the fewest"):
        assert reason in words, reason
    assert 0.3 * len(days) < alike < len(days), "an evening does not know the limits to come"
