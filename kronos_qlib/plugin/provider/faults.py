"""What keeps a Qlib folder from being read: which file or line, and why.

Qlib itself answers most of these with an empty result, or an error that names no file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from qlib.utils import code_to_fname
from qlib.utils.time import Freq

from kronos_qlib.data.calendar.time_text import Times, show_time
from kronos_qlib.data.windows.segments import places_of
from kronos_qlib.errors import BarDataError, CalendarError, ConfigError, some_of
from kronos_qlib.files import put_aside

RECONVERT = (
    "take it from a copy of the folder, or convert the bars again into a new one (kronos-qlib "
    "data convert)"
)
"""What to do about a damaged file: nothing that is still there is lost by it."""

EXCHANGES = {
    **dict.fromkeys(("sh", "ss", "sse", "shse", "xshg"), "sh"),
    **dict.fromkeys(("sz", "szse", "xshe"), "sz"),
    **dict.fromkeys(("bj", "bse", "bjse", "xbse"), "bj"),
}
"""The exchange that a part of a symbol means, as vendors write it."""

SHOWN, MARKETS_SHOWN = 3, 12
"""Names that a message gives as examples, of instruments and of markets."""


def feature_folder(name: str) -> str:
    """The folder in `features` that Qlib reads an instrument from."""
    return str(code_to_fname(name)).lower()


def check_folder(folder: Path) -> None:
    """Refuse a folder that is not there or is none of Qlib's.

    Raises:
        ConfigError: names its whole path, and what to do.
    """
    if (aside := put_aside(folder)) is not None:
        raise ConfigError(
            f"there is no folder {folder}: a conversion that was killed put it aside as {aside}. "
            f"The next one to {folder} puts back what was there before; so does renaming it"
        )
    place = folder.absolute()
    if not place.exists():
        raise ConfigError(
            f"there is no Qlib folder {place} (a relative path is looked for from {Path.cwd()}): "
            "give its whole path (provider_uri; KRONOS_PROVIDER_URI in the workflows here), or "
            "write it with `kronos-qlib data convert` or `data demo`"
        )
    if not (place / "calendars").is_dir():
        what = "has no calendars/" if place.is_dir() else "is a file"
        raise ConfigError(
            f"{place} is no Qlib folder: it {what}; name the one that holds calendars, features "
            "and instruments (provider_uri); `kronos-qlib data convert` writes one from files"
        )


def check_frequency(folder: Path, freq: str) -> None:
    """Refuse a folder that is not there, is none of Qlib's, or has no bars of a frequency.

    Raises:
        ConfigError: names what there is instead.
    """
    check_folder(folder)
    spelled = str(Freq(freq))
    if not (folder / "calendars" / f"{spelled}.txt").is_file():
        known = sorted({path.stem for path in (folder / "calendars").glob("*.txt")})
        known = [name for name in known if not name.endswith("_future")]
        remedy = f"give freq as its bars come ({', '.join(known)})" if known else RECONVERT
        raise ConfigError(
            f"{folder} has no bars of freq {freq!r}: there is no calendars/{spelled}.txt, only "
            f"{', '.join(f'{name}.txt' for name in known) or 'an empty folder'}; {remedy}"
        )


def check_calendar(path: Path, times: Times | None) -> None:
    """Refuse a calendar that is not read, empty, or whose times do not rise.

    Args:
        times: as Qlib read them; None if it could not.

    Raises:
        CalendarError: names file and line.
    """
    if times is not None and len(times) and bool((times[1:] > times[:-1]).all()):
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    before: pd.Timestamp | None = None
    for number, line in enumerate(lines, start=1):
        if not (text := line.strip()):
            continue
        try:
            time = pd.Timestamp(text)
        except ValueError:
            raise CalendarError(
                f"{path}, line {number}: {text!r} is no time such as 2024-01-31"
            ) from None
        if pd.isna(time) or time.tzinfo is not None:
            raise CalendarError(f"{path}, line {number}: {text!r} is no local time without a zone")
        if before is not None and time <= before:
            raise CalendarError(
                f"{path}, line {number}: {text} stands after {before}; times must rise, each once. "
                "Features are stored by the place in this file: take the calendar that they were "
                "written with, or convert the bars again into a new folder"
            )
        before = time
    if before is None:
        raise CalendarError(f"{path} holds no times; {RECONVERT}")


def stored_calendar(folder: Path, freq: str, future: bool = False) -> Times:
    """A folder's calendar without `qlib.init`; with `future`, that with the times to come.

    Raises:
        CalendarError: as `check_calendar`.
    """
    path = folder / "calendars" / f"{Freq(freq)}{'_future' if future else ''}.txt"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    times = _to_times([line.strip() for line in lines if line.strip()])
    check_calendar(path, None if np.isnat(times).any() else times)
    return times


def check_future(folder: Path, freq: str, past: Times, ahead: Times) -> None:
    """Refuse a future calendar that does not hold the past: Qlib's holds both.

    Raises:
        CalendarError: names the file and what it lacks.
    """
    name = str(Freq(freq))
    path = folder / "calendars" / f"{name}_future.txt"
    lacking = past[~np.isin(past, ahead)]
    if not path.is_file() or not len(lacking):
        return
    last, due = (show_time(times[-1]) for times in (ahead, past))
    if ahead[-1] < past[-1]:
        cause = f"ends on {last} and {name}.txt on {due}: bars were added and it was left as it was"
    elif len(lacking) == len(past):
        cause = (
            f"holds none of the {len(past)} times of {name}.txt, which belong before those to come"
        )
    else:
        cause = f"lacks {len(lacking)} times of {name}.txt, the first {show_time(lacking[0])}"
    raise CalendarError(
        f"{path} {cause}. Write it anew as {name}.txt and then the times to come, or rename it "
        f"away: without it Qlib goes by {name}.txt, and beyond_calendar says what comes after"
    )


@dataclass(frozen=True)
class MarketFile:
    """A market's file, a row for each stay of an instrument.

    names: (n,) as they are written. first, last: (n,) datetime64[ns], both inclusive.
    """

    names: Sequence[str]
    first: Times
    last: Times

    def within(self, first: np.datetime64, last: np.datetime64) -> set[str]:
        """The names that are in it at some time from first to last."""
        stays = np.flatnonzero((self.first <= last) & (self.last >= first)).tolist()
        return {self.names[at] for at in stays}


def check_market(folder: Path, market: str) -> MarketFile:
    """Read a market's file; refuse one that is missing, names no instrument, or has a bad line.

    Raises:
        ConfigError: there is no such file; names those there are.
        BarDataError: names file and line.
    """
    path = folder / "instruments" / f"{market.lower()}.txt"
    if not path.is_file():
        known = sorted(each.stem for each in path.parent.glob("*.txt"))
        upper = [name for name in known if name != name.lower() and name.lower() == market.lower()]
        near = get_close_matches(market.lower(), known, n=1)
        some = some_of(known, MARKETS_SHOWN)
        if upper:
            hint = f"there is {upper[0]}.txt, and Qlib reads names in lower case: rename it"
        elif not known:
            hint = f"the folder instruments is empty; {RECONVERT}"
        elif near:
            hint = f"did you mean {near[0]!r}? There are {some}"
        else:
            hint = f"there are {some}: name one of these"
        raise ConfigError(f"market {market!r} has no file {path}; {hint}")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows = [(at, line.split("\t")) for at, line in enumerate(lines, start=1) if line.strip()]
    if not rows:
        raise BarDataError(f"{path} names no instruments; {RECONVERT}")
    for number, cells in rows:
        if len(cells) < 3:
            raise BarDataError(
                f"{path}, line {number}: expected a name, its first and its last day with tabs "
                f"between them, got {lines[number - 1]!r}"
            )
    first, last = (_to_times([cells[at].strip() for _, cells in rows]) for at in (1, 2))
    wrong = np.isnat(first) | np.isnat(last) | (first > last)
    if wrong.any():
        place = int(wrong.argmax())
        number, (name, begin, end, *_) = rows[place]
        cause = (
            f"{name} ends on {end} before it begins on {begin}"
            if first[place] > last[place]
            else f"the first and last day of {name} are no dates: {begin!r} and {end!r}"
        )
        raise BarDataError(
            f"{path}, line {number}: {cause}; Qlib would pass the line over in silence "
            f"({int(wrong.sum())} such lines)"
        )
    return MarketFile([cells[0].strip() for _, cells in rows], first, last)


def stored_closes(folder: Path, freq: str, name: str) -> tuple[int, npt.NDArray[np.float32]]:
    """An instrument's closes without `qlib.init`.

    Returns:
        The place of the first in the calendar, and (n,) closes, NaN where there is no bar.

    Raises:
        OSError: there is no such file.
    """
    path = folder / "features" / feature_folder(name) / f"close.{Freq(freq)}.bin"
    values = np.fromfile(path, dtype="<f4")
    begin = int(values[0]) if len(values) and np.isfinite(values[0]) else 0
    return begin, values[1:]


def check_benchmark(
    folder: Path, freq: str, name: str, calendar: Times, first: Any, last: Any
) -> None:
    """Refuse a benchmark that the folder does not know, or that has no close in a span.

    Args:
        calendar: (K,) of the folder's bars of this frequency.
        first, last: of the span, both inclusive, a bare date being the whole day; None is open.

    Raises:
        ConfigError: names the instrument, what is like it, or from when to when it has bars.
    """
    try:
        begin, closes = stored_closes(folder, freq, name)
    except OSError:
        cause = why_missing(folder, freq, [name], "close")
        remedy = (
            "name an instrument of the folder; or make a mean and name that: of all names by "
            "`kronos-qlib data convert ... --benchmark MEAN`, of an index' members by `data "
            "members ... --mean NAME`"
        )
        raise ConfigError(
            f"the benchmark {name} has no bars in {folder}: {cause}; {remedy}"
        ) from None
    known = begin + np.flatnonzero(np.isfinite(closes))
    known = known[known < len(calendar)]
    start, stop = places_of(calendar, first, last)
    if not ((known >= start) & (known < stop)).any():
        own = (
            f"its bars go from {show_time(calendar[known[0]])} to {show_time(calendar[known[-1]])}"
            if len(known)
            else "its file holds no close at all"
        )
        raise ConfigError(
            f"the benchmark {name} has no bars in {folder} from {first} to {last}: {own}; name "
            "another instrument, or move the test segment"
        )


def why_missing(folder: Path, freq: str, names: Sequence[str], field: str | None = None) -> str:
    """Why no instrument has a field, or any bar; "" where the files do not show it.

    Args:
        names: of instruments.
        field: without its dollar sign; None asks for the instruments' folders alone.
    """
    features = folder / "features"
    there = sorted(_folders(features))
    if not there:
        return f"{features} is {'empty' if features.is_dir() else 'not there'}; {RECONVERT}"
    own = [name for name in names if feature_folder(name) in set(there)]
    if not own:
        return _no_folder(features, names, there)
    suffix = f".{Freq(freq)}.bin"
    files = sorted({path.name for name in own[:20] for path in _files(features, name)})
    where = f"features/{feature_folder(own[0])}"
    nothing = f"{where} has {some_of(files, SHOWN) or 'no files'}, and nothing for freq {freq!r}"
    if field is None:
        return "" if any(name.lower().endswith(suffix) for name in files) else nothing
    wanted = field.lower() + suffix
    if wanted in files:
        return f"{wanted} is there, without a value in this span"
    if upper := [name for name in files if name.lower() == wanted]:
        return f"{where} has {upper[0]}, and Qlib reads {wanted}: rename the files to lower case"
    other = [name for name in files if name.startswith(f"{field.lower()}.")]
    known = [name.removesuffix(suffix) for name in files if name.endswith(suffix)]
    if other:
        return f"{where} has {', '.join(other)} and no {wanted}: its bars are of another freq"
    if near := get_close_matches(field, known, n=1):
        return f"did you mean ${near[0]}?"
    if known:
        return f"there are ${', $'.join(known)}"
    return nothing


def likely_names(name: str, known: Iterable[str]) -> list[str]:
    """Which of the known names an instrument is probably called, the likeliest first; upper case.

    600000.SH, SH.600000, 600000.XSHG and 600000 all mean sh600000.
    """
    known = [each.lower() for each in known if each.lower() != name.lower()]
    number, exchange = _parts_of(name)
    if not any(part.isdigit() for part in number):
        near = [each for each in known if _parts_of(each)[0] == number and number]
        near = near or get_close_matches(name.lower(), known, n=1)
    else:  # a number like it is another instrument
        parts = [(each, *_parts_of(each)) for each in known]
        # SZ000001 is another share than SH000001; a bare 000001 may be either.
        near = [
            each
            for each, other, place in parts
            if other == number and (place == exchange or "" in (place, exchange))
        ]
    return [each.upper() for each in near[:SHOWN]]


def missing_folders(folder: Path, names: Iterable[str]) -> str:
    """How some names without bars are probably spelled; "" where nothing is like them."""
    there = _folders(folder / "features")
    lacking = [name for name in names if feature_folder(name) not in there]
    wanted = {feature_folder(name) for name in lacking}
    if upper := sorted(entry for entry in there if entry.lower() in wanted):
        return (
            f"; features has {some_of(upper, SHOWN)}, and Qlib reads names in lower case: "
            "rename them"
        )
    hints = [(name, likely_names(name, there)) for name in lacking[:SHOWN]]
    hints_shown = [f"{' or '.join(near)} for {name}" for name, near in hints if near]
    return f"; write {', '.join(hints_shown)}" if hints_shown else ""


def _no_folder(features: Path, names: Sequence[str], there: Sequence[str]) -> str:
    wanted = {feature_folder(name) for name in names}
    upper = [entry for entry in there if entry.lower() in wanted]
    if upper:
        count = sum(entry != entry.lower() for entry in there)
        return (
            f"{features} has {upper[0]}, and Qlib reads {upper[0].lower()}: rename its folders to "
            f"lower case ({count} are not)"
        )
    first = feature_folder(names[0])
    others = f" (nor of {len(names) - 1} others)" if len(names) > 1 else ""
    near = likely_names(names[0], there)
    hint = f"; write {' or '.join(near)} for {names[0]}" if near else ""
    return f"there is no folder features/{first}{others}; there are {some_of(there, SHOWN)}{hint}"


def _folders(features: Path) -> set[str]:
    return (
        {path.name for path in features.iterdir() if path.is_dir()} if features.is_dir() else set()
    )


def _files(features: Path, name: str) -> Iterable[Path]:
    return (features / feature_folder(name)).glob("*.bin")


def _parts_of(name: str) -> tuple[tuple[str, ...], str]:
    """A symbol's letters and digits without its exchange, and the exchange."""
    parts = re.findall(r"[a-z]+|\d+|[^\W\d_a-z]+", name.lower())
    exchange = next((EXCHANGES[part] for part in parts if part in EXCHANGES), "")
    return tuple(sorted(part for part in parts if part not in EXCHANGES)), exchange


def _to_times(cells: Sequence[str]) -> Times:
    times = pd.to_datetime(pd.Series(cells), errors="coerce", format="ISO8601")
    if times.isna().any():  # other spellings, slower
        times = pd.to_datetime(pd.Series(cells), errors="coerce", format="mixed")
    return times.to_numpy("datetime64[ns]")
