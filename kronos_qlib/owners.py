"""Whose file or run something is, and whether that process has certainly ended.

A lock that the system frees when its holder ends, however it ends, is the proof; where it is free
the process' number and start are looked at too, since a child of the holder may free its lock.
"""

from __future__ import annotations

import getpass
import os
import socket
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout


@dataclass(frozen=True)
class Owner:
    """A process, by what no other has."""

    host: str
    process: int
    started: str
    """When it began, in the system's own ticks; "" where that is not to be had."""

    @classmethod
    def here(cls) -> Owner:
        """This process."""
        return cls(socket.gethostname(), os.getpid(), started_of(os.getpid()))

    @property
    def is_alive(self) -> bool:
        """Whether it may be: of another machine, or where nothing is known, it may."""
        if self.host != socket.gethostname():
            return True
        if sys.platform == "win32":
            return _is_alive_on_windows(self.process)
        if self.started:
            return started_of(self.process) == self.started
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return False
        except OSError:  # it is there, and another user's
            return True
        return True


def started_of(process: int) -> str:
    """When a process began, by Linux's ticks since the start; "" where that is not known.

    A process that has ended and that its parent has not asked for yet counts as none.
    """
    try:
        line = Path(f"/proc/{process}/stat").read_bytes()
    except OSError:
        return ""
    state, *fields = line[line.rfind(b")") + 1 :].split()
    return "" if state in (b"Z", b"X") or len(fields) < 19 else fields[18].decode("ascii")


def _is_alive_on_windows(process: int) -> bool:
    if sys.platform != "win32":  # for mypy, which reads the rest on one system alone
        return True
    import ctypes

    query, invalid, still_active = 0x1000, 87, 259
    kernel = ctypes.WinDLL("kernel32", use_last_error=True)
    handle = kernel.OpenProcess(query, False, process)
    if not handle:
        return ctypes.get_last_error() != invalid
    code = ctypes.c_ulong()
    known = kernel.GetExitCodeProcess(handle, ctypes.byref(code))
    kernel.CloseHandle(handle)
    return not known or code.value == still_active


def lock_of(path: Path, patience: float = 0.0) -> FileLock:
    """The lock at a path, taken, until it is released or this process ends.

    Args:
        patience: seconds to wait for another process that has it.

    Raises:
        filelock.Timeout: another process has it.
    """
    lock = FileLock(path, timeout=patience)
    lock.acquire()
    return lock


def is_free(path: Path) -> bool:
    """Whether a lock was taken at this path once and is not now; False where there is no file."""
    if not path.is_file():
        return False
    try:
        lock_of(path).release()
    except (Timeout, OSError):
        return False
    return True


def private_folder(name: str) -> Path | None:
    """A folder of this user alone in the machine's temporary one; None where others have it."""
    try:
        user = str(os.getuid()) if hasattr(os, "getuid") else getpass.getuser()
        folder = Path(tempfile.gettempdir(), f"kronos_qlib-{user}", name)
        folder.parent.mkdir(mode=0o700, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        for one in (folder.parent, folder):
            about = one.lstat()
            if not one.is_dir() or one.is_symlink():
                return None
            if hasattr(os, "getuid") and (about.st_uid != os.getuid() or about.st_mode & 0o022):
                return None
    except (OSError, KeyError, ImportError):
        return None
    return folder
