"""Calibrated paths: what stays, what moves, and what the truth says of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from calibration_markets import (
    GARCH_KEEP,
    GARCH_MOVE,
    daily_stamps,
    garch_bars,
    hourly_stamps,
    sample_from,
    volatile_scales,
    walk_bars,
)

from kronos_qlib.calibration.calibration import (
    DAY,
    INTRADAY,
    OWN,
    Calibration,
    Fit,
    Sample,
    kinds_of,
    steps_of,
)
from kronos_qlib.calibration.market_state import MARKET
from kronos_qlib.calibration.path_terms import PathTerms
from kronos_qlib.calibration.season import Season
from kronos_qlib.calibration.spread import SpreadModel
from kronos_qlib.calibration.student import student_crps
from kronos_qlib.data.calendar.stamps import stamps_of
from kronos_qlib.errors import BarDataError, ConfigError

HORIZON = 4


def spread_model(names=OWN, seed=0, dof=4.0):
    rng = np.random.default_rng(seed)
    slopes, tilts = (tuple((rng.normal(size=len(names)) * 0.1).tolist()) for _ in range(2))
    return SpreadModel(names, (0.1, -0.05, 0.02), slopes, tilts, dof, 10, 500)


def a_fit(paths=None, season=None):
    return Fit(spread_model(), spread_model((*OWN, *MARKET), 1), season, paths)


def a_calibration(**changes):
    season = Season(tuple(np.linspace(-0.5, 0.5, 24).tolist()))
    terms = PathTerms(0.4, 0.3, (0.1, 0.2), 100)
    good = {
        "fits": {DAY: a_fit(), INTRADAY: a_fit(terms, season)},
        "checkpoint": "abc-def",
        "sampling": {"temperature": 1.0, "top_p": 0.9},
        "until": "2024-03-01",
        "about": "a test",
    }
    return Calibration(**{**good, **changes})


def request_of(windows=6, paths=25, lookback=60, horizon=HORIZON, seed=0, hourly=False):
    """Paths, bars, stamps and stamps ahead."""
    rng = np.random.default_rng(seed)
    stamps = (hourly_stamps if hourly else daily_stamps)(windows, lookback + horizon)
    start = rng.uniform(1, 500, windows)
    bars = walk_bars(rng, np.full((windows, lookback), 0.02)) * 1.0
    bars[..., :4] *= (start / bars[:, -1, 3])[:, None, None]
    drawn = walk_bars(rng, np.full((windows, paths, horizon), 0.03), within=4)
    drawn[..., :4] *= (start / 10)[:, None, None, None]
    return (
        drawn.astype(np.float32),
        bars.astype(np.float32),
        stamps[:, :lookback],
        stamps[:, lookback:],
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("paths", [1, 2, 300])
@pytest.mark.parametrize("hourly", [False, True])
def test_what_stays(dtype, paths, hourly):
    drawn, bars, stamps, ahead = request_of(paths=paths, hourly=hourly)
    drawn = drawn.astype(dtype)
    before = drawn.copy()
    found = a_calibration().apply(drawn, bars, stamps, ahead)
    assert (drawn == before).all()
    assert found.shape == drawn.shape
    assert found.dtype == dtype
    assert found is not drawn
    opened, high, low, close, volume, _ = np.moveaxis(found, -1, 0)
    assert (high >= np.maximum(opened, close)).all()
    assert (low <= np.minimum(opened, close)).all()
    assert (low > 0).all()
    assert (volume == drawn[..., 4]).all()
    order = drawn[..., 3].argsort(axis=1, kind="stable")
    assert (np.diff(np.take_along_axis(close, order, axis=1), axis=1) >= 0).all()
    # All of a bar by one factor.
    ratio = found / drawn
    assert ratio[..., [0, 1, 2, 5]] == pytest.approx(
        np.broadcast_to(ratio[..., 3:4], ratio[..., :4].shape), rel=1e-5
    )


@pytest.mark.parametrize("paths", [1, 2, 3, 50, 1000])
def test_without_a_centre_the_mean_price_is_the_last_close(paths):
    drawn, bars, stamps, ahead = request_of(paths=paths)
    found = a_calibration().apply(drawn.astype(np.float64), bars, stamps, ahead)[..., 3]
    wanted = np.broadcast_to(bars[:, -1, 3][:, None], (6, HORIZON))
    assert found.mean(axis=1) == pytest.approx(wanted, rel=1e-9)


def test_quantiles_are_those_of_the_marginal():
    drawn, bars, stamps, ahead = request_of(paths=400)
    calibration = a_calibration()
    found = calibration.apply(drawn.astype(np.float64), bars, stamps, ahead)[..., 3]
    centre, log_scale, dof = calibration.fits[DAY].marginals(bars, stamps, ahead)
    logs = np.log(found / bars[:, -1, 3][:, None, None])
    apart = np.quantile(logs, 0.75, axis=1) - np.quantile(logs, 0.25, axis=1)
    assert apart == pytest.approx(2 * 0.7407 * np.exp(log_scale), rel=0.02)  # of a t of 4
    assert (centre == 0).all()
    assert dof == 4


@pytest.mark.parametrize("market", [False, True])
def test_a_window_is_the_same_in_any_batch(market):
    """To the last bit: what one instrument's forecast is cannot hang on the others asked for."""
    kinds = [request_of(windows=37, seed=1), request_of(windows=26, seed=2, hourly=True)]
    both = [np.concatenate(part) for part in zip(*kinds, strict=True)]
    states = np.random.default_rng(0).normal(size=(63, 2)) if market else None
    order = np.random.default_rng(3).permutation(63)
    calibration = a_calibration()
    together = calibration.apply(*both, market=states)
    mixed = calibration.apply(
        *(part[order] for part in both), market=None if states is None else states[order]
    )
    assert (mixed == together[order]).all()
    for place in (0, 5, 36, 37, 62):
        one = slice(place, place + 1)
        alone = calibration.apply(
            *(part[one] for part in both), market=None if states is None else states[one]
        )
        assert (alone[0] == together[place]).all()


