"""Which windows exist, against a slow search that anyone can read."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import kronos_qlib.data.windows.gather as gather_module
from kronos_qlib.data.windows.bar_table import BarTable
from kronos_qlib.data.windows.find import (
    CUT,
    NO_BAR,
    OUTSIDE,
    TOO_FEW,
    TOO_OLD,
    UNFINISHED,
    windows_to_score,
    windows_to_train,
)
from kronos_qlib.data.windows.gather import WindowBatch, gather
from kronos_qlib.data.windows.scale import WindowScale
from kronos_qlib.data.windows.segments import places_of
from kronos_qlib.data.windows.window import RunRows
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
        "min_bars": st.sampled_from([None, 2, 3]),
        "spans": st.none() | st.dictionaries(st.sampled_from("abz"), spans_of_one),
    }
)


def slow_search(panel, lookback, ahead, first, last, spans, max_age_days, min_bars):
    """Every window's (last bar seen, instrument, bars seen), and why others are none, by count.

    One candidate at a time: each day on which an instrument was due or had a bar.
    """
    found, reasons = [], Counter()
    first = DAYS[0] if first is None else pd.Timestamp(first)
    last = DAYS[-1] if last is None else pd.Timestamp(last)
    least = lookback if min_bars is None else min_bars
    bars = panel.dropna()
    calendar = sorted(bars.index.get_level_values(1).unique())
    if not any(first <= day <= last for day in calendar):
        return [], {}
    for name, frame in bars.groupby(level=0):
        times = list(frame.index.get_level_values(1))
        listed = [(times[0], times[-1])] if spans is None else spans.get(name, [])
        for day in calendar:
            is_member = any(a <= day <= b for a, b in listed)
            if day not in times:
                reasons[NO_BAR] += is_member and first <= day <= last
                continue
            place = times.index(day)
            following = times[place + 1 : place + 1 + ahead]
            belongs = [day, *following[:1]] if ahead else [day]  # one bar early, by its horizon
            if not any(first <= one <= last for one in belongs) or day > last:
                continue
            if not is_member:
                reasons[OUTSIDE] += 1
                continue
            seen = times[max(0, place + 1 - lookback) : place + 1]
            if len(seen) < least:
                reasons[TOO_FEW] += 1
            elif len(following) < ahead:
                reasons[UNFINISHED] += 1
            elif ahead and following[-1] > last:
                reasons[CUT] += 1
            else:
                if max_age_days is not None:
                    seen = [time for time in seen if (day - time).days <= max_age_days]
                if len(seen) < least or (min_bars is None and len(seen) < lookback):
                    reasons[TOO_OLD] += 1
                else:
                    found.append((day, name, len(seen)))
    return sorted(found), {reason: count for reason, count in reasons.items() if count}


def seen_of(windows):
    lengths = [windows.lookback] * len(windows) if windows.lengths is None else windows.lengths
    return [(*key, length) for key, length in zip(windows.index, lengths, strict=True)]


@settings(max_examples=120)
@given(panel=panels(), search=searches)
def test_windows_to_score(panel, search):
    assume(search["min_bars"] is None or search["min_bars"] <= search["lookback"])
    windows = windows_to_score(BarTable.from_frame(panel, invalid="keep"), **search)
    found, reasons = slow_search(panel, ahead=0, **search)
    assert seen_of(windows) == found
    assert windows.dropped == reasons
    check_bars(panel, windows)


@settings(max_examples=120)
@given(panel=panels(), search=searches, horizon=st.integers(1, 3))
def test_windows_to_train(panel, search, horizon):
    assume(search["min_bars"] is None or search["min_bars"] <= search["lookback"])
    windows = windows_to_train(
        BarTable.from_frame(panel, invalid="keep"), horizon=horizon, **search
    )
    found, reasons = slow_search(panel, ahead=horizon, **search)
    assert seen_of(windows) == sorted(found, key=lambda window: (window[1], window[0]))
    assert seen_of(windows.by_time()) == found
    assert windows.dropped == reasons
    check_bars(panel, windows)


@settings(max_examples=60)
@given(panel=panels(), search=searches, times=st.integers(0, 16))
def test_windows_whose_label_lies_beyond_the_segment_are_left_out(panel, search, times):
    """The segment's last times are found by place, whichever way its end was written."""
    assume(search["min_bars"] is None or search["min_bars"] <= search["lookback"])
    table = BarTable.from_frame(panel, invalid="keep")
    _, stop = places_of(table.calendar, search["first"], search["last"])
    shorter = windows_to_score(table, **search, leave_out=times)
    every = windows_to_score(table, **search)
    ends = table.places[every.ends[:]]
    assert seen_of(shorter) == seen_of(every.take(np.flatnonzero(ends < stop - times)))


