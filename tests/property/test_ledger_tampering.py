"""Whatever is done to a ledger's files afterwards, `verify` says at which entry."""

from __future__ import annotations

import datetime as dt
import json
import shutil
import sqlite3
import tempfile
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kronos_qlib.ledger.entry import (
    FIRST,
    arrow_table,
    content_of,
    digest_of,
    facts_json,
    file_bytes,
    place_of,
    read_entry,
    read_table,
)
from kronos_qlib.ledger.index import INDEX, add_rows, opened
from kronos_qlib.ledger.ledger import Ledger
from kronos_qlib.ledger.verification import verify

COUNT = 6
START = dt.datetime(2024, 3, 28, 10, tzinfo=dt.timezone.utc)


def fill(folder: Path, count: int = COUNT, seed: int = 0) -> list:
    """A ledger of scores and orders over the end of a month."""
    moments = iter(START + dt.timedelta(days=place) for place in range(1000))
    ledger = Ledger(folder, clock=lambda: next(moments))
    entries = []
    for place in range(count):
        table = pd.DataFrame({"instrument": ["A", "B"], "score": [0.5 + seed, place / 7]})
        day = START.date() + dt.timedelta(days=place)
        kind = ("scores", "orders")[place % 2]
        entries.append(ledger.append(kind, day, table, {"place": place}, opens=None))
    return entries


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original") / "ledger"
    return folder, fill(folder)


def copied(original, into: str) -> tuple[Path, list[Path]]:
    folder = Path(into, "ledger")
    shutil.copytree(original[0], folder)
    return folder, [folder / entry.path.relative_to(original[0]) for entry in original[1]]


def faults_at(folder: Path, head: str | None = None) -> set:
    return {(fault.number, fault.what) for fault in verify(folder, head).faults}


def numbers_at(folder: Path, head: str | None = None) -> set:
    return {fault.number for fault in verify(folder, head).faults}


def test_an_untouched_ledger_is_whole(original):
    found = verify(original[0])
    assert found.is_whole and found.entries == COUNT and not found.notes
    assert found.head == original[1][-1].head == Ledger(original[0]).head()


@given(place=st.integers(0, COUNT - 1), data=st.data())
@settings(max_examples=25)
def test_any_changed_byte_is_at_its_entry(original, place, data):
    with tempfile.TemporaryDirectory() as into:
        folder, paths = copied(original, into)
        kept = paths[place].read_bytes()
        at = data.draw(st.integers(0, len(kept) - 1))
        other = data.draw(st.integers(0, 255).filter(lambda value: value != kept[at]))
        paths[place].write_bytes(kept[:at] + bytes([other]) + kept[at + 1 :])
        assert faults_at(folder) == {(place + 1, "changed")}


@given(place=st.integers(0, COUNT - 1), data=st.data())
@settings(max_examples=12)
def test_any_cut_or_longer_file_is_at_its_entry(original, place, data):
    with tempfile.TemporaryDirectory() as into:
        folder, paths = copied(original, into)
        kept = paths[place].read_bytes()
        more = data.draw(st.binary(min_size=1, max_size=9))
        keep = data.draw(st.integers(0, len(kept) - 1))
        paths[place].write_bytes(data.draw(st.sampled_from([kept[:keep], kept + more])))
        assert faults_at(folder) == {(place + 1, "changed")}


@given(gone=st.sets(st.integers(0, COUNT - 1), min_size=1), with_index=st.booleans())
@settings(max_examples=15)
def test_entries_that_are_gone_are_named(original, gone, with_index):
    with tempfile.TemporaryDirectory() as into:
        folder, paths = copied(original, into)
        for place in gone:
            paths[place].unlink()
        if not with_index:
            (folder / INDEX).unlink()
        lost = {place + 1 for place in gone}
        end = COUNT
        while end in lost:
            end -= 1
        at_end = {number for number in lost if number > end}
        assert numbers_at(folder) == (lost if with_index else lost - at_end)
        head = original[1][-1].head
        assert at_end <= numbers_at(folder, head) | set(range(end + 2, COUNT + 1))
        assert not verify(folder, head).is_whole


@given(pair=st.lists(st.integers(0, COUNT - 1), min_size=2, max_size=2, unique=True))
@settings(max_examples=15)
def test_entries_that_changed_places_are_both_named(original, pair):
    with tempfile.TemporaryDirectory() as into:
        folder, paths = copied(original, into)
        one, other = (paths[place] for place in pair)
        bytes_of = one.read_bytes(), other.read_bytes()
        one.write_bytes(bytes_of[1])
        other.write_bytes(bytes_of[0])
        assert faults_at(folder) == {(place + 1, "changed") for place in pair}


@given(pair=st.lists(st.integers(0, COUNT - 1), min_size=2, max_size=2, unique=True))
@settings(max_examples=15)
def test_entries_that_were_renumbered_are_both_named(original, pair):
    """Here each file keeps its bytes and digest, and takes the other's number."""
    with tempfile.TemporaryDirectory() as into:
        folder, paths = copied(original, into)
        one, other = (paths[place] for place in pair)
        number, its = one.name[:8], other.name[:8]
        one.rename(one.with_name(its + one.name[8:]))
        other.rename(other.with_name(number + other.name[8:]))
        assert {place + 1 for place in pair} <= numbers_at(folder)


