"""A provider folder as Qlib sees it, and as a failure leaves it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from qlib.backtest.decision import Order
from qlib.backtest.exchange import Exchange
from qlib.contrib.data.handler import Alpha158
from qlib.data import D

from kronos_qlib import files
from kronos_qlib.data.files.read import read_bars
from kronos_qlib.data.files.synthetic import MarketConfig, make_market
from kronos_qlib.errors import BarDataError, CalendarError, ConfigError
from kronos_qlib.plugin import qlib_internals
from kronos_qlib.plugin.lookahead import open_provider
from kronos_qlib.plugin.provider import writer as storage
from kronos_qlib.plugin.provider.reader import read_calendar
from kronos_qlib.plugin.provider.writer import write_provider
from kronos_qlib.schema import BAR_COLUMNS

pytestmark = pytest.mark.integration

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
FIVE_MINUTES = SHARED / "cn_5min_one_stock.csv"


@pytest.fixture(scope="module")
def market():
    return make_market(MarketConfig(instruments=12, years=1.0, suspended_share=0.01, seed=3))


@pytest.fixture(scope="module")
def provider(market, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("provider") / "market"
    write_provider(market.bars, target, benchmark="mean", market="demo", future_bars=10)
    return target


@pytest.fixture
def small() -> pd.DataFrame:
    """Two shares, three days; B is suspended on the second."""
    dates = pd.to_datetime(["2024-01-04", "2024-01-05", "2024-01-08"])
    rows = [
        ("A", dates[0], 10.0, 11.0, 9.0, 10.0, 100.0, 1000.0, 1.0),
        ("A", dates[1], 10.0, 12.0, 10.0, 11.0, 100.0, 1100.0, 1.0),
        ("A", dates[2], 11.0, 11.0, 9.9, 9.9, 0.0, 0.0, 1.0),
        ("B", dates[0], 20.0, 20.0, 20.0, 20.0, 50.0, 1000.0, 2.0),
        ("B", dates[2], 20.0, 22.0, 20.0, 22.0, 50.0, 1050.0, 2.0),
    ]
    names = ["symbol", "date", "open", "high", "low", "close", "volume", "amount", "factor"]
    return pd.DataFrame(rows, columns=names)


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_qlib_reads_back_what_was_written(market, provider):
    open_provider(provider)
    names = [*BAR_COLUMNS, "factor"]
    read = D.features(D.instruments("demo"), [f"${name}" for name in names]).dropna(how="all")
    read.columns = names
    bars = market.bars.set_index(["symbol", "date"])[names].astype(np.float32)
    assert read.index.equals(bars.index.set_names(["instrument", "datetime"]))
    assert np.array_equal(read.to_numpy(np.float32), bars.to_numpy())


def test_a_suspended_day_is_nan_and_not_skipped(market, provider):
    open_provider(provider)
    bars = market.bars
    dates = bars["date"].drop_duplicates()
    holes = {}
    for symbol, rows in bars.groupby("symbol"):
        between = dates[(dates > rows["date"].min()) & (dates < rows["date"].max())]
        holes[symbol] = sorted(set(between) - set(rows["date"]))
    assert any(holes.values()), "no share of this market is ever suspended"
    for symbol, missing in holes.items():
        close = D.features([symbol], ["$close"]).loc[symbol, "$close"]
        assert close.index[close.isna()].tolist() == missing


def test_the_benchmark_is_no_member(market, provider):
    """A benchmark in the market would be bought by a strategy, and learned from by a model."""
    open_provider(provider)
    members = sorted(market.bars["symbol"].unique())
    for name in ("all", "demo"):
        assert sorted(D.list_instruments(D.instruments(name), as_list=True)) == members
    fields = [f"${name}" for name in (*BAR_COLUMNS, "factor", "vwap")]
    index = D.features(["MEAN"], fields).loc["MEAN"]
    assert index.notna().all(axis=None)
    assert (index["$vwap"].between(index["$low"] * 0.9999, index["$high"] * 1.0001)).all()
    closes = market.bars.pivot(index="date", columns="symbol", values="close")
    traded = closes.notna()
    moves = (closes.ffill() / closes.ffill().shift() - 1).where(traded).mean(axis=1)
    expected = moves.iloc[1:].to_numpy()
    got = (index["$close"] / index["$close"].shift() - 1).iloc[1:].to_numpy()
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_the_future_calendar_goes_on_by_weekdays(market, provider):
    open_provider(provider)
    known = D.calendar(freq="day")
    ahead = D.calendar(freq="day", future=True)
    assert list(known) == sorted(market.bars["date"].unique())
    expected = pd.bdate_range(known[-1] + pd.Timedelta(days=1), periods=10)
    assert list(ahead) == [*known, *expected]


GOLDEN_WEEK = ["2024-09-27", "2024-09-30", "2024-10-08", "2024-10-09", "2024-10-09", "2024-10-10"]
"""Open days of Shanghai, one of them twice; October begins with a week of holidays."""


def days(*texts: str) -> list[pd.Timestamp]:
    return [pd.Timestamp(text) for text in texts]


def test_a_given_future_knows_the_holidays(small, tmp_path):
    """A forecast made before a holiday once carried the stamps of days that had no market."""
    first, second, third = days("2024-09-26", "2024-09-27", "2024-09-30")
    small["date"] = [first, second, third, first, third]
    summary = write_provider(small, tmp_path / "q", future_bars=1, future_times=GOLDEN_WEEK)
    assert not any("holidays" in note for note in summary.notes)
    open_provider(tmp_path / "q")
    known = D.calendar(freq="day")
    assert list(known) == days("2024-09-26", "2024-09-27", "2024-09-30")
    ahead = D.calendar(freq="day", future=True)[len(known) :]
    assert list(ahead) == days("2024-10-08", "2024-10-09", "2024-10-10")


def test_guessed_and_spent_futures_are_said(small, tmp_path):
    summary = write_provider(small, tmp_path / "q", future_bars=3)
    assert "goes on by weekdays to 2024-01-11 and knows no holidays" in summary.notes[-1]
    assert write_provider(small, tmp_path / "r", future_bars=0).notes == ()
    spent = write_provider(small, tmp_path / "s", future_times=[pd.Timestamp("2024-01-08")])
    assert spent.notes == ("no future time given lies after the last bar, 2024-01-08 00:00:00",)
    assert (tmp_path / "s/calendars/day_future.txt").read_text().count("\n") == 3


def test_a_future_that_is_none_is_refused(small, tmp_path):
    with pytest.raises(ConfigError, match="no time of day, got 2024-01-09 09:35"):
        write_provider(small, tmp_path / "q", future_times=["2024-01-09 09:35"])
    for wrong in (["soon"], [pd.NaT], [20240109]):
        with pytest.raises(CalendarError):
            write_provider(small, tmp_path / "q", future_times=wrong)
    assert list(tmp_path.iterdir()) == []


def test_change_is_the_return_since_the_last_traded_close(small, market, provider, tmp_path):
    """B's second bar counts from before its suspension; a first bar counts from nothing."""
    write_provider(small, tmp_path / "q", benchmark="EW")
    open_provider(tmp_path / "q")
    change = D.features(["A", "B", "EW"], ["$change"])["$change"]
    expected = [np.nan, 0.1, -0.1, np.nan, np.nan, 0.1, np.nan, 0.1, 0.0]
    np.testing.assert_allclose(change.to_numpy(), expected, atol=1e-7)
    open_provider(provider)
    change = D.features(D.instruments("demo"), ["$change"])["$change"].dropna()
    closes = market.bars.set_index(["symbol", "date"])["close"]
    moves = (closes / closes.groupby("symbol").shift() - 1).dropna().astype(np.float32)
    assert np.array_equal(change.to_numpy(np.float32), moves.to_numpy())


