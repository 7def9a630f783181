"""New bars of one instrument against those that a Qlib folder has: what is new, what has changed.

Prices in a folder are price x factor on one base for all of an instrument's bars. A vendor changes
the past in three ways: it corrects a bar; it brings one that was missing; or, after a split or a
dividend, it adjusts all of the past anew, so that every older price is multiplied by one number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.data.calendar.stamps import Times
from kronos_qlib.data.calendar.time_text import show_time
from kronos_qlib.data.rules import FLOAT32_SLACK
from kronos_qlib.errors import BarDataError
from kronos_qlib.schema import BAR_COLUMNS, PRICE_COLUMNS

Floats32 = npt.NDArray[np.float32]
Floats64 = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]

NUMBERS = (*BAR_COLUMNS, "factor")
CORRECTED, ADDED, REBASED = "corrected", "added", "rebased"

LEAST_REBASE = 1e-5
"""|ratio - 1| of two factors that is more than the rounding of float32."""
REBASE_SLACK = 2e-3
"""How far prices may lie from the ratio of their factors: vendors round prices to the cent."""
MANY_BARS, LOOSE, STRICT = 3, 0.25, 0.02
"""Without factors, prices show a new base by one ratio: they may differ from it by this share of
its move, less where there are fewer bars than MANY_BARS."""
LEAST_EVENT = 0.02
"""|log ratio| of two factors below which it cannot be told on which base a new bar is."""


@dataclass(frozen=True)
class HistoryChange:
    """What of one instrument's stored bars is another now."""

    symbol: str
    kind: str
    """"corrected" bars, "added" ones that were missing among older ones, or all "rebased"."""
    first: pd.Timestamp
    last: pd.Timestamp
    bars: int
    detail: str

    def __str__(self) -> str:
        span = show_time(self.first)
        if self.last != self.first:
            span += f" to {show_time(self.last)}"
        bars = "1 bar" if self.bars == 1 else f"{self.bars} bars"
        return f"{self.symbol} {span}: {bars} {self.kind}: {self.detail}"


@dataclass(frozen=True)
class Merged:
    """One instrument's bars, old and new.

    start: place in the calendar of the first. values: (n, fields), NaN where there is no bar.
    """

    symbol: str
    start: int
    values: Floats32
    written: Places
    """(m,) places at which a bar is new or another than before."""
    changes: tuple[HistoryChange, ...]
    notes: tuple[str, ...]


def merge(
    symbol: str,
    times: Times,
    fields: Sequence[str],
    start: int,
    stored: Floats32,
    places: Places,
    given: Mapping[str, Floats64],
    vwap: Floats64,
    known: int,
) -> Merged:
    """Put given bars among stored ones.

    `change` of the bars written is left to the caller.

    Args:
        times: (K,) the calendar, new times among them.
        fields: names of the F columns, those of NUMBERS among them where they are stored.
        start, stored: (n, F) the stored bars from a place of the calendar on; n may be 0.
        places: (m,) of the given bars, increasing.
        given: (m,) each, of NUMBERS and other fields. A factor that is NaN goes on as it was.
        vwap: (m,) of the given bars.
        known: how many of `times` were in the calendar before the new ones at its end.

    Raises:
        BarDataError: the given bars are on another base than the stored ones, and no bar of both
            says by how much.
    """
    column = {name: at for at, name in enumerate(fields)}
    begin = min(int(places[0]), start if len(stored) else int(places[0]))
    end = max(int(places[-1]) + 1, start + len(stored))
    values = np.full((end - begin, len(fields)), np.nan, dtype=np.float32)
    values[start - begin : start - begin + len(stored)] = stored
    rows = places - begin
    is_known = np.isfinite(values[rows, column["close"]])
    given = _with_factors(dict(given), values, rows, column)
    changes: list[HistoryChange] = []
    notes: list[str] = []
    before = values[rows].astype(np.float64)
    slack = FLOAT32_SLACK
    if is_known.any():
        ratios = _new_base(before[is_known], {n: v[is_known] for n, v in given.items()}, column)
        if ratios is not None:
            _rebase(values, ratios, column)
            there = np.flatnonzero(np.isfinite(values[:, column["close"]]))
            detail = f"prices x {ratios['close']:.6g}"
            if ratios["factor"] != 1:
                detail += f", factor x {ratios['factor']:.6g}"
            changes.append(
                HistoryChange(
                    symbol,
                    REBASED,
                    pd.Timestamp(times[begin + there[0]]),
                    pd.Timestamp(times[begin + there[-1]]),
                    len(there),
                    detail,
                )
            )
            before, slack = values[rows].astype(np.float64), REBASE_SLACK
    else:
        notes += _first_factor(symbol, times, values, begin, int(rows[0]), given, column)
    differs = _differs(before, given, column, slack) & is_known
    if differs.any():
        at = int(np.flatnonzero(differs)[0])
        changes.append(_change(symbol, CORRECTED, times, places[differs]))
        changes[-1] = _explained(changes[-1], before[at], given, at, column)
    late = ~is_known & (places < known) & bool(len(stored))
    if late.any():
        changes.append(_change(symbol, ADDED, times, places[late]))
    touched = differs | ~is_known
    exact = touched | (is_known & (slack != FLOAT32_SLACK))  # on a new base, the vendor's own
    for name, numbers in {**given, "vwap": vwap}.items():
        if name in column:
            values[rows[exact], column[name]] = numbers[exact].astype(np.float32)
    return Merged(symbol, begin, values, places[exact], tuple(changes), tuple(notes))


