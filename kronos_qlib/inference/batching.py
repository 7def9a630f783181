"""How much is worked on at once: micro-batches from a memory budget, several at work on a CPU.

What is drawn does not depend on the plan: a series' random numbers are keyed by the series, and
every row of a batch is computed on its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch

from kronos_qlib.errors import ConfigError
from kronos_qlib.inference.kv_cache import FEW_STEPS
from kronos_qlib.inference.sampling import sorting_bytes
from kronos_qlib.model.sizes import PredictorConfig, TokenizerConfig

MEBIBYTE = 2**20
SLACK_BYTES = 8 * MEBIBYTE
"""What a worker takes before its batch has any size: scratch of the libraries, its allocator."""
GOOD_TOKENS = 6000
"""Bars of prompts in a micro-batch. They are read half as many at a time (`packed.GOOD_TOKENS`),
but steps of all their paths are taken together, and weights are fetched for each step."""
GOOD_ROWS = 640
"""Rows (series x paths) in a micro-batch above which a product gets no faster."""
LEAST_ROWS = 64
"""Rows below which every weight is read for too little work: no smaller for the sake of threads."""
_SETTING_THREADS = threading.Lock()
_PLANNED: list[int] = []
"""Threads that batches are planned for, the innermost `planned_for` last; none: torch's own."""


@dataclass(frozen=True)
class Sizes:
    """What memory depends on, besides the batch itself."""

    predictor: PredictorConfig
    tokenizer: TokenizerConfig
    lookback: int
    """Bars of a lookback; all are encoded, of which the predictor reads the last `max_context`."""
    horizon: int
    max_context: int
    value_bytes: int
    """Of a key or value, and of the tokenizer's numbers: 4 in float32, 2 in bfloat16 and int8."""
    between_bytes: int = 4
    """Of the predictor's numbers between products: 4 in float32 and int8, 2 in bfloat16."""

    def batch_bytes(self, series: int, paths: int) -> int:
        """An upper estimate of what one micro-batch allocates at its fullest."""
        net, tokenizer, rows = self.predictor, self.tokenizer, series * paths
        held = min(self.lookback, self.max_context)
        slides = held + self.horizon - 1 > self.max_context
        # Where the window slides, every path's window is a prompt of its own.
        prompt_tokens = rows * self.max_context if slides else series * held
        layers = net.n_layers + 1  # the s2 attention keeps keys and values too
        kept = 2 * layers * net.d_model * self.value_bytes
        at_work, coding = (
            each * (8 * half.d_model + 2 * half.ff_dim) + 16 * half.d_model
            for half, each in ((net, self.between_bytes), (tokenizer, self.value_bytes))
        )
        steps = min(self.horizon, self.max_context)
        if steps > FEW_STEPS:
            steps *= 3  # the store doubles, beside the one before
        own = 2 * layers * net.d_model * self.value_bytes * steps
        vocabulary = 1 << max(net.s1_bits, net.s2_bits)
        heads = 8 * 4 * vocabulary + 64 * (self.lookback + self.horizon)
        attention = 3 * 4 * max(net.n_heads, tokenizer.n_heads) * self.max_tokens
        decoded = rows * self.horizon + prompt_tokens
        decoder = coding + 2 * tokenizer.n_dec_layers * tokenizer.d_model * self.value_bytes
        encoding = series * self.lookback * (coding + 128)  # bars in float64 while they are scaled
        ahead = rows * self.horizon * attention  # the decoder reads all drawn bars at once
        drawing = prompt_tokens * (kept + at_work) + rows * (own + heads + attention)
        # More than the sum of the parts: the allocator and the libraries keep some for themselves.
        return max(encoding, drawing, decoded * decoder + ahead) * 3 // 2 + SLACK_BYTES

    @property
    def max_tokens(self) -> int:
        """Bars that one attention spans at most."""
        return min(self.lookback + self.horizon, self.max_context)


@dataclass(frozen=True)
class BatchPlan:
    """Micro-batches of at most `series` x `paths` futures, `workers` of them at work at once."""

    series: int
    paths: int
    workers: int
    threads: int
    """Threads of each worker."""
    peak_bytes: int
    """Estimate of what all workers allocate together, beside weights, bars and the result."""

    def batches(self, series: int, paths: int) -> list[tuple[slice, slice]]:
        """Which series and which of their paths each micro-batch draws."""
        return [
            (rows, futures)
            for rows in _even_slices(series, self.series)
            for futures in _even_slices(paths, self.paths)
        ]


