"""Weights are those that a search of all weights finds, and what cannot be kept is said."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from kronos_qlib.errors import ConfigError
from kronos_qlib.plugin.orders.target_weights import WeightConfig, joint_outcomes, target_weights

RNG = np.random.default_rng(3)
COSTS = (0.001, 0.002)


def worth(weights, outcomes, held, how, costs=COSTS):
    """What the programme makes as large as it can, by its definition."""
    returns = outcomes @ weights
    count = how.tail * len(returns)  # a whole number in these tests
    tail = np.sort(returns)[: round(count)].mean()
    change = weights - held
    paid = costs[0] * change.clip(0).sum() + costs[1] * (-change).clip(0).sum()
    return returns.mean() - paid + how.aversion * tail


def best_of_all(outcomes, held, low, high, budget, how, steps=20):
    grid = [np.linspace(one, other, steps + 1) for one, other in zip(low, high, strict=True)]
    feasible = (np.array(each) for each in itertools.product(*grid) if sum(each) <= budget + 1e-9)
    return max(worth(each, outcomes, held, how) for each in feasible)


@pytest.mark.parametrize("aversion", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("budget", [0.95, 0.5])
def test_no_other_weights_are_worth_more(aversion, budget):
    outcomes = RNG.normal([0.01, 0.004, 0.0], [0.05, 0.01, 0.02], (20, 3))
    held, low, high = np.array([0.2, 0.0, 0.3]), np.zeros(3), np.full(3, 0.6)
    how = WeightConfig(aversion=aversion, most=0.6)
    found = target_weights(outcomes, held, low, high, budget=budget, costs=COSTS, how=how)
    assert found.sum() <= budget + 1e-9 and (found >= low).all() and (found <= high).all()
    ours = worth(found, outcomes, held, how)
    others = best_of_all(outcomes, held, low, high, budget, how)
    assert others - 1e-9 <= ours <= others + 1e-3
    again = target_weights(outcomes, held, low, high, budget=budget, costs=COSTS, how=how)
    np.testing.assert_array_equal(found, again)


def test_a_change_that_does_not_earn_its_cost_is_not_made():
    outcomes, held = np.full((20, 2), 0.001), np.array([0.3, 0.0])
    how = WeightConfig(aversion=0.0, most=1.0)
    given = {"low": np.zeros(2), "high": np.ones(2), "budget": 1.0, "how": how}
    dear = target_weights(outcomes, held, costs=(0.002, 0.002), **given)
    np.testing.assert_allclose(dear, held, atol=1e-9)
    assert target_weights(outcomes, held, costs=(0.0, 0.0), **given).sum() == pytest.approx(1)


def test_a_trade_that_does_not_earn_the_least_cost_is_not_made():
    """`min_cost` was ignored: each evening moved many names by a little, and each paid it."""
    outcomes = np.full((20, 3), [[0.03, 0.02, 0.01]])
    held, how = np.array([0.29, 0.0, 0.0]), WeightConfig(aversion=0.0, most=1.0)
    given = {"low": np.zeros(3), "high": np.full(3, 0.3), "budget": 0.6, "how": how}
    free = target_weights(outcomes, held, costs=(0.0, 0.0), **given)
    np.testing.assert_allclose(free, [0.3, 0.3, 0.0], atol=1e-9)
    # A hundredth of the first earns 0.0003, and the second 0.006.
    found = target_weights(outcomes, held, costs=(0.0, 0.0), least_cost=0.001, **given)
    np.testing.assert_allclose(found, [0.29, 0.3, 0.0], atol=1e-9)
    none = target_weights(outcomes, held, costs=(0.0, 0.0), least_cost=0.01, **given)
    np.testing.assert_allclose(none, held, atol=1e-9)
    # What has to go goes, whatever it costs.
    given["high"] = np.array([0.0, 0.0, 0.0])
    assert target_weights(outcomes, held, costs=(0.0, 0.0), least_cost=0.01, **given).sum() == 0


def test_what_is_held_and_cannot_be_sold_is_named_where_it_is_too_much():
    how, held = WeightConfig(), np.array([0.7, 0.28])
    with pytest.raises(ConfigError, match=r"98.0% of the book, and risk_degree lets 95.0% be held"):
        target_weights(np.zeros((20, 2)), held, held, held, budget=0.95, costs=COSTS, how=how)


def test_outcomes_have_the_forecasts_spread_and_the_pasts_company():
    quantiles = np.stack([np.linspace(-0.1, 0.1, 19), np.linspace(-0.01, 0.03, 19)])
    past = RNG.normal(size=190)
    alike = joint_outcomes(quantiles, np.stack([past, past * 3], axis=1))
    assert np.corrcoef(alike.T)[0, 1] == pytest.approx(1)
    against = joint_outcomes(quantiles, np.stack([past, -past], axis=1))
    assert np.corrcoef(against.T)[0, 1] == pytest.approx(-1)
    for found in (alike, against):
        np.testing.assert_allclose(found.mean(axis=0), quantiles.mean(axis=1), atol=1e-12)
        np.testing.assert_allclose(np.sort(found, axis=0)[[0, -1]].T, quantiles[:, [0, -1]])
    # A book of two that fall together loses more than one of two that do not.
    tails = [np.sort(found.mean(axis=1))[:19].mean() for found in (alike, against)]
    assert tails[0] < tails[1]


def test_a_name_that_did_not_trade_moved_as_the_others():
    quantiles = np.tile(np.linspace(-0.1, 0.1, 19), (3, 1))
    past = np.tile(RNG.normal(size=40)[:, None], 3)
    past[20:, 2] = np.nan
    found = joint_outcomes(quantiles, past)
    np.testing.assert_allclose(found[:, 2], found[:, 0])


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"aversion": -1}, "aversion must not be negative"),
        ({"tail": 0.01}, "tail must lie in"),
        ({"most": 0}, "most must lie in"),
        ({"most": "10%"}, "most must be a number"),
        ({"days": 3}, "days must be a whole number of at least 20"),
    ],
)
def test_settings_that_cannot_work_are_refused(change, word):
    with pytest.raises(ConfigError, match=word):
        WeightConfig(**change)
