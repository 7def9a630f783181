"""Files of a drop folder that have not been taken yet, as one table of bars.

The folder is only read. What was taken is kept in the home folder, by the digest of each file: a
file that is written anew counts as another one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from kronos_qlib.daily.daily_settings import BarsConfig
from kronos_qlib.data.calendar.time_text import show_time
from kronos_qlib.data.files.formats import SUFFIXES
from kronos_qlib.data.files.read import read_bars
from kronos_qlib.errors import BarDataError, NoBarsError, in_words, some_of
from kronos_qlib.files import replacing
from kronos_qlib.schema import LONG_COLUMNS

TAKEN = "taken.json"
NO_FACTOR = "factor is missing"
"""How a note of `read_bars` begins that filled it in."""
UNFINISHED = (".", "~")
"""How names of files begin that are still being written."""
OTHER_TABLES = (".gz", ".bz2", ".xz", ".zip", ".zst", ".tsv", ".txt", ".xls", ".xlsx", ".json")
"""How names of tables end that are not read, and of which that is said."""


@dataclass(frozen=True)
class Dropped:
    """What lies in the folder and has not been taken.

    bars: `schema.LONG_COLUMNS` and the extra ones, each bar once; a factor that a file does not
        have is NaN.
    days: of each file, by its path: the days that it has bars of.
    digests: of each file, by its path.
    waiting: a sentence for each file that is not whole yet.
    """

    bars: pd.DataFrame
    days: Mapping[Path, frozenset[pd.Timestamp]]
    digests: Mapping[Path, str]
    waiting: tuple[str, ...]
    notes: tuple[str, ...]

    def taken_by(self, known: Iterable[pd.Timestamp]) -> dict[str, dict[str, str]]:
        """Digest to name and last day of the files all of whose days are known."""
        there = frozenset(known)
        return {
            self.digests[path]: {"file": path.name, "last": f"{max(days):%Y-%m-%d}"}
            for path, days in self.days.items()
            if days <= there
        }


def read_dropped(folders: Iterable[Path], config: BarsConfig, taken: Container[str]) -> Dropped:
    """Read what is new in some folders.

    Args:
        folders: read one after another; one that is missing is empty.
        taken: digests of files that are passed over.

    Raises:
        BarDataError: a file cannot be read, or two files have different bars of one instrument and
            day. Names the files.
        OSError: a file cannot be opened.
    """
    parts: list[pd.DataFrame] = []
    days: dict[Path, frozenset[pd.Timestamp]] = {}
    digests: dict[Path, str] = {}
    waiting: list[str] = []
    notes: list[str] = []
    paths, others = _files(folders)
    if others:
        notes.append(
            f"passed over: {some_of(others, 5)}; what is read ends with {in_words(SUFFIXES)}"
        )
    for path in paths:
        whole = path.read_bytes()
        digest = hashlib.sha256(whole).hexdigest()
        if digest in taken:
            continue
        if not whole:
            waiting.append(f"{path} is empty: it may be in the making")
            continue
        is_text = path.suffix.lower() == ".csv"
        if is_text and config.final_newline and not whole.endswith((b"\n", b"\r", b"\n\x00")):
            waiting.append(
                f"{path} does not end with the end of a line: it is in the making, or was cut "
                "short (bars.final_newline: false takes it as it is)"
            )
            continue
        try:
            found = read_bars(path, as_is=True, **config.reading())
        except NoBarsError:
            waiting.append(f"{path} holds no bars yet, or none at all: then take it away")
            continue
        except BarDataError as problem:
            if "--" in str(problem):  # it names options of other commands
                raise BarDataError(f"{problem}. Of `daily` such options are keys of bars") from None
            raise
        bars = found.bars
        if any(note.startswith(NO_FACTOR) for note in found.notes):
            bars = bars.assign(factor=float("nan"))
        parts.append(bars.assign(file=str(path)))
        days[path] = frozenset(pd.DatetimeIndex(bars["date"].unique()).normalize())
        digests[path] = digest
        notes += [note for note in found.notes if note not in notes]
    columns = [*LONG_COLUMNS, *config.extra]
    if not parts:
        return Dropped(pd.DataFrame(columns=columns), days, digests, tuple(waiting), tuple(notes))
    bars = _once(pd.concat(parts, ignore_index=True), columns)
    return Dropped(bars, days, digests, tuple(waiting), tuple(notes))


def read_taken(home: Path) -> dict[str, Any]:
    """Digest to name and last day of what was taken; of older versions to the name alone.

    Raises:
        BarDataError: the file is none of ours.
    """
    path = home / TAKEN
    if not path.is_file():
        return {}
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise BarDataError(
            f"{path} is damaged: remove it. Every file of the drop folder is then read once more, "
            "which changes nothing where its bars are those of the Qlib folder"
        )
    return found


def still_taken(taken: Mapping[str, Any], newest: pd.Timestamp) -> set[str]:
    """Digests of what a folder that ends with this day can have taken.

    A folder that was put back from a copy, or made anew, ends before some: those are read again.
    """
    lasts = {
        digest: about.get("last") for digest, about in taken.items() if isinstance(about, Mapping)
    }
    end = f"{newest:%Y-%m-%d}"
    return {digest for digest in taken if str(lasts.get(digest, "")) <= end}


def write_taken(home: Path, taken: Mapping[str, Any]) -> None:
    """Keep what was taken; the file is replaced whole."""
    with replacing(home / TAKEN) as draft:
        draft.write_text(
            json.dumps(dict(taken), indent=1, sort_keys=True) + "\n",
            encoding="utf-8",
            newline="\n",
        )


def _files(folders: Iterable[Path]) -> tuple[list[Path], list[str]]:
    """Files that can be read, and the names of others that seem to hold bars."""
    found: list[Path] = []
    others: list[str] = []
    for folder in folders:
        inside = sorted(folder.iterdir()) if folder.is_dir() else []
        for path in inside:
            if path.name.startswith(UNFINISHED):
                continue
            if path.suffix.lower() in SUFFIXES:
                if path.is_file():
                    found.append(path)
                else:
                    others.append(f"{path.name} (no file)")
            elif path.suffix.lower() in OTHER_TABLES:
                others.append(path.name)
    return found, others


def _once(bars: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Each bar once: a day that comes twice alike is one.

    Raises:
        BarDataError: two bars of one instrument and day differ.
    """
    bars = bars.drop_duplicates([*columns], ignore_index=True)
    again = bars.duplicated(["symbol", "date"], keep=False).to_numpy()
    if again.any():
        row = bars[again].iloc[0]
        same = bars[(bars["symbol"] == row["symbol"]) & (bars["date"] == row["date"])]
        names = [Path(name).name for name in same["file"].unique()]
        where = f"{names[0]} has two" if len(names) == 1 else f"{' and '.join(names)} have one each"
        count = int(bars[again].groupby(["symbol", "date"]).ngroups)
        values = [name for name in columns[2:] if same[name].nunique(dropna=False) > 1]
        shown = ", ".join(
            f"{name} {' or '.join(f'{value:.12g}' for value in same[name].unique())}"
            for name in values[:3]
        )
        raise BarDataError(
            f"{row['symbol']} {show_time(row['date'])}: two different bars, {where}: {shown} "
            f"({count} such). Which is right, nothing here says: take the other out of the drop "
            "folder"
        )
    return bars[columns].sort_values(["symbol", "date"], ignore_index=True)
