"""Sampled paths: made coherent, and their mean, quantiles and probabilities.

Shape letters: P paths, H bars of the horizon, L bars of a lookback.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.data.calendar.stamps import Times
from kronos_qlib.errors import BarDataError, ConfigError
from kronos_qlib.schema import BAR_COLUMNS, CLOSE, HIGH, LOW, PRICE_COLUMNS

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

PRICES = slice(0, len(PRICE_COLUMNS))
SIZES = slice(len(PRICE_COLUMNS), len(BAR_COLUMNS))
PRICE_FLOOR = 0.01
"""The lowest price a coherent path may reach, as a fraction of the lookback's lowest price."""


def make_coherent(paths: Floats, past: Floats) -> Floats:
    """Turn raw paths, which the network draws column by column, into bars that could be traded.

    A price below the floor, 1 % of the lowest positive price of the lookback, becomes the floor;
    then the high is the highest and the low the lowest of a bar's four prices; a negative volume
    or amount becomes 0. A lookback with a negative price (a spread), or without a positive one,
    gives no floor: there prices below 0 are as good as others.

    Args:
        paths: (series, P, H, 6) float32 in bar units, columns as in `schema.BAR_COLUMNS`.
        past: (series, L, 6) float32, the lookback of each series.

    Returns:
        (series, P, H, 6) float32, a new array. A bar that keeps all this already comes back bit
        for bit; the mean over paths keeps it too.

    Raises:
        BarDataError: the shapes do not agree.
    """
    if (
        paths.ndim != 4
        or past.ndim != 3
        or len(paths) != len(past)
        or not paths.shape[-1] == past.shape[-1] == len(BAR_COLUMNS)
    ):
        raise BarDataError(
            "expected paths (series, paths, horizon, 6) and past (series, bars, 6), got "
            f"{paths.shape} and {past.shape}"
        )
    seen = past[..., PRICES].reshape(len(past), -1)
    cheapest = np.where(seen > 0, seen, np.inf).min(axis=1, initial=np.inf)
    is_priced = np.isfinite(cheapest) & ~(seen < 0).any(axis=1)
    floor = np.where(is_priced, PRICE_FLOOR * cheapest, -np.inf).astype(np.float32)
    result = np.array(paths, dtype=np.float32)
    prices, sizes = result[..., PRICES], result[..., SIZES]
    np.maximum(prices, floor[:, None, None, None], out=prices)
    highest, lowest = prices.max(axis=-1), prices.min(axis=-1)
    # Written only where it changes something, so that even the sign of a zero stays.
    np.copyto(prices[..., HIGH], highest, where=prices[..., HIGH] < highest)
    np.copyto(prices[..., LOW], lowest, where=prices[..., LOW] > lowest)
    np.copyto(sizes, 0, where=sizes < 0)
    return result


def quantiles_over_paths(
    values: Floats | Doubles, levels: float | Sequence[float], calibrated: bool
) -> Doubles:
    """(levels, ...) over the paths, the first axis of `values`.

    numpy's usual quantile of 20 calibrated paths would call 85 % of the probability 90 %.

    Raises:
        ConfigError: no level, or one outside [0, 1].
    """
    try:
        given = np.atleast_1d(np.asarray(levels, dtype=np.float64))
    except (TypeError, ValueError) as bad:
        raise ConfigError(f"quantile levels are numbers in [0, 1], got {levels!r}") from bad
    if given.ndim != 1 or not given.size or not ((given >= 0) & (given <= 1)).all():
        raise ConfigError(f"quantile levels lie in [0, 1], at least one, got {levels!r}")
    method: Literal["hazen", "linear"] = "hazen" if calibrated else "linear"
    return np.asarray(np.quantile(values, given, axis=0, method=method))


@dataclass(frozen=True)
class PathBars:
    """The paths of one series, as they are given to a condition.

    open to amount: (P, H) float32 in bar units. last_close: the last close seen.
    """

    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats
    amount: Floats
    last_close: float


Condition = Callable[[PathBars], npt.NDArray[np.bool_]]