def test_a_price_limit_stops_the_side_that_finds_no_partner(small, tmp_path):
    """Without $change Qlib compares NaN with the limit and lets every order pass."""
    write_provider(small, tmp_path / "q")
    open_provider(tmp_path / "q", region="cn")
    exchange = Exchange(
        freq="day",
        start_time="2024-01-04",
        end_time="2024-01-08",
        codes=["A", "B"],
        deal_price="close",
        limit_threshold=0.095,
    )
    first, rise, fall = days("2024-01-04", "2024-01-05", "2024-01-08")
    for symbol, day, can_buy, can_sell in [
        ("A", first, True, True),
        ("A", rise, False, True),  # +10 %
        ("A", fall, True, False),  # -10 %
        ("B", first, True, True),
        ("B", rise, False, False),  # suspended
        ("B", fall, False, True),  # +10 % since the bar before the suspension
    ]:
        for side, can in ((Order.BUY, can_buy), (Order.SELL, can_sell)):
            assert exchange.check_stock_limit(symbol, day, day, side) != can, (symbol, day, side)
            assert exchange.is_stock_tradable(symbol, day, day, side) == can, (symbol, day, side)


def test_alpha158_works_and_knows_the_vwap(market, provider):
    """Without $vwap Qlib logs nothing and gives a feature of nothing but NaN."""
    open_provider(provider)
    handler = Alpha158(instruments="demo", learn_processors=[])
    frame = handler.fetch()
    traded = frame[frame["KMID"].notna()]
    assert len(traded) == len(market.bars)
    assert len(frame) > len(traded), "suspended days are rows without features"
    assert traded["VWAP0"].between(0.8, 1.25).all()
    assert list(frame.columns[traded.isna().all()]) == []


