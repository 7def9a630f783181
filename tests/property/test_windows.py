"""Which windows exist, against a slow search that anyone can read."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kronos_qlib.data.windows import BarTable, WindowScale, windows_to_score, windows_to_train
from kronos_qlib.errors import BarDataError
from kronos_qlib.schema import BAR_COLUMNS
from kronos_qlib.training.batches import Segment

DAYS = pd.bdate_range("2024-01-01", periods=14)
moments = st.sampled_from([None, *(str(day.date()) for day in DAYS)])
days = st.sampled_from(list(DAYS))
spans_of_one = st.lists(st.tuples(days, days), max_size=2)
row = st.sampled_from(["bar", "bar", "bar", "suspended", "absent"])
rows_of_one = st.lists(row, min_size=len(DAYS), max_size=len(DAYS))


@st.composite
def panels(draw):
    """Three shares on some of the same days; a suspended day is a row of NaN or no row."""
    frames = []
    for place, name in enumerate("abc"):
        kinds = draw(rows_of_one)
        rng = np.random.default_rng(place)
        bars = rng.uniform(1, 9, (len(DAYS), 6))
        bars[[kind == "suspended" for kind in kinds], :] = np.nan
        index = pd.MultiIndex.from_product([[name], DAYS], names=["instrument", "datetime"])
        frame = pd.DataFrame(bars, index=index, columns=list(BAR_COLUMNS))
        frames.append(frame[[kind != "absent" for kind in kinds]])
    panel = pd.concat(frames)
    assume(panel["close"].notna().any())
    return panel


searches = st.fixed_dictionaries(
    {
        "lookback": st.integers(2, 5),
        "first": moments,
        "last": moments,
        "max_age_days": st.sampled_from([None, 3, 6, 9]),
        "spans": st.none() | st.dictionaries(st.sampled_from("abz"), spans_of_one),
    }
)


def slow_search(panel, lookback, ahead, first, last, spans, max_age_days):
    """(last bar seen, instrument) of every window, one candidate at a time."""
    found = []
    for name, frame in panel.dropna().groupby(level=0):
        times = frame.index.get_level_values(1)
        for place, end in enumerate(times):
            if place + 1 < lookback or place + ahead >= len(times):
                continue
            oldest, newest = times[place - lookback + 1], times[place + ahead]
            begins = times[place + 1] if ahead else end
            inside = spans is None or any(a <= end <= b for a, b in spans.get(name, []))
            young = max_age_days is None or end - oldest <= pd.Timedelta(days=max_age_days)
            after_first = first is None or begins >= pd.Timestamp(first)
            before_last = last is None or newest <= pd.Timestamp(last)
            if inside and young and after_first and before_last:
                found.append((end, name))
    return sorted(found)


@settings(max_examples=80)
@given(panel=panels(), search=searches)
def test_windows_to_score(panel, search):
    windows = windows_to_score(BarTable.from_frame(panel), **search)
    assert list(windows.index) == slow_search(panel, ahead=0, **search)
    check_bars(panel, windows)


@settings(max_examples=80)
@given(panel=panels(), search=searches, horizon=st.integers(1, 3))
def test_windows_to_train(panel, search, horizon):
    windows = windows_to_train(BarTable.from_frame(panel), horizon=horizon, **search)
    assert list(windows.index) == slow_search(panel, ahead=horizon, **search)
    check_bars(panel, windows)


def check_bars(panel, windows):
    """Each window holds its own share's bars up to its end, and its horizon after it."""
    by_moment = [windows.index[run].get_level_values(0).unique() for run in windows.moments()]
    assert [list(one) for one in by_moment] == [
        [end] for end in windows.index.get_level_values(0).unique()
    ]
    assert sum(len(windows.take(run)) for run in windows.moments()) == len(windows)
    every = slice(None)
    rows, values = windows.rows(every), windows.bars(every)
    for place, (end, name) in enumerate(windows.index):
        own = panel.loc[name].dropna()
        at = own.index.get_loc(end)
        expected = own.iloc[at - windows.lookback + 1 : at + windows.ahead + 1]
        np.testing.assert_array_equal(values[place], expected.to_numpy(np.float32))
        assert list(windows.table.times[rows[place]]) == list(expected.index.to_numpy())
        assert (windows.table.times[rows[place, : windows.lookback]] <= end).all()
        assert windows.last_close[place] == np.float32(own["close"].loc[end])


@settings(max_examples=60)
@given(
    panel=panels(), lookback=st.integers(2, 4), horizon=st.integers(1, 3), cut=st.integers(3, 10)
)
def test_two_segments_share_no_target(panel, lookback, horizon, cut):
    """The published windows of training and validation overlap at the boundary."""
    table = BarTable.from_frame(panel)
    last, first = DAYS[cut], DAYS[cut + 1]
    training = Segment(windows_to_train(table, lookback, horizon, None, last))
    validation = Segment(windows_to_train(table, lookback, horizon, first, None), first)
    assume(len(training) and len(validation))
    targets = []
    for segment in (training, validation):
        which = np.arange(len(segment))
        counted = segment.batch(which, torch.device("cpu")).counted.numpy()
        assert counted[:, lookback:].all()
        targets.append(set(segment.windows.rows(which)[counted].tolist()))
    assert not targets[0] & targets[1]
    assert (table.times[sorted(targets[0])] <= last).all()
    assert (table.times[sorted(targets[1])] >= first).all()


