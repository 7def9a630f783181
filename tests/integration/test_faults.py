"""What is wrong with a Qlib folder is said with file, line and cause, and no hint misleads."""

from __future__ import annotations

import os
import shutil
import types

import numpy as np
import pandas as pd
import pytest
import qlib
from qlib.data.cache import H

from kronos_qlib.errors import BarDataError, CalendarError, ConfigError, KronosError
from kronos_qlib.plugin.dataset import KronosDataset
from kronos_qlib.plugin.provider.faults import likely_names
from kronos_qlib.plugin.provider.reader import read_calendar, read_spans, read_table

pytestmark = pytest.mark.integration

DAYS, NAMES = 40, ["SH600000", "SH600001", "SH600002", "SZ000001"]
PLAIN = {name: f"${name}" for name in ("open", "high", "low", "close", "volume", "amount")}
MEAN = {**PLAIN, "amount": "$volume * ($high + $low) / 2"}


def make_bars(names=NAMES, days=DAYS, seed=0):
    rng = np.random.default_rng(seed)
    dates = pd.bdate_range("2020-01-02", periods=days)
    tables = []
    for name in names:
        close = 20 * np.exp(np.cumsum(rng.normal(0, 0.02, days)))
        opened = np.concatenate([[20.0], close[:-1]])
        tables.append(
            pd.DataFrame(
                {
                    "symbol": name,
                    "date": dates,
                    "open": opened,
                    "high": np.maximum(opened, close) * 1.01,
                    "low": np.minimum(opened, close) * 0.99,
                    "close": close,
                    "volume": rng.uniform(1e5, 1e6, days).round(),
                    "factor": 1.0,
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def open_folder(folder):
    """As a user does, by one path for all frequencies: messages name what else it holds."""
    qlib.init(
        provider_uri=str(folder), region="cn", clear_mem_cache=True, skip_if_reg=False, kernels=1
    )
    H.clear()


@pytest.fixture
def folder(tmp_path, dump_folder):
    dump_folder(tmp_path / "q", make_bars())
    open_folder(tmp_path / "q")
    return tmp_path / "q"


def lines_of(path):
    return path.read_text(encoding="utf-8").splitlines()


def put(path, lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    H.clear()


both_ways = pytest.mark.parametrize(
    ("fields", "direct"), [(PLAIN, True), (PLAIN, False), (MEAN, None)], ids=["files", "qlib", "ex"]
)


@both_ways
def test_a_calendar_that_lost_its_last_days_is_named(folder, fields, direct):
    """Once: `1028 bytes`, of a file of 1,044, `write it again`: the calendar was at fault."""
    path = folder / "calendars" / "day.txt"
    put(path, lines_of(path)[:-5])
    with pytest.raises(BarDataError) as told:
        read_table(NAMES, fields=fields, direct=direct)
    said = str(told.value)
    assert "open.day.bin holds 40 values from 2020-01-02 on" in said
    assert "calendars/day.txt has 35 days: the calendar is too short, 5 values have no time" in said
    assert "write it again" not in said


def test_a_file_that_begins_past_the_calendar_is_named(folder):
    path = folder / "features" / "sh600001" / "close.day.bin"
    np.array([100.0, 1.0, 2.0], dtype="<f4").tofile(path)
    with pytest.raises(BarDataError, match=r"holds 2 values from place 100 on.*has 40 days.*62"):
        read_table(NAMES)


@both_ways
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "0 bytes, as of a write that was cut short"),
        (b"ab", "2 bytes, as of a write"),
        (np.array([np.nan, 1.0], "<f4").tobytes(), "its 1 values begin at place nan"),
        (np.array([-3.0, 1.0], "<f4").tobytes(), "begin at place -3"),
        (np.arange(41, dtype="<f4").tobytes()[:-1], "163 bytes, of which each number takes 4"),
        (np.arange(99, dtype="<f4").tobytes()[:-2], "394 bytes"),
    ],
    ids=["empty", "2 bytes", "nan", "negative", "odd", "odd and long"],
)
def test_a_damaged_file_says_what_it_holds(folder, fields, direct, content, says):
    """An empty file was passed over in silence, and Qlib's own error names no file."""
    path = folder / "features" / "sh600001" / "high.day.bin"
    path.write_bytes(content)
    with pytest.raises(BarDataError, match=says) as told:
        read_table(NAMES, fields=fields, direct=direct)
    assert str(told.value).startswith(str(path))
    assert "write it again" not in str(told.value)


@pytest.mark.skipif(os.path.normcase("A") == "a", reason="names of any case are one")
@both_ways
def test_folders_in_upper_case_are_to_be_renamed(folder, fields, direct):
    """Once: `no instrument has a value of $close; did you mean $close?`."""
    for path in list((folder / "features").iterdir()):
        path.rename(path.with_name(path.name.upper()))
    with pytest.raises(BarDataError) as told:
        read_table(NAMES, fields=fields, direct=direct)
    said = str(told.value)
    assert "has SH600000, and Qlib reads sh600000: rename" in said
    assert "did you mean" not in said


@pytest.mark.skipif(os.path.normcase("A") == "a", reason="names of any case are one")
def test_one_folder_in_upper_case_is_told(folder, monkeypatch):
    (folder / "features" / "sh600001").rename(folder / "features" / "SH600001")
    said = []
    log = types.SimpleNamespace(warning=said.append)
    monkeypatch.setattr("kronos_qlib.plugin.provider.reader.logger", log)
    read_table(NAMES)
    assert "1 of 4 instruments have no bars: SH600001; features has SH600001, and Qlib" in said[-1]


@pytest.mark.skipif(os.path.normcase("A") == "a", reason="names of any case are one")
def test_files_in_upper_case_are_to_be_renamed(folder):
    for path in list(folder.glob("features/*/close.day.bin")):
        path.rename(path.with_name("CLOSE.day.bin"))
    with pytest.raises(
        BarDataError, match=r"\$close; .*CLOSE\.day\.bin, and Qlib reads close\.day"
    ):
        read_table(NAMES)


@both_ways
@pytest.mark.parametrize(
    "name",
    ["600000.SH", "SH.600000", "600000.XSHG", "600000", "sse:600000", "600000.SS"],
)
def test_another_spelling_of_a_symbol_is_answered_with_ours(folder, fields, direct, name):
    with pytest.raises(BarDataError) as told:
        read_table([name], fields=fields, direct=direct)
    said = str(told.value)
    assert f"no folder features/{name.lower()}; there are sh600000, sh600001, sh600002" in said
    assert said.endswith(f"; write SH600000 for {name}")


@pytest.mark.parametrize(
    ("name", "known", "likely"),
    [
        ("sz.000001", ["sz000001", "sh000001"], ["SZ000001"]),
        ("000001", ["sh000001", "sz000001"], ["SH000001", "SZ000001"]),
        ("000001.XSHE", ["sh000001"], []),  # the index is not the bank
        ("600000.SH", ["sh600001", "sh600002"], []),  # nor a neighbour
        ("SH600000", ["600000"], ["600000"]),
        ("430047.BJ", ["bj430047"], ["BJ430047"]),
        ("AAPL.US", ["aapl", "msft"], ["AAPL"]),
        ("BRK.B", ["brk-b", "bac"], ["BRK-B"]),
        ("BTC/USDT", ["btcusdt", "ethusdt"], ["BTCUSDT"]),
        ("AAPL", ["aapl"], []),
        ("", ["aapl"], []),
        ("茅台", ["sh600519"], []),
    ],
)
def test_likely_names(name, known, likely):
    assert likely_names(name, known) == likely


def test_some_names_spelled_otherwise_are_told(folder, monkeypatch):
    said = []
    log = types.SimpleNamespace(warning=said.append)
    monkeypatch.setattr("kronos_qlib.plugin.provider.reader.logger", log)
    read_table(["SH600000", "600001.SH", "NOBODY"])
    assert said[-1] == (
        "2 of 3 instruments have no bars: 600001.SH, NOBODY; write SH600001 for 600001.SH"
    )


@both_ways
def test_a_field_of_another_frequency_is_told(folder, fields, direct):
    for path in list(folder.glob("features/*/*.day.bin")):
        path.rename(path.with_name(path.name.replace(".day.", ".1min.")))
    cause = r"sh600000 has close\.1min\.bin.* and no(thing for freq 'day'| close\.day\.bin)"
    with pytest.raises(BarDataError, match=cause):
        read_table(NAMES, fields=fields, direct=direct)


def test_a_hint_is_never_the_field_that_is_missing(folder):
    """Whatever the field, and whether its files are there, empty or elsewhere."""
    paths = list(folder.glob("features/*/close.day.bin"))
    for path in paths:
        path.unlink()
    with pytest.raises(BarDataError) as told:
        read_table(NAMES)
    assert "value of $close;" in str(told.value)
    assert "$close?" not in str(told.value)
    for path in paths:
        np.array([0.0] + [np.nan] * DAYS, "<f4").tofile(path)
    for direct in (True, False):
        with pytest.raises(BarDataError) as told:
            read_table(NAMES, direct=direct)
        assert "$close?" not in str(told.value)
    expression = {**PLAIN, "volume": "$volume / $facto"}
    with pytest.raises(BarDataError, match=r"\$facto; \$facto: did you mean \$factor\?"):
        read_table(["SH600000"], fields={**expression, "close": "$open"})


def test_an_empty_folder_of_features_is_told(folder):
    for path in sorted(folder.glob("features/*/*")):
        path.unlink()
    with pytest.raises(BarDataError, match=r"features/sh600000 has no files"):
        read_table(NAMES)
    for path in sorted(folder.glob("features/*")):
        path.rmdir()
    with pytest.raises(BarDataError, match=r"features is empty"):
        read_table(NAMES)
    (folder / "features").rmdir()
    with pytest.raises(BarDataError, match=r"features is not there"):
        read_table(NAMES)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda lines: [*lines[:3], "07/01/2020x", *lines[3:]],
            r"line 4: '07/01/2020x' is no time",
        ),
        (lambda lines: ["\ufeff" + lines[0], *lines[1:]], r"line 1: .*is no time such as"),
        (lambda lines: ["date", *lines], r"line 1: 'date' is no time"),
        (
            lambda lines: [*lines[:5], lines[6], lines[5], *lines[7:]],
            r"line 7: 2020-01-09 stands af",
        ),
        (lambda lines: [*lines, lines[-1]], r"line 41: .* times must rise, each once"),
        (lambda lines: lines[::-1], r"line 2: .* stands after 2020-02-26"),
        (lambda lines: [f"{line} 00:00:00+08:00" for line in lines], r"line 1: .*without a zone"),
        (lambda lines: [], r"day\.txt holds no times"),
    ],
    ids=["unreadable", "mark", "header", "swapped", "twice", "reversed", "zone", "empty"],
)
def test_a_calendar_with_a_wrong_line_is_named(folder, change, says):
    """Out of order, bars were found by bisection at places that were not theirs."""
    path = folder / "calendars" / "day.txt"
    put(path, change(lines_of(path)))
    with pytest.raises(CalendarError, match=says) as told:
        read_table(NAMES)
    assert str(path) in str(told.value)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda past: past[:-3], r"ends on 2020-02-21 and day\.txt on 2020-02-26: bars were added"),
        (lambda past: [*past[:9], *past[10:], "2020-02-27"], r"lacks 1 times .*first 2020-01-15"),
        (lambda past: ["2020-02-27", "2020-02-28"], r"holds none of the 40 times of day\.txt"),
        (lambda past: [*past, "soon"], r"day_future\.txt, line 41: 'soon' is no time"),
    ],
    ids=["stale", "a hole", "future alone", "unreadable"],
)
def test_a_future_calendar_that_is_not_of_these_bars_is_refused(folder, make, says):
    """dump_update adds bars and leaves it as it was: forecasts got the times of known days."""
    past = lines_of(folder / "calendars" / "day.txt")
    path = folder / "calendars" / "day_future.txt"
    put(path, make(past))
    assert len(read_calendar()) == DAYS
    with pytest.raises(CalendarError, match=says):
        read_calendar(future=True)
    path.unlink()
    H.clear()
    assert len(read_calendar(future=True)) == DAYS, "without the file Qlib goes by day.txt"
    put(path, [*past, "2020-02-27"])
    assert len(read_calendar(future=True)) == DAYS + 1


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([], r"all\.txt names no instruments"),
        (["SH600000"], r"line 1: expected a name, its first and its last day with tabs"),
        (["SH600000 2020-01-02 2020-02-26"], r"tabs between them, got 'SH600000 2020-01-02"),
        (
            ["SH600001\t2020-01-02\t2020-02-26", "SH600000\t2020-02-26\t2020-01-02"],
            r"line 2: SH600000 ends on 2020-01-02 before it begins on 2020-02-26.*\(1 such",
        ),
        (["SH600000\t2020-01-02\t"], r"first and last day of SH600000 are no dates: .*''"),
        (["SH600000\tlisted\t2020-02-26"], r"line 1: .*are no dates: 'listed'"),
        (["SH600000\t2010-01-02\t2011-02-26"], r"no instrument .*'all'.*2020-01-02 to 2020-02-26"),
    ],
    ids=["empty", "names alone", "spaces", "order", "no end", "no date", "before the calendar"],
)
def test_a_market_that_names_nobody_says_why(folder, lines, says):
    put(folder / "instruments" / "all.txt", lines)
    with pytest.raises(BarDataError, match=says):
        read_spans("all")


