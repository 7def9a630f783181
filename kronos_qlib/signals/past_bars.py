"""Baselines that a score has to beat: signals of past bars alone, without a network.

What any forecast's distribution has to beat is in `evaluation.forecasts`.

Shape letters: N windows, T bars seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from kronos_qlib.errors import BarDataError, ConfigError
from kronos_qlib.schema import AMOUNT, CLOSE

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Baseline:
    """A signal of past bars: the higher, the better the instrument is held to be."""

    definition: str
    find: Callable[[Floats, int, int], Doubles]
    """Of (N, T, 6) bars, how many count, and how many of the newest are skipped."""
    bars: int
    """Bars that count by default, up to the newest that is not skipped."""
    skip: int = 0
    before: int = 1
    """Bars before those that count, whose close a first return is taken from."""


def _momentum(bars: Floats, count: int, skip: int) -> Doubles:
    closes = bars[..., CLOSE].astype(np.float64)
    newest = max(0, closes.shape[1] - 1 - skip)
    return np.asarray(closes[:, newest] / closes[:, max(0, newest - count)] - 1)


def _reversal(bars: Floats, count: int, skip: int) -> Doubles:
    return -_momentum(bars, count, skip)


def _low_volatility(bars: Floats, count: int, skip: int) -> Doubles:
    closes = _cut(bars, count, skip)[..., CLOSE].astype(np.float64)
    return np.asarray(-np.diff(np.log(closes), axis=1).std(axis=1))


def _low_amount(bars: Floats, count: int, skip: int) -> Doubles:
    amount = _cut(bars, count - 1, skip)[..., AMOUNT].astype(np.float64)
    return np.asarray(-np.log1p(amount.mean(axis=1)))


BASELINES = MappingProxyType(
    {
        "momentum": Baseline(
            "return over 20 bars up to the one before the newest, which is skipped: it reverts",
            _momentum,
            bars=20,
            skip=1,
        ),
        "reversal": Baseline("minus the return over the newest 5 bars", _reversal, bars=5),
        "low_volatility": Baseline(
            "minus the volatility of the newest 20 returns from close to close",
            _low_volatility,
            bars=20,
        ),
        "low_amount": Baseline(
            "minus the log of the mean money traded in the newest 20 bars: small names first",
            _low_amount,
            bars=20,
            before=0,
        ),
    }
)
"""Signals of past bars by name. The last price (a random walk) is none: it says the same of every
instrument, and is a distribution only."""


def _size(bars: Floats, count: int, skip: int) -> Doubles:
    return -_low_amount(bars, count, skip)


def _volatility(bars: Floats, count: int, skip: int) -> Doubles:
    return -_low_volatility(bars, count, skip)


def _turnover(bars: Floats, count: int, skip: int) -> Doubles:
    return _size(bars, NEW_BARS, skip) - _size(bars, count, skip)


NEW_BARS = 5
"""Bars whose money is set against the usual."""

STYLES = MappingProxyType(
    {
        "size": Baseline(
            "log of the mean money traded in the newest 20 bars: bars know no capitalisation",
            _size,
            bars=20,
            before=0,
        ),
        "volatility": Baseline(
            "volatility of the newest 20 returns from close to close", _volatility, bars=20
        ),
        "turnover": Baseline(
            f"log of the mean money traded in the newest {NEW_BARS} bars, less that of 20: "
            "above or below the name's usual",
            _turnover,
            bars=20,
            before=0,
        ),
        "momentum": BASELINES["momentum"],
        "reversal": BASELINES["reversal"],
    }
)
"""What a score may hold without saying so, by name. Those of the names of BASELINES are these."""

FROM_AMOUNT = ("low_amount", "size", "turnover")
"""Of both, those that are not known where nothing says what was traded."""


def baseline_of(
    kind: str, bars: Floats, count: int | None = None, skip: int | None = None
) -> Doubles:
    """A baseline of each window; a window with too few bars takes all it has.

    Args:
        kind: of `BASELINES`.
        bars: (N, T, 6) lookbacks in their own units, T at least 2, newest last.
        count, skip: bars that count, and newest bars left out; None takes the baseline's own.

    Returns:
        (N,) float64: a return, minus a return, minus a volatility per bar, or minus log money.

    Raises:
        BarDataError: a close is not positive, or an amount negative (names the window by place).
        ConfigError: no such baseline, or a number of bars that cannot work.
    """
    if kind == "last_price":
        raise ConfigError(
            "the last price says the same of every instrument: it cannot rank them; "
            "ForecastReportRecord sets it beside a forecast's distribution"
        )
    if kind not in BASELINES:
        raise ConfigError(f"baselines are {', '.join(BASELINES)}, got {kind!r}")
    baseline = BASELINES[kind]
    count = baseline.bars if count is None else count
    skip = baseline.skip if skip is None else skip
    least = 2 if kind == "low_volatility" else 1
    if count < least or skip < 0:
        raise ConfigError(
            f"{kind} counts at least {least} bars and skips none or some, got {count} and {skip}"
        )
    if (place := first_broken(bars)) is not None:
        raise BarDataError(f"window {place}: {BROKEN}")
    return baseline.find(bars, count, skip)


BROKEN = "closes are to be positive and amounts not negative"


def first_broken(bars: Floats) -> int | None:
    """The first of (N, T, 6) windows whose bars allow no return or no logarithm."""
    broken = ~(bars[..., CLOSE] > 0).all(axis=1) | ~(bars[..., AMOUNT] >= 0).all(axis=1)
    return int(broken.argmax()) if broken.any() else None


def bars_needed(kind: str, count: int | None = None, skip: int | None = None) -> int:
    """Bars of a window in which a baseline, or a style, finds all that it counts."""
    baseline = BASELINES[kind] if kind in BASELINES else STYLES[kind]
    reach = (baseline.bars if count is None else count) + (baseline.skip if skip is None else skip)
    return reach + baseline.before


def _cut(bars: Floats, count: int, skip: int) -> Floats:
    """The newest count + 1 bars, but for the skipped; what there is of them, 2 at least."""
    stop = max(min(2, bars.shape[1]), bars.shape[1] - skip)
    return bars[:, max(0, stop - count - 1) : stop]
