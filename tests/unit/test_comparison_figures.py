"""Figures show what their tables say: rows in order, one colour for what is significant."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from kronos_qlib.errors import ConfigError
from kronos_qlib.evaluation.candles import candle_figure
from kronos_qlib.evaluation.comparison import Comparison, Signal, common_equity, compare_signals
from kronos_qlib.evaluation.comparison_figures import comparison_figure, interval_figure
from kronos_qlib.evaluation.figures import BENCHMARK, FALL, STRATEGY


def test_intervals_are_coloured_by_the_side_of_zero_they_lie_on():
    table = pd.DataFrame(
        {"mean": [0.2, 0.0, -0.2], "low": [0.1, -0.1, -0.3], "high": [0.3, 0.1, -0.1]},
        index=["good", "unknown", "bad"],
    )
    axes = interval_figure(table, "Three", "return, bp").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(table.index)
    points = [line for line in axes.lines if line.get_marker() == "o"]
    assert [to_hex(line.get_color()).upper() for line in points] == [STRATEGY, BENCHMARK, FALL]
    assert axes.yaxis_inverted(), "the first row is at the top"
    with pytest.raises(ConfigError, match="no row"):
        interval_figure(table.iloc[:0], "None", "return")


def make_comparison(with_equity: bool) -> Comparison:
    rng = np.random.default_rng(0)
    days = pd.bdate_range("2024-01-01", periods=40, name="datetime")
    names = pd.Index([f"S{number}" for number in range(12)], name="instrument")
    index = pd.MultiIndex.from_product([days, names])
    label = pd.Series(rng.normal(0, 0.02, len(index)), index=index)
    noise = [pd.Series(rng.normal(0, 0.02, len(index)), index=index) for _ in range(2)]
    signals = {
        "knows": Signal(label + 0.5 * noise[0], label),
        "guesses": Signal(noise[1], label),
    }
    report = pd.DataFrame(
        rng.normal(0, 0.01, (len(days), 3)), days, ["net_return", "excess_return", "bench"]
    )
    return Comparison(
        table=pd.DataFrame(index=list(signals)),
        signals=compare_signals(signals),
        equity=common_equity({"knows": report, "guesses": report}) if with_equity else None,
        settings=pd.DataFrame(),
    )


@pytest.mark.parametrize("with_equity", [True, False])
def test_a_comparison_shows_ranks_wealth_and_every_test(with_equity):
    comparison = make_comparison(with_equity)
    figure = comparison_figure(comparison, "Two runs")
    ranks, *wealth, tests = figure.axes
    assert len(wealth) == with_equity
    assert comparison.signals is not None
    total = comparison.signals.daily["knows"].sum()
    assert ranks.lines[0].get_ydata()[-1] == pytest.approx(total)
    shown = [label.get_text() for label in tests.get_yticklabels()]
    assert shown == ["knows\nless guesses", "knows + guesses\nless knows"]


def test_one_run_is_no_comparison():
    comparison = make_comparison(False)
    alone = Comparison(
        table=comparison.table, signals=None, equity=None, settings=comparison.settings
    )
    with pytest.raises(ConfigError, match="two runs"):
        comparison_figure(alone, "One")


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
