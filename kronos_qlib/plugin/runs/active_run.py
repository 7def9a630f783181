"""The MLflow run that Qlib has open, if any: a model may be fitted outside a workflow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from qlib.log import get_module_logger
from qlib.workflow import R

from kronos_qlib.plugin.qlib_internals import has_open_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = get_module_logger(__name__)  # Qlib shows its own loggers only


class ActiveRunLog:
    """A `StageLog`: lines to Qlib's log, numbers and figures to the open run."""

    def message(self, text: str) -> None:
        """A line to Qlib's log."""
        logger.info(text)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Numbers to the open run, if there is one."""
        if has_open_run():
            R.log_metrics(step=step, **values)

    def figure(self, figure: Figure, name: str) -> None:
        """A figure to the open run, if there is one; `name` is its path there."""
        if has_open_run():
            recorder = R.get_recorder()
            recorder.client.log_figure(recorder.id, figure, name)
