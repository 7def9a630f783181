"""`qrun workflows/workflow_kronos.yaml` as a user types it, on a small market."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kronos_qlib.data.synthetic import MarketConfig, make_market
from kronos_qlib.plugin.storage import write_provider

pytestmark = pytest.mark.integration

WORKFLOWS = Path(__file__).parents[2] / "workflows"
REDUCED = {
    "KRONOS_PROVIDER_URI": "market",
    "KRONOS_TRAIN_END": "2020-08-31",
    "KRONOS_VALID_START": "2020-09-01",
    "KRONOS_VALID_END": "2020-10-30",
    "KRONOS_TEST_START": "2020-11-02",
    "KRONOS_TEST_END": "2020-12-30",
    "KRONOS_LOOKBACK": "30",
    "KRONOS_HORIZON": "5",
    "KRONOS_PATHS": "2",
    "KRONOS_EPOCHS": "1",
    "KRONOS_WINDOWS_PER_EPOCH": "1200",
    "KRONOS_VALIDATION_WINDOWS": "32",
    "KRONOS_TOPK": "4",
    "KRONOS_N_DROP": "1",
    "OMP_NUM_THREADS": "1",
}


def test_both_workflows_run_on_equal_terms():
    """The LightGBM file repeats market, segments, strategy and costs: they must not drift apart."""
    kronos, lightgbm = (
        (WORKFLOWS / f"workflow_{name}.yaml").read_text(encoding="utf-8")
        for name in ("kronos", "lightgbm")
    )
    for begin, end in (("market:", "task:"), ("  record:", None)):
        shared = [text[text.index(begin) : end and text.index(end)] for text in (kronos, lightgbm)]
        assert shared[0] == shared[1]


@pytest.mark.parametrize("name", ["kronos", "lightgbm"])
def test_a_windows_path_survives_the_template(name):
    """In double quotes YAML reads the backslashes of C:\\Users\\new as escapes."""
    import jinja2
    import yaml

    text = (WORKFLOWS / f"workflow_{name}.yaml").read_text(encoding="utf-8")
    path = r"C:\Users\new\data"
    settings = yaml.safe_load(jinja2.Template(text).render(KRONOS_PROVIDER_URI=path))
    assert settings["qlib_init"]["provider_uri"] == path


def test_the_kronos_workflow_leaves_its_metrics_in_mlflow(tmp_path):
    from mlflow.tracking import MlflowClient

    market = make_market(MarketConfig(instruments=12, sectors=3, years=1.0, seed=1))
    write_provider(market.bars, tmp_path / "market", benchmark="BENCHMARK")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("KRONOS_")}
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from qlib.cli.run import run; run()",
            str(WORKFLOWS / "workflow_kronos.yaml"),
        ],
        cwd=tmp_path,
        env=clean | REDUCED,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]

    client = MlflowClient(f"sqlite:///{(tmp_path / 'mlflow.db').as_posix()}")
    experiment = client.get_experiment_by_name("kronos")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    for name in (
        "IC",
        "Rank IC",
        "1day.excess_return_with_cost.information_ratio",
        "sharpe",
        "sortino",
        "calmar",
        "max_drawdown",
        "turnover",
        "predictor.valid_loss",
    ):
        assert name in run.data.metrics, f"{name} is missing from {sorted(run.data.metrics)}"
    epochs = [
        point.step for point in client.get_metric_history(run.info.run_id, "predictor.valid_loss")
    ]
    assert epochs == [0, 1]
    kept = {item.path for item in client.list_artifacts(run.info.run_id, "portfolio_report")}
    assert "portfolio_report/equity.png" in kept
    told = client.get_metric_history(run.info.run_id, "predictor.learning_rate")
    assert told and {point.step % 20 for point in told} == {0}
    assert {"predictor.gradient_norm", "predictor.windows_per_second"} <= set(run.data.metrics)
    kept = {item.path for item in client.list_artifacts(run.info.run_id, "training")}
    assert kept == {"training/predictor.png"}
