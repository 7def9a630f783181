"""Records that end in MLflow, and a last one that lets no run pass without its metrics.

In Qlib a record whose input is missing logs "Generation skipped" and the run stays green. Here:

    record:
      - {class: SignalRecord, module_path: qlib.workflow.record_temp, kwargs: {...}}
      - {class: SigAnaRecord, module_path: qlib.workflow.record_temp}
      - {class: PortAnaRecord, module_path: qlib.workflow.record_temp, kwargs: {...}}
      - {class: PortfolioReportRecord, module_path: kronos_qlib.plugin.records}
      - {class: RunCheckRecord, module_path: kronos_qlib.plugin.records}
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from qlib.workflow.record_temp import ACRecordTemp, PortAnaRecord, RecordTemp
from qlib.workflow.recorder import Recorder

from kronos_qlib.errors import MissingArtifactError
from kronos_qlib.evaluation.figures import equity_figure
from kronos_qlib.evaluation.metrics import (
    PORTFOLIO_METRICS,
    TRADING_DAYS,
    drawdown,
    net_returns,
    portfolio_metrics,
)
from kronos_qlib.plugin.compare import is_stored_finite

SIGNAL_METRICS = ("IC", "ICIR", "Rank IC", "Rank ICIR")
"""What SigAnaRecord logs."""

RISK_METRICS = ("mean", "std", "annualized_return", "information_ratio", "max_drawdown")
"""What PortAnaRecord logs for the excess over the benchmark, with and without cost."""


class PortfolioReportRecord(ACRecordTemp):
    """Log what the backtest earned after costs; keep its daily table and its figure.

    Leaves in the folder `portfolio_report` of the run: `portfolio_metrics.pkl` (a Series),
    `daily.csv`, `equity.png`. The metrics are those of `portfolio_metrics`, under their own names.
    """

    artifact_path = "portfolio_report"
    depend_cls = PortAnaRecord

    def __init__(
        self,
        recorder: Recorder,
        freq: str = "1day",
        days_per_year: float = TRADING_DAYS,
        title: str | None = None,
        skip_existing: bool = False,
    ) -> None:
        """
        Args:
            freq: which of PortAnaRecord's reports, as in `report_normal_1day.pkl`.
            days_per_year: trading days that daily figures are scaled to.
            title: above the figure; None takes the experiment's name.
        """
        super().__init__(recorder=recorder, skip_existing=skip_existing)
        self.freq = freq
        self.days_per_year = days_per_year
        self.title = title

    def list(self) -> list[str]:
        return ["portfolio_metrics.pkl", "daily.csv", "equity.png"]

    def check(self, include_self: bool = False, parents: bool = True) -> None:
        # Qlib's check would ask PortAnaRecord for its list(), which needs that record's settings;
        # and Qlib's generate() forgives a FileNotFoundError, but not this error.
        if parents:
            folder = PortAnaRecord.get_path()
            report = PortAnaRecord.get_path(self.report_name)
            found = self.recorder.list_artifacts(folder)
            if report not in found:
                raise MissingArtifactError(
                    f"PortfolioReportRecord reads {report}, and the run has "
                    f"{', '.join(found) or 'nothing'} in {folder}; list SignalRecord and "
                    f"PortAnaRecord before it, with a backtest at {self.freq}"
                )
        super().check(include_self=include_self, parents=False)

    @property
    def report_name(self) -> str:
        return f"report_normal_{self.freq}.pkl"

    def _generate(self, *args: Any, **kwargs: Any) -> dict[str, object]:
        report = self.load(self.report_name)
        metrics = portfolio_metrics(report, days_per_year=self.days_per_year)
        with tempfile.TemporaryDirectory() as folder:
            daily_table(report).to_csv(Path(folder, "daily.csv"))
            equity_figure(report, self.title or self._title()).savefig(Path(folder, "equity.png"))
            self.recorder.save_objects(local_path=folder, artifact_path=self.get_path())
        self.recorder.log_metrics(**metrics)
        return {"portfolio_metrics.pkl": pd.Series(metrics, name="value")}

    def _title(self) -> str:
        return self.recorder.client.get_experiment(self.recorder.experiment_id).name


class RunCheckRecord(RecordTemp):
    """Fail the run unless every metric it was to log is there and finite. List it last.

    This also catches what Qlib loses without a word: its metrics are written by a thread, which
    dies at the first that MLflow refuses and takes all later ones with it.
    """

    def __init__(
        self, recorder: Recorder, metrics: Sequence[str] | None = None, freq: str = "1day"
    ) -> None:
        """
        Args:
            metrics: names as MLflow shows them; None expects all of SigAnaRecord's,
                PortAnaRecord's and PortfolioReportRecord's.
            freq: the backtest's, which prefixes PortAnaRecord's names.
        """
        super().__init__(recorder)
        self.metrics = expected_metrics(freq) if metrics is None else tuple(metrics)

    def generate(self, **kwargs: Any) -> None:
        await_metrics(self.recorder)
        logged = self.recorder.list_metrics()
        missing = [name for name in self.metrics if name not in logged]
        if missing:
            raise MissingArtifactError(
                f"the run ends without {', '.join(missing)}; list SigAnaRecord, PortAnaRecord and "
                "PortfolioReportRecord before RunCheckRecord, and look above for 'Generation "
                "skipped' or 'Empty label'"
            )
        broken = [name for name in self.metrics if not is_stored_finite(logged[name])]
        if broken:
            shown = ", ".join(f"{name} = {logged[name]:g}" for name in broken)
            raise MissingArtifactError(
                f"the run logged {shown}: no finite number; a score that is the same for every "
                "instrument, or labels that are all NaN, have no rank to correlate"
            )


def expected_metrics(freq: str = "1day") -> tuple[str, ...]:
    """Every metric that a full list of records leaves in a run."""
    excess = [
        f"{freq}.excess_return_{cost}_cost.{name}"
        for cost in ("without", "with")
        for name in RISK_METRICS
    ]
    return (*SIGNAL_METRICS, *excess, *PORTFOLIO_METRICS)


def daily_table(report: pd.DataFrame) -> pd.DataFrame:
    """Qlib's daily report with returns after cost, excess over the benchmark, and drawdown."""
    net = net_returns(report)
    return report.assign(
        net_return=net, excess_return=net - report["bench"], drawdown=drawdown(net)
    )


def await_metrics(recorder: Recorder) -> None:
    """Return once Qlib's logging thread has written all that was handed to it.

    Raises:
        MissingArtifactError: the thread has died, and metrics with it.
    """
    caller = getattr(recorder, "async_log", None)
    if caller is None:  # the run was reopened: Qlib then writes at once
        return
    reached = threading.Event()
    caller(reached.set)  # the queue is first in, first out
    while not reached.wait(timeout=0.2):
        if not caller._t.is_alive() and not reached.is_set():
            raise MissingArtifactError(
                "Qlib's logging thread died before every metric and parameter was written; its "
                "traceback stands above, in 'Exception in thread'"
            )
