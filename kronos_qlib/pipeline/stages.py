"""What `KronosModel.fit` trains, stage by stage, each going on from the one before."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from kronos_qlib.data.windows.faulty_bars import Floats
from kronos_qlib.data.windows.scale_features import SCALE_FEATURES
from kronos_qlib.data.windows.segments import order_problems, places_of
from kronos_qlib.data.windows.window_dataset import describe_dropped, no_windows
from kronos_qlib.errors import BarDataError, ConfigError, TrainingError
from kronos_qlib.model.sizes import HeadConfig
from kronos_qlib.pipeline.contexts import contexts_of, stored_contexts
from kronos_qlib.settings import from_mapping
from kronos_qlib.training.stage_settings import PRESETS, AlphaConfig, TrainingConfig

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure
    from torch import Tensor

    from kronos_qlib.data.windows.label import Label
    from kronos_qlib.data.windows.window import Windows
    from kronos_qlib.data.windows.window_dataset import WindowDataset
    from kronos_qlib.inference.predictor import KronosPredictor
    from kronos_qlib.model.alpha_head import AlphaEnsemble, Head
    from kronos_qlib.model.sizes import GRUConfig
    from kronos_qlib.model.transformer import Kronos
    from kronos_qlib.training.alpha import AlphaNet, AlphaSegment, Contexts
    from kronos_qlib.training.resume import RunStore

logger = logging.getLogger(__name__)

Stage = TrainingConfig | AlphaConfig


class StageLog(Protocol):
    """Where the stages report to; the plugin's is the terminal and the open MLflow run."""

    def message(self, text: str) -> None:
        """A line about what is done."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of a step or an epoch, named "stage.name"."""

    def figure(self, figure: Figure, name: str) -> None:
        """A figure and the path to keep it at, such as "training/alpha.png"."""


class PlainLog:
    """Lines go to this module's logger, numbers and figures nowhere: the history has them."""

    def message(self, text: str) -> None:
        """Log a line."""
        logger.info(text)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Numbers are not kept."""

    def figure(self, figure: Figure, name: str) -> None:
        """Figures are not kept."""


AT_MEDIAN = "windows without a value, which take the median of their day: "

WINDOW_SETTINGS = ("lookback", "horizon", "min_bars", "max_age_days", "label", "spans")
"""Fields of a `WindowDataset` that decide which windows there are."""

KINDS = {"tokenizer": TrainingConfig, "predictor": TrainingConfig, "alpha": AlphaConfig}


@dataclass(frozen=True, kw_only=True)
class StagesConfig:
    """What `fit` trains, in this order; a stage left out is not trained."""

    preset: str | None = None
    """Defaults of the stages that are given as mappings: "published", or "gentle" (LoRA, 1e-5);
    None takes those of `TrainingConfig` and `AlphaConfig`."""
    tokenizer: TrainingConfig | None = None
    """Fields of `TrainingConfig`: reconstruct a bar from s1 alone and from both tokens."""
    predictor: TrainingConfig | None = None
    """Fields of `TrainingConfig`: cross-entropy of the next bar's s1 and s2."""
    alpha: AlphaConfig | None = None
    """Fields of `AlphaConfig`: a head on the context vector, trained on the day's ranking."""

    def __post_init__(self) -> None:
        if self.preset is not None and self.preset not in PRESETS:
            raise ConfigError(f"preset is one of {', '.join(PRESETS)}, got {self.preset!r}")
        for name, kind in KINDS.items():
            value = getattr(self, name)
            if isinstance(value, Mapping):
                defaults = PRESETS[self.preset][name] if self.preset else {}
                stage: Any = from_mapping(kind, {**defaults, **value}, where=f"training.{name}")
                object.__setattr__(self, name, stage)
        if self.tokenizer is not None and not self.tokenizer.teacher_forcing:
            raise ConfigError("teacher_forcing belongs to training.predictor, not to the tokenizer")
        if self.tokenizer is not None and self.tokenizer.shift_dates:
            raise ConfigError("shift_dates belongs to training.predictor: no tokenizer reads dates")
        if self.tokenizer is not None and self.tokenizer.fsdp:
            raise ConfigError(
                "fsdp belongs to training.predictor: a tokenizer is small enough for every device"
            )
        if self.alpha is not None and self.alpha.initial == "random" and self.predictor is not None:
            raise ConfigError(
                "training.alpha.initial random would throw away what training.predictor learned; "
                "leave one of them out"
            )
        if self.tokenizer is not None and self.predictor is None:
            raise ConfigError(
                "training.tokenizer without training.predictor would leave a predictor that reads "
                "tokens it does not know; add training.predictor"
            )

    @property
    def has_adapters(self) -> bool:
        """Whether a stage trains LoRA adapters, which `peft` makes."""
        halves = (self.tokenizer, self.predictor)
        return any(one is not None and one.lora_rank is not None for one in halves) or (
            self.alpha is not None and self.alpha.backbone == "lora"
        )

    @property
    def is_zero_shot(self) -> bool:
        """Whether no stage is trained."""
        return all(getattr(self, name) is None for name in KINDS)


