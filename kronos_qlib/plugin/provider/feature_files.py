"""Feature files of a Qlib folder, read without Qlib."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from qlib.utils.time import Freq

from kronos_qlib.data.calendar.stamps import Times
from kronos_qlib.data.calendar.time_text import show_time
from kronos_qlib.data.windows.faulty_bars import Floats
from kronos_qlib.errors import BarDataError
from kronos_qlib.plugin.provider.faults import (
    RECONVERT,
    feature_folder,
)
from kronos_qlib.schema import CLOSE

Dense = Iterator[tuple[str, npt.NDArray[np.int64], Floats]]
"""For each instrument its name, places in the calendar (n,), and values (n, fields) with NaN."""


class FeatureFiles:
    """Feature files: one per instrument and field, a first place and a value per place."""

    def __init__(self, folder: Path, freq: str, fields: Sequence[str], calendar: Times) -> None:
        self.root = f"{folder / 'features'}/"
        self.freq = str(Freq(freq))
        self.fields = fields
        self.calendar = calendar
        # One value more than can be right, so that a longer file is noticed.
        self.buffers = [np.empty(len(calendar) + 2, dtype="<f4") for _ in fields]

    def path(self, name: str, field: str) -> str:
        """The file of an instrument's field, such as "$close"."""
        # A plain string: a Path for each of many thousand files would take as long as reading.
        return f"{self.root}{feature_folder(name)}/{field[1:].lower()}.{self.freq}.bin"

    def paths(self, name: str) -> list[Path]:
        """The files of an instrument's fields, there or not."""
        return [Path(self.path(name, field)) for field in dict.fromkeys(self.fields)]

    def count(self, name: str, field: str, bounds: tuple[int, int]) -> int:
        """Values at most that an instrument has within the bounds."""
        try:
            size = Path(self.path(name, field)).stat().st_size
        except FileNotFoundError:
            return 0
        return min(size // 4, bounds[1] - bounds[0])

    def stored(self, names: Iterable[str]) -> set[str]:
        """The fields that are asked for and that some instrument has."""
        wanted, found = set(self.fields), set()
        for name in names:
            found |= {field for field in wanted if Path(self.path(name, field)).is_file()}
            wanted -= found
            if not wanted:
                break
        return found

    def field(self, name: str, field: str) -> tuple[int, Floats] | None:
        """The first place and the (n,) values of an instrument's field; None without a file.

        Raises:
            BarDataError: the file is not what Qlib writes.
        """
        found = self._values(self.path(name, field), self.buffers[0])
        return None if found is None else (found[0], found[1].copy())

    def check(self, names: Iterable[str]) -> None:
        """Refuse a file that is not what Qlib writes, also where Qlib is to read it."""
        for name in names:
            for field in dict.fromkeys(self.fields):
                self._values(self.path(name, field), self.buffers[0])

    def read(self, names: Iterable[str], bounds: tuple[int, int]) -> Dense:
        """Instruments one after another, those without a price too: with no bars."""
        for name in names:
            parts = [
                self._values(self.path(name, field), buffer)
                for field, buffer in zip(self.fields, self.buffers, strict=True)
            ]
            prices = [part for part in parts[: CLOSE + 1] if part is not None]
            start = max(bounds[0], min((first for first, _ in prices), default=0))
            stop = min(bounds[1], max((first + len(values) for first, values in prices), default=0))
            stop = max(start, stop)
            dense = np.full((len(parts), stop - start), np.nan, dtype=np.float32)
            for row, part in zip(dense, parts, strict=True):
                if part is not None:
                    first, values = part
                    begin, end = max(start, first), min(stop, first + len(values))
                    if begin < end:
                        row[begin - start : end - start] = values[begin - first : end - first]
            yield name, np.arange(start, stop), dense.T

    def _values(self, path: str, buffer: Floats) -> tuple[int, Floats] | None:
        """The first place and the values of one file, in the buffer; None without a file."""
        try:
            with open(path, "rb", buffering=0) as file:  # noqa: PTH123, as for `path`
                size = file.readinto(buffer.data.cast("B"))
        except FileNotFoundError:
            return None
        if size < 4:
            raise BarDataError(
                f"{path} is no feature file: {size} bytes, as of a write that was cut short; "
                f"{RECONVERT}"
            )
        first = float(buffer[0])
        stop = first + size // 4 - 1
        if size % 4 or not first.is_integer() or first < 0 or stop > len(self.calendar):
            raise BarDataError(self._fault(path, first))
        return int(first), buffer[1 : size // 4]

    def _fault(self, path: str, first: float) -> str:
        size = Path(path).stat().st_size  # the buffer may be shorter
        count = size // 4 - 1
        if size % 4:
            return (
                f"{path} is no feature file of this provider: {size} bytes, of which each number "
                f"takes 4: it was cut short or is something else; {RECONVERT}"
            )
        if not first.is_integer() or first < 0:
            return (
                f"{path} is no feature file of this provider: its {count} values begin at place "
                f"{first:g} of the calendar, and places are whole numbers from 0 on; {RECONVERT}"
            )
        known = len(self.calendar)
        unit = "days" if self.freq == "day" else "times"
        begin = f"place {first:.0f}"
        if first < known:
            begin = show_time(self.calendar[int(first)])
        return (
            f"{path} holds {count} values from {begin} on, and calendars/{self.freq}.txt has "
            f"{known} {unit}: the calendar is too short, {first + count - known:.0f} values have "
            "no time. File and calendar were written apart: put the calendar back that the files "
            "were written with, or convert the bars again into a new folder"
        )
