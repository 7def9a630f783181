"""Quantizer, time features and losses are replaceable, each from its stated protocol alone."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

from kronos_qlib.data.windows.bar_table import BarTable
from kronos_qlib.data.windows.find import windows_to_train
from kronos_qlib.errors import CheckpointError, ConfigError, TrainingError
from kronos_qlib.inference.generate import generate
from kronos_qlib.inference.packed import PackedKronos, PackedTokenizer
from kronos_qlib.inference.predictor import KronosPredictor
from kronos_qlib.inference.sampling import SamplingConfig, path_uniforms
from kronos_qlib.model.checkpoints.pretrained import fingerprint
from kronos_qlib.model.quantizer import BinarySphericalQuantizer, Quantizer
from kronos_qlib.model.tokenizer import KronosTokenizer
from kronos_qlib.model.transformer import Kronos
from kronos_qlib.schema import BAR_COLUMNS
from kronos_qlib.training.batches import Segment
from kronos_qlib.training.loop import train
from kronos_qlib.training.losses import (
    PredictorStep,
    TokenizerStep,
    check_finite,
    next_token_losses,
    reconstruction_losses,
)
from kronos_qlib.training.stage_settings import TrainingConfig

LEVELS, S1_WIDTH = (8, 4, 4, 2), 2
SIZES = {
    "d_model": 16,
    "n_heads": 2,
    "ff_dim": 24,
    "ffn_dropout_p": 0.0,
    "attn_dropout_p": 0.0,
    "resid_dropout_p": 0.0,
    "s1_bits": 5,
    "s2_bits": 3,
}
UNUSED = {"beta": 0.05, "gamma0": 1.0, "gamma": 1.1, "zeta": 0.05, "group_size": 1}


class FiniteScalarQuantizer(nn.Module):
    """Every component squeezed into a box and rounded to one of a few levels (arXiv 2309.15505).

    A sigmoid over all levels is the paper's shifted tanh, written without its shift.

    Args:
        levels: of each component, powers of two: then every id of the vocabulary is a code.
    """

    levels: torch.Tensor

    def __init__(self, levels: tuple[int, ...], s1_width: int) -> None:
        super().__init__()
        self.width, self.s1_width = len(levels), s1_width
        bits = [int(math.log2(count)) for count in levels]
        self.s1_bits, self.s2_bits = sum(bits[:s1_width]), sum(bits[s1_width:])
        self.register_buffer("levels", torch.tensor(levels))

    def forward(self, x, counted=None):
        place = self._bounded(x)
        rounded = place + (place.round() - place).detach()
        return self._centred(rounded), x.new_zeros(())  # evenly used without a loss of its own

    def to_ids(self, x):
        place = self._bounded(x).round().long()
        head, tail = place[..., : self.s1_width], place[..., self.s1_width :]
        return self._number(head, self._s1_levels()), self._number(tail, self._s2_levels())

    def to_codes(self, s1, s2):
        digits = self._digits(s1, self._s1_levels()), self._digits(s2, self._s2_levels())
        return self._centred(torch.cat(digits, dim=-1).float())

    def _s1_levels(self):
        return self.levels[: self.s1_width]

    def _s2_levels(self):
        return self.levels[self.s1_width :]

    def _bounded(self, x):
        """To (-0.5, levels - 0.5), every level as wide as the next."""
        return torch.sigmoid(x) * (self.levels - 1e-3) - 0.5 + 5e-4

    def _centred(self, place):
        return 2 * place / (self.levels - 1) - 1

    @staticmethod
    def _number(place, levels):
        return (place * (levels.cumprod(0) // levels)).sum(dim=-1)

    @staticmethod
    def _digits(ids, levels):
        return ids[..., None] // (levels.cumprod(0) // levels) % levels


def fsq_tokenizer(levels=LEVELS, s1_width=S1_WIDTH, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        quantizer = FiniteScalarQuantizer(levels, s1_width)
        sizes = SIZES | UNUSED | changes
        return KronosTokenizer(
            d_in=6, n_enc_layers=2, n_dec_layers=3, quantizer=quantizer, **sizes
        ).eval()


def predictor_net(**parts):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return Kronos(n_layers=2, token_dropout_p=0.0, learn_te=True, **SIZES, **parts).eval()


def bars_z(seed=0, bars=12):
    return torch.randn(3, bars, 6, generator=torch.Generator().manual_seed(seed))


def stamps_for(bars, windows=3):
    fields = np.random.default_rng(1).integers(0, (60, 24, 7, 32, 13), (windows, bars, 5))
    return torch.from_numpy(fields)


@pytest.fixture(scope="module")
def segment():
    days = pd.bdate_range("2024-01-01", periods=40)
    beat = np.arange(len(days))
    frame = pd.DataFrame(
        {name: 2 + np.sin(beat * np.pi / 2 + place) for place, name in enumerate(BAR_COLUMNS)},
        index=days,
    )
    table = BarTable.from_frame(pd.concat({"SH600000": frame}), invalid="keep")
    return Segment(windows_to_train(table, 8, 2, None, None))


QUICK = TrainingConfig(epochs=6, batch_size=8, learning_rate=1e-2, seed=3)


# Both quantizers keep the same promises: a third is added here.


def quantizers():
    binary = BinarySphericalQuantizer(5, 3, **UNUSED)
    return [binary, FiniteScalarQuantizer(LEVELS, S1_WIDTH)]


@pytest.mark.parametrize("quantizer", quantizers(), ids=lambda each: type(each).__name__)
class TestEveryQuantizer:
    @given(seed=st.integers(0, 999), scale=st.sampled_from([0.0, 0.1, 1.0, 30.0]))
    def test_codes_of_ids_are_the_codes_of_forward(self, quantizer: Quantizer, seed, scale):
        x = scale * torch.randn(
            2, 5, quantizer.width, generator=torch.Generator().manual_seed(seed)
        )
        s1, s2 = quantizer.to_ids(x)
        for ids, bits in ((s1, quantizer.s1_bits), (s2, quantizer.s2_bits)):
            assert ids.dtype == torch.int64
            assert ids.min() >= 0
            assert ids.max() < 2**bits
        codes, loss = quantizer.forward(x)
        torch.testing.assert_close(codes, quantizer.to_codes(s1, s2))
        assert loss.shape == ()

    def test_every_id_is_a_code_of_its_own(self, quantizer: Quantizer):
        s1 = torch.arange(2**quantizer.s1_bits)[:, None]
        s2 = torch.arange(2**quantizer.s2_bits)[None, :]
        codes = quantizer.to_codes(*torch.broadcast_tensors(s1, s2))
        assert codes.shape == (len(s1), s2.shape[1], quantizer.width)
        assert len(codes.flatten(0, 1).unique(dim=0)) == 2 ** (
            quantizer.s1_bits + quantizer.s2_bits
        )
        of_s1 = codes[..., : quantizer.s1_width]  # what s1 says does not depend on s2
        assert torch.equal(of_s1, of_s1[:, :1].expand_as(of_s1))

    def test_a_gradient_reaches_what_was_quantized(self, quantizer: Quantizer):
        x = (0.3 * bars_z()[..., :1] + torch.zeros(quantizer.width)).requires_grad_()
        weights = torch.arange(1.0, quantizer.width + 1)
        (quantizer.forward(x)[0] * weights).sum().backward()
        assert x.grad is not None
        assert (x.grad.abs().sum(dim=(0, 1)) > 0).all()


@given(s1=st.integers(0, 31), s2=st.integers(0, 7))
def test_finite_scalar_ids_survive_the_round_trip(s1, s2):
    """The middle of a level, sent back through the squeeze, is that level."""
    quantizer = FiniteScalarQuantizer(LEVELS, S1_WIDTH)
    ids = torch.tensor([[s1]]), torch.tensor([[s2]])
    place = (quantizer.to_codes(*ids) + 1) / 2 * (quantizer.levels - 1)
    x = torch.logit((place + 0.5) / quantizer.levels)
    assert [found.item() for found in quantizer.to_ids(x)] == [s1, s2]


def test_another_quantizer_trains_and_is_saved(segment, tmp_path):
    tokenizer = fsq_tokenizer()
    report = train(TokenizerStep(tokenizer), segment, segment, QUICK)
    losses = [row["valid_loss"] for row in report.history]
    assert min(losses) < 0.5 * losses[0]
    assert {row["valid_bsq"] for row in report.history} == {0.0}

    net = predictor_net()
    report = train(PredictorStep(net, tokenizer), segment, segment, QUICK)
    losses = [row["valid_loss"] for row in report.history]
    assert min(losses) < 0.8 * losses[0]

    tokenizer.save_pretrained(tmp_path / "tokenizer")
    net.save_pretrained(tmp_path / "predictor", tokenizer)
    # Built with other levels: they are a buffer, so those of the file come back.
    other = FiniteScalarQuantizer((4, 8, 2, 4), S1_WIDTH)
    loaded = KronosTokenizer.from_pretrained(tmp_path, quantizer=other)
    assert other.levels.tolist() == list(LEVELS)
    assert fingerprint(loaded) == fingerprint(tokenizer)
    x = bars_z()
    for found, expected in zip(loaded.encode(x), tokenizer.encode(x), strict=True):
        assert torch.equal(found, expected)
    KronosPredictor(Kronos.from_pretrained(tmp_path), loaded, device="cpu")  # they belong together


@torch.no_grad()
def test_the_engine_uses_the_quantizer_it_is_given():
    tokenizer, z = fsq_tokenizer(), bars_z()
    packed = PackedTokenizer(tokenizer)
    tokens = tokenizer.encode(z)
    assert [len(ids.unique()) > 3 for ids in tokens] == [True, True]
    for found, expected in zip(packed.encode(z), tokens, strict=True):
        assert torch.equal(found, expected)
    bars = tokenizer.decode(tokens)
    torch.testing.assert_close(packed.decode(tokens), bars, rtol=1e-5, atol=1e-5)
    index = tokenizer.encode(z, half=False)
    torch.testing.assert_close(tokenizer.decode(index, half=False), bars)
    (_, recon), _, _, again = tokenizer(z)
    torch.testing.assert_close(recon, bars, rtol=1e-5, atol=1e-5)
    assert torch.equal(index, again)


class HourOfDay(nn.Module):
    """The hour as a point on a circle, and nothing else of the stamp."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out = nn.Linear(2, width)

    def forward(self, stamp):
        angle = stamp[..., 1:2] * (2 * math.pi / 24)
        return self.out(torch.cat((angle.sin(), angle.cos()), dim=-1))


