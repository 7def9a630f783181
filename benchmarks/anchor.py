"""How far a forecast begins from where the bars end, with `anchor` and without, market by market.

A window's gap is the median close of its first forecast bar, over the paths, less the last close.
Without an anchor it is the sum of two parts: the tokens' error, what the last close lost when it
went through the tokenizer, and the network's drift, the median less the last close as its tokens
have it. Anchored, drift alone is left: paths are drawn once and moved, so that one run measures
both.

Gaps are given in bar deviations (the standard deviation of the close-to-close returns of the
window's lookback) and in percent of the last close: their mean size and their mean. "Share" is what
of the unanchored gap's variance is the tokens' error, cov(error, gap) / var(gap); the rest is
drift. "Bars" is the mean size of the move that came, for scale. `+-` is the standard error of a
mean, clustered by day, since names move together.

One window of each of `--windows` equally long stretches of the windows by (day, name) is taken, by
`--seed`. Bars that break a rule are left out (`drop-nan`, `drop-bracket`). Windows whose closes do
not move, or with a jump like a split in lookback or next bar, are left out and counted.

Example:
    python benchmarks/anchor.py cn_daily_2000_2002.parquet us_daily_2013_2016.parquet \
        --csv anchor.csv
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib import Kronos, KronosPredictor, KronosTokenizer
from kronos_qlib.data.files.read import read_bars
from kronos_qlib.data.files.repair import repair_bars
from kronos_qlib.data.rules import MAX_MOVE
from kronos_qlib.data.windows.bar_table import BarTable
from kronos_qlib.data.windows.find import windows_to_train
from kronos_qlib.data.windows.gather import gather
from kronos_qlib.data.windows.window import Windows
from kronos_qlib.schema import CLOSE

Floats = npt.NDArray[np.float64]

REPAIRS = ("drop-nan", "drop-bracket")
PUBLISHED_CONTEXT = 512


@dataclass(frozen=True)
class Gaps:
    """What each window's forecast begins with, as fractions of its last close: (W,) each.

    error: the decoded last close less the true one. drift: the median of the first bar less the
    decoded last close. moved: the close that came less the last. deviation: of a bar's return in
    the lookback. days: of the last bars seen.
    """

    error: Floats
    drift: Floats
    moved: Floats
    deviation: Floats
    days: npt.NDArray[np.datetime64]

    @property
    def plain(self) -> Floats:
        """Without an anchor."""
        return self.error + self.drift

    @property
    def share(self) -> float:
        """Of the unanchored gap's variance, what is the tokens' error."""
        gap = self.plain / self.deviation
        both = np.cov(self.error / self.deviation, gap)
        return float(both[0, 1] / both[1, 1])


def choose(bars: pd.DataFrame, most: int, lookback: int, seed: int) -> tuple[Windows, int]:
    """Windows with the bar after them, spread over (day, name), and how many were left out."""
    table = BarTable.from_bars(repair_bars(bars, REPAIRS)[0])
    found = windows_to_train(table, lookback, 1, None, None).by_time()
    if len(found) > most:
        bounds = np.linspace(0, len(found), most + 1).round().astype(np.int64)
        found = found.take(np.random.default_rng(seed).integers(bounds[:-1], bounds[1:]))
    closes = found.bars(slice(None))[..., CLOSE].astype(np.float64)
    returns = np.diff(closes, axis=1) / closes[:, :-1]
    good = (returns[:, :-1].std(axis=1) > 0) & (np.abs(returns).max(axis=1) <= MAX_MOVE)
    return found.take(np.flatnonzero(good)), int((~good).sum())


def measure(predictor: KronosPredictor, windows: Windows, paths: int, seed: int) -> Gaps:
    """Draw one bar after each window and take its gap apart."""
    which = np.arange(len(windows))
    bars, stamps = windows.bars(which), gather(windows, which).stamps
    seen = bars[:, :-1]
    first = {
        anchor: np.median(
            predictor.paths(
                seen,
                stamps[:, :-1],
                stamps[:, -1:],
                1,
                sample_count=paths,
                seed=seed,
                anchor=anchor,
                coherent=False,  # a floor or a widened high would be a third part
            )[:, :, 0, CLOSE].astype(np.float64),
            axis=1,
        )
        for anchor in (True, False)
    }
    last = seen[:, -1, CLOSE].astype(np.float64)
    closes = seen[..., CLOSE].astype(np.float64)
    return Gaps(
        error=(first[False] - first[True]) / last,
        drift=(first[True] - last) / last,
        moved=(bars[:, -1, CLOSE] - last) / last,
        deviation=(np.diff(closes, axis=1) / closes[:, :-1]).std(axis=1),
        days=windows.times.astype("datetime64[D]"),
    )


def clustered(values: Floats, days: npt.NDArray[np.datetime64]) -> tuple[float, float]:
    """Mean, and its standard error with the windows of a day as one cluster."""
    place = np.unique(days, return_inverse=True)[1]
    sums = np.bincount(place, values - values.mean())
    return float(values.mean()), float(np.sqrt(np.square(sums).sum()) / len(values))


def rows_of(market: str, gaps: Gaps, left_out: int, paths: int) -> list[dict[str, object]]:
    """The market's two rows: anchored, and as published."""
    rows: list[dict[str, object]] = []
    for name, gap, share in (
        ("anchored", gaps.drift, 0.0),
        ("as published", gaps.plain, gaps.share),
    ):
        row: dict[str, object] = {"market": market, "paths begin": name}
        row |= {"windows": len(gap), "left out": left_out, "paths": paths}
        for unit, values in (("dev", gap / gaps.deviation), ("pct", 100 * gap)):
            row[f"size_{unit}"], row[f"size_{unit}_se"] = clustered(np.abs(values), gaps.days)
            row[f"mean_{unit}"], row[f"mean_{unit}_se"] = clustered(values, gaps.days)
        row["largest_dev"] = float(np.abs(gap / gaps.deviation).max())
        row["token_share"] = share
        row["bars_dev"] = float(np.abs(gaps.moved / gaps.deviation).mean())
        row["bars_pct"] = float(100 * np.abs(gaps.moved).mean())
        rows.append(row)
    return rows