def _with_factors(
    given: dict[str, Floats64], values: Floats32, rows: Places, column: Mapping[str, int]
) -> dict[str, Floats64]:
    """Given bars whose factor is unknown have the stored one before them, or 1."""
    factor = given["factor"].copy()
    if np.isnan(factor).any():
        stored = (
            pd.Series(values[:, column["factor"]].astype(np.float64))
            if "factor" in column
            else pd.Series(np.ones(len(values)))
        )
        filled = stored.ffill().bfill().fillna(1.0).to_numpy()
        factor = np.where(np.isnan(factor), filled[rows], factor)
    return {**given, "factor": factor}


def _new_base(
    before: Floats64, given: Mapping[str, Floats64], column: Mapping[str, int]
) -> dict[str, float] | None:
    """By what each number of the past is to be multiplied; None where the base is as it was."""
    old = before[:, [column[name] for name in PRICE_COLUMNS]]
    new = np.stack([given[name] for name in PRICE_COLUMNS], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = new / old
        by_factor = given["factor"] / (
            before[:, column["factor"]] if "factor" in column else np.ones(len(before))
        )
    if not (np.isfinite(ratios).all() and np.isfinite(by_factor).all()):
        return None
    ratio, factor = float(np.median(ratios)), float(np.median(by_factor))
    if np.abs(by_factor / factor - 1).max() > LEAST_REBASE:
        return None
    if abs(factor - 1) > LEAST_REBASE:
        if abs(ratio / factor - 1) > REBASE_SLACK:
            return None  # the raw price changed too: a correction
        ratio = factor
    else:
        factor = 1.0
        move, spread = abs(ratio - 1), float(np.abs(ratios / ratio - 1).max())
        share = LOOSE if len(before) >= MANY_BARS else STRICT
        one_price = (old.max(axis=1) == old.min(axis=1)).all() and len(before) < MANY_BARS
        if move <= 10 * LEAST_REBASE or spread > share * move or one_price:
            return None
    volume = 1.0
    if "volume" in column:
        sizes = before[:, column["volume"]]
        traded = (sizes > 0) & (given["volume"] > 0)
        if traded.any():
            volume = float(np.median(given["volume"][traded] / sizes[traded]))
        if abs(volume * ratio - 1) < REBASE_SLACK:
            volume = 1 / ratio
    return {**dict.fromkeys((*PRICE_COLUMNS, "vwap"), ratio), "volume": volume, "factor": factor}


def _rebase(values: Floats32, ratios: Mapping[str, float], column: Mapping[str, int]) -> None:
    for name, ratio in ratios.items():
        if name in column and ratio != 1:
            values[:, column[name]] = (values[:, column[name]].astype(np.float64) * ratio).astype(
                np.float32
            )


def _first_factor(
    symbol: str,
    times: Times,
    values: Floats32,
    begin: int,
    row: int,
    given: Mapping[str, Floats64],
    column: Mapping[str, int],
) -> list[str]:
    """A note on a factor that is new with the first given bar.

    Raises:
        BarDataError: price and factor both moved by the same ratio: the bar is on another base.
    """
    earlier = np.flatnonzero(np.isfinite(values[:row, column["close"]]))
    if not len(earlier) or "factor" not in column:
        return []
    close, factor = values[earlier[-1], [column["close"], column["factor"]]].astype(np.float64)
    new_close, new_factor = float(given["close"][0]), float(given["factor"][0])
    if not (factor > 0 and close > 0) or abs(new_factor / factor - 1) <= LEAST_REBASE:
        return []
    moved, turned = np.log(new_close / close), np.log(new_factor / factor)
    day = show_time(times[begin + row])
    if abs(turned) > LEAST_EVENT and abs(moved) - abs(moved - turned) > abs(turned) / 2:
        raise BarDataError(
            f"{symbol} {day}: its factor goes from {factor:.6g} to {new_factor:.6g} and its price "
            f"with it, {close:.6g} to {new_close:.6g}: this bar is adjusted on another base than "
            f"the bars before. Give the bar of {show_time(times[begin + earlier[-1]])} once more "
            "as the vendor has it now, and all bars before are brought to the new base"
        )
    return [f"{symbol} {day}: factor {factor:.6g} to {new_factor:.6g}"]


def _differs(
    before: Floats64, given: Mapping[str, Floats64], column: Mapping[str, int], slack: float
) -> npt.NDArray[np.bool_]:
    differs = np.zeros(len(before), dtype=bool)
    for name, numbers in given.items():
        if name not in column:
            continue
        old, new = before[:, column[name]], numbers.astype(np.float32).astype(np.float64)
        with np.errstate(invalid="ignore"):
            far = np.abs(new - old) > slack * np.maximum(np.abs(new), np.abs(old))
        differs |= far | (np.isnan(old) != np.isnan(new))
    return differs


def _change(symbol: str, kind: str, times: Times, places: Places) -> HistoryChange:
    first, last = (pd.Timestamp(times[place]) for place in (places[0], places[-1]))
    return HistoryChange(symbol, kind, first, last, len(places), "there was none")


def _explained(
    change: HistoryChange,
    before: Floats64,
    given: Mapping[str, Floats64],
    at: int,
    column: Mapping[str, int],
) -> HistoryChange:
    """With the numbers of the first bar that are another."""
    parts = []
    for name, numbers in given.items():
        if name in column:
            old, new = before[column[name]], numbers[at]
            far = abs(new - old) > FLOAT32_SLACK * max(abs(new), abs(old))
            if far or np.isnan(old) != np.isnan(new):
                parts.append(f"{name} {old:.9g} to {new:.9g}")
    return HistoryChange(
        change.symbol, change.kind, change.first, change.last, change.bars, ", ".join(parts)
    )
