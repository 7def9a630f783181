"""Tables as vendors write them, from files and in frames: read right, or refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.cli.main import main
from kronos_qlib.data.calendar.stamps import to_times
from kronos_qlib.data.files.read import columns_from_pairs, read_bars
from kronos_qlib.data.windows.window_dataset import WindowDataset
from kronos_qlib.errors import BarDataError, CalendarError, ConfigError
from kronos_qlib.inference.frames import bars_of_frame, series_of_frames, timestamps_of

PRICES = ["open", "high", "low", "close"]
DAYS = pd.bdate_range("2023-01-02", periods=60)
MINUTES = pd.DatetimeIndex(
    [
        time
        for day in DAYS[:3]
        for time in pd.date_range(day + pd.Timedelta("9h35min"), periods=12, freq="5min")
    ]
)


def walk(times: pd.DatetimeIndex = DAYS, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    close = (20 * np.exp(np.cumsum(rng.normal(0, 0.01, len(times))))).round(4)
    opened = np.r_[20.0, close[:-1]]
    high, low = np.maximum(opened, close) + 0.0625, np.minimum(opened, close) - 0.0625
    volume = rng.integers(100_000, 999_999, len(times)).astype(float)
    bars = {"open": opened, "high": high, "low": low, "close": close, "volume": volume}
    return pd.DataFrame({"date": times, **bars}).round(4)


def save(frame: pd.DataFrame, folder: Path, name: str = "bars.csv", **options) -> Path:
    frame.to_csv(folder / name, index=False, **options)
    return folder / name


def milliseconds(times: pd.Series | pd.DatetimeIndex) -> pd.Index:
    return pd.DatetimeIndex(times).astype("datetime64[ms]").astype("int64")


def check(bars: pd.DataFrame, wanted: pd.DataFrame, *columns: str) -> None:
    for name in columns or ("date", *PRICES, "volume"):
        np.testing.assert_array_equal(bars[name].to_numpy(), wanted[name].to_numpy(), name)


# Sizes


@pytest.mark.parametrize(
    "name",
    [
        *("Volume", "vol", "Vol.", "VOL", "tick_volume", "TICKVOL", "<TICKVOL>", "real_volume"),
        *("成交量", "成交量(股)", "总手", "trade_vol", "Total Volume", "base_volume", "5. volume"),
        *("volumefrom", "Volume BTC", "Volume_(BTC)", "Trading Volume", "Shares Traded", "Volumen"),
    ],
)
def test_a_column_that_can_only_be_volume_is_volume(tmp_path, name):
    """Left out, it was zero to the network; the predictor did not even say so."""
    frame = walk().rename(columns={"volume": name})
    check(read_bars(save(frame, tmp_path)).bars, walk())
    check(read_bars(frame, symbol="A").bars, walk())
    np.testing.assert_array_equal(bars_of_frame(frame, "A")[:, 4], walk()["volume"])


@pytest.mark.parametrize(
    "name",
    [
        "buy_volume",
        "Volume (M)",
        "vol_ma5",
        "volumn",
        "Qty",
        "volume_24h_change",
        "taker_vol",
        "Stuecke",
    ],
)
def test_a_column_that_may_be_volume_is_refused_by_name(tmp_path, name):
    frame = walk().rename(columns={"volume": name})
    path = save(frame, tmp_path)
    with pytest.raises(BarDataError) as caught:
        read_bars(path)
    said = str(caught.value)
    shown = name if name.replace("_", "").isalnum() else f'"{name}"'
    assert f"--columns volume={shown} " in said and "--columns volume= " in said
    check(read_bars(path, columns={"volume": name}).bars, walk())
    table = read_bars(path, columns=columns_from_pairs(["volume="]))
    assert table.bars["volume"].eq(0).all() and "volume is missing: set to 0" in table.notes
    with pytest.raises(BarDataError, match=r"A: .*rename it to volume: frame\.rename\(columns="):
        bars_of_frame(frame, "A")
    assert bars_of_frame(frame.drop(columns=name), "A")[:, 4].max() == 0


@pytest.mark.parametrize("name", ["volatility", "turnover_rate", "换手率", "evolution", "pe"])
def test_what_is_no_size_is_left_out(tmp_path, name):
    frame = walk()[["date", *PRICES]].assign(**{name: 1.5})
    assert read_bars(save(frame, tmp_path)).bars["volume"].eq(0).all()
    assert bars_of_frame(frame, "A")[:, 4].max() == 0


@pytest.mark.parametrize(
    ("volume", "amount"),
    [
        *(("Volume BTC", "Volume USDT"), ("Volume_(BTC)", "Volume_(Currency)")),
        *(("volumefrom", "volumeto"), ("Volume", "Quote asset volume"), ("vol", "amt")),
        *(("volume", "total_turnover"), ("成交量", "成交额"), ("turnoverVol", "turnoverValue")),
        *(("volume", "turnover"), ("成交量(股)", "成交额(元)"), ("base_volume", "quote_volume")),
    ],
)
def test_volume_and_amount_are_told_apart(tmp_path, volume, amount):
    paid = (walk()["volume"] * walk()["close"]).round()
    frame = walk().assign(amount=paid).rename(columns={"volume": volume, "amount": amount})
    check(read_bars(save(frame, tmp_path)).bars, walk().assign(amount=paid), "volume", "amount")
    read = bars_of_frame(frame[frame.columns[::-1]], "A")
    np.testing.assert_array_equal(read[:, 5], paid.astype(np.float32))


@pytest.mark.parametrize("symbol", ["ETH/BTC", "ETHBTC", "eth-btc"])
def test_the_symbol_says_which_coin_is_counted(tmp_path, symbol):
    """In cryptodatadownload's files the base is the volume and the quote the money."""
    frame = walk().rename(columns={"volume": "Volume ETH"})
    frame.insert(1, "Volume BTC", 7.0)
    check(read_bars(save(frame.assign(symbol=symbol), tmp_path)).bars, walk())
    check(read_bars(save(frame, tmp_path, f"Gemini_{symbol.replace('/', '')}_d.csv")).bars, walk())
    with pytest.raises(BarDataError, match="'Volume BTC' and 'Volume ETH' look like it"):
        read_bars(save(frame, tmp_path))


