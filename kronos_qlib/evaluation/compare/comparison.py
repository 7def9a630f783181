"""Signals of several runs on the same rows: which ranks better, by how much, how significantly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import pandas as pd

from kronos_qlib.errors import ConfigError, UndefinedMetricError
from kronos_qlib.evaluation.portfolio.metrics import TRADING_DAYS, deflated_sharpe, wealth_measures
from kronos_qlib.evaluation.ranking.day_tables import LEAST_PAIRS, to_wide
from kronos_qlib.evaluation.ranking.information_coefficient import daily_ic
from kronos_qlib.evaluation.ranking.uncertainty import (
    DailyMean,
    by_day,
    daily_mean,
    label_days_of,
    paired_difference,
)

LABEL_RTOL, LABEL_ATOL = 1e-4, 1e-6
"""What two computations of one return may differ by: prices are float32."""


@dataclass(frozen=True)
class Signal:
    """What a run predicted and what came, each on (datetime, instrument)."""

    score: pd.Series
    """Higher is better."""
    label: pd.Series
    """The return that was to be predicted; NaN where it is not known."""


@dataclass(frozen=True)
class Pair:
    """A test of one daily series, a Rank IC or an excess return, against another's same days."""

    one: str
    other: str
    difference: DailyMean | None
    """Of the daily means, `one` less `other`; None where it cannot be tested."""
    reason: str = ""
    """Why there is no test."""

    @property
    def is_significant(self) -> bool:
        """Whether the interval leaves zero out, which is whether p is below 5 %."""
        return self.difference is not None and self.difference.is_significant()


@dataclass(frozen=True)
class Blend:
    """The equal-weight mean of its members' percentile ranks of the day."""

    members: tuple[str, ...]
    rank_ic: float
    """Mean over the days."""
    test: Pair
    """Against the member with the higher mean Rank IC on the same days."""


@dataclass(frozen=True, kw_only=True)
class SignalComparison:
    """Signals judged on the rows that all have, where the label is known."""

    daily: pd.DataFrame
    """(days, runs): Rank IC; of several bars a day their mean."""
    means: Mapping[str, DailyMean]
    """Mean Rank IC of each run; a run without one (too few days, or it never varies) is absent."""
    correlation: pd.DataFrame
    """(runs, runs): mean daily rank correlation of the signals."""
    pairs: tuple[Pair, ...]
    blends: tuple[Blend, ...]
    rows: int
    """Common rows: an instrument at a time."""
    instruments: int
    own_rows: Mapping[str, int]
    """Rows with a score, of each run by itself."""
    times_left_out: int
    """Common times at which some run ranks nothing: too few names, or all scores the same."""


def compare_signals(signals: Mapping[str, Signal], *, label_bars: int = 1) -> SignalComparison:
    """Judge several signals on the same rows.

    Args:
        signals: by the runs' names, at least one.
        label_bars: bars that the label's return runs over. Those of neighbouring bars overlap.

    Returns:
        Tests of every pair, in the order given; the equal-weight blend of every pair, and of all
        where there are more than two. No weight is fitted to the days that judge it.

    Raises:
        ConfigError: an index is not (datetime, instrument) with each row once; labels differ on
            rows that runs share; or no row, or no day with a ranking, is common to all.
    """
    label, wide, by_time = _rank_ics(signals)
    is_ranked = by_time.notna().all(axis=1)
    daily = by_day(by_time[is_ranked])
    label_days = label_days_of(label_bars, int(is_ranked.sum()), len(daily))
    ranks = {name: score.rank(axis=1, pct=True) for name, score in wide.items()}
    blends = []
    for members in _blended(list(wide)):
        mixed = sum((ranks[name] for name in members[1:]), ranks[members[0]])
        found = _rank_ic(mixed, label)[is_ranked].rename(" + ".join(members))
        blends.append(_blend(daily, members, by_day(found), label_days))
    correlation = pd.DataFrame(
        {
            name: [float(_rank_ic(other, score)[is_ranked].mean()) for other in wide.values()]
            for name, score in wide.items()
        },
        index=daily.columns,
    )
    return SignalComparison(
        daily=daily,
        means=_means(daily, label_days),
        correlation=correlation,
        pairs=tuple(
            pair_of(daily[one], daily[other], label_days=label_days)
            for one, other in combinations(daily, 2)
        ),
        blends=tuple(blends),
        rows=int(label.notna().to_numpy().sum()),
        instruments=label.shape[1],
        own_rows={name: int(each.score.notna().sum()) for name, each in signals.items()},
        times_left_out=int((~is_ranked).sum()),
    )


def check_comparable(signals: Mapping[str, Signal]) -> None:
    """Refuse signals that cannot be judged side by side; raises as `compare_signals` does."""
    _rank_ics(signals)


