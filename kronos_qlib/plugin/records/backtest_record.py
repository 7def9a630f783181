"""Qlib's TopK-dropout backtest of a run's scores, from a handful of settings.

task:
  backtest: {topk: 50, n_drop: 5, hold_thresh: 5, benchmark: SH000300, open_cost: 0.0015}
  record:
    - {class: BacktestRecord, module_path: kronos_qlib.plugin.records}
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from qlib.data import D
from qlib.workflow.record_temp import PortAnaRecord
from qlib.workflow.recorder import Recorder

from kronos_qlib.errors import ConfigError
from kronos_qlib.plugin.provider.reader import read_calendar
from kronos_qlib.plugin.records.artifacts import (
    frequency_of,
    load_predictions,
    load_task,
    report_frequency,
)
from kronos_qlib.plugin.runs.quiet import quiet_backtest
from kronos_qlib.settings import check_choice, check_number, check_whole, from_mapping

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BacktestConfig:
    """How scores are traded; the names are Qlib's."""

    benchmark: str | Sequence[str] | None = None
    """An instrument, or several whose mean return is taken. Must be given."""
    topk: int = 50
    """Names held."""
    n_drop: int = 5
    """Names replaced at every bar."""
    hold_thresh: int = 1
    """Bars that a name is held at least; the paper's is 5."""
    only_tradable: bool = False
    """Whether names that cannot trade at the bar are passed over when choosing."""
    forbid_all_trade_at_limit: bool = True
    """Whether a name at its limit is neither bought nor sold, even the way that would be open."""
    risk_degree: float = 0.95
    """Share of the cash that each bar's purchases may take."""
    account: float = 1e8
    """Money at the start."""
    open_cost: float = 0.0005
    """Fraction of the money bought."""
    close_cost: float = 0.0015
    """Fraction of the money sold."""
    min_cost: float = 5.0
    """Money per order, at least."""
    impact_cost: float = 0.0
    """Qlib's slippage: times the square of an order's share of the bar's volume."""
    volume_share: float | None = None
    """Largest share of a bar's `$volume` that an order trades; the rest of it is not traded. None
    is no limit."""
    deal_price: str = "close"
    """Field that trades are made at, of the bar after the score."""
    limit_threshold: float | None = None
    """Largest move that still trades, as a fraction, by `$change` or, without it, by closes; bars
    of minutes count from the day before's last close. None is the region's, inf none at all."""
    trade_unit: int | None = None
    """Shares in a lot; None is the region's."""
    start_time: str | None = None
    """First bar; None is the first that has a score."""
    end_time: str | None = None
    """Last bar; None is the last that has a score and is not the last of the calendar."""
    freq: str | None = None
    """Qlib's frequency; None is read off the scores' times."""

    def __post_init__(self) -> None:
        if not self.benchmark:
            raise ConfigError(
                "backtest.benchmark is missing: an instrument such as SH000300, or a list of "
                "instruments whose mean return is taken (Qlib would take SH000300 in silence)"
            )
        check_whole(self, "topk", "n_drop", "hold_thresh", least=-sys.maxsize)
        if self.trade_unit is not None:
            check_whole(self, "trade_unit")
        check_number(self, "open_cost", "close_cost", "risk_degree", "account")
        check_number(self, "min_cost", "impact_cost")
        check_choice(self, "only_tradable", "forbid_all_trade_at_limit")
        if self.topk < 1 or not 1 <= self.n_drop <= self.topk:
            raise ConfigError(
                "backtest.topk must be 1 or more and backtest.n_drop lie between 1 and topk, got "
                f"{self.topk} and {self.n_drop}"
            )
        if self.hold_thresh < 1:
            raise ConfigError(f"backtest.hold_thresh must be 1 or more, got {self.hold_thresh}")
        for name in ("open_cost", "close_cost"):
            if not 0 <= (value := getattr(self, name)) < 0.1:
                raise ConfigError(
                    f"backtest.{name} is a fraction of the money traded, in [0, 0.1), got {value}"
                )
        limit: Any = self.limit_threshold
        fits = _is_number(limit) and (0 < limit <= 1 or limit == float("inf"))
        if limit is not None and not fits:
            raise ConfigError(
                "backtest.limit_threshold is a fraction above 0 and at most 1, as 0.095 for limits "
                f"of 10 % (.inf for no limit, null for the region's), got {limit!r}"
            )
        if self.account <= 0 or self.min_cost < 0 or self.impact_cost < 0:
            raise ConfigError(
                "backtest.account must be above 0, min_cost and impact_cost not below, got "
                f"{self.account}, {self.min_cost} and {self.impact_cost}"
            )
        share: Any = self.volume_share
        if share is not None and not (_is_number(share) and 0 < share <= 1):
            raise ConfigError(
                f"backtest.volume_share is a fraction above 0 and at most 1, got {share!r}"
            )
        if not 0 < self.risk_degree <= 1:
            raise ConfigError(f"backtest.risk_degree must lie in (0, 1], got {self.risk_degree}")