@dataclass
class StagesResult:
    """What training left.

    weights: safetensors files by name: "tokenizer", "predictor", "alpha".
    last: the same of the last epoch, whichever was the best.
    history: losses of each stage, a row per epoch.
    head: the alpha head, where one was trained; of several seeds the ensemble, whose members'
        histories are "alpha_0", "alpha_1" and so on, and whose own, "alpha", has two rows: of new
        members, and of the best of each.
    """

    weights: dict[str, bytes] = field(default_factory=dict)
    last: dict[str, bytes] = field(default_factory=dict)
    history: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    head: Head | None = None


def run_stages(
    stages: StagesConfig,
    predictor: KronosPredictor,
    source: WindowDataset,
    *,
    head: Head | None = None,
    show_progress: bool = False,
    resume: Resume | None = None,
    processes: int = 1,
    log_every: int = 20,
    log: StageLog | None = None,
    contexts_folder: Path | None = None,
) -> StagesResult:
    """Train in place what is asked for.

    Args:
        predictor: holds both halves; its device is trained on.
        head: an alpha head to go on from; None makes one.
        resume: where the stages keep their states. They stay when all have ended, since the result
            is yet to be written somewhere: a run that is started again finds it there.
        processes: that share every batch, begun here; 1 where torchrun did it.
        log_every: steps from one row of the log to the next.
        log: where it reports to; None: `PlainLog`.
        contexts_folder: where a frozen backbone's contexts are found, and kept; None: neither.

    Raises:
        ConfigError: segments overlap, or windows are longer than the network knows, or an alpha
            head to go on from has other options.
        BarDataError, TrainingError: a segment has no windows; a loss is not finite.
    """
    from kronos_qlib.training.parallel.distributed import is_launched, join_processes
    from kronos_qlib.training.parallel.sharding import check_shared_out

    check_segments(source)
    if stages.predictor is not None and stages.predictor.fsdp and not is_launched():
        check_shared_out(processes)
    if is_launched():
        if processes > 1:
            raise ConfigError(
                f"n_processes {processes} in a process that torchrun launched would "
                "start processes in each; leave it at 1"
            )
        predictor.device = join_processes(predictor.device)
        predictor.model.to(predictor.device)
        predictor.tokenizer.to(predictor.device)
    result = StagesResult()
    log = PlainLog() if log is None else log
    work = _Work(
        predictor=predictor,
        source=source,
        device=predictor.device,
        result=result,
        show_progress=show_progress,
        resume=resume,
        processes=processes,
        log_every=log_every,
        log=log,
        contexts_folder=contexts_folder,
    )
    check_stages(stages, predictor, source, head)  # before the hours that a stage may take
    if stages.predictor is not None:
        _train_tokens(stages, work)
    if stages.alpha is not None:
        _train_alpha(stages.alpha, work, head)
    return result


def check_stages(
    stages: StagesConfig, predictor: KronosPredictor, source: WindowDataset, head: Head | None
) -> None:
    """Refuse what this predictor, these windows or the head to go on from cannot do.

    Raises:
        ConfigError: names the setting.
    """
    if stages.alpha is not None:
        _check_alpha(stages.alpha, predictor, source, head)
    bars, most = source.lookback + source.horizon, predictor.max_context
    if stages.predictor is not None and bars - 1 > most:
        raise ConfigError(
            f"windows of {source.lookback} + {source.horizon} bars train {bars - 1} positions at "
            f"once and the network attends to {most}; shorten lookback or horizon"
        )


