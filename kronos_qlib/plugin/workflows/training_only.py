"""Finetuning by a configuration file alone: a workflow's model and data set, no backtest."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kronos_qlib.data.windows.window_dataset import WindowDataset
from kronos_qlib.errors import ConfigError
from kronos_qlib.plugin.dataset import KronosDataset
from kronos_qlib.plugin.model import KronosModel
from kronos_qlib.plugin.workflows.workflow_file import read_workflow

logger = logging.getLogger(__name__)

SECTIONS = ("model", "dataset")


def finetune(
    config: str | Path,
    out: str | Path,
    changes: Sequence[str] = (),
    market: str | Path | None = None,
) -> dict[str, list[dict[str, float]]]:
    """Train what `task.model` of a workflow file asks for, on its `task.dataset`, and save it.

    Args:
        config: a workflow as `qrun` takes it, jinja and `BASE_CONFIG_PATH` included, or the name of
            one that comes with the package; or one without
            `qlib_init` whose `task.dataset` is `{from_file: bars.csv, segments: {…}, …}`, the
            arguments of `WindowDataset.from_file`.
        out: folder for the result: predictor, tokenizer, alpha where there is a head, and in last
            the same after the last epoch.
        changes: "training.predictor.epochs=3", see `read_workflow`.
        market: a profile, see `read_workflow`.

    Returns:
        The history of each stage.

    Raises:
        ConfigError: a section or a setting is missing, unknown or cannot work.
    """
    workflow = read_workflow(config, market, changes)
    for note in workflow.notes:
        logger.warning(note)
    settings = workflow.config
    task = settings.get("task")
    missing = [name for name in SECTIONS if name not in (task or {})]
    if not isinstance(task, Mapping) or missing:
        raise ConfigError(f"{config} lacks task.{' and task.'.join(missing or SECTIONS)}")
    dataset = _dataset(settings, task["dataset"], Path(config))
    model = _model(task["model"], config)
    if model.training.is_zero_shot:
        raise ConfigError(f"{config} trains nothing: its model has no setting `training`")
    model.fit(dataset)
    from kronos_qlib.training.parallel.distributed import process_rank

    if process_rank() == 0:
        model.save_pretrained(str(out))
    return model.history


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


def _model(section: Mapping[str, Any], config: str | Path) -> KronosModel:
    if section.get("class") != KronosModel.__name__:
        raise ConfigError(f"{config}: task.model is {section.get('class')!r}, not KronosModel")
    try:
        return KronosModel(**(section.get("kwargs") or {}))
    except TypeError as unknown:
        raise ConfigError(f"{config}: task.model.kwargs: {unknown}") from unknown
