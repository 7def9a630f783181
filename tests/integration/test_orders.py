"""Orders of a day are those of Qlib's backtest with the same book, on days of a whole year.

Every day of it is `make nightly`'s; the default run takes one in DAYS_APART.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import settings as hypothesis_settings
from qlib.backtest import backtest
from qlib.data import D

from kronos_qlib.data.files.synthetic import MarketConfig, make_market
from kronos_qlib.errors import ConfigError
from kronos_qlib.plugin.lookahead import open_provider
from kronos_qlib.plugin.orders.book import Book, read_cash
from kronos_qlib.plugin.orders.making import OrderConfig, make_orders
from kronos_qlib.plugin.orders.target_weights import WeightConfig
from kronos_qlib.plugin.provider.writer import write_provider
from kronos_qlib.plugin.records.backtest_record import BacktestConfig, qlib_config
from kronos_qlib.plugin.runs.quiet import quiet_backtest

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


DAYS_APART = 11
"""Days of the year from one that is compared to the next."""


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
    return pd.DataFrame({"score": rng.normal(size=len(index))}, index=index)


def book_of(position, factor):
    names = sorted(position.get_stock_list())
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


def backtest_of(pred, settings):
    """The daily report and the positions of BacktestRecord's own backtest."""
    config = qlib_config(BacktestConfig(**settings), pred)
    strategy = config["strategy"]
    strategy["kwargs"]["signal"] = pred
    with quiet_backtest():
        metrics, _ = backtest(strategy=strategy, executor=config["executor"], **config["backtest"])
    (found,) = metrics.values()
    return found


@pytest.mark.hypothesis  # for `make nightly`, which takes every day
def test_the_orders_of_the_days_of_a_year_are_the_backtests(opened):
    nightly = hypothesis_settings.get_current_profile_name() == "nightly"
    days = pd.DatetimeIndex(D.calendar())[-252:]
    pred = scores_on(days)
    _, positions = backtest_of(pred, SETTINGS)
    assert list(positions) == list(days)
    settings = BacktestConfig(**SETTINGS)
    factors = D.features(D.instruments("all"), ["$factor"])["$factor"]
    on_day = factors.unstack("instrument").ffill()
    traded, asked, alike, reasons = 0, 0, 0, []
    for evening, day in itertools.islice(
        itertools.pairwise(days), 0, None, 1 if nightly else DAYS_APART
    ):
        before, after = positions[evening], positions[day]
        scores = pred["score"].xs(evening)
        book = book_of(before, on_day.loc[evening])
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
        if asked >= (40 if nightly else 8):
            continue
        asked += 1
        as_known = make_orders(scores, book, settings, evening=evening)
        alike += list(as_known.table["instrument"]) == list(orders.table["instrument"])
    assert traded > (150 if nightly else 20)
    words = " ".join(reasons)
    for reason in ("at its limit", "suspended: it has no bar", "hold_thresh is 2"):
        assert reason in words, reason
    assert 0 < alike < asked, "an evening does not know the limits to come"


@pytest.fixture
def evening(opened):
    return pd.Timestamp(D.calendar()[200])


@pytest.fixture
def ranks(opened, evening):
    names = [f"SYM000{number}" for number in range(1, 8)]
    return pd.Series(np.arange(7, 0, -1.0), index=names)


def held(**rows):
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["quantity", "days"])
    return Book(1e5, table.rename_axis("instrument"))


CALM = BacktestConfig(benchmark="BENCH", topk=2, n_drop=1, trade_unit=100, limit_threshold=0.095)


def test_an_evenings_orders_have_lots_limits_and_reasons(evening, ranks, tmp_path):
    book = held(SYM0006=(300, 5), SYM0007=(400, 5))
    orders = make_orders(ranks, book, CALM, evening=evening)
    assert orders.day == pd.Timestamp(D.calendar()[201])
    sell, buy = orders.table.itertuples(index=False)
    assert (sell.instrument, sell.side, sell.quantity) == ("SYM0007", "sell", 400)
    assert "rank 7 of 7: the lowest of what" in sell.reason and "held for 5 closes" in sell.reason
    assert buy.side == "buy" and buy.instrument == "SYM0001" and buy.quantity % 100 == 0
    close, factor = D.features(["SYM0001"], ["$close", "$factor"], evening, evening).iloc[0]
    price = close / factor
    assert price * 1.01 < buy.limit <= price * 1.02
    assert buy.limit * 100 == pytest.approx(round(buy.limit * 100), abs=1e-6)
    assert buy.quantity * price <= 0.95 * (1e5 + 400 * sell.limit * 1.1)
    assert "are not known yet" in orders.notes[0]
    orders.write(tmp_path / "orders.csv")
    found = pd.read_csv(tmp_path / "orders.csv")
    assert list(found) == ["instrument", "side", "quantity", "limit", "reason"]
    assert found["quantity"].tolist() == [400, buy.quantity]


