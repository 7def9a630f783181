"""Errors as RFC 9457 problem documents, which name the field and never the code."""

from __future__ import annotations

import logging
from http import HTTPStatus
from pathlib import PurePath
from typing import Any

from flask import Response, make_response, render_template, request
from pydantic import ValidationError
from werkzeug.exceptions import HTTPException

from kronos_qlib.errors import KronosError
from kronos_qlib.markup import one_line
from kronos_qlib.webui.schemas import FieldProblem, Problem, faults_of

logger = logging.getLogger(__name__)

MIMETYPE = "application/problem+json"
LONGEST = 1000
"""Letters of a detail."""
AWAY = (
    "This is no fault of what was asked: the page needs these files, and whoever started it must "
    "bring them back"
)


class HttpProblemError(Exception):
    """A refusal with its HTTP status, raised by routes and checks of requests."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        field: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.field, self.headers = status, field, headers or {}


def problem_of(error: BaseException, private: dict[str, str]) -> tuple[Problem, dict[str, str]]:
    """The document for an error, and headers beside it.

    Args:
        private: texts that no client is to see, such as paths, and what stands for them.
    """
    # Here and not above: these import pandas, and the first page must not wait for it.
    name = type(error).__name__
    headers: dict[str, str] = {}
    field, errors = getattr(error, "field", None), None
    if isinstance(error, HttpProblemError):
        status, headers, detail = error.status, error.headers, str(error)
    elif isinstance(error, ValidationError):
        status, errors = 422, faults_of(error)
        field = errors[0].field or None
        detail = "; ".join(f"{one.field}: {one.message}" for one in errors[:3])
        if len(errors) > 3:
            detail += f"; and {len(errors) - 3} more"
    elif isinstance(error, HTTPException):
        status, detail = error.code or 500, error.description or ""
        detail = "there is no such page" if status == 404 else detail
        allow = error.get_headers() if status == 405 else []
        headers = {key: value for key, value in allow if key == "Allow"}
    elif name == "QueueFullError":
        status, detail = 429, str(error)
        headers = {"Retry-After": str(getattr(error, "retry_after", 1))}
    elif name == "UnknownForecastError":
        status, detail = 404, str(error)
    elif name == "CancelledError":
        status, detail = 409, str(error)
    elif name == "TooLongError":
        status, detail = 503, str(error)
        headers = {"Retry-After": "1"}
    elif isinstance(error, KronosError):
        status, detail = 422, str(error)
    elif isinstance(error, OSError) and isinstance(error.filename, str):
        logger.error("%s", name, exc_info=error)
        status, detail = 503, f"{_shown(error.filename, private)}: {error.strerror}. {AWAY}"
    else:
        logger.error("%s", name, exc_info=error)
        status, detail = 500, "this is a fault of the program; its log says more"
    for text, shown in private.items():
        detail = detail.replace(text, shown)
    detail = one_line(detail)[:LONGEST]
    if errors is None and field:
        errors = [FieldProblem(field=field, message=detail)]
    title = HTTPStatus(status).phrase
    return (
        Problem(title=title, status=status, detail=detail, field=field, errors=errors),
        headers,
    )


def _shown(path: str, private: dict[str, str]) -> str:
    """A file that the page needs, by its place in a folder that clients know, else by its name."""
    for text, shown in private.items():
        if shown and path.startswith(text):
            return shown + path[len(text) :]
    return PurePath(path).name


def respond(problem: Problem, headers: dict[str, str]) -> Response:
    """The document; as a page where a person followed a link."""
    if wants_page():
        try:
            page = render_template("error.html", **problem.model_dump(), page="")
            response = make_response(page, problem.status)
        except Exception:
            logger.exception("error.html")
            response = make_response(problem.detail, problem.status)
            response.mimetype = "text/plain"
    else:
        text = problem.model_dump_json(exclude_none=True)
        response = make_response(text, problem.status)
        response.mimetype = MIMETYPE
    response.headers.update(headers)
    return response


def wants_page() -> bool:
    """Whether a browser asks for something to show and not a script for data."""
    if request.method not in ("GET", "HEAD"):
        return False
    best: Any = request.accept_mimetypes.best_match(
        ["application/json", "text/html"], default="application/json"
    )
    return bool(best == "text/html")
