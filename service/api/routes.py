"""The native inference routes: `/v1/classify`, `/v1/embed`, `/v1/rank`, and the same without a version.

They are direct routes: the conversation answers them before FastAPI's router is reached. FastAPI knows them for the
documentation, and answers them by the same function where the app is mounted below a path of another.
"""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope

from service.api import examples
from service.api.answers import Timing, envelope, results
from service.api.body import parse
from service.api.call import Call, call_of
from service.api.conversation import DirectRoute, Exchange, Reply, exchange_of
from service.api.loading import Served
from service.api.problems import MEDIA_TYPE
from service.api.ranking import rank, rank_answer
from service.api.schemas import ClassifyAnswer, ClassifyBody, EmbedAnswer, EmbedBody, Problem, RankAnswer, RankBody
from service.api.service import Service
from service.api.underway import Inference
from service.api.wire import Header
from service.bundle.manifest import Task
from service.metrics import UNKNOWN

# above so many results, writing them would hold the event loop for milliseconds
MANY_ITEMS = 64
TIME_HEADERS = ("x-queue-time", "x-inference-time", "x-tokenization-time", "x-total-time")


class LeanRoute(APIRoute):
    """A route whose endpoint takes the request and returns the response, with nothing of FastAPI's in between."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        """The endpoint itself."""
        endpoint: Callable[[Request], Any] = self.endpoint
        return endpoint


class Asked(NamedTuple):
    """A request that is understood: by whom and how it is to be answered, and when it came (the loop's clock, s)."""

    service: Service
    served: Served
    call: Call
    arrived: float


@dataclass(frozen=True, slots=True)
class InferenceRoute:
    """One task over HTTP."""

    task: Task
    body: type[ClassifyBody] | type[EmbedBody] | type[RankBody]
    answer: type[ClassifyAnswer] | type[EmbedAnswer] | type[RankAnswer]
    run: Callable[[Asked, Any], Awaitable[Reply]]
    summary: str
    requests: dict[str, Any]
    response: dict[str, Any]


async def _infer(asked: Asked, body: ClassifyBody | EmbedBody) -> Reply:
    inference = await asked.service.infer(asked.served, body, call=asked.call)
    if len(inference.items) > MANY_ITEMS:
        return await asked.service.tokenizing.aside(partial(written, asked, body, inference))
    return written(asked, body, inference)


def written(asked: Asked, body: ClassifyBody | EmbedBody, inference: Inference) -> Reply:
    """The answer to a request. Raises: ServiceError: an item failed, and the request wants to fail as a whole."""
    written = results(asked.served, body, inference.items)
    timing = Timing(inference.queue_s, inference.compute_s, time.monotonic() - asked.arrived)
    content = envelope(asked.served, inference.policy, inference.items, timing, written)
    return Reply(content, time_headers(timing, tokenize_s=inference.tokenize_s))


async def _rank(asked: Asked, body: RankBody) -> Reply:
    ranking = await rank(asked.service, asked.served, body, call=asked.call)
    timing = Timing(ranking.queue_s, ranking.compute_s, time.monotonic() - asked.arrived)
    headers = time_headers(timing, tokenize_s=ranking.tokenize_s)
    write = partial(rank_answer, asked.served, body, ranking, timing)
    many = len(body.passages) > MANY_ITEMS
    content = await asked.service.tokenizing.aside(write) if many else write()
    return Reply(content, headers)


def time_headers(timing: Timing, *, tokenize_s: float) -> list[Header]:
    """Where a request's time went, in milliseconds, under the names that text-embeddings-inference gives it."""
    return [
        (b"x-queue-time", b"%.3f" % (timing.queue_s * 1e3)),
        (b"x-inference-time", b"%.3f" % (timing.compute_s * 1e3)),
        (b"x-tokenization-time", b"%.3f" % (tokenize_s * 1e3)),
        (b"x-total-time", b"%.3f" % (timing.total_s * 1e3)),
    ]


ROUTES = (
    InferenceRoute(
        "classify",
        ClassifyBody,
        ClassifyAnswer,
        _infer,
        "The likeliest label of each input",
        examples.CLASSIFY_REQUESTS,
        examples.CLASSIFY_ANSWER,
    ),
    InferenceRoute(
        "embed",
        EmbedBody,
        EmbedAnswer,
        _infer,
        "An embedding of each text",
        examples.EMBED_REQUESTS,
        examples.EMBED_ANSWER,
    ),
    InferenceRoute(
        "rank",
        RankBody,
        RankAnswer,
        _rank,
        "Passages by how well they answer a query",
        examples.RANK_REQUESTS,
        examples.RANK_ANSWER,
    ),
)
Responses = dict[int | str, dict[str, Any]]
ERRORS = (400, 401, 403, 404, 408, 413, 422, 429, 500, 503, 504)


def add_inference_routes(app: FastAPI, *, at_root: bool) -> dict[str, DirectRoute]:
    """Register every task under `/v1`, and at the root if that speaks the native dialect.

    Returns: what answers each path directly.
    """
    direct: dict[str, DirectRoute] = {}
    for path, route in native_paths(at_root=at_root).items():
        direct[path] = partial(_answer, app, route)
        _declare(app, path, route, direct[path], documented=path.startswith("/v1/"))
    return direct


def native_paths(*, at_root: bool) -> dict[str, InferenceRoute]:
    """Where each task is asked for: under `/v1`, and at the root if that speaks the native dialect."""
    prefixes = ("/v1", "") if at_root else ("/v1",)
    return {f"{prefix}/{route.task}": route for route in ROUTES for prefix in prefixes}


def _declare(app: FastAPI, path: str, route: InferenceRoute, answer: DirectRoute, *, documented: bool) -> None:
    async def endpoint(request: Request) -> Response:
        reply = await answer(request.scope, request.receive, exchange_of(request.scope))
        response = Response(reply.body, media_type="application/json")
        response.raw_headers.extend(reply.headers)
        return response

    app.router.add_api_route(
        path,
        endpoint,
        methods=["POST"],
        route_class_override=LeanRoute,
        response_model=None,
        include_in_schema=documented,
        name=path.strip("/").replace("/", "_"),
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


async def _answer(app: FastAPI, route: InferenceRoute, scope: Scope, receive: Receive, exchange: Exchange) -> Reply:
    """One request, from its body to its answer. Raises: ServiceError: it has none."""
    arrived = time.monotonic()
    service: Service = app.state.service
    exchange.model = UNKNOWN

    def work(raw: bytes) -> Awaitable[Reply]:
        body = parse(raw, route.body, max_items=service.settings.max_items)
        served = service.students.find(body.model, route.task)
        exchange.model, exchange.version = served.name, served.version_label
        call = call_of(exchange, arrived, body.deadline_ms, service.settings)
        return route.run(Asked(service, served, call, arrived), body)

    return await service.door.serve(scope, receive, work)
