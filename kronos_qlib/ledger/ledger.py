"""The ledger: a folder to which entries are appended, and from which nothing is taken."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from kronos_qlib.ledger.entry import Entry


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
            LedgerError: files that the index names are missing, or others than it names: run
                `kronos-qlib ledger verify`; the clock is before the newest entry; or another
                process appends for longer than `patience`.
            ConfigError: a kind, table or facts that cannot be kept.
            OSError: disk full, read-only. Nothing was appended.
        """
        raise NotImplementedError

    def entries(self, kind: str | None = None, day: dt.date | None = None) -> Sequence[Entry]:
        """All entries, oldest first; of a kind, of a day.

        Raises:
            LedgerError: a file of the chain cannot be read.
        """
        raise NotImplementedError

    def newest(self, kind: str, day: dt.date | None = None) -> Entry | None:
        """The newest entry of a kind (and day), if any: of several of a day it is the valid one."""
        raise NotImplementedError

    def table(self, entry: Entry) -> pd.DataFrame:
        """The table of an entry, from its file.

        Raises:
            LedgerError: its bytes are not those that its name says.
        """
        raise NotImplementedError

    def head(self) -> str:
        """Number and digest of the newest entry: "42-5f…"; "0-000…" of an empty ledger."""
        raise NotImplementedError
