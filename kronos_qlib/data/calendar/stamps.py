"""Timestamps to the five time fields, and the timestamps of the bars to come."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.data.calendar.clock import Clock
from kronos_qlib.data.calendar.clock_reading import read_clock
from kronos_qlib.data.calendar.exchanges import check_exchange, exchange_times
from kronos_qlib.data.calendar.time_messages import (
    epoch_message,
    mixed_offsets_message,
    time_message,
)
from kronos_qlib.data.calendar.time_text import Times as Times
from kronos_qlib.data.calendar.time_text import show_time
from kronos_qlib.data.calendar.timestamps import TimeTextError, check_utc_days, read_texts, texts_of
from kronos_qlib.errors import CalendarError, ConfigError

logger = logging.getLogger(__name__)

ENOUGH_PAST = 12000
"""Times of a calendar that must fit the exchange by which it goes on: a year of 5-minute bars. A
few would fit another exchange by coincidence."""


def stamps_of(times: Any) -> npt.NDArray[np.int64]:
    """The time fields of timestamps.

    Args:
        times: (...) timestamps: datetime64, datetimes, or text with the year first. Wall-clock
            time of the exchange; a time zone is dropped, not converted.

    Returns:
        (..., 5) int64: minute, hour, weekday (Monday 0), day of month, month.

    Raises:
        CalendarError: a timestamp is missing, is a bare number, cannot be read, or may be two
            ("02/01/2024"); or they are days in UTC that do not begin at midnight.
    """
    moments = to_times(times)
    flat = pd.DatetimeIndex(moments.ravel())
    fields = (flat.minute, flat.hour, flat.day_of_week, flat.day, flat.month)
    return np.stack([np.asarray(field, dtype=np.int64) for field in fields], axis=-1).reshape(
        *moments.shape, 5
    )


def to_times(times: Any) -> Times:
    """Timestamps of any usual kind (Series, index, array, list) as datetime64[ns]; see `stamps_of`.

    Text is read as in tables, see `timestamps`.
    """
    return moments_of(times)[0]


def moments_of(times: Any) -> tuple[Times, bool]:
    """`to_times`, and whether the timestamps are marked as UTC.

    Raises:
        CalendarError: as of `stamps_of`.
    """
    is_utc = False
    if isinstance(times, np.ndarray) and np.issubdtype(times.dtype, np.datetime64):
        array = times
    else:
        given = pd.Index(times.ravel() if isinstance(times, np.ndarray) else times).infer_objects()
        # Pandas would read the numbers of a RangeIndex as nanoseconds of 1970.
        if len(given) and pd.api.types.is_numeric_dtype(given):
            raise CalendarError(_number_message(given[0]))
        _check_there(pd.isna(given))
        if isinstance(given, pd.DatetimeIndex):
            is_utc = str(given.tz) in ("UTC", "UTC+00:00", "GMT", "Etc/UTC")
            flat = given.tz_localize(None).to_numpy()
        else:
            flat, is_utc = _read_times(given)
        if is_utc and (problem := check_utc_days(flat)):
            raise CalendarError(problem)
        array = flat.reshape(times.shape if isinstance(times, np.ndarray) else (len(flat),))
    _check_there(np.isnat(array).ravel())
    return array.astype("datetime64[ns]"), is_utc


def _read_times(values: pd.Index) -> tuple[Times, bool]:
    """Text, dates and periods as times, and whether they are in UTC."""
    try:
        texts = texts_of(values)
        read = read_texts(texts)
    except TimeTextError as bad:
        problem = bad.problem or time_message(bad.text, in_table=False)
        raise CalendarError(
            f"timestamps cannot be read: number {bad.entry + 1}: {problem}"
        ) from bad
    except ValueError as bad:
        raise CalendarError(f"timestamps cannot be read: {bad}") from bad
    if read.epoch is not None:
        raise CalendarError(epoch_message(texts[0], read.epoch, in_table=False))
    if read.apart is not None:
        raise CalendarError(mixed_offsets_message(read.apart, in_table=False))
    return read.times, read.is_utc


def _number_message(number: Any) -> str:
    """Error message for a bare number."""
    problem = time_message(str(number), in_table=False)
    wanted = f"expected timestamps, got numbers such as {number}"
    if "since 1" in problem:
        return f"{wanted}: {problem}"
    if 19000101 <= number <= 21001231:
        return (
            f"{wanted}: make days of them, with "
            'pd.to_datetime(pd.Index(times).astype("int64").astype(str))'
        )
    return wanted


def _check_there(missing: npt.NDArray[np.bool_]) -> None:
    if missing.any():
        place = int(np.flatnonzero(missing)[0])
        raise CalendarError(f"timestamp number {place + 1} is missing (NaT)")


def next_times(calendar: Times, after: Times, count: int, beyond: str = "error") -> Times:
    """The `count` bars that the calendar puts after each moment.

    A trader at that close knows the exchange's calendar, so this uses no future; which bars an
    instrument will really have (it may be suspended) would.

    Args:
        calendar: (K,) sorted datetime64, reaching into the future.
        after: (B,) datetime64.
        count: bars to come.
        beyond: what to do where the calendar ends: "error"; "pattern" to go on at the weekdays and
            times of day of its past, which knows no holidays; "weekdays", the same for calendars
            of Mondays to Fridays, others are refused; or an exchange's code such as "XSHG", to go
            on as it does, see `future_times`.

    Returns:
        (B, count) datetime64[ns].

    Raises:
        CalendarError: the calendar ends too early, or does not fit the way to go on.
    """
    check_beyond(beyond)
    calendar, after = calendar.astype("datetime64[ns]"), after.astype("datetime64[ns]")
    if not len(after):
        return np.zeros((0, count), dtype="datetime64[ns]")
    while True:
        start = np.searchsorted(calendar, after, side="right")
        short = int(start.max()) + count - len(calendar)
        if short <= 0:
            return np.asarray(calendar[start[:, None] + np.arange(count)])
        calendar = np.concatenate((calendar, _beyond(calendar, after, count, short, beyond)))


def check_beyond(beyond: object) -> None:
    """Refuse a misspelt way of going on beyond a calendar before it is needed.

    Raises:
        ConfigError: it is none of "error", "pattern" and "weekdays", and no exchange's code.
    """
    if beyond in ("error", "pattern", "weekdays"):
        return
    try:
        check_exchange(beyond)
    except ConfigError as bad:
        raise ConfigError(
            f"beyond_calendar must be 'error', 'pattern', 'weekdays' or an exchange's code, got "
            f"{beyond!r}: {bad}"
        ) from bad


def _beyond(calendar: Times, after: Times, count: int, short: int, beyond: str) -> Times:
    """What follows the calendar's end, `short` times at least."""
    last = show_time(calendar[-1]) if len(calendar) else "nothing"
    if beyond == "error":
        latest = show_time(np.max(after))
        raise CalendarError(
            f"the calendar ends at {last}, {short} bars short of the {count} that follow "
            f"{latest}; extend it (Qlib's <freq>_future.txt; data_prep/csv_to_qlib.py writes "
            "one), shorten the horizon, or say how to go on: beyond_calendar 'XSHG' (an "
            "exchange's code), or 'pattern': as the calendar did"
        )
    if not len(calendar):
        raise CalendarError("the calendar is empty: there is nothing to go on from")
    if beyond not in ("pattern", "weekdays"):
        return exchange_times(calendar[-ENOUGH_PAST:], short, beyond)
    clock = read_clock(calendar)
    newest = np.max(after)
    if beyond == "pattern":
        try:
            return clock.after(count, newest)
        except CalendarError as bad:
            raise CalendarError(f"beyond_calendar 'pattern': {bad}") from bad
    _check_weekdays(clock, last)
    more = pd.bdate_range(
        calendar[-1], pd.Timestamp(max(newest, calendar[-1])) + pd.offsets.BDay(count + 1)
    )
    time_of_day = calendar[-1] - calendar[-1].astype("datetime64[D]")
    added = more.normalize().to_numpy().astype("datetime64[ns]") + time_of_day
    return np.asarray(added[added > calendar[-1]])


