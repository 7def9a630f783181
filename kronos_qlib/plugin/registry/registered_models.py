"""Models in MLflow's registry: runs become versions of a name, an alias says which is in force.

A version is an MLflow model (`mlflow.pyfunc.load_model` reads it) whose data is the folder that
`model_folder` describes. This module reads that folder itself, and runs nothing that a version's
writer chose.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from kronos_qlib.errors import ConfigError, MissingArtifactError, some_of
from kronos_qlib.markup import cause_of, one_line
from kronos_qlib.plugin.registry.model_folder import about_folder, write_folder
from kronos_qlib.plugin.runs.newest_day import ModelSource, open_bars, source_of_run
from kronos_qlib.plugin.runs.tracking import find_run, open_tracking
from kronos_qlib.plugin.task_sections import freq_of, label_bars_of, label_of, value_at
from kronos_qlib.version import __version__

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

CHAMPION = "champion"
"""The alias of the model in force."""
REGISTRY = "models:/"
"""How the URI of a registered model begins."""
URI = re.compile(r"models:/(?P<name>[^/@:\\]+)(?:@(?P<alias>[^/@:\\]+)|/(?P<version>\d+))")
DATA = "model"
"""Where an MLflow model has our folder."""
PLACE = "kronos_qlib.place"
"""Tag of a version: where among its run's files it lies."""
LOADER = "kronos_qlib.plugin.registry.pyfunc_loader"


@dataclass(frozen=True)
class Registered:
    """A version of a registered model."""

    name: str
    version: str
    run_id: str
    place: str

    @property
    def uri(self) -> str:
        """As MLflow spells it."""
        return f"models:/{self.name}/{self.version}"


def register(
    run: str,
    name: str,
    *,
    tracking_uri: str,
    alias: str | None = CHAMPION,
    provider_uri: str | None = None,
) -> tuple[Registered, tuple[str, ...]]:
    """Make a run's model a version of a registered model, with all that scoring needs.

    The checkpoint is copied too: the version scores on a machine that has neither the workflow nor
    the Hub. What the backtest promised, and how scores and inputs were spread, stand beside it. A
    run that is a version of the name already stays that one.

    Args:
        run: an experiment's name, for its newest finished run; or a run's id or its beginning; or
            models:/NAME@ALIAS or models:/NAME/VERSION, for a version that is there: it is given
            the alias alone.
        name: of the registered model; made if it is not there.
        alias: set on the version; None sets none.
        provider_uri: the folder of bars that spreads are read from; None takes the run's own.

    Returns:
        The version, and what it lacks, in words.

    Raises:
        ConfigError: there is no such run or folder of bars, or MLflow refuses the name.
        MissingArtifactError, UnsafeArtifactError: as of `score_newest`.
        CheckpointError: its checkpoint is not to be had, or another one now.
    """
    from mlflow.exceptions import MlflowException

    client = open_tracking(tracking_uri)
    notes: list[str] = []
    try:
        if run.startswith(REGISTRY):
            version: Registered | None = find_registered(client, run)
            if version is not None and version.name != name:
                raise ConfigError(f"{run} is a version of {version.name!r}, not of {name!r}")
        else:
            found = find_run(client, run)
            version = _version_of_run(client, name, found.info.run_id)
        if version is None:
            source = source_of_run(client, found.info.run_id)
            open_bars(provider_uri, source)
            about, notes = _about(client, found, source.task)
            version = new_version(client, found, name, source, about)
        if alias is not None:
            client.set_registered_model_alias(name, alias, version.version)
    except MlflowException as refusal:
        raise ConfigError(f"MLflow does not register {name!r}: {cause_of(refusal)}") from refusal
    return version, tuple(notes)


def find_registered(client: MlflowClient, uri: str) -> Registered:
    """The version that a URI means.

    Raises:
        ConfigError: it is no such URI, or there is no such model, version or alias.
        MissingArtifactError: it was not registered by `register`.
    """
    from mlflow.exceptions import MlflowException

    asked = URI.fullmatch(uri)
    if asked is None:
        raise ConfigError(
            f"a registered model is models:/NAME@ALIAS or models:/NAME/VERSION, got {uri!r:.200}"
        )
    name = asked["name"]
    try:
        if asked["alias"]:
            version = client.get_model_version_by_alias(name, asked["alias"])
        else:
            version = client.get_model_version(name, asked["version"])
    except MlflowException as refusal:
        known = [one_line(each.name) for each in client.search_registered_models()]
        raise ConfigError(
            f"MLflow has no {uri}: {cause_of(refusal)}. Registered are: "
            f"{some_of(known, 10) or 'none'}; kronos-qlib register makes one of a run"
        ) from refusal
    place = (version.tags or {}).get(PLACE)
    if not place or not version.run_id:
        raise MissingArtifactError(
            f"{uri} was not registered by kronos-qlib register, and is not read: register its run"
        )
    return Registered(name, str(version.version), version.run_id, place)


@contextmanager
def registered_folder(client: MlflowClient, version: Registered) -> Iterator[Path]:
    """A copy of a version's folder, gone afterwards.

    Raises:
        MissingArtifactError: its run, or its files, are gone.
    """
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as into:
        try:
            found = client.download_artifacts(version.run_id, f"{version.place}/{DATA}", into)
        except (MlflowException, OSError) as problem:
            raise MissingArtifactError(
                f"the files of {version.uri} cannot be read from run {version.run_id}: MLflow says "
                f"{cause_of(problem)}"
            ) from problem
        yield Path(found)


