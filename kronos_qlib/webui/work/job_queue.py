"""Work that waits its turn: bounded queues with one worker each, progress, cancelling."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from kronos_qlib.errors import KronosError

logger = logging.getLogger(__name__)

State = Literal["queued", "running", "done", "failed", "cancelled"]
Kind = Literal["forecast", "track_record", "universe", "compare", "load", "why"]

MOST_WAITING = 16
"""Jobs in one queue beyond the one at work."""
MOST_FINISHED = 200
"""Finished jobs that are remembered, the newest."""
MOST_SECONDS = 600.0
"""Longest that one job may take."""


class QueueFullError(KronosError, RuntimeError):
    """The queue is full: `retry_after` is a guess of the seconds until it is not."""

    def __init__(self, waiting: int, retry_after: int) -> None:
        self.retry_after = retry_after
        super().__init__(
            f"{waiting} requests wait already; ask again in {retry_after} seconds, or cancel one"
        )

    def __reduce__(self) -> tuple[type, tuple[int, int]]:
        return type(self), (0, self.retry_after)


class CancelledError(KronosError, RuntimeError):
    """Somebody cancelled the job that is at work."""


class TooLongError(KronosError, RuntimeError):
    """The job has taken longer than one may."""


@dataclass(eq=False)
class QueuedJob:
    """One piece of work. Its fields are written by the queue alone."""

    kind: Kind
    label: str
    work: Callable[[QueuedJob], Any] | None
    """Called with the job, to tell its progress; what it returns becomes `result`."""
    seconds: float
    """Longest that it may take."""
    about: Mapping[str, str | list[str]] = field(default_factory=dict)
    """What was asked for, to ask for it again when it is done."""
    id: str = field(default_factory=lambda: secrets.token_hex(10))
    state: State = "queued"
    progress: float = 0.0
    started: float | None = None
    ended: float | None = None
    result: Any = None
    error: Exception | None = None
    is_cancelled: bool = False
    done: threading.Event = field(default_factory=threading.Event)

    def tell(self, share: float) -> None:
        """Say how far it is, in [0, 1]: the work calls this often, and is ended by it.

        Raises:
            CancelledError: the job was cancelled.
            TooLongError: it has taken too long.
        """
        if self.is_cancelled:
            raise CancelledError(f"{self.label} was cancelled")
        if self.started is not None and time.monotonic() - self.started > self.seconds:
            raise TooLongError(
                f"{self.label} took more than {self.seconds:.0f} seconds and was ended; ask for "
                "fewer paths, a shorter horizon or lookback, or a smaller model"
            )
        self.progress = min(max(share, self.progress), 1.0)

    def span(self, first: float, last: float) -> Callable[[float], None]:
        """A part of the progress: its shares 0 to 1 are `first` to `last` of the job's."""
        return lambda share: self.tell(first + (last - first) * share)

    @property
    def eta(self) -> float | None:
        """Seconds until it is done, by its pace so far; None where that says nothing yet."""
        if self.state != "running" or self.started is None or self.progress < 0.05:
            return None
        return (time.monotonic() - self.started) * (1 - self.progress) / self.progress


class JobQueue:
    """One worker thread and what waits for it, first come, first served.

    Args:
        name: of the thread.
        most_waiting: jobs that may wait; one more is refused.
    """

    def __init__(self, name: str, most_waiting: int = MOST_WAITING) -> None:
        self.most_waiting = most_waiting
        self._waiting: deque[QueuedJob] = deque()
        self._jobs: OrderedDict[str, QueuedJob] = OrderedDict()
        self._running: QueuedJob | None = None
        self._changed = threading.Condition()
        self._is_closed = False
        self._usual = 1.0  # seconds of a job, smoothed
        # A daemon: Ctrl-C ends the process, whatever is computed.
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(
        self,
        kind: Kind,
        label: str,
        work: Callable[[QueuedJob], Any],
        *,
        about: Mapping[str, str | list[str]] | None = None,
        seconds: float = MOST_SECONDS,
        must: bool = False,
    ) -> QueuedJob:
        """Put work at the end of the queue.

        Args:
            about: kept with the job.
            must: take it however many wait: for work that the program itself begins with.

        Raises:
            QueueFullError: too many wait.
        """
        job = QueuedJob(kind, label, work, seconds, dict(about or {}))
        with self._changed:
            if len(self._waiting) >= self.most_waiting and not must:
                raise QueueFullError(len(self._waiting), max(1, round(self._usual)))
            self._waiting.append(job)
            self._jobs[job.id] = job
            self._forget()
            self._changed.notify()
        return job

    def get(self, job_id: str) -> QueuedJob | None:
        """A job that waits, runs or finished not long ago."""
        with self._changed:
            return self._jobs.get(job_id)

    def cancel(self, job_id: str) -> QueuedJob | None:
        """End a job: at once if it waits, at its next step if it runs; None if it is unknown.

        A finished one stays as it is.
        """
        with self._changed:
            job = self._jobs.get(job_id)
            if job is None or job.done.is_set():
                return job
            job.is_cancelled = True
            if job in self._waiting:
                self._waiting.remove(job)
                self._finish(job, "cancelled")
        return job

    def position(self, job: QueuedJob) -> int | None:
        """Place of a job in the queue, 1 the next; None where it does not wait."""
        with self._changed:
            return self._waiting.index(job) + 1 if job in self._waiting else None

    @property
    def pending(self) -> list[QueuedJob]:
        """The one at work, then those that wait, in their order: `most_waiting` and one at most."""
        with self._changed:
            return [*filter(None, [self._running]), *self._waiting]

    @property
    def counts(self) -> tuple[int, int]:
        """How many wait, how many run."""
        with self._changed:
            return len(self._waiting), int(self._running is not None)

    def close(self) -> None:
        """Cancel everything and let the worker go."""
        with self._changed:
            self._is_closed = True
            for job in (*self._waiting, *filter(None, [self._running])):
                job.is_cancelled = True
            while self._waiting:
                self._finish(self._waiting.popleft(), "cancelled")
            self._changed.notify()
        self._thread.join(timeout=5)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_closed)
                if self._is_closed:
                    return
                job = self._waiting.popleft()
                job.state, job.started = "running", time.monotonic()
                self._running = job
            self._do(job)

    def _do(self, job: QueuedJob) -> None:
        state: State = "done"
        assert job.work is not None
        try:
            job.tell(0.0)
            job.result = job.work(job)
        except CancelledError:
            state = "cancelled"
        except Exception as problem:
            state, job.error = "failed", problem
            if not isinstance(problem, KronosError):
                logger.exception("%s failed", job.label)
            # Its frames hold bars and paths for as long as it is remembered.
            problem.__traceback__ = None
        except BaseException as problem:  # the thread must live, and who waits must learn of it
            state, job.error = "failed", RuntimeError(f"{type(problem).__name__}")
            logger.exception("%s failed", job.label)
        with self._changed:
            self._running = None
            self._finish(job, state)
            if job.started is not None and job.ended is not None:
                self._usual = 0.8 * self._usual + 0.2 * (job.ended - job.started)

    def _finish(self, job: QueuedJob, state: State) -> None:
        job.state, job.ended, job.work = state, time.monotonic(), None
        if state == "done":
            job.progress = 1.0
        job.done.set()

    def _forget(self) -> None:
        finished = [each for each, job in self._jobs.items() if job.done.is_set()]
        for each in finished[: max(0, len(finished) - MOST_FINISHED)]:
            del self._jobs[each]
