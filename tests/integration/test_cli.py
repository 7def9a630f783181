"""The console command: help, exit codes, one-line errors, and forecasts of a file."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.cli import main as cli
from kronos_qlib.cli.data_command import COMMANDS as DATA_COMMANDS
from kronos_qlib.cli.main import COMMANDS, main
from kronos_qlib.errors import TrainingError
from kronos_qlib.schema import BAR_COLUMNS

pytestmark = pytest.mark.integration

FIVE_MINUTES = Path(__file__).parents[3] / "shared" / "data" / "cn_5min_one_stock.csv"
EVERY = [[name] for name in COMMANDS] + [["data", name] for name in DATA_COMMANDS]


@pytest.fixture
def csv(tmp_path) -> Path:
    """Daily bars of two instruments with Chinese headers, the newest on 2023-12-28."""
    days = pd.bdate_range(end="2023-12-28", periods=40)
    rng = np.random.default_rng(0)
    tables = []
    for symbol in ("600000", "600001"):
        close = 10 * np.exp(np.cumsum(rng.normal(0, 0.01, len(days))))
        table = pd.DataFrame({"代码": symbol, "日期": days, "开盘": close, "收盘": close})
        table["最高"], table["最低"], table["成交量"] = close * 1.01, close * 0.99, 1000.0
        tables.append(table)
    path = tmp_path / "bars.csv"
    pd.concat(tables).to_csv(path, index=False)
    return path


def ask(csv, *more) -> list[str]:
    out = str(csv.with_name("forecast.csv"))
    quick = ["--symbol", "600001", "--horizon", "3", "--paths", "8", "--lookback", "20"]
    return ["forecast", str(csv), *quick, "--out", out, *more]


# Help, and what a failure looks like.


@pytest.mark.parametrize("command", EVERY, ids=" ".join)
def test_every_command_says_what_it_does_and_shows_an_example(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    example = said.split("example:\n")[1].splitlines()[0]
    assert example.startswith(f"  kronos-qlib {command[0]}")
    assert "--debug" in said
    described = said.split("\n\n")[1]
    assert len(described) > 40 and not described.startswith("options")


LOOK = """
import json, sys
from kronos_qlib.cli.main import main
for command in [["--help"], ["data", "--help"], *([name, "--help"] for name in {light})]:
    try:
        main(command)
    except SystemExit as stopped:
        assert stopped.code == 0
