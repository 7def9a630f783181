"""Each rule finds its own fault, and a repair touches nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.data.bars import REPAIRS, check_bars, describe_report, measure_lot, repair_bars
from kronos_qlib.errors import BarDataError, ConfigError

US_DAILY = Path(__file__).parents[2].parent / "shared" / "data" / "us_daily_2013_2016.parquet"


@pytest.fixture
def bars() -> pd.DataFrame:
    dates = pd.date_range("2024-01-01", periods=5)
    rows = [
        (symbol, date, 10.0, 11.0, 9.0, 10.5, 100.0, 1050.0, 1.0)
        for symbol in ("A", "B")
        for date in dates
    ]
    names = ["symbol", "date", "open", "high", "low", "close", "volume", "amount", "factor"]
    return pd.DataFrame(rows, columns=names)


def found(bars: pd.DataFrame, **how: object) -> list[tuple[str, str, str, str]]:
    report = check_bars(bars, **how)
    dates = report["date"].dt.strftime("%d") if len(report) else report["date"]
    return list(zip(report["symbol"], dates, report["severity"], report["rule"], strict=True))


def test_sound_bars_have_an_empty_report(bars):
    report = check_bars(bars)
    assert list(report.columns) == ["symbol", "date", "severity", "rule", "detail"]
    assert report.empty


@pytest.mark.parametrize(
    ("column", "value", "rules"),
    [
        ("close", np.nan, ["nan"]),
        ("open", np.inf, ["bracket", "nan"]),
        ("low", 0.0, ["nonpositive"]),
        ("low", -1.0, ["nonpositive"]),
        ("high", 8.0, ["bracket", "high-below-low"]),
        ("high", 10.49, ["bracket"]),
        ("low", np.nextafter(10.0, 11.0), ["bracket"]),
        ("volume", -1.0, ["size"]),
        ("amount", np.nan, ["size"]),
        ("factor", 0.0, ["factor"]),
    ],
)
def test_one_wrong_number_breaks_its_rule(bars, column, value, rules):
    bars.loc[6, column] = value
    errors = [row for row in found(bars, max_move=None) if row[2] == "error"]
    assert errors == [("B", "02", "error", rule) for rule in rules]


def test_a_jump_is_a_warning_on_the_day_it_arrives(bars):
    bars.loc[3:4, ["open", "high", "low", "close"]] *= 2
    assert [row for row in found(bars) if row[3] == "jump"] == [("A", "04", "warning", "jump")]
    assert not any(row[3] == "jump" for row in found(bars, max_move=1.0))


def test_the_next_instrument_is_no_jump(bars):
    """B at ten times A's price is another share, not a move of 900 %."""
    bars.loc[5:, ["open", "high", "low", "close", "amount"]] *= 10
    assert found(bars) == []


def test_a_gap_is_one_row_with_its_length(bars):
    holes = bars.drop([6, 7])
    assert found(holes) == [("B", "02", "warning", "gap")]
    assert check_bars(holes)["detail"][0].startswith("2 missing")
    assert found(holes, find_gaps=False) == []
    assert found(holes, calendar=[pd.Timestamp("2024-01-01"), pd.Timestamp("2024-01-05")]) == []


def test_an_instrument_that_ends_early_has_no_gap(bars):
    assert found(bars.drop([8, 9])) == []


def test_rows_out_of_order_are_one_problem_per_instrument(bars):
    assert found(bars.iloc[[1, 0, 2, 4, 3, 5, 6, 7, 8, 9]])[0][2:] == ("error", "order")
    backwards = bars.iloc[::-1]
    assert [row[0] for row in found(backwards)] == ["A", "B"]


def test_a_table_day_by_day_is_in_order(bars):
    assert found(bars.iloc[[0, 5, 1, 6, 2, 7, 3, 8, 4, 9]]) == []


def test_a_second_bar_on_one_day_is_found(bars):
    twice = pd.concat([bars, bars.iloc[[9]]], ignore_index=True)
    assert ("B", "05", "error", "duplicate") in found(twice)
    twice = pd.concat([twice, bars.iloc[[1]].assign(close=9.5)], ignore_index=True)
    report = check_bars(twice)
    told = dict(report.loc[report["rule"] == "duplicate", ["symbol", "detail"]].to_numpy())
    assert told == {"A": "another: open 10, high 11, low 9, close 9.5", "B": "the same bar again"}


def test_a_description_shows_some_bars_of_each_rule_and_all_when_told(bars):
    report = check_bars(pd.concat([bars, bars], ignore_index=True))
    short = describe_report(report).splitlines()
    assert "error duplicate: 10" in short
    assert sum("the same bar again" in line for line in short) == 3
    long = describe_report(report, in_full=("duplicate",)).splitlines()
    assert "  B 2024-01-05: the same bar again" in long
    assert sum("the same bar again" in line for line in long) == 10


