"""A table in files has the bits of the one in memory, and is refused where it is not whole."""

from __future__ import annotations

import errno
import inspect
import json
import os
import pickle
import shutil
import sys
import tracemalloc
from dataclasses import fields
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest
from qlib.utils import init_instance_by_config

from kronos_qlib.cli.data.data_table_command import WAYS
from kronos_qlib.cli.main import main
from kronos_qlib.data.windows import table_files
from kronos_qlib.data.windows.faulty_bars import Incomplete, Invalid, Untraded
from kronos_qlib.data.windows.find import windows_to_train
from kronos_qlib.data.windows.gather import gather
from kronos_qlib.data.windows.table_files import MANIFEST, TableWriter, open_table
from kronos_qlib.errors import BarDataError, ConfigError
from kronos_qlib.plugin.dataset import KronosDataset, KronosHandler
from kronos_qlib.plugin.lookahead import open_provider
from kronos_qlib.plugin.provider.mapped_bars import names_of, read_mapped, write_table
from kronos_qlib.plugin.provider.reader import BarOptions, BarsAsked, StoredColumns, read_table
from kronos_qlib.plugin.rolling.candidates import moved_task
from kronos_qlib.plugin.runs.newest_day import moved

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def folder(provider, tmp_path_factory):
    """The market with bars that did not trade, so that some are left out in the middle."""
    target = tmp_path_factory.mktemp("faulty") / "qlib"
    shutil.copytree(provider, target)
    for place, name in enumerate(sorted((target / "features").iterdir())[1:6:2]):
        columns = {
            field: np.fromfile(name / f"{field}.day.bin", "<f4")
            for field in ("open", "high", "low", "close", "volume", "amount")
        }
        for row in (40, 41 + place, 90):
            before = columns["close"][row - 1]
            for field, values in columns.items():
                values[row] = 0 if field in ("volume", "amount") else before
        for field, values in columns.items():
            values.tofile(name / f"{field}.day.bin")
    return target


@pytest.fixture
def names(folder):
    open_provider(folder)
    return names_of("all", "day")


@pytest.fixture
def written(names, tmp_path):
    return tmp_path / "bars.table", write_table(tmp_path / "bars.table", names)


def assert_equal(found, expected):
    for part in ("values", "places", "calendar", "offsets", "jumps"):
        one, other = getattr(found, part), getattr(expected, part)
        assert one.dtype == other.dtype and one.tobytes() == other.tobytes(), part
    assert found.instruments == expected.instruments
    for part in ("owners", "places", "rules"):
        np.testing.assert_array_equal(
            getattr(found.left_out, part), getattr(expected.left_out, part)
        )
    assert found.checksums == expected.checksums
    assert found.describe_left_out() == expected.describe_left_out()


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"untraded": "keep"},
        {"raw_volume": True, "first": "2020-03-02", "last": "2020-08-31"},
        {"fields": {**dict.fromkeys(("open", "high", "low"), "$close"), "close": "$close",
                    "volume": "$volume", "amount": "$amount"}},
    ],
)  # fmt: skip
def test_the_table_has_the_bits_of_the_one_in_memory(names, tmp_path, how):
    expected = read_table(names, **how)
    assert_equal(write_table(tmp_path / "table", names, **how), expected)
    assert_equal(read_mapped(tmp_path / "table", names, **how), expected)
    assert bool(len(expected.left_out)) == (how.get("untraded") != "keep")


def test_a_data_set_reads_windows_from_it(folder, written):
    path, _ = written
    segments = {"train": ("2020-02-03", "2020-08-31"), "test": ("2020-09-01", "2020-11-30")}
    own, other = (
        KronosDataset(KronosHandler(table=table), segments, lookback=20, horizon=3, min_bars=15)
        for table in (None, str(path))
    )
    assert isinstance(other.source.table.values.base, np.memmap)
    for find in ("training_windows", "windows"):
        for segment in segments:
            one, two = (getattr(dataset, find)(segment) for dataset in (own, other))
            assert len(one) > 20 and dict(one.dropped) == dict(two.dropped)
            for name in ("z", "stamps", "counted", "level", "spread"):
                a, b = (getattr(gather(part, np.arange(len(part))), name) for part in (one, two))
                assert a.tobytes() == b.tobytes(), name


