"""How much memory drawing paths takes at most, beside what was planned and what was allowed.

Each case is one call of `KronosPredictor.paths` in a fresh process. The plan is of the
micro-batches at work together; weights, the caller's bars and the returned paths are not in it,
and lie beside it. All that a call allocates at once (its random numbers lie in the memory of the
paths that it returns) is there before its first micro-batch, and every micro-batch takes the same
again: so a call is stopped after `--seconds`, once each worker has had two of them. Weights are
nano's own, bars random walks.

Columns: micro-batch and workers; peak of resident memory above what was there before the call,
less the returned paths; of these the time fields, which the call copies; the plan; what
`memory_mb` allows; the share of the call that was done.

Example:
    python benchmarks/memory.py
    python benchmarks/memory.py --cases 10000:90:30:100:float32 --memory-mb 256 512 1024
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from generation import peak_mb

from kronos_qlib import KronosPredictor

MIB = 2**20
CASES = (
    "10000:90:30:100:float32",
    "10000:90:30:100:bfloat16",
    "10000:90:30:100:int8",
    "10000:400:30:5:float32",
    "1:90:30:10000:float32",
)


@dataclass(frozen=True)
class Call:
    series: int
    lookback: int
    horizon: int
    paths: int
    dtype: str

    @classmethod
    def parse(cls, text: str) -> Call:
        *numbers, dtype = text.split(":")
        if len(numbers) != 4 or dtype not in ("float32", "bfloat16", "int8"):
            raise argparse.ArgumentTypeError("expected series:lookback:horizon:paths:type")
        return cls(*map(int, numbers), dtype)


class EnoughError(Exception):
    """The call has gone on for long enough."""


def measure(call: Call, memory_mb: int, seconds: float) -> dict[str, Any]:
    """A row; to be run in a process that has drawn nothing yet."""
    half = KronosPredictor.from_pretrained("nano", device="cpu")
    predictor = KronosPredictor(
        half.model, half.tokenizer, "cpu", 512, dtype=call.dtype, memory_mb=memory_mb
    )
    rng = np.random.default_rng(0)
    length = call.lookback + call.horizon
    steps = rng.normal(0, 0.02, (call.series, call.lookback, 6)).astype(np.float32)
    bars = 10 * np.exp(steps.cumsum(axis=1))
    stamps = rng.integers(0, (60, 24, 7, 32, 13), (call.series, length, 5))
    past, ahead = np.split(stamps, [call.lookback], axis=1)
    seen = min(call.lookback, predictor.max_context)  # the bars before them are left out
    plan = predictor.plan(call.series, seen, call.horizon, call.paths)
    least = 2 * plan.workers / len(plan.batches(call.series, call.paths))
    done = 0.0

    def draw(series: int, paths: int, most: float) -> None:
        began = time.monotonic()

        def look(share: float) -> None:
            nonlocal done
            done = share
            if share >= least and time.monotonic() - began > most:
                raise EnoughError

        with suppress(EnoughError):
            predictor.paths(
                bars[:series], past[:series], ahead[:series], call.horizon,
                sample_count=paths, calibration=None, on_progress=look,
            )  # fmt: skip

    draw(1, 1, 60.0)  # packs the weights
    peak = peak_mb(lambda: draw(call.series, call.paths, seconds))
    returned = call.series * call.paths * call.horizon * 6 * 4 / MIB
    return {
        **asdict(call),
        "allowed_mb": memory_mb,
        "together": f"{plan.series} x {plan.paths}",
        "workers": plan.workers,
        "returned_mb": returned,
        "peak_mb": peak - returned,
        "copied_mb": call.series * (seen + call.horizon) * 5 * 8 / MIB,
        "planned_mb": plan.peak_bytes / MIB,
        "done": done,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=Call.parse, nargs="+", default=[*map(Call.parse, CASES)])
    parser.add_argument("--memory-mb", type=int, nargs="+", default=[1024])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--json", type=Path, help="write the table here too")
    args = parser.parse_args()
    rows = []
    print(
        "| series, lookback, horizon, paths | type | micro-batch x workers | returned | peak "
        "beside it (copies of the caller's) | planned | allowed | done |\n" + "|---" * 8 + "|"
    )
    for call in args.cases:
        for allowed in args.memory_mb:
            with multiprocessing.get_context("spawn").Pool(1) as fresh:
                row = fresh.apply(measure, (call, allowed, args.seconds))
            rows.append(row)
            print(
                f"| {call.series:,}, {call.lookback}, {call.horizon}, {call.paths:,} "
                f"| {call.dtype} | {row['together']} x {row['workers']} "
                f"| {row['returned_mb']:.0f} MiB | {row['peak_mb']:.0f} ({row['copied_mb']:.0f}) "
                f"| {row['planned_mb']:.0f} | {allowed} | {row['done']:.1%} |",
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
