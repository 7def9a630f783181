"""New bars into a Qlib folder that is there: calendar, fields and markets together, or nothing.

The folder is built anew beside its place and exchanged whole, so that a reader that opens it sees
all of the new day or nothing of it. What no new bar concerns is copied byte for byte.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.data.calendar.stamps import Times
from kronos_qlib.data.calendar.steps import as_days, wrong_step
from kronos_qlib.data.calendar.time_text import show_time
from kronos_qlib.data.files.check import measure_lot
from kronos_qlib.errors import BarDataError, ConfigError, some_of
from kronos_qlib.files import followed, recover, replacing
from kronos_qlib.plugin.provider.appending.changed_history import (
    NUMBERS,
    HistoryChange,
    Merged,
    merge,
)
from kronos_qlib.plugin.provider.appending.market_files import extend_markets
from kronos_qlib.plugin.provider.faults import (
    RECONVERT,
    check_frequency,
    check_market,
    feature_folder,
    stored_calendar,
)
from kronos_qlib.plugin.provider.feature_files import FeatureFiles
from kronos_qlib.plugin.provider.future_calendar import given_ahead, times_ahead
from kronos_qlib.plugin.provider.writable_bars import (
    ALL_MARKET,
    FIELDS,
    check_range,
    check_settings,
    check_symbols,
    check_table,
)
from kronos_qlib.plugin.provider.writer import (
    BENCHMARK_START,
    equal_weight,
    first_mean,
    vwap_of,
    write_calendars,
    write_feature,
)
from kronos_qlib.schema import PRICE_COLUMNS

logger = logging.getLogger(__name__)

LOG = "appended.jsonl"
"""In the folder: a line for each append, with what it changed; exchanged with the bars."""
LOT_NAMES, LOT_BARS = 40, 60
"""Instruments, and their last bars, that say what a unit of volume is."""
LEAST_MEASURED = 10
"""Bars that a measured unit of volume must rest on to contradict the folder's."""
SHOWN = 5
BARS = (*PRICE_COLUMNS, "volume")
"""Fields that whoever writes a folder writes together, from the first bar to the last."""


@dataclass(frozen=True)
class AppendSummary:
    """What an append brought into a folder; without times and changes it left it as it was."""

    target: Path
    times: tuple[pd.Timestamp, ...]
    """New in the calendar."""
    bars: int
    """At times that are new."""
    changes: tuple[HistoryChange, ...]
    """Of the bars that were there before."""
    entered: tuple[str, ...]
    """Instruments that are new."""
    silent: tuple[str, ...]
    """Members with a bar at the folder's last time before, and none at the newest one."""
    notes: tuple[str, ...]