def test_equal_weight_by_hand(small, tmp_path):
    """B's second bar carries its move since its last close, over the suspended day."""
    write_provider(small, tmp_path / "q", benchmark="EW")
    open_provider(tmp_path / "q")
    index = D.features(["EW"], ["$open", "$high", "$low", "$close"]).loc["EW"]
    first, second, third = index.to_numpy()
    np.testing.assert_allclose(first, [1000, 1050, 950, 1000], rtol=1e-6)
    np.testing.assert_allclose(second, [1000, 1200, 1000, 1100], rtol=1e-6)
    np.testing.assert_allclose(third, [1100, 1155, 1045, 1100], rtol=1e-6)


def test_vwap_is_nan_without_trade_or_sense(small, tmp_path):
    small.loc[4, "amount"] = 1e9
    summary = write_provider(small, tmp_path / "q")
    assert any(note.startswith("1 bars") for note in summary.notes)
    open_provider(tmp_path / "q")
    vwap = D.features(["A", "B"], ["$vwap"])["$vwap"]
    np.testing.assert_array_equal(vwap.to_numpy(), [10, 11, np.nan, 20, np.nan, np.nan])


def test_an_instrument_of_the_table_can_be_the_benchmark(small, tmp_path):
    summary = write_provider(small, tmp_path / "q", benchmark="b")
    assert (summary.instruments, summary.bars) == (1, 3)
    assert (tmp_path / "q/instruments/all.txt").read_text() == "A\t2024-01-04\t2024-01-08\n"
    assert (tmp_path / "q/features/b/close.day.bin").exists()


def test_extra_columns_and_tables_beside_are_kept(small, tmp_path):
    write_provider(
        small.assign(pe=[1, 2, 3, 4, 5]), tmp_path / "q", extra=["pe"], beside={"bars": small}
    )
    open_provider(tmp_path / "q")
    assert D.features(["A"], ["$pe"])["$pe"].tolist() == [1, 2, 3]
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "q/bars.parquet"), small)


def bars_on(dates: pd.DatetimeIndex, symbol: str = "A") -> pd.DataFrame:
    prices = dict.fromkeys(("open", "high", "low", "close"), 10.0)
    sizes = {"volume": 10.0, "amount": 100.0, "factor": 1.0}
    return pd.DataFrame({"symbol": symbol, "date": dates, **prices, **sizes})


def future_of(folder: Path, freq: str = "day") -> list[str]:
    """The entries of the future calendar that the calendar has not."""
    known, ahead = (
        (folder / "calendars" / f"{freq}{name}.txt").read_text().splitlines()
        for name in ("", "_future")
    )
    assert ahead[: len(known)] == known
    return ahead[len(known) :]


