"""The three scripts, called as a shell would call them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
from qlib.data import D

from kronos_qlib.plugin.lookahead import open_provider

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
FIVE_MINUTES = ROOT.parent / "shared" / "data" / "cn_5min_one_stock.csv"
US_DAILY = ROOT.parent / "shared" / "data" / "us_daily_2013_2016.parquet"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        f"data_prep_{name}", ROOT / f"data_prep/{name}.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make_demo_market = script("make_demo_market")
csv_to_qlib = script("csv_to_qlib")
check_bars = script("check_bars")


def write_csv(path: Path, *, close: str = "10.5") -> Path:
    path.write_text(
        "code,trade_date,open,high,low,close,vol\n"
        f"000001,2024-01-02,10,11,9,{close},100\n"
        "000001,2024-01-03,10,11,9,10,100\n",
        encoding="utf-8",
    )
    return path


def test_the_demo_market_is_complete(tmp_path, capsys):
    target = tmp_path / "demo" / "market"
    small = ["--instruments", "8", "--years", "0.5"]
    assert make_demo_market.main([str(target), *small]) == 0
    assert "8 instruments, 131 days" in capsys.readouterr().out
    open_provider(target)
    members = D.list_instruments(D.instruments("all"), as_list=True)
    assert len(members) == 8 and "BENCHMARK" not in members
    assert D.features(["BENCHMARK"], ["$close"]).notna().all(axis=None)

    oracle = pd.read_parquet(target / "oracle.parquet")["oracle"]
    assert oracle.index.names == ["datetime", "instrument"]
    assert set(oracle.index.get_level_values("instrument")) <= set(members)
    assert len(pd.read_parquet(target / "bars.parquet")) > 900

    capsys.readouterr()  # what qlib.init says
    assert make_demo_market.main([str(target), *small]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert make_demo_market.main([str(target), *small, "--overwrite", "--seed", "5"]) == 0
    assert not pd.read_parquet(target / "oracle.parquet")["oracle"].equals(oracle)


def test_a_demo_market_that_cannot_be(tmp_path, capsys):
    assert make_demo_market.main([str(tmp_path / "m"), "--effect", "7"]) == 2
    assert capsys.readouterr().err == "error: market.effect must lie in [0, 0.5], got 7.0\n"


def test_a_csv_becomes_a_provider(tmp_path, capsys):
    source, target = write_csv(tmp_path / "bars.csv"), tmp_path / "q"
    columns = ["--columns", "date=trade_date"]
    assert csv_to_qlib.main([str(source), str(target), *columns, "--market", "csi300"]) == 0
    said = capsys.readouterr().out
    assert "note: amount is missing" in said
    assert "1 instruments, 2 times from 2024-01-02 to 2024-01-03, 2 bars" in said
    open_provider(target)
    read = D.features(D.instruments("csi300"), ["$close"])
    assert read["$close"].tolist() == [10.5, 10.0]
    assert read.index[0][0] == "000001"


def test_faults_stop_the_conversion_until_a_repair_is_named(tmp_path, capsys):
    source, target = write_csv(tmp_path / "bars.csv", close="12"), tmp_path / "q"
    asked = [str(source), str(target), "--columns", "date=trade_date"]
    assert csv_to_qlib.main(asked) == 1
    said = capsys.readouterr().err
    assert "error bracket: 1\n  000001 2024-01-02: open 10, high 11" in said
    assert "1 errors, nothing written" in said
    assert said.endswith("\n  bracket: --repair drop-bracket or bracket fixes it\n")
    assert not target.exists()
    assert csv_to_qlib.main([*asked, "--repair", "bracket"]) == 0
    said = capsys.readouterr().out
    assert "repaired:\nbracket: 1\n  000001 2024-01-02: widened from high 11, low 9\n" in said


HEADER = "symbol,date,open,high,low,close,volume\n"


@pytest.fixture
def repeated(tmp_path) -> Path:
    """Five bars that are there twice: one as it was, four with another close."""
    rows = [
        f"{symbol},2024-01-0{day},10,11,9,{close},100\n"
        for close in ("10.5", "10.25")
        for symbol in ("000001", "000002")
        for day in (2, 3, 4)
    ]
    path = tmp_path / "dup.csv"
    path.write_text(HEADER + "".join([*rows[:7], *rows[8:], rows[0]]), encoding="utf-8")
    return path


def test_check_bars_lists_every_repeat(repeated, capsys):
    """The reader stopped at the first one, so that neither script ever saw a duplicate."""
    assert check_bars.main([str(repeated)]) == 1
    said = capsys.readouterr().out.splitlines()
    start = said.index("error duplicate: 6")
    listed = [line.split(":")[0].split() for line in said[start + 1 : start + 7]]
    expected = [["000001", "2024-01-02"]] * 2 + [["000001", "2024-01-04"]]
    expected += [["000002", f"2024-01-0{day}"] for day in (2, 3, 4)]
    assert listed == expected
    assert "error order: 2" in said


def test_repeats_are_refused_until_their_repair_is_named(repeated, tmp_path, capsys):
    target = tmp_path / "new" / "q"
    assert csv_to_qlib.main([str(repeated), str(target)]) == 1
    said = capsys.readouterr().err
    assert "error duplicate: 6\n  000001 2024-01-02: " in said
    assert [path.name for path in tmp_path.iterdir()] == ["dup.csv"]

    assert csv_to_qlib.main([str(repeated), str(target), "--repair", "drop-duplicates"]) == 0
    said = capsys.readouterr().out
    assert "drop-duplicates: 6\n" in said and said.count("a later row has this time") == 6
    assert "note: the rows of 1 instruments were out of order: sorted" in said
    open_provider(target)
    close = D.features(["000001", "000002"], ["$close"])["$close"]
    assert close.tolist() == [10.5, 10.5, 10.25, 10.25, 10.25, 10.25]


def test_check_bars_repairs_into_a_new_file(repeated, tmp_path, capsys):
    before, output = repeated.read_bytes(), tmp_path / "good.csv"
    asked = [str(repeated), "--output", str(output), "--repair", "sort", "drop-duplicates"]
    assert check_bars.main(asked) == 0
    said = capsys.readouterr().out
    assert "repaired:\ndrop-duplicates: 6\n" in said and "sort: 1\n" in said
    assert said.endswith("good.csv: 6 bars of 2 instruments, 0 errors, 0 warnings\n")
    assert repeated.read_bytes() == before
    assert check_bars.main([str(output)]) == 0

    written = output.read_bytes()
    assert check_bars.main(asked) == 2
    assert "ask to overwrite it (overwrite=True, --overwrite)" in capsys.readouterr().err
    assert output.read_bytes() == written
    assert check_bars.main([*asked, "--overwrite"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dup.csv", "good.csv"]


def test_check_bars_reports_what_its_repairs_leave(tmp_path, capsys):
    source, output = write_csv(tmp_path / "bars.csv", close="20"), tmp_path / "less.parquet"
    columns = ["--columns", "date=trade_date"]
    asked = [str(source), *columns, "--repair", "drop-nan", "--output", str(output)]
    assert check_bars.main(asked) == 1
    assert "error bracket: 1\n" in capsys.readouterr().out
    assert len(pd.read_parquet(output)) == 2


def test_check_bars_refuses_half_a_repair(repeated, tmp_path, capsys):
    for half in (["--repair", "sort"], ["--output", str(tmp_path / "x.csv")]):
        with pytest.raises(SystemExit) as stopped:
            check_bars.main([str(repeated), *half])
        assert stopped.value.code == 2
    inside = ["--repair", "sort", "--output", str(tmp_path / "x.csv")]
    assert check_bars.main([str(tmp_path), *inside]) == 2
    assert "write it elsewhere" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["dup.csv"]


def test_the_exchanges_calendar_replaces_weekdays(tmp_path, capsys):
    source, file = write_csv(tmp_path / "bars.csv"), tmp_path / "days.txt"
    asked = [str(source), str(tmp_path / "q"), "--columns", "date=trade_date"]
    assert csv_to_qlib.main([*asked, "--future-bars", "2"]) == 0
    assert "weekdays to 2024-01-05 and knows no holidays" in capsys.readouterr().out

    file.write_text("2024-01-02\n2024-01-03\n20240108\n2024-01-10\n", encoding="utf-8")
    asked += ["--future-calendar", str(file), "--overwrite"]
    assert csv_to_qlib.main(asked) == 0
    assert "holidays" not in capsys.readouterr().out
    open_provider(tmp_path / "q")
    ahead = D.calendar(freq="day", future=True)
    assert [f"{day:%m%d}" for day in ahead] == ["0102", "0103", "0108", "0110"]

    file.write_text("2024-01-08\n\n9 January\n", encoding="utf-8")
    capsys.readouterr()
    assert csv_to_qlib.main(asked) == 2
    assert f"error: {file}, line 3: expected a date" in capsys.readouterr().err


def write_week(path: Path, *, closes: str = "10 10 10 10", days: str = "02 03 04 05") -> Path:
    """Flat daily bars of one instrument in January 2024."""
    rows = [
        f"000001,2024-01-{day},{close},{close},{close},{close},100\n"
        for day, close in zip(days.split(), closes.split(), strict=True)
    ]
    path.write_text(HEADER + "".join(rows), encoding="utf-8")
    return path


def test_an_exchange_gives_the_future_its_holidays(tmp_path, capsys):
    """Martin Luther King's day, 15 January 2024, is a weekday on which New York is closed."""
    source = write_week(tmp_path / "bars.csv", days="08 09 10 11")
    asked = [str(source), str(tmp_path / "q"), "--exchange", "XNYS", "--future-bars", "3"]
    assert csv_to_qlib.main(asked) == 0
    assert "holidays" not in capsys.readouterr().out
    open_provider(tmp_path / "q")
    ahead = D.calendar(freq="day", future=True)
    assert [f"{day:%m%d}" for day in ahead[4:]] == ["0112", "0116", "0117"]


