"""Signals of hand-made paths, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from kronos_qlib.errors import BarDataError, ConfigError
from kronos_qlib.schema import CLOSE, HIGH, LOW, OPEN
from kronos_qlib.signals.paths import DEFAULT_SIGNALS, SIGNALS, check_signals, signals_of

# One window, last close 100; four paths of two bars.
CLOSES = [[110, 120], [100, 90], [105, 100], [95, 130]]
# Returns, bar by bar: +10 +20 | 0 -10 | +5 0 | -5 +30 (percent).


def paths_of(closes, high=0.0, low=0.0) -> np.ndarray:
    """(1, P, H, 6): bars that open and close alike, with shadows of money above and below."""
    closes = np.asarray(closes, dtype=np.float32)[None]
    paths = np.zeros((*closes.shape, 6), dtype=np.float32)
    paths[..., OPEN] = paths[..., CLOSE] = closes
    paths[..., HIGH], paths[..., LOW] = closes + high, closes - low
    return paths


def one(name, closes=CLOSES, last_close=100.0, **shadows) -> float:
    found = signals_of(paths_of(closes, **shadows), np.array([last_close]), [name])
    return float(found[name][0])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("expected_return", 0.0625),  # the mean of all eight closes is 106.25
        ("last_return", 0.10),  # (20 - 10 + 0 + 30) / 4
        ("return_at@1", 0.025),  # (10 + 0 + 5 - 5) / 4
        ("return_at@2", 0.10),
        ("max_return", 0.1375),  # (20 + 0 + 5 + 30) / 4
        ("min_return", -0.0125),  # (10 - 10 + 0 - 5) / 4
        ("median_return", 0.10),  # of -10, 0, 20, 30: halfway from 0 to 20
        ("prob_up", 0.5),  # the third path ends where it began: not above
        ("quantile@0.5", 0.10),
        ("quantile@0.25", -0.025),  # a quarter of three steps: 3/4 of the way from -10 to 0
        # sqrt((10^2 + 10^2) / 2), sqrt((0 + 10^2) / 2), sqrt((5^2 + 5^2) / 2), sqrt((5^2+35^2)/2)
        ("volatility", (10 + np.sqrt(50) + 5 + 25) / 400),
        ("dispersion", np.sqrt(250) / 100),  # deviations 10, -20, -10, 20: mean square 250
        ("return_over_volatility", 0.0625 / ((40 + np.sqrt(50)) / 400)),
        ("expected_shortfall@0.05", -0.10),  # one path at least: the worst
        ("expected_shortfall@0.5", -0.05),  # the worse half: -10 and 0
        ("skew", 0.0),  # deviations 10, -20, -10, 20 cancel in the third power
    ],
)
def test_a_signal_is_what_its_line_says(name, expected):
    assert one(name) == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_skew_of_one_path_far_above():
    # Deviations -1, -1, -1, 3 (times 10): mean cube 6, variance 3.
    assert one("skew", [[100], [100], [100], [140]]) == pytest.approx(6 / 3**1.5, rel=1e-5)


def test_range_reaches_from_the_lowest_to_the_highest_price_of_a_path():
    # With shadows of 2 above and 1 below: 122 - 109, 102 - 89, 107 - 99, 132 - 94.
    assert one("range", high=2.0, low=1.0) == pytest.approx((13 + 13 + 8 + 38) / 400, rel=1e-5)


def test_range_takes_every_price_where_a_drawn_high_lies_below_the_close():
    paths = paths_of([[110]])
    paths[..., HIGH] = 100
    found = signals_of(paths, np.array([100.0]), ["range"])["range"]
    assert found[0] == pytest.approx(0.10, rel=1e-5)


def test_paths_that_never_move_give_zeros_and_no_noise():
    still = [[100.1] * 3] * 5
    names = [name for name in DEFAULT_SIGNALS if name != "prob_up"]
    found = signals_of(paths_of(still), np.array([np.float32(100.1)]), names)
    assert {name: float(value[0]) for name, value in found.items()} == dict.fromkeys(names, 0.0)


def test_every_signal_has_a_line_and_an_example_where_it_takes_a_number():
    for name, signal in SIGNALS.items():
        assert signal.definition and "\n" not in signal.definition
        check_signals([signal.example if signal.takes else name])
    check_signals(DEFAULT_SIGNALS)


def test_a_unit_of_money_changes_nothing():
    """A share quoted in cents must rank like itself quoted in yuan."""
    dear = signals_of(paths_of(CLOSES) * 100, np.array([10_000.0]), DEFAULT_SIGNALS)
    cheap = signals_of(paths_of(CLOSES), np.array([100.0]), DEFAULT_SIGNALS)
    for name in DEFAULT_SIGNALS:
        np.testing.assert_allclose(dear[name], cheap[name], rtol=1e-5, atol=1e-9)


def test_a_window_has_the_same_bits_whatever_the_others_are():
    rng = np.random.default_rng(0)
    paths = rng.uniform(90, 110, (7, 5, 4, 6)).astype(np.float32)
    last = rng.uniform(90, 110, 7)
    together = signals_of(paths, last, DEFAULT_SIGNALS)
    alone = signals_of(paths[3:4], last[3:4], DEFAULT_SIGNALS)
    for name in DEFAULT_SIGNALS:
        assert together[name][3] == alone[name][0], name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("expected_retrun", "did you mean 'expected_return'"),
        ("nonsense", "known: expected_return"),
        ("quantile", "takes a level between 0 and 1 such as 'quantile@0.05'"),
        ("quantile@1.5", "takes a level"),
        ("expected_shortfall@x", "takes a share"),
        ("return_at@0", "takes a bar to come such as 'return_at@5'"),
        ("return_at@1.5", "takes a bar"),
        ("skew@2", "takes no number"),
        ("return_at@3", "the paths have 2 bars"),
    ],
)
def test_a_name_that_cannot_work_is_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        one(name)


@pytest.mark.parametrize("last_close", [0.0, -3.0, np.nan])
def test_a_last_close_without_returns_is_named(last_close):
    with pytest.raises(BarDataError, match="window 0: a return needs a positive last close"):
        one("last_return", last_close=last_close)


def test_a_path_that_is_not_finite_is_named():
    with pytest.raises(BarDataError, match="window 0: a drawn price is not finite"):
        one("last_return", [[np.inf]])
