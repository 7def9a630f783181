"""RunCheckRecord: a last record that lets no run pass without its metrics."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from qlib.workflow.record_temp import RecordTemp
from qlib.workflow.recorder import Recorder

from kronos_qlib.errors import MissingArtifactError
from kronos_qlib.evaluation.portfolio.metrics import (
    PORTFOLIO_METRICS,
)
from kronos_qlib.plugin.qlib_internals import wait_for_log
from kronos_qlib.plugin.records.artifacts import report_frequency_of
from kronos_qlib.plugin.records.portfolio_report import (
    RISK_METRICS,
    SEARCH_AND_COST_METRICS,
    SIGNAL_METRICS,
)
from kronos_qlib.plugin.records.signal_report import SIGNAL_REPORT_METRICS
from kronos_qlib.plugin.runs.stored_runs import is_stored_finite

logger = logging.getLogger(__name__)


class RunCheckRecord(RecordTemp):
    """Fail the run unless every metric it was to log is there and finite. List it last.

    This also catches what Qlib loses without a word: its metrics are written by a thread, which
    dies at the first that MLflow refuses and takes all later ones with it.
    """

    artifact_path = None
    needs_extra = None
    reads = ()
    leaves = ()

    def __init__(
        self,
        recorder: Recorder,
        metrics: Sequence[str] | None = None,
        freq: str | None = None,
    ) -> None:
        """
        Args:
            metrics: names as MLflow shows them; None expects all of SigAnaRecord's,
                SignalReportRecord's, BacktestRecord's and PortfolioReportRecord's.
            freq: the backtest's, which prefixes its names; None takes the only report's.
        """
        super().__init__(recorder)
        self.metrics = metrics
        self.freq = freq

    def generate(self, **kwargs: object) -> None:
        """Wait for the metrics, and check them.

        Raises:
            MissingArtifactError: one is missing or no finite number; names it.
        """
        await_metrics(self.recorder)
        names = self.metrics
        if names is None:
            freq = report_frequency_of(self.recorder, type(self).__name__, self.freq)
            names = expected_metrics(freq)
        logged = self.recorder.list_metrics()
        missing = [name for name in names if name not in logged]
        if missing:
            raise MissingArtifactError(
                f"the run ends without {', '.join(missing)}; list SigAnaRecord, "
                "SignalReportRecord, BacktestRecord and PortfolioReportRecord before "
                "RunCheckRecord, and look above for 'Generation skipped' or 'Empty label'"
            )
        broken = [name for name in names if not is_stored_finite(logged[name])]
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
    return (
        *SIGNAL_METRICS,
        *SIGNAL_REPORT_METRICS,
        *excess,
        *PORTFOLIO_METRICS,
        *SEARCH_AND_COST_METRICS,
    )


def await_metrics(recorder: Recorder) -> None:
    """Return once Qlib's logging thread has written all that was handed to it.

    Raises:
        MissingArtifactError: the thread has died, and metrics with it.
    """
    if not wait_for_log(recorder):
        raise MissingArtifactError(
            "Qlib's logging thread died before every metric and parameter was written; its "
            "traceback stands above, in 'Exception in thread'"
        )
