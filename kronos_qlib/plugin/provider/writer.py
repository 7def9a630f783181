"""Bars into a Qlib provider folder: complete and read back, or not there at all."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.data.calendar.steps import as_days, step_notes, wrong_step
from kronos_qlib.data.files.advice import describe_units
from kronos_qlib.data.files.check import (
    is_vwap_plausible,
    measure_lot,
)
from kronos_qlib.errors import BarDataError
from kronos_qlib.files import recover, replacing
from kronos_qlib.plugin.provider.faults import feature_folder
from kronos_qlib.plugin.provider.future_calendar import given_ahead, times_ahead
from kronos_qlib.plugin.provider.writable_bars import (
    ALL_MARKET,
    FIELDS,
    check_range,
    check_settings,
    check_symbols,
    check_table,
    check_target,
)
from kronos_qlib.plugin.qlib_internals import (
    stored_calendar_lines,
    stored_feature,
    stored_market,
)
from kronos_qlib.schema import BAR_COLUMNS, PRICE_COLUMNS

logger = logging.getLogger(__name__)

BENCHMARK_START = 1000.0
"""Where an equal-weight benchmark opens on its first bar."""


@dataclass(frozen=True)
class ProviderSummary:
    """What was written."""

    target: Path
    freq: str
    instruments: int
    """Members of the market, the benchmark not counted."""
    times: int
    """Entries of the calendar, the future ones not counted."""
    bars: int
    """Bars of the market's members."""
    first: pd.Timestamp
    last: pd.Timestamp
    notes: tuple[str, ...]
    """What was assumed or left out, one sentence each."""


