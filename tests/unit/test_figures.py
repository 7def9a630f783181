"""The equity figure: what it shows, that it reads, and that it leaves no global state behind."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.evaluation.figures import equity_figure, training_figure
from kronos_qlib.evaluation.metrics import UndefinedMetricError


@pytest.fixture
def report():
    rng = np.random.default_rng(3)
    bench = rng.normal(0, 0.01, 120)
    columns = {"return": bench + 0.001, "bench": bench, "cost": 0.0004, "turnover": 0.4}
    return pd.DataFrame(columns, index=pd.bdate_range("2022-07-01", periods=120))


def test_the_lines_are_compounded_returns(report):
    wealth, fall = equity_figure(report, "demo").axes
    after, before, bench = (line.get_ydata() for line in wealth.get_lines()[:3])
    net = report["return"] - report["cost"]
    assert after == pytest.approx((1 + net).cumprod() - 1)
    assert before == pytest.approx((1 + report["return"]).cumprod() - 1)
    assert bench == pytest.approx((1 + report["bench"]).cumprod() - 1)
    assert fall.get_lines()[0].get_ydata().max() <= 0


def test_the_legend_says_which_line_paid_costs(report):
    legend = equity_figure(report, "demo").axes[0].get_legend()
    names = [text.get_text().split(" (")[0] for text in legend.get_texts()]
    assert names == ["Strategy, after cost", "Strategy, before cost", "Benchmark"]


def labels_in_view(labels, coordinate, limits):
    """Matplotlib keeps labels for ticks just outside the limits too, and does not draw them."""
    low, high = sorted(limits)
    return [label for label in labels if low <= label.get_position()[coordinate] <= high]


@pytest.mark.parametrize("days", [2, 30, 120])
def test_no_text_is_clipped(report, days):
    figure = equity_figure(report.tail(days), "lightgbm, CSI300, 2022-07 to 2022-12")
    figure.canvas.draw()
    texts = [figure._suptitle]
    for axes in figure.axes:
        texts += [axes.yaxis.label, axes._right_title, axes.xaxis.offsetText]
        texts += labels_in_view(axes.get_yticklabels(), 1, axes.get_ylim())
        texts += labels_in_view(axes.get_xticklabels(), 0, axes.get_xlim())
    page = figure.bbox
    written = [text for text in texts if text.get_text() and text.get_visible()]
    assert len(written) > 10
    for text in written:
        box = text.get_window_extent()
        inside = box.x0 >= page.x0 and box.x1 <= page.x1 and box.y0 >= page.y0 and box.y1 <= page.y1
        assert inside, f"{text.get_text()!r} reaches past the page: {box} in {page}"


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
from kronos_qlib.evaluation.figures import equity_figure, training_figure
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
