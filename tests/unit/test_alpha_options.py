"""Options of an alpha head: each by hand, saved with it, and refused where it cannot work."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_shares import random_share

from kronos_qlib.data.windows.bar_table import BarTable
from kronos_qlib.data.windows.find import windows_to_score
from kronos_qlib.data.windows.label import ReturnLabel
from kronos_qlib.data.windows.scale_features import SCALE_FEATURES, scale_features
from kronos_qlib.data.windows.window_dataset import WindowDataset
from kronos_qlib.errors import CheckpointError, ConfigError, TrainingError
from kronos_qlib.inference.predictor import KronosPredictor
from kronos_qlib.model.alpha_head import AcrossNames, AlphaEnsemble, AlphaHead, compared
from kronos_qlib.model.sizes import ContextConfig, HeadConfig
from kronos_qlib.pipeline.scoring import scores_from_alpha
from kronos_qlib.pipeline.stages import StagesConfig, labels_of, make_head, run_stages
from kronos_qlib.training.alpha import (
    AlphaNet,
    AlphaSegment,
    AlphaStep,
    day_inputs,
    ic_loss,
    with_day_tokens,
)
from kronos_qlib.training.hardware import threads_for
from kronos_qlib.training.stage_settings import AlphaConfig

DAYS = pd.bdate_range("2024-01-01", periods=60)
F = len(SCALE_FEATURES)


def frame_of(names=12, seed=0):
    """Shares that trade every day but for one day each of the first few."""
    rng = np.random.default_rng(seed)
    frames = {}
    for number in range(names):
        own = random_share(rng, DAYS)
        frames[f"S{number:02}"] = own.drop(own.index[20 + number]) if number < 4 else own
    return pd.concat(frames)


@pytest.fixture(scope="module")
def table():
    return BarTable.from_frame(frame_of())


@pytest.fixture(scope="module")
def windows(table):
    return windows_to_score(table, 12)


@pytest.fixture(scope="module")
def source(table):
    segments = {"train": (DAYS[0], DAYS[39]), "valid": (DAYS[40], DAYS[55])}
    return WindowDataset(table=table, segments=segments, lookback=12, horizon=2)


@pytest.fixture
def predictor(tiny_pair):
    tokenizer, net = tiny_pair
    return KronosPredictor(net, tokenizer, device="cpu")


def new_head(seed=0, width=8, **options):
    torch.manual_seed(seed)
    if options.get("attention"):
        options.setdefault("market", F)
    head = AlphaHead(width, F, 4, 8, 0.0, names=SCALE_FEATURES, **options).eval()
    if head.across is not None:  # as if it had learned
        torch.nn.init.normal_(head.across.out.weight)
    return head


def inputs(count=20, width=8, parts=1, seed=1):
    rng = torch.Generator().manual_seed(seed)
    return (
        torch.randn(count, parts * width, generator=rng),
        torch.randn(count, F, generator=rng),
        torch.randn(F, generator=rng),
    )


# Saved and loaded.


@settings(max_examples=30, deadline=None)
@given(
    linear_path=st.booleans(),
    attention=st.sampled_from([0, 1, 5]),
    outputs=st.integers(1, 4),
    seeds=st.integers(1, 3),
    bars=st.integers(1, 3),
    layers=st.lists(st.integers(1, 4), unique=True, max_size=2),
    dtype=st.sampled_from(["float32", "float16"]),
    extra=st.lists(st.text("ab$()/,- 1", min_size=1, max_size=9), max_size=3),
    neutral=st.sampled_from([0, 9, F]),
)
def test_every_head_scores_the_same_from_its_folder(
    tmp_path_factory, linear_path, attention, outputs, seeds, bars, layers, dtype, extra, neutral
):
    folder = tmp_path_factory.mktemp("head")
    names = (*SCALE_FEATURES, *extra)
    options = {
        "linear_path": linear_path,
        "attention": attention,
        "market": F if attention else 0,
        "outputs": outputs,
        "context": ContextConfig(bars, layers, dtype),
        "names": names,
        "neutral": neutral,
    }
    torch.manual_seed(3)
    heads = [AlphaHead(8, len(names), 4, 8, 0.1, **options) for _ in range(seeds)]
    head = AlphaEnsemble(heads) if seeds > 1 else heads[0]
    for weight in head.parameters():
        torch.nn.init.normal_(weight)
    for member in head.members:
        member.fit_market(torch.randn(30, F))
    head.save_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    again = AlphaHead.from_pretrained(folder, 8, names)
    assert again.config == head.config and again.names == names and again.reads == head.reads
    context, _, market = inputs(parts=head.config.context.parts)
    features = torch.randn(20, len(names))
    given = (context, features, market)
    assert torch.equal(again(*given), head.eval()(*given))


def test_a_head_without_options_is_saved_as_it_always_was(tmp_path):
    """Older versions read it, and theirs is read here."""
    new_head().save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    old = {"d_model": 8, "features": F, "context_width": 4, "hidden": 8, "dropout": 0.0}
    assert written == {**old, "names": list(SCALE_FEATURES)}
    assert set(new_head().state_dict()) == {
        f"{part}.{kind}" for part in ("narrow", "inner", "outer") for kind in ("weight", "bias")
    }
    assert AlphaHead.from_pretrained(tmp_path, 8).config.seeds == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": 0}, "seeds must be a whole number of at least 1"),
        ({"seeds": 10**6}, "seeds must be at most 100"),
        ({"attention": 10**6}, "attention must be at most 1024"),
        ({"attention": 4}, "market is 0 and attention 4"),
        (
            {"attention": 4, "market": 3, "hidden": 6},
            "hidden width that these divide, got hidden 6",
        ),
        ({"outputs": "two"}, "outputs must be a whole number"),
        ({"linear_path": 1}, "linear_path must be true or false"),
        ({"context": {"bar": 3}}, "context has no setting 'bar'; did you mean 'bars'"),
        ({"context": [3]}, "context must be a mapping"),
        ({"context": {"layers": [0]}}, "layers must be a list of blocks, each once, from 1"),
        ({"names": None}, "names must be a list of names"),
    ],
)
def test_a_config_that_cannot_be_is_refused(tmp_path, change, message):
    new_head().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        AlphaHead.from_pretrained(tmp_path, 8)


def test_other_features_are_refused_where_they_are_asked_for(tmp_path):
    new_head().save_pretrained(tmp_path, [*SCALE_FEATURES])
    assert AlphaHead.from_pretrained(tmp_path, 8, SCALE_FEATURES).names == SCALE_FEATURES
    with pytest.raises(CheckpointError, match="trained on other features"):
        AlphaHead.from_pretrained(tmp_path, 8, SCALE_FEATURES[::-1])


# Seeds.


def test_an_ensemble_is_the_mean_of_standardised_scores():
    heads = [new_head(seed) for seed in range(3)]
    with torch.no_grad():
        heads[1].outer.weight *= 100  # a member's unit decides nothing
        given = inputs()
        each = torch.stack([head(*given) for head in heads]).numpy()
        found = AlphaEnsemble(heads)(*given).numpy()
    standard = (each - each.mean(axis=1, keepdims=True)) / each.std(axis=1, keepdims=True)
    np.testing.assert_allclose(found, standard.mean(axis=0), rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="two or more heads of the same sizes"):
        AlphaEnsemble(heads[:1])
    with pytest.raises(ConfigError, match="two or more heads of the same sizes"):
        AlphaEnsemble([heads[0], new_head(linear_path=True)])


def fitted(predictor, source, **alpha):
    settings = StagesConfig(alpha={"epochs": 2, "hidden": 8, "context_width": 4, **alpha})
    return run_stages(settings, predictor, source)


def test_members_are_what_each_seed_gives_alone(predictor, source):
    together = fitted(predictor, source, seeds=2, seed=5)
    for number, member in enumerate(together.head.members):
        alone = fitted(predictor, source, seed=5 + number)
        for name, value in alone.head.state_dict().items():
            assert torch.equal(value, member.state_dict()[name]), name
        assert together.history[f"alpha_{number}"] == alone.history["alpha"]
    before, after = together.history["alpha"]
    assert (before["epoch"], after["epoch"]) == (0, 2)
    assert {"valid_loss", "valid_ic", "valid_rank_ic"} < after.keys()
    assert before["valid_loss"] != after["valid_loss"]


def test_a_head_with_other_options_is_not_trained_on(predictor, source):
    head = fitted(predictor, source, seeds=2).head
    own = {"epochs": 1, "seeds": 2, "hidden": 8, "context_width": 4}
    on = run_stages(StagesConfig(alpha=own), predictor, source, head=head)
    assert len(on.head.members) == 2
    for key, other in (
        ("seeds", 3),
        ("linear_path", True),
        ("attention", 4),
        ("hidden", 128),
        ("context_width", 0),
        ("dropout", 0.1),
        ("neutral", True),
    ):
        with pytest.raises(ConfigError, match=f"to train on has {key}"):
            run_stages(StagesConfig(alpha={**own, key: other}), predictor, source, head=head)


# The linear path.


def test_a_new_head_with_a_linear_path_is_linear_and_its_gate_learns():
    head = new_head(linear_path=True)
    context, features, _ = inputs()
    expected = head.direct(torch.cat([head.narrow(compared(context)), features], dim=1))[:, 0]
    torch.testing.assert_close(head(context, features), expected)
    ic_loss(head(context, features), torch.randn(20)).backward()
    assert head.hidden_gate.grad.abs() > 0
    with torch.no_grad():
        head.hidden_gate.fill_(1.0)
    assert not torch.allclose(head(context, features), expected)


# Horizons and extremes.


def test_labels_of_all_horizons_are_known_in_their_segment(source):
    """The purge is by the longest: of train's last 6 days none is learned from."""
    labels, ahead = labels_of(AlphaConfig(horizons=[5, 1, 2]), source)
    assert labels == [ReturnLabel(1, 1), ReturnLabel(1, 2), ReturnLabel(1, 5)]
    assert ahead == 6
    windows = source.labelled_windows("train", ahead)
    assert windows.times.max() == np.datetime64(DAYS[39 - 6])
    assert source.labelled_windows("train").times.max() == np.datetime64(DAYS[39 - 2])
    with pytest.raises(ConfigError, match=r"horizons \[2, 5\] lack the label's own, 1"):
        labels_of(AlphaConfig(horizons=[2, 5]), source)
    assert labels_of(AlphaConfig(), source) == ([ReturnLabel()], 2)


