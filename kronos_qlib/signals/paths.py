"""Signals: statistics of the sampled futures of a window, one number each.

Shape letters: N windows, P paths, H bars to come.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from kronos_qlib.errors import BarDataError, ConfigError
from kronos_qlib.schema import BAR_COLUMNS, CLOSE, PRICE_COLUMNS

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

PRICES = slice(0, len(PRICE_COLUMNS))

AGREE = 1e-9
"""Returns that differ by less are of paths that agree: float32 prices resolve 1e-7."""


@dataclass(frozen=True, eq=False)
class PathReturns:
    """The paths of N windows, measured from the last close seen. A return of 0.01 is one percent.

    paths: (N, P, H, 6) bars in their own units, columns as in `schema.BAR_COLUMNS`, raw: the
        network draws column by column, and nothing here needs a bar to be coherent.
    last_close: (N,) positive.
    """

    paths: Floats
    last_close: Doubles

    @cached_property
    def closes(self) -> Doubles:
        """(N, P, H) in money."""
        return self.paths[..., CLOSE].astype(np.float64)

    @cached_property
    def returns(self) -> Doubles:
        """(N, P, H) from the last close seen to each bar's close."""
        return np.asarray(self.closes / self.last_close[:, None, None] - 1)

    @cached_property
    def last(self) -> Doubles:
        """(N, P) returns to the close of the last bar."""
        return np.ascontiguousarray(self.returns[..., -1])

    @cached_property
    def expected(self) -> Doubles:
        """(N,) mean close over bars and paths, as a return from the last close seen.

        Source:
            Kronos paper, the signal of its backtest.
        """
        # Of closes and not of returns: bit for bit the score of a model that keeps nothing else.
        return np.asarray(self.closes.mean(axis=(1, 2)) / self.last_close - 1)

    @cached_property
    def volatility(self) -> Doubles:
        """(N,) mean over paths of the root mean square of a bar's move, in units of return."""
        moves = np.diff(self.returns, axis=2, prepend=0.0)
        return np.asarray(np.sqrt(np.square(moves).mean(axis=2)).mean(axis=1))

    @cached_property
    def dispersion(self) -> Doubles:
        """(N,) standard deviation over paths (ddof 0) of the return to the last bar."""
        return np.asarray(self.last.std(axis=1))

    def at(self, bar: float) -> Doubles:
        """(N,) mean over paths of the return to one bar's close; the next bar is 1."""
        return np.asarray(self.returns[..., int(bar) - 1].mean(axis=1))

    def range(self) -> Doubles:
        """(N,) mean over paths of highest minus lowest price, relative to the last close seen."""
        prices = self.paths[..., PRICES].astype(np.float64)
        spans = prices.max(axis=(2, 3)) - prices.min(axis=(2, 3))
        return np.asarray(spans.mean(axis=1) / self.last_close)

    def return_over_volatility(self) -> Doubles:
        """(N,) expected return / volatility, without unit; 0 where no path moves."""
        moves = self.volatility > AGREE  # if not, every path stays at the last close
        return np.where(moves, self.expected / np.where(moves, self.volatility, 1), 0.0)

    def expected_shortfall(self, share: float) -> Doubles:
        """(N,) mean return to the last bar of the worst `share` of paths, at least one path."""
        count = max(1, math.ceil(share * self.last.shape[1] - 1e-9))
        worst = np.partition(self.last, count - 1, axis=1)[:, :count]
        return np.asarray(np.sort(worst, axis=1).mean(axis=1))

    def skew(self) -> Doubles:
        """(N,) skewness over paths of the return to the last bar; 0 where all agree."""
        spread = self.dispersion
        differ = spread > AGREE
        z = (self.last - self.last.mean(axis=1, keepdims=True)) / np.where(differ, spread, 1)[
            :, None
        ]
        return np.where(differ, (z**3).mean(axis=1), 0.0)


@dataclass(frozen=True)
class Signal:
    """A name's meaning: one line, and how it is found."""

    definition: str
    find: Callable[..., Doubles]
    """Of `PathReturns`, and of the number after "@" where the name takes one."""
    takes: str = ""
    """What that number is, for messages; empty where the name takes none."""
    example: str = ""


