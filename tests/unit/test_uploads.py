"""Files that strangers upload: good, dirty and hostile ones."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile

import numpy as np
import openpyxl
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kronos_qlib.errors import BarDataError
from kronos_qlib.webui.work import upload_process
from kronos_qlib.webui.work.job_queue import QueueFullError
from kronos_qlib.webui.work.upload_process import (
    MOST_BYTES,
    MOST_ROWS,
    read_upload,
    without_commands,
)
from kronos_qlib.webui.work.upload_reader import MOST_WAITING, UploadReader, shown_name

HOW = {"zone": None, "date_order": "ymd", "encoding": "utf-8"}


def bars(rows=30):
    close = 10 + np.sin(np.arange(rows) / 3)
    return pd.DataFrame(
        {
            "date": pd.bdate_range("2024-01-01", periods=rows),
            "open": close,
            "high": close + 0.2,
            "low": close - 0.2,
            "close": close + 0.1,
            "volume": 1000.0 + np.arange(rows),
        }
    )


def written(suffix, table=None):
    table = bars() if table is None else table
    sink = io.BytesIO()
    if suffix == ".csv":
        return table.to_csv(index=False).encode()
    if suffix == ".parquet":
        table.to_parquet(sink)
    elif suffix == ".feather":
        table.to_feather(sink)
    else:
        table.to_excel(sink, index=False)
    return sink.getvalue()


@pytest.fixture(scope="module")
def reader():
    made = UploadReader()
    yield made
    made.close()


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".feather", ".xlsx"])
def test_every_kind_gives_the_same_bars(reader, suffix):
    found = reader.read(f"600000{suffix}", written(suffix), HOW).bars
    assert found["symbol"].unique().tolist() == ["600000"]
    assert found["date"].tolist() == bars()["date"].tolist()
    np.testing.assert_allclose(found["close"], bars()["close"], rtol=1e-12)
    assert (found["amount"] > 0).all()


@pytest.mark.parametrize("name", ["a.csv", "a.txt", "a.TSV"])
@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_text_is_read_whatever_parts_its_columns_and_lines(name, mark):
    for line in ("\n", "\r\n", "\r"):
        data = bars().to_csv(index=False, sep=mark, lineterminator=line).encode()
        found, _ = read_upload(name, data, HOW)
        assert found["symbol"].unique().tolist() == ["A"]
        np.testing.assert_allclose(found["close"], bars()["close"])


def test_a_sheet_s_fault_names_the_file_and_gives_no_advice_for_programs():
    for table, words in [
        (pd.DataFrame({"My bars": ["x"]}), "a.xlsx: no column 'date'"),
        (bars().astype(object).replace({1003.0: "many"}), "a.xlsx, row 5, column 'volume'"),
    ]:
        with pytest.raises(BarDataError) as refused:
            read_upload("a.xlsx", written(".xlsx", table), HOW)
        assert str(refused.value).startswith(words)
    zoned = bars().assign(date=bars()["date"].dt.tz_localize("UTC"))
    with pytest.raises(BarDataError) as refused:
        read_upload("a.feather", written(".feather", zoned), HOW)
    said = without_commands(str(refused.value))
    assert "choose the exchange's time zone" in said and "tz_localize" not in said


def test_a_column_of_symbols_goes_before_the_file_s_name(reader):
    table = bars().assign(symbol="abc")
    for suffix in (".csv", ".xlsx"):
        found = reader.read(f"other{suffix}", written(suffix, table), HOW).bars
        assert found["symbol"].unique().tolist() == ["ABC"]


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("../../etc/passwd.csv", "passwd.csv"),
        ("C:\\Users\\me\\bars.csv", "bars.csv"),
        ("a\x00b\u202e.csv", "ab.csv"),
        ("..", "upload"),
        ("", "upload"),
        ("x" * 500 + ".csv", "x" * 40 + "…" + "x" * 26 + ".csv"),
        ("<img src=x onerror=alert(1)>.csv", "<img src=x onerror=alert(1)>.csv"),
    ],
)
def test_a_client_s_name_is_shown_and_never_opened(given, shown):
    assert shown_name(given) == shown


def test_a_name_that_leads_elsewhere_is_only_a_symbol(reader):
    found = reader.read("../../tmp/AUX.csv", written(".csv"), HOW).bars
    assert found["symbol"].unique().tolist() == ["AUX"]


@pytest.mark.parametrize("name", ["bars.pkl", "bars.csv.exe", "bars", ".csv.gz", "bars.xlsm"])
def test_other_kinds_are_refused_before_they_are_read(reader, name):
    with pytest.raises(BarDataError, match="expected a file ending in"):
        reader.read(name, b"x", HOW)


def test_a_dirty_file_says_row_and_column_and_no_path(reader):
    data = written(".csv").replace(b"2024-01-05", b"someday")
    with pytest.raises(BarDataError) as refused:
        reader.read("dirty.csv", data, HOW)
    assert "dirty.csv, row 6, column 'date'" in str(refused.value)
    assert "kronos-upload" not in str(refused.value)
    assert "UPLOAD" not in str(refused.value)


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (
            "a.csv: no column 'date'; it has 'x'; name it with a mapping such as date=THEIR_NAME",
            "a.csv: no column 'date'; it has 'x'; rename the column in the file",
        ),
        (
            'a.csv: not UTF-8 text (bad); name its encoding, such as encoding="gb18030" or '
            "--encoding gb18030",
            "a.csv: not UTF-8 text (bad); choose its encoding, gb18030 for many Chinese files",
        ),
        (
            "a.csv, row 2, column 'date': '02/01/2024' may be two: say which with "
            'date_order="dmy" (--date-order dmy)',
            "a.csv, row 2, column 'date': '02/01/2024' may be two; choose the order of its dates",
        ),
        ("a.csv, row 3, column 'close': not a number; 'x'", None),
        ("a.csv: no comma; name the delimiter, such as --delimiter ';'", "a.csv: no comma"),
    ],
)
def test_a_page_has_no_options_to_advise(message, shown):
    assert without_commands(message) == (message if shown is None else shown)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv", b""),
        ("a.csv", b"\x00" * 100),
        ("a.csv", b"\xff\xfe\xfd"),
        ("a.parquet", b"PAR1" + b"\x00" * 50 + b"PAR1"),
        ("a.feather", b"ARROW1" + b"\xff" * 100),
        ("a.feather", b"FEA1" + b"\x00" * 40),
        ("a.xlsx", b"PK\x03\x04 no zip"),
        ("a.xlsx", written(".parquet")),
        ("a.parquet", written(".xlsx")),
    ],
)
def test_a_damaged_file_is_an_error_in_words(reader, name, data):
    with pytest.raises(BarDataError, match=r"a\.") as refused:
        reader.read(name, data, HOW)
    assert "Traceback" not in str(refused.value)


@pytest.mark.parametrize("suffix", [".parquet", ".feather", ".xlsx"])
def test_a_file_cut_anywhere_is_refused_and_the_reader_lives(reader, suffix):
    whole = written(suffix)
    for cut in np.linspace(1, len(whole) - 1, 8, dtype=int):
        with pytest.raises(BarDataError):
            reader.read(f"a{suffix}", whole[:cut], HOW)
    assert len(reader.read(f"a{suffix}", whole, HOW).bars) == 30


def test_a_file_of_too_many_bytes_is_not_even_sent():
    with pytest.raises(BarDataError, match="are the most"):
        UploadReader().read("a.csv", b"x" * (MOST_BYTES + 1), HOW)


def test_a_csv_of_too_many_rows_or_columns_is_refused():
    with pytest.raises(BarDataError, match="lines"):
        read_upload("a.csv", b"date,close\n" + b"1,2\n" * MOST_ROWS, HOW)
    with pytest.raises(BarDataError, match="columns"):
        read_upload("a.csv", b",".join([b"x"] * 200) + b"\n", HOW)


def test_a_parquet_bomb_is_refused_by_what_it_says_of_itself():
    sink = io.BytesIO()
    pq.write_table(pa.table({"close": np.zeros(MOST_ROWS * 20)}), sink, compression="zstd")
    assert len(sink.getvalue()) < 100_000
    with pytest.raises(BarDataError, match="are the most"):
        read_upload("a.parquet", sink.getvalue(), HOW)


def test_a_feather_bomb_is_refused():
    sink = io.BytesIO()
    pd.DataFrame({"close": np.zeros(MOST_ROWS * 20)}).to_feather(sink, compression="zstd")
    assert len(sink.getvalue()) < 200_000
    with pytest.raises(BarDataError, match="are the most"):
        read_upload("a.feather", sink.getvalue(), HOW)


def test_a_zip_bomb_is_refused_before_it_is_unpacked():
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as file:
        for sheet in range(12):
            file.writestr(f"xl/worksheets/sheet{sheet}.xml", b"\x00" * 20_000_000)
    assert len(sink.getvalue()) < 500_000
    with pytest.raises(BarDataError, match="unpacked"):
        read_upload("a.xlsx", sink.getvalue(), HOW)


def replaced(data, member, old, new):
    """A workbook with one member's text changed."""
    sink = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(sink, "w") as target:
        for name in source.namelist():
            text = source.read(name)
            target.writestr(name, text.replace(old, new) if name == member else text)
    return sink.getvalue()


