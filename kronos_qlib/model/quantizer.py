"""Binary spherical quantization (arXiv 2406.07548): vectors to sign bits, bits to ids."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

LOG_FLOOR = 1e-8


def pack_bits(signs: Tensor) -> Tensor:
    """Pack sign bits into token ids, first bit lowest.

    Args:
        signs: (..., bits) float. Negative is bit 0, anything else bit 1; scale is ignored.

    Returns:
        (...) int64 ids in [0, 2**bits).

    Raises:
        ValueError: more than 62 bits, which int64 cannot hold.
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
    """Entropy in nats of independent bits that are one with probability p, elementwise."""
    return -p * torch.log(p + LOG_FLOOR) - (1 - p) * torch.log(1 - p + LOG_FLOOR)


class BinarySphericalQuantizer(nn.Module):
    """The sign of every component of a unit vector, with the straight-through gradient."""

    basis: Tensor
    group_basis: Tensor

    def __init__(
        self, bits: int, beta: float, gamma0: float, gamma: float, zeta: float, group_size: int
    ) -> None:
        super().__init__()
        self.beta, self.gamma0, self.gamma, self.zeta = beta, gamma0, gamma, zeta
        # Nothing here reads the two buffers; published files hold them, and loading is strict.
        self.register_buffer("basis", 2 ** torch.arange(bits - 1, -1, -1))
        self.register_buffer("group_basis", 2 ** torch.arange(group_size - 1, -1, -1))

    def forward(self, x: Tensor, counted: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Quantize.

        Args:
            x: (B, T, bits).
            counted: (B, T) bool, the bars that the loss may count; None counts all.

        Returns:
            The codes, (B, T, bits) of +-1/sqrt(bits), and the scalar quantization loss.
        """
        unit = F.normalize(x, dim=-1)
        scale = 1.0 / math.sqrt(x.shape[-1])
        signs = torch.where(unit > 0, 1.0, -1.0).to(unit.dtype)  # zero counts as -1
        codes = (unit + (signs - unit).detach()) * scale
        if counted is None:
            return codes, self.loss(unit, signs * scale)
        return codes, self.loss(unit[counted], signs[counted] * scale)

    def loss(self, unit: Tensor, codes: Tensor) -> Tensor:
        """Commitment and entropies: every bar sure of its code, the codes used evenly."""
        commitment = (codes.detach() - unit).square().sum(dim=-1).mean()
        p = torch.sigmoid(-4 * unit / math.sqrt(unit.shape[-1]))
        of_sample = binary_entropy(p).sum(dim=-1).mean()
        of_codebook = binary_entropy(p.flatten(0, -2).mean(dim=0)).sum()
        return self.beta * commitment + self.zeta * (
            self.gamma0 * of_sample - self.gamma * of_codebook
        )


class BitTokenizer(nn.Module):
    """Holds the quantizer under the name that the published files give it, `tokenizer.bsq`."""

    def __init__(self, bsq: BinarySphericalQuantizer) -> None:
        super().__init__()
        self.bsq = bsq

    def forward(self, x: Tensor, counted: Tensor | None = None) -> tuple[Tensor, Tensor]:
        out: tuple[Tensor, Tensor] = self.bsq(x, counted)
        return out
