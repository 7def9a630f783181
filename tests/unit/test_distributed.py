"""A batch shared by processes or worked through in parts: the losses and weights of a whole one."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st
from tiny_networks import build_pair

from kronos_qlib.data.windows.bar_table import BarTable
from kronos_qlib.data.windows.find import windows_to_score, windows_to_train
from kronos_qlib.data.windows.label import ReturnLabel
from kronos_qlib.data.windows.scale_features import SCALE_FEATURES
from kronos_qlib.errors import ConfigError, TrainingError
from kronos_qlib.model.alpha_head import AlphaHead
from kronos_qlib.model.checkpoints.pretrained import sizes_of
from kronos_qlib.model.checkpoints.weights import shapes_alone
from kronos_qlib.model.transformer import Kronos
from kronos_qlib.schema import BAR_COLUMNS
from kronos_qlib.training import alpha, hardware, loop, losses
from kronos_qlib.training.alpha import ALPHA_LOSSES, AlphaNet, AlphaSegment, AlphaStep
from kronos_qlib.training.batches import Segment, with_tokens
from kronos_qlib.training.loop import train
from kronos_qlib.training.losses import PredictorStep, TokenizerStep, next_token_losses
from kronos_qlib.training.parallel import processes
from kronos_qlib.training.parallel.distributed import (
    LAUNCHED_BY,
    Share,
    average_gradients,
    is_launched,
    join_processes,
    of_all,
    process_count,
    process_rank,
)
from kronos_qlib.training.parallel.processes import how_it_ended, train_in_processes
from kronos_qlib.training.parallel.sharding import laid_out, sharded
from kronos_qlib.training.resume import RunStore
from kronos_qlib.training.stage_settings import AlphaConfig, TrainingConfig

CONFIG = TrainingConfig(epochs=2, batch_size=16, learning_rate=5e-3, seed=1)
DAYS = pd.bdate_range("2024-01-01", periods=40)
NAMES = "abcdef"


def make_run(kind, dropout=0.0, names=NAMES):
    """A step, its segments and its settings; 138 windows in batches of 16, so that the last is odd.

    kind: "tokenizer", "predictor", or a loss of an alpha head, on a backbone unless it ends in *.
    """
    index = pd.MultiIndex.from_product([list(names), DAYS])
    bars = np.random.default_rng(0).uniform(1, 9, (len(index), len(BAR_COLUMNS)))
    table = BarTable.from_frame(
        pd.DataFrame(bars, index=index, columns=list(BAR_COLUMNS)), invalid="keep"
    )
    tokenizer, net = build_pair(1, dropout=dropout)
    if kind.rstrip("*") in ALPHA_LOSSES:
        windows = [
            windows_to_score(table, 6, first=first, last=last)
            for first, last in ((None, DAYS[29]), (DAYS[30], None))
        ]
        segments = [AlphaSegment.of(part, ReturnLabel()) for part in windows]
        if kind.endswith("*"):
            rng = np.random.default_rng(3)
            segments = [
                replace(part, contexts=rng.normal(size=(len(part), 16)).astype(np.float32))
                for part in segments
            ]
        torch.manual_seed(2)
        head = AlphaHead(16, len(SCALE_FEATURES), 4, 8, dropout)
        rate = {"learning_rate": 5e-3, "backbone_learning_rate": 5e-3}
        config = AlphaConfig(backbone="frozen" if kind.endswith("*") else "whole", epochs=1, **rate)
        net = AlphaNet(head, None if kind.endswith("*") else net)
        return AlphaStep(net, tokenizer, ALPHA_LOSSES[kind.rstrip("*")]), segments, config
    segments = [
        Segment(windows_to_train(table, 6, 2, None, DAYS[29])),
        Segment(windows_to_train(table, 6, 2, DAYS[30], None)),
    ]
    step = TokenizerStep(tokenizer) if kind == "tokenizer" else PredictorStep(net, tokenizer)
    return step, segments, CONFIG


def outcome(report, step):
    """Losses and gradient norms of every two steps, validations, and the weights in one row."""
    rows = [[row["loss"], row["gradient_norm"]] for row in report.steps]
    valid = [list(row.values()) for row in report.history]
    return rows, valid, weights_of(step.net)


def weights_of(net):
    return torch.cat([weight.detach().flatten() for weight in net.parameters()])


def assert_same(found, expected):
    """To float tolerance; Adam turns the sign of a gradient that is nearly nothing into a step."""
    rows, valid, weights = found
    assert rows == [pytest.approx(row, rel=2e-5, abs=1e-6) for row in expected[0]]
    assert valid == [pytest.approx(row, rel=2e-5, abs=1e-6) for row in expected[1]]
    assert (weights - expected[2]).abs().max() < 1e-4


# What is run alone and by two or eight processes. Each is a name, a step with its segments and
# settings, and is run by one start of the processes for all of them.


def plain_mean(recon_s1, recon, z, bsq_loss, counted):
    """A criterion of somebody who knows nothing of processes, and no mean over windows."""
    error = (recon - z)[..., 3].square()[counted]
    return {"loss": error.mean() + error.std() + bsq_loss, "spread": error.std()}


def cases():
    found = {kind: make_run(kind) for kind in ("tokenizer", "predictor", *ALPHA_LOSSES, "ic*")}
    step, segments, config = make_run("tokenizer")
    found["own criterion"] = replace(step, criterion=plain_mean), segments, config
    for kind in ("tokenizer", "predictor"):
        step, segments, config = make_run(kind)
        found[f"{kind} in parts"] = step, segments, replace(config, accumulation=3)
        # 137 and 1: the other processes have no window of the last batch.
        few = len(segments[0]) - 1
        found[f"{kind} odd"] = step_again(kind), segments, replace(config, batch_size=few, epochs=1)
    step, [learned, judged], config = make_run("ic")
    # A shift of all scores and a scale of a context change no correlation: rounding alone is left.
    for weight in (step.net.head.outer.bias, step.net.predictor.norm.weight):
        weight.requires_grad_(False)
    found["spans"] = step, [replace(learned, span=4), judged], config
    step, segments, config = make_run("predictor")
    made = [with_tokens(segment, step.tokenizer) for segment in segments]
    found["predictor with tokens"] = step, made, config
    for kind in ("tokenizer", "predictor"):
        step, segments, config = make_run(kind)
        config = replace(config, activation_checkpointing=True)
        found[f"{kind} computed again"] = step, segments, config
    step, segments, config = make_run("predictor")
    how = {"fsdp": process_count() > 1, "accumulation": 3, "activation_checkpointing": True}
    found["predictor shared out"] = step, segments, replace(config, **how)
    return found


def step_again(kind):
    return make_run(kind)[0]


def run_cases(rank, count, folder):
    """Every case, in a process of several or alone; what comes of it in a file of its rank."""
    if count > 1:
        meet(rank, count, folder)
    torch.set_num_threads(1)
    results = {}
    for name, (step, segments, config) in cases().items():
        results[name] = outcome(train(step, *segments, config, log_every=2), step)
    results["totals"] = totals()
    results["random"] = random_draws()
    results["not a number"] = not_a_number()
    results["resumed"] = resumed(Path(folder) / "states")
    if count > 1:
        results["shared out"] = shared_out(Path(folder) / "shared")
        results["full disk"] = full_disk(Path(folder) / "full")
    torch.save(results, Path(folder) / f"{rank}.pt")


def meet(rank, count, folder):
    """Join the other processes as launched ones would, by a file in place of a port."""
    values = (str(rank), str(rank), str(count), "127.0.0.1")
    os.environ.update(dict(zip(LAUNCHED_BY, values, strict=True)))
    store = dist.FileStore(str(Path(folder) / "meeting"), count)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count)


def start(work, arguments, count):
    """Processes that are forked of one that has imported most, where the system can; in processes
    that are new each imports torch, its compiler and the test's own needs for some seconds."""
    method = "spawn"
    if "forkserver" in mp.get_all_start_methods():
        method = "forkserver"
        mp.set_forkserver_preload(
            ["torch._dynamo", "kronos_qlib.training.parallel.processes", "hypothesis"]
        )
    mp.start_processes(work, arguments, count, start_method=method)


