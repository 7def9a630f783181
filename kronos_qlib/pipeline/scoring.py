"""Windows to signals: from drawn paths, or from an alpha head on the context vector."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.calibration.market_state import states_of
from kronos_qlib.errors import BarDataError, ConfigError
from kronos_qlib.inference.calibrating import settings_of
from kronos_qlib.inference.sampling import SamplingConfig
from kronos_qlib.log import progress
from kronos_qlib.model.sizes import fewest_names
from kronos_qlib.pipeline.calibrated_paths import PathCalibration
from kronos_qlib.pipeline.contexts import Report
from kronos_qlib.pipeline.head_inputs import head_inputs, scores_of
from kronos_qlib.signals.past_bars import BROKEN, baseline_of, first_broken
from kronos_qlib.signals.paths import check_signals, describe_broken, signals_of
from kronos_qlib.signals.shaping import SECTOR, sectors_of, window_exposures
from kronos_qlib.signals.signal_settings import EnsembleConfig

if TYPE_CHECKING:
    import torch

    from kronos_qlib.data.windows.window import Windows
    from kronos_qlib.data.windows.window_dataset import WindowDataset
    from kronos_qlib.inference.predictor import KronosPredictor
    from kronos_qlib.model.alpha_head import Head
    from kronos_qlib.training.alpha import AlphaNet

logger = logging.getLogger(__name__)

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Member:
    """One reading of a window, whose paths are pooled with the other members'."""

    lookback: int | None
    """Last bars of the window that it sees; None: all."""
    temperature: float
    mark: str = ""
    """End of its keys, for random numbers of its own; empty for the usual reading."""


def members_of(
    ensemble: EnsembleConfig | None, sampling: SamplingConfig, lookback: int
) -> tuple[Member, ...]:
    """Every lookback at every temperature; without an ensemble the window as it is.

    Args:
        lookback: bars of a window, at most.

    Raises:
        ConfigError: a member would see more bars than a window has.
    """
    lookbacks: Sequence[int | None] = (None,)
    temperatures: Sequence[float] = (sampling.temperature,)
    if ensemble is not None:
        lookbacks = ensemble.lookbacks or lookbacks
        temperatures = ensemble.temperatures or temperatures
    longest = max(bars or 0 for bars in lookbacks)
    if longest > lookback:
        raise ConfigError(
            f"signals.ensemble has a lookback of {longest} bars, the data set's windows have "
            f"{lookback}; raise the data set's lookback"
        )
    members = []
    for bars in lookbacks:
        for temperature in temperatures:
            whole = bars is None or bars == lookback
            usual = whole and temperature == sampling.temperature
            mark = "" if usual else f" lookback {bars or lookback} temperature {temperature:g}"
            members.append(Member(None if whole else bars, temperature, mark))
    return tuple(members)


def signals_from_paths(
    predictor: KronosPredictor,
    source: WindowDataset,
    windows: Windows,
    sampling: SamplingConfig,
    names: Sequence[str],
    seed: int,
    ensemble: EnsembleConfig | None = None,
    show_progress: bool = False,
    calibration: PathCalibration | None = None,
) -> pd.DataFrame:
    """Every named signal of each window, from one drawing of its paths.

    Paths are drawn, read and forgotten a day at a time: memory is that of one day.

    Args:
        windows: of `source`, by time.
        names: of `signals.paths.SIGNALS`.
        calibration: of the paths, their own centre kept; None: as drawn.

    Returns:
        (N, names) float64 on the windows' index; the same numbers for a day whatever other days
        are asked for, as long as the calendar says the same of the days to come.

    Raises:
        BarDataError: a last close is not positive, a path not finite, or a window cannot be
            calibrated (names instrument and date).
        CalendarError: the calendar does not reach a horizon past the last window.
        ConfigError: a name or a lookback of the ensemble cannot work.
    """
    check_signals(names, source.horizon)
    found = {name: np.empty(len(windows), dtype=np.float64) for name in names}
    for places, group, paths in paths_by_day(
        predictor, source, windows, sampling, seed, ensemble, show_progress, calibration
    ):
        for name, values in signals_of(paths, group.last_close, names).items():
            found[name][places] = values
    return pd.DataFrame(found, index=windows.index)


