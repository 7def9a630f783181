"""What a signal is to predict: the return that is traded, for each window."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from kronos_qlib.data.windows.faulty_bars import Floats
from kronos_qlib.data.windows.window import Windows
from kronos_qlib.errors import ConfigError
from kronos_qlib.schema import CLOSE


class Label(Protocol):
    """A number for each window that is known `ahead` times of the calendar after its last bar."""

    @property
    def ahead(self) -> int:
        """Times of the calendar after the last bar seen until the label is known."""

    @property
    def bars(self) -> int | None:
        """Bars that its return runs over, from close to close; None where it is no such return."""

    def over(self, bars: int) -> Label:
        """The same return over other bars, from the same close.

        Raises:
            ConfigError: it is no return from close to close.
        """

    def of(self, windows: Windows) -> Floats:
        """(N,) float32; NaN where it is not known, or not yet."""


@dataclass(frozen=True)
class ReturnLabel:
    """The return from the close `delay` times after the last bar seen to that `bars` times later.

    Times are the calendar's, as in Qlib's `Ref($close, -2) / Ref($close, -1) - 1`, which this is
    as it stands: a share that is suspended at either moment has no label.
    """

    delay: int = 1
    bars: int = 1

    def __post_init__(self) -> None:
        if self.delay < 0 or self.bars < 1:
            raise ConfigError(
                f"a label needs delay >= 0 and bars >= 1, got {self.delay} and {self.bars}"
            )

    @property
    def ahead(self) -> int:
        """Times of the calendar after the last bar seen until the return is known."""
        return self.delay + self.bars

    def over(self, bars: int) -> ReturnLabel:
        """The same return over other bars, from the same close."""
        return replace(self, bars=bars)

    def of(self, windows: Windows) -> Floats:
        """(N,) float32 returns; NaN where the share has no bar at either moment."""
        bought, sold = (_close_after(windows, count) for count in (self.delay, self.ahead))
        return np.asarray(sold / bought - 1, dtype=np.float32)


def _close_after(windows: Windows, count: int) -> np.ndarray:
    """(N,) float64 closes `count` times of the calendar after each window's last bar, or NaN."""
    table, ends = windows.table, windows.ends[:].astype(np.int64)
    due = table.places[ends].astype(np.int64) + count
    stop = table.offsets[table.instrument_of(ends) + 1]
    closes = np.full(len(ends), np.nan)
    # The bar due stands at most `count` rows on; nearer, where some in between are missing.
    for step in range(count + 1):
        rows = np.minimum(ends + step, len(table) - 1)
        found = (ends + step < stop) & (table.places[rows] == due)
        closes[found] = table.values[rows[found], CLOSE]
    return closes
