"""An evening of `daily`: what came goes in once and whole; what is wrong is said."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import daily_world
import numpy as np
import pandas as pd
import pytest
from daily_world import World, moment, small_scores

from kronos_qlib.cli.main import main
from kronos_qlib.daily import daily_run, daily_settings, fetching
from kronos_qlib.daily.day_folder import DayFolder
from kronos_qlib.daily.drop_folder import read_taken
from kronos_qlib.errors import CalendarError, ConfigError, DailyBusyError, DailyError
from kronos_qlib.evaluation.ranking.uncertainty import DailyMean
from kronos_qlib.ledger.ledger import Ledger
from kronos_qlib.plugin.live.live_report import _promises
from kronos_qlib.plugin.provider.appending import append as appending
from kronos_qlib.plugin.provider.appending.append import read_log
from kronos_qlib.plugin.provider.faults import stored_calendar
from kronos_qlib.plugin.provider.writer import write_provider
from kronos_qlib.schema import PRICE_COLUMNS

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    monkeypatch.setattr(daily_run, "newest_scores", small_scores)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return World(tmp_path_factory.mktemp("made") / "world").make()


def copy_of(made: World, folder: Path) -> World:
    shutil.copytree(made.folder, folder)
    fresh = World.__new__(World)
    vars(fresh).update(vars(made))
    fresh.folder = folder
    for name in ("qlib", "drops", "home"):
        setattr(fresh, name, folder / name)
    fresh.config_file = folder / "daily.yaml"
    return fresh


@pytest.fixture
def world(made, tmp_path):
    return copy_of(made, tmp_path / "world")


@pytest.fixture(scope="module")
def once(made, tmp_path_factory):
    """What the first evening leaves, undisturbed."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(daily_run, "newest_scores", small_scores)
        other = copy_of(made, tmp_path_factory.mktemp("once") / "world")
        other.play(1)
        return other.contents()


@pytest.fixture
def lines():
    return []


def newest(world) -> pd.Timestamp:
    return pd.Timestamp(stored_calendar(world.qlib, "day")[-1])


def refused(world, day, *words, hour=18, unchanged=True):
    """`daily` fails, says these words, and leaves folder, scores and ledger as they were."""
    before = {name: digest for name, digest in world.contents().items() if "clock" not in name}
    with pytest.raises(DailyError) as problem:
        world.evening(day, hour)
    for word in words:
        assert word in str(problem.value)
    after = {name: digest for name, digest in world.contents().items() if "clock" not in name}
    if unchanged:
        assert after == before
    return str(problem.value)


def of_qlib(contents):
    return {name: digest for name, digest in contents.items() if name.startswith("qlib/")}


def test_an_evening_brings_a_day_through_all_steps_and_the_next_start_does_nothing(world, lines):
    day = world.days[0]
    world.drop_day(day)
    report = world.evening(day, say=lines.append)
    assert report.days == (day,)
    assert not report.waiting
    assert newest(world) == day
    folder = DayFolder(world.home, day)
    assert folder.is_done
    kept = folder.read_scores()
    expected = small_scores("x", provider_uri=str(world.qlib), day=f"{day:%Y-%m-%d}").table
    pd.testing.assert_frame_equal(kept.table, expected)
    ledger = Ledger(world.home / "ledger")
    assert [entry.day for entry in ledger.entries()] == [day.date()]
    assert ledger.entries()[0].appended_at == moment(day).astimezone(dt.timezone.utc)
    before = world.contents()
    again = world.evening(day, hour=20, say=lines.append)
    assert (again.days, again.waiting) == ((), ())
    assert "nothing new" in lines[-1]
    after = world.contents()
    assert {name for name in after if after[name] != before.get(name)} == {"home/clock.json"}


def test_days_that_come_together_go_in_one_by_one(world, monkeypatch):
    """A score of the first must not see the bars of the second."""
    seen = {}

    def look(model, *, day, **others):
        seen[day] = f"{newest(world):%Y-%m-%d}"
        return small_scores(model, day=day, **others)

    monkeypatch.setattr(daily_run, "newest_scores", look)
    world.drop(world.of(*world.days[:3]), "three.csv")
    report = world.evening(world.days[2])
    assert report.days == tuple(world.days[:3])
    assert seen == {day: day for day in map("{:%Y-%m-%d}".format, world.days[:3])}
    late = [json.loads(DayFolder(world.home, day).end.read_text())["late"] for day in report.days]
    assert late == [True, True, False]
    entries = Ledger(world.home / "ledger").entries()
    assert [entry.is_late for entry in entries] == [True, True, False], "said after the fact"


def test_together_or_one_by_one_the_folder_is_the_same(world, made, tmp_path):
    world.drop(world.of(*world.days[:3]), "three.csv")
    world.evening(world.days[2])
    other = copy_of(made, tmp_path / "other")
    other.play(3)
    assert of_qlib(world.contents()) == of_qlib(other.contents())


def test_parquet_and_other_column_names(world):
    day = world.days[0]
    world.configure(bars=', columns: {symbol: code, close: "last price"}')
    bars = world.of(day).rename(columns={"symbol": "code", "close": "last price"})
    bars.to_parquet(world.drops / "a.parquet", index=False)
    assert world.evening(day).days == (day,)


