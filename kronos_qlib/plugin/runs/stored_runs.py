"""Runs of several models side by side, from what their records left in MLflow."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from kronos_qlib.errors import ConfigError, MissingArtifactError
from kronos_qlib.evaluation.compare.comparison import (
    Comparison,
    Equity,
    Signal,
    common_equity,
    compare_signals,
)
from kronos_qlib.evaluation.portfolio.metrics import TRADING_DAYS
from kronos_qlib.markup import one_line
from kronos_qlib.plugin.runs.plain_files import (
    LABELS,
    SCORES,
    Kept,
    artifact,
    artifacts,
    read_table,
)
from kronos_qlib.plugin.runs.plain_files import read_task as read_kept_task
from kronos_qlib.plugin.task_sections import label_bars_of, label_of, mapping_of, records_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

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
}
"""Columns of the comparison and the MLflow metric behind each; a backtest's are after cost.

A backtest's are PortfolioReportRecord's, by one count of days a year (252 unless its workflow says
otherwise) and not Qlib's `1day.excess_return_with_cost.*`, which take 238. `rank_ic_t` and
`oracle_share` are SignalReportRecord's. The deflated Sharpe ratio is not among them: a run counts
its own trials alone, and `comparison_of` counts all runs' for each.
"""

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

REPORT = "portfolio_report/daily.csv"
"""A run's backtest by days."""
REPORT_COLUMNS = ("net_return", "excess_return", "bench")
"""Of it, what is compared."""
LARGEST_REPORT = 2**26
"""Bytes."""
LONGEST_HEADER = 10_000
"""Letters of a report's first line: pandas takes minutes for a million columns."""
LONGEST_SETTING = 300
"""Letters of a setting that are shown."""

# MLflow's SQL stores keep no infinity: they write the largest float64 in its place.
LARGEST_STORED = 1.7e308


