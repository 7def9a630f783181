"""Days in a row as one batch: each name's bars are read once, with a context after every day.

Windows of neighbouring days share all bars but one. A step over S days that reads each name once,
lookback + S - 1 bars by the scale of the window that ends on the first of them, learns from as many
labels as S steps over single days, for little more than the work of one. The scale is of bars up to
the first day and the network is causal, so that no context depends on a later bar. Only training
reads so: a score is always of a window by itself.

Shape letters: B windows of all days of a batch, R readings, T bars, S days.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kronos_qlib.data.windows.faulty_bars import Ints
from kronos_qlib.data.windows.gather import WindowBatch, gather
from kronos_qlib.data.windows.window import Windows
from kronos_qlib.training.batches import shuffled
from kronos_qlib.training.hardware import on_device
from kronos_qlib.training.parallel.distributed import Share

if TYPE_CHECKING:
    from kronos_qlib.training.alpha import AlphaBatch, AlphaSegment


@dataclass(frozen=True)
class SpanBatch:
    """The windows of some days in a row, ready for a loss.

    days: each day's, without anything to read of their windows.
    z, stamps: (r, T, 6) and (r, T, 5), the readings of this process.
    places: (r, S) int64, the bar of a reading after which each of its contexts is.
    of_reading, of_day: (B,) int64 each, where among the readings, and among the contexts of one,
        each window's is.
    share: which of all R readings those r are.
    """

    days: list[AlphaBatch]
    z: Tensor
    stamps: Tensor
    places: Tensor
    of_reading: Tensor
    of_day: Tensor
    share: Share

    def __len__(self) -> int:
        return len(self.of_reading)


class SpanSampler:
    """Every day once per epoch, `span` days in a row at a time; where they are cut differs.

    Args:
        windows_per_day: at most; of the days of a span the same names, as far as they have windows.
        whole: as of `DaySampler`.
    """

    def __init__(
        self,
        segment: AlphaSegment,
        *,
        seed: int,
        span: int,
        windows_per_day: int | None = None,
        whole: bool = False,
    ) -> None:
        self.segment, self.seed, self.span = segment, seed, span
        self.windows_per_day, self.whole = windows_per_day, whole
        sizes = [day.stop - day.start for day in segment.days]
        self.largest = span * min(max(sizes, default=0), windows_per_day or len(segment))

    def __len__(self) -> int:
        """Spans per epoch."""
        days = len(self.segment.days)
        return days // self.span + 1 if days >= self.span else 1

    def epoch(self, number: int, start: int = 0) -> Iterator[Ints]:
        """The windows of each span, (B,) places among the segment's, after `start` spans."""
        rng = np.random.default_rng((self.seed, number))
        cuts = self._cuts(rng)
        for place in shuffled(len(self), self.seed, number)[start:].tolist():
            yield self._windows(range(cuts[place], cuts[place + 1]), number)

    def _cuts(self, rng: np.random.Generator) -> list[int]:
        """Where each span begins and the last one ends; the two outer ones may be shorter."""
        days = len(self.segment.days)
        if len(self) == 1:
            return [0, days]
        rest = days % self.span
        first = int(rng.integers(max(rest, 1), self.span, endpoint=rest > 0))
        return [0, *(first + self.span * many for many in range(days // self.span)), days]

    def _windows(self, days: range, number: int) -> Ints:
        segment = self.segment
        owners = segment.windows.table.instrument_of(
            segment.windows.ends[segment.days[days[0]].start : segment.days[days[-1]].stop]
        )
        offset = segment.days[days[0]].start
        rng = np.random.default_rng((self.seed, number, days[0]))
        order = rng.permutation(len(segment.windows.table.instruments))
        found = []
        for place in days:
            day = segment.days[place]
            which = np.arange(day.start, day.stop)
            if not self.whole:
                which = which[np.isfinite(segment.target[day])]
            if self.windows_per_day is not None and len(which) > self.windows_per_day:
                ranks = order[owners[which - offset]]
                which = np.sort(which[np.argsort(ranks)[: self.windows_per_day]])
            found.append(which)
        return np.concatenate(found)


def span_batch(
    segment: AlphaSegment, which: Ints, span: int, device: torch.device | str = "cpu"
) -> SpanBatch:
    """The chosen windows of days in a row, (B,) places in order of time."""

    def tensor(values: npt.NDArray[np.generic]) -> Tensor:
        return on_device(values, device)

    windows = segment.windows
    firsts, of_reading, of_day = readings(windows.take(which), span)
    share = Share.here(len(firsts))
    later = bars_after(firsts, of_reading, of_day)
    most = int(later.max()) + 1  # of all processes' readings, so that their contexts are gathered
    chosen, later = windows.take(which[firsts[share.rows]]), later[share.rows]
    bars = _gathered(chosen, later)
    lengths = windows.lookback if chosen.lengths is None else chosen.lengths[:, None]
    places = lengths - 1 + np.minimum(np.arange(most), later[:, None])
    moments = np.flatnonzero(np.diff(segment.moment_of(which))) + 1
    return SpanBatch(
        days=[segment.day_alone(day, device) for day in np.split(which, moments)],
        z=tensor(bars.z),
        stamps=tensor(bars.stamps),
        places=tensor(places.astype(np.int64)),
        of_reading=tensor(of_reading),
        of_day=tensor(of_day),
        share=share,
    )


def readings(windows: Windows, span: int) -> tuple[Ints, Ints, Ints]:
    """Windows that are read together: those of one name within `span` bars, each of which has seen
    the last bar of the one before.

    Returns:
        (R,) the first window of each reading; (B,) each window's reading; (B,) how many bars after
        that first window each one ends.
    """
    ends = np.asarray(windows.ends[:], dtype=np.int64)
    order = np.argsort(ends, kind="stable")  # rows stand by instrument, then by time
    rows = ends[order]
    owners = windows.table.instrument_of(rows)
    begins = np.flatnonzero(np.diff(owners, prepend=-1))
    first = np.repeat(rows[begins], np.diff([*begins, len(rows)]))
    block = (rows - first) // span
    lengths = np.full(len(rows), windows.lookback) if windows.lengths is None else windows.lengths
    # What lies before a window's own bars is too old for it (`max_age_days`), or no window's.
    is_apart = np.diff(rows, prepend=rows[:1]) >= lengths[order]
    is_other = (np.diff(owners, prepend=-1) != 0) | (np.diff(block, prepend=-1) != 0)
    begins = np.flatnonzero(is_other | is_apart)
    number = np.repeat(np.arange(len(begins)), np.diff([*begins, len(rows)]))
    of_reading, of_day = np.empty_like(order), np.empty_like(order)
    of_reading[order], of_day[order] = number, rows - rows[begins][number]
    return order[begins], of_reading, of_day


def bars_after(firsts: Ints, of_reading: Ints, of_day: Ints) -> Ints:
    """(R,) how many bars after its first window each of the `readings` goes on."""
    later = np.zeros(len(firsts), dtype=np.int64)
    np.maximum.at(later, of_reading, of_day)
    return later


def _gathered(windows: Windows, later: Ints) -> WindowBatch:
    """Windows with as many bars after them as each is read on; 0 after those."""
    batch = WindowBatch.empty(len(windows), windows.lookback + int(later.max()))
    for count in np.unique(later).tolist():
        rows = np.flatnonzero(later == count)
        # Each with its own bars alone: the rows after the last are another name's.
        part = gather(replace(windows.take(rows), ahead=count), np.arange(len(rows)))
        used = windows.lookback + count
        batch.z[rows, :used], batch.stamps[rows, :used] = part.z, part.stamps
        batch.z[rows, used:] = batch.stamps[rows, used:] = 0
    return batch
