"""Training: epochs, causal validation, the best weights kept, on one member or many."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from kronos_qlib.configs import AlphaConfig, TrainingConfig
from kronos_qlib.errors import CheckpointError, TrainingError
from kronos_qlib.log import progress
from kronos_qlib.model.crew import Crew, Piecewise, working_as
from kronos_qlib.model.kernels import all_finite
from kronos_qlib.training.batches import Ints
from kronos_qlib.training.steps import Losses, Step, TrainingData, check_losses, exploded
from kronos_qlib.training.store import RunStore
from kronos_qlib.training.team import Team, freed_memory_kept, part_of

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

START_SHARE = 0.1
"""Share of the peak learning rate at which the schedule begins."""
EXPLODED = 10.0
"""A training loss so many times (1 + the loss it began with) is no step on the way to a lower."""
SETTLE_EVERY = 20
"""Steps whose losses an accelerator is asked for at once: to ask makes it wait."""

COUNTS = ("epoch", "best_epoch", "steps", "batches", "seen")
"""Numbers of a run that its state has under their names."""

OnEpoch = Callable[[int, dict[str, float]], None]
OnSteps = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class TrainingReport:
    """What a stage did.

    history: one row per epoch, epoch 0 being the weights it began with; `valid_*` are the
        validation losses, `train_*` the means over the epoch's steps.
    best_epoch: the epoch whose weights the network now has; 0 if training improved nothing.
    steps: one row per `log_every` steps: `step`, mean losses since the row before,
        `learning_rate`, `gradient_norm` before clipping, `windows_per_second`.
    last: the weights after the last epoch, on the CPU.
    """

    history: list[dict[str, float]]
    best_epoch: int
    steps: list[dict[str, float]] = field(default_factory=list, compare=False)
    last: dict[str, Tensor] = field(default_factory=dict, compare=False, repr=False)


def train(
    step: Step,
    training: TrainingData,
    validation: TrainingData,
    config: TrainingConfig | AlphaConfig,
    *,
    device: torch.device | str = "cpu",
    show_progress: bool = False,
    on_epoch: OnEpoch | None = None,
    on_steps: OnSteps | None = None,
    log_every: int = 20,
    store: RunStore | None = None,
    threads: int | None = None,
) -> TrainingReport:
    """Train `step.net` in place and leave it with its best weights, in evaluation mode.

    The weights it came with are scored too: a stage that makes the validation loss worse leaves
    them as they were, and says so. Processes that torchrun or accelerate launched share every
    batch; alone on a CPU, threads do.

    Args:
        training, validation: windows with their horizon; they must share no target.
        on_epoch: called with the epoch's number and its row of the history, for logs and MLflow.
        on_steps: called every `log_every` steps with a row of `TrainingReport.steps`. Both are
            called in the first process only; a run that goes on begins with what is behind it.
        store: keeps the run's state as it goes. Where it has one, the run goes on from there, on
            a CPU to the same bits as one that was never stopped, with as many members. No other
            run may use its folder meanwhile.
        threads: of a CPU; None takes torch's number.

    Raises:
        TrainingError: a segment has no windows, the loss stops being finite or explodes, a state
            cannot be written, or another run has its folder.
        ConfigError: the state is another run's, or the device lacks the precision.
    """
    _check_segments(training, validation)
    device = torch.device(device)
    chosen = validation.to_judge_by(config)
    sampler = training.sampler(config)
    step.net.to(device)
    with ExitStack() as stack:
        if device.type == "cpu":
            stack.enter_context(freed_memory_kept())
        # Parts of others may draw from torch's own generator: seeded here, and given back.
        stack.enter_context(
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
        )
        torch.manual_seed(config.seed)
        team = Team(
            step,
            device,
            precision=config.precision,
            batch_size=sampler.largest,
            seed=config.seed,
            threads=threads,
        )
        stack.callback(team.close)
        run = _Run(step, team, training, config, len(sampler), sampler.largest, on_steps, log_every)
        on_epoch = on_epoch if team.is_first else None

        def validated() -> dict[str, float]:
            def work(one: Any, member: Crew) -> dict[str, float]:
                found: dict[str, float] = one.validate(chosen, config, device)
                return found

            return team.as_the_first_says(team.each(work)[0])

        if store and team.is_first:
            stack.enter_context(store.held())
        kept = store.load() if store else None
        if len(found := set(team.gathered([kept[0] if kept else 0]))) > 1:
            raise TrainingError(
                f"the processes found states after {', '.join(map(str, sorted(found)))} steps in "
                f"{store.folder if store else ''}: it must be one folder that all machines see"
            )
        if kept is not None:
            run.restore(kept[1])
            logger.info("going on after epoch %d and %d batches", run.epoch, run.batches)
            run.tell_again(on_epoch)
        else:
            run.close_epoch(validated(), on_epoch)
        while not run.is_done:
            team.train_mode()
            batches = progress(
                sampler.epoch(run.epoch + 1, start=run.batches),
                f"{type(run.net).__name__} epoch {run.epoch + 1}/{config.epochs}",
                unit="batch",
                total=len(sampler) - run.batches,
                show=show_progress and team.is_first,
            )
            run.clock = time.perf_counter()
            for which in batches:
                run.learn(which)
                # The last batch's state is kept with its epoch's validation.
                if store and run.steps % store.every == 0 and run.batches < len(sampler):
                    run.save(store)
            run.settle()
            run.close_epoch(validated(), on_epoch)
            if store:
                run.save(store)
        last = {name: value.cpu() for name, value in _copy_weights(run.net).items()}
    run.net.load_state_dict(run.best)
    run.net.eval()
    if run.best_epoch == 0:
        logger.warning(
            "training did not improve the validation %s of %.5f: the weights are as before",
            config.metric,
            run.history[0][f"valid_{config.metric}"],
        )
    return TrainingReport(run.history, run.best_epoch, run.rows, last)


class _Run:
    """Everything that a run changes as it goes, and that it needs to go on."""

    def __init__(
        self,
        step: Step,
        team: Team,
        training: TrainingData,
        config: TrainingConfig | AlphaConfig,
        batches_per_epoch: int,
        largest: int,
        on_steps: OnSteps | None,
        log_every: int,
    ) -> None:
        self.team, self.training, self.config, self.device = team, training, config, team.device
        self.net, self.largest = step.net, largest
        groups = step.groups(config) if hasattr(step, "groups") else team.trained
        optimizer = torch.optim.AdamW(
            groups,
            lr=config.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=config.weight_decay,
            fused=team.device.type in ("cpu", "cuda"),
        )
        self.optimizer = team.accelerator.prepare(optimizer)
        total = config.epochs * batches_per_epoch
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda done: one_cycle(done, total, config.warmup_share)
        )
        self.history: list[dict[str, float]] = []
        self.best, self.best_epoch = _copy_weights(self.net), 0
        self.epoch = -1  # epochs closed; the weights it began with are epoch 0
        self.steps = self.batches = self.seen = 0
        self.sums: dict[str, float] = {}
        self.rows: list[dict[str, float]] = []
        self.since: dict[str, float] = {}  # sums since the last row
        self.since_seen = 0
        self.pending: list[tuple[Ints, Losses]] = []
        self.rooms: dict[int, Any] = {}
        self.on_steps = on_steps if team.is_first else None
        self.log_every, self.clock = log_every, time.perf_counter()

    @property
    def is_done(self) -> bool:
        """All epochs are closed, or too many in a row were no better."""
        patience = self.config.patience
        if patience is not None and self.epoch - self.best_epoch >= patience:
            logger.info("no better %s for %d epochs: stopping", self.config.metric, patience)
            return True
        return self.epoch >= self.config.epochs

    def learn(self, which: Ints) -> None:
        """One step down the loss of a batch, in as many parts as it is accumulated from."""
        self.optimizer.zero_grad(set_to_none=True)
        pieces = min(getattr(self.config, "accumulation", 1), len(which))
        if pieces > 1 and getattr(self.team.steps[0], "looks_twice", False):
            losses = self._backward_looking_twice(which, pieces)
        else:
            losses = {}
            for place, share in enumerate(self._shares(which, pieces)):
                found = self._backward(which[place::pieces], share)
                for name, value in found.items():
                    losses[name] = losses[name] + value * share if name in losses else value * share
        self.team.share_gradients()
        norm = self.team.accelerator.clip_grad_norm_(self.team.trained, self.config.clip_norm)
        losses["gradient_norm"] = norm.detach()
        self.pending.append((which, losses))
        if self.device.type == "cpu" or len(self.pending) >= SETTLE_EVERY:
            self.settle()  # on a CPU before the weights take harm
        self.optimizer.step()
        self.schedule.step()
        self.batches += 1
        self.steps += 1
        if self.steps % self.log_every == 0:
            self._tell()

    def _shares(self, which: Ints, pieces: int) -> list[float]:
        """How much of a batch's loss each of its pieces is: by the bars that count."""
        if pieces == 1:
            return [1.0]

        def work(step: Any, member: Crew) -> list[float]:
            counts = []
            for place in range(pieces):
                batch = self.training.batch(which[place::pieces], "cpu", part=part_of(member))
                counts.append(float(member.add_up(step.targets(batch).to(self.device))))
            return [count / sum(counts) for count in counts]

        return self.team.each(work)[0]

    def _backward(self, which: Ints, share: float) -> Losses:
        """Gradients of a piece of a batch; its losses, the same for all members."""

        def work(step: Any, member: Crew) -> Losses:
            losses: Losses = step.losses(self._batch(which, member), member.rng)
            check_losses(losses)
            self.team.accelerator.backward(losses["loss"] * share)
            return {name: value.detach() for name, value in losses.items()}

        return self.team.each(work)[0]

    def _backward_looking_twice(self, which: Ints, pieces: int) -> Losses:
        """Gradients and losses of a batch in pieces, each learned from beside the sums of all."""

        def work(step: Any, member: Crew) -> Losses:
            one = Piecewise(member)
            chance = member.rng.get_state() if member.rng is not None else None
            with working_as(one):
                with torch.no_grad():
                    for place in range(pieces):
                        one.begin()
                        step.losses(self._batch(which[place::pieces], member), member.rng)
                one.is_known = True
                if member.rng is not None and chance is not None:
                    member.rng.set_state(chance)
                losses: Losses = {}
                for place in range(pieces):
                    one.begin()
                    losses = step.losses(self._batch(which[place::pieces], member), member.rng)
                    self.team.accelerator.backward(losses["loss"])
            return {name: value.detach() for name, value in losses.items()}

        return self.team.each(work)[0]

    def _batch(self, which: Ints, member: Crew) -> Any:
        """A member's part of the chosen windows, in room that its next batch takes again."""
        if member.rank not in self.rooms:
            self.rooms[member.rank] = self.training.memory(-(-self.largest // member.size))
        return self.training.batch(which, self.device, self.rooms[member.rank], part_of(member))

    def settle(self) -> None:
        """Turn what the device still owes into numbers, and stop if they are none.

        Raises:
            TrainingError: names the batch.
        """
        if not self.pending:
            return
        names = list(self.pending[0][1])
        values = torch.stack(
            [torch.stack([row[name] for name in names]) for _, row in self.pending]
        )
        for (which, _), row in zip(self.pending, values.tolist(), strict=True):
            found = dict(zip(names, row, strict=True))
            for what, limit in (("loss", self.limit), ("gradient_norm", math.inf)):
                if not abs(found[what]) < limit and not self._is_scaled(what):
                    windows = self.training.windows.take(which)
                    raise exploded(what.replace("_", " "), found[what], windows)
            for name, value in found.items():
                self.since[name] = self.since.get(name, 0.0) + value * len(which)
                if name != "gradient_norm":
                    self.sums[name] = self.sums.get(name, 0.0) + value * len(which)
            self.seen += len(which)
            self.since_seen += len(which)
        self.pending = []

    @property
    def limit(self) -> float:
        """The training loss from which on a run has exploded."""
        return EXPLODED * (1 + abs(self.history[0]["valid_loss"]))

    def _is_scaled(self, what: str) -> bool:
        """Whether it may be infinite now and then: in float16, where the step is then left out."""
        return what == "gradient_norm" and self.config.precision == "float16"

    def _tell(self) -> None:
        """Close a row of steps."""
        self.settle()
        now = time.perf_counter()
        row = {"step": float(self.steps)}
        row |= {name: value / self.since_seen for name, value in self.since.items()}
        row["learning_rate"] = float(self.schedule.get_last_lr()[0])
        row["windows_per_second"] = self.since_seen / max(1e-9, now - self.clock)
        self.rows.append(row)
        self.since, self.since_seen, self.clock = {}, 0, now
        if self.on_steps:
            self.on_steps(self.steps, row)

    def tell_again(self, on_epoch: OnEpoch | None) -> None:
        """What a run that goes on had told before it was stopped."""
        if on_epoch:
            for row in self.history:
                on_epoch(int(row["epoch"]), row)
        if self.on_steps:
            for row in self.rows:
                self.on_steps(int(row["step"]), row)

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

    def save(self, store: RunStore) -> None:
        """Keep the state; all processes come here, the first one writes."""
        self.settle()
        state = self.state()
        if self.team.is_first:
            store.save(self.steps, state)
        self.team.accelerator.wait_for_everyone()

    def state(self) -> dict[str, Any]:
        """Tensors, numbers, texts and lists, for a `RunStore`."""
        scaler = self.team.accelerator.scaler
        return {
            **{name: getattr(self, name) for name in COUNTS},
            "history": self.history,
            "rows": self.rows,
            "sums": self.sums,
            "since": self.since,
            "since_seen": self.since_seen,
            "net": self.net.state_dict(),
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": scaler.state_dict() if scaler else {},
            "chance": self.team.chance(),
            "torch": torch.get_rng_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """What `state` said."""
        for kept in ("net", "best"):
            for name, value in state[kept].items():
                if value.is_floating_point() and not all_finite(value):
                    raise CheckpointError(
                        f"{name} of the weights ({kept}) in the state to go on from is not finite; "
                        "go on from an older state, or in another folder"
                    )
        for name in (*COUNTS, "history", "rows", "sums", "since", "since_seen"):
            setattr(self, name, state[name])
        self.net.load_state_dict(state["net"])
        self.best = {name: value.to(self.device) for name, value in state["best"].items()}
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if state["scaler"] and self.team.accelerator.scaler:
            self.team.accelerator.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["torch"])
        if not self.team.set_chance(state["chance"]):
            logger.warning(
                "the run goes on with %d members where it had %d: not to the same bits",
                self.team.size,
                len(state["chance"]),
            )


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
