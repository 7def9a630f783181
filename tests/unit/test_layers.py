"""The blocks: nothing sees a later bar, and narrow types lose no position."""

from __future__ import annotations

import pytest
import torch

from kronos_qlib.errors import ConfigError
from kronos_qlib.model.layers import RMSNorm, Rotary, TimeEmbedding

BARS, CHANGED = 9, 5


def unchanged_before(found, expected, place=CHANGED):
    """Equal up to `place`, and different from there on (or the test would test nothing)."""
    torch.testing.assert_close(found[:, :place], expected[:, :place], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found[:, place:], expected[:, place:], atol=1e-4)


@torch.no_grad()
def test_the_tokenizer_sees_no_later_bar(tiny_pair):
    tokenizer, _ = tiny_pair
    x = torch.randn(2, BARS, 6, generator=torch.Generator().manual_seed(0))
    later = x.clone()
    later[:, CHANGED:] += 2
    unchanged_before(tokenizer(later)[2], tokenizer(x)[2])  # encoder: codes
    unchanged_before(tokenizer(later)[0][0], tokenizer(x)[0][0])  # decoder, from s1
    unchanged_before(tokenizer(later)[0][1], tokenizer(x)[0][1])  # decoder, from all bits


@torch.no_grad()
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_the_predictor_sees_no_later_bar(tiny_pair, training):
    """The published s2 head sees the future in evaluation mode, so its loss flatters it."""
    _, model = tiny_pair
    model.train(training)
    s1, s2, stamp, next_s1 = inputs()
    before = model(s1, s2, stamp, True, next_s1)
    others = [value.clone() for value in (s1, s2, stamp, next_s1)]
    for value in others:
        value[:, CHANGED:] = (value[:, CHANGED:] + 1) % 7
    after = model(*others[:3], True, others[3])
    for found, expected in zip(after, before, strict=True):
        unchanged_before(found, expected)


@torch.no_grad()
def test_s2_depends_on_the_next_s1(tiny_pair):
    _, model = tiny_pair
    s1, s2, stamp, next_s1 = inputs()
    one, other = (model(s1, s2, stamp, True, ids) for ids in (next_s1, (next_s1 + 1) % 7))
    assert torch.equal(one[0], other[0])
    assert not torch.allclose(one[1], other[1])


@torch.no_grad()
def test_a_rotated_s2_head_reads_as_in_training(tiny_pair):
    """`rotate_s2` is the choice that generates as training saw it; without it, as published."""
    _, model = tiny_pair
    s1, s2, stamp, next_s1 = inputs()
    _, context = model.decode_s1(s1, s2, stamp)
    trained = model.decode_s2(context, next_s1)[:, -1]
    rotated, published = (
        model.decode_s2(context, next_s1[:, -1:], rotate)[:, -1] for rotate in (True, False)
    )
    torch.testing.assert_close(rotated, trained, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(published, trained)


@torch.no_grad()
def test_evaluation_has_no_chance_in_it(make_pair):
    """The published validation samples s1, so the same weights score differently each time."""
    _, model = make_pair(dropout=0.5)
    once, again = model(*inputs()[:3]), model(*inputs()[:3])
    assert torch.equal(once[1], again[1])
    model.train()
    assert not torch.equal(model(*inputs()[:3])[0], once[0])


def test_teacher_forcing_and_targets_go_together(tiny_pair):
    _, model = tiny_pair
    s1, s2, stamp, next_s1 = inputs()
    with pytest.raises(ConfigError, match="s1_targets missing"):
        model(s1, s2, stamp, use_teacher_forcing=True)
    with pytest.raises(ConfigError, match="s1_targets given"):
        model(s1, s2, stamp, s1_targets=next_s1)


def test_rotary_tables_stay_exact_in_bfloat16(tiny_pair):
    """Rounded to bfloat16, positions 300 and 301 turn by the same angle."""
    _, model = tiny_pair
    name = "transformer.0.self_attn.rotary.inv_freq"
    before = model.state_dict()[name].clone()
    after = model.to(torch.bfloat16).state_dict()
    assert after[name].dtype == torch.float32
    assert torch.equal(after[name], before)
    assert after["head.proj_s1.weight"].dtype == torch.bfloat16


def test_rotary_scores_depend_on_the_distance_only():
    rotary = Rotary(8)
    q, k = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(0))
    near = rotary(q, 7) @ rotary(k, 4).T
    far = rotary(q, 503) @ rotary(k, 500).T
    torch.testing.assert_close(near, far, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(near, rotary(q, 7) @ rotary(k, 6).T)


def test_the_norm_is_computed_in_float32():
    """In float16 the square of 300 is infinite and the norm would be zero."""
    norm = RMSNorm(4).half()
    x = torch.tensor([[300.0, -300.0, 300.0, -300.0]], dtype=torch.float16)
    assert norm(x).dtype == torch.float16
    assert norm(x).tolist() == [[1, -1, 1, -1]]


def test_the_norm_of_autocast_has_one_type_in_training_and_evaluation():
    """Evaluation gave float32, twice the memory, and rounded once more."""
    norm = RMSNorm(8)
    norm.weight.data.uniform_(0.5, 2.0)
    x = torch.randn(3, 5, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        trained = norm(x)
        with torch.no_grad():
            evaluated = norm.eval()(x)
    assert trained.dtype == evaluated.dtype == torch.bfloat16
    expected = torch.nn.functional.rms_norm(x.float(), (8,), norm.weight, norm.eps)
    for found in (trained, evaluated):
        torch.testing.assert_close(found, expected.to(torch.bfloat16), rtol=2**-7, atol=0)


@pytest.mark.parametrize("learned", [True, False])
def test_a_stamp_is_the_sum_of_its_five_fields(learned):
    times = TimeEmbedding(8, learned)
    stamp = torch.tensor([[59, 23, 6, 31, 12]])
    tables = [weight[place] for weight, place in zip(tables_of(times), stamp[0], strict=True)]
    torch.testing.assert_close(times(stamp)[0], torch.stack(tables).sum(dim=0))
    assert all(weight.requires_grad == learned for weight in times.parameters())


def tables_of(times):
    return list(times.state_dict().values())


def inputs():
    rng = torch.Generator().manual_seed(1)
    s1, s2, stamp, next_s1 = (
        torch.randint(0, 7, shape, generator=rng)
        for shape in ((2, BARS), (2, BARS), (2, BARS, 5), (2, BARS))
    )
    return s1, s2, stamp, next_s1