def paths_by_day(
    predictor: KronosPredictor,
    source: WindowDataset,
    windows: Windows,
    sampling: SamplingConfig,
    seed: int,
    ensemble: EnsembleConfig | None = None,
    show_progress: bool = False,
    calibration: PathCalibration | None = None,
) -> Iterator[tuple[npt.NDArray[np.int64], Windows, npt.NDArray[np.float32]]]:
    """The paths that signals are made of, a day and a length of windows at a time.

    Args:
        As of `signals_from_paths`.

    Yields:
        Places among the windows (B,), these windows, and their paths (B, P, H, 6) in the bars' own
        units, those of all members of the ensemble one after another.

    Raises:
        As `signals_from_paths`.
    """
    members = members_of(ensemble, sampling, source.lookback)
    # Of several ways of drawing none is that which a calibration was fitted on.
    settings = settings_of(sampling) if members == members_of(None, sampling, 0) else {}
    states = None if calibration is None else states_of(windows)
    days = windows.moments()
    newest = windows.take(np.array([day.start for day in days], dtype=np.int64))
    stamps_ahead = source.future_stamps(newest)  # all at once: a short calendar fails early
    for day, places, group in windows.by_day("Kronos forecasts", show_progress):
        ahead = np.broadcast_to(stamps_ahead[day], (len(group), *stamps_ahead.shape[1:]))
        pooled = [
            draw_paths(
                predictor,
                group,
                ahead,
                replace(sampling, temperature=member.temperature),
                seed,
                lookback=member.lookback,
                mark=member.mark,
                # The paper's score is of the raw closes, which need not be positive.
                coherent=calibration is not None,
            )
            for member in members
        ]
        paths, last_close = np.concatenate(pooled, axis=1), group.last_close
        if broken := describe_broken(paths, last_close):
            moment, name = group.index[broken[0]]
            raise BarDataError(f"{name} at {moment}: {broken[1]}")
        if calibration is not None and states is not None:
            paths = calibration.apply(paths, group, ahead, settings, states[places])
        yield places, group, paths


def draw_paths(
    predictor: KronosPredictor,
    windows: Windows,
    stamps_ahead: npt.NDArray[np.int64],
    sampling: SamplingConfig,
    seed: int,
    *,
    lookback: int | None = None,
    mark: str = "",
    coherent: bool = True,
    verbose: bool = False,
) -> npt.NDArray[np.float32]:
    """Sampled futures of windows of one length, keyed by instrument and moment.

    Args:
        windows: N of them, all with as many bars seen.
        stamps_ahead: (N, H, 5) time fields of the bars to come.
        sampling: how; with `common` the windows of a moment share their random numbers.
        lookback: how many of the newest bars are seen; None: all.
        mark: the end of each key, which sets these paths apart from others of the same windows.
        coherent: see `KronosPredictor.paths`.

    Returns:
        (N, P, H, 6) float32 bars in their own units.
    """
    keys = [key + mark for key in windows.keys(by_name=not sampling.common)]
    bars, stamps = windows.seen(lookback)
    return predictor.paths(
        bars,
        stamps,
        stamps_ahead,
        stamps_ahead.shape[1],
        sampling=sampling,
        seed=seed,
        keys=keys,
        coherent=coherent,
        verbose=verbose,
    )


def exposures_from_windows(
    windows: Windows,
    needed: Sequence[str],
    sectors: Mapping[str, str] | None = None,
    unknown: str = "error",
) -> pd.DataFrame:
    """What scores are neutralised against, from the bars that each window has seen.

    Args:
        windows: by time.
        needed: of `signals.shaping.EXPOSURES`.
        sectors: instrument to sector; needed for "sector".
        unknown: what is done about an instrument without one, see `sectors_of`.

    Raises:
        BarDataError: bars without a logarithm (names instrument and date).
        ConfigError: an instrument has no sector.
    """
    index = windows.index
    numbers = [name for name in needed if name != SECTOR]
    table = {name: np.empty(len(windows), dtype=np.float64) for name in numbers}
    for _, places, group in windows.by_day() if numbers else ():
        measured = window_exposures(group.bars(slice(None)))
        for name in numbers:
            table[name][places] = measured[name]
    for name, values in table.items():
        broken = ~np.isfinite(values)
        if broken.any():
            moment, instrument = index[int(broken.argmax())]
            raise BarDataError(
                f"{instrument} at {moment}: its window has no {name}: closes must be positive "
                "and amounts not negative"
            )
    frame = pd.DataFrame(table, index=index)
    if SECTOR in needed:
        names = index.get_level_values("instrument").to_numpy()
        each, who = np.unique(names.astype(str), return_inverse=True)
        frame[SECTOR] = sectors_of(each.tolist(), sectors or {}, unknown)[who]
    return frame


