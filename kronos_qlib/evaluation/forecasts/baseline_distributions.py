"""Distributions that a forecast has to beat: the last price, and a walk of past volatility.

Shape letters: N windows, H bars of the horizon.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.special import gammaln
from scipy.stats import norm

from kronos_qlib.evaluation.forecasts.distributions import (
    Floats,
    Outcomes,
    best_factor,
    scoring_rules,
)


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

    def pit(self, returns: Floats, rng: np.random.Generator) -> Floats:
        """(N, H) 0 below the last price, 1 above it, a random number from `rng` where they tie."""
        return np.where(returns == 0, rng.random(returns.shape), (returns > 0).astype(np.float64))


@dataclass(frozen=True, eq=False)
class VolatilityWalk:
    """A random walk with the volatility of the past: normal log returns, in closed form.

    The expected price is the last one. A spread of volatility x sqrt(bars), times a factor for
    each bar that `fit` chooses: 1 unless it was called.
    """

    volatility_per_bar: Floats
    """(N,) of log returns."""
    scale: Floats
    """(H,)"""

    @classmethod
    def of(cls, outcomes: Outcomes, scale: Floats | None = None) -> VolatilityWalk:
        """The walk of windows' historical volatility; `scale` (H,) multiplies it, None by 1."""
        factors = np.ones(outcomes.horizon) if scale is None else scale
        return cls(outcomes.historical_volatility, factors)

    def fit(self, returns: Floats) -> VolatilityWalk:
        """Another with the factor, for each bar, that minimises mean CRPS on (N, H) returns."""

        def factor_of(bar: int) -> float:
            def loss(factor: float) -> float:
                spread = self._spread[:, bar] * (factor / self.scale[bar])
                return float(_lognormal_crps(returns[:, bar], spread).mean())

            return best_factor(loss)

        return replace(self, scale=np.array([factor_of(bar) for bar in range(len(self.scale))]))

    @property
    def _spread(self) -> Floats:
        """(N, H) standard deviation of the log return."""
        bars = np.arange(1, len(self.scale) + 1)
        return np.asarray(self.volatility_per_bar[:, None] * np.sqrt(bars) * self.scale)

    def crps(self, returns: Floats) -> Floats:
        """(N, H) CRPS of a lognormal price, in units of return, in closed form.

        Source:
            Baran and Lerch, "Log-normal distribution based EMOS models for probabilistic wind
            speed forecasting", QJRMS 141 (2015).
        """
        return _lognormal_crps(returns, self._spread)

    def quantile(self, level: float) -> Floats:
        """(N, H) quantiles of the return."""
        spread = self._spread
        return np.asarray(np.expm1(spread * norm.ppf(level) - spread**2 / 2))

    def mean(self) -> Floats:
        """(N, H) zeros: the expected price is the last one."""
        return np.zeros_like(self._spread)

    def volatility(self) -> Floats:
        """(N, H) expected realised volatility per bar of the bars up to each."""
        # The root of a mean of h squared normals is that of a chi-squared: below 1 on average.
        bars = np.arange(1, len(self.scale) + 1)
        expected = np.sqrt(2 / bars) * np.exp(gammaln((bars + 1) / 2) - gammaln(bars / 2))
        return np.asarray(self._spread / np.sqrt(bars) * expected)

    def pit(self, returns: Floats, rng: np.random.Generator) -> Floats:
        """(N, H) probability of less than what came; `rng` is not used, there are no ties."""
        spread = self._spread
        return np.asarray(norm.cdf((np.log1p(returns) + spread**2 / 2) / spread))


def _lognormal_crps(returns: Floats, spread: Floats) -> Floats:
    # A price's score is that of its return: what is added to both cancels.
    found = scoring_rules().crps_lognormal(1 + returns, -(spread**2) / 2, spread, backend="numpy")
    return np.asarray(found)
