"""Tables from elsewhere: read exactly, or refused with file, row and column."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.data.files.read import columns_from_pairs, read_bars, read_times, write_bars
from kronos_qlib.errors import BarDataError, CalendarError, ConfigError
from kronos_qlib.schema import LONG_COLUMNS

HEADER = "symbol,date,open,high,low,close,volume\n"
ROW = "000001,2024-01-02,10,11,9,10.5,100\n"
FIVE_MINUTES = Path(__file__).parents[2].parent / "shared" / "data" / "cn_5min_one_stock.csv"


def write(folder: Path, text: str, name: str = "bars.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_missing_amount_and_factor_are_filled_and_said(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="kronos_qlib"):
        table = read_bars(write(tmp_path, HEADER + ROW))
    assert tuple(table.bars.columns) == LONG_COLUMNS
    assert table.bars["amount"][0] == 100 * (10 + 11 + 9 + 10.5) / 4
    assert table.bars["factor"][0] == 1.0
    assert [note.split()[0] for note in table.notes] == ["amount", "factor"]
    assert all(note in caplog.text for note in table.notes)


def test_leading_zeros_stay(tmp_path):
    """000001 read as a number is 1, which no exchange knows."""
    path = write(tmp_path, HEADER + ROW)
    assert list(read_bars(path).bars["symbol"]) == ["000001"]
    frame = pd.read_csv(path, dtype={"symbol": str})
    frame.to_parquet(tmp_path / "bars.parquet")
    assert list(read_bars(tmp_path / "bars.parquet").bars["symbol"]) == ["000001"]


@pytest.mark.parametrize("symbol", ["NA", "NAN", "NULL", "TRUE", "INF", "1E5"])
def test_a_symbol_that_looks_like_something_else_stays_a_symbol(tmp_path, symbol):
    """Pandas takes Nano Labs' ticker NA for a missing value."""
    table = read_bars(write(tmp_path, HEADER + ROW.replace("000001", symbol)))
    assert list(table.bars["symbol"]) == [symbol]
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder, (HEADER + ROW).replace("symbol,", "").replace("000001,", ""), f"{symbol}.csv")
    assert list(read_bars(folder).bars["symbol"]) == [symbol]


def test_symbols_are_upper_cased_as_qlib_does(tmp_path):
    table = read_bars(write(tmp_path, HEADER + ROW.replace("000001", "sh600000")))
    assert list(table.bars["symbol"]) == ["SH600000"]


def test_symbols_that_differ_by_case_are_refused(tmp_path):
    path = write(tmp_path, HEADER + ROW.replace("000001", "abc") + ROW.replace("000001", "Abc"))
    with pytest.raises(BarDataError, match=r"'abc'.*'Abc'.*differ only by case"):
        read_bars(path)


def test_a_folder_is_read_by_stem_and_what_is_left_out_is_said(tmp_path):
    plain = (HEADER + ROW).replace("symbol,", "").replace("000001,", "")
    write(tmp_path, plain, "bbb.csv")
    write(tmp_path, plain.replace("10.5", "10.25"), "AAA.csv")
    write(tmp_path, "hello", "readme.txt")
    write(tmp_path, "hidden", ".DS_Store")
    table = read_bars(tmp_path)
    assert list(table.bars["symbol"]) == ["AAA", "BBB"]
    assert list(table.bars["close"]) == [10.25, 10.5]
    assert "files left out: readme.txt" in table.notes


def test_names_are_found_in_any_case_and_mapped_when_told(tmp_path):
    text = "Ticker,when,OPEN,High,low,Close,Vol,turnover\nx,20240102,1,2,0.5,1.5,10,99\n"
    path = write(tmp_path, text)
    with pytest.raises(BarDataError, match=r"no column 'date'.*date=THEIR_NAME"):
        read_bars(path)
    table = read_bars(path, columns={"date": "when"})
    assert table.bars["amount"][0] == 12.5, "turnover may be a rate: not taken unasked"
    assert "columns left out: turnover" in table.notes
    table = read_bars(path, columns={"date": "when", "amount": "turnover"})
    assert table.bars["amount"][0] == 99


