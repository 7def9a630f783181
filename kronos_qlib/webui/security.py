"""Which requests are let in: by Host, origin, token; and what a browser may do with the answers."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import socket
from urllib.parse import urlsplit

from flask import Response, redirect, request
from werkzeug.wrappers import Response as AnyResponse

from kronos_qlib.errors import ConfigError
from kronos_qlib.webui.problems import HttpProblemError

SAFE = ("GET", "HEAD", "OPTIONS")
COOKIE = "kronos_session"
CSRF = "X-CSRF-Token"
LEAST_TOKEN = 16
"""Letters of a token that the owner chooses."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
}


def is_loopback(host: str) -> bool:
    """Whether an address to bind is seen by this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class Guard:
    """Refuses what comes from elsewhere.

    A page of another site that a browser has open beside this one can send requests here: it is
    told by Origin and Sec-Fetch-Site, and lacks the token of this page. A name that an attacker
    points at this machine (DNS rebinding) is told by Host.

    Args:
        host: the address that is bound.
        token: that every request must carry; required where others than this machine may connect.

    Raises:
        ConfigError: others may connect and there is no token, or it is short.
    """

    def __init__(self, host: str = "127.0.0.1", token: str | None = None) -> None:
        if token is None and not is_loopback(host):
            raise ConfigError(
                f"--host {host} lets other machines connect: give --token, {LEAST_TOKEN} letters "
                "or more, which their requests must carry; or leave --host out"
            )
        if token is not None and (len(token) < LEAST_TOKEN or not token.isascii()):
            raise ConfigError(
                f"--token has {len(token)} letters: give at least {LEAST_TOKEN}, of ASCII"
            )
        self.token = token
        self._key = secrets.token_bytes(32)
        self.csrf = self._signed("csrf")
        self._names = {"localhost", host.strip("[]").lower()}
        self._is_open = not is_loopback(host)
        if self._is_open:
            self._names |= {socket.gethostname().lower(), socket.getfqdn().lower()}

    def check(self) -> AnyResponse | None:
        """Before a request is handled.

        Returns:
            None to go on; or the answer to a first visit with the token in the address.

        Raises:
            HttpProblemError: 400, 401 or 403.
        """
        self._check_host()
        self._check_site()
        answer = self._check_token()
        if answer is not None or request.method in SAFE:
            return answer
        self._check_origin()
        return None

    def dress(self, response: Response) -> Response:
        """Headers of every answer."""
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        response.headers.setdefault("Cache-Control", "no-store")
        response.vary.add("Accept")
        return response

    def _check_host(self) -> None:
        name = _host_name(request.host)
        if name is None:
            raise HttpProblemError(400, "the request has no Host that can be read")
        if name in self._names:
            return
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            pass
        else:
            # An address cannot be pointed elsewhere, as a name can.
            if address.is_loopback or self._is_open:
                return
        raise HttpProblemError(
            403, "this address is asked for by a name that is not its own; use 127.0.0.1"
        )

    def _check_site(self) -> None:
        """A link from elsewhere may open a page; nothing else may come from another site."""
        site = request.headers.get("Sec-Fetch-Site", "none")
        if site in ("none", "same-origin"):
            return
        is_visit = (
            request.method == "GET"
            and request.headers.get("Sec-Fetch-Mode") == "navigate"
            and request.headers.get("Sec-Fetch-Dest") == "document"
        )
        if not is_visit:
            raise HttpProblemError(403, "requests of other sites are refused")

    def _check_token(self) -> AnyResponse | None:
        if self.token is None:
            return None
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _same(given.strip(), self.token):
            return None
        if _same(request.cookies.get(COOKIE, ""), self._signed("session")):
            return None
        if request.method == "GET" and _same(request.args.get("token", ""), self.token):
            answer = redirect(request.path, 303)
            answer.set_cookie(
                COOKIE, self._signed("session"), httponly=True, samesite="Strict", path="/"
            )
            return answer
        raise HttpProblemError(
            401,
            "a token is needed: open the address that the command printed, with ?token=, or send "
            "Authorization: Bearer TOKEN",
            headers={"WWW-Authenticate": "Bearer"},
        )

    def _check_origin(self) -> None:
        origin = request.headers.get("Origin")
        if origin is None:
            # No browser leaves it out of a request that changes something.
            if request.headers.get("Sec-Fetch-Site") is None and COOKIE not in request.cookies:
                return
        else:
            if not _is_own(origin):
                raise HttpProblemError(403, "requests of other origins are refused")
        if not _same(request.headers.get(CSRF, ""), self.csrf):
            raise HttpProblemError(
                403, "this page is older than the program that serves it: load it again"
            )

    def _signed(self, what: str) -> str:
        about = f"{what}:{self.token or ''}".encode()
        return hmac.new(self._key, about, hashlib.sha256).hexdigest()


def _same(one: str, other: str) -> bool:
    """Equal, in a time that does not tell where they differ."""
    return hmac.compare_digest(one.encode("utf-8", "replace"), other.encode("utf-8", "replace"))


def _is_own(origin: str) -> bool:
    """Whether an Origin header names the address that was asked."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.netloc.lower() == request.host.lower()


def _host_name(host: str) -> str | None:
    """The name or address in a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