def totals():
    """A loss of gathered rows and the mean gradient of a weight that made them."""
    weight = torch.tensor([2.0, 3.0], requires_grad=True)
    x = torch.arange(14.0).view(7, 2)
    share = Share.here(7)
    rows = share.gather((x * weight)[share.rows])
    loss = rows.square().mean(dim=0).sqrt().prod()  # no mean over rows
    loss.backward()
    average_gradients([weight])
    return loss.item(), weight.grad.tolist(), rows.tolist()


def random_draws():
    """Weights after dropout, drawn s1 and shifted dates, twice; and a head's with dropout."""
    found = []
    for _ in range(2):
        step, segments, config = make_run("predictor", dropout=0.2)
        step = replace(step, teacher_forcing=False, shift_dates=True)
        torch.manual_seed(7)
        before = torch.get_rng_state()
        train(step, *segments, replace(config, epochs=1))
        assert torch.equal(torch.get_rng_state(), before), "the caller's generator is as it was"
        found.append(weights_of(step.net))
    step, segments, config = make_run("ic", dropout=0.3)
    last = train(step, *segments, config).last
    return (*found, torch.cat([weight.flatten() for weight in last.values()]))


def nan_in_the_last_process(*given):
    losses = next_token_losses(*given)
    share = Share.here(8)
    return {name: loss * (torch.nan if share.rank == share.ranks - 1 else 1)
            for name, loss in losses.items()}  # fmt: skip


