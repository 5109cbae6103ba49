"""`understudy serve`: settings, socket and signals around the app."""

import asyncio
import gc
import inspect
import logging.config
import math
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import orjson
import typer
import uvicorn
from fastapi import FastAPI
from prometheus_client import disable_created_metrics

from service.api.app import create_app
from service.api.connection import connection
from service.api.keys import read_keys
from service.api.logs import log_config, log_event
from service.api.service import LAST_WORDS_S, Service
from service.errors import SettingsInvalid
from service.runtime.memory import keep_freed
from service.runtime.session import backend_for
from service.settings import PREFIX, Settings, load_settings, shown, unknown_variables

KEEP_ALIVE_S = 75
BACKLOG = 2048
SWITCH_S = 0.0005
GC_OBJECTS = 20_000


def _with_settings_as_options(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option for every setting; those not given arrive as None."""
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_option(name, field))
        for name, field in Settings.model_fields.items()
    ]
    own = [p for p in inspect.signature(function).parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    function.__signature__ = inspect.Signature([*own, *parameters])  # type: ignore[attr-defined]
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *parameters)}
    return function


def _option(name: str, field: Any) -> Any:
    kind = next((plain for plain in (int, float, Path) if field.annotation in (plain, plain | None)), str)
    option = typer.Option(f"--{name.replace('_', '-')}", help=f"{field.description} [{PREFIX}{name.upper()}]")
    return Annotated[kind | None, option]


@_with_settings_as_options
def serve(
    *,
    check: Annotated[bool, typer.Option("--check", help="Print the settings in effect, and stop.")] = False,
    **options: Any,
) -> None:
    """Serve the students of a store over HTTP, until SIGTERM or Ctrl-C.

    Raises: SettingsInvalid: a setting or the file of keys is wrong, the store is not there, or the address is taken.
    """
    settings = load_settings(**options)
    if check:
        for variable in unknown_variables(os.environ):
            typer.echo(f"warning: {variable}: no such setting", err=True)
        if settings.api_keys is not None:
            read_keys(settings.api_keys)
        typer.echo(orjson.dumps(shown(settings), option=orjson.OPT_INDENT_2).decode())
        return
    if not settings.store.is_dir():
        raise SettingsInvalid(f"store ({PREFIX}STORE) = {str(settings.store)!r}: no such directory")
    backend_for(settings.backend)
    logging.config.dictConfig(log_config(level=settings.log_level, style=settings.log_format))
    for variable in unknown_variables(os.environ):
        log_event(logging.WARNING, "unknown_setting", variable=variable)
    run(settings)


def run(settings: Settings) -> None:
    """Serve until stopped by a signal. Raises: SettingsInvalid: the address cannot be had."""
    # twice the series, for nothing that is asked of them
    disable_created_metrics()  # type: ignore[no-untyped-call]
    app = create_app(settings)
    listening = listen(settings.host, settings.port)
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=connection(settings, lambda: getattr(app.state, "express", None)),
        ws="none",
        interface="asgi3",
        # nothing here asks for the client's address or scheme
        proxy_headers=False,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(settings.drain_timeout_s + 2 * LAST_WORDS_S),
    )
    host, port = listening.getsockname()[:2]
    tune()
    log_event(logging.INFO, "listening", host=host, port=port, store=str(settings.store), slots=settings.slots)
    Server(config, app).run(sockets=[listening])


def tune() -> None:
    """Set what is the whole process's for many short requests on few cores."""
    keep_freed()
    # a slot's thread that has run its graph waits for the interpreter at most so long
    sys.setswitchinterval(SWITCH_S)
    # a request's texts are tokenized in the thread that has them: another pool of threads is one hop more
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # what requests leave is freed without the collector, but for errors; looking for cycles in between cost 6% of a run
    gc.set_threshold(GC_OBJECTS, *gc.get_threshold()[1:])


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises: SettingsInvalid: the host is unknown, or the port taken or not allowed."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise SettingsInvalid(f"host ({PREFIX}HOST) = {host!r}: {error.strerror}") from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise SettingsInvalid(f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}") from error
    return listening


class Server(uvicorn.Server):
    """uvicorn, which on the first signal makes the service not ready and drains it, and on the second stops at once.

    It takes new connections until the drain's delay is over.
    """

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app
        self._signalled = False
        self._draining: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and know the loop that signals post to."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        service: Service | None = getattr(self._app.state, "service", None)
        if service is not None:
            self._settling = self._loop.create_task(settle(service))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called as a signal arrives."""
        # subtle: uvicorn's own handler would raise the signal again at the end, so that a clean stop exits non-zero
        service: Service | None = getattr(self._app.state, "service", None)
        self.force_exit = self._signalled
        if self._signalled or service is None:
            self.should_exit = True
        else:
            self._loop.call_soon_threadsafe(self._drain, service)
        self._signalled = True

    def _drain(self, service: Service) -> None:
        self._draining.add(self._loop.create_task(service.drain()))
        self._loop.call_later(service.settings.drain_delay_s, self._exit)

    def _exit(self) -> None:
        self.should_exit = True


async def settle(service: Service) -> None:
    """Once the students are loaded, take what is there to stay out of the garbage collector's sight."""
    await service.students.until(lambda: service.students.ready)
    gc.collect()
    gc.freeze()
