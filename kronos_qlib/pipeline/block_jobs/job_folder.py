"""The folder of a job: what was asked for, which blocks are done, and their results.

job.json          facts that decide the numbers, blocks, threads that batches are planned for
manifest.jsonl    a line for each block that is done or has failed, in the order of their ends
parts/NAME.parquet    a block's result, in its place when it is whole; none where it has no row
attempts/NAME     a byte for each start of a block, so that one which kills its worker is given up
.lock             held by the process that runs the job

The manifest is written by that process alone. A line that a kill cut is dropped when the folder is
next opened; a part without its line is recognised by its own metadata, and not computed again. To
go on is to read every part once: one whose bytes are not those that were written is made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import Timeout

from kronos_qlib.errors import ConfigError, JobBusyError, JobError, some_of
from kronos_qlib.files import replacing
from kronos_qlib.markup import cause_of
from kronos_qlib.owners import lock_of

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

FORMAT = 2
JOB, MANIFEST, PARTS, ATTEMPTS, LOCK = "job.json", "manifest.jsonl", "parts", "attempts", ".lock"
ABOUT_PART = b"kronos_qlib"
"""Key of a part's metadata: the job's digest and the block's name."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
READ_BYTES = 1 << 22
ARRIVAL_SECONDS = 60.0
"""That a shared drive may take to show a file which another machine wrote."""
SHOWN = 6
"""Facts that differ, and blocks that failed, which a message names."""


