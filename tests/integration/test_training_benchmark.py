"""The benchmark of training: what it times as published is the same work as ours."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kronos_qlib.data.windows.bar_table import BarTable
from kronos_qlib.data.windows.find import windows_to_train
from kronos_qlib.model.layers import Attention
from kronos_qlib.training.batches import Segment
from kronos_qlib.training.losses import PredictorStep, TokenizerStep

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
BATCH = 2


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads that wait for each other are slow on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def benchmark():
    """The script as a module; it imports the one beside it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module("training")


@pytest.fixture(scope="module")
def windows(benchmark):
    """The same windows in both ways: a batch of ours, and of the published data set."""
    bars = benchmark.walks()
    ours = Segment(windows_to_train(BarTable.from_frame(bars), 90, 10))
    plain = benchmark.PlainWindows(bars, 90, 10)
    assert len(ours) == len(plain)
    which = np.arange(3, len(ours), len(ours) // BATCH)[:BATCH]
    z, stamps = (torch.stack(half) for half in zip(*(plain[int(n)] for n in which), strict=True))
    return SimpleNamespace(batch=ours.batch(which), z=z, stamps=stamps)


def losses_and_gradients(benchmark, stage, batch):
    """Of ours, and of the plain network on the same windows."""
    found = []
    for is_plain in (False, True):
        predictor, tokenizer = pair = benchmark.Work(stage, "nano", 1).pair()
        net = predictor if stage == "predictor" else tokenizer
        for part in net.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
            if isinstance(part, Attention):
                part.attn_dropout_p = 0.0
        net.train()
        torch.manual_seed(1)  # the same draws of s1
        if is_plain:
            with benchmark.plainly():
                loss = benchmark.PLAIN_LOSSES[stage](pair, batch.z, batch.stamps.float())
                loss.backward()
        else:
            step = TokenizerStep(net)
            if stage == "predictor":
                step = PredictorStep(net, tokenizer, teacher_forcing=False)
            loss = step.losses(batch)["loss"]
            loss.backward()
        found.append((loss.item(), {name: p.grad for name, p in net.named_parameters()}))
    return found


def test_the_windows_are_the_same(windows):
    """In float32, as published, their z is off by its rounding."""
    assert torch.equal(windows.batch.stamps.float(), windows.stamps)
    torch.testing.assert_close(windows.batch.z, windows.z, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stage", ["tokenizer", "predictor"])
def test_the_plain_network_has_our_loss_and_gradients(benchmark, windows, stage):
    (loss, grads), (plain_loss, plain_grads) = losses_and_gradients(benchmark, stage, windows.batch)
    assert plain_loss == pytest.approx(loss, rel=1e-5)
    assert grads.keys() == plain_grads.keys()
    for name, grad in grads.items():
        largest = float(grad.abs().max())
        torch.testing.assert_close(
            plain_grads[name], grad, rtol=1e-4, atol=1e-4 * largest + 1e-8, msg=name
        )


@pytest.mark.parametrize("stage", ["tokenizer", "predictor"])
def test_the_arithmetic_is_what_torch_counts(benchmark, windows, stage):
    """On a CPU torch counts no attention, which is at most a seventh of it here."""
    pair = benchmark.Work(stage, "nano", 1).pair()
    for net in pair:
        net.train()
    with benchmark.plainly():
        loss = benchmark.PLAIN_LOSSES[stage](pair, windows.z, windows.stamps)
        forward = FlopCounterMode(display=False)
        with forward:
            benchmark.PLAIN_LOSSES[stage](pair, windows.z, windows.stamps)
        backward = FlopCounterMode(display=False)
        with backward:
            loss.backward()
    # The backward pass has no tokens to make: it is two thirds of a step's arithmetic.
    counted = backward.get_total_flops() / BATCH * 3 / 2
    assert 0.85 < counted / benchmark.flops_per_window(benchmark.Work(stage, "nano", 1)) < 1.02
    assert forward.get_total_flops() > backward.get_total_flops() / 2 * 0.98


def test_the_benchmark_of_training_at_toy_size(benchmark, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(benchmark, "machine_gflops", lambda dtype, repeats: 100.0)
    table = tmp_path / "training.json"
    sizes = ["--batch", "8", "--lookback", "16", "--horizon", "4", "--steps", "2", "--rounds", "1"]
    cases = ["--cases", "predictor:nano:bfloat16", "--workers", "1", "--json", str(table)]
    assert benchmark.main([*sizes, *cases]) == 0
    [row] = json.loads(table.read_text(encoding="utf-8"))["rows"]
    assert (row["stage"], row["size"], row["dtype"]) == ("predictor", "nano", "bfloat16")
    assert row["ratio"] == pytest.approx(row["ours"] / row["published"])
    assert row["share"] == pytest.approx(row["ours"] * row["flops_per_window"] / 1e11)
    assert 1 / row["all_in"] == pytest.approx(1 / row["ours"] + 1 / row["tokens"] / 3)
    assert "| predictor | nano | bfloat16 | " in capsys.readouterr().out
