"""The served set follows the store: what is served, what is refused, what stays."""

import asyncio
import hashlib
import json
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from service.api import loading
from service.api.loading import loader
from service.api.students import Students
from service.errors import GraphMismatch
from service.metrics import Metrics
from service.runtime import choice as choices
from service.runtime import session
from service.runtime.cost import StageCost
from service.settings import load_settings
from service.store.store import Store

PATIENCE_S = 30


async def _until(app: Any, condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        await app.service.students.until(condition)


def _family(app: Any, name: str = "toy") -> Any:
    return app.service.students.families[name]


def _break(store: Path, version: str, file: str = "stages/00.int8.onnx") -> None:
    path = store / "toy" / version / file
    path.write_bytes(path.read_bytes()[:-1] + b"!")


async def _ask(app: Any, model: str = "toy") -> Any:
    return await app.post("/v1/classify", {"model": model, "inputs": "this film is great"})


async def test_a_moved_alias_takes_effect(app: Any, store_dir: Path, build_bundle: Any, move_alias: Any) -> None:
    build_bundle(store_dir / "toy" / "2", seed=1)
    move_alias(store_dir, "toy", production=2)
    await _until(app, lambda: _family(app).production.version == 2)
    assert (await _ask(app)).json()["version"] == 2
    assert (await _ask(app, "toy@1")).status_code == 404
    info = 'understudy_student_info{backend="onnxruntime",model="toy",precision="int8",task="classify",version="%d"}'
    assert [await app.metric(info % version) for version in (1, 2)] == [None, 1]


async def test_every_aliased_version_is_served(app: Any, store_dir: Path, build_bundle: Any, move_alias: Any) -> None:
    build_bundle(store_dir / "toy" / "2", seed=1)
    move_alias(store_dir, "toy", production=1, canary=2, next=2)
    await _until(app, lambda: "next" in _family(app).aliases)
    versions = [
        (await _ask(app, model)).json()["version"] for model in ("toy", "toy@canary", "toy@next", "toy@2", "toy@1")
    ]
    assert versions == [1, 2, 2, 2, 1]
    assert _family(app).aliases["canary"] is _family(app).aliases["next"]


async def test_a_version_without_an_alias_is_not_served(app: Any, store_dir: Path, build_bundle: Any) -> None:
    build_bundle(store_dir / "toy" / "2", seed=1)
    await app.service.students.refresh()
    response = await _ask(app, "toy@2")
    assert (response.status_code, response.json()["detail"]) == (
        404,
        "version 2 of 'toy' is not served: no alias points at it",
    )


async def test_a_new_student_appears(app: Any, store_dir: Path, build_bundle: Any, move_alias: Any) -> None:
    build_bundle(store_dir / "new" / "1", name="new")
    move_alias(store_dir, "new", production=1)
    await _until(app, lambda: "new" in app.service.students.families and _family(app, "new").production is not None)
    assert (await _ask(app, "new")).status_code == 200


async def test_a_removed_student_is_served_no_more(app: Any, store_dir: Path) -> None:
    (store_dir / "toy").rename(store_dir.parent / "toy")
    await _until(app, lambda: "toy" not in app.service.students.families)
    assert (await _ask(app)).status_code == 404
    assert app.service.ready


async def test_what_nothing_tells_of_is_seen_all_the_same(
    store_dir: Path, tmp_path: Path, build_bundle: Any, move_alias: Any
) -> None:
    settings = load_settings(store=store_dir, slots=1)
    store = Store(store_dir)
    students = Students(store, load=loader(store, settings), metrics=Metrics(), poll_s=0.01)
    build_bundle(tmp_path / "other" / "toy" / "7")
    move_alias(tmp_path / "other", "toy", production=7)
    following = asyncio.create_task(students.follow())
    async with asyncio.timeout(PATIENCE_S):
        await students.until(lambda: students.ready)
        # another store in its place: what watched the first one is blind to it
        await asyncio.to_thread(store_dir.rename, tmp_path / "before")
        await asyncio.to_thread((tmp_path / "other").rename, store_dir)
        await students.until(lambda: students.served() == {"toy": [7]})
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_a_store_that_is_gone_changes_nothing(app: Any, store_dir: Path) -> None:
    await asyncio.to_thread(store_dir.rename, store_dir.parent / "away")
    await app.service.students.refresh()
    assert (await _ask(app)).status_code == 200


def _wrong_digest(store: Path) -> None:
    _break(store, "2")


def _missing_file(store: Path) -> None:
    (store / "toy" / "2" / "tokenizer.json").unlink()


def _unknown_field(store: Path) -> None:
    _edit(store, lambda manifest: manifest | {"colour": "blue"})


def _newer_major(store: Path) -> None:
    _edit(store, lambda manifest: manifest | {"format": "2.0"})


def _unknown_requirement(store: Path) -> None:
    _edit(store, lambda manifest: manifest | {"requires": ["telepathy"]})


def _other_name(store: Path) -> None:
    _edit(store, lambda manifest: manifest | {"name": "other"})


def _not_there(store: Path) -> None:
    (store / "toy" / "2").rename(store / "toy" / ".2")


def _edit(store: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path = store / "toy" / "2" / "manifest.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (_wrong_digest, "digest_mismatch"),
        (_missing_file, "file_missing"),
        (_unknown_field, "manifest_invalid"),
        (_newer_major, "format_too_new"),
        (_unknown_requirement, "format_too_new"),
        (_other_name, "manifest_invalid"),
        (_not_there, "unknown_version"),
    ],
)
async def test_a_broken_version_is_refused_by_name_and_the_old_one_serves(
    app: Any, store_dir: Path, build_bundle: Any, move_alias: Any, spoil: Callable[[Path], None], error: str
) -> None:
    build_bundle(store_dir / "toy" / "2", seed=1)
    spoil(store_dir)
    move_alias(store_dir, "toy", production=2)
    await _until(app, lambda: bool(_family(app).refused))
    assert [(refusal.version, refusal.error) for refusal in _family(app).refused] == [(2, error)]
    assert (await _ask(app)).json()["version"] == 1
    entry = (await app.client.get("/v1/models/toy")).json()
    assert (entry["production"], entry["refused"]) == (1, [{"version": 2, "error": error}])
    assert await app.metric(f'understudy_bundle_refused_total{{error="{error}",model="toy"}}') == 1
    assert app.service.ready