@dataclass(frozen=True)
class Block:
    """A piece of a job.

    name: of its files. asked: what it is of, JSON: a reference to data, never data.
    """

    name: str
    asked: Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What became of a block.

    rows, bytes: of its part. seconds: at work, reading included. worker: host and process.
    cpu_seconds: of the worker's process for it; of a worker's first block since the process began.
    peak_mb: MiB that the worker's process has held at most. error: why it failed; "" where it did
    not. device: what its numbers were computed on, as "cpu"; "" where the work names none.
    sha256: of its part's bytes.
    """

    block: str
    rows: int = 0
    bytes: int = 0
    seconds: float = 0.0
    worker: str = ""
    cpu_seconds: float = 0.0
    peak_mb: float = 0.0
    error: str = ""
    stops: bool = False
    """Whether no other block can be done either: the worker could not open the job."""
    device: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class PartWriter:
    """What a worker needs to know of the folder; small, for it goes to each of them."""

    folder: Path
    job: str
    """The job's digest."""
    most_attempts: int
    device: str = ""
    """What the blocks that are done were computed on; "" where nothing is known of it."""

    def check_device(self, device: str) -> None:
        """
        Raises:
            ConfigError: the blocks that are done are another's.
        """
        if device and self.device and device != self.device:
            raise ConfigError(_other_device(device, self.device))

    def part(self, block: Block) -> Path:
        """Where a block's result lies."""
        return self.folder / PARTS / f"{block.name}.parquet"

    def begin(self, block: Block) -> int:
        """Note that work on a block begins; which attempt it is, from 1."""
        path = self.folder / ATTEMPTS / block.name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(b".")
            return file.tell()

    def write(self, block: Block, table: pa.Table, device: str = "") -> Outcome:
        """Put a block's result into its place, whole or not at all.

        Returns:
            Its rows, bytes, digest and device.

        Raises:
            OSError: it cannot be written.
        """
        import pyarrow.parquet as pq

        about = {"job": self.job, "block": block.name}
        if device:
            about["device"] = device
        known = {**(table.schema.metadata or {}), ABOUT_PART: json.dumps(about).encode()}
        with replacing(self.part(block)) as draft:
            # With checksums a part without its line in the manifest is known to be whole, too.
            pq.write_table(table.replace_schema_metadata(known), draft, write_page_checksum=True)
            size, digest = _size_and_digest(draft)
        return Outcome(block.name, table.num_rows, size, device=device, sha256=digest)

    def found(self, block: Block) -> Outcome | None:
        """A result that is in its place; None where there is none of this job that can be read.

        All of it is read, for its checksums.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.part(block)
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                kept = json.loads((file.metadata.metadata or {}).get(ABOUT_PART, b"{}"))
                if (kept.get("job"), kept.get("block")) != (self.job, block.name):
                    return None
                rows = sum(batch.num_rows for batch in file.iter_batches())
            size, digest = _size_and_digest(path)
        except (OSError, ValueError, pa.ArrowException):
            return None
        return Outcome(block.name, rows, size, device=str(kept.get("device", "")), sha256=digest)


@dataclass
class JobFolder:
    """The folder of one job, opened by `open`.

    facts: name to text; a folder of other facts is another job's. threads: that batches are planned
    for, as the job was begun with.
    """

    folder: Path
    facts: Mapping[str, str]
    blocks: Sequence[Block]
    threads: int
    done: dict[str, Outcome] = field(default_factory=dict)
    failed: dict[str, Outcome] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def open(
        cls,
        folder: Path,
        facts: Mapping[str, str],
        blocks: Sequence[Block],
        threads: int = 1,
        made_with: Mapping[str, str] | None = None,
    ) -> Iterator[JobFolder]:
        """Begin a job, or go on with it; within, no other process works on it.

        Args:
            folder: of this job alone; made, or there and empty, or of this job.
            facts: all that decides the numbers, by name.
            blocks: in the order in which they are begun.
            threads: that batches are planned for, unless the job was begun with others.
            made_with: versions; others than those it was begun with are logged.

        Raises:
            ConfigError: the folder is another job's, and says what differs; or has files of
                others.
            JobBusyError: another process works on it.
            JobError: it cannot be read or written.
        """
        _check_names(blocks)
        with _held(folder):
            opened = cls(folder, dict(facts), list(blocks), threads)
            asked = {
                "format": FORMAT,
                "facts": dict(facts),
                "blocks": [[block.name, dict(block.asked)] for block in blocks],
                "threads": threads,
                "made_with": dict(made_with or {}),
            }
            if (folder / JOB).is_file():
                opened._adopt(asked)
            else:
                _begin(folder, asked)
            opened._read_manifest()
            # A new start tries anew what the last one gave up.
            shutil.rmtree(folder / ATTEMPTS, ignore_errors=True)
            try:
                yield opened
            finally:
                shutil.rmtree(folder / ATTEMPTS, ignore_errors=True)

    @property
    def digest(self) -> str:
        """Of the facts and the blocks: what each part bears."""
        text = json.dumps(
            [dict(self.facts), [[one.name, dict(one.asked)] for one in self.blocks]], sort_keys=True
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def writer(self, most_attempts: int) -> PartWriter:
        """For workers."""
        return PartWriter(self.folder.absolute(), self.digest, most_attempts, self.device)

    @property
    def device(self) -> str:
        """What the blocks that are done were computed on; "" where nothing is known of it."""
        return next((one.device for one in self.done.values() if one.device), "")

    def unfinished(self) -> list[Block]:
        """Blocks that are not done, those that failed last time too, in their order."""
        return [block for block in self.blocks if block.name not in self.done]

    def note(self, outcome: Outcome) -> None:
        """Write a line about a block.

        Raises:
            JobError: it cannot be written; the block's part stays and is found by a later start.
                Or it was computed on another device than the blocks before, and does not count.
        """
        if outcome.device and self.device and outcome.device != self.device:
            raise JobError(f"{outcome.worker}: {_other_device(outcome.device, self.device)}")
        if not outcome.error and outcome.rows and not self._arrives(self._part(outcome.block)):
            raise JobError(
                f"{outcome.worker} wrote the block {outcome.block}, and "
                f"{self._part(outcome.block)} is not here: a job on several machines needs a "
                "folder that all of them share"
            )
        try:
            with (self.folder / MANIFEST).open("ab") as file:
                file.write(json.dumps(asdict(outcome)).encode() + b"\n")
        except OSError as problem:
            raise JobError(
                f"{self.folder / MANIFEST} cannot be written: {problem}. Make room and start "
                "again: what is done is kept"
            ) from problem
        self._take(outcome)

    def _arrives(self, part: Path) -> bool:
        """Whether a file that another machine wrote is here; shared drives may show it late."""
        last = time.monotonic() + ARRIVAL_SECONDS
        while not part.is_file():
            if time.monotonic() >= last:
                return False
            time.sleep(0.2)
            list(part.parent.glob(part.name))  # asks the drive, and not what is remembered of it
        return True

    def _take(self, outcome: Outcome) -> None:
        if outcome.error:
            self.failed[outcome.block] = outcome
        else:
            self.done[outcome.block] = outcome
            self.failed.pop(outcome.block, None)

    def _part(self, name: str) -> Path:
        return self.folder / PARTS / f"{name}.parquet"

    def _adopt(self, asked: Mapping[str, Any]) -> None:
        kept = read_job(self.folder)
        ours, theirs = asked["facts"], kept["facts"]
        differ = [
            f"{name} is {theirs.get(name, 'not set')} there and {ours.get(name, 'not set')} here"
            for name in dict.fromkeys([*theirs, *ours])
            if theirs.get(name) != ours.get(name)
        ]
        if not differ and kept["blocks"] != json.loads(json.dumps(asked["blocks"])):
            differ = ["its blocks are others"]
        if differ:
            raise ConfigError(
                f"{self.folder} holds another job: {some_of(differ, SHOWN, '; ')}. Name another "
                "folder for this one, or ask for what was asked there to go on with it"
            )
        self.threads = int(kept["threads"])
        if kept["made_with"] != asked["made_with"]:
            logger.warning(
                "%s was begun with %s and goes on with %s: numbers of one may not be, to the last "
                "bit, those of the other",
                *(self.folder, _pairs(kept["made_with"]), _pairs(asked["made_with"])),
            )

    def _read_manifest(self) -> None:
        """What is done: by the manifest, and by parts that a killed process wrote no line for."""
        path, known = self.folder / MANIFEST, {block.name: block for block in self.blocks}
        writer = self.writer(1)
        for line in _whole_lines(path):
            outcome = _outcome_of(line, path)
            if outcome.block in known:
                self._take(outcome)
        for name, outcome in list(self.done.items()):
            if outcome.rows and not self._is_whole(outcome):
                logger.warning("%s is missing or damaged: it is made again", self._part(name))
                self._part(name).unlink(missing_ok=True)
                del self.done[name]
        for block in self.unfinished():
            if (found := writer.found(block)) is None:
                continue
            if found.device and self.device and found.device != self.device:
                logger.warning(
                    "%s was computed on %s and the others on %s: it is made again",
                    *(self._part(block.name), found.device, self.device),
                )
                self._part(block.name).unlink()
                continue
            self.note(replace(found, worker="found in its place"))

    def _is_whole(self, outcome: Outcome) -> bool:
        """Whether a part has the bytes that were written: all of them are read."""
        path = self._part(outcome.block)
        try:
            return path.stat().st_size == outcome.bytes and _size_and_digest(path) == (
                outcome.bytes,
                outcome.sha256,
            )
        except OSError:
            return False


def read_job(folder: str | Path) -> dict[str, Any]:
    """What a job's folder says was asked for: `facts`, `blocks`, `threads`, `made_with`.

    Raises:
        JobError: there is no job, or its file is damaged.
    """
    path = Path(folder) / JOB
    try:
        found = json.loads(path.read_bytes())
        if found["format"] != FORMAT:
            raise JobError(
                f"{path} has format {found['format']}, and this version reads {FORMAT}: go on with "
                "the version that began the job"
            )
        return {name: found[name] for name in ("facts", "blocks", "threads", "made_with")}
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise JobError(f"{path} is not a job's: {type(problem).__name__} {problem}") from problem


def outcomes_of(folder: str | Path) -> dict[str, Outcome]:
    """The newest line of the manifest about each block, by its name.

    Raises:
        JobError: a line of the manifest is none.
    """
    path = Path(folder) / MANIFEST
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    found = [_outcome_of(line, path) for line in lines]
    return {outcome.block: outcome for outcome in found}


def read_parts(folder: str | Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The results of all blocks that are done, in the order of the blocks.

    Args:
        columns: which; None: all.

    Raises:
        JobError: there is no job, no block of it has a row, or a part is damaged: names it.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    kept, done = read_job(folder), outcomes_of(folder)
    names = [name for name, _ in kept["blocks"] if name in done and done[name].rows]
    parts = [Path(folder) / PARTS / f"{name}.parquet" for name in names]
    if not parts:
        raise JobError(f"{folder}: no block that is done has a row")
    wanted = None if columns is None else list(columns)
    tables = []
    for name, part in zip(names, parts, strict=True):
        try:
            if _size_and_digest(part) != (done[name].bytes, done[name].sha256):
                raise OSError("it is not what its worker wrote")
            with pq.ParquetFile(part, page_checksum_verification=True) as file:
                tables.append(file.read(columns=wanted))
        except (OSError, pa.ArrowException) as problem:
            raise JobError(
                f"{part} cannot be read: {cause_of(problem)}. The command that wrote it makes it "
                "again"
            ) from problem
    bare = [table.replace_schema_metadata(_own_metadata(table)) for table in tables]
    return pa.concat_tables(bare)


def _own_metadata(table: pa.Table) -> dict[bytes, bytes]:
    """A part's metadata without what names its block."""
    about = table.schema.metadata or {}
    return {key: value for key, value in about.items() if key not in (ABOUT_PART, b"pandas")}


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = lock_of(folder / LOCK)
    except Timeout as taken:
        raise JobBusyError(
            f"another process works on the job in {folder}: this one did nothing. Wait for it, or "
            "name another folder"
        ) from taken
    except OSError as problem:
        raise JobError(f"{folder} cannot hold a job: {problem}") from problem
    try:
        yield
    finally:
        lock.release()