def test_a_volume_that_is_zero_throughout_gives_way(tmp_path):
    """MetaTrader writes <VOL> as 0 wherever no exchange counts shares."""
    frame = walk().rename(columns={"volume": "<TICKVOL>"}).assign(**{"<VOL>": 0})
    table = read_bars(save(frame, tmp_path))
    check(table.bars, walk())
    assert any("'<VOL>' is 0 throughout" in note for note in table.notes)
    real = walk().rename(columns={"volume": "<VOL>"}).assign(**{"<TICKVOL>": 3})
    check(read_bars(save(real, tmp_path)).bars, walk())
    with pytest.raises(BarDataError, match="'vol' and 'volume' could both be 'volume'"):
        read_bars(save(walk().assign(vol=5.0)[["date", *PRICES, "vol", "volume"]], tmp_path))


def test_turnover_is_money_where_it_is_volume_times_price(tmp_path):
    """The word means money to Bybit and Futu, a rate to Sina."""
    rate = read_bars(save(walk().assign(turnover=0.02), tmp_path))
    assert any("'turnover' is not volume x price" in note for note in rate.notes)
    np.testing.assert_allclose(
        rate.bars["amount"], rate.bars["volume"] * walk()[PRICES].mean(axis=1)
    )
    with pytest.raises(BarDataError, match="no column of volume, but 'turnover' looks like money"):
        read_bars(save(walk().rename(columns={"volume": "turnover"}), tmp_path))


def test_chinese_units_are_counted(tmp_path):
    paid = walk()["volume"] * 20
    frame = walk().assign(volume=walk()["volume"] / 1e4, amount=paid / 1e8)
    frame = frame.rename(columns={"volume": "成交量\uff08万股\uff09", "amount": "成交额(亿元)"})
    table = read_bars(save(frame, tmp_path))
    np.testing.assert_allclose(table.bars["volume"], walk()["volume"])
    np.testing.assert_allclose(table.bars["amount"], paid)
    assert "'成交额(亿元)' is multiplied by 1e+08" in table.notes


# Symbols


def two_shares(column: str, first: object, second: object, *, in_turn: bool = True) -> pd.DataFrame:
    one, other = (
        walk(seed=seed).assign(**{column: name}) for seed, name in ((0, first), (1, second))
    )
    if in_turn:
        return pd.concat([one, other]).sort_values("date", kind="stable")
    return pd.concat([one.iloc[:30], other.iloc[30:]])


@pytest.mark.parametrize("in_turn", [True, False])
@pytest.mark.parametrize(
    "column",
    ["tic", "stock_code", "sec_code", "order_book_id", "windcode", "证券代码", "Name", "Stkcd"],
)
def test_two_shares_stay_two(tmp_path, column, in_turn):
    """FinRL's `tic` was left out: two shares became one, on advice by dropping half of the rows."""
    frame = two_shares(column, "FB", "META2", in_turn=in_turn)
    for bars in (read_bars(save(frame, tmp_path)).bars, read_bars(frame).bars):
        assert list(bars["symbol"].unique()) == ["FB", "META2"]
        assert len(bars) == len(frame)
    with pytest.raises(BarDataError, match=r"several values|holds 2 instruments"):
        if in_turn and column == "Name":
            bars_of_frame(frame.sort_values("Name"), "A")
        else:
            bars_of_frame(frame.sort_values(column), "A")


@pytest.mark.parametrize(
    ("first", "second", "in_turn"),
    [
        *(("FB", "META2", True), ("FB", "META2", False), (7, 8, True), ("T", "F", True)),
        *(("000001", "600000", True), ("000001", "600000", False), ("平安银行", "浦发银行", False)),
    ],
)
def test_an_unread_column_that_tells_shares_apart_is_named(tmp_path, first, second, in_turn):
    path = save(two_shares("gp", first, second, in_turn=in_turn), tmp_path)
    for as_is in (True, False):
        with pytest.raises(
            BarDataError, match=rf"'gp' has several values \({first}, {second}\)"
        ) as caught:
            read_bars(path, as_is=as_is)
    assert "--columns symbol=gp " in str(caught.value)
    assert "--columns symbol= " in str(caught.value)
    assert read_bars(path, columns={"symbol": "gp"}).bars["symbol"].nunique() == 2
    if not in_turn:
        assert len(read_bars(path, columns={"symbol": ""}).bars) == 60


