"""Users' frames and timestamps to bars and times; every error names the series.

Shape letters: L bars of a lookback.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.data.calendar.exchanges import exchange_zone
from kronos_qlib.data.calendar.stamps import (
    Ahead,
    Times,
    bars_ahead,
    doubt_of_given,
    moments_of,
    to_times,
)
from kronos_qlib.data.calendar.time_text import show_span, show_time
from kronos_qlib.data.calendar.timestamps import is_midnight
from kronos_qlib.data.columns.matching import match_columns
from kronos_qlib.data.columns.number_columns import to_numbers
from kronos_qlib.data.columns.spelling import COMPACT, compact
from kronos_qlib.data.columns.unread import check_unread
from kronos_qlib.data.files.formats import read_frame
from kronos_qlib.data.files.raw import RawTable
from kronos_qlib.data.rules import (
    FLOAT32_SLACK,
    MAX_MOVE,
    REPEATED,
    UNTRADED,
    find_faults,
    find_jumps,
    find_small_splits,
    show_jump,
)
from kronos_qlib.errors import BarDataError, CalendarError, ConfigError, KronosError, some_of
from kronos_qlib.schema import BAR_COLUMNS, CLOSE, PRICE_COLUMNS, SIZE_COLUMNS

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Series:
    """One series as the network takes it.

    bars: (L, 6) float32. past, ahead: (L,) and (horizon,) datetime64[ns].
    """

    bars: npt.NDArray[np.float32]
    past: Times
    ahead: Times


def series_of_frames(
    frames: Sequence[pd.DataFrame],
    past: Sequence[Any],
    ahead: Sequence[Any] | None,
    horizon: int | None,
    names: Sequence[str] | None,
    exchange: str | None,
    freq: str | None,
    *,
    warn: bool = True,
) -> list[Series]:
    """Read several series, of equal length or not; all are read before any is forecast.

    Args:
        past, ahead: the timestamps of each frame and of the bars after it. Without `ahead` they
            are made from `exchange`, `freq` or neither, see `calendar.future_times`. What is
            doubtful of them is logged.
        horizon: bars ahead; None takes as many as `ahead` has.
        names: of the series, for errors.
        warn: log what is doubtful of the times to come.

    Raises:
        BarDataError, CalendarError: name the series and what is wrong.
        ConfigError: the bars to come are described twice.
    """
    if isinstance(names, str):
        raise BarDataError(f"keys is a list of names, one for each series, got {names!r}")
    if isinstance(frames, pd.DataFrame):
        raise BarDataError("expected a list of DataFrames, got one DataFrame: put it in a list")
    counts = {len(frames), len(past), len(frames if ahead is None else ahead)}
    counts.add(len(frames if names is None else names))
    if len(counts) != 1:
        lists = {"x_timestamps": past, "y_timestamps": ahead, "keys": names}
        given = [f"{len(found)} {what}" for what, found in lists.items() if found is not None]
        raise BarDataError(
            f"got {len(frames)} frames, {' and '.join(given)}; each series needs one of each"
        )
    if ahead is None:
        if horizon is None:
            raise ConfigError("without y_timestamp, pred_len must say how many bars to forecast")
    elif exchange is not None or freq is not None:
        raise ConfigError("y_timestamp is given: leave out exchange and freq, which would make it")
    elif horizon is None:
        horizon = len(ahead[0]) if len(ahead) else 1
    horizon = whole("pred_len", horizon)
    result = []
    doubts: dict[str, list[str]] = {}
    made: dict[bytes, Ahead] = {}  # series of one exchange share their times
    for place, frame in enumerate(frames):
        name = f"series {place}" if names is None else names[place]
        bars = bars_of_frame(frame, name)
        before = timestamps_of(past[place], len(bars), name, "x_timestamp")
        if ahead is not None:
            after = timestamps_of(ahead[place], horizon, name, "y_timestamp")
            both = np.concatenate((before, after))
            timestamps_of(both, len(both), name, "the time")
            times = both.tobytes()
            if times not in made:
                doubt = doubt_of_given(before, after)
                made[times] = Ahead(after, "given", (doubt,) if doubt else ())
        else:
            _check_utc(past[place], name, exchange)
            times = before.tobytes()
            if times not in made:
                try:
                    made[times] = bars_ahead(before, horizon, exchange=exchange, freq=freq)
                except CalendarError as bad:
                    raise CalendarError(f"{name}: {bad}") from bad
        for doubt in made[times].doubts:
            doubts.setdefault(doubt, []).append(name)
        result.append(Series(bars, before, made[times].times))
    if not warn:
        return result
    for doubt, whose in doubts.items():  # a script that asks for no logging sees warnings
        logger.warning("%s: %s", some_of(whose, 1), doubt)
    return result


def doubts_of(bars: npt.NDArray[np.float32], times: Times) -> list[str]:
    """Broken rules of `data.rules` and jumps of the close, in bars (L, 6) at times (L,)."""
    doubts = []
    for rule, flags in find_faults(bars, slack=FLOAT32_SLACK).items():
        if flags.any():
            named = {UNTRADED: "did not trade", REPEATED: "repeat the bar before"}
            what = named.get(rule, f"break the rule {rule}")
            doubts.append(
                f"{int(flags.sum())} of {len(bars)} bars {what}, {show_span(times[flags])}"
            )
    closes = bars[:, CLOSE].astype(np.float64)
    starts = np.zeros(len(closes), dtype=bool)
    starts[:1] = True
    jumps = np.union1d(find_jumps(closes, starts, MAX_MOVE), find_small_splits(bars, starts))
    for row in [one for one in jumps.tolist() if closes[one - 1] > 0 and closes[one] > 0]:
        doubts.append(
            f"{show_time(times[row])} the close jumps from "
            f"{show_jump(*closes[row - 1 : row + 1])}; if that is a split, adjust the bars "
            "before it (repair split-jumps)"
        )
    return doubts


def warn_of_doubts(series: Sequence[Series], names: Sequence[str] | None, seen: int) -> None:
    """Log one warning for all series; they are forecast as they are.

    Args:
        seen: how many of the last bars the network sees; earlier ones are not checked.
    """
    found = []
    for place, one in enumerate(series):
        if doubts := doubts_of(one.bars[-seen:], one.past[-seen:]):
            name = f"series {place}" if names is None else names[place]
            found.append(f"{name}: {some_of(doubts, between='; ')}")
    if found:
        logger.warning(
            "the lookback of %d of %d series looks wrong and is taken as it is: %s",
            len(found),
            len(series),
            some_of(found, between="; "),
        )


def bars_of_frame(frame: pd.DataFrame, name: str) -> npt.NDArray[np.float32]:
    """One series' bars.

    Args:
        frame: columns open, high, low, close, and if known volume and amount, under these names or
            those that `read_bars` knows. A missing volume is zeros; a missing amount is volume x
            the mean of the four prices. An amount that is given is kept, with or without volume.
        name: what to call the series in an error.

    Returns:
        (T, 6) float32.

    Raises:
        BarDataError: no frame, fewer than 2 bars, several instruments, a price column lacks, a
            column that looks like volume is not certainly it, or a value is missing or not
            finite.
    """
    if not isinstance(frame, pd.DataFrame):
        raise BarDataError(f"{name}: expected a DataFrame of bars, got {type(frame).__name__}")
    raw = read_frame(_once(frame, name), source=name, is_series=True)
    match = match_columns(raw, {}, ("symbol", *BAR_COLUMNS))
    lacking = [column for column in PRICE_COLUMNS if column not in match.names]
    if lacking:
        raise BarDataError(
            f"{name}: the frame lacks {', '.join(lacking)}; it has "
            f"{', '.join(map(str, frame.columns)) or 'no columns'}"
        )
    if len(frame) < 2:
        raise BarDataError(f"{name}: a lookback needs at least 2 bars, got {len(frame)}")
    _check_single(raw, match.names.get("symbol"))
    if "symbol" not in match.names:
        check_unread(raw, match, (), None)
    found = {column: match.names[column] for column in BAR_COLUMNS if column in match.names}
    read = _numbers(raw, found)
    values = {column: numbers * match.scales.get(column, 1.0) for column, numbers in read.items()}
    _check_finite(values, frame.index if len(raw.rows) == len(frame) else raw.rows, name)
    prices = [values[column] for column in PRICE_COLUMNS]
    volume = values.get("volume", np.zeros(len(raw.rows)))
    amount = values.get("amount", volume * np.mean(prices, axis=0))
    return np.stack([*prices, volume, amount], axis=-1).astype(np.float32)


def timestamps_of(times: Any, length: int, name: str, what: str) -> Times:
    """One series' timestamps: a Series, a DatetimeIndex, an array or a list.

    Raises:
        CalendarError: their number is not `length`, one cannot be read, or they do not increase.
    """
    if times is None:
        raise CalendarError(f"{name}: {what} is missing")
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
            f"{show_time(moments[place - 1])} is followed by {show_time(moments[place])}"
            f"{_zone_hint(times)}"
        )
    return moments


def whole(name: str, value: Any, least: int | None = 1) -> int:
    """A whole number that was asked for.

    Raises:
        ConfigError: it is no whole number, or below `least`.
    """
    try:
        number = operator.index(value)
    except TypeError as bad:
        raise ConfigError(f"{name} must be a whole number, got {value!r}") from bad
    if least is not None and number < least:
        raise ConfigError(f"{name} must be at least {least}, got {number}")
    return number


def _zone_of(times: Any) -> Any:
    return getattr(times, "tz", getattr(getattr(times, "dtype", None), "tz", None))


def _check_utc(times: Any, name: str, exchange: str | None) -> None:
    """Refuse times of day in UTC for an exchange that keeps another zone: they would be taken for
    its own, and some happen to fit its hours.
    """
    if exchange is None:
        return
    before, is_utc = moments_of(times)
    if not is_utc or is_midnight(before):
        return
    zone = exchange_zone(exchange)
    utc = pd.DatetimeIndex(before[-1:]).tz_localize("UTC")
    if utc.tz_convert(zone).tz_localize(None)[0] != utc.tz_localize(None)[0]:
        raise CalendarError(
            f"{name}: x_timestamp is in UTC and {exchange} keeps the time of {zone}: convert it, "
            f'with pd.to_datetime(x_timestamp, utc=True).tz_convert("{zone}"), of a Series '
            f'.dt.tz_convert("{zone}")'
        )


def _zone_hint(times: Any) -> str:
    zone = _zone_of(times)
    if zone is None:
        return ""
    return f" (wall-clock time of {zone}, which repeats when clocks go back: convert it to UTC)"


def _once(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """The frame without what repeats a name; a repeated name of a bar's column is an error."""
    repeated = frame.columns.duplicated()
    if not repeated.any():
        return frame
    for label in frame.columns[repeated]:
        if any(compact(str(label)) in COMPACT[column] for column in BAR_COLUMNS):
            raise BarDataError(f"{name}: the frame has several columns named {label}")
    return frame.loc[:, ~repeated]


