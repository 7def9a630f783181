"""Plain single-process training: epochs, causal validation, the best weights kept."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from kronos_qlib.configs import AlphaConfig, TrainingConfig
from kronos_qlib.errors import TrainingError
from kronos_qlib.log import progress
from kronos_qlib.training.steps import Step, TrainingData, check_finite

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
    training: TrainingData,
    validation: TrainingData,
    config: TrainingConfig | AlphaConfig,
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
    chosen = validation.to_judge_by(config)
    sampler = training.sampler(config)
    trained = [weight for weight in net.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=config.weight_decay
    )
    total = config.epochs * len(sampler)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: one_cycle(done, total, config.warmup_share)
    )
    rng = torch.Generator(device).manual_seed(config.seed)
    room = training.memory(sampler.largest)

    row = {"epoch": 0.0, **step.validate(chosen, config, device)}
    history, best, best_epoch = [row], _copy_weights(net), 0
    if on_epoch:
        on_epoch(0, row)
    # Dropout draws from torch's own generator: seeded here, and given back as it was.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        for epoch in range(1, config.epochs + 1):
            net.train()
            sums: dict[str, float] = defaultdict(float)
            seen = 0
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
                seen += len(which)
            row = {"epoch": float(epoch), **step.validate(chosen, config, device)}
            row |= {f"train_{name}": value / seen for name, value in sums.items()}
            history.append(row)
            if on_epoch:
                on_epoch(epoch, row)
            logger.info(
                "epoch %d: training loss %.5f, validation loss %.5f",
                epoch,
                row["train_loss"],
                row["valid_loss"],
            )
            if is_better(row, history[best_epoch], config.metric):
                best, best_epoch = _copy_weights(net), epoch
            elif config.patience is not None and epoch - best_epoch >= config.patience:
                logger.info("no better %s for %d epochs: stopping", config.metric, config.patience)
                break
    net.load_state_dict(best)
    net.eval()
    if best_epoch == 0:
        logger.warning(
            "training did not improve the validation %s of %.5f: the weights are as before",
            config.metric,
            history[0][f"valid_{config.metric}"],
        )
    return TrainingReport(history, best_epoch)


def is_better(row: dict[str, float], best: dict[str, float], metric: str) -> bool:
    """Whether an epoch is to be kept: a lower loss, or a higher anything else."""
    now, before = row[f"valid_{metric}"], best[f"valid_{metric}"]
    return now < before if metric == "loss" else now > before


def one_cycle(done: int, total: int, warmup_share: float) -> float:
    """Share of the peak learning rate after `done` of `total` steps: a rise, then a cosine."""
    rise = warmup_share * total
    if done < rise:
        return START_SHARE + (1 - START_SHARE) * done / rise
    fall = (done - rise) / max(1.0, total - rise)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, fall)))


def _check_segments(training: TrainingData, validation: TrainingData) -> None:
    for name, segment in (("training", training), ("validation", validation)):
        # The published code scores an empty validation set 0 and keeps it as best (fault 4).
        if not len(segment):
            shape = f"{segment.windows.lookback} + {segment.windows.ahead} bars"
            raise TrainingError(
                f"the {name} segment has no window of {shape}; widen it or shorten the window"
            )


def _copy_weights(net: torch.nn.Module) -> dict[str, Tensor | Any]:
    return {name: value.detach().clone() for name, value in net.state_dict().items()}
