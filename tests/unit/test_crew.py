"""A batch shared by threads or processes: the losses, gradients and weights of one that is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from kronos_qlib.model.crew import Board, Lane, crew, mean_over_rows, working_as
from kronos_qlib.training.launch import Job, train_in_processes
from kronos_qlib.training.steps import PredictorStep, TokenizerStep

from kronos_qlib.configs import AlphaConfig, TrainingConfig
from kronos_qlib.data.bar_table import BarTable
from kronos_qlib.data.features import SCALE_FEATURES
from kronos_qlib.data.labels import ReturnLabel
from kronos_qlib.data.search import windows_to_score, windows_to_train
from kronos_qlib.errors import ConfigError, TrainingError
from kronos_qlib.model.alpha import AlphaHead
from kronos_qlib.schema import BAR_COLUMNS
from kronos_qlib.training import team
from kronos_qlib.training.alpha import ALPHA_LOSSES, AlphaNet, AlphaSegment, AlphaStep
from kronos_qlib.training.batches import Segment
from kronos_qlib.training.loop import train

CONFIG = TrainingConfig(epochs=2, batch_size=16, learning_rate=5e-3, seed=1)
DAYS = pd.bdate_range("2024-01-01", periods=40)
KINDS = ("tokenizer", "predictor", "alpha")


def bars_of(names: str = "abcdef") -> BarTable:
    index = pd.MultiIndex.from_product([list(names), DAYS])
    bars = np.random.default_rng(0).uniform(1, 9, (len(index), len(BAR_COLUMNS)))
    return BarTable.from_frame(
        pd.DataFrame(bars, index=index, columns=list(BAR_COLUMNS)), invalid="keep"
    )


def make_run(make_pair, kind, dropout=0.0):
    """A step, its segments and its settings; an odd number of windows, so that parts differ."""
    table = bars_of()
    tokenizer, net = make_pair(1, dropout=dropout)
    if kind == "alpha":
        windows = [
            windows_to_score(table, 6, first=first, last=last)
            for first, last in ((None, DAYS[29]), (DAYS[30], None))
        ]
        segments = [AlphaSegment.of(part, ReturnLabel()) for part in windows]
        torch.manual_seed(2)
        head = AlphaHead(16, len(SCALE_FEATURES), 4, 8, 0.0)
        config = AlphaConfig(
            backbone="whole", epochs=1, learning_rate=5e-3, backbone_learning_rate=5e-3
        )
        return AlphaStep(AlphaNet(head, net), tokenizer, ALPHA_LOSSES["ic"]), segments, config
    segments = [
        Segment(windows_to_train(table, 6, 2, None, DAYS[29])),
        Segment(windows_to_train(table, 6, 2, DAYS[30], None), DAYS[30]),
    ]
    step = TokenizerStep(tokenizer) if kind == "tokenizer" else PredictorStep(net, tokenizer)
    return step, segments, CONFIG


def outcome(report, step):
    """Losses and gradient norms of every two steps, validations, and the weights in one row."""
    rows = [[row["loss"], row["gradient_norm"]] for row in report.steps]
    valid = [row["valid_loss"] for row in report.history]
    weights = torch.cat([weight.detach().flatten() for weight in step.net.parameters()])
    return rows, valid, weights


@pytest.fixture(scope="module")
def alone(make_pair):
    """What one member comes to."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(team, "LEAST_WINDOWS", 10_000)
        for kind in KINDS:
            step, segments, config = make_run(make_pair, kind)
            found[kind] = outcome(train(step, *segments, config, log_every=2), step)
    return found


def assert_same(found, expected):
    """To float tolerance; Adam turns the sign of a gradient that is nearly nothing into a step."""
    rows, valid, weights = found
    assert rows == [pytest.approx(row, rel=2e-5, abs=1e-6) for row in expected[0]]
    assert valid == pytest.approx(expected[1], rel=1e-5)
    assert (weights - expected[2]).abs().max() < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_threads_take_the_steps_of_one(alone, make_pair, kind, monkeypatch):
    monkeypatch.setattr(team, "LEAST_WINDOWS", 1)
    step, segments, config = make_run(make_pair, kind)
    seen = []
    losses = type(step).losses
    monkeypatch.setattr(
        type(step),
        "losses",
        lambda self, batch, rng: (seen.append(crew().size), losses(self, batch, rng))[1],
    )
    report = train(step, *segments, config, log_every=2, threads=3)
    assert set(seen) == {3}
    assert_same(outcome(report, step), alone[kind])


