"""What each day leaves in the home folder: each step's files at once, and last that it is done.

days/2024-03-05/scores/      scores.parquet, about.json
                orders/      orders.csv, left_alone.csv, book.csv, about.json
                done.json
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from kronos_qlib.errors import BarDataError, KronosError
from kronos_qlib.files import recover, replacing
from kronos_qlib.plugin.orders.book import Book
from kronos_qlib.plugin.orders.making import Orders
from kronos_qlib.plugin.registry.newest_scores import NewestScores

DAYS = "days"
ABOUT = "about.json"
SCORES_FILE, RANKING_FILE, ORDERS_FILE = "scores.parquet", "ranking.parquet", "orders.csv"


class DayFolder:
    """The files of one day."""

    def __init__(self, home: Path, day: pd.Timestamp) -> None:
        self.day = day
        self.path = home / DAYS / f"{day:%Y-%m-%d}"
        self.scores, self.orders = self.path / "scores", self.path / "orders"
        self.end = self.path / "done.json"

    @property
    def is_done(self) -> bool:
        """Whether all steps have been made."""
        return self.end.is_file()

    def recover(self) -> None:
        """End what killed processes began."""
        for target in (self.scores, self.orders, self.end):
            recover(target)

    def write_scores(self, found: NewestScores) -> None:
        """Keep scores and what belongs to them."""
        with replacing(self.scores) as draft:
            draft.mkdir()
            found.table.to_parquet(draft / SCORES_FILE)
            found.ranking.to_parquet(draft / RANKING_FILE)
            about = {
                "model": found.model,
                "version": found.version,
                "facts": found.facts,
                "notes": list(found.notes),
            }
            write_json(draft / ABOUT, about)

    def read_scores(self) -> NewestScores:
        """What `write_scores` kept.

        Raises:
            BarDataError: a file is damaged.
        """
        about = read_json(self.scores / ABOUT)
        with _explained(self.scores):
            return NewestScores(
                model=about["model"],
                version=about["version"],
                day=self.day,
                table=pd.read_parquet(self.scores / SCORES_FILE),
                facts=about["facts"],
                notes=tuple(about["notes"]),
                ranking=pd.read_parquet(self.scores / RANKING_FILE),
            )

    def write_orders(self, found: Orders) -> None:
        """Keep orders, and the book that they were made from."""
        with replacing(self.orders) as draft:
            draft.mkdir()
            found.write(draft / ORDERS_FILE)
            found.left_alone.to_csv(draft / "left_alone.csv", index=False, lineterminator="\n")
            holdings = found.book.holdings
            about = {
                "for": f"{found.day:%Y-%m-%d}",
                "cash": float(found.book.cash),
                "holdings": {
                    str(name): [float(quantity), int(days)]
                    for name, quantity, days in zip(
                        holdings.index, holdings["quantity"], holdings["days"], strict=True
                    )
                },
                "notes": list(found.notes),
            }
            write_json(draft / ABOUT, about)

    def read_book(self) -> Book:
        """The book that the kept orders were made from.

        Raises:
            BarDataError: the file is damaged.
        """
        about = read_json(self.orders / ABOUT)
        with _explained(self.orders):
            if not about["holdings"]:
                return Book.of_cash(about["cash"])
            holdings = pd.DataFrame.from_dict(
                about["holdings"], orient="index", columns=["quantity", "days"]
            )
            return Book(about["cash"], holdings.rename_axis("instrument"))

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Say that all is made."""
        with replacing(self.end) as draft:
            write_json(draft, facts)


def last_heads(home: Path, before: pd.Timestamp) -> list[str]:
    """Heads of the ledger that the newest day before this one left; [] where none did.

    Raises:
        BarDataError: its file is damaged.
    """
    for path in sorted((home / DAYS).glob("*/done.json"), reverse=True):
        if path.parent.name < f"{before:%Y-%m-%d}" and path.stat().st_size:
            heads = read_json(path).get("ledger")
            if isinstance(heads, list):
                return list(map(str, heads))
    return []


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """JSON with the same bytes on every system."""
    text = json.dumps(values, indent=1, sort_keys=True, ensure_ascii=True)
    path.write_text(text + "\n", encoding="utf-8", newline="\n")


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote.

    Raises:
        BarDataError: the file is missing or damaged.
    """
    with _explained(path.parent):
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"{path.name} is no mapping")
    return found


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """What to do about a step's folder that cannot be read.

    Raises:
        BarDataError: in place of what was raised.
    """
    try:
        yield
    except KeyError as missing:
        problem: Exception = ValueError(f"{missing} is missing")
    except (OSError, ValueError, TypeError, KronosError) as caught:
        problem = caught
    else:
        return
    raise BarDataError(
        f"{folder} is damaged ({problem}): move this folder away, and its step is made anew"
    ) from problem
