"""Forecast distributions: scores by hand and by simulation, tables, and what they refuse."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from kronos_qlib.errors import BarDataError, ConfigError, UndefinedMetricError
from kronos_qlib.evaluation.forecasts.baselines.baseline_distributions import (
    LastPrice,
    VolatilityWalk,
)
from kronos_qlib.evaluation.forecasts.baselines.named_baselines import (
    LAST_PRICE,
    WALK,
    WALK_CALIBRATED,
)
from kronos_qlib.evaluation.forecasts.day_means import ALL, by_day
from kronos_qlib.evaluation.forecasts.distributions import (
    Outcomes,
    PathDistribution,
    interval,
    losses_of,
    realised_volatility,
    sample_quantile,
)
from kronos_qlib.evaluation.forecasts.forecast_figures import (
    coverage_figure,
    crps_figure,
    fan_figure,
    pit_figure,
)
from kronos_qlib.evaluation.forecasts.forecast_tables import (
    CALIBRATED,
    KRONOS,
    LOSSES,
    PAIRS,
    coverage_table,
    difference_table,
    judge,
    pit_table,
    score_table,
)


def outcomes_from(past, closes, start="2024-01-01"):
    """A window a day, each bar a day."""
    past, closes = np.asarray(past, dtype=float), np.asarray(closes, dtype=float)
    windows, horizon = closes.shape
    days = pd.bdate_range(start, periods=windows + horizon).to_numpy()
    until = days[np.arange(windows)[:, None] + np.arange(1, horizon + 1)]
    return Outcomes(days[:windows], past, closes, until, past.shape[1] - 1)


def simulated(
    seed, *, days=40, names=12, paths=39, horizon=3, too_sure=1.0, start="2024-01-01", older=0
):
    """Random walks of differing volatility, and paths with 1 / too_sure of that.

    older: bars of a history before the closes seen.
    """
    rng = np.random.default_rng(seed)
    calendar = pd.bdate_range(start, periods=days + horizon).to_numpy()
    place = np.repeat(np.arange(days), names)
    volatility = 0.02 * np.exp(rng.normal(0, 0.4, len(place)))

    def walk(*shape):
        return np.cumsum(rng.normal(size=(len(place), *shape)), axis=-1)

    past = 10 * np.exp(walk(21) * volatility[:, None])
    start_at = past[:, -1]
    closes = start_at[:, None] * np.exp(walk(horizon) * volatility[:, None])
    spread = volatility[:, None, None] / too_sure
    drawn = start_at[:, None, None] * np.exp(walk(paths, horizon) * spread)
    until = calendar[place[:, None] + np.arange(1, horizon + 1)]
    history = None
    if older:
        before = past[:, :1] * np.exp(walk(older) * volatility[:, None])[:, ::-1]
        history = np.repeat(np.concatenate((before, past), axis=1)[..., None], 4, axis=2)
    return drawn, Outcomes(calendar[place], past, closes, until, history=history)


# Two paths, by hand.


@pytest.fixture
def by_hand():
    """From 10: paths to 11, 12 and 9, 10; it came to 10.5 and 12."""
    paths = np.array([[[11.0, 12.0], [9.0, 10.0]]])
    return PathDistribution(paths, np.array([10.0])), np.array([[0.05, 0.2]])


def test_crps_is_the_fair_estimator(by_hand):
    distribution, came = by_hand
    # mean |x - y| less half the distance of the only pair: (.05 + .15) / 2 - .1, (0 + .2) / 2 - .1
    assert distribution.crps(came) == pytest.approx(np.array([[0.0, 0.0]]), abs=1e-12)
    assert distribution.crps(came + 1) == pytest.approx(np.array([[0.95, 1.0]]))


def test_the_mean_path_and_the_volatility_of_paths(by_hand):
    distribution, _ = by_hand
    assert distribution.mean() == pytest.approx(np.array([[0.0, 0.1]]))
    first = [np.log(1.1), -np.log(0.9)]
    second = [
        np.sqrt((np.log(1.1) ** 2 + np.log(12 / 11) ** 2) / 2),
        np.sqrt((np.log(0.9) ** 2 + np.log(10 / 9) ** 2) / 2),
    ]
    expected = [[np.mean(first), np.mean(second)]]
    assert distribution.volatility() == pytest.approx(np.array(expected))


def test_the_last_price_loses_what_it_misses_by():
    came = np.array([[0.1, -0.2]])
    last = LastPrice(1, 2)
    assert last.crps(came).tolist() == [[0.1, 0.2]]
    outcomes = outcomes_from([[10, 10]], [[11, 8]])
    losses = losses_of(last, outcomes, (0.9,))
    assert losses["mae"] == pytest.approx(np.array([[0.1, 0.2]]))
    assert losses["mse"] == pytest.approx(np.array([[0.01, 0.04]]))
    # Tails .05, .5, .95 of a point at 0: mean of .05, .5 and .95 times .1 above it.
    assert losses["pinball"] == pytest.approx(np.array([[0.05, 0.1]]))
    assert losses["volatility_mae"][0, 0] == pytest.approx(np.log(1.1))


def test_realised_volatility_takes_no_mean_off():
    found = realised_volatility(np.array([[11.0, 12.1]]), np.array([10.0]))
    assert found == pytest.approx(np.full((1, 2), np.log(1.1)))


# What finite samples must not do.


@pytest.mark.parametrize("paths", [19, 20, 50])
@pytest.mark.parametrize("level", [0.5, 0.8, 0.9])
def test_intervals_of_few_paths_cover_their_level(paths, level):
    """numpy's usual quantiles of 20 draws cover 82 % where 90 is asked for."""
    rng = np.random.default_rng(paths)
    draws = rng.normal(size=(20_000, paths + 1))
    one_more, sample = draws[:, 0], draws[:, 1:]
    low, high = (sample_quantile(sample, tail) for tail in ((1 - level) / 2, (1 + level) / 2))
    covered = ((low <= one_more) & (one_more <= high)).mean()
    assert covered == pytest.approx(level, abs=0.012)


