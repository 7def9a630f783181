"""How fast a CSV file of bars becomes a checked table, and in how much memory.

The bars are written as CSV first. Each row is read in a fresh process: by `read_bars`, and by
pandas' C parser with the same promise to guess nothing (text only, no column understood). Seconds
of wall clock and of CPU, the best of some rounds; resident memory at its highest, less what the
imports took.

Example:
    python benchmarks/reading.py cn_daily_2000_2002.parquet
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pandas as pd
import psutil

from kronos_qlib.data.files.read import read_bars

ROUNDS = 3
MIB = 2**20


def read_text(path: Path) -> int:
    return len(pd.read_csv(path, dtype=str, keep_default_na=False, engine="c"))


def read_all(path: Path) -> int:
    return len(read_bars(path, as_is=True).bars)


METHODS = {"read_bars": read_all, "pandas, text only": read_text}


def measure(method: str, path: Path) -> tuple[int, float, float, float]:
    """Rows, seconds, CPU seconds, MiB."""
    process = psutil.Process()
    before = process.memory_info().rss
    times = []
    for _ in range(ROUNDS):
        wall, cpu = time.perf_counter(), time.process_time()
        rows = METHODS[method](path)
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    # Of Linux, where ru_maxrss counts KiB; elsewhere what is there now.
    status = Path("/proc/self/status")
    peak = process.memory_info().rss
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        peak = int(line.split()[1]) * 1024
    return rows, min(wall for wall, _ in times), min(cpu for _, cpu in times), (peak - before) / MIB


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bars", type=Path, help="a Parquet file of bars")
    args = parser.parse_args(argv)
    print("| method | rows | s | CPU s | MiB |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "bars.csv")
        pd.read_parquet(args.bars).to_csv(path, index=False)
        for method in METHODS:
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                rows, wall, cpu, size = pool.submit(measure, method, path).result()
            print(f"| {method} | {rows:,} | {wall:.2f} | {cpu:.2f} | {size:,.0f} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