HARMLESS = {
    "weekday": [*DAYS.day_name()],
    "tradestatus": ["1"] * 50 + ["0"] * 10,
    "adjustflag": ["3"] * 60,
    "currency": ["USD"] * 60,
    "停牌": ["是"] * 20 + ["否"] * 40,
    "session": ["am", "pm"] * 30,
    "quarter": ["2023Q1"] * 30 + ["2023Q2"] * 30,
    "note": [""] * 30 + ["ex-dividend"] * 2 + [""] * 28,
    "news": [f"headline {number}" for number in range(60)],
    "涨跌幅%": [f"{number % 7}.1%" for number in range(60)],
    "report": ["2023-03-31"] * 30 + ["2023-06-30"] * 30,
    "year": [2022] * 30 + [2023] * 30,
    "state": ["bull", "bear", "bull"] * 20,
    "stock": [float(number) for number in range(60)],
}


@pytest.mark.parametrize("column", HARMLESS)
def test_what_is_plainly_no_symbol_is_left_out(tmp_path, column):
    frame = walk().assign(**{column: HARMLESS[column]})
    check(read_bars(save(frame, tmp_path)).bars, walk())
    assert len(bars_of_frame(frame, "A")) == 60


def test_names_beside_a_symbol_are_no_symbol(tmp_path):
    frame = two_shares("symbol", "AAPL", "MSFT").assign(name=lambda bars: bars["symbol"] + " Inc.")
    frame["industry"] = frame["symbol"].map({"AAPL": "phones", "MSFT": "clouds"})
    assert read_bars(save(frame, tmp_path)).bars["symbol"].unique().tolist() == ["AAPL", "MSFT"]
    only = read_bars(save(walk().assign(name="Apple"), tmp_path, "AAPL.csv")).bars
    assert only["symbol"].unique().tolist() == ["AAPL"]


def test_the_finest_name_of_an_instrument_is_the_symbol(tmp_path):
    """A constant `asset_id` beside `tic` would make one share of two."""
    frame = two_shares("tic", "AAPL", "MSFT")
    frame.insert(0, "asset_id", "equity")
    assert read_bars(save(frame, tmp_path)).bars["symbol"].nunique() == 2
    only = read_bars(save(walk().assign(asset="equity"), tmp_path, "AAPL.csv"))
    assert only.bars["symbol"].unique().tolist() == ["AAPL"]
    for constant in ("code", "instrument"):  # known, and yet no instrument's
        doubled = frame.drop(columns="asset_id").assign(**{constant: "equity"})
        with pytest.raises(
            BarDataError, match=r"60 of 120 bars .*'tic' \(AAPL, MSFT\).*symbol=tic"
        ):
            read_bars(save(doubled, tmp_path), as_is=True)


def test_two_periods_in_one_table_are_named(tmp_path):
    """vn.py's database keeps bars of minutes and hours side by side."""
    frame = two_shares("interval", "1m", "1h").assign(symbol="rb2405")
    with pytest.raises(
        BarDataError, match=r"'interval' \(1m, 1h\) distinguishes them: keep the rows"
    ):
        read_bars(save(frame, tmp_path), as_is=True)


def test_a_bar_written_twice_makes_no_symbol_of_a_flag(tmp_path):
    frame = walk().assign(session=["am", "pm"] * 30)
    path = save(pd.concat([frame, frame.tail(1).assign(session="am")]), tmp_path)
    assert len(read_bars(path, as_is=True).bars) == 61


@pytest.mark.parametrize(
    ("symbol", "says"),
    [
        ("A\ufeffB", r"U\+FEFF \(byte-order mark\)"),
        ("A\u200bB", r"U\+200B \(zero width space\)"),
        ("A\x07B", r"U\+0007"),
        ("x" * 300, "has 300 letters"),
        ("股" * 100, "100 letters, 300 bytes"),
    ],
)
def test_a_symbol_that_no_folder_can_be_called_is_refused_by_row(tmp_path, symbol, says):
    frame = walk().assign(symbol=["AB"] * 30 + [symbol] * 30)
    with pytest.raises(BarDataError, match=rf"row 32, column 'symbol': .*{says}"):
        read_bars(save(frame, tmp_path))
    with pytest.raises(ConfigError, match=says):
        read_bars(walk(), symbol=symbol)


# Times


def test_date_and_time_of_metatrader_finam_and_stooq_are_one(tmp_path):
    """<NAME> was no known name, and a mapping of the date switched the time of day off."""
    bars = walk(MINUTES)
    frame = bars.rename(columns=lambda name: f"<{name.upper()}>").rename(
        columns={"<VOLUME>": "<VOL>"}
    )
    frame["<DATE>"] = bars["date"].dt.strftime("%Y.%m.%d")
    frame.insert(1, "<TIME>", bars["date"].dt.strftime("%H:%M:%S"))
    path = save(frame, tmp_path, sep="\t")
    check(read_bars(path).bars, bars)
    mapped = {"date": "<DATE>"}
    with pytest.raises(BarDataError, match=r"33 of 36 bars .*column '<TIME>'.*time=\"<TIME>\""):
        read_bars(path, columns=mapped, as_is=True)
    check(read_bars(path, columns={**mapped, "time": "<TIME>"}).bars, bars)
    for clock in ("%H%M%S", "%H%M"):
        numbers = bars["date"].dt.strftime(clock).astype(int)  # 93500 or 935: zeros are lost
        finam = frame.assign(**{"<TICKER>": "GAZP", "<PER>": 5, "<TIME>": numbers})
        finam["<DATE>"] = bars["date"].dt.strftime("%Y%m%d")
        finam = finam.rename(columns={"<DATE>": "<DTYYYYMMDD>"})
        check(read_bars(save(finam, tmp_path, sep=";")).bars, bars)