def test_the_future_of_a_market_of_seven_days_has_weekends(tmp_path):
    """A folder of crypto went on from Friday to Monday."""
    bars = bars_on(pd.date_range("2024-01-01", "2024-06-28"))
    summary = write_provider(bars, tmp_path / "q", future_bars=3)
    assert future_of(tmp_path / "q") == ["2024-06-29", "2024-06-30", "2024-07-01"]
    note = "goes on as the bars did (daily, every day of the week) to 2024-07-01"
    assert any(note in each for each in summary.notes)


def test_weekly_bars_are_said_and_go_on_weekly(tmp_path):
    """Qlib knows no weeks: it counts entries of the calendar. Theirs went on by weekdays."""
    bars = bars_on(pd.date_range("2020-01-03", periods=150, freq="W-FRI"))
    summary = write_provider(bars, tmp_path / "q", future_bars=2)
    assert future_of(tmp_path / "q") == ["2022-11-18", "2022-11-25"]
    assert "the bars come weekly, on Fridays: they stand 7 days apart" in summary.notes[0]
    assert "as the bars did (weekly, on Fridays) to 2022-11-25 and knows no" in summary.notes[-1]
    irregular = bars.iloc[np.cumsum([0, 3, 1, 7, 2, 9, 1, 11])]
    summary = write_provider(irregular, tmp_path / "r", future_bars=2)
    assert future_of(tmp_path / "r") == []
    assert "no future calendar: the bars from 2020-01-03" in summary.notes[-1]
    assert "--future-calendar" in summary.notes[-1]


def test_one_names_odd_dates_do_not_make_a_trading_day(tmp_path):
    """cn_daily_2000_2002 has Saturdays on which two of a thousand names have a bar."""
    days = pd.bdate_range("2024-01-01", periods=100)
    everyone = pd.concat(bars_on(days, f"S{number}") for number in range(120))
    odd = bars_on(days[days.day_of_week == 4] + pd.Timedelta(days=1), "S0")
    write_provider(pd.concat([everyone, odd]), tmp_path / "q", future_bars=3)
    assert future_of(tmp_path / "q") == ["2024-05-20", "2024-05-21", "2024-05-22"]


@pytest.mark.parametrize("freq", ["day", "1D", "D", "24h", "1440min"])
def test_daily_bars_stamped_with_the_close_are_daily_bars(tmp_path, freq):
    """They were refused as bars of minutes, and as those for being daily: a circle."""
    days = pd.bdate_range("2024-01-01", periods=20)
    bars = pd.concat(
        [bars_on(days + pd.Timedelta("15h")), bars_on(days[5:] + pd.Timedelta("16h"), "B")]
    )
    summary = write_provider(bars, tmp_path / "q", freq=freq, future_bars=1)
    assert summary.notes[0].startswith("one bar a day, at 15:00 and 16:00: daily bars, taken with")
    assert (summary.freq, summary.times, future_of(tmp_path / "q")) == ("day", 20, ["2024-01-29"])
    with pytest.raises(BarDataError, match=r"1 day apart.*--freq day"):
        write_provider(bars, tmp_path / "r", freq="5min")


def five_minutes(symbol: str = "M") -> pd.DataFrame:
    return bars_on(pd.date_range("2024-01-04 09:35", periods=12, freq="5min"), symbol)


@pytest.mark.parametrize("freq", ["day", "5min"])
@pytest.mark.parametrize("hour", [0, 15])
def test_days_and_minutes_in_one_table_have_one_message(tmp_path, freq, hour):
    """ "Pass --freq 5min" and "pass --freq day" followed one another."""
    days = bars_on(pd.bdate_range("2024-01-01", periods=20) + pd.Timedelta(hours=hour), "D")
    with pytest.raises(BarDataError, match=r"D has one bar a day and M one every 5 minutes"):
        write_provider(pd.concat([days, five_minutes()]), tmp_path / "q", freq=freq)


