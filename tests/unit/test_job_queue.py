"""Work that waits its turn: order, bounds, progress, cancelling, failures."""

from __future__ import annotations

import threading

import pytest

from kronos_qlib.errors import BarDataError
from kronos_qlib.webui.work.job_queue import (
    MOST_FINISHED,
    JobQueue,
    QueuedJob,
    QueueFullError,
    TooLongError,
)

LONG = 30.0


@pytest.fixture
def queue():
    made = JobQueue("test", most_waiting=2)
    yield made
    made.close()


class Gate:
    """Work that has begun and goes on when it is told to."""

    def __init__(self) -> None:
        self.begun, self.open = threading.Event(), threading.Event()

    def __call__(self, job: QueuedJob) -> str:
        self.begun.set()
        while not self.open.wait(0.005):
            job.tell(0.5)
        return "done"


def test_jobs_are_done_in_the_order_they_came_one_at_a_time(queue):
    gate, order = Gate(), []
    queue.submit("forecast", "first", gate)
    assert gate.begun.wait(LONG)
    others = [
        queue.submit("forecast", str(place), lambda job, place=place: order.append(place))
        for place in (1, 2)
    ]
    assert [queue.position(job) for job in others] == [1, 2]
    assert queue.counts == (2, 1)
    assert [job.label for job in queue.pending] == ["first", "1", "2"]
    assert order == []
    gate.open.set()
    assert all(job.done.wait(LONG) for job in others)
    assert order == [1, 2]
    assert queue.position(others[0]) is None
    assert queue.pending == []


def test_one_more_than_may_wait_is_refused_and_says_when_to_ask_again(queue):
    gate = Gate()
    queue.submit("forecast", "first", gate)
    assert gate.begun.wait(LONG)
    for _ in range(2):
        queue.submit("forecast", "waits", lambda job: None)
    with pytest.raises(QueueFullError, match="ask again") as refused:
        queue.submit("forecast", "too many", lambda job: None)
    assert refused.value.retry_after >= 1
    must = queue.submit("load", "the program's own", lambda job: "loaded", must=True)
    gate.open.set()
    assert must.done.wait(LONG)
    assert must.result == "loaded"


def test_a_waiting_job_is_cancelled_at_once_and_a_running_one_at_its_next_step(queue):
    gate = Gate()
    running = queue.submit("forecast", "runs", gate)
    assert gate.begun.wait(LONG)
    waiting = queue.submit("forecast", "waits", lambda job: pytest.fail("it was cancelled"))
    assert queue.cancel(waiting.id) is waiting
    assert waiting.state == "cancelled"
    assert waiting.done.is_set()
    queue.cancel(running.id)
    assert running.done.wait(LONG)
    assert (running.state, running.result) == ("cancelled", None)
    again = queue.submit("forecast", "the queue lives", lambda job: 7)
    assert again.done.wait(LONG)
    assert again.result == 7


def test_a_finished_job_cannot_be_cancelled_and_an_unknown_one_is_none(queue):
    job = queue.submit("forecast", "quick", lambda job: 1)
    assert job.done.wait(LONG)
    assert queue.cancel(job.id).state == "done"
    assert queue.cancel("0" * 20) is None
    assert queue.get("0" * 20) is None


@pytest.mark.parametrize("problem", [BarDataError("no bars"), ZeroDivisionError(), SystemExit(3)])
def test_a_failure_is_kept_without_its_frames_and_the_worker_goes_on(queue, problem):
    def fail(job):
        raise problem

    job = queue.submit("forecast", "fails", fail)
    assert job.done.wait(LONG)
    assert job.state == "failed"
    assert job.error is not None
    assert job.error.__traceback__ is None
    assert queue.submit("forecast", "next", lambda job: 1).done.wait(LONG)


def test_a_job_that_takes_too_long_is_ended():
    queue = JobQueue("test")
    gate = Gate()
    job = queue.submit("forecast", "slow", gate, seconds=0.05)
    assert job.done.wait(LONG)
    assert isinstance(job.error, TooLongError)
    queue.close()


def test_progress_only_rises_and_an_end_is_told_from_it(queue):
    shares = []

    def work(job):
        for share in (0.2, 0.1, 0.6):
            job.tell(share)
            shares.append(job.progress)
        job.span(0.6, 0.8)(0.5)
        shares.append(job.progress)
        return job.eta

    job = queue.submit("forecast", "steps", work)
    assert job.done.wait(LONG)
    assert shares == pytest.approx([0.2, 0.2, 0.6, 0.7])
    assert job.result >= 0
    assert job.progress == 1.0
    assert job.eta is None


def test_only_the_newest_finished_jobs_are_remembered():
    queue = JobQueue("test", most_waiting=MOST_FINISHED * 3)
    jobs = [queue.submit("forecast", "x", lambda job: 1) for _ in range(MOST_FINISHED + 50)]
    assert jobs[-1].done.wait(LONG)
    last = queue.submit("forecast", "x", lambda job: 1)
    assert queue.get(jobs[0].id) is None
    assert queue.get(last.id) is last
    assert sum(queue.get(job.id) is not None for job in jobs) <= MOST_FINISHED + 1
    queue.close()


def test_closing_cancels_what_waits(queue):
    gate = Gate()
    running = queue.submit("forecast", "runs", gate)
    assert gate.begun.wait(LONG)
    waiting = queue.submit("forecast", "waits", lambda job: 1)
    queue.close()
    assert waiting.state == "cancelled"
    assert running.done.wait(LONG)
