"""The figures: what they show, that they read, and that they leave no global state behind."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from kronos_qlib.errors import ConfigError
from kronos_qlib.evaluation.figures import (
    BENCHMARK,
    FALL,
    STRATEGY,
    training_figure,
)
from kronos_qlib.evaluation.portfolio.costs import cost_table
from kronos_qlib.evaluation.portfolio.metrics import UndefinedMetricError
from kronos_qlib.evaluation.portfolio.portfolio_figures import cost_figure, equity_figure
from kronos_qlib.evaluation.ranking import groups, stability
from kronos_qlib.evaluation.ranking import information_coefficient as ic
from kronos_qlib.evaluation.ranking.signal_figures import (
    autocorrelation_figure,
    decay_figure,
    group_figure,
    ic_figure,
    interval_figure,
)


@pytest.fixture
def report():
    rng = np.random.default_rng(3)
    bench = rng.normal(0, 0.01, 120)
    columns = {"return": bench + 0.001, "bench": bench, "cost": 0.0004, "turnover": 0.4}
    return pd.DataFrame(columns, index=pd.bdate_range("2022-07-01", periods=120))


def test_the_lines_are_compounded_returns(report):
    wealth, excess, fall = equity_figure(report, "demo").axes
    after, before, bench = (line.get_ydata() for line in wealth.get_lines()[:3])
    net = report["return"] - report["cost"]
    assert after == pytest.approx((1 + net).cumprod() - 1)
    assert before == pytest.approx((1 + report["return"]).cumprod() - 1)
    assert bench == pytest.approx((1 + report["bench"]).cumprod() - 1)
    against = ((1 + net) / (1 + report["bench"])).cumprod() - 1
    assert excess.get_lines()[0].get_ydata() == pytest.approx(against)
    deepest, shallower = (line.get_ydata().min() for line in fall.get_lines()[:2])
    assert deepest < shallower < 0
    assert deepest == pytest.approx(((1 + net).cumprod() / (1 + net).cumprod().cummax() - 1).min())


def test_the_legend_says_which_line_paid_costs(report):
    legend = equity_figure(report, "demo").axes[0].get_legend()
    names = [text.get_text().split(" (")[0] for text in legend.get_texts()]
    assert names == ["Strategy, after cost", "Strategy, before cost", "Benchmark"]


def labels_in_view(labels, coordinate, limits):
    """Matplotlib keeps labels for ticks just outside the limits too, and does not draw them."""
    low, high = sorted(limits)
    return [label for label in labels if low <= label.get_position()[coordinate] <= high]


def assert_nothing_is_clipped(figure):
    figure.canvas.draw()
    texts = [figure._suptitle]
    for axes in figure.axes:
        texts += [axes.yaxis.label, axes.xaxis.label, axes._left_title, axes.xaxis.offsetText]
        texts += labels_in_view(axes.get_yticklabels(), 1, axes.get_ylim())
        texts += labels_in_view(axes.get_xticklabels(), 0, axes.get_xlim())
    page = figure.bbox
    written = [text for text in texts if text.get_text() and text.get_visible()]
    assert len(written) > 8
    for text in written:
        box = text.get_window_extent()
        inside = box.x0 >= page.x0 and box.x1 <= page.x1 and box.y0 >= page.y0 and box.y1 <= page.y1
        assert inside, f"{text.get_text()!r} reaches past the page: {box} in {page}"


@pytest.mark.parametrize("days", [2, 30, 120])
def test_no_text_is_clipped(report, days):
    assert_nothing_is_clipped(
        equity_figure(report.tail(days), "lightgbm, CSI300, 2022-07 to 2022-12")
    )


@pytest.fixture(scope="module")
def signal():
    """A score that knows a little of its returns, days by names."""
    rng = np.random.default_rng(8)
    days = pd.bdate_range("2022-07-01", periods=60, name="datetime")
    score = pd.DataFrame(rng.normal(size=(60, 30)), index=days)
    return score, 0.2 * score + rng.normal(size=(60, 30))


def test_the_ic_figure_shows_every_day_and_their_sum(signal):
    daily = ic.daily_ic(*signal)["rank_ic"]
    daily.iloc[7] = np.nan
    figure = ic_figure(daily, ic.summarise(daily), "demo: Rank IC")
    each, total = figure.axes
    assert len(each.collections[0].get_segments()) == 60
    assert total.get_lines()[0].get_ydata()[-1] == pytest.approx(daily.sum())
    assert "59 days" in each.get_title(loc="left")
    assert_nothing_is_clipped(figure)


def test_decay_and_groups_show_means_within_their_intervals(signal):
    score, returns = signal
    table = ic.decay(score, {1: returns, 10: -returns})
    figure = decay_figure(table, "demo: decay")
    (axes,) = figure.axes
    assert axes.get_lines()[0].get_ydata() == pytest.approx(table["mean"].to_numpy())
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "10"]
    assert_nothing_is_clipped(figure)

    daily = groups.group_returns(score, returns, 5)
    table = groups.group_table(daily)
    figure = group_figure(table, groups.monotonicity(daily), "demo: groups")
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert heights == pytest.approx((daily.mean() * 1e4).to_list())
    assert_nothing_is_clipped(figure)


def test_autocorrelation_and_costs(signal, report):
    table = stability.rank_autocorrelation(signal[0], [1, 2, 3])
    figure = autocorrelation_figure(table, 0.85, "demo: autocorrelation")
    assert [bar.get_height() for bar in figure.axes[0].patches] == table["mean"].to_list()
    assert figure.axes[0].get_title(loc="left").startswith("85%")
    assert_nothing_is_clipped(figure)

    varied = report["return"] + np.linspace(-0.001, 0.001, len(report))
    changed = {"turnover": np.linspace(0.2, 0.6, len(report)), "return": varied}
    costs = cost_table(report.assign(**changed))
    figure = cost_figure(costs, 10.0, 25.0, "demo: costs")
    drawn = [line.get_ydata() for line in figure.axes[0].get_lines()[:2]]
    assert drawn[0] == pytest.approx(costs["net_return"].to_numpy())
    assert drawn[1] == pytest.approx(costs["excess_return"].to_numpy())
    assert_nothing_is_clipped(figure)


def test_axes_are_in_percent(report):
    figure = equity_figure(report, "demo")
    figure.canvas.draw()
    for axes in figure.axes:
        assert all(label.get_text().endswith("%") for label in axes.get_yticklabels())


def test_it_saves_as_png(report, tmp_path):
    equity_figure(report, "demo").savefig(tmp_path / "equity.png")
    assert (tmp_path / "equity.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_report_with_a_hole_is_refused(report):
    report.iloc[5, 0] = np.nan
    with pytest.raises(UndefinedMetricError, match="'return'"):
        equity_figure(report, "demo")


def test_importing_loads_no_matplotlib_and_drawing_no_pyplot():
    script = """
