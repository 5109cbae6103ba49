"""An answer in one write is the answer that uvicorn's own `send` writes."""

import asyncio
from typing import Any

import h11
import pytest
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from service.api.access import Access
from service.api.conversation import Conversation, Reply
from service.api.wire import SCOPE_KEY, header_lines, ok_rest, reply_at_once, wire_of
from service.metrics import Metrics
from service.settings import load_settings

HEADERS = [(b"x-queue-time", b"1.000"), (b"x-total-time", b"2.500")]
BODY = b'{"results":[]}'


class Connection:
    """A transport that writes down, and one exchange on it."""

    def __init__(self, *, keep_alive: bool = True) -> None:
        self.written: list[bytes] = []
        self.closed = False
        self.ended = 0
        self.cycle = RequestResponseCycle(
            scope={"type": "http", "method": "POST"},  # type: ignore[typeddict-item]
            transport=self,  # type: ignore[arg-type]
            flow=FlowControl(self),  # type: ignore[arg-type]
            logger=None,  # type: ignore[arg-type]
            access_logger=None,  # type: ignore[arg-type]
            access_log=False,
            default_headers=[(b"date", b"Sat, 21 Nov 2026 09:12:56 GMT")],
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=keep_alive,
            on_response=self._on_response,
        )

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def close(self) -> None:
        self.closed = True

    def _on_response(self) -> None:
        self.ended += 1

    def parsed(self) -> tuple[int, dict[bytes, bytes], bytes]:
        client = h11.Connection(h11.CLIENT)
        client.send(h11.Request(method="POST", target="/", headers=[("host", "x"), ("content-length", "0")]))
        client.send(h11.EndOfMessage())
        client.receive_data(b"".join(self.written))
        response, body = client.next_event(), b""
        assert isinstance(response, h11.Response)
        while isinstance(event := client.next_event(), h11.Data):
            body += bytes(event.data)
        assert isinstance(event, h11.EndOfMessage)
        return response.status_code, dict(response.headers), body


@pytest.mark.parametrize("keep_alive", [True, False])
async def test_the_same_answer(keep_alive: bool) -> None:
    ours, theirs = Connection(keep_alive=keep_alive), Connection(keep_alive=keep_alive)
    assert reply_at_once(ours.cycle, b"an-id", HEADERS, BODY)
    described = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(BODY)),
        (b"x-request-id", b"an-id"),
        *HEADERS,
    ]
    await theirs.cycle.send({"type": "http.response.start", "status": 200, "headers": described})
    await theirs.cycle.send({"type": "http.response.body", "body": BODY})
    assert ours.parsed() == theirs.parsed()
    assert len(ours.written) == 1
    states = [
        (
            one.closed,
            one.ended,
            one.cycle.response_started,
            one.cycle.response_complete,
            one.cycle.message_event.is_set(),
        )
        for one in (ours, theirs)
    ]
    assert states[0] == states[1]


def test_what_follows_a_status_line() -> None:
    rest = ok_rest(b"an-id", HEADERS, BODY)
    head, _, body = rest.partition(b"\r\n\r\n")
    assert head.split(b"\r\n")[:3] == [b"content-type: application/json", b"content-length: 14", b"x-request-id: an-id"]
    assert (head.endswith(header_lines(HEADERS)[:-2]), body) == (True, BODY)
    assert ok_rest(b"an-id", (), b"").endswith(b"x-request-id: an-id\r\n\r\n")


async def test_a_scope_gives_its_connection_away() -> None:
    connection = Connection()
    scope: dict[str, Any] = {SCOPE_KEY: connection.cycle}
    assert wire_of(scope) is connection.cycle
    assert wire_of(scope) is None


async def test_another_server() -> None:
    assert not reply_at_once(None, b"an-id", HEADERS, BODY)


@pytest.mark.parametrize("state", ["slow", "gone", "begun"])
async def test_a_connection_that_cannot_take_it_whole(state: str) -> None:
    connection = Connection()
    if state == "slow":
        connection.cycle.flow.pause_writing()
    connection.cycle.disconnected = state == "gone"
    connection.cycle.response_started = state == "begun"
    assert not reply_at_once(connection.cycle, b"an-id", HEADERS, BODY)
    assert (connection.written, connection.ended) == ([], 0)


async def test_the_conversation_writes_a_direct_routes_answer_so() -> None:
    connection, metrics = Connection(), Metrics()

    async def answer(*_: Any) -> Reply:
        return Reply(BODY, HEADERS)

    async def nobody(*_: Any) -> None:
        raise AssertionError("it was answered")

    access = Access(load_settings(slots=1), metrics)
    conversation = Conversation(nobody, metrics=metrics, access=access, direct={"/here": answer})
    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": "/here", SCOPE_KEY: connection.cycle}
    await conversation(scope | {"headers": [(b"x-request-id", b"mine")]}, nobody, nobody)
    status, headers, body = connection.parsed()
    assert (status, headers[b"x-request-id"], body) == (200, b"mine", BODY)
    assert metrics.requests.labels("/here", "", "", "200").value == 1


async def test_what_is_no_request_passes_by() -> None:
    passed: list[str] = []

    async def app(scope: Any, *_: Any) -> None:
        passed.append(scope["type"])

    metrics = Metrics()
    conversation = Conversation(app, metrics=metrics, access=Access(load_settings(slots=1), metrics), direct={})
    await conversation({"type": "lifespan"}, app, app)
    assert passed == ["lifespan"]
