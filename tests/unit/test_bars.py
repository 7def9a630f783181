"""Each rule finds its own fault, and a repair touches nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.data.files.check import check_bars, describe_report, measure_lot
from kronos_qlib.data.files.read import read_bars
from kronos_qlib.data.files.repair import REPAIRED_BY, REPAIRS, join_reports, repair_bars
from kronos_qlib.errors import BarDataError, ConfigError

PRICES = ["open", "high", "low", "close"]
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
    assert short[short.index("error duplicate: 10") + 4] == "  and 7 more"
    long = describe_report(report, in_full=("duplicate",)).splitlines()
    assert "  B 2024-01-05: the same bar again" in long
    assert sum("the same bar again" in line for line in long) == 10
    assert "more" not in "\n".join(long[long.index("error duplicate: 10") :][:12])


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


@pytest.mark.parametrize("other", ["bracket", "drop-bracket"])
def test_all_repairs_together_leave_no_error(bars, other):
    broken = pd.concat([bars, bars], ignore_index=True).sample(frac=1, random_state=0)
    broken = broken.reset_index(drop=True)
    for row, column, value in [(0, "open", -1), (2, "high", 1), (4, "low", np.nan)]:
        broken.loc[row, column] = value
    broken.loc[6, "amount"] = np.inf
    mended, _ = repair_bars(broken, [name for name in REPAIRS if name != other])
    report = check_bars(mended)
    assert set(report["severity"]) <= {"warning"}, describe_report(report)


def test_bars_that_do_not_span_are_widened_or_left_out_but_not_both(bars):
    bars.loc[6, "high"] = 10.0
    bars.loc[8, ["open", "high"]] = [np.nan, 10.0]  # the close is known, and lies above
    assert [row[1] for row in found(bars) if row[3] == "bracket"] == ["02", "04"]
    kept, record = repair_bars(bars, ["drop-bracket"])
    pd.testing.assert_frame_equal(kept, bars.drop([6, 8]).reset_index(drop=True))
    assert record["detail"][0] == "dropped: open 10, high 10, low 9, close 10.5"
    with pytest.raises(ConfigError, match="exclude each other"):
        repair_bars(bars, ["bracket", "drop-bracket"])


def test_no_window_spans_a_jump_when_the_bars_before_it_are_left_out(bars):
    bars.loc[2:, PRICES] *= 2
    bars.loc[3:, PRICES] *= 2
    kept, record = repair_bars(bars, ["drop-before-jump"])
    pd.testing.assert_frame_equal(kept, bars.loc[3:].reset_index(drop=True))
    assert record.to_numpy().tolist() == [
        ["A", pd.Timestamp("2024-01-04"), "drop-before-jump", "dropped: the 3 bars before"]
    ]
    same, record = repair_bars(bars, ["drop-before-jump"], max_move=10)
    pd.testing.assert_frame_equal(same, bars)
    assert record.empty
    with pytest.raises(ConfigError, match="max_move must be above 0"):
        check_bars(bars, max_move=0)


def trend(days: int = 40) -> pd.DataFrame:
    """One instrument that rises by a hundredth of its price a day."""
    close = 40 * 1.01 ** np.arange(days)
    prices = {"open": close / 1.005, "high": close * 1.01, "low": close / 1.01, "close": close}
    sizes = {"volume": 1000.0, "amount": 1000.0 * close, "factor": 1.0}
    dates = pd.date_range("2024-01-01", periods=days)
    return pd.DataFrame({"symbol": "A", "date": dates, **prices, **sizes})


def split(bars: pd.DataFrame, row: int, new: int, old: int) -> pd.DataFrame:
    """The bars as a vendor has them who does not adjust for a split."""
    late = (bars.index >= row)[:, None]
    raw = bars.copy()
    scaled = [*PRICES, "factor"]
    raw[scaled] = np.where(late, raw[scaled] * old / new, raw[scaled])
    raw["volume"] = np.where(late[:, 0], raw["volume"] * new / old, raw["volume"])
    return raw


@pytest.mark.parametrize(("new", "old"), [(2, 1), (3, 1), (7, 1), (10, 1), (1, 2), (1, 10), (3, 2)])
def test_a_split_is_undone_to_the_factor(new, old):
    bars = trend()
    raw = split(bars, 25, new, old)
    mended, record = repair_bars(raw, ["split-jumps"], max_move=0.3)
    assert record["detail"].tolist() == [f"{new}:{old} split: the 25 bars before adjusted"]
    wanted = bars.assign(factor=1.0, volume=1000.0 * new / old)
    wanted[[*PRICES, "factor"]] *= old / new
    pd.testing.assert_frame_equal(mended, wanted, rtol=1e-12)
    assert found(mended, max_move=0.3) == []


def test_two_splits_add_up_and_other_instruments_stay(bars):
    raw = split(split(trend(), 10, 2, 1), 30, 3, 1)
    mended, record = repair_bars(
        pd.concat([bars.assign(symbol="B").iloc[:5], raw]), ["split-jumps"]
    )
    pd.testing.assert_frame_equal(mended.iloc[:5], bars.assign(symbol="B").iloc[:5])
    assert mended["close"].iloc[5] == pytest.approx(40 / 6)
    assert len(record) == 2 and found(mended) == []


@pytest.mark.parametrize(
    ("story", "change"),
    [
        ("a spin-off takes what it takes", {"row": slice(25, 40), "by": 0.41}),
        ("one broken close is no level", {"row": slice(25, 26), "by": 0.5}),
        ("the last two bars tell no level", {"row": slice(38, 40), "by": 0.5}),
    ],
)
def test_a_jump_that_is_no_split_is_left_and_listed(story, change):
    bars = trend()
    bars.loc[bars.index[change["row"]], PRICES] *= change["by"]
    kept, record = repair_bars(bars, ["split-jumps"])
    pd.testing.assert_frame_equal(kept, bars)
    assert record.empty, story
    assert "jump" in [row[3] for row in found(bars)], story


def test_half_the_price_on_bad_news_is_no_split():
    """On the news many times more shares change hands than a split would make of them."""
    bars = split(trend(), 25, 2, 1)
    bars.loc[25, "volume"] *= 12
    assert repair_bars(bars, ["split-jumps"])[1].empty


def test_one_unknown_volume_hides_no_news():
    """One missing volume in the weeks before once switched the look at the day's volume off."""
    bars = split(trend(), 25, 2, 1)
    bars.loc[20, "volume"] = np.nan
    assert len(repair_bars(bars, ["split-jumps"])[1]) == 1
    busy = bars.copy()
    busy.loc[25, "volume"] *= 12
    assert repair_bars(busy, ["split-jumps"])[1].empty
    bars.loc[25, "volume"] = np.nan
    assert repair_bars(bars, ["split-jumps"])[1].empty, "whether there was news is not known"


