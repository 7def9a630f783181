"""KronosSignalRecord: any model's scores and signals, kept with the run."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
from qlib.data.dataset import DatasetH
from qlib.log import get_module_logger
from qlib.utils.serial import Serializable
from qlib.workflow.record_temp import SignalRecord

from kronos_qlib.errors import ConfigError, MissingArtifactError
from kronos_qlib.plugin.records.artifacts import load_task
from kronos_qlib.plugin.runs.about_run import describe_run
from kronos_qlib.plugin.runs.kept_models import STATE, write_model
from kronos_qlib.plugin.runs.manager import claim_run
from kronos_qlib.plugin.runs.plain_files import LABELS, SCORES, TASK, task_json, write_table

logger = get_module_logger(__name__)

SIGNALS_FILE = "signals/signals.parquet"
"""Where a run keeps all signals: a frame on (datetime, instrument), "score" first."""


class KronosSignalRecord(SignalRecord):
    """Qlib's SignalRecord, and beside its `pred.pkl` and `label.pkl` every signal of the model.

    A model that has `signals(dataset, segment)` (KronosModel, BlendModel) is asked for its frame;
    of any other the frame is its score. All come from one pass: `pred.pkl` holds the frame's
    column "score". Scores, labels and the task are kept as Parquet and JSON too, for readers who
    must not run what a pickle's writer likes (`kronos-qlib compare`), and what fitting left of the
    model too, in `weights` (`kronos-qlib score`). The run gets a name, digests of weights and bars,
    and versions: see `about_run`. Unlike Qlib's, it raises where labels are not to be had: what
    reads them later would be skipped without a word.
    """

    artifact_path = None
    needs_extra = None
    reads = ()
    leaves = ("pred.pkl", "label.pkl", SCORES.plain, LABELS.plain, SIGNALS_FILE, STATE)

    def generate(self, **kwargs: object) -> None:
        """Score the test segment, read its labels, and keep both with what the model is made of.

        Raises:
            ConfigError: the data set is none of Qlib's DatasetH.
            MissingArtifactError: the model scored nothing, or the handler keeps no label.
        """
        if not isinstance(self.dataset, DatasetH):
            raise ConfigError(
                "KronosSignalRecord reads labels from a Qlib DatasetH such as KronosDataset, got "
                f"{type(self.dataset).__name__}"
            )
        claim_run(self.recorder)
        frame = signals_frame(self.model, self.dataset)
        describe_run(self.recorder, self.model, self.dataset, frame)
        label = self.generate_label(self.dataset)
        if label is None:
            raise MissingArtifactError(
                "the handler keeps no raw label (drop_raw=True): leave drop_raw at false"
            )
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            for kept, table in ((SCORES, frame[["score"]]), (LABELS, label)):
                Serializable.general_dump(table, place / kept.pickled)
                pickled = (place / kept.pickled).read_bytes()
                write_table(table, place / kept.plain, pickled)
            if task := load_task(self.recorder):
                (place / TASK.plain).write_text(task_json(task), encoding="utf-8")
            write_model(self.model, place)
            signals = place / SIGNALS_FILE
            signals.parent.mkdir()
            frame.to_parquet(signals)
            self.recorder.save_objects(local_path=folder)
        logger.info(f"{len(frame)} rows of {', '.join(map(str, frame.columns))} in {SIGNALS_FILE}")

    def list(self) -> list[str]:
        """Files of the record."""
        return [*self.leaves]


def signals_frame(model: Any, dataset: Any, segment: str = "test") -> pd.DataFrame:
    """Every signal of any Qlib model on (datetime, instrument), "score" first.

    Raises:
        MissingArtifactError: the model scored nothing.
    """
    signals = getattr(model, "signals", None)
    found = signals(dataset, segment) if callable(signals) else model.predict(dataset, segment)
    return frame_of(found, type(model).__name__, segment)


def frame_of(found: Any, whose: str, segment: str) -> pd.DataFrame:
    """What a model said of a segment, in that form.

    Args:
        whose: the model's class, for the error.

    Raises:
        MissingArtifactError: the model scored nothing.
    """
    frame = found.to_frame("score") if isinstance(found, pd.Series) else pd.DataFrame(found)
    if frame.empty:
        raise MissingArtifactError(f"{whose} scored nothing in the segment {segment!r}")
    if "score" not in frame:  # to Qlib's records the first column is the score
        frame = frame.rename(columns={frame.columns[0]: "score"})
    others = [name for name in frame.columns if name != "score"]
    frame = frame[["score", *others]].rename(columns=str)
    if list(frame.index.names) == ["instrument", "datetime"]:
        frame = frame.swaplevel()
    return frame.rename_axis(index=["datetime", "instrument"]).sort_index()
