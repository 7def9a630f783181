"""What a run says of itself in MLflow: a name, a verdict, versions, digests, its market."""

from __future__ import annotations

import subprocess
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import jinja2
import mlflow
import pandas as pd
import pytest
import torch
import yaml
from qlib.workflow.recorder import MLflowRecorder

from kronos_qlib.data.windows.bar_table import BarTable
from kronos_qlib.evaluation.portfolio.metrics import PORTFOLIO_METRICS
from kronos_qlib.plugin.lookahead import open_provider
from kronos_qlib.plugin.records.portfolio_report import SEARCH_AND_COST_METRICS
from kronos_qlib.plugin.records.run_check import expected_metrics
from kronos_qlib.plugin.runs.about_run import (
    BARS,
    DAYS,
    GIT,
    KEY_METRICS,
    KEY_PREFIX,
    NOTE,
    PROVIDER,
    UNIVERSE,
    VERSION,
    WEIGHTS,
    add_verdict,
    bars_digest,
    describe_run,
    folder_name,
    git_revision,
    key_metrics,
    name_run,
    run_name,
    same_market,
    universe_of,
    weights_digest,
)
from kronos_qlib.version import __version__

pytestmark = pytest.mark.integration

WORKFLOWS = Path(__file__).parents[2] / "workflows"


@pytest.fixture
def unnamed(store, tmp_path, monkeypatch):
    """A run as qrun begins it: with the name that Qlib gives to all."""
    monkeypatch.chdir(tmp_path)
    before = mlflow.get_tracking_uri()
    experiment = mlflow.MlflowClient(store).get_experiment_by_name("demo")
    recorder = MLflowRecorder(experiment.experiment_id, store, "mlflow_recorder")
    recorder.start_run()
    yield recorder
    recorder.end_run("FINISHED")
    mlflow.set_tracking_uri(before)


def task_of(name: str, **settings: str) -> dict:
    text = (WORKFLOWS / f"workflow_{name}.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(jinja2.Template(text).render(**settings))["task"]


@pytest.mark.parametrize(
    ("workflow", "settings", "name"),
    [
        ("kronos_alpha", {}, "KronosModel nano alpha · demo"),
        ("kronos", {}, "KronosModel nano finetuned · demo"),
        ("kronos_zero_shot", {"KRONOS_CHECKPOINT": "small"}, "KronosModel small zero-shot · demo"),
        ("kronos", {"KRONOS_MARKET": "csi300"}, "KronosModel nano finetuned · csi300"),
        (
            "kronos",
            {"KRONOS_CHECKPOINT": "/weights/Kronos-small/"},
            "KronosModel Kronos-small finetuned · demo",
        ),
        ("lightgbm", {}, "LGBModel Alpha158 · demo"),
    ],
)
def test_a_name_says_what_a_run_is(workflow, settings, name):
    """MLflow's list read mlflow_recorder, mlflow_recorder, mlflow_recorder."""
    assert run_name(task_of(workflow, **settings), "/somewhere/demo/market") == name


@pytest.mark.parametrize("junk", [None, 1, "x", [], {"class": 3}, {"kwargs": {"members": [1]}}])
def test_a_strange_task_has_a_name_or_none(junk):
    for key in ("model", "dataset"):
        assert len(run_name({"model": {"class": "a.B"}, key: junk})) <= 120
    assert run_name({}) == "" and run_name({"model": "module.Model"}) == "Model"
    assert len(run_name({"model": {"class": "x" * 500}})) == 120
    blend = {"class": "BlendModel", "kwargs": {"members": [{"class": "A"}, {"class": "B"}]}}
    ahead = {"dataset": {"kwargs": {"handler": {"kwargs": {"label": "Ref($close, -5)/$close"}}}}}
    assert run_name({"model": blend, **ahead}, "us") == "BlendModel A + B · us, 5 bars"


def test_a_market_is_named_by_the_folder_that_tells_it():
    assert folder_name("~/.qlib/qlib_data/cn_data") == "cn_data"
    assert folder_name(r"C:\data\us\market") == "us"
    assert folder_name("/") == folder_name("") == ""
    names = {"dataset": {"kwargs": {"handler": {"kwargs": {"instruments": ["b", "a"]}}}}}
    assert universe_of(names).startswith("2 names ")


def test_a_run_is_named_unless_somebody_did(unnamed):
    name_run(unnamed, task_of("kronos_alpha"))
    assert unnamed.client.get_run(unnamed.id).info.run_name.startswith("KronosModel nano alpha")
    unnamed.client.update_run(unnamed.id, name="a run")
    name_run(unnamed, task_of("kronos"))
    assert unnamed.client.get_run(unnamed.id).info.run_name == "a run"


def test_a_run_is_tagged_with_what_it_was_made_of(unnamed, provider, bars):
    open_provider(provider)
    index = pd.MultiIndex.from_product(
        [pd.bdate_range("2024-01-01", periods=3), ["A", "B"]], names=["datetime", "instrument"]
    )
    frame = bars.rename(columns={"symbol": "instrument", "date": "datetime"})
    table = BarTable.from_frame(frame.set_index(["instrument", "datetime"]), invalid="skip")
    dataset = SimpleNamespace(bar_handler=SimpleNamespace(bars=table))
    net = torch.nn.Linear(2, 2)
    model = SimpleNamespace(predictor=SimpleNamespace(model=net, tokenizer=net), head=None)
    unnamed.save_objects(task=task_of("kronos"))
    describe_run(unnamed, model, dataset, pd.DataFrame({"score": 0.0}, index=index))
    tags = unnamed.client.get_run(unnamed.id).data.tags
    assert tags[VERSION] == __version__
    assert tags[f"{VERSION}.torch"] == version("torch")
    assert tags[f"{VERSION}.pyqlib"] == version("pyqlib")
    assert tags[WEIGHTS] == weights_digest(model) and tags[WEIGHTS].startswith("predictor ")
    assert tags[BARS] == bars_digest(dataset)
    assert tags[DAYS] == "2024-01-01/2024-01-03" and tags[UNIVERSE] == "all"
    assert tags[PROVIDER] == provider.absolute().as_posix()
    assert GIT not in tags, "the folder is under no revision control"

    with torch.no_grad():
        net.weight += 1
    assert weights_digest(model) != tags[WEIGHTS]
    values = table.values.copy()
    values[5, 3] *= 1.001
    changed = BarTable(values, table.places, table.calendar, table.instruments, table.offsets)
    assert bars_digest(SimpleNamespace(bar_handler=SimpleNamespace(bars=changed))) != tags[BARS]


def test_what_cannot_be_told_costs_a_warning_and_no_run(unnamed, caplog):
    class Odd:
        @property
        def predictor(self):
            raise RuntimeError("weights are gone")

    times = pd.MultiIndex.from_tuples([(pd.Timestamp("2024-01-01"), "A")])
    scores = pd.DataFrame({"score": 0.0}, index=times.set_names(["datetime", "instrument"]))
    describe_run(unnamed, Odd(), None, scores)
    assert "is not tagged with digests of weights: RuntimeError: weights are gone" in caplog.text
    tags = unnamed.client.get_run(unnamed.id).data.tags
    assert WEIGHTS not in tags and BARS not in tags and tags[DAYS] == "2024-01-01/2024-01-01"


def test_frames_of_other_data_sets_have_digests_too():
    index = pd.MultiIndex.from_product([pd.bdate_range("2024-01-01", periods=3), ["A", "B"]])
    frame = pd.DataFrame({"x": range(6), "y": 0.5}, index=index)
    one = bars_digest(SimpleNamespace(handler=SimpleNamespace(_data=frame)))
    other = bars_digest(SimpleNamespace(handler=SimpleNamespace(_data=frame.assign(y=0.6))))
    assert one.startswith("frame ") and one != other
    assert bars_digest(SimpleNamespace()) == ""


def test_the_revision_of_a_folder(tmp_path):
    assert git_revision(tmp_path) == ""

    def git(*words):
        how = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *how, *words], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / "file").write_text("one", encoding="utf-8")
    git("add", "file")
    git("commit", "-m", "first")
    clean = git_revision(tmp_path)
    assert len(clean) == 40
    (tmp_path / "file").write_text("two", encoding="utf-8")
    assert git_revision(tmp_path) == f"{clean} with changes"


