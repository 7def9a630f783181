"""What is wrong with a long table of bars, and repairs that are asked for by name."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.errors import BarDataError, ConfigError
from kronos_qlib.schema import BAR_COLUMNS, PRICE_COLUMNS

Flags = npt.NDArray[np.bool_]

Explain = Callable[[Mapping[str, Any]], str]
"""From one bar to what is to be said about it."""
Changes = list[tuple[Any, Any, str]]
"""(symbol, date, detail) of every bar that a repair touched."""

REPORT_COLUMNS = ("symbol", "date", "severity", "rule", "detail")
RECORD_COLUMNS = ("symbol", "date", "rule", "detail")

SIZE_COLUMNS = ("volume", "amount")

VWAP_SLACK = 1.1
"""How far amount / volume may lie outside a bar's low and high: small volumes are rounded."""


def check_bars(
    bars: pd.DataFrame,
    *,
    max_move: float | None = 0.4,
    calendar: Iterable[Any] | None = None,
    find_gaps: bool = True,
) -> pd.DataFrame:
    """Report every bar that breaks a promise of the schema, or looks as if it might.

    Args:
        bars: symbol, date and `schema.BAR_COLUMNS`; amount and factor are checked where present.
            Prices compare exactly, without tolerance.
        max_move: Largest believable |return| from one close of an instrument to its next, as a
            fraction; None skips the rule.
        calendar: The times at which bars are due; the table's own dates if None.
        find_gaps: Whether to report due times without a bar between an instrument's first and
            last. Suspensions leave such gaps too.

    Returns:
        One row per problem: symbol, date, severity ("error" or "warning"), rule, detail; sorted
        by symbol and date, empty if all is well. Errors: order, duplicate, nan, nonpositive, size
        (volume or amount negative or missing), factor, high-below-low, bracket. Warnings: jump,
        vwap (amount / volume far from the prices), gap (one row each, dated at the first missing
        bar).

    Raises:
        BarDataError: A column is missing or holds no numbers.
    """
    _check_columns(bars)
    problems = [
        *_order_problems(bars),
        *_bar_problems(bars),
        *([] if max_move is None else _jump_problems(bars, max_move)),
        *_vwap_problems(bars),
    ]
    if find_gaps:
        problems += _gap_problems(bars, calendar)
    report = pd.DataFrame(problems, columns=list(REPORT_COLUMNS))
    return report.sort_values(["symbol", "date", "rule"], kind="stable", ignore_index=True)


def describe_report(
    report: pd.DataFrame, *, examples: int = 3, in_full: Container[str] = ()
) -> str:
    """A report of `check_bars` in lines for a terminal: a count per rule, and its first bars.

    Args:
        report: The record of `repair_bars` will do as well.
        examples: Bars to show of each rule.
        in_full: Rules of which to show every bar.
    """
    lines = []
    headings = [name for name in ("severity", "rule") if name in report]
    for heading, rows in report.groupby(headings):
        lines.append(f"{' '.join(map(str, heading))}: {len(rows)}")
        shown = rows if heading[-1] in in_full else rows.head(examples)
        for symbol, date, detail in zip(
            *(shown[name] for name in ("symbol", "date", "detail")), strict=True
        ):
            lines.append(f"  {symbol} {str(date).removesuffix(' 00:00:00')}: {detail}")
    return "\n".join(lines)


def measure_lot(bars: pd.DataFrame) -> int:
    """Shares per unit of volume, from what was paid: 1, or the 100 of tables that count lots.

    Returns:
        The power of ten from 1 to 10**6 nearest to the median of amount / (volume x close).
    """
    volume, paid, close = (
        bars[name].to_numpy(np.float64) for name in ("volume", "amount", "close")
    )
    known = np.isfinite(volume) & np.isfinite(paid) & np.isfinite(close)
    usable = known & (volume > 0) & (paid > 0) & (close > 0)
    if not usable.any():
        return 1
    digits = np.log10(paid[usable]) - np.log10(volume[usable]) - np.log10(close[usable])
    return int(10 ** min(6, max(0, round(float(np.median(digits))))))