@given(panel=panels(), seed=st.integers(0, 99))
def test_the_order_of_rows_does_not_matter(panel, seed):
    shuffled = panel.iloc[np.random.default_rng(seed).permutation(len(panel))]
    expected, found = BarTable.from_frame(panel), BarTable.from_frame(shuffled)
    np.testing.assert_array_equal(found.values, expected.values)
    np.testing.assert_array_equal(found.times, expected.times)
    np.testing.assert_array_equal(found.offsets, expected.offsets)
    assert found.instruments == expected.instruments


@given(seed=st.integers(0, 99), lookback=st.integers(2, 6), horizon=st.integers(1, 4))
def test_the_scale_sees_the_lookback_only(seed, lookback, horizon):
    """A level that knew the horizon would tell the network where prices go."""
    rng = np.random.default_rng(seed)
    rows = 3 * (lookback + horizon)
    index = pd.MultiIndex.from_product([["a"], pd.date_range("2024-01-01", periods=rows)])
    values = rng.uniform(1, 9, (rows, 6))
    changed = values.copy()
    changed[-horizon:] *= 3
    z = []
    for bars in (values, changed):
        table = BarTable.from_frame(pd.DataFrame(bars, index=index, columns=list(BAR_COLUMNS)))
        windows = windows_to_train(table, lookback, horizon)
        z.append(Segment(windows).batch(np.array([len(windows) - 1]), torch.device("cpu")).z)
    assert torch.equal(z[0][:, :lookback], z[1][:, :lookback])
    assert not torch.equal(z[0][:, lookback:], z[1][:, lookback:])
    past = values[-lookback - horizon : -horizon].astype(np.float32).astype(np.float64)
    by_hand = (past - past.mean(axis=0)) / (past.std(axis=0) + 1e-5)
    np.testing.assert_allclose(z[0][0, :lookback].numpy(), by_hand, rtol=1e-4, atol=1e-4)


def test_the_scale_is_undone_where_nothing_was_clipped():
    bars = np.random.default_rng(0).uniform(1, 9, (2, 8, 6)).astype(np.float32)
    scale = WindowScale.of(bars)
    np.testing.assert_allclose(scale.to_bars(scale.to_z(bars)), bars, rtol=1e-5)
    assert scale.to_z(bars * 100).max() == 5


def test_a_bare_date_covers_its_whole_day():
    """A segment or a span that ends on a date once lost that day's bars but the midnight one."""
    hours = pd.date_range("2024-01-01 10:00", periods=4, freq="h").append(
        pd.date_range("2024-01-02 10:00", periods=4, freq="h")
    )
    index = pd.MultiIndex.from_product([["a"], hours])
    table = BarTable.from_frame(pd.DataFrame(np.ones((8, 6)), index, columns=list(BAR_COLUMNS)))
    date, moment = "2024-01-01", "2024-01-01 12:00"

    def ends(**search):
        return windows_to_score(table, 2, **search).index.get_level_values(0).hour.tolist()

    assert ends(last=date) == ends(spans={"a": [(date, date)]}) == [11, 12, 13]
    assert ends(last=moment) == ends(spans={"a": [(date, moment)]}) == [11, 12]
    assert windows_to_train(table, 2, 1, last=date).ends.tolist() == [1, 2]


ONE_DAY = pd.DataFrame(np.ones((1, 6)), columns=list(BAR_COLUMNS))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([("a", DAYS[0]), ("a", DAYS[0])], "a at 2024-01-01T00:00: two bars of one time"),
        ([("a", DAYS[0]), (None, DAYS[1])], "1 bars have no instrument"),
        ([("a", DAYS[0]), ("a", None)], r"number 2 is missing"),
        ([DAYS[0], DAYS[1]], "index of .instrument, datetime., got one of 1 level"),
    ],
)
def test_bars_that_cannot_be_placed_are_refused(index, message):
    frame = pd.concat([ONE_DAY, ONE_DAY])
    frame.index = pd.Index(index)
    with pytest.raises(ValueError, match=message):
        BarTable.from_frame(frame)


def test_an_incomplete_bar_is_refused_by_name():
    frame = ONE_DAY.assign(volume=np.nan)
    frame.index = pd.MultiIndex.from_tuples([("SH600000", DAYS[0])])
    with pytest.raises(BarDataError, match=r"SH600000 at 2024-01-01.*volume is missing"):
        BarTable.from_frame(frame)
    with pytest.raises(BarDataError, match="lack the columns amount"):
        BarTable.from_frame(frame.drop(columns="amount"))


def test_a_time_zone_is_dropped_not_converted():
    """Shanghai's 09:30 once became 01:30, and the hour's embedding another one."""
    frame = ONE_DAY.set_axis(
        pd.MultiIndex.from_product([["a"], [pd.Timestamp("2024-01-01 09:30", tz="Asia/Shanghai")]])
    )
    assert BarTable.from_frame(frame).times[0] == np.datetime64("2024-01-01T09:30")
