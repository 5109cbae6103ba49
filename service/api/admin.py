"""`/admin`: move aliases, try versions, look inside. There is no such path unless an admin key is set.

What moves is the alias in the store, so that every replica on it follows; the answer is about this one.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from importlib.metadata import version as version_of
from typing import Annotated, Any, TypeVar

import orjson
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from service.api.answers import family_document
from service.api.body import problems_of
from service.api.logs import log_event
from service.api.routes import LeanRoute
from service.api.service import Service
from service.api.students import Refusal
from service.errors import (
    AliasInvalid,
    BundleError,
    Conflict,
    InvalidInput,
    Malformed,
    StoreError,
    UnknownModel,
    UnknownVersion,
)
from service.settings import Settings, shown
from service.store.aliases import DEFAULT_ALIAS, check_alias_name
from service.store.store import Store

# loading and proving a student takes seconds; what takes longer is told as under way
FOLLOW_S = 120.0


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)


class LoadBody(_Body):
    """Which version to try."""

    version: Annotated[int, Field(ge=1)]


class RollbackBody(_Body):
    """`any_space`: the alias may move to another embedding space."""

    any_space: bool = False


class PromoteBody(RollbackBody):
    """`from`: the alias whose version goes into production."""

    source: Annotated[str, Field(alias="from")] = "canary"


class AliasBody(RollbackBody, LoadBody):
    """Where the alias goes."""


B = TypeVar("B", bound=_Body)
Handler = Callable[[Service, Request, Any], Awaitable[Response]]


def add_admin_routes(app: FastAPI, settings: Settings) -> None:
    """Register the routes, if there is a key to them."""
    if settings.admin_key is None:
        return
    student = "/admin/students/{name}"
    _post(app, f"{student}/aliases/{{alias}}", move_alias, AliasBody, "Point an alias at a version")
    _post(app, f"{student}/promote", promote, PromoteBody, "Put another alias's version into production")
    _post(app, f"{student}/rollback", roll_back, RollbackBody, "Put the version before into production again")
    _post(app, f"{student}/load", load, LoadBody, "Verify, load and prove a version without serving it")
    _add(app, "/admin/status", status, "GET", "What goes on inside", {})


def _post(app: FastAPI, path: str, handler: Handler, body: type[_Body], summary: str) -> None:
    async def endpoint(request: Request) -> Response:
        service = _service(request)
        return await service.door.serve(
            request.scope, request.receive, lambda raw: handler(service, request, _parsed(raw, body))
        )

    content = {"application/json": {"schema": body.model_json_schema()}}
    _add(app, path, endpoint, "POST", summary, {"requestBody": {"content": content}})


def _add(
    app: FastAPI,
    path: str,
    endpoint: Callable[[Request], Awaitable[Response]],
    method: str,
    summary: str,
    extra: dict[str, Any],
) -> None:
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    extra["parameters"] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
    ]
    app.router.add_api_route(
        path,
        endpoint,
        methods=[method],
        route_class_override=LeanRoute,
        response_model=None,
        summary=summary,
        tags=["admin"],
        openapi_extra=extra,
    )


def _service(request: Request) -> Service:
    """The service, for who holds the admin key. Raises: Unauthorized, Forbidden."""
    service: Service = request.app.state.service
    # subtle: asked again here, so that no other way to a route of this module goes past the key
    service.access.administrator(request.scope)
    return service


def _parsed(raw: bytes, model: type[B]) -> B:
    """A checked body; none at all is an empty one. Raises: Malformed, InvalidInput."""
    try:
        return model.model_validate(orjson.loads(raw or b"{}"))
    except orjson.JSONDecodeError as error:
        raise Malformed(f"the body is not JSON: {error}") from error
    except ValidationError as error:
        raise InvalidInput("the request has wrong fields", errors=problems_of(error)) from error


@contextlib.contextmanager
def _told_over_http() -> Iterator[None]:
    """What the store refuses, as an answer."""
    try:
        yield
    except UnknownVersion as error:
        raise UnknownModel(str(error)) from error
    except AliasInvalid as error:
        raise InvalidInput(str(error)) from error
    except (StoreError, BundleError) as error:
        raise Conflict(f"{error.code}: {error}") from error


async def move_alias(service: Service, request: Request, body: AliasBody) -> Response:
    """Point an alias at a version, and wait until it is served.

    Raises:
        UnknownModel: no such student or version.
        InvalidInput: the alias may not be one.
        Conflict: the version is broken, of another embedding space, or refused here; or the store cannot be written.
    """
    name, alias = request.path_params["name"], request.path_params["alias"]
    return await _move(service, name, alias, body.version, any_space=body.any_space)


async def promote(service: Service, request: Request, body: PromoteBody) -> Response:
    """Point production at another alias's version; as `move_alias`."""
    name = request.path_params["name"]
    with _told_over_http():
        check_alias_name(body.source)
        resolved = await asyncio.to_thread(_store(service).resolve, f"{name}@{body.source}")
    return await _move(service, name, DEFAULT_ALIAS, resolved.version, any_space=body.any_space)