def test_each_kind_of_bars_takes_its_own_fit():
    daily, hourly = request_of(), request_of(hourly=True)
    assert set(kinds_of(daily[2])) == {DAY}
    assert set(kinds_of(hourly[2])) == {INTRADAY}
    calibration = a_calibration()
    both = calibration.apply(*(np.concatenate(pair) for pair in zip(daily, hourly, strict=True)))
    assert (both[:6] == calibration.apply(*daily)).all()
    assert (both[6:] == calibration.apply(*hourly)).all()
    daily_only = a_calibration(fits={DAY: a_fit()})
    assert daily_only.reasons_against(*daily[1:3]) == [None] * len(daily[1])
    with pytest.raises(BarDataError, match="not fitted on intraday bars"):
        daily_only.apply(*hourly)


@pytest.mark.parametrize("hours", [(16, 13), (4, 5)])
def test_daily_bars_that_close_at_two_hours_are_daily(hours):
    """Half days, or UTC times of a zone with summer time, made daily bars intraday ones."""
    days = pd.bdate_range("2024-02-15", periods=40)
    times = days + pd.to_timedelta(np.where(np.arange(40) < 20, *hours), unit="h")
    assert kinds_of(stamps_of(times.to_numpy()[None])).tolist() == [DAY]
    yearly = pd.to_datetime([f"{year}-12-31 16:00" for year in range(1980, 2010)])
    assert kinds_of(stamps_of(yearly.to_numpy()[None])).tolist() == [DAY]
    twice = pd.date_range("2024-02-15", periods=40, freq="12h")
    assert kinds_of(stamps_of(twice.to_numpy()[None])).tolist() == [INTRADAY]


def test_no_windows_give_none():
    none = [part[:0] for part in request_of()]
    assert a_calibration().apply(*none).shape == none[0].shape