def check_bars(panel, windows):
    """Each window holds its own share's bars up to its end, and its horizon after it."""
    ordered = windows.by_time()
    by_moment = [ordered.index[run].get_level_values(0).unique() for run in ordered.moments()]
    assert [list(one) for one in by_moment] == [
        [end] for end in ordered.index.get_level_values(0).unique()
    ]
    assert sum(len(ordered.take(run)) for run in ordered.moments()) == len(windows)
    grouped = []
    for which, group in windows.by_length():
        grouped += which.tolist()
        rows, values = group.rows(slice(None)), group.bars(slice(None))
        for place, (end, name) in enumerate(group.index):
            own = panel.loc[name].dropna()
            at = own.index.get_loc(end)
            expected = own.iloc[at - group.lookback + 1 : at + group.ahead + 1]
            np.testing.assert_array_equal(values[place], expected.to_numpy(np.float32))
            assert list(windows.table.times_at(rows[place])) == list(expected.index.to_numpy())
            assert (windows.table.times_at(rows[place, : group.lookback]) <= end).all()
            assert group.last_close[place] == np.float32(own["close"].loc[end])
            assert windows.index[which[place]] == (end, name)
    assert sorted(grouped) == list(range(len(windows)))


@settings(max_examples=60)
@given(
    panel=panels(), lookback=st.integers(2, 4), horizon=st.integers(1, 3), cut=st.integers(3, 10)
)
def test_two_segments_share_no_target(panel, lookback, horizon, cut):
    """The published windows of training and validation overlap at the boundary."""
    table = BarTable.from_frame(panel, invalid="keep")
    last, first = DAYS[cut], DAYS[cut + 1]
    training = Segment(windows_to_train(table, lookback, horizon, None, last))
    validation = Segment(windows_to_train(table, lookback, horizon, first, None))
    assume(len(training) and len(validation))
    targets = []
    for segment in (training, validation):
        which = np.arange(len(segment))
        counted = segment.batch(which, torch.device("cpu")).counted.numpy()
        assert counted[:, lookback:].all()
        targets.append(set(segment.windows.rows(which)[counted].tolist()))
    for others in (
        validation.evenly(1).windows,
        validation.windows.by_time(),
        *(group for _, group in validation.windows.by_length()),
    ):
        assert others.begin == validation.windows.begin
    assert not targets[0] & targets[1]
    assert (table.times[sorted(targets[0])] <= last).all()
    assert (table.times[sorted(targets[1])] >= first).all()


