"""Routes: requests to the service's calls, its answers to JSON and pages."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

from flask import Response, render_template, request
from flask_openapi3.models.info import Info
from flask_openapi3.openapi import OpenAPI
from pydantic import BaseModel, ValidationError
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from kronos_qlib.version import __version__
from kronos_qlib.webui import schemas
from kronos_qlib.webui.problems import (
    MIMETYPE,
    HttpProblemError,
    problem_of,
    respond,
    wants_page,
)
from kronos_qlib.webui.schemas import (
    Compared,
    CompareQuery,
    Forecast,
    ForecastPath,
    Health,
    InstrumentQuery,
    Instruments,
    Job,
    JobPath,
    Jobs,
    Kept,
    KeptCalibration,
    KeptQuery,
    LoadRequest,
    Models,
    PredictRequest,
    Problem,
    ReconcileRequest,
    Runs,
    TrackRecordRequest,
    Universe,
    UniverseQuery,
    UploadSettings,
    Why,
    WhyPath,
    WhyQuery,
)
from kronos_qlib.webui.security import Guard
from kronos_qlib.webui.service import Service
from kronos_qlib.webui.static_files import StaticFiles
from kronos_qlib.webui.work.job_queue import QueuedJob
from kronos_qlib.webui.work.upload_process import MOST_BYTES

Asked = TypeVar("Asked", bound=BaseModel)

MOST_JSON = 8 * 2**20
"""Bytes of a JSON body."""
MOST_BODY = MOST_BYTES + 2**20
"""Bytes of any body: a file and its form."""
PATIENT = 16
"""Requests that may wait for their result; others get their job at once."""
QUICK = 5.0
"""Seconds that an answer about runs is waited for before it is a job."""


def make_app(service: Service, guard: Guard | None = None) -> OpenAPI:
    """The application, for waitress or a test's client.

    Args:
        guard: None lets in what comes from this machine, without a token.
    """
    guard = guard or Guard()
    static = StaticFiles()
    here = Path(__file__).parent
    app = OpenAPI(
        "kronos_qlib.webui",
        info=Info(
            title="Kronos forecasts",
            version=__version__,
            description="Errors are RFC 9457 problem documents. Requests of a browser that change "
            "something carry X-CSRF-Token, which the page has.",
        ),
        security_schemes={
            "token": {
                "type": "http",
                "scheme": "bearer",
                "description": "where the program was started with --token",
            }
        },
        doc_ui=False,
        static_folder=None,
        template_folder=str(here / "templates"),
        validation_error_model=Problem,
        validation_error_callback=_refuse,
    )
    app.config.update(MAX_CONTENT_LENGTH=MOST_BODY, MAX_FORM_MEMORY_SIZE=2**18, MAX_FORM_PARTS=40)
    app.jinja_env.globals.update(
        static=static.address, plotly=static.plotly_address, csrf=guard.csrf, version=__version__
    )
    _Routes(app, service, static).add()
    private = private_texts(service)
    app.before_request(guard.check)
    app.after_request(guard.dress)

    def failed(error: Exception) -> Response:
        if isinstance(error, HTTPException) and error.code is not None and error.code < 400:
            return error.get_response()  # type: ignore[return-value]  # a redirect
        return respond(*problem_of(error, private))

    app.register_error_handler(Exception, failed)
    return app


def private_texts(service: Service) -> dict[str, str]:
    """Paths of the owner's, and what clients see in their place."""
    places = service.places
    found: dict[str, str] = {}
    for path in (places.data, places.checkpoints, places.store):
        if path is not None and path.name:
            found |= {str(path.absolute()): path.name, str(path.resolve()): path.name}
            if len(path.parts) > 1:
                found[str(path)] = path.name
    scheme, is_file, database = places.tracking_uri.partition(":///")
    if is_file and scheme.startswith("sqlite"):
        path = Path(database)
        found |= {str(path.absolute()): path.name, str(path.resolve()): path.name}
    found |= {places.tracking_uri: "the MLflow store"}
    found |= {str(Path.home()) + os.sep: "~/", str(Path.cwd()) + os.sep: ""}
    return dict(sorted(found.items(), key=lambda one: -len(one[0])))


def _refuse(error: ValidationError) -> Response:
    return respond(*problem_of(error, {}))


