"""Why a name stands where it stands on a day: what each input of a Qlib model added to its score.

Of KronosModel with an alpha head, Qlib's LGBModel, and a BlendModel of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from qlib.data.dataset.handler import DataHandlerLP

from kronos_qlib.data.calendar.time_text import show_time
from kronos_qlib.errors import BarDataError, ConfigError
from kronos_qlib.pipeline.contributions import (
    CONTEXT,
    Contributions,
    contributions_of_head,
    contributions_of_trees,
)
from kronos_qlib.pipeline.head_inputs import head_inputs
from kronos_qlib.pipeline.stages import columns_of
from kronos_qlib.plugin.baselines.gru_model import READS_BARS, GRUModel
from kronos_qlib.plugin.blend import BlendModel
from kronos_qlib.plugin.dataset import source_of
from kronos_qlib.plugin.features import KronosFeatureDataset
from kronos_qlib.plugin.model import ALPHA, KronosModel
from kronos_qlib.plugin.runs.kept_models import is_lightgbm

EXPLAINED = "KronosModel with an alpha head as its score, Qlib's LGBModel, and blends of them"
"""Models whose scores are explained, for messages."""


@dataclass(frozen=True)
class Reasons:
    """Why a name stands where it stands on a day.

    score, rank, names: as the model scores it; rank 1 is the highest, ties share their best.
    parts: by member of a blend; of any other model one, under the name of its class.
    weights: of the members, by name, as shares of 1; {} where the model is no blend.
    unexplained: by member, why it has no part.
    notes: what a reader has to know.
    """

    instrument: str
    day: pd.Timestamp
    score: float
    rank: int
    names: int
    parts: Mapping[str, Contributions]
    weights: Mapping[str, float] = field(default_factory=dict)
    unexplained: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def reasons_of(model: Any, dataset: Any, instrument: str, day: pd.Timestamp) -> Reasons:
    """What the inputs of a model added to one name's score of a day.

    Args:
        model: fitted, of EXPLAINED.
        dataset: its Qlib data set, whose bars or frame reach over the day, as `open_run` makes it
            of a run; nothing after the day is read.
        instrument: as Qlib spells it.
        day: or a moment of bars of minutes.

    Raises:
        BarDataError: the name has no score that day (a suspended day, too few bars before it), or
            no name has one.
        ConfigError: the model is none that can be explained.
    """
    explain = _way_of(model)
    if explain is None and not isinstance(model, BlendModel):
        raise ConfigError(f"{_why_not(model)}: what can be explained are {EXPLAINED}")
    scores = _scores(model, dataset, day)
    if instrument not in scores.index:
        raise BarDataError(
            f"{instrument} has no score on {show_time(day)}, {len(scores)} names have one"
        )
    score = float(scores[instrument])
    place = 1 + int((scores > score).sum())
    if explain is not None:
        part = explain(model, dataset, instrument, day)
        parts = {type(model).__name__: part}
        return Reasons(
            instrument, day, score, place, len(scores), parts, notes=_notes(model, score, part)
        )
    assert isinstance(model, BlendModel)
    parts, unexplained = {}, {}
    notes: tuple[str, ...] = ()
    for name, member in model.members.items():
        explain = _way_of(member)
        if explain is None:
            unexplained[name] = _why_not(member)
            continue
        own = model.dataset_of(name, dataset)
        parts[name] = explain(member, own, instrument, day)
        notes += _notes(member, None, parts[name])
        if model.residual is not None and name != model.residual.of:
            notes += (
                f"{name} was trained on what {model.residual.of} leaves of the label, and its part "
                "is of a score for that",
            )
    total = sum(model.weights.values())
    weights = {name: weight / total for name, weight in model.weights.items()}
    return Reasons(instrument, day, score, place, len(scores), parts, weights, unexplained, notes)


def _way_of(model: Any) -> Any:
    """The function that explains such a model; None where there is none."""
    if isinstance(model, KronosModel):
        is_alpha = model.head is not None and model.signal_settings.score in (None, ALPHA)
        return _of_head if is_alpha else None
    is_trees = is_lightgbm(model) and getattr(model, "model", None) is not None
    return _of_trees if is_trees else None


def _why_not(model: Any) -> str:
    if isinstance(model, GRUModel):
        return READS_BARS
    if isinstance(model, KronosModel):
        return "the score is made of sampled paths, which have no inputs to part it among"
    return f"the score of a {type(model).__name__} is not parted among its inputs"


def _of_head(model: KronosModel, dataset: Any, instrument: str, day: pd.Timestamp) -> Contributions:
    source = source_of(dataset, reader="KronosModel")
    windows = source.windows(slice(day, day))
    windows = windows.take(np.flatnonzero(windows.times == day.to_datetime64()))
    assert model.head is not None
    head = model.head.to(model.predictor.device).eval()
    how = model.how_head_reads(source, windows)
    [(_, inputs)] = head_inputs(model.predictor, head, windows, **how)
    known = np.ones(inputs.features.shape, dtype=bool)
    if columns := columns_of(head.names):
        known[:, -len(columns) :] = ~np.isnan(source.feature_values(windows, columns))
    names = windows.index.get_level_values("instrument").tolist()
    return contributions_of_head(head, inputs, names, instrument, known)


def _of_trees(model: Any, dataset: Any, instrument: str, day: pd.Timestamp) -> Contributions:
    # As LGBModel's own `predict` reads it.
    frame = dataset.prepare(slice(day, day), col_set="feature", data_key=DataHandlerLP.DK_I)
    frame = _of_day(frame, day)
    kinds = {}
    if isinstance(dataset, KronosFeatureDataset):
        width = len(dataset.columns) - len(dataset.signals)
        kinds = dict.fromkeys(dataset.columns[:width], CONTEXT)
    return contributions_of_trees(model.model, frame, instrument, kinds)


def _scores(model: Any, dataset: Any, day: pd.Timestamp) -> pd.Series[float]:
    """The day's scores on the instruments."""
    found = model.predict(dataset, slice(day, day))
    return _of_day(found, day).dropna()


def _of_day(rows: Any, day: pd.Timestamp) -> Any:
    """Rows of (datetime, instrument), or the other way round, of that day, on the instruments."""
    return rows[rows.index.get_level_values("datetime") == day].droplevel("datetime")


def _notes(model: Any, score: float | None, part: Contributions) -> tuple[str, ...]:
    if isinstance(model, KronosModel) and model.signal_settings.shape:
        steps = ", ".join(
            step if isinstance(step, str) else next(iter(step))
            for step in model.signal_settings.shape
        )
        shown = "" if score is None else f" ({score:.6g})"
        return (
            f"the run shapes its score{shown} by {steps}; what is explained is the head's own, "
            f"{part.score:.6g}",
        )
    return ()