@pytest.mark.parametrize("step", ["newest_scores", "record_scores"])
def test_a_step_that_fails_leaves_the_earlier_ones_and_the_next_start_goes_on(
    world, monkeypatch, step, once
):
    day = world.days[0]
    world.drop_day(day)
    works = getattr(daily_run, step)

    def broken(*arguments, **others):
        raise RuntimeError("the checkpoint has no key blocks.3.weight")

    monkeypatch.setattr(daily_run, step, broken)
    said = refused(world, day, "no key blocks.3.weight", "next start", unchanged=False)
    assert f"of {day:%Y-%m-%d}" in said
    assert newest(world) == day
    folder = DayFolder(world.home, day)
    assert not folder.is_done
    assert folder.scores.is_dir() == (step == "record_scores")
    assert not list((world.home / "ledger").rglob("*.parquet"))
    monkeypatch.setattr(daily_run, step, works)
    assert world.evening(day).days == (day,)
    assert world.contents() == once


def test_two_at_once_one_leaves_with_a_clear_word(world, monkeypatch, capsys):
    day = world.days[0]
    world.drop_day(day)
    inner = []

    def meanwhile(model, **others):
        with pytest.raises(DailyBusyError, match="another `kronos-qlib daily` is at work"):
            world.evening(day)
        inner.append(main(["daily", str(world.config_file), "--at", moment(day).isoformat()]))
        return small_scores(model, **others)

    monkeypatch.setattr(daily_run, "newest_scores", meanwhile)
    assert world.evening(day).days == (day,)
    assert inner == [3]
    assert "is at work" in capsys.readouterr().err
    assert len(Ledger(world.home / "ledger").entries()) == 1


def test_two_at_once_one_waits(world, monkeypatch, once):
    """What both leave is what one leaves."""
    day = world.days[0]
    world.drop_day(day)
    scoring, counts = threading.Event(), []

    def slow(model, **others):
        scoring.set()
        time.sleep(0.3)
        return small_scores(model, **others)

    def start():
        counts.append(len(world.evening(day, patience=300).days))

    monkeypatch.setattr(daily_run, "newest_scores", slow)
    one = threading.Thread(target=start)
    one.start()
    assert scoring.wait(300)
    start()
    one.join()
    assert sorted(counts) == [0, 1]
    assert world.contents() == once


@pytest.mark.parametrize("place", ["write_feature", "write_calendars"])
def test_a_full_disk_is_said_and_nothing_is_half_done(world, monkeypatch, place, once):
    day = world.days[0]
    world.drop_day(day)
    calls = 0
    original = getattr(appending, place)

    def full(*arguments, **others):
        nonlocal calls
        calls += 1
        if calls > 5:
            raise OSError(28, "No space left on device")
        if place == "write_calendars":  # as copytree says it
            raise shutil.Error([("a", "b", "No space left on device: 'a'"), ("c", "d", "e")])
        return original(*arguments, **others)

    monkeypatch.setattr(appending, place, full)
    said = refused(world, day, "step bars", "No space left on device", f"{day:%Y-%m-%d}")
    assert (
        "and 1 file more" in said if place == "write_calendars" else f"(for {world.qlib})" in said
    )
    monkeypatch.setattr(appending, place, original)
    assert world.evening(day).days == (day,)
    assert world.contents() == once


@contextlib.contextmanager
def read_only(folder: Path):
    """As another user than root, to whom nothing is forbidden; in a folder that may not change."""
    parents = [parent for parent in folder.parents if parent.stat().st_uid == os.geteuid()]
    modes = {place: place.stat().st_mode & 0o7777 for place in [folder, *parents]}
    user = os.geteuid()
    for place in parents:
        place.chmod(modes[place] | 0o055)
    folder.chmod(0o555)
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        if user == 0:
            os.seteuid(0)
        for place, mode in modes.items():
            place.chmod(mode)


@pytest.mark.skipif(sys.platform == "win32", reason="its folders have no such bits")
def test_a_read_only_home_is_said_and_nothing_is_done(world):
    day = world.days[0]
    world.drop_day(day)
    world.home.mkdir()
    before = world.contents()
    config = world.config
    with read_only(world.home), pytest.raises(DailyError, match="Permission denied"):
        daily_run.run_daily(config, now=moment(day), say=lambda line: None)
    assert world.contents() == before


@pytest.mark.parametrize("cut", ["mid-line", "no end of line", "nothing", "parquet"])
def test_a_truncated_drop_is_said_and_nothing_goes_in(world, cut):
    day = world.days[0]
    path = world.drop_day(day)
    whole = path.read_bytes()
    waits = cut in ("no end of line", "nothing", "mid-line")
    if cut == "parquet":
        path.unlink()
        path = world.drops / "day.parquet"
        world.of(day).to_parquet(path, index=False)
        path.write_bytes(path.read_bytes()[:-100])
    else:
        path.write_bytes({"mid-line": whole[:-40], "nothing": b""}.get(cut, whole[:-1]))
    if waits:
        report = world.evening(day)
        assert len(report.waiting) == 1
        assert path.name in report.waiting[0]
        assert newest(world) < day
        path.write_bytes(whole)
        assert world.evening(day, hour=19).days == (day,)
    else:
        refused(world, day, path.name, "step bars")


def test_a_row_that_was_cut_is_named(world):
    day = world.days[0]
    path = world.drop_day(day)
    path.write_bytes(path.read_bytes()[:-40] + b"\n")
    refused(world, day, path.name)


def test_a_day_that_is_not_complete_waits_and_goes_in_when_it_is(world):
    day = world.days[0]
    bars = world.of(day)
    world.drop(bars.iloc[:2], "first.csv")
    report = world.evening(day)
    (waits,) = report.waiting
    assert f"{day:%Y-%m-%d} waits" in waits and "2 names" in waits and "usual are 4" in waits
    assert newest(world) < day
    world.drop(bars.iloc[2:], "rest.csv")
    assert world.evening(day, hour=19).days == (day,)


