"""Calibrated paths: the marginals of past volatility, in the order of the paths drawn.

Shape letters: N windows, L bars seen, P paths, H bars of the horizon.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from kronos_qlib.calibration.market_state import MARKET
from kronos_qlib.calibration.past_volatility import (
    ESTIMATES,
    LEAST_BARS,
    STOOD_STILL,
    are_prices,
    log_volatilities,
    stood_still,
)
from kronos_qlib.calibration.path_terms import PathTerms
from kronos_qlib.calibration.season import Season, has_all_hours
from kronos_qlib.calibration.spread import Regressors, SpreadModel, windows_needed
from kronos_qlib.calibration.student import student_quantiles
from kronos_qlib.errors import BarDataError, CheckpointError, ConfigError, printable, short_repr
from kronos_qlib.files import replacing
from kronos_qlib.schema import CLOSE, PRICE_COLUMNS, TIME_FIELDS, VOLUME
from kronos_qlib.settings import from_mapping, require
from kronos_qlib.strict_json import read_object

Floats = npt.NDArray[np.float64]
Bars = npt.NDArray[np.floating[Any]]
Stamps = npt.NDArray[np.integer[Any]]

DAY, INTRADAY = "day", "intraday"
KINDS = (DAY, INTRADAY)
"""Bars of a day or longer, and shorter ones: their volatility behaves differently."""
CLOCK = slice(TIME_FIELDS.index("minute"), TIME_FIELDS.index("hour") + 1)
MINUTE, HOUR, WEEKDAY = (TIME_FIELDS.index(name) for name in ("minute", "hour", "weekday"))
DATE = slice(TIME_FIELDS.index("day"), TIME_FIELDS.index("month") + 1)
OWN = ESTIMATES[1:]
"""Regressors of a window's own bars."""
MOST_STEP = 7 * 24 * 60
"""Minutes between bars, beyond which all are alike: time fields name no year."""
LIKE_STEP = 1.5
"""Bars whose step differs by less than this factor are of the same step."""
MOST_SCALE = 10.0
"""Of a log return; a window whose past says more is capped."""
MOST_MOVE = 30.0
"""Largest log return of a path either way: prices stay above 0 in float32."""
LEAST_WINDOWS = windows_needed(len(OWN) + len(MARKET))
"""Windows of one kind that a calibration is fitted on, at least."""
FILE = "calibration.json"
"""Its name beside the weights of a checkpoint."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Windows whose future has come, to fit on.

    Raises:
        BarDataError: shapes do not agree, or a price is not positive and finite; says which.
    """

    bars: Bars
    """(N, L, 6) seen, prices positive."""
    stamps: Stamps
    """(N, L, 5) their time fields."""
    ahead: Stamps
    """(N, H, 5) those of the bars that came."""
    closes: Bars
    """(N, H) closes that came, in money."""
    times: npt.NDArray[np.datetime64]
    """(N,) of the last bars seen."""
    market: Floats | None = None
    """(N, 2) of `market_state.states_of`."""
    drawn: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """(M,) places of the windows that paths were drawn for."""
    paths: Bars | None = None
    """(M, P, H) closes of those paths, in money."""
    newest: np.datetime64 | None = None
    """Time of the newest close that came; None: that of the last bar seen."""

    def __post_init__(self) -> None:
        windows, horizon = self.closes.shape
        shapes = [self.bars.shape[:1], self.stamps.shape[:1], self.ahead.shape[:2]]
        if shapes != [(windows,), (windows,), (windows, horizon)] or len(self.times) != windows:
            raise BarDataError(
                f"expected {windows} windows and {horizon} bars ahead throughout, got "
                f"{shapes} and {len(self.times)} times"
            )
        if self.paths is not None and (
            self.paths.ndim != 3
            or (len(self.paths), self.paths.shape[2]) != (len(self.drawn), horizon)
        ):
            raise BarDataError(
                f"expected paths ({len(self.drawn)}, P, {horizon}), got {self.paths.shape}"
            )
        if self.market is not None and (
            self.market.shape != (windows, len(MARKET)) or not np.isfinite(self.market).all()
        ):
            raise BarDataError(
                f"expected finite states of the market ({windows}, {len(MARKET)}), got "
                f"{self.market.shape}"
            )
        if len(self.drawn) and not (0 <= self.drawn.min() <= self.drawn.max() < windows):
            raise BarDataError(f"expected drawn windows among {windows}, got {self.drawn.max()}")
        prices = {
            "bars seen": self.bars[..., : len(PRICE_COLUMNS)],
            "closes that came": self.closes,
            "closes of paths": self.paths,
        }
        for name, values in prices.items():
            if values is not None and not are_prices(values):
                raise BarDataError(f"calibration needs positive finite prices: {name} have another")

    @property
    def returns(self) -> Floats:
        """(N, H) log returns from the last close seen."""
        return _log_returns(self.closes, self.bars[:, -1, CLOSE])


