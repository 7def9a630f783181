"""Files and folders that are complete or not there: built beside their place, then moved.

While `name` is replaced there are beside it `.name.<mark>.new`, the draft; `.name.<mark>.lock`,
which the system keeps locked for as long as the process lives; and, where two folders cannot be
exchanged in one step, for a moment `.name.<mark>.old`, the folder that was there before.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import Timeout

from kronos_qlib.owners import lock_of

logger = logging.getLogger(__name__)

AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""Of Linux's renameat2: paths are relative to the working directory; both names stay, swapped."""

UNLOCKED_AGE = 24 * 3600.0
"""Seconds after which a draft without a lock is a killed process's; older versions had no locks."""
LOCK_AGE = 60.0
"""Seconds that a lock may be there without a draft: its owner is about to begin."""


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A free path beside `target`: what the block writes there takes its place at the end.

    A file replaces a file and a folder a folder, whatever is in it: the caller checks, in the
    block, that it may go. When the block raises, `target` is as it was. A process that is killed
    leaves the old or the new one whole. Only where the system cannot exchange two folders in one
    step (not Linux, some network drives) can a kill leave `target` missing; `recover`, which
    begins every `replacing`, then puts the old folder back.

    Args:
        target: file or folder, there or not; its parent is made.

    Raises:
        OSError: the draft cannot be made or moved. `target` is as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    recover(target)
    parts = _Parts(target, uuid.uuid4().hex[:8])
    held = lock_of(parts.lock)
    try:
        yield parts.draft
        if not (target.is_dir() and parts.draft.is_dir()):
            parts.draft.replace(target)
        elif not _exchange(parts.draft, target):
            target.rename(parts.old)
            parts.draft.rename(target)
    finally:
        with suppress(OSError):  # a later `recover` tries again
            parts.settle()
        held.release()
        parts.unlink_lock()


def recover(target: Path) -> None:
    """End what killed processes began with `target`: put back what was there, remove drafts.

    Drafts of living processes, on this or another machine, stay as they are.
    """
    for parts in _parts_of(target):
        with _claim(parts) as is_ours, suppress(OSError):
            if is_ours:
                parts.settle()


def followed(target: Path) -> Path:
    """Where a link leads, for those who replace what lies there and leave the link as it is."""
    return target.resolve() if target.is_symlink() else target


def put_aside(target: Path) -> Path | None:
    """Where the former `target` lies if it is missing because its replacement was killed."""
    if not _is_free(target):
        return None
    return next((parts.old for parts in _parts_of(target) if parts.old.exists()), None)


class _Parts:
    """The hidden names of one replacement."""

    def __init__(self, target: Path, mark: str) -> None:
        self.target = target
        self.mark = mark
        self.draft, self.old, self.lock = (
            target.with_name(f".{target.name}.{mark}.{suffix}") for suffix in ("new", "old", "lock")
        )

    def settle(self) -> None:
        """Leave `target` and nothing else, wherever the replacement stopped."""
        if os.path.lexists(self.old):
            if _is_free(self.target):
                with suppress(FileNotFoundError):
                    self.target.rmdir()  # empty; Windows renames onto nothing
                self.old.rename(self.target)
                logger.warning("%s was put back: its replacement did not end", self.target)
            elif os.path.lexists(self.draft):
                # Both are there, so `target` is not the draft: somebody wrote it since.
                kept = self.target.with_name(f"{self.target.name}.{self.mark}.old")
                self.old.rename(kept)
                logger.warning(
                    "%s was written while its replacement stood still; what was there before is %s",
                    self.target,
                    kept,
                )
            else:
                _remove(self.old)
        _remove(self.draft)

    def unlink_lock(self) -> None:
        """The lock goes last: without one, leftovers look like a living process's."""
        if not os.path.lexists(self.draft) and not os.path.lexists(self.old):
            with suppress(OSError):
                self.lock.unlink()


def _parts_of(target: Path) -> list[_Parts]:
    """The replacements that left something beside `target`, the one with the newest data first."""
    form = re.compile(rf"\.{re.escape(target.name)}\.([0-9a-f]{{8}})\.(?:new|old|lock)")
    try:
        names = [path.name for path in target.parent.iterdir()]
    except OSError:
        return []
    marks = {found[1] for name in names if (found := form.fullmatch(name))}
    return sorted((_Parts(target, mark) for mark in marks), key=lambda parts: _age(parts.old))


@contextmanager
def _claim(parts: _Parts) -> Iterator[bool]:
    """Whether the process that began a replacement is gone; no other settles it meanwhile."""
    begun = [path for path in (parts.draft, parts.old) if os.path.lexists(path)]
    if not parts.lock.exists():
        # A missing target has no owner that could still need it so.
        is_stuck = parts.old in begun and _is_free(parts.target)
        yield is_stuck or all(_age(path) > UNLOCKED_AGE for path in begun)
        return
    if not begun and _age(parts.lock) < LOCK_AGE:
        yield False
        return
    try:
        held = lock_of(parts.lock)
    except (Timeout, OSError):  # at work, or another user's
        yield False
        return
    try:
        yield True
    finally:
        held.release()
        parts.unlink_lock()


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step; False where that cannot be, with both as they were."""
    if sys.platform != "linux":
        return False
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:  # an old C library
        return False
    renameat2.argtypes = (
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_uint,
    )
    names = os.fsencode(one), os.fsencode(other)
    return bool(renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0)


def _is_free(path: Path) -> bool:
    """Nothing is there, or an empty folder."""
    if path.is_dir() and not path.is_symlink():
        return not any(path.iterdir())
    return not os.path.lexists(path)


def _age(path: Path) -> float:
    """Seconds since a file or folder was written; endless if it is not there."""
    try:
        return time.time() - path.lstat().st_mtime
    except OSError:
        return float("inf")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