def test_entities_that_expand_are_not(reader):
    bomb = (
        b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">'
        b'<!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]><worksheet'
    )
    data = replaced(written(".xlsx"), "xl/worksheets/sheet1.xml", b"<worksheet", bomb)
    with pytest.raises(BarDataError, match="Excel"):
        reader.read("a.xlsx", data, HOW)


def test_a_sheet_that_claims_to_be_huge_is_read_as_far_as_it_goes(reader):
    """A cell in the last row and column would be a table of 17 billion cells."""
    book = openpyxl.Workbook()
    sheet = book.active
    for row in [bars().columns.tolist(), *bars().to_numpy().tolist()]:
        sheet.append(row)
    for far in ("XFD1048576", "A1048576", "XFD2"):
        sheet[far] = 1
        sink = io.BytesIO()
        book.save(sink)
        with pytest.raises(BarDataError, match="are the most"):
            reader.read("a.xlsx", sink.getvalue(), HOW)
        sheet[far] = None
    assert len(reader.read("a.csv", written(".csv"), HOW).bars) == 30


def test_formulas_are_not_run_and_their_missing_values_are_told(reader):
    book = openpyxl.Workbook()
    for row in [bars().columns.tolist(), *bars().to_numpy().tolist()]:
        book.active.append(row)
    book.active["E5"] = "=1+1"
    sink = io.BytesIO()
    book.save(sink)
    found = reader.read("a.xlsx", sink.getvalue(), HOW).bars
    assert found["close"].isna().sum() == 1  # which a forecast refuses


