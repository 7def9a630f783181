"""Work folders of training in several processes, and what is said of a worker that ended."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from kronos_qlib.training.launch import (
    JOB,
    OWNER,
    PROBLEM,
    RESULT,
    how_it_ended,
    remove_abandoned,
    work_folder,
    write_problem,
)

from kronos_qlib import owners
from kronos_qlib.errors import CheckpointError, ConfigError, TrainingError
from kronos_qlib.owners import Owner, is_free, lock_of
from kronos_qlib.training import launch

HOLD = """
import sys, tempfile, time
from pathlib import Path
tempfile.tempdir = sys.argv[1]
from kronos_qlib.training.launch import work_folder
with work_folder() as folder:
    (folder / "job.joblib").write_bytes(b"bars")
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def holder(place):
    """A process within `work_folder`, and its folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(place)], stdout=subprocess.PIPE, text=True
    )
    yield process, Path(process.stdout.readline().strip())
    process.kill()
    process.wait()


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_after_sigkill_a_folder_goes_at_the_next_start(holder, caplog):
    process, folder = holder
    with work_folder() as other:
        assert folder.exists(), "its process lives"
        process.kill()
        process.wait()
        assert (folder / "job.joblib").exists(), "nobody could remove it yet"
        remove_abandoned()
        assert not folder.exists() and other.exists()
    assert "which a killed training left" in caplog.text
    assert not other.exists()


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_a_folder_goes_with_sigterm(holder):
    process, folder = holder
    process.terminate()
    assert process.wait(timeout=10) == 128 + signal.SIGTERM
    assert not folder.exists()


def test_a_folder_is_private_and_goes_with_an_error(place):
    with pytest.raises(ZeroDivisionError), work_folder() as folder:
        if os.name == "posix":
            assert folder.stat().st_mode & 0o777 == 0o700
        raise ZeroDivisionError
    assert list(place.iterdir()) == []


def test_what_is_no_abandoned_work_folder_stays(place):
    """Not another's of a like name, not one whose lock is not yet taken, not a link's target."""
    (place / "kronos-work-new").mkdir()
    (place / "kronos-work-file").write_text("a file", encoding="utf-8")
    target = place / "precious"
    target.mkdir()
    (target / OWNER).touch()
    (target / JOB).touch()
    begins = place / "kronos-work-begins"  # its lock is there, and not yet taken
    begins.mkdir()
    (begins / OWNER).touch()
    if os.name == "posix":
        (place / "kronos-work-link").symlink_to(target)
    before = sorted(place.rglob("*"))
    remove_abandoned()
    assert sorted(place.rglob("*")) == before


class Ended:
    pid = 77


def check(folder, codes, resumes=False):
    launch._check(folder, [Ended] * len(codes), codes, resumes=resumes)


def test_errors_of_ours_come_first_then_kills_then_what_followed(tmp_path):
    write_problem(tmp_path, 0, RuntimeError("Connection closed by peer"))
    with pytest.raises(TrainingError, match=r"process 1 of 3 \(pid 77\) was killed by signal 9"):
        check(tmp_path, [1, -9, None], resumes=True)
    with pytest.raises(TrainingError, match="it goes on from its last state"):
        check(tmp_path, [1, -9, None], resumes=True)
    write_problem(tmp_path, 2, ConfigError("no such thing"))
    with pytest.raises(ConfigError, match="no such thing"):
        check(tmp_path, [1, -9, 1])
    (tmp_path / PROBLEM.format(rank=2)).unlink()
    with pytest.raises(RuntimeError, match="Connection closed by peer"):
        check(tmp_path, [1, None, None])


def test_an_error_travels_as_text_and_its_kind(tmp_path):
    """It was a pickle. What cannot be made from a text, or is no kind of ours, keeps its text."""

    class OwnError(Exception):
        pass

    for problem, kind, text in (
        (CheckpointError("broken"), CheckpointError, "^broken$"),
        (ValueError("bad"), ValueError, "^bad$"),
        (OwnError("odd"), RuntimeError, "^OwnError: odd$"),
        (UnicodeDecodeError("utf-8", b"x", 0, 1, "why"), RuntimeError, "^UnicodeDecodeError: "),
    ):
        write_problem(tmp_path, 0, problem)
        with pytest.raises(kind, match=text):
            check(tmp_path, [1])
    (tmp_path / PROBLEM.format(rank=0)).write_text('{"kind": "Val', encoding="utf-8")
    with pytest.raises(TrainingError, match="its error was lost"):
        check(tmp_path, [1])
    told = {"kind": "SystemExit", "text": "0"}
    (tmp_path / PROBLEM.format(rank=0)).write_text(json.dumps(told), encoding="utf-8")
    with pytest.raises(RuntimeError, match="SystemExit: 0"):
        check(tmp_path, [1])


def test_an_end_without_a_result_is_an_error(tmp_path):
    with pytest.raises(TrainingError, match="without a result"):
        check(tmp_path, [0, 0])
    (tmp_path / RESULT).touch()
    check(tmp_path, [0, 0])


def test_the_end_of_a_process_in_words():
    assert how_it_ended(3) == "ended with exit code 3 and without an error"
    assert how_it_ended(0xC0000005) == "was killed, exit code 0xc0000005"
    if os.name == "posix":
        assert how_it_ended(-15) == "was killed by signal 15, SIGTERM"
        assert "memory ran out" in how_it_ended(-9)
    assert "signal 250" in how_it_ended(-250)


# Owners.


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
