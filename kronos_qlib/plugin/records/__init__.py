"""Records: what a run leaves in MLflow. One file each; a workflow names any of them here.

To add one, copy `run_check.py` or `compare_record.py` and state as class attributes what the others
state too:

    artifact_path   folder of the run that its files go to; None for the top
    needs_extra     extra of the package that it needs ("report"), checked before the run; or None
    reads           files of earlier records, as `KronosSignalRecord` leaves pred.pkl and label.pkl
    leaves          files that it leaves in artifact_path; Qlib's `list()` gives them

Then add it to PLACES and to workflows/workflow_base.yaml. A missing file is an error here
(`artifacts.load_needed`), where Qlib would log "Generation skipped" and go on.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

PLACES = {
    "KronosSignalRecord": "signal_record",
    "SignalReportRecord": "signal_report",
    "ImportanceRecord": "importance_record",
    "ForecastReportRecord": "forecast_report",
    "BacktestRecord": "backtest_record",
    "PortfolioReportRecord": "portfolio_report",
    "RunCheckRecord": "run_check",
    "CompareRecord": "compare_record",
}
"""Each public name and its module, imported when first asked for."""

__all__ = list(PLACES)


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{PLACES[name]}"), name)