def test_numpys_usual_quantiles_would_not():
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(20_000, 21))
    low, high = np.quantile(draws[:, 1:], (0.05, 0.95), axis=1)
    assert ((low <= draws[:, 0]) & (draws[:, 0] <= high)).mean() < 0.84


def test_a_level_beyond_the_draws_says_how_many_it_needs():
    with pytest.raises(ConfigError, match=r"quantile 0\.05 of 18 draws needs 19 draws at least"):
        sample_quantile(np.arange(18.0), 0.05)
    assert sample_quantile(np.arange(19.0), 0.05) == 0
    with pytest.raises(ConfigError, match="between 0 and 1"):
        sample_quantile(np.arange(18.0), 1.5)


def test_crps_does_not_depend_on_the_number_of_paths():
    rng = np.random.default_rng(2)
    came = rng.normal(0, 0.02, (30_000, 1))
    true = 0.02 * (1 / np.sqrt(np.pi))  # of the right normal distribution
    for paths in (2, 10):
        drawn = 1 + rng.normal(0, 0.02, (30_000, paths, 1))
        found = PathDistribution(drawn, np.ones(30_000)).crps(came).mean()
        assert found == pytest.approx(true, rel=0.02)


def test_ranks_of_exchangeable_paths_are_even():
    rng = np.random.default_rng(4)
    draws = 1 + rng.normal(0, 0.02, (20_000, 8, 1))
    distribution = PathDistribution(draws[:, 1:], np.ones(20_000))
    pits = distribution.pit(draws[:, 0] - 1, rng)
    table = pit_table({"paths": pits}).loc[("paths", ALL)]
    assert table["distance"] < 0.015
    assert table["spread"] == pytest.approx(1, abs=0.03)
    assert table["mean"] == pytest.approx(0.5, abs=0.01)
    assert table["0.2-0.3"] == pytest.approx(0.1, abs=0.01)


def test_ranks_of_ties_are_spread_over_what_they_cover():
    """Prices move by ticks: what came is often one of the paths."""
    distribution = PathDistribution(np.full((10_000, 3, 1), 10.0), np.full(10_000, 10.0))
    pits = distribution.pit(np.zeros((10_000, 1)), np.random.default_rng(0))
    assert pit_table({"paths": pits}).loc[("paths", ALL), "distance"] < 0.02


