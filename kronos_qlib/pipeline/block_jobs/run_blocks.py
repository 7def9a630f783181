"""A job's blocks through workers, whoever these are: this process, or actors of Ray.

    with JobFolder.open(folder, facts, blocks) as job:
        result = run_job(job, work, OneProcess())

A backend decides where blocks are done and by how many at once. What a block is, how its result is
kept, how often it is tried and what is told meanwhile are the same for all.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from kronos_qlib.errors import JobError, KronosError, some_of
from kronos_qlib.log import REPORT_SECONDS, progress
from kronos_qlib.markup import cause_of, one_line
from kronos_qlib.pipeline.block_jobs.job_folder import (
    SHOWN,
    Block,
    JobFolder,
    Outcome,
    PartWriter,
)

if TYPE_CHECKING:
    import pyarrow as pa

MOST_ATTEMPTS = 3
"""Times that a block is begun in one start of a job."""

Compute = Callable[[Block], "pa.Table | None"]
"""The result of a block; None where it has no row."""


@runtime_checkable
class OnDevice(Protocol):
    """A `Compute` whose numbers depend on the device, to the last bit."""

    device: str
    """As "cpu": all blocks of a job must have the same."""


class Work(Protocol):
    """What is done with each block; it is pickled for workers in other processes."""

    def open(self) -> Compute:
        """In a worker, once: load models, open data.

        Raises:
            KronosError: it cannot be opened here, so no block can be done.
        """


class Backend(Protocol):
    """Where blocks are done."""

    def outcomes(
        self, work: Work, blocks: Sequence[Block], writer: PartWriter
    ) -> Generator[Outcome, None, None]:
        """Do blocks; what became of each, in any order, once each."""


@dataclass(frozen=True)
class JobResult:
    """What a start of a job did.

    rows: of all blocks that are done. new: blocks done by this start. seconds: it took.
    failed: why, by block.
    """

    rows: int
    blocks: int
    new: int
    seconds: float
    failed: Mapping[str, str]

    def check(self, folder: object) -> None:
        """
        Raises:
            JobError: blocks failed; names them.
        """
        if self.failed:
            each = [f"{name}: {why}" for name, why in self.failed.items()]
            raise JobError(
                f"{len(self.failed)} of {self.blocks} blocks failed, the others are in {folder}; "
                f"the same command tries these alone. {some_of(each, SHOWN, '; ')}"
            )


class Worker:
    """One process' part: opens the work when the first block comes, and does blocks."""

    def __init__(self, work: Work, writer: PartWriter) -> None:
        self._work, self._writer = work, writer
        self._compute: Compute | None = None
        self._device = ""
        self._who = this_worker()
        self._cpu = 0.0

    def do(self, block: Block) -> Outcome:
        """Do a block and write its result; what an error says of it is the outcome's."""
        begun = time.monotonic()
        found = self._writer.found(block)
        if found is not None and found.device in ("", self._writer.device or found.device):
            # Whoever wrote it died before it could say so.
            return replace(found, worker=self._who)
        attempt = self._writer.begin(block)
        if attempt > self._writer.most_attempts:
            return self._failed(
                block,
                f"{self._writer.most_attempts} workers ended while they did it: killed, or out of "
                "memory (fewer moments a block, or memory_mb, make it smaller)",
            )
        try:
            self._open()
        except KronosError as problem:
            return self._failed(block, str(problem), stops=True)
        assert self._compute is not None
        while True:
            try:
                table = self._compute(block)
                done = Outcome(block.name, device=self._device)
                if table is not None and table.num_rows:
                    done = self._writer.write(block, table, self._device)
            except KronosError as problem:  # the same every time
                return self._failed(block, str(problem))
            except Exception as problem:  # of libraries, drives and memory: it may pass
                if attempt >= self._writer.most_attempts:
                    return self._failed(block, f"{type(problem).__name__}: {cause_of(problem)}")
                attempt = self._writer.begin(block)
            else:
                seconds, before = round(time.monotonic() - begun, 3), self._cpu
                self._cpu = time.process_time()
                spent = round(self._cpu - before, 3)
                return replace(
                    done,
                    seconds=seconds,
                    worker=self._who,
                    cpu_seconds=spent,
                    peak_mb=_peak_mb(),
                )

    def _open(self) -> None:
        if self._compute is None:
            compute = self._work.open()
            self._device = compute.device if isinstance(compute, OnDevice) else ""
            self._writer.check_device(self._device)
            self._compute = compute

    def _failed(self, block: Block, why: str, stops: bool = False) -> Outcome:
        text = one_line(why)
        return Outcome(
            block.name, worker=self._who, peak_mb=_peak_mb(), error=text or "no reason", stops=stops
        )


