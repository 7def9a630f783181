"""The alpha head: its features, labels and losses by hand, and whole days as batches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr

from kronos_qlib.data.windows.bar_table import BarTable
from kronos_qlib.data.windows.find import windows_to_score
from kronos_qlib.data.windows.label import ReturnLabel
from kronos_qlib.data.windows.scale_features import (
    SCALE_FEATURES,
    scale_features,
    standardised_over_day,
)
from kronos_qlib.errors import BarDataError, ConfigError, TrainingError
from kronos_qlib.model.alpha_head import AlphaHead
from kronos_qlib.schema import BAR_COLUMNS
from kronos_qlib.training import alpha, losses
from kronos_qlib.training.alpha import (
    ALPHA_LOSSES,
    AlphaNet,
    AlphaSegment,
    AlphaStep,
    check_days,
    correlations,
    day_features,
)
from kronos_qlib.training.loop import train
from kronos_qlib.training.stage_settings import AlphaConfig

DAYS = pd.bdate_range("2024-01-01", periods=60)
NAMES = [f"S{number}" for number in range(12)]


@pytest.fixture(scope="module")
def frame():
    """Twelve shares with a day missing here and there."""
    rng = np.random.default_rng(0)
    frames = {}
    for number, name in enumerate(NAMES):
        close = 10 * np.exp(np.cumsum(rng.normal(0, 0.02, len(DAYS))))
        opened = close * np.exp(rng.normal(0, 0.01, len(DAYS)))
        high = np.maximum(opened, close) * 1.01
        low = np.minimum(opened, close) * 0.99
        volume = rng.uniform(1e4, 1e5, len(DAYS))
        bars = np.stack([opened, high, low, close, volume, volume * close], axis=1)
        own = pd.DataFrame(bars, index=DAYS, columns=list(BAR_COLUMNS))
        frames[name] = own.drop(own.index[20 + number]) if number % 3 == 0 else own
    return pd.concat(frames)


@pytest.fixture(scope="module")
def windows(frame):
    return windows_to_score(BarTable.from_frame(frame), 12)


def test_the_label_is_qlibs_return_from_tomorrows_close(frame, windows):
    """Ref($close, -2) / Ref($close, -1) - 1 counts the exchange's days, suspended ones too."""
    wide = frame["close"].unstack(0)
    for delay, bars in ((1, 1), (0, 1), (1, 5), (2, 3)):
        label = ReturnLabel(delay, bars)
        expected = (wide.shift(-delay - bars) / wide.shift(-delay) - 1).stack(future_stack=True)
        found = pd.Series(label.of(windows), index=windows.index)
        np.testing.assert_allclose(found, expected.reindex(found.index), rtol=1e-5, atol=1e-6)
        assert label.ahead == delay + bars
        assert found.isna().sum() > len(NAMES) * label.ahead - 1
    with pytest.raises(ConfigError, match="delay >= 0 and bars >= 1"):
        ReturnLabel(1, 0)


def test_features_say_what_pandas_says(frame, windows):
    found = dict(zip(SCALE_FEATURES, scale_features(windows.bars(slice(None))).T, strict=True))
    for place in (0, 100, len(windows) - 1):
        day, name = windows.index[place]
        own = frame.loc[name].loc[:day].tail(12)
        moves = np.log(own["close"]).diff().dropna()
        amount = np.log1p(own["amount"])
        lows, highs = own["low"].tail(5).min(), own["high"].tail(5).max()
        expected = {
            "amount": np.log1p(own["amount"].mean()),
            "return_5": np.log(own["close"].iloc[-1] / own["close"].iloc[-6]),
            "return_60": np.log(own["close"].iloc[-1] / own["close"].iloc[0]),
            "volatility_5": np.log(moves.tail(5).std(ddof=0) + 1e-6),
            "range_5": np.log(own["high"] / own["low"]).tail(5).mean(),
            "place_5": np.log(own["close"].iloc[-1] / lows) / (np.log(highs / lows) + 1e-6),
            "body_1": np.log(own["close"].iloc[-1] / own["open"].iloc[-1]),
            "amount_5": amount.tail(5).mean() - amount.mean(),
            "agreement_10": np.corrcoef(moves.tail(10), amount.diff().tail(10))[0, 1],
        }
        for key, value in expected.items():
            assert found[key][place] == pytest.approx(value, rel=1e-4, abs=1e-5), key


