"""The file that says what `kronos-qlib daily` does: read and checked before anything is done."""

from __future__ import annotations

import datetime as dt
import os
import re
import zoneinfo
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from kronos_qlib.daily.bar_sources.choosing import check_source
from kronos_qlib.data.calendar.exchanges import check_exchange, exchange_zone
from kronos_qlib.data.calendar.stamps import Times
from kronos_qlib.data.files.check import WARNINGS
from kronos_qlib.data.files.repair import REPAIRS
from kronos_qlib.data.rules import MAX_MOVE
from kronos_qlib.errors import ConfigError, short_repr
from kronos_qlib.evaluation.ranking.uncertainty import LEAST_DAYS
from kronos_qlib.extras import check_extra
from kronos_qlib.files import followed, recover
from kronos_qlib.plugin.orders.book import Book, read_cash
from kronos_qlib.plugin.orders.making import OrderConfig
from kronos_qlib.plugin.orders.target_weights import WeightConfig
from kronos_qlib.plugin.provider.faults import check_frequency
from kronos_qlib.plugin.records.backtest_record import BacktestConfig
from kronos_qlib.plugin.rolling.retraining import RetrainConfig
from kronos_qlib.plugin.workflows.templates import load_yaml
from kronos_qlib.settings import (
    check_choice,
    check_known,
    check_number,
    check_whole,
    from_mapping,
    require,
)

SIGNIFICANT, NEVER = "significant", "never"
ALIASED = re.compile(r"models:/[^/@:\\]+@[^/@:\\]+")
"""A registered model by its alias."""
DAILY_REPAIRS = tuple(
    name for name in REPAIRS if name not in ("split-jumps", "drop-before-jump", "sort")
)
"""Repairs of single bars: the others rewrite the past."""
DAILY_REFUSED = tuple(name for name in WARNINGS if name != "gap")
"""Warnings that one day's bars can give; that a day lacks names is `complete`'s."""


@dataclass(frozen=True, kw_only=True)
class BarsConfig:
    """Where new bars come from, and which of them go in."""

    drop: Path | None = None
    """A folder of CSV, Parquet or Feather files: it is read and never changed."""
    source: str | None = None
    """Or a service by its name: akshare, baostock, yfinance, ccxt; each is an extra."""
    symbols: tuple[str, ...] | None = None
    """What to ask the service for, as the folder spells them; none: all members of `all`."""
    overlap: int = 5
    """Days that the service is asked for again: so a changed past and a new factor are seen."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Our name to the files', as `data convert --columns`."""
    encoding: str = "utf-8"
    """Of CSV files."""
    delimiter: str | None = None
    """Of CSV files; none finds it."""
    decimal: str | None = None
    """The decimal mark; none finds it."""
    date_order: str = "ymd"
    """"dmy" or "mdy" where dates do not begin with the year."""
    zone: str | None = None
    """The zone to which times with an offset are converted."""
    final_newline: bool = True
    """Whether a CSV file without an end of its last line counts as cut short, and waits."""
    extra: tuple[str, ...] = ()
    """Further columns that are fields of the folder."""
    repair: tuple[str, ...] = ()
    """Repairs of `data check`, of single bars."""
    refuse: tuple[str, ...] = ()
    """Warnings of `data check` that count as errors: "jump", "vwap", "repeated"."""
    max_move: float = MAX_MOVE
    """Largest believable return from close to close."""
    complete: float = 0.9
    """Share of the usual number of names with which a day is complete."""
    usual_days: int = 20
    """Days whose median says what is usual."""
    benchmark: str | None = None
    """An instrument in no market; where the bars lack it, the equal-weight mean of the members."""
    future_bars: int = 60
    """Days to come in the calendar."""
    renames: Mapping[str, str] = field(default_factory=dict)
    """Old name to new one, of instruments that go on under another."""

    def __post_init__(self) -> None:
        for name in ("symbols", "extra", "repair", "refuse"):
            value = getattr(self, name)
            if name != "symbols" or value is not None:
                is_list = isinstance(value, (list, tuple))
                require(
                    is_list and all(isinstance(one, str) for one in value),
                    f"{name} is a list of names, got {short_repr(value)}",
                )
                object.__setattr__(self, name, tuple(value))
        require(
            self.drop is not None or self.source is not None,
            "bars need a drop folder (drop) or a service (source)",
        )
        require(
            self.symbols is None or self.source is not None,
            "symbols are asked of a service, and no source is named",
        )
        if self.source is not None:
            check_source(self.source)
        for name, known in (("repair", DAILY_REPAIRS), ("refuse", DAILY_REFUSED)):
            for one in getattr(self, name):
                require(one in known, f"{name}: {one!r} is none of {', '.join(known)}")
        for name in ("columns", "renames"):
            value = getattr(self, name)
            require(
                isinstance(value, Mapping) and all(isinstance(v, str) for v in value.values()),
                f"{name} is a mapping of names, got {short_repr(value)}",
            )
        check_choice(self, "final_newline")
        check_number(self, "max_move", "complete")
        require(self.max_move > 0, f"max_move must be above 0, got {self.max_move}")
        require(0 < self.complete <= 1, f"complete must lie in (0, 1], got {self.complete}")
        check_whole(self, "usual_days", "overlap")
        check_whole(self, "future_bars", least=0)

    def reading(self) -> dict[str, Any]:
        """The arguments of `read_bars`."""
        names = ("encoding", "delimiter", "decimal", "date_order", "zone", "extra")
        return {"columns": dict(self.columns), **{name: getattr(self, name) for name in names}}


