"""Files from the Hugging Face Hub, given up soon where there is no way to it."""

from __future__ import annotations

import re
import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

PATIENCE = 3.0
"""Seconds in which the Hub's machine, or the proxy before it, must take a connection. The Hub's own
client would try again for half a minute."""


def fetch(repo: str, file: str, revision: str | None) -> Path:
    """A file of a repository, from the cache or the Hub.

    The cache answers without a network for a pinned revision, and for others where the Hub is out
    of reach. HF_HUB_OFFLINE=1 asks the cache alone, HF_ENDPOINT names a mirror.

    Raises:
        OSError: the Hub is out of reach, and the file is not in the cache.
        Exception: whatever the Hub's client raises; its errors share no base.
    """
    import huggingface_hub
    from huggingface_hub import constants

    known = huggingface_hub.try_to_load_from_cache(repo, file, revision=revision)
    is_cached = isinstance(known, str)
    is_commit = revision is not None and re.fullmatch("[0-9a-f]{40}", revision) is not None
    if not constants.HF_HUB_OFFLINE and not (is_cached and is_commit):
        try:
            reach(constants.ENDPOINT)
        except OSError:
            if is_cached:
                return Path(str(known))
            raise
    return Path(huggingface_hub.hf_hub_download(repo, file, revision=revision))


def reach(endpoint: str, patience: float = PATIENCE) -> None:
    """Connect to a server, or to the proxy that stands before it, and hang up.

    Args:
        endpoint: as "https://huggingface.co".

    Raises:
        OSError: nothing accepted a connection within `patience` seconds, the name's look-up
            included, for which sockets have no timeout.
    """
    parts = urlsplit(endpoint)
    proxy = getproxies().get(parts.scheme)
    if proxy and parts.hostname and not proxy_bypass(parts.hostname):
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    host, port = parts.hostname, parts.port or (80 if parts.scheme == "http" else 443)
    outcome: list[OSError | None] = []

    def connect() -> None:
        try:
            socket.create_connection((host or "", port), timeout=patience).close()
            outcome.append(None)
        except (OSError, UnicodeError) as problem:
            outcome.append(problem if isinstance(problem, OSError) else OSError(str(problem)))

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(patience)
    if not outcome:
        raise TimeoutError(f"{host}:{port} gave no answer in {patience:g} s")
    if outcome[0] is not None:
        raise OSError(f"{host}:{port} cannot be reached: {outcome[0]}") from outcome[0]
