"""A run that is killed goes on as if it had not been; damage is noticed, nothing good is lost."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from kronos_qlib.data.windows.bar_table import BarTable
from kronos_qlib.data.windows.find import windows_to_train
from kronos_qlib.errors import CheckpointError, ConfigError, TrainingError
from kronos_qlib.model.checkpoints.pretrained import fingerprint
from kronos_qlib.schema import BAR_COLUMNS
from kronos_qlib.training import loop
from kronos_qlib.training.batches import Segment
from kronos_qlib.training.loop import train
from kronos_qlib.training.losses import PredictorStep
from kronos_qlib.training.resume import KIND, RunStore
from kronos_qlib.training.stage_settings import TrainingConfig

CONFIG = TrainingConfig(epochs=3, batch_size=8, learning_rate=5e-3, seed=3, teacher_forcing=False)
STATE = {"weights": torch.arange(5.0), "history": [{"loss": 0.5}], "epoch": 2}

KILLED = """
    import os, signal, sys
    sys.path.insert(0, {tests!r})
    import unit.test_resume as here
    from tiny_networks import build_pair

    step, segments = here.make_run(build_pair)
    ask = type(step).losses
    count = 0

    def losses(self, batch, rng=None):
        global count
        if self.net.training:
            count += 1
            if count == {at}:
                os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
        return ask(self, batch, rng)

    type(step).losses = losses
    here.train(step, *segments, here.CONFIG, store=here.RunStore({folder!r}, every=3))
    print("was not killed")
