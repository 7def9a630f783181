"""Fit a calibration for a predictor on windows whose future has come.

Shape letters: N windows, P paths, H bars of the horizon.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from kronos_qlib.calibration.calibration import LEAST_WINDOWS, Calibration, Fit, Sample, kinds_of
from kronos_qlib.calibration.market_state import states_of
from kronos_qlib.calibration.past_volatility import LEAST_BARS, stood_still
from kronos_qlib.data.calendar.time_text import show_time
from kronos_qlib.data.files.read import read_bars
from kronos_qlib.data.windows.known import known_windows, sample_windows, times_ahead
from kronos_qlib.data.windows.segments import Moment, Segment, last_instant
from kronos_qlib.data.windows.window import Windows
from kronos_qlib.data.windows.window_dataset import WindowDataset
from kronos_qlib.errors import BarDataError, ConfigError
from kronos_qlib.inference.sampling import SamplingConfig
from kronos_qlib.model.checkpoints.pretrained import fingerprint
from kronos_qlib.schema import CLOSE, PRICE_COLUMNS

if TYPE_CHECKING:
    from kronos_qlib.inference.predictor import KronosPredictor

logger = logging.getLogger(__name__)

WINDOWS = 10_000
"""That the spread is fitted on: no path is drawn for them, so they cost little."""
DRAWN = 1_000
"""Windows of them that paths are drawn for."""
FEW_DRAWN = 300
"""The same of `KronosPredictor.calibrate`: minutes on a CPU, with the largest published weights."""
PATHS = 20
READING = ("symbol", "columns", "encoding", "delimiter", "zone", "date_order", "decimal")
"""Of `WindowDataset.from_file`, what says how bars are read; the others are settings of windows."""
AT_ONCE = 500
"""Windows whose paths are held in memory with all six columns."""


def checkpoint_of(predictor: KronosPredictor) -> str:
    """Fingerprint of both halves, which a calibration belongs to."""
    return f"{fingerprint(predictor.model)}-{fingerprint(predictor.tokenizer)}"


def settings_of(sampling: SamplingConfig) -> dict[str, float]:
    """The settings that decide how paths are spread."""
    return {
        "temperature": float(sampling.temperature),
        "top_k": float(sampling.top_k or 0),
        "top_p": float(sampling.top_p),
        "anchor": float(sampling.anchor),
    }


def sample_of(
    predictor: KronosPredictor,
    source: WindowDataset,
    segment: Segment,
    sampling: SamplingConfig,
    *,
    windows: int = WINDOWS,
    drawn: int = DRAWN,
    drawn_from: str | pd.Timestamp | None = None,
    least: int = 1,
    seed: int = 0,
    show_progress: bool = False,
) -> Sample:
    """Windows of a segment whose future has come, with paths for some of them.

    Both are evenly spaced in time, drawn among a moment's instruments. Windows with a price that
    is not positive, or whose prices stood still, are left out; of windows of several lengths so
    are those shorter than half of them, and the others are cut.

    Args:
        windows, drawn: how many at most.
        drawn_from: paths are drawn for windows that end from then on; None: for all. A checkpoint's
            paths say more of the years it was trained on than they will of others.
        least: windows that must be there before any path is drawn.
        show_progress: of drawing.

    Raises:
        BarDataError: the segment has no such window, or fewer than `least`; or they see too few
            bars.
    """
    known, _ = known_windows(source, segment)
    lengths = known.lengths
    longest = known.lookback if lengths is None else int(lengths.max())
    if longest < LEAST_BARS:
        raise BarDataError(
            f"{segment}: windows see {longest} bars at most, and a calibration takes {LEAST_BARS}: "
            "give a longer lookback"
        )
    if lengths is not None:  # a sample has one length, which half of the windows have at least
        shortest = max(int(np.quantile(lengths, 0.5, method="lower")), LEAST_BARS)
        known = known.take(np.flatnonzero(lengths >= shortest)).cut(shortest)
    chosen = sample_windows(known, windows, seed)
    bars = chosen.bars(slice(None))
    is_priced = (bars[..., : len(PRICE_COLUMNS)] > 0).all(axis=(1, 2))
    if not is_priced.any():
        raise BarDataError(f"{segment}: no window has positive prices throughout")
    is_good = is_priced & ~stood_still(bars[:, : chosen.lookback])
    if not is_good.any():
        raise BarDataError(f"{segment}: no price of any window has moved")
    chosen, bars = chosen.take(np.flatnonzero(is_good)), bars[is_good]
    if len(chosen) < least:
        raise BarDataError(
            f"{len(chosen)} windows of {source.lookback} bars seen and {source.horizon} that came "
            f"after them, and a calibration is fitted on {least} at least: give more instruments "
            "or a longer time, or shorten lookback or horizon"
        )
    rows = chosen.rows(slice(None))
    stamps = chosen.table.stamps_at(rows[:, : chosen.lookback])
    ahead = source.future_stamps(chosen)
    sample = Sample(
        bars=bars[:, : chosen.lookback],
        stamps=stamps,
        ahead=ahead,
        closes=bars[:, chosen.lookback :, CLOSE],
        times=chosen.times,
        market=states_of(chosen),
        newest=times_ahead(chosen).max(),
    )
    places = np.arange(len(chosen))
    if drawn_from is not None:
        places = places[chosen.times >= np.datetime64(pd.Timestamp(drawn_from))]
    some = np.linspace(0, len(places) - 1, min(drawn, len(places))).round().astype(np.int64)
    places = places[some]
    if not len(places):
        return sample
    closes = [
        _drawn(
            predictor,
            sample,
            chosen,
            places[start : start + AT_ONCE],
            sampling,
            seed,
            show_progress,
        )
        for start in range(0, len(places), AT_ONCE)
    ]
    return replace(sample, drawn=places, paths=np.concatenate(closes))


def fit_calibration(
    predictor: KronosPredictor,
    samples: Sequence[Sample],
    sampling: SamplingConfig,
    about: str = "",
) -> Calibration:
    """A calibration of a predictor on samples of its own paths, each kind of bars by itself.

    Raises:
        ConfigError: no sample, too few windows of a kind, or samples whose windows are of several
            kinds.
    """
    if not samples:
        raise ConfigError("a calibration is fitted on one sample at least, got none")
    by_kind: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        kinds = np.unique(kinds_of(sample.stamps)).tolist()
        if len(kinds) > 1:
            raise ConfigError("windows of daily and of shorter bars in one sample")
        by_kind[kinds[0]].append(sample)
    # The closes that came are later than the last bars seen, and were fitted on too.
    newest = max(
        sample.times.max() if sample.newest is None else sample.newest for sample in samples
    )
    fits: Mapping[str, Fit] = {kind: Fit.of(some) for kind, some in by_kind.items()}
    return Calibration(
        fits, checkpoint_of(predictor), settings_of(sampling), show_time(newest), about
    )


def calibration_on(
    predictor: KronosPredictor,
    bars: str | Path | pd.DataFrame,
    sampling: SamplingConfig,
    *,
    lookback: int,
    horizon: int,
    first: Moment | None = None,
    last: Moment | None = None,
    windows: int = WINDOWS,
    drawn: int = FEW_DRAWN,
    seed: int = 0,
    show_progress: bool = True,
    repair: Iterable[str] = (),
    **reading: Any,
) -> Calibration:
    """A calibration on the past of a file or frame of bars; see `KronosPredictor.calibrate`.

    Raises:
        BarDataError: bars cannot be read, or are too few: says how many windows are needed.
        ConfigError: a setting cannot work.
    """
    if not LEAST_BARS <= lookback <= predictor.max_context:
        raise ConfigError(
            f"lookback must lie in {LEAST_BARS} to {predictor.max_context}, the bars that the "
            f"predictor sees at once, got {lookback}"
        )
    if windows < LEAST_WINDOWS:
        raise ConfigError(f"windows must be at least {LEAST_WINDOWS}, got {windows}")
    if last is not None:
        # Reading looks at all bars, such as at whether volume is known: later ones are cut first.
        how = {key: reading.pop(key) for key in READING if key in reading}
        read = read_bars(bars, as_is=True, **how)
        for note in read.notes:
            logger.info(note)
        dates = read.bars["date"]
        newest = last_instant(last, np.unique(dates.to_numpy()))
        bars = read.bars[dates <= newest]
        if not len(bars):
            raise BarDataError(f"no bar lies at or before {last}")
    source = WindowDataset.from_file(
        bars, {"past": (first, last)}, lookback=lookback, horizon=horizon, repair=repair, **reading
    )
    sample = sample_of(
        predictor,
        source,
        "past",
        sampling,
        windows=windows,
        drawn=drawn,
        least=LEAST_WINDOWS,
        seed=seed,
        show_progress=show_progress,
    )
    names = len(source.table.instruments)
    about = (
        f"{len(sample.times)} windows of {lookback} + {horizon} bars of {names} "
        f"instrument{'s' if names > 1 else ''}"
    )
    return fit_calibration(predictor, [sample], sampling, about)


def _drawn(
    predictor: KronosPredictor,
    sample: Sample,
    windows: Windows,
    places: np.ndarray,
    sampling: SamplingConfig,
    seed: int,
    show_progress: bool,
) -> np.ndarray:
    paths = predictor.paths(
        sample.bars[places].astype(np.float32),
        sample.stamps[places],
        sample.ahead[places],
        sample.ahead.shape[1],
        sampling=replace(sampling, stratified=False, common=False),
        seed=seed,
        keys=windows.take(places).keys(),
        verbose=show_progress,
    )
    return np.asarray(paths[..., CLOSE])
