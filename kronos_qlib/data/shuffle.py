"""A shuffle of any size that takes no memory: which window stands at which place of an epoch."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

SMALL = 2**20
"""Up to so many, the permutation itself is kept, in 8 MiB at most."""
ROUNDS = 8


class Shuffle:
    """A permutation of `range(size)` that a key decides, asked place by place.

    A permutation of ten years of 5-minute windows would take more room than their bars. Above
    `SMALL` it is computed instead: a Feistel network permutes the numbers of as many bits as the
    size needs, and a number that comes out too large goes in again until it is not (cycle
    walking), which leaves a permutation of the rest. Any part of it can be had without the parts
    before, so a run goes on in the middle of an epoch at no cost.

    Source: Black and Rogaway, "Ciphers with arbitrary finite domains" (2002).
    """

    def __init__(self, size: int, *key: int) -> None:
        """Args: key: whole numbers, such as a seed and an epoch."""
        self.size = size
        rng = np.random.default_rng(key)
        self._order = rng.permutation(size) if size <= SMALL else None
        bits = max(2, (size - 1).bit_length())
        self._low_bits = np.uint64(bits // 2)
        self._low_mask = np.uint64((1 << (bits // 2)) - 1)
        self._high_mask = np.uint64((1 << (bits - bits // 2)) - 1)
        self._keys = rng.integers(0, 2**64, ROUNDS, dtype=np.uint64)

    def __call__(self, places: npt.NDArray[np.integer[Any]]) -> Ints:
        """(n,) places of the shuffled order, each in range(size), to what stands there."""
        if places.size and not 0 <= places.min() <= places.max() < self.size:
            raise IndexError(f"places {places.min()} to {places.max()} of {self.size}")
        if self._order is not None:
            return np.asarray(self._order[places], dtype=np.int64)
        found = self._permute(places.astype(np.uint64))
        while (outside := np.flatnonzero(found >= self.size)).size:
            found[outside] = self._permute(found[outside])
        return found.astype(np.int64)

    def _permute(self, numbers: Words) -> Words:
        """Of all numbers of so many bits: each half in turn is changed by a hash of the other."""
        low, high = numbers & self._low_mask, numbers >> self._low_bits
        for turn, key in enumerate(self._keys):
            if turn % 2:
                low ^= _mixed(high, key) & self._low_mask
            else:
                high ^= _mixed(low, key) & self._high_mask
        return (high << self._low_bits) | low


def _mixed(numbers: Words, key: np.uint64) -> Words:
    """A hash of 64 bits (the finish of SplitMix64); overflow is part of it."""
    words = numbers + key
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
