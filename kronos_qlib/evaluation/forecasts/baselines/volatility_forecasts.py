"""Volatility forecast from the bars seen: EWMA, GARCH(1,1)-t, log-range HAR; and that which came.

Each gives what a `VolatilityWalk` is made of: volatility per bar of the bars up to each bar of the
horizon. All read a window's own past only; HAR's coefficients are those of earlier windows.

Shape letters: N windows, T bars of their history, H bars of the horizon.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from kronos_qlib.errors import BarDataError
from kronos_qlib.evaluation.forecasts.baselines.baseline_distributions import VolatilityWalk
from kronos_qlib.evaluation.forecasts.distributions import STILL, Floats, Outcomes
from kronos_qlib.extras import require
from kronos_qlib.schema import CLOSE, OPEN

DECAY = 0.94
"""Of EWMA: RiskMetrics' for days."""
EWMA_BARS = 250
"""Returns that an EWMA reads: older ones weigh 2e-7 of the newest."""
GARCH_LEAST = 100
"""Fewest returns that a GARCH is fitted on; below, its window has the EWMA."""
GARCH_MOST = 10.0
"""Times that a GARCH volatility may be above or below the EWMA before it counts as failed."""
GARCH_START = (0.02, 0.06, 0.92, 6.0)
"""Omega, alpha, beta and degrees of freedom that a fit on returns of deviation 1 starts from."""
GARCH_SECONDS = 0.04
"""That a fit takes, on one core, of 100 to 1,000 returns alike."""
LEAST_DEGREES = 2.1
"""Of freedom: with 2 there is no variance."""
HAR_BARS = (1, 5, 22)
"""Bars of HAR's means."""
HAR_FLOOR = 0.05
"""Least variance of a bar, as a share of its window's median one: a bar that stood still has none,
and its log would outweigh all others."""


@dataclass(frozen=True, eq=False)
class VolatilityForecast:
    """Volatility of windows over their horizon, and where it is not the method's own."""

    per_bar: Floats
    """(N, H) root of the expected mean squared log return of the bars up to each."""
    degrees: Floats | None = None
    """(N, H) degrees of freedom of the return to each bar; None: normal."""
    fallbacks: npt.NDArray[np.bool_] | None = None
    """(N,) windows where the method failed and this is the EWMA; None: none can."""

    def walk(self) -> VolatilityWalk:
        """The distribution of returns, no factor fitted."""
        return VolatilityWalk(self.per_bar, np.ones(self.per_bar.shape[1]), self.degrees)


def ewma(outcomes: Outcomes, decay: float = DECAY) -> VolatilityForecast:
    """Exponentially weighted mean of squared log returns, the same for every bar of the horizon.

    Of a short past the weights are those of its returns, scaled to sum to 1.

    Source:
        RiskMetrics, Technical document, 4th edition, 1996.
    """
    moves = np.diff(np.log(outcomes.closes_seen[:, -EWMA_BARS - 1 :]), axis=1)
    weights = decay ** np.arange(moves.shape[1])[::-1] * np.isfinite(moves)
    variance = (weights * np.nan_to_num(moves) ** 2).sum(axis=1) / weights.sum(axis=1)
    return VolatilityForecast(_over_horizon(np.maximum(np.sqrt(variance), STILL), outcomes))


def realised(outcomes: Outcomes, weight: float = 1.0) -> VolatilityForecast:
    """The volatility of all bars that came, the same for every bar: no forecast but a bound.

    The return that is judged is part of it, so at bars near the horizon's end the bound is one that
    no forecast can reach. Of few bars it is a noisy measure of their true volatility: `weight`
    below 1 draws its log towards that of the EWMA.
    """
    came = np.maximum(outcomes.realised_volatility[:, -1], STILL)
    if weight < 1:
        came = came**weight * ewma(outcomes).per_bar[:, 0] ** (1 - weight)
    return VolatilityForecast(_over_horizon(came, outcomes))


