"""The rules for bars as functions of arrays, and a table that keeps them whatever fills it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kronos_qlib.data import rules
from kronos_qlib.data.files.check import check_bars, idle_bars
from kronos_qlib.data.files.repair import repair_bars
from kronos_qlib.data.rules import (
    find_faults,
    find_jumps,
    is_repeated,
    is_sound,
    is_untraded,
)
from kronos_qlib.data.windows.bar_table import BarTable, TableBuilder
from kronos_qlib.data.windows.find import NO_BAR, windows_to_score
from kronos_qlib.errors import BarDataError, ConfigError
from kronos_qlib.inference.frames import doubts_of
from kronos_qlib.schema import BAR_COLUMNS, PRICE_COLUMNS

NAN = np.nan
BARS = [
    (10.0, 11.0, 9.0, 10.5, 100.0, 1000.0),
    (10.5, 12.0, 10.0, 11.0, 250.0, 2700.0),
    (11.0, 11.5, 10.8, 11.2, 300.0, 3300.0),
]
"""Three sound bars; the last close is 11.2."""
LAST = BARS[-1]


def array(*rows) -> np.ndarray:
    return np.array(rows, dtype=np.float64)


HALTS = {
    "flat at the last close": (11.2, 11.2, 11.2, 11.2, 0, 0),
    "sizes empty (baostock)": (11.2, 11.2, 11.2, 11.2, NAN, NAN),
    "amount unknown": (11.2, 11.2, 11.2, 11.2, 0, NAN),
    "flat at another price, adjusted meanwhile": (5.6, 5.6, 5.6, 5.6, 0, 0),
    "the prices of the bar before": (*LAST[:4], 0, 0),
    "those, and sizes empty": (*LAST[:4], NAN, NAN),
    "only the close, the others 0": (0, 0, 0, 11.2, 0, 0),
    "only the close, the others empty": (NAN, NAN, NAN, 11.2, 0, NAN),
    "only the close, some 0 and some empty": (0, NAN, 0, 11.2, NAN, 0),
    "all prices 0": (0, 0, 0, 0, 0, 0),
    "all prices 0, sizes empty": (0, 0, 0, 0, NAN, NAN),
    "all prices 0, a volume": (0, 0, 0, 0, 100, 1000),
}
TRADES = {
    "locked at the limit": (12.3, 12.3, 12.3, 12.3, 40, 492),
    "a volume that rounds to 0 lots": (11.2, 11.2, 11.2, 11.2, 0, 500),
    "no volume, and yet it moved": (11.2, 11.4, 11.1, 11.3, 0, 0),
    "no volume known of a bar that moved": (11.2, 11.4, 11.1, 11.3, NAN, NAN),
    "the prices before, another volume": (*LAST[:4], 50, 550),
    "a negative volume is a fault of its own": (11.2, 11.2, 11.2, 11.2, -1, 0),
    "the open is known too": (11.2, 0, 0, 11.2, 0, 0),
}


@pytest.mark.parametrize("story", HALTS)
def test_a_bar_that_a_feed_wrote_on_a_halt_did_not_trade(story):
    """Whatever a vendor writes while nothing trades, it is not a bar and breaks no other rule."""
    bars = array(*BARS, HALTS[story], HALTS[story], (11.2, 11.9, 11.0, 11.8, 500, 5700))
    found = find_faults(bars)
    assert found["untraded"].tolist() == [False, False, False, True, True, False], story
    assert not any(flags[3:5].any() for rule, flags in found.items() if rule != "untraded")


@pytest.mark.parametrize("story", TRADES)
def test_a_bar_that_traded_is_none_of_them(story):
    assert not is_untraded(array(*BARS, TRADES[story], BARS[0])).any(), story


def test_no_volume_says_nothing_where_there_never_is_one():
    """Rates and indices have no volume, and stand still at times."""
    rate = array((7.1, 7.2, 7.0, 7.1, 0, 0), (7.1, 7.1, 7.1, 7.1, 0, 0), (7.1, 7.3, 7.1, 7.2, 0, 0))
    for bars in (rate, np.where(rate == 0, NAN, rate)):
        assert not is_untraded(bars).any()
        assert not is_untraded(bars, others_trade=True).any()
    still = np.repeat(array(rate[1]), 4, axis=0)
    assert not is_untraded(still).any()
    assert is_untraded(still, others_trade=True).all(), "suspended all the time, unlike the others"


def test_each_instrument_has_its_own_bar_before_and_its_own_volume():
    """The first bar of B is no repetition of A's last, and A's volumes say nothing of an index."""
    rate = array((7.1, 7.2, 7.0, 7.1, 0, 0), (7.1, 7.1, 7.1, 7.1, 0, 0))
    bars = np.concatenate([array(*BARS), array(LAST, *BARS[:2]), rate])
    starts = rules.starts_of(np.array([0] * 3 + [1] * 3 + [2] * 2))
    assert not (is_untraded(bars, starts) | is_repeated(bars, starts)).any()
    assert is_repeated(bars[:4]).tolist() == [False] * 3 + [True]


def test_a_bar_that_recurs_is_not_told_from_a_trade():
    """Of a coarse or made-up series a bar may be there again; a forward-filled one is not."""
    coarse = array(BARS[0], BARS[1], BARS[1], BARS[0], BARS[1])
    assert not is_repeated(coarse).any()
    assert not is_repeated(array(*[BARS[0]] * 5)).any()
    lots = array(BARS[0], BARS[1], BARS[1], (9, 9.5, 8.5, 9, 250, 2200))
    assert not is_repeated(lots).any(), "a volume in round lots is met again"
    filled = array(BARS[0], BARS[1], BARS[1], BARS[1], BARS[2])
    assert is_repeated(filled).tolist() == [False, False, True, True, False]
    assert find_faults(filled)["repeated"].tolist() == is_repeated(filled).tolist()
    assert not is_untraded(filled).any()
    tick = (10.0, 10.0, 10.0, 10.0, 150.0, 1500.0)
    assert not is_repeated(array(BARS[0], tick, tick, BARS[1])).any(), "one price, and a volume"


@pytest.mark.parametrize(
    ("bar", "rule"),
    [
        ((0.0, 11, 9, 10, 1, 10), "nonpositive"),
        ((10, 11, -9, 10, 1, 10), "nonpositive"),
        ((10, 8, 9, 8, 1, 10), "high-below-low"),
        ((10, 11, 9, 12, 1, 10), "bracket"),
        ((10, 11, 10.5, 11, 1, 10), "bracket"),
        ((10, 11, 9, 10, -1, 10), "size"),
        ((10, 11, 9, 10, 1, -10), "size"),
        ((10, NAN, 9, 10, 1, 10), "incomplete"),
        ((10, 11, 9, 10, NAN, 10), "incomplete"),
        ((10, np.inf, 9, 10, 1, 10), "incomplete"),
    ],
)
def test_one_wrong_number_breaks_its_rule(bar, rule):
    found = find_faults(array(*BARS, bar, BARS[0]))
    assert found[rule].tolist() == [False, False, False, True, False]
    assert not (np.isfinite(bar).all() and is_sound(array(*BARS, bar)))
    assert is_sound(array(*BARS))


def test_the_rounding_of_float32_is_no_fault():
    """Prices times a factor round one by one: a high one step below its close is sound there."""
    close = np.float32(10.1)
    high = np.nextafter(close, np.float32(0))
    bars = np.array([(10, high, 9, close, 1, 10)], dtype=np.float32)
    assert find_faults(bars)["bracket"].all()
    assert not find_faults(bars, slack=rules.FLOAT32_SLACK)["bracket"].any()
    table = BarTable.from_frame(frame_of({"A": bars}))
    np.testing.assert_array_equal(table.values, bars)
    bars[0, 1] = close * (1 - 1e-5)
    assert find_faults(bars, slack=rules.FLOAT32_SLACK)["bracket"].all()


numbers = st.sampled_from([0.0, 1.0, 1.0, 2.0, 3.0, -1.0])


@given(st.lists(st.tuples(*[numbers] * 6), max_size=8))
def test_a_quick_look_overlooks_nothing(rows):
    """What it calls sound breaks no rule but one, which needs the other instruments' volumes."""
    bars = np.array(rows, dtype=np.float32).reshape(-1, 6)
    if is_sound(bars):
        for rule, flags in find_faults(bars).items():
            assert not flags.any(), rule