def test_a_day_is_accepted_by_hand(world, capsys):
    day = world.days[0]
    world.drop(world.of(day).iloc[:2], "first.csv")
    arguments = ["daily", str(world.config_file), "--at", moment(day).isoformat()]
    assert main(arguments) == 3
    assert f"--accept {day:%Y-%m-%d}" in capsys.readouterr().out
    assert main([*arguments, "--accept", f"{day:%Y-%m-%d}"]) == 0
    assert newest(world) == day


def test_a_day_twice_alike_is_one(world, once):
    day = world.days[0]
    world.drop_day(day)
    world.drop(world.of(day).iloc[::-1], "again.csv")
    assert world.evening(day).days == (day,)
    assert len(read_taken(world.home)) == 2
    assert of_qlib(world.contents()) == of_qlib(once)


def test_a_day_twice_and_different_is_refused(world):
    day = world.days[0]
    world.drop_day(day)
    bars = world.of(day).copy()
    bars.loc[bars.index[1], "volume"] += 7
    world.drop(bars, "other.csv")
    volume = f"volume {world.of(day)['volume'].iloc[1]:.12g} or {bars['volume'].iloc[1]:.12g}"
    refused(world, day, "other.csv", f"{day:%Y-%m-%d}.csv", bars["symbol"].iloc[1], volume)


def test_yesterday_under_todays_date_waits(world):
    first, second = world.days[:2]
    world.play(1)
    both = set(world.of(first)["symbol"]) & set(world.of(second)["symbol"])
    bars = world.of(first)
    world.drop(bars[bars["symbol"].isin(both)].assign(date=second), "stale.csv")
    (waits,) = world.evening(second).waiting
    assert "once more" in waits
    assert newest(world) == first


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"date": "2020-04-12"}, "it is a Sunday, and none of the folder's last 60 days is"),
        ({"date": "2010-04-08"}, "the folder's bars begin on 2020-01-02"),
        ({"scale": 0.01}, "4 of its 4 names move by more than"),
    ],
)
def test_a_day_that_can_hardly_be_meant_waits(world, change, word):
    """A year or a unit mistyped: the calendar would keep it for ever."""
    bars = world.of(world.days[0]).assign(date=change.get("date", f"{world.days[0]:%Y-%m-%d}"))
    bars[list(PRICE_COLUMNS)] *= change.get("scale", 1.0)
    world.drop(bars, "odd.csv")
    before = of_qlib(world.contents())
    (waits,) = world.evening(pd.Timestamp("2020-04-13")).waiting
    assert word in waits and "--accept" in waits
    assert of_qlib(world.contents()) == before


def test_a_table_without_rows_waits_and_what_is_no_table_of_ours_is_named(world, lines):
    day = world.days[0]
    world.drop(world.of(day).iloc[:0], "holiday.csv")
    (world.drops / "bars.csv.gz").write_bytes(b"x")
    (world.drops / "folder.csv").mkdir()
    (world.drops / "bars.csv.md5").write_text("x")
    world.drop_day(day)
    report = world.evening(day, say=lines.append)
    assert report.days == (day,)
    assert len(report.waiting) == 1 and "holiday.csv holds no bars" in report.waiting[0]
    (said,) = (line for line in lines if "passed over" in line)
    assert "bars.csv.gz, folder.csv (no file);" in said


@pytest.mark.parametrize("zone", [None, "Asia/Shanghai"])
def test_times_of_another_zone_are_days_of_the_market(world, once, zone):
    day = world.days[0]
    bars = world.of(day).assign(date=f"{day - pd.Timedelta(days=1):%Y-%m-%d}T16:00:00Z")
    path = world.drops / "utc.csv"
    bars.to_csv(path, index=False)
    if zone is None:
        refused(world, day, "utc.csv, row 2", "carries a time zone", "options are keys of bars")
        return
    world.configure(bars=f", zone: {zone}")
    assert world.evening(day).days == (day,)
    assert of_qlib(world.contents()) == of_qlib(once)


def test_how_a_system_writes_text_changes_nothing(world, once):
    """Windows' ends of lines, a byte order mark, names in small letters, a row twice."""
    bars = world.of(world.days[0])
    bars = pd.concat([bars, bars.iloc[[1]]]).assign(
        symbol=lambda table: table["symbol"].str.lower()
    )
    path = world.drops / "a.CSV"
    bars.to_csv(path, index=False, lineterminator="\r\n", encoding="utf-8-sig")
    world.evening(world.days[0])
    assert of_qlib(world.contents()) == of_qlib(once)


@pytest.mark.skipif(sys.platform == "win32", reason="needs the right to make links")
def test_a_link_to_the_folder_of_bars_stays_one(world, once):
    """The new folder took the link's place, and whoever read what it led to saw no new day."""
    world.qlib.rename(world.folder / "elsewhere")
    world.qlib.symlink_to("elsewhere", target_is_directory=True)
    world.play(1)
    assert world.qlib.is_symlink()
    found = {
        name.replace("elsewhere", "qlib", 1): digest for name, digest in world.contents().items()
    }
    assert of_qlib(found) == of_qlib(once)


