"""Coherent bars, and what can be asked of the paths of one series; every number by hand."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kronos_qlib.errors import BarDataError, ConfigError
from kronos_qlib.inference.forecast import Forecast, make_coherent
from kronos_qlib.schema import AMOUNT, BAR_COLUMNS, CLOSE, HIGH, LOW, VOLUME

DAYS = np.array(["2024-01-02", "2024-01-03"], dtype="datetime64[ns]")
CLOSES = [[11, 12.1], [9, 9.9], [10, 10], [10, 8]]  # four paths of two bars, after a 10


def bars_of(closes):
    """(P, H, 6): open 1 below the close, high 2 above, low 3 below, 100 traded at the close."""
    close = np.asarray(closes, dtype=np.float32)
    volume = np.full_like(close, 100)
    return np.stack([close - 1, close + 2, close - 3, close, volume, volume * close], axis=-1)


def forecast(closes=CLOSES, last_close=10.0, name=""):
    return Forecast(bars_of(closes), DAYS, last_close, name)


# --- coherent bars ---


def lookback(*closes):
    return np.stack([bars_of([row])[0] for row in closes])


def one_bar(*values):
    return np.array(values, dtype=np.float32).reshape(1, 1, 1, 6)


@pytest.mark.parametrize(
    ("raw", "coherent"),
    [
        ((10, 9, 11, 12, 5, 50), (10, 12, 9, 12, 5, 50)),  # high and low the wrong way round
        ((10, 11, 9, 10, -5, -50), (10, 11, 9, 10, 0, 0)),
        ((10, 11, -4, 10, 5, 50), (10, 11, 0.05, 10, 5, 50)),  # the lookback's lowest price is 5
        ((0.01, 11, -4, 10, 5, 50), (0.05, 11, 0.05, 10, 5, 50)),
        ((-1, -2, -3, -4, 5, 50), (0.05, 0.05, 0.05, 0.05, 5, 50)),
        ((10, 11, 9, 10, 5, 0), (10, 11, 9, 10, 5, 0)),
    ],
)
def test_a_raw_bar_becomes_one_that_could_be_traded(raw, coherent):
    past = lookback([8, 9])  # its lowest low is 8 - 3
    np.testing.assert_allclose(make_coherent(one_bar(*raw), past), one_bar(*coherent), rtol=1e-6)


@pytest.mark.parametrize("closes", [(-8, -9), (2, 9), (-5, 40)], ids=["negative", "mixed", "wide"])
def test_a_spread_may_stay_negative(closes):
    """Its high is still its highest and its low its lowest."""
    raw = one_bar(-1, -2, 3, -4, 5, 50)
    expected = one_bar(-1, 3, -4, -4, 5, 50)
    np.testing.assert_array_equal(make_coherent(raw, lookback(closes)), expected)


def test_a_lookback_of_zeros_gives_no_floor():
    past = np.zeros((1, 3, 6), dtype=np.float32)
    raw = one_bar(-1, 1, -2, 0, 5, 50)
    np.testing.assert_array_equal(make_coherent(raw, past), raw)


def test_zeros_among_prices_are_no_lowest_price():
    past = lookback([8, 9])
    past[0, 0] = 0
    raised = make_coherent(one_bar(-1, -1, -1, -1, 0, 0), past)
    assert raised[0, 0, 0, CLOSE] == pytest.approx(0.06)


def test_each_series_has_its_own_floor():
    raw = np.full((3, 2, 1, 6), -1, dtype=np.float32)
    raised = make_coherent(raw, lookback([8, 9], [103, 104], [-4, -5]))
    closes = raised[:, :, 0, CLOSE].tolist()
    assert closes == [pytest.approx([0.05] * 2), pytest.approx([1.0] * 2), [-1, -1]]


@pytest.mark.parametrize(
    ("paths", "past"),
    [((1, 2, 6), (1, 2, 6)), ((2, 1, 1, 6), (1, 2, 6)), ((1, 1, 1, 5), (1, 2, 6))],
)
def test_shapes_that_do_not_agree_are_refused(paths, past):
    with pytest.raises(BarDataError, match=re.escape(f"got {paths} and {past}")):
        make_coherent(np.zeros(paths, np.float32), np.zeros(past, np.float32))


NUMBERS = st.floats(-1e6, 1e6, width=32)
RAW = arrays(
    np.float32, st.tuples(st.integers(1, 3), st.just(5), st.just(2), st.just(6)), elements=NUMBERS
)
PRICES = st.floats(0.125, 1e6, width=32)
SIGNS = st.sampled_from([1, -1])


@st.composite
def cases(draw):
    raw = draw(RAW)
    past = draw(arrays(np.float32, (len(raw), 3, 6), elements=PRICES))
    return raw, past * np.float32(draw(SIGNS))


def is_coherent(bars, past):
    prices = bars[..., : CLOSE + 1]
    is_priced = (past[..., : CLOSE + 1] > 0).all()
    return (
        (bars[..., HIGH] == prices.max(axis=-1)).all()
        and (bars[..., LOW] == prices.min(axis=-1)).all()
        and (bars[..., VOLUME] >= 0).all()
        and (bars[..., AMOUNT] >= 0).all()
        and (not is_priced or (prices > 0).all())
    )


@given(cases())
def test_coherent_bars_are_a_fixed_point_that_the_mean_keeps(case):
    raw, past = case
    before = raw.tobytes(), past.tobytes()
    once = make_coherent(raw, past)
    assert (raw.tobytes(), past.tobytes()) == before and not np.shares_memory(once, raw)
    assert once.dtype == np.float32 and is_coherent(once, past)
    assert make_coherent(once, past).tobytes() == once.tobytes()
    mean = once.mean(axis=1, keepdims=True)
    assert is_coherent(mean, past)


@given(cases())
def test_what_is_coherent_already_is_left_bit_for_bit(case):
    """The past itself will do, in an order that makes its bars bars."""
    _, past = case
    bars = np.concatenate([np.sort(past[..., : CLOSE + 1]), np.abs(past[..., VOLUME:])], axis=-1)
    bars = bars[..., [1, 3, 0, 2, 4, 5]][:, None]
    assert make_coherent(bars, past).tobytes() == bars.tobytes()


@given(cases())
def test_only_what_is_wrong_changes(case):
    raw, past = case
    changed = make_coherent(raw, past) != raw
    floor = 0.01 * past[..., : CLOSE + 1].min(axis=(1, 2))[:, None, None]
    prices_fine = (raw[..., : CLOSE + 1] >= floor[..., None]).all(axis=-1) | (floor < 0)
    assert not changed[..., [0, CLOSE]][prices_fine].any()
    assert not changed[..., VOLUME:][raw[..., VOLUME:] >= 0].any()


# --- the forecast ---


def test_the_mean_and_the_median_are_frames_by_time():
    mean, median = forecast().mean, forecast().median
    for frame in (mean, median):
        assert list(frame.columns) == list(BAR_COLUMNS)
        assert frame.index.equals(pd.DatetimeIndex(DAYS)) and frame.index.name is None
        assert set(frame.dtypes) == {np.dtype(np.float32)}
    np.testing.assert_allclose(mean["close"], [10, 10], rtol=1e-6)
    np.testing.assert_allclose(mean["amount"], [1000, 1000], rtol=1e-6)
    np.testing.assert_allclose(median["close"], [10, 9.95], rtol=1e-6)
    np.testing.assert_allclose(median["low"], [7, 6.95], rtol=1e-6)


def test_quantiles_have_columns_by_name_and_level():
    table = forecast().quantiles([0.5, 0.0, 1])
    assert table.columns.names == ["column", "level"] and table.shape == (2, 18)
    assert table["close"].columns.tolist() == [0.5, 0.0, 1.0]
    np.testing.assert_allclose(table["close"], [[10, 9, 11], [9.95, 8, 12.1]], rtol=1e-6)
    np.testing.assert_allclose(table[("high", 1.0)], [13, 14.1], rtol=1e-6)


def test_one_level_needs_no_list():
    table = forecast().quantiles(1 / 3)  # of four paths the second
    np.testing.assert_allclose(table["close"][1 / 3], [10, 9.9], rtol=1e-6)


@pytest.mark.parametrize("levels", [1.5, [0.1, -0.1], [], "half", [np.nan], [[0.1]]])
def test_a_level_outside_zero_to_one_is_refused(levels):
    with pytest.raises(ConfigError, match=r"in \[0, 1\]"):
        forecast().quantiles(levels)


@pytest.mark.parametrize(
    ("condition", "shares"),
    [
        (lambda bars: bars.close > bars.last_close, [0.25, 0.25]),
        (lambda bars: bars.close >= bars.last_close, [0.75, 0.5]),
        (lambda bars: (bars.low < 6.5) | (bars.close > 12), [0.25, 0.5]),
        (lambda bars: ~(bars.close > bars.last_close) & (bars.volume == 100), [0.75, 0.75]),
        (lambda bars: bars.close / bars.last_close - 1 > 0.05, [0.25, 0.25]),
        (lambda bars: bars.high > -bars.open, [1, 1]),
    ],
)
def test_a_condition_is_asked_of_each_bar(condition, shares):
    found = forecast().prob(condition)
    assert found.index.equals(pd.DatetimeIndex(DAYS))
    assert found.tolist() == shares


def test_a_function_answers_for_whole_paths_or_for_bars():
    touched = forecast().prob(lambda bars: (bars.low < 6.5).any(axis=1))
    assert isinstance(touched, float) and touched == 0.5
    rising = forecast().prob(lambda bars: bars.close > bars.last_close)
    assert rising.tolist() == [0.25, 0.25]
    traded = forecast().prob(lambda bars: bars.amount[:, -1] > bars.volume[:, -1] * 12)
    assert traded == 0.25


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("close > last_close", "lambda bars: bars.close > bars.last_close, got 'close > last"),
        (3, "function of the paths' bars.*got 3"),
        (lambda bars: bars.close, r"bools of shape \(4,\).* or \(4, 2\).*float32"),
        (lambda bars: bars.close[0] > 3, r"gave bool of shape \(2,\)"),
        (lambda bars: True, r"gave bool of shape \(\)"),
        (lambda bars: None, "gave object"),
    ],
)
def test_what_is_no_condition_is_refused(condition, message):
    with pytest.raises(ConfigError, match=message):
        forecast().prob(condition)


def test_returns_go_from_the_last_close_to_a_bar():
    np.testing.assert_allclose(forecast().returns(), [0.21, -0.01, 0, -0.2], atol=1e-6)
    np.testing.assert_allclose(forecast().returns(2), forecast().returns(), atol=0)
    np.testing.assert_allclose(forecast().returns(1), [0.1, -0.1, 0, 0], atol=1e-6)


@pytest.mark.parametrize("horizon", [0, 3, -1, 1.0, "1"])
def test_a_bar_that_was_not_forecast_has_no_return(horizon):
    with pytest.raises(ConfigError, match="horizon"):
        forecast().returns(horizon)


def test_a_spread_has_no_return():
    with pytest.raises(BarDataError, match=r"SPREAD: a return needs a positive last close, got -2"):
        forecast(last_close=-2.0, name="SPREAD").returns()


def test_volatility_is_the_root_of_the_mean_square_log_return():
    up = np.log(1.1)
    expected = [up, np.sqrt((np.log(0.9) ** 2 + up**2) / 2), 0, np.log(10 / 8) / np.sqrt(2)]
    np.testing.assert_allclose(forecast().volatility(), expected, rtol=1e-6)


def test_volatility_of_raw_paths_names_the_close_that_is_not_positive():
    with pytest.raises(BarDataError, match=r"path 1, bar 2, closes at -3; coherent=True"):
        forecast([[10, 11], [10, -3]]).volatility()
    with pytest.raises(BarDataError, match="the last close seen is 0"):
        forecast(last_close=0.0).volatility()


def test_the_long_table_has_a_row_for_each_bar_of_each_path():
    made = forecast()
    table = made.to_frame()
    assert table.index.names == ["path", "datetime"] and table.shape == (8, 6)
    np.testing.assert_allclose(table.loc[3, "close"], [10, 8])
    assert table.loc[(0, pd.Timestamp("2024-01-03")), "close"] == pytest.approx(12.1)
    table.loc[:, "close"] = 0.0
    assert made.paths[0, 0, CLOSE] == 11


def test_a_forecast_says_what_it_is():
    text = repr(forecast([[11, 12], [9, 8]], name="600519"))
    assert text == (
        "<Forecast 600519: 2 paths of 2 bars, 2024-01-02 to 2024-01-03, not anchored, "
        "uncalibrated; expected return +0.00%, 5-95 %: -18.00% to +18.00%>"
    )
    times = DAYS + np.timedelta64(15, "h")
    spread = Forecast(bars_of([[-1, -2]]), times, -1.0, anchored=True)
    assert repr(spread) == (
        "<Forecast 1 paths of 2 bars, 2024-01-02 15:00 to 2024-01-03 15:00, anchored, "
        "uncalibrated; expected close -2, 5-95 %: -2 to -2>"
    )


@pytest.mark.parametrize(
    ("shape", "times", "message"),
    [
        ((2, 6), DAYS, "paths of shape"),
        ((4, 2, 5), DAYS, "paths of shape"),
        ((0, 2, 6), DAYS, "paths of shape"),
        ((4, 2, 6), DAYS[:1], r"M: expected 2 times.* \(1,\)"),
    ],
)
def test_shapes_of_a_forecast_must_agree(shape, times, message):
    with pytest.raises(BarDataError, match=message):
        Forecast(np.zeros(shape, np.float32), times, 1.0, "M")


def test_calibrated_paths_are_read_as_the_quantiles_that_they_are():
    """Four of them stand at 1/8, 3/8, 5/8 and 7/8 of a distribution, not at 0 and 1."""
    paths = np.zeros((4, 1, 6), dtype=np.float32)
    paths[..., CLOSE] = np.array([[8], [9], [11], [12]])
    found = Forecast(paths, DAYS[:1], 10.0, calibration="calibrated, until 2020-01-01")
    table = found.quantiles([0.05, 0.125, 0.5, 0.625, 0.95])["close"]
    np.testing.assert_allclose(table, [[8, 8, 10, 11, 12]], rtol=1e-6)
