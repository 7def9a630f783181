"""How good forecasts are, beside baselines that cost nothing, and the uncertainty of that.

Windows of one day share the market's move, and windows of neighbouring days share bars: a measure
is averaged by day, and its error comes from the daily means (`uncertainty.daily_mean`) with the
horizons' overlap counted.

Shape letters: N windows, P paths, H bars of the horizon.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import kstest

from kronos_qlib.errors import UndefinedMetricError
from kronos_qlib.evaluation.forecasts.baselines.named_baselines import (
    EWMA_CALIBRATED,
    GARCH_CALIBRATED,
    HAR_CALIBRATED,
    LAST_PRICE,
    WALK,
    WALK_CALIBRATED,
    Baselines,
)
from kronos_qlib.evaluation.forecasts.day_means import ALL, by_day, horizons, label_days
from kronos_qlib.evaluation.forecasts.distributions import (
    LEVELS,
    Distribution,
    Outcomes,
    PathDistribution,
    interval,
    losses_of,
)
from kronos_qlib.evaluation.forecasts.method_table import method_table
from kronos_qlib.evaluation.ranking.uncertainty import daily_mean, paired_difference, varies

Floats = npt.NDArray[np.float64]

LOSSES = ("crps", "pinball", "mae", "mse", "volatility_mae")
"""Means over windows, the smaller the better: what differences are reported of."""

KRONOS, CALIBRATED = "kronos", "kronos_calibrated"
PAIRS = (
    (KRONOS, LAST_PRICE),
    (KRONOS, WALK),
    (CALIBRATED, LAST_PRICE),
    (CALIBRATED, WALK),
    (CALIBRATED, WALK_CALIBRATED),
    (CALIBRATED, EWMA_CALIBRATED),
    (CALIBRATED, GARCH_CALIBRATED),
    (CALIBRATED, HAR_CALIBRATED),
    (CALIBRATED, KRONOS),
)
"""What each is compared with, of those that there are: the last one is what calibrating was
worth."""


@dataclass(frozen=True, eq=False)
class ForecastQuality:
    """What `judge` found, as tables; see the functions that make them."""

    scores: pd.DataFrame
    coverage: pd.DataFrame
    differences: pd.DataFrame
    pit: pd.DataFrame
    methods: pd.DataFrame
    """By horizon and method everything beside the best baseline: see `method_table`."""
    baselines: Baselines

    @property
    def walk_factors(self) -> Floats:
        """(H,) that the historical volatility was multiplied by to calibrate it."""
        return self.baselines.fitted[WALK_CALIBRATED].scale

    def metrics(self) -> dict[str, float]:
        """The means over the horizon under names such as crps, crps_calibrated, crps_last_price.

        A measure's name with what it is of: nothing for Kronos, `calibrated`, or the baseline. Of
        CRPS also, against each baseline, `crps_skill_...` and `crps_t_...`: the t of the
        difference, below 0 where Kronos is better. What is not defined is left out.
        """
        found: dict[str, float] = {}
        for measure, values in _of_all_bars(self.scores).items():
            found |= {f"{measure}{_suffix(name)}": value for name, value in values.items()}
        for (name, level), row in _of_all_bars(self.coverage).items():
            for measure in ("coverage", "width"):
                found[f"{measure}_{100 * level:g}{_suffix(name)}"] = row[measure]
        for (name, baseline, measure), row in _of_all_bars(self.differences).items():
            if measure == "crps":
                for what in ("skill", "t"):
                    found[f"crps{_suffix(name)}_{what}{_suffix(baseline)}"] = row[what]
        for name, row in _of_all_bars(self.pit).items():
            for measure in ("mean", "spread", "distance"):
                found[f"pit_{measure}{_suffix(name)}"] = row[measure]
        found["garch_fallbacks"] = self.baselines.garch_fallbacks
        # A last price expects no variance and has no QLIKE.
        return {name: float(value) for name, value in found.items() if np.isfinite(value)}


def judge(
    closes: Floats,
    calibrated: Floats,
    outcomes: Outcomes,
    earlier: Outcomes,
    levels: Sequence[float] = LEVELS,
    seed: int = 0,
) -> ForecastQuality:
    """Measure paths as drawn and as calibrated on an earlier segment, beside the baselines.

    The volatility models are calibrated too, by factors and degrees of freedom fitted on `earlier`:
    what calibrated paths are to be compared with. See `Baselines`, also for what is left out where
    outcomes have no history.

    Args:
        closes: (N, P, H) of paths as drawn, independent of each other, in money.
        calibrated: (N, P, H) of the same, calibrated: the quantiles of a distribution at each bar.
        outcomes: what came: what is reported.
        earlier: what came of windows of the segment that the baselines are fitted on.
        levels: central intervals.
        seed: of ranks within ties.

    Raises:
        BarDataError, ConfigError, UndefinedMetricError: as the parts raise them.
    """
    baselines = Baselines.of_windows(outcomes, earlier)
    last_close = outcomes.last_close
    distributions: dict[str, Distribution] = {
        KRONOS: PathDistribution(closes, last_close),
        CALIBRATED: PathDistribution(calibrated, last_close, stratified=True),
        **baselines.of,
        **baselines.bounds,
    }
    losses = {name: losses_of(one, outcomes, levels) for name, one in distributions.items()}
    intervals = {
        name: {level: interval(one, level) for level in levels}
        for name, one in distributions.items()
    }
    rng = np.random.default_rng(seed)
    return ForecastQuality(
        scores=score_table(losses, outcomes),
        coverage=coverage_table(intervals, outcomes),
        differences=difference_table(
            losses, outcomes, [pair for pair in PAIRS if set(pair) <= set(losses)]
        ),
        pit=pit_table(
            {name: one.pit(outcomes.returns, rng) for name, one in distributions.items()}
        ),
        methods=method_table(
            distributions,
            outcomes,
            baselines=baselines.of,
            bounds=baselines.bounds,
            levels=levels,
            seed=seed,
        ),
        baselines=baselines,
    )


def score_table(losses: Mapping[str, Mapping[str, Floats]], outcomes: Outcomes) -> pd.DataFrame:
    """Every measure by bar of the horizon, the forecasters side by side.

    Args:
        losses: of each forecaster, as `losses_of` gives them.

    Returns:
        On (measure, horizon), a column for each forecaster: means of daily means. Beside the
        losses rmse, the root of mse, and volatility_r2: 1 - squared error of the expected realised
        volatility / its variance over the windows; below 0 where that is the worse of the two.

    Raises:
        UndefinedMetricError: realised volatility never varies, so it has no variance to explain.
    """
    realised = outcomes.realised_volatility
    varied = by_day((realised - realised.mean(axis=0)) ** 2, outcomes).mean()
    columns = {}
    for name, each in losses.items():
        means = {measure: by_day(values, outcomes).mean() for measure, values in each.items()}
        means["rmse"] = np.sqrt(means.pop("mse"))
        if not (varied > 0).all():
            raise UndefinedMetricError(
                "realised volatility was the same in every window: it has no variance to explain"
            )
        means["volatility_r2"] = 1 - means.pop("volatility_mse") / varied
        columns[name] = pd.concat(means, names=["measure", "horizon"])
    # A forecaster may lack a measure; pandas would then sort the bars as texts: 1, 10, 2.
    rows = dict.fromkeys(row for column in columns.values() for row in column.index)
    order = pd.MultiIndex.from_tuples(rows, names=["measure", "horizon"])
    return pd.DataFrame(columns).reindex(order)


def coverage_table(
    intervals: Mapping[str, Mapping[float, tuple[Floats, Floats]]], outcomes: Outcomes
) -> pd.DataFrame:
    """How often what came lay within intervals, and how wide these were.

    Args:
        intervals: of each forecaster and level, ends (N, H) in returns, both inclusive.

    Returns:
        On (forecaster, level, horizon): coverage, the low and high of its 95 % interval by
        `daily_mean`, and width in units of return. low and high are NaN where each day has the same
        share.
    """
    rows = {}
    for name, by_level in intervals.items():
        for level, (low, high) in by_level.items():
            came = outcomes.returns
            covered = by_day(((low <= came) & (came <= high)).astype(np.float64), outcomes)
            width = by_day(high - low, outcomes).mean()
            for horizon in horizons(outcomes):
                daily = covered[horizon]
                reach = (np.nan, np.nan)
                if varies(daily.to_numpy()):
                    reach = daily_mean(daily, label_bars=label_days(outcomes, horizon)).interval()
                rows[name, level, horizon] = (daily.mean(), *reach, width[horizon])
    table = pd.DataFrame.from_dict(
        rows, orient="index", columns=["coverage", "low", "high", "width"]
    )
    table.index = pd.MultiIndex.from_tuples(rows, names=["forecaster", "level", "horizon"])
    return table


def difference_table(
    losses: Mapping[str, Mapping[str, Floats]],
    outcomes: Outcomes,
    pairs: Sequence[tuple[str, str]],
) -> pd.DataFrame:
    """How much better one forecaster is than another on the same days: Diebold and Mariano's tests.

    Args:
        losses: of each forecaster, as `losses_of` gives them.
        pairs: (forecaster, baseline), names in `losses`.

    Returns:
        On (forecaster, baseline, measure, horizon), for each of `LOSSES`: value and baseline_value,
        skill = 1 - value / baseline_value (above 0 is better than the baseline), difference =
        value - baseline_value (below 0 is better) with the low and high of its 95 % interval, t, p,
        and covers, what such an interval covers at the dependence of these days: see
        `uncertainty.DailyMean`. Where the two forecasters lose the same every day, difference is 0
        and the rest of it NaN.

    Raises:
        UndefinedMetricError: fewer days than `uncertainty.LEAST_DAYS`.

    Source:
        As of `method_table`.
    """
    rows = {}
    for name, baseline in pairs:
        for measure in LOSSES:
            one = by_day(losses[name][measure], outcomes)
            other = by_day(losses[baseline][measure], outcomes)
            for horizon in horizons(outcomes):
                ours, theirs = one[horizon], other[horizon]
                apart = [0.0, *[np.nan] * 5]
                if varies((ours - theirs).to_numpy()):
                    days = label_days(outcomes, horizon)
                    found = paired_difference(ours, theirs, label_bars=days)
                    apart = [found.mean, *found.interval(), found.t, found.p, found.covers]
                value, reference = ours.mean(), theirs.mean()
                skill = 1 - value / reference if reference > 0 else np.nan
                rows[name, baseline, measure, horizon] = (value, reference, skill, *apart)
    columns = ["value", "baseline_value", "skill", "difference", "low", "high", "t", "p", "covers"]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    table.index = pd.MultiIndex.from_tuples(
        rows, names=["forecaster", "baseline", "measure", "horizon"]
    )
    return table


def pit_table(pits: Mapping[str, Floats], bins: int = 10) -> pd.DataFrame:
    """Histograms of the probability integral transform, with what they say in three numbers.

    Args:
        pits: (N, H) of each forecaster.

    Returns:
        On (forecaster, horizon): mean (0.5 if right; above: too low forecasts), spread (variance
        x 12: 1 if right, above: intervals too narrow, below: too wide), distance (the greatest
        between its distribution and the uniform one, Kolmogorov and Smirnov's; no p-value, since
        windows depend on each other), and the share of windows in each of `bins` equal bins.
    """
    rows = {}
    for name, values in pits.items():
        bars = {str(bar + 1): values[:, bar] for bar in range(values.shape[1])}
        for horizon, several in {**bars, ALL: values.ravel()}.items():
            share = np.histogram(several, bins, (0, 1))[0] / len(several)
            distance = kstest(several, "uniform").statistic
            rows[name, horizon] = (several.mean(), 12 * several.var(), distance, *share)
    edges = [f"{place / bins:g}-{(place + 1) / bins:g}" for place in range(bins)]
    table = pd.DataFrame.from_dict(
        rows, orient="index", columns=["mean", "spread", "distance", *edges]
    )
    table.index = pd.MultiIndex.from_tuples(rows, names=["forecaster", "horizon"])
    return table


def _of_all_bars(table: pd.DataFrame) -> dict[Any, dict[str, float]]:
    found = table[table.index.get_level_values("horizon") == ALL].droplevel("horizon")
    return {key: dict(row) for key, row in found.iterrows()}


def _suffix(name: str) -> str:
    """Of a metric: nothing for Kronos as it is."""
    return "" if name == KRONOS else f"_{name.removeprefix(f'{KRONOS}_')}"