def test_baostocks_minutes_are_read(tmp_path):
    """`time` counts seventeen digits; no setting read it, and `date=date` gave 141 duplicates."""
    bars = walk(MINUTES)
    frame = bars.assign(date=bars["date"].dt.strftime("%Y-%m-%d"), code="sh.600000", adjustflag=3)
    frame.insert(1, "time", bars["date"].dt.strftime("%Y%m%d%H%M%S000"))
    path = save(frame, tmp_path)
    check(read_bars(path).bars, bars)
    for given in ({"date": "time"}, {"date": "date", "time": "time"}):
        check(read_bars(path, columns=given).bars, bars)
    with pytest.raises(BarDataError, match=r"column 'time' has it.*--columns date=time "):
        read_bars(path, columns={"date": "date"}, as_is=True)


@pytest.mark.parametrize("whole", ["trade_time", "datetime", "timestamp", "time_key"])
def test_a_whole_time_beside_the_day_is_the_time(tmp_path, whole):
    """Of tushare's 144 minute bars the day was read, and three bars stayed."""
    bars = walk(MINUTES)
    frame = bars.assign(trade_date=bars["date"].dt.strftime("%Y%m%d")).rename(
        columns={"date": whole}
    )
    check(read_bars(save(frame, tmp_path)).bars, bars)


def test_a_column_with_the_time_of_day_is_named_where_days_repeat(tmp_path):
    bars = walk(MINUTES)
    frame = bars.assign(date=bars["date"].dt.date, UpdateTime=bars["date"].dt.strftime("%H:%M:%S"))
    path = save(frame.assign(symbol="A"), tmp_path)
    with pytest.raises(BarDataError, match=r"--columns time=UpdateTime "):
        read_bars(path, as_is=True)
    check(read_bars(path, columns={"time": "UpdateTime"}).bars, bars)


@pytest.mark.parametrize(
    "form",
    [
        *("%Y%m%d%H%M", "%Y%m%d%H%M%S", "%Y%m%d%H%M%S000", "%Y%m%d %H%M%S", "%Y.%m.%d %H:%M"),
        *("%Y年%m月%d日 %H:%M", "%d-%b-%Y %H:%M", "%B %d, %Y %H:%M:%S", "%Y-%m-%d %I:%M %p"),
        *("%Y-%m-%dT%H:%M:%S.000000000", "%Y%m%dT%H%M%S"),
    ],
)
def test_times_that_can_mean_one_moment_are_read_everywhere(tmp_path, form):
    bars = walk(MINUTES)
    texts = bars["date"].dt.strftime(form)
    check(read_bars(save(bars.assign(date=texts), tmp_path)).bars, bars)
    assert list(to_times(texts)) == list(MINUTES)


@pytest.mark.parametrize("form", ["%d/%m/%Y", "%m/%d/%Y", "%d.%m.%Y %H:%M:%S", "%d-%m-%y"])
def test_day_first_dates_are_refused_everywhere(tmp_path, form):
    """The predictor read 02/01/2024 as 1 February, tables refused it. A day above 12 changes
    nothing: the next file may have none."""
    frame = walk().assign(date=DAYS.strftime(form))
    with pytest.raises(BarDataError, match=r'row 2, column .date.*date_order="dmy" or "mdy"'):
        read_bars(save(frame, tmp_path))
    with pytest.raises(
        CalendarError, match=r"number 1: .*pd\.to_datetime\(\.\.\., format="
    ) as caught:
        timestamps_of(frame["date"], 60, "A", "x_timestamp")
    assert f'"{form}"' in str(caught.value)
    order = "mdy" if form.startswith("%m") else "dmy"
    for source in (tmp_path / "bars.csv", frame):
        given = {"symbol": "A"} if source is frame else {}
        check(read_bars(source, date_order=order, **given).bars, walk())


def test_both_sides_of_a_change_of_clocks_keep_their_hour(tmp_path):
    """Pandas advised utc=True, which, followed, moves every bar off its wall-clock time."""
    times = pd.date_range("2024-03-06 09:30", periods=6, freq="B", tz="America/New_York")
    wall = times.tz_localize(None)
    texts = times.astype(str)
    assert {text[-6:] for text in texts} == {"-05:00", "-04:00"}
    table = read_bars(save(walk(wall).assign(date=texts), tmp_path))
    check(table.bars, walk(wall))
    assert any("time zone (-05:00) is dropped" in note for note in table.notes)
    assert list(to_times(texts)) == list(to_times(list(times))) == list(wall)
    with pytest.raises(CalendarError, match="carries no time zone, while those before have one"):
        to_times([texts[0], "2024-03-07 09:30:00"])


@pytest.mark.parametrize("texts", [False, True])
def test_days_that_begin_at_another_hour_of_utc_are_refused(texts):
    """Frankfurt's days at 22:00 UTC of the day before were forecast a day early."""
    times = pd.bdate_range("2023-08-11", periods=8, tz="Europe/Berlin").tz_convert("UTC")
    given = list(times.strftime("%Y-%m-%dT%H:%M:%SZ")) if texts else times
    with pytest.raises(CalendarError, match=r"x_timestamp: these are daily bars in UTC.*22:00"):
        timestamps_of(given, 8, "A", "x_timestamp")
    midnights = pd.date_range("2023-08-11", periods=8, tz="UTC")
    assert list(timestamps_of(midnights, 8, "A", "x")) == list(midnights.tz_localize(None))
    hours = pd.date_range("2023-08-11 22:00", periods=8, freq="h", tz="UTC")
    assert list(timestamps_of(hours, 8, "A", "x")) == list(hours.tz_localize(None))


