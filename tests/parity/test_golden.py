"""Every golden array: what the published code computes, this code computes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from kronos_qlib.inference.generate import decode_drawn, generate
from kronos_qlib.inference.packed import PackedKronos, PackedTokenizer, Reader
from kronos_qlib.inference.predictor import KronosPredictor
from kronos_qlib.inference.sampling import SamplingConfig, path_uniforms
from kronos_qlib.schema import BAR_COLUMNS
from kronos_qlib.training.losses import next_token_losses, reconstruction_losses

pytestmark = pytest.mark.parity

TOKENIZER_FORWARD = {
    "tok_recon_s1",
    "tok_recon",
    "tok_bsq_loss",
    "tok_total_loss",
    "tok_quantized",
    "tok_index",
}
TOKENS = {"s1", "s2", "tok_index_full", "tok_decoded"}
PREDICTOR_FORWARD = {"s1_logits", "s2_logits", "loss", "loss_s1", "loss_s2"}
NO_STAMP = {"s1_logits_nostamp", "s2_logits_nostamp"}
ONE_STEP = {"inf_context", "inf_s1_logits_last", "inf_s1_pick", "inf_s2_logits_last"}
CASES = ("fits", "slides", "truncates")
GREEDY = {f"greedy_{case}{end}" for case in CASES for end in ("", "_max_context")}
INPUTS = {"x", "stamp"}
LIKELIEST = SamplingConfig(paths=1, temperature=1.0, top_k=1, top_p=1.0)


def agree(found, expected, tolerance=1e-5):
    """Within `tolerance` of the array's largest magnitude; whole numbers exactly."""
    found = np.asarray(found.detach() if isinstance(found, torch.Tensor) else found)
    expected = np.asarray(expected)
    assert found.shape == expected.shape
    if np.issubdtype(expected.dtype, np.integer):
        np.testing.assert_array_equal(found, expected)
    else:
        limit = tolerance * np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=limit)


def everything(values):
    return torch.ones(values.shape[:2], dtype=torch.bool)


def test_no_golden_array_is_left_unchecked(golden):
    gradients = {name for name in golden.arrays if "grad." in name}
    checked = TOKENIZER_FORWARD | TOKENS | PREDICTOR_FORWARD | NO_STAMP | ONE_STEP | GREEDY
    assert len(gradients) >= 10
    assert set(golden.arrays) == checked | gradients | INPUTS


def test_tokenizer_in_training_mode(golden):
    tokenizer, _ = golden.pair()
    x = golden.tensor("x")
    (recon_s1, recon), bsq_loss, quantized, index = tokenizer.train()(x)
    losses = reconstruction_losses(recon_s1, recon, x, bsq_loss, everything(x))
    losses["loss"].backward()
    found = {
        "tok_recon_s1": recon_s1,
        "tok_recon": recon,
        "tok_bsq_loss": bsq_loss,
        "tok_total_loss": losses["loss"],
        "tok_quantized": quantized,
        "tok_index": index,
    }
    assert set(found) == TOKENIZER_FORWARD
    for name, value in found.items():
        agree(value, golden.arrays[name])
    check_gradients(tokenizer, golden, "tok_grad.")


def test_tokens_and_back(golden):
    tokenizer, _ = golden.pair()
    s1, s2 = tokenizer.encode(golden.tensor("x"))
    index = tokenizer.encode(golden.tensor("x"), half=False)
    agree(s1, golden.arrays["s1"])
    agree(s2, golden.arrays["s2"])
    agree(index, golden.arrays["tok_index_full"])
    agree(tokenizer.decode((s1, s2)), golden.arrays["tok_decoded"])
    agree(tokenizer.decode(index, half=False), golden.arrays["tok_decoded"])


def test_predictor_in_training_mode(golden):
    _, predictor = golden.pair()
    s1, s2 = golden.tensor("s1"), golden.tensor("s2")
    stamp = golden.tensor("stamp")[:, : s1.shape[1] - 1]
    s1_logits, s2_logits = predictor.train()(s1[:, :-1], s2[:, :-1], stamp, True, s1[:, 1:])
    after = s1[:, 1:], s2[:, 1:]
    losses = next_token_losses(s1_logits, s2_logits, *after, everything(after[0]))
    losses["loss"].backward()
    for name, value in {"s1_logits": s1_logits, "s2_logits": s2_logits, **losses}.items():
        assert name in PREDICTOR_FORWARD
        agree(value, golden.arrays[name])
    check_gradients(predictor, golden, "grad.")