@pytest.mark.parametrize(
    ("text", "unit"),
    [("1704067200", "s"), ("1704067200000", "ms"), ("1704067200000000", "us")],
)
def test_a_count_since_1970_is_told_with_its_unit(tmp_path, text, unit):
    """Binance's open_time was no known column, and its milliseconds just no date."""
    table = "open_time,open,high,low,close,volume\n2024-01-02 08:00,10,11,9,10.5,1\n"
    assert len(read_bars(write(tmp_path, table, "good.csv")).bars) == 1
    says = rf"row 2, column 'open_time'.*seconds since 1970.*pd\.to_datetime\(..., unit=\"{unit}\""
    with pytest.raises(BarDataError, match=says):
        read_bars(write(tmp_path, table.replace("2024-01-02 08:00", text)))
    frame = pd.read_csv(tmp_path / "bars.csv")
    with pytest.raises(BarDataError, match="since 1970"):
        read_bars(frame, symbol="X")
    with pytest.raises(BarDataError, match="expected a date like"):
        read_bars(write(tmp_path, table.replace("2024-01-02 08:00", "2024010208")))


@pytest.mark.parametrize(
    "text", ["1704067200000,42283.5,42554.5,42261.0,42475.2,1271\n", "2024-01-02,10,10,9,9,5\n"]
)
def test_a_first_row_that_is_a_bar_is_no_header(tmp_path, text):
    with pytest.raises(BarDataError, match=r"looks like a bar.*date,open,high") as caught:
        read_bars(write(tmp_path, text + text))
    assert "THEIR_NAME" not in str(caught.value)


@pytest.mark.parametrize("tickers", [["AAPL"], ["AAPL", "MSFT"], ["600000.SS", "0700.HK"]])
@pytest.mark.parametrize("by_ticker", [False, True])
def test_columns_of_two_levels_are_read(tmp_path, tickers, by_ticker):
    """yfinance's columns become three header rows, and two sentences of pandas were advised."""
    names = ("Close", "High", "Low", "Open", "Volume")
    columns = pd.MultiIndex.from_product([names, tickers], names=["Price", "Ticker"])
    index = pd.DatetimeIndex(["2024-01-02", "2024-01-03"], name="Date")
    frame = pd.DataFrame(np.arange(2.0 * len(columns)).reshape(2, -1) + 1, index, columns)
    frame.loc["2024-01-03", (slice(None), tickers[-1])] = np.nan  # that day others traded
    wanted = {ticker: frame.xs(ticker, axis=1, level=1) for ticker in tickers}
    if by_ticker:
        frame = frame.swaplevel(axis=1).sort_index(axis=1)
    frame.to_csv(tmp_path / "yf.csv")
    frame.reset_index().to_csv(tmp_path / "reset.csv", index=False)
    for source in (frame, frame.reset_index(), tmp_path / "yf.csv", tmp_path / "reset.csv"):
        table = read_bars(source)
        assert any("columns of two levels" in note for note in table.notes)
        for ticker, own in wanted.items():
            read = table.bars[table.bars["symbol"] == ticker]
            own = own.dropna()
            assert list(read["date"]) == list(own.index)
            np.testing.assert_array_equal(read["close"], own["Close"])
            np.testing.assert_array_equal(read["volume"], own["Volume"])


def test_a_bad_cell_under_two_levels_is_named_by_its_row(tmp_path):
    text = "Price,Open,High,Low,Close\nTicker,A,A,A,A\nDate,,,,\n2024-01-02,1,x,1,1\n"
    with pytest.raises(BarDataError, match=r"row 4, column 'High': expected a number, got 'x'"):
        read_bars(write(tmp_path, text))


def test_an_adjusted_close_beside_the_close_is_told(tmp_path):
    text = "date,Open,High,Low,Close,Adj Close,Volume\n2024-01-02,10,11,9,10,5,100\n"
    table = read_bars(write(tmp_path, text))
    assert any("factor = Adj Close / Close, multiply" in note for note in table.notes)
    assert table.bars["close"].tolist() == [10.0] and table.bars["factor"].tolist() == [1.0]
    assert not any("Adj" in note for note in read_bars(write(tmp_path, HEADER + ROW)).notes)


