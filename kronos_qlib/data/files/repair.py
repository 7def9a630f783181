"""Repairs of a long table of bars, each asked for by name, and what each of them changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.data.files.check import (
    Changes,
    Explain,
    check_columns,
    describe_bars,
    find_jumps,
    idle_bars,
    is_bad_size,
    is_strange_size,
    measure_lot,
    order_problems,
    show,
    show_untraded,
    values_of,
)
from kronos_qlib.data.rules import (
    JUMP,
    MAX_MOVE,
    Flags,
    is_nonpositive,
    is_outside,
    is_unknown,
    is_upside_down,
)
from kronos_qlib.errors import ConfigError
from kronos_qlib.schema import PRICE_COLUMNS, SIZE_COLUMNS

Numbers = npt.NDArray[np.float64]

RECORD_COLUMNS = ("symbol", "date", "rule", "detail")

SPLITS = ((4, 3), (3, 2), (2, 1), (3, 1), (4, 1), (5, 1), (7, 1), (10, 1), (20, 1))
"""Shares after and before, either way round. Not 5:2, which is rare as a split, while the spin-offs
of PayPal and of Columbia Pipeline took three fifths off a price."""

SPLIT_SLACK = 0.05
"""How far the first open after a split may lie from it, as a fraction."""
LEVEL_SLACK = 0.1
"""How far the level of the closes after it may lie from it, as a fraction."""
LEVEL_BARS = 5
"""Closes whose median is a level, so that one broken close does not move it."""
LEAST_BARS = 3
"""Closes that a level needs on each side."""
CALM = 8.0
"""Shares traded on a split's first day, counted as before it, against their median in the 20 bars
before. On news that moves a price by half, many times more are traded."""


@dataclass(frozen=True)
class Repair:
    """One named repair: what it does, and how, given the largest believable move."""

    what: str
    apply: Callable[[pd.DataFrame, float], tuple[pd.DataFrame, Changes]]


def repair_bars(
    bars: pd.DataFrame, rules: Iterable[str], *, max_move: float = MAX_MOVE
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Apply the repairs asked for, and no other.

    Args:
        bars: A long table, left untouched.
        rules: Names in `REPAIRS`, applied in that table's order whatever the order here.
        max_move: Largest believable |return| from close to close, for the repairs of jumps.

    Returns:
        The repaired bars, and a record with one row per change: symbol, date, rule, detail. A
        repair of many bars at once (drop-before-jump, split-jumps) is one row that says how many.

    Raises:
        BarDataError: A column is missing or holds no numbers.
        ConfigError: A rule has no such name, or two of them exclude each other.
    """
    if isinstance(rules, str):
        raise ConfigError(f"repairs are a list of names, such as [{rules!r}], got {rules!r}")
    asked = list(rules)
    for rule in asked:
        if rule not in REPAIRS:
            raise ConfigError(f"no repair is called {rule!r}; known: {', '.join(REPAIRS)}")
    if {"bracket", "drop-bracket"} <= set(asked):
        raise ConfigError("the repairs bracket and drop-bracket exclude each other; name one")
    check_columns(bars)
    bars = bars.reset_index(drop=True)
    record: list[tuple[str, pd.Timestamp, str, str]] = []
    for name, repair in REPAIRS.items():
        if name in asked:
            bars, changes = repair.apply(bars, max_move)
            bars = bars.reset_index(drop=True)
            record += [(symbol, date, name, detail) for symbol, date, detail in changes]
    done = pd.DataFrame(record, columns=list(RECORD_COLUMNS))
    return bars, done.astype({"date": bars["date"].dtype})


def join_reports(
    found: pd.DataFrame, record: pd.DataFrame, left: pd.DataFrame | None = None
) -> pd.DataFrame:
    """One table of the problems found, the repairs made and the problems left.

    Args:
        found: What `check_bars` says of the bars as they were read.
        record: What `repair_bars` did.
        left: What `check_bars` says after it; None if nothing was repaired.

    Returns:
        symbol, date, stage ("found", "repaired" or "left"), severity (empty for a repair), rule,
        detail.
    """
    stages = {"found": found, "repaired": record, "left": left}
    tables = [
        table.assign(stage=stage, severity=table.get("severity", ""))
        for stage, table in stages.items()
        if table is not None
    ]
    order = ["symbol", "date", "stage", "severity", "rule", "detail"]
    filled = [table[order] for table in tables if len(table)]  # pandas 2 warns of empty ones
    if not filled:
        return pd.DataFrame(columns=order)
    return pd.concat(filled, ignore_index=True)


