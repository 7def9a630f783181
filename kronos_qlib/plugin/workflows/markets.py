"""One profile for a market: its bars, dates, costs and limits, in the place of 23 variables.

provider_uri: data/mine
region: us
benchmark: MEAN
train_start: 2013-01-01
…
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import date, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from kronos_qlib.errors import ConfigError, printable, short_repr
from kronos_qlib.plugin.records.backtest_record import BacktestConfig
from kronos_qlib.plugin.workflows.shipped import find_market
from kronos_qlib.plugin.workflows.templates import load_yaml, read_text
from kronos_qlib.settings import from_mapping

VARIABLE_PREFIX = "KRONOS_"
REGIONS = ("cn", "us", "tw")
SEGMENTS = ("train", "valid", "test")
DATES = ("start", *(f"{name}_{end}" for name in SEGMENTS for end in ("start", "end")))
TEXTS = ("provider_uri", "market", "benchmark", "freq", "beyond_calendar")
COUNTS = ("topk", "n_drop", "hold")
DAILY_BARS = 252
END_OF_DAY = "23:59:59"


@dataclass(frozen=True, kw_only=True)
class MarketProfile:
    """What a market decides about a workflow.

    Each field is an environment variable of the workflow files: `topk` is KRONOS_TOPK. Dates are
    days, or times of day in the exchange's clock where bars are of minutes; both ends of a segment
    belong to it.
    """

    provider_uri: str
    """Folder of Qlib's bars; a relative one is looked for from where the run is started."""
    region: str
    """Qlib's: cn has lots of 100 shares and a price limit of 9.5 %, us neither, tw lots of 1000."""
    market: str = "all"
    """Universe: the name of a file in the folder's `instruments`."""
    benchmark: str
    """An instrument of the folder."""
    freq: str = "day"
    """Of the bars, as Qlib spells it: "day", "5min", "60min"."""
    beyond_calendar: str = "error"
    """Whose times follow where the folder's calendar ends: an exchange's code such as XNYS,
    "pattern", "weekdays" or "error", see `KronosDataset`."""
    bars_per_year: float | None = None
    """That returns of a bar are scaled to a year by. None is 252 for daily bars; others say."""
    days_per_year: float = DAILY_BARS
    """That daily figures are scaled to a year by; 365 where a market never closes."""

    start: str | None = None
    """First day that is read for labels and features; None is train_start."""
    train_start: str
    """First day of the segment that models learn from."""
    train_end: str
    """Its last day."""
    valid_start: str
    """First day of the segment that weights are chosen and spreads calibrated by."""
    valid_end: str
    """Its last day."""
    test_start: str
    """First day of the segment that is scored and traded."""
    test_end: str
    """Its last day."""

    topk: int = 50
    """Names held."""
    n_drop: int = 5
    """Names replaced at every bar."""
    hold: int = 1
    """Bars that a name is held at least."""
    account: float = 100_000_000
    """Money at the start."""
    limit_threshold: float | None = None
    """Largest daily move that still trades, as a fraction; None is the region's, .inf none."""
    open_cost: float
    """Fraction of the money bought."""
    close_cost: float
    """Fraction of the money sold."""
    min_cost: float = 5.0
    """Money per order, at least."""

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(
                self, field.name, checked_value(field.name, getattr(self, field.name))
            )
        if self.start is None:
            object.__setattr__(self, "start", self.train_start)
        if self.bars_per_year is None:
            if self.freq != "day":
                raise ConfigError(
                    f"bars_per_year is missing: how many bars of {self.freq} has a year? 252 days "
                    "of 48 bars are 12096"
                )
            object.__setattr__(self, "bars_per_year", self.days_per_year)
        self._check_order()
        BacktestConfig(
            benchmark=self.benchmark,
            topk=self.topk,
            n_drop=self.n_drop,
            hold_thresh=self.hold,
            account=self.account,
            limit_threshold=self.limit_threshold,
            open_cost=self.open_cost,
            close_cost=self.close_cost,
            min_cost=self.min_cost,
        )

    def _check_order(self) -> None:
        """Each date is in its place; an end without a time of day covers its whole day."""
        moments = [(name, _moment(str(getattr(self, name)), name)) for name in DATES]
        for (earlier, before), (later, after) in pairwise(moments):
            may_touch = earlier == "start" or earlier.endswith("_start")
            if before < after or (may_touch and before == after):
                continue
            what = (
                "a segment ends before it begins"
                if later.endswith("_end")
                else "the handler would begin after the segment"
                if earlier == "start"
                else "segments overlap or are out of order, and what is learned or chosen on one "
                "would be known in the next"
            )
            raise ConfigError(
                f"{earlier} {getattr(self, earlier)} is not before {later} {getattr(self, later)}: "
                f"{what}"
            )

    def variables(self) -> dict[str, str]:
        """What the templates' variables stand for, by name, as YAML writes each value."""
        values = {name: as_yaml(name, value, self.freq) for name, value in asdict(self).items()}
        return {variable_of(name): text for name, text in values.items()}


