"""The finished runs of an MLflow store, each with its measures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from kronos_qlib.plugin.runs.stored_runs import COMPARED, is_stored_finite

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MOST_RUNS = 300
"""Newest runs that a list has."""


@dataclass(frozen=True)
class ListedRun:
    """One finished run."""

    run_id: str
    experiment: str
    title: str
    """MLflow's name of the run, "" for none."""
    is_latest: bool
    """Whether it is the experiment's newest: its experiment's name then stands for it."""
    finished: datetime | None
    """UTC."""
    metrics: Mapping[str, float | None]
    """By columns of `stored_runs.COMPARED`; None where the run has none that is a number."""


def list_runs(client: MlflowClient, most: int = MOST_RUNS) -> list[ListedRun]:
    """The newest finished runs of all experiments, newest first."""
    names = {each.experiment_id: each.name for each in client.search_experiments()}
    if not names:
        return []
    runs = client.search_runs(
        list(names),
        filter_string="attributes.status = 'FINISHED'",
        order_by=["attributes.start_time DESC"],
        max_results=most,
    )
    seen: set[str] = set()
    found = []
    for run in runs:
        experiment = names[run.info.experiment_id]
        found.append(_listed(run, experiment, experiment not in seen))
        seen.add(experiment)
    return found


def _listed(run: Run, experiment: str, is_latest: bool) -> ListedRun:
    metrics = run.data.metrics
    ended = run.info.end_time
    return ListedRun(
        run_id=run.info.run_id,
        experiment=experiment,
        title=run.info.run_name or "",
        is_latest=is_latest,
        finished=None if not ended else datetime.fromtimestamp(ended / 1000, timezone.utc),
        metrics={
            column: metrics[name] if name in metrics and is_stored_finite(metrics[name]) else None
            for column, name in COMPARED.items()
        },
    )
