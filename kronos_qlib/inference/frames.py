"""Frames and timestamps as users bring them, to bars and stamps; every refusal names the series."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.data.calendar import Times, to_times
from kronos_qlib.errors import BarDataError, CalendarError, KronosError
from kronos_qlib.schema import PRICE_COLUMNS


def bars_of_frame(frame: pd.DataFrame, name: str) -> npt.NDArray[np.float32]:
    """One series' bars.

    Args:
        frame: columns open, high, low, close, and if known volume and amount. A missing volume is
            zeros; a missing amount is volume x the mean of the four prices. An amount that is
            given is kept, with or without volume.
        name: what to call the series in an error.

    Returns:
        (T, 6) float32.

    Raises:
        BarDataError: no frame, fewer than 2 bars, a price column lacks, or a value is missing or
            not finite.
    """
    if not isinstance(frame, pd.DataFrame):
        raise BarDataError(f"{name}: expected a DataFrame of bars, got {type(frame).__name__}")
    lacking = [column for column in PRICE_COLUMNS if column not in frame.columns]
    if lacking:
        raise BarDataError(
            f"{name}: the frame lacks {', '.join(lacking)}; it has "
            f"{', '.join(map(str, frame.columns)) or 'no columns'}"
        )
    if len(frame) < 2:
        raise BarDataError(f"{name}: a lookback needs at least 2 bars, got {len(frame)}")
    prices = [_numbers(frame, column, name) for column in PRICE_COLUMNS]
    has_volume, has_amount = "volume" in frame.columns, "amount" in frame.columns
    volume = _numbers(frame, "volume", name) if has_volume else np.zeros(len(frame))
    mean_price = np.mean(prices, axis=0)
    amount = _numbers(frame, "amount", name) if has_amount else volume * mean_price
    return np.stack([*prices, volume, amount], axis=-1).astype(np.float32)


def timestamps_of(times: Any, length: int, name: str, what: str) -> Times:
    """One series' timestamps: a Series, a DatetimeIndex, an array or a list.

    Raises:
        CalendarError: their number is not `length`, one cannot be read, or they do not increase.
    """
    try:
        moments = to_times(times)
    except KronosError as bad:
        raise CalendarError(f"{name}, {what}: {bad}") from bad
    if moments.shape != (length,):
        raise CalendarError(f"{name}: {what} has {moments.size} timestamps, expected {length}")
    falls = np.flatnonzero(np.diff(moments) <= np.timedelta64(0))
    if falls.size:
        place = int(falls[0]) + 1
        raise CalendarError(
            f"{name}: {what} does not increase at number {place + 1}: "
            f"{moments[place - 1]} is followed by {moments[place]}"
        )
    return moments


def _numbers(frame: pd.DataFrame, column: str, name: str) -> npt.NDArray[np.float64]:
    try:
        values = frame[column].to_numpy(dtype=np.float64)
    except (TypeError, ValueError) as bad:
        raise BarDataError(f"{name}: column {column} is not numeric: {bad}") from bad
    broken = np.flatnonzero(~np.isfinite(values))
    if broken.size:
        raise BarDataError(
            f"{name}: {column} is missing or not finite in row {frame.index[broken[0]]} "
            f"({broken.size} such rows); fill or drop them first"
        )
    return values
