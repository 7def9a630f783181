"""Contexts on disk: the numbers that the network gives, found again, and never those of others."""

from __future__ import annotations

import json
import pickle
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kronos_qlib.data.windows import window
from kronos_qlib.data.windows.bar_table import BarTable
from kronos_qlib.data.windows.find import windows_to_score
from kronos_qlib.data.windows.gather import gather
from kronos_qlib.data.windows.scale import WindowScale
from kronos_qlib.data.windows.scale_features import SCALE_FEATURES
from kronos_qlib.data.windows.window import Windows
from kronos_qlib.data.windows.window_dataset import WindowDataset
from kronos_qlib.errors import CheckpointError, ConfigError, TrainingError
from kronos_qlib.inference.batching import planned_for
from kronos_qlib.inference.packed import Reader
from kronos_qlib.inference.predictor import KronosPredictor
from kronos_qlib.inference.sampling import SamplingConfig
from kronos_qlib.log import reported
from kronos_qlib.model.alpha_head import AlphaHead
from kronos_qlib.model.sizes import ContextConfig
from kronos_qlib.pipeline import context_store, contexts
from kronos_qlib.pipeline.context_store import ContextStore, moment_digest
from kronos_qlib.pipeline.contexts import contexts_of, stored_contexts
from kronos_qlib.pipeline.scoring import scores_from_alpha, scores_from_bars, signals_from_paths
from kronos_qlib.schema import BAR_COLUMNS

DAYS = pd.bdate_range("2024-01-01", periods=24)
LOOKBACK = 8


def table_of(names=7, days=DAYS, seed=0):
    rng = np.random.default_rng(seed)
    index = pd.MultiIndex.from_product([[f"S{number}" for number in range(names)], days])
    close = 10 * np.exp(np.cumsum(rng.normal(0, 0.02, (names, len(days))), axis=1)).ravel()
    bars = np.stack([close, close * 1.01, close * 0.99, close, close * 9, close * 90], axis=1)
    return BarTable.from_frame(pd.DataFrame(bars, index=index, columns=list(BAR_COLUMNS)))


@pytest.fixture(scope="module")
def windows():
    return windows_to_score(table_of(), LOOKBACK, min_bars=6)


@pytest.fixture
def predictor(tiny_pair):
    tokenizer, net = tiny_pair
    return KronosPredictor(net, tokenizer, device="cpu")


@pytest.fixture
def count(monkeypatch):
    """How many windows the network reads."""
    read = []
    embed = KronosPredictor.embed

    def counted(self, x, *args, **kwargs):
        read.append(len(x))
        return embed(self, x, *args, **kwargs)

    monkeypatch.setattr(KronosPredictor, "embed", counted)
    return read


POOLINGS = [
    ContextConfig(),
    ContextConfig(bars=3),
    ContextConfig(layers=[1]),
    ContextConfig(bars=5, layers=[2, 1], dtype="float16"),
]


@pytest.mark.parametrize("pooling", POOLINGS, ids=str)
def test_what_is_stored_is_what_the_network_says_bit_for_bit(
    predictor, windows, tmp_path, count, pooling
):
    expected = contexts_of(predictor, windows, pooling=pooling)
    assert expected.shape == (len(windows), pooling.parts * 16)
    count.clear()
    first = stored_contexts(predictor, windows, tmp_path / "made", pooling=pooling)
    assert sum(count) == len(windows)
    again = stored_contexts(predictor, windows, tmp_path / "made", pooling=pooling)
    assert sum(count) == len(windows), "the second run reads nothing"
    for found in (first, again, pickle.loads(pickle.dumps(again))):
        assert found.shape == expected.shape and len(found) == len(windows)
        np.testing.assert_array_equal(found[:], expected)
        which = np.array([5, 2, len(windows) - 1])
        np.testing.assert_array_equal(found[which], expected[which])
        assert found[which].dtype == np.float32


