"""The picture of a forecast, read back from what was drawn."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.errors import ConfigError
from kronos_qlib.evaluation.forecasts.candles import candle_figure, fan_bands

PAST = pd.DataFrame(
    {
        "open": [10.0, 11.0, 10.0],
        "high": [12.0, 11.5, 10.5],
        "low": [9.0, 9.5, 9.8],
        "close": [11.0, 10.0, 10.0],
        "volume": [5.0, 6.0, 7.0],
    },
    index=pd.bdate_range("2024-01-10", periods=3),
)
AHEAD = pd.bdate_range("2024-01-15", periods=2)
MEAN = pd.DataFrame({"close": [10.5, 10.6], "volume": [3.0, 4.0]}, index=AHEAD)
FAN = pd.DataFrame(
    {0.05: [9.5, 9.0], 0.25: [9.8, 9.6], 0.5: [10.4, 10.5], 0.95: [11.0, 12.0]}, index=AHEAD
)


def test_candles_fan_and_lines_are_where_they_belong():
    figure = candle_figure(PAST, MEAN, FAN, "SH600000")
    price, volume = figure.axes
    bodies = sorted((bar.get_x() + 0.32, bar.get_y(), bar.get_height()) for bar in price.patches)
    assert bodies == [pytest.approx(each) for each in [(0, 10, 1), (1, 10, 1), (2, 10, 0)]]
    lines = {line.get_label(): line for line in price.lines}
    assert lines["median"].get_xydata().tolist() == [[2, 10], [3, 10.4], [4, 10.5]]
    assert lines["mean"].get_ydata().tolist() == [10, 10.5, 10.6]
    (band,) = [each for each in price.collections if each.get_label() == "90% of the paths"]
    low, high = band.get_datalim(price.transData).intervaly
    assert (low, high) == (9, 12)
    assert [bar.get_height() for bar in volume.patches] == [5, 6, 7, 3, 4]
    assert [label.get_text() for label in volume.get_xticklabels()][::4] == [
        "2024-01-10",
        "2024-01-16",
    ]


def test_a_series_without_volume_has_one_panel():
    assert len(candle_figure(PAST.assign(volume=0.0), MEAN, FAN, "").axes) == 1


def test_bands_are_the_levels_that_mirror_each_other():
    assert fan_bands([0.5, 0.95, 0.25, 0.05, 0.75, 0.9]) == [(0.05, 0.95), (0.25, 0.75)]


def test_tables_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="got 3, 1 and 2 rows"):
        candle_figure(PAST, MEAN.iloc[:1], FAN, "")


def test_paths_and_what_came_start_from_the_last_close():
    times = pd.bdate_range("2024-01-01", periods=8)
    past = pd.DataFrame(
        {"open": 10.0, "high": 11.0, "low": 9.0, "close": 10.5, "volume": 0.0}, index=times[:5]
    )
    mean = pd.DataFrame({"close": [10.0, 10.2, 10.4], "volume": 0.0}, index=times[5:])
    quantiles = pd.DataFrame({0.05: 9.0, 0.5: 10.0, 0.95: 11.0}, index=times[5:])
    paths, came = np.array([[10.0, 11.0, 12.0], [10.0, 9.0, 8.0]]), mean["close"] + 1
    figure = candle_figure(past, mean, quantiles, "Lines", paths=paths, came=came)
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert lines["2 of them"].get_ydata().tolist() == [10.5, 10.0, 11.0, 12.0]
    assert lines["what came"].get_ydata().tolist() == pytest.approx([10.5, 11.0, 11.2, 11.4])
    assert lines["what came"].get_xdata().tolist() == [4, 5, 6, 7]
    with pytest.raises(ConfigError, match="came: expected 3 bars"):
        candle_figure(past, mean, quantiles, "Lines", came=came.iloc[:2])
