"""Plain single-process training: epochs, causal validation, the best weights kept."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from kronos_qlib.configs import AlphaConfig, TrainingConfig
from kronos_qlib.errors import TrainingError
from kronos_qlib.log import progress
from kronos_qlib.training.steps import Losses, Step, TrainingData, check_finite
from kronos_qlib.training.store import RunStore

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

START_SHARE = 0.1
"""Share of the peak learning rate at which the schedule begins."""

COUNTS = ("epoch", "best_epoch", "steps", "batches", "seen")
"""Numbers of a run that its state has under their names."""

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
    store: RunStore | None = None,
) -> TrainingReport:
    """Train `step.net` in place and leave it with its best weights, in evaluation mode.

    The weights it came with are scored too: a stage that makes the validation loss worse leaves
    them as they were, and says so.

    Args:
        training, validation: windows with their horizon; they must share no target.
        on_epoch: called with the epoch's number and its row of the history, for logs and MLflow;
            a run that goes on begins with the epochs behind it.
        store: keeps the run's state as it goes. Where it has one, the run goes on from there, on
            a CPU to the same bits as one that was never stopped.

    Raises:
        TrainingError: a segment has no windows, the loss stops being finite, or a state cannot be
            written.
        ConfigError: the state is another run's.
    """
    _check_segments(training, validation)
    device = torch.device(device)
    chosen = validation.to_judge_by(config)
    sampler = training.sampler(config)
    run = _Run(step.net.to(device), config, len(sampler), device)
    room = training.memory(sampler.largest)
    # Dropout draws from torch's own generator: seeded here, and given back as it was.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        kept = store.load() if store else None
        if kept is not None:
            run.restore(kept[1])
            logger.info("going on after epoch %d and %d batches", run.epoch, run.batches)
            for row in run.history if on_epoch else ():
                on_epoch(int(row["epoch"]), row)  # type: ignore[misc]
        else:
            run.close_epoch(step.validate(chosen, config, device), on_epoch)
        while not run.is_done:
            run.net.train()
            batches = progress(
                sampler.epoch(run.epoch + 1, start=run.batches),
                f"{type(run.net).__name__} epoch {run.epoch + 1}/{config.epochs}",
                unit="batch",
                total=len(sampler) - run.batches,
                show=show_progress,
            )
            for which in batches:
                batch = training.batch(which, device, room)
                losses = step.losses(batch, run.rng)
                check_finite(losses, training.windows.take(which))
                run.learn(losses, len(which))
                # The last batch's state is kept with its epoch's validation.
                if store and run.steps % store.every == 0 and run.batches < len(sampler):
                    store.save(run.steps, run.state())
            run.close_epoch(step.validate(chosen, config, device), on_epoch)
            if store:
                store.save(run.steps, run.state())
    run.net.load_state_dict(run.best)
    run.net.eval()
    if run.best_epoch == 0:
        logger.warning(
            "training did not improve the validation %s of %.5f: the weights are as before",
            config.metric,
            run.history[0][f"valid_{config.metric}"],
        )
    return TrainingReport(run.history, run.best_epoch)


class _Run:
    """Everything that a run changes as it goes, and that it needs to go on."""

    def __init__(
        self,
        net: torch.nn.Module,
        config: TrainingConfig | AlphaConfig,
        batches_per_epoch: int,
        device: torch.device,
    ) -> None:
        self.net, self.config, self.device = net, config, device
        self.trained = [weight for weight in net.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.trained,
            lr=config.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=config.weight_decay,
        )
        total = config.epochs * batches_per_epoch
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda done: one_cycle(done, total, config.warmup_share)
        )
        self.rng = torch.Generator(device).manual_seed(config.seed)
        self.history: list[dict[str, float]] = []
        self.best, self.best_epoch = _copy_weights(net), 0
        self.epoch = -1  # epochs closed; the weights it began with are epoch 0
        self.steps = self.batches = self.seen = 0
        self.sums: dict[str, float] = {}

    @property
    def is_done(self) -> bool:
        """All epochs are closed, or too many in a row were no better."""
        patience = self.config.patience
        if patience is not None and self.epoch - self.best_epoch >= patience:
            logger.info("no better %s for %d epochs: stopping", self.config.metric, patience)
            return True
        return self.epoch >= self.config.epochs

    def learn(self, losses: Losses, windows: int) -> None:
        """One step down the loss of a batch."""
        self.optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.trained, self.config.clip_norm)
        self.optimizer.step()
        self.schedule.step()
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.item() * windows
        self.seen += windows
        self.batches += 1
        self.steps += 1

    def close_epoch(self, validation: dict[str, float], on_epoch: OnEpoch | None) -> None:
        """Write down how an epoch went, and keep its weights if they are the best."""
        self.epoch += 1
        row = {"epoch": float(self.epoch)}
        row |= {name: float(value) for name, value in validation.items()}
        row |= {f"train_{name}": value / self.seen for name, value in self.sums.items()}
        self.history.append(row)
        if on_epoch:
            on_epoch(self.epoch, row)
        if self.epoch:
            logger.info(
                "epoch %d: training loss %.5f, validation loss %.5f",
                self.epoch,
                row["train_loss"],
                row["valid_loss"],
            )
            if is_better(row, self.history[self.best_epoch], self.config.metric):
                self.best, self.best_epoch = _copy_weights(self.net), self.epoch
        self.batches = self.seen = 0
        self.sums = {}

    def state(self) -> dict[str, Any]:
        """Tensors, numbers, texts and lists, for a `RunStore`."""
        counts = {name: getattr(self, name) for name in COUNTS}
        chance = {"own": self.rng.get_state(), "cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            chance["cuda"] = torch.cuda.get_rng_state(self.device)
        return {
            **counts,
            "history": self.history,
            "sums": self.sums,
            "net": self.net.state_dict(),
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "chance": chance,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """What `state` said."""
        for name in COUNTS:
            setattr(self, name, state[name])
        self.history, self.sums = state["history"], state["sums"]
        self.net.load_state_dict(state["net"])
        self.best = {name: value.to(self.device) for name, value in state["best"].items()}
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.rng.set_state(state["chance"]["own"])
        torch.set_rng_state(state["chance"]["cpu"])
        if self.device.type == "cuda" and "cuda" in state["chance"]:
            torch.cuda.set_rng_state(state["chance"]["cuda"], self.device)


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
