"""Simulated bars and samples of windows, for the tests of calibration."""

from __future__ import annotations

import numpy as np

from kronos_qlib.calibration.calibration import Sample
from kronos_qlib.calibration.past_volatility import ESTIMATES
from kronos_qlib.calibration.spread import Regressors

STEPS = 16
"""Steps of a walk within a bar; so few make its range narrow."""

GARCH_MOVE, GARCH_KEEP = 0.08, 0.89
"""Share of the last squared move and of the last variance in the next."""


def walk_bars(
    rng: np.random.Generator, scales: np.ndarray, start: float = 10.0, within: int = STEPS
) -> np.ndarray:
    """(..., T, 6) bars of a walk whose volatility over each bar is `scales` (..., T)."""
    steps = rng.normal(size=(*scales.shape, within)) * scales[..., None] / np.sqrt(within)
    flat = np.cumsum(steps.reshape(*scales.shape[:-1], -1), axis=-1).reshape(steps.shape)
    opened = flat[..., 0] - steps[..., 0]
    logs = np.concatenate((opened[..., None], flat), axis=-1)
    prices = start * np.exp(
        np.stack((logs[..., 0], logs.max(axis=-1), logs.min(axis=-1), logs[..., -1]), axis=-1)
    )
    volume = rng.uniform(1e3, 1e5, scales.shape)
    return np.concatenate(
        (prices, volume[..., None], (volume * prices[..., 3])[..., None]), axis=-1
    )


def daily_stamps(windows: int, bars: int, first: int = 0) -> np.ndarray:
    """(N, T, 5) time fields of one bar a day."""
    days = np.arange(first, first + bars)
    zeros = np.zeros_like(days)
    fields = np.stack((zeros, zeros, days % 5, days % 28 + 1, days // 28 % 12 + 1), axis=-1)
    return np.broadcast_to(fields, (windows, bars, 5)).copy()


def hourly_stamps(windows: int, bars: int, first: int = 0) -> np.ndarray:
    """(N, T, 5) time fields of a bar each hour, day and night."""
    hours = np.arange(first, first + bars)
    days = hours // 24
    fields = np.stack(
        (np.zeros_like(hours), hours % 24, days % 7, days % 28 + 1, days // 28 % 12 + 1), axis=-1
    )
    return np.broadcast_to(fields, (windows, bars, 5)).copy()


def volatile_scales(
    rng: np.random.Generator, names: int, bars: int, level: float = 0.02
) -> np.ndarray:
    """(names, bars) volatilities: log autoregressions, stochastic volatility."""
    found = np.zeros((names, bars))
    state = rng.normal(size=names) * 0.5
    for bar in range(bars):
        state = 0.97 * state + 0.12 * rng.normal(size=names)
        found[:, bar] = level * np.exp(state)
    return found


def garch_bars(
    rng: np.random.Generator, names: int, bars: int, level: float = 0.02
) -> tuple[np.ndarray, np.ndarray]:
    """(names, bars, 6) of a GARCH(1, 1), and the true variance of each bar, (names, bars)."""
    variance = np.full(names, level**2)
    last = np.full(names, 10.0)
    found, true = [], np.zeros((names, bars))
    for bar in range(bars):
        true[:, bar] = variance
        one = walk_bars(rng, np.sqrt(variance)[:, None])
        one[..., :4] *= (last / 10)[:, None, None]
        moves = np.log(one[:, 0, 3] / last)
        last = one[:, 0, 3]
        variance = (1 - GARCH_MOVE - GARCH_KEEP) * level**2 + (
            GARCH_MOVE * moves**2 + GARCH_KEEP * variance
        )
        found.append(one)
    return np.concatenate(found, axis=1), true


def sample_from(
    bars: np.ndarray, lookback: int, horizon: int, every: int = 7, **more: object
) -> Sample:
    """Windows of daily bars (names, T, 6), each day's of all names together."""
    ends = np.arange(lookback, bars.shape[1] - horizon + 1, every)
    seen = np.concatenate([bars[:, end - lookback : end] for end in ends])
    came = np.concatenate([bars[:, end : end + horizon, 3] for end in ends])
    stamps = daily_stamps(len(seen), lookback + horizon)
    days = np.datetime64("2020-01-01", "ns") + ends.astype("timedelta64[D]")
    return Sample(
        bars=seen,
        stamps=stamps[:, :lookback],
        ahead=stamps[:, lookback:],
        closes=came,
        times=np.repeat(days, len(bars)),
        **more,  # type: ignore[arg-type]
    )


def planted(
    windows: int = 3000, horizon: int = 5, dof: float = 4.5, seed: int = 0, noise: int = 7
) -> tuple[Regressors, np.ndarray, np.ndarray]:
    """Regressors, returns and the true log scale: -0.1 + 0.5 r0 - 0.2 u r1, the others noise."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(windows, noise)) * 0.4
    walk = -4 + 0.5 * rng.normal(size=windows)
    bars = np.arange(1, horizon + 1)
    u = np.log(bars) / np.log(10)
    log_scale = walk[:, None] + 0.5 * np.log(bars) - 0.1
    log_scale = log_scale + 0.5 * values[:, :1] - 0.2 * u * values[:, 1:2]
    returns = rng.standard_t(dof, size=log_scale.shape) * np.exp(log_scale)
    return Regressors(ESTIMATES[1 : noise + 1], walk, values), returns, log_scale