def test_a_file_that_takes_too_long_is_given_up_and_the_next_one_is_read(monkeypatch):
    reader = UploadReader(seconds=0.2)
    slow = [
        sys.executable,
        "-c",
        "import sys,time;sys.stdout.buffer.write(bytes(7)+b'\\x05ready');"
        "sys.stdout.flush();time.sleep(60)",
    ]
    begin = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **how: begin(slow, **how))
    with pytest.raises(BarDataError, match=r"more than 0\.2 seconds"):
        reader.read("a.csv", written(".csv"), HOW)
    assert reader._process is None, "it was ended"
    monkeypatch.setattr(subprocess, "Popen", begin)
    reader.seconds = 60
    assert len(reader.read("a.csv", written(".csv"), HOW).bars) == 30
    reader.close()


def test_a_reader_that_crashes_is_an_error_and_begun_anew(reader):
    assert len(reader.read("a.csv", written(".csv"), HOW).bars) == 30
    reader._process.kill()
    reader._process.wait()
    assert len(reader.read("a.csv", written(".csv"), HOW).bars) == 30


def test_only_some_uploads_may_wait(reader):
    for _ in range(MOST_WAITING + 1):
        assert reader._places.acquire(blocking=False)
    try:
        with pytest.raises(QueueFullError):
            reader.read("a.csv", written(".csv"), HOW)
    finally:
        for _ in range(MOST_WAITING + 1):
            reader._places.release()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how much a process has")
def test_the_process_may_not_take_all_memory():
    code = (
        "from kronos_qlib.webui.work import upload_process as u\n"
        "u._bound_memory()\n"
        f"try: bytearray({2 * upload_process.MEMORY})\n"
        "except MemoryError: print('bounded')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "bounded", done.stderr
