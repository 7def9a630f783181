"""Scores of the newest day by the model in force, and what belongs to them in the ledger."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from kronos_qlib.plugin.registry.model_folder import about_folder, source_of_folder
from kronos_qlib.plugin.registry.registered_models import (
    REGISTRY,
    find_registered,
    registered_folder,
)
from kronos_qlib.plugin.runs.about_run import bars_digest, weights_digest
from kronos_qlib.plugin.runs.newest_day import (
    ModelSource,
    OpenedDay,
    ScoredDay,
    open_day,
    score_opened,
    source_of_run,
)
from kronos_qlib.plugin.runs.quiet import quiet_libraries
from kronos_qlib.plugin.runs.tracking import find_run, open_tracking
from kronos_qlib.plugin.task_sections import freq_of, label_bars_of, label_of
from kronos_qlib.version import __version__

QUANTILES = tuple(round(0.05 * place, 2) for place in range(1, 20))
"""Levels of the forecasts that are kept: 0.05 to 0.95."""


@dataclass(frozen=True)
class NewestScores:
    """The scores of one day by one model.

    table: on instrument, by falling score: `score`, and where the model draws paths `q0.05` to
        `q0.95`, quantiles of the return from this close to that `horizon` bars on.
    facts: for the ledger, JSON: `model` (name, version, run, weights, code), `bars` (digest),
        `label`, `label_bars`, `freq`, `horizon`, `promised`, `spreads`, `counts`.
    """

    model: str
    """As asked for: "models:/NAME@champion", or a run."""
    version: str
    """Of a registered model its version, of a run its id."""
    day: pd.Timestamp
    table: pd.DataFrame
    facts: dict[str, Any]
    notes: tuple[str, ...]
    ranking: pd.DataFrame
    """As `Scored.table`: with rank and age of bars."""


@dataclass(frozen=True)
class RegisteredDay(OpenedDay):
    """A registered model and a day.

    name: as asked for. version: of the model.
    """

    name: str
    version: str


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
        quantiles: levels, of a KronosModel whose score comes from paths; None keeps none. Other
            models draw none.
        trust: as of `score_newest`.

    Raises:
        ConfigError: there is no such model, version, alias, folder or day.
        MissingArtifactError, UnsafeArtifactError, BarDataError, CalendarError: as `score_newest`.
    """
    quiet_libraries()  # before anything is downloaded
    levels = {f"quantile@{level:g}": f"q{level:g}" for level in quantiles or ()}
    with _source(model, tracking_uri, trust) as (source, about, version):
        opened = open_day(
            source, provider_uri=provider_uri, day=day, beyond_calendar=beyond_calendar
        )
        _keep(opened.model, list(levels))
        scored = score_opened(opened)
        facts = _facts(model, version, source, about, opened, scored)
    table = scored.frame.loc[scored.table["instrument"]]
    table = table[["score", *(name for name in levels if name in table)]].rename(columns=levels)
    return NewestScores(
        model=model,
        version=version,
        day=scored.day,
        table=table.rename_axis("instrument"),
        facts=facts,
        notes=scored.notes,
        ranking=scored.table,
    )


@contextmanager
def open_registered(
    model: str, *, tracking_uri: str, trust: bool = False, **how: Any
) -> Iterator[RegisteredDay]:
    """A registered model and its data set on a day, as `open_run` has a run's; its files are gone
    afterwards.

    Args, Raises: as of `newest_scores`.
    """
    quiet_libraries()
    with _source(model, tracking_uri, trust) as (source, _, version):
        yield RegisteredDay(**vars(open_day(source, **how)), name=model, version=version)


@contextmanager
def _source(
    model: str, tracking_uri: str, trust: bool
) -> Iterator[tuple[ModelSource, Mapping[str, Any], str]]:
    """What the model is made of, what is known of it, and its version."""
    client = open_tracking(tracking_uri)
    if not model.startswith(REGISTRY):
        run_id = find_run(client, model).info.run_id
        yield source_of_run(client, run_id, trust=trust), {"run_id": run_id}, run_id
        return
    found = find_registered(client, model)
    with registered_folder(client, found) as folder:
        source = source_of_folder(folder, found.uri, trust=trust)
        yield source, about_folder(folder, found.uri), found.version


def _keep(model: Any, quantiles: list[str]) -> None:
    """Let a KronosModel say quantiles beside its score where that comes from paths, else nothing:
    a head's score needs none drawn."""
    from kronos_qlib.plugin.model import ALPHA, KronosModel

    if not isinstance(model, KronosModel):
        return
    score, has_head = model.signal_settings.score, model.training.alpha or model.alpha_head
    draws_paths = score != ALPHA if score is not None else not has_head
    model.signal_settings = replace(model.signal_settings, keep=quantiles if draws_paths else [])


def _facts(
    asked: str,
    version: str,
    source: ModelSource,
    about: Mapping[str, Any],
    opened: OpenedDay,
    scored: ScoredDay,
) -> dict[str, Any]:
    from kronos_qlib.plugin.dataset import NEXT_DAY_RETURN
    from kronos_qlib.plugin.registry.inputs import counts_of

    freq, spreads = freq_of(source.task), about.get("spreads", {})
    return {
        "model": {
            "name": asked,
            "version": version,
            "run": about.get("run_id"),
            "weights": weights_digest(opened.model),
            "trained_with": about.get("versions", {}),
            "scored_with": __version__,
        },
        "bars": bars_digest(opened.dataset),
        "label": label_of(source.task) or NEXT_DAY_RETURN,
        "label_bars": label_bars_of(source.task),
        "freq": freq,
        "horizon": int(getattr(opened.dataset, "horizon", 1)),
        "promised": about.get("promised", {}),
        "spreads": spreads,
        "counts": counts_of(spreads, scored.frame["score"], scored.day, freq) if spreads else {},
    }
