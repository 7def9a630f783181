"""Runs of several models side by side, from what their records left in MLflow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from kronos_qlib.errors import ConfigError, MissingArtifactError
from kronos_qlib.evaluation.compare.comparison import (
    Comparison,
    Equity,
    common_equity,
    compare_signals,
)
from kronos_qlib.evaluation.portfolio.metrics import TRADING_DAYS
from kronos_qlib.plugin.runs.task_settings import MUST_AGREE, settings_of
from kronos_qlib.plugin.runs.tracking import (
    finished_run,
    latest_finished,
    open_tracking,
    unfinished_notes,
)
from kronos_qlib.plugin.task_sections import label_bars_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
from kronos_qlib.plugin.runs.plain_files import read_task
from kronos_qlib.plugin.runs.stored_runs import (
    COMPARED,
    REPORT,
    holdings_of,
    is_stored_finite,
    read_report,
    read_signal,
    row_of,
)

BACKTESTED = (
    "excess_return",
    "excess_low",
    "excess_high",
    "information_ratio",
    "annual_return",
    "sharpe",
    "max_drawdown",
    "turnover",
)
"""Of these columns what a comparison measures anew, on the days that all runs have."""


def compare(
    experiments: Sequence[str] = (), *, tracking_uri: str, run_ids: Sequence[str] = ()
) -> Comparison:
    """Several finished runs side by side: metrics, tests, curves and settings.

    Signals are judged on the rows (datetime, instrument) that all runs have and whose label is
    known; backtests on their common days. A run without predictions or without a backtest stays
    in the table, and a note says that it is not in the tests or curves.

    Args, Raises: as of `compare_runs`; and
        ConfigError: the runs are judged by different labels, or share no row or no day.
    """
    client = open_tracking(tracking_uri)
    runs = _asked(client, experiments, run_ids)
    return comparison_of(client, runs, unfinished_notes(client, experiments))


def compare_runs(
    experiments: Sequence[str] = (), *, tracking_uri: str, run_ids: Sequence[str] = ()
) -> pd.DataFrame:
    """Set the metrics of each experiment's latest finished run, and of the runs named, in a table.

    Args:
        experiments: MLflow experiment names.
        tracking_uri: where MLflow keeps them, as `sqlite:///mlflow.db`.
        run_ids: runs to add after those, each finished.

    Returns:
        A row per run in the order asked, on "run": the experiment's name, or
        "experiment/first 8 letters of the id" for a run asked for by id. Columns: those of
        COMPARED, NaN where a run did not log one; `wall_seconds` from the run's start to its end,
        training included; `run_id`.

    Raises:
        ConfigError: no such database, experiment or run, or nothing to compare.
        MissingArtifactError: an experiment has no finished run, a run did not finish, a metric of
            CORE is missing, or one is no finite number.
    """
    client = open_tracking(tracking_uri)
    return _table(_asked(client, experiments, run_ids))


def comparison_of(
    client: MlflowClient, runs: Mapping[str, Run], notes: Sequence[str] = ()
) -> Comparison:
    """As `compare`, of runs at hand under the names to show; one that still runs may be among them.

    Args:
        notes: placed before those on the runs.
    """
    table = _table(runs)
    remarks = list(notes)
    signals = {}
    for name, run in runs.items():
        try:
            signals[name] = read_signal(client, run)
        except MissingArtifactError as reason:
            remarks.append(f"{name} is not in the tests: {reason}.")
    reports = {}
    for name, run in runs.items():
        try:
            report = read_report(client, run)
        except MissingArtifactError as reason:
            remarks.append(f"{name} has no curve: {reason}.")
            continue
        if report is not None:
            reports[name] = report
        else:
            remarks.append(
                f"{name} has no curve: the run has no {REPORT}, which PortfolioReportRecord leaves."
            )
    equity = None
    if reports:
        days_per_year = _days_per_year(runs, remarks)
        try:
            equity = common_equity(reports, days_per_year=days_per_year)
        except ConfigError as reason:
            remarks.append(f"There are no curves: {reason}.")
    for name in runs:
        # A measure that no run has gets no line, so nothing is missing there.
        gone = [
            COMPARED[each]
            for each in COMPARED
            if table[each].isna()[name]
            and table[each].notna().any()
            and not (each in BACKTESTED and equity is not None and name in equity.net)
        ]
        if gone:
            remarks.append(f"{name} logged no {', '.join(gone)}: shown as a dash.")
    if equity is not None:
        table = _measured_alike(table, equity, _trials(runs))
        days = len(equity.net)
        longer = [f"{name} {own}" for name, own in equity.own_days.items() if own != days]
        if longer:
            remarks.append(
                f"Backtests differ in days, {days} are common: {', '.join(longer)}. Curves and the "
                "table's returns are of the common days."
            )
        logged = [name for name in runs if name not in equity.net]
        if table.loc[logged, list(BACKTESTED)].notna().any(axis=None):
            remarks.append(
                f"Returns of {', '.join(logged)} are as the run logged them, over its own days."
            )
        if not equity.same_bench:
            remarks.append(
                "The runs' benchmarks differ; curves and the table's column show the first run's."
            )
    tasks = {}
    for name, run in runs.items():
        try:
            tasks[name] = read_task(client, run.info.run_id)
        except MissingArtifactError as reason:
            tasks[name] = {}
            remarks.append(
                f"{name}'s settings are not shown, and its label's bars not known: {reason}."
            )
    settings = pd.DataFrame({name: settings_of(task) for name, task in tasks.items()})
    settings = settings[(settings != "").any(axis=1)]
    unequal = [
        name
        for name in settings.index
        if name in MUST_AGREE and settings.loc[name].replace("", pd.NA).nunique() > 1
    ]
    if unequal:
        remarks.append(
            f"The runs were not asked alike: {', '.join(unequal).lower()} is not the same for all, "
            "so the table's numbers answer different questions."
        )
    label_bars = max(map(label_bars_of, tasks.values()))
    if label_bars > 1:
        remarks.append(
            f"The label runs over {label_bars} bars, so neighbours overlap; standard errors are "
            "measured on waves of five labels and longer, and intervals are wider for it."
        )
    return Comparison(
        table=table,
        signals=compare_signals(signals, label_bars=label_bars) if signals else None,
        equity=equity,
        settings=settings,
        notes=tuple(remarks),
        holdings={name: held for name, run in runs.items() if len(held := holdings_of(run))},
    )


def _days_per_year(runs: Mapping[str, Run], remarks: list[str]) -> float:
    """The one count of days a year for all: the runs' own, or the most days that one of them has
    and a note."""
    known = {name: run.data.metrics.get("days_per_year") for name, run in runs.items()}
    own = {name: days for name, days in known.items() if days and is_stored_finite(days)}
    most = max(own.values(), default=float(TRADING_DAYS))
    others = [f"{name} {days:g}" for name, days in own.items() if days != most]
    if others:
        remarks.append(
            f"The runs' workflows count days a year differently ({', '.join(others)}); here all "
            f"have {most:g}."
        )
    return most


def _trials(runs: Mapping[str, Run]) -> int:
    """Trials of all runs: of each those it counted, which are its signals, and 1 at least."""
    counted = (run.data.metrics.get("sharpe_trials", 1.0) for run in runs.values())
    return sum(max(1, round(each)) if is_stored_finite(each) else 1 for each in counted)


def _measured_alike(table: pd.DataFrame, equity: Equity, trials: int) -> pd.DataFrame:
    """The table with what backtests earned measured alike for all runs that have one."""
    table = table.copy()
    for name in map(str, equity.net):
        table.loc[name, ["excess_low", "excess_high"]] = math.nan
        for column in map(str, equity.measures):
            table.loc[name, column] = equity.measures[column].loc[name]
        if name in equity.tests:
            bounds = equity.tests[name].interval()
            table.loc[name, ["excess_low", "excess_high"]] = [
                bound * equity.days_per_year for bound in bounds
            ]
    deflated = equity.deflated(trials)
    place = list(table).index("sharpe") + 1
    table.insert(place, "deflated_sharpe", pd.Series(deflated, dtype="float64"))
    counted = pd.Series(dict.fromkeys(deflated, float(trials)), dtype="float64")
    table.insert(place + 1, "trials", counted)
    return table


def _asked(
    client: MlflowClient, experiments: Sequence[str], run_ids: Sequence[str]
) -> dict[str, Run]:
    """Finished runs by the names to show."""
    if not experiments and not run_ids:
        raise ConfigError("nothing to compare: name an experiment or a run id")
    runs = {name: latest_finished(client, name) for name in experiments}
    for run_id in run_ids:
        run = finished_run(client, run_id)
        experiment = client.get_experiment(run.info.experiment_id).name
        runs[f"{experiment}/{run_id[:8]}"] = run
    return runs


def _table(runs: Mapping[str, Run]) -> pd.DataFrame:
    rows = [row_of(label, run) for label, run in runs.items()]
    return pd.DataFrame(rows, index=pd.Index(list(runs), name="run"))