def pair_of(
    one: pd.Series[float],
    other: pd.Series[float],
    *,
    label_days: int = 1,
    alike: str = "the two rank alike on every day",
) -> Pair:
    """Test two daily series of the same days, named by the runs.

    See `paired_difference`; `label_days` are the days that a label's return runs over, `alike` the
    reason why there is no test of two that are the same.
    """
    names = (str(one.name), str(other.name))
    if np.allclose(one, other, rtol=0, atol=1e-12):
        return Pair(*names, None, alike)
    try:
        found = paired_difference(one, other, label_bars=label_days)
    except UndefinedMetricError as refusal:
        return Pair(*names, None, str(refusal))
    return Pair(*names, found)


def _rank_ics(
    signals: Mapping[str, Signal],
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame], pd.DataFrame]:
    """On the rows that all have, times by names: the label, each score; and times by runs: Rank IC.

    Raises:
        ConfigError: as of `compare_signals`.
    """
    common = _common_rows(signals)
    label = to_wide(common["label"])
    wide = {name: to_wide(common[name]) for name in signals}
    by_time = pd.DataFrame({name: _rank_ic(score, label) for name, score in wide.items()})
    if not by_time.notna().all(axis=1).any():
        flat = [str(name) for name in by_time if by_time[name].isna().all()]
        raise ConfigError(
            "no day on which every run ranks the instruments: "
            f"{', '.join(flat or list(signals))} gives all of them the same score, or fewer than "
            f"{LEAST_PAIRS} instruments are common"
        )
    return label, wide, by_time


def _common_rows(signals: Mapping[str, Signal]) -> pd.DataFrame:
    """A column per run and "label", on the rows where all are known."""
    for name, each in signals.items():
        for what, series in (("scores", each.score), ("labels", each.label)):
            if list(series.index.names) != ["datetime", "instrument"] or not series.index.is_unique:
                raise ConfigError(
                    f"{name!r}: expected {what} on (datetime, instrument), each row once, got "
                    f"{list(series.index.names)}"
                    + ("" if series.index.is_unique else " with rows twice")
                )
    _check_labels(signals)
    # Where labels agree the first run's will do, but every run must have one.
    labels = pd.concat([each.label for each in signals.values()], axis=1, join="inner")
    known = labels.dropna().iloc[:, 0].rename("label")
    scores = [each.score.rename(name) for name, each in signals.items()]
    table = pd.concat([*scores, known], axis=1, join="inner")
    table = table.replace([np.inf, -np.inf], np.nan).dropna().sort_index()
    if table.empty:
        spans = [f"{name!r} has {_reach(each.score)}" for name, each in signals.items()]
        raise ConfigError(
            "the runs share no day and instrument with a known label: " + "; ".join(spans)
        )
    return table


def _check_labels(signals: Mapping[str, Signal]) -> None:
    """Refuse runs that are judged by different returns."""
    (first, expected), *others = signals.items()
    for name, each in others:
        both = pd.concat([expected.label, each.label], axis=1, join="inner").dropna()
        one, other = both.iloc[:, 0].to_numpy(), both.iloc[:, 1].to_numpy()
        differs = ~np.isclose(one, other, rtol=LABEL_RTOL, atol=LABEL_ATOL)
        if differs.any():
            place = int(differs.argmax())
            moment, instrument = both.index[place]
            raise ConfigError(
                f"{first!r} and {name!r} are judged by different labels: on {int(differs.sum())} "
                f"of {len(both)} common rows, {instrument} on {moment:%Y-%m-%d} the first with "
                f"{one[place]:.6g} and {other[place]:.6g}; compare runs of one label expression "
                "and one adjustment of prices"
            )


def _reach(series: pd.Series) -> str:
    known = series[np.isfinite(series)]
    if known.empty:
        return "no score that is a finite number"
    times = known.index.get_level_values("datetime")
    names = known.index.get_level_values("instrument").nunique()
    return f"{names} instruments from {times.min():%Y-%m-%d} to {times.max():%Y-%m-%d}"


def _rank_ic(score: pd.DataFrame, label: pd.DataFrame) -> pd.Series[float]:
    """Spearman's correlation over the names of each time; NaN where one of them orders nothing."""
    found: pd.Series[float] = daily_ic(score, label)["rank_ic"]
    return found


def _means(daily: pd.DataFrame, label_days: int) -> dict[str, DailyMean]:
    found = {}
    for name in daily:
        try:
            found[str(name)] = daily_mean(daily[name], label_bars=label_days)
        except UndefinedMetricError:
            continue  # the page shows the mean without an interval
    return found


def _blended(runs: Sequence[str]) -> list[tuple[str, ...]]:
    """The members of each blend: every pair, and all where that is another."""
    everyone = [tuple(runs)] if len(runs) > 2 else []
    return [*combinations(runs, 2), *everyone]


