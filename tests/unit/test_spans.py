"""Days in a row read at once: which windows share a reading, what it sees, and what it teaches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_shares import random_share

from kronos_qlib.data.windows.bar_table import BarTable
from kronos_qlib.data.windows.find import windows_to_score
from kronos_qlib.data.windows.label import ReturnLabel
from kronos_qlib.data.windows.scale import WindowScale
from kronos_qlib.data.windows.scale_features import SCALE_FEATURES
from kronos_qlib.data.windows.window_dataset import WindowDataset
from kronos_qlib.errors import ConfigError
from kronos_qlib.inference.predictor import KronosPredictor
from kronos_qlib.model.alpha_head import AlphaHead
from kronos_qlib.model.checkpoints.weights import to_bytes
from kronos_qlib.model.gru_reader import GRUReader
from kronos_qlib.model.sizes import ContextConfig, GRUConfig
from kronos_qlib.pipeline import stages
from kronos_qlib.pipeline.contexts import contexts_of, spans_of, stored_contexts
from kronos_qlib.pipeline.stages import StagesConfig, run_stages, train_gru
from kronos_qlib.schema import BAR_COLUMNS
from kronos_qlib.training.alpha import AlphaNet, AlphaSegment, AlphaStep, ic_loss
from kronos_qlib.training.parallel.distributed import Share
from kronos_qlib.training.spans import SpanSampler, readings, span_batch
from kronos_qlib.training.stage_settings import AlphaConfig

DAYS = pd.bdate_range("2024-01-01", periods=60)
LOOKBACK = 12
F = len(SCALE_FEATURES)


def frame_of(seed=0, names=9):
    """Shares of which some miss days, and one begins late."""
    rng = np.random.default_rng(seed)
    frames = {}
    for number in range(names):
        own = random_share(rng, DAYS)
        missing = rng.choice(len(DAYS), 3 if number < 4 else 0, replace=False)
        own = own.drop(own.index[missing])
        frames[f"S{number}"] = own.iloc[30:] if number == 8 else own
    return pd.concat(frames)


@pytest.fixture(scope="module")
def windows():
    return windows_to_score(BarTable.from_frame(frame_of()), LOOKBACK, min_bars=8)


@pytest.fixture(scope="module")
def segment(windows):
    return AlphaSegment.of(windows, ReturnLabel())


def step_of(make_pair, **options):
    tokenizer, net = make_pair(0)
    torch.manual_seed(0)
    head = AlphaHead(net.config.d_model, F, 4, 8, 0.0, **options)
    return AlphaStep(AlphaNet(head, net.eval()), tokenizer)


def windows_of(segment, days):
    return np.concatenate([np.arange(day.start, day.stop) for day in segment.days[days]])


@given(
    days=st.integers(1, 48),
    span=st.integers(2, 30),
    seed=st.integers(0, 9),
    most=st.sampled_from([None, 5, 7]),
)
def test_every_day_comes_once_in_spans_of_days_in_a_row(segment, days, span, seed, most):
    part = replace(segment, days=segment.days[:days])
    sampler = SpanSampler(part, seed=seed, span=span, windows_per_day=most)
    cuts = set()
    for epoch in (1, 2, 3):
        seen = []
        batches = list(sampler.epoch(epoch))
        assert len(batches) == len(sampler), "the schedule counts on it"
        for which in batches:
            assert len(which) <= sampler.largest
            places = np.searchsorted([day.stop for day in part.days], which, side="right")
            of_batch = np.unique(places)
            assert len(of_batch) <= span
            np.testing.assert_array_equal(of_batch, np.arange(of_batch[0], of_batch[-1] + 1))
            np.testing.assert_array_equal(which, np.sort(which))
            if most:
                assert np.bincount(places - places[0]).max() <= most
            seen += of_batch.tolist()
        assert sorted(seen) == list(range(days))
        cuts.add(tuple(sorted(int(which[0]) for which in batches)))
        again = list(sampler.epoch(epoch, start=1))
        assert all(np.array_equal(*pair) for pair in zip(again, batches[1:], strict=True))
    if days > 2 * span and span > 4:
        assert len(cuts) > 1, "spans are cut elsewhere in another epoch"


def test_the_names_of_a_span_are_the_same_on_its_days(segment):
    sampler = SpanSampler(segment, seed=0, span=6, windows_per_day=5)
    table, ends = segment.windows.table, segment.windows.ends
    names = [len(np.unique(table.instrument_of(ends[which]))) for which in sampler.epoch(1)]
    assert np.mean(names) < 7, "9 have windows; 5 are read but where one of them misses a day"


@given(span=st.integers(2, 12), first=st.integers(0, 30), count=st.integers(1, 12))
def test_a_reading_is_of_one_name_and_begins_with_its_first_window(segment, span, first, count):
    chosen = segment.windows.take(windows_of(segment, slice(first, first + count)))
    firsts, of_reading, of_day = readings(chosen, span)
    ends, owners = chosen.ends[:], chosen.table.instrument_of(chosen.ends[:])
    np.testing.assert_array_equal(owners[firsts][of_reading], owners)
    np.testing.assert_array_equal(ends[firsts][of_reading] + of_day, ends)
    assert of_day.min() == 0 and of_day.max() < span
    assert sorted(np.unique(of_reading)) == list(range(len(firsts)))
    if count <= span:
        assert len(firsts) == len(np.unique(owners)), "no name is read twice"


@pytest.mark.parametrize("pooling", [ContextConfig(), ContextConfig(bars=4, layers=[1])])
def test_a_context_is_of_the_bars_up_to_its_day_by_the_scale_of_the_first(
    segment, make_pair, pooling
):
    """Each is read by itself here: bars from the first window's first one, scaled as that was."""
    step = step_of(make_pair, context=pooling)
    which = windows_of(segment, slice(25, 31))
    batch = span_batch(segment, which, 6)
    assert len(batch) == len(which) and len(batch.z) < len(which) / 3
    with torch.no_grad():
        found = step._read_span(batch)
    chosen = segment.windows.take(which)
    firsts, of_reading, _ = readings(chosen, 6)
    table = chosen.table
    for place in (0, 3, 17, len(which) - 1):
        begin = firsts[of_reading[place]]
        seen = int(chosen.lengths[begin])
        rows = np.arange(chosen.ends[begin] - seen + 1, chosen.ends[place] + 1)
        bars = table.values[rows][None]
        z = torch.from_numpy(WindowScale.of(bars[:, :seen]).to_z(bars))
        stamps = torch.from_numpy(table.stamps_at(rows)[None])
        with torch.no_grad():
            s1, s2 = step.tokenizer.encode(z)
            lengths = torch.tensor([len(rows)])
            alone = step.net.predictor.read_newest(s1, s2, stamps, lengths, pooling)
        torch.testing.assert_close(found[place], alone[0], rtol=1e-4, atol=1e-5)


