"""From the bars of one instrument to the answer that is shown and kept.

Shape letters: N windows, P paths, H bars of the horizon.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.data.calendar.time_text import show_time
from kronos_qlib.data.calendar.timestamps import parse_date
from kronos_qlib.data.files.read import BarFile
from kronos_qlib.errors import BarDataError, ConfigError, KronosError
from kronos_qlib.pipeline.one_series import bars_seen, check_seen, times_ahead, traded_bars
from kronos_qlib.schema import BAR_COLUMNS, CLOSE
from kronos_qlib.webui.schemas import (
    LEVELS,
    Bar,
    CheckpointUsed,
    Forecast,
    Outlook,
    Settings,
    ShownBar,
    TrackRecord,
)
from kronos_qlib.webui.work.upload_process import without_commands

if TYPE_CHECKING:
    from kronos_qlib.inference.forecast import Forecast as Drawn
    from kronos_qlib.webui.work.held_models import Held

Doubles = npt.NDArray[np.float64]
Source = Literal["bars", "file", "qlib"]

SHOWN = 250
"""Bars of the past in an answer, at least those that were seen."""
MOST_KEPT = 200
"""Closes of a bar that are kept for scoring, evenly spaced among the sorted paths."""
TRUST = "`kronos-qlib score` can, with --trust; this page never does"
"""What a page says in place of an option."""
NOT_RUN = "the last windows have not been measured yet"
NOT_COME = "the bars to come are not known yet"


class FieldError(ConfigError):
    """One field of a request cannot be: `field` names it."""

    def __init__(self, field: str, message: str) -> None:
        self.field = field
        super().__init__(message)

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.field, str(self))


@contextmanager
def fault_of(field: str) -> Iterator[None]:
    """Errors of this package in the block are this field's.

    Raises:
        FieldError: in place of any other.
    """
    try:
        yield
    except FieldError:
        raise
    except KronosError as problem:
        raise FieldError(field, str(problem).replace("say --trust", TRUST)) from problem


@contextmanager
def bad_bars() -> Iterator[None]:
    """What is wrong with bars in the block is the field's of that name, without commands.

    Raises:
        FieldError: in place of BarDataError.
    """
    try:
        yield
    except BarDataError as problem:
        raise FieldError("bars", str(problem).partition("; `kronos-qlib ")[0]) from problem


@contextmanager
def bar_faults() -> Iterator[None]:
    """Errors of reading a request's bars, which count rows from 1, as those of one bar's field.

    Raises:
        FieldError: in place of any other.
    """
    try:
        yield
    except KronosError as problem:
        place = re.search(r"row (\d+)(?:, column '(\w+)')?", str(problem))
        field = "bars"
        if place is not None:
            column = {"date": "timestamp"}.get(place[2] or "", place[2])
            field = f"bars[{int(place[1]) - 1}]" + (f".{column}" if column else "")
        text = without_commands(str(problem)).replace("the frame", "the bars given")
        raise FieldError(field, text) from problem


@dataclass(frozen=True)
class Series:
    """One instrument's traded bars, and what of them a forecast may see."""

    bars: pd.DataFrame
    """Those up to the last one that is seen: symbol, date and `schema.BAR_COLUMNS`."""
    came: pd.DataFrame
    """Those after it."""
    source: Source
    source_name: str
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of the instrument."""
        return str(self.bars["symbol"].iloc[0])


def series_of(
    table: BarFile, symbol: str | None, date: str | None, source: Source, source_name: str
) -> Series:
    """The bars of the instrument that is asked for, parted after the date.

    Raises:
        FieldError: there is no such instrument, no bar up to the date, or a date is none.
    """
    with fault_of("bars" if source == "bars" else "instrument"):
        whole, notes = traded_bars(table, symbol, source_name, spell=_spell)
    bars, came = whole, whole.iloc[:0]
    if date is not None:
        moment = _last_moment(date)
        name = str(whole["symbol"].iloc[0])
        known = table.bars[table.bars["date"] <= moment]
        bars, came = whole[whole["date"] <= moment], whole[whole["date"] > moment]
        if len(bars):  # which bars have traded is judged without those after the date, too
            with fault_of("date"):
                bars, notes = traded_bars(BarFile(known, table.notes), name, source_name, _spell)
    if len(bars) < 2:
        span = f"{show_time(whole['date'].iloc[0])} to {show_time(whole['date'].iloc[-1])}"
        raise FieldError(
            "bars" if date is None else "date",
            f"a forecast needs 2 bars at least; {source_name} has {len(whole)} traded ones of "
            f"{whole['symbol'].iloc[0]}, {span}"
            + ("" if date is None else f", {len(bars)} up to {date}"),
        )
    return Series(bars, came, source, source_name, notes)


def _last_moment(date: str) -> pd.Timestamp:
    """A moment; of a bare date the end of the day."""
    try:
        moment = pd.Timestamp(parse_date(date))
    except ValueError:
        raise FieldError("date", f"expected a date such as 2024-06-18, got {date!r}") from None
    if len(date.strip()) <= len("2024-06-18") and moment == moment.normalize():
        return moment + pd.Timedelta(days=1) - pd.Timedelta(1, "ns")
    return moment


def _spell(name: str) -> str:
    return {"symbol": "instrument"}.get(name, name)


@dataclass(frozen=True)
class Plan:
    """What a forecast of a series will see and which bars it will draw."""

    window: pd.DataFrame
    times: npt.NDArray[np.datetime64]
    rule: str
    notes: tuple[str, ...]

    @classmethod
    def of(cls, series: Series, asked: Settings, held: Held) -> Plan:
        """Choose the lookback and make the times to come.

        Raises:
            FieldError: names the field that cannot be.
        """
        bars, context = series.bars, held.predictor.max_context
        with fault_of("lookback"):
            lookback, cut = bars_seen(
                len(bars),
                context,
                model=held.name,
                source=series.source_name,
                lookback=asked.lookback,
                horizon=asked.horizon,
                spell=_spell,
            )
        window = bars.tail(lookback)
        with bad_bars():
            doubts = check_seen(window, series.source_name)
            doubts = [doubt.partition(": kronos-qlib data check")[0] for doubt in doubts]
        field = "exchange" if asked.exchange is not None else "freq"
        with fault_of(field if asked.exchange or asked.freq else "bars"):
            ahead = times_ahead(
                bars,
                window,
                asked.horizon,
                exchange=asked.exchange,
                freq=asked.freq,
                spell=_spell,
            )
        notes = [*cut, *doubts, *ahead.doubts]
        if lookback + asked.horizon > context:
            notes.append(
                f"{lookback} bars seen and {asked.horizon} to come are more than the {context} "
                f"that {held.name} sees at once: it rereads every path for every bar beyond, which "
                "is slow, and the later bars, drawn from its own, are not to be trusted"
            )
        rule = asked.exchange or asked.freq or ahead.rule
        return cls(window, ahead.times, rule, tuple(notes))


def draw(
    windows: list[pd.DataFrame],
    times: list[npt.NDArray[np.datetime64]],
    name: str,
    asked: Settings,
    held: Held,
    on_progress: Callable[[float], None],
) -> list[Drawn]:
    """Paths of windows of one instrument, by the settings of a request.

    Args:
        times: of each window, (H,) of the bars to come.
    """
    return held.predictor.predict_paths(
        windows,
        [window["date"] for window in windows],
        times,
        asked.horizon,
        T=asked.temperature,
        top_k=asked.top_k,
        top_p=asked.top_p,
        sample_count=asked.paths,
        calibration="auto" if asked.calibration == "auto" else None,
        verbose=False,
        seed=asked.seed,
        keys=[name] * len(windows),
        warn=False,  # it is in the notes
        on_progress=on_progress,
    )


@dataclass(frozen=True)
class Answer:
    """A forecast for people, and what it is scored by when its bars have come."""

    forecast: Forecast
    sample: list[list[float]]
    """For each bar to come at most `MOST_KEPT` closes of paths, sorted."""

    @property
    def is_stratified(self) -> bool:
        """Whether a bar's sample is equidistant quantiles, as of calibrated paths and of a choice
        among many, and not independent draws."""
        drawn = int(self.forecast.settings.get("paths", 0))
        return self.forecast.calibrated or len(self.sample[0]) < drawn


def answer_of(
    series: Series,
    asked: Settings,
    held: Held,
    on_progress: Callable[[float], None],
) -> Answer:
    """Draw, and say what was drawn. The same bars, settings and weights give the same `id`.

    Raises:
        FieldError: names the field that cannot be.
        BarDataError: the drawn paths have no returns: a last close that is not positive.
    """
    plan = Plan.of(series, asked, held)
    with bad_bars():
        (drawn,) = draw([plan.window], [plan.times], series.name, asked, held, on_progress)
    if not drawn.last_close > 0 or not (drawn.paths[:, :, CLOSE] > 0).all():
        raise FieldError(
            "bars",
            f"{series.name}: returns need positive prices, and the last close is "
            f"{drawn.last_close:g}",
        )
    quantiles = drawn.quantiles(LEVELS)
    is_intraday = _is_intraday(plan.window["date"], plan.times)
    settings: dict[str, Any] = asked.model_dump(
        include=set(Settings.model_fields) - {"keep", "wait", "single_paths"}
    )
    settings["lookback"] = len(plan.window)
    bars_digest = digest_of(plan.window)
    times = [time_of(one, is_intraday) for one in plan.times]
    closes = drawn.paths[:, :, CLOSE].astype(np.float64)
    moves = drawn.returns()
    worst = np.sort(moves)[: math.ceil(len(moves) / 20)]  # as the signal of that name
    shown = series.bars.tail(max(SHOWN, len(plan.window)))
    forecast = Forecast(
        id=_id(series.name, bars_digest, settings, held.digest, times),
        created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        instrument=series.name,
        source=series.source,
        source_name=series.source_name,
        is_intraday=is_intraday,
        rule=plan.rule,
        settings=settings,
        checkpoint=CheckpointUsed(name=held.name, revision=held.revision, digest=held.digest[:16]),
        calibrated=drawn.is_calibrated,
        calibration=drawn.calibration,
        anchored=drawn.anchored,
        notes=[*series.notes, *plan.notes, *_too_few(asked.paths)],
        bars_digest=bars_digest,
        bars_seen=len(plan.window),
        last_timestamp=time_of(plan.window["date"].iloc[-1], is_intraday),
        last_close=_numbers([drawn.last_close])[0],
        timestamps=times,
        quantiles={
            column: {f"{level:g}": _numbers(quantiles[column, level]) for level in LEVELS}
            for column in BAR_COLUMNS
        },
        mean={column: _numbers(drawn.mean[column]) for column in BAR_COLUMNS},
        paths=[_numbers(path) for path in closes[: asked.single_paths]] or None,
        prob_up=_numbers((closes > drawn.last_close).mean(axis=0)),
        outlook=Outlook(
            last_return=float(moves.mean()),
            prob_up=float((moves > 0).mean()),
            volatility=float(drawn.volatility().mean()),
            shortfall_5=float(worst.mean()),
        ),
        history=shown_bars(shown, is_intraday),
        realised=None,
        track_record=TrackRecord(this_window_reason=NOT_COME, past_reason=NOT_RUN),
        kept=False,
    )
    return Answer(forecast, sample_of(closes))


def sample_of(closes: Doubles) -> list[list[float]]:
    """(H) lists of at most `MOST_KEPT` sorted closes of (P, H): all of them, or evenly spaced."""
    ordered = np.sort(closes, axis=0)
    if len(ordered) > MOST_KEPT:
        places = (np.arange(MOST_KEPT) + 0.5) / MOST_KEPT * len(ordered) - 0.5
        ordered = ordered[np.round(places).astype(int)]
    return [_numbers(bar) for bar in ordered.T]


def shown_bars(bars: pd.DataFrame, is_intraday: bool) -> list[ShownBar]:
    """Bars as an answer has them."""
    return [
        ShownBar(
            timestamp=time_of(row.date, is_intraday),
            **dict(zip(BAR_COLUMNS, _numbers(row[2:]), strict=True)),
        )
        for row in bars[["date", *BAR_COLUMNS]].itertuples()
        if np.isfinite(row[2:]).all()
    ]


def digest_of(bars: pd.DataFrame) -> str:
    """SHA-256 of the times and numbers of bars, as a model reads them."""
    found = hashlib.sha256()
    found.update(bars["date"].to_numpy().astype("datetime64[ns]").astype("<i8").tobytes())
    found.update(bars[list(BAR_COLUMNS)].to_numpy(dtype="<f4").tobytes())
    return found.hexdigest()


def time_of(moment: Any, is_intraday: bool) -> str:
    """A moment as the API writes it."""
    found = pd.Timestamp(moment)
    return found.strftime("%Y-%m-%dT%H:%M:%S" if is_intraday else "%Y-%m-%d")


def _is_intraday(past: pd.Series, ahead: npt.NDArray[np.datetime64]) -> bool:
    both = pd.DatetimeIndex([*past.tail(50), *ahead])
    return bool((both != both.normalize()).any())


def _id(
    name: str, bars_digest: str, settings: dict[str, Any], weights: str, times: list[str]
) -> str:
    about = json.dumps([1, name, bars_digest, settings, weights, times], sort_keys=True)
    return hashlib.sha256(about.encode()).hexdigest()[:20]


def _too_few(paths: int) -> list[str]:
    if paths >= 19:
        return []
    return [f"{paths} paths say little of a band of 90 %: draw 19 at least"]


def _numbers(values: Any) -> list[float]:
    """Seven significant digits: what float32 holds, in a third of the letters."""
    return [float(f"{value:.7g}") for value in np.asarray(values, dtype=np.float64)]


def frame_of_bars(bars: Sequence[Bar]) -> pd.DataFrame:
    """Bars of a request as a table for `read_bars`; columns that no bar has are left out.

    Raises:
        FieldError: some bars have a volume or an amount, and others have not.
    """
    rows = [bar.model_dump() for bar in bars]
    table = pd.DataFrame(rows, columns=["timestamp", *BAR_COLUMNS])
    empty = [name for name in ("volume", "amount") if all(row[name] is None for row in rows)]
    for name in ("volume", "amount"):
        if name not in empty and any(row[name] is None for row in rows):
            place = next(place for place, row in enumerate(rows) if row[name] is None)
            raise FieldError(
                f"bars[{place}].{name}",
                f"bar {place} has no {name} and others have: give it for all bars or for none",
            )
    return table.drop(columns=empty).rename(columns={"timestamp": "date"})
