"""Any small table survives the way through a file; any junk is refused or read right."""

from __future__ import annotations

import csv
import math
import re
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kronos_qlib.data.files.read import read_bars, write_bars
from kronos_qlib.data.files.repair import repair_bars
from kronos_qlib.errors import BarDataError
from kronos_qlib.plugin.provider.writer import write_provider
from kronos_qlib.schema import LONG_COLUMNS

prices = st.floats(0.01, 1e6)
symbols = st.from_regex(r"[A-Z0-9^][A-Z0-9.=_-]{0,8}[A-Z0-9]", fullmatch=True)
BARS_COLUMNS = ["open", "high", "low", "close", "volume", "amount", "factor"]


@st.composite
def tables(draw: st.DrawFn) -> pd.DataFrame:
    """A valid long table: a few symbols, each on some of the same few days."""
    rows = []
    for symbol in draw(st.lists(symbols, min_size=1, max_size=3, unique=True)):
        for day in sorted(draw(st.sets(st.integers(0, 8), min_size=1))):
            low, *middle, high = sorted(draw(st.lists(prices, min_size=4, max_size=4)))
            volume, amount = draw(st.floats(0, 1e12)), draw(st.floats(0.01, 1e15))
            factor = draw(st.floats(0.01, 100))
            date = pd.Timestamp("2024-02-26") + pd.Timedelta(days=day)
            rows.append((symbol, date, middle[0], high, low, middle[1], volume, amount, factor))
    frame = pd.DataFrame(rows, columns=list(LONG_COLUMNS))
    return frame.sort_values(["symbol", "date"], ignore_index=True)


@settings(deadline=None, max_examples=60)
@given(tables(), st.sampled_from([".csv", ".parquet"]), st.booleans())
def test_a_table_comes_back_bit_for_bit(table, suffix, in_folder):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = [table] if not in_folder else [part for _, part in table.groupby("symbol")]
        for part in parts:
            stem = part["symbol"].iloc[0] if in_folder else "bars"
            kept = part.drop(columns="symbol") if in_folder else part
            if suffix == ".csv":
                kept.to_csv(folder / f"{stem}.csv", index=False)
            else:
                kept.to_parquet(folder / f"{stem}.parquet", index=False)
        read = read_bars(folder if in_folder else folder / f"bars{suffix}")
    pd.testing.assert_frame_equal(
        read.bars, table, check_exact=True, check_dtype=False, check_column_type=False
    )
    assert read.notes == ()


@settings(deadline=None, max_examples=60)
@given(tables(), st.sampled_from([".csv", ".parquet"]), st.data())
def test_rows_in_any_order_and_number_are_kept_and_can_be_repaired(table, suffix, data):
    """Written by us, read as it is; without repeats and sorted it is the table again."""
    rows = data.draw(st.permutations([*range(len(table)), *data.draw(st.sets(st.integers(0, 2)))]))
    scattered = table.iloc[[row % len(table) for row in rows]].reset_index(drop=True)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / f"bars{suffix}"
        write_bars(scattered, path)
        assert [inside.name for inside in Path(name).iterdir()] == [path.name]
        read = read_bars(path, as_is=True)
    same = {"check_exact": True, "check_dtype": False, "check_column_type": False}
    pd.testing.assert_frame_equal(read.bars, scattered, **same)
    assert read.notes == ()
    repaired, record = repair_bars(read.bars, ["drop-duplicates", "sort"])
    pd.testing.assert_frame_equal(repaired, table, **same)
    assert (record["rule"] == "drop-duplicates").sum() == len(scattered) - len(table)


@settings(deadline=None, max_examples=25)
@given(tables())
def test_a_table_comes_back_from_the_provider_as_float32(table):
    """Read with numpy alone, so that a fault shared by writer and Qlib's reader would show."""
    with tempfile.TemporaryDirectory() as name:
        target = Path(name) / "qlib"
        try:
            write_provider(table, target)
        except BarDataError as problem:
            # Names that Qlib itself cannot keep, such as NA, are the one reason left.
            assert re.search("Qlib reads the symbol|cannot name a folder", str(problem))
            assert not target.exists()
            return
        calendar = pd.DatetimeIndex((target / "calendars" / "day.txt").read_text().split())
        assert list(calendar) == sorted(table["date"].unique())
        for symbol, bars in table.groupby("symbol"):
            places = calendar.get_indexer(bars["date"])
            for column in BARS_COLUMNS:
                path = next((target / "features").glob(f"*{symbol.lower()}/{column}.day.bin"))
                start, *values = np.fromfile(path, dtype="<f4")
                assert start == places[0]
                assert len(values) == places[-1] - places[0] + 1
                stored = np.array(values)[places - places[0]]
                assert (stored == bars[column].to_numpy(np.float32)).all()
                assert np.isfinite(values).sum() == len(bars)
            close = bars["close"].to_numpy()
            path = next((target / "features").glob(f"*{symbol.lower()}/change.day.bin"))
            change = np.fromfile(path, dtype="<f4")[1:][places - places[0]]
            moves = (close[1:] / close[:-1] - 1).astype(np.float32)
            assert np.array_equal(change, [np.nan, *moves], equal_nan=True)


