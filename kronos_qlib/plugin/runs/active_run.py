"""The MLflow run that Qlib has open, if any: a model may be fitted outside a workflow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from qlib.log import get_module_logger
from qlib.workflow import R

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = get_module_logger(__name__)  # Qlib shows its own loggers only


def has_active_run() -> bool:
    """Whether there is one. Without qlib.init, as with bars from a file, there is none to ask."""
    return getattr(R, "_provider", None) is not None and R.exp_manager.active_experiment is not None


class ActiveRunLog:
    """A `StageLog`: lines to Qlib's log, numbers and figures to the open run."""

    def message(self, text: str) -> None:
        logger.info(text)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        if has_active_run():
            R.log_metrics(step=step, **values)

    def figure(self, figure: Figure, name: str) -> None:
        if has_active_run():
            recorder = R.get_recorder()
            recorder.client.log_figure(recorder.id, figure, name)