def test_times_of_utc_are_not_taken_for_an_exchanges_own():
    """13:30 to 15:05 UTC, a New York morning, was continued as its afternoon."""
    times = pd.date_range("2024-05-20 13:30", periods=20, freq="5min", tz="UTC")
    frame = walk(times.tz_localize(None))
    for given in (times, times.strftime("%Y-%m-%dT%H:%M:%SZ")):
        with pytest.raises(CalendarError, match=r"series 0: x_timestamp is in UTC and XNYS keeps"):
            series_of_frames([frame], [given], None, 2, None, "XNYS", None)
    local = times.tz_convert("America/New_York")
    ahead = series_of_frames([frame], [local], None, 2, None, "XNYS", None)[0].ahead
    assert list(ahead) == list(pd.DatetimeIndex(["2024-05-20 11:10", "2024-05-20 11:15"]))
    series_of_frames([frame], [times], None, 2, None, "24/7", None)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_counts_since_1970_need_a_zone_and_get_one(tmp_path, unit):
    """Binance's klines; xtquant's days are midnights of Shanghai, 16:00 UTC of the day before."""
    bars = walk(MINUTES)
    utc = MINUTES.tz_localize("Asia/Shanghai").tz_convert("UTC").tz_localize(None)
    counts = utc.astype(f"datetime64[{unit}]").astype("int64")
    for source in (save(bars.assign(date=counts), tmp_path), bars.assign(date=counts, symbol="A")):
        with pytest.raises(
            BarDataError, match=r"since 1970, which are UTC: .*--zone Asia/Shanghai"
        ):
            read_bars(source)
        check(read_bars(source, zone="Asia/Shanghai").bars, bars)
    for given in (counts, list(counts.astype(str))):
        with pytest.raises(CalendarError, match="since 1970") as caught:
            to_times(given)
        advice = str(caught.value).split("with ")[-1]
        assert list(eval(advice, {"pd": pd, "times": given})) == list(MINUTES)  # it can be followed


def test_days_at_midnight_of_utc_stay_days(tmp_path):
    """Tiingo's 2024-01-02T00:00:00.000Z, in New York, would be an evening of the day before."""
    for dates in (DAYS.strftime("%Y-%m-%dT%H:%M:%S.000Z"), milliseconds(DAYS)):
        path = save(walk().assign(date=dates), tmp_path)
        with pytest.raises(BarDataError, match="--zone"):
            read_bars(path)
        check(read_bars(path, zone="America/New_York").bars, walk())
    with pytest.raises(ConfigError, match="zone is a name such as"):
        read_bars(path, zone="Asia/Shanghia")


@pytest.mark.parametrize(
    ("times", "says"),
    [
        (["2024-01", "2024-02"], "number 1: expected a date like .*got '2024-01'"),
        (pd.period_range("2024-01", periods=2, freq="M"), "got '2024-01'"),
        (["09:35", "09:40"], "got '09:35'"),
        ([20240102, 20240103], r"make days of them, with pd\.to_datetime"),
        (["2024-01-02", "nan"], "number 2: .*got 'nan'"),
        ([True, False], "numbers such as True"),
    ],
)
def test_odd_timestamps_are_refused_by_number(times, says):
    with pytest.raises(CalendarError, match=says):
        to_times(times)


def test_odd_timestamps_are_read():
    days = pd.date_range("2024-01-01", periods=3)
    for times in (
        days.to_period("D"),
        [day.date() for day in days],
        pd.Series(days.astype(str)).astype("category"),
        days.strftime("%Y%m%d"),
    ):
        assert list(to_times(times)) == list(days)


# Numbers


def written(frame: pd.DataFrame, price: str, volume: str = "{:.0f}") -> pd.DataFrame:
    texts = {name: frame[name].map(price.format) for name in PRICES}
    return frame.assign(**texts, volume=frame["volume"].map(volume.format))


def comma(frame: pd.DataFrame) -> pd.DataFrame:
    """Marks the other way round: 1,234.5 to 1.234,5."""
    swap = str.maketrans(",.", ".,")
    return frame.assign(
        **{name: frame[name].map(lambda text: text.translate(swap)) for name in (*PRICES, "volume")}
    )


TWO = walk().round(dict.fromkeys(PRICES, 2))


@pytest.mark.parametrize("mark", [";", "\t"])
@pytest.mark.parametrize("volume", ["{:.0f}", "{:,.0f}", "{:,.2f}"])
def test_decimal_commas_are_read_where_they_are_evident(tmp_path, mark, volume):
    """A volume of 123.456 in such a file is 123456: it was read a thousand times too small."""
    path = save(comma(written(TWO, "{:.2f}", volume)), tmp_path, sep=mark)
    check(read_bars(path).bars, TWO)
    check(read_bars(path, decimal=",").bars, TWO)


def test_thousands_are_read_where_they_are_evident(tmp_path):
    large = TWO.assign(**{name: TWO[name] * 1000 for name in PRICES}).round(2)
    for frame, price in ((TWO, "{:.2f}"), (large, "{:,.2f}"), (large, "{:.2f}")):
        path = save(written(frame, price, "{:,.0f}"), tmp_path)
        check(read_bars(path).bars, frame)
        check(read_bars(path, decimal=".").bars, frame)
        np.testing.assert_array_equal(
            bars_of_frame(written(frame, price, "{:,.0f}"), "A")[:, 4], frame["volume"]
        )
    indian = written(TWO, "{:.2f}").assign(volume="1,23,45,678")
    assert read_bars(save(indian, tmp_path)).bars["volume"].eq(12345678).all()


