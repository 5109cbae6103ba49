"""The app in this process: started on a toy store, talked to over ASGI; and a student whose runs a test can hold."""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.api.app import create_app
from service.api.service import Service
from service.api.students import Family
from service.engine.item import ServedStudent
from service.errors import RunFailed
from service.runtime.heads import ExitPolicy
from service.runtime.pipeline import Pass, Pipeline
from service.runtime.student import Student
from service.settings import Settings, load_settings

PATIENCE_S = 30


@dataclass
class HeldRunner:
    """A student whose graphs wait until the test lets them go, and fail where a text holds a poisoned token."""

    student: Student
    poison: int | None = None
    running: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)

    @property
    def pad_id(self) -> int:
        return self.student.pad_id

    @property
    def pipeline(self) -> Pipeline:
        return self.student.pipeline

    def begin(self, feeds: Mapping[str, np.ndarray], policies: ExitPolicy | Sequence[ExitPolicy]) -> Pass:
        return Pass(self.pipeline, self._run_stage, feeds, policies)

    def _run_stage(self, stage_index: int, feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        self.running.set()
        assert self.go.wait(PATIENCE_S), "the test never let the batch go"
        if self.poison is not None and (feeds.get("input_ids", np.zeros(1)) == self.poison).any():
            raise RunFailed("the graph broke on this batch")
        return self.student.run_stage(stage_index, feeds)


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
        aliases = {**family.aliases, "production": replace(served, handle=handle)}
        self.service.students.families[name] = Family(name, aliases, family.pointed, family.refused)
        return runner


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