def _drop(bars: pd.DataFrame, where: Flags, explain: Explain) -> tuple[pd.DataFrame, Changes]:
    dropped = describe_bars(bars, where, lambda bar: f"dropped: {explain(bar)}")
    return bars.loc[~where], dropped


def _drop_nan(bars: pd.DataFrame, max_move: float) -> tuple[pd.DataFrame, Changes]:
    return _drop(bars, is_unknown(values_of(bars)), show(PRICE_COLUMNS))


def _drop_nonpositive(bars: pd.DataFrame, max_move: float) -> tuple[pd.DataFrame, Changes]:
    return _drop(bars, is_nonpositive(values_of(bars)), show(PRICE_COLUMNS))


def _drop_bracket(bars: pd.DataFrame, max_move: float) -> tuple[pd.DataFrame, Changes]:
    values = values_of(bars)
    return _drop(bars, is_outside(values) | is_upside_down(values), show(PRICE_COLUMNS))


def _drop_untraded(bars: pd.DataFrame, max_move: float) -> tuple[pd.DataFrame, Changes]:
    return _drop(bars, idle_bars(bars), show_untraded)


def _drop_duplicates(bars: pd.DataFrame, max_move: float) -> tuple[pd.DataFrame, Changes]:
    repeated = bars.duplicated(["symbol", "date"], keep="last").to_numpy()
    return _drop(bars, repeated, show(PRICE_COLUMNS, "a later row has this time: "))


def _sort(bars: pd.DataFrame, max_move: float) -> tuple[pd.DataFrame, Changes]:
    changes = [(symbol, date, "sorted") for symbol, date, *_ in order_problems(bars)]
    return bars.sort_values(["symbol", "date"], kind="stable"), changes


def _bracket(bars: pd.DataFrame, max_move: float) -> tuple[pd.DataFrame, Changes]:
    prices = bars[list(PRICE_COLUMNS)]
    top, bottom = prices.max(axis=1), prices.min(axis=1)
    values = values_of(bars)
    wrong = (is_outside(values) | is_upside_down(values)) & ~is_unknown(values)
    changes = describe_bars(bars, wrong, show(("high", "low"), "widened from "))
    wide = bars.assign(high=bars["high"].mask(wrong, top), low=bars["low"].mask(wrong, bottom))
    return wide, changes


def _zero_sizes(bars: pd.DataFrame, max_move: float) -> tuple[pd.DataFrame, Changes]:
    changes: Changes = []
    for name in SIZE_COLUMNS:
        if name in bars:
            wrong = is_bad_size(bars, name)
            changes += describe_bars(bars, wrong, show((name,), "set to 0: "))
            bars = bars.assign(**{name: bars[name].mask(wrong, 0)})
    return bars, changes


def _zero_strange(bars: pd.DataFrame, max_move: float) -> tuple[pd.DataFrame, Changes]:
    if "amount" not in bars:
        return bars, []
    wrong = is_strange_size(bars, measure_lot(bars))
    zeroed = bars.assign(**{name: bars[name].mask(wrong, 0) for name in SIZE_COLUMNS})
    return zeroed, describe_bars(bars, wrong, show(SIZE_COLUMNS, "set to 0: "))


def _drop_before_jump(bars: pd.DataFrame, max_move: float) -> tuple[pd.DataFrame, Changes]:
    last = find_jumps(bars, max_move).groupby("symbol", sort=False).tail(1)
    if last.empty:
        return bars, []
    in_time = bars.sort_values(["symbol", "date"], kind="stable")
    rank = pd.Series(np.arange(len(bars)), index=in_time.index)
    begin = bars["symbol"].map(dict(zip(last["symbol"], rank[last.index], strict=True)))
    early = (rank.reindex(bars.index) < begin).to_numpy()  # no jump: NaN, which compares false
    counts = bars.loc[early, "symbol"].value_counts()
    changes = [
        (symbol, date, f"dropped: the {counts[symbol]} bars before")
        for symbol, date in zip(last["symbol"], last["date"], strict=True)
    ]
    return bars.loc[~early], changes