@settings(deadline=None, max_examples=100)
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda text: text.encode())))
def test_junk_is_refused_and_never_crashes(junk):
    header = b"symbol,date,open,high,low,close,volume\n"
    for content in (junk, header + junk, header + b"A,2024-01-02,1,1,1,1," + junk):
        with tempfile.TemporaryDirectory() as name:
            path = Path(name) / "junk.csv"
            path.write_bytes(content)
            try:
                bars = read_bars(path).bars
            except BarDataError as problem:
                assert "junk.csv" in str(problem)
            else:
                assert 1 <= len(bars) <= content.count(b"\n") + content.count(b"\r") + 1
                assert not bars.duplicated(["symbol", "date"]).any()


cells = st.one_of(
    st.floats().map(repr),
    st.integers().map(str),
    st.sampled_from(["", " ", "NA", "nan", "1_000", "0x1", "1,5", "1e3", "--1", "None", "true"]),
    st.text(max_size=5),
)
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(inf|infinity|nan)", re.I)
MISSING = {"", "na", "nan", "n/a", "null", "none", "<na>"}
DASHES = {"-", "--", "—"}


@settings(deadline=None, max_examples=150)
@given(cells)
def test_a_cell_is_the_number_it_shows_or_an_error(cell):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "bars.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["symbol", "date", "open", "high", "low", "close", "volume"])
            writer.writerow(["A", "2024-01-02", 1, 1, 1, cell, 5])
        text = cell.strip()
        try:
            value = read_bars(path).bars["close"][0]
        except BarDataError:
            assert text.lower() not in MISSING
            assert NUMBER.fullmatch(text) is None or not text.isascii()
            return
        if text.lower() in MISSING or text in DASHES or text.strip("+-").lower() == "nan":
            assert math.isnan(value)
        else:
            plain = re.sub(r"[$€£¥￥₹₩₽元 '\u2019\u00a0\u202f\u2009]", "", text)
            assert value == float(plain)
            assert "_" not in text


amounts = st.lists(st.floats(0.5, 5e6), min_size=2, max_size=5)


@settings(deadline=None, max_examples=200)
@given(
    amounts,
    amounts,
    st.sampled_from(["{:,.2f}", "{:,.3f}", "{:.2f}", "{:.3f}", "{:.1f}", "{:,.0f}", "{:.0f}"]),
    st.sampled_from(["{:,.0f}", "{:.0f}", "{:,.3f}"]),
    st.sampled_from([",", ";", "\t"]),
    st.booleans(),
    st.booleans(),
)
def test_marked_numbers_are_what_they_were_or_an_error(
    closes, volumes, price, size, mark, has_comma, is_said
):
    """Never wrong by a thousand: 1,234 and 1.234 are read where the table says which, or not.

    But for a point, between commas or tabs or in a price, that no other cell contradicts.
    """
    assume(not has_comma or is_said or (mark == ";" and price != "{:,.0f}"))
    size_in_rows = min(len(closes), len(volumes))
    swap = str.maketrans(",.", ".,") if has_comma else {}
    rows = []
    for day, (close, volume) in enumerate(zip(closes, volumes, strict=False), start=1):
        prices = [price.format(close).translate(swap)] * 4
        rows.append([f"2024-01-{day:02d}", *prices, size.format(volume).translate(swap)])
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "bars.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter=mark)
            writer.writerow(["date", "open", "high", "low", "close", "volume"])
            writer.writerows(rows)
        said = ("," if has_comma else ".") if is_said else None
        try:
            bars = read_bars(path, decimal=said).bars
        except BarDataError as problem:
            assert not is_said and "--decimal" in str(problem)
            return
    plain = [float(price.format(close).replace(",", "")) for close in closes[:size_in_rows]]
    wanted = [float(size.format(volume).replace(",", "")) for volume in volumes[:size_in_rows]]
    np.testing.assert_allclose(bars["close"], plain, rtol=1e-12)
    np.testing.assert_allclose(bars["volume"], wanted, rtol=1e-12)
