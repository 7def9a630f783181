"""What one model leaves of the label, for another to learn: ranks less out-of-fold scores.

A head that is blended with LightGBM need not learn again what the trees know. Scores of rows that a
model has learned from would leave too little: those of the training days come from models that have
not seen them, nor a day whose label overlaps with theirs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from qlib.data.dataset.handler import DataHandlerLP
from qlib.log import get_module_logger

from kronos_qlib.data.windows.faulty_bars import Floats
from kronos_qlib.data.windows.label import Label
from kronos_qlib.data.windows.scale_features import standardised_over_day
from kronos_qlib.data.windows.window import Windows
from kronos_qlib.data.windows.window_dataset import WindowDataset
from kronos_qlib.errors import ConfigError
from kronos_qlib.settings import check_whole, require

logger = get_module_logger(__name__)  # Qlib shows its own loggers only

FOLD = "fold"
"""Segment of the days that a fold's model scores."""


@dataclass(frozen=True, kw_only=True)
class ResidualConfig:
    """How the other members of a blend learn what one of them leaves."""

    of: str
    """Name of the member whose scores are taken off the labels: a model of a table, as LightGBM."""
    folds: int = 5
    """Parts in time of the training days. Each is scored by a model of the others, without the days
    beside it whose labels overlap with its own."""

    def __post_init__(self) -> None:
        require(isinstance(self.of, str), f"of must be a member's name, got {self.of!r}")
        check_whole(self, "folds", least=2)


@dataclass(frozen=True, eq=False)
class ResidualLabel:
    """A label's rank over its day less `share` times the rank of a model's score.

    NaN where either is not known.
    """

    label: Label
    scores: pd.Series
    """On (datetime, instrument)."""
    share: float

    @property
    def ahead(self) -> int:
        """As of the label."""
        return self.label.ahead

    @property
    def bars(self) -> None:
        """It is no return."""
        return None

    def over(self, bars: int) -> Label:
        """
        Raises:
            ConfigError: scores are of one horizon.
        """
        raise ConfigError(
            f"what a model leaves is of the label that it learned, not of {bars} bars: leave "
            "horizons out of a head that is trained on residuals"
        )

    def of(self, windows: Windows) -> Floats:
        """(N,) float32."""
        label, score = ranks_of(windows, self.label, self.scores)
        return np.asarray(label - self.share * score, dtype=np.float32)


def ranks_of(windows: Windows, label: Label, scores: pd.Series) -> tuple[Floats, Floats]:
    """(N,) standardised ranks over the day of labels and scores; NaN where either is unknown."""
    table = np.stack((label.of(windows), scores.reindex(windows.index).to_numpy()), axis=1)
    table[~np.isfinite(table).all(axis=1)] = np.nan
    for day in windows.moments():
        known = day.start + np.flatnonzero(np.isfinite(table[day]).all(axis=1))
        table[known] = standardised_over_day(table[known])
    return table[:, 0], table[:, 1]


def residual_source(source: WindowDataset, scores: pd.Series) -> WindowDataset:
    """The same windows with what `scores` leave of the label.

    How much is taken off is the least squares over the days of "train".

    Args:
        scores: of the windows of "train", out of fold, and of "valid".

    Raises:
        ConfigError: no window of "train" has both a score and a label.
    """
    label, score = ranks_of(source.labelled_windows("train"), source.label, scores)
    known = np.isfinite(score)
    if not known.any():
        raise ConfigError(
            "no window of the segment train has both a label and an out-of-fold score: the two "
            "members of the blend are of other instruments or days"
        )
    share = float((label[known] @ score[known]) / (score[known] @ score[known]))
    logger.info(f"residuals: the label's ranks less {share:.3f} of the scores' out of fold")
    return replace(source, label=ResidualLabel(source.label, scores, share))


def scores_out_of_fold(
    make: Callable[[], Any], fitted: Any, dataset: Any, folds: int, ahead: int
) -> pd.Series:
    """Scores of "train" by models that have not learned of their days, and of "valid".

    Args:
        make: a new model of the kind, unfitted.
        fitted: the same, fitted on "train": it scores "valid".
        dataset: a Qlib data set with the segments "train" and "valid".
        folds: parts of the days of "train".
        ahead: times of the calendar that a label looks ahead: so many days on either side of a part
            are left out of what its model learns.

    Raises:
        ConfigError: there are too few days, or the model does not learn from tables.
    """
    table = dataset.prepare("train", col_set=["feature", "label"], data_key=DataHandlerLP.DK_L)
    raw = dataset.prepare("train", col_set="feature", data_key=DataHandlerLP.DK_I)
    days = np.unique(raw.index.get_level_values("datetime"))
    parts = []
    for number, (scored, learned) in enumerate(split_days(days, folds, ahead), 1):
        logger.info(f"residuals: fold {number} of {folds}, {len(learned)} days to learn from")
        fold = _Fold(dataset, table, raw, scored, learned)
        model = make()
        quiet = (
            {"verbose_eval": 0} if "verbose_eval" in inspect.signature(model.fit).parameters else {}
        )
        try:
            model.fit(fold, **quiet)
            found = model.predict(fold, FOLD)
        except ConfigError as other:
            raise ConfigError(
                f"residual.of is a model of tables, as LightGBM; {type(model).__name__}: {other}"
            ) from other
        parts.append(found.iloc[:, 0] if isinstance(found, pd.DataFrame) else found)
    parts.append(fitted.predict(dataset, "valid"))
    return pd.concat(parts).sort_index()


def split_days(days: Any, folds: int, ahead: int) -> Iterator[tuple[Any, Any]]:
    """Days to score, and those to learn from, of each fold in time.

    Args:
        days: (K,) in order.
        ahead: days on either side of a part that are in neither.

    Raises:
        ConfigError: a fold would have nothing to learn from.
    """
    for part in np.array_split(np.arange(len(days)), folds):
        near = np.arange(len(days))
        learned = (near < part[0] - ahead) | (near > part[-1] + ahead) if len(part) else near < 0
        if not learned.any():
            raise ConfigError(
                f"residual.folds {folds} of {len(days)} training days, purged by {ahead} on either "
                "side, leave nothing to learn from: take more days or other folds"
            )
        yield days[part], days[learned]


class _Fold:
    """A data set's frames cut to a fold; what a model of tables asks of a `DatasetH`."""

    def __init__(
        self, dataset: Any, table: pd.DataFrame, raw: pd.DataFrame, scored: Any, learned: Any
    ) -> None:
        self.dataset, self.table, self.raw = dataset, table, raw
        self.scored, self.learned = scored, learned
        self.segments: Mapping[str, Any] = {**dataset.segments, FOLD: (scored[0], scored[-1])}

    def prepare(self, segments: Any, **how: Any) -> Any:
        if isinstance(segments, (list, tuple)):
            return [self.prepare(name, **how) for name in segments]
        if segments == FOLD:
            return _on(self.raw, self.scored)
        if segments == "train":
            return _on(self.table, self.learned)
        return self.dataset.prepare(segments, **how)


def _on(frame: pd.DataFrame, days: Any) -> pd.DataFrame:
    return frame[frame.index.get_level_values("datetime").isin(days)]
