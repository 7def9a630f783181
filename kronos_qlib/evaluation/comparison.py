"""Signals of several runs on the same rows: which ranks better, by how much and how surely."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.errors import ConfigError, UndefinedMetricError
from kronos_qlib.evaluation.uncertainty import (
    DailyMean,
    PairedDifference,
    daily_mean,
    paired_difference,
)

LEVEL = 0.95
"""Confidence of every interval."""

DRAWS = 2000
"""Bootstrap samples of a test: their percentiles are steady to about a twentieth of a width."""

LABEL_RTOL, LABEL_ATOL = 1e-4, 1e-6
"""What two computations of one return may differ by: prices are float32."""


@dataclass(frozen=True)
class Signal:
    """What a run foretold and what came, each on (datetime, instrument)."""

    score: pd.Series
    """Higher is better."""
    label: pd.Series
    """The return that was to be foretold; NaN where it is not known."""


@dataclass(frozen=True)
class Pair:
    """A test of one daily Rank IC against another on the same days."""

    one: str
    other: str
    difference: PairedDifference | None
    """Of the mean daily Rank IC, `one` less `other`; None where it cannot be tested."""
    reason: str = ""
    """Why there is no test."""

    @property
    def is_told(self) -> bool:
        """Whether both intervals leave zero out, on the same side."""
        if self.difference is None:
            return False
        bounds = (*self.difference.interval, *self.difference.bootstrap)
        return min(bounds) > 0 or max(bounds) < 0


@dataclass(frozen=True)
class Blend:
    """The equal-weight mean of its members' percentile ranks of the day."""

    members: tuple[str, ...]
    rank_ic: float
    """Mean over the days."""
    test: Pair
    """Against the member with the higher mean Rank IC on these very days."""


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
    """Common times at which some run ranks nothing: one name only, or all scores the same."""


def compare_signals(signals: Mapping[str, Signal], *, seed: int = 0) -> SignalComparison:
    """Judge several signals on the same rows.

    Args:
        signals: by the runs' names, at least one.
        seed: of the bootstrap.

    Returns:
        Tests of every pair, in the order given; the equal-weight blend of every pair, and of all
        where there are more than two. No weight is fitted to the days that judge it.

    Raises:
        ConfigError: an index is not (datetime, instrument) with each row once; labels differ on
            rows that runs share; or no row, or no day with a ranking, is common to all.
    """
    common = _common_rows(signals)
    label = _matrix(common.pop("label"))
    ranked = {name: _ranks(_matrix(common[name])) for name in signals}
    ranks = list(ranked.values())
    by_time = pd.DataFrame(
        {name: _row_correlation(rank, _ranks(label)) for name, rank in ranked.items()},
        index=label.index,
    )
    is_ranked = by_time.notna().all(axis=1).to_numpy()
    if not is_ranked.any():
        flat = [str(name) for name in by_time if by_time[name].isna().all()]
        raise ConfigError(
            "no day on which every run ranks the instruments: "
            f"{', '.join(flat or list(signals))} gives all of them the same score, or there is one "
            "instrument only"
        )
    daily = _by_day(by_time[is_ranked])
    blends = []
    for places in _blended(len(ranks)):
        blend = sum((ranks[place] for place in places), np.zeros_like(ranks[0]))
        values = _row_correlation(_ranks(pd.DataFrame(blend)), _ranks(label))
        found = _by_day(pd.DataFrame({"blend": values}, index=label.index)[is_ranked])["blend"]
        blends.append(_blend(daily, [daily.columns[place] for place in places], found, seed))
    correlation = pd.DataFrame(
        [[np.mean(_row_correlation(one, other)[is_ranked]) for other in ranks] for one in ranks],
        index=daily.columns,
        columns=daily.columns,
    )
    return SignalComparison(
        daily=daily,
        means=_means(daily),
        correlation=correlation,
        pairs=tuple(
            pair_of(daily[one], daily[other], seed=seed) for one, other in combinations(daily, 2)
        ),
        blends=tuple(blends),
        rows=len(common),
        instruments=label.shape[1],
        own_rows={name: int(each.score.notna().sum()) for name, each in signals.items()},
        times_left_out=int((~is_ranked).sum()),
    )


def check_comparable(signals: Mapping[str, Signal]) -> None:
    """Refuse signals that cannot be judged side by side; raises as `compare_signals` does."""
    _common_rows(signals)


