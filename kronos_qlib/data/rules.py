"""What is wrong with bars: one set of rules for files, Qlib storage and frames.

Functions of arrays. Bars are (n, 6) with columns as in `schema.BAR_COLUMNS`, in order of time, of
one instrument, or of several one after another with `starts`, the flag of each one's first bar. A
number that is missing is NaN and breaks no rule but those about missing ones. `slack` is the
fraction by which prices may differ and still count as equal: 0 for numbers as a file spells them,
`FLOAT32_SLACK` where float32 has rounded them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from kronos_qlib.schema import CLOSE, HIGH, LOW, OPEN, PRICE_COLUMNS, VOLUME

Flags = npt.NDArray[np.bool_]
Bars = npt.NDArray[np.floating]
Numbers = npt.NDArray[np.floating]

INCOMPLETE = "incomplete"
NONPOSITIVE = "nonpositive"
UPSIDE_DOWN = "high-below-low"
BRACKET = "bracket"
SIZE = "size"
UNTRADED = "untraded"
REPEATED = "repeated"
JUMP = "jump"

INVALID = (NONPOSITIVE, UPSIDE_DOWN, BRACKET, SIZE)
"""Rules that a bar breaks by numbers it has."""
RULES = (UNTRADED, REPEATED, INCOMPLETE, *INVALID)
"""Rules that keep a bar out of a table; one that breaks several is counted under the first."""

MAX_MOVE = 0.4
"""Largest |return| from one close to the next that is accepted without a warning."""

SMALL_SPLITS = ((3, 2), (4, 3))
"""Splits, either way round, that move a price by less than MAX_MOVE: see `find_small_splits`."""
SPLIT_SLACK = 0.03
"""How far open and close may lie from such a split's ratio to the close before, as a fraction."""
SPLIT_BARS, LEAST_BARS = 60, 20
"""Bars before it that say what is usual: at most, and at least."""
SPLIT_DEVIATIONS, SPLIT_RANGE = 8.0, 2.0
"""It moves the close by more than SPLIT_DEVIATIONS of their deviations, and the bar's own range
stays below SPLIT_RANGE times theirs: news widens it."""
CHUNK = 2**18
"""Bars looked at at a time."""

FLOAT32_SLACK = 8 * float(np.finfo(np.float32).eps)
"""Prices times a factor are rounded one by one, in float32 by some units in the last place."""

PRICES = len(PRICE_COLUMNS)


def show_jump(before: float, after: float, digits: int = 6) -> str:
    """Two closes and the move between them, for a message: "23.19 to 2.31, -90.0%"."""
    with np.errstate(over="ignore"):
        move = np.float64(after) / before - 1
    return f"{before:.{digits}g} to {after:.{digits}g}, {move:+.1%}"


def find_faults(
    bars: Bars, starts: Flags | None = None, *, slack: float = 0.0, others_trade: bool = False
) -> dict[str, Flags]:
    """Which bars break which of `RULES`: (n,) flags by name; a bar that did not trade no other.

    Args:
        others_trade: whether instruments that are not among these are known to trade, see
            `is_untraded`.
    """
    bars = np.asfortranarray(bars)  # column by column: several times as fast
    untraded = is_untraded(bars, starts, slack=slack, others_trade=others_trade)
    found = {
        REPEATED: is_repeated(bars, starts),
        INCOMPLETE: ~np.isfinite(bars).all(axis=1),
        NONPOSITIVE: is_nonpositive(bars),
        UPSIDE_DOWN: is_upside_down(bars, slack),
        BRACKET: is_outside(bars, slack),
        SIZE: is_negative(bars),
    }
    return {UNTRADED: untraded, **{rule: flags & ~untraded for rule, flags in found.items()}}


def is_sound(bars: Bars) -> bool:
    """Whether finite bars of one instrument break no rule, by a quick check.

    Volume that is zero throughout is passed over: whether that is unknown or no trade depends on
    the other instruments.
    """
    if not len(bars):
        return True
    opens, highs, lows, closes, volume, amount = bars.T
    return bool(
        lows.min() > 0
        and (lows <= np.minimum(opens, closes)).all()
        and (highs >= np.maximum(opens, closes)).all()
        and amount.min() >= 0
        and (volume.min() > 0 or not (volume.any() or amount.any()))
        and not ((volume[1:] == volume[:-1]) & (volume[1:] > 0)).any()
    )


def is_unknown(bars: Bars) -> Flags:
    """(n,) where a price is missing or infinite."""
    return np.asarray(~np.isfinite(bars[:, :PRICES]).all(axis=1))


def is_nonpositive(bars: Bars) -> Flags:
    """(n,) where a price is 0 or less."""
    return np.asarray((bars[:, :PRICES] <= 0).any(axis=1))


