"""Bars into a Qlib provider folder: complete and read back, or not there at all."""

from __future__ import annotations

import io
import logging
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from qlib.utils.time import Freq

from kronos_qlib.data.calendar.clock import DAY
from kronos_qlib.data.calendar.clock_reading import read_clock
from kronos_qlib.data.calendar.stamps import to_times
from kronos_qlib.data.calendar.steps import as_days, market_times, step_notes, wrong_step
from kronos_qlib.data.files.advice import advise, describe_advice, describe_units
from kronos_qlib.data.files.check import (
    check_bars,
    describe_report,
    errors_of,
    is_vwap_plausible,
    measure_lot,
)
from kronos_qlib.errors import BarDataError, CalendarError, ConfigError
from kronos_qlib.files import recover, replacing
from kronos_qlib.plugin.provider.faults import feature_folder
from kronos_qlib.plugin.qlib_internals import (
    stored_calendar_lines,
    stored_feature,
    stored_market,
)
from kronos_qlib.schema import BAR_COLUMNS, LONG_COLUMNS, PRICE_COLUMNS

logger = logging.getLogger(__name__)

FIELDS = (*BAR_COLUMNS, "factor", "vwap", "change")
"""What every instrument is stored with, one file each. Qlib's own exchange compares `change` with
its price limit, and without that file lets every order pass in silence."""

ALL_MARKET = "all"
BENCHMARK_START = 1000.0
"""Where an equal-weight benchmark opens on its first bar."""

UNSAFE_IN_PATH = re.compile(r'[<>:"/\\|?*\x00-\x1f]|[ .]$|^ ')
"""What some file system does not take in a name; a tab would also break Qlib's market files."""
LONGEST_NAME = 255
"""Bytes of a file's name, on nearly every file system."""
UNSEEN = ("Cc", "Cf", "Co", "Cs", "Zl", "Zp", "Zs")
"""Unicode's characters that do not show, or not as what they are; a plain space shows."""
MARKET_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,99}")
PROVIDER_FOLDERS = ("calendars", "features", "instruments")


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
    freq = _check_settings(freq, market, future_bars)
    _check_target(target, overwrite)
    _check_table(bars, extra)
    bars, stamped = as_days(bars) if freq == "day" else (bars, "")
    names = [*BAR_COLUMNS, "factor", *extra]
    table = bars[["symbol", "date", *names]].sort_values(["symbol", "date"], ignore_index=True)
    table = table.astype({"symbol": str, **dict.fromkeys(names, np.float64)})
    _check_symbols(list(table["symbol"].unique()))
    table["symbol"] = table["symbol"].str.upper()
    if problem := wrong_step(table, freq):
        raise BarDataError(problem)
    benchmark = benchmark.upper() if benchmark else None
    if benchmark:
        _check_symbols([benchmark])

    lot = measure_lot(table)
    notes = [stamped] if stamped else []
    notes += [] if lot == 1 else [f"volume counts lots of {lot} shares: vwap is per share"]
    notes += step_notes(table)
    is_member = (table["symbol"] != benchmark).to_numpy()
    if not is_member.any():
        raise BarDataError(f"bars hold nothing but the benchmark {benchmark}")
    members = table.loc[is_member]
    if benchmark and is_member.all():
        index = _equal_weight(members, benchmark, lot)
        table = pd.concat([table, index], ignore_index=True)
        notes.append(f"{benchmark} is the equal-weight mean of {members['symbol'].nunique()} names")
    elif benchmark:
        notes.append(f"{benchmark} is taken from the bars and out of the markets")
    table["vwap"], strange = _vwap(table, lot)
    if strange:
        units = describe_units(table)
        notes.append(
            f"{strange} bars have amount and volume that do not fit their prices: no vwap"
            f"{f'; {units}' if units else ''}"
        )
    table["change"] = table["close"] / table.groupby("symbol")["close"].shift() - 1.0
    fields = [*FIELDS, *extra]
    _check_range(table, fields)

    calendar = pd.DatetimeIndex(table["date"].unique()).sort_values()
    if future_times is None:
        future, note = _times_ahead(table, calendar, freq, future_bars)
        notes += [note] if note else []
    else:
        future = _given_ahead(calendar, freq, future_times)
        if not len(future):
            notes.append(f"no future time given lies after the last bar, {calendar[-1]}")
    spans = members.groupby("symbol")["date"].agg(["min", "max"])
    markets = {name: spans for name in (ALL_MARKET, market)}
    with replacing(target) as folder:
        folder.mkdir()
        _write_calendars(folder, freq, calendar, future)
        _write_markets(folder, freq, markets)
        _write_features(folder, freq, calendar, table, fields)
        for name, frame in (beside or {}).items():
            frame.to_parquet(folder / f"{name}.parquet")
        _check_target(target, overwrite)  # it may have appeared meanwhile
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