@pytest.mark.parametrize(
    ("name", "cut", "words"),
    [
        ("features/sym0001/close.day.bin", 8, ["SYM0001", "a file was cut short"]),
        ("features/sym0001/close.day.bin", 3, ["close.day.bin", "cut short"]),
        ("calendars/day.txt", len("2020-04-07\n"), ["the calendar is too short"]),
        ("instruments/demo.txt", len("\t2020-04-07\n"), ["qlib/instruments/demo.txt, line 4"]),
        ("appended.jsonl", 0, ["appended.jsonl, line 1: no entry", "from a copy of the folder"]),
    ],
)
def test_a_damaged_folder_of_bars_is_said_and_stays_as_it_is(world, name, cut, words):
    path = world.qlib / name
    path.write_bytes(path.read_bytes()[:-cut] if cut else b'{"times":\n')
    world.drop_day(world.days[0])
    refused(world, world.days[0], *words)


@pytest.mark.parametrize("name", ["about.json", "scores.parquet", "other"])
def test_a_damaged_step_is_named_and_is_made_anew_once_it_is_moved_away(world, name, once):
    day = world.days[0]
    world.play(1)
    folder = DayFolder(world.home, day)
    folder.end.unlink()
    path = folder.scores / ("about.json" if name == "other" else name)
    path.write_bytes(b"{}" if name == "other" else path.read_bytes()[:-9])
    refused(world, day, f"{folder.scores} is damaged", "move this folder away", hour=19)
    shutil.rmtree(folder.scores)
    assert world.evening(day, hour=20).days == (day,)
    found = {name: digest for name, digest in world.contents().items() if "clock" not in name}
    assert found == {name: digest for name, digest in once.items() if "clock" not in name}


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"seen": "2020-04-07T10:00:00"}'])
def test_a_damaged_clock_file_is_the_one_to_be_removed(world, text):
    """It was advised to move the whole home away, ledger and all."""
    world.home.mkdir()
    (world.home / "clock.json").write_text(text)
    world.drop_day(world.days[0])
    said = refused(world, world.days[0], "clock.json is damaged", "remove the file")
    assert "move" not in said.replace("remove", "")


def test_a_ledger_that_was_taken_away_is_warned_of(world, lines):
    world.play(1)
    head = Ledger(world.home / "ledger").head()
    shutil.rmtree(world.home / "ledger")
    world.drop_day(world.days[1])
    world.evening(world.days[1], say=lines.append)
    assert any("warning" in line and head in line for line in lines)


EXCHANGE = "exchange: XSHG"


def test_a_day_that_is_missing_is_waited_for(world):
    """2020-04-08 and 2020-04-09 are open days of Shanghai."""
    world.configure(more=EXCHANGE)
    day, following = world.days[:2]
    world.drop_day(following)
    (waits,) = world.evening(following).waiting
    assert f"open on {day:%Y-%m-%d}" in waits
    assert newest(world) < day
    world.drop_day(day)
    assert world.evening(following, hour=19).days == (day, following)


def test_a_day_without_trading_is_not_taken(world):
    world.configure(more=EXCHANGE)
    saturday = pd.Timestamp("2020-04-11")
    assert saturday not in world.days
    world.play(3)
    assert newest(world) == pd.Timestamp("2020-04-10")
    world.drop(world.of(world.days[3]).assign(date=saturday), "saturday.csv")
    (waits,) = world.evening(pd.Timestamp("2020-04-13")).waiting
    assert "no day of the exchange" in waits
    # Nor one that is past.
    (world.drops / "saturday.csv").unlink()
    world.drop(world.of(world.days[2]).assign(date="2020-04-04"), "past.csv")
    (waits,) = world.evening(pd.Timestamp("2020-04-13"), hour=19).waiting
    assert "2020-04-04 waits: it is no day of the exchange" in waits


def test_a_clock_that_was_set_back_is_said(world):
    world.play(2)
    world.drop_day(world.days[2])
    refused(world, world.days[0], "was set back", "Nothing was done", "clock.json")
    assert world.evening(world.days[2]).days == (world.days[2],)


def test_bars_of_tomorrow_wait(world):
    world.drop_day(world.days[1])
    (waits,) = world.evening(world.days[0]).waiting
    assert "still to come" in waits
    assert newest(world) < world.days[0]


def test_bars_before_the_close_wait(world):
    world.configure(more='ready_at: "16:30"')
    day = world.days[0]
    world.drop_day(day)
    (waits,) = world.evening(day, hour=15).waiting
    assert "it is 15:00" in waits and "16:30" in waits
    assert world.evening(day, hour=17).days == (day,)


def test_a_service_is_asked_for_days_that_are_over(world, monkeypatch):
    """It answers with today's bar at any hour, and a day of half an hour's bars went in."""
    asked = []

    class Service:
        def bars(self, symbols, first, last):
            asked.append((first, last))
            dates = world.bars["date"]
            return world.bars[dates.between(pd.Timestamp(first), pd.Timestamp(last))]

    monkeypatch.setattr(fetching, "make_source", lambda name: Service())
    monkeypatch.setattr(daily_settings, "check_extra", lambda *_, **__: None)
    world.configure(bars=", source: yfinance, overlap: 2")
    with pytest.raises(ConfigError, match="bars of yfinance need ready_at"):
        _ = world.config
    world.configure(bars=", source: yfinance, overlap: 2", more='ready_at: "16:30"')
    first, second = world.days[:2]
    report = world.evening(second, hour=10)
    assert (report.days, report.waiting) == ((first,), ())
    assert asked[-1][1] == first.date()
    assert json.loads(DayFolder(world.home, first).end.read_text())["late"] is False
    assert world.evening(second, hour=17).days == (second,)
    assert asked[-1] == (pd.Timestamp("2020-04-07").date(), second.date())