def test_bars_that_do_not_fit_the_exchange_are_named(tmp_path, capsys):
    source, target = write_week(tmp_path / "bars.csv", days="05 06 07 08"), tmp_path / "q"
    asked = [str(source), str(target), "--exchange"]
    assert csv_to_qlib.main([*asked, "XNYS"]) == 2
    said = capsys.readouterr().err
    assert "error: the bars do not fit --exchange XNYS: 2024-01-07 is on no session" in said
    assert "--future-calendar FILE" in said
    assert csv_to_qlib.main([*asked, "XNIS"]) == 2
    assert "knows no exchange 'XNIS'" in capsys.readouterr().err
    assert not target.exists()
    with pytest.raises(SystemExit) as stopped:
        csv_to_qlib.main([*asked, "XNYS", "--future-calendar", "days.txt"])
    assert stopped.value.code == 2


@pytest.mark.skipif(not FIVE_MINUTES.exists(), reason=f"{FIVE_MINUTES} is not there")
def test_five_minute_bars_get_the_exchanges_own_times(tmp_path):
    target = tmp_path / "q"
    asked = [str(FIVE_MINUTES), str(target), "--freq", "5min", "--exchange", "XSHG"]
    assert csv_to_qlib.main([*asked, "--future-bars", "48"]) == 0
    times = pd.DatetimeIndex((target / "calendars" / "5min_future.txt").read_text().splitlines())
    clock = {f"{time:%H:%M}" for time in times[-48:]}
    assert len(clock) == 48 and {"09:35", "11:30", "13:05", "15:00"} <= clock


