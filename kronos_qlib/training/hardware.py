"""How a step uses its device: number types, transfers, compiled blocks, threads, memory kept."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn

from kronos_qlib.errors import ConfigError
from kronos_qlib.model.layers import TransformerBlock

GLIBC_MMAP_BYTES = 2**25
"""The highest that glibc's own threshold of large blocks goes, `DEFAULT_MMAP_THRESHOLD_MAX`."""


def check_precision(precision: str, device: torch.device) -> torch.dtype | None:
    """The number type of a step; None where it is that of the weights.

    Raises:
        ConfigError: the device has no such number type.
    """
    if precision == "float16" and device.type != "cuda":
        raise ConfigError(
            f"precision 'float16' does not work on {device.type}: it needs a scaling of gradients "
            "that only CUDA has; take 'bfloat16'"
        )
    kind = None if precision == "float32" else getattr(torch, precision)
    try:
        if kind == torch.bfloat16 and device.type == "cuda" and not torch.cuda.is_bf16_supported():
            raise RuntimeError("this GPU computes no bfloat16")
        torch.autocast(device.type, dtype=kind, enabled=kind is not None)
    except RuntimeError as problem:
        raise ConfigError(
            f"precision {precision!r} does not work on {device}: {problem}"
        ) from problem
    return kind


def on_device(array: npt.NDArray[Any], device: torch.device | str) -> Tensor:
    """An array of any shape as a tensor, whose memory it shares on a CPU.

    To a GPU it goes by way of pinned memory of its own, which nobody waits for: the host may
    fill the array again at once, and gathers the next batch while the GPU works on this one.
    """
    found = torch.from_numpy(array)
    if torch.device(device).type != "cuda":
        return found.to(device)
    return found.pin_memory().to(device, non_blocking=True)


@contextmanager
def compiled_blocks(net: nn.Module, is_wanted: bool) -> Iterator[None]:
    """Within, each Transformer block of `net` is compiled by `torch.compile`, if that is wanted.

    Block by block, since all are alike: one is compiled, whichever part of a network a step calls,
    and weights keep their names. Batches of another shape compile anew, then for any shape.
    """
    blocks = [part for part in net.modules() if isinstance(part, TransformerBlock)]
    chosen = blocks if is_wanted else []
    for block in chosen:
        block.__dict__["forward"] = torch.compile(block.forward)
    try:
        yield
    finally:
        for block in chosen:
            del block.__dict__["forward"]


VALUES_A_THREAD = 2**22
"""Numbers of a batch that are worth a thread of their own in a small network."""


@contextmanager
def threads_for(values: int) -> Iterator[None]:
    """Within, torch uses no more threads than a batch of a small network has work for.

    Threads that wait for each other at every small operation cost more than they bring, and many
    times more where other work has the cores.

    Args:
        values: numbers in a batch.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, 1 + values // VALUES_A_THREAD))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def recomputing(net: nn.Module, is_asked: bool) -> Iterator[None]:
    """Within, the backward pass computes each block of `net` again; see `TransformerBlock`."""
    blocks = [part for part in net.modules() if isinstance(part, TransformerBlock)]
    for block in blocks:
        block.recompute = is_asked
    try:
        yield
    finally:
        for block in blocks:
            block.recompute = False


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within, glibc keeps large blocks that are freed, for the next step to take.

    By default every tensor above a few hundred KiB is mapped anew, and a step spends a fifth to a
    third of its time on first touches of pages (nano's tokenizer, 50 windows of 100 bars, CPU
    seconds of one thread in one run: 0.36 a step with it, 0.51 without). Afterwards what is free is
    given back, and the limits are the highest that glibc's own, which move, may reach. Elsewhere
    this does nothing.
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
