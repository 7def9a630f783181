"""Windows of one's own bars: one file or frame, segments by date or share, no Qlib."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from dataclasses import replace
from datetime import date

import numpy as np
import pandas as pd
import pytest

from kronos_qlib import WindowDataset
from kronos_qlib.data.windows.bar_table import BarTable
from kronos_qlib.data.windows.segments import split_by_share
from kronos_qlib.errors import BarDataError, CalendarError, ConfigError
from kronos_qlib.schema import BAR_COLUMNS

HALVES = {"train": 0.5, "valid": 0.25, "test": 0.25}
SMALL = {"lookback": 20, "horizon": 3}
CHINESE = {
    "date": "日期",
    "open": "开盘",
    "high": "最高",
    "low": "最低",
    "close": "收盘",
    "volume": "成交量",
    "amount": "成交额",
}


@pytest.fixture(scope="module")
def one(make_minutes):
    """One share's 5-minute bars."""
    return make_minutes(instruments=1, days=5).drop(columns=["symbol", "factor"])


@pytest.fixture(scope="module")
def expected(one):
    table = BarTable.from_bars(one.assign(symbol="MINE"))
    return WindowDataset(table=table, segments=split_by_share(table.calendar, HALVES), **SMALL)


def same(dataset, expected):
    for segment in HALVES:
        for found, wanted in (
            (dataset.windows(segment), expected.windows(segment)),
            (dataset.training_windows(segment), expected.training_windows(segment)),
        ):
            assert len(wanted)
            assert found.index.equals(wanted.index)
            np.testing.assert_allclose(found.bars(slice(None)), wanted.bars(slice(None)), rtol=1e-6)
            assert found.dropped == wanted.dropped


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".feather"])
@pytest.mark.parametrize("names", [{}, CHINESE], ids=["english", "chinese"])
def test_one_file_gives_the_windows_of_its_bars(one, expected, tmp_path, suffix, names):
    path = tmp_path / f"MINE{suffix}"
    frame = one.rename(columns=names or {"date": "timestamps"})
    {
        ".csv": lambda: frame.to_csv(path, index=False, encoding="gb18030"),
        ".parquet": lambda: frame.to_parquet(path, index=False),
        ".feather": lambda: frame.to_feather(path),
    }[suffix]()
    same(WindowDataset.from_file(path, HALVES, encoding="gb18030", **SMALL), expected)


def test_a_frame_needs_its_instruments_name_and_nothing_else(one, expected):
    frame = one.set_index("date")
    same(WindowDataset.from_file(frame, HALVES, symbol="MINE", **SMALL), expected)
    shuffled = one.sample(frac=1, random_state=0)
    same(WindowDataset.from_file(shuffled, HALVES, symbol="MINE", **SMALL), expected)
    prices = one[["date", *BAR_COLUMNS[:4]]]
    bare = WindowDataset.from_file(prices, HALVES, symbol="MINE", **SMALL)
    assert bare.windows("test").index.equals(expected.windows("test").index)
    assert (bare.table.values[:, 4:] == 0).all()


def test_bars_that_break_a_rule_are_refused_or_repaired_as_told(one):
    dirty = one.copy()
    dirty.loc[dirty.index[30], "high"] = dirty["low"].iloc[30] / 2
    with pytest.raises(BarDataError, match=r"the frame: 2 errors.*`repair` fixes.*(?s:.*)bracket"):
        WindowDataset.from_file(dirty, HALVES, symbol="MINE", **SMALL)
    kept = WindowDataset.from_file(dirty, HALVES, symbol="MINE", repair=["bracket"], **SMALL)
    assert len(kept.table) == len(one)
    less = WindowDataset.from_file(dirty, HALVES, symbol="MINE", repair=["drop-bracket"], **SMALL)
    assert len(less.table) == len(one) - 1


def test_the_next_bars_come_from_the_calendar_or_the_exchange(one, expected):
    newest = expected.windows("test").take(slice(-1, None))
    with pytest.raises(CalendarError, match="beyond_calendar 'XSHG'"):
        expected.future_times(newest)
    dataset = WindowDataset.from_file(one, HALVES, symbol="M", beyond_calendar="XSHG", **SMALL)
    ahead = dataset.future_times(dataset.windows("test").take(slice(-1, None)))
    assert list(pd.DatetimeIndex(ahead[0]).strftime("%m-%d %H:%M")) == [
        "06-24 09:35",
        "06-24 09:40",
        "06-24 09:45",
    ]
    early = expected.windows("train").take(slice(0, 1))
    place = np.searchsorted(expected.table.calendar, early.times[0])
    wanted = expected.table.calendar[place + 1 : place + 4]
    assert (expected.future_times(early)[0] == wanted).all()


