"""Calibration: what it finds in paths that are too sure, what it leaves alone, what it refuses."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

from kronos_qlib.errors import BarDataError, ConfigError
from kronos_qlib.evaluation.forecasts import calibration
from kronos_qlib.evaluation.forecasts.calibration import Calibration, ConformalIntervals
from kronos_qlib.evaluation.forecasts.distributions import sample_quantile
from kronos_qlib.inference.forecast import Forecast, make_coherent
from kronos_qlib.schema import AMOUNT, CLOSE, HIGH, LOW, VOLUME


def too_sure(seed=0, windows=1500, paths=20, factors=(1.5, 0.7), drift=0.01):
    """Closes of paths, last closes and what came, whose spread is `factors` times the paths'."""
    rng = np.random.default_rng(seed)
    last = rng.uniform(5, 50, windows)
    volatility = 0.02 * np.exp(rng.normal(0, 0.3, (windows, 1)))
    drawn = drift + rng.normal(size=(windows, paths, len(factors))) * volatility[..., None]
    real = drift + rng.normal(size=(windows, len(factors))) * volatility * factors
    return last[:, None, None] * np.exp(drawn), last, last[:, None] * np.exp(real)


def covered(low, high, came):
    return ((low <= came) & (came <= high)).mean(axis=0)


def interval_of(closes, level):
    across = closes.transpose(0, 2, 1)
    return [sample_quantile(across, tail) for tail in ((1 - level) / 2, (1 + level) / 2)]


def test_the_factor_is_the_one_that_was_missing_on_each_bar():
    found = Calibration.fit(*too_sure(windows=6000))
    assert found.factors == pytest.approx((1.5, 0.7), rel=0.04)
    assert found.windows == 6000


@pytest.mark.parametrize("paths", [19, 50])
def test_calibrated_intervals_cover_their_level_on_other_windows(paths):
    """Not by the fair CRPS: with 19 paths it would cover 92.7 % where 90 is asked for."""
    found = Calibration.fit(*too_sure(windows=4000, paths=paths))
    closes, last, came = too_sure(seed=1, windows=4000, paths=paths)
    before = covered(*interval_of(closes, 0.9), came)
    after = covered(*interval_of(found.apply(closes, last), 0.9), came)
    assert before[0] < 0.77
    assert before[1] > 0.95
    assert after == pytest.approx(0.9, abs=0.018)


def test_paths_that_are_right_are_left_as_they_are():
    found = Calibration.fit(*too_sure(windows=6000, paths=50, factors=(1.0,)))
    assert found.factors == pytest.approx((1.0,), rel=0.03)


def test_the_factor_is_the_least_of_a_loss_tried_everywhere():
    closes, last, came = too_sure(windows=300, factors=(1.5,))
    (found,) = Calibration.fit(closes, last, came).factors

    def crps(factor):
        moved = np.log(Calibration((factor,), 1).apply(closes, last) / last[:, None, None])[..., 0]
        missed = np.abs(moved - np.log(came / last[:, None])).mean()
        return missed - np.abs(moved[:, :, None] - moved[:, None, :]).mean() / 2

    tried = np.linspace(0.5, 3, 26)
    assert crps(found) <= min(crps(factor) for factor in tried) + 1e-9


def test_the_median_stays_and_spreads_multiply():
    closes, last, _ = too_sure(windows=5)
    moved = Calibration((2.0, 0.5), 1).apply(closes, last)
    before, after = np.log(closes), np.log(moved)
    assert np.median(after, axis=1) == pytest.approx(np.median(before, axis=1))
    ratio = np.ptp(after, axis=1) / np.ptp(before, axis=1)
    assert ratio == pytest.approx(np.tile([2.0, 0.5], (5, 1)))


