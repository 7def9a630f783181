"""What a score knew of returns: against scipy and by hand, with the days that say nothing."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr, spearmanr

from kronos_qlib.errors import UndefinedMetricError
from kronos_qlib.evaluation.ranking.day_tables import full_days, to_wide
from kronos_qlib.evaluation.ranking.groups import (
    best_less_worst,
    group_returns,
    group_table,
    monotonicity,
)
from kronos_qlib.evaluation.ranking.information_coefficient import (
    SUMMARY,
    by_year,
    daily_ic,
    decay,
    paired_rank_ic,
    rank_correlation,
    summarise,
    summarise_difference,
)
from kronos_qlib.evaluation.ranking.stability import coverage, rank_autocorrelation, top_turnover
from kronos_qlib.evaluation.ranking.uncertainty import daily_mean, paired_difference

NAMES = list("ABCDEFGHIJ")


def wide(rows, start="2024-01-01"):
    days = pd.bdate_range(start, periods=len(rows), name="datetime")
    columns = pd.Index(NAMES[: len(rows[0])], name="instrument")
    return pd.DataFrame(np.array(rows, dtype=float), index=days, columns=columns)


def noisy(days=60, names=40, knowledge=0.3, seed=0, start="2024-01-01"):
    rng = np.random.default_rng(seed)
    index = pd.bdate_range(start, periods=days, name="datetime")
    columns = pd.Index([f"N{number:02d}" for number in range(names)], name="instrument")
    score = rng.normal(size=(days, names))
    returns = knowledge * score + rng.normal(size=(days, names))
    return tuple(pd.DataFrame(values, index=index, columns=columns) for values in (score, returns))


def test_long_becomes_wide_whatever_the_order_of_its_levels():
    index = pd.MultiIndex.from_product(
        [pd.to_datetime(["2024-01-03", "2024-01-02"]), ["B", "A"]], names=["datetime", "instrument"]
    )
    found = to_wide(pd.Series([1.0, 2.0, 3.0, 4.0], index=index).iloc[:3])
    assert found.index.to_list() == [pd.Timestamp("2024-01-02"), pd.Timestamp("2024-01-03")]
    assert found.columns.to_list() == ["A", "B"]
    np.testing.assert_array_equal(found, [[np.nan, 3], [2, 1]])


def test_a_name_with_two_values_on_a_day_and_other_levels_are_refused():
    index = pd.MultiIndex.from_tuples([(pd.Timestamp("2024-01-02"), "A")] * 2)
    with pytest.raises(UndefinedMetricError, match="datetime, instrument"):
        to_wide(pd.Series([1.0, 2.0], index=index))
    with pytest.raises(UndefinedMetricError, match="A has two values on 2024-01-02"):
        to_wide(pd.Series([1.0, 2.0], index=index.set_names(["datetime", "instrument"])))


def test_a_day_is_scipys_correlation_over_the_names_that_have_both():
    score, returns = noisy(days=5)
    score.iloc[1, :7] = np.nan
    returns.iloc[1, 5:12] = np.nan
    score.iloc[2] = score.iloc[2].round()  # ties
    returns.iloc[3, 4] = np.inf
    found = daily_ic(score, returns)
    for day in range(5):
        both = np.isfinite(score.iloc[day]) & np.isfinite(returns.iloc[day])
        one, other = score.iloc[day][both], returns.iloc[day][both]
        assert found["ic"].iloc[day] == pytest.approx(pearsonr(one, other)[0])
        assert found["rank_ic"].iloc[day] == pytest.approx(spearmanr(one, other)[0])
        assert found["pairs"].iloc[day] == both.sum()


def test_returns_of_other_names_and_days_are_left_alone():
    score, returns = noisy(days=4)
    more = returns.assign(Z=1.0).iloc[::-1, ::-1]
    pd.testing.assert_frame_equal(daily_ic(score, more), daily_ic(score, returns))
    shorter = daily_ic(score, returns.iloc[:2])
    assert shorter.index.to_list() == score.index[:2].to_list(), "no return, no day"


def test_a_day_that_orders_nothing_has_no_ic_and_is_counted():
    """Not 0: that would be a day on which the score was wrong half the time."""
    score, returns = noisy(days=30)
    score.iloc[3] = 0.5
    returns.iloc[4] = 0.0
    score.iloc[5, 4:] = np.nan  # 4 pairs
    daily = daily_ic(score, returns)
    assert daily.index[daily["rank_ic"].isna()].to_list() == score.index[[3, 4, 5]].to_list()
    assert daily["ic"].isna().sum() == 3
    found = summarise(daily["rank_ic"])
    assert (found["days"], found["left_out"]) == (27, 3)
    assert found["mean"] == pytest.approx(daily["rank_ic"].mean())


def test_a_score_that_is_always_the_same_is_refused():
    _, returns = noisy()
    with pytest.raises(UndefinedMetricError, match="none of 60 days has a value"):
        summarise(daily_ic(returns * 0 + 1, returns)["rank_ic"])


def test_a_summary_is_one_test_of_the_days():
    score, returns = noisy(days=120)
    daily = daily_ic(score, returns)["rank_ic"]
    found = summarise(daily)
    assert tuple(found) == SUMMARY
    assert found["ratio"] == pytest.approx(daily.mean() / daily.std())
    known = daily_mean(daily)
    assert (found["t"], found["p"], found["phi"]) == (known.t, known.p, known.phi)
    assert (found["low"], found["high"]) == known.interval()
    assert (found["covers"], found["days"]) == (known.covers, 120)
    assert found["p"] < 1e-5
    assert found["low"] < found["mean"] < found["high"]


def test_bars_of_a_day_are_averaged_before_they_are_counted():
    """t on minute bars once took each bar for a day: 12 bars a day made it some three times it."""
    rng = np.random.default_rng(3)
    days = pd.bdate_range("2024-01-01", periods=40)
    times = [day + pd.Timedelta(minutes=5 * bar) for day in days for bar in range(12)]
    bars = 0.1 + np.repeat(rng.normal(size=40), 12) + rng.normal(size=480)
    daily = pd.Series(bars, index=pd.DatetimeIndex(times))
    daily.iloc[:12] = np.nan  # a whole day has none
    daily.iloc[20] = np.nan  # another lacks a bar
    found = summarise(daily)
    by_days = daily.groupby(daily.index.normalize()).mean().dropna()
    assert (found["days"], found["left_out"]) == (39, 1)
    assert found["mean"] == pytest.approx(by_days.mean())
    assert found["std"] == pytest.approx(by_days.std())
    assert found["t"] == pytest.approx(daily_mean(by_days).t)
    assert by_year(daily).loc[2024].to_dict() == pytest.approx(found)
    with pytest.raises(UndefinedMetricError, match="has 2 days"):
        summarise(daily.iloc[12:36])


def test_overlapping_returns_have_a_larger_error():
    """Returns of 10 bars resemble their neighbours; the same days, taken as free, mislead."""
    rng = np.random.default_rng(4)
    level = pd.Series(rng.normal(size=309)).rolling(10).mean().dropna()
    daily = pd.Series(0.1 + level.to_numpy(), index=pd.bdate_range("2024-01-01", periods=300))
    loose, strict = summarise(daily, horizon=1), summarise(daily, horizon=10)
    assert strict["t"] < loose["t"]
    assert strict["mean"] == loose["mean"]
    with pytest.raises(UndefinedMetricError, match=r"over 30 days overlap, and 20 days are too"):
        summarise(daily.iloc[:20], horizon=30)


def test_years_stand_apart_and_a_short_one_has_no_error():
    score, returns = noisy(days=40, start="2023-12-25")
    daily = daily_ic(score, returns)["rank_ic"]
    found = by_year(daily)
    assert found.index.to_list() == [2023, 2024]
    assert found.loc[2023, "days"] == 5
    assert found.loc[2023, "mean"] == pytest.approx(daily[:"2023"].mean())
    assert np.isnan(found.loc[2023, "t"])
    assert found.loc[2024].to_dict() == pytest.approx(summarise(daily["2024":]))


def test_decay_has_a_row_a_horizon():
    score, returns = noisy(days=80)
    rng = np.random.default_rng(1)
    found = decay(score, {5: returns + 3 * rng.normal(size=returns.shape), 1: returns})
    assert found.index.to_list() == [1, 5]
    assert found.loc[5, "mean"] < found.loc[1, "mean"] / 1.5
    assert list(found) == list(SUMMARY)


def test_groups_by_hand():
    """Ten names in five groups; returns are the place plus 3, which the day's mean takes off."""
    score = wide([[9, 8, 7, 6, 5, 4, 3, 2, 1, 0], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]])
    returns = wide([[0, 0, 1, 1, 2, 2, 3, 3, 4, 4]] * 2) + 3
    found = group_returns(score, returns, 5)
    assert found.columns.to_list() == [1, 2, 3, 4, 5]
    np.testing.assert_allclose(found, [[2, 1, 0, -1, -2], [-2, -1, 0, 1, 2]])


