"""Bars and settings that cannot become a Qlib folder are refused before anything is written."""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from qlib.utils.time import Freq

from kronos_qlib.data.files.advice import advise, describe_advice
from kronos_qlib.data.files.check import (
    check_bars,
    check_columns,
    describe_report,
    errors_of,
)
from kronos_qlib.errors import BarDataError, ConfigError
from kronos_qlib.plugin.provider.faults import feature_folder
from kronos_qlib.schema import BAR_COLUMNS, LONG_COLUMNS, PRICE_COLUMNS

FIELDS = (*BAR_COLUMNS, "factor", "vwap", "change")
"""What every instrument is stored with, one file each. Qlib's own exchange compares `change` with
its price limit, and without that file lets every order pass in silence."""

UNSAFE_IN_PATH = re.compile(r'[<>:"/\\|?*\x00-\x1f]|[ .]$|^ ')
"""What some file system does not take in a name; a tab would also break Qlib's market files."""
LONGEST_NAME = 255
"""Bytes of a file's name, on nearly every file system."""
UNSEEN = ("Cc", "Cf", "Co", "Cs", "Zl", "Zp", "Zs")
"""Unicode's characters that do not show, or not as what they are; a plain space shows."""
ALL_MARKET = "all"
MARKET_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,99}")
PROVIDER_FOLDERS = ("calendars", "features", "instruments")


def check_settings(freq: str, market: str, future_bars: int) -> str:
    """The frequency as Qlib spells it in file names.

    Raises:
        ConfigError: `freq`, `market` or `future_bars` cannot work.
    """
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


def check_target(target: Path, overwrite: bool) -> None:
    """Refuse a target that would lose something.

    Raises:
        ConfigError: it is a file, another folder than a provider's, or there and not to be
            replaced.
    """
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


def check_table(bars: pd.DataFrame, extra: Sequence[str]) -> None:
    """Refuse bars that break the schema.

    Args:
        bars: `schema.LONG_COLUMNS`, and the columns of `extra`.
        extra: further columns that become fields.

    Raises:
        BarDataError: a column is missing or of another type, or a bar breaks a rule.
        ConfigError: a name in `extra` cannot be a field.
    """
    for name in extra:
        if name in FIELDS or not MARKET_NAME.fullmatch(name):
            raise ConfigError(
                f"extra column {_short(name)} must be a lower-case word of at most 100 letters, "
                f"not in {FIELDS}"
            )
    check_columns(bars, (*LONG_COLUMNS, *extra), extra)
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


def check_symbols(symbols: Sequence[str]) -> None:
    """Refuse symbols that Qlib, or some file system, would keep under another name.

    Raises:
        BarDataError: names the symbol and what is wrong with it.
    """
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


def check_range(table: pd.DataFrame, fields: Sequence[str]) -> None:
    """Refuse numbers that float32, in which Qlib stores them, does not hold.

    Raises:
        BarDataError: names instrument, time and column.
    """
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
