"""The last bars of one instrument, and what a bar that comes is to them.

Shape letters: K bars kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from kronos_qlib.data.calendar.stamps import Times
from kronos_qlib.schema import BAR_COLUMNS

Floats = npt.NDArray[np.float32]

Kind = Literal["new", "repeated", "corrected", "late", "too late"]
"""What a bar is to those before it: later than all; one that is there, bit for bit; another one at
the time of one that is there; between two of them; or before all of them, where older ones have
been given up."""


@dataclass(frozen=True, eq=False)
class KeptBars:
    """The last bars of an instrument.

    bars: (K, 6) float32. times: (K,) datetime64[ns], increasing.
    most: bars kept at most.
    """

    bars: Floats
    times: Times
    most: int

    @classmethod
    def none(cls, most: int) -> KeptBars:
        """Of an instrument that has had no bar."""
        return cls(
            np.empty((0, len(BAR_COLUMNS)), dtype=np.float32),
            np.empty(0, dtype="datetime64[ns]"),
            most,
        )

    def __len__(self) -> int:
        return len(self.bars)

    def kind_of(self, time: np.datetime64, bar: Floats) -> Kind:
        """What a bar (6,) of this time would be."""
        if not len(self) or time > self.times[-1]:
            return "new"
        place = int(np.searchsorted(self.times, time))
        if self.times[place] == time:
            return "repeated" if np.array_equal(self.bars[place], bar) else "corrected"
        return "too late" if place == 0 and len(self) == self.most else "late"

    def with_bar(self, time: np.datetime64, bar: Floats) -> KeptBars:
        """The last `most` of these and a bar put in its place, which one of its time gives up."""
        place = int(np.searchsorted(self.times, time))
        stop = place + bool(place < len(self) and self.times[place] == time)
        bars = np.concatenate((self.bars[:place], bar[None], self.bars[stop:]))
        times = np.concatenate((self.times[:place], [time], self.times[stop:]))
        return KeptBars(bars[-self.most :], times[-self.most :], self.most)
