"""StreamingPredictor: bars in as they come, the quantiles of the next bars out.

Shape letters: L bars of a lookback, N instruments of one push, P paths, H bars of the horizon.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from kronos_qlib.data.calendar.stamps import Ahead, Times, bars_ahead, stamps_of
from kronos_qlib.data.calendar.time_text import show_time
from kronos_qlib.data.files.read import read_bars
from kronos_qlib.data.rules import (
    INCOMPLETE,
    PRICES,
    RULES,
    is_negative,
    is_nonpositive,
    is_outside,
    is_unknown,
    is_upside_down,
)
from kronos_qlib.data.windows.bar_table import BarTable
from kronos_qlib.data.windows.faulty_bars import (
    FaultPolicy,
    Incomplete,
    Invalid,
    Untraded,
    fault_error,
)
from kronos_qlib.data.windows.scale import WindowScale
from kronos_qlib.errors import BarDataError, CalendarError, ConfigError
from kronos_qlib.inference.batching import BatchPlan, run_batches
from kronos_qlib.inference.forecast import Forecast, quantiles_over_paths
from kronos_qlib.inference.frames import whole
from kronos_qlib.inference.options import AUTO, CalibrationChoice, Request
from kronos_qlib.inference.predictor import Drawing, KronosPredictor, Packed, in_units
from kronos_qlib.inference.sampling import SamplingConfig
from kronos_qlib.inference.streaming.kept_bars import KeptBars, Kind
from kronos_qlib.inference.streaming.kept_prompts import HeldScales, KeptPrompts, runs_of
from kronos_qlib.schema import BAR_COLUMNS, CLOSE, VOLUME

logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]
Slots = npt.NDArray[np.int64]

Mode = Literal["exact", "fast"]
Outcome = Literal["read", "appended", "repeated", "too late", "left out", "waiting"]
"""What a bar did: its window was read anew; it was appended to what is kept; nothing, for it was
there, or came too late, or broke a rule; or there are not enough bars for a forecast, or the times
to come are not known."""


@dataclass(frozen=True, eq=False)
class Pushed:
    """What one bar did, and the forecast that is in force after it."""

    instrument: str
    time: np.datetime64
    """Of the bar."""
    outcome: Outcome
    reason: str
    """Of a read in fast mode, of a bar without effect, of a forecast that waits; may be empty."""
    forecast: Forecast | None
    """Of the bars after the newest one; None while it waits."""
    levels: tuple[float, ...]
    age: int = 0
    """Bars for which the scale of that forecast has been held; 0 right after a read."""
    note: str = ""
    """Bars that the clock expected and that did not come, or one that it did not; may be empty."""

    @property
    def quantiles(self) -> pd.DataFrame:
        """H rows by time; columns (column, level), see `Forecast.quantiles`.

        Raises:
            BarDataError: there is no forecast yet.
        """
        if self.forecast is None:
            raise BarDataError(f"{self.instrument}: no forecast yet: {self.reason}")
        return self.forecast.quantiles(self.levels)


class Pushes(Mapping[str, Pushed]):
    """What the bars of one push did, by instrument."""

    def __init__(self, pushed: Iterable[Pushed]) -> None:
        self._pushed = {one.instrument: one for one in pushed}

    def __getitem__(self, instrument: str) -> Pushed:
        return self._pushed[instrument]

    def __iter__(self) -> Iterator[str]:
        return iter(self._pushed)

    def __len__(self) -> int:
        return len(self._pushed)

    def quantiles(self) -> pd.DataFrame:
        """Of all forecasts: rows (instrument, datetime), columns (column, level)."""
        tables: list[pd.DataFrame] = []
        known = [one for one in self.values() if one.forecast is not None]
        found = [one.forecast for one in known if one.forecast is not None]
        for calibrated in (False, True):
            own = [one for one in found if one.is_calibrated is calibrated]
            if not own:
                continue
            levels = known[0].levels
            paths = np.stack([one.paths for one in own], axis=1)  # (P, N, H, 6)
            table = quantiles_over_paths(paths, levels, calibrated).astype(np.float32)
            index = pd.MultiIndex.from_arrays(
                [
                    np.repeat([one.name for one in own], paths.shape[2]),
                    np.concatenate([one.times for one in own]),
                ],
                names=["instrument", "datetime"],
            )
            columns = pd.MultiIndex.from_product([BAR_COLUMNS, levels], names=["column", "level"])
            wide = table.transpose(1, 2, 3, 0).reshape(len(index), -1)
            tables.append(pd.DataFrame(wide, index=index, columns=columns))
        return pd.concat(tables).sort_index() if tables else pd.DataFrame()


@dataclass(eq=False)
class _Stream:
    """One instrument."""

    name: str
    slot: int
    kept: KeptBars
    length: int = 0
    """Bars of its prompt in memory; 0: none, or none that holds."""
    why: str = "first"
    """Why that is so."""
    forecast: Forecast | None = None
    trades: bool = False
    """Whether it ever had a volume."""
    is_due: bool = False
    """Whether a bar was taken in and its forecast is not made: what was at it has failed."""


@dataclass(eq=False)
class _Coming:
    """A bar that came, before anything was changed by it."""

    stream: _Stream
    time: np.datetime64
    bar: Floats
    kind: Kind
    kept: KeptBars
    rule: int = -1
    """Place in `rules.RULES` of the rule for which it is left out."""
    ahead: Times | None = None
    note: str = ""


class StreamingPredictor:
    """Forecasts the next bars of many instruments whenever bars come.

    What may be kept between two bars is decided by how a window is normalised: every bar of it by
    the mean and deviation of the whole. One more bar moves both, and so every token of the prompt,
    and every key and value made of them. Therefore two modes:

    "exact": each bar costs a full read of the last `lookback` bars; nothing is kept but bars. The
    forecast is that of `KronosPredictor.predict_paths` of this window, by the instrument's name as
    key, bit for bit.

    "fast": a window is read, then its scale is held for up to `hold` further bars. The prompt's
    tokens keep their values, so keys and values are kept too: a bar that comes is normalised by the
    held scale, made a token, and appended; only paths are drawn anew. Right after a read the
    forecast is exact mode's bit for bit; later it differs in two ways: the scale is of up to `hold`
    bars ago, and the prompt is up to `hold` bars longer. The window grows rather than slides: each
    key was made in sight of all bars before it, so dropping the oldest would not give what a read
    of the rest gives. It is read anew after `hold` bars; when a bar lies beyond the clip in the
    held scale; when a bar was corrected or came late; when weights have changed.
    `benchmarks/streaming.py` measures what it saves and what it costs. Calibration and coherence
    see the last `lookback` bars in both.

    A bar of an instrument, at a time, is one of these:

        later than its last one: the forecast is of the bars after it.
        there already, the same in float32: nothing happens, the forecast stays ("repeated").
        at a time that is there, other numbers: a correction; it replaces that bar, and the window
            is read anew ("read").
        between two that are there: it is put there, and the window is read anew ("read").
        before all that are kept, where older ones were given up: it would be in no window; nothing
            happens ("too late").
        breaking a rule of `data.rules`: by `incomplete`, `invalid` and `untraded` an error, or
            left out as if suspended ("left out"), as everywhere.

    Bars that lack are no error: instruments are suspended, minutes without a trade have no bar, and
    a window is the last bars there were. Where the clock by which the forecast was made expected
    others, `Pushed.note` says so. Where the window does not show how its bars go on, or not as
    `freq` or `exchange` say, the bar is taken in and the forecast waits ("waiting", with the
    reason).

    A bar that cannot be taken in leaves all as it was, for every instrument of that push; where
    drawing fails (memory, an interrupt) the bars are in, and pushed again they are forecast. Memory
    per instrument is bounded: bars kept, one forecast, in fast mode one prompt of at most
    `lookback` + `hold` bars (`nbytes`). Nothing is written to disk: after a restart `begin` with
    the last bars is all that is needed. Calls from several threads wait for each other.

    Args:
        predictor: whose weights, device, context and clip are taken.
        lookback: bars that a read sees.
        horizon: bars to forecast.
        mode: "exact" or "fast".
        hold: bars that are appended to a prompt before it is read anew, in fast mode. lookback +
            hold + horizon must fit `predictor.max_context`.
        sampling: how paths are drawn; None: as `predict_paths` does without arguments.
        levels: of the quantiles.
        seed, exchange, freq, coherent, calibration: as in `predict_paths`.
        incomplete, invalid, untraded: what is done with a bar that breaks a rule, see
            `data.windows.faulty_bars`.

    Raises:
        ConfigError: a setting cannot work.
    """

    def __init__(
        self,
        predictor: KronosPredictor,
        *,
        lookback: int = 60,
        horizon: int = 1,
        mode: Mode = "exact",
        hold: int = 16,
        sampling: SamplingConfig | None = None,
        levels: Sequence[float] = (0.05, 0.5, 0.95),
        seed: int = 0,
        exchange: str | None = None,
        freq: str | None = None,
        coherent: bool = True,
        calibration: CalibrationChoice = AUTO,
        incomplete: Incomplete = "error",
        invalid: Invalid = "error",
        untraded: Untraded = "skip",
    ) -> None:
        if not isinstance(predictor, KronosPredictor):
            raise ConfigError(f"expected a KronosPredictor, got {type(predictor).__name__}")
        if mode not in ("exact", "fast"):
            raise ConfigError(f"mode must be 'exact' or 'fast', got {mode!r}")
        if exchange is not None and freq is not None:
            raise ConfigError("give exchange or freq, not both: each makes the bars to come")
        self.predictor, self.mode = predictor, mode
        self.lookback = whole("lookback", lookback, least=2)
        self.horizon = whole("horizon", horizon)
        self.hold = whole("hold", hold) if mode == "fast" else 0
        self.levels = tuple(levels)
        quantiles_over_paths(np.zeros((1, 1)), self.levels, calibrated=False)
        self._check_context()
        options: dict[str, Any] = {"coherent": coherent, "calibration": calibration, "seed": seed}
        if sampling is not None:
            options["sampling"] = sampling
        self._request = Request.of((1.0, 0, 0.9), 20, False, options, usual_paths=20)
        self.exchange, self.freq = exchange, freq
        self._policy = FaultPolicy(incomplete, invalid, untraded)
        self._streams: dict[str, _Stream] = {}
        self._free: list[int] = []
        self._prompts: KeptPrompts | None = None
        self._packed: Packed | None = None
        self._scales = HeldScales()
        self._is_told = False
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        held = f", hold={self.hold}" if self.mode == "fast" else ""
        return (
            f"<StreamingPredictor {self.mode}, lookback={self.lookback}, horizon={self.horizon}"
            f"{held}: {len(self._streams)} instruments>"
        )

    @property
    def instruments(self) -> tuple[str, ...]:
        """Names of those that have had a bar, in the order in which they came."""
        return tuple(self._streams)

    @property
    def nbytes(self) -> int:
        """Bytes of bars, forecasts and prompts that are kept."""
        kept = sum(one.kept.bars.nbytes + one.kept.times.nbytes for one in self._streams.values())
        paths = sum(
            one.forecast.paths.nbytes + one.forecast.times.nbytes
            for one in self._streams.values()
            if one.forecast is not None
        )
        return kept + paths + (0 if self._prompts is None else self._prompts.nbytes)

    def begin(self, history: pd.DataFrame) -> None:
        """Take bars that were there before the first push; of instruments known already, in place
        of what was kept of them. Nothing is forecast.

        Args:
            history: a long table (symbol, date, open, ...) as `read_bars` takes it, of any length;
                of each instrument its last bars are kept.

        Raises:
            BarDataError, CalendarError: as of `read_bars` and `BarTable.from_bars`.
        """
        policy = self._policy
        table = BarTable.from_bars(
            read_bars(history).bars, policy.incomplete, policy.invalid, policy.untraded
        )
        with self._lock:
            for number, name in enumerate(table.instruments):
                rows = slice(*table.offsets[number : number + 2].tolist())
                rows = slice(max(rows.start, rows.stop - self._most), rows.stop)
                bars = np.array(table.values[rows])
                self._forget(name)
                stream = self._stream(name)
                self._streams[name] = stream
                stream.kept = KeptBars(bars, np.array(table.times_at(rows)), self._most)
                stream.trades = bool((bars[:, VOLUME:] > 0).any())

    def forget(self, instrument: str) -> None:
        """Give up what is kept of one, such as a delisted one.

        Raises:
            BarDataError: there is no such instrument.
        """
        with self._lock:
            if instrument not in self._streams:
                raise BarDataError(f"{instrument}: no bar of it has come, nothing is kept")
            self._forget(instrument)

    def push(self, bar: Mapping[str, Any] | pd.Series[Any]) -> Pushed:
        """One bar of one instrument.

        Args:
            bar: symbol, date, open, high, low, close, and if known volume and amount, under the
                names that `read_bars` knows.

        Returns:
            What it did, and the forecast.

        Raises:
            BarDataError, ConfigError: as of `push_many`.
        """
        [pushed] = self.push_many(pd.DataFrame([dict(bar.items())])).values()
        return pushed

    def push_many(self, bars: pd.DataFrame) -> Pushes:
        """One bar each of several instruments; all that needs a forecast goes in one batch.

        Args:
            bars: a long table as `read_bars` takes it, one row an instrument, mostly of one time.

        Returns:
            By instrument, upper-cased as `read_bars` does it. A forecast depends on its own
            instrument's bars, name and the seed only, not on what else is in the batch.

        Raises:
            BarDataError: a bar cannot be read, an instrument has two, or one breaks a rule that is
                an error. Names instrument and time; nothing was taken in.
            ConfigError: `exchange`, `freq` or the calibration asked for cannot work.
        """
        read = read_bars(bars, as_is=True).bars
        twice = read["symbol"].duplicated()
        if twice.any():
            raise BarDataError(
                f"{read['symbol'][twice].iloc[0]}: two bars in one push; push them one after "
                "another, in the order of their times"
            )
        with np.errstate(over="ignore"):
            values = read[list(BAR_COLUMNS)].to_numpy(np.float64).astype(np.float32)
        times = read["date"].to_numpy("datetime64[ns]")
        with self._lock:
            coming = [
                self._coming(str(name), time, bar)
                for name, time, bar in zip(read["symbol"], times, values, strict=True)
            ]
            self._check_rules(coming)
            self._look_ahead(coming)
            return Pushes(self._take_in(coming))

    @property
    def _most(self) -> int:
        return self.lookback + self.hold

    def _check_context(self) -> None:
        most = self.predictor.max_context
        if self.mode == "exact":
            if self.lookback > most:
                raise ConfigError(
                    f"lookback {self.lookback} is more than the {most} bars that the network sees "
                    "at once (max_context)"
                )
            return
        needed = self.lookback + self.hold + self.horizon
        if needed > most:
            left = most - self.lookback - self.horizon
            advice = f"take hold at most {left}" if left > 0 else "take a shorter lookback"
            raise ConfigError(
                f"in fast mode lookback {self.lookback} + hold {self.hold} + horizon "
                f"{self.horizon} must fit the {most} bars that the network sees at once "
                f"(max_context), and are {needed}: {advice}"
            )

    def _stream(self, name: str) -> _Stream:
        if name in self._streams:
            return self._streams[name]
        return _Stream(name, -1, KeptBars.none(self._most))

    def _forget(self, name: str) -> None:
        if name in self._streams and self._streams[name].slot >= 0:
            self._free.append(self._streams[name].slot)
        self._streams.pop(name, None)

    def _coming(self, name: str, time: np.datetime64, bar: Floats) -> _Coming:
        stream = self._stream(name)
        kind = stream.kept.kind_of(time, bar)
        kept = stream.kept
        if kind in ("new", "corrected", "late"):
            kept = kept.with_bar(time, bar)
        return _Coming(stream, time, bar, kind, kept)

    def _check_rules(self, coming: Sequence[_Coming]) -> None:
        """Flag what is left out, by the rules for bars of a table.

        Raises:
            BarDataError: a bar breaks a rule that is an error.
        """
        due = [one for one in coming if one.kind in ("new", "corrected", "late")]
        if not due:
            return
        bars = np.stack([one.bar for one in due])
        before = np.stack([_before(one) for one in due])
        suspect = (  # others break no rule, whatever came before
            ~np.isfinite(bars).all(axis=1)
            | is_unknown(bars)
            | is_nonpositive(bars)
            | is_upside_down(bars)
            | is_outside(bars)
            | is_negative(bars)
            | ~(bars[:, VOLUME] > 0)
            | (bars[:, VOLUME] == before[:, VOLUME])
        )
        trades = (bars[:, VOLUME:] > 0).any() or any(one.trades for one in self._streams.values())
        refused: list[tuple[_Coming, str]] = []
        for place in np.flatnonzero(np.isnan(bars[:, :PRICES]).all(axis=1)):
            suspect[place] = False  # no bar: as a table has it where a name did not trade
            due[place].rule = RULES.index(INCOMPLETE)
        for place in np.flatnonzero(suspect):
            one = due[place]
            row = int(np.searchsorted(one.kept.times, one.time))
            rule = int(self._policy.broken_rules(one.kept.bars, others_trade=bool(trades))[row])
            if rule >= 0 and self._policy.action(RULES[rule]) == "error":
                refused.append((one, RULES[rule]))
            one.rule = rule
        if refused:
            one, rule_name = refused[0]
            alike = {each.stream.name: 1 for each, name in refused if name == rule_name}
            where = f"{one.stream.name} at {show_time(one.time)}"
            raise fault_error(where, rule_name, one.bar, alike, len(refused) - len(alike))

    def _look_ahead(self, coming: Sequence[_Coming]) -> None:
        """The times of the bars to come, and what the clock says of the bar that came."""
        made: dict[bytes, Ahead | CalendarError] = {}
        for one in coming:
            if not _is_taken(one) or len(one.kept) < self.lookback:
                continue
            past = one.kept.times[-self.lookback :]
            key = past.tobytes()
            if key not in made:
                try:
                    made[key] = bars_ahead(
                        past, self.horizon, exchange=self.exchange, freq=self.freq
                    )
                except CalendarError as unknown:
                    made[key] = unknown
            found = made[key]
            if isinstance(found, CalendarError):
                one.note = str(found)
                continue
            self._log_doubts(found)
            one.ahead = found.times
            if one.kind == "new" and one.stream.forecast is not None:
                one.note = _gap_note(one.time, one.stream.forecast.times)

    def _log_doubts(self, ahead: Ahead) -> None:
        """Once: of the first times that were made."""
        if self._is_told:
            return
        self._is_told = True
        for doubt in ahead.doubts:
            logger.warning(doubt)

    def _take_in(self, coming: Sequence[_Coming]) -> list[Pushed]:
        """Change what is kept, then forecast. From here on no bar can be at fault."""
        self._check_weights()
        outcomes: dict[str, tuple[Outcome, str]] = {}
        due: list[_Coming] = []
        for one in coming:
            name, stream = one.stream.name, one.stream
            if not _is_taken(one):
                outcomes[name] = _without_effect(one)
                continue
            if stream.is_due:
                stream.length, stream.why = 0, "interrupted"
            self._streams[name] = stream
            stream.kept, stream.is_due, stream.forecast = one.kept, True, None
            stream.trades = stream.trades or bool((one.bar[VOLUME:] > 0).any())
            if one.kind in ("corrected", "late"):
                stream.length, stream.why = 0, one.kind
            if len(stream.kept) < self.lookback:
                outcomes[name] = "waiting", f"{len(stream.kept)} of {self.lookback} bars"
                stream.is_due = False
                continue
            if one.ahead is None:
                outcomes[name] = "waiting", one.note
                one.note = ""
                stream.length, stream.why = 0, "times to come were not known"
                stream.is_due = False
                continue
            due.append(one)
        to_read, to_append = self._parted(due, outcomes)
        for group, anew in ((to_read, True), (to_append, False)):
            if group:
                self._forecast(group, anew)
        return [
            Pushed(
                one.stream.name,
                one.time,
                *outcomes[one.stream.name],
                one.stream.forecast,
                self.levels,
                max(0, one.stream.length - self.lookback),
                one.note,
            )
            for one in coming
        ]

    def _parted(
        self, due: Sequence[_Coming], outcomes: dict[str, tuple[Outcome, str]]
    ) -> tuple[list[_Coming], list[_Coming]]:
        """Bars whose windows are read anew, and those that are appended, by slot."""
        if self.mode == "exact":
            for one in due:
                outcomes[one.stream.name] = "read", ""
            return list(due), []
        self._find_slots(due)
        parted: tuple[list[_Coming], list[_Coming]] = [], []
        can = [one for one in due if one.stream.length]
        beyond: set[str] = set()
        if can:
            bars = np.stack([one.bar for one in can])[:, None]
            z = self._scales.of(np.array([one.stream.slot for one in can])).to_z(bars, np.inf)
            far = np.any(np.abs(z) > self.predictor.clip, axis=(1, 2)).tolist()
            beyond = {one.stream.name for one, is_far in zip(can, far, strict=True) if is_far}
        for one in due:
            stream = one.stream
            why = ""
            if not stream.length:
                why = stream.why
            elif stream.length >= self._most:
                why = f"the scale was held for {self.hold} bars"
            elif stream.name in beyond:
                why = f"beyond {self.predictor.clip:g} deviations of the held scale"
            outcomes[stream.name] = ("read", why) if why else ("appended", "")
            parted[0 if why else 1].append(one)
        for group in parted:
            group.sort(key=lambda one: one.stream.slot)
        return parted

    def _find_slots(self, due: Sequence[_Coming]) -> None:
        for one in due:
            if one.stream.slot < 0:
                taken = sum(each.slot >= 0 for each in self._streams.values())
                one.stream.slot = self._free.pop() if self._free else taken
        slots = 1 + max((one.stream.slot for one in due), default=-1)
        if self._prompts is None:
            packed = self._packed
            assert packed is not None
            self._prompts = KeptPrompts(
                packed.net,
                packed.tokenizer,
                self.predictor.device,
                self._most,
                self._request.sampling.rotate_s2,
            )
        self._prompts.grow(slots)
        self._scales.grow(slots)

    def _check_weights(self) -> None:
        """Give up prompts that other weights have read."""
        packed = self.predictor.engine()
        if packed is self._packed:
            return
        if self._packed is not None:
            for stream in self._streams.values():
                stream.length, stream.why = 0, "the weights changed"
            self._prompts = None
        self._packed = packed

    def _forecast(self, group: Sequence[_Coming], anew: bool) -> None:
        """Read windows anew, or append their newest bars to what is kept, and draw."""
        windows = np.stack([one.kept.bars[-self.lookback :] for one in group])
        stamps = stamps_of(np.stack([one.kept.times[-self.lookback :] for one in group]))
        times = [one.ahead for one in group if one.ahead is not None]
        drawing: Drawing | None = None
        if self.mode == "fast":
            slots = np.array([one.stream.slot for one in group], dtype=np.int64)
            lengths = np.array([one.stream.length for one in group], dtype=np.int64)
            for one in group:  # whatever stops this, no half of a prompt is taken for one
                one.stream.length, one.stream.why = 0, "interrupted"
            if anew:
                self._scales.keep(slots, WindowScale.of(windows))
                self._read(slots, None, windows, stamps)
                lengths[:] = self.lookback
            else:
                self._read(slots, lengths, windows[:, -1:], stamps[:, -1:])
                lengths += 1
            drawing = self._drawing(slots, None if anew else lengths, windows[:, -1, CLOSE])
        names = [one.stream.name for one in group]
        ahead = stamps_of(np.stack(times))
        paths, chosen = self.predictor.draw(windows, stamps, ahead, self._request, names, drawing)
        anchored = self._request.sampling.anchor
        for place, (one, after, taken) in enumerate(zip(group, times, chosen, strict=True)):
            drawn, close = paths[place].copy(), float(one.kept.bars[-1, CLOSE])
            stream = one.stream
            stream.forecast = Forecast(drawn, after, close, stream.name, anchored, taken.text)
            stream.is_due = False
            if self.mode == "fast":
                stream.length = int(lengths[place])

    def _read(
        self, slots: Slots, lengths: Slots | None, bars: Floats, stamps: npt.NDArray[np.int64]
    ) -> None:
        """Read bars into the prompts of slots: whole windows, or, given their lengths, one more."""
        assert self._prompts is not None
        prompts, predictor = self._prompts, self.predictor
        device = predictor.device

        def read(rows: slice, _: slice) -> None:
            z = predictor.normalised(self._scales.of(slots[rows]), bars[rows])
            moments = torch.from_numpy(stamps[rows]).to(device)
            for run in runs_of(slots[rows]):
                own = slots[rows][run]
                if lengths is None:
                    prompts.read_anew(own, z[run], moments[run])
                else:
                    held = torch.from_numpy(lengths[rows][run]).to(device)
                    prompts.read_more(own, held, z[run], moments[run])

        plan: BatchPlan = predictor.plan(len(slots), self.lookback, 1, 1)
        for _ in run_batches(read, plan.batches(len(slots), 1), plan):
            pass

    def _drawing(self, slots: Slots, lengths: Slots | None, closes: Floats) -> Drawing:
        """Draws from what is kept in these slots.

        Args:
            lengths: of their prompts; None: a lookback each, in the arithmetic of a full read.
        """
        assert self._prompts is not None
        prompts, predictor, how = self._prompts, self.predictor, self._request.sampling
        device = predictor.device

        def draw(
            rows: slice,
            ahead: npt.NDArray[np.integer],
            uniforms: torch.Tensor,
            each_step: Callable[[], None] | None,
        ) -> Floats:
            moments = torch.from_numpy(ahead.astype(np.int64)).to(device)
            numbers = uniforms.to(device)
            parts = []
            for run in runs_of(slots[rows]):
                own = slots[rows][run]
                held: int | torch.Tensor = self.lookback
                if lengths is not None:
                    held = torch.from_numpy(lengths[rows][run]).to(device)
                drawn, newest = prompts.draw(own, held, moments[run], how, numbers[run], each_step)
                scale = self._scales.of(own)
                parts.append(in_units(scale, drawn, newest, closes[rows][run], how))
            return np.concatenate(parts)

        return draw


def _before(one: _Coming) -> Floats:
    """(6,) the bar before one that came, NaN where there is none."""
    row = int(np.searchsorted(one.kept.times, one.time))
    if row == 0:
        return np.full(len(BAR_COLUMNS), np.nan, dtype=np.float32)
    return np.asarray(one.kept.bars[row - 1])


def _is_taken(one: _Coming) -> bool:
    again = one.kind == "repeated" and one.stream.is_due
    return one.rule < 0 and (again or one.kind in ("new", "corrected", "late"))


def _without_effect(one: _Coming) -> tuple[Outcome, str]:
    kept = one.stream.kept
    if one.rule >= 0:
        return "left out", RULES[one.rule]
    if one.kind == "repeated":
        return "repeated", ""
    return "too late", f"bars are kept from {show_time(kept.times[0])} on"


def _gap_note(time: np.datetime64, expected: Times) -> str:
    """What the clock says of a bar that came, given the bars that it expected."""
    missed = expected[expected < time]
    if len(missed):
        count = f"at least {len(missed)}" if len(missed) == len(expected) else f"{len(missed)}"
        return f"{count} expected before it did not come, the first at {show_time(missed[0])}"
    if time < expected[0]:
        return f"none was expected before {show_time(expected[0])}"
    return ""
