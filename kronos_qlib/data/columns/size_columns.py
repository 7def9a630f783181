"""Which columns are volume and amount, by their names, units and currencies, and by their sums."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches

import numpy as np

from kronos_qlib.data.columns.number_columns import to_numbers
from kronos_qlib.data.columns.spelling import (
    BASES,
    COINS,
    COMPACT,
    COMPACT_FALLBACKS,
    NOISE,
    PARTS,
    QUOTES,
    compact,
    find_named,
    split_unit,
    words,
)
from kronos_qlib.data.files.raw import (
    Match,
    RawTable,
    ambiguous,
    list_names,
    mapping_hint,
    no_column_hint,
)
from kronos_qlib.errors import BarDataError

LOOKS_LIKE_VOLUME = re.compile(
    r"(?<![a-z])vol(?!atil|t)|volume|vol$|qty|quantity|qnty|shares.?traded|traded.?shares"
    r"|成交量|成交股|成交数|总手|总量|st(ü|ue)ck"
)
LOOKS_LIKE_MONEY = re.compile(
    r"turnover|amount|\bamt|money|成交.*额|成交金|金额|(trad|deal).*value|value.*trad|dollar.*vol"
)
IS_RATE = re.compile(r"rate|ratio|pct|percent|%|换手")

VOLUME_UNITS = re.compile(
    r"(?P<scale>千|万|百万|亿)?(?:股|手|份|张|口|枚|shares?|lots?|contracts?|units?)?"
)
MONEY_UNITS = re.compile(
    r"(?P<scale>千|万|百万|千万|亿)?(?:元|人民币|港元|美元|[$€£¥]|rmb|cny|usd|usdt|eur|hkd|jpy|gbp)?"
)
UNIT_SCALES = {"千": 1e3, "万": 1e4, "百万": 1e6, "千万": 1e7, "亿": 1e8}

MONEY_TOLERANCE = 0.1
"""How far the median of amount / (volume x close) may lie from 1, or from 100 where volume counts
lots, for a column to be money."""


def match_size(raw: RawTable, ours: str, free: Sequence[str], match: Match) -> None:
    """Volume or amount by a known name, with its unit, or with the currency that it counts.

    Args:
        ours: "volume" or "amount".
        free: the table's columns that the caller's mapping leaves.
        match: takes the column, its scale and notes.

    Raises:
        BarDataError: several columns could be it.
    """
    taken = set(match.names.values())
    units = MONEY_UNITS if ours == "amount" else VOLUME_UNITS
    near: dict[str, float] = dict.fromkeys(find_named(ours, free, taken), 1.0)
    ranks = {name: int(compact(name) not in COMPACT[ours]) for name in near}
    if not near or max(ranks.values()) > 0:
        for name in free:
            base, unit = split_unit(name)
            found = units.fullmatch(unit)
            if unit and name not in taken and compact(base) in COMPACT[ours] and found:
                near[name] = UNIT_SCALES.get(found["scale"] or "", 1.0)
                ranks[name] = 0
            elif name not in taken and _unit_side(raw, name, free, match) == ours:
                near[name], ranks[name] = 1.0, 0
    best = [name for name in near if ranks[name] == min(ranks.values())]
    # MetaTrader has <TICKVOL> beside a <VOL> that is 0 wherever there is no exchange.
    if (len(best) == 1 and ours == "volume") or len(best) > 1:
        rivals = list(near) + [
            name
            for name in free
            if ours == "volume"
            and compact(name) in COMPACT_FALLBACKS["volume"]
            and name not in near
            and len(compact(name)) > 1
        ]
        if len(rivals) > 1:
            filled = [name for name in rivals if _has_values(raw, name)]
            kept = [name for name in best if name in filled] or filled[:1] or best
            if set(kept) != set(best):
                gone = " and ".join(repr(name) for name in best if name not in kept)
                match.notes.append(f"{gone} is 0 throughout: {ours} is read from {kept[0]!r}")
            best = kept
    if len(best) > 1:
        raise ambiguous(raw, ours, best)
    if best:
        match.names[ours] = best[0]
        if near.get(best[0], 1.0) != 1.0:
            match.scales[ours] = near[best[0]]
            match.notes.append(f"{best[0]!r} is multiplied by {near[best[0]]:g}")


def _unit_side(raw: RawTable, name: str, free: Sequence[str], match: Match) -> str | None:
    """Whether "Volume BTC" counts coins, "Volume USDT" money; None where the name is no such."""
    unit = _unit_of(name)
    if unit is None:
        return None
    if not unit or unit in BASES:
        return "volume"
    others = {other for each in free if (other := _unit_of(each)) and other != unit}
    known = match.names.get("symbol")
    texts = {raw.stem or ""} if known is None else {str(value) for value in raw.columns[known]}
    sides = {
        _side_in(text.upper(), unit.upper(), {each.upper() for each in others}) for text in texts
    }
    if len(sides) == 1 and (side := sides.pop()) is not None:
        return side
    if sides - {None}:
        return None
    if unit in QUOTES:
        return None if others & QUOTES else "amount"
    # By itself a unit may be any word, such as a million's M.
    return "volume" if others & QUOTES or (not others and unit in COINS) else None


def _unit_of(name: str) -> str | None:
    """The one word beside "volume" in a name, "" if there is none; None if it is no such name."""
    rest = words(name)
    volumes = [word for word in rest if word in ("volume", "vol")]
    left = [word for word in rest if word not in ("volume", "vol") and word not in NOISE]
    if len(volumes) != 1 or len(left) > 1 or {word.rstrip("0123456789") for word in left} & PARTS:
        return None
    return left[0] if left else ""


def _side_in(text: str, unit: str, others: set[str]) -> str | None:
    """Which side of a pair such as BTC/USDT or Binance_BTCUSDT_d a currency is."""
    for other in others:
        one, two = re.escape(unit), re.escape(other)
        if re.search(rf"{one}[^A-Z0-9]?{two}", text):
            return "volume"
        if re.search(rf"{two}[^A-Z0-9]?{one}", text):
            return "amount"
    if not others and text.startswith(unit) and text != unit:
        return "volume"
    return "amount" if not others and text.endswith(unit) and text != unit else None


def _has_values(raw: RawTable, name: str) -> bool:
    """Whether a column has a number other than 0."""
    try:
        numbers = to_numbers(raw, [name], [name])[name]
    except BarDataError:
        return True  # it shows when it is read
    return bool((np.nan_to_num(numbers) != 0).any())


def look_for_size(raw: RawTable, ours: str, match: Match) -> None:
    """Refuse to pass over a column that looks like a size which the table else lacks.

    Raises:
        BarDataError: names the column and how to map it or to declare that it is none.
    """
    spare = [name for name in match.spare(raw) if name.strip()]
    if ours == "amount":
        _look_for_money(raw, spare, match)
        return
    alike = [
        name
        for name in spare
        if LOOKS_LIKE_VOLUME.search(name.lower())
        or get_close_matches(compact(name), ["volume"], cutoff=0.83)
    ]
    if not alike and "amount" not in match.names:
        alike = [n for n in spare if _looks_like_money(n)]
        if alike:
            raise BarDataError(
                f"{raw.source}: no column of volume, but {list_names(alike)} looks like money "
                f"traded or a rate: if it is money, {mapping_hint(raw, 'amount', alike[0])}; if "
                f"it is none, {no_column_hint(raw, 'amount')}"
            )
    if alike:
        look = "look" if len(alike) > 1 else "looks"
        raise BarDataError(
            f"{raw.source}: no column is certainly volume, but {list_names(alike)} {look} "
            f"like it: {mapping_hint(raw, 'volume', alike[0])}; if it is "
            f"none, {no_column_hint(raw, 'volume')}"
        )


def _look_for_money(raw: RawTable, spare: Sequence[str], match: Match) -> None:
    """Take a column for the money traded where it is volume x price; say so where it is not."""
    alike = [name for name in spare if _looks_like_money(name)]
    if not alike or "volume" not in match.names or "close" not in match.names:
        return
    money = [name for name in alike if _is_money(raw, name, match)]
    if len(money) == 1:
        match.names["amount"] = money[0]
        match.notes.append(f"{money[0]!r} is volume x price, so it is read as amount")
    elif money:
        raise ambiguous(raw, "amount", money)
    else:
        match.notes.append(
            f"{list_names(alike)} is not volume x price, so it is not read as amount; if it is "
            f"money, {mapping_hint(raw, 'amount', alike[0])}"
        )


def _looks_like_money(name: str) -> bool:
    lower = name.lower()
    return (
        LOOKS_LIKE_MONEY.search(lower) is not None
        and IS_RATE.search(lower) is None
        and not set(words(name)) & (PARTS - {"last"})
    ) or bool(get_close_matches(compact(name), ["amount"], cutoff=0.83))


def _is_money(raw: RawTable, name: str, match: Match) -> bool:
    volume, close = match.names["volume"], match.names["close"]
    try:
        numbers = to_numbers(raw, [name, volume, close], [name, volume])
    except BarDataError:
        return False
    paid, traded = numbers[name], numbers[volume] * match.scales.get("volume", 1.0)
    with np.errstate(all="ignore"):
        value = traded * numbers[close]
        usable = np.isfinite(paid) & np.isfinite(value) & (paid > 0) & (value > 0)
        if not usable.any():
            return False
        ratio = float(np.median(paid[usable] / value[usable]))
    return any(abs(ratio / lot - 1) < MONEY_TOLERANCE for lot in (1, 100))
