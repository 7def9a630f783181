"""Whose file or run something is, and whether that process is gone for sure."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from kronos_qlib import owners
from kronos_qlib.owners import Owner, is_free, lock_of


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_this_process_is_alive_and_an_ended_one_is_not():
    assert Owner.here().is_alive
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        theirs = Owner(Owner.here().host, process.pid, owners.started_of(process.pid))
        assert theirs.is_alive
        process.kill()
        if theirs.started:  # not yet asked for: a zombie is no owner
            for _ in range(100):
                if not theirs.is_alive:
                    break
                time.sleep(0.05)
            assert not theirs.is_alive
    finally:
        process.kill()
        process.wait()
    assert not theirs.is_alive
    assert Owner("another machine", process.pid, theirs.started).is_alive, "nothing is known of it"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the start is read from /proc")
def test_a_number_that_another_process_got_is_not_the_owner():
    mine = Owner.here()
    assert not Owner(mine.host, mine.process, "1").is_alive


def test_a_lock_is_free_once_it_was_taken_and_is_not(tmp_path):
    path = tmp_path / "lock"
    assert not is_free(path) and not path.exists()
    lock = lock_of(path)
    assert not is_free(path)
    lock.release()
    path.touch()
    assert is_free(path)


@pytest.mark.skipif(os.name != "posix", reason="owners and modes are POSIX's")
def test_a_private_folder_that_others_can_write_to_is_not_used(place):
    folder = owners.private_folder("runs")
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    assert owners.private_folder("runs") is None
    folder.rmdir()
    folder.symlink_to(place)
    assert owners.private_folder("runs") is None
