"""BarExchange: limits hold without $change, and nothing trades in a bar that did not."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import pytest
from qlib.backtest.decision import Order
from qlib.backtest.exchange import Exchange
from qlib.backtest.position import Position
from qlib.data import D

from kronos_qlib.errors import ConfigError
from kronos_qlib.plugin import exchange as exchange_module
from kronos_qlib.plugin.exchange import BAR_FIELDS, BarExchange, untraded_quotes
from kronos_qlib.plugin.lookahead import open_provider
from kronos_qlib.plugin.records.backtest_record import BacktestConfig, BacktestRecord

pytestmark = pytest.mark.integration

FIELDS = ("open", "high", "low", "close", "volume", "factor")
NAMES = [f"SH6000{number:02d}" for number in range(8)]
DAYS = 90
HALT = slice(50, 62)
"""Days on which the first two shares are halted."""


open_folder = partial(open_provider, region="cn")


def make_bars(seed=0):
    """Shares that reach +-10 % on some days; the last is listed on day 30."""
    rng = np.random.default_rng(seed)
    dates = pd.bdate_range("2020-01-02", periods=DAYS)
    tables = []
    for place, name in enumerate(NAMES):
        moves = rng.normal(0, 0.015, DAYS)
        moves[rng.choice(DAYS, 8, replace=False)] = rng.choice([-0.1, 0.1], 8)
        close = 20.0 * np.cumprod(1 + moves)
        opened = close / (1 + moves)
        bars = pd.DataFrame(
            {
                "symbol": name,
                "date": dates,
                "open": opened,
                "high": np.maximum(opened, close) * 1.001,
                "low": np.minimum(opened, close) * 0.999,
                "close": close,
                "volume": rng.uniform(1e6, 2e6, DAYS).round(),
                "factor": 1.0,
            }
        )
        tables.append(bars.iloc[30:] if place == len(NAMES) - 1 else bars)
    return pd.concat(tables, ignore_index=True)


def with_change(bars):
    closes = bars["close"].where(bars["close"] > 0)
    before = closes.groupby(bars["symbol"]).ffill().groupby(bars["symbol"]).shift()
    return bars.assign(change=closes / before - 1)


def halt(bars, how):
    """The first two shares halted: their bars left out, or written as vendors write them.

    When they trade again the one has risen by 10 % since its last close, the other fallen.
    """
    bars = bars.copy()
    every = bars["date"].drop_duplicates().sort_values()
    days, before, after = every.iloc[HALT], every.iloc[HALT.start - 1], every.iloc[HALT.stop]
    last = bars[bars["date"] == before].set_index("symbol")["close"]
    for name, move in zip(NAMES, (1.1, 0.9), strict=False):
        own = (bars["symbol"] == name) & (bars["date"] >= after)
        opened = bars.loc[own, "close"].iloc[0]
        bars.loc[own, ["open", "high", "low", "close"]] *= move * last[name] / opened
    is_halt = bars["symbol"].isin(NAMES[:2]) & bars["date"].isin(days)
    if how == "left out":
        return bars[~is_halt]
    flat = bars.loc[is_halt, "symbol"].map(last)
    for field in ("open", "high", "low", "close"):
        bars.loc[is_halt, field] = flat
    bars.loc[is_halt, "volume"] = np.nan if how == "no volume" else 0.0
    if how == "repeated":
        whole = bars[bars["date"] == before].set_index("symbol")
        for field in ("open", "high", "low", "close"):
            bars.loc[is_halt, field] = bars.loc[is_halt, "symbol"].map(whole[field])
    if how == "zeros":
        bars.loc[is_halt, ["open", "high", "low", "close"]] = 0.0
    if how == "close alone":
        bars.loc[is_halt, ["open", "high", "low"]] = 0.0
    return bars


def scores(seed=1):
    rng = np.random.default_rng(seed)
    days = D.calendar()[40:72]
    index = pd.MultiIndex.from_product([days, NAMES], names=["datetime", "instrument"])
    return pd.DataFrame({"score": rng.normal(size=len(index))}, index=index)


def backtest(recorder, folder, pred=None, **settings):
    open_folder(folder, region=settings.pop("region", "cn"))
    pred = scores() if pred is None else pred
    recorder.save_objects(**{"pred.pkl": pred})
    settings = {"benchmark": NAMES[3], "topk": 3, "n_drop": 2, "account": 1e7, **settings}
    BacktestRecord(recorder, backtest=settings).generate()
    positions = recorder.load_object("portfolio_analysis/positions_normal_1day.pkl")
    return recorder.load_object("portfolio_analysis/report_normal_1day.pkl"), {
        day: {name: position.get_stock_amount(name) for name in position.get_stock_list()}
        for day, position in positions.items()
    }


def traded_in(positions, names, days):
    """Changes of the shares held of some names on some days."""
    held = pd.DataFrame(positions).T.reindex(columns=NAMES).fillna(0.0)
    changes = held.diff().loc[[day for day in days if day in held.index], names]
    return int((changes.abs() > 1e-6).sum().sum())


@pytest.mark.parametrize(("how", "limit"), [("left out", 0.02), ("volume 0", 0.095)])
def test_limits_from_closes_are_those_of_change(recorder, dump_folder, tmp_path, how, limit):
    """Without $change a limit of 0.0001 changed nothing: every order passed, and no word of it."""
    bars = with_change(halt(make_bars(), how))
    with_field = dump_folder(tmp_path / "change", bars, (*FIELDS, "change"))
    without = dump_folder(tmp_path / "noamount", bars, FIELDS)
    given = backtest(recorder, with_field, limit_threshold=limit)
    made = backtest(recorder, without, limit_threshold=limit)
    pd.testing.assert_frame_equal(made[0], given[0], check_exact=True)
    assert made[1] == given[1]
    free = backtest(recorder, without, limit_threshold=float("inf"))
    assert not made[0]["account"].equals(free[0]["account"]), "the limit stops orders"
    region = backtest(recorder, without)  # cn has 0.095
    assert region[0].equals(made[0]) == (limit == 0.095)


@pytest.mark.parametrize("recent_days", [0, 31])
@pytest.mark.parametrize(
    "how", ["left out", "volume 0", "no volume", "close alone", "repeated", "zeros"]
)
def test_limits_without_change_are_flags_of_the_same_bars(
    dump_folder, tmp_path, monkeypatch, how, recent_days
):
    """After a suspension the move counts from the last known close, where Ref sees NaN."""
    monkeypatch.setattr(exchange_module, "RECENT", pd.Timedelta(days=recent_days))
    bars = with_change(halt(make_bars(), how))
    flags = []
    for name, fields in (("change", (*FIELDS, "change")), ("noamount", FIELDS)):
        open_folder(dump_folder(tmp_path / name, bars, fields))
        # It begins in the halt: the last known close lies before the span.
        first, last = D.calendar()[HALT][5], D.calendar()[-2]
        exchange = BarExchange(
            codes=NAMES, start_time=first, end_time=last, limit_threshold=0.05, deal_price="close"
        )
        flags.append(exchange.quote_df[["limit_buy", "limit_sell"]])
    pd.testing.assert_frame_equal(*flags)
    reopened = D.calendar()[HALT.stop]
    for name, stopped in zip(NAMES, (["limit_buy"], ["limit_sell"]), strict=False):
        found = flags[1].loc[(name, reopened)]
        assert found.index[found].tolist() == stopped


def test_where_change_is_there_it_is_qlibs_own_exchange(dump_folder, tmp_path):
    open_folder(dump_folder(tmp_path / "q", with_change(make_bars()), (*FIELDS, "change")))
    days = D.calendar()
    given = {"codes": NAMES, "start_time": days[5], "end_time": days[-2], "deal_price": "close"}
    own, plain = (kind(limit_threshold=0.095, **given) for kind in (BarExchange, Exchange))
    columns = sorted(plain.quote_df.columns)
    assert sorted(own.quote_df.columns) == columns
    pd.testing.assert_frame_equal(own.quote_df[columns], plain.quote_df[columns])


def test_instruments_without_change_among_others_with_it(dump_folder, tmp_path):
    """A folder that grew: names added by another tool have no such file."""
    bars = with_change(make_bars())
    whole = dump_folder(tmp_path / "whole", bars, (*FIELDS, "change"))
    some = dump_folder(tmp_path / "some", bars, (*FIELDS, "change"))
    for name in NAMES[:3]:
        (some / "features" / name.lower() / "change.day.bin").unlink()
    flags = []
    for folder in (whole, some):
        open_folder(folder)
        days = D.calendar()
        exchange = BarExchange(
            codes=NAMES, start_time=days[5], end_time=days[-2], limit_threshold=0.095
        )
        flags.append(exchange.quote_df[["limit_buy", "limit_sell"]])
    pd.testing.assert_frame_equal(*flags)


@pytest.mark.parametrize(
    ("how", "region"),
    [
        ("volume 0", "cn"),
        ("no volume", "us"),
        ("close alone", "us"),
        ("repeated", "us"),
        ("zeros", "cn"),
    ],
)
def test_a_halted_share_is_neither_bought_nor_sold(recorder, dump_folder, tmp_path, how, region):
    """A backtest bought shares in their suspension and held them for 38 days."""
    bars = halt(make_bars(), how)
    folder = dump_folder(tmp_path / "flat", bars)
    open_folder(folder)
    days = D.calendar()[HALT]
    pred = scores()
    wanted = pred.index.get_level_values("instrument").isin(NAMES[:2])
    inside = pred.index.get_level_values("datetime").isin(days)
    pred.loc[wanted & inside, "score"] += 9.0  # such bars look like safe ones
    report, positions = backtest(recorder, folder, pred, region=region)
    assert traded_in(positions, NAMES[:2], days) == 0
    assert traded_in(positions, NAMES[2:], days) > 5
    assert np.isfinite(report["account"]).all()
    # As if the bars had been left out: the same trades of everybody.
    left_out = dump_folder(tmp_path / "left_out", halt(make_bars(), "left out"))
    assert backtest(recorder, left_out, pred, region=region)[1] == positions


def test_what_is_halted_is_logged(dump_folder, tmp_path, monkeypatch):
    said = messages(monkeypatch)
    open_folder(dump_folder(tmp_path / "q", halt(make_bars(), "volume 0")), region="us")
    BarExchange(codes=NAMES, start_time="2020-01-02", end_time="2020-05-01", deal_price="close")
    assert said == [
        "24 bars of 2 instruments (SH600000, SH600001) did not trade, by the rules for bars: they "
        "are neither bought nor sold then"
    ]


def test_without_volume_it_is_said_what_cannot_be_known(dump_folder, tmp_path, monkeypatch):
    said = messages(monkeypatch)
    bars = halt(make_bars(), "volume 0")
    fields = ("open", "high", "low", "close", "factor")
    open_folder(dump_folder(tmp_path / "q", bars, fields), region="us")
    exchange = BarExchange(codes=NAMES, start_time="2020-01-02", end_time="2020-05-01")
    assert not exchange.quote_df["limit_buy"].any()
    assert len(said) == 1
    assert "24 bars of 2 instruments (SH600000, SH600001) stand still" in said[0]
    assert "no $volume to tell whether they traded" in said[0]
    said.clear()
    open_folder(dump_folder(tmp_path / "r", make_bars(), fields), region="us")
    BarExchange(codes=NAMES, start_time="2020-01-02", end_time="2020-05-01")
    assert said == []


def messages(monkeypatch):
    said = []

    class Log:
        def info(self, text):
            said.append(text)

        warning = info

    monkeypatch.setattr("kronos_qlib.plugin.exchange.logger", Log())
    return said


def test_whose_limits_come_from_closes_is_logged(dump_folder, tmp_path, monkeypatch):
    said = messages(monkeypatch)
    bars = with_change(make_bars())
    folder = dump_folder(tmp_path / "q", bars, (*FIELDS, "change"))
    given = {"codes": NAMES, "start_time": "2020-01-02", "end_time": "2020-05-01"}
    open_folder(folder)
    BarExchange(**given)
    assert said == []
    (folder / "features" / "sh600001" / "change.day.bin").unlink()
    open_folder(folder)
    BarExchange(**given)
    assert said.pop().startswith("the folder has no $change of SH600001: the limit of 0.095 counts")
    for path in folder.glob("features/*/change.day.bin"):
        path.unlink()
    open_folder(folder)
    BarExchange(**given)
    assert said.pop().startswith("the folder has no $change: the limit of 0.095 counts the return")


def test_without_a_limit_no_close_is_read_for_it(dump_folder, tmp_path, monkeypatch):
    """Of `.inf`, no limit at all, it was logged that it counts returns since the last close."""
    said = messages(monkeypatch)
    open_folder(dump_folder(tmp_path / "q", make_bars(), FIELDS))
    given = {"codes": NAMES, "start_time": "2020-03-02", "end_time": "2020-05-01"}
    exchange = BarExchange(limit_threshold=float("inf"), **given)
    assert said == []
    assert not exchange.quote_df[["limit_buy", "limit_sell"]].any(axis=None)


def test_closes_are_read_from_shortly_before_the_span(dump_folder, tmp_path, monkeypatch):
    """All closes since the first were: of minutes, years for a test of months."""
    open_folder(dump_folder(tmp_path / "q", make_bars(), FIELDS))
    reads = []
    read = D.features

    def features(names, fields, start, *args, **kwargs):
        reads.append((list(names), start))
        return read(names, fields, start, *args, **kwargs)

    monkeypatch.setattr(D._provider, "features", features)
    BarExchange(codes=NAMES, start_time="2020-04-01", end_time="2020-05-01", limit_threshold=0.095)
    assert [start for _, start in reads] == ["2020-04-01", pd.Timestamp("2020-03-01")]
    reads.clear()  # the last is listed within the span
    BarExchange(codes=NAMES, start_time="2020-02-03", end_time="2020-05-01", limit_threshold=0.095)
    assert [names for names, start in reads if start is None] == [[NAMES[-1]]]


@pytest.mark.parametrize("has_change", [True, False])
def test_minutes_count_from_the_close_of_the_day_before(dump_folder, tmp_path, has_change):
    """From bar to bar no limit is ever reached: a share 10 % up was bought at every bar."""
    clock = ["10:30", "11:30", "14:00", "15:00"]
    days = ["2024-01-04", "2024-01-05", "2024-01-08"]
    times = [pd.Timestamp(f"{day} {time}") for day in days for time in clock]
    up = [10, 10, 10, 10, 10.4, 10.8, 11, 11, 11, 10.5, 10, 9.9]
    bars = pd.DataFrame({"symbol": "SH600000", "date": times, "close": up, "factor": 1.0})
    for field in ("open", "high", "low"):
        bars[field] = bars["close"]
    bars["volume"] = 1e6
    bars["change"] = bars["close"].pct_change()
    fields = (*FIELDS, "change") if has_change else FIELDS
    open_folder(dump_folder(tmp_path / "q", bars, fields, "60min"), "60min")
    exchange = BarExchange(
        freq="60min", codes=["SH600000"], start_time=times[4], end_time=times[-1]
    )
    flags = exchange.quote_df[["limit_buy", "limit_sell"]]
    assert flags["limit_buy"].tolist() == [False, False, True, True, False, False, False, False]
    assert flags["limit_sell"].tolist() == [False] * 7 + [True]
    assert not exchange.is_stock_tradable("SH600000", times[6], times[6], Order.BUY)
    assert exchange.is_stock_tradable("SH600000", times[6], times[6], Order.SELL)


def test_open_prices_stay_where_they_are_traded_at(dump_folder, tmp_path):
    open_folder(dump_folder(tmp_path / "q", make_bars()))
    exchange = BarExchange(
        codes=NAMES, start_time="2020-01-02", end_time="2020-05-01", deal_price="open"
    )
    assert "$open" in exchange.quote_df and "$high" not in exchange.quote_df
    kept = BarExchange(
        codes=NAMES, start_time="2020-01-02", end_time="2020-05-01", subscribe_fields=["$high"]
    )
    assert "$high" in kept.quote_df and "$low" not in kept.quote_df


def test_a_field_that_limits_volume_stays(dump_folder, tmp_path):
    """It was dropped with the fields that the rules alone need: KeyError at the first order."""
    bars = make_bars().assign(amount=5000.0)
    open_folder(dump_folder(tmp_path / "q", bars, (*FIELDS, "amount")))
    day = D.calendar()[5]
    exchange = BarExchange(
        codes=NAMES,
        start_time=day,
        end_time=D.calendar()[9],
        volume_threshold=("current", "$amount"),
    )
    order = Order(NAMES[0], 1e6, Order.BUY, day, day)
    exchange.deal_order(order, position=Position(cash=1e9))
    assert order.deal_amount == 5000


@pytest.mark.parametrize("wrong", [0, -0.1, 9.5, "0.095", True, float("nan"), [0.1, 0.1]], ids=str)
def test_a_limit_that_cannot_work_is_refused(wrong):
    """9.5, meant in per cent, was no limit at all; Qlib's words for a text name no setting."""
    with pytest.raises(ConfigError, match=r"limit_threshold is a fraction .*0\.095.*got"):
        BacktestConfig(benchmark="B", limit_threshold=wrong)


