"""Small functions of the network's inner loop, with gradients written out.

Each does what the formula beside it says. Left to autograd they keep more in memory and pass over
it more often, at these widths that is most of a training step on a CPU (benchmarks/training.py).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.autograd.function import once_differentiable

from kronos_qlib.model.crew import crew

SIXTEEN_BITS = 2**16


def all_finite(values: Tensor) -> bool:
    """Whether no number is NaN or infinite; a sum costs a third of asking every number."""
    # Finite numbers may have a sum that overflows.
    return math.isfinite(float(values.sum())) or bool(torch.isfinite(values).all())


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x**2) + eps) in float32 at least, back in x's type, times weight."""
    out: Tensor = _RMSNorm.apply(  # type: ignore[no-untyped-call]
        x, weight, eps
    )
    return out


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        rate = torch.linalg.vecdot(wide, wide).unsqueeze(-1)
        rate = rate.div_(x.shape[-1]).add_(eps).rsqrt_()
        normed = (wide * rate).to(x.dtype)
        ctx.save_for_backward(normed, rate, weight)
        out: Tensor = normed * weight
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        normed, rate, weight = ctx.saved_tensors
        grad, wide = grads[0].to(rate.dtype), normed.to(rate.dtype)
        to_weight = (grad * wide).flatten(0, -2).sum(dim=0)
        to_x = grad * weight
        share = torch.linalg.vecdot(to_x, wide).unsqueeze(-1).div_(wide.shape[-1])
        to_x.addcmul_(wide, share, value=-1).mul_(rate)
        return to_x.to(normed.dtype), to_weight.to(weight.dtype), None


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x[i], x[i + W/2]) of the last dimension by the angles of the tables.

    Args:
        x: (..., T, W) of any float type; worked on in float32.
        cos, sin: (T, W/2) float32.
    """
    out: Tensor = _Rotation.apply(  # type: ignore[no-untyped-call]
        x, cos, sin
    )
    return out


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(grads[0], cos, -sin), None, None  # back by the same angles


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    wide = x.to(cos.dtype)
    first, second = wide.chunk(2, dim=-1)
    out = torch.empty_like(wide)
    to_first, to_second = out.chunk(2, dim=-1)
    torch.mul(first, cos, out=to_first).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=to_second).addcmul_(first, sin)
    return out.to(x.dtype)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up."""
    out: Tensor = _SwiGLU.apply(  # type: ignore[no-untyped-call]
        gate, up
    )
    return out


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        to_gate = torch.ops.aten.silu_backward(grads[0] * up, gate)
        return to_gate, F.silu(gate).mul_(grads[0])


def dropout(x: Tensor, p: float) -> Tensor:
    """Zero a share `p` of the entries, the rest over 1 - p; the chance is the crew member's own.

    On a CPU torch draws a number for every entry, one after another; here each takes 16 bits of a
    64-bit draw, so `p` is met to 1/65536.
    """
    if p == 0:
        return x
    rng = crew().rng
    if x.device.type != "cpu":
        if rng is None:
            return F.dropout(x, p)
        kept = torch.empty(x.shape, device=x.device, dtype=x.dtype).bernoulli_(1 - p, generator=rng)
        return x * kept.div_(1 - p)
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64)
    draws.random_(-(2**63), None, generator=rng)
    bits = draws.view(torch.int16)[: x.numel()].view(x.shape)
    kept = bits >= round(p * SIXTEEN_BITS) - SIXTEEN_BITS // 2
    return x * kept.to(x.dtype).mul_(1 / (1 - p))