def _check_alpha(
    config: AlphaConfig, predictor: KronosPredictor, source: WindowDataset, head: Head | None
) -> None:
    most, is_frozen = predictor.max_context, config.backbone == "frozen"
    if source.lookback > most and not is_frozen:
        raise ConfigError(
            f"a lookback of {source.lookback} bars is read at once and the network attends to "
            f"{most}; shorten it, or keep the backbone frozen"
        )
    if config.span > 1 and source.lookback + config.span - 1 > most:
        raise ConfigError(
            f"training.alpha.span {config.span} reads {source.lookback + config.span - 1} bars at "
            f"once and the network attends to {most}: lower it, or the data set's lookback"
        )
    if config.context.bars > source.lookback:
        raise ConfigError(
            f"training.alpha.context.bars is {config.context.bars}, a window has "
            f"{source.lookback}: lower it, or raise the data set's lookback"
        )
    if config.context.bars > most:
        raise ConfigError(
            f"training.alpha.context.bars is {config.context.bars}, and the network attends to "
            f"{most} bars: lower it"
        )
    config.context.check_layers(predictor.model.config.n_layers)
    if head is not None:
        _check_options(head, head_config(config, predictor.model.config.d_model))
    elif config.initial == "random" and (replaced := predictor.model.replaced):
        raise ConfigError(
            f"initial random makes the published parts, and this predictor has another "
            f"{', '.join(replaced)}; begin with a predictor of the published parts"
        )


def make_head(config: AlphaConfig, predictor: KronosPredictor) -> Head:
    """A new head for this predictor, its first weights decided by the seed; of several an ensemble.

    Raises:
        ConfigError: the predictor has no such layers.
    """
    config.context.check_layers(predictor.model.config.n_layers)
    return new_head(config, predictor.model.config.d_model)


def new_head(config: AlphaConfig, width: int) -> Head:
    """The same for contexts of this width, whatever network they are of."""
    import torch

    from kronos_qlib.model.alpha_head import AlphaEnsemble, AlphaHead

    how = head_config(config, width)
    heads = []
    for number in range(config.seeds):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed + number)
            heads.append(AlphaHead(**{key: getattr(how, key) for key in HEAD_FIELDS}))
    return AlphaEnsemble(heads) if len(heads) > 1 else heads[0]


def head_names(config: AlphaConfig) -> tuple[str, ...]:
    """Names of the columns that a head sees beside contexts."""
    return (*SCALE_FEATURES, *config.features)


def columns_of(names: Sequence[str]) -> tuple[str, ...]:
    """Those of a head's `names` that a handler gives."""
    return tuple(names[len(SCALE_FEATURES) :])


def head_config(config: AlphaConfig, width: int) -> HeadConfig:
    """Sizes and options of the head that is trained, on contexts of this width."""
    names = head_names(config)
    return HeadConfig(
        d_model=width,
        features=len(names),
        context_width=config.context_width,
        hidden=config.hidden,
        dropout=config.dropout,
        names=names,
        linear_path=config.linear_path,
        attention=config.attention,
        market=len(SCALE_FEATURES) if config.attention else 0,
        outputs=config.outputs,
        seeds=config.seeds,
        context=config.context,
        neutral=len(SCALE_FEATURES) if config.neutral else 0,
    )


HEAD_FIELDS = tuple(field.name for field in fields(HeadConfig) if field.name != "seeds")
"""Arguments of one head."""
HEAD_OPTIONS = (
    "context_width",
    "hidden",
    "dropout",
    "linear_path",
    "attention",
    "outputs",
    "seeds",
    "context",
    "neutral",
)
"""Of a head to go on from, what must be as the settings say."""


@dataclass(frozen=True)
class Resume:
    """Where training keeps its states: a folder of this run alone, and steps between two states."""

    folder: Path
    every: int

    def store(self, stage: str, **signature: str) -> RunStore:
        """The states of one stage."""
        from kronos_qlib.training.resume import RunStore

        return RunStore(self.folder / stage, signature, self.every)


