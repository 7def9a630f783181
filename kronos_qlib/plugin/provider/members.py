"""Members of an index, day by day, as a market file of a Qlib folder.

The history comes from the package index-constitution (MIT): CSI300, CSI500, S&P 500, NASDAQ-100 and
Dow 30, with the first day of each membership and the day it ended. It names companies by the code
they have today; where the folder has an older one, the package's events lead to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kronos_qlib.data.calendar.time_text import Times
from kronos_qlib.errors import BarDataError, ConfigError, some_of
from kronos_qlib.extras import require
from kronos_qlib.files import replacing
from kronos_qlib.plugin.provider.faults import check_frequency, check_market, stored_calendar
from kronos_qlib.plugin.provider.members_mean import check_mean_name, write_mean
from kronos_qlib.plugin.provider.writable_bars import ALL_MARKET, MARKET_NAME

Days = list[tuple[np.datetime64, np.datetime64]]
"""Spans of days, first and last, both inclusive."""

DAY = np.timedelta64(1, "D")
SHOWN = 5
"""Names that a message gives."""
CODE = re.compile(r"([A-Z]{2})[.]?(\d{6})|(\d{6})[.]?([A-Z]{2,4})?")
"""An A-share's code as vendors write it: SH600000, SH.600000, 600000.SH, 600000.XSHG, 600000."""
CODE_CHANGE = "ticker_change"
"""The kind of event by which one company goes on under another code."""
EXCHANGES = {"SH": "SH", "SS": "SH", "XSHG": "SH", "SZ": "SZ", "XSHE": "SZ", "BJ": "BJ"}


@dataclass(frozen=True)
class MembersSummary:
    """What `write_members` wrote of one market, and what it had no bars for."""

    path: Path
    members: int
    """Instruments of the folder that were members on some day of its calendar."""
    memberships: int
    """Spans; one that left and came back has two."""
    absent: tuple[str, ...]
    """Members on some of those days that the folder has no bars of, by today's code."""
    by_day: tuple[int, int]
    """Fewest and most members with bars on a day of the calendar."""
    of_index: tuple[int, int]
    """Fewest and most members of the history on such a day, with bars here or not."""

    def __str__(self) -> str:
        rest = (
            f"; {len(self.absent)} others have no bars here by the code they have today or had "
            f"before: {some_of(self.absent, SHOWN)}. What is tested is that part of the index"
            if self.absent
            else ""
        )
        return (
            f"{self.path}: {self.members} instruments in {self.memberships} memberships, "
            f"{self.by_day[0]} to {self.by_day[1]} on a day, of {self.of_index[0]} to "
            f"{self.of_index[1]} in the history{rest}"
        )


