"""Records: what a run leaves in MLflow. One file each; a workflow names any of them here."""

from __future__ import annotations

from importlib import import_module
from typing import Any

PLACES = {
    "KronosSignalRecord": "signal_record",
    "SignalReportRecord": "signal_report",
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
