"""Whose error shape an answer takes: one mapping from any error and the path that was asked to a response.

| dialect | paths | shape |
|---|---|---|
| native | everything else | RFC 9457 problem details |
| models | `/v1/models` | the same, with OpenAI's `error` object as an extension member |
| openai | `/v1/embeddings`, `/embeddings` | `{"error": {"message", "type", "param", "code"}}` |
| cohere | `/v2/rerank`, `/v1/rerank`, `/rerank` | `{"message", "detail", "code"}` |
| tei | `/tei`, `/tei/...`; at the root where `root_dialect` is `tei` | `{"error", "error_type"}` |
| tei-openai | `/tei/embeddings`, `/tei/v1/embeddings` | `{"message", "code", "type"}` |
| kserve | `/v2`, `/v2/health`, `/v2/models`, `/v2/repository` | `{"error"}` |
"""

import math
import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, Literal

import orjson
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from service.api.problems import MEDIA_TYPE, RETRY_AFTER_S, problem
from service.errors import (
    CallerError,
    Draining,
    Forbidden,
    InvalidInput,
    Malformed,
    NotReady,
    Overloaded,
    RunFailed,
    ServiceError,
    Unauthorized,
    Unavailable,
    UnknownModel,
)

Dialect = Literal["native", "models", "openai", "cohere", "tei", "tei-openai", "kserve"]
SCOPE_KEY = "understudy.dialect"
# of an app's state: the paths without a prefix that are text-embeddings-inference's
ROOT_TEI = "root_tei"
_PATHS: tuple[tuple[Dialect, re.Pattern[str]], ...] = (
    ("tei-openai", re.compile(r"/tei(/[^/]+)?(/v1)?/embeddings")),
    ("tei", re.compile(r"/tei(/.*)?")),
    ("openai", re.compile(r"(/v1)?/embeddings")),
    ("models", re.compile(r"/v1/models(/.*)?")),
    ("cohere", re.compile(r"(/v1|/v2)?/rerank")),
    ("kserve", re.compile(r"/v2(/((health|models|repository)(/.*)?)?)?")),
)


def speak(scope: Scope, dialect: Dialect) -> None:
    """From here on, errors of this request take another shape than its path says."""
    scope[SCOPE_KEY] = dialect


def dialect_of(scope: Scope) -> Dialect:
    """Whose error shape a request is answered in."""
    spoken: Dialect | None = scope.get(SCOPE_KEY)
    if spoken is not None:
        return spoken
    path = scope["path"]
    # subtle: at the root a path alone does not tell whose it is
    if "app" in scope and path in getattr(scope["app"].state, ROOT_TEI, ()):
        return "tei"
    return next((dialect for dialect, pattern in _PATHS if pattern.fullmatch(path)), "native")


def error_response(scope: Scope, error: ServiceError) -> Response:
    """The answer to a request that failed, in the shape of the protocol that it was made in."""
    dialect = dialect_of(scope)
    status = _status(dialect, error)
    headers = _headers(dialect, error)
    media_type = MEDIA_TYPE if dialect in ("native", "models") else "application/json"
    document = _DOCUMENTS[dialect](error, status)
    return Response(orjson.dumps(document), status_code=status, media_type=media_type, headers=headers)


def internal_error_response(scope: Scope) -> Response:
    """The answer when something broke that has no name; says nothing of what it was."""
    return error_response(scope, ServiceError("The service failed on this request; its log says why."))


def failure_response(scope: Scope, error: BaseException) -> Response:
    """The answer to a request that ended in any error, named or not."""
    return error_response(scope, error) if isinstance(error, ServiceError) else internal_error_response(scope)


def router_error_response(scope: Scope, error: HTTPException) -> Response:
    """The answer to what the router refuses: an unknown path (404), a wrong method (405)."""
    response = error_response(scope, _Refused(HTTPStatus(error.status_code)))
    response.headers.update(error.headers or {})
    return response


class _Refused(CallerError):
    """What the router refuses; its code is the status's own name."""

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status.description or status.phrase)
        self.status, self.code, self.title = status.value, status.name.lower(), status.phrase


