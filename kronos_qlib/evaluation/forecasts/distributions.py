"""Distributions of what comes: what every one gives, that of sampled paths, and what each loses.

Everything is measured in returns from the last close seen, for each bar of the horizon.

Shape letters: N windows, P paths, H bars of the horizon.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.optimize import minimize_scalar

from kronos_qlib.errors import BarDataError, ConfigError
from kronos_qlib.extras import require
from kronos_qlib.schema import CLOSE

Floats = npt.NDArray[np.float64]
Times = npt.NDArray[np.datetime64]

LEVELS = (0.5, 0.8, 0.9)
"""Central intervals that are measured by default."""
VOLATILITY_BARS = 20
"""Past log returns that make a historical volatility: a month of days."""
STILL = 1e-6
"""Least historical volatility per bar: a price that stood still would have no spread."""
SCALES = (0.01, 100.0)
"""Bounds between which a factor on a spread is looked for."""


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What was known of each window, and what came.

    Raises:
        BarDataError: shapes do not agree, or a close is not positive: it has no return.
    """

    times: Times
    """(N,) datetime64 of the last bar seen."""
    past: Floats
    """(N, at least 2) closes seen, newest last, in money. The last of them is where returns start;
    the newest `volatility_bars` returns make the historical volatility."""
    closes: Floats
    """(N, H) closes that came, in money."""
    until: Times
    """(N, H) datetime64 of those."""
    volatility_bars: int = VOLATILITY_BARS
    history: npt.NDArray[np.floating] | None = None
    """(N, T, 4) open, high, low and close of bars seen, newest last, in money; NaN before an
    instrument's first. As long as there is: EWMA, GARCH and HAR are estimated on it. None: only
    `past` is known, which gives a rough EWMA and neither of the others."""

    def __post_init__(self) -> None:
        windows, shape = len(self.times), self.closes.shape
        if (
            self.past.ndim != 2
            or self.closes.ndim != 2
            or self.until.shape != shape
            or not windows == len(self.past) == len(self.closes)
            or 0 in shape
        ):
            raise BarDataError(
                "expected times (N,), past (N, bars), closes and until (N, H), none empty, got "
                f"{self.times.shape}, {self.past.shape}, {shape} and {self.until.shape}"
            )
        if not 1 <= self.volatility_bars < self.past.shape[1]:
            raise ConfigError(
                f"volatility_bars must lie from 1 to {self.past.shape[1] - 1}, the returns in "
                f"{self.past.shape[1]} closes seen, got {self.volatility_bars}"
            )
        check_positive(self.past, "a close seen")
        check_positive(self.closes, "a close that came")
        if self.history is not None:
            self._check_history(self.history)

    def _check_history(self, history: npt.NDArray[np.floating]) -> None:
        if history.ndim != 3 or history.shape[::2] != (len(self.times), 4) or not history.shape[1]:
            raise BarDataError(
                "expected a history (N, T, 4) of open, high, low and close of "
                f"{len(self.times)} windows, got {history.shape}"
            )
        if not np.allclose(history[:, -1, CLOSE], self.last_close, rtol=1e-5, atol=0):
            raise BarDataError("the last close of `history` is not that of `past`")
        known = np.isfinite(history[:, :, CLOSE])
        if (known[:, :-1] & ~known[:, 1:]).any():
            raise BarDataError(
                "a history is NaN before an instrument's first bar only; leave out bars that are "
                "missing, so that its bars stand side by side"
            )
        check_positive(np.where(np.isnan(history), 1.0, history), "a price of the history")

    @property
    def last_close(self) -> Floats:
        """(N,) in money."""
        return self.past[:, -1]

    @property
    def closes_seen(self) -> Floats:
        """(N, T) as many as are known, newest last, NaN before the first."""
        if self.history is None:
            return self.past
        return np.asarray(self.history[:, :, CLOSE], dtype=np.float64)

    @cached_property
    def returns(self) -> Floats:
        """(N, H) from the last close seen."""
        return np.asarray(self.closes / self.last_close[:, None] - 1)

    @cached_property
    def realised_volatility(self) -> Floats:
        """(N, H) per bar, of the bars up to each: root mean squared log return, no mean off."""
        return realised_volatility(self.closes, self.last_close)

    @property
    def historical_volatility(self) -> Floats:
        """(N,) the same of the last `volatility_bars` bars seen, at least `STILL`."""
        seen = self.past[:, -self.volatility_bars - 1 :]
        return np.maximum(realised_volatility(seen[:, 1:], seen[:, 0])[:, -1], STILL)

    @property
    def horizon(self) -> int:
        """H, bars of the horizon."""
        return int(self.closes.shape[1])

    @cached_property
    def days(self) -> pd.DatetimeIndex:
        """(N,) the day of each window's last bar seen."""
        return pd.DatetimeIndex(self.times).normalize()

    def label_days(self, bar: int) -> int:
        """Days of the sample that a return to this bar runs over; at least 1.

        Returns over h days overlap with those of h - 1 days before. Fewer than there are days, so
        that even a short sample has an error.
        """
        sampled = self.days.unique().sort_values()
        last = pd.Series(self.until[:, bar - 1]).groupby(self.days).max().dt.normalize()
        met = sampled.searchsorted(last.to_numpy(), side="left") - np.arange(len(sampled)) - 1
        return int(max(min(met.max() + 1, len(sampled) - 1), 1))


