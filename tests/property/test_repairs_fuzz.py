"""Whatever is wrong with a table: what was named is mended, and nothing else is touched."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from kronos_qlib.data.files.check import check_bars
from kronos_qlib.data.files.repair import REPAIRS, repair_bars

PRICES = ["open", "high", "low", "close"]
NUMBERS = [*PRICES, "volume", "amount", "factor"]

odd_prices = st.one_of(
    st.floats(0.5, 100), st.sampled_from([0.0, -1.0, math.nan, math.inf, -math.inf, 1e300, 1e-300])
)
odd_sizes = st.one_of(st.floats(0, 1e9), st.sampled_from([-1.0, math.nan, math.inf, 1e300]))

MENDS = {
    "drop-nan": {"nan"},
    "drop-nonpositive": {"nonpositive"},
    "drop-duplicates": {"duplicate"},
    "sort": {"order"},
    "drop-bracket": {"bracket", "high-below-low"},
    "zero-sizes": {"size"},
    "drop-before-jump": {"jump"},
}
"""What each repair leaves none of, on its own. Left out: those that depend on others."""


@st.composite
def dirty_tables(draw: st.DrawFn) -> pd.DataFrame:
    """Up to two instruments, some bars twice, in any order, with some odd numbers and levels."""
    rows = []
    for symbol in draw(st.sampled_from(["A", "AB"])):
        level = 10.0
        for day in range(draw(st.integers(0, 14))):
            level *= draw(st.sampled_from([1, 1, 1, 1.02, 0.97, 0.5, 2, 1 / 3]))
            rows.append((symbol, pd.Timestamp(2024, 1, 1 + day), level, level * 1.1, level * 0.9))
    table = pd.DataFrame(rows, columns=["symbol", "date", "open", "high", "low"])
    table = table.astype({"date": "datetime64[ns]", "open": float, "high": float, "low": float})
    table = table.assign(close=table["open"], volume=100.0, factor=1.0)
    table.insert(7, "amount", table["volume"] * table["close"])
    for _ in range(draw(st.integers(0, 4)) if len(table) else 0):
        row, name = draw(st.integers(0, len(table) - 1)), draw(st.sampled_from(NUMBERS[:6]))
        table.loc[row, name] = draw(odd_prices if name in PRICES else odd_sizes)
    if len(table) and draw(st.booleans()):
        rows = draw(st.lists(st.integers(0, len(table) - 1), max_size=len(table)))
        order = draw(st.permutations([*range(len(table)), *rows[:3]]))
        table = table.iloc[order].reset_index(drop=True)
    return table[["symbol", "date", *NUMBERS]]


@settings(max_examples=120)
@given(dirty_tables(), st.sampled_from(["bracket", "drop-bracket"]))
def test_all_repairs_but_one_leave_no_error_and_no_jump(table, without):
    before = table.copy()
    mended, _ = repair_bars(table, [name for name in REPAIRS if name != without])
    report = check_bars(mended, find_gaps=False)
    assert not (report["severity"] == "error").any()
    assert not (report["rule"] == "jump").any()
    pd.testing.assert_frame_equal(table, before)


@settings(max_examples=120)
@given(dirty_tables(), st.sampled_from(sorted(MENDS)))
def test_a_repair_leaves_nothing_of_what_it_mends(table, rule):
    mended, _ = repair_bars(table, [rule])
    left = set(check_bars(mended, find_gaps=False)["rule"])
    assert not MENDS[rule] & left


@settings(max_examples=300)
@given(dirty_tables(), st.sets(st.sampled_from(sorted({*REPAIRS} - {"bracket"}))))
def test_what_changed_is_in_the_record(table, rules):
    """Rows are told apart by a number that no repair knows."""
    table = table.assign(row=np.arange(len(table)))
    mended, record = repair_bars(table, rules)
    assert set(record["rule"]) <= rules
    before = table.set_index("row")
    after = mended.set_index("row")
    for row, bar in before.iterrows():
        if row in after.index and after.loc[row].equals(bar):
            continue
        named = record[record["symbol"] == bar["symbol"]]
        itself = named["date"] == bar["date"]
        earlier = named["rule"].isin(["split-jumps", "drop-before-jump"]) & (
            named["date"] >= bar["date"]
        )
        assert (itself | earlier).any()
    assert not {*after.index} - {*before.index}
