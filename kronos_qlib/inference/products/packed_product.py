"""One matrix product with weights that stay: packed into the layout of oneDNN where it can be."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from kronos_qlib.model.layers import RMSNorm

logger = logging.getLogger(__name__)


class Product:
    """x @ weight.T + bias, with what follows it folded in where the library can.

    Several linear maps of one input, given together, come out side by side. The weight of a norm
    before them can be folded in: they then read what `normalised` returns.
    """

    def __init__(
        self, maps: Sequence[nn.Linear], dtype: torch.dtype, norm: RMSNorm | None = None
    ) -> None:
        weight = torch.cat([each.weight.detach() for each in maps])
        if norm is not None:
            weight = weight * norm.weight.detach()
        weight = weight.to(dtype)
        biases = [each.bias.detach() for each in maps if each.bias is not None]
        self.bias = torch.cat(biases).to(dtype) if biases else None
        self.packed: Any = None
        if weight.device.type == "cpu" and can_pack(dtype):
            self.packed, weight = _pack(weight)
        self.weight = weight

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed is None:
            return F.linear(x, self.weight, self.bias)
        out: Tensor = self.packed(x, self.weight, self.bias, "none", [], "")
        return out

    def swish(self, x: Tensor) -> Tensor:
        """silu of the product: (..., in) to (..., out)."""
        if self.packed is None or self.weight.dtype == torch.bfloat16:
            # oneDNN's own costs twice the bfloat16 product, torch's on the result less.
            return F.silu(self(x), inplace=True)
        out: Tensor = self.packed(x, self.weight, self.bias, "swish", [], "")
        return out

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """The product plus `other`: (..., in) and (..., out) to (..., out)."""
        if self.packed is None:
            return self(x) + other
        out: Tensor = self.packed.binary(x, other, self.weight, self.bias, "add")
        return out

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """The product times `other` by elements: (..., in) and (..., out) to (..., out)."""
        if self.packed is None:
            return self(x) * other
        out: Tensor = self.packed.binary(x, other, self.weight, self.bias, "mul")
        return out


def _pack(weight: Tensor) -> tuple[Any, Tensor]:
    """oneDNN's product, and a weight (out, in) in the layout that it wants.

    torch.compile's own ops for frozen weights: oneDNN, where F.linear asks MKL. They are private to
    torch, so that only this function and `can_pack` name them.
    """
    ops = torch.ops.mkldnn
    return ops._linear_pointwise, ops._reorder_linear_weight(weight.contiguous(), None)


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this torch and this machine multiply the type by `_pack`, tried on a small product.

    A CPU may lack what bfloat16 needs, and another torch may lack the ops or call them otherwise:
    then F.linear does all products.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    try:
        if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        x = torch.arange(-8.0, 8.0).view(2, 8).to(dtype)
        square = torch.eye(8, dtype=dtype) * 2
        linear, packed = _pack(square)
        found = [
            linear(x, packed, None, "none", [], ""),
            linear(x, packed, None, "swish", [], ""),
            *(linear.binary(x, x, packed, None, name) for name in ("add", "mul")),
        ]
    except (AttributeError, NotImplementedError, RuntimeError, TypeError) as lacking:
        logger.info("this torch packs no %s for oneDNN, products are slower: %s", dtype, lacking)
        return False
    expected = (2 * x, F.silu(2 * x), 3 * x, 2 * x * x)
    return all(torch.allclose(*pair, rtol=0.02) for pair in zip(found, expected, strict=True))


def normalised(x: Tensor, eps: Tensor, spare: int = 0) -> Tensor:
    """The root-mean-square norm without its weight, computed in float32: (..., D) to (..., D).

    Args:
        eps: () float32, see `eps_of`.
        spare: rows of zeros to add; then the result is (rows + spare, D).
    """
    wide = x.float()
    scale = norm_scale(wide, eps)
    if spare:
        rows = scale.numel()
        out = x.new_empty(rows + spare, x.shape[-1])
        out[rows:] = 0
        given = out[:rows].view(x.shape)
        if wide is x:
            torch.mul(wide, scale, out=given)
        else:
            given.copy_(wide.mul_(scale))
        return out
    # In place where the cast made a copy: fresh memory costs as much as the arithmetic.
    return wide * scale if wide is x else wide.mul_(scale).to(x.dtype)


def eps_of(norm: RMSNorm) -> Tensor:
    """The norm's epsilon, () float32 where its weight is."""
    return torch.tensor(norm.eps, dtype=torch.float32, device=norm.weight.device)


def norm_scale(x: Tensor, eps: Tensor) -> Tensor:
    """What the root-mean-square norm multiplies each row by: (..., D) float32 to (..., 1)."""
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    # One operation: three by Python's numbers take twice as long on few rows.
    return torch.addcmul(eps, size, size, value=1 / x.shape[-1]).rsqrt_()