@dataclass(frozen=True, kw_only=True)
class _Training:
    """What every stage is given, whatever network it trains."""

    source: WindowDataset
    device: torch.device
    result: StagesResult
    show_progress: bool
    resume: Resume | None
    processes: int
    log_every: int
    log: StageLog

    def identity(self, net: Any) -> dict[str, str]:
        """Of the networks that a run is made of."""
        from kronos_qlib.model.checkpoints.pretrained import fingerprint

        return {"device": self.device.type, "weights": fingerprint(net)}

    def signature(self, net: Any, config: Stage) -> dict[str, str]:
        """What a run must share with one that was stopped, to go on from its states."""
        from kronos_qlib.training.loop import STATE
        from kronos_qlib.training.resume import KIND

        table, source = self.source.table, self.source
        windows = str([table.instruments, *(getattr(source, key) for key in WINDOW_SETTINGS)])
        return {
            KIND: STATE,
            # One by one, so that a message can say which one is another.
            **{f"settings.{one.name}": repr(getattr(config, one.name)) for one in fields(config)},
            **self.identity(net),
            "bars": table.checksums,
            "segments": str({key: source.bounds(key) for key in ("train", "valid")}),
            "windows": hashlib.sha256(windows.encode()).hexdigest(),
        }

    def run(self, name: str, step: Any, parts: Sequence[Any], config: Stage) -> dict[str, Tensor]:
        """One stage; `parts` are what it trains on and what it is judged by.

        Returns:
            The weights after the last epoch; the network has the best ones.
        """
        from kronos_qlib.evaluation.figures import training_figure
        from kronos_qlib.training.loop import train
        from kronos_qlib.training.parallel.processes import train_in_processes

        def log_epoch(epoch: int, row: dict[str, float]) -> None:
            losses = ", ".join(f"{key} {value:.4f}" for key, value in row.items() if key != "epoch")
            self.log.message(f"{name} epoch {epoch}/{config.epochs}: {losses}")
            self.log.metrics({f"{name}.{key}": value for key, value in row.items()}, epoch)

        def log_steps(step: int, row: dict[str, float]) -> None:
            metrics = {f"{name}.{key}": value for key, value in row.items() if key != "step"}
            self.log.metrics(metrics, step)

        training, validation = parts
        store = None
        if self.resume is not None:
            signature = self.signature(step.net, config)
            if getattr(config, "features", ()):  # which the bars' own digest does not cover
                both = b"".join(part.features.tobytes() for part in parts)
                signature["features"] = hashlib.sha256(both).hexdigest()
            if isinstance(config, AlphaConfig) and self.source.label.bars is None:  # nor these
                both = b"".join(part.returns.tobytes() for part in parts)
                signature["labels"] = hashlib.sha256(both).hexdigest()
            store = self.resume.store(name, **signature)
        settings: dict[str, Any] = {
            "device": self.device,
            "show_progress": self.show_progress,
            "on_epoch": log_epoch,
            "on_steps": log_steps,
            "log_every": self.log_every,
            "store": store,
        }
        if self.processes > 1:
            report = train_in_processes(
                step, training, validation, config, self.processes, **settings
            )
        else:
            report = train(step, training, validation, config, **settings)
        self.result.history[name] = report.history
        figure = training_figure(
            report.history, report.steps, f"{name}, best epoch {report.best_epoch}"
        )
        self.log.figure(figure, f"training/{name}.png")
        return report.last


@dataclass(frozen=True, kw_only=True)
class _Work(_Training):
    """What the stages of a Kronos are given."""

    predictor: KronosPredictor
    contexts_folder: Path | None = None

    def identity(self, net: Any) -> dict[str, str]:
        """Of the networks that a run is made of, and how they read a window."""
        from kronos_qlib.model.checkpoints.pretrained import fingerprint

        halves = (net, self.predictor.model, self.predictor.tokenizer)
        return {
            # How a frozen backbone's contexts are read, and whose random numbers they are.
            "device": self.predictor.computed_in,
            "context": str(self.predictor.max_context),
            "weights": " ".join(map(fingerprint, halves)),
        }