def _check_weekdays(clock: Clock, last: str) -> None:
    """Refuse to go on by weekdays from a calendar of another step, or of other days."""
    if clock.kind == "minutes":
        raise CalendarError(
            f"the calendar ends at {last} and has several bars a day: weekdays cannot extend it, "
            "'pattern' (their weekdays and times of day) or an exchange's code can "
            "(beyond_calendar 'XSHG')"
        )
    if clock.misfit(pd.offsets.BDay(), "B"):
        always = "; '24/7' is the exchange that never closes" if clock.has_weekends else ""
        raise CalendarError(
            f"the calendar ends at {last} and its bars come {clock.words}: weekdays are not how it "
            f"goes on, beyond_calendar 'pattern' is{always}"
        )


@dataclass(frozen=True, eq=False)
class Ahead:
    """Bars to come, how they were made, and doubts about them."""

    times: Times
    """(count,) datetime64[ns]."""
    rule: str
    """How they were made."""
    doubts: tuple[str, ...] = ()
    """What may be wrong with them, a sentence each."""


def future_times(
    past: Any, count: int, *, exchange: str | None = None, freq: str | None = None
) -> Times:
    """The `count` bars after the last one of the past, made from one rule of three.

    Without exchange and freq they go on as the past did: at the weekdays and times of day at which
    it has bars. That knows no holidays, which is logged where there may be some, as other doubts
    are.

    Args:
        past: (L,) increasing timestamps, as for `stamps_of`: wall-clock time of the exchange.
        count: bars to come, at least 1.
        exchange: a code of exchange-calendars ("XSHG", "XNYS", "24/7"): holidays, half days and
            lunch breaks are the exchange's. The past says the rest: its most common step is the
            bar's length, daily bars keep the last one's time of day, and intraday bars are
            labelled by open or close as it is.
        freq: a pandas frequency ("5min", "B", "D", "W-FRI", "ME"): knows no holidays and no
            closing time, except that "B" leaves out weekends. One that is not the past's usual
            step is refused.

    Returns:
        (count,) datetime64[ns].

    Raises:
        CalendarError: the past does not increase, does not fit the exchange or the frequency,
            leaves its labels open, or is too short or irregular to show how it goes on; or the
            exchange's calendar ends before the last bar to come.
        ConfigError: both rules are given, or a rule is unknown.
    """
    ahead = bars_ahead(past, count, exchange=exchange, freq=freq)
    for doubt in ahead.doubts:
        logger.warning(doubt)
    return ahead.times


