"""What is advised about a report: a repair where one helps, the cause where it would destroy."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.data.files.advice import advise, describe_advice, describe_units
from kronos_qlib.data.files.check import check_bars
from kronos_qlib.data.files.repair import repair_bars

DAYS = pd.bdate_range("2024-01-01", periods=60)


def table(seed: int = 0, symbol: str = "A", level: float = 20.0, times=DAYS) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    close = level * np.exp(np.cumsum(rng.normal(0, 0.01, len(times))))
    opened = close * np.exp(rng.normal(0, 0.005, len(times)))
    volume = np.round(rng.uniform(1e5, 1e6, len(times)))
    prices = {
        "open": opened,
        "high": np.maximum(opened, close) * 1.005,
        "low": np.minimum(opened, close) / 1.005,
        "close": close,
    }
    bars = pd.DataFrame({"symbol": symbol, "date": times, **prices, "volume": volume})
    return bars.assign(amount=volume * close, factor=1.0)


def advice_on(bars: pd.DataFrame) -> dict[str, str]:
    """What is said of each rule."""
    found = advise(bars, check_bars(bars, find_gaps=False))
    return {one.rule: describe_advice([one]) for one in found}


def test_a_fault_of_few_bars_has_its_repairs():
    bars = table()
    bars.loc[3, "high"] = bars["low"][3] * 0.99
    bars.loc[5, "volume"] = -1.0
    assert advice_on(bars) == {
        "bracket": "  bracket: --repair drop-bracket or bracket fixes it",
        "high-below-low": "  high-below-low: --repair drop-bracket or bracket fixes it",
        "size": "  size: --repair zero-sizes fixes it",
    }
    bars.loc[7, "factor"] = 0.0
    assert advice_on(bars)["factor"] == "  factor: no repair fixes it"


@pytest.mark.parametrize(
    ("amount", "volume", "said"),
    [
        (1e-3, 1e-2, "amount x 1,000, volume x 100"),
        (1e-4, 1e-2, "amount x 10,000, volume x 100"),
        (1e-3, 1, "amount x 1,000"),
        (1e-4, 1, "amount x 10,000"),
        (1e-6, 1, "amount x 1,000,000"),
        (1e-8, 1, "amount x 100,000,000"),
        (1e-5, 1, "bring volume to shares and amount to money"),
    ],
)
def test_other_units_are_told_and_never_zeroed(amount, volume, said):
    """Tushare's file of 150 bars was to be mended by setting all its volumes to 0."""
    bars = table()
    bars["amount"] *= amount
    bars["volume"] *= volume
    told = advice_on(bars)["vwap"]
    assert told.endswith(said) and "of 60 bars" in told
    assert "zero" not in told and "repair" not in told


def test_lots_and_right_units_are_no_matter_of_units():
    bars = table()
    assert describe_units(bars) == describe_units(bars.drop(columns="amount")) == ""
    assert describe_units(bars.assign(volume=bars["volume"] / 100)) == ""
    bars.loc[3, "amount"] *= 1e-3
    assert describe_units(bars) == ""
    assert advice_on(bars) == {"vwap": "  vwap: --repair zero-strange fixes it"}


def test_sizes_beside_adjusted_prices_are_never_zeroed():
    """Adjusted prices beside the sizes as traded: a third of all volumes was to be set to 0."""
    bars = table()
    bars.loc[:19, ["open", "high", "low", "close"]] *= 0.43
    said = advice_on(bars)
    assert "20 of 60 bars" in said["vwap"] and "a column factor" in said["vwap"]
    assert "--repair" not in said["vwap"]


def test_amounts_of_another_column_are_not_zeroed_either():
    bars = table()
    bars["amount"] *= np.exp(np.random.default_rng(1).normal(0, 3, len(bars)))
    told = advice_on(bars)["vwap"]
    assert "repair" not in told and "each column" in told


def test_two_shares_under_one_name_are_never_merged():
    """drop-duplicates made one share of two: half of the rows were gone, one name had both."""
    both = pd.concat([table(0), table(1, level=200.0)], ignore_index=True)
    told = advice_on(both)["duplicate"]
    assert "60 of 60 times have several bars" in told and "symbol=THEIRS" in told
    assert "repair" not in told and "date=" not in told
    close = pd.concat([table(0), table(0).assign(close=lambda bars: bars["close"] * 1.001)])
    told = advice_on(close.reset_index(drop=True))["duplicate"]
    assert "symbol=THEIRS" in told and "date=THEIRS" in told and "repair" not in told


def test_a_time_of_day_left_out_is_named_first():
    """48 bars of five minutes stood at each of three days, and one of them was to stand for all."""
    minutes = table(times=pd.date_range("2024-01-02 09:35", periods=144, freq="5min"))
    minutes["date"] = pd.DatetimeIndex(np.repeat(DAYS[:3], 48))
    told = advice_on(minutes)["duplicate"]
    assert "3 of 3 times have several bars, which differ, 48 each: either the time of day" in told
    assert "repair" not in told


