"""The app in this process: started on a toy store, talked to over ASGI; and a student whose runs a test can hold."""

import asyncio
import contextlib
import json
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
import uvicorn
from uvicorn.server import ServerState

from service.api.app import App, create_app
from service.api.connection import Connection, connection
from service.api.conversation import Conversation
from service.api.express import Answer, Express, Visit
from service.api.loading import Served
from service.api.service import Service
from service.api.students import Family
from service.engine.item import ServedStudent
from service.errors import RunFailed
from service.runtime.heads import ExitPolicy
from service.runtime.pipeline import Pass
from service.runtime.plan import Pipeline
from service.runtime.student import Student
from service.settings import Settings, load_settings

PATIENCE_S = 30


@dataclass
class HeldRunner:
    """A student whose graphs wait until the test lets them go, and fail where a text holds a poisoned token."""

    student: Student
    poison: int | None = None
    reading: bool = False  # the stages that read one text of a pair
    running: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)

    @property
    def pad_id(self) -> int:
        return self.student.pad_id

    @property
    def pipeline(self) -> Pipeline:
        return self.student.apart.pipeline if self.reading and self.student.apart else self.student.pipeline

    def begin(self, feeds: Mapping[str, np.ndarray], policies: ExitPolicy | Sequence[ExitPolicy]) -> Pass:
        return Pass(self.pipeline, self._run_stage, feeds, policies)

    def _run_stage(
        self, stage_index: int, feeds: Mapping[str, np.ndarray], outputs: Sequence[str]
    ) -> Mapping[str, np.ndarray]:
        self.running.set()
        assert self.go.wait(PATIENCE_S), "the test never let the batch go"
        if self.poison is not None and (feeds.get("input_ids", np.zeros(1)) == self.poison).any():
            raise RunFailed("the graph broke on this batch")
        return self.student.run_stage(stage_index, feeds, outputs)


@dataclass
class Running:
    """A started app: its working parts and a client."""

    service: Service
    client: httpx.AsyncClient

    async def post(self, path: str, document: Any) -> httpx.Response:
        return await self.client.post(path, json=document)

    async def metric(self, line: str) -> float | None:
        """The value of one series of `/metrics`, by its name and labels as they are written."""
        for row in (await self.client.get("/metrics")).text.splitlines():
            if row.startswith(line + " "):
                return float(row.rsplit(" ", 1)[1])
        return None

    async def queued(self, items: int) -> None:
        """Let the loop turn until so many items wait in the engine."""
        async with asyncio.timeout(PATIENCE_S):
            while f"queued={items} " not in repr(self.service.engine):  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(0)

    def hold(self, name: str, *, poison: int | None = None) -> HeldRunner:
        """Put a student's production version behind a runner that the test controls."""
        family = self.service.students.families[name]
        served = family.aliases["production"]
        runner = HeldRunner(served.student, poison)
        handle = ServedStudent(name=name, version=served.version, student=runner)
        self._put(family, replace(served, handle=handle))
        return runner

    def hold_reading(self, name: str) -> HeldRunner:
        """The same of the stages that read one text of a pair; what they give is joined as ever."""
        family = self.service.students.families[name]
        served = family.aliases["production"]
        runner = HeldRunner(served.student, reading=True)
        reading = ServedStudent(name=name, version=served.version, student=runner)
        self._put(family, replace(served, reading=reading))
        return runner

    def _put(self, family: Family, served: Served) -> None:
        aliases = {**family.aliases, "production": served}
        self.service.students.families[family.name] = Family(family.name, aliases, family.pointed, family.refused)


Start = Callable[..., contextlib.AbstractAsyncContextManager[Running]]


def point(store: Path, name: str, **aliases: int) -> None:
    """Write a student's alias file."""
    document = {"schema": 1, "aliases": {alias: {"version": version} for alias, version in aliases.items()}}
    aside = store / name / ".aliases.new"
    aside.write_text(json.dumps(document | {"rules": {}}))
    aside.replace(store / name / "aliases.json")


@pytest.fixture
def move_alias() -> Callable[..., None]:
    return point


@contextlib.asynccontextmanager
async def started(settings: Settings, *, wait: bool = True) -> AsyncIterator[Running]:
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        service: Service = app.state.service
        if wait:
            async with asyncio.timeout(PATIENCE_S):
                await service.students.until(lambda: service.ready)
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            yield Running(service, client)