def test_dates_of_a_market_may_be_spelled_as_qlib_reads_them(folder):
    put(folder / "instruments" / "all.txt", ["SH600000\t2020/01/02\t20200226\textra"])
    assert read_spans("all") == {
        "SH600000": [(pd.Timestamp("2020-01-02"), pd.Timestamp("2020-02-26"))]
    }


def test_a_market_without_a_file_names_those_there_are(folder):
    with pytest.raises(ConfigError, match=r"market 'csi300' has no file .*300\.txt; there are all"):
        read_spans("csi300")
    with pytest.raises(ConfigError, match=r"did you mean 'all'\?"):
        read_spans("al")
    (folder / "instruments" / "CSI300.txt").write_text("x\n")
    if not (folder / "instruments" / "csi300.txt").is_file():
        with pytest.raises(
            ConfigError, match=r"there is CSI300\.txt, and Qlib reads names in lower"
        ):
            read_spans("csi300")


def test_a_frequency_that_the_folder_lacks_names_those_it_has(folder):
    with pytest.raises(ConfigError, match=r"no bars of freq '5min'.*5min\.txt, only day\.txt"):
        read_calendar("5min")
    with pytest.raises(ConfigError, match=r"no bars of freq '1min'"):
        read_spans("all", "1min")


def test_a_folder_that_is_none_says_so(folder, tmp_path):
    open_folder(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"there is no Qlib folder .*nowhere"):
        read_calendar()
    (tmp_path / "nowhere").mkdir()
    with pytest.raises(ConfigError, match=r"nowhere is no Qlib folder: it has no calendars/; name"):
        read_spans("all")
    open_folder(folder)
    folder.rename(folder.with_name(".q.0123abcd.old"))
    with pytest.raises(ConfigError, match=r"a conversion that was killed put it aside as .*\.old"):
        read_calendar()


