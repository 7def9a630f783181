"""GRUModel: a plain GRU trained by day as an alpha head is, the rival that Kronos must beat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from qlib.log import get_module_logger
from qlib.model.base import Model

from kronos_qlib.data.windows.scale_features import SCALE_FEATURES
from kronos_qlib.data.windows.segments import Segment
from kronos_qlib.data.windows.window_dataset import WindowDataset, describe_dropped, no_windows
from kronos_qlib.errors import ConfigError, NothingToScoreError
from kronos_qlib.model.sizes import GRUConfig
from kronos_qlib.pipeline.scoring import scores_from_gru
from kronos_qlib.pipeline.stages import (
    Resume,
    StagesConfig,
    check_trainable,
    columns_to_score,
    make_gru,
    train_gru,
)
from kronos_qlib.plugin.dataset import KronosDataset, source_of
from kronos_qlib.plugin.runs.active_run import ActiveRunLog
from kronos_qlib.plugin.runs.manager import claim_active_run
from kronos_qlib.settings import from_mapping
from kronos_qlib.training.stage_settings import AlphaConfig

if TYPE_CHECKING:
    from kronos_qlib.training.alpha import AlphaNet

logger = get_module_logger(__name__)

OF_BACKBONE = (
    "backbone",
    "backbone_learning_rate",
    "lora_rank",
    "lora_alpha",
    "context",
    "initial",
    "shift_dates",
)
"""Settings of an alpha head that are of a pretrained network, and of no GRU."""

READS_BARS = (
    "a GRUModel reads the raw bars of a window one after another: each column of each bar counts "
    "through all that come later, and none is an input by itself"
)
"""Why its score is not parted among inputs, for messages."""


class GRUModel(Model):
    """A GRU over the very windows that Kronos reads, and an alpha head on its state.

    Everything but the network is the alpha head's: windows and their normalisation, time fields,
    features beside the context, a day as a batch, the loss, the epoch chosen on the segment
    "valid". What Kronos' context is worth is what its head orders better than this one.

    A pickle holds the settings and the trained weights, as CPU bytes.

    Args:
        hidden, layers, dropout: fields of `GRUConfig`.
        training: fields of `AlphaConfig`, without those of a backbone, which a GRU has not: its
            weights are learned at `learning_rate` with the head's. A batch is a day of windows read
            bar by bar: `windows_per_day` and `validation_days` bound what an epoch takes.
        weights: folder that `save_pretrained` wrote, to score with; sizes are then the folder's.
        device: "auto", or a torch device.
        show_progress: progress bars on stderr.
        resume_folder, resume_every, log_every: as of `KronosModel`.
    """

    # Qlib's pickle leaves out names that start with "_".
    _net: AlphaNet | None = None

    def __init__(
        self,
        hidden: int = 64,
        layers: int = 2,
        dropout: float = 0.0,
        training: Mapping[str, Any] | None = None,
        weights: str | None = None,
        device: str = "auto",
        show_progress: bool = True,
        resume_folder: str | None = None,
        resume_every: int = 500,
        log_every: int = 20,
    ) -> None:
        super().__init__()
        self.sizes = from_mapping(
            GRUConfig, {"hidden": hidden, "layers": layers, "dropout": dropout}, where="GRUModel"
        )
        self.training = _settings_of(training or {})
        self.weights = None if weights is None else str(weights)
        self.device = device
        self.show_progress = show_progress
        self.resume_folder = resume_folder
        self.resume_every = resume_every
        self.log_every = log_every
        for name in ("resume_every", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        self.trained_weights: dict[str, bytes] = {}
        """Safetensors files of what training left: "gru", "alpha"."""
        self.history: dict[str, list[dict[str, float]]] = {}
        """Losses under "gru", a row per epoch."""

    @property
    def net(self) -> AlphaNet:
        """The network, trained or loaded.

        Raises:
            ConfigError: there is none yet.
        """
        if self._net is None:
            self._net = self._load()
        return self._net

    def fit(self, dataset: KronosDataset | WindowDataset, reweighter: object = None) -> None:
        """Train from random weights, by the seed of `training`.

        Raises:
            ConfigError: a reweighter is given, which a head does not use; `weights` is, with which
                nothing is trained; or segments or columns cannot work.
            BarDataError, TrainingError: a segment has no windows; a loss is not finite.
        """
        if reweighter is not None:
            raise ConfigError("GRUModel.fit does not use a reweighter; leave it out")
        claim_active_run()
        if self.weights is not None:
            logger.info(f"the weights in {self.weights} are used as they are")
            self._net = self._load()
            return
        self._train(dataset, None)

    def check_dataset(self, dataset: KronosDataset | WindowDataset) -> None:
        """Refuse what `fit` would refuse.

        Raises:
            ConfigError, BarDataError, TrainingError: as of `fit`.
        """
        check_trainable(StagesConfig(alpha=self.training), source_of(dataset, reader="GRUModel"))

    def finetune(self, dataset: KronosDataset | WindowDataset) -> None:
        """Train on from the weights it has now.

        Raises:
            ConfigError: it has none, or those of a folder, which are not trained.
            Otherwise as `fit`.
        """
        if self.weights is not None:
            raise ConfigError(f"the weights in {self.weights} are used as they are: leave it out")
        self._train(dataset, self.net)

    def _train(self, dataset: KronosDataset | WindowDataset, net: AlphaNet | None) -> None:
        from kronos_qlib.inference.devices import pick_device

        self.trained_weights, self.history, self._net = {}, {}, None
        resume = None
        if self.resume_folder is not None:
            folder = Path(self.resume_folder).expanduser().absolute()
            resume = Resume(folder, self.resume_every)
        self._net, result = train_gru(
            self.training,
            self.sizes,
            source_of(dataset, reader="GRUModel"),
            pick_device(self.device),
            net=net,
            show_progress=self.show_progress,
            resume=resume,
            log_every=self.log_every,
            log=ActiveRunLog(),
        )
        self.trained_weights, self.history = dict(result.weights), result.history

    def predict(
        self, dataset: KronosDataset | WindowDataset, segment: Segment = "test"
    ) -> pd.Series:
        """What the head says of each window whose last bar lies in the segment.

        Returns:
            "score" on (datetime, instrument): a place in the day's ranking, in units of its own.

        Raises:
            BarDataError: the segment has no complete window, or bars have no logarithm.
            ConfigError: nothing was trained or loaded, or a column is not to be had.
        """
        from kronos_qlib.inference.devices import pick_device

        net, source = self.net, source_of(dataset, reader="GRUModel")
        windows = source.windows(segment)
        if not len(windows):
            raise NothingToScoreError(no_windows(source, segment, windows.dropped))
        logger.info(f"{len(windows)} windows to score{describe_dropped(windows.dropped)}")
        if jumps := windows.describe_jumps():
            logger.warning(jumps)
        columns = columns_to_score(source, windows, net.head.names)
        scores = scores_from_gru(
            net, windows, pick_device(self.device), self.show_progress, columns
        )
        return pd.Series(scores, index=windows.index, name="score").sort_index()

    def save_pretrained(self, path: str) -> None:
        """Write the network into `path`/gru and `path`/alpha; `GRUModel(weights=path)` reads it.

        Raises:
            ConfigError: there is none yet.
        """
        reader = self.net.predictor
        assert reader is not None
        reader.save_pretrained(Path(path) / "gru")
        self.net.head.save_pretrained(Path(path) / "alpha")

    def _load(self) -> AlphaNet:
        from kronos_qlib.model.alpha_head import AlphaHead
        from kronos_qlib.model.checkpoints.weights import fill_from_bytes
        from kronos_qlib.model.gru_reader import GRUReader
        from kronos_qlib.training.alpha import AlphaNet

        if self.weights is not None:
            reader = GRUReader.from_pretrained(Path(self.weights).expanduser() / "gru")
            folder = Path(self.weights).expanduser() / "alpha"
            head = AlphaHead.from_pretrained(folder, reader.config.hidden, SCALE_FEATURES)
            return AlphaNet(head, reader).eval()
        if not self.trained_weights:
            raise ConfigError("GRUModel has no weights yet: call `fit`, or name a folder `weights`")
        net = make_gru(self.training, self.sizes)
        for name, part in (("gru", net.predictor), ("alpha", net.head)):
            assert part is not None
            fill_from_bytes(part, self.trained_weights[name], f"the trained {name} in the pickle")
        return net.eval()


def _settings_of(training: Mapping[str, Any]) -> AlphaConfig:
    """Of the head, those of a backbone refused."""
    usual = {field.name: field.default for field in fields(AlphaConfig)}
    for name in OF_BACKBONE:
        if name in training and training[name] != usual[name]:
            raise ConfigError(f"training.{name} is of a pretrained backbone, and a GRU has none")
    config = from_mapping(AlphaConfig, training, where="training")
    if config.seeds != 1:
        raise ConfigError(
            f"training.seeds {config.seeds} are heads on one backbone that stays as it is, and a "
            "GRU is trained with its head: train a GRUModel from each `seed`, and blend them"
        )
    if config.context_width == 0:
        raise ConfigError("training.context_width 0 would leave the GRU out: give 1 or more")
    return config