print(json.dumps(sorted({{"mlflow", "qlib", "pandas", "torch", "numpy"}} & set(sys.modules))))
"""


def test_help_answers_at_once():
    light = ["forecast", "calibrate", "finetune", "compare", "models"]
    script = LOOK.format(light=light)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []


@pytest.mark.parametrize("module", ["kronos_qlib", "kronos_qlib.cli"])
def test_the_package_runs_as_a_module(module):
    """torchrun starts it so."""
    command = [sys.executable, "-m", module, "compare", "--no-such-flag"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "unrecognized arguments: --no-such-flag" in done.stderr


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (TrainingError("no windows\nat all"), 1, "kronos-qlib: no windows at all\n"),
        (OSError(28, "No space left"), 1, "OSError: [Errno 28] No space left (--debug shows"),
        (ZeroDivisionError(), 1, "kronos-qlib: ZeroDivisionError: no message (--debug shows"),
        (KeyboardInterrupt(), 130, "kronos-qlib: interrupted\n"),
    ],
)
def test_a_failure_is_one_line_and_a_code(error, code, told, monkeypatch, capsys):
    def fail(arguments: argparse.Namespace) -> None:
        raise error

    monkeypatch.setattr("kronos_qlib.cli.models_command.models", fail)
    assert main(["models"]) == code
    said = capsys.readouterr()
    assert told in said.err and said.err.count("\n") == 1 and said.out == ""
    if code != 130:
        for asked in (["--debug", "models"], ["models", "--debug"]):
            assert main(asked) == code
            assert "Traceback" in capsys.readouterr().err


def test_a_command_that_is_none_is_refused(capsys):
    for asked in ([], ["forecats"], ["data"], ["data", "chek"]):
        with pytest.raises(SystemExit) as stopped:
            main(asked)
        assert stopped.value.code == 2
    assert "invalid choice: 'forecats'" in capsys.readouterr().err
    assert cli.build_parser().parse_args(["models"]).command.__name__ == "models"


# Models.


def test_models_lists_what_is_here_and_what_is_not(tmp_path, monkeypatch, capsys):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert main(["models"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[2:]}
    assert list(rows) == ["nano", "mini", "small", "base"]
    assert re.search(r"0\.8 M +256 bars +- +bundled", rows["nano"])
    assert re.search(
        r"24\.7 M +512 bars +901c26c1 +available +NeoQuasar/Kronos-small", rows["small"]
    )
    assert "102.3 M" in rows["base"] and "newest" in rows["base"]


def test_a_model_is_cached_when_both_halves_are(tmp_path, monkeypatch):
    from kronos_qlib.model.checkpoints import catalogue
    from kronos_qlib.model.checkpoints.pretrained import ALIASES

    def put(repo: str, revision: str | None) -> None:
        place = tmp_path / f"models--{repo.replace('/', '--')}"
        commit = revision or "a" * 40
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text(commit, encoding="utf-8")
        (place / "snapshots" / commit).mkdir(parents=True)
        for file in ("config.json", "model.safetensors"):
            (place / "snapshots" / commit / file).touch()

    from huggingface_hub import try_to_load_from_cache

    def look(repo: str, file: str, revision: str | None) -> object:
        return try_to_load_from_cache(repo, file, cache_dir=tmp_path, revision=revision)

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", look)
    small = ALIASES["small"]
    put(small.predictor, small.predictor_revision)
    assert [each.state for each in catalogue.known_models()] == ["bundled"] + ["available"] * 3
    put(small.tokenizer, small.tokenizer_revision)
    found = {each.alias: each for each in catalogue.known_models()}
    assert [each.state for each in found.values()] == [
        "bundled",
        "available",
        "cached",
        "available",
    ]
    assert found["small"].folder.name == small.predictor_revision


# Forecast.


def test_a_forecast_is_a_table_and_a_picture(csv, capsys):
    assert main(ask(csv, "--exchange", "XSHG")) == 0
    said = capsys.readouterr().out
    assert "date from '日期', open from '开盘'" in said
    assert "600001: 40 bars read, the last 20 seen, 2023-12-01 to 2023-12-28" in said
    assert "nano sees 256 bars at once" in said
    assert "3 bars to come, 2023-12-29 to 2024-01-03, by XSHG" in said
    table = pd.read_csv(csv.with_name("forecast.csv"), dtype={"symbol": str})
    assert table["symbol"].unique().tolist() == ["600001"]
    assert table["date"].to_list() == ["2023-12-29", "2024-01-02", "2024-01-03"]
    levels = [f"close_q{level}" for level in (0.05, 0.25, 0.5, 0.75, 0.95)]
    assert set(table["calibration"]) == {"uncalibrated"}
    assert table.columns.to_list() == [
        *("symbol", "date", "calibration", "anchored"),
        *("open", "high", "low", "close", "volume", "amount"),
        *levels,
        "prob_up",
    ]
    assert (table[levels].diff(axis=1).iloc[:, 1:] >= 0).all(axis=None)
    assert (table["high"] >= table["low"]).all() and table["prob_up"].between(0, 1).all()
    assert csv.with_name("forecast.png").read_bytes().startswith(b"\x89PNG")


def titles_of(monkeypatch) -> list:
    """Figures that a command draws, each as it was made."""
    from kronos_qlib.evaluation.forecasts import candles

    drawn, draw = [], candles.candle_figure

    def keep(*arguments, **named):
        drawn.append(draw(*arguments, **named))
        return drawn[-1]

    monkeypatch.setattr(candles, "candle_figure", keep)
    return drawn


def test_whether_paths_begin_at_the_last_close_is_in_line_and_table(csv, capsys):
    """The first bar lay 4 % below the last, and nothing said that paths may be left so."""
    first = {}
    for more, word in (([], "(anchored)"), (["--no-anchor"], "(not anchored)")):
        assert main(ask(csv, "--freq", "B", "--overwrite", *more)) == 0
        assert word in capsys.readouterr().out.splitlines()[-2]
        table = pd.read_csv(csv.with_name("forecast.csv"))
        assert set(table["anchored"]) == {not more}
        first[word] = table["close"].iloc[0]
    assert first["(anchored)"] != first["(not anchored)"]


def test_what_is_uncalibrated_says_so_wherever_it_is_read(csv, capsys, monkeypatch):
    """ "up in 18 %" was printed of paths that are known to be too bold."""
    figures = titles_of(monkeypatch)
    assert main(ask(csv, "--freq", "B")) == 0
    line = capsys.readouterr().out.splitlines()[-2]
    assert ", 8 paths, uncalibrated: median" in line and "% of the paths up" in line
    assert "lowest" in line and "90 %" not in line  # eight paths have no such band
    (figure,) = figures
    assert figure.texts or figure.axes
    assert "8 paths of nano, uncalibrated" in title_of(figure)
    assert main(ask(csv, "--freq", "B", "--overwrite", "--paths", "20")) == 0
    assert "90 % of the paths within" in capsys.readouterr().out


def title_of(figure) -> str:
    texts = [figure.get_suptitle(), *(axes.get_title(loc="left") for axes in figure.axes)]
    return " ".join([*texts, *(axes.get_title() for axes in figure.axes)])


def test_one_path_has_no_band_and_no_share(csv, capsys, monkeypatch):
    """A single path was said to be "up in 100 %", with a band of no width around it."""
    figures = titles_of(monkeypatch)
    asked = ["--freq", "B", "--paths", "1"]
    assert main(ask(csv, *asked)) == 0
    line = capsys.readouterr().out.splitlines()[-2]
    assert re.search(r", one path, uncalibrated: [+-]\d+\.\d\d%, one draw", line)
    assert not re.search(r"90 %|up in|median|mean|paths", line)
    table = pd.read_csv(csv.with_name("forecast.csv"))
    expected = ["symbol", "date", "calibration", "anchored", *BAR_COLUMNS]
    assert table.columns.to_list() == expected
    (figure,) = figures
    assert "one path of nano, uncalibrated" in title_of(figure)
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels[0] == "one path" and not {"mean", "median"} & set(labels)
    assert not any("of the paths" in label for label in labels)
    assert main(ask(csv, *asked, "--overwrite", "--quantiles", "0.5")) == 2
    assert "--quantiles of one path would all be that path" in capsys.readouterr().err


def test_the_same_seed_gives_the_same_file_and_another_another(csv):
    out = csv.with_name("forecast.csv")
    written = []
    for seed in ("0", "0", "1"):
        assert main(ask(csv, "--freq", "B", "--overwrite", "--seed", seed)) == 0
        written.append(out.read_bytes())
    assert written[0] == written[1] != written[2]


def test_only_the_lookback_counts(csv):
    """Bars before the lookback, and another instrument's, must not move the forecast."""
    assert main(ask(csv, "--freq", "B")) == 0
    first = csv.with_name("forecast.csv").read_bytes()
    bars = pd.read_csv(csv, dtype={"代码": str})
    mine = bars[bars["代码"] == "600001"].tail(20)
    mine.to_csv(csv, index=False)
    assert main(ask(csv, "--freq", "B", "--overwrite")) == 0
    assert csv.with_name("forecast.csv").read_bytes() == first