@dataclass(frozen=True)
class NotedSegment(Segment):
    """Writes down which windows each process takes."""

    folder: str = ""

    def batch(self, which, device="cpu", out=None, part=slice(None)):
        with (Path(self.folder) / f"{crew().rank}.txt").open("a") as file:
            file.write("".join(f"{place}\n" for place in which[part]))
        return super().batch(which, device, out, part)


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_take_the_steps_of_one(alone, make_pair, kind, tmp_path):
    step, segments, config = make_run(make_pair, kind)
    told = []
    if kind == "predictor":
        segments[0] = NotedSegment(segments[0].windows, folder=str(tmp_path))
    report = train_in_processes(
        step, *segments, config, 2, log_every=2, on_epoch=lambda number, row: told.append(number)
    )
    assert told == list(range(config.epochs + 1))
    assert_same(outcome(report, step), alone[kind])
    assert set(report.last) == set(step.net.state_dict())
    if kind == "predictor":
        taken = [np.loadtxt(tmp_path / f"{rank}.txt", dtype=int) for rank in range(2)]
        assert len(taken[1]) > 0.8 * len(taken[0])
        counts = np.bincount(np.concatenate(taken))
        assert counts.tolist() == [config.epochs] * len(segments[0])


def test_workers_map_the_windows_of_one_file(make_pair, tmp_path):
    step, segments, config = make_run(make_pair, "predictor")
    job = Job(step, *segments, config, "cpu", False, 20, None)
    joblib.dump(job, tmp_path / "job")
    table = joblib.load(tmp_path / "job", mmap_mode="r").training.windows.table
    for name in ("values", "places"):
        assert isinstance(getattr(table, name), np.memmap), name


def test_a_worker_ends_when_its_parent_does():
    """A parent that is killed cannot say so: the pipe it held says it."""
    code = (
        "import threading, time; from kronos_qlib.training.worker import end_with_parent;"
        "threading.Thread(target=end_with_parent, daemon=True).start();"
        "print('ready', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as worker:
        assert worker.stdout.readline().strip() == b"ready"
        worker.stdin.close()
        assert worker.wait(30) == 1


@pytest.mark.parametrize("missing", ["RANK", "MASTER_ADDR", "LOCAL_RANK"])
def test_the_size_of_an_allocation_is_no_launch(make_pair, monkeypatch, missing):
    """SLURM scripts and mpirun set a WORLD_SIZE; alone it once made a run wait for others."""
    for name in {*team.LAUNCHED_BY} - {missing}:
        monkeypatch.setenv(name, "4")
    assert not team.is_launched() and team.process_rank() == 0
    accelerator = team.make_accelerator(torch.device("cpu"), "float32")
    assert accelerator.num_processes == 1
    assert os.environ["WORLD_SIZE"] == "4", "the shell's own is left to it"
    monkeypatch.setenv(missing, "1")
    assert team.is_launched()


def test_freed_memory_is_given_back_after_training(monkeypatch):
    asked = []

    class Libc:
        """Of before 2.35: it takes no threshold above its own highest."""

        def mallopt(self, what, value):
            asked.append((what, value))
            return int(what != -3 or value <= 2**25)

        def malloc_trim(self, kept):
            asked.append("trim")

    monkeypatch.setattr(team.sys, "platform", "linux")
    monkeypatch.setattr(team.ctypes, "CDLL", lambda name: Libc())
    with team.freed_memory_kept():
        assert asked == [(-3, 2**30), (-3, 2**25), (-1, 2**31 - 1)]
        asked.clear()
    assert asked == [(-3, 2**25), (-1, 2**26), "trim"]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", ["tokenizer", "predictor"])
def test_parts_of_a_batch_make_its_step(alone, make_pair, kind, threads, monkeypatch):
    """Also where the loss is no mean over windows: a codebook's entropy is that of the batch."""
    monkeypatch.setattr(team, "LEAST_WINDOWS", 1)
    step, segments, config = make_run(make_pair, kind)
    config = replace(config, accumulation=3)
    report = train(step, *segments, config, log_every=2, threads=threads)
    assert_same(outcome(report, step), alone[kind])


def test_a_part_that_is_looked_at_twice_has_the_same_dropout_twice(make_pair):
    step, segments, config = make_run(make_pair, "tokenizer", dropout=0.3)
    losses, seen = type(step).losses, []

    def watched(self, batch, rng=None):
        if self.net.training:
            seen.append((torch.is_grad_enabled(), rng.get_state()))
        return losses(self, batch, rng)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(step), "losses", watched)
        train(step, *segments, replace(config, accumulation=2, epochs=1), threads=1)
    for first in range(0, len(seen), 4):
        looked, learned = seen[first : first + 2], seen[first + 2 : first + 4]
        for (has_gradient, before), (learns, again) in zip(looked, learned, strict=True):
            assert learns and not has_gradient
            assert torch.equal(before, again)