def is_upside_down(bars: Bars, slack: float = 0.0) -> Flags:
    """(n,) where high lies below low."""
    return _is_below(bars[:, HIGH], bars[:, LOW], slack)


def is_outside(bars: Bars, slack: float = 0.0) -> Flags:
    """(n,) where high and low do not span open and close, as far as they are known."""
    # Pair by pair: NaN compares false, so a price that is missing says nothing of the others.
    outside = np.zeros(len(bars), dtype=bool)
    for inner in (OPEN, CLOSE):
        outside |= _is_below(bars[:, HIGH], bars[:, inner], slack)
        outside |= _is_below(bars[:, inner], bars[:, LOW], slack)
    return outside


def is_negative(bars: Bars) -> Flags:
    """(n,) where volume or amount is negative."""
    return np.asarray((bars[:, VOLUME:] < 0).any(axis=1))


def is_untraded(
    bars: Bars,
    starts: Flags | None = None,
    *,
    slack: float = 0.0,
    others_trade: bool = False,
) -> Flags:
    """(n,) where a feed wrote a bar though nothing traded: on a halt, a suspension, a holiday.

    Vendors do it in these ways; volume and amount are 0 or missing in all but the last:
        the four prices are one price, mostly the last close;
        the four prices are those of the bar before;
        only the close is given, and open, high and low are 0 or missing;
        the four prices are 0, whatever volume says.

    Where they repeat the volume too, see `is_repeated`. A bar at one price that has a volume was
    traded: limits are reached on such days. Where an instrument never has a volume, as rates and
    indices have none, no volume says nothing; unless its price never moves while others trade.

    Args:
        others_trade: whether instruments that are not among these are known to trade.
    """
    if not len(bars):
        return np.zeros(0, dtype=bool)
    if starts is None:
        starts = _one(len(bars))
    columns = np.asfortranarray(bars).T
    sizes, found = columns[VOLUME:], np.zeros(len(bars), dtype=bool)
    idle = np.asarray(~((sizes > 0) | (sizes < 0)).any(axis=0))
    rows = np.flatnonzero(idle | (columns[CLOSE] == 0))
    if not len(rows):
        return found
    prices = columns[:PRICES, rows]
    found[rows] = (prices == 0).all(axis=0)
    if idle.any():
        idle &= _means_untraded(columns, starts, idle, others_trade)
    rows = np.flatnonzero(idle)
    prices = columns[:PRICES, rows]
    lowest, highest = prices.min(axis=0), prices.max(axis=0)  # NaN where one is missing
    found[rows] |= (lowest > 0) & ~_is_below(lowest, highest, slack)
    others = prices[:CLOSE]
    found[rows] |= (prices[CLOSE] > 0) & (np.isnan(others) | (others == 0)).all(axis=0)
    rows = rows[~found[rows] & ~starts[rows]]
    again = np.zeros(len(bars), dtype=bool)
    again[rows] = (columns[:PRICES, rows] == columns[:PRICES, rows - 1]).all(axis=0)
    for own in _instruments(starts, again):
        # Prices that never change, high above low, do not repeat a last bar.
        prices = columns[:PRICES, own]
        found[own] |= again[own] & (prices != prices[:, :1]).any()
    return found


def is_repeated(bars: Bars, starts: Flags | None = None) -> Flags:
    """(n,) where the whole bar before is repeated, volume included, and its high is above its low.

    So feeds fill a holiday or a halt forward. That its volume repeats by coincidence is unlikely,
    unless it is met elsewhere in the series too: in round lots, or in made-up bars.
    """
    if not len(bars):
        return np.zeros(0, dtype=bool)
    if starts is None:
        starts = _one(len(bars))
    columns = np.asfortranarray(bars).T
    volume, amount = columns[VOLUME:]
    size = np.where(volume > 0, volume, amount)
    found = np.zeros(len(bars), dtype=bool)
    rows = np.flatnonzero((size[1:] == size[:-1]) & (size[1:] > 0)) + 1
    rows = rows[~starts[rows]]
    now, before = columns[:, rows], columns[:, rows - 1]
    same = now == before
    same[VOLUME:] |= np.isnan(now[VOLUME:]) & np.isnan(before[VOLUME:])
    found[rows] = same.all(axis=0) & (now[HIGH] > now[LOW])
    for own in _instruments(starts, found):
        _, kind, counts = np.unique(size[own], return_inverse=True, return_counts=True)
        run = np.cumsum(~found[own]) - 1
        found[own] &= (counts[kind] == np.bincount(run)[run]) & (len(counts) > 1)
    return found


def find_jumps(closes: Numbers, starts: Flags, max_move: float = MAX_MOVE) -> npt.NDArray[np.int64]:
    """Rows whose close lies further than `max_move` from the instrument's close before.

    Args:
        closes: (n,) positive.
        starts: (n,) of each instrument's first bar, to which nothing moves.
    """
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        moves = np.abs(closes[1:] / closes[:-1] - 1.0)
    return np.flatnonzero((moves > max_move) & ~starts[1:]) + 1