@pytest.mark.parametrize("pooling", POOLINGS, ids=str)
def test_pooled_contexts_are_means_of_the_networks_own(predictor, windows, pooling):
    """By the network that is trained, window by window, against the packed one."""
    net, tokenizer = predictor.model, predictor.tokenizer
    found = contexts_of(predictor, windows, pooling=pooling)
    for _, places, group in list(windows.by_day())[:4]:
        bars, stamps = group.seen()
        for row, place in enumerate(places[:2]):
            one = bars[row : row + 1]
            z = predictor.normalised(WindowScale.of(one), one)
            s1, s2 = tokenizer.encode(z)
            stamp = torch.from_numpy(stamps[row : row + 1])
            with torch.inference_mode():
                hidden = list(net._through_blocks(s1, s2, stamp))
                last = net.norm(hidden[-1])[0]
            parts = [last[-1]]
            if pooling.bars > 1:
                parts.append(last[-pooling.bars :].mean(dim=0))
            if pooling.layers:
                each = [hidden[layer - 1][0, -1] for layer in pooling.layers]
                each = [one / (one.square().mean() + net.norm.eps).sqrt() for one in each]
                parts.append(torch.stack(each).mean(dim=0))
            expected = torch.cat(parts).numpy()
            tolerance = 2e-3 if pooling.dtype == "float16" else 1e-4
            np.testing.assert_allclose(found[place], expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("names", [7, 23])
def test_of_a_day_with_many_names_a_block_is_read_at_a_time(
    predictor, monkeypatch, tmp_path, names
):
    """Whole days were: of 5,000 names' bars a head's features took 75 MiB, of 500 a tenth."""
    source = WindowDataset(
        table=table_of(names),
        segments={"test": (DAYS[9], DAYS[11])},
        lookback=LOOKBACK,
        min_bars=6,
        horizon=2,
    )
    windows = source.windows("test")
    head = AlphaHead(16, len(SCALE_FEATURES), 4, 8, 0.0).eval()
    sampling = SamplingConfig(paths=2)

    def found():
        return [
            scores_from_alpha(predictor, head, windows),
            scores_from_alpha(predictor, head, windows, contexts_folder=tmp_path / "kept"),
            signals_from_paths(predictor, source, windows, sampling, ["expected_return"], 0),
            scores_from_bars(windows, "reversal", 5),
            [moment_digest(windows.take(day)) for day in windows.moments()],
        ]

    expected, gathered, rows = found(), [], Windows.rows
    monkeypatch.setattr(window, "AT_ONCE", 5)
    monkeypatch.setattr(context_store, "AT_ONCE", 5)
    shutil.rmtree(tmp_path / "kept")

    def counted(self, which):
        result = rows(self, which)
        gathered.append(len(result))
        return result

    monkeypatch.setattr(Windows, "rows", counted)
    *expected, digests = expected
    *again, digests_again = found()
    assert digests_again == digests
    for one, other in zip(expected, again, strict=True):  # a product rounds by shape and threads
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    assert max(gathered) <= 5, "whatever the names"
    # Twice for the head and once for its kept contexts, and so on: each window each time.
    assert sum(gathered) >= 6 * len(windows)


def test_a_context_alone_has_the_bits_of_the_reader_that_draws_after_it(predictor, windows):
    """What draws paths keeps keys for the s2 attention besides; contexts never needed them."""


def test_a_context_alone_is_that_of_the_reader_that_draws_after_it(predictor, windows):
    """To rounding: what draws paths needs every bar of the last block, a context the newest."""
    bars, stamps = windows.take(slice(30, 40)).cut(6).seen()
    packed = predictor.engine()
    z = predictor.normalised(WindowScale.of(bars), bars)
    with torch.inference_mode():
        s1, s2 = packed.tokenizer.encode(z)
        expected = Reader(packed.net, paths=1, steps=0).read(s1, s2, torch.from_numpy(stamps))
    found = predictor.embed(bars, stamps)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-6)