def _begin(folder: Path, asked: Mapping[str, Any]) -> None:
    others = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    if others:
        raise ConfigError(
            f"{folder} has no {JOB} and holds {some_of(sorted(others))}: name an empty folder, or "
            "one that is not there yet"
        )
    try:
        with replacing(folder / JOB) as draft:
            draft.write_text(json.dumps(asked, indent=1), encoding="utf-8")
    except OSError as problem:
        raise JobError(f"{folder / JOB} cannot be written: {problem}") from problem


def _whole_lines(path: Path) -> list[bytes]:
    """A manifest's lines; one that a killed process did not end is cut off the file."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as problem:
        raise JobError(f"{path} cannot be read: {problem}") from problem
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    return whole.splitlines()


def _outcome_of(line: bytes, path: Path) -> Outcome:
    try:
        return Outcome(**json.loads(line))
    except (ValueError, TypeError) as problem:
        raise JobError(
            f"{path} has a line that is not about a block: {line[:80]!r}. Delete the line: a "
            "part that is in its place is found without it"
        ) from problem


def _check_names(blocks: Sequence[Block]) -> None:
    names = [block.name for block in blocks]
    strange = [name for name in names if not NAME.fullmatch(name)]
    if strange or len(set(map(str.lower, names))) < len(names):
        raise ConfigError(
            f"names of blocks are file names, each once: {strange or sorted(names)[:SHOWN]}"
        )


def _other_device(device: str, before: str) -> str:
    return (
        f"it computes on {device}, and blocks of this job were computed on {before}: to the last "
        "bit, numbers of one are not the other's. Give all workers the same devices "
        "(gpus_per_worker, the model's setting device), or name another folder"
    )


def _size_and_digest(path: Path) -> tuple[int, str]:
    size, digest = 0, hashlib.sha256()
    with path.open("rb", buffering=0) as stream:
        while piece := stream.read(READ_BYTES):
            size += len(piece)
            digest.update(piece)
    return size, digest.hexdigest()


def _pairs(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items()) or "nothing that it names"