def test_a_forecast_with_every_part_replaced():
    tokenizer, net = fsq_tokenizer(), predictor_net(time_emb=HourOfDay(16))
    x = 100 + np.random.default_rng(2).normal(size=(3, 12, 6)).astype(np.float32).cumsum(axis=1)
    stamps = stamps_for(16).numpy()

    def paths(stamps, dtype="float32"):
        forecaster = KronosPredictor(net, tokenizer, "cpu", max_context=16, dtype=dtype)
        return forecaster.paths(x, stamps[:, :12], stamps[:, 12:], 4, sample_count=3)

    drawn = paths(stamps)
    assert drawn.shape == (3, 3, 4, 6)
    assert np.isfinite(drawn).all()
    assert np.isfinite(paths(stamps, "bfloat16")).all()
    other_minutes, other_hours = stamps.copy(), stamps.copy()
    other_minutes[..., 0] = (stamps[..., 0] + 7) % 60
    other_hours[..., 1] = (stamps[..., 1] + 7) % 24
    np.testing.assert_array_equal(paths(other_minutes), drawn)
    assert not np.array_equal(paths(other_hours), drawn)


@pytest.mark.parametrize("max_context", [16, 7])
def test_replaced_time_features_read_alike_in_training_and_decoding(generate_plainly, max_context):
    tokenizer, net = fsq_tokenizer(), predictor_net(time_emb=HourOfDay(16))
    tokens = tokenizer.encode(bars_z(bars=9))
    how = SamplingConfig(paths=2, temperature=1.0, top_p=1.0)
    uniforms = path_uniforms(5, [b"a", b"b", b"c"], how.paths, 5)
    asked = (tokens, stamps_for(14), 5, how, uniforms, max_context)
    found, expected = generate(PackedKronos(net), *asked), generate_plainly(net, *asked)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_a_tokenizer_is_loaded_with_the_quantizer_it_was_saved_with(tmp_path, tiny_pair):
    class Other(FiniteScalarQuantizer):
        pass

    def load(folder, quantizer=None):
        return KronosTokenizer.from_pretrained(tmp_path / folder, quantizer=quantizer)

    fsq_tokenizer().save_pretrained(tmp_path / "fsq")
    tiny_pair[0].save_pretrained(tmp_path / "published")
    advice = r"pass quantizer=FiniteScalarQuantizer\(...\) to from_pretrained"
    with pytest.raises(CheckpointError, match=f"not with the published part; {advice}"):
        load("fsq")
    with pytest.raises(CheckpointError, match=f"not with Other; {advice}"):
        load("fsq", Other(LEVELS, S1_WIDTH))
    with pytest.raises(
        CheckpointError, match=r"the published part as quantizer.*leave quantizer out"
    ):
        load("published", FiniteScalarQuantizer((4, 4, 8), 2))
    load("published")
    with safe_open(tmp_path / "published" / "model.safetensors", framework="pt") as file:
        assert not file.metadata()  # published files stay as they are