def test_a_changed_past_is_told_applied_and_scored_again(world, lines):
    world.play(5)
    bars = world.of(world.days[2]).copy()
    row = bars.index[0]
    bars.loc[row, ["close", "high"]] *= 1.2
    name = bars.loc[row, "symbol"]
    first = {day: DayFolder(world.home, day).read_scores().table for day in world.days[:5]}
    entries = len(Ledger(world.home / "ledger").entries())
    world.drop(bars, "correction.csv")
    report = world.evening(world.days[4], hour=20, say=lines.append)
    assert report.days == ()
    said = "\n".join(lines)
    assert f"the past changed: {name} {world.days[2]:%Y-%m-%d}" in said
    assert "windows to be scored again: those that end from" in said
    entry = read_log(world.qlib)[-1]
    assert [change["symbol"] for change in entry["changes"]] == [name]
    (folder,) = (world.home / "rescored").iterdir()
    assert folder.name.startswith(f"{len(read_log(world.qlib)):06d}-")
    again = sorted(path.stem for path in folder.glob("*.parquet"))
    assert again == [f"{day:%Y-%m-%d}" for day in world.days[2:5]]
    table = pd.read_parquet(folder / f"{again[-1]}.parquet")
    assert table.loc[name, "score"] != table.loc[name, "first_score"] or len(again) == 3
    moved = json.loads((folder / "about.json").read_text())["names whose score moved"]
    assert moved[again[0]] == 1
    # What was said on the day stays said.
    for day, kept in first.items():
        pd.testing.assert_frame_equal(DayFolder(world.home, day).read_scores().table, kept)
    assert len(Ledger(world.home / "ledger").entries()) == entries
    before = world.contents()
    world.evening(world.days[4], hour=20)
    assert world.contents() == before


def test_a_new_base_is_told_and_scores_stay(world, lines):
    world.play(2)
    came = world.of(*world.days[1:3]).copy()
    name = came["symbol"].iloc[0]
    own = came["symbol"] == name
    came.loc[own, [*PRICE_COLUMNS, "factor"]] *= 0.5
    came.loc[own, "volume"] *= 2
    world.drop(came, "new base.csv")
    world.evening(world.days[2], say=lines.append)
    said = "\n".join(lines)
    assert f"the past changed: {name}" in said and "x 0.5" in said
    assert not (world.home / "rescored").exists()
    assert not any("jump" in line for line in lines)


def test_delisted_and_new_instruments_are_told(world, lines):
    bars = world.of(world.days[0])
    gone = bars["symbol"].iloc[0]
    world.drop(bars.replace({"symbol": {gone: "OTHER"}}), "a.csv")
    world.evening(world.days[0], say=lines.append)
    said = "\n".join(lines)
    assert gone in said and "delisted" in said and "renames" in said
    assert "1 new: OTHER" in said


def test_a_renamed_instrument_goes_on_with_its_past(world):
    bars = world.of(world.days[0])
    old = bars["symbol"].iloc[0]
    world.configure(bars=f", renames: {{{old}: OTHER}}")
    world.drop(bars.replace({"symbol": {old: "OTHER"}}), "a.csv")
    world.evening(world.days[0])
    kept = DayFolder(world.home, world.days[0]).read_scores().table
    assert "OTHER" in kept.index and old not in kept.index
    assert read_log(world.qlib)[-1]["renamed"] == {old: "OTHER"}


def test_bars_that_break_a_rule_are_refused_and_a_repair_is_named(world):
    day = world.days[0]
    bars = world.of(day).copy()
    bars.loc[bars.index[0], "high"] = bars["low"].iloc[0] * 0.9
    world.drop(bars, "bad.csv")
    refused(world, day, "bad.csv: ", "high-below-low", bars["symbol"].iloc[0], "bars.repair")
    world.configure(bars=", repair: [bracket]")
    assert world.evening(day).days == (day,)


def test_a_jump_is_told_and_refused_where_that_is_asked(world, lines):
    day = world.days[0]
    bars = world.of(day).copy()
    bars.loc[bars.index[0], list(PRICE_COLUMNS)] *= 10
    bars.loc[bars.index[0], "volume"] /= 10
    world.drop(bars, "jump.csv")
    world.configure(bars=", refuse: [jump]")
    refused(world, day, "jump", bars["symbol"].iloc[0])
    world.configure()
    world.evening(day, say=lines.append)
    assert any("jump" in line for line in lines)


