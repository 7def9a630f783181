"""The three scripts, called as a shell would call them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import qlib
from qlib.data import D
from qlib.data.cache import H

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
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


def open_provider(folder: Path) -> None:
    qlib.init(
        provider_uri=str(folder), region="us", kernels=1, clear_mem_cache=True, skip_if_reg=False
    )
    H.clear()


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
    assert "error bracket: 1\n  000001 2024-01-02: open 10, high 11" in capsys.readouterr().err
    assert not target.exists()
    assert csv_to_qlib.main([*asked, "--repair", "bracket"]) == 0
    assert "repaired: bracket changed 1 bars" in capsys.readouterr().out


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