def test_a_backbone_that_is_trained_reads_what_a_frozen_one_does(predictor, windows):
    """Padded windows of two lengths in one batch, forwards with gradients."""
    pooling = ContextConfig(bars=4, layers=[1, 2])
    short = windows.take(np.arange(0, 14))  # the first two days: 6 and 7 bars
    assert len(np.unique(short.lengths)) == 2
    batch = gather(short, np.arange(len(short)))
    s1, s2 = predictor.tokenizer.encode(torch.from_numpy(batch.z))
    lengths = torch.from_numpy(short.lengths.astype(np.int64))
    found = predictor.model.read_newest(s1, s2, torch.from_numpy(batch.stamps), lengths, pooling)
    expected = contexts_of(predictor, short, pooling=pooling)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-4, atol=1e-4)


def test_other_segments_share_what_is_there(predictor, windows, tmp_path, count):
    days = windows.moments()
    stored_contexts(predictor, windows.take(slice(0, days[9].stop)), tmp_path)
    count.clear()
    part = windows.take(slice(days[4].start, days[14].stop))
    found = stored_contexts(predictor, part, tmp_path)
    assert sum(count) == days[14].stop - days[10].start
    np.testing.assert_array_equal(found[:], contexts_of(predictor, part))


def test_other_bars_weights_or_ways_of_reading_are_read_anew(
    predictor, windows, tmp_path, count, make_pair
):
    stored_contexts(predictor, windows, tmp_path)
    count.clear()
    # One bar of one name: every day whose windows have it is another, the others are found.
    table = windows.table
    values = table.values.copy()
    values[20, 0] *= 1.001
    other = BarTable(values, table.places, table.calendar, table.instruments, table.offsets)
    changed = windows_to_score(other, LOOKBACK, min_bars=6)
    found = stored_contexts(predictor, changed, tmp_path)
    days = windows.moments()
    touched = sum(
        day.stop - day.start
        for day in days
        if moment_digest(windows.take(day)) != moment_digest(changed.take(day))
    )
    assert 0 < sum(count) == touched < len(windows)
    np.testing.assert_array_equal(found[:], contexts_of(predictor, changed))
    tokenizer, net = make_pair(1)
    for another, how in (
        (KronosPredictor(net, predictor.tokenizer, device="cpu"), windows),
        (KronosPredictor(predictor.model, tokenizer, device="cpu"), windows),
        (KronosPredictor(predictor.model, predictor.tokenizer, device="cpu", clip=3), windows),
        (KronosPredictor(predictor.model, predictor.tokenizer, "cpu", dtype="bfloat16"), windows),
        (KronosPredictor(predictor.model, predictor.tokenizer, "cpu", max_context=5), windows),
        (predictor, windows_to_score(table, LOOKBACK - 1, min_bars=6)),
    ):
        count.clear()
        found = stored_contexts(another, how, tmp_path)
        assert sum(count) == len(how)
        np.testing.assert_array_equal(found[:], contexts_of(another, how))


def test_contexts_that_other_threads_read_are_not_taken_for_ones_own(predictor, tmp_path, count):
    """Batches are as large as threads leave them, and a product rounds by its shape."""
    windows = windows_to_score(table_of(150), LOOKBACK, first=DAYS[-1])
    for threads in (1, 4):
        count.clear()
        with planned_for(threads):
            found = stored_contexts(predictor, windows, tmp_path)
            assert sum(count) == len(windows), "read anew"
            np.testing.assert_array_equal(found[:], contexts_of(predictor, windows))
            count.clear()
            stored_contexts(predictor, windows, tmp_path)
            assert not count, "and found again"
    few = windows_to_score(table_of(40), LOOKBACK, first=DAYS[-1])
    with planned_for(1):
        stored_contexts(predictor, few, tmp_path)
    count.clear()
    with planned_for(4):
        stored_contexts(predictor, few, tmp_path)
    assert not count, "whose batch is the same"


def test_contexts_of_other_arithmetic_are_not_mixed_with_those_of_this_one(
    predictor, windows, tmp_path, count, monkeypatch
):
    with monkeypatch.context() as before:  # which read the last block whole
        before.setattr(context_store, "FORMAT", 1)
        stored_contexts(predictor, windows, tmp_path)
    count.clear()
    stored_contexts(predictor, windows, tmp_path)
    assert sum(count) == len(windows)