def bars_ahead(
    past: Any, count: int, *, exchange: str | None = None, freq: str | None = None
) -> Ahead:
    """As `future_times`, with rule and doubts beside the times; logs nothing.

    Raises:
        CalendarError, ConfigError: as of `future_times`.
    """
    before = to_times(past)
    if count < 1:
        raise ConfigError(f"the bars to come must be at least 1, got {count}")
    if before.ndim != 1 or not len(before):
        raise CalendarError(f"expected the past's timestamps in a row, got shape {before.shape}")
    falls = np.flatnonzero(np.diff(before) <= np.timedelta64(0))
    if len(falls):
        first, second = before[falls[0]], before[falls[0] + 1]
        raise CalendarError(
            f"the past does not increase: {show_time(first)} is followed by {show_time(second)}"
        )
    if exchange is not None and freq is not None:
        raise ConfigError(
            "the bars to come need only one of: exchange, such as 'XSHG' or 'XNYS', whose "
            "holidays, half days and breaks are kept; freq, such as '5min', 'B' or 'W-FRI', a rule "
            "that knows none; without both they go on at the weekdays and times of the past"
        )
    if exchange is not None:
        return Ahead(exchange_times(before, count, exchange), f"exchange {exchange}")
    clock = read_clock(before)
    if freq is None:
        times = clock.after(count)[:count]
        rule = f"the pattern of the past ({clock.words})"
        unknown = (
            f"the bars to come are made from {rule}, which knows no holidays; an exchange's "
            "calendar, such as 'XSHG', does"
        )
        doubts = clock.doubts(times)
        return Ahead(times, rule, (unknown, *doubts) if clock.has_holidays else doubts)
    times = _frequency_times(clock, count, freq)
    strange = times[clock.strange(times)]
    doubt = (
        f"{len(strange)} of the {count} bars to come by freq {freq!r}, the first "
        f"{pd.Timestamp(strange[0]):%A %Y-%m-%d %H:%M}, are at times at which no day of the past "
        f"has a bar ({clock.words}): leave freq out, or give the exchange, to keep its hours"
        if len(strange)
        else ""
    )
    return Ahead(times, f"freq {freq}", (doubt,) if doubt else ())


def doubt_of_given(past: Times, ahead: Times) -> str | None:
    """How bars to come that were given plainly have another step than the past, if they do."""
    return read_clock(past).unlike(ahead)


def _frequency_times(clock: Clock, count: int, freq: str) -> Times:
    start = pd.Timestamp(clock.last)
    try:
        offset = pd.tseries.frequencies.to_offset(freq)
    except (ValueError, TypeError) as bad:
        raise ConfigError(
            f"pandas knows no frequency {freq!r}; use one such as '5min', 'h', 'B', 'D', 'W-FRI' "
            "or 'ME'"
        ) from bad
    try:
        if not (second := start + offset) > start:
            raise ConfigError(f"freq must lead forward in time, got {freq!r}")
        if misfit := clock.misfit(offset, freq):
            raise CalendarError(misfit)
        if not offset.is_on_offset(start):
            raise CalendarError(
                f"the last bar, {start.day_name()} {start:%Y-%m-%d %H:%M}, is not on freq {freq!r} "
                f"({offset.freqstr}), whose next bar is {second:%Y-%m-%d %H:%M}: weeks that end on "
                "Fridays are 'W-FRI', months that end on weekdays 'BME'; or leave freq out to go "
                "on as the past did, or give the bars to come"
            )
        ahead = pd.date_range(start, periods=count + 1, freq=offset)[1:]
    except (pd.errors.OutOfBoundsDatetime, OverflowError) as bad:
        raise CalendarError(f"{count} bars of freq {freq!r} lead beyond the year 2262") from bad
    return ahead.to_numpy().astype("datetime64[ns]")
