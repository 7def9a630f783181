"""What a backtest earned and risked, from Qlib's daily report."""

from __future__ import annotations

import math
from collections.abc import Callable

import empyrical
import numpy as np
import pandas as pd

from kronos_qlib.errors import UndefinedMetricError

REPORT_COLUMNS = ("return", "bench", "cost", "turnover")
"""What we read of Qlib's `report_normal`, each a fraction of the day before's account value.
`return` is before cost, `cost` its own column, `turnover` counts what was bought and what was sold.
"""

TRADING_DAYS = 252
"""Days in a year unless told otherwise. Qlib's own `risk_analysis` takes 238 for daily data."""

PORTFOLIO_METRICS = (
    "annual_return",
    "annual_return_additive",
    "annual_volatility",
    "sharpe",
    "sortino",
    "calmar",
    "max_drawdown",
    "max_drawdown_days",
    "excess_max_drawdown",
    "turnover",
)
"""The keys of `portfolio_metrics`, in their order."""


def portfolio_metrics(
    report: pd.DataFrame, *, days_per_year: float = TRADING_DAYS
) -> dict[str, float]:
    """Measure a strategy after costs; every value is finite, or this raises.

    Args:
        report: one row per trading day, with REPORT_COLUMNS.
        days_per_year: what daily figures are scaled to a year by.

    Returns:
        annual_return: compounded, final wealth ** (days_per_year / days) - 1.
        annual_return_additive: daily mean x days_per_year, Qlib's way (Qlib's factor is 238).
        annual_volatility: daily standard deviation (ddof 1) x sqrt(days_per_year).
        sharpe: daily mean / standard deviation (ddof 1) x sqrt(days_per_year); riskless rate 0.
        sortino: annual_return_additive / downside deviation, which is the root of the mean over
            all days (not only losing ones) of squared losses x sqrt(days_per_year).
        calmar: annual_return / -max_drawdown.
        max_drawdown: deepest fall of compounded wealth from its peak, the starting capital
            included, as a negative fraction. Qlib's own sums returns instead.
        max_drawdown_days: trading days spent below the peak around that deepest fall; counts to
            the report's end when the peak was not reached again.
        excess_max_drawdown: the same fall of wealth measured in units of the benchmark.
        turnover: mean over days, bought plus sold as a fraction of the account.

    Raises:
        UndefinedMetricError: a value is missing, nothing was ever traded, or a ratio would divide
            by zero (returns that never vary, no losing day). A figure would hide it: a
            strategy that stood still is a fault to look into, not a Sharpe ratio of 0.

    Source:
        empyrical-reloaded, whose conventions are the ones above (measured in test_metrics).
    """
    check_report(report)
    if not report["turnover"].any():
        raise UndefinedMetricError(
            f"the strategy traded on none of {len(report)} days from {report.index[0]:%Y-%m-%d} to "
            f"{report.index[-1]:%Y-%m-%d}; check that scores reach the backtest's dates, and its "
            "limit_threshold and account"
        )
    returns = net_returns(report)
    if np.ptp(returns.to_numpy()) == 0:
        raise UndefinedMetricError(
            f"returns are {returns.iloc[0]:g} on every day, so no ratio to their risk exists"
        )
    relative = (1 + returns) / (1 + report["bench"]) - 1

    def yearly(measure: Callable[..., float]) -> float:
        return float(measure(returns, annualization=days_per_year))

    metrics = {
        "annual_return": yearly(empyrical.annual_return),
        "annual_return_additive": float(returns.mean() * days_per_year),
        "annual_volatility": yearly(empyrical.annual_volatility),
        "sharpe": yearly(empyrical.sharpe_ratio),
        "sortino": yearly(empyrical.sortino_ratio),
        "calmar": yearly(empyrical.calmar_ratio),
        "max_drawdown": float(empyrical.max_drawdown(returns)),
        "max_drawdown_days": float(days_below_peak(drawdown(returns))),
        "excess_max_drawdown": float(empyrical.max_drawdown(relative)),
        "turnover": float(report["turnover"].mean()),
    }
    undefined = [name for name, value in metrics.items() if not math.isfinite(value)]
    if undefined:
        raise UndefinedMetricError(
            f"{', '.join(undefined)} have no value over {len(report)} days of which "
            f"{int((returns < 0).sum())} lost money; the period is too short to judge by them"
        )
    return metrics


def net_returns(report: pd.DataFrame) -> pd.Series[float]:
    """Daily returns after cost: what the account really gained."""
    return report["return"] - report["cost"]


def drawdown(returns: pd.Series[float]) -> pd.Series[float]:
    """Compounded wealth against its highest point so far, the start included: 0 or below."""
    wealth = (1 + returns).cumprod()
    return wealth / wealth.cummax().clip(lower=1.0) - 1


def days_below_peak(drawdowns: pd.Series[float]) -> int:
    """Length of the unbroken run of days below the peak that holds the deepest one."""
    below = drawdowns.to_numpy() < 0
    deepest = int(drawdowns.to_numpy().argmin())
    if not below[deepest]:
        return 0
    after = below[deepest:]
    before = below[: deepest + 1][::-1]
    return _leading_true(after) + _leading_true(before) - 1


def check_report(report: pd.DataFrame) -> None:
    """Raise UndefinedMetricError unless the report is whole: two days or more, nothing missing."""
    missing = [name for name in REPORT_COLUMNS if name not in report]
    if missing:
        raise UndefinedMetricError(
            f"expected a backtest report with {', '.join(REPORT_COLUMNS)}; "
            f"{', '.join(missing)} not among {', '.join(map(str, report.columns))}"
        )
    if len(report) < 2:
        raise UndefinedMetricError(f"a report needs 2 days or more, this one has {len(report)}")
    for name in REPORT_COLUMNS:
        good = np.isfinite(report[name].to_numpy(dtype=float))
        if not good.all():
            first = report.index[int(good.argmin())]
            raise UndefinedMetricError(
                f"{name!r} is not a finite number on {first:%Y-%m-%d} and {int((~good).sum())} "
                f"of {len(report)} days; check prices on those days"
            )


def _leading_true(flags: np.ndarray) -> int:
    return len(flags) if flags.all() else int(flags.argmin())