@pytest.fixture
def start(store_dir: Path) -> Start:
    """`async with start(**settings) as app`: a started app on the toy store; `wait=False` does not wait for ready."""

    def begin(*, wait: bool = True, **options: Any) -> contextlib.AbstractAsyncContextManager[Running]:
        # one backend by name: `auto` would load every student again once the others are measured
        plain = {"store": store_dir, "slots": 1, "backend": "onnxruntime", "drain_timeout_s": 5}
        return started(load_settings(**plain | options), wait=wait)

    return begin


@pytest.fixture(scope="session")
def polyglot_store(tmp_path_factory: pytest.TempPathFactory, build_bundle: Callable[..., Path]) -> Path:
    """`toy`, `toy-embed`, `judge` (rank), and, as canary alone, `twins` (pairs). Copy it to change it."""
    store = tmp_path_factory.mktemp("polyglot") / "store"
    for name, task, pairs in (
        ("toy", "classify", "none"),
        ("toy-embed", "embed", "none"),
        ("judge", "rank", "joint"),
        ("twins", "classify", "joint"),
    ):
        build_bundle(store / name / "1", name=name, task=task, pairs=pairs)
        point(store, name, **{"canary" if name == "twins" else "production": 1})
    return store


@pytest.fixture
async def app(start: Start) -> AsyncIterator[Running]:
    """The app with its defaults, ready."""
    async with start() as running:
        yield running


TEXTS: list[Any] = ["this film is great", "", "good " * 100, "é", "\x00", 5, None, ["it was bad", "is it?"], {}]
FIELDS: dict[str, list[Any]] = {
    "inputs": [*TEXTS, [], ["a", "b"], ["a", 5], [["a", "b"], ["c", "d"]], ["good"] * 70, TEXTS],
    "query": ["good", "", 1],
    "passages": [["bad", {"id": "p", "text": "good"}], [], "x", [{"id": 1}], ["a"] * 80],
    "model": ["toy", "toy@1", "toy@production", "toy-embed", "nobody", "", "m" * 300, 3, None],
    "exit": ["default", "never", "maybe", {"risk": 0.02}, {"risk": 2}, None],
    "truncate": ["end", "start", "error", "chunk", "middle"],
    "on_error": ["fail", "item", "x"],
    "deadline_ms": [60_000, 0.0001, -1, "1"],
    "top_k": [1, 2, 0, 1.5, 99],
    "encoding": ["float", "base64", "int8", "binary", "hex"],
    "normalize": [True, False, 0],
    "dimensions": [3, 0, 1 << 20],
    "unknown": [1],
}
VARYING = {
    "date",
    "content-length",
    "x-request-id",
    "x-queue-time",
    "x-inference-time",
    "x-tokenization-time",
    "x-total-time",
}


def _random_bodies(paths: Sequence[str], count: int) -> Iterator[tuple[str, bytes]]:
    chance = random.Random(0)
    for number in range(count):
        path = chance.choice(paths)
        usual = ("query", "passages") if path.endswith("/rank") else ("inputs",)
        names = [name for name in usual if chance.random() < 0.95]
        names += chance.sample(sorted(FIELDS), chance.choice((0, 0, 1, 2, 4)))
        body = orjson.dumps({name: chance.choice(FIELDS[name]) for name in names})
        yield path, body[:-1] if number % 25 == 0 else body


@pytest.fixture
def random_bodies() -> Callable[[Sequence[str], int], Iterator[tuple[str, bytes]]]:
    """Paths and bodies, right and wrong, the same ones each time."""
    return _random_bodies


def _told(status: int, headers: Mapping[str, str], body: bytes) -> tuple[int, dict[str, str], Any]:
    document = orjson.loads(body)
    document.pop("timing_ms", None)
    return status, {name: "" if name in VARYING else value for name, value in headers.items()}, document


@pytest.fixture
def told() -> Callable[[int, Mapping[str, str], bytes], tuple[int, dict[str, str], Any]]:
    """Status, headers and body of an answer, but for moments, lengths and ids."""
    return _told