@pytest.mark.parametrize(
    ("symbol", "qlibs"),
    [
        ("600000.SH", "SH600000"),
        ("sh.600000", "SH600000"),
        ("000001.XSHE", "SZ000001"),
        ("600000.ss", "SH600000"),
    ],
)
def test_symbols_that_qlib_spells_otherwise_stay_and_are_told(tmp_path, symbol, qlibs):
    table = read_bars(write(tmp_path, HEADER + ROW.replace("000001", symbol)))
    assert table.bars["symbol"].tolist() == [symbol.upper()]
    assert [note for note in table.notes if qlibs in note]
    assert not [note for note in read_bars(write(tmp_path, HEADER + ROW)).notes if "Qlib" in note]


def test_two_columns_for_one_thing_are_ambiguous(tmp_path):
    text = "symbol,date,timestamp,open,high,low,close,volume\nA,2024-01-02,1,1,1,1,1,1\n"
    with pytest.raises(BarDataError, match=r"'date' and 'timestamp' could both.*date=date"):
        read_bars(write(tmp_path, text))
    assert len(read_bars(write(tmp_path, text), columns={"date": "date"}).bars) == 1


CLOCK = "日期,时间,开盘,最高,最低,收盘,成交量\n"


@pytest.mark.parametrize(
    "text",
    [
        *("09:35", "9:35:00", "0935", "093500", "09:35:00.0", "2024-01-02 09:35", "20240102 9:35"),
        *("93500", "9:35 AM", "20240102093500000", "20240102093500", "202401020935"),
    ],
)
@pytest.mark.parametrize("header", [CLOCK, "Date,Time,Open,High,Low,Close,Vol\n"])
def test_date_and_time_of_day_in_two_columns_are_one_time(tmp_path, header, text):
    """The date alone would put a day's bars on one moment, midnight."""
    table = read_bars(write(tmp_path, f"{header}2024/1/2,{text},1,1,1,1,5\n", "600000.csv"))
    assert list(table.bars["date"]) == [pd.Timestamp("2024-01-02 09:35")]
    assert any("time of day from " in note for note in table.notes)


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        ("2024-01-02,935", "expected a date.*'日期' and '时间' make no time.*date=日期"),
        ("2024-01-02,", "row 2, column '时间'"),
        ("2024-01-02,25:00", "expected a time of day like 09:35"),
        ("2024-01-02,2024-01-03 09:35", "does not fit '日期'"),
        ("2024-01-02 09:30,09:35", "does not fit '日期'"),
        ("2024-01-02,20240103093500000", "does not fit '日期'"),
    ],
)
def test_date_and_time_of_day_that_do_not_fit_are_refused(tmp_path, cells, says):
    with pytest.raises(BarDataError, match=says):
        read_bars(write(tmp_path, f"{CLOCK}{cells},1,1,1,1,5\n"))


def test_digits_alone_are_a_time_of_day_only_if_equally_many(tmp_path):
    """1035 may be 10:35, or 00:10:35 without its zeros."""
    with pytest.raises(BarDataError, match=r"row 3.*got '1035'"):
        read_bars(write(tmp_path, f"{CLOCK}20240102,103000,1,1,1,1,5\n20240102,1035,1,1,1,1,5\n"))


VENDORS = {
    "Tushare": "ts_code,trade_date,open,high,low,close,pre_close,vol,amount",
    "AKShare": "股票代码,日期,开盘,最高,最低,收盘,振幅,成交量,成交额",
    "Wind": "证券代码,交易日期,开盘价,最高价,最低价,收盘价,换手率,成交量,成交金额",
    "Kronos": "Ticker,TimeStamps,Open,High,Low,Close,x,Volume,Amount",
    "a coin exchange": "symbol,timestamp,open,high,low,close,trades,volume,quote_volume",
    "JoinQuant": "code,time,open,high,low,close,x,volume,money",
}