def _check_settings(freq: str, market: str, future_bars: int) -> str:
    """The frequency as Qlib spells it in file names."""
    minutes = _minutes_of(freq)
    if minutes is None or not 1 <= minutes <= 24 * 60 or minutes != int(minutes):
        raise ConfigError(
            f'freq must be "day" or like "5min", got {freq!r}: Qlib has days and minutes; weekly '
            "and monthly bars are written as day"
        )
    spelled = "day" if minutes == 24 * 60 else f"{minutes:.0f}min"
    if not MARKET_NAME.fullmatch(market):
        raise ConfigError(
            "market must be a lower-case word of at most 100 letters such as csi300, as Qlib's "
            f"file names are, got {_short(market)}"
        )
    if future_bars < 0:
        raise ConfigError(f"future_bars must not be negative, got {future_bars}")
    return spelled


def _minutes_of(freq: str) -> float | None:
    """Of a frequency in Qlib's words or pandas': "day", "1D", "24h", "60min" and "h" among them."""
    try:
        count, base = Freq.parse(freq)
    except (ValueError, TypeError, AttributeError):
        pass
    else:
        return {Freq.NORM_FREQ_MINUTE: 1, Freq.NORM_FREQ_DAY: 24 * 60}.get(base, np.nan) * count
    try:
        offset = pd.tseries.frequencies.to_offset(freq)
    except (ValueError, TypeError):
        return None
    return offset.nanos / 60e9 if isinstance(offset, pd.offsets.Tick) else None


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise ConfigError(f"{target} is a file; name a folder")
    if not any(target.iterdir()):
        return
    if not overwrite:
        raise ConfigError(
            f"{target} exists; name another folder or ask to overwrite it (overwrite=True, "
            "--overwrite)"
        )
    if not all((target / name).is_dir() for name in PROVIDER_FOLDERS):
        raise ConfigError(
            f"{target} is not a Qlib provider folder (no {', '.join(PROVIDER_FOLDERS)} inside); "
            "it is not overwritten, remove it yourself if it may go"
        )


def _check_table(bars: pd.DataFrame, extra: Sequence[str]) -> None:
    for name in (*LONG_COLUMNS, *extra):
        if name not in bars:
            raise BarDataError(
                f"bars have no column {name!r}; they have {', '.join(map(str, bars.columns))}"
            )
    for name in extra:
        if name in FIELDS or not MARKET_NAME.fullmatch(name):
            raise ConfigError(
                f"extra column {_short(name)} must be a lower-case word of at most 100 letters, "
                f"not in {FIELDS}"
            )
        if not pd.api.types.is_numeric_dtype(bars[name]):
            raise BarDataError(f"column {name!r} must hold numbers, got {bars[name].dtype}")
    if bars.empty:
        raise BarDataError("there are no bars to write")
    if not pd.api.types.is_datetime64_dtype(bars["date"]) or bars["date"].isna().any():
        raise BarDataError("column 'date' must hold times without a zone, and none missing")
    report = check_bars(bars, max_move=None, find_gaps=False)
    wrong = errors_of(report)
    if len(wrong):
        worst = wrong.iloc[0]
        raise BarDataError(
            f"{worst['symbol']} {worst['date']}: {worst['rule']}: {worst['detail']}; {len(wrong)} "
            f"errors in all:\n{describe_report(wrong)}\n"
            f"{describe_advice(advise(bars, wrong), 'repair_bars: ')}"
        )


