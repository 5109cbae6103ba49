"""Every error in every protocol's own shape."""

import doctest
from http import HTTPStatus
from typing import Any

import orjson
import pytest
from starlette.exceptions import HTTPException

from service import errors
from service.api import dialects
from service.api.dialects import (
    dialect_of,
    error_response,
    failure_response,
    internal_error_response,
    router_error_response,
    speak,
)
from service.errors import FieldProblem

PATHS = {
    "/v1/classify": "native",
    "/rank": "native",
    "/embed": "native",
    "/admin/load": "native",
    "/nothing": "native",
    "/v1/models": "models",
    "/v1/models/toy": "models",
    "/v1/embeddings": "openai",
    "/embeddings": "openai",
    "/v1/rerank": "cohere",
    "/v2/rerank": "cohere",
    "/rerank": "cohere",
    "/tei": "tei",
    "/tei/": "tei",
    "/tei/embed": "tei",
    "/tei/toy@canary/predict": "tei",
    "/tei/nothing": "tei",
    "/tei/embeddings": "tei-openai",
    "/tei/toy/v1/embeddings": "tei-openai",
    "/teig": "native",
    "/v2": "kserve",
    "/v2/health/ready": "kserve",
    "/v2/models/toy/infer": "kserve",
    "/v2/repository/index": "kserve",
    "/v2/nothing": "native",
}
FIELD = errors.InvalidInput("the request has wrong fields", errors=(FieldProblem("/input/1", "must be a text"),))
TOLD = "the request has wrong fields: /input/1: must be a text"
SHED = errors.Overloaded("too much waits", retry_after_s=0.25)


def _answer(path: str, error: errors.ServiceError) -> tuple[int, Any, Any]:
    response = error_response({"type": "http", "path": path}, error)
    return response.status_code, orjson.loads(response.body), response.headers


@pytest.mark.parametrize(("path", "dialect"), PATHS.items())
def test_a_path_tells_its_dialect(path: str, dialect: str) -> None:
    assert dialect_of({"path": path}) == dialect


def test_a_route_may_speak_another() -> None:
    scope = {"path": "/rerank"}
    speak(scope, "tei")
    assert dialect_of(scope) == "tei"


def test_the_docstrings_examples() -> None:
    assert doctest.testmod(dialects).failed == 0


def test_native_is_problem_details() -> None:
    status, document, headers = _answer("/v1/classify", FIELD)
    assert (status, document["status"], document["code"]) == (422, 422, "invalid_input")
    assert document["errors"] == [{"pointer": "/input/1", "detail": "must be a text"}]
    assert headers["content-type"] == "application/problem+json"


def test_models_is_both() -> None:
    status, document, headers = _answer("/v1/models/x", errors.UnknownModel("no student is named 'x'"))
    assert (status, document["detail"], document["code"]) == (404, "no student is named 'x'", "unknown_model")
    assert document["error"]["message"] == "no student is named 'x'"
    assert headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (FIELD, 400, "invalid_request_error", "invalid_input"),
        (errors.Malformed("no JSON"), 400, "invalid_request_error", "malformed"),
        (errors.UnknownModel("none"), 404, "invalid_request_error", "model_not_found"),
        (errors.TooLarge("much"), 413, "invalid_request_error", "too_large"),
        (errors.Unauthorized("no key"), 401, "authentication_error", "invalid_api_key"),
        (errors.Forbidden("not you"), 403, "permission_error", "forbidden"),
        (SHED, 429, "rate_limit_error", "rate_limit_exceeded"),
        (errors.QuotaExceeded("used up", retry_after_s=9), 429, "rate_limit_error", "quota_exceeded"),
        (errors.NotReady("loading"), 503, "server_error", "not_ready"),
        (errors.DeadlineExceeded("late"), 504, "server_error", "deadline_exceeded"),
        (errors.RunFailed("broke"), 500, "server_error", "run_failed"),
    ],
)
def test_openai(error: errors.ServiceError, status: int, kind: str, code: str) -> None:
    found, document, headers = _answer("/v1/embeddings", error)
    assert (found, set(document)) == (status, {"error"})
    assert set(document["error"]) == {"message", "type", "param", "code"}
    assert (document["error"]["type"], document["error"]["code"]) == (kind, code)
    assert headers.get("x-should-retry") == ("false" if isinstance(error, errors.CallerError) else None)