def garch(outcomes: Outcomes) -> VolatilityForecast:
    """GARCH(1,1) with Student's innovations and no mean, fitted on each window's own history.

    Variances of the bars ahead are the recursion's expectations and add up to that of the return
    to each bar. Its degrees of freedom are such that the excess kurtosis 6 / (nu - 4) falls as 1 /
    h, as of a sum of h independent bars: nu_h = 4 + h (nu - 4), or nu where that is at most 4; that
    volatility clusters slows the fall, and is not counted.

    A window has its EWMA instead, with normal returns, and `fallbacks` says so, where fewer than
    `GARCH_LEAST` returns are known or they never vary, where the fit does not converge, or where
    its volatility is `GARCH_MOST` times above or below the EWMA.

    Raises:
        MissingDependencyError: `arch` is not installed; it comes with the extra "report".

    Source:
        Bollerslev, "A conditionally heteroskedastic time series model for speculative prices and
        rates of return", Review of Economics and Statistics 69 (1987).
    """
    instead = ewma(outcomes).per_bar
    per_bar, degrees = instead.copy(), np.full_like(instead, np.inf)
    failed = np.ones(len(instead), dtype=bool)
    bars = np.arange(1, outcomes.horizon + 1)
    for window, closes in enumerate(outcomes.closes_seen):
        moves = np.diff(np.log(closes[np.isfinite(closes)]))
        found = fit_garch(moves, outcomes.horizon)
        if found is None:
            continue
        volatility = np.sqrt(np.cumsum(found.variance) / bars)
        ratio = volatility / instead[window]
        if ratio.max() < GARCH_MOST and ratio.min() > 1 / GARCH_MOST:
            per_bar[window], failed[window] = volatility, False
            nu = found.degrees
            degrees[window] = nu if nu <= 4 else 4 + bars * (nu - 4)
    return VolatilityForecast(per_bar, degrees, failed)


@dataclass(frozen=True, eq=False)
class GarchFit:
    """What a GARCH(1,1) expects after the returns it was fitted on."""

    variance: Floats
    """(H,) of the log return of each bar ahead."""
    degrees: float
    """Of freedom of the innovations; infinite where they are normal."""


def fit_garch(
    moves: Floats,
    horizon: int,
    *,
    mean: Literal["Zero", "Constant"] = "Zero",
    dist: Literal["t", "normal"] = "t",
    least: int = GARCH_LEAST,
) -> GarchFit | None:
    """A GARCH(1,1) of log returns (T,), by `arch`; None where there is no fit.

    Args:
        mean: of the returns: none, or fitted.
        dist: of the innovations.
        least: fewest returns that are fitted.

    Raises:
        MissingDependencyError: as of `garch`.
    """
    arch_model = require("arch", for_="a GARCH forecast").arch_model
    unit = float(moves.std()) if len(moves) >= least else 0.0
    if unit < STILL:
        return None
    model = arch_model(moves / unit, mean=mean, vol="GARCH", p=1, q=1, dist=dist, rescale=False)
    start = np.array(GARCH_START) if (mean, dist) == ("Zero", "t") else None
    try:
        found = model.fit(disp="off", show_warning=False, starting_values=start)
    except (ValueError, FloatingPointError, np.linalg.LinAlgError):
        return None
    if found.convergence_flag != 0:
        return None
    variance = found.forecast(horizon=horizon, reindex=False).variance.to_numpy()[-1] * unit**2
    if not (np.isfinite(variance).all() and (variance > 0).all()):
        return None
    degrees = max(float(found.params["nu"]), LEAST_DEGREES) if dist == "t" else np.inf
    return GarchFit(np.asarray(variance), degrees)


