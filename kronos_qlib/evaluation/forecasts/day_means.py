"""Means by day of what forecasts lost: windows of a day share its news and are one observation.

Shape letters: N windows, H bars of the horizon.
"""

from __future__ import annotations

import pandas as pd

from kronos_qlib.evaluation.forecasts.distributions import Floats, Outcomes

ALL = "all"
"""In place of a bar of the horizon: the mean of all."""


def by_day(values: Floats, outcomes: Outcomes) -> pd.DataFrame:
    """Daily means of (N, H) values: a row a day, a column for each bar, "1" on, and `ALL`."""
    *bars, _ = horizons(outcomes)
    daily = pd.DataFrame(values, columns=bars).groupby(outcomes.days).mean()
    return daily.assign(**{ALL: daily.mean(axis=1)})


def horizons(outcomes: Outcomes) -> list[str]:
    """Bars of the horizon as tables name them, and `ALL`."""
    return [*map(str, range(1, outcomes.horizon + 1)), ALL]


def label_days(outcomes: Outcomes, horizon: str) -> int:
    """Days that a return to this bar runs over; of all bars, to the last."""
    return outcomes.label_days(outcomes.horizon if horizon == ALL else int(horizon))