def test_a_comma_that_may_mean_either_is_refused(tmp_path):
    """1,234 is 1234 or 1.234: never a guess that is wrong by a thousand."""
    whole = written(walk().round(0), "{:.0f}").assign(volume="1,234")
    with pytest.raises(BarDataError, match=r"'1,234', which may be 1234 or 1\.234; .*--decimal"):
        read_bars(save(whole, tmp_path))
    assert read_bars(tmp_path / "bars.csv", decimal=".").bars["volume"].eq(1234).all()
    assert read_bars(tmp_path / "bars.csv", decimal=",").bars["volume"].eq(1.234).all()
    with pytest.raises(BarDataError, match=r"'1,234', which may be .*frame\['volume'\]\.str"):
        bars_of_frame(whole, "A")
    yen = comma(written(walk().assign(volume=5.5), "{:.3f}", "{}")).assign(volume="839815.0")
    path = save(yen, tmp_path, sep=";")  # a volume with a point does not make the price 20000
    with pytest.raises(BarDataError, match=r"column 'open': .*'20,000', which may be 20000 or"):
        read_bars(path)
    np.testing.assert_allclose(
        read_bars(path, decimal=",").bars["close"], walk()["close"], atol=1e-3
    )


def test_a_point_that_may_part_thousands_is_refused_between_semicolons(tmp_path):
    """Volumes of 1.234 and prices without decimals, as a German file of yen has them."""
    whole = written(walk().round(0), "{:.0f}").assign(volume="1.234")
    path = save(whole, tmp_path, sep=";")
    with pytest.raises(BarDataError, match=r"'1\.234', which may be 1234 or 1\.234; .*--decimal"):
        read_bars(path)
    assert read_bars(path, decimal=",").bars["volume"].eq(1234).all()
    assert read_bars(path, decimal=".").bars["volume"].eq(1.234).all()
    coins = written(TWO, "{:.2f}").assign(volume="1.234")  # prices show what the point is
    assert read_bars(save(coins, tmp_path, sep=";")).bars["volume"].eq(1.234).all()


def test_a_decimal_comma_between_commas_is_asked_about(tmp_path):
    path = save(comma(written(TWO, "{:.2f}")), tmp_path)
    with pytest.raises(BarDataError, match=r"row 2, column 'open': .*decimal mark or a slip"):
        read_bars(path)
    check(read_bars(path, decimal=",").bars, TWO)
    mixed = comma(written(TWO, "{:.2f}"))
    mixed.loc[3, "open"] = "20.5"
    with pytest.raises(BarDataError, match=r"'20,00', .*comma, but '20\.5' in row 5 has a decimal"):
        read_bars(save(mixed, tmp_path, sep=";"))


def test_letters_and_signs_beside_numbers(tmp_path):
    frame = written(TWO, "${:.2f}").assign(volume=[f"{v / 1e6:.2f}M" for v in TWO["volume"]])
    bars = read_bars(save(frame, tmp_path)).bars
    check(bars, TWO, *PRICES)
    np.testing.assert_allclose(bars["volume"], TWO["volume"].round(-4))
    for text, value in (
        ("1.2K", 1200),
        ("3b", 3e9),
        ("1.5万", 15000),
        ("2亿", 2e8),
        ("1 234", 1234),
    ):
        assert read_bars(save(TWO.assign(volume=text), tmp_path)).bars["volume"].eq(value).all()
    with pytest.raises(BarDataError, match=r"column 'close'.*'20K'; 'K' is read after volumes"):
        read_bars(save(TWO.assign(close="20K"), tmp_path))
    with pytest.raises(BarDataError, match=r"'0\.1%'; it is a percentage"):
        read_bars(save(TWO.assign(change="0.1%"), tmp_path), extra=["change"])
    with pytest.raises(BarDataError, match=r"row 4, column 'open'.*another currency sign"):
        save(frame.assign(open=[*frame["open"][:2], "€20", *frame["open"][3:]]), tmp_path)
        read_bars(tmp_path / "bars.csv")


# Whole files


def klines() -> pd.DataFrame:
    bars = walk(MINUTES)
    sizes = {"volume": bars["volume"], "close_time": milliseconds(MINUTES) + 299_999}
    rest = {"quote_volume": 7.0, "count": 5, "taker_buy_volume": 1.0, "taker_buy_quote_volume": 1.0}
    return pd.DataFrame({"open_time": milliseconds(MINUTES), **bars[PRICES], **sizes, **rest})


