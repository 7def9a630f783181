"""WindowDataset: a table of bars and named segments, to windows. Knows no Qlib."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.data.bars import check_bars, describe_report
from kronos_qlib.data.calendar import Times, check_beyond, next_times, stamps_of
from kronos_qlib.data.repairs import REPAIRS, repair_bars
from kronos_qlib.data.table import BarTable
from kronos_qlib.data.tables import read_bars
from kronos_qlib.data.windows import Spans, Windows, windows_to_score, windows_to_train
from kronos_qlib.errors import BarDataError, ConfigError

logger = logging.getLogger(__name__)

Segment = str | slice | tuple[Any, Any]
"""A segment's name, or its first and last moment."""


@dataclass(frozen=True, eq=False, kw_only=True)
class WindowDataset:
    """Segments to windows of real bars in a row.

    A window belongs to the day of its last bar, if the instrument is in the universe that day.
    For training, a window and its horizon lie within the segment's end, and only bars inside the
    segment are targets, so segments share none (see `windows_to_train`).
    """

    table: BarTable
    segments: Mapping[str, tuple[Any, Any]]
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
    beyond_calendar: str = "error"
    """Where the calendar ends: "error", "weekdays", or an exchange's code such as "XSHG"."""

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
            repair: names in `repairs.REPAIRS` to apply; what they change is logged.
            settings: the fields of this class.

        Raises:
            BarDataError: the file cannot be read, or bars break a rule of `check_bars`.
            ConfigError: a setting cannot work.
        """
        name = "the frame" if isinstance(source, pd.DataFrame) else str(source)
        bars = read_bars(
            source,
            columns=columns,
            symbol=symbol,
            encoding=encoding,
            delimiter=delimiter,
            as_is=True,
        ).bars
        bars, record = repair_bars(bars, repair)
        if len(record):
            logger.warning("%s was repaired:\n%s", name, describe_report(record))
        report = check_bars(bars, max_move=None, find_gaps=False)
        # Scattered rows are no harm: a table of windows sorts them.
        errors = report[(report["severity"] == "error") & (report["rule"] != "order")]
        if len(errors):
            raise BarDataError(
                f"{name}: {len(errors)} errors; data_prep/check_bars.py lists them, `repair` mends "
                f"what it names ({', '.join(REPAIRS)})\n{describe_report(errors)}"
            )
        known = [one.name for one in fields(cls) if one.name not in ("table", "segments")]
        for key in settings:
            if key not in known:
                raise ConfigError(f"WindowDataset has no setting {key!r}; {', '.join(known)}")
        table = BarTable.from_bars(bars)
        if any(isinstance(share, (int, float)) for share in segments.values()):
            segments = split_by_share(table.calendar, segments)
        return cls(table=table, segments=dict(segments), **settings)

    def windows(self, segment: Segment = "test") -> Windows:
        """Windows to score: those whose last bar lies in the segment. Needs no later bar."""
        first, last = self.bounds(segment)
        return windows_to_score(
            self.table,
            self.lookback,
            first,
            last,
            self.spans,
            self.max_age_days,
            self.min_bars,
        )

    def training_windows(self, segment: Segment = "train") -> Windows:
        """Windows to train on: those whose horizon lies in the segment, with that horizon."""
        first, last = self.bounds(segment)
        return windows_to_train(
            self.table,
            self.lookback,
            self.horizon,
            first,
            last,
            self.spans,
            self.max_age_days,
            self.min_bars,
        )

    def future_times(self, windows: Windows) -> Times:
        """(N, horizon) datetime64[ns] of the bars that the exchange's calendar puts next.

        Not those of the bars that came: an instrument may have been suspended, which nobody knew.
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

    def bounds(self, segment: Segment) -> tuple[Any, Any]:
        """First and last moment of a segment, by name, slice or pair."""
        return bounds_of(self.segments, segment)


def bounds_of(segments: Mapping[str, Any], segment: Segment) -> tuple[Any, Any]:
    """First and last moment of a segment, by name, slice or pair.

    Raises:
        ConfigError: no segment has that name.
    """
    chosen: Any = segment
    if isinstance(segment, str):
        if segment not in segments:
            raise ConfigError(f"no segment {segment!r}; there are {', '.join(segments) or 'none'}")
        chosen = segments[segment]
    if isinstance(chosen, slice):
        return chosen.start, chosen.stop
    first, last = chosen
    return first, last


def split_by_share(calendar: Times, shares: Mapping[str, float]) -> dict[str, tuple[Any, Any]]:
    """Segments that follow one another, each with its share of the calendar's times.

    Raises:
        ConfigError: shares are not positive or exceed 1 together, or a segment has no time.
    """
    total = sum(shares.values())
    if any(share <= 0 for share in shares.values()) or total > 1 + 1e-9:
        raise ConfigError(f"shares must be positive and not exceed 1 together, got {dict(shares)}")
    segments: dict[str, tuple[Any, Any]] = {}
    done, start = 0.0, 0
    for name, share in shares.items():
        done += share
        stop = round(done * len(calendar))
        if stop <= start:
            raise ConfigError(f"the share {share} of {len(calendar)} times leaves {name!r} none")
        segments[name] = (pd.Timestamp(calendar[start]), pd.Timestamp(calendar[stop - 1]))
        start = stop
    return segments
