"""Scores shaped before they are traded: compared within a day, smoothed over the days before.

Whatever is done to a day's scores uses that day and earlier ones only, and gives a day scored alone
the same bits as the same day among others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import rankdata

from kronos_qlib.data.calendar.stamps import Times
from kronos_qlib.errors import BarDataError, ConfigError, UndefinedMetricError
from kronos_qlib.schema import AMOUNT, CLOSE

Doubles = npt.NDArray[np.float64]

SECTOR, SIZE, VOLATILITY = EXPOSURES = ("sector", "size", "volatility")
"""What scores can be neutralised against: columns of the exposures."""

NOTHING_LEFT = 1e-9
"""What remains of a day's scores is rounding if its share of their spread is less."""

HALFLIVES = 5
"""Half-lives that an exponential mean looks back by default: 3 % of the weight lies beyond."""


@dataclass(frozen=True)
class Rank:
    """Percentile within the day, in (0, 1]; ties share the mean of theirs."""

    def of_day(self, scores: Doubles, exposures: pd.DataFrame) -> Doubles:
        """(N,) percentiles in (0, 1] of one day's (N,) scores; exposures are not read."""
        return np.asarray(rankdata(scores) / len(scores), dtype=np.float64)


@dataclass(frozen=True)
class ZScore:
    """Distance from the day's mean in its (population) deviations; 0 where all are alike."""

    def of_day(self, scores: Doubles, exposures: pd.DataFrame) -> Doubles:
        """(N,) standardised scores of one day's (N,); exposures are not read."""
        spread = scores.std()
        if spread <= NOTHING_LEFT * np.abs(scores).max():
            return np.zeros_like(scores)
        return np.asarray((scores - scores.mean()) / spread)


@dataclass(frozen=True)
class Winsorise:
    """What lies beyond a quantile of the day is moved to it, at both ends."""

    share: float

    def of_day(self, scores: Doubles, exposures: pd.DataFrame) -> Doubles:
        """(N,) scores of one day, those beyond the quantiles moved to them."""
        low, high = np.quantile(scores, (self.share, 1 - self.share))
        return np.clip(scores, low, high)


@dataclass(frozen=True)
class Neutralise:
    """What exposures do not explain: the day's residual after least squares on them.

    Size and volatility enter standardised, sectors as dummies; there is always an intercept. A day
    with no more names than coefficients has nothing left: all 0.
    """

    against: tuple[str, ...]

    def of_day(self, scores: Doubles, exposures: pd.DataFrame) -> Doubles:
        """(N,) residuals of one day's (N,) scores, in their unit; exposures have N rows."""
        columns = [np.ones((len(scores), 1))]
        for name in self.against:
            if name == SECTOR:
                codes, sectors = pd.factorize(exposures[name])
                # The first sector's dummy is the intercept less the others.
                columns.append((codes[:, None] == np.arange(1, len(sectors))).astype(np.float64))
            else:
                values = exposures[name].to_numpy(dtype=np.float64)
                columns.append(ZScore().of_day(values, exposures)[:, None])
        known = np.concatenate(columns, axis=1)
        found, _, rank, _ = np.linalg.lstsq(known, scores, rcond=None)
        left = scores - known @ found
        if rank >= len(scores) or left.std() <= NOTHING_LEFT * np.abs(scores).max():
            return np.zeros_like(scores)
        return np.asarray(left)


@dataclass(frozen=True)
class Smooth:
    """Mean of an instrument's scores on this day and the `days` - 1 before it.

    Days are the market's, and bars where bars are of minutes: one on which it had no score counts
    for nothing. With `halflife`, in days, a score weighs half as much as one that many days
    younger.
    """

    days: int
    halflife: float | None = None

    def over_days(self, scores: pd.Series[float], calendar: Times) -> pd.Series[float]:
        """Smoothed scores on the same index.

        Args:
            scores: on (datetime, instrument), one row each.
            calendar: (K,) datetime64[ns] increasing: the days that there were.

        Raises:
            ConfigError: a score's moment is not in the calendar.
        """
        moments = scores.index.get_level_values("datetime").to_numpy("datetime64[ns]")
        places = np.searchsorted(calendar, moments)
        if not np.isin(moments, calendar).all():
            raise ConfigError("smooth: a score stands at a moment that the calendar does not have")
        names, who = np.unique(scores.index.get_level_values("instrument"), return_inverse=True)
        rows = places - places.min(initial=0) + self.days - 1
        table = np.full((rows.max(initial=0) + 1, len(names)), np.nan)
        table[rows, who] = scores.to_numpy(dtype=np.float64)
        total, weights = np.zeros(len(scores)), np.zeros(len(scores))
        for age in range(self.days):  # newest first: what lies before the first day adds exact 0
            weight = 1.0 if self.halflife is None else 0.5 ** (age / self.halflife)
            then = table[rows - age, who]
            known = np.isfinite(then)
            total += np.where(known, weight * then, 0.0)
            weights += np.where(known, weight, 0.0)
        return pd.Series(total / weights, index=scores.index, name=scores.name)