def test_what_is_no_daily_bar_among_daily_bars_is_named(tmp_path):
    days = pd.bdate_range("2024-01-01", periods=20)
    twice = bars_on(days.append(pd.DatetimeIndex(["2024-01-05 15:30"])))
    with pytest.raises(BarDataError, match=r"A has one bar a day, but 2 on 2024-01-05.*15:30:00"):
        write_provider(twice, tmp_path / "q")
    running = bars_on(days.append(pd.DatetimeIndex(["2024-01-29 10:31"])))
    with pytest.raises(BarDataError, match=r"A 2024-01-29 10:31:00.*if its day was not over"):
        write_provider(running, tmp_path / "q")
    berlin = pd.bdate_range("2024-01-01", periods=40, tz="Europe/Berlin").tz_convert("UTC")
    with pytest.raises(BarDataError, match="on Sundays and not on Fridays: midnights"):
        write_provider(bars_on(berlin.tz_localize(None)), tmp_path / "q")
    assert list(tmp_path.iterdir()) == []


def follow(advice: str) -> str:
    return re.findall(r"--freq (\S+)", advice)[-1]


@pytest.mark.parametrize("step", ["1min", "5min", "15min", "h", "4h", "D", "B", "W-FRI", "ME"])
@pytest.mark.parametrize("stamp", [0, 15])
@pytest.mark.parametrize("freq", ["day", "1min", "5min", "60min", "h"])
def test_advice_on_the_frequency_leads_to_a_folder(tmp_path, step, stamp, freq):
    """Whatever was asked first, what the message says to pass is then taken."""
    start = pd.Timestamp("2024-01-01") + pd.Timedelta(hours=stamp)
    bars = bars_on(pd.date_range(start, periods=30, freq=step))
    try:
        write_provider(bars, tmp_path / "q", freq=freq, future_bars=0)
    except BarDataError as refused:
        write_provider(bars, tmp_path / "q", freq=follow(str(refused)), future_bars=0)
    assert (tmp_path / "q").exists()


@pytest.mark.parametrize("freq", ["W-FRI", "week", "B", "month", "2D", "5m", "90s", 5])
def test_a_frequency_that_qlib_has_not_says_what_it_has(tmp_path, freq):
    with pytest.raises(ConfigError, match=r"days and minutes; weekly and monthly bars.*as day"):
        write_provider(five_minutes(), tmp_path / "q", freq=freq)


def minute_bars(days: int) -> pd.DataFrame:
    dates = [
        day + pd.Timedelta(hours=9, minutes=minute)
        for day in pd.bdate_range("2024-01-04", periods=days)
        for minute in (35, 40, 45)
    ]
    prices = dict.fromkeys(("open", "high", "low", "close"), 10.0)
    sizes = {"volume": 10.0, "amount": 100.0, "factor": 1.0}
    return pd.DataFrame({"symbol": "A", "date": dates, **prices, **sizes})


def test_minute_bars_and_their_future(tmp_path):
    """The last day breaks off after 9:35: the future begins with the rest of that day."""
    bars = minute_bars(2).iloc[:-2]
    write_provider(bars, tmp_path / "q", freq="5min", future_bars=4)
    open_provider(tmp_path / "q", "5min")
    read = D.features(["A"], ["$close"], freq="5min")
    assert read.index.get_level_values("datetime").tolist() == bars["date"].tolist()
    ahead = D.calendar(freq="5min", future=True)[len(bars) :]
    expected = ["2024-01-05 09:40", "2024-01-05 09:45", "2024-01-08 09:35", "2024-01-08 09:40"]
    assert list(ahead) == [pd.Timestamp(time) for time in expected]