def pair_of(one: pd.Series[float], other: pd.Series[float], *, seed: int = 0) -> Pair:
    """Test two daily series of the same days, named by the runs; see `paired_difference`."""
    names = (str(one.name), str(other.name))
    if np.allclose(one, other, rtol=0, atol=1e-12):
        return Pair(*names, None, "the two rank alike on every day")
    try:
        return Pair(*names, paired_difference(one, other, level=LEVEL, draws=DRAWS, seed=seed))
    except UndefinedMetricError as refusal:
        return Pair(*names, None, str(refusal))


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
    known = series.dropna()
    if known.empty:
        return "no score"
    times = known.index.get_level_values("datetime")
    names = known.index.get_level_values("instrument").nunique()
    return f"{names} instruments from {times.min():%Y-%m-%d} to {times.max():%Y-%m-%d}"


def _matrix(rows: pd.Series) -> pd.DataFrame:
    """(times, instruments), NaN where there is no row."""
    table: pd.DataFrame = rows.unstack("instrument")
    return table


def _ranks(matrix: pd.DataFrame) -> npt.NDArray[np.float64]:
    """Percentile ranks within each row, ties sharing their mean; NaN stays."""
    return matrix.rank(axis=1, pct=True).to_numpy(dtype=np.float64)


def _row_correlation(
    one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """(times,) correlation within each row of two arrays with the same holes; NaN if undefined."""
    seen = np.isfinite(one)
    count = seen.sum(axis=1, keepdims=True)
    a, b = (np.where(seen, values, 0.0) for values in (one, other))
    a, b = (
        np.where(seen, values - values.sum(axis=1, keepdims=True) / count, 0.0) for values in (a, b)
    )
    square = (a**2).sum(axis=1) * (b**2).sum(axis=1)
    # Ranks that are all the same leave rounding behind, not zero.
    defined = square > 1e-18
    return np.where(defined, (a * b).sum(axis=1) / np.sqrt(np.where(defined, square, 1.0)), np.nan)


def _by_day(by_time: pd.DataFrame) -> pd.DataFrame:
    """One row a day: several bars of a day are one day's evidence, not several days'."""
    days = pd.DatetimeIndex(by_time.index).normalize()
    return by_time.groupby(days).mean().rename_axis("datetime")


def _means(daily: pd.DataFrame) -> dict[str, DailyMean]:
    found = {}
    for name in daily:
        try:
            found[str(name)] = daily_mean(daily[name])
        except UndefinedMetricError:
            continue  # the page shows the mean without an interval
    return found


def _blended(runs: int) -> list[tuple[int, ...]]:
    """Places of the members of each blend: every pair, and all where that is another."""
    everyone = [tuple(range(runs))] if runs > 2 else []
    return [*combinations(range(runs), 2), *everyone]


def _blend(
    daily: pd.DataFrame, members: Sequence[str], found: pd.Series[float], seed: int
) -> Blend:
    name = " + ".join(members)
    found = found.rename(name)
    best = daily[list(members)].mean().idxmax()
    rank_ic = float(found.mean())
    if found.isna().any():  # members that cancel each other rank nothing
        gone = int(found.isna().sum())
        reason = f"the blend ranks nothing on {gone} of {len(found)} days"
        return Blend(tuple(members), rank_ic, Pair(name, str(best), None, reason))
    return Blend(tuple(members), rank_ic, pair_of(found, daily[best], seed=seed))


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


def common_equity(reports: Mapping[str, pd.DataFrame]) -> Equity:
    """Cut daily reports to their common days.

    Args:
        reports: of each run, a row a day with `net_return`, `excess_return` and `bench`, each a
            fraction of the day before's account.

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
    bench = parts["bench"]
    return Equity(
        net=parts["net_return"],
        excess=parts["excess_return"],
        bench=bench.iloc[:, 0].rename("benchmark"),
        own_days={name: len(report) for name, report in reports.items()},
        same_bench=bool(np.allclose(bench.sub(bench.iloc[:, 0], axis=0), 0, atol=1e-9)),
    )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All that is shown of several runs side by side."""

    table: pd.DataFrame
    """A row per run; columns are keys of `comparison_text.MEASURES`, NaN where a run lacks one."""
    signals: SignalComparison | None
    equity: Equity | None
    settings: pd.DataFrame
    """(settings, runs) of text: what each run was, "" where it says nothing."""
    notes: tuple[str, ...] = ()
    """What a reader must know of these very runs, a sentence each."""
