"""One instrument's bars, from what was read to what a forecast is asked for: for commands, pages.

Messages spell a setting as the caller's user does: `--lookback` on a command line, `lookback` in a
request.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from kronos_qlib.data.calendar.stamps import Ahead, bars_ahead
from kronos_qlib.data.calendar.steps import step_notes
from kronos_qlib.data.calendar.time_text import show_span, show_time
from kronos_qlib.data.files.check import check_bars, describe_report, errors_of, idle_bars
from kronos_qlib.data.files.read import BarFile
from kronos_qlib.data.rules import JUMP, Flags
from kronos_qlib.errors import BarDataError, CalendarError, ConfigError, some_of

if TYPE_CHECKING:
    from kronos_qlib.inference.predictor import KronosPredictor

Spelling = Callable[[str], str]


def flag(name: str) -> str:
    """A setting as a command line spells it."""
    return f"--{name}"


def traded_bars(
    table: BarFile, symbol: str | None, source: str, spell: Spelling = flag
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The traded bars of one instrument, in order, and notes of reading it.

    Args:
        table: as `read_bars` gives it.
        symbol: which, in any case of letters; None where the table has one alone.
        source: of the table, for messages.

    Raises:
        ConfigError: there is no such instrument, or none is named of several.
        BarDataError: none of its bars has traded.
    """
    symbols = table.bars["symbol"].unique().tolist()
    some = some_of(symbols, 5)
    if symbol is None and len(symbols) > 1:
        raise ConfigError(f"{source} holds {some}; say which with {spell('symbol')}")
    chosen = symbols[0] if symbol is None else symbol.upper()
    if chosen not in symbols:
        raise ConfigError(f"{source} has no {symbol!r}; it holds {some}")
    own = (table.bars["symbol"] == chosen).to_numpy()
    # Whether no volume means no trade depends on the other instruments too.
    idle, bars = idle_bars(table.bars)[own], table.bars[own]
    left_out = _describe_untraded(bars, idle)
    return bars[~idle], (*table.notes, *left_out, *step_notes(bars[~idle]))


def _describe_untraded(bars: pd.DataFrame, idle: Flags) -> list[str]:
    """Notes on bars that did not trade and are left out.

    Raises:
        BarDataError: no bar traded.
    """
    if not idle.any():
        return []
    symbol, dates = bars["symbol"].iloc[0], bars["date"]
    if idle.all():
        raise BarDataError(f"{symbol}: none of its {len(bars)} bars has traded, see volume")
    when = show_span(dates[idle].to_numpy())
    note = f"{idle.sum()} bars of {symbol} did not trade and are left out, {when}"
    newest = dates[~idle].iloc[-1]
    if newest < dates.iloc[-1]:
        note += f"; it last traded at {show_time(newest)}, after which the bars to come begin"
    return [note]


def tokenizer_taken(predictor: KronosPredictor, model: str, tokenizer: str | None) -> list[str]:
    """Which tokenizer was found for a predictor that lies alone in its folder."""
    origin = predictor.tokenizer.origin
    asked = tokenizer or model
    if origin is None or origin.repo == asked or Path(origin.name) == Path(asked).expanduser():
        return []
    return [f"the tokenizer of {asked} is {origin.name}"]


def bars_seen(
    bars: int,
    context: int,
    *,
    model: str,
    source: str,
    lookback: int | None,
    horizon: int,
    slide: bool = False,
    spell: Spelling = flag,
) -> tuple[int, tuple[str, ...]]:
    """How many bars are seen, by default as many as leave room for those to come, and why fewer
    than were asked for. Bars that the model does not see must not decide the normalisation.

    Args:
        bars: how many there are. context: how many the model sees at once.
        slide: as many as the model can see, though every path is then read anew for every bar.

    Raises:
        ConfigError: horizon or lookback cannot be.
    """
    if horizon < 1:
        raise ConfigError(f"{spell('horizon')} must be at least 1, got {horizon}")
    room: int = max(context - horizon, context // 2)
    if lookback is None:
        return min(bars, room), ()
    if not 2 <= lookback <= bars:
        raise ConfigError(
            f"{spell('lookback')} must lie in 2 to {bars}, the bars of {source}, got {lookback}"
        )
    most = context if slide else room
    if lookback <= most:
        return lookback, ()
    cut = f"{spell('lookback')} {lookback}: the last {most} bars are taken, {model} sees {context}"
    if not slide:
        cut += " and needs room for the bars to come"
        if spell is flag:
            cut += " (--slide takes all that it sees, and is slow)"
    return most, (cut,)


def check_seen(window: pd.DataFrame, source: str) -> list[str]:
    """Refuse bars that the forecast would be made of and that cannot be; what looks wrong.

    Raises:
        BarDataError: bars break a rule; says which.
    """
    report = check_bars(window, find_gaps=False)
    errors = errors_of(report)
    if len(errors):
        raise BarDataError(
            f"{source}: {len(errors)} errors in the lookback: {describe_report(errors)}; "
            "`kronos-qlib data check` lists and repairs them"
        )
    jumps = report[report["rule"] == JUMP]
    if jumps.empty:
        return []
    shown = [
        f"{show_time(date)} {detail}"
        for date, detail in zip(jumps["date"], jumps["detail"], strict=True)
    ]
    return [
        f"the lookback has a jump, and the forecast takes it as a move: "
        f"{some_of(shown, between='; ')}; "
        "if it is a split, adjust the bars before it: kronos-qlib data check "
        f"{source} --repair split-jumps --output NEW.csv"
    ]


def times_ahead(
    bars: pd.DataFrame,
    window: pd.DataFrame,
    horizon: int,
    *,
    exchange: str | None = None,
    freq: str | None = None,
    spell: Spelling = flag,
) -> Ahead:
    """The bars to come. All that was read shows how bars come, not what the model sees alone.

    Raises:
        CalendarError, ConfigError: as of `bars_ahead`, and name the instrument.
    """
    has_rule = exchange is not None or freq is not None
    past = (window if has_rule else bars)["date"]
    try:
        return bars_ahead(past, horizon, exchange=exchange, freq=freq)
    except CalendarError as bad:
        symbol = window["symbol"].iloc[0]
        if freq is None:
            raise CalendarError(f"{symbol}: {bad}") from bad
        named = str(bad).replace(f"freq {freq!r}", f"{spell('freq')} {freq}")
        raise ConfigError(f"{symbol}: {named}") from bad