def documented(*statuses: int, **answers: Any) -> dict[str | int | HTTPStatus, Any]:
    """Responses of a route for its documentation.

    Args:
        statuses: of problems, beside those that every route has.
        answers: by "ok" (200) and "accepted" (202) their models, "none" (204).
    """
    found: dict[str | int | HTTPStatus, Any] = {}
    if "ok" in answers:
        found["200"] = answers["ok"]
    if "accepted" in answers:
        found["202"] = answers["accepted"]
    if "none" in answers:
        found["204"] = {"description": "done; nothing to say"}
    for status in sorted({400, 401, 403, 422, 500, 503, *statuses}):
        found[str(status)] = {
            "description": "a problem document",
            "content": {MIMETYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
    return found


PAGE = {"text/html": {"schema": {"type": "string"}}}


class _Routes:
    """Every route, over one service."""

    def __init__(self, app: OpenAPI, service: Service, static: StaticFiles) -> None:
        self.app, self.service, self.static = app, service, static
        self.patience = threading.BoundedSemaphore(PATIENT)

    def add(self) -> None:
        """Register all of them."""
        self._pages()
        self._forecasting()
        self._keeping()
        self._looking()

    def body(
        self, model: type[BaseModel], *, or_file: type[BaseModel] | None = None
    ) -> dict[str, Any]:
        """The documentation of a request's body, which the route reads itself."""
        from flask_openapi3.models.schema import Schema
        from flask_openapi3.utils import get_model_schema

        content = {}
        kinds = {"application/json": model, "multipart/form-data": or_file}
        for kind, one in kinds.items():
            if one is None:
                continue
            schema = get_model_schema(one)
            for name, part in schema.pop("$defs", {}).items():
                self.app.components_schemas[name] = Schema(**part)
            if kind == "multipart/form-data":
                file = {"type": "string", "format": "binary", "description": "CSV, Parquet, ..."}
                schema["properties"] = {"file": file, **schema.get("properties", {})}
                schema["required"] = ["file", *schema.get("required", [])]
            self.app.components_schemas[one.__name__] = Schema(**schema)
            content[kind] = {"schema": {"$ref": f"#/components/schemas/{one.__name__}"}}
        return {"requestBody": {"required": True, "content": content}}

    def _pages(self) -> None:
        app = self.app

        def page(rule: str, template: str) -> None:
            def show(**parts: str) -> str:
                return render_template(template, **parts)

            app.add_url_rule(rule, template, show, methods=["GET"])

        page("/", "forecast.html")
        page("/kept", "kept.html")
        page("/kept/<forecast_id>", "kept_forecast.html")

        @app.route("/static/<folder>/<path:name>", methods=["GET"])
        def static_file(folder: str, name: str) -> Response:
            return self.static.respond(folder, name)

        @app.route("/openapi/openapi.json", methods=["GET"])
        def openapi_document() -> dict[str, Any]:
            return app.api_doc

    def _forecasting(self) -> None:
        app, service = self.app, self.service

        @app.post(
            "/predict",
            summary="Forecast bars, a file of bars, or an instrument of the Qlib folder",
            responses=documented(409, 413, 415, 429, 503, ok=Forecast, accepted=Job),
            openapi_extensions=self.body(PredictRequest, or_file=UploadSettings),
        )
        def predict() -> Response:
            if request.mimetype == "multipart/form-data":
                asked, name, data = uploaded(UploadSettings)
                job = service.predict_file(name, data, asked)
                return self._wait_for(job, asked.wait, self._forecast_of)
            wanted = sent(PredictRequest)
            return self._wait_for(service.predict(wanted), wanted.wait, self._forecast_of)

        @app.get("/jobs", summary="What is computed or waits", responses=documented(ok=Jobs))
        def jobs() -> Response:
            return answer(Jobs(jobs=[self._job(one) for one in service.pending()]))

        @app.get(
            "/jobs/<job>",
            summary="How far a job is",
            responses=documented(404, ok=Job),
        )
        def job(path: JobPath) -> Response:
            return answer(self._job(self._found(service.job(path.job))))

        @app.delete(
            "/jobs/<job>",
            summary="Cancel a job; one that has ended stays as it is",
            responses=documented(404, ok=Job),
        )
        def cancel(path: JobPath) -> Response:
            return answer(self._job(self._found(service.cancel(path.job))))

        @app.get(
            "/models", summary="Checkpoints that may be asked for", responses=documented(ok=Models)
        )
        def models() -> Response:
            return answer(service.known_models())

        @app.post(
            "/models/load",
            summary="Load a checkpoint",
            responses=documented(413, 415, 429, accepted=Job),
            openapi_extensions=self.body(LoadRequest),
        )
        def load() -> Response:
            return answer(self._job(service.load(sent(LoadRequest).checkpoint)), 202)

        @app.get(
            "/instruments",
            summary="Instruments of the Qlib folder",
            responses=documented(ok=Instruments),
        )
        def instruments(query: InstrumentQuery) -> Response:
            return answer(service.instruments(query.q))

    def _keeping(self) -> None:
        app, service = self.app, self.service

        @app.get("/forecasts", summary="Kept forecasts", responses=documented(ok=Kept))
        def forecasts(query: KeptQuery) -> Response:
            return answer(service.kept(query.q, query.offset, query.limit))

        @app.get(
            "/forecasts/calibration",
            summary="How all kept forecasts have done",
            responses=documented(ok=KeptCalibration),
        )
        def calibration() -> Response:
            return answer(service.calibration())

        @app.get("/forecasts/<id>", summary="A forecast", responses=documented(404, ok=Forecast))
        def forecast(path: ForecastPath) -> Response:
            return answer(service.forecast(path.id))

        @app.delete(
            "/forecasts/<id>", summary="Forget a forecast", responses=documented(404, none=True)
        )
        def delete(path: ForecastPath) -> Response:
            service.delete(path.id)
            return Response(status=204)

        @app.post(
            "/forecasts/<id>/reconcile",
            summary="Add what came since",
            responses=documented(404, 413, 415, 429, ok=Forecast),
            openapi_extensions=self.body(ReconcileRequest, or_file=schemas.ReconcileUpload),
        )
        def reconcile(path: ForecastPath) -> Response:
            before = service.forecast(path.id)
            if request.mimetype == "multipart/form-data":
                asked, name, data = uploaded(schemas.ReconcileUpload)
                settings = UploadSettings(**asked.model_dump())
                return answer(service.reconcile(path.id, service.read_file(name, data, settings)))
            bars = sent(ReconcileRequest).bars
            table = None if bars is None else service.bars_of(bars, before.instrument)
            return answer(service.reconcile(path.id, table))

        @app.post(
            "/forecasts/<id>/track-record",
            summary="Score the last windows before a forecast",
            responses=documented(404, 413, 415, 429, accepted=Job),
            openapi_extensions=self.body(TrackRecordRequest),
        )
        def track_record(path: ForecastPath) -> Response:
            windows = sent(TrackRecordRequest).windows
            return answer(self._job(service.track_record(path.id, windows)), 202)

    def _looking(self) -> None:
        app, service = self.app, self.service

        @app.get(
            "/universe",
            summary="The newest day that a run ranks; a page for browsers",
            responses=documented(429, 503, ok=Universe, accepted=Job),
        )
        def universe(query: UniverseQuery) -> Response | str:
            if wants_page():
                return render_template("universe.html")
            found = service.universe(query.run, query.fresh)
            return self._now_or_job(found, 0 if query.fresh else QUICK)

        @app.get(
            "/universe/<instrument>/why",
            summary="What each input added to a name's score",
            responses=documented(404, 429, 503, ok=Why, accepted=Job),
        )
        def why(path: WhyPath, query: WhyQuery) -> Response:
            found = service.why(path.instrument, query.run, query.fresh)
            return self._now_or_job(found, QUICK)

        @app.get(
            "/runs",
            summary="Finished runs of the MLflow store; a page for browsers",
            responses=documented(ok=Runs),
        )
        def runs() -> Response | str:
            if wants_page():
                return render_template("runs.html")
            found = service.runs()
            for text, shown in private_texts(service).items():
                found.reason = found.reason and found.reason.replace(text, shown)
            return answer(found)

        @app.get(
            "/runs/compare",
            summary="Runs side by side",
            responses=documented(429, 503, ok=Compared, accepted=Job),
        )
        def compare(query: CompareQuery) -> Response:
            return self._now_or_job(service.compare(query.runs), QUICK)

        @app.get("/health", summary="Whether it works", responses=documented(ok=Health))
        def health() -> Response:
            return answer(service.health())

    def _found(self, job: QueuedJob | None) -> QueuedJob:
        if job is None:
            raise HttpProblemError(
                404, "there is no such job; it ended long ago, or the program was started anew"
            )
        return job

    def _forecast_of(self, job: QueuedJob) -> BaseModel:
        return self.service.forecast(job.result)

    def _now_or_job(self, found: BaseModel | QueuedJob, seconds: float) -> Response:
        if isinstance(found, QueuedJob):
            return self._wait_for(found, seconds, lambda job: job.result)
        return answer(found)

    def _wait_for(
        self, job: QueuedJob, seconds: float, result: Callable[[QueuedJob], BaseModel]
    ) -> Response:
        """The result if it is there in time; else the job."""
        if seconds > 0 and self.patience.acquire(blocking=False):
            try:
                job.done.wait(seconds)
            finally:
                self.patience.release()
        if job.state == "done" and seconds > 0:
            return answer(result(job))
        if job.state == "failed" and job.error is not None and seconds > 0:
            raise job.error
        if job.state == "cancelled" and seconds > 0:
            raise HttpProblemError(409, f"{job.label} was cancelled")
        return answer(self._job(job), 202)

    def _job(self, job: QueuedJob) -> Job:
        # Read once: it may end meanwhile, and "done" without a result would be no answer.
        state = job.state
        is_done = state == "done"
        forecast = job.result if job.kind in ("forecast", "track_record") and is_done else None
        private = private_texts(self.service)
        return Job(
            job=job.id,
            kind=job.kind,
            label=job.label,
            about=dict(job.about),
            state=state,
            progress=job.progress,
            eta=job.eta,
            position=self.service.position(job),
            status_url=f"/jobs/{job.id}",
            result_url=_result_url(job) if is_done else None,
            result=forecast,
            error=None if job.error is None else problem_of(job.error, private)[0],
        )


def _result_url(job: QueuedJob) -> str:
    if job.kind in ("forecast", "track_record"):
        return f"/forecasts/{job.result}"
    about = dict(job.about)
    name = str(about.pop("instrument", ""))
    query = f"?{urlencode(about, doseq=True, quote_via=quote)}" if about else ""
    if job.kind == "why":
        return f"/universe/{quote(name, safe='')}/why{query}"
    return {"universe": f"/universe{query}", "compare": f"/runs/compare{query}"}.get(
        job.kind, "/models"
    )


def answer(model: BaseModel, status: int = 200) -> Response:
    """A model as JSON."""
    return Response(model.model_dump_json(), status, mimetype="application/json")


def sent(model: type[Asked]) -> Asked:
    """The JSON body of the request at hand.

    Raises:
        HttpProblemError: it is of another type, too large, or no JSON.
        ValidationError: a field cannot be.
    """
    if request.mimetype != "application/json":
        raise HttpProblemError(
            415, f"expected Content-Type application/json, got {request.mimetype or 'none'!r}"
        )
    if (request.content_length or 0) > MOST_JSON:
        raise HttpProblemError(413, f"a JSON body has {MOST_JSON:,} bytes at most: upload a file")
    data = request.get_data()
    try:
        return model.model_validate_json(data, strict=True)
    except ValidationError as problem:
        if any(one["type"] == "json_invalid" for one in problem.errors()):
            raise HttpProblemError(
                400, f"the body is no JSON: {problem.errors()[0]['msg']}"
            ) from None
        raise


def uploaded(model: type[Asked]) -> tuple[Asked, str, bytes]:
    """The settings, the file's name and its contents, of the form at hand.

    Raises:
        HttpProblemError: there is no file, or it is too large.
        ValidationError: a field cannot be.
    """
    files = request.files.getlist("file")
    if len(files) != 1 or set(request.files) != {"file"} or not files[0].filename:
        raise HttpProblemError(422, "one file is expected, in the field file", field="file")
    fields = request.form.to_dict(flat=False)
    twice = [name for name, values in fields.items() if len(values) > 1]
    if twice:
        raise HttpProblemError(422, f"{twice[0]} is given twice", field=twice[0])
    given = {name: values[0] for name, values in fields.items() if values[0] != ""}
    settings = model.model_validate(given)
    data = files[0].stream.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise RequestEntityTooLarge(f"a file has {MOST_BYTES:,} bytes at most")
    return settings, files[0].filename, data
