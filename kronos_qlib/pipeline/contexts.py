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
    report: Report | None = None,
) -> Floats:
    """Context vectors of each window; windows by time.

    Args:
        pooling: what is read beside the context after the last bar; None: nothing.
        report: takes a line now and then, such as a logger's `info`.

    Returns:
        (N, C) float32, C being pooling.parts * d_model.
    """
    pooling = pooling or ContextConfig()
    contexts = np.empty((len(windows), _width(predictor, pooling)), dtype=np.float32)
    days = windows.moments()
    for number, found in _read(predictor, windows, days, pooling, show_progress, report):
        contexts[days[number]] = found
    return contexts


def stored_contexts(
    predictor: KronosPredictor,
    windows: Windows,
    folder: Path,
    show_progress: bool = False,
    *,
    pooling: ContextConfig | None = None,
    report: Report | None = None,
) -> StoredContexts:
    """As `contexts_of`, but from the folder where it has them, and kept there where it has not.

    A run that was stopped goes on after the last moment that it read. Two runs may use one folder.

    Args:
        folder: of contexts; made when first written. Remove it for the room it takes.

    Returns:
        (N, C), read from the disk as asked for; the numbers of `contexts_of`, bit for bit.

    Raises:
        CheckpointError: files in the folder are none of ours.
        TrainingError: they cannot be written.
    """
    pooling = pooling or ContextConfig()
    store = ContextStore.of(folder, predictor, windows.lookback, pooling)
    days = windows.moments()
    keys = []
    for day in days:
        own = windows.take(day)
        keys.append(moment_digest(own, batches_of(predictor, own)))
    sizes = {key: day.stop - day.start for key, day in zip(keys, days, strict=True)}
    found = store.find(sizes)
    lacking = [number for number, key in enumerate(keys) if key not in found]
    if report is not None and days:
        report(
            f"{WHAT}: {len(days) - len(lacking)} of {len(days)} moments are in {folder}, "
            f"{len(lacking)} are read"
        )
    of_lacking = [days[number] for number in lacking]
    for place, contexts in _read(predictor, windows, of_lacking, pooling, show_progress, report):
        key = keys[lacking[place]]
        found[key] = store.add(key, contexts)
    rows = np.empty(len(windows), dtype=np.int64)
    for key, day in zip(keys, days, strict=True):
        rows[day] = np.arange(found[key], found[key] + day.stop - day.start)
    return store.stored(rows)


def batches_of(predictor: KronosPredictor, windows: Windows) -> list[int]:
    """How many windows of a moment the network reads at once, batch by batch."""
    found = []
    for _, group in windows.in_blocks():
        lookback = min(group.lookback, predictor.max_context)
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
    show_progress: bool,
    report: Report | None,
) -> Iterator[tuple[int, Floats]]:
    """Numbers of the days, and their windows' contexts.

    A batch is made of one day's windows of one length alone, as all scoring is: `Windows.by_day`.
    Of a day with very many names a block is gathered at a time.
    """
    with_bar = progress(days, WHAT, unit="day", show=show_progress)
    for number, day in enumerate(reported(with_bar, WHAT, report, unit="day", total=len(days))):
        found = np.empty((day.stop - day.start, _width(predictor, pooling)), dtype=np.float32)
        for which, group in windows.take(day).in_blocks():
            found[which] = predictor.embed(*group.seen(), pooling=pooling)
        yield number, found
