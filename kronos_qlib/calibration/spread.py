"""The scale of the return over each bar of a horizon, from past volatility: a regression.

Shape letters: N windows, H bars of the horizon, R regressors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kronos_qlib.calibration.student import student_crps
from kronos_qlib.errors import BarDataError
from kronos_qlib.settings import check_whole, require

Floats = npt.NDArray[np.float64]

REFERENCE = 10
"""Bars at which the logarithm of the horizon is 1."""
RIDGE = 1e-4
"""Penalty on squared slopes, of standardised regressors, in units of relative CRPS: where the data
decide nothing the scale is that of the exponentially weighted volatility."""
LEAST_DOF = 2.1
"""Degrees of freedom: from there on a variance exists."""
FIRST_DOF = 5.0
"""That the search begins with."""
MOST_FREE = 5.0
"""Logarithm of the most degrees of freedom: beyond them the t is a normal."""
WINDOWS_EACH = 10
"""Windows for each parameter, at least."""
ITERATIONS = 200
"""Of the optimiser, at most."""
STEP = 1e-4
"""Of the numerical derivative."""


def windows_needed(regressors: int) -> int:
    """Windows that a spread with so many regressors is fitted on, at least."""
    return WINDOWS_EACH * (3 + 2 * regressors + 1)


@dataclass(frozen=True)
class Regressors:
    """What is known of windows when their forecasts are made.

    Raises:
        BarDataError: shapes do not agree.
    """

    names: tuple[str, ...]
    """(R,) of the columns of `values`."""
    walk: Floats
    """(N,) log of the volatility of one bar, which the others are relative to."""
    values: Floats
    """(N, R) logarithms of volatilities relative to the walk's or to their own past."""
    ahead: Floats | None = None
    """(N, H) log factors on the volatility of the whole time up to each bar to come, for the times
    of day in it; None: none."""

    def __post_init__(self) -> None:
        if self.values.shape != (len(self.walk), len(self.names)) or (
            self.ahead is not None and len(self.ahead) != len(self.walk)
        ):
            raise BarDataError(
                f"expected {len(self.names)} regressors of {len(self.walk)} windows, got "
                f"{self.values.shape}"
            )

    def __len__(self) -> int:
        return len(self.walk)

    def take(self, which: npt.NDArray[np.generic]) -> Regressors:
        """The chosen windows only, by places or by a flag each."""
        ahead = None if self.ahead is None else self.ahead[which]
        return Regressors(self.names, self.walk[which], self.values[which], ahead)


