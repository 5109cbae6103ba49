"""Connections on which some requests are answered at once and others by uvicorn: order, ends and timers."""

from typing import Any

import pytest
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT

from service.api.connection import Connection, connection
from service.api.protocol import MAX_HEADER_BYTES
from service.errors import Draining
from service.settings import Settings

SHORT_S = 0.2
ASK = {"inputs": "good"}
GET = b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n"


def _ask(server: Any, name: str, **fields: Any) -> bytes:
    data: bytes = server.request("/v1/classify", ASK | fields, b"x-request-id: " + name.encode())
    return data


async def _ids(client: Any, count: int) -> list[tuple[int, str]]:
    answers = [await client.answer() for _ in range(count)]
    return [(answer.status, answer.headers["x-request-id"]) for answer in answers]


class TestOrder:
    """Answers come in the order of their requests."""

    async def test_one_that_comes_while_another_is_under_way(self, server: Any) -> None:
        client = await server.connect()
        runner = await server.held(client, lines=(b"x-request-id: first",))
        client.send(_ask(server, "second"))
        await server.protocol(lambda one: one._behind)
        assert server.express.taken == 1
        runner.go.set()
        assert await _ids(client, 2) == [(200, "first"), (200, "second")]
        assert server.express.taken == 2

    async def test_half_of_one(self, server: Any) -> None:
        client = await server.connect()
        runner = await server.held(client, lines=(b"x-request-id: first",))
        second = _ask(server, "second")
        client.send(second[:40])
        await server.protocol(lambda one: one._behind)
        runner.go.set()
        assert await _ids(client, 1) == [(200, "first")]
        protocol = await server.protocol(lambda one: not one._behind)
        assert (protocol._timer is None, protocol.timeout_keep_alive_task) == (False, None)
        client.send(second[40:])
        assert await _ids(client, 1) == [(200, "second")]
        assert server.express.taken == 1
        client.send(_ask(server, "third"))
        assert (await _ids(client, 1), server.express.taken) == ([(200, "third")], 2)

    async def test_several_that_come_in_pieces(self, server: Any) -> None:
        client = await server.connect()
        runner = await server.held(client, lines=(b"x-request-id: 0",))
        rest = b"".join(_ask(server, str(number)) for number in range(1, 6)) + GET
        for place in range(0, len(rest), 50):
            client.send(rest[place : place + 50])
            await server.protocol(lambda one, least=place: len(one._behind) > least)
        runner.go.set()
        assert await _ids(client, 6) == [(200, str(number)) for number in range(6)]
        assert (await client.answer()).status == 200

    async def test_two_in_one_read(self, server: Any) -> None:
        client = await server.connect()
        client.send(_ask(server, "first") + _ask(server, "second"))
        assert await _ids(client, 2) == [(200, "first"), (200, "second")]
        assert server.express.taken == 0

    async def test_short_and_long_in_turn(self, server: Any) -> None:
        client = await server.connect()
        for number in range(3):
            client.send(_ask(server, f"{number}"))
            assert await _ids(client, 1) == [(200, f"{number}")]
            client.send(GET)
            assert (await client.answer()).status == 200
        assert (server.express.taken, server.state.total_requests) == (3, 6)

    async def test_one_behind_a_long_one(self, server: Any) -> None:
        client = await server.connect()
        runner = server.running.hold("toy")
        first = _ask(server, "first")
        client.send(first[:10])
        await server.protocol(lambda one: not one._whole)
        client.send(first[10:])
        await server.protocol(lambda one: one._whole)
        client.send(_ask(server, "second"))
        await server.protocol(lambda one: one.pipeline)
        runner.go.set()
        assert await _ids(client, 2) == [(200, "first"), (200, "second")]
        assert server.express.taken == 0

    async def test_one_behind_an_error(self, server: Any) -> None:
        client = await server.connect()
        runner = await server.held(client, body=ASK | {"deadline_ms": 600_000}, lines=(b"x-request-id: first",))
        client.send(_ask(server, "second", model="nobody"))
        await server.protocol(lambda one: one._behind)
        engine = server.running.service.engine
        for request in tuple(engine._ledger.requests):
            engine._expire(request)
        assert await _ids(client, 2) == [(504, "first"), (404, "second")]
        runner.go.set()

    async def test_what_is_not_http_is_answered_after_what_is_under_way(self, server: Any) -> None:
        client = await server.connect()
        runner = await server.held(client)
        client.send(b"\x16\x03\x01\x02\r\n")
        await server.protocol(lambda one: one._behind)
        runner.go.set()
        assert (await client.answer()).status == 200
        assert (await client.answer()).code == "bad_request"
        assert await client.rest() == b""