@pytest.mark.parametrize("vendor", VENDORS)
def test_the_vendors_own_names_are_known_and_told(tmp_path, vendor):
    header = VENDORS[vendor]
    table = read_bars(write(tmp_path, f"{header}\n600000.SH,20240102,1,4,0.5,2,7,100,150\n"))
    read = table.bars.loc[0, ["open", "high", "low", "close", "volume", "amount"]].tolist()
    assert (table.bars["symbol"][0], *read) == ("600000.SH", 1, 4, 0.5, 2, 100, 150)
    renamed = header.split(",")[1]
    assert any(f"date from {renamed!r}" in note for note in table.notes)


def test_an_adjustment_factor_in_chinese_is_read(tmp_path):
    text = "日期,开盘,最高,最低,收盘,成交量,复权因子\n2024-01-02,1,1,1,1,5,0.5\n"
    assert read_bars(write(tmp_path, text)).bars["factor"][0] == 0.5


def test_volume_may_be_missing(tmp_path):
    text = "timestamps,open,high,low,close\n2024-01-02 09:35,1,2,0.5,1.5\n2024-01-02 09:40,,,,\n"
    table = read_bars(write(tmp_path, text))
    assert table.bars[["volume", "amount"]].eq(0).all(axis=None), "also where prices are missing"
    assert "volume is missing: set to 0" in table.notes
    text = "timestamps,open,high,low,close,amount\n2024-01-02 09:35,1,2,0.5,1.5,7\n"
    assert read_bars(write(tmp_path, text)).bars["amount"][0] == 7


def test_a_chinese_encoding_is_suggested_and_read(tmp_path):
    path = tmp_path / "600000.csv"
    path.write_bytes((CLOCK + "2024-01-02,09:35,1,1,1,1,5\n").encode("gb18030"))
    with pytest.raises(BarDataError, match=r'600000\.csv: not UTF-8.*encoding="gb18030"'):
        read_bars(path)
    assert list(read_bars(path, encoding="gb18030").bars["symbol"]) == ["600000"]
    path.write_text(HEADER + ROW, encoding="utf-16")
    assert len(read_bars(path, encoding="utf-16").bars) == 1
    for wrong in ("gb18031", "base64", "undefined", "\0"):
        with pytest.raises(ConfigError, match="no text encoding"):
            read_bars(path, encoding=wrong)


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_the_delimiter_is_found_in_the_header(tmp_path, mark):
    path = write(tmp_path, (f"\n{HEADER}{ROW}").replace(",", mark))
    assert read_bars(path).bars["close"][0] == 10.5
    assert read_bars(path, delimiter="tab" if mark == "\t" else mark).bars["close"][0] == 10.5


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_is_known_by_its_mark(tmp_path, encoding):
    path = tmp_path / "600000.csv"
    path.write_bytes(("\ufeff" + HEADER + ROW).encode(encoding))
    with pytest.raises(BarDataError, match=r'not UTF-8.*encoding="utf-16"') as caught:
        read_bars(path)
    assert "gb18030" not in str(caught.value)
    assert len(read_bars(path, encoding="utf-16").bars) == 1


@pytest.mark.parametrize("comment", ["# exported", "# exported, by me", "# a; b, c"])
def test_a_comment_above_the_header_is_told(tmp_path, comment):
    with pytest.raises(BarDataError, match=rf"the first line is '{comment}', a comment") as caught:
        read_bars(write(tmp_path, f"{comment}\n{HEADER}{ROW}"))
    assert "delimiter=" not in str(caught.value)


def test_a_delimiter_that_cannot_be_told_is_asked_for(tmp_path):
    text = HEADER.replace("close", '"the close; adjusted"') + ROW
    assert len(read_bars(write(tmp_path, text), columns={"close": "the close; adjusted"}).bars) == 1
    path = write(tmp_path, (HEADER + ROW).replace(",", ";").replace("close", "close,adjusted"))
    with pytest.raises(BarDataError, match=r"row 1.*comma or semicolon; name the delimiter"):
        read_bars(path)
    assert len(read_bars(path, delimiter=";", columns={"close": "close,adjusted"}).bars) == 1
    with pytest.raises(BarDataError, match="has no comma or semicolon or tab or"):
        read_bars(write(tmp_path, (HEADER + ROW).replace(",", " ")))
    for wrong in ("", ";;", '"', "\n"):
        with pytest.raises(ConfigError, match="one character"):
            read_bars(path, delimiter=wrong)


