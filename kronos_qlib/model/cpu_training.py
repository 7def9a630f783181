"""What a training step on a CPU computes otherwise, and to the same results, because it is faster.

torch composes norm, rotation and dropout of a CPU from many passes over memory, its attention in
bfloat16 takes seven times as long backwards as in float32, and with dropout it makes a mask of
attention first. `benchmarks/training.py` has what each costs. Inference has its own products.

Shape letters: B windows, T bars, D width, H heads, W head width, N rows.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (its name everywhere)
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CHOICES = 2**16
"""Values of the 16 random bits that decide about an element."""
MOST_BARS = 256
"""Bars up to which low-precision attention keeps its probabilities, T**2 for each head."""


def is_here(x: Tensor) -> bool:
    """Whether x (...) is on a CPU and gradients are wanted."""
    return x.device.type == "cpu" and torch.is_grad_enabled()


class Dropout(nn.Dropout):
    """As torch's, whose CPU kernel draws a double for each element; here 16 bits are drawn.

    The random numbers are of torch's own generator. The share that is dropped is p to 1 in 2**17,
    and what stays is scaled by the exact share that does, so that the mean is kept.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(...) float to (...)."""
        if not self.training or x.device.type != "cpu":
            return super().forward(x)
        return dropped(x, self.p)


def dropped(x: Tensor, p: float) -> Tensor:
    """x (...) on a CPU with each element 0 by probability p, the others scaled by 1 / (1 - p)."""
    kept = round((1 - p) * CHOICES)
    if not 0 < kept < CHOICES:  # nothing or all is dropped
        return F.dropout(x, p, training=True)
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    is_kept = words.view(torch.int16)[: x.numel()] < kept - CHOICES // 2
    return x * is_kept.view(x.shape).to(x.dtype).mul_(CHOICES / kept)


class _ScaledNorm(torch.autograd.Function):
    """Root-mean-square norm times a weight: (N, D) and (D,) to (N, D), with few passes.

    Computed in the weight's type. With r = (mean(x**2) + eps)**-1/2 and g the gradient of
    x * r * weight: dx = r * g * weight - x * r**3 / D * sum(g * weight * x) and
    dweight = sum over rows of g * x * r.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.to(weight.dtype)
        squares = torch.linalg.vector_norm(wide, dim=-1).square_()
        scale = squares.div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        out: Tensor = (wide * scale[:, None]).mul_(weight).to(x.dtype)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        grad, wide = grads[0].to(weight.dtype), x.to(weight.dtype)
        products = grad * wide
        along = products.mv(weight) * scale.pow(3) / -x.shape[-1]
        of_x = (grad * weight).mul_(scale[:, None]).addcmul_(wide, along[:, None])
        return of_x.to(x.dtype), products.t().mv(scale), None


def scaled_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`RMSNorm` of x (..., D) by a weight (D,) of at least float32, in x's type."""
    out: Tensor = _ScaledNorm.apply(x.flatten(0, -2), weight, eps)  # type: ignore[no-untyped-call]
    return out.view(x.shape)


def turned_in_pairs(proj: nn.Linear, x: Tensor, heads: int, frequencies: Tensor) -> Tensor:
    """Project x (B, T, D) and rotate by position: (B, H, T, W) float, components in pairs.

    Component j of a head and j + W / 2, which turn together, come to lie side by side: a rotation
    is then one complex product. Queries and keys in one such order have the same dot products.

    Args:
        frequencies: (W / 2,) of `Rotary`.
    """

    def paired(rows: Tensor) -> Tensor:
        parts = rows.view(heads, 2, len(rows) // heads // 2, *rows.shape[1:])
        return parts.transpose(1, 2).flatten(0, 2)

    bias = None if proj.bias is None else paired(proj.bias)
    flat = F.linear(x, paired(proj.weight), bias)
    wide = flat.to(torch.promote_types(flat.dtype, frequencies.dtype))
    rows, bars, width = wide.shape
    places = torch.arange(bars, dtype=frequencies.dtype)
    angles = (places[:, None] * frequencies).to(wide.dtype)
    turn = torch.polar(torch.ones_like(angles), angles).repeat(1, heads)
    turned = torch.view_as_complex(wide.view(rows, bars, width // 2, 2)) * turn
    out: Tensor = torch.view_as_real(turned).view(rows, bars, heads, width // heads).to(flat.dtype)
    return out.transpose(1, 2)


def attended_causally(q: Tensor, k: Tensor, v: Tensor, dropout_p: float) -> Tensor:
    """Causal attention with gradients: (B, H, T, W) each to (B, H, T, W), in v's type.

    Without dropout torch's own kernel is as fast in float32 and keeps no probabilities; what is
    computed in fewer digits is given to it in float32 where there are many bars.
    """
    kind = v.dtype
    is_low = kind in (torch.bfloat16, torch.float16)
    with torch.autocast("cpu", enabled=False):
        if dropout_p == 0 and not (is_low and v.shape[2] <= MOST_BARS):
            q, k, v = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (q, k, v))
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            return out.to(kind)
        rows, heads, bars, width = q.shape
        flat_q, flat_k, flat_v = (x.reshape(rows * heads, bars, width) for x in (q, k, v))
        later = torch.full((bars, bars), -torch.inf, dtype=q.dtype).triu(1)
        scores = torch.baddbmm(later, flat_q, flat_k.transpose(1, 2), alpha=width**-0.5)
        shares = scores.softmax(dim=-1)  # which sums in float32, whatever the type
        if dropout_p:
            shares = dropped(shares, dropout_p)
        return torch.bmm(shares, flat_v).view(q.shape)
