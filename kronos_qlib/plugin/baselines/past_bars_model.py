"""BaselineModel: a signal of past bars, such as momentum, as a Qlib model."""

from __future__ import annotations

import numpy as np
import pandas as pd
from qlib.log import get_module_logger
from qlib.model.base import Model

from kronos_qlib.data.windows.segments import Segment
from kronos_qlib.data.windows.window_dataset import WindowDataset, no_windows
from kronos_qlib.errors import ConfigError, NothingToScoreError
from kronos_qlib.pipeline.scoring import scores_from_bars
from kronos_qlib.plugin.dataset import KronosDataset, source_of
from kronos_qlib.signals.past_bars import (
    BASELINES,
    bars_needed,
    baseline_of,
)

logger = get_module_logger(__name__)


class BaselineModel(Model):
    """A signal of past bars as a model: it scores the windows that Kronos would, learning nothing.

    Args:
        kind: of `signals.past_bars.BASELINES`: momentum, reversal, low_volatility, low_amount.
        bars, skip: how many bars count, and how many of the newest are left out; None takes the
            baseline's own.
    """

    def __init__(self, kind: str, bars: int | None = None, skip: int | None = None) -> None:
        super().__init__()
        self.kind = kind
        self.bars = bars
        self.skip = skip
        baseline_of(kind, np.ones((1, 2, 6), dtype=np.float32), bars, skip)  # refuses early

    def fit(self, dataset: KronosDataset | WindowDataset, reweighter: object = None) -> None:
        """Nothing to learn."""
        logger.info(f"{self.kind}: {BASELINES[self.kind].definition}")

    def predict(
        self, dataset: KronosDataset | WindowDataset, segment: Segment = "test"
    ) -> pd.Series:
        """The baseline of each window whose last bar lies in the segment.

        Returns:
            "score" on (datetime, instrument), in the baseline's own unit.

        Raises:
            BarDataError: there is no window, or bars without a logarithm (names instrument, date).
            ConfigError: windows are shorter than what the baseline counts.
        """
        source = source_of(dataset, reader="BaselineModel")
        needed = bars_needed(self.kind, self.bars, self.skip)
        if source.lookback < needed:
            raise ConfigError(
                f"{self.kind} reads {needed} bars, the data set's windows have {source.lookback}"
            )
        windows = source.windows(segment)
        if not len(windows):
            raise NothingToScoreError(no_windows(source, segment, windows.dropped))
        if jumps := windows.describe_jumps():
            logger.warning(jumps)
        scores = scores_from_bars(windows, self.kind, self.bars, self.skip)
        return pd.Series(scores, index=windows.index, name="score").sort_index()
