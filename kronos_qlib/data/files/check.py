"""What is wrong with a long table of bars; `repair` corrects what it is asked to."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.data import rules
from kronos_qlib.data.calendar.time_text import show_time
from kronos_qlib.data.rules import MAX_MOVE, Flags
from kronos_qlib.errors import BarDataError, ConfigError
from kronos_qlib.schema import BAR_COLUMNS, PRICE_COLUMNS, SIZE_COLUMNS

Values = npt.NDArray[np.float64]

Explain = Callable[[Mapping[str, Any]], str]
"""From one bar to the detail that a report gives of it."""
Changes = list[tuple[str, pd.Timestamp, str]]
"""(symbol, date, detail) of every bar that a repair touched."""
Problem = tuple[str, pd.Timestamp, str, str, str]
"""A row of a report: REPORT_COLUMNS."""

REPORT_COLUMNS = ("symbol", "date", "severity", "rule", "detail")

WARNINGS = (rules.JUMP, "vwap", "gap", rules.REPEATED)
"""Rules that may be broken by sound bars."""

VWAP_SLACK = 1.1
"""How far amount / volume may lie outside a bar's low and high: small volumes are rounded."""


def check_bars(
    bars: pd.DataFrame,
    *,
    max_move: float | None = MAX_MOVE,
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
        by symbol and date, empty if all is well. Errors: order, duplicate, nan, untraded (see
        `rules.is_untraded`; such a bar breaks no other rule of numbers but nan), nonpositive, size
        (volume or amount negative or missing), factor, high-below-low, bracket. Warnings: jump,
        vwap (amount / volume far from the prices), gap (one row each, dated at the first missing
        bar), repeated (the whole bar before once more, see `rules.is_repeated`).

    Raises:
        BarDataError: A column is missing or holds no numbers.
        ConfigError: `max_move` is not above 0.
    """
    check_columns(bars)
    problems = [
        *order_problems(bars),
        *_bar_problems(bars),
        *([] if max_move is None else _jump_problems(bars, max_move)),
        *_vwap_problems(bars),
        *_rows(bars, repeated_bars(bars), "warning", rules.REPEATED, show_untraded),
    ]
    if find_gaps:
        problems += _gap_problems(bars, calendar)
    report = pd.DataFrame(problems, columns=list(REPORT_COLUMNS))
    report = report.astype({"date": bars["date"].dtype})  # an empty one's too
    return report.sort_values(["symbol", "date", "rule"], kind="stable", ignore_index=True)


def errors_of(report: pd.DataFrame) -> pd.DataFrame:
    """What of a report keeps bars out: every error but the order of rows, which is sorted."""
    return report.loc[(report["severity"] == "error") & (report["rule"] != "order")]


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
            lines.append(f"  {symbol} {show_time(date)}: {detail}")
        if len(shown) < len(rows):
            lines.append(f"  and {len(rows) - len(shown)} more")
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
    """(n,) where an average price paid (n,) lies in its bar's low and high, with VWAP_SLACK."""
    low, high = bars["low"].to_numpy(np.float64), bars["high"].to_numpy(np.float64)
    plausible: Flags = (vwap >= low / VWAP_SLACK) & (vwap <= high * VWAP_SLACK)
    return plausible


def check_columns(
    bars: pd.DataFrame,
    needed: Iterable[str] = ("symbol", "date", *PRICE_COLUMNS, "volume"),
    numbers: Iterable[str] = (*BAR_COLUMNS, "factor"),
) -> None:
    """Check the columns of a long table.

    Args:
        needed: columns that must be there.
        numbers: columns that hold numbers, where they are there.

    Raises:
        BarDataError: a column is missing or holds no numbers.
    """
    for name in needed:
        if name not in bars:
            raise BarDataError(
                f"bars have no column {name!r}; they have {', '.join(map(str, bars.columns))}"
            )
    for name in numbers:
        if name in bars and not pd.api.types.is_numeric_dtype(bars[name].dtype):
            raise BarDataError(f"column {name!r} must hold numbers, got {bars[name].dtype}")


def describe_bars(bars: pd.DataFrame, where: Flags, explain: Explain) -> Changes:
    """(symbol, date, detail) of the flagged bars."""
    if not where.any():  # as mostly, and a look at pandas takes longer
        return []
    flagged = bars.loc[where]
    names = [str(name) for name in flagged.columns]
    rows = (dict(zip(names, row, strict=True)) for row in flagged.itertuples(index=False))
    return [(bar["symbol"], bar["date"], explain(bar)) for bar in rows]


def _rows(
    bars: pd.DataFrame, where: Flags, severity: str, rule: str, explain: Explain
) -> list[Problem]:
    """Report rows for the flagged bars."""
    return [
        (symbol, date, severity, rule, detail)
        for symbol, date, detail in describe_bars(bars, where, explain)
    ]


def derive_amount(bars: pd.DataFrame) -> pd.Series:
    """What an amount that a table lacks is taken for: volume x the mean of the four prices."""
    derived: pd.Series = bars["volume"] * bars[list(PRICE_COLUMNS)].mean(axis=1)
    return derived


def is_derived_amount(bars: pd.DataFrame) -> Flags:
    """(n,) where the amount is what `derive_amount` makes, or missing with volume.

    What is wrong with it is wrong with volume or a price, and is reported there.
    """
    derived, amount = derive_amount(bars).to_numpy(np.float64), bars["amount"].to_numpy(np.float64)
    return np.asarray((amount == derived) | np.isnan(amount) & np.isnan(derived))


def values_of(bars: pd.DataFrame) -> Values:
    """(n, 6) float64 of a long table, in its order; an amount that it lacks is NaN."""
    return bars.reindex(columns=list(BAR_COLUMNS)).to_numpy(np.float64)


def untraded_bars(bars: pd.DataFrame) -> Flags:
    """(n,) where a long table in any order has bars that did not trade, see `rules.is_untraded`."""
    return _flags_in_time(bars, rules.is_untraded)


def repeated_bars(bars: pd.DataFrame) -> Flags:
    """(n,) where a long table in any order has the whole bar before, see `rules.is_repeated`."""
    return _flags_in_time(bars, rules.is_repeated)


def idle_bars(bars: pd.DataFrame) -> Flags:
    """(n,) where a long table in any order has bars to leave out: not traded, or repeated.

    Without them a bar may stand behind another one that it repeats: that too is left out.
    """
    idle = np.zeros(len(bars), dtype=bool)
    while len(kept := np.flatnonzero(~idle)):
        left = bars.iloc[kept]
        found = untraded_bars(left) | repeated_bars(left)
        if not found.any():
            break
        idle[kept[found]] = True
    return idle


def _flags_in_time(bars: pd.DataFrame, rule: Callable[[Values, Flags], Flags]) -> Flags:
    """The flags that a rule of bars in order of time gives to the rows of a long table.

    Of several bars at one time the first counts, and those that are equal to it.
    """
    flags = np.zeros(len(bars), dtype=bool)
    if not len(bars):
        return flags
    owners = pd.factorize(bars["symbol"])[0]
    times = bars["date"].to_numpy()
    order = np.lexsort((times, owners))
    owners, times, values = owners[order], times[order], values_of(bars)[order]
    again = np.zeros(len(bars), dtype=bool)
    again[1:] = (owners[1:] == owners[:-1]) & (times[1:] == times[:-1])
    single = np.flatnonzero(~again)
    found = rule(values[single], rules.starts_of(owners[single]))
    first = np.cumsum(~again) - 1
    same = (values == values[single][first]) | np.isnan(values) & np.isnan(values[single][first])
    flags[order] = found[first] & (~again | same.all(axis=1))
    return flags


def _bar_problems(bars: pd.DataFrame) -> list[Problem]:
    """Rules that one bar can break by itself."""
    repeated = bars.duplicated(["symbol", "date"]).to_numpy()
    copied = bars.duplicated().to_numpy() if repeated.any() else repeated
    values, idle = values_of(bars), untraded_bars(bars)

    def broken(where: Flags, rule: str, names: Iterable[str] = PRICE_COLUMNS) -> list[Problem]:
        return _rows(bars, where & ~idle, "error", rule, show(names))

    problems = [
        *_rows(bars, repeated & copied, "error", "duplicate", lambda bar: "the same bar again"),
        *_rows(bars, repeated & ~copied, "error", "duplicate", show(PRICE_COLUMNS, "another: ")),
        *_rows(bars, rules.is_unknown(values), "error", "nan", show(PRICE_COLUMNS)),
        *_rows(bars, idle, "error", rules.UNTRADED, show_untraded),
        *broken(rules.is_nonpositive(values), rules.NONPOSITIVE),
        *broken(rules.is_upside_down(values), rules.UPSIDE_DOWN, ("high", "low")),
        *broken(rules.is_outside(values), rules.BRACKET),
    ]
    for name in SIZE_COLUMNS:
        if name in bars:
            # A row without prices is no bar, and setting its volume to 0 makes none of it.
            bad = is_bad_size(bars, name) & ~np.isnan(values[:, : rules.PRICES]).all(axis=1)
            if name == "amount" and bad.any():
                bad &= ~is_derived_amount(bars)
            problems += broken(bad, rules.SIZE, (name,))
    if "factor" in bars:
        factor = bars["factor"].to_numpy(np.float64)
        bad = ~(np.isfinite(factor) & (factor > 0))
        problems += _rows(bars, bad, "error", "factor", show(("factor",)))
    return problems


def show(names: Iterable[str], what: str = "") -> Explain:
    """Show a bar's values by name, after a word on what they are."""
    return lambda bar: what + ", ".join(f"{name} {bar[name]:.10g}" for name in names)


def show_untraded(bar: Mapping[str, Any]) -> str:
    """A bar's values, as far as it has the columns."""
    return show([name for name in (*PRICE_COLUMNS, *SIZE_COLUMNS) if name in bar])(bar)


def is_bad_size(bars: pd.DataFrame, name: str) -> Flags:
    """(n,) where volume or amount is negative or missing."""
    sizes = bars[name].to_numpy(np.float64)
    bad: Flags = ~(np.isfinite(sizes) & (sizes >= 0))
    return bad


def order_problems(bars: pd.DataFrame) -> list[Problem]:
    """One row per instrument whose rows run backwards in time; a table day by day is in order."""
    steps = bars["date"].groupby(bars["symbol"], sort=False).diff()
    broken = bars.loc[(steps < pd.Timedelta(0)).to_numpy()].drop_duplicates("symbol")
    return [
        (symbol, date, "error", "order", "stands after a later bar")
        for symbol, date in zip(broken["symbol"], broken["date"], strict=True)
    ]


def find_jumps(bars: pd.DataFrame, max_move: float) -> pd.DataFrame:
    """The moves from one known close of an instrument to its next that are hard to believe.

    Args:
        bars: with symbol, date and the prices.
        max_move: Largest believable |return|, as a fraction. Up to the usual one, smaller moves
            that look like a split are found too, see `rules.find_small_splits`.

    Returns:
        The bars at which a jump arrives, indexed as in `bars` and sorted by symbol and date, with
        `before`, the close before, and `move`, the return from there.

    Raises:
        ConfigError: `max_move` is not above 0.
    """
    if not max_move > 0:
        raise ConfigError(f"max_move must be above 0, such as 0.4 for 40 %, got {max_move}")
    known = np.isfinite(bars["close"]) & (bars["close"] > 0)
    closes = bars.loc[known].sort_values(["symbol", "date"], kind="stable")
    values = closes["close"].to_numpy(np.float64)
    starts = rules.starts_of(pd.factorize(closes["symbol"])[0])
    rows = rules.find_jumps(values, starts, max_move)
    if max_move <= MAX_MOVE:
        prices = closes[list(PRICE_COLUMNS)].to_numpy(np.float64)
        rows = np.union1d(rows, rules.find_small_splits(prices, starts))
    jumps: pd.DataFrame = closes.iloc[rows].assign(before=values[rows - 1])
    with np.errstate(over="ignore"):
        jumps["move"] = jumps["close"] / jumps["before"] - 1.0
    return jumps


def _jump_problems(bars: pd.DataFrame, max_move: float) -> list[Problem]:
    jumps = find_jumps(bars[["symbol", "date", *PRICE_COLUMNS]], max_move)
    every = np.ones(len(jumps), dtype=bool)
    return _rows(jumps, every, "warning", rules.JUMP, describe_jump)


def describe_jump(bar: Mapping[str, Any]) -> str:
    """The detail of a row of `find_jumps`: both closes and the move between them."""
    return f"close {rules.show_jump(bar['before'], bar['close'], digits=10)}"


def _vwap_problems(bars: pd.DataFrame) -> list[Problem]:
    if "amount" not in bars:
        return []
    lot = measure_lot(bars)
    explain = show(("amount", "volume", "low", "high"), f"in lots of {lot}: " if lot > 1 else "")
    return _rows(bars, is_strange_size(bars, lot), "warning", "vwap", explain)


def is_strange_size(bars: pd.DataFrame, lot: int) -> Flags:
    """(n,) where the average price paid is known and lies far from the bar's prices."""
    volume, paid = bars["volume"].to_numpy(np.float64), bars["amount"].to_numpy(np.float64)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        vwap = paid / (volume * lot)
    strange: Flags = (volume > 0) & np.isfinite(paid) & ~is_vwap_plausible(bars, vwap)
    strange &= np.isfinite(bars[["low", "high"]].to_numpy(np.float64)).all(axis=1)
    if strange.any():
        strange &= ~is_derived_amount(bars)
    return strange


def _gap_problems(bars: pd.DataFrame, calendar: Iterable[Any] | None) -> list[Problem]:
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
            f"{missing[gap]} missing to {show_time(due[before[gap] - 1])}",
        )
        for gap in gaps
    ]