@dataclass(frozen=True)
class Fit:
    """What was fitted on bars of one kind."""

    own: SpreadModel
    """From a window's own bars."""
    market: SpreadModel | None = None
    """From them and the state of the market, where that is known."""
    season: Season | None = None
    """Of markets that trade around the clock."""
    paths: PathTerms | None = None
    steps: tuple[int, ...] | None = None
    """Minutes between the bars that it was fitted on, as of `steps_of`, ascending."""

    def __post_init__(self) -> None:
        is_known = isinstance(self.steps, tuple) and all(
            type(step) is int and 0 < step <= MOST_STEP for step in self.steps
        )
        require(
            self.steps is None or (is_known and sorted({*self.steps}) == [*self.steps] != []),
            f"steps must be ascending minutes from 1 to {MOST_STEP}, got {short_repr(self.steps)}",
        )
        parts = {
            "own": (self.own, SpreadModel, OWN),
            "market": (self.market, SpreadModel, (*OWN, *MARKET)),
            "season": (self.season, Season, None),
            "paths": (self.paths, PathTerms, None),
        }
        for name, (part, kind, names) in parts.items():
            is_absent = part is None and name != "own"
            require(is_absent or isinstance(part, kind), f"{name} must be a {kind.__name__}")
            if isinstance(part, SpreadModel):
                require(
                    part.names == names, f"{name} has regressors {part.names}, expected {names}"
                )

    @classmethod
    def of(cls, samples: list[Sample]) -> Fit:
        """Fit on windows of one kind, of one market or several with equally many bars ahead.

        Raises:
            ConfigError: too few windows.
            BarDataError: prices are not positive, or windows too short.
        """
        season = next(
            (found for one in samples if (found := Season.fit(_floats(one.bars), one.stamps))), None
        )
        known = [_known(sample.bars, sample.stamps, sample.ahead, season) for sample in samples]
        returns = np.concatenate([sample.returns for sample in samples])
        own = SpreadModel.fit(_joined(known), returns)
        market = None
        if all(sample.market is not None for sample in samples):
            pairs = zip(known, samples, strict=True)
            both = [_with_market(regressors, sample.market) for regressors, sample in pairs]
            market = SpreadModel.fit(_joined(both), returns)
        parts = []
        for regressors, sample in zip(known, samples, strict=True):
            if sample.paths is None:
                continue
            drawn = sample.drawn
            start = sample.bars[drawn, -1, CLOSE]
            parts.append(
                (
                    _log_returns(sample.paths, start[:, None]),
                    sample.returns[drawn],
                    own.log_scale(regressors.take(drawn), sample.closes.shape[1]),
                    sample.times[drawn].astype("datetime64[D]"),
                )
            )
        terms = None
        if parts:
            paths, came, scale, days = (np.concatenate(part) for part in zip(*parts, strict=True))
            terms = PathTerms.fit(paths, came, scale, own.dof, days)
        steps = np.unique(np.concatenate([steps_of(sample.stamps) for sample in samples]))
        return cls(own, market, season, terms, tuple(steps.tolist()))

    def marginals(
        self,
        bars: Bars,
        stamps: Stamps,
        ahead: Stamps,
        log_paths: Floats | None = None,
        market: Floats | None = None,
    ) -> tuple[Floats, Floats, float]:
        """Centre and log scale, (N, H) each, and degrees of freedom of the t of the log return.

        Args:
            bars, stamps, ahead: as of `Sample`.
            log_paths: (N, P, H) log returns of paths; None: they add nothing.
            market: (N, 2) of `market_state.states_of`; None: unknown.
        """
        known = _known(bars, stamps, ahead, self.season)
        spread = self.own
        if market is not None and self.market is not None:
            known, spread = _with_market(known, market), self.market
        log_scale = spread.log_scale(known, ahead.shape[1])
        if log_paths is None or self.paths is None:
            return np.zeros_like(log_scale), log_scale, spread.dof
        centre, log_scale = self.paths.apply(log_paths, log_scale)
        return centre, log_scale, spread.dof