async def test_other_numbers_than_the_goldens_are_refused(
    app: Any, store_dir: Path, build_bundle: Any, move_alias: Any
) -> None:
    build_bundle(store_dir / "toy" / "2", seed=1)
    golden = store_dir / "toy" / "2" / "golden.json"
    document = json.loads(golden.read_text())
    outputs = document["samples"][0]["outputs"]["int8"]["full"]
    document["samples"][0]["outputs"]["int8"]["full"] = [value + 1 for value in outputs]
    golden.write_text(json.dumps(document))
    _accept(store_dir, golden)
    move_alias(store_dir, "toy", production=2)
    await _until(app, lambda: bool(_family(app).refused))
    assert _family(app).refused[0].error == "golden_mismatch"
    assert (await _ask(app)).json()["version"] == 1


def _accept(store: Path, file: Path) -> None:
    """Make the manifest of version 2 name the file as it is now."""
    entry = {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "bytes": file.stat().st_size}
    _edit(store, lambda manifest: manifest | {"files": manifest["files"] | {file.name: entry}})


@pytest.mark.parametrize("settings", [{"token_budget": 16}, {"precision": "int2"}])
async def test_a_student_that_the_settings_do_not_allow(start: Any, settings: dict[str, Any]) -> None:
    async with start(wait=False, **settings) as app:
        await _until(app, lambda: len(_family(app).refused) == 1 if app.service.students.families else False)
        assert _family(app).refused[0].error == "settings_invalid"
        assert (await _ask(app)).status_code == 503