def test_ties_share_a_group_instead_of_being_split_by_the_alphabet():
    score = wide([[0, 0, 0, 0, 0, 0, 1, 2, 3, 4]])
    returns = wide([[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]])
    found = group_returns(score, returns, 5)
    np.testing.assert_allclose(found, [[np.nan, 3.5 - 5.5, np.nan, 7.5 - 5.5, 9.5 - 5.5]])


def test_the_spread_is_of_the_outermost_groups_that_hold_a_name():
    daily = pd.DataFrame([[1.0, 2.0, 5.0], [np.nan, 2.0, 7.0], [1.0, 4.0, np.nan]])
    assert best_less_worst(daily).to_list() == [4, 5, 3]
    two_values = wide([[0, 0, 0, 0, 0, 0, 0, 0, 0, 1]] * 2)
    returns = wide([[0, 0, 0, 0, 0, 0, 0, 0, 0, 10]] * 2)
    assert best_less_worst(group_returns(two_values, returns)).to_list() == pytest.approx([10, 10])


def test_days_that_cannot_be_parted_are_left_out():
    score, returns = noisy(days=4, names=12)
    score.iloc[0, 3:] = np.nan
    score.iloc[2] = 1.0
    assert group_returns(score, returns).index.to_list() == score.index[[1, 3]].to_list()
    with pytest.raises(UndefinedMetricError, match=r"no day has 20 names .*fullest has 12"):
        group_returns(score, returns, 20)
    with pytest.raises(UndefinedMetricError, match="2 groups or more"):
        group_returns(score, returns, 1)


