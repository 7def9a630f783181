"""Uploaded files, read by a process that may be killed."""

from __future__ import annotations

import json
import logging
import queue
import subprocess
import sys
import threading
import unicodedata
from contextlib import suppress
from pathlib import PurePosixPath, PureWindowsPath
from typing import IO, Any

from kronos_qlib.data.files.read import BarFile
from kronos_qlib.errors import BarDataError
from kronos_qlib.webui.work.job_queue import QueueFullError
from kronos_qlib.webui.work.upload_process import (
    MOST_BYTES,
    SUFFIXES,
    read_frame_of,
    write_frame,
)

logger = logging.getLogger(__name__)

SECONDS = 20.0
"""Longest that reading a file may take."""
START_SECONDS = 60.0
"""Longest that the process may take to begin: it imports pandas and pyarrow."""
MOST_WAITING = 4
"""Uploads that may wait for one that is read."""


class UploadReader:
    """One process, begun with the first upload or by `warm`, and begun anew after it was killed."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(MOST_WAITING + 1)

    def warm(self) -> None:
        """Begin the process, so that the first upload need not wait for it."""
        with self._lock, suppress(BarDataError):
            self._begun()

    def read(self, name: str, data: bytes, settings: dict[str, Any]) -> BarFile:
        """The bars of an uploaded file.

        Args:
            name: as the client calls it; nothing is opened by it.
            settings: zone, date_order, encoding, see `read_bars`.

        Raises:
            BarDataError: it is too large, of another kind, cannot be read, or not in time.
            QueueFullError: too many files wait to be read.
        """
        shown = shown_name(name)
        if len(data) > MOST_BYTES:
            raise BarDataError(f"{shown} has {len(data):,} bytes, and {MOST_BYTES:,} are the most")
        if not shown.lower().endswith(SUFFIXES):
            raise BarDataError(f"{shown}: expected a file ending in {' or '.join(SUFFIXES)}")
        if not self._places.acquire(blocking=False):
            raise QueueFullError(MOST_WAITING, 2)
        try:
            with self._lock:
                answer, table = self._ask(shown, data, settings)
        finally:
            self._places.release()
        if "error" in answer:
            raise BarDataError(str(answer["error"]))
        import pyarrow as pa

        with pa.ipc.open_stream(pa.BufferReader(table)) as stream:
            bars = stream.read_all().to_pandas()
        bars["symbol"] = bars["symbol"].astype(object)
        return BarFile(bars, tuple(map(str, answer["notes"])))

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _ask(
        self, name: str, data: bytes, settings: dict[str, Any]
    ) -> tuple[dict[str, Any], bytes]:
        process = self._begun()
        head = json.dumps({"name": name, "settings": settings}).encode()

        def exchange() -> tuple[dict[str, Any], bytes] | None:
            assert process.stdin is not None and process.stdout is not None
            write_frame(process.stdin, head)
            write_frame(process.stdin, data)
            process.stdin.flush()
            answer, table = read_frame_of(process.stdout), read_frame_of(process.stdout)
            return None if answer is None or table is None else (json.loads(answer), table)

        found: tuple[dict[str, Any], bytes] | None = _within(self.seconds, exchange)
        if found is None:
            ended = process.poll() is not None
            self._end()
            raise BarDataError(
                f"{name} ended the process that reads it: it is damaged, or needs more memory than "
                "a file here may take"
                if ended
                else f"{name} took more than {self.seconds:g} seconds to read and was given up"
            )
        return found

    def _begun(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        command = [sys.executable, "-m", "kronos_qlib.webui.work.upload_process"]
        self._process = process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        output: IO[bytes] | None = process.stdout
        assert output is not None
        if _within(START_SECONDS, lambda: read_frame_of(output)) != b"ready":
            self._end()
            raise BarDataError("the process that reads files did not begin: ask again")
        return process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait(timeout=10)
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()


def _within(seconds: float, work: Any) -> Any:
    """What `work` returns; None where it fails or takes longer: its thread then ends with the
    process that it waits for."""
    found: queue.Queue[Any] = queue.Queue(1)

    def run() -> None:
        try:
            found.put(work())
        except (OSError, ValueError):
            found.put(None)

    threading.Thread(target=run, name="upload", daemon=True).start()
    try:
        return found.get(timeout=seconds)
    except queue.Empty:
        return None


def shown_name(name: str) -> str:
    """The last part of a name that a client gave, for people: no folder, nothing invisible."""
    last = PurePosixPath(PureWindowsPath(name).name).name
    shown = "".join(
        mark for mark in last if unicodedata.category(mark)[0] not in "CZ" or mark == " "
    )
    if len(shown) > 80:
        shown = f"{shown[:40]}…{shown[-30:]}"
    return shown if shown.strip(" .") else "upload"