def not_a_number():
    """What a run says whose loss is no number, by one window or in one process."""
    messages = []
    for kind in ("tokenizer", "predictor", "ic"):
        step, segments, config = make_run(kind)
        if kind == "tokenizer":
            segments[0].windows.table.values[5] = np.nan  # in the windows of the first name only
        elif kind == "predictor":
            step = replace(step, criterion=nan_in_the_last_process)
            step_of_one = PredictorStep(step.net, step.tokenizer)  # its validation is a number
            object.__setattr__(step, "validate", step_of_one.validate)
        else:
            segments[0].features[3] = np.nan
        with pytest.raises(TrainingError) as problem:
            train(step, *segments, config)
        messages.append(str(problem.value))
    return messages


class StopError(Exception):
    pass


def resumed(folder):
    """Weights of a run left alone, and of one that was stopped in its step 14 and begun again."""
    found = []
    for stop in (False, True):
        step, segments, config = make_run("predictor", dropout=0.2)
        step = replace(step, teacher_forcing=False)
        store = RunStore(folder / str(stop), every=4)
        if stop:
            ask, count = loop._Run.learn, []

            def learn(run, which, ask=ask, count=count):
                count.append(1)
                if len(count) == 14:
                    raise StopError
                ask(run, which)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(loop._Run, "learn", learn)
                with pytest.raises(StopError):
                    train(step, *segments, config, store=store)
            step = replace(make_run("predictor", dropout=0.2)[0], teacher_forcing=False)
        report = train(step, *segments, config, store=store)
        found.append((weights_of(step.net), [row["valid_loss"] for row in report.history]))
    return found


def go_on_shared(store, stop_at=None, **how):
    """A run of a shared-out predictor with states, stopped before a step, or to its end."""
    step, segments, config = make_run("predictor")
    ask, count = loop._Run.learn, []

    def learn(run, which):
        count.append(1)
        if len(count) == stop_at:
            raise StopError
        ask(run, which)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Run, "learn", learn)
        report = train(step, *segments, replace(config, fsdp=True, **how), store=store, log_every=2)
    return outcome(report, step), len(count)


