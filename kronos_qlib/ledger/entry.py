"""An entry of the ledger: what it says, and the file that holds it.

A file is one entry: a Parquet table with a header in JSON among its metadata. The header has the
SHA-256 of the whole file of the entry before, and the file's own stands in its name: no byte of
any entry can change without its name or its successor saying so.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from kronos_qlib.errors import ConfigError, LedgerError, printable, short_repr

HEADER = b"kronos_qlib.entry"
"""Where a Parquet file has its header."""
FIRST = "0" * 64
"""The digest before the first entry."""
FORMAT = 1
"""Of headers and folders."""
NAME = re.compile(r"(\d{8})-([0-9a-f]{64})\.parquet")
KIND = re.compile(r"[a-z][a-z_]{0,39}")
KEYS = {"format", "number", "previous", "kind", "day", "appended_at", "opens", "content", "facts"}


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
    content: str
    """SHA-256 of kind, day, facts and table: what `append` knows a repetition by."""
    path: Path

    @property
    def is_late(self) -> bool:
        """Whether it was appended when the market had opened: it is no forecast then."""
        return self.opens is not None and self.appended_at >= self.opens

    @property
    def head(self) -> str:
        """Number and digest, as `kronos-qlib ledger head` prints them."""
        return head_of(self.number, self.digest)


def head_of(number: int, digest: str) -> str:
    """A head as it is printed and given to `verify`."""
    return f"{number}-{digest}"


def place_of(kind: str, day: dt.date, number: int, digest: str) -> Path:
    """Where an entry's file lies in the ledger's folder: partitions by kind and month."""
    return Path(f"kind={kind}", f"month={day:%Y-%m}", f"{number:08d}-{digest}.parquet")


def digest_of(data: bytes) -> str:
    """SHA-256 in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def arrow_table(table: pd.DataFrame) -> pa.Table:
    """A table in the few types that entries have: texts, numbers, booleans, times.

    Raises:
        ConfigError: a column has other values, or columns are not named by different texts.
    """
    names = list(table.columns)
    if not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise ConfigError(f"columns of an entry are named by different texts, got {names!r:.200}")
    columns = {}
    for name in names:
        try:
            columns[name] = _plain(pa.array(table[name], from_pandas=True))
        except (pa.ArrowException, TypeError) as problem:
            raise ConfigError(
                f"column {printable(name)} of an entry holds {table[name].dtype}: it has "
                f"texts, numbers, booleans or times ({problem})"
            ) from problem
    return pa.table(columns)


def _plain(values: Any) -> Any:
    kind = values.type
    if pa.types.is_dictionary(kind):
        values = values.dictionary_decode()
        kind = values.type
    if pa.types.is_null(kind) or pa.types.is_large_string(kind) or pa.types.is_string(kind):
        return values.cast(pa.string())
    if pa.types.is_floating(kind):
        return values.cast(pa.float64())
    if pa.types.is_integer(kind):
        return values.cast(pa.int64())
    if pa.types.is_timestamp(kind):
        return values.cast(pa.timestamp("ns", tz=kind.tz))
    if pa.types.is_boolean(kind):
        return values
    raise TypeError(f"{kind} is none of them")


def content_of(kind: str, day: dt.date, facts: str, table: pa.Table) -> str:
    """A digest of what an entry says, whenever it is said."""
    found = hashlib.sha256(f"{kind}\n{day.isoformat()}\n{facts}\n".encode())
    for name, column in zip(table.column_names, table.columns, strict=True):
        found.update(f"{name}:{column.type}\n".encode())
        values = column.combine_chunks()
        values = values.chunk(0) if isinstance(values, pa.ChunkedArray) else values
        found.update(repr(values.to_pylist()).encode())
    return found.hexdigest()


def facts_json(facts: Mapping[str, Any]) -> str:
    """Facts as JSON, the same text for the same facts.

    Raises:
        ConfigError: JSON cannot hold them.
    """
    try:
        text = json.dumps(facts, sort_keys=True, allow_nan=False, separators=(",", ":"))
        if json.loads(text) != facts:
            raise ValueError("they do not come back the same: tuples, or keys that are no texts")
    except (TypeError, ValueError, RecursionError) as problem:
        raise ConfigError(f"facts of an entry are not JSON: {problem}") from problem
    return text


def file_bytes(
    table: pa.Table,
    *,
    number: int,
    previous: str,
    kind: str,
    day: dt.date,
    appended_at: dt.datetime,
    opens: dt.datetime | None,
    content: str,
    facts: str,
) -> bytes:
    """The bytes of an entry's file; what each argument is stands at `Entry`."""
    header = {
        "format": FORMAT,
        "number": number,
        "previous": previous,
        "kind": kind,
        "day": day.isoformat(),
        "appended_at": stamp(appended_at),
        "opens": None if opens is None else stamp(opens),
        "content": content,
        "facts": json.loads(facts),
    }
    text = json.dumps(header, sort_keys=True, allow_nan=False, separators=(",", ":"))
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({HEADER: text.encode()}), buffer)
    return buffer.getvalue()


def read_entry(data: bytes, path: Path) -> Entry:
    """The entry that a file's bytes hold; its digest is of these bytes, whatever the name says.

    Raises:
        LedgerError: they are no entry.
    """
    try:
        with pq.ParquetFile(pa.BufferReader(data)) as file:
            metadata, rows = file.schema_arrow.metadata or {}, file.metadata.num_rows
        header = json.loads(metadata[HEADER])
        if set(header) != KEYS or header["format"] != FORMAT:
            raise ValueError(f"its header has {short_repr(header)}")
        if not KIND.fullmatch(header["kind"]) or not isinstance(header["facts"], dict):
            raise ValueError(f"its header has {short_repr(header)}")
        opens = header["opens"]
        return Entry(
            number=int(header["number"]),
            digest=digest_of(data),
            previous=str(header["previous"]),
            kind=header["kind"],
            day=dt.date.fromisoformat(header["day"]),
            appended_at=parse_stamp(header["appended_at"]),
            opens=None if opens is None else parse_stamp(opens),
            facts=header["facts"],
            rows=rows,
            content=str(header["content"]),
            path=path,
        )
    except KeyError:
        raise LedgerError(f"{path} is no entry of a ledger: it has no header") from None
    except (pa.ArrowException, OSError, ValueError, TypeError, RecursionError) as problem:
        raise LedgerError(f"{path} is no entry of a ledger: {problem!s:.300}") from problem


def read_table(data: bytes) -> pd.DataFrame:
    """The table in a file's bytes, which `read_entry` has read before."""
    with pq.ParquetFile(pa.BufferReader(data)) as file:
        found: pd.DataFrame = file.read().replace_schema_metadata(None).to_pandas()
    return found


def stamp(moment: dt.datetime) -> str:
    """A time as headers have it: UTC, microseconds.

    Raises:
        ConfigError: it has no zone.
    """
    if moment.tzinfo is None:
        raise ConfigError(f"times of the ledger have a zone, got {moment}")
    return moment.astimezone(dt.timezone.utc).isoformat(timespec="microseconds")


def parse_stamp(text: str) -> dt.datetime:
    """A time out of a header.

    Raises:
        ValueError: it is none, or has no zone.
    """
    found = dt.datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise ValueError(f"{text!r} has no zone")
    return found
