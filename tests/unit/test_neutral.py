"""Scores and targets from which a day's scale features are explained away."""

from __future__ import annotations

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
from kronos_qlib.data.windows.scale_features import SCALE_FEATURES
from kronos_qlib.errors import CheckpointError, ConfigError, TrainingError
from kronos_qlib.inference.predictor import KronosPredictor
from kronos_qlib.model.alpha_head import (
    AlphaEnsemble,
    AlphaHead,
    compared,
    neutralised,
)
from kronos_qlib.model.sizes import GRUConfig, fewest_names
from kronos_qlib.pipeline.contributions import contributions_of_head
from kronos_qlib.pipeline.head_inputs import HeadInputs
from kronos_qlib.pipeline.scoring import scores_from_alpha
from kronos_qlib.pipeline.stages import make_gru, make_head, new_head
from kronos_qlib.training.alpha import AlphaNet, AlphaSegment, AlphaStep, check_days
from kronos_qlib.training.loop import train
from kronos_qlib.training.stage_settings import AlphaConfig

F = len(SCALE_FEATURES)
LEAST = fewest_names(F)
NAMES, DAYS, LOOKBACK = 90, pd.bdate_range("2024-01-01", periods=50), 12


def uncorrelated(scores, features) -> float:
    """The largest correlation of scores (B,) with a column of features (B, F) that varies."""
    both = np.c_[np.asarray(scores, dtype=np.float64), np.asarray(features, dtype=np.float64)]
    both = both[:, both.std(axis=0) > 0]
    return float(np.abs(np.corrcoef(both.T)[0, 1:]).max())


def a_day(names=NAMES, width=8, seed=0):
    rng = torch.Generator().manual_seed(seed)
    features = torch.randn(names, F, generator=rng)
    features = (features - features.mean(dim=0)) / features.std(dim=0)
    return torch.randn(names, width, generator=rng), features, torch.randn(F, generator=rng)


@given(seed=st.integers(0, 50), names=st.integers(10, 200), features=st.integers(1, 12))
def test_what_features_explain_is_gone_and_what_they_do_not_stays(seed, names, features):
    rng = np.random.default_rng(seed)
    styles = torch.from_numpy(rng.normal(size=(names, features)))
    noise = torch.from_numpy(rng.normal(size=(names, 2)))
    found = neutralised(noise, styles)
    if names < fewest_names(features):
        assert not found.any(), "nothing is left of so few names"
        return
    assert abs(float(found.mean())) < 0.01
    assert uncorrelated(found[:, 0], styles) < 1e-4
    moved = noise + styles @ torch.from_numpy(rng.normal(size=(features, 2))) + 7
    torch.testing.assert_close(neutralised(moved, styles), found, rtol=0, atol=1e-4)


def test_features_that_say_the_same_and_narrow_types_break_nothing():
    scores, features, _ = a_day(width=1)
    features[:, 1] = features[:, 0]
    features[:, 2] = 0
    found = neutralised(scores, features)
    assert torch.isfinite(found).all() and uncorrelated(found[:, 0], features[:, 3:]) < 0.01
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(neutralised(scores, features), found)


@settings(max_examples=20, deadline=None)
@given(
    seeds=st.integers(1, 3),
    attention=st.sampled_from([0, 4]),
    linear_path=st.booleans(),
    outputs=st.integers(1, 3),
    width=st.sampled_from([0, 4]),
)
def test_scores_of_a_neutral_head_hold_no_style(seeds, attention, linear_path, outputs, width):
    torch.manual_seed(seeds)
    options = {
        "linear_path": linear_path, "attention": attention, "outputs": outputs, "neutral": F,
        "market": F if attention else 0, "names": SCALE_FEATURES,
    }  # fmt: skip
    heads = [AlphaHead(8, F, width, 8, 0.0, **options).eval() for _ in range(seeds)]
    head = AlphaEnsemble(heads) if seeds > 1 else heads[0]
    given_ = a_day()
    with torch.no_grad():
        scores = head(*given_)
        if linear_path and not width:  # a new one is linear in the features
            assert not scores.any(), "rounding is no score"
            return
        assert uncorrelated(scores, given_[1]) < 0.01
        assert float(scores.std()) > 1e-4, "scores are no constant"
        if width:  # each knows the others: names that are left out move the rest
            few = [part[:LEAST] for part in given_[:2]]
            assert not torch.allclose(head(*few, given_[2]), scores[:LEAST])
        tiny = [part[: LEAST - 1] for part in given_[:2]]
        assert not head(*tiny, given_[2]).any()