def test_a_jump_is_told_and_refused_when_asked(tmp_path, capsys):
    source, target = write_week(tmp_path / "bars.csv", closes="10 10 20 20"), tmp_path / "q"
    asked = [str(source), str(target)]
    assert csv_to_qlib.main([*asked, "--refuse", "jump"]) == 1
    said = capsys.readouterr().err
    assert "warning jump: 1\n  000001 2024-01-04: close 10 to 20, +100.0%" in said
    assert not target.exists()
    assert csv_to_qlib.main([*asked, "--refuse", "jump", "--max-move", "2"]) == 0
    assert "warning jump" not in capsys.readouterr().out
    assert csv_to_qlib.main([*asked, "--overwrite"]) == 0
    assert "left as they are:\nwarning jump: 1\n  000001 2024-01-04" in capsys.readouterr().out
    asked += ["--overwrite", "--refuse", "jump", "--repair", "drop-before-jump"]
    assert csv_to_qlib.main(asked) == 0
    said = capsys.readouterr().out
    assert "drop-before-jump: 1\n  000001 2024-01-04: dropped: the 2 bars before" in said
    open_provider(target)
    assert D.features(["000001"], ["$close"])["$close"].tolist() == [20.0, 20.0]


def test_gaps_and_strange_sizes_are_refused_when_asked(tmp_path, capsys):
    source = write_week(tmp_path / "bars.csv")
    with source.open("a", encoding="utf-8") as file:
        file.write("000002,2024-01-02,5,5,5,5,1\n000002,2024-01-05,5,5,5,5,1\n")
    asked = [str(source), str(tmp_path / "q"), "--refuse", "gap", "vwap"]
    assert csv_to_qlib.main(asked) == 1
    assert "warning gap: 1\n  000002 2024-01-03: 2 missing" in capsys.readouterr().err
    assert csv_to_qlib.main([*asked[:2], "--refuse", "vwap"]) == 0


