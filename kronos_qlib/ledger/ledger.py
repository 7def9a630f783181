"""The ledger: a folder to which entries are appended, and from which nothing is taken."""

from __future__ import annotations

import datetime as dt
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from kronos_qlib.errors import ConfigError, LedgerError, short_repr
from kronos_qlib.ledger.entry import (
    FIRST,
    KIND,
    NAME,
    Entry,
    arrow_table,
    content_of,
    digest_of,
    facts_json,
    file_bytes,
    head_of,
    place_of,
    read_entry,
    read_table,
    stamp,
)
from kronos_qlib.ledger.index import INDEX, add_rows, entry_of, opened, read_rows

LOCK, DRAFT = ".lock", ".draft"
"""Beside the entries: who appends now, and the file that is being written."""
CLOCK_SLACK = dt.timedelta(minutes=1)
"""By which a clock may be before the newest entry: clocks are set right by seconds."""
LOOK = "kronos-qlib ledger verify says where"


def utc_now() -> dt.datetime:
    """This machine's clock, with its zone."""
    return dt.datetime.now(dt.timezone.utc)


class Ledger:
    """Entries in a folder: Parquet files chained by SHA-256, and a SQLite index of them.

    The files are the truth. The index can be made again from them, and is a second witness: what
    it names and is not there was taken away.

    Args:
        folder: made by the first `append`.
        clock: gives the time that an entry bears, with a zone; for tests and simulations.
        patience: seconds to wait for another process that appends.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        clock: Callable[[], dt.datetime] = utc_now,
        patience: float = 60.0,
    ) -> None:
        self.folder = Path(folder)
        self.clock = clock
        self.patience = patience

    def append(
        self,
        kind: str,
        day: dt.date,
        table: pd.DataFrame,
        facts: Mapping[str, Any],
        *,
        opens: dt.datetime | None,
    ) -> Entry:
        """Append an entry, unless the newest of its kind and day says the same: then that one.

        It is whole or not there. After a kill between the file and the index, the next `append`
        brings the index up to date.

        Args:
            kind: lower-case letters and "_".
            table: columns named by texts; an index is not kept.
            facts: what JSON can hold, no NaN.
            opens: when the market opens next, with a zone; what is appended later is late. None
                where nobody knows, and the entry says so.

        Raises:
            LedgerError: files that the index names are missing, or others than it names, or the
                newest was changed: run `kronos-qlib ledger verify`; the clock is before the newest
                entry; or another process appends for longer than `patience`.
            ConfigError: a kind, table or facts that cannot be kept.
            OSError: disk full, read-only. Nothing was appended.
        """
        if not KIND.fullmatch(kind):
            raise ConfigError(f"a kind of entries is lower-case letters, got {short_repr(kind)}")
        day = day.date() if isinstance(day, dt.datetime) else day
        text, arrow = facts_json(facts), arrow_table(table)
        content = content_of(kind, day, text, arrow)
        if opens is not None:
            opens = dt.datetime.fromisoformat(stamp(opens))
        with self._alone():
            known = self._up_to_date()
            same = [each for each in known if each.kind == kind and each.day == day]
            if same and same[-1].content == content:
                if read_entry(self._bytes(same[-1]), same[-1].path) != same[-1]:
                    raise LedgerError(
                        f"the index says other of entry {same[-1].number} than its file: whether "
                        f"this is in the ledger already is not known; {LOOK}"
                    )
                return same[-1]
            now = dt.datetime.fromisoformat(stamp(self.clock()))
            if known and now < known[-1].appended_at - CLOCK_SLACK:
                raise LedgerError(
                    f"the clock says {now:%Y-%m-%d %H:%M:%S} UTC, which is before entry "
                    f"{known[-1].number} of {known[-1].appended_at:%Y-%m-%d %H:%M:%S}: set it "
                    "right; nothing was appended"
                )
            number = known[-1].number + 1 if known else 1
            data = file_bytes(
                arrow,
                number=number,
                previous=known[-1].digest if known else FIRST,
                kind=kind,
                day=day,
                appended_at=now,
                opens=opens,
                content=content,
                facts=text,
            )
            path = self.folder / place_of(kind, day, number, digest_of(data))
            entry = read_entry(data, path)
            self._write(data, path)
            with opened(self.folder / INDEX) as connection:
                add_rows(connection, [entry], self.folder)
        return entry

    def entries(self, kind: str | None = None, day: dt.date | None = None) -> Sequence[Entry]:
        """All entries, oldest first; of a kind, of a day.

        Raises:
            LedgerError: the files are not what the index names, or one cannot be read.
        """
        rows = [entry_of(row, self.folder) for row in read_rows(self.folder / INDEX)]
        found = [*rows, *self._not_indexed(rows)]
        return [each for each in found if kind in (None, each.kind) and day in (None, each.day)]

    def newest(self, kind: str, day: dt.date | None = None) -> Entry | None:
        """The newest entry of a kind (and day), if any: of several of a day it is the valid one."""
        found = self.entries(kind, day)
        return found[-1] if found else None

    def table(self, entry: Entry) -> pd.DataFrame:
        """The table of an entry, from its file.

        Raises:
            LedgerError: its bytes are not those that its name says.
        """
        return read_table(self._bytes(entry))

    def head(self) -> str:
        """Number and digest of the newest entry: "42-5f…"; "0-000…" of an empty ledger.

        Raises:
            LedgerError: as `entries`, and where the newest entry was changed.
        """
        found = self.entries()
        if not found:
            return head_of(0, FIRST)
        self._bytes(found[-1])
        return found[-1].head

    def reindex(self) -> Path | None:
        """Make the index anew from the files; the old one stays beside it.

        Returns:
            Where the old one is now; None where there was none.

        Raises:
            LedgerError: the files are no whole chain.
        """
        with self._alone():
            entries = self._not_indexed([])
            path = self.folder / INDEX
            aside = _free_name(path) if path.exists() else None
            if aside is not None:
                path.rename(aside)
            with opened(path) as connection:
                add_rows(connection, entries, self.folder)
            return aside

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """As the one process that appends."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / LOCK, timeout=self.patience)
        try:
            lock.acquire()
        except Timeout:
            raise LedgerError(
                f"another process appends to {self.folder} for more than {self.patience:g} s; "
                "nothing was appended: try again when it has ended"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def _up_to_date(self) -> list[Entry]:
        """All entries, after the index was told of those that it does not know."""
        rows = [entry_of(row, self.folder) for row in read_rows(self.folder / INDEX)]
        new = self._not_indexed(rows)
        if new:
            with opened(self.folder / INDEX) as connection:
                add_rows(connection, new, self.folder)
        known = [*rows, *new]
        if known:
            self._bytes(known[-1])  # the next entry will vouch for these
        return known

    def _bytes(self, entry: Entry) -> bytes:
        """An entry's file.

        Raises:
            LedgerError: its bytes are not those that its name says.
        """
        try:
            data = entry.path.read_bytes()
        except OSError as problem:
            raise LedgerError(
                f"entry {entry.number} cannot be read: {problem}; {LOOK}"
            ) from problem
        if digest_of(data) != entry.digest:
            raise LedgerError(f"entry {entry.number} was changed: {entry.path}; {LOOK}")
        return data

    def _not_indexed(self, rows: Sequence[Entry]) -> list[Entry]:
        """Entries that follow those of the index.

        Raises:
            LedgerError: they do not, or files of the index are not there.
        """
        files = files_of(self.folder)
        for row in rows:
            if files.pop((row.number, row.digest), None) != row.path:
                raise LedgerError(
                    f"entry {row.number} of the index is not at {row.path}: the ledger was "
                    f"changed; {LOOK}"
                )
        found: list[Entry] = []
        last = rows[-1] if rows else None
        for (number, digest), path in sorted(files.items()):
            entry = read_entry(path.read_bytes(), path)
            follows = (last.number + 1, last.digest) if last else (1, FIRST)
            if (number, digest) != (entry.number, entry.digest) or follows != (
                entry.number,
                entry.previous,
            ):
                raise LedgerError(
                    f"{path} does not follow entry {last.number if last else 0}: the ledger was "
                    f"changed; {LOOK}"
                )
            found.append(entry)
            last = entry
        return found

    def _write(self, data: bytes, path: Path) -> None:
        """The whole file at its place, on the disk and not only in its cache."""
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.folder / DRAFT
        try:
            with draft.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except OSError:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            raise
        if os.name == "posix":  # the names too, of new folders as well; Windows has no such call
            for folder in (path.parent, path.parent.parent, self.folder):
                place = os.open(folder, os.O_RDONLY)
                try:
                    os.fsync(place)
                finally:
                    os.close(place)


def _free_name(path: Path) -> Path:
    places = (path.with_name(f"{path.name}.{count}.old") for count in itertools.count(1))
    return next(place for place in places if not place.exists())


def files_of(folder: Path) -> dict[tuple[int, str], Path]:
    """Files by the number and digest in their names."""
    found = {}
    for path in folder.glob("kind=*/month=*/*.parquet"):
        if named := NAME.fullmatch(path.name):
            found[int(named[1]), named[2]] = path
    return found
