"""WindowDataset: a table of bars and named segments, to windows. Knows no Qlib."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Real
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.data.calendar.stamps import Times, check_beyond, next_times, stamps_of
from kronos_qlib.data.calendar.steps import as_days, step_notes
from kronos_qlib.data.files.advice import advise, describe_advice
from kronos_qlib.data.files.check import check_bars, describe_report, errors_of
from kronos_qlib.data.files.read import read_bars
from kronos_qlib.data.files.repair import repair_bars
from kronos_qlib.data.rules import JUMP
from kronos_qlib.data.windows.bar_table import BarTable
from kronos_qlib.data.windows.faulty_bars import Floats
from kronos_qlib.data.windows.find import Spans, windows_to_score, windows_to_train
from kronos_qlib.data.windows.label import Label, ReturnLabel
from kronos_qlib.data.windows.segments import (
    Bounds,
    Moment,
    Segment,
    bounds_of,
    describe_segments,
    first_instant,
    last_instant,
    split_by_share,
)
from kronos_qlib.data.windows.window import Windows
from kronos_qlib.errors import BarDataError, ConfigError

logger = logging.getLogger(__name__)


class FeatureColumns(Protocol):
    """Numbers beside the bars, such as news or fundamentals, as they were known at each bar."""

    def check(self, names: Sequence[str]) -> None:
        """
        Raises:
            ConfigError: a name is not to be had, or reads bars after its own.
        """

    def of(self, windows: Windows, names: Sequence[str]) -> Floats:
        """(N, F) float32 of windows at their last bar; NaN where a value is not known."""


@dataclass(frozen=True, eq=False, kw_only=True)
class WindowDataset:
    """Segments to windows of real bars in a row.

    A window belongs to the day of its last bar, if the instrument is in the universe that day.
    For training, a window and its horizon lie within the segment's end, and only bars inside the
    segment are targets, so segments share none (see `windows_to_train`).
    """

    table: BarTable
    """Bars of all instruments."""
    segments: Mapping[str, Bounds]
    """Name to (first, last), both inclusive; None leaves an end open."""
    lookback: int = 90
    """Bars a window sees; with `min_bars`, at most."""
    horizon: int = 10
    """Bars to forecast."""
    min_bars: int | None = None
    """Bars a window needs; None: exactly `lookback`."""
    max_age_days: int | None = None
    """Calendar days a window's oldest bar may lie before its last; None for any."""
    spans: Spans | None = None
    """When each instrument is in the universe; None: always."""
    calendar: Times | None = None
    """(K,) moments of the exchange, reaching into the future; None takes the bars' own."""
    begin: Moment | None = None
    """No window ends before it, whatever a segment says; None: the bars'."""
    end: Moment | None = None
    """No window ends after it, nor does a horizon to train on; None: the bars'."""
    label: Label = field(default_factory=ReturnLabel)
    """What an alpha head learns to predict."""
    features: FeatureColumns | None = None
    """Where an alpha head's setting `features` finds its columns; None: there are none."""
    notes: tuple[str, ...] = ()
    """What was derived, assumed, left out, repaired or doubted when a file was read."""
    beyond_calendar: str = "error"
    """Where the calendar ends: "error"; an exchange's code such as "XSHG"; "pattern", to go on at
    its weekdays and times of day; or "weekdays", where it has nothing else."""

    def __post_init__(self) -> None:
        if self.lookback < 2 or self.horizon < 1:
            raise ConfigError(
                "a window needs lookback >= 2 and horizon >= 1, got "
                f"{self.lookback} and {self.horizon}"
            )
        if self.min_bars is not None and not 2 <= self.min_bars <= self.lookback:
            raise ConfigError(
                f"min_bars must lie from 2 to the lookback of {self.lookback}, got {self.min_bars}"
            )
        if self.max_age_days is not None and self.max_age_days < 1:
            raise ConfigError(f"max_age_days must be at least 1, got {self.max_age_days}")
        check_beyond(self.beyond_calendar)

    def __repr__(self) -> str:
        return (
            f"WindowDataset({self.table!r}, lookback={self.lookback}, horizon={self.horizon}, "
            f"{describe_segments(self.segments)})"
        )

    @classmethod
    def from_file(
        cls,
        source: str | Path | pd.DataFrame,
        segments: Mapping[str, Any],
        *,
        symbol: str | None = None,
        columns: Mapping[str, str] | None = None,
        encoding: str = "utf-8",
        delimiter: str | None = None,
        zone: str | None = None,
        date_order: str = "ymd",
        decimal: str | None = None,
        repair: Iterable[str] = (),
        **settings: Any,
    ) -> WindowDataset:
        """The windows of one's own bars, without any Qlib folder.

        Args:
            source: a CSV, Parquet or Feather file, a folder of them, or a frame; see `read_bars`.
            segments: name to (first, last), or to a share of the bars' times: {"train": 0.8,
                "valid": 0.2} cuts them in that order.
            symbol: the one instrument of a file or frame without a symbol column.
            columns: our name to the file's, where it is not recognised.
            encoding, delimiter: of CSV files; see `read_bars`.
            zone, date_order, decimal: how times and numbers are written; see `read_bars`.
            repair: names in `repair.REPAIRS` to apply; what they change is logged.
            settings: the fields of this class.

        Raises:
            BarDataError: the file cannot be read, or bars break a rule of `check_bars`.
            ConfigError: a setting cannot work.
        """
        known = [one.name for one in fields(cls) if one.name not in ("table", "segments", "notes")]
        for key in settings:
            if key not in known:
                raise ConfigError(f"WindowDataset has no setting {key!r}; {', '.join(known)}")
        name = "the frame" if isinstance(source, pd.DataFrame) else str(source)
        read = read_bars(
            source,
            columns=columns,
            symbol=symbol,
            encoding=encoding,
            delimiter=delimiter,
            zone=zone,
            date_order=date_order,
            decimal=decimal,
            as_is=True,
        )
        bars, record = repair_bars(read.bars, repair)
        bars, stamped = _one_time_a_day(bars)
        report = check_bars(bars, find_gaps=False)
        notes = [f"{name}: {note}" for note in (*read.notes, *step_notes(bars))]
        if stamped:
            notes.append(f"{name}: {stamped}")
        if len(record):
            notes.append(f"{name} was repaired:\n{describe_report(record)}")
        if len(doubts := report[report["severity"] == "warning"]):
            split = "an unadjusted split would be learned as a crash (repair 'split-jumps')"
            notes.append(
                f"{name}: {len(doubts)} bars look wrong"
                f"{f'; {split}' if (doubts['rule'] == JUMP).any() else ''}\n"
                f"{describe_report(doubts)}\n{describe_advice(advise(bars, doubts), 'repair ')}"
            )
        for note in notes:  # a script that asks for no logging sees warnings
            logger.warning(note)
        if len(errors := errors_of(report)):
            raise BarDataError(
                f"{name}: {len(errors)} errors; `kronos-qlib data check` lists them, `repair` "
                f"fixes those that have one\n{describe_report(errors)}\n"
                f"{describe_advice(advise(bars, errors), 'repair ')}"
            )
        table = BarTable.from_bars(bars)
        if left_out := table.describe_left_out():
            notes.append(f"{name}: {left_out}")
            logger.warning(notes[-1])
        if any(isinstance(share, Real) for share in segments.values()):
            segments = split_by_share(table.calendar, segments)
        return cls(table=table, segments=dict(segments), notes=tuple(notes), **settings)

    def windows(self, segment: Segment = "test") -> Windows:
        """Windows to score: those whose last bar lies in the segment. Needs no later bar."""
        first, last = self.bounds(segment)
        return windows_to_score(self.table, first=first, last=last, **self._which())

    def training_windows(self, segment: Segment = "train") -> Windows:
        """Windows to train on: those whose horizon lies in the segment, with that horizon."""
        first, last = self.bounds(segment)
        return windows_to_train(
            self.table, horizon=self.horizon, first=first, last=last, **self._which()
        )

    def labelled_windows(self, segment: Segment = "train", ahead: int | None = None) -> Windows:
        """Windows to learn or to judge a signal by: those whose label is known in the segment.

        Without its last days, whose labels are the returns of days after it: the purge.

        Args:
            ahead: times of the calendar until all is known that is learned of a window; None: as
                the label has it.
        """
        first, last = self.bounds(segment)
        ahead = self.label.ahead if ahead is None else ahead
        return windows_to_score(
            self.table, first=first, last=last, leave_out=ahead, **self._which()
        )

    def check_features(self, names: Sequence[str]) -> None:
        """Refuse columns for an alpha head that are not to be had.

        Raises:
            ConfigError: names the column.
        """
        from kronos_qlib.data.windows.scale_features import SCALE_FEATURES  # and with it scipy

        if not names:
            return
        if self.features is None:
            raise ConfigError(
                f"features names {names[0]!r}, and these windows are of bars alone: a "
                "KronosDataset reads a handler's columns and Qlib's expressions, and a "
                "WindowDataset takes an object `features` that has them"
            )
        self.features.check(names)
        if twice := [name for name in names if name in SCALE_FEATURES]:
            raise ConfigError(
                f"features: {twice[0]!r} is what one of a head's scale features is called, which "
                "are of the bars; give the column another name in its handler"
            )

    def feature_values(self, windows: Windows, names: Sequence[str]) -> Floats:
        """(N, F) float32 columns of windows, NaN where a value is not known.

        Raises:
            ConfigError: as of `check_features`.
        """
        if not names:
            return np.empty((len(windows), 0), dtype=np.float32)
        self.check_features(names)
        assert self.features is not None
        return self.features.of(windows, names)

    def _which(self) -> dict[str, Any]:
        """What decides, in any segment, which windows there are."""
        names = ("lookback", "min_bars", "max_age_days", "spans")
        return {name: getattr(self, name) for name in names}

    def future_times(self, windows: Windows) -> Times:
        """(N, horizon) datetime64[ns] of the bars that the exchange's calendar puts next.

        Not those of the bars that came: a later suspension of the instrument was not known then.
        Within the data the calendar is the exchange's as it came to be, holidays included.

        Raises:
            CalendarError: the calendar ends too early, and `beyond_calendar` is "error" or knows
                no more.
        """
        calendar = self.table.calendar if self.calendar is None else self.calendar
        ends, which = np.unique(windows.times, return_inverse=True)
        ahead = next_times(calendar, ends, self.horizon, self.beyond_calendar)
        return np.asarray(ahead[which])

    def future_stamps(self, windows: Windows) -> npt.NDArray[np.int64]:
        """(N, horizon, 5) time fields of `future_times`."""
        return stamps_of(self.future_times(windows))

    def bounds(self, segment: Segment) -> Bounds:
        """First and last moment of a segment, by name, slice or pair, within `begin` and `end`."""
        first, last = bounds_of(self.segments, segment)
        if self.begin is not None and (
            first is None or first_instant(first) < first_instant(self.begin)
        ):
            first = self.begin
        calendar = self.table.calendar
        if self.end is not None and (
            last is None or last_instant(last, calendar) > last_instant(self.end, calendar)
        ):
            last = self.end
        return first, last


def no_windows(source: WindowDataset, segment: Segment, dropped: Mapping[str, int]) -> str:
    """Why there is nothing to score, for an error."""
    first, last = source.bounds(segment)
    places = source.table.places
    reach = source.table.calendar[[places.min(), places.max()]].astype("datetime64[D]")
    return (
        f"no instrument of the universe has {source.min_bars or source.lookback} bars up to a day "
        f"from {first} to {last}{describe_dropped(dropped)}; the bars go from {reach[0]} to "
        f"{reach[1]}: move the segment, shorten the lookback, or (in Qlib) widen the handler's "
        "start_time and end_time"
    )


def describe_dropped(dropped: Mapping[str, int]) -> str:
    """What became of the other candidates, for the log."""
    if not dropped:
        return ""
    return " (none for " + ", ".join(f"{count}: {why}" for why, count in dropped.items()) + ")"


def _one_time_a_day(bars: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Daily bars that bear several times a day, without them: the calendar is one of days."""
    times = bars["date"].drop_duplicates()
    if not times.dt.normalize().duplicated().any():
        return bars, ""  # one time, such as 15:00, stays as it is
    return as_days(bars)
