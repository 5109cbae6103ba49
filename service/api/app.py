"""The application: settings in, a FastAPI app out."""

import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.access import Access
from service.api.admin import add_admin_routes
from service.api.conversation import Conversation, on_bug, on_router_error, on_service_error
from service.api.express import SHORT_TASKS, Express
from service.api.ops import add_ops_routes
from service.api.routes import TIME_HEADERS, add_inference_routes, native_paths
from service.api.service import Service
from service.api.surfaces import add_surfaces
from service.api.wire import wire_of
from service.errors import ServiceError
from service.metrics import Metrics
from service.settings import Settings

DESCRIPTION = (
    "Small students of a large teacher, answering early where a certified risk allows it. "
    "Errors are RFC 9457 problem details; `code` is stable, `errors` names bad fields by JSON pointer."
)


def create_app(settings: Settings) -> FastAPI:
    """The service as an ASGI app; any number of them may live in one process.

    While its lifespan is entered, `app.state.service` is its working parts. It answers the probes at once, and turns
    ready when the students are loaded and proved.

    Raises: SettingsInvalid: the file of keys is broken.
    """
    metrics = Metrics()
    access = Access(settings, metrics)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service = app.state.service = Service(settings, metrics, access)
        # what pages of other origins ask for has headers that the short road does not know
        app.state.express = None if settings.cors_origins else Express(service, conversation, short)
        async with app.state.service.running():
            yield

    app = App(
        title="Understudy",
        description=DESCRIPTION,
        version="1",
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={ServiceError: on_service_error, HTTPException: on_router_error, Exception: on_bug},
    )
    direct = add_inference_routes(app, at_root=settings.root_dialect == "native")
    native = native_paths(at_root=settings.root_dialect == "native")
    short = {path: route for path, route in native.items() if route.task in SHORT_TASKS}
    direct |= add_surfaces(app, tei_at_root=settings.root_dialect == "tei")
    add_ops_routes(app)
    add_admin_routes(app, settings)
    conversation = Conversation(app.behind, metrics=metrics, access=access, direct=direct)
    app.front = conversation
    if settings.cors_origins:
        app.front = _for_pages(app.front, settings.cors_origins)
    return app


class App(FastAPI):
    """FastAPI, reached through what stands in front of it: all that it does for every request costs more than a run."""

    front: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer by way of the front."""
        # as FastAPI does: the shape of an error at the root is the app's
        scope["app"] = self
        await self.front(scope, receive, send)

    async def behind(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as FastAPI does."""
        await super().__call__(scope, receive, send)


def _for_pages(app: ASGIApp, origins: tuple[str, ...]) -> ASGIApp:
    async def behind(scope: Scope, receive: Receive, send: Send) -> None:
        # subtle: an answer that is written past `send` would have none of the headers that pages need
        wire_of(scope)
        await app(scope, receive, send)

    return CORSMiddleware(
        behind,
        allow_origins=list(origins),
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=["x-request-id", "retry-after", "retry-after-ms", *TIME_HEADERS],
    )