def test_no_target_of_any_horizon_is_a_return_past_its_segment(predictor, source, monkeypatch):
    """Bars after the segment's end are replaced, and nothing that is learned from changes."""
    seen = {}

    def keep(step, training, validation, config, **kwargs):
        seen.setdefault("parts", []).append((training, validation))
        raise KeyboardInterrupt

    monkeypatch.setattr("kronos_qlib.training.loop.train", keep)
    table = source.table
    for segment in ("train", "valid"):
        last = np.datetime64(source.segments[segment][1])
        values = table.values.copy()
        values[table.times > last] *= np.float32(1.7)
        changed = BarTable(values, table.places, table.calendar, table.instruments, table.offsets)
        seen.clear()
        for one in (source, replace(source, table=changed)):
            with pytest.raises(KeyboardInterrupt):
                fitted(predictor, one, horizons=[1, 5, 10], drop_extremes=0.1)
        before, after = (parts[segment == "valid"] for parts in seen["parts"])
        for name in ("target", "others", "features", "market"):
            np.testing.assert_array_equal(getattr(before, name), getattr(after, name))
        assert np.isfinite(before.others).any(axis=0).all()


def test_the_loss_of_several_horizons_is_their_mean_over_known_labels(windows, make_pair):
    labels = [ReturnLabel(1, bars) for bars in (2, 5)]
    contexts = np.random.default_rng(0).normal(size=(len(windows), 8)).astype(np.float32)
    segment = AlphaSegment.of(windows, ReturnLabel(), contexts, others=labels)
    head = new_head(outputs=3)
    step = AlphaStep(AlphaNet(head), make_pair(0)[0])
    # A day before one share's missing one, and one so late that the longest label is unknown.
    for place in (8, len(segment.days) - 1):
        day = segment.days[place]
        which = np.arange(day.start, day.stop)
        batch = segment.batch(which)
        scores = head.by_horizon(batch.context, batch.features, None)
        losses = []
        for column, target in enumerate(
            [segment.target[which], *segment.others[which].T.astype(np.float32)]
        ):
            known = np.isfinite(target)
            if known.sum() >= 5:
                losses.append(ic_loss(scores[known, column], torch.from_numpy(target[known])))
        assert float(step.losses(batch)["loss"].detach()) == pytest.approx(
            float(torch.stack(losses).mean().detach()), rel=1e-6
        )
        assert torch.equal(step.scores(batch), scores[:, 0])
    assert len(losses) == 1, "of the last day only the next return is known"
    assert np.isnan(segment.target[segment.days[8]]).any(), "a share does not trade"


