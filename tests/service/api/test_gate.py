"""The gate refuses what the engine refuses, in its words, and nothing else."""

import asyncio
import contextlib
import json
import logging
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest
import uvicorn
from uvicorn.server import ServerState

from service.api import gate as gate_module
from service.api.access import Access
from service.api.connection import connection
from service.api.dialects import error_response
from service.api.gate import Gate
from service.api.heads import Head
from service.api.logs import LOGGER
from service.engine.item import ServedStudent
from service.errors import DeadlineExceeded, Overloaded, ServiceError, UnknownModel
from service.metrics import Metrics
from service.settings import load_settings

PATIENCE_S = 30
PATH = "/v1/classify"
WHY = "too many items are waiting"


@dataclass
class Engine:
    """Says of every request what the test wants, and writes down what it was asked."""

    error: ServiceError | None = field(default_factory=lambda: Overloaded(WHY, retry_after_s=0.25))
    asked: list[tuple[ServedStudent, int, float | None]] = field(default_factory=list)

    def check(self, student: ServedStudent, items: int, *, deadline: float | None = None) -> None:
        self.asked.append((student, items, deadline))
        if self.error is not None:
            raise self.error


@dataclass
class Guarded:
    """A gate that was closed for the student `toy`."""

    gate: Gate
    engine: Engine
    student: ServedStudent
    metrics: Metrics

    def ask(self, body: Any, path: str = PATH, **headers: str) -> bytes | None:
        raw = body if isinstance(body, bytes) else orjson.dumps(body)
        own = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
        return self.gate.refusal(Head(path, len(raw), own, {}), raw, b"the-id", 100.0)


def guarded(student: Any = None, **settings: Any) -> Guarded:
    metrics, engine = Metrics(), Engine()
    loaded = load_settings(store="unused", max_items=8, **settings)
    gate = Gate(loaded, metrics, access=Access(loaded, metrics), check=engine.check)
    student = ServedStudent(name="toy", version=1, student=student)
    gate.close(PATH, "toy", lambda: student)
    return Guarded(gate, engine, student, metrics)


@pytest.fixture
def hold_s(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(gate_module, "HOLD_S", 0.01)
    return 0.01


async def test_the_answer_is_the_ordinary_one() -> None:
    at = guarded()
    rest = at.ask({"model": "toy", "inputs": "x"})
    assert rest is not None
    head, _, body = rest.partition(b"\r\n\r\n")
    assert at.engine.error is not None
    ordinary = error_response({"path": PATH}, at.engine.error)
    assert body == ordinary.body
    assert head.split(b"\r\n") == [b"%b: %b" % one for one in ordinary.raw_headers] + [b"x-request-id: the-id"]
    assert at.engine.asked == [(at.student, 1, None)]
    assert at.metrics.requests.labels(PATH, "toy", "1", "429").value == 1
    assert sum(at.metrics.request_seconds.labels(PATH, "toy").counts) == 1


@pytest.mark.parametrize(
    ("body", "headers", "deadline"),
    [
        ({}, {}, None),
        ({"deadline_ms": 50}, {}, 100.05),
        ({"deadline_ms": 50.0}, {"x_request_deadline_ms": "7"}, 100.05),
        ({}, {"x_request_deadline_ms": "70"}, 100.07),
    ],
)
async def test_the_deadline_is_the_requests(body: Any, headers: dict[str, str], deadline: float | None) -> None:
    at = guarded()
    assert at.ask({"model": "toy", "inputs": ["x", "y"]} | body, **headers) is not None
    ((_, items, asked),) = at.engine.asked
    assert items == 2
    assert asked == (None if deadline is None else pytest.approx(deadline))


async def test_the_settings_deadline_counts_where_none_is_given() -> None:
    at = guarded(default_deadline_ms=2000)
    assert at.ask({"model": "toy", "inputs": "x"}) is not None
    assert at.engine.asked[0][2] == pytest.approx(102.0)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"model":"toy","inputs":"' + b"x" * gate_module.MAX_BODY_BYTES + b'"}',
        {"model": "toy"},
        {"model": "toy", "inputs": []},
        {"model": "toy", "inputs": ["x"] * 9},
        {"model": "toy", "inputs": 5},
        {"model": 5, "inputs": "x"},
        {"model": "toy-embed", "inputs": "x"},
        {"inputs": "x"},
        {"inputs": '"model":"toy"'},
        {"model": "toy", "inputs": "x", "deadline_ms": True},
        {"model": "toy", "inputs": "x", "deadline_ms": "5"},
        {"model": "toy", "inputs": "x", "deadline_ms": 0.5},
        {"model": "toy", "inputs": "x", "deadline_ms": 1e9},
    ],
)
async def test_what_is_not_plain_is_passed_on_unasked(body: Any) -> None:
    at = guarded()
    assert at.ask(body) is None
    assert at.engine.asked == []


