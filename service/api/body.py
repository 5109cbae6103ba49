"""A request's body: read within bounds, parsed, checked; every way to be wrong has its status and pointer."""

from collections.abc import Iterable
from typing import Any, TypeVar

import orjson
from pydantic import ValidationError
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from service.api.problems import told
from service.api.schemas import AnyBody
from service.errors import FieldProblem, InvalidInput, Malformed, TooLarge

MAX_POINTER_CHARACTERS = 256
# far above what any body has; checking a million unknown fields would hold the event loop for seconds
MAX_FIELDS = 1024

B = TypeVar("B", bound=AnyBody)


async def read_body(headers: Iterable[tuple[bytes, bytes]], receive: Receive, *, max_bytes: int) -> bytes:
    """The whole body.

    Args:
        headers: the request's, names in lower case.
        receive: the request's.
        max_bytes: the longest body that is read.
    Raises:
        TooLarge: its declared or its real length is above `max_bytes`; the rest is not read.
        Malformed: it is compressed.
        ClientDisconnect: the client left before it was complete.
    """
    _check_headers(headers, max_bytes=max_bytes)
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        body: bytes = message.get("body", b"")
        _check_length(len(body), max_bytes)
        return body
    parts, length = [], 0
    while message["type"] == "http.request":
        parts.append(message.get("body", b""))
        length += len(parts[-1])
        _check_length(length, max_bytes)
        if not message.get("more_body", False):
            return b"".join(parts)
        message = await receive()
    raise ClientDisconnect


def _check_headers(headers: Iterable[tuple[bytes, bytes]], *, max_bytes: int) -> None:
    for name, value in headers:
        if name == b"content-length" and value.isdigit():
            # subtle: int() of a very long digit string is itself an error
            _check_length(int(value) if len(value) < 20 else max_bytes + 1, max_bytes)
        if name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            raise Malformed("compressed bodies (content-encoding) are not taken")


def _check_length(length: int, max_bytes: int) -> None:
    if length > max_bytes:
        raise TooLarge(f"the body is larger than {max_bytes} bytes")


def parse(raw: bytes, model: type[B], *, max_items: int) -> B:
    """A checked request.

    Args:
        raw: the body; JSON in UTF-8, whatever the content type says.
        model: what it must be.
        max_items: the most inputs it may have.
    Raises:
        Malformed: not JSON (NaN, lone surrogates and more than 1,024 levels are not), or empty.
        TooLarge: more than `max_items` inputs or passages; they are not looked at.
        InvalidInput: a field is missing, unknown or wrong; names each by JSON pointer.
    """
    document = object_of(raw)
    _check_size(document, max_items)
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise InvalidInput("the request has wrong fields", errors=problems_of(error)) from error


def object_of(raw: bytes) -> dict[str, Any]:
    """A body as the JSON object that it must be. Raises: Malformed, InvalidInput: as `parse`."""
    try:
        document = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise Malformed(f"the body is not JSON: {error}" if raw else "the body is empty") from error
    if not isinstance(document, dict):
        raise InvalidInput("the body must be a JSON object", errors=(FieldProblem("", "must be an object"),))
    return document


def _check_size(document: dict[str, Any], max_items: int) -> None:
    for field in ("inputs", "passages"):
        items = document.get(field)
        if isinstance(items, list) and len(items) > max_items:
            raise TooLarge(f"{len(items)} {field}; one request may have {max_items}")
    if len(document) > MAX_FIELDS:
        problem = FieldProblem("", f"more than {MAX_FIELDS} fields")
        raise InvalidInput("the request has wrong fields", errors=(problem,))


def problems_of(error: ValidationError) -> tuple[FieldProblem, ...]:
    """Each wrong field, by JSON pointer."""
    found = error.errors(include_url=False, include_input=False)
    return told([FieldProblem(_pointer(problem), _detail(problem)) for problem in found])


def _detail(problem: Any) -> str:
    known = {"extra_forbidden": "unknown field", "missing": "is required"}
    return known.get(problem["type"], str(problem["msg"]))


def _pointer(problem: Any) -> str:
    path = (*problem["loc"], *problem.get("ctx", {}).get("at", ()))
    return json_pointer(*path)[:MAX_POINTER_CHARACTERS]


def json_pointer(*path: str | int) -> str:
    """RFC 6901.

    >>> json_pointer("a/b", 0, "~")
    '/a~1b/0/~0'
    """
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)