def shared_out(folder):
    """Of a predictor that processes hold together: its parts, and what a stop and damage leave."""
    net = make_run("predictor")[0].net
    own = sum(
        weight.to_local().numel() for weight in sharded(net, torch.device("cpu")).parameters()
    )
    with shapes_alone():
        large = Kronos(**sizes_of("large", "predictor"))
    parts = [weight.to_local() for weight in laid_out(large, torch.device("cpu")).parameters()]
    result = {
        "own": own / sum(weight.numel() for weight in net.parameters()),
        "large": sum(part.numel() for part in parts),
        "on meta": all(part.is_meta for part in parts),
    }
    store = RunStore(folder, every=4)
    with pytest.raises(StopError):
        go_on_shared(store, stop_at=14)
    of_all(None)
    if process_rank() == 0:
        shutil.copytree(folder, folder.with_name("stopped"))
        result["left"] = sorted(path.name for path in folder.iterdir() if path.name != ".lock")
    of_all(None)
    result["again"] = go_on_shared(store)
    half = go_on_shared(None, precision="bfloat16")[0]
    result["half"] = [row["valid_loss"] for row in make_history(half)]
    if process_rank() == 0:
        newest = sorted(folder.glob("*.shards"))[-1]
        spoil = next(newest.glob("*.distcp"))
        spoil.write_bytes(spoil.read_bytes()[:-1])
    of_all(None)
    result["steps of a spoiled one"] = RunStore(folder).load()[0]
    return result


def full_disk(folder):
    """What is said where the first process finds no room: for the parts, and for the state."""

    def no_room(*given):
        raise OSError(errno.ENOSPC, "No space left on device")

    said = []
    for shared, call in ((True, "replace"), (False, "fsync")):
        step, segments, config = make_run("predictor")
        with pytest.MonkeyPatch.context() as patch, pytest.raises(TrainingError) as problem:
            if process_rank() == 0:
                patch.setattr(os, call, no_room)
            config = replace(config, fsdp=shared)
            train(step, *segments, config, store=RunStore(folder / call, every=4))
        said.append(str(problem.value))
    return said


def make_history(found):
    """The validations of an outcome by name."""
    names = ("epoch", "valid_loss", "valid_loss_s1", "valid_loss_s2")
    return [dict(zip(names, row, strict=False)) for row in found[1]]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    threads = torch.get_num_threads()
    run_cases(0, 1, str(folder))
    torch.set_num_threads(threads)
    return torch.load(folder / "0.pt", weights_only=False)


def by_processes(count, folder):
    start(run_cases, (count, str(folder)), count)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(count)]


@pytest.fixture(scope="module")
def folder_of_two(tmp_path_factory):
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def pair(folder_of_two):
    """What each of two processes comes to."""
    return by_processes(2, folder_of_two)


CASES = list(cases())


@pytest.mark.parametrize("name", CASES)
def test_two_processes_take_the_steps_of_one(alone, pair, name):
    assert_same(pair[0][name], alone[name])
    assert torch.equal(pair[0][name][2], pair[1][name][2]), "and do not part"


@pytest.mark.parametrize("kind", ["tokenizer", "predictor"])
def test_parts_of_a_batch_make_its_step(alone, kind):
    """Also where the loss is no mean over windows: a codebook's entropy is that of the batch."""
    assert_same(alone[f"{kind} in parts"], alone[kind])


@pytest.mark.parametrize("kind", ["tokenizer", "predictor"])
def test_blocks_that_are_computed_again_change_no_bit(alone, kind):
    found, expected = alone[f"{kind} computed again"], alone[kind]
    assert found[:2] == expected[:2] and torch.equal(found[2], expected[2])