def flat(dates, symbol="M"):
    prices = dict.fromkeys(BAR_COLUMNS[:4], 5.0)
    return pd.DataFrame({"symbol": symbol, "date": dates, **prices, "volume": 1.0, "amount": 5.0})


@pytest.mark.parametrize(
    ("dates", "beyond", "ahead"),
    [
        (pd.date_range("2023-01-06", periods=60, freq="W-FRI"), "pattern", ["03-01", "03-08"]),
        (pd.date_range("2024-01-01", "2024-06-28"), "pattern", ["06-29", "06-30"]),
        (pd.date_range("2024-01-01", "2024-06-28"), "24/7", ["06-29", "06-30"]),
        (pd.bdate_range("2024-01-01", "2024-06-28"), "pattern", ["07-01", "07-02"]),
        (pd.bdate_range("2024-01-01", "2024-06-28"), "weekdays", ["07-01", "07-02"]),
    ],
)
def test_the_next_bars_go_on_as_the_calendar_did(dates, beyond, ahead):
    dataset = WindowDataset.from_file(flat(dates), HALVES, beyond_calendar=beyond, **SMALL)
    newest = dataset.windows("test").take(slice(-1, None))
    found = pd.DatetimeIndex(dataset.future_times(newest)[0])
    assert found[:2].strftime("%m-%d").to_list() == ahead


def test_weekdays_do_not_extend_weeks_or_weekends():
    for dates in (
        pd.date_range("2023-01-06", periods=60, freq="W-FRI"),
        pd.date_range("2024", "2025"),
    ):
        data = WindowDataset.from_file(flat(dates), HALVES, beyond_calendar="weekdays", **SMALL)
        with pytest.raises(CalendarError, match=r"weekdays are not how it goes on.*'pattern'"):
            data.future_times(data.windows("test").take(slice(-1, None)))


def test_names_stamped_with_different_closes_share_their_days():
    """Their calendar had two entries a day: each share's next bar was the other's today."""
    days = pd.bdate_range("2024-01-01", periods=60)
    mixed = pd.concat([flat(days, "A"), flat(days + pd.Timedelta("15h"), "B")])
    dataset = WindowDataset.from_file(mixed, HALVES, beyond_calendar="pattern", **SMALL)
    assert (dataset.table.calendar == days.to_numpy("datetime64[ns]")).all()
    assert any("one bar a day, at 00:00 and 15:00: daily bars" in note for note in dataset.notes)
    one = WindowDataset.from_file(flat(days + pd.Timedelta("15h")), HALVES, **SMALL)
    assert (one.table.calendar == (days + pd.Timedelta("15h")).to_numpy()).all()


def test_shares_follow_one_another_and_cover_what_they_say():
    calendar = pd.bdate_range("2024-01-01", periods=10).to_numpy()
    segments = split_by_share(calendar, {"train": 0.6, "valid": 0.2, "test": 0.2})
    assert [stop for _, stop in segments.values()] == [calendar[5], calendar[7], calendar[9]]
    assert [start for start, _ in segments.values()] == [calendar[0], calendar[6], calendar[8]]
    for shares in ({"train": 0.9, "test": 0.2}, {"train": 1.0, "test": 0.0}):
        with pytest.raises(ConfigError, match="not exceed 1"):
            split_by_share(calendar, shares)
    with pytest.raises(ConfigError, match="leaves 'valid' none"):
        split_by_share(calendar, {"train": 0.9, "valid": 0.01})


def hours(days=10):
    """A market that never closes, with bars at midnight."""
    times = pd.date_range("2024-01-01", periods=24 * days, freq="h")
    prices = dict.fromkeys(BAR_COLUMNS[:4], 5.0)
    return pd.DataFrame({"date": times, **prices, "volume": 1.0, "amount": 5.0})