@pytest.fixture
def frame() -> pd.DataFrame:
    prices = {"open": [1.0, 2.0], "high": 4.0, "low": 0.5, "close": 2.0, "volume": 5}
    return pd.DataFrame({"date": pd.to_datetime(["2024-01-02", "2024-01-03"]), **prices})


def test_a_frame_is_read_like_a_file_and_stays_as_it_is(frame):
    before = frame.copy()
    assert list(read_bars(frame, symbol="sh600000").bars["symbol"]) == ["SH600000"] * 2
    with pytest.raises(BarDataError, match=r"no column 'symbol'.*symbol='SH600000'"):
        read_bars(frame)
    owned = frame.assign(code=["A", "B"])
    assert list(read_bars(owned).bars["symbol"]) == ["A", "B"]
    with pytest.raises(ConfigError, match="leave out one"):
        read_bars(owned, symbol="A")
    with pytest.raises(ConfigError, match="must name an instrument"):
        read_bars(frame, symbol=" ")
    with pytest.raises(BarDataError, match=r"the frame, row 2, column 'open': .* got 'x'"):
        read_bars(frame.assign(open=[1, "x"]), symbol="A")
    pd.testing.assert_frame_equal(frame, before)


def test_a_frames_times_may_stand_in_its_index(frame):
    for name in (None, "date", "whatever"):
        moved = frame.set_index("date").rename_axis(name)
        assert list(read_bars(moved, symbol="A").bars["date"]) == list(frame["date"])
    qlib = frame.assign(instrument="A").set_index(["instrument", "date"])
    assert list(read_bars(qlib).bars["symbol"]) == ["A", "A"]
    own = frame.set_index(pd.date_range("2020-01-01", periods=2))
    assert list(read_bars(own, symbol="A").bars["date"]) == list(frame["date"])
    with pytest.raises(BarDataError, match="level 0 of the index has no name"):
        read_bars(qlib.rename_axis([None, "date"]))
    with pytest.raises(BarDataError, match="'date'; rename or drop one"):
        read_bars(frame.set_index("date", drop=False), symbol="A")
    with pytest.raises(BarDataError, match=r"time zone.*\.tz_localize\(None\)"):
        read_bars(frame.set_index("date").tz_localize("UTC"), symbol="A")


def test_a_zone_in_a_column_that_is_left_out_does_no_harm(frame):
    seen = frame.assign(seen=frame["date"].dt.tz_localize("UTC"))
    assert "columns left out: seen" in read_bars(seen, symbol="A").notes


def test_a_folder_has_not_one_symbol(tmp_path):
    path = write(tmp_path, (HEADER + ROW).replace("symbol,", "").replace("000001,", ""))
    assert list(read_bars(path, symbol="X").bars["symbol"]) == ["X"]
    with pytest.raises(ConfigError, match="not all the one symbol 'X'"):
        read_bars(tmp_path, symbol="X")


def test_a_year_beyond_what_pandas_counts_is_refused(frame):
    late = frame.assign(date=np.array(["2024-01-02", "9999-12-31"], dtype="datetime64[s]"))
    with pytest.raises(BarDataError, match="row 2, column 'date': the year 9999"):
        read_bars(late, symbol="A")


def test_extra_columns_come_along_when_asked(tmp_path):
    path = write(tmp_path, HEADER.strip() + ",pe\n" + ROW.strip() + ",12.5\n")
    assert read_bars(path, extra=["pe"]).bars["pe"][0] == 12.5
    with pytest.raises(BarDataError, match="no column 'pb'"):
        read_bars(path, extra=["pb"])


@pytest.mark.parametrize(
    "text",
    ["2024-06-18", "2024/6/18", "2024.06.18", "20240618", "2024-06-18 00:00:00", "2024-6-18T0:00"],
)
def test_dates_that_can_mean_one_day_only_are_read(tmp_path, text):
    table = read_bars(write(tmp_path, HEADER + ROW.replace("2024-01-02", text)))
    assert table.bars["date"][0] == pd.Timestamp("2024-06-18")


