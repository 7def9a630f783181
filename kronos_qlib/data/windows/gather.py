"""The bars of chosen windows, normalised by their lookbacks, into memory that is there already.

Shape letters: B windows of a batch, T bars of a window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kronos_qlib.data.windows.scale import Z_LIMIT, WindowScale
from kronos_qlib.data.windows.window import Windows
from kronos_qlib.schema import BAR_COLUMNS, TIME_FIELDS

CHUNK_BARS = 6400
"""Bars normalised at a time: what is in the making stays in a core's own cache."""

BAR = np.dtype((np.void, 4 * len(BAR_COLUMNS)))
"""One bar's bytes, so that whole bars are copied and not six numbers one by one."""
STAMP = np.dtype((np.void, 8 * len(TIME_FIELDS)))


@dataclass(frozen=True)
class WindowBatch:
    """A batch of windows. A window that has seen fewer bars than others is followed by nothing.

    z: (B, T, 6) float32, normalised by each window's own lookback, clipped; 0 after its end.
    stamps: (B, T, 5) int64; 0 after its end.
    counted: (B, T) bool, the bars a loss may count: inside the segment, not after the end.
    level, spread: (B, 6) float64, what was taken away, each column in its own unit.
    """

    z: npt.NDArray[np.float32]
    stamps: npt.NDArray[np.int64]
    counted: npt.NDArray[np.bool_]
    level: npt.NDArray[np.float64]
    spread: npt.NDArray[np.float64]

    @classmethod
    def empty(cls, size: int, bars: int) -> WindowBatch:
        """Memory for up to `size` windows of `bars` bars, lookback and horizon."""
        return cls(
            z=np.empty((size, bars, len(BAR_COLUMNS)), dtype=np.float32),
            stamps=np.empty((size, bars, len(TIME_FIELDS)), dtype=np.int64),
            counted=np.empty((size, bars), dtype=np.bool_),
            level=np.empty((size, len(BAR_COLUMNS))),
            spread=np.empty((size, len(BAR_COLUMNS))),
        )

    def first(self, count: int) -> WindowBatch:
        """A view of the first `count` windows."""
        return WindowBatch(
            self.z[:count],
            self.stamps[:count],
            self.counted[:count],
            self.level[:count],
            self.spread[:count],
        )


def gather(
    windows: Windows,
    which: npt.NDArray[np.integer],
    *,
    clip: float = Z_LIMIT,
    out: WindowBatch | None = None,
) -> WindowBatch:
    """Copy the chosen windows out of their table and normalise them.

    Args:
        which: (B,) places among the windows.
        clip: largest magnitude of a z-score.
        out: memory to fill, as `WindowBatch.empty` makes it; None takes new memory. The batch
            returned is a view of it, good until it is filled again.

    Returns:
        The windows in the order asked for. Each has the same bits whatever the others are. Bars
        before `windows.begin` are not counted.

    Raises:
        ValueError: `out` has room for fewer windows, or for windows of another length.
    """
    bars = windows.lookback + windows.ahead
    batch = WindowBatch.empty(len(which), bars) if out is None else out.first(len(which))
    if len(batch.z) < len(which) or batch.z.shape[1] != bars:
        raise ValueError(f"memory of shape {batch.z.shape} for {len(which)} windows of {bars} bars")
    if windows.lengths is None:
        chunk = max(1, CHUNK_BARS // bars)
        for start in range(0, len(which), chunk):
            block = slice(start, start + chunk)
            _fill(batch, block, windows, which[block], windows.lookback, clip)
        return batch
    lengths = windows.lengths[which]
    for length in np.unique(lengths).tolist():
        places = np.flatnonzero(lengths == length)
        chunk = max(1, CHUNK_BARS // (length + windows.ahead))
        for start in range(0, len(places), chunk):
            part = places[start : start + chunk]
            _fill(batch, part, windows, which[part], length, clip)
    return batch


def _fill(
    batch: WindowBatch,
    part: Any,
    windows: Windows,
    which: npt.NDArray[np.integer],
    length: int,
    clip: float,
) -> None:
    """One chunk of windows of one length."""
    table, used = windows.table, length + windows.ahead
    # Time first: sums over time then run over long stretches of memory, one add after another.
    rows = windows.ends[which] + np.arange(1 - length, windows.ahead + 1)[:, None]  # (T, b)
    bars = table.values.view(BAR)[rows, 0].view(np.float32).reshape(*rows.shape, len(BAR_COLUMNS))
    scale = WindowScale.of(bars[:length], axis=0)
    batch.level[part], batch.spread[part] = scale.mean[0], scale.spread[0]
    z = scale.to_z(bars, clip)
    places = table.places[rows]
    batch.z[part, :used] = _windows_first(z, BAR, np.float32)
    stamps = table.calendar_stamps.view(STAMP)[places, 0]
    batch.stamps[part, :used] = _windows_first(stamps, STAMP, np.int64)
    batch.counted[part, :used] = (places >= windows.begin).T
    if used < batch.z.shape[1]:
        for array in (batch.z, batch.stamps, batch.counted):
            array[part, used:] = 0


def _windows_first(values: Any, item: np.dtype[Any], kind: Any) -> Any:
    """(T, b, ...) to (b, T, ...), moving items whole."""
    swapped = np.ascontiguousarray(values.reshape(*values.shape[:2], -1).view(item)[..., 0].T)
    return swapped.view(kind).reshape(*swapped.shape, -1)
