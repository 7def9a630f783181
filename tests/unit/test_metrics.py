"""What a backtest earned, on numbers small enough to check by hand."""

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.evaluation.portfolio.metrics import (
    PORTFOLIO_METRICS,
    UndefinedMetricError,
    days_below_peak,
    deflate,
    deflated_sharpe,
    drawdown,
    portfolio_metrics,
    to_days,
)


def report_of(returns, *, bench=0.0, cost=0.0, turnover=0.5):
    days = pd.bdate_range("2024-01-01", periods=len(returns), name="datetime")
    columns = {"return": returns, "bench": bench, "cost": cost, "turnover": turnover}
    return pd.DataFrame(columns, index=days)


@pytest.fixture
def four_days():
    """After cost: up 10 %, down 20 %, up 5 %, up 25 %; wealth 1.1, 0.88, 0.924, 1.155."""
    costs, turnover = [0.01, 0.02, 0.01, 0.0], [1.0, 0.2, 0.4, 0.4]
    bench = [0.0, 0.0, 0.1, 0.1]
    return report_of([0.11, -0.18, 0.06, 0.25], bench=bench, cost=costs, turnover=turnover)


@pytest.fixture
def noisy():
    rng = np.random.default_rng(7)
    return report_of(
        rng.normal(0.001, 0.02, 200), bench=rng.normal(0, 0.01, 200), cost=rng.uniform(0, 1e-3, 200)
    )


def test_four_days_by_hand(four_days):
    found = portfolio_metrics(four_days, days_per_year=4)
    excess, free = np.array([0.1, -0.2, -0.05, 0.15]), np.array([0.11, -0.18, -0.04, 0.15])
    spread = np.sqrt((0.05**2 + 0.25**2 + 0.0**2 + 0.2**2) / 3)  # around the mean of 5 %
    assert found == pytest.approx(
        {
            "annual_return": 0.155,
            "annual_return_additive": 0.2,
            "annual_return_before_cost": 1.11 * 0.82 * 1.06 * 1.25 - 1,
            "annual_volatility": spread * 2,
            "sharpe": 0.05 / spread * 2,
            "sortino": 0.2 / (np.sqrt(0.2**2 / 4) * 2),  # one loss, averaged over four days
            "calmar": 0.155 / 0.2,
            "max_drawdown": -0.2,
            "max_drawdown_days": 2,
            "hit_rate": 0.75,
            "excess_return": 0.0,
            "excess_return_before_cost": 0.04,
            "information_ratio": 0.0,
            "information_ratio_before_cost": free.mean() / free.std(ddof=1) * 2,
            "excess_hit_rate": 0.5,
            "excess_max_drawdown": 0.8 * 1.05 / 1.1 - 1,
            "turnover": 0.5,
        },
        abs=1e-12,
    )
    assert excess.sum() == pytest.approx(0)


def test_the_names_are_those_promised(noisy):
    assert tuple(portfolio_metrics(noisy)) == PORTFOLIO_METRICS


def test_the_first_loss_falls_from_the_starting_capital():
    found = portfolio_metrics(report_of([-0.1, 0.05, 0.01, 0.02]))
    assert found["max_drawdown"] == pytest.approx(-0.1)
    assert found["max_drawdown_days"] == 4  # 0.9, 0.945, 0.954, 0.974: never back at 1


def test_excess_drawdown_measures_wealth_in_units_of_the_benchmark():
    rising = report_of([0.10, -0.01, 0.10], bench=[0.0, 0.10, 0.0])
    assert portfolio_metrics(rising)["excess_max_drawdown"] == pytest.approx(0.99 / 1.1 - 1)


def test_drawdown_agrees_with_empyrical(noisy):
    found = portfolio_metrics(noisy)["max_drawdown"]
    assert drawdown(noisy["return"] - noisy["cost"]).min() == pytest.approx(found, rel=1e-12)


@pytest.mark.parametrize(
    ("falls", "days"),
    [
        ([0.0, 0.0], 0),
        ([0.0, -0.1, 0.0, -0.2, -0.3, -0.1, 0.0, -0.2], 3),
        ([0.0, -0.1, -0.2], 2),
        ([-0.3, -0.1, 0.0], 2),
    ],
)
def test_days_below_the_peak_around_the_deepest_fall(falls, days):
    assert days_below_peak(pd.Series(falls)) == days


