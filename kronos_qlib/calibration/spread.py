"""The scale of the return over each bar of a horizon, from past volatility: a regression.

Shape letters: N windows, H bars of the horizon, R regressors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kronos_qlib.calibration.student import student_crps
from kronos_qlib.errors import BarDataError, short_repr
from kronos_qlib.settings import check_number, check_numbers, check_whole, require

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
MOST_FACTOR = 100.0
"""Largest intercept, slope or tilt; those of a fit are about 1."""
MOST_COUNT = 2**31
"""Largest number of windows or bars in a file."""
WINDOWS_EACH = 10
"""Windows for each parameter, at least."""
ITERATIONS = 200
"""Of the optimiser, at most."""
STEP = 1e-4
"""Of the numerical derivative."""
GRID = 4000
"""Points that the CRPS is computed at."""
SMALL = 1e-8
"""Share of a curvature that keeps the matrix of them invertible."""


def windows_needed(regressors: int) -> int:
    """The fewest windows that a spread with this many regressors is fitted on."""
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
        is_named = isinstance(self.names, tuple) and all(type(one) is str for one in self.names)
        require(is_named, f"names must be names of regressors, got {short_repr(self.names)}")
        check_numbers(self, "intercepts", count=3, most=MOST_FACTOR)
        check_numbers(self, "slopes", "tilts", count=len(self.names), most=MOST_FACTOR)
        check_number(self, "dof")
        most = LEAST_DOF + np.exp(MOST_FREE)
        require(
            LEAST_DOF <= self.dof <= most,
            f"dof must lie from {LEAST_DOF} to {most:.1f}, got {self.dof:g}",
        )
        check_whole(self, "horizon", "windows", most=MOST_COUNT)

    @classmethod
    def fit(cls, known: Regressors, returns: Floats) -> SpreadModel:
        """The parameters of the least mean CRPS, each bar's relative to the others'.

        Args:
            known: of N windows.
            returns: (N, H) log returns from the last close to each bar.

        Raises:
            ConfigError: there are too few windows for the parameters.
            BarDataError: a number is not finite, or no price ever moved.
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
        _check_finite(known, returns)
        if not returns.any():
            raise BarDataError("no close of the windows to fit on differs from the last one seen")
        powers = _powers(horizon, horizon)
        fixed = _walk(known, horizon)
        usual = np.abs(returns).mean(axis=0)
        # A bar to which no price moved cannot weigh infinitely.
        weights = 1 / np.maximum(usual, usual.mean() / 100 + 1e-12) / returns.size
        moments = _moments(known.values, powers)
        # The variance of the last terms, those with slopes and tilts.
        size = returns.size
        widths = np.diag(moments)[3:] / size - (moments[0, 3:] / size) ** 2
        penalties = RIDGE * np.concatenate((np.zeros(3), np.maximum(widths, 0), [0.0]))
        # The search is in units in which the curvature is about the same in all directions: the
        # regressors say much the same, and would make it long.
        curvature = np.eye(count)
        curvature[:-1, :-1] = moments / size
        curvature += np.diag(2 * penalties + SMALL * np.diag(curvature) + SMALL)
        units = np.linalg.inv(np.linalg.cholesky(curvature)).T

        def loss(moved: Floats) -> tuple[float, Floats]:
            tried = units @ moved
            log_scale = fixed + _linear(tried[:-1], known.values, powers)
            value, slope, by_free = _crps(returns, log_scale, weights, tried[-1])
            by_power = slope @ powers.T
            gradient = np.concatenate(
                (
                    by_power.sum(axis=0),
                    known.values.T @ by_power[:, 0],
                    known.values.T @ by_power[:, 1],
                    [by_free],
                )
            )
            penalty = float((penalties * tried**2).sum())
            return value + penalty, units.T @ (gradient + 2 * penalties * tried)

        start = np.zeros(count)
        start[-1] = np.log(FIRST_DOF - LEAST_DOF)
        solution = minimize(
            loss,
            np.linalg.solve(units, start),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": ITERATIONS, "ftol": 1e-11, "gtol": 1e-7},
        )
        found = (units @ solution.x).tolist()
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
        powers = _powers(horizon, self.horizon)
        return np.asarray(_walk(known, horizon) + _linear(tried, known.values, powers))


def _check_finite(known: Regressors, returns: Floats) -> None:
    """Check what a spread is fitted on.

    Raises:
        BarDataError: names what is not finite.
    """
    for name, values in (("volatility", known.walk), ("season", known.ahead), ("return", returns)):
        if values is not None and not np.isfinite(values).all():
            raise BarDataError(f"a {name} of the windows to fit on is not a finite number")
    for name, column in zip(known.names, known.values.T, strict=True):
        if not np.isfinite(column).all():
            raise BarDataError(f"{name} of the windows to fit on is not always a finite number")


def _walk(known: Regressors, horizon: int) -> Floats:
    """(N, H) of the exponentially weighted volatility's random walk."""
    bars = np.arange(1, horizon + 1)
    found = known.walk[:, None] + 0.5 * np.log(bars)
    return np.asarray(found if known.ahead is None else found + known.ahead)


def _powers(horizon: int, longest: int) -> Floats:
    """(3, H) 1, u, and u^2."""
    bars = np.minimum(np.arange(1, horizon + 1), longest)
    u = np.log(bars) / np.log(REFERENCE)
    return np.stack((np.ones_like(u), u, u**2))


def _linear(tried: Floats, values: Floats, powers: Floats) -> Floats:
    """(N, H) what intercepts, slopes and tilts (3 + 2 R) add to the walk.

    Row by row, not as a product of matrices: a window's is the same to the last bit whatever other
    windows are with it.
    """
    slopes, tilts = tried[3:].reshape(2, -1)
    level, tilt = ((values * factors).sum(axis=1)[:, None] for factors in (slopes, tilts))
    return np.asarray(tried[:3] @ powers + level + tilt * powers[1])


def _moments(values: Floats, powers: Floats) -> Floats:
    """(3 + 2 R, 3 + 2 R) sums over windows and bars of the products of all pairs of terms."""
    ones = np.ones((len(values), 1))
    parts = [(ones, power) for power in powers] + [(values, power) for power in powers[:2]]
    return np.block([[(a.T @ b) * (p @ q) for b, q in parts] for a, p in parts])


def _crps(
    returns: Floats, log_scale: Floats, weights: Floats, free: float
) -> tuple[float, Floats, float]:
    """Weighted CRPS, its derivatives by the log scale, (N, H), and by `free`."""
    from scipy.interpolate import CubicHermiteSpline

    scale = np.exp(log_scale)
    z = returns / scale
    weighted = scale * weights
    # Read between the points of a grid, to some 12 digits: the t's probability takes long, and by
    # its degrees of freedom there is no closed form but a difference.
    place = np.arcsinh(np.abs(z))
    grid = np.linspace(0, max(float(place.max()), 1.0), GRID)
    at = np.sinh(grid)
    (low, _), (high, _) = (student_crps(at, _dof(free + step)) for step in (-STEP, STEP))
    values, slopes = student_crps(at, _dof(free))
    curve = CubicHermiteSpline(grid, values, slopes * np.cosh(grid))
    crps = curve(place)
    slope = np.sign(z) * curve(place, 1) / np.hypot(1, z)
    by_free = np.interp(place, grid, (high - low) / (2 * STEP))
    return (
        float((crps * weighted).sum()),
        np.asarray((crps - z * slope) * weighted),
        float((by_free * weighted).sum()),
    )


def _dof(free: float) -> float:
    return float(LEAST_DOF + np.exp(min(free, MOST_FREE)))
