"""KronosModel: Kronos as a Qlib model, bars in, one score per instrument and day out."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from qlib.log import get_module_logger
from qlib.model.base import ModelFT

from kronos_qlib.calibration.calibration import LEAST_WINDOWS, Calibration
from kronos_qlib.calibration.past_volatility import LEAST_BARS
from kronos_qlib.data.windows.known import known_windows
from kronos_qlib.data.windows.scale_features import SCALE_FEATURES
from kronos_qlib.data.windows.segments import Segment
from kronos_qlib.data.windows.window_dataset import WindowDataset, describe_dropped, no_windows
from kronos_qlib.errors import (
    BarDataError,
    CheckpointError,
    ConfigError,
    NothingToScoreError,
    some_of,
)
from kronos_qlib.extras import check_extra
from kronos_qlib.inference.calibrating import (
    DRAWN,
    PATHS,
    checkpoint_of,
    fit_calibration,
    sample_of,
)
from kronos_qlib.inference.options import AUTO
from kronos_qlib.inference.sampling import SamplingConfig
from kronos_qlib.pipeline.calibrated_paths import PathCalibration, shipped_calibration
from kronos_qlib.pipeline.scoring import (
    members_of,
    paths_by_day,
    scores_from_alpha,
    signals_from_paths,
)
from kronos_qlib.pipeline.shaped_scores import days_before, shape_scores
from kronos_qlib.pipeline.stages import (
    Resume,
    StagesConfig,
    check_stages,
    check_trainable,
    columns_of,
    features_to_score,
    make_head,
    run_stages,
)
from kronos_qlib.plugin.dataset import KronosDataset, source_of
from kronos_qlib.plugin.runs.active_run import ActiveRunLog
from kronos_qlib.plugin.runs.manager import claim_active_run
from kronos_qlib.plugin.scoring_jobs.backend_settings import BackendConfig
from kronos_qlib.settings import from_mapping
from kronos_qlib.signals.paths import DEFAULT_SIGNALS, check_signals
from kronos_qlib.signals.shaping import (
    SECTOR,
    Step,
    exposures_needed,
    history_of,
    read_sectors,
    steps_of,
    turnover,
)
from kronos_qlib.signals.signal_settings import SignalsConfig

if TYPE_CHECKING:
    from kronos_qlib.data.windows.window import Windows
    from kronos_qlib.inference.predictor import KronosPredictor
    from kronos_qlib.model.alpha_head import Head
    from kronos_qlib.model.tokenizer import KronosTokenizer
    from kronos_qlib.model.transformer import Kronos

logger = get_module_logger(__name__)  # Qlib shows its own loggers only

ALPHA = "alpha"
"""Among the signals, what an alpha head says."""

FIT = "fit"
"""Of the setting `calibration`, beside `AUTO`; what is neither is a file."""

PUBLISHED_CONTEXT = 512
"""Bars that a checkpoint attends to if nothing says otherwise: the published small and base."""


class KronosModel(ModelFT):
    """Zero-shot or finetuned Kronos behind Qlib's `fit`, `predict` and `finetune`.

    A pickle holds the settings and the weights that training changed, as CPU bytes, and nothing
    else: it is small for a zero-shot model and loads on a machine without the first one's GPU.
    Untrained weights come back from `checkpoint`, and are checked to be the same.

    Args:
        checkpoint: alias (nano, mini, small, base), Hub id, or folder of the predictor.
        tokenizer: the same for the tokenizer; None takes the one of `checkpoint`: an alias', that
            of a folder that holds both, or beside published weights in a folder of their own the
            folder with the published tokenizer's name. There KRONOS_TOKENIZER names another.
        revision, tokenizer_revision: Hub revisions; an alias brings its pinned ones.
        sampling: fields of `SamplingConfig`.
        signals: fields of `SignalsConfig`: what the score is, and what is kept beside it.
        training: fields of `StagesConfig`; None is zero-shot, and `fit` does nothing. Without a
            `preset`, published weights (mini, small, base, a Hub id, copies in a folder) take
            "gentle".
        from_scratch: only the sizes are those of `checkpoint`; the weights are new, by `seed`. The
            tokenizer is new too, unless `tokenizer` names one.
        alpha_head: folder of an alpha head that `save_pretrained` or `kronos-qlib finetune` wrote,
            to score with or to train on.
        device: "auto", or a torch device.
        max_context: bars the network sees at once, at most the checkpoint's own number, which
            None takes; 512 where a checkpoint has none.
        dtype: "float32", "bfloat16" or "int8" as of `KronosPredictor`, for scoring, and for the
            contexts that a head on a frozen backbone is trained on; training itself is in float32.
        memory_mb: budget in MiB for what scoring allocates, see `KronosPredictor`.
        seed: of the sampled paths. Training has its own.
        show_progress: progress bars on stderr.
        resume_folder: where training keeps its state as it goes, a folder of this run alone. A run
            that was stopped and is started again with the same settings, weights and bars goes on
            from there, on a CPU to the same bits; one that had ended is not trained again. Remove
            the folder to begin anew. Not for two runs at once. None keeps nothing.
        resume_every: steps from one state to the next.
        n_processes: that train together, begun by `fit`: each takes a part of every batch, on its
            share of the cores or on a GPU of its own. Leave it at 1 where torchrun starts them, and
            on a CPU too, whose cores torch's threads use. A script that sets it must have its entry
            under `if __name__ == "__main__"`, as Python's `multiprocessing` asks.
        log_every: training steps from one row in MLflow to the next.
        contexts_folder: where the contexts that an alpha head reads of a frozen backbone are kept,
            and found by later runs, on whatever segments: a file for each network and way of
            reading, by digests of weights and bars. Any number of runs may share it. Remove it to
            make room. None keeps nothing. Scores are the same with and without. No pickle has it.
        backend: where `predict` and `signals` score: None, in this process; "ray", by workers of
            Ray on this machine; or fields of `BackendConfig`, for a cluster. Scores are the same.
        calibration: of the paths that signals are made of. None leaves them as drawn: a ranking
            needs the centre of each window's own paths and nothing of their width, and scores stay
            those of the paper. With one, probabilities, volatilities and shortfalls come from a
            spread that fits what came, while each window keeps its own centre, so that expected
            returns still rank: the mean log return of its paths. "auto": the one beside the
            checkpoint's weights, where it was fitted on these and for such bars; else paths are as
            drawn. "fit": fitted on the segment "valid" at the end of `fit`, and kept with the
            model. Otherwise the file of a `Calibration`, which must be of these weights.
    """

    # Qlib's pickle leaves out names that start with "_". A class attribute, so that it exists
    # after unpickling too.
    _predictor: KronosPredictor | None = None
    _head: Head | None = None
    _last_weights: Mapping[str, bytes] = MappingProxyType({})
    _contexts_folder: str | None = None
    # Of a pickle that is older than the settings.
    signal_settings = SignalsConfig()
    calibration: str | None = None
    kept_calibration: Calibration | None = None
    backend: BackendConfig | None = None

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
        resume_folder: str | None = None,
        resume_every: int = 500,
        from_scratch: bool = False,
        alpha_head: str | None = None,
        n_processes: int = 1,
        log_every: int = 20,
        signals: Mapping[str, Any] | None = None,
        calibration: str | None = None,
        contexts_folder: str | None = None,
        backend: str | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.checkpoint = str(checkpoint)
        self.tokenizer = str(tokenizer) if tokenizer else self.checkpoint
        self.revision = revision
        self.tokenizer_revision = tokenizer_revision
        self.sampling = from_mapping(SamplingConfig, sampling or {}, where="sampling")
        self.from_scratch = from_scratch
        self.training = from_mapping(StagesConfig, self._with_preset(training), where="training")
        self.alpha_head = alpha_head
        self.signal_settings = from_mapping(SignalsConfig, signals or {}, where="signals")
        self.n_processes = n_processes
        self.log_every = log_every
        self.device = device
        self.max_context = max_context
        self.seed = seed
        self.show_progress = show_progress
        self.dtype = dtype
        self.memory_mb = memory_mb
        self.resume_folder = resume_folder
        self.resume_every = resume_every
        self._contexts_folder = contexts_folder
        self.backend = BackendConfig.of(backend)
        if resume_every < 1:
            raise ConfigError(f"resume_every must be at least 1 step, got {resume_every}")
        for name in ("n_processes", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if from_scratch and self.training.predictor is None:
            raise ConfigError("from_scratch needs training.predictor: its weights are random")
        if from_scratch and tokenizer is None and self.training.tokenizer is None:
            raise ConfigError(
                "from_scratch makes a new tokenizer too: give training.tokenizer, or name a "
                "`tokenizer` to keep"
            )
        if alpha_head and self.training.alpha and self.training.alpha.initial == "random":
            raise ConfigError(
                "alpha_head was trained on other weights than those that training.alpha.initial "
                "random begins with; leave one of them out"
            )
        if alpha_head and self.training.predictor and not self.training.alpha:
            raise ConfigError(
                "training.predictor changes the contexts that alpha_head reads, and without "
                "training.alpha it would not learn of that: add training.alpha, or leave one out"
            )
        self.keeps_tokenizer = tokenizer is not None
        self.trained_weights: dict[str, bytes] = {}
        """Safetensors files of what training changed: "tokenizer", "predictor", "alpha"."""
        self.fingerprints: dict[str, str] = {}
        """Digest of the weights of both halves as first loaded from their checkpoints."""
        self.history: dict[str, list[dict[str, float]]] = {}
        """Losses of each stage, a row per epoch."""
        self.calibration = None if calibration is None else str(calibration)
        self.kept_calibration = self._calibration_of_file()
        """What `fit` or a file gave."""
        self._check_signals()

    @property
    def predictor(self) -> KronosPredictor:
        """The network, loaded when first used."""
        if self._predictor is None:
            self._predictor = self._load()
        return self._predictor

    @property
    def head(self) -> Head | None:
        """The alpha head, where one was trained or named."""
        if self._head is None and ("alpha" in self.trained_weights or self.alpha_head):
            self._head = self._load_head()
        return self._head

    def fit(self, dataset: KronosDataset | WindowDataset, reweighter: object = None) -> None:
        """Train the stages asked for from the checkpoint's weights; nothing when zero-shot.

        Raises:
            BarDataError: `calibration` is "fit", and "valid" has too few windows for one.
            CheckpointError: the file `calibration` is of other weights.
            ConfigError: a reweighter is given, which no stage uses; `signals` asks for more bars
                than the data set's windows have; or `calibration` is "fit", and there is no segment
                "valid" or its windows are too short.
            MissingDependencyError: it trains adapters, and the extra "train" is not installed.
            TrainingError: a segment has no windows, or a loss is not finite.
        """
        if reweighter is not None:
            raise ConfigError("KronosModel.fit does not use a reweighter; leave it out")
        claim_active_run()
        self.check_dataset(dataset)
        self.trained_weights, self.history, self.fingerprints = {}, {}, {}
        self._head = None
        if self.calibration == FIT:
            self.kept_calibration = None
        self._predictor = self._load()  # zero-shot too: the pickle then knows its weights
        self._check_calibration(_source_of(dataset))
        if self.training.is_zero_shot:
            logger.info(f"zero-shot: the weights of {self.checkpoint} are used as they are")
        else:
            self._train(dataset)
        self._fit_calibration(_source_of(dataset))

    def check_dataset(self, dataset: KronosDataset | WindowDataset) -> None:
        """Refuse what `fit` would refuse, before weights are loaded.

        Raises:
            ConfigError, BarDataError, MissingDependencyError, TrainingError: as of `fit`.
        """
        if not self.training.is_zero_shot:
            self._check_packages()
        if self.backend is not None:
            self.backend.check_packages()
        self._check_windows(_source_of(dataset))
        if not self.training.is_zero_shot:
            check_trainable(self.training, _source_of(dataset))

    def check_stages(self, dataset: KronosDataset | WindowDataset) -> None:
        """Refuse what `fit` would refuse of these windows once weights are loaded; it loads them.

        Raises:
            ConfigError: a stage reads more bars, or other layers, than the network has.
            CheckpointError: weights cannot be loaded.
        """
        if not self.training.is_zero_shot:
            check_stages(self.training, self.predictor, _source_of(dataset), self.head)

    @property
    def contexts_folder(self) -> Path | None:
        """Where contexts of a frozen backbone are kept, if anywhere."""
        return self._folder_of(self._contexts_folder)

    def keep_contexts(self, folder: Path) -> None:
        """Keep contexts in a folder, and find them there, unless the settings name one."""
        self._contexts_folder = self._contexts_folder or str(folder)

    def finetune(self, dataset: KronosDataset | WindowDataset) -> None:
        """Train on from the weights it has now.

        Raises:
            ConfigError: no training is configured.
            Otherwise as `fit`.
        """
        if self.training.is_zero_shot:
            raise ConfigError("finetune needs the setting `training`, this model is zero-shot")
        self._check_packages()
        self._check_calibration(_source_of(dataset))
        self._train(dataset)
        self._fit_calibration(_source_of(dataset))

    def fit_head(self, dataset: KronosDataset | WindowDataset, *, anew: bool = False) -> None:
        """Train the alpha head alone; the backbone stays as it is now, whatever `training` says.

        Args:
            anew: from new weights of the head; otherwise it goes on from those that it has.

        Raises:
            ConfigError: no alpha head is configured.
            Otherwise as `fit`.
        """
        own = self.training
        if own.alpha is None:
            raise ConfigError("fit_head needs the setting training.alpha")
        if anew:
            self.trained_weights.pop("alpha", None)
            self._head = None
        try:
            alone = replace(own.alpha, backbone="frozen", initial="pretrained")
            self.training = StagesConfig(alpha=alone)
            self.finetune(dataset)
        finally:
            self.training = own

    def predict(
        self,
        dataset: KronosDataset | WindowDataset,
        segment: Segment = "test",
    ) -> pd.Series:
        """The score: what an alpha head says, where one was trained; otherwise the paths' expected
        return; or what the setting `signals` makes the score.

        Scores that are smoothed over days reach back for them: the days before the segment are
        scored too, where the data has bars, so that a day alone is scored as in a backtest.

        Returns:
            "score" on (datetime, instrument), datetime being the last bar seen. From paths it is
            the mean predicted close over the horizon and all paths / last close - 1: a return has
            no unit, so a cheap share and a dear one compare. From a head it is a place in the
            day's ranking, in units of its own.

        Raises:
            BarDataError: the segment has no complete window, or a window's bars allow no return or
                none of the calibration asked for (names instrument and date).
            CalendarError: the calendar does not reach a horizon past the segment (paths only).
            CheckpointError: the file `calibration` is of other weights.
            ConfigError: `calibration` is "fit", and `fit` was not called.
        """
        if self._is_elsewhere:
            return self._frame_elsewhere(dataset, segment, "scores")["score"]
        return self._frame(dataset, segment, keep=())["score"]

    def signals(
        self,
        dataset: KronosDataset | WindowDataset,
        segment: Segment = "test",
    ) -> pd.DataFrame:
        """Every signal that is kept, from the same paths as the score.

        Returns:
            On (datetime, instrument): "score" as `predict` gives it; "raw_score" where it was
            shaped; then a column for each signal kept. "alpha" is what a head says.

        Raises:
            As `predict`.
        """
        if self._is_elsewhere:
            return self._frame_elsewhere(dataset, segment, "signals")
        return self._frame(dataset, segment, keep=self._kept())

    @property
    def _is_elsewhere(self) -> bool:
        how = self.backend
        return how is not None and (how.name != "local" or how.folder is not None)

    def _frame_elsewhere(
        self,
        dataset: KronosDataset | WindowDataset,
        segment: Segment,
        what: Literal["scores", "signals"],
    ) -> pd.DataFrame:
        from kronos_qlib.plugin.scoring_jobs.model_on_backend import frame_on_backend

        return frame_on_backend(self, dataset, segment, what)

    def _frame(
        self, dataset: KronosDataset | WindowDataset, segment: Segment, keep: Sequence[str]
    ) -> pd.DataFrame:
        source, steps = _source_of(dataset), self._steps
        windows = source.windows(segment)
        if not len(windows):
            raise NothingToScoreError(no_windows(source, segment, windows.dropped))
        logger.info(f"{len(windows)} windows to score{describe_dropped(windows.dropped)}")
        if jumps := windows.describe_jumps():
            logger.warning(jumps)
        name = self._score_name()
        found = self._found(source, windows, list(dict.fromkeys([name, *keep])))
        frame = pd.DataFrame({"score": found[name]})
        if steps:
            frame["raw_score"] = found[name]
            earlier = days_before(source, windows, history_of(steps))
            if len(earlier):
                before = self._found(source, earlier, [name])[name]
                frame["score"] = self._shaped(source, [earlier, windows], [before, found[name]])
            else:
                frame["score"] = self._shaped(source, [windows], [found[name]])
        return frame.join(found[list(keep)]).sort_index()

    def _found(self, source: WindowDataset, windows: Windows, names: list[str]) -> pd.DataFrame:
        """Named signals of windows, each day by itself."""
        frame = pd.DataFrame(index=windows.index)
        from_paths = [name for name in names if name != ALPHA]
        if from_paths:
            frame = self.signals_of(source, windows, from_paths)
        if ALPHA in names:
            assert self.head is not None
            frame[ALPHA] = scores_from_alpha(
                self.predictor, self.head, windows, **self.how_head_reads(source, windows)
            )
        return frame[names]

    def how_head_reads(self, source: WindowDataset, windows: Windows) -> dict[str, Any]:
        """Keyword arguments of `pipeline.head_inputs.head_inputs`, for whoever reads as it does.

        Args:
            windows: of `source`, by time.

        Raises:
            ConfigError: there is no head, or a column that it reads is not to be had.
        """
        if self.head is None:
            raise ConfigError("there is no alpha head: its score is made of paths")
        return {
            "show_progress": self.show_progress,
            "contexts_folder": self.contexts_folder,
            "report": logger.info,
            "features": features_to_score(source, windows, self.head.names),
        }

    def signals_of(
        self, source: WindowDataset, windows: Windows, names: Sequence[str]
    ) -> pd.DataFrame:
        """Signals from the paths of windows, by this model's sampling, ensemble and calibration.

        Args:
            windows: of `source`, by time.
            names: of `signals.paths.SIGNALS`.

        Returns:
            (N, names) float64 on the windows' index.

        Raises:
            As `predict`.
        """
        calibration = self._path_calibration(windows)
        frame = signals_from_paths(
            self.predictor,
            source,
            windows,
            self.sampling,
            names,
            self.seed,
            self.signal_settings.ensemble,
            self.show_progress,
            calibration,
        )
        _log_left_out(calibration, windows)
        return frame

    def paths_of(
        self, source: WindowDataset, windows: Windows
    ) -> Iterator[tuple[npt.NDArray[np.int64], Windows, npt.NDArray[np.float32]]]:
        """The paths that `signals_of` measures, a day and a length of windows at a time.

        Args:
            windows: of `source`, by time.

        Yields:
            As `pipeline.scoring.paths_by_day`.

        Raises:
            As `predict`.
        """
        calibration = self._path_calibration(windows)
        yield from paths_by_day(
            self.predictor,
            source,
            windows,
            self.sampling,
            self.seed,
            self.signal_settings.ensemble,
            self.show_progress,
            calibration,
        )
        _log_left_out(calibration, windows)

    @property
    def days_of_history(self) -> int:
        """Days before a segment that are scored too, for scores that are smoothed over days."""
        return history_of(self._steps)

    def _shaped(
        self, source: WindowDataset, windows: list[Windows], parts: list[pd.Series]
    ) -> pd.Series:
        """Scores of the last part after all steps; parts before it are its history."""
        steps, settings = self._steps, self.signal_settings.sectors
        sectors = self.sectors() if SECTOR in exposures_needed(steps) else None
        unknown = settings.unknown if settings else "error"
        result = shape_scores(source, windows, parts, steps, sectors, unknown)
        days = result.index.get_level_values("datetime").nunique()
        if history_of(steps) and days > 1:
            logger.info(
                f"shaped scores turn over {turnover(result):.3f} a day, raw ones "
                f"{turnover(parts[-1]):.3f} (share of a book that holds their ranks)"
            )
        return result

    @property
    def _steps(self) -> tuple[Step, ...]:
        return steps_of(self.signal_settings.shape)

    def sectors(self) -> Mapping[str, str]:
        """Each name's sector, as the setting `signals.sectors` says; there must be one."""
        settings = self.signal_settings.sectors
        assert settings is not None
        return settings.of if settings.of is not None else read_sectors(str(settings.file))

    def _score_name(self) -> str:
        name = self.signal_settings.score
        if name is None:
            return "expected_return" if self.head is None else ALPHA
        self._refuse_alpha_without_head([name])
        return name

    def _kept(self) -> Sequence[str]:
        keep = self.signal_settings.keep
        if keep is None:
            return DEFAULT_SIGNALS if self.head is None else (ALPHA,)
        self._refuse_alpha_without_head(keep)
        return tuple(dict.fromkeys(keep))

    def _refuse_alpha_without_head(self, names: Sequence[str]) -> None:
        if ALPHA in names and self.head is None:
            raise ConfigError(
                "signals names 'alpha', and there is no alpha head: train one (training.alpha), or "
                "name the folder of one (alpha_head)"
            )

    def _calibration_of_file(self) -> Calibration | None:
        if self.calibration in (None, AUTO, FIT):
            return None
        if self._moves_weights:
            raise ConfigError(
                f"calibration {self.calibration} is of weights that `training` changes: say "
                f"`calibration: {FIT}`"
            )
        return Calibration.load(str(self.calibration))

    @property
    def _moves_weights(self) -> bool:
        how = self.training
        return (
            how.tokenizer is not None
            or how.predictor is not None
            or (
                how.alpha is not None
                and (how.alpha.backbone != "frozen" or how.alpha.initial == "random")
            )
        )

    def _check_calibration(self, source: WindowDataset) -> None:
        """Before the training."""
        if self.calibration not in (None, AUTO, FIT):
            self._checked_calibration()
        if self.calibration != FIT:
            return
        if "valid" not in source.segments:
            raise ConfigError(
                f"calibration: {FIT} is fitted on the segment 'valid', and the data set has "
                f"{', '.join(map(str, source.segments)) or 'none'}: add it, or name a file"
            )
        if (shortest := source.min_bars or source.lookback) < LEAST_BARS:
            raise ConfigError(
                f"calibration: {FIT} takes windows of {LEAST_BARS} bars at least, and the data "
                f"set's have {shortest}: raise lookback or min_bars"
            )
        if (count := len(known_windows(source, "valid")[0])) < LEAST_WINDOWS:
            raise BarDataError(
                f"calibration: {FIT} takes {LEAST_WINDOWS} windows of the segment 'valid' at "
                f"least, and it has {count}: make it longer, or name a file"
            )

    def _checked_calibration(self) -> Calibration:
        found = self.kept_calibration
        if found is None:
            raise ConfigError(f"calibration: {FIT} has nothing yet: call `fit` before scoring")
        if found.checkpoint != (ours := checkpoint_of(self.predictor)):
            raise CheckpointError(
                f"calibration {self.calibration} was fitted on other weights (fingerprint "
                f"{found.checkpoint}) than those of {self.checkpoint} with the tokenizer "
                f"{self.tokenizer} ({ours}): name the one of these, or say `calibration: {FIT}`"
            )
        return found

    def _fit_calibration(self, source: WindowDataset) -> None:
        if self.calibration != FIT:
            return
        sampling = replace(self.sampling, paths=max(self.sampling.paths, PATHS))
        sample = sample_of(
            self.predictor,
            source,
            "valid",
            sampling,
            # Pooled paths of several settings are like none of them: their terms are not used.
            drawn=0 if self.signal_settings.ensemble else DRAWN,
            least=LEAST_WINDOWS,
            seed=self.seed,
            show_progress=self.show_progress,
        )
        self.kept_calibration = fit_calibration(
            self.predictor, [sample], sampling, "the segment valid"
        )
        self.predictor.calibration = self.kept_calibration
        logger.info(
            f"calibrated on {len(sample.times)} windows of valid up to "
            f"{self.kept_calibration.until}, {len(sample.drawn)} of them with paths"
        )

    def _path_calibration(self, windows: Windows) -> PathCalibration | None:
        if self.calibration is None:
            return None
        if self.calibration == AUTO:
            shipped = shipped_calibration(self.predictor)
            if shipped.calibration is None:
                logger.info(f"paths are as drawn: {shipped.reason}")
                return None
            found = shipped.calibration
        else:
            found = self._checked_calibration()
        if windows.times.min() < np.datetime64(pd.Timestamp(found.until)):
            logger.warning(
                f"the calibration has seen bars up to {found.until}: what is scored before is not "
                "out of its sample"
            )
        return PathCalibration(found, where_possible=self.calibration == AUTO)

    def _check_packages(self) -> None:
        if self.training.has_adapters:
            check_extra("train", for_="LoRA")

    def _check_windows(self, source: WindowDataset) -> None:
        """What would fail after the training fails before it."""
        settings = self.signal_settings
        named = [*(settings.keep or ()), *([settings.score] if settings.score else [])]
        check_signals((name for name in named if name != ALPHA), source.horizon)
        members_of(settings.ensemble, self.sampling, source.lookback)

    def _check_signals(self) -> None:
        """Before anything is read or trained."""
        settings = self.signal_settings
        named = [*(settings.keep or ()), *([settings.score] if settings.score else [])]
        check_signals(name for name in named if name != ALPHA)
        if ALPHA in named and self.training.alpha is None and not self.alpha_head:
            self._refuse_alpha_without_head(named)
        if SECTOR in exposures_needed(self._steps):
            if settings.sectors is None:
                raise ConfigError(
                    "signals.shape neutralises against sectors: say with signals.sectors where "
                    "they are, {file: sectors.csv} or {of: {AAA: energy}}"
                )
            self.sectors()

    def save_pretrained(self, path: str) -> None:
        """Write both halves, as trained, into `path`/predictor and `path`/tokenizer.

        A calibration that was fitted goes beside the predictor, an alpha head into `path`/alpha.
        After a `fit` in this process, the weights of the last epoch lie in `path`/last in the same
        way, whichever epoch was the best. Then `KronosModel(checkpoint=path)` scores from paths
        and, with `alpha_head=f"{path}/alpha"`, by the head.
        """
        self.predictor.save_pretrained(path)
        if self.head is not None:
            reads = self.head.reads is not None
            backbone = checkpoint_of(self.predictor) if reads else None
            self.head.save_pretrained(Path(path) / "alpha", backbone=backbone)
        if self._last_weights:
            self._with_weights(self._last_weights).save_pretrained(str(Path(path) / "last"))

    def _with_weights(self, weights: Mapping[str, bytes]) -> KronosModel:
        """Another model like this with other weights, for what was not trained the checkpoint's."""
        other = copy.copy(self)
        other.trained_weights = {**self.trained_weights, **weights}
        other._predictor = other._head = None
        other._last_weights = {}
        other.kept_calibration = None  # it is of the other weights
        return other

    def _train(self, dataset: KronosDataset | WindowDataset) -> None:
        try:
            result = run_stages(
                self.training,
                self.predictor,
                _source_of(dataset),
                head=self.head,
                show_progress=self.show_progress,
                resume=self._resume(),
                processes=self.n_processes,
                log_every=self.log_every,
                log=ActiveRunLog(),
                contexts_folder=self.contexts_folder,
            )
        except BaseException:
            # Half trained in place: what is kept is what was trained before.
            self._predictor = self._head = None
            raise
        self.trained_weights |= result.weights
        self._last_weights = result.last
        self.history = result.history
        self._head = result.head or self._head

    def _resume(self) -> Resume | None:
        folder = self._folder_of(self.resume_folder)
        return None if folder is None else Resume(folder, self.resume_every)

    @staticmethod
    def _folder_of(name: str | None) -> Path | None:
        return None if name is None else Path(name).expanduser().absolute()

    def _load_head(self) -> Head:
        from kronos_qlib.model.alpha_head import AlphaHead
        from kronos_qlib.model.checkpoints.weights import fill_from_bytes

        width = self.predictor.model.config.d_model
        if self.alpha_head:
            head = AlphaHead.from_pretrained(self.alpha_head, width, SCALE_FEATURES)
            columns = columns_of(head.names)
            asked = tuple(self.training.alpha.features) if self.training.alpha else columns
            if asked != columns:
                raise ConfigError(
                    f"training.alpha.features are {', '.join(asked) or 'none'}, and the head in "
                    f"{self.alpha_head} reads {', '.join(columns) or 'none'}: name the same"
                )
            if "alpha" not in self.trained_weights:
                self._check_backbone(head)
                return head
        else:
            assert self.training.alpha is not None
            head = make_head(self.training.alpha, self.predictor)
        data = self.trained_weights["alpha"]
        fill_from_bytes(head, data, "the trained alpha head in the pickle")
        return head.eval()

    def _check_backbone(self, head: Head) -> None:
        theirs = head.config.backbone
        if head.reads is None or not theirs:
            return
        if theirs != (ours := checkpoint_of(self.predictor)):
            raise CheckpointError(
                f"the head in {self.alpha_head} reads contexts of other weights (fingerprint "
                f"{theirs}) than those of {self.checkpoint} with the tokenizer {self.tokenizer} "
                f"({ours}): name as `checkpoint` the one that it was trained on, which lies beside "
                "it where it was saved"
            )

    def _load(self) -> KronosPredictor:
        from kronos_qlib.inference.predictor import KronosPredictor
        from kronos_qlib.model.checkpoints.pretrained import BUNDLED
        from kronos_qlib.model.tokenizer import KronosTokenizer
        from kronos_qlib.model.transformer import Kronos

        if self.from_scratch:
            net, tokenizer = self._make()
        else:
            net = Kronos.from_pretrained(self.checkpoint, self.revision)
            tokenizer = KronosTokenizer.from_pretrained(self.tokenizer, self.tokenizer_revision)
            if tokenizer.origin and tokenizer.origin.name not in (self.tokenizer, BUNDLED):
                logger.info(f"the tokenizer of {self.checkpoint} is {tokenizer.origin.name}")
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
            if not self.from_scratch:  # another version of torch may draw other first weights
                self._check_unchanged(name, half, place)
            self._restore(name, half)
        predictor.calibration = self.kept_calibration
        return predictor

    def use_networks(self, net: Kronos, tokenizer: KronosTokenizer, head: Head | None) -> None:
        """Score with these networks, as trained, in place of those of the checkpoint.

        Args:
            net, tokenizer, head: of a model with the same settings. They are not copied.
        """
        from kronos_qlib.inference.predictor import KronosPredictor

        known = net.origin.max_context if net.origin else None
        context = self.max_context or known or PUBLISHED_CONTEXT
        self._predictor = KronosPredictor(
            net, tokenizer, self.device, context, dtype=self.dtype, memory_mb=self.memory_mb
        )
        self._head = head

    def _make(self) -> tuple[Kronos, KronosTokenizer]:
        """New networks of the checkpoint's sizes; a tokenizer that was named is loaded."""
        import torch

        from kronos_qlib.model.checkpoints.pretrained import sizes_of
        from kronos_qlib.model.tokenizer import KronosTokenizer
        from kronos_qlib.model.transformer import Kronos

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            net = Kronos(**sizes_of(self.checkpoint, "predictor")).eval()
            if not self.keeps_tokenizer:
                tokenizer = KronosTokenizer(**sizes_of(self.checkpoint, "tokenizer")).eval()
            else:
                tokenizer = KronosTokenizer.from_pretrained(self.tokenizer, self.tokenizer_revision)
        return net, tokenizer

    def _with_preset(self, training: Mapping[str, Any] | None) -> Mapping[str, Any]:
        """Published weights are moved gently unless something else is asked for."""
        from kronos_qlib.model.checkpoints.pretrained import is_published

        settings = dict(training or {})
        if not self.from_scratch and settings and is_published(self.checkpoint):
            settings.setdefault("preset", "gentle")
        return settings

    def _check_unchanged(self, name: str, half: Kronos | KronosTokenizer, place: str) -> None:
        from kronos_qlib.model.checkpoints.pretrained import fingerprint

        now = fingerprint(half)
        before = self.fingerprints.setdefault(name, now)
        if now != before:
            raise CheckpointError(
                f"the {name} at {place} is not the one this model was made with (fingerprint {now}"
                f", was {before}); point `checkpoint` at the old weights, or fit again"
            )

    def _restore(self, name: str, half: Kronos | KronosTokenizer) -> None:
        from kronos_qlib.model.checkpoints.weights import fill_from_bytes

        if name in self.trained_weights:
            fill_from_bytes(half, self.trained_weights[name], f"the trained {name} in the pickle")


def _log_left_out(calibration: PathCalibration | None, windows: Windows) -> None:
    if calibration is not None and calibration.left_out:
        reasons = [f"{many} since {why}" for why, many in calibration.left_out.items()]
        logger.warning(
            f"paths of {calibration.left_out.total()} of {len(windows)} windows are as "
            f"drawn, not calibrated: {some_of(reasons)}"
        )


_source_of = partial(source_of, reader="KronosModel")
