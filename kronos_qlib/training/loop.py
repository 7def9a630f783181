"""Training: epochs, causal validation, the best weights kept, in one process or several."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils import clip_grad_norm_

from kronos_qlib.data.windows.gather import WindowBatch
from kronos_qlib.errors import CheckpointError, TrainingError
from kronos_qlib.log import progress
from kronos_qlib.model.checkpoints.weights import all_finite
from kronos_qlib.training.batches import Ints
from kronos_qlib.training.hardware import (
    check_precision,
    compiled_blocks,
    freed_memory_kept,
    recomputing,
)
from kronos_qlib.training.losses import (
    Losses,
    Step,
    TrainingData,
    check_losses,
    exploded,
    targets_of,
    weighted,
)
from kronos_qlib.training.parallel.distributed import (
    Share,
    average_gradients,
    join_processes,
    of_all,
    process_count,
    process_rank,
    raise_together,
    share_weights,
    sum_over_processes,
)
from kronos_qlib.training.parallel.sharding import (
    load_shards,
    moments,
    own_part,
    save_shards,
    set_moments,
    sharded,
    whole,
)
from kronos_qlib.training.resume import RunStore, random_state, set_random_state
from kronos_qlib.training.stage_settings import AlphaConfig, TrainingConfig

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

START_SHARE = 0.1
"""Share of the peak learning rate at which the schedule begins."""
EXPLODED = 10.0
"""A training loss of this many times (1 + the first validation loss) stops the run."""
RANK_SEED = 1_000_003
"""From the seed of one process to that of the next."""
SETTLE_EVERY = 20
"""Steps whose losses are fetched from an accelerator at once, since fetching synchronises it."""

STATE = "3"
"""Of what a run keeps; raised where an older state cannot be gone on from, or where a step computes
something otherwise, so that a run which went on would be neither the old one nor the new one."""
COUNTS = ("epoch", "best_epoch", "steps", "batches", "seen")
"""Numbers of a run that its state has under their names."""

OnEpoch = Callable[[int, dict[str, float]], None]
OnSteps = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class TrainingReport:
    """The course of a stage.

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
) -> TrainingReport:
    """Train `step.net` in place and leave it with its best weights, in evaluation mode.

    The weights it came with are scored too: a stage that makes the validation loss worse leaves
    them as they were, and logs it. Processes that torchrun launched share every batch. Dropout and
    other random numbers of a step are torch's own generator's, seeded here by `config.seed` and the
    process' rank, and given back as it was.

    Args:
        training, validation: windows with their horizon; they must share no target.
        on_epoch: called with the epoch's number and its row of the history, for logs and MLflow.
        on_steps: called every `log_every` steps with a row of `TrainingReport.steps`. Both are
            called in the first process only; a resumed run repeats the rows from before.
        store: keeps the run's state as it goes. Where it has one, the run goes on from there, on
            a CPU to the same bits as one that was never stopped, in as many processes and on as
            many threads. No other run may use its folder meanwhile.

    With `config.fsdp` a copy of the network is trained that the processes share out, while the
    whole one stays on the CPU of each until it takes the best weights.

    Raises:
        TrainingError: a segment has no windows, the loss stops being finite or explodes, a state
            cannot be written, or another run has its folder.
        ConfigError: the state is another run's, or the device lacks the precision.
    """
    _check_segments(training, validation)
    device = join_processes(torch.device(device))
    is_first = process_rank() == 0
    precision = check_precision(config.precision, device)
    chosen = validation.to_judge_by(config)
    sampler = training.sampler(config)
    net = step.net
    if is_sharded := getattr(config, "fsdp", False):
        # The whole one waits on the CPU.
        step = replace(step, net=sharded(net.to("cpu"), device))  # type: ignore[type-var]
    else:
        net.to(device)
        share_weights(net)
    with ExitStack() as stack:
        if is_sharded:
            stack.enter_context(warnings.catch_warnings())
            # Of in-place operations on its output, which no step has.
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
        stack.enter_context(
            recomputing(step.net, getattr(config, "activation_checkpointing", False))
        )
        if device.type == "cpu":
            stack.enter_context(freed_memory_kept())
        stack.enter_context(compiled_blocks(step.net, getattr(config, "compiled", False)))
        gpus = [device] if device.type == "cuda" else []
        stack.enter_context(torch.random.fork_rng(devices=gpus))
        torch.manual_seed(config.seed + process_rank() * RANK_SEED)
        run = _Run(step, device, precision, training, config, sampler, log_every)
        run.on_steps = on_steps if is_first else None
        on_epoch = on_epoch if is_first else None

        def validated() -> dict[str, float]:
            # The first process' values: others may have rounded otherwise, and must not part.
            found: dict[str, float] = of_all(step.validate(chosen, config, device))[0]
            return found

        if store and is_first:
            stack.enter_context(store.held())
        kept = store.load() if store else None
        if len(found := set(of_all(kept[0] if kept else 0))) > 1:
            raise TrainingError(
                f"the processes found states after {', '.join(map(str, sorted(found)))} steps in "
                f"{store.folder if store else ''}: it must be one folder that all machines see"
            )
        if kept is not None:
            assert store is not None
            run.restore(kept[1], store)
            logger.info("going on after epoch %d and %d batches", run.epoch, run.batches)
            run.report_again(on_epoch)
        else:
            run.close_epoch(validated(), on_epoch)
        while not run.is_done:
            run.net.train()
            batches = progress(
                sampler.epoch(run.epoch + 1, start=run.batches),
                f"{type(net).__name__} epoch {run.epoch + 1}/{config.epochs}",
                unit="batch",
                total=len(sampler) - run.batches,
                show=show_progress and is_first,
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
        last = {name: whole(value).cpu() for name, value in _copy_weights(run.net).items()}
    if is_sharded:
        net.load_state_dict({name: whole(value).cpu() for name, value in run.best.items()})
        net.to(device)
    else:
        net.load_state_dict(run.best)
    net.eval()
    if run.best_epoch == 0:
        logger.warning(
            "training did not improve the validation %s of %.5f: the weights are as before",
            config.metric,
            run.history[0][f"valid_{config.metric}"],
        )
    return TrainingReport(run.history, run.best_epoch, run.rows, last)


class _Run:
    """The state of a run: what it changes step by step, and needs to resume."""

    def __init__(
        self,
        step: Step,
        device: torch.device,
        precision: torch.dtype | None,
        training: TrainingData,
        config: TrainingConfig | AlphaConfig,
        sampler: Any,
        log_every: int,
    ) -> None:
        self.step, self.net, self.device, self.precision = step, step.net, device, precision
        self.training, self.config = training, config
        self.is_sharded: bool = getattr(config, "fsdp", False)
        self.trained = [weight for weight in step.net.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(
            step.groups(config) if hasattr(step, "groups") else self.trained,
            lr=config.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=config.weight_decay,
            fused=device.type in ("cpu", "cuda"),
        )
        # Small gradients would be nothing in float16.
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
        total = config.epochs * len(sampler)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda done: one_cycle(done, total, config.warmup_share)
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
        # Memory of a batch, which the next one takes again.
        self.memory = training.memory(-(-sampler.largest // process_count()))
        self.on_steps: OnSteps | None = None
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
        if self.step.needs_whole_batch:
            losses = self._backward_whole(which, pieces)
        else:
            losses = self._backward_means(which, pieces)
        if not self.is_sharded:  # which averages by itself
            average_gradients(self.trained)
        self.scaler.unscale_(self.optimizer)
        norm = clip_grad_norm_(self.trained, self.config.clip_norm)
        losses["gradient_norm"] = whole(norm.detach())
        self.pending.append((which, losses))
        if self.device.type == "cpu" or len(self.pending) >= SETTLE_EVERY:
            self.settle()  # on a CPU before the weights change
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        self.batches += 1
        self.steps += 1
        if self.steps % self.log_every == 0:
            self._report()

    def _backward_whole(self, which: Ints, pieces: int) -> Losses:
        """Gradients and losses of a batch, by a step that computes those of the whole batch."""
        with self._autocast():
            losses = self.step.losses(self._batch(which, self.memory), pieces=pieces)  # type: ignore[call-arg]
        check_losses(losses)
        torch.autograd.backward(self.scaler.scale(losses["loss"]))
        return {name: value.detach() for name, value in losses.items()}

    def _backward_means(self, which: Ints, pieces: int) -> Losses:
        """Gradients and losses of a batch, by means over its pieces and its processes' shares."""
        if pieces == 1:
            batches = [self._batch(which, self.memory)]
        else:  # all of them are asked for their targets first, so each has its own memory
            batches = [self._batch(which[place::pieces], None) for place in range(pieces)]
        targets = torch.stack([targets_of(self.step, batch) for batch in batches])
        weights = targets / sum_over_processes(targets.sum())
        found: Losses = {}
        for batch, weight in zip(batches, weights, strict=True):
            with self._autocast():
                losses = self.step.losses(batch)
            check_losses(losses)
            # The mean over processes follows, and this is a part of their sum.
            part: Tensor = losses["loss"] * weight * process_count()
            torch.autograd.backward(self.scaler.scale(part))
            for name, value in weighted(losses, weight).items():
                found[name] = found[name] + value if name in found else value
        return found

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, dtype=self.precision, enabled=self.precision is not None
        )

    def _batch(self, which: Ints, memory: WindowBatch | None) -> Any:
        """This process' share of the chosen windows."""
        return self.training.batch(which, self.device, memory, Share.here(len(which)))

    def settle(self) -> None:
        """Fetch the losses of the last steps from the device, and stop if one is not finite.

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
        """Whether it may be infinite: in float16, where the scaler then skips the step."""
        return what == "gradient_norm" and self.config.precision == "float16"

    def _report(self) -> None:
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

    def report_again(self, on_epoch: OnEpoch | None) -> None:
        """Repeat the reports of a resumed run, from before it was stopped."""
        if on_epoch:
            for row in self.history:
                on_epoch(int(row["epoch"]), row)
        if self.on_steps:
            for row in self.rows:
                self.on_steps(int(row["step"]), row)

    def close_epoch(self, validation: dict[str, float], on_epoch: OnEpoch | None) -> None:
        """Add an epoch to the history, and keep its weights if they are the best."""
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
        if self.is_sharded:
            state["shards"] = save_shards(store.shards(self.steps), self.tensors())
        failed = None
        if process_rank() == 0:
            try:
                store.save(self.steps, state)
            except TrainingError as problem:  # a full disk
                failed = str(problem)
        raise_together(failed)  # none goes on before the state is written

    def tensors(self) -> dict[str, Any]:
        """Weights and what the optimizer keeps of them."""
        return {
            "net": self.net.state_dict(),
            "best": self.best,
            "optimizer": moments(self.net, self.optimizer)
            if self.is_sharded
            else self.optimizer.state_dict(),
        }

    def state(self) -> dict[str, Any]:
        """Tensors, numbers, texts and lists, for a `RunStore`."""
        return {
            **{name: getattr(self, name) for name in COUNTS},
            "history": self.history,
            "rows": self.rows,
            "sums": self.sums,
            "since": self.since,
            "since_seen": self.since_seen,
            **({"rates": self._rates()} if self.is_sharded else self.tensors()),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": of_all(random_state(self.device)),
        }

    def _rates(self) -> list[float]:
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def restore(self, state: dict[str, Any], store: RunStore) -> None:
        """Set everything that `state` returned."""
        if self.is_sharded:
            tensors = self.tensors()
            load_shards(store.shards(state["steps"]), tensors)
        else:
            tensors = state
        for kept in ("net", "best"):
            for name, value in tensors[kept].items():
                if value.is_floating_point() and not all_finite(own_part(value)):
                    raise CheckpointError(
                        f"{name} of the weights ({kept}) in the state to go on from is not finite; "
                        "go on from an older state, or in another folder"
                    )
        for name in (*COUNTS, "history", "rows", "sums", "since", "since_seen"):
            setattr(self, name, state[name])
        self.net.load_state_dict(tensors["net"])
        self.best = {name: value.to(self.device) for name, value in tensors["best"].items()}
        if self.is_sharded:
            set_moments(self.net, self.optimizer, tensors["optimizer"])
            for group, rate in zip(self.optimizer.param_groups, state["rates"], strict=True):
                group["lr"] = rate
        else:
            self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        if len(state["rng"]) == process_count():
            set_random_state(self.device, state["rng"][process_rank()])
        else:
            logger.warning(
                "the run goes on in %d processes where it had %d: not to the same bits",
                process_count(),
                len(state["rng"]),
            )


def is_better(row: dict[str, float], best: dict[str, float], metric: str) -> bool:
    """Whether an epoch is to be kept: a lower loss, or a higher anything else."""
    now, before = row[f"valid_{metric}"], best[f"valid_{metric}"]
    return now < before if metric == "loss" else now > before


def one_cycle(done: int, total: int, warmup_share: float) -> float:
    """Share of the peak learning rate after `done` of `total` steps: a linear rise, then a cosine.

    Source: Smith and Topin, arXiv 1708.07120; the published finetuning uses torch's `OneCycleLR`.
    """
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