def test_a_lookback_beyond_the_context_is_cut_and_says_so(tmp_path, capsys):
    """The older bars set the normalisation: 400 bars of a rising share fell by 4 % at once."""
    days = pd.bdate_range("2023-01-02", periods=300)
    close = np.linspace(20.0, 80.0, len(days))
    prices = {name: close for name in ("open", "high", "low", "close")}
    bars = tmp_path / "rising.csv"
    pd.DataFrame({"date": days, **prices, "volume": 1e6}).to_csv(bars, index=False)

    def run(name, *more):
        out = tmp_path / name
        quick = ["--horizon", "3", "--paths", "4", "--out", str(out)]
        assert main(["forecast", str(bars), *quick, *more]) == 0
        return pd.read_csv(out), capsys.readouterr()

    cut, (said, _) = run("cut.csv", "--lookback", "300")
    assert "--lookback 300: the last 253 bars are taken, nano sees 256" in said
    assert cut["close"].iloc[0] == pytest.approx(80.0, rel=0.02)
    usual, _ = run("usual.csv")
    pd.testing.assert_frame_equal(cut, usual)
    _, (said, _) = run("slid.csv", "--lookback", "300", "--slide")
    assert "the last 256 bars are taken" in said
    assert said.index("which is slow") < said.index("bars read")  # before the work


@pytest.mark.skipif(not FIVE_MINUTES.exists(), reason=f"{FIVE_MINUTES} is not there")
def test_five_minute_bars_go_on_in_the_exchanges_hours(tmp_path):
    out = tmp_path / "f.csv"
    quick = ["--horizon", "26", "--paths", "2", "--lookback", "40", "--quantiles", "0.5"]
    asked = ["forecast", str(FIVE_MINUTES), "--exchange", "XSHG", "--out", str(out), *quick]
    assert main(asked) == 0
    times = pd.read_csv(out, parse_dates=["date"])["date"]
    assert times.iloc[[0, 23, 24]].dt.strftime("%d %H:%M").to_list() == [
        "29 13:05",
        "29 15:00",
        "30 09:35",
    ]