def write_members(
    folder: str | Path,
    indices: Sequence[str],
    *,
    name: str | None = None,
    freq: str = "day",
    mean: str | None = None,
    overwrite: bool = False,
) -> list[MembersSummary]:
    """Write who was in an index on which days into `instruments/<index>.txt` of a Qlib folder.

    A member's span ends the day before it left, and where it is a member still, with the folder's
    calendar: after new bars, write it again. The bars before a membership stay where they are, and
    windows see them.

    Args:
        folder: a Qlib folder, such as `kronos-qlib data convert` makes.
        indices: names of the package: csi300, csi500, sp500, nasdaq100, dow30.
        name: one market of this name with the members of any of them; None: one market each.
        mean: also write the equal-weight mean of the day's members as an instrument of this name,
            in no market: a benchmark of the universe itself. For one market.
        overwrite: replace a market file, or a mean, that is there.

    Returns:
        One summary for each market written.

    Raises:
        ConfigError: an index or a name cannot be used, a market is there already, or the folder is
            none.
        BarDataError: the folder has bars of no member on any of its days.
        MissingDependencyError: index-constitution is not installed.
    """
    source: Any = require("index_constitution", for_="the members of an index")
    folder = Path(folder)
    known = list(source.list_indices())
    for one in indices:
        if one not in known:
            raise ConfigError(f"there is no index {one!r}; known: {', '.join(known)}")
    chosen = {name: list(indices)} if name is not None else {one: [one] for one in indices}
    for market in chosen:
        if not MARKET_NAME.fullmatch(market) or market == ALL_MARKET:
            raise ConfigError(
                f"a market's name is small letters, digits, '_', '.' and '-', and not "
                f"{ALL_MARKET}; got {market!r}"
            )
        target = folder / "instruments" / f"{market}.txt"
        if target.exists() and not overwrite:
            raise ConfigError(f"{target} is there already; --overwrite replaces it")
    if mean is not None and len(chosen) > 1:
        raise ConfigError(
            f"a mean is of one market: give --name, or one index; got {', '.join(chosen)}"
        )
    calendar, listed = _read_folder(folder, freq)
    if mean is not None:
        check_mean_name(folder, mean, listed, overwrite)
    found = {}
    for market, members in chosen.items():
        spans: dict[str, Days] = {}
        absent: set[str] = set()
        everyone: dict[str, Days] = {}
        for one in members:
            taken, lacking = spans_in_folder(
                source.history(one), source.events(one), calendar, listed
            )
            absent.update(lacking)
            for symbol, days in days_of(source.history(one), calendar).items():
                everyone[symbol] = merged([*everyone.get(symbol, []), *days])
            for symbol, days in taken.items():
                spans[symbol] = merged([*spans.get(symbol, []), *days])
        if not spans:
            history = pd.concat([source.history(one) for one in members])
            raise BarDataError(
                f"{folder} has bars of no member of {', '.join(members)} on any of its days, "
                f"{calendar[0]} to {calendar[-1]}: the history begins on "
                f"{history['opt-in'].min():%Y-%m-%d} and names its members like "
                f"{history['symbol'].iloc[0]}, the folder like {next(iter(listed))}"
            )
        found[market] = (spans, sorted(absent - set(spans)), _by_day(everyone, calendar))
    if mean is not None:
        ((spans, _, _),) = found.values()
        write_mean(folder, mean, freq, spans)
    return [_write(folder, market, calendar, *each) for market, each in found.items()]


def spans_in_folder(
    history: pd.DataFrame,
    events: pd.DataFrame,
    calendar: Times,
    listed: Mapping[str, tuple[np.datetime64, np.datetime64]],
) -> tuple[dict[str, Days], set[str]]:
    """Memberships of one index by the folder's own names and days.

    Args:
        history: "symbol", "opt-in" (first day in), "opt-out" (first day no longer in, or none).
        events: "event_date", "event_type", "old_symbol", "new_symbol".
        calendar: (K,) datetime64[D], increasing.
        listed: instrument to its first and last day with bars.

    Returns:
        Instrument to spans within the calendar and its own days, in order and apart; and the
        members on some day of the calendar that the folder has no bars of.
    """
    ours = {form: name for name in listed for form in (plain_code(name), name.upper())}
    older = _older_codes(events)
    spans: dict[str, Days] = {}
    absent: set[str] = set()
    for symbol, stays in days_of(history, calendar).items():
        for first, last in stays:
            has_bars = False
            for code, until_change in [(symbol, last), *older.get(symbol, [])]:
                name = ours.get(plain_code(code))
                if name is None:
                    continue
                span = (max(first, listed[name][0]), min(last, until_change, listed[name][1]))
                if span[0] <= span[1]:
                    has_bars = True
                    spans.setdefault(name, []).append(span)
            if not has_bars:
                absent.add(symbol)
    return {name: merged(days) for name, days in spans.items()}, absent


def days_of(history: pd.DataFrame, calendar: Times) -> dict[str, Days]:
    """Every member's days of the calendar, with bars in the folder or not.

    Args:
        history: as of `spans_in_folder`.
        calendar: (K,) datetime64[D], increasing.
    """
    days: dict[str, Days] = {}
    for symbol, since, until in zip(
        history["symbol"], history["opt-in"], history["opt-out"], strict=True
    ):
        last = calendar[-1] if pd.isna(until) else min(_day(until) - DAY, calendar[-1])
        if (first := max(_day(since), calendar[0])) <= last:
            days.setdefault(symbol, []).append((first, last))
    return days


