"""What is held: cash and shares, as a broker's list has them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from kronos_qlib.data.calendar.stamps import Times
from kronos_qlib.errors import ConfigError, printable, short_repr, some_of
from kronos_qlib.files import replacing
from kronos_qlib.markup import cause_of

COLUMNS = ("quantity", "days")
BOUGHT = re.compile(r"(?:\d{8}|\d{4}([-/.])\d{1,2}\1\d{1,2})(?:[T ].*)?", re.ASCII)
"""A date with its year first: 05/06/2024 is one day here and another there."""


@dataclass(frozen=True)
class Book:
    """Cash and what is held at the close of a day, before the next day's orders.

    Args:
        cash: money that can be spent.
        holdings: on instrument (Qlib's spelling): `quantity`, real shares as a broker counts them
            (not adjusted), and `days`, closes since the purchase, its own day's included: 1 of
            what was bought on the day of the last close.

    Raises:
        ConfigError: cash or a quantity is not a number from 0, a name is held twice, or days are
            no whole numbers from 0.
    """

    cash: float
    holdings: pd.DataFrame

    def __post_init__(self) -> None:
        if not (math.isfinite(self.cash) and self.cash >= 0):
            raise ConfigError(f"cash is money from 0, got {self.cash:g}")
        lacking = [name for name in COLUMNS if name not in self.holdings]
        if lacking:
            raise ConfigError(f"holdings have the columns quantity and days, not {lacking[0]}")
        # Qlib keeps SH600000 and sh600000 in one folder.
        twice = self.holdings.index[self.holdings.index.astype(str).str.upper().duplicated()]
        if len(twice):
            raise ConfigError(f"{some_of(twice.tolist())} is held twice: add the quantities up")
        for name, row in self.holdings.iterrows():
            quantity, days = float(row["quantity"]), float(row["days"])
            if not (math.isfinite(quantity) and quantity > 0):
                raise ConfigError(f"{name}: a quantity is a number above 0, got {quantity!r}")
            if not (days >= 0 and days == round(days)):
                raise ConfigError(f"{name}: days held are a whole number from 0, got {days!r}")

    @classmethod
    def of_cash(cls, cash: float) -> Book:
        """A book that holds nothing else."""
        nothing = pd.DataFrame({"quantity": pd.Series(dtype=float), "days": pd.Series(dtype=int)})
        return cls(cash, nothing.rename_axis("instrument"))

    @classmethod
    def read(
        cls, path: Path | str, cash: float, day: pd.Timestamp, calendar: Times | None = None
    ) -> Book:
        """A positions CSV: instrument, quantity, and `days` or `bought` (the day of purchase).

        Args:
            day: of the last close, to which `bought` is counted.
            calendar: (K,) to count on; None is Qlib's, of days.

        Raises:
            ConfigError: the file is missing, or a line cannot be used (names line and column).
        """
        path = Path(path)
        try:
            # Names such as 600000 or TRUE stay what they are.
            found = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        except (OSError, ValueError) as problem:
            raise ConfigError(
                f"the positions {path} cannot be read: {cause_of(problem)}"
            ) from problem
        found.columns = [str(name).strip().lower() for name in found.columns]
        timed = [name for name in ("days", "bought") if name in found]
        if not {"instrument", "quantity"} <= set(found) or len(timed) != 1:
            raise ConfigError(
                f"{path} has the columns {printable(', '.join(map(str, found)))}; positions have "
                "instrument, quantity, and either days (closes since the purchase) or "
                "bought (its day)"
            )
        lines = range(2, len(found) + 2)
        quantity = [_number(text, path, line, "quantity") for text, line in _each(found, lines)]
        days: list[float]
        if timed == ["days"]:
            days = [_number(text, path, line, "days") for text, line in _each(found, lines, "days")]
        else:
            days = [float(count) for count in _closes_since(found["bought"], path, day, calendar)]
        names = pd.Index(found["instrument"].str.strip(), name="instrument")
        if (names == "").any():
            raise ConfigError(f"{path}, line {2 + int((names == '').argmax())}: no instrument")
        try:
            return cls(cash, pd.DataFrame({"quantity": quantity, "days": days}, index=names))
        except ConfigError as problem:
            raise ConfigError(f"{path}: {problem}") from None

    def write(self, path: Path | str) -> None:
        """The CSV that `read` reads (instrument, quantity, days), atomically; without the cash."""
        table = self.holdings[list(COLUMNS)].rename_axis("instrument").sort_index()
        table = table.astype({"days": int})
        with replacing(Path(path)) as draft:
            table.to_csv(draft, float_format="%.12g", lineterminator="\n")


def read_cash(path: Path) -> float:
    """The one number that a text file holds.

    Raises:
        ConfigError: the file is missing, or holds other than money from 0.
    """
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except (OSError, ValueError) as problem:
        raise ConfigError(f"the cash {path} cannot be read: {cause_of(problem)}") from problem
    try:
        cash = float(text)
    except ValueError:
        cash = math.nan
    if not (math.isfinite(cash) and cash >= 0):
        raise ConfigError(
            f"{path} is to hold one number from 0, the money that can be spent, such as 250000.50, "
            f"got {short_repr(text)}"
        )
    return cash


def _each(table: pd.DataFrame, lines: range, column: str = "quantity") -> list[tuple[str, int]]:
    return list(zip(table[column], lines, strict=True))


def _number(text: str, path: Path, line: int, column: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(
            f"{path}, line {line}: {column} is a number, got {short_repr(text)}"
        ) from None


def _closes_since(
    bought: pd.Series[str], path: Path, day: pd.Timestamp, calendar: Times | None
) -> list[int]:
    """Closes from each day of purchase to `day`, both included."""
    if calendar is None:
        from kronos_qlib.plugin.provider.reader import read_calendar

        calendar = read_calendar("day")
    days = pd.DatetimeIndex(calendar)
    last = int(days.searchsorted(day, side="right"))
    counts = []
    for line, text in enumerate(bought, start=2):
        try:
            moment = pd.Timestamp(text.strip()) if BOUGHT.fullmatch(text.strip()) else None
        except ValueError:
            moment = None
        if moment is None or moment.tz is not None:
            raise ConfigError(
                f"{path}, line {line}: bought is a date such as 2024-06-18, got {short_repr(text)}"
            )
        moment = moment.normalize()
        if moment > day:
            raise ConfigError(
                f"{path}, line {line}: bought on {text}, which is after {day:%Y-%m-%d}"
            )
        counts.append(last - int(days.searchsorted(moment)))
    return counts
