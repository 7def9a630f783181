"""A span scored in blocks has the bits of one pass, for every kind of model; on Ray too."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from qlib.model.trainer import task_train
from qlib.utils import init_instance_by_config
from ruamel.yaml import YAML

from kronos_qlib.cli.main import main
from kronos_qlib.errors import ConfigError, MissingArtifactError
from kronos_qlib.inference import batching
from kronos_qlib.inference.batching import planned_for
from kronos_qlib.pipeline.block_jobs.job_folder import Block, read_parts
from kronos_qlib.plugin.lookahead import open_provider
from kronos_qlib.plugin.model import KronosModel
from kronos_qlib.plugin.records.signal_record import signals_frame
from kronos_qlib.plugin.scoring_jobs.block_scoring import (
    ScoringWork,
    qlib_settings,
    read_arrays,
    read_scores,
)
from kronos_qlib.plugin.scoring_jobs.job_inputs import inputs_of, provider_digest
from kronos_qlib.plugin.scoring_jobs.score_span import score_span
from kronos_qlib.plugin.scoring_jobs.shipped_model import ShippedModel
from kronos_qlib.plugin.scoring_jobs.sweep import variants_of

pytestmark = pytest.mark.integration

SPAN = ("2020-11-30", "2020-12-11")
SEGMENTS = {
    "train": ("2020-07-01", "2020-08-15"),
    "valid": ("2020-09-01", "2020-09-20"),
    "test": SPAN,
}
HANDLER = {
    "class": "KronosHandler",
    "module_path": "kronos_qlib.plugin.dataset",
    "kwargs": {"instruments": "all"},
}
WINDOWS = {
    "class": "KronosDataset",
    "module_path": "kronos_qlib.plugin.dataset",
    "kwargs": {"handler": HANDLER, "segments": SEGMENTS, "lookback": 20, "horizon": 3},
}
RECORD = {
    "class": "KronosSignalRecord",
    "module_path": "kronos_qlib.plugin.records.signal_record",
    "kwargs": {"model": "<MODEL>", "dataset": "<DATASET>"},
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
                "start_time": "2020-07-01",
                "end_time": SPAN[1],
                "fit_start_time": "2020-07-01",
                "fit_end_time": "2020-08-15",
                "infer_processors": [
                    {"class": "RobustZScoreNorm", "kwargs": {"fields_group": "feature"}},
                    {"class": "Fillna", "kwargs": {"fields_group": "feature"}},
                ],
                "learn_processors": [{"class": "DropnaLabel"}],
            },
        },
        "segments": SEGMENTS,
    },
}
TREES = {
    "class": "LGBModel",
    "module_path": "qlib.contrib.model.gbdt",
    "kwargs": {"num_boost_round": 6, "num_leaves": 4},
}
REVERSAL = {
    "class": "BaselineModel",
    "module_path": "kronos_qlib.plugin.baselines",
    "kwargs": {"kind": "reversal"},
}
HEAD = {"epochs": 1, "hidden": 8, "context_width": 2, "windows_per_day": 6}


def kronos(**kwargs):
    usual = {"device": "cpu", "show_progress": False, "sampling": {"paths": 2}}
    return {
        "class": "KronosModel",
        "module_path": "kronos_qlib.plugin.model",
        "kwargs": {**usual, **kwargs},
    }


BLEND = {
    "class": "BlendModel",
    "module_path": "kronos_qlib.plugin.blend",
    "kwargs": {
        "members": [
            REVERSAL,
            {**TREES, "dataset": TABLES},
            {**kronos(training={"alpha": HEAD}), "name": "head"},
        ]
    },
}


@pytest.fixture(scope="module")
def opened(provider):
    open_provider(provider)
    return provider


@pytest.fixture(scope="module")
def workflow(provider, tmp_path_factory):
    """A zero-shot model's workflow, as a file."""
    path = tmp_path_factory.mktemp("workflow") / "paths.yaml"
    config = {
        "qlib_init": {"provider_uri": str(provider), "region": "us"},
        "task": {"model": kronos(), "dataset": copy.deepcopy(WINDOWS)},
    }
    with path.open("w") as file:
        YAML(typ="safe").dump(json.loads(json.dumps(config)), file)
    return path