def _train_tokens(stages: StagesConfig, work: _Work) -> None:
    from kronos_qlib.training.batches import Segment, is_worth_tokens, with_tokens
    from kronos_qlib.training.losses import PredictorStep, TokenizerStep

    predictor, source = work.predictor, work.source
    net, tokenizer = predictor.model, predictor.tokenizer
    parts = [Segment(source.training_windows(name)) for name in ("train", "valid")]
    for what, part in zip(("train on", "validate by"), parts, strict=True):
        work.log.message(f"{len(part)} windows to {what}{describe_dropped(part.windows.dropped)}")
    if stages.tokenizer is not None:
        _train_half("tokenizer", stages.tokenizer, TokenizerStep(tokenizer), parts, work)
    assert stages.predictor is not None
    config = stages.predictor
    parts[1] = with_tokens(parts[1].to_judge_by(config), tokenizer, predictor.device)
    if is_worth_tokens(parts[0], tokenizer, config):
        parts[0] = with_tokens(parts[0], tokenizer, predictor.device, work.show_progress)
    predicting = PredictorStep(
        net, tokenizer, config.teacher_forcing, shift_dates=config.shift_dates
    )
    _train_half("predictor", config, predicting, parts, work)


def _train_half(
    name: str, config: TrainingConfig, step: Any, parts: Sequence[Any], work: _Work
) -> None:
    """Tokenizer or predictor, whole or by adapters."""
    from kronos_qlib.model.checkpoints.weights import to_bytes
    from kronos_qlib.training.lora import adapters, merged_copy

    newest = work.source.horizon if config.loss_bars == "horizon" else None
    chosen = [replace(part, newest=newest) for part in parts]
    with adapters(step.net, config.lora_rank, config.lora_alpha, config.seed):
        last = work.run(name, step, chosen, config)
        work.result.last[name] = to_bytes(merged_copy(step.net, last))
    work.result.weights[name] = to_bytes(step.net)


def _train_alpha(config: AlphaConfig, work: _Work, head: Head | None) -> None:
    from kronos_qlib.model.alpha_head import AlphaEnsemble
    from kronos_qlib.model.checkpoints.weights import to_bytes
    from kronos_qlib.training.alpha import AlphaNet
    from kronos_qlib.training.hardware import threads_for

    predictor, result = work.predictor, work.result
    is_frozen = config.backbone == "frozen"
    is_new = head is None
    begins_anew = is_new and config.initial == "random"
    if head is None:
        if begins_anew:
            _begin_anew(predictor.model, config.seed)
        head = make_head(config, predictor)
    segments = _alpha_segments(config, work)
    if is_new:
        days = [day.start for day in segments[0].days]
        for member in head.members:
            member.fit_market(_states_of(segments[0], days))
    backbone = predictor.model
    with ExitStack() as stack:
        if is_frozen and predictor.device.type == "cpu":
            largest = max(day.stop - day.start for part in segments for day in part.days)
            width = head.config.context.parts * head.config.d_model + head.config.features
            stack.enter_context(threads_for(largest * width))
        if isinstance(head, AlphaEnsemble):
            _judge_together(head, 0, config, segments[1], work)
        last = []
        for number, member in enumerate(head.members):
            name = "alpha" if config.seeds == 1 else f"alpha_{number}"
            own = replace(config, seed=config.seed + number, seeds=1)
            net = AlphaNet(member, None if is_frozen else backbone)
            last.append(_train_member(name, own, net, segments, work))
        if isinstance(head, AlphaEnsemble):
            _judge_together(head, config.epochs, config, segments[1], work)
    result.head = head
    heads = [one.head for one in last]
    result.weights["alpha"] = to_bytes(head)
    result.last["alpha"] = to_bytes(heads[0] if len(heads) == 1 else AlphaEnsemble(heads))
    if not is_frozen or begins_anew:
        result.weights["predictor"] = to_bytes(backbone)
        result.last["predictor"] = to_bytes(backbone if is_frozen else last[0].predictor)


def _judge_together(
    head: AlphaEnsemble, epoch: int, config: AlphaConfig, validation: AlphaSegment, work: _Work
) -> None:
    """Add a row of the ensemble's own to the history: before its members are trained, and after."""
    from kronos_qlib.training.alpha import ALPHA_LOSSES, AlphaNet, AlphaStep

    device = work.predictor.device
    step = AlphaStep(AlphaNet(head), work.predictor.tokenizer, ALPHA_LOSSES[config.loss])
    head.to(device)
    row = step.validate(validation.to_judge_by(config), config, device)
    values = ", ".join(f"{key} {value:.4f}" for key, value in row.items())
    when = "trained" if epoch else "new"
    work.log.message(f"alpha, {config.seeds} seeds together, {when}: {values}")
    work.log.metrics({f"alpha.{key}": value for key, value in row.items()}, epoch)
    work.result.history.setdefault("alpha", []).append({"epoch": float(epoch), **row})


