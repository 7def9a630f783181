"""Distributions that a forecast has to beat: the last price, and a walk of past volatility.

Shape letters: N windows, H bars of the horizon.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from scipy.special import beta, gammaln, ndtr, ndtri, stdtr, stdtrit

from kronos_qlib.evaluation.forecasts.distributions import (
    Floats,
    Outcomes,
    best_factor,
    scoring_rules,
)

DEGREES = (3.0, 4.0, 6.0, 10.0, np.inf)
"""Degrees of freedom that `VolatilityWalk.fit` tries; CRPS knows them no better."""
LOWEST = -1 + 1e-6
"""Least return of a drawn path: a price stays positive."""


@dataclass(frozen=True, eq=False)
class LastPrice:
    """A point mass on the last price: CRPS is the absolute error."""

    windows: int
    horizon: int

    def crps(self, returns: Floats) -> Floats:
        """(N, H) absolute error, in units of return."""
        return np.abs(returns)

    def quantile(self, level: float) -> Floats:
        """(N, H) zeros: every quantile is the last price."""
        return np.zeros((self.windows, self.horizon))

    def mean(self) -> Floats:
        """(N, H) zeros: no return is expected."""
        return np.zeros((self.windows, self.horizon))

    def volatility(self) -> Floats:
        """(N, H) zeros: the price does not move."""
        return np.zeros((self.windows, self.horizon))

    def variance(self) -> Floats:
        """(N, H) zeros: the price does not move."""
        return np.zeros((self.windows, self.horizon))

    def shortfall(self, level: float) -> Floats:
        """(N, H) zeros: nothing lies below."""
        return np.zeros((self.windows, self.horizon))

    def log_paths(self, count: int, rng: np.random.Generator) -> Floats:
        """(N, count, H) zeros: every path stands still."""
        return np.zeros((self.windows, count, self.horizon))

    def pit(self, returns: Floats, rng: np.random.Generator) -> Floats:
        """(N, H) 0 below the last price, 1 above it, a random number from `rng` where they tie."""
        return np.where(returns == 0, rng.random(returns.shape), (returns > 0).astype(np.float64))


@dataclass(frozen=True, eq=False)
class VolatilityWalk:
    """A random walk with a forecast volatility; the expected price is the last one. Closed form.

    The return to a bar has the standard deviation volatility x sqrt(bars), times a factor for each
    bar that `fit` chooses: 1 unless it was called. With infinite degrees of freedom log returns are
    normal. With finite ones the return itself has Student's distribution: a price whose log has it
    has neither mean nor CRPS. The two differ by the skewness of a lognormal, which is little at the
    spread of some days.
    """

    volatility_per_bar: Floats
    """(N,) of log returns, or (N, H) where the bars up to each have one of their own."""
    scale: Floats
    """(H,)"""
    degrees: Floats | None = None
    """(H,) or (N, H) degrees of freedom, above 2, or infinite; None: all infinite."""

    @classmethod
    def of(cls, outcomes: Outcomes, scale: Floats | None = None) -> VolatilityWalk:
        """The walk of windows' historical volatility; `scale` (H,) multiplies it, None by 1."""
        factors = np.ones(outcomes.horizon) if scale is None else scale
        return cls(outcomes.historical_volatility, factors)

    def fit(self, returns: Floats, *, has_tails: bool = False) -> VolatilityWalk:
        """Another with the factor, for each bar, that minimises mean CRPS on (N, H) returns.

        Args:
            returns: what came.
            has_tails: choose the degrees of freedom among `DEGREES` too; else they stay.
        """
        spread, degrees = self._spread, self._degrees

        def best(bar: int) -> tuple[float, float]:
            def loss(of: Floats, factor: float) -> float:
                reach = spread[:, bar] * (factor / self.scale[bar])
                return float(_crps(returns[:, bar], reach, of).mean())

            found = []
            candidates = [np.array(one) for one in DEGREES] if has_tails else [degrees[:, bar]]
            for of in candidates:
                factor = best_factor(partial(loss, of))
                found.append((loss(of, factor), factor, float(of.flat[0])))
            return min(found)[1:]

        scale, chosen = np.array([best(bar) for bar in range(len(self.scale))]).T
        return replace(self, scale=scale, degrees=chosen if has_tails else self.degrees)

    def fitted_as(self, other: VolatilityWalk) -> VolatilityWalk:
        """This volatility with the factors and degrees of freedom that were fitted to another."""
        return replace(self, scale=other.scale, degrees=other.degrees)

    @property
    def _bars(self) -> Floats:
        return np.arange(1.0, len(self.scale) + 1)

    @property
    def _spread(self) -> Floats:
        """(N, H) standard deviation of the return."""
        volatility = self.volatility_per_bar
        each = volatility if volatility.ndim == 2 else volatility[:, None]
        return np.asarray(each * np.sqrt(self._bars) * self.scale)

    @property
    def _degrees(self) -> Floats:
        """(N, H)"""
        degrees = np.array(np.inf) if self.degrees is None else self.degrees
        return np.broadcast_to(degrees, (len(self.volatility_per_bar), len(self.scale)))

    def crps(self, returns: Floats) -> Floats:
        """(N, H) CRPS of a lognormal price, or of Student's return, in units of return.

        Source:
            Baran and Lerch, "Log-normal distribution based EMOS models for probabilistic wind
            speed forecasting", QJRMS 141 (2015). Student: Jordan, Krüger and Lerch, "Evaluating
            probabilistic forecasts with scoringRules", Journal of Statistical Software 90 (2019).
        """
        return _crps(returns, self._spread, self._degrees)

    def quantile(self, level: float) -> Floats:
        """(N, H) quantiles of the return."""
        return _quantile(np.array(level), self._spread, self._degrees)

    def mean(self) -> Floats:
        """(N, H) zeros: the expected price is the last one."""
        return np.zeros_like(self._spread)

    def volatility(self) -> Floats:
        """(N, H) expected realised volatility per bar of the bars up to each, of normal bars."""
        # The root of a mean of h squared normals is that of a chi-squared: below 1 on average.
        bars = self._bars
        expected = np.sqrt(2 / bars) * np.exp(gammaln((bars + 1) / 2) - gammaln(bars / 2))
        return np.asarray(self._spread / np.sqrt(bars) * expected)

    def variance(self) -> Floats:
        """(N, H) expected mean squared log return of the bars up to each."""
        return np.asarray(self._spread**2 / self._bars)

    def shortfall(self, level: float) -> Floats:
        """(N, H) expected return below the quantile of this level.

        Source:
            McNeil, Frey and Embrechts, "Quantitative Risk Management", 2005, section 2.2.4.
        """
        spread, degrees = self._spread, self._degrees
        is_normal = np.isinf(degrees)
        normal = np.expm1(np.log(ndtr(ndtri(level) - spread) / level))
        finite = np.where(is_normal, 9.0, degrees)
        edge = stdtrit(finite, level)
        density = _density(edge, finite)
        student = -_width(spread, finite) * density * (finite + edge**2) / ((finite - 1) * level)
        return np.asarray(np.where(is_normal, normal, student))

    def log_paths(self, count: int, rng: np.random.Generator) -> Floats:
        """(N, count, H) drawn paths of log returns: each bar distributed as it is here.

        Their order along the horizon is that of a random walk of independent bars (a Gaussian
        copula): bars h and k >= h correlate by sqrt(h / k).
        """
        windows, horizon = self._spread.shape
        steps = rng.standard_normal((windows, count, horizon))
        ranks = ndtr(np.cumsum(steps, axis=-1) / np.sqrt(self._bars))
        returns = _quantile(ranks, self._spread[:, None], self._degrees[:, None])
        # Student's returns reach below -1, once in very many draws.
        return np.asarray(np.log1p(np.maximum(returns, LOWEST)))

    def pit(self, returns: Floats, rng: np.random.Generator) -> Floats:
        """(N, H) probability of less than what came; `rng` is not used, there are no ties."""
        spread, degrees = self._spread, self._degrees
        is_normal = np.isinf(degrees)
        finite = np.where(is_normal, 9.0, degrees)
        normal = ndtr((np.log1p(returns) + spread**2 / 2) / spread)
        return np.asarray(
            np.where(is_normal, normal, stdtr(finite, returns / _width(spread, finite)))
        )


