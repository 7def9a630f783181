"""Runs that begin with what they need, and killed ones that do not stay RUNNING.

qlib_init:
  exp_manager:
    class: KronosExpManager
    module_path: kronos_qlib.plugin.runs
    kwargs: {uri: "sqlite:///mlflow.db", default_exp_name: workflow}
"""

from __future__ import annotations

import atexit
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from qlib.config import C
from qlib.workflow import R
from qlib.workflow.exp import MLflowExperiment
from qlib.workflow.expm import MLflowExpManager
from qlib.workflow.recorder import MLflowRecorder, Recorder

from kronos_qlib.errors import RefusedRunError
from kronos_qlib.owners import Owner, is_free, lock_of, private_folder
from kronos_qlib.plugin.runs.quiet import no_git_usage, quiet_libraries

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

HOST, PROCESS, STARTED = (f"kronos_qlib.owner.{part}" for part in ("host", "process", "started"))
"""Tags of a run: the process that it is of."""
ENDED_BY = "kronos_qlib.marked_killed"
"""Tag of a run that another run marked."""

TASK = "task"
"""Under which Qlib's trainer hands a recorder the task, before it makes anything of it."""

WORKFLOW_FILE = "workflow.yaml"
"""Artifact of a run: the file that it was begun by, all values in place."""

_kept: list[tuple[str, list[str]]] = []
"""Texts of workflows that are about to be run, and the ids of their runs."""

_held: dict[str, tuple[FileLock, int]] = {}
"""Locks of runs, and the process that took each: a fork of it has them too, and lets go of none."""


class KronosRecorder(MLflowRecorder):
    """Qlib's, which looks over a task before any work, when Qlib hands it over to be kept."""

    def save_objects(
        self, local_path: Any = None, artifact_path: Any = None, **kwargs: Any
    ) -> None:
        """Qlib's.

        Raises:
            RefusedRunError: what is kept is the run's task, and it would fail later.
        """
        super().save_objects(local_path, artifact_path, **kwargs)
        if TASK in kwargs and artifact_path is None:
            experiment = self.client.get_experiment(self.experiment_id).name
            try:
                check_open_run(self._uri, kwargs[TASK], experiment)
            except RefusedRunError as refused:
                from kronos_qlib.plugin.runs.about_run import NOTE

                self.client.set_tag(self.id, NOTE, str(refused))
                raise


class KronosExperiment(MLflowExperiment):
    """Qlib's, whose new runs are of KronosRecorder."""

    def create_recorder(self, recorder_name: str | None = None) -> KronosRecorder:
        """A recorder of a new run, under Qlib's default name unless one is given."""
        return KronosRecorder(self.id, self._uri, recorder_name or self._default_rec_name)


class KronosExpManager(MLflowExpManager):
    """Qlib's, with four things done where a run begins.

    What would fail later is refused (`check_run`): folders and store before MLflow makes one, since
    `qrun` from another folder would leave an empty one there; what the task says as soon as Qlib
    hands it over, before model and data set are made. Such a run is FAILED, and its description
    says why. The run is tagged with its process, and runs of the experiment that are RUNNING though
    theirs is gone are marked KILLED. And it is tagged with versions and git revision, see
    `about_run`. What other libraries would print meanwhile is kept off the terminal
    (`quiet_libraries`).
    """

    def create_exp(self, experiment_name: str | None = None) -> KronosExperiment:
        """A new experiment in the store."""
        return self._ours(super().create_exp(experiment_name))

    def _get_exp(self, *args: Any, **kwargs: Any) -> KronosExperiment:
        return self._ours(super()._get_exp(*args, **kwargs))

    def _ours(self, found: MLflowExperiment) -> KronosExperiment:
        return KronosExperiment(found.id, found.name, self.uri)

    def _start_exp(self, **kwargs: Any) -> Any:
        quiet_libraries()
        check_open_run(self.uri)
        from kronos_qlib.plugin.runs.about_run import tag_versions

        with no_git_usage():
            experiment = super()._start_exp(**kwargs)
        claim_run(experiment.active_recorder)
        tag_versions(experiment.active_recorder)
        _keep_workflow(experiment.active_recorder)
        return experiment

    def _end_exp(self, *args: Any, **kwargs: Any) -> None:
        experiment = self.active_experiment
        recorder = experiment.active_recorder if experiment is not None else None
        super()._end_exp(*args, **kwargs)
        if recorder is not None:
            _release(recorder.id)