class Distribution(Protocol):
    """Of the returns of every window to every bar of the horizon."""

    def crps(self, returns: Floats) -> Floats:
        """(N, H) continuous ranked probability score, in units of return."""

    def quantile(self, level: float) -> Floats:
        """(N, H) what the return stays below with this probability."""

    def mean(self) -> Floats:
        """(N, H) expected return."""

    def volatility(self) -> Floats:
        """(N, H) expected realised volatility per bar of the bars up to each."""

    def variance(self) -> Floats:
        """(N, H) expected mean squared log return of the bars up to each, for QLIKE."""

    def shortfall(self, level: float) -> Floats:
        """(N, H) expected return where it stays below the quantile of this level."""

    def log_paths(self, count: int, rng: np.random.Generator) -> Floats:
        """(N, P, H) paths of log returns from the last close; `count` of them where it draws."""

    def pit(self, returns: Floats, rng: np.random.Generator) -> Floats:
        """(N, H) probability integral transform: uniform if the distribution is right.

        Source:
            Diebold, Gunther and Tay, "Evaluating density forecasts", International Economic
            Review 39 (1998).
        """


@dataclass(frozen=True, eq=False)
class PathDistribution:
    """The distribution of sampled paths, each window's P paths taken as independent draws.

    CRPS is the fair estimator, mean |x - y| - sum over x, x' of |x - x'| / (2 P (P - 1)), whose
    expectation does not depend on P: few paths are not punished for being few. Of paths that are
    `stratified` it is the empirical one with P^2 in place of P (P - 1): these are not draws but
    stand for a distribution, and lie further apart than draws would.
    """

    closes: Floats
    """(N, P, H) in money."""
    last_close: Floats
    """(N,) in money."""
    stratified: bool = False
    """The closes of a bar are equidistant quantiles, at (p - 1/2) / P, not independent draws: so
    calibrated paths are."""

    def __post_init__(self) -> None:
        shape = self.closes.shape
        if len(shape) != 3 or 0 in shape or self.last_close.shape != shape[:1]:
            raise BarDataError(
                "expected closes of paths (N, P, H) and last closes (N,), got "
                f"{shape} and {self.last_close.shape}"
            )
        if shape[1] < 2:
            raise ConfigError(
                "one path is no distribution: draw 2 at least, 19 for a 90 % interval"
            )
        check_positive(self.closes, "a path's close")
        check_positive(self.last_close, "a last close")

    @cached_property
    def returns(self) -> Floats:
        """(N, H, P) from the last close, in increasing order."""
        moves = self.closes / self.last_close[:, None, None] - 1
        return np.sort(moves.transpose(0, 2, 1), axis=-1)

    def crps(self, returns: Floats) -> Floats:
        """(N, H) CRPS of the paths, fair or empirical as the class says, in units of return.

        Source:
            Gneiting and Raftery, "Strictly proper scoring rules, prediction, and estimation", JASA
            102 (2007); the fair estimator is Ferro's, QJRMS 140 (2014).
        """
        # By probability-weighted moments: the fair estimator, without P x P differences.
        fair = scoring_rules().crps_ensemble(
            returns, self.returns, estimator="pwm", sorted_ensemble=True, backend="numpy"
        )
        if not self.stratified:
            return np.asarray(fair)
        spread = np.abs(self.returns - returns[..., None]).mean(axis=-1) - fair
        # (P - 1) / P of the fair spread is the empirical one.
        return np.asarray(fair + spread / self.returns.shape[-1])

    def quantile(self, level: float) -> Floats:
        """(N, H) quantiles over paths, in returns; see `sample_quantile`."""
        return sample_quantile(self.returns, level, stratified=self.stratified)

    def mean(self) -> Floats:
        """(N, H) mean return over paths."""
        return np.asarray(self.returns.mean(axis=-1))

    def volatility(self) -> Floats:
        """(N, H) mean over paths of the realised volatility per bar."""
        return np.asarray(self._volatility_of_paths.mean(axis=1))

    def variance(self) -> Floats:
        """(N, H) mean over paths of the realised variance per bar."""
        return np.asarray((self._volatility_of_paths**2).mean(axis=1))

    @cached_property
    def _volatility_of_paths(self) -> Floats:
        windows, paths, horizon = self.closes.shape
        start = np.repeat(self.last_close, paths)
        each = realised_volatility(self.closes.reshape(-1, horizon), start)
        return each.reshape(windows, paths, horizon)

    def shortfall(self, level: float) -> Floats:
        """(N, H) mean of the lowest share `level` of the paths; a path at its edge counts in part.

        Raises:
            ConfigError: too few paths for the quantile of this level.
        """
        highest = self.quantile(level)
        weights = np.clip(level * self.returns.shape[-1] - np.arange(self.returns.shape[-1]), 0, 1)
        # With few draws the quantile of a further draw lies below their own: no mean above it.
        return np.asarray(np.minimum(self.returns @ (weights / weights.sum()), highest))

    def log_paths(self, count: int, rng: np.random.Generator) -> Floats:
        """(N, P, H) the paths themselves, all of them; neither argument is used."""
        return np.asarray(np.log(self.closes / self.last_close[:, None, None]))

    def pit(self, returns: Floats, rng: np.random.Generator) -> Floats:
        """(N, H) rank of what came among the paths, spread evenly over that rank's share.

        Of P paths and what came any may be the lowest, so rank r covers r / (P + 1) to
        (r + 1) / (P + 1); a tie takes any of the ranks that it covers. Of stratified paths, which
        stand in the middle of P equal shares, the outer two cover half of the others.
        """
        below = (self.returns < returns[..., None]).sum(axis=-1)
        equal = (self.returns == returns[..., None]).sum(axis=-1)
        paths = self.returns.shape[-1]
        place = below + rng.random(returns.shape) * (equal + 1)
        if self.stratified:
            edges = np.clip(np.arange(paths + 2) - 0.5, 0, paths) / paths
            return np.asarray(np.interp(place, np.arange(paths + 2), edges))
        return np.asarray(place / (paths + 1))