def is_vwap_plausible(bars: pd.DataFrame, vwap: npt.NDArray[np.float64]) -> Flags:
    """Where an average price paid lies in its bar's low and high, `VWAP_SLACK` allowed."""
    low, high = bars["low"].to_numpy(np.float64), bars["high"].to_numpy(np.float64)
    plausible: Flags = (vwap >= low / VWAP_SLACK) & (vwap <= high * VWAP_SLACK)
    return plausible


def _check_columns(bars: pd.DataFrame) -> None:
    for name in ("symbol", "date", *PRICE_COLUMNS, "volume"):
        if name not in bars:
            raise BarDataError(
                f"bars have no column {name!r}; they have {', '.join(map(str, bars.columns))}"
            )
    for name in (*BAR_COLUMNS, "factor"):
        if name in bars and not pd.api.types.is_numeric_dtype(bars[name].dtype):
            raise BarDataError(f"column {name!r} must hold numbers, got {bars[name].dtype}")


def _told(bars: pd.DataFrame, where: Flags, explain: Explain) -> Changes:
    """(symbol, date, detail) of the flagged bars."""
    flagged = bars.loc[where]
    names = [str(name) for name in flagged.columns]
    rows = (dict(zip(names, row, strict=True)) for row in flagged.itertuples(index=False))
    return [(bar["symbol"], bar["date"], explain(bar)) for bar in rows]


def _rows(
    bars: pd.DataFrame, where: Flags, severity: str, rule: str, explain: Explain
) -> list[tuple[Any, ...]]:
    """Report rows for the flagged bars."""
    return [
        (symbol, date, severity, rule, detail)
        for symbol, date, detail in _told(bars, where, explain)
    ]


def _is_nonpositive(bars: pd.DataFrame) -> Flags:
    bad: Flags = np.any(bars[list(PRICE_COLUMNS)].to_numpy(np.float64) <= 0, axis=1)
    return bad


def _is_unknown(bars: pd.DataFrame) -> Flags:
    bad: Flags = ~np.isfinite(bars[list(PRICE_COLUMNS)].to_numpy(np.float64)).all(axis=1)
    return bad


def _bar_problems(bars: pd.DataFrame) -> list[tuple[Any, ...]]:
    """Rules that one bar can break by itself."""
    opens, highs, lows, closes = bars[list(PRICE_COLUMNS)].to_numpy(np.float64).T
    outside = (highs < np.maximum(opens, closes)) | (lows > np.minimum(opens, closes))
    repeated = bars.duplicated(["symbol", "date"]).to_numpy()
    copied = bars.duplicated().to_numpy() if repeated.any() else repeated
    # NaN compares false: a missing price breaks no other rule.
    problems = [
        *_rows(bars, repeated & copied, "error", "duplicate", lambda bar: "the same bar again"),
        *_rows(bars, repeated & ~copied, "error", "duplicate", _tell(PRICE_COLUMNS, "another: ")),
        *_rows(bars, _is_unknown(bars), "error", "nan", _tell(PRICE_COLUMNS)),
        *_rows(bars, _is_nonpositive(bars), "error", "nonpositive", _tell(PRICE_COLUMNS)),
        *_rows(bars, highs < lows, "error", "high-below-low", _tell(("high", "low"))),
        *_rows(bars, outside, "error", "bracket", _tell(PRICE_COLUMNS)),
    ]
    for name in SIZE_COLUMNS:
        if name in bars:
            problems += _rows(bars, _bad_sizes(bars, name), "error", "size", _tell((name,)))
    if "factor" in bars:
        factor = bars["factor"].to_numpy(np.float64)
        bad = ~(np.isfinite(factor) & (factor > 0))
        problems += _rows(bars, bad, "error", "factor", _tell(("factor",)))
    return problems


def _tell(names: Iterable[str], what: str = "") -> Explain:
    """Show a bar's values by name, after a word on what they are."""
    return lambda bar: what + ", ".join(f"{name} {bar[name]:.10g}" for name in names)


