"""The regression of the spread: what was planted is found, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from calibration_markets import planted

from kronos_qlib.calibration.spread import (
    FIRST_DOF,
    LEAST_DOF,
    Regressors,
    SpreadModel,
    _crps,
    _linear,
    _powers,
)
from kronos_qlib.calibration.student import student_crps
from kronos_qlib.errors import BarDataError, ConfigError


def mean_crps(log_scale, returns, dof):
    scale = np.exp(log_scale)
    crps = student_crps(returns / scale, dof)[0] * scale
    return (crps.mean(axis=0) / np.abs(returns).mean(axis=0)).mean()


def test_a_planted_scale_is_found():
    known, returns, true = planted(20_000)
    model = SpreadModel.fit(known, returns)
    assert model.slopes[0] == pytest.approx(0.5, abs=0.05)
    assert model.tilts[1] == pytest.approx(-0.2, abs=0.06)
    assert model.dof == pytest.approx(4.5, abs=0.4)
    noise = (*model.slopes[2:], *model.tilts[2:])
    assert np.abs(noise).max() < 0.06
    error = model.log_scale(known, 5) - true
    assert np.abs(error).mean() < 0.02


def test_every_slope_of_the_loss_is_its_difference():
    known, returns, _ = planted(500)
    rng = np.random.default_rng(1)
    weights = rng.uniform(0.5, 2, returns.shape[1])
    powers = _powers(5, 5)
    tried = rng.normal(size=3 + 14) * 0.1

    def value(at, free):
        log_scale = known.walk[:, None] + _linear(at, known.values, powers)
        return _crps(returns, log_scale, weights, free)

    _, slope, by_free = value(tried, 1.0)
    for place in range(len(tried)):
        step = np.zeros(len(tried))
        step[place] = 1e-5
        wanted = (value(tried + step, 1.0)[0] - value(tried - step, 1.0)[0]) / 2e-5
        term = (_linear(step, known.values, powers)) / 1e-5
        assert (slope * term).sum() == pytest.approx(wanted, rel=1e-6, abs=1e-8)
    wanted = (value(tried, 1.001)[0] - value(tried, 0.999)[0]) / 0.002
    assert by_free == pytest.approx(wanted, rel=1e-4)


def test_no_step_from_the_optimum_lowers_the_loss():
    """The search once stopped early, 0.002 of log scale from the optimum."""
    known, returns, _ = planted(2000)
    model = SpreadModel.fit(known, returns)
    found = np.array((*model.intercepts, *model.slopes, *model.tilts))
    powers = _powers(5, 5)
    usual = np.abs(returns).mean(axis=0)

    def loss(at, dof):
        log_scale = known.walk[:, None] + 0.5 * np.log(np.arange(1, 6))
        log_scale = log_scale + _linear(at, known.values, powers)
        scale = np.exp(log_scale)
        return (student_crps(returns / scale, dof)[0] * scale / usual).mean()

    best = loss(found, model.dof)
    for place in range(3):  # without a penalty
        for size in (-0.01, 0.01):
            step = np.zeros(len(found))
            step[place] = size
            assert loss(found + step, model.dof) > best
    assert loss(found, model.dof * 1.05) > best
    assert loss(found, model.dof / 1.05) > best


@pytest.mark.parametrize("seed", range(5))
def test_it_is_never_worse_than_the_walk_it_contains(seed):
    rng = np.random.default_rng(seed)
    known, returns, _ = planted(400, seed=seed)
    returns = rng.standard_t(3, returns.shape) * 0.02  # nothing that the regressors say
    model = SpreadModel.fit(known, returns)
    walk = np.broadcast_to(known.walk[:, None] + 0.5 * np.log(np.arange(1, 6)), returns.shape)
    fitted = mean_crps(model.log_scale(known, 5), returns, model.dof)
    assert fitted < mean_crps(walk, returns, FIRST_DOF)


def test_beyond_the_horizon_fitted_the_scale_grows_with_the_root():
    known, returns, _ = planted()
    model = SpreadModel.fit(known, returns)
    found = model.log_scale(known, 50)
    assert found[:, :5] == pytest.approx(model.log_scale(known, 5), abs=1e-12)
    grown = found[:, 4:] - found[:, 4:5]
    wanted = np.broadcast_to(0.5 * np.log(np.arange(5, 51) / 5), grown.shape)
    assert grown == pytest.approx(wanted, abs=1e-9)


def test_a_horizon_of_one_bar():
    known, returns, true = planted(4000, horizon=1)
    model = SpreadModel.fit(known, returns)
    assert np.abs(model.log_scale(known, 1) - true).mean() < 0.06
    assert np.isfinite(model.log_scale(known, 20)).all()


def test_the_season_ahead_counts_in_full():
    known, returns, _ = planted()
    ahead = np.random.default_rng(3).normal(size=returns.shape)
    seasonal = Regressors(known.names, known.walk, known.values, ahead)
    plain = SpreadModel.fit(known, returns)
    model = SpreadModel.fit(seasonal, returns * np.exp(ahead))
    assert model.slopes == pytest.approx(plain.slopes, abs=0.1)
    difference = model.log_scale(seasonal, 5) - model.log_scale(known, 5)
    assert difference == pytest.approx(ahead)


def test_a_few_outliers_do_not_carry_the_fit_away():
    known, returns, true = planted(5000)
    returns[::500] *= 100
    error = SpreadModel.fit(known, returns).log_scale(known, 5) - true
    assert np.abs(error).mean() < 0.1


def test_the_unit_of_returns_goes_into_the_intercept_alone():
    known, returns, _ = planted()
    model, other = (SpreadModel.fit(known, returns * unit) for unit in (1.0, 3.0))
    assert other.log_scale(known, 5) == pytest.approx(
        model.log_scale(known, 5) + np.log(3), abs=2e-3
    )


def test_a_bar_to_which_no_price_moved_is_no_obstacle():
    known, returns, true = planted(5000)
    returns[:, 0] = 0
    error = SpreadModel.fit(known, returns).log_scale(known, 5) - true
    assert np.isfinite(error).all()
    assert np.abs(error[:, 1:]).mean() < 0.5


def test_normal_returns_get_many_degrees_of_freedom():
    known, returns, true = planted(5000)
    returns = np.random.default_rng(0).normal(size=returns.shape) * np.exp(true)
    assert SpreadModel.fit(known, returns).dof > 20


def test_regressors_that_say_the_same_share_it():
    known, returns, true = planted(4000)
    twice = Regressors(
        tuple(f"r{place}" for place in range(14)),
        known.walk,
        np.concatenate((known.values, known.values), axis=1),
    )
    model = SpreadModel.fit(twice, returns)
    assert model.slopes[:7] == pytest.approx(model.slopes[7:], abs=1e-3)
    assert np.abs(model.log_scale(twice, 5) - true).mean() < 0.06


def test_a_regressor_that_never_varies_is_no_obstacle():
    known, returns, true = planted(4000)
    known.values[:, 6] = 0.0
    model = SpreadModel.fit(known, returns)
    assert np.abs(model.log_scale(known, 5) - true).mean() < 0.06


def test_a_scale_of_one_window_is_the_same_whatever_others_are_with_it():
    known, returns, _ = planted(1003)
    model = SpreadModel.fit(known, returns)
    together = model.log_scale(known, 5)
    for place in (0, 1, 500, 1002):
        alone = model.log_scale(known.take(np.array([place])), 5)
        assert (alone == together[place]).all()


def test_too_few_windows_are_refused_by_number():
    known, returns, _ = planted(179)
    with pytest.raises(ConfigError, match="180 windows at least, got 179"):
        SpreadModel.fit(known, returns)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("where", "message"), [("walk", "volatility"), ("value", "close_20"), ("return", "return")]
)
def test_numbers_that_are_not_finite_are_named(where, message, bad):
    known, returns, _ = planted(400)
    {"walk": known.walk, "value": known.values[:, 1], "return": returns[:, 0]}[where][7] = bad
    with pytest.raises(BarDataError, match=f"{message}.* finite"):
        SpreadModel.fit(known, returns)


def test_prices_that_never_move_are_refused():
    known, returns, _ = planted(400)
    with pytest.raises(BarDataError, match="no close"):
        SpreadModel.fit(known, 0 * returns)


def test_other_regressors_are_refused():
    known, returns, _ = planted(400)
    model = SpreadModel.fit(known, returns)
    with pytest.raises(ConfigError, match="was fitted on close_5"):
        model.log_scale(Regressors(("else",) * 7, known.walk, known.values), 5)


@pytest.mark.parametrize(
    "change",
    [
        {"names": ("a",)},
        {"intercepts": (0.0, 0.0)},
        {"intercepts": (0.0, 0.0, np.nan)},
        {"slopes": (True,)},
        {"tilts": 1.0},
        {"dof": LEAST_DOF - 0.1},
        {"dof": 1e9},
        {"dof": np.inf},
        {"horizon": 0},
        {"windows": 1.5},
        {"horizon": 10**17},
    ],
)
def test_numbers_that_cannot_work_are_refused(change):
    good = {
        "names": (),
        "intercepts": (0.0, 0.0, 0.0),
        "slopes": (),
        "tilts": (),
        "dof": 5.0,
        "horizon": 5,
        "windows": 100,
    }
    SpreadModel(**good)
    with pytest.raises(ConfigError):
        SpreadModel(**{**good, **change})