def test_a_predictor_that_is_shared_out_is_held_in_parts(pair):
    for rank, found in enumerate(pair):
        assert found["shared out"]["own"] == pytest.approx(0.5, abs=0.1), rank
        assert found["shared out"]["on meta"], "the large one takes no memory until it has values"
    total = sum(found["shared out"]["large"] for found in pair)
    assert total == pytest.approx(499.2e6, rel=1e-3), "as the paper counts it"


def test_a_shared_out_run_that_was_stopped_goes_on(alone, pair):
    for found in pair:
        again, steps = found["shared out"]["again"]
        assert steps == 18 - 12
        assert_same(again, alone["predictor"])
    assert pair[0]["shared out"]["left"] == [
        "000000000009.shards", "000000000009.state", "000000000012.shards", "000000000012.state",
    ]  # fmt: skip
    assert torch.equal(pair[0]["shared out"]["again"][0][2], pair[1]["shared out"]["again"][0][2])


def test_a_damaged_part_sends_a_run_to_the_state_before_it(pair):
    for found in pair:
        assert found["shared out"]["steps of a spoiled one"] == 16


def test_a_full_disk_of_the_first_process_ends_all(pair):
    """The others waited for it until their timeout, of half an hour."""
    said = pair[0]["full disk"]
    assert said == pair[1]["full disk"]
    assert all("No space left on device" in one and "Make room" in one for one in said)


def test_a_shared_out_run_in_bfloat16_learns_alike(alone, pair):
    full = [row["valid_loss"] for row in make_history(alone["predictor"])]
    for found in pair:
        assert found["shared out"]["half"] == pytest.approx(full, rel=2e-2)


def test_tokens_made_by_processes_are_those_of_one(alone, pair):
    assert_same(alone["predictor with tokens"], alone["predictor"])
    assert_same(pair[1]["predictor with tokens"], alone["predictor"])


def test_a_sum_over_processes_goes_backwards_too(alone, pair):
    loss, gradient, rows = alone["totals"]
    assert rows == pair[0]["totals"][2] == pair[1]["totals"][2]
    for found in pair:
        assert found["totals"][0] == pytest.approx(loss, rel=1e-6)
        assert found["totals"][1] == pytest.approx(gradient, rel=1e-6)


def test_random_numbers_are_the_same_each_time_and_each_process_its_own(alone, pair):
    for found in (alone, *pair):
        first, again, _ = found["random"]
        assert torch.equal(first, again)
    for place in (0, 2):
        assert torch.equal(pair[0]["random"][place], pair[1]["random"][place])
        assert not torch.equal(alone["random"][place], pair[0]["random"][place])


def test_a_loss_that_is_no_number_stops_all_processes_and_names_the_bars(alone, pair):
    """Only one process has the window."""
    for found in (alone, *pair):
        assert found["not a number"] == alone["not a number"]
    for message in alone["not a number"]:
        assert "the loss became nan on a batch of" in message and " at 2024-" in message


def test_a_run_that_was_stopped_goes_on_to_the_same_bits_in_processes_too(alone, pair):
    for found in (alone, *pair):
        (weights, losses), (weights_again, losses_again) = found["resumed"]
        assert torch.equal(weights, weights_again) and losses == losses_again
    assert torch.equal(pair[0]["resumed"][1][0], pair[1]["resumed"][1][0])


# Fewer windows than processes.


SMALL = ("ic", "rank", "tokenizer", "predictor")


def run_small(rank, count, folder):
    """Days of three names and batches of two windows, by more processes than that."""
    if count > 1:
        meet(rank, count, folder)
    torch.set_num_threads(1)
    for kind in SMALL:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(alpha, "LEAST_WINDOWS", 3)
            step, segments, config = make_run(kind, names="abc")
        if kind in ("tokenizer", "predictor"):
            config = replace(config, batch_size=2, windows_per_epoch=5, epochs=1)
            segments[1] = segments[1].evenly(3)
        else:
            segments = [replace(part, days=part.days[:3]) for part in segments]
        found = outcome(train(step, *segments, config, log_every=2), step)
        torch.save(found, Path(folder) / f"{kind}{rank}.pt")
    if count > 1:
        found = go_on_shared(RunStore(Path(folder) / "stopped", every=100))
        torch.save(found, Path(folder) / f"shared{rank}.pt")