@pytest.mark.parametrize(("off", "column", "side"), [(0.5, "spread", 1), (2.0, "spread", -1)])
def test_the_pits_spread_tells_too_narrow_from_too_wide(off, column, side):
    rng = np.random.default_rng(5)
    paths = 1 + rng.normal(0, 0.02 * off, (5000, 20, 1))
    pits = PathDistribution(paths, np.ones(5000)).pit(rng.normal(0, 0.02, (5000, 1)), rng)
    assert side * (pit_table({"p": pits}).loc[("p", ALL), column] - 1) > 0.3


# The random walk.


@pytest.fixture
def walk():
    return VolatilityWalk(np.array([0.01, 0.03]), np.array([1.0, 1.0, 1.5]))


def test_the_walks_closed_form_is_what_many_draws_say(walk):
    rng = np.random.default_rng(6)
    bars = np.arange(1, 4)
    spread = walk.volatility_per_bar[:, None] * np.sqrt(bars) * walk.scale
    draws = np.expm1(
        spread[..., None] * rng.normal(size=(2, 3, 20_000)) - spread[..., None] ** 2 / 2
    )
    sampled = PathDistribution(1 + draws.transpose(0, 2, 1), np.ones(2))
    came = np.array([[0.005, -0.02, 0.0], [-0.05, 0.02, 0.3]])
    assert walk.crps(came) == pytest.approx(sampled.crps(came), rel=0.03)
    assert walk.quantile(0.1) == pytest.approx(sampled.quantile(0.1), rel=0.05)
    assert walk.mean() == pytest.approx(draws.mean(axis=-1), abs=0.001)
    assert walk.pit(came, rng) == pytest.approx(sampled.pit(came, rng), abs=0.02)


def test_the_walks_expected_volatility_is_that_of_its_own_paths():
    rng = np.random.default_rng(7)
    walk = VolatilityWalk(np.array([0.02]), np.ones(4))
    paths = np.exp(np.cumsum(rng.normal(0, 0.02, (1, 40_000, 4)), axis=-1))
    sampled = PathDistribution(paths, np.ones(1)).volatility()
    assert walk.volatility() == pytest.approx(sampled, rel=0.01)


def test_the_walk_finds_the_factor_that_was_missing():
    rng = np.random.default_rng(8)
    came = np.expm1(rng.normal(0, 0.02, (4000, 2)) * np.sqrt([1, 2]) * [1.0, 1.5])
    found = VolatilityWalk(np.full(4000, 0.02), np.ones(2)).fit(came)
    assert found.scale == pytest.approx([1.0, 1.5], rel=0.03)
    assert (
        found.crps(came).mean() < VolatilityWalk(np.full(4000, 0.02), np.ones(2)).crps(came).mean()
    )


def test_historical_volatility_is_of_the_newest_bars_and_never_zero():
    past = [[1.0, 10.0, 11.0, 12.1], [7.0, 7.0, 7.0, 7.0]]
    days = pd.bdate_range("2024-01-01", periods=3).to_numpy()
    outcomes = Outcomes(days[:2], np.array(past), np.ones((2, 1)), days[1:, None], 2)
    assert outcomes.historical_volatility[0] == pytest.approx(np.log(1.1))
    assert 0 < outcomes.historical_volatility[1] < 1e-5
    assert np.isfinite(VolatilityWalk.of(outcomes).crps(np.array([[0.1], [0.0]]))).all()


# Tables.


def test_a_day_counts_once_however_many_windows_it_has():
    days = np.array(["2024-01-02", "2024-01-02", "2024-01-03"], dtype="datetime64[ns]")
    until = days[:, None] + np.timedelta64(1, "D")
    outcomes = Outcomes(days, np.full((3, 2), 10.0), np.full((3, 1), 11.0), until, 1)
    daily = by_day(np.array([[1.0], [3.0], [6.0]]), outcomes)
    assert daily["1"].tolist() == [2.0, 6.0]
    assert daily[ALL].mean() == 4.0


@pytest.mark.parametrize("bar", [1, 2, 3, 5])
def test_the_overlap_of_horizons_is_counted_in_days(bar):
    _, outcomes = simulated(0, days=40, names=2, paths=2, horizon=5)
    assert outcomes.label_days(bar) == bar