def test_later_bars_change_no_context(windows, make_pair):
    """Whatever comes after a day, its contexts are the same to the bit; those after it are not."""
    bars = frame_of()
    moment = windows.times[windows.moments()[28].start]
    later = bars.index.get_level_values(1) > moment
    bars.loc[later, list(BAR_COLUMNS)] *= 1.5
    other = windows_to_score(BarTable.from_frame(bars), LOOKBACK, min_bars=8)
    step = step_of(make_pair)
    found = []
    for each in (windows, other):
        part = AlphaSegment.of(each, ReturnLabel())
        with torch.no_grad():
            found.append(step._read_span(span_batch(part, windows_of(part, slice(25, 33)), 8)))
    times = windows.take(windows_of(part, slice(25, 33))).times
    assert torch.equal(found[0][times <= moment], found[1][times <= moment])
    assert not torch.equal(found[0][times > moment], found[1][times > moment])


def test_one_day_of_a_span_teaches_what_it_teaches_alone(segment, make_pair):
    for options in ({}, {"outputs": 2}, {"attention": 4, "market": F}):
        step = step_of(make_pair, **options)
        if step.net.head.across is not None:
            torch.nn.init.normal_(step.net.head.across.out.weight)
        part = segment
        if "outputs" in options:
            part = AlphaSegment.of(segment.windows, ReturnLabel(), others=[ReturnLabel(bars=3)])
        which = windows_of(part, slice(25, 26))
        alone = step.losses(part.batch(which))["loss"]
        spanned = step.losses(replace(part, span=5).batch(which))["loss"]
        torch.testing.assert_close(alone, spanned, rtol=1e-5, atol=1e-6)


def test_the_loss_of_a_span_is_the_mean_of_its_days_with_gradients_for_the_backbone(
    segment, make_pair
):
    step = step_of(make_pair)
    which = windows_of(segment, slice(25, 30))
    batch = span_batch(segment, which, 5)
    contexts = step._read_span(batch)
    days = np.split(np.arange(len(which)), np.cumsum([len(day) for day in batch.days])[:-1])
    losses = []
    for rows in days:
        target = torch.from_numpy(segment.target[which[rows]])
        features = torch.from_numpy(segment.features[which[rows]])
        losses.append(ic_loss(step.net.head(contexts[rows], features), target))
    found = step.losses(batch)["loss"]
    torch.testing.assert_close(found, torch.stack(losses).mean())
    found.backward()
    assert step.net.predictor.transformer[0].ffn.w1.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("ranks", [2, 5, 40])