@pytest.fixture(scope="module")
def zero_shot(opened):
    """What one pass in one process says."""
    model = init_instance_by_config(kronos())
    dataset = init_instance_by_config(copy.deepcopy(WINDOWS))
    return model, dataset, signals_frame(model, dataset)


def manager_of(uri):
    return {
        "class": "KronosExpManager",
        "module_path": "kronos_qlib.plugin.runs.manager",
        "kwargs": {"uri": uri, "default_exp_name": "workflow"},
    }


@pytest.fixture(scope="module")
def blend(provider, tmp_path_factory):
    """A trained run of a blend: baseline, LightGBM on a data set of its own, an alpha head."""
    folder = tmp_path_factory.mktemp("runs")
    uri = f"sqlite:///{(folder / 'mlflow.db').as_posix()}"
    manager = manager_of(uri)
    before, where = mlflow.get_tracking_uri(), Path.cwd()
    os.chdir(folder)
    open_provider(provider, exp_manager=manager)
    try:
        task = copy.deepcopy({"model": BLEND, "dataset": WINDOWS, "record": [RECORD]})
        recorder = task_train(task, experiment_name="blend")
    finally:
        mlflow.set_tracking_uri(before)
        os.chdir(where)
    path = mlflow.MlflowClient(uri).download_artifacts(recorder.id, "signals/signals.parquet")
    return uri, pd.read_parquet(path)


def test_a_workflow_is_scored_as_in_one_pass(workflow, zero_shot, tmp_path):
    expected = zero_shot[2]
    found = score_span(str(workflow), tmp_path / "job", what="signals", moments=3)
    assert found.result.blocks == 4 and not found.result.failed
    assert found.result.rows == len(expected) and found.first == pd.Timestamp(SPAN[0])
    pd.testing.assert_frame_equal(read_scores(tmp_path / "job"), expected, check_exact=True)
    again = score_span(str(workflow), tmp_path / "job", what="signals", moments=3)
    assert again.result.new == 0


def test_paths_and_contexts_are_kept_as_they_are_drawn(workflow, zero_shot, tmp_path):
    model, dataset, expected = zero_shot
    score_span(str(workflow), tmp_path / "paths", what="paths", first="2020-12-08")
    index, paths = read_arrays(tmp_path / "paths")
    assert paths.shape == (len(index), 2, 3, 6) and paths.dtype == np.float32
    windows = dataset.source.windows(("2020-12-08", SPAN[1]))
    returns = paths[:, :, :, 3].mean(axis=(1, 2), dtype=np.float64) / windows.last_close - 1
    scores = expected["score"].loc["2020-12-08":]
    assert list(index) == list(scores.index)
    np.testing.assert_allclose(returns, scores, rtol=1e-5, atol=1e-6)

    score_span(str(workflow), tmp_path / "contexts", what="contexts", first="2020-12-10")
    index, contexts = read_arrays(tmp_path / "contexts")
    day = dataset.source.windows(("2020-12-11", "2020-12-11"))
    own = model.predictor.embed(*day.seen())
    np.testing.assert_array_equal(contexts[index.get_level_values(0) == "2020-12-11"], own)
    with pytest.raises(ConfigError, match="read_scores reads them"):
        score_span(str(workflow), tmp_path / "job", first="2020-12-11")
        read_arrays(tmp_path / "job")


def test_a_blend_of_every_kind_is_scored_as_in_its_run(blend, tmp_path):
    uri, expected = blend
    found = score_span("blend", tmp_path / "job", tracking_uri=uri, what="signals", moments=4)
    assert not found.result.failed
    pd.testing.assert_frame_equal(read_scores(tmp_path / "job"), expected, check_exact=True)


