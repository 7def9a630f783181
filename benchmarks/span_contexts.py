"""What contexts lose that are read in spans: each name's bars once for several days in a row.

A year of days reads each window anew, 90 bars for one new bar, since each has its own scale. A span
of S days reads lookback + S - 1 bars once, by the scale of its first day's window, and takes a
context after every day. Here heads learn from either kind of contexts and are judged on either:
- "exact": each window by itself, as scores are made.
- a number: spans of so many days.

Heads see context and scale features, or the context alone: beside the features a context adds so
little that nothing could be lost. Bars, universe and segments are those of alpha.py's market, some
names of them, nano's contexts. Judged on validation, Rank IC by day and less that of exact contexts
learned from and judged, with its interval of 95 % (Newey-West), means over seeds; and the mean rank
correlation by day of a head's scores on one kind with its own on exact contexts.

The epoch of each head is chosen on the days that are judged, by exact contexts: levels are
flattered, all alike, and exact ones a little more.

Speed: windows a second of CPU time on one thread.

Example:
    python benchmarks/span_contexts.py --data FOLDER
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from alpha import Bench, add_market, bench_to_choose
from numpy.typing import NDArray
from scipy.stats import spearmanr

from kronos_qlib import KronosPredictor
from kronos_qlib.data.windows.label import ReturnLabel
from kronos_qlib.evaluation.ranking.information_coefficient import summarise_difference
from kronos_qlib.evaluation.text_table import format_rows
from kronos_qlib.pipeline.contexts import contexts_of
from kronos_qlib.pipeline.stages import make_head
from kronos_qlib.training.alpha import AlphaNet, AlphaSegment, AlphaStep, correlations
from kronos_qlib.training.loop import train
from kronos_qlib.training.stage_settings import AlphaConfig

EXACT = "exact"
Floats = NDArray[np.float32]


def segments_of(bench: Bench, names: int) -> dict[str, AlphaSegment]:
    """Days to learn from and to judge by, of some names of the universe."""
    source = bench.windows_dataset("train", "valid").source
    chosen: NDArray[np.int64] | None = None
    found = {}
    for name in ("train", "valid"):
        windows = source.labelled_windows(name, source.label.ahead)
        owners = windows.table.instrument_of(windows.ends[:])
        if chosen is None:
            there = np.unique(owners)
            chosen = np.random.default_rng(0).choice(there, min(names, len(there)), replace=False)
        windows = windows.take(np.flatnonzero(np.isin(owners, chosen)))
        found[name] = AlphaSegment.of(windows, ReturnLabel())
        print(f"{name}: {len(windows):,} windows, {len(found[name].days)} days", flush=True)
    return found


def read(predictor: KronosPredictor, segment: AlphaSegment, span: int | str) -> Floats:
    """(N, C) contexts of all windows of a segment."""
    return contexts_of(predictor, segment.windows, span=1 if span == EXACT else int(span))


def scores_of(step: AlphaStep, segment: AlphaSegment) -> Floats:
    """(N,) scores of a segment's days."""
    found = np.full(len(segment), np.nan, dtype=np.float32)
    with torch.inference_mode():
        for day in segment.days:
            found[day] = step.scores(segment.day_batch(np.arange(day.start, day.stop))).numpy()
    return found


def daily_rank_ic(scores: Floats, segment: AlphaSegment) -> list[float]:
    found = []
    for day in segment.days:
        known = np.isfinite(segment.returns[day])
        found.append(correlations(scores[day][known], segment.returns[day][known])[1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_market(parser)
    parser.add_argument("--names", type=int, default=250)
    parser.add_argument("--spans", type=int, nargs="+", default=[10, 20])
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    bench = bench_to_choose(args)
    segments = segments_of(bench, args.names)
    predictor = KronosPredictor.from_pretrained("nano", device="cpu")
    ways: list[int | str] = [EXACT, *args.spans]
    contexts: dict[tuple[str, int | str], Floats] = {}
    for way in ways:
        for name, segment in segments.items():
            kept = bench.work / "spans" / f"{name}_{args.names}_{way}.npy"
            if not kept.exists():
                began = time.process_time()
                found = read(predictor, segment, way)
                spent = time.process_time() - began
                print(f"{name}, {way}: {len(found) / spent:,.0f} windows/s", flush=True)
                kept.parent.mkdir(parents=True, exist_ok=True)
                np.save(kept, found)
            contexts[name, way] = np.load(kept)
    judged: dict[tuple[str, int | str, int | str], list[list[float]]] = {}
    alike: dict[tuple[str, int | str, int | str], list[float]] = {}
    for inputs in ("context and scale", "context alone"):
        for learned in ways:
            for seed in range(args.seeds):
                config = AlphaConfig(seed=seed)
                parts = []
                for name, way in (("train", learned), ("valid", EXACT)):
                    part = replace(segments[name], contexts=contexts[name, way])
                    if inputs == "context alone":
                        part = replace(part, features=np.zeros_like(part.features))
                    parts.append(part)
                step = AlphaStep(AlphaNet(make_head(config, predictor), None), None)
                train(step, *parts, config)
                exact = scores_of(step, parts[1])
                for way in ways if learned == EXACT else (EXACT, learned):
                    scores = scores_of(step, replace(parts[1], contexts=contexts["valid", way]))
                    key = inputs, learned, way
                    judged.setdefault(key, []).append(daily_rank_ic(scores, parts[1]))
                    both = [spearmanr(scores[day], exact[day])[0] for day in parts[1].days]
                    alike.setdefault(key, []).append(float(np.mean(both)))
    rows = [["head sees", "learned from", "judged on", "Rank IC", "seeds", "less exact (95 %)",
             "scores alike"]]  # fmt: skip
    for key, of_seeds in judged.items():
        daily, base = (
            pd.Series(np.mean(judged[one], axis=0)) for one in (key, (key[0], EXACT, EXACT))
        )
        each = [float(np.mean(one)) for one in of_seeds]
        less = ""
        if key[1:] != (EXACT, EXACT):
            found = summarise_difference(daily, base)
            less = f"{found['mean']:+.4f} ({found['low']:+.4f} to {found['high']:+.4f})"
        rows.append([
            key[0], str(key[1]), str(key[2]), f"{daily.mean():.4f}",
            f"{min(each):.4f} to {max(each):.4f}", less, f"{np.mean(alike[key]):.3f}",
        ])  # fmt: skip
    print(format_rows(rows))


if __name__ == "__main__":
    main()