def test_names_in_other_letters_are_the_same_shares(evening, ranks):
    """They were sold as shares without a score, and bought again under their name."""
    book = held(SYM0006=(300, 5), SYM0007=(400, 5))
    expected = make_orders(ranks, book, CALM, evening=evening)
    orders = make_orders(ranks, held(sym0006=(300, 5), Sym0007=(400, 5)), CALM, evening=evening)
    pd.testing.assert_frame_equal(orders.table, expected.table)
    pd.testing.assert_frame_equal(orders.book.holdings, book.holdings)
    # Of the market and without a score.
    few = ranks.drop("SYM0006")
    by_name = [
        make_orders(few, held(**{name: (300, 5)}), CALM, evening=evening).table
        for name in ("SYM0006", "sym0006")
    ]
    pd.testing.assert_frame_equal(*by_name)
    with pytest.raises(ConfigError, match="SYM0007 is held twice"):
        make_orders(ranks, held(sym0007=(300, 5), SYM0007=(400, 5)), CALM, evening=evening)


@pytest.mark.parametrize(
    "content", [b"", b"-5", b"nan", b"inf", b"1,000,000", b"\xff\xfe1\x00", b"1 2"]
)
def test_cash_that_cannot_be_spent_is_said_with_its_file(tmp_path, content):
    path = tmp_path / "cash.txt"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"cash\.txt"):
        read_cash(path)
    path.write_bytes(b"\xef\xbb\xbf 250000.5\r\n")
    assert read_cash(path) == 250000.5


def test_market_orders_have_no_limit(evening, ranks):
    how = OrderConfig(limit_distance=None)
    orders = make_orders(ranks, Book.of_cash(1e5), CALM, evening=evening, how=how)
    assert orders.table["limit"].isna().all() and len(orders.table) == 2


def test_what_is_held_too_short_or_costs_too_much_is_left_alone_with_a_reason(evening, ranks):
    book = Book(100.0, held(SYM0006=(300, 5), SYM0007=(400, 1)).holdings)
    strict = BacktestConfig(benchmark="BENCH", topk=3, n_drop=1, trade_unit=100, hold_thresh=3)
    orders = make_orders(ranks, book, strict, evening=evening)
    assert orders.table.empty
    why = orders.left_alone.set_index("instrument")["reason"]
    assert why["SYM0007"] == "rank 7 of 7: held for 1 close, and hold_thresh is 3"
    assert "does not buy a lot at" in why["SYM0001"]


def test_what_was_bought_on_the_day_of_the_close_is_sold_on_the_next_at_the_earliest(
    evening, ranks
):
    """T+1: what has seen no close yet is not sold, whatever hold_thresh allows."""
    orders = make_orders(ranks, held(SYM0006=(300, 0), SYM0007=(400, 0)), CALM, evening=evening)
    assert not (orders.table["side"] == "sell").any()


def test_limits_do_not_lie_beyond_the_regions(market, ranks):
    """`limit_threshold: null` is the region's, and orders lay 15 % from the close in Shanghai."""
    open_provider(market, region="cn")
    far, calm = OrderConfig(limit_distance=0.15, tick=1e-6), BacktestConfig(benchmark="BENCH")
    evening = pd.Timestamp(D.calendar()[200])
    (order, *_) = make_orders(
        ranks, Book.of_cash(1e7), calm, evening=evening, how=far
    ).table.itertuples()
    close = D.features([order.instrument], ["$close / $factor"], evening, evening).iloc[0, 0]
    assert order.limit == pytest.approx(close * 1.095, rel=1e-5)


@pytest.mark.parametrize("change", [{"tick": "x"}, {"limit_distance": "2%"}, {"tick": None}])
def test_settings_of_another_kind_are_named(change):
    with pytest.raises(ConfigError, match=f"{next(iter(change))} must be a number"):
        OrderConfig(**change)


