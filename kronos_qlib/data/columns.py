"""Which column of a table is which: one set of rules for files, frames and the predictor's frames.

A column that looks like volume or money is mapped where it can be one thing only, else refused with
its name: left out, it would be zero to the network. So is a column that looks like the symbol where
none is known: left out, it would make one share of several.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.data.cells import is_clock, to_dates, to_moments, to_numbers
from kronos_qlib.data.numerals import MARKED, NO_NUMBER
from kronos_qlib.data.readers import RawTable, tell_headerless
from kronos_qlib.data.spelling import (
    BASES,
    COINS,
    COMPACT,
    COMPACT_CLOCKS,
    COMPACT_DAYS,
    COMPACT_FALLBACKS,
    NOISE,
    PARTS,
    QUOTES,
    STATES,
    compact,
    split_unit,
    words,
)
from kronos_qlib.data.timestamps import parse_time
from kronos_qlib.errors import BarDataError, ConfigError
from kronos_qlib.schema import LONG_COLUMNS, PRICE_COLUMNS

TIME = "time"
"""What a mapping calls the column with the time of day, beside the date."""

OPTIONAL = ("symbol", "volume", "amount", "factor")
"""What a table may lack."""

SIZES = ("volume", "amount")

LOOKS_LIKE_VOLUME = re.compile(
    r"(?<![a-z])vol(?!atil|t)|volume|vol$|qty|quantity|qnty|shares.?traded|traded.?shares|成交量|成交股|成交数|总手|总量"
)
LOOKS_LIKE_MONEY = re.compile(
    r"turnover|amount|\bamt|money|成交.*额|成交金|金额|(trad|deal).*value|value.*trad|dollar.*vol"
)
IS_RATE = re.compile(r"rate|ratio|pct|percent|%|换手")

LOOKS_LIKE_SYMBOL = re.compile(
    r"code|symbol|ticker|\btic|instr|stock|share|asset|contract|secu|_id$|^id$|代码|证券|股票|合约|品种"
)

VOLUME_UNITS = re.compile(
    r"(?P<scale>千|万|百万|亿)?(?:股|手|份|张|口|枚|shares?|lots?|contracts?|units?)?"
)
MONEY_UNITS = re.compile(
    r"(?P<scale>千|万|百万|千万|亿)?(?:元|人民币|港元|美元|[$€£¥]|rmb|cny|usd|usdt|eur|hkd|jpy|gbp)?"
)
UNIT_SCALES = {"千": 1e3, "万": 1e4, "百万": 1e6, "千万": 1e7, "亿": 1e8}

WEEKDAYS = re.compile(
    r"(?:\d{4}[- ]?)?[qh][1-4]|"
    r"(mon|tue|wed|thu|fri|sat|sun)[a-z]*|(星期|周|礼拜)[一二三四五六日天]|"
    r"(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
)

MONEY_TOLERANCE = 0.1
"""How far the median of amount / (volume x close) may lie from 1, or from 100 where volume counts
lots, for a column to be money."""


@dataclass
class Match:
    """Which column is which.

    names: ours to the table's; optional ones are absent where the table has none. clock: the column
    with the time of day, where it stands apart. scales: by what to multiply a column of ours.
    notes: what was decided, a sentence each.
    """

    names: dict[str, str] = field(default_factory=dict)
    clock: str | None = None
    scales: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def spare(self, raw: RawTable, extra: Sequence[str] = ()) -> list[str]:
        """The table's columns that are none of ours."""
        used = {*self.names.values(), *extra, self.clock}
        return [name for name in raw.columns if name not in used]


def check_mapping(mapping: Mapping[str, str]) -> None:
    """Refuse a mapping of what bars do not have, or "there is none" of what they must have.

    Raises:
        ConfigError
    """
    for ours, theirs in mapping.items():
        if ours not in (*LONG_COLUMNS, TIME):
            known = ", ".join((*LONG_COLUMNS, TIME))
            raise ConfigError(f"columns: bars have no {ours!r}; known: {known}")
        if not theirs and ours not in (*OPTIONAL, TIME):
            raise ConfigError(f"columns: {ours!r} must name a column of the source")