def _check_symbols(symbols: Sequence[str]) -> None:
    folders: dict[str, str] = {}
    for symbol in symbols:
        unseen = [sign for sign in symbol if sign != " " and unicodedata.category(sign) in UNSEEN]
        if symbol.startswith("\ufeff"):
            raise BarDataError(
                f"symbol {_short(symbol)} begins with a byte-order mark, which is no part of the "
                "name: read the file it comes from as utf-8-sig, or strip '\\ufeff'"
            )
        if unseen:
            raise BarDataError(
                f"symbol {_short(symbol)} holds {unseen[0]!r}, which does not show: strip it, or "
                "two names that look alike will be two instruments"
            )
        if (size := len(feature_folder(symbol).encode())) > LONGEST_NAME:
            raise BarDataError(
                f"symbol {_short(symbol)} is {size} bytes long and a folder's name at most "
                f"{LONGEST_NAME}; is the column with symbols the right one?"
            )
        if not symbol.strip() or UNSAFE_IN_PATH.search(symbol):
            raise BarDataError(f"symbol {symbol!r} cannot name a folder on every system; rename it")
        first = folders.setdefault(feature_folder(symbol), symbol)
        if first != symbol:
            raise BarDataError(f"symbols {first!r} and {symbol!r} would share one folder")
    symbols = [symbol.upper() for symbol in symbols]
    # Qlib reads market files with pandas, to which some names mean "missing".
    listed = pd.read_csv(io.StringIO("\n".join(symbols)), header=None, sep="\t", dtype=str)[0]
    for symbol, read in zip(symbols, listed, strict=True):
        if read != symbol:
            raise BarDataError(
                f"Qlib reads the symbol {symbol!r} in a market file as {read!r}; rename it, "
                f"for example to {symbol + '.US'!r}"
            )


def _short(name: str) -> str:
    return repr(name) if len(name) <= 60 else f"{name[:50]!r}... ({len(name)} letters)"


def _vwap(table: pd.DataFrame, lot: int) -> tuple[npt.NDArray[np.float64], int]:
    """Money per share, NaN where it cannot be told; how many bars made no sense."""
    volume, amount = table["volume"].to_numpy(), table["amount"].to_numpy()
    traded = volume > 0
    vwap = np.full(len(table), np.nan)
    with np.errstate(over="ignore"):
        np.divide(amount, volume * lot, out=vwap, where=traded)
    strange = traded & ~is_vwap_plausible(table, vwap)
    vwap[strange] = np.nan
    return vwap, int(strange.sum())


def _check_range(table: pd.DataFrame, fields: Sequence[str]) -> None:
    limit = float(np.finfo(np.float32).max)
    for name in fields:
        too_large = (table[name].abs() > limit).to_numpy()
        if too_large.any():
            bar = table.loc[too_large].iloc[0]
            raise BarDataError(
                f"{bar['symbol']} {bar['date']}: {name} {bar[name]:.6g} does not fit float32, "
                "in which Qlib stores it"
            )
    for name in PRICE_COLUMNS:
        vanished = (table[name].astype(np.float32) <= 0).to_numpy()
        if vanished.any():
            bar = table.loc[vanished].iloc[0]
            raise BarDataError(
                f"{bar['symbol']} {bar['date']}: {name} {bar[name]:.6g} becomes 0 in float32"
            )


def _equal_weight(members: pd.DataFrame, name: str, lot: int) -> pd.DataFrame:
    """Bars of a portfolio that holds the members in equal parts and rebalances at every close.

    A member counts from its second bar on, with its return since its last close, so that a
    suspended share brings its jump on the day it trades again.
    """
    before = members.groupby("symbol")["close"].shift()
    first_time = members["date"].min()
    base = before.where(members["date"] > first_time, members["open"])
    ratios = members[list(PRICE_COLUMNS)].div(base, axis=0)
    moves = ratios.groupby(members["date"]).mean().fillna(1.0)  # no member traded before: flat
    close = BENCHMARK_START * moves["close"].cumprod()
    opened = close.shift(fill_value=BENCHMARK_START)
    index = moves.mul(opened, axis=0)
    # The median member's money: a sum would carry every slip of the pen in the table.
    index["amount"] = members.groupby("date")["amount"].median()
    index["volume"] = index["amount"] / (index[list(PRICE_COLUMNS)].mean(axis=1) * lot)
    index["factor"] = 1.0
    return index.reset_index().assign(symbol=name)


def _times_ahead(
    table: pd.DataFrame, calendar: pd.DatetimeIndex, freq: str, count: int
) -> tuple[pd.DatetimeIndex, str]:
    """The next `count` times as bars came so far, and what to say of them."""
    none = calendar[:0]
    if not count:
        return none, ""
    clock = read_clock(market_times(table["date"]))
    better = "give the exchange's own (future_times; --exchange or --future-calendar)"
    try:
        # The last bars may be one instrument's alone.
        ahead = pd.DatetimeIndex(clock.after(count, calendar[-1].to_datetime64())[-count:])
    except CalendarError as problem:
        few = len(calendar.normalize().unique()) < 10 and clock.kind in ("days", "minutes")
        if len(calendar) > 2 and not few:
            return none, f"no future calendar: {problem}; {better}"
        if (calendar.day_of_week > 4).any() or (clock.step or DAY) > 4 * DAY:
            return (
                none,
                f"no future calendar: the bars are too few to show how they go on; {better}",
            )
        ahead = _weekdays_ahead(calendar, freq, count)
        by = "by weekdays"
    else:
        by = "by weekdays" if clock.freq == "B" else f"as the bars did ({clock.words})"
        if clock.has_weekends and clock.kind != "weeks":
            return ahead, f"the future calendar goes on {by} to {ahead[-1]:%Y-%m-%d}"
    assumed = "".join(f"; {doubt}" for doubt in clock.doubts(ahead.to_numpy()))
    return ahead, (
        f"the future calendar goes on {by} to {ahead[-1]:%Y-%m-%d} and knows no holidays: better "
        f"{better}{assumed}"
    )