class OneProcess:
    """Blocks one after another, in this process."""

    def outcomes(
        self, work: Work, blocks: Sequence[Block], writer: PartWriter
    ) -> Generator[Outcome, None, None]:
        """In their order; what became of each as it is done."""
        worker = Worker(work, writer)
        for block in blocks:
            yield worker.do(block)


def run_job(
    job: JobFolder,
    work: Work,
    backend: Backend,
    *,
    show_progress: bool = False,
    report: Callable[[str], None] | None = None,
    unit: str = "row",
    most_attempts: int = MOST_ATTEMPTS,
) -> JobResult:
    """Do the blocks of a job that are not done.

    Args:
        job: opened.
        show_progress: a bar, on a terminal.
        report: takes a line now and then: blocks done, rows a second, time left.
        unit: of a row, for these lines.
        most_attempts: times that a block is begun before it is given up.

    Returns:
        What was done; blocks that failed are in it, and fail nothing else.

    Raises:
        JobError: a worker could not open the work, or the folder cannot be written.
    """
    todo = job.unfinished()
    pace = _Pace(len(job.blocks), len(job.blocks) - len(todo), unit)
    if report is not None and len(todo) < len(job.blocks):
        report(f"{pace.before} of {pace.blocks} blocks are in {job.folder}, {len(todo)} to do")
    job.failed.clear()
    found = backend.outcomes(work, todo, job.writer(most_attempts)) if todo else _nothing()
    bar = progress(found, "blocks", unit="block", total=len(todo), show=show_progress)
    with closing(found):  # workers end with the loop, however it ends
        for outcome in bar:
            if outcome.stops:
                raise JobError(f"{outcome.worker} cannot begin: {outcome.error}")
            job.note(outcome)
            line = pace.after(outcome)
            if hasattr(bar, "set_postfix_str"):
                bar.set_postfix_str(pace.rate, refresh=False)
            if line and report is not None:
                report(line)
    if lost := [block.name for block in todo if block.name not in {*job.done, *job.failed}]:
        raise JobError(f"the workers ended without {some_of(lost, SHOWN)}: start again")
    return JobResult(
        rows=sum(outcome.rows for outcome in job.done.values()),
        blocks=len(job.blocks),
        new=pace.done,
        seconds=time.monotonic() - pace.begun,
        failed={name: outcome.error for name, outcome in job.failed.items()},
    )


def _nothing() -> Generator[Outcome, None, None]:
    yield from ()


class _Pace:
    """How fast blocks are done, in a line now and then."""

    def __init__(self, blocks: int, before: int, unit: str) -> None:
        self.blocks, self.before, self.unit = blocks, before, unit
        self.done = self.ended = self.rows = 0
        self.begun = self.last = time.monotonic()

    @property
    def rate(self) -> str:
        """Rows a second since the start."""
        seconds = max(time.monotonic() - self.begun, 1e-9)
        return f"{self.rows / seconds:,.1f} {self.unit}s a second"

    def after(self, outcome: Outcome) -> str:
        """Count a block; a line where it is time for one, else ""."""
        self.ended += 1
        self.done += not outcome.error
        self.rows += outcome.rows
        now = time.monotonic()
        left = self.blocks - self.before - self.ended
        if now - self.last < REPORT_SECONDS or not left:
            return ""
        self.last = now
        minutes = (now - self.begun) / self.ended * left / 60
        return (
            f"{self.before + self.ended} of {self.blocks} blocks, {self.rate}, about "
            f"{minutes:.0f} minutes left"
        )


def this_worker() -> str:
    """Host and process."""
    return f"{socket.gethostname()}:{os.getpid()}"


def _peak_mb() -> float:
    """MiB that this process has held at most; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 2 ** (20 if sys.platform == "darwin" else 10), 1)