def test_a_jump_is_a_close_far_from_the_one_before():
    closes = np.array([10.0, 14.0, 8.0, 100.0, 10.0])
    starts = rules.starts_of(np.array([0, 0, 0, 1, 1]))
    assert find_jumps(closes, starts).tolist() == [2, 4]
    assert find_jumps(closes, starts, 0.5).tolist() == [4]
    assert find_jumps(closes[:0], starts[:0]).tolist() == []


def quiet_bars(count=80, seed=0, deviation=0.012):
    """A walk whose bars open near the close before."""
    rng = np.random.default_rng(seed)
    closes = 50 * np.exp(np.cumsum(rng.normal(0, deviation, count)))
    opens = np.append(50.0, closes[:-1]) * np.exp(rng.normal(0, 0.003, count))
    high = np.maximum(opens, closes) * np.exp(rng.uniform(0.002, 0.008, count))
    low = np.minimum(opens, closes) * np.exp(-rng.uniform(0.002, 0.008, count))
    sizes = rng.uniform(1e5, 2e5, (2, count))
    return np.stack([opens, high, low, closes, *sizes], axis=1)


def starts_at(count, *places):
    starts = np.zeros(count, dtype=bool)
    starts[[0, *places]] = True
    return starts


@pytest.mark.parametrize("chunk", [1 << 18, 7])
@pytest.mark.parametrize(("new", "old"), [(3, 2), (2, 3), (4, 3), (3, 4)])
def test_a_split_too_small_for_a_jump_is_found(new, old, chunk, monkeypatch):
    """3:2 takes a third off a price, and 40 % is believed: it read as a crash of one day."""
    monkeypatch.setattr(rules, "CHUNK", chunk)
    bars = np.concatenate([quiet_bars(seed=1), quiet_bars(seed=2)])
    for kind in (np.float64, np.float32):
        split = bars.astype(kind)
        # Where the walk itself stands still, so that the ratio is what is seen.
        place = 110 + int(np.argmin(np.abs(bars[110:, 3] / bars[109:-1, 3] - 1)))
        split[place:, :4] *= old / new
        starts = starts_at(160, 80)
        assert find_jumps(split[:, 3], starts).tolist() == ([place] if old > 1.4 * new else [])
        assert rules.find_small_splits(split, starts).tolist() == [place]
        assert rules.find_small_splits(split[80:], starts_at(80)).tolist() == [place - 80]
        early = split[place - 10 :]  # too few bars before it to say what is usual
        assert rules.find_small_splits(early, starts_at(len(early))).tolist() == []
    assert rules.find_small_splits(bars, starts_at(160, 80)).tolist() == []
    assert rules.find_small_splits(bars[:0], starts_at(1)[:0]).tolist() == []