def test_a_few_bars_that_differ_are_for_their_owner_to_choose():
    bars = table()
    other = bars.iloc[[10]].assign(close=bars["close"][10] * 1.001)
    told = advice_on(pd.concat([bars, other], ignore_index=True))["duplicate"]
    assert "1 of 60 times" in told and "see which is right" in told and "repair" not in told


def test_a_bar_that_is_there_twice_may_go():
    bars = pd.concat([table(), table()], ignore_index=True)
    assert advice_on(bars)["duplicate"] == "  duplicate: --repair drop-duplicates fixes it"
    assert len(repair_bars(bars, ["drop-duplicates"])[0]) == 60


@pytest.mark.parametrize(
    ("change", "rule", "said"),
    [
        (lambda b: b.rename(columns={"high": "low", "low": "high"}), "bracket", "change places"),
        (lambda b: b.assign(high=b["close"] / 2), "bracket", "map each to its own"),
        (lambda b: b.assign(open=np.nan), "nan", "open is empty in nearly all bars"),
        (lambda b: b.assign(open=0.0), "nonpositive", "holds no price"),
        (lambda b: b.assign(volume=-1.0, amount=-1.0), "size", "volume and amount has one value"),
        (lambda b: b.assign(amount=np.nan), "size", "amount has one value throughout"),
        (lambda b: b.assign(factor=0.0), "factor", "each column is what it is read as"),
    ],
)
def test_what_nearly_all_bars_break_has_a_cause_and_no_repair(change, rule, said):
    told = advice_on(change(table()))[rule]
    assert said in told
    assert "fixes" not in told


def test_a_suspension_is_left_out_and_its_sizes_are_not_zeroed():
    """baostock's suspended days, empty volumes and all, were stored as bars of volume 0."""
    bars = table()
    prices = ["open", "high", "low", "close"]
    for row in range(20, 35):
        bars.loc[row, prices] = bars["close"][19]
        bars.loc[row, ["volume", "amount"]] = np.nan
    assert advice_on(bars) == {"untraded": "  untraded: --repair drop-untraded fixes it"}
    mended, record = repair_bars(bars, ["drop-untraded"])
    pd.testing.assert_frame_equal(mended, bars.drop(range(20, 35)).reset_index(drop=True))
    assert len(record) == 15 and advice_on(mended) == {}
    zeroed, _ = repair_bars(bars, ["zero-sizes"])
    assert set(advice_on(zeroed)) == {"untraded"}, "no way around it"


def test_bars_at_one_time_do_not_hide_or_make_a_suspension():
    """A bar that stands twice is a duplicate, not the bar of a day without trade."""
    bars = pd.concat([table(), table().iloc[[5]]], ignore_index=True)
    assert set(check_bars(bars, find_gaps=False)["rule"]) == {"duplicate", "order"}
    flat = table()
    flat.loc[5, ["open", "high", "low", "close"]] = flat["close"][4]
    flat.loc[5, ["volume", "amount"]] = 0.0
    twice = pd.concat([flat, flat.iloc[[5]]], ignore_index=True).sample(frac=1, random_state=0)
    report = check_bars(twice.reset_index(drop=True), find_gaps=False)
    assert (report["rule"] == "untraded").sum() == 2
    assert advice_on(table().iloc[:0]) == {}


def test_pence_are_told_beside_lots_and_ten_thousands():
    """Shares quoted in pence were advised to multiply their amounts by 10,000."""
    bars = table()
    bars[["open", "high", "low", "close"]] *= 100
    told = advice_on(bars)["vwap"]
    assert "prices in cents or pence? Then divide them by 100" in told and "repair" not in told


def test_a_spread_is_not_torn_by_leaving_out_what_lies_below_zero():
    """A calendar spread lost the third of its bars that lay below 0, by a repair on offer."""
    bars = table()
    bars[["open", "high", "low", "close"]] -= bars["close"].mean()
    told = advice_on(bars)["nonpositive"]
    assert "prices below 0 that fit one another" in told and "repair" not in told
    few = table()
    few.loc[7, ["low", "close"]] = [-40.3, -37.6]
    assert advice_on(few)["nonpositive"].endswith("drop-nonpositive fixes it")


def test_an_hour_that_stands_twice_is_put_down_to_the_clocks():
    """It was said to be another instrument's, or a correction."""
    times = pd.date_range("2023-10-27", periods=96, freq="h", tz="Europe/Berlin").tz_localize(None)
    told = advice_on(table(times=times))["duplicate"]
    assert "clocks went back" in told and "UTC" in told and "repair" not in told
    moved = advice_on(table(times=times + pd.Timedelta(days=1)))["duplicate"]
    assert "two instruments" in moved and "clocks" not in moved


def test_quotients_beyond_all_numbers_are_no_units():
    """The largest amount by the smallest volume was an overflow."""
    bars = pd.DataFrame({name: [1.0] * 40 for name in ("open", "high", "low", "close")})
    assert describe_units(bars.assign(volume=1e-300, amount=1e300)) == ""
    assert "1e-300" in describe_units(bars.assign(volume=1e150, amount=1e-150))
