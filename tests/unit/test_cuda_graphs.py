"""Drawing recorded and replayed: on a CPU, by stand-ins for what only a GPU has."""

from __future__ import annotations

import copy
import gc
import logging
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kronos_qlib.errors import CheckpointError
from kronos_qlib.inference import kv_cache, sampling
from kronos_qlib.inference.generate import generate
from kronos_qlib.inference.graphs import cuda_graphs, recorded_drawing
from kronos_qlib.inference.graphs.cuda_graphs import CudaRecorder, recorder_for
from kronos_qlib.inference.graphs.recorded_drawing import (
    RecordedDrawing,
    Shape,
    body_of,
    bucket,
)
from kronos_qlib.inference.packed import PackedKronos
from kronos_qlib.inference.predictor import KronosPredictor
from kronos_qlib.inference.products import packed_product
from kronos_qlib.inference.sampling import SamplingConfig
from kronos_qlib.model.layers import TimeEmbedding
from kronos_qlib.schema import BAR_COLUMNS

LOOKBACK, HORIZON, PATHS = 6, 3, 2
HOW = SamplingConfig(paths=PATHS, temperature=1.0, top_p=0.9)


@pytest.fixture
def net(make_pair, monkeypatch):
    """Without oneDNN's products, which no GPU has."""
    monkeypatch.setattr(packed_product, "can_pack", lambda dtype: False)
    return PackedKronos(make_pair(n_layers=1)[1])


def batch(seed, windows=3, lookback=LOOKBACK, horizon=HORIZON, paths=PATHS):
    """s1, s2, stamps and uniforms."""
    rng = np.random.default_rng(seed)
    arrays = (
        rng.integers(0, 16, (windows, lookback)),
        rng.integers(0, 8, (windows, lookback)),
        rng.integers(0, (60, 24, 7, 32, 13), (windows, lookback + horizon, 5)),
        rng.random((windows, paths, horizon, 2), dtype=np.float32),
    )
    return tuple(map(torch.from_numpy, arrays))


def drawn(draw, inputs, how=HOW, max_context=32, each_step=None):
    s1, s2, stamps, uniforms = inputs
    horizon = uniforms.shape[2]
    return draw((s1, s2), stamps, horizon, how, uniforms, max_context, each_step)


def drawn_plainly(net, inputs, how=HOW, max_context=32):
    return drawn(lambda *asked: generate(net, *asked), inputs, how, max_context)


def same(one, other):
    return all(torch.equal(*pair) for pair in zip(one, other, strict=True))


class WithoutNumbers(TorchFunctionMode):
    """While it is active `copy.deepcopy` copies shapes of tensors alone: to the meta device."""

    def __init__(self):
        super().__init__()
        self.originals = {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not torch.Tensor.__deepcopy__:
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        if id(tensor) not in memo:
            shape = torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta"
            )
            memo[id(tensor)], self.originals[id(shape)] = shape, tensor
        return memo[id(tensor)]


def traced(net, shape, inputs):
    """The recorded operations, found without any number to look at, with the net's weights.

    A tensor on the meta device has no values, so that a look at one is an error, and is on another
    device than the CPU, so that what is recorded are the branches that a GPU takes.
    """
    without = WithoutNumbers()
    with without:
        own = copy.deepcopy(net)
    body = body_of(own, shape)
    graph = make_fx(body)(*(torch.empty_like(each, device="meta") for each in inputs))
    read = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
    for name in read:
        kept = without.originals.get(id(getattr(graph, name)))
        assert kept is not None, f"{name} is no part of the network: made while it was recorded"
        setattr(graph, name, kept)
    for node in graph.graph.nodes:
        if "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": torch.device("cpu")}
    graph.recompile()
    return torch.inference_mode()(graph)


