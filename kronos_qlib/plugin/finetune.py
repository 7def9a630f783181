"""Finetuning by a configuration file alone: a workflow's model and data set, no backtest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from kronos_qlib.data.dataset import WindowDataset
from kronos_qlib.errors import ConfigError
from kronos_qlib.plugin.dataset import KronosDataset
from kronos_qlib.plugin.model import KronosModel

SECTIONS = ("model", "dataset")


def finetune(
    config: str | Path, out: str | Path, changes: Sequence[str] = ()
) -> dict[str, list[dict[str, float]]]:
    """Train what `task.model` of a workflow file asks for, on its `task.dataset`, and save it.

    Args:
        config: a workflow as `qrun` takes it, jinja and `BASE_CONFIG_PATH` included; or one without
            `qlib_init` whose `task.dataset` is `{from_file: bars.csv, segments: {…}, …}`, the
            arguments of `WindowDataset.from_file`.
        out: folder for the result: predictor, tokenizer, alpha where there is a head, and in last
            the same after the last epoch.
        changes: "training.predictor.epochs=3": settings of the model by their path, in YAML.

    Returns:
        The history of each stage.

    Raises:
        ConfigError: a section or a setting is missing, unknown or cannot work.
    """
    settings = _read(Path(config))
    task = settings.get("task")
    missing = [name for name in SECTIONS if name not in (task or {})]
    if not isinstance(task, Mapping) or missing:
        raise ConfigError(f"{config} lacks task.{' and task.'.join(missing or SECTIONS)}")
    dataset = _dataset(settings, task["dataset"], Path(config))
    model = _model(task["model"], changes, config)
    if model.training.is_zero_shot:
        raise ConfigError(f"{config} trains nothing: its model has no setting `training`")
    model.fit(dataset)
    from kronos_qlib.training.distributed import process_rank

    if process_rank() == 0:
        model.save_pretrained(str(out))
    return model.history


def _read(path: Path) -> dict[str, Any]:
    """A workflow file as Qlib reads it."""
    from qlib.cli.run import render_template
    from qlib.utils.data import update_config

    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    try:
        found = _load(render_template(str(path)))
        if isinstance(found, Mapping) and (base := found.get("BASE_CONFIG_PATH")):
            place = Path(base) if Path(base).exists() else path.resolve().parent / base
            found = update_config(_load(place.read_text(encoding="utf-8")), found)
    except (YAMLError, OSError) as problem:
        raise ConfigError(f"{path} cannot be read: {problem}") from problem
    if not isinstance(found, Mapping):
        raise ConfigError(f"{path} holds no sections")
    return dict(found)


def _load(text: str) -> Any:
    # Qlib's own reader, of YAML 1.2: to PyYAML 1e-5 is a text.
    return YAML(typ="safe", pure=True).load(text)


def _dataset(
    settings: Mapping[str, Any], section: Mapping[str, Any], config: Path
) -> KronosDataset | WindowDataset:
    if "from_file" in section:
        rest = {key: value for key, value in section.items() if key != "from_file"}
        if "segments" not in rest:
            raise ConfigError(f"{config}: task.dataset with from_file needs segments")
        return WindowDataset.from_file(section["from_file"], **rest)
    if "qlib_init" not in settings:
        raise ConfigError(
            f"{config} has neither qlib_init nor task.dataset.from_file: where are the bars?"
        )
    import qlib
    from qlib.utils import init_instance_by_config

    qlib.init(**settings["qlib_init"])
    dataset: KronosDataset = init_instance_by_config(section)
    return dataset


def _model(section: Mapping[str, Any], changes: Sequence[str], config: str | Path) -> KronosModel:
    if section.get("class") != KronosModel.__name__:
        raise ConfigError(f"{config}: task.model is {section.get('class')!r}, not KronosModel")
    kwargs = dict(section.get("kwargs") or {})
    for change in changes:
        path, is_set, text = change.partition("=")
        *names, last = path.strip().split(".")
        if not is_set or not last:
            raise ConfigError(f"a change is PATH=VALUE, such as seed=1, got {change!r}")
        place = kwargs
        for name in names:
            inner = dict(place.get(name) or {})
            place[name] = inner
            place = inner
        place[last] = _load(text)
    try:
        return KronosModel(**kwargs)
    except TypeError as unknown:
        raise ConfigError(f"{config}: task.model.kwargs: {unknown}") from unknown
