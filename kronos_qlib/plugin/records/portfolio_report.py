"""PortfolioReportRecord: what the backtest earned after costs, and how much of that is luck.

In Qlib a record whose input is missing logs "Generation skipped" and the run stays green. Here:

    record:
      - {class: KronosSignalRecord, module_path: kronos_qlib.plugin.records, kwargs: {...}}
      - {class: SigAnaRecord, module_path: qlib.workflow.record_temp}
      - {class: SignalReportRecord, module_path: kronos_qlib.plugin.records}
      - {class: BacktestRecord, module_path: kronos_qlib.plugin.records}
      - {class: PortfolioReportRecord, module_path: kronos_qlib.plugin.records}
      - {class: RunCheckRecord, module_path: kronos_qlib.plugin.records}
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import pandas as pd
from qlib.log import get_module_logger
from qlib.workflow.record_temp import ACRecordTemp, PortAnaRecord
from qlib.workflow.recorder import Recorder

from kronos_qlib.errors import ConfigError
from kronos_qlib.evaluation.compare.comparison import excess_test
from kronos_qlib.evaluation.compare.verdicts import money_sentence
from kronos_qlib.evaluation.portfolio.costs import (
    break_even_cost,
    capacity_table,
    cost_paid,
    cost_table,
)
from kronos_qlib.evaluation.portfolio.metrics import (
    TRADING_DAYS,
    deflated_sharpe,
    drawdown,
    net_returns,
    portfolio_metrics,
    to_days,
)
from kronos_qlib.evaluation.portfolio.portfolio_figures import cost_figure, equity_figure
from kronos_qlib.plugin.pickles.pickle_rules import HeldPosition
from kronos_qlib.plugin.records.artifacts import (
    count_signals,
    experiment_of,
    features_at,
    load_needed,
    load_predictions,
    load_signals,
    report_frequency_of,
    saved_files,
)
from kronos_qlib.plugin.runs.about_run import add_verdict, key_metrics

logger = logging.getLogger(__name__)

SIGNAL_METRICS = ("IC", "ICIR", "Rank IC", "Rank ICIR")
"""What SigAnaRecord logs."""

RISK_METRICS = ("mean", "std", "annualized_return", "information_ratio", "max_drawdown")
"""What PortAnaRecord logs for the excess over the benchmark, with and without cost."""

SEARCH_AND_COST_METRICS = (
    "deflated_sharpe",
    "sharpe_by_luck",
    "sharpe_trials",
    "days_per_year",
    "cost_paid_bp",
    "break_even_cost_bp",
)
"""What PortfolioReportRecord logs beside PORTFOLIO_METRICS."""

CAPACITY_SHARE = 0.05
"""Of a bar's traded money: the row of the capacity table that becomes a metric."""