def _width(spread: Floats, degrees: Floats) -> Floats:
    """Scale of Student's distribution of this standard deviation."""
    return np.asarray(spread * np.sqrt((degrees - 2) / degrees))


def _density(z: Floats, degrees: Floats) -> Floats:
    """Of the standard Student's distribution."""
    constant = np.sqrt(degrees) * beta(0.5, degrees / 2)
    return np.asarray((1 + z**2 / degrees) ** (-(degrees + 1) / 2) / constant)


def _quantile(level: Floats, spread: Floats, degrees: Floats) -> Floats:
    is_normal = np.isinf(degrees)
    found = np.expm1(spread * ndtri(level) - spread**2 / 2)
    if is_normal.all():
        return np.asarray(found)
    finite = np.where(is_normal, 9.0, degrees)
    return np.asarray(np.where(is_normal, found, _width(spread, finite) * stdtrit(finite, level)))


def _crps(returns: Floats, spread: Floats, degrees: Floats) -> Floats:
    is_normal = np.isinf(degrees)
    if is_normal.all():
        return _lognormal_crps(returns, spread)
    finite = np.where(is_normal, 9.0, degrees)
    width = _width(spread, finite)
    z = returns / width
    pairs = np.sqrt(finite) * beta(0.5, finite - 0.5) / ((finite - 1) * beta(0.5, finite / 2) ** 2)
    missed = z * (2 * stdtr(finite, z) - 1)
    missed += 2 * _density(z, finite) * (finite + z**2) / (finite - 1)
    student = width * (missed - 2 * pairs)
    if not is_normal.any():
        return np.asarray(student)
    return np.where(is_normal, _lognormal_crps(returns, spread), student)


def _lognormal_crps(returns: Floats, spread: Floats) -> Floats:
    # A price's score is that of its return: what is added to both cancels.
    found = scoring_rules().crps_lognormal(1 + returns, -(spread**2) / 2, spread, backend="numpy")
    return np.asarray(found)