@pytest.mark.parametrize("text", ["01/02/2024", "2024-02-30", "2024-13-01", "2024-01/02"])
@pytest.mark.parametrize("tail", ["", " 09:35:00"])
def test_dates_that_are_none_are_refused_by_row_and_column(tmp_path, text, tail):
    """01/02/2024 is January in one country and February in the next."""
    path = write(tmp_path, HEADER + ROW + ROW.replace("2024-01-02", text + tail))
    with pytest.raises(BarDataError, match=r"bars\.csv, row 3, column 'date'"):
        read_bars(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "NaT",
        "2024-01",
        "240102",
        "1704153600",
        "0001-01-01",
        "2024-01-02 25:00:00",
        "2024-01-02 9:35Z",
    ],
)
def test_other_dates_are_refused_by_row_and_column(tmp_path, text):
    path = write(tmp_path, HEADER + ROW + ROW.replace("2024-01-02", text))
    with pytest.raises(BarDataError, match=r"bars\.csv, row 3, column 'date'"):
        read_bars(path)


@pytest.mark.parametrize("text", ["abc", "1,5", "1_000", "0x10", "1.5.2", "10 11", "$5"])
def test_a_number_that_is_none_is_refused_by_row_and_column(tmp_path, text):
    path = write(tmp_path, HEADER + ROW + ROW.replace("10.5", f'"{text}"').replace("-02", "-03"))
    with pytest.raises(BarDataError, match=r"bars\.csv, row 3, column 'close'"):
        read_bars(path)


def test_an_empty_number_is_a_missing_one(tmp_path):
    table = read_bars(write(tmp_path, HEADER + ROW.replace("10.5", "")))
    assert table.bars["close"].isna().all()


def test_rows_count_as_an_editor_counts_them(tmp_path):
    """Blank lines and a byte order mark are no bars, but an editor counts the lines."""
    path = write(tmp_path, "\ufeff" + HEADER + "\n\n" + ROW + ",,,,,,\n" + ROW.replace("10.5", "x"))
    with pytest.raises(BarDataError, match="row 6, column 'close'"):
        read_bars(path)


BAD = ROW.replace("10.5", "x")


@pytest.mark.parametrize(
    ("text", "row"),
    [
        (HEADER.replace("\n", "\r\n") + ROW.replace("\n", "\r") + ROW + BAD, 4),
        (HEADER + ROW.replace("000001", '"00\n00\r\n01"') + ROW + BAD, 6),
        (HEADER.replace("volume", '"vol\nume"') + ROW + BAD, 4),
        (HEADER + '\n""\n,,\n,,,,,,,,,\n' + BAD, 6),
        (" \n ,\n\ufeff\n" + HEADER + BAD, 5),
    ],
)
def test_rows_count_where_lines_end_in_any_way_and_cells_span_them(tmp_path, text, row):
    """A line of one blank above the header was taken for the header, of one column."""
    path = tmp_path / "bars.csv"
    for last, says in (
        (BAD, "row {}, column 'close': expected a number, got 'x'"),
        ("1,2\n", "row {}: 2 values, the header has 7 columns"),
    ):
        path.write_bytes(text.replace(BAD, last).replace("00\n00\r\n01", "a\n\r\nb").encode())
        with pytest.raises(BarDataError, match=says.format(row)):
            read_bars(
                path,
                columns={"volume": "vol\nume", "symbol": ""} if "vol\n" in text else {"symbol": ""},
            )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('"10"5', "row 3: not CSV"),  # pandas and Arrow make 105 of it
        ('"10.5', "row 3: not CSV"),
        ("10.5\x00", "row 3, column 'close': expected a number"),
        ('10"5', "row 3, column 'close': expected a number"),
    ],
)
def test_a_part_of_a_cell_is_never_read_for_the_whole(tmp_path, text, says):
    path = write(tmp_path, HEADER + ROW + ROW.replace("-02", "-03").replace("10.5", text))
    with pytest.raises(BarDataError, match=says):
        read_bars(path)


