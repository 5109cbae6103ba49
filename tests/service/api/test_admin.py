"""`/admin`: off without its key; moving aliases until they are served; trying a version; looking inside."""

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from service.api import admin
from service.api.keys import digest_of
from service.store.disk import Disk
from service.store.store import Store

KEY = "the key of the administrator"
HEADERS = {"authorization": f"Bearer {KEY}"}


@pytest.fixture
async def app(start: Any, store_dir: Path, build_bundle: Callable[..., Path]) -> AsyncIterator[Any]:
    """A started app with an admin key, whose `toy` has four versions, the first in production."""
    for version in (2, 3, 4):
        build_bundle(store_dir / "toy" / str(version), seed=version)
    async with start(admin_key=KEY) as running:
        running.client.headers.update(HEADERS)
        yield running


async def ask(app: Any, path: str, document: Any = None) -> tuple[int, dict[str, Any]]:
    content = None if document is None else json.dumps(document)
    response = await app.client.post(f"/admin/students/{path}", content=content)
    return response.status_code, response.json()


async def answers(app: Any) -> int:
    version: int = (await app.post("/v1/classify", {"inputs": "good", "model": "toy"})).json()["version"]
    return version


@pytest.mark.parametrize("path", ["/admin/status", "/admin", "/admin/nowhere"])
async def test_without_a_key_set_there_is_no_such_path(start: Any, path: str) -> None:
    async with start(wait=False) as app:
        response = await app.client.get(path, headers=HEADERS)
        assert (response.status_code, response.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({}, 401, "unauthorized"),
        ({"authorization": "Bearer wrong"}, 401, "unauthorized"),
        ({"x-api-key": "an API key"}, 403, "forbidden"),
        ({"x-api-key": KEY}, 200, None),
    ],
)
async def test_only_the_admin_key_opens_it(
    start: Any, tmp_path: Path, headers: dict[str, str], status: int, code: str | None
) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"schema": 1, "keys": [{"name": "web", "sha256": digest_of("an API key")}]}))
    async with start(wait=False, admin_key=KEY, api_keys=keys) as app:
        response = await app.client.get("/admin/status", headers=headers)
        assert (response.status_code, response.json().get("code")) == (status, code)


async def test_it_is_documented_only_where_it_is(app: Any, start: Any) -> None:
    assert "/admin/status" in (await app.client.get("/openapi.json")).json()["paths"]
    async with start(wait=False) as other:
        assert not any("/admin" in path for path in (await other.client.get("/openapi.json")).json()["paths"])


async def test_a_moved_alias_is_served_when_the_answer_comes(app: Any, store_dir: Path) -> None:
    moved = await ask(app, "toy/aliases/production", {"version": 2})
    assert moved == (200, {"model": "toy", "alias": "production", "version": 2, "served": True})
    assert await answers(app) == 2
    assert Store(store_dir).resolve("toy").version == 2


async def test_promoting_and_rolling_back(app: Any) -> None:
    assert (await ask(app, "toy/aliases/canary", {"version": 3}))[0] == 200
    assert (await ask(app, "toy/aliases/next", {"version": 4}))[0] == 200
    assert (await ask(app, "toy/promote"))[1]["version"] == 3
    assert await answers(app) == 3
    assert (await ask(app, "toy/promote", {"from": "next"}))[1]["version"] == 4
    assert await answers(app) == 4
    assert (await ask(app, "toy/rollback"))[1] == {"model": "toy", "alias": "production", "version": 3, "served": True}
    assert (await ask(app, "toy/rollback", {}))[1]["version"] == 1
    assert await answers(app) == 1
    status, problem = await ask(app, "toy/rollback")
    assert (status, problem["code"]) == (404, "unknown_model")
    assert "no version before 1 is known" in problem["detail"]


@pytest.mark.parametrize(
    ("path", "document", "status", "told"),
    [
        ("toy/aliases/production", {"version": 9}, 404, "no version 9"),
        ("nobody/aliases/production", {"version": 1}, 404, "no version 1"),
        ("Toy@2/aliases/production", {"version": 1}, 404, "not a student's name"),
        ("toy/aliases/7", {"version": 1}, 422, "cannot be an alias"),
        ("toy/aliases/production", {}, 422, "wrong fields"),
        ("toy/aliases/production", {"version": "1"}, 422, "wrong fields"),
        ("toy/aliases/production", {"version": 0}, 422, "wrong fields"),
        ("toy/aliases/production", {"version": 1, "more": 1}, 422, "wrong fields"),
        ("toy/aliases/production", [], 422, "wrong fields"),
        ("toy/promote", None, 404, "no alias 'canary'"),
        ("toy/promote", {"from": "7"}, 422, "cannot be an alias"),
        ("nobody/promote", None, 404, "no student 'nobody'"),
        ("nobody/rollback", None, 404, "no student 'nobody'"),
        ("toy/load", {"version": 9}, 404, "no version 9"),
        ("toy/load", None, 422, "wrong fields"),
    ],
)
async def test_what_is_asked_wrongly(app: Any, path: str, document: Any, status: int, told: str) -> None:
    got, problem = await ask(app, path, document)
    assert got == status
    assert told in problem["detail"]