def test_a_whole_number_is_a_limit(recorder, dump_folder, tmp_path):
    """Qlib knows 1.0 and not 1: NotImplementedError, after the scores were made."""
    report, _ = backtest(recorder, dump_folder(tmp_path / "q", make_bars()), limit_threshold=1)
    assert (report["turnover"] > 0).any()


def quotes_of(*rows):
    """Quotes of two instruments with the same bars: open, high, low, close, volume, amount."""
    index = pd.MultiIndex.from_product([["A", "B"], range(len(rows))])
    index.names = ["instrument", "datetime"]
    return pd.DataFrame(list(rows) * 2, columns=list(BAR_FIELDS), index=index)


@pytest.mark.parametrize(
    ("bar", "is_idle"),
    [
        ((10, 10, 10, 10, 0, 0), True),  # flat at the close before
        ((10, 12, 9, 10, 0, np.nan), True),  # the prices before
        ((np.nan, np.nan, np.nan, 10, 0, 0), True),  # only the close
        ((10, 12, 9, 10, 500, 5000), True),  # the whole bar before, filled forward
        ((11, 11, 11, 11, 80, 880), False),  # locked at its limit, and traded
        ((10, 11, 10, 11, 0, 0), False),  # prices moved: the volume is not known
        ((np.nan,) * 6, False),  # no bar: Qlib's own suspension
    ],
)
def test_quotes_keep_the_rules_of_windows(bar, is_idle):
    """The exchange had a rule of its own, narrower than that of the scores."""
    before = (10, 12, 9, 10, 500, 5000)
    found = untraded_quotes(quotes_of((9, 11, 8, 9, 300, 2700), before, bar))
    assert found.tolist() == [False, False, is_idle] * 2


def test_without_any_volume_nothing_is_known():
    still = (10, 10, 10, 10, 0, 0)
    assert not untraded_quotes(quotes_of((9, 11, 8, 9, 0, 0), still, still)).any()
