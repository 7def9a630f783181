"""A BarTable in files, mapped when windows are read: no machine has to hold the bars.

The folder of a table has the arrays of a `BarTable` as plain numbers (little-endian), and
`table.json`, written last: the version, the digest of every file, and what the table was made of.
Shape letters: M bars in all, K times of the calendar, I instruments, L bars left out.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import Timeout

from kronos_qlib.data.calendar.stamps import Times
from kronos_qlib.data.windows.bar_table import COLUMNS, BarTable, TableBuilder, kind_of_places
from kronos_qlib.data.windows.faulty_bars import Floats, LeftOut
from kronos_qlib.errors import BarDataError, short_repr
from kronos_qlib.files import replacing
from kronos_qlib.owners import lock_of

VERSION = 1
"""Of the files' layout; a table of another one is refused."""
MANIFEST = "table.json"
JOURNAL = "journal.jsonl"
"""In the folder of a table that is not complete: a line for each instrument that is on the disk."""
LOCK = ".lock"
VALUES, PLACES = "values.f4", "places.bin"
WHOLE = ".whole"
"""Ends the names of files in which the bars that are left out no longer stand between others."""
READ_BYTES = 1 << 22
FLUSH_BYTES = 1 << 26
"""Bars' bytes from one flush to the disk to the next: what a kill can lose."""