Step = Rank | ZScore | Winsorise | Neutralise | Smooth

STEPS: Mapping[str, Callable[[object], Step]] = {
    "rank": lambda value: Rank(),
    "zscore": lambda value: ZScore(),
    "winsorise": lambda value: Winsorise(_share(value)),
    "neutralise": lambda value: Neutralise(_exposures(value)),
    "smooth": lambda value: _smooth(value),
}
PLAIN = ("rank", "zscore")
"""Steps that take no setting."""


def steps_of(shape: Sequence[str | Mapping[str, Any]]) -> tuple[Step, ...]:
    """The steps a workflow file asks for, in its order.

    Args:
        shape: such as [{"winsorise": 0.01}, {"neutralise": ["sector", "size"]}, "zscore",
            {"smooth": 3}]; smooth takes days, or {"halflife": 2} and optionally "days".

    Raises:
        ConfigError: a step is unknown or its setting cannot work.
    """
    steps = []
    for entry in shape:
        if isinstance(entry, str):
            name, value = entry, None
        elif isinstance(entry, Mapping) and len(entry) == 1:
            name, value = next(iter(entry.items()))
        else:
            raise ConfigError(
                f"a step of shape is a name or one name with its setting, got {entry!r}"
            )
        if name not in STEPS:
            raise ConfigError(f"shape has no step {name!r}; known: {', '.join(STEPS)}")
        if (name in PLAIN) != (value is None):
            how = "no setting" if name in PLAIN else "a setting"
            raise ConfigError(f"shape: {name} takes {how}, got {entry!r}")
        steps.append(STEPS[name](value))
    return tuple(steps)


def history_of(steps: Sequence[Step]) -> int:
    """How many earlier days a day's shaped scores depend on."""
    return sum(step.days - 1 for step in steps if isinstance(step, Smooth))


def exposures_needed(steps: Sequence[Step]) -> tuple[str, ...]:
    """Columns of the exposures that these steps read."""
    asked = {name for step in steps if isinstance(step, Neutralise) for name in step.against}
    return tuple(name for name in EXPOSURES if name in asked)


def shaped(
    scores: pd.Series[float],
    steps: Sequence[Step],
    exposures: pd.DataFrame | None = None,
    calendar: Times | None = None,
) -> pd.Series[float]:
    """Scores after the steps, one after another.

    Args:
        scores: on (datetime, instrument), finite, sorted by datetime.
        exposures: on the same index, the columns that `exposures_needed` names.
        calendar: (K,) datetime64[ns] increasing, the days there were; None takes those of the
            scores.

    Returns:
        On the same index, under the same name.

    Raises:
        BarDataError: a score or an exposure is missing (names instrument and time).
        ConfigError: exposures lack a column that a step reads, or rows of the scores.
    """
    needed = list(exposures_needed(steps))
    table = pd.DataFrame(index=scores.index)
    if needed:
        if exposures is None or not set(needed) <= set(exposures):
            raise ConfigError(f"neutralise reads the exposures {', '.join(needed)}; give them")
        if not exposures.index.equals(scores.index):
            raise ConfigError("exposures stand on another index than the scores")
        table = exposures[needed]
    _refuse_missing(scores.to_frame("score").join(table))
    moments = scores.index.get_level_values("datetime").to_numpy("datetime64[ns]")
    if (np.diff(moments) < np.timedelta64(0)).any():
        raise ConfigError("scores are to be sorted by datetime; sort_index() does it")
    days = np.unique(moments) if calendar is None else calendar
    changes = np.flatnonzero(moments[1:] != moments[:-1]) + 1
    bounds = [0, *changes.tolist(), len(scores)] if len(scores) else []
    result = scores.astype(np.float64)
    for step in steps:
        if isinstance(step, Smooth):
            result = step.over_days(result, days)
            continue
        values: Doubles = np.array(result, dtype=np.float64)
        for start, stop in pairwise(bounds):
            values[start:stop] = step.of_day(values[start:stop], table.iloc[start:stop])
        result = pd.Series(values, index=scores.index, name=scores.name)
    return result


def turnover(scores: pd.Series[float]) -> float:
    """How much of a book that holds the ranks changes from one day to the next, on average.

    The book is long the upper half of the day's ranks and short the lower, by their distance from
    the middle, 1 of money in all. 0: the same order of the same names; 1: another book altogether,
    all of it sold and another bought.

    Args:
        scores: on (datetime, instrument).

    Raises:
        UndefinedMetricError: there are not two days.
    """
    wide = scores.unstack("instrument").sort_index()
    if len(wide) < 2:
        raise UndefinedMetricError("a turnover needs scores of two days at least")
    ranks = wide.rank(axis=1)
    centred = ranks.sub(ranks.mean(axis=1), axis=0)
    gross = centred.abs().sum(axis=1)
    book = centred.div(gross.where(gross > 0, 1.0), axis=0).fillna(0.0)
    return float(book.diff().iloc[1:].abs().sum(axis=1).mean() / 2)