def _version_of_run(client: MlflowClient, name: str, run_id: str) -> Registered | None:
    for each in client.search_model_versions(f"run_id = '{run_id}'"):
        place = (each.tags or {}).get(PLACE)
        if each.name == name and place:
            return Registered(name, str(each.version), run_id, place)
    return None


def new_version(
    client: MlflowClient,
    run: Run,
    name: str,
    source: ModelSource,
    about: Mapping[str, Any],
    tags: Mapping[str, str] | None = None,
) -> Registered:
    """Make a model a version, its files among those of a run.

    Args:
        name: of the registered model; made if it is not there.
        about: what is known of it, for `about.json`.
        tags: of the version, beside ours; they are there as soon as it is.

    Raises:
        ConfigError: MLflow refuses it.
        Otherwise as `register`.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    from kronos_qlib.plugin.runs.quiet import quiet_libraries

    quiet_libraries()
    run_id = run.info.run_id
    place = f"registered/{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}"
    with tempfile.TemporaryDirectory() as into:
        data, model = Path(into, DATA), Path(into, "mlflow_model")
        data.mkdir()
        write_folder(source, data, about)
        mlflow.pyfunc.save_model(
            path=str(model),
            loader_module=LOADER,
            data_path=str(data),
            pip_requirements=[f"kronos-qlib=={__version__}"],
        )
        _settle(model, data)
        client.log_artifacts(run_id, str(model), place)
    if not _is_registered(client, name):
        client.create_registered_model(name)
    source_uri = f"{run.info.artifact_uri.rstrip('/')}/{place}"
    try:
        ours = {**(tags or {}), PLACE: place, "kronos_qlib.version": __version__}
        version = client.create_model_version(name, source_uri, run_id, tags=ours)
    except MlflowException as refusal:
        raise ConfigError(f"MLflow makes no version of {name!r}: {cause_of(refusal)}") from refusal
    return Registered(name, str(version.version), run_id, place)


def _settle(model: Path, data: Path) -> None:
    """Have the folder under the name DATA, whatever MLflow called it."""
    copied = model / "data" / DATA
    if copied.is_dir() and not (model / DATA).exists():
        text = (model / "MLmodel").read_text(encoding="utf-8")
        (model / "MLmodel").write_text(
            text.replace(f"data: data/{DATA}", f"data: {DATA}"), encoding="utf-8"
        )
        copied.rename(model / DATA)
    if not (model / DATA).is_dir():
        raise MissingArtifactError(f"MLflow did not copy {data.name} into the model it saved")


def _is_registered(client: MlflowClient, name: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        client.get_registered_model(name)
    except MlflowException:
        return False
    return True


def _about(client: MlflowClient, run: Run, task: Any) -> tuple[dict[str, Any], list[str]]:
    """What stands in about.json; Qlib is open on the run's bars."""
    from kronos_qlib.plugin.dataset import NEXT_DAY_RETURN
    from kronos_qlib.plugin.registry.promises import promises_of

    promised, notes = promises_of(client, run, label_bars_of(task))
    tags = {
        name.removeprefix("kronos_qlib."): value
        for name, value in run.data.tags.items()
        if name.startswith("kronos_qlib.") and not name.startswith("kronos_qlib.verdict")
    }
    about = {
        "run_id": run.info.run_id,
        "experiment": client.get_experiment(run.info.experiment_id).name,
        "versions": tags,
        "label": label_of(task) or NEXT_DAY_RETURN,
        "label_bars": label_bars_of(task),
        "freq": freq_of(task),
        "backtest": json.loads(json.dumps(value_at(task, "backtest"), default=str)),
        "promised": promised,
        "spreads": _spreads(client, run, task, notes),
    }
    return about, notes


def _spreads(client: MlflowClient, run: Run, task: Any, notes: list[str]) -> dict[str, Any]:
    """Spreads of scores on the days of the run's test segment, of inputs on its training days."""
    from kronos_qlib.errors import KronosError
    from kronos_qlib.plugin.provider.reader import read_calendar
    from kronos_qlib.plugin.registry.inputs import references_of
    from kronos_qlib.plugin.runs.stored_runs import read_signal

    try:
        scores = read_signal(client, run).score
    except KronosError as problem:
        notes.append(f"drift cannot be seen later: {problem}")
        return {}
    names = sorted(scores.index.get_level_values("instrument").unique())
    span = value_at(task, "dataset", "kwargs", "segments", "train")
    freq = freq_of(task)
    calendar = pd.DatetimeIndex(read_calendar(freq))
    tested = pd.DatetimeIndex(scores.index.get_level_values("datetime")).unique().sort_values()
    days = calendar[:0]
    if isinstance(span, list | tuple) and len(span) == 2:
        first, last = (None if each is None else pd.Timestamp(str(each)) for each in span)
        days = calendar[(calendar >= (first or calendar[0])) & (calendar <= (last or calendar[-1]))]
    if not len(days):  # zero-shot: nothing was trained here
        days = tested
    return references_of(scores, names, days, freq)


def about_registered(uri: str, *, tracking_uri: str) -> dict[str, Any]:
    """What a registered model says of itself; raises as `find_registered`."""
    client = open_tracking(tracking_uri)
    version = find_registered(client, uri)
    with registered_folder(client, version) as folder:
        return about_folder(folder, version.uri)
