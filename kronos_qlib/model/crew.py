"""Those who share one batch of training: threads or processes, each with its own windows of it.

Every member computes the loss of the whole batch: what a loss adds up over windows goes through
`total`, which adds over the members too, forwards and backwards. So the loss is the same number for
all of them, and the mean of their gradients is the gradient of one process with the whole batch,
also for losses that are no means over windows (the entropy of a codebook, a day's correlation).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_now = threading.local()


class Crew:
    """One member, and by itself a crew of one.

    Args:
        rank: which of the `size` members it is, from 0.
        rng: the chance that is its own: dropout, drawn s1. None for torch's own.
    """

    def __init__(self, rank: int = 0, size: int = 1, rng: torch.Generator | None = None) -> None:
        self.rank, self.size, self.rng = rank, size, rng

    @property
    def is_whole(self) -> bool:
        """Whether its windows are all that a loss is to be of."""
        return self.size == 1

    def add_up(self, x: Tensor) -> Tensor:
        """The members' sum of a detached tensor that all of them have, of one shape."""
        return x

    def add_back(self, grad: Tensor) -> Tensor:
        """The same of a gradient, on the way back."""
        return self.add_up(grad)

    def total(self, x: Tensor) -> Tensor:
        """`add_up` with a gradient: what all members have made of the sum comes back to each."""
        if self.is_whole:
            return x
        if torch.is_grad_enabled() and not x.requires_grad:
            # A member without windows takes part in the way back: the others wait for it there.
            x = x.detach().requires_grad_()
        out: Tensor = _Total.apply(  # type: ignore[no-untyped-call]
            x, self
        )
        return out


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, member: Crew) -> Tensor:
        ctx.member = member
        return member.add_up(x.detach())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.member.add_back(grads[0]), None


class Processes(Crew):
    """A member among the processes of torch's default group.

    Args:
        device: whose tensors the group sends: NCCL knows those of its GPU only.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        rng: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(rank, size, rng)
        self.device = torch.device(device)

    def add_up(self, x: Tensor) -> Tensor:
        sent = x.to(self.device, copy=True, memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(sent)
        return sent.to(x.device)


class Board:
    """Where threads lay down what is to be added up."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size)
        self.parts: list[Tensor] = [torch.empty(0)] * size


class Lane(Crew):
    """A member among the threads of one process."""

    def __init__(self, rank: int, board: Board, rng: torch.Generator) -> None:
        super().__init__(rank, len(board.parts), rng)
        self.board = board

    def add_up(self, x: Tensor) -> Tensor:
        self.board.parts[self.rank] = x
        self.board.barrier.wait()
        out = torch.stack(self.board.parts).sum(dim=0)  # in one order for all: the same bits
        self.board.barrier.wait()  # nobody lays down the next before all have read
        return out


class Piecewise(Crew):
    """A member that works through its windows piece by piece, for memory.

    Every piece is looked at first, without gradient, to know what all pieces add up to; then each
    is learned from beside the sums of all, and the gradients of the pieces are to be added. What a
    loss adds up must not depend on its earlier sums.
    """

    def __init__(self, member: Crew) -> None:
        super().__init__(member.rank, member.size, member.rng)
        self.member = member
        self.sums: list[Tensor] = []
        self.place = 0
        self.is_known = False

    @property
    def is_whole(self) -> bool:
        return False

    def begin(self) -> None:
        """A piece; once all have been looked at, set `is_known`."""
        self.place = 0

    def add_up(self, x: Tensor) -> Tensor:
        place, self.place = self.place, self.place + 1
        if not self.is_known:
            x = self.member.add_up(x)
            if place == len(self.sums):
                self.sums.append(x)
            else:
                self.sums[place] = self.sums[place] + x
        return self.sums[place]

    def add_back(self, grad: Tensor) -> Tensor:
        return self.member.add_up(grad)


def crew() -> Crew:
    """The member that this thread works as; a crew of one where nobody said otherwise."""
    return getattr(_now, "crew", None) or Crew()


@contextmanager
def working_as(member: Crew) -> Iterator[None]:
    """Within, this thread is `member`."""
    before = getattr(_now, "crew", None)
    _now.crew = member
    try:
        yield
    finally:
        _now.crew = before


def mean_over_rows(x: Tensor) -> Tensor:
    """Mean over the first dimension, of all members' rows: (N, ...) to (...)."""
    member = crew()
    if member.is_whole:
        return x.mean(dim=0)
    rows = torch.full((), float(len(x)), device=x.device)
    return member.total(x.sum(dim=0)) / member.add_up(rows)