def test_halted_names_as_vendors_write_them(world):
    """All prices the last close, and no volume."""
    day = world.days[0]
    bars = world.of(day).copy()
    row = bars.index[0]
    name = bars.loc[row, "symbol"]
    bars.loc[row, list(PRICE_COLUMNS)] = bars.loc[row, "close"]
    bars.loc[row, ["volume", "amount"]] = 0.0
    world.drop(bars, "halt.csv")
    refused(world, day, "untraded", name)
    world.configure(bars=", repair: [drop-untraded], complete: 0.7")
    world.evening(day)
    assert name not in DayFolder(world.home, day).read_scores().table.index


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bars": ", compleet: 1"}, ["compleet", "did you mean 'complete'"]),
        ({"bars": ", complete: 2"}, ["complete must lie in"]),
        ({"bars": ", repair: [split-jumps]"}, ["split-jumps", "repair"]),
        ({"bars": ", refuse: jump"}, ["refuse is a list"]),
        ({"more": "ready_at: 16"}, ["ready_at", "in quotes"]),
        ({"more": 'ready_at: "25:00"'}, ["ready_at"]),
        ({"more": "exchange: SHANGHAI"}, ["SHANGHAI"]),
        ({"more": "members: [csi300]"}, ["members is a mapping"]),
        ({"more": "members: {indices: []}"}, ["indices"]),
        ({"more": "orders: {positions: p.csv, cash: 1}"}, ["strategy"]),
        (
            {"more": "orders: {positions: p.csv, cash: 1, strategy: {benchmark: MEAN}}"},
            ["orders.positions", "p.csv"],
        ),
        ({"more": "orders: {positions: p.csv, cash: 1, strategy: {}}"}, ["benchmark"]),
        (
            {"more": "orders: {positions: p.csv, cash: 1, strategy: {benchmark: M, topk: all}}"},
            ["strategy", "topk must be a whole number", "'all'"],
        ),
        (
            {"more": "orders: {positions: p.csv, cash: 1, strategy: {benchmark: M, account: }}"},
            ["strategy", "account must be a number"],
        ),
        ({"more": 'trust: "no"'}, ["trust must be true or false"]),
        ({"more": "tracking_uri: 7"}, ["tracking_uri is a text"]),
        ({"bars": ', final_newline: "no"'}, ["final_newline must be true or false"]),
        ({"bars": ", repair: "}, ["repair is a list"]),
        ({"bars": ", source: [yfinance]"}, ["source", "is none of akshare"]),
    ],
)
def test_settings_are_checked_before_any_work(world, change, words, capsys):
    world.configure(**change)
    world.drop_day(world.days[0])
    before = world.contents()
    assert main(["daily", str(world.config_file)]) == 2
    said = capsys.readouterr().err
    for word in [*words, "daily.yaml"]:
        assert word in said
    assert world.contents() == before


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("home: home", "home: qlib/home", "lies in"),
        ("provider_uri: qlib", "provider_uri: none", "there is no Qlib folder"),
        ("drop: drops", "drop: nowhere", "there is no folder"),
        ("drop: drops, ", "", "drop folder (drop) or a service"),
        ("drop: drops", "source: bloomberg", "bloomberg"),
        ("zone: Asia/Shanghai", "zone: Mars/Olympus", "Mars/Olympus"),
        ("home: home", "home: [", "cannot be read"),
        ("home: home", "home: 7", "home is a path"),
    ],
)
def test_a_bad_file_is_refused(world, old, new, word):
    text = world.config_file.read_text()
    assert old in text
    world.config_file.write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=r"daily\.yaml|Qlib folder") as problem:
        _ = world.config
    assert word in str(problem.value)


def test_check_reads_the_settings_and_does_nothing(world, capsys):
    world.drop_day(world.days[0])
    before = world.contents()
    assert main(["daily", str(world.config_file), "--check"]) == 0
    assert "can be used" in capsys.readouterr().out
    assert world.contents() == before


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--at", "tonight"], "tonight"),
        (["--at", "2020-04-08T18:00"], "zone"),
        (["--accept", "8.4."], "8.4."),
        (["--wait", "-1"], "--wait"),
    ],
)
def test_arguments_are_checked(world, arguments, word, capsys):
    assert main(["daily", str(world.config_file), *arguments]) == 2
    assert word in capsys.readouterr().err


def test_bars_alone_without_a_model(world):
    text = world.config_file.read_text()
    world.config_file.write_text(text.replace('model: "models:/small@champion"', ""))
    world.drop_day(world.days[0])
    assert world.evening(world.days[0]).days == (world.days[0],)
    assert not (world.home / "ledger").exists()


ORDERS = (
    "orders: {positions: positions.csv, cash: cash.txt, "
    "strategy: {benchmark: MEAN, topk: 2, n_drop: 1}}"
)


def with_orders(world: World) -> World:
    name = world.bars["symbol"].iloc[0]
    (world.folder / "positions.csv").write_text(f"instrument,quantity,days\n{name},100,5\n")
    (world.folder / "cash.txt").write_text("100000\n")
    world.configure(more=ORDERS)
    return world


def test_orders_follow_and_a_start_that_was_cut_off_keeps_the_book_it_saw(
    made, tmp_path, monkeypatch
):
    day = made.days[0]
    one, two = (with_orders(copy_of(made, tmp_path / name)) for name in ("one", "two"))
    one.play(1)
    orders = pd.read_csv(one.home / "days" / f"{day:%Y-%m-%d}" / "orders" / "orders.csv")
    assert {"instrument", "side", "quantity", "limit", "reason"} == set(orders)
    assert (orders["side"] == "buy").sum() >= 1
    kinds = [entry.kind for entry in Ledger(one.home / "ledger").entries()]
    assert kinds == ["scores", "orders"]
    works = daily_run.record_orders

    def broken(*arguments, **others):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(daily_run, "record_orders", broken)
    two.drop_day(day)
    with pytest.raises(DailyError, match=r"step ledger of 2020-04-08: .*No space left"):
        two.evening(day)
    monkeypatch.setattr(daily_run, "record_orders", works)
    (two.folder / "positions.csv").write_text("instrument,quantity,days\n")
    assert two.evening(day).days == (day,)
    ours, theirs = one.contents(), two.contents()
    assert {name for name in ours if ours[name] != theirs.get(name)} == {"positions.csv"}


def test_days_that_are_late_have_no_orders(world, lines):
    with_orders(world)
    world.drop(world.of(*world.days[:2]), "two.csv")
    world.evening(world.days[1], say=lines.append)
    assert any("no orders, the next day has come already" in line for line in lines)
    there = [DayFolder(world.home, day).orders.is_dir() for day in world.days[:2]]
    assert there == [False, True]


