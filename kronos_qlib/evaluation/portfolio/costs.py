"""What other costs would leave of a backtest, and how much money it would bear.

What the backtest itself pays is set in `plugin.records.backtest_record.BacktestConfig`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.errors import UndefinedMetricError
from kronos_qlib.evaluation.portfolio.metrics import TRADING_DAYS, check_report, ratio_to_risk

COSTS = (0.0, 5.0, 10.0, 15.0, 20.0, 30.0)
"""Basis points of the money traded, each side by itself: of what is bought, and of what is sold.
To replace one name by another trades its money twice and pays twice."""
SHARES = (0.01, 0.05, 0.10)
"""Of the money that all traders together turn over in a name and bar."""
ORDERS = {"median": 0.5, "95 %": 0.95}
"""Which order must fit: half of them, or nineteen of twenty."""


def cost_table(
    report: pd.DataFrame,
    costs: Sequence[float] = COSTS,
    *,
    days_per_year: float = TRADING_DAYS,
) -> pd.DataFrame:
    """The same trades at other costs.

    Args:
        report: daily, with REPORT_COLUMNS. Its own cost is left aside. Qlib's turnover is the
            money bought plus the money sold, over the account of the day before.
        costs: basis points of the money traded, each side by itself. A book that is replaced
            altogether has a turnover of 2 and pays 2 x cost.
        days_per_year: what daily figures are scaled to a year by.

    Returns:
        A row per cost, on "cost_bp": `net_return` and `excess_return` (over the benchmark), daily
        means x days_per_year; `sharpe`; `information_ratio`. A first-order picture: a strategy
        that pays more also has less to reinvest, and no order is larger for a higher cost.

    Raises:
        UndefinedMetricError: the report has holes, or returns never vary.
    """
    check_report(report)
    rows = {}
    for cost in costs:
        net = report["return"] - report["turnover"] * cost / 1e4
        excess = net - report["bench"]
        rows[cost] = {
            "net_return": float(net.mean() * days_per_year),
            "excess_return": float(excess.mean() * days_per_year),
            "sharpe": _ratio(net, days_per_year),
            "information_ratio": _ratio(excess, days_per_year),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("cost_bp")


def break_even_cost(report: pd.DataFrame) -> float:
    """Basis points of the money traded, each side, that leave nothing over the benchmark.

    Below 0 where the excess is negative even without cost.

    Args:
        report: daily, with REPORT_COLUMNS.

    Raises:
        UndefinedMetricError: the report has holes, or nothing was traded.
    """
    check_report(report)
    traded = float(report["turnover"].mean())
    if traded == 0:
        raise UndefinedMetricError("nothing was traded, so no cost breaks even")
    return float((report["return"] - report["bench"]).mean()) / traded * 1e4


def cost_paid(report: pd.DataFrame) -> float:
    """Basis points of the money traded that the backtest paid on the whole.

    With 5 bp to buy, 15 bp to sell and as much bought as sold it is 10, plus what minimum fees add.

    Args:
        report: daily, with REPORT_COLUMNS.

    Raises:
        UndefinedMetricError: the report has holes, or nothing was traded.
    """
    check_report(report)
    traded = float(report["turnover"].sum())
    if traded == 0:
        raise UndefinedMetricError("nothing was traded, so nothing was paid for it")
    return float(report["cost"].sum()) / traded * 1e4


def capacity_table(
    orders: npt.ArrayLike, traded: npt.ArrayLike, shares: Sequence[float] = SHARES
) -> pd.DataFrame:
    """How large an account may be before its orders are a large part of the market's.

    Orders grow with the account, so an order of a fraction f of the account takes f x account /
    traded of its bar, and the account at which it takes a share s is s x traded / f.

    Args:
        orders: (N,) money of each order as a fraction of the account when it was given.
        traded: (N,) money that was traded in that name and bar altogether; 0 or NaN where unknown.
        shares: fractions of `traded`.

    Returns:
        A row per share, on "share": the account at which the median order, and that of which 95 %
        are smaller, takes this share; `orders` counted and `unknown`, orders whose bar's money is
        not to be had. All accounts are NaN where none is.

    Raises:
        UndefinedMetricError: there is no order.
    """
    part = np.asarray(orders, dtype=np.float64)
    money = np.asarray(traded, dtype=np.float64)
    if not len(part):
        raise UndefinedMetricError("no order was given, so no account is too large")
    known = np.isfinite(money) & (money > 0) & np.isfinite(part)
    load = part[known] / money[known]  # share of the bar per unit of account
    rows = {
        share: {
            **{
                name: share / float(np.quantile(load, at)) if len(load) else math.nan
                for name, at in ORDERS.items()
            },
            "orders": len(part),
            "unknown": int((~known).sum()),
        }
        for share in shares
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("share")


def _ratio(returns: pd.Series[float], days_per_year: float) -> float:
    found = ratio_to_risk(returns, days_per_year)
    if math.isnan(found):
        raise UndefinedMetricError("returns that never vary have no ratio to their risk")
    return found
