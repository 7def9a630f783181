"""What waitress itself refuses, before the application sees it: problem documents too."""

from __future__ import annotations

import json
import socket
import threading

import pytest

from kronos_qlib.webui.schemas import Problem
from kronos_qlib.webui.serving import ServerSettings, make_server

POST = b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"


@pytest.fixture(scope="module")
def port():
    def app(environ, start):
        start("200 OK", [])
        return [b"let in"]

    server = make_server(app, ServerSettings(port=0))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    yield server.effective_port
    server.close()


def asked(port, data):
    """Status line, headers and body of the answer to bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(data)
        found = b""
        while part := connection.recv(65536):
            found += part
    head, _, body = found.partition(b"\r\n\r\n")
    return head.decode(), body


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01<b>\r\n\r\n", 400),  # TLS to a port that speaks none
        (POST + b"Content-Length: -1\r\n\r\n{}", 400),
        (POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} ", 400),
        (POST + b"Content-Length: 99999999999\r\n\r\n{}", 413),
        (POST + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n{}\r\n0\r\n\r\n", 400),
    ],
)
def test_a_request_that_is_none_gets_a_problem_document(port, data, status):
    head, body = asked(port, data)
    assert head.split()[1] == str(status)
    assert "Content-Type: application/problem+json" in head
    assert "X-Content-Type-Options: nosniff" in head
    assert Problem.model_validate(json.loads(body)).status == status
    assert b"waitress" not in body and b"Traceback" not in body


def test_others_are_let_in(port):
    assert asked(port, POST + b"Content-Length: 2\r\n\r\n{}")[1] == b"let in"
