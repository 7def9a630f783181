"""KronosHandler and KronosDataset: from Qlib storage to windows, point in time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from qlib.data import D
from qlib.data.dataset import DatasetH
from qlib.data.dataset.handler import DataHandlerLP
from qlib.log import get_module_logger

from kronos_qlib.data.calendar import BeyondCalendar, next_times, stamps_of
from kronos_qlib.data.windows import (
    BarTable,
    Spans,
    Windows,
    windows_to_score,
    windows_to_train,
)
from kronos_qlib.errors import BarDataError, ConfigError
from kronos_qlib.schema import BAR_COLUMNS, PRICE_COLUMNS

logger = get_module_logger(__name__)  # Qlib shows its own loggers only

NEXT_DAY_RETURN = "Ref($close, -2) / Ref($close, -1) - 1"
"""Qlib's usual label: from the next close, where one can trade, to the close after."""


class KronosHandler(DataHandlerLP):
    """An instrument's bars and its label, read from Qlib storage.

    Bars are read as they are stored, by Qlib's convention: prices adjusted (raw x factor),
    volume adjusted (raw / factor), amount in money as traded. A suspended day (no prices) is no
    bar. The frame that `fetch` returns holds bars in col_set "feature" and the label in "label",
    for the instruments in the universe at that time; windows may reach further back. It takes no
    processors: a window is normalised by its own lookback, in the model.

    Args:
        instruments: a market's name, a Qlib stock pool, or a list of instruments.
        start_time, end_time: what `fetch` covers; None leaves it open.
        freq: "day", "1min", ...
        label: a Qlib expression.
        history_days: calendar days before `start_time` that windows may reach into. None reads
            all there is, so that a window of an instrument long suspended is complete.

    Raises:
        BarDataError: the universe is empty, or a bar is incomplete (names instrument and time).
    """

    def __init__(
        self,
        instruments: str | Mapping[str, Any] | list[str] = "all",
        start_time: Any = None,
        end_time: Any = None,
        freq: str = "day",
        label: str = NEXT_DAY_RETURN,
        history_days: int | None = None,
    ) -> None:
        self.freq = freq
        self.label = label
        self.history_days = history_days
        loader = {
            "class": "QlibDataLoader",
            "kwargs": {
                "config": {
                    "feature": ([f"${name}" for name in BAR_COLUMNS], list(BAR_COLUMNS)),
                    "label": ([label], ["LABEL0"]),
                },
                "freq": freq,
            },
        }
        super().__init__(
            instruments=instruments,
            start_time=start_time,
            end_time=end_time,
            data_loader=loader,
        )

    def setup_data(self, *args: Any, **kwargs: Any) -> None:
        super().setup_data(*args, **kwargs)
        self._bars: BarTable | None = None
        self._spans: Spans | None = None

    @property
    def bars(self) -> BarTable:
        """Bars of the universe's instruments, those before they joined it too."""
        if getattr(self, "_bars", None) is None:
            self._bars = self._read_bars()
        assert self._bars is not None
        return self._bars

    @property
    def spans(self) -> Spans | None:
        """When each instrument is in the universe; None for a plain list: always."""
        if getattr(self, "_spans", None) is None and not isinstance(
            self.instruments, (list, tuple)
        ):
            self._spans = D.list_instruments(self._pool(), freq=self.freq, as_list=False)
        return getattr(self, "_spans", None)

    def _pool(self) -> Any:
        if isinstance(self.instruments, str):
            return D.instruments(self.instruments)
        return self.instruments

    def _read_bars(self) -> BarTable:
        spans = self.spans
        names = sorted(self.instruments if spans is None else spans)
        if not names:
            raise BarDataError(f"the universe {self.instruments!r} has no instruments")
        first = self.start_time
        if first is not None and self.history_days is not None:
            first = pd.Timestamp(first) - pd.Timedelta(days=self.history_days)
        elif self.history_days is None:
            first = None
        # A list of names, not the market: Qlib would cut each history where the span begins.
        frame = D.features(
            names, [f"${name}" for name in BAR_COLUMNS], first, self.end_time, freq=self.freq
        )
        frame.columns = list(BAR_COLUMNS)
        return BarTable.from_frame(_fill_absent_columns(frame))