def test_paths_of_other_settings_add_nothing():
    drawn, bars, stamps, ahead = request_of(hourly=True)
    calibration = a_calibration()
    same = calibration.apply(drawn, bars, stamps, ahead, {"temperature": 1.0, "top_p": 0.9})
    other = calibration.apply(drawn, bars, stamps, ahead, {"temperature": 0.6, "top_p": 0.9})
    fits = {kind: replace(fit, paths=None) for kind, fit in calibration.fits.items()}
    without = replace(calibration, fits=fits).apply(drawn, bars, stamps, ahead)
    assert (same == calibration.apply(drawn, bars, stamps, ahead)).all()
    assert (other == without).all()
    assert (other != same).any()


@pytest.mark.parametrize("bad", [0.0, -2.0, np.nan, np.inf])
def test_bars_and_paths_that_are_no_prices_are_refused(bad):
    drawn, bars, stamps, ahead = request_of()
    broken = bars.copy()
    broken[3, 10, 1] = bad
    calibration = a_calibration()
    found = calibration.reasons_against(broken, stamps)
    assert "positive" in next(filter(None, found))
    assert found.count(None) == len(found) - 1
    with pytest.raises(BarDataError, match="positive"):
        calibration.apply(drawn, broken, stamps, ahead)
    drawn[2, 1, 0, 3] = bad
    with pytest.raises(BarDataError, match="coherent"):
        calibration.apply(drawn, bars, stamps, ahead)


def test_few_bars_are_refused():
    drawn, bars, stamps, ahead = request_of(lookback=22)
    with pytest.raises(BarDataError, match="22 bars were seen, and volatility takes 23"):
        a_calibration().apply(drawn, bars, stamps, ahead)


def test_shapes_that_do_not_agree_are_refused():
    """One window's bars with the paths of many once passed, and all but one stayed as drawn."""
    drawn, bars, stamps, ahead = request_of()
    for wrong in (
        (drawn, bars[:1], stamps[:1], ahead),
        (drawn, bars, stamps[:5], ahead),
        (drawn, bars, stamps, ahead[:, :2]),
    ):
        with pytest.raises(BarDataError, match="do not belong"):
            a_calibration().apply(*wrong)
    with pytest.raises(BarDataError, match="market"):
        a_calibration().apply(drawn, bars, stamps, ahead, market=np.zeros((2, 2)))


def test_huge_numbers_of_a_fit_leave_prices_that_can_be():
    drawn, bars, stamps, ahead = request_of(paths=1000)
    wild = SpreadModel(OWN, (100.0, 0.0, 0.0), (100.0,) * 7, (0.0,) * 7, 2.1, 10, 500)
    calm = replace(wild, intercepts=(-100.0, 0.0, 0.0))
    terms = PathTerms(-100.0, 100.0, (1000.0,), 10)
    for fit in (Fit(wild), Fit(calm), Fit(wild, paths=terms), Fit(calm, paths=terms)):
        found = a_calibration(fits={DAY: fit}).apply(drawn, bars, stamps, ahead)
        assert np.isfinite(found).all()
        assert (found[..., :4] > 0).all()


# -- fits


def a_sample(**changes):
    bars = walk_bars(np.random.default_rng(0), np.full((30, 200), 0.02))
    return replace(sample_from(bars, 60, HORIZON), **changes)


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_samples_say_which_price_is_none(bad):
    good = a_sample()
    bars, closes = good.bars.copy(), good.closes.copy()
    bars[0, 0, 2] = closes[1, 1] = bad
    with pytest.raises(BarDataError, match="bars seen"):
        replace(good, bars=bars)
    with pytest.raises(BarDataError, match="closes that came"):
        replace(good, closes=closes)
    paths = np.full((2, 5, HORIZON), bad)
    with pytest.raises(BarDataError, match="closes of paths"):
        replace(good, drawn=np.array([0, 1]), paths=paths)
    # Volumes may be anything.
    bars = good.bars.copy()
    bars[0, 0, 4:] = bad
    replace(good, bars=bars)