def test_a_batch_smaller_than_the_crew_is_shared_too(make_pair, monkeypatch):
    """The last batch has one window: the other threads have none and wait for it."""
    monkeypatch.setattr(team, "LEAST_WINDOWS", 1)
    step, segments, config = make_run(make_pair, "predictor")
    many = len(segments[0])
    config = replace(config, epochs=1, batch_size=many - 1)
    report = train(step, *segments, config, log_every=1, threads=2)
    assert len(report.steps) == 2
    monkeypatch.setattr(team, "LEAST_WINDOWS", 10_000)
    other, segments, _ = make_run(make_pair, "predictor")
    again = train(other, *segments, config, log_every=1, threads=1)
    assert_same(outcome(report, step), outcome(again, other))


def test_a_day_smaller_than_the_crew_is_shared_too(alone, make_pair, monkeypatch):
    """Members without a window have no context to learn by; the others once waited for ever."""
    monkeypatch.setattr(team, "LEAST_WINDOWS", 0.5)
    step, segments, config = make_run(make_pair, "alpha")
    report = train(step, *segments, config, log_every=2, threads=8)  # of six instruments
    assert_same(outcome(report, step), alone["alpha"])


def test_every_window_once_per_epoch_whoever_takes_it(make_pair, monkeypatch):
    monkeypatch.setattr(team, "LEAST_WINDOWS", 1)
    step, segments, config = make_run(make_pair, "predictor")
    seen, lock = [], threading.Lock()
    gather = Segment.batch

    def watched(self, which, device="cpu", out=None, part=slice(None)):
        if self is segments[0]:
            with lock:
                seen.extend(which[part].tolist())
        return gather(self, which, device, out, part)

    monkeypatch.setattr(Segment, "batch", watched)
    train(step, *segments, replace(config, epochs=1), threads=2)
    assert sorted(seen) == list(range(len(segments[0])))


def test_threads_with_chance_end_with_the_same_bits_each_time(make_pair, monkeypatch):
    """Every thread has its own dropout and its own draws of s1, whichever is ahead."""
    monkeypatch.setattr(team, "LEAST_WINDOWS", 1)

    def weights():
        step, segments, config = make_run(make_pair, "predictor", dropout=0.2)
        step = replace(step, teacher_forcing=False)
        before = torch.get_rng_state()
        found = outcome(train(step, *segments, config, threads=2), step)[2]
        assert torch.equal(torch.get_rng_state(), before), "the caller's chance is left alone"
        return found

    assert torch.equal(weights(), weights())


def test_a_total_is_the_members_sum_forwards_and_backwards():
    board, found = Board(2), {}

    def work(rank):
        member = Lane(rank, board, torch.Generator())
        x = torch.tensor([1.0 + rank, 2.0], requires_grad=True)
        with working_as(member):
            mean = mean_over_rows(x[:, None] if rank else x[:1, None])  # rows 1 | 2, 2
            (mean**2).sum().backward()
        found[rank] = (mean.item(), x.grad.tolist())

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    mean = 5 / 3
    assert found[0][0] == found[1][0] == pytest.approx(mean)
    # Both members have the whole loss: the mean of their gradients is that of one.
    each = 2 * mean / 3 * 2
    assert found[0][1] == pytest.approx([each, 0])
    assert found[1][1] == pytest.approx([each, each])


def test_a_loss_that_is_no_number_names_the_bars_in_a_crew_too(make_pair, monkeypatch):
    monkeypatch.setattr(team, "LEAST_WINDOWS", 1)
    step, segments, config = make_run(make_pair, "predictor")
    step.net.head.proj_s1.weight.data[0, 0] = torch.nan
    with pytest.raises(TrainingError, match=r"the loss became nan on a batch .* a at 2024"):
        train(step, *segments, config, threads=2)
    with pytest.raises(TrainingError, match=r"the loss became nan on a batch .* a at 2024"):
        train_in_processes(step, *segments, config, 2)