async def roll_back(service: Service, request: Request, body: RollbackBody) -> Response:
    """Point production at the version before; as `move_alias`."""
    name = request.path_params["name"]
    with _told_over_http():
        version = await asyncio.to_thread(_store(service).roll_back, name, allow_new_space=body.any_space)
    return await _followed(service, name, DEFAULT_ALIAS, version)


async def _move(service: Service, name: str, alias: str, version: int, *, any_space: bool) -> Response:
    with _told_over_http():
        await asyncio.to_thread(_store(service).set_alias, name, alias, version, allow_new_space=any_space)
    return await _followed(service, name, alias, version)


def _store(service: Service) -> Store:
    return Store(service.settings.store)


async def _followed(service: Service, name: str, alias: str, version: int) -> Response:
    """Tell how the served set followed. Raises: Conflict: it does not, since the version was refused."""
    log_event(logging.INFO, "alias_moved", model=name, alias=alias, version=version)
    students = service.students

    def has_followed() -> bool:
        family = students.families.get(name)
        return family is not None and family.pointed.get(alias) == version

    students.look()
    moved = {"model": name, "alias": alias, "version": version}
    try:
        async with asyncio.timeout(FOLLOW_S):
            await students.until(has_followed)
    except TimeoutError:
        return _json({**moved, "served": False, "why": "not loaded yet; see /admin/status"}, status=202)
    family = students.families[name]
    answering = family.aliases.get(alias)
    if answering is not None and answering.version == version:
        return _json({**moved, "served": True})
    why = next((f"{one.error}: {one.detail}" for one in family.refused if one.version == version), "")
    still = "nothing" if answering is None else f"version {answering.version}"
    raise Conflict(
        f"{name}@{alias} points at version {version} now, which this service refuses ({why}); {still} answers there"
    )


async def load(service: Service, request: Request, body: LoadBody) -> Response:
    """Whether a version would be served, and as what.

    Raises: UnknownModel: it is not in the store.
    """
    name, version = request.path_params["name"], body.version
    with _told_over_http():
        await asyncio.to_thread(_store(service).resolve, f"{name}@{version}")
    outcome = await service.students.prove(name, version)
    # the next look gives its memory back
    service.students.look()
    asked = {"model": name, "version": version}
    if isinstance(outcome, Refusal):
        return _json({**asked, "would_serve": False, "error": outcome.error, "detail": outcome.detail})
    return _json({**asked, "would_serve": True, "card": outcome.card})


async def status(request: Request) -> Response:
    """The engine, the students, the limits, and what is left of each key's quota."""
    service = _service(request)
    students = service.students
    document = {
        "understudy": version_of("understudy"),
        "live": service.live,
        "ready": service.ready,
        "draining": service.draining,
        "engine": repr(service.engine),
        "door": repr(service.door),
        "students": [
            family_document(family) | {"pointed": dict(family.pointed)}
            for _, family in sorted(students.families.items())
        ],
        "waiting_for": students.waiting_for(),
        "store_unreadable": students.unreadable or None,
        "settings": shown(service.settings),
        "callers": service.access.status(),
    }
    return _json(document)


def _json(document: object, *, status: int = 200) -> Response:
    return Response(orjson.dumps(document), status_code=status, media_type="application/json")
