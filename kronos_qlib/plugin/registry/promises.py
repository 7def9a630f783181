"""What a run's backtest promised of its model, in numbers that live days are set against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from kronos_qlib.errors import KronosError, UndefinedMetricError
from kronos_qlib.evaluation.ranking.day_tables import to_wide
from kronos_qlib.evaluation.ranking.information_coefficient import daily_ic
from kronos_qlib.evaluation.ranking.uncertainty import DailyMean, daily_mean
from kronos_qlib.plugin.runs.stored_runs import read_report, read_signal

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

FIELDS = ("mean", "standard_error", "days", "cosines", "label_days", "phi")


def promises_of(
    client: MlflowClient, run: Run, label_bars: int
) -> tuple[dict[str, Any], list[str]]:
    """Means of the backtest's days with their errors, as JSON, and what is not known, in words.

    "ic", "rank_ic": of a day's scores, on the days whose labels are known. "net_return",
    "excess_return": of a day after cost, where the run has PortfolioReportRecord's table.
    """
    series: dict[str, tuple[pd.Series[float], int]] = {}
    notes = []
    try:
        signal = read_signal(client, run)
        daily = daily_ic(to_wide(signal.score), to_wide(signal.label))
        for name in ("ic", "rank_ic"):
            series[name] = (daily[name].dropna(), label_bars)
    except KronosError as problem:
        notes.append(f"no IC is promised: {problem}")
    try:
        report = read_report(client, run)
        if report is None:
            notes.append("no return is promised: the run has no PortfolioReportRecord")
        else:
            series |= {name: (report[name], 1) for name in ("net_return", "excess_return")}
    except KronosError as problem:
        notes.append(f"no return is promised: {problem}")
    found = {}
    for name, (values, bars) in series.items():
        try:
            found[name] = as_json(daily_mean(values, label_bars=bars, name=name))
        except UndefinedMetricError as problem:
            notes.append(f"no {name} is promised: {problem}")
    return found, notes


def as_json(mean: DailyMean) -> dict[str, float]:
    """A mean with its error as JSON."""
    return {name: getattr(mean, name) for name in FIELDS}


def read_promise(found: Mapping[str, Any]) -> DailyMean | None:
    """A mean out of JSON; None where it is none."""
    try:
        values = {name: found[name] for name in FIELDS}
        whole = {name: int(values[name]) for name in ("days", "cosines", "label_days")}
        return DailyMean(**{name: float(values[name]) for name in FIELDS} | whole)  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError):
        return None