LEVELS = np.round(np.arange(1, 20) * 0.05, 2)


def forecasts(ranks, spread=0.03):
    """Quantiles of returns whose means fall with the rank."""
    normal = np.array([-1.64, -1.28, -1.04, -0.84, -0.67, -0.52, -0.39, -0.25, -0.13, 0])
    normal = np.concatenate([normal, -normal[-2::-1]])
    means = (ranks.to_numpy() / ranks.max() - 0.4) * 0.05
    table = pd.DataFrame(means[:, None] + spread * normal, index=ranks.index)
    return table.set_axis([f"q{level:g}" for level in LEVELS], axis=1).assign(score=ranks)


def test_weights_in_the_place_of_topk(evening, ranks):
    """Cap, budget, lots, T+1 and names that are not scored, as the settings have them."""
    how = WeightConfig(most=0.3, days=60, aversion=0.1)
    given = {"evening": evening, "weights": how, "quantiles": forecasts(ranks)}
    lots = BacktestConfig(**{**SETTINGS, "volume_share": None, "account": 1e6})
    book = Book(1e6, held(SYM0008=(3000, 9), SYM0007=(300, 1)).holdings)
    orders = make_orders(ranks, book, lots, **given)
    table = orders.table.set_index("instrument")
    assert table.loc["SYM0008", ["side", "quantity"]].tolist() == ["sell", 3000]
    assert "nothing is forecast of it" in table.loc["SYM0008", "reason"]
    assert "SYM0007" not in table.index
    left = dict(orders.left_alone.to_numpy().tolist())
    assert left["SYM0007"] == "rank 7 of 7: held for 1 close, and hold_thresh is 2"
    bought = table[table["side"] == "buy"]
    assert list(bought.index) == ["SYM0001", "SYM0002"] and (bought["quantity"] % 100 == 0).all()
    assert left["SYM0003"] == f"rank 3 of 7: suspended: it has no bar of {evening:%Y-%m-%d}"
    closes = D.features([*table.index, "SYM0007"], ["$close / $factor"], evening, evening)
    closes = closes.droplevel("datetime").iloc[:, 0]
    value = 1e6 + 3000 * closes["SYM0008"] + 300 * closes["SYM0007"]
    share = bought["quantity"] * closes.reindex(bought.index) / value
    assert (share <= 0.3).all() and share.max() > 0.25 and share.sum() <= 0.95
    assert bought["reason"].str.contains(r"rank \d of \d: weight 0.0% to \d+").all()
    again = make_orders(ranks, book, lots, **given)
    pd.testing.assert_frame_equal(again.table, orders.table)
    # No share of a million earns an order of a hundred thousand; what has no forecast goes.
    dear = make_orders(ranks, book, replace(lots, min_cost=1e5), **given).table
    assert dear["instrument"].tolist() == ["SYM0008"]
    # Who fears the tail holds less, who fears nothing all that is allowed.
    bold, shy = (
        make_orders(
            ranks,
            Book.of_cash(1e6),
            lots,
            evening=evening,
            weights=WeightConfig(most=0.3, days=60, aversion=aversion),
            quantiles=forecasts(ranks),
        )
        .table["quantity"]
        .sum()
        for aversion in (0.0, 20.0)
    )
    assert shy < bold


def test_weights_need_forecasts_of_returns(evening, ranks):
    for table, word in (
        (None, "draws no paths"),
        (ranks.to_frame("score"), "draws no paths"),
        (forecasts(ranks).drop(columns="q0.5"), "equally spaced"),
        (forecasts(ranks).iloc[1:], "has a score and no quantiles"),
    ):
        with pytest.raises(ConfigError, match=word):
            make_orders(
                ranks,
                Book.of_cash(1e6),
                CALM,
                evening=evening,
                weights=WeightConfig(),
                quantiles=table,
            )


def test_a_suspended_name_is_left_alone(opened):
    frame = D.features(D.instruments("all"), ["$close"])["$close"].unstack("instrument")
    gaps = frame.iloc[60:].isna().stack()
    (evening, name) = gaps[gaps].index[0]
    names = [each for each in frame if each not in ("BENCH", name)][:5]
    ranks = pd.Series(np.arange(6, 0, -1.0), index=[name, *names])
    orders = make_orders(ranks, Book.of_cash(1e6), CALM, evening=evening)
    assert name not in set(orders.table["instrument"])
    (row,) = orders.left_alone.itertuples()
    assert row.reason == f"rank 1 of 6: suspended: it has no bar of {evening:%Y-%m-%d}"
    # Held, it is the lowest and stays: suspended for however long, its last price is known.
    ranks = pd.Series(np.arange(6, 0, -1.0), index=[*names, name])
    book = Book(1e6, pd.DataFrame({"quantity": [100.0], "days": [9]}, index=[name]))
    orders = make_orders(ranks, book, CALM, evening=evening)
    assert "sell" not in set(orders.table["side"])