def test_extremes_of_each_day_are_left_out_of_training_alone(windows):
    segment = AlphaSegment.of(windows, ReturnLabel(), others=[ReturnLabel(1, 3)])
    less = segment.without_extremes(0.2)
    assert segment.without_extremes(0.0) is segment
    assert len(less.days) == len(segment.days)
    for day in segment.days:
        for whole, left, returns in (
            (segment.target[day], less.target[day], segment.returns[day]),
            (segment.others[day][:, 0], less.others[day][:, 0], ReturnLabel(1, 3).of(windows)[day]),
        ):
            known = np.flatnonzero(np.isfinite(whole))
            order = known[np.argsort(returns[known])]
            many = int(0.2 * len(known))
            kept = order[many : len(order) - many] if many else order
            assert sorted(np.flatnonzero(np.isfinite(left))) == sorted(kept)
            np.testing.assert_array_equal(left[kept], whole[kept])
    few = segment.without_extremes(0.4)
    assert all(np.isfinite(few.target[day]).sum() >= 5 for day in few.days)


def test_contexts_of_a_day_are_compared_with_those_of_its_extremes_too(windows, make_pair):
    """Which names are extreme is known by their labels: a day is scored with all of them."""
    contexts = np.random.default_rng(0).normal(size=(len(windows), 8)).astype(np.float32)
    segment = AlphaSegment.of(windows, ReturnLabel(), contexts).without_extremes(0.2)
    config, head = AlphaConfig(drop_extremes=0.2), new_head()
    step = AlphaStep(AlphaNet(head), make_pair(0)[0])
    for which in list(segment.sampler(config).epoch(1))[:5]:
        day = next(day for day in segment.days if day.start == which[0])
        whole = torch.from_numpy(contexts[day]), torch.from_numpy(segment.features[day])
        target = torch.from_numpy(segment.target[day])
        known = torch.isfinite(target)
        assert 0 < int(known.sum()) < len(known)
        expected = ic_loss(head(*whole)[known], target[known])
        assert torch.equal(step.losses(segment.batch(which))["loss"], expected)
    few = replace(config, windows_per_day=6)
    assert all(len(which) == 6 for which in segment.sampler(few).epoch(1))


