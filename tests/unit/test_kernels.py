"""Written-out gradients against autograd's and finite differences; dropout by its definition."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from kronos_qlib.model.kernels import all_finite, dropout, rms_norm, rotate, swiglu


def plain_norm(x, weight):
    wide = x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + 1e-5)
    return normed.to(x.dtype) * weight


def plain_turn(x, cos, sin):
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    angles = torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)
    return (x.float() * angles[0] + turned * angles[1]).to(x.dtype)


def draw(*shape, seed=0, kind=torch.float32):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng).to(kind).requires_grad_()


def assert_alike(ours, plain, inputs, tolerance):
    found, expected = ours(*inputs), plain(*inputs)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(9)).to(found.dtype)
    wanted = [one for one in inputs if one.requires_grad]
    got = torch.autograd.grad((found * weights).sum(), wanted)
    right = torch.autograd.grad((expected * weights).sum(), wanted)
    for one, other in zip(got, right, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=10 * tolerance, atol=10 * tolerance)


@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_gradients_are_autograds(kind, tolerance):
    x, weight = draw(3, 5, 8, kind=kind), draw(8, seed=1, kind=kind)
    assert_alike(lambda x, w: rms_norm(x, w, 1e-5), plain_norm, (x, weight), tolerance)
    angles = torch.arange(5.0)[:, None] * torch.tensor([1.0, 0.3, 0.1, 0.02])
    heads = draw(2, 5, 3, 8, kind=kind).transpose(1, 2)
    assert_alike(
        lambda x: rotate(x, angles.cos(), angles.sin()),
        lambda x: plain_turn(x, angles.cos(), angles.sin()),
        (heads.detach().requires_grad_(),),
        tolerance,
    )
    gate, up = draw(3, 8, kind=kind), draw(3, 8, seed=2, kind=kind)
    assert_alike(swiglu, lambda gate, up: F.silu(gate) * up, (gate, up), tolerance)


def test_gradients_are_the_slopes_in_float64():
    """Against finite differences: nothing of torch's own formulas is in between."""
    x, weight = draw(2, 3, 6, kind=torch.float64), draw(6, seed=1, kind=torch.float64)
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 1e-5), (x, weight))
    angles = torch.arange(3.0, dtype=torch.float64)[:, None] * torch.tensor([1.0, 0.3, 0.1])
    assert torch.autograd.gradcheck(lambda x: rotate(x, angles.cos(), angles.sin()), (x,))
    assert torch.autograd.gradcheck(swiglu, (x, draw(2, 3, 6, seed=2, kind=torch.float64)))


def test_dropout_keeps_its_share_and_the_mean():
    x = torch.ones(400, 1000)
    torch.manual_seed(0)
    for share in (0.1, 0.25, 0.9):
        out = dropout(x, share)
        assert out.unique().tolist() == pytest.approx([0.0, 1 / (1 - share)])
        assert (out == 0).float().mean() == pytest.approx(share, abs=0.003)
        assert (out == 0).float().mean(dim=0).std() < 0.05, "no column is favoured"
    assert dropout(x, 0.0) is x
    assert dropout(torch.ones(7), 0.5).shape == (7,)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_all_finite_says_what_isfinite_does(kind):
    """A sum of large numbers overflows though each of them is finite."""
    largest = torch.finfo(kind).max
    for values, is_finite in (
        ([0.0, -1.0], True),
        ([largest, largest], True),
        ([0.0, float("nan")], False),
        ([float("inf"), float("-inf")], False),
        ([largest, largest, float("-inf")], False),
        ([], True),
    ):
        assert all_finite(torch.tensor(values, dtype=kind)) is is_finite