def test_bars_without_a_logarithm_are_named(frame):
    """One such window would make the ranks of its whole day no number."""
    for column, value in (("close", 0.0), ("amount", -2.0)):
        broken = frame.copy()
        broken.loc[("S1", DAYS[30]), column] = value
        windows = windows_to_score(BarTable.from_frame(broken, invalid="keep"), 12)
        with pytest.raises(BarDataError, match=rf"S1 at {DAYS[30]:%Y-%m-%d}.*1 such windows"):
            day_features(windows)


def test_a_later_split_changes_no_feature(frame, windows):
    """Forward-adjusted prices of a share that will split are low: a level would foretell it."""
    adjusted = frame.copy()
    own = adjusted.index.get_level_values(0) == "S1"
    adjusted.loc[own, list(BAR_COLUMNS[:4])] *= 0.25
    adjusted.loc[own, "volume"] *= 4.0
    again = windows_to_score(BarTable.from_frame(adjusted), 12)
    before, after = (scale_features(one.bars(slice(None))) for one in (windows, again))
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("error")
def test_two_bars_without_trade_have_features(frame):
    """The shortest window, nothing moved and nothing traded."""
    flat = frame.loc[NAMES[:3]].copy()
    flat[list(BAR_COLUMNS[:4])] = 5.0
    flat[["volume", "amount"]] = 0.0
    windows = windows_to_score(BarTable.from_frame(flat), 2)
    assert np.isfinite(scale_features(windows.bars(slice(None)))).all()
    assert (day_features(windows) == 0).all()


def test_what_is_alike_for_all_compares_to_nothing():
    same = np.column_stack([np.full(9, 3.0), np.arange(9.0) ** 3]).astype(np.float32)
    over = standardised_over_day(same)
    assert (over[:, 0] == 0).all()
    assert over[:, 1].mean() == pytest.approx(0, abs=1e-6)
    assert np.diff(over[:, 1]) == pytest.approx(np.sqrt(12) / 10, rel=1e-5)
    assert (standardised_over_day(same[:1]) == 0).all(), "a day of one share"


def test_losses_by_hand():
    target = torch.tensor([1.0, 0.0, -1.0])
    right, wrong = target * 7 + 3, -target
    assert float(ALPHA_LOSSES["ic"](right, target)) == pytest.approx(0, abs=1e-6)
    assert float(ALPHA_LOSSES["ic"](wrong, target)) == pytest.approx(2, abs=1e-6)
    assert float(ALPHA_LOSSES["mse"](right, target)) == pytest.approx((81 + 9 + 9) / 3)
    surprise = {gap: np.log1p(np.exp(-gap)) for gap in (1.0, 2.0)}  # two pairs at 1, one at 2
    by_hand = (2 * 1 * surprise[1.0] + 2 * surprise[2.0]) / 4
    assert float(ALPHA_LOSSES["rank"](target, target)) == pytest.approx(by_hand, rel=1e-6)
    assert ALPHA_LOSSES["rank"](right, target) < ALPHA_LOSSES["rank"](wrong, target)


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 41])
def test_the_rank_loss_counts_every_pair_once_whatever_its_blocks(count):
    """Ties among them, and more or fewer windows than blocks."""
    rng = torch.Generator().manual_seed(count)
    scores = torch.randn(count, generator=rng, requires_grad=True)
    target = torch.randint(5, (count,), generator=rng).float()
    weight = (target[:, None] - target[None, :]).clamp_min(0)
    surprise = torch.nn.functional.softplus(scores[None, :] - scores[:, None])
    expected = (surprise * weight).sum() / weight.sum().clamp_min(1e-8)
    found = ALPHA_LOSSES["rank"](scores, target)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(loss, scores)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_a_flat_score_has_no_correlation_and_a_gradient_that_is_a_number():
    scores = torch.zeros(5, requires_grad=True)
    ALPHA_LOSSES["ic"](scores, torch.arange(5.0)).backward()
    assert torch.isfinite(scores.grad).all()
    flat = np.zeros(5, np.float32)
    assert correlations(flat, np.arange(5, dtype=np.float32)) == (0.0, 0.0)


