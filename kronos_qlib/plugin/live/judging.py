"""Two models on the days that both have scored and whose labels are known: which ranks better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from qlib.data import D

from kronos_qlib.errors import ConfigError
from kronos_qlib.evaluation.compare.comparison import Signal, compare_signals

NEW, OLD = "candidate", "champion"


@dataclass(frozen=True)
class Judgement:
    """A candidate beside the champion, on the same days and rows."""

    days: int
    candidate: float | None
    """Mean Rank IC; None where none can be had."""
    champion: float | None
    difference: float | None
    """Mean daily difference, candidate less champion; None where it cannot be tested."""
    p: float | None
    """Two-sided, of the paired test."""
    is_better: bool
    """Whether the candidate is, significantly at 5 %."""
    words: str

    def as_json(self) -> dict[str, Any]:
        """For a file, and for the ledger."""
        return dict(vars(self))


def judge(
    candidate: Mapping[pd.Timestamp, pd.Series[float]],
    champion: Mapping[pd.Timestamp, pd.Series[float]],
    *,
    label: str,
    label_bars: int,
    freq: str = "day",
) -> Judgement:
    """Test the daily Rank IC of one against that of the other; Qlib is open on the bars.

    Args:
        candidate, champion: scores on instrument, by day; the days that both have are judged.
        label: Qlib's expression of the return that was to be predicted.
        label_bars: that it runs over.
    """
    days = sorted(set(candidate) & set(champion))
    signals = {}
    for name, scores in ((NEW, candidate), (OLD, champion)):
        table = pd.concat({day: scores[day].rename("score") for day in days})
        signals[name] = table.rename_axis(["datetime", "instrument"])
    names = sorted(set().union(*(each.index.unique("instrument") for each in signals.values())))
    came = D.features(names, [label], days[0], days[-1], freq=freq).iloc[:, 0].rename("label")
    came = came.swaplevel().rename_axis(["datetime", "instrument"]).sort_index()
    try:
        found = compare_signals(
            {name: Signal(score, came) for name, score in signals.items()}, label_bars=label_bars
        )
    except ConfigError as reason:
        return Judgement(len(days), None, None, None, None, False, f"no test: {reason}")
    means = found.daily.mean()
    (pair,) = found.pairs
    test, judged = pair.difference, len(found.daily)
    shown = f"Rank IC {means[NEW]:.4f} beside {means[OLD]:.4f} on {judged} days"
    ours = (judged, float(means[NEW]), float(means[OLD]))
    if test is None:
        return Judgement(*ours, None, None, False, f"{shown}; no test: {pair.reason}")
    is_better = pair.is_significant and test.mean > 0
    verdict = "significant" if pair.is_significant else "not significant"
    return Judgement(
        *ours,
        float(test.mean),
        test.p,
        is_better,
        f"{shown}, difference {test.mean:+.4f}, p {test.p:.3f}: {verdict}",
    )
