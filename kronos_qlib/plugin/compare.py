"""Runs of several models side by side, from what their records left in MLflow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from kronos_qlib.errors import ConfigError, MissingArtifactError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

COMPARED = {
    "ic": "IC",
    "icir": "ICIR",
    "rank_ic": "Rank IC",
    "rank_icir": "Rank ICIR",
    "excess_return": "1day.excess_return_with_cost.annualized_return",
    "information_ratio": "1day.excess_return_with_cost.information_ratio",
    "sharpe": "sharpe",
    "max_drawdown": "max_drawdown",
    "turnover": "turnover",
}
"""Columns of the comparison and the MLflow metric behind each, all after cost.

`excess_return` and `information_ratio` are Qlib's: returns summed, not compounded, and 238 days
to a year. `sharpe` is PortfolioReportRecord's, with 252 unless its workflow says otherwise.
"""

# MLflow's SQL stores keep no infinity: they write the largest float64 in its place.
LARGEST_STORED = 1.7e308


def compare_runs(
    experiments: Sequence[str] = (), *, tracking_uri: str, run_ids: Sequence[str] = ()
) -> pd.DataFrame:
    """Set the latest finished run of each experiment, and the runs named, side by side.

    Args:
        experiments: MLflow experiment names.
        tracking_uri: where MLflow keeps them, as `sqlite:///mlflow.db`.
        run_ids: runs to add after those, each finished.

    Returns:
        A row per run in the order asked, on "run": the experiment's name, or
        "experiment/first 8 letters of the id" for a run asked for by id. Columns: those of
        COMPARED; `wall_seconds` from the run's start to its end, training included; `run_id`.

    Raises:
        ConfigError: no such database, experiment or run, or nothing to compare.
        MissingArtifactError: an experiment has no finished run, a run did not finish, or a metric
            is missing or no finite number.
    """
    if not experiments and not run_ids:
        raise ConfigError("nothing to compare: name an experiment or a run id")
    client = open_tracking(tracking_uri)
    runs = {name: latest_finished(client, name) for name in experiments}
    for run_id in run_ids:
        run = finished_run(client, run_id)
        experiment = client.get_experiment(run.info.experiment_id).name
        runs[f"{experiment}/{run_id[:8]}"] = run
    rows = [row_of(label, run) for label, run in runs.items()]
    return pd.DataFrame(rows, index=pd.Index(list(runs), name="run"))


def open_tracking(tracking_uri: str) -> MlflowClient:
    """A client for a store that exists already; MLflow would create an empty one in silence."""
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
        raise ConfigError(f"MLflow cannot open {tracking_uri!r}: {_one_line(refusal)}") from refusal


def sqlite_path(tracking_uri: str) -> Path | None:
    """The file behind `sqlite:///...`; None for any other store."""
    scheme, separator, path = tracking_uri.partition(":///")
    return Path(path) if separator and scheme.partition("+")[0] == "sqlite" else None


def latest_finished(client: MlflowClient, experiment: str) -> Run:
    """The run of an experiment that started last, among those that finished."""
    found = client.get_experiment_by_name(experiment)
    if found is None or found.lifecycle_stage != "active":
        known = [each.name for each in client.search_experiments()]
        near = get_close_matches(experiment, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
        raise ConfigError(f"no MLflow experiment {experiment!r}; {hint}")
    runs = client.search_runs(
        [found.experiment_id],
        filter_string="attributes.status = 'FINISHED'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    if not runs:
        raise MissingArtifactError(
            f"experiment {experiment!r} has no finished run; run its workflow to the end first"
        )
    return runs[0]


def finished_run(client: MlflowClient, run_id: str) -> Run:
    """One run by its id, or by the beginning of it that is printed, if it finished."""
    experiments = [each.experiment_id for each in client.search_experiments()]
    found = [run for run in client.search_runs(experiments) if run.info.run_id.startswith(run_id)]
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


def row_of(label: str, run: Run) -> dict[str, object]:
    """A run's row of the table."""
    missing = [name for name in COMPARED.values() if name not in run.data.metrics]
    if missing:
        raise MissingArtifactError(
            f"{label!r}: run {run.info.run_id} has no metric {', '.join(missing)}; its workflow "
            "needs SigAnaRecord, PortAnaRecord and PortfolioReportRecord"
        )
    row: dict[str, object] = {}
    for column, name in COMPARED.items():
        row[column] = value = run.data.metrics[name]
        if not is_stored_finite(value):
            raise MissingArtifactError(
                f"{label!r}: run {run.info.run_id} has {name} = {value:g}, no finite number; with "
                "RunCheckRecord last in its workflow such a run fails"
            )
    row["wall_seconds"] = (run.info.end_time - run.info.start_time) / 1000  # MLflow keeps ms
    row["run_id"] = run.info.run_id
    return row


def is_stored_finite(value: float) -> bool:
    """Whether a metric read back from MLflow was a finite number when it was logged."""
    return math.isfinite(value) and abs(value) < LARGEST_STORED


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
