"""KronosSignalRecord: any model's scores and signals, kept with the run."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
from qlib.data.dataset import DatasetH
from qlib.log import get_module_logger
from qlib.workflow.record_temp import SignalRecord

from kronos_qlib.errors import ConfigError, MissingArtifactError

logger = get_module_logger(__name__)

SIGNALS_FILE = "signals/signals.parquet"
"""Where a run keeps all signals: a frame on (datetime, instrument), "score" first."""


class KronosSignalRecord(SignalRecord):
    """Qlib's SignalRecord, and beside its `pred.pkl` and `label.pkl` every signal of the model.

    A model that has `signals(dataset, segment)` (KronosModel, BlendModel) is asked for its frame;
    of any other the frame is its score. All come from one pass: `pred.pkl` holds the frame's
    column "score". Unlike Qlib's, it raises where labels are not to be had: what reads them later
    would be skipped without a word.
    """

    def generate(self, **kwargs: Any) -> None:
        if not isinstance(self.dataset, DatasetH):
            raise ConfigError(
                "KronosSignalRecord reads labels from a Qlib DatasetH such as KronosDataset, got "
                f"{type(self.dataset).__name__}"
            )
        frame = signals_frame(self.model, self.dataset)
        label = self.generate_label(self.dataset)
        if label is None:
            raise MissingArtifactError(
                "the handler keeps no raw label (drop_raw=True): leave drop_raw at false"
            )
        self.save(**{"pred.pkl": frame[["score"]], "label.pkl": label})
        with tempfile.TemporaryDirectory() as folder:
            name = Path(SIGNALS_FILE).name
            frame.to_parquet(Path(folder, name))
            self.recorder.save_objects(
                local_path=str(Path(folder, name)), artifact_path=str(Path(SIGNALS_FILE).parent)
            )
        logger.info(f"{len(frame)} rows of {', '.join(map(str, frame.columns))} in {SIGNALS_FILE}")

    def list(self) -> list[str]:
        return ["pred.pkl", "label.pkl", SIGNALS_FILE]


def signals_frame(model: Any, dataset: Any, segment: str = "test") -> pd.DataFrame:
    """Every signal of any Qlib model on (datetime, instrument), "score" first.

    Raises:
        MissingArtifactError: the model scored nothing.
    """
    signals = getattr(model, "signals", None)
    found = signals(dataset, segment) if callable(signals) else model.predict(dataset, segment)
    frame = found.to_frame("score") if isinstance(found, pd.Series) else pd.DataFrame(found)
    if frame.empty:
        raise MissingArtifactError(
            f"{type(model).__name__} scored nothing in the segment {segment!r}"
        )
    if "score" not in frame:  # to Qlib's records the first column is the score
        frame = frame.rename(columns={frame.columns[0]: "score"})
    others = [name for name in frame.columns if name != "score"]
    frame = frame[["score", *others]].rename(columns=str)
    if list(frame.index.names) == ["instrument", "datetime"]:
        frame = frame.swaplevel()
    return frame.rename_axis(index=["datetime", "instrument"]).sort_index()
