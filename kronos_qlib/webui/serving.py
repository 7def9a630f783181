"""The server of `kronos-qlib web`: waitress, this machine alone unless there is a token."""

from __future__ import annotations

import logging
import socket
import threading
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kronos_qlib.errors import ConfigError
from kronos_qlib.webui.security import Guard, is_loopback
from kronos_qlib.webui.service import Places, Service

THREADS = 24
"""More than requests that may wait for a result, so that others are answered meanwhile."""

PAINTED_SECONDS = 0.7
"""After the address is answered: a browser that was opened has its first page by then."""


@dataclass(frozen=True)
class ServerSettings:
    """Where and for whom.

    Raises:
        ConfigError: the port cannot be.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    opens_browser: bool = True
    device: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"--port lies in 0 to 65535, got {self.port}")


def serve(
    settings: ServerSettings, places: Places, on_ready: Callable[[str], None] = print
) -> None:
    """Serve until interrupted.

    Args:
        on_ready: called with the address once it is answered.

    Raises:
        ConfigError: the address cannot be bound, or others may connect and there is no token.
    """
    guard = Guard(settings.host, settings.token)
    from kronos_qlib.webui.app import make_app

    service = Service(places, settings.device)
    try:
        app = make_app(service, guard)
        logging.getLogger("waitress").setLevel(logging.ERROR)
        server = make_server(app, settings)
        address = _address(settings, server)
        on_ready(address)
        # Importing torch takes the interpreter from whoever paints the first page.
        warm = threading.Timer(PAINTED_SECONDS, service.warm)
        warm.daemon = True
        warm.start()
        if settings.opens_browser and is_loopback(settings.host):
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        try:
            server.run()
        finally:
            server.close()
    finally:
        service.close()


def make_server(app: Any, settings: ServerSettings) -> Any:
    """A server of waitress, bound and not yet running.

    Raises:
        ConfigError: the address cannot be bound.
    """
    from waitress.server import create_server

    from kronos_qlib.webui.app import MOST_BODY
    from kronos_qlib.webui.wire_errors import ProblemChannel

    sockets: dict[int, Any] = {}  # a name such as localhost may have two addresses
    try:
        server = create_server(
            app,
            map=sockets,
            host=settings.host,
            port=settings.port,
            threads=THREADS,
            ident=None,
            max_request_body_size=MOST_BODY,
            connection_limit=200,
            channel_timeout=60,
            expose_tracebacks=False,
        )
    except (OSError, ValueError) as problem:
        raise ConfigError(
            f"{settings.host} port {settings.port} cannot be served: {problem}; name another "
            "--port (0 takes a free one)"
        ) from problem
    for one in sockets.values():
        if hasattr(one, "channel_class"):
            one.channel_class = ProblemChannel
    return server


def _address(settings: ServerSettings, server: Any) -> str:
    port = getattr(server, "effective_port", settings.port)
    host = settings.host
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    shown = f"[{host}]" if ":" in host else host
    query = f"?token={settings.token}" if settings.token else ""
    return f"http://{shown}:{port}/{query}"