@pytest.mark.parametrize(
    ("minutes", "freq", "says"),
    [
        ((0, 5, 10), "1min", r"A 2024-01-04 09:35:00: bars stand 5 minutes apart.*--freq 5min"),
        ((0, 1, 2, 3, 7), "5min", r"A 2024-01-04 09:31:00.*stand 1 minute apart.*freq='1min'"),
        ((0, 24 * 60), "5min", r"freq='5min'; pass freq='day'"),
        ((0, 0.5), "1min", "Qlib has none such"),
    ],
)
def test_bars_stand_as_far_apart_as_their_frequency(tmp_path, minutes, freq, says):
    def bars_at(minutes: tuple[float, ...]) -> pd.DataFrame:
        start = pd.Timestamp("2024-01-04 09:30")
        dates = [start + pd.Timedelta(minutes=minute) for minute in minutes]
        return pd.concat([minute_bars(1).head(1).assign(date=date) for date in dates])

    with pytest.raises(BarDataError, match=says):
        write_provider(bars_at(minutes), tmp_path / "q", freq=freq)
    assert not (tmp_path / "q").exists()
    write_provider(bars_at((0,)), tmp_path / "one", freq=freq)


def test_a_session_may_end_on_half_a_bar(tmp_path):
    """New York closes at 16:00, half an hour after its last full hour."""
    clock = ["10:30", "11:30", "12:30", "13:30", "14:30", "15:30", "16:00"]
    bars = pd.concat(
        minute_bars(1).head(1).assign(date=pd.Timestamp(f"2024-01-04 {time}")) for time in clock
    )
    assert write_provider(bars, tmp_path / "q", freq="60min").bars == 7


def test_minute_bars_take_days_or_times_for_their_future(tmp_path):
    """An exchange publishes days; they are open at the times that the bars show."""
    bars = minute_bars(2).iloc[:-2]
    write_provider(bars, tmp_path / "q", freq="5min", future_times=["2024-01-09", "2024-01-05"])
    open_provider(tmp_path / "q", "5min")
    ahead = D.calendar(freq="5min", future=True)[len(bars) :]
    assert list(ahead) == days(
        "2024-01-05 09:40",
        "2024-01-05 09:45",
        "2024-01-09 09:35",
        "2024-01-09 09:40",
        "2024-01-09 09:45",
    )
    times = ["2024-01-05 09:35", "2024-01-05 11:00", "2024-01-09 09:35"]
    write_provider(bars, tmp_path / "r", freq="5min", future_times=times)
    open_provider(tmp_path / "r", "5min")
    assert list(D.calendar(freq="5min", future=True)[len(bars) :]) == days(*times[1:])


@pytest.mark.skipif(not FIVE_MINUTES.exists(), reason=f"{FIVE_MINUTES} is not there")
def test_real_five_minute_bars_have_a_vwap_in_price_units(tmp_path):
    """Their volume counts lots of 100: amount / volume alone is a hundred times the price."""
    summary = write_provider(read_bars(FIVE_MINUTES).bars, tmp_path / "q", freq="5min")
    assert any("lots of 100" in note for note in summary.notes)
    open_provider(tmp_path / "q", "5min")
    read = D.features(D.instruments("all"), ["$vwap/$close"], freq="5min")
    assert read.iloc[:, 0].between(0.98, 1.02).all()


def test_an_existing_folder_is_kept_unless_told(small, tmp_path):
    target = tmp_path / "q"
    write_provider(small, target)
    before = tree(target)
    with pytest.raises(ConfigError, match="overwrite"):
        write_provider(small.iloc[:3], target)
    assert tree(target) == before
    write_provider(small.iloc[:3], target, overwrite=True)
    assert not (target / "features" / "b").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["q"]


