"""Windows to scores: from drawn paths, or from an alpha head on the context vector."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kronos_qlib.configs import SamplingConfig
from kronos_qlib.log import progress
from kronos_qlib.schema import CLOSE

if TYPE_CHECKING:
    from kronos_qlib.data.dataset import WindowDataset
    from kronos_qlib.data.windows import Windows
    from kronos_qlib.inference.predictor import KronosPredictor
    from kronos_qlib.model.alpha import AlphaHead

Scores = npt.NDArray[np.float64]

# In all of these a batch is one day's windows. A matrix product rounds by its shape: so a day
# scored alone, in a backtest, or before later bars existed gets the same bits.


def scores_from_paths(
    predictor: KronosPredictor,
    source: WindowDataset,
    windows: Windows,
    sampling: SamplingConfig,
    seed: int,
    show_progress: bool = False,
) -> Scores:
    """Mean predicted close over the horizon and all paths / last close - 1.

    Args:
        windows: of `source`, by time.

    Returns:
        (N,) returns, as long as the calendar says the same of the days to come always the same.

    Raises:
        CalendarError: the calendar does not reach a horizon past the last window.
    """
    days = windows.moments()
    newest = windows.take(np.array([day.start for day in days], dtype=np.int64))
    stamps_ahead = source.future_stamps(newest)  # all at once: a short calendar fails early
    scores = np.empty(len(windows), dtype=np.float64)
    for number, day in enumerate(
        progress(days, "Kronos forecasts", unit="day", show=show_progress)
    ):
        for which, group in windows.take(day).by_length():
            rows = group.rows(slice(None))
            paths = predictor.paths(
                group.table.values[rows],
                group.table.stamps_at(rows),
                np.broadcast_to(stamps_ahead[number], (len(group), *stamps_ahead.shape[1:])),
                source.horizon,
                T=sampling.temperature,
                top_k=sampling.top_k,
                top_p=sampling.top_p,
                sample_count=sampling.paths,
                seed=seed,
                keys=[
                    moment.isoformat() if sampling.common else f"{name} {moment.isoformat()}"
                    for moment, name in group.index
                ],
                coherent=False,  # the paper's score is of the raw closes
                rotate_s2=sampling.rotate_s2,
                stratified=sampling.stratified,
            )
            expected = paths[..., CLOSE].astype(np.float64).mean(axis=(1, 2))
            scores[day.start + which] = expected / group.last_close - 1
    return scores


def scores_from_alpha(
    predictor: KronosPredictor, head: AlphaHead, windows: Windows, show_progress: bool = False
) -> Scores:
    """What an alpha head says of each window among its day's: no return, a place in a ranking.

    Args:
        windows: by time. Those of a day are compared with each other.

    Returns:
        (N,) in the head's own units.
    """
    import torch

    from kronos_qlib.training.alpha import day_features

    head = head.to(predictor.device).eval()
    scores = np.empty(len(windows), dtype=np.float64)
    days = windows.moments()
    for day in progress(days, "Kronos alpha", unit="day", show=show_progress):
        one = windows.take(day)
        contexts = np.zeros((len(one), 0), dtype=np.float32)
        if head.narrow is not None:
            contexts = contexts_of(predictor, one)
        inputs = (contexts, day_features(one))
        with torch.inference_mode():
            said = head(*(torch.from_numpy(values).to(predictor.device) for values in inputs))
        scores[day] = said.float().cpu().numpy()
    return scores


def contexts_of(
    predictor: KronosPredictor, windows: Windows, show_progress: bool = False
) -> npt.NDArray[np.float32]:
    """(N, D) context vectors after each window's last bar; windows by time."""
    contexts = np.empty((len(windows), predictor.model.config.d_model), dtype=np.float32)
    days = windows.moments()
    for day in progress(days, "Kronos contexts", unit="day", show=show_progress):
        for which, group in windows.take(day).by_length():
            rows = group.rows(slice(None))
            bars, stamps = group.table.values[rows], group.table.stamps_at(rows)
            contexts[day.start + which] = predictor.embed(bars, stamps)
    return contexts