async def test_so_are_priorities_wrong_deadlines_and_other_paths() -> None:
    at, body = guarded(), {"model": "toy", "inputs": "x"}
    assert at.ask(body, x_priority="high") is None
    assert at.ask(body, x_request_deadline_ms="soon") is None
    assert at.ask(body, "/v1/embed") is None
    assert at.engine.asked == []


@pytest.mark.parametrize("error", [None, DeadlineExceeded("late")])
async def test_what_the_engine_does_not_shed_is_passed_on(error: ServiceError | None) -> None:
    at = guarded()
    at.engine.error = error
    assert at.ask({"model": "toy", "inputs": "x"}) is None
    assert at.metrics.requests.labels(PATH, "toy", "1", "429").value == 0


async def test_whatever_comes_only_what_is_shed_is_refused() -> None:
    """Random bodies: a refusal means that the engine was asked about that student and those items, and shed them."""
    at, chance = guarded(), random.Random(0)
    values: dict[str, list[Any]] = {
        "model": ["toy", "toy", "toy@1", "other", None, 3, ["toy"]],
        "inputs": ["x", "", ["a", "b"], [["a", "b"]], [], {}, None, 7, '{"model":"toy"}'],
        "deadline_ms": [None, 1, 60_000, 0, -1, "1", True],
        "exit": ["never", {"model": "toy"}],
    }
    refused = 0
    for _ in range(2000):
        body = {name: chance.choice(values[name]) for name in values if chance.random() < 0.8}
        at.engine.error = Overloaded(WHY, retry_after_s=0.25) if chance.random() < 0.5 else None
        before = len(at.engine.asked)
        if at.ask(body) is not None:
            refused += 1
            (asked,) = at.engine.asked[before:]
            assert at.engine.error is not None and body["model"] == "toy" and asked[0] is at.student
            assert asked[1] == (1 if isinstance(body["inputs"], str) else len(body["inputs"]))
    assert refused > 50
    assert at.metrics.requests.labels(PATH, "toy", "1", "429").value == refused


async def test_it_opens_when_nothing_is_refused_any_more(hold_s: float) -> None:
    at = guarded()
    assert at.gate.closed
    async with asyncio.timeout(PATIENCE_S):
        while at.gate.closed:  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(hold_s)
    assert at.ask({"model": "toy", "inputs": "x"}) is None


async def test_it_stays_closed_while_requests_are_refused(hold_s: float) -> None:
    at, looked = guarded(), [0]
    student = at.student

    def find() -> ServedStudent:
        looked[0] += 1
        assert at.ask({"model": "again", "inputs": "x"}) is not None
        return student

    at.gate.close(PATH, "again", lambda: student)
    at.gate._closed[(PATH, "again")].find = find
    async with asyncio.timeout(PATIENCE_S):
        while looked[0] < 3:
            assert at.ask({"model": "again", "inputs": "x"}) is not None
            await asyncio.sleep(0)


@pytest.mark.parametrize("gone", [True, False])
async def test_it_opens_when_the_name_means_another_student(hold_s: float, gone: bool) -> None:
    at = guarded()
    other = ServedStudent(name="toy", version=2, student=None)  # type: ignore[arg-type]

    def find() -> ServedStudent:
        if gone:
            raise UnknownModel("no such student")
        return other

    at.gate._closed[(PATH, "toy")].find = find
    async with asyncio.timeout(PATIENCE_S):
        while at.ask({"model": "toy", "inputs": "x"}) is not None:  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0)
    assert not at.gate.closed