@pytest.mark.parametrize(
    ("spoil", "settings", "says"),
    [
        ("calendars/day.txt", {}, r"no bars of freq 'day'.*only an empty folder; .*convert"),
        ("instruments/all.txt", {}, r"all\.txt; the folder instruments is empty; .*convert"),
        ("", {"instruments": "al"}, r"market 'al' has no file .*al\.txt; did you mean 'all'"),
        ("", {"freq": "5min"}, r"5min\.txt, only day\.txt; give freq as its bars come \(day\)"),
        ("", {"freq": "hourly"}, r"no freq 'hourly': give day or as 5min"),
        ("features", {}, r"features is not there; .*convert"),
        ("folder", {}, r"there is no Qlib folder .*q \(a relative.*: give its whole path.*convert"),
        ("folder to file", {}, r"q is no Qlib folder: it is a file; name the one that holds"),
        ("calendar to nothing", {}, r"day\.txt holds no times; .*convert"),
    ],
)
def test_a_data_set_says_path_and_remedy_in_a_line(folder, spoil, settings, says):
    """An empty calendar was "index 0 is out of bounds", and no message said what to do."""
    if spoil == "calendar to nothing":
        put(folder / "calendars" / "day.txt", [])
    elif spoil.startswith("folder"):
        shutil.rmtree(folder)
        if spoil.endswith("file"):
            folder.write_text("no folder")
    elif (place := folder / spoil).is_file():
        place.unlink()
    elif spoil:
        shutil.rmtree(place)
    H.clear()
    handler = {"class": "KronosHandler", "module_path": "kronos_qlib.plugin.dataset"}
    made = KronosDataset({**handler, "kwargs": settings}, {"test": ("2020-02-03", "2020-02-14")})
    with pytest.raises(KronosError, match=says) as told:
        made.windows("test")
    assert "\n" not in str(told.value)


def test_every_message_names_the_folder(folder):
    """A traceback is long: its last line has to be enough to go and look."""
    (folder / "features" / "sz000001" / "low.day.bin").write_bytes(b"")
    with pytest.raises(KronosError) as told:
        read_table(NAMES)
    assert str(folder) in str(told.value)
