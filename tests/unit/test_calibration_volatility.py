"""Past volatility, the season of a day, and the state of a market, by hand and under attack."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from calibration_markets import daily_stamps, hourly_stamps, walk_bars

from kronos_qlib.calibration.market_state import LEAST_NAMES, market_states
from kronos_qlib.calibration.past_volatility import (
    DECAY,
    ESTIMATES,
    FLOOR,
    LEAST_BARS,
    STILL,
    bar_variances,
    log_volatilities,
)
from kronos_qlib.calibration.season import HOURS, Season, has_all_hours
from kronos_qlib.data.windows.bar_table import BarTable
from kronos_qlib.errors import BarDataError, ConfigError
from kronos_qlib.schema import BAR_COLUMNS

COLUMN = {name: place for place, name in enumerate(ESTIMATES)}


def bars_of(windows=5, bars=100, scale=0.02, seed=0):
    return walk_bars(np.random.default_rng(seed), np.full((windows, bars), scale))


def closing(closes):
    """(1, T, 6) bars that open at the last close and go straight to their own."""
    closes = np.asarray(closes, dtype=float)
    opened = np.concatenate((closes[:1], closes[:-1]))
    high, low = np.maximum(opened, closes), np.minimum(opened, closes)
    return np.stack((opened, high, low, closes, 0 * closes, 0 * closes), axis=-1)[None]


def test_the_variance_of_a_bar_by_hand():
    bars = np.array([[10.0, 10, 10, 10], [11, 13, 10.5, 12], [12, 12, 12, 12], [9, 9, 9, 9]])
    wanted = [
        np.log(11 / 10) ** 2
        + 0.5 * np.log(13 / 10.5) ** 2
        - (2 * np.log(2) - 1) * np.log(12 / 11) ** 2,
        0,  # locked at the last close
        np.log(9 / 12) ** 2,  # locked at a limit: the gap alone
    ]
    assert bar_variances(bars) == pytest.approx(wanted, abs=1e-15)


def test_the_estimates_by_hand():
    moves = np.where(np.arange(99) % 2, 0.01, -0.03)
    bars = closing(10 * np.exp(np.concatenate(([0.0], np.cumsum(moves)))))
    found = np.exp(log_volatilities(bars)[0])
    weights = DECAY ** np.arange(99)[::-1]
    assert found[COLUMN["ewma"]] == pytest.approx(np.sqrt(np.average(moves**2, weights=weights)))
    for count in (5, 20, 60):
        wanted = np.sqrt((moves[-count:] ** 2).mean())
        assert found[COLUMN[f"close_{count}"]] == pytest.approx(wanted)
    # Straight bars: half the square of the range less 0.386 of the same.
    share = 0.5 - (2 * np.log(2) - 1)
    for count in (1, 5, 22, 60):
        wanted = np.sqrt(share * (moves[-count:] ** 2).mean())
        assert found[COLUMN[f"range_{count}"]] == pytest.approx(wanted)


def test_estimates_of_a_walk_are_its_volatility():
    scales = np.full((200, 61), 0.02)
    found = np.exp(log_volatilities(walk_bars(np.random.default_rng(0), scales, within=1000)))
    for name in ("ewma", "close_60", "range_60"):
        mean = np.sqrt((found[:, COLUMN[name]] ** 2).mean())
        assert mean == pytest.approx(0.02, rel=0.04), name


@pytest.mark.parametrize("unit", [1000.0, 1e-4])
def test_the_unit_of_prices_decides_nothing(unit):
    bars = bars_of()
    assert log_volatilities(bars * unit) == pytest.approx(log_volatilities(bars), abs=1e-9)


@pytest.mark.parametrize("lookback", [LEAST_BARS, 24, 60, 61, 62, 300])
def test_any_lookback_takes_what_it_has(lookback):
    bars = bars_of(bars=300)
    found = log_volatilities(bars[:, -lookback:])
    assert found.shape == (5, len(ESTIMATES))
    assert np.isfinite(found).all()
    if lookback > 60:  # but for the exponential weights no older bar counts
        assert found[:, 1:] == pytest.approx(log_volatilities(bars)[:, 1:], abs=1e-12)


def test_too_few_bars_are_refused():
    with pytest.raises(BarDataError, match="at least 23"):
        log_volatilities(bars_of(bars=22))
    with pytest.raises(BarDataError, match="shape"):
        log_volatilities(bars_of()[0])


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", range(4))
def test_prices_that_are_none_are_refused(bad, column):
    bars = bars_of()
    bars[2, 50, column] = bad
    with pytest.raises(BarDataError, match="positive"):
        log_volatilities(bars)


def test_float32_says_the_same():
    bars = bars_of()
    found = log_volatilities(bars.astype(np.float32))
    assert found.dtype == np.float64
    assert found == pytest.approx(log_volatilities(bars), abs=1e-3)


def test_a_price_that_stood_still_has_the_least_volatility():
    found = log_volatilities(closing(np.full(100, 7.0)))
    assert np.isfinite(found).all()
    assert (found >= np.log(FLOOR * STILL) - 1e-9).all()
    assert (found <= np.log(STILL) + 1e-9).all()


def test_one_still_bar_says_little():
    bars = bars_of()
    bars[:, -1, :4] = bars[:, -2, 3:4]
    found = log_volatilities(bars)
    wanted = np.log(FLOOR) + found[:, COLUMN["close_60"]]
    assert found[:, COLUMN["range_1"]] == pytest.approx(wanted)


def test_limit_locked_bars_have_their_gaps():
    bars = closing(10 * 1.1 ** np.arange(60))
    bars[..., :4] = bars[..., 3:4]
    found = np.exp(log_volatilities(bars))
    assert found == pytest.approx(np.full_like(found, np.log(1.1)))


def test_a_row_is_the_same_in_any_batch():
    bars = bars_of(67)
    together = log_volatilities(bars)
    for place in (0, 1, 30, 66):
        assert (log_volatilities(bars[place : place + 1])[0] == together[place]).all()


# -- season


def seasonal(windows=60, bars=24 * 8, seed=0, weight=0.6):
    stamps = hourly_stamps(windows, bars, first=5)
    factors = weight * np.sin(np.arange(HOURS) / HOURS * 2 * np.pi)
    scales = 0.01 * np.exp(factors[stamps[..., 1]])
    return walk_bars(np.random.default_rng(seed), scales), stamps, factors


def test_a_planted_pattern_of_the_day_is_found():
    bars, stamps, factors = seasonal()
    season = Season.fit(bars, stamps)
    wanted = factors - 0.5 * np.log(np.exp(2 * factors).mean())
    assert season.factors == pytest.approx(wanted, abs=0.06)
    assert np.exp(2 * np.array(season.factors)).mean() == pytest.approx(1)


def test_volatility_without_its_season_is_even():
    bars, stamps, _ = seasonal()
    season = Season.fit(bars, stamps)
    known = has_all_hours(stamps)
    ends = {}
    for hour in (6, 18):  # of the last bar
        last = 24 * 6 + int(np.flatnonzero(stamps[0, : 24 * 6, 1] == hour)[-1]) - 24 * 5
        part = slice(last - 99 + 24, last + 25)
        factors = season.of_bars(stamps[:, part], known)
        ends[hour] = log_volatilities(bars[:, part], factors)[:, COLUMN["range_1"]].mean()
    assert ends[6] == pytest.approx(ends[18], abs=0.25)


def test_the_season_ahead_is_that_of_all_bars_up_to_each():
    season = Season(tuple(np.linspace(-1, 1, HOURS).tolist()))
    stamps = hourly_stamps(2, 30, first=20)
    found = season.ahead(stamps, np.array([True, False]))
    squares = np.exp(2 * np.array(season.factors)[stamps[0, :, 1]])
    wanted = [0.5 * np.log(squares[: bar + 1].mean()) for bar in range(30)]
    assert found[0] == pytest.approx(wanted)
    assert (found[1] == 0).all()


def test_markets_with_nights_and_daily_bars_have_none():
    bars, stamps, _ = seasonal(5)
    is_day = (stamps[0, :, 1] >= 9) & (stamps[0, :, 1] <= 15)
    assert Season.fit(bars[:, is_day], stamps[:, is_day]) is None
    assert Season.fit(bars, daily_stamps(5, bars.shape[1])) is None
    one_hour_short = stamps[0, :, 1] != 3
    assert Season.fit(bars[:, one_hour_short], stamps[:, one_hour_short]) is None


def test_windows_of_one_day_have_no_move_in_their_first_hour():
    """An hour that only first bars closed in made a season of NaN, and the fit an error."""
    bars, stamps, _ = seasonal(50)
    season = Season.fit(bars[:, :24], stamps[:, :24])
    assert np.isfinite(season.factors).all()
    assert abs(season.factors[5]) < 0.3


def test_a_market_that_stood_still_has_an_even_season():
    bars, stamps, _ = seasonal(3)
    bars[:] = 1.0
    assert Season.fit(bars, stamps).factors == pytest.approx((0.0,) * HOURS)


@pytest.mark.parametrize("factors", [(0.0,) * 23, (np.nan,) * 24, (1e9,) * 24, 0.0, ("a",) * 24])
def test_seasons_that_cannot_be_are_refused(factors):
    with pytest.raises(ConfigError, match="factors"):
        Season(factors)


# -- state of the market


def table_of(bars, times=None, keep=None):
    """A table of bars (names, T, 6); only of those in `keep` (names, T)."""
    times = pd.bdate_range("2020-01-01", periods=bars.shape[1]) if times is None else times
    frames = []
    for name, own in enumerate(bars):
        index = pd.MultiIndex.from_product(
            [[f"N{name:03d}"], times], names=["instrument", "datetime"]
        )
        frame = pd.DataFrame(own, index=index, columns=list(BAR_COLUMNS))
        frames.append(frame if keep is None else frame[keep[name]])
    return BarTable.from_frame(pd.concat(frames))


def test_states_by_hand():
    bars = np.concatenate([closing(10 * np.exp(0.01 * np.arange(40) * (1 + n))) for n in range(30)])
    bars = np.concatenate((bars, bars_of(3, 40)))[:30]
    states = market_states(table_of(bars))
    assert (states[:22] == 0).all()  # no instrument has 22 moves
    assert states[22:] == pytest.approx(0, abs=1e-4)
    wild = bars.copy()
    wild[:, 30:, :4] *= 1.2  # a gap of log 1.2 at all names, once
    found = market_states(table_of(wild))
    share = 0.5 - (2 * np.log(2) - 1)
    wanted = []
    for name in range(30):
        usual = share * (0.01 * (1 + name)) ** 2
        jump = np.log(1.2 * np.exp(0)) ** 2 + usual
        wanted.append(
            (
                0.5 * np.log(jump / ((21 * usual + jump) / 22)),
                0.5 * np.log(((4 * usual + jump) / 5) / ((21 * usual + jump) / 22)),
            )
        )
    assert found[30] == pytest.approx(np.mean(wanted, axis=0), rel=1e-3)
    assert found[29] == pytest.approx(0, abs=1e-4)


def test_later_bars_change_no_state():
    bars = bars_of(40, 80)
    before = market_states(table_of(bars))
    changed = bars.copy()
    changed[:, 60:, :4] *= 3
    changed[:, 61:, 1] *= 1.5
    after = market_states(table_of(changed))
    assert (after[:60] == before[:60]).all()
    assert not (after[60:62] == before[60:62]).any()


def test_few_names_are_no_market():
    assert (market_states(table_of(bars_of(LEAST_NAMES - 1, 60))) == 0).all()
    assert (market_states(table_of(bars_of(LEAST_NAMES, 60)))[22:] != 0).all()


def test_a_name_without_a_bar_does_not_count_at_that_moment():
    bars = bars_of(LEAST_NAMES, 60)
    keep = np.ones(bars.shape[:2], dtype=bool)
    keep[3, 50] = False
    states = market_states(table_of(bars, keep=keep))
    assert (states[50] == 0).all()
    assert (states[[49, 51]] != 0).all()
    # The bar after it has its own 22 moves, across the gap.
    more = np.concatenate((bars, bars_of(10, 60, seed=9)))
    keep = np.concatenate((keep, np.ones((10, 60), dtype=bool)))
    assert (market_states(table_of(more, keep=keep))[22:] != 0).all()


def test_the_order_of_instruments_and_late_listings_decide_nothing():
    bars = bars_of(40, 80)
    keep = np.ones(bars.shape[:2], dtype=bool)
    keep[::3, :30] = False  # listed later
    forth = market_states(table_of(bars, keep=keep))
    back = market_states(table_of(bars[::-1], keep=keep[::-1]))
    assert back == pytest.approx(forth, abs=1e-9)


def test_one_instrument_is_not_continued_by_the_next():
    """The move from one's last close to another's first would be the wildest of all."""
    bars = bars_of(30, 60)
    bars[1::2, :, :4] *= 1000
    assert np.abs(market_states(table_of(bars))[22:]).max() < 1


def test_an_unsound_price_is_no_error():
    bars = bars_of(30, 60)
    table = table_of(bars)
    table.values[7, 0] = -1
    assert np.isfinite(market_states(table)).all()
