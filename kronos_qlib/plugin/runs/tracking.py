"""Finished runs of an MLflow store, found by experiment or id."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from kronos_qlib.errors import ConfigError, MissingArtifactError, some_of
from kronos_qlib.markup import one_line

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run


def open_tracking(tracking_uri: str) -> MlflowClient:
    """A client for a store that exists already; MLflow would create an empty one in silence.

    Raises:
        ConfigError: there is no such database, or MLflow cannot open it.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    path = sqlite_path(tracking_uri)
    if path is not None and not path.is_file():
        raise ConfigError(
            f"no MLflow database at {path.absolute()}; run a workflow first, or give the "
            "tracking URI it was run with"
        )
    try:
        return MlflowClient(tracking_uri=tracking_uri)
    except MlflowException as refusal:
        raise ConfigError(
            f"MLflow cannot open {tracking_uri!r}: {one_line(str(refusal))}"
        ) from refusal


def sqlite_path(tracking_uri: str) -> Path | None:
    """The file behind `sqlite:///...`; None for any other store."""
    scheme, separator, path = tracking_uri.partition(":///")
    return Path(path) if separator and scheme.partition("+")[0] == "sqlite" else None


def latest_finished(client: MlflowClient, experiment: str) -> Run:
    """The run of an experiment that started last, among those that finished."""
    return next(finished_runs(client, experiment))


def finished_runs(client: MlflowClient, experiment: str) -> Iterator[Run]:
    """The finished runs of an experiment, those that started last first: one at least.

    Raises:
        ConfigError: no such experiment.
        MissingArtifactError: none of its runs finished.
    """
    found = client.get_experiment_by_name(experiment)
    if found is None or found.lifecycle_stage != "active":
        # Names that others chose, in a message for a terminal.
        known = [one_line(each.name) for each in client.search_experiments()]
        near = get_close_matches(experiment, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
        raise ConfigError(f"no MLflow experiment {experiment!r}; {hint}")
    finished, page = 0, None
    while page != "":
        runs = client.search_runs(
            [found.experiment_id],
            filter_string="attributes.status = 'FINISHED'",
            order_by=["attributes.start_time DESC"],
            max_results=50,
            page_token=page,
        )
        yield from runs
        finished, page = finished + len(runs), runs.token or ""
    if not finished:
        last = "".join(f" (its last {status})" for status in _unfinished(client, found, 0)[:1])
        raise MissingArtifactError(
            f"experiment {experiment!r} has no finished run{last}; run its workflow to the end "
            "first"
        )


def unfinished_notes(client: MlflowClient, experiments: Sequence[str]) -> list[str]:
    """Which runs began after the one that is compared and did not finish: a note for each
    experiment that has such."""
    notes = []
    for name in dict.fromkeys(experiments):
        since = latest_finished(client, name).info.start_time
        statuses = _unfinished(client, client.get_experiment_by_name(name), since)
        if statuses:
            notes.append(f"{name}: not compared, as unfinished: {some_of(statuses)}.")
    return notes


def _unfinished(client: MlflowClient, experiment: Experiment, since: int) -> list[str]:
    """Runs that began at this time (ms) or later and did not finish, the last first: id, status."""
    runs = client.search_runs(
        [experiment.experiment_id],
        filter_string=f"attributes.status != 'FINISHED' AND attributes.start_time >= {since}",
        order_by=["attributes.start_time DESC"],
        max_results=100,
    )
    return [f"run {run.info.run_id[:8]} is {run.info.status}" for run in runs]


def finished_run(client: MlflowClient, run_id: str) -> Run:
    """One run by its id, or by the beginning of it that is printed, if it finished.

    Raises:
        ConfigError: no run's id begins like this, or several do.
        MissingArtifactError: the run did not finish.
    """
    known = [each.experiment_id for each in client.search_experiments()]
    found: list[Run] = []
    page: str | None = None
    while page != "":
        runs = client.search_runs(known, page_token=page)  # a thousand at a time
        found += [run for run in runs if run.info.run_id.startswith(run_id)]
        page = runs.token or ""
    if len(found) != 1:
        raise ConfigError(
            f"no MLflow run {run_id!r}"
            if not found
            else f"{len(found)} MLflow runs begin with {run_id!r}; give more of the id"
        )
    run = found[0]
    if run.info.status != "FINISHED":
        raise MissingArtifactError(
            f"run {run_id!r} is {run.info.status}, and only finished runs compare"
        )
    return run


def find_run(client: MlflowClient, run: str) -> Run:
    """A finished run by its experiment's name, for the newest, or by its id or the id's beginning.

    Raises:
        ConfigError: there is no such experiment or run.
        MissingArtifactError: it did not finish.
    """
    known = client.get_experiment_by_name(run)
    is_experiment = known is not None and known.lifecycle_stage == "active"
    if is_experiment or not re.fullmatch(r"[0-9a-f]{4,32}", run):
        return latest_finished(client, run)
    return finished_run(client, run)