def test_the_description_is_put_together_and_nobodys_own_is_lost(unnamed):
    def note():
        return unnamed.client.get_run(unnamed.id).data.tags.get(NOTE)

    add_verdict(unnamed, "money", "Money.")
    add_verdict(unnamed, "signal", "**Order.**")
    assert note() == "**Order.**\n\nMoney."
    add_verdict(unnamed, "money", "More money.")
    assert note() == "**Order.**\n\nMore money."
    unnamed.client.set_tag(unnamed.id, NOTE, "what I tried")
    add_verdict(unnamed, "money", "Less money.")
    assert note() == "what I tried"


def test_ten_key_metrics_come_first():
    every = {*expected_metrics(), *PORTFOLIO_METRICS, *SEARCH_AND_COST_METRICS, "excess_return_t"}
    assert set(KEY_METRICS.values()) <= every and len(KEY_METRICS) == 10
    found = key_metrics(dict.fromkeys(every, 0.5) | {"rank_ic.t": float("nan")})
    assert len(found) == 9 and all(name.startswith(KEY_PREFIX) for name in found)
    assert max(found) < min(every), "names sort before those of Qlib, 1day.… too"


def test_markets_differ_by_folder_universe_or_days():
    here = {PROVIDER: "/data/demo/market", UNIVERSE: "all", DAYS: "2022-07-01/2022-12-30"}
    assert same_market(here, here) == same_market(here, {}) == ""
    assert same_market(here, {**here, PROVIDER: "/moved/demo/market"}) == ""
    assert "bars of us/market" in same_market(here, {**here, PROVIDER: "/data/us/market"})
    assert same_market(here, {**here, UNIVERSE: "csi300"}) == "universe csi300, here all"
    assert same_market(here, {**here, DAYS: "2022-12-30/2023-01-09"}) == ""
    assert "days 2013-01-02" in same_market(here, {**here, DAYS: "2013-01-02/2016-12-30"})
