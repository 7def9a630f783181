"""What to do about a report of `check_bars`: the repairs of a rule, or the cause where a repair
would destroy data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from kronos_qlib.data import rules
from kronos_qlib.data.files.check import VWAP_SLACK, values_of
from kronos_qlib.data.files.repair import REPAIRED_BY
from kronos_qlib.schema import CLOSE, HIGH, LOW, PRICE_COLUMNS, SIZE_COLUMNS, VOLUME

NEARLY_ALL = 0.8
"""Share of the bars from which on a broken rule means that the table is read wrongly."""
MANY_STRANGE = 0.05
"""Share of bars whose average price paid does not fit, from which on sizes must not be zeroed."""
FEW = 5
"""Fewer bars show no cause."""
APART = 1.2
"""Closes of one instrument at one time do not differ by this factor."""

UNITS = {
    -1: ("volume in lots of 100 and amount in thousands, as Tushare has them", 1000, 100),
    -2: ("volume in lots of 100 and amount in ten thousands", 10_000, 100),
    -3: ("amount in thousands", 1000, 1),
    -4: ("amount in ten thousands", 10_000, 1),
    -6: ("amount in millions", 1_000_000, 1),
    -8: ("amount in hundred millions", 100_000_000, 1),
}
"""The usual cause of a power of ten by which amount / (volume x price) is off, and what to multiply
amount and volume by. Powers above 0 are lots, which `measure_lot` finds."""


@dataclass(frozen=True)
class Advice:
    """What to do about one rule: `repairs`, any of which fixes it, or the `cause`, a sentence."""

    rule: str
    repairs: tuple[str, ...] = ()
    cause: str = ""


def advise(bars: pd.DataFrame, report: pd.DataFrame) -> list[Advice]:
    """What to do about each rule of a report, by the rules' names.

    No repair is offered where it would destroy data: bars at one time that differ may be two
    shares'; sizes that are off by one and the same power of ten are in other units; and what
    nearly all bars break has another cause than the bars.

    Args:
        bars: the table that was checked.
        report: of `check_bars`, or a part of it.
    """
    found = []
    for rule, rows in report.groupby("rule"):
        name = str(rule)
        # A rule of two columns has a row for each.
        share = len(rows[["symbol", "date"]].drop_duplicates()) / max(1, len(bars))
        is_common = len(rows) >= FEW and share >= NEARLY_ALL
        if name == "duplicate":
            cause = _cause_of_duplicates(bars)
        elif name == rules.NONPOSITIVE and (cause := describe_negative(bars)):
            pass
        elif name == "vwap":
            cause = describe_units(bars)
            if not cause:
                strange = _cause_of_strange_sizes(len(rows), len(bars))
                cause = _cause(name, bars) if is_common else strange
        else:
            cause = _cause(name, bars) if is_common else ""
        found.append(Advice(name, () if cause else REPAIRED_BY.get(name, ()), cause))
    return found


def describe_advice(advice: Iterable[Advice], option: str = "--repair ") -> str:
    """A line for each rule.

    Args:
        option: what stands before the names of repairs.
    """
    lines = []
    for one in advice:
        names = " or ".join(one.repairs)
        remedy = one.cause or (f"{option}{names} fixes it" if names else "no repair fixes it")
        lines.append(f"  {one.rule}: {remedy}")
    return "\n".join(lines)


def describe_units(bars: pd.DataFrame) -> str:
    """The likely units of volume and amount, where nearly all bars are off by one power of ten.

    Returns:
        One sentence; "" where amount / volume lies among the prices, or is off for a few bars, or
        volume counts lots, which `measure_lot` allows for.
    """
    if "amount" not in bars:
        return ""
    values = values_of(bars)
    known = np.isfinite(values).all(axis=1) & (values > 0).all(axis=1)
    if known.sum() < FEW:
        return ""
    logs = np.log10(values[known])  # quotients of the largest and smallest numbers are none
    ratio, slack = logs[:, VOLUME + 1] - logs[:, VOLUME], np.log10(VWAP_SLACK)
    power = round(float(np.median(ratio - logs[:, CLOSE])))
    vwap = ratio - power
    fits = (vwap >= logs[:, LOW] - slack) & (vwap <= logs[:, HIGH] + slack)
    if power >= 0 or fits.mean() < NEARLY_ALL:
        return ""
    what = (
        f"amount / volume is {10.0**power:g} of the price in {fits.sum()} of {len(fits)} bars, a "
        "matter of units"
    )
    if power == -2:
        what += ": prices in cents or pence? Then divide them by 100. Or"
    if power not in UNITS:
        return f"{what}: bring volume to shares and amount to money"
    usual, amount, volume = UNITS[power]
    times = f"amount x {amount:,}" + (f", volume x {volume:,}" if volume > 1 else "")
    colon = "" if power == -2 else ":"
    return f"{what}{colon} {usual}? Then multiply in the source: {times}"


def describe_negative(bars: pd.DataFrame) -> str:
    """Why many prices lie below 0 in bars that are sound otherwise; "" where few do."""
    values = values_of(bars)
    below = (values[:, : len(PRICE_COLUMNS)] < 0).any(axis=1)
    sound = below & ~rules.is_outside(values) & ~rules.is_upside_down(values)
    if below.sum() < FEW or sound.sum() < NEARLY_ALL * below.sum():
        return ""
    return (
        f"{below.sum()} of {len(bars)} bars have prices below 0 that fit one another: a spread of "
        "two contracts, which returns are not defined for (take the contracts themselves), or "
        "prices adjusted by a difference (adjust by a ratio); left out, they would tear the series"
    )


def _cause_of_strange_sizes(count: int, bars: int) -> str:
    """Why amount / volume lies far from the prices in more bars than slips of the pen would be."""
    if count < FEW or count < MANY_STRANGE * bars:
        return ""
    return (
        f"amount / volume lies outside the prices in {count} of {bars} bars, too many to be slips: "
        "prices are adjusted and sizes are not, as vendors have it (read prices as they were "
        "traded, with a column factor), or a split is not adjusted for. Only the average price "
        "paid is not known there: no repair is needed"
    )


def _cause_of_duplicates(bars: pd.DataFrame) -> str:
    """Why dropping would lose bars; "" where all bars of one time are the same bar."""
    several = bars[bars.duplicated(["symbol", "date"], keep=False)]
    if not several.drop_duplicates().duplicated(["symbol", "date"]).any():
        return ""
    groups = several.groupby(["symbol", "date"], sort=False)["close"]
    sizes, times = groups.size(), len(bars.drop_duplicates(["symbol", "date"]))
    finding = f"{len(sizes)} of {times} times have several bars, which differ"
    if 2 * len(sizes) <= times:
        if _clocks_went_back(several["date"]):
            return (
                f"{finding}, all on a Sunday night: clocks went back and the hour stands twice; "
                "give the times in UTC, or with their offsets and the zone UTC (--zone UTC)"
            )
        return (
            f"{finding}: two instruments under one name, or corrections; see which is right, and "
            "keep that one"
        )
    symbol = "the column of symbols was not read: name it with a mapping such as symbol=THEIRS"
    clock = "the time of day was not read: name its column with a mapping such as date=THEIRS"
    if (groups.max() > APART * groups.min()).mean() > 0.5:
        return f"{finding} in price as two instruments do; {symbol}"
    is_daily = bool((several["date"] == several["date"].dt.normalize()).all())
    if is_daily and sizes.median() > 2:
        return f"{finding}, {sizes.median():.0f} each: either {clock}; or {symbol}"
    return f"{finding}: either {symbol}; or {clock}" if is_daily else f"{finding}: {symbol}"


def _clocks_went_back(times: pd.Series) -> bool:
    """Whether bars of minutes repeat in the small hours of some Sundays alone, as they do then."""
    hours = times[times != times.dt.normalize()].dt.hour
    days = times.dt.normalize().drop_duplicates()
    return bool(
        len(hours)
        and (times.dt.day_of_week == 6).all()
        and (times.dt.hour < 4).all()
        and len(days) <= 1 + (days.max() - days.min()).days / 300
    )


def _cause(rule: str, bars: pd.DataFrame) -> str:
    """What is likely wrong where nearly all bars break a rule."""
    values = values_of(bars)
    if rule in (rules.BRACKET, rules.UPSIDE_DOWN):
        swapped = values[:, [0, 2, 1, 3]]
        outside = rules.is_outside(values) | rules.is_upside_down(values)
        if rules.is_outside(swapped).sum() < 0.1 * max(1, int(outside.sum())):
            return "nearly all bars are sound once high and low change places: map them so"
        return (
            "nearly all bars: open, high, low and close are not the columns that they are read "
            "from; map each to its own, such as high=THEIRS"
        )
    if rule == "nan":
        empty = [
            name
            for name, column in zip(PRICE_COLUMNS, values.T, strict=False)
            if (~np.isfinite(column)).mean() >= NEARLY_ALL
        ]
        if empty:
            return f"{', '.join(empty)} is empty in nearly all bars: map the column that has it"
    if rule == rules.SIZE:
        same = [
            name
            for name, column in zip(SIZE_COLUMNS, values[:, VOLUME:].T, strict=True)
            if name in bars and (np.isnan(column).all() or (column == column[0]).all())
        ]
        if same:
            return (
                f"{' and '.join(same)} has one value throughout, which says nothing: map the "
                "column that has it, or leave it out of the file if it is not known"
            )
    if rule in (rules.UNTRADED, rules.REPEATED):
        return (
            "nearly all bars: another column holds the volume (map it, such as volume=THEIRS), or "
            "trades are too rare for bars this short; take longer ones"
        )
    if rule == rules.NONPOSITIVE:
        return (
            "nearly all bars: a column that holds no price was read as one (map each to its own), "
            "or prices were adjusted by a difference, which takes them below 0: adjust by a ratio"
        )
    return "nearly all bars break it: see whether each column is what it is read as"