def test_a_pickle_is_the_folder_and_not_the_bars(written, names):
    path, table = written
    sent = pickle.dumps(table)
    assert len(sent) < 1000
    assert_equal(pickle.loads(sent), read_table(names))
    write_table(path, names, overwrite=True, untraded="keep")
    with pytest.raises(BarDataError, match="another table than the one that was pickled"):
        pickle.loads(sent)


class StopError(Exception):
    """As of a kill: nothing of the writer runs after it."""


@pytest.mark.parametrize("at", [4])
@pytest.mark.parametrize("left", ["", "torn", "cut"])
def test_a_start_that_was_killed_is_gone_on_from(names, tmp_path, monkeypatch, at, left):
    expected = read_table(names)
    monkeypatch.setattr(table_files, "FLUSH_BYTES", 1)
    add, added = TableWriter.add, []

    def watched(self, name, *others):
        if len(added) == at:
            raise StopError
        added.append(name)
        add(self, name, *others)

    with monkeypatch.context() as patched, pytest.raises(StopError):
        patched.setattr(TableWriter, "add", watched)
        write_table(tmp_path / "table", names)
    partial = tmp_path / ".table.partial"
    assert not (tmp_path / "table").exists()
    with pytest.raises(BarDataError, match=r"half written, in .*\.table\.partial"):
        read_mapped(tmp_path / "table", names)
    if left == "torn":
        with (partial / "journal.jsonl").open("a") as journal:
            journal.write('{"name": "half a li')
        with (partial / "values.f4").open("ab") as values:
            values.write(b"\0" * 13)
    elif left == "cut":  # bars that never reached the disk, as after a loss of power
        os.truncate(partial / "places.bin", (partial / "places.bin").stat().st_size - 2)
    again = []
    monkeypatch.setattr(
        TableWriter,
        "add",
        lambda self, name, *others: (again.append(name), add(self, name, *others)),
    )
    assert_equal(write_table(tmp_path / "table", names), expected)
    assert again == names[at - (left == "cut") :]
    assert not partial.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="an open file is not deleted there")
def test_a_lock_is_one_file_for_all_starts(names, tmp_path):
    """It was deleted at the end: one start held the old file, and the next one made its own."""
    import fcntl

    with TableWriter(tmp_path / "table", np.zeros(0, "datetime64[ns]"), {}).held():
        second = (tmp_path / ".table.partial.lock").open("r+b")  # comes before the end
    with second:
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(BarDataError, match="another process is writing"):
            write_table(tmp_path / "table", names)


def test_a_start_that_comes_late_leaves_nothing(names, tmp_path, monkeypatch):
    """Between its first look and its lock another start ended: an empty table was left beside."""
    write_table(tmp_path / "other", names)
    take = table_files.lock_of

    def late(place):
        shutil.copytree(tmp_path / "other", tmp_path / "table")
        return take(place)

    monkeypatch.setattr(table_files, "lock_of", late)
    with pytest.raises(ConfigError, match="--overwrite replaces it"):
        write_table(tmp_path / "table", names)
    assert not (tmp_path / ".table.partial").exists()


def test_bars_that_change_while_they_are_read_are_noticed(provider, tmp_path, monkeypatch):
    """Their digest was taken after them: the old bars got the new one."""
    folder = tmp_path / "qlib"
    shutil.copytree(provider, folder)
    open_provider(folder)
    names = names_of("all", "day")
    close = folder / "features" / names[2].lower() / "close.day.bin"
    complete = StoredColumns.complete

    def changed(self, name, *others):  # what was read is in its hands
        if name == names[2]:
            values = np.fromfile(close, "<f4")
            values[-1] *= 1.01
            values.tofile(close)
        return complete(self, name, *others)

    monkeypatch.setattr(StoredColumns, "complete", changed)
    write_table(tmp_path / "table", names)
    with pytest.raises(BarDataError, match=f"the bars of {names[2]} in the Qlib folder have"):
        read_mapped(tmp_path / "table", names)