async def test_a_mended_version_is_tried_again_and_an_unchanged_one_is_not(
    app: Any, store_dir: Path, build_bundle: Any, move_alias: Any
) -> None:
    build_bundle(store_dir / "toy" / "2", seed=1)
    whole = (store_dir / "toy" / "2" / "stages" / "00.int8.onnx").read_bytes()
    _break(store_dir, "2")
    move_alias(store_dir, "toy", production=2)
    await _until(app, lambda: bool(_family(app).refused))
    await app.service.students.refresh()
    refused = 'understudy_bundle_refused_total{error="digest_mismatch",model="toy"}'
    assert await app.metric(refused) == 1
    (store_dir / "toy" / "2" / "stages" / "00.int8.onnx").write_bytes(whole)
    await app.service.students.refresh()
    assert (await _ask(app)).json()["version"] == 2
    assert _family(app).refused == ()


async def test_a_broken_alias_file_changes_nothing(app: Any, store_dir: Path) -> None:
    (store_dir / "toy" / "aliases.json").write_text('{"schema": 1, "aliases": {"production": ')
    await _until(app, lambda: bool(_family(app).refused))
    assert _family(app).refused[0].error == "alias_invalid"
    assert (await _ask(app)).json()["version"] == 1
    assert (await app.post("/v1/embed", {"inputs": "x"})).status_code == 200
    counted = []
    for _ in range(2):
        await app.service.students.refresh()
        counted.append(await app.metric('understudy_bundle_refused_total{error="alias_invalid",model="toy"}'))
    assert counted[0] == counted[1]


async def test_an_unforeseen_failure_is_one_students_own(
    app: Any, store_dir: Path, build_bundle: Any, move_alias: Any
) -> None:
    load = app.service.students._load

    def failing(name: str, version: int) -> Any:
        if version == 2:
            raise ZeroDivisionError("nobody thought of this")
        return load(name, version)

    app.service.students._load = failing
    build_bundle(store_dir / "toy" / "2", seed=1)
    move_alias(store_dir, "toy", production=2)
    await _until(app, lambda: bool(_family(app).refused))
    assert _family(app).refused[0].error == "internal"
    assert (await _ask(app)).json()["version"] == 1


async def test_requests_under_way_finish_on_the_version_they_found(
    app: Any, store_dir: Path, build_bundle: Any, move_alias: Any
) -> None:
    runner = app.hold("toy")
    asking: Awaitable[Any] = asyncio.create_task(_ask(app))
    assert await asyncio.to_thread(runner.running.wait, PATIENCE_S)
    build_bundle(store_dir / "toy" / "2", seed=1)
    move_alias(store_dir, "toy", production=2)
    await _until(app, lambda: _family(app).production.version == 2)
    runner.go.set()
    old = await asking
    assert (old.status_code, old.json()["version"]) == (200, 1)
    assert (await _ask(app)).json()["version"] == 2


async def test_no_request_fails_while_aliases_move(
    app: Any, store_dir: Path, build_bundle: Any, move_alias: Any
) -> None:
    build_bundle(store_dir / "toy" / "2", seed=1)
    seen: set[int] = set()
    move_alias(store_dir, "toy", production=2)
    async with asyncio.timeout(PATIENCE_S):
        while seen != {1, 2}:
            responses = await asyncio.gather(*(_ask(app) for _ in range(8)))
            assert {response.status_code for response in responses} == {200}
            seen |= {response.json()["version"] for response in responses}


