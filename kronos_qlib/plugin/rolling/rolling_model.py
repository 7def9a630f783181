"""RollingModel: a Qlib model that is trained again as time goes on, and scores each day by what was
in force then."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from qlib.log import get_module_logger
from qlib.model.base import Model
from qlib.utils import init_instance_by_config

from kronos_qlib.data.calendar.stamps import Times
from kronos_qlib.data.windows.segments import Segment, bounds_of, places_of
from kronos_qlib.errors import BarDataError, ConfigError
from kronos_qlib.plugin.baselines import GRUModel
from kronos_qlib.plugin.blend import BlendModel
from kronos_qlib.plugin.dataset import KronosDataset
from kronos_qlib.plugin.expressions import reach_of
from kronos_qlib.plugin.features import KronosFeatureDataset
from kronos_qlib.plugin.model import KronosModel
from kronos_qlib.plugin.provider.reader import read_calendar
from kronos_qlib.plugin.qlib_internals import has_open_run, logged_under
from kronos_qlib.plugin.rolling.kept_rolls import CONTEXTS, RollStore, key_of, learned_digest
from kronos_qlib.plugin.rolling.retraining import (
    ALL,
    ANEW,
    RetrainConfig,
    check_learnable,
    check_retrainable,
    reads_windows,
)
from kronos_qlib.plugin.rolling.retraining import (
    retrain as train_again,
)
from kronos_qlib.plugin.rolling.rolls import Segments, moment_text, purged, rolls_of
from kronos_qlib.plugin.runs.kept_models import KeptModel, kept_model, restore
from kronos_qlib.plugin.runs.manager import claim_active_run
from kronos_qlib.plugin.task_sections import class_of, is_map
from kronos_qlib.settings import from_mapping

logger = get_module_logger(__name__)  # Qlib shows its own loggers only

TABLE = "rolls/rolls.csv"
"""Artifact of a run: a row a roll."""


@dataclass(frozen=True)
class TrainedRoll:
    """A training that ended, and the days that it scores."""

    segments: Segments
    """train, valid and test as they were learned from, purged."""
    kept: KeptModel
    seconds: float
    """0 where it was found in the folder."""


class RollingModel(Model):
    """A model that is trained again every so many trading days, on what was known by then.

    The data set's segments are those of the first training. Then `valid` moves on with the days,
    and `train` with it or at its end alone; each training scores the days up to the next one, so
    that the scores of the segment "test" are those of models that had seen none of them, nor a bar
    that their labels reach into. To Qlib it is one model: records, backtest and comparison are
    those of any other run.

    A handler's processors stay as they were fitted, on `fit_end_time` of the workflow.

    Args:
        model: the config of a Qlib model: `class`, `module_path`, `kwargs`.
        every, train, start, retrain: fields of `RetrainConfig`.
        folder: where finished trainings are kept, and contexts of frozen backbones: a run that was
            killed and is started again with the same settings and bars trains the missing rolls
            alone, and all rolls read a context once. Remove it to begin anew. None keeps nothing.
            No pickle has it.
        purge: times of the calendar that a label looks ahead, for a data set whose label is not to
            be found in its handler; None: as the label says.
    """

    # Qlib's pickle leaves out names that start with "_".
    _folder: str | None = None

    def __init__(
        self,
        model: Mapping[str, Any],
        every: int = RetrainConfig.every,
        train: str = RetrainConfig.train,
        start: str = ANEW,
        retrain: str = ALL,
        folder: str | None = None,
        purge: int | None = None,
    ) -> None:
        super().__init__()
        if not is_map(model) or "class" not in model:
            raise ConfigError(
                f"RollingModel: model is the config of a model, with its class, got {model!r:.80}"
            )
        given = {"every": every, "train": train, "start": start, "retrain": retrain}
        self.how = from_mapping(RetrainConfig, given, where="RollingModel")
        if purge is not None and (type(purge) is not int or purge < 0):
            raise ConfigError(f"RollingModel: purge is a number of bars, got {purge!r}")
        self.purge = purge
        self.model_config = copy.deepcopy(dict(model))
        self._folder = None if folder is None else str(folder)
        self.rolls: list[TrainedRoll] = []
        """What `fit` left, in time."""
        check_retrainable(self.make(), self.how)

    @property
    def folder(self) -> Path | None:
        """Where finished trainings are kept."""
        return None if self._folder is None else Path(self._folder).expanduser().absolute()

    @property
    def newest(self) -> KeptModel:
        """What the last training left.

        Raises:
            ConfigError: `fit` was not called.
        """
        return self._fitted()[-1].kept

    def newest_model(self) -> Model:
        """The model that the last training left."""
        return self._model_of(self._fitted()[-1])

    def make(self, number: int = 0) -> Any:
        """The model of a roll, nothing fitted.

        Args:
            number: of the roll; a resume folder is each roll's own.
        """
        config = copy.deepcopy(self.model_config)
        for kind, kwargs in _trained_settings(config):
            if kwargs.get("resume_folder"):
                kwargs["resume_folder"] = str(Path(kwargs["resume_folder"], f"roll_{number:03d}"))
            if kind == KronosModel.__name__ and self.folder is not None:
                kwargs["contexts_folder"] = kwargs.get("contexts_folder") or str(
                    self.folder / CONTEXTS
                )
        return init_instance_by_config(config, accept_types=Model)

    def fit(self, dataset: Any, reweighter: object = None) -> None:
        """Train each roll that the folder does not have.

        All segments are looked at before the first training.

        Raises:
            ConfigError: a reweighter is given; or segments, calendar or label cannot be rolled.
            BarDataError, TrainingError: a roll has nothing to learn from, to be judged by or to
                score.
            Otherwise as the model's own `fit`.
        """
        if reweighter is not None:
            raise ConfigError("RollingModel.fit does not use a reweighter; leave it out")
        claim_active_run()
        plan = self._plan(dataset)
        for number in range(len(plan)):
            self._prepared(number, dataset, plan[number], check=True)
        store = None if self.folder is None else RollStore(self.folder)
        trained: list[TrainedRoll] = []
        key = ""
        for number, rolled in enumerate(plan):
            model, data = self._prepared(number, dataset, rolled)
            segments = dict(data.segments)
            described = self._described(number, len(plan), segments)
            begun, found = time.monotonic(), None
            if store is not None:
                # The first training, and one that begins anew, is the same whatever follows.
                goes_on = bool(number) and (self.how.start, self.how.retrain) != (ANEW, ALL)
                facts = {
                    "segments": {name: ends for name, ends in segments.items() if name != "test"},
                    "how": [self.how.start, self.how.retrain] if goes_on else None,
                }
                learned = learned_digest(model, data)
                key = key_of(self.model_config, facts, learned, key if goes_on else "")
                found = store.find(key)
            if found is not None:
                logger.info(f"{described}: trained before, in {self.folder}")
                trained.append(TrainedRoll(segments, found, 0.0))
                continue
            logger.info(f"{described}: training")
            with logged_under(f"roll_{number + 1:03d}"):
                train_again(model, data, trained[-1].kept if trained else None, self.how)
            kept, seconds = kept_model(model), time.monotonic() - begun
            if store is not None:
                store.keep(key, kept, {"segments": segments})
            logger.info(f"{described}: trained in {seconds:.0f} s")
            trained.append(TrainedRoll(segments, kept, seconds))
        self.rolls = trained
        self._log()

    def predict(self, dataset: Any, segment: Segment = "test") -> pd.Series:
        """The score of each day, by the training in force: the last one before that day's roll.

        Days before the first roll are scored by its model, days after the last one by the newest.

        Raises:
            BarDataError: the segment has no day.
            ConfigError: `fit` was not called.
            Otherwise as the model's own `predict`.
        """
        return self.signals(dataset, segment)["score"]

    def signals(self, dataset: Any, segment: Segment = "test") -> pd.DataFrame:
        """The score, and what the model keeps beside it.

        Raises:
            As `predict`.
        """
        from kronos_qlib.plugin.records.signal_record import signals_frame

        own = self._datasets(dataset)
        parts = []
        for roll, ends in self._pieces(dataset, segment):
            datasets = {
                name: with_segments(data, {**data.segments, "test": ends})
                for name, data in own.items()
            }
            model = self._model_of(roll)
            if isinstance(model, BlendModel):
                model.use_datasets(datasets)
            parts.append(signals_frame(model, datasets[""]))
        return pd.concat(parts).sort_index()

    def planned(self, segments: Mapping[str, Any], freq: str = "day") -> list[Segments]:
        """The segments of each roll, not purged, before anything is read; Qlib is open.

        Raises:
            ConfigError: they cannot be rolled.
        """
        return rolls_of(segments, read_calendar(freq), self.how.every, self.how.train)

    def described(self) -> list[dict[str, Any]]:
        """Each roll's segments and seconds, as JSON."""
        return [{"segments": roll.segments, "seconds": roll.seconds} for roll in self._fitted()]

    def _fitted(self) -> list[TrainedRoll]:
        if not self.rolls:
            raise ConfigError("RollingModel has nothing trained yet: call `fit`")
        return self.rolls

    def _model_of(self, roll: TrainedRoll) -> Any:
        if roll.kept.state is None:
            return roll.kept.model
        model = self.make()
        restore(model, roll.kept.state, roll.kept.files)
        return model

    def _datasets(self, dataset: Any) -> dict[str, Any]:
        """The data set under "", and those that members of a blend have for themselves, made once.

        Raises:
            ConfigError: a member's test is of other days.
        """
        known: tuple[Any, dict[str, Any]] | None = self.__dict__.get("_made")
        if known is not None and known[0] is dataset:
            return known[1]
        found = {"": dataset}
        model = self.make()
        if isinstance(model, BlendModel):
            for name in model.dataset_configs:
                found[name] = model.dataset_of(name, dataset)
                ours, theirs = (bounds_of(data.segments, "test") for data in (dataset, found[name]))
                if [*map(pd.Timestamp, map(str, ours))] != [*map(pd.Timestamp, map(str, theirs))]:
                    raise ConfigError(
                        f"the data set of {name} tests {theirs[0]} to {theirs[1]}, the blend's "
                        f"{ours[0]} to {ours[1]}: they roll together, so give them the same days"
                    )
        if self.folder is not None:
            for data in found.values():
                if isinstance(data, KronosFeatureDataset):
                    data.keep_contexts(self.folder / CONTEXTS)
        self.__dict__["_made"] = (dataset, found)
        return found

    def _plan(self, dataset: Any) -> list[dict[str, Segments]]:
        """The segments of each roll by the name of the data set.

        Raises:
            ConfigError: they cannot be rolled.
        """
        each = {
            name: rolls_of(data.segments, calendar_of(data), self.how.every, self.how.train)
            for name, data in self._datasets(dataset).items()
        }
        return [dict(zip(each, rolls, strict=True)) for rolls in zip(*each.values(), strict=True)]

    def _prepared(
        self, number: int, dataset: Any, rolled: Mapping[str, Segments], check: bool = False
    ) -> tuple[Any, Any]:
        """A roll's model and its data set, purged where a model does not do that itself.

        Raises:
            ConfigError, BarDataError, TrainingError: as of `fit`, with `check`.
        """
        model = self.make(number)
        ready = learnable(model, self._datasets(dataset), rolled, self.purge)
        if check:
            check_learnable(model, ready[""])
        return model, ready[""]

    def _pieces(
        self, dataset: Any, segment: Segment
    ) -> Iterator[tuple[TrainedRoll, tuple[str, str]]]:
        """Rolls and the part of a segment that each scores."""
        rolls = self._fitted()
        calendar = calendar_of(dataset)
        first, last = bounds_of(dataset.segments, segment)
        start, stop = places_of(calendar, first, last)
        if start == stop:
            raise BarDataError(
                f"the segment {segment!r} has no day to score: {first} to {last}, and the bars go "
                f"from {str(calendar[0])[:10]} to {str(calendar[-1])[:10]}"
            )
        begins = [places_of(calendar, roll.segments["test"][0], None)[0] for roll in rolls]
        ends = [*begins[1:], len(calendar)]
        begins[0] = 0
        for roll, begin, end in zip(rolls, begins, ends, strict=True):
            begin, end = max(begin, start), min(end, stop)
            if begin < end:
                yield roll, (moment_text(calendar, begin), moment_text(calendar, end - 1))

    def _described(self, number: int, count: int, segments: Mapping[str, Any]) -> str:
        spans = ", ".join(f"{name} {' to '.join(ends)}" for name, ends in segments.items())
        return f"roll {number + 1} of {count} ({spans})"

    def _log(self) -> None:
        """Keep a table of the rolls with the run that is open, if any."""
        if not has_open_run():
            return
        from qlib.workflow import R

        rows = [
            {
                **{
                    f"{name}_{end}": value
                    for name, ends in roll.segments.items()
                    for end, value in zip(("start", "end"), ends, strict=True)
                },
                "seconds": round(roll.seconds, 1),
            }
            for roll in self.rolls
        ]
        recorder = R.get_recorder()
        table = pd.DataFrame(rows).to_csv(index_label="roll", lineterminator="\n")
        recorder.client.log_text(recorder.id, table, TABLE)
        R.log_metrics(rolls=len(rows))