def _train_member(
    name: str, config: AlphaConfig, net: AlphaNet, segments: Sequence[AlphaSegment], work: _Work
) -> Any:
    """One head, alone or with the backbone; a copy of both as after the last epoch."""
    from kronos_qlib.training.alpha import ALPHA_LOSSES, AlphaStep
    from kronos_qlib.training.lora import adapters, frozen, merged_copy

    backbone = work.predictor.model
    criterion = ALPHA_LOSSES[config.loss]
    step = AlphaStep(net, work.predictor.tokenizer, criterion, config.shift_dates)
    rank = config.lora_rank if config.backbone == "lora" else None
    # The context is read before the heads of s1 and s2: they learn nothing here.
    with (
        frozen(backbone.head, backbone.dep_layer),
        adapters(backbone, rank, config.lora_alpha, config.seed),
    ):
        return merged_copy(net, work.run(name, step, segments, config))


def _begin_anew(net: Kronos, seed: int) -> None:
    """Give a predictor the weights of a new one."""
    import torch

    from kronos_qlib.model.transformer import Kronos

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        new = Kronos(**asdict(net.config))
    net.load_state_dict(new.state_dict())


def _check_options(head: Head, asked: HeadConfig) -> None:
    differ = [key for key in HEAD_OPTIONS if getattr(head.config, key) != getattr(asked, key)]
    if differ:
        shown = ", ".join(
            f"{key} {getattr(head.config, key)} (asked for: {getattr(asked, key)})"
            for key in differ
        )
        raise ConfigError(
            f"the alpha head to train on has {shown}; set training.alpha as it was, or begin "
            "without it"
        )


def _states_of(segment: AlphaSegment, places: Sequence[int]) -> Tensor:
    """(days, M) the market's states of the moments at these places."""
    import torch

    assert segment.market is not None and segment.states is not None
    return torch.from_numpy(segment.market[segment.states[list(places)]])


def labels_of(config: AlphaConfig, source: WindowDataset) -> tuple[list[Label], int]:
    """What is learned: the data set's own label, then that of the other horizons.

    Returns:
        The labels, and after how many times of the calendar all are known.

    Raises:
        ConfigError: the horizons lack the label's own, or it has no others.
    """
    label = source.label
    if config.horizons is None:
        return [label], label.ahead
    others = [label.over(bars) for bars in config.horizons if bars != label.bars]
    if label.bars not in config.horizons:
        raise ConfigError(
            f"training.alpha.horizons {list(config.horizons)} lack the label's own, "
            f"{label.bars}: the score is what is said of it; add it"
        )
    labels = [label, *others]
    return labels, max(one.ahead for one in labels)


def train_gru(
    config: AlphaConfig,
    sizes: GRUConfig,
    source: WindowDataset,
    device: torch.device,
    *,
    net: AlphaNet | None = None,
    show_progress: bool = False,
    resume: Resume | None = None,
    log_every: int = 20,
    log: StageLog | None = None,
) -> tuple[AlphaNet, StagesResult]:
    """A head on a GRU's state in the place of Kronos' context, both learned from the labels.

    Days, features, loss and early choice are those of an alpha head.

    Args:
        config: of an alpha head; what it says of a backbone is not used.
        device: trained on.
        net: of the same sizes and options, to go on from; None makes one.
        resume, log_every, log: as of `run_stages`.

    Returns:
        The network in evaluation mode, and its history and weights: "gru" and "alpha".

    Raises:
        ConfigError, BarDataError, TrainingError: as of `run_stages`.
    """
    from kronos_qlib.model.checkpoints.weights import to_bytes
    from kronos_qlib.training.alpha import ALPHA_LOSSES, AlphaStep

    check_trainable(StagesConfig(alpha=config), source)
    result = StagesResult()
    work = _Training(
        source=source,
        device=device,
        result=result,
        show_progress=show_progress,
        resume=resume,
        processes=1,
        log_every=log_every,
        log=PlainLog() if log is None else log,
    )
    segments = _labelled_segments(config, work)
    if net is None:
        net = make_gru(config, sizes)
        train = segments[0]
        for member in net.head.members:
            member.fit_market(_states_of(train, [day.start for day in train.days]))
    work.run("gru", AlphaStep(net, None, ALPHA_LOSSES[config.loss]), segments, config)
    result.head = net.head
    assert net.predictor is not None
    result.weights = {"gru": to_bytes(net.predictor), "alpha": to_bytes(net.head)}
    return net.eval(), result