class TestImprovement:
    """`auto` finds that another backend, `spare`, is faster for the classifier."""

    @pytest.fixture(autouse=True)
    def _spare_is_faster(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def measure(student: Any, **_: Any) -> tuple[StageCost, ...]:
            return (StageCost(1e-4 if student.backend == "spare" else 1e-3, 0.0),) * len(student.manifest.stages)

        both = dict.fromkeys(("onnxruntime", "spare"), session.BACKENDS["onnxruntime"])
        monkeypatch.setattr(session, "BACKENDS", both)
        monkeypatch.setattr(loading, "measure", measure)
        monkeypatch.setattr(choices, "runoff", lambda *_, **__: 0.9)

    @pytest.fixture
    def begin(self, start: Any, tmp_path: Path) -> Callable[..., Any]:
        return lambda **options: start(backend="auto", cache_dir=tmp_path / "cache", **options)

    async def test_the_faster_one_takes_over(self, begin: Any) -> None:
        async with begin() as app:
            first = _family(app).production
            await _until(app, lambda: _family(app).production.settled)
            served = _family(app).production
            assert (served.version, served.student.backend) == (1, "spare")
            assert served.handle is not first.handle or first.student.backend == "spare"
            assert (await _ask(app)).status_code == 200
            (card,) = (await app.client.get("/v1/models/toy")).json()["versions"]
            assert (card["backend"], card["chosen"]["why"][:23]) == ("spare", "int8 on spare saves 90%")
            info = 'understudy_student_info{backend="%s",model="toy",precision="int8",task="classify",version="1"}'
            assert [await app.metric(info % backend) for backend in ("onnxruntime", "spare")] == [None, 1]
            assert await app.metric('understudy_student_memory_bytes{model="toy",version="1"}') == card["memory_bytes"]

    async def test_requests_under_way_finish_where_they_began(self, begin: Any, monkeypatch: Any) -> None:
        gate = threading.Event()
        improve = loading.Loader.improve

        def gated(self: Any, served: Any) -> Any:
            assert gate.wait(PATIENCE_S)
            return improve(self, served)

        monkeypatch.setattr(loading.Loader, "improve", gated)
        async with begin() as app:
            runner = app.hold("toy")
            asking: Awaitable[Any] = asyncio.create_task(_ask(app))
            assert await asyncio.to_thread(runner.running.wait, PATIENCE_S)
            gate.set()
            await _until(app, lambda: _family(app).production.settled)
            assert _family(app).production.student.backend == "spare"
            runner.go.set()
            assert (await asking).status_code == 200

    async def test_one_that_fails_leaves_what_serves(self, begin: Any, monkeypatch: Any, caplog: Any) -> None:
        def broken(self: Any, served: Any) -> Any:
            raise ZeroDivisionError("nobody thought of this")

        monkeypatch.setattr(loading.Loader, "improve", broken)
        async with begin() as app:
            await _until(app, lambda: _family(app).production.settled and _family(app, "toy-embed").production.settled)
            assert _family(app).production.student.backend == "onnxruntime"
            assert "improving_failed" in [record.message for record in caplog.records]
            assert (await _ask(app)).status_code == 200

    async def test_what_was_removed_meanwhile_stays_away(self, begin: Any) -> None:
        async with begin() as app:
            await _until(app, lambda: _family(app).production.settled)
            served = _family(app).production
            app.service.students._remove("toy")
            app.service.students._swap(served, served)
            assert "toy" not in app.service.students.families


class TestTakingOut:
    async def test_it_is_loaded_anew_and_proved(self, app: Any) -> None:
        before = _family(app).production
        app.service.students.take_out("toy", 1, detail="its backend died")
        assert app.service.students.waiting_for() == {"toy": "refused: run_failed"}
        response = await app.client.get("/health/ready")
        assert (response.status_code, response.json()["waiting_for"]) == (503, {"toy": "refused: run_failed"})
        assert (await _ask(app)).status_code == 503
        await _until(app, lambda: app.service.ready)
        assert _family(app).production is not before
        assert (await _ask(app)).status_code == 200

    async def test_one_that_does_not_prove_stays_out(self, app: Any, store_dir: Path) -> None:
        _break(store_dir, "1")
        app.service.students.take_out("toy", 1, detail="its backend died")
        await _until(app, lambda: [refusal.error for refusal in _family(app).refused] == ["digest_mismatch"])
        assert not app.service.ready
        assert (await app.post("/v1/embed", {"inputs": "x"})).status_code == 200

    async def test_it_does_not_come_back_with_a_look_that_had_begun(
        self, app: Any, store_dir: Path, build_bundle: Any, move_alias: Any
    ) -> None:
        load, begun, go = app.service.students._load, threading.Event(), threading.Event()

        def slow(name: str, version: int) -> Any:
            begun.set()
            assert go.wait(PATIENCE_S)
            if version == 1:
                raise GraphMismatch("it is broken")
            return load(name, version)

        app.service.students._load = slow
        build_bundle(store_dir / "toy" / "2", seed=1)
        move_alias(store_dir, "toy", production=1, canary=2)
        assert await asyncio.to_thread(begun.wait, PATIENCE_S)
        app.service.students.take_out("toy", 1, detail="its backend died")
        go.set()
        await _until(app, lambda: "canary" in _family(app).aliases and "graph_mismatch" in str(_family(app).refused))
        assert list(_family(app).aliases) == ["canary"]
        assert not app.service.ready

    async def test_what_is_not_served_cannot_be(self, app: Any) -> None:
        app.service.students.take_out("toy", 7, detail="")
        app.service.students.take_out("nobody", 1, detail="")
        assert app.service.ready


class TestReadiness:
    async def test_a_refused_student_holds_it_back_but_not_the_others(self, start: Any, store_dir: Path) -> None:
        _break(store_dir, "1")
        async with start(wait=False) as app:
            await _until(app, lambda: "toy-embed" in app.service.students.served())
            ready = await app.client.get("/health/ready")
            assert ready.status_code == 503
            assert ready.json()["waiting_for"] == {"toy": "refused: digest_mismatch"}
            assert (await app.post("/v1/embed", {"inputs": "x"})).status_code == 200
            response = await _ask(app)
            assert (response.status_code, response.json()["code"]) == (503, "not_ready")

    async def test_until_somebody_points_to_a_whole_one(
        self, start: Any, store_dir: Path, build_bundle: Any, move_alias: Any
    ) -> None:
        _break(store_dir, "1")
        async with start(wait=False) as app:
            await _until(app, lambda: "toy-embed" in app.service.students.served())
            build_bundle(store_dir / "toy" / "2", seed=1)
            move_alias(store_dir, "toy", production=2)
            await _until(app, lambda: app.service.ready)
            assert (await app.client.get("/health/ready")).json() == {
                "status": "ready",
                "served": {"toy": [2], "toy-embed": [1]},
            }

    async def test_only_the_required_ones_count(self, start: Any, store_dir: Path) -> None:
        _break(store_dir, "1")
        async with start(required="toy-embed"):
            pass

    async def test_a_required_student_may_come_later(
        self, start: Any, store_dir: Path, build_bundle: Any, move_alias: Any
    ) -> None:
        async with start(wait=False, required="late") as app:
            await _until(app, lambda: len(app.service.students.served()) == 2)
            assert not app.service.ready
            build_bundle(store_dir / "late" / "1", name="late")
            move_alias(store_dir, "late", production=1)
            await _until(app, lambda: app.service.ready)

    async def test_an_empty_store_is_not_ready(self, start: Any, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        async with start(wait=False, store=tmp_path / "empty") as app:
            await _until(app, lambda: app.service.students._looked)
            response = await app.client.get("/health/ready")
            assert (response.status_code, response.json()["detail"]) == (503, "no student is in service yet")
            assert (await app.post("/v1/classify", {"inputs": "x"})).status_code == 503

    async def test_before_the_first_look(self, start: Any) -> None:
        async with start(wait=False) as app:
            responses = [await _ask(app), await app.post("/v1/classify", {"inputs": "x"})]
            for response in responses:
                assert (response.status_code, response.json()["code"]) == (503, "not_ready")
                assert response.headers["retry-after"] == "1"

    async def test_a_student_that_was_served_is_not_awaited_again(
        self, app: Any, store_dir: Path, move_alias: Any
    ) -> None:
        move_alias(store_dir, "toy", canary=1)
        await _until(app, lambda: _family(app).production is None)
        assert app.service.ready
        assert (await _ask(app)).status_code == 404
        assert (await _ask(app, "toy@canary")).status_code == 200


async def test_the_state_can_be_read(app: Any) -> None:
    assert repr(app.service.students) == "Students(served={'toy': [1], 'toy-embed': [1]}, waiting_for={})"
