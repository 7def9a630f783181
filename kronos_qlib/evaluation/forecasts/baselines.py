"""The baselines that a forecast is judged beside, by name, each as it is and fitted to the past.

Shape letters: N windows, H bars of the horizon.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kronos_qlib.errors import BarDataError
from kronos_qlib.evaluation.forecasts.baseline_distributions import LastPrice, VolatilityWalk
from kronos_qlib.evaluation.forecasts.distributions import Distribution, Outcomes
from kronos_qlib.evaluation.forecasts.volatility_forecasts import (
    LogRangeHar,
    VolatilityForecast,
    ewma,
    garch,
    realised,
)

LAST_PRICE, WALK, EWMA, GARCH, HAR = (
    "last_price",
    "historical_volatility",
    "ewma",
    "garch",
    "har",
)
WALK_CALIBRATED, EWMA_CALIBRATED, GARCH_CALIBRATED, HAR_CALIBRATED = (
    f"{name}_calibrated" for name in (WALK, EWMA, GARCH, HAR)
)
ORACLE = "oracle_scale"
"""Knows the volatility of the bars that came, and nothing of their sign: not a forecast."""


@dataclass(frozen=True, eq=False)
class Baselines:
    """Distributions by name, and what they could not do.

    `..._calibrated` has, for each bar, the factor on its spread and the degrees of freedom of least
    mean CRPS on earlier windows (`VolatilityWalk.fit`); so has the oracle, by the volatility that
    came of these. HAR's regression is of the earlier windows' histories in both.
    """

    of: Mapping[str, Distribution]
    """Those to be beaten."""
    bounds: Mapping[str, Distribution]
    """Those that know what came."""
    fitted: Mapping[str, VolatilityWalk]
    """On the earlier windows, by name of the calibrated one: factors and degrees of freedom."""
    garch_fallbacks: int = 0
    """Windows whose GARCH is the EWMA."""
    earlier_garch_fallbacks: int = 0
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Baselines that could not be made, and why."""

    @classmethod
    def of_windows(cls, outcomes: Outcomes, earlier: Outcomes) -> Baselines:
        """Of windows, fitted on earlier ones.

        GARCH takes some 30 ms a window, on both. Without `Outcomes.history` there is neither GARCH
        nor HAR, and HAR needs histories of some length: see `left_out`.

        Raises:
            MissingDependencyError: `arch` or `scoringrules` is not installed.
        """
        pairs: dict[str, tuple[VolatilityForecast, VolatilityForecast]] = {
            EWMA: (ewma(earlier), ewma(outcomes))
        }
        left_out, failed = {}, (0, 0)
        if outcomes.history is None or earlier.history is None:
            left_out = dict.fromkeys((GARCH, HAR), "the windows have no history of bars")
        else:
            pairs[GARCH] = garch(earlier), garch(outcomes)
            failed = _count(pairs[GARCH][0]), _count(pairs[GARCH][1])
            try:
                har = LogRangeHar.fit(earlier)
            except BarDataError as short:
                left_out[HAR] = str(short)
            else:
                pairs[HAR] = har.forecast(earlier), har.forecast(outcomes)
        walks = {WALK: (VolatilityWalk.of(earlier), VolatilityWalk.of(outcomes))}
        walks |= {name: (past.walk(), now.walk()) for name, (past, now) in pairs.items()}
        of: dict[str, Distribution] = {LAST_PRICE: LastPrice(*outcomes.closes.shape)}
        fitted = {}
        for name, (past, now) in walks.items():
            better = past.fit(earlier.returns, has_tails=True)
            fitted[f"{name}_calibrated"] = better
            of |= {name: now, f"{name}_calibrated": now.fitted_as(better)}
        known = realised(earlier).walk().fit(earlier.returns, has_tails=True)
        fitted[ORACLE] = known
        bounds = {ORACLE: realised(outcomes).walk().fitted_as(known)}
        return cls(of, bounds, fitted, failed[1], failed[0], left_out)


def _count(forecast: VolatilityForecast) -> int:
    return 0 if forecast.fallbacks is None else int(forecast.fallbacks.sum())
