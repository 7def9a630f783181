"""Training: every window once, only the segment's bars, the best weights, the same each time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from kronos_qlib.data.windows.bar_table import BarTable
from kronos_qlib.data.windows.find import windows_to_train
from kronos_qlib.errors import BarDataError, ConfigError, TrainingError
from kronos_qlib.model.checkpoints.pretrained import fingerprint
from kronos_qlib.schema import BAR_COLUMNS
from kronos_qlib.training.batches import EpochSampler, Segment, is_worth_tokens, with_tokens
from kronos_qlib.training.loop import is_better, one_cycle, train
from kronos_qlib.training.losses import PredictorStep, TokenizerStep, evaluate, shifted_dates
from kronos_qlib.training.parallel.distributed import Share
from kronos_qlib.training.stage_settings import TrainingConfig

CPU = torch.device("cpu")
LOOKBACK, HORIZON = 8, 2
DAYS = pd.bdate_range("2024-01-01", periods=60)
LAST, FIRST = DAYS[39], DAYS[40]
QUICK = TrainingConfig(epochs=2, batch_size=16, learning_rate=5e-3, warmup_share=0.1, seed=3)


@pytest.fixture(scope="module")
def table():
    """Two shares that swing in a fixed rhythm: there is something to learn."""
    beat = np.arange(len(DAYS))
    frames = {
        name: pd.DataFrame(
            {
                column: level * (2 + np.sin(beat * np.pi / 2 + place))
                for place, column in enumerate(BAR_COLUMNS)
            },
            index=DAYS,
        )
        for name, level in (("SH600000", 10.0), ("SZ000001", 3.0))
    }
    return BarTable.from_frame(pd.concat(frames), invalid="keep")


@pytest.fixture(scope="module")
def segments(table):
    return (
        Segment(windows_to_train(table, LOOKBACK, HORIZON, None, LAST)),
        Segment(windows_to_train(table, LOOKBACK, HORIZON, FIRST, None)),
    )


@pytest.mark.parametrize(("size", "batch_size"), [(10, 3), (9, 3), (1, 5), (100, 7)])
def test_every_window_once_per_epoch(size, batch_size):
    """The published loader workers share a generator: two workers, every window twice."""
    sampler = EpochSampler(size, batch_size, seed=0)
    for number in (1, 2):
        batches = list(sampler.epoch(number))
        assert len(batches) == len(sampler)
        assert sorted(np.concatenate(batches).tolist()) == list(range(size))


def test_the_shuffle_is_decided_by_seed_and_epoch():
    def order(seed, epoch):
        return np.concatenate(list(EpochSampler(50, 5, seed=seed).epoch(epoch))).tolist()

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2)
    assert order(0, 1) != order(1, 1)


def test_a_limit_samples_without_repeats():
    sampler = EpochSampler(50, 8, seed=0, limit=20)
    drawn = [np.concatenate(list(sampler.epoch(number))).tolist() for number in (1, 2)]
    assert [len(set(places)) for places in drawn] == [20, 20]
    assert set(drawn[0]) != set(drawn[1])


def test_validation_windows_are_evenly_spaced(segments):
    few = segments[0].evenly(5)
    assert len(few) == 5
    assert few.windows.ends[[0, -1]].tolist() == segments[0].windows.ends[[0, -1]].tolist()
    assert len(segments[0].evenly(10_000)) == len(segments[0])


@pytest.mark.parametrize("which", ["training", "validation"])
def test_an_empty_segment_is_an_error(tiny_pair, segments, which):
    """The published code scores an empty validation set 0 and keeps it as the best."""
    nothing = Segment(segments[0].windows.take(slice(0, 0)))
    chosen = (nothing, segments[1]) if which == "training" else (segments[0], nothing)
    with pytest.raises(TrainingError, match=rf"the {which} segment has no window of 8 \+ 2 bars"):
        train(TokenizerStep(tiny_pair[0]), *chosen, QUICK)


def test_a_loss_that_is_no_number_names_the_bars(tiny_pair, segments):
    tokenizer, model = tiny_pair
    model.head.proj_s1.weight.data[0, 0] = torch.nan
    with pytest.raises(TrainingError, match=r"nan on a batch of .* SH600000 at 2024-02-2"):
        train(PredictorStep(model, tokenizer), *segments, QUICK)


def steps_of(pair):
    return TokenizerStep(pair[0]), PredictorStep(pair[1], pair[0])


@pytest.mark.parametrize("stage", [0, 1], ids=["tokenizer", "predictor"])
def test_only_bars_inside_the_segment_count(tiny_pair, segments, stage):
    """A bar before the segment is context: were it a target, training would share it.

    The loss from the batch equals the one worked out by hand from the counted bars.
    """
    step, segment = steps_of(tiny_pair)[stage], segments[1]
    batch = segment.batch(np.arange(len(segment)), CPU)
    counted = batch.counted
    assert 0 < counted.float().mean() < 1
    times = segment.windows.table.times[segment.windows.rows(slice(None))]
    assert (counted.numpy() == (times >= FIRST.to_datetime64())).all()
    losses = step.losses(batch)

    if stage == 0:
        errors = [(guess - batch.z)[counted].square().mean() for guess in step.net(batch.z)[0]]
        torch.testing.assert_close(losses["recon_s1"], errors[0])
        torch.testing.assert_close(losses["recon"], errors[1])
        raw = step.net.project(batch.z)
        torch.testing.assert_close(losses["bsq"], step.net.tokenizer(raw[counted][None])[1])
        return
    s1, s2 = step.tokenizer.encode(batch.z)
    logits = step.net(s1[:, :-1], s2[:, :-1], batch.stamps[:, :-1], True, s1[:, 1:])
    for name, values, ids in zip(("loss_s1", "loss_s2"), logits, (s1, s2), strict=True):
        chosen = values.log_softmax(dim=-1).gather(-1, ids[:, 1:, None])[..., 0]
        torch.testing.assert_close(losses[name], -chosen[counted[:, 1:]].mean())


def test_the_validation_loss_does_not_depend_on_batches(tiny_pair, segments):
    """Windows at the segment's start count fewer bars; batches once weighed them wrongly."""
    step = steps_of(tiny_pair)[1]
    # A window wholly inside the segment loses its first bar too: it has nothing before it.
    windows = segments[0].windows
    begin = int(np.searchsorted(windows.table.calendar, np.datetime64(DAYS[10])))
    mixed = Segment(replace(windows, begin=begin))
    losses = [evaluate(step, mixed, replace(QUICK, batch_size=size), CPU) for size in (1, 3, 50)]
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], rel=1e-5)


