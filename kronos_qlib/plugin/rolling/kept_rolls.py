"""Trainings that were finished, in a folder: a start after a kill does the missing ones alone.

FOLDER/<key>/weights/   what fitting left, as `kept_models` writes it
FOLDER/<key>/about.json its segments, for whoever looks
FOLDER/contexts/        contexts of frozen backbones, which all trainings share
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from qlib.data.dataset.handler import DataHandlerLP

from kronos_qlib.data.windows.segments import places_of
from kronos_qlib.data.windows.window_dataset import WindowDataset
from kronos_qlib.errors import MissingArtifactError
from kronos_qlib.files import recover, replacing
from kronos_qlib.plugin.blend import BlendModel
from kronos_qlib.plugin.dataset import source_of
from kronos_qlib.plugin.rolling.retraining import reads_windows
from kronos_qlib.plugin.runs.about_run import frame_digest
from kronos_qlib.plugin.runs.kept_models import FOLDER, KeptModel
from kronos_qlib.plugin.runs.plain_files import task_json
from kronos_qlib.version import __version__

CONTEXTS = "contexts"
STATE, ABOUT = "state.json", "about.json"


class RollStore:
    """Finished trainings in a folder, by keys of all that decides them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, key: str) -> KeptModel | None:
        """A training's result; None where it was not finished.

        Raises:
            MissingArtifactError: its files are damaged.
        """
        place = self.folder / key
        recover(place)
        if not place.is_dir():
            return None
        try:
            state = json.loads((place / FOLDER / STATE).read_text(encoding="utf-8"))
            files = {
                path.name: path.read_bytes()
                for path in (place / FOLDER).iterdir()
                if path.name != STATE
            }
            return KeptModel(dict(state), files)
        except (OSError, ValueError, TypeError) as problem:
            raise MissingArtifactError(
                f"{place} cannot be read ({problem}): move it away, and it is trained again"
            ) from problem

    def keep(self, key: str, kept: KeptModel, about: Mapping[str, Any]) -> None:
        """Keep a training's result, whole or not at all. What has no plain files is not kept."""
        if kept.state is None:
            return
        with replacing(self.folder / key) as draft:
            (draft / FOLDER).mkdir(parents=True)
            for name, data in kept.files.items():
                (draft / FOLDER / name).write_bytes(data)
            state = json.dumps(dict(kept.state), indent=1)
            (draft / FOLDER / STATE).write_text(state, encoding="utf-8")
            (draft / ABOUT).write_text(json.dumps(dict(about), indent=1), encoding="utf-8")


def key_of(config: Mapping[str, Any], facts: Mapping[str, Any], learned: str, before: str) -> str:
    """The key of a training.

    Args:
        config: the model's section of the task.
        facts: segments, and how it is trained again.
        learned: digest of what it learns from.
        before: the key of the training before, where it goes on from that; else "".
    """
    parts = (__version__, task_json(dict(config)), json.dumps(facts, sort_keys=True))
    return hashlib.sha256("\n".join((*parts, learned, before)).encode()).hexdigest()[:24]


def learned_digest(model: Any, dataset: Any) -> str:
    """A digest of all that a model would learn from: nothing after the end of train and valid."""
    if isinstance(model, BlendModel):
        data = [(one, model.dataset_of(name, dataset)) for name, one in model.members.items()]
    else:
        data = [(model, dataset)]
    found = hashlib.sha256()
    for one, own in data:
        if reads_windows(one):
            _of_windows(one, source_of(own, reader=type(one).__name__), found)
        else:
            _of_tables(own, found)
    return found.hexdigest()


def _of_windows(model: Any, source: WindowDataset, found: Any) -> None:
    """Bars to the end of what is learned; windows, labels and columns."""
    table = source.table
    last = max(places_of(table.calendar, *source.bounds(name))[1] for name in ("train", "valid"))
    rows = table.places < last
    for part in (table.values[rows], table.places[rows], table.instrument_of(np.flatnonzero(rows))):
        found.update(np.ascontiguousarray(part).data)
    found.update(table.calendar[:last].tobytes())
    settings = (source.lookback, source.horizon, source.min_bars, source.max_age_days)
    found.update(repr([list(table.instruments), settings]).encode())
    alpha = getattr(getattr(model, "training", None), "alpha", model.training)
    columns = tuple(getattr(alpha, "features", ()))
    for name in ("train", "valid"):
        windows = source.labelled_windows(name)
        found.update(np.ascontiguousarray(windows.ends[:]).data)
        found.update(np.ascontiguousarray(source.label.of(windows)).data)
        found.update(np.ascontiguousarray(source.feature_values(windows, columns)).data)


def _of_tables(dataset: Any, found: Any) -> None:
    for name in ("train", "valid"):
        frame = dataset.prepare(name, col_set=["feature", "label"], data_key=DataHandlerLP.DK_L)
        found.update(frame_digest(frame).encode())
