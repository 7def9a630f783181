"""KronosHandler and KronosDataset: from Qlib storage to windows, point in time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from qlib.data import D
from qlib.data.dataset import DatasetH
from qlib.data.dataset.handler import DataHandler, DataHandlerLP
from qlib.utils.time import Freq

from kronos_qlib.data.calendar.stamps import Times
from kronos_qlib.data.windows.bar_table import BarTable
from kronos_qlib.data.windows.faulty_bars import (
    Incomplete,
    Invalid,
    LeftOut,
    Untraded,
    check_choices,
)
from kronos_qlib.data.windows.find import Spans
from kronos_qlib.data.windows.segments import Segment, describe_segments, last_instant
from kronos_qlib.data.windows.window import Windows
from kronos_qlib.data.windows.window_dataset import WindowDataset
from kronos_qlib.errors import BarDataError, ConfigError
from kronos_qlib.plugin.provider.expression_label import ExpressionLabel
from kronos_qlib.plugin.provider.handler_columns import HandlerColumns, label_written_in
from kronos_qlib.plugin.provider.mapped_bars import read_mapped
from kronos_qlib.plugin.provider.reader import (
    STORED,
    read_calendar,
    read_spans,
    read_table,
)
from kronos_qlib.plugin.qlib_internals import market_read_anew
from kronos_qlib.schema import BAR_COLUMNS

FRAMES = tuple(DataHandlerLP.ATTR_MAP.values())
"""Where Qlib keeps the frames of a handler: as loaded, to infer from, to learn from."""

NEXT_DAY_RETURN = "Ref($close, -2) / Ref($close, -1) - 1"
"""Qlib's usual label: from the next close, where one can trade, to the close after."""


