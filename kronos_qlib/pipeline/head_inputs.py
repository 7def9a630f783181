"""What an alpha head reads of a day's windows: the same to score, to explain and to shuffle.

Shape letters: N windows, B windows of a day, C width of all contexts that are read, F features,
M columns of the market's state.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kronos_qlib.data.windows.scale_features import SCALE_FEATURES
from kronos_qlib.errors import ConfigError
from kronos_qlib.log import progress, reported
from kronos_qlib.pipeline.contexts import Report, contexts_of, stored_contexts

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from kronos_qlib.data.windows.window import Windows
    from kronos_qlib.inference.predictor import KronosPredictor
    from kronos_qlib.model.alpha_head import Head

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class HeadInputs:
    """What an alpha head reads of one day's windows.

    contexts: (B, C) as the backbone leaves them, as the head's `reads` says; C is 0 where it reads
        none.
    features: (B, F) standardised over the day.
    names: (F,) of the features.
    market: (M,) the day's market state; None for a head that reads none.
    """

    contexts: Floats
    features: Floats
    names: tuple[str, ...]
    market: Floats | None = None

    def tensors(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, Tensor | None]:
        """All, in the order of the head's arguments."""
        import torch

        return (
            torch.from_numpy(self.contexts).to(device),
            torch.from_numpy(self.features).to(device),
            None if self.market is None else torch.from_numpy(self.market).to(device),
        )


def head_inputs(
    predictor: KronosPredictor,
    head: Head,
    windows: Windows,
    show_progress: bool = False,
    *,
    contexts_folder: Path | None = None,
    report: Report | None = None,
    features: Floats | None = None,
    what: str = "Kronos alpha",
) -> Iterator[tuple[slice, HeadInputs]]:
    """Each day of windows by time, and the inputs of a head that day.

    Args:
        contexts_folder: where contexts are found, and kept; None: neither. They are the same.
        report: takes a line now and then.
        features: (N, F) standardised over each day, as the head's `names`; None: `day_features`,
            which has the scale features alone.
        what: is being done with them, for the progress bar.

    Raises:
        BarDataError: names a window whose bars have no logarithm.
        ConfigError: `features` are not those that the head reads.
    """
    from kronos_qlib.training.alpha import day_inputs

    names = head.names or SCALE_FEATURES  # a head that was given no names
    _check_features(names, len(windows), features)
    stored = None
    if head.reads is not None and contexts_folder is not None:
        stored = stored_contexts(
            predictor, windows, contexts_folder, show_progress, pooling=head.reads, report=report
        )
    reads_market = head.usual_market is not None
    days = windows.moments()
    bar = progress(days, what, unit="day", show=show_progress)
    for day in reported(bar, what, report, unit="day", total=len(days)):
        one = windows.take(day)
        if stored is not None:
            contexts = stored[day]
        elif head.reads is not None:
            contexts = contexts_of(predictor, one, pooling=head.reads)
        else:
            contexts = np.zeros((len(one), 0), dtype=np.float32)
        own, market = None if features is None else features[day], None
        if own is None or reads_market:
            scale, [market] = day_inputs(one)
            own = scale if own is None else own
        yield day, HeadInputs(contexts, own, names, market if reads_market else None)


def scores_of(
    head: Head,
    inputs: HeadInputs,
    device: torch.device | str = "cpu",
    styles: Floats | None = None,
) -> npt.NDArray[np.float32]:
    """(B,) what the head, in evaluation mode on this device, says of one day's windows.

    Args:
        styles: (B, F) features that a neutral head's scores are neutral to; None: the inputs' own.
    """
    import torch

    neutral_to = None if styles is None else torch.from_numpy(styles).to(device)
    with torch.inference_mode():
        scores = head(*inputs.tensors(device), neutral_to)
    found: npt.NDArray[np.float32] = scores.float().cpu().numpy()
    return found


def _check_features(names: tuple[str, ...], count: int, features: Floats | None) -> None:
    if features is None and names != SCALE_FEATURES:
        others = ", ".join(name for name in names if name not in SCALE_FEATURES)
        raise ConfigError(
            f"the head reads other features than those of the bars alone ({others or 'fewer'}): "
            "give `features`, see pipeline.stages.features_to_score"
        )
    if features is not None and features.shape != (count, len(names)):
        raise ConfigError(
            f"the head reads {len(names)} features of each of {count} windows, got an array of "
            f"shape {features.shape}"
        )