def forged(entry, previous: str, *, number: int | None = None, score: float = 9.0, folder: Path):
    """The file of an entry with another score, right in all else."""
    table = read_table(entry.path.read_bytes())
    table["score"] = score
    arrow, facts = arrow_table(table), facts_json(dict(entry.facts))
    number = number or entry.number
    data = file_bytes(
        arrow,
        number=number,
        previous=previous,
        kind=entry.kind,
        day=entry.day,
        appended_at=entry.appended_at,
        opens=entry.opens,
        content=content_of(entry.kind, entry.day, facts, arrow),
        facts=facts,
    )
    path = folder / place_of(entry.kind, entry.day, number, digest_of(data))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path, digest_of(data)


@given(place=st.integers(0, COUNT - 1), with_index=st.booleans())
@settings(max_examples=10)
def test_a_forged_entry_is_named(original, place, with_index):
    """With its right name, and by the index's word where there is one."""
    with tempfile.TemporaryDirectory() as into:
        folder, paths = copied(original, into)
        entry = original[1][place]
        paths[place].unlink()
        forged(entry, entry.previous, folder=folder)
        if not with_index:
            (folder / INDEX).unlink()
        found = numbers_at(folder)
        if with_index:
            assert found == {place + 1}
        elif place < COUNT - 1:
            assert found == {place + 2}  # the two do not follow one another: either is false
        else:
            assert numbers_at(folder, original[1][-1].head) == {COUNT}


@given(place=st.integers(0, COUNT - 1))
@settings(max_examples=10)
def test_a_second_file_of_a_number_is_named_and_the_other_is_not_blamed(original, place):
    with tempfile.TemporaryDirectory() as into:
        folder, _ = copied(original, into)
        path, _ = forged(original[1][place], original[1][place].previous, folder=folder)
        found = verify(folder).faults
        assert [(fault.number, fault.what) for fault in found] == [(place + 1, "inserted")]
        assert str(path) in found[0].words


@given(place=st.integers(0, COUNT - 1), cut=st.booleans())
@settings(max_examples=10)
def test_a_chain_written_anew_with_its_index_is_seen_by_a_head_kept_elsewhere(original, place, cut):
    with tempfile.TemporaryDirectory() as into:
        folder, paths = copied(original, into)
        previous = FIRST if place == 0 else original[1][place - 1].digest
        for path in paths[place:]:
            path.unlink()
        (folder / INDEX).unlink()
        kept = original[1][:place]
        if not cut:
            for entry in original[1][place:]:
                _, previous = forged(entry, previous, folder=folder)
        Ledger(folder).reindex()
        assert verify(folder).is_whole
        head = original[1][-1].head
        found = verify(folder, head)
        assert not found.is_whole
        assert found.faults[0].number == (place + 1 if cut else COUNT)
        assert not verify(folder, head.partition("-")[2]).is_whole
        for entry in kept:  # heads of entries before are still true
            assert verify(folder, entry.head).is_whole


@given(name=st.sampled_from(["kind=scores/month=2024-03/x.parquet", "x", "kind=scores/y.txt"]))
@settings(max_examples=5)
def test_a_file_that_is_no_entry_is_named(original, name):
    with tempfile.TemporaryDirectory() as into:
        folder, _ = copied(original, into)
        (folder / name).write_bytes(b"0")
        (fault,) = verify(folder).faults
        assert fault.what == "inserted" and name.rpartition("/")[2] in fault.words


@given(
    place=st.integers(1, COUNT),
    column=st.sampled_from(["previous", "kind", "day", "appended_at", "facts", "content", "rows"]),
)
@settings(max_examples=15)
def test_an_index_that_says_other_than_the_files_is_named(original, place, column):
    with tempfile.TemporaryDirectory() as into:
        folder, _ = copied(original, into)
        connection = sqlite3.connect(folder / INDEX)
        value = {"rows": 77, "facts": json.dumps({"place": 77})}.get(column, "2024-01-01")
        connection.execute(f"UPDATE entries SET {column} = ? WHERE number = ?", (value, place))
        connection.commit()
        connection.close()
        assert faults_at(folder) == {(place, "index")}


@given(lost=st.integers(0, COUNT))
@settings(max_examples=7)
def test_an_index_that_is_behind_is_no_fault_and_the_next_append_mends_it(original, lost):
    """A kill between a file and its row leaves this."""
    with tempfile.TemporaryDirectory() as into:
        folder, _ = copied(original, into)
        connection = sqlite3.connect(folder / INDEX)
        connection.execute("DELETE FROM entries WHERE number > ?", (COUNT - lost,))
        connection.commit()
        connection.close()
        found = verify(folder)
        assert found.is_whole and bool(found.notes) == bool(lost)
        later = START + dt.timedelta(days=50)
        Ledger(folder, clock=lambda: later).append(
            "scores", later.date(), pd.DataFrame({"score": [1.0]}), {}, opens=None
        )
        found = verify(folder)
        assert found.is_whole and not found.notes and found.entries == COUNT + 1


def test_bytes_that_are_no_parquet_file_never_raise_anything_else(original):
    from kronos_qlib.errors import LedgerError

    @given(data=st.binary(max_size=300))
    @settings(max_examples=50)
    def check(data):
        with pytest.raises(LedgerError):
            read_entry(data, Path("x"))

    check()


def test_rows_of_a_forged_chain_can_be_added_by_hand(original, tmp_path):
    """What the tests above rely on: `add_rows` takes what `read_entry` reads."""
    folder, paths = copied(original, str(tmp_path))
    (folder / INDEX).unlink()
    entries = [read_entry(path.read_bytes(), path) for path in paths]
    with opened(folder / INDEX) as connection:
        add_rows(connection, entries, folder)
    assert verify(folder).is_whole
