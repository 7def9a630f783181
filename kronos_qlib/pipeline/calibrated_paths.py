"""Windows with drawn paths to calibrated ones, and the calibration that ships with a checkpoint.

Shape letters: N windows, P paths, H bars of the horizon.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kronos_qlib.calibration.calibration import Calibration
from kronos_qlib.calibration.market_state import states_of
from kronos_qlib.data.windows.window import Windows
from kronos_qlib.data.windows.window_dataset import WindowDataset
from kronos_qlib.errors import BarDataError
from kronos_qlib.inference.calibrating import AT_ONCE, checkpoint_of, settings_of
from kronos_qlib.inference.choice import Chosen, choose
from kronos_qlib.inference.options import AUTO
from kronos_qlib.inference.sampling import SamplingConfig
from kronos_qlib.schema import BAR_COLUMNS, CLOSE, PRICE_COLUMNS

if TYPE_CHECKING:
    from kronos_qlib.inference.predictor import KronosPredictor

Floats = npt.NDArray[np.float64]
Bars = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class PathCalibration:
    """How the paths that signals are made of are calibrated: each window's own centre is kept.

    A ranking lives of the differences between the windows' centres, and a calibration by CRPS has
    shrunk these to what they are worth as forecasts: as a rule to nothing.
    """

    calibration: Calibration
    where_possible: bool = False
    """Leave a window's paths as they are where it cannot be calibrated; else it is an error."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Windows whose paths were left as they are, by reason; `apply` counts them."""

    def apply(
        self,
        paths: Bars,
        windows: Windows,
        ahead: npt.NDArray[np.int64],
        settings: Mapping[str, float],
        states: Floats,
    ) -> Bars:
        """Calibrated paths of windows of one length.

        Args:
            paths: (N, P, H, 6) coherent.
            ahead: (N, H, 5) time fields of the bars to come.
            settings: of `settings_of`. states: (N, 2) of `states_of`.

        Raises:
            BarDataError: a window cannot be calibrated; names instrument and date.
        """
        bars, stamps = windows.seen()
        # One halted name must not fail a run, nor be called certain where it can be left out.
        reasons = self.calibration.reasons_against(bars, stamps, refuse_still=self.where_possible)
        for place, reason in enumerate(reasons):
            if reason is None:
                continue
            if not self.where_possible:
                moment, name = windows.index[place]
                raise BarDataError(
                    f"{name} at {moment}: its paths cannot be calibrated: {reason}; score without "
                    "`calibration`, or leave such bars out"
                )
            self.left_out[reason] += 1
        can = np.flatnonzero([reason is None for reason in reasons])
        result = np.array(paths)
        if len(can):
            result[can] = self.calibration.apply(
                paths[can], bars[can], stamps[can], ahead[can], settings, states[can],
                keep_centre=True,
            )  # fmt: skip
        return result


def shipped_calibration(predictor: KronosPredictor) -> Chosen:
    """The one beside the weights of a predictor, where it was fitted on these very weights."""
    folder = predictor.model.origin.folder if predictor.model.origin else None
    return choose(AUTO, None, folder, lambda: checkpoint_of(predictor))


def calibrated_closes(
    calibration: Calibration,
    source: WindowDataset,
    windows: Windows,
    closes: Floats,
    sampling: SamplingConfig,
) -> Floats:
    """(N, P, H) calibrated closes of paths that `draw_closes` gave, in money.

    They are quantiles of a distribution at each bar: `PathDistribution(stratified=True)`. The state
    of the market counts. A price but the close that is not positive is taken to be the close, as
    where forecasts are judged.

    Args:
        windows: of `source`. closes: (N, P, H) in money.
        sampling: that they were drawn with.

    Raises:
        BarDataError: windows that cannot be calibrated.
    """
    ahead, states = source.future_stamps(windows), states_of(windows)
    settings = settings_of(sampling)
    result = np.empty_like(closes)
    for which, group in windows.by_length():
        for start in range(0, len(group), AT_ONCE):
            some = slice(start, start + AT_ONCE)
            places = which[some]
            bars, stamps = group.take(some).seen()
            shape = (*closes[places].shape, len(BAR_COLUMNS))
            paths = np.broadcast_to(closes[places][..., None], shape)
            moved = calibration.apply(
                paths, _priced(bars), stamps, ahead[places], settings, states[places]
            )
            result[places] = moved[..., CLOSE]
    return result


def _priced(bars: Bars) -> Bars:
    prices = bars[..., : len(PRICE_COLUMNS)]
    if (prices > 0).all():
        return bars
    result = bars.copy()
    result[..., : len(PRICE_COLUMNS)] = np.where(prices > 0, prices, bars[..., CLOSE, None])
    return result