def test_smoothed_scores_reach_over_the_edge_of_a_block(opened, workflow, tmp_path):
    how = ["signals={shape: [{smooth: {days: 3}}]}"]
    model = init_instance_by_config(kronos(signals={"shape": [{"smooth": {"days": 3}}]}))
    expected = model.predict(init_instance_by_config(copy.deepcopy(WINDOWS)))
    score_span(str(workflow), tmp_path / "job", changes=how, moments=3)
    found = read_scores(tmp_path / "job")["score"]
    pd.testing.assert_series_equal(found, expected, check_exact=True)


def test_what_was_changed_is_named(workflow, tmp_path, capsys):
    command = ["score", str(workflow), "--backend", "local", "--out", str(tmp_path / "job")]
    span = ["--from", "2020-12-10", "--to", "2020-12-11"]
    assert main([*command, *span]) == 0
    said = capsys.readouterr().out
    assert "1 of 1 blocks (1 of them now" in said and "2020-12-10 to 2020-12-11" in said
    assert main([*command, *span, "--set", "sampling.temperature=0.7"]) == 2
    assert "model.kwargs.sampling.temperature is not set there and 0.7" in capsys.readouterr().err
    assert main([*command, "--from", "2020-12-09", "--to", "2020-12-11"]) == 2
    assert "from is 2020-12-10T00:00:00 there and 2020-12-09" in capsys.readouterr().err
    assert main([*command, "--from", "2031-01-01", "--to", "2031-01-02"]) == 2
    assert "has no bars from 2031-01-01" in capsys.readouterr().err


def test_other_bars_are_another_job(provider, workflow, tmp_path):
    score_span(str(workflow), tmp_path / "job", first="2020-12-11")
    other = tmp_path / "market"
    shutil.copytree(provider, other)
    name = next((other / "features").iterdir())
    values = np.fromfile(name / "close.day.bin", dtype="<f4")
    values[5] *= 1.0001
    values.tofile(name / "close.day.bin")
    with pytest.raises(ConfigError, match=r"another job: bars is bars \w+ there and bars \w+ here"):
        score_span(str(workflow), tmp_path / "job", first="2020-12-11", provider_uri=str(other))


def test_who_was_in_the_universe_is_of_the_job(provider, workflow, tmp_path):
    """Bars and names of two such folders are the same."""
    market, job = tmp_path / "market", tmp_path / "job"
    shutil.copytree(provider, market)
    score_span(str(workflow), job, first="2020-12-11", provider_uri=str(market))
    members = market / "instruments" / "all.txt"
    first, *others = members.read_text().splitlines()
    name, begin, _ = first.split("\t")
    later = [line.rpartition("\t")[0] + "\t2031-01-01" for line in others]
    members.write_text("\n".join([first, *later]) + "\n")
    again = score_span(str(workflow), job, first="2020-12-11", provider_uri=str(market))
    assert again.result.new == 0, "what comes after the span says nothing of it"
    members.write_text("\n".join([f"{name}\t{begin}\t2020-12-10", *others]) + "\n")
    with pytest.raises(ConfigError, match=r"another job: universe is universe \w+ there and"):
        score_span(str(workflow), job, first="2020-12-11", provider_uri=str(market))


def test_a_model_that_was_not_trained_is_refused(workflow, tmp_path):
    with pytest.raises(MissingArtifactError, match="run it first"):
        score_span(str(workflow), tmp_path / "job", changes=["training={alpha: {epochs: 1}}"])
    assert not (tmp_path / "job").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--workers", "2"], "--workers: of a span"),
        (["--backend", "local", "--workers", "2"], "--workers: of --backend ray"),
        (["--backend", "local", "--why", "A"], "--why: the newest day's"),
        (["--backend", "local"], "needs --out FOLDER"),
        (["--from", "2020-01-01"], "--from: of a span"),
        (["--backend", "ray", "--workers", "0", "--out", "x"], "workers is a whole number"),
    ],
)
def test_options_of_the_other_kind_are_refused(workflow, capsys, more, said):
    assert main(["score", str(workflow), *more]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"name": "local", "cpus_per_worker": 4}, "local has no cpus_per_worker"),
        ({"name": "local", "address": "auto", "workers": 2}, "local has no address, workers"),
        ({"name": "local", "moments": 5}, "folder is not given"),
        ({"name": "local", "folder": "x", "moments": True}, "moments must be a whole number"),
        ({"name": "ray", "gpus_per_worker": "1"}, "gpus_per_worker must be a number, got '1'"),
        ({"name": "ray", "folder": 5}, "folder is a text, got 5"),
        ({"name": "ray", "cpus_per_worker": 0}, "cpus_per_worker is a whole number"),
        ({"name": "ray", "address": "auto"}, "a folder that all of its machines have"),
    ],
)
def test_a_backend_that_cannot_be_is_refused_before_any_work(how, said):
    with pytest.raises(ConfigError, match=said):
        KronosModel(backend=how)


