"""Plain single-process training: epochs, causal validation, the best weights kept."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kronos_qlib.configs import TrainingConfig
from kronos_qlib.errors import TrainingError
from kronos_qlib.log import progress
from kronos_qlib.training.batches import EpochSampler, Segment
from kronos_qlib.training.steps import Step, check_finite

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

START_SHARE = 0.1
"""Share of the peak learning rate at which the schedule begins."""

OnEpoch = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class TrainingReport:
    """What a stage did.

    history: one row per epoch, epoch 0 being the weights it began with; `valid_*` are the
        validation losses, `train_*` the means over the epoch's steps.
    best_epoch: the epoch whose weights the network now has; 0 if training improved nothing.
    """

    history: list[dict[str, float]]
    best_epoch: int


def train(
    step: Step,
    training: Segment,
    validation: Segment,
    config: TrainingConfig,
    *,
    device: torch.device | str = "cpu",
    show_progress: bool = False,
    on_epoch: OnEpoch | None = None,
) -> TrainingReport:
    """Train `step.net` in place and leave it with its best weights, in evaluation mode.

    The weights it came with are scored too: a stage that makes the validation loss worse leaves
    them as they were, and says so.

    Args:
        training, validation: windows with their horizon; they must share no target.
        on_epoch: called with the epoch's number and its row of the history, for logs and MLflow.

    Raises:
        TrainingError: a segment has no windows, or the loss stops being finite.
    """
    _check_segments(training, validation)
    device = torch.device(device)
    net = step.net.to(device)
    chosen = validation.evenly(config.validation_windows)
    sampler = EpochSampler(
        len(training), config.batch_size, seed=config.seed, limit=config.windows_per_epoch
    )
    trained = [weight for weight in net.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=config.weight_decay
    )
    total = config.epochs * len(sampler)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: one_cycle(done, total, config.warmup_share)
    )
    rng = torch.Generator(device).manual_seed(config.seed)
    room = training.memory(config.batch_size)

    row = {"epoch": 0.0, **evaluate(step, chosen, config, device)}
    history, best, best_epoch = [row], _copy_weights(net), 0
    if on_epoch:
        on_epoch(0, row)
    # Dropout draws from torch's own generator: seeded here, and given back as it was.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        for epoch in range(1, config.epochs + 1):
            net.train()
            sums: dict[str, float] = defaultdict(float)
            batches = progress(
                sampler.epoch(epoch),
                f"{type(net).__name__} epoch {epoch}/{config.epochs}",
                unit="batch",
                total=len(sampler),
                show=show_progress,
            )
            for which in batches:
                batch = training.batch(which, device, room)
                losses = step.losses(batch, rng)
                check_finite(losses, training.windows.take(which))
                optimizer.zero_grad(set_to_none=True)
                losses["loss"].backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(trained, config.clip_norm)
                optimizer.step()
                schedule.step()
                for name, value in losses.items():
                    sums[name] += value.item() * len(which)
            row = {"epoch": float(epoch), **evaluate(step, chosen, config, device)}
            row |= {f"train_{name}": value / sampler.count for name, value in sums.items()}
            history.append(row)
            if on_epoch:
                on_epoch(epoch, row)
            logger.info(
                "epoch %d: training loss %.5f, validation loss %.5f",
                epoch,
                row["train_loss"],
                row["valid_loss"],
            )
            if row["valid_loss"] < history[best_epoch]["valid_loss"]:
                best, best_epoch = _copy_weights(net), epoch
            elif config.patience is not None and epoch - best_epoch >= config.patience:
                logger.info("no better validation loss for %d epochs: stopping", config.patience)
                break
    net.load_state_dict(best)
    net.eval()
    if best_epoch == 0:
        logger.warning(
            "training did not lower the validation loss of %.5f: the weights are as before",
            history[0]["valid_loss"],
        )
    return TrainingReport(history, best_epoch)


@torch.inference_mode()
def evaluate(
    step: Step, segment: Segment, config: TrainingConfig, device: torch.device | str
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


def one_cycle(done: int, total: int, warmup_share: float) -> float:
    """Share of the peak learning rate after `done` of `total` steps: a rise, then a cosine."""
    rise = warmup_share * total
    if done < rise:
        return START_SHARE + (1 - START_SHARE) * done / rise
    fall = (done - rise) / max(1.0, total - rise)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, fall)))


def _check_segments(training: Segment, validation: Segment) -> None:
    for name, segment in (("training", training), ("validation", validation)):
        # The published code scores an empty validation set 0 and keeps it as best (fault 4).
        if not len(segment):
            shape = f"{segment.windows.lookback} + {segment.windows.ahead} bars"
            raise TrainingError(
                f"the {name} segment has no window of {shape}; widen it or shorten the window"
            )


def _copy_weights(net: torch.nn.Module) -> dict[str, Tensor | Any]:
    return {name: value.detach().clone() for name, value in net.state_dict().items()}