def test_validation_is_deterministic(make_pair, segments):
    """No dropout and no sampled s1: the same weights, the same loss."""
    tokenizer, model = make_pair(dropout=0.5)
    step = PredictorStep(model.train(), tokenizer.train(), teacher_forcing=False)
    once, again = (evaluate(step, segments[1], QUICK, CPU) for _ in range(2))
    assert once == again
    # Teacher-forced however it trains, so that two ways of training compare.
    assert once == evaluate(PredictorStep(model, tokenizer), segments[1], QUICK, CPU)
    assert not tokenizer.training  # its tokens would be noise


@pytest.mark.parametrize("forcing", [True, False])
def test_the_loss_goes_down_on_what_can_be_learned(make_pair, segments, forcing):
    tokenizer, model = make_pair(dropout=0.05)
    config = replace(QUICK, epochs=6)
    for step in (TokenizerStep(tokenizer), PredictorStep(model, tokenizer, forcing)):
        report = train(step, *segments, config)
        losses = [row["valid_loss"] for row in report.history]
        assert losses[report.best_epoch] == min(losses) < 0.8 * losses[0]
        assert [row["epoch"] for row in report.history] == list(range(7))
        assert report.history[-1]["train_loss"] < report.history[1]["train_loss"]
        assert not step.net.training
        again = evaluate(step, segments[1], config, CPU)["valid_loss"]  # here on one thread
        assert again == pytest.approx(min(losses), rel=1e-6)


