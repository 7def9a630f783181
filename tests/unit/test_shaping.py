"""Scores shaped, against numbers worked out by hand; and no day learns of a later one."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.errors import BarDataError, ConfigError, UndefinedMetricError
from kronos_qlib.schema import AMOUNT, CLOSE
from kronos_qlib.settings import from_mapping
from kronos_qlib.signals.shaping import (
    exposures_needed,
    history_of,
    read_sectors,
    sectors_of,
    shaped,
    steps_of,
    turnover,
    window_exposures,
)
from kronos_qlib.signals.signal_settings import SignalsConfig

DAYS = pd.bdate_range("2024-01-01", periods=6)


def scores_of(*rows, days=DAYS) -> pd.Series:
    """One row of numbers a day; None where the instrument has no score."""
    table = pd.DataFrame(rows, index=days[: len(rows)], columns=list("ABCDEFGH")[: len(rows[0])])
    table = table.rename_axis(index="datetime", columns="instrument").astype(float)
    return table.stack().dropna().rename("score")


def after(shape, scores, **kwargs) -> list[float]:
    return shaped(scores, steps_of(shape), **kwargs).tolist()


def test_rank_is_the_percentile_of_the_day():
    scores = scores_of([3, 1, 2, 2], [10, 40, 30, 20])
    assert after(["rank"], scores) == [1.0, 0.25, 0.625, 0.625, 0.25, 1.0, 0.75, 0.5]


def test_zscore_is_of_the_day_alone():
    # Mean 2, population deviation sqrt(2/3); the second day has another level and no spread.
    spread = np.sqrt(2 / 3)
    got = after(["zscore"], scores_of([1, 2, 3], [70, 70, 70]))
    assert got == pytest.approx([-1 / spread, 0, 1 / spread, 0, 0, 0])


def test_winsorising_moves_what_lies_beyond_the_quantiles():
    # Of 0, 1, 2, 3, 100 a quarter is at 1, three quarters at 3.
    assert after([{"winsorise": 0.25}], scores_of([0, 1, 2, 3, 100])) == [1, 1, 2, 3, 3]


def test_neutralising_leaves_what_a_straight_line_does_not_explain():
    scores = scores_of([1, 2, 4, 3])
    exposures = pd.DataFrame({"size": [1.0, 2.0, 3.0, 4.0]}, index=scores.index)
    # Least squares by hand: slope 0.8, intercept 0.5: fitted 1.3, 2.1, 2.9, 3.7.
    got = after([{"neutralise": "size"}], scores, exposures=exposures)
    assert got == pytest.approx([-0.3, -0.1, 1.1, -0.7])


def test_neutralising_against_sectors_takes_each_sectors_mean_away():
    scores = scores_of([1, 3, 10, 14], [5, 6, 7, 8])
    sectors = pd.DataFrame({"sector": ["x", "x", "y", "y"] * 2}, index=scores.index)
    got = after([{"neutralise": ["sector"]}], scores, exposures=sectors)
    assert got == pytest.approx([-1, 1, -2, 2, -0.5, 0.5, -0.5, 0.5])


def test_what_is_explained_in_full_is_zero_and_no_noise_to_be_scaled_up():
    """A z-score after it would make a signal of rounding."""
    scores = scores_of([0.1, 0.2, 0.3, 0.7], [0.4, 0.9, None, None])
    exposures = pd.DataFrame({"size": scores.to_numpy() * 3 + 1}, index=scores.index)
    got = after([{"neutralise": ["size"]}, "zscore"], scores, exposures=exposures)
    assert got == [0.0] * 6


def test_smoothing_averages_this_day_and_those_before():
    scores = scores_of([1, 10], [2, None], [6, 40])
    # A: 1, 1.5, then (6 + 2) / 2; B had no score on the second day, which counts for nothing.
    assert after([{"smooth": 2}], scores) == [1, 10, 1.5, 4, 40]


def test_exponential_smoothing_halves_a_score_every_halflife():
    scores = scores_of([7.0], [14.0], [28.0])
    got = after([{"smooth": {"halflife": 1, "days": 3}}], scores)
    assert got == pytest.approx([7, (14 + 3.5) / 1.5, (28 + 7 + 1.75) / 1.75])


def test_smoothing_counts_the_markets_days_and_not_the_rows():
    """A score of a fortnight ago is not yesterday's because nothing was scored between."""
    scores = scores_of([1.0], [5.0], days=DAYS[[0, 5]])
    assert after([{"smooth": 2}], scores, calendar=DAYS.to_numpy()) == [1, 5]
    with pytest.raises(ConfigError, match="the calendar does not have"):
        after([{"smooth": 2}], scores, calendar=DAYS[:3].to_numpy())


SHAPE = [{"winsorise": 0.1}, {"neutralise": ["sector", "size"]}, "zscore", {"smooth": 3}, "rank"]


def noisy(days=6, names=8, seed=0):
    rng = np.random.default_rng(seed)
    scores = scores_of(*rng.normal(size=(days, names)).tolist())
    sizes = rng.normal(size=len(scores))
    exposures = pd.DataFrame({"size": sizes, "sector": list("xxyyzzzx") * days}, scores.index)
    return scores, exposures


def test_no_shaped_score_changes_when_every_later_day_does():
    scores, exposures = noisy()
    before = shaped(scores, steps_of(SHAPE), exposures)
    later = scores.index.get_level_values("datetime") > DAYS[3]
    scores, exposures = scores.copy(), exposures.copy()
    scores[later] *= -7
    exposures.loc[later, "size"] **= 2
    again = shaped(scores, steps_of(SHAPE), exposures)
    assert again[~later].equals(before[~later])
    assert (again[later] != before[later]).mean() > 0.5, "the later days did change"


