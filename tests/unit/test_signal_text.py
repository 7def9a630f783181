"""The page of a signal: one verdict by one test, and where its intervals cover less."""

import numpy as np
import pandas as pd
import pytest
from scipy.signal import lfilter

from kronos_qlib.evaluation.ranking.information_coefficient import SUMMARY, by_year, summarise
from kronos_qlib.evaluation.ranking.signal_text import is_significant, signal_page


def page_of(memory, mean, p_holm=None, days=150, horizon=1):
    rng = np.random.default_rng(0)
    values = mean + lfilter([1.0], [1.0, -memory], rng.normal(size=days))
    daily = pd.Series(values, index=pd.bdate_range("2024-01-01", periods=days))
    found = summarise(daily, horizon=horizon)
    summary = pd.DataFrame.from_dict({"ic": found, "rank_ic": found}, orient="index")
    horizons = summary.iloc[:1].set_axis(pd.Index([1], name="horizon"))
    row = {**found, "rank_ic": found["mean"], "p_holm": found["p"] if p_holm is None else p_holm}
    signals = pd.DataFrame(
        [{"kind": "score", **row, "with_score": 1.0, "turnover": 0.5}], index=["score"]
    )
    none = pd.DataFrame()
    return signal_page("run", summary, by_year(daily), horizons, signals, none, {}), found


@pytest.mark.parametrize(("mean", "p_holm"), [(1.0, None), (-1.0, None), (1.0, 0.2), (0.0, None)])
def test_the_verdict_is_that_of_the_corrected_test(mean, p_holm):
    page, found = page_of(0.2, mean, p_holm)
    significant = (found["p"] if p_holm is None else p_holm) < 0.05
    assert is_significant(found) == (found["low"] > 0 or found["high"] < 0)
    assert ("is not significant at 5%" in page) != significant
    assert ("the wrong way round: significant at 5%" in page) == (significant and mean < 0)
    assert "known to cover" not in page


def test_days_that_depend_on_each_other_are_said_to_have_too_narrow_an_interval():
    page, found = page_of(0.9, 0.0)
    assert found["covers"] < 0.93
    assert f"This interval is known to cover about {found['covers']:.0%} at such" in page
    assert (
        f"known to cover less, by how neighbouring days correlate and how many there are: "
        f"ic {found['covers']:.0%}, rank_ic" in page
    )


def test_a_summary_has_what_the_page_needs():
    assert {"mean", "p", "low", "high", "phi", "covers", "days", "left_out"} <= set(SUMMARY)
