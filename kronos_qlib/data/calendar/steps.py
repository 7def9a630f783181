"""The step of the bars in a long table: daily bars that bear a time of day, mixed and odd steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.data.calendar.clock import DAY, LONGEST_INTRADAY, MINUTE
from kronos_qlib.data.calendar.clock_reading import read_clock
from kronos_qlib.data.calendar.time_text import Times, duration, show_time
from kronos_qlib.errors import BarDataError

LONG_STEP = 5 * DAY
"""Weekly bars with a holiday in between stand further apart than daily ones over a weekend."""
FEW_BARS = 5
"""Up to as many bars of an instrument, on days of their own, may be minutes in which it traded."""
RARE = 0.02
"""A time at which less than this share of the usual number of instruments has a bar is an error of
the data: cn_daily_2000_2002 has Saturdays with two bars."""


@dataclass(frozen=True, eq=False)
class Steps:
    """How far apart the bars of each instrument with two or more stand.

    symbols: (I,). usual, least: (I,) timedelta64[ns], of minute bars within their days. where: (I,)
    a row of the sorted table whose bar stands `usual` after the one before. bars: (I,) how many.
    is_daily: (I,) one bar a day or fewer, but for slips.
    """

    symbols: npt.NDArray[Any]
    usual: npt.NDArray[np.timedelta64]
    least: npt.NDArray[np.timedelta64]
    where: npt.NDArray[np.int64]
    bars: npt.NDArray[np.int64]
    is_daily: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, table: pd.DataFrame) -> Steps:
        """From columns symbol and date, sorted by both."""
        codes, names = pd.factorize(table["symbol"])
        dates = table["date"].to_numpy("datetime64[ns]")
        days = dates.astype("datetime64[D]")
        gaps = np.diff(dates)
        own = (codes[1:] == codes[:-1]) & (gaps > np.timedelta64(0, "ns"))
        within = own & (days[1:] == days[:-1])
        own_count = np.bincount(codes[1:][own], minlength=len(names))
        is_daily = 3 * np.bincount(codes[1:][within], minlength=len(names)) < own_count
        # Of minutes the night says nothing.
        rows = np.flatnonzero(own & (within | is_daily[codes[1:]])) + 1
        code, gap = codes[rows], gaps[rows - 1]
        order = np.lexsort((gap, code))
        code, gap, rows = code[order], gap[order], rows[order]
        first = np.flatnonzero(np.append(True, (code[1:] != code[:-1]) | (gap[1:] != gap[:-1])))
        first = first[: len(code)]
        counts = np.diff(np.append(first, len(code)))
        best = np.lexsort((gap[first], -counts, code[first]))
        chosen = first[best][np.unique(code[first][best], return_index=True)[1]]
        least = gap[np.unique(code, return_index=True)[1]]
        found = code[chosen]
        return cls(
            np.asarray(names)[found],
            gap[chosen],
            least,
            rows[chosen],
            own_count[found] + 1,
            is_daily[found],
        )


def as_days(bars: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Daily bars without the time of day that some vendors give them, the close's as a rule.

    Args:
        bars: symbol and date.

    Returns:
        The bars, with dates at midnight where every instrument has one bar a day or fewer, and a
        note that says so. Unchanged, with no note, if no bar has a time of day, or a day several.

    Raises:
        BarDataError: an instrument has bars at midnight and at other times, of which one may be a
            day's that was not over; or they seem to be midnights of another zone, so that the day
            is wrong.
    """
    days = bars["date"].dt.normalize()
    clock = (bars["date"] - days).to_numpy("timedelta64[ns]")
    if not clock.any():
        return bars, ""
    stamps = pd.DataFrame({"symbol": bars["symbol"], "date": bars["date"], "day": days})
    if stamps.drop_duplicates(["symbol", "date"]).duplicated(["symbol", "day"]).any():
        return bars, ""
    is_timed = pd.Series(clock != np.timedelta64(0, "ns"), index=bars.index)
    by_name = is_timed.groupby(bars["symbol"].to_numpy()).transform("mean")
    if (mixed := (is_timed & (by_name < 1))).any():
        bar = bars[mixed].iloc[-1]
        raise BarDataError(
            f"{bar['symbol']} {bar['date']}: a daily bar has no time of day, and other bars of "
            f"{bar['symbol']} have none: leave the bar out if its day was not over, else drop "
            f"its time (bars with a time: {int(mixed.sum())})"
        )
    times = np.unique(clock)
    weekdays = np.bincount(days.dt.day_of_week, minlength=7)
    if times[0] >= LONGEST_INTRADAY and weekdays[6] > 2 > weekdays[4]:
        raise BarDataError(
            f"one bar a day, at {_clock(times)}, on Sundays and not on Fridays: midnights of the "
            "exchange written in another zone; convert the dates to the exchange's own time"
        )
    note = f"one bar a day, at {_clock(times)}: daily bars, taken without the time of day"
    return bars.assign(date=days), note


