"""A workflow whose model is trained again as time goes on: the same file, its model in another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kronos_qlib.errors import ConfigError
from kronos_qlib.plugin.rolling.retraining import RetrainConfig
from kronos_qlib.plugin.rolling.rolling_model import RollingModel
from kronos_qlib.plugin.task_sections import class_of, records_of, value_at

SUFFIX = "_rolled"
"""Of the experiment, after the workflow's own."""
OF_ONE_MODEL = ("ForecastReportRecord", "ImportanceRecord")
"""Records that judge the paths or the inputs of one model, where each roll has its own."""
ROLLS = "rolls"
"""Folder of finished trainings, in the working folder, with one for each experiment."""


@dataclass(frozen=True, kw_only=True)
class RolledWorkflow:
    """How a workflow is rolled."""

    how: RetrainConfig = field(default_factory=RetrainConfig)
    """When its model is trained again, and from where."""
    experiment: str | None = None
    """The MLflow experiment's name; None: the workflow's with `_rolled`."""
    folder: str | None = None
    """Where finished trainings are kept; None: `rolls/` and the experiment's name."""

    def of(self, config: Mapping[str, Any], where: Path) -> dict[str, Any]:
        """The config of a workflow with a RollingModel in the place of its model.

        Raises:
            ConfigError: it has a RollingModel already.
        """
        task = dict(config["task"])
        if class_of(task["model"]) == RollingModel.__name__:
            raise ConfigError(
                f"{where} has a RollingModel: run it with kronos-qlib run, its kwargs say how"
            )
        name = self.experiment or f"{config.get('experiment_name', 'workflow')}{SUFFIX}"
        task["model"] = {
            "class": RollingModel.__name__,
            "module_path": "kronos_qlib.plugin.rolling",
            "kwargs": {
                **asdict(self.how),
                "folder": self.folder or str(Path(ROLLS, name).as_posix()),
                "model": task["model"],
            },
        }
        task["record"] = [one for one in records_of(task) if class_of(one) not in OF_ONE_MODEL]
        return {**config, "experiment_name": name, "task": task}


def records_left_out(task: Mapping[str, Any]) -> list[str]:
    """Records of a workflow that a rolled one does not have."""
    return [name for name in map(class_of, records_of(task)) if name in OF_ONE_MODEL]


def rolled_model(task: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The config of the model that a RollingModel trains again; None where there is none."""
    model = task.get("model")
    if class_of(model) != RollingModel.__name__:
        return None
    found = value_at(model, "kwargs", "model")
    return found if isinstance(found, Mapping) else None