class CountedExpress(Express):
    """Counts what it takes."""

    taken = 0

    def take(self, data: bytes, answer: Answer) -> Visit | None:
        visit = super().take(data, answer)
        self.taken += visit is not None
        return visit


@dataclass(frozen=True)
class RawAnswer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """Of a problem."""
        return str(orjson.loads(self.body)["code"])


@dataclass
class RawClient:
    """A connection to a listening app."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def ask(self, path: str, body: Any, *lines: bytes) -> RawAnswer:
        """Post, in one piece."""
        self.send(request(path, body, *lines))
        return await self.answer()

    async def answer(self) -> RawAnswer:
        async with asyncio.timeout(PATIENCE_S):
            first, *lines = (await self.reader.readuntil(b"\r\n\r\n"))[:-4].decode("latin-1").split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines)
            body = await self.reader.readexactly(int(headers["content-length"]))
        return RawAnswer(int(first.split()[1]), headers, body)

    async def rest(self) -> bytes:
        """What still comes, up to the server's close."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.reader.read()


def request(path: str, body: Any, *lines: bytes) -> bytes:
    """A plain POST, with some headers more."""
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    head = (b"POST %b HTTP/1.1" % path.encode(), b"host: x", b"content-length: %d" % len(raw), *lines, b"", raw)
    return b"\r\n".join(head)


@dataclass
class Listening:
    """An app that listens; `express` counts what takes the short road."""

    running: Running
    express: CountedExpress | None
    port: int
    state: ServerState
    exits: contextlib.AsyncExitStack

    request = staticmethod(request)

    async def connect(self) -> RawClient:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.exits.callback(writer.close)
        return RawClient(reader, writer)

    async def until(self, holds: Callable[[], object]) -> None:
        """Let the loop turn until something is true."""
        async with asyncio.timeout(PATIENCE_S):
            while not holds():  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(0)

    async def protocol(self, holds: Callable[[Connection], object] = lambda _: True) -> Connection:
        """The server's side of the one connection, once something is true of it."""
        await self.until(lambda: any(holds(one) for one in self.state.connections))  # type: ignore[arg-type]
        (one,) = self.state.connections
        assert isinstance(one, Connection)
        return one

    async def held(self, client: RawClient, *, body: Any = None, lines: tuple[bytes, ...] = ()) -> HeldRunner:
        """Ask for what is not answered until the test lets it go."""
        runner = self.running.hold("toy")
        client.send(request("/v1/classify", body or {"inputs": "good"}, *lines))
        assert await asyncio.to_thread(runner.running.wait, PATIENCE_S)
        return runner


@pytest.fixture
def serve(start: Start) -> Callable[..., contextlib.AbstractAsyncContextManager[Listening]]:
    """`async with serve(keep_alive_s=..., **settings) as server`: a started app behind a socket."""

    @contextlib.asynccontextmanager
    async def begin(keep_alive_s: float = 3600.0, **options: Any) -> AsyncIterator[Listening]:
        async with start(**options) as running, contextlib.AsyncExitStack() as exits:
            app: Any = running.client._transport.app  # type: ignore[attr-defined]
            express, state = _counted(app, running.service), ServerState()
            kind = connection(running.service.settings, lambda: app.state.express)
            config = uvicorn.Config(
                app,
                http=kind,
                ws="none",
                lifespan="off",
                log_config=None,
                interface="asgi3",
                timeout_keep_alive=keep_alive_s,  # type: ignore[arg-type]
            )
            server = await asyncio.get_running_loop().create_server(
                lambda: kind(config, state, {}), host="127.0.0.1", port=0
            )
            exits.callback(server.close)
            yield Listening(running, express, server.sockets[0].getsockname()[1], state, exits)

    return begin


def _counted(app: App, service: Service) -> CountedExpress | None:
    """In place of the app's own short road, where it has one."""
    if app.state.express is not None:
        assert isinstance(app.front, Conversation)
        app.state.express = CountedExpress(service, app.front, app.state.express._routes)
    counted: CountedExpress | None = app.state.express
    return counted


@pytest.fixture
async def server(serve: Callable[..., contextlib.AbstractAsyncContextManager[Listening]]) -> AsyncIterator[Listening]:
    """A listening app with its defaults."""
    async with serve() as listening:
        yield listening