def test_a_workflow_that_was_stopped_goes_on_from_its_blocks(
    opened, zero_shot, tmp_path, monkeypatch
):
    expected = zero_shot[2]
    how = {"name": "local", "folder": str(tmp_path), "moments": 4}
    model = init_instance_by_config(kronos(backend=how))
    dataset = init_instance_by_config(copy.deepcopy(WINDOWS))
    pd.testing.assert_frame_equal(model.signals(dataset), expected, check_exact=True)
    [job] = tmp_path.iterdir()
    last = sorted((job / "parts").iterdir())[-1]
    last.unlink()
    times = {path: path.stat().st_mtime_ns for path in (job / "parts").iterdir()}
    pd.testing.assert_frame_equal(model.signals(dataset), expected, check_exact=True)
    assert {path: path.stat().st_mtime_ns for path in times} == times and last.exists()
    last.unlink()
    planned, threads = [], torch.get_num_threads()

    def noted(count):
        planned.append(count)
        return planned_for(count)

    monkeypatch.setattr(batching, "planned_for", noted)
    torch.set_num_threads(threads + 1)
    try:
        pd.testing.assert_frame_equal(model.signals(dataset), expected, check_exact=True)
    finally:
        torch.set_num_threads(threads)
    assert planned == [threads], "as the job was begun, wherever it goes on"
    model.seed = 1
    assert not model.signals(dataset)["score"].equals(expected["score"])
    assert len([*tmp_path.iterdir()]) == 2, "other settings are another job"