def test_a_second_bar_on_one_day_is_refused_where_it_stands(tmp_path):
    path = write(tmp_path, HEADER + ROW + ROW.replace("000001", "2") + ROW)
    with pytest.raises(BarDataError, match="row 4, column 'date': a second bar for 000001"):
        read_bars(path)


def test_a_second_bar_in_a_second_file_is_refused(tmp_path):
    write(tmp_path, HEADER + ROW, "a.csv")
    write(tmp_path, HEADER + ROW.replace("000001", "000002") + ROW, "b.csv")
    with pytest.raises(BarDataError, match=r"b\.csv, row 3"):
        read_bars(tmp_path)


def test_read_as_it_is_keeps_repeats_and_order_and_stays_as_strict(tmp_path):
    """A reader that stops at the first repeat leaves nothing for check and repair to do."""
    late = ROW.replace("-02", "-03")
    path = write(tmp_path, HEADER + late + ROW + late.replace("10.5", "10.25"))
    bars = read_bars(path, as_is=True).bars
    assert bars["date"].dt.day.tolist() == [3, 2, 3]
    assert bars["close"].tolist() == [10.5, 10.5, 10.25]
    with pytest.raises(BarDataError, match="row 3, column 'close'"):
        read_bars(write(tmp_path, HEADER + ROW + ROW.replace("10.5", "x")), as_is=True)


@pytest.mark.parametrize("name", ["new/bars.csv", "bars.parquet", "bars.feather"])
def test_written_bars_are_read_back(tmp_path, name):
    bars = read_bars(write(tmp_path, HEADER + ROW + ROW.replace("-02", "-03 09:35"))).bars
    bars.loc[1, "volume"] = float("nan")
    write_bars(bars, tmp_path / name)
    pd.testing.assert_frame_equal(read_bars(tmp_path / name).bars, bars, check_dtype=False)


def test_a_written_file_replaces_another_only_when_told(tmp_path, monkeypatch):
    target = write(tmp_path, HEADER + ROW)
    bars = read_bars(target).bars
    with pytest.raises(ConfigError, match="overwrite"):
        write_bars(bars, target)
    with pytest.raises(ConfigError, match="ending in"):
        write_bars(bars, tmp_path / "bars.xlsx")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        write_bars(bars, tmp_path / "folder.csv", overwrite=True)
    with pytest.raises(BarDataError, match="no bars"):
        write_bars(bars.iloc[:0], tmp_path / "none.csv")
    assert target.read_text(encoding="utf-8") == HEADER + ROW
    write_bars(bars, target, overwrite=True)
    assert read_bars(target).notes == ()

    before = target.read_bytes()
    finish = pd.DataFrame.to_csv

    def fail(*args: object, **kwargs: object) -> None:
        finish(*args, **kwargs)
        raise OSError("disk full")

    monkeypatch.setattr(pd.DataFrame, "to_csv", fail)
    with pytest.raises(OSError, match="disk full"):
        write_bars(bars.assign(close=1.0), target, overwrite=True)
    assert target.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bars.csv", "folder.csv"]


def test_a_calendar_is_read_line_by_line(tmp_path):
    path = write(tmp_path, "\ufeff2024-10-08\r\n\r\n20241009\n2024/10/10 09:35\n", "days.txt")
    expected = ["2024-10-08", "2024-10-09", "2024-10-10 09:35"]
    assert list(read_times(path)) == [pd.Timestamp(time) for time in expected]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("2024-10-08\n\n10/09/2024\n", r"days\.txt, line 3: expected a date .* got '10/09/2024'"),
        ("trade_date\n2024-10-08\n", r"days\.txt, line 1"),
        ("\n \n", r"days\.txt: the file holds no dates"),
    ],
)
def test_a_broken_calendar_is_refused_by_line(tmp_path, text, says):
    with pytest.raises(CalendarError, match=says):
        read_times(write(tmp_path, text, "days.txt"))