@dataclass(frozen=True)
class Calibration:
    """Post-processing of the paths of one checkpoint, fitted on windows whose future had come.

    To each bar of the horizon the return gets a Student's t around the last close, whose scale is
    regressed on a window's past volatility, with the least mean CRPS. Paths stay paths: at each
    bar they get the quantiles of that distribution in the order in which they were drawn, so what
    they say of rises after falls, of volume, and of the shape of a bar stays theirs. What their own
    spread and mean add is in it as far as it helped on held-out days.

    Source:
        Nonhomogeneous regression by CRPS: Gneiting and others, Monthly Weather Review 133 (2005).
        The order of the paths: Schefzik, Thorarinsdottir and Gneiting, "Uncertainty quantification
        in complex simulation models using ensemble copula coupling", Statistical Science 28 (2013).
    """

    fits: Mapping[str, Fit]
    """By kind of bars, of `KINDS`."""
    checkpoint: str
    """Fingerprint of predictor and tokenizer."""
    sampling: Mapping[str, float]
    """Settings of the paths that it was fitted on; of others their spread and mean add nothing."""
    until: str
    """Time of the newest close that it has seen: forecasts made before are not out of sample."""
    about: str = ""
    """What it was fitted on, in words."""

    def __post_init__(self) -> None:
        unknown = set(self.fits) - set(KINDS)
        require(
            bool(self.fits) and not unknown,
            f"fits of a calibration are by {' and '.join(KINDS)}, got "
            f"{short_repr(list(self.fits))}",
        )
        for name in ("checkpoint", "until", "about"):
            value = getattr(self, name)
            require(isinstance(value, str), f"{name} must be a text, got {short_repr(value)}")
        require(_is_time(self.until), f"until must be a time, got {short_repr(self.until)}")
        is_mapping = isinstance(self.sampling, Mapping)
        require(is_mapping, f"sampling must be settings, got {short_repr(self.sampling)}")
        for name, value in self.sampling.items():
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            require(
                isinstance(name, str) and is_number and bool(np.isfinite(value)),
                f"sampling has {short_repr(name)}: {short_repr(value)}, expected a number",
            )

    def reasons_against(
        self, bars: Bars, stamps: Stamps, refuse_still: bool = False
    ) -> list[str | None]:
        """Why each of N windows cannot be calibrated; None for one that can.

        Args:
            bars, stamps: (N, L, 6) and (N, L, 5) seen.
            refuse_still: prices that stood still are a reason too. They can be calibrated, to next
                to no width.
        """
        if bars.shape[1] < LEAST_BARS:
            reason = f"{bars.shape[1]} bars were seen, and volatility takes {LEAST_BARS}"
            return [reason] * len(bars)
        found: list[str | None] = [None] * len(bars)
        if refuse_still:
            _say(found, stood_still(bars), STOOD_STILL)
        kinds = kinds_of(stamps)
        for kind in sorted(set(KINDS) - set(self.fits)):
            _say(found, kinds == kind, f"it was not fitted on {kind} bars")
        prices = bars[..., : len(PRICE_COLUMNS)]
        is_priced = np.asarray(((prices > 0) & (prices < np.inf)).all(axis=(1, 2)))
        _say(found, ~is_priced, "a price is not positive and finite")
        return found

    def unlike_steps(self, stamps: Stamps) -> npt.NDArray[np.int64]:
        """(N,) minutes between the bars of windows (N, L, 5) where none such were fitted on, or 0.

        Volatility scales much alike, so it is used on them, but nothing was checked there.
        """
        found = steps_of(stamps)
        kinds = kinds_of(stamps)
        unlike = np.zeros_like(found)
        for kind, fit in self.fits.items():
            if fit.steps is None:
                continue
            ratio = found[:, None] / np.array(fit.steps)
            is_like = ((ratio < LIKE_STEP) & (ratio > 1 / LIKE_STEP)).any(axis=1)
            unlike[(kinds == kind) & ~is_like] = found[(kinds == kind) & ~is_like]
        return unlike

    def apply(
        self,
        paths: Bars,
        bars: Bars,
        stamps: Stamps,
        ahead: Stamps,
        sampling: Mapping[str, float] | None = None,
        market: Floats | None = None,
        keep_centre: bool = False,
    ) -> Bars:
        """Calibrated paths: a new array of the same shape and type.

        All four prices of a bar and its amount are multiplied by one factor, so that a bar that
        could be traded stays one; volume stays.

        Args:
            paths: (N, P, H, 6) coherent bars in their own units.
            bars, stamps: (N, L, 6) and (N, L, 5) what they were drawn from.
            ahead: (N, H, 5) time fields of the bars to come.
            sampling: settings that paths were drawn with, as of `sampling`; None: the same.
            market: (N, 2) of `market_state.states_of`; None: unknown.
            keep_centre: a window's expected log return stays the mean of its own paths', as a
                ranking of windows needs it, however little that earned in CRPS.

        Raises:
            BarDataError: these windows cannot be calibrated, shapes do not agree, or a path's
                close is not positive and finite.
        """
        windows, _, horizon = paths.shape[:3]
        shapes = [
            len(bars),
            len(stamps),
            ahead.shape[:2],
            windows if market is None else len(market),
        ]
        if shapes != [windows, windows, (windows, horizon), windows]:
            raise BarDataError(
                f"paths {paths.shape} do not belong to bars {bars.shape}, stamps {stamps.shape}, "
                f"stamps ahead {ahead.shape}"
                + ("" if market is None else f", states of the market {market.shape}")
            )
        reason = next(filter(None, self.reasons_against(bars, stamps)), None)
        if reason is not None:
            raise BarDataError(f"no calibration: {reason}")
        closes = paths[..., CLOSE].astype(np.float64)
        if not are_prices(closes):
            raise BarDataError("calibration needs paths of positive finite closes: coherent=True")
        log_paths = _log_returns(closes, bars[:, -1, CLOSE][:, None])
        is_same = sampling is None or dict(sampling) == dict(self.sampling)
        kinds = kinds_of(stamps)
        result = np.array(paths)
        for kind in np.unique(kinds).tolist():
            rows = np.flatnonzero(kinds == kind)
            centre, log_scale, dof = self.fits[kind].marginals(
                bars[rows],
                stamps[rows],
                ahead[rows],
                log_paths[rows] if is_same else None,
                None if market is None else market[rows],
            )
            if keep_centre:
                centre = log_paths[rows].mean(axis=1)
            moved = _in_order(log_paths[rows], centre, log_scale, dof)
            result[rows] = paths[rows] * np.exp(moved - log_paths[rows])[..., None]
        result[..., VOLUME] = paths[..., VOLUME]
        return result

    def save(self, path: str | Path) -> None:
        """Write it as JSON, atomically."""
        with replacing(Path(path)) as written:
            written.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read what `save` wrote.

        Raises:
            ConfigError: the file is missing or holds something else; names it.
        """
        if Path(path).is_dir():
            raise ConfigError(f"{printable(str(path))} is a folder, not the file of a calibration")
        try:
            found = read_object(Path(path))
            fits = {kind: _fit_of(one) for kind, one in _mapping(found, "fits").items()}
            return from_mapping(cls, {**found, "fits": fits})
        except (ConfigError, CheckpointError) as bad:
            raise ConfigError(f"{printable(str(path))} holds no calibration: {bad}") from bad


def kinds_of(stamps: Stamps) -> npt.NDArray[np.str_]:
    """(N,) kind of the bars with these stamps (N, L, 5): of `KINDS`.

    Shorter than a day is what has two times in a row on one day: a daily bar may close earlier
    before a holiday, and in UTC an hour later in winter.
    """
    former, latter = stamps[:, :-1], stamps[:, 1:]
    is_same_day = (former[..., DATE] == latter[..., DATE]).all(axis=2)
    is_other_time = (former[..., CLOCK] != latter[..., CLOCK]).any(axis=2)
    is_intraday = (is_same_day & is_other_time).any(axis=1)
    return np.where(is_intraday, INTRADAY, DAY)


def steps_of(stamps: Stamps) -> npt.NDArray[np.int64]:
    """(N,) median minutes between the bars with these stamps (N, L, 5), a week at most.

    A daily bar over a weekend counts three days and is no median; of weekly bars the weekday and
    the time stay, and of longer ones nobody knows the year: both are `MOST_STEP`.
    """
    fields = stamps.astype(np.int64)
    minutes = fields[..., WEEKDAY] * 24 * 60 + fields[..., HOUR] * 60 + fields[..., MINUTE]
    gaps = np.diff(minutes, axis=1) % MOST_STEP
    gaps[gaps == 0] = MOST_STEP
    found = np.median(gaps, axis=1).astype(np.int64)
    is_long = (kinds_of(stamps) == DAY) & (found > LIKE_STEP * 24 * 60)
    return np.where(is_long, MOST_STEP, found)


def _say(reasons: list[str | None], which: npt.NDArray[np.bool_], reason: str) -> None:
    for place in np.flatnonzero(which).tolist():
        reasons[place] = reason


def _in_order(log_paths: Floats, centre: Floats, log_scale: Floats, dof: float) -> Floats:
    """(N, P, H) quantiles of each marginal, in the order of the paths at that bar.

    The mean of the prices is the last close times exp(centre): without a centre no return is
    expected, however wide the spread is.
    """
    scale = np.exp(np.minimum(log_scale, np.log(MOST_SCALE)))
    order = log_paths.argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
    quantiles = student_quantiles(log_paths.shape[1], dof)[None, :, None] * scale[:, None]
    quantiles -= quantiles.max(axis=1, keepdims=True)  # else the exponential may overflow
    quantiles -= np.log(np.exp(quantiles).mean(axis=1, keepdims=True))
    moved = centre[:, None] + np.take_along_axis(quantiles, order, axis=1)
    return np.asarray(np.clip(moved, -MOST_MOVE, MOST_MOVE))


def _known(bars: Bars, stamps: Stamps, ahead: Stamps, season: Season | None) -> Regressors:
    """Of a window's own bars."""
    past = times = None
    if season is not None:
        is_known = has_all_hours(stamps)
        past, times = season.of_bars(stamps, is_known), season.ahead(ahead, is_known)
    logs = log_volatilities(_floats(bars), past)
    return Regressors(OWN, logs[:, 0], logs[:, 1:] - logs[:, :1], times)