def test_overwrite_spares_what_is_no_provider(small, tmp_path):
    """`--overwrite ~` must not cost anyone a home."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="not a Qlib provider folder"):
        write_provider(small, home, overwrite=True)
    assert tree(home) == {"thesis.txt": b"years of work"}
    with pytest.raises(ConfigError, match="is a file"):
        write_provider(small, home / "thesis.txt", overwrite=True)


def test_an_empty_folder_may_be_filled(small, tmp_path):
    (tmp_path / "q").mkdir()
    write_provider(small, tmp_path / "q")
    assert (tmp_path / "q/calendars/day.txt").exists()


@pytest.mark.parametrize("step", ["write_calendars", "_write_markets", "_write_features"])
@pytest.mark.parametrize("exists", [False, True])
def test_a_failure_leaves_no_trace(small, tmp_path, monkeypatch, step, exists):
    target = tmp_path / "q"
    if exists:
        write_provider(small, target)
    before = tree(tmp_path)

    def fail(*args: object) -> None:
        finish(*args)
        raise OSError("disk full")

    finish = getattr(storage, step)
    monkeypatch.setattr(storage, step, fail)
    with pytest.raises(OSError, match="disk full"):
        write_provider(small.iloc[:3], target, overwrite=True)
    assert tree(tmp_path) == before
    assert list(tmp_path.iterdir()) == ([target] if exists else [])


def test_a_failed_move_puts_the_old_folder_back(small, tmp_path, monkeypatch):
    """On Windows an open file in the folder makes the second rename fail."""
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)  # as elsewhere than Linux
    target = tmp_path / "q"
    write_provider(small, target)
    before = tree(tmp_path)
    rename = Path.rename

    def refuse(self: Path, other: Path) -> Path:
        if self.name.endswith(".new"):
            raise PermissionError("in use")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(PermissionError):
        write_provider(small.iloc[:3], target, overwrite=True)
    assert tree(tmp_path) == before


KILL_BETWEEN_RENAMES = """
import os, signal, sys
import pandas as pd
from pathlib import Path
from kronos_qlib import files
from kronos_qlib.plugin.provider.reader import read_calendar
from kronos_qlib.plugin.provider.writer import write_provider
files._exchange = lambda one, other: False
rename = Path.rename
def renamed(self, other):
    moved = rename(self, other)
    if moved.name.endswith(".old"):
        os.kill(os.getpid(), signal.SIGKILL)
    return moved
Path.rename = renamed
write_provider(pd.read_parquet(sys.argv[1]), sys.argv[2], overwrite=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_conversion_killed_between_its_renames_costs_nothing(small, tmp_path):
    """The old folder lay hidden and nobody put it back; the next conversion wrote a new one."""
    target = tmp_path / "q"
    write_provider(small, target)
    before = tree(target)
    small.iloc[:3].to_parquet(tmp_path / "bars.parquet")
    command = [sys.executable, "-c", KILL_BETWEEN_RENAMES, str(tmp_path / "bars.parquet")]
    killed = subprocess.run([*command, str(target)], check=False, cwd=tmp_path)
    assert killed.returncode == -signal.SIGKILL
    assert not target.exists()
    open_provider(target)
    with pytest.raises(ConfigError, match=r"q\..*old.*killed.*was there before"):
        read_calendar()
    with pytest.raises(ConfigError, match="exists"):
        write_provider(small.iloc[:3], target)  # without overwrite: put back, and kept
    assert tree(target) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bars.parquet", "q"]
    write_provider(small.iloc[:3], target, overwrite=True)
    assert not (target / "features" / "b").exists()


@pytest.mark.parametrize(
    ("symbol", "says"),
    [
        ("\ufeffSH600000", r"'\\ufeffSH600000' begins with a byte-order mark.*utf-8-sig"),
        ("SH\u200b600000", r"holds '\\u200b', which does not show"),
        ("SH600000\xa0", r"holds '\\xa0', which does not show"),
        ("X" * 300, r"\(300 letters\) is 300 bytes long and a folder's name at most 255"),
        ("股" * 90, "270 bytes long"),
    ],
    ids=["mark", "zero width", "no-break space", "letters", "bytes"],
)
def test_a_symbol_that_makes_no_folder_says_why(small, tmp_path, symbol, says):
    """A byte-order mark went into a folder's name, and 300 letters ended in an OSError."""
    small.loc[small["symbol"] == "A", "symbol"] = symbol
    with pytest.raises(BarDataError, match=says) as told:
        write_provider(small, tmp_path / "q")
    assert len(str(told.value)) < 250
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BarDataError, match=says):
        write_provider(small.iloc[3:], tmp_path / "q", benchmark=symbol)


