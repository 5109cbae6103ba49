"""Request ids, failures nobody foresaw, and clients that leave."""

import asyncio
import logging
from typing import Any

import orjson
import pytest
from starlette.types import Message

PATIENCE_S = 30


class Client:
    """A raw ASGI client that leaves when the test says so."""

    def __init__(self, app: Any, document: Any) -> None:
        self._app = app
        self._body = orjson.dumps(document)
        self._sent = False
        self.leaving = asyncio.Event()
        self.answers: list[Message] = []

    async def ask(self) -> None:
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": "/v1/classify",
            "raw_path": b"/v1/classify",
            "query_string": b"",
            "root_path": "",
            "headers": [],
            "client": ("client", 1),
            "server": ("service", 80),
        }
        await self._app(scope, self._receive, self._send)

    async def _receive(self) -> Message:
        if not self._sent:
            self._sent = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self.leaving.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self.answers.append(message)


def _asgi(app: Any) -> Any:
    return app.client._transport.app


async def test_an_id_is_echoed(app: Any) -> None:
    response = await app.client.get("/health/live", headers={"x-request-id": "a-b_c.1"})
    assert response.headers["x-request-id"] == "a-b_c.1"


@pytest.mark.parametrize("bad", ["", "with space", "x" * 129, 'quote"', "new\tline", "é"])
async def test_an_id_that_is_no_plain_word_is_replaced(app: Any, bad: str) -> None:
    response = await app.client.get("/health/live", headers={"x-request-id": bad.encode()})
    assert response.headers["x-request-id"] != bad
    assert len(response.headers["x-request-id"]) == 32


async def test_every_answer_has_one(app: Any) -> None:
    ids = {(await app.client.get(path)).headers["x-request-id"] for path in ("/v1/models", "/none", "/v1/classify")}
    assert len(ids) == 3


async def test_a_bug_is_an_answer_without_its_words(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("the secret reason")

    app.service.students.find = broken
    with caplog.at_level(logging.ERROR, "understudy"):
        response = await app.post("/v1/classify", {"inputs": "a private text"})
    assert (response.status_code, response.json()["code"]) == (500, "internal")
    assert "secret" not in response.text
    assert "the secret reason" in caplog.text
    assert "private" not in caplog.text
    count = 'understudy_requests_total{endpoint="/v1/classify",model="unknown",status="500",version=""}'
    assert await app.metric(count) == 1


async def test_what_a_gone_client_waited_for_is_given_up(app: Any) -> None:
    runner = app.hold("toy")
    holding = Client(_asgi(app), {"inputs": "x"})
    held = asyncio.create_task(holding.ask())
    assert await asyncio.to_thread(runner.running.wait, PATIENCE_S)
    leaver = Client(_asgi(app), {"inputs": ["x", "y", "z"]})
    asked = asyncio.create_task(leaver.ask())
    await app.queued(3)
    leaver.leaving.set()
    async with asyncio.timeout(PATIENCE_S):
        await asked
    assert leaver.answers == []
    await app.queued(0)
    runner.go.set()
    await held
    assert holding.answers[0]["status"] == 200
    assert await app.metric('understudy_shed_total{model="toy",reason="cancelled"}') == 3
    assert (
        await app.metric('understudy_requests_total{endpoint="/v1/classify",model="toy",status="499",version="1"}') == 1
    )
    assert await app.metric("understudy_inflight_requests") == 0


async def test_a_client_that_leaves_while_its_batch_runs(app: Any) -> None:
    runner = app.hold("toy")
    leaver, stayer = Client(_asgi(app), {"inputs": "x"}), Client(_asgi(app), {"inputs": "y"})
    asked = asyncio.create_task(leaver.ask())
    assert await asyncio.to_thread(runner.running.wait, PATIENCE_S)
    stayed = asyncio.create_task(stayer.ask())
    await app.queued(1)
    leaver.leaving.set()
    await asked
    runner.go.set()
    await stayed
    assert (leaver.answers, stayer.answers[0]["status"]) == ([], 200)


async def test_a_client_that_leaves_before_its_body_is_whole(app: Any) -> None:
    client = Client(_asgi(app), {})
    client._sent = True
    client.leaving.set()
    await client.ask()
    assert client.answers == []


async def test_a_cancelled_server_task_is_not_taken_for_a_gone_client(app: Any) -> None:
    runner = app.hold("toy")
    client = Client(_asgi(app), {"inputs": "x"})
    asked = asyncio.create_task(client.ask())
    assert await asyncio.to_thread(runner.running.wait, PATIENCE_S)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    runner.go.set()


async def test_refusals_do_not_flood_the_log(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    app.service.door.close()
    with caplog.at_level(logging.WARNING, "understudy"):
        for _ in range(20):
            assert (await app.post("/v1/classify", {"inputs": "x"})).status_code == 503
    lines = [record for record in caplog.records if record.getMessage() == "requests_refused"]
    assert [(line.fields["status"], line.fields["times"]) for line in lines] == [(503, 1)]
    count = 'understudy_requests_total{endpoint="/v1/classify",model="unknown",status="503",version=""}'
    assert await app.metric(count) == 20


async def test_a_late_body_is_told_so_and_the_connection_closed(start: Any) -> None:
    async with start(body_timeout_s=0.03) as app:
        client = Client(_asgi(app), {})
        client._sent = True
        await client.ask()
        begin, body = client.answers
        assert begin["status"] == 408
        assert (b"connection", b"close") in begin["headers"]
        assert orjson.loads(body["body"])["code"] == "body_timeout"


async def test_a_failure_after_the_answer_has_begun_is_only_logged(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Client):
        async def _send(self, message: Message) -> None:
            if message["type"] == "http.response.body":
                raise ConnectionResetError("the reader is gone")
            await super()._send(message)

    client = Broken(_asgi(app), {"inputs": "x"})
    with caplog.at_level(logging.ERROR, "understudy"):
        await client.ask()
    assert [answer["type"] for answer in client.answers] == ["http.response.start"]
    assert "the reader is gone" in caplog.text


async def test_debug_tells_of_every_request_but_not_its_text(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "understudy"):
        await app.post("/v1/classify", {"inputs": "a private text"})
    (line,) = [record for record in caplog.records if record.getMessage() == "request"]
    assert (line.fields["endpoint"], line.fields["status"], line.fields["model"]) == ("/v1/classify", 200, "toy")
    assert "private" not in str(line.fields)


async def test_a_bug_behind_the_router_has_the_same_answer(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("the secret reason")

    app.service.metrics.exposition = broken
    with caplog.at_level(logging.ERROR, "understudy"):
        response = await app.client.get("/metrics")
    assert (response.status_code, response.json()["code"]) == (500, "internal")
    assert "secret" not in response.text
    assert "the secret reason" in caplog.text
