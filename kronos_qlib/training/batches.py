"""Windows to tensors, in an order that one seed decides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from kronos_qlib.data.windows import Windows, WindowScale


@dataclass(frozen=True)
class TrainingBatch:
    """A batch of windows, ready for a loss.

    z: (B, T, 6) float32, normalised by each window's lookback.
    stamps: (B, T, 5) int64.
    counted: (B, T) bool, the bars inside the segment: the ones a loss may count.
    windows: where they came from, to be named in an error.
    """

    z: Tensor
    stamps: Tensor
    counted: Tensor
    windows: Windows


@dataclass(frozen=True)
class Segment:
    """The windows of one segment and its first moment: no loss counts an earlier bar."""

    windows: Windows
    first: Any = None

    def __len__(self) -> int:
        return len(self.windows)

    def batch(self, which: npt.NDArray[np.int64], device: torch.device) -> TrainingBatch:
        """Gather and normalise the chosen windows."""
        windows = self.windows
        rows = windows.rows(which)
        bars = windows.table.values[rows]
        scale = WindowScale.of(bars[:, : windows.lookback])
        counted = np.ones(rows.shape, dtype=bool)
        if self.first is not None:
            first = np.datetime64(pd.Timestamp(self.first), "ns")
            counted = windows.table.times[rows] >= first
        return TrainingBatch(
            z=torch.from_numpy(scale.to_z(bars)).to(device),
            stamps=torch.from_numpy(windows.table.stamps[rows].astype(np.int64)).to(device),
            counted=torch.from_numpy(counted).to(device),
            windows=windows.take(which),
        )

    def evenly(self, most: int) -> Segment:
        """At most `most` of the windows, evenly spaced in (time, instrument) order."""
        if len(self) <= most:
            return self
        which = np.linspace(0, len(self) - 1, most).round().astype(np.int64)
        return Segment(self.windows.take(which), self.first)


class EpochSampler:
    """Every window once per epoch, in one shuffle that (seed, epoch) decides.

    The published data set draws inside `__getitem__` from a generator that loader workers share,
    so each worker repeats the others' windows (fault 3).
    """

    def __init__(self, size: int, batch_size: int, *, seed: int, limit: int | None = None) -> None:
        """Args: limit: windows per epoch; a fresh sample without repeats each epoch."""
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.count = size if limit is None else min(size, limit)

    def __len__(self) -> int:
        """Batches per epoch."""
        return -(-self.count // self.batch_size)

    def epoch(self, number: int) -> Iterator[npt.NDArray[np.int64]]:
        """The batches of an epoch, as places among the windows."""
        order = np.random.default_rng((self.seed, number)).permutation(self.size)[: self.count]
        for start in range(0, self.count, self.batch_size):
            yield np.sort(order[start : start + self.batch_size])