def test_options_of_bars_are_said_once():
    assert [*BarOptions.__annotations__] == [one.name for one in fields(BarsAsked)]
    for reader in (read_table, write_table, read_mapped):
        assert inspect.signature(reader).parameters["how"].annotation == "Unpack[BarOptions]"


def test_a_kill_at_the_end_loses_nothing_but_the_end(names, tmp_path, monkeypatch):
    expected = read_table(names)
    with monkeypatch.context() as patched, pytest.raises(StopError):
        patched.setattr(table_files, "_read_through", lambda path: (_ for _ in ()).throw(StopError))
        write_table(tmp_path / "table", names)
    monkeypatch.setattr(TableWriter, "add", lambda *others: pytest.fail("it was read again"))
    assert_equal(write_table(tmp_path / "table", names), expected)


def test_a_half_written_table_of_other_settings_or_bars_is_begun_anew(
    names, folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(table_files, "FLUSH_BYTES", 1)
    finish = TableWriter.finish
    monkeypatch.setattr(TableWriter, "finish", lambda self: (_ for _ in ()).throw(StopError))
    with pytest.raises(StopError):
        write_table(tmp_path / "table", names, untraded="keep")
    monkeypatch.setattr(TableWriter, "finish", finish)
    assert_equal(write_table(tmp_path / "table", names), read_table(names))


def test_a_full_disk_leaves_what_is_good(names, tmp_path, monkeypatch):
    def full(self):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
        patched.setattr(table_files.FileRows, "flush", full)
        write_table(tmp_path / "table", names)
    assert_equal(write_table(tmp_path / "table", names), read_table(names))


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def of_version(path):
    import hashlib

    table = json.loads(json.loads(path.read_text())["table"]) | {"version": 99}
    text = json.dumps(table)
    digest = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps({"sha256": digest, "table": text}))


@pytest.mark.parametrize(
    ("file", "harm", "message"),
    [
        ("values", flip, "is damaged"),
        ("places", flip, "is damaged"),
        ("offsets", flip, "is damaged"),
        ("left_out", flip, "is damaged"),
        ("values", lambda path: os.truncate(path, 480), "480 bytes, and table.json says"),
        ("calendar", Path.unlink, "cannot be read"),
        (MANIFEST, flip, "table.json"),
        (MANIFEST, lambda path: path.write_text("[1]"), "cannot be read"),
        (MANIFEST, Path.unlink, "is no table of bars"),
        (MANIFEST, of_version, "of version 99 of the format, and this release reads 1"),
    ],
)
def test_a_table_that_is_not_whole_is_refused_by_name(written, names, file, harm, message):
    path, table = written
    found = next(each for each in path.iterdir() if each.name.startswith(file))
    del table
    harm(found)
    with pytest.raises(BarDataError, match=message) as refused:
        read_mapped(path, names)
    assert str(found if file != MANIFEST or "no table" not in message else path) in str(
        refused.value
    )