async def test_not_everything_is_kept_that_comes_behind(server: Any) -> None:
    client = await server.connect()
    runner = await server.held(client, lines=(b"x-request-id: first",))
    second = server.request("/v1/classify", b" " * (8 * HIGH_WATER_LIMIT) + b'{"inputs": "x"}', b"x-request-id: second")
    client.send(second)
    protocol = await server.protocol(lambda one: one.flow.read_paused)
    assert HIGH_WATER_LIMIT < len(protocol._behind) < len(second)
    runner.go.set()
    assert await _ids(client, 2) == [(200, "first"), (200, "second")]
    assert not protocol.flow.read_paused


class TestEnds:
    """The server stops, or a connection ends."""

    async def test_an_idle_connection_is_closed(self, server: Any) -> None:
        client = await server.connect()
        assert (await client.ask("/v1/classify", ASK)).status == 200
        (await server.protocol()).shutdown()
        assert await client.rest() == b""

    async def test_one_with_a_request_under_way_after_its_answer(self, server: Any) -> None:
        client = await server.connect()
        runner = await server.held(client)
        client.send(GET)
        protocol = await server.protocol(lambda one: one._behind)
        protocol.shutdown()
        runner.go.set()
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await client.rest() == b""
        assert (protocol._timer, server.state.total_requests) == (None, 1)

    async def test_one_with_a_long_request_under_way_too(self, server: Any) -> None:
        client = await server.connect()
        runner = server.running.hold("toy")
        client.send(server.request("/v1/classify?x", ASK))
        protocol = await server.protocol(lambda one: one.cycle is not None)
        protocol.shutdown()
        runner.go.set()
        assert (await client.answer()).headers["connection"] == "close"
        assert await client.rest() == b""

    async def test_nothing_is_taken_on_a_connection_that_is_being_closed(self, server: Any) -> None:
        await server.connect()
        protocol = await server.protocol()
        protocol.transport.close()
        protocol.data_received(_ask(server, "late"))
        assert server.express.taken == 0

    async def test_nothing_is_written_to_it(self, server: Any) -> None:
        client = await server.connect()
        runner = await server.held(client)
        protocol = await server.protocol()
        protocol.transport.close()
        runner.go.set()
        assert await client.rest() == b""
        assert (protocol._visit, server.state.total_requests) == (None, 0)
        assert server.running.service.door.inside == 0

    async def test_nor_in_the_moment_before_its_end_is_known(self, server: Any) -> None:
        client = await server.connect()
        runner = await server.held(client)
        protocol = await server.protocol()
        protocol.transport.close()
        server.express._fail(protocol._visit, Draining("the service is stopping"))
        assert (protocol._visit, server.state.total_requests) == (None, 0)
        assert await client.rest() == b""
        runner.go.set()
        assert server.running.service.door.inside == 0

    async def test_a_client_that_says_that_it_sends_no_more_is_gone(self, server: Any) -> None:
        client = await server.connect()
        runner = await server.held(client)
        client.writer.write_eof()
        assert await client.rest() == b""
        await server.until(lambda: server.running.service.door.inside == 0)
        runner.go.set()


async def test_a_client_that_does_not_read_is_left_to_uvicorn(server: Any) -> None:
    client = await server.connect()
    protocol = await server.protocol()
    protocol.pause_writing()
    client.send(_ask(server, "first"))
    await server.protocol(lambda one: one.cycle is not None)
    assert server.express.taken == 0
    protocol.resume_writing()
    assert await _ids(client, 1) == [(200, "first")]
    client.send(_ask(server, "second"))
    assert (await _ids(client, 1), server.express.taken) == ([(200, "second")], 1)


