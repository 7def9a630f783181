"""What scoring costs in one process and on Ray, and what that says of many GPUs.

A simulated market is scored in blocks by `score_span`: in one process, and by 1 and 2 workers of
Ray on this machine, whose own start is told apart. Measured of each: seconds by the clock from the
call to the end; CPU seconds of the workers' processes, which a busy machine does not change as it
does the clock; what a worker takes before its first block; bytes of bars that a worker reads, of
the model that it is sent and of results that it writes, a window; the most memory that a worker
held. All tasks are of the same windows. Ray's own processes are in the clock's seconds alone.

The cost of a job of N windows in B blocks by W workers is taken to be, in CPU seconds,

    W * start + B * block + N * window

block and window by least squares, none below 0, over the blocks of jobs of 1 worker without the
first of each, whose excess is the start. Then it says what another job, of 2 workers, other blocks
and more windows, will take, which is measured after that.

What it says of GPUs is arithmetic, not measured here: floating-point operations of a window, over
those a second that a GPU is taken to reach (--gpu-tflops), or the time that a store which all
machines share (--network) takes for the results, whichever is longer; and on top the start of a
worker, its reading of the bars, and the slowest worker's last block.

Example:
    python benchmarks/scale.py
    python benchmarks/scale.py --names 40 --days 40 --tasks contexts paths5 paths20
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML
from scipy.optimize import nnls

from kronos_qlib.data.files.synthetic import MarketConfig, make_market
from kronos_qlib.evaluation.text_table import format_rows
from kronos_qlib.log import quiet_gym
from kronos_qlib.model.checkpoints.pretrained import sizes_of
from kronos_qlib.pipeline.block_jobs.job_folder import outcomes_of
from kronos_qlib.pipeline.block_jobs.ray_backend import RayBackend
from kronos_qlib.pipeline.block_jobs.run_blocks import Backend, OneProcess
from kronos_qlib.plugin.provider.writer import write_provider
from kronos_qlib.plugin.scoring_jobs.score_span import score_span

LOOKBACK, HORIZON = 90, 10
BYTES_A_BAR = 7 * 4
"""Six columns and the factor, as Qlib keeps them."""
TASKS = {"contexts": ("contexts", 1), "paths5": ("scores", 5), "paths20": ("scores", 20)}
"""Name to what is kept and how many paths are drawn."""
RESEARCH, RESEARCH_BARS = 3_000_000_000, 150_000_000
"""Windows and bars of 60,000 names, 10 years of 250 days and 20 variants."""
START, LAST_BLOCK = 60.0, 120.0
"""Seconds that a worker on a GPU is taken to start in, and the slowest one to work alone."""


@dataclass(frozen=True)
class Job:
    """One measured job."""

    size: str
    task: str
    workers: int
    """0: one process without Ray."""
    windows: int
    blocks: int
    seconds: float
    cpu_seconds: float
    start_cpu: float
    """CPU seconds of a worker before and in its first block, over those of its others; nan where it
    had one."""
    read: float
    """Bytes a window of bars that workers opened, each its own."""
    sent: float
    """Bytes a window of model that workers took from the object store."""
    written: float
    """Bytes a window of results."""
    peak_mb: float
    firsts: tuple[tuple[int, float], ...]
    """Windows and CPU seconds of each worker's first block, from the worker's start on."""
    others: tuple[tuple[int, float], ...]
    """Of the other blocks."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--names", type=int, default=20, help="instruments (%(default)s)")
    parser.add_argument("--days", type=int, default=24, help="days scored (%(default)s)")
    parser.add_argument("--sizes", nargs="+", default=["nano"], help="checkpoints (%(default)s)")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=[*TASKS])
    parser.add_argument(
        "--gpu-tflops",
        type=float,
        default=20.0,
        help="that a GPU is taken to reach (%(default)s: 2 %% of an H100's bfloat16)",
    )
    parser.add_argument("--price", type=float, default=3.0, help="dollars a GPU hour (%(default)s)")
    parser.add_argument(
        "--network", type=float, default=1.0, help="GB/s of the store (%(default)s)"
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    chosen = parser.parse_args()
    quiet_gym()
    with tempfile.TemporaryDirectory(prefix="kronos-scale-") as folder:
        bench = Bench(Path(folder), chosen.names, chosen.days)
        jobs, checks = [], []
        begun = time.monotonic()
        with RayBackend().held():  # one Ray for all: its start is measured by itself
            print(f"Ray itself: {time.monotonic() - begun:.1f} seconds to start\n", flush=True)
            for size in chosen.sizes:
                for task in chosen.tasks:
                    found, check = bench.measure(size, task)
                    jobs += found
                    checks.append(check)
                    print(report(found), f"\n{check['text']}\n", sep="\n", flush=True)
    print(extrapolated(chosen, jobs))
    if chosen.json:
        text = json.dumps({"jobs": [asdict(job) for job in jobs], "checks": checks}, indent=1)
        chosen.json.write_text(text, encoding="utf-8")


class Bench:
    """A simulated market, and jobs over its newest days."""

    def __init__(self, folder: Path, names: int, days: int) -> None:
        self.folder, self.days, self.made = folder, days, 0
        years = (LOOKBACK + days + 40) / 250
        config = MarketConfig(
            instruments=names, sectors=2, years=years, suspended_share=0.0, seed=1
        )
        bars = make_market(config).bars
        self.moments = np.unique(bars["date"].to_numpy())
        self.bars = len(bars)
        write_provider(bars, folder / "market", future_bars=HORIZON + 10)

    def measure(self, size: str, task: str) -> tuple[list[Job], dict[str, Any]]:
        """One process, 1 worker with blocks of two sizes; then 2 workers, foretold before."""
        half = self.days // 2
        jobs = [
            self.run(size, task, 0, half, 2),
            self.run(size, task, 1, half, 2),
            self.run(size, task, 1, half, 4),
        ]
        fit = fitted([job for job in jobs if job.workers])
        last = self.run(size, task, 2, self.days, 3)
        foretold = float(np.dot(fit, (2, last.blocks, last.windows)))
        off = foretold / last.cpu_seconds - 1
        text = (
            f"{size} {task}: a worker {fit[0]:.2f}, a block {fit[1]:.3f}, a window "
            f"{1000 * fit[2]:.3f} ms of CPU; the job of 2 workers was to take {foretold:.1f} CPU "
            f"seconds and took {last.cpu_seconds:.1f} ({off:+.0%})"
        )
        check = {"size": size, "task": task, "fit": list(fit), "off": off, "text": text}
        return [*jobs, last], check

    def run(self, size: str, task: str, workers: int, days: int, each: int) -> Job:
        """One job over the newest days."""
        self.made += 1
        out = self.folder / f"job{self.made}"
        what, paths = TASKS[task]
        backend: Backend = RayBackend(workers=workers) if workers else OneProcess()
        begun, cpu = time.monotonic(), time.process_time()
        found = score_span(
            str(self.workflow(size, paths, days)),
            out,
            what=what,  # type: ignore[arg-type]
            backend=backend,
            moments=each,
            threads=1,
        )
        seconds = time.monotonic() - begun
        outcomes = [*outcomes_of(out).values()]
        first = {outcome.worker: outcome for outcome in reversed(outcomes)}
        others = [one for one in outcomes if one is not first[one.worker]]
        rows = max(1, found.result.rows)
        spent = sum(one.cpu_seconds for one in outcomes)
        if not workers:  # this process was there before
            spent = time.process_time() - cpu
        usual = np.mean([one.cpu_seconds for one in others]) if others else np.nan
        weights = self.model_bytes(size)
        return Job(
            size,
            task,
            workers,
            found.result.rows,
            found.result.blocks,
            seconds,
            spent,
            float(np.mean([one.cpu_seconds for one in first.values()]) - usual),
            max(1, len(first)) * self.bars * BYTES_A_BAR / rows,
            len(first) * weights / rows if workers else 0.0,
            sum(one.bytes for one in outcomes) / rows,
            max(one.peak_mb for one in outcomes),
            tuple((one.rows, one.cpu_seconds) for one in first.values()),
            tuple((one.rows, one.cpu_seconds) for one in others),
        )

    def workflow(self, size: str, paths: int, days: int) -> Path:
        """A zero-shot model over the last days, as a file."""
        begin, end = self.moments[-days], self.moments[-1]
        text = [str(moment)[:10] for moment in (begin, end)]
        kronos = "kronos_qlib.plugin"
        config = {
            "qlib_init": {"provider_uri": str(self.folder / "market"), "region": "us"},
            "task": {
                "model": {
                    "class": "KronosModel",
                    "module_path": f"{kronos}.model",
                    "kwargs": {
                        "checkpoint": size,
                        "device": "cpu",
                        "sampling": {"paths": paths},
                        "show_progress": False,
                    },
                },
                "dataset": {
                    "class": "KronosDataset",
                    "module_path": f"{kronos}.dataset",
                    "kwargs": {
                        "handler": {
                            "class": "KronosHandler",
                            "module_path": f"{kronos}.dataset",
                            "kwargs": {"instruments": "all"},
                        },
                        "segments": {"test": text},
                        "lookback": LOOKBACK,
                        "horizon": HORIZON,
                    },
                },
            },
        }
        path = self.folder / f"workflow{self.made}.yaml"
        with path.open("w") as file:
            YAML(typ="safe").dump(config, file)
        return path

    def model_bytes(self, size: str) -> int:
        """Of both halves in float32, as they are sent."""
        return 4 * sum(weights_of(size).values())


def weights_of(size: str) -> dict[str, int]:
    """Numbers of each half of a checkpoint's shape; none are read or allocated."""
    import torch

    from kronos_qlib.model.tokenizer import KronosTokenizer
    from kronos_qlib.model.transformer import Kronos

    with torch.device("meta"):
        nets = {
            "predictor": Kronos(**sizes_of(size, "predictor")),
            "tokenizer": KronosTokenizer(**sizes_of(size, "tokenizer")),
        }
    return {name: sum(one.numel() for one in net.parameters()) for name, net in nets.items()}


def operations(size: str, task: str) -> float:
    """Floating-point operations of a window: two for each weight and bar that passes it."""
    weights, (what, paths) = weights_of(size), TASKS[task]
    half = weights["tokenizer"] / 2  # encoder and decoder are about equal
    if what == "contexts":
        return 2.0 * LOOKBACK * (weights["predictor"] + half)
    drawn = paths * HORIZON
    return 2.0 * ((LOOKBACK + drawn) * weights["predictor"] + (2 * LOOKBACK + drawn) * half)


def fitted(jobs: Sequence[Job]) -> tuple[float, float, float]:
    """CPU seconds of a worker, a block and a window."""
    blocks = [block for job in jobs for block in job.others]
    shape = np.array([(1.0, rows) for rows, _ in blocks])
    (block, window), _ = nnls(shape, np.array([spent for _, spent in blocks]))
    excess = [spent - block - rows * window for job in jobs for rows, spent in job.firsts]
    return float(np.mean(excess)), float(block), float(window)


def report(jobs: Sequence[Job]) -> str:
    """A row a job."""
    rows = [
        [
            "size",
            "task",
            "workers",
            "windows",
            "blocks",
            "s by the clock",
            "windows/s",
            "CPU s",
            "first block's CPU s above others",
            "bytes read, sent, written a window",
            "MiB of a worker",
        ]
    ]
    for job in jobs:
        rows.append(
            [
                job.size,
                job.task,
                "none: one process" if not job.workers else str(job.workers),
                f"{job.windows:,}",
                str(job.blocks),
                f"{job.seconds:.1f}",
                f"{job.windows / job.seconds:.1f}",
                f"{job.cpu_seconds:.1f}",
                "-" if np.isnan(job.start_cpu) or not job.workers else f"{job.start_cpu:.1f}",
                f"{job.read:,.0f}, {job.sent:,.0f}, {job.written:,.0f}",
                f"{job.peak_mb:,.0f}",
            ]
        )
    return format_rows(rows)


def extrapolated(chosen: argparse.Namespace, jobs: Sequence[Job]) -> str:
    """Hours and money of the research question, and what would have to be true."""
    rows = [["size", "task", "GFLOP a window", "TB kept", "GPUs", "hours", "dollars", "bound by"]]
    network = chosen.network * 1e9
    for size in chosen.sizes:
        for task in chosen.tasks:
            each = operations(size, task)
            kept = RESEARCH * bytes_kept(size, task)
            for count in (1, 8, 64):
                work = RESEARCH * each / (chosen.gpu_tflops * 1e12) / count
                writing, reading = kept / network, count * RESEARCH_BARS * BYTES_A_BAR / network
                hours = (START + reading + max(work, writing) + LAST_BLOCK) / 3600
                bound = "arithmetic" if work > max(writing, reading) else "the store"
                rows.append(
                    [
                        size,
                        task,
                        f"{each / 1e9:.2f}",
                        f"{kept / 1e12:.2f}",
                        str(count),
                        f"{hours:,.1f}",
                        f"{hours * count * chosen.price:,.0f}",
                        bound,
                    ]
                )
    cpu = [
        f"{job.size} {job.task} "
        f"{operations(job.size, job.task) * job.windows / job.cpu_seconds / 1e9:.0f}"
        for job in jobs
        if not job.workers
    ]
    reached = f" (one CPU core here: {', '.join(cpu)} GFLOP/s)" if cpu else ""
    return "\n".join(
        [
            f"{RESEARCH:,} windows, not measured: arithmetic at {chosen.gpu_tflops:g} TFLOP/s "
            f"a GPU and {chosen.price:g} dollars an hour",
            format_rows(rows),
            f"What would have to be true: a GPU reaches those operations on a day's windows"
            f"{reached}, which small networks do not without large days; one store gives and takes "
            f"{chosen.network:g} GB/s for all machines together; a worker opens all "
            f"{RESEARCH_BARS * BYTES_A_BAR / 1e9:.1f} GB of bars once, starts within {START:.0f} "
            f"seconds and its last block takes at most {LAST_BLOCK:.0f}; nobody waits for GPUs.",
        ]
    )


def bytes_kept(size: str, task: str) -> float:
    """Of a window: its context in float32, or its score with day and name."""
    if TASKS[task][0] == "contexts":
        return 4.0 * sizes_of(size, "predictor")["d_model"]
    return 24.0


if __name__ == "__main__":
    main()