def test_minutes_of_a_day_overlap_within_it_only(make_minutes):
    times = make_minutes(instruments=1, days=30)["date"].to_numpy()[:-3]
    until = make_minutes(instruments=1, days=30)["date"].to_numpy()[1:-2, None]
    closes = np.full((len(times), 1), 10.0)
    outcomes = Outcomes(times, np.full((len(times), 2), 10.0), closes, until, 1)
    assert outcomes.label_days(1) == 1


def test_scores_stand_side_by_side():
    outcomes = outcomes_from([[10, 11]] * 4, [[11, 12], [12, 11], [10, 11], [11, 13]])
    table = score_table({"last": losses_of(LastPrice(4, 2), outcomes, (0.5,))}, outcomes)["last"]
    missed = outcomes.returns
    assert table["mae", "1"] == pytest.approx(np.abs(missed[:, 0]).mean())
    assert table["rmse", "2"] == pytest.approx(np.sqrt((missed[:, 1] ** 2).mean()))
    assert table["rmse", ALL] == pytest.approx(np.sqrt((missed**2).mean()))
    real = outcomes.realised_volatility
    expected = 1 - (real[:, 1] ** 2).sum() / ((real[:, 1] - real[:, 1].mean()) ** 2).sum()
    assert table["volatility_r2", "2"] == pytest.approx(expected)


def test_bars_of_the_horizon_stand_in_their_order():
    """The last price has no QLIKE; pandas then sorted the rows, 1, 10, 2, and figures ran back."""
    _, outcomes = simulated(2, horizon=11)
    walk = losses_of(VolatilityWalk.of(outcomes), outcomes, (0.5,))
    last = losses_of(LastPrice(*outcomes.returns.shape), outcomes, (0.5,))
    last.pop("qlike", None)
    table = score_table({"walk": walk, "last": last}, outcomes)
    expected = [*map(str, range(1, 12)), ALL]
    for measure in ("crps", "qlike", "volatility_r2"):
        assert table.loc[measure].index.tolist() == expected


def test_volatility_without_variance_is_nothing_to_explain():
    outcomes = outcomes_from([[10, 10]] * 3, [[11], [11], [11]])
    with pytest.raises(UndefinedMetricError, match="same in every window"):
        score_table({"last": losses_of(LastPrice(3, 1), outcomes, (0.5,))}, outcomes)


def test_coverage_counts_both_ends_and_tells_its_error():
    _, outcomes = simulated(1, paths=2)
    came = outcomes.returns
    half = np.where(np.arange(len(came))[:, None] % 2 == 0, came, came + 1)
    table = coverage_table({"half": {0.5: (half, half)}, "all": {0.5: (came, came)}}, outcomes)
    assert table.loc[("all", 0.5, "1")].tolist()[0] == 1.0
    assert np.isnan(table.loc[("all", 0.5, "1"), "low"]), "no day differs: there is no error"
    assert table.loc[("half", 0.5, ALL), "coverage"] == pytest.approx(0.5)
    noisy = {0.9: interval(VolatilityWalk.of(outcomes), 0.9)}
    row = coverage_table({"walk": noisy}, outcomes).loc[("walk", 0.9, ALL)]
    assert row["low"] < row["coverage"] < row["high"]
    assert row["width"] > 0


def test_a_difference_is_told_with_its_error_and_its_sign():
    drawn, outcomes = simulated(2)
    losses = {
        "paths": losses_of(PathDistribution(drawn, outcomes.last_close), outcomes),
        "last": losses_of(LastPrice(*outcomes.closes.shape), outcomes),
    }
    table = difference_table(losses, outcomes, [("paths", "last"), ("last", "last")])
    row = table.loc[("paths", "last", "crps", ALL)]
    assert row["difference"] == pytest.approx(row["value"] - row["baseline_value"])
    assert row["skill"] == pytest.approx(1 - row["value"] / row["baseline_value"])
    assert 0.2 < row["skill"] < 0.4
    assert row["low"] < row["difference"] < row["high"] < 0
    assert row["t"] < -4 and row["p"] < 0.05 and 0.8 < row["covers"] < 0.96
    same = table.loc[("last", "last", "crps", "1")]
    assert same["difference"] == 0
    assert np.isnan(same["t"])
    assert set(table.index.get_level_values("measure")) == set(LOSSES)


