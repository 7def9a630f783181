"""Steps and their losses: one batch in, named scalars out; "loss" is the one to minimise.

Processes and parts of a batch (`accumulation`) share a loss in two ways. A mean over bars is
computed for each part and weighted by the bars that count in it. Any other loss is computed on the
whole batch, after gathering the network's outputs. Both give the loss and the gradient of one
process that has the whole batch.

Shape letters: B windows, b windows of this process, T bars, V tokens of a vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kronos_qlib.data.windows.gather import WindowBatch
from kronos_qlib.data.windows.window import Windows
from kronos_qlib.errors import TrainingError
from kronos_qlib.model.tokenizer import KronosTokenizer
from kronos_qlib.model.transformer import Kronos
from kronos_qlib.schema import TIME_FIELDS
from kronos_qlib.training.batches import Segment, TrainingBatch
from kronos_qlib.training.codes import CodeTally
from kronos_qlib.training.parallel.distributed import Share, sum_over_processes
from kronos_qlib.training.stage_settings import TrainingConfig

Losses = dict[str, Tensor]
"""Scalars by name, "loss" being the one to minimise; all of them are logged."""


class ReconstructionLoss(Protocol):
    """The tokenizer's criterion; `reconstruction_losses` is the published one.

    It is given the whole batch, also where processes share it or it is accumulated in parts.
    """

    def __call__(
        self, recon_s1: Tensor, recon: Tensor, z: Tensor, bsq_loss: Tensor, counted: Tensor, /
    ) -> Losses:
        """Losses over the bars that count; the others must have no influence.

        Args:
            recon_s1, recon: (B, T, 6) float, reconstructions from the s1 part and the whole code.
            z: (B, T, 6) float, the bars.
            bsq_loss: the quantizer's own scalar.
            counted: (B, T) bool, the bars that count.
        """


class NextTokenLoss(Protocol):
    """The predictor's criterion; `next_token_losses` is the published one.

    Where processes share a batch, or it is accumulated in parts, it is given a part at a time; the
    results are weighted by the bars that count.
    """

    def __call__(
        self, s1_logits: Tensor, s2_logits: Tensor, s1: Tensor, s2: Tensor, counted: Tensor, /
    ) -> Losses:
        """Means over the bars that count; arguments as of `next_token_losses`."""


def encode_exactly(tokenizer: KronosTokenizer, z: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens s1 and s2, (B, T) int64 each, of z (B, T, 6), in the tokenizer's own number type.

    In bfloat16 rounding would change a few codes: targets would differ from those made beforehand,
    and from the tokens in scoring.
    """
    with torch.autocast(z.device.type, enabled=False):
        s1, s2 = tokenizer.encode(z)
    return s1, s2


def mean_where(values: Tensor, counted: Tensor) -> Tensor:
    """Mean of (B, T) values over the bars that count."""
    return (values * counted).sum() / counted.sum()


def next_token_losses(
    s1_logits: Tensor, s2_logits: Tensor, s1: Tensor, s2: Tensor, counted: Tensor
) -> Losses:
    """Mean cross-entropies in nats of the next s1 and s2.

    Args:
        s1_logits, s2_logits: (B, T, V) float.
        s1, s2: (B, T) int64, the tokens of each position's next bar.
        counted: (B, T) bool, whether that next bar counts.

    Returns:
        "loss", the mean of "loss_s1" and "loss_s2": () float each.

    Source: the paper's pretraining objective; no padding mask.
    """

    def entropy(logits: Tensor, ids: Tensor) -> Tensor:
        each = F.cross_entropy(logits.float().flatten(0, 1), ids.flatten(), reduction="none")
        return mean_where(each.view_as(ids), counted)

    loss_s1, loss_s2 = entropy(s1_logits, s1), entropy(s2_logits, s2)
    return {"loss": (loss_s1 + loss_s2) / 2, "loss_s1": loss_s1, "loss_s2": loss_s2}