class KronosHandler(DataHandlerLP):
    """An instrument's bars and its label, read from Qlib storage when they are first asked for.

    Bars are read as they are stored, by Qlib's convention: prices adjusted (raw x factor), volume
    adjusted (raw / factor), so that neither jumps at a split and their product stays money;
    amount in money as traded. Forward-adjusted prices are rescaled when a later split comes; a
    window is not, being normalised by its own lookback. A suspended day (no prices) is no bar.

    `bars` is for windows: read straight from the provider's files where they are local. The frame
    that `fetch` returns holds bars in col_set "feature" and the label in "label", by Qlib's own
    loader, for the instruments in the universe at that time; windows may reach further back. It
    takes no processors: a window is normalised by its own lookback, in the model.

    Args:
        instruments: a market's name, a Qlib stock pool, or a list of instruments.
        start_time, end_time: what `fetch` covers, and between which windows end; None leaves it
            open. A bare date covers its whole day, of minute bars too.
        freq: "day", "1min", "5min".
        label: a Qlib expression.
        history_days: calendar days before `start_time` that windows may reach into. None reads
            all there is, so that a window of an instrument long suspended is complete.
        fields: where columns come from if not from the field of their name, as fields or Qlib
            expressions: {"amount": "$volume * $vwap"}. With an expression all bars are read
            through `D.features`, some 40 times slower.
        raw_volume: multiply volume by $factor: the shares that changed hands, with a jump at
            every split.
        incomplete: a bar that has some values and lacks others is an "error", or is left out as
            if suspended ("skip"), with a count in the log.
        invalid: the same of a bar whose numbers cannot be: a price of 0 or less, high below low,
            high and low that do not span open and close, a negative volume or amount; "keep" takes
            the numbers as they are.
        untraded: a bar that the feed wrote though nothing traded (see `rules.is_untraded`) is left
            out as a suspended day is ("skip"), is an "error", or is taken as a bar ("keep").
        table: folder of a table that `kronos-qlib data table` built of the same instruments, span
            and settings. Windows then read the bars from its files, by memory map, and are the
            same to the bit. Refused where the Qlib folder has other bars by now. None reads the
            Qlib folder into memory.

    Raises:
        BarDataError: when bars are read: the universe is empty, or a bar breaks a rule (names
            instrument and time).
        ConfigError: a setting cannot work.
    """

    def __init__(
        self,
        instruments: str | Mapping[str, Any] | list[str] = "all",
        start_time: Any = None,
        end_time: Any = None,
        freq: str = "day",
        label: str = NEXT_DAY_RETURN,
        history_days: int | None = None,
        fields: Mapping[str, str] | None = None,
        raw_volume: bool = False,
        incomplete: Incomplete = "error",
        invalid: Invalid = "error",
        untraded: Untraded = "skip",
        table: str | None = None,
    ) -> None:
        strange = sorted(set(fields or {}) - set(BAR_COLUMNS))
        if strange:
            raise ConfigError(
                f"fields: a bar has no {', '.join(strange)}; it has {', '.join(BAR_COLUMNS)}"
            )
        check_choices(incomplete=incomplete, invalid=invalid, untraded=untraded)
        self.freq = freq
        self.label = label
        self.history_days = history_days
        self.fields = {**STORED, **(fields or {})}
        self.raw_volume = raw_volume
        self.incomplete = incomplete
        self.invalid = invalid
        self.untraded = untraded
        self.table = table
        loader = {
            "class": "QlibDataLoader",
            "kwargs": {
                "config": {
                    "feature": (list(self._columns().values()), list(BAR_COLUMNS)),
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
            init_data=False,
        )
        self.setup_data()

    def setup_data(self, init_type: str = DataHandlerLP.IT_FIT_SEQ, **kwargs: Any) -> None:
        """Forget what was read; bars and frame are read again when asked for.

        Qlib calls this after `config` has moved the handler's times. Reading late, a model that
        uses windows alone never waits for Qlib's loader.
        """
        for name in FRAMES:
            self.__dict__.pop(name, None)
        self._bars: BarTable | None = None
        self._spans: Spans | None = None
        self._calendar: Times | None = None
        self._bounds: tuple[Any, Any] | None = None
        self._setup: dict[str, Any] = {"init_type": init_type, **kwargs}

    def __getattr__(self, name: str) -> Any:
        """The frames behind `fetch`, which Qlib finds under these names, read when first used."""
        if name not in FRAMES:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        bare_end: Any = self.__dict__["end_time"]
        try:
            # To Qlib a bare date ends minute bars at its midnight.
            self.end_time = whole_day(bare_end, self.freq)
            with market_read_anew(self.instruments):
                super().setup_data(**self.__dict__.get("_setup", {}))  # not in every pickle
        finally:
            self.end_time = bare_end
        return self.__dict__[name]

    def fetch(self, selector: Any = slice(None, None), *args: Any, **kwargs: Any) -> Any:
        """Qlib's, but a bare date ends minute bars with its day.

        SignalRecord reads labels past `KronosDataset._prepare_seg`, as of a plain DatasetH.
        """
        if isinstance(selector, (tuple, list)) and len(selector) == 2:
            selector = slice(*selector)
        if isinstance(selector, slice):
            selector = slice(selector.start, whole_day(selector.stop, self.freq))
        return super().fetch(selector, *args, **kwargs)

    @property
    def bars(self) -> BarTable:
        """Bars of the universe's instruments, those before they joined it too."""
        if getattr(self, "_bars", None) is None:
            with _no_missing_attributes():
                self._bars = self._read_bars()
            self._bounds = (self.start_time, self.end_time)
        assert self._bars is not None
        return self._bars

    @property
    def bounds(self) -> tuple[Any, Any]:
        """start_time and end_time as they were when the bars were read."""
        return getattr(self, "_bounds", None) or (self.start_time, self.end_time)

    @property
    def spans(self) -> Spans | None:
        """When each instrument is in the universe; None for a plain list: always."""
        if getattr(self, "_spans", None) is None:
            with _no_missing_attributes():
                self._spans = read_spans(self.instruments, self.freq)
        return self._spans

    @property
    def calendar(self) -> Times:
        """Moments of the exchange, as far into the future as the storage knows them."""
        if getattr(self, "_calendar", None) is None:
            with _no_missing_attributes():
                self._calendar = read_calendar(self.freq, future=True)
        assert self._calendar is not None
        return self._calendar

    def _read_bars(self) -> BarTable:
        spans = self.spans
        names = sorted(self.instruments if spans is None else spans)
        if not names:
            raise BarDataError(f"the universe {self.instruments!r} has no instruments")
        first = None
        if self.start_time is not None and self.history_days is not None:
            first = pd.Timestamp(self.start_time) - pd.Timedelta(days=self.history_days)
        # Not in a pickle that is older than the settings.
        table = getattr(self, "table", None)
        read = read_table if table is None else partial(read_mapped, table)
        return read(
            names,
            self.freq,
            fields=self.fields,
            raw_volume=self.raw_volume,
            first=first,
            last=self.end_time,
            incomplete=self.incomplete,
            invalid=getattr(self, "invalid", "error"),
            untraded=getattr(self, "untraded", "skip"),
        )

    def _columns(self) -> dict[str, str]:
        """Qlib's expression for each column of a bar."""
        volume = self.fields["volume"]
        return {**self.fields, "volume": f"({volume}) * $factor" if self.raw_volume else volume}


class KronosDataset(DatasetH):
    """A Qlib dataset that also has windows: see `WindowDataset`, which makes them.

    `prepare` is Qlib's: frames from the handler. Any handler will do, so that one dataset and one
    run serve Kronos and a model of tables: with Alpha158, `prepare` returns Alpha158's features
    and label, and windows are of the same instruments' bars.

    Args:
        handler: a `KronosHandler` or its config, or any other handler or its config.
        segments: name to (first, last), both inclusive.
        lookback: bars a window sees; with `min_bars`, at most.
        horizon: bars to forecast.
        min_bars: bars a window needs; None: exactly `lookback`.
        max_age_days: calendar days a window's oldest bar may lie before its last; None for any.
        beyond_calendar: where Qlib's future calendar ends: "error"; an exchange's code such as
            "XSHG", to go on as exchange-calendars says; "pattern", at the weekdays and times of
            day of the calendar's past, without holidays; or "weekdays", refused where the calendar
            has other days or another step.
        bar_handler: beside another handler, settings of the `KronosHandler` that reads bars;
            its instruments (filtered alike), freq, start_time, end_time and label follow that
            handler unless given here. A label that its loader does not write as an expression
            must be given here, or an alpha head learns Qlib's usual one.
    """

    def __init__(
        self,
        handler: DataHandler | Mapping[str, Any],
        segments: Mapping[str, Any],
        lookback: int = 90,
        horizon: int = 10,
        max_age_days: int | None = None,
        beyond_calendar: str = "error",
        min_bars: int | None = None,
        bar_handler: Mapping[str, Any] | None = None,
    ) -> None:
        self.lookback = lookback
        self.horizon = horizon
        self.min_bars = min_bars
        self.max_age_days = max_age_days
        self.beyond_calendar = beyond_calendar
        self._check_settings()
        super().__init__(handler=handler, segments=dict(segments))
        self.bar_settings = dict(bar_handler or {})
        if not isinstance(self.handler, KronosHandler):
            self.bar_handler = self._make_bar_handler()
        elif bar_handler is None:
            self.bar_handler = self.handler
        else:
            raise ConfigError("bar_handler goes with another handler; KronosHandler has the bars")

    def __repr__(self) -> str:
        """Without reading a bar."""
        handler = self.handler
        universe = getattr(handler, "instruments", None)
        if isinstance(universe, Mapping):  # Qlib's stock pool
            universe = universe.get("market")
        names = universe if isinstance(universe, str) else f"{len(universe or ())} instruments"
        return (
            f"{type(self).__name__}({type(handler).__name__} of {names}, lookback={self.lookback}, "
            f"horizon={self.horizon}, {describe_segments(self.segments)})"
        )

    def config(self, handler_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Qlib's: moves handler and segments in time; the bars' handler follows."""
        super().config(handler_kwargs=handler_kwargs, **kwargs)
        if handler_kwargs is not None and self.bar_handler is not self.handler:
            self.bar_handler.config(**handler_kwargs)

    def _prepare_seg(self, slc: Any, **kwargs: Any) -> Any:
        """Qlib's, but a bare date ends a segment of minute bars with its day."""
        if isinstance(slc, (tuple, list)) and len(slc) == 2:
            slc = (slc[0], whole_day(slc[1], self.bar_handler.freq))
        elif isinstance(slc, slice):
            slc = slice(slc.start, whole_day(slc.stop, self.bar_handler.freq))
        return super()._prepare_seg(slc, **kwargs)

    def setup_data(self, handler_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Qlib's: reads again after `config`."""
        super().setup_data(handler_kwargs=handler_kwargs, **kwargs)
        if handler_kwargs is not None and self.bar_handler is not self.handler:
            self.bar_handler.setup_data(**handler_kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        """Qlib's `config` moves segments and handler by setting them: windows are made anew."""
        super().__setattr__(name, value)
        if name != "_source":
            self.__dict__.pop("_source", None)

    @property
    def source(self) -> WindowDataset:
        """The windows' side of it, which knows no Qlib; the same one until a setting changes."""
        table = self.bar_handler.bars  # another one after the handler's own `setup_data`
        known: WindowDataset | None = self.__dict__.get("_source")
        if known is None or known.table is not table:
            known = self._source = self._make_source(table)
        return known

    def _make_source(self, table: BarTable) -> WindowDataset:
        begin, end = self.bar_handler.bounds
        return WindowDataset(
            table=table,
            segments=self.segments,
            lookback=self.lookback,
            horizon=self.horizon,
            min_bars=self.min_bars,
            max_age_days=self.max_age_days,
            spans=self.bar_handler.spans,
            begin=begin,
            end=end,
            label=ExpressionLabel(
                self.bar_handler.label,
                self.bar_handler.freq,
                from_bars=self.bar_handler.fields["close"] == STORED["close"],
            ),
            features=HandlerColumns(self.handler, self.bar_handler.freq),
            calendar=self.bar_handler.calendar,
            beyond_calendar=self.beyond_calendar,
        )

    def windows(self, segment: Segment = "test") -> Windows:
        """Windows to score: those whose last bar lies in the segment. Needs no later bar."""
        return self.source.windows(segment)

    def training_windows(self, segment: Segment = "train") -> Windows:
        """Windows to train on: those whose horizon lies in the segment, with that horizon."""
        return self.source.training_windows(segment)

    def future_stamps(self, windows: Windows) -> npt.NDArray[np.int64]:
        """(N, horizon, 5) time fields of the bars to come, see `WindowDataset.future_times`."""
        return self.source.future_stamps(windows)

    def bounds(self, segment: Segment) -> tuple[Any, Any]:
        """First and last moment of a segment, by name, slice or pair."""
        return self.source.bounds(segment)

    def _make_bar_handler(self) -> KronosHandler:
        names = ("instruments", "start_time", "end_time")
        followed = {name: getattr(self.handler, name) for name in names}
        if (label := label_written_in(self.handler)) is not None:
            followed["label"] = label
        if followed["instruments"] is None:
            followed["instruments"] = "all"  # as Qlib's loader takes it
        loader = getattr(self.handler, "data_loader", None)
        freq = getattr(loader, "freq", "day")
        freqs = set(freq.values()) if isinstance(freq, Mapping) else {freq}
        if "freq" not in self.bar_settings:
            if len(freqs) > 1:
                raise ConfigError(
                    f"the handler reads at {', '.join(sorted(freqs))}: say with "
                    "bar_handler={'freq': ...} whose bars make the windows"
                )
            followed["freq"] = freqs.pop()
        filters = getattr(loader, "filter_pipe", None)
        if filters and isinstance(followed["instruments"], str):
            followed["instruments"] = D.instruments(followed["instruments"], filters)
        return KronosHandler(**{**followed, **self.bar_settings})

    def _check_settings(self) -> None:
        """Before anything is read; the same checks as of the windows' side."""
        WindowDataset(
            table=BarTable.empty(),
            segments={},
            lookback=self.lookback,
            horizon=self.horizon,
            min_bars=self.min_bars,
            max_age_days=self.max_age_days,
            beyond_calendar=self.beyond_calendar,
        )


@contextmanager
def _no_missing_attributes() -> Iterator[None]:
    """Inside a property an AttributeError would read as if the property were missing.

    Qlib raises one where `qlib.init` has not run.
    """
    try:
        yield
    except AttributeError as missing:
        raise ConfigError(f"Qlib storage cannot be read: {missing}") from missing


def source_of(dataset: object, reader: str) -> WindowDataset:
    """What the windows come from: a Qlib dataset's side that knows no Qlib, or that alone.

    Args:
        reader: the model that asks, for the error.

    Raises:
        ConfigError: it is a data set of another kind.
    """
    if isinstance(dataset, KronosDataset):
        return dataset.source
    if isinstance(dataset, WindowDataset):
        return dataset
    raise ConfigError(
        f"{reader} reads windows of bars from a KronosDataset or a WindowDataset, got "
        f"{type(dataset).__name__}; KronosDataset takes any handler, Alpha158 among them"
    )


def whole_day(end: Any, freq: str) -> Any:
    """A segment's end as a moment that covers all of its last day's bars."""
    if end is None or str(Freq(freq)) == "day":
        return end
    return pd.Timestamp(last_instant(end, read_calendar(freq)))


def _allow_pickles() -> None:
    """Put our classes on the list of what Qlib's main branch unpickles; 0.9.7 has no such list."""
    try:
        from qlib.utils.pickle_utils import add_safe_class
    except ImportError:
        return
    for kind in (KronosHandler, KronosDataset, BarTable, LeftOut):
        add_safe_class(kind.__module__, kind.__name__)
    # What a handler reads its frame by; the list has only Qlib's static loader.
    add_safe_class("qlib.data.dataset.loader", "QlibDataLoader")


_allow_pickles()
