"""What is held: cash and shares, as a broker's list has them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd


@dataclass(frozen=True)
class Book:
    """Cash and what is held at the close of a day, before the next day's orders.

    Args:
        cash: money that can be spent.
        holdings: on instrument (Qlib's spelling): `quantity`, real shares as a broker counts them
            (not adjusted), and `days`, closes since the purchase, its own day's included: 1 of
            what was bought on the day of the last close.
    """

    cash: float
    holdings: pd.DataFrame

    @classmethod
    def of_cash(cls, cash: float) -> Book:
        """A book that holds nothing else."""
        raise NotImplementedError

    @classmethod
    def read(cls, path: Path | str, cash: float, day: pd.Timestamp, freq: str = "day") -> Book:
        """A positions CSV: instrument, quantity, and `days` or `bought` (the day of purchase).

        Args:
            day: of the last close, to which `bought` is counted on Qlib's calendar.

        Raises:
            ConfigError: the file is missing, or a line cannot be used (names line and column).
        """
        raise NotImplementedError

    def write(self, path: Path | str) -> None:
        """The CSV that `read` reads (instrument, quantity, days), atomically; without the cash."""
        raise NotImplementedError
