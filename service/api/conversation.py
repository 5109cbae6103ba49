"""One HTTP exchange: its id, its caller, its count, its log line; whatever went wrong, an answer in the right shape.

Raw ASGI, around every route. Routes registered as direct ones are answered from here, before the router is reached:
looking a path up among a hundred routes, and wrapping what it says in Starlette's requests and responses, costs more
than the rest of the way taken together.
"""

import itertools
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.access import ANYONE, Access, Caller
from service.api.dialects import error_response, failure_response, internal_error_response, router_error_response
from service.api.logs import LOGGER, Rationed, log_event, log_failure
from service.api.wire import Header, reply_at_once, wire_of
from service.errors import ServiceError
from service.metrics import Distribution, Metrics, Value

SCOPE_KEY = "understudy"
CLIENT_LEFT = 499
TIMED_OUT = 408
# what a loaded or stopping service answers; thousands of times a second if it must
_REFUSED = frozenset({503, 504})
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
_NO_HEADERS: Mapping[bytes, bytes] = {}


@dataclass(slots=True)
class Exchange:
    """What is known of a request so far.

    Attributes:
        request_id: the caller's, or ours.
        headers: of the request, by lower-case name; of several that are alike, the last.
        caller: whose request it is.
        endpoint: the route that answers.
        model, version: of the served student, never the request's words.
        status: of the answer; 0: there is none yet.
    """

    request_id: bytes
    headers: Mapping[bytes, bytes]
    caller: Caller = ANYONE
    endpoint: str = "other"
    model: str = ""
    version: str = ""
    status: int = 0


class Reply(NamedTuple):
    """A 200 of a direct route: its body (JSON), and headers beside type and length."""

    body: bytes
    headers: Sequence[Header] = ()


DirectRoute = Callable[[Scope, Receive, Exchange], Awaitable[Reply]]


def exchange_of(scope: Scope) -> Exchange:
    """The exchange that a route answers in."""
    exchange: Exchange = scope[SCOPE_KEY]
    return exchange


class Conversation:
    """ASGI middleware. Invariant: every request that stays gets exactly one answer, counted once."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, access: Access, direct: Mapping[str, DirectRoute]) -> None:
        """Stand in front of `app`.

        Args:
            app: answers what is not direct.
            metrics: requests are counted there.
            access: says whose a request is.
            direct: what answers POST requests to a path, in place of `app`.
        """
        self._app = app
        self._access = access
        self._direct = direct
        self.counts = Counts(metrics)
        # subtle: a random start and a counter, since asking the system for randomness costs as much as a small run
        self._ids_start = secrets.token_hex(8).encode()
        self._ids = itertools.count()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it; answer it if nobody did."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        headers = dict(scope["headers"])
        exchange = scope[SCOPE_KEY] = Exchange(self.request_id(headers), headers)
        wire = wire_of(scope)
        try:
            exchange.caller = self._access.caller(scope)
            direct = self._direct.get(scope["path"]) if scope["method"] == "POST" else None
            if direct is not None:
                exchange.endpoint = scope["path"]
                reply = await direct(scope, receive, exchange)
                exchange.status = 200
                if not reply_at_once(wire, exchange.request_id, reply.headers, reply.body):
                    await _send(send, exchange, reply)
            else:
                await self._app(scope, receive, _sender(send, exchange))
        except ClientDisconnect:
            exchange.status = CLIENT_LEFT
        except Exception as error:  # noqa: BLE001 - task boundary: told to the caller, by name or without its words
            await self._answer_error(error, scope, receive, send)
        finally:
            self.counts.add(scope, exchange, time.perf_counter() - began)

    async def _answer_error(self, error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        if not isinstance(error, ServiceError) or exchange.status:
            log_failure("request_failed", error, request_id=exchange.request_id.decode())
        if not exchange.status:
            response = failure_response(scope, error)
            await response(scope, receive, _sender(send, exchange))

    def request_id(self, headers: Mapping[bytes, bytes]) -> bytes:
        """The caller's id where it is a plain short word, else a new one."""
        given = headers.get(b"x-request-id")
        if given is not None and _REQUEST_ID.fullmatch(given):
            return given
        return b"%b%016x" % (self._ids_start, next(self._ids))


async def _send(send: Send, exchange: Exchange, reply: Reply) -> None:
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(reply.body)),
        (b"x-request-id", exchange.request_id),
        *reply.headers,
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})


def _sender(send: Send, exchange: Exchange) -> Send:
    """`send`, which adds what every answer has."""

    async def send_with_id(message: Message) -> None:
        if message["type"] == "http.response.start":
            exchange.status = message["status"]
            headers = [*message.get("headers", ()), (b"x-request-id", exchange.request_id)]
            if exchange.status == TIMED_OUT:
                # what is still to come of the request would be taken for the next one
                headers.append((b"connection", b"close"))
            message["headers"] = headers
        await send(message)

    return send_with_id


class Counts:
    """What is told of each exchange: two series, and a line of the log where it matters. Owner: event loop."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._series: dict[tuple[str, str, str, int], tuple[Value, Distribution]] = {}
        self._refused = Rationed("requests_refused")

    def add(self, scope: Scope, exchange: Exchange, seconds: float) -> None:
        """An exchange is over."""
        route = scope.get("route")
        endpoint = exchange.endpoint if route is None else str(route.path)
        status = exchange.status or CLIENT_LEFT
        key = (endpoint, exchange.model, exchange.version, status)
        count, distribution = self._series.get(key) or self._look_up(key)
        count.inc()
        distribution.observe(seconds)
        if status >= 500 or LOGGER.isEnabledFor(logging.DEBUG):
            self._log(_told(scope, exchange, endpoint, status) | {"ms": round(seconds * 1e3, 3)})

    def _look_up(self, key: tuple[str, str, str, int]) -> tuple[Value, Distribution]:
        endpoint, model, version, status = key
        count = self._metrics.requests.labels(endpoint, model, version, str(status))
        found = self._series[key] = (count, self._metrics.request_seconds.labels(endpoint, model))
        return found

    def _log(self, told: dict[str, Any]) -> None:
        """One line for each; of what a loaded or stopping service refuses, one now and then, with their number."""
        status = told["status"]
        if status in _REFUSED and not told["endpoint"].startswith("/health"):
            self._refused.tell(logging.WARNING, endpoint=told["endpoint"], status=status)
        level = logging.WARNING if status >= 500 and status not in _REFUSED else logging.DEBUG
        log_event(level, "request", **told)


def _told(scope: Scope, exchange: Exchange, endpoint: str, status: int) -> dict[str, Any]:
    return {
        "method": scope["method"],
        "endpoint": endpoint,
        "status": status,
        "model": exchange.model,
        "version": exchange.version,
        "caller": exchange.caller.name,
        "request_id": exchange.request_id.decode(),
    }


async def on_service_error(request: Request, error: Exception) -> Response:
    """Any named error, in the shape of the protocol that was spoken."""
    assert isinstance(error, ServiceError)
    return error_response(request.scope, error)


async def on_bug(request: Request, _: Exception) -> Response:
    """What has no name; the conversation logs it."""
    return internal_error_response(request.scope)


async def on_router_error(request: Request, error: Exception) -> Response:
    """What the router refuses, in the shape of the protocol that was spoken."""
    assert isinstance(error, HTTPException)
    return router_error_response(request.scope, error)
