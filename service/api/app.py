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
from service.api.ops import add_ops_routes
from service.api.routes import TIME_HEADERS, add_inference_routes
from service.api.service import Service
from service.api.surfaces import add_surfaces
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
        app.state.service = Service(settings, metrics, access)
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
    direct |= add_surfaces(app, tei_at_root=settings.root_dialect == "tei")
    add_ops_routes(app)
    add_admin_routes(app, settings)
    app.front = Conversation(app.behind, metrics=metrics, access=access, direct=direct)
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
    return CORSMiddleware(
        app,
        allow_origins=list(origins),
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=["x-request-id", "retry-after", "retry-after-ms", *TIME_HEADERS],
    )