def vendors() -> dict[str, tuple[pd.DataFrame, dict[str, str], pd.DataFrame]]:
    """What each writes, how it is read, and what it says."""
    days, minutes = walk(), walk(MINUTES)
    gmt = minutes["date"].dt.strftime("%d.%m.%Y %H:%M:%S.000")
    new_york = MINUTES.tz_localize("America/New_York").tz_convert("UTC").tz_localize(None)
    numbered = {name: f"{place}. {name}" for place, name in enumerate((*PRICES, "volume"), start=1)}
    wind = {"date": "日期", "open": "开盘价(元)", "high": "最高价(元)", "low": "最低价(元)"}
    wind |= {"close": "收盘价(元)", "volume": "成交量(股)"}
    akshare = {"date": "日期", "open": "开盘", "high": "最高", "low": "最低", "close": "收盘"}
    vnpy = {name: f"{name}_price" for name in PRICES}
    return {
        "Binance": (klines(), {"zone": "UTC"}, minutes),
        "Yahoo": (days.rename(columns=str.title).assign(**{"Adj Close": 1.0}), {}, days),
        "Alpha Vantage": (days.rename(columns={"date": "timestamp", **numbered}), {}, days),
        "Polygon": (
            minutes.rename(columns={"date": "window_start"}).assign(
                window_start=milliseconds(new_york) * 10**6, ticker="AAPL", transactions=5
            ),
            {"zone": "America/New_York"},
            minutes,
        ),
        "Dukascopy": (
            minutes.assign(date=gmt).rename(columns={"date": "Gmt time"}).rename(columns=str.title),
            {"date_order": "dmy"},
            minutes,
        ),
        "OANDA": (
            minutes.assign(date=MINUTES.strftime("%Y-%m-%dT%H:%M:%S.000000000Z")),
            {"zone": "UTC"},
            minutes,
        ),
        "JoinQuant": (days.rename(columns={"date": ""}).assign(money=7.0), {}, days),
        "RiceQuant": (days.assign(order_book_id="600000.XSHG", total_turnover=7.0), {}, days),
        "Wind": (days.rename(columns=wind).assign(代码="600000.SH", 简称="浦发银行"), {}, days),
        "AKShare": (
            days.rename(columns={**akshare, "volume": "成交量"}).assign(
                股票代码="000001", 换手率=1
            ),
            {},
            days,
        ),
        "vn.py": (
            minutes.rename(columns={"date": "datetime", **vnpy}).assign(
                symbol="rb2405", exchange="SHFE", interval="1m", turnover=7.0, open_interest=5
            ),
            {},
            minutes,
        ),
        "backtrader": (
            minutes.assign(date=MINUTES.strftime("%Y-%m-%d"), time=MINUTES.strftime("%H:%M:%S"))
            .rename(columns=str.title)
            .assign(OpenInterest=0),
            {},
            minutes,
        ),
        "HistData": (minutes.assign(date=MINUTES.strftime("%Y%m%d %H%M%S")), {}, minutes),
        "Alpaca": (
            minutes.set_axis([*"tohlcv"], axis=1).assign(t=MINUTES.strftime("%Y-%m-%dT%H:%M:%SZ")),
            {"zone": "UTC"},
            minutes,
        ),
        "investing.com": (
            days.rename(columns={"close": "Price", "volume": "Vol."}).assign(
                date=DAYS.strftime("%b %d, %Y"), **{"Change %": "0.1%"}
            ),
            {},
            days,
        ),
        "Nasdaq": (
            days.rename(columns={"close": "Close/Last"}).assign(date=DAYS.strftime("%m/%d/%Y")),
            {"date_order": "mdy"},
            days,
        ),
        "CSMAR": (
            days.set_axis(
                ["Trddt", "Opnprc", "Hiprc", "Loprc", "Clsprc", "Dnshrtrd"], axis=1
            ).assign(Stkcd="000001"),
            {},
            days,
        ),
        "Futu": (
            days.rename(columns={"date": "time_key"}).assign(code="HK.00700", turnover_rate=0.1),
            {},
            days,
        ),
    }


@pytest.mark.parametrize("vendor", vendors())
def test_a_vendors_file_is_read(tmp_path, vendor):
    frame, how, wanted = vendors()[vendor]
    check(read_bars(save(frame, tmp_path), **how).bars, wanted)
    read = bars_of_frame(frame, vendor)
    np.testing.assert_array_equal(read[:, :5], wanted[[*PRICES, "volume"]].astype(np.float32))


def test_a_list_of_ccxt_has_no_names():
    frame = pd.DataFrame(klines()[["open_time", *PRICES, "volume"]].to_numpy().tolist())
    with pytest.raises(
        BarDataError, match=r"numbers and no names.*frame\.columns = \['date', 'open'"
    ):
        read_bars(frame, symbol="BTC")
    frame.columns = ["date", *PRICES, "volume"]
    frame["date"] = frame["date"].astype("int64")
    check(read_bars(frame, symbol="BTC", zone="UTC").bars, walk(MINUTES))


def test_yfinances_frame_of_one_ticker_is_forecast_and_of_two_refused():
    frame = walk().drop(columns="date").rename(columns=str.title)
    one = frame.set_axis(pd.MultiIndex.from_product([frame.columns, ["AAPL"]]), axis=1)
    np.testing.assert_array_equal(bars_of_frame(one, "A"), bars_of_frame(frame, "A"))
    with pytest.raises(BarDataError, match=r"2 instruments \(AAPL, MSFT\)"):
        bars_of_frame(pd.concat({"AAPL": frame, "MSFT": frame}, axis=1), "A")