@dataclass(frozen=True, kw_only=True)
class MembersConfig:
    """Markets of index members that are written anew each day."""

    indices: tuple[str, ...]
    """csi300, csi500, sp500, nasdaq100, dow30."""
    name: str | None = None
    """One market with the members of all; none: one each."""
    mean: str | None = None
    """An instrument that is the members' equal-weight mean."""

    def __post_init__(self) -> None:
        is_list = isinstance(self.indices, (list, tuple)) and bool(self.indices)
        require(is_list, f"indices is a list of indices, got {short_repr(self.indices)}")
        object.__setattr__(self, "indices", tuple(self.indices))


@dataclass(frozen=True, kw_only=True)
class TradingConfig:
    """What is held, and how scores become orders."""

    positions: Path
    """A CSV file of what is held: instrument, quantity, days or bought."""
    cash: float | Path
    """Money that can be spent: a number, or a text file that holds one."""
    strategy: BacktestConfig
    """The backtest's settings."""
    how: OrderConfig = field(default_factory=OrderConfig)
    """What orders need beside them."""
    weights: WeightConfig | None = None
    """None: TopK decides. Else weights do, by expected return and tail risk of the forecasts: of
    `strategy` then costs, lots, limits, hold_thresh and risk_degree count."""

    def __post_init__(self) -> None:
        if not isinstance(self.cash, Path):
            check_number(self, "cash")
            require(self.cash >= 0, f"cash must not be negative, got {self.cash}")

    def book(self, day: pd.Timestamp, calendar: Times) -> Book:
        """What is held, as the files have it now.

        Args:
            day: of the last close, to which `bought` is counted on the calendar.

        Raises:
            ConfigError: a file is missing, or a line of it cannot be used. Names file and line.
        """
        cash = read_cash(self.cash) if isinstance(self.cash, Path) else self.cash
        return Book.read(self.positions, cash, day, calendar)


