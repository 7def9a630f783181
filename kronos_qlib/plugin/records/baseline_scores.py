"""Baselines and styles of `signals.past_bars` at the rows of a score, from Qlib's bars."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd

from kronos_qlib.plugin.provider.reader import read_calendar, read_table
from kronos_qlib.plugin.records.artifacts import frequency_of
from kronos_qlib.schema import AMOUNT, CLOSE
from kronos_qlib.signals.past_bars import BASELINES, BROKEN, FROM_AMOUNT, STYLES, bars_needed

logger = logging.getLogger(__name__)

REACH = 10
"""A window's bars are looked for among this many times as many bars of the calendar."""

ROWS_AT_ONCE = 50_000
"""Windows gathered together: of 22 bars they are 26 MB."""


def baselines_at(index: pd.Index, kinds: Sequence[str] = tuple(BASELINES)) -> pd.DataFrame:
    """What each baseline or style says of an instrument at a moment, by the bars up to that one.

    Args:
        index: (datetime, instrument) of scores, in any order, at the frequency of the bars.
        kinds: of BASELINES and STYLES.

    Returns:
        On the same index, a column a kind. NaN where the instrument has no bar at the moment, or
        fewer than the baseline reads among the last REACH times as many of the calendar; or where
        one of these has a price or an amount without a logarithm (the log counts such rows).
        Those of FROM_AMOUNT are left out, with a warning, where the provider knows of no volume.

    Raises:
        BarDataError: the provider has no whole bars of these instruments.
    """
    freq = frequency_of(index)
    times = index.get_level_values("datetime").to_numpy("datetime64[ns]")
    names = index.get_level_values("instrument")
    calendar = read_calendar(freq)
    needed = {kind: bars_needed(kind) for kind in kinds}
    back = REACH * max(needed.values(), default=1)
    first = max(0, int(np.searchsorted(calendar, times.min())) - back)
    table = read_table(
        sorted(names.unique()),
        freq,
        first=pd.Timestamp(calendar[min(first, len(calendar) - 1)]),
        last=pd.Timestamp(times.max()),
        incomplete="skip",
        invalid="keep",
    )
    # Bars lie by instrument and then by time, so that one key finds a row's own.
    size = len(calendar) + 1
    own = np.repeat(np.arange(len(table.instruments)), np.diff(table.offsets))
    keys = own * size + table.places.astype(np.int64)
    owner = pd.Index(table.instruments).get_indexer(names)
    place = np.searchsorted(calendar, times)
    key = owner * size + place
    ends = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
    there = (owner >= 0) & np.isin(times, calendar) & (keys[ends] == key)
    bars_so_far = ends - table.offsets[np.maximum(owner, 0)] + 1
    broken = ~(table.values[:, CLOSE] > 0) | ~(table.values[:, AMOUNT] >= 0)
    broken_before = np.concatenate([[0], np.cumsum(broken)])

    found = {}
    for kind, length in needed.items():
        if kind in FROM_AMOUNT and not table.values[:, AMOUNT].any():
            logger.warning("%s is unknown: the provider has neither $amount nor $volume", kind)
            continue
        measure = BASELINES[kind] if kind in BASELINES else STYLES[kind]
        full = there & (bars_so_far >= length)
        start = np.maximum(ends + 1 - length, 0)
        sound = broken_before[ends + 1] == broken_before[start]
        if spoilt := int((full & ~sound).sum()):
            logger.warning("%s is unknown of %d rows: %s", kind, spoilt, BROKEN)
        rows = np.flatnonzero(full & sound)
        values = np.full(len(index), np.nan)
        for begin in range(0, len(rows), ROWS_AT_ONCE):
            some = rows[begin : begin + ROWS_AT_ONCE]
            windows = table.values[ends[some, None] + np.arange(1 - length, 1)]
            values[some] = measure.find(windows, measure.bars, measure.skip)
        found[kind] = values
    return pd.DataFrame(found, index=index)