def test_the_order_of_the_groups():
    score, returns = noisy(days=150, knowledge=0.5)
    daily = group_returns(score, returns, 5)
    order, low, high = monotonicity(daily)
    assert order == pytest.approx(1.0)
    assert 0.8 <= low <= high <= order
    backwards = monotonicity(daily.iloc[:, ::-1])
    assert backwards[0] == pytest.approx(-1.0)
    table = group_table(daily)
    assert table["mean"].to_numpy() == pytest.approx(daily.mean().to_numpy())
    assert table.loc[1, "high"] < 0 < table.loc[5, "low"]
    _, nothing = noisy(days=150, seed=9)
    _, low, high = monotonicity(group_returns(score, nothing, 5))
    assert high - low > 1, "what knows nothing has no order to be sure of"


def test_groups_that_ties_leave_empty_are_left_out_of_the_order():
    score, returns = noisy(days=60, names=20, knowledge=0.6)
    daily = group_returns(score.clip(lower=0.5), returns, 5)  # most names are tied at the bottom
    few = daily.columns[daily.notna().sum() < 10]
    assert 0 < len(few) < 4
    assert monotonicity(daily)[0] == pytest.approx(1.0)
    table = group_table(daily)
    assert table.loc[few, "t"].isna().all()
    assert table.loc[few, "days"].to_list() == daily[few].notna().sum().to_list()
    with pytest.raises(UndefinedMetricError, match="1 of 2 groups hold a name on 10 days"):
        monotonicity(daily[[1, 5]])


def test_autocorrelation_by_scipy():
    score, _ = noisy(days=6, names=15)
    found = rank_autocorrelation(score, [1, 3])
    for lag in (1, 3):
        each = [spearmanr(score.iloc[day], score.iloc[day - lag])[0] for day in range(lag, 6)]
        assert found.loc[lag, "mean"] == pytest.approx(np.mean(each))
        assert found.loc[lag, "days"] == 6 - lag
    steady = wide([range(10)] * 4)
    steady.iloc[1, 2] = np.nan
    assert rank_autocorrelation(steady, [1]).loc[1, "mean"] == pytest.approx(1.0)
    with pytest.raises(UndefinedMetricError, match="lies between 1 and 5"):
        rank_autocorrelation(score, [6])


