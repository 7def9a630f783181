"""The newest day, scored by the model of a finished run as a backtest of it would."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from kronos_qlib.data.calendar.time_text import show_time
from kronos_qlib.errors import BarDataError, ConfigError, MissingArtifactError, some_of
from kronos_qlib.plugin.provider.faults import check_folder
from kronos_qlib.plugin.runs.plain_files import artifact, artifacts, read_json, read_task
from kronos_qlib.plugin.runs.tracking import find_run, open_tracking
from kronos_qlib.plugin.task_sections import class_of, freq_of, mapping_of, value_at

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from kronos_qlib.data.windows.bar_table import BarTable

LEAST_DISTINCT = 0.5
"""Share of different scores among the day's below which a ranking is one of ties."""
SHOWN = 3
"""Names that a note gives as examples."""


@dataclass(frozen=True)
class ModelSource:
    """What a model and its data set are made of: of a run, or of a registered model."""

    words: str
    """What it is, for messages: "run 1f0c…"."""
    task: Mapping[str, Any]
    """With the sections `model` and `dataset`."""
    state: Mapping[str, Any]
    """What `kept_models.write_model` wrote; {} where it did not."""
    read: Callable[[], Mapping[str, bytes]]
    """The files of the state by name."""
    unpickle: Callable[[], Any] | None = None
    """The model as a pickle holds it, where there is one and it is trusted."""


@dataclass(frozen=True)
class OpenedDay:
    """A model, made again, and its data set with one day as test segment.

    day: or a moment of bars of minutes. dataset_config: of the source, as it was. folder: of the
    bars.
    """

    day: pd.Timestamp
    model: Any
    dataset: Any
    dataset_config: Mapping[str, Any]
    folder: str


@dataclass(frozen=True)
class OpenedRun(OpenedDay):
    """A finished run's model and a day."""

    experiment: str
    run_id: str


@dataclass(frozen=True)
class ScoredDay:
    """One day by one model.

    frame: all that the model says, on instrument: "score", and what it keeps beside.
    table, notes: as of `Scored`.
    """

    day: pd.Timestamp
    frame: pd.DataFrame
    table: pd.DataFrame
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Scored:
    """The ranking of one day, or of one moment of bars of minutes.

    table: by falling score: rank, instrument, score, last_bar, age_days (days from the name's last
        bar to the day that is scored).
    """

    experiment: str
    run_id: str
    day: pd.Timestamp
    table: pd.DataFrame
    notes: tuple[str, ...]


def score_newest(run: str, *, tracking_uri: str, **how: Any) -> Scored:
    """Score the newest day of a folder of bars with the model of a run.

    Args, Raises: as of `open_run`, and of the model's `predict`.
    """
    opened = open_run(run, tracking_uri=tracking_uri, **how)
    found = score_opened(opened)
    return Scored(opened.experiment, opened.run_id, found.day, found.table, found.notes)


def open_run(
    run: str,
    *,
    tracking_uri: str,
    provider_uri: str | None = None,
    day: str | None = None,
    beyond_calendar: str | None = None,
    trust: bool = False,
) -> OpenedRun:
    """Make a run's model again, and its data set on the newest day of a folder of bars.

    The model is made from the run's task and the plain files that KronosSignalRecord keeps, and
    nothing is unpickled. Its data set is the run's, with this day as test segment: the scores have
    the bits that a backtest over this day would have.

    Args:
        run: an experiment's name, for its newest finished run; or a run's id or its beginning.
        provider_uri: the folder of bars; None takes the run's own.
        day: another day than the newest, or a moment of bars of minutes.
        beyond_calendar: of the data set, where Qlib's calendar of days to come ends.
        trust: make whatever the task names, and unpickle a model that is kept no other way. Only
            for runs of one's own.

    Raises:
        ConfigError: there is no such run, folder or day.
        MissingArtifactError: the run does not have what its model is made of.
        UnsafeArtifactError: it could be made only by running its writer's code.
    """
    client = open_tracking(tracking_uri)
    found = find_run(client, run)
    opened = open_day(
        source_of_run(client, found.info.run_id, trust=trust),
        provider_uri=provider_uri,
        day=day,
        beyond_calendar=beyond_calendar,
    )
    experiment = client.get_experiment(found.info.experiment_id).name
    return OpenedRun(**vars(opened), experiment=experiment, run_id=found.info.run_id)