def test_a_table_older_than_its_folder_is_noticed(provider, tmp_path):
    folder = tmp_path / "qlib"
    shutil.copytree(provider, folder)
    open_provider(folder)
    names = names_of("all", "day")
    write_table(tmp_path / "table", names)
    volume = folder / "features" / names[3].lower() / "volume.day.bin"
    os.utime(volume, (1, 1))
    read_mapped(tmp_path / "table", names)  # as after a copy: the same bars
    values = np.fromfile(volume, "<f4")
    values[-1] *= 1.01
    values.tofile(volume)
    with pytest.raises(BarDataError, match=f"the bars of {names[3]} in the Qlib folder have"):
        read_mapped(tmp_path / "table", names)
    with pytest.raises(ConfigError, match="--overwrite replaces it"):
        write_table(tmp_path / "table", names)
    assert_equal(write_table(tmp_path / "table", names, overwrite=True), read_table(names))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="is no table of bars: name another"):
        write_table(tmp_path / "mine", names, overwrite=True)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"untraded": "keep"}, r"untraded skip \(asked for: keep\)"),
        ({"raw_volume": True}, r"raw_volume False \(asked for: True\)"),
        ({"last": "2020-06-30"}, r"bounds .* \(asked for: .*2020-06-30"),
        ({"names": 5}, r"instruments \d+ \(asked for: 5\), other instruments"),
    ],
)
def test_a_table_of_another_data_set_is_refused(written, names, how, message):
    path, _ = written
    how = dict(how)
    asked = names[: how.pop("names", None)]
    with pytest.raises(ConfigError, match=message):
        read_mapped(path, asked, **how)


@pytest.mark.parametrize(
    "move",
    [moved, lambda config, day: moved_task({"model": {}, "dataset": config}, day)["dataset"]],
)
def test_a_run_that_mapped_its_bars_is_scored_and_trained_on_other_days(written, names, move):
    handler = {
        "class": "KronosHandler",
        "module_path": "kronos_qlib.plugin.dataset",
        "kwargs": {"instruments": "all", "table": str(written[0])},
    }
    config = {
        "class": "KronosDataset",
        "module_path": "kronos_qlib.plugin.dataset",
        "kwargs": {"handler": handler, "segments": {"test": ("2020-06-01", "2020-06-02")}},
    }
    dataset = init_instance_by_config(move(config, pd.Timestamp("2020-06-30")))
    assert_equal(dataset.bar_handler.bars, read_table(names, last="2020-06-30"))
    assert handler["kwargs"]["table"] == str(written[0])


def test_the_command_writes_what_a_workflow_names(folder, tmp_path, capsys):
    out = tmp_path / "bars.table"
    assert main(["data", "table", str(folder), "--out", str(out), "--untraded", "keep"]) == 0
    assert "bars of 8 instruments" in capsys.readouterr().out
    assert len(open_table(out)) == len(KronosHandler(untraded="keep", table=str(out)).bars)
    assert main(["data", "table", str(folder), "--out", str(out)]) == 2
    assert "--overwrite replaces it" in capsys.readouterr().err
    assert main(["data", "table", str(folder), "--out", str(out), "--field", "x=1"]) == 2


def test_the_command_offers_what_the_handler_takes():
    known = {"incomplete": Incomplete, "invalid": Invalid, "untraded": Untraded}
    defaults = inspect.signature(KronosHandler).parameters
    for name, words in WAYS.items():
        assert set(words) == set(get_args(known[name])) and words[0] == defaults[name].default


def test_memory_holds_an_instrument_and_not_the_table(tmp_path):
    """40 instruments of 20,000 bars, 21 MB: written, opened, and windows read at random."""
    calendar = np.datetime64("2000-01-01", "ns") + np.arange(20_000).astype("timedelta64[m]")
    rng = np.random.default_rng(0)
    close = rng.uniform(9, 10, len(calendar)).astype(np.float32)
    bars = np.stack([close, close + 1, close - 1, close, close * 10, close * 100], axis=1)
    tracemalloc.start()
    with TableWriter(tmp_path / "table", calendar, {}).held() as writer:
        writer.keep(0)
        for number in range(40):
            writer.add(f"S{number}", np.arange(len(calendar)), bars, {})
        writer.finish()
    table = open_table(tmp_path / "table")
    windows = windows_to_train(table, 90, 10)
    batch = gather(windows, np.sort(rng.choice(len(windows), 64, replace=False)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(batch.z) == 64 and table.nbytes == 40 * 20_000 * 26
    assert peak < table.nbytes / 2