def test_a_median_that_goes_too_far_is_drawn_back_where_asked():
    rng = np.random.default_rng(4)
    last, windows = np.full(3000, 10.0), 3000
    drift = rng.normal(0, 0.05, (windows, 1, 1))
    closes = 10 * np.exp(2 * drift + rng.normal(0, 0.02, (windows, 50, 1)))
    came = 10 * np.exp(drift[:, 0] + rng.normal(0, 0.02, (windows, 1)))
    both = Calibration.fit(closes, last, came, centre=True)
    assert both.centres == pytest.approx((0.5,), abs=0.02)
    assert both.factors == pytest.approx((1.0,), rel=0.04)
    alone = Calibration.fit(closes, last, came)
    assert alone.centres is None
    assert alone.factors[0] > 1.5, "a spread has to make up for what the median misses"
    moved = np.log(Calibration((1.0,), 1, (0.5,)).apply(closes, last) / 10)
    before = np.log(closes / 10)
    assert np.median(moved, axis=1) == pytest.approx(np.median(before, axis=1) / 2)
    assert np.ptp(moved, axis=1) == pytest.approx(np.ptp(before, axis=1))


def test_bars_stay_bars():
    rng = np.random.default_rng(3)
    raw = (10 + rng.normal(0, 0.5, (4, 30, 2, 6))).astype(np.float32)
    past = np.full((4, 20, 6), 10, dtype=np.float32)
    paths = make_coherent(raw, past)
    moved = Calibration((3.0, 0.4), 1).apply(paths, np.full(4, 10.0))
    assert moved.dtype == np.float32
    assert not np.shares_memory(moved, paths)
    assert (moved[..., HIGH] == moved[..., :VOLUME].max(axis=-1)).all()
    assert (moved[..., LOW] == moved[..., :VOLUME].min(axis=-1)).all()
    assert (moved[..., VOLUME] == paths[..., VOLUME]).all()
    prices = moved[..., AMOUNT] / paths[..., AMOUNT]
    assert prices == pytest.approx(moved[..., CLOSE] / paths[..., CLOSE], rel=1e-5)
    only_closes = Calibration((3.0, 0.4), 1).apply(paths[..., CLOSE], np.full(4, 10.0))
    assert only_closes == pytest.approx(moved[..., CLOSE], rel=1e-6)


def test_a_forecast_of_one_series_is_calibrated_too():
    closes, last, _ = too_sure(windows=1)
    bars = np.repeat(closes[0, :, :, None], 6, axis=-1).astype(np.float32)
    times = np.array(["2024-01-02", "2024-01-03"], dtype="datetime64[ns]")
    forecast = Forecast(bars, times, float(last[0]))
    paths = Calibration((2.0, 2.0), 1).apply(forecast.paths, forecast.last_close)
    wider = Forecast(paths, times, forecast.last_close)
    assert wider.returns().std() > 1.8 * forecast.returns().std()
    shorter = Calibration((2.0, 2.0), 1).apply(forecast.paths[:, :1], forecast.last_close)
    assert (shorter == paths[:, :1]).all(), "a shorter horizon has the same first bars"


def test_the_docstrings_example_runs():
    tried = doctest.testmod(calibration)
    assert tried.attempted > 5
    assert tried.failed == 0


def test_it_comes_back_from_its_file(tmp_path):
    for centre in (False, True):
        found = Calibration.fit(*too_sure(windows=50), centre=centre)
        found.save(tmp_path / "calibration.json")
        assert Calibration.load(tmp_path / "calibration.json") == found
    (tmp_path / "other.json").write_text('{"factors": "wide"}', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"other\.json holds no calibration"):
        Calibration.load(tmp_path / "other.json")


# Conformal intervals.


def test_the_offset_is_an_order_statistic():
    """Of 9 windows at level 0.8: the 8th smallest of what each needed, in widths."""
    paths = np.tile(np.exp(np.linspace(-0.01, 0.01, 9))[None, :, None], (9, 1, 1))
    last = np.ones(9)
    needed = np.arange(1, 10) / 10
    ends = np.log(sample_quantile(paths[0, :, 0], 0.9))
    came = np.exp(ends + needed * 2 * ends)[:, None]
    found = ConformalIntervals.fit(paths, last, came, (0.8,))
    assert found.offsets == pytest.approx(np.array([[0.8]]), abs=1e-3)
    low, high = found.apply(paths, last, 0.8)
    assert covered(low, high, came * (1 - 1e-9)) == 8 / 9


