"""How a run ranks its newest day, beside what it scored on the days before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from kronos_qlib.errors import MissingArtifactError
from kronos_qlib.plugin.records.signal_record import SIGNALS_FILE
from kronos_qlib.plugin.runs.plain_files import SCORES, read_signals, read_table

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

HISTORY_DAYS = 60
"""Days of scores that a percentile and a sparkline are of."""
KEY_SIGNALS = {
    "expected_return": "expected_return",
    "prob_up": "prob_up",
    "volatility": "volatility",
    "shortfall_5": "expected_shortfall@0.05",
}
"""What a ranking shows beside the score, and the run's signal behind each."""


@dataclass(frozen=True)
class StoredScores:
    """What a run predicted last."""

    history: pd.DataFrame
    """(days, instruments): scores of at most `HISTORY_DAYS` days, oldest first."""
    signals: pd.DataFrame
    """(instruments of the newest day, columns of `KEY_SIGNALS` that the run keeps)."""


def stored_scores(client: MlflowClient, run: Run, days: int = HISTORY_DAYS) -> StoredScores:
    """The last days of a run's scores, and its other signals on the newest of them.

    Of several bars a day those of the newest time of each day count.

    Raises:
        MissingArtifactError: the run keeps no scores, or they are damaged.
        UnsafeArtifactError: they can be read only by running their writer's code.
    """
    run_id = run.info.run_id
    scores = read_table(client, run_id, SCORES).iloc[:, 0].astype("float64").dropna()
    if scores.empty:
        raise MissingArtifactError(f"run {run_id} scored nothing")
    moments = pd.DatetimeIndex(scores.index.get_level_values("datetime"))
    unique = moments.unique().sort_values()
    last_of_day = unique[~unique.normalize().duplicated(keep="last")][-days:]
    history = scores[moments.isin(last_of_day)].unstack("instrument").sort_index()
    newest = history.index[-1]
    signals = read_signals(client, run_id, SIGNALS_FILE, list(KEY_SIGNALS.values()))
    if len(signals.columns):
        at = pd.DatetimeIndex(signals.index.get_level_values("datetime")) == newest
        signals = signals[at].droplevel("datetime")
        names = {theirs: ours for ours, theirs in KEY_SIGNALS.items()}
        signals = signals.rename(columns=names)
    return StoredScores(history, signals)


def percentiles(history: pd.DataFrame, scores: pd.Series[float]) -> pd.Series[float]:
    """Where each name's score stands among its own of the history, in [0, 1].

    The share of its days whose score is below, and half of those with the same; NaN for a name
    with fewer than 5 days.
    """
    own = history.reindex(columns=scores.index)
    below = own.lt(scores, axis=1).sum()
    same = own.eq(scores, axis=1).sum()
    counted = own.notna().sum()
    return ((below + same / 2) / counted).where(counted >= 5)