def test_days_that_keep_too_few_labels_are_said_to(predictor, source):
    with pytest.raises(TrainingError, match=r"known once drop_extremes 0.4 is left out; .* fewer"):
        fitted(predictor, source, drop_extremes=0.4)


def test_validation_keeps_its_extremes(predictor, source, monkeypatch):
    seen = []

    def keep(step, training, validation, config, **kwargs):
        seen.append((training, validation))
        raise KeyboardInterrupt

    monkeypatch.setattr("kronos_qlib.training.loop.train", keep)
    for share in (0.0, 0.1):
        with pytest.raises(KeyboardInterrupt):
            fitted(predictor, source, drop_extremes=share)
    (train, valid), (fewer, same) = seen
    np.testing.assert_array_equal(valid.target, same.target)
    assert np.isfinite(fewer.target).sum() < np.isfinite(train.target).sum()


# Attention across names.


def test_an_attention_begins_as_the_head_without_it():
    plain = new_head()
    torch.manual_seed(0)
    head = AlphaHead(8, F, 4, 8, 0.0, names=SCALE_FEATURES, attention=3, market=F).eval()
    given = inputs()
    torch.testing.assert_close(head(*given), plain(*given))


def test_a_score_depends_on_all_of_its_day_in_whatever_order_and_on_the_market():
    head, (context, features, market) = new_head(attention=3), inputs()
    scores = head(context, features, market)
    order = torch.randperm(20)
    shuffled = head(context[order], features[order], market)
    torch.testing.assert_close(shuffled, scores[order])
    other = features.clone()
    other[7] += 1
    moved = head(context, other, market) - scores
    assert (moved.abs() > 1e-6).all(), "another's features move every score"
    assert ((head(context, features, market + 1) - scores).abs() > 1e-7).any()
    parts = torch.cat(
        [head(context[:10], features[:10], market), head(context[10:], features[10:], market)]
    )
    assert not torch.allclose(parts, scores), "which is why a day is never scored in parts"