def test_money_that_does_not_fit_the_price_is_a_warning(bars):
    bars.loc[2, "amount"] *= 1000
    assert found(bars) == [("A", "03", "warning", "vwap")]


def test_lots_of_a_hundred_are_noticed(bars):
    assert measure_lot(bars) == 1
    lots = bars.assign(volume=bars["volume"] / 100)
    assert measure_lot(lots) == 100
    assert found(lots) == []


def test_a_missing_column_is_named(bars):
    with pytest.raises(BarDataError, match="'low'"):
        check_bars(bars.drop(columns="low"))
    with pytest.raises(BarDataError, match="'close' must hold numbers"):
        check_bars(bars.assign(close="10"))


def test_repairs_do_only_what_they_are_told(bars):
    bars.loc[1, "open"] = np.nan
    bars.loc[6, "high"] = 10.0
    bars.loc[7, "volume"] = -5.0
    before = bars.copy()
    repaired, record = repair_bars(bars, ["bracket"])
    pd.testing.assert_frame_equal(bars, before)
    assert list(record["rule"]) == ["bracket"]
    assert list(record["detail"]) == ["widened from high 10, low 9"]
    changed = before.copy()
    changed.loc[6, "high"] = 10.5
    pd.testing.assert_frame_equal(repaired, changed)

    mended, record = repair_bars(bars, ["zero-sizes", "bracket", "drop-nan"])
    assert set(check_bars(mended, find_gaps=False)["severity"]) <= {"warning"}
    assert list(record["rule"]) == ["drop-nan", "bracket", "zero-sizes"]
    untouched, record = repair_bars(bars, [])
    pd.testing.assert_frame_equal(untouched, before)
    assert record.empty


def test_of_two_bars_the_later_row_stays(bars):
    twice = pd.concat([bars, bars.iloc[[4]].assign(close=9.5)], ignore_index=True)
    repaired, record = repair_bars(twice, ["drop-duplicates", "sort"])
    assert len(repaired) == 10
    assert repaired["close"][4] == 9.5
    assert describe_report(record).splitlines()[:2] == [
        "drop-duplicates: 1",
        "  A 2024-01-05: dropped: a later row has this time: open 10, high 11, low 9, close 10.5",
    ]
    assert set(record["rule"]) == {"drop-duplicates"}  # its row was in order: sorting moves it only


def test_sizes_that_do_not_fit_the_price_are_zeroed_when_told(bars):
    """Which of the two is wrong cannot be told from the bar, so both go."""
    bars.loc[2, "amount"] *= 1e30
    bars.loc[4, "volume"] = 0.0
    mended, record = repair_bars(bars, ["zero-strange"])
    assert found(mended) == []
    assert record.to_numpy().tolist() == [
        ["A", pd.Timestamp("2024-01-03"), "zero-strange", "set to 0: volume 100, amount 1.05e+33"]
    ]
    assert mended.loc[2, ["volume", "amount"]].tolist() == [0, 0]
    pd.testing.assert_frame_equal(mended.drop(2), bars.drop(2))


def test_all_repairs_together_leave_no_error(bars):
    broken = pd.concat([bars, bars], ignore_index=True).sample(frac=1, random_state=0)
    broken = broken.reset_index(drop=True)
    for row, column, value in [(0, "open", -1), (2, "high", 1), (4, "low", np.nan)]:
        broken.loc[row, column] = value
    broken.loc[6, "amount"] = np.inf
    mended, _ = repair_bars(broken, REPAIRS)
    report = check_bars(mended)
    assert set(report["severity"]) <= {"warning"}, describe_report(report)


def test_an_unknown_repair_names_the_known_ones(bars):
    with pytest.raises(ConfigError, match="drop-nan"):
        repair_bars(bars, ["make-good"])


@pytest.mark.skipif(not US_DAILY.exists(), reason=f"{US_DAILY} is not there")
def test_every_fault_of_the_dirty_us_panel_is_found():
    bars = pd.read_parquet(US_DAILY)
    report = check_bars(bars)

    def keys(rule: str) -> set[tuple[str, pd.Timestamp]]:
        rows = report[report["rule"] == rule]
        assert not rows.duplicated(["symbol", "date"]).any()
        return set(zip(rows["symbol"], rows["date"], strict=True))

    # The same questions, asked bar by bar.
    missing, outside, jumps = set(), set(), set()
    closes: dict[str, float] = {}
    for symbol, date, opened, high, low, close in zip(
        *(bars[name] for name in ("symbol", "date", "open", "high", "low", "close")), strict=True
    ):
        key = (symbol, date)
        if any(price != price for price in (opened, high, low, close)):
            missing.add(key)
        if high < opened or high < close or low > opened or low > close:
            outside.add(key)
        if symbol in closes and abs(close / closes[symbol] - 1) > 0.4:
            jumps.add(key)
        closes[symbol] = close
    assert missing and outside and jumps
    assert keys("nan") == missing
    assert keys("bracket") == outside
    assert keys("jump") == jumps
