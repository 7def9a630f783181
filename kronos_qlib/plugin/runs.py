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
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from qlib.config import C
from qlib.workflow import R
from qlib.workflow.expm import MLflowExpManager
from qlib.workflow.recorder import MLflowRecorder, Recorder

from kronos_qlib.errors import ConfigError
from kronos_qlib.owners import Owner, is_free, lock_of, private_folder
from kronos_qlib.plugin.quiet import no_git_usage, quiet_libraries
from kronos_qlib.plugin.task_checks import check_task

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

HOST, PROCESS, STARTED = (f"kronos_qlib.owner.{part}" for part in ("host", "process", "started"))
"""Tags of a run: the process that it is of."""
ENDED_BY = "kronos_qlib.marked_killed"
"""Tag of a run that another run marked."""

_held: dict[str, tuple[FileLock, int]] = {}
"""Locks of runs, and the process that took each: a fork of it has them too, and lets go of none."""


class KronosExpManager(MLflowExpManager):
    """Qlib's, with four things done where a run begins.

    A folder of bars that is not there is refused before MLflow makes a store: `qrun` from another
    folder would leave an empty one there, and a run without bars. The run is tagged with its
    process, and runs of the experiment that are RUNNING though theirs is gone are marked KILLED.
    It is tagged with versions and git revision, see `about_run`. And a task is checked as soon as
    Qlib keeps it with the run, before its model and data set are made (`check_task`). What other
    libraries would print meanwhile is kept off the terminal (`quiet_libraries`).
    """

    def _start_exp(self, **kwargs: Any) -> Any:
        quiet_libraries()
        check_provider()
        from kronos_qlib.plugin.about_run import tag_versions

        with no_git_usage():
            experiment = super()._start_exp(**kwargs)
        claim_run(experiment.active_recorder)
        _check_tasks_of(experiment.active_recorder)
        tag_versions(experiment.active_recorder)
        return experiment

    def _end_exp(self, *args: Any, **kwargs: Any) -> None:
        experiment = self.active_experiment
        recorder = experiment.active_recorder if experiment is not None else None
        super()._end_exp(*args, **kwargs)
        if recorder is not None:
            _release(recorder.id)


def check_provider() -> None:
    """
    Raises:
        ConfigError: a folder of bars on this machine is not there, or is none of Qlib's; says where
            it was looked for.
    """
    for freq, uri in C.provider_uri.items():
        if C.dpm.get_uri_type(uri) != C.LOCAL_URI:
            continue
        folder = Path(C.dpm.get_data_uri(freq)).absolute()
        if (folder / "calendars").is_dir():
            continue
        what = "holds no calendars/, so it is no Qlib folder" if folder.exists() else "is not there"
        raise ConfigError(
            f"the folder of bars {folder} {what}. A relative provider_uri is looked for from the "
            f"folder that qrun is started in, {Path.cwd()}: start it where the bars lie, or give "
            "their whole path (KRONOS_PROVIDER_URI in the workflows here). Nothing was written"
        )


def _check_tasks_of(recorder: Recorder) -> None:
    """Check the task that a recorder is given to keep: Qlib's manager is not told of it."""
    keep = recorder.save_objects

    def save_objects(*args: Any, **kwargs: Any) -> None:
        if isinstance(kwargs.get("task"), Mapping):
            check_task(kwargs["task"])
        keep(*args, **kwargs)

    recorder.save_objects = save_objects


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
    for it, since by now its task is known: it is checked too.

    Raises:
        ConfigError, MissingDependencyError: as of `check_task`.
    """
    if not getattr(C, "registered", False):
        return
    experiment = R.exp_manager.active_experiment
    if experiment is not None and experiment.active_recorder is not None:
        from kronos_qlib.plugin.about_run import name_run
        from kronos_qlib.plugin.artifacts import load_task

        claim_run(experiment.active_recorder)
        name_run(experiment.active_recorder)
        if not isinstance(R.exp_manager, KronosExpManager):  # which has done so
            check_task(load_task(experiment.active_recorder))


def _claim(client: MlflowClient, run_id: str) -> None:
    place = _lock_path(run_id)
    if place is not None:  # before the tags: whoever sees them finds the lock taken
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