def match_columns(raw: RawTable, mapping: Mapping[str, str], wanted: Sequence[str]) -> Match:
    """Find a table's columns by the caller's mapping and by the names that vendors use.

    Args:
        mapping: ours to the table's; "" says that the table has none.
        wanted: ours to look for. Whether one that lacks is an error the caller decides, but for
            sizes: those may not be left lying.

    Raises:
        BarDataError: a mapped column lacks; a column could be one of two; one looks like a size
            and cannot be told for sure.
    """
    match = Match()
    for theirs in mapping.values():
        if theirs and theirs not in raw.columns:
            raise BarDataError(tell_missing(raw, theirs))
    claimed = set(mapping.values())
    free = [name for name in raw.columns if name not in claimed]
    for ours in wanted:
        if ours in mapping:
            if mapping[ours]:
                match.names[ours] = mapping[ours]
        elif ours == "date":
            _match_date(raw, free, match, has_clock=TIME in mapping)
        elif ours in SIZES:
            _match_size(raw, ours, free, match)
        else:
            near = _named(ours, free, match)
            if len(near) > 1:
                raise _ambiguous(raw, ours, near)
            if near:
                match.names[ours] = near[0]
    match.clock = mapping.get(TIME, match.clock) or None
    for ours in SIZES:
        if ours in wanted and ours not in mapping and ours not in match.names:
            _look_for_size(raw, ours, match)
    return match


def tell_missing(raw: RawTable, name: str) -> str:
    """What to say where a table lacks a column."""
    have = ", ".join(repr(column) for column in raw.columns)
    return f"{raw.source}: no column {name!r}; it has {have}{tell_headerless(raw.columns)}"


def tell_mapping(raw: RawTable, ours: str, theirs: str) -> str:
    """How to say that a column is one of ours."""
    if raw.is_series:
        return f"rename it to {ours}: frame.rename(columns={{{theirs!r}: {ours!r}}})"
    shown = theirs if re.fullmatch(r"\w+", theirs) else f'"{theirs}"'
    return f"say --columns {ours}={shown} (in Python columns={{{ours!r}: {theirs!r}}})"


def tell_none(raw: RawTable, ours: str) -> str:
    """How to say that a table has no such column."""
    if raw.is_series:
        return "drop it"
    return f"say --columns {ours}= (in Python columns={{{ours!r}: ''}})"


def check_unread(
    raw: RawTable, match: Match, extra: Sequence[str], dates: npt.NDArray[Any] | None
) -> None:
    """Refuse a table whose bars an unread column would tell apart: several shares, or a day's bars.

    Args:
        dates: (n,) the rows' times; None where they stand elsewhere and increase.

    Raises:
        BarDataError: it names the column, some of its values and what to do.
    """
    symbol = match.names.get("symbol")
    spare = [name for name in match.spare(raw, extra) if name]
    if not spare:
        return
    keys = np.zeros(len(raw.rows), dtype=np.int64)
    if symbol is not None:
        keys = pd.factorize(raw.columns[symbol])[0]
    repeats = 0 if dates is None else _count_repeats(keys, dates)
    if symbol is None:
        for name in spare:
            labels = _labels(raw.columns[name])
            if labels is None:
                continue
            codes, values = labels
            if dates is not None and repeats:
                is_apart = _count_repeats(codes, dates) * 10 <= repeats
            else:
                is_named = _is_text(values) or LOOKS_LIKE_SYMBOL.search(name.lower()) is not None
                is_apart = is_named and not _are_states(values) and _in_runs(codes, dates)
            if is_apart:
                raise BarDataError(_tell_symbols(raw, name, values, repeats))
    if dates is not None and 2 * repeats >= len(dates):
        _check_times(raw, match, spare, keys, dates, repeats)


def _match_date(raw: RawTable, free: Sequence[str], match: Match, has_clock: bool) -> None:
    near = _named("date", free, match)
    days = [name for name in near if compact(name) in COMPACT_DAYS]
    others = [name for name in near if name not in days]
    if has_clock and len(days) == 1:
        near = days
    elif len(days) == len(others) == 1 and (
        compact(others[0]) in COMPACT_CLOCKS or _is_whole_time(raw, days[0], others[0])
    ):
        near, match.clock = days, others[0]
    if not near and raw.time_index is not None:
        near = [raw.time_index]
    if not near and (unnamed := _unnamed_times(raw)) is not None:
        near = [unnamed]
    if len(near) > 1:
        raise _ambiguous(raw, "date", near)
    if near:
        match.names["date"] = near[0]