def test_sharpe_is_qlibs_information_ratio_without_a_benchmark(noisy):
    """Qlib sums returns and takes 238 days to a year; at 238 both agree on mean over spread."""
    from qlib.contrib.evaluate import risk_analysis

    ours = portfolio_metrics(noisy, days_per_year=238)
    qlibs = risk_analysis(noisy["return"] - noisy["cost"], freq="1day")["risk"]
    assert ours["sharpe"] == pytest.approx(qlibs["information_ratio"], rel=1e-12)
    assert ours["annual_return_additive"] == pytest.approx(qlibs["annualized_return"], rel=1e-12)
    assert ours["annual_volatility"] == pytest.approx(qlibs["std"] * np.sqrt(238), rel=1e-12)
    # Compounded and summed drawdown are two different things.
    assert ours["max_drawdown"] != pytest.approx(qlibs["max_drawdown"], rel=1e-3)


def test_the_information_ratio_is_qlibs(noisy):
    from qlib.contrib.evaluate import risk_analysis

    ours = portfolio_metrics(noisy, days_per_year=238)
    free = noisy["return"] - noisy["bench"]
    for end, excess in (("", free - noisy["cost"]), ("_before_cost", free)):
        qlibs = risk_analysis(excess, freq="1day")["risk"]
        assert ours[f"information_ratio{end}"] == pytest.approx(qlibs["information_ratio"])
        assert ours[f"excess_return{end}"] == pytest.approx(qlibs["annualized_return"])


def test_a_copy_of_the_benchmark_has_no_information_ratio(noisy):
    same = noisy.assign(**{"return": noisy["bench"] + 0.001, "cost": 0.0004})
    with pytest.raises(UndefinedMetricError, match=r"\+0\.0006 from the benchmark's on every day"):
        portfolio_metrics(same)


# Bailey and López de Prado (2014), the worked example: 100 trials whose Sharpe ratios have variance
# 1/2 a year, the best of them 2.5 over 5 years of 250 days, skewness -3, kurtosis 10.
PAPER = {"days": 1250, "skewness": -3, "kurtosis": 10, "trial_variance": 0.5, "days_per_year": 250}


def test_the_deflated_sharpe_ratio_of_the_paper():
    found = deflate(2.5, trials=100, **PAPER)
    assert found.probability == pytest.approx(0.9004, abs=5e-5)
    assert found.expected_maximum == pytest.approx(0.1132 * np.sqrt(250), rel=1e-3)
    assert deflate(2.5, trials=46, **PAPER).probability == pytest.approx(0.9505, abs=5e-5)
    normal = {**PAPER, "skewness": 0, "kurtosis": 3}
    assert deflate(2.5, trials=88, **normal).probability == pytest.approx(0.9505, abs=5e-5)


def test_one_trial_is_no_search(noisy):
    found = deflated_sharpe(noisy["return"], 1)
    assert found.expected_maximum == 0
    many = [deflated_sharpe(noisy["return"], trials) for trials in (2, 20, 200)]
    assert found.probability > many[0].probability > many[1].probability > many[2].probability
    assert many[1].expected_maximum == pytest.approx(1.87 * np.sqrt(252 / 199), rel=0.02)


def test_luck_is_what_the_best_of_so_many_trials_has():
    """20 strategies without skill over 250 days, drawn 400 times: the mean of the best."""
    draws = np.random.default_rng(0).normal(size=(400, 20, 250))
    best = (draws.mean(axis=2) / draws.std(axis=2, ddof=1)).max(axis=1) * np.sqrt(252)
    luck = deflate(1.0, days=250, skewness=0, kurtosis=3, trials=20).expected_maximum
    assert luck == pytest.approx(best.mean(), rel=0.05)


