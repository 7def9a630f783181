"""Use of a tokenizer's codes and its reconstruction errors, over a validation segment.

Shape letters: B windows, T bars.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kronos_qlib.model.tokenizer import KronosTokenizer
from kronos_qlib.schema import BAR_COLUMNS
from kronos_qlib.training.batches import TrainingBatch
from kronos_qlib.training.parallel.distributed import sum_over_processes


class CodeTally:
    """Which codes a tokenizer uses, and the errors of its bars, over the bars that count.

    The error of a column is in the column's own unit (money, shares) and as a share of the true
    value, at most 1; bars whose true value is 0 (no volume) are left out of the latter.
    """

    def __init__(self, tokenizer: KronosTokenizer) -> None:
        self.bits = {"s1": tokenizer.s1_bits, "s2": tokenizer.s2_bits}
        self.counts = {name: torch.zeros(2**bits) for name, bits in self.bits.items()}
        self.errors = torch.zeros(4, len(BAR_COLUMNS), dtype=torch.float64)

    def add(self, recon: Tensor, ids: Tensor, batch: TrainingBatch) -> None:
        """Add a batch: reconstructions (B, T, 6) float and unsplit ids (B, T) int64."""
        counted = batch.counted
        halves = {"s1": ids & (2 ** self.bits["s1"] - 1), "s2": ids >> self.bits["s1"]}
        for name, half in halves.items():
            found = torch.bincount(half[counted], minlength=2 ** self.bits[name])
            self.counts[name] = self.counts[name] + found.cpu()
        if batch.spread is None or batch.level is None:
            return
        spread, level = (part.cpu().double()[:, None] for part in (batch.spread, batch.level))
        z, guess = batch.z.cpu().double(), recon.float().cpu().double()
        is_counted = counted.cpu()
        error = ((guess - z).abs() * spread)[is_counted]
        bars = (z * spread + level).abs()[is_counted]
        has_any = bars > 1e-9 * level.abs().expand_as(z)[is_counted]
        share = torch.where(has_any, (error / bars.clamp_min(1e-300)).clamp_max(1), 0.0)
        rows = torch.full_like(error[:1].sum(dim=0), float(len(error)))
        self.errors += torch.stack(
            (error.sum(dim=0), rows, share.sum(dim=0), has_any.double().sum(dim=0))
        )

    def summary(self) -> dict[str, float]:
        """Of all processes: share of the codes used, entropy in nats, errors by column."""
        found: dict[str, float] = {}
        for name, bits in self.bits.items():
            counts = sum_over_processes(self.counts[name].double())
            shares = counts / counts.sum().clamp_min(1)
            found[f"{name}_used"] = float((counts > 0).sum()) / 2**bits
            found[f"{name}_entropy"] = float(torch.special.entr(shares).sum())
        errors, rows, shares, seen = sum_over_processes(self.errors)
        for place, column in enumerate(BAR_COLUMNS):
            found[f"error_{column}"] = float(errors[place] / rows[place].clamp_min(1))
            found[f"relative_error_{column}"] = float(shares[place] / seen[place].clamp_min(1))
        return found