def _weekdays_ahead(calendar: pd.DatetimeIndex, freq: str, count: int) -> pd.DatetimeIndex:
    """The next `count` times, if the exchange opened on every weekday."""
    last = calendar[-1]
    if freq == "day":
        return pd.bdate_range(last + pd.Timedelta(days=1), periods=count)
    # Many times a day can only give too many days.
    return _at_usual_times(calendar, pd.bdate_range(last.normalize(), periods=count + 2))[:count]


def _given_ahead(calendar: pd.DatetimeIndex, freq: str, given: Iterable[Any]) -> pd.DatetimeIndex:
    """What of the exchange's own calendar is still to come."""
    last = calendar[-1]
    times = pd.DatetimeIndex(to_times(list(given))).unique().sort_values()
    ahead = times[times > last]
    timed = ahead[ahead != ahead.normalize()]
    if freq == "day" and len(timed):
        raise ConfigError(f"future_times: a daily calendar has no time of day, got {timed[0]}")
    if freq == "day" or len(timed):
        return ahead
    # A list of days says which days are open; the last bar's own day may have times left.
    return _at_usual_times(calendar, ahead.insert(0, last.normalize()))


def _at_usual_times(calendar: pd.DatetimeIndex, days: pd.DatetimeIndex) -> pd.DatetimeIndex:
    """The days at the times of day that half of the calendar's days have, after its end."""
    known = calendar.normalize()
    clock = pd.Series(calendar - known).value_counts()
    usual = np.sort(clock[clock >= known.nunique() / 2].index.to_numpy())
    if not len(usual):
        usual = np.sort(clock.index.to_numpy())
    times = pd.DatetimeIndex((days.to_numpy()[:, None] + usual[None, :]).ravel())
    return times[times > calendar[-1]]


def _write_calendars(
    folder: Path, freq: str, calendar: pd.DatetimeIndex, future: pd.DatetimeIndex
) -> None:
    (folder / "calendars").mkdir()
    times = list(calendar.strftime(_time_format(freq)))
    later = list(future.strftime(_time_format(freq)))
    for ahead, lines in ((False, times), (True, times + later)):
        _write_lines(folder / "calendars" / f"{freq}{'_future' if ahead else ''}.txt", lines)
        _check_same("calendar", stored_calendar_lines(folder, freq, ahead), lines)


def _write_markets(folder: Path, freq: str, markets: Mapping[str, pd.DataFrame]) -> None:
    (folder / "instruments").mkdir()
    for market, spans in markets.items():
        shown = spans.apply(lambda times: times.dt.strftime(_time_format(freq)))
        lines = ["\t".join(row) for row in shown.itertuples()]
        _write_lines(folder / "instruments" / f"{market}.txt", lines)
        read = stored_market(folder, freq, market)
        written = {symbol: [(first, last)] for symbol, first, last in spans.itertuples()}
        _check_same(f"market {market}", read, written)


def _time_format(freq: str) -> str:
    return "%Y-%m-%d" if freq == "day" else "%Y-%m-%d %H:%M:%S"


def _write_lines(path: Path, lines: Sequence[str]) -> None:
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
        instrument = feature_folder(str(symbol))
        (folder / "features" / instrument).mkdir(parents=True)
        start, stop = places[rows].min(), places[rows].max() + 1
        dense = np.full((stop - start, len(fields)), np.nan, dtype="<f4")
        dense[places[rows] - start] = values[rows]
        for field, column in zip(fields, dense.T, strict=True):
            path = folder / "features" / instrument / f"{field}.{freq}.bin"
            path.write_bytes(np.concatenate([[start], column]).astype("<f4").tobytes())
            read = stored_feature(folder, freq, instrument, field)
            same = read.index[0] == start and np.array_equal(read, column, equal_nan=True)
            _check_same(f"{symbol} {field}", same, True)


def _check_same(what: str, read: Any, written: Any) -> None:
    if read != written:
        raise BarDataError(f"{what}: Qlib reads back something else than was written")