def _blend(
    daily: pd.DataFrame,
    members: tuple[str, ...],
    found: pd.Series[float],
    label_days: int,
) -> Blend:
    best = str(daily[list(members)].mean().idxmax())
    rank_ic = float(found.mean())
    if found.isna().any():  # members that cancel each other rank nothing
        reason = f"the blend ranks nothing on {int(found.isna().sum())} of {len(found)} days"
        return Blend(members, rank_ic, Pair(str(found.name), best, None, reason))
    return Blend(members, rank_ic, pair_of(found, daily[best], label_days=label_days))


@dataclass(frozen=True, kw_only=True)
class Equity:
    """Daily returns of several backtests on the days that all have."""

    net: pd.DataFrame
    """(days, runs): return after cost."""
    excess: pd.DataFrame
    """(days, runs): return after cost less the run's own benchmark."""
    bench: pd.Series[float]
    """(days,): the first run's benchmark."""
    own_days: Mapping[str, int]
    """Days of each backtest by itself."""
    same_bench: bool
    """Whether all runs have that benchmark."""
    days_per_year: float
    """What daily figures are scaled to a year by, for all runs alike."""
    measures: pd.DataFrame
    """(runs, measures): those of `wealth_measures`, and `turnover` where all runs have it."""
    benchmark: Mapping[str, float]
    """The same measures of the benchmark; what compares it with itself is absent."""
    tests: Mapping[str, DailyMean]
    """Mean daily excess return after cost of each run; one that cannot be tested is absent."""
    pairs: tuple[Pair, ...]
    """Tests of the daily excess returns after cost of every two runs."""

    def deflated(self, trials: int) -> dict[str, float]:
        """The deflated Sharpe ratio of each run's excess, each as the best of `trials`.

        A run whose excess never varies has none and is absent.
        """
        found = {}
        for name in self.excess:
            try:
                of_run = deflated_sharpe(
                    self.excess[name], trials, days_per_year=self.days_per_year
                )
            except UndefinedMetricError:
                continue
            found[str(name)] = of_run.probability
        return found


def excess_test(excess: pd.Series[float]) -> DailyMean | None:
    """`daily_mean` of a daily excess return; None where it cannot be tested.

    Days are not assumed independent: a book that is held for days earns alike on them.
    """
    try:
        return daily_mean(excess, name="the excess return")
    except UndefinedMetricError:
        return None


def common_equity(
    reports: Mapping[str, pd.DataFrame], *, days_per_year: float = TRADING_DAYS
) -> Equity:
    """Cut daily reports to their common days, measure them and test what they earned.

    Args:
        reports: of each run, a row a day with `net_return`, `excess_return` and `bench`, each a
            fraction of the day before's account; `turnover` if known.
        days_per_year: what daily figures are scaled to a year by.

    Raises:
        ConfigError: no two days are common to all.
    """
    parts = {
        column: pd.concat(
            [report[column].rename(name) for name, report in reports.items()], axis=1, join="inner"
        ).sort_index()
        for column in ("net_return", "excess_return", "bench")
    }
    if len(parts["net_return"]) < 2:
        spans = [
            f"{name!r} from {report.index.min():%Y-%m-%d} to {report.index.max():%Y-%m-%d}"
            for name, report in reports.items()
        ]
        raise ConfigError(f"the backtests share no two days: {'; '.join(spans)}")
    net, excess, bench = (parts[column] for column in ("net_return", "excess_return", "bench"))
    measures = pd.DataFrame(
        {
            name: wealth_measures(net[name], bench[name], days_per_year=days_per_year)
            for name in reports
        }
    ).T
    if all("turnover" in report for report in reports.values()):
        measures["turnover"] = [
            float(report["turnover"].reindex(net.index).mean()) for report in reports.values()
        ]
    first = bench.iloc[:, 0].rename("benchmark")
    of_benchmark = wealth_measures(first, first, days_per_year=days_per_year)
    tests = {name: excess_test(excess[name]) for name in reports}
    return Equity(
        net=net,
        excess=excess,
        bench=first,
        own_days={name: len(report) for name, report in reports.items()},
        same_bench=bool(np.allclose(bench.sub(first, axis=0), 0, atol=1e-9)),
        days_per_year=days_per_year,
        measures=measures,
        benchmark={
            name: of_benchmark[name] for name in ("annual_return", "sharpe", "max_drawdown")
        },
        tests={name: test for name, test in tests.items() if test is not None},
        pairs=tuple(
            pair_of(excess[one], excess[other], alike="the two earn the same on every day")
            for one, other in combinations(reports, 2)
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All that is shown of several runs side by side."""

    table: pd.DataFrame
    """A row per run; columns are keys of `comparison_text.MEASURES`, NaN where a run lacks one,
    and `excess_low`, `excess_high`: the interval of `excess_return`."""
    signals: SignalComparison | None
    equity: Equity | None
    settings: pd.DataFrame
    """(settings, runs) of text: what each run was, "" where it says nothing."""
    notes: tuple[str, ...] = ()
    """What a reader must know of these very runs, a sentence each."""
    holdings: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    """By run: on keys of `comparison_text.HOLDINGS` and `exposure.NAME`, `mean`, `low`, `high`."""
