"""Live days beside what was promised: measures by hand, warnings, drift."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from kronos_qlib.errors import ConfigError
from kronos_qlib.evaluation.live.drift import (
    Reference,
    counts_in,
    drift_of,
    drift_word,
    population_stability,
    reference_of,
)
from kronos_qlib.evaluation.live.live_quality import (
    Gap,
    crps_of_quantiles,
    ewma_quantiles,
    gap_of,
    live_quality,
)
from kronos_qlib.evaluation.live.live_text import live_text
from kronos_qlib.evaluation.ranking.uncertainty import DailyMean

DAYS = pd.bdate_range("2024-01-01", periods=40)
NAMES = [f"N{place:02d}" for place in range(30)]
INDEX = pd.MultiIndex.from_product([DAYS, NAMES], names=["datetime", "instrument"])


def promise(mean: float, error: float = 0.001) -> DailyMean:
    return DailyMean(mean, error, 250, 16, 1, 0.0)


def days_of(strength: float, seed: int = 0):
    rng = np.random.default_rng(seed)
    score = pd.Series(rng.normal(size=len(INDEX)), index=INDEX)
    label = strength * score + rng.normal(size=len(INDEX))
    return score, label


def test_a_signal_that_is_gone_is_warned_of_and_one_that_holds_is_not():
    gone = live_quality(
        scores=days_of(0.0)[0], labels=days_of(0.0)[1], promised={"rank_ic": promise(0.3)}
    )
    assert len(gone.warnings) == 1
    assert gone.warnings[0].startswith("Rank IC is below what was promised, significant at 5%")
    score, label = days_of(0.3)
    held = live_quality(scores=score, labels=label, promised={"rank_ic": promise(0.28)})
    assert not held.warnings
    first = held.measures[0]
    assert first.name == "Rank IC" and 0.2 < first.value < 0.35 and first.days == 40
    assert "Nothing differs significantly" in live_text(held)
    assert "below what was promised" in live_text(gone, markdown=True)


def test_labels_that_are_not_known_yet_are_left_out():
    score, label = days_of(0.3)
    label.loc[DAYS[-5] :] = np.nan
    assert live_quality(scores=score, labels=label).measures[0].days == 35
    none = live_quality(scores=score, labels=label * np.nan)
    assert not none.measures and "No outcome is known yet" in live_text(none)


def test_few_days_have_a_mean_and_no_interval():
    score, label = days_of(0.3)
    keep = slice(DAYS[0], DAYS[5])
    found = live_quality(scores=score[keep], labels=label[keep], promised={"rank_ic": promise(0.9)})
    assert found.measures[0].days == 6 and found.measures[0].live is None
    assert not found.warnings, "six days prove nothing"


def test_baselines_stand_beside_and_are_paired():
    score, label = days_of(0.3)
    other, _ = days_of(0.0, seed=1)
    found = live_quality(scores=score, labels=label, baselines=other.to_frame("reversal"))
    by_name = {measure.name: measure for measure in found.measures}
    less = by_name["Rank IC less that of reversal"]
    assert less.value == pytest.approx(
        by_name["Rank IC"].value - by_name["Rank IC of reversal"].value
    )
    assert less.live is not None and less.live.is_significant()


def test_shares_and_crps_of_a_true_distribution_and_of_one_too_narrow():
    rng = np.random.default_rng(3)
    came = pd.Series(0.01 * rng.normal(size=len(INDEX)), index=INDEX)
    levels = [round(0.05 * place, 2) for place in range(1, 20)]

    def normal(width):
        values = np.tile(width * norm.ppf(levels), (len(INDEX), 1))
        return pd.DataFrame(values, index=INDEX, columns=levels)

    score = pd.Series(rng.normal(size=len(INDEX)), index=INDEX)
    true, narrow = (
        live_quality(
            scores=score, labels=came, quantiles=normal(width), returns=came, ewma=normal(0.02)
        )
        for width in (0.01, 0.004)
    )
    for quality, within in ((true, 0.8), (narrow, norm.cdf(0.4 * 1.2816) * 2 - 1)):
        by_name = {measure.name: measure for measure in quality.measures}
        share = by_name["Share within the 80% interval"]
        assert share.value == pytest.approx(within, abs=0.03) and share.promised == 0.8
    assert not true.warnings
    assert any("Share within the 80% interval is below" in each for each in narrow.warnings)
    assert {m.name: m.value for m in true.measures}["CRPS less that of EWMA"] < 0


def test_crps_of_quantiles_is_that_of_the_normal_distribution():
    levels = (np.arange(400) + 0.5) / 400
    drawn = np.tile(norm.ppf(levels), (3, 1))
    came = np.array([0.0, 1.0, -2.0])
    exact = came * (2 * norm.cdf(came) - 1) + 2 * norm.pdf(came) - 1 / math.sqrt(math.pi)
    assert crps_of_quantiles(drawn, levels, came) == pytest.approx(exact, abs=2e-3)


def test_a_walk_looks_at_no_later_close():
    rng = np.random.default_rng(0)
    closes = pd.DataFrame(
        10 * np.exp(np.cumsum(0.01 * rng.normal(size=(40, 3)), axis=0)), index=DAYS
    ).rename(columns=str)
    day = DAYS[[30]]
    first = ewma_quantiles(closes, day, 4, [0.1, 0.5, 0.9])
    later = closes.copy()
    later.iloc[31:] *= 2
    pd.testing.assert_frame_equal(ewma_quantiles(later, day, 4, [0.1, 0.5, 0.9]), first)
    assert list(first.index.names) == ["datetime", "instrument"] and len(first) == 3
    assert (first[0.5].abs() < 1e-12).all() and (first[0.9] > 0.015).all()


def test_money_is_beside_its_promise():
    rng = np.random.default_rng(0)
    excess = 0.001 + 0.002 * rng.normal(size=40)
    money = pd.DataFrame(
        {"net_return": excess + 0.001, "excess_return": excess, "bench": 0.001}, index=DAYS
    )
    score, label = days_of(0.0)
    found = live_quality(
        scores=score, labels=label, money=money, promised={"excess_return": promise(0.01)}
    )
    assert "Excess return a day after cost is below" in found.warnings[0]
    assert found.curves["Excess return after cost, summed"].dropna().iloc[-1] == pytest.approx(
        excess.sum()
    )
    assert "bp" in live_text(found)


def test_the_gap_of_two_means_has_both_errors():
    live, before = DailyMean(0.02, 0.03, 40, 5, 1, 0.0), DailyMean(0.05, 0.04, 250, 16, 1, 0.0)
    gap = gap_of(live, before)
    assert gap.difference == pytest.approx(-0.03) and gap.standard_error == pytest.approx(0.05)
    assert gap.freedom == pytest.approx(0.05**4 / (0.03**4 / 5 + 0.04**4 / 16))
    assert gap_of(live, 0.02) == Gap(0.0, 0.03, 5.0)


@given(
    values=st.lists(st.floats(-1e6, 1e6), min_size=20, max_size=200),
    bins=st.integers(2, 12),
)
@settings(max_examples=50)
def test_a_reference_counts_its_own_values_as_its_shares(values, bins):
    found = reference_of(values, bins)
    if found is None:
        assert len(set(values)) == 1
        return
    counts = counts_in(values, found.edges)
    assert sum(counts) == len(values) and min(counts) > 0
    assert np.array(counts) / len(values) == pytest.approx(found.shares)
    assert population_stability(found.shares, counts) == pytest.approx(0, abs=1e-12)


@given(counts=st.lists(st.integers(0, 50), min_size=4, max_size=4))
@settings(max_examples=50)
def test_the_index_is_never_below_zero_and_finite(counts):
    index = population_stability([0.25] * 4, counts)
    assert math.isnan(index) if not sum(counts) else index >= 0 and math.isfinite(index)


def test_a_shift_is_large_and_the_index_is_the_textbooks():
    expected, counts = [0.5, 0.3, 0.2], [20, 30, 50]
    actual = np.array(counts) / 100
    by_hand = float(((actual - expected) * np.log(actual / np.array(expected))).sum())
    assert population_stability(expected, counts) == pytest.approx(by_hand)
    assert drift_word(by_hand) == "large" and drift_word(0.15) == "moderate"
    reference = Reference((0.0, 1.0), (0.5, 0.3, 0.2))
    days = [{"a": [10, 10, 20]}, {"a": [10, 20, 30]}, {"b": [1, 2]}]
    assert drift_of({"a": reference}, days) == {"a": pytest.approx(by_hand)}
    assert math.isnan(drift_of({"c": reference}, days)["c"])
    score, label = days_of(0.3)
    found = live_quality(scores=score, labels=label, drift={"range of a bar": by_hand})
    assert "range of a bar is spread otherwise" in found.warnings[0]
    assert "large" in live_text(found)


def test_references_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="rising edges"):
        Reference((1.0, 0.0), (0.3, 0.3, 0.4))
    with pytest.raises(ConfigError, match="sum to 1"):
        Reference((1.0,), (0.3, 0.3))
    with pytest.raises(ConfigError, match="3 counts for 2 bins"):
        population_stability([0.5, 0.5], [1, 2, 3])
    assert reference_of([1.0] * 30) is None and reference_of([1.0, 2.0]) is None


def test_the_page_holds_what_the_text_says_and_loads_nothing():
    pytest.importorskip("plotly", reason="of the extra report")
    from kronos_qlib.evaluation.live.live_page import live_page

    score, label = days_of(0.0)
    found = live_quality(
        scores=score,
        labels=label,
        promised={"rank_ic": promise(0.3)},
        drift={"score": 0.5},
        about={"Model": "<b>mine</b>"},
        notes=["a note"],
    )
    page = live_page(found)
    assert "&lt;b&gt;mine" in page and "<b>mine" not in page
    assert "Rank IC is below what was promised" in page and "a note" in page
    assert "http-equiv" in page and 'src="http' not in page
