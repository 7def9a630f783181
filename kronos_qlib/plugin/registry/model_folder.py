"""A model as a folder that needs nothing else: task, weights, and what is known of them.

task.json         sections `model` and `dataset` of the run's task; paths are within the folder
weights/          what fitting left, as `kept_models` writes it; state.json says of what
checkpoint_N/     the checkpoint that the N-th KronosModel starts from, both halves
files_N/          other files that settings name: calibration, sectors, alpha head
about.json        run, versions, digests, label, what was promised, spreads of inputs
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kronos_qlib.errors import ConfigError, MissingArtifactError
from kronos_qlib.markup import cause_of
from kronos_qlib.plugin.runs.kept_models import FOLDER, STATE
from kronos_qlib.plugin.runs.newest_day import ModelSource, make_model
from kronos_qlib.plugin.runs.plain_files import task_json
from kronos_qlib.plugin.task_sections import mapping_of, value_at

TASK, ABOUT = "task.json", "about.json"
INSIDE = "folder:"
"""Before a path that is within the folder."""
MACHINES = (
    "revision",
    "tokenizer_revision",
    "resume_folder",
    "contexts_folder",
    "n_processes",
    "backend",
)
"""Settings of a KronosModel that are left out: of where weights came from, and of the machine."""
LARGEST = 2**24
"""Bytes of a JSON file that is read."""


def write_folder(source: ModelSource, folder: Path, about: Mapping[str, Any]) -> None:
    """Write a model's folder from a run's files.

    Args:
        folder: there, and empty.

    Raises:
        MissingArtifactError: the run keeps its model as a pickle alone.
        CheckpointError: a checkpoint is not to be had, or not the one that the model was made with.
        ConfigError: a file that a setting names is not there.
    """
    if not isinstance(source.state.get("model"), Mapping):
        raise MissingArtifactError(
            f"{source.words} does not keep its model in plain files: run its workflow again with "
            "KronosSignalRecord, which keeps Kronos, LightGBM, linear models and blends of them so"
        )
    task = copy.deepcopy({name: dict(source.task[name]) for name in ("model", "dataset")})
    model = make_model(source)
    for place, (config, made) in enumerate(kronos_models(task["model"], model)):
        _keep_kronos(config, made, folder, place)
    (folder / FOLDER).mkdir()
    for name, data in source.read().items():
        (folder / FOLDER / Path(name).name).write_bytes(data)
    (folder / TASK).write_text(task_json(task), encoding="utf-8")
    text = json.dumps(about, indent=1, allow_nan=False)
    (folder / ABOUT).write_text(text, encoding="utf-8")


def source_of_folder(folder: Path, words: str, *, trust: bool = False) -> ModelSource:
    """What a model's folder holds.

    Args:
        words: what it is, for messages.
        trust: make whatever the task names; without it, known classes alone.

    Raises:
        MissingArtifactError: a file is missing or damaged.
        UnsafeArtifactError: the task names what is not known, and is not trusted.
    """
    task = _read_json(folder / TASK, words)
    if not all(isinstance(task.get(name), Mapping) for name in ("model", "dataset")):
        raise MissingArtifactError(f"{TASK} of {words} has no model or no dataset")
    if not trust:
        from kronos_qlib.plugin.runs.known_tasks import check_known
        from kronos_qlib.plugin.runs.quiet import quiet_imports

        with quiet_imports():
            check_known(task)
    place = folder / FOLDER
    return ModelSource(
        words,
        _outside(task, folder.resolve()),
        _read_json(folder / STATE, words),
        lambda: {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()},
    )


def about_folder(folder: Path, words: str) -> dict[str, Any]:
    """What a model's folder says of itself.

    Raises:
        MissingArtifactError: the file is missing or damaged.
    """
    return _read_json(folder / ABOUT, words)


def kronos_models(config: Any, model: Any) -> Iterator[tuple[dict[str, Any], Any]]:
    """The config of each KronosModel of a task's model, members of blends among them."""
    from kronos_qlib.plugin.blend import BlendModel
    from kronos_qlib.plugin.model import KronosModel

    if isinstance(model, KronosModel):
        yield config, model
    elif isinstance(model, BlendModel):
        members = value_at(config, "kwargs", "members") or []
        for its, member in zip(members, model.members.values(), strict=True):
            yield from kronos_models(its, member)


def _keep_kronos(config: dict[str, Any], model: Any, folder: Path, place: int) -> None:
    """Copy what a KronosModel's settings name, and let them name the copies."""
    from kronos_qlib.inference.options import AUTO
    from kronos_qlib.model.checkpoints.pretrained import is_published
    from kronos_qlib.plugin.model import FIT

    kwargs = config["kwargs"] = dict(mapping_of(config.get("kwargs")))
    if not model.from_scratch and kwargs.get("training") and is_published(model.checkpoint):
        # What published weights are trained with by default: a copy of them has no such default.
        kwargs["training"] = {"preset": "gentle", **kwargs["training"]}
    name = f"checkpoint_{place}"
    kwargs["max_context"] = model.predictor.max_context
    _untrained(model).save_pretrained(str(folder / name))
    kwargs["checkpoint"] = f"{INSIDE}{name}"
    if model.keeps_tokenizer or not model.from_scratch:
        kwargs["tokenizer"] = f"{INSIDE}{name}"
    for key in MACHINES:
        kwargs.pop(key, None)
    files = folder / f"files_{place}"
    if model.calibration not in (None, AUTO, FIT):
        kwargs["calibration"] = _copied(kwargs["calibration"], files)
    if model.alpha_head:
        kwargs["alpha_head"] = _copied(kwargs["alpha_head"], files)
    sectors = model.signal_settings.sectors
    if sectors is not None and sectors.file is not None:
        kwargs["signals"] = copy.deepcopy(dict(kwargs["signals"]))
        kwargs["signals"]["sectors"] = {
            **kwargs["signals"]["sectors"],
            "file": _copied(sectors.file, files),
        }


def _untrained(model: Any) -> Any:
    """The predictor of a KronosModel as its checkpoint has it, without what training changed."""
    other = copy.copy(model)
    other.trained_weights = {}
    other._predictor = other._head = None
    other.kept_calibration = None
    return other.predictor


def _copied(path: str, files: Path) -> str:
    source = Path(path).expanduser()
    files.mkdir(exist_ok=True)
    try:
        if source.is_dir():
            shutil.copytree(source, files / source.name)
        else:
            shutil.copyfile(source, files / source.name)
    except OSError as problem:
        raise ConfigError(
            f"{path}, which the model's settings name, is not there: {problem}"
        ) from (problem)
    return f"{INSIDE}{files.name}/{source.name}"


def _outside(value: Any, folder: Path) -> Any:
    """A task whose paths within the folder are the machine's."""
    if isinstance(value, Mapping):
        return {key: _outside(one, folder) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_outside(one, folder) for one in value]
    if isinstance(value, str) and value.startswith(INSIDE):
        place = (folder / value[len(INSIDE) :]).resolve()
        if not place.is_relative_to(folder):
            raise MissingArtifactError(f"{TASK} names {value!r:.200}, which is outside its folder")
        return str(place)
    return value


def _read_json(path: Path, words: str) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise ValueError(f"it has more than {LARGEST} bytes")
        found = json.loads(data)
        if not isinstance(found, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError, RecursionError) as problem:
        raise MissingArtifactError(
            f"{path.name} of {words} cannot be read: {cause_of(problem)}"
        ) from problem
    return found