def test_samples_of_shapes_that_do_not_agree_are_refused():
    good = a_sample()
    for change in (
        {"bars": good.bars[:-1]},
        {"ahead": good.ahead[:, :-1]},
        {"times": good.times[:-1]},
        {"market": np.zeros((3, 2))},
        {"market": np.full((len(good.bars), 2), np.nan)},
        {"drawn": np.array([0]), "paths": np.ones((2, 5, HORIZON))},
        {"drawn": np.array([10**6]), "paths": np.ones((1, 5, HORIZON))},
    ):
        with pytest.raises(BarDataError, match="expected"):
            replace(good, **change)


def test_too_few_windows_are_refused():
    good = a_sample()
    few = [value[:50] for value in (good.bars, good.stamps, good.ahead, good.closes, good.times)]
    with pytest.raises(ConfigError, match="at least, got 50"):
        Fit.of([Sample(*few)])


def test_samples_of_two_markets_are_one():
    good = a_sample()
    half = len(good.bars) // 2

    def part(rows):
        return Sample(
            good.bars[rows],
            good.stamps[rows],
            good.ahead[rows],
            good.closes[rows],
            good.times[rows],
        )

    pooled = Fit.of([part(slice(half)), part(slice(half, None))])
    assert pooled.own.slopes == pytest.approx(Fit.of([good]).own.slopes, abs=1e-6)


def test_the_market_is_used_where_it_is_known():
    rng = np.random.default_rng(0)
    good = a_sample()
    state = rng.normal(size=(len(good.bars), 2)) * 0.5
    last = good.bars[:, -1, 3][:, None]
    closes = last * (good.closes / last) ** np.exp(0.8 * state[:, :1])
    fit = Fit.of([replace(good, closes=closes, market=state)])
    assert fit.market.slopes[-2:] == pytest.approx((0.8, 0), abs=0.1)
    known = fit.marginals(good.bars, good.stamps, good.ahead, market=state)[1]
    unknown = fit.marginals(good.bars, good.stamps, good.ahead)[1]
    assert (known - unknown).std() == pytest.approx(0.4, abs=0.08)


# -- truth


def crps_of(log_scale, returns, dof=5.0):
    scale = np.exp(log_scale)
    return (student_crps(returns / scale, dof)[0] * scale).mean(axis=0)


@pytest.fixture(scope="module")
def garch():
    """A fit on the past, windows of the future, and the true log scale of their returns."""
    bars, variance = garch_bars(np.random.default_rng(1), 150, 700)
    fit = Fit.of([sample_from(bars[:, :400], 80, 5)])
    bars, variance = bars[:, 390:], variance[:, 390:]
    first = np.concatenate([variance[:, end] for end in range(80, 306, 7)])
    back = (GARCH_MOVE + GARCH_KEEP) ** np.arange(5)
    expected = 0.02**2 + (first[:, None] - 0.02**2) * back
    return fit, sample_from(bars, 80, 5), 0.5 * np.log(np.cumsum(expected, axis=1))


def test_intervals_of_the_future_hold_their_share(garch):
    fit, future, _ = garch
    calibration = a_calibration(fits={DAY: fit})
    drawn = walk_bars(np.random.default_rng(0), np.full((len(future.bars), 99, 5), 0.05), within=2)
    paths = calibration.apply(drawn, future.bars, future.stamps, future.ahead)[..., 3]
    ranks = (paths < future.closes[:, None]).sum(axis=1)  # 0 to 99
    for level in (0.5, 0.8, 0.9):
        inside = (np.abs(ranks - 49.5) < 50 * level).mean(axis=0)
        assert inside == pytest.approx(np.full(5, level), abs=0.02), level


