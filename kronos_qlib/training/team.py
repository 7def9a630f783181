"""Who takes a training step: the threads of this process, or this process among several.

Each member has its own part of every batch (see `model.crew`). `accelerate` knows the processes,
the number type and the device of a launched one; threads are for a CPU, where half a batch on each
of two cores goes faster than both cores together on every operation of the whole.
"""

from __future__ import annotations

import copy
import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from kronos_qlib.errors import ConfigError
from kronos_qlib.model.crew import Board, Crew, Lane, Processes, working_as
from kronos_qlib.model.threads import start_pool

T = TypeVar("T")

LEAST_WINDOWS = 8
"""Windows of a batch that are worth a thread."""
GRADIENT_BYTES = 2**30
"""What all threads' gradients may take."""
GLIBC_MMAP_BYTES = 2**25
"""The highest that glibc's own threshold of large blocks goes, `DEFAULT_MMAP_THRESHOLD_MAX`."""
PRECISIONS = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
"""Our names of the number types, and accelerate's."""

STATE_LOCK = threading.Lock()
"""Held while accelerate's state, of which a process has one, is looked at and made."""


LAUNCHED_BY = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR")
"""What torchrun, `accelerate launch` and `n_processes` tell each process, all of it."""
TAKEN_FOR_A_LAUNCH = (*LAUNCHED_BY, "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""What `accelerate` looks at, any one of it."""


def is_launched() -> bool:
    """Whether torchrun, `accelerate launch` or `KronosModel(n_processes=…)` began this process.

    A shell of SLURM or MPI may have a `WORLD_SIZE` of its own: by itself that says nothing.
    """
    told = os.environ
    return all(told.get(name) for name in LAUNCHED_BY) and int(told["WORLD_SIZE"]) > 1


@contextmanager
def _alone() -> Iterator[None]:
    """Within, `accelerate` does not take the size of a shell's allocation for that of a launch."""
    hidden = {name: os.environ.pop(name) for name in TAKEN_FOR_A_LAUNCH if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def process_rank() -> int:
    """Which of the launched processes this is; 0 alone."""
    return int(os.environ.get("RANK", "0")) if is_launched() else 0


def make_accelerator(device: torch.device, precision: str) -> Any:
    """`accelerate`'s view of this process, in the type asked for.

    Raises:
        ConfigError: the device has no such number type.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    if precision == "float16" and device.type != "cuda":
        raise ConfigError(
            f"precision 'float16' does not work on {device.type}: it needs a scaling of gradients "
            "that only CUDA has; take 'bfloat16'"
        )
    try:
        with STATE_LOCK, nullcontext() if is_launched() else _alone():
            # There is one state for a process, and it keeps the type of the first run in it. A
            # thread that trains at the same time reads it at every step: it is left if it fits.
            held = AcceleratorState._shared_state
            wanted = (device.type == "cpu", PRECISIONS[precision])
            if (held.get("_cpu"), held.get("_mixed_precision")) != wanted:
                AcceleratorState._reset_state(reset_partial_state=not is_launched())
            return Accelerator(
                cpu=device.type == "cpu",
                mixed_precision=PRECISIONS[precision],
                device_placement=False,
            )
    except (ValueError, RuntimeError) as problem:
        raise ConfigError(
            f"precision {precision!r} does not work on {device}: {problem}"
        ) from problem


class Team:
    """The members of this process, and the way to the others.

    Args:
        step: what is trained; every thread gets a copy that shares its weights.
        batch_size: windows of a step, of all members.
        threads: CPU threads to use; None: torch's number.
    """

    def __init__(
        self,
        step: Any,
        device: torch.device,
        *,
        precision: str = "float32",
        batch_size: int,
        seed: int,
        threads: int | None = None,
    ) -> None:
        self.device = device
        self.accelerator = make_accelerator(device, precision)
        self.is_first = self.accelerator.is_main_process
        self.trained = [weight for weight in step.net.parameters() if weight.requires_grad]
        ranks = self.accelerator.num_processes
        threads = threads or torch.get_num_threads()
        lanes = 1
        if ranks == 1 and device.type == "cpu" and getattr(step, "splits", False):
            held = sum(weight.numel() * weight.element_size() for weight in self.trained)
            lanes = min(threads, batch_size // LEAST_WINDOWS, GRADIENT_BYTES // max(1, held))
            lanes = max(1, lanes)
        self.members: list[Crew]
        self.steps: list[Any] = [step]
        self.pool: ThreadPoolExecutor | None = None
        rank = self.accelerator.process_index
        if ranks > 1:
            self.members = [Processes(rank, ranks, _chance(device, seed, rank), device)]
        elif lanes > 1:
            board = Board(lanes)
            self.members = [
                Lane(place, board, _chance(device, seed, place)) for place in range(lanes)
            ]
            self.steps += [replace(step, net=_twin(step.net)) for _ in range(lanes - 1)]
            self.pool = start_pool(lanes, max(1, threads // lanes))
        else:
            self.members = [Crew(0, 1, _chance(device, seed, 0))]
        self.shares = [
            [weight for weight in one.net.parameters() if weight.requires_grad]
            for one in self.steps
        ]

    @property
    def size(self) -> int:
        """Members in all processes."""
        return self.members[0].size

    def close(self) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)

    def each(self, work: Callable[[Any, Crew], T]) -> list[T]:
        """What every member of this process makes of `work(step, member)`, all at once."""

        def one(place: int) -> T:
            member = self.members[place]
            try:
                with working_as(member), self.accelerator.autocast():
                    return work(self.steps[place], member)
            except BaseException:
                if isinstance(member, Lane):  # the others would wait for it
                    member.board.barrier.abort()
                raise

        if self.pool is None:
            return [one(0)]
        futures = [self.pool.submit(one, place) for place in range(len(self.members))]
        problems = [problem for future in futures if (problem := future.exception())]
        if problems:
            # The one that was first; the others only missed it at the barrier.
            told = [one for one in problems if not _is_broken_barrier(one)]
            raise (told or problems)[0]
        return [future.result() for future in futures]

    def train_mode(self) -> None:
        for step in self.steps:
            step.net.train()

    def backward(self, losses: Sequence[Tensor]) -> None:
        """Gradients of each member's loss, added to those that are there."""

        def work(step: Any, member: Crew) -> None:
            self.accelerator.backward(losses[member.rank if self.pool else 0])

        self.each(work)

    def share_gradients(self) -> None:
        """The mean over all members becomes the gradient of the step's weights."""
        if self.pool is not None:
            mine, *others = self.shares
            for theirs in others:
                kept = [
                    (own.grad, other.grad)
                    for own, other in zip(mine, theirs, strict=True)
                    if own.grad is not None and other.grad is not None
                ]
                torch._foreach_add_([own for own, _ in kept], [other for _, other in kept])
                for weight in theirs:
                    weight.grad = None
            grads = [weight.grad for weight in mine if weight.grad is not None]
            torch._foreach_mul_(grads, 1 / len(self.members))
        elif self.size > 1:
            for weight in self.trained:
                if weight.grad is None:  # no window of this process reached it
                    weight.grad = torch.zeros_like(weight)
            grads = [weight.grad for weight in self.trained if weight.grad is not None]
            flat = torch.cat([grad.flatten() for grad in grads])
            flat = self.accelerator.reduce(flat, reduction="mean")
            for grad, part in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
                grad.copy_(part.view_as(grad))

    def chance(self) -> list[Tensor]:
        """The state of every member's generator, of all processes."""
        return self.gathered(
            [member.rng.get_state() for member in self.members if member.rng is not None]
        )

    def gathered(self, own: list[T]) -> list[T]:
        """The lists of all processes, one after another."""
        if self.pool is not None or self.size == 1:
            return own
        from accelerate.utils import gather_object

        found: list[T] = gather_object(own)
        return found

    def as_the_first_says(self, value: T) -> T:
        """The first process' value: others may have rounded it otherwise, and must not part."""
        return self.gathered([value])[0]

    def set_chance(self, states: Sequence[Tensor]) -> bool:
        """Go on with these; False where they are those of another number of members."""
        if len(states) != self.size:
            return False
        for member in self.members:
            if member.rng is not None:
                member.rng.set_state(states[member.rank])
        return True


def part_of(member: Crew) -> slice:
    """A member's windows of a batch."""
    return slice(member.rank, None, member.size)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within, glibc keeps large blocks that are freed, for the next step to take.

    By default every tensor above a few hundred KiB is mapped anew, and a step spends a fifth of its
    time on first touches of pages (benchmarks/training.py). Afterwards what is free is given back,
    and the limits are the highest that glibc's own, which move, may reach. Elsewhere this does
    nothing.
    """
    libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    mallopt = getattr(libc, "mallopt", None)
    if libc is None or mallopt is None:  # musl has none
        yield
        return
    mmap_threshold, trim_threshold = -3, -1
    # Before 2.35 it took no more than its own highest.
    mallopt(mmap_threshold, 2**30) or mallopt(mmap_threshold, GLIBC_MMAP_BYTES)
    mallopt(trim_threshold, 2**31 - 1)
    try:
        yield
    finally:
        mallopt(mmap_threshold, GLIBC_MMAP_BYTES)
        mallopt(trim_threshold, 2 * GLIBC_MMAP_BYTES)
        libc.malloc_trim(0)


def _chance(device: torch.device, seed: int, rank: int) -> torch.Generator:
    # A place of its own for each member; member 0's is the seed itself.
    return torch.Generator(device).manual_seed(seed + rank * 0x9E3779B97F4A7C15 % 2**62)


def _twin(net: torch.nn.Module) -> torch.nn.Module:
    """A copy with gradients of its own and the same weights: what is learned in one is in both."""
    twin = copy.deepcopy(net)
    for own, other in zip(twin.parameters(), net.parameters(), strict=True):
        own.data = other.data
    for name, buffer in net.named_buffers():
        twin.get_buffer(name).data = buffer.data
    return twin


def _is_broken_barrier(problem: BaseException) -> bool:
    import threading

    return isinstance(problem, threading.BrokenBarrierError)
