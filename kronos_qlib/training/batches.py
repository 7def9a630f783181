"""Windows to tensors, in an order that one seed decides.

Shape letters: N windows of a segment, B windows of a batch, T bars.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kronos_qlib.data.windows.gather import WindowBatch, gather
from kronos_qlib.data.windows.window import Windows
from kronos_qlib.errors import ConfigError
from kronos_qlib.log import progress
from kronos_qlib.training.hardware import on_device
from kronos_qlib.training.parallel.distributed import Share, sum_over_processes
from kronos_qlib.training.stage_settings import TrainingConfig

if TYPE_CHECKING:
    from kronos_qlib.model.tokenizer import KronosTokenizer

Ints = npt.NDArray[np.int64]
Ids = npt.NDArray[np.signedinteger[Any]]

TOKEN_BLOCK = 128
"""Windows encoded at a time, always the same ones together: the same bits in every run."""
MOST_SHUFFLED = 2**30
"""Windows of an epoch whose order is kept in memory, 4 bytes each."""
FEISTEL_ROUNDS = 6
MOST_TOKEN_BYTES = 2**30
"""What the tokens of a segment may take; those of a larger one are made batch by batch."""


@dataclass(frozen=True)
class TrainingBatch:
    """A batch of windows, ready for a loss; see `WindowBatch` for windows of unequal length.

    z: (B, T, 6) float32, normalised by each window's lookback, clipped.
    stamps: (B, T, 5) int64.
    counted: (B, T) bool, the bars inside the segment: the ones a loss may count.
    level, spread: (B, 6) float32, of each window's lookback, each column in its own unit.
    tokens: s1 and s2, (B, T) int64 each, where they were made beforehand.
    share: which rows of a batch of all processes these windows are; None where they are all.
    """

    z: Tensor
    stamps: Tensor
    counted: Tensor
    level: Tensor | None = None
    spread: Tensor | None = None
    tokens: tuple[Tensor, Tensor] | None = None
    share: Share | None = None

    def __len__(self) -> int:
        return len(self.z)


@dataclass(frozen=True)
class Segment:
    """The windows of one segment; no loss counts a bar before it (`Windows.begin`).

    `segment[which]` makes it a map-style data set of batches, for torch's loader:
    `DataLoader(segment, batch_size=None, sampler=list(sampler.epoch(1)), num_workers=2)`.

    newest: how many of each window's newest bars are targets, such as its horizon; None: all.
    tokens: (N, T) s1 and s2 of all windows, where they were made beforehand.
    lookbacks: each batch has seen one of these numbers of bars, at most the windows' own, which
        its windows decide; None: all that the windows have seen. A network that is to read any
        number of bars learns from several, and a batch of one length has no padding.
    """

    windows: Windows
    newest: int | None = None
    tokens: tuple[Ids, Ids] | None = None
    lookbacks: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.lookbacks is None:
            return
        if self.tokens is not None:
            raise ConfigError("tokens are of whole lookbacks: they do not fit several lengths")
        if not self.lookbacks or not 2 <= min(self.lookbacks) <= max(self.lookbacks) <= (
            most := self.windows.lookback
        ):
            raise ConfigError(
                f"lookbacks must lie from 2 to the windows' own, {most}, got {self.lookbacks}"
            )

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, which: Ints) -> TrainingBatch:
        return self.batch(which)

    def memory(self, size: int) -> WindowBatch:
        """Memory for batches of up to `size` windows, for `batch`."""
        return WindowBatch.empty(size, self.windows.lookback + self.windows.ahead)

    def batch(
        self,
        which: Ints,
        device: torch.device | str = "cpu",
        out: WindowBatch | None = None,
        share: Share | None = None,
    ) -> TrainingBatch:
        """Gather and normalise the chosen windows.

        Args:
            which: (B,) places among the windows.
            out: memory to fill, which must not be filled again while the batch is in use: on a
                CPU the tensors share it. None allocates.
            share: only these of the chosen windows: those of one process.
        """
        windows, rows = self.windows, which
        if self.lookbacks is not None:
            # The whole batch decides, so that processes that share it agree.
            lookback = self.lookbacks[int(which.sum()) % len(self.lookbacks)]
            windows, rows, out = windows.take(which).cut(lookback), np.arange(len(which)), None
        if share is not None:
            which, rows = which[share.rows], rows[share.rows]
        filled = gather(windows, rows, out=out)
        if self.newest is not None:
            filled.counted[~_is_newest(windows, rows, self.newest)] = False

        def tensor(array: npt.NDArray[Any]) -> Tensor:
            return on_device(array, device)

        tokens = None
        if self.tokens is not None:
            s1, s2 = (tensor(ids[which].astype(np.int64)) for ids in self.tokens)
            tokens = (s1, s2)
        return TrainingBatch(
            tensor(filled.z),
            tensor(filled.stamps),
            tensor(filled.counted),
            # In float32 on devices that have no float64; both are for reports only.
            tensor(filled.level.astype(np.float32)),
            tensor(filled.spread.astype(np.float32)),
            tokens,
            share,
        )

    def sampler(self, config: TrainingConfig) -> EpochSampler:
        """Its batches as a stage is set to take them."""
        return EpochSampler(
            len(self), config.batch_size, seed=config.seed, limit=config.windows_per_epoch
        )

    def to_judge_by(self, config: TrainingConfig) -> Segment:
        """The windows by which a stage chooses its weights."""
        return self.evenly(config.validation_windows)

    def evenly(self, most: int) -> Segment:
        """At most `most` of the windows, evenly spaced in (time, instrument) order.

        Spaced by instrument they might all fall on the same few days.
        """
        if len(self) <= most:
            return self
        which = np.linspace(0, len(self) - 1, most).round().astype(np.int64)
        return replace(self, windows=self.windows.by_time().take(which), tokens=None)


def _is_newest(windows: Windows, which: Ints, newest: int) -> npt.NDArray[np.bool_]:
    """(B, T) whether a bar is among the last `newest` of its window."""
    ends = (
        np.full(len(which), windows.lookback) if windows.lengths is None else windows.lengths[which]
    )
    ends = ends[:, None] + windows.ahead
    places = np.arange(windows.lookback + windows.ahead)
    found: npt.NDArray[np.bool_] = (places >= ends - newest) & (places < ends)
    return found


def shuffled(size: int, *key: int) -> npt.NDArray[np.signedinteger[Any]]:
    """A permutation (size,) of `range(size)` by a key, such as a seed and an epoch.

    It takes 4 bytes a window for as long as an epoch goes: 27 MB for ten years of 5,000 names'
    daily bars. `permuted` is for more than `MOST_SHUFFLED`.
    """
    order: npt.NDArray[Any] = np.arange(size, dtype=np.int32 if size < 2**31 else np.int64)
    np.random.default_rng(key).shuffle(order)
    return order


def permuted(places: Ints, size: int, *key: int) -> Ints:
    """Where a permutation of `range(size)` sends some places (B,), computed for these alone.

    A Feistel network over the next power of 4, walked on from what lies beyond `size`.

    Source: Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002.
    """
    half = max(1, -(-(size - 1).bit_length() // 2))
    low, shift = np.uint64(2**half - 1), np.uint64(half)
    rounds = np.random.default_rng(key).integers(2**63, size=FEISTEL_ROUNDS, dtype=np.uint64)

    def turn(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        left, right = x >> shift, x & low
        for own in rounds:
            mixed = (right ^ own) * np.uint64(0x9E3779B97F4A7C15)
            mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
            left, right = right, left ^ ((mixed ^ (mixed >> np.uint64(32))) & low)
        return (left << shift) | right

    found = turn(places.astype(np.uint64))
    while len(beyond := np.flatnonzero(found >= size)):
        found[beyond] = turn(found[beyond])
    return found.astype(np.int64)


class EpochSampler:
    """Every window once per epoch, in one shuffle that (seed, epoch) decides.

    The published data set draws inside `__getitem__` from a generator that loader workers share,
    so each worker repeats the others' windows (fault 3). Here batches are made in one place, and
    workers are given the windows to gather.

    Ranks (processes that train together) share the shuffle and split every batch, so that they
    take the steps of one process with the same batch size, on the same windows. The last batch of
    an epoch may be smaller, and some ranks' parts of it smaller than others', or empty.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int,
        limit: int | None = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        """
        Args:
            size: windows there are.
            batch_size: windows of a step, of all ranks together.
            limit: windows per epoch; a fresh sample without repeats each epoch. None for all.
            rank: which of the `ranks` this is, from 0.

        Raises:
            ConfigError: a number cannot work.
        """
        if seed < 0:
            raise ConfigError(f"seed must not be negative, got {seed}")
        if size < 1 or batch_size < 1 or (limit is not None and limit < 1):
            raise ConfigError(
                f"windows, batch_size and limit must be at least 1, got {size}, {batch_size} and "
                f"{limit}"
            )
        if not 0 <= rank < ranks:
            raise ConfigError(f"rank must lie from 0 to {ranks - 1}, got {rank}")
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.largest = min(batch_size, size)
        self.rank, self.ranks = rank, ranks
        self.count = size if limit is None else min(size, limit)

    def __len__(self) -> int:
        """Batches per epoch."""
        return -(-self.count // self.batch_size)

    def epoch(self, number: int, start: int = 0) -> Iterator[Ints]:
        """This rank's parts of an epoch's batches, as places among the windows.

        Args:
            start: batches to pass over: those that a run has done before it was stopped.
        """
        is_small = self.size <= MOST_SHUFFLED
        order = shuffled(self.size, self.seed, number)[: self.count] if is_small else None
        for first in range(start * self.batch_size, self.count, self.batch_size):
            stop = min(first + self.batch_size, self.count)
            if order is not None:
                batch = order[first:stop].astype(np.int64)
            else:
                batch = permuted(np.arange(first, stop), self.size, self.seed, number)
            # In order: neighbours in the table are read together. The batch is the same.
            yield np.sort(batch)[self.rank :: self.ranks]


def is_worth_tokens(segment: Segment, tokenizer: KronosTokenizer, config: TrainingConfig) -> bool:
    """Whether windows repeat, so that making their tokens first is less work."""
    seen = config.epochs * min(len(segment), config.windows_per_epoch or len(segment))
    return seen > len(segment) and token_bytes(segment, tokenizer) <= MOST_TOKEN_BYTES


def token_bytes(segment: Segment, tokenizer: KronosTokenizer) -> int:
    """Memory of the tokens of all its windows."""
    bars = segment.windows.lookback + segment.windows.ahead
    return 2 * len(segment) * bars * _token_type(tokenizer).itemsize


def with_tokens(
    segment: Segment,
    tokenizer: KronosTokenizer,
    device: torch.device | str = "cpu",
    show_progress: bool = False,
) -> Segment:
    """The segment with the tokens of all its windows; each process makes a part of them."""
    tokenizer.eval()
    bars = segment.windows.lookback + segment.windows.ahead
    halves = [np.zeros((len(segment), bars), dtype=_token_type(tokenizer)) for _ in range(2)]
    blocks = range(0, len(segment), TOKEN_BLOCK)
    share = Share.here(len(blocks))
    if not share.is_empty:
        own = blocks[share.rows]
        for start in progress(own, "Kronos tokens", unit="block", show=show_progress):
            which = np.arange(start, min(start + TOKEN_BLOCK, len(segment)))
            with torch.inference_mode():
                ids = tokenizer.encode(segment.batch(which, device).z)
            for half, found in zip(halves, ids, strict=True):
                half[which] = found.cpu().numpy()
    if share.ranks > 1:
        for half in halves:  # zeros stand where others' blocks are
            for rows in np.array_split(np.arange(len(half)), max(1, len(half) // 2**16)):
                half[rows] = sum_over_processes(torch.from_numpy(half[rows].astype(np.int32)))
    return replace(segment, tokens=(halves[0], halves[1]))


def _token_type(tokenizer: KronosTokenizer) -> np.dtype[Any]:
    return np.dtype(np.int16 if max(tokenizer.s1_bits, tokenizer.s2_bits) <= 15 else np.int32)