@pytest.mark.parametrize("cut", [120, 121, 122])
def test_shares_that_end_at_midnight_do_not_overlap(cut):
    """121 hours end with a bar at 00:00, which was once taken for the whole of its day."""
    shares = {"train": cut / 240, "valid": 60 / 240, "test": (180 - cut) / 240}
    dataset = WindowDataset.from_file(hours(), shares, symbol="BTC", lookback=5, horizon=3)
    ends, targets = [], []
    for name in shares:
        windows = dataset.training_windows(name)
        targets.append(set(windows.rows(slice(None))[:, 5:].ravel().tolist()))
        ends.append(set(dataset.windows(name).ends[:].tolist()))
    for parts in (ends, targets):
        assert not parts[0] & parts[1]
        assert not parts[1] & parts[2]
    assert sum(map(len, ends)) == 240 - 4
    assert max(targets[0]) == cut - 1, "the last bar of the segment is a target"


def test_a_date_is_its_whole_day_and_a_time_is_itself():
    dataset = WindowDataset.from_file(hours(), {"all": 1.0}, symbol="B", lookback=2, horizon=1)

    def last_of(end):
        return str(dataset.windows(("2024-01-02", end)).times[-1])[:16]

    assert last_of("2024-01-03") == last_of(date(2024, 1, 3)) == "2024-01-03T23:00"
    assert last_of(pd.Timestamp("2024-01-03")) == last_of("2024-01-03 00:00") == "2024-01-03T00:00"
    assert last_of("2024-01-03 05:00") == "2024-01-03T05:00"
    for wrong, message in (
        (("2024-01-05", "2024-01-03"), "ends at 2024-01-03, before it begins"),
        ((20240102, None), "a date or time, got 20240102"),
        (("2024", None), "names its day"),
        (("soon", None), "a date or time, got 'soon'"),
        (("2024-01-02",), "a pair"),
        ("none", "no segment 'none'; there are all"),
    ):
        with pytest.raises(ConfigError, match=message):
            dataset.windows(wrong)


def test_what_looks_wrong_in_a_file_is_told(one, caplog):
    """An undone 10:1 split was once learned as a crash, without a word."""
    split = one.copy()
    prices = list(BAR_COLUMNS[:4])
    split.loc[split.index[:60], prices] *= 10
    dataset = WindowDataset.from_file(split.drop(columns="amount"), HALVES, symbol="MINE", **SMALL)
    told = "\n".join(record.message for record in caplog.records)
    assert "1 bars look wrong" in told
    assert "jump" in told
    assert "amount is missing: derived" in told
    assert all(note in told for note in dataset.notes)
    whole = WindowDataset.from_file(one.assign(factor=1.0), HALVES, symbol="MINE", **SMALL)
    assert whole.notes == ()


def test_nothing_ends_outside_begin_and_end(expected):
    calendar = expected.table.calendar
    begin, end = pd.Timestamp(calendar[100]), pd.Timestamp(calendar[150])
    bounded = replace(expected, begin=begin, end=end, segments={"all": (None, None)})
    times = bounded.windows("all").times
    assert (times.min(), times.max()) == (begin, end)
    windows = bounded.training_windows("all")
    assert windows.table.times_at(windows.ends[:] + windows.ahead).max() == end


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lookback": 1}, "lookback >= 2"),
        ({"horizon": 0}, "horizon >= 1"),
        ({"min_bars": 99}, "min_bars must lie from 2 to the lookback of 90"),
        ({"max_age_days": 0}, "max_age_days must be at least 1"),
        ({"beyond_calendar": "weekday"}, "beyond_calendar must be"),
        ({"look_back": 5}, "no setting 'look_back'; .*lookback"),
    ],
)
def test_settings_that_cannot_work_are_refused(one, settings, message):
    with pytest.raises(ConfigError, match=message):
        WindowDataset.from_file(one, HALVES, symbol="MINE", **settings)


def test_a_model_is_finetuned_on_a_file_without_qlib_being_started(one, tmp_path):
    """One's own instrument needs no data folder, no qlib.init and no MLflow store."""
    one.to_csv(tmp_path / "MINE.csv", index=False)
    script = """
        from kronos_qlib import KronosModel, WindowDataset

        dataset = WindowDataset.from_file(
            "MINE.csv", {"train": 0.6, "valid": 0.2, "test": 0.2},
            lookback=30, horizon=3, min_bars=20, beyond_calendar="XSHG",
        )
        training = {"epochs": 1, "windows_per_epoch": 32, "batch_size": 16}
        model = KronosModel(
            sampling={"paths": 2}, training={"predictor": training}, device="cpu",
            show_progress=False,
        )
        model.fit(dataset)
        scores = model.predict(dataset)
        assert len(model.history["predictor"]) == 2
        assert len(scores) == len(dataset.windows("test")) > 20
        print("scored", scores.notna().all())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "scored True" in done.stdout, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"MINE.csv"}