def test_a_batch_is_a_whole_day_with_known_labels(windows):
    segment = AlphaSegment.of(windows, ReturnLabel(), np.zeros((len(windows), 3), np.float32))
    assert len(segment.days) == len(windows.moments()) - 2, "the last two days know no label"
    seen = []
    for which in segment.sampler(AlphaConfig()).epoch(1):
        assert windows.take(which).index.get_level_values(0).nunique() == 1
        assert np.isfinite(segment.returns[which]).all()
        seen += which.tolist()
    assert sorted(seen) == np.flatnonzero(np.isfinite(segment.returns)).tolist()
    few = segment.sampler(AlphaConfig(windows_per_day=6))
    first, second = ([which.tolist() for which in few.epoch(number)] for number in (1, 2))
    assert {len(which) for which in first} == {6}
    assert first != second
    assert [which.tolist() for which in few.epoch(1, start=5)] == first[5:]


def learnable(windows, noise):
    """Contexts whose third column foretells the label, as far as the noise lets it."""
    rng = np.random.default_rng(1)
    returns = ReturnLabel().of(windows)
    contexts = rng.normal(size=(len(windows), 8)).astype(np.float32)
    contexts[:, 2] = np.nan_to_num(returns / np.nanstd(returns)) + noise * contexts[:, 2]
    return contexts


@pytest.mark.parametrize("loss", ["ic", "mse", "rank"])
def test_a_head_finds_what_there_is_and_the_best_epoch_is_kept(windows, make_pair, loss):
    contexts = learnable(windows, 0.5)
    days = windows.moments()
    cut = days[30].start
    segments = [
        AlphaSegment.of(windows.take(part), ReturnLabel(), contexts[part])
        for part in (slice(0, cut), slice(cut, len(windows)))
    ]
    config = AlphaConfig(loss=loss, epochs=12, dropout=0.0, learning_rate=1e-2, hidden=8)
    torch.manual_seed(0)
    head = AlphaHead(8, len(SCALE_FEATURES), 4, 8, 0.0)
    step = AlphaStep(AlphaNet(head), make_pair(0)[0], ALPHA_LOSSES[loss])
    report = train(step, *segments, config)
    best = report.history[report.best_epoch]
    assert best["valid_rank_ic"] == max(row["valid_rank_ic"] for row in report.history)
    assert best["valid_rank_ic"] > 0.4
    assert step.validate(segments[1], config, "cpu")["valid_rank_ic"] == best["valid_rank_ic"]


def test_the_rank_ic_is_scipys_mean_over_days(windows, make_pair):
    contexts = learnable(windows, 1.0)
    segment = AlphaSegment.of(windows, ReturnLabel(), contexts)
    torch.manual_seed(3)
    head = AlphaHead(8, len(SCALE_FEATURES), 2, 4, 0.5)
    step = AlphaStep(AlphaNet(head), make_pair(0)[0])
    found = step.validate(segment, AlphaConfig(), "cpu")["valid_rank_ic"]
    by_day = []
    for day in segment.days:
        batch = segment.batch(np.arange(day.start, day.stop))
        frame = pd.DataFrame(
            {"s": step.scores(batch).detach().numpy(), "r": segment.returns[day]}
        ).dropna()
        by_day.append(spearmanr(frame["s"], frame["r"])[0])
    assert found == pytest.approx(np.mean(by_day), rel=1e-6)


def test_a_whole_backbone_learns_with_its_head(windows, make_pair):
    """Gradients reach the network, and a window's context is the one after its last bar."""
    tokenizer, net = make_pair(0)
    short = windows_to_score(windows.table, 12, min_bars=6)
    segment = AlphaSegment.of(short, ReturnLabel())
    head = AlphaHead(16, len(SCALE_FEATURES), 4, 8, 0.0)
    step = AlphaStep(AlphaNet(head, net), tokenizer)
    [which] = [np.arange(segment.days[0].start, segment.days[0].stop)]
    assert short.lengths[which].max() < 12, "the first day's windows are short"
    batch = segment.batch(which, out=segment.memory(len(which)))
    context = step._read(batch)
    for row, window in enumerate(which):
        alone = segment.batch(np.array([window]))
        assert torch.allclose(step._read(alone)[0], context[row], atol=1e-5)
        ids = tokenizer.encode(alone.z[:, : int(alone.lengths[0])])
        _, read = net.decode_s1(*ids, alone.stamps[:, : int(alone.lengths[0])])
        assert torch.allclose(read[0, -1], context[row], atol=1e-5)
    step.losses(batch)["loss"].backward()
    assert any(weight.grad.abs().sum() > 0 for weight in net.transformer.parameters())