def test_a_predictor_is_loaded_with_the_time_features_it_was_saved_with(tmp_path):
    net = predictor_net(time_emb=HourOfDay(16))
    net.save_pretrained(tmp_path, max_context=77)
    with pytest.raises(CheckpointError, match=r"HourOfDay as time_emb.*pass time_emb=HourOfDay"):
        Kronos.from_pretrained(tmp_path)
    loaded = Kronos.from_pretrained(tmp_path, time_emb=HourOfDay(16))
    assert fingerprint(loaded) == fingerprint(net)
    assert loaded.origin.max_context == 77
    with pytest.raises(CheckpointError, match="leave time_emb out"):
        Kronos.from_pretrained(
            "nano", time_emb=HourOfDay(Kronos.from_pretrained("nano").config.d_model)
        )


# What a first attempt gets wrong.


class Wide(FiniteScalarQuantizer):
    def to_codes(self, s1, s2):
        return torch.cat((super().to_codes(s1, s2), s1[..., None]), dim=-1)


class Beyond(FiniteScalarQuantizer):
    def to_ids(self, x):
        s1, s2 = super().to_ids(x)
        return s1 + 1, s2


class Floating(FiniteScalarQuantizer):
    def to_ids(self, x):
        return tuple(ids.float() for ids in super().to_ids(x))