@pytest.mark.parametrize(
    ("name", "text", "word"),
    [
        ("cash.txt", "much\n", "cash.txt is to hold one number"),
        ("cash.txt", "", "cash.txt is to hold one number"),
        ("positions.csv", "instrument,quantity\n", "either days"),
        ("positions.csv", "instrument,quantity,days\nSYM0001,many,1\n", "line 2: quantity"),
        ("positions.csv", "instrument,quantity,bought\nSYM0001,1,2030-01-01\n", "is after 2020"),
    ],
)
def test_positions_and_cash_are_read_before_any_bar_goes_in(world, name, text, word, capsys):
    """A letter too many in the broker's file was found when the bars were in."""
    with_orders(world)
    (world.folder / name).write_text(text)
    world.drop_day(world.days[0])
    before = world.contents()
    with pytest.raises(ConfigError, match=name.replace(".", r"\.")) as problem:
        world.evening(world.days[0])
    assert word in str(problem.value)
    at = ["--at", moment(world.days[0]).isoformat()]
    assert main(["daily", str(world.config_file), "--check", *at]) == 2
    assert word in capsys.readouterr().err
    assert world.contents() == before


def test_a_holding_without_bars_is_said_before_any_bar_goes_in(world, capsys):
    with_orders(world)
    held = world.folder / "positions.csv"
    held.write_text("instrument,quantity,days\nNOBODY,100,5\n")
    day = world.days[0]
    world.drop_day(day)
    before = {name: digest for name, digest in world.contents().items() if "clock" not in name}
    # As any other fault of the positions: it was told as a step that failed, with exit code 1.
    assert main(["daily", str(world.config_file), "--at", moment(day).isoformat()]) == 2
    assert "NOBODY is held, and neither" in capsys.readouterr().err
    after = {name: digest for name, digest in world.contents().items() if "clock" not in name}
    assert after == before
    # Of what comes tonight for the first time it is none of ours to say.
    bars = world.of(day)
    gone = bars["symbol"].iloc[-1]
    world.drop(bars.replace({"symbol": {gone: "NOBODY"}}), f"{day:%Y-%m-%d}.csv")
    assert world.evening(day).days == (day,)


def test_a_day_whose_next_one_has_come_in_part_has_no_orders(world, lines):
    """Orders for that next day were made on its evening."""
    with_orders(world)
    first, second = world.days[:2]
    world.drop_day(first)
    world.drop(world.of(second).iloc[:1], "part.csv")
    assert world.evening(second, say=lines.append).days == (first,)
    assert any(f"{first:%Y-%m-%d}: no orders" in line for line in lines)
    assert not DayFolder(world.home, first).orders.exists()
    assert Ledger(world.home / "ledger").entries()[0].is_late
    world.drop(world.of(second).iloc[1:], "rest.csv")
    assert world.evening(second, hour=19).days == (second,)
    assert DayFolder(world.home, second).orders.is_dir()


def test_a_next_opening_that_nobody_knows_names_its_step(world, monkeypatch):
    def ends(*_):
        raise CalendarError("exchange-calendars knows XSHG from 1990 to 2020")

    world.configure(more=EXCHANGE)
    world.drop_day(world.days[0])
    monkeypatch.setattr(daily_run._Evening, "_following", ends)
    with pytest.raises(DailyError, match="step opening of 2020-04-08: exchange-calendars knows"):
        world.evening(world.days[0])


def test_a_day_that_was_cut_off_has_its_orders_whatever_comes_late(world, monkeypatch):
    """A missing older day beside it, and its orders were left out."""
    with_orders(world)
    first, second = world.days[:2]
    world.drop_day(second)
    with monkeypatch.context() as patched:
        patched.setattr(daily_run, "newest_scores", lambda *_, **__: 1 / 0)
        with pytest.raises(DailyError, match="ZeroDivisionError"):
            world.evening(second)
    world.drop_day(first)
    assert world.evening(second, hour=19).days == (second,)
    assert DayFolder(world.home, second).orders.is_dir()


def test_weights_in_the_place_of_topk_stand_in_the_ledger(world, monkeypatch):
    with_orders(world)
    world.configure(more=ORDERS.replace("}}", "}, weights: {most: 0.3, days: 40}}"))
    day = world.days[0]
    world.drop_day(day)
    with pytest.raises(DailyError, match=r"step orders of .*this model draws no paths"):
        world.evening(day)
    shutil.rmtree(DayFolder(world.home, day).scores)

    def with_quantiles(model, **others):
        found = small_scores(model, **others)
        spread = np.linspace(-0.02, 0.04, 19)
        levels = {f"q{0.05 * (place + 1):g}": each for place, each in enumerate(spread)}
        return dataclasses.replace(found, table=found.table.assign(**levels))

    monkeypatch.setattr(daily_run, "newest_scores", with_quantiles)
    assert world.evening(day, hour=19).days == (day,)
    entry = Ledger(world.home / "ledger").entries("orders")[-1]
    assert entry.facts["weights"] == {"most": 0.3, "days": 40, "aversion": 0.1, "tail": 0.1}
    orders = Ledger(world.home / "ledger").table(entry)
    assert len(orders) >= 2 and orders["reason"].str.contains("weight").all()
    notes = []
    promised = {"net_return": {}, "rank_ic": vars(DailyMean(0.1, 0.1, 20, 5, 1, 0.0))}
    assert set(_promises({"promised": promised}, [entry], notes)) == {"rank_ic"}
    assert "it promises no return" in notes[0]