def wrong_step(table: pd.DataFrame, freq: str) -> str | None:
    """Why bars cannot be of this frequency, and which they are, in words; None if they can.

    Args:
        table: columns symbol and date, sorted by both; daily bars have passed `as_days`.
        freq: "day", or minutes such as "5min".
    """
    steps = Steps.of(table)
    if not len(steps.symbols):
        return None  # no instrument has two bars
    is_daily = steps.is_daily & ((steps.bars > FEW_BARS) | steps.is_daily.all())
    minutes = np.flatnonzero(~steps.is_daily)
    if len(minutes) and is_daily.any():
        one, other = int(is_daily.argmax()), int(minutes[0])
        return (
            f"{steps.symbols[one]} has one bar a day and {steps.symbols[other]} one every "
            f"{duration(steps.usual[other])}: a folder holds bars of one frequency, so convert "
            f"the {int(is_daily.sum())} instruments of days and the {len(minutes)} of minutes "
            "one after the other, into two folders"
        )
    if not len(minutes):
        if freq != "day":
            return _other_step(table, int(steps.where[0]), steps.usual[0], freq)
        days = table["date"].dt.normalize()
        several = table.assign(day=days).duplicated(["symbol", "day"], keep=False)
        if several.any():
            bar = table[several].iloc[0]
            same = (table["symbol"] == bar["symbol"]) & (days == bar["date"].normalize())
            times = ", ".join(f"{time:%H:%M:%S}" for time in table.loc[same, "date"])
            return (
                f"{bar['symbol']} has one bar a day, but {int(same.sum())} on "
                f"{bar['date']:%Y-%m-%d} ({times}): drop those that are no daily bars"
            )
        return None
    usual, counts = np.unique(steps.usual[minutes], return_counts=True)
    common, least = usual[counts.argmax()], steps.least[minutes].min()
    if freq == "day":
        place = minutes[steps.usual[minutes] == common][0]
        return _other_step(table, int(steps.where[place]), common, freq)
    due = pd.Timedelta(freq).to_timedelta64()
    # A few may stand closer: where a session ends at half past, so does its last bar of an hour.
    if least <= due <= common:
        return None
    step = common if common < due else usual[0]
    place = minutes[steps.usual[minutes] == step][0]
    return _other_step(table, int(steps.where[place]), step, freq)


def step_notes(bars: pd.DataFrame) -> list[str]:
    """What is unusual about the step of bars: weekly or monthly ones, or unlike others'; and why
    daily ones, if so, cannot be taken without their time of day."""
    table = bars[["symbol", "date"]].sort_values(["symbol", "date"], ignore_index=True)
    if not pd.api.types.is_datetime64_dtype(table["date"]) or table["date"].isna().any():
        return []
    steps = Steps.of(table)
    if not len(steps.symbols):
        return []
    usual, counts = np.unique(steps.usual, return_counts=True)
    common = usual[counts.argmax()]
    notes = []
    try:
        as_days(table)
    except BarDataError as problem:
        notes.append(str(problem))
    if common >= LONG_STEP:
        words = read_clock(market_times(table["date"])).words
        notes.append(
            f"the bars come {words}: they stand {duration(common)} apart as a rule, and a horizon, "
            "a lookback and Qlib's figures per year count bars"
        )
    # Thin shares of a few bars are no news.
    odd = (steps.bars > FEW_BARS) & (
        (steps.usual >= LONG_STEP) != (common >= LONG_STEP)
        if steps.is_daily.all()
        else steps.usual != common
    )
    if odd.any():
        place = int(odd.argmax())
        notes.append(
            f"{int(odd.sum())} of {len(odd)} instruments have bars of another step than the "
            f"{duration(common)} of most, such as {steps.symbols[place]} with "
            f"{duration(steps.usual[place])}"
        )
    return notes


def market_times(dates: npt.ArrayLike) -> Times:
    """(K,) datetime64[ns], increasing: the times of all bars, without those that hardly any has."""
    times, counts = np.unique(np.asarray(dates, dtype="datetime64[ns]"), return_counts=True)
    return np.asarray(times[counts >= RARE * np.median(counts)])


def _other_step(table: pd.DataFrame, row: int, step: np.timedelta64, freq: str) -> str:
    minutes = step / MINUTE
    fitting = "day" if step > LONGEST_INTRADAY else f"{minutes:g}min"
    is_whole = minutes >= 1 and minutes == int(minutes)
    advice = f"pass freq={fitting!r} or --freq {fitting}" if is_whole else "Qlib has none such"
    bar = table.iloc[row]
    return (
        f"{bar['symbol']} {bar['date']}: bars stand {duration(step)} apart, which is not "
        f"freq={freq!r}; {advice}"
    )


def _clock(times: npt.NDArray[np.timedelta64]) -> str:
    texts = [show_time(np.datetime64(0, "D") + time)[11:] or "00:00" for time in times[:2]]
    return " and ".join(texts) + (f" and {len(times) - 2} other times" if len(times) > 2 else "")
