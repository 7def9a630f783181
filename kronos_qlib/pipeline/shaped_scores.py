"""Scores shaped over days: neutralised, smoothed, each day as in a backtest over all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from kronos_qlib.data.windows.window import Windows
from kronos_qlib.data.windows.window_dataset import WindowDataset
from kronos_qlib.pipeline.scoring import exposures_from_windows
from kronos_qlib.signals.shaping import Step, exposures_needed, shaped


def shape_scores(
    source: WindowDataset,
    windows: Sequence[Windows],
    scores: Sequence[pd.Series],
    steps: Sequence[Step],
    sectors: Mapping[str, str] | None = None,
    unknown: str = "error",
) -> pd.Series:
    """The last part's scores after all steps; earlier parts are its history.

    Args:
        source: whose windows they are.
        windows: parts in order of time, each by time.
        scores: of each part's windows.
        sectors: instrument to sector, where a step needs it.
        unknown: what is done about an instrument without one, see `signals.shaping.sectors_of`.

    Returns:
        "score" on (datetime, instrument) of the last part.

    Raises:
        BarDataError, ConfigError: as of `exposures_from_windows`.
    """
    needed = exposures_needed(steps)
    exposures = pd.concat(
        [exposures_from_windows(part, needed, sectors, unknown) for part in windows]
    )
    raw = pd.concat(list(scores)).rename("score")
    result = shaped(raw, steps, exposures, source.table.calendar)
    return result.iloc[len(result) - len(scores[-1]) :]


def days_before(source: WindowDataset, windows: Windows, days: int) -> Windows:
    """The windows of the days before the first of some windows; fewer where bars begin.

    Args:
        windows: of `source`, by time.
        days: how many times of the calendar.
    """
    calendar = source.table.calendar
    place = int(windows.table.places[windows.ends[:1]][0])
    start = max(0, place - days)
    if start == place:
        return windows.take(slice(0, 0))
    # A handler that begins with the segment has older bars all the same.
    open_source = replace(source, begin=None)
    last = calendar[place] - np.timedelta64(1, "ns")
    return open_source.windows((calendar[start], last))
