"""What paths add to past volatility: it is found where it was planted, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest

from kronos_qlib.calibration.path_terms import LEAST_PATHS, PathTerms
from kronos_qlib.errors import ConfigError

DOF = 5.0


def planted(spread=0.0, centre=0.0, days=60, each=10, paths=30, horizon=3, seed=0):
    """Paths whose spread or mean says something of what came, beyond the known scale."""
    rng = np.random.default_rng(seed)
    windows = days * each
    log_scale = (
        np.log(0.02 * np.sqrt(np.arange(1, horizon + 1))) + rng.normal(size=(windows, 1)) * 0.3
    )
    seen = rng.normal(size=(windows, 1)) * 0.5  # what their spread says
    mean = rng.normal(size=(windows, horizon)) * 0.02
    drawn = rng.normal(size=(windows, paths, horizon)) * np.exp(log_scale + seen + 0.2)[:, None]
    drawn = drawn - drawn.mean(axis=1, keepdims=True) + mean[:, None]
    came = centre * mean + rng.standard_t(DOF, (windows, horizon)) * np.exp(
        log_scale + spread * seen
    )
    day = np.repeat(np.arange(days), each).astype("datetime64[D]")
    return drawn, came, log_scale, DOF, day


def test_information_in_the_spread_is_found():
    terms = PathTerms.fit(*planted(spread=0.8))
    assert terms.spread == pytest.approx(0.8, abs=0.2)
    assert terms.centre == pytest.approx(0, abs=0.1)


def test_information_in_the_mean_is_found():
    terms = PathTerms.fit(*planted(centre=0.7))
    assert terms.centre == pytest.approx(0.7, abs=0.2)
    assert terms.spread == pytest.approx(0, abs=0.1)


def test_both_are_found_together():
    terms = PathTerms.fit(*planted(spread=0.8, centre=0.7))
    assert (terms.spread, terms.centre) == pytest.approx((0.8, 0.7), abs=0.2)


def test_noise_adds_exactly_nothing():
    """Three tries at 5 % each to one side: of a few samples of noise nearly all give 0."""
    found = [PathTerms.fit(*planted(seed=seed, days=40, each=5)) for seed in range(8)]
    zeros = [terms for terms in found if (terms.spread, terms.centre) == (0.0, 0.0)]
    assert len(zeros) >= 7
    drawn, _, log_scale, _, _ = planted()
    centre, same = zeros[0].apply(drawn, log_scale)
    assert (centre == 0).all()
    assert (same == log_scale).all()


def test_few_days_or_few_paths_add_nothing():
    few_days = PathTerms.fit(*planted(spread=0.8, days=19, each=40))
    assert (few_days.spread, few_days.centre) == (0, 0)
    few_paths = PathTerms.fit(*planted(spread=0.8, paths=LEAST_PATHS - 1))
    assert (few_paths.spread, few_paths.centre) == (0, 0)


def test_fewer_paths_or_farther_bars_than_in_the_fit():
    terms = PathTerms.fit(*planted(spread=0.8))
    drawn, _, log_scale, _, _ = planted(horizon=9)
    centre, moved = terms.apply(drawn, log_scale)
    assert centre.shape == moved.shape == log_scale.shape
    assert (moved != log_scale).all()
    assert (terms.apply(drawn[:, :3], log_scale)[1] == log_scale).all()


def test_paths_that_are_all_the_same_are_no_obstacle():
    drawn, came, log_scale, dof, day = planted(spread=0.8)
    drawn[:50] = 0.0
    terms = PathTerms.fit(drawn, came, log_scale, dof, day)
    assert np.isfinite(terms.apply(drawn, log_scale)[1]).all()


@pytest.mark.parametrize(
    "change",
    [
        {"spread": np.nan},
        {"spread": 1e6},
        {"centre": None},
        {"centre": True},
        {"usual": ()},
        {"usual": 0.5},
        {"usual": (np.inf,)},
        {"windows": -1},
    ],
)
def test_numbers_that_cannot_work_are_refused(change):
    good = {"spread": 0.5, "centre": 0.1, "usual": (0.1, 0.2), "windows": 10}
    PathTerms(**good)
    with pytest.raises(ConfigError, match=next(iter(change))):
        PathTerms(**{**good, **change})