def test_what_an_attention_adds_differs_between_names():
    """It was one mean for all names: a constant, which no rank and no correlation notices."""
    torch.manual_seed(0)
    across = AcrossNames(64, 16, F)
    torch.nn.init.normal_(across.out.weight)
    x = torch.nn.functional.silu(0.6 * torch.randn(300, 64))
    with torch.no_grad():
        added = across(x, torch.zeros(F))
    assert added.std(dim=0).mean() > 0.1 * added.mean(dim=0).abs().mean()


def test_a_market_far_from_any_seen_is_held_at_three_deviations():
    head, (context, features, _) = new_head(attention=3), inputs()
    head.fit_market(torch.randn(50, F))
    far, farther = (torch.full((F,), size) for size in (1e3, 1e6))
    assert torch.equal(head(context, features, far), head(context, features, farther))


def test_five_thousand_names_attend_in_little_memory():
    """Every pair would be 25 million numbers a head: at most the landmarks' products are made."""
    head = AlphaHead(8, F, 4, 64, 0.0, names=SCALE_FEATURES, attention=16, market=F)
    given = inputs(5000)
    largest = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for one in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(one, torch.Tensor):
                    largest.append(one.numel())
            return out

    with Watch():
        head(*given).sum().backward()
    assert max(largest) <= 5000 * 64 * 4


def test_a_batch_of_an_attention_is_the_whole_day_and_its_loss_of_known_labels(windows, make_pair):
    contexts = np.random.default_rng(0).normal(size=(len(windows), 8)).astype(np.float32)
    segment = AlphaSegment.of(windows, ReturnLabel(), contexts).without_extremes(0.1)
    sizes = {day.start: day.stop - day.start for day in segment.days}
    batches = list(segment.sampler(AlphaConfig(attention=4)).epoch(1))
    assert {which[0]: len(which) for which in batches} == sizes
    assert any(np.isnan(segment.target[which]).any() for which in batches)
    step = AlphaStep(AlphaNet(new_head(attention=3)), make_pair(0)[0])
    for which in batches[:5]:
        batch = segment.batch(which)
        scores = step.scores(batch)
        known = torch.isfinite(batch.target)
        expected = ic_loss(scores[known], batch.target[known])
        assert torch.equal(step.losses(batch)["loss"], expected)


def test_a_day_is_scored_at_once_whatever_memory_contexts_are_read_in(
    predictor, windows, monkeypatch
):
    """Contexts in batches of a few windows, the head on the whole day: 12 names at once."""
    config = AlphaConfig(attention=4, hidden=8, context_width=4)
    head = make_head(config, predictor)
    torch.nn.init.normal_(head.across.out.weight)
    whole = scores_from_alpha(predictor, head, windows)
    sizes, reads = [], []
    forward, embed = AlphaHead.by_horizon, KronosPredictor._embed

    def counted(self, context, features, market, styles=None):
        sizes.append(len(features))
        return forward(self, context, features, market)

    def few(self, packed, bars, *args):
        reads.append(len(bars))
        return embed(self, packed, bars, *args)

    monkeypatch.setattr(AlphaHead, "by_horizon", counted)
    monkeypatch.setattr(KronosPredictor, "_embed", few)
    monkeypatch.setattr("kronos_qlib.inference.batching.GOOD_TOKENS", 36)
    again = scores_from_alpha(predictor, head, windows)
    assert sizes == [day.stop - day.start for day in windows.moments()]
    assert max(reads) <= 3 < max(sizes)
    # A product rounds by its shape and threads; in parts, a score would be another altogether.
    np.testing.assert_allclose(again, whole, rtol=1e-5, atol=1e-5)