def write_provider(
    bars: pd.DataFrame,
    target: str | Path,
    *,
    freq: str = "day",
    market: str = ALL_MARKET,
    benchmark: str | None = None,
    future_bars: int = 60,
    future_times: Iterable[Any] | None = None,
    extra: Sequence[str] = (),
    beside: Mapping[str, pd.DataFrame] | None = None,
    overwrite: bool = False,
) -> ProviderSummary:
    """Write bars as a folder that `qlib.init(provider_uri=...)` opens.

    Everything is built in a hidden folder next to `target`, read back through Qlib's own storage
    classes, and only then moved into place. After a failure `target` is as it was before, after
    a kill it is the old or the new folder: see `files.replacing`.

    Args:
        bars: `schema.LONG_COLUMNS`, in any order. Prices x factor convention as in the schema.
            One bar a day with a time of day, such as 15:00, is a daily bar: the time is dropped.
        target: The provider folder.
        freq: "day", or minutes such as "5min". Qlib has no weeks or months: such bars are written
            as "day". It counts entries of the calendar, so each step is one bar; a note says so.
        market: Name of the market file to write besides `all`, with the same members.
        benchmark: Stored as an instrument, but a member of no market. A name that `bars` hold
            takes that instrument out of the markets; another name gets the equal-weight mean of
            the members' returns, begun at 1000.
        future_bars: Times to add to the future calendar: the weekdays and times of day at which
            bars came. One may turn out to be a holiday. Mondays to Fridays where bars are too few
            to show their week; none where they are irregular.
        future_times: The exchange's own calendar, taken whole in place of those; what is
            not after the last bar is ignored. Days without a time of day, for bars of minutes,
            get the usual ones.
        extra: Further number columns of `bars` to store as fields.
        beside: Tables to save in the folder as `<name>.parquet`, kept or lost with the rest.
        overwrite: Replace an existing provider folder; any other folder is never replaced.

    Returns:
        Counts, and notes on what was assumed. `vwap` is amount / volume per share. It is NaN
        where nothing traded, and where it lies far outside low and high, which a note counts.
        `change` is the return since the instrument's last bar, NaN on its first.

    Raises:
        BarDataError: The bars break the schema, do not fit float32 or the frequency, or a symbol
            cannot be kept by Qlib or as a file name.
        CalendarError: `future_times` holds something else than times.
        ConfigError: A setting cannot work, or `target` exists and may not be replaced.
    """
    target = Path(target).expanduser().absolute()
    recover(target)
    freq = check_settings(freq, market, future_bars)
    check_target(target, overwrite)
    check_table(bars, extra)
    bars, stamped = as_days(bars) if freq == "day" else (bars, "")
    names = [*BAR_COLUMNS, "factor", *extra]
    table = bars[["symbol", "date", *names]].sort_values(["symbol", "date"], ignore_index=True)
    table = table.astype({"symbol": str, **dict.fromkeys(names, np.float64)})
    check_symbols(list(table["symbol"].unique()))
    table["symbol"] = table["symbol"].str.upper()
    if problem := wrong_step(table, freq):
        raise BarDataError(problem)
    benchmark = benchmark.upper() if benchmark else None
    if benchmark:
        check_symbols([benchmark])

    lot = measure_lot(table)
    notes = [stamped] if stamped else []
    notes += [] if lot == 1 else [f"volume counts lots of {lot} shares: vwap is per share"]
    notes += step_notes(table)
    is_member = (table["symbol"] != benchmark).to_numpy()
    if not is_member.any():
        raise BarDataError(f"bars hold nothing but the benchmark {benchmark}")
    members = table.loc[is_member]
    if benchmark and is_member.all():
        index = first_mean(members, benchmark, lot)
        table = pd.concat([table, index], ignore_index=True)
        notes.append(f"{benchmark} is the equal-weight mean of {members['symbol'].nunique()} names")
    elif benchmark:
        notes.append(f"{benchmark} is taken from the bars and out of the markets")
    table["vwap"], strange = vwap_of(table, lot)
    if strange:
        units = describe_units(table)
        notes.append(
            f"{strange} bars have amount and volume that do not fit their prices: no vwap"
            f"{f'; {units}' if units else ''}"
        )
    table["change"] = table["close"] / table.groupby("symbol")["close"].shift() - 1.0
    fields = [*FIELDS, *extra]
    check_range(table, fields)

    calendar = pd.DatetimeIndex(table["date"].unique()).sort_values()
    if future_times is None:
        future, note = times_ahead(table, calendar, freq, future_bars)
        notes += [note] if note else []
    else:
        future = given_ahead(calendar, freq, future_times)
        if not len(future):
            notes.append(f"no future time given lies after the last bar, {calendar[-1]}")
    spans = members.groupby("symbol")["date"].agg(["min", "max"])
    markets = {name: spans for name in (ALL_MARKET, market)}
    with replacing(target) as folder:
        folder.mkdir()
        write_calendars(folder, freq, calendar, future)
        _write_markets(folder, freq, markets)
        _write_features(folder, freq, calendar, table, fields)
        for name, frame in (beside or {}).items():
            frame.to_parquet(folder / f"{name}.parquet")
        check_target(target, overwrite)  # it may have appeared meanwhile
    for note in notes:
        logger.info("%s: %s", target, note)
    return ProviderSummary(
        target=target,
        freq=freq,
        instruments=len(spans),
        times=len(calendar),
        bars=len(members),
        first=calendar[0],
        last=calendar[-1],
        notes=tuple(notes),
    )


def vwap_of(table: pd.DataFrame, lot: int) -> tuple[npt.NDArray[np.float64], int]:
    """Money per share, (n,) with NaN where it is unknown; and how many bars are implausible.

    Args:
        table: the prices, volume and amount of (n) bars.
        lot: shares per unit of volume.
    """
    volume, amount = table["volume"].to_numpy(), table["amount"].to_numpy()
    traded = volume > 0
    vwap = np.full(len(table), np.nan)
    with np.errstate(over="ignore"):
        np.divide(amount, volume * lot, out=vwap, where=traded)
    strange = traded & ~is_vwap_plausible(table, vwap)
    vwap[strange] = np.nan
    return vwap, int(strange.sum())


def first_mean(members: pd.DataFrame, name: str, lot: int) -> pd.DataFrame:
    """The equal-weight mean of a market from its first bar on, begun at BENCHMARK_START."""
    before = members.groupby("symbol")["close"].shift()
    first_time = members["date"].min()
    base = before.where(members["date"] > first_time, members["open"])
    return equal_weight(members, base, name, lot, BENCHMARK_START)