def test_predictor_without_stamps(golden):
    _, predictor = golden.pair()
    s1, s2 = golden.tensor("s1"), golden.tensor("s2")
    logits = predictor.train()(s1[:, :-1], s2[:, :-1], None, True, s1[:, 1:])
    agree(logits[0], golden.arrays["s1_logits_nostamp"])
    agree(logits[1], golden.arrays["s2_logits_nostamp"])


@torch.no_grad()
def test_one_step_of_generation(golden):
    """The published s2 head does not rotate when it generates; the cache must agree with it."""
    _, predictor = golden.pair()
    tokens = golden.tensor("s1"), golden.tensor("s2")
    stamp = golden.tensor("stamp")[:, : tokens[0].shape[1]]
    pick = golden.tensor("inf_s1_pick")
    s1_logits, context = predictor.decode_s1(*tokens, stamp)
    agree(context, golden.arrays["inf_context"])
    agree(s1_logits[:, -1], golden.arrays["inf_s1_logits_last"])
    agree(s1_logits[:, -1:].argmax(dim=-1), pick)
    expected = golden.arrays["inf_s2_logits_last"]
    agree(predictor.decode_s2(context, pick)[:, -1], expected)

    reader = Reader(PackedKronos(predictor), paths=1, steps=0)
    newest = reader.read(*tokens, stamp)
    agree(newest, context[:, -1].numpy())
    agree(reader.s1_logits(newest), golden.arrays["inf_s1_logits_last"])
    agree(reader.s2_logits(newest, pick[:, 0]), expected)


@pytest.mark.parametrize("case", CASES)
def test_greedy_forecast(golden, generate_plainly, case):
    tokenizer, predictor = golden.pair()
    x, stamps = golden.tensor("x"), golden.tensor("stamp").long()
    context = int(golden.arrays[f"greedy_{case}_max_context"])
    horizon = stamps.shape[1] - x.shape[1]
    tokens = tokenizer.encode(x)
    uniforms = path_uniforms(0, [b""] * len(x), 1, horizon)
    packed = PackedTokenizer(tokenizer)
    agree_on = packed.encode(x)
    assert all(torch.equal(one, other) for one, other in zip(agree_on, tokens, strict=True))
    asked = (tokens, stamps, horizon, LIKELIEST, uniforms, context)
    for drawn in (generate(PackedKronos(predictor), *asked), generate_plainly(predictor, *asked)):
        bars, _ = decode_drawn(packed, tokens, drawn, 1, context)
        agree(bars, golden.arrays[f"greedy_{case}"])


@pytest.mark.parametrize(
    ("case", "columns"),
    [("full", BAR_COLUMNS), ("noamount", BAR_COLUMNS[:5]), ("priceonly", BAR_COLUMNS[:4])],
)
def test_forecast_of_a_frame(golden, case, columns):
    tokenizer, predictor = golden.pair()
    given = pd.read_csv(golden.folder / "frame_input.csv", parse_dates=["timestamps"])
    expected = pd.read_csv(golden.folder / f"frame_{case}.csv", parse_dates=["timestamps"])
    past = given.iloc[: len(golden.arrays["x"][0])]
    found = KronosPredictor(predictor, tokenizer, device="cpu").predict(
        past[list(columns)],
        past["timestamps"],
        expected["timestamps"],
        len(expected),
        top_k=1,
        coherent=False,
        anchor=False,
        verbose=False,
    )
    assert list(found.index) == list(expected["timestamps"])
    for column in BAR_COLUMNS:
        agree(found[column], expected[column])


def test_a_checkpoint_survives_saving(golden, tmp_path):
    for half, name in zip(golden.pair(), ("tokenizer", "predictor"), strict=True):
        half.save_pretrained(tmp_path / name)
        before = load_file(golden.folder / name / "model.safetensors")
        after = load_file(tmp_path / name / "model.safetensors")
        assert before.keys() == after.keys()
        for key, value in before.items():
            assert after[key].dtype == value.dtype
            assert torch.equal(after[key], value), key
        assert type(half).from_pretrained(tmp_path / name).config == half.config


def check_gradients(net, golden, prefix):
    names = [name for name in golden.arrays if name.startswith(prefix)]
    assert names
    parameters = dict(net.named_parameters())
    for name in names:
        agree(parameters[name.removeprefix(prefix)].grad, golden.arrays[name], 1e-4)