@pytest.mark.parametrize(
    ("quantizer", "message"),
    [
        (FiniteScalarQuantizer((16, 4, 4, 2), 2), r"ids of 6 \+ 3 bits, .* have 5 \+ 3"),
        (Beyond(LEVELS, 2), "gives s1 from 1 to 32, the vocabulary of 5 bits is 0 to 31"),
        (Wide(LEVELS, 2), r"codes \(1, 2, 4\), by its width; got \(1, 2, 5\)"),
        (Floating(LEVELS, 2), r"s1 is torch.float32 \(1, 7\)"),
        (nn.Identity(), "Identity lacks width, s1_width, s1_bits, s2_bits, to_ids, to_codes"),
        (object(), "lacks width"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_a_quantizer_that_cannot_work_is_refused(quantizer, message):
    with pytest.raises(ConfigError, match=message):
        KronosTokenizer(
            d_in=6, n_enc_layers=2, n_dec_layers=3, quantizer=quantizer, **SIZES, **UNUSED
        )


def test_a_code_that_is_all_s1_is_refused():
    quantizer = FiniteScalarQuantizer(LEVELS, S1_WIDTH)
    quantizer.s1_width = 4
    with pytest.raises(ConfigError, match="s1_width must lie between 1 and width - 1 = 3, got 4"):
        KronosTokenizer(
            d_in=6, n_enc_layers=2, n_dec_layers=3, quantizer=quantizer, **SIZES, **UNUSED
        )


@pytest.mark.parametrize(
    ("time_emb", "message"),
    [
        (HourOfDay(8), r"floats \(1, 2, 16\), by d_model; got torch.float32 \(1, 2, 8\)"),
        (nn.Identity(), r"got torch.int64 \(1, 2, 5\)"),
        (lambda stamp: stamp, "is no torch.nn.Module"),
    ],
    ids=["narrow", "whole", "function"],
)
def test_time_features_that_cannot_work_are_refused(time_emb, message):
    with pytest.raises(ConfigError, match=message):
        predictor_net(time_emb=time_emb)


# Losses.


def only_close(recon_s1, recon, z, bsq_loss, counted):
    """A reconstruction that cares for one column."""
    error = (recon - z)[..., 3].square()[counted].mean()
    return {"loss": error + 0 * (recon_s1.sum() + bsq_loss), "close": error}


def only_s1(s1_logits, s2_logits, s1, s2, counted):
    return {"loss": next_token_losses(s1_logits, s2_logits, s1, s2, counted)["loss_s1"]}


def test_a_replaced_loss_is_the_one_that_is_minimised(segment, make_pair):
    def trained(**criterion):
        tokenizer, _ = make_pair()
        step = TokenizerStep(tokenizer, **criterion)
        report = train(step, segment, segment, QUICK)
        return tokenizer, report.history

    tokenizer, history = trained(criterion=only_close)
    assert {"valid_close", "train_close"} < set(history[-1])
    assert "valid_recon" not in history[-1]
    assert history[-1]["valid_close"] < 0.5 * history[0]["valid_close"]
    assert fingerprint(tokenizer) != fingerprint(trained()[0])
    assert fingerprint(trained()[0]) == fingerprint(trained(criterion=reconstruction_losses)[0])

    tokenizer, net = make_pair()
    before = net.head.proj_s2.weight.detach().clone()
    config = TrainingConfig(epochs=2, batch_size=8, learning_rate=1e-2, weight_decay=0.0)
    train(PredictorStep(net, tokenizer, criterion=only_s1), segment, segment, config)
    assert torch.equal(net.head.proj_s2.weight, before)


def test_a_criterion_without_a_loss_is_told(segment, tiny_pair):
    step = TokenizerStep(tiny_pair[0], criterion=lambda *parts: {"error": parts[3]})
    with pytest.raises(TrainingError, match=r'as "loss", this one returned error'):
        train(step, segment, segment, QUICK)


def test_a_loss_that_is_no_single_number_is_named():
    """Torch's own words would be of a boolean value of a tensor with several values."""
    for loss in (torch.ones(3), 0.5):
        with pytest.raises(TrainingError, match="a criterion's loss is a tensor of one number"):
            check_finite({"loss": loss}, None)


def test_a_part_put_in_later_counts(make_pair):
    """Packed copies must not outlive the part they were made from, though it has no weight."""
    tokenizer, model = make_pair()

    class Constant(nn.Module):
        def forward(self, stamp):
            return torch.ones(*stamp.shape[:-1], model.config.d_model)

    class Ramp(nn.Module):
        def forward(self, stamp):
            return torch.arange(float(model.config.d_model)).expand(*stamp.shape[:-1], -1)

    model.time_emb = Constant()
    forecaster = KronosPredictor(model, tokenizer, device="cpu")
    bars = (50 + np.random.default_rng(0).normal(size=(2, 12, 6)).cumsum(axis=1)).astype(np.float32)
    stamps = np.full((2, 12, 5), 3)
    forecaster.embed(bars, stamps)
    model.time_emb = Ramp()
    fresh = KronosPredictor(model, tokenizer, device="cpu").embed(bars, stamps)
    np.testing.assert_array_equal(forecaster.embed(bars, stamps), fresh)
    # And training mode of a replaced part makes no noise: it is copied in evaluation mode.
    model.time_emb = nn.Sequential(Constant(), nn.Dropout(0.5))
    quiet = forecaster.embed(bars, stamps)
    model.train()
    np.testing.assert_array_equal(forecaster.embed(bars, stamps), quiet)
