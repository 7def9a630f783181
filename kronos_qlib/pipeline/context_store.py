"""Contexts on disk: read once by a network, found again by every later run.

A folder holds two files for each way of reading, named by a digest of it (weights, lookback,
layers and pooling, number type): `.rows`, contexts one after another as an array on disk, and
`.index`, a line of JSON for each moment's windows: the digest of their bars and times and of how
many were read at once, where their rows are, and a checksum. Rows are written before their line, so
what a killed run leaves behind is whole moments, and perhaps rows that no line names.

Shape letters: N windows, B windows of a moment, C width of what is read of a window.
"""

from __future__ import annotations

import hashlib
import json
import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

from kronos_qlib.data.windows.window import AT_ONCE
from kronos_qlib.errors import CheckpointError, TrainingError
from kronos_qlib.model.sizes import ContextConfig

if TYPE_CHECKING:
    from kronos_qlib.data.windows.window import Windows
    from kronos_qlib.inference.predictor import KronosPredictor

logger = logging.getLogger(__name__)

FORMAT = 4
"""Raised where files, or how contexts are computed, are no longer those of before."""
LOCK_SECONDS = 60.0
ROWS, INDEX, LOCK = ".rows", ".index", ".lock"
RECORD = {"moment": str, "start": int, "rows": int, "crc32": int}
"""A line of an index."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class StoredContexts:
    """Contexts of windows in a file, taken from the disk as they are asked for.

    It is indexed as an array (N, C) is, by a slice or by places, and gives float32.

    rows: (N,) int64, where in the file each window's are.
    """

    file: Path
    kind: str
    width: int
    rows: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, C)."""
        return len(self.rows), self.width

    def __getitem__(self, which: Any) -> Floats:
        return np.asarray(self._map[self.rows[which]], dtype=np.float32)

    def __getstate__(self) -> dict[str, Any]:
        """Without the open file, for processes that train together."""
        return {key: value for key, value in self.__dict__.items() if key != "_map"}

    @cached_property
    def _map(self) -> npt.NDArray[Any]:
        if not len(self.rows):  # an empty file cannot be mapped
            return np.empty((0, self.width), dtype=self.kind)
        return _mapped(self.file, self.kind, self.width)


@dataclass(frozen=True)
class _Place:
    """Where a moment's rows are, and their checksum."""

    start: int
    rows: int
    crc32: int


