"""Style, scripts and Plotly: read once, addressed by a digest, cached by browsers for ever."""

from __future__ import annotations

import gzip
import hashlib
import threading
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from flask import Response, request

from kronos_qlib.errors import MissingDependencyError
from kronos_qlib.webui.problems import HttpProblemError

FOLDER = Path(__file__).parent / "static"
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".woff2": "font/woff2",
}
"""What is served; other files of the folder are not."""
FOR_EVER = "public, max-age=31536000, immutable"
SMALL = 1000
"""Bytes below which compressing is not worth it."""


@dataclass(frozen=True)
class StaticFile:
    """One file in memory, as it is and compressed."""

    data: bytes
    kind: str

    @cached_property
    def tag(self) -> str:
        """Of the contents."""
        return hashlib.sha256(self.data).hexdigest()[:16]

    @cached_property
    def packed(self) -> bytes | None:
        """With gzip, where that is smaller."""
        if len(self.data) < SMALL or not self.kind.startswith(("text/", "image/svg")):
            return None
        return gzip.compress(self.data, 6, mtime=0)

    def respond(self) -> Response:
        """To the request at hand."""
        packed = self.packed if "gzip" in request.headers.get("Accept-Encoding", "") else None
        response = Response(self.data if packed is None else packed, content_type=self.kind)
        if packed is not None:
            response.headers["Content-Encoding"] = "gzip"
        response.vary.add("Accept-Encoding")
        response.headers["Cache-Control"] = FOR_EVER
        response.set_etag(self.tag + ("" if packed is None else "-gz"))
        response.make_conditional(request)  # a 304 for a browser that has it
        return response


class StaticFiles:
    """The page's own files, below one folder that is named by the digest of all.

    Modules import each other by relative names: these stay within the digest, so that no old
    module ever meets a new one.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        self.files = {
            path.relative_to(folder).as_posix(): StaticFile(path.read_bytes(), TYPES[path.suffix])
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.suffix in TYPES
        }
        found = hashlib.sha256()
        for name, file in self.files.items():
            found.update(f"{name}\0{file.tag}\0".encode())
        self.digest = found.hexdigest()[:12]
        self._plotly: StaticFile | None = None
        self._lock = threading.Lock()

    def address(self, name: str) -> str:
        """Of a file."""
        return f"/static/{self.digest}/{name}"

    @cached_property
    def plotly_address(self) -> str:
        """Of plotly.js, out of the installed package."""
        return f"/static/plotly-{version('plotly')}/plotly.min.js"

    def respond(self, folder: str, name: str) -> Response:
        """A file by the two parts of its address.

        Raises:
            HttpProblemError: there is no such file.
        """
        if f"/static/{folder}/{name}" == self.plotly_address:
            return self.plotly().respond()
        if folder != self.digest or name not in self.files:
            raise HttpProblemError(404, "there is no such file; load the page again")
        return self.files[name].respond()

    def plotly(self) -> StaticFile:
        """plotly.min.js, read and compressed with the first call.

        Raises:
            MissingDependencyError: plotly is not installed.
        """
        with self._lock:
            if self._plotly is None:
                found = find_spec("plotly")
                if found is None or found.origin is None:
                    raise MissingDependencyError(
                        'the charts need plotly: pip install "kronos-qlib[web]"', name="plotly"
                    )
                path = Path(found.origin).parent / "package_data" / "plotly.min.js"
                self._plotly = StaticFile(path.read_bytes(), TYPES[".js"])
                _ = self._plotly.packed
            return self._plotly