def source_of_run(client: MlflowClient, run_id: str, *, trust: bool = False) -> ModelSource:
    """What a run keeps of its model and data set.

    Raises:
        MissingArtifactError, UnsafeArtifactError: as of `open_run`.
    """
    from kronos_qlib.plugin.runs.kept_models import FOLDER

    state = _state(client, run_id)
    task = _of_last_roll(read_task(client, run_id, any_class=trust), state)
    task = {**task, "model": without_backend(task.get("model"))}
    missing = [name for name in ("model", "dataset") if not isinstance(task.get(name), Mapping)]
    if missing:
        raise MissingArtifactError(
            f"run {run_id} keeps no {' and no '.join(missing)} in its task, so nothing can be made "
            "again: run its workflow with qrun and KronosSignalRecord"
        )
    if not trust:
        from kronos_qlib.plugin.runs.known_tasks import check_known
        from kronos_qlib.plugin.runs.quiet import quiet_imports

        with quiet_imports():
            check_known(task)

    def read() -> dict[str, bytes]:
        found = {}
        for name in artifacts(client, run_id, FOLDER):
            with artifact(client, run_id, name) as path:
                found[name.rpartition("/")[2]] = path.read_bytes()
        return found

    def unpickle() -> Any:
        from kronos_qlib.plugin.pickles.load_pickle import run_pickle

        with artifact(client, run_id, "params.pkl") as path:
            return run_pickle(path)

    return ModelSource(f"run {run_id}", task, state, read, unpickle if trust else None)


