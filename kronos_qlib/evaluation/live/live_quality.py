"""What live days show: order, distribution and money, each beside baselines and the backtest's.

Shape letters: R rows (an instrument on a day), Q quantile levels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import norm
from scipy.stats import t as student

from kronos_qlib.errors import UndefinedMetricError
from kronos_qlib.evaluation.forecasts.baselines.volatility_forecasts import DECAY
from kronos_qlib.evaluation.live.drift import LARGE, drift_word
from kronos_qlib.evaluation.ranking.day_tables import to_wide
from kronos_qlib.evaluation.ranking.information_coefficient import daily_ic
from kronos_qlib.evaluation.ranking.uncertainty import LEVEL, DailyMean, by_day, daily_mean

Floats = npt.NDArray[np.float64]
COVERAGES = (0.5, 0.8, 0.9)
"""Central intervals that are looked at, where both ends are among the levels."""
EWMA = "EWMA"
"""The baseline of distributions: a random walk of RiskMetrics' volatility."""


@dataclass(frozen=True)
class Gap:
    """Live less promised, of two means that were measured on different days."""

    difference: float
    standard_error: float
    freedom: float
    """Degrees of freedom, by Welch and Satterthwaite."""

    @property
    def p(self) -> float:
        """Two-sided, by Student's t."""
        return float(2 * student.sf(abs(self.difference) / self.standard_error, self.freedom))

    @property
    def is_significant(self) -> bool:
        """At 1 - LEVEL."""
        return self.p < 1 - LEVEL


def gap_of(live: DailyMean, promised: DailyMean | float) -> Gap:
    """How far a live mean is from what was promised: a mean of other days, or a number.

    Source:
        Welch, "The generalization of Student's problem when several different population variances
        are involved", Biometrika 34 (1947).
    """
    if not isinstance(promised, DailyMean):
        return Gap(live.mean - promised, live.standard_error, float(live.cosines))
    one, other = live.standard_error**2, promised.standard_error**2
    freedom = (one + other) ** 2 / (one**2 / live.cosines + other**2 / promised.cosines)
    return Gap(live.mean - promised.mean, math.sqrt(one + other), freedom)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One line of the report."""

    name: str
    form: str
    """"ratio", "percent" or "basis points"."""
    value: float
    """Mean over the days; NaN where there is none."""
    days: int
    live: DailyMean | None
    """With its error; None where days are too few for one."""
    promised: DailyMean | float | None = None

    @property
    def gap(self) -> Gap | None:
        """Against the promise; None where one of the two is not known."""
        if self.live is None or self.promised is None:
            return None
        return gap_of(self.live, self.promised)


@dataclass(frozen=True, kw_only=True)
class LiveQuality:
    """All that is shown of a ledger's days."""

    measures: tuple[Measure, ...]
    drift: Mapping[str, float]
    """Population stability index by input."""
    curves: pd.DataFrame
    """(days, names): sums of daily excess returns and of Rank IC."""
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()
    about: Mapping[str, str] = field(default_factory=dict)
    """What the ledger is of, in words: model, days, head."""


def live_quality(
    *,
    scores: pd.Series[float],
    labels: pd.Series[float],
    label_bars: int = 1,
    baselines: pd.DataFrame | None = None,
    quantiles: pd.DataFrame | None = None,
    returns: pd.Series[float] | None = None,
    ewma: pd.DataFrame | None = None,
    horizon: int = 1,
    money: pd.DataFrame | None = None,
    promised: Mapping[str, DailyMean] | None = None,
    drift: Mapping[str, float] | None = None,
    notes: Sequence[str] = (),
    about: Mapping[str, str] | None = None,
) -> LiveQuality:
    """Measure live days, and warn of what differs from what was promised.

    Args:
        scores, labels: on (datetime, instrument); labels are NaN where they are not known yet.
        label_bars: bars that a label's return runs over.
        baselines: other scores on the scores' index, a column each.
        quantiles: (R, Q) of the return over `horizon` bars, columns are the levels.
        returns: (R,) that return, NaN where it is not known yet.
        ewma: as `quantiles`, of the baseline.
        money: a row a day: `net_return`, `excess_return`, `bench`, each a fraction.
        promised: means of the backtest by "ic", "rank_ic", "net_return", "excess_return".
        drift: population stability index by input.
    """
    promised = promised or {}
    measures: list[Measure] = []
    curves: dict[str, pd.Series[float]] = {}
    remarks = list(notes)
    daily = _ics(scores, labels)
    for name, title in (("rank_ic", "Rank IC"), ("ic", "IC")):
        measures.append(
            _measure(title, daily[name].dropna(), "ratio", label_bars, promised.get(name))
        )
    curves["Rank IC, summed"] = by_day(daily["rank_ic"].dropna()).cumsum()
    beside = {} if baselines is None else {str(name): baselines[name] for name in baselines}
    for name, theirs in beside.items():
        other = _ics(theirs, labels)["rank_ic"].dropna()
        measures.append(_measure(f"Rank IC of {name}", other, "ratio", label_bars))
        both = pd.concat([daily["rank_ic"], other], axis=1, join="inner").dropna()
        ahead = both.iloc[:, 0] - both.iloc[:, 1]
        measures.append(_measure(f"Rank IC less that of {name}", ahead, "ratio", label_bars))
    if quantiles is not None and returns is not None and len(quantiles.columns):
        measures += _distribution(quantiles, returns, ewma, horizon)
    if money is not None and len(money):
        for name, title in (
            ("net_return", "Return a day after cost"),
            ("excess_return", "Excess return a day after cost"),
        ):
            promise = promised.get(name)
            measures.append(_measure(title, money[name], "basis points", 1, promise))
        for name in ("bench", "equal_weight"):
            if name in money and money[name].notna().any():
                title = {"bench": "Benchmark's return a day"}.get(
                    name, "Return a day of all scored names alike"
                )
                measures.append(_measure(title, money[name].dropna(), "basis points", 1))
        curves["Excess return after cost, summed"] = money["excess_return"].cumsum()
    measures = [measure for measure in measures if measure.days]
    return LiveQuality(
        measures=tuple(measures),
        drift=dict(drift or {}),
        curves=pd.DataFrame(curves).sort_index(),
        warnings=tuple(_warnings(measures, drift or {})),
        notes=tuple(remarks),
        about=dict(about or {}),
    )


