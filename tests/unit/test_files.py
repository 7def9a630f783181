"""A file or folder that is replaced is the old or the new one, wherever the process dies."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from filelock import FileLock

from kronos_qlib import files
from kronos_qlib.files import put_aside, recover, replacing

ROOT = Path(__file__).parents[2]
OLD, NEW = {"a/x": "old", "a/y": "old"}, {"a/x": "new", "b/z": "new"}


def write(folder: Path, parts: dict[str, str]) -> None:
    for name, text in parts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def tree(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(params=[True, False], ids=["in one step", "in two"])
def exchanges(request, monkeypatch) -> bool:
    """Whether the system can exchange two folders."""
    if not request.param:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    elif sys.platform != "linux":
        pytest.skip("renameat2 is Linux's")
    return request.param


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_takes_its_place(tmp_path, exchanges, there):
    target = tmp_path / "deep" / "target"
    if there:
        write(target, OLD)
    with replacing(target) as draft:
        write(draft, NEW)
        assert (tree(target) if there else {}) == (OLD if there else {})
    assert tree(target) == NEW
    assert left_in(target.parent) == ["target"]


def test_a_file_takes_its_place(tmp_path):
    for text in ("one", "two"):
        with replacing(tmp_path / "x.txt") as draft:
            draft.write_text(text, encoding="utf-8")
        assert tree(tmp_path) == {"x.txt": text}


def test_a_failure_leaves_what_was_there(tmp_path, exchanges):
    write(tmp_path / "target", OLD)
    with pytest.raises(OSError, match="no space"), replacing(tmp_path / "target") as draft:
        write(draft, NEW)
        raise OSError(28, "no space left on device")
    assert tree(tmp_path / "target") == OLD
    assert left_in(tmp_path) == ["target"]


@pytest.mark.parametrize("step", ["old", "new"])
def test_a_rename_that_fails_is_taken_back(tmp_path, monkeypatch, step):
    write(tmp_path / "target", OLD)
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    rename = Path.rename

    def refuse(self: Path, other: Path) -> Path:
        if f".{step}" in (Path(other).suffix, self.suffix) and other.name != "target":
            raise PermissionError("in use")
        if step == "new" and self.suffix == ".new":
            raise PermissionError("in use")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(PermissionError), replacing(tmp_path / "target") as draft:
        write(draft, NEW)
    assert tree(tmp_path / "target") == OLD
    assert left_in(tmp_path) == ["target"]


def test_a_file_never_takes_a_folders_place(tmp_path):
    """Exchanged, a folder of bars would have been deleted for a file of that name."""
    write(tmp_path / "target", OLD)
    with pytest.raises(OSError), replacing(tmp_path / "target") as draft:
        draft.write_text("a file", encoding="utf-8")
    assert tree(tmp_path / "target") == OLD
    (tmp_path / "file").write_text("kept", encoding="utf-8")
    with pytest.raises(OSError), replacing(tmp_path / "file") as draft:
        write(draft, NEW)
    assert (tmp_path / "file").read_text(encoding="utf-8") == "kept"
    assert left_in(tmp_path) == ["file", "target"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs the right to make links")
def test_a_link_is_replaced_and_what_it_points_to_stays(tmp_path, exchanges):
    write(tmp_path / "data", OLD)
    (tmp_path / "target").symlink_to(tmp_path / "data")
    with replacing(tmp_path / "target") as draft:
        write(draft, NEW)
    assert tree(tmp_path / "target") == NEW
    assert tree(tmp_path / "data") == OLD
    assert left_in(tmp_path) == ["data", "target"]


# Forked once for every line of files.py that a replacement runs, killed at that line.
KILL_AT_EVERY_LINE = """
import json, os, signal, sys
from pathlib import Path
from kronos_qlib import files

parts, exchanges, root, is_there = json.loads(sys.argv[1])
if not exchanges:
    files._exchange = lambda one, other: False
old, new = parts

def write(folder, parts):
    for name, text in parts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

def replace(target, last):
    count = 0
    def trace(frame, event, arg):
        nonlocal count
        if frame.f_code.co_filename not in (files.__file__, "<string>", "shutil.py"):
            if not frame.f_code.co_filename.endswith("shutil.py"):
                return None
        if event == "line":
            count += 1
            if count == last:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace
    sys.settrace(trace)
    with files.replacing(target) as draft:
        write(draft, new)

ends = []
for last in range(1, 1000):
    target = Path(root) / str(last) / "target"
    if is_there:
        write(target, old)
    child = os.fork()
    if not child:
        replace(target, last)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    ends.append(os.waitstatus_to_exitcode(status))
    if ends[-1] == 0:
        break
