"""A product in int8: weights by output channel, activations by row, summed exactly in int32.

A row's scale is its own largest number, found as it comes, so that a row's result depends on no
other row. oneDNN multiplies unsigned numbers by signed ones (VNNI); what is signed it leaves to a
reference implementation a thousand times as slow on a CPU without AMX: so an activation a is kept
as 128 + a * 127 / largest, of which the library takes the 128 off again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from kronos_qlib.inference.products.packed_product import norm_scale
from kronos_qlib.model.layers import RMSNorm

logger = logging.getLogger(__name__)

ZERO = 128
"""What stands for 0 among unsigned numbers."""
LARGEST = 127
"""What stands for a row's largest, less `ZERO`."""
LEAST = 1e-30
"""Of a row's largest, so that a row of zeros can be divided by it."""


class Rows(NamedTuple):
    """Activations (..., D), quantized: (ids - ZERO) * scale."""

    ids: Tensor
    """(..., D) uint8."""
    scale: Tensor
    """(..., 1) float32."""

    def bars(self, which: slice) -> Rows:
        """Those of some bars of (B, T, D)."""
        return Rows(self.ids[:, which].contiguous(), self.scale[:, which])


class Int8Product:
    """As `Product`, of float32 or quantized activations, to float32."""

    def __init__(self, maps: Sequence[nn.Linear], norm: RMSNorm | None = None) -> None:
        weight = torch.cat([each.weight.detach() for each in maps]).float()
        if norm is not None:
            weight = weight * norm.weight.detach()
        biases = [each.bias.detach() for each in maps if each.bias is not None]
        self.bias = torch.cat(biases).float() if biases else None
        self.scale = weight.abs().amax(dim=1).clamp_min_(LEAST) / LARGEST
        ids = (weight / self.scale[:, None]).round_().to(torch.int8)
        self.zeros = torch.zeros(len(ids), dtype=torch.int32)
        self.multiply, self.weight = _pack(ids)

    def __call__(self, x: Tensor | Rows) -> Tensor:
        found, scale = self._unscaled(x)
        if self.bias is None:
            return found.mul_(scale)
        return torch.addcmul(self.bias, found, scale, out=found)

    def swish(self, x: Tensor | Rows) -> Tensor:
        """silu of the product: (..., in) to (..., out)."""
        return F.silu(self(x), inplace=True)

    def plus(self, x: Tensor | Rows, other: Tensor) -> Tensor:
        """The product plus `other`: (..., in) and (..., out) to (..., out)."""
        found, scale = self._unscaled(x)
        torch.addcmul(other, found, scale, out=found)
        return found if self.bias is None else found.add_(self.bias)

    def times(self, x: Tensor | Rows, other: Tensor) -> Rows:
        """The product times `other` by elements: (..., in) and (..., out) to (..., out)."""
        assert self.bias is None
        found, scale = self._unscaled(x)  # a row's scale may wait: what is quantized has its own
        ids, own = quantized(found.mul_(other), overwrite=True)
        return Rows(ids, own.mul_(scale))

    def _unscaled(self, x: Tensor | Rows) -> tuple[Tensor, Tensor]:
        """The product as if rows had the scale 1, (..., out) float32, and their scale."""
        ids, scale = x if isinstance(x, Rows) else quantized(x)
        return self.multiply(ids, self.weight, self.scale, self.zeros), scale


def quantized(x: Tensor, overwrite: bool = False) -> Rows:
    """(..., D) float to whole numbers of each row's own scale.

    Args:
        overwrite: x, float32, is not needed afterwards.
    """
    wide = x.float()
    largest = torch.maximum(
        wide.amax(dim=-1, keepdim=True), wide.amin(dim=-1, keepdim=True).neg_()
    ).clamp_min_(LEAST)
    # Next to 1.5 * 2**23 the neighbours of a float32 are whole numbers: the sum rounds, and its
    # last byte is the result, in a third of the time of torch's cast from float32 to uint8.
    start = wide.new_full((x.shape[-1],), 1.5 * 2**23 + ZERO)
    out = wide if overwrite or wide is not x else None
    places = torch.addcmul(start, wide, LARGEST / largest, out=out)
    return Rows(places.view(torch.int32).to(torch.uint8), largest.div_(LARGEST))


def quantized_norm(x: Tensor, eps: Tensor, spare: int = 0) -> Rows:
    """The root-mean-square norm without its weight, quantized: (..., D) float32.

    What a norm divides a row by goes into the row's scale: the normalised row is never made.

    Args:
        eps: () float32.
        spare: rows of zeros to add; then the result is (rows + spare, D).
    """
    ids, scale = quantized(x)
    scale.mul_(norm_scale(x, eps))
    if spare:
        ids, scale = ids.flatten(0, -2), scale.flatten(0, -2)
        ids = torch.cat((ids, ids.new_full((spare, x.shape[-1]), ZERO)))
        scale = torch.cat((scale, scale.new_zeros(spare, 1)))
    return Rows(ids, scale)


def _pack(ids: Tensor) -> tuple[Any, Tensor]:
    """oneDNN's product, and int8 weights (out, in) in the layout that it wants.

    torch.compile's own ops, private to torch, so that only this function names them.
    """
    ops = torch.ops.onednn
    plain: tuple[Any, ...] = (None, 1.0, 0, torch.float32, "none", [], "")

    def multiply(x: Tensor, weight: Tensor, scale: Tensor, zeros: Tensor) -> Tensor:
        out: Tensor = ops.qlinear_pointwise(x, 1.0, ZERO, weight, scale, zeros, *plain)
        return out

    return multiply, ops.qlinear_prepack(ids, None)


@cache
def can_multiply_int8() -> bool:
    """Whether this torch and this CPU multiply int8 natively, tried on a small product.

    Without VNNI the op is there too: slow, and on some CPUs with sums that are cut off at 16 bits.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    try:
        if not torch.cpu._is_vnni_supported():
            return False
        ids = torch.full((16, 64), LARGEST, dtype=torch.int8)
        ids[::2] = -LARGEST
        x = torch.tensor([[255], [ZERO], [1]], dtype=torch.uint8).repeat(1, 64)
        multiply, weight = _pack(ids)
        found = multiply(x, weight, torch.ones(16), torch.zeros(16, dtype=torch.int32))
    except (AttributeError, NotImplementedError, RuntimeError, TypeError) as lacking:
        logger.info("this torch has no int8 products of oneDNN: %s", lacking)
        return False
    return torch.equal(found, (x.float() - ZERO) @ ids.float().t())