def _is_whole_time(raw: RawTable, day: str, other: str) -> bool:
    """Whether two columns begin with one day, of which the second is the whole time."""
    try:
        first, _ = parse_time(str(raw.columns[day][0]).strip(), raw.how.date_order)
        whole, _ = parse_time(str(raw.columns[other][0]).strip(), raw.how.date_order)
    except (ValueError, IndexError):
        return False
    return first.date() == whole.date()


def _unnamed_times(raw: RawTable) -> str | None:
    """The first column where it has no name and holds times: the index of a frame in CSV."""
    first = next(iter(raw.columns), None)
    if first is None or compact(first) not in ("", "unnamed0", "index"):
        return None
    try:
        parse_time(str(raw.columns[first][0]).strip())
    except (ValueError, IndexError):
        return None
    return first


def _named(ours: str, free: Sequence[str], match: Match) -> list[str]:
    """The columns with a known name, of the best kind that there is."""
    taken = set(match.names.values())
    plain = {name: compact(name) for name in free if name not in taken}
    near = [name for name, key in plain.items() if key in COMPACT[ours]]
    if not near and ours in PRICE_COLUMNS:
        near = [
            name
            for name in plain
            if compact(split_unit(name)[0]) in COMPACT[ours] and "%" not in split_unit(name)[1]
        ]
    if near:
        return near
    near = [name for name, key in plain.items() if key in COMPACT_FALLBACKS[ours]]
    if ours in PRICE_COLUMNS or ours in ("volume", "date"):
        short = {key for key in plain.values() if len(key) == 1}
        # One letter is a name only among its like.
        near = [n for n in near if len(plain[n]) > 1 or {"o", "h", "l", "c"} <= short | taken]
    if len(near) > 1 and ours == "symbol":
        return near[:1]  # several ways of naming one instrument
    return near


def _ambiguous(raw: RawTable, ours: str, near: Sequence[str]) -> BarDataError:
    both = _list(near)
    if raw.is_series:
        return BarDataError(
            f"{raw.source}: columns {both} could both be {ours!r}; keep one of them"
        )
    return BarDataError(
        f"{raw.source}: columns {both} could both be {ours!r}; say which with a mapping such as "
        f"{ours}={near[0]}"
    )


def _match_size(raw: RawTable, ours: str, free: Sequence[str], match: Match) -> None:
    """Volume or amount by a known name, with its unit, or with the currency that it counts."""
    taken = set(match.names.values())
    units = MONEY_UNITS if ours == "amount" else VOLUME_UNITS
    near: dict[str, float] = dict.fromkeys(_named(ours, free, match), 1.0)
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
        raise _ambiguous(raw, ours, best)
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
    texts = {raw.stem or ""} if known is None else {str(cell) for cell in raw.columns[known]}
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