def test_a_neutral_head_is_saved_as_one(tmp_path):
    torch.manual_seed(0)
    head = AlphaHead(8, F, 4, 8, 0.0, names=SCALE_FEATURES, neutral=F).eval()
    head.save_pretrained(tmp_path)
    again = AlphaHead.from_pretrained(tmp_path, 8, SCALE_FEATURES)
    assert again.config == head.config and again.config.neutral == F
    context, features, _ = a_day()
    assert torch.equal(again(context, features), head(context, features))
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace(f'"neutral": {F}', f'"neutral": {F + 1}'))
    with pytest.raises(CheckpointError, match=f"neutral must be at most {F}"):
        AlphaHead.from_pretrained(tmp_path, 8)


def test_contributions_of_a_neutral_head_are_of_the_day_as_it_is():
    """By finite differences, with what styles explain held."""
    torch.manual_seed(2)
    head = AlphaHead(8, F, 4, 8, 0.0, names=SCALE_FEATURES, neutral=F, linear_path=True).eval()
    context, features, market = a_day()
    inputs = HeadInputs(context.numpy(), features.numpy(), SCALE_FEATURES, market.numpy())
    names = [f"S{place}" for place in range(NAMES)]
    found = contributions_of_head(head, inputs, names, "S5")
    with torch.no_grad():
        assert found.score == pytest.approx(float(head(context, features)[5]), abs=1e-6)
    # A new head with a linear path is linear: its contributions are the whole score.
    assert found.rest == pytest.approx(0, abs=1e-4)
    torch.nn.init.constant_(head.hidden_gate, 0.7)
    found = contributions_of_head(head, inputs, names, "S5").table
    score = head.double().with_day_held(context.double(), features.double(), None)
    moved, step = compared(context.double()), 1e-4
    for column in (0, 7):
        by = []
        for sign in (1, -1):
            other = features.double().clone()
            other[5, column] += sign * step
            with torch.no_grad():
                by.append(float(score(moved, other, None)[5]))
        slope = (by[0] - by[1]) / (2 * step)
        distance = float(features[5, column] - features[:, column].mean())
        assert found.loc[SCALE_FEATURES[column], "contribution"] == pytest.approx(
            slope * distance, abs=1e-4
        )


def test_a_day_of_too_few_names_has_contributions_of_0():
    torch.manual_seed(2)
    options = {"names": SCALE_FEATURES, "neutral": F}
    heads = [AlphaHead(8, F, 4, 8, 0.0, **options).eval() for _ in range(2)]
    context, features, market = a_day(LEAST - 1)
    inputs = HeadInputs(context.numpy(), features.numpy(), SCALE_FEATURES, market.numpy())
    names = [f"S{place}" for place in range(LEAST - 1)]
    for head in (heads[0], AlphaEnsemble(heads)):
        found = contributions_of_head(head, inputs, names, "S5")
        assert found.score == 0 and not found.table["contribution"].any()


def test_scores_can_be_neutral_to_other_features_than_those_that_are_read():
    """Of a head that reads no feature, shuffled ones move nothing: it stays neutral to the true."""
    torch.manual_seed(2)
    head = AlphaHead(8, F, 4, 8, 0.0, names=SCALE_FEATURES, neutral=F).eval()
    with torch.no_grad():
        head.inner.weight[:, 4:] = 0
        context, features, _ = a_day()
        shuffled = features[torch.randperm(NAMES)]
        before = head(context, features)
        torch.testing.assert_close(head(context, shuffled, None, features), before)
        assert not torch.allclose(head(context, shuffled), before, atol=1e-4)
        both = AlphaEnsemble([head, head])
        torch.testing.assert_close(
            both(context, shuffled, None, features), both(context, features), rtol=0, atol=1e-5
        )


# Learned.


@pytest.fixture(scope="module")
def windows():
    rng = np.random.default_rng(0)
    frames = {f"S{number}": random_share(rng, DAYS) for number in range(NAMES)}
    frames["S0"] = frames["S0"].iloc[:20]
    return windows_to_score(BarTable.from_frame(pd.concat(frames)), LOOKBACK)


def planted(windows, size, seed=0):
    """A segment whose label is a style's luck of the day, and `size` of the first context."""
    rng = np.random.default_rng(seed)
    segment = AlphaSegment.of(windows, ReturnLabel(), neutral=True)
    contexts = rng.normal(size=(len(windows), 6)).astype(np.float32)
    luck = rng.normal(size=(len(segment.days) + 30, F))
    returns = np.full(len(windows), np.nan, dtype=np.float32)
    for number, day in enumerate(segment.days):
        styles = segment.features[day] @ luck[number]
        returns[day] = styles + size * contexts[day, 0] + rng.normal(size=day.stop - day.start)

    class Planted(ReturnLabel):
        def of(self, _):
            return returns

    return AlphaSegment.of(windows, Planted(), contexts, neutral=True), contexts