def plain_code(symbol: str) -> str:
    """One spelling of a code: "SH600000" of "600000.XSHG" and "sh.600000", "BRKB" of "BRK-B"."""
    upper = symbol.upper()
    if match := CODE.fullmatch(upper):
        exchange = EXCHANGES.get(match[1] or match[4] or "")
        digits = match[2] or match[3]
        if exchange is None:  # digits alone: Shanghai's begin with 5, 6 or 9
            exchange = "SH" if digits[0] in "569" else "SZ"
        return exchange + digits
    return re.sub(r"[.\-_/ ]", "", upper)


def merged(spans: Iterable[tuple[np.datetime64, np.datetime64]]) -> Days:
    """In order, those that touch or overlap as one."""
    result: Days = []
    for first, last in sorted(spans):
        if result and first <= result[-1][1] + DAY:
            result[-1] = (result[-1][0], max(result[-1][1], last))
        else:
            result.append((first, last))
    return result


def _day(moment: Any) -> np.datetime64:
    return np.datetime64(moment, "D")


def _older_codes(events: pd.DataFrame) -> dict[str, list[tuple[str, np.datetime64]]]:
    """Today's code to those that the company had before, each with the last day it bore it.

    A merger is none: the history has the other company's own memberships under its own code.
    """
    changes = events[events["event_type"] == CODE_CHANGE]
    before: dict[str, list[tuple[str, np.datetime64]]] = {}
    for old, new, day in zip(
        changes["old_symbol"], changes["new_symbol"], changes["event_date"], strict=True
    ):
        before.setdefault(new, []).append((old, _day(day) - DAY))

    def all_before(code: str, known: tuple[str, ...]) -> list[tuple[str, np.datetime64]]:
        found = []
        for old, last in before.get(code, ()):
            if old not in known:  # two codes may have changed places
                found += [(old, last), *all_before(old, (*known, old))]
        return found

    return {code: all_before(code, (code,)) for code in before}


def _read_folder(
    folder: Path, freq: str
) -> tuple[Times, dict[str, tuple[np.datetime64, np.datetime64]]]:
    """Days of the calendar, and each instrument's first and last day with bars."""
    check_frequency(folder, freq)
    days = np.unique(stored_calendar(folder, freq).astype("datetime64[D]"))
    stays = check_market(folder, ALL_MARKET)
    listed: dict[str, tuple[np.datetime64, np.datetime64]] = {}
    for name, first, last in zip(stays.names, stays.first, stays.last, strict=True):
        since, until = listed.get(name, (_day(first), _day(last)))
        listed[name] = (min(since, _day(first)), max(until, _day(last)))
    return days, listed


def _write(
    folder: Path,
    market: str,
    calendar: Times,
    spans: Mapping[str, Days],
    absent: Sequence[str],
    of_index: tuple[int, int],
) -> MembersSummary:
    path = folder / "instruments" / f"{market}.txt"
    # A span of minute bars ends with its day, as Qlib reads a date.
    lines = [f"{name}\t{first}\t{last}\n" for name in sorted(spans) for first, last in spans[name]]
    with replacing(path) as draft:
        draft.write_text("".join(lines), encoding="utf-8", newline="\n")
    by_day = _by_day(spans, calendar)
    return MembersSummary(path, len(spans), len(lines), tuple(absent), by_day, of_index)


def _by_day(spans: Mapping[str, Days], calendar: Times) -> tuple[int, int]:
    """Fewest and most spans on a day of the calendar."""
    change = np.zeros(len(calendar) + 1, dtype=np.int64)
    for days in spans.values():
        for first, last in days:
            change[np.searchsorted(calendar, first)] += 1
            change[np.searchsorted(calendar, last, side="right")] -= 1
    counts = change[:-1].cumsum()
    return int(counts.min()), int(counts.max())