def _of_last_roll(task: Mapping[str, Any], state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The task of the model that a RollingModel trained last; any other as it is."""
    model = task.get("model")
    inner, rolls = value_at(model, "kwargs", "model"), state.get("rolls")
    if class_of(model) != "RollingModel" or not isinstance(inner, Mapping) or not rolls:
        return task
    dataset = copy.deepcopy(dict(mapping_of(task.get("dataset"))))
    segments = value_at(rolls[-1], "segments")
    dataset["kwargs"] = {**mapping_of(dataset.get("kwargs")), "segments": dict(segments or {})}
    return {**task, "model": inner, "dataset": dataset}


def open_day(
    source: ModelSource,
    *,
    provider_uri: str | None = None,
    day: str | None = None,
    beyond_calendar: str | None = None,
) -> OpenedDay:
    """Make a source's model, and its data set on a day; the arguments are those of `open_run`.

    Raises:
        As `open_run`.
    """
    from kronos_qlib.plugin.runs.quiet import quiet_libraries

    quiet_libraries()
    config = source.task["dataset"]
    folder = open_bars(provider_uri, source)
    moment = _moment(day, config, folder)
    model = make_model(source, moment)
    own = moved(config, moment)
    if beyond_calendar is not None:
        own.setdefault("kwargs", {})["beyond_calendar"] = beyond_calendar
    from qlib.utils import init_instance_by_config

    return OpenedDay(moment, model, init_instance_by_config(own), config, folder)


def score_opened(opened: OpenedDay) -> ScoredDay:
    """The ranking of the day that a model was opened on.

    Raises:
        BarDataError, CalendarError: as of the model's `predict`.
    """
    from kronos_qlib.plugin.records.signal_record import signals_frame

    moment, config = opened.day, opened.dataset_config
    frame = signals_frame(opened.model, opened.dataset)
    frame = frame[frame.index.get_level_values("datetime") == moment].droplevel("datetime")
    frame = frame.dropna(subset=["score"])
    if frame.empty:
        raise BarDataError(f"no name of {opened.folder} has a score on {show_time(moment)}")
    scores, table = frame["score"], bars_of(opened.dataset, config, moment)
    return ScoredDay(
        moment,
        frame,
        _ranking(scores, table, moment),
        tuple(_notes(scores, table, moment, config)),
    )


def moved(
    dataset: Mapping[str, Any], moment: pd.Timestamp, first: pd.Timestamp | None = None
) -> dict[str, Any]:
    """The config of a data set with this moment as its test segment and its last.

    Args:
        first: where the test segment begins, if not at the moment.

    What a handler's processors learn from, and where its bars begin, stay as they were: the scores
    would have other bits.
    """
    config: dict[str, Any] = copy.deepcopy(dict(dataset))
    kwargs = config.setdefault("kwargs", {})
    kwargs["segments"] = {
        **kwargs.get("segments", {}),
        "test": (moment if first is None else first, moment),
    }
    handler = kwargs.get("handler")
    if isinstance(handler, dict):
        handler.setdefault("kwargs", {})["end_time"] = moment
    if isinstance(kwargs.get("bar_handler"), dict) and "end_time" in kwargs["bar_handler"]:
        kwargs["bar_handler"]["end_time"] = moment
    forget_tables(config)
    return config


def forget_tables(dataset: Mapping[str, Any]) -> None:
    """Let a data set's config read bars from the Qlib folder alone.

    A table that they were mapped from is of other days, or is not on this machine; they are the
    same without it.
    """
    handler = value_at(dataset, "kwargs", "handler")
    readers = [value_at(dataset, "kwargs", "bar_handler")]
    if class_of(handler) == "KronosHandler":
        readers.append(value_at(handler, "kwargs"))
    for kwargs in readers:
        if isinstance(kwargs, dict):
            kwargs.pop("table", None)


def _state(client: MlflowClient, run_id: str) -> dict[str, Any]:
    """What the run says of its model's files and bars; {} for one that is older than those."""
    from kronos_qlib.plugin.runs.kept_models import FOLDER, STATE

    if STATE not in artifacts(client, run_id, FOLDER):
        return {}
    return read_json(client, run_id, STATE)


def open_bars(provider_uri: str | None, source: ModelSource) -> str:
    """Open Qlib on a folder of bars, the source's own if none is named; nothing is written.

    Raises:
        ConfigError: there is no such folder.
    """
    import qlib

    uris: Any = provider_uri or source.state.get("provider_uri")
    if not uris:
        raise ConfigError(
            f"{source.words} does not say where its bars were: name their folder (--provider-uri)"
        )
    folders = list(uris.values()) if isinstance(uris, Mapping) else [uris]
    for folder in folders:
        try:
            check_folder(Path(str(folder)).expanduser())
        except ConfigError as problem:
            raise ConfigError(f"{problem}; --provider-uri names another folder") from None
    region = source.state.get("region")
    qlib.init(
        provider_uri=uris,
        region=region if region in ("cn", "us", "tw") else "us",
        skip_if_reg=False,
        clear_mem_cache=True,
        logging_level="WARNING",
    )
    return ", ".join(dict.fromkeys(map(str, folders)))


def _moment(day: str | None, dataset: Mapping[str, Any], folder: str) -> pd.Timestamp:
    from kronos_qlib.plugin.provider.reader import read_calendar

    calendar = read_calendar(freq_of_dataset(dataset))
    if day is None:
        return pd.Timestamp(calendar[-1])
    try:
        moment = pd.Timestamp(day)
    except ValueError as bad:
        raise ConfigError(f"--day is a date, such as 2024-06-18, got {day!r}") from bad
    if moment.to_datetime64() not in calendar:
        raise ConfigError(
            f"{folder} has no bars at {show_time(moment)}: they go from "
            f"{show_time(pd.Timestamp(calendar[0]))} to {show_time(pd.Timestamp(calendar[-1]))}"
        )
    return moment


def without_backend(section: Any) -> Any:
    """A copy of a section of a task in which no KronosModel asks other machines to score.

    Where a run was scored says nothing of its model, and whoever wrote the run does not choose
    which cluster is asked now.
    """
    if isinstance(section, Mapping):
        is_kronos = class_of(section) == "KronosModel"
        kept = {name: without_backend(value) for name, value in section.items()}
        if is_kronos and isinstance(kept.get("kwargs"), dict):
            kept["kwargs"].pop("backend", None)
        return kept
    if isinstance(section, list | tuple):
        return [without_backend(one) for one in section]
    return copy.deepcopy(section)


def freq_of_dataset(dataset: Mapping[str, Any]) -> str:
    """The frequency of the bars that windows of a data set's config are made of."""
    own = value_at(dataset, "kwargs", "bar_handler", "freq")
    return str(own or freq_of({"dataset": dataset}))


def make_model(
    source: ModelSource,
    moment: pd.Timestamp | None = None,
    first: pd.Timestamp | None = None,
) -> Any:
    """The model of a source, with what fitting left.

    Args:
        moment: the day that members of a blend with data sets of their own will score.
        first: where the days that they will score begin, if not at the moment.

    Raises:
        MissingArtifactError: the source does not have what its model is made of.
    """
    from qlib.utils import init_instance_by_config

    from kronos_qlib.plugin.blend import BlendModel
    from kronos_qlib.plugin.runs.kept_models import needs_state, restore
    from kronos_qlib.plugin.runs.quiet import quiet_imports

    with quiet_imports():
        model = init_instance_by_config(without_backend(source.task["model"]))
    kept = source.state.get("model")
    if isinstance(kept, Mapping):
        restore(model, kept, source.read())
    elif needs_state(model):
        if source.unpickle is None:
            raise MissingArtifactError(
                f"{source.words} keeps its {type(model).__name__} as a pickle alone, and to read "
                "one is to run what its writer likes. If the run is your own, say --trust; or run "
                "its workflow again with KronosSignalRecord, which keeps Kronos, LightGBM and "
                "linear models as plain files"
            )
        model = source.unpickle()
    if isinstance(model, BlendModel) and moment is not None:
        model.dataset_configs = {
            name: moved(one, moment, first) for name, one in model.dataset_configs.items()
        }
    if hasattr(model, "show_progress"):
        model.show_progress = True  # on a terminal
    return model


def bars_of(dataset: object, config: Mapping[str, Any], moment: pd.Timestamp) -> BarTable:
    """The bars of the universe up to the moment, for their ages."""
    from kronos_qlib.plugin.dataset import KronosDataset, KronosHandler

    if isinstance(dataset, KronosDataset):
        return dataset.bar_handler.bars
    settings = mapping_of(value_at(config, "kwargs", "handler", "kwargs"))
    return KronosHandler(
        instruments=settings.get("instruments", "all"),
        end_time=moment,
        freq=freq_of_dataset(config),
        incomplete="skip",
        invalid="keep",
    ).bars


def _last_bars(table: BarTable) -> pd.Series[pd.Timestamp]:
    """Time of each instrument's last bar; names without a bar are left out."""
    stops = np.asarray(table.offsets[1:])
    has_bars = np.diff(table.offsets) > 0
    names = [name for name, has in zip(table.instruments, has_bars, strict=True) if has]
    return pd.Series(
        pd.DatetimeIndex(table.calendar[table.places[stops[has_bars] - 1]]), index=names
    )


def _ranking(scores: pd.Series[float], table: BarTable, moment: pd.Timestamp) -> pd.DataFrame:
    ranked = scores.sort_index().sort_values(ascending=False, kind="stable")
    last = _last_bars(table).reindex(ranked.index)
    return pd.DataFrame(
        {
            "rank": np.arange(1, len(ranked) + 1),
            "instrument": ranked.index,
            "score": ranked.to_numpy(),
            "last_bar": last.to_numpy(),
            "age_days": (moment - last).dt.days.astype("Int64").to_numpy(),
        }
    )


def _notes(
    scores: pd.Series[float], table: BarTable, moment: pd.Timestamp, dataset: Mapping[str, Any]
) -> list[str]:
    notes = []
    when = show_time(moment)
    last = _last_bars(table)
    stale = last[last < moment].drop(scores.index, errors="ignore").sort_values(ascending=False)
    if len(stale):
        shown = ", ".join(
            f"{name} {show_time(time)} ({(moment - time).days} days old)"
            for name, time in stale.head(SHOWN).items()
        )
        notes.append(f"{len(stale)} names have no bar of {when} and no score, the newest: {shown}")
    silent = last[last == moment].drop(scores.index, errors="ignore").index
    if len(silent):
        notes.append(
            f"{len(silent)} names have a bar of {when} and no score: "
            f"{some_of(silent.tolist(), SHOWN)}; they are outside the universe that day, or have "
            "too few bars before it"
        )
    distinct = scores.nunique()
    if distinct < len(scores) * LEAST_DISTINCT:
        notes.append(
            f"{len(scores)} names have {distinct} different scores: those of one score stand in "
            "the order of their codes, which means nothing"
        )
    segments = mapping_of(value_at(dataset, "kwargs", "segments"))
    for name in ("train", "valid"):
        span = segments.get(name)
        last_day = span[1] if isinstance(span, list | tuple) and len(span) == 2 else None
        if last_day is not None and pd.Timestamp(str(last_day)) >= moment:
            notes.append(
                f"the run's segment {name} reaches to {last_day}: the model has seen this day"
            )
    return notes