# Everything together.


def widened(paths, last_close, factor=2.0):
    """Quantiles of a normal as wide as `factor` times the paths', in the order of the paths."""
    logs = np.log(paths / last_close[:, None, None])
    count = paths.shape[1]
    even = norm.ppf((np.arange(count) + 0.5) / count)[None, :, None]
    ranks = logs.argsort(axis=1).argsort(axis=1)
    quantiles = factor * logs.std(axis=1, keepdims=True) * even
    return last_close[:, None, None] * np.exp(np.take_along_axis(quantiles, ranks, axis=1))


@pytest.fixture(scope="module")
def judged():
    _, valid = simulated(10)
    paths, test = simulated(11, too_sure=2.0, start="2024-06-03")
    calibrated = widened(paths, test.last_close)
    return judge(paths, calibrated, test, valid, levels=(0.5, 0.9)), valid, (paths, test)


def test_calibrated_paths_are_judged_beside_those_that_are_too_sure(judged):
    found, _, _ = judged
    coverage = found.coverage["coverage"]
    assert coverage[KRONOS, 0.9, ALL] < 0.65
    for name in (CALIBRATED, WALK):
        assert coverage[name, 0.9, ALL] == pytest.approx(0.9, abs=0.03)
    scores = found.scores.loc[("crps", ALL)]
    assert scores[CALIBRATED] < 0.97 * scores[KRONOS]
    assert found.pit.loc[(CALIBRATED, ALL), "spread"] == pytest.approx(1, abs=0.1)
    assert found.pit.loc[(KRONOS, ALL), "spread"] > 1.5


def test_calibrated_paths_are_scored_as_quantiles_and_not_as_draws(judged):
    """The fair estimator would flatter them: quantiles lie further apart than draws."""
    found, _, (paths, outcomes) = judged
    calibrated = widened(paths, outcomes.last_close)
    one = PathDistribution(calibrated, outcomes.last_close, stratified=True)
    expected = losses_of(one, outcomes, (0.5, 0.9))["crps"]
    expected = by_day(expected, outcomes).mean()["1"]
    assert found.scores.loc[("crps", "1"), CALIBRATED] == pytest.approx(expected)
    fair = PathDistribution(calibrated, outcomes.last_close).crps(outcomes.returns)
    assert by_day(fair, outcomes).mean()["1"] < expected


def test_nothing_of_the_reported_segment_reaches_the_baselines(judged):
    found, valid, (paths, outcomes) = judged
    closes = outcomes.closes * np.array([1.0, 1.1, 1.2])
    later = Outcomes(outcomes.times, outcomes.past, closes, outcomes.until)
    calibrated = widened(paths, outcomes.last_close)
    again = judge(paths, calibrated, later, valid, levels=(0.5, 0.9))
    assert (again.walk_factors == found.walk_factors).all()
    assert again.scores.loc[("crps", ALL), KRONOS] != found.scores.loc[("crps", ALL), KRONOS]


def test_metrics_have_a_name_for_everything_and_are_finite(judged):
    found, _, _ = judged
    metrics = found.metrics()
    assert metrics["crps"] == found.scores.loc[("crps", ALL), KRONOS]
    assert metrics["crps_historical_volatility"] == found.scores.loc[("crps", ALL), WALK]
    expected = found.coverage.loc[(CALIBRATED, 0.9, ALL), "coverage"]
    assert metrics["coverage_90_calibrated"] == expected
    expected = found.differences.loc[(CALIBRATED, WALK_CALIBRATED, "crps", ALL), "t"]
    assert metrics["crps_calibrated_t_historical_volatility_calibrated"] == expected
    assert metrics["crps_calibrated_skill"] > 0
    assert np.isfinite(list(metrics.values())).all()


