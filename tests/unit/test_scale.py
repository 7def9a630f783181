"""The scale of a window: no factor on a whole column changes what the network is given."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kronos_qlib.data.windows.bar_table import BarTable
from kronos_qlib.data.windows.find import windows_to_score
from kronos_qlib.data.windows.gather import gather
from kronos_qlib.data.windows.scale import WindowScale
from kronos_qlib.inference.predictor import KronosPredictor
from kronos_qlib.model.tokenizer import KronosTokenizer
from kronos_qlib.model.transformer import Kronos
from kronos_qlib.schema import BAR_COLUMNS, CLOSE

FACTORS = (1e-6, 1e-3, 1e-2, 0.1, 1 / 7, 3.0, 1000.0, 1e6)


def walks(names=12, bars=40, level=10.0, deviation=0.01, seed=0):
    """(names, bars, 6) float32 daily bars about a level."""
    rng = np.random.default_rng(seed)
    close = level * np.exp(rng.normal(0, deviation, (names, bars)).cumsum(axis=1))
    opened = close * np.exp(rng.normal(0, deviation / 3, close.shape))
    high = np.maximum(opened, close) * (1 + deviation / 2)
    low = np.minimum(opened, close) * (1 - deviation / 2)
    volume = rng.integers(1, 1000, close.shape) * 100.0
    columns = (opened, high, low, close, volume, volume * close)
    return np.stack(columns, axis=-1).astype(np.float32)


def published(past):
    """Mean and spread of the published code."""
    wide = past.astype(np.float64)
    return wide.mean(axis=1, keepdims=True), wide.std(axis=1, keepdims=True) + 1e-5


def prices_times(bars, factor):
    result = bars.copy()
    result[..., :4] = bars[..., :4].astype(np.float64) * factor
    return result


@given(
    level=st.floats(1e-4, 1e4),
    deviation=st.sampled_from([1e-4, 1e-3, 0.02]),
    power=st.integers(-20, 20),
    seed=st.integers(0, 99),
)
def test_a_power_of_two_on_all_columns_changes_nothing(level, deviation, power, seed):
    bars = walks(2, 30, level, deviation, seed)
    found, expected = (
        WindowScale.of(each).to_z(each) for each in (bars * np.float32(2.0**power), bars)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("factor", FACTORS)
def test_no_factor_on_the_prices_changes_z(factor):
    """A split long after rescales history: the floor of 1e-5 was then a part of the spread."""
    bars = walks()
    scaled = prices_times(bars, factor)
    z, expected = (WindowScale.of(each).to_z(each) for each in (scaled, bars))
    # What float32 bars round (6e-8 of the price), in spreads of about 1 % of it.
    np.testing.assert_allclose(z, expected, atol=5e-5)


@pytest.mark.parametrize("factor", [1 / 10, 1 / 100, 1 / 1000])
def test_a_later_split_leaves_old_paths_as_they_were(factor):
    """Scores before and after a split to a thousandth had a correlation of .92."""
    forecaster = KronosPredictor(
        Kronos.from_pretrained("nano"), KronosTokenizer.from_pretrained("nano"), device="cpu"
    )
    bars = walks(40)
    stamps = np.ones((40, 43, 5), dtype=int)
    names = [str(place) for place in range(40)]

    def scores(each):
        paths = forecaster.paths(
            each, stamps[:, :40], stamps[:, 40:], 3, sample_count=10, keys=names
        )
        return paths[:, :, -1, CLOSE].mean(axis=1) / each[:, -1, CLOSE] - 1

    before, after = scores(bars), scores(prices_times(bars, factor))
    assert np.corrcoef(before, after)[0, 1] > 0.99999
    np.testing.assert_allclose(after, before, atol=1e-5)


def test_bars_of_ordinary_prices_are_the_published_ones():
    """The same z stands for the same bar, to a millionth of the price per unit of z."""
    for level in (6.0, 10.0, 30.0, 300.0, 60_000.0):
        bars = walks(level=level)
        mean, spread = published(bars)
        scale = WindowScale.of(bars)
        np.testing.assert_array_equal(scale.mean, mean)
        largest = np.abs(bars).max(axis=1, keepdims=True)
        assert (np.abs(scale.spread - spread) <= 1.001e-6 * largest).all()
    exactly = np.full((1, 9, 6), 10.0, np.float32)
    np.testing.assert_allclose(WindowScale.of(exactly).spread, 1e-5, rtol=1e-12)


@pytest.mark.parametrize("level", [1e-12, 1e-5, 1.0, 9.99, 1e5])
def test_a_price_that_stands_still_stays_at_zero(level):
    """Whatever a constant is and however float32 rounds it, its z is near 0 and comes back."""
    still = np.full((1, 60, 6), level, np.float32)
    rounded = still.copy()
    rounded[0, ::7] = np.nextafter(rounded[0, ::7], np.float32(np.inf))
    for bars, limit in ((still, 1e-6), (rounded, 0.15)):
        scale = WindowScale.of(bars)
        z = scale.to_z(bars)
        assert np.abs(z).max() < limit
        np.testing.assert_allclose(scale.to_bars(z), bars, rtol=1e-7)


def test_columns_of_zeros_have_the_published_floor():
    bars = walks()
    bars[..., 4:] = 0
    scale = WindowScale.of(bars)
    assert (scale.spread[..., 4:] == 1e-5).all()
    assert (scale.to_z(bars)[..., 4:] == 0).all()
    assert (scale.to_bars(np.zeros_like(bars))[..., 4:] == 0).all()


def test_a_spread_about_zero_is_scaled_by_its_largest_magnitude():
    """Prices below zero have a level too: that of their magnitude."""
    bars = walks() - np.float32(10)
    down = WindowScale.of(-bars), WindowScale.of(bars)
    np.testing.assert_array_equal(down[0].spread, down[1].spread)
    scaled = (WindowScale.of(each).to_z(each) for each in (bars * np.float32(2**-30), bars))
    np.testing.assert_allclose(*scaled, rtol=1e-6)


def test_windows_of_a_table_are_scaled_by_the_same_rule():
    bars = walks(1, 60)[0]
    days = pd.date_range("2024-01-01", periods=60)
    found = []
    for factor in (1.0, 2.0**-10):
        index = pd.MultiIndex.from_product([["a"], days])
        table = pd.DataFrame(prices_times(bars, factor), index=index, columns=list(BAR_COLUMNS))
        windows = windows_to_score(BarTable.from_frame(table), 20)
        found.append(gather(windows, np.arange(len(windows))))
    np.testing.assert_allclose(found[0].z, found[1].z, rtol=1e-6, atol=1e-7)
    one = WindowScale.of(bars[None, :20])
    np.testing.assert_allclose(found[0].spread[0], one.spread[0, 0], rtol=1e-12)
    np.testing.assert_allclose(found[0].z[0], one.to_z(bars[None, :20])[0], rtol=1e-6)