@dataclass(frozen=True)
class SpreadModel:
    """Scale of a Student's t for the log return to each bar of the horizon.

    With u = log(h) / log(10) of the bar h, at most that of the longest horizon fitted:

        log scale = log ewma + log(h) / 2 + c0 + c1 u + c2 u^2
                  + sum over r of (a_r + b_r u) regressor_r

    so that it contains the random walk of the exponentially weighted volatility (all zeros) and
    those of every other estimate, and may trust short memory for near bars and long for far ones.

    Raises:
        ConfigError: a number is missing or cannot work.

    Source:
        Nonhomogeneous regression: Gneiting, Raftery, Westveld and Goldman, "Calibrated
        probabilistic forecasting using ensemble model output statistics and minimum CRPS
        estimation", Monthly Weather Review 133 (2005).
    """

    names: tuple[str, ...]
    """(R,) of the regressors."""
    intercepts: tuple[float, ...]
    """c0, c1, c2."""
    slopes: tuple[float, ...]
    """(R,) a."""
    tilts: tuple[float, ...]
    """(R,) b."""
    dof: float
    """Degrees of freedom of the t."""
    horizon: int
    """Bars that it was fitted on; farther ones take its slopes and grow with the square root."""
    windows: int
    """That it was fitted on."""

    def __post_init__(self) -> None:
        lengths = [len(self.intercepts), len(self.slopes), len(self.tilts)]
        expected = [3, len(self.names), len(self.names)]
        require(lengths == expected, f"expected {expected} numbers of a spread, got {lengths}")
        numbers = (*self.intercepts, *self.slopes, *self.tilts, self.dof)
        require(bool(np.isfinite(numbers).all()), f"numbers of a spread are finite, got {numbers}")
        require(self.dof >= LEAST_DOF, f"dof must be at least {LEAST_DOF}, got {self.dof:g}")
        check_whole(self, "horizon", "windows")

    @classmethod
    def fit(cls, known: Regressors, returns: Floats) -> SpreadModel:
        """The parameters of the least mean CRPS, each bar's relative to the others'.

        Args:
            known: of N windows.
            returns: (N, H) log returns from the last close to each bar.

        Raises:
            ConfigError: there are too few windows for the parameters.
        """
        # Here: scipy adds filters of warnings, and importing the networks changes no global state.
        from scipy.optimize import minimize

        windows, horizon = returns.shape
        count = 3 + 2 * len(known.names) + 1
        needed = windows_needed(len(known.names))
        require(
            windows >= needed,
            f"a calibration is fitted on {needed} windows at least, got {windows}",
        )
        terms = _terms(known.values, horizon, horizon)
        fixed = _walk(known, horizon)
        usual = np.abs(returns).mean(axis=0)
        # A bar to which no price moved cannot weigh infinitely.
        weights = 1 / np.maximum(usual, usual.mean() / 100 + 1e-12) / returns.size
        widths = terms[3:].std(axis=(1, 2))
        penalties = RIDGE * np.concatenate((np.zeros(3), widths**2, [0.0]))

        def loss(tried: Floats) -> tuple[float, Floats]:
            log_scale = fixed + np.tensordot(tried[:-1], terms, axes=1)
            value, slope = _crps(returns, log_scale, weights, _dof(tried[-1]))
            # No closed form by the degrees of freedom.
            nearby = [
                _crps(returns, log_scale, weights, _dof(tried[-1] + step))[0]
                for step in (-STEP, STEP)
            ]
            gradient = np.tensordot(terms, slope, axes=((1, 2), (0, 1)))
            gradient = np.append(gradient, (nearby[1] - nearby[0]) / (2 * STEP))
            penalty = float((penalties * tried**2).sum())
            return value + penalty, gradient + 2 * penalties * tried

        start = np.zeros(count)
        start[-1] = np.log(FIRST_DOF - LEAST_DOF)
        found = minimize(
            loss, start, jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS}
        ).x.tolist()
        split = 3 + len(known.names)
        return cls(
            known.names,
            tuple(found[:3]),
            tuple(found[3:split]),
            tuple(found[split:-1]),
            _dof(found[-1]),
            horizon,
            windows,
        )

    def log_scale(self, known: Regressors, horizon: int) -> Floats:
        """(N, H) logarithm of the scale of the log return to each of `horizon` bars.

        Raises:
            ConfigError: the regressors are others than those that it was fitted on.
        """
        require(
            known.names == self.names,
            f"the spread was fitted on {', '.join(self.names)}, got {', '.join(known.names)}",
        )
        tried = np.array((*self.intercepts, *self.slopes, *self.tilts))
        terms = _terms(known.values, horizon, self.horizon)
        return np.asarray(_walk(known, horizon) + np.tensordot(tried, terms, axes=1))


def _walk(known: Regressors, horizon: int) -> Floats:
    """(N, H) of the exponentially weighted volatility's random walk."""
    bars = np.arange(1, horizon + 1)
    found = known.walk[:, None] + 0.5 * np.log(bars)
    return np.asarray(found if known.ahead is None else found + known.ahead)


def _terms(values: Floats, horizon: int, longest: int) -> Floats:
    """(terms, N, H) what the parameters but the last are factors of."""
    bars = np.minimum(np.arange(1, horizon + 1), longest)
    u = np.broadcast_to(np.log(bars) / np.log(REFERENCE), (len(values), horizon))
    known = values.T[:, :, None]
    powers = np.stack((np.ones_like(u), u, u**2))
    return np.concatenate((powers, np.broadcast_to(known, (len(known), *u.shape)), known * u))


def _crps(returns: Floats, log_scale: Floats, weights: Floats, dof: float) -> tuple[float, Floats]:
    """Weighted CRPS and its derivative by the log scale, (N, H)."""
    scale = np.exp(log_scale)
    z = returns / scale
    crps, slope = student_crps(z, dof)
    weighted = scale * weights
    return float((crps * weighted).sum()), np.asarray((crps - z * slope) * weighted)


def _dof(free: float) -> float:
    return float(LEAST_DOF + np.exp(min(free, MOST_FREE)))
