"""The probes through a service's life: loading, started, stuck, sick, stopping."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from service.api import service as service_module
from service.api.students import Students
from service.errors import BundleError
from service.metrics import Metrics
from service.store.store import Store

PATIENCE_S = 30


async def probe(app: Any, name: str) -> tuple[int, dict[str, Any]]:
    response = await app.client.get(f"/health/{name}")
    return response.status_code, response.json()


async def statuses(app: Any) -> tuple[int, ...]:
    return tuple([(await probe(app, name))[0] for name in ("startup", "live", "ready")])


async def test_loading_then_started(start: Any) -> None:
    async with start(wait=False) as app:
        students, loaded = app.service.students, threading.Event()
        load = students._load

        def held(name: str, version: int) -> Any:
            assert loaded.wait(PATIENCE_S)
            return load(name, version)

        students._load = held
        assert await statuses(app) == (503, 200, 503)
        assert (await probe(app, "startup"))[1]["detail"] == "students are being loaded"
        loaded.set()
        async with asyncio.timeout(PATIENCE_S):
            await students.until(lambda: students.looked)
        assert await statuses(app) == (200, 200, 200)
        document = (await probe(app, "startup"))[1]
        assert document == {"status": "started", "served": {"toy": [1], "toy-embed": [1]}, "refused": {}}


async def test_a_refused_student_is_named_and_holds_only_readiness_back(start: Any, store_dir: Path) -> None:
    (store_dir / "toy" / "1" / "tokenizer.json").unlink()
    async with start(wait=False) as app:
        async with asyncio.timeout(PATIENCE_S):
            await app.service.students.until(lambda: app.service.students.looked)
        assert await statuses(app) == (200, 200, 503)
        assert (await probe(app, "startup"))[1]["refused"] == {"toy": [{"version": 1, "error": "file_missing"}]}
        assert (await probe(app, "ready"))[1]["waiting_for"] == {"toy": "refused: file_missing"}


async def test_a_store_that_cannot_be_read_is_not_started(start: Any, tmp_path: Path) -> None:
    async with start(wait=False, store=tmp_path / "none") as app:
        await app.service.students.refresh()
        assert await statuses(app) == (503, 200, 503)
        assert "the store cannot be read: " in (await probe(app, "startup"))[1]["detail"]


async def test_a_slot_that_makes_no_progress(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = app.hold("toy")
    asking = asyncio.create_task(app.post("/v1/classify", {"model": "toy", "inputs": "good"}))
    assert await asyncio.to_thread(runner.running.wait, PATIENCE_S)
    assert await statuses(app) == (200, 200, 200)
    monkeypatch.setattr(service_module, "STALLED_S", 0.0)
    monkeypatch.setattr(service_module, "STALLED_RUNS", 0)
    assert await statuses(app) == (200, 503, 503)
    for name in ("live", "ready"):
        assert "slot has been silent" in (await probe(app, name))[1]["detail"]
    runner.go.set()
    assert (await asking).status_code == 200
    assert await statuses(app) == (200, 200, 200)


async def fail(app: Any, *, times: int = 8) -> None:
    """Let the student's graphs fail on so many inputs."""
    encoder = app.service.students.families["toy"].production.student.encoder
    begins_every_text = int(encoder.encode(["x"])[0].input_ids[0])
    app.hold("toy", poison=begins_every_text).go.set()
    for text in "abcdefgh"[:times]:
        assert (await app.post("/v1/classify", {"model": "toy", "inputs": text})).status_code == 500


async def test_a_student_that_fails_whatever_it_is_given_is_taken_out_and_loaded_anew(
    app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.service.students, "look", lambda: None)
    await fail(app, times=7)
    assert await statuses(app) == (200, 200, 200)
    await fail(app)
    async with asyncio.timeout(PATIENCE_S):
        await app.service.students.until(lambda: not app.service.students.ready)
    assert await statuses(app) == (200, 200, 503)
    assert (await probe(app, "ready"))[1]["waiting_for"] == {"toy": "refused: run_failed"}
    assert (await app.post("/v1/classify", {"model": "toy", "inputs": "a"})).status_code == 503
    assert (await app.post("/v1/embed", {"inputs": "a"})).status_code == 200
    app.service.students._woken.set()
    async with asyncio.timeout(PATIENCE_S):
        await app.service.students.until(lambda: app.service.ready)
    assert (await app.post("/v1/classify", {"model": "toy", "inputs": "a"})).status_code == 200


async def test_a_sick_student_is_not_ready(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app.service.students, "take_out", lambda *_, **__: None)
    await fail(app)
    assert (await probe(app, "ready"))[1]["detail"] == "graphs that fail whatever they are given: toy"


async def test_a_version_that_has_been_replaced_is_not_taken_out(app: Any) -> None:
    old = app.service.students.families["toy"].production.handle
    app.hold("toy")
    app.service._take_out(old)
    assert app.service.students.served()["toy"] == [1]


async def test_a_dead_part(app: Any) -> None:
    app.service._failed = True
    assert await statuses(app) == (200, 503, 503)
    assert "has died" in (await probe(app, "live"))[1]["detail"]


async def test_stopping(app: Any) -> None:
    await app.service.drain()
    assert await statuses(app) == (200, 200, 503)
    assert (await probe(app, "ready"))[1]["detail"] == "the service is stopping"


async def test_proving_reports_what_has_a_name_only(app: Any) -> None:
    def broken(name: str, version: int) -> Any:
        raise BundleError("broken") if version == 2 else RuntimeError("a bug")

    app.service.students._load = broken
    assert (await app.service.students.prove("toy", 2)).error == "bundle"
    with pytest.raises(RuntimeError, match="a bug"):
        await app.service.students.prove("toy", 3)


class NothingToLoad:
    def __call__(self, name: str, version: int) -> Any:
        raise BundleError("nothing")

    def improve(self, served: Any) -> Any:
        return served

    def tidy(self) -> None:
        pass


async def test_following_ends_even_if_it_is_woken_at_that_moment(tmp_path: Path) -> None:
    students = Students(Store(tmp_path), load=NothingToLoad(), metrics=Metrics())
    following = asyncio.create_task(students.follow())
    async with asyncio.timeout(PATIENCE_S):
        await students.until(lambda: students.looked)
        while not students._woken._waiters:  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0)
    students.look()
    following.cancel()
    done, _ = await asyncio.wait([following], timeout=PATIENCE_S)
    assert done