@pytest.mark.parametrize(
    ("how", "max_context"),
    [
        (SamplingConfig(temperature=1.0, top_p=0.9), 32),
        (SamplingConfig(temperature=0.7, top_p=0.8, top_k=5, rotate_s2=True), 32),
        (SamplingConfig(temperature=0.0), 32),
        (SamplingConfig(temperature=1.0, top_p=1.0), 7),  # slides
        (SamplingConfig(temperature=1.0), 4),  # is cut
    ],
)
def test_nothing_of_a_batch_is_recorded_but_its_shape(net, how, max_context):
    """A number that Python looks at ends a recording on a GPU, or stays in it for all batches."""
    shape = Shape(3, LOOKBACK, HORIZON, PATHS, how, max_context)
    drawn_plainly(net, batch(0), how, max_context)  # makes tables, as a first batch does
    recorded = traced(net, shape, batch(0))
    seen = []
    for seed in range(4):
        s1, s2, *notes = recorded(*batch(seed))
        assert same((s1, s2), drawn_plainly(net, batch(seed), how, max_context))
        assert not any(note.any() for note in notes)
        seen.append(s1)
    assert not torch.equal(seen[0], seen[1])


def test_many_bars_of_paths_are_recorded_too(net, monkeypatch):
    """From so many steps on, keys lie in another layout, whose memory grows."""
    monkeypatch.setattr(kv_cache, "FEW_STEPS", 2)
    sizes = {"horizon": 5, "windows": 2}
    shape = Shape(2, LOOKBACK, 5, PATHS, HOW, 32)
    drawn_plainly(net, batch(0, **sizes))
    recorded = traced(net, shape, batch(0, **sizes))
    for seed in range(2):
        found = recorded(*batch(seed, **sizes))[:2]
        assert same(found, drawn_plainly(net, batch(seed, **sizes)))


def peeking(logits, how, uniforms):
    return sampling.sample_ids(logits, how, uniforms * float(uniforms.max() < 2))


def remembering(logits, how, uniforms):
    return sampling.sample_ids(logits, how, uniforms * torch.tensor(1.0))


@pytest.mark.parametrize(
    ("at_fault", "message"),
    [(peeking, "get value out of a tracing tensor"), (remembering, "is no part of the network")],
)
def test_a_look_at_a_number_would_be_noticed(net, monkeypatch, at_fault, message):
    monkeypatch.setattr("kronos_qlib.inference.generate.sample_ids", at_fault)
    shape = Shape(3, LOOKBACK, HORIZON, PATHS, HOW, 32)
    drawn_plainly(net, batch(0))
    with pytest.raises((RuntimeError, AssertionError), match=message):
        traced(net, shape, batch(0))


class Recording:
    """Stands in for a graph: its results lie in the same memory at every call, and not for long."""

    def __init__(self, recorder, body, inputs):
        self.recorder, self.body = recorder, body
        self.inputs = [each.clone() for each in inputs]
        self.results = body(*self.inputs)
        self.calls = 0

    def __call__(self, *inputs):
        assert self.recorder.lock.locked()
        self.calls += 1
        for each in self.recorder.made:
            for kept in each.results:
                kept.fill_(-1)  # as one pool of memory makes of it
        for kept, new in zip(self.inputs, inputs, strict=True):
            kept.copy_(new)  # refuses another shape
        for kept, found in zip(self.results, self.body(*self.inputs), strict=True):
            kept.copy_(found)
        return self.results


class Recorder:
    """Stands in for `CudaRecorder`."""

    def __init__(self):
        self.lock, self.is_off, self.made = threading.Lock(), False, []

    def __call__(self, body, inputs):
        assert self.lock.locked()
        self.made.append(Recording(self, body, inputs))
        return body(*inputs), self.made[-1]


@pytest.fixture
def recorder():
    return Recorder()


def test_the_second_batch_of_a_shape_is_recorded_and_the_next_are_replayed(net, recorder):
    draw = RecordedDrawing(net, recorder)
    found = []
    for seed, calls in enumerate([[], [1], [2], [3]]):
        found.append(drawn(draw, batch(seed)))
        assert [made.calls for made in recorder.made] == calls
    for seed, tokens in enumerate(found):  # the first ones too: no later call overwrote them
        assert same(tokens, drawn_plainly(net, batch(seed)))


def test_batches_of_one_bucket_share_a_recording(net, recorder):
    """The last batch of a call is smaller than the others."""
    draw = RecordedDrawing(net, recorder)
    for seed, windows in enumerate([20, 19, 20, 19, 19]):
        inputs = batch(seed, windows)
        found = drawn(draw, inputs)
        assert found[0].shape == (windows * PATHS, HORIZON)
        assert same(found, drawn_plainly(net, inputs))
    [made] = recorder.made
    assert made.calls == 4 and made.inputs[0].shape[0] == 20