def test_news_and_wild_series_are_no_split():
    bars = quiet_bars()
    news = bars.copy()
    news[50:, :4] *= 2 / 3
    news[50, 2] *= 0.8  # sold off, and bought back by the close
    assert rules.find_small_splits(news, starts_at(80)).tolist() == []
    slow = bars.copy()
    slow[50:, :4] *= 2 / 3
    slow[50, 0] = bars[50, 0] * 0.9  # opened above, and fell through the day
    slow[50, 1] = slow[50, 0]
    assert rules.find_small_splits(slow, starts_at(80)).tolist() == []
    wild = quiet_bars(deviation=0.08)
    wild[50:, :4] *= 2 / 3
    assert rules.find_small_splits(wild, starts_at(80)).tolist() == []
    edge = bars.copy()
    edge[40:, :4] *= 2 / 3  # another instrument begins there
    assert rules.find_small_splits(edge, starts_at(80, 40)).tolist() == []


def test_a_small_split_is_reported_at_every_door_and_mended():
    bars = quiet_bars()
    place = 40 + int(np.argmin(np.abs(bars[40:70, 3] / bars[39:69, 3] - 1)))
    bars[place:, :4] *= 2 / 3
    bars[:, 5] = bars[:, 4] * bars[:, :4].mean(axis=1)
    days = pd.bdate_range("2024-01-01", periods=80)
    long = pd.DataFrame(bars, columns=list(BAR_COLUMNS)).assign(symbol="A", date=days)
    report = check_bars(long, find_gaps=False)
    assert report["rule"].tolist() == ["jump"] and report["date"].tolist() == [days[place]]
    assert check_bars(long, find_gaps=False, max_move=0.5).empty
    assert BarTable.from_bars(long).jumps.tolist() == [place]
    (doubt,) = doubts_of(bars.astype(np.float32), days.to_numpy("datetime64[ns]"))
    assert "the close jumps from" in doubt and "split-jumps" in doubt
    mended, record = repair_bars(long, ["split-jumps"])
    assert "3:2 split" in record["detail"].iloc[0]
    assert check_bars(mended, find_gaps=False).empty


DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.parametrize("name", ["us_daily_2013_2016", "cn_daily_2000_2002"])
def test_real_bars_raise_no_false_alarm(name):
    path = DATA / f"{name}.parquet"
    if not path.is_file():
        pytest.skip(f"no real bars at {path}: false alarms are NOT counted")
    table = pd.read_parquet(path, columns=["symbol", "date", *PRICE_COLUMNS]).dropna()
    table = table.sort_values(["symbol", "date"])
    starts = rules.starts_of(pd.factorize(table["symbol"])[0])
    bars = table[list(PRICE_COLUMNS)].to_numpy(np.float64)
    assert rules.find_small_splits(bars, starts).tolist() == []


# A table.

DAYS = pd.bdate_range("2024-01-01", periods=20)


def walk(length: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    close = 10 * np.exp(np.cumsum(rng.normal(0, 0.01, length)))
    opened = close * np.exp(rng.normal(0, 0.01, length))
    high, low = np.maximum(opened, close) * 1.01, np.minimum(opened, close) / 1.01
    volume = rng.uniform(1e3, 1e4, length)
    return np.stack([opened, high, low, close, volume, volume * close], axis=1)


def frame_of(bars: dict[str, np.ndarray]) -> pd.DataFrame:
    frames = {
        name: pd.DataFrame(rows, index=DAYS[: len(rows)], columns=list(BAR_COLUMNS))
        for name, rows in bars.items()
    }
    return pd.concat(frames)


@pytest.fixture
def dirty() -> dict[str, np.ndarray]:
    """A was suspended from its 6th bar to its 10th, and its 13th is upside down; B is sound; C has
    lost a volume, and an open."""
    bars = {name: walk(20, seed) for seed, name in enumerate("ABC")}
    bars["A"][5:10] = [bars["A"][4, 3]] * 4 + [0.0, 0.0]
    bars["A"][12, 1:3] = bars["A"][12, [2, 1]]
    bars["C"][3, 4] = np.nan
    bars["C"][7, 0] = 0.0
    return bars


def test_what_is_left_out_is_counted_by_rule(dirty):
    table = BarTable.from_frame(frame_of(dirty), incomplete="skip", invalid="skip")
    assert table.skipped == {"untraded": 5, "incomplete": 1, "nonpositive": 1, "high-below-low": 1}
    kept = np.concatenate(
        [
            np.delete(dirty["A"], [*range(5, 10), 12], 0),
            dirty["B"],
            np.delete(dirty["C"], [3, 7], 0),
        ]
    )
    np.testing.assert_array_equal(table.values, kept.astype(np.float32))
    assert table.times[: len(kept) - 38].tolist() == [
        *DAYS[:5].as_unit("ns").to_numpy().tolist(),
        *DAYS[[10, 11, *range(13, 20)]].as_unit("ns").to_numpy().tolist(),
    ]
    windows = windows_to_score(table, 3, first=DAYS[6], last=DAYS[12])
    assert windows.dropped == {"untraded": 4, "nonpositive": 1, "high-below-low": 1}
    assert len(windows) == 3 * 7 - 6
    assert table.describe_left_out() == (
        "8 bars left out, as if suspended (5 untraded, 1 incomplete, 1 nonpositive, 1 "
        "high-below-low): A 6 from 2024-01-08 to 2024-01-17, C 2 from 2024-01-04 to 2024-01-10"
    )


def test_a_day_without_a_bar_and_a_bar_left_out_are_told_apart(dirty):
    dirty["A"][14] = np.nan
    table = BarTable.from_frame(frame_of({"A": dirty["A"], "B": dirty["B"]}), invalid="skip")
    windows = windows_to_score(table, 2)
    assert windows.dropped[NO_BAR] == 1
    assert windows.dropped["untraded"] == 5
    spans = {"A": [(DAYS[7], DAYS[8])]}
    assert windows_to_score(table, 2, spans=spans).dropped["untraded"] == 2


def test_a_name_that_is_still_suspended_is_told():
    """Its last bars are left out, and with them the end of its history."""
    bars = {"A": walk(20), "B": walk(20, 1)}
    bars["A"][15:] = [bars["A"][14, 3]] * 4 + [0.0, 0.0]
    windows = windows_to_score(BarTable.from_frame(frame_of(bars)), 2)
    assert windows.dropped == {"untraded": 5, "too few bars before": 2}
    assert windows.times.max() == DAYS[-1] and len(windows) == 14 - 1 + 20 - 0


def test_an_error_names_a_bar_its_values_the_count_and_the_way_out(dirty):
    frame = frame_of({name: dirty[name] for name in "AB"} | {"D": dirty["A"]})
    with pytest.raises(BarDataError) as told:
        BarTable.from_frame(frame)
    said = str(told.value)
    assert said.startswith("A at 2024-01-17: high-below-low: open ")
    assert "(2 such bars of A, D)" in said and said.endswith("invalid='skip'")
    with pytest.raises(BarDataError, match=r"A at 2024-01-08.*untraded.*10 such bars of A, D; 2"):
        BarTable.from_frame(frame, untraded="error")


def test_bars_are_kept_as_they_are_when_told(dirty):
    frame = frame_of({name: dirty[name] for name in "AB"})
    table = BarTable.from_frame(frame, invalid="keep", untraded="keep")
    assert len(table) == 40 and table.skipped == {}
    frame.iloc[7, :4] = 0.0  # no price: there is nothing to keep
    assert BarTable.from_frame(frame, invalid="skip", untraded="keep").skipped == {
        "untraded": 1,
        "high-below-low": 1,
    }


def test_a_choice_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="invalid must be 'error' or 'skip' or 'keep', got 'no'"):
        TableBuilder(DAYS.to_numpy(), 1, invalid="no")
    with pytest.raises(ConfigError, match="untraded must be 'skip' or 'error' or 'keep'"):
        TableBuilder(DAYS.to_numpy(), 1, untraded="drop")