def _split_jumps(bars: pd.DataFrame, max_move: float) -> tuple[pd.DataFrame, Changes]:
    changes: Changes = []
    jumps = find_jumps(bars, max_move)
    old_shares, new_shares = np.ones(len(bars)), np.ones(len(bars))
    concerned = bars[bars["symbol"].isin(jumps["symbol"])]
    for symbol, own in concerned.groupby("symbol"):
        own = own.sort_values("date", kind="stable")
        for place in np.flatnonzero(own.index.isin(jumps.index)):
            split = find_split(own, int(place))
            if split is not None:
                new, old = split
                new_shares[own.index[:place]] *= new
                old_shares[own.index[:place]] *= old
                detail = f"{new}:{old} split: the {place} bars before adjusted"
                changes.append((str(symbol), own["date"].iloc[place], detail))
    return _adjust(bars, new_shares, old_shares) if changes else bars, changes


def find_split(bars: pd.DataFrame, place: int) -> tuple[int, int] | None:
    """The split that a jump is, as shares after and before; None if it does not look like one.

    It is one if the open lies near a split's ratio to the close before, the closes after it
    stay at that level, and no more shares are traded than on a day without news.

    Args:
        bars: One instrument's, in order of time.
        place: Where the jump arrives.
    """
    closes = bars["close"].to_numpy(np.float64)
    known = np.isfinite(closes) & (closes > 0)
    before, after = closes[:place][known[:place]], closes[place:][known[place:]]
    if min(len(before), len(after)) < LEAST_BARS:
        return None
    gap = float(bars["open"].to_numpy(np.float64)[place] / before[-1])
    level = float(np.median(after[:LEVEL_BARS]) / np.median(before[-LEVEL_BARS:]))
    volumes = bars["volume"].to_numpy(np.float64)
    recent = volumes[max(0, place - 20) : place]
    recent = recent[np.isfinite(recent)]
    if not np.isfinite(volumes[place]) or not len(recent):
        return None  # whether there was news is not known
    usual = float(np.median(recent))
    for new, old in (*SPLITS, *((old, new) for new, old in SPLITS)):
        ratio = old / new
        near = abs(gap / ratio - 1) <= SPLIT_SLACK and abs(level / ratio - 1) <= LEVEL_SLACK
        is_busy = usual > 0 and volumes[place] * ratio > CALM * usual
        if near and not is_busy:
            return new, old
    return None


def _adjust(bars: pd.DataFrame, new: Numbers, old: Numbers) -> pd.DataFrame:
    """Bars in the shares that count after their splits: `new` for each `old`."""
    prices = [*PRICE_COLUMNS, *(["factor"] if "factor" in bars else [])]
    adjusted = {name: bars[name] * old / new for name in prices}
    return bars.assign(**adjusted, volume=bars["volume"] * new / old)


REPAIRS: Mapping[str, Repair] = {
    "drop-nan": Repair("leave out bars with a price that is NaN or infinite", _drop_nan),
    "drop-nonpositive": Repair("leave out bars with a price of 0 or less", _drop_nonpositive),
    "drop-duplicates": Repair(
        "of several bars at one time keep the last row, if it corrects the others", _drop_duplicates
    ),
    "sort": Repair("sort by symbol and date", _sort),
    "drop-bracket": Repair("leave out bars whose high and low do not span", _drop_bracket),
    "bracket": Repair("widen high and low to span open and close", _bracket),
    "zero-sizes": Repair("set negative or missing volume and amount to 0", _zero_sizes),
    "zero-strange": Repair("set volume and amount that the vwap rule doubts to 0", _zero_strange),
    "split-jumps": Repair("adjust the bars before a jump that looks like a split", _split_jumps),
    "drop-before-jump": Repair(
        "leave out what is before the last jump: a later jump decides that an instrument has no "
        "past, which no one knew then, so not for a backtest",
        _drop_before_jump,
    ),
    "drop-untraded": Repair(
        "leave out bars of days without trade, repeated ones too", _drop_untraded
    ),
}
"""Every repair by name, in the order in which they are applied. What did not trade goes last: a
size that another repair sets to 0 may have been a bar's only trade."""

REPAIRED_BY: Mapping[str, tuple[str, ...]] = {
    "order": ("sort",),
    "duplicate": ("drop-duplicates",),
    "nan": ("drop-nan",),
    "untraded": ("drop-untraded",),
    "repeated": ("drop-untraded",),
    "nonpositive": ("drop-nonpositive",),
    "bracket": ("drop-bracket", "bracket"),
    "high-below-low": ("drop-bracket", "bracket"),
    "size": ("zero-sizes",),
    "vwap": ("zero-strange",),
    JUMP: ("split-jumps", "drop-before-jump"),
}
"""A rule of `check_bars` to the repairs of what it finds. There is none of factor and gap."""
