"""The table of methods, the energy score, Student's walks and paths that stand for quantiles."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scoringrules
from scipy.stats import norm, t

from kronos_qlib.errors import BarDataError, ConfigError
from kronos_qlib.evaluation.forecasts.baselines.baseline_distributions import (
    LastPrice,
    VolatilityWalk,
)
from kronos_qlib.evaluation.forecasts.day_means import ALL
from kronos_qlib.evaluation.forecasts.distributions import (
    Outcomes,
    PathDistribution,
    losses_of,
    sample_quantile,
)
from kronos_qlib.evaluation.forecasts.energy import energy_score
from kronos_qlib.evaluation.forecasts.method_table import market_table, method_table

# Energy.


@pytest.mark.parametrize("is_fair", [True, False])
def test_the_energy_score_is_that_of_its_definition(is_fair):
    rng = np.random.default_rng(0)
    paths, came = rng.normal(size=(7, 5, 3)), rng.normal(size=(7, 3))
    expected = []
    for own, true in zip(paths, came, strict=True):
        pairs = [np.linalg.norm(a - b) for a in own for b in own]
        count = 20 if is_fair else 25
        expected.append(np.linalg.norm(own - true, axis=1).mean() - sum(pairs) / (2 * count))
    assert energy_score(paths, came, is_fair=is_fair) == pytest.approx(expected)


def test_of_one_bar_it_is_the_crps():
    rng = np.random.default_rng(2)
    closes, came = 1 + rng.normal(0, 0.02, (30, 20, 1)), rng.normal(0, 0.02, (30, 1))
    crps = PathDistribution(closes, np.ones(30)).crps(came)[:, 0]
    assert energy_score(closes - 1, came) == pytest.approx(crps)


def test_it_knows_how_bars_hang_together():
    """Paths with the right bars in the wrong order lose, which a CRPS by bar cannot see."""
    rng = np.random.default_rng(3)
    walks = np.cumsum(rng.normal(size=(3000, 21, 5)), axis=-1)
    paths, came = walks[:, 1:], walks[:, 0]
    torn = np.stack([rng.permuted(paths[..., bar], axis=1) for bar in range(5)], axis=-1)
    assert energy_score(torn, came).mean() > 1.01 * energy_score(paths, came).mean()


def test_true_quantiles_in_the_true_order_cost_little_and_ever_less():
    """Quantiles at each bar, in the order of drawn paths, are dependent in part: 50 paths of the
    true walk score some 0.6 % above independent draws, which is nothing that they said wrong."""
    rng = np.random.default_rng(4)
    came = np.cumsum(rng.normal(size=(3000, 10)), axis=-1)
    walks = np.cumsum(rng.normal(size=(3000, 100, 10)), axis=-1)
    drawn = energy_score(walks, came).mean()
    excess = {}
    for count in (20, 50, 100):
        order = walks[:, :count].argsort(axis=1).argsort(axis=1)
        quantiles = norm.ppf((np.arange(count) + 0.5) / count)[order]
        paths = quantiles * np.sqrt(np.arange(1, 11))
        excess[count] = energy_score(paths, came, is_fair=False).mean() / drawn - 1
    assert 0.01 < excess[20] < 0.02
    assert 0.003 < excess[50] < 0.01
    assert 0 < excess[100] < 0.005


def test_energy_refuses_shapes_that_do_not_agree():
    with pytest.raises(BarDataError, match=r"paths \(N, P, H\), 2 at least"):
        energy_score(np.zeros((3, 1, 2)), np.zeros((3, 2)))
    with pytest.raises(BarDataError, match="what came"):
        energy_score(np.zeros((3, 4, 2)), np.zeros((3, 3)))


# Student's walk.


@pytest.fixture
def walk():
    return VolatilityWalk(
        np.array([[0.01, 0.012], [0.03, 0.02]]), np.array([1.0, 1.3]), np.array([5.0, np.inf])
    )


def test_students_crps_is_that_of_scoringrules_and_of_many_quantiles(walk):
    came = np.array([[0.01, -0.02], [-0.1, 0.0]])
    scale = np.array([0.01, 0.03]) * np.sqrt(3 / 5)
    theirs = scoringrules.crps_t(came[:, 0], 5.0, 0.0, scale, backend="numpy")
    assert walk.crps(came)[:, 0] == pytest.approx(theirs)
    levels = (np.arange(4000) + 0.5) / 4000
    quantiles = np.stack([walk.quantile(level) for level in levels], axis=1)
    sampled = PathDistribution(1 + np.maximum(quantiles, -0.99), np.ones(2), stratified=True)
    assert sampled.crps(came) == pytest.approx(walk.crps(came), rel=2e-3)


def test_the_volatility_is_the_standard_deviation_whatever_the_tails(walk):
    levels = (np.arange(200_000) + 0.5) / 200_000
    first = walk.quantile(levels[0])[0, 0]
    quantiles = t.ppf(levels, 5) * 0.01 * np.sqrt(3 / 5)
    assert first == pytest.approx(quantiles[0])
    assert quantiles.std() == pytest.approx(0.01, rel=0.01)
    assert walk.variance()[0] == pytest.approx([0.01**2, (0.012 * 1.3) ** 2])


def test_drawn_paths_have_the_walks_bars(walk):
    rng = np.random.default_rng(4)
    paths = walk.log_paths(40_000, rng)
    assert paths.shape == (2, 40_000, 2)
    for level in (0.05, 0.5, 0.9):
        assert np.quantile(np.expm1(paths), level, axis=1) == pytest.approx(
            walk.quantile(level), rel=0.04, abs=4e-4
        )
    assert np.corrcoef(*paths[0].T)[0, 1] == pytest.approx(np.sqrt(0.5), abs=0.02)
    assert walk.log_paths(3, np.random.default_rng(0)) == pytest.approx(
        walk.log_paths(3, np.random.default_rng(0))
    )


def test_pit_and_quantile_are_each_others_inverse(walk):
    for level in (0.01, 0.3, 0.99):
        found = walk.pit(walk.quantile(level), np.random.default_rng(0))
        assert found == pytest.approx(np.full((2, 2), level))


def test_a_walk_finds_the_tails_that_are_there():
    rng = np.random.default_rng(5)
    heavy = 0.03 * np.sqrt(1 / 3) * rng.standard_t(3, (6000, 1))
    normal = np.expm1(rng.normal(0, 0.03, (6000, 1)))
    came = np.concatenate([np.maximum(heavy, -0.9), normal], axis=1)
    plain = VolatilityWalk(np.full(6000, 0.02), np.ones(2))
    found = plain.fit(came, has_tails=True)
    assert found.degrees[0] in (3.0, 4.0)
    assert found.degrees[1] > 6
    assert found.scale[1] == pytest.approx(1.5 / np.sqrt(2), rel=0.05)
    assert found.crps(came)[:, 0].mean() < 0.998 * plain.fit(came).crps(came)[:, 0].mean()
    other = VolatilityWalk(np.full(3, 0.01), np.ones(2)).fitted_as(found)
    assert other.quantile(0.1)[0] == pytest.approx(found.quantile(0.1)[0] / 2, rel=0.02)


# Paths that stand for quantiles.


def quantile_paths(count=50, spread=0.02, windows=2000):
    levels = (np.arange(count) + 0.5) / count
    returns = np.broadcast_to(spread * norm.ppf(levels), (windows, count))
    return PathDistribution(1 + returns[..., None], np.ones(windows), stratified=True)


def test_stratified_paths_are_scored_as_the_distribution_they_stand_for():
    """The fair estimator would flatter equidistant quantiles by 1 / P of their spread."""
    rng = np.random.default_rng(6)
    came = rng.normal(0, 0.02, (2000, 1))
    paths = quantile_paths()
    true = scoringrules.crps_normal(came, 0, 0.02, backend="numpy").mean()
    assert paths.crps(came).mean() == pytest.approx(true, rel=0.002)
    fair = PathDistribution(paths.closes, paths.last_close).crps(came).mean()
    assert fair < 0.985 * true
    theirs = scoringrules.crps_ensemble(came, paths.returns, estimator="nrg", backend="numpy")
    assert paths.crps(came) == pytest.approx(theirs)


def test_their_quantiles_are_those_they_stand_for():
    paths = quantile_paths(windows=1)
    for level in (0.01, 0.05, 0.25, 0.5, 0.95):
        assert paths.quantile(level)[0, 0] == pytest.approx(0.02 * norm.ppf(level), rel=0.02)
    with pytest.raises(ConfigError, match=r"quantile 0\.005 of 50 draws needs 100 draws at least"):
        paths.quantile(0.005)
    assert sample_quantile(np.arange(50.0), 0.01, stratified=True) == 0


def test_their_ranks_are_even_and_their_intervals_cover():
    rng = np.random.default_rng(7)
    paths = quantile_paths(windows=40_000)
    came = rng.normal(0, 0.02, (40_000, 1))
    shares = np.histogram(paths.pit(came, rng), 20, (0, 1))[0] / 40_000
    assert shares == pytest.approx(np.full(20, 0.05), abs=0.006)
    inside = (paths.quantile(0.05) <= came) & (came <= paths.quantile(0.95))
    assert inside.mean() == pytest.approx(0.9, abs=0.01)


# QLIKE.


def test_qlike_is_least_at_the_true_variance_even_where_a_bar_stood_still():
    rng = np.random.default_rng(8)
    moves = rng.normal(0, 0.02, 4000)
    moves[:40] = 0
    days = pd.bdate_range("2000-01-03", periods=4001).to_numpy()
    closes = 10 * np.exp(moves)[:, None]
    outcomes = Outcomes(days[:-1], np.full((4000, 2), 10.0), closes, days[1:, None], 1)

    def qlike(spread):
        walk = VolatilityWalk(np.full(4000, spread), np.ones(1))
        return losses_of(walk, outcomes, (0.9,))["qlike"].mean()

    assert np.isfinite(qlike(0.02))
    assert qlike(0.02) < min(qlike(0.017), qlike(0.023))
    assert "qlike" not in losses_of(LastPrice(4000, 1), outcomes, (0.9,))


# The table.


def world(seed=0, days=60, names=8, horizon=6, known=1.0):
    """Windows of clustered volatility; `known` is the share of its log that methods see."""
    rng = np.random.default_rng(seed)
    calendar = pd.bdate_range("2024-01-01", periods=days + horizon).to_numpy()
    place = np.repeat(np.arange(days), names)
    log = rng.normal(0, 0.5, len(place))
    moves = rng.normal(size=(len(place), horizon)) * 0.02 * np.exp(log)[:, None]
    closes = 10 * np.exp(np.cumsum(moves, axis=1))
    until = calendar[place[:, None] + np.arange(1, horizon + 1)]
    outcomes = Outcomes(calendar[place], np.full((len(place), 2), 10.0), closes, until, 1)
    sees = VolatilityWalk(0.02 * np.exp(log), np.ones(horizon))
    blind = VolatilityWalk(np.full(len(place), 0.02), np.ones(horizon))
    return {"sees": sees, "blind": blind, "last": LastPrice(len(place), horizon)}, outcomes


@pytest.fixture(scope="module")
def table():
    methods, outcomes = world()
    return method_table(methods, outcomes, baselines=("blind", "last"))


def test_the_table_has_a_row_for_each_horizon_and_method(table):
    assert [*dict.fromkeys(table.index.get_level_values("horizon"))] == ["1", "5", ALL]
    assert [*table.loc["1"].index] == ["sees", "blind", "last"]
    assert table["kind"].tolist() == ["forecast", "baseline", "baseline"] * 3
    assert (table["best_baseline"] == "blind").all()


def test_who_knows_the_volatility_is_better_and_significantly(table):
    for horizon in ("1", "5", ALL):
        row = table.loc[(horizon, "sees")]
        assert row["difference"] < 0 and row["low"] < row["difference"] < row["high"]
        assert row["relative"] == pytest.approx(
            row["crps"] / table.loc[(horizon, "blind"), "crps"] - 1
        )
        assert row["qlike"] < table.loc[(horizon, "blind"), "qlike"]
        assert row["volatility_mse"] < table.loc[(horizon, "blind"), "volatility_mse"]
        for level in (50, 80, 90):
            share = row[f"coverage_{level}"]
            assert share == pytest.approx(level / 100, abs=0.05)
            assert row[f"coverage_{level}_low"] < share < row[f"coverage_{level}_high"]
    assert table.loc[("1", "sees"), "high"] < 0
    assert table.loc[("1", "sees"), "p"] < 0.05
    assert table.loc[(ALL, "sees"), "energy_high"] < 0


def test_the_best_baseline_is_not_compared_with_itself(table):
    row = table.loc[("1", "blind")]
    assert row["difference"] == 0
    assert np.isnan(row["p"]) and np.isnan(row["low"])


def test_values_at_risk_are_of_single_bars_and_energy_of_all(table):
    assert table.loc[("1", "sees"), "var_5"] == pytest.approx(0.05, abs=0.03)
    assert table.loc[("1", "sees"), "var_5_kupiec"] > 0.05
    assert table.loc[("1", "sees"), "var_5_expected"] == 24
    assert table.loc[("1", "last"), "var_5_kupiec"] < 1e-6
    assert table.loc[("1", "sees"), "var_5_fz"] < table.loc[("1", "blind"), "var_5_fz"]
    assert np.isnan(table.loc[(ALL, "sees"), "var_5"])
    assert np.isnan(table.loc[("1", "sees"), "energy"])
    assert (table.loc[ALL, "energy"] > 0).all()


def test_markets_stand_one_below_the_other():
    found = market_table(
        {name: world(seed, days=30, horizon=1) for seed, name in enumerate("ab")},
        baselines=("blind",),
        bounds=("sees",),
        bars=(1,),
    )
    assert found.index.names == ["market", "horizon", "method"]
    assert len(found) == 2 * 2 * 3
    assert found.loc[("b", "1", "sees"), "kind"] == "bound"


def test_names_that_are_no_methods_are_refused():
    methods, outcomes = world(days=12)
    with pytest.raises(ConfigError, match=r"\['strange'\] are not among sees, blind, last"):
        method_table(methods, outcomes, baselines=("blind",), bounds=("strange",))
    with pytest.raises(ConfigError, match="one baseline at least"):
        method_table(methods, outcomes, baselines=())
