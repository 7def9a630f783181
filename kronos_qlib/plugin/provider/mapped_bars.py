"""A Qlib folder's bars as a mapped table: built once, and asked whether it is still the folder's.

Shape letters: K times of the calendar.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlib.log import get_module_logger

from kronos_qlib.data.calendar.time_text import show_span
from kronos_qlib.data.windows.bar_table import BarTable
from kronos_qlib.data.windows.table_files import (
    MANIFEST,
    TableWriter,
    digest_of,
    manifest_of,
    open_table,
)
from kronos_qlib.errors import BarDataError, ConfigError
from kronos_qlib.log import progress
from kronos_qlib.plugin.provider.reader import (
    BarOptions,
    BarsAsked,
    StoredColumns,
    open_bars,
    read_spans,
    report_read,
)
from kronos_qlib.schema import BAR_COLUMNS

if TYPE_CHECKING:
    from typing_extensions import Unpack

logger = get_module_logger(__name__)  # Qlib shows its own loggers only


def write_table(
    out: str | Path,
    names: Iterable[str],
    freq: str = "day",
    *,
    overwrite: bool = False,
    show_progress: bool = False,
    **how: Unpack[BarOptions],
) -> BarTable:
    """Write the bars that `read_table` would read into a folder, and open it.

    Memory holds one instrument at a time. A start that was killed is gone on from by the next of
    the same arguments, unless the bars have changed meanwhile.

    Args:
        out: the folder of the table, new; with `overwrite` it may be an older table.
        names, freq, how: as of `read_table`; the fields are plain ones of files on this machine.

    Raises:
        BarDataError: as of `read_table`; or another process writes the same table.
        ConfigError: as of `read_table`, or something is there already.
    """
    target = Path(out).expanduser().absolute()
    _check_free(target, overwrite)
    options = BarsAsked(**how)
    names = list(dict.fromkeys(names))
    asked = open_bars(names, freq, options, direct=True)
    assert asked.files is not None
    paths_of = asked.files.paths
    about = _about(names, freq, options, asked.bounds)
    writer = TableWriter(target, asked.calendar, about, **options.ways)
    # Another start may have ended between that check and the lock.
    with writer.held(lambda: _check_free(target, overwrite)):
        columns = StoredColumns()
        known = 0
        for name, line in zip(names, writer.done, strict=False):
            if line["name"] != name or not _is_same(line["files"], paths_of(name)):
                break
            columns.note(line["columns"], name)
            known += 1
        writer.keep(known)
        if known:
            logger.info(f"going on after {known} of {len(names)} instruments")
        files: dict[str, list[Any]] = {}

        def noted() -> Iterator[str]:
            """Names, each file's digest taken before its bars are read: of bars that change
            meanwhile the table is then older than its folder, and is refused as such."""
            for name in names[known:]:
                files[name] = _files_of(paths_of(name))
                yield name

        rest = progress(
            asked.bars(noted(), columns),
            f"bars to {target.name}",
            unit="instrument",
            total=len(names) - known,
            show=show_progress,
        )
        for name, places, bars in rest:
            about_name = {"name": name, "files": files.pop(name), "columns": columns.last}
            writer.add(name, places, bars, about_name)
        writer.finish()
    table = open_table(target)
    report_read(table, names, freq, asked, columns)
    return table


def read_mapped(
    folder: str | Path,
    names: Sequence[str],
    freq: str = "day",
    **how: Unpack[BarOptions],
) -> BarTable:
    """The table that `write_table` wrote; arguments as of `read_table`, which gives the same bits.

    Raises:
        BarDataError: the table is damaged or half written, or the Qlib folder has other bars now.
        ConfigError: it was made of other instruments or by other settings; says of which.
    """
    options = BarsAsked(**how)
    asked = open_bars(list(names), freq, options, direct=True)
    assert asked.files is not None
    folder = Path(folder).expanduser().absolute()
    manifest = manifest_of(folder)
    wanted = _about(names, freq, options, asked.bounds)
    if manifest["calendar"] != digest_of(asked.calendar.view("int64")):
        raise BarDataError(
            f"the calendar of the Qlib folder is not the one that {folder} was built by: {_AGAIN}"
        )
    made = manifest["about"]
    if differ := [key for key in wanted if made.get(key) != wanted[key]]:
        told = ", ".join(_told(key, made.get(key), wanted[key], asked.calendar) for key in differ)
        raise ConfigError(
            f"the table {folder} was built for another data set: {told}. Ask for the same, or "
            "build a table for this one with kronos-qlib data table"
        )
    for line in manifest["made_of"]:
        if not _is_same(line["files"], asked.files.paths(line["name"])):
            raise BarDataError(
                f"the bars of {line['name']} in the Qlib folder have changed since {folder} was "
                f"built: {_AGAIN}"
            )
    return open_table(folder)


_AGAIN = "build it again, with kronos-qlib data table and --overwrite"


def _check_free(target: Path, overwrite: bool) -> None:
    is_table = (target / MANIFEST).is_file()
    if target.exists() and not (overwrite and is_table):
        raise ConfigError(
            f"{target} is there already"
            + (
                ": --overwrite replaces it"
                if is_table
                else " and is no table of bars: name another folder"
            )
        )


def names_of(market: str, freq: str) -> list[str]:
    """The instruments of a market, in the order of a table's."""
    return sorted(read_spans(market, freq) or ())


def _about(
    names: Sequence[str],
    freq: str,
    options: BarsAsked,
    bounds: tuple[int, int],
) -> dict[str, Any]:
    return {
        "freq": freq,
        "fields": {name: options.fields[name] for name in BAR_COLUMNS},
        "raw_volume": options.raw_volume,
        "bounds": list(bounds),
        **options.ways,
        "instruments": len(names),
        "names": hashlib.sha256("\n".join(names).encode()).hexdigest(),
    }


def _told(key: str, made: Any, wanted: Any, calendar: Any) -> str:
    """A setting that differs, in words."""
    if key == "names":
        return "other instruments"
    if key == "bounds":
        made, wanted = (
            show_span(calendar[slice(*ends)]) if ends[0] < ends[1] else "no time"
            for ends in (made, wanted)
        )
    return f"{key} {made} (asked for: {wanted})"


def _files_of(paths: Sequence[Path]) -> list[Any]:
    """What an instrument's files are: size, time of change, and digest of each; None if missing."""
    found: list[Any] = []
    for path in paths:
        try:
            stat = path.stat()
        except FileNotFoundError:
            found.append(None)
            continue
        found.append([stat.st_size, stat.st_mtime_ns, _digest(path)])
    return found


def _is_same(files: Sequence[Any], paths: Sequence[Path]) -> bool:
    """Whether files are as they were; one of another time of change is read to know."""
    for known, path in zip(files, paths, strict=True):
        try:
            stat = path.stat()
        except FileNotFoundError:
            if known is not None:
                return False
            continue
        if known is None or stat.st_size != known[0]:
            return False
        if stat.st_mtime_ns != known[1] and _digest(path) != known[2]:
            return False
    return True


def _digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