def test_processes_have_equally_many_contexts_of_a_reading(segment, monkeypatch, ranks):
    """Names miss days, and of few readings a process may have those alone that end early."""
    which = windows_of(segment, slice(20, 26))
    which = which[segment.windows.table.instrument_of(segment.windows.ends[which]) < 4]
    whole = span_batch(segment, which, 6)
    parts = []
    for rank in range(ranks):
        monkeypatch.setattr(Share, "here", lambda total, rank=rank: Share(total, rank, ranks))
        parts.append(span_batch(segment, which, 6))
    assert {part.places.shape[1] for part in parts} == {whole.places.shape[1]}
    for rank, part in enumerate(parts[: len(whole.places)]):
        assert torch.equal(part.places, whole.places[rank::ranks])
        bars = part.z.shape[1]
        assert torch.equal(part.z, whole.z[rank::ranks, :bars])


def test_bars_that_no_window_sees_are_not_read(windows):
    """A name that leaves the universe and comes back: what lies between was never looked at."""
    moments = windows.moments()
    far = LOOKBACK + 3
    places = [moments[20], moments[20 + far], moments[21 + far]]
    chosen = windows.take(np.concatenate([np.arange(one.start, one.stop) for one in places]))
    firsts, of_reading, of_day = readings(chosen, 3 * LOOKBACK)
    owners = chosen.table.instrument_of(chosen.ends[:])
    for name in np.unique(owners):
        own = np.flatnonzero(owners == name)
        if len(own) == 3:
            assert of_reading[own[0]] != of_reading[own[1]] == of_reading[own[2]]
            assert of_day[own].tolist()[:2] == [0, 0]
    assert len(firsts) > len(np.unique(owners))


@pytest.mark.parametrize("min_bars", [None, 5])
def test_a_suspension_that_no_window_reaches_across_is_not_read_across(min_bars):
    """The first window after it begins with the bar after the last one before it."""
    table = BarTable.from_frame(frame_of().drop([("S7", day) for day in DAYS[25:45]]))
    chosen = windows_to_score(table, LOOKBACK, max_age_days=20, min_bars=min_bars)
    ends = chosen.ends[:]
    own = np.flatnonzero(table.instrument_of(ends) == table.instruments.index("S7"))
    is_later = chosen.times[own] >= DAYS[45]
    assert ends[own[is_later][0]] - ends[own[~is_later][-1]] == (min_bars or LOOKBACK)
    _, of_reading, _ = readings(chosen, 60)
    assert len(np.unique(of_reading[own])) == 2
    assert len(np.unique(of_reading[own[is_later]])) == 1


