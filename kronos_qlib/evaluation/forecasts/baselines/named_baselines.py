"""The baselines that a forecast is judged beside, by name, each as it is and fitted to the past.

Shape letters: N windows, H bars of the horizon.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from kronos_qlib.errors import BarDataError
from kronos_qlib.evaluation.forecasts.baselines.baseline_distributions import (
    LastPrice,
    VolatilityWalk,
)
from kronos_qlib.evaluation.forecasts.baselines.volatility_forecasts import (
    LogRangeHar,
    VolatilityForecast,
    ewma,
    garch,
    realised,
)
from kronos_qlib.evaluation.forecasts.distributions import Distribution, Floats, Outcomes

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
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of the volatility that came in the oracle's, among which each bar has the best of the past."""


@dataclass(frozen=True, eq=False)
class Baselines:
    """Distributions by name, and what they could not do.

    `..._calibrated` has, for each bar, the factor on its spread and the degrees of freedom of least
    mean CRPS on earlier windows (`VolatilityWalk.fit`); so has the oracle, and for each bar the
    share of the volatility that came in a mean of its log with that of the EWMA. HAR's regression
    is of the earlier windows' histories in both.
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
        fitted[ORACLE], oracle = _oracle(outcomes, earlier)
        bounds = {ORACLE: oracle}
        return cls(of, bounds, fitted, failed[1], failed[0], left_out)


def _oracle(outcomes: Outcomes, earlier: Outcomes) -> tuple[VolatilityWalk, VolatilityWalk]:
    """Of the earlier windows, as fitted, and of those to be judged."""
    walks = [
        realised(earlier, weight).walk().fit(earlier.returns, has_tails=True) for weight in SHARES
    ]
    crps = np.stack([walk.crps(earlier.returns).mean(axis=0) for walk in walks])
    chosen = crps.argmin(axis=0)

    def picked(columns: Sequence[Floats]) -> Floats:
        each = [columns[which][..., bar] for bar, which in enumerate(chosen)]
        return np.stack(each, axis=-1)

    past = VolatilityWalk(
        picked([one.volatility_per_bar for one in walks]),
        picked([one.scale for one in walks]),
        picked([np.asarray(one.degrees) for one in walks]),
    )
    now = picked([realised(outcomes, weight).per_bar for weight in SHARES])
    return past, replace(past, volatility_per_bar=now)


def _count(forecast: VolatilityForecast) -> int:
    return 0 if forecast.fallbacks is None else int(forecast.fallbacks.sum())