import sys
import numpy as np, pandas as pd
from kronos_qlib.evaluation.portfolio.portfolio_figures import equity_figure
assert "matplotlib" not in sys.modules
columns = {"return": [0.1, -0.1], "bench": 0.0, "cost": 0.0, "turnover": 0.5}
report = pd.DataFrame(columns, index=pd.bdate_range("2024-01-01", periods=2))
equity_figure(report, "demo").canvas.draw()
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_training_figure_shows_what_there_is_and_says_what_is_not():
    history = [
        {"epoch": 0.0, "valid_loss": 2.0, "valid_rank_ic": 0.0},
        {"epoch": 1.0, "valid_loss": 1.5, "valid_rank_ic": 0.1, "train_loss": 1.7},
    ]
    steps = [
        {"step": 20.0 * row, "loss": 2.0 / row, "gradient_norm": 1.0, "learning_rate": 0.1 / row}
        for row in (1, 2, 3)
    ]
    figure = training_figure(history, steps, "alpha")
    loss, gradient, measured, curve, rate = figure.axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in loss.get_lines()}
    assert drawn == {"train_loss": [[1, 1.7]], "valid_loss": [[0, 2.0], [1, 1.5]]}
    assert [line.get_label() for line in measured.get_lines()] == ["valid_rank_ic"]
    assert rate.get_lines()[0].get_ydata().tolist() == [0.1, 0.05, 0.1 / 3]
    assert curve.get_lines()[0].get_ydata().tolist() == [2.0, 1.0, 2.0 / 3]
    assert gradient.get_xlabel() == "Step"

    few = training_figure(history, [], "alpha")
    assert [text.get_text() for text in few.axes[1].texts] == ["too few steps for a row"]


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
