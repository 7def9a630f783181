"""Finetuning by one configuration: the command, the Python API, and processes that are launched."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from kronos_qlib.cli.main import main
from kronos_qlib.data.windows.window_dataset import WindowDataset
from kronos_qlib.errors import CheckpointError, ConfigError
from kronos_qlib.inference.calibrating import checkpoint_of
from kronos_qlib.model.checkpoints.pretrained import SHAPES, sizes_of
from kronos_qlib.model.tokenizer import KronosTokenizer
from kronos_qlib.model.transformer import Kronos
from kronos_qlib.plugin.model import KronosModel
from kronos_qlib.training.stage_settings import PRESETS

pytestmark = pytest.mark.integration

SEGMENTS = {"train": 0.7, "valid": 0.2, "test": 0.1}
STAGE = {"epochs": 1, "windows_per_epoch": 64, "validation_windows": 32, "batch_size": 16}
ALPHA = {"epochs": 1, "hidden": 8, "context_width": 2, "windows_per_day": 6}
QUIET = {"device": "cpu", "show_progress": False}


@pytest.fixture(scope="module")
def file(bars, tmp_path_factory):
    target = tmp_path_factory.mktemp("bars") / "bars.parquet"
    bars.to_parquet(target)
    return target


@pytest.fixture(scope="module")
def dataset(file):
    return WindowDataset.from_file(file, SEGMENTS, lookback=20, horizon=3, **AHEAD)


AHEAD = {"beyond_calendar": "weekdays"}


def written(folder: Path, file: Path, model: dict) -> Path:
    config = {
        "task": {
            "model": {"class": "KronosModel", "kwargs": {**QUIET, **model}},
            "dataset": {
                "from_file": str(file),
                "segments": SEGMENTS,
                "lookback": 20,
                "horizon": 3,
                **AHEAD,
            },
        }
    }
    path = folder / "finetune.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path


def test_the_command_trains_every_stage_and_what_it_saves_scores(file, dataset, tmp_path, capsys):
    training = {"tokenizer": STAGE, "predictor": {**STAGE, "lora_rank": 2}, "alpha": ALPHA}
    config = written(tmp_path, file, {"training": training})
    change = "training.predictor.learning_rate=1e-3"
    out = tmp_path / "tuned"
    assert main(["finetune", str(config), "--out", str(out), "--set", change]) == 0
    told = capsys.readouterr().out
    assert "predictor: validation loss" in told and "alpha:" in told

    again = KronosModel(training=training | {"predictor": {**STAGE, "lora_rank": 2,
                        "learning_rate": 1e-3}}, **QUIET)  # fmt: skip
    again.fit(dataset)
    fitted = again.predict(dataset)
    saved = KronosModel(checkpoint=str(out), alpha_head=str(out / "alpha"), **QUIET)
    pd.testing.assert_series_equal(saved.predict(dataset), fitted)
    pd.testing.assert_series_equal(pickle.loads(pickle.dumps(again)).predict(dataset), fitted)
    head = str(out / "last" / "alpha")
    last = KronosModel(checkpoint=str(out / "last"), alpha_head=head, **QUIET)
    assert np.isfinite(last.predict(dataset)).all()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"training": {"predicter": STAGE}}, "did you mean 'predictor'"),
        ({"training": {"predictor": {"epoch": 1}}}, "did you mean 'epochs'"),
        ({"training": {"preset": "mild", "predictor": {}}}, "preset is one of published, gentle"),
        ({}, "trains nothing"),
        ({"chekpoint": "nano", "training": {"predictor": {}}}, "chekpoint"),
        ({"from_scratch": True, "training": {"alpha": ALPHA}}, "needs training.predictor"),
        ({"from_scratch": True, "training": {"predictor": {}}}, "makes a new tokenizer too"),
        ({"n_processes": 0}, "n_processes must be at least 1"),
    ],
)
def test_a_setting_that_cannot_work_is_named(file, tmp_path, capsys, model, message):
    config = written(tmp_path, file, model)
    assert main(["finetune", str(config), "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_file_without_what_it_needs_is_refused(tmp_path, capsys):
    for text, message in (
        ("task: {model: {}}", "lacks task.dataset"),
        ("- 1", "holds no sections"),
        ("task: {model: {class: Other}, dataset: {}}", "where are the bars"),
        ("a: [", "cannot be read"),
    ):
        path = tmp_path / "some.yaml"
        path.write_text(text, encoding="utf-8")
        assert main(["finetune", str(path), "--out", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
    assert main(["finetune", str(tmp_path / "no.yaml"), "--out", str(tmp_path / "out")]) == 2


@pytest.mark.parametrize(
    ("bars_of_each", "valid", "training", "message"),
    [
        (12, 0.1, {"predictor": {}}, "20 bars and 3 bars after them, and of 8 instruments"),
        (12, 0.1, {"alpha": {}}, "it needs 20 bars and 2 bars of its label after them"),
        (40, 0.03, {"predictor": {}}, "no window to judge by in the segment valid"),
    ],
)
def test_bars_that_are_too_few_are_refused_before_weights_are_loaded(
    bars, tmp_path, capsys, monkeypatch, bars_of_each, valid, training, message
):
    """It loaded weights and read tokens first, and then said that a segment has no window."""
    few = bars.groupby("symbol").head(bars_of_each)
    few.to_parquet(tmp_path / "few.parquet")
    config = written(tmp_path, tmp_path / "few.parquet", {"training": training})
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    settings["task"]["dataset"]["segments"] = {"train": 0.9, "valid": valid}
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    monkeypatch.setattr(KronosModel, "_load", lambda self: pytest.fail("it loaded weights"))
    assert main(["finetune", str(config), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in said and "has the most bars" in said and "Give more bars" in said
    assert not (tmp_path / "out").exists()


def test_a_workflow_file_is_taken_as_it_is(provider, tmp_path, monkeypatch):
    """The same file that qrun takes, jinja and all; only model and data set are used."""
    for name, value in {
        "PROVIDER_URI": provider, "START": "2020-01-01", "TRAIN_START": "2020-01-01",
        "TRAIN_END": "2020-08-31", "VALID_START": "2020-09-01", "VALID_END": "2020-10-30",
        "TEST_START": "2020-11-02", "TEST_END": "2020-11-30", "LOOKBACK": 20, "HORIZON": 3,
        "EPOCHS": 1, "WINDOWS_PER_EPOCH": 40, "VALIDATION_WINDOWS": 20,
        "MLFLOW_URI": f"sqlite:///{(tmp_path / 'mlflow.db').as_posix()}",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"KRONOS_{name}", str(value))
    workflow = Path(__file__).parents[2] / "workflows" / "workflow_kronos.yaml"
    assert main(["finetune", str(workflow), "--out", str(tmp_path / "out")]) == 0
    assert Kronos.from_pretrained(tmp_path / "out").origin is not None


@pytest.fixture(scope="module")
def steady(tmp_path_factory):
    """nano without dropout, which two processes draw otherwise than one."""
    folder = tmp_path_factory.mktemp("steady")
    net, tokenizer = Kronos.from_pretrained("nano"), KronosTokenizer.from_pretrained("nano")
    sizes = asdict(net.config)
    still = Kronos(**{key: 0.0 if key.endswith("_p") else sizes[key] for key in sizes})
    still.load_state_dict(net.state_dict())
    still.save_pretrained(folder / "predictor", tokenizer)
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder


@pytest.fixture(scope="module")
def by_one(file, steady, tmp_path_factory):
    """The file of a training, and what one process makes of it."""
    folder = tmp_path_factory.mktemp("by_one")
    training = {"predictor": {**STAGE, "learning_rate": 1e-3}}
    config = written(folder, file, {"checkpoint": str(steady), "training": training})
    assert main(["finetune", str(config), "--out", str(folder / "one")]) == 0
    return config, folder / "one"


@pytest.mark.parametrize("launcher", ["torchrun", "n_processes"])
def test_launched_processes_end_with_the_weights_of_one(by_one, steady, tmp_path, launcher):
    """torchrun on the same command, and `n_processes` from inside: gloo, two on this CPU."""
    config, one = by_one
    command = ["finetune", str(config), "--out", str(tmp_path / "two")]
    if launcher == "torchrun":
        run = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               "--nproc-per-node", "2", "-m", "kronos_qlib.cli", *command]  # fmt: skip
        done = subprocess.run(
            run,
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"OMP_NUM_THREADS": "1", "USE_LIBUV": "0"},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("saved in") == 1, "only the first process speaks"
    else:
        assert main([*command, "--set", "n_processes=2"]) == 0
    last = [Kronos.from_pretrained(folder / "last") for folder in (one, tmp_path / "two")]
    own, other, first = (
        torch.cat([weight.detach().flatten() for weight in net.parameters()])
        for net in (*last, Kronos.from_pretrained(steady))
    )
    # Adam makes a step of the sign of a gradient that is nearly nothing.
    assert (own - other).norm() < 0.02 * (own - first).norm()
    assert (tmp_path / "two" / "last" / "predictor" / "model.safetensors").exists()


def test_new_networks_of_any_size_learn(dataset, tmp_path):
    sizes = dict(SHAPES["mini"]) | {"d_model": 32, "n_layers": 1, "ff_dim": 32}
    for role, values in (
        ("predictor", sizes),
        ("tokenizer", sizes_of("mini", "tokenizer") | {"d_model": 32, "ff_dim": 32}),
    ):
        (tmp_path / role).mkdir()
        (tmp_path / role / "config.json").write_text(json.dumps(values), encoding="utf-8")
    fast = {**STAGE, "learning_rate": 3e-3}
    model = KronosModel(
        checkpoint=str(tmp_path),
        from_scratch=True,
        training={"tokenizer": fast, "predictor": fast},
        max_context=30,
        **QUIET,
    )
    model.fit(dataset)
    for rows in model.history.values():
        assert rows[-1]["valid_loss"] < 0.99 * rows[0]["valid_loss"]
    again = pickle.loads(pickle.dumps(model))
    one, two = (one.predictor.model.state_dict() for one in (model, again))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_named_sizes_are_the_published_ones():
    for name, millions in (("mini", 4.1), ("small", 24.7), ("base", 102.3)):
        count = sum(weight.numel() for weight in Kronos(**sizes_of(name, "predictor")).parameters())
        assert count / 1e6 == pytest.approx(millions, abs=0.06), name
    tokenizer = KronosTokenizer(**sizes_of("base", "tokenizer"))
    assert (tokenizer.s1_bits, tokenizer.s2_bits) == (10, 10)
    with pytest.raises(CheckpointError, match="no sizes of a predictor at 'nowhere'"):
        sizes_of("nowhere", "predictor")


def test_published_weights_are_moved_gently_unless_told_otherwise():
    stages = {"predictor": {"epochs": 2}, "alpha": {}, "tokenizer": {}}
    gentle = KronosModel("small", training=stages).training
    assert gentle.predictor.learning_rate == gentle.tokenizer.learning_rate == 1e-5
    assert (gentle.predictor.lora_rank, gentle.alpha.backbone) == (8, "lora")
    assert gentle.predictor.epochs == 2
    published = KronosModel("small", training={**stages, "preset": "published"}).training
    assert (published.predictor.learning_rate, published.predictor.lora_rank) == (4e-5, None)
    assert (published.tokenizer.learning_rate, published.tokenizer.clip_norm) == (2e-4, 2.0)
    assert not published.predictor.teacher_forcing
    stage = published.tokenizer
    assert (stage.epochs, stage.windows_per_epoch, stage.batch_size) == (30, 2000 * 50, 50)
    assert published.predictor.epochs == 2, "what is given stands"
    own = KronosModel("small", training={"predictor": {"learning_rate": 1e-3, "lora_rank": None}})
    assert (own.training.predictor.learning_rate, own.training.predictor.lora_rank) == (1e-3, None)
    assert KronosModel("nano", training=stages).training.preset is None
    assert set(PRESETS) == {"published", "gentle"}


def test_a_head_is_refused_by_another_predictor(dataset, tmp_path):
    model = KronosModel(training={"alpha": ALPHA}, **QUIET)
    model.fit(dataset)
    model.save_pretrained(str(tmp_path))
    settings = json.loads((tmp_path / "alpha" / "config.json").read_text())
    for change, message in (
        ({"names": ["amount"]}, "other features"),
        ({"d_model": 8}, "contexts of width 8"),
        # Another backbone of the same width: its contexts would give scores, and mean nothing.
        ({"backbone": "0-0"}, r"reads contexts of other weights \(fingerprint 0-0\)"),
        ({"backbone": 3}, "backbone must be a fingerprint"),
    ):
        (tmp_path / "alpha" / "config.json").write_text(json.dumps(settings | change))
        with pytest.raises(CheckpointError, match=message):
            KronosModel(alpha_head=str(tmp_path / "alpha"), **QUIET).predict(dataset)
    assert settings.pop("backbone") == checkpoint_of(model.predictor)
    (tmp_path / "alpha" / "config.json").write_text(json.dumps(settings))
    old = KronosModel(alpha_head=str(tmp_path / "alpha"), **QUIET)  # saved before there was one
    pd.testing.assert_series_equal(old.predict(dataset), model.predict(dataset))
    with pytest.raises(ConfigError, match=r"training\.predictor changes the contexts that alpha_h"):
        KronosModel(alpha_head=str(tmp_path / "alpha"), training={"predictor": {}})
    with pytest.raises(ConfigError, match="no setting 'lora'"):
        KronosModel(training={"alpha": {"lora": 3}})


@pytest.mark.parametrize("backbone", ["lora", "whole"])
def test_a_backbone_is_trained_with_its_head(dataset, backbone, tmp_path):
    settings = {**ALPHA, "backbone": backbone, "backbone_learning_rate": 1e-3, "lora_rank": 2}
    model = KronosModel(training={"alpha": settings}, **QUIET)
    model.fit(dataset)
    model.save_pretrained(str(tmp_path))
    start = Kronos.from_pretrained("nano").state_dict()
    last = Kronos.from_pretrained(tmp_path / "last").state_dict()  # whichever was the best
    moved = {name for name in start if not torch.equal(start[name], last[name])}
    assert any(name.startswith("transformer.") for name in moved)
    assert not any(name.startswith(("head.", "dep_layer.")) for name in moved)
    assert np.isfinite(model.predict(dataset)).all()
