"""A Qlib expression as the label of windows."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np
from qlib.data import D

from kronos_qlib.data.windows.faulty_bars import Floats
from kronos_qlib.data.windows.label import ReturnLabel
from kronos_qlib.data.windows.window import Windows
from kronos_qlib.errors import ConfigError
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

    @property
    def bars(self) -> int | None:
        """Bars that its return runs over, from close to close; None where it is no such return."""
        return None if self._usual is None else self._usual.bars

    def over(self, bars: int) -> ExpressionLabel:
        """The same return over other bars, from the same close.

        Raises:
            ConfigError: it is no return from close to close.
        """
        if self._usual is None:
            raise ConfigError(
                f"the label {self.expression} has no other horizons: they need a return from close "
                "to close, such as Ref($close, -2) / Ref($close, -1) - 1"
            )
        bought = self._usual.delay
        begun = f"Ref($close, -{bought})" if bought else "$close"
        return replace(self, expression=f"Ref($close, -{bought + bars}) / {begun} - 1")

    @property
    def _usual(self) -> ReturnLabel | None:
        """The return from close to close that it is, if it is one."""
        found = RETURN.fullmatch(self.expression)
        if found is None:
            return None
        bought, sold = int(found["bought"] or 0), int(found["sold"])
        return ReturnLabel(delay=bought, bars=sold - bought) if sold > bought else None

    def of(self, windows: Windows) -> Floats:
        """(N,) float32 labels of N windows; NaN where they are not known, or not yet."""
        usual = self._usual
        if usual is not None and self.from_bars:
            return usual.of(windows)
        if not len(windows):
            return np.empty(0, dtype=np.float32)
        index = windows.index
        names = sorted(index.get_level_values("instrument").unique())
        times = index.get_level_values("datetime")
        frame = D.features(names, [self.expression], times.min(), times.max(), freq=self.freq)
        known = frame.iloc[:, 0].swaplevel().reindex(index)
        return np.asarray(known.to_numpy(), dtype=np.float32)
