"""Baselines of hand-made bars, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from kronos_qlib.errors import BarDataError, ConfigError
from kronos_qlib.schema import AMOUNT, CLOSE
from kronos_qlib.signals.baselines import (
    BASELINES,
    bars_needed,
    baseline_of,
    historical_volatility,
    last_price_paths,
    random_walk_paths,
)


def bars_of(*closes, amounts=None) -> np.ndarray:
    bars = np.ones((1, len(closes), 6), dtype=np.float32)
    bars[0, :, CLOSE] = closes
    if amounts is not None:
        bars[0, :, AMOUNT] = amounts
    return bars


def test_momentum_skips_the_newest_bar():
    # Two bars up to the last but one: from 10 to 12. The newest close is not read.
    assert baseline_of("momentum", bars_of(7, 10, 11, 12, 99), 2, 1) == pytest.approx(0.2)
    # By default 20 bars up to the last but one: from the first of 22 to the 21st.
    closes = [100.0, *[50.0] * 19, 130.0, 7.0]
    assert baseline_of("momentum", bars_of(*closes)) == pytest.approx(0.3)


def test_reversal_is_minus_the_return_over_five_bars():
    assert baseline_of("reversal", bars_of(1, 100, 90, 80, 70, 60, 110)) == pytest.approx(-0.1)


def test_low_volatility_is_minus_the_deviation_of_log_returns():
    # Log returns 1, -1 of the newest two; the jump before them is not counted.
    bars = bars_of(500, 1, np.e, 1)
    assert baseline_of("low_volatility", bars, 2) == pytest.approx(-1, rel=1e-6)
    assert baseline_of("low_volatility", bars) < -2, "twenty returns reach the jump"


def test_low_amount_is_minus_the_log_of_mean_money():
    bars = bars_of(1, 1, 1, amounts=[1000, 3, 5])
    assert baseline_of("low_amount", bars, 2) == pytest.approx(-np.log(5))


@pytest.mark.parametrize("kind", BASELINES)
def test_bars_before_those_needed_change_nothing(kind):
    rng = np.random.default_rng(0)
    needed = bars_needed(kind)
    bars = rng.uniform(9, 11, (3, needed + 4, 6)).astype(np.float32)
    found = baseline_of(kind, bars)
    assert (baseline_of(kind, bars[:, -needed:]) == found).all()
    shorter = baseline_of(kind, bars[:, 1 - needed :])
    assert np.isfinite(shorter).all()
    assert (shorter != found).all(), "the oldest bar that it needs does count"
    assert (baseline_of(kind, bars[1:2]) == found[1]).all()


@pytest.mark.parametrize("kind", BASELINES)
def test_a_window_of_two_bars_has_every_baseline(kind):
    assert np.isfinite(baseline_of(kind, bars_of(10, 11))).all()


def test_what_cannot_work_is_refused():
    with pytest.raises(ConfigError, match="says the same of every instrument"):
        baseline_of("last_price", bars_of(1, 1))
    with pytest.raises(ConfigError, match="baselines are momentum"):
        baseline_of("momentun", bars_of(1, 1))
    with pytest.raises(ConfigError, match="counts at least 2 bars"):
        baseline_of("low_volatility", bars_of(1, 1), 1)
    with pytest.raises(BarDataError, match="window 0: closes are to be positive"):
        baseline_of("reversal", bars_of(1, 0, 1))
    with pytest.raises(BarDataError, match="window 0: closes are to be positive"):
        random_walk_paths(np.array([[1.0, -1.0]]), 2, 2, np.random.default_rng(0))


def test_the_last_price_stays():
    paths = last_price_paths(np.array([[1.0, 2.0], [5.0, 4.0]]), 3)
    assert paths.shape == (2, 1, 3)
    assert (paths[0] == 2).all() and (paths[1] == 4).all()


def test_the_random_walk_has_the_windows_own_volatility_and_no_drift():
    closes = np.array([[100, 100 * np.exp(0.02), 100], [50, 50 * np.exp(0.01), 50]])
    assert historical_volatility(closes) == pytest.approx([0.02, 0.01])
    paths = random_walk_paths(closes, 4, 50_000, np.random.default_rng(0))
    assert paths.shape == (2, 50_000, 4)
    moves = np.log(paths / np.array([100, 50])[:, None, None])
    for bar in range(4):
        grown = np.sqrt(bar + 1)
        assert moves[0, :, bar].std() == pytest.approx(0.02 * grown, rel=0.02)
        assert moves[1, :, bar].std() == pytest.approx(0.01 * grown, rel=0.02)
        # Four standard errors of the mean of 50,000.
        assert abs(paths[0, :, bar].mean() / 100 - 1) < 4 * 0.02 * grown / np.sqrt(50_000)
    assert abs(np.corrcoef(moves[0, :, 0], moves[1, :, 0])[0, 1]) < 0.02, "no chance is shared"