@dataclass(frozen=True, eq=False)
class Forecast:
    """The sampled paths of one series, and statistics of them.

    Raises:
        BarDataError: the shapes do not agree.
    """

    paths: Floats
    """(P, H, 6) float32 in bar units, columns as in `schema.BAR_COLUMNS`."""
    times: Times
    """(H,) datetime64[ns], the time of each bar."""
    last_close: float
    """Close of the last bar seen."""
    name: str = ""
    """Of the series, for reports and errors."""
    anchored: bool = False
    """Whether the paths begin at the last close seen, not at what its tokens make of it."""
    calibration: str = "uncalibrated"
    """"calibrated on ..., until ..."; or "uncalibrated: ..." and why."""

    def __post_init__(self) -> None:
        shape = np.shape(self.paths)
        if len(shape) != 3 or 0 in shape or shape[2] != len(BAR_COLUMNS):
            raise BarDataError(
                f"{self._who}: expected paths of shape (paths, horizon, 6), each at least 1, got "
                f"{shape}"
            )
        if np.shape(self.times) != shape[1:2]:
            raise BarDataError(
                f"{self._who}: expected {shape[1]} times, one for each bar, got an array of shape "
                f"{np.shape(self.times)}"
            )

    @property
    def is_calibrated(self) -> bool:
        """Whether shares and quantiles of the paths are meant as probabilities."""
        return self.calibration.startswith("calibrated")

    @property
    def mean(self) -> pd.DataFrame:
        """The mean of the paths: H rows by time, the columns of `schema.BAR_COLUMNS`."""
        return self._by_time(self.paths.mean(axis=0))

    @property
    def median(self) -> pd.DataFrame:
        """The median of the paths, of each column by itself; shaped as `mean`."""
        return self._by_time(np.median(self.paths, axis=0))

    def quantiles(self, levels: float | Sequence[float]) -> pd.DataFrame:
        """Quantiles over the paths, of each column and bar by itself.

        P calibrated paths are the quantiles (p - 1/2) / P of a distribution, and are read as such:
        a level beyond the outermost is that path. Of paths as drawn it is numpy's usual quantile.

        Args:
            levels: in [0, 1], one or several; 0.05 is what one path in twenty stays below.

        Returns:
            H rows by time; columns (column, level), such as ("close", 0.05).

        Raises:
            ConfigError: no level, or one outside [0, 1].
        """
        found = quantiles_over_paths(self.paths, levels, self.is_calibrated)
        found = found.astype(np.float32)  # (levels, H, 6)
        columns = pd.MultiIndex.from_product(
            [BAR_COLUMNS, np.ravel(levels).tolist()], names=["column", "level"]
        )
        table = found.transpose(1, 2, 0).reshape(len(self.times), -1)
        return pd.DataFrame(table, index=self._index, columns=columns)

    def prob(self, condition: Condition) -> float | pd.Series[float]:
        """The share of paths in which a condition holds.

        Args:
            condition: a function of `PathBars` that returns bools, (P, H) for each bar:
                `lambda bars: bars.close > bars.last_close`; or (P,) for a path as a whole:
                `lambda bars: bars.low.min(axis=1) < 9.5`.

        Returns:
            A Series by time, or one number if the function answers for whole paths.

        Raises:
            ConfigError: the condition is no function, or its answer is not bools of one of these
                shapes.
        """
        if not callable(condition):
            raise ConfigError(
                "a condition is a function of the paths' bars, such as "
                f"lambda bars: bars.close > bars.last_close, got {condition!r}"
            )
        columns = {name: self.paths[..., place] for place, name in enumerate(BAR_COLUMNS)}
        holds = np.asarray(condition(PathBars(**columns, last_close=self.last_close)))
        paths, horizon = self.paths.shape[:2]
        if holds.dtype != np.bool_ or holds.shape not in {(paths,), (paths, horizon)}:
            raise ConfigError(
                f"a condition answers with bools of shape ({paths},), one a path, or "
                f"({paths}, {horizon}), one a bar; this one gave {holds.dtype} of shape "
                f"{holds.shape}"
            )
        if holds.ndim == 1:
            return float(holds.mean())
        return pd.Series(holds.mean(axis=0), index=self._index, name="probability")

    def returns(self, horizon: int | None = None) -> Doubles:
        """Return of each path from the last close seen to the close of a bar to come.

        Args:
            horizon: that bar, 1 the first to come; None takes the last.

        Returns:
            (P,) float64, 0.01 for one percent.

        Raises:
            BarDataError: the last close is not positive, and a return means nothing.
            ConfigError: the forecast has no such bar.
        """
        bars = self.paths.shape[1]
        try:
            bar = bars if horizon is None else operator.index(horizon)
        except TypeError as bad:
            raise ConfigError(f"horizon is a whole number of bars, got {horizon!r}") from bad
        if not 1 <= bar <= bars:
            raise ConfigError(f"horizon must lie in 1 to {bars}, the bars forecast, got {bar}")
        if not self.last_close > 0:
            raise BarDataError(
                f"{self._who}: a return needs a positive last close, got {self.last_close:g}; take "
                "differences of paths"
            )
        return np.asarray(self.paths[:, bar - 1, CLOSE].astype(np.float64) / self.last_close - 1)

    def volatility(self) -> Doubles:
        """Realised volatility of each path, per bar.

        The square root of the mean squared log return from close to close, the first from the
        last close seen; no mean is taken off.

        Returns:
            (P,) float64; times sqrt(bars a year) for a year's.

        Raises:
            BarDataError: a close is not positive.
        """
        first = np.full((len(self.paths), 1), self.last_close)
        closes = np.concatenate((first, self.paths[:, :, CLOSE]), axis=1, dtype=np.float64)
        if not (closes > 0).all():
            path, bar = np.argwhere(~(closes > 0))[0]
            where = f"path {path}, bar {bar}, closes at" if bar else "the last close seen is"
            raise BarDataError(
                f"{self._who}: volatility needs positive closes, but {where} "
                f"{closes[path, bar]:g}; coherent=True makes the paths of priced series positive"
            )
        moves = np.diff(np.log(closes), axis=1)
        return np.asarray(np.sqrt((moves**2).mean(axis=1)))

    def to_frame(self) -> pd.DataFrame:
        """All paths, one bar a row: the six columns on (path, datetime), paths from 0."""
        index = pd.MultiIndex.from_product(
            [range(len(self.paths)), self._index], names=["path", "datetime"]
        )
        table = self.paths.reshape(len(index), -1).copy()
        return pd.DataFrame(table, index=index, columns=list(BAR_COLUMNS))

    def __repr__(self) -> str:
        paths, horizon = self.paths.shape[:2]
        is_daily = (self.times == self.times.astype("datetime64[D]")).all()
        first, last = (
            str(np.datetime_as_string(time, unit="D" if is_daily else "m")).replace("T", " ")
            for time in self.times[[0, -1]]
        )
        if self.last_close > 0:
            moves, what, form = self.returns(), "return", "+.2%"
        else:
            moves, what, form = self.paths[:, -1, CLOSE].astype(np.float64), "close", ".4g"
        low, high = quantiles_over_paths(moves, (0.05, 0.95), self.is_calibrated)
        name = f"{self.name}: " if self.name else ""
        begin = "anchored" if self.anchored else "not anchored"
        return (
            f"<Forecast {name}{paths} paths of {horizon} bars, {first} to {last}, {begin}, "
            f"{self.calibration}; "
            f"expected {what} {moves.mean():{form}}, 5-95 %: {low:{form}} to {high:{form}}>"
        )

    @property
    def _index(self) -> pd.DatetimeIndex:
        return pd.DatetimeIndex(self.times)

    @property
    def _who(self) -> str:
        return self.name or "forecast"

    def _by_time(self, table: Floats) -> pd.DataFrame:
        return pd.DataFrame(table, index=self._index, columns=list(BAR_COLUMNS))