def test_a_frequency_that_the_bars_do_not_have_is_refused(tmp_path, capsys):
    """Daily bars were written as bars of five minutes without a word."""
    source, target = write_csv(tmp_path / "bars.csv"), tmp_path / "q"
    assert csv_to_qlib.main([str(source), str(target), "--freq", "5min"]) == 2
    said = capsys.readouterr().err
    assert "000001 2024-01-03 00:00:00: bars stand 1 day apart" in said and "--freq day" in said
    assert not target.exists()


def test_a_report_tells_what_was_found_repaired_and_left_refused_or_not(tmp_path, capsys):
    source, report = write_csv(tmp_path / "bars.csv", close="12"), tmp_path / "report.csv"
    asked = [str(source), str(tmp_path / "q"), "--report", str(report)]
    assert csv_to_qlib.main(asked) == 1
    assert pd.read_csv(report)[["stage", "rule"]].to_numpy().tolist() == [["found", "bracket"]]
    assert csv_to_qlib.main([*asked, "--repair", "drop-bracket"]) == 0
    told = pd.read_csv(report).fillna("")
    assert list(told.columns) == ["symbol", "date", "stage", "severity", "rule", "detail"]
    assert told[["stage", "rule"]].to_numpy().tolist() == [
        ["found", "bracket"],
        ["repaired", "drop-bracket"],
    ]
    assert csv_to_qlib.main([*asked, "--repair", "drop-bracket", "bracket"]) == 2
    assert "exclude each other" in capsys.readouterr().err


def test_a_report_is_never_written_onto_what_it_is_about(tmp_path, capsys):
    source, target = write_csv(tmp_path / "bars.csv"), tmp_path / "q"
    before = source.read_bytes()
    for asked in ([source, target, source], [tmp_path, target, tmp_path / "r.csv"]):
        source_, target_, report = map(str, asked)
        assert csv_to_qlib.main([source_, target_, "--report", report]) == 2
        assert check_bars.main([source_, "--report", report]) == 2
    assert csv_to_qlib.main([str(source), str(target), "--report", str(target / "r.csv")]) == 2
    output = str(tmp_path / "good.csv")
    asked = [str(source), "--repair", "sort", "--output", output, "--report", output]
    assert check_bars.main(asked) == 2
    assert capsys.readouterr().err.count("write it elsewhere") == 6
    assert source.read_bytes() == before and sorted(tmp_path.iterdir()) == [source]


def test_a_chinese_table_is_converted(tmp_path, capsys):
    source, target = tmp_path / "600000.csv", tmp_path / "q"
    text = "日期;开盘;最高;最低;收盘;成交量\n2024/1/2;10;11;9;10.5;100\n"
    source.write_bytes(text.encode("gb18030"))
    asked = [str(source), str(target)]
    assert csv_to_qlib.main(asked) == 2
    assert "--encoding gb18030" in capsys.readouterr().err
    assert csv_to_qlib.main([*asked, "--encoding", "gb18030"]) == 0
    assert "date from '日期', open from '开盘'" in capsys.readouterr().out
    assert check_bars.main([str(source), "--encoding", "gb18030", "--delimiter", ";"]) == 0
    assert check_bars.main([str(source), "--encoding", "gb18030", "--delimiter", ","]) == 2