def test_a_day_alone_has_the_scores_that_it_has_among_others(predictor, windows):
    head = make_head(AlphaConfig(attention=4, hidden=8, seeds=2), predictor)
    for member in head.members:
        torch.nn.init.normal_(member.across.out.weight)
    whole = scores_from_alpha(predictor, head, windows)
    for day in windows.moments()[::9]:
        alone = scores_from_alpha(predictor, head, windows.take(day))
        np.testing.assert_array_equal(alone, whole[day])


def test_the_markets_state_is_the_mean_of_what_a_window_lost(windows):
    features, market = day_inputs(windows)
    days = windows.moments()
    assert market.shape == (len(days), F) and features.shape == (len(windows), F)
    for number in (0, 7, len(days) - 1):
        raw = scale_features(windows.bars(days[number]))
        np.testing.assert_allclose(market[number], raw.mean(axis=0), rtol=1e-5, atol=1e-5)


def test_the_markets_scale_is_that_of_the_training_days(predictor, source):
    head = fitted(predictor, source, attention=4).head
    windows = source.labelled_windows("train")
    segment = AlphaSegment.of(windows, source.label)
    moments = windows.moments()
    kept = [number for number, day in enumerate(moments) if day in segment.days]
    market = day_inputs(windows)[1][kept].astype(np.float64)
    np.testing.assert_allclose(head.across.market_level, market.mean(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(head.across.market_spread, market.std(axis=0), rtol=1e-3, atol=1e-5)


# The backbone.


def test_tokens_made_beforehand_teach_the_same(windows, make_pair):
    config = AlphaConfig(backbone="whole", epochs=2)
    tokenizer, net = make_pair(0)
    segment = AlphaSegment.of(windows, ReturnLabel())
    coded = with_day_tokens(segment, tokenizer, None, 2, "cpu")
    assert coded.tokens is not None and coded.tokens[0].dtype == np.int16
    assert with_day_tokens(segment, tokenizer, None, 0, "cpu").tokens is None, "not worth it"
    judged = segment.to_judge_by(replace(config, validation_days=2))
    assert with_day_tokens(judged, tokenizer, None, 9, "cpu").tokens is None, "of 2 days alone"
    head = AlphaHead(16, F, 4, 8, 0.0)
    step = AlphaStep(AlphaNet(head, net), tokenizer)
    which = np.arange(segment.days[0].start, segment.days[0].stop)
    losses = [step.losses(one.batch(which))["loss"] for one in (segment, coded)]
    assert torch.equal(*losses)


@pytest.mark.parametrize("backbone", ["frozen", "whole"])
def test_random_weights_in_place_of_pretrained_ones(predictor, source, make_pair, backbone):
    before = {name: value.clone() for name, value in predictor.model.state_dict().items()}
    codes = {name: value.clone() for name, value in predictor.tokenizer.state_dict().items()}
    result = fitted(predictor, source, initial="random", backbone=backbone, epochs=1, seed=4)
    after = predictor.model.state_dict()
    name = "transformer.0.ffn.w1.weight"
    assert not torch.equal(after[name], before[name])
    assert "predictor" in result.weights, "a saved model needs them"
    for key, value in predictor.tokenizer.state_dict().items():
        assert torch.equal(value, codes[key])
    if backbone == "frozen":
        tokenizer, net = make_pair(0)
        again = KronosPredictor(net, tokenizer, device="cpu")
        other = fitted(again, source, initial="random", epochs=1, seed=4)
        assert torch.equal(net.state_dict()[name], after[name]), "the seed decides them"
        assert other.history == result.history
        on = run_stages(
            StagesConfig(alpha={"initial": "random", "seed": 9, "hidden": 8, "context_width": 4}),
            again,
            source,
            head=other.head,
        )
        assert torch.equal(net.state_dict()[name], after[name]), "training on begins with its own"
        assert on.head is other.head


# Settings.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": 0}, "seeds must be a whole number of at least 1"),
        ({"seeds": 2, "backbone": "lora"}, "would train as many backbones, and a model has one"),
        ({"linear_path": "yes"}, "linear_path must be true or false"),
        ({"horizons": []}, "horizons must be a list of bars, each once, from 1"),
        ({"horizons": [1, 1]}, "horizons must be a list of bars, each once, from 1"),
        ({"horizons": 5}, "horizons must be a list of bars"),
        ({"horizons": [0, 1]}, "horizons must be a list of bars"),
        ({"horizons": [True]}, "horizons must be a list of bars"),
        ({"drop_extremes": 0.5}, r"drop_extremes must lie in \[0, 0.4\], got 0.5"),
        ({"drop_extremes": -0.1}, r"drop_extremes must lie in \[0, 0.4\]"),
        ({"drop_extremes": "few"}, "drop_extremes must be a number"),
        ({"context": {"bars": 0}}, "context: bars must be a whole number of at least 1"),
        ({"context": {"dtype": "int8"}}, "dtype is one of float32, float16"),
        ({"context": {"layer": [1]}}, "context has no setting 'layer'; did you mean 'layers'"),
        ({"context": 5}, "context must be a mapping"),
        ({"context": {"bars": 2}, "context_width": 0}, "there is nothing for `context` to say"),
        ({"attention": -1}, "attention must be a whole number of at least 0"),
        ({"attention": 8, "hidden": 10}, "hidden width that these divide, got hidden 10"),
        ({"attention": 8, "windows_per_day": 20}, "leave windows_per_day out"),
        ({"initial": "zeros"}, "initial is one of pretrained, random"),
        ({"initial": "random", "context_width": 0}, "no head would read the new ones"),
        ({"backbone": "whole", "context": {"dtype": "float16"}}, "float32: leave dtype out"),
    ],
)
def test_options_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        AlphaConfig(**settings)


