"""Value at risk: scores by hand, and tests that reject what is wrong as often as they promise."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from kronos_qlib.evaluation.forecasts.baselines.baseline_distributions import (
    LastPrice,
    VolatilityWalk,
)
from kronos_qlib.evaluation.forecasts.distributions import Outcomes, PathDistribution
from kronos_qlib.evaluation.forecasts.risk import (
    coverage_tests,
    fissler_ziegel,
    kupiec_ratio,
    memory_p,
    risk_quality,
)

RUNS = 200


def daily_shares(rng, *, days=250, names=4, bars=1, level=0.05, clusters=0.0, factor=1.0):
    """Failures of windows that share half their variance with the day, of overlapping returns.

    clusters: of volatility, which the value at risk does not know. factor: on the true spread.
    """
    moves = rng.normal(size=(days + bars, 1)) + rng.normal(size=(days + bars, names))
    if clusters:
        log = np.zeros(days + bars)
        for day in range(1, len(log)):
            log[day] = 0.95 * log[day - 1] + clusters * rng.normal()
        moves *= np.exp(log)[:, None]
    returns = np.lib.stride_tricks.sliding_window_view(moves, bars, axis=0).sum(axis=-1)[:days]
    scale = np.sqrt(2 * bars) if not clusters else returns.std()
    return pd.Series((factor * returns / scale < norm.ppf(level)).mean(axis=1))


def rejected(seed, runs=RUNS, names=4, bars=1, level=0.05, days=250, **how):
    rng = np.random.default_rng(seed)
    ps = [
        coverage_tests(
            daily_shares(rng, names=names, bars=bars, level=level, days=days, **how),
            level,
            bars,
            days * names,
        )
        for _ in range(runs)
    ]
    return (np.array(ps) < 0.05).mean(axis=0)


@pytest.mark.parametrize(("bars", "level"), [(1, 0.05), (1, 0.01), (5, 0.05)])
def test_the_right_value_at_risk_is_rejected_as_rarely_as_promised(bars, level):
    """Windows of one day fail together: tests that take them for independent reject it."""
    kupiec, christoffersen = rejected(0, bars=bars, level=level)
    assert kupiec < 0.10
    assert christoffersen < 0.09


def test_kupiecs_test_as_published_would_reject_it():
    rng = np.random.default_rng(0)
    ratios = [
        kupiec_ratio(float(daily_shares(rng, names=20).mean()), 250 * 20, 0.05) for _ in range(100)
    ]
    assert np.mean(np.array(ratios) > 3.84) > 0.2


def test_a_spread_too_narrow_by_a_third_is_rejected():
    kupiec, christoffersen = rejected(1, factor=1.35, runs=60)
    assert kupiec > 0.9
    assert christoffersen > 0.8


def test_failures_that_cluster_are_rejected_by_christoffersen_alone():
    kupiec, christoffersen = rejected(2, clusters=0.3, runs=100)
    assert christoffersen > 0.25
    assert kupiec < 0.1


def test_memory_is_beyond_what_labels_share():
    """Returns over five days fail on five days in a row: that is no memory."""
    rng = np.random.default_rng(3)
    ps = np.array([memory_p(daily_shares(rng, bars=5), 5) for _ in range(RUNS)])
    assert 0.01 < (ps < 0.05).mean() < 0.1
    naive = np.array([memory_p(daily_shares(rng, bars=5), 1) for _ in range(20)])
    assert (naive < 0.05).mean() > 0.9


def test_kupiecs_ratio_is_that_of_his_paper():
    hits, trials, level = 9, 255, 0.01
    expected = -2 * np.log((1 - level) ** (trials - hits) * level**hits) + 2 * np.log(
        (1 - hits / trials) ** (trials - hits) * (hits / trials) ** hits
    )
    assert kupiec_ratio(hits / trials, trials, level) == pytest.approx(expected)
    assert kupiec_ratio(0.05, 100, 0.05) == 0
    assert kupiec_ratio(0.0, 100, 0.05) == pytest.approx(-200 * np.log(0.95))


def test_one_window_a_day_is_kupiecs_own_case():
    """Independent days are about as many trials as there are days."""
    rng = np.random.default_rng(5)
    ours, his = [], []
    for _ in range(50):
        failed = pd.Series((rng.random(500) < 0.05).astype(float))
        ours.append(coverage_tests(failed, 0.05)[0])
        his.append(kupiec_ratio(failed.mean(), 500, 0.05))
    his = 2 * norm.sf(np.sqrt(his))
    assert np.corrcoef(ours, his)[0, 1] > 0.9
    assert np.mean(ours) == pytest.approx(np.mean(his), abs=0.1)


def test_nothing_that_failed_has_a_p_value_by_days():
    nothing = pd.Series(np.zeros(100))
    kupiec, christoffersen = coverage_tests(nothing, 0.05, windows=10_000)
    assert 0.0005 < kupiec < 0.005
    assert np.isnan(christoffersen)
    assert coverage_tests(nothing, 0.05, label_days=10)[0] > 0.2, "ten trials, not a hundred"


def test_few_days_have_no_memory_to_be_tested():
    assert np.isnan(memory_p(pd.Series([0.0, 1.0] * 6)))


# The joint score.


def test_the_joint_score_by_hand():
    found = fissler_ziegel(
        np.array([-0.02, -0.02]), np.array([-0.03, -0.03]), np.array([0.01, -0.05]), 0.05
    )
    calm = 0.02 / 0.03 + np.log(0.03) - 1
    assert found == pytest.approx([calm, calm + 0.03 / (0.05 * 0.03)])


def test_the_joint_score_is_least_at_the_truth():
    rng = np.random.default_rng(6)
    returns = rng.normal(0, 0.02, 400_000)
    value = 0.02 * norm.ppf(0.05)
    shortfall = -0.02 * norm.pdf(norm.ppf(0.05)) / 0.05

    def score(factor, more):
        return fissler_ziegel(factor * value, more * shortfall, returns, 0.05).mean()

    true = score(1, 1)
    for factor, more in ((0.8, 1), (1.2, 1), (1, 0.8), (1, 1.2), (0.8, 0.8), (1.2, 1.2)):
        assert score(factor, more) > true + 0.002


def test_a_shortfall_that_is_no_loss_is_charged_for_it():
    assert fissler_ziegel(np.zeros(1), np.zeros(1), np.array([-0.01]), 0.05)[0] > 1000


# Of distributions.


@pytest.mark.parametrize("degrees", [None, 5.0])
def test_the_walks_shortfall_is_the_mean_of_its_tail(degrees):
    many = None if degrees is None else np.full(2, degrees)
    walk = VolatilityWalk(np.array([0.02]), np.array([1.0, 1.3]), many)
    levels = (np.arange(2000) + 0.5) / 2000 * 0.05
    tail = np.mean([walk.quantile(one) for one in levels], axis=0)
    assert walk.shortfall(0.05) == pytest.approx(tail, rel=0.01)


def test_the_shortfall_of_paths_is_the_mean_of_the_lowest():
    closes = np.arange(1.0, 41.0)[None, :, None]
    paths = PathDistribution(closes, np.array([1.0]))
    assert paths.shortfall(0.05)[0, 0] == pytest.approx(0.5), "of 1 and 2, less 1"
    assert paths.shortfall(0.0375)[0, 0] == pytest.approx((0 + 0.5 * 1) / 1.5)
    assert (paths.shortfall(0.05) <= paths.quantile(0.05)).all()


def windows(returns, names=4):
    days = pd.bdate_range("2024-01-01", periods=len(returns) // names + 2).to_numpy()
    place = np.arange(len(returns)) // names
    closes = 10 * (1 + returns[:, None])
    return Outcomes(
        days[place], np.full((len(returns), 2), 10.0), closes, days[place + 1][:, None], 1
    )


def test_the_quality_of_a_walk_and_what_few_paths_cannot_give():
    rng = np.random.default_rng(7)
    came = np.expm1(rng.normal(0, 0.02, 800))
    outcomes = windows(came)
    walk = VolatilityWalk(np.full(800, 0.02), np.ones(1))
    found = risk_quality(walk, outcomes, 1, 0.05)
    assert found.hits == pytest.approx(0.05, abs=0.02)
    assert found.expected_hits == 40
    assert found.kupiec > 0.05
    narrow = risk_quality(VolatilityWalk(np.full(800, 0.012), np.ones(1)), outcomes, 1, 0.05)
    assert narrow.kupiec < 0.001
    assert narrow.fissler_ziegel > found.fissler_ziegel
    draws = 10 * np.exp(rng.normal(0, 0.02, (800, 50, 1)))
    paths = PathDistribution(draws, np.full(800, 10.0))
    assert risk_quality(paths, outcomes, 1, 0.01) is None, "50 draws have no quantile of 1 %"
    assert risk_quality(paths, outcomes, 1, 0.05).hits == pytest.approx(0.05, abs=0.02)
    last = risk_quality(LastPrice(800, 1), outcomes, 1, 0.05)
    assert last.kupiec < 1e-6
    assert np.isnan(last.fissler_ziegel)
