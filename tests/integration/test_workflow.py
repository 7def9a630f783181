"""Every workflow file, run to its end on small markets as `qrun` runs it; and what they promise."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jinja2
import pandas as pd
import pytest
import yaml

from kronos_qlib.cli.data.data_demo_command import USUAL
from kronos_qlib.cli.main import main
from kronos_qlib.plugin.workflows.workflow_file import read_workflow
from kronos_qlib.signals.paths import DEFAULT_SIGNALS

pytestmark = pytest.mark.integration

WORKFLOWS = Path(__file__).parents[2] / "workflows"
FILES = sorted(WORKFLOWS.glob("workflow_*.yaml"))
BASE = WORKFLOWS / "workflow_base.yaml"

REDUCED = {
    "KRONOS_PROVIDER_URI": "market",
    "KRONOS_REGION": "us",
    "KRONOS_MARKET": "all",
    "KRONOS_BENCHMARK": "BENCHMARK",
    "KRONOS_CHECKPOINT": "nano",  # in place of the Hub's, and of nothing else
    "KRONOS_START": "2020-01-01",
    "KRONOS_TRAIN_START": "2020-06-01",
    "KRONOS_TRAIN_END": "2020-10-30",
    "KRONOS_VALID_START": "2020-11-02",
    "KRONOS_VALID_END": "2020-12-31",
    "KRONOS_TEST_START": "2021-01-04",
    "KRONOS_TEST_END": "2021-02-12",
    "KRONOS_LOOKBACK": "30",
    "KRONOS_HORIZON": "5",
    "KRONOS_PATHS": "2",
    "KRONOS_FORECAST_WINDOWS": "24",
    "KRONOS_EPOCHS": "1",
    "KRONOS_WINDOWS_PER_EPOCH": "1000",  # 20 steps, after which training is told first
    "KRONOS_VALIDATION_WINDOWS": "32",
    "KRONOS_TOPK": "4",
    "KRONOS_N_DROP": "1",
    "KRONOS_HOLD": "1",
    # Those of Qlib's benchmark are for 300 names: 12 would get the same score all.
    "KRONOS_LAMBDA_L1": "2",
    "KRONOS_LAMBDA_L2": "20",
    "KRONOS_THREADS": "1",
}
MINUTES = REDUCED | {
    "KRONOS_PROVIDER_URI": "minutes",
    "KRONOS_START": "2024-01-01",
    "KRONOS_TRAIN_START": "2024-01-01",
    "KRONOS_TRAIN_END": "2024-01-04",
    "KRONOS_VALID_START": "2024-01-05",
    "KRONOS_VALID_END": "2024-01-08",
    "KRONOS_TEST_START": "2024-01-09",
    "KRONOS_TEST_END": "2024-01-23",  # errors of forecasts are told from 10 days on
    "KRONOS_LOOKBACK": "24",
    "KRONOS_HORIZON": "2",
    "KRONOS_BEYOND_CALENDAR": "weekdays",
    "KRONOS_FREQ": "5min",
    "KRONOS_BARS_PER_YEAR": "12096",
    "KRONOS_EXPERIMENT": "kronos_5min",
}
# Those that others are compared with run first.
RUNS = {
    "lightgbm": REDUCED,
    "kronos": REDUCED,
    "kronos_zero_shot": REDUCED,
    "kronos_alpha": REDUCED,
    "gru": REDUCED,
    "kronos_lightgbm": REDUCED,
    "kronos_5min": MINUTES,
}
FILE_OF = {"kronos_5min": "kronos"}
"""Of a run that is not called as its file is."""
FROM_PATHS = ["score", *DEFAULT_SIGNALS]
SIGNALS = dict.fromkeys(RUNS, FROM_PATHS) | {
    "lightgbm": ["score"],
    "kronos_alpha": ["score", "alpha"],
    "gru": ["score"],
    "kronos_lightgbm": ["score", "lightgbm_kronos", "kronos_alpha"],
}
METRICS = (
    "IC",
    "Rank IC",
    "oracle_share",
    "sharpe",
    "deflated_sharpe",
    "turnover",
    "cost_paid_bp",
)

# One process for all: Qlib and torch are imported once, and one file's failure is told by its test.
DRIVER = """
import json, os, traceback
from qlib.cli.run import workflow
told = {}
for name, (path, settings) in json.load(open("runs.json", encoding="utf-8")).items():
    os.environ.update(settings)
    try:
        workflow(path)
    except BaseException:
        told[name] = traceback.format_exc()
    for key in settings:
        del os.environ[key]