def scores_from_bars(
    windows: Windows, kind: str, bars: int | None = None, skip: int | None = None
) -> Scores:
    """A baseline of the bars that each window has seen.

    Args:
        windows: N, by time.
        kind: of `signals.past_bars.BASELINES`.
        bars, skip: how many bars count, and how many of the newest are left out; None takes the
            baseline's own.

    Returns:
        (N,) in the baseline's own unit.

    Raises:
        BarDataError: bars without a logarithm (names instrument and date).
    """
    scores = np.empty(len(windows), dtype=np.float64)
    for _, places, group in windows.by_day():
        seen = group.bars(slice(None))
        if (place := first_broken(seen)) is not None:
            moment, name = group.index[place]
            raise BarDataError(f"{name}, window up to {moment}: {BROKEN}")
        scores[places] = baseline_of(kind, seen, bars, skip)
    return scores


def scores_from_alpha(
    predictor: KronosPredictor,
    head: Head,
    windows: Windows,
    show_progress: bool = False,
    *,
    contexts_folder: Path | None = None,
    report: Report | None = None,
    features: npt.NDArray[np.float32] | None = None,
) -> Scores:
    """What an alpha head says of each window among its day's: no return, a place in a ranking.

    Args:
        windows: by time. Those of a day are compared with each other, so all of a day are scored
            at once, whatever the memory their contexts are read in.
        contexts_folder: where contexts are found, and kept; None: neither. Scores are the same.
        report: takes a line now and then.
        features: (N, F) standardised over each day, as the head's `names`; None: `day_features`.

    Returns:
        (N,) in the head's own units; 0 on a day of too few names for a neutral head, see
        `model.sizes.fewest_names`, which the log says.
    """
    head = head.to(predictor.device).eval()
    _warn_of_small_days(head, windows)
    scores = np.empty(len(windows), dtype=np.float64)
    for day, inputs in head_inputs(
        predictor,
        head,
        windows,
        show_progress,
        contexts_folder=contexts_folder,
        report=report,
        features=features,
    ):
        scores[day] = scores_of(head, inputs, predictor.device)
    return scores


def _warn_of_small_days(head: Head, windows: Windows) -> None:
    least = fewest_names(head.config.neutral)
    small = [day.start for day in windows.moments() if day.stop - day.start < least]
    if small:
        first = windows.take(slice(small[0], small[0] + 1)).times[0]
        logger.warning(
            f"of {len(small)} times there are fewer than the {least} names that scores neutral to "
            f"{head.config.neutral} scale features take, the first {pd.Timestamp(first)}: all "
            "their scores are 0"
        )


def scores_from_gru(
    net: AlphaNet,
    windows: Windows,
    device: torch.device,
    show_progress: bool = False,
    columns: npt.NDArray[np.float32] | None = None,
) -> Scores:
    """The same of a head on a GRU: see `scores_from_alpha`.

    Args:
        net: a head, and a GRU in the predictor's place.
        device: scored on.
        columns: (N, C) beside the scale features, as of `day_features`.

    Returns:
        (N,) in the head's own units.
    """
    import torch

    from kronos_qlib.training.alpha import AlphaSegment, AlphaStep

    step = AlphaStep(net.to(device).eval(), None)
    _warn_of_small_days(net.head, windows)
    segment = AlphaSegment.of(windows, None, columns=columns)
    scores = np.empty(len(windows), dtype=np.float64)
    for day in progress(windows.moments(), "GRU", unit="day", show=show_progress):
        with torch.inference_mode():
            found = step.scores(segment.day_batch(np.arange(day.start, day.stop), device))
        scores[day] = found.cpu().numpy()
    return scores