def test_a_gru_reads_spans_too(segment):
    net = GRUReader(GRUConfig(hidden=8)).eval()
    step = AlphaStep(AlphaNet(AlphaHead(8, F, 4, 8, 0.0), net), None)
    which = windows_of(segment, slice(25, 26))
    alone = step.losses(segment.batch(which))["loss"]
    spanned = step.losses(replace(segment, span=5).batch(which))["loss"]
    torch.testing.assert_close(alone, spanned, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def source():
    table = BarTable.from_frame(frame_of())
    segments = {"train": (DAYS[0], DAYS[39]), "valid": (DAYS[40], DAYS[55])}
    return WindowDataset(table=table, segments=segments, lookback=LOOKBACK, horizon=2)


@pytest.mark.parametrize("backbone", ["whole", "lora"])
def test_a_backbone_learns_from_spans_and_is_judged_by_single_days(
    source, tiny_pair, backbone, monkeypatch
):
    tokenizer, net = tiny_pair
    before = to_bytes(net)
    judged = []
    real = AlphaStep.validate

    def kept(self, segment, config, device):
        judged.append(segment.span)
        return real(self, segment, config, device)

    monkeypatch.setattr(AlphaStep, "validate", kept)
    predictor = KronosPredictor(net, tokenizer, device="cpu")
    alpha = {"backbone": backbone, "span": 4, "epochs": 2, "hidden": 8, "context_width": 4,
             "backbone_learning_rate": 1e-2, "windows_per_day": 6}  # fmt: skip
    result = run_stages(StagesConfig(alpha=alpha), predictor, source)
    assert judged == [1, 1, 1]
    assert len(result.history["alpha"]) == 3
    assert result.last["predictor"] != before


def test_a_gru_is_trained_on_spans(source):
    config = AlphaConfig(span=4, epochs=1, hidden=8, context_width=4)
    net, result = train_gru(config, GRUConfig(hidden=8), source, torch.device("cpu"))
    assert len(result.history["gru"]) == 2 and not net.training


def test_settings_of_a_span_that_cannot_work_are_refused(source, predictor):
    with pytest.raises(ConfigError, match="there is nothing for `span` to read"):
        AlphaConfig(span=5, context_width=0)
    with pytest.raises(ConfigError, match="span must be a whole number of at least 1"):
        AlphaConfig(span=0)
    predictor.max_context = LOOKBACK + 3
    message = f"span 5 reads {LOOKBACK + 4} bars at once and the network attends to {LOOKBACK + 3}"
    with pytest.raises(ConfigError, match=message):
        run_stages(StagesConfig(alpha={"span": 5}), predictor, source)


# Contexts of a frozen backbone.


@pytest.fixture
def predictor(tiny_pair):
    tokenizer, net = tiny_pair
    return KronosPredictor(net, tokenizer, device="cpu")


@pytest.mark.parametrize("pooling", [ContextConfig(), ContextConfig(bars=4, layers=[1, 2])])
def test_contexts_of_spans_are_what_a_trained_backbone_reads(
    predictor, segment, make_pair, pooling
):
    windows = segment.windows
    found = contexts_of(predictor, windows, span=5, pooling=pooling)
    step = step_of(make_pair, context=pooling)
    spans = spans_of(windows, 5)
    assert sum(span.stop - span.start for span in spans) == len(windows)
    for span in (spans[0], spans[4], spans[-1]):
        with torch.no_grad():
            batch = span_batch(segment, np.arange(span.start, span.stop), 5)
            expected = step._read_span(batch).numpy()
        np.testing.assert_allclose(found[span], expected, rtol=1e-4, atol=1e-4)


def test_the_first_context_of_a_span_is_that_of_its_window(predictor, windows):
    found, exact = contexts_of(predictor, windows, span=7), contexts_of(predictor, windows)
    firsts = np.concatenate(
        [span.start + readings(windows.take(span), 7)[0] for span in spans_of(windows, 7)]
    )
    assert len(windows) / 8 < len(firsts) < len(windows) / 4
    np.testing.assert_allclose(found[firsts], exact[firsts], rtol=1e-4, atol=1e-5)
    others = np.setdiff1d(np.arange(len(windows)), firsts)
    assert (np.abs(found[others] - exact[others]).max(axis=1) > 1e-4).mean() > 0.9


def test_no_context_of_a_span_depends_on_a_later_bar(predictor, windows):
    bars = frame_of()
    moment = windows.times[windows.moments()[28].start]
    later = bars.index.get_level_values(1) > moment
    bars.loc[later, list(BAR_COLUMNS)] *= 1.5
    other = windows_to_score(BarTable.from_frame(bars), LOOKBACK, min_bars=8)
    found = [contexts_of(predictor, each, span=9) for each in (windows, other)]
    before = windows.times <= moment
    np.testing.assert_array_equal(found[0][before], found[1][before])
    assert not np.array_equal(found[0][~before], found[1][~before])


def test_contexts_of_spans_are_kept_apart_and_found_again(
    predictor, windows, tmp_path, monkeypatch
):
    exact = stored_contexts(predictor, windows, tmp_path)
    first = stored_contexts(predictor, windows, tmp_path, span=5)
    np.testing.assert_array_equal(first[:], contexts_of(predictor, windows, span=5))
    assert not np.array_equal(first[:], exact[:])
    monkeypatch.setattr(KronosPredictor, "embed_span", None)  # nothing is read
    again = stored_contexts(predictor, windows, tmp_path, span=5)
    np.testing.assert_array_equal(first[:], again[:])


def test_a_head_learns_from_spans_and_is_judged_by_windows(source, predictor, monkeypatch):
    asked = []
    real = stages.contexts_of

    def kept(predictor, windows, *args, span, **how):
        asked.append((len(windows), span))
        return real(predictor, windows, *args, span=span, **how)

    monkeypatch.setattr(stages, "contexts_of", kept)
    alpha = {"span": 5, "epochs": 1, "hidden": 8, "context_width": 4}
    result = run_stages(StagesConfig(alpha=alpha), predictor, source)
    assert [span for _, span in asked] == [5, 1] and result.head is not None


def test_bars_that_are_no_span_are_refused(predictor):
    bars = np.ones((2, 6, 6), dtype=np.float32)
    stamps = np.ones((2, 6, 5), dtype=np.int64)
    for count in (-1, 0, 6, 7):
        with pytest.raises(ConfigError, match=f"{count} contexts of 6 bars"):
            predictor.embed_span(bars, stamps, count)
    for count in (2.5, "3", None):
        with pytest.raises(ConfigError, match="count must be a whole number"):
            predictor.embed_span(bars, stamps, count)
    predictor.max_context = 5
    with pytest.raises(ConfigError, match="and 5 bars at most"):
        predictor.embed_span(bars, stamps, 2)


@pytest.mark.parametrize("span", [0, -1, 2.5, "3", None])
def test_a_span_is_a_number_of_days(predictor, windows, span):
    """Of 0 every window was a span by itself, by a division by zero."""
    with pytest.raises(ConfigError, match=r"span must be (a whole number|at least 1)"):
        contexts_of(predictor, windows, span=span)