def test_options_that_do_not_fit_bars_or_stages_are_refused(
    predictor, source, make_pair, monkeypatch
):
    with pytest.raises(ConfigError, match=r"context.bars is 40, a window has 12: lower it"):
        fitted(predictor, source, context={"bars": 40})
    with pytest.raises(ConfigError, match=r"names \[5\], and the predictor has 2 blocks"):
        fitted(predictor, source, context={"layers": [5]})
    tokenizer, net = make_pair(0)
    narrow = KronosPredictor(net, tokenizer, device="cpu", max_context=6)
    with pytest.raises(ConfigError, match=r"context.bars is 10, and the network attends to 6"):
        fitted(narrow, source, context={"bars": 10})
    with pytest.raises(ConfigError, match=r"a lookback of 12 bars .* attends to 6; shorten it"):
        fitted(narrow, source, backbone="whole")
    # Before another stage is trained for hours.
    monkeypatch.setattr("kronos_qlib.pipeline.stages._train_tokens", lambda *_: pytest.fail("late"))
    with pytest.raises(ConfigError, match=r"names \[5\], and the predictor has 2 blocks"):
        run_stages(StagesConfig(alpha={"context": {"layers": [5]}}, predictor={}), narrow, source)
    with pytest.raises(ConfigError, match=r"would throw away what training.predictor learned"):
        StagesConfig(alpha={"initial": "random"}, predictor={})
    with pytest.raises(ConfigError, match="an AlphaHead is one network, got seeds=2"):
        AlphaHead(8, F, 4, 8, 0.0, seeds=2)


def test_a_head_is_too_large_to_be_built():
    with pytest.raises(ConfigError, match=r"make a head of .* parameters, at most"):
        HeadConfig(60_000, 4, 60_000, 8, 0.0)


def test_a_small_network_takes_few_threads_and_gives_them_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with threads_for(1000):
            assert torch.get_num_threads() == 1
        with threads_for(2**22), pytest.raises(KeyError):
            assert torch.get_num_threads() == 2
            raise KeyError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