class FileRows:
    """Rows of numbers in a file, read and written by slices, without a map."""

    def __init__(self, path: Path, kind: Any, columns: int = 0) -> None:
        path.touch()
        self.path = path
        self.kind = np.dtype(kind).newbyteorder("<")
        self.shape = (-1, columns) if columns else (-1,)
        self.width = self.kind.itemsize * max(1, columns)
        self._file = path.open("r+b")

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        self._file.seek(rows.start * self.width)
        found = np.fromfile(self._file, self.kind, (rows.stop - rows.start) * self.width
                            // self.kind.itemsize)  # fmt: skip
        return found.reshape(self.shape)

    def __setitem__(self, rows: slice, values: npt.NDArray[Any]) -> None:
        self._file.seek(rows.start * self.width)
        self._file.write(np.ascontiguousarray(values, dtype=self.kind).data)

    def flush(self) -> None:
        """To the disk itself."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def cut(self, rows: int) -> None:
        """Drop what is written after so many rows."""
        self._file.flush()
        self._file.truncate(rows * self.width)

    def close(self) -> None:
        """Give the file back."""
        self._file.close()


class TableWriter:
    """Writes a table's folder instrument by instrument; what a kill leaves is gone on from.

    Until it is complete the table lies beside `target`, as `.NAME.partial`.

    Args:
        target: the folder of the table.
        calendar: (K,) datetime64[ns].
        about: what the table is made of, JSON; a half-written one of something else is not gone on
            from.
        incomplete, invalid, untraded: as of `TableBuilder`.
    """

    def __init__(
        self,
        target: Path,
        calendar: Times,
        about: Mapping[str, Any],
        incomplete: Any = "error",
        invalid: Any = "error",
        untraded: Any = "skip",
    ) -> None:
        self.target, self.calendar = target, calendar
        self.folder = target.with_name(f".{target.name}.partial")
        self.head = {
            "version": VERSION,
            "calendar": digest_of(calendar.view(np.int64)),
            "about": dict(about),
        }
        self._policy = (incomplete, invalid, untraded)
        self._lines: list[dict[str, Any]] = []
        self._pending: list[str] = []
        self._unflushed = 0

    @contextmanager
    def held(self, check: Callable[[], None] = lambda: None) -> Iterator[TableWriter]:
        """Within, the half-written folder is this process' alone.

        Its lock stays there, an empty file: were it deleted, a process that had opened it just
        before, and one that makes it anew, would both hold it.

        Args:
            check: called when it is, before anything is written.

        Raises:
            BarDataError: another process writes the same table.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock = lock_of(self.folder.with_name(f"{self.folder.name}{LOCK}"))
        except Timeout as taken:
            raise BarDataError(
                f"another process is writing {self.target}: wait for it, or name another folder"
            ) from taken
        with ExitStack() as stack:
            stack.callback(lock.release)
            check()
            self.folder.mkdir(exist_ok=True)
            self._begin(stack)
            yield self

    @property
    def done(self) -> list[dict[str, Any]]:
        """What `add` was told of the instruments that are on the disk, in their order."""
        return [line["about"] for line in self._lines]

    def keep(self, count: int) -> None:
        """Take up the first `count` of `done` and forget the others."""
        self._lines = self._lines[:count]
        self.builder = TableBuilder(self.calendar, 0, *self._policy, room=self._room)
        for line in self._lines:
            self.builder.go_on(line)
        rows = int(self.builder.offsets[-1])
        for file in self._room:
            file.cut(rows)
        text = "".join(f"{json.dumps(line)}\n" for line in (self.head, *self._lines))
        with replacing(self.folder / JOURNAL) as draft:
            draft.write_text(text, encoding="utf-8")

    def add(
        self, name: str, places: npt.NDArray[np.integer], bars: Floats, about: Mapping[str, Any]
    ) -> None:
        """The next instrument's bars, as of `TableBuilder.add`, and JSON for `done`."""
        self.builder.add(name, places, bars)
        line = {**self.builder.last_added(), "about": dict(about)}
        self._lines.append(line)
        self._pending.append(f"{json.dumps(line)}\n")
        self._unflushed += bars.nbytes
        if self._unflushed >= FLUSH_BYTES:
            self._flush()

    def finish(self) -> None:
        """Judge the bars, compute the digests, and move the folder to its place, whatever is there.

        Raises:
            BarDataError: as of `TableBuilder.finish`.
        """
        self._flush()
        whole = self._rows(WHOLE)
        for file in whole:
            file.cut(0)  # of a start that was killed here
        try:
            left_out = self.builder.settle(whole)
        finally:
            for file in (*self._room, *whole):
                file.close()
        raw, gathered = ([file.path for file in files] for files in (self._room, whole))
        bars, gone = (gathered, raw) if len(left_out) else (raw, gathered)
        arrays = {
            "offsets": self.builder.offsets,
            "calendar": self.calendar.view(np.int64),
            "left_out": np.stack([left_out.owners, left_out.places, left_out.rules]),
        }
        for name, array in arrays.items():
            _write_synced(self.folder / f"{name}.i8", np.ascontiguousarray(array, "<i8").tobytes())
        paths = dict(zip(("values", "places"), bars, strict=True))
        paths |= {name: self.folder / f"{name}.i8" for name in arrays}
        files = {}
        for name, path in paths.items():
            size, digest, checksum = _read_through(path)
            files[name] = {"name": path.name, "bytes": size, "sha256": digest, "crc": checksum}
        manifest = {
            **self.head,
            "bars": int(self.builder.offsets[-1]),
            "instruments": list(self.builder.names),
            "made_of": self.done,
            "files": files,
        }
        text = json.dumps(manifest)
        signed = json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "table": text})
        _write_synced(self.folder / MANIFEST, signed.encode())
        for path in (*gone, self.folder / JOURNAL):
            path.unlink()
        with replacing(self.target) as draft:
            self.folder.rename(draft)

    def _begin(self, stack: ExitStack) -> None:
        self._room = self._rows("")
        for file in self._room:
            stack.callback(file.close)
        head, *lines = _journal(self.folder / JOURNAL) or [{}]
        fits = head == self.head
        sizes = [file.path.stat().st_size // file.width for file in self._room]
        self._lines = [line for line in lines if line["stop"] <= min(sizes)] if fits else []
        self.keep(len(self._lines))

    def _rows(self, suffix: str) -> tuple[FileRows, FileRows]:
        return (
            FileRows(self.folder / f"{VALUES}{suffix}", np.float32, COLUMNS),
            FileRows(self.folder / f"{PLACES}{suffix}", kind_of_places(self.calendar)),
        )

    def _flush(self) -> None:
        """Bars first: what the journal names is on the disk."""
        for file in self._room:
            file.flush()
        with (self.folder / JOURNAL).open("a", encoding="utf-8") as stream:
            stream.writelines(self._pending)
            stream.flush()
            os.fsync(stream.fileno())
        self._pending, self._unflushed = [], 0


def _journal(path: Path) -> list[dict[str, Any]]:
    """The lines that were written whole; none where there is no file."""
    found = []
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    for line in text.splitlines(keepends=True):
        try:
            found.append(json.loads(line))
        except ValueError:
            break
        if not line.endswith("\n"):
            return found[:-1]
    return found


def open_table(folder: Path) -> BarTable:
    """The table in a folder, mapped.

    All of it is read once, in pieces, for its digests.

    Raises:
        BarDataError: the folder has no whole table, a file is damaged or missing, or it is of
            another version; names it.
    """
    manifest = manifest_of(folder)
    for about in manifest["files"].values():
        path = folder / about["name"]
        try:
            size, digest, _ = _read_through(path)
        except OSError as problem:
            raise BarDataError(f"{path} cannot be read: {problem}; {AGAIN}") from problem
        if size != about["bytes"]:
            raise BarDataError(
                f"{path} has {size} bytes, and {MANIFEST} says {about['bytes']}: it was cut short "
                f"or is of another table; {AGAIN}"
            )
        if digest != about["sha256"]:
            raise BarDataError(f"{path} is damaged: its digest is not the one written; {AGAIN}")
    return _mapped(folder, manifest)


def open_again(folder: str, checksums: str) -> BarTable:
    """The table that a pickle of one names, whose bytes were checked where it was made.

    Raises:
        BarDataError: there is another table now, or none.
    """
    table = _mapped(Path(folder), manifest_of(Path(folder)))
    if table.checksums != checksums:
        raise BarDataError(f"{folder} has another table than the one that was pickled")
    return table


AGAIN = "build the table again, with kronos-qlib data table"


def manifest_of(folder: Path) -> dict[str, Any]:
    """What a table's folder says of itself, `about` and `made_of` as given to `TableWriter`.

    Raises:
        BarDataError: as of `open_table`, of this file alone.
    """
    path = folder / MANIFEST
    try:
        signed = json.loads(path.read_text(encoding="utf-8"))
        text = signed["table"]
        is_whole = hashlib.sha256(text.encode()).hexdigest() == signed["sha256"]
        manifest: dict[str, Any] = json.loads(text) if is_whole else {}
    except FileNotFoundError as missing:
        half = folder.with_name(f".{folder.name}.partial")
        why = (
            f"it is half written, in {half}: go on by the same command"
            if half.is_dir()
            else ("kronos-qlib data table makes one")
        )
        raise BarDataError(
            f"{folder} is no table of bars: it has no {MANIFEST}; {why}"
        ) from missing
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise BarDataError(f"{path} cannot be read: {short_repr(problem)}; {AGAIN}") from problem
    if not manifest:
        raise BarDataError(f"{path} is damaged: its digest is not the one written; {AGAIN}")
    if manifest["version"] != VERSION:
        raise BarDataError(
            f"{path} is of version {manifest['version']} of the format, and this release reads "
            f"{VERSION}; {AGAIN}"
        )
    return manifest


def _mapped(folder: Path, manifest: Mapping[str, Any]) -> BarTable:
    files, bars = manifest["files"], manifest["bars"]

    def numbers(name: str) -> npt.NDArray[np.int64]:
        return np.fromfile(folder / files[name]["name"], "<i8").astype(np.int64)

    def mapped(name: str, kind: Any, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        if not bars:
            return np.empty(shape, dtype=kind)
        path = folder / files[name]["name"]
        # A plain array over the map: the subclass would go into every result.
        return np.asarray(np.memmap(path, np.dtype(kind).newbyteorder("<"), "r", shape=shape))

    calendar = numbers("calendar").view("datetime64[ns]")
    owners, places, rules = numbers("left_out").reshape(3, -1)
    return BarTable(
        values=mapped("values", np.float32, (bars, COLUMNS)),
        places=mapped("places", kind_of_places(calendar), (bars,)),
        calendar=calendar,
        instruments=tuple(manifest["instruments"]),
        offsets=numbers("offsets"),
        left_out=LeftOut(owners, places, rules),
        file=folder,
        known_checksums=" ".join(
            str(files[name]["crc"]) for name in ("values", "places", "offsets", "calendar")
        ),
    )


def digest_of(array: npt.NDArray[Any]) -> str:
    """SHA-256 of an array's bytes, (...) of any type."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _read_through(path: Path) -> tuple[int, str, int]:
    """A file's bytes, SHA-256 and CRC-32, read in pieces: a map would count as memory."""
    size, digest, checksum = 0, hashlib.sha256(), 0
    with path.open("rb", buffering=0) as stream:
        while piece := stream.read(READ_BYTES):
            size += len(piece)
            digest.update(piece)
            checksum = zlib.crc32(piece, checksum)
    return size, digest.hexdigest(), checksum


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
