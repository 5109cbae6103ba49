"""Errors as answers: one mapping from any exception to RFC 9457 problem details."""

import math
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.responses import Response

from service.errors import FieldProblem, InvalidInput, Overloaded, ServiceError, Unavailable

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1.0
MAX_PROBLEMS = 16


def problem(error: ServiceError) -> dict[str, Any]:
    """The problem document of an error."""
    document: dict[str, Any] = {
        "type": f"urn:understudy:error:{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "code": error.code,
    }
    if error.errors:
        document["errors"] = [{"pointer": field.pointer, "detail": field.detail} for field in error.errors]
    return document


def problem_response(error: ServiceError) -> Response:
    """The answer to a request that failed with `error`."""
    headers: dict[str, str] = {}
    if isinstance(error, Unavailable) and error.status in (429, 503):
        wait_s = error.retry_after_s if isinstance(error, Overloaded) else RETRY_AFTER_S
        headers["retry-after"] = str(max(1, math.ceil(wait_s)))
    return Response(orjson.dumps(problem(error)), status_code=error.status, media_type=MEDIA_TYPE, headers=headers)


def router_response(error: HTTPException) -> Response:
    """The answer to what the router refuses: an unknown path (404), a wrong method (405)."""
    status = HTTPStatus(error.status_code)
    document = {
        "type": f"urn:understudy:error:{status.name.lower()}",
        "title": status.phrase,
        "status": status.value,
        "detail": status.description or status.phrase,
        "code": status.name.lower(),
    }
    return Response(
        orjson.dumps(document), status_code=status.value, media_type=MEDIA_TYPE, headers=dict(error.headers or {})
    )


def told(problems: Sequence[FieldProblem]) -> tuple[FieldProblem, ...]:
    """The first `MAX_PROBLEMS` of them, then how many more there are."""
    more = len(problems) - MAX_PROBLEMS
    return tuple(problems) if more <= 0 else (*problems[:MAX_PROBLEMS], FieldProblem("", f"and {more} more"))


def wrong_field(pointer: str, detail: str) -> InvalidInput:
    """A 422 about one field."""
    return InvalidInput(detail, errors=(FieldProblem(pointer, detail),))