def test_a_backbone_learns_under_other_dates_and_is_judged_under_the_true_ones(windows, make_pair):
    """What the market did on a day could be learned from its date."""
    segment = AlphaSegment.of(windows, ReturnLabel())
    tokenizer, net = make_pair(0)
    head = AlphaHead(16, len(SCALE_FEATURES), 4, 8, 0.0)
    plain = AlphaStep(AlphaNet(head, net.train()), tokenizer)
    step = replace(plain, shift_dates=True)
    which = np.arange(segment.days[0].start, segment.days[0].stop)
    for batch in (segment.batch(which), replace(segment, span=3).batch(which)):
        found = []
        for seed in (0, 1, 1):
            torch.manual_seed(seed)
            found.append(step.losses(batch)["loss"].item())
        assert found[0] != found[1] == found[2]
        assert plain.losses(batch)["loss"].item() == plain.losses(batch)["loss"].item()
    assert step.validate(segment, AlphaConfig(), "cpu") == plain.validate(
        segment, AlphaConfig(), "cpu"
    )


def test_a_day_read_in_pieces_learns_as_one_that_keeps_everything(windows, make_pair, monkeypatch):
    """What is read twice has the same dropout twice, and takes no random numbers from later."""
    segment = AlphaSegment.of(windows, ReturnLabel())
    batch = segment.batch(np.arange(segment.days[0].start, segment.days[0].stop))
    monkeypatch.setattr(alpha, "CHUNK_VALUES", 1)
    read_twice, pieces = losses.checkpoint, []

    def gradients(reader):
        monkeypatch.setattr(losses, "checkpoint", reader)
        tokenizer, net = make_pair(0, dropout=0.3)
        torch.manual_seed(1)
        head = AlphaHead(16, len(SCALE_FEATURES), 4, 8, 0.0)
        step = AlphaStep(AlphaNet(head, net.train()), tokenizer)
        torch.manual_seed(5)
        loss = step.losses(batch)["loss"]
        before = torch.get_rng_state()
        loss.backward()
        assert torch.equal(torch.get_rng_state(), before)
        return [weight.grad for weight in net.transformer.parameters()]

    def read_once(read, *inputs, use_reentrant):
        pieces.append(len(inputs[0]))
        return read(*inputs)

    twice, once = gradients(read_twice), gradients(read_once)
    assert len(pieces) > 1
    for one, other in zip(twice, once, strict=True):
        assert torch.equal(one, other)


def test_a_segment_without_a_cross_section_is_refused(frame):
    few = BarTable.from_frame(frame.loc[NAMES[:3]])
    segment = AlphaSegment.of(windows_to_score(few, 12), ReturnLabel())
    with pytest.raises(TrainingError, match="no day with 5 windows whose label is known"):
        check_days(segment, "train")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "sharpe"}, "loss is one of ic, mse, rank"),
        ({"backbone": "lora2"}, "backbone is one of"),
        ({"metric": "loss_s1"}, "metric is one of"),
        ({"backbone": "whole", "context_width": 0}, "would learn nothing"),
        ({"shift_dates": True}, "a frozen one reads true dates"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\)"),
        ({"windows_per_day": 4}, "windows_per_day must be a whole number of at least 5"),
        ({"epochs": 0}, "epochs must be a whole number"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        AlphaConfig(**settings)


def test_few_evenly_spaced_days_may_judge_an_epoch(windows):
    segment = AlphaSegment.of(windows, ReturnLabel())
    few = segment.to_judge_by(AlphaConfig(validation_days=3))
    assert [few.days[0], few.days[-1]] == [segment.days[0], segment.days[-1]]
    assert len(few.days) == 3 < len(segment.days)
    assert segment.to_judge_by(AlphaConfig(validation_days=10_000)) is segment
    assert segment.to_judge_by(AlphaConfig()) is segment
