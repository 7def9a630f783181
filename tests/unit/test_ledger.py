"""The ledger: entries are whole or not there, said once, and marked when they come late."""

from __future__ import annotations

import datetime as dt
import errno
import json
import os
import sqlite3
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock

from kronos_qlib.errors import ConfigError, LedgerError
from kronos_qlib.ledger import ledger as module
from kronos_qlib.ledger import verification
from kronos_qlib.ledger.entry import FIRST, HEADER
from kronos_qlib.ledger.index import INDEX
from kronos_qlib.ledger.ledger import DRAFT, LOCK, Ledger
from kronos_qlib.ledger.verification import verify

DAY = dt.date(2024, 6, 18)
EVENING = dt.datetime(2024, 6, 18, 10, tzinfo=dt.timezone.utc)
OPENS = dt.datetime(2024, 6, 19, 1, 30, tzinfo=dt.timezone.utc)
TABLE = pd.DataFrame({"instrument": ["SH600000", "SZ000001"], "score": [0.5, np.nan]})


def ledger_at(folder: Path, moment: dt.datetime = EVENING, **how) -> Ledger:
    return Ledger(folder, clock=lambda: moment, **how)


def test_an_entry_comes_back_as_it_was_appended(tmp_path):
    ledger = ledger_at(tmp_path / "ledger")
    facts = {"model": {"name": "alpha", "version": "3"}, "horizon": 10, "cost": 0.0015}
    entry = ledger.append("scores", DAY, TABLE, facts, opens=OPENS)
    assert (entry.number, entry.previous, entry.rows) == (1, FIRST, 2)
    assert entry.appended_at == EVENING and entry.opens == OPENS and not entry.is_late
    (again,) = Ledger(tmp_path / "ledger").entries()
    assert again == entry and again.facts == facts
    pd.testing.assert_frame_equal(ledger.table(again), TABLE, check_dtype=False)
    assert ledger.head() == f"1-{entry.digest}"
    place = entry.path.relative_to(ledger.folder).as_posix()
    assert place == f"kind=scores/month=2024-06/00000001-{entry.digest}.parquet"


def test_an_entry_that_is_appended_while_verify_looks_is_no_fault(tmp_path, monkeypatch):
    """The index was read after the files: it knew an entry more, which was said to be cut off."""
    ledger = ledger_at(tmp_path)
    ledger.append("scores", DAY, TABLE, {}, opens=OPENS)
    read = verification.read_rows

    def meanwhile(path):
        ledger.append("orders", DAY, TABLE, {}, opens=OPENS)
        return read(path)

    monkeypatch.setattr(verification, "read_rows", meanwhile)
    assert verify(tmp_path).is_whole

    def after(path):
        rows = read(path)
        ledger.append("verdict", DAY, TABLE, {}, opens=OPENS)
        return rows

    monkeypatch.setattr(verification, "read_rows", after)
    found = verify(tmp_path)
    assert found.is_whole and found.entries == 3 and "newest 1" in found.notes[0]


@pytest.mark.skipif(sys.platform == "win32", reason="needs the right to make links")
def test_a_link_in_a_ledger_is_a_fault(tmp_path):
    """What a linked folder held was read as entries, and `verify` did not look there."""
    ledger = ledger_at(tmp_path / "ledger")
    ledger.append("scores", DAY, TABLE, {}, opens=OPENS)
    (tmp_path / "kind=scores").mkdir()
    (tmp_path / "ledger" / "kind=orders").symlink_to(
        tmp_path / "kind=scores", target_is_directory=True
    )
    (fault,) = verify(tmp_path / "ledger").faults
    assert fault.what == "inserted" and "kind=orders" in fault.words


def test_pandas_and_duckdb_can_read_the_files_and_the_header_is_json(tmp_path):
    import pyarrow.parquet as pq

    entry = ledger_at(tmp_path).append("scores", DAY, TABLE, {}, opens=None)
    found = pd.read_parquet(tmp_path / "kind=scores")
    assert found["instrument"].tolist() == ["SH600000", "SZ000001"]
    header = json.loads(pq.read_schema(entry.path).metadata[HEADER])
    assert header["number"] == 1 and header["previous"] == FIRST