def test_a_day_with_its_history_alone_has_the_same_bits():
    scores, exposures = noisy()
    steps = steps_of(SHAPE)
    assert history_of(steps) == 2
    whole = shaped(scores, steps, exposures)
    moments = scores.index.get_level_values("datetime")
    part = (moments >= DAYS[2]) & (moments <= DAYS[4])
    alone = shaped(scores[part], steps, exposures[part])
    day = pd.IndexSlice[DAYS[4], :]
    assert alone.loc[day].equals(whole.loc[day])


def test_turnover_of_a_book_of_ranks():
    # Weights by rank: -1/2, 0, 1/2. The same, then turned over: half of |1| + |1| is 1.
    assert turnover(scores_of([1, 2, 3], [4, 5, 9])) == 0
    assert turnover(scores_of([1, 2, 3], [3, 2, 1])) == 1
    assert turnover(scores_of([1, 2, 3], [1, 2, 3], [3, 2, 1])) == 0.5
    with pytest.raises(UndefinedMetricError, match="two days"):
        turnover(scores_of([1, 2, 3]))


def test_smoothing_lowers_turnover():
    scores, _ = noisy()
    assert turnover(shaped(scores, steps_of([{"smooth": 3}]))) < 0.8 * turnover(scores)


def test_exposures_of_a_window():
    bars = np.ones((1, 3, 6), dtype=np.float32)
    bars[0, :, CLOSE] = [1, np.e, 1]  # log returns 1 and -1: deviation 1
    bars[0, :, AMOUNT] = [0, 1, 5]  # mean 2
    got = window_exposures(bars)
    assert got["size"][0] == pytest.approx(np.log(3))
    assert got["volatility"][0] == pytest.approx(1, rel=1e-6)


def test_sectors_from_a_file_keep_names_that_look_like_numbers(tmp_path):
    path = tmp_path / "sectors.csv"
    path.write_text("instrument,sector\n000001,banks\nNA,mining\nAAA,\n", encoding="utf-8")
    sectors = read_sectors(path)
    assert sectors == {"000001": "banks", "NA": "mining"}
    assert sectors_of(["NA", "000001"], sectors).tolist() == ["mining", "banks"]
    with pytest.raises(ConfigError, match=r"1 instruments have no sector, AAA among them"):
        sectors_of(["AAA", "NA"], sectors)
    assert sectors_of(["AAA", "NA"], sectors, "group").tolist() == ["unknown", "mining"]
    pd.DataFrame({"instrument": ["NA"], "sector": ["ore"]}).to_parquet(tmp_path / "s.parquet")
    assert read_sectors(tmp_path / "s.parquet") == {"NA": "ore"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("symbol,sector\nA,x\n", "no column 'instrument'"),
        ("instrument,sector\nA,x\nA,y\n", "names the instrument 'A' twice"),
        (None, "no file of sectors"),
    ],
)
def test_a_file_without_sectors_is_refused(tmp_path, text, message):
    path = tmp_path / "sectors.csv"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_sectors(path)


def test_a_missing_score_or_exposure_is_named():
    scores = scores_of([1, 2, 3])
    exposures = pd.DataFrame({"size": [1.0, np.nan, 2.0]}, scores.index)
    with pytest.raises(BarDataError, match=r"B at 2024-01-01.*size is missing"):
        shaped(scores, steps_of([{"neutralise": "size"}]), exposures)
    with pytest.raises(ConfigError, match="reads the exposures size"):
        shaped(scores, steps_of([{"neutralise": "size"}]))
    scores.iloc[2] = np.inf
    with pytest.raises(BarDataError, match=r"C at 2024-01-01.*score is missing"):
        shaped(scores, steps_of(["rank"]))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (["zscor"], "no step 'zscor'"),
        (["smooth"], "smooth takes a setting"),
        ([{"rank": 2}], "rank takes no setting"),
        ([{"rank": None, "zscore": None}], "one name with its setting"),
        ([{"winsorise": 0.5}], r"in \(0, 0.5\)"),
        ([{"neutralise": ["size", "beta"]}], "sector, size, volatility"),
        ([{"smooth": 1}], "2 days or more"),
        ([{"smooth": {"halflife": 0}}], "above 0"),
        ([{"smooth": {"half_life": 2}}], "halflife and optionally days"),
    ],
)
def test_a_step_that_cannot_work_is_refused(shape, message):
    with pytest.raises(ConfigError, match=message):
        steps_of(shape)


def test_what_steps_depend_on():
    steps = steps_of([{"smooth": 3}, {"neutralise": ["size", "sector"]}, {"smooth": 2}])
    assert history_of(steps) == 3
    assert exposures_needed(steps) == ("sector", "size")
    (exponential,) = steps_of([{"smooth": {"halflife": 2}}])
    assert exponential.days == 10, "five half-lives"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scores": "skew"}, "did you mean 'score'"),
        ({"keep": "skew"}, "keep must be a list"),
        ({"shape": None}, "shape must be a list"),
        ({"ensemble": {"lookback": [20]}}, "did you mean 'lookbacks'"),
        ({"ensemble": {"lookbacks": [1]}}, "at least 2"),
        ({"ensemble": {"temperatures": [0.5, 0.5]}}, "different numbers"),
        ({"sectors": {}}, "either `file` or `of`"),
        ({"sectors": {"of": {"A": "x"}, "unknown": "skip"}}, "unknown is one of error, group"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        from_mapping(SignalsConfig, values)
