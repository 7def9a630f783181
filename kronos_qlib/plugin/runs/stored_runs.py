"""What the records of one finished run left in MLflow: its signal, its backtest, its measures."""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from kronos_qlib.errors import MissingArtifactError
from kronos_qlib.evaluation.compare.comparison import (
    Signal,
)
from kronos_qlib.markup import cause_of
from kronos_qlib.plugin.runs.plain_files import (
    LABELS,
    SCORES,
    Kept,
    artifact,
    artifacts,
    read_table,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

CORE = {"ic": "IC", "icir": "ICIR", "rank_ic": "Rank IC", "rank_icir": "Rank ICIR"}
"""Columns that every run must have, and the MLflow metric behind each."""

COMPARED = CORE | {
    "rank_ic_t": "rank_ic.t",
    "oracle_share": "oracle_share",
    "excess_return": "excess_return",
    "excess_low": "excess_return_low",
    "excess_high": "excess_return_high",
    "information_ratio": "information_ratio",
    "annual_return": "annual_return",
    "sharpe": "sharpe",
    "max_drawdown": "max_drawdown",
    "turnover": "turnover",
    "capacity": "capacity",
}
"""Columns of the comparison and the MLflow metric behind each; a backtest's are after cost.

A backtest's are PortfolioReportRecord's, by one count of days a year (252 unless its workflow says
otherwise) and not Qlib's `1day.excess_return_with_cost.*`, which take 238. `rank_ic_t` and
`oracle_share` are SignalReportRecord's. The deflated Sharpe ratio is not among them: a run counts
its own trials alone, and `comparison_of` counts all runs' for each.
"""

LEFT = ("rank_ic.rest", "rank_ic.delayed", "long_only_net", "long_short_net")
"""Metrics of SignalReportRecord that stand below the exposures in a comparison."""

REPORT = "portfolio_report/daily.csv"
"""A run's backtest by days."""
REPORT_COLUMNS = ("net_return", "excess_return", "bench")
"""Of it, what is compared."""
LARGEST_REPORT = 2**26
"""Bytes."""
LONGEST_HEADER = 10_000
"""Letters of a report's first line: pandas takes minutes for a million columns."""

# MLflow's SQL stores keep no infinity: they write the largest float64 in its place.
LARGEST_STORED = 1.7e308


def row_of(label: str, run: Run) -> dict[str, object]:
    """A run's row of the table: COMPARED, `wall_seconds` and `run_id`.

    Args:
        label: the run's name in the table, for messages.

    Raises:
        MissingArtifactError: a metric of CORE is missing, or one is no finite number.
    """
    metrics = run.data.metrics
    missing = [name for name in CORE.values() if name not in metrics]
    if missing:
        raise MissingArtifactError(
            f"{label!r}: run {run.info.run_id} has no metric {', '.join(missing)}; its workflow "
            "needs SigAnaRecord"
        )
    row: dict[str, object] = {}
    for column, name in COMPARED.items():
        row[column] = value = metrics.get(name, math.nan)
        if name in metrics and not is_stored_finite(value):
            raise MissingArtifactError(
                f"{label!r}: run {run.info.run_id} has {name} = {value:g}, no finite number; with "
                "RunCheckRecord last in its workflow such a run fails"
            )
    # MLflow keeps ms; a run that is still going on has no end yet.
    ended = run.info.end_time or int(time.time() * 1000)
    row["wall_seconds"] = (ended - run.info.start_time) / 1000
    row["run_id"] = run.info.run_id
    return row


def holdings_of(run: Run) -> pd.DataFrame:
    """What SignalReportRecord says that a run's score holds, and what is left without it.

    Returns:
        On names of metrics: those that begin with `exposure.`, then those of LEFT that the run
        has. `mean`, `low`, `high`, the interval NaN where it is not known.
    """
    metrics = run.data.metrics
    ends = ("_low", "_high")
    held = (each for each in metrics if each.startswith("exposure."))
    names = sorted(each for each in held if not each.endswith(ends))
    names += [name for name in LEFT if name in metrics]
    rows = {}
    for name in names:
        found = [metrics.get(name + end, math.nan) for end in ("", *ends)]
        rows[name] = [value if is_stored_finite(value) else math.nan for value in found]
    return pd.DataFrame.from_dict(rows, orient="index", columns=["mean", "low", "high"])


def read_signal(client: MlflowClient, run: Run) -> Signal:
    """A run's predictions and labels.

    Raises:
        MissingArtifactError: the run does not have both, or one of them is no table of numbers.
        UnsafeArtifactError: one of them can be read only by running its writer's code.
    """
    return Signal(*(_read_column(client, run, kept) for kept in (SCORES, LABELS)))


def _read_column(client: MlflowClient, run: Run, kept: Kept) -> pd.Series:
    """The first column of a table, on (datetime, instrument)."""
    column = read_table(client, run.info.run_id, kept).iloc[:, 0]
    where = f"{kept.plain} or {kept.pickled} of run {run.info.run_id}"
    if (
        not isinstance(column.index, pd.MultiIndex)
        or not isinstance(column.index.levels[0], pd.DatetimeIndex)
        or column.index.has_duplicates
    ):
        raise MissingArtifactError(
            f"{where} has other than times in its index, or a name twice at a time; run its "
            "workflow again"
        )
    if column.index.levels[0].tz is not None:
        raise MissingArtifactError(
            f"{where} has times of the zone {column.index.levels[0].tz}, and Qlib's have none; "
            "take it off and run its workflow again"
        )
    try:
        return column.astype("float64")
    except (TypeError, ValueError) as problem:
        raise MissingArtifactError(
            f"{where} has no numbers in its first column, {column.name!r:.80}"
        ) from problem


def read_report(client: MlflowClient, run: Run) -> pd.DataFrame | None:
    """PortfolioReportRecord's daily table; None if the run has none.

    Raises:
        MissingArtifactError: it is damaged, or other than that record writes.
    """
    run_id = run.info.run_id
    if REPORT not in artifacts(client, run_id, REPORT.rpartition("/")[0]):
        return None
    with artifact(client, run_id, REPORT, LARGEST_REPORT) as path:
        try:
            with path.open(encoding="utf-8") as file:
                if len(file.readline(LONGEST_HEADER + 1)) > LONGEST_HEADER:
                    raise ValueError(f"its first line has more than {LONGEST_HEADER:,} letters")
            report = pd.read_csv(path, index_col=0, parse_dates=True)
            report.index = pd.DatetimeIndex(report.index)
            numbers = [*REPORT_COLUMNS, *(["turnover"] if "turnover" in report else [])]
            report = report.astype(dict.fromkeys(numbers, "float64"))
        except (ValueError, KeyError, TypeError) as problem:
            raise MissingArtifactError(
                f"{REPORT} of run {run_id} is no table of days with the columns "
                f"{', '.join(REPORT_COLUMNS)} ({cause_of(problem)})"
            ) from problem
    broken = ~np.isfinite(report[numbers]).all(axis=1)
    if broken.any() or not report.index.is_unique:
        raise MissingArtifactError(
            f"{REPORT} of run {run_id} has {int(broken.sum())} days without a finite number and "
            f"{int(report.index.duplicated().sum())} days twice"
        )
    return report.sort_index()


def is_stored_finite(value: float) -> bool:
    """Whether a metric read back from MLflow was a finite number when it was logged."""
    return math.isfinite(value) and abs(value) < LARGEST_STORED
