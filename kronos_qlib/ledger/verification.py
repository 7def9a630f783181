"""Whether a ledger is as it was left, and where not."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kronos_qlib.errors import ConfigError, LedgerError
from kronos_qlib.ledger.entry import (
    FIRST,
    NAME,
    Entry,
    digest_of,
    head_of,
    place_of,
    read_entry,
)
from kronos_qlib.ledger.index import INDEX, Row, read_rows, row_of
from kronos_qlib.ledger.ledger import CLOCK_SLACK, DRAFT, LOCK

HEAD = re.compile(r"(?:(\d+)-)?([0-9a-f]{64})")
OURS = re.compile(rf"{re.escape(INDEX)}(-journal|\.\d+\.old)?|{re.escape(LOCK)}|{re.escape(DRAFT)}")
"""Files beside the entries."""


@dataclass(frozen=True)
class Fault:
    """One thing that is not as it was left."""

    number: int | None
    """The entry; None where it is of none."""
    what: str
    """"changed", "missing", "inserted", "moved", "replaced", "cut", "rewritten", "clock" or
    "index"."""
    words: str


@dataclass(frozen=True)
class Verification:
    """What `verify` found."""

    entries: int
    """The highest number of a file."""
    head: str
    faults: tuple[Fault, ...]
    """By entry."""
    notes: tuple[str, ...]
    late: tuple[int, ...]
    """Entries that were appended when the market had opened."""

    @property
    def is_whole(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults


@dataclass(frozen=True)
class _File:
    """A file that is named as an entry."""

    path: Path
    number: int
    digest: str
    """By its name."""
    entry: Entry | None
    """None where it cannot be read as one."""
    is_sound: bool
    """Whether its bytes are those of its name."""


def verify(folder: Path | str, head: str | None = None) -> Verification:
    """Look at every byte of every entry, at the chain, at the index. Nothing is written.

    Who can write to the folder can also write all of it anew, index and all, and no look at the
    folder alone shows that: a head that was kept elsewhere does.

    Args:
        head: as `Ledger.head` gave it once, with or without its number.

    Raises:
        ConfigError: there is no such folder, or `head` is none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigError(f"there is no ledger at {folder}")
    asked = None if head is None else HEAD.fullmatch(head.strip().lower())
    if head is not None and asked is None:
        raise ConfigError(
            f"a head is the number and the 64 digits that kronos-qlib ledger head prints, got "
            f"{head[:100]!r}"
        )
    faults: list[Fault] = []
    notes: list[str] = []
    by_number: dict[int, list[_File]] = defaultdict(list)
    # Before the files: what another process appends meanwhile is then a file too many, not too few.
    rows = _rows(folder, faults)
    for path in sorted(
        each for each in folder.rglob("*") if each.is_symlink() or not each.is_dir()
    ):
        place = path.relative_to(folder)
        named = NAME.fullmatch(path.name) if len(place.parts) == 3 else None
        if named:
            by_number[int(named[1])].append(_look_at(path, int(named[1]), named[2]))
        elif len(place.parts) > 1 or not OURS.fullmatch(path.name):
            faults.append(Fault(None, "inserted", f"{path} is no file of a ledger"))
    witness = {int(str(row[0])): str(row[1]) for row in rows}
    chain: dict[int, _File] = {}
    last = max([*by_number, *witness], default=0)
    for number in range(1, last + 1):
        files = by_number.get(number, [])
        if not files:
            faults.append(_missing(number, by_number, witness))
            continue
        chain[number] = _genuine(files, by_number.get(number + 1, []), witness.get(number))
        for file in files:
            if file is not chain[number]:
                faults.append(
                    Fault(number, "inserted", f"{file.path} is a second file of entry {number}")
                )
            faults += _own_faults(file, folder)
    faults += [
        Fault(0, "inserted", f"{file.path}: entries are numbered from 1")
        for file in by_number.get(0, [])
    ]
    faults += _chain_faults(chain, witness, last)
    faults += _index_faults(chain, rows, folder, notes)
    ends = max(chain, default=0)
    found = head_of(ends, chain[ends].digest) if chain else head_of(0, FIRST)
    if asked is not None:
        _check_head(asked[1], asked[2], chain, faults, notes)
    late = [
        number for number, file in chain.items() if file.entry is not None and file.entry.is_late
    ]
    faults.sort(key=lambda fault: (fault.number is None, fault.number or 0))
    return Verification(ends, found, tuple(faults), tuple(notes), tuple(late))


def _look_at(path: Path, number: int, digest: str) -> _File:
    try:
        data = path.read_bytes()
    except OSError:
        return _File(path, number, digest, None, False)
    try:
        entry = read_entry(data, path)
    except LedgerError:
        entry = None
    return _File(path, number, digest, entry, digest_of(data) == digest)


def _rows(folder: Path, faults: list[Fault]) -> list[Row]:
    try:
        return read_rows(folder / INDEX)
    except LedgerError as problem:
        faults.append(Fault(None, "index", str(problem)))
        return []