def test_turnover_counts_who_is_new():
    score = wide([[5, 4, 3, 2, 1], [5, 4, 3, 2, 1], [5, 1, 3, 4, 2], [1, 2, 3, 4, 5]])
    assert top_turnover(score, 2).to_list() == [0.0, 0.5, 0.5]  # AB, AB, AD, ED
    assert top_turnover(score, 0.2).to_list() == [0.0, 0.0, 1.0]  # A, A, A, E
    assert top_turnover(score, 99).to_list() == [0.0, 0.0, 0.0]
    assert top_turnover(score * 0, 2).to_list() == [0.0, 0.0, 0.0]
    with pytest.raises(UndefinedMetricError, match="two days"):
        top_turnover(score.iloc[:1])
    with pytest.raises(UndefinedMetricError, match="got 0"):
        top_turnover(score, 0)


def test_coverage_counts_labelled_names():
    score = wide([[1, 2, np.nan, 4], [1, 2, 3, 4]])
    labels = wide([[1, np.nan, 1, 1], [1, 1, 1, 1], [1, 1, np.nan, np.nan]])
    assert coverage(score, labels) == pytest.approx((2 + 4 + 0) / 9)
    with pytest.raises(UndefinedMetricError, match="no name has a label"):
        coverage(score, labels * np.nan)


def test_two_scores_by_their_ranks():
    score, _ = noisy(days=3)
    assert rank_correlation(score, np.exp(score)).to_list() == pytest.approx([1.0] * 3)
    assert rank_correlation(score, -score).to_list() == pytest.approx([-1.0] * 3)


def test_two_scores_are_compared_on_the_rows_that_both_have():
    score = wide([[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]])
    other = wide([[6, 5, 4, 3, 2, np.nan], [np.nan] * 6])
    returns = wide([[1, 2, 3, 4, 5, -99], [1, 2, 3, 4, 5, 6]])
    found = paired_rank_ic(score, other, returns)
    # The sixth name, which would spoil the score's day, is unknown to the other; so is a day.
    assert found["score"].to_list() == [pytest.approx(1)]
    assert found["other"].to_list() == [pytest.approx(-1)]
    assert found["pairs"].to_list() == [5]


def test_a_difference_is_the_paired_one():
    one, returns = noisy(seed=1)
    other, _ = noisy(seed=2, knowledge=0.1)
    both = paired_rank_ic(one, other, returns)
    found = summarise_difference(both["score"], both["other"], horizon=5)
    paired = paired_difference(both["score"], both["other"], label_bars=5)
    assert (found["mean"], found["t"], found["p"]) == (paired.mean, paired.t, paired.p)
    assert (found["low"], found["high"]) == paired.interval()


def test_a_score_less_itself_is_zero_exactly():
    one, returns = noisy()
    daily = daily_ic(one, returns)["rank_ic"]
    found = summarise_difference(daily, daily)
    assert (found["mean"], found["low"], found["high"]) == (0, 0, 0)
    assert np.isnan(found["t"])
    assert found["days"] == len(daily)
    with pytest.raises(UndefinedMetricError, match="has 9 days"):
        summarise_difference(daily[:9], daily[:9])


def test_a_stray_day_makes_no_name_new():
    days = [[1, 2, 3, 4, 5, 6], [np.nan, 9, np.nan, np.nan, np.nan, np.nan], [1, 2, 3, 4, 5, 6]]
    score = wide(days)
    assert top_turnover(score, 2).iloc[-1] > 0
    whole = full_days(score)
    assert whole.index.to_list() == score.index[[0, 2]].to_list()
    assert top_turnover(whole, 2).to_list() == [0]


def test_a_horizon_with_too_few_days_is_named():
    one, returns = noisy(days=12)
    with pytest.raises(UndefinedMetricError, match=r"^returns over 13 bars: "):
        decay(one, {1: returns, 13: returns})