def test_openai_names_the_field() -> None:
    assert _answer("/v1/embeddings", FIELD)[1]["error"] | {"type": ""} == {
        "message": TOLD,
        "type": "",
        "param": "input.1",
        "code": "invalid_input",
    }


def test_a_body_that_came_too_late_may_be_sent_again() -> None:
    assert "x-should-retry" not in _answer("/v1/embeddings", errors.BodyTimeout("late"))[2]


@pytest.mark.parametrize(("error", "status"), [(FIELD, 400), (errors.UnknownModel("x"), 404), (SHED, 429)])
def test_cohere(error: errors.ServiceError, status: int) -> None:
    found, document, _ = _answer("/v2/rerank", error)
    assert (found, document["code"]) == (status, error.code)
    assert document["message"] == document["detail"] == (TOLD if error is FIELD else error.detail)


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (FIELD, 422, "Validation"),
        (errors.Malformed("no JSON"), 422, "Validation"),
        (errors.TooLarge("much"), 413, "Validation"),
        (errors.UnknownModel("x"), 404, "Validation"),
        (SHED, 429, "Overloaded"),
        (errors.DeadlineExceeded("late"), 504, "Overloaded"),
        (errors.NotReady("loading"), 503, "Unhealthy"),
        (errors.Draining("stopping"), 503, "Unhealthy"),
        (errors.RunFailed("broke"), 424, "Backend"),
        (errors.ServiceError("?"), 500, "Backend"),
    ],
)
def test_tei(error: errors.ServiceError, status: int, kind: str) -> None:
    message = TOLD if error is FIELD else error.detail
    assert _answer("/tei/embed", error)[:2] == (status, {"error": message, "error_type": kind})
    assert _answer("/tei/embeddings", error)[:2] == (status, {"message": message, "code": status, "type": kind})


@pytest.mark.parametrize(("error", "status"), [(FIELD, 400), (errors.UnknownModel("x"), 404), (SHED, 429)])
def test_kserve(error: errors.ServiceError, status: int) -> None:
    message = TOLD if error is FIELD else error.detail
    assert _answer("/v2/models/x/infer", error)[:2] == (status, {"error": message})


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/embeddings", "/rerank", "/tei/embed", "/v2/models/x/infer"])
def test_shed_requests_are_told_when_to_return(path: str) -> None:
    headers = _answer(path, SHED)[2]
    assert (headers["retry-after"], headers["retry-after-ms"]) == ("1", "250")
    headers = _answer(path, errors.NotReady("loading"))[2]
    assert (headers["retry-after"], headers["retry-after-ms"]) == ("1", "1000")
    assert "retry-after" not in _answer(path, errors.DeadlineExceeded("late"))[2]


def test_a_missing_key_is_asked_for() -> None:
    assert _answer("/v2", errors.Unauthorized("no key"))[2]["www-authenticate"] == "Bearer"


def test_what_the_router_refuses() -> None:
    refusal = HTTPException(HTTPStatus.METHOD_NOT_ALLOWED, headers={"allow": "POST"})
    response = router_error_response({"type": "http", "path": "/v1/classify"}, refusal)
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert orjson.loads(response.body)["code"] == "method_not_allowed"
    response = router_error_response({"type": "http", "path": "/v2/models/x/y"}, HTTPException(404))
    assert orjson.loads(response.body) == {"error": "Nothing matches the given URI"}


def test_what_has_no_name_says_nothing() -> None:
    response = internal_error_response({"type": "http", "path": "/tei/embed"})
    assert (response.status_code, orjson.loads(response.body)["error_type"]) == (500, "Backend")


def test_any_failure_is_answered_by_its_name_or_without_its_words() -> None:
    scope = {"type": "http", "path": "/v1/classify"}
    for error, same in (
        (errors.UnknownModel("none"), error_response(scope, errors.UnknownModel("none"))),
        (ZeroDivisionError("secret"), internal_error_response(scope)),
    ):
        response = failure_response(scope, error)
        assert (response.status_code, response.body) == (same.status_code, same.body)