def test_more_processes_than_windows_wait_for_nobody(tmp_path, alone, pair, folder_of_two):
    """Processes without a window had no context to learn by; the others once waited for ever.

    They also go on with what two processes shared out.
    """
    for count in (1, 4):
        (tmp_path / str(count)).mkdir()
    shutil.copytree(folder_of_two / "stopped", tmp_path / "4" / "stopped")
    run_small(0, 1, tmp_path / "1")
    start(run_small, (4, tmp_path / "4"), 4)
    for kind in SMALL:
        one, first, last = (
            torch.load(tmp_path / name, weights_only=False)
            for name in (f"1/{kind}0.pt", f"4/{kind}0.pt", f"4/{kind}3.pt")
        )
        assert_same(first, one)
        assert torch.equal(first[2], last[2])
    for rank in range(4):
        found, steps = torch.load(tmp_path / f"4/shared{rank}.pt", weights_only=False)
        assert steps == 18 - 12
        assert_same(found, alone["predictor"])


@given(total=st.integers(1, 40), ranks=st.integers(1, 9))
def test_each_row_is_one_processs_and_none_is_idle(total, ranks):
    shares = [Share(total, rank, ranks) for rank in range(ranks)]
    rows = [list(range(total))[share.rows] for share in shares]
    assert all(rows)
    own = [mine for share, mine in zip(shares, rows, strict=True) if not share.is_empty]
    assert sorted(place for mine in own for place in mine) == list(range(total))


# Starting and joining.


def test_one_process_shares_nothing_out():
    step, segments, config = make_run("predictor")
    with pytest.raises(ConfigError, match="among processes, and there is one: start the run by"):
        train(step, *segments, replace(config, fsdp=True))


def test_blocks_that_are_computed_again_keep_less():
    """And by the same random numbers: dropout's."""
    kept, gradients = [], []
    for is_asked in (False, True):
        step, segments, _ = make_run("predictor", dropout=0.2)
        sizes = []

        def count(value, sizes=sizes):
            sizes.append(value.numel())
            return value

        torch.manual_seed(1)
        step.net.train()
        with hardware.recomputing(step.net, is_asked):
            with torch.autograd.graph.saved_tensors_hooks(count, lambda value: value):
                loss = step.losses(segments[0].batch(np.arange(40)))["loss"]
            loss.backward()
        kept.append(sum(sizes))
        gradients.append(torch.cat([w.grad.flatten() for w in step.net.parameters()
                                    if w.grad is not None]))  # fmt: skip
        assert not any(getattr(part, "recompute", False) for part in step.net.modules())
    assert kept[1] < 0.7 * kept[0]
    assert torch.equal(*gradients)


@pytest.mark.parametrize("missing", ["RANK", "MASTER_ADDR", "LOCAL_RANK"])
def test_the_size_of_an_allocation_is_no_launch(monkeypatch, missing):
    """SLURM scripts and mpirun set a WORLD_SIZE; alone it once made a run wait for others."""
    for name in {*LAUNCHED_BY} - {missing}:
        monkeypatch.setenv(name, "4")
    assert not is_launched() and process_rank() == 0
    assert join_processes(torch.device("cpu")) == torch.device("cpu")
    assert not dist.is_initialized()
    monkeypatch.setenv(missing, "1")
    assert is_launched()


