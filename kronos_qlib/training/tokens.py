"""Tokens of windows that a frozen tokenizer would otherwise make again in every epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from kronos_qlib.configs import TrainingConfig
from kronos_qlib.log import progress
from kronos_qlib.model.crew import Processes
from kronos_qlib.model.threads import start_pool
from kronos_qlib.model.tokenizer import KronosTokenizer
from kronos_qlib.training.batches import Segment
from kronos_qlib.training.team import is_launched

BLOCK = 128
"""Windows encoded at a time, always the same ones together: the same bits in every run."""
MOST_BYTES = 2**30
"""What the tokens of a segment may take; those of a larger one are made batch by batch."""


def is_worth_it(segment: Segment, tokenizer: KronosTokenizer, config: TrainingConfig) -> bool:
    """Whether windows repeat, so that making their tokens first is less work."""
    seen = config.epochs * min(len(segment), config.windows_per_epoch or len(segment))
    bars = segment.windows.lookback + segment.windows.ahead
    size = 2 * len(segment) * bars * _kind(tokenizer).itemsize
    return seen > len(segment) and size <= MOST_BYTES


def with_tokens(
    segment: Segment,
    tokenizer: KronosTokenizer,
    device: torch.device | str = "cpu",
    show_progress: bool = False,
) -> Segment:
    """The segment with the tokens of all its windows; processes make a part each."""
    tokenizer.eval()
    device = torch.device(device)
    bars = segment.windows.lookback + segment.windows.ahead
    halves = [np.zeros((len(segment), bars), dtype=_kind(tokenizer)) for _ in range(2)]
    starts = list(range(0, len(segment), BLOCK))
    launched = is_launched()
    group = Processes(*_place(), device=device) if launched else None
    if group is not None:
        starts = starts[group.rank :: group.size]

    def encode(start: int) -> None:
        which = np.arange(start, min(start + BLOCK, len(segment)))
        with torch.inference_mode():
            ids = tokenizer.encode(segment.batch(which, device).z)
        for half, found in zip(halves, ids, strict=True):
            half[which] = found.cpu().numpy()

    def each() -> Iterator[None]:
        if device.type != "cpu":
            yield from map(encode, starts)
            return
        with start_pool(torch.get_num_threads(), 1) as pool:
            yield from pool.map(encode, starts)

    for _ in progress(each(), "Kronos tokens", unit="block", total=len(starts), show=show_progress):
        pass
    if group is not None:
        halves = [_gathered(half, group, device) for half in halves]
    return replace(segment, tokens=(halves[0], halves[1]))


def _gathered(half: np.ndarray, group: Processes, device: torch.device) -> np.ndarray:
    """Every process' blocks, where this one has zeros."""
    for rows in np.array_split(np.arange(len(half)), max(1, len(half) // 2**16)):
        part = torch.from_numpy(half[rows].astype(np.int32)).to(device)
        half[rows] = group.add_up(part).cpu().numpy()
    return half


def _place() -> tuple[int, int]:
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def _kind(tokenizer: KronosTokenizer) -> np.dtype:
    return np.dtype(np.int16 if max(tokenizer.s1_bits, tokenizer.s2_bits) <= 15 else np.int32)