async def test_where_keys_are_asked_for_or_lines_are_logged_it_never_closes(tmp_path: Any) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"schema": 1, "keys": [{"name": "a", "sha256": "0" * 64}]}))
    assert not guarded(api_keys=keys).gate.closed
    level = LOGGER.level
    LOGGER.setLevel(logging.DEBUG)
    try:
        assert not guarded().gate.closed
    finally:
        LOGGER.setLevel(level)


@dataclass
class Client:
    """A keep-alive connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, body: dict[str, Any], *, path: str = PATH) -> None:
        raw = orjson.dumps(body)
        head = b"POST %b HTTP/1.1\r\nhost: x\r\nx-request-id: mine\r\ncontent-length: %d\r\n\r\n"
        self.writer.write(head % (path.encode(), len(raw)) + raw)

    async def answer(self) -> tuple[int, dict[str, str], Any]:
        async with asyncio.timeout(PATIENCE_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
            body = await self.reader.readexactly(int(headers["content-length"]))
        return int(head.split()[1]), headers, json.loads(body)


@dataclass
class Listening:
    app: Any
    port: int
    exits: contextlib.AsyncExitStack

    async def connect(self) -> Client:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.exits.callback(writer.close)
        return Client(reader, writer)

    @property
    def gate(self) -> Gate:
        gate: Gate = self.app.client._transport.app.state.express.gate
        return gate


@pytest.fixture
async def listening(start: Any) -> AsyncIterator[Listening]:
    """A real server on a real port, of a student that may have two items waiting."""
    async with contextlib.AsyncExitStack() as exits:
        running = await exits.enter_async_context(start(max_items=2, max_queue_items=2))
        app = running.client._transport.app
        kind = connection(running.service.settings, lambda: app.state.express)
        config, state = uvicorn.Config(app, http=kind, ws="none", log_config=None), ServerState()
        server = await asyncio.get_running_loop().create_server(lambda: kind(config, state, {}), "127.0.0.1", 0)
        exits.callback(server.close)
        yield Listening(running, server.sockets[0].getsockname()[1], exits)


async def test_over_http_a_full_student_refuses_early_and_then_answers(listening: Listening) -> None:
    runner = listening.app.hold("toy")
    body = {"model": "toy", "inputs": "good"}
    runs, waits, client = [await listening.connect() for _ in range(3)]
    runs.send(body)
    await asyncio.to_thread(runner.running.wait, PATIENCE_S)
    waits.send(body | {"inputs": ["good", "bad"]})
    await listening.app.queued(2)
    answers = []
    for _ in range(4):
        client.send(body)
        answers.append(await client.answer())
        assert listening.gate.closed
    for status, headers, document in answers:
        assert (status, document) == (429, answers[0][2])
        assert (headers["x-request-id"], headers.keys()) == ("mine", answers[0][1].keys())
    counted = 'understudy_requests_total{endpoint="/v1/classify",model="toy",status="429",version="1"}'
    assert await listening.app.metric(counted) == 4
    assert await listening.app.metric('understudy_shed_total{model="toy",reason="overloaded"}') == 4
    runner.go.set()
    assert [(await one.answer())[0] for one in (runs, waits)] == [200, 200]
    client.send(body)
    assert (await client.answer())[0] == 200


async def test_another_student_is_not_refused(listening: Listening) -> None:
    runner = listening.app.hold("toy")
    full, other = {"model": "toy", "inputs": ["good", "bad"]}, {"model": "toy-embed", "inputs": "x"}
    clients = [await listening.connect() for _ in range(3)]
    clients[0].send(full)
    await asyncio.to_thread(runner.running.wait, PATIENCE_S)
    clients[0] = await listening.connect()
    clients[0].send(full)
    await listening.app.queued(2)
    clients[1].send(full)
    assert (await clients[1].answer())[0] == 429
    assert listening.gate.closed
    clients[2].send(other, path="/v1/embed")
    runner.go.set()
    assert (await clients[2].answer())[0] == 200