def sample_quantile(sample: Floats, level: float, *, stratified: bool = False) -> Floats:
    """(...) quantile of (..., P) draws that a further draw stays below with this probability.

    Of P draws and one more any may be the lowest: the k-th of P stays above it k times in P + 1.
    So the level stands at place level x (P + 1), between two draws on the straight line. numpy's
    usual quantile stands at 1 + level x (P - 1): its 90 % interval of 20 draws holds 82 %.

    Args:
        sample: (..., P). level: between 0 and 1.
        stratified: they are no draws but the quantiles (p - 1/2) / P: the level stands at place
            level x P + 1/2.

    Raises:
        ConfigError: the level lies beyond the lowest or the highest draw.

    Source:
        Hyndman and Fan, "Sample quantiles in statistical packages", The American Statistician 50
        (1996), definitions 6 and 5.
    """
    draws = sample.shape[-1]
    outer = min(level, 1 - level)
    place = outer * draws + 0.5 if stratified else outer * (draws + 1)
    if not 0 < level < 1 or place < 1 - 1e-9:
        needed = None
        if 0 < level < 1:
            needed = int(np.ceil((0.5 / outer if stratified else 1 / outer - 1) - 1e-9))
        what = f"{needed} draws at least" if needed else "a level between 0 and 1"
        raise ConfigError(f"quantile {level:g} of {draws} draws needs {what}: raise `paths`")
    method: Literal["hazen", "weibull"] = "hazen" if stratified else "weibull"
    return np.asarray(np.quantile(sample, level, axis=-1, method=method))