def plan_batches(
    sizes: Sizes,
    series: int,
    paths: int,
    memory_mb: int,
    threads: int | None,
    stratified: bool = False,
) -> BatchPlan:
    """Micro-batches that fit a budget and keep every core at work.

    Args:
        series, paths: what is asked for: series of one lookback, futures of each.
        memory_mb: budget in MiB for everything that is allocated while drawing, all workers
            together; weights, the caller's bars and the returned paths are not in it.
        threads: cores to keep at work by several micro-batches at once; None for a device that
            takes one at a time.
        stratified: the paths of a series are sorted at every draw, before the first batch.

    Raises:
        ConfigError: not even one path of one series fits the budget, or a series' paths cannot be
            sorted within it.
    """
    budget = memory_mb * MEBIBYTE
    least = sizes.batch_bytes(1, 1)
    if least > budget:
        raise ConfigError(
            f"one path of one series of {sizes.lookback} bars and {sizes.horizon} ahead needs "
            f"about {-(-least // MEBIBYTE)} MiB, the budget memory_mb is {memory_mb}; raise it, or "
            "shorten the lookback or the horizon"
        )
    sorting = sorting_bytes(paths) + SLACK_BYTES if stratified else 0
    if sorting > budget:
        raise ConfigError(
            f"{paths} stratified paths need about {-(-sorting // MEBIBYTE)} MiB to be put in order,"
            f" the budget memory_mb is {memory_mb}; raise it, draw fewer, or leave out stratified"
        )
    wanted = max(1, min(GOOD_TOKENS // sizes.lookback, -(-GOOD_ROWS // paths)))
    if threads is not None:  # smaller, rather than leave cores idle
        share = max(-(-series // threads), -(-LEAST_ROWS // paths))
        wanted = min(wanted, share)
    else:
        wanted *= 16  # an accelerator likes them large
    wanted = min(wanted, series)
    count = len(range(0, series, wanted)) if series else 1
    workers = max(1, min(threads or 1, count, budget // least))
    per_worker = budget // workers
    together = _most(lambda many: sizes.batch_bytes(many, paths), wanted, per_worker)
    futures = paths
    if not together:  # not even one series with all its paths
        together = 1
        futures = _most(lambda many: sizes.batch_bytes(1, many), paths, per_worker)
    else:  # as many batches as leave no worker idle in the last round
        rounds = -(-series // (together * workers))
        together = max(1, -(-series // (rounds * workers)) if rounds else together)
    return BatchPlan(
        series=together,
        paths=futures,
        workers=workers,
        threads=max(1, (threads or 1) // workers),
        peak_bytes=max(sorting, workers * sizes.batch_bytes(together, futures)),
    )


@contextmanager
def planned_for(threads: int) -> Iterator[None]:
    """Within, batches on a CPU are planned for so many threads, whatever this process has.

    A matrix product rounds by its shape, and batches are as large as threads leave them: on workers
    of one thread each, a plan for the threads of one process has that process' batches and bits.
    They are computed by the threads that are there, so it costs no more of them.
    """
    _PLANNED.append(threads)
    try:
        yield
    finally:
        _PLANNED.remove(threads)


def planned_threads() -> int:
    """Threads of a CPU that batches are planned for."""
    return _PLANNED[-1] if _PLANNED else torch.get_num_threads()


def run_batches(
    work: Callable[[slice, slice], None],
    batches: Sequence[tuple[slice, slice]],
    plan: BatchPlan,
) -> Iterator[None]:
    """Do the work of every batch, given its series and paths; yields after each, in any order."""
    workers, threads = plan.workers, plan.threads
    if _PLANNED:  # of those planned for, as many as this process has
        threads = min(threads, torch.get_num_threads())
        workers = min(workers, torch.get_num_threads() // threads)
    if workers == 1:
        for batch in batches:
            work(*batch)
            yield
        return
    pool = _start_pool(min(workers, len(batches)), threads)
    futures = [pool.submit(work, *batch) for batch in batches]
    try:
        for done in as_completed(futures):
            done.result()
            yield
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_pool(workers: int, threads: int) -> ThreadPoolExecutor:
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


def _most(need: Callable[[int], int], wanted: int, budget: int) -> int:
    """The largest number up to `wanted` whose need fits the budget; 0 if none does."""
    low, high = 0, wanted
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if need(middle) <= budget else (low, middle - 1)
    return low


def _even_slices(count: int, most: int) -> list[slice]:
    """`count` things in slices of nearly one size, none above `most`."""
    pieces = -(-count // most)
    edges = [count * place // pieces for place in range(pieces + 1)] if pieces else []
    return [slice(start, stop) for start, stop in pairwise(edges)]
