"""check_lookahead: change every bar after a moment, and no score up to it may move.

It needs to know nothing of the model: whatever reads a Qlib folder and gives scores can be held to
it. Where a model is trained on the way, choose moments in the test segment, two bars or more after
its first: labels of the last days before it are returns of its first days.

    def scores_of(folder):  # Qlib is open on it
        dataset = init_instance_by_config(task["dataset"])
        model = init_instance_by_config(task["model"])
        model.fit(dataset)
        return model.predict(dataset)

    check_lookahead(read_bars("bars.csv").bars, scores_of, ["2024-09-12", "2024-10-08"])
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.errors import BarDataError, ConfigError, LookaheadError
from kronos_qlib.plugin.provider.writer import write_provider
from kronos_qlib.plugin.qlib_internals import clear_caches, metrics_dropped
from kronos_qlib.schema import AMOUNT, BAR_COLUMNS, PRICE_COLUMNS, VOLUME

Scores = pd.Series | pd.DataFrame


@dataclass(frozen=True)
class LookaheadReport:
    """What was held against what."""

    moments: tuple[pd.Timestamp, ...]
    """After each of them all bars were replaced, once."""
    compared: int
    """Scores at or before their moment, over all moments: none had changed."""
    moved: float
    """Share of the scores after their moment that changed, as they should."""


def check_lookahead(
    bars: pd.DataFrame,
    scores_of: Callable[[Path], Scores],
    moments: Iterable[Any],
    *,
    freq: str = "day",
    region: str = "us",
    benchmark: str | None = None,
    suspended: float = 0.15,
    tolerance: float = 0.0,
    seed: int = 0,
) -> LookaheadReport:
    """Score bars as they are, and again with all bars after each moment replaced.

    `scores_of` is called once more than there are moments, each time with Qlib opened anew on a
    folder of its own; afterwards Qlib has to be opened again on one's own data. What models log to
    `R` meanwhile is dropped, and no run may be open.

    Args:
        bars: `schema.LONG_COLUMNS`, some that end after each moment.
        scores_of: a Qlib provider folder to scores on (datetime, instrument), as a Series, or a
            frame of several. The same bars are to give the same scores: seed what is drawn.
        moments: times of bars; what bears the same time is known, what bears a later one is not.
        freq: of the bars, "day" or such as "5min".
        region: Qlib's.
        benchmark: as of `write_provider`, where `scores_of` reads one.
        suspended: share of the later bars that are taken out instead, of all names but one.
        tolerance: difference that is held for rounding. On a CPU none is needed; on a GPU a
            batch of another size rounds otherwise.
        seed: of the bars put in.

    Raises:
        LookaheadError: a score up to a moment changed, came or went; names the first by time,
            then by name.
        ConfigError: scores cannot be compared: they differ on the same bars, or none
            after the moments depends on the bars.
    """
    moments = tuple(pd.Timestamp(moment) for moment in moments)
    if not moments:
        raise ConfigError("check_lookahead needs one moment or more, times of bars")
    compared, later, moved = 0, 0, 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as kept:

        def scored(name: str, table: pd.DataFrame) -> Scores:
            folder = Path(kept, name)
            write_provider(table, folder, freq=freq, benchmark=benchmark)
            open_provider(folder, freq, region)
            with metrics_dropped():
                return scores_of(folder)

        usual = scored("as_they_are", bars)
        for number, moment in enumerate(moments):
            changed = replaced_after(bars, moment, suspended=suspended, seed=seed + number)
            scores = scored(f"replaced_{number}", changed)
            try:
                found = compare_scores(usual, scores, moment, tolerance)
            except LookaheadError:
                again = scored("once_more", bars)
                if not _table(again).equals(_table(usual)):
                    raise ConfigError(
                        "scores_of gives other scores when it is called again on the same bars, so "
                        "look-ahead cannot be checked: seed what it draws"
                    ) from None
                raise
            compared, later, moved = (
                one + other for one, other in zip((compared, later, moved), found, strict=True)
            )
    if not compared or not moved:
        raise ConfigError(
            f"of the scores, {compared} lie at or before their moment and {later} after, of which "
            f"{moved} changed with the bars: there must be some of each for the check to mean "
            "anything; choose moments within the scores, and read the folder that is given"
        )
    return LookaheadReport(moments, compared, moved / later)


def compare_scores(
    usual: Scores, changed: Scores, moment: pd.Timestamp, tolerance: float = 0.0
) -> tuple[int, int, int]:
    """Hold scores of changed bars against the usual ones.

    Args:
        usual, changed: on (datetime, instrument), each row once; of a frame any column counts.
        moment: the last that is known.
        tolerance: difference that is held for rounding.

    Returns:
        How many rows lie at or before the moment; how many after that both have; how many of
        these changed.

    Raises:
        LookaheadError: a row up to the moment changed, came or went.
        ConfigError: another index, a row twice, or other columns.
    """
    one, other = (_table(scores) for scores in (usual, changed))
    if list(one.columns) != list(other.columns):
        raise ConfigError(
            f"scores have the columns {list(one.columns)}, and of changed bars "
            f"{list(other.columns)}"
        )
    here, there = (table[_times(table) <= moment] for table in (one, other))
    every = here.index.union(there.index).sort_values()
    strange = _differ(here.reindex(every), there.reindex(every), tolerance)
    strange |= every.isin(here.index) != every.isin(there.index)
    if strange.any():
        when, name = every[int(strange.argmax())]
        raise LookaheadError(
            f"look-ahead: when only bars after {moment} are replaced, {name} at {when} changes: "
            f"{_change(here, there, (when, name))}. So do {int(strange.sum())} of {len(every)} "
            "scores at or before that moment: something that makes them reads later bars, such as "
            "Ref(..., -1) in a feature or a statistic of the whole period"
        )
    here, there = (table[_times(table) > moment] for table in (one, other))
    both = here.index.intersection(there.index)
    moved = _differ(here.loc[both], there.loc[both], tolerance)
    return len(every), len(both), int(moved.sum())


def replaced_after(
    bars: pd.DataFrame, moment: pd.Timestamp, *, suspended: float = 0.15, seed: int = 0
) -> pd.DataFrame:
    """Bars with other prices, sizes and suspensions after a moment, and the same up to it.

    Each later bar's prices are multiplied by a number of its own between 1/2 and 2, its volume by
    another, its amount by both. The first name keeps all its bars, and so the calendar its days.

    Raises:
        BarDataError: no bar comes after the moment, or none up to it.
    """
    rng = np.random.default_rng(seed)
    later = (bars["date"] > moment).to_numpy()
    if not later.any() or later.all():
        raise BarDataError(
            f"bars run from {bars['date'].min()} to {bars['date'].max()}: {moment} does not part "
            "them; choose a moment within"
        )
    price, size = (np.exp(rng.uniform(-np.log(2), np.log(2), int(later.sum()))) for _ in "ps")
    factors = dict.fromkeys(PRICE_COLUMNS, price)
    factors |= {BAR_COLUMNS[VOLUME]: size, BAR_COLUMNS[AMOUNT]: price * size}
    changed = bars.astype(dict.fromkeys(factors, np.float64))
    for column, factor in factors.items():
        changed.loc[later, column] *= factor
    first = (bars["symbol"] == bars["symbol"].min()).to_numpy()
    gone = later & ~first & (rng.random(len(bars)) < suspended)
    return changed[~gone]


def open_provider(
    folder: str | Path | Mapping[str, str | Path],
    freq: str = "day",
    region: str = "us",
    **settings: Any,
) -> None:
    """Open Qlib on a folder as if for the first time: nothing of another one is remembered.

    Args:
        folder: of the bars of `freq`; or each frequency's own.
        settings: others of `qlib.init`.
    """
    import qlib

    folders = folder if isinstance(folder, Mapping) else {freq: folder}
    qlib.init(
        provider_uri={each: str(place) for each, place in folders.items()},
        region=region,
        kernels=1,  # no processes, which cost more than a small folder's bars
        clear_mem_cache=True,
        skip_if_reg=False,
        **settings,
    )
    clear_caches()


def _table(scores: Scores) -> pd.DataFrame:
    table = scores.to_frame() if isinstance(scores, pd.Series) else scores
    if list(table.index.names) != ["datetime", "instrument"]:
        raise ConfigError(f"scores must be on (datetime, instrument), got {table.index.names}")
    if table.index.has_duplicates:
        moment, name = table.index[table.index.duplicated()][0]
        raise ConfigError(f"{name} has two scores at {moment}")
    return table


def _times(table: pd.DataFrame) -> pd.DatetimeIndex:
    return pd.DatetimeIndex(table.index.get_level_values("datetime"))


def _differ(one: pd.DataFrame, other: pd.DataFrame, tolerance: float) -> npt.NDArray[np.bool_]:
    """Rows of which a column differs; two NaN are the same."""
    here, there = (table.to_numpy(dtype=np.float64) for table in (one, other))
    with np.errstate(invalid="ignore"):  # an infinity less itself is NaN
        same = (np.abs(here - there) <= tolerance) | (here == there)
    same |= np.isnan(here) & np.isnan(there)
    return np.asarray(~same.all(axis=1))


def _change(here: pd.DataFrame, there: pd.DataFrame, row: Any) -> str:
    if row not in there.index:
        return "its score is gone"
    if row not in here.index:
        return "it has a score that it had not"
    one, other = here.loc[row], there.loc[row]
    differs = ((one != other) & ~(one.isna() & other.isna())).to_numpy()
    column = one.index[int(differs.argmax())]
    return f"{column} turns from {one[column]:.6g} to {other[column]:.6g}"