def test_targets_are_what_styles_leave_and_small_days_are_left_out(windows):
    plain = AlphaSegment.of(windows, ReturnLabel())
    segment = AlphaSegment.of(windows, ReturnLabel(), others=[ReturnLabel(1, 3)], neutral=True)
    for day in segment.days[:30:7]:
        for target in (segment.target[day], segment.others[day, 0]):
            known = np.isfinite(target)
            assert uncorrelated(target[known], segment.features[day][known]) < 0.02
            assert target[known].std() == pytest.approx(1, abs=1e-3)
    assert uncorrelated(plain.target[plain.days[3]], plain.features[plain.days[3]]) > 0.1
    few = windows.take(np.flatnonzero(windows.table.instrument_of(windows.ends[:]) < LEAST - 1))
    small = AlphaSegment.of(few, ReturnLabel(), neutral=True)
    assert AlphaSegment.of(few, ReturnLabel()).days and not small.days
    with pytest.raises(TrainingError, match=f"no day with {LEAST} windows .* a neutral head takes"):
        check_days(small, "train")


@pytest.mark.parametrize(("size", "least", "most"), [(0.5, 4.0, 99.0), (0.0, -3.0, 3.0)])
def test_a_neutral_head_finds_what_styles_hide_and_nothing_in_noise(windows, size, least, most):
    segment, _ = planted(windows, size)
    learned, judged = replace(segment, days=segment.days[:20]), segment
    judged = replace(segment, days=segment.days[22:])
    config = AlphaConfig(neutral=True, epochs=6, hidden=8, context_width=4, learning_rate=5e-3)
    step = AlphaStep(AlphaNet(new_head(config, 6)), None)
    train(step, learned, replace(segment, days=segment.days[20:22]), config)
    daily = []
    for day in judged.days:
        batch = judged.day_batch(np.arange(day.start, day.stop))
        with torch.no_grad():
            scores = step.scores(batch).numpy()
        known = np.isfinite(judged.returns[day])
        assert uncorrelated(scores, judged.features[day]) < 0.02
        daily.append(np.corrcoef(scores[known], judged.target[day][known])[0, 1])
    t = np.mean(daily) / np.std(daily) * len(daily) ** 0.5
    assert least < t < most


def test_days_of_too_few_names_are_scored_0_and_said_to_be(windows, tiny_pair, caplog):
    tokenizer, net = tiny_pair
    predictor = KronosPredictor(net, tokenizer, device="cpu")
    head = make_head(AlphaConfig(neutral=True, hidden=8, context_width=4), predictor)
    few = windows.take(np.flatnonzero(windows.table.instrument_of(windows.ends[:]) < 5))
    days = few.moments()
    few = few.take(np.arange(days[2].stop))
    assert not scores_from_alpha(predictor, head, few).any()
    assert f"of 3 times there are fewer than the {LEAST} names" in caplog.text
    caplog.clear()
    whole = windows.take(np.arange(windows.moments()[0].stop))
    assert scores_from_alpha(predictor, head, whole).std() > 0 and not caplog.text


def test_extremes_are_dropped_from_days_that_keep_enough(windows):
    segment = AlphaSegment.of(windows, ReturnLabel(), neutral=True)
    assert segment.without_extremes(0.1).days
    assert not segment.without_extremes(0.15).days, "of 90 names 64 would be left"
    config = AlphaConfig(neutral=True, windows_per_day=LEAST, drop_extremes=0.1)
    left = segment.without_extremes(0.1)
    step = AlphaStep(AlphaNet(new_head(replace(config, context_width=0), 6)), None)
    left = replace(left, contexts=np.zeros((len(windows), 0), dtype=np.float32))
    for which in left.sampler(config).epoch(1):
        step.losses(left.batch(which))["loss"].backward()


def test_a_label_that_a_feature_says_leaves_nothing(windows):
    segment = AlphaSegment.of(windows, ReturnLabel(), neutral=True)

    class Size(ReturnLabel):
        def of(self, _):
            return segment.features[:, 0].copy()

    assert not np.nan_to_num(AlphaSegment.of(windows, Size(), neutral=True).target).any()


def test_a_gru_can_be_neutral_too(windows):
    config = AlphaConfig(neutral=True, hidden=8)
    step = AlphaStep(make_gru(config, GRUConfig(hidden=8)), None)
    segment = AlphaSegment.of(windows, ReturnLabel(), neutral=True)
    batch = segment.batch(np.arange(segment.days[2].start, segment.days[2].stop))
    with torch.no_grad():
        assert uncorrelated(step.scores(batch), batch.features) < 0.02
    step.losses(batch)["loss"].backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"windows_per_day": LEAST - 1}, f"too few to be neutral to {F} scale features"),
        ({"neutral": 1}, "neutral must be true or false"),
        ({"linear_path": True, "context_width": 0}, "alone is what neutral takes away"),
    ],
)
def test_what_cannot_be_neutral_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        AlphaConfig(**{"neutral": True, **change})
