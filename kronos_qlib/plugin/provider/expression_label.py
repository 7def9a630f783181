"""A Qlib expression as the label of windows."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from qlib.data import D

from kronos_qlib.data.windows.faulty_bars import Floats
from kronos_qlib.data.windows.label import ReturnLabel
from kronos_qlib.data.windows.window import Windows
from kronos_qlib.plugin.expressions import reach_of

RETURN = re.compile(
    r"\s*Ref\(\$close,\s*-(?P<sold>\d+)\)\s*/\s*(?:Ref\(\$close,\s*-(?P<bought>\d+)\)|\$close)"
    r"\s*-\s*1\s*"
)
"""The usual label, from close to close, which a table of bars gives by itself."""


@dataclass(frozen=True)
class ExpressionLabel:
    """What Qlib computes for each window's instrument at its last bar.

    A return from close to close is taken from the windows' own table, anything else is read
    through Qlib; with `from_bars` False everything is.
    """

    expression: str
    freq: str = "day"
    from_bars: bool = True

    @property
    def ahead(self) -> int:
        """Times of the calendar that the expression looks ahead.

        Raises:
            ConfigError: it is no expression.
        """
        return reach_of(self.expression).furthest

    def of(self, windows: Windows) -> Floats:
        """(N,) float32 labels of N windows; NaN where they are not known, or not yet."""
        usual = RETURN.fullmatch(self.expression)
        if usual is not None and self.from_bars:
            bought, sold = int(usual["bought"] or 0), int(usual["sold"])
            if sold > bought:
                return ReturnLabel(delay=bought, bars=sold - bought).of(windows)
        if not len(windows):
            return np.empty(0, dtype=np.float32)
        index = windows.index
        names = sorted(index.get_level_values("instrument").unique())
        times = index.get_level_values("datetime")
        frame = D.features(names, [self.expression], times.min(), times.max(), freq=self.freq)
        known = frame.iloc[:, 0].swaplevel().reindex(index)
        return np.asarray(known.to_numpy(), dtype=np.float32)