def realised_volatility(closes: Floats, start: Floats) -> Floats:
    """(rows, H) root mean squared log return of the bars up to each.

    Args:
        closes: (rows, H) positive. start: (rows,) the closes before.
    """
    moves = np.diff(np.log(np.concatenate((start[:, None], closes), axis=1)), axis=1)
    bars = np.arange(1, closes.shape[1] + 1)
    return np.asarray(np.sqrt(np.cumsum(moves**2, axis=1) / bars))


def tail_levels(level: float) -> tuple[float, float]:
    """The two quantile levels of a central interval.

    Raises:
        ConfigError: the level does not lie between 0 and 1.
    """
    if not 0 < level < 1:
        raise ConfigError(f"the level of an interval lies between 0 and 1, got {level:g}")
    return (1 - level) / 2, (1 + level) / 2


def interval(distribution: Distribution, level: float) -> tuple[Floats, Floats]:
    """Central interval of this level, low and high end, each (N, H) in returns."""
    low, high = tail_levels(level)
    return distribution.quantile(low), distribution.quantile(high)


def losses_of(
    distribution: Distribution, outcomes: Outcomes, levels: Sequence[float] = LEVELS
) -> dict[str, Floats]:
    """What it lost by each measure, (N, H): in units of return, of return squared for the two mse.

    pinball: mean over both ends of the intervals of `levels` and the median. mae, mse: of the mean
    path. volatility_mae, and volatility_mse too: of the expected realised volatility per bar.
    qlike: log of the expected variance per bar + realised variance / expected; it exists where a
    bar did not move too, and differences of it are those of the usual form. Not of a forecast
    that expects no movement at all.

    Source:
        QLIKE: Patton, "Volatility forecast comparison using imperfect volatility proxies", Journal
        of Econometrics 160 (2011): it ranks forecasts as true variance would.
        Pinball: Koenker and Bassett, "Regression quantiles", Econometrica 46 (1978). CRPS:
        Gneiting and Raftery, JASA 102 (2007).
    """
    tails = sorted({0.5, *(tail for level in levels for tail in tail_levels(level))})
    came = outcomes.returns
    quantile_score = scoring_rules().quantile_score
    pinball = [quantile_score(came, distribution.quantile(one), one) for one in tails]
    missed = distribution.mean() - came
    volatility = distribution.volatility() - outcomes.realised_volatility
    losses = {
        "crps": distribution.crps(came),
        "pinball": np.mean(pinball, axis=0),
        "mae": np.abs(missed),
        "mse": missed**2,
        "volatility_mae": np.abs(volatility),
        "volatility_mse": volatility**2,
    }
    variance = distribution.variance()
    if (variance > 0).any():
        variance = np.maximum(variance, STILL**2)
        losses["qlike"] = np.log(variance) + outcomes.realised_volatility**2 / variance
    return losses


def check_positive(closes: Floats, what: str) -> None:
    """Check closes of any shape (...): without a positive number there is no log return.

    Raises:
        BarDataError: one is not positive or not finite; names its place.
    """
    good = (closes > 0) & np.isfinite(closes)
    if not good.all():
        where = np.argwhere(~good)[0]
        raise BarDataError(
            f"{what} is {closes[tuple(where)]:g} (window {where[0]}), and returns need positive "
            "ones; coherent=True makes the paths of priced series positive"
        )


def best_factor(loss: Callable[[float], float]) -> float:
    """Where within `SCALES` a loss with one minimum is least."""
    found = minimize_scalar(
        lambda power: loss(float(np.exp(power))),
        bounds=np.log(SCALES),
        method="bounded",
        options={"xatol": 1e-4},
    )
    return float(np.exp(found.x))


def scoring_rules() -> Any:
    """The package scoringrules.

    Raises:
        MissingDependencyError: it is not installed; it comes with the extra "report".
    """
    return require("scoringrules", for_="scoring a forecast")