def _headers(dialect: Dialect, error: ServiceError) -> dict[str, str]:
    headers: dict[str, str] = {}
    if isinstance(error, Unavailable) and error.status in (429, 503):
        wait_s = error.retry_after_s if isinstance(error, Overloaded) else RETRY_AFTER_S
        headers["retry-after"] = str(max(1, math.ceil(wait_s)))
        headers["retry-after-ms"] = str(max(1, math.ceil(wait_s * 1e3)))
    if isinstance(error, Unauthorized):
        headers["www-authenticate"] = "Bearer"
    if (
        dialect in ("openai", "tei-openai")
        and isinstance(error, CallerError)
        and error.status != HTTPStatus.REQUEST_TIMEOUT
    ):
        headers["x-should-retry"] = "false"
    return headers


# where a protocol's own status for a kind of error is not ours; the first class that fits counts
_STATUSES: Mapping[Dialect, tuple[tuple[type[ServiceError], int], ...]] = MappingProxyType(
    {
        "openai": ((InvalidInput, 400),),
        "cohere": ((InvalidInput, 400),),
        "kserve": ((InvalidInput, 400),),
        "tei": ((Malformed, 422), (RunFailed, 424)),
        "tei-openai": ((Malformed, 422), (RunFailed, 424)),
    }
)


def _status(dialect: Dialect, error: ServiceError) -> int:
    own = (status for kind, status in _STATUSES.get(dialect, ()) if isinstance(error, kind))
    return next(own, error.status)


def message_of(error: ServiceError) -> str:
    """What is wrong in one line, with the fields that are, for protocols that have one string for it.

    >>> from service.errors import FieldProblem
    >>> message_of(InvalidInput("a field is wrong", errors=(FieldProblem("/input/1", "must be a text"),)))
    'a field is wrong: /input/1: must be a text'
    """
    fields = "; ".join(f"{field.pointer}: {field.detail}" for field in error.errors if field.detail != error.detail)
    if fields:
        return f"{error.detail}: {fields}"
    return f"{error.errors[0].pointer}: {error.detail}" if error.errors else error.detail


def _native(error: ServiceError, _: int) -> dict[str, Any]:
    return problem(error)


def _models(error: ServiceError, status: int) -> dict[str, Any]:
    return problem(error) | _openai(error, status)


def _openai(error: ServiceError, status: int) -> dict[str, Any]:
    param = error.errors[0].pointer.removeprefix("/").replace("/", ".") if error.errors else None
    return {
        "error": {
            "message": message_of(error),
            "type": _openai_type(error, status),
            "param": param or None,
            "code": _OPENAI_CODES.get(type(error), error.code),
        }
    }


_OPENAI_CODES: Mapping[type[ServiceError], str] = MappingProxyType(
    {UnknownModel: "model_not_found", Unauthorized: "invalid_api_key", Overloaded: "rate_limit_exceeded"}
)


def _openai_type(error: ServiceError, status: int) -> str:
    if isinstance(error, Unauthorized):
        return "authentication_error"
    if isinstance(error, Forbidden):
        return "permission_error"
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"


def _cohere(error: ServiceError, _: int) -> dict[str, Any]:
    # subtle: cohere's clients read `message`, those of Jina's dialect `detail`
    message = message_of(error)
    return {"message": message, "detail": message, "code": error.code}


_TEI_TYPES: tuple[tuple[type[ServiceError], str], ...] = (
    (Overloaded, "Overloaded"),
    (NotReady, "Unhealthy"),
    (Draining, "Unhealthy"),
    (Unavailable, "Overloaded"),
    (CallerError, "Validation"),
)


def _tei_type(error: ServiceError) -> str:
    if error.status == HTTPStatus.FAILED_DEPENDENCY:
        return "Backend"
    return next((name for kind, name in _TEI_TYPES if isinstance(error, kind)), "Backend")


def _tei(error: ServiceError, _: int) -> dict[str, Any]:
    return {"error": message_of(error), "error_type": _tei_type(error)}


def _tei_openai(error: ServiceError, status: int) -> dict[str, Any]:
    return {"message": message_of(error), "code": status, "type": _tei_type(error)}


def _kserve(error: ServiceError, _: int) -> dict[str, Any]:
    return {"error": message_of(error)}


_DOCUMENTS: Mapping[Dialect, Callable[[ServiceError, int], dict[str, Any]]] = MappingProxyType(
    {
        "native": _native,
        "models": _models,
        "openai": _openai,
        "cohere": _cohere,
        "tei": _tei,
        "tei-openai": _tei_openai,
        "kserve": _kserve,
    }
)
