"""The losses: one batch in, named scalars out; the first is the one to minimise."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from kronos_qlib.configs import TrainingConfig
from kronos_qlib.data.gather import WindowBatch
from kronos_qlib.data.windows import Windows
from kronos_qlib.errors import TrainingError
from kronos_qlib.model.tokenizer import KronosTokenizer
from kronos_qlib.model.transformer import Kronos
from kronos_qlib.training.batches import Segment, TrainingBatch

Losses = dict[str, Tensor]
"""Scalars by name, "loss" being the one to minimise; all of them are logged."""


class ReconstructionLoss(Protocol):
    """What the tokenizer learns by; `reconstruction_losses` is the published one."""

    def __call__(
        self, recon_s1: Tensor, recon: Tensor, z: Tensor, bsq_loss: Tensor, counted: Tensor, /
    ) -> Losses:
        """Means over the bars that count; a bar that does not must change nothing.

        Args:
            recon_s1, recon: (B, T, 6) float, reconstructions from the s1 part and the whole code.
            z: (B, T, 6) float, the bars.
            bsq_loss: the quantizer's own scalar.
            counted: (B, T) bool, the bars that count.
        """


class NextTokenLoss(Protocol):
    """What the predictor learns by; `next_token_losses` is the published one."""

    def __call__(
        self, s1_logits: Tensor, s2_logits: Tensor, s1: Tensor, s2: Tensor, counted: Tensor, /
    ) -> Losses:
        """Means over the bars that count; arguments as of `next_token_losses`."""


def mean_where(values: Tensor, counted: Tensor) -> Tensor:
    """Mean of (B, T) values over the bars that count."""
    return (values * counted).sum() / counted.sum()


def next_token_losses(
    s1_logits: Tensor, s2_logits: Tensor, s1: Tensor, s2: Tensor, counted: Tensor
) -> Losses:
    """Mean cross-entropies in nats of the next s1 and s2.

    Args:
        s1_logits, s2_logits: (B, T, vocabulary) float.
        s1, s2: (B, T) int64, the tokens of each position's next bar.
        counted: (B, T) bool, whether that next bar counts.
    """

    def entropy(logits: Tensor, ids: Tensor) -> Tensor:
        each = F.cross_entropy(logits.float().flatten(0, 1), ids.flatten(), reduction="none")
        return mean_where(each.view_as(ids), counted)

    loss_s1, loss_s2 = entropy(s1_logits, s1), entropy(s2_logits, s2)
    return {"loss": (loss_s1 + loss_s2) / 2, "loss_s1": loss_s1, "loss_s2": loss_s2}


def reconstruction_losses(
    recon_s1: Tensor, recon: Tensor, z: Tensor, bsq_loss: Tensor, counted: Tensor
) -> Losses:
    """Mean squared errors of both reconstructions (z units squared), and the published total."""

    def error(guess: Tensor) -> Tensor:
        return mean_where((guess - z).square().mean(dim=-1), counted)

    from_s1, from_all = error(recon_s1), error(recon)
    total = (from_s1 + from_all + bsq_loss) / 2
    return {"loss": total, "recon_s1": from_s1, "recon": from_all, "bsq": bsq_loss}


@dataclass(frozen=True)
class TokenizerStep:
    """Trains the tokenizer to reconstruct."""

    net: KronosTokenizer
    criterion: ReconstructionLoss = reconstruction_losses

    def targets(self, batch: TrainingBatch) -> int:
        """Bars that the losses are means over: those that count."""
        return int(batch.counted.sum())

    def losses(self, batch: TrainingBatch, rng: torch.Generator) -> Losses:
        (recon_s1, recon), bsq_loss, _, _ = self.net(batch.z, batch.counted)
        return self.criterion(recon_s1, recon, batch.z, bsq_loss, batch.counted)

    def validate(
        self, segment: Segment, config: TrainingConfig, device: torch.device | str
    ) -> dict[str, float]:
        return evaluate(self, segment, config, device)


@dataclass(frozen=True)
class PredictorStep:
    """Trains the predictor on the tokens of a frozen tokenizer."""

    net: Kronos
    tokenizer: KronosTokenizer
    teacher_forcing: bool = True
    criterion: NextTokenLoss = next_token_losses

    def __post_init__(self) -> None:
        self.tokenizer.eval()  # with dropout, its tokens would be noise

    def targets(self, batch: TrainingBatch) -> int:
        """Bars that the losses are means over: those that count and have a bar before them."""
        return int(batch.counted[:, 1:].sum())

    def losses(self, batch: TrainingBatch, rng: torch.Generator) -> Losses:
        s1, s2 = self.tokenizer.encode(batch.z)
        next_s1 = s1[:, 1:]
        # Validation is teacher-forced whatever training does: a likelihood, and deterministic.
        forced = self.teacher_forcing or not self.net.training
        s1_logits, s2_logits = self.net(
            s1[:, :-1],
            s2[:, :-1],
            batch.stamps[:, :-1],
            use_teacher_forcing=forced,
            s1_targets=next_s1 if forced else None,
            rng=rng,
        )
        return self.criterion(s1_logits, s2_logits, next_s1, s2[:, 1:], batch.counted[:, 1:])

    def validate(
        self, segment: Segment, config: TrainingConfig, device: torch.device | str
    ) -> dict[str, float]:
        return evaluate(self, segment, config, device)


@torch.inference_mode()
def evaluate(
    step: TokenizerStep | PredictorStep,
    segment: Segment,
    config: TrainingConfig,
    device: torch.device | str,
) -> dict[str, float]:
    """Mean losses over a segment, as `valid_*`: no dropout, no chance, every bar counted once.

    Windows are weighed by the bars that count in them, so a mean over bars does not depend on
    the batches. The tokenizer's codebook entropy is no such mean: it is that of a batch.
    """
    step.net.eval()
    device = torch.device(device)
    rng = torch.Generator(device).manual_seed(config.seed)
    sums: dict[str, float] = defaultdict(float)
    bars = 0
    size = min(4 * config.batch_size, len(segment))
    room = segment.memory(size)
    for start in range(0, len(segment), size):
        which = np.arange(start, min(start + size, len(segment)))
        batch = segment.batch(which, device, room)
        losses = step.losses(batch, rng)
        check_finite(losses, segment.windows.take(which))
        weight = step.targets(batch)
        bars += weight
        for name, value in losses.items():
            sums[name] += value.item() * weight
    return {f"valid_{name}": value / bars for name, value in sums.items()}


class TrainingData(Protocol):
    """What the loop trains on: a segment's windows, in batches as a stage's config asks."""

    @property
    def windows(self) -> Windows: ...

    def __len__(self) -> int: ...

    def sampler(self, config: Any) -> Any:
        """Batches of an epoch, as places among the windows; `largest` of them has how many."""

    def to_judge_by(self, config: Any) -> Any:
        """What of it the stage chooses its weights by."""

    def memory(self, size: int) -> WindowBatch | None:
        """Room for batches of up to `size` windows."""

    def batch(
        self, which: Any, device: torch.device | str = "cpu", out: WindowBatch | None = None
    ) -> Any:
        """The chosen windows as tensors."""


class Step(Protocol):
    """What the loop trains: a network, its losses on a batch, its worth on a segment."""

    @property
    def net(self) -> torch.nn.Module: ...

    def losses(self, batch: Any, rng: torch.Generator) -> Losses: ...

    def validate(self, segment: Any, config: Any, device: torch.device | str) -> dict[str, float]:
        """`valid_*` by name: no dropout, no chance; leaves the network in evaluation mode."""


def check_finite(losses: Losses, windows: Windows) -> None:
    """Stop a run whose loss is no number.

    Args:
        windows: those of the batch, to be named.

    Raises:
        TrainingError: names the batch's first windows, or what a criterion gave instead of a loss.
    """
    if "loss" not in losses:
        raise TrainingError(
            'a criterion must return the loss to minimise as "loss", this one returned '
            f"{', '.join(losses) or 'nothing'}"
        )
    if not isinstance(losses["loss"], Tensor) or losses["loss"].ndim:
        raise TrainingError(
            "a criterion's loss is a tensor of one number, this one is "
            f"{getattr(losses['loss'], 'shape', losses['loss'])!r}"
        )
    if not torch.isfinite(losses["loss"]):
        names = windows.describe(slice(0, 5))
        raise TrainingError(
            f"the loss became {losses['loss'].item()} on a batch of {len(windows)} windows "
            f"that begins with {', '.join(names)}; lower the learning rate or check these bars"
        )