def test_weights_that_training_makes_worse_stay_as_they_were(tiny_pair, segments, caplog):
    """Epoch 0 counts as well: whole-market finetuning has been worse than zero-shot."""
    step = steps_of(tiny_pair)[1]
    before = fingerprint(step.net)
    seen = []
    with caplog.at_level("WARNING"):
        report = train(
            step,
            *segments,
            replace(QUICK, learning_rate=2.0, epochs=5, patience=2),
            on_epoch=lambda number, row: seen.append((number, row["valid_loss"])),
        )
    assert report.best_epoch == 0
    assert fingerprint(step.net) == before
    assert "the weights are as before" in caplog.text
    assert [number for number, _ in seen] == [0, 1, 2]  # patience stopped it
    assert min(loss for _, loss in seen[1:]) > seen[0][1]


@pytest.mark.parametrize("stage", [0, 1], ids=["tokenizer", "predictor"])
def test_the_same_seed_gives_the_same_weights(make_pair, segments, stage):
    def trained(seed):
        step = steps_of(make_pair(dropout=0.2))[stage]
        train(step, *segments, replace(QUICK, seed=seed))
        return fingerprint(step.net)

    first = trained(3)
    torch.rand(7)  # what else was drawn in the process must not matter
    assert trained(3) == first
    assert trained(4) != first


def test_compiled_blocks_learn_what_others_learn(make_pair, segments, monkeypatch):
    """Traced by `torch.compile`, and run without a compiler, which not every machine has."""
    compiled: list[object] = []
    compile_for = torch.compile

    def traced(forward):
        compiled.append(forward)
        return compile_for(forward, backend="eager")

    monkeypatch.setattr(torch, "compile", traced)
    losses = {}
    for is_compiled in (False, True):
        step = steps_of(make_pair())[1]
        config = replace(QUICK, epochs=1, compiled=is_compiled)
        losses[is_compiled] = train(step, *segments, config).history
        assert not any("forward" in part.__dict__ for part in step.net.modules())
    assert len(compiled) == len([part for part in step.net.modules() if hasattr(part, "self_attn")])
    for found, expected in zip(losses[True], losses[False], strict=True):
        assert found == pytest.approx(expected, rel=1e-4)


def test_the_global_random_state_is_left_alone(make_pair, segments):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    train(steps_of(make_pair(dropout=0.2))[1], *segments, replace(QUICK, epochs=1))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002


def test_the_tokenizer_is_frozen_while_the_predictor_trains(tiny_pair, segments):
    before = fingerprint(tiny_pair[0])
    train(steps_of(tiny_pair)[1], *segments, replace(QUICK, epochs=1))
    assert fingerprint(tiny_pair[0]) == before


@pytest.mark.parametrize("warmup", [0.0, 0.03, 0.5])
def test_the_schedule_rises_from_a_tenth_and_falls_to_nothing(warmup):
    shares = [one_cycle(done, 200, warmup) for done in range(201)]
    peak = int(200 * warmup)
    assert shares[0] == pytest.approx(0.1 if warmup else 1.0)
    assert shares[peak] == max(shares) == 1
    assert shares[-1] == pytest.approx(0, abs=1e-12)
    assert (np.diff(shares[: peak + 1]) > 0).all()
    assert (np.diff(shares[peak:]) < 0).all()


def test_the_horizon_alone_may_be_learned_from(table, tiny_pair):
    """The newest bars of each window, also where windows are shorter than others."""
    segment = Segment(windows_to_train(table, LOOKBACK, HORIZON, min_bars=4), newest=HORIZON)
    which = np.arange(12)
    batch, lengths = segment.batch(which), segment.windows.lengths[which]
    assert len(set(lengths)) > 2
    for counted, length in zip(batch.counted, lengths, strict=True):
        assert np.flatnonzero(counted.numpy()).tolist() == [length, length + 1]
    step = steps_of(tiny_pair)[1]
    s1, s2 = step.tokenizer.encode(batch.z)
    logits = step.net(s1[:, :-1], s2[:, :-1], batch.stamps[:, :-1], True, s1[:, 1:])[0]
    chosen = logits.log_softmax(dim=-1).gather(-1, s1[:, 1:, None])[..., 0]
    by_hand = [-chosen[row, [n - 1, n]] for row, n in enumerate(lengths)]
    torch.testing.assert_close(step.losses(batch)["loss_s1"], torch.cat(by_hand).mean())