def test_an_index_that_says_other_than_the_file_hides_no_entry(tmp_path):
    """Who wrote tonight's digest into yesterday's row kept tonight's scores out of the ledger."""
    ledger = ledger_at(tmp_path)
    ledger.append("scores", DAY, TABLE.iloc[:1], {}, opens=OPENS)
    wanted = ledger_at(tmp_path / "other").append("scores", DAY, TABLE, {}, opens=OPENS).content
    with sqlite3.connect(tmp_path / INDEX) as base:
        base.execute("UPDATE entries SET content = ?", (wanted,))
    base.close()
    with pytest.raises(LedgerError, match="the index says other of entry 1 than its file"):
        ledger.append("scores", DAY, TABLE, {}, opens=OPENS)


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such call")
def test_names_of_new_folders_are_on_the_disk_too(tmp_path, monkeypatch):
    """After a power cut the index knew an entry whose new month was not there: "cut"."""
    synced, sync = set(), os.fsync

    def note(number):
        synced.add(os.fstat(number).st_ino)
        sync(number)

    monkeypatch.setattr(os, "fsync", note)
    path = ledger_at(tmp_path).append("scores", DAY, TABLE, {}, opens=None).path
    places = (path, path.parent, path.parent.parent, tmp_path)
    assert {place.stat().st_ino for place in places} <= synced


def test_a_repetition_appends_nothing_and_another_table_does(tmp_path):
    ledger = ledger_at(tmp_path)
    first = ledger.append("scores", DAY, TABLE, {"a": 1}, opens=OPENS)
    later = ledger_at(tmp_path, EVENING + dt.timedelta(hours=30))
    assert later.append("scores", DAY, TABLE, {"a": 1}, opens=OPENS) == first
    for table, facts in ((TABLE.head(1), {"a": 1}), (TABLE, {"a": 2})):
        last = later.append("scores", DAY, table, facts, opens=OPENS)
        assert later.newest("scores", DAY) == last
    assert [entry.number for entry in later.entries("scores", DAY)] == [1, 2, 3]
    assert later.newest("orders") is None
    # What was said first and is said again after something else is news.
    assert later.append("scores", DAY, TABLE, {"a": 1}, opens=OPENS).number == 4


@pytest.mark.parametrize(("after", "late"), [(-1, False), (0, True), (1, True)])
def test_what_is_appended_when_the_market_has_opened_is_late(tmp_path, after, late):
    moment = OPENS + dt.timedelta(microseconds=after)
    entry = ledger_at(tmp_path, moment).append("scores", DAY, TABLE, {}, opens=OPENS)
    assert entry.is_late is late
    assert verify(tmp_path).late == ((1,) if late else ())


def test_times_of_other_zones_are_the_same_times(tmp_path):
    east = dt.timezone(dt.timedelta(hours=8))
    opens = dt.datetime(2024, 6, 19, 9, 30, tzinfo=east)
    entry = ledger_at(tmp_path).append("scores", DAY, TABLE, {}, opens=opens)
    assert entry.opens == OPENS and entry.opens.utcoffset() == dt.timedelta(0)
    with pytest.raises(ConfigError, match="have a zone"):
        ledger_at(tmp_path).append("orders", DAY, TABLE, {}, opens=opens.replace(tzinfo=None))


def test_a_clock_that_went_back_is_refused(tmp_path):
    ledger_at(tmp_path).append("scores", DAY, TABLE, {}, opens=None)
    back = ledger_at(tmp_path, EVENING - dt.timedelta(days=1))
    with pytest.raises(LedgerError, match="clock says 2024-06-17 10:00:00 UTC, which is before"):
        back.append("orders", DAY, TABLE, {}, opens=None)
    seconds = ledger_at(tmp_path, EVENING - dt.timedelta(seconds=5))
    assert seconds.append("orders", DAY, TABLE, {}, opens=None).number == 2
    assert verify(tmp_path).is_whole


