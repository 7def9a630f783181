"""What really came, put beside a forecast."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from kronos_qlib.data.files.read import BarFile
from kronos_qlib.errors import KronosError
from kronos_qlib.pipeline.one_series import traded_bars
from kronos_qlib.schema import PRICE_COLUMNS
from kronos_qlib.webui.schemas import Forecast, MethodScore
from kronos_qlib.webui.work.forecast_answer import (
    NOT_COME,
    Answer,
    FieldError,
    fault_of,
    shown_bars,
    time_of,
)
from kronos_qlib.webui.work.track_record import LEAST_PAST, score_window

SAME = 1e-4
"""What two readings of one close may differ by: prices are float32."""
COMPARED = 5
"""Closes before the forecast that must agree with what it saw."""
RESCALED = "prices were adjusted anew since"


def with_realised(answer: Answer, came: pd.DataFrame) -> Answer:
    """A forecast with the bars that came, and its scores where all have come.

    The first bar that came is the first that was forecast, whatever their times: a holiday that
    the rule did not know, or a halt, moves all after it, and a note says so.
    """
    forecast = answer.forecast
    realised = shown_bars(came.head(len(forecast.timestamps)), forecast.is_intraday)
    if not realised:
        return answer
    notes = [note for note in forecast.notes if not note.startswith(_MOVED)]
    moved = [
        (meant, bar.timestamp)
        for meant, bar in zip(forecast.timestamps, realised, strict=False)
        if meant != bar.timestamp
    ]
    if moved:
        meant, real = moved[0]
        notes.append(
            f"{_MOVED}: {len(moved)} of {len(realised)}, the first at {real} and not at {meant}; "
            "they are compared in their order"
        )
    scores, reason = _scores(answer, [bar.close for bar in realised])
    record = forecast.track_record.model_copy(
        update={"this_window": scores, "this_window_reason": reason}
    )
    changed = {"realised": realised, "notes": notes, "track_record": record}
    return replace(answer, forecast=forecast.model_copy(update=changed))


_MOVED = "bars came at other times than forecast"


def reconciled(answer: Answer, table: BarFile) -> Answer:
    """A kept forecast with what bars say of it that were read later.

    Raises:
        FieldError: they are not of this series, or none of them came after the forecast.
    """
    forecast = answer.forecast
    symbols = table.bars["symbol"].unique().tolist()
    symbol = forecast.instrument if forecast.instrument in symbols else None
    with fault_of("bars"):
        bars, _ = traded_bars(table, symbol, "the bars given", spell=str)
    last = pd.Timestamp(forecast.last_timestamp)
    times = bars["date"] if forecast.is_intraday else bars["date"].dt.normalize()
    came = bars[times > last]
    if came.empty:
        raise FieldError(
            "bars",
            f"no bar after {forecast.last_timestamp} has come: they end at "
            f"{time_of(bars['date'].iloc[-1], forecast.is_intraday)}",
        )
    factor = _factor(forecast, bars[times <= last])
    if factor is not None and factor != 1:
        came = came.copy()
        came[list(PRICE_COLUMNS)] *= factor
        note = f"{RESCALED}: what came is shown in the prices of the forecast, times {factor:.6g}"
        kept = [one for one in forecast.notes if not one.startswith(RESCALED)]
        forecast = forecast.model_copy(update={"notes": [*kept, note]})
    return with_realised(replace(answer, forecast=forecast), came)


def _factor(forecast: Forecast, before: pd.DataFrame) -> float | None:
    """By what closes are multiplied to be in the forecast's prices; None where nothing shows it.

    Raises:
        FieldError: the bars that both have do not agree: it is another series.
    """
    shown = {bar.timestamp: bar.close for bar in forecast.history}
    pairs = [
        (shown[time], float(close))
        for time, close in (
            (time_of(date, forecast.is_intraday), close)
            for date, close in zip(before["date"], before["close"], strict=True)
        )
        if time in shown and close > 0
    ][-COMPARED:]
    if not pairs:
        return None
    ratios = np.array([ours / theirs for ours, theirs in pairs])
    if np.ptp(ratios) > SAME * ratios[-1]:
        raise FieldError(
            "bars",
            f"these bars are not those of {forecast.instrument} that were forecast: the closes "
            f"before {forecast.last_timestamp} are others",
        )
    factor = float(ratios[-1])
    return 1.0 if abs(factor - 1) <= SAME else factor


def _scores(answer: Answer, came: list[float]) -> tuple[list[MethodScore] | None, str | None]:
    """Scores of the window, or why there are none yet."""
    forecast = answer.forecast
    missing = len(forecast.timestamps) - len(came)
    if missing:
        return None, f"{NOT_COME}: {missing} of {len(forecast.timestamps)} are still to come"
    past = np.array([bar.close for bar in forecast.history])[-21:]
    if len(past) < LEAST_PAST or not (past > 0).all() or not all(one > 0 for one in came):
        return None, "scores need positive closes, and at least 3 of the past"
    try:
        return score_window(answer.sample, past, np.array(came), answer.is_stratified), None
    except KronosError as reason:
        return None, str(reason)
