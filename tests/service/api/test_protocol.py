"""A connection's bounds, with raw sockets against a listening server: what is slow, endless or not HTTP is ended."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from service.api.connection import connection as protocol_of
from service.api.protocol import MAX_HEADER_BYTES, BoundedProtocol, bounds_of
from service.settings import Settings

PATIENCE_S = 30
SHORT_S, LONG_S = 0.2, 3600.0
HEAD = b"POST /early HTTP/1.1\r\nhost: x\r\n"


@dataclass
class Echo:
    """Answers with the body's length; `/early` before it reads anything, `/held` when the test says so."""

    go: asyncio.Event = field(default_factory=asyncio.Event)
    asked: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, scope: Any, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        self.asked.set()
        length, more = 0, scope["path"] != "/early"
        while more:
            message = await receive()
            more = message.get("more_body", False)
            length += len(message.get("body", b""))
        if scope["path"] == "/begun":
            await send(_start(2))
        if scope["path"] in ("/held", "/begun"):
            await self.go.wait()
        if scope["path"] != "/begun":
            await send(_start(len(str(length))))
        await send({"type": "http.response.body", "body": str(length).encode()})


def _start(length: int) -> dict[str, Any]:
    return {"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(length).encode())]}


@dataclass
class Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def rest(self) -> bytes:
        """What still comes, up to the server's close."""
        async with asyncio.timeout(PATIENCE_S):
            with contextlib.suppress(ConnectionResetError):
                return await self.reader.read()
        return b""

    async def answer(self) -> tuple[int, bytes]:
        """One whole answer: its status and body."""
        async with asyncio.timeout(PATIENCE_S):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            return int(head.split()[1]), await self.reader.readexactly(length)


@dataclass
class Listening:
    app: Echo
    port: int
    state: ServerState
    exits: contextlib.AsyncExitStack

    async def connect(self) -> Connection:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.exits.callback(writer.close)
        return Connection(reader, writer)

    async def protocol(self, holds: Callable[[BoundedProtocol], object]) -> BoundedProtocol:
        """The one connection's, once something is true of it."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for one in self.state.connections:
                    if holds(one):  # type: ignore[arg-type]
                        return one  # type: ignore[return-value]
                await asyncio.sleep(0)


@pytest.fixture
async def listen() -> AsyncIterator[Callable[..., Any]]:
    """`await listen(header_timeout_s=…)`: a server of an echoing app."""
    async with contextlib.AsyncExitStack() as exits:

        async def begin(header_timeout_s: float = LONG_S, *, keep_alive_s: float = LONG_S, **bounds: Any) -> Listening:
            app, state = Echo(), ServerState()
            kind = protocol_of(Settings(header_timeout_s=header_timeout_s, **bounds), lambda: None)
            config = uvicorn.Config(app, http=kind, ws="none", log_config=None, timeout_keep_alive=keep_alive_s)  # type: ignore[arg-type]
            server = await asyncio.get_running_loop().create_server(
                lambda: kind(config, state, {}), host="127.0.0.1", port=0
            )
            exits.callback(server.close)
            return Listening(app, server.sockets[0].getsockname()[1], state, exits)

        yield begin


def problem(answer: bytes, status: int) -> dict[str, Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert int(head.split()[1]) == status
    assert b"connection: close" in head
    assert b"content-type: application/problem+json" in head
    document: dict[str, Any] = json.loads(body)
    assert document["status"] == status
    return document


async def test_a_connection_that_sends_nothing_is_closed(listen: Any) -> None:
    connection = await (await listen(SHORT_S)).connect()
    assert await connection.rest() == b""


@pytest.mark.parametrize("sent", [b"P", b"POST /x HTTP/1.1\r\n", b"POST /x HTTP/1.1\r\nhost: x\r\nx-half: y"])
async def test_half_headers_are_answered_408(listen: Any, sent: bytes) -> None:
    connection = await (await listen(SHORT_S)).connect()
    connection.send(sent)
    assert problem(await connection.rest(), 408)["code"] == "request_timeout"


async def test_line_ends_alone_are_not_a_request(listen: Any) -> None:
    connection = await (await listen(SHORT_S)).connect()
    connection.send(b"\r\n\r\n")
    assert await connection.rest() == b""


async def test_more_headers_do_not_set_the_timer_back(listen: Any) -> None:
    server = await listen()
    connection = await server.connect()
    connection.send(b"POST /x HTTP/1.1\r\n")
    protocol = await server.protocol(lambda one: one._in_headers)
    timer = protocol._timer
    connection.send(b"x: y\r\n")
    await server.protocol(lambda one: one._message_bytes > len(b"POST /x HTTP/1.1\r\n"))
    assert protocol._timer is timer


async def test_a_second_request_has_a_timer_too(listen: Any) -> None:
    connection = await (await listen(SHORT_S)).connect()
    connection.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    assert await connection.answer() == (200, b"0")
    connection.send(b"GET / HT")
    problem(await connection.rest(), 408)


async def test_no_timer_runs_while_an_answer_is_awaited_or_between_requests(listen: Any) -> None:
    server = await listen()
    connection = await server.connect()
    connection.send(b"GET /held HTTP/1.1\r\nhost: x\r\n\r\n")
    await server.app.asked.wait()
    (protocol,) = server.state.connections
    assert protocol._timer is None
    server.app.go.set()
    assert await connection.answer() == (200, b"0")
    assert protocol._timer is None
    assert protocol.timeout_keep_alive_task is not None


async def test_a_connection_is_idle_where_a_next_request_may_be_answered(listen: Any) -> None:
    server = await listen()
    connection = await server.connect()
    protocol = await server.protocol(lambda one: one.idle)
    connection.send(b"POST /held HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n")
    await server.protocol(lambda one: not one.idle)
    connection.send(b"\r\na")
    await server.app.asked.wait()
    assert not protocol.idle
    connection.send(b"b")
    await server.protocol(lambda one: one._whole)
    assert not protocol.idle
    server.app.go.set()
    assert await connection.answer() == (200, b"2")
    assert protocol.idle
    protocol.pause_writing()
    assert not protocol.idle
    protocol.resume_writing()
    assert protocol.idle
    protocol.transport.close()
    assert not protocol.idle


async def test_nor_is_it_before_a_request_is_whole_that_was_answered_early(listen: Any) -> None:
    server = await listen()
    connection = await server.connect()
    connection.send(HEAD + b"content-length: 2\r\n\r\na")
    assert await connection.answer() == (200, b"0")
    protocol = await server.protocol(lambda one: one.cycle.response_complete)
    assert not protocol.idle
    connection.send(b"b")
    await server.protocol(lambda one: one.idle)


async def test_an_idle_connection_is_closed(listen: Any) -> None:
    connection = await (await listen(keep_alive_s=SHORT_S)).connect()
    connection.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (await connection.rest()).startswith(b"HTTP/1.1 200")


async def _served(listen: Any) -> tuple[Listening, Connection, BoundedProtocol]:
    """A connection on which one request was answered, and the server's side of it."""
    server = await listen()
    connection = await server.connect()
    connection.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    assert await connection.answer() == (200, b"0")
    return server, connection, await server.protocol(lambda one: one.timeout_keep_alive_task is not None)


async def test_one_idle_timer_serves_many_requests(listen: Any) -> None:
    server, connection, protocol = await _served(listen)
    timer, since = protocol._idle_timer, protocol._idle_since
    connection.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    assert await connection.answer() == (200, b"0")
    await server.protocol(lambda one: one._idle_since > since)
    assert protocol._idle_timer is timer
    protocol._look_whether_idle()  # as if it had ended: it waits on for what is left since the last request
    assert protocol._idle_timer not in (timer, None)
    assert protocol.timeout_keep_alive_task is protocol._idle_timer


async def test_an_idle_timer_that_ends_during_a_request_closes_nothing(listen: Any) -> None:
    server, connection, protocol = await _served(listen)
    connection.send(b"GET /held HTTP/1.1\r\nhost: x\r\n\r\n")
    await server.protocol(lambda one: one.timeout_keep_alive_task is None)
    protocol._look_whether_idle()
    server.app.go.set()
    assert await connection.answer() == (200, b"0")
    await server.protocol(lambda one: one.timeout_keep_alive_task is not None)


async def test_headers_in_pieces_are_a_request(listen: Any) -> None:
    connection = await (await listen()).connect()
    for byte in b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc":
        connection.send(bytes([byte]))
        await connection.writer.drain()
    assert await connection.answer() == (200, b"3")


async def test_a_body_may_be_longer_than_headers(listen: Any) -> None:
    connection = await (await listen()).connect()
    body = b"x" * (4 * MAX_HEADER_BYTES)
    for _ in range(2):
        connection.send(b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        assert await connection.answer() == (200, str(len(body)).encode())


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nx: " + b"y" * MAX_HEADER_BYTES,
        b"GET / HTTP/1.1\r\nx: " + b"y" * MAX_HEADER_BYTES + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * (MAX_HEADER_BYTES // 4),
        b"GET /" + b"y" * MAX_HEADER_BYTES + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nx: " + b"y" * MAX_HEADER_BYTES + b"\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    ],
    ids=["endless", "one", "many", "url", "pipelined"],
)
async def test_long_headers_are_answered_431(listen: Any, sent: bytes) -> None:
    server = await listen()
    connection = await server.connect()
    connection.send(sent)
    assert problem(await connection.rest(), 431)["code"] == "request_header_fields_too_large"
    assert not server.app.asked.is_set()


async def test_what_is_not_http_is_answered_400(listen: Any) -> None:
    connection = await (await listen()).connect()
    connection.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n")
    assert problem(await connection.rest(), 400)["code"] == "bad_request"


async def test_nothing_is_written_into_an_answer_that_has_begun(listen: Any) -> None:
    server = await listen()
    connection = await server.connect()
    connection.send(b"GET /begun HTTP/1.1\r\nhost: x\r\n\r\n")
    async with asyncio.timeout(PATIENCE_S):
        begun = await connection.reader.readuntil(b"\r\n\r\n")
    assert begun.startswith(b"HTTP/1.1 200")
    connection.send(b"\x16\x03\x01\r\n\r\n")
    assert await connection.rest() == b""
    server.app.go.set()


async def test_a_rest_of_a_body_that_nobody_waits_for_is_timed(listen: Any) -> None:
    connection = await (await listen(SHORT_S)).connect()
    connection.send(HEAD + b"content-length: 10\r\n\r\n")
    assert await connection.answer() == (200, b"0")
    connection.send(b"abc")
    assert await connection.rest() == b""


async def test_a_connection_is_kept_after_the_rest_of_such_a_body(listen: Any) -> None:
    server = await listen()
    connection = await server.connect()
    connection.send(HEAD + b"content-length: 10\r\n\r\n")
    assert await connection.answer() == (200, b"0")
    connection.send(b"abc")
    await server.protocol(lambda one: one._timer is not None)
    connection.send(b"defghij")
    protocol = await server.protocol(lambda one: one.timeout_keep_alive_task is not None)
    assert protocol._timer is None
    connection.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    assert await connection.answer() == (200, b"0")


async def test_endless_trailers_end_the_connection(listen: Any) -> None:
    connection = await (await listen(max_body_bytes=1024)).connect()
    connection.send(b"POST /x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n")

    async def pour() -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                connection.send(b"x: " + b"y" * 4096 + b"\r\n")
                await connection.writer.drain()

    pouring = asyncio.create_task(pour())
    assert await connection.rest() == b""
    pouring.cancel()


async def test_a_client_that_leaves_leaves_no_timer(listen: Any) -> None:
    server = await listen()
    connection = await server.connect()
    connection.send(b"GET / HT")
    protocol = await server.protocol(lambda one: one._in_headers)
    connection.writer.close()
    async with asyncio.timeout(PATIENCE_S):
        while server.state.connections:  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0)
    assert protocol._timer is None


def test_the_bounds_are_the_settings() -> None:
    kind = type("Bounded", (BoundedProtocol,), bounds_of(Settings(header_timeout_s=7, max_body_bytes=2048)))
    assert issubclass(kind, BoundedProtocol)
    assert (kind.header_timeout_s, kind.max_message_bytes) == (7, MAX_HEADER_BYTES + 8 * 2048)