def test_a_joint_report_tells_found_repaired_and_left(bars):
    bars.loc[1, "open"] = np.nan
    bars.loc[6, "high"] = 10.0
    mended, record = repair_bars(bars, ["drop-nan"])
    joint = join_reports(
        check_bars(bars, find_gaps=False), record, check_bars(mended, find_gaps=False)
    )
    assert joint[["stage", "rule"]].to_numpy().tolist() == [
        ["found", "nan"],
        ["found", "bracket"],
        ["repaired", "drop-nan"],
        ["left", "bracket"],
    ]


def test_a_report_has_one_format_of_dates(bars, tmp_path):
    """Joined to an empty record, days were written as 2024-01-03 00:00:00."""
    bars.loc[6, "high"] = 10.0
    _, record = repair_bars(bars, [])
    joint = join_reports(check_bars(bars.drop(index=1)), record)
    joint.to_csv(tmp_path / "report.csv", index=False)
    assert "gap" in set(joint["rule"]) and "00:00" not in (tmp_path / "report.csv").read_text()
    assert check_bars(bars.head(1))["date"].dtype == bars["date"].dtype


def test_every_error_and_warning_names_repairs_that_are_there():
    assert {name for names in REPAIRED_BY.values() for name in names} == set(REPAIRS)


def test_one_repair_as_text_is_no_list_of_them(bars):
    with pytest.raises(ConfigError, match=r"list of names, such as \['drop-nan'\]"):
        repair_bars(bars, "drop-nan")


def test_an_unknown_repair_names_the_known_ones(bars):
    with pytest.raises(ConfigError, match="drop-nan"):
        repair_bars(bars, ["make-good"])


def faults_by_hand(bars: pd.DataFrame) -> dict[str, set[tuple[str, pd.Timestamp]]]:
    """NaN bars, bars that do not span and jumps, asked bar by bar, without our functions."""
    faults: dict[str, set[tuple[str, pd.Timestamp]]] = {
        "nan": set(),
        "bracket": set(),
        "jump": set(),
    }
    closes: dict[str, float] = {}
    for symbol, date, opened, high, low, close in zip(
        *(bars[name] for name in ("symbol", "date", *PRICES)), strict=True
    ):
        key = (symbol, date)
        if any(price != price for price in (opened, high, low, close)):
            faults["nan"].add(key)
        if high < opened or high < close or low > opened or low > close:
            faults["bracket"].add(key)
        if close == close:  # the next known close, whatever lies between
            if symbol in closes and abs(close / closes[symbol] - 1) > 0.4:
                faults["jump"].add(key)
            closes[symbol] = close
    return faults