async def test_a_body_that_is_not_json(app: Any) -> None:
    response = await app.client.post("/admin/students/toy/load", content=b"{")
    assert (response.status_code, response.json()["code"]) == (400, "malformed")


async def test_a_broken_version_is_refused_before_the_alias_moves(app: Any, store_dir: Path) -> None:
    (store_dir / "toy" / "2" / "tokenizer.json").write_text("x")
    status, problem = await ask(app, "toy/aliases/production", {"version": 2})
    assert (status, problem["code"]) == (409, "conflict")
    assert problem["detail"].startswith("digest_mismatch: tokenizer.json")
    assert Store(store_dir).resolve("toy").version == 1


async def test_another_space_must_be_asked_for(app: Any, store_dir: Path, build_bundle: Callable[..., Path]) -> None:
    build_bundle(store_dir / "toy-embed" / "2", task="embed", space_id="toy-space-2")
    path, body = "toy-embed/aliases/production", {"version": 2}
    status, problem = await ask(app, path, body)
    assert (status, problem["detail"][:14]) == (409, "space_mismatch")
    assert (await ask(app, path, body | {"any_space": True}))[0] == 200
    assert (await ask(app, "toy-embed/rollback"))[0] == 409
    assert (await ask(app, "toy-embed/rollback", {"any_space": True}))[0] == 200


async def test_what_this_service_refuses_is_said_though_the_alias_has_moved(
    app: Any, store_dir: Path, build_bundle: Callable[..., Path]
) -> None:
    def spoil(manifest: dict[str, Any]) -> None:
        del manifest["precisions"]["int8"]
        manifest["default_precision"] = "fp32"

    build_bundle(store_dir / "toy" / "5", seed=5, precisions=("fp32",))
    app.service.students._load = _refusing(app.service.students._load, version=5)
    status, problem = await ask(app, "toy/aliases/production", {"version": 5})
    assert status == 409
    assert "points at version 5 now, which this service refuses (settings_invalid: not here)" in problem["detail"]
    assert "version 1 answers there" in problem["detail"]
    assert await answers(app) == 1
    status, problem = await ask(app, "toy/aliases/fresh", {"version": 5})
    assert (status, "nothing answers there" in problem["detail"]) == (409, True)
    assert (await ask(app, "toy/rollback"))[1]["version"] == 1


def _refusing(load: Callable[[str, int], Any], *, version: int) -> Callable[[str, int], Any]:
    from service.errors import SettingsInvalid

    def refuse(name: str, number: int) -> Any:
        if number == version:
            raise SettingsInvalid("not here")
        return load(name, number)

    return refuse


async def test_what_takes_too_long_is_told_as_under_way(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "FOLLOW_S", 0.0)
    monkeypatch.setattr(app.service.students, "look", lambda: None)
    status, document = await ask(app, "toy/aliases/production", {"version": 2})
    assert (status, document["served"]) == (202, False)


async def test_a_dry_run_loads_and_serves_nothing(app: Any, store_dir: Path) -> None:
    status, document = await ask(app, "toy/load", {"version": 2})
    assert (status, document["would_serve"], document["card"]["version"]) == (200, True, 2)
    (store_dir / "toy" / "3" / "tokenizer.json").write_text("x")
    status, document = await ask(app, "toy/load", {"version": 3})
    assert (status, document["would_serve"], document["error"]) == (200, False, "digest_mismatch")
    assert "tokenizer.json" in document["detail"]
    assert app.service.students.served()["toy"] == [1]
    assert await app.metric('understudy_bundle_refused_total{error="digest_mismatch",model="toy"}') is None


class ReadOnlyDisk(Disk):
    def write(self, target: Path, raw: bytes) -> None:
        raise OSError(30, "Read-only file system", str(target))


async def test_a_store_that_cannot_be_written(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "Store", lambda root: Store(root, disk=ReadOnlyDisk()))
    status, problem = await ask(app, "toy/aliases/production", {"version": 2})
    assert (status, problem["code"]) == (409, "conflict")
    assert "toy@production: not moved: Read-only file system" in problem["detail"]


async def test_the_status_tells_everything_but_keys(start: Any, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    entry = {"name": "web", "sha256": digest_of("an API key"), "items_per_minute": 60}
    keys.write_text(json.dumps({"schema": 1, "keys": [entry]}))
    async with start(admin_key=KEY, api_keys=keys) as app:
        asked = {"inputs": ["good", "bad"], "model": "toy"}
        assert (await app.client.post("/v1/classify", json=asked, headers={"x-api-key": "an API key"})).is_success
        response = await app.client.get("/admin/status", headers=HEADERS)
        document = response.json()
    assert (document["ready"], document["live"], document["draining"]) == (True, True, False)
    assert document["students"][0]["id"] == "toy"
    assert document["students"][0]["pointed"] == {"production": 1}
    assert document["settings"]["admin_key"] == "set"
    assert document["callers"][0]["name"] == "web"
    assert document["callers"][0]["left"]["items"] < 60
    assert "ngine" in document["engine"]
    assert KEY not in response.text
    assert entry["sha256"] not in response.text


async def test_a_stopping_service_moves_nothing(app: Any) -> None:
    await app.service.drain()
    assert (await ask(app, "toy/aliases/production", {"version": 2}))[0] == 503