def _with_market(known: Regressors, market: Floats | None) -> Regressors:
    assert market is not None
    values = np.concatenate((known.values, market), axis=1)
    return replace(known, names=(*known.names, *MARKET), values=values)


def _joined(parts: list[Regressors]) -> Regressors:
    ahead = None
    if any(part.ahead is not None for part in parts):
        require(all(part.ahead is not None for part in parts), "samples of several kinds of bars")
        ahead = np.concatenate([part.ahead for part in parts if part.ahead is not None])
    return Regressors(
        parts[0].names,
        np.concatenate([part.walk for part in parts]),
        np.concatenate([part.values for part in parts]),
        ahead,
    )


def _floats(values: Bars) -> Floats:
    return np.asarray(values, dtype=np.float64)


def _log_returns(closes: Bars, start: Bars) -> Floats:
    return np.asarray(np.log(closes.astype(np.float64) / start.astype(np.float64)[..., None]))


def _is_time(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _mapping(found: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = found.get(name)
    require(isinstance(value, Mapping), f"{name} must be a mapping, got {short_repr(value)}")
    return cast("Mapping[str, Any]", value)


def _fit_of(found: Any) -> Fit:
    """A `Fit` from plain JSON.

    Raises:
        ConfigError: it is none.
    """
    kinds: dict[str, type[Any]]
    kinds = {"own": SpreadModel, "market": SpreadModel, "season": Season, "paths": PathTerms}

    def part(name: str, values: Any) -> Any:
        if name not in kinds or not isinstance(values, Mapping):
            return _frozen(values)  # what is wrong, the fit says
        return from_mapping(kinds[name], {key: _frozen(one) for key, one in values.items()}, name)

    require(isinstance(found, Mapping), f"a fit must be a mapping, got {short_repr(found)}")
    return from_mapping(Fit, {name: part(name, value) for name, value in found.items()})


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