@pytest.mark.parametrize(
    "other",
    [
        {"inputs": {"windows": 5}},
        {"inputs": {"lookback": 7}},
        {"inputs": {"horizon": 2}},
        {"inputs": {"paths": 3}},
        {"how": SamplingConfig(paths=PATHS, temperature=0.5)},
        {"max_context": 7},
    ],
)
def test_what_differs_is_recorded_apart(net, recorder, other):
    draw = RecordedDrawing(net, recorder)
    rest = {name: value for name, value in other.items() if name != "inputs"}
    for seed in range(3):
        one, another = batch(seed), batch(seed, **other.get("inputs", {}))
        assert same(drawn(draw, one), drawn_plainly(net, one))
        assert same(drawn(draw, another, **rest), drawn_plainly(net, another, **rest))
    assert [made.calls for made in recorder.made] == [2, 2]


@given(windows=st.integers(1, 20_000))
def test_a_bucket_is_an_eighth_larger_at_most(windows):
    size = bucket(windows)
    assert windows <= size <= windows * 9 / 8
    assert bucket(size) == size


def test_buckets_are_few():
    assert [bucket(windows) for windows in (1, 2, 15, 16, 17, 31, 33)] == [1, 2, 15, 16, 18, 32, 36]
    assert len({bucket(windows) for windows in range(1025, 2049)}) == 8


def test_few_recordings_are_kept_those_used_last(net, recorder, monkeypatch):
    monkeypatch.setattr(recorded_drawing, "MOST_REPLAYS", 2)
    draw = RecordedDrawing(net, recorder)
    for windows in (1, 1, 2, 2, 1, 3, 3):
        drawn(draw, batch(0, windows))
    assert [shape.windows for shape in draw.recorded] == [1, 3]
    drawn(draw, batch(0, 2))
    assert len(recorder.made) == 3, "what was given up must come twice again"
    assert same(drawn(draw, batch(1, 2)), drawn_plainly(net, batch(1, 2)))
    assert [shape.windows for shape in draw.recorded] == [3, 2]


def test_shapes_that_came_once_are_forgotten_at_last(net, recorder, monkeypatch):
    draw = RecordedDrawing(net, recorder)
    first = batch(0, 1)
    drawn(draw, first)
    for lookback in range(10, 10 + recorded_drawing.MOST_SHAPES):
        drawn(draw, batch(0, 1, lookback, horizon=1), max_context=2)
    drawn(draw, first)
    assert not recorder.made


def test_logits_that_are_not_finite_are_refused_after_the_batch(net, recorder):
    """Drawn from, they would index beyond the vocabulary, which ends a GPU's work for good."""
    draw = RecordedDrawing(net, recorder)
    for seed in range(3):
        drawn(draw, batch(seed))
    weights = net.s1_head.weight
    for value, name in ((torch.nan, "s1"), (torch.inf, "s1"), (0.0, None)):
        weights[3] = value
        if name is None:
            assert same(drawn(draw, batch(4)), drawn_plainly(net, batch(4)))
            continue
        with pytest.raises(CheckpointError, match=f"{name} logits of the predictor are not finite"):
            drawn(draw, batch(4))
        assert all((ids >= 0).all() and (ids < 16).all() for ids in recorder.made[0].results[:2])
    net.s2_head.weight[0] = -torch.inf
    with pytest.raises(CheckpointError, match="s2 logits of the predictor are not finite"):
        drawn(draw, batch(5))


def test_the_logits_of_one_step_alone_are_noticed(net, monkeypatch):
    """One bad row of one step, among those whose sum stays finite."""
    check = recorded_drawing.LateCheck()
    s1, s2 = recorded_drawing.S1_LOGITS, recorded_drawing.S2_LOGITS
    logits = torch.full((3, 4), 3e38)  # finite, though not their sum
    for step in range(3):
        bad = logits.clone()
        if step == 1:
            bad[2, 3] = torch.inf
        assert torch.equal(check(bad, s1)[:2], bad[:2])
        assert torch.isfinite(check(bad, s2)).all()
    assert (
        check.notes[0].isnan().tolist() == check.notes[1].isnan().tolist() == [False, True, False]
    )


