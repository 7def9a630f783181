"""What `KronosModel.fit` trains, stage by stage, each going on from the one before."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from kronos_qlib.data.windows.faulty_bars import Floats
from kronos_qlib.data.windows.segments import order_problems, places_of
from kronos_qlib.data.windows.window_dataset import describe_dropped, no_windows
from kronos_qlib.errors import BarDataError, ConfigError, TrainingError
from kronos_qlib.pipeline.scoring import contexts_of
from kronos_qlib.settings import from_mapping
from kronos_qlib.training.stage_settings import PRESETS, AlphaConfig, TrainingConfig

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure
    from torch import Tensor

    from kronos_qlib.data.windows.window import Windows
    from kronos_qlib.data.windows.window_dataset import WindowDataset
    from kronos_qlib.inference.predictor import KronosPredictor
    from kronos_qlib.model.alpha_head import AlphaHead
    from kronos_qlib.model.sizes import GRUConfig
    from kronos_qlib.training.alpha import AlphaNet, AlphaSegment
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
    head: the alpha head, where one was trained.
    """

    weights: dict[str, bytes] = field(default_factory=dict)
    last: dict[str, bytes] = field(default_factory=dict)
    history: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    head: AlphaHead | None = None


def run_stages(
    stages: StagesConfig,
    predictor: KronosPredictor,
    source: WindowDataset,
    *,
    head: AlphaHead | None = None,
    show_progress: bool = False,
    resume: Resume | None = None,
    processes: int = 1,
    log_every: int = 20,
    log: StageLog | None = None,
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

    Raises:
        ConfigError: segments overlap, or windows are longer than the network knows.
        BarDataError, TrainingError: a segment has no windows; a loss is not finite.
    """
    from kronos_qlib.training.distributed import is_launched, join_processes

    check_segments(source)
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
    )
    if stages.predictor is not None:
        _train_tokens(stages, work)
    if stages.alpha is not None:
        _train_alpha(stages.alpha, work, head)
    return result


def make_head(config: AlphaConfig, width: int) -> AlphaHead:
    """A new head for contexts of this width, its first weights decided by the seed."""
    import torch

    from kronos_qlib.data.windows.scale_features import SCALE_FEATURES
    from kronos_qlib.model.alpha_head import AlphaHead

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return AlphaHead(
            width,
            len(SCALE_FEATURES) + len(config.features),
            config.context_width,
            config.hidden,
            config.dropout,
            config.features,
        )


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

        table, source = self.source.table, self.source
        windows = str([table.instruments, *(getattr(source, key) for key in WINDOW_SETTINGS)])
        return {
            "kind of state": STATE,
            "settings": repr(config),
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
        from kronos_qlib.training.processes import train_in_processes

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

    def identity(self, net: Any) -> dict[str, str]:
        """Of the networks that a run is made of, and how they read a window."""
        from kronos_qlib.model.checkpoints.pretrained import fingerprint

        halves = (net, self.predictor.model, self.predictor.tokenizer)
        return {
            # How a frozen backbone's contexts are read, and whose random numbers they are.
            "device": f"{self.device.type} {self.predictor.dtype}",
            "context": str(self.predictor.max_context),
            "weights": " ".join(map(fingerprint, halves)),
        }


def _train_tokens(stages: StagesConfig, work: _Work) -> None:
    from kronos_qlib.training.batches import Segment, is_worth_tokens, with_tokens
    from kronos_qlib.training.losses import PredictorStep, TokenizerStep

    predictor, source = work.predictor, work.source
    net, tokenizer = predictor.model, predictor.tokenizer
    bars = source.lookback + source.horizon
    if bars - 1 > predictor.max_context:
        raise ConfigError(
            f"windows of {source.lookback} + {source.horizon} bars train {bars - 1} positions at "
            f"once and the network attends to {predictor.max_context}; shorten lookback or horizon"
        )
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


def _train_alpha(config: AlphaConfig, work: _Work, head: AlphaHead | None) -> None:
    from kronos_qlib.model.checkpoints.weights import to_bytes
    from kronos_qlib.training.alpha import ALPHA_LOSSES, AlphaNet, AlphaStep
    from kronos_qlib.training.lora import adapters, frozen, merged_copy

    predictor, source, result = work.predictor, work.source, work.result
    is_frozen = config.backbone == "frozen"
    if source.lookback > predictor.max_context and not is_frozen:
        raise ConfigError(
            f"a lookback of {source.lookback} bars is read at once and the network attends to "
            f"{predictor.max_context}; shorten it, or keep the backbone frozen"
        )
    head = make_head(config, predictor.model.config.d_model) if head is None else head
    segments = _alpha_segments(config, work)
    backbone = predictor.model
    net = AlphaNet(head, None if is_frozen else backbone)
    step = AlphaStep(net, predictor.tokenizer, ALPHA_LOSSES[config.loss])
    rank = config.lora_rank if config.backbone == "lora" else None
    # The context is read before the heads of s1 and s2: they learn nothing here.
    with (
        frozen(backbone.head, backbone.dep_layer),
        adapters(backbone, rank, config.lora_alpha, config.seed),
    ):
        last: Any = merged_copy(net, work.run("alpha", step, segments, config))
    result.head = head
    result.weights["alpha"], result.last["alpha"] = to_bytes(head), to_bytes(last.head)
    if not is_frozen:
        result.weights["predictor"] = to_bytes(backbone)
        result.last["predictor"] = to_bytes(last.predictor)


def train_gru(
    config: AlphaConfig,
    sizes: GRUConfig,
    source: WindowDataset,
    device: torch.device,
    *,
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
    segments = [_labelled_segment(name, config, work) for name in ("train", "valid")]
    net = make_gru(config, sizes)
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

    head = make_head(config, sizes.hidden)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return AlphaNet(head, GRUReader(sizes))


def _alpha_segments(config: AlphaConfig, work: _Work) -> list[AlphaSegment]:
    """What an alpha head learns from and is judged by, with contexts where those stay."""
    from kronos_qlib.training.alpha import AlphaSegment, check_days

    predictor = work.predictor
    segments = []
    for name in ("train", "valid"):
        segment = _labelled_segment(name, config, work)
        windows = segment.windows
        if config.backbone == "frozen" and config.context_width:
            contexts = contexts_of(predictor, windows, work.show_progress)
            segment = replace(segment, contexts=contexts)
        elif config.backbone == "frozen":  # the head looks at none
            segment = replace(segment, contexts=np.zeros((len(windows), 0), dtype=np.float32))
        segments.append(segment)
    return segments


def _labelled_segment(name: str, config: AlphaConfig, work: _Training) -> AlphaSegment:
    """Windows of known label, and what is compared over their days; no context."""
    from kronos_qlib.training.alpha import AlphaSegment, check_days

    source, windows = work.source, work.source.labelled_windows(name)
    columns = source.feature_values(windows, config.features)
    if note := describe_unknown(columns, config.features, name):
        work.log.message(f"alpha, {name}: {note}")
    segment = AlphaSegment.of(windows, source.label, columns=columns)
    check_days(segment, name)  # before contexts are read, which takes minutes
    work.log.message(
        f"alpha, {name}: {len(segment.days)} days, {len(windows)} windows, "
        f"{int(np.isfinite(segment.returns).sum())} of known label"
        f"{describe_dropped(windows.dropped)}"
    )
    return segment


def columns_to_score(source: WindowDataset, windows: Windows, names: Sequence[str]) -> Floats:
    """(N, F) columns of windows that a head will score, NaN where not known; the log counts them.

    Raises:
        ConfigError: a column is not to be had.
    """
    columns = source.feature_values(windows, names)
    if np.isnan(columns).any():
        unknown = np.isnan(columns).mean(axis=0)
        told = [f"{names[place]} {unknown[place]:.1%}" for place in np.flatnonzero(unknown)]
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
    told = [f"{names[place]} {unknown[place]:.1%}" for place in np.flatnonzero(unknown)]
    return f"{AT_MEDIAN}{', '.join(told)}" if told else ""


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
    asked = []
    if stages.predictor is not None or stages.tokenizer is not None:
        asked.append((source.training_windows, source.horizon, "bars"))
    if stages.alpha is not None:
        source.check_features(stages.alpha.features)
        asked.append((source.labelled_windows, source.label.ahead, "bars of its label"))
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