@dataclass(frozen=True, kw_only=True)
class RollingConfig(RetrainConfig):
    """How the model in force is trained again, and when what comes of it takes its place."""

    promote: str = SIGNIFICANT
    """"significant": a candidate that ranks better than the champion, by the paired test of daily
    Rank IC at 5 %, takes its place; "never": by hand alone."""
    judge_days: int = 60
    """Days after a candidate's training that judge it, once; the next one is trained after that.
    Of 20 days, with 3 degrees of freedom, hardly any difference is significant."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_known(self, promote=(SIGNIFICANT, NEVER))
        check_whole(self, "judge_days")
        require(
            self.judge_days >= LEAST_DAYS,
            f"judge_days {self.judge_days} are too few for the paired test: {LEAST_DAYS} at least",
        )


@dataclass(frozen=True, kw_only=True)
class DailyConfig:
    """All that a day needs; paths are relative to the file."""

    home: Path
    """A folder for what each day leaves: scores, orders, and what has been taken."""
    provider_uri: Path
    """The Qlib folder that new bars are appended to."""
    bars: BarsConfig
    """Where they come from."""
    model: str | None = None
    """models:/NAME@ALIAS, or a run; none: bars and members alone."""
    tracking_uri: str = "sqlite:///mlflow.db"
    """Where MLflow keeps it."""
    trust: bool = False
    """As `score --trust`."""
    region: str = "cn"
    """Qlib's: cn, us, tw."""
    exchange: str | None = None
    """As exchange-calendars knows it: which days are due, and when the market opens."""
    zone: str | None = None
    """The zone of the market's days; none takes the exchange's, or this machine's."""
    ready_at: str | None = None
    """The hour from which a day's bars are taken to be final, such as "16:30"; a service's need
    it."""
    members: MembersConfig | None = None
    """Markets that are written anew."""
    orders: TradingConfig | None = None
    """None: no orders."""
    rolling: RollingConfig | None = None
    """None: the model is never trained again."""
    ledger: Path | None = None
    """The ledger's folder; none is `ledger` in `home`."""
    window: int = 512
    """Bars that a score looks back on at most: it says which scores a changed past concerns."""
    rescore_days: int = 20
    """Of those days, how many of the newest are scored again."""

    def __post_init__(self) -> None:
        check_choice(self, "trust")
        for name in ("model", "tracking_uri", "exchange", "zone"):
            value = getattr(self, name)
            is_open = value is None and name != "tracking_uri"
            require(
                is_open or (isinstance(value, str) and bool(value)),
                f"{name} is a text, got {short_repr(value)}",
            )
        check_whole(self, "window")
        check_whole(self, "rescore_days", least=0)
        require(self.region in ("cn", "us", "tw"), f"region is cn, us or tw, got {self.region!r}")
        require(
            self.ready_at is None
            or bool(re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", str(self.ready_at))),
            f'ready_at is an hour such as "16:30", in quotes, got {short_repr(self.ready_at)}',
        )
        require(
            self.ready_at is None or self.zone is not None or self.exchange is not None,
            "ready_at needs zone or exchange: an hour of which place?",
        )
        require(
            self.ready_at is not None or self.bars.source is None,
            f"bars of {self.bars.source} need ready_at: a service answers with the bar of a day "
            "that is not over, and nothing else says when it is",
        )
        require(
            self.orders is None or self.model is not None, "orders need a model, and none is named"
        )
        require(
            self.rolling is None or bool(ALIASED.fullmatch(self.model or "")),
            "rolling needs a model that candidates can replace, models:/NAME@ALIAS, got "
            f"{short_repr(self.model)}",
        )
        if self.exchange is not None:
            check_exchange(self.exchange)
        if self.zone is not None:
            try:
                zoneinfo.ZoneInfo(self.zone)
            except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as unknown:
                raise ConfigError(f"there is no time zone {self.zone!r}") from unknown

    def local(self, now: dt.datetime) -> dt.datetime:
        """A moment by the market's clock."""
        name = self.zone
        if name is None and self.exchange is not None:
            name = exchange_zone(self.exchange)
        return now.astimezone(zoneinfo.ZoneInfo(name)) if name else now.astimezone()

    @property
    def ledger_folder(self) -> Path:
        """Where the ledger is."""
        return self.ledger or self.home / "ledger"


def read_daily(path: Path) -> DailyConfig:
    """The settings of a file, checked as far as that can be without work.

    Raises:
        ConfigError: a setting is unknown, missing or cannot work; a folder or file that is to be
            there is not; or paths lie in each other. Names the file and the key.
        MissingDependencyError: members or a service need an extra.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise ConfigError(f"{path} cannot be read: {problem}") from problem
    values = load_yaml(text, str(path))
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path} must be a mapping of settings, got {short_repr(values)}")
    config = _build(dict(values), path)
    _check_places(config, path)
    if config.members is not None:
        check_extra("members", for_="the members of an index")
    if config.bars.source is not None:
        check_extra(config.bars.source, for_=f"bars of {config.bars.source}")
    return config


def _build(values: dict[str, Any], path: Path) -> DailyConfig:
    base = path.absolute().parent
    for name in ("home", "provider_uri", "ledger"):
        if name in values:
            values[name] = followed(_place(values[name], base, f"{path}: {name}"))
    if "tracking_uri" not in values and "KRONOS_MLFLOW_URI" in os.environ:
        values["tracking_uri"] = os.environ["KRONOS_MLFLOW_URI"]
    bars = _section(values, "bars", path)
    if bars is not None:
        if bars.get("drop") is not None:
            bars["drop"] = _place(bars["drop"], base, f"{path}: bars.drop")
        values["bars"] = from_mapping(BarsConfig, bars, f"{path}: bars")
    if (members := _section(values, "members", path)) is not None:
        values["members"] = from_mapping(MembersConfig, members, f"{path}: members")
    if (rolling := _section(values, "rolling", path)) is not None:
        values["rolling"] = from_mapping(RollingConfig, rolling, f"{path}: rolling")
    if (orders := _section(values, "orders", path)) is not None:
        where = f"{path}: orders"
        if "positions" in orders:
            orders["positions"] = _place(orders["positions"], base, f"{where}.positions")
        if isinstance(orders.get("cash"), str):
            orders["cash"] = _place(orders["cash"], base, f"{where}.cash")
        for name, kind in (
            ("strategy", BacktestConfig),
            ("how", OrderConfig),
            ("weights", WeightConfig),
        ):
            if (inner := _section(orders, name, path)) is not None:
                orders[name] = from_mapping(kind, inner, f"{where}.{name}")
        values["orders"] = from_mapping(TradingConfig, orders, where)
    uri = values.get("tracking_uri")
    if isinstance(uri, str) and uri.startswith("sqlite:///"):
        file = Path(uri.removeprefix("sqlite:///"))
        if "KRONOS_MLFLOW_URI" not in os.environ and not file.is_absolute():
            values["tracking_uri"] = f"sqlite:///{(base / file).as_posix()}"
    return from_mapping(DailyConfig, values, str(path))


def _section(values: dict[str, Any], name: str, path: Path) -> dict[str, Any] | None:
    if values.get(name) is None:
        values.pop(name, None)
        return None
    if not isinstance(values[name], Mapping):
        raise ConfigError(f"{path}: {name} is a mapping, got {short_repr(values[name])}")
    values[name] = dict(values[name])
    section: dict[str, Any] = values[name]
    return section


def _place(value: object, base: Path, where: str) -> Path:
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{where} is a path, got {short_repr(value)}")
    return base / Path(value).expanduser()


def _check_places(config: DailyConfig, path: Path) -> None:
    recover(config.provider_uri)  # a killed start may have left it put aside
    check_frequency(config.provider_uri, "day")
    drop = config.bars.drop
    if drop is not None and not drop.is_dir():
        raise ConfigError(f"{path}: bars.drop: there is no folder {drop}")
    if config.home.exists() and not config.home.is_dir():
        raise ConfigError(f"{path}: home: {config.home} is a file; name a folder")
    apart = {"home": config.home, "provider_uri": config.provider_uri}
    if drop is not None:
        apart["bars.drop"] = drop
    places = {name: place.resolve() for name, place in apart.items()}
    for name, place in places.items():
        for other, folder in places.items():
            if name != other and (folder == place or folder in place.parents):
                if (name, other) == ("bars.drop", "home"):
                    continue  # a folder of its own in there is no harm
                raise ConfigError(
                    f"{path}: {name} ({place}) lies in {other} ({folder}); take one beside it"
                )
    if config.orders is not None:
        for name, file in (("positions", config.orders.positions), ("cash", config.orders.cash)):
            if isinstance(file, Path) and not file.is_file():
                raise ConfigError(f"{path}: orders.{name}: there is no file {file}")
