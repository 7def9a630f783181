"""What the server itself refuses, before the application sees it, as problem documents too."""

from __future__ import annotations

from http import HTTPStatus

from waitress.channel import HTTPChannel
from waitress.task import ErrorTask

from kronos_qlib.markup import one_line
from kronos_qlib.webui.problems import LONGEST, MIMETYPE
from kronos_qlib.webui.schemas import Problem
from kronos_qlib.webui.security import HEADERS


class ProblemTask(ErrorTask):  # type: ignore[misc]  # waitress has no types
    """Answers a request that is no HTTP, or larger than any may be, and closes the connection."""

    def execute(self) -> None:
        """Send the answer."""
        error = self.request.error
        status = HTTPStatus(error.code)
        # What failed inside is for the log alone.
        detail = str(error.body) if status < 500 else "this is a fault of the program"
        problem = Problem(
            title=status.phrase,
            status=status,
            detail=one_line(detail)[:LONGEST] or status.phrase,
            field=None,
            errors=None,
        )
        body = problem.model_dump_json(exclude_none=True).encode()
        self.status = f"{status.value} {status.phrase}"
        self.response_headers += [("Content-Type", MIMETYPE), *HEADERS.items()]
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class ProblemChannel(HTTPChannel):  # type: ignore[misc]  # waitress has no types
    """A connection whose errors are problem documents."""

    error_task_class = ProblemTask