def test_a_run_that_was_stopped_goes_on_after_its_last_moment(
    predictor, windows, tmp_path, count, monkeypatch
):
    add, done = ContextStore.add, []

    def stopped(self, moment, values):
        if len(done) == 6:
            raise KeyboardInterrupt
        done.append(len(values))
        return add(self, moment, values)

    monkeypatch.setattr(ContextStore, "add", stopped)
    with pytest.raises(KeyboardInterrupt):
        stored_contexts(predictor, windows, tmp_path)
    monkeypatch.setattr(ContextStore, "add", add)
    count.clear()
    found = stored_contexts(predictor, windows, tmp_path)
    assert sum(count) == len(windows) - sum(done)
    np.testing.assert_array_equal(found[:], contexts_of(predictor, windows))


def files_in(folder):
    return next(folder.glob("*.rows")), next(folder.glob("*.index"))


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_no_cut_or_changed_byte_is_ever_taken_for_a_context(data, shared_store):
    """Wherever files are cut, or a byte of the rows changes, numbers are right or refused."""
    predictor, windows, whole, expected, folder = shared_store
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    rows, index = files_in(folder)
    kind = data.draw(st.sampled_from(["rows cut", "index cut", "both cut", "byte"]))
    if kind in ("rows cut", "both cut"):
        content = rows.read_bytes()
        rows.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    if kind in ("index cut", "both cut"):
        content = index.read_bytes()
        index.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    if kind == "byte":
        content = bytearray(rows.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        rows.write_bytes(content)
    for _ in range(2):
        found = stored_contexts(predictor, windows, folder)
        np.testing.assert_array_equal(found[:], expected)


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory, make_pair):
    tokenizer, net = make_pair(0)
    predictor = KronosPredictor(net, tokenizer, device="cpu")
    windows = windows_to_score(table_of(names=5), LOOKBACK).take(slice(0, 40))
    folder = tmp_path_factory.mktemp("contexts")
    expected = contexts_of(predictor, windows)
    stored_contexts(predictor, windows, folder / "whole")
    return predictor, windows, folder / "whole", expected, folder / "copy"


def test_a_truncated_file_is_said_to_be_and_read_again(predictor, windows, tmp_path, count, caplog):
    stored_contexts(predictor, windows, tmp_path)
    rows, _ = files_in(tmp_path)
    rows.write_bytes(rows.read_bytes()[:-1])
    count.clear()
    stored_contexts(predictor, windows, tmp_path)
    assert f"{rows} is truncated or damaged: the contexts of 1 of 19 moments are read again" in (
        caplog.text
    )
    assert sum(count) == 7
    count.clear()
    stored_contexts(predictor, windows, tmp_path)
    assert not count


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"notes of mine\n", "is no index of contexts; move it"),
        (b"[1]\n", "is no index of contexts; move it"),
        (b'{"format": 1, "width": 3}\n', "of contexts with other .*clip.*predictor.*width"),
        (None, "has a line that names no contexts: b'mine'; move it"),
        ("a line", "has a line that names no contexts: .*moment"),
    ],
)
def test_files_of_others_are_refused_and_left_alone(predictor, windows, tmp_path, content, message):
    stored_contexts(predictor, windows, tmp_path)
    rows, index = files_in(tmp_path)
    own = index.read_bytes()
    if content is None:
        content = own + b"mine\n"
    elif content == "a line":
        line = {"moment": 3, "start": 0, "rows": 1, "crc32": 0}
        content = own + json.dumps(line).encode() + b"\n"
    index.write_bytes(content)
    before = rows.read_bytes(), index.read_bytes()
    with pytest.raises(CheckpointError, match=message):
        stored_contexts(predictor, windows, tmp_path)
    assert (rows.read_bytes(), index.read_bytes()) == before
    index.unlink()
    with pytest.raises(CheckpointError, match=r"has no contexts-\w+.index beside it.*move it"):
        stored_contexts(predictor, windows, tmp_path)
    assert rows.read_bytes() == before[0]


