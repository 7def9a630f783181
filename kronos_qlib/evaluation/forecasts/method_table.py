"""One table of how good forecasts are: by market, bar of the horizon and method.

Shape letters: N windows, H bars of the horizon.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from kronos_qlib.errors import ConfigError
from kronos_qlib.evaluation.forecasts.day_means import ALL, by_day, label_days
from kronos_qlib.evaluation.forecasts.distributions import (
    LEVELS,
    Distribution,
    Floats,
    Outcomes,
    PathDistribution,
    interval,
    losses_of,
)
from kronos_qlib.evaluation.forecasts.energy import energy_score
from kronos_qlib.evaluation.forecasts.risk import TAILS, risk_quality
from kronos_qlib.evaluation.ranking.uncertainty import daily_mean, paired_difference, varies

BARS = (1, 5, 10)
"""Bars of the horizon that have rows, beside the mean of all."""
DRAWN = 100
"""Paths that a distribution without paths draws for its energy score."""


def method_table(
    methods: Mapping[str, Distribution],
    outcomes: Outcomes,
    *,
    baselines: Collection[str],
    bounds: Collection[str] = (),
    bars: Sequence[int] = BARS,
    levels: Sequence[float] = LEVELS,
    tails: Sequence[float] = TAILS,
    seed: int = 0,
) -> pd.DataFrame:
    """Every measure of every method on the same windows, a row for each horizon and method.

    Means are of daily means, and intervals (95 %) and p-values by `daily_mean`: of days, with the
    overlap of returns counted. A difference is Diebold and Mariano's test, of CRPS to the baseline
    whose CRPS at that horizon is the least of all, found in hindsight: a hard comparison.

    Args:
        methods: what is judged, by name.
        baselines: names among these that may be the best baseline.
        bounds: names among these that know what came, and are no forecast.
        bars: of the horizon, from 1; those beyond it are left out. The mean of all follows.
        levels: of central intervals.
        tails: levels of value at risk.
        seed: of drawn paths.

    Returns:
        On (horizon, method), horizon a number or "all":
        kind: forecast, baseline or bound.
        crps, in units of return; best_baseline; difference to it (below 0 is better) with low and
        high, relative (difference / its CRPS), t and p.
        coverage_50 and so on, with coverage_50_low and coverage_50_high.
        volatility_mse, of the expected realised volatility per bar; qlike.
        var_1, share of windows below the value at risk of 1 %, with var_1_kupiec, var_1_
        christoffersen (p-values), var_1_expected (windows that should be) and var_1_fz; NaN where
        the paths are too few for it, and for all bars.
        energy, of whole paths of log returns, with energy_relative to the baseline of least energy,
        and its ends energy_low and energy_high, as shares; of all bars only.

    Raises:
        ConfigError: no baseline, or a name that is not among the methods.
        UndefinedMetricError: too few days for an error.

    Source:
        Diebold and Mariano, "Comparing predictive accuracy", Journal of Business & Economic
        Statistics 13 (1995).
    """
    strange = sorted({*baselines, *bounds} - set(methods))
    if strange or not baselines:
        raise ConfigError(
            f"baselines and bounds are names of methods, one baseline at least; {strange} are not "
            f"among {', '.join(methods)}"
        )
    losses = {name: losses_of(one, outcomes, levels) for name, one in methods.items()}
    daily = {
        name: {measure: by_day(each, outcomes) for measure, each in measures.items()}
        for name, measures in losses.items()
    }
    came = outcomes.returns
    covered = {
        (name, level): by_day(_is_within(interval(one, level), came), outcomes)
        for name, one in methods.items()
        for level in levels
    }
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    chosen = [str(bar) for bar in bars if bar <= outcomes.horizon]
    for horizon in (*chosen, ALL):
        crps = {name: daily[name]["crps"][horizon] for name in methods}
        best = min(baselines, key=lambda name: float(crps[name].mean()))
        days = label_days(outcomes, horizon)
        for name, one in methods.items():
            row: dict[str, Any] = {
                "kind": _kind(name, baselines, bounds),
                "crps": crps[name].mean(),
                "best_baseline": best,
                **_difference(crps[name], crps[best], days),
            }
            for level in levels:
                row |= _share(covered[name, level][horizon], f"coverage_{100 * level:g}", days)
            for measure in ("volatility_mse", "qlike"):
                if measure in daily[name]:
                    row[measure] = daily[name][measure][horizon].mean()
            for level in tails if horizon != ALL else ():
                found = risk_quality(one, outcomes, int(horizon), level)
                if found is not None:
                    label = f"var_{100 * level:g}"
                    row |= {
                        label: found.hits,
                        f"{label}_expected": found.expected_hits,
                        f"{label}_kupiec": found.kupiec,
                        f"{label}_christoffersen": found.christoffersen,
                        f"{label}_fz": found.fissler_ziegel,
                    }
            rows[horizon, name] = row
    energy = _energies(methods, outcomes, seed)
    best = min(baselines, key=lambda name: float(energy[name].mean()))
    for name in methods:
        apart = _difference(energy[name], energy[best], label_days(outcomes, ALL))
        rows[ALL, name] |= {
            "energy": energy[name].mean(),
            "energy_relative": apart["relative"],
            "energy_low": apart["low"] / energy[best].mean(),
            "energy_high": apart["high"] / energy[best].mean(),
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index = pd.MultiIndex.from_tuples(rows, names=["horizon", "method"])
    return table


def _kind(name: str, baselines: Collection[str], bounds: Collection[str]) -> str:
    if name in bounds:
        return "bound"
    return "baseline" if name in baselines else "forecast"


def _is_within(ends: tuple[Floats, Floats], came: Floats) -> Floats:
    low, high = ends
    return ((low <= came) & (came <= high)).astype(np.float64)


def _difference(one: pd.Series[float], other: pd.Series[float], days: int) -> dict[str, float]:
    reference = float(other.mean())
    if not varies((one - other).to_numpy()):
        nothing = dict.fromkeys(("low", "high", "t", "p"), np.nan)
        return {"difference": 0.0, "relative": 0.0, **nothing}
    found = paired_difference(one, other, label_bars=days)
    low, high = found.interval()
    return {
        "difference": found.mean,
        "relative": found.mean / reference,
        "low": low,
        "high": high,
        "t": found.t,
        "p": found.p,
    }


def _share(daily: pd.Series[float], name: str, days: int) -> dict[str, float]:
    low, high = np.nan, np.nan
    if varies(daily.to_numpy()):
        low, high = daily_mean(daily, label_bars=days).interval()
    return {name: float(daily.mean()), f"{name}_low": low, f"{name}_high": high}


def _energies(
    methods: Mapping[str, Distribution], outcomes: Outcomes, seed: int
) -> dict[str, pd.Series[float]]:
    """Daily means of each method's energy score."""
    came = np.log1p(outcomes.returns)
    found = {}
    for name, one in methods.items():
        # The same numbers for every method: their difference is less noisy.
        paths = one.log_paths(DRAWN, np.random.default_rng(seed))
        is_fair = not (isinstance(one, PathDistribution) and one.stratified)
        score = energy_score(paths, came, is_fair=is_fair)
        found[name] = pd.Series(score).groupby(outcomes.days).mean()
    return found
