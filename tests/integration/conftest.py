"""A small market and its provider, and a run to hang records on."""

from __future__ import annotations

import mlflow
import pytest
from qlib.workflow.recorder import MLflowRecorder

from kronos_qlib.data.synthetic import MarketConfig, make_market
from kronos_qlib.plugin.storage import write_provider


@pytest.fixture(scope="module")
def bars():
    config = MarketConfig(instruments=8, sectors=2, years=1.0, suspended_share=0.02, seed=3)
    return make_market(config).bars


@pytest.fixture(scope="module")
def provider(bars, tmp_path_factory):
    target = tmp_path_factory.mktemp("market") / "qlib"
    write_provider(bars, target, benchmark="BENCH", future_bars=20)
    return target


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A tracking URI with one experiment; creating the database is what takes the time."""
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{(folder / 'mlflow.db').as_posix()}"
    mlflow.MlflowClient(uri).create_experiment("demo", (folder / "artifacts").as_uri())
    return uri


@pytest.fixture
def recorder(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # Qlib records `git diff` of where it stands
    before = mlflow.get_tracking_uri()
    experiment = mlflow.MlflowClient(store).get_experiment_by_name("demo")
    recorder = MLflowRecorder(experiment.experiment_id, store, "a run")
    recorder.start_run()
    yield recorder
    recorder.end_run("FINISHED")
    mlflow.set_tracking_uri(before)