def test_a_kill_between_file_and_index_is_mended_by_the_next_append(tmp_path, monkeypatch):
    ledger = ledger_at(tmp_path)
    ledger.append("scores", DAY, TABLE, {}, opens=None)
    with monkeypatch.context() as patched:
        patched.setattr(module, "add_rows", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ledger.append("orders", DAY, TABLE, {}, opens=None)
    assert [entry.number for entry in ledger.entries()] == [1, 2]
    assert verify(tmp_path).notes and verify(tmp_path).is_whole
    repeated = ledger.append("orders", DAY, TABLE, {}, opens=None)
    assert repeated.number == 2, "it had been appended"
    assert not verify(tmp_path).notes


def test_a_kill_while_the_file_is_written_leaves_no_entry(tmp_path, monkeypatch):
    ledger = ledger_at(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(module.os, "fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ledger.append("scores", DAY, TABLE, {}, opens=None)
    assert (tmp_path / DRAFT).exists() and not ledger.entries()
    assert verify(tmp_path).is_whole
    ledger.append("scores", DAY, TABLE, {}, opens=None)
    assert not (tmp_path / DRAFT).exists() and verify(tmp_path).entries == 1


def test_the_same_appends_leave_the_same_chain_killed_or_not(tmp_path, monkeypatch):
    def chain(folder):
        return [(each.number, each.digest) for each in Ledger(folder).entries()]

    ledger_at(tmp_path / "one").append("scores", DAY, TABLE, {}, opens=None)
    ledger_at(tmp_path / "one").append("orders", DAY, TABLE, {}, opens=None)
    with monkeypatch.context() as patched:
        patched.setattr(module, "add_rows", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ledger_at(tmp_path / "other").append("scores", DAY, TABLE, {}, opens=None)
    for kind in ("scores", "orders"):
        ledger_at(tmp_path / "other").append(kind, DAY, TABLE, {}, opens=None)
    assert chain(tmp_path / "one") == chain(tmp_path / "other")


def test_a_full_disk_appends_nothing(tmp_path, monkeypatch):
    ledger = ledger_at(tmp_path)
    ledger.append("scores", DAY, TABLE, {}, opens=None)
    before = ledger.head()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(module.os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            ledger.append("orders", DAY, TABLE, {}, opens=None)
    assert ledger.head() == before and not (tmp_path / DRAFT).exists()
    assert verify(tmp_path).is_whole


def test_nothing_is_appended_to_a_ledger_that_was_changed(tmp_path):
    ledger = ledger_at(tmp_path)
    entry = ledger.append("scores", DAY, TABLE, {}, opens=None)
    ledger.append("orders", DAY, TABLE, {}, opens=None)
    kept = entry.path.read_bytes()
    entry.path.write_bytes(kept[:-1] + b"0")
    with pytest.raises(LedgerError, match="entry 1 was changed"):
        ledger.table(entry)
    entry.path.unlink()
    with pytest.raises(LedgerError, match=r"entry 1 of the index is not at .* ledger verify"):
        ledger.append("scores", DAY, TABLE.head(1), {}, opens=None)
    with pytest.raises(LedgerError, match="entry 1"):
        ledger.entries()


def test_a_file_that_does_not_follow_is_not_taken_into_the_index(tmp_path):
    ledger_at(tmp_path / "one").append("scores", DAY, TABLE, {}, opens=None)
    other = ledger_at(tmp_path / "other")
    other.append("scores", DAY, TABLE.head(1), {}, opens=None)
    strange = other.append("orders", DAY, TABLE, {}, opens=None)
    target = tmp_path / "one" / strange.path.relative_to(tmp_path / "other")
    target.parent.mkdir(parents=True)
    target.write_bytes(strange.path.read_bytes())
    with pytest.raises(LedgerError, match="does not follow entry 1"):
        ledger_at(tmp_path / "one").append("scores", DAY, TABLE, {"a": 1}, opens=None)


def test_two_at_once_wait_or_say_so(tmp_path):
    tmp_path.mkdir(exist_ok=True)
    with (
        FileLock(tmp_path / LOCK),
        pytest.raises(LedgerError, match=r"another process appends to .* 0 s"),
    ):
        ledger_at(tmp_path, patience=0).append("scores", DAY, TABLE, {}, opens=None)
    assert ledger_at(tmp_path, patience=0).append("scores", DAY, TABLE, {}, opens=None).number == 1


@pytest.mark.parametrize(
    ("table", "facts", "words"),
    [
        (TABLE, {"a": float("nan")}, "not JSON"),
        (TABLE, {"a": (1, 2)}, "do not come back the same"),
        (TABLE, {1: 2}, "do not come back the same"),
        (TABLE, {"a": dt.date(2024, 1, 1)}, "not JSON"),
        (pd.DataFrame({"a": [{1}, [2]]}), {}, "column a of an entry holds"),
        (pd.DataFrame({"a": [b"x"]}), {}, "texts, numbers, booleans or times"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), {}, "different texts"),
        (pd.DataFrame({3: [1]}), {}, "different texts"),
    ],
)
def test_what_cannot_be_kept_is_refused_before_anything_is_written(tmp_path, table, facts, words):
    with pytest.raises(ConfigError, match=words):
        ledger_at(tmp_path / "ledger").append("scores", DAY, table, facts, opens=None)
    assert not (tmp_path / "ledger").exists()
    with pytest.raises(ConfigError, match="lower-case"):
        ledger_at(tmp_path / "ledger").append("../x", DAY, TABLE, {}, opens=None)


def test_a_damaged_index_is_told_and_made_anew_beside_the_old(tmp_path):
    ledger = ledger_at(tmp_path)
    for kind in ("scores", "orders"):
        ledger.append(kind, DAY, TABLE, {}, opens=None)
    (tmp_path / INDEX).write_bytes(b"no database at all" * 100)
    with pytest.raises(LedgerError, match=r"cannot be used as the ledger's index.* reindex"):
        ledger.append("scores", DAY, TABLE, {"a": 1}, opens=None)
    (fault,) = verify(tmp_path).faults
    assert fault.what == "index"
    aside = ledger.reindex()
    assert aside == tmp_path / f"{INDEX}.1.old" and aside.read_bytes().startswith(b"no database")
    assert verify(tmp_path).is_whole and len(ledger.entries()) == 2
    assert ledger.reindex() == tmp_path / f"{INDEX}.2.old"


def test_a_table_without_rows_is_an_entry(tmp_path):
    table = pd.DataFrame({"instrument": pd.Series([], dtype=str), "quantity": []})
    entry = ledger_at(tmp_path).append("orders", DAY, table, {}, opens=None)
    assert entry.rows == 0 and list(ledger_at(tmp_path).table(entry)) == ["instrument", "quantity"]
    # A column of texts that lost its rows has no type of its own in pandas: it repeats all the same
    assert ledger_at(tmp_path).append("orders", DAY, table, {}, opens=None) == entry


def test_verify_asks_for_a_ledger_and_a_head(tmp_path):
    with pytest.raises(ConfigError, match="no ledger at"):
        verify(tmp_path / "none")
    assert Ledger(tmp_path / "none").head() == f"0-{FIRST}"
    assert verify(tmp_path, f"0-{FIRST}").is_whole
    with pytest.raises(ConfigError, match="a head is the number and the 64 digits"):
        verify(tmp_path, "12")


def test_nothing_is_appended_to_an_entry_that_was_changed(tmp_path):
    """The next entry would vouch for bytes that are no longer there."""
    ledger = ledger_at(tmp_path)
    entry = ledger.append("scores", DAY, TABLE, {}, opens=OPENS)
    whole = entry.path.read_bytes()
    for changed in (b"", whole[:-1]):
        entry.path.write_bytes(changed)
        for ask in (
            ledger.head,
            lambda: ledger.append("scores", DAY, TABLE, {"a": 1}, opens=OPENS),
        ):
            with pytest.raises(LedgerError, match="entry 1 was changed"):
                ask()
    entry.path.write_bytes(whole)
    assert ledger.append("scores", DAY, TABLE, {"a": 1}, opens=OPENS).number == 2