def _bad_sizes(bars: pd.DataFrame, name: str) -> Flags:
    sizes = bars[name].to_numpy(np.float64)
    bad: Flags = ~(np.isfinite(sizes) & (sizes >= 0))
    return bad


def _order_problems(bars: pd.DataFrame) -> list[tuple[Any, ...]]:
    """One row per instrument whose rows run backwards in time; a table day by day is in order."""
    steps = bars["date"].groupby(bars["symbol"], sort=False).diff()
    broken = bars.loc[(steps < pd.Timedelta(0)).to_numpy()].drop_duplicates("symbol")
    return [
        (symbol, date, "error", "order", "stands after a later bar")
        for symbol, date in zip(broken["symbol"], broken["date"], strict=True)
    ]


def _jump_problems(bars: pd.DataFrame, max_move: float) -> list[tuple[Any, ...]]:
    known = np.isfinite(bars["close"]) & (bars["close"] > 0)
    closes = bars.loc[known, ["symbol", "date", "close"]].sort_values(
        ["symbol", "date"], kind="stable"
    )
    closes["before"] = closes.groupby("symbol", sort=False)["close"].shift()
    move = closes["close"].to_numpy(np.float64) / closes["before"].to_numpy(np.float64) - 1.0
    closes["move"] = move
    return _rows(
        closes,
        np.abs(move) > max_move,
        "warning",
        "jump",
        lambda bar: f"close {bar['before']:.10g} to {bar['close']:.10g}, {bar['move']:+.1%}",
    )


def _vwap_problems(bars: pd.DataFrame) -> list[tuple[Any, ...]]:
    if "amount" not in bars:
        return []
    lot = measure_lot(bars)
    told = _tell(("amount", "volume", "low", "high"), f"in lots of {lot}: " if lot > 1 else "")
    return _rows(bars, _strange_sizes(bars, lot), "warning", "vwap", told)


def _strange_sizes(bars: pd.DataFrame, lot: int) -> Flags:
    """Where the average price paid is known and lies far from the bar's prices."""
    volume, paid = bars["volume"].to_numpy(np.float64), bars["amount"].to_numpy(np.float64)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        vwap = paid / (volume * lot)
    strange: Flags = (volume > 0) & np.isfinite(paid) & ~is_vwap_plausible(bars, vwap)
    strange &= np.isfinite(bars[["low", "high"]].to_numpy(np.float64)).all(axis=1)
    return strange


def _gap_problems(bars: pd.DataFrame, calendar: Iterable[Any] | None) -> list[tuple[Any, ...]]:
    due = pd.DatetimeIndex(bars["date"].unique() if calendar is None else list(calendar))
    due = due.unique().sort_values()
    seen = bars[["symbol", "date"]].drop_duplicates().sort_values(["symbol", "date"])
    dates = seen["date"].to_numpy()
    # Between two bars of one instrument lie the due times after the first and before the second.
    after = due.searchsorted(dates[:-1], side="right")
    before = due.searchsorted(dates[1:], side="left")
    missing = before - after
    symbols = seen["symbol"].to_numpy()
    gaps = np.nonzero((symbols[1:] == symbols[:-1]) & (missing > 0))[0]
    return [
        (
            symbols[gap],
            due[after[gap]],
            "warning",
            "gap",
            f"{missing[gap]} missing to {due[before[gap] - 1]}",
        )
        for gap in gaps
    ]


@dataclass(frozen=True)
class Repair:
    """One named repair: what it does, and how."""

    what: str
    apply: Callable[[pd.DataFrame], tuple[pd.DataFrame, Changes]]


