"""Processes that train one network together, each on its share of every batch.

Launched by torchrun (or anything that sets the same variables), joined by `torch.distributed`.
Gradients are averaged by one all-reduce after the backward pass rather than by
DistributedDataParallel: a step calls parts of a network, not its `forward`, runs it several times
when gradients are accumulated, and a process may have no window of a small day. What accelerate
would add (autocast, the scaler of float16, clipping) is torch's own.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kronos_qlib.errors import TrainingError

T = TypeVar("T")

LAUNCHED_BY = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR")
"""Variables that a launcher sets for each process, all of them."""


def is_launched() -> bool:
    """Whether torchrun, `accelerate launch` or the like began this process as one of several.

    A shell of SLURM or MPI may have a `WORLD_SIZE` of its own, so that alone is not enough.
    """
    given = os.environ
    return all(given.get(name) for name in LAUNCHED_BY) and int(given["WORLD_SIZE"]) > 1


def process_rank() -> int:
    """The rank of this process among those launched; 0 where it was launched alone."""
    return int(os.environ["RANK"]) if is_launched() else 0


def process_count() -> int:
    """How many processes train together; 1 before they have joined."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def join_processes(device: torch.device) -> torch.device:
    """Join the other processes, if this one was launched with some.

    Args:
        device: to train on; of CUDA each process gets the GPU of its local rank.

    Returns:
        The device of this process.
    """
    if not is_launched():
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(_leave)
    return device


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


@dataclass(frozen=True)
class Share:
    """A process' rows of a batch: every `ranks`-th one.

    total: rows of the whole batch.
    """

    total: int
    rank: int = 0
    ranks: int = 1

    @classmethod
    def here(cls, total: int) -> Share:
        """Of this process, among those that have joined."""
        ranks = process_count()
        return cls(total, dist.get_rank() if ranks > 1 else 0, ranks)

    @property
    def is_empty(self) -> bool:
        """Whether there are fewer rows than processes, and none for this one."""
        return self.rank >= self.total

    @property
    def rows(self) -> slice:
        """The rows that this process works on.

        A process without any works on the first row, whose results are ignored: so it takes part
        in the same all-reduces as the others, which would wait for it.
        """
        return slice(0, 1) if self.is_empty else slice(self.rank, None, self.ranks)

    def gather(self, own: Tensor) -> Tensor:
        """(total, ...) rows of all processes from the own ones, with a gradient for each."""
        if self.ranks == 1:
            return own
        place = torch.arange(self.total, device=own.device)[self.rank :: self.ranks]
        whole = own.new_zeros(self.total, *own.shape[1:]).index_copy(0, place, own[: len(place)])
        summed: Tensor = _Sum.apply(whole)  # type: ignore[no-untyped-call]
        return summed


class _Sum(torch.autograd.Function):
    """The sum over processes; its gradient is the sum of all processes' gradients.

    `torch.distributed.nn.functional.all_reduce` does the same, and warns since torch 2.13 that it
    gives way to a private module.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return sum_over_processes(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return sum_over_processes(grads[0])


def sum_over_processes(x: Tensor) -> Tensor:
    """The sum of a tensor (...) of the same shape in all processes; no gradient.

    NCCL reduces on GPUs only: a CPU tensor is copied to this process' GPU and back.
    """
    if process_count() == 1:
        return x
    is_nccl = dist.get_backend() == "nccl"
    sent = x.detach().clone(memory_format=torch.contiguous_format)
    sent = sent.cuda() if is_nccl else sent.cpu()
    dist.all_reduce(sent)
    return sent.to(x.device)


def average_gradients(weights: Sequence[Tensor]) -> None:
    """Replace each weight's gradient, of the same shape, by its mean over processes.

    Every process computes the loss of the whole batch, so a weight's gradient is summed `ranks`
    times: the mean is that of one process with the whole batch. All processes must have a gradient
    for the same weights.
    """
    ranks = process_count()
    grads = [weight.grad for weight in weights if weight.grad is not None]
    if ranks == 1 or not grads:
        return
    flat = sum_over_processes(torch.cat([grad.flatten() for grad in grads])) / ranks
    parts = torch.split(flat, [grad.numel() for grad in grads])
    for grad, part in zip(grads, parts, strict=True):
        grad.copy_(part.view_as(grad))


def share_weights(net: nn.Module) -> None:
    """Broadcast the first process' weights and buffers to all."""
    if process_count() > 1:
        with torch.no_grad():
            for value in (*net.parameters(), *net.buffers()):
                dist.broadcast(value, 0)


def raise_together(problem: str | None) -> None:
    """Raise in every process what went wrong in one: alone it would leave the others waiting.

    Args:
        problem: of this process; all of them come here.

    Raises:
        TrainingError: some process has a problem; the first one's.
    """
    for found in of_all(problem):
        if found is not None:
            raise TrainingError(found)


def of_all(value: T) -> list[T]:
    """Every process' `value`, by rank (an all-gather); anything that pickle takes."""
    if process_count() == 1:
        return [value]
    found: list[Any] = [None] * process_count()
    dist.all_gather_object(found, value)
    return found