def window_exposures(bars: npt.NDArray[np.float32]) -> dict[str, Doubles]:
    """Size and volatility of windows, from the bars they have seen.

    Args:
        bars: (N, T, 6) in their own units, T at least 2, closes positive, amounts not negative.

    Returns:
        (N,) "size": log of (1 +) the mean amount of money traded in a bar; "volatility": standard
        deviation of log returns from close to close, per bar. Not finite for other bars.
    """
    wide = bars.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        moves = np.diff(np.log(wide[..., CLOSE]), axis=1)
        size = np.log1p(wide[..., AMOUNT].mean(axis=1))
    return {SIZE: np.asarray(size), VOLATILITY: np.asarray(moves.std(axis=1))}


def read_sectors(path: str | Path) -> dict[str, str]:
    """Instrument to sector, from a table with the columns "instrument" and "sector".

    Args:
        path: a CSV (UTF-8, names are text whatever they look like) or Parquet file.

    Raises:
        ConfigError: the file is missing or no such table, or names an instrument twice.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ConfigError(f"no file of sectors at {path.absolute()}")
    if path.suffix.lower() == ".parquet":
        table = pd.read_parquet(path)
    elif path.suffix.lower() == ".csv":
        # An instrument may be called NA, or 000001.
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    else:
        raise ConfigError(f"{path}: sectors are read from a .csv or .parquet file")
    for column in ("instrument", SECTOR):
        if column not in table:
            raise ConfigError(
                f"{path} has no column {column!r}; it has {', '.join(map(str, table.columns))}"
            )
    twice = table["instrument"][table["instrument"].duplicated()]
    if len(twice):
        raise ConfigError(f"{path} names the instrument {twice.iloc[0]!r} twice")
    known = table[table[SECTOR].notna() & (table[SECTOR].astype(str) != "")]
    return dict(zip(known["instrument"].astype(str), known[SECTOR].astype(str), strict=True))


def sectors_of(
    instruments: Sequence[str], sectors: Mapping[str, str], unknown: str = "error"
) -> npt.NDArray[np.object_]:
    """(N,) sector of each instrument.

    Args:
        unknown: "error", or "group": those without a sector are one of their own.

    Raises:
        ConfigError: an instrument has none, and `unknown` is "error" (names it).
    """
    found = [sectors.get(str(name)) for name in instruments]
    lacking = sorted({str(name) for name, has in zip(instruments, found, strict=True) if not has})
    if lacking and unknown == "error":
        raise ConfigError(
            f"{len(lacking)} instruments have no sector, {', '.join(lacking[:5])} among them; "
            "name theirs, or put them in one group with sectors.unknown: group"
        )
    return np.array([has or "unknown" for has in found], dtype=object)


def _refuse_missing(table: pd.DataFrame) -> None:
    for name in table:
        column = table[name]
        is_number = pd.api.types.is_numeric_dtype(column)
        missing = ~np.isfinite(column) if is_number else column.isna()
        if missing.any():
            moment, instrument = table.index[int(missing.to_numpy().argmax())]
            raise BarDataError(f"{instrument} at {moment}: {name} is missing or not finite")


def _share(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 0.5:
        raise ConfigError(
            f"winsorise takes the share moved at each end, in (0, 0.5), got {value!r}"
        )
    return float(value)


def _exposures(value: object) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if (
        not isinstance(names, (list, tuple))
        or not len(names) == len(set(names)) > 0
        or not set(names) <= set(EXPOSURES)
    ):
        raise ConfigError(f"neutralise takes some of {', '.join(EXPOSURES)}, got {value!r}")
    return tuple(names)


def _smooth(value: object) -> Smooth:
    settings = value if isinstance(value, Mapping) else {"days": value}
    if not settings or not set(settings) <= {"days", "halflife"}:
        raise ConfigError(f"smooth takes days, or halflife and optionally days, got {value!r}")
    halflife = settings.get("halflife")
    if halflife is not None and not (isinstance(halflife, (int, float)) and 0 < halflife < 1000):
        raise ConfigError(f"smooth.halflife is a number of days above 0, got {halflife!r}")
    days = settings.get("days")
    if days is None and halflife is not None:
        days = int(np.ceil(HALFLIVES * halflife))
        days = max(days, 2)
    if not isinstance(days, int) or isinstance(days, bool) or days < 2:
        raise ConfigError(f"smooth takes 2 days or more, this one included, got {days!r}")
    return Smooth(days, None if halflife is None else float(halflife))
