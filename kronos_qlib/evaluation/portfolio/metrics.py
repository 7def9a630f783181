"""What a backtest earned and risked, from Qlib's daily report."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import kurtosis, norm, skew

from kronos_qlib.errors import UndefinedMetricError
from kronos_qlib.extras import require

REPORT_COLUMNS = ("return", "bench", "cost", "turnover")
"""What we read of Qlib's `report_normal`, each a fraction of the day before's account value.
`return` is before cost, `cost` its own column, `turnover` counts what was bought and what was sold.
"""

TRADING_DAYS = 252
"""Days in a year by default. Qlib's own `risk_analysis` takes 238 for daily data."""

MEASURES = "what a backtest earned and risked"
"""As messages name what this module measures."""

ROUNDING = 1e-12
"""A spread of daily returns below this is an error of floating point, not risk."""

PORTFOLIO_METRICS = (
    "annual_return",
    "annual_return_additive",
    "annual_return_before_cost",
    "annual_volatility",
    "sharpe",
    "sortino",
    "calmar",
    "max_drawdown",
    "max_drawdown_days",
    "hit_rate",
    "excess_return",
    "excess_return_before_cost",
    "information_ratio",
    "information_ratio_before_cost",
    "excess_hit_rate",
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
        annual_return_before_cost: annual_return had trading been free.
        annual_volatility: daily standard deviation (ddof 1) x sqrt(days_per_year).
        sharpe: daily mean / standard deviation (ddof 1) x sqrt(days_per_year); riskless rate 0.
        sortino: annual_return_additive / downside deviation, which is the root of the mean over
            all days (not only losing ones) of squared losses x sqrt(days_per_year).
        calmar: annual_return / -max_drawdown.
        max_drawdown: deepest fall of compounded wealth from its peak, the starting capital
            included, as a negative fraction. Qlib's own sums returns instead.
        max_drawdown_days: trading days spent below the peak around that deepest fall; counts to
            the report's end when the peak was not reached again.
        hit_rate: share of days that gained.
        excess_return: daily mean of the return less the benchmark's x days_per_year, additive.
        excess_return_before_cost: the same had trading been free.
        information_ratio: daily mean of the excess / its standard deviation (ddof 1) x
            sqrt(days_per_year).
        information_ratio_before_cost: the same had trading been free.
        excess_hit_rate: share of days better than the benchmark.
        excess_max_drawdown: the same fall of wealth measured in units of the benchmark.
        turnover: mean over days, bought plus sold as a fraction of the account.

    Raises:
        UndefinedMetricError: a value is missing, nothing was ever traded, or a ratio would divide
            by zero (returns that never vary, no losing day). A figure would hide it: a
            strategy that stood still is a fault to look into, not a Sharpe ratio of 0.
        MissingDependencyError: empyrical, of the extra "report", is not installed.

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
    free, bench = report["return"], report["bench"]
    excess, free_excess = returns - bench, free - bench
    if np.ptp(excess.to_numpy()) < ROUNDING or np.ptp(free_excess.to_numpy()) < ROUNDING:
        raise UndefinedMetricError(
            f"the return is {excess.iloc[0]:+g} from the benchmark's on every day, so no "
            "information ratio exists"
        )
    relative = (1 + returns) / (1 + bench) - 1

    empyrical = require("empyrical", for_=MEASURES)

    def yearly(measure: Callable[..., float], of: pd.Series[float] = returns) -> float:
        return float(measure(of, annualization=days_per_year))

    metrics = {
        "annual_return": yearly(empyrical.annual_return),
        "annual_return_additive": float(returns.mean() * days_per_year),
        "annual_return_before_cost": yearly(empyrical.annual_return, free),
        "annual_volatility": yearly(empyrical.annual_volatility),
        "sharpe": yearly(empyrical.sharpe_ratio),
        "sortino": yearly(empyrical.sortino_ratio),
        "calmar": yearly(empyrical.calmar_ratio),
        "max_drawdown": float(empyrical.max_drawdown(returns)),
        "max_drawdown_days": float(days_below_peak(drawdown(returns))),
        "hit_rate": float((returns > 0).mean()),
        "excess_return": float(excess.mean() * days_per_year),
        "excess_return_before_cost": float(free_excess.mean() * days_per_year),
        "information_ratio": yearly(empyrical.sharpe_ratio, excess),
        "information_ratio_before_cost": yearly(empyrical.sharpe_ratio, free_excess),
        "excess_hit_rate": float((excess > 0).mean()),
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


def wealth_measures(
    net: pd.Series[float], bench: pd.Series[float], *, days_per_year: float = TRADING_DAYS
) -> dict[str, float]:
    """The few of `portfolio_metrics` that returns of any strategy have, a benchmark's too.

    Args:
        net: daily return after cost, two days or more.
        bench: the benchmark's on the same days.
        days_per_year: what daily figures are scaled to a year by.

    Returns:
        `annual_return`, `sharpe`, `max_drawdown`, `excess_return`, `information_ratio`, as of
        `portfolio_metrics`; NaN for a ratio to a risk of 0.

    Raises:
        MissingDependencyError: empyrical, of the extra "report", is not installed.
    """
    empyrical = require("empyrical", for_=MEASURES)
    excess = net - bench
    return {
        "annual_return": float(empyrical.annual_return(net, annualization=days_per_year)),
        "sharpe": ratio_to_risk(net, days_per_year),
        "max_drawdown": float(empyrical.max_drawdown(net)),
        "excess_return": float(excess.mean() * days_per_year),
        "information_ratio": ratio_to_risk(excess, days_per_year),
    }


def ratio_to_risk(returns: pd.Series[float], days_per_year: float) -> float:
    """Daily mean / standard deviation (ddof 1) x sqrt(days_per_year); NaN where nothing varies."""
    if np.ptp(returns.to_numpy()) < ROUNDING:
        return math.nan
    return float(returns.mean() / returns.std(ddof=1) * math.sqrt(days_per_year))


@dataclass(frozen=True)
class DeflatedSharpe:
    """A Sharpe ratio of excess returns after the search that found it."""

    probability: float
    """That the true ratio is above the maximum expected of the trials without skill."""
    expected_maximum: float
    """Annual Sharpe ratio expected of the best of `trials` trials without skill."""
    trials: int


def deflated_sharpe(
    returns: pd.Series[float],
    trials: int,
    *,
    trial_variance: float | None = None,
    days_per_year: float = TRADING_DAYS,
) -> DeflatedSharpe:
    """Probability that a Sharpe ratio is above what the best of several trials has without skill.

    Args:
        returns: daily, after cost, less the benchmark's: the ratio is then the information ratio.
            Of total returns a benchmark that rises would count as skill, and random
            scores would be significant in a rising market. Without skill, and with one trial,
            the probability is spread evenly between 0 and 1.
        trials: strategies or signals tried, this one included; 1 leaves the probabilistic Sharpe
            ratio against 0. Trials that resemble each other count for fewer than they are, so
            taking all for independent is on the safe side.
        trial_variance: of the trials' Sharpe ratios, a year. None takes what trials without skill
            would scatter by: the variance of one estimated Sharpe ratio, 1 / (days - 1) a day.
        days_per_year: what daily figures are scaled to a year by.

    Raises:
        UndefinedMetricError: no trial, a variance below 0, or returns that never vary.

    Source:
        Bailey and López de Prado, "The deflated Sharpe ratio", Journal of Portfolio Management 40
        (2014). With SR a day, T days, N trials and g Euler's constant:
            SR0 = sqrt(V) ((1 - g) Φ⁻¹(1 - 1/N) + g Φ⁻¹(1 - 1/(N e)))
            DSR = Φ((SR - SR0) sqrt(T - 1) / sqrt(1 - skew SR + (kurtosis - 1) / 4 SR²))
    """
    values = returns.to_numpy(dtype=float)
    if len(values) < 2 or np.ptp(values) < ROUNDING:
        raise UndefinedMetricError("returns that never vary have no Sharpe ratio to deflate")
    return deflate(
        float(values.mean() / values.std(ddof=1) * math.sqrt(days_per_year)),
        days=len(values),
        skewness=float(skew(values)),
        kurtosis=float(kurtosis(values, fisher=False)),
        trials=trials,
        trial_variance=trial_variance,
        days_per_year=days_per_year,
    )


def deflate(
    sharpe: float,
    *,
    days: int,
    skewness: float,
    kurtosis: float,
    trials: int,
    trial_variance: float | None = None,
    days_per_year: float = TRADING_DAYS,
) -> DeflatedSharpe:
    """`deflated_sharpe` from a Sharpe ratio a year and the moments of daily returns.

    Args:
        sharpe: a year; days: of the returns behind it.
        kurtosis: 3 for a normal distribution.
        trials, trial_variance, days_per_year: as of `deflated_sharpe`.

    Raises:
        UndefinedMetricError: no trial, or a variance below 0.

    Source:
        As of `deflated_sharpe`.
    """
    if trials < 1:
        raise UndefinedMetricError(f"trials count this strategy too: 1 or more, got {trials}")
    if trial_variance is not None and trial_variance < 0:
        raise UndefinedMetricError(f"a variance is 0 or more, got {trial_variance}")
    daily = sharpe / math.sqrt(days_per_year)
    variance = 1 / (days - 1) if trial_variance is None else trial_variance / days_per_year
    expected_maximum = 0.0
    if trials > 1:
        expected_maximum = math.sqrt(variance) * (
            (1 - np.euler_gamma) * norm.ppf(1 - 1 / trials)
            + np.euler_gamma * norm.ppf(1 - 1 / (trials * math.e))
        )
    spread = math.sqrt(1 - skewness * daily + (kurtosis - 1) / 4 * daily**2)
    probability = norm.cdf((daily - expected_maximum) * math.sqrt(days - 1) / spread)
    return DeflatedSharpe(
        float(probability), float(expected_maximum * math.sqrt(days_per_year)), trials
    )


def to_days(report: pd.DataFrame) -> pd.DataFrame:
    """A report of bars of minutes by days; one of days is returned as it is.

    Returns are compounded over a day's bars; cost is what the day's return loses by it, turnover
    the sum.
    """
    times = pd.DatetimeIndex(report.index)
    if (times == times.normalize()).all():
        return report
    check_report(report)
    day = pd.Index(times.normalize(), name="datetime")

    def grown(returns: pd.Series[float]) -> pd.Series[float]:
        return (1 + returns).groupby(day).prod() - 1

    free = grown(report["return"])
    return pd.DataFrame(
        {
            "return": free,
            "bench": grown(report["bench"]),
            "cost": free - grown(net_returns(report)),
            "turnover": report["turnover"].groupby(day).sum(),
        }
    )


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
    """Check that a daily report is complete.

    Raises:
        UndefinedMetricError: a column is missing, there are fewer than two days, or a value is not
            finite (names column and day).
    """
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