@settings(max_examples=60)
@given(panel=panels(), search=searches, horizon=st.integers(0, 2), seed=st.integers(0, 9))
def test_gathered_windows_are_their_bars_normalised_one_by_one(panel, search, horizon, seed):
    """The fast way through one piece of memory, against each window by itself in float64."""
    assume(search["min_bars"] is None or search["min_bars"] <= search["lookback"])
    first = search.pop("first")
    table = BarTable.from_frame(panel, invalid="keep")
    windows = windows_to_train(table, horizon=horizon, **search)
    assume(len(windows))
    begin, _ = places_of(table.calendar, first, None)
    windows = replace(windows, begin=begin)
    rng = np.random.default_rng(seed)
    which = rng.integers(0, len(windows), rng.integers(1, 40))
    room = WindowBatch.empty(len(which) + 3, windows.lookback + horizon)
    for array in (room.z, room.stamps, room.counted):
        array.fill(7)  # what an earlier batch left there
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gather_module, "CHUNK_BARS", 40)  # several chunks
        batch = gather(windows, which, out=room)
    assert batch.z.base is room.z
    assert (room.z[len(which) :] == 7).all(), "room that was not asked for stays as it is"
    for place, window in enumerate(which):
        [(_, one)] = windows.take(np.array([window])).by_length()
        bars = one.bars(slice(None))[0].astype(np.float64)
        used = len(bars)
        past = bars[: one.lookback]
        z = np.clip(
            (bars - past.mean(axis=0)) / (past.std(axis=0) + 1e-6 * past.max(axis=0)), -5, 5
        )
        np.testing.assert_allclose(batch.z[place, :used], z, rtol=1e-4, atol=1e-4)
        times = pd.DatetimeIndex(table.times_at(one.rows(slice(None))[0]))
        stamps = np.stack([times.minute, times.hour, times.day_of_week, times.day, times.month], 1)
        np.testing.assert_array_equal(batch.stamps[place, :used], stamps)
        counted = np.ones(used, bool) if first is None else times >= pd.Timestamp(first)
        np.testing.assert_array_equal(batch.counted[place, :used], counted)
        for array in (batch.z, batch.stamps, batch.counted):
            assert not array[place, used:].any(), "nothing follows a shorter window"
        alone = gather(windows, np.array([window]))
        np.testing.assert_array_equal(alone.z[0], batch.z[place])


def test_rows_of_runs_are_taken_as_of_an_array():
    """A flag for each row once chose rows 0 and 1 over and over."""
    rows = RunRows([(10, 13), (20, 25), (40, 41)])
    array = np.array([10, 11, 12, 20, 21, 22, 23, 24, 40])
    flags = np.arange(9) % 2 == 0
    chosen = (
        slice(None), slice(2, 7, 2), slice(-3, None), flags, np.array([8, 0, -1]),
        np.array([3, 4], dtype=np.int8), np.array([3, 4], dtype=np.uint64), [1, 5], [], 3, -1,
    )  # fmt: skip
    for which in chosen:
        expected = array[np.array(which, dtype=int) if isinstance(which, list) else which]
        np.testing.assert_array_equal(rows[which], expected)
        assert rows[which].dtype == np.int64
    for wrong in (np.array([9]), -10, np.array([0.5]), flags[:3]):
        with pytest.raises(IndexError):
            rows[wrong]
    assert len(RunRows([])) == len(RunRows([])[:]) == 0


def test_room_of_another_shape_is_refused():
    index = pd.MultiIndex.from_product([["a"], DAYS])
    frame = pd.DataFrame(np.ones((len(DAYS), 6)), index=index, columns=list(BAR_COLUMNS))
    windows = windows_to_train(BarTable.from_frame(frame, invalid="keep"), 5, 2)
    for room in (WindowBatch.empty(3, 8), WindowBatch.empty(1, 7)):
        with pytest.raises(ValueError, match="memory of shape"):
            gather(windows, np.array([0, 1]), out=room)


@given(panel=panels(), seed=st.integers(0, 99))
def test_the_order_of_rows_does_not_matter(panel, seed):
    shuffled = panel.iloc[np.random.default_rng(seed).permutation(len(panel))]
    expected, found = (
        BarTable.from_frame(panel, invalid="keep"),
        BarTable.from_frame(shuffled, invalid="keep"),
    )
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
        table = BarTable.from_frame(
            pd.DataFrame(bars, index=index, columns=list(BAR_COLUMNS)), invalid="keep"
        )
        windows = windows_to_train(table, lookback, horizon)
        z.append(Segment(windows).batch(np.array([len(windows) - 1]), torch.device("cpu")).z)
    assert torch.equal(z[0][:, :lookback], z[1][:, :lookback])
    assert not torch.equal(z[0][:, lookback:], z[1][:, lookback:])
    past = values[-lookback - horizon : -horizon].astype(np.float32).astype(np.float64)
    by_hand = (past - past.mean(axis=0)) / (past.std(axis=0) + 1e-6 * past.max(axis=0))
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
    assert windows_to_train(table, 2, 1, last=date).ends[:].tolist() == [1, 2]


ONE_DAY = pd.DataFrame(np.ones((1, 6)), columns=list(BAR_COLUMNS))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([("a", DAYS[0]), ("a", DAYS[0])], "a at 2024-01-01: two bars of one time"),
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