def equal_weight(
    members: pd.DataFrame, before: pd.Series[float], name: str, lot: int, start: float
) -> pd.DataFrame:
    """Bars of a portfolio that holds the members in equal parts and rebalances at every close.

    A member counts from its second bar on, with its return since its last close, so that a
    suspended share brings its jump on the day it trades again.

    Args:
        members: their bars.
        before: each bar's close before, NaN for a first bar.
        name: of the instrument made.
        lot: shares per unit of volume.
        start: the mean's close before the first of these bars.
    """
    ratios = members[list(PRICE_COLUMNS)].div(before, axis=0)
    moves = ratios.groupby(members["date"]).mean().fillna(1.0)  # no member traded before: flat
    close = start * moves["close"].cumprod()
    opened = close.shift(fill_value=start)
    index = moves.mul(opened, axis=0)
    # The median member's money: a sum would carry every slip of the pen in the table.
    index["amount"] = members.groupby("date")["amount"].median()
    index["volume"] = index["amount"] / (index[list(PRICE_COLUMNS)].mean(axis=1) * lot)
    index["factor"] = 1.0
    return index.reset_index().assign(symbol=name)


def write_calendars(
    folder: Path, freq: str, calendar: pd.DatetimeIndex, future: pd.DatetimeIndex
) -> None:
    """Write the calendar and the one with the times to come, and read them back.

    Raises:
        BarDataError: Qlib reads back something else.
    """
    (folder / "calendars").mkdir(exist_ok=True)
    times = list(calendar.strftime(time_format(freq)))
    later = list(future.strftime(time_format(freq)))
    for ahead, lines in ((False, times), (True, times + later)):
        write_lines(folder / "calendars" / f"{freq}{'_future' if ahead else ''}.txt", lines)
        _check_same("calendar", stored_calendar_lines(folder, freq, ahead), lines)


def _write_markets(folder: Path, freq: str, markets: Mapping[str, pd.DataFrame]) -> None:
    (folder / "instruments").mkdir()
    for market, spans in markets.items():
        shown = spans.apply(lambda times: times.dt.strftime(time_format(freq)))
        lines = ["\t".join(row) for row in shown.itertuples()]
        write_lines(folder / "instruments" / f"{market}.txt", lines)
        read = stored_market(folder, freq, market)
        written = {symbol: [(first, last)] for symbol, first, last in spans.itertuples()}
        _check_same(f"market {market}", read, written)


def time_format(freq: str) -> str:
    """How Qlib's files write a time of a frequency."""
    return "%Y-%m-%d" if freq == "day" else "%Y-%m-%d %H:%M:%S"


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Write lines that end alike on every system."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)


def _write_features(
    folder: Path,
    freq: str,
    calendar: pd.DatetimeIndex,
    table: pd.DataFrame,
    fields: Sequence[str],
) -> None:
    """One file per instrument and field: index of the first value, then one value per time."""
    values = table[list(fields)].to_numpy(np.float32)
    places = calendar.get_indexer(pd.DatetimeIndex(table["date"]))
    for symbol, rows in table.groupby("symbol").indices.items():
        start, stop = places[rows].min(), places[rows].max() + 1
        dense = np.full((stop - start, len(fields)), np.nan, dtype="<f4")
        dense[places[rows] - start] = values[rows]
        for field, column in zip(fields, dense.T, strict=True):
            write_feature(folder, freq, str(symbol), field, int(start), column)


def write_feature(
    folder: Path,
    freq: str,
    symbol: str,
    field: str,
    start: int,
    values: npt.NDArray[np.float32],
    *,
    read_back: bool = True,
) -> None:
    """Write one instrument's field, and read it back.

    Args:
        start: the place in the calendar of the first value.
        values: (n,) one for each place from there on, NaN where there is no bar.
        read_back: through Qlib's own storage, which takes ten times as long as writing.

    Raises:
        BarDataError: Qlib reads back something else.
    """
    instrument = feature_folder(symbol)
    path = folder / "features" / instrument / f"{field}.{freq}.bin"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(np.concatenate([[start], values]).astype("<f4").tobytes())
    if not read_back:
        return
    read = stored_feature(folder, freq, instrument, field)
    same = read.index[0] == start and np.array_equal(read, values, equal_nan=True)
    _check_same(f"{symbol} {field}", same, True)


def _check_same(what: str, read: Any, written: Any) -> None:
    if read != written:
        raise BarDataError(f"{what}: Qlib reads back something else than was written")