def _missing(
    number: int, by_number: Mapping[int, list[_File]], witness: Mapping[int, str]
) -> Fault:
    named = f" (the index has its digest: {witness[number]})" if number in witness else ""
    if number > max(by_number, default=0):
        return Fault(number, "cut", f"entry {number} is gone from the end of the ledger{named}")
    return Fault(number, "missing", f"entry {number} is gone{named}")


def _genuine(files: list[_File], following: list[_File], witnessed: str | None) -> _File:
    """Of several files of one number that which others know: the next entry, or the index."""
    wanted = {file.entry.previous for file in following if file.entry is not None}
    return max(
        files,
        key=lambda file: (file.is_sound, file.digest == witnessed, file.digest in wanted),
    )


def _own_faults(file: _File, folder: Path) -> list[Fault]:
    if not file.is_sound:
        return [
            Fault(
                file.number,
                "changed",
                f"entry {file.number} was changed: the bytes of {file.path} are not those that its "
                "name says",
            )
        ]
    entry = file.entry
    if entry is None:
        return [Fault(file.number, "inserted", f"{file.path} is no entry of a ledger")]
    place = folder / place_of(entry.kind, entry.day, entry.number, entry.digest)
    if file.path != place:
        return [
            Fault(
                file.number,
                "moved",
                f"{file.path} is entry {entry.number}, whose place is {place}",
            )
        ]
    return []


def _chain_faults(chain: Mapping[int, _File], witness: Mapping[int, str], last: int) -> list[Fault]:
    faults = []
    for number in range(1, last + 1):
        file, before = chain.get(number), chain.get(number - 1)
        if file is None or file.entry is None or not file.is_sound:
            continue
        if file.entry.number != number or (number > 1 and before is None):
            continue  # told already: moved, or the one before is gone
        expected = FIRST if before is None else before.digest
        if file.entry.previous != expected:
            faults.append(_break(number, file.entry.previous, chain, witness))
        elif (
            before is not None
            and before.entry is not None
            and before.is_sound
            and file.entry.appended_at < before.entry.appended_at - CLOCK_SLACK
        ):
            faults.append(
                Fault(
                    number,
                    "clock",
                    f"entry {number} bears a time before that of entry {number - 1}",
                )
            )
    return faults


def _break(
    number: int, previous: str, chain: Mapping[int, _File], witness: Mapping[int, str]
) -> Fault:
    """The entries at `number` - 1 and `number` do not follow one another: which was replaced?"""
    before = number - 1
    if before and witness.get(before) == previous:
        return Fault(
            before,
            "replaced",
            f"entry {before} was replaced: entry {number} and the index know another digest of it, "
            f"{previous}",
        )
    if number in witness and witness[number] != chain[number].digest:
        return Fault(
            number,
            "replaced",
            f"entry {number} was replaced: it does not follow entry {before}, and the index knows "
            f"another digest of it, {witness[number]}",
        )
    return Fault(
        number,
        "rewritten",
        f"entry {number} does not follow entry {before}: one of the two was replaced, or all from "
        f"{number} on are of another chain",
    )


def _index_faults(
    chain: Mapping[int, _File], rows: list[Row], folder: Path, notes: list[str]
) -> list[Fault]:
    faults = []
    known = {int(str(row[0])): row for row in rows}
    for number, row in known.items():
        file = chain.get(number)
        if file is None or not file.is_sound or file.entry is None:
            continue  # told already
        if str(row[1]) != file.digest:
            faults.append(
                Fault(
                    number,
                    "replaced",
                    f"entry {number} is not the one that the index knows, {row[1]}: it was "
                    "replaced, or all from it on were written anew",
                )
            )
        elif file.entry.number == number and row != row_of(file.entry, folder):
            faults.append(
                Fault(
                    number,
                    "index",
                    f"the index says other of entry {number} than its file, which is what counts",
                )
            )
    absent = sorted(set(chain) - set(known))
    if known and absent and absent[0] < max(known):
        faults.append(Fault(absent[0], "index", f"the index does not know entry {absent[0]}"))
    elif absent:
        notes.append(
            f"the index does not know the newest {len(absent)}: the next append, or kronos-qlib "
            "ledger reindex, adds them"
        )
    return faults


def _check_head(
    asked: str | None,
    digest: str,
    chain: Mapping[int, _File],
    faults: list[Fault],
    notes: list[str],
) -> None:
    ends = max(chain, default=0)
    found = {file.digest: number for number, file in chain.items()} | {FIRST: 0}
    number = found.get(digest)
    if number is not None and (asked is None or int(asked) == number):
        if number < ends:
            notes.append(f"the head given is entry {number}; {ends - number} came after it")
        return
    if asked is not None and int(asked) > ends:
        faults.append(
            Fault(
                ends + 1,
                "cut",
                f"the head given is entry {asked}, and the ledger ends at {ends}: it was cut, or "
                "written anew",
            )
        )
    elif asked is not None and number is None:
        faults.append(
            Fault(
                int(asked),
                "rewritten",
                f"entry {asked} is not the one of the head given: the ledger was written anew, "
                "from that entry or from an earlier one on",
            )
        )
    else:
        faults.append(
            Fault(
                None,
                "rewritten",
                f"no entry is the one of the head given: the {ends} entries were written anew, or "
                "cut and continued",
            )
        )
