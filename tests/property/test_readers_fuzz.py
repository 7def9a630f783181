"""Whatever stands in a file or a frame: its values, or an error that names it. Nothing else."""

from __future__ import annotations

import csv
import math
import re
import tempfile
from datetime import date, datetime, timezone
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from kronos_qlib.data.files.formats import read_file
from kronos_qlib.data.files.read import read_bars, write_bars
from kronos_qlib.errors import BarDataError
from kronos_qlib.schema import LONG_COLUMNS

SUFFIXES = [".csv", ".parquet", ".feather"]
DAYS = pd.date_range("2024-01-01", periods=4)


def sound_table() -> pd.DataFrame:
    rows = [("A", day, 10.0, 11.0, 9.0, 10.5, 100.0, 1050.0, 1.0) for day in DAYS]
    return pd.DataFrame(rows, columns=list(LONG_COLUMNS))


def content(suffix: str) -> bytes:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / f"bars{suffix}"
        write_bars(sound_table(), path)
        return path.read_bytes()


SOUND = {suffix: content(suffix) for suffix in SUFFIXES}


def read_bytes(suffix: str, junk: bytes) -> pd.DataFrame | None:
    """The bars that a file of these bytes holds, or None where it is refused by name."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / f"junk{suffix}"
        path.write_bytes(junk)
        try:
            return read_bars(path).bars
        except BarDataError as problem:
            assert f"junk{suffix}" in str(problem)
            return None


@settings(max_examples=150)
@given(st.sampled_from(SUFFIXES), st.binary(max_size=300))
def test_bytes_that_mean_nothing_are_refused_by_name(suffix, junk):
    heads = {".csv": b"", ".parquet": b"PAR1", ".feather": b"ARROW1\0\0"}
    for junk_file in (junk, heads[suffix] + junk + heads[suffix].rstrip(b"\0")):
        bars = read_bytes(suffix, junk_file)
        assert bars is None or suffix == ".csv"


@settings(max_examples=100)
@given(st.sampled_from(SUFFIXES[1:]), st.data())
def test_a_file_cut_short_is_refused(suffix, data):
    whole = SOUND[suffix]
    assert read_bytes(suffix, whole[: data.draw(st.integers(0, len(whole) - 1))]) is None


@settings(max_examples=300)
@given(st.sampled_from(SUFFIXES), st.data())
def test_a_file_with_a_wrong_byte_is_refused_or_is_a_table(suffix, data):
    """A byte within a number makes another number, which no reader can know."""
    broken = bytearray(SOUND[suffix])
    place = data.draw(st.integers(0, len(broken) - 1))
    broken[place] ^= data.draw(st.integers(1, 255))
    bars = read_bytes(suffix, bytes(broken))
    if bars is not None:
        assert tuple(bars.columns) == LONG_COLUMNS
        assert 1 <= len(bars) <= len(DAYS)
        assert not bars.duplicated(["symbol", "date"]).any()


@settings(max_examples=200)
@given(
    st.lists(
        st.lists(st.text(st.sampled_from('a1 ,;"\r\n\x00é'), max_size=4), min_size=3, max_size=3),
        max_size=5,
    ),
    st.sampled_from([",", ";", "|", "tab"]),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_cells_are_those_that_were_written_with_the_row_they_end_in(rows, mark, end, quoting):
    delimiter = "\t" if mark == "tab" else mark
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "cells.csv")
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter=delimiter, lineterminator=end, quoting=quoting)
            writer.writerows([["x", "y", "z"], *rows])
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            wanted = [(record, reader.line_num) for record in reader if any(record)][1:]
        # The writer quotes no "\r" that is not its own end of a line: then the cell ends there.
        assume(all(len(record) == 3 for record, _ in wanted))
        raw = read_file(path, delimiter=mark)
    assert raw.rows.tolist() == [row for _, row in wanted]
    found = [list(cells) for cells in zip(*raw.columns.values(), strict=True)]
    assert found == [record for record, _ in wanted]


ODD_NUMBERS = [pd.NA, pd.NaT, np.float32(0.1), np.int8(3), np.bool_(True), 10**400, 10**5000]
ODD_NUMBERS += [1j, [1], {}, b"1", "1_0", Decimal("NaN"), Decimal("1e400"), pd.Timedelta(1)]
number_cells = st.one_of(
    st.floats(width=32),
    st.floats(),
    st.integers(-(10**18), 10**18),
    st.booleans(),
    st.none(),
    st.text(max_size=4),
    st.floats().map(repr),
    st.decimals(allow_nan=False),  # of a signaling NaN pandas itself cannot say isna()
    st.sampled_from(ODD_NUMBERS),
)
date_cells = st.one_of(
    st.datetimes(datetime(1700, 1, 1), datetime(2200, 1, 1)).map(
        lambda t: t.replace(microsecond=0)
    ),
    st.datetimes(timezones=st.just(timezone.utc)),
    st.dates(date(1700, 1, 1), date(2200, 1, 1)),
    st.integers(19000101, 21001231),
    st.floats(),
    st.booleans(),
    st.text(max_size=10),
    st.dates().map(str),
    st.sampled_from(
        [None, pd.NaT, pd.NA, np.datetime64("2024-01-02"), pd.Period("2024-01", "M"), "9"]
    ),
    st.sampled_from(
        [pd.Timestamp("2024-01-02 09:35", tz="Asia/Shanghai"), 10**5000, b"2024-01-02"]
    ),
)
symbol_cells = st.one_of(
    st.text(max_size=4),
    st.sampled_from(["A", "a", "NA", None, pd.NA, math.nan, 1, 1.0, True, "\ud800", "ß", b"A"]),
)
KINDS = ["float32", "float64", "int64", "uint8", "bool", "str", "category", "string", "Float64"]
KINDS += ["Int64", "boolean", "complex128", "datetime64[ns]", "float16"]
number_kinds = st.sampled_from([None, *KINDS])
date_kinds = st.sampled_from([None, None, "datetime64[s]", "datetime64[ns]", "category", "str"])


def as_kind(values: list[object], kind: str | None) -> pd.Series:
    """Cells as a column of a type, or of objects where they do not fit it."""
    column = pd.Series(values, dtype=object)
    try:
        return column if kind is None else column.astype(kind)
    except Exception:  # whatever pandas says: this column cannot be made
        return column


@st.composite
def frames(draw: st.DrawFn) -> pd.DataFrame:
    """Small tables of which most columns are sound, so that the odd one is reached."""
    size = draw(st.integers(0, 3))
    table = sound_table().astype({"symbol": object}).iloc[:size]
    odd = draw(st.lists(st.sampled_from([*LONG_COLUMNS, "none"]), max_size=2))
    for name in odd:
        cells = {"symbol": symbol_cells, "date": date_cells}.get(name, number_cells)
        kinds = {"symbol": number_kinds, "date": date_kinds}.get(name, number_kinds)
        values = draw(st.lists(cells, min_size=size, max_size=size))
        table[name] = as_kind(values, draw(kinds)).set_axis(table.index)
    shape = draw(st.sampled_from(SHAPES))
    try:
        return shape(table)
    except Exception:  # pandas cannot: float16, for one, makes no index
        return table


SHAPES = [
    lambda table: table,
    lambda table: table,
    lambda table: table,
    lambda table: table.set_index(["symbol", "date"]),
    lambda table: table.set_index(["date", "symbol"]).rename_axis([None, "symbol"]),
    lambda table: table.set_index("date").rename_axis(None),
    lambda table: table.set_index("date", drop=False),
    lambda table: table.rename(columns=str.upper),
    lambda table: table.rename(columns={"open": "close"}),
    lambda table: table.set_axis(pd.MultiIndex.from_product([table.columns, ["A"]]), axis=1),
    lambda table: table.set_axis(range(table.shape[1]), axis=1),
    lambda table: table.drop(columns=["volume", "amount", "factor"]),
    lambda table: table.rename(columns={"date": "日期", "open": "开盘", "volume": "成交量"}),
    lambda table: table[["symbol", "date"]],
]


SCALES = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12, "千": 1e3, "万": 1e4, "萬": 1e4, "亿": 1e8}
SCALES["億"] = 1e8


def marked(text: str) -> float | None:
    """The number within a currency sign, a blank between thousands or a letter for thousands."""
    match = re.fullmatch(
        r"([+-]?)\D{0,2}?(\d[\d \u00a0.'\u2019]*) ?([a-z千万萬亿億]?)\W?元?", text, re.I
    )
    if match is None:
        return None
    digits = re.sub(r"[^\d.]", "", match[2])
    return float(match[1] + digits) * SCALES.get(match[3].lower(), 1.0)


def meant(cell: object) -> float | None:
    """The number that a cell is; None where it is none."""
    if cell is None or cell is pd.NA:
        return math.nan
    if isinstance(cell, (bool, np.bool_)) or not isinstance(
        cell, (int, float, str, Decimal, np.number)
    ):
        return None
    if isinstance(cell, str) and (not cell.strip() or cell.strip().lower() in MISSING):
        return math.nan
    if isinstance(cell, str) and "_" in cell:
        return None
    try:
        return float(cell)
    except (ValueError, TypeError, OverflowError):
        return marked(cell.strip()) if isinstance(cell, str) else None


MISSING = {"", "nan", "na", "n/a", "null", "none", "<na>", "-", "--", "—"}


def check_values(frame: pd.DataFrame, bars: pd.DataFrame) -> None:
    """What was read is what the cells say, row by row."""
    flat = frame.reset_index() if frame.index.names != [None] else frame
    flat = flat.rename(columns=lambda name: str(name).lower())
    flat = flat.rename(columns={"日期": "date", "开盘": "open", "成交量": "volume"})
    assert len(bars) == len(flat)
    zones = {getattr(cell, "tzinfo", None) for cell in frame.reset_index().get("date", [])}
    assert len(zones) < 2 and not zones & {timezone.utc}
    for name in ("open", "high", "low", "close", "volume", "amount", "factor"):
        if name in flat:
            wanted = [meant(cell) for cell in flat[name].astype(object)]
            assert None not in wanted
            np.testing.assert_array_equal(bars[name].to_numpy(), np.array(wanted, dtype=float))
    for cell, read in zip(flat["symbol"].astype(object), bars["symbol"], strict=True):
        assert str(cell).strip().upper() == read
    times = flat["date"] if "date" in flat else pd.Series(frame.index)
    for cell, read in zip(times.astype(object), bars["date"], strict=True):
        text = str(cell).strip()  # 20240102 is a day, not nanoseconds
        assert pd.Timestamp(text).tz_localize(None) == read, "wall-clock time, as it is written"


@settings(max_examples=600)
@given(frames())
def test_a_frame_is_what_its_cells_say_or_an_error(frame):
    before = frame.copy()
    try:
        bars = read_bars(frame, as_is=True).bars
    except BarDataError as problem:
        assert "the frame" in str(problem)
    else:
        check_values(before, bars)
    pd.testing.assert_frame_equal(frame, before)


def is_mixed(frame: pd.DataFrame) -> bool:
    """Whether a column or an index holds cells of several types, as numbers beside dates."""
    columns = [frame.iloc[:, place] for place in range(frame.shape[1])]
    columns += [frame.index.get_level_values(place) for place in range(frame.index.nlevels)]
    return any(len({type(cell) for cell in one.astype(object).dropna()}) > 1 for one in columns)


@settings(max_examples=200)
@example(sound_table().assign(open=pd.Series([0.0, False, 1, True], dtype=object)), ".parquet")
@given(frames(), st.sampled_from([".parquet", ".feather"]))
def test_a_frame_through_a_file_is_what_its_cells_say_or_an_error(frame, suffix):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / f"odd{suffix}"
        try:
            frame.to_parquet(path) if suffix == ".parquet" else frame.to_feather(path)
        except Exception:  # pyarrow cannot store it
            return
        try:
            bars = read_bars(path, as_is=True).bars
        except BarDataError as problem:
            assert f"odd{suffix}" in str(problem)
            return
        stored = pd.read_parquet(path) if suffix == ".parquet" else pd.read_feather(path)
    # pyarrow makes one type of several: True beside numbers is stored as 1, a number beside dates
    # as a date. What such cells said is not in the file.
    check_values(stored if is_mixed(frame) else frame, bars)


def test_text_in_a_file_that_is_none_is_refused_by_name():
    """Arrow looks at the bytes of text only when each cell is asked for, long after reading."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "bars.feather"
        sound_table().assign(symbol="QQ").to_feather(path, compression="uncompressed")
        whole = path.read_bytes()
        assert b"QQQQQQQQ" in whole
        path.write_bytes(whole.replace(b"QQQQQQQQ", b"QQ\xff\xffQQQQ"))
        with pytest.raises(BarDataError, match=r"bars\.feather.*cannot be read"):
            read_bars(path)


def test_the_fuzz_reads_what_is_sound():
    """Else every example might be refused, and nothing tested."""
    table = sound_table()
    for shape in (SHAPES[0], SHAPES[3], SHAPES[7]):
        check_values(shape(table), read_bars(shape(table)).bars)
    with pytest.raises(BarDataError, match="levels"):
        read_bars(SHAPES[9](table))