class KronosDataset(DatasetH):
    """Segments to windows of `lookback` bars, each an instrument's real bars in a row.

    A window belongs to the day of its last bar, if the instrument is in the universe that day.
    For training, a window and its horizon lie within the segment's end, and only bars inside the
    segment are targets, so segments share none (see `windows_to_train`).

    `prepare` is Qlib's: frames of col_set "feature" and "label" from the handler.

    Args:
        handler: a `KronosHandler` or its config.
        segments: name to (first, last), both inclusive.
        lookback: bars a window needs. horizon: bars to forecast.
        max_age_days: calendar days a window's oldest bar may lie before its last; None for any.
        beyond_calendar: "error", or "weekdays" to go on with Mondays to Fridays where Qlib's
            future calendar ends.
    """

    def __init__(
        self,
        handler: KronosHandler | Mapping[str, Any],
        segments: Mapping[str, Any],
        lookback: int = 90,
        horizon: int = 10,
        max_age_days: int | None = None,
        beyond_calendar: BeyondCalendar = "error",
    ) -> None:
        if lookback < 2 or horizon < 1:
            raise ConfigError(
                f"a window needs lookback >= 2 and horizon >= 1, got {lookback} and {horizon}"
            )
        if beyond_calendar not in ("error", "weekdays"):
            raise ConfigError(
                f"beyond_calendar must be 'error' or 'weekdays', got {beyond_calendar!r}"
            )
        self.lookback = lookback
        self.horizon = horizon
        self.max_age_days = max_age_days
        self.beyond_calendar = beyond_calendar
        super().__init__(handler=handler, segments=dict(segments))
        if not isinstance(self.handler, KronosHandler):
            raise ConfigError(
                f"KronosDataset needs a KronosHandler, got {type(self.handler).__name__}"
            )

    def windows(self, segment: str | slice | tuple[Any, Any] = "test") -> Windows:
        """Windows to score: those whose last bar lies in the segment. Needs no later bar."""
        first, last = self.bounds(segment)
        return windows_to_score(
            self.handler.bars,
            self.lookback,
            first,
            last,
            self.handler.spans,
            self.max_age_days,
        )

    def training_windows(self, segment: str | slice | tuple[Any, Any] = "train") -> Windows:
        """Windows to train on: those whose horizon lies in the segment, with that horizon."""
        first, last = self.bounds(segment)
        return windows_to_train(
            self.handler.bars,
            self.lookback,
            self.horizon,
            first,
            last,
            self.handler.spans,
            self.max_age_days,
        )

    def future_stamps(self, windows: Windows) -> npt.NDArray[np.int64]:
        """(N, horizon, 5) time fields of the bars that the exchange's calendar puts next.

        Not those of the bars that came: an instrument may have been suspended, which nobody knew.
        Within the data the calendar is the exchange's as it came to be, holidays included; past
        its end it is what `<freq>_future.txt` says.

        Raises:
            CalendarError: Qlib's future calendar ends too early.
        """
        calendar = np.asarray(
            D.calendar(freq=self.handler.freq, future=True), dtype="datetime64[ns]"
        )
        ends = windows.table.times[windows.ends]
        return stamps_of(next_times(calendar, ends, self.horizon, self.beyond_calendar))

    def bounds(self, segment: str | slice | tuple[Any, Any]) -> tuple[Any, Any]:
        """First and last moment of a segment, by name, slice or pair."""
        chosen: Any = segment
        if isinstance(segment, str):
            if segment not in self.segments:
                raise ConfigError(
                    f"no segment {segment!r}; there are {', '.join(self.segments) or 'none'}"
                )
            chosen = self.segments[segment]
        if isinstance(chosen, slice):
            return chosen.start, chosen.stop
        first, last = chosen
        return first, last


def _fill_absent_columns(frame: pd.DataFrame) -> pd.DataFrame:
    """Volume as zeros, amount as volume x mean price, where the storage has no such field."""
    for name in ("volume", "amount"):
        if len(frame) and frame[name].isna().all():
            if name == "volume":
                filled = pd.Series(0.0, index=frame.index)
                how = "zeros"
            else:
                filled = frame["volume"] * frame[list(PRICE_COLUMNS)].mean(axis=1)
                how = "volume x the mean of the four prices"
            logger.warning(f"the storage has no ${name}: taken as {how}")
            frame = frame.assign(**{name: filled})
    return frame