def find_small_splits(bars: Bars, starts: Flags) -> npt.NDArray[np.int64]:
    """Rows at which a close arrives by a move below MAX_MOVE that still looks like a split.

    Open and close both lie within 3 % of a ratio of SMALL_SPLITS to the close before; that is far
    beyond what the instrument's returns were; and the bar's own range is a usual one, where a fall
    or rise upon news has a wide one. In 5.7 million real bars of 5,067 names (A-shares, US shares,
    coins) it finds a reverse split, a spin-off with one, and a single false alarm; of splits 3:2
    planted into them, 80 to 90 % by market.

    Args:
        bars: (n, 6).
        starts: (n,) of each instrument's first bar.
    """
    ratios = [old / new for pair in SMALL_SPLITS for old, new in (pair, pair[::-1])]
    parts = [np.zeros(0, dtype=np.int64)]
    for begin in range(1, len(bars), CHUNK):
        now, before = bars[begin : begin + CHUNK], bars[begin - 1 : begin - 1 + CHUNK, CLOSE]
        before = before[: len(now)]
        near = np.zeros(len(now), dtype=bool)
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            for ratio in ratios:
                near |= (np.abs(now[:, CLOSE] / before / ratio - 1) < SPLIT_SLACK) & (
                    np.abs(now[:, OPEN] / before / ratio - 1) < SPLIT_SLACK
                )
        parts.append(np.flatnonzero(near & ~starts[begin : begin + CHUNK]) + begin)
    rows = np.concatenate(parts)
    if not len(rows):
        return rows
    begins = np.flatnonzero(starts)
    firsts = begins[np.searchsorted(begins, rows, side="right") - 1]
    calm = [_is_calm(bars, row, first) for row, first in zip(rows, firsts, strict=True)]
    return np.asarray(rows[np.array(calm, dtype=bool)], dtype=np.int64)


def _is_calm(bars: Bars, row: int, first: int) -> bool:
    """Whether a move of open and close is far beyond the usual and its bar's range is not."""
    past = bars[max(first, row - SPLIT_BARS) : row + 1].astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        returns = np.abs(np.diff(np.log(past[:, CLOSE])))
        ranges = np.log(past[:, HIGH] / past[:, LOW])
    usual, wide = (each[:-1][np.isfinite(each[:-1])] for each in (returns, ranges))
    if min(len(usual), len(wide)) < LEAST_BARS:
        return False
    # The median of |x| is .6745 deviations of a Gaussian; an earlier jump moves it little.
    is_far = returns[-1] > SPLIT_DEVIATIONS * np.median(usual) / 0.6745
    return bool(is_far and ranges[-1] <= SPLIT_RANGE * np.median(wide))


def starts_of(owners: npt.NDArray[Any]) -> Flags:
    """The flag of each owner's first row; (n,) owners stand one after another."""
    starts = np.ones(len(owners), dtype=bool)
    starts[1:] = owners[1:] != owners[:-1]
    return starts


def _one(length: int) -> Flags:
    starts = np.zeros(length, dtype=bool)
    starts[0] = True
    return starts


def _is_below(lower: Numbers, upper: Numbers, slack: float) -> Flags:
    """Where the one lies below the other by more than the slack."""
    below = np.asarray(lower < upper)
    if slack and below.any():
        with np.errstate(invalid="ignore"):  # infinite less infinite
            below &= upper - lower > slack * np.abs(upper)
    return below


def _bounds(starts: Flags) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    begins = np.flatnonzero(starts)
    return begins, np.append(begins[1:], len(starts))


def _instruments(starts: Flags, where: Flags) -> Iterator[slice]:
    """The rows of each instrument that has a flag."""
    if not where.any():
        return
    begins, ends = _bounds(starts)
    for number in np.unique(np.searchsorted(begins, np.flatnonzero(where), side="right") - 1):
        yield slice(int(begins[number]), int(ends[number]))


def _means_untraded(columns: Bars, starts: Flags, idle: Flags, others_trade: bool) -> Flags:
    """Where no volume means no trade: the instrument has volumes, or it alone has none."""
    begins, ends = _bounds(starts)
    ever = np.logical_or.reduceat((columns[VOLUME:] > 0).any(axis=0), begins)
    if not (others_trade or ever.any()):
        return np.zeros(len(starts), dtype=bool)
    untraded = np.repeat(ever, ends - begins)
    for own in _instruments(starts, idle & ~untraded):
        prices = columns[:PRICES, own]
        given = prices[prices > 0]
        untraded[own] = not len(given) or given.min() == given.max()
    return untraded