def test_bars_are_counted_after_the_batch(net, recorder):
    draw = RecordedDrawing(net, recorder)
    counted = []
    for seed in range(3):
        drawn(draw, batch(seed), each_step=lambda: counted.append(len(recorder.made)))
        assert len(counted) == (seed + 1) * HORIZON
    assert counted[HORIZON] == 1


@pytest.mark.parametrize("done", [1, 2])  # while it is recorded, while it is replayed
def test_who_is_told_of_bars_may_end_the_work(net, recorder, done):
    draw = RecordedDrawing(net, recorder)
    for seed in range(done):
        drawn(draw, batch(seed))

    def enough():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drawn(draw, batch(7), each_step=enough)
    assert same(drawn(draw, batch(8)), drawn_plainly(net, batch(8)))


def test_a_recording_that_fails_is_told_once_and_all_is_drawn_without(net, caplog):
    asked = []

    class Full(Recorder):
        def __call__(self, body, inputs):
            asked.append(len(inputs))
            raise torch.OutOfMemoryError("no memory is left")

    draw = RecordedDrawing(net, Full())
    with caplog.at_level(logging.WARNING):
        for seed in range(4):
            counted = []
            found = drawn(draw, batch(seed), each_step=partial(counted.append, 1))
            assert same(found, drawn_plainly(net, batch(seed)))
            assert len(counted) == HORIZON
    assert len(asked) == 1
    [record_of_log] = caplog.records
    assert "from now on: no memory is left" in record_of_log.getMessage()


def test_a_recording_that_draws_otherwise_is_not_used(net, caplog):
    """As one would that reads memory that is no longer what it was."""

    class Astray(Recorder):
        def __call__(self, body, inputs):
            computed, replay = super().__call__(body, inputs)

            def astray(*inputs):
                s1, *rest = replay(*inputs)
                return 1 - s1.clamp(0, 1), *rest

            return computed, astray

    draw = RecordedDrawing(net, Astray())
    with caplog.at_level(logging.WARNING):
        for seed in range(4):
            assert same(drawn(draw, batch(seed)), drawn_plainly(net, batch(seed)))
    assert [each.getMessage() for each in caplog.records] == [
        "paths are drawn without recordings (CUDA graphs) from now on: a recording gave other "
        "tokens than were drawn without it"
    ]