def make_gru(config: AlphaConfig, sizes: GRUConfig) -> AlphaNet:
    """A new GRU and a head on its state, their first weights decided by the seed."""
    import torch

    from kronos_qlib.model.gru_reader import GRUReader
    from kronos_qlib.training.alpha import AlphaNet

    head = new_head(config, sizes.hidden)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return AlphaNet(head, GRUReader(sizes))


def _alpha_segments(config: AlphaConfig, work: _Work) -> list[AlphaSegment]:
    """What an alpha head learns from and is judged by, with contexts where those stay."""
    from kronos_qlib.training.alpha import with_day_tokens

    predictor = work.predictor
    segments = []
    for place, segment in enumerate(_labelled_segments(config, work)):
        windows = segment.windows
        if config.backbone != "frozen":
            most, epochs = config.windows_per_day, config.epochs
            if place:  # validation reads the days it judges by whole, and once more
                segment, most, epochs = segment.to_judge_by(config), None, epochs + 1
            if segment.span == 1:  # where a span begins decides its tokens
                segment = with_day_tokens(
                    segment,
                    predictor.tokenizer,
                    most,
                    epochs,
                    predictor.device,
                    work.show_progress,
                )
        elif config.context_width:
            # To judge by, each window is read as it is scored.
            span = 1 if place else config.span
            segment = replace(segment, contexts=_contexts_of(config, windows, work, span), span=1)
        else:  # the head looks at none
            empty = np.zeros((len(windows), 0), dtype=np.float32)
            segment = replace(segment, contexts=empty, span=1)
        segments.append(segment)
    return segments


def _labelled_segments(config: AlphaConfig, work: _Training) -> list[AlphaSegment]:
    """Windows of train and valid, and what is compared and learned over their days; no context."""
    from kronos_qlib.training.alpha import AlphaSegment, check_days

    source = work.source
    [label, *others], ahead = labels_of(config, source)
    segments = []
    for name in ("train", "valid"):
        windows = source.labelled_windows(name, ahead)
        columns = source.feature_values(windows, config.features)
        if note := describe_unknown(columns, config.features, name):
            work.log.message(f"alpha, {name}: {note}")
        segment = AlphaSegment.of(
            windows, label, columns=columns, others=others, neutral=config.neutral
        )
        if name == "train":
            segment = replace(segment.without_extremes(config.drop_extremes), span=config.span)
        # Before contexts are read, which takes minutes.
        dropped = config.drop_extremes if name == "train" else 0.0
        check_days(segment, name, dropped)
        few = len(windows.moments()) - len(segment.days)
        short = f" ({few} with fewer than {segment.least} labels left out)" if few else ""
        work.log.message(
            f"alpha, {name}: {len(segment.days)} days{short}, {len(windows)} windows, "
            f"{int(np.isfinite(segment.returns).sum())} of known label"
            f"{describe_dropped(windows.dropped)}"
        )
        segments.append(segment)
    return segments


def features_to_score(
    source: WindowDataset, windows: Windows, names: Sequence[str]
) -> Floats | None:
    """(N, F) what a head of these `names` sees beside contexts; None where that is the scale alone.

    A column's values that are not known are counted in the log.

    Raises:
        ConfigError: a column is not to be had.
    """
    from kronos_qlib.training.alpha import day_features

    columns = columns_to_score(source, windows, names)
    return day_features(windows, columns) if columns.shape[1] else None