def test_the_longest_symbol_that_fits_is_stored(small, tmp_path):
    small["symbol"] = small["symbol"].replace("A", "X" * 255)
    write_provider(small, tmp_path / "q")
    open_provider(tmp_path / "q")
    assert len(D.features(["X" * 255], ["$close"])) == 3


def test_what_qlib_reads_back_differently_is_not_moved_into_place(small, tmp_path, monkeypatch):
    read = qlib_internals.FileFeatureStorage.__getitem__
    monkeypatch.setattr(
        qlib_internals.FileFeatureStorage, "__getitem__", lambda self, at: read(self, at) + 1
    )
    with pytest.raises(BarDataError, match="reads back something else"):
        write_provider(small, tmp_path / "q")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"volume": 1e39, "amount": 1e40}, "A 2024-01-05.*: volume 1e.39 does not fit float32"),
        ({"amount": np.inf}, "size: amount inf"),
        ({"close": np.nan}, "nan"),
        ({"high": 1.0}, "bracket"),
        ({"symbol": "B", "date": pd.Timestamp("2024-01-04")}, "duplicate"),
        ({"symbol": "a"}, "share one folder"),
        ({"symbol": "NA"}, "Qlib reads the symbol 'NA'"),
        ({"symbol": "BRK/B"}, "cannot name a folder"),
        ({"symbol": ".."}, "cannot name a folder"),
        (
            {"date": pd.Timestamp("2024-01-05 09:35")},
            "a daily bar has no time of day, and other bars of A have none",
        ),
        ({"low": 1e-60}, "low 1e-60 becomes 0 in float32"),
    ],
    ids=str,
)
def test_bars_that_cannot_be_stored_are_refused(small, tmp_path, change, says):
    for column, value in change.items():
        small.loc[1, column] = value
    with pytest.raises(BarDataError, match=says):
        write_provider(small, tmp_path / "q")
    assert list(tmp_path.iterdir()) == []


def test_times_must_be_times_without_a_zone(small, tmp_path):
    for dates in (small["date"].astype(str), small["date"].dt.tz_localize("UTC")):
        with pytest.raises(BarDataError, match="without a zone"):
            write_provider(small.assign(date=dates), tmp_path / "q")


@pytest.mark.parametrize(
    "wrong",
    [
        {"freq": "week"},
        {"freq": "0min"},
        {"freq": "often"},
        {"market": "CSI300"},
        {"market": "../up"},
        {"market": "m" * 300},
        {"future_bars": -1},
        {"extra": ["close"]},
        {"extra": ["change"]},
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_refused(small, tmp_path, wrong):
    with pytest.raises(ConfigError):
        write_provider(small.assign(change=0.0), tmp_path / "q", **wrong)


def test_names_that_windows_reserves_are_stored_as_qlib_looks_for_them(small, tmp_path):
    write_provider(small.replace({"symbol": {"A": "CON"}}), tmp_path / "q")
    open_provider(tmp_path / "q")
    assert D.features(["CON"], ["$close"])["$close"].tolist() == pytest.approx([10, 11, 9.9])


def test_rows_in_any_order_give_the_same_folder(small, tmp_path):
    write_provider(small, tmp_path / "sorted")
    write_provider(small.iloc[[4, 1, 3, 0, 2]], tmp_path / "mixed")
    assert tree(tmp_path / "sorted") == tree(tmp_path / "mixed")


def test_writing_needs_no_qlib_init_and_leaves_its_state_alone(small, tmp_path):
    """In a process of its own, since in this one Qlib may be open already."""
    small.to_parquet(tmp_path / "bars.parquet")
    script = """
import sys
import pandas as pd
from qlib.config import C
from qlib.data.cache import H
from kronos_qlib.plugin.provider.reader import read_calendar
from kronos_qlib.plugin.provider.writer import write_provider
before = dict(C.__dict__["_config"])
write_provider(pd.read_parquet(sys.argv[1]), sys.argv[2])
assert C.__dict__["_config"] == before and not C.registered
assert not H["c"].od
"""
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "bars.parquet"), str(tmp_path / "q")],
        check=True,
        cwd=tmp_path,
    )