SIGNALS = MappingProxyType(
    {
        "expected_return": Signal(
            "mean close over all bars to come and all paths, relative to the last close "
            "(the paper's)",
            lambda of: of.expected,
        ),
        "last_return": Signal(
            "mean over paths of the return to the close of the last bar",
            lambda of: np.asarray(of.last.mean(axis=1)),
        ),
        "return_at": Signal(
            "mean over paths of the return to the close of one bar, 1 the next",
            PathReturns.at,
            "a bar to come",
            "return_at@5",
        ),
        "max_return": Signal(
            "mean over paths of the return to the highest close",
            lambda of: np.asarray(of.returns.max(axis=2).mean(axis=1)),
        ),
        "min_return": Signal(
            "mean over paths of the return to the lowest close",
            lambda of: np.asarray(of.returns.min(axis=2).mean(axis=1)),
        ),
        "median_return": Signal(
            "median over paths of the return to the close of the last bar",
            lambda of: np.asarray(np.median(of.last, axis=1)),
        ),
        "prob_up": Signal(
            "share of paths whose last bar closes above the last close seen",
            lambda of: np.asarray((of.last > 0).mean(axis=1)),
        ),
        "quantile": Signal(
            "quantile over paths of the return to the close of the last bar",
            lambda of, level: np.asarray(np.quantile(of.last, level, axis=1)),
            "a level between 0 and 1",
            "quantile@0.05",
        ),
        "volatility": Signal(
            "mean over paths of the root mean square of a bar's move, close to close, relative to "
            "the last close seen",
            lambda of: of.volatility,
        ),
        "dispersion": Signal(
            "standard deviation over paths of the return to the close of the last bar",
            lambda of: of.dispersion,
        ),
        "return_over_volatility": Signal(
            "expected_return / volatility; 0 where nothing moves",
            PathReturns.return_over_volatility,
        ),
        "expected_shortfall": Signal(
            "mean return to the close of the last bar of the worst share of paths, one at least",
            PathReturns.expected_shortfall,
            "a share between 0 and 1",
            "expected_shortfall@0.05",
        ),
        "skew": Signal(
            "skewness over paths of the return to the close of the last bar; 0 where all agree",
            PathReturns.skew,
        ),
        "range": Signal(
            "mean over paths of highest minus lowest price, relative to the last close seen",
            PathReturns.range,
        ),
    }
)
"""Every signal by name. Returns are from the last close seen; nothing is a price, so that a cheap
share and an expensive one compare."""

DEFAULT_SIGNALS = (
    *(name for name, signal in SIGNALS.items() if not signal.takes),
    *("quantile@0.05", "quantile@0.95", "expected_shortfall@0.05"),
)
"""What is kept by default; quantile@0.5 would be median_return again."""


def check_signals(names: Iterable[str], horizon: int | None = None) -> None:
    """Whether each is a signal, with its number where it takes one.

    Args:
        horizon: bars that the paths will have, where that is known already.

    Raises:
        ConfigError: a name is unknown (with the nearest known one), or its number cannot work.
    """
    for name in names:
        signal, number = _parse(name)
        if horizon is not None and signal is SIGNALS["return_at"] and (number or 0) > horizon:
            raise ConfigError(f"{name}: the paths have {horizon} bars; raise the horizon")


def signals_of(
    paths: Floats, last_close: npt.NDArray[np.floating], names: Iterable[str]
) -> dict[str, Doubles]:
    """Each named signal of each window.

    Args:
        paths: (N, P, H, 6) float32 bars in their own units, P and H at least 1.
        last_close: (N,) close of the last bar seen, in money, positive.
        names: of `SIGNALS`; with a number where one is taken, such as "return_at@5",
            "quantile@0.05".

    Returns:
        (N,) float64 by name, in the order asked; a window's does not depend on the others.

    Raises:
        BarDataError: the shapes do not agree; a last close is not positive, or a path not finite
            (names the window by its place).
        ConfigError: a name is unknown, or its number cannot work.
    """
    chosen = {name: _parse(name) for name in names}
    paths = np.asarray(paths)
    closes: Doubles = np.asarray(last_close, dtype=np.float64)
    if paths.ndim != 4 or 0 in paths.shape[1:] or paths.shape[3] != len(BAR_COLUMNS):
        raise BarDataError(f"expected paths (windows, paths, bars, 6), got {paths.shape}")
    if closes.shape != paths.shape[:1]:
        raise BarDataError(f"expected {len(paths)} last closes, got {closes.shape}")
    broken = describe_broken(paths, closes)
    if broken:
        place, what = broken
        raise BarDataError(f"window {place}: {what}")
    check_signals(chosen, paths.shape[2])
    found = PathReturns(paths, closes)
    return {
        name: signal.find(found) if number is None else signal.find(found, number)
        for name, (signal, number) in chosen.items()
    }


def describe_broken(paths: Floats, last_close: npt.NDArray[np.floating]) -> tuple[int, str] | None:
    """The first window that has no signals, and why; None if all have.

    Args:
        paths: (N, P, H, 6) bars in their own units.
        last_close: (N,) in money.
    """
    unpriced = ~(np.isfinite(last_close) & (last_close > 0))
    if unpriced.any():
        place = int(unpriced.argmax())
        return place, f"a return needs a positive last close, got {last_close[place]:g}"
    unknown = ~np.isfinite(paths[..., PRICES]).all(axis=(1, 2, 3))
    if unknown.any():
        return int(unknown.argmax()), "a drawn price is not finite"
    return None


def _parse(name: str) -> tuple[Signal, float | None]:
    """A signal and its number."""
    base, mark, text = str(name).partition("@")
    if base not in SIGNALS:
        near = get_close_matches(base, SIGNALS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(SIGNALS)}"
        raise ConfigError(f"no signal {name!r}; {hint}")
    signal = SIGNALS[base]
    if not signal.takes:
        if mark:
            raise ConfigError(f"signal {base!r} takes no number, got {name!r}")
        return signal, None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    is_bar = base == "return_at"
    fits = number >= 1 and number.is_integer() if is_bar else 0 < number < 1
    if not fits:
        raise ConfigError(
            f"signal {base!r} takes {signal.takes} such as {signal.example!r}, got {name!r}"
        )
    return signal, number