def test_intervals_cover_at_least_their_level_on_other_windows():
    fitted = ConformalIntervals.fit(*too_sure(windows=4000), (0.5, 0.9))
    closes, last, came = too_sure(seed=1, windows=4000)
    for level in (0.5, 0.9):
        low, high = fitted.apply(closes, last, level)
        assert covered(low, high, came) == pytest.approx(level, abs=0.02)
    assert (fitted.offsets[:, 0] > 0.1).all()
    assert (fitted.offsets[:, 1] < -0.05).all()


def test_an_interval_never_turns_inside_out():
    closes, last, _ = too_sure(windows=60, factors=(1.0,))
    middle = np.exp(sum(np.log(end) for end in interval_of(closes, 0.5)) / 2)
    found = ConformalIntervals.fit(closes, last, middle, (0.5,))
    assert found.offsets == pytest.approx(np.array([[-0.5]]), abs=1e-3)
    low, high = found.apply(closes, last, 0.5)
    assert (low <= high).all()
    assert low == pytest.approx(high, rel=1e-3)


# What is refused.


def test_what_cannot_be_calibrated_says_why():
    closes, last, came = too_sure(windows=15)
    with pytest.raises(ConfigError, match="no spread to calibrate; sample at a temperature"):
        Calibration.fit(np.repeat(closes[:, :1], 5, axis=1), last, came)
    with pytest.raises(ConfigError, match="one path has no spread"):
        Calibration.fit(closes[:, :1], last, came)
    with pytest.raises(ConfigError, match=r"has no width"):
        ConformalIntervals.fit(np.repeat(closes[:, :1], 20, axis=1), last, came, (0.9,))
    with pytest.raises(ConfigError, match=r"0\.95 is calibrated on 19 windows at least, got 15"):
        more = np.concatenate((closes, closes), axis=1)
        ConformalIntervals.fit(more, last, came, (0.95,))
    with pytest.raises(ConfigError, match="19 draws at least"):
        ConformalIntervals.fit(closes[:, :10], last, came, (0.9,))
    with pytest.raises(BarDataError, match="15 windows of 2 closes"):
        Calibration.fit(closes, last, came[:, :1])
    with pytest.raises(BarDataError, match=r"last closes \(N,\)"):
        Calibration.fit(closes, last[:3], came)
    with pytest.raises(BarDataError, match="a path's close is -"):
        Calibration.fit(-closes, last, came)
    with pytest.raises(ConfigError, match="positive"):
        Calibration((0.0,), 1)
    with pytest.raises(ConfigError, match="expected 1 finite centres"):
        Calibration((1.0,), 1, (1.0, 1.0))


def test_what_it_is_applied_to_must_fit():
    found = Calibration((1.5,), 1)
    with pytest.raises(ConfigError, match="fitted on 1 bars, and the paths have 2"):
        found.apply(np.ones((3, 2)), 1.0)
    with pytest.raises(BarDataError, match=r"expected paths \(\.\.\., P, H, 6\)"):
        found.apply(np.ones((3, 1, 5)), 1.0)
    with pytest.raises(BarDataError, match=r"last closes \(4,\) do not fit"):
        found.apply(np.ones((3, 2, 1)), np.ones(4))
    with pytest.raises(BarDataError, match="coherent=True"):
        found.apply(np.zeros((3, 1)), 1.0)
    closes, last, came = too_sure(windows=30)
    fitted = ConformalIntervals.fit(closes[..., :1], last, came[:, :1], (0.5,))
    with pytest.raises(ConfigError, match=r"level 0\.9 was not calibrated, only 0\.5"):
        fitted.apply(closes, last, 0.9)
    with pytest.raises(ConfigError, match="fitted on 1 bars, and the paths have 2"):
        fitted.apply(closes, last, 0.5)