class BacktestRecord(PortAnaRecord):
    """Trade a run's scores with Qlib's TopkDropoutStrategy and SimulatorExecutor.

    Leaves in the folder `portfolio_analysis` what Qlib's PortAnaRecord leaves there, under the
    same names, and logs its metrics, `1day.excess_return_with_cost.annualized_return` and so on
    (for bars of 5 minutes `5min.…`). A score is traded at the bar after its own.
    """

    needs_extra = None
    reads = ("pred.pkl",)
    leaves = (  # with the frequency of the bars in place of {freq}
        "report_normal_{freq}.pkl",
        "positions_normal_{freq}.pkl",
        "indicators_normal_{freq}.pkl",
        "indicators_normal_{freq}_obj.pkl",
        "port_analysis_{freq}.pkl",
        "indicator_analysis_{freq}.pkl",
    )

    def __init__(
        self,
        recorder: Recorder,
        backtest: Mapping[str, Any] | None = None,
        skip_existing: bool = False,
    ) -> None:
        """
        Args:
            backtest: fields of BacktestConfig; None takes the mapping `backtest` of the run's own
                task, so that workflows share a list of records and differ in this alone.
            skip_existing: Qlib's: do nothing where the run has the files already.

        Raises:
            ConfigError: neither is there, or a setting cannot work.
        """
        self.skip_existing = skip_existing
        self._recorder = recorder
        if backtest is None:
            backtest = load_task(recorder).get("backtest")
        if backtest is None:
            raise ConfigError(
                "BacktestRecord needs settings: give it `backtest: {topk: …, benchmark: …}` as "
                "kwargs, or put them under `task: backtest:` in the workflow"
            )
        self.settings = from_mapping(BacktestConfig, backtest)

    def check(self, include_self: bool = False, parents: bool = True) -> None:
        """Qlib's, without its question for parents' files."""
        # Qlib's check would also ask for label.pkl, which no trade needs, and its generate() goes
        # on without a backtest where something is missing. What we read, `generate` has loaded.
        super().check(include_self=include_self, parents=False)

    def generate(self, *args: object, **kwargs: object) -> object:
        """Trade, log and save.

        Raises:
            MissingArtifactError: the run has no `pred.pkl`.
            ConfigError: a setting does not fit the scores, the calendar or the folder of bars.
        """
        pred = load_predictions(self.recorder, type(self).__name__)
        config = qlib_config(self.settings, pred)
        super().__init__(self.recorder, config=config, skip_existing=self.skip_existing)
        with quiet_backtest():
            return super().generate(*args, **kwargs)


def qlib_config(settings: BacktestConfig, pred: pd.DataFrame) -> dict[str, Any]:
    """PortAnaRecord's config for these scores.

    Args:
        pred: on (datetime, instrument); only its index is read.

    Raises:
        ConfigError: Qlib has no calendar of this frequency, or it holds no bar after the last.
    """
    freq = settings.freq or frequency_of(pred.index)
    freq = "day" if freq == "1day" else freq
    report_frequency(freq)  # an unknown one is refused here, before minutes of backtest
    start, end = _span(settings, pred, freq)
    exchange = {
        "freq": freq,
        "start_time": start,
        "end_time": end,
        # Qlib reads all its market otherwise, whatever the universe.
        "codes": sorted(pred.index.get_level_values("instrument").unique()),
        **exchange_settings(settings),
    }
    return {
        "strategy": {
            "class": "TopkDropoutStrategy",
            "module_path": "qlib.contrib.strategy",
            "kwargs": {"signal": "<PRED>", **strategy_settings(settings)},
        },
        "executor": {
            "class": "SimulatorExecutor",
            "module_path": "qlib.backtest.executor",
            "kwargs": {"time_per_step": freq, "generate_portfolio_metrics": True},
        },
        "backtest": {
            "start_time": start,
            "end_time": end,
            "account": settings.account,
            "benchmark": benchmark_returns(settings.benchmark or (), start, end, freq),
            "exchange_kwargs": {
                "exchange": {
                    "class": "BarExchange",
                    "module_path": "kronos_qlib.plugin.exchange",
                    "kwargs": exchange,
                }
            },
        },
    }


