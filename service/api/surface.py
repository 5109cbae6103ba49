"""What the compatible surfaces share: a request's way from its bytes to the native service and back.

Each surface parses its own body, builds a native one, and writes its own answer; in between everything is as on the
native routes: keys, limits, deadlines, priorities, metrics, and what happens when the client leaves.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope

from service.api import ranking
from service.api.body import MAX_FIELDS, problems_of
from service.api.call import Call, call_of
from service.api.conversation import DirectRoute, Exchange, Reply, exchange_of
from service.api.loading import Served
from service.api.routes import MANY_ITEMS, LeanRoute
from service.api.schemas import ClassifyBody, EmbedBody, RankBody
from service.api.service import Service
from service.api.underway import Inference
from service.bundle.manifest import Task
from service.errors import FieldProblem, InvalidInput, RunFailed, ServiceError, TooLarge
from service.metrics import UNKNOWN
from service.runtime.student import Outcome


class Lenient(BaseModel):
    """A body of a compatible surface: fields that are not known here are let pass, as its own server does."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False, hide_input_in_errors=True)


M = TypeVar("M", bound=Lenient)
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Documented:
    """What OpenAPI tells of a route; nothing where it is not `shown`."""

    summary: str
    body: type[Lenient] | None = None
    shown: bool = True


@dataclass(frozen=True, slots=True)
class Asked:
    """A request whose body has come.

    Attributes:
        service: what answers.
        scope: its path and headers.
        raw: its body.
        arrived: when its headers had come, on `time.monotonic`.
    """

    service: Service
    scope: Scope
    raw: bytes
    arrived: float

    def find(self, reference: str | None, task: Task) -> Served:
        """The student version meant; the request is counted as its."""
        served = self.service.students.find(reference, task)
        self.count_as(served)
        return served

    def count_as(self, served: Served) -> None:
        """Metrics and log tell of this version."""
        exchange = exchange_of(self.scope)
        exchange.model, exchange.version = served.name, str(served.version)

    @property
    def request_id(self) -> str:
        """The id that the answer's `x-request-id` will have."""
        return exchange_of(self.scope).request_id.decode()

    @property
    def path(self) -> Mapping[str, str]:
        """The parameters of the path."""
        parameters: Mapping[str, str] = self.scope.get("path_params", {})
        return parameters

    def call(self, deadline_ms: float | None = None) -> Call:
        """How this request is to be run: who asks, until when, how urgently."""
        return call_of(exchange_of(self.scope), self.arrived, deadline_ms, self.service.settings)

    async def written(self, write: Callable[[], R], items: int) -> R:
        """What `write` writes; in a thread where so many items would hold the event loop for milliseconds."""
        return await self.service.tokenizing.aside(write) if items > MANY_ITEMS else write()

    async def infer(
        self, served: Served, body: ClassifyBody | EmbedBody, *, call: Call | None = None, field: str
    ) -> Inference:
        """Run a native body.

        Args:
            served: the student version.
            body: the native body.
            call: how to run it; None: as `call` says.
            field: the surface's own name for `inputs`, which errors then use.
        """
        try:
            return await self.service.infer(served, body, call=call or self.call())
        except InvalidInput as error:
            raise renamed(error, "/inputs", field) from error

    async def rank(self, served: Served, body: RankBody, *, call: Call | None = None, field: str) -> ranking.Ranking:
        """Rank passages; as `infer`, `field` being the surface's name for `passages`."""
        try:
            return await ranking.rank(self.service, served, body, call=call or self.call())
        except (InvalidInput, RunFailed) as error:
            raise renamed(error, "/passages", field) from error