PROFILE_KEYS = tuple(field.name for field in fields(MarketProfile))


def read_market(name: str | Path, changes: Mapping[str, Any] | None = None) -> MarketProfile:
    """A profile by its shipped name or its file, with some of its values replaced.

    Args:
        changes: by field name, values or texts as in YAML.

    Raises:
        ConfigError: there is no such profile, a key is unknown, a value cannot work, or the
            segments overlap; names the file.
    """
    path = find_market(name)
    found = load_yaml(read_text(path), str(path))
    if isinstance(found, Mapping) and "task" in found:
        raise ConfigError(f"{path} is a workflow, not the profile of a market")
    if not isinstance(found, Mapping):
        raise ConfigError(f"{path} must be a mapping of settings, got {short_repr(found)}")
    return from_mapping(MarketProfile, {**found, **(changes or {})}, where=str(path))


def variable_of(key: str) -> str:
    """The environment variable of a key: KRONOS_TOPK of topk."""
    return f"{VARIABLE_PREFIX}{key.upper()}"


def checked_value(name: str, value: Any) -> Any:
    """A field's value as the profile keeps it: dates as ISO text, counts whole.

    Raises:
        ConfigError: it is of another kind.
    """
    if name in DATES:
        if value is None and name == "start":
            return None
        return _date_text(value, name)
    if name in TEXTS or name == "region":
        if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
            raise ConfigError(f"{name} must be a text, got {short_repr(value)}")
        value = str(value)
        if not value.isprintable():
            raise ConfigError(f"{name} holds characters that do not show: {short_repr(value)}")
        if name == "freq":
            return _frequency(value)
        if name == "region" and value not in REGIONS:
            raise ConfigError(f"region is one of {', '.join(REGIONS)}, got {printable(value)}")
        return value
    if name in ("limit_threshold", "bars_per_year") and value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or math.isnan(value):
        raise ConfigError(f"{name} must be a number, got {short_repr(value)}")
    if name in COUNTS and not isinstance(value, int):
        raise ConfigError(f"{name} must be a whole number, got {short_repr(value)}")
    if name in ("bars_per_year", "days_per_year") and not 0 < value <= 366 * 24 * 60:
        raise ConfigError(f"{name} must be above 0 and at most the minutes of a year, got {value}")
    return value


def as_yaml(name: str, value: Any, freq: str = "day") -> str:
    """A value as the templates take it.

    An end of a segment of minute bars, given as a day, becomes the day's last second: to Qlib's own
    handlers a bare date ends minute bars at its midnight.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if math.isinf(value):
            return ".inf" if value > 0 else "-.inf"
        return repr(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    if isinstance(value, datetime):
        return value.isoformat(sep=" ")
    text = str(value)
    if name.endswith("_end") and freq != "day" and len(text) == len("2020-01-01"):
        return f"{text} {END_OF_DAY}"
    return text


def _date_text(value: Any, name: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | date | datetime):
        raise ConfigError(f"{name} must be a date such as 2020-01-31, got {short_repr(value)}")
    text = value.isoformat(sep=" ") if isinstance(value, datetime) else str(value).strip()
    if len(text) < 10 or text[4:5] != "-" or text[7:8] != "-":  # 20200101, 1/2/2020: which is it?
        raise ConfigError(f"{name} must be a date such as 2020-01-31, got {short_repr(value)}")
    moment = _moment(text, name, is_end=False)
    return f"{moment:%Y-%m-%d}" if len(text) == 10 else f"{moment:%Y-%m-%d %H:%M:%S}"


def _moment(text: str, name: str, is_end: bool | None = None) -> pd.Timestamp:
    try:
        found = pd.Timestamp(text)
    except (ValueError, OverflowError) as problem:
        raise ConfigError(
            f"{name} must be a date such as 2020-01-31, got {printable(text)}"
        ) from problem
    if pd.isna(found) or found.tzinfo is not None:
        raise ConfigError(f"{name} must be a date without a time zone, got {printable(text)}")
    is_end = name.endswith("_end") if is_end is None else is_end
    return found + pd.Timedelta(days=1, nanoseconds=-1) if is_end and len(text) == 10 else found


def _frequency(text: str) -> str:
    from qlib.utils.time import Freq

    try:
        count, base = Freq.parse(text)
    except ValueError as problem:
        raise ConfigError(
            f'freq must be "day" or as "5min", as Qlib\'s files are named, got {printable(text)}'
        ) from problem
    if base == Freq.NORM_FREQ_DAY and count == 1:
        return "day"
    if base != Freq.NORM_FREQ_MINUTE:
        raise ConfigError(f'freq must be "day" or as "5min", got {printable(text)}')
    return f"{count}min"