def as_markdown(table: pd.DataFrame) -> str:
    lines = [
        "| market | paths begin | size, dev. | mean, dev. | largest, dev. | size, % | mean, % | "
        "share of tokens | bars: size, dev. and % |",
        "|" + "---|" * 9,
    ]
    for row in table.to_dict("records"):
        cells = [
            str(row["market"]),
            str(row["paths begin"]),
            f"{row['size_dev']:.3f} ± {row['size_dev_se']:.3f}",
            f"{row['mean_dev']:+.3f} ± {row['mean_dev_se']:.3f}",
            f"{row['largest_dev']:.1f}",
            f"{row['size_pct']:.3f}",
            f"{row['mean_pct']:+.3f} ± {row['mean_pct_se']:.3f}",
            f"{row['token_share']:.0%}",
            f"{row['bars_dev']:.2f}, {row['bars_pct']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bars", type=Path, nargs="+", help="files that read_bars takes")
    parser.add_argument("--checkpoint", default="nano")
    parser.add_argument("--windows", type=int, default=1000, help="of each market")
    parser.add_argument("--paths", type=int, default=20)
    parser.add_argument("--lookback", type=int, default=90)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--csv", type=Path, default=Path("anchor.csv"), help="(%(default)s)")
    args = parser.parse_args(argv)

    model = Kronos.from_pretrained(args.checkpoint)
    known = model.origin.max_context if model.origin else None
    predictor = KronosPredictor(
        model,
        KronosTokenizer.from_pretrained(args.checkpoint),
        max_context=known or PUBLISHED_CONTEXT,
    )
    rows: list[dict[str, object]] = []
    for path in args.bars:
        began = time.perf_counter()
        windows, left_out = choose(
            read_bars(path, as_is=True).bars, args.windows, args.lookback, args.seed
        )
        gaps = measure(predictor, windows, args.paths, args.seed)
        rows += rows_of(path.stem, gaps, left_out, args.paths)
        print(f"{path.name}: {len(windows)} windows, {time.perf_counter() - began:.0f} s")
    table = pd.DataFrame(rows)
    table.to_csv(args.csv, index=False, lineterminator="\n", float_format="%.6g")
    print(as_markdown(table))
    print(f"written: {args.csv}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
