"""A record that puts the run beside others when its workflow ends.

- class: CompareRecord
  module_path: kronos_qlib.plugin.records
  kwargs: {experiments: [lightgbm]}
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qlib.workflow.record_temp import RecordTemp
from qlib.workflow.recorder import Recorder

from kronos_qlib.errors import ConfigError, MissingArtifactError
from kronos_qlib.evaluation.compare.comparison import check_comparable
from kronos_qlib.evaluation.compare.comparison_text import comparison_text
from kronos_qlib.evaluation.compare.page import comparison_page
from kronos_qlib.plugin.records.artifacts import experiment_of, saved_files
from kronos_qlib.plugin.records.run_check import await_metrics
from kronos_qlib.plugin.runs.about_run import same_market
from kronos_qlib.plugin.runs.run_comparison import comparison_of
from kronos_qlib.plugin.runs.stored_runs import read_signal, row_of
from kronos_qlib.plugin.runs.tracking import finished_runs

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger(__name__)


class CompareRecord(RecordTemp):
    """Set this run beside the latest finished run of other experiments on its market. List it last.

    Leaves in the folder `comparison` of the run: `comparison.md`, `table.csv` (a row per run),
    `daily_rank_ic.csv` (days x runs, on common rows) and, if asked for, `comparison.html`.

    Runs of another market (tagged with another folder of bars or universe, or with none of this
    run's days) are passed over. An experiment without a finished run of this market, or whose run
    was judged by other labels or on other days, is left out: the log and the page's notes say so.
    Where nothing is left to compare with, nothing is written but a line in the log. A run is not
    lost by what it is compared with.
    """

    artifact_path = "comparison"
    needs_extra = "report"
    reads = ("pred.pkl", "label.pkl")
    leaves = ("comparison.md", "table.csv", "daily_rank_ic.csv", "comparison.html")

    def __init__(
        self, recorder: Recorder, experiments: Sequence[str] = (), html: bool = True
    ) -> None:
        """
        Args:
            experiments: MLflow experiments of the same store. This run's own stands for its
                latest finished run, named "... (before)".
            html: write the page too, some 5 MB.
        """
        super().__init__(recorder)
        if isinstance(experiments, str):
            raise ConfigError(f"CompareRecord: experiments is a list of names, got {experiments!r}")
        self.experiments = tuple(experiments)
        self.html = html

    def list(self) -> list[str]:
        """Files of the record, without the page where none is asked for."""
        return [name for name in self.leaves if self.html or not name.endswith(".html")]

    def generate(self, **kwargs: object) -> None:
        """
        Raises:
            MissingArtifactError: this run has no predictions, labels or IC; which record to list
                before this one.
        """
        await_metrics(self.recorder)  # they are read back from MLflow
        client = self.recorder.client
        mine: Run = client.get_run(self.recorder.id)
        name = experiment_of(self.recorder)
        runs, notes = {name: mine}, []
        try:
            signals = {name: read_signal(client, mine)}
        except MissingArtifactError as lacking:
            raise MissingArtifactError(f"CompareRecord: {lacking}; list one before it") from lacking

        for experiment in self.experiments:
            label = f"{name} (before)" if experiment == name else experiment
            try:
                other = _latest_of_market(client, experiment, mine)
                row_of(label, other)
                found = {**signals, label: read_signal(client, other)}
                check_comparable(found)
            except (ConfigError, MissingArtifactError) as reason:
                # The first run of an experiment has none before it.
                if experiment != name or _has_finished(client, name):
                    notes.append(f"{label} is left out: {str(reason).rstrip('.?')}.")
            else:
                runs[label], signals = other, found
        if len(runs) == 1:
            why = " ".join(notes) or "no other run is named, or has finished before."
            logger.warning("CompareRecord writes no comparison, this run stands alone: %s", why)
            return
        for note in notes:
            logger.warning(note)
        comparison = comparison_of(client, runs, notes)
        with saved_files(self) as place:
            text = comparison_text(comparison, markdown=True)
            (place / "comparison.md").write_text(text + "\n", encoding="utf-8")
            comparison.table.to_csv(place / "table.csv")
            if comparison.signals is not None:
                comparison.signals.daily.to_csv(place / "daily_rank_ic.csv")
            if self.html:
                page = comparison_page(comparison, f"{name} beside others")
                (place / "comparison.html").write_text(page, encoding="utf-8")


def _latest_of_market(client: MlflowClient, experiment: str, mine: Run) -> Run:
    """The last finished run of an experiment on the market of a run, as far as their tags show.

    Raises:
        ConfigError, MissingArtifactError: as of `finished_runs`.
        MissingArtifactError: all of its runs are of other markets.
    """
    others = ""
    for run in finished_runs(client, experiment):
        other = same_market(mine.data.tags, run.data.tags)
        if not other:
            return run
        others = others or other
    raise MissingArtifactError(
        f"experiment {experiment!r} has no finished run of this market; its last is of another "
        f"({others})"
    )


def _has_finished(client: MlflowClient, experiment: str) -> bool:
    try:
        return next(finished_runs(client, experiment), None) is not None
    except (ConfigError, MissingArtifactError):
        return False
