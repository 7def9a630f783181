"""What a workflow's run will write: where, whether it can, and about how much."""

from __future__ import annotations

import math
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np

from kronos_qlib.data.windows.segments import bounds_of, places_of
from kronos_qlib.errors import ConfigError, KronosError
from kronos_qlib.plugin.preflight.planned_run import PlannedRun
from kronos_qlib.plugin.rolling.retraining import RetrainConfig
from kronos_qlib.plugin.task_sections import mapping_of, value_at

QRUN_STORE = "mlruns"
"""Where qrun keeps runs by default, from the working folder."""
SQLITE = "sqlite:///"

PAGES_BYTES = 20 * 2**20
"""Of a run's reports, figures and pages."""
SCORE_BYTES = 200
"""Of one score: pred.pkl, label.pkl, their Parquet copies, and about ten signals beside it."""
STATE_WEIGHTS = 12
"""Times the weights that a resume folder holds: weights, the best ones and the optimizer's two
moments, in the two states that are kept and the one that is being written."""


def why_unwritable(folder: Path) -> str:
    """Why no file can be made in a folder, which may be yet to be made; "" where one can."""
    place = _nearest(folder)
    if not place.is_dir():
        return f"{place} is no folder"
    try:
        # The rights of files are not the whole answer: disks are full, mounted read-only, or
        # Windows'. On Linux this file has no name and nothing is seen of it.
        with tempfile.TemporaryFile(dir=place):
            return ""
    except OSError as problem:
        return f"{place}: {problem.strerror or problem}"


def outputs_of(run: PlannedRun) -> list[tuple[str, Path]]:
    """Folders that MLflow writes in, the one of artifacts last; [] for a store elsewhere.

    Raises:
        ConfigError: the file of a store is a folder, or may not be written.
    """
    given = value_at(run.init, "exp_manager", "kwargs", "uri")
    uri = str(given or Path.cwd() / QRUN_STORE)
    what = f"the MLflow store {uri}"
    if uri.startswith(SQLITE):
        file = Path(uri.removeprefix(SQLITE).partition("?")[0])
        found = [(what, file.absolute().parent)]
        if file.is_dir():
            raise ConfigError(f"{what} names a folder: name a file in it, {uri}/mlflow.db")
        if file.exists() and not os.access(file, os.W_OK):
            raise ConfigError(f"{what} cannot be written: change its rights, or name another")
        kept = _artifacts_of(file, run.experiment)
        folder = _local(kept) if kept else Path.cwd() / QRUN_STORE
        return [*found, ("the MLflow artifacts", folder)] if folder else found
    folder = _local(uri)
    return [(what, folder)] if folder else []


def _artifacts_of(file: Path, experiment: Any) -> str | None:
    """Where an experiment of a store keeps its files; None for a new one, or another's format."""
    if not isinstance(experiment, str) or not file.is_file():
        return None
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as store:
            asked = "SELECT artifact_location FROM experiments WHERE name = ?"
            row = store.execute(asked, (experiment,)).fetchone()
    except sqlite3.Error:  # MLflow will say what is wrong with it
        return None
    return str(row[0]) if row and row[0] else None


def _local(uri: str) -> Path | None:
    """The folder of a file: URI or a path, None for a URI of something else."""
    parts = urlsplit(uri)
    if parts.scheme == "file":
        return Path(url2pathname(parts.path)).absolute()
    if len(parts.scheme) > 1:  # one letter is a drive
        return None
    return Path(uri).absolute()


def _nearest(folder: Path) -> Path:
    """A path itself, or the nearest one above it that is there."""
    return next((each for each in (folder, *folder.parents) if each.exists()), folder)


KEPT_IN = ("resume_folder", "contexts_folder")
"""Settings of a model that name folders in which it keeps states of its training, and contexts."""


def kept_folders(run: PlannedRun) -> list[tuple[str, Path]]:
    """Such folders of the run's models, those of finished rolls too, and the setting of each."""
    models = run.settings_of("KronosModel", "GRUModel")
    named = [(name, model.get(name)) for model in models for name in KEPT_IN]
    named += [("folder", model.get("folder")) for model in run.settings_of("RollingModel")]
    return [(name, Path(str(each)).expanduser().absolute()) for name, each in named if each]


def halves_of(model: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    """Predictor and tokenizer of a KronosModel's settings: role, name, revision."""
    checkpoint = str(model.get("checkpoint") or "nano")
    return [
        ("predictor", checkpoint, model.get("revision")),
        ("tokenizer", str(model.get("tokenizer") or checkpoint), model.get("tokenizer_revision")),
    ]


def _bytes_of_weights(model: Mapping[str, Any]) -> int:
    """Of the halves that training changes, as far as it is known without the Hub."""
    from kronos_qlib.model.checkpoints.pretrained import check_there

    training = mapping_of(model.get("training"))
    total = 0
    for half in halves_of(model):
        if half[0] == "predictor" or training.get(half[0]):
            with suppress(KronosError, OSError):  # which `_checkpoints` says
                total += check_there(*half)
    return total


def _bytes_of_scores(run: PlannedRun) -> int:
    total = 0
    for data in run.data[:1]:
        names = data.universe
        if names and data.is_sound:
            start, stop = places_of(data.calendar, *bounds_of(data.segments, "test"))
            total += SCORE_BYTES * len(names) * (stop - start)
    return total


def _trainings(run: PlannedRun) -> tuple[int, Any]:
    """How often the run trains its model, and where a RollingModel keeps each training."""
    rolling, data = run.settings_of("RollingModel"), run.data[:1]
    if not rolling or not data or not data[0].is_tested:
        return 1, None
    start, stop = places_of(data[0].calendar, *bounds_of(data[0].segments, "test"))
    days = len(np.unique(data[0].calendar[start:stop].astype("datetime64[D]")))
    every = rolling[0].get("every", RetrainConfig.every)
    is_number = type(every) is int and every > 0  # what else it is, another check says
    return math.ceil(days / every) if is_number else 1, rolling[0].get("folder")


def short_of_disk(run: PlannedRun) -> Iterator[str]:
    """A line for each disk that has less free space than the run is estimated to write."""
    store = [folder for _, folder in outputs_of(run)]
    needs: list[tuple[Path, int]] = []
    if store:
        needs.append((store[-1], PAGES_BYTES + _bytes_of_scores(run)))
    trainings, kept_in = _trainings(run)
    for model in run.models:
        if not model.get("training"):
            continue
        weights = _bytes_of_weights(model)
        # In params.pkl those of all trainings, and as plain files the newest one's.
        needs += [(store[-1], (trainings + 1) * weights)] if store else []
        states = trainings * STATE_WEIGHTS * weights  # each training's in a folder of its own
        for folder, size in (
            (model.get("resume_folder"), states),
            (kept_in, trainings * weights),
        ):
            if folder:
                needs.append((Path(str(folder)).expanduser().absolute(), size))
    disks: dict[int, tuple[Path, int]] = {}
    for folder, needed in needs:
        if (place := _nearest(folder)).is_dir():
            device = place.stat().st_dev
            before = disks.get(device, (place, 0))
            disks[device] = (before[0], before[1] + needed)
    for place, needed in disks.values():
        if (free := shutil.disk_usage(place).free) < needed:
            yield (
                f"{place} has {free / 2**20:,.0f} MiB free, and the run writes about "
                f"{needed / 2**20:,.0f} MiB: free some space, or name another folder for its store"
            )