class TestHeadAndBodyApart:
    """As many clients send them."""

    async def send_head(self, server: Any, client: Any, name: str = "first") -> tuple[Connection, bytes]:
        """Send the head of a request; returns the server's side, and the body."""
        head, _, body = _ask(server, name).partition(b"\r\n\r\n")
        client.send(head + b"\r\n\r\n")
        return await server.protocol(lambda one: one._head), body

    async def test_the_short_road_takes_them(self, server: Any) -> None:
        client = await server.connect()
        for taken, name in enumerate(("first", "second"), 1):
            protocol, body = await self.send_head(server, client, name)
            assert (protocol._timer is None, protocol.timeout_keep_alive_task) == (False, None)
            client.send(body)
            assert await _ids(client, 1) == [(200, name)]
            assert (server.express.taken, protocol._timer, protocol._head) == (taken, None, b"")

    async def test_a_body_in_two_pieces_goes_the_long_road(self, server: Any) -> None:
        client = await server.connect()
        _, body = await self.send_head(server, client)
        client.send(body[:5])
        await server.protocol(lambda one: one.cycle is not None)
        client.send(body[5:])
        assert await _ids(client, 1) == [(200, "first")]
        assert server.express.taken == 0

    async def test_so_does_one_with_another_request_behind_it(self, server: Any) -> None:
        client = await server.connect()
        _, body = await self.send_head(server, client)
        client.send(body + _ask(server, "second"))
        assert await _ids(client, 2) == [(200, "first"), (200, "second")]

    async def test_a_body_that_never_comes_is_answered_408(self, serve: Any) -> None:
        async with serve(header_timeout_s=SHORT_S, body_timeout_s=SHORT_S) as server:
            client = await server.connect()
            await self.send_head(server, client)
            answer = await client.answer()
            assert (answer.status, answer.headers["x-request-id"]) == (408, "first")
            assert await client.rest() == b""

    async def test_a_server_that_stops_does_not_wait_for_it_in_silence(self, server: Any) -> None:
        client = await server.connect()
        protocol, body = await self.send_head(server, client)
        protocol.shutdown()
        client.send(body)
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await client.rest() == b""

    async def test_a_client_that_leaves_leaves_nothing(self, server: Any) -> None:
        client = await server.connect()
        protocol, _ = await self.send_head(server, client)
        client.writer.transport.abort()
        await server.until(lambda: not server.state.connections)
        assert protocol._timer is None
        assert server.running.service.door.inside == 0

    async def test_a_head_without_a_body_is_a_whole_request(self, server: Any) -> None:
        client = await server.connect()
        assert (await client.ask("/v1/classify", b"")).code == "malformed"
        assert server.express.taken == 1


class TestTimers:
    """Headers' before a request, none during it, keep-alive's after it."""

    async def test_none_runs_while_a_request_is_under_way(self, server: Any) -> None:
        client = await server.connect()
        assert (await server.protocol())._timer is not None
        runner = await server.held(client)
        protocol = await server.protocol()
        assert (protocol._timer, protocol.timeout_keep_alive_task) == (None, None)
        client.send(b"POST /v1")
        await server.protocol(lambda one: one._behind)
        assert (protocol._timer, protocol.timeout_keep_alive_task) == (None, None)
        runner.go.set()
        await client.answer()
        assert (protocol._timer is None, protocol.timeout_keep_alive_task) == (False, None)

    @pytest.mark.parametrize("body", [ASK, {}])
    async def test_keep_alives_runs_after_an_answer(self, server: Any, body: Any) -> None:
        client = await server.connect()
        await client.ask("/v1/classify", body)
        protocol = await server.protocol()
        timer, since = protocol._idle_timer, protocol._idle_since
        assert (protocol._timer, protocol.timeout_keep_alive_task is timer) == (None, True)
        await client.ask("/v1/classify", body)
        assert (protocol._idle_timer is timer, protocol._idle_since >= since) == (True, True)
        assert server.express.taken == 2

    @pytest.mark.parametrize("body", [ASK, {}])
    async def test_an_idle_connection_is_closed(self, serve: Any, body: Any) -> None:
        async with serve(SHORT_S) as server:
            client = await server.connect()
            await client.ask("/v1/classify", body)
            assert (await client.rest(), server.express.taken) == (b"", 1)

    async def test_not_one_whose_request_takes_longer(self, serve: Any) -> None:
        async with serve(SHORT_S) as server:
            client = await server.connect()
            await client.ask("/v1/classify", ASK)
            runner = await server.held(client)
            protocol = await server.protocol(lambda one: one._idle_timer is None)
            assert not protocol.transport.is_closing()
            runner.go.set()
            assert (await client.answer()).status == 200
            assert await client.rest() == b""

    async def test_half_a_request_after_an_answer_is_timed(self, serve: Any) -> None:
        async with serve(header_timeout_s=SHORT_S) as server:
            client = await server.connect()
            await client.ask("/v1/classify", ASK)
            client.send(b"POST /v1")
            assert (await client.answer()).code == "request_timeout"
            assert await client.rest() == b""

    async def test_a_client_that_leaves_leaves_none(self, server: Any) -> None:
        client = await server.connect()
        runner = await server.held(client)
        protocol = await server.protocol()
        client.writer.transport.abort()
        await server.until(lambda: not server.state.connections)
        assert (protocol._timer, protocol.timeout_keep_alive_task, protocol._visit) == (None, None, None)
        runner.go.set()


def test_the_bounds_are_the_settings() -> None:
    kind = connection(Settings(header_timeout_s=7, max_body_bytes=2048), lambda: None)
    assert issubclass(kind, Connection)
    assert (kind.header_timeout_s, kind.max_message_bytes) == (7, MAX_HEADER_BYTES + 8 * 2048)
