"""A registered model scores as its run does, from its own folder, in any process."""

from __future__ import annotations

import copy
import functools
import json
import subprocess
import sys

import mlflow
import numpy as np
import pandas as pd
import pytest
from qlib.model.trainer import task_train

from kronos_qlib.errors import ConfigError, MissingArtifactError
from kronos_qlib.plugin.lookahead import open_provider
from kronos_qlib.plugin.registry.newest_scores import newest_scores
from kronos_qlib.plugin.registry.registered_models import (
    about_registered,
    find_registered,
    register,
)
from kronos_qlib.plugin.runs.newest_day import score_newest
from kronos_qlib.plugin.runs.tracking import open_tracking

pytestmark = pytest.mark.integration

NEWEST = "2020-12-30"
SEGMENTS = {
    "train": ("2020-06-01", "2020-08-31"),
    "valid": ("2020-09-01", "2020-09-30"),
    "test": ("2020-12-09", NEWEST),
}
WINDOWS = {
    "class": "KronosDataset",
    "module_path": "kronos_qlib.plugin.dataset",
    "kwargs": {
        "handler": {
            "class": "KronosHandler",
            "module_path": "kronos_qlib.plugin.dataset",
            "kwargs": {"instruments": "all", "end_time": NEWEST},
        },
        "segments": SEGMENTS,
        "lookback": 20,
        "horizon": 3,
    },
}
TABLES = {
    "class": "DatasetH",
    "module_path": "qlib.data.dataset",
    "kwargs": {
        "handler": {
            "class": "Alpha158",
            "module_path": "qlib.contrib.data.handler",
            "kwargs": {
                "instruments": "all",
                "start_time": "2020-06-01",
                "end_time": NEWEST,
                "fit_start_time": "2020-06-01",
                "fit_end_time": "2020-08-31",
                "label": ["Ref($close, -2) / Ref($close, -1) - 1"],
            },
        },
        "segments": SEGMENTS,
    },
}


def kronos(**kwargs):
    return {
        "class": "KronosModel",
        "module_path": "kronos_qlib.plugin.model",
        "kwargs": {"device": "cpu", "show_progress": False, "sampling": {"paths": 4}, **kwargs},
    }


TREES = {
    "class": "LGBModel",
    "module_path": "qlib.contrib.model.gbdt",
    "kwargs": {"num_boost_round": 8, "early_stopping_rounds": 4, "num_leaves": 6},
}
HEAD = {"epochs": 1, "hidden": 8, "context_width": 2, "windows_per_day": 6}
MODELS = {
    "zero_shot": (kronos(), WINDOWS),
    "alpha": (kronos(training={"alpha": HEAD}), WINDOWS),
    "trees": (TREES, TABLES),
    "blend": (
        {
            "class": "BlendModel",
            "module_path": "kronos_qlib.plugin.blend",
            "kwargs": {"members": [kronos(), {**TREES, "dataset": TABLES}]},
        },
        WINDOWS,
    ),
}
RECORD = {
    "class": "KronosSignalRecord",
    "module_path": "kronos_qlib.plugin.records.signal_record",
    "kwargs": {"model": "<MODEL>", "dataset": "<DATASET>"},
}


@pytest.fixture(scope="module")
def uri(provider, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return f"sqlite:///{(folder / 'mlflow.db').as_posix()}"


@pytest.fixture(scope="module")
def ran(uri, provider):
    """Runs a model's experiment unless it has been run."""
    return functools.cache(functools.partial(run, uri, provider))


def run(uri, provider, name):
    manager = {
        "class": "KronosExpManager",
        "module_path": "kronos_qlib.plugin.runs.manager",
        "kwargs": {"uri": uri, "default_exp_name": "workflow"},
    }
    # Copies: Qlib fills the placeholders of a record in its place, with this run's model.
    model, dataset = copy.deepcopy(MODELS[name])
    before = mlflow.get_tracking_uri()
    open_provider(provider, exp_manager=manager)
    try:
        return task_train(
            {"model": model, "dataset": dataset, "record": [copy.deepcopy(RECORD)]},
            experiment_name=name,
        )
    finally:
        mlflow.set_tracking_uri(before)


LOAD = """
import json, sys
import mlflow, pandas as pd
uri, name, provider, day = sys.argv[1:]
mlflow.set_tracking_uri(uri)
model = mlflow.pyfunc.load_model(f"models:/{name}@champion")
found = model.predict(pd.DataFrame([{"provider_uri": provider, "day": day}]))
print(json.dumps(dict(zip(found["instrument"], found["score"]))))
"""


@pytest.mark.parametrize("name", MODELS)
def test_the_champion_scores_a_day_with_the_bits_of_its_run(uri, ran, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    ran(name)
    version, notes = register(name, name, tracking_uri=uri)
    assert (version.name, version.version) == (name, "1")
    assert any("no return is promised" in note for note in notes)
    expected = score_newest(name, tracking_uri=uri, day="2020-12-21")
    champion = f"models:/{name}@champion"
    found = newest_scores(champion, tracking_uri=uri, day="2020-12-21")
    scores = found.table["score"]
    assert list(scores.index) == expected.table["instrument"].tolist()
    assert np.array_equal(scores.to_numpy(), expected.table["score"].to_numpy())
    assert found.version == "1" and found.facts["model"]["run"] == expected.run_id
    assert json.loads(json.dumps(found.facts, allow_nan=False)) == found.facts
    assert found.facts["model"]["weights"] and found.facts["bars"]
    assert set(found.facts["promised"]) == {"ic", "rank_ic"}
    counts = found.facts["counts"]
    assert sum(counts["score"]) == len(scores) and len(counts) == 6
    levels = [each for each in found.table if each != "score"]
    if name == "zero_shot":
        assert len(levels) == 19 and levels[0] == "q0.05"
        assert (found.table[levels].diff(axis=1).iloc[:, 1:] >= 0).all(axis=None)
    else:
        assert not levels
    if name == "alpha":
        assert " alpha " in found.facts["model"]["weights"]
    if name == "zero_shot":  # the newest day is another
        assert newest_scores(champion, tracking_uri=uri).day == pd.Timestamp(NEWEST)
    # The same run is the same version.
    assert register(name, name, tracking_uri=uri, alias=None)[0] == version


def test_mlflow_loads_it_in_a_process_of_its_own_without_the_workflow(
    uri, provider, ran, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    ran("alpha")
    register("alpha", "mine", tracking_uri=uri)
    expected = newest_scores("models:/mine/1", tracking_uri=uri, day="2020-12-21").table["score"]
    done = subprocess.run(
        [sys.executable, "-c", LOAD, uri, "mine", str(provider), "2020-12-21"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == expected.to_dict()
    about = about_registered("models:/mine@champion", tracking_uri=uri)
    assert about["experiment"] == "alpha" and about["label"].startswith("Ref(")


def test_what_is_not_registered_is_named(uri, ran, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran("trees")
    register("trees", "forest", tracking_uri=uri)
    client = open_tracking(uri)
    with pytest.raises(ConfigError, match=r"Registered are: .*forest"):
        find_registered(client, "models:/nobody@champion")
    with pytest.raises(ConfigError, match="MLflow has no models:/forest@better"):
        find_registered(client, "models:/forest@better")
    with pytest.raises(ConfigError, match="models:/NAME@ALIAS or"):
        find_registered(client, "models:/forest")
    client.create_registered_model("strange")
    client.create_model_version("strange", "file:///nowhere")
    with pytest.raises(MissingArtifactError, match="not registered by kronos-qlib register"):
        find_registered(client, "models:/strange/1")
