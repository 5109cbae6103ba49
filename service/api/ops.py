"""What is served, whether it is well, and its numbers: `/v1/models`, `/health/*`, `/metrics`."""

from collections.abc import Awaitable, Callable

import orjson
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from service.api import examples
from service.api.answers import family_document
from service.api.problems import MEDIA_TYPE, problem, problem_response
from service.api.routes import LeanRoute, Responses, problem_documentation
from service.api.service import Service
from service.errors import NotReady, UnknownModel
from service.metrics import CONTENT_TYPE

Endpoint = Callable[[Request], Awaitable[Response]]


def add_ops_routes(app: FastAPI) -> None:
    """Register the routes that are not about one input."""
    models = {"content": {"application/json": {"example": examples.MODELS_ANSWER}}}
    model = {"content": {"application/json": {"example": examples.MODELS_ANSWER["data"][0]}}}
    unknown: Responses = {404: problem_documentation(404)}
    unready: Responses = {503: problem_documentation(503)}
    _add(app, "/v1/models", list_models, "The students in service", {200: models})
    _add(app, "/v1/models/{name}", show_model, "One student in service", {200: model, **unknown}, path=("name",))
    _add(app, "/health/startup", startup, "Whether loading is over; wait if not", unready)
    _add(app, "/health/live", live, "Whether the process works; restart it if not", unready)
    _add(app, "/health/ready", ready, "Whether requests will be answered; send none if not", unready)
    _add(app, "/metrics", metrics, "Prometheus text format", {200: {"content": {CONTENT_TYPE: {}}}})


def _add(
    app: FastAPI,
    route: str,
    endpoint: Endpoint,
    summary: str,
    responses: Responses,
    *,
    path: tuple[str, ...] = (),
) -> None:
    parameters = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in path]
    app.router.add_api_route(
        route,
        endpoint,
        methods=["GET"],
        route_class_override=LeanRoute,
        response_model=None,
        summary=summary,
        tags=["operations"],
        responses=responses,
        openapi_extra={"parameters": parameters} if parameters else None,
    )


def _json(document: object, *, status: int = 200) -> Response:
    return Response(orjson.dumps(document), status_code=status, media_type="application/json")


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def list_models(request: Request) -> Response:
    """OpenAI's list, each entry with what is served."""
    families = _service(request).students.families
    data = [family_document(family) for _, family in sorted(families.items())]
    return _json({"object": "list", "data": data})


async def show_model(request: Request) -> Response:
    """One student's entry. Raises: UnknownModel: no such student in the store."""
    name = request.path_params["name"]
    family = _service(request).students.families.get(name)
    if family is None:
        raise UnknownModel(f"no student is named {name[:64]!r}")
    return _json(family_document(family))


async def startup(request: Request) -> Response:
    """200 once every student in the store has been loaded or refused; those that were refused are named."""
    service = _service(request)
    students = service.students
    if not students.looked:
        store = f"; the store cannot be read: {students.unreadable}" if students.unreadable else ""
        return problem_response(NotReady(f"students are being loaded{store}"))
    refused = {
        name: [{"version": one.version, "error": one.error} for one in family.refused]
        for name, family in sorted(students.families.items())
        if family.refused
    }
    return _json({"status": "started", "served": students.served(), "refused": refused})


async def live(request: Request) -> Response:
    """200 while this process can do its work: the loop answers, its parts are alive, its slots make progress."""
    service = _service(request)
    if not service.live:
        return problem_response(NotReady(_why_dead(service)))
    return _json({"status": "live"})


def _why_dead(service: Service) -> str:
    if service.stalled:
        return "a slot has been silent for far longer than a run takes"
    return "a part of this process has died; its log says which"


async def ready(request: Request) -> Response:
    """200 once every required student is proved, until the service stops; else what it waits for."""
    service = _service(request)
    served, waiting = service.students.served(), service.students.waiting_for()
    if service.ready:
        return _json({"status": "ready", "served": served})
    document = problem(NotReady(_why_not(service, waiting))) | {"served": served, "waiting_for": waiting}
    return Response(orjson.dumps(document), 503, headers={"retry-after": "1"}, media_type=MEDIA_TYPE)


def _why_not(service: Service, waiting: dict[str, str]) -> str:
    if service.draining:
        return "the service is stopping"
    if not service.live:
        return _why_dead(service)
    if service.sick:
        return f"graphs that fail whatever they are given: {', '.join(service.sick)}"
    return "not every required student is in service" if waiting else "no student is in service yet"


async def metrics(request: Request) -> Response:
    """Every series, in Prometheus' text format."""
    return Response(_service(request).metrics.exposition(), headers={"content-type": CONTENT_TYPE})