def reconstruction_losses(
    recon_s1: Tensor, recon: Tensor, z: Tensor, bsq_loss: Tensor, counted: Tensor
) -> Losses:
    """Mean squared errors of both reconstructions, and the published total.

    Args:
        recon_s1, recon, z: (B, T, 6) float, normalised bars.
        bsq_loss: () float, the quantizer's.
        counted: (B, T) bool.

    Returns:
        "loss", "recon_s1", "recon" (squared standard deviations) and "bsq": () float each.
    """

    def error(guess: Tensor) -> Tensor:
        return mean_where((guess - z).square().mean(dim=-1), counted)

    from_s1, from_all = error(recon_s1), error(recon)
    total = (from_s1 + from_all + bsq_loss) / 2
    return {"loss": total, "recon_s1": from_s1, "recon": from_all, "bsq": bsq_loss}


def in_pieces(work: Callable[..., Tensor], *inputs: Tensor, pieces: int) -> Tensor:
    """Apply `work` to rows in `pieces` parts, to bound memory.

    With more than one, each part is computed again in the backward pass, by the same random
    numbers, so that memory holds the activations of one part only (gradient checkpointing).

    Args:
        work: of tensors (b, ...), to one (b, ...), each row by itself.
        inputs: (b, ...) each.

    Source: Chen et al., arXiv 1604.06174.
    """
    pieces = min(pieces, len(inputs[0]))
    if pieces <= 1:
        return work(*inputs)
    parts = zip(*(x.tensor_split(pieces) for x in inputs), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([work(*part) for part in parts])
    return torch.cat([checkpoint(work, *part, use_reentrant=False) for part in parts])


@dataclass(frozen=True)
class TokenizerStep:
    """Trains the tokenizer to reconstruct."""

    net: KronosTokenizer
    criterion: ReconstructionLoss = reconstruction_losses
    needs_whole_batch = True  # an entropy of the codebook is no mean over windows

    def targets(self, batch: TrainingBatch) -> Tensor:
        """Bars that the losses are means over, those that count: () int64."""
        return batch.counted.sum()

    def losses(self, batch: TrainingBatch, pieces: int = 1) -> Losses:
        """The criterion's losses of the whole batch, () float each; see `Step`."""
        return self._reconstructed(batch, pieces)[0]

    def _reconstructed(self, batch: TrainingBatch, pieces: int) -> tuple[Losses, Tensor, Tensor]:
        """Losses of the whole batch; vectors (b, T, W) and bars (b, T, 6) of the own windows."""
        net, share = self.net, batch.share or Share(len(batch))
        own = in_pieces(net.project, batch.z, pieces=pieces)
        projected, z, counted = share.gather(own), share.gather(batch.z), batch.counted
        if share.ranks > 1:
            counted = share.gather(counted.float()).bool()
        codes, bsq_loss = net.tokenizer(projected, counted)

        def bars(codes: Tensor) -> Tensor:
            return torch.stack(net.reconstruct(codes), dim=1)

        recon = in_pieces(bars, codes[share.rows], pieces=pieces)
        recon_s1, recon_all = share.gather(recon).unbind(dim=1)
        losses = self.criterion(recon_s1, recon_all, z, bsq_loss, counted)
        return losses, own, recon[:, 1]

    def validate(
        self, segment: Segment, config: TrainingConfig, device: torch.device | str
    ) -> dict[str, float]:
        """The losses, the use of both codebooks and the error of a reconstructed bar."""
        tally = CodeTally(self.net)

        def losses(batch: TrainingBatch) -> Losses:
            losses, projected, recon = self._reconstructed(batch, 1)
            if batch.share is None or not batch.share.is_empty:
                ids = self.net.join(*self.net.quantizer.to_ids(projected))
                tally.add(recon, ids, batch)
            return losses

        means = evaluate(self, segment, config, device, losses)
        return means | {f"valid_{name}": value for name, value in tally.summary().items()}


@dataclass(frozen=True)
class PredictorStep:
    """Trains the predictor on the tokens of a frozen tokenizer."""

    net: Kronos
    tokenizer: KronosTokenizer
    teacher_forcing: bool = True
    criterion: NextTokenLoss = next_token_losses
    shift_dates: bool = False
    """Whether to train each window under the dates of another part of the year."""
    needs_whole_batch = False

    def __post_init__(self) -> None:
        self.tokenizer.eval()  # with dropout, its tokens would be noise

    def targets(self, batch: TrainingBatch) -> Tensor:
        """Bars that the losses are means over, those with a bar before them: () int64."""
        return batch.counted[:, 1:].sum()

    def losses(self, batch: TrainingBatch, rng: torch.Generator | None = None) -> Losses:
        """The criterion's means over the windows given, () float each; see `Step`."""
        s1, s2 = batch.tokens or encode_exactly(self.tokenizer, batch.z)
        next_s1 = s1[:, 1:]
        # Validation is teacher-forced whatever training does: a likelihood, and deterministic.
        forced = self.teacher_forcing or not self.net.training
        is_shifted = self.shift_dates and self.net.training
        stamps = shifted_dates(batch.stamps, rng) if is_shifted else batch.stamps
        s1_logits, s2_logits = self.net(
            s1[:, :-1],
            s2[:, :-1],
            stamps[:, :-1],
            use_teacher_forcing=forced,
            s1_targets=next_s1 if forced else None,
            rng=rng,
        )
        return self.criterion(s1_logits, s2_logits, next_s1, s2[:, 1:], batch.counted[:, 1:])

    def validate(
        self, segment: Segment, config: TrainingConfig, device: torch.device | str
    ) -> dict[str, float]:
        """Losses in nats, teacher-forced, as `valid_*`; see `evaluate`."""
        return evaluate(self, segment, config, device)


DATE_FIELDS = (("day", 31), ("month", 12))
"""The fields of a stamp that name a date within the year, and how many values each has."""


def shifted_dates(stamps: Tensor, rng: torch.Generator | None = None) -> Tensor:
    """Stamps with the day of the month and the month of each window shifted by a random amount.

    Weekday, day and month together identify nearly every date of a few years, so a network can
    overfit to the dates of its training set. Weekday and time of day stay.

    Args:
        stamps: (B, T, 5) int64, left as they are.

    Returns:
        (B, T, 5) int64.
    """
    shifted = stamps.clone()
    for field, count in DATE_FIELDS:
        place = TIME_FIELDS.index(field)
        turn = torch.randint(count, (len(stamps), 1), generator=rng, device=stamps.device)
        shifted[..., place] = (stamps[..., place] - 1 + turn) % count + 1
    return shifted


def weighted(losses: Losses, weight: Tensor) -> Losses:
    """Losses of a whole batch from those of each process, weighted.

    Args:
        losses: () float each.
        weight: () float, this process' share of the targets.
    """
    names = list(losses)
    values = torch.stack([losses[name].detach().float() for name in names])
    # A process without any windows has a weight of 0.
    summed = sum_over_processes(torch.where(weight > 0, values * weight, 0.0))
    return dict(zip(names, summed, strict=True))


def targets_of(step: Step, batch: Any) -> Tensor:
    """The step's targets in a process' own windows, (); 0 where it has none of its own."""
    targets = step.targets(batch)
    return targets * 0 if batch.share is not None and batch.share.is_empty else targets


@torch.no_grad()  # not inference_mode: weights that were put together within it stay for training
def evaluate(
    step: TokenizerStep | PredictorStep,
    segment: Segment,
    config: TrainingConfig,
    device: torch.device | str,
    losses_of: Callable[[TrainingBatch], Losses] | None = None,
) -> dict[str, float]:
    """Mean losses over a segment, as `valid_*`: no dropout, nothing random, every bar once.

    Windows are weighted by the bars that count in them, so a mean over bars does not depend on
    the batches. The tokenizer's codebook entropy is no such mean: it is that of a batch.

    Args:
        losses_of: used in place of `step.losses`, by a caller that collects something else too.

    Raises:
        TrainingError: a loss is not finite.
    """
    step.net.eval()
    sums: dict[str, float] = defaultdict(float)
    bars = 0.0
    size = min(4 * config.batch_size, len(segment))
    memory = segment.memory(size)
    for start in range(0, len(segment), size):
        which = np.arange(start, min(start + size, len(segment)))
        batch = segment.batch(which, device, memory, Share.here(len(which)))
        losses = losses_of(batch) if losses_of else step.losses(batch)
        check_losses(losses)
        own = targets_of(step, batch)
        total = sum_over_processes(own)
        if not step.needs_whole_batch:
            losses = weighted(losses, own / total)
        check_finite(losses, segment.windows.take(which))
        bars += float(total)
        for name, value in losses.items():
            sums[name] += value.item() * float(total)
    return {f"valid_{name}": value / bars for name, value in sums.items()}


class TrainingData(Protocol):
    """The loop's data: a segment's windows, in batches as a stage's config asks."""

    @property
    def windows(self) -> Windows:
        """The windows that places count."""

    def __len__(self) -> int: ...

    def sampler(self, config: Any) -> Any:
        """Batches of an epoch, as places among the windows; `largest` is the most in one."""

    def to_judge_by(self, config: Any) -> Any:
        """The part by which the stage chooses its weights."""

    def memory(self, size: int) -> WindowBatch | None:
        """Memory for batches of up to `size` windows."""

    def batch(
        self,
        which: Any,
        device: torch.device | str = "cpu",
        out: WindowBatch | None = None,
        share: Share | None = None,
    ) -> Any:
        """The chosen windows as tensors, or this process' share of them."""


class Step(Protocol):
    """What the loop trains: a network, its losses on a batch, its validation on a segment.

    needs_whole_batch: whether `losses` are those of the whole batch, whichever process has which
        windows, by `batch.share.gather`; then `losses` is given a batch at once, to be computed in
        as many `pieces` as asked. Otherwise they are means over `targets` of the windows given,
        and the caller weights them.
    """

    @property
    def net(self) -> torch.nn.Module:
        """The network whose weights are trained."""

    @property
    def needs_whole_batch(self) -> bool:
        """See above."""

    def losses(self, batch: Any) -> Losses:
        """Losses of a batch, () float each; what is random is of torch's own generator."""

    def targets(self, batch: Any) -> Tensor:
        """() number of terms that these windows' losses are means over: the weight of a part."""

    def validate(self, segment: Any, config: Any, device: torch.device | str) -> dict[str, float]:
        """`valid_*` by name: no dropout, nothing random; leaves `net` in evaluation mode."""


def check_losses(losses: Losses) -> None:
    """Refuse what a criterion returned instead of losses.

    Raises:
        TrainingError: the message has what it returned.
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


def check_finite(losses: Losses, windows: Windows) -> None:
    """Stop a run whose loss is not finite.

    Args:
        windows: those of the batch, to be named.

    Raises:
        TrainingError: names the batch's first windows, or what a criterion returned instead.
    """
    check_losses(losses)
    if not torch.isfinite(losses["loss"]):
        raise exploded("loss", losses["loss"].item(), windows)


def exploded(what: str, value: float, windows: Windows) -> TrainingError:
    """The error for a loss or a gradient that is not finite or too large; names its batch."""
    names = windows.describe(slice(0, 5))
    return TrainingError(
        f"the {what} became {value:.6g} on a batch of {len(windows)} windows that begins with "
        f"{', '.join(names)}; lower the learning rate or check these bars"
    )
