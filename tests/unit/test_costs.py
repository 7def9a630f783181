"""Other costs and larger accounts, on reports small enough to check by hand."""

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.errors import UndefinedMetricError
from kronos_qlib.evaluation.portfolio.costs import (
    break_even_cost,
    capacity_table,
    cost_paid,
    cost_table,
)


@pytest.fixture
def report():
    days = pd.bdate_range("2024-01-01", periods=4, name="datetime")
    columns = {
        "return": [0.01, -0.01, 0.02, 0.02],
        "bench": [0.0, -0.01, 0.01, 0.02],
        "cost": 0.001,
        "turnover": [1.0, 0.5, 0.25, 0.25],
    }
    return pd.DataFrame(columns, index=days)


def test_costs_are_taken_of_what_was_traded(report):
    found = cost_table(report, [0, 20], days_per_year=4)
    net = report["return"] - np.array([0.002, 0.001, 0.0005, 0.0005])
    assert found.loc[0, "net_return"] == pytest.approx(0.04)
    assert found.loc[0, "excess_return"] == pytest.approx(0.02)
    assert found.loc[20, "net_return"] == pytest.approx(net.sum())
    assert found.loc[20, "sharpe"] == pytest.approx(net.mean() / net.std() * 2)
    excess = net - report["bench"]
    assert found.loc[20, "information_ratio"] == pytest.approx(excess.mean() / excess.std() * 2)


def test_the_cost_that_leaves_nothing(report):
    even = break_even_cost(report)
    assert even == pytest.approx(0.02 / 2.0 * 1e4)
    assert cost_table(report, [even]).loc[even, "excess_return"] == pytest.approx(0, abs=1e-15)
    worse = report.assign(bench=report["bench"] + 0.01)
    assert break_even_cost(worse) == pytest.approx(-100)


def test_what_was_paid_is_of_all_that_was_traded(report):
    assert cost_paid(report) == pytest.approx(0.004 / 2.0 * 1e4)


@pytest.mark.parametrize("measure", [break_even_cost, cost_paid])
def test_no_trade_has_no_cost(report, measure):
    with pytest.raises(UndefinedMetricError, match="nothing was traded"):
        measure(report.assign(turnover=0.0))


def test_returns_that_never_vary_have_no_ratio(report):
    flat = report.assign(**{"return": 0.01, "turnover": 1.0})
    with pytest.raises(UndefinedMetricError, match="never vary"):
        cost_table(flat)


def test_capacity_by_hand():
    """A tenth of the account in names that trade 1, 2 and 4 millions: of an account of 1 million
    that is 10 %, 5 % and 2.5 % of the bar."""
    found = capacity_table([0.1] * 4, [1e6, 2e6, 4e6, np.nan], [0.05])
    assert found.loc[0.05, "median"] == pytest.approx(1e6)
    assert found.loc[0.05, "95 %"] == pytest.approx(
        0.05 / np.quantile([0.1, 0.05, 0.025], 0.95) * 1e6
    )
    assert found.loc[0.05, ["orders", "unknown"]].to_list() == [4, 1]
    usual = capacity_table([0.1] * 4, [1e6, 2e6, 4e6, np.nan])
    assert usual["median"].to_numpy() == pytest.approx([2e5, 1e6, 2e6])


def test_capacity_that_is_not_to_be_known_is_no_number():
    found = capacity_table([0.1, 0.2], [0.0, np.nan])
    assert found[["median", "95 %"]].isna().all(axis=None)
    assert found["unknown"].to_list() == [2, 2, 2]
    with pytest.raises(UndefinedMetricError, match="no order"):
        capacity_table([], [])
