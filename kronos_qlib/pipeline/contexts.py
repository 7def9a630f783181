"""Contexts of many windows: from a folder where they were read before, else by the network.

Shape letters: N windows, C width of what is read of a window.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kronos_qlib.inference.frames import whole
from kronos_qlib.log import progress, reported
from kronos_qlib.model.sizes import ContextConfig
from kronos_qlib.pipeline.context_store import ContextStore, StoredContexts, moment_digest

if TYPE_CHECKING:
    from kronos_qlib.data.windows.window import Windows
    from kronos_qlib.inference.predictor import KronosPredictor

logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]
Report = Callable[[str], None]
WHAT = "Kronos contexts"


def contexts_of(
    predictor: KronosPredictor,
    windows: Windows,
    show_progress: bool = False,
    *,
    pooling: ContextConfig | None = None,
    span: int = 1,
    report: Report | None = None,
) -> Floats:
    """Context vectors of each window; windows by time.

    Args:
        pooling: what is read beside the context after the last bar; None: nothing.
        span: times of the calendar in a row at which a name's windows are read at once, by the
            scale of the first of them: to learn from, not to score. 1: each by itself.
        report: takes a line now and then, such as a logger's `info`.

    Returns:
        (N, C) float32, C being pooling.parts * d_model.

    Raises:
        ConfigError: the network does not attend to the bars of a span, or `span` is no number.
    """
    pooling = pooling or ContextConfig()
    contexts = np.empty((len(windows), _width(predictor, pooling)), dtype=np.float32)
    days = spans_of(windows, span)
    for number, found in _read(predictor, windows, days, pooling, span, show_progress, report):
        contexts[days[number]] = found
    return contexts


def stored_contexts(
    predictor: KronosPredictor,
    windows: Windows,
    folder: Path,
    show_progress: bool = False,
    *,
    pooling: ContextConfig | None = None,
    span: int = 1,
    report: Report | None = None,
) -> StoredContexts:
    """As `contexts_of`, but from the folder where it has them, and kept there where it has not.

    A run that was stopped goes on after the last moment that it read. Two runs may use one folder.

    Args:
        folder: of contexts; made when first written. Remove it for the room it takes.
        span: as of `contexts_of`. Spans are cut by the calendar of the bars: of bars that begin
            on another day they are others, and are read anew.

    Returns:
        (N, C), read from the disk as asked for; the numbers of `contexts_of`, bit for bit.

    Raises:
        CheckpointError: files in the folder are none of ours.
        TrainingError: they cannot be written.
    """
    pooling = pooling or ContextConfig()
    store = ContextStore.of(folder, predictor, windows.lookback, pooling, span)
    days = spans_of(windows, span)
    keys = []
    for day in days:
        own = windows.take(day)
        keys.append(moment_digest(own, batches_of(predictor, own, span)))
    sizes = {key: day.stop - day.start for key, day in zip(keys, days, strict=True)}
    found = store.find(sizes)
    lacking = [number for number, key in enumerate(keys) if key not in found]
    if report is not None and days:
        what = "moments" if span == 1 else f"spans of {span}"
        report(
            f"{WHAT}: {len(days) - len(lacking)} of {len(days)} {what} are in {folder}, "
            f"{len(lacking)} are read"
        )
    of_lacking = [days[number] for number in lacking]
    read = _read(predictor, windows, of_lacking, pooling, span, show_progress, report)
    for place, contexts in read:
        key = keys[lacking[place]]
        found[key] = store.add(key, contexts)
    rows = np.empty(len(windows), dtype=np.int64)
    for key, day in zip(keys, days, strict=True):
        rows[day] = np.arange(found[key], found[key] + day.stop - day.start)
    return store.stored(rows)


def spans_of(windows: Windows, span: int) -> list[slice]:
    """Windows by time in runs of the moments that lie among `span` times of the calendar.

    Raises:
        ConfigError: that is no number of times.
    """
    span = whole("span", span)
    days = windows.moments()
    if span == 1 or not days:
        return days
    places = windows.table.places[windows.ends[[day.start for day in days]]] // span
    starts = [0, *(np.flatnonzero(np.diff(places)) + 1).tolist()]
    stops = [*starts[1:], len(days)]
    return [
        slice(days[start].start, days[stop - 1].stop)
        for start, stop in zip(starts, stops, strict=True)
    ]


def batches_of(predictor: KronosPredictor, windows: Windows, span: int = 1) -> list[int]:
    """How many windows of a moment, or a span, the network reads at once, batch by batch."""
    from kronos_qlib.training.spans import readings  # imports torch

    if span > 1:
        windows = windows.take(readings(windows, span)[0])
    found = []
    for _, group in windows.in_blocks():
        lookback = min(group.lookback + span - 1, predictor.max_context)
        plan = predictor.plan(len(group), lookback, 1, 1)
        found += [rows.stop - rows.start for rows, _ in plan.batches(len(group), 1)]
    return found


def _width(predictor: KronosPredictor, pooling: ContextConfig) -> int:
    return pooling.parts * predictor.model.config.d_model


def _read(
    predictor: KronosPredictor,
    windows: Windows,
    days: Sequence[slice],
    pooling: ContextConfig,
    span: int,
    show_progress: bool,
    report: Report | None,
) -> Iterator[tuple[int, Floats]]:
    """Numbers of the days, or spans, and their windows' contexts.

    A batch is made of one day's windows of one length alone, as all scoring is: `Windows.by_day`.
    Of a day with very many names a block is gathered at a time.
    """
    unit = "day" if span == 1 else "span"
    with_bar = progress(days, WHAT, unit=unit, show=show_progress)
    for number, day in enumerate(reported(with_bar, WHAT, report, unit=unit, total=len(days))):
        if span > 1:
            yield number, _read_span(predictor, windows.take(day), pooling, span)
            continue
        found = np.empty((day.stop - day.start, _width(predictor, pooling)), dtype=np.float32)
        for which, group in windows.take(day).in_blocks():
            found[which] = predictor.embed(*group.seen(), pooling=pooling)
        yield number, found


def _read_span(
    predictor: KronosPredictor, windows: Windows, pooling: ContextConfig, span: int
) -> Floats:
    """(B, C) contexts of the windows of some moments in a row, each name's bars read once."""
    from kronos_qlib.training.spans import bars_after, readings  # imports torch

    firsts, of_reading, of_day = readings(windows, span)
    last = bars_after(firsts, of_reading, of_day)
    found = np.empty((len(windows), _width(predictor, pooling)), dtype=np.float32)
    for which, group in windows.take(firsts).in_blocks():
        ends = np.asarray(group.ends[:], dtype=np.int64)[:, None]
        # Beyond a name's last window its last bar again: the rows after it are another name's, and
        # no context before it depends on them.
        rows = np.minimum(ends + np.arange(1 - group.lookback, span), ends + last[which][:, None])
        bars, stamps = group.table.values[rows], group.table.stamps_at(rows)
        read = predictor.embed_span(bars, stamps, span, pooling=pooling)
        place = np.full(len(firsts), -1, dtype=np.int64)
        place[which] = np.arange(len(which))
        own = np.flatnonzero(place[of_reading] >= 0)
        found[own] = read[place[of_reading[own]], of_day[own]]
    return found