"""


def make_run(build_pair):
    """A tiny predictor with dropout and sampled s1: all the chance that there is."""
    days = pd.bdate_range("2024-01-01", periods=40)
    index = pd.MultiIndex.from_product([list("abc"), days])
    bars = np.random.default_rng(0).uniform(1, 9, (len(index), len(BAR_COLUMNS)))
    table = BarTable.from_frame(
        pd.DataFrame(bars, index=index, columns=list(BAR_COLUMNS)), invalid="keep"
    )
    tokenizer, net = build_pair(1, dropout=0.2)
    segments = (
        Segment(windows_to_train(table, 6, 2, None, days[29])),
        Segment(windows_to_train(table, 6, 2, days[30], None)),
    )
    return PredictorStep(net, tokenizer, teacher_forcing=False), segments


@pytest.fixture(scope="module")
def undisturbed(make_pair):
    step, segments = make_run(make_pair)
    report = train(step, *segments, CONFIG)
    return fingerprint(step.net), report


@pytest.mark.parametrize("at", [1, 8, 10, 17, 27])
def test_a_killed_run_ends_with_the_bits_of_one_left_alone(at, undisturbed, make_pair, tmp_path):
    """SIGKILL in the middle of a step: before a state, between states, in a later epoch."""
    tests = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
    script = textwrap.dedent(KILLED).format(tests=tests, at=at, folder=str(tmp_path / "run"))
    killed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert killed.returncode != 0, killed.stdout
    assert "Traceback" not in killed.stderr
    states = sorted((tmp_path / "run").glob("*.state"))
    assert len(states) == min(2, (at - 1) // 3)

    step, segments = make_run(make_pair)
    report = train(step, *segments, CONFIG, store=RunStore(tmp_path / "run", every=3))
    assert fingerprint(step.net) == undisturbed[0]
    assert report == undisturbed[1]


def test_a_run_that_had_ended_is_told_and_not_trained_again(
    undisturbed, make_pair, tmp_path, monkeypatch
):
    told: list[tuple] = []

    def tell(*row):
        told.append(row)

    for _ in range(2):
        told.clear()
        step, segments = make_run(make_pair)
        report = train(step, *segments, CONFIG, store=RunStore(tmp_path), on_epoch=tell)
        assert fingerprint(step.net) == undisturbed[0]
        assert report == undisturbed[1]
        assert [row for _, row in told] == report.history

    def refuse(self, batch, rng=None):
        raise AssertionError("there is nothing left to train")

    monkeypatch.setattr(PredictorStep, "losses", refuse)
    train(step, *segments, CONFIG, store=RunStore(tmp_path))


def test_the_newest_states_stay_and_the_rest_goes(tmp_path):
    store = RunStore(tmp_path / "run")
    assert store.load() is None
    for step in (1, 20, 300):
        store.save(step, STATE | {"epoch": step})
    assert len(list((tmp_path / "run").iterdir())) == 2
    steps, state = store.load()
    assert (steps, state["epoch"]) == (300, 300)
    assert state["weights"].equal(STATE["weights"])
    assert state["history"] == STATE["history"]


def test_parts_of_a_shared_network_go_with_their_state_and_drafts_of_killed_writers_too(tmp_path):
    store = RunStore(tmp_path / "run")
    draft = store.shards(7).with_name(f".{store.shards(7).name}.new")
    draft.mkdir(parents=True)
    for step in (1, 20, 300):
        store.shards(step).mkdir()
        (store.shards(step) / "__0_0.distcp").write_bytes(b"parts")
        store.save(step, STATE)
    left = sorted(path.name for path in (tmp_path / "run").iterdir() if path.is_dir())
    assert left == [store.shards(20).name, store.shards(300).name]


@pytest.mark.parametrize("cut", [0, 10, 40, -1])
def test_a_truncated_state_is_passed_over(tmp_path, caplog, cut):
    store = RunStore(tmp_path)
    store.save(1, STATE)
    store.save(2, STATE | {"epoch": 9})
    newest = max(tmp_path.glob("*.state"))
    newest.write_bytes(newest.read_bytes()[:cut])
    assert store.load()[0] == 1
    assert "truncated or damaged: the state before it is used" in caplog.text
    for file in tmp_path.glob("*.state"):
        data = bytearray(file.read_bytes())
        data[-5:] = b"wrong"
        file.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="none of the 2 states"):
        store.load()


def test_a_full_disk_stops_with_the_last_good_state_in_place(tmp_path, monkeypatch):
    store = RunStore(tmp_path)
    store.save(1, STATE)

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        TrainingError, match=r"after 2 steps.*No space left.*0001\.state is the last"
    ):
        store.save(2, STATE)
    assert [file.name for file in tmp_path.iterdir()] == ["000000000001.state"]
    assert store.load()[0] == 1


def test_a_run_whose_newest_state_is_cut_ends_with_the_same_bits(
    undisturbed, make_pair, tmp_path, caplog
):
    step, segments = make_run(make_pair)
    train(step, *segments, CONFIG, store=RunStore(tmp_path, every=4))
    newest = max(tmp_path.glob("*.state"))
    newest.write_bytes(newest.read_bytes()[:-100])
    step, segments = make_run(make_pair)
    rows = []
    report = train(
        step,
        *segments,
        CONFIG,
        store=RunStore(tmp_path, every=4),
        log_every=2,
        on_steps=lambda number, row: rows.append(row),
    )
    assert "truncated or damaged" in caplog.text
    assert fingerprint(step.net) == undisturbed[0]
    assert report.history == undisturbed[1].history
    assert rows == report.steps, "what was told before is told again"


def test_two_runs_are_not_at_work_in_one_folder(make_pair, tmp_path):
    step, segments = make_run(make_pair)
    busy = pytest.raises(TrainingError, match="another run is at work in")
    with RunStore(tmp_path).held(), busy:
        train(step, *segments, CONFIG, store=RunStore(tmp_path))
    train(step, *segments, replace(CONFIG, epochs=1), store=RunStore(tmp_path))


def test_machines_that_see_other_states_are_told(make_pair, tmp_path, monkeypatch):
    """Going on from different steps they would wait for each other, or mix their weights."""
    monkeypatch.setattr(loop, "of_all", lambda own: [own, 40] if isinstance(own, int) else [own])
    step, segments = make_run(make_pair)
    with pytest.raises(TrainingError, match="found states after 0, 40 steps"):
        train(step, *segments, CONFIG, store=RunStore(tmp_path))


def test_another_runs_state_is_refused(tmp_path):
    RunStore(tmp_path, {"config": "a", "bars": "1"}).save(1, STATE)
    assert RunStore(tmp_path, {"config": "a", "bars": "1"}).load()[0] == 1
    with pytest.raises(ConfigError, match="of a run with other config; it cannot go on"):
        RunStore(tmp_path, {"config": "b", "bars": "1"}).load()
    for store, message in (
        (
            RunStore(tmp_path, {"config": "a", "bars": "1", KIND: "3"}),
            "kind of state None, and here",
        ),
        (RunStore(tmp_path, {"config": "b", "bars": "1", KIND: "3"}), "kept by another release"),
    ):
        with pytest.raises(ConfigError, match=message):
            store.load()
    with pytest.raises(ConfigError, match="every 1 or more steps"):
        RunStore(tmp_path, every=0)


@pytest.mark.parametrize("kept", ["net", "best"])
def test_a_state_whose_weights_are_not_finite_is_not_gone_on_from(make_pair, tmp_path, kept):
    """Its digest is right: someone wrote it so."""
    step, segments = make_run(make_pair)
    store = RunStore(tmp_path, every=3)
    train(step, *segments, CONFIG, store=store)
    done, state = store.load()
    state[kept]["norm.weight"][0] = torch.nan
    store.save(done, state)
    with pytest.raises(CheckpointError, match=rf"norm.weight of the weights \({kept}\)"):
        train(step, *segments, CONFIG, store=RunStore(tmp_path, every=3))