def _look_for_size(raw: RawTable, ours: str, match: Match) -> None:
    """Refuse to leave a column lying that looks like a size which the table else lacks."""
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
                f"{raw.source}: no column of volume, but {_list(alike)} looks like money traded or "
                f"a rate: if it is money, {tell_mapping(raw, 'amount', alike[0])}; if it is none, "
                f"{tell_none(raw, 'amount')}"
            )
    if alike:
        look = "look" if len(alike) > 1 else "looks"
        raise BarDataError(
            f"{raw.source}: no column of volume is known for sure, but {_list(alike)} {look} like "
            f"it: {tell_mapping(raw, 'volume', alike[0])}; if it is "
            f"none, {tell_none(raw, 'volume')}"
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
        raise _ambiguous(raw, "amount", money)
    else:
        match.notes.append(
            f"{_list(alike)} is not volume x price, so it is not read as amount; if it is money, "
            f"{tell_mapping(raw, 'amount', alike[0])}"
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


def _list(names: Sequence[str]) -> str:
    return " and ".join(repr(name) for name in names)


def _count_repeats(codes: npt.NDArray[Any], dates: npt.NDArray[Any]) -> int:
    return int(pd.DataFrame({"code": codes, "date": dates}).duplicated().sum())


def _labels(cells: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], list[str]] | None:
    """Each row's label and the labels, where a column could name instruments.

    That is, where it has several values, each of several rows, and none is missing, a time or a
    number with decimals.
    """
    if cells.dtype.kind not in "OiuUS" or not len(cells):
        return None
    if cells.dtype.kind == "O":
        try:
            codes, unique = pd.factorize(cells)
        except TypeError:  # lists and their like
            return None
    else:
        codes, unique = pd.factorize(cells)
    if (codes < 0).any() or not 1 < len(unique) <= max(2, len(cells) // 2):
        return None
    values = [str(value).strip() for value in unique]
    if any(value.lower() in NO_NUMBER for value in values):
        return None
    if all(MARKED.fullmatch(value.rstrip("%")) for value in values) and not all(
        value.isdigit() for value in values
    ):
        return None
    return None if all(map(_is_time, values)) else (codes, values)


def _is_text(values: Sequence[str]) -> bool:
    """Whether labels are words: not numbers, but for the 000001 of a share."""
    return not all(value.isdigit() for value in values) or any(
        len(value) == 6 or (len(value) > 1 and value.startswith("0")) for value in values
    )


def _is_time(text: str) -> bool:
    if is_clock([text]) and not text.isdigit():
        return True
    try:
        parse_time(text)
    except ValueError:
        return False
    return True


def _are_states(values: Sequence[str]) -> bool:
    """Whether labels are weekdays, months, or yes and no."""
    small = [value.lower() for value in values]
    return all(value in STATES for value in small) or all(map(WEEKDAYS.fullmatch, small))


def _in_runs(codes: npt.NDArray[np.int64], dates: npt.NDArray[Any] | None) -> bool:
    """Whether each label has its rows in one block, as one share after another has.

    A label that comes and goes while time goes on is a state of one share.
    """
    orders = [codes] if dates is None else [codes, codes[np.argsort(dates, kind="stable")]]
    labels = len(np.unique(codes))
    return any(int((order[1:] != order[:-1]).sum()) + 1 == labels for order in orders)


def _tell_symbols(raw: RawTable, name: str, values: Sequence[str], repeats: int) -> str:
    some = ", ".join(values[:4]) + (f" and {len(values) - 4} more" if len(values) > 4 else "")
    why = f", which tells apart the {repeats} bars that share a time with another" * bool(repeats)
    if raw.is_series:
        return (
            f"{raw.source}: column {name!r} has several values ({some}), so the frame may hold "
            "several instruments: give one frame for each, or drop the column if it is one"
        )
    return (
        f"{raw.source}: no column of symbols is known, but {name!r} has several values ({some})"
        f"{why}: if they are the instruments, {tell_mapping(raw, 'symbol', name)}; if all is one "
        f"instrument, {tell_none(raw, 'symbol')}"
    )


def _check_times(
    raw: RawTable,
    match: Match,
    spare: Sequence[str],
    keys: npt.NDArray[Any],
    dates: npt.NDArray[Any],
    repeats: int,
) -> None:
    """Where most times repeat, name an unread column that holds the time of day."""
    for name in spare:
        cells = raw.columns[name]
        if cells.dtype.kind not in "OM":
            continue
        texts = [str(cell).strip() for cell in cells]
        distinct = list(dict.fromkeys(texts))
        ours = TIME if cells.dtype.kind != "M" and is_clock(distinct) else "date"
        if len(distinct) < 2 or (ours == "date" and not _is_time(distinct[0])):
            continue
        try:
            # What is advised here must not be refused when it is followed.
            day = match.names["date"]
            times = to_moments(raw, day, name) if ours == TIME else to_dates(raw, name)
        except BarDataError:
            continue
        if _count_repeats(keys, _pair(times, dates)) * 10 > repeats:
            continue
        raise BarDataError(
            f"{raw.source}: {repeats} of {len(dates)} bars have a time that another bar has, as "
            f"{match.names['date']!r} is read without the time of day; column {name!r} has it "
            f"(such as {texts[0]!r}): {tell_mapping(raw, ours, name)}"
        )


def _pair(times: npt.NDArray[Any], dates: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """One number for each pair of two columns' values."""
    one, two = pd.factorize(times)[0], pd.factorize(dates)[0]
    paired: npt.NDArray[np.int64] = one.astype(np.int64) * (int(two.max()) + 1) + two
    return paired