def test_settings_reach_the_command_line_and_from_file(tmp_path, capsys):
    frame = comma(written(TWO, "{:.2f}")).assign(date=DAYS.strftime("%d/%m/%Y"))
    path = save(frame.rename(columns={"volume": "buy_volume"}), tmp_path)
    how = ["--decimal", ",", "--date-order", "dmy", "--columns", "volume="]
    assert main(["data", "check", str(path), *how]) == 0
    assert "volume is missing: set to 0" in capsys.readouterr().out
    windows = WindowDataset.from_file(
        path,
        {"test": 1.0},
        decimal=",",
        date_order="dmy",
        columns={"volume": "buy_volume"},
        lookback=30,
        horizon=5,
    )
    assert list(windows.table.calendar) == list(DAYS)
    klines().to_csv(tmp_path / "coin.csv", index=False)
    assert main(["data", "check", str(tmp_path / "coin.csv"), "--no-gaps"]) == 2
    assert "--zone" in capsys.readouterr().err
    assert main(["data", "check", str(tmp_path / "coin.csv"), "--no-gaps", "--zone", "UTC"]) == 0
    for bad in (
        {"date_order": "ydm"},
        {"decimal": "'"},
        {"zone": "Mars"},
        {"columns": {"date": ""}},
    ):
        with pytest.raises(ConfigError):
            read_bars(path, **bad)


def test_named_months_with_years_of_two_digits_are_read_where_the_order_is_given(tmp_path):
    """NSE's 02-Jan-23 was refused without a word of what was wrong with it or what to do."""
    bars = walk()
    path = save(bars.assign(date=bars["date"].dt.strftime("%d-%b-%y")), tmp_path)
    with pytest.raises(BarDataError, match=r"'02-Jan-23', whose year has two digits.*date_order"):
        read_bars(path)
    check(read_bars(path, date_order="dmy").bars, bars)
    with pytest.raises(CalendarError, match=r"two digits.*pd.to_datetime"):
        to_times(["02-Jan-23", "03-Jan-23"])


def test_dates_that_were_decimal_numbers_are_read(tmp_path):
    """A column of 20230102 with a cell missing once is 20230102.0 when pandas writes it again."""
    bars = walk()
    days = bars["date"].dt.strftime("%Y%m%d")
    check(read_bars(save(bars.assign(date=days.astype(float)), tmp_path)).bars, bars)
    with pytest.raises(BarDataError, match="expected a date like"):
        read_bars(save(bars.assign(date=days + ".5"), tmp_path))


@pytest.mark.parametrize("since", ["1899-12-30", "1970-01-01"])
def test_counts_of_days_are_told_with_the_way_to_convert_them(tmp_path, since):
    """44928 is a date to whoever looks at it in Excel."""
    bars = walk()
    days = (bars["date"] - pd.Timestamp(since)).dt.days
    path = save(bars.assign(date=days), tmp_path)
    with pytest.raises(BarDataError, match=rf"days since {since}.*origin=\"{since}\""):
        read_bars(path)
    assert (pd.to_datetime(days, unit="D", origin=since) == bars["date"]).all(), "as advised"


def test_offsets_of_several_zones_are_not_taken_for_one_clock(tmp_path):
    """Bars of Tokyo and New York in turn were one instrument, each by its own clock, in silence."""
    hours = pd.date_range("2024-03-06 14:30", periods=40, freq="h", tz="UTC")
    zones = ["Asia/Tokyo", "America/New_York"]
    texts = [time.tz_convert(zones[place % 2]).isoformat() for place, time in enumerate(hours)]
    path = save(walk(hours).assign(date=texts), tmp_path)
    with pytest.raises(BarDataError, match=r"from -05:00 to \+09:00.*zone="):
        read_bars(path)
    wanted = walk(hours.tz_convert("America/New_York").tz_localize(None))
    check(read_bars(path, zone="America/New_York").bars, wanted)
    with pytest.raises(CalendarError, match=r"from -05:00 to \+09:00.*tz_convert"):
        timestamps_of(texts, 40, "A", "x_timestamp")


def test_letters_of_a_zone_are_named(tmp_path):
    texts = walk()["date"].dt.strftime("%Y-%m-%d 16:00:00 EST")
    with pytest.raises(
        BarDataError, match=r"the letters EST may mean several zones; take them off"
    ):
        read_bars(save(walk().assign(date=texts), tmp_path))
    with pytest.raises(CalendarError, match="the letters EST"):
        to_times(list(texts))


@pytest.mark.parametrize("kind", [str, int])
def test_a_clock_of_bare_digits_is_no_symbol(tmp_path, kind):
    """Times such as 935 beside the day were to be mapped as the names of 12 instruments."""
    bars = walk(MINUTES)
    apart = bars.assign(date=MINUTES.normalize(), hhmm=MINUTES.strftime("%H%M").astype(int))
    apart["hhmm"] = apart["hhmm"].astype(kind)
    path = save(apart, tmp_path)
    for source in (path, apart.assign(symbol="A")):
        with pytest.raises(BarDataError, match=r"'hhmm' has it.*time=hhmm"):
            read_bars(source)
        check(read_bars(source, columns={"time": "hhmm"}).bars, bars)


def test_versions_of_one_share_are_not_sent_in_a_circle(tmp_path):
    """Prices as traded and adjusted in one file: without a symbol they were refused again."""
    both = pd.concat([walk().assign(adj="raw"), walk(seed=1).assign(adj="qfq")])
    with pytest.raises(BarDataError, match="one instrument, keep the rows of one value and say"):
        read_bars(save(both, tmp_path))


def test_a_second_bar_leads_to_the_command_that_explains_it(tmp_path):
    """The forecast of a file with rows appended twice said so, and nothing of what to do."""
    twice = pd.concat([walk(), walk().iloc[20:30]])
    with pytest.raises(BarDataError, match=r"a second bar for bars at 2023.*data check` says why"):
        read_bars(save(twice, tmp_path))