def repair_bars(bars: pd.DataFrame, rules: Iterable[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Apply the repairs asked for, and no other.

    Args:
        bars: A long table, left untouched.
        rules: Names in `REPAIRS`, applied in that table's order whatever the order here.

    Returns:
        The repaired bars, and a record with one row per change: symbol, date, rule, detail.

    Raises:
        ConfigError: A rule has no such name.
    """
    asked = list(rules)
    for rule in asked:
        if rule not in REPAIRS:
            raise ConfigError(f"no repair is called {rule!r}; known: {', '.join(REPAIRS)}")
    _check_columns(bars)
    record: list[tuple[Any, ...]] = []
    for name, repair in REPAIRS.items():
        if name in asked:
            bars, changes = repair.apply(bars)
            record += [(symbol, date, name, detail) for symbol, date, detail in changes]
    return bars.reset_index(drop=True), pd.DataFrame(record, columns=list(RECORD_COLUMNS))


def _drop(bars: pd.DataFrame, where: Flags, explain: Explain) -> tuple[pd.DataFrame, Changes]:
    dropped = _told(bars, where, lambda bar: f"dropped: {explain(bar)}")
    return bars.loc[~where], dropped


def _drop_nan(bars: pd.DataFrame) -> tuple[pd.DataFrame, Changes]:
    return _drop(bars, _is_unknown(bars), _tell(PRICE_COLUMNS))


def _drop_nonpositive(bars: pd.DataFrame) -> tuple[pd.DataFrame, Changes]:
    return _drop(bars, _is_nonpositive(bars), _tell(PRICE_COLUMNS))


def _drop_duplicates(bars: pd.DataFrame) -> tuple[pd.DataFrame, Changes]:
    repeated = bars.duplicated(["symbol", "date"], keep="last").to_numpy()
    return _drop(bars, repeated, _tell(PRICE_COLUMNS, "a later row has this time: "))


def _sort(bars: pd.DataFrame) -> tuple[pd.DataFrame, Changes]:
    changes = [(symbol, date, "sorted") for symbol, date, *_ in _order_problems(bars)]
    return bars.sort_values(["symbol", "date"], kind="stable"), changes


def _bracket(bars: pd.DataFrame) -> tuple[pd.DataFrame, Changes]:
    prices = bars[list(PRICE_COLUMNS)]
    top, bottom = prices.max(axis=1), prices.min(axis=1)
    too_narrow = ((bars["high"] < top) | (bars["low"] > bottom)).to_numpy()
    wrong = too_narrow & ~_is_unknown(bars)
    changes = _told(bars, wrong, _tell(("high", "low"), "widened from "))
    wide = bars.assign(high=bars["high"].mask(wrong, top), low=bars["low"].mask(wrong, bottom))
    return wide, changes


def _zero_sizes(bars: pd.DataFrame) -> tuple[pd.DataFrame, Changes]:
    changes: Changes = []
    for name in SIZE_COLUMNS:
        if name in bars:
            wrong = _bad_sizes(bars, name)
            changes += _told(bars, wrong, _tell((name,), "set to 0: "))
            bars = bars.assign(**{name: bars[name].mask(wrong, 0)})
    return bars, changes


def _zero_strange(bars: pd.DataFrame) -> tuple[pd.DataFrame, Changes]:
    if "amount" not in bars:
        return bars, []
    wrong = _strange_sizes(bars, measure_lot(bars))
    zeroed = bars.assign(**{name: bars[name].mask(wrong, 0) for name in SIZE_COLUMNS})
    return zeroed, _told(bars, wrong, _tell(SIZE_COLUMNS, "set to 0: "))


REPAIRS: Mapping[str, Repair] = {
    "drop-nan": Repair("leave out bars with a price that is NaN or infinite", _drop_nan),
    "drop-nonpositive": Repair("leave out bars with a price of 0 or less", _drop_nonpositive),
    "drop-duplicates": Repair("of several bars at one time keep the last row", _drop_duplicates),
    "sort": Repair("sort by symbol and date", _sort),
    "bracket": Repair("widen high and low to span open and close", _bracket),
    "zero-sizes": Repair("set negative or missing volume and amount to 0", _zero_sizes),
    "zero-strange": Repair("set volume and amount that the vwap rule doubts to 0", _zero_strange),
}
"""Every repair by name, in the order in which they are applied."""
