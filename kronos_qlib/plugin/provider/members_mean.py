"""The equal-weight mean of a universe's members, day by day, as an instrument of a Qlib folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from kronos_qlib.errors import ConfigError
from kronos_qlib.files import replacing
from kronos_qlib.plugin.provider.faults import feature_folder, stored_calendar, stored_closes
from kronos_qlib.plugin.provider.writable_bars import check_symbols

START = 1000.0
"""Where a mean begins."""


def check_mean_name(folder: Path, name: str, listed: Mapping[str, object], overwrite: bool) -> None:
    """Refuse a name that a mean cannot have.

    Raises:
        BarDataError: it cannot be an instrument's.
        ConfigError: it has bars of its own, or is there already.
    """
    check_symbols([name])
    if name.upper() in {one.upper() for one in listed}:
        raise ConfigError(f"{name} is an instrument of {folder} with bars of its own")
    target = folder / "features" / feature_folder(name)
    if target.exists() and not overwrite:
        raise ConfigError(f"{target} is there already; --overwrite replaces it")


def write_mean(
    folder: Path,
    name: str,
    freq: str,
    spans: Mapping[str, Sequence[tuple[np.datetime64, np.datetime64]]],
) -> None:
    """A portfolio of each day's members in equal parts, rebalanced at every close.

    A member counts with its return since its last close, so that a suspended share brings its jump
    on the day it trades again. The instrument stands in no market, so that no model scores it.

    Args:
        spans: instrument to the days, first and last, on which it is a member.
    """
    calendar = stored_calendar(folder, freq)
    total, count = np.zeros(len(calendar)), np.zeros(len(calendar), dtype=np.int64)
    for symbol, days in spans.items():
        begin, stored = stored_closes(folder, freq, symbol)
        closes = stored.astype(np.float64)
        there = np.flatnonzero(np.isfinite(closes) & (closes > 0))
        moves = closes[there[1:]] / closes[there[:-1]] - 1
        places = begin + there[1:]
        dates = calendar[places].astype("datetime64[D]")
        is_member = np.zeros(len(places), dtype=bool)
        for first, last in days:
            is_member |= (dates >= first) & (dates <= last)
        np.add.at(total, places[is_member], moves[is_member])
        np.add.at(count, places[is_member], 1)
    move = np.divide(total, count, out=np.zeros(len(total)), where=count > 0)
    close = START * np.cumprod(1 + move)
    opened = np.concatenate(([START], close[:-1]))
    fields = {
        "open": opened,
        "close": close,
        "high": np.maximum(opened, close),
        "low": np.minimum(opened, close),
        "factor": np.ones(len(close)),
        "change": move,
    }
    with replacing(folder / "features" / feature_folder(name)) as draft:
        draft.mkdir()
        for field, column in fields.items():
            np.concatenate(([0.0], column)).astype("<f4").tofile(draft / f"{field}.{freq}.bin")