with open("told.json", "w", encoding="utf-8") as file:
    json.dump(told, file)
"""


def rendered(path: Path, **settings: str) -> dict:
    text = jinja2.Template(path.read_text(encoding="utf-8")).render(**settings)
    return yaml.safe_load(text)


def variables_in(text: str) -> set[str]:
    """KRONOS_ names, `KRONOS_{TRAIN,TEST}_END` being two."""
    found = set()
    for name in re.findall(r"KRONOS_[A-Z0-9_{},]*[A-Z0-9}]", text):
        parts = [part.split(",") for part in re.split(r"[{}]", name)]
        found |= {"".join(choice) for choice in itertools.product(*parts)}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_is_short_and_plain(path):
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 100
    assert text.isascii(), "Qlib opens it in the system's encoding, which is not UTF-8 everywhere"


def test_there_is_a_run_for_every_file():
    ran = {f"workflow_{FILE_OF.get(name, name)}" for name in RUNS}
    assert {path.stem for path in FILES} - {BASE.stem} == ran


def test_the_readme_lists_the_variables_that_the_files_read():
    files = set().union(*(variables_in(path.read_text(encoding="utf-8")) for path in FILES))
    files -= {"KRONOS_"}
    readme = variables_in((WORKFLOWS / "README.md").read_text(encoding="utf-8"))
    assert readme - {"KRONOS_TOKENIZER"} == files  # which the package reads, and no file


def test_workflows_of_the_demo_market_run_on_equal_terms():
    """They repeat market, segments and strategy, or figures beside each other would not compare."""
    one, *others = (
        rendered(WORKFLOWS / f"workflow_{name}.yaml")
        for name in (
            "kronos",
            "lightgbm",
            "kronos_alpha",
            "kronos_lightgbm",
            "kronos_zero_shot",
            "gru",
        )
    )
    for other in others:
        assert other["task"]["backtest"] == one["task"]["backtest"]
        assert other["market"] == one["market"]
        assert {**one["segments"], **other["segments"]} == one["segments"]
    both = [
        rendered(WORKFLOWS / f"workflow_{name}.yaml") for name in ("lightgbm", "kronos_lightgbm")
    ]
    alone, beside = both[0]["task"]["model"], both[1]["task"]["model"]["kwargs"]["members"][0]
    assert alone["kwargs"] == beside["kwargs"]


@pytest.mark.parametrize(("name", "freq"), [("demo", "day"), ("demo_5min", "5min")])
def test_dates_lie_in_the_demo_market(name, freq):
    settings, market = read_workflow("kronos", name).config, USUAL[freq]
    first = pd.Timestamp(market.start)
    last = pd.offsets.BDay().rollback(first + pd.Timedelta(days=round(market.years * 365.25) - 1))
    ends = [pd.Timestamp(day) for segment in settings["segments"].values() for day in segment]
    assert first <= min(ends)
    assert max(ends) <= last
    assert settings["task"]["backtest"]["topk"] <= market.instruments / 4


@pytest.mark.parametrize("name", sorted(set(RUNS) - set(FILE_OF)))
def test_a_windows_path_survives_the_template(name):
    """In double quotes YAML reads the backslashes of C:\\Users\\new as escapes."""
    path = r"C:\Users\new\data"
    settings = rendered(WORKFLOWS / f"workflow_{name}.yaml", KRONOS_PROVIDER_URI=path)
    assert settings["qlib_init"]["provider_uri"] == path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder with MLflow's store after all workflows, and the failures by workflow."""
    folder = tmp_path_factory.mktemp("workflows")
    small = ["--instruments", "12", "--years", "1.25", "--effect", "0.3", "--seed", "1"]
    assert main(["data", "demo", str(folder / "market"), *small]) == 0
    few = ["--instruments", "12", "--years", "0.2", "--effect", "0.3", "--freq", "5min"]
    assert main(["data", "demo", str(folder / "minutes"), *few]) == 0
    runs = {
        name: (str(WORKFLOWS / f"workflow_{FILE_OF.get(name, name)}.yaml"), settings)
        for name, settings in RUNS.items()
    }
    (folder / "runs.json").write_text(json.dumps(runs), encoding="utf-8")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("KRONOS_")}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        cwd=folder,
        env=clean | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        timeout=1800,  # some two minutes where nothing else runs
    )
    (folder / "log.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, json.loads((folder / "told.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def client(finished):
    from mlflow.tracking import MlflowClient

    return MlflowClient(f"sqlite:///{(finished[0] / 'mlflow.db').as_posix()}")


def run_of(client, name):
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    return run


def kept(client, run, folder: str) -> set[str]:
    items = client.list_artifacts(run.info.run_id, folder)
    return {item.path.removeprefix(f"{folder}/") for item in items}


@pytest.mark.parametrize("name", RUNS)
def test_a_workflow_runs_to_its_end(finished, client, tmp_path, name):
    assert name not in finished[1], finished[1][name]
    run = run_of(client, name)
    assert run.info.status == "FINISHED"
    assert set(METRICS) <= set(run.data.metrics), sorted(run.data.metrics)
    freq = "5min" if name == "kronos_5min" else "1day"
    assert f"{freq}.excess_return_with_cost.information_ratio" in run.data.metrics

    file = client.download_artifacts(run.info.run_id, "signals/signals.parquet", str(tmp_path))
    signals = pd.read_parquet(file)
    assert list(signals.columns) == SIGNALS[name]
    assert signals.index.names == ["datetime", "instrument"]
    assert signals["score"].groupby(level="datetime").nunique().min() > 1
    assert "signals.csv" in kept(client, run, "signal_report")
    assert {"equity.png", "costs.csv"} <= kept(client, run, "portfolio_report")

    judged = kept(client, run, "forecast_report")
    if SIGNALS[name] is FROM_PATHS:
        assert {"calibration.json", "scores.csv", "fans.png"} <= judged
        for metric in (
            "crps",
            "crps_last_price",
            "crps_historical_volatility",
            "coverage_90_calibrated",
        ):
            assert f"forecast.{metric}" in run.data.metrics, sorted(run.data.metrics)
        assert run.data.metrics["forecast.windows"] == int(REDUCED["KRONOS_FORECAST_WINDOWS"])
    else:
        assert not judged


def test_a_run_is_set_beside_those_before_it(client, tmp_path):
    run = run_of(client, "kronos_alpha")
    assert "comparison.html" in kept(client, run, "comparison")
    file = client.download_artifacts(run.info.run_id, "comparison/table.csv", str(tmp_path))
    assert list(pd.read_csv(file, index_col=0).index) == ["kronos_alpha", "lightgbm", "kronos"]


def test_runs_on_other_bars_are_not_compared(client):
    """Alone on its bars, a run writes no comparison."""
    run = run_of(client, "kronos_5min")
    assert not client.list_artifacts(run.info.run_id, "comparison")


def test_training_is_told_as_it_goes(client):
    run = run_of(client, "kronos")
    epochs = client.get_metric_history(run.info.run_id, "predictor.valid_loss")
    assert [point.step for point in epochs] == [0, 1]
    told = client.get_metric_history(run.info.run_id, "predictor.learning_rate")
    assert told and {point.step % 20 for point in told} == {0}
    assert {"predictor.gradient_norm", "predictor.windows_per_second"} <= set(run.data.metrics)
    assert kept(client, run, "training") == {"predictor.png"}
