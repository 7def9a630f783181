"""An entry of the ledger: what it says, and the file that holds it.

A file is one entry: a Parquet table with a header in JSON among its metadata. The header has the
SHA-256 of the whole file of the entry before, and the file's own stands in its name: no byte of
any entry can change without its name or its successor saying so.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Entry:
    """An entry without its table."""

    number: int
    """1 the first."""
    digest: str
    """SHA-256 of the file, 64 hexadecimal digits."""
    previous: str
    """That of the entry before; 64 zeros of the first."""
    kind: str
    """What it is of: "scores", "orders"."""
    day: dt.date
    """The day whose close was the last thing known: that of the bars that were scored."""
    appended_at: dt.datetime
    """By this machine's clock, in UTC."""
    opens: dt.datetime | None
    """When the market opened next, in UTC; None where nobody said."""
    facts: Mapping[str, Any]
    """Whatever belongs to the entry beside its table: model, digests, settings, book. JSON."""
    rows: int
    path: Path

    @property
    def is_late(self) -> bool:
        """Whether it was appended when the market had opened: it is no forecast then."""
        return self.opens is not None and self.appended_at >= self.opens

    @property
    def head(self) -> str:
        """Number and digest, as `kronos-qlib ledger head` prints them."""
        return f"{self.number}-{self.digest}"
