"""What a quantizer is, and the published one: binary spherical quantization (arXiv 2406.07548).

Shape letters: B windows, T bars, W components of a code (`width`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from kronos_qlib.errors import ConfigError
from kronos_qlib.model.layers import device_of

LOG_FLOOR = 1e-8


class Quantizer(Protocol):
    """What a tokenizer asks of its quantizer, which is an `nn.Module` too.

    For every x, `to_codes(*to_ids(x))` are the codes of `forward(x)`. In evaluation mode no call
    changes the module, and several threads may call it. A checkpoint keeps its parameters, its
    buffers and its class' name: a setting that decides the codes belongs in a buffer.
    """

    __call__: Callable[..., Any]  # torch's own, which leads to `forward`

    @property
    def width(self) -> int:
        """Components of a vector and of its code."""

    @property
    def s1_width(self) -> int:
        """How many of the first components s1 stands for; fewer than all."""

    @property
    def s1_bits(self) -> int:
        """Ids of s1 lie in [0, 2**s1_bits): the predictor's vocabulary, so any may be drawn."""

    @property
    def s2_bits(self) -> int:
        """Ids of s2 lie in [0, 2**s2_bits)."""

    def forward(self, x: Tensor, counted: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Quantize, for training.

        Args:
            x: (B, T, W) float, as projected, neither bounded nor normalised.
            counted: (B, T) bool, the bars that the loss may count; None counts all.

        Returns:
            The codes (B, T, W), through which a gradient reaches x, and the scalar loss of
            quantization, zero if it has none.
        """

    def to_ids(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """s1 and s2 of vectors: (B, T, W) float to (B, T) int64 each, without gradient."""

    def to_codes(self, s1: Tensor, s2: Tensor) -> Tensor:
        """Codes of any ids of the vocabulary: (B, T) int64 each, to (B, T, W) float."""


def check_quantizer(quantizer: Quantizer, s1_bits: int, s2_bits: int) -> None:
    """Refuse a quantizer whose sizes or ids cannot work with these vocabularies.

    Raises:
        ConfigError: names the part of `Quantizer` that does not hold.
    """
    name = type(quantizer).__name__
    members = ("width", "s1_width", "s1_bits", "s2_bits", "to_ids", "to_codes")
    missing = [member for member in members if not hasattr(quantizer, member)]
    if not isinstance(quantizer, nn.Module) or missing:
        lack = f"lacks {', '.join(missing)}" if missing else "is no torch.nn.Module"
        raise ConfigError(f"{name} {lack}; see kronos_qlib.model.quantizer.Quantizer")
    if (quantizer.s1_bits, quantizer.s2_bits) != (s1_bits, s2_bits):
        raise ConfigError(
            f"{name} gives ids of {quantizer.s1_bits} + {quantizer.s2_bits} bits, the "
            f"configuration's vocabularies have {s1_bits} + {s2_bits}; make them agree"
        )
    width = quantizer.width
    if not 0 < quantizer.s1_width < width:
        raise ConfigError(
            f"{name}: s1_width must lie between 1 and width - 1 = {width - 1}, got "
            f"{quantizer.s1_width}"
        )
    # A few vectors from far below to far above zero, and the first and the last of the ids.
    with torch.device(device_of(quantizer)), torch.no_grad():
        ids = quantizer.to_ids(torch.linspace(-9, 9, 7)[None, :, None].repeat(1, 1, width))
        ends = [torch.tensor([[0, 2**bits - 1]]) for bits in (s1_bits, s2_bits)]
        codes = quantizer.to_codes(*ends)
    for which, found, bits in zip(("s1", "s2"), ids, (s1_bits, s2_bits), strict=True):
        if found.dtype != torch.int64 or found.shape != (1, 7):
            raise ConfigError(
                f"{name}.to_ids must turn (1, 7, {width}) into int64 ids (1, 7), {which} is "
                f"{found.dtype} {tuple(found.shape)}"
            )
        if found.min() < 0 or found.max() >= 2**bits:
            raise ConfigError(
                f"{name}.to_ids gives {which} from {found.min()} to {found.max()}, the vocabulary "
                f"of {bits} bits is 0 to {2**bits - 1}"
            )
    if codes.shape != (1, 2, width):
        raise ConfigError(
            f"{name}.to_codes must turn ids (1, 2) into codes (1, 2, {width}), by its width; got "
            f"{tuple(codes.shape)}"
        )


def pack_bits(signs: Tensor) -> Tensor:
    """Pack sign bits into token ids, first bit lowest.

    Args:
        signs: (..., bits) float. Negative is bit 0, anything else bit 1; scale is ignored.

    Returns:
        (...) int64 ids in [0, 2**bits).

    Raises:
        ValueError: more than 62 bits, which int64 cannot hold.

    Source:
        Published `BSQuantizer.bits_to_indices`. The reference has a second codec with the opposite
        bit order for its entropy loss; checkpoints are trained on this one.
    """
    bits = signs.shape[-1]
    if bits > 62:
        raise ValueError(f"at most 62 bits fit an int64 id, got {bits}")
    place = 2 ** torch.arange(bits, device=signs.device)
    return ((signs >= 0).long() * place).sum(dim=-1)


def unpack_bits(ids: Tensor, bits: int) -> Tensor:
    """Ids back to signs.

    Args:
        ids: (...) int64 in [0, 2**bits).

    Returns:
        (..., bits) float32 of -1 and 1, the inverse of `pack_bits`.
    """
    place = torch.arange(bits, device=ids.device)
    return ((ids.unsqueeze(-1) >> place) & 1).float() * 2 - 1


def binary_entropy(p: Tensor) -> Tensor:
    """Entropy in nats of bits that are one with probability p: (...) float to (...)."""
    return -p * torch.log(p + LOG_FLOOR) - (1 - p) * torch.log(1 - p + LOG_FLOOR)


class BinarySphericalQuantizer(nn.Module):
    """The sign of every component of a unit vector, with the straight-through gradient.

    Source: Zhao, Xiong and Krähenbühl, arXiv 2406.07548.
    """

    basis: Tensor
    group_basis: Tensor

    def __init__(
        self,
        s1_bits: int,
        s2_bits: int,
        beta: float,
        gamma0: float,
        gamma: float,
        zeta: float,
        group_size: int,
    ) -> None:
        super().__init__()
        self.s1_bits, self.s2_bits = s1_bits, s2_bits
        self.s1_width, self.width = s1_bits, s1_bits + s2_bits  # a component is a bit
        self.beta, self.gamma0, self.gamma, self.zeta = beta, gamma0, gamma, zeta
        # Nothing here reads the two buffers; published files hold them, and loading is strict.
        self.group_size = group_size
        for name, value in self.constants().items():
            self.register_buffer(name, value)

    def constants(self) -> dict[str, Tensor]:
        """Values that its buffers must have, by name: (W,) and (group_size,) int64."""
        sizes = {"basis": self.width, "group_basis": self.group_size}
        return {name: 2 ** torch.arange(size - 1, -1, -1) for name, size in sizes.items()}

    def forward(self, x: Tensor, counted: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Codes (B, T, W) of +-1/sqrt(W), and the scalar loss; see `Quantizer`."""
        # At least in float32: a mean probability near one half has too few digits in bfloat16.
        unit = F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)
        scale = 1.0 / math.sqrt(x.shape[-1])
        signs = torch.where(unit > 0, 1.0, -1.0).to(unit.dtype)  # zero counts as -1
        codes = ((unit + (signs - unit).detach()) * scale).to(x.dtype)
        if counted is None:
            return codes, self.loss(unit, signs * scale)
        return codes, self.loss(unit[counted], signs[counted] * scale)

    def to_ids(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(..., W) float to s1 and s2, (...) int64 each."""
        signs = torch.where(x > 0, 1.0, -1.0)  # zero counts as -1, where pack_bits has a one
        return pack_bits(signs[..., : self.s1_width]), pack_bits(signs[..., self.s1_width :])

    def to_codes(self, s1: Tensor, s2: Tensor) -> Tensor:
        """(...) int64 each to (..., W) float32 of +-1/sqrt(W)."""
        signs = torch.cat((unpack_bits(s1, self.s1_bits), unpack_bits(s2, self.s2_bits)), dim=-1)
        return signs / math.sqrt(self.width)

    def loss(self, unit: Tensor, codes: Tensor) -> Tensor:
        """Commitment and entropies: certain codes for each bar, evenly used over all bars.

        Args:
            unit: (..., W) float, normalised vectors.
            codes: (..., W) float, what they were quantized to.

        Returns:
            () float, in nats where it is entropy.

        Source: arXiv 2406.07548.
        """
        commitment = (codes.detach() - unit).square().sum(dim=-1).flatten()
        p = torch.sigmoid(-4 * unit / math.sqrt(unit.shape[-1])).flatten(0, -2)
        of_sample = binary_entropy(p).sum(dim=-1).mean()
        of_codebook = binary_entropy(p.mean(dim=0)).sum()
        return self.beta * commitment.mean() + self.zeta * (
            self.gamma0 * of_sample - self.gamma * of_codebook
        )


class BitTokenizer(nn.Module):
    """Holds the quantizer under the name that the published files give it, `tokenizer.bsq`."""

    def __init__(self, bsq: Quantizer) -> None:
        super().__init__()
        self.bsq = bsq

    def forward(self, x: Tensor, counted: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, T, W) float to codes (B, T, W) and a scalar loss, as of `Quantizer.forward`."""
        out: tuple[Tensor, Tensor] = self.bsq(x, counted)
        return out
