"""KronosModel: Kronos as a Qlib model, bars in, one score per instrument and day out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from qlib.log import get_module_logger
from qlib.model.base import ModelFT

from kronos_qlib.configs import SamplingConfig, TrainingConfig, from_mapping
from kronos_qlib.data.dataset import WindowDataset
from kronos_qlib.data.windows import end_of_day
from kronos_qlib.errors import BarDataError, CheckpointError, ConfigError
from kronos_qlib.log import progress
from kronos_qlib.plugin.dataset import KronosDataset
from kronos_qlib.schema import CLOSE

if TYPE_CHECKING:
    from kronos_qlib.data.windows import Windows
    from kronos_qlib.inference.predictor import KronosPredictor
    from kronos_qlib.model.tokenizer import KronosTokenizer
    from kronos_qlib.model.transformer import Kronos
    from kronos_qlib.training.batches import Segment

logger = get_module_logger(__name__)  # Qlib shows its own loggers only


PUBLISHED_CONTEXT = 512
"""Bars that a checkpoint attends to if nothing says otherwise: the published small and base."""


@dataclass(frozen=True, kw_only=True)
class StagesConfig:
    """What `fit` trains, in this order; a stage left out is not trained."""

    tokenizer: TrainingConfig | None = None
    predictor: TrainingConfig | None = None

    def __post_init__(self) -> None:
        for name in ("tokenizer", "predictor"):
            value = getattr(self, name)
            if isinstance(value, Mapping):
                stage = from_mapping(TrainingConfig, value, where=f"training.{name}")
                object.__setattr__(self, name, stage)
        if self.tokenizer is not None and not self.tokenizer.teacher_forcing:
            raise ConfigError("teacher_forcing belongs to training.predictor, not to the tokenizer")
        if self.tokenizer is not None and self.predictor is None:
            raise ConfigError(
                "training.tokenizer without training.predictor would leave a predictor that reads "
                "tokens it does not know; add training.predictor"
            )


class KronosModel(ModelFT):
    """Zero-shot or finetuned Kronos behind Qlib's `fit`, `predict` and `finetune`.

    A pickle holds the settings and the weights that training changed, as CPU bytes, and nothing
    else: it is small for a zero-shot model and loads on a machine without the first one's GPU.
    Untrained weights come back from `checkpoint`, and are checked to be the same.

    Args:
        checkpoint: alias (nano, mini, small, base), Hub id, or folder of the predictor.
        tokenizer: the same for the tokenizer; None takes the one of `checkpoint`, which must then
            be an alias or a folder that holds both.
        revision, tokenizer_revision: Hub revisions; an alias brings its pinned ones.
        sampling: fields of `SamplingConfig`.
        training: fields of `StagesConfig`; None is zero-shot, and `fit` does nothing.
        device: "auto", or a torch device.
        max_context: bars the network sees at once, at most the checkpoint's own number, which
            None takes; 512 where a checkpoint has none.
        dtype: "float32" or "bfloat16", for scoring; training is in float32.
        memory_mb: budget in MiB for what scoring allocates, see `KronosPredictor`.
        seed: of the sampled paths. Training has its own.
        show_progress: progress bars on stderr.
    """

    # Qlib's pickle leaves out names that start with "_". A class attribute, so that it exists
    # after unpickling too.
    _predictor: KronosPredictor | None = None

    def __init__(
        self,
        checkpoint: str = "nano",
        tokenizer: str | None = None,
        revision: str | None = None,
        tokenizer_revision: str | None = None,
        sampling: Mapping[str, Any] | None = None,
        training: Mapping[str, Any] | None = None,
        device: str = "auto",
        max_context: int | None = None,
        seed: int = 0,
        show_progress: bool = True,
        dtype: str = "float32",
        memory_mb: int = 2048,
    ) -> None:
        super().__init__()
        self.checkpoint = str(checkpoint)
        self.tokenizer = str(tokenizer) if tokenizer else self.checkpoint
        self.revision = revision
        self.tokenizer_revision = tokenizer_revision
        self.sampling = from_mapping(SamplingConfig, sampling or {}, where="sampling")
        self.training = from_mapping(StagesConfig, training or {}, where="training")
        self.device = device
        self.max_context = max_context
        self.seed = seed
        self.show_progress = show_progress
        self.dtype = dtype
        self.memory_mb = memory_mb
        self.trained_weights: dict[str, bytes] = {}
        """Safetensors files of the halves that training changed, by their names."""
        self.fingerprints: dict[str, str] = {}
        """Digest of the weights of both halves as first loaded from their checkpoints."""
        self.history: dict[str, list[dict[str, float]]] = {}
        """Losses of each stage, a row per epoch."""

    @property
    def predictor(self) -> KronosPredictor:
        """The network, loaded when first used."""
        if self._predictor is None:
            self._predictor = self._load()
        return self._predictor

    def fit(self, dataset: KronosDataset | WindowDataset, reweighter: Any = None) -> None:
        """Train the stages asked for from the checkpoint's weights; nothing when zero-shot.

        Raises:
            ConfigError: a reweighter is given, which token losses do not use.
            TrainingError: a segment has no windows, or a loss is not finite.
        """
        if reweighter is not None:
            raise ConfigError("KronosModel.fit does not use a reweighter; leave it out")
        self.trained_weights, self.history, self.fingerprints = {}, {}, {}
        self._predictor = self._load()  # zero-shot too: the pickle then knows its weights
        if self.training.predictor is None:
            logger.info(f"zero-shot: the weights of {self.checkpoint} are used as they are")
            return
        self._train(dataset)

    def finetune(self, dataset: KronosDataset | WindowDataset) -> None:
        """Train on from the weights it has now.

        Raises:
            ConfigError: no training is configured.
        """
        if self.training.predictor is None:
            raise ConfigError("finetune needs the setting `training`, this model is zero-shot")
        self._train(dataset)

    def predict(
        self,
        dataset: KronosDataset | WindowDataset,
        segment: str | slice | tuple[Any, Any] = "test",
    ) -> pd.Series:
        """Mean predicted close over the horizon and all paths / last close - 1.

        Returns:
            "score" on (datetime, instrument), datetime being the last bar seen. A return has no
            unit, so a cheap share and a dear one compare.

        Raises:
            BarDataError: the segment has no complete window.
            CalendarError: the calendar does not reach a horizon past the segment.
        """
        source = _source_of(dataset)
        windows = source.windows(segment)
        if not len(windows):
            raise BarDataError(_no_windows(source, segment, windows.dropped))
        logger.info(f"{len(windows)} windows to score{_told(windows.dropped)}")
        context = self.predictor.max_context
        if source.lookback > context:
            logger.warning(
                f"the network sees {context} bars at once: of each lookback of {source.lookback} "
                f"only the last {context}, normalised by all of it"
            )
        days = windows.moments()
        newest = windows.take(np.array([day.start for day in days]))
        stamps_ahead = source.future_stamps(newest)  # all at once: a short calendar fails early
        scores = np.empty(len(windows), dtype=np.float64)
        # A matrix product rounds by its shape, so a batch is one day's windows: a day scored
        # alone, in a backtest, or before later bars existed gets the same bits, as long as the
        # calendar says the same of the days to come.
        for number, day in enumerate(
            progress(days, "Kronos forecasts", unit="day", show=self.show_progress)
        ):
            for which, group in windows.take(day).by_length():
                scores[day.start + which] = self._score(group, stamps_ahead[number])
        return pd.Series(scores, index=windows.index, name="score").sort_index()

    def _score(
        self, windows: Windows, stamps_ahead: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        """Scores of windows of one length and one day, whose bars to come have these stamps."""
        rows = windows.rows(slice(None))
        paths = self.predictor.paths(
            windows.table.values[rows],
            windows.table.stamps_at(rows),
            np.broadcast_to(stamps_ahead, (len(windows), *stamps_ahead.shape)),
            len(stamps_ahead),
            T=self.sampling.temperature,
            top_k=self.sampling.top_k,
            top_p=self.sampling.top_p,
            sample_count=self.sampling.paths,
            seed=self.seed,
            keys=[
                moment.isoformat() if self.sampling.common else f"{name} {moment.isoformat()}"
                for moment, name in windows.index
            ],
            coherent=False,  # the paper's score is of the raw closes
            rotate_s2=self.sampling.rotate_s2,
            stratified=self.sampling.stratified,
        )
        expected = paths[..., CLOSE].astype(np.float64).mean(axis=(1, 2))
        scores: npt.NDArray[np.float64] = expected / windows.last_close - 1
        return scores

    def save_pretrained(self, path: str) -> None:
        """Write both halves, as trained, into `path`/predictor and `path`/tokenizer."""
        from pathlib import Path

        tokenizer = self.predictor.tokenizer
        tokenizer.save_pretrained(Path(path) / "tokenizer")
        self.predictor.model.save_pretrained(Path(path) / "predictor", tokenizer)

    def _train(self, dataset: KronosDataset | WindowDataset) -> None:
        from kronos_qlib.model.checkpoint import to_bytes
        from kronos_qlib.training.batches import Segment
        from kronos_qlib.training.steps import PredictorStep, TokenizerStep

        source = _source_of(dataset)
        _check_segments(source)
        bars = source.lookback + source.horizon
        if bars - 1 > self.predictor.max_context:
            raise ConfigError(
                f"windows of {source.lookback} + {source.horizon} bars train {bars - 1} "
                f"positions at once and {self.checkpoint} attends to "
                f"{self.predictor.max_context}; shorten lookback or horizon"
            )
        net, tokenizer = self.predictor.model, self.predictor.tokenizer
        training, validation = (
            Segment(source.training_windows(name), source.bounds(name)[0])
            for name in ("train", "valid")
        )
        for name, part in (("train on", training), ("validate by", validation)):
            logger.info(f"{len(part)} windows to {name}{_told(part.windows.dropped)}")
        if self.training.tokenizer is not None:
            step = TokenizerStep(tokenizer)
            self._run_stage("tokenizer", step, self.training.tokenizer, training, validation)
            self.trained_weights["tokenizer"] = to_bytes(tokenizer)
        assert self.training.predictor is not None
        forcing = self.training.predictor.teacher_forcing
        predictor_step = PredictorStep(net, tokenizer, forcing)
        self._run_stage("predictor", predictor_step, self.training.predictor, training, validation)
        self.trained_weights["predictor"] = to_bytes(net)

    def _run_stage(
        self,
        name: str,
        step: Any,
        config: TrainingConfig,
        training: Segment,
        validation: Segment,
    ) -> None:
        from kronos_qlib.training.loop import train

        def log_epoch(epoch: int, row: dict[str, float]) -> None:
            losses = ", ".join(f"{key} {value:.4f}" for key, value in row.items() if key != "epoch")
            logger.info(f"{name} epoch {epoch}/{config.epochs}: {losses}")
            _log_to_active_run({f"{name}.{key}": value for key, value in row.items()}, epoch)

        report = train(
            step,
            training,
            validation,
            config,
            device=self.predictor.device,
            show_progress=self.show_progress,
            on_epoch=log_epoch,
        )
        self.history[name] = report.history

    def _load(self) -> KronosPredictor:
        from kronos_qlib.inference.predictor import KronosPredictor
        from kronos_qlib.model.tokenizer import KronosTokenizer
        from kronos_qlib.model.transformer import Kronos

        net = Kronos.from_pretrained(self.checkpoint, self.revision)
        tokenizer = KronosTokenizer.from_pretrained(self.tokenizer, self.tokenizer_revision)
        known = net.origin.max_context if net.origin else None
        if self.max_context and known and self.max_context > known:
            raise ConfigError(
                f"max_context {self.max_context} is more than the {known} bars that "
                f"{self.checkpoint} was trained on at once"
            )
        context = self.max_context or known or PUBLISHED_CONTEXT
        # The pair is checked here, as the files have it, before any trained half replaces one.
        predictor = KronosPredictor(
            net, tokenizer, self.device, context, dtype=self.dtype, memory_mb=self.memory_mb
        )
        for name, half, place in (
            ("predictor", net, self.checkpoint),
            ("tokenizer", tokenizer, self.tokenizer),
        ):
            self._check_unchanged(name, half, place)
            self._restore(name, half)
        return predictor

    def _check_unchanged(self, name: str, half: Kronos | KronosTokenizer, place: str) -> None:
        from kronos_qlib.model.checkpoint import fingerprint

        now = fingerprint(half)
        before = self.fingerprints.setdefault(name, now)
        if now != before:
            raise CheckpointError(
                f"the {name} at {place} is not the one this model was made with (fingerprint {now}"
                f", was {before}); point `checkpoint` at the old weights, or fit again"
            )

    def _restore(self, name: str, half: Kronos | KronosTokenizer) -> None:
        from safetensors.torch import load

        from kronos_qlib.model.checkpoint import check_fit

        if name in self.trained_weights:
            weights = load(self.trained_weights[name])
            check_fit(half, weights, f"the trained {name} in the pickle")
            half.load_state_dict(weights)


def _source_of(dataset: Any) -> WindowDataset:
    """What the windows come from: a Qlib dataset's side that knows no Qlib, or that alone."""
    if isinstance(dataset, KronosDataset):
        return dataset.source
    if isinstance(dataset, WindowDataset):
        return dataset
    raise ConfigError(
        "KronosModel reads windows of bars from a KronosDataset or a WindowDataset, got "
        f"{type(dataset).__name__}; KronosDataset takes any handler, Alpha158 among them"
    )


