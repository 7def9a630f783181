"""Daily bars of one share that walks at random, for tests of days and their names."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kronos_qlib.schema import BAR_COLUMNS


def random_share(rng, days):
    """Bars on these days, high highest and low lowest, amount as volume times close."""
    close = 10 * np.exp(np.cumsum(rng.normal(0, 0.02, len(days))))
    opened = close * np.exp(rng.normal(0, 0.01, len(days)))
    high, low = np.maximum(opened, close) * 1.01, np.minimum(opened, close) * 0.99
    volume = rng.uniform(1e4, 1e5, len(days))
    bars = np.stack([opened, high, low, close, volume, volume * close], axis=1)
    return pd.DataFrame(bars, index=days, columns=list(BAR_COLUMNS))
