"""A registered model trained again on the bars of an evening: a candidate for its place."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from qlib.utils import init_instance_by_config

from kronos_qlib.data.windows.segments import places_of
from kronos_qlib.errors import ConfigError
from kronos_qlib.plugin.blend import BlendModel
from kronos_qlib.plugin.expressions import reach_of
from kronos_qlib.plugin.features import KronosFeatureDataset
from kronos_qlib.plugin.model import KronosModel
from kronos_qlib.plugin.qlib_internals import metrics_dropped
from kronos_qlib.plugin.registry.inputs import references_of
from kronos_qlib.plugin.registry.model_folder import about_folder, source_of_folder
from kronos_qlib.plugin.registry.registered_models import (
    Registered,
    find_registered,
    new_version,
    registered_folder,
)
from kronos_qlib.plugin.rolling.retraining import (
    RetrainConfig,
    check_learnable,
    check_retrainable,
    retrain,
)
from kronos_qlib.plugin.rolling.rolling_model import calendar_of, learnable
from kronos_qlib.plugin.rolling.rolls import Segments, moved_to
from kronos_qlib.plugin.runs.about_run import BARS, VERSION, WEIGHTS, bars_digest, weights_digest
from kronos_qlib.plugin.runs.kept_models import STATE, KeptModel, kept_model
from kronos_qlib.plugin.runs.newest_day import ModelSource, forget_tables, open_bars
from kronos_qlib.plugin.runs.quiet import quiet_libraries
from kronos_qlib.plugin.runs.tracking import open_tracking
from kronos_qlib.plugin.task_sections import freq_of, value_at
from kronos_qlib.version import __version__

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

CANDIDATE = "candidate"
"""The alias of the newest one."""
MARK, RIVAL = "kronos_qlib.candidate", "kronos_qlib.champion"
"""Tags of a version: whose evening it is of; the version that it was trained to replace."""


@dataclass(frozen=True)
class Candidate:
    """A version that was trained on an evening.

    champion: the version whose place it may take.
    segments: that it learned from and was chosen by.
    facts: what the ledger says of it, JSON.
    """

    name: str
    version: str
    champion: str
    segments: Segments
    label: str
    label_bars: int
    ahead: int
    freq: str
    facts: dict[str, Any]

    @property
    def uri(self) -> str:
        """As MLflow spells it."""
        return f"models:/{self.name}/{self.version}"


def train_candidate(
    model: str,
    *,
    day: pd.Timestamp,
    how: RetrainConfig,
    mark: str,
    tracking_uri: str,
    provider_uri: str,
    contexts_folder: Path | None = None,
    trust: bool = False,
) -> Candidate:
    """Train a registered model again on bars up to a day, and register what comes of it.

    Its segments are the model's, moved on so that validation ends with the day, purged; its
    settings are the model's own. It is given the alias CANDIDATE and none that scoring asks for.

    Args:
        model: "models:/NAME@ALIAS": the one in force.
        day: of the folder's calendar; no later bar is read.
        mark: of this very evening. A version that bears it is there already: it is that one.
        provider_uri: the folder of bars.
        contexts_folder: of frozen backbones, for all trainings; None keeps none.
        trust: as of `score_newest`.

    Raises:
        ConfigError: there is no such model; it cannot be trained again like this; or its segments
            cannot be moved on.
        BarDataError, TrainingError: there is nothing to learn from or to be judged by.
        Otherwise as of `newest_scores`.
    """
    quiet_libraries()
    client = open_tracking(tracking_uri)
    champion = find_registered(client, model)
    known = _marked(client, champion.name, mark)
    rival = known[1] if known is not None else champion.version
    version = find_registered(client, known[0]) if known is not None else None
    of = version or champion
    with registered_folder(client, of) as folder:
        source = source_of_folder(folder, of.uri, trust=trust)
        about = about_folder(folder, of.uri)
        if version is None:
            version, source, about = _trained(
                client, champion, source, about, day, how, mark, provider_uri, contexts_folder
            )
    client.set_registered_model_alias(version.name, CANDIDATE, version.version)
    label = str(about["label"])
    segments = value_at(source.task, "dataset", "kwargs", "segments") or {}
    kept: Segments = {name: (ends[0], ends[1]) for name, ends in segments.items()}
    return Candidate(
        name=version.name,
        version=version.version,
        champion=rival,
        segments=kept,
        label=label,
        label_bars=int(about["label_bars"]),
        ahead=reach_of(label).furthest,
        freq=str(about["freq"]),
        facts={
            "model": {
                "name": version.name,
                "version": version.version,
                "trained_with": about.get("versions", {}),
            },
            "champion": rival,
            "how": asdict(how),
        },
    )


def learned_to(model: str, *, tracking_uri: str) -> pd.Timestamp | None:
    """The last day of what a registered model learned from or was chosen by; None where it says
    none.

    Raises:
        ConfigError, MissingArtifactError: as of `find_registered`.
    """
    client = open_tracking(tracking_uri)
    version = find_registered(client, model)
    with registered_folder(client, version) as folder:
        # Looked at, and nothing made.
        task = source_of_folder(folder, version.uri, trust=True).task
    segments = value_at(task, "dataset", "kwargs", "segments") or {}
    ends = [segments[name][1] for name in ("train", "valid") if name in segments]
    return max((pd.Timestamp(str(end)) for end in ends if end is not None), default=None)


def version_in_force(model: str, *, tracking_uri: str) -> str:
    """The version that "models:/NAME@ALIAS" means now.

    Raises:
        ConfigError, MissingArtifactError: as of `find_registered`.
    """
    return find_registered(open_tracking(tracking_uri), model).version


def promote(model: str, version: str, *, tracking_uri: str) -> None:
    """Let "models:/NAME@ALIAS" mean another version.

    Raises:
        ConfigError: there is no such model or alias.
    """
    client = open_tracking(tracking_uri)
    name = find_registered(client, model).name
    client.set_registered_model_alias(name, model.rpartition("@")[2], version)


def _marked(client: MlflowClient, name: str, mark: str) -> tuple[str, str] | None:
    """URI of the version that bears a mark, and the version whose place it is to take."""
    for each in client.search_model_versions(f"name = '{name}'"):
        tags = each.tags or {}
        if tags.get(MARK) == mark:
            return f"models:/{name}/{each.version}", str(tags.get(RIVAL))
    return None


def _trained(
    client: MlflowClient,
    champion: Registered,
    source: ModelSource,
    about: Mapping[str, Any],
    day: pd.Timestamp,
    how: RetrainConfig,
    mark: str,
    provider_uri: str,
    contexts_folder: Path | None,
) -> tuple[Registered, ModelSource, dict[str, Any]]:
    open_bars(provider_uri, source)
    task = moved_task(source.task, day)
    model = _made(task["model"], contexts_folder)
    check_retrainable(model, how)
    datasets = {"": init_instance_by_config(copy.deepcopy(task["dataset"]))}
    if isinstance(model, BlendModel):
        for name in model.dataset_configs:
            datasets[name] = model.dataset_of(name, datasets[""])
    if contexts_folder is not None:
        for data in datasets.values():
            if isinstance(data, KronosFeatureDataset):
                data.keep_contexts(contexts_folder)
    segments = {
        name: moved_to(data.segments, calendar_of(data), day, how.train)
        for name, data in datasets.items()
    }
    datasets = learnable(model, datasets, segments)
    check_learnable(model, datasets[""])
    before = KeptModel(dict(source.state["model"]), dict(source.read()))
    with metrics_dropped():
        retrain(model, datasets[""], before, how)
    kept = kept_model(model)
    learned = {name: dict(data.segments) for name, data in datasets.items()}
    _set_segments(task, learned)
    state = {**source.state, "model": kept.state}
    files = {**kept.files, Path(STATE).name: json.dumps(state, indent=1).encode()}
    new = ModelSource(f"the candidate of {day:%Y-%m-%d}", task, state, lambda: files)
    run = _begun(client, champion, day, model, datasets[""])
    known = {
        **about,
        "run_id": run.info.run_id,
        "experiment": client.get_experiment(run.info.experiment_id).name,
        "versions": {
            tag.removeprefix("kronos_qlib."): value
            for tag, value in run.data.tags.items()
            if tag.startswith("kronos_qlib.")
        },
        # It has no backtest of its own: what is promised is its settings', by the first run's.
        "promised_by": about.get("promised_by", about.get("run_id")),
        "spreads": _spreads(model, datasets[""], freq_of(task)),
    }
    try:
        version = new_version(
            client,
            run,
            champion.name,
            new,
            known,
            tags={MARK: mark, RIVAL: champion.version},
        )
    except BaseException:
        client.set_terminated(run.info.run_id, "FAILED")
        raise
    client.set_terminated(run.info.run_id, "FINISHED")
    return version, new, known


def moved_task(task: Mapping[str, Any], day: pd.Timestamp) -> dict[str, Any]:
    """A task whose handlers end with a day."""
    found: dict[str, Any] = copy.deepcopy({name: task[name] for name in ("model", "dataset")})
    for config in _dataset_configs(found):
        for kwargs in (
            value_at(config, "kwargs", "handler", "kwargs"),
            value_at(config, "kwargs", "bar_handler"),
        ):
            if isinstance(kwargs, dict):
                kwargs["end_time"] = f"{day:%Y-%m-%d}"
        forget_tables(config)
    return found


def _dataset_configs(task: Mapping[str, Any]) -> list[dict[str, Any]]:
    members = value_at(task["model"], "kwargs", "members") or ()
    return [task["dataset"], *(one["dataset"] for one in members if "dataset" in one)]


def _set_segments(task: dict[str, Any], learned: Mapping[str, Segments]) -> None:
    task["dataset"]["kwargs"]["segments"] = learned[""]
    for member in value_at(task["model"], "kwargs", "members") or ():
        name = str(member.get("name", member["class"]))
        if name in learned:
            member["dataset"]["kwargs"]["segments"] = learned[name]


def _made(config: Mapping[str, Any], contexts_folder: Path | None) -> Any:
    model = init_instance_by_config(copy.deepcopy(dict(config)))
    members = model.members.values() if isinstance(model, BlendModel) else [model]
    for one in members:
        if contexts_folder is not None and isinstance(one, KronosModel):
            one.keep_contexts(contexts_folder)
    return model


def _spreads(model: Any, dataset: Any, freq: str) -> dict[str, Any]:
    """Of the scores of validation, and of inputs on the days learned from."""
    from kronos_qlib.plugin.records.signal_record import signals_frame

    scores = signals_frame(model, dataset, "valid")["score"].dropna()
    names = sorted(scores.index.get_level_values("instrument").unique())
    calendar = pd.DatetimeIndex(calendar_of(dataset))
    start, stop = places_of(calendar.to_numpy(), *dataset.segments["train"])
    return references_of(scores, names, calendar[start:stop], freq)


def _begun(
    client: MlflowClient, champion: Registered, day: pd.Timestamp, model: Any, dataset: Any
) -> Run:
    """A run for the candidate's files, in an experiment beside the champion's."""
    home = client.get_experiment(client.get_run(champion.run_id).info.experiment_id)
    name = f"{champion.name}_candidates"
    found = client.get_experiment_by_name(name)
    if found is not None and found.lifecycle_stage != "active":
        raise ConfigError(f"the MLflow experiment {name!r} was deleted: restore it, or purge it")
    location = f"{home.artifact_location.rstrip('/')}/candidates"
    experiment = found.experiment_id if found else client.create_experiment(name, location)
    tags = {
        "mlflow.runName": f"{champion.name} {day:%Y-%m-%d}",
        VERSION: __version__,
        WEIGHTS: weights_digest(model),
        BARS: bars_digest(dataset),
    }
    return client.create_run(experiment, tags=tags)
