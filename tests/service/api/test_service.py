"""Stopping: not ready, refuse, drain, fail the rest, close."""

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

from service.api.app import create_app
from service.api.tokenizing import SHORT_CHARACTERS
from service.errors import Overloaded
from service.settings import load_settings

PATIENCE_S = 30


async def _held(app: Any, **fields: Any) -> tuple[Any, asyncio.Task[Any]]:
    runner = app.hold("toy")
    asking = asyncio.create_task(app.post("/v1/classify", {"inputs": "good"} | fields))
    assert await asyncio.to_thread(runner.running.wait, PATIENCE_S)
    return runner, asking


async def test_what_is_under_way_is_answered_and_what_is_new_is_refused(app: Any) -> None:
    runner, asking = await _held(app)
    draining = asyncio.create_task(app.service.drain())
    await asyncio.sleep(0)
    ready = await app.client.get("/health/ready")
    refused = await app.post("/v1/classify", {"inputs": "x"})
    live = await app.client.get("/health/live")
    runner.go.set()
    answered = await asking
    await draining
    assert (ready.status_code, ready.json()["detail"]) == (503, "the service is stopping")
    assert (refused.status_code, refused.json()["code"]) == (503, "draining")
    assert live.status_code == 200
    assert answered.status_code == 200


async def test_what_does_not_finish_in_time_is_told(start: Any) -> None:
    async with start(drain_timeout_s=0) as app:
        runner, asking = await _held(app)
        await app.service.drain()
        response = await asking
        runner.go.set()
        assert (response.status_code, response.json()["code"]) == (503, "draining")


async def test_a_body_that_never_comes_is_given_up(start: Any) -> None:
    async with start(drain_timeout_s=0) as app:
        reading = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            yield b'{"inputs": '
            reading.set()
            await asyncio.Event().wait()

        asking = asyncio.create_task(app.client.post("/v1/classify", content=body()))
        await reading.wait()
        await app.service.drain()
        response = await asking
        assert (response.status_code, response.json()["code"]) == (503, "draining")


async def test_draining_twice_is_draining_once(app: Any) -> None:
    await asyncio.gather(app.service.drain(), app.service.drain())
    await app.service.drain()
    assert "requests=0 queued=0 in_flight=0" in repr(app.service.engine)


async def test_two_apps_in_one_process(start: Any) -> None:
    async with start() as first, start() as second:
        await first.post("/v1/classify", {"inputs": "x"})
        count = 'understudy_queue_seconds_count{model="toy"}'
        assert [await app.metric(count) for app in (first, second)] == [1, None]
        await first.service.drain()
        assert (await second.post("/v1/classify", {"inputs": "x"})).status_code == 200


async def test_an_app_can_be_made_outside_a_loop_and_reads_nothing_yet(tmp_path: Any) -> None:
    create_app(load_settings(store=tmp_path / "absent"))


async def test_a_deadline_does_not_wait_for_the_tokenizer(app: Any) -> None:
    release = threading.Event()
    holding = [asyncio.create_task(app.service.tokenizing.aside(lambda: release.wait(PATIENCE_S)))]
    await asyncio.sleep(0)
    late = await app.post("/v1/classify", {"inputs": "x" * SHORT_CHARACTERS + "x", "deadline_ms": 20})
    release.set()
    await asyncio.gather(*holding)
    assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
    assert app.service.tokenizing.waiting_items == 0
    assert await app.metric('understudy_shed_total{model="toy",reason="deadline"}') == 1


async def test_too_much_to_tokenize_is_shed(start: Any) -> None:
    async with start(max_queue_items=4, max_items=4) as app:
        app.service.tokenizing.waiting_items = 3
        shed = await app.post("/v1/classify", {"inputs": ["x" * SHORT_CHARACTERS, "y"]})
        app.service.tokenizing.waiting_items = 0
        assert (shed.status_code, shed.json()["code"]) == (429, "overloaded")
        assert await app.metric('understudy_shed_total{model="toy",reason="overloaded"}') == 2


async def test_a_store_that_is_not_there(start: Any, tmp_path: Any) -> None:
    async with start(wait=False, store=tmp_path / "absent") as app:
        response = await app.client.get("/health/ready")
        assert response.status_code == 503


async def test_the_state_can_be_read(app: Any) -> None:
    assert repr(app.service).startswith("Service(draining=False, <Door inside=0 reading=0>, Students(")


async def test_too_many_tokens(start: Any) -> None:
    async with start(max_request_tokens=8) as app:
        refused = await app.post("/v1/classify", {"inputs": ["good film"] * 3})
        assert (refused.status_code, refused.json()["code"]) == (413, "too_large")
        assert (await app.post("/v1/classify", {"inputs": ["good film"] * 2})).status_code == 200


async def test_before_the_drain_refuses_it_is_only_not_ready(start: Any) -> None:
    async with start(drain_delay_s=0.3) as app:
        draining = asyncio.create_task(app.service.drain())
        await asyncio.sleep(0)
        assert (await app.client.get("/health/ready")).status_code == 503
        assert (await app.client.get("/health/live")).status_code == 200
        assert (await app.post("/v1/classify", {"inputs": "x"})).status_code == 200
        await draining
        assert (await app.post("/v1/classify", {"inputs": "x"})).status_code == 503


async def test_what_is_shed_is_not_tokenized(app: Any) -> None:
    student = app.service.students.families["toy"].production.student
    before = app.service.engine

    class Full:
        def __getattr__(self, name: str) -> Any:
            return getattr(before, name)

        def check(self, *_: Any, **__: Any) -> None:
            raise Overloaded("too many items are waiting", retry_after_s=2.5)

    app.service.engine = Full()
    student.encoder = None
    shed = await app.post("/v1/classify", {"inputs": "x"})
    app.service.engine = before
    assert (shed.status_code, shed.headers["retry-after"], shed.headers["retry-after-ms"]) == (429, "3", "2500")


async def test_the_priority_reaches_the_engine(app: Any) -> None:
    asked: list[str] = []
    begin = app.service.engine.begin

    def note(*args: Any, priority: str, **more: Any) -> Any:
        asked.append(priority)
        return begin(*args, priority=priority, **more)

    app.service.engine.begin = note
    for headers in ({}, {"x-priority": "high"}, {"x-priority": "low"}):
        await app.client.post("/v1/classify", json={"inputs": "x"}, headers=headers)
    wrong = await app.client.post("/v1/classify", json={"inputs": "x"}, headers={"x-priority": "urgent"})
    assert asked == ["normal", "high", "low"]
    assert wrong.status_code == 422