def test_an_exploding_loss_stops_the_run(make_pair):
    step, segments, config = make_run(make_pair, "predictor")
    config = replace(config, learning_rate=1e4, warmup_share=0.0, clip_norm=1e9, epochs=30)
    with pytest.raises(TrainingError, match=r"(loss|gradient norm) became .* lower the learning"):
        train(step, *segments, config)


class KilledStep(PredictorStep):
    """Process 1 is killed in its third step, as by a machine without memory."""

    def losses(self, batch, rng=None):
        self.net.count = getattr(self.net, "count", 0) + self.net.training
        if crew().rank == 1 and self.net.count == 3:
            os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
        return super().losses(batch, rng)


def test_a_worker_that_is_killed_ends_the_others_and_is_named(make_pair, tmp_path, monkeypatch):
    """What the other one met was a closed connection, and that was told instead of the kill."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    step, segments, config = make_run(make_pair, "predictor")
    killed = r"process 1 of 2 \(pid \d+\) was killed by signal 9, SIGKILL .*memory ran out"
    with pytest.raises(TrainingError, match=killed if os.name == "posix" else "process 1 of 2"):
        train_in_processes(KilledStep(step.net, step.tokenizer), *segments, config, 2)
    assert not list(tmp_path.glob("kronos-work-*")), "bars of the job are left"


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_sigterm_leaves_no_bars_and_no_workers(make_pair, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    step, segments, config = make_run(make_pair, "predictor")
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def ask_to_end(number, row):
        (folder,) = tmp_path.glob("kronos-work-*")
        assert folder.stat().st_mode & 0o777 == 0o700
        seen.append((folder / "job.joblib").exists())
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as end:
        train_in_processes(step, *segments, config, 2, on_epoch=ask_to_end)
    assert end.value.code == 128 + signal.SIGTERM and seen == [True]
    assert not list(tmp_path.glob("kronos-work-*"))
    assert signal.getsignal(signal.SIGTERM) is before


def test_processes_that_cannot_be_are_refused(make_pair):
    step, segments, config = make_run(make_pair, "predictor")
    with pytest.raises(ConfigError, match="is for CPU and CUDA"):
        train_in_processes(step, *segments, config, 2, device="meta")
    with pytest.raises(ConfigError, match="precision 'float16' does not work on cpu"):
        train(step, *segments, replace(config, precision="float16"))


def test_bfloat16_learns_about_as_float32_does(alone, make_pair):
    step, segments, config = make_run(make_pair, "predictor")
    report = train(step, *segments, replace(config, precision="bfloat16"))
    assert all(weight.dtype == torch.float32 for weight in step.net.parameters())
    valid = [row["valid_loss"] for row in report.history]
    assert valid != alone["predictor"][1]
    assert valid == pytest.approx(alone["predictor"][1], rel=0.02)


def test_bfloat16_steps_have_the_tokens_that_scoring_reads(make_pair):
    """The border of a code does not move with the number type of a step."""
    step, segments, _ = make_run(make_pair, "predictor")
    batch, seen = segments[0].batch(np.arange(60)), []
    step = replace(step, criterion=lambda *given: seen.append(given[2:4]) or {"loss": given[0]})
    with torch.autocast("cpu", torch.bfloat16):
        step.losses(batch)
        rounded = step.tokenizer.encode(batch.z)
    exact = step.tokenizer.encode(batch.z)
    assert not torch.equal(rounded[0], exact[0]), "or the test shows nothing"
    for found, expected in zip(seen[0], exact, strict=True):
        assert torch.equal(found, expected[:, 1:])


@pytest.mark.parametrize("kind", ["tokenizer", "alpha"])
def test_bfloat16_losses_are_summed_in_float32(make_pair, kind):
    step, segments, _ = make_run(make_pair, kind)
    which = np.arange(60) if kind == "tokenizer" else np.arange(segments[0].days[0].stop)
    batch = segments[0].batch(which)
    with torch.autocast("cpu", torch.bfloat16):
        losses = step.losses(batch)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    exact = step.losses(batch)
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(exact[name].item(), rel=0.02, abs=1e-3), name