def test_pure_chance_in_a_rising_market_is_not_skill():
    """Of total returns a benchmark scored 85 % and a score of pure chance 93 %: the market rose."""
    rng = np.random.default_rng(0)
    bench = rng.normal(0.0008, 0.012, (500, 250))
    chance = rng.normal(0, 0.004, (500, 250))

    def scored(returns: np.ndarray, trials: int = 1) -> np.ndarray:
        days = pd.bdate_range("2024-01-01", periods=250)
        rows = (pd.Series(one, days) for one in returns)
        return np.array([deflated_sharpe(one, trials).probability for one in rows])

    assert np.median(scored(bench + chance)) > 0.8, "what total returns say of chance"
    of_excess = scored(chance)
    assert of_excess.mean() == pytest.approx(0.5, abs=0.05)
    assert (of_excess > 0.95).mean() == pytest.approx(0.05, abs=0.03)
    assert ((of_excess > 0.85) & (of_excess < 0.93)).mean() < 0.14, "it is 8 % of the time"
    # The best of 20 without skill is no better than the luck of the best.
    groups = chance.reshape(25, 20, 250)
    best = groups[np.arange(25), (groups.mean(axis=2) / groups.std(axis=2)).argmax(axis=1)]
    assert scored(best, 20).mean() == pytest.approx(0.5, abs=0.15)
    assert scored(best, 1).mean() > 0.9


def test_what_cannot_be_deflated(noisy):
    with pytest.raises(UndefinedMetricError, match="1 or more, got 0"):
        deflated_sharpe(noisy["return"], 0)
    with pytest.raises(UndefinedMetricError, match="0 or more, got -1"):
        deflated_sharpe(noisy["return"], 2, trial_variance=-1)
    with pytest.raises(UndefinedMetricError, match="never vary"):
        deflated_sharpe(noisy["return"] * 0, 2)


def test_bars_of_minutes_are_told_by_days():
    times = pd.DatetimeIndex(
        ["2024-01-02 10:00", "2024-01-02 15:00", "2024-01-03 10:00"], name="datetime"
    )
    columns = {
        "return": [0.1, 0.1, 0.05],
        "bench": [0.0, 0.2, -0.1],
        "cost": [0.0, 0.1, 0.01],
        "turnover": [0.5, 0.25, 1.0],
    }
    found = to_days(pd.DataFrame(columns, index=times))
    assert found.index.to_list() == [pd.Timestamp("2024-01-02"), pd.Timestamp("2024-01-03")]
    assert found["return"].to_list() == pytest.approx([0.21, 0.05])
    assert (found["return"] - found["cost"]).to_list() == pytest.approx([0.1, 0.04])
    assert found["bench"].to_list() == pytest.approx([0.2, -0.1])
    assert found["turnover"].to_list() == pytest.approx([0.75, 1.0])
    assert to_days(found) is found


def test_a_strategy_that_never_traded_is_a_fault():
    still = report_of([0.0, 0.0, 0.0], bench=[0.01, 0.0, 0.02], turnover=0.0)
    with pytest.raises(UndefinedMetricError, match="traded on none of 3 days from 2024-01-01"):
        portfolio_metrics(still)


def test_returns_that_never_vary_have_no_ratio():
    with pytest.raises(UndefinedMetricError, match=r"0\.001 on every day"):
        portfolio_metrics(report_of([0.001] * 5))


def test_a_period_without_a_loss_has_no_sortino():
    with pytest.raises(UndefinedMetricError, match=r"sortino, calmar have no value over 3 days"):
        portfolio_metrics(report_of([0.01, 0.02, 0.03]))


@pytest.mark.parametrize("column", ["return", "bench", "cost", "turnover"])
@pytest.mark.parametrize("hole", [np.nan, np.inf])
def test_a_hole_is_named_by_column_and_day(noisy, column, hole):
    noisy.loc["2024-01-10", column] = hole
    with pytest.raises(UndefinedMetricError, match=f"'{column}' is not a finite .* 2024-01-10"):
        portfolio_metrics(noisy)


def test_a_missing_column_is_named(noisy):
    with pytest.raises(UndefinedMetricError, match="cost not among return, bench, turnover"):
        portfolio_metrics(noisy.drop(columns="cost"))


def test_one_day_is_no_period():
    with pytest.raises(UndefinedMetricError, match="2 days or more"):
        portfolio_metrics(report_of([0.01]))
