"""Student's t against integrals, differences, and scoringrules."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import minimize
from scipy.stats import t as student

from kronos_qlib.calibration.student import student_crps, student_quantiles

DOFS = [2.1, 3.0, 5.0, 30.0, 150.0]
PLACES = np.array([-1e3, -30.0, -2.0, -0.3, 0.0, 0.7, 4.0, 1e3])


@pytest.mark.parametrize("dof", DOFS)
@pytest.mark.parametrize("z", [-8.0, -1.0, 0.0, 0.4, 3.0])
def test_crps_is_the_integral_of_squared_differences_of_probability(dof, z):
    below = quad(lambda x: student.cdf(x, dof) ** 2, -np.inf, z, limit=200)[0]
    above = quad(lambda x: student.sf(x, dof) ** 2, z, np.inf, limit=200)[0]
    assert student_crps(np.array(z), dof)[0] == pytest.approx(below + above, rel=1e-6)


@pytest.mark.parametrize("dof", DOFS)
def test_crps_is_that_of_scoringrules(dof):
    rules = pytest.importorskip("scoringrules")
    assert student_crps(PLACES, dof)[0] == pytest.approx(rules.crps_t(PLACES, dof), rel=1e-9)


@pytest.mark.parametrize("dof", DOFS)
def test_the_slope_is_the_difference(dof):
    step = 1e-5
    above, below = (student_crps(PLACES + side, dof)[0] for side in (step, -step))
    assert student_crps(PLACES, dof)[1] == pytest.approx((above - below) / (2 * step), abs=1e-6)


@pytest.mark.parametrize("dof", DOFS)
def test_far_away_crps_is_the_distance_less_a_constant(dof):
    far, slope = student_crps(np.array([1e6, 1e9, -1e9]), dof)
    assert far == pytest.approx([1e6, 1e9, 1e9], rel=1e-5)
    assert slope == pytest.approx([1, 1, -1])


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_quantiles_are_the_draws_of_least_crps(count):
    dof = 4.0

    def ensemble_crps(draws):
        """Of equal weights against the t: E|X - Y| - E|X - X'| / 2, by the t's own CRPS."""
        distance = student_crps(draws, dof)[0].mean()
        return distance - np.abs(draws[:, None] - draws).mean() / 2

    start = np.linspace(-1, 1, count)
    found = minimize(
        ensemble_crps, start, method="Nelder-Mead", options={"xatol": 1e-8, "maxfev": 20_000}
    )
    quantiles = student_quantiles(count, dof)
    assert np.sort(found.x) == pytest.approx(quantiles, abs=1e-4)
    assert ensemble_crps(quantiles) <= found.fun + 1e-12


def test_quantiles_increase_around_zero():
    for count in (1, 2, 7, 1000):
        found = student_quantiles(count, 3.0)
        assert (np.diff(found) > 0).all()
        assert found == pytest.approx(-found[::-1], abs=1e-12)