class MemoryRead(TorchDispatchMode):
    """Notes which memory is read that was there before."""

    def __init__(self):
        super().__init__()
        self.made, self.read = set(), {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for storage in storages((args, kwargs)):
            if storage._cdata not in self.made:
                self.read[storage._cdata] = StorageWeakRef(storage)
        found = func(*args, **(kwargs or {}))
        self.made |= {each._cdata for each in storages(found)} - self.read.keys()
        return found


def storages(tree):
    return [each.untyped_storage() for each in tree_leaves(tree) if isinstance(each, torch.Tensor)]


def sorted_by_torch(weights):
    return weights.sort(dim=-1).values


@pytest.mark.parametrize(
    ("lookback", "horizon", "max_context"),
    [(6, 3, 64), (6, 1, 64), (6, 3, 7), (6, 3, 6), (2, 3, 1)],
)
def test_all_that_a_recording_reads_lives_as_long(
    make_pair, monkeypatch, lookback, horizon, max_context
):
    """A longer batch replaced the rotary table that a graph goes on to read the memory of."""
    monkeypatch.setattr(packed_product, "can_pack", lambda dtype: False)
    monkeypatch.setattr(sampling, "_ascending", sorted_by_torch)
    net = PackedKronos(make_pair(n_layers=1)[1])
    noted = MemoryRead()

    class Noting(Recorder):
        def __call__(self, body, inputs):
            computed, replay = super().__call__(body, inputs)
            with noted:
                body(*replay.inputs)
            return computed, replay

    draw = RecordedDrawing(net, Noting())
    how = SamplingConfig(paths=PATHS, rotate_s2=True)
    for seed in range(2):
        drawn(draw, batch(seed, 3, lookback, horizon), how, max_context)
    tables = [net.blocks[0].turn.table, net.s2_turn.table]
    drawn_plainly(net, batch(0, lookback=20), how, max_context=64)
    assert net.blocks[0].turn.table is not tables[0] and net.s2_turn.table is not tables[1]
    net.blocks = []  # as if the predictor had packed other weights since
    del net, tables
    gc.collect()
    assert len(noted.read) > 10
    assert not any(ref.expired() for ref in noted.read.values())


@pytest.fixture
def forecaster(tiny_pair, recorder):
    tokenizer, model = tiny_pair
    forecaster = KronosPredictor(model, tokenizer, device="cpu", max_context=32)
    forecaster._recorder = recorder  # as on a GPU
    return forecaster


def series(seed, count=20, length=10):
    bars = 50 + np.random.default_rng(seed).normal(size=(count, length, 6)).cumsum(axis=1)
    stamps = np.random.default_rng(seed).integers(0, (60, 24, 7, 32, 13), (count, length + 4, 5))
    return bars, stamps[:, :length], stamps[:, length:], 4


def test_a_predictor_draws_the_same_by_recordings(forecaster, recorder):
    plain = KronosPredictor(forecaster.model, forecaster.tokenizer, device="cpu", max_context=32)
    for seed, count in enumerate((20, 19, 20, 5)):
        asked = series(seed, count)
        found, expected = (each.paths(*asked, sample_count=3) for each in (forecaster, plain))
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert [made.calls for made in recorder.made] == [2]
    assert plain.engine().recorded is None


def test_recordings_go_with_the_weights_that_they_read(forecaster, recorder):
    for seed in range(3):
        forecaster.paths(*series(seed))
    before = forecaster.engine().recorded
    with torch.no_grad():
        forecaster.model.head.proj_s1.weight.mul_(-1)
    fresh = KronosPredictor(forecaster.model, forecaster.tokenizer, device="cpu", max_context=32)
    for seed in range(3):
        np.testing.assert_allclose(
            forecaster.paths(*series(seed)), fresh.paths(*series(seed)), rtol=1e-4
        )
    assert forecaster.engine().recorded is not before
    assert [made.calls for made in recorder.made] == [2, 2]


def test_a_failure_outlasts_the_weights(forecaster, recorder):
    recorder.is_off = True
    for seed in range(3):
        forecaster.paths(*series(seed))
    assert not recorder.made and not forecaster.engine().recorded.recorded


def test_a_replaced_time_embedding_is_not_recorded(make_pair, recorder):
    """It may look at what it computes, which ends a recording, and torch's allocator with it."""

    class Other(TimeEmbedding):
        pass

    tokenizer, model = make_pair()
    model.time_emb = Other(16, learned=True)
    forecaster = KronosPredictor(model, tokenizer, device="cpu", max_context=32)
    forecaster._recorder = recorder
    for seed in range(3):
        forecaster.paths(*series(seed))
    assert not recorder.made and forecaster.engine().recorded is None


def test_threads_share_a_predictor_that_draws_by_recordings(forecaster, recorder):
    asked = [series(seed, count) for seed, count in enumerate([3, 5, 7] * 6)]
    plain = KronosPredictor(forecaster.model, forecaster.tokenizer, device="cpu", max_context=32)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda each: forecaster.paths(*each), asked))
    for drawn_together, each in zip(found, asked, strict=True):
        np.testing.assert_allclose(drawn_together, plain.paths(*each), rtol=1e-4)
    assert sorted(made.inputs[0].shape[0] for made in recorder.made) == [3, 5, 7]


def test_progress_reaches_one_by_recordings(forecaster):
    for seed in range(3):
        told = []
        forecaster.predict_paths(*frames(seed), verbose=False, on_progress=told.append)
        assert told == [(step + 1) / 4 for step in range(4)]


def frames(seed):
    days = pd.bdate_range("2024-01-01", periods=14)
    bars = pd.DataFrame(series(seed, 1)[0][0], columns=list(BAR_COLUMNS))
    return [bars], [days[:10]], [days[10:]], 4


@pytest.mark.parametrize(
    ("device", "is_wanted", "is_given"),
    [("cuda", True, True), ("cuda:1", True, True), ("cuda", False, False), ("cpu", True, False),
     ("mps", True, False)],
)  # fmt: skip
def test_only_a_cuda_device_records_and_only_where_it_is_wanted(device, is_wanted, is_given):
    found = recorder_for(torch.device(device), is_wanted)
    assert isinstance(found, CudaRecorder) == is_given