def test_crps_of_the_future_is_that_of_the_true_model(garch):
    fit, future, true = garch
    _, log_scale, dof = fit.marginals(future.bars, future.stamps, future.ahead)
    found = crps_of(log_scale, future.returns, dof)
    assert (found <= 1.01 * crps_of(true, future.returns, 150.0)).all()


def test_it_is_better_than_every_walk_it_contains():
    rng = np.random.default_rng(5)
    bars = walk_bars(rng, volatile_scales(rng, 100, 600))
    fit, future = Fit.of([sample_from(bars[:, :400], 80, 5)]), sample_from(bars[:, 390:], 80, 5)
    _, log_scale, dof = fit.marginals(future.bars, future.stamps, future.ahead)
    moves = np.diff(np.log(future.bars[..., 3]), axis=1)
    found = crps_of(log_scale, future.returns, dof)
    for count in (5, 20, 60):
        walk = np.log(moves[:, -count:].std(axis=1))[:, None] + 0.5 * np.log(np.arange(1, 6))
        for lower in (0.0, 0.1, 0.2):
            assert (found < crps_of(walk - lower, future.returns)).all()


def test_constant_volatility_is_level_with_the_true_model():
    """Where there is nothing to know, nothing is claimed: within 1 % of the truth."""
    rng = np.random.default_rng(2)
    bars = walk_bars(rng, np.full((100, 600), 0.02))
    fit = Fit.of([sample_from(bars[:, :300], 80, 5)])
    future = sample_from(bars[:, 290:], 80, 5)
    centre, log_scale, dof = fit.marginals(future.bars, future.stamps, future.ahead)
    assert (centre == 0).all()
    true = np.broadcast_to(np.log(0.02 * np.sqrt(np.arange(1, 6))), future.returns.shape)
    best = crps_of(true, future.returns, 150.0)
    assert (crps_of(log_scale, future.returns, dof) <= 1.01 * best).all()


@pytest.mark.parametrize(
    ("dates", "minutes"),
    [
        (pd.bdate_range("2024-01-02 15:00", periods=40), 1440),
        (pd.bdate_range("2024-01-02", periods=40)[::2], 7 * 1440),
        (pd.date_range("2024-01-02", periods=40, freq="D"), 1440),
        (pd.date_range("2024-01-05", periods=40, freq="W-FRI"), 7 * 1440),
        (pd.date_range("2024-01-31", periods=40, freq="ME"), 7 * 1440),
        (pd.date_range("2024-01-02", periods=40, freq="h"), 60),
        (pd.date_range("2024-01-02", periods=40, freq="4h"), 240),
        (pd.date_range("2024-01-02", periods=40, freq="5min"), 5),
    ],
)
def test_a_step_is_the_median_and_a_week_or_more_are_alike(dates, minutes):
    stamps = stamps_of(pd.DatetimeIndex(dates))[None]
    assert steps_of(stamps).tolist() == [minutes]


def test_bars_of_a_step_that_was_not_fitted_are_named():
    """Weekly bars were called calibrated as daily ones are, where nothing had been checked."""
    fitted = a_calibration(fits={DAY: replace(a_fit(), steps=(1440,))})
    weekly = stamps_of(pd.date_range("2024-01-05", periods=40, freq="W-FRI"))
    daily = stamps_of(pd.bdate_range("2024-01-02", periods=40))
    assert fitted.unlike_steps(np.stack((daily, weekly, daily))).tolist() == [0, 7 * 1440, 0]
    unknown = a_calibration(fits={DAY: a_fit()})
    assert unknown.unlike_steps(weekly[None]).tolist() == [0]


def test_a_fit_names_its_steps(garch):
    assert garch[0].steps == (1440,)


@pytest.mark.parametrize("steps", [[60], (), (0,), (60.0,), (True,), (20_000,), (60, 5), (60, 60)])
def test_steps_are_minutes(steps):
    with pytest.raises(ConfigError, match="steps must be ascending minutes"):
        replace(a_fit(), steps=steps)