def test_a_sweep_is_a_run_for_each_setting(provider, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{(tmp_path / 'mlflow.db').as_posix()}"
    manager = manager_of(uri)
    windows = copy.deepcopy(WINDOWS)
    windows["kwargs"]["segments"]["test"] = ("2020-12-10", "2020-12-11")
    config = {
        "experiment_name": "sweep",
        "qlib_init": {"provider_uri": str(provider), "region": "us", "exp_manager": manager},
        "task": {"model": kronos(), "dataset": windows, "record": [RECORD]},
    }
    with (tmp_path / "my.yaml").open("w") as file:
        YAML(typ="safe").dump(json.loads(json.dumps(config)), file)
    before = mlflow.get_tracking_uri()
    command = ["score", "my.yaml", "--backend", "local", "--out", "sweep", "--sweep"]
    try:
        # A lookback of 1 cannot be: the others are done, and it is named.
        assert main([*command, "seed=0, 1", "--sweep", "task.dataset.kwargs.lookback=20, 1"]) == 1
        said = capsys.readouterr()
        assert "2 of 4 runs done (2 of them now)" in said.out
        assert "failed: 0001_seed-0_task.dataset.kwargs.lookback-1: " in said.err
        table = read_parts(tmp_path / "sweep").to_pandas()
        scores = {}
        for row in table.itertuples():
            path = mlflow.MlflowClient(uri).download_artifacts(row.run, "scores.parquet")
            scores[row.variant] = pd.read_parquet(path)["score"]
        assert [*scores] == [f"seed {seed}, task.dataset.kwargs.lookback 20" for seed in (0, 1)]
        assert not np.array_equal(*scores.values())
        job = json.loads((tmp_path / "sweep" / "job.json").read_text())
        assert job["facts"]["bars"] == provider_digest([provider])
    finally:
        mlflow.set_tracking_uri(before)


def test_a_sweep_on_ray_is_of_kronos(workflow, tmp_path, capsys):
    """LightGBM's runs were done in this process, and nothing said so."""
    command = ["score", str(workflow), "--backend", "ray", "--out", str(tmp_path / "sweep")]
    changed = ["--set", f"task.model={json.dumps(TREES)}", "--sweep"]
    assert main([*command, *changed, "task.model.kwargs.num_leaves=3,4"]) == 2
    said = capsys.readouterr().err
    assert "a LGBModel scores in the process of its run" in said and "--backend local" in said
    assert not (tmp_path / "sweep").exists()


def test_a_sweep_on_other_bars_is_another_job(provider, tmp_path):
    """Runs that were done stayed, and the others were done on the newer bars."""
    shutil.copytree(provider, tmp_path / "market")
    before = provider_digest([tmp_path / "market"])
    assert before == provider_digest([tmp_path / "market"]) and before.startswith("folder ")
    [first, *_] = sorted((tmp_path / "market" / "features").iterdir())
    change(first / "close.day.bin")
    assert provider_digest([tmp_path / "market"]) != before


def test_a_sweep_is_settings_with_values():
    names = [block.asked["variant"] for block in variants_of(["seed=0,1", "sampling={top_k: 3}"])]
    assert names == ['seed 0, sampling {"top_k": 3}', 'seed 1, sampling {"top_k": 3}']
    for wrong, said in (("seed", "KEY=VALUE"), ("seed=", "KEY=VALUE"), ("=3", "KEY=VALUE")):
        with pytest.raises(ConfigError, match=said):
            variants_of([wrong])
    with pytest.raises(ConfigError, match="a setting twice"):
        variants_of(["seed=1", "seed=2"])


def test_a_model_is_shipped_without_its_files(zero_shot):
    model, dataset, expected = zero_shot
    other = pickle.loads(pickle.dumps(ShippedModel.of(model))).open()
    other.checkpoint = other.tokenizer = "/no/such/folder"
    pd.testing.assert_series_equal(other.predict(dataset), expected["score"], check_exact=True)
    assert len(pickle.dumps(dataset)) < 20_000, "bars go to nobody"


def test_work_that_another_process_is_sent_opens_bars_itself(zero_shot):
    model, dataset, expected = zero_shot
    end = pd.Timestamp(SPAN[1])
    inputs = inputs_of(model, dataset, end)
    work = ScoringWork(ShippedModel.of(model), dataset, qlib_settings(), "signals", 1, end, inputs)
    sent = pickle.loads(pickle.dumps(work))
    assert sent.dataset.bar_handler.__dict__.get("_bars") is None
    day = Block("day", {"first": SPAN[1], "last": SPAN[1]})
    found = sent.open()(day).to_pandas().set_index(["datetime", "instrument"])
    pd.testing.assert_frame_equal(found, expected.loc[[SPAN[1]]], check_exact=True)
    assert dataset.segments["test"] == SPAN, "the data set of the caller stays as it was"
    work.open()(day)
    assert dataset.segments["test"] == SPAN


def test_a_worker_that_sees_other_bars_does_nothing(zero_shot):
    """It was noticed by the number of rows alone."""
    model, dataset, _ = zero_shot
    end = pd.Timestamp(SPAN[1])
    inputs = {**inputs_of(model, dataset, end), "bars": "bars of another copy"}
    work = ScoringWork(ShippedModel.of(model), dataset, qlib_settings(), "scores", 1, end, inputs)
    with pytest.raises(ConfigError, match=r"bars of another copy there, bars \w+ here\. Give"):
        pickle.loads(pickle.dumps(work)).open()


def folder_of_first(market):
    """Of the first name of the universe."""
    line = (market / "instruments" / "all.txt").read_text().splitlines()[0]
    return market / "features" / line.split("\t")[0].lower()


def change(path):
    """Stored values, by a little."""
    values = np.fromfile(path, dtype="<f4")
    values[1:] *= 1.0001
    values.tofile(path)


def test_what_a_table_is_made_of_is_of_the_job(provider, tmp_path):
    """LightGBM reads $vwap, which no bar has, and what processors learned of earlier days."""
    market = tmp_path / "market"
    shutil.copytree(provider, market)
    open_provider(market)
    first = folder_of_first(market)
    shutil.copy(first / "close.day.bin", first / "vwap.day.bin")
    dataset = init_instance_by_config(copy.deepcopy(TABLES))
    model = init_instance_by_config(copy.deepcopy(TREES))
    end = pd.Timestamp(SPAN[1])
    before = inputs_of(model, dataset, end)
    assert [*before] == ["table"]
    change(first / "vwap.day.bin")
    open_provider(market)
    assert inputs_of(model, init_instance_by_config(copy.deepcopy(TABLES)), end) != before
    other = copy.deepcopy(TABLES)
    other["kwargs"]["handler"]["kwargs"]["fit_end_time"] = "2020-08-14"
    assert inputs_of(model, init_instance_by_config(other), end)["table"] != before["table"]


def test_inputs_of_a_blend_are_those_of_its_members(provider, tmp_path):
    """A head's columns beside the bars, and the bars of a member that has a data set of its own."""
    market = tmp_path / "market"
    shutil.copytree(provider, market)
    open_provider(market)
    first = folder_of_first(market)
    for name in (market / "features").iterdir():
        shutil.copy(name / "close.day.bin", name / "pe.day.bin")
    own = copy.deepcopy(WINDOWS)
    own["kwargs"]["handler"]["kwargs"]["instruments"] = [first.name.upper()]
    blend = init_instance_by_config(
        {
            **BLEND,
            "kwargs": {"members": [REVERSAL, {**REVERSAL, "name": "own", "dataset": own}]},
        }
    )
    dataset = init_instance_by_config(copy.deepcopy(WINDOWS))
    end = pd.Timestamp(SPAN[1])
    found = inputs_of(blend, dataset, end)
    assert [*found] == ["bars", "universe", "bars of own", "universe of own"]
    assert found["bars"] != found["bars of own"]

    head = init_instance_by_config(kronos(training={"alpha": {**HEAD, "features": ["$pe"]}}))
    head.fit(dataset)
    before = inputs_of(head, dataset, end)
    change(first / "pe.day.bin")
    after = inputs_of(head, dataset, end)
    assert [name for name in before if before[name] != after[name]] == ["columns"]


def test_sectors_and_a_contexts_folder_are_shipped(opened, zero_shot, tmp_path, monkeypatch):
    """Workers have another working folder, and perhaps no such file."""
    monkeypatch.chdir(tmp_path)
    names = zero_shot[2].index.get_level_values("instrument").unique()
    lines = [f"{name},{place % 2}" for place, name in enumerate(names)]
    (tmp_path / "sectors.csv").write_text("\n".join(["instrument,sector", *lines]) + "\n")
    how = {"sectors": {"file": "sectors.csv"}, "shape": [{"neutralise": ["sector"]}]}
    model = init_instance_by_config(kronos(signals=how, contexts_folder="kept"))
    dataset = init_instance_by_config(copy.deepcopy(WINDOWS))
    segment = (SPAN[1], SPAN[1])
    expected = model.predict(dataset, segment)
    sent = pickle.dumps(ShippedModel.of(model))
    (tmp_path / "sectors.csv").unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    other = pickle.loads(sent).open()
    assert other.contexts_folder == tmp_path / "kept"
    pd.testing.assert_series_equal(other.predict(dataset, segment), expected, check_exact=True)


def test_bits_are_those_of_the_threads_planned_for(zero_shot):
    model, dataset, _ = zero_shot
    day = dataset.source.windows((SPAN[1], SPAN[1]))
    before, found = torch.get_num_threads(), {}
    try:
        for threads, planned in ((4, None), (1, 4)):
            torch.set_num_threads(threads)
            with planned_for(planned or threads):
                plan = model.predictor.plan(len(day), 20, 3, 2)
                found[threads] = plan, model.signals_of(dataset.source, day, ["expected_return"])
    finally:
        torch.set_num_threads(before)
    assert found[1][0] == found[4][0]
    pd.testing.assert_frame_equal(found[1][1], found[4][1], check_exact=True)