def crps_of_quantiles(quantiles: Floats, levels: Sequence[float], came: Floats) -> Floats:
    """(R,) continuous ranked probability score from quantiles: twice the mean pinball loss.

    Of equally spaced levels it is the score up to the spacing: the tails beyond the outermost count
    as those.

    Args:
        quantiles: (R, Q). came: (R,).

    Source:
        Gneiting and Ranjan, "Comparing density forecasts using threshold- and quantile-weighted
        scoring rules", Journal of Business & Economic Statistics 29 (2011), equation 15.
    """
    level = np.asarray(levels, dtype=np.float64)
    short = came[:, None] - quantiles
    loss = np.maximum(level * short, (level - 1) * short)
    return np.asarray(2 * loss.mean(axis=1))


def ewma_quantiles(
    closes: pd.DataFrame, days: pd.DatetimeIndex, horizon: int, levels: Sequence[float]
) -> pd.DataFrame:
    """Quantiles of a random walk with RiskMetrics' volatility, on (datetime, instrument).

    Args:
        closes: days by names, up to each of `days` at least; a day counts what came before it and
            itself.
        days: to give quantiles for.

    Returns:
        A column a level; rows of names that have no volatility yet are left out.
    """
    moves = closes.apply(np.log).diff()
    variance = (moves**2).ewm(alpha=1 - DECAY, ignore_na=True, min_periods=5).mean()
    spread = (variance * horizon).reindex(days) ** 0.5
    spread = spread.where(closes.reindex(days).notna()).rename_axis("datetime")
    long = spread.rename_axis(columns="instrument").unstack().dropna().swaplevel().sort_index()
    return pd.DataFrame({level: np.exp(norm.ppf(level) * long) - 1 for level in levels})


def _ics(scores: pd.Series[float], labels: pd.Series[float]) -> pd.DataFrame:
    both = pd.concat({"score": scores, "label": labels}, axis=1, join="inner").dropna()
    if both.empty:
        return pd.DataFrame({"ic": [], "rank_ic": []}, index=pd.DatetimeIndex([]), dtype=float)
    return daily_ic(to_wide(both["score"]), to_wide(both["label"]))


def _distribution(
    quantiles: pd.DataFrame,
    returns: pd.Series[float],
    ewma: pd.DataFrame | None,
    horizon: int,
) -> list[Measure]:
    levels = [float(level) for level in quantiles.columns]
    known = quantiles.set_axis(levels, axis=1).join(returns.rename("came"), how="inner").dropna()
    if known.empty:
        return []
    came = known["came"].to_numpy(dtype=np.float64)
    drawn = known[levels].to_numpy(dtype=np.float64)
    found = []
    for share in COVERAGES:
        low, high = round((1 - share) / 2, 4), round((1 + share) / 2, 4)
        if low in levels and high in levels:
            within = known[low].le(known["came"]) & known["came"].le(known[high])
            daily = within.astype(float).groupby(level="datetime").mean()
            title = f"Share within the {share:.0%} interval"
            found.append(_measure(title, daily, "percent", horizon, share))
    score = pd.Series(crps_of_quantiles(drawn, levels, came), index=known.index)
    daily = score.groupby(level="datetime").mean()
    found.append(_measure("CRPS", daily, "basis points", horizon))
    if ewma is not None:
        other = ewma.set_axis([float(level) for level in ewma.columns], axis=1)
        rows = known.index.intersection(other.index)
        if len(rows):
            theirs = crps_of_quantiles(
                other.loc[rows, levels].to_numpy(dtype=np.float64),
                levels,
                known.loc[rows, "came"].to_numpy(dtype=np.float64),
            )
            less = (score.loc[rows] - theirs).groupby(level="datetime").mean()
            mean = pd.Series(theirs, index=rows).groupby(level="datetime").mean()
            found.append(_measure(f"CRPS of {EWMA}", mean, "basis points", horizon))
            found.append(_measure(f"CRPS less that of {EWMA}", less, "basis points", horizon))
    return found


def _measure(
    name: str,
    daily: pd.Series[float],
    form: str,
    label_bars: int,
    promised: DailyMean | float | None = None,
) -> Measure:
    values = by_day(daily.sort_index())
    live = None
    if len(values):
        try:
            live = daily_mean(values, label_bars=label_bars, name=name)
        except UndefinedMetricError:
            live = None  # the line has its mean, and a dash for the interval
    mean = float(values.mean()) if len(values) else math.nan
    return Measure(name=name, form=form, value=mean, days=len(values), live=live, promised=promised)


def _warnings(measures: Sequence[Measure], drift: Mapping[str, float]) -> list[str]:
    found = []
    for measure in measures:
        gap = measure.gap
        if gap is not None and gap.is_significant:
            where = "below" if gap.difference < 0 else "above"
            found.append(
                f"{measure.name} is {where} what was promised, significant at {1 - LEVEL:.0%} "
                f"(p {gap.p:.2g}, {measure.days} live days)."
            )
    for name, index in drift.items():
        if index >= LARGE:
            found.append(
                f"{name} is spread otherwise than when the model was judged: population stability "
                f"index {index:.2f}, {drift_word(index)}."
            )
    return found
