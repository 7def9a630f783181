"""How often "95 %" intervals of a daily mean cover it, and how wide they are: methods side by side.

Daily series of known mean 0 are simulated, each method's interval is made of each, and those that
hold 0 are counted. Series:

- AR(1) of coefficient phi over n days, averaged over h days: labels of h bars overlap so that a
  daily IC is a moving average over h - 1 more. Normal, or of Student's t with 4 degrees of freedom.
- skill-less scores: 40 names whose scores change slowly (AR(1) of .9 or .98, independent of
  returns) are ranked against their returns over h bars, t with 4 degrees of freedom, with a common
  factor; the daily Rank IC is the series.

Methods:

- independent: Student's t, days taken for independent.
- Newey-West: Bartlett weights, max(4 (n / 100)^(2/9), h - 1) lags, Student's t of n - 1; what this
  package used before.
- block bootstrap: the stationary one's percentiles, mean length of blocks by Politis and White
  (`arch`), at least h; the other that this package used.
- studentised: t from circular blocks of that length, resampled, each with its own error.
- prewhitened: AR(1) prewhitening, quadratic spectral weights at Andrews' bandwidth (Andrews and
  Monahan 1992), normal critical values.
- fixed-b: Bartlett weights to 1.3 n^(1/2) lags (at least 2 h), critical values of Kiefer and
  Vogelsang (2005).
- cosines: equal-weighted, 0.4 n^(2/3) of them, Student's t (Lazarus, Lewis, Stock, Watson 2018).
- chosen: the same, at most 0.4 n / h of them: `daily_mean` of `evaluation.ranking.uncertainty`.

Width: mean, as a multiple of the narrowest interval that covers 95 %, 2 x 1.96 true deviations of
the mean. Both bootstraps are made of the first --few series.

    python benchmarks/intervals.py --json intervals.json
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from arch.bootstrap import optimal_block_length
from scipy.signal import lfilter
from scipy.stats import norm, rankdata
from scipy.stats import t as student

from kronos_qlib.evaluation.ranking.uncertainty import cosine_error, cosines_for, coverage_of

Floats = npt.NDArray[np.float64]
Ends = tuple[Floats, Floats]

PHIS, DAYS, BARS = (0.0, 0.3, 0.5, 0.8), (60, 120, 250), (1, 2, 5, 10)
LEVEL = 0.95
BURN = 200
"""Days before the first, so that a series begins in its stationary law."""


def autoregressive(
    rng: np.random.Generator, count: int, days: int, phi: float, bars: int, tails: float = np.inf
) -> Floats:
    """(count, days) of an AR(1) averaged over `bars` days."""
    shocks = rng.normal(size=(count, BURN + days + bars - 1))
    if np.isfinite(tails):
        shocks /= np.sqrt(rng.chisquare(tails, size=shocks.shape) / tails)
    series = lfilter([1.0], [1.0, -phi], shocks, axis=1)[:, BURN - 1 :]
    total = np.cumsum(series, axis=1)
    return np.asarray((total[:, bars:] - total[:, :-bars]) / bars)


def skill_less(
    rng: np.random.Generator, count: int, days: int, memory: float, bars: int, names: int = 40
) -> Floats:
    """(count, days) Rank IC of scores that last and know nothing."""
    found = np.empty((count, days))
    for place in range(count):
        shocks = rng.normal(size=(BURN + days, names))
        scores = lfilter([1.0], [1.0, -memory], shocks, axis=0)[BURN:]
        market = rng.normal(size=(days + bars, 1)) * rng.normal(size=names)
        total = np.cumsum(rng.standard_t(4, size=(days + bars, names)) + market, axis=0)
        ranks = rankdata(scores, axis=1), rankdata(total[bars:] - total[:-bars], axis=1)
        one, other = (each - (names + 1) / 2 for each in ranks)
        norms = (one**2).sum(axis=1) * (other**2).sum(axis=1)
        found[place] = (one * other).sum(axis=1) / np.sqrt(norms)
    return found


def autocovariances(apart: Floats, lags: int) -> Floats:
    """(count, lags + 1)"""
    days = apart.shape[1]
    each = [(apart[:, lag:] * apart[:, : days - lag]).sum(axis=1) for lag in range(lags + 1)]
    return np.asarray(np.stack(each, axis=1) / days)


def around(series: Floats, reach: Floats) -> Ends:
    mean = series.mean(axis=1)
    return mean - reach, mean + reach


def bartlett(series: Floats, lags: int) -> Floats:
    """(count,) standard error"""
    found = autocovariances(series - series.mean(axis=1, keepdims=True), lags)
    weights = 1 - np.arange(lags + 1) / (lags + 1)
    weights[1:] *= 2
    return np.asarray(np.sqrt(np.maximum(found @ weights, 0) / series.shape[1]))


def independent(series: Floats, bars: int) -> Ends:
    days = series.shape[1]
    error = series.std(axis=1, ddof=1) / np.sqrt(days)
    return around(series, float(student.ppf(0.975, days - 1)) * error)


def newey_west(series: Floats, bars: int) -> Ends:
    days = series.shape[1]
    error = bartlett(series, max(int(4 * (days / 100) ** (2 / 9)), bars - 1))
    error *= np.sqrt(days / (days - 1))
    return around(series, float(student.ppf(0.975, days - 1)) * error)


def fixed_b(series: Floats, bars: int) -> Ends:
    days = series.shape[1]
    lags = max(int(np.ceil(1.3 * np.sqrt(days))), 2 * bars)
    share = (lags + 1) / days
    critical = 1.96 + 2.9694 * share + 0.416 * share**2 - 0.5324 * share**3
    return around(series, critical * bartlett(series, lags))


def prewhitened(series: Floats, bars: int) -> Ends:
    days = series.shape[1]
    apart = series - series.mean(axis=1, keepdims=True)
    phi = (apart[:, 1:] * apart[:, :-1]).sum(axis=1) / (apart[:, :-1] ** 2).sum(axis=1)
    phi = np.clip(phi, -0.97, 0.97)
    left = apart[:, 1:] - phi[:, None] * apart[:, :-1]
    left -= left.mean(axis=1, keepdims=True)
    again = (left[:, 1:] * left[:, :-1]).sum(axis=1) / (left[:, :-1] ** 2).sum(axis=1)
    bandwidth = 1.3221 * (4 * again**2 / (1 - again) ** 4 * (days - 1)) ** 0.2
    bandwidth = np.maximum(bandwidth, max(bars - 1, 1e-3))
    angle = 6 * np.pi / 5 * np.arange(1, days - 1) / bandwidth[:, None]
    weights = 3 / angle**2 * (np.sin(angle) / angle - np.cos(angle))
    found = autocovariances(left, days - 2)
    long_run = found[:, 0] + 2 * (weights * found[:, 1:]).sum(axis=1)
    error = np.sqrt(np.maximum(long_run, 0) / days) / (1 - phi)
    return around(series, float(norm.ppf(0.975)) * error)


def cosines(series: Floats, bars: int) -> Ends:
    count = cosines_for(series.shape[1])
    return around(series, float(student.ppf(0.975, count)) * cosine_error(series.T, count))


def chosen(series: Floats, bars: int) -> Ends:
    count = cosines_for(series.shape[1], bars)
    return around(series, float(student.ppf(0.975, count)) * cosine_error(series.T, count))


def block_days(values: Floats, kind: str, bars: int) -> int:
    """By Politis and White, from h to a third of the days."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = float(optimal_block_length(values)[kind].iloc[0])
    most = len(values) // 3
    length = int(np.clip(np.ceil(found), 1, most)) if np.isfinite(found) else most
    return max(length, bars)