def test_a_suspension_of_all_that_is_read_is_one_where_others_trade():
    still = np.tile([5.0, 5.0, 5.0, 5.0, 0.0, 0.0], (20, 1))
    rate = walk(20, 3)
    rate[:, 4:] = 0.0
    table = BarTable.from_frame(frame_of({"A": walk(20), "RATE": rate, "STILL": still}))
    assert table.skipped == {"untraded": 20}
    assert np.diff(table.offsets).tolist() == [20, 20, 0]
    alone = BarTable.from_frame(frame_of({"RATE": rate, "STILL": still}))
    assert len(alone) == 40, "nobody has a volume: it is not known"


# Jumps inside windows.


@pytest.mark.parametrize("chunk", [1 << 20, 7])
def test_windows_that_span_a_split_are_found(chunk, monkeypatch):
    monkeypatch.setattr("kronos_qlib.data.windows.bar_table.CHUNK", chunk)
    bars = {"A": walk(20), "B": walk(20, 1) * 50, "C": walk(20, 2)}
    bars["C"][12:, :4] /= 10
    table = BarTable.from_frame(frame_of(bars))
    assert table.jumps.tolist() == [40 + 12]
    windows = windows_to_score(table, 5)
    which, rows = windows.jumps()
    assert rows.tolist() == [52] * 4
    last = windows.index[which]
    assert set(last.get_level_values(1)) == {"C"}
    # The bar before the split is seen by the windows that end on it and on the 3 after.
    assert last.get_level_values(0).tolist() == list(DAYS[12:16])
    said = windows.describe_jumps()
    assert said.startswith("4 of 48 windows span a close that moves by more than 40%")
    assert "C at 2024-01-17 " in said and "-90." in said and "split-jumps" in said
    assert windows.take(np.flatnonzero(windows.times < DAYS[12])).describe_jumps() == ""
    shorter = windows_to_score(table, 5, min_bars=2, first=DAYS[12], last=DAYS[12])
    assert "1 of 3 windows" in shorter.describe_jumps()


def test_a_bar_that_repeats_the_one_before_a_halt_is_left_out_at_every_door():
    """Repairs looked again once the halt was gone, and the forecast did not."""
    halt = (10.5, 10.5, 10.5, 10.5, 0.0, 0.0)
    bars = pd.DataFrame([BARS[0], halt, BARS[0], BARS[1]], columns=list(BAR_COLUMNS))
    bars.insert(0, "date", pd.date_range("2024-01-01", periods=4))
    bars.insert(0, "symbol", "A")
    assert idle_bars(bars).tolist() == [False, True, True, False]
    kept, record = repair_bars(bars, ["drop-untraded"])
    assert kept["close"].tolist() == [10.5, 11.0]
    assert record["date"].dt.day.tolist() == [2, 3]
    assert not len(idle_bars(bars.head(0)))