def _check_single(raw: RawTable, symbol: str | None) -> None:
    """Refuse a frame of several instruments: their bars would follow one another as one's."""
    if symbol is None:
        return
    names = list(dict.fromkeys(map(str, raw.columns[symbol])))
    if len(names) > 1:
        raise BarDataError(
            f"{raw.source}: the frame holds {len(names)} instruments ({some_of(names, 4)}), by "
            f"{symbol!r}; give one frame for each to predict_batch or predict_paths"
        )


def _numbers(raw: RawTable, found: dict[str, str]) -> dict[str, npt.NDArray[np.float64]]:
    sizes = [found[column] for column in SIZE_COLUMNS if column in found]
    numbers = to_numbers(raw, list(found.values()), sizes)
    return {column: numbers[theirs] for column, theirs in found.items()}


def _check_finite(values: dict[str, npt.NDArray[np.float64]], labels: Any, name: str) -> None:
    for column, numbers in values.items():
        with np.errstate(over="ignore"):
            broken = np.flatnonzero(~np.isfinite(numbers.astype(np.float32)))
        if broken.size:
            raise BarDataError(
                f"{name}: {column} is missing, not finite or beyond float32 in row "
                f"{labels[broken[0]]} ({broken.size} such rows); fill or drop them first"
            )