def _check_segments(source: WindowDataset) -> None:
    """Refuse, before any work, segments from which no honest test can follow."""
    order = [name for name in ("train", "valid", "test") if name in source.segments]
    for name in order:
        first, last = source.bounds(name)
        if first is not None and last is not None and pd.Timestamp(first) > pd.Timestamp(last):
            raise ConfigError(f"the segment {name} ends at {last}, before it begins at {first}")
    for earlier, later in pairwise(order):
        end, begin = source.bounds(earlier)[1], source.bounds(later)[0]
        if end is None or begin is None or end_of_day(end) >= np.datetime64(pd.Timestamp(begin)):
            raise ConfigError(
                f"the segment {earlier} ends at {end} and {later} begins at {begin}: what is "
                "learned or chosen on one would be known in the next; let each end before the "
                "following one begins"
            )
    if "test" in order and not len(tested := source.windows("test")):
        raise BarDataError(_no_windows(source, "test", tested.dropped))


def _no_windows(
    source: WindowDataset,
    segment: str | slice | tuple[Any, Any],
    dropped: Mapping[str, int],
) -> str:
    first, last = source.bounds(segment)
    least = source.min_bars or source.lookback
    return (
        f"no instrument of the universe has {least} bars up to a day from {first} to {last}"
        f"{_told(dropped)}; the bars go from {_reach(source)}: move the segment, shorten the "
        "lookback, or widen the handler's start_time and end_time"
    )


def _reach(source: WindowDataset) -> str:
    places = source.table.places
    first, last = source.table.calendar[[places.min(), places.max()]].astype("datetime64[D]")
    return f"{first} to {last}"


def _told(dropped: Mapping[str, int]) -> str:
    """What became of the other candidates, for the log."""
    if not dropped:
        return ""
    return " (none for " + ", ".join(f"{count}: {why}" for why, count in dropped.items()) + ")"


def _log_to_active_run(metrics: dict[str, float], step: int) -> None:
    """Into the MLflow run that Qlib has open, if any: a model may be fitted outside a workflow."""
    from qlib.workflow import R

    # Without qlib.init, as with bars from a file, there is no recorder to ask.
    if getattr(R, "_provider", None) is not None and R.exp_manager.active_experiment is not None:
        R.log_metrics(step=step, **metrics)
