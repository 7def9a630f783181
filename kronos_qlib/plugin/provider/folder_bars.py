"""Single instruments of a Qlib folder, read without `qlib.init`: no global state is touched.

A page that is open all day reads a folder that is written anew meanwhile, and scores runs whose
bars are in others.
"""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pandas as pd

from kronos_qlib.data.calendar.stamps import Times
from kronos_qlib.data.windows.bar_table import TableBuilder
from kronos_qlib.errors import BarDataError, ConfigError, some_of
from kronos_qlib.plugin.provider.faults import (
    check_folder,
    check_market,
    likely_names,
    stored_calendar,
)
from kronos_qlib.plugin.provider.feature_files import FeatureFiles
from kronos_qlib.plugin.provider.reader import STORED, StoredColumns
from kronos_qlib.schema import BAR_COLUMNS


class FolderBars:
    """The bars of a Qlib folder, one instrument at a time.

    Args:
        folder: that holds calendars, features and instruments.
        freq: None takes "day" where there is such, else the one frequency there is.

    Raises:
        ConfigError: it is no Qlib folder, or has several frequencies and no days.
        CalendarError, BarDataError: its calendar or its list of instruments cannot be read.
    """

    def __init__(self, folder: Path, freq: str | None = None) -> None:
        check_folder(folder)
        self.folder = folder
        self.freq = freq or _frequency_of(folder)
        self._lock = threading.Lock()
        self._read_at: tuple[float, float] = (0.0, 0.0)
        self._refresh()

    @property
    def calendar(self) -> Times:
        """(K,) datetime64[ns] of its bars."""
        self._refresh()
        return self._calendar

    def names(self) -> list[str]:
        """Its instruments, by the alphabet."""
        self._refresh()
        return self._names

    def read(self, name: str) -> pd.DataFrame:
        """The traded bars of one instrument: symbol, date and `schema.BAR_COLUMNS`, in order.

        Bars that a suspended day or a missing number leaves without a value are no bars, as in a
        data set.

        Raises:
            ConfigError: the folder lists no such instrument; names those that are like it.
            BarDataError: it has no bars, or a file is not what Qlib writes.
        """
        names = self.names()
        chosen = next((one for one in names if one.upper() == name.upper()), None)
        if chosen is None:
            near = likely_names(name, names)
            hint = f"did you mean {some_of(near)}?" if near else f"it has {some_of(names)}"
            raise ConfigError(f"{self.folder.name} has no instrument {name!r}; {hint}")
        calendar = self._calendar
        files = FeatureFiles(self.folder, self.freq, [STORED[one] for one in BAR_COLUMNS], calendar)
        columns = StoredColumns()
        builder = TableBuilder(calendar, len(calendar), "skip", "skip", "skip")
        for one, places, values in files.read([chosen], (0, len(calendar))):
            builder.add(one, places, columns.complete(one, values))
        table = builder.finish()
        if not len(table):
            raise BarDataError(f"{self.folder.name} has no bars of {chosen}")
        bars = pd.DataFrame(table.values, columns=list(BAR_COLUMNS)).astype(np.float64)
        bars.insert(0, "date", pd.DatetimeIndex(table.times))
        bars.insert(0, "symbol", chosen.upper())
        return bars

    def _refresh(self) -> None:
        """Read calendar and names again where their files are others than before."""
        with self._lock:
            paths = (
                self.folder / "calendars" / f"{self.freq}.txt",
                self.folder / "instruments" / "all.txt",
            )
            now = (paths[0].stat().st_mtime, paths[1].stat().st_mtime)
            if now == self._read_at:
                return
            self._calendar = stored_calendar(self.folder, self.freq)
            self._names = sorted(set(check_market(self.folder, "all").names))
            self._read_at = now


def _frequency_of(folder: Path) -> str:
    known = sorted(path.stem for path in (folder / "calendars").glob("*.txt"))
    known = [name for name in known if not name.endswith("_future")]
    if "day" in known or len(known) == 1:
        return "day" if "day" in known else known[0]
    raise ConfigError(
        f"{folder} has bars of {some_of(known) or 'no frequency'}: one folder with calendars/"
        "day.txt, or with one calendar alone, is expected"
    )
