"""The index of a ledger: SQLite, made from the files and never more than they say."""

from __future__ import annotations

import datetime as dt
import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kronos_qlib.errors import LedgerError
from kronos_qlib.ledger.entry import Entry, parse_stamp, stamp

INDEX = "index.sqlite"
"""Its file in the ledger's folder."""
COLUMNS = (
    "number INTEGER PRIMARY KEY",
    "digest TEXT NOT NULL UNIQUE",
    "previous TEXT NOT NULL",
    "kind TEXT NOT NULL",
    "day TEXT NOT NULL",
    "appended_at TEXT NOT NULL",
    "opens TEXT",
    "is_late INTEGER NOT NULL",
    "facts TEXT NOT NULL",
    "rows INTEGER NOT NULL",
    "content TEXT NOT NULL",
    "path TEXT NOT NULL",
)
NAMES = tuple(column.split()[0] for column in COLUMNS)
Row = tuple[int | str | None, ...]


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """The index, made if it is not there; closed at the end, which Windows needs.

    Raises:
        LedgerError: the file is no index, or cannot be written.
    """
    connection = sqlite3.connect(path, timeout=30)
    try:
        with _explained(path):
            connection.execute(f"CREATE TABLE IF NOT EXISTS entries ({', '.join(COLUMNS)})")
            connection.commit()
        yield connection
    finally:
        connection.close()


def read_rows(path: Path) -> list[Row]:
    """All rows by number; [] where there is no index.

    Raises:
        LedgerError: the file is no index.
    """
    if not path.is_file():
        return []
    with _explained(path):
        connection = sqlite3.connect(path, timeout=30)
        try:
            if not connection.execute(
                "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'entries'"
            ).fetchone():
                return []
            found = connection.execute(f"SELECT {', '.join(NAMES)} FROM entries ORDER BY number")
            return [tuple(row) for row in found]
        finally:
            connection.close()


def add_rows(connection: sqlite3.Connection, entries: Iterable[Entry], folder: Path) -> None:
    """Add entries in one transaction.

    Raises:
        LedgerError: SQLite refuses.
    """
    marks = ", ".join("?" * len(NAMES))
    with _explained(folder / INDEX), connection:
        connection.executemany(
            f"INSERT INTO entries VALUES ({marks})", [row_of(each, folder) for each in entries]
        )


def row_of(entry: Entry, folder: Path) -> Row:
    """An entry as a row."""
    return (
        entry.number,
        entry.digest,
        entry.previous,
        entry.kind,
        entry.day.isoformat(),
        stamp(entry.appended_at),
        None if entry.opens is None else stamp(entry.opens),
        int(entry.is_late),
        json.dumps(entry.facts, sort_keys=True, separators=(",", ":")),
        entry.rows,
        entry.content,
        entry.path.relative_to(folder).as_posix(),
    )


def entry_of(row: Row, folder: Path) -> Entry:
    """A row as an entry.

    Raises:
        LedgerError: the row holds other than an entry.
    """
    found = dict(zip(NAMES, row, strict=True))
    try:
        return Entry(
            number=int(str(found["number"])),
            digest=str(found["digest"]),
            previous=str(found["previous"]),
            kind=str(found["kind"]),
            day=dt.date.fromisoformat(str(found["day"])),
            appended_at=parse_stamp(str(found["appended_at"])),
            opens=None if found["opens"] is None else parse_stamp(str(found["opens"])),
            facts=json.loads(str(found["facts"])),
            rows=int(str(found["rows"])),
            content=str(found["content"]),
            path=folder / str(found["path"]),
        )
    except (ValueError, TypeError) as problem:
        raise LedgerError(
            f"{folder / INDEX}: the row of entry {found['number']} cannot be read ({problem}); "
            "kronos-qlib ledger verify says what else is wrong"
        ) from problem


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as problem:
        raise LedgerError(
            f"{path} cannot be used as the ledger's index: {problem}. The entries are in their own "
            "files: kronos-qlib ledger verify looks at them, kronos-qlib ledger reindex makes "
            "the index anew from them and keeps the old file beside it"
        ) from problem
