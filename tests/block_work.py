"""Work of blocks without a model or a market, for tests and for the processes that they start.

    python block_work.py FOLDER BLOCKS SECONDS [ray WORKERS]

does a job of so many blocks, each so many seconds long.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from kronos_qlib.errors import ConfigError
from kronos_qlib.pipeline.block_jobs.job_folder import Block, JobFolder
from kronos_qlib.pipeline.block_jobs.run_blocks import OneProcess, run_job

FACTS = {"what": "squares", "seed": "1"}


def blocks_of(count: int) -> list[Block]:
    return [Block(f"b{number:03d}", {"number": number}) for number in range(count)]


@dataclass(frozen=True)
class Squares:
    """Three rows of numbers of each block's own; none of every tenth.

    trouble: a folder: what a file in it, named by the block, says happens to it: "refuse", "raise"
        (an error of ours, of a library), "die" (its process is killed), "once" (raised once).
    """

    seconds: float = 0.0
    trouble: Path | None = None
    opens: bool = True

    def open(self):
        if not self.opens:
            raise ConfigError("the bars are not on this machine")
        return self.compute

    def compute(self, block: Block):
        time.sleep(self.seconds)
        self._meet_trouble(block)
        number = block.asked["number"]
        if number % 10 == 9:
            return None
        values = np.random.default_rng(number).normal(size=3)
        return pa.table({"number": [number] * 3, "value": values})

    def _meet_trouble(self, block: Block) -> None:
        path = self.trouble / block.name if self.trouble else None
        if path is None or not path.is_file():
            return
        what = path.read_text()
        if what == "once":
            path.unlink()
        if what in ("once", "raise"):
            raise MemoryError("no more")
        if what == "refuse":
            raise ConfigError(f"block {block.name} cannot be")
        if what == "die":
            os.kill(os.getpid(), 9)


@dataclass(frozen=True)
class Threads:
    """How many a worker may begin: by torch, and by the variable that libraries read."""

    def open(self):
        import torch

        return lambda block: pa.table(
            {"torch": [torch.get_num_threads()], "omp": [os.environ["OMP_NUM_THREADS"]]}
        )


def main() -> None:
    folder, count, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    backend = OneProcess()
    if len(sys.argv) > 4:
        from kronos_qlib.pipeline.block_jobs.ray_backend import RayBackend

        backend = RayBackend(workers=int(sys.argv[5]))
    with JobFolder.open(folder, FACTS, blocks_of(count)) as job:
        result = run_job(job, Squares(seconds), backend)
    sys.stdout.write(f"{result.rows} rows, {result.new} new\n")


if __name__ == "__main__":
    main()
