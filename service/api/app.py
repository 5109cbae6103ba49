"""The application: settings in, a FastAPI app out."""

import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI
from starlette.exceptions import HTTPException

from service.api.conversation import Conversation, on_router_error, on_service_error
from service.api.ops import add_ops_routes
from service.api.routes import add_inference_routes
from service.api.service import Service
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
    """
    metrics = Metrics()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.service = Service(settings, metrics)
        async with app.state.service.running():
            yield

    app = FastAPI(
        title="Understudy",
        description=DESCRIPTION,
        version="1",
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={ServiceError: on_service_error, HTTPException: on_router_error},
    )
    app.add_middleware(Conversation, metrics=metrics)
    add_inference_routes(app)
    add_ops_routes(app)
    return app