def test_what_cannot_be_asked_is_said(evening, ranks):
    with pytest.raises(ConfigError, match="NOBODY is held and has no bar up to"):
        make_orders(ranks, held(NOBODY=(100, 1)), CALM, evening=evening)
    with pytest.raises(ConfigError, match="1 of 7 that are none"):
        make_orders(ranks.where(ranks > 1), Book.of_cash(1.0), CALM, evening=evening)
    with pytest.raises(ConfigError, match="is no day of this folder's calendar"):
        make_orders(ranks, Book.of_cash(1.0), CALM, evening=pd.Timestamp("1999-01-04"))
    with pytest.raises(ConfigError, match="a day after the scores"):
        make_orders(ranks, Book.of_cash(1.0), CALM, evening=evening, day=evening)
    last = pd.Timestamp(D.calendar(future=True)[-1])
    with pytest.raises(ConfigError, match=r"calendar ends on .*day_future\.txt"):
        make_orders(ranks, Book.of_cash(1.0), CALM, evening=last)
    minutes = BacktestConfig(benchmark="BENCH", freq="5min")
    with pytest.raises(ConfigError, match="daily bars"):
        make_orders(ranks, Book.of_cash(1.0), minutes, evening=evening)


def test_positions_are_read_by_days_or_by_the_day_of_purchase(evening, tmp_path):
    path = tmp_path / "positions.csv"
    day = pd.Timestamp(D.calendar()[198])
    path.write_text(f"Instrument,quantity,bought\nSYM0001,300,{day:%Y-%m-%d}\n", encoding="utf-8")
    book = Book.read(path, 1e5, evening)
    assert book.holdings.loc["SYM0001"].to_dict() == {"quantity": 300, "days": 3}
    # With the hour, in another form: the same day.
    for text in (f"{day:%Y-%m-%d} 14:55", f"{day:%Y%m%d}"):
        path.write_text(f"instrument,quantity,bought\nSYM0001,300,{text}\n", encoding="utf-8")
        assert Book.read(path, 1e5, evening).holdings.loc["SYM0001", "days"] == 3
        alone = Book.read(path, 1e5, evening, np.array(D.calendar()[197:200], "datetime64[ns]"))
        assert alone.holdings.loc["SYM0001", "days"] == 2
    book.write(tmp_path / "again.csv")
    again = Book.read(tmp_path / "again.csv", 1e5, evening)
    assert again.holdings.to_dict() == book.holdings.to_dict()
    assert (tmp_path / "again.csv").read_text(encoding="utf-8") == (
        "instrument,quantity,days\nSYM0001,300,3\n"
    )
    for text, words in (
        ("instrument,quantity,days\nA,x,1\n", "line 2: quantity is a number"),
        ("instrument,quantity,days\nA,100,1\nA,100,1\n", "A is held twice"),
        ("instrument,quantity,days\nsh1,100,1\nSH1,100,1\n", "SH1 is held twice"),
        ("instrument,quantity,days\nA,-100,1\n", "A: a quantity is a number above 0"),
        ("instrument,quantity\nA,100\n", "either days"),
        ("instrument,quantity,bought\nA,100,2999-01-01\n", "which is after"),
        ("instrument,quantity,bought\nA,100,soon\n", "bought is a date"),
        ("instrument,quantity,bought\nA,100,05/06/2020\n", "bought is a date"),
        ("instrument,quantity,bought\nA,100,5\n", "bought is a date"),
        ("instrument,quantity,bought\nA,100,\n", "bought is a date"),
        ("instrument,quantity,days\n,100,1\n", "line 2: no instrument"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=words):
            Book.read(path, 1e5, evening)
    with pytest.raises(ConfigError, match="cannot be read"):
        Book.read(tmp_path / "none.csv", 1e5, evening)
    with pytest.raises(ConfigError, match="cash is money from 0"):
        Book.of_cash(-1.0)