class Gpu:
    """Stands in for the device under torch's own context manager; its log says what came when."""

    def __init__(self, monkeypatch):
        self.log, self.fails, self.made = [], False, []
        self.main = self.current = self.Stream("main")
        gpu = self

        class Graph:
            """One that runs what was recorded when it is replayed."""

            def __init__(self):
                gpu.made.append(weakref.ref(self))
                self.number, self.where = len(gpu.made), None

            def capture_begin(self, pool=None, capture_error_mode="global", **_):
                assert capture_error_mode == "thread_local"
                assert gpu.current is not gpu.main
                self.where = pool or f"pool {self.number}"
                gpu.log.append(f"begin {self.number} in {self.where}")

            def capture_end(self):
                gpu.log.append(f"end {self.number}")
                if gpu.fails:
                    raise RuntimeError("operation not permitted when stream is capturing")

            def pool(self):
                return self.where

            def replay(self):
                gpu.log.append(f"replay {self.number}")

        class On:
            def __init__(self, stream):
                self.stream = stream

            def __enter__(self):
                self.before, gpu.current = gpu.current, self.stream

            def __exit__(self, *_):
                gpu.current = self.before

        @contextmanager
        def device(which):
            gpu.log.append(f"on {which}")
            yield

        for name, value in {
            "CUDAGraph": Graph, "Stream": lambda: self.Stream("side"), "stream": On,
            "current_stream": lambda: self.current, "device": device,
            "synchronize": lambda: self.log.append("synchronize"), "empty_cache": lambda: None,
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: None, raising=False)
        gpu.main.log = gpu.log

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            gpu_log = getattr(self, "log", None) or getattr(other, "log", [])
            gpu_log.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def gpu(monkeypatch):
    return Gpu(monkeypatch)


def test_a_graph_is_recorded_by_torchs_own_rules(gpu):
    record = CudaRecorder(torch.device("cuda:1"))

    def body(x):
        gpu.log.append(f"computed on {gpu.current.name}")
        return (x + 1,)

    given = torch.zeros(2)
    computed, graph = record(body, [given])
    assert gpu.log == [
        "on cuda:1", "side waits for main", "computed on side", "synchronize",
        "begin 1 in pool 1", "computed on side", "end 1", "main waits for side",
    ]  # fmt: skip
    assert gpu.current is gpu.main and not cuda_graphs._UNFINISHED
    assert torch.equal(computed[0], torch.ones(2))
    assert graph.body is body, "which holds the weights that the graph reads"
    gpu.log.clear()
    [found] = graph(torch.full((2,), 5.0))
    assert gpu.log == ["replay 1"] and found is graph.results[0]
    assert torch.equal(graph.inputs[0], torch.full((2,), 5.0)), "where the graph reads"
    assert torch.equal(given, torch.zeros(2)), "the caller's is left alone"


def test_graphs_share_a_pool_while_one_of_them_lives(gpu):
    record = CudaRecorder(torch.device("cuda"))

    def body(x):
        return (x + 1,)

    def begun():
        return [line for line in gpu.log if line.startswith("begin")][-1]

    kept = [record(body, [torch.zeros(2)])[1] for _ in range(2)]
    assert begun() == "begin 2 in pool 1"
    del kept[0]
    kept.append(record(body, [torch.zeros(2)])[1])
    assert begun() == "begin 3 in pool 1"
    kept.clear()
    record(body, [torch.zeros(2)])
    assert begun() == "begin 4 in pool 4"


def test_a_recording_that_fails_leaves_the_stream_as_it_was(gpu, net, monkeypatch, caplog):
    """Where a recording fails, torch's context manager does not put the stream back."""
    monkeypatch.setattr(cuda_graphs, "_UNFINISHED", [])
    gpu.fails = True
    draw = RecordedDrawing(net, CudaRecorder(torch.device("cuda")))
    for seed in range(3):
        assert same(drawn(draw, batch(seed)), drawn_plainly(net, batch(seed)))
        assert gpu.current is gpu.main
    assert [gpu.made[0]()] == cuda_graphs._UNFINISHED, "torch's allocator goes on to ask it"
    assert "not permitted when stream is capturing" in caplog.text