class ContextStore:
    """The files of one way of reading in a folder; made when first written.

    Args:
        folder: of the contexts of any networks and settings.
        how: what decides the numbers, by name, for the digest that names the files.
        width: numbers of a window.
        kind: of these, "float32" or "float16".
    """

    def __init__(self, folder: Path, how: Mapping[str, Any], width: int, kind: str) -> None:
        self.how = {"format": FORMAT, **how, "width": width, "type": kind}
        self.width, self.kind = width, kind
        text = json.dumps(self.how, sort_keys=True)
        name = f"contexts-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        self.rows, self.index, self._lock = (folder / (name + end) for end in (ROWS, INDEX, LOCK))
        self._known: dict[str, _Place] = {}
        self._read_to = 0

    @classmethod
    def of(
        cls,
        folder: Path,
        predictor: KronosPredictor,
        lookback: int,
        pooling: ContextConfig,
        span: int = 1,
    ) -> ContextStore:
        """Of what this predictor reads of windows of at most `lookback` bars, or of spans."""
        from kronos_qlib.model.checkpoints.pretrained import fingerprint

        how = {
            "predictor": fingerprint(predictor.model),
            "tokenizer": fingerprint(predictor.tokenizer),
            "computed": predictor.computed_in,
            "max_context": predictor.max_context,
            "clip": predictor.clip,
            "lookback": lookback,
            "bars": pooling.bars,
            "layers": list(pooling.layers),
            **({} if span == 1 else {"span": span}),
        }
        width = pooling.parts * predictor.model.config.d_model
        return cls(folder, how, width, pooling.dtype)

    def find(self, moments: Mapping[str, int]) -> dict[str, int]:
        """Where the rows of those moments begin that are there, whole and unchanged.

        Args:
            moments: digests of moments, and how many windows each has.

        Raises:
            CheckpointError: the files are another's, or none of ours.
        """
        self._read_index()
        there = {key: self._known[key] for key in moments if key in self._known}
        if not there:
            return {}
        found: dict[str, int] = {}
        table = _mapped(self.rows, self.kind, self.width)
        for key, place in there.items():
            rows = table[place.start : place.start + place.rows]
            if len(rows) == place.rows == moments[key] and _crc(rows) == place.crc32:
                found[key] = place.start
        if lost := len(there) - len(found):
            logger.warning(
                "%s is truncated or damaged: the contexts of %d of %d moments are read again",
                self.rows,
                lost,
                len(there),
            )
            self._known = {key: self._known[key] for key in self._known if key not in there} | {
                key: there[key] for key in found
            }
        return found

    def add(self, moment: str, contexts: Floats) -> int:
        """Write a moment's contexts (B, C), unless another run just has; where they begin.

        Raises:
            TrainingError: they cannot be written. What was written before stays.
            CheckpointError: as of `find`.
        """
        values = np.ascontiguousarray(contexts, dtype=self.kind)
        crc = _crc(values)
        try:
            with self._held():
                self._read_index()
                place = self._known.get(moment)
                if place is not None and (place.rows, place.crc32) == (len(values), crc):
                    return place.start
                start = self._append(values)
                line = {"moment": moment, "start": start, "rows": len(values), "crc32": crc}
                self._append_line(line)
        except OSError as problem:
            raise TrainingError(
                f"contexts cannot be written to {self.rows}: {problem}. Make room, or name another "
                "contexts_folder; those of the moments before are kept and found again"
            ) from problem
        return start

    def stored(self, rows: npt.NDArray[np.int64]) -> StoredContexts:
        """What was found or added, by the rows (N,) of windows."""
        return StoredContexts(self.rows, self.kind, self.width, rows)

    def _append(self, values: npt.NDArray[Any]) -> int:
        size = values.dtype.itemsize * self.width
        with self.rows.open("ab") as file:
            rest = -file.tell() % size  # of a row that a killed run did not end
            file.write(b"\0" * rest)
            start = file.tell() // size
            file.write(values.data)
        return start

    def _append_line(self, values: Mapping[str, Any]) -> None:
        with self.index.open("r+b") as file:
            file.truncate(self._read_to)  # a line that a killed run did not end
            file.seek(self._read_to)
            file.write(_line(values))
            self._read_to = file.tell()
        self._note(values)

    def _note(self, line: Mapping[str, Any]) -> None:
        self._known[line["moment"]] = _Place(line["start"], line["rows"], line["crc32"])

    def _read_index(self) -> None:
        """What this or other runs have added since it was last read."""
        try:
            with self.index.open("rb") as file:
                file.seek(self._read_to)
                data = file.read()
        except FileNotFoundError:
            if self.rows.exists():
                raise CheckpointError(
                    f"{self.rows} has no {self.index.name} beside it, so nobody knows what is in "
                    "it; move it elsewhere, and its contexts are read again"
                ) from None
            self._known, self._read_to = {}, 0
            return
        except OSError as problem:
            raise CheckpointError(f"{self.index} cannot be read: {problem}") from problem
        whole = data[: data.rfind(b"\n") + 1]
        for line in whole.splitlines():
            if not self._read_to:
                self._check_head(line)
            else:
                self._note(_record(line, self.index))
            self._read_to += len(line) + 1

    def _check_head(self, line: bytes) -> None:
        theirs = _parsed(line)
        if theirs is None or "format" not in theirs:
            raise CheckpointError(
                f"{self.index} is no index of contexts; move it and {self.rows.name} elsewhere"
            )
        differ = [key for key in {**theirs, **self.how} if theirs.get(key) != self.how.get(key)]
        if differ:
            raise CheckpointError(
                f"{self.index} is of contexts with other {', '.join(sorted(differ))}, whatever its "
                f"name says; move it and {self.rows.name} elsewhere"
            )

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Within, no other run writes; the files are there."""
        self.index.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._lock, timeout=LOCK_SECONDS)
        try:
            lock.acquire()
        except Timeout as taken:
            raise TrainingError(
                f"{self._lock} has been locked for {LOCK_SECONDS:.0f} seconds: another run stands "
                "still while it writes contexts there; end it, or name another contexts_folder"
            ) from taken
        try:
            if self._lacks_head():
                self.index.write_bytes(_line(self.how))
            yield
        finally:
            lock.release()

    def _lacks_head(self) -> bool:
        """Whether there is nothing yet, or a run was killed at the index' first line."""
        if not self.index.exists():
            return not self.rows.exists()
        with self.index.open("rb") as file:
            return b"\n" not in file.read(len(_line(self.how)) + 1)


def moment_digest(windows: Windows, batches: Sequence[int] = ()) -> str:
    """Of the windows of one moment: their bars and times, in their order, whatever their names.

    Args:
        batches: how many are read at once, on which the last bits of what is read depend: fewer
            threads, or less memory, make smaller batches.
    """
    digest = hashlib.blake2b(json.dumps([*batches]).encode(), digest_size=16)
    table = windows.table
    for which, group in windows.by_length():
        shape = np.array((len(group), group.lookback + group.ahead))
        for part in (which, shape):
            digest.update(np.ascontiguousarray(part).data)
        blocks = [slice(start, start + AT_ONCE) for start in range(0, len(group), AT_ONCE)]
        for block in blocks:
            digest.update(table.times_at(group.rows(block)).view(np.int64).data)
        for block in blocks:
            digest.update(group.bars(block).data)
    return digest.hexdigest()


def _mapped(file: Path, kind: str, width: int) -> npt.NDArray[Any]:
    """(rows, width) of a file as an array on disk, without a last row that is not whole."""
    size = np.dtype(kind).itemsize * width
    try:
        rows = file.stat().st_size // size
    except FileNotFoundError:
        rows = 0
    if not rows:
        return np.empty((0, width), dtype=kind)
    mapped: npt.NDArray[Any] = np.memmap(file, dtype=kind, mode="r", shape=(rows, width))
    return mapped


def _crc(values: npt.NDArray[Any]) -> int:
    return zlib.crc32(np.ascontiguousarray(values).data)


def _line(values: Mapping[str, Any]) -> bytes:
    return json.dumps(dict(values)).encode() + b"\n"


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        values = json.loads(line)
    except ValueError:
        return None
    return values if isinstance(values, dict) else None


def _record(line: bytes, source: Path) -> dict[str, Any]:
    values = _parsed(line)
    is_record = values is not None and values.keys() == RECORD.keys()
    if (
        values is None
        or not is_record
        or any(type(values[key]) is not kind for key, kind in RECORD.items())
    ):
        raise CheckpointError(
            f"{source} has a line that names no contexts: {line[:60]!r}; move it and the .rows "
            "beside it elsewhere, and their contexts are read again"
        )
    return values
