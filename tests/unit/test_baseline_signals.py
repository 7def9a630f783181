"""Baselines of hand-made bars, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from kronos_qlib.errors import BarDataError, ConfigError
from kronos_qlib.schema import AMOUNT, CLOSE
from kronos_qlib.signals.past_bars import (
    BASELINES,
    bars_needed,
    baseline_of,
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
