"""The short road: what it answers is what the long road answers; what it takes; and every way it can end."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.api.keys import digest_of
from service.api.tokenizing import SHORT_CHARACTERS

PATHS = ("/v1/classify", "/v1/embed", "/classify", "/embed", "/v1/rank", "/v1/nothing")
ASK = {"inputs": "good"}
COUNT = 'understudy_requests_total{{endpoint="{}",model="{}",status="{}",version="{}"}}'


def _count(status: int, *, endpoint: str = "/v1/classify", model: str = "toy", version: str = "1") -> str:
    return COUNT.format(endpoint, model, status, version)


async def _in_pieces(server: Any, client: Any, data: bytes) -> Any:
    """The answer of the long road: the first byte comes alone."""
    client.send(data[:1])
    await server.protocol(lambda one: not one._whole)
    client.send(data[1:])
    return await client.answer()


async def test_both_roads_answer_alike(serve: Any, random_bodies: Any, told: Any) -> None:
    async with serve(max_items=64, max_body_bytes=1024) as server:
        client, statuses = await server.connect(), []
        for path, body in random_bodies(PATHS, 300):
            data = server.request(path, body)
            client.send(data)
            short, taken = await client.answer(), server.express.taken
            long = await _in_pieces(server, client, data)
            assert server.express.taken == taken
            ours, theirs = [told(one.status, one.headers, one.body) for one in (short, long)]
            assert (ours, list(short.headers)) == (theirs, list(long.headers)), (path, body)
            statuses.append(ours[0])
        assert {200, 400, 404, 413, 422, 504} <= set(statuses)
        assert 150 < server.express.taken < 250


async def test_both_are_counted_alike(server: Any) -> None:
    client = await server.connect()
    for body, line in (
        (ASK, _count(200)),
        (b"{", _count(400, model="unknown", version="")),
        (ASK | {"model": "nobody"}, _count(404, model="unknown", version="")),
        (ASK | {"model": "toy", "deadline_ms": 1e-4}, _count(504)),
    ):
        taken = server.express.taken
        await client.ask("/v1/classify", body)
        assert (server.express.taken, await server.running.metric(line)) == (taken + 1, 1)
        await _in_pieces(server, client, server.request("/v1/classify", body))
        assert (server.express.taken, await server.running.metric(line)) == (taken + 1, 2)
    seconds = 'understudy_request_seconds_count{endpoint="/v1/classify",model="toy"}'
    assert await server.running.metric(seconds) == 4
    assert await server.running.metric("understudy_inflight_requests") == 0


class TestTaken:
    """Which requests are, and which are not."""

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/v1/classify", ASK),
            ("/v1/embed", ASK),
            ("/classify", ASK),
            ("/embed", ASK),
            ("/v1/classify", {"inputs": ["a"] * 64}),
            ("/v1/classify", {"inputs": "x" * SHORT_CHARACTERS}),
        ],
    )
    async def test_short_ones(self, server: Any, path: str, body: Any) -> None:
        client = await server.connect()
        for times in (1, 2):
            assert (await client.ask(path, body)).status == 200
            assert server.express.taken == times

    @pytest.mark.parametrize(
        ("path", "body", "lines", "status"),
        [
            ("/v1/classify", {"inputs": ["a"] * 65}, (), 200),
            ("/v1/classify", {"inputs": "x" * (SHORT_CHARACTERS + 1)}, (), 200),
            ("/v1/classify", b" " * (1 << 16) + b'{"inputs": "x"}', (), 200),
            ("/v1/classify?x=y", ASK, (), 200),
            ("/v1/cl%61ssify", ASK, (), 200),
            ("/v1/classify", ASK, (b"x: \xe9",), 200),
            ("/v1/classify", ASK, (b"x: y", b"X: z"), 200),
            ("/v1/classify", ASK, (b"content-encoding: identity",), 200),
            ("/v1/classify", ASK, (b"content-encoding: gzip",), 400),
            ("/v1/classify", ASK, (b"connection: keep-alive, x",), 200),
            ("/v1/rank", {"query": "x", "passages": ["y"]}, (), 404),
            ("/v1/nothing", ASK, (), 404),
        ],
    )
    async def test_not_others(self, server: Any, path: str, body: Any, lines: tuple[bytes, ...], status: int) -> None:
        client = await server.connect()
        for _ in range(2):
            assert (await client.ask(path, body, *lines)).status == status
        assert server.express.taken == 0
        # the connection is as good as before
        assert (await client.ask("/v1/classify", ASK)).status == 200
        assert server.express.taken == 1

    async def test_not_where_it_says_that_it_comes_in_chunks(self, server: Any) -> None:
        client = await server.connect()
        body = b'f\r\n{"inputs": "x"}\r\n0\r\n\r\n'
        client.send(b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" + body)
        assert (await client.answer()).status == 200
        assert server.express.taken == 0

    async def test_not_where_a_go_ahead_is_awaited(self, server: Any) -> None:
        client = await server.connect()
        client.send(server.request("/v1/classify", ASK, b"expect: 100-continue"))
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert (await client.answer()).status == 200
        assert server.express.taken == 0

    @pytest.mark.parametrize("change", [(b"host: x", b"connection: close"), (b"HTTP/1.1", b"HTTP/1.0")])
    async def test_not_where_it_is_the_last(self, server: Any, change: tuple[bytes, bytes]) -> None:
        client = await server.connect()
        client.send(server.request("/v1/classify", ASK).replace(*change))
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert (await client.rest(), server.express.taken) == (b"", 0)

    async def test_not_a_body_above_the_bound(self, serve: Any) -> None:
        async with serve(max_body_bytes=1024) as server:
            client = await server.connect()
            assert (await client.ask("/v1/classify", ASK | {"model": "m" * 1024})).code == "too_large"
            assert server.express.taken == 0

    async def test_not_at_the_root_where_that_speaks_otherwise(self, serve: Any) -> None:
        async with serve(root_dialect="tei") as server:
            client = await server.connect()
            answers = [await client.ask(path, {"inputs": "x"}) for path in ("/embed", "/v1/embed")]
            assert [type(json.loads(answer.body)) for answer in answers] == [list, dict]
            assert server.express.taken == 1

    async def test_none_where_pages_may_call(self, serve: Any) -> None:
        async with serve(cors_origins="https://page.example") as server:
            answer = await (await server.connect()).ask("/v1/classify", ASK, b"origin: https://page.example")
            assert (answer.status, server.express) == (200, None)
            assert answer.headers["access-control-allow-origin"] == "https://page.example"


class TestIds:
    """`x-request-id`."""

    async def test_a_plain_one_comes_back(self, server: Any) -> None:
        client = await server.connect()
        for body in (ASK, {}):
            answer = await client.ask("/v1/classify", body, b"x-request-id: mine.1")
            assert answer.headers["x-request-id"] == "mine.1"
        assert server.express.taken == 2

    @pytest.mark.parametrize("bad", [b"", b"with space", b"x" * 129, b'quote"', b"behind "])
    async def test_another_is_replaced(self, server: Any, bad: bytes) -> None:
        client = await server.connect()
        ids = [(await client.ask("/v1/classify", ASK, b"x-request-id: " + bad)).headers["x-request-id"] for _ in "ab"]
        assert ([len(one) for one in ids], len(set(ids)), server.express.taken) == ([32, 32], 2, 2)


class TestFailures:
    """Each has its status, its words, its count; and leaves nothing behind."""

    async def _is_clean(self, server: Any) -> None:
        await server.until(lambda: "queued=0 in_flight=0 busy_slots=0" in repr(server.running.service.engine))
        assert server.running.service.door.inside == 0
        assert await server.running.metric("understudy_inflight_requests") == 0

    async def test_too_much(self, serve: Any) -> None:
        async with serve(max_queue_items=4, max_items=4) as server:
            clients = [await server.connect() for _ in range(3)]
            runner = await server.held(clients[0])
            clients[1].send(server.request("/v1/classify", {"inputs": ["a"] * 3}))
            await server.running.queued(3)
            shed = await clients[2].ask("/v1/classify", {"inputs": ["a"] * 4})
            assert (shed.status, shed.code) == (429, "overloaded")
            assert int(shed.headers["retry-after"]) >= 1
            assert int(shed.headers["retry-after-ms"]) >= 50
            runner.go.set()
            assert [(await client.answer()).status for client in clients[:2]] == [200, 200]
            assert server.express.taken == 3
            assert await server.running.metric(_count(429)) == 1
            await self._is_clean(server)

    async def test_a_deadline_that_passes(self, server: Any) -> None:
        client = await server.connect()
        runner = await server.held(client, body=ASK | {"deadline_ms": 50})
        answer = await client.answer()
        assert (answer.status, answer.code) == (504, "deadline_exceeded")
        assert await server.running.metric(_count(504)) == 1
        runner.go.set()
        await self._is_clean(server)

    async def test_an_item_that_breaks_the_graph(self, server: Any) -> None:
        client = await server.connect()
        student = server.running.service.students.families["toy"].production.student
        runner = server.running.hold("toy", poison=int(student.encoder.encode(["awful"])[0].input_ids[1]))
        runner.go.set()
        whole = await client.ask("/v1/classify", {"inputs": ["good", "awful"]})
        assert (whole.status, whole.code) == (500, "run_failed")
        apart = await client.ask("/v1/classify", {"inputs": ["good", "awful"], "on_error": "item"})
        good, bad = json.loads(apart.body)["results"]
        assert (apart.status, "label" in good, bad["error"]["code"]) == (200, True, "run_failed")
        assert server.express.taken == 2
        await self._is_clean(server)

    async def test_scores_that_are_no_numbers(self, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        student = server.running.service.students.families["toy"].production.student

        def spoiled(stage: int, feeds: Any, wanted: Any) -> Any:
            outputs = student.run_stage(stage, feeds, wanted)
            return {name: array * np.nan if "logits" in name else array for name, array in outputs.items()}

        monkeypatch.setattr(server.running.hold("toy"), "_run_stage", spoiled)
        answer = await (await server.connect()).ask("/v1/classify", ASK)
        assert (answer.status, answer.code, server.express.taken) == (500, "run_failed", 1)
        await self._is_clean(server)

    @pytest.mark.parametrize("place", ["before", "after"])
    async def test_what_has_no_name(self, server: Any, caplog: pytest.LogCaptureFixture, place: str) -> None:
        def broken(*_: Any) -> Any:
            raise ZeroDivisionError("the secret reason")

        service = server.running.service
        owner, name = (service.students, "find") if place == "before" else (service, "ended")
        setattr(owner, name, broken)
        client = await server.connect()
        with caplog.at_level(logging.ERROR, "understudy"):
            answer = await client.ask("/v1/classify", {"inputs": "a private text"}, b"x-request-id: mine")
        assert (answer.status, answer.code, server.express.taken) == (500, "internal", 1)
        assert b"secret" not in answer.body
        assert "the secret reason" in caplog.text
        assert "private" not in caplog.text
        assert [record.fields["request_id"] for record in caplog.records if record.msg == "request_failed"] == ["mine"]
        delattr(owner, name)
        assert (await client.ask("/v1/classify", ASK)).status == 200
        await self._is_clean(server)

    async def test_the_engines_death(self, server: Any) -> None:
        client = await server.connect()
        runner = await server.held(client)

        def broken() -> None:
            raise ZeroDivisionError

        server.running.service.engine._guarded(broken)
        under_way = await client.answer()
        after = await client.ask("/v1/classify", ASK)
        assert [(one.status, one.code) for one in (under_way, after)] == [(503, "not_ready")] * 2
        assert server.express.taken == 2
        assert server.running.service.door.inside == 0
        runner.go.set()


class TestLeaving:
    """Clients go while their requests are under way."""

    async def _leave(self, server: Any, client: Any) -> None:
        client.writer.transport.abort()
        await server.until(lambda: server.running.service.door.inside == 0)

    @pytest.mark.parametrize("behind", [b"", b"POST /v1/cla", b"x" * 100])
    async def test_the_run_is_given_up(self, server: Any, behind: bytes) -> None:
        client = await server.connect()
        runner = await server.held(client)
        if behind:
            client.send(behind)
            await server.protocol(lambda one: one._behind)
        await self._leave(server, client)
        assert "requests=0 queued=0 in_flight=0" in repr(server.running.service.engine)
        runner.go.set()
        await server.until(lambda: "busy_slots=0" in repr(server.running.service.engine))
        assert await server.running.metric(_count(499)) == 1
        assert await server.running.metric(_count(200)) is None
        assert await server.running.metric("understudy_inflight_requests") == 0
        assert await server.running.metric('understudy_shed_total{model="toy",reason="cancelled"}') == 1

    async def test_what_waits_is_dropped(self, server: Any) -> None:
        stayer, leaver = await server.connect(), await server.connect()
        runner = await server.held(stayer)
        leaver.send(server.request("/v1/classify", {"inputs": ["a", "b", "c"]}))
        await server.running.queued(3)
        leaver.writer.transport.abort()
        await server.running.queued(0)
        runner.go.set()
        assert (await stayer.answer()).status == 200
        assert [await server.running.metric(_count(status)) for status in (200, 499)] == [1, 1]
        assert server.running.service.door.inside == 0

    async def test_just_as_the_engine_stops(self, server: Any) -> None:
        client = await server.connect()
        runner = await server.held(client)
        protocol = await server.protocol()
        (request,) = server.running.service.engine._ledger.requests
        await server.running.service.engine.close()
        protocol.connection_lost(None)
        runner.go.set()
        await server.until(lambda: not server.state.connections)
        assert await server.running.metric(_count(499)) == 1
        # else the log would tell of an exception that was never looked at
        await server.until(lambda: not request.future._log_traceback)


class TestStopping:
    """Draining."""

    async def test_what_is_under_way_is_answered_and_what_is_new_is_refused(self, server: Any) -> None:
        client, late = await server.connect(), await server.connect()
        runner = await server.held(client)
        draining = asyncio.create_task(server.running.service.drain())
        await asyncio.sleep(0)
        refused = await late.ask("/v1/classify", ASK)
        assert (refused.status, refused.code, draining.done()) == (503, "draining", False)
        runner.go.set()
        assert (await client.answer()).status == 200
        await draining
        assert server.express.taken == 1

    async def test_what_does_not_finish_in_time_is_told(self, serve: Any) -> None:
        async with serve(drain_timeout_s=0) as server:
            client = await server.connect()
            runner = await server.held(client)
            await server.running.service.drain()
            answer = await client.answer()
            runner.go.set()
            assert (answer.status, answer.code) == (503, "draining")
            assert server.running.service.door.inside == 0


KEYS = {"free": {}, "limited": {"items_per_minute": 60}, "embedder": {"models": ["toy-embed"]}}


def _bearer(name: str) -> bytes:
    return f"authorization: Bearer the key of {name}".encode()


class TestKeys:
    """API keys and quotas."""

    @pytest.fixture
    async def server(self, serve: Any, tmp_path: Path) -> AsyncIterator[Any]:
        entries = [{"name": name, "sha256": digest_of(f"the key of {name}"), **limits} for name, limits in KEYS.items()]
        (tmp_path / "keys.json").write_text(json.dumps({"schema": 1, "keys": entries}))
        async with serve(api_keys=tmp_path / "keys.json") as listening:
            yield listening

    @staticmethod
    def _left(server: Any) -> float:
        (told,) = [one for one in server.running.service.access.status() if one["name"] == "limited"]
        return float(told["left"]["items"])

    async def test_both_roads_let_the_same_in(self, server: Any, told: Any) -> None:
        client = await server.connect()
        for lines, status in (
            ((_bearer("free"),), 200),
            ((b"x-api-key: the key of free",), 200),
            ((), 401),
            ((_bearer("nobody"),), 401),
            ((_bearer("embedder"),), 403),
        ):
            taken = server.express.taken
            short = await client.ask("/v1/classify", ASK, *lines)
            assert (short.status, server.express.taken) == (status, taken + 1)
            long = await _in_pieces(server, client, server.request("/v1/classify", ASK, *lines))
            ours, theirs = [told(one.status, one.headers, one.body) for one in (short, long)]
            assert ours == theirs
        refused = await server.running.client.get("/metrics")
        assert _count(401, endpoint="other", model="", version="") + " 4" in refused.text

    async def test_a_quota_is_charged_and_kept(self, server: Any) -> None:
        client = await server.connect()
        assert (await client.ask("/v1/classify", {"inputs": ["x"] * 64}, _bearer("limited"))).status == 200
        assert self._left(server) < 0
        refused = await client.ask("/v1/classify", ASK, _bearer("limited"))
        assert (refused.status, refused.code, server.express.taken) == (429, "quota_exceeded", 2)
        assert int(refused.headers["retry-after"]) >= 1

    async def test_so_is_who_leaves(self, server: Any) -> None:
        client = await server.connect()
        runner = await server.held(client, body={"inputs": ["x"] * 64}, lines=(_bearer("limited"),))
        assert self._left(server) == 60
        client.writer.transport.abort()
        await server.until(lambda: server.running.service.door.inside == 0)
        assert self._left(server) < 0
        runner.go.set()
