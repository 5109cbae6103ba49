"""One HTTP exchange: its id, its count, its log line; whatever went wrong, an answer in the one error shape.

Raw ASGI, around every route.
"""

import asyncio
import contextlib
import itertools
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.logs import LOGGER, log_event, log_failure
from service.api.problems import internal_error, problem_response, router_response
from service.errors import ServiceError
from service.metrics import Metrics

SCOPE_KEY = "understudy"
CLIENT_LEFT = 499
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")


@dataclass(slots=True)
class Exchange:
    """What is known of a request so far. `model` and `version` are of the served student, never the request's words."""

    request_id: bytes
    model: str = ""
    version: str = ""
    status: int = 0


def exchange_of(scope: Scope) -> Exchange:
    """The exchange that a route answers in."""
    exchange: Exchange = scope[SCOPE_KEY]
    return exchange


class Conversation:
    """ASGI middleware. Invariant: every request that stays gets exactly one answer, counted once."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics
        # subtle: a random start and a counter, since asking the system for randomness costs as much as a small run
        self._ids_start = secrets.token_hex(8)
        self._ids = itertools.count()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; answer it if nobody did."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = scope[SCOPE_KEY] = Exchange(self._request_id(scope))
        began = time.perf_counter()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", exchange.request_id)]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            exchange.status = CLIENT_LEFT
        except Exception as error:  # noqa: BLE001 - task boundary: told to the caller without its words, and to the log
            log_failure("request_failed", error, request_id=exchange.request_id.decode())
            if exchange.status == 0:
                await internal_error()(scope, receive, send_with_id)
        finally:
            self._count(scope, exchange, time.perf_counter() - began)

    def _request_id(self, scope: Scope) -> bytes:
        """The caller's id where it is a plain short word, else a new one."""
        for name, value in scope["headers"]:
            if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
                return bytes(value)
        return f"{self._ids_start}{next(self._ids):016x}".encode()

    def _count(self, scope: Scope, exchange: Exchange, seconds: float) -> None:
        route = scope.get("route")
        endpoint = "other" if route is None else str(route.path)
        status = exchange.status or CLIENT_LEFT
        self._metrics.requests.labels(endpoint, exchange.model, exchange.version, status).inc()
        self._metrics.request_seconds.labels(endpoint, exchange.model).observe(seconds)
        level = logging.WARNING if status >= 500 and not endpoint.startswith("/health") else logging.DEBUG
        if LOGGER.isEnabledFor(level):
            log_event(level, "request", **_told(scope, exchange, endpoint, status), ms=round(seconds * 1e3, 3))


def _told(scope: Scope, exchange: Exchange, endpoint: str, status: int) -> dict[str, Any]:
    return {
        "method": scope["method"],
        "endpoint": endpoint,
        "status": status,
        "model": exchange.model,
        "version": exchange.version,
        "request_id": exchange.request_id.decode(),
    }


async def on_service_error(_: Any, error: Exception) -> Any:
    """The one handler of every named error."""
    assert isinstance(error, ServiceError)
    return problem_response(error)


async def on_router_error(_: Any, error: Exception) -> Any:
    """What the router refuses, in the same shape."""
    assert isinstance(error, HTTPException)
    return router_response(error)


@contextlib.asynccontextmanager
async def cancelled_if_client_leaves(receive: Receive) -> AsyncIterator[None]:
    """Cancel what is done inside as soon as the client is gone.

    Args:
        receive: the request's, its body read.
    Raises: ClientDisconnect: the client left.
    """
    working = asyncio.current_task()
    assert working is not None
    left = False

    async def watch() -> None:
        nonlocal left
        while (await receive())["type"] != "http.disconnect":
            pass
        left = True
        working.cancel()

    watching = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        # subtle: only our own cancellation is taken back; one from outside (the server stopping) goes on
        if left and working.uncancel() == 0:
            raise ClientDisconnect from None
        raise
    finally:
        watching.cancel()