def test_a_place_that_cannot_be_written_is_named(predictor, windows, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises((TrainingError, CheckpointError), match="file"):
        stored_contexts(predictor, windows, tmp_path / "file")


def test_two_runs_in_one_folder_share_what_each_adds(predictor, windows, tmp_path, count):
    """The second asks for a moment that the first has written since it looked."""
    days = windows.moments()
    one, other = (
        ContextStore.of(tmp_path, predictor, windows.lookback, ContextConfig()) for _ in range(2)
    )
    key = moment_digest(windows.take(days[0]))
    assert one.find({key: 7}) == other.find({key: 7}) == {}
    values = contexts_of(predictor, windows.take(days[0]))
    assert one.add(key, values) == other.add(key, values) == 0
    assert other.add("another", values) == 7
    assert one.add("a third", values) == 14
    assert ContextStore.of(tmp_path, predictor, windows.lookback, ContextConfig()).find(
        {key: 7, "another": 7, "a third": 7}
    ) == {key: 0, "another": 7, "a third": 14}


def test_a_lock_that_another_run_keeps_is_named(predictor, windows, tmp_path, monkeypatch):
    from filelock import FileLock

    monkeypatch.setattr(context_store, "LOCK_SECONDS", 0.05)
    store = ContextStore.of(tmp_path, predictor, windows.lookback, ContextConfig())
    with FileLock(store._lock), pytest.raises(TrainingError, match=r"\.lock has been locked for"):
        stored_contexts(predictor, windows, tmp_path)


def test_no_windows_have_no_contexts(predictor, windows, tmp_path):
    none = windows.take(slice(0, 0))
    assert stored_contexts(predictor, none, tmp_path)[:].shape == (0, 16)
    assert contexts_of(predictor, none).shape == (0, 16)


def test_a_layer_that_is_not_there_and_a_number_too_large_are_refused(predictor, windows):
    with pytest.raises(ConfigError, match=r"names \[3, 9\], and the predictor has 2 blocks"):
        contexts_of(predictor, windows, pooling=ContextConfig(layers=[9, 1, 3]))
    predictor.model.norm.weight.data *= 1e6
    with pytest.raises(ConfigError, match=r"do not fit float16: leave context\.dtype at float32"):
        contexts_of(predictor, windows, pooling=ContextConfig(dtype="float16"))


def test_lines_about_long_work_come_at_their_time():
    now = iter(range(0, 1000, 10))
    lines: list[str] = []
    items = list(
        reported(range(9), "reading", lines.append, unit="day", every=30, clock=lambda: next(now))
    )
    assert items == list(range(9))
    assert lines == [
        "reading: 3 of 9 days, about 60 seconds left",
        "reading: 6 of 9 days, about 30 seconds left",
    ]
    slow = iter([0, 600])
    lines.clear()
    list(
        reported(iter("abc"), "w", lines.append, unit="bar", total=3, clock=lambda: next(slow, 600))
    )
    assert lines == ["w: 1 of 3 bars, about 20 minutes left"]
    assert list(reported(iter("ab"), "w", None, unit="bar")) == ["a", "b"]


def test_reading_contexts_says_where_it_is(predictor, windows, tmp_path, monkeypatch):
    """A log file had no line while contexts were read, which may take hours."""
    lines: list[str] = []

    def eager(items, what, report, **settings):
        return reported(items, what, report, every=0.0, **settings)

    monkeypatch.setattr(contexts, "reported", eager)
    contexts_of(predictor, windows, report=lines.append)
    assert lines[0].startswith("Kronos contexts: 1 of 19 days, about")
    assert len(lines) == 18
    lines.clear()
    stored_contexts(predictor, windows, tmp_path, report=lines.append)
    assert lines[0] == f"Kronos contexts: 0 of 19 moments are in {tmp_path}, 19 are read"