def learnable(
    model: Any,
    datasets: Mapping[str, Any],
    segments: Mapping[str, Segments],
    purge: int | None = None,
) -> dict[str, Any]:
    """Data sets with these segments, purged where the model does not do that itself.

    Args:
        datasets: under "" that of the model, and under their names those that members of a blend
            have for themselves; the blend is given them.
        segments: of each.
        purge: as of `RollingModel`.

    Raises:
        ConfigError: nothing is left of a segment, or a label is not to be found.
    """
    named = model.members if isinstance(model, BlendModel) else {"": model}
    readers: dict[str, list[Any]] = {name: [] for name in datasets}
    for name, one in named.items():
        readers[name if name in datasets else ""].append(one)
    found = {}
    for name, data in datasets.items():
        ahead = 0
        if not all(map(reads_windows, readers[name])):
            ahead = label_ahead(data) if purge is None else purge
        cut = purged(segments[name], calendar_of(data), ahead)
        found[name] = with_segments(data, cut)
    if isinstance(model, BlendModel):
        model.use_datasets(found)
    return found


def with_segments(dataset: Any, segments: Mapping[str, Any]) -> Any:
    """A Qlib data set like this one, on its handler and what that has read, with other segments."""
    found = object.__new__(type(dataset))
    found.__dict__.update(dataset.__dict__)
    found.segments = dict(segments)  # a KronosDataset makes its windows anew
    return found