Handler = Callable[[Asked], Awaitable[Reply | Response]]
Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Surface:
    """The routes of one surface, as FastAPI knows them; `direct`: those that are answered before its router.

    Attributes:
        app: where they are registered.
        tag: what they stand under in the documentation.
        direct: what answers each path; filled by `post_direct`.
    """

    app: FastAPI
    tag: str
    direct: dict[str, DirectRoute] = field(default_factory=dict)

    def post_direct(self, path: str, handler: Callable[[Asked], Awaitable[Reply]], route: Documented) -> None:
        """Register a route that is asked often; its path has no parameters."""
        self.direct[path] = partial(_answer, self.app, handler)
        self.post(path, handler, route)

    def post(self, path: str, handler: Handler, route: Documented) -> None:
        """Register a route that takes a body."""

        async def endpoint(request: Request) -> Response:
            reply = await _answer(self.app, handler, request.scope, request.receive, exchange_of(request.scope))
            if isinstance(reply, Response):
                return reply
            response = Response(reply.body, media_type="application/json")
            response.raw_headers.extend(reply.headers)
            return response

        self._add(path, endpoint, route, "POST")

    def get(self, path: str, endpoint: Endpoint, route: Documented) -> None:
        """Register a route without a body."""
        self._add(path, endpoint, route, "GET")

    def _add(self, path: str, endpoint: Endpoint, route: Documented, method: str) -> None:
        names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
        extra: dict[str, Any] = {
            "parameters": [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
            ]
        }
        if method == "POST":
            schema = {"type": "object"} if route.body is None else route.body.model_json_schema()
            extra["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
        self.app.router.add_api_route(
            path,
            endpoint,
            methods=[method],
            route_class_override=LeanRoute,
            response_model=None,
            include_in_schema=route.shown,
            name=f"{method.lower()}{path.replace('/', '_')}",
            summary=route.summary,
            tags=[self.tag],
            openapi_extra=extra,
        )


async def _answer(
    app: FastAPI, handler: Callable[[Asked], Awaitable[R]], scope: Scope, receive: Receive, exchange: Exchange
) -> R:
    arrived = time.monotonic()
    service: Service = app.state.service
    exchange.model = UNKNOWN
    return await service.door.serve(scope, receive, lambda raw: handler(Asked(service, scope, raw, arrived)))


def checked(document: dict[str, Any], model: type[M], *, items: str, max_items: int) -> M:
    """A body's fields, checked.

    Args:
        document: the body.
        model: what it must be.
        items: the field of which `max_items` may come.
        max_items: the setting.
    Raises:
        TooLarge: there are more; they are not looked at.
        InvalidInput: a field is missing or wrong; each is named.
    """
    bounded(document, items, max_items=max_items)
    if len(document) > MAX_FIELDS:
        raise InvalidInput("the request has wrong fields", errors=(FieldProblem("", f"more than {MAX_FIELDS} fields"),))
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise InvalidInput("the request has wrong fields", errors=problems_of(error)) from error


def bounded(document: object, items: str, *, max_items: int) -> None:
    """Raises: TooLarge: an object has more than `max_items` in its field `items`."""
    listed = document.get(items) if isinstance(document, dict) else None
    if isinstance(listed, list) and len(listed) > max_items:
        raise TooLarge(f"{len(listed)} in `{items}`; one request may have {max_items}")


def renamed(error: ServiceError, native: str, own: str) -> ServiceError:
    """The same error, with the surface's name of the field where the native one stands."""
    fields = tuple(replace(field, pointer=_renamed(field.pointer, native, own)) for field in error.errors)
    return type(error)(error.detail, errors=fields)


def _renamed(pointer: str, native: str, own: str) -> str:
    rest = pointer.removeprefix(native)
    return own + rest if rest != pointer and rest[:1] in ("", "/") else pointer


def outcomes(inference: Inference, *, field: str) -> list[Outcome]:
    """What the items came to, in order.

    Raises: ServiceError: one of them failed; named by `field` (a JSON pointer) and its place.
    """
    ends = [item.end for item in inference.items]
    for place, end in enumerate(ends):
        if isinstance(end, RunFailed):
            raise RunFailed(end.detail, errors=(FieldProblem(f"{field}/{place}", end.detail),))
        if isinstance(end, ServiceError):
            raise end
    return [end for end in ends if isinstance(end, Outcome)]


def tokens_of(inference: Inference) -> int:
    """Tokens read, after any cut."""
    return sum(item.encoded.kept for item in inference.items if item.encoded is not None)


def truncated_of(inference: Inference) -> list[dict[str, Any]]:
    """For each item `{"truncated": {"kept", "dropped"}}`, or nothing where it was not cut."""
    return [
        {"truncated": {"kept": item.encoded.kept, "dropped": item.encoded.dropped}}
        if item.encoded is not None and item.encoded.truncated
        else {}
        for item in inference.items
    ]