def check_open_run(uri: str, task: Any = None, experiment: str | None = None) -> None:
    """`check_run` with Qlib's settings as `qlib.init` left them.

    Args:
        uri: of the run's store.
        task: of the run, None while it is not known.
        experiment: the name of the run's.

    Raises:
        RefusedRunError: as `check_run`.
    """
    from kronos_qlib.plugin.preflight.checks import check_run
    from kronos_qlib.plugin.preflight.planned_run import RUN_SETTINGS

    init = {key: C[key] for key in RUN_SETTINGS if key in C}
    init["exp_manager"] = {"kwargs": {"uri": uri}}
    check_run({"qlib_init": init, "task": task, "experiment_name": experiment})


@contextmanager
def keeping_workflow(text: str) -> Iterator[list[str]]:
    """Runs that begin in the block keep this text as WORKFLOW_FILE; yields their ids as they do."""
    run_ids: list[str] = []
    _kept.append((text, run_ids))
    try:
        yield run_ids
    finally:
        _kept.pop()


def _keep_workflow(recorder: Recorder) -> None:
    if not _kept or not isinstance(recorder, MLflowRecorder) or recorder.id is None:
        return
    text, run_ids = _kept[-1]
    recorder.client.log_text(recorder.id, text, WORKFLOW_FILE)
    run_ids.append(recorder.id)


def claim_run(recorder: Recorder) -> None:
    """Tag a run with this process, and mark killed runs of its experiment.

    Of what MLflow refuses nothing but a warning comes: a run is not lost by it.
    """
    if not isinstance(recorder, MLflowRecorder) or recorder.id is None or recorder.id in _held:
        return
    try:
        _claim(recorder.client, recorder.id)
        mark_killed_runs(recorder.client, recorder.experiment_id)
    except Exception as problem:  # of MLflow's, sqlite's, the network's
        logger.warning("the runs before this one were not looked at: %s", problem)


def claim_active_run() -> None:
    """The same for the run that Qlib has open, if any, where its manager is not ours; and a name
    for it, since by now its task is known."""
    if not getattr(C, "registered", False):
        return
    experiment = R.exp_manager.active_experiment
    if experiment is not None and experiment.active_recorder is not None:
        from kronos_qlib.plugin.runs.about_run import name_run

        claim_run(experiment.active_recorder)
        name_run(experiment.active_recorder)


def _claim(client: MlflowClient, run_id: str) -> None:
    place = _lock_path(run_id)
    if place is not None:  # before the tags: another process that sees them finds the lock taken
        _held[run_id] = lock_of(place), os.getpid()
    owner = Owner.here()
    tags = {HOST: owner.host, PROCESS: str(owner.process), STARTED: owner.started}
    for name, value in tags.items():
        client.set_tag(run_id, name, value)


def _release(run_id: str) -> None:
    lock, process = _held.pop(run_id, (None, 0))
    if lock is not None and process == os.getpid():
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


@atexit.register
def _release_all() -> None:
    for run_id in list(_held):
        _release(run_id)


def mark_killed_runs(client: MlflowClient, experiment_id: str) -> list[str]:
    """Mark runs KILLED that MLflow has as RUNNING and whose process is gone, and say so.

    A process is gone if it was this user's on this machine, its lock is free and no process has its
    number and start. Of any other run nothing is changed: it may be at work elsewhere.

    Returns:
        Their ids.
    """
    running = client.search_runs(
        [experiment_id], filter_string="attributes.status = 'RUNNING'", max_results=1000
    )
    marked = []
    for run in running:
        run_id = run.info.run_id
        if run_id in _held:
            continue
        if not owner_is_gone(run):
            logger.info("run %s is RUNNING in MLflow too: at work elsewhere, or killed", run_id)
            continue
        tags = run.data.tags
        client.set_tag(run_id, ENDED_BY, "its process was gone")
        client.set_terminated(run_id, "KILLED")
        place = _lock_path(run_id)
        if place is not None:
            place.unlink(missing_ok=True)
        logger.warning(
            "run %s stayed RUNNING in MLflow, but its process %s on %s is gone, killed or out of "
            "memory: it is marked KILLED",
            run_id,
            tags[PROCESS],
            tags[HOST],
        )
        marked.append(run_id)
    return marked


def owner_is_gone(run: Run) -> bool:
    """Whether the process that a run is tagged with is gone for sure."""
    tags = run.data.tags
    if not tags.get(PROCESS, "").isdecimal() or HOST not in tags:
        return False
    place = _lock_path(run.info.run_id)
    if place is None or not is_free(place):
        return False
    return not Owner(tags[HOST], int(tags[PROCESS]), tags.get(STARTED, "")).is_alive


def _lock_path(run_id: str) -> Path | None:
    folder = private_folder("runs")
    # Ids come out of a store that others may write to.
    return folder / f"{run_id}.lock" if folder and re.fullmatch(r"\w{1,64}", run_id) else None