def faults_found(bars: pd.DataFrame) -> dict[str, set[tuple[str, pd.Timestamp]]]:
    report = check_bars(bars, find_gaps=False)
    rows = {rule: report[report["rule"] == rule] for rule in ("nan", "bracket", "jump")}
    assert not any(found.duplicated(["symbol", "date"]).any() for found in rows.values())
    return {
        rule: set(zip(found["symbol"], found["date"], strict=True)) for rule, found in rows.items()
    }


needs_us_daily = pytest.mark.skipif(not US_DAILY.exists(), reason=f"{US_DAILY} is not there")


@needs_us_daily
def test_every_fault_of_the_dirty_us_panel_is_found():
    bars = pd.read_parquet(US_DAILY)
    wanted = faults_by_hand(bars)
    assert {rule: len(bars) for rule, bars in wanted.items()} == {
        "nan": 10,
        "bracket": 12,
        "jump": 10,
    }
    assert faults_found(bars) == wanted


@pytest.fixture(scope="module")
def jumping():
    """Names of the panel with a jump and twenty others, and the jumps."""
    every = pd.read_parquet(US_DAILY).sort_values(["symbol", "date"], ignore_index=True)
    jumps = faults_by_hand(every)["jump"]
    names = {name for name, _ in jumps} | set(every["symbol"].unique()[:20])
    return every[every["symbol"].isin(names)].reset_index(drop=True), jumps


@needs_us_daily
@pytest.mark.parametrize("offsets", [(-1,), (1,), (-1, 1), (-3, -2, -1)])
def test_jumps_are_found_across_bars_without_a_close(jumping, offsets):
    """A NaN bar next to a jump would hide it from whoever compares neighbouring rows."""
    bars, jumps = jumping[0].copy(), jumping[1]
    rows = np.flatnonzero([key in jumps for key in zip(bars["symbol"], bars["date"], strict=True)])
    for offset in offsets:
        bars.loc[rows + offset, PRICES] = np.nan
    wanted = faults_by_hand(bars)
    # LNT's two jumps, into one broken close and out of it, are each other's neighbours.
    assert len(wanted["jump"]) >= 8 and len(wanted["nan"]) > 10
    assert faults_found(bars) == wanted


@needs_us_daily
def test_the_splits_of_the_us_panel_are_told_from_spin_offs_and_news():
    """Discovery's two classes were split 2:1; the other jumps are none, though two VRTX gaps
    of +50 % on news and LNT's broken close look like it."""
    bars = pd.read_parquet(US_DAILY)
    mended, record = repair_bars(bars, ["drop-bracket", "split-jumps"])
    splits = record[record["rule"] == "split-jumps"]
    assert splits["symbol"].tolist() == ["DISCA", "DISCK"]
    assert splits["date"].eq(pd.Timestamp("2014-08-07")).all()
    left = check_bars(mended, find_gaps=False).query("rule == 'jump'")
    assert left["symbol"].tolist() == ["AMD", "BAX", "EBAY", "NI", "VRTX", "VRTX"]
    rest = ~bars["symbol"].isin(["DISCA", "DISCK"])
    untouched, _ = repair_bars(bars[rest], ["drop-bracket"])
    kept = mended[~mended["symbol"].isin(["DISCA", "DISCK"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, untouched, check_dtype=False)


def test_a_derived_amount_is_never_at_fault_itself(tmp_path):
    """A file without amount was told that its amount was negative, and to set its volume to 0."""
    days = pd.bdate_range("2024-01-01", periods=30)
    rng = np.random.default_rng(0)
    close = np.round(20 + rng.normal(0, 0.1, 30).cumsum(), 2)
    bars = pd.DataFrame({"date": days, "open": close, "high": close + 1, "low": close - 1})
    bars = bars.assign(close=close, volume=rng.integers(1000, 9999, 30).astype(float))
    bars.loc[10, ["low", "close"]] = [-40.3, -37.6]
    bars.loc[15, "high"] = np.nan
    bars.loc[20, "volume"] = -5.0
    bars.loc[26, ["open"]] = close[26] * 9
    bars.loc[28, ["open", "high", "low", "close", "volume"]] = np.nan
    bars.to_csv(tmp_path / "a.csv", index=False)
    read = read_bars(tmp_path / "a.csv", as_is=True).bars
    report = check_bars(read, max_move=None)
    rules_of = {
        day: set(report.loc[report["date"] == days[day], "rule"]) for day in (10, 15, 20, 26, 28)
    }
    assert rules_of == {
        10: {"nonpositive"},
        15: {"nan"},
        20: {"size"},
        26: {"bracket"},
        28: {"nan"},
    }
    sizes = report.loc[report["rule"] == "size", "detail"].tolist()
    assert sizes == ["volume -5"], "and no column that the file does not have"
    given = read.assign(amount=read["amount"].where(read["date"] != days[3], -1.0))
    assert (check_bars(given)["detail"] == "amount -1").any()