def test_every_pair_has_every_loss_on_every_bar():
    valid, test = (
        simulated(seed, days=14, names=3, paths=19, start=start, older=100)
        for seed, start in ((10, "2024-01-01"), (11, "2024-06-03"))
    )
    paths, outcomes = test
    found = judge(paths, widened(paths, outcomes.last_close), outcomes, valid[1], levels=(0.5,))
    assert len(found.differences) == len(PAIRS) * len(LOSSES) * 4
    assert not found.differences.isna().any(axis=None)
    for name in ("ewma", "garch", "har"):
        for one in (name, f"{name}_calibrated"):
            assert np.isfinite(found.metrics()[f"crps_{one}"])
            assert np.isfinite(found.scores.loc[("qlike", "2"), one])
    assert found.methods.loc[(ALL, "oracle_scale"), "kind"] == "bound"
    assert found.methods.loc[(ALL, KRONOS), "kind"] == "forecast"
    assert found.metrics()["garch_fallbacks"] == found.baselines.garch_fallbacks


def test_baselines_that_could_not_be_made_are_named(judged):
    found, _, _ = judged
    assert set(found.baselines.left_out) == {"garch", "har"}
    assert "crps_garch" not in found.metrics()
    assert "crps_ewma_calibrated" in found.metrics()


def test_the_figures_show_the_tables(judged, tmp_path):
    found, _, (paths, outcomes) = judged
    calibrated = widened(paths, outcomes.last_close)
    examples = [
        (f"N{n}", outcomes.past[n], paths[n], calibrated[n], outcomes.closes[n]) for n in range(3)
    ]
    level, skill = crps_figure(found.scores, found.differences, "demo").axes
    lines = {line.get_label(): line.get_ydata() for line in level.get_lines()}
    assert lines["Kronos"] == pytest.approx(found.scores[KRONOS]["crps"].drop(ALL))
    assert lines["Last price"] == pytest.approx(found.scores[LAST_PRICE]["crps"].drop(ALL))
    against = found.differences.xs((CALIBRATED, WALK, "crps"), level=(0, 1, 2)).drop(ALL)
    drawn = {line.get_label(): line.get_ydata() for line in skill.get_lines()}
    assert drawn["Historical volatility"] == pytest.approx(against["skill"])
    narrow, _ = coverage_figure(found.coverage, "demo").axes
    lines = {line.get_label(): line.get_ydata() for line in narrow.get_lines()}
    expected = found.coverage.xs((KRONOS, 0.5), level=(0, 1)).drop(ALL)["coverage"]
    assert lines["Kronos"] == pytest.approx(expected)
    before = pit_figure(found.pit, "demo").axes[0]
    heights = [bar.get_height() for bar in before.patches]
    assert np.mean(heights) == pytest.approx(1)
    assert heights[0] > 1.5, "paths too sure are heaped at both ends"
    figure = fan_figure(examples, (0.5, 0.9), "demo")
    assert [axes.get_title(loc="left") for axes in figure.axes[:3]] == ["N0", "N1", "N2"]
    assert figure.axes[0].get_lines()[0].get_ydata() == pytest.approx(outcomes.past[0])
    figure.savefig(tmp_path / "fans.png")


# What is refused.


def test_prices_without_a_return_are_named():
    with pytest.raises(BarDataError, match=r"a close that came is -1 \(window 1\)"):
        outcomes_from([[10, 10]] * 2, [[11], [-1]])
    with pytest.raises(BarDataError, match="coherent=True"):
        PathDistribution(np.array([[[1.0], [0.0]]]), np.ones(1))


def test_shapes_that_do_not_agree_are_refused():
    days = pd.bdate_range("2024-01-01", periods=2).to_numpy()
    with pytest.raises(BarDataError, match="none empty"):
        Outcomes(days, np.ones((2, 3)), np.ones((1, 1)), days[:1, None], 2)
    with pytest.raises(ConfigError, match="volatility_bars must lie from 1 to 2"):
        Outcomes(days, np.ones((2, 3)), np.ones((2, 1)), days[:, None], 3)
    with pytest.raises(BarDataError, match=r"paths \(N, P, H\)"):
        PathDistribution(np.ones((2, 3)), np.ones(2))
    with pytest.raises(ConfigError, match="one path is no distribution"):
        PathDistribution(np.ones((2, 1, 1)), np.ones(2))