class PortfolioReportRecord(ACRecordTemp):
    """Log what the backtest earned after costs, how much of it is luck, and what it would bear.

    Reports of bars of minutes are summed to days. The metrics are those of `portfolio_metrics`,
    under their own names, and:

        deflated_sharpe: the probability that the Sharpe ratio of the excess over the benchmark (the
            information ratio) is better than that of the luckiest of
            as many trials without skill;
            `sharpe_by_luck` is what that one has, `sharpe_trials` how many.
        excess_return_low, excess_return_high, excess_return_t: the 95 % interval of
            `excess_return`, and its t, by `ranking.uncertainty.daily_mean`; not logged where
            days are too few.
        days_per_year: that daily figures were scaled by.
        cost_paid_bp, break_even_cost_bp: basis points of the money traded that were paid, and at
            which nothing is left of the excess over the benchmark. Money bought and money sold
            both count: 5 bp to buy and 15 bp to sell are 10 on the whole.
        capacity: money in an account of which 95 % of orders take 5 % or less of what is traded
            in their bar; not logged where the provider does not have that.

    Leaves in the folder `portfolio_report` of the run: `portfolio_metrics.pkl` (a Series),
    `daily.csv`, `equity.png`, `costs.csv`, `costs.png`, `capacity.csv`.
    """

    artifact_path = "portfolio_report"
    needs_extra = "report"
    depend_cls = PortAnaRecord
    reads = (  # of BacktestRecord, with the frequency of the bars in place of {freq}
        "portfolio_analysis/report_normal_{freq}.pkl",
        "portfolio_analysis/positions_normal_{freq}.pkl",
    )
    leaves = (
        "portfolio_metrics.pkl",
        "daily.csv",
        "equity.png",
        "costs.csv",
        "costs.png",
        "capacity.csv",
    )

    def __init__(
        self,
        recorder: Recorder,
        freq: str | None = None,
        days_per_year: float = TRADING_DAYS,
        trials: int | None = None,
        trial_variance: float | None = None,
        title: str | None = None,
        skip_existing: bool = False,
    ) -> None:
        """
        Args:
            freq: which of the backtest's reports, as 1day in `report_normal_1day.pkl`; None takes
                the only one.
            days_per_year: trading days that daily figures are scaled to.
            trials: strategies or signals that the reported one was chosen from; None counts those
                in the run's `signals/signals.parquet`, and 1 where it has none. Other runs are not
                counted: give them here. A comparison counts the trials of
                all its runs, alike for each.
            trial_variance: of these trials' Sharpe ratios a year, if known; see `deflated_sharpe`.
            title: above the figure; None takes the experiment's name.
            skip_existing: Qlib's: do nothing where the run has the files already.
        """
        super().__init__(recorder=recorder, skip_existing=skip_existing)
        if trials is not None and trials < 1:
            raise ConfigError(f"trials count the reported strategy too: 1 or more, got {trials}")
        self.freq = freq
        self.days_per_year = days_per_year
        self.trials = trials
        self.trial_variance = trial_variance
        self.title = title

    def list(self) -> list[str]:
        """Files of the record."""
        return [*self.leaves]

    def check(self, include_self: bool = False, parents: bool = True) -> None:
        """Qlib's, of the record's own files.

        Raises:
            MissingArtifactError: the run has no report of a backtest, and parents are asked for.
        """
        # Qlib's check would ask PortAnaRecord for its list(), which needs that record's settings;
        # and Qlib's generate() forgives a FileNotFoundError, but not this error.
        if parents:
            report_frequency_of(self.recorder, type(self).__name__, self.freq)
        super().check(include_self=include_self, parents=False)

    def _generate(self, *args: object, **kwargs: object) -> dict[str, object]:
        who = type(self).__name__
        freq = report_frequency_of(self.recorder, who, self.freq)
        bars = load_needed(
            self.recorder,
            PortAnaRecord.get_path(f"report_normal_{freq}.pkl"),
            reader=who,
            writer="BacktestRecord",
        )
        report = to_days(bars)
        metrics = portfolio_metrics(report, days_per_year=self.days_per_year)
        daily = daily_table(report)
        trials, counted = self._trials()
        deflated = deflated_sharpe(
            daily["excess_return"],
            trials,
            trial_variance=self.trial_variance,
            days_per_year=self.days_per_year,
        )
        get_module_logger(__name__).info(  # Qlib's, which a workflow prints
            "deflated Sharpe ratio %.0f %%: the probability that the excess over the benchmark is "
            "more than the luck of the best of %d trial(s), counted as %s",
            100 * deflated.probability,
            trials,
            counted,
        )
        paid, even = cost_paid(report), break_even_cost(report)
        metrics |= {
            "deflated_sharpe": deflated.probability,
            "sharpe_by_luck": deflated.expected_maximum,
            "sharpe_trials": float(deflated.trials),
            "days_per_year": float(self.days_per_year),
            "cost_paid_bp": paid,
            "break_even_cost_bp": even,
        }
        positions = load_needed(
            self.recorder,
            PortAnaRecord.get_path(f"positions_normal_{freq}.pkl"),
            reader=who,
            writer="BacktestRecord",
        )
        capacity = self._capacity(positions, bars["account"], freq)
        largest = float(capacity["95 %"][CAPACITY_SHARE])
        if np.isfinite(largest):
            metrics["capacity"] = largest
        tested = excess_test(daily["excess_return"])
        if tested is not None:
            low, high = tested.interval()
            metrics |= {
                "excess_return_low": low * self.days_per_year,
                "excess_return_high": high * self.days_per_year,
                "excess_return_t": tested.t,
            }

        costs = cost_table(report, days_per_year=self.days_per_year)
        title = self.title or experiment_of(self.recorder)
        figures = {
            "equity": equity_figure(report, title),
            "costs": cost_figure(costs, paid, even, f"{title}: the same trades at other costs"),
        }
        with saved_files(self) as folder:
            daily.to_csv(folder / "daily.csv")
            costs.to_csv(folder / "costs.csv", float_format="%.6g")
            capacity.to_csv(folder / "capacity.csv", na_rep="unknown", float_format="%.6g")
            for name, figure in figures.items():
                figure.savefig(folder / f"{name}.png")
        self.recorder.log_metrics(**metrics, **key_metrics(metrics))
        verdict = money_sentence(
            metrics["information_ratio"], tested, days_per_year=self.days_per_year
        )
        borne = (
            f" An account of up to {largest:.2g} would have had 95 % of its orders take "
            f"{CAPACITY_SHARE:.0%} or less of what was traded in their bar."
            if np.isfinite(largest)
            else ""
        )
        add_verdict(
            self.recorder,
            "money",
            f"{verdict} Deflated Sharpe ratio of the excess: {deflated.probability:.0%}, "
            f"{trials} trial{'s' if trials > 1 else ''} counted ({counted}).{borne}",
        )
        return {"portfolio_metrics.pkl": pd.Series(metrics, name="value")}

    def _trials(self) -> tuple[int, str]:
        """How many trials there were, and how they were counted."""
        if self.trials is not None:
            return self.trials, "the workflow says"
        signals = load_signals(self.recorder)
        if signals is None:
            return 1, "this score alone"
        pred = load_predictions(self.recorder, type(self).__name__)
        return count_signals(pred, signals), "the different signals kept with this run"

    def _capacity(
        self, positions: Mapping[pd.Timestamp, HeldPosition], account: pd.Series[float], freq: str
    ) -> pd.DataFrame:
        """`capacity_table` of the orders behind these positions, and what `traded` was read of."""
        changes = position_changes(positions)
        fields = ["$close", "$amount", "$volume * $close"]
        market = features_at(changes.index, fields, freq)
        # Qlib's volume is shares / factor and its price money x factor: the factor falls out.
        source = next((name for name in fields[1:] if market[name].gt(0).any()), None)
        if source is None:
            logger.warning("capacity is unknown: the provider has neither $amount nor $volume")
        day_account = account.reindex(changes.index.get_level_values("datetime")).to_numpy()
        orders = changes.to_numpy() * market["$close"].to_numpy() / day_account
        traded = market[source].to_numpy() if source else np.full(len(orders), np.nan)
        return capacity_table(orders, traded).assign(traded=source or "unknown")