def test_tokens_made_beforehand_are_those_of_every_step(make_pair, segments):
    tokenizer = make_pair()[0]
    made = with_tokens(segments[0], tokenizer)
    config = replace(QUICK, windows_per_epoch=len(made) // 2)
    assert is_worth_tokens(segments[0], tokenizer, replace(config, epochs=3))
    assert not is_worth_tokens(segments[0], tokenizer, config), "no window comes twice"
    weights = []
    for training in (made, segments[0]):
        step = PredictorStep(make_pair()[1], tokenizer)
        train(step, training, segments[1], config)
        weights.append(fingerprint(step.net))
    assert weights[0] == weights[1]


def test_codes_and_errors_of_reconstructed_bars_by_hand(tiny_pair, segments):
    """Share of codes used and their entropy; errors in money and shares, as the bars have them."""
    tokenizer, segment = tiny_pair[0], segments[1]
    found = TokenizerStep(tokenizer).validate(segment, replace(QUICK, batch_size=3), CPU)
    batch = segment.batch(np.arange(len(segment)))
    with torch.no_grad():
        (_, recon), *_, ids = tokenizer(batch.z)
    counted = batch.counted.numpy()
    for name, half, bits in (("s1", ids & 15, 4), ("s2", ids >> 4, 3)):
        counts = np.bincount(half.numpy()[counted], minlength=2**bits)
        shares = counts[counts > 0] / counts.sum()
        assert found[f"valid_{name}_used"] == (counts > 0).mean()
        assert found[f"valid_{name}_entropy"] == pytest.approx(-(shares * np.log(shares)).sum())
    table = segment.windows.table
    bars = table.values[segment.windows.rows(slice(None))].astype(float)
    past = bars[:, :LOOKBACK]
    guess = recon.numpy() * (past.std(1, keepdims=True) + 1e-5) + past.mean(1, keepdims=True)
    error = np.abs(guess - bars)[counted]
    for place, column in enumerate(BAR_COLUMNS):
        assert found[f"valid_error_{column}"] == pytest.approx(error[:, place].mean(), rel=1e-4)
        share = np.minimum(error / np.abs(bars[counted]), 1)[:, place].mean()
        assert found[f"valid_relative_error_{column}"] == pytest.approx(share, rel=1e-4)


@pytest.mark.parametrize(("metric", "better"), [("loss", False), ("ic", True), ("rank_ic", False)])
def test_the_metric_that_is_asked_for_chooses(metric, better):
    best = {"valid_loss": 1.0, "valid_ic": 0.02, "valid_rank_ic": 0.03}
    row = {"valid_loss": 1.1, "valid_ic": 0.03, "valid_rank_ic": 0.03}
    assert is_better(row, best, metric) is better


@pytest.mark.parametrize("kind", [TokenizerStep, PredictorStep])
def test_windows_of_unequal_length_learn_as_each_would_alone(table, make_pair, kind):
    """Fault 12: a padding mask had the wrong sense, so shorter windows were silently wrong."""
    tokenizer, net = make_pair(3)
    step = TokenizerStep(tokenizer) if kind is TokenizerStep else PredictorStep(net, tokenizer)
    windows = windows_to_train(table, LOOKBACK, HORIZON, min_bars=4)
    segment = Segment(windows)
    which = [*np.flatnonzero(windows.lengths < 7)[:3].tolist(), len(segment) - 1]
    assert len(set(windows.lengths[which])) > 2

    def weighed(chosen):
        batch = segment.batch(np.array(chosen))
        losses = step.losses(batch)
        return {name: value.item() for name, value in losses.items()}, int(step.targets(batch))

    together, count = weighed(which)
    alone = [weighed([one]) for one in which]
    assert count == sum(weight for _, weight in alone) < len(which) * (LOOKBACK + HORIZON)
    for name in set(together) - {"loss", "bsq"}:  # the entropy of a batch is no mean over bars
        mean = sum(losses[name] * weight for losses, weight in alone) / count
        assert together[name] == pytest.approx(mean, rel=1e-5)


def test_shifted_dates_keep_weekday_and_time_and_one_turn_a_window():
    stamps = torch.tensor([[[30, 10, 4, 31, 12], [0, 15, 0, 1, 1]]] * 200)
    turned = shifted_dates(stamps, torch.Generator().manual_seed(0))
    assert torch.equal(turned[..., :3], stamps[..., :3])
    days, months = turned[..., 3], turned[..., 4]
    assert set(days.flatten().tolist()) == set(range(1, 32))
    assert set(months.flatten().tolist()) == set(range(1, 13))
    assert ((days[:, 1] - days[:, 0]) % 31 == 1).all()  # the day after stays the day after
    assert ((months[:, 1] - months[:, 0]) % 12 == 1).all()
    assert stamps[0, 0, 3] == 31, "the caller's stamps are left alone"


def test_dates_are_shifted_in_training_and_true_in_validation(tiny_pair, segments):
    """nano once learned two years' dates by heart."""
    tokenizer, model = tiny_pair
    plain = PredictorStep(model, tokenizer)
    step = PredictorStep(model, tokenizer, shift_dates=True)
    batch = segments[0].batch(np.arange(4), CPU)
    model.train()
    losses = [float(step.losses(batch, torch.Generator().manual_seed(n))["loss"]) for n in (0, 1)]
    assert losses[0] != losses[1] != float(plain.losses(batch)["loss"])
    assert evaluate(step, segments[1], QUICK, CPU) == evaluate(plain, segments[1], QUICK, CPU)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_batch_has_seen_one_of_the_lookbacks(table, ranks):
    windows = windows_to_train(table, 12, 3)
    segment = Segment(windows, lookbacks=(4, 7, 12))
    seen = set()
    for which in EpochSampler(len(windows), 6, seed=0).epoch(1):
        whole = segment.batch(which)
        lookback = whole.z.shape[1] - 3
        seen.add(lookback)
        # The newest bars of the same windows, in their own scale.
        plain = Segment(windows_to_train(windows.table, lookback, 3))
        places = {end: place for place, end in enumerate(plain.windows.ends[:].tolist())}
        same = plain.batch(np.array([places[end] for end in windows.ends[which].tolist()]))
        torch.testing.assert_close(whole.z, same.z, rtol=0, atol=0)
        torch.testing.assert_close(whole.stamps, same.stamps)
        for rank in range(ranks):
            share = Share(len(which), rank, ranks)
            part = segment.batch(which, share=share)
            torch.testing.assert_close(part.z, whole.z[share.rows], rtol=0, atol=0)
    assert seen == {4, 7, 12}


def test_shorter_windows_are_cut_only_where_they_are_longer(table):
    windows = windows_to_train(table, 12, 3, min_bars=4)
    cut = windows.cut(6)
    assert cut.lengths is not None and set(cut.lengths.tolist()) == {4, 5, 6}
    assert windows.cut(4).lengths is None  # all of one length
    with pytest.raises(BarDataError, match="2 to 12, got 13"):
        windows.cut(13)


def test_lookbacks_beyond_the_windows_are_refused(table):
    windows = windows_to_train(table, 12, 3)
    with pytest.raises(ConfigError, match=r"from 2 to the windows' own, 12, got \(13,\)"):
        Segment(windows, lookbacks=(13,))
    tokens = (np.zeros((len(windows), 15), dtype=np.int16),) * 2
    with pytest.raises(ConfigError, match="whole lookbacks"):
        Segment(windows, tokens=tokens, lookbacks=(4,))
