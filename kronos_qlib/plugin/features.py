"""KronosFeatureDataset: what Kronos makes of each window, as columns beside a table's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from qlib.data.dataset.handler import DataHandler
from qlib.log import get_module_logger
from qlib.utils import init_instance_by_config

from kronos_qlib.data.windows.scale_features import standardised_over_day
from kronos_qlib.errors import ConfigError
from kronos_qlib.pipeline.contexts import contexts_of, stored_contexts
from kronos_qlib.plugin.dataset import KronosDataset
from kronos_qlib.plugin.model import FIT, KronosModel
from kronos_qlib.signals.paths import check_signals

logger = get_module_logger(__name__)  # Qlib shows its own loggers only

FEATURE = "feature"
"""The group of columns that models learn from; Qlib's name."""


class KronosFeatureDataset(KronosDataset):
    """A table handler's columns (Alpha158), and Kronos' embeddings and signals beside them.

    For models of tables such as LightGBM. Columns CONTEXT0 and on are the context vector after a
    window's last bar; signals are called KRONOS_ and their name. All of them are ranks over the
    day, between -sqrt(3) and sqrt(3): a context holds the date and the market's own move too, and
    by these trees would know a day again, while a label that is normalised over its day holds
    nothing of them. A feature of day t is of bars up to t.

    A row without a window (a young share, a suspended day) has NaN there. LightGBM takes it; a
    linear model leaves such rows out when it learns, and scores them NaN.

    What was computed stays in memory, a segment at a time, until `config` or `setup_data`; it is
    not pickled.

    Args:
        model: a `KronosModel` or its config: a checkpoint as it is, published, nano or saved by a
            training before. Nothing is trained here, since LightGBM would learn from features of
            days that the network has seen the end of.
        embeddings: whether to add the context vector.
        signals: names of `signals.paths.SIGNALS`, drawn with the model's own sampling, seed,
            ensemble and calibration.
        others: of `KronosDataset`.

    Raises:
        ConfigError: nothing is added, a signal is unknown, or the model is to be trained or
            calibrated.
    """

    def __init__(
        self,
        model: KronosModel | Mapping[str, Any],
        handler: DataHandler | Mapping[str, Any],
        segments: Mapping[str, Any],
        embeddings: bool = True,
        signals: Sequence[str] = (),
        **others: Any,
    ) -> None:
        self.model = init_instance_by_config(model, accept_types=KronosModel)
        self.embeddings = embeddings
        self.signals = tuple(signals)
        if isinstance(signals, str) or not (self.embeddings or self.signals):
            raise ConfigError(
                "KronosFeatureDataset adds embeddings, or a list of signals, or both; got "
                f"embeddings={embeddings}, signals={signals!r}"
            )
        check_signals(self.signals)
        if not self.model.training.is_zero_shot and not self.model.trained_weights:
            raise ConfigError(
                "KronosFeatureDataset trains nothing: leave `training` out of its model, and name "
                "a saved folder as its checkpoint for a finetuned one"
            )
        if self.model.calibration == FIT and self.model.kept_calibration is None:
            raise ConfigError(
                f"KronosFeatureDataset fits nothing: its model has calibration: {FIT}; say auto, "
                "or name a file of kronos-qlib calibrate"
            )
        super().__init__(handler=handler, segments=segments, **others)

    def config(self, handler_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Qlib's; what was computed is forgotten where the handler moves."""
        if handler_kwargs is not None:
            self._computed: dict[tuple[str, str], pd.DataFrame] = {}
        super().config(handler_kwargs=handler_kwargs, **kwargs)

    def setup_data(self, handler_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Qlib's; what was computed is forgotten."""
        self._computed = {}
        super().setup_data(handler_kwargs=handler_kwargs, **kwargs)

    def keep_contexts(self, folder: Path) -> None:
        """Keep contexts in a folder and find them there, unless the model names one."""
        self.model.keep_contexts(folder)

    @property
    def columns(self) -> list[str]:
        """Names of the columns that are added."""
        width = self.model.predictor.model.config.d_model if self.embeddings else 0
        return [
            *(f"CONTEXT{number}" for number in range(width)),
            *(f"KRONOS_{name}" for name in self.signals),
        ]

    def _prepare_seg(self, slc: Any, **kwargs: Any) -> Any:
        """The handler's frame, with ours among its features where it has features."""
        frame = super()._prepare_seg(slc, **kwargs)
        grouped = isinstance(frame.columns, pd.MultiIndex)
        groups = frame.columns.get_level_values(0).unique().tolist() if grouped else []
        asked = kwargs.get("col_set", DataHandler.CS_ALL)
        if not (FEATURE in groups if grouped else asked in (FEATURE, DataHandler.CS_RAW)):
            return frame
        ours = self._of_segment(slc).reindex(frame.index)
        if not grouped:
            return pd.concat([frame, ours], axis=1)
        ours.columns = pd.MultiIndex.from_product([[FEATURE], ours.columns])
        parts = [
            pd.concat([frame[[group]], ours], axis=1) if group == FEATURE else frame[[group]]
            for group in groups
        ]
        return pd.concat(parts, axis=1)

    def _of_segment(self, slc: Any) -> pd.DataFrame:
        """Our columns of every window whose last bar lies in the segment, as ranks over the day."""
        segment = (slc.start, slc.stop) if isinstance(slc, slice) else slc
        if not isinstance(segment, (list, tuple)) or len(segment) != 2:
            raise ConfigError(
                "KronosFeatureDataset prepares a segment by its name, or by its first and last "
                f"moment, got {slc!r}"
            )
        key = (str(segment[0]), str(segment[1]))
        known = self.__dict__.setdefault("_computed", {})  # not in a pickle
        if key not in known:
            known[key] = self._compute((segment[0], segment[1]))
        return known[key]

    def _compute(self, segment: tuple[Any, Any]) -> pd.DataFrame:
        source = self.source
        windows = source.windows(segment)
        if jumps := windows.describe_jumps():
            logger.warning(jumps)
        table = np.empty((len(windows), len(self.columns)), dtype=np.float32)
        show, place = self.model.show_progress, 0
        if self.embeddings:
            predictor, folder = self.model.predictor, self.model.contexts_folder
            contexts = (
                contexts_of(predictor, windows, show)
                if folder is None
                else stored_contexts(predictor, windows, folder, show, report=logger.info)
            )
            place = contexts.shape[1]
            table[:, :place] = contexts[:]
        if self.signals:
            table[:, place:] = self.model.signals_of(source, windows, self.signals)
        for day in windows.moments():
            table[day] = standardised_over_day(table[day])
        return pd.DataFrame(table, index=windows.index, columns=self.columns)
