"""How a model is trained again: how often, from which weights, and which of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from qlib.model.trainer import auto_filter_kwargs

from kronos_qlib.errors import ConfigError
from kronos_qlib.plugin.baselines import GRUModel
from kronos_qlib.plugin.blend import BlendModel
from kronos_qlib.plugin.model import KronosModel
from kronos_qlib.plugin.rolling.rolls import EXPANDING, TRAIN
from kronos_qlib.plugin.runs.kept_models import KeptModel, is_lightgbm, needs_state, restore
from kronos_qlib.settings import check_known, check_whole

ANEW, WARM = "anew", "warm"
ALL, HEADS = "all", "heads"


@dataclass(frozen=True, kw_only=True)
class RetrainConfig:
    """How a model is trained again as time goes on."""

    every: int = 20
    """Trading days from one training to the next."""
    train: str = EXPANDING
    """"expanding": the segment train begins where it began; "sliding": it moves on as a whole. The
    segment valid moves on as a whole either way."""
    start: str = ANEW
    """"anew": each training begins where the workflow's begins; "warm": it goes on from the weights
    of the one before, LightGBM with further trees."""
    retrain: str = ALL
    """"all" that the workflow trains; "heads": after the first training the backbone of each
    KronosModel stays, and its alpha head alone is trained again."""

    def __post_init__(self) -> None:
        check_whole(self, "every")
        check_known(self, train=TRAIN, start=(ANEW, WARM), retrain=(ALL, HEADS))


def check_retrainable(model: Any, how: RetrainConfig) -> None:
    """Refuse a model that cannot be trained again like this, before anything is read.

    Raises:
        ConfigError: nothing of it is trained; it cannot go on from weights; or has no alpha head.
    """
    if not needs_state(model):
        raise ConfigError(
            f"nothing of this {type(model).__name__} is trained, so there is nothing to train "
            "again: give it `training`"
        )
    if how.start == WARM:
        for one in members_of(model):
            if not isinstance(one, KronosModel | GRUModel) and not is_lightgbm(one):
                raise ConfigError(
                    f"start: {WARM} takes a KronosModel, a GRUModel, LightGBM or a blend of them, "
                    f"and a {type(one).__name__} learns anew each time: say start: {ANEW}"
                )
    if how.retrain == HEADS and not any(map(_has_head, members_of(model))):
        raise ConfigError(
            f"retrain: {HEADS} trains the alpha head of a KronosModel again, and there is none "
            f"that is trained (training.alpha): say retrain: {ALL}"
        )


def check_learnable(model: Any, dataset: Any) -> None:
    """Refuse windows that a model cannot learn from; of tables nothing is asked.

    Args:
        dataset: a Qlib data set, or windows.

    Raises:
        ConfigError, BarDataError, TrainingError: as of the models' `fit`.
    """
    for name, one in _named(model):
        if isinstance(one, KronosModel | GRUModel):
            own = model.dataset_of(name, dataset) if isinstance(model, BlendModel) else dataset
            one.check_dataset(own)


def retrain(model: Any, dataset: Any, before: KeptModel | None, how: RetrainConfig) -> None:
    """Train a new model.

    Args:
        model: made from its settings, nothing fitted.
        before: what the training before left; None where this is the first.

    Raises:
        ConfigError: it is to go on from a model that is not kept in plain files.
        Otherwise as the models' `fit` and `finetune`.
    """
    if before is None or (how.start == ANEW and how.retrain == ALL):
        _fit(model, dataset)
        return
    if before.state is None:
        raise ConfigError(f"a {type(model).__name__} is not kept, and cannot go on")
    restore(model, before.state, before.files)
    _go_on(model, dataset, how)


def reads_windows(model: Any) -> bool:
    """Whether a model, or each of a blend, learns from windows, which leave out what their label's
    segment does not know; a model of tables learns from all rows that it is given."""
    return all(isinstance(one, KronosModel | GRUModel) for one in members_of(model))


def members_of(model: Any) -> Iterator[Any]:
    """A model, or the members of a blend."""
    return (one for _, one in _named(model))


def _named(model: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(model, BlendModel):
        yield from model.members.items()
    else:
        yield "", model


def _go_on(model: Any, dataset: Any, how: RetrainConfig) -> None:
    if isinstance(model, BlendModel):
        model.fit_members(dataset, partial(_go_on, how=how))
    elif not needs_state(model):
        _fit(model, dataset)  # of a blend what is not trained
    elif how.retrain == HEADS and _has_head(model):
        model.fit_head(dataset, anew=how.start == ANEW)
    elif how.start == ANEW or (isinstance(model, KronosModel) and model.training.is_zero_shot):
        _fit(model, dataset)
    elif is_lightgbm(model):
        model.fit(dataset, init_model=model.model)  # Qlib's own `finetune` fails: pyqlib 0.9.7
    else:
        model.finetune(dataset)


def _fit(model: Any, dataset: Any) -> None:
    auto_filter_kwargs(model.fit)(dataset, reweighter=None)


def _has_head(model: Any) -> bool:
    return isinstance(model, KronosModel) and model.training.alpha is not None