def strategy_settings(settings: BacktestConfig) -> dict[str, Any]:
    """What Qlib's TopkDropoutStrategy takes beside its signal."""
    return {
        "topk": settings.topk,
        "n_drop": settings.n_drop,
        "hold_thresh": settings.hold_thresh,
        "only_tradable": settings.only_tradable,
        "forbid_all_trade_at_limit": settings.forbid_all_trade_at_limit,
        "risk_degree": settings.risk_degree,
    }


def exchange_settings(settings: BacktestConfig) -> dict[str, Any]:
    """What the exchange takes beside names, days and frequency."""
    limit, share = settings.limit_threshold, settings.volume_share
    found: dict[str, Any] = {
        "deal_price": settings.deal_price,
        "limit_threshold": None if limit is None else float(limit),
        "open_cost": settings.open_cost,
        "close_cost": settings.close_cost,
        "min_cost": settings.min_cost,
        "impact_cost": settings.impact_cost,
    }
    if settings.trade_unit is not None:
        found["trade_unit"] = settings.trade_unit
    if share is not None:
        found["volume_threshold"] = ("current", f"{float(share)!r} * $volume")
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def benchmark_returns(
    names: str | Sequence[str], start: pd.Timestamp, end: pd.Timestamp, freq: str
) -> pd.Series[float]:
    """Return of each bar from the bar before, the mean of the names that traded in both.

    Qlib would read this itself, but for bars of minutes it looks for daily ones first and fails.

    Raises:
        ConfigError: Qlib has no bar of them there, or none at all of this frequency.
    """
    names = [names] if isinstance(names, str) else list(names)
    try:
        frame = D.features(names, ["$close / Ref($close, 1) - 1"], start, end, freq=freq)
    except ValueError as problem:  # Qlib makes a calendar of days from minutes, but no bars
        raise ConfigError(
            f"Qlib's folder has no bars for {freq}: give backtest.freq as its bars come"
        ) from problem
    returns = frame.iloc[:, 0].dropna().groupby(level="datetime").mean()
    if returns.empty:
        raise ConfigError(
            f"backtest.benchmark {', '.join(names)} has no {freq} bars from {start} to {end}; give "
            "an instrument of this Qlib folder"
        )
    return returns


def _span(
    settings: BacktestConfig, pred: pd.DataFrame, freq: str
) -> tuple[pd.Timestamp, pd.Timestamp]:
    """First and last bar traded. Qlib reads the calendar one bar past the last."""
    scored = pd.DatetimeIndex(pred.index.get_level_values("datetime"))
    try:
        calendar = pd.DatetimeIndex(D.calendar(freq=freq, future=True))
    except ValueError as problem:
        raise ConfigError(
            f"Qlib's folder has no calendar for {freq}: give backtest.freq as its bars come"
        ) from problem
    if scored.max() > calendar[-1]:
        read_calendar(freq, future=True)  # says what is wrong with it
    start = pd.Timestamp(settings.start_time) if settings.start_time else scored.min()
    end = pd.Timestamp(settings.end_time) if settings.end_time else scored.max()
    if settings.end_time and freq != "day" and end == end.normalize():
        end += pd.Timedelta(days=1) - pd.Timedelta(seconds=1)  # a date holds all its bars
    within = calendar[(calendar >= start) & (calendar <= end)]
    if len(within) < 2:
        raise ConfigError(
            f"a backtest needs 2 bars or more: the {freq} calendar has {len(within)} from {start} "
            f"to {end}"
        )
    if within[-1] == calendar[-1]:
        if settings.end_time:
            raise ConfigError(
                f"backtest.end_time {settings.end_time} is the last bar of Qlib's {freq} calendar, "
                f"and Qlib needs one more: end on {within[-2]}, or write the bars to come into "
                f"calendars/{freq}_future.txt"
            )
        logger.warning(
            "The backtest ends on %s, one bar before the last score: Qlib's %s calendar has no bar "
            "after it (calendars/%s_future.txt would hold it).",
            within[-2],
            freq,
            freq,
        )
        within = within[:-1]
    return within[0], within[-1]
