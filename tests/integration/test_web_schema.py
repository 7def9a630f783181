"""The API against its own OpenAPI document, by schemathesis: no 500, no undocumented answer."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from kronos_qlib.webui.app import make_app
from kronos_qlib.webui.service import Places, Service

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


ROUTES = [
    ("/predict", "post"),
    ("/jobs", "get"),
    ("/jobs/{job}", "get"),
    ("/jobs/{job}", "delete"),
    ("/models", "get"),
    ("/models/load", "post"),
    ("/instruments", "get"),
    ("/forecasts", "get"),
    ("/forecasts/calibration", "get"),
    ("/forecasts/{id}", "get"),
    ("/forecasts/{id}", "delete"),
    ("/forecasts/{id}/reconcile", "post"),
    ("/forecasts/{id}/track-record", "post"),
    ("/universe", "get"),
    ("/universe/{instrument}/why", "get"),
    ("/runs", "get"),
    ("/runs/compare", "get"),
    ("/health", "get"),
]


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    folder = tmp_path_factory.mktemp("web")
    service = Service(Places(store=folder / "kept", tracking_uri=f"sqlite:///{folder / 'no.db'}"))
    service.models.get("nano")
    yield make_app(service)
    service.close()


@pytest.fixture(scope="module")
def schema(app):
    return schemathesis.openapi.from_wsgi("/openapi/openapi.json", app)


NOTHING_TO_GET_WRONG = ("/jobs", "/models", "/forecasts/calibration", "/runs", "/health")
"""Routes without a parameter: there is no request that the document forbids."""
ASKED = [
    (*route, mode)
    for route in ROUTES
    for mode in GenerationMode
    if mode is GenerationMode.POSITIVE or route[0] not in NOTHING_TO_GET_WRONG
]


# Not by schemathesis' own pytest plugin: its subtests lag behind pytest.
@pytest.mark.parametrize(("path", "method", "mode"), ASKED)
def test_every_answer_is_documented_and_none_is_a_fault(schema, path, method, mode):
    """What the document allows, and what it does not."""

    @given(case=schema[path][method].as_strategy(generation_mode=mode))
    @settings(max_examples=15, suppress_health_check=list(HealthCheck), deadline=None)
    def ask(case):
        case.call_and_validate(checks=CHECKS)

    ask()


def test_the_document_is_openapi_3_1_and_names_every_route(app):
    document = app.test_client().get("/openapi/openapi.json").json
    assert document["openapi"].startswith("3.1")
    routes = {(path, method) for path, each in document["paths"].items() for method in each}
    assert set(ROUTES) == routes
    body = document["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert set(body) == {"application/json", "multipart/form-data"}
    for path, each in document["paths"].items():
        for method, operation in each.items():
            assert operation["summary"], (path, method)
            assert set(operation["responses"]) >= {"400", "401", "403", "422", "500"}


def test_methods_that_are_not_there_say_which_are(app):
    for path, allowed in (("/predict", "POST"), ("/health", "GET"), ("/models/load", "POST")):
        answer = app.test_client().put(path)
        assert answer.status_code == 405
        assert allowed in answer.headers["Allow"]