@pytest.mark.parametrize(
    ("more", "code", "told"),
    [
        (["--symbol", "600002"], 2, "has no '600002'; it holds 600000, 600001"),
        (["--lookback", "41"], 2, "--lookback must lie in 2 to 40"),
        (["--horizon", "0"], 2, "--horizon must be at least 1"),
        (["--quantiles", "1.5"], 2, "--quantiles lie in 0 to 1"),
        (["--paths", "0"], 2, "paths"),
        (["--out", "f.txt"], 2, "expected a name ending in .csv"),
        (["--out", "none/f.csv"], 2, "none is no folder to write f.csv in"),
        (["--picture", "f.gif"], 2, "ending in .png"),
        (["--model", "nanoo"], 1, "did you mean 'nano'"),
        (["--columns", "close=shut"], 1, "no column 'shut'"),
    ],
)
def test_a_forecast_that_cannot_be(csv, more, code, told, capsys, monkeypatch):
    monkeypatch.chdir(csv.parent)
    assert main(ask(csv, "--freq", "B", *more)) == code
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1
    assert [path.name for path in csv.parent.iterdir()] == ["bars.csv"]


def test_a_forecast_replaces_nothing_unasked_and_takes_one_rule_for_times(csv, capsys):
    csv.with_name("forecast.png").touch()
    assert main(ask(csv, "--freq", "B")) == 2
    assert "forecast.png exists; name another file or say --overwrite" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(ask(csv, "--freq", "B", "--exchange", "XSHG"))
    assert stopped.value.code == 2
    several = ["forecast", str(csv), "--freq", "B", "--out", str(csv.with_name("g.csv"))]
    assert main(several) == 2
    assert "holds 600000, 600001; say which with --symbol" in capsys.readouterr().err


def test_broken_bars_in_the_lookback_are_refused(csv, capsys):
    bars = pd.read_csv(csv, dtype={"代码": str})
    bars.loc[len(bars) - 3, "最高"] = 1.0
    bars.to_csv(csv, index=False)
    assert main(ask(csv, "--freq", "B")) == 1
    said = capsys.readouterr().err
    assert "600001 2023-12-26" in said and "kronos-qlib data check" in said


# The tools of data_prep as commands; what they do is tested with the scripts.


def test_data_check_has_the_scripts_codes(csv, capsys):
    assert main(["data", "check", str(csv)]) == 0
    assert "80 bars of 2 instruments, 0 errors" in capsys.readouterr().out
    bars = pd.read_csv(csv, dtype={"代码": str})
    bars.loc[3, "最高"] = 1.0
    bars.to_csv(csv, index=False)
    assert main(["data", "check", str(csv)]) == 1
    assert main(["data", "check", str(csv.with_name("none.csv"))]) == 2
    assert "none.csv: no such file" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["data", "check", str(csv), "--repair", "sort"])
    assert stopped.value.code == 2


def test_data_convert_and_demo_write_folders(csv, capsys):
    target = csv.with_name("q")
    assert main(["data", "convert", str(csv), str(target), "--exchange", "XSHG"]) == 0
    assert "2 instruments, 40 times" in capsys.readouterr().out
    assert (target / "features" / "600001" / "close.day.bin").exists()
    small = ["--instruments", "4", "--years", "0.5"]
    market = csv.with_name("market")
    assert main(["data", "demo", str(market), *small]) == 0
    assert (market / "oracle.parquet").exists()
    assert main(["data", "demo", str(market), *small]) == 2


def write_dates(path: Path, dates: pd.DatetimeIndex) -> Path:
    close = 10 + np.sin(np.arange(len(dates)))
    table = pd.DataFrame({"date": dates, **dict.fromkeys(("open", "high", "low", "close"), close)})
    table.assign(volume=100.0).to_csv(path, index=False)
    return path


def ahead_of(path: Path, *more: str) -> list[str]:
    out = path.with_name("f.csv")
    quick = ["--horizon", "2", "--paths", "2", "--lookback", "40", "--overwrite"]
    assert main(["forecast", str(path), "--out", str(out), *quick, *more]) == 0
    return pd.read_csv(out)["date"].to_list()