def test_a_calendar_that_is_no_text_file(tmp_path):
    with pytest.raises(CalendarError, match="no such file"):
        read_times(tmp_path / "days.txt")
    (tmp_path / "days.txt").write_bytes(b"2024-10-08\n\xe9")
    with pytest.raises(CalendarError, match=r"days\.txt: not UTF-8"):
        read_times(tmp_path / "days.txt")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        (HEADER, "holds no bars"),
        (HEADER.replace("low,", ""), "holds no bars"),
        (HEADER.replace("low,", "") + ROW.replace("9,", ""), "no column 'low'"),
        (HEADER.replace("low", "high") + ROW, "two columns are called 'high'"),
        (HEADER + "A,2024-01-02,1\n", "row 2: 3 values, the header has 7"),
        (HEADER + '"A,2024-01-02,1\n', "row 2: not CSV"),
        (HEADER + ROW.replace("000001", " "), "row 2, column 'symbol'"),
    ],
)
def test_a_broken_file_is_named(tmp_path, text, says):
    with pytest.raises(BarDataError, match=says) as caught:
        read_bars(write(tmp_path, text))
    assert "bars.csv" in str(caught.value)


def test_sources_that_are_none(tmp_path):
    with pytest.raises(BarDataError, match="no such file"):
        read_bars(tmp_path / "nothing.csv")
    with pytest.raises(BarDataError, match=r"the folder holds no \.csv"):
        read_bars(tmp_path)
    with pytest.raises(BarDataError, match=r"expected a file ending in \.csv"):
        read_bars(write(tmp_path, "x", "bars.xlsx"))
    with pytest.raises(BarDataError, match="cannot be read as Parquet"):
        read_bars(write(tmp_path, "x", "bars.parquet"))
    (tmp_path / "latin.csv").write_bytes(HEADER.encode() + "é".encode("latin-1"))
    with pytest.raises(BarDataError, match="not UTF-8"):
        read_bars(tmp_path / "latin.csv")


def test_parquet_may_keep_dates_in_the_index_and_a_time_zone_is_dropped(tmp_path):
    prices = dict.fromkeys(("open", "high", "low", "close"), 1.0)
    index = pd.DatetimeIndex(["2024-01-02", "2024-01-03"], name="date")
    frame = pd.DataFrame({**prices, "volume": 5}, index=index)
    frame.to_parquet(tmp_path / "X.parquet")
    assert list(read_bars(tmp_path / "X.parquet").bars["symbol"]) == ["X", "X"]
    frame.tz_localize("Asia/Shanghai").to_parquet(tmp_path / "X.parquet")
    table = read_bars(tmp_path / "X.parquet")
    assert list(table.bars["date"]) == list(index)
    assert any("time zone (+08:00) is dropped" in note for note in table.notes)
    frame.tz_localize("UTC").to_parquet(tmp_path / "X.parquet")
    with pytest.raises(BarDataError, match="local time"):
        read_bars(tmp_path / "X.parquet")


def test_number_symbols_in_parquet_are_told(tmp_path):
    frame = pd.DataFrame(
        {"code": [1], "date": ["2024-01-02"], "open": 1, "high": 1, "low": 1, "close": 1, "vol": 2}
    )
    frame.to_parquet(tmp_path / "bars.parquet")
    table = read_bars(tmp_path / "bars.parquet")
    assert list(table.bars["symbol"]) == ["1"]
    assert any("leading zeros" in note for note in table.notes)


def test_mappings_are_checked(tmp_path):
    assert columns_from_pairs(["date=a=b", "volume=v"]) == {"date": "a=b", "volume": "v"}
    for pairs in (["date"], ["=x"], ["date="], ["date=a", "date=b"]):
        with pytest.raises(ConfigError):
            columns_from_pairs(pairs)
    path = write(tmp_path, HEADER + ROW)
    with pytest.raises(ConfigError, match="'vol'; known"):
        read_bars(path, columns={"vol": "volume"})
    with pytest.raises(BarDataError, match="no column 'v'"):
        read_bars(path, columns={"volume": "v"})


@pytest.mark.skipif(not FIVE_MINUTES.exists(), reason=f"{FIVE_MINUTES} is not there")
def test_real_five_minute_bars_are_read_with_their_time():
    bars = read_bars(FIVE_MINUTES).bars
    assert len(bars) == 2500
    assert bars["date"][0] == pd.Timestamp("2024-06-18 11:15:00")
    assert bars["amount"][0] == 427161.0