def test_training_in_one_process_needs_no_accelerate(tmp_path):
    """It was imported for one process too."""
    code = (
        "import sys; sys.modules['accelerate'] = None; import kronos_qlib.training.loop;"
        "import kronos_qlib.training.alpha, kronos_qlib.training.parallel.processes; print('ok')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "ok", done.stderr


class KilledStep(PredictorStep):
    """Process 1 is killed in its third step, as by a machine without memory."""

    def losses(self, batch, rng=None):
        self.net.count = getattr(self.net, "count", 0) + self.net.training
        if process_rank() == 1 and self.net.count == 3:
            os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
        return super().losses(batch, rng)


def test_processes_begun_from_within_take_the_steps_of_one(alone):
    step, segments, config = make_run("predictor")
    reported = []
    report = train_in_processes(
        step,
        *segments,
        config,
        2,
        log_every=2,
        on_epoch=lambda number, row: reported.append(number),
    )
    assert reported == list(range(config.epochs + 1))
    assert_same(outcome(report, step), alone["predictor"])
    assert set(report.last) == set(step.net.state_dict())
    assert not mp.active_children()


def test_a_process_that_is_killed_ends_the_others_and_is_named():
    """What the other one met was a closed connection, and that was reported instead of the kill."""
    step, segments, config = make_run("predictor")
    killed = r"process 1 of 2 \(pid \d+\) was killed by SIGKILL .*memory ran out"
    with pytest.raises(TrainingError, match=killed if os.name == "posix" else "process 1 of 2"):
        train_in_processes(KilledStep(step.net, step.tokenizer), *segments, config, 2)
    assert not mp.active_children()


def test_an_error_of_a_process_is_raised_here():
    step, segments, config = make_run("predictor")
    step.net.head.proj_s1.weight.data[0, 0] = torch.nan
    with pytest.raises(TrainingError, match=r"the loss became nan on a batch .* a at 2024"):
        train_in_processes(step, *segments, config, 2)


class Ended:
    def __init__(self, exitcode):
        self.exitcode, self.pid = exitcode, 77


def test_errors_of_ours_come_first_then_kills_then_what_followed():
    codes = [Ended(code) for code in (1, -9, 1)]
    followed = {0: processes._error("RuntimeError", "Connection closed by peer")}
    with pytest.raises(TrainingError, match=r"process 1 of 3 \(pid 77\) was killed by SIG"):
        processes._raise_first(followed, codes)
    ours = followed | {2: processes._error("ConfigError", "no such thing")}
    with pytest.raises(ConfigError, match=r"^no such thing$"):
        processes._raise_first(ours, codes)
    with pytest.raises(RuntimeError, match=r"RuntimeError in a training process:\nConnection"):
        processes._raise_first(followed, [Ended(1), Ended(None)])
    processes._raise_first({}, [Ended(0), Ended(0)])


def test_processes_that_cannot_be_are_refused():
    step, segments, config = make_run("predictor")
    with pytest.raises(ConfigError, match="is for CPU and CUDA"):
        train_in_processes(step, *segments, config, 2, device="meta")
    with pytest.raises(ConfigError, match="precision 'float16' does not work on cpu"):
        train(step, *segments, replace(config, precision="float16"))


def test_the_end_of_a_process_in_words():
    assert how_it_ended(3).startswith("ended with exit code 3")
    if os.name == "posix":
        assert how_it_ended(-15) == "was killed by SIGTERM"
        assert "memory ran out" in how_it_ended(-9)
    assert "signal 250" in how_it_ended(-250)


# What all this must not change.


def test_freed_memory_is_given_back_after_training(monkeypatch):
    asked = []

    class Libc:
        """Of before 2.35: it takes no threshold above its own highest."""

        def mallopt(self, what, value):
            asked.append((what, value))
            return int(what != -3 or value <= 2**25)

        def malloc_trim(self, kept):
            asked.append("trim")

    monkeypatch.setattr(hardware.sys, "platform", "linux")
    monkeypatch.setattr(hardware.ctypes, "CDLL", lambda name: Libc())
    with hardware.freed_memory_kept():
        assert asked == [(-3, 2**30), (-3, 2**25), (-1, 2**31 - 1)]
        asked.clear()
    assert asked == [(-3, 2**25), (-1, 2**26), "trim"]


def test_an_exploding_loss_stops_the_run():
    step, segments, config = make_run("predictor")
    config = replace(config, learning_rate=1e4, warmup_share=0.0, clip_norm=1e9, epochs=30)
    with pytest.raises(TrainingError, match=r"(loss|gradient norm) became .* lower the learning"):
        train(step, *segments, config)


def test_a_weight_that_no_loss_reaches_stays_as_it_is():
    """Its gradient would be zero and not absent, and weight decay would move it."""
    step, segments, config = make_run("predictor")

    def only_s1(*given):
        return {"loss": next_token_losses(*given)["loss_s1"]}

    before = step.net.head.proj_s2.weight.detach().clone()
    train(replace(step, criterion=only_s1), *segments, replace(config, weight_decay=0.5))
    assert torch.equal(step.net.head.proj_s2.weight, before)


def test_parts_have_the_same_dropout_when_their_gradient_is_asked_for():
    """A part is worked out twice: by other random numbers its gradient would be another loss's."""
    step, segments, _ = make_run("tokenizer", dropout=0.3)
    batch = segments[0].batch(np.arange(12))
    step.net.train()
    gradients = []
    for checkpoint in (losses.checkpoint, lambda work, *inputs, use_reentrant: work(*inputs)):
        step.net.zero_grad()
        torch.manual_seed(3)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(losses, "checkpoint", checkpoint)
            step.losses(batch, pieces=3)["loss"].backward()
        gradients.append([weight.grad for weight in step.net.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_every_window_is_taken_once_per_epoch(monkeypatch):
    step, segments, config = make_run("predictor")
    seen = []
    gather = Segment.batch

    def watched(self, which, device="cpu", out=None, share=None):
        if self is segments[0]:
            seen.extend(which.tolist())
        return gather(self, which, device, out, share)

    monkeypatch.setattr(Segment, "batch", watched)
    train(step, *segments, replace(config, epochs=1))
    assert sorted(seen) == list(range(len(segments[0])))


def test_bfloat16_learns_about_as_float32_does(alone):
    step, segments, config = make_run("predictor")
    report = train(step, *segments, replace(config, precision="bfloat16"))
    assert all(weight.dtype == torch.float32 for weight in step.net.parameters())
    valid = [list(row.values())[1] for row in report.history]
    exact = [row[1] for row in alone["predictor"][1]]
    assert valid != exact
    assert valid == pytest.approx(exact, rel=0.02)


def test_bfloat16_steps_have_the_tokens_that_scoring_reads():
    """The border of a code does not move with the number type of a step."""
    step, segments, _ = make_run("predictor")
    batch, seen = segments[0].batch(np.arange(60)), []
    step = replace(step, criterion=lambda *given: seen.append(given[2:4]) or {"loss": given[0]})
    with torch.autocast("cpu", torch.bfloat16):
        step.losses(batch)
        rounded = step.tokenizer.encode(batch.z)
    exact = step.tokenizer.encode(batch.z)
    assert not torch.equal(rounded[0], exact[0]), "or the test shows nothing"
    for found, expected in zip(seen[0], exact, strict=True):
        assert torch.equal(found, expected[:, 1:])


@pytest.mark.parametrize("kind", ["tokenizer", "ic"])
def test_bfloat16_losses_are_summed_in_float32(kind):
    step, segments, _ = make_run(kind)
    which = np.arange(60) if kind == "tokenizer" else np.arange(segments[0].days[0].stop)
    batch = segments[0].batch(which)
    with torch.autocast("cpu", torch.bfloat16):
        found = step.losses(batch)
    assert {loss.dtype for loss in found.values()} == {torch.float32}
    exact = step.losses(batch)
    for name, loss in found.items():
        assert loss.item() == pytest.approx(exact[name].item(), rel=0.02, abs=1e-3), name