def test_without_a_rule_bars_go_on_as_they_came(tmp_path, capsys):
    """A frequency had to be named, and was believed, whatever the step of the bars."""
    weekly = write_dates(tmp_path / "w.csv", pd.date_range("2023-01-06", periods=60, freq="W-FRI"))
    assert ahead_of(weekly) == ["2024-03-01", "2024-03-08"]
    said = capsys.readouterr().out
    assert "by the pattern of the past (weekly, on Fridays)" in said
    assert "note: " in said and "knows no holidays" in said
    coins = write_dates(tmp_path / "c.csv", pd.date_range("2024-01-01", "2024-03-01"))
    assert ahead_of(coins) == ["2024-03-02", "2024-03-03"]
    days = pd.bdate_range("2024-01-01", periods=40) + pd.Timedelta("15h")
    closes = write_dates(tmp_path / "d.csv", days)
    assert ahead_of(closes) == ["2024-02-26 15:00:00", "2024-02-27 15:00:00"]
    # The lookback alone would be too short to show the week.
    minutes = pd.concat(
        pd.Series(pd.date_range(f"{day:%F} 09:35", f"{day:%F} 11:30", freq="5min"))
        for day in pd.bdate_range("2024-01-01", periods=10)
    )
    mornings = write_dates(tmp_path / "m.csv", pd.DatetimeIndex(minutes))
    assert ahead_of(mornings) == ["2024-01-15 09:35:00", "2024-01-15 09:40:00"]
    capsys.readouterr()
    assert ahead_of(mornings, "--freq", "5min") == ["2024-01-12 11:35:00", "2024-01-12 11:40:00"]
    assert "times at which no day of the past has a bar" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("dates", "freq", "told"),
    [
        (pd.date_range("2023-01-06", periods=60, freq="W-FRI"), "B", "give freq 'W-FRI'"),
        (pd.date_range("2023-01-06", periods=60, freq="W-FRI"), "D", "give freq 'W-FRI'"),
        (pd.date_range("2024-01-01", periods=60), "B", "exchange '24/7'"),
        (pd.date_range("2024-01-01", periods=60, freq="5min"), "1min", "give freq '5min'"),
        (pd.date_range("2024-01-01", periods=60, freq="5min"), "h", "give freq '5min'"),
    ],
)
def test_a_frequency_that_is_not_the_bars_is_refused(tmp_path, capsys, dates, freq, told):
    """What the message says to give is then taken."""
    source = write_dates(tmp_path / "bars.csv", dates)
    asked = ["forecast", str(source), "--out", str(tmp_path / "f.csv"), "--paths", "2"]
    assert main([*asked, "--freq", freq]) == 2
    said = capsys.readouterr().err
    assert f"BARS: --freq {freq} does not fit the past" in said and told in said
    fitting = re.findall(r"freq '([^']+)'", said)[-1]
    assert main([*asked, "--freq", fitting]) == 0


def test_too_short_a_past_says_what_to_give(tmp_path, capsys):
    source = write_dates(tmp_path / "bars.csv", pd.bdate_range("2024-01-01", periods=4))
    assert main(["forecast", str(source), "--out", str(tmp_path / "f.csv")]) == 1
    said = capsys.readouterr().err
    assert "BARS: the past, 2024-01-01 to 2024-01-04, is too short to show" in said
    assert "give the exchange, such as 'XSHG' or '24/7', a freq" in said


def test_data_check_says_that_bars_are_weekly(tmp_path, capsys):
    source = write_dates(tmp_path / "w.csv", pd.date_range("2023-01-06", periods=60, freq="W-FRI"))
    assert main(["data", "check", str(source)]) == 0
    assert "note: the bars come weekly, on Fridays" in capsys.readouterr().out
    assert main(["data", "convert", str(source), str(tmp_path / "q"), "--exchange", "XNYS"]) == 2
    said = capsys.readouterr().err
    assert "5 sessions of XNYS apart" in said and "leave the exchange out" in said


def test_daily_bars_stamped_at_the_close_are_converted(tmp_path, capsys):
    days = pd.bdate_range("2024-01-08", "2024-02-08") + pd.Timedelta("15h")
    source, target = write_dates(tmp_path / "d.csv", days), tmp_path / "q"
    assert main(["data", "convert", str(source), str(target), "--exchange", "XSHG"]) == 0
    assert "note: one bar a day, at 15:00: daily bars" in capsys.readouterr().out
    ahead = (target / "calendars" / "day_future.txt").read_text().splitlines()
    assert ahead[len(days)] == "2024-02-19"  # after Spring Festival


@pytest.mark.parametrize("freq", ["5min", "h"])
def test_minutes_ahead_of_daily_bars_are_refused(csv, capsys, freq):
    """Days' moves under the names of minutes look like a forecast, and are none."""
    assert main(ask(csv, "--freq", freq)) == 2
    said = capsys.readouterr().err
    assert f"--freq {freq} does not fit the past, whose bars come daily, Monday to Friday" in said
    assert "leave freq out" in said and "give freq 'B'" in said
    assert not csv.with_name("forecast.csv").exists()
