"""Bits to ids and back, and the quantizer's loss against its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kronos_qlib.model.quantizer import BinarySphericalQuantizer, pack_bits, unpack_bits

bits_and_ids = st.integers(1, 62).flatmap(
    lambda bits: st.tuples(
        st.just(bits), st.lists(st.integers(0, 2**bits - 1), min_size=1, max_size=9)
    )
)


@given(bits_and_ids)
def test_ids_survive_the_round_trip(case):
    bits, ids = case[0], torch.tensor(case[1])
    signs = unpack_bits(ids, bits)
    assert signs.shape == (*ids.shape, bits)
    assert set(signs.unique().tolist()) <= {-1.0, 1.0}
    assert torch.equal(pack_bits(signs * 0.3), ids)


@given(bits_and_ids)
def test_the_first_bit_is_the_lowest(case):
    """Checkpoints are trained on this order; the other one gives fluent nonsense."""
    bits, ids = case
    written = [format(number, f"0{bits}b")[::-1] for number in ids]
    expected = [[1.0 if digit == "1" else -1.0 for digit in word] for word in written]
    assert unpack_bits(torch.tensor(ids), bits).tolist() == expected


def test_too_many_bits_are_refused():
    with pytest.raises(ValueError, match="62"):
        pack_bits(torch.ones(63))


@given(seed=st.integers(0, 999), bits=st.integers(1, 8), rows=st.integers(1, 5))
def test_codes_are_signs_on_the_unit_sphere(seed, bits, rows):
    x = torch.randn(2, rows, bits, generator=torch.Generator().manual_seed(seed))
    x[0, 0, 0] = 0.0  # zero counts as -1
    codes, _ = quantizer(bits)(x)
    expected = np.where(x.numpy() > 0, 1.0, -1.0) / math.sqrt(bits)
    np.testing.assert_allclose(codes.numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(codes.norm(dim=-1).numpy(), 1.0, rtol=1e-6)


@given(seed=st.integers(0, 999), bits=st.integers(1, 6), rows=st.integers(1, 5))
def test_the_loss_is_its_definition(seed, bits, rows):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, rows, bits))
    unit = x / np.linalg.norm(x, axis=-1, keepdims=True)
    codes = np.where(x > 0, 1.0, -1.0) / math.sqrt(bits)
    p = 1 / (1 + np.exp(4 * unit / math.sqrt(bits)))

    def entropy(p):
        return -p * np.log(p + 1e-8) - (1 - p) * np.log(1 - p + 1e-8)

    commitment = ((codes - unit) ** 2).sum(axis=-1).mean()
    of_sample = entropy(p).sum(axis=-1).mean()
    of_codebook = entropy(p.mean(axis=(0, 1))).sum()
    expected = 0.05 * commitment + 0.3 * (1.0 * of_sample - 1.1 * of_codebook)
    _, loss = quantizer(bits)(torch.from_numpy(x))
    assert loss.item() == pytest.approx(expected, rel=1e-6, abs=1e-8)


@given(seed=st.integers(0, 99), seen=st.integers(1, 4))
def test_the_loss_sees_counted_bars_only(seed, seen):
    x = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(seed))
    counted = torch.zeros(3, 5, dtype=torch.bool)
    counted[:, seen:] = True
    _, loss = quantizer(4)(x, counted)
    _, expected = quantizer(4)(x[:, seen:])
    torch.testing.assert_close(loss, expected)


def test_the_gradient_goes_straight_through():
    x = torch.tensor([[[3.0, 4.0]]], requires_grad=True)
    codes, _ = quantizer(2)(x)
    codes[..., 0].sum().backward()
    # d(x0 / |x|) / dx = (y^2, -xy) / |x|^3, times 1 / sqrt(bits)
    expected = np.array([16.0, -12.0]) / 125 / math.sqrt(2)
    np.testing.assert_allclose(x.grad[0, 0].numpy(), expected, rtol=1e-6)


def quantizer(bits):
    return BinarySphericalQuantizer(
        bits, 0, beta=0.05, gamma0=1.0, gamma=1.1, zeta=0.3, group_size=1
    )