def calendar_of(dataset: Any) -> Times:
    """(K,) the times of the bars that a Qlib data set reads."""
    return read_calendar(_freq(dataset))


def label_ahead(dataset: Any) -> int:
    """Times of the calendar until the label of a Qlib data set is known.

    Raises:
        ConfigError: its handler does not say what the label is.
    """
    loader = getattr(dataset.handler, "data_loader", None)
    fields = getattr(loader, "fields", None)
    labels: Sequence[str] = fields["label"][0] if is_map(fields) and "label" in fields else ()
    if not len(labels):
        raise ConfigError(
            f"the label of {type(dataset.handler).__name__} is not to be found, so nothing says "
            "how far it looks ahead: say with RollingModel's `purge`, in bars (2 for the return "
            "from the next close to the close after it)"
        )
    return max(reach_of(str(label)).furthest for label in labels)


def _freq(dataset: Any) -> str:
    if isinstance(dataset, KronosDataset):
        return dataset.bar_handler.freq
    freq = getattr(getattr(dataset.handler, "data_loader", None), "freq", "day")
    freqs = set(freq.values()) if isinstance(freq, Mapping) else {freq}
    if len(freqs) > 1:
        raise ConfigError(f"bars of {', '.join(sorted(freqs))} have no one calendar to roll over")
    return str(freqs.pop())


def _trained_settings(config: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Class and settings of every KronosModel and GRUModel in a config, to be changed in place."""
    if isinstance(config, dict):
        kind = class_of(config)
        if kind in (KronosModel.__name__, GRUModel.__name__):
            yield kind, config.setdefault("kwargs", {})
        for inner in config.values():
            yield from _trained_settings(inner)
    elif isinstance(config, list):
        for inner in config:
            yield from _trained_settings(inner)
