"""Threads that each do a whole piece of work with torch, instead of all sharing every operation."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch

_SETTING_THREADS = threading.Lock()


def start_pool(workers: int, threads: int) -> ThreadPoolExecutor:
    """A pool whose `workers` have all begun, each with `threads` torch threads of its own.

    The setting is each thread's own, but torch also makes it the default of threads that begin
    later: that is put back once all workers have it, so the caller's is as it was.
    """
    with _SETTING_THREADS:
        before = torch.get_num_threads()
        are_set = threading.Barrier(workers + 1)

        def prepare() -> None:
            torch.set_num_threads(threads)
            are_set.wait()

        pool = ThreadPoolExecutor(workers, "kronos", prepare)
        for _ in range(workers):
            pool.submit(int)  # a worker begins when there is work and none is idle
        are_set.wait()
        torch.set_num_threads(before)
    return pool
