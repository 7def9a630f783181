"""Signals side by side, from scores made so that the answer is known."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from kronos_qlib.errors import ConfigError
from kronos_qlib.evaluation.compare.comparison import (
    Comparison,
    Signal,
    check_comparable,
    common_equity,
    compare_signals,
    excess_test,
    pair_of,
)
from kronos_qlib.evaluation.compare.comparison_text import comparison_text, measure_rows, notes_of
from kronos_qlib.evaluation.compare.verdicts import money_pair_verdicts, run_verdicts, verdict
from kronos_qlib.evaluation.ranking.uncertainty import paired_difference
from kronos_qlib.evaluation.text_table import format_rows

DAYS = pd.bdate_range("2022-07-01", periods=50, name="datetime")
NAMES = [f"S{number}" for number in range(12)]
INDEX = pd.MultiIndex.from_product([DAYS, NAMES], names=["datetime", "instrument"])


def series(seed: int, index: pd.MultiIndex = INDEX) -> pd.Series:
    return pd.Series(np.random.default_rng(seed).normal(size=len(index)), index)


LABEL = series(0) * 0.02


def signal(seed: int, known: float = 0.0) -> Signal:
    """A score that is noise and, times `known`, the label."""
    return Signal(series(seed) + known * LABEL / 0.02, LABEL)


def test_daily_rank_ic_and_correlation_are_spearmans():
    one, other = signal(1, 0.5), signal(2, 0.1)
    found = compare_signals({"one": one, "other": other})
    day = DAYS[7]
    expected = spearmanr(one.score.loc[day], LABEL.loc[day]).statistic
    assert found.daily.loc[day, "one"] == pytest.approx(expected)
    alike = [spearmanr(one.score.loc[day], other.score.loc[day]).statistic for day in DAYS]
    assert found.correlation.loc["one", "other"] == pytest.approx(np.mean(alike))
    assert np.diag(found.correlation) == pytest.approx(1)


def test_a_blend_is_the_mean_of_percentile_ranks_against_the_better_member():
    one, other = signal(1, 0.4), signal(2, 0.8)
    (blend,) = compare_signals({"one": one, "other": other}).blends
    ranks = [each.score.groupby("datetime").rank(pct=True) for each in (one, other)]
    mixed = sum(ranks) / 2
    daily = [spearmanr(mixed.loc[day], LABEL.loc[day]).statistic for day in DAYS]
    assert blend.members == ("one", "other") and blend.test.other == "other"
    assert blend.rank_ic == pytest.approx(np.mean(daily))
    assert blend.test.difference is not None


def test_three_runs_make_three_pairs_and_four_blends():
    found = compare_signals({"a": signal(1), "b": signal(2), "c": signal(3)})
    assert [(pair.one, pair.other) for pair in found.pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [len(blend.members) for blend in found.blends] == [2, 2, 2, 3]


def test_one_run_alone_is_judged_without_tests():
    found = compare_signals({"a": signal(1, 1.0)})
    assert found.pairs == found.blends == () and found.means["a"].mean > 0.4


def test_noise_against_noise_is_significant_about_as_often_as_it_should_be():
    found = [
        pair_of(series(2 * seed, DAYS).rename("a"), series(2 * seed + 1, DAYS).rename("b"))
        for seed in range(30)
    ]
    assert sum(pair.is_significant for pair in found) <= 5, (
        "at 95 % one or two of thirty are to be expected"
    )


def test_only_rows_that_all_have_and_whose_label_is_known_count():
    short = Signal(signal(1).score.iloc[30:], LABEL)
    unknown = Signal(signal(2).score, LABEL.mask(np.arange(len(LABEL)) >= 590))
    found = compare_signals({"short": short, "unknown": unknown})
    assert found.rows == 560 and found.own_rows == {"short": 570, "unknown": 600}
    assert found.daily.index[0] == DAYS[2], "six rows of the third day are there"


def test_bars_of_one_day_are_one_days_evidence():
    """48 bars a day are not 48 independent looks: a test over them would be far too sure."""
    times = pd.DatetimeIndex(
        [day + pd.Timedelta(minutes=5 * bar) for day in DAYS for bar in range(3)]
    )
    index = pd.MultiIndex.from_product([times, NAMES], names=["datetime", "instrument"])
    label = series(5, index)
    found = compare_signals({"a": Signal(series(6, index), label)})
    assert found.daily.index.to_list() == DAYS.to_list()
    at = label.loc[times[:3]].index
    first = [
        spearmanr(series(6, index).loc[time], label.loc[time]).statistic
        for time in at.get_level_values(0).unique()
    ]
    assert found.daily["a"].iloc[0] == pytest.approx(np.mean(first))


def test_float32_labels_are_the_same_labels_and_others_are_refused():
    near = Signal(signal(1).score, LABEL.astype("float32").astype("float64"))
    check_comparable({"a": signal(2), "b": near})
    moved = LABEL.copy()
    moved.iloc[17] += 0.001
    words = r"on 1 of 600 common rows, S5 on 2022-07-04 the first with"
    with pytest.raises(ConfigError, match=words):
        check_comparable({"a": signal(2), "b": Signal(signal(1).score, moved)})


def test_signals_that_cannot_be_judged_say_why():
    flat = Signal(LABEL * 0 + 1, LABEL)
    with pytest.raises(ConfigError, match="flat gives all of them the same score"):
        compare_signals({"good": signal(1), "flat": flat})
    doubled = pd.concat([LABEL, LABEL.iloc[:1]])
    with pytest.raises(ConfigError, match=r"'a': expected scores on .* with rows twice"):
        check_comparable({"a": Signal(doubled, LABEL)})
    unnamed = LABEL.rename_axis(["day", "instrument"])
    with pytest.raises(ConfigError, match=r"'a': expected labels .*'day'"):
        check_comparable({"a": Signal(LABEL, unnamed)})


def test_a_flat_day_is_left_out_for_all_and_counted():
    score = signal(1).score.copy()
    score.loc[DAYS[3]] = 1.0
    found = compare_signals({"a": Signal(score, LABEL), "b": signal(2)})
    assert found.times_left_out == 1 and DAYS[3] not in found.daily.index


def test_labels_that_overlap_are_counted_in_every_test():
    found = compare_signals({"a": signal(1), "b": signal(2)}, label_bars=10)
    (pair,) = found.pairs
    assert pair.difference.label_days == found.means["a"].label_days == 10
    assert found.blends[0].test.difference.label_days == 10
    usual = compare_signals({"a": signal(1), "b": signal(2)}).pairs[0]
    assert usual.difference.label_days == 1
    assert usual.difference.cosines > pair.difference.cosines


def test_an_interval_that_covers_less_says_so():
    rng = np.random.default_rng(0)
    slow = pd.Series(np.cumsum(rng.normal(size=50)), DAYS, name="slow")
    pair = pair_of(slow, series(2, DAYS).rename("noise"))
    assert pair.difference.covers < 0.9
    assert f"known to cover about {pair.difference.covers:.0%} at such" in verdict(pair)
    plain = pair_of(series(1, DAYS).rename("a"), series(2, DAYS).rename("noise"))
    assert "known to cover" not in verdict(plain)


def test_too_few_days_are_no_test_but_a_reason():
    few = series(1, DAYS[:6]).rename("a"), series(2, DAYS[:6]).rename("b")
    pair = pair_of(*few)
    assert pair.difference is None and not pair.is_significant
    assert verdict(pair).startswith("a and b: not tested, the difference has 6 days")


def test_the_verdict_names_the_better_one_whichever_came_first():
    high, low = series(1, DAYS).rename("high") + 5, series(2, DAYS).rename("low")
    for pair in (pair_of(high, low), pair_of(low, high)):
        said = verdict(pair)
        assert said.startswith("high has a daily Rank IC") and "is significant at 5%" in said
        low_end = float(said.split("interval ")[1].split(" to ")[0])
        assert 4 < low_end < 5
    close = verdict(pair_of(low, low + series(3, DAYS).rename("x")))
    assert "is not significant at 5%" in close


def test_equity_is_cut_to_common_days_and_knows_of_other_benchmarks():
    table = pd.DataFrame({"net_return": 0.01, "excess_return": 0.0, "bench": 0.01}, index=DAYS)
    found = common_equity({"a": table, "b": table.iloc[5:].assign(bench=0.02)})
    assert len(found.net) == 45 and found.own_days == {"a": 50, "b": 45}
    assert not found.same_bench
    with pytest.raises(ConfigError, match="share no two days: 'a' from 2022-07-01"):
        common_equity({"a": table.iloc[:9], "b": table.iloc[9:]})


def report(seed: int, gain: float, spread: float = 0.004) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    bench = np.random.default_rng(99).normal(0.0005, 0.01, len(DAYS))
    excess = rng.normal(gain, spread, len(DAYS))
    return pd.DataFrame(
        {"net_return": bench + excess, "excess_return": excess, "bench": bench}, index=DAYS
    )


def judged(**runs: tuple[Signal, pd.DataFrame]) -> Comparison:
    """Of each run its signal and its backtest."""
    equity = common_equity({name: backtest for name, (_, backtest) in runs.items()})
    table = equity.measures.assign(
        excess_low=[252 * equity.tests[name].interval()[0] for name in runs],
        excess_high=[252 * equity.tests[name].interval()[1] for name in runs],
    )
    signals = compare_signals({name: each for name, (each, _) in runs.items()})
    settings = pd.DataFrame()
    return Comparison(table=table, signals=signals, equity=equity, settings=settings)


@pytest.mark.parametrize(
    ("known", "gain", "order", "money", "conclusion"),
    [
        (0.5, 0.004, "it orders returns, significant at 5%", "is significant", "The money can"),
        (0.5, 0.0, "it orders returns, significant", "is not significant", "is not shown"),
        (0.5, -0.004, "it orders returns, significant", "is significant", "loses more than that"),
        (0.0, 0.004, "is not significant at 5% (Rank", "is significant", "The money is not shown"),
        (0.0, 0.0, "is not significant at 5% (Rank", "is not significant", "Neither order nor"),
        (0.0, -0.004, "is not significant at 5% (Rank", "is significant", "It loses against"),
        (-0.5, 0.004, "orders returns the wrong way round", "is significant", "is not shown to"),
    ],
)
def test_each_run_has_a_verdict_on_order_and_money(known, gain, order, money, conclusion):
    """The verdict spoke of Rank IC alone, over an information ratio that nobody qualified."""
    (said,) = run_verdicts(judged(mine=(signal(1, known), report(3, gain))))
    assert said.startswith("mine: ")
    assert order in said and f"days), {money} at 5%" in said and conclusion in said


def test_a_run_without_backtest_or_without_signal_is_judged_by_what_it_has():
    both = judged(mine=(signal(1, 0.5), report(3, 0.004)))
    said = {"equity": None, "signals": None}
    for lacking in said:
        (said[lacking],) = run_verdicts(replace(both, **{lacking: None}))
    assert said["equity"].endswith("it has no backtest to compare.")
    assert said["signals"].startswith("mine: whether it orders returns is not tested. Its excess")
    assert run_verdicts(replace(both, equity=None, signals=None)) == []


def test_no_information_ratio_stands_unqualified():
    """2.40 over 50 days of chance read like success."""
    found = judged(good=(signal(1, 0.5), report(3, 0.004)), luck=(signal(2), report(4, 0.0005)))
    text = comparison_text(found)
    (row,) = [line for line in text.splitlines() if line.startswith("Information ratio, after")]
    assert re.search(r"\d\.\d\d \(significant\) +-?\d\.\d\d \(not significant\) +-$", row)
    for prose in re.findall(r"information ratio -?\d[^.]*\.\d\d[^.]*", text):
        assert "significant at 5%" in prose
    table = found.table.drop(columns=["excess_low", "excess_high"])
    assert text.count("% interval") > 2 and "(not tested)" in comparison_text(
        replace(found, table=table)
    )


def test_the_benchmark_is_a_column_of_its_own():
    found = judged(benchmark=(signal(1), report(3, 0.0)), other=(signal(2), report(4, 0.0)))
    heading, *rows = measure_rows(found)
    assert heading == ["", "benchmark", "other", "the benchmark"], "a run may be called so"
    cells = {row[0]: row[-1] for row in rows}
    bench = report(3, 0.0)["bench"]
    assert cells["Return a year, after cost"] == f"{(1 + bench).prod() ** (252 / 50) - 1:.2%}"
    assert (
        cells["Excess return a year, after cost"] == cells["Information ratio, after cost"] == "-"
    )
    assert {len(row) for row in (heading, *rows)} == {4}


def test_excess_returns_are_paired_by_day():
    one, other = report(3, 0.004), report(4, 0.0)
    equity = common_equity({"one": one, "other": other}, days_per_year=365)
    expected = paired_difference(one["excess_return"], other["excess_return"])
    assert equity.pairs[0].difference == expected
    (said,) = money_pair_verdicts(equity)
    assert said.startswith(f"one has an excess return after cost {365 * expected.mean:.1%} a year")
    assert "the difference is significant at 5%" in said
    (twins,) = money_pair_verdicts(common_equity({"a": one, "b": one}))
    assert twins == "a and b: not tested, the two earn the same on every day."


def test_chance_is_called_significant_about_as_often_as_it_should_be():
    found = [excess_test(report(seed, 0.0)["excess_return"]) for seed in range(200)]
    assert sum(test.is_significant() for test in found) <= 20, "10 are to be expected"


def test_a_backtest_that_is_its_benchmark_has_no_ratio_and_no_test():
    bench = report(3, 0.0)
    same = bench.assign(net_return=bench["bench"], excess_return=0.0)
    equity = common_equity({"index fund": same})
    assert equity.tests == {} and equity.deflated(3) == {}
    assert np.isnan(equity.measures.loc["index fund", "information_ratio"])
    table = equity.measures
    found = Comparison(table=table, signals=None, equity=equity, settings=pd.DataFrame())
    (said,) = run_verdicts(found)
    assert said.endswith("Its excess return after cost cannot be tested.")


def test_a_bar_in_a_name_does_not_break_a_markdown_table():
    assert format_rows([["", "a|b"], ["IC", "1"]], markdown=True).splitlines()[0].count("|") == 4


def test_means_that_cover_less_are_named_in_the_notes():
    """A run alone, or a mean beside its test, once stood with 95 % over an interval of 80 %."""
    rng = np.random.default_rng(0)
    skill = np.repeat(np.cumsum(rng.normal(size=50)), len(NAMES))
    slow = Signal(LABEL * skill, LABEL)
    found = compare_signals({"slow": slow, "noise": signal(2)})
    assert found.means["slow"].covers < 0.93
    comparison = Comparison(
        table=pd.DataFrame(index=["slow", "noise"]),
        signals=found,
        equity=None,
        settings=pd.DataFrame(),
    )
    (said,) = [note for note in notes_of(comparison) if "known to cover less" in note]
    assert f"mean of slow {found.means['slow'].covers:.0%} (correlation " in said
    assert "mean of noise" not in said