def position_changes(positions: Mapping[pd.Timestamp, HeldPosition]) -> pd.Series[float]:
    """Shares bought or sold, without sign, from the positions at the end of each bar.

    Args:
        positions: Qlib's `positions_normal`: Position objects by time, the first from nothing.

    Returns:
        On (datetime, instrument), a row for each name whose amount changed.
    """
    # Of a dict of dicts pandas 2 would leave out bars without a position, and shuffle the others.
    held = pd.DataFrame(
        [
            {name: position.get_stock_amount(name) for name in position.get_stock_list()}
            for position in positions.values()
        ],
        index=pd.Index(positions),
    ).fillna(0.0)
    moved = held.diff().fillna(held).abs().to_numpy()
    row, column = np.nonzero(moved)
    index = pd.MultiIndex.from_arrays(
        [held.index[row], held.columns[column]], names=["datetime", "instrument"]
    )
    return pd.Series(moved[row, column], index=index, name="shares")


def daily_table(report: pd.DataFrame) -> pd.DataFrame:
    """The daily report with returns after cost, excess over the benchmark, and drawdown."""
    net = net_returns(report)
    return report.assign(
        net_return=net,
        excess_return=net - report["bench"],
        excess_return_before_cost=report["return"] - report["bench"],
        drawdown=drawdown(net),
        drawdown_before_cost=drawdown(report["return"]),
    )