def columns_to_score(source: WindowDataset, windows: Windows, names: Sequence[str]) -> Floats:
    """(N, C) the columns among a head's `names` as they are, NaN where not known; see above."""
    asked = columns_of(names)
    columns = source.feature_values(windows, asked)
    if np.isnan(columns).any():
        unknown = np.isnan(columns).mean(axis=0)
        told = [f"{name} {share:.1%}" for name, share in zip(asked, unknown, strict=True) if share]
        logger.warning("features: %s%s", AT_MEDIAN, ", ".join(told))
    return columns


def describe_unknown(columns: Floats, names: Sequence[str], segment: str) -> str:
    """Which columns lack values, for the log; "" where none does.

    Args:
        columns: (N, F) of windows, NaN where a value is not known.

    Raises:
        BarDataError: a column has no value at all.
    """
    if not len(columns) or not len(names):
        return ""
    unknown = np.isnan(columns).mean(axis=0)
    if (unknown == 1).any():
        raise BarDataError(
            f"features: {names[int(unknown.argmax())]} has no value for any of {len(columns)} "
            f"windows of {segment}: leave it out, or look at where it comes from"
        )
    told = [f"{name} {share:.1%}" for name, share in zip(names, unknown, strict=True) if share]
    return f"{AT_MEDIAN}{', '.join(told)}" if told else ""


def _contexts_of(config: AlphaConfig, windows: Windows, work: _Work, span: int) -> Contexts:
    how: dict[str, Any] = {"pooling": config.context, "span": span, "report": work.log.message}
    if work.contexts_folder is None:
        return contexts_of(work.predictor, windows, work.show_progress, **how)
    folder = work.contexts_folder
    return stored_contexts(work.predictor, windows, folder, work.show_progress, **how)


def check_segments(source: WindowDataset) -> None:
    """Refuse, before any work, segments from which no honest test can follow.

    Raises:
        ConfigError: train or valid is missing, or segments overlap or are out of order.
        BarDataError: the test segment has no window.
    """
    for name in ("train", "valid"):
        if name not in source.segments:
            raise ConfigError(
                f"training needs a segment {name!r}, by which weights are "
                f"{'learned' if name == 'train' else 'chosen'}; there are "
                f"{', '.join(source.segments) or 'none'}"
            )
    if problems := order_problems(source.segments, source.table.calendar):
        raise ConfigError(problems[0])
    if "test" in source.segments and not len(tested := source.windows("test")):
        raise BarDataError(no_windows(source, "test", tested.dropped))


def check_trainable(stages: StagesConfig, source: WindowDataset) -> None:
    """Refuse bars that cannot be trained on, before weights are loaded or anything is read.

    Raises:
        ConfigError, BarDataError: as of `check_segments`.
        TrainingError: a segment has no window to learn from or to judge by; says what a window
            needs and what the bars have.
    """
    check_segments(source)
    asked: list[tuple[Callable[[str], Windows], int, str]] = []
    if stages.predictor is not None or stages.tokenizer is not None:
        asked.append((source.training_windows, source.horizon, "bars"))
    if stages.alpha is not None:
        source.check_features(stages.alpha.features)
        ahead = labels_of(stages.alpha, source)[1]
        labelled = partial(source.labelled_windows, ahead=ahead)
        asked.append((labelled, ahead, "bars of its label"))
    for name, use in (("train", "train on"), ("valid", "judge by")):
        for find, ahead, what in asked:
            found = find(name)
            if not len(found):
                raise TrainingError(
                    f"there is no window to {use} in the segment {name}: it needs "
                    f"{source.min_bars or source.lookback} bars and {ahead} {what} after them, "
                    f"{_lengths(source, name)}{describe_dropped(found.dropped)}. Give more bars, "
                    "widen the segment, or set a shorter lookback and horizon, or min_bars"
                )


def _lengths(source: WindowDataset, segment: str) -> str:
    """How many bars there are, for an error: of the longest instrument, and in the segment."""
    table, (first, last) = source.table, source.bounds(segment)
    counts = np.diff(table.offsets)
    if not len(counts) or not counts.max():
        return "and there are no bars"
    start, stop = places_of(table.calendar, first, last)
    longest = int(counts.argmax())
    return (
        f"and of {len(counts)} instruments {table.instruments[longest]} has the most bars, "
        f"{counts[longest]}; the segment, {first} to {last}, has {stop - start} times"
    )
