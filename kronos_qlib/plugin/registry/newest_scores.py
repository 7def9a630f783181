"""Scores of the newest day by the model in force, and what belongs to them in the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

QUANTILES = tuple(round(0.05 * place, 2) for place in range(1, 20))
"""Levels of the forecasts that are kept: 0.05 to 0.95."""


@dataclass(frozen=True)
class NewestScores:
    """The scores of one day by one model.

    table: on instrument, by falling score: `score`, and where the model draws paths `q0.05` to
        `q0.95`, quantiles of the return from this close to that `horizon` bars on.
    facts: for the ledger, JSON: `model` (name, version, run, weights, code), `bars` (digest),
        `label`, `horizon`, `promised`, `inputs`.
    """

    model: str
    """As asked for: "models:/NAME@champion", or a run."""
    version: str
    day: pd.Timestamp
    table: pd.DataFrame
    facts: dict[str, Any]
    notes: tuple[str, ...]


def newest_scores(
    model: str,
    *,
    tracking_uri: str,
    provider_uri: str | None = None,
    day: str | None = None,
    beyond_calendar: str | None = None,
    quantiles: Sequence[float] | None = QUANTILES,
    trust: bool = False,
) -> NewestScores:
    """Score a day with a registered model, from its own files: no workflow, no run is needed.

    Args:
        model: "models:/NAME@ALIAS" or "models:/NAME/VERSION"; otherwise as `score_newest`'s `run`.
        provider_uri: the folder of bars; None takes the model's own.
        day: another day than the newest.
        beyond_calendar: as of `score_newest`.
        quantiles: levels, of models that draw paths; None keeps none.
        trust: as of `score_newest`.

    Raises:
        ConfigError: there is no such model, version, alias, folder or day.
        MissingArtifactError, UnsafeArtifactError, BarDataError, CalendarError: as `score_newest`.
    """
    raise NotImplementedError