print(json.dumps(ends))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
@pytest.mark.parametrize("is_there", [True, False], ids=["there", "new"])
def test_a_kill_at_any_line_leaves_the_old_or_the_new(tmp_path, exchanges, is_there):
    given = json.dumps([[OLD, NEW], exchanges, str(tmp_path), is_there])
    done = subprocess.run(
        [sys.executable, "-c", KILL_AT_EVERY_LINE, given],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    ends = json.loads(done.stdout)
    assert ends[-1] == 0 and set(ends[:-1]) == {-9} and len(ends) > 40
    seen, missing = set(), 0
    for number in range(1, len(ends)):
        folder = tmp_path / str(number)
        target = folder / "target"
        was = tree(target) if target.exists() else None
        if was is None and is_there:
            assert not exchanges, "a folder that is exchanged is never missing"
            missing += 1
            aside = put_aside(target)
            assert aside is not None and tree(aside) == OLD
            recover(target)
            was = tree(target)
        assert was in ((OLD, NEW) if is_there else (None, NEW))
        seen.add(None if was is None else was["a/x"])
        for lock in folder.glob(".*.lock"):  # as if they had been killed a while ago
            os.utime(lock, (1, 1))
        with replacing(target) as draft:
            write(draft, {"a": "next"})
        assert tree(target) == {"a": "next"}
        assert left_in(folder) == ["target"]
    assert seen == ({"old", "new"} if is_there else {None, "new"}), "it was killed before and after"
    assert missing >= (1 if is_there and not exchanges else 0)


def test_the_draft_of_a_living_process_stays(tmp_path):
    """A second conversion of the same folder once could have removed the first one's files."""
    target = tmp_path / "target"
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        with replacing(target) as draft:
            write(draft, NEW)
            begun.set()
            go_on.wait(10)

    worker = threading.Thread(target=slow)
    worker.start()
    assert begun.wait(10)
    recover(target)
    (draft,) = tmp_path.glob(".target.*.new")
    assert tree(draft) == NEW
    with replacing(target) as other:
        write(other, OLD)
    assert tree(draft) == NEW
    go_on.set()
    worker.join()
    assert tree(target) == NEW
    assert left_in(tmp_path) == ["target"]


def test_what_was_written_since_the_kill_is_not_replaced(tmp_path, caplog):
    """Neither may go: not what lies aside, and not what somebody wrote in its place."""
    target = tmp_path / "target"
    write(target, {"x": "made since"})
    write(tmp_path / ".target.0123abcd.old", OLD)
    write(tmp_path / ".target.0123abcd.new", NEW)
    (tmp_path / ".target.0123abcd.lock").touch()
    with caplog.at_level(logging.WARNING):
        recover(target)
    assert tree(target) == {"x": "made since"}
    assert left_in(tmp_path) == ["target", "target.0123abcd.old"]
    assert tree(tmp_path / "target.0123abcd.old") == OLD
    assert "target.0123abcd.old" in caplog.text


def test_what_an_older_version_left_goes_after_a_day_and_comes_back_at_once(tmp_path):
    """It kept no locks: a fresh draft may be of a process at work."""
    target = tmp_path / "target"
    write(target, OLD)
    draft = tmp_path / ".target.0123abcd.new"
    write(draft, NEW)
    recover(target)
    assert tree(draft) == NEW
    os.utime(draft, (1, 1))
    recover(target)
    assert left_in(tmp_path) == ["target"]
    target.rename(tmp_path / ".target.0123abcd.old")
    assert put_aside(target) == tmp_path / ".target.0123abcd.old"
    target.mkdir()  # an empty folder is as good as none
    assert put_aside(target) == tmp_path / ".target.0123abcd.old"
    recover(target)
    assert tree(target) == OLD
    assert left_in(tmp_path) == ["target"]
    assert put_aside(target) is None


def test_names_that_only_resemble_are_not_touched(tmp_path):
    others = [".target.keep.new", ".target.0123abcd.newer", ".targets.0123abcd.new", ".target"]
    for name in others:
        write(tmp_path / name, NEW)
        os.utime(tmp_path / name, (1, 1))
    write(tmp_path / ".t[a]rget.0123abcd.new", NEW)
    with replacing(tmp_path / "target") as draft:
        write(draft, NEW)
    assert left_in(tmp_path) == sorted([*others, ".t[a]rget.0123abcd.new", "target"])


def test_a_lock_without_a_draft_is_of_a_process_that_begins(tmp_path):
    lock = tmp_path / ".target.0123abcd.lock"
    lock.touch()
    recover(tmp_path / "target")
    assert lock.exists()
    os.utime(lock, (1, 1))
    with FileLock(lock, timeout=0):
        recover(tmp_path / "target")
        assert lock.exists()
    recover(tmp_path / "target")
    assert not lock.exists()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError), replacing(tmp_path / "target") as draft:
            write(draft, NEW)
    finally:
        tmp_path.chmod(0o700)


def test_a_lock_that_cannot_be_made_is_an_error_and_changes_nothing(tmp_path, monkeypatch):
    """A read-only drive."""
    write(tmp_path / "target", OLD)

    def refuse(self, *args, **kwargs):
        raise OSError(30, "Read-only file system", str(self.lock_file))

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with pytest.raises(OSError, match=r"Read-only.*target"), replacing(tmp_path / "target"):
        raise AssertionError("the block must not begin")
    assert tree(tmp_path / "target") == OLD