@dataclass(frozen=True, eq=False)
class LogRangeHar:
    """Log variance of the bars ahead, regressed on means of past log variances over `HAR_BARS`.

    The variance of a bar is Garman and Klass's, of its range, with the squared gap from the close
    before. For each bar of the horizon its own (direct) regression, of the log of the mean variance
    of the bars up to it. One for all instruments: fitted on the histories of earlier windows, at
    moments a horizon apart.

    Source:
        Corsi, "A simple approximate long-memory model of realized volatility", Journal of Financial
        Econometrics 7 (2009). Garman and Klass, "On the estimation of security price volatilities
        from historical data", Journal of Business 53 (1980).
    """

    coefficients: Floats
    """(H, 4) of 1 and the means."""
    noise: Floats
    """(H,) variance of what the regression leaves: a mean of exp is above exp of the mean."""
    rows: int
    """It was fitted on."""

    @classmethod
    def fit(cls, earlier: Outcomes) -> LogRangeHar:
        """From the histories of windows; what came after these is not read.

        Raises:
            BarDataError: they have no history, or it is too short.
        """
        logs = log_variance(earlier)
        longest, horizon = max(HAR_BARS), earlier.horizon
        ends = np.arange(logs.shape[1] - 1 - horizon, longest - 1, -horizon)
        known = [_means(logs[:, end + 1 - longest : end + 1]) for end in ends]
        ahead = [_ahead(logs[:, end + 1 : end + 1 + horizon]) for end in ends]
        x = np.concatenate(known) if known else np.empty((0, 4))
        y = np.concatenate(ahead) if ahead else np.empty((0, horizon))
        sound = np.isfinite(x).all(axis=1) & np.isfinite(y).all(axis=1)
        x, y = x[sound], y[sound]
        if len(x) < 10 * x.shape[1]:
            raise BarDataError(
                f"a HAR is fitted on {10 * x.shape[1]} moments at least, with {longest} bars "
                f"before and {horizon} after within the windows' history; got {len(x)}: give "
                "longer histories or more windows"
            )
        found = np.linalg.lstsq(x, y, rcond=None)[0]
        return cls(
            np.asarray(found.T, dtype=np.float64), np.asarray((y - x @ found).var(axis=0)), len(x)
        )

    def forecast(self, outcomes: Outcomes) -> VolatilityForecast:
        """Of windows; one that has seen fewer bars than a mean has takes what it has.

        Raises:
            BarDataError: windows have no history, or another horizon.
        """
        if outcomes.horizon != len(self.noise):
            raise BarDataError(
                f"the HAR was fitted for {len(self.noise)} bars, got {outcomes.horizon}"
            )
        known = _means(log_variance(outcomes)[:, -max(HAR_BARS) :], is_partial=True)
        logs = known @ self.coefficients.T + self.noise / 2
        return VolatilityForecast(np.maximum(np.exp(logs / 2), STILL))


def log_variance(outcomes: Outcomes) -> Floats:
    """(N, T - 1) log of Garman and Klass's variance plus the squared gap, of each bar but the
    oldest; NaN where a bar or the one before is not known.

    Raises:
        BarDataError: there is no history.
    """
    if outcomes.history is None or outcomes.history.shape[1] < 2:
        raise BarDataError(
            "a range needs bars: give `history` to Outcomes, as "
            "`pipeline.outcomes.outcomes_of` does"
        )
    logs = np.log(np.asarray(outcomes.history, dtype=np.float64))
    now = logs[:, 1:]
    gap = now[..., OPEN] - logs[:, :-1, CLOSE]
    # Bars as downloaded may have a high below their close.
    reach = now[..., : CLOSE + 1].max(axis=-1) - now[..., : CLOSE + 1].min(axis=-1)
    body = now[..., CLOSE] - now[..., OPEN]
    variance = gap**2 + reach**2 / 2 - (2 * np.log(2) - 1) * body**2
    moved = np.where(variance > STILL**2, variance, np.nan)
    moved[np.isnan(moved).all(axis=1), -1] = STILL**2  # a price that never moved
    floor = HAR_FLOOR * np.nanmedian(moved, axis=1, keepdims=True)
    return np.asarray(np.log(np.maximum(variance, floor)))


def _means(logs: Floats, is_partial: bool = False) -> Floats:
    """(N, 4) a one and the means over `HAR_BARS` of (N, at least as many) bars, newest last."""
    mean = np.nanmean if is_partial else np.mean
    means = [mean(logs[:, -bars:], axis=1) for bars in HAR_BARS]
    return np.stack([np.ones(len(logs)), *means], axis=1)


def _ahead(logs: Floats) -> Floats:
    """(N, H) log of the mean variance of the bars up to each."""
    sums = np.cumsum(np.exp(logs), axis=1)
    return np.asarray(np.log(sums / np.arange(1, logs.shape[1] + 1)))


def _over_horizon(volatility: Floats, outcomes: Outcomes) -> Floats:
    return np.repeat(volatility[:, None], outcomes.horizon, axis=1)
