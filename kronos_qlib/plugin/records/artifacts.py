"""What the records of a run read: earlier records' files, its task, its bars' frequency."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from qlib.data import D
from qlib.utils.time import Freq
from qlib.workflow.record_temp import PortAnaRecord, RecordTemp
from qlib.workflow.recorder import Recorder

from kronos_qlib.errors import BarDataError, ConfigError, MissingArtifactError
from kronos_qlib.plugin.pickles.load_pickle import load_pickle
from kronos_qlib.plugin.runs.plain_files import artifact, read_task


def has_artifact(recorder: Recorder, path: str) -> bool:
    """Whether the run holds a file of this name, as "pred.pkl" or "signals/signals.parquet"."""
    folder = path.rpartition("/")[0]
    return path in recorder.list_artifacts(folder or None)


@contextmanager
def saved_files(record: RecordTemp) -> Iterator[Path]:
    """A folder whose files become the record's in its run when the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
        record.recorder.save_objects(local_path=folder, artifact_path=record.get_path())


def experiment_of(recorder: Recorder) -> str:
    """The name of the run's experiment."""
    return str(recorder.client.get_experiment(recorder.experiment_id).name)


def load_needed(recorder: Recorder, path: str, *, reader: str, writer: str) -> Any:
    """A table or plain containers that an earlier record pickled; nothing in it is run.

    Raises:
        MissingArtifactError: it is not there, is None, or is damaged; says which record to list
            before.
        UnsafeArtifactError: it is a pickle of something else.
    """
    found = None
    if has_artifact(recorder, path):
        with artifact(recorder.client, recorder.id, path) as file:
            found = load_pickle(file, f"{path} of run {recorder.id}")
    if found is None:
        raise MissingArtifactError(
            f"{reader} reads {path}, which the run does not have; list {writer} before it"
        )
    return found


def load_predictions(recorder: Recorder, reader: str) -> pd.DataFrame:
    """`pred.pkl` on (datetime, instrument), its score in the first column.

    Args:
        reader: the record that reads it, for messages.

    Raises:
        MissingArtifactError: the run has no `pred.pkl`, or it holds no score.
    """
    pred = load_needed(recorder, "pred.pkl", reader=reader, writer="KronosSignalRecord")
    if not len(pred):
        raise MissingArtifactError(
            f"{reader} reads pred.pkl, and it holds no score; look for what left no window in the "
            "test segment"
        )
    return pred.to_frame("score") if isinstance(pred, pd.Series) else pred


def load_signals(recorder: Recorder) -> pd.DataFrame | None:
    """Every signal the run kept, on (datetime, instrument); None where it kept no table."""
    path = "signals/signals.parquet"
    if not has_artifact(recorder, path):
        return None
    return pd.read_parquet(recorder.download_artifact(path))


def first_of_equals(pred: pd.DataFrame, signals: pd.DataFrame | None) -> dict[str, str]:
    """Each kept signal, and the first column with the very same numbers: one and the same trial.

    "score" goes before all and is the run's own, pred.pkl's first column; it is often a kept
    signal too, under that one's name.
    """
    first = {"score": "score"}
    if signals is None:
        return first
    score = pred.iloc[:, 0].reindex(signals.index).to_numpy(dtype=np.float64)
    seen = {"score": score}
    for name in signals:
        if name == "score":
            continue
        values = signals[name].to_numpy(dtype=np.float64)
        twins = (one for one in seen if np.array_equal(seen[one], values, equal_nan=True))
        first[str(name)] = next(twins, str(name))
        seen.setdefault(first[str(name)], values)
    return first


def count_signals(pred: pd.DataFrame, signals: pd.DataFrame | None) -> int:
    """How many different signals the run's score was, or could have been, chosen from."""
    return len(set(first_of_equals(pred, signals).values()))


def load_task(recorder: Recorder) -> dict[str, Any]:
    """The run's task as its workflow file gave it; empty for a run that Qlib's trainer did not
    begin. Objects in it are named by their class, and not made."""
    return read_task(recorder.client, recorder.id, any_class=True)


def frequency_of(index: pd.Index) -> str:
    """Qlib's name for how often bars come: "day" where all times are midnight, else as "5min".

    Args:
        index: (datetime, instrument) of scores. Minutes are the smallest gap between their times.

    Raises:
        BarDataError: all are of one moment, or not whole minutes apart.
    """
    times = pd.DatetimeIndex(index.get_level_values("datetime").unique()).sort_values()
    if (times == times.normalize()).all():
        return "day"
    if len(times) < 2:
        raise BarDataError(f"the scores are all of {times[0]}: one moment has no frequency")
    minutes = (times[1:] - times[:-1]).min() / pd.Timedelta(minutes=1)
    if minutes != int(minutes):
        raise BarDataError(
            f"the scores' times lie {minutes:g} minutes apart; Qlib knows whole minutes"
        )
    return f"{int(minutes)}min"


def report_frequency(freq: str) -> str:
    """As in the names of Qlib's reports and metrics: "day" is "1day".

    Raises:
        ConfigError: Qlib has no such frequency.
    """
    try:
        return "{}{}".format(*Freq.parse(freq))
    except ValueError as problem:
        raise ConfigError(f"Qlib knows no frequency {freq!r}: give day or as 5min") from problem


def features_at(index: pd.Index, expressions: list[str], freq: str) -> pd.DataFrame:
    """What Qlib computes for these rows and no others: one column an expression.

    Args:
        index: (datetime, instrument), in any order; the result has the same.
    """
    freq = "day" if freq == "1day" else freq  # the reports' name is not that of the files
    names = sorted(index.get_level_values("instrument").unique())
    times = index.get_level_values("datetime")
    frame = D.features(names, expressions, times.min(), times.max(), freq=freq)
    return frame.swaplevel().reindex(index)


def report_frequency_of(recorder: Recorder, who: str, freq: str | None = None) -> str:
    """The frequency of the run's one backtest report, or the one asked for.

    Raises:
        MissingArtifactError: there is no such report.
        ConfigError: there are several and none was asked for.
    """
    folder = PortAnaRecord.get_path()
    found = recorder.list_artifacts(folder)
    start = PortAnaRecord.get_path("report_normal_")
    known = [path[len(start) : -len(".pkl")] for path in found if path.startswith(start)]
    if freq is None and len(known) > 1:
        raise ConfigError(f"the backtest has reports of {', '.join(known)}: set freq to one")
    if not known or (freq is not None and freq not in known):
        raise MissingArtifactError(
            f"{who} reads {start}{freq or '1day'}.pkl, and the run has "
            f"{', '.join(found) or 'nothing'} in {folder}; list KronosSignalRecord and "
            f"BacktestRecord before it{f', with a backtest at {freq}' if freq else ''}"
        )
    return freq or known[0]
