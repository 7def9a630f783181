"""Calibrated paths that keep their own centre: what a ranking of windows needs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from kronos_qlib.calibration.calibration import Calibration, Fit, Sample
from kronos_qlib.calibration.past_volatility import STOOD_STILL
from kronos_qlib.calibration.path_terms import PathTerms
from kronos_qlib.pipeline.calibrated_paths import PathCalibration
from kronos_qlib.schema import CLOSE

WINDOWS, LOOKBACK, PATHS, HORIZON = 240, 30, 15, 3


@pytest.fixture(scope="module")
def known():
    """Bars of random walks, their stamps, those of the bars to come, and paths with a drift."""
    rng = np.random.default_rng(0)
    volatility = 0.02 * np.exp(rng.normal(0, 0.4, (WINDOWS, 1)))
    closes = 10 * np.exp(np.cumsum(volatility * rng.normal(size=(WINDOWS, LOOKBACK)), axis=1))
    bars = np.repeat(closes[..., None], 6, axis=2)
    bars[..., 1] *= 1.01
    bars[..., 2] *= 0.99
    stamps = np.zeros((WINDOWS, LOOKBACK, 5), dtype=np.int64)
    ahead = np.zeros((WINDOWS, HORIZON, 5), dtype=np.int64)
    drift = rng.normal(0, 0.01, (WINDOWS, 1, 1))
    moves = np.cumsum(0.005 * rng.normal(size=(WINDOWS, PATHS, HORIZON)) + drift, axis=2)
    paths = np.repeat(bars[:, None, -1:, :], PATHS, axis=1) * np.exp(moves)[..., None]
    came = closes[:, -1:] * np.exp(
        np.cumsum(volatility * rng.normal(size=(WINDOWS, HORIZON)), axis=1)
    )
    return bars, stamps, ahead, paths, came


@pytest.fixture(scope="module")
def calibration(known):
    bars, stamps, ahead, _, came = known
    times = np.datetime64("2024-01-01") + np.arange(WINDOWS)
    fit = Fit.of([Sample(bars, stamps, ahead, came, times)])
    return Calibration({"day": fit}, "0-0", {}, "2024-09-01")


def moves_of(paths, bars):
    return np.log(paths[..., CLOSE] / bars[:, None, -1:, CLOSE])


def test_the_expected_price_is_that_of_the_paths_own_mean_log_return(known, calibration):
    bars, stamps, ahead, paths, _ = known
    kept = calibration.apply(paths, bars, stamps, ahead, keep_centre=True)
    expected = np.exp(moves_of(paths, bars).mean(axis=1))
    found = (kept[..., CLOSE] / bars[:, None, -1:, CLOSE]).mean(axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    usual = calibration.apply(paths, bars, stamps, ahead)
    at_last = (usual[..., CLOSE] / bars[:, None, -1:, CLOSE]).mean(axis=1)
    np.testing.assert_allclose(at_last, 1, rtol=1e-9)


def test_spread_and_order_are_those_of_the_usual_calibration(known, calibration):
    bars, stamps, ahead, paths, _ = known
    kept = moves_of(calibration.apply(paths, bars, stamps, ahead, keep_centre=True), bars)
    usual = moves_of(calibration.apply(paths, bars, stamps, ahead), bars)
    apart = kept - usual
    np.testing.assert_allclose(apart, np.repeat(apart[:, :1], PATHS, axis=1), atol=1e-12)
    assert (kept.argsort(axis=1) == moves_of(paths, bars).argsort(axis=1)).all()


def test_a_centre_that_earned_something_gives_way_to_the_paths_own(known, calibration):
    """Also where the paths were drawn in another way, and so say nothing in CRPS."""
    bars, stamps, ahead, paths, _ = known
    fit = calibration.fits["day"]
    terms = PathTerms(0.0, 0.1, (0.0,) * HORIZON, 100)
    other = Calibration(
        {"day": Fit(fit.own, fit.market, fit.season, terms)}, "0-0", {}, "2024-09-01"
    )
    tenth = other.apply(paths, bars, stamps, ahead)
    expected = np.exp(0.1 * moves_of(paths, bars).mean(axis=1))
    found = (tenth[..., CLOSE] / bars[:, None, -1:, CLOSE]).mean(axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    for one, how in ((other, None), (other, {"temperature": 2.0}), (calibration, None)):
        kept = one.apply(paths, bars, stamps, ahead, how, keep_centre=True)
        whole = (kept[..., CLOSE] / bars[:, None, -1:, CLOSE]).mean(axis=1)
        np.testing.assert_allclose(whole, expected**10, rtol=1e-9)


@pytest.mark.parametrize("where_possible", [True, False])
def test_a_halted_name_stays_as_drawn_only_where_it_may_be_left_out(
    known, calibration, where_possible
):
    """Its past would make a forecast without any width: `auto` leaves it out, and counts it."""
    bars, stamps, ahead, paths, _ = (part[:3].copy() for part in known)
    bars[1, :, :4] = 10.0
    windows = SimpleNamespace(seen=lambda: (bars, stamps))
    one = PathCalibration(calibration, where_possible)
    found = one.apply(paths, windows, ahead, {}, np.zeros((3, 2)))
    assert (found[1] == paths[1]).all() == where_possible
    assert (found[[0, 2]] != paths[[0, 2]]).any()
    assert dict(one.left_out) == ({STOOD_STILL: 1} if where_possible else {})