def test_bad_input_is_one_line_and_code_two(tmp_path, capsys):
    source, target = write_csv(tmp_path / "bars.csv", close="ten"), tmp_path / "q"
    asked = [str(source), str(target), "--columns", "date=trade_date"]
    assert csv_to_qlib.main(asked) == 2
    captured = capsys.readouterr()
    assert captured.err == (
        f"error: {source}, row 2, column 'close': expected a number, got 'ten'\n"
    )
    assert check_bars.main([str(tmp_path / "none.csv")]) == 2
    assert check_bars.main([str(source), "--columns", "date"]) == 2
    with pytest.raises(SystemExit) as stopped:
        csv_to_qlib.main([*asked, "--repair", "wish"])
    assert stopped.value.code == 2


def test_check_bars_counts_errors_apart_from_warnings(tmp_path, capsys):
    columns = ["--columns", "date=trade_date"]
    assert check_bars.main([str(write_csv(tmp_path / "good.csv")), *columns]) == 0
    assert "2 bars of 1 instruments, 0 errors, 0 warnings" in capsys.readouterr().out
    bad = [str(write_csv(tmp_path / "bad.csv", close="20")), *columns]
    report = tmp_path / "problems.csv"
    assert check_bars.main([*bad, "--report", str(report)]) == 1
    assert "1 errors" in capsys.readouterr().out
    assert set(pd.read_csv(report)["rule"]) >= {"bracket", "jump"}


@pytest.mark.parametrize("module", [make_demo_market, csv_to_qlib, check_bars])
def test_help_shows_an_example(module, capsys):
    with pytest.raises(SystemExit) as stopped:
        module.main(["--help"])
    assert stopped.value.code == 0
    assert "example:" in capsys.readouterr().out


@pytest.mark.skipif(not US_DAILY.exists(), reason=f"{US_DAILY} is not there")
def test_the_dirty_us_panel_is_reported(capsys):
    assert check_bars.main([str(US_DAILY), "--no-gaps"]) == 1
    said = capsys.readouterr().out
    assert "error bracket: 12" in said and "error nan: 10" in said and "warning jump: 10" in said


@pytest.mark.skipif(not US_DAILY.exists(), reason=f"{US_DAILY} is not there")
def test_the_dirty_us_panel_becomes_a_provider_only_when_told_how(tmp_path, capsys):
    target, report = tmp_path / "q", tmp_path / "report.csv"
    asked = [str(US_DAILY), str(target), "--report", str(report), "--exchange", "XNYS"]
    assert csv_to_qlib.main(asked) == 1
    refused = capsys.readouterr().err
    assert "error bracket: 12" in refused and "error nan: 10" in refused
    counts = pd.read_csv(report, keep_default_na=False)["rule"].value_counts()
    assert (counts["nan"], counts["bracket"], counts["jump"]) == (10, 12, 10)

    asked += ["--repair", "drop-nan", "drop-bracket", "split-jumps"]
    assert csv_to_qlib.main([*asked, "--refuse", "jump"]) == 1
    assert "warning jump: 6" in capsys.readouterr().err
    assert not target.exists()
    assert csv_to_qlib.main(asked) == 0
    said = capsys.readouterr().out
    assert "drop-nan: 10" in said and "drop-bracket: 12" in said and "split-jumps: 2" in said
    assert "warning jump: 6" in said and "EBAY 2015-07-20" in said
    open_provider(target)
    read = D.features(["DISCA"], ["$close", "$factor"], "2014-08-06", "2014-08-07")
    assert read["$close"].tolist() == pytest.approx([41.51, 40.975])
    assert read["$factor"].tolist() == [0.5, 1.0]
    assert csv_to_qlib.main([*asked, "drop-before-jump", "--refuse", "jump", "--overwrite"]) == 0
    assert "left as they are" not in capsys.readouterr().out