def compare(
    experiments: Sequence[str] = (), *, tracking_uri: str, run_ids: Sequence[str] = ()
) -> Comparison:
    """Everything that can be said of several finished runs side by side.

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
        notes: said before those on the runs.
    """
    table = _table(runs)
    said = list(notes)
    signals = {}
    for name, run in runs.items():
        try:
            signals[name] = read_signal(client, run)
        except MissingArtifactError as reason:
            said.append(f"{name} is not in the tests: {reason}.")
    reports = {}
    for name, run in runs.items():
        try:
            report = read_report(client, run)
        except MissingArtifactError as reason:
            said.append(f"{name} has no curve: {reason}.")
            continue
        if report is not None:
            reports[name] = report
        else:
            said.append(
                f"{name} has no curve: the run has no {REPORT}, which PortfolioReportRecord leaves."
            )
    equity = None
    if reports:
        days_per_year = _days_per_year(runs, said)
        try:
            equity = common_equity(reports, days_per_year=days_per_year)
        except ConfigError as reason:
            said.append(f"There are no curves: {reason}.")
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
            said.append(f"{name} logged no {', '.join(gone)}: shown as a dash.")
    if equity is not None:
        table = _measured_alike(table, equity, _trials(runs))
        days = len(equity.net)
        longer = [f"{name} {own}" for name, own in equity.own_days.items() if own != days]
        if longer:
            said.append(
                f"Backtests differ in days, {days} are common: {', '.join(longer)}. Curves and the "
                "table's returns are of the common days."
            )
        logged = [name for name in runs if name not in equity.net]
        if table.loc[logged, list(BACKTESTED)].notna().any(axis=None):
            said.append(
                f"Returns of {', '.join(logged)} are as the run logged them, over its own days."
            )
        if not equity.same_bench:
            said.append(
                "The runs' benchmarks differ; curves and the table's column show the first run's."
            )
    tasks = {}
    for name, run in runs.items():
        try:
            tasks[name] = read_task(client, run)
        except MissingArtifactError as reason:
            tasks[name] = {}
            said.append(
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
        said.append(
            f"The runs were not asked alike: {', '.join(unequal).lower()} is not the same for all, "
            "so the table's numbers answer different questions."
        )
    label_bars = max(map(label_bars_of, tasks.values()))
    if label_bars > 1:
        said.append(
            f"The label runs over {label_bars} bars, so neighbours overlap; standard errors are "
            "measured on waves of five labels and longer, and intervals are wider for it."
        )
    return Comparison(
        table=table,
        signals=compare_signals(signals, label_bars=label_bars) if signals else None,
        equity=equity,
        settings=settings,
        notes=tuple(said),
    )


def _days_per_year(runs: Mapping[str, Run], said: list[str]) -> float:
    """The one count of days a year for all: the runs' own, or the most days that one of them has
    and a note."""
    known = {name: run.data.metrics.get("days_per_year") for name, run in runs.items()}
    own = {name: days for name, days in known.items() if days and is_stored_finite(days)}
    most = max(own.values(), default=float(TRADING_DAYS))
    others = [f"{name} {days:g}" for name, days in own.items() if days != most]
    if others:
        said.append(
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


def open_tracking(tracking_uri: str) -> MlflowClient:
    """A client for a store that exists already; MLflow would create an empty one in silence."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    path = sqlite_path(tracking_uri)
    if path is not None and not path.is_file():
        raise ConfigError(
            f"no MLflow database at {path.absolute()}; run a workflow first, or give the "
            "tracking URI it was run with"
        )
    try:
        return MlflowClient(tracking_uri=tracking_uri)
    except MlflowException as refusal:
        raise ConfigError(
            f"MLflow cannot open {tracking_uri!r}: {one_line(str(refusal))}"
        ) from refusal


def sqlite_path(tracking_uri: str) -> Path | None:
    """The file behind `sqlite:///...`; None for any other store."""
    scheme, separator, path = tracking_uri.partition(":///")
    return Path(path) if separator and scheme.partition("+")[0] == "sqlite" else None


def latest_finished(client: MlflowClient, experiment: str) -> Run:
    """The run of an experiment that started last, among those that finished."""
    return next(finished_runs(client, experiment))


def finished_runs(client: MlflowClient, experiment: str) -> Iterator[Run]:
    """The finished runs of an experiment, those that started last first: one at least.

    Raises:
        ConfigError: no such experiment.
        MissingArtifactError: none of its runs finished.
    """
    found = client.get_experiment_by_name(experiment)
    if found is None or found.lifecycle_stage != "active":
        # Names that others chose, in a message for a terminal.
        known = [one_line(each.name) for each in client.search_experiments()]
        near = get_close_matches(experiment, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
        raise ConfigError(f"no MLflow experiment {experiment!r}; {hint}")
    finished, page = 0, None
    while page != "":
        runs = client.search_runs(
            [found.experiment_id],
            filter_string="attributes.status = 'FINISHED'",
            order_by=["attributes.start_time DESC"],
            max_results=50,
            page_token=page,
        )
        yield from runs
        finished, page = finished + len(runs), runs.token or ""
    if not finished:
        last = "".join(f" (its last run {told})" for told in _unfinished(client, found, 0)[:1])
        raise MissingArtifactError(
            f"experiment {experiment!r} has no finished run{last}; run its workflow to the end "
            "first"
        )


def unfinished_notes(client: MlflowClient, experiments: Sequence[str]) -> list[str]:
    """Which runs began after the one that is compared and did not finish: a note for each
    experiment that has such."""
    notes = []
    for name in dict.fromkeys(experiments):
        since = latest_finished(client, name).info.start_time
        told = _unfinished(client, client.get_experiment_by_name(name), since)
        if told:
            more = f", and {len(told) - 3} more" if len(told) > 3 else ""
            notes.append(
                f"{name}: not compared, as unfinished: run {', run '.join(told[:3])}{more}."
            )
    return notes


def _unfinished(client: MlflowClient, experiment: Experiment, since: int) -> list[str]:
    """Runs that began at this time (ms) or later and did not finish, the last first: id, status."""
    runs = client.search_runs(
        [experiment.experiment_id],
        filter_string=f"attributes.status != 'FINISHED' AND attributes.start_time >= {since}",
        order_by=["attributes.start_time DESC"],
        max_results=100,
    )
    return [f"{run.info.run_id[:8]} is {run.info.status}" for run in runs]


def finished_run(client: MlflowClient, run_id: str) -> Run:
    """One run by its id, or by the beginning of it that is printed, if it finished."""
    known = [each.experiment_id for each in client.search_experiments()]
    found: list[Run] = []
    page: str | None = None
    while page != "":
        runs = client.search_runs(known, page_token=page)  # a thousand at a time
        found += [run for run in runs if run.info.run_id.startswith(run_id)]
        page = runs.token or ""
    if len(found) != 1:
        raise ConfigError(
            f"no MLflow run {run_id!r}"
            if not found
            else f"{len(found)} MLflow runs begin with {run_id!r}; give more of the id"
        )
    run = found[0]
    if run.info.status != "FINISHED":
        raise MissingArtifactError(
            f"run {run_id!r} is {run.info.status}, and only finished runs compare"
        )
    return run


def row_of(label: str, run: Run) -> dict[str, object]:
    """A run's row of the table."""
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


MUST_AGREE = (
    "Universe",
    "Label",
    "Test segment",
    "Names held",
    "Replaced a bar",
    "Bars held at least",
    "Cost to buy",
    "Cost to sell",
    "Deal price",
    "Benchmark",
)
"""Settings without which two runs' numbers answer different questions."""


def settings_of(task: Mapping[str, Any]) -> dict[str, str]:
    """What a workflow's task asked for, in words; "" where it says nothing."""
    model = mapping_of(task.get("model")) or {"class": task.get("model")}
    kwargs = mapping_of(model.get("kwargs"))
    data = mapping_of(mapping_of(task.get("dataset")).get("kwargs"))
    handler = mapping_of(mapping_of(data.get("handler")).get("kwargs"))
    segments = mapping_of(data.get("segments"))
    trade = _trading(task)
    found = {
        "Model": model.get("class"),
        "Checkpoint": kwargs.get("checkpoint"),
        "Training": ", ".join(map(str, mapping_of(kwargs.get("training")))) or None,
        "Sampling": _pairs(kwargs.get("sampling")),
        "Seed": kwargs.get("seed"),
        "Lookback, bars": data.get("lookback"),
        "Horizon, bars": data.get("horizon"),
        "Universe": handler.get("instruments"),
        "Label": label_of(task),
        "Training segment": _span(segments.get("train")),
        "Test segment": _span(segments.get("test")),
        "Names held": trade.get("topk"),
        "Replaced a bar": trade.get("n_drop"),
        "Bars held at least": trade.get("hold_thresh"),
        "Deal price": trade.get("deal_price"),
        "Cost to buy": trade.get("open_cost"),
        "Cost to sell": trade.get("close_cost"),
        "Benchmark": trade.get("benchmark"),
    }
    return {name: "" if value is None else _shown(value) for name, value in found.items()}


def _shown(value: Any) -> str:
    """A setting in a line that a page can hold."""
    text = one_line(str(value))
    return text if len(text) <= LONGEST_SETTING else f"{text[: LONGEST_SETTING - 1]}…"


def _trading(task: Mapping[str, Any]) -> dict[str, Any]:
    """The strategy's and the exchange's settings, wherever a workflow has them."""
    found: dict[str, Any] = {}
    for record in records_of(task):
        kwargs = mapping_of(record.get("kwargs"))
        config = mapping_of(kwargs.get("config"))  # PortAnaRecord's
        backtest = mapping_of(config.get("backtest"))
        found |= mapping_of(mapping_of(config.get("strategy")).get("kwargs"))
        found |= {**backtest, **mapping_of(backtest.get("exchange_kwargs"))}
        found |= mapping_of(kwargs.get("backtest"))  # BacktestRecord's
    return {**mapping_of(task.get("backtest")), **found}


def _pairs(values: Any) -> str | None:
    if not isinstance(values, Mapping):
        return None
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _span(segment: Any) -> str | None:
    return (
        " to ".join(str(each)[:10] for each in segment[:2])
        if isinstance(segment, list | tuple)
        else None
    )


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
                f"{', '.join(REPORT_COLUMNS)} ({one_line(str(problem))[:200]})"
            ) from problem
    broken = ~np.isfinite(report[numbers]).all(axis=1)
    if broken.any() or not report.index.is_unique:
        raise MissingArtifactError(
            f"{REPORT} of run {run_id} has {int(broken.sum())} days without a finite number and "
            f"{int(report.index.duplicated().sum())} days twice"
        )
    return report.sort_index()


def read_task(client: MlflowClient, run: Run) -> dict[str, Any]:
    """The workflow's task as it was kept with the run; {} for a run made otherwise.

    Raises:
        MissingArtifactError, UnsafeArtifactError: as of `plain.read_task`.
    """
    return read_kept_task(client, run.info.run_id)


def is_stored_finite(value: float) -> bool:
    """Whether a metric read back from MLflow was a finite number when it was logged."""
    return math.isfinite(value) and abs(value) < LARGEST_STORED