def stationary(rng: np.random.Generator, draws: int) -> Callable[[Floats, int], Ends]:
    def method(series: Floats, bars: int) -> Ends:
        days = series.shape[1]
        ends = []
        for values in series:
            length = block_days(values, "stationary", bars)
            begins = rng.random((draws, days)) < 1 / length
            begins[:, 0] = True
            starts = np.where(begins, rng.integers(days, size=begins.shape), 0)
            place = np.maximum.accumulate(np.where(begins, np.arange(days), 0), axis=1)
            first = np.take_along_axis(starts, place, axis=1)
            means = values[(first + np.arange(days) - place) % days].mean(axis=1)
            ends.append(np.quantile(means, [0.025, 0.975]))
        low, high = np.array(ends).T
        return low, high

    return method


def studentised(rng: np.random.Generator, draws: int) -> Callable[[Floats, int], Ends]:
    def method(series: Floats, bars: int) -> Ends:
        days = series.shape[1]
        ends = []
        for values in series:
            length = block_days(values, "circular", bars)
            total = np.concatenate([[0.0], np.cumsum(np.concatenate([values, values]))])
            blocks = (total[length : length + days] - total[:days]) / length
            count = max(days // length, 2)
            error = blocks.std() / np.sqrt(days / length)
            drawn = blocks[rng.integers(days, size=(draws, count))]
            spread = drawn.std(axis=1, ddof=1) / np.sqrt(count)
            t = (drawn.mean(axis=1) - values.mean()) / np.maximum(spread, 1e-300)
            low, high = np.quantile(t, [0.025, 0.975])
            ends.append((values.mean() - high * error, values.mean() - low * error))
        low, high = np.array(ends).T
        return low, high

    return method


def methods(rng: np.random.Generator, draws: int) -> dict[str, Callable[[Floats, int], Ends]]:
    return {
        "independent": independent,
        "Newey-West": newey_west,
        "block bootstrap": stationary(rng, draws),
        "studentised": studentised(rng, draws),
        "prewhitened": prewhitened,
        "fixed-b": fixed_b,
        "cosines": cosines,
        "chosen": chosen,
    }


SLOW = ("block bootstrap", "studentised")
BRIEF = ("Newey-West", "cosines", "chosen")
"""What the further tables show."""

NORMAL, HEAVY, SKILL_LESS = TABLES = ("normal", "t of 4 degrees", "skill-less scores")


def judged(
    series: Floats, bars: int, ways: dict[str, Callable[[Floats, int], Ends]], few: int
) -> dict[str, dict[str, float]]:
    """Coverage of 0, its Monte Carlo error, and width, by method."""
    narrowest = 2 * float(norm.ppf(0.975)) * float(np.sqrt((series.mean(axis=1) ** 2).mean()))
    found = {}
    for name, method in ways.items():
        low, high = method(series[:few] if name in SLOW else series, bars)
        covered = float(((low <= 0) & (high >= 0)).mean())
        error = float(np.sqrt(covered * (1 - covered) / len(low)))
        width = float((high - low).mean()) / narrowest
        found[name] = {"coverage": covered, "error": error, "width": width}
    return found


def cell_of(asked: tuple[str, float, int, int, argparse.Namespace]) -> dict[str, Any]:
    table, phi, days, bars, args = asked
    rng = np.random.default_rng([args.seed, TABLES.index(table), int(1000 * phi), days, bars])
    ways = methods(rng, args.draws)
    found: dict[str, Any] = {"table": table, "phi": phi, "days": days, "bars": bars}
    if table == SKILL_LESS:
        series = skill_less(rng, args.scores, days, phi, bars)
    else:
        tails = 4.0 if table == HEAVY else np.inf
        series = autoregressive(rng, args.series, days, phi, bars, tails)
    if table == NORMAL:
        found["computed"] = coverage_of(days, bars, phi)
    else:
        ways = {name: ways[name] for name in BRIEF}
    return {**found, "methods": judged(series, bars, ways, args.few)}


def show(found: list[dict[str, Any]]) -> None:
    table = ""
    for cell in found:
        names = list(cell["methods"])
        if cell["table"] != table:
            table = cell["table"]
            print(f"\n{table}: coverage in %, (width)\n")
            print(f"| phi | days | bars | {' | '.join(names)} |\n{'|---' * (3 + len(names))}|")
        shown = [
            f"{100 * each['coverage']:.1f} ({each['width']:.2f})"
            for each in cell["methods"].values()
        ]
        print(f"| {cell['phi']:g} | {cell['days']} | {cell['bars']} | {' | '.join(shown)} |")
    for slow in (False, True):
        errors = [
            each["error"]
            for cell in found
            for name, each in cell["methods"].items()
            if (name in SLOW) == slow and cell["table"] != SKILL_LESS and each["coverage"] > 0.9
        ]
        if errors:
            which = "bootstraps" if slow else "others"
            print(f"\nMonte Carlo error of coverages above 90 %, {which}: {100 * max(errors):.1f}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--series", type=int, default=10_000, help="simulated in a cell")
    parser.add_argument("--few", type=int, default=500, help="of these, for the bootstraps")
    parser.add_argument("--scores", type=int, default=1000, help="skill-less scores in a cell")
    parser.add_argument("--draws", type=int, default=300, help="of a bootstrap")
    parser.add_argument("--phi", type=float, nargs="+", default=PHIS)
    parser.add_argument("--days", type=int, nargs="+", default=DAYS)
    parser.add_argument("--bars", type=int, nargs="+", default=BARS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, help="write the tables here too")
    args = parser.parse_args(argv)
    started = time.perf_counter()
    asked = [
        (table, phi, days, bars, args)
        for table in TABLES
        for phi in ((0.9, 0.98) if table == SKILL_LESS else args.phi)
        for days in args.days
        for bars in args.bars
    ]
    if args.processes > 1:
        with ProcessPoolExecutor(args.processes, get_context("spawn")) as pool:
            found = list(pool.map(cell_of, asked))
    else:
        found = [cell_of(each) for each in asked]
    show(found)
    print(f"\n{time.perf_counter() - started:.0f} s")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
