"""The native inference routes: `/v1/classify`, `/v1/embed`, and the same two without a version.

The hot path reads and writes bodies itself and hands FastAPI a finished response; the OpenAPI documentation is
declared beside it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from service.api import examples
from service.api.answers import Timing, envelope, results
from service.api.body import parse, read_body
from service.api.conversation import cancelled_if_client_leaves, exchange_of
from service.api.problems import MEDIA_TYPE
from service.api.schemas import ClassifyAnswer, ClassifyBody, EmbedAnswer, EmbedBody, Problem
from service.api.service import Service
from service.bundle.manifest import Task
from service.metrics import UNKNOWN

# above so many results, writing them would hold the event loop for milliseconds
MANY_ITEMS = 64


class LeanRoute(APIRoute):
    """A route whose endpoint takes the request and returns the response, with nothing of FastAPI's in between."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        """The endpoint itself."""
        endpoint: Callable[[Request], Any] = self.endpoint
        return endpoint


@dataclass(frozen=True, slots=True)
class InferenceRoute:
    """One task over HTTP."""

    task: Task
    body: type[ClassifyBody] | type[EmbedBody]
    answer: type[ClassifyAnswer] | type[EmbedAnswer]
    summary: str
    requests: dict[str, Any]
    response: dict[str, Any]


ROUTES = (
    InferenceRoute(
        "classify",
        ClassifyBody,
        ClassifyAnswer,
        "The likeliest label of each input",
        examples.CLASSIFY_REQUESTS,
        examples.CLASSIFY_ANSWER,
    ),
    InferenceRoute(
        "embed", EmbedBody, EmbedAnswer, "An embedding of each text", examples.EMBED_REQUESTS, examples.EMBED_ANSWER
    ),
)
Responses = dict[int | str, dict[str, Any]]
ERRORS = (400, 404, 413, 422, 429, 500, 503, 504)


def add_inference_routes(app: FastAPI) -> None:
    """Register every task under `/v1` and at the root."""
    for route in ROUTES:
        for prefix in ("/v1", ""):
            app.router.add_api_route(
                f"{prefix}/{route.task}",
                _endpoint(route),
                methods=["POST"],
                route_class_override=LeanRoute,
                response_model=None,
                include_in_schema=bool(prefix),
                name=f"{route.task}{prefix.replace('/', '_')}",
                summary=route.summary,
                tags=["inference"],
                responses=_responses(route),
                openapi_extra={"requestBody": _request_body(route)},
            )


def _request_body(route: InferenceRoute) -> dict[str, Any]:
    content = {"schema": route.body.model_json_schema(), "examples": route.requests}
    return {"required": True, "content": {"application/json": content}}


def _responses(route: InferenceRoute) -> Responses:
    answer = {"model": route.answer, "content": {"application/json": {"example": route.response}}}
    return {200: answer, **{status: problem_documentation(status) for status in ERRORS}}


def problem_documentation(status: int) -> dict[str, Any]:
    """How OpenAPI tells of an error answer."""
    content = {MEDIA_TYPE: {"schema": Problem.model_json_schema(), "example": examples.PROBLEMS[status]}}
    return {"description": examples.PROBLEMS[status]["title"], "content": content}


def _endpoint(route: InferenceRoute) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        service: Service = request.app.state.service
        exchange_of(request.scope).model = UNKNOWN
        with service.letting_in():
            return await _infer(service, route, request)

    return endpoint


async def _infer(service: Service, route: InferenceRoute, request: Request) -> Response:
    arrived = time.monotonic()
    with service.reading():
        raw = await read_body(request.scope, request.receive, max_bytes=service.settings.max_body_bytes)
    body = parse(raw, route.body, max_items=service.settings.max_items)
    served = service.students.find(body.model, route.task)
    exchange = exchange_of(request.scope)
    exchange.model, exchange.version = served.name, str(served.version)
    deadline_ms = body.deadline_ms or service.settings.default_deadline_ms
    deadline = None if deadline_ms is None else arrived + deadline_ms / 1e3
    async with cancelled_if_client_leaves(request.receive):
        inference = await service.infer(served, body, deadline=deadline)

        def write() -> bytes:
            written = results(served, body, inference.items)
            timing = Timing(inference.queue_s, inference.compute_s, time.monotonic() - arrived)
            return envelope(served, inference.policy, inference.items, timing, written)

        content = await asyncio.to_thread(write) if len(inference.items) > MANY_ITEMS else write()
    return Response(content, media_type="application/json")