def append_bars(
    bars: pd.DataFrame,
    target: str | Path,
    *,
    freq: str = "day",
    benchmark: str | None = None,
    extra: Sequence[str] = (),
    future_bars: int = 60,
    future_times: Iterable[Any] | None = None,
    renames: Mapping[str, str] | None = None,
    record: Mapping[str, Any] | None = None,
) -> AppendSummary:
    """Bring new and corrected bars into a Qlib folder.

    The folder is afterwards what `write_provider` would have made of all bars, as far as float32
    keeps them; bars that are equal to the stored ones change nothing. A market's span that ends
    with its instrument's bars goes on with them.

    Args:
        bars: as of `write_provider`. Some may be in the folder already; a factor that is NaN goes
            on as it was.
        target: the folder, or a link to it.
        freq: of the bars.
        benchmark: an instrument in no market. Where `bars` do not have it, it goes on as the
            equal-weight mean of the members.
        extra: further columns that are fields.
        future_bars, future_times: as of `write_provider`. Without times the ones that the folder
            has are kept, and others go on after them.
        renames: old name to new one: the instrument's bars and spans go over to its new name.
            Once done, it is passed over.
        record: what to keep of this append in the folder's `appended.jsonl`, beside what changed.

    Raises:
        BarDataError: the bars break the schema, are on another base or in another unit than the
            stored ones, or a file of the folder is damaged. The folder is as it was.
        CalendarError: the folder's calendar is damaged.
        ConfigError: a setting cannot work, or the folder is none.
        OSError: it cannot be written. The folder is as it was.
    """
    target = followed(Path(target).expanduser().absolute())
    recover(target)
    freq = check_settings(freq, ALL_MARKET, future_bars)
    check_frequency(target, freq)
    renamed = _renames(target, renames or {})
    table, notes = _table(bars, freq, extra)
    job = _Append(target, freq, table, benchmark.upper() if benchmark else None, extra, renamed)
    merged: Iterable[Merged] = job.merged()
    if not job.new_times:
        merged = [each for each in merged if len(each.written) or each.changes]
        if not merged and not renamed:
            return AppendSummary(target, (), 0, (), (), (), tuple(notes))
    with replacing(target) as draft:
        job.copy(draft)
        for each in merged:
            job.write(draft, each)
        job.write_rest(draft, future_bars, future_times)
        summary = AppendSummary(
            target,
            tuple(map(pd.Timestamp, job.new_times)),
            int(table["date"].isin(job.new_times).sum()),
            tuple(job.changes),
            tuple(job.entered),
            tuple(job.silent),
            tuple([*notes, *job.notes]),
        )
        with (draft / LOG).open("a", encoding="utf-8", newline="\n") as log:
            log.write(_line(summary, renamed, record or {}) + "\n")
    for note in summary.notes:
        logger.info("%s: %s", target, note)
    return summary


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a folder's `appended.jsonl`, oldest first; none where nothing was appended.

    Raises:
        BarDataError: a line is none of ours.
    """
    path = folder / LOG
    if not path.is_file():
        return []
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if not isinstance(entry, dict):
            raise BarDataError(
                f"{path}, line {number}: no entry of an append: {line[:60]!r}. Take the file from "
                "a copy of the folder, or write {} in place of this line: days whose scores its "
                "changes concern are then not scored again"
            )
        found.append(entry)
    return found


def _line(summary: AppendSummary, renamed: Mapping[str, str], record: Mapping[str, Any]) -> str:
    changes = [
        {
            "symbol": each.symbol,
            "kind": each.kind,
            "first": show_time(each.first),
            "last": show_time(each.last),
            "bars": each.bars,
            "detail": each.detail,
        }
        for each in summary.changes
    ]
    entry = {
        "times": [show_time(time) for time in summary.times],
        "bars": summary.bars,
        "changes": changes,
        "entered": list(summary.entered),
        "silent": list(summary.silent),
        "renamed": dict(renamed),
        "notes": list(summary.notes),
        **record,
    }
    return json.dumps(entry, ensure_ascii=True, sort_keys=True)


def _renames(target: Path, renames: Mapping[str, str]) -> dict[str, str]:
    """Those that are still to be done.

    Raises:
        ConfigError: both names have bars, or two instruments would get one name.
    """
    found = {}
    wanted = {str(old).upper(): str(new).upper() for old, new in renames.items()}
    if len(set(wanted.values())) < len(wanted) or set(wanted) & set(wanted.values()):
        raise ConfigError(f"renames give two instruments one name, or go in a row: {wanted}")
    for old, new in wanted.items():
        check_symbols([new])
        before, after = (target / "features" / feature_folder(name) for name in (old, new))
        if before.is_dir() and after.is_dir():
            raise ConfigError(
                f"{old} is to be renamed to {new}, and {target} has bars of both: leave the rename "
                "out, or make one history of the two and convert it"
            )
        if before.is_dir():
            found[old] = new
    return found


def _table(bars: pd.DataFrame, freq: str, extra: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    """The bars checked, in order, with upper-case symbols."""
    check_table(bars.assign(factor=bars["factor"].fillna(1.0)) if "factor" in bars else bars, extra)
    bars, stamped = as_days(bars) if freq == "day" else (bars, "")
    names = [*NUMBERS, *extra]
    table = bars[["symbol", "date", *names]].sort_values(["symbol", "date"], ignore_index=True)
    table = table.astype({"symbol": str, **dict.fromkeys(names, np.float64)})
    check_symbols(list(table["symbol"].unique()))
    table["symbol"] = table["symbol"].str.upper()
    check_range(table, names)
    if problem := wrong_step(table, freq):
        raise BarDataError(problem)
    return table, [stamped] if stamped else []


class _Append:
    """One append: what is stored, what is given, and what becomes of both."""

    def __init__(
        self,
        target: Path,
        freq: str,
        table: pd.DataFrame,
        benchmark: str | None,
        extra: Sequence[str],
        renamed: Mapping[str, str],
    ) -> None:
        self.target, self.freq, self.table, self.renamed = target, freq, table, renamed
        self.benchmark, self.extra = benchmark, tuple(extra)
        self.before = stored_calendar(target, freq)
        given = np.unique(table["date"].to_numpy("datetime64[ns]"))
        self.new_times = sorted(set(given[~np.isin(given, self.before)]))
        self.calendar: Times = np.union1d(self.before, given)
        self.moved = np.searchsorted(self.calendar, self.before)
        """Old places as places of the new calendar: others, if a missing day comes late."""
        self.known = int(np.searchsorted(self.calendar, self.before[-1], side="right"))
        self.files = FeatureFiles(target, freq, ["$close"], self.before)
        market = check_market(target, ALL_MARKET)
        for path in (target / "instruments").glob("*.txt"):
            check_market(target, path.stem)  # before anything is built
        new_name = {name.upper(): renamed.get(name.upper(), name.upper()) for name in market.names}
        self.members = dict.fromkeys(new_name.values())
        self.lot = self._lot(list(new_name))
        self.changes: list[HistoryChange] = []
        self.entered: list[str] = []
        self.notes: list[str] = []
        self.silent: list[str] = []
        self.unknown: set[str] = set()
        self.first_written = len(self.calendar)
        self.spans: dict[str, tuple[pd.Timestamp, pd.Timestamp]] = {}
        late = [time for time in self.new_times if time < self.before[-1]]
        if late:
            self.notes.append(
                f"{some_of([show_time(time) for time in late])} came late: the calendar lacked them"
            )

    def merged(self) -> Iterator[Merged]:
        """Each given instrument's bars among its stored ones; those that stay the same have none
        written."""
        names = [*NUMBERS, *self.extra]
        vwap, _ = vwap_of(self.table, self.lot)
        _, strange = vwap_of(self.table[self.table["date"].isin(self.new_times)], self.lot)
        if strange:
            self.notes.append(
                f"{strange} bars have amount and volume that do not fit their prices: no vwap"
            )
        numbers = self.table[names].to_numpy(np.float64)
        places = np.searchsorted(self.calendar, self.table["date"].to_numpy("datetime64[ns]"))
        for symbol, rows in self.table.groupby("symbol").indices.items():
            fields, start, stored = self._stored(str(symbol))
            given = dict(zip(names, numbers[rows].T, strict=True))
            yield merge(
                str(symbol),
                self.calendar,
                fields,
                start,
                stored,
                places[rows].astype(np.int64),
                given,
                vwap[rows],
                self.known,
            )

    def write(self, draft: Path, merged: Merged) -> None:
        """One instrument's fields into the draft."""
        symbol, values = merged.symbol, merged.values
        fields = self._fields(symbol)
        column = {name: at for at, name in enumerate(fields)}
        self._derive(values, merged.written - merged.start, column)
        for field in fields:
            write_feature(
                draft,
                self.freq,
                symbol,
                field,
                merged.start,
                values[:, column[field]],
                read_back=field == "close",
            )
        there = np.flatnonzero(np.isfinite(values[:, column["close"]])) + merged.start
        self.spans[symbol] = (
            pd.Timestamp(self.calendar[there[0]]),
            pd.Timestamp(self.calendar[there[-1]]),
        )
        if not self._files_of(symbol):
            self.entered.append(symbol)
        if len(merged.written):
            self.first_written = min(self.first_written, int(merged.written[0]))
        self.changes += merged.changes
        self.notes += merged.notes
        own = set(fields) - set(FIELDS) - set(self.extra)
        if own and len(merged.written):
            self.unknown |= own

    def copy(self, draft: Path) -> None:
        """All that no bar concerns, as it is; instruments under their new names."""
        concerned = {feature_folder(self._old(name)) for name in self.table["symbol"].unique()}
        if self.benchmark:
            concerned.discard(feature_folder(self.benchmark))
        features = self.target / "features"

        def left_out(folder: str, names: list[str]) -> set[str]:
            if Path(folder).parent == features and Path(folder).name in concerned:
                return {name for name in names if name.endswith(f".{self.freq}.bin")}
            return set()

        if not self.new_times:
            concerned = set()  # written over; those of whose bars none has changed are not
        shutil.copytree(self.target, draft, ignore=left_out, symlinks=True)
        for old, new in self.renamed.items():
            (draft / "features" / feature_folder(old)).rename(
                draft / "features" / feature_folder(new)
            )
        if not np.array_equal(self.moved, np.arange(len(self.before))):
            self._shift(draft, concerned)

    def write_rest(self, draft: Path, future_bars: int, future_times: Iterable[Any] | None) -> None:
        """Benchmark, calendars and markets."""
        calendar = pd.DatetimeIndex(self.calendar)
        write_calendars(draft, self.freq, calendar, self._future(future_bars, future_times))
        given = set(self.table["symbol"])
        if self.benchmark and self.benchmark not in given:
            self._go_on_with_mean(draft, self.benchmark)
        outside = {self.benchmark} if self.benchmark else set()
        for name in self.spans:
            if name not in self.members and name not in self.entered:
                outside.add(name)  # stored, and in no market: an index
        newest = pd.Timestamp(self.before[-1])
        spans = {name: span for name, span in self.spans.items() if name not in outside}
        ends = extend_markets(draft, self.freq, self.before, self.calendar, spans, self.renamed)
        if self.new_times and self.new_times[-1] > self.before[-1]:
            self.silent = sorted(
                name
                for name, end in ends.items()
                if end == newest and self.spans.get(name, (newest, newest))[1] <= newest
            )
        expected = self._expected()
        passed = expected[(expected < self.calendar[-1]) & ~expected.isin(calendar)]
        if len(passed):
            self.notes.append(
                f"no bars of {some_of([show_time(time) for time in passed])}, which the folder's "
                "calendar announced: a holiday, or missing; it is put in its place when it comes"
            )
        unknown = sorted(self.unknown)
        if unknown:
            self.notes.append(
                f"the bars have no {some_of(unknown)}: these fields stay empty where bars are new"
            )
        if self.entered:
            self.notes.append(f"{len(self.entered)} new: {some_of(self.entered, SHOWN)}")
        if self.silent:
            self.notes.append(
                f"{len(self.silent)} had a bar on {show_time(newest)} and have none now (halted, "
                f"delisted, or renamed: then say so by `renames`): {some_of(self.silent, SHOWN)}"
            )
        for old, new in self.renamed.items():
            self.notes.append(f"{old} is {new} now, with its bars and spans")

    def _old(self, symbol: str) -> str:
        """The name under which an instrument is stored."""
        return next((old for old, new in self.renamed.items() if new == symbol), symbol)

    def _files_of(self, symbol: str) -> list[str]:
        folder = self.target / "features" / feature_folder(self._old(symbol))
        suffix = f".{self.freq}.bin"
        if not folder.is_dir():
            return []
        return sorted(
            path.name.removesuffix(suffix)
            for path in folder.iterdir()
            if path.name.endswith(suffix)
        )

    def _fields(self, symbol: str) -> list[str]:
        """The fields to write: those that an instrument has, all for a new one."""
        return self._files_of(symbol) or [*FIELDS, *self.extra]

    def _stored(self, symbol: str) -> tuple[list[str], int, npt.NDArray[np.float32]]:
        """An instrument's fields, and its bars from a place of the new calendar on."""
        fields = self._fields(symbol)
        parts = {
            field: part
            for field in fields
            if (part := self.files.field(self._old(symbol), f"${field}")) is not None
            and len(part[1])
        }
        if not parts:
            return fields, 0, np.empty((0, len(fields)), dtype=np.float32)
        if "close" not in parts:
            raise BarDataError(
                f"{self.target} has {some_of(sorted(parts))} of {symbol} and no close: bars cannot "
                "be told from holes; convert them into a new folder"
            )
        spans = {name: (parts[name][0], len(parts[name][1])) for name in BARS if name in parts}
        for name, span in spans.items():
            if span != spans["close"]:
                raise BarDataError(
                    f"{self.target}: {name} of {symbol} has {span[1]} values from place {span[0]} "
                    f"of the calendar on, and close {spans['close'][1]} from {spans['close'][0]}: "
                    f"a file was cut short; {RECONVERT}"
                )
        first = min(begin for begin, _ in parts.values())
        stop = max(begin + len(column) for begin, column in parts.values())
        start, end = int(self.moved[first]), int(self.moved[stop - 1]) + 1
        stored = np.full((end - start, len(fields)), np.nan, dtype=np.float32)
        for at, field in enumerate(fields):
            if field in parts:
                begin, column = parts[field]
                stored[self.moved[begin : begin + len(column)] - start, at] = column
        return fields, start, stored

    def _derive(
        self,
        values: npt.NDArray[np.float32],
        rows: npt.NDArray[np.int64],
        column: Mapping[str, int],
    ) -> None:
        """`change` of the rows that were written, and of those after them."""
        if len(rows) and "change" in column:
            closes = values[:, column["close"]].astype(np.float64)
            there = np.flatnonzero(np.isfinite(closes))
            change = np.full(len(there), np.nan)
            change[1:] = closes[there[1:]] / closes[there[:-1]] - 1.0
            at = np.searchsorted(there, rows)
            at = np.unique(np.concatenate([at, at + 1]))
            at = at[at < len(there)]
            values[there[at], column["change"]] = change[at]

    def _shift(self, draft: Path, written: set[str]) -> None:
        """Move the values of instruments without new bars to their places in the new calendar."""
        for folder in sorted((draft / "features").iterdir()):
            if folder.name in written or not folder.is_dir():
                continue
            for path in folder.glob(f"*.{self.freq}.bin"):
                stored = np.fromfile(path, dtype="<f4")
                if len(stored) < 2:
                    continue
                begin = int(stored[0])
                places = self.moved[begin : begin + len(stored) - 1]
                dense = np.full(places[-1] - places[0] + 1, np.nan, dtype="<f4")
                dense[places - places[0]] = stored[1:]
                path.write_bytes(np.concatenate([[places[0]], dense]).astype("<f4").tobytes())

    def _future(self, future_bars: int, future_times: Iterable[Any] | None) -> pd.DatetimeIndex:
        calendar = pd.DatetimeIndex(self.calendar)
        if future_times is not None:
            future = given_ahead(calendar, self.freq, future_times)
            if not len(future):
                self.notes.append(f"no future time given lies after the last bar, {calendar[-1]}")
            return future
        known = self._expected()
        kept = known[known > calendar[-1]]
        if len(kept) >= future_bars:
            return kept
        # Some of those to come may be holidays that the kept ones leave out.
        count = future_bars * 2 if len(kept) else future_bars
        ahead, note = times_ahead(pd.DataFrame({"date": calendar}), calendar, self.freq, count)
        if note and not len(kept):
            self.notes.append(note)
        later = ahead[ahead > kept[-1]] if len(kept) else ahead
        return pd.DatetimeIndex(kept.append(later)[:future_bars])

    def _expected(self) -> pd.DatetimeIndex:
        """The times that the folder's own calendar announces after its last bar."""
        if not (self.target / "calendars" / f"{self.freq}_future.txt").is_file():
            return pd.DatetimeIndex([])
        known = pd.DatetimeIndex(stored_calendar(self.target, self.freq, future=True))
        return known[known > self.before[-1]]

    def _lot(self, names: Sequence[str]) -> int:
        """Shares per unit of volume, by what is stored.

        Raises:
            BarDataError: the given bars count in another unit.
        """
        ratios: list[npt.NDArray[np.float64]] = []
        step = max(1, len(names) // LOT_NAMES)
        for name in names[::step]:
            parts = [self.files.field(name, field) for field in ("$amount", "$volume", "$close")]
            if None in parts:
                continue
            amount, volume, price = (
                part[1][-LOT_BARS:].astype(np.float64) for part in parts if part is not None
            )
            length = min(map(len, (amount, volume, price)))
            with np.errstate(divide="ignore", invalid="ignore"):
                own = amount[-length:] / volume[-length:] / price[-length:]
            ratios.append(own[np.isfinite(own) & (own > 0)])
        found = np.concatenate(ratios) if ratios else np.empty(0)
        given = measure_lot(self.table)
        traded = ((self.table["volume"] > 0) & (self.table["amount"] > 0)).sum()
        if not len(found):
            return given
        stored = int(10 ** min(6, max(0, round(float(np.log10(np.median(found)))))))
        if given != stored and traded >= LEAST_MEASURED:
            raise BarDataError(
                f"the bars count volume in lots of {given} and {self.target} in lots of {stored}, "
                "by amount / volume / close: bring them to the folder's unit"
            )
        return stored

    def _go_on_with_mean(self, draft: Path, name: str) -> None:
        """The equal-weight mean from the first bar that is new or changed."""
        stored = self.files.field(name, "$close")
        if stored is None:
            raise ConfigError(
                f"the benchmark {name} is neither in the bars nor in {self.target}: name an "
                "instrument that is there, or none"
            )
        begin, closes = stored
        places = self.moved[begin : begin + len(closes)]
        since = min(self.first_written, len(self.calendar))
        if since >= len(self.calendar) and places[-1] + 1 >= len(self.calendar):
            return
        names = [*self.members, *(one for one in self.entered if one not in self.members)]
        names = [one for one in names if one != name]
        wanted = [f"${each}" for each in NUMBERS]
        files = FeatureFiles(draft, self.freq, wanted, self.calendar)
        parts = []
        for symbol, own, values in files.read(names, (0, len(self.calendar))):
            there = np.isfinite(values[:, NUMBERS.index("close")])
            own, values = own[there], values[there].astype(np.float64)
            first = max(0, int(np.searchsorted(own, since)) - 1)
            frame = pd.DataFrame(values[first:], columns=list(NUMBERS))
            parts.append(
                frame.assign(symbol=symbol, place=own[first:], date=self.calendar[own[first:]])
            )
        bars = pd.concat(parts, ignore_index=True)
        old = np.flatnonzero(places < since)
        if len(old):
            before = bars.groupby("symbol")["close"].shift()
            rows = (bars["place"] >= since).to_numpy()
            start = float(closes[old[-1]])
            mean = equal_weight(bars[rows], before[rows], name, self.lot, start)
        else:
            start = BENCHMARK_START
            mean = first_mean(bars, name, self.lot)
        mean["vwap"], _ = vwap_of(mean, self.lot)
        mean["change"] = mean["close"] / mean["close"].shift(fill_value=start) - 1.0
        if not len(old):
            mean.loc[0, "change"] = np.nan
        new = np.searchsorted(self.calendar, mean["date"].to_numpy("datetime64[ns]"))
        first = int(places[0]) if len(old) else int(new[0])
        for field in self._files_of(name) or FIELDS:
            dense = np.full(int(new[-1]) + 1 - first, np.nan, dtype=np.float32)
            part = self.files.field(name, f"${field}")
            if part is not None and len(old):
                own = self.moved[part[0] : part[0] + len(part[1])]
                dense[own[own < since] - first] = part[1][own < since]
            if field in mean:
                dense[new - first] = mean[field].to_numpy(np.float32)
            write_feature(draft, self.freq, name, field, first, dense)