def test_orders_are_for_the_exchanges_next_day(world):
    """2020-04-06 was a holiday: the folder's own calendar, made of weekdays, did not know."""
    with_orders(world)
    world.configure(more=f"exchange: XSHG\n{ORDERS}")
    shutil.rmtree(world.qlib)
    friday = pd.Timestamp("2020-04-03")
    past = world.bars[world.bars["date"] <= friday]
    write_provider(past, world.qlib, market="demo", benchmark="MEAN", future_bars=10)
    assert stored_calendar(world.qlib, "day", future=True)[len(past["date"].unique())] == (
        np.datetime64("2020-04-06")
    )
    assert world.evening(friday).days == (friday,)
    about = json.loads((DayFolder(world.home, friday).orders / "about.json").read_text())
    assert about["for"] == "2020-04-07"


def test_an_entry_bears_the_time_at_which_it_was_appended(world, monkeypatch, lines):
    """It bore that of the start: what took until the market had opened looked as if in time."""
    day = world.days[0]
    world.configure(more=EXCHANGE)
    world.drop_day(day)
    clock = [moment(day)]

    def slow(model, **others):
        clock.append(moment(world.days[1], hour=10))
        return small_scores(model, **others)

    monkeypatch.setattr(daily_run, "utc_now", lambda: clock[-1])
    monkeypatch.setattr(daily_run, "newest_scores", slow)
    daily_run.run_daily(world.config, say=lines.append)
    (entry,) = Ledger(world.home / "ledger").entries()
    assert entry.appended_at == clock[-1] and entry.is_late
    assert any("warning: the market had opened by 2020-04-09 01:30 UTC" in line for line in lines)


def test_a_day_that_comes_late_has_the_days_after_it_scored_again(world):
    """Only days before it were, which do not see it."""
    first, late, last = world.days[:3]
    for day in (first, last):
        world.drop_day(day)
        world.evening(day)
    world.drop_day(late)
    world.evening(last, hour=20)
    (folder,) = (world.home / "rescored").iterdir()
    assert [path.stem for path in folder.glob("*.parquet")] == [f"{last:%Y-%m-%d}"]


def test_bars_that_follow_a_days_others_change_its_past(world, lines):
    """The last of a day's names came when it was in: nobody was told, and nothing scored again."""
    day = world.days[0]
    world.configure(bars=", complete: 0.5")
    bars = world.of(day)
    world.drop(bars.iloc[:-1], "most.csv")
    world.evening(day)
    world.drop(bars.iloc[-1:], "rest.csv")
    world.evening(day, hour=20, say=lines.append)
    name = bars["symbol"].iloc[-1]
    assert any(f"{name} {day:%Y-%m-%d}: 1 bar added" in line for line in lines)
    (folder,) = (world.home / "rescored").iterdir()
    assert name in pd.read_parquet(folder / f"{day:%Y-%m-%d}.parquet").index


def test_a_folder_that_was_put_back_takes_its_days_again(world):
    """Their files counted as taken, and the days never came back."""
    day = world.days[0]
    shutil.copytree(world.qlib, world.folder / "copy")
    world.play(1)
    shutil.rmtree(world.qlib)
    (world.folder / "copy").rename(world.qlib)
    world.evening(day, hour=20)
    assert newest(world) == day


def test_a_day_to_accept_that_did_not_come_is_said(world, lines):
    day, other = world.days[:2]
    world.drop_day(day)
    world.evening(day, accepted=[day, other], say=lines.append)
    assert [line for line in lines if "--accept" in line] == [
        f"note: --accept {other:%Y-%m-%d}: no new bars of that day came"
    ]


ONE_EVENING = """
import sys, time
from pathlib import Path

sys.path.insert(0, sys.argv[1])
import daily_world

folder, mine, other = (Path(each) for each in sys.argv[2:])
daily_world.daily_run.newest_scores = daily_world.small_scores
world = daily_world.World(folder)
mine.touch()
until = time.monotonic() + 300
while not other.exists() and time.monotonic() < until:
    time.sleep(0.01)
print(len(world.evening(world.days[0], patience=300).days))
"""


def test_two_processes_at_once_do_it_once(world, tmp_path, once):
    """Threads share what a lock is kept in; processes do not."""
    world.drop_day(world.days[0])
    names = [tmp_path / "one", tmp_path / "two"]
    tests = str(Path(daily_world.__file__).parent)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ONE_EVENING, tests, *map(str, (world.folder, *pair))],
            stdout=subprocess.PIPE,
            text=True,
        )
        for pair in (names, names[::-1])
    ]
    said = [process.communicate(timeout=600)[0] for process in processes]
    assert sorted(said) == ["0\n", "1\n"]
    assert world.contents() == once


@pytest.mark.skipif(sys.platform != "linux", reason="forks, and SIGKILL")
def test_killed_at_any_change_of_the_disk_it_comes_to_the_same_bytes(tmp_path):
    """The 30 kills of a quarter are in benchmarks/daily_kills.py."""
    undisturbed, killed = (World(tmp_path / name, names=3).make() for name in ("one", "two"))
    undisturbed.play(2)
    points = [str(number) for number in np.random.default_rng(8).integers(1, 50, 6)]
    done = subprocess.run(
        [sys.executable, daily_world.__file__, str(killed.folder), "3", "2", *points],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[-1]) >= 4, "hardly anything was killed"
    assert killed.contents() == undisturbed.contents()
    hidden = [path for path in killed.folder.rglob(".*") if not path.name.endswith(".lock")]
    assert not hidden
