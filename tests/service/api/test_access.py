"""Who is let in, and how much they may: keys, scopes, quotas on a clock that the test moves."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from service.api.access import ADMINISTRATOR, ANYONE, Access, Caller
from service.api.keys import digest_of
from service.errors import Forbidden, QuotaExceeded, SettingsInvalid, Unauthorized
from service.metrics import Metrics
from service.settings import Settings

ADMIN_KEY = "the admin's own key"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def scope(path: str = "/v1/classify", *, method: str = "POST", **headers: str) -> dict[str, Any]:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "path": path, "method": method, "headers": [(b"host", b"x"), *raw]}


def entry(name: str, **limits: Any) -> dict[str, Any]:
    return {"name": name, "sha256": digest_of(f"key of {name}"), **limits}


def write(path: Path, *keys: Any) -> Path:
    aside = path.with_suffix(".new")
    aside.write_text(json.dumps({"schema": 1, "keys": keys}))
    aside.replace(path)
    return path


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def access(tmp_path: Path, clock: Clock) -> Callable[..., Access]:
    """`access(*entries)`: keys from a file, and an admin key."""

    def make(*keys: Any, admin: str | None = ADMIN_KEY) -> Access:
        path = write(tmp_path / "keys.json", *keys)
        secret = None if admin is None else SecretStr(admin)
        return Access(Settings(api_keys=path, admin_key=secret), Metrics(), clock=clock)

    return make


WEB = Caller("web")


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer key of web"},
        {"authorization": "bearer   key of web "},
        {"authorization": "key of web"},
        {"x_api_key": "key of web"},
        {"x_api_key": "Bearer key of web"},
        {"authorization": "Basic of-a-proxy", "x_api_key": "key of web"},
    ],
)
def test_a_key_may_come_in_either_header(access: Any, headers: dict[str, str]) -> None:
    assert access(entry("other"), entry("web")).caller(scope(**headers)) == WEB


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ({}, "send `authorization: Bearer KEY`"),
        ({"authorization": ""}, "send `authorization: Bearer KEY`"),
        ({"authorization": "Bearer "}, "what came is none"),
        ({"authorization": "Bearer key of nobody"}, "what came is none"),
        ({"x_api_key": digest_of("key of web")}, "what came is none"),
    ],
)
def test_no_key_or_a_wrong_one(access: Any, headers: dict[str, str], told: str) -> None:
    with pytest.raises(Unauthorized, match=told) as raised:
        access(entry("web")).caller(scope(**headers))
    assert "nobody" not in raised.value.detail


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/health/live", "GET"),
        ("/health/startup", "GET"),
        ("/v2/health/ready", "GET"),
        ("/tei/health", "GET"),
        ("/tei/toy/ping", "GET"),
        ("/metrics", "GET"),
        ("/docs", "GET"),
        ("/openapi.json", "GET"),
        ("/v1/classify", "OPTIONS"),
    ],
)
def test_what_needs_no_key(access: Any, path: str, method: str) -> None:
    assert access(entry("web")).caller(scope(path, method=method)) == ANYONE


@pytest.mark.parametrize("path", ["/", "/v1/models", "/healthy", "/metrics/", "/v2", "/nowhere", "/tei/info"])
def test_everything_else_does(access: Any, path: str) -> None:
    with pytest.raises(Unauthorized):
        access(entry("web")).caller(scope(path, method="GET"))


def test_each_key_has_its_scope(access: Any) -> None:
    doors = access(entry("web"))
    assert doors.caller(scope("/admin/status", x_api_key=ADMIN_KEY)) == ADMINISTRATOR
    with pytest.raises(Forbidden, match="does not open /admin"):
        doors.caller(scope("/admin/status", x_api_key="key of web"))
    with pytest.raises(Forbidden, match="opens /admin alone"):
        doors.caller(scope(x_api_key=ADMIN_KEY))
    with pytest.raises(Unauthorized, match="the admin key is needed, and what came is none"):
        doors.caller(scope("/admin", authorization="Bearer wrong"))
    with pytest.raises(Unauthorized, match="send"):
        doors.caller(scope("/admin/anything"))
    assert doors.caller(scope("/administrator", x_api_key="key of web")) == WEB


def test_admin_is_left_to_the_router_where_it_is_off(access: Any) -> None:
    doors = access(entry("web"), admin=None)
    assert doors.caller(scope("/admin/status")) == ANYONE
    with pytest.raises(Unauthorized):
        doors.administrator(scope("/admin/status", x_api_key="key of nobody"))


def test_without_a_file_everyone_may(clock: Clock) -> None:
    doors = Access(Settings(), Metrics(), clock=clock)
    assert doors.open
    assert doors.caller(scope()) == ANYONE
    doors.admit(ANYONE, model="any")
    doors.allow(ANYONE, tokens=10**9, depth=1.0, full_depth=True)
    doors.charge(ANYONE, items=10**9, compute_tokens=1e18)
    assert doors.status() == []


def test_a_broken_file_at_the_start_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text('{"schema": 1, "keys": [{"name": "web"}]}')
    with pytest.raises(SettingsInvalid, match=r"keys\.json: /keys/0/sha256: Field required"):
        Access(Settings(api_keys=path), Metrics())


def test_keys_come_and_go_while_it_runs(access: Any, clock: Clock, tmp_path: Path) -> None:
    doors = access(entry("web"), entry("gone"))
    assert doors.caller(scope(x_api_key="key of gone")) == Caller("gone")
    write(tmp_path / "keys.json", entry("web"), entry("fresh"))
    clock.now += 1
    assert doors.caller(scope(x_api_key="key of fresh")) == Caller("fresh")
    with pytest.raises(Unauthorized):
        doors.caller(scope(x_api_key="key of gone"))
    with pytest.raises(Unauthorized, match="withdrawn"):
        doors.allow(Caller("gone"), tokens=1, depth=1.0)
    doors.charge(Caller("gone"), items=1, compute_tokens=1.0)
    (tmp_path / "keys.json").write_text("broken")
    clock.now += 1
    assert doors.caller(scope(x_api_key="key of fresh")) == Caller("fresh")


def test_a_key_for_some_students(access: Any) -> None:
    doors = access(entry("web", models=["intent"]))
    doors.admit(WEB, model="intent")
    with pytest.raises(Forbidden, match="may not ask for student 'sentiment'"):
        doors.admit(WEB, model="sentiment")


def test_the_largest_compute_of_a_request_counts_depth(access: Any) -> None:
    doors = access(entry("web", max_request_compute=1000))
    doors.allow(WEB, tokens=4000, depth=0.25)
    doors.allow(WEB, tokens=1000, depth=1.0)
    with pytest.raises(Forbidden, match=r"needs 4000 full-depth tokens \(4000 tokens at depth 1\).* 1000 at once"):
        doors.allow(WEB, tokens=4000, depth=1.0)


def test_full_depth_may_be_kept_from_a_key(access: Any) -> None:
    doors = access(entry("web", full_depth=False), entry("other"))
    doors.allow(WEB, tokens=10, depth=1.0)
    doors.allow(Caller("other"), tokens=10, depth=1.0, full_depth=True)
    with pytest.raises(Forbidden, match="full depth"):
        doors.allow(WEB, tokens=10, depth=1.0, full_depth=True)


def test_a_quota_in_debt_recovers_when_it_said(access: Any, clock: Clock) -> None:
    doors = access(entry("web", items_per_minute=60))
    doors.admit(WEB, model="toy")
    doors.charge(WEB, items=90, compute_tokens=0.0)
    with pytest.raises(QuotaExceeded, match="used up its 60 items a minute") as raised:
        doors.admit(WEB, model="toy")
    assert raised.value.retry_after_s == pytest.approx(31.0)
    clock.now += raised.value.retry_after_s - 0.01
    with pytest.raises(QuotaExceeded):
        doors.allow(WEB, tokens=1, depth=1.0)
    clock.now += 0.01
    doors.allow(WEB, tokens=1, depth=1.0)
    doors.charge(WEB, items=1, compute_tokens=0.0)
    with pytest.raises(QuotaExceeded):
        doors.admit(WEB, model="toy")


def test_a_bucket_holds_a_minute_at_most(access: Any, clock: Clock) -> None:
    doors = access(entry("web", items_per_minute=60))
    clock.now += 3600
    doors.admit(WEB, model="toy")
    doors.charge(WEB, items=60, compute_tokens=0.0)
    with pytest.raises(QuotaExceeded):
        doors.admit(WEB, model="toy")


def test_the_longer_wait_of_two_quotas_is_told(access: Any) -> None:
    doors = access(entry("web", items_per_minute=60, compute_per_minute=600))
    doors.charge(WEB, items=60, compute_tokens=1200.0)
    with pytest.raises(QuotaExceeded, match="600 full-depth tokens a minute") as raised:
        doors.admit(WEB, model="toy")
    assert raised.value.retry_after_s == pytest.approx(60.1)


def test_quotas_are_apart(access: Any) -> None:
    doors = access(entry("web", items_per_minute=1), entry("other", items_per_minute=1))
    doors.charge(WEB, items=1, compute_tokens=0.0)
    with pytest.raises(QuotaExceeded):
        doors.admit(WEB, model="toy")
    doors.admit(Caller("other"), model="toy")
    assert b'understudy_quota_refused_total{key="web"} 1.0' in doors._metrics.exposition()


def test_a_reload_forgives_no_debt_and_gives_no_more_than_the_new_limit(
    access: Any, clock: Clock, tmp_path: Path
) -> None:
    doors = access(entry("web", items_per_minute=60), entry("rich", items_per_minute=600))
    doors.charge(WEB, items=120, compute_tokens=0.0)
    write(
        tmp_path / "keys.json",
        entry("web", items_per_minute=120, compute_per_minute=10),
        entry("rich", items_per_minute=6),
    )
    clock.now += 1
    doors.caller(scope(x_api_key="key of web"))
    web, rich = doors.status()
    assert web["left"] == {"items": -59.0, "compute": 10.0}
    assert web["retry_after_s"] == 30.0
    assert rich["left"] == {"items": 6.0}


def test_the_status_tells_neither_keys_nor_digests(access: Any) -> None:
    doors = access(entry("web", items_per_minute=60))
    doors.charge(WEB, items=15, compute_tokens=3.0)
    (told,) = doors.status()
    assert told == {
        "name": "web",
        "items_per_minute": 60.0,
        "compute_per_minute": None,
        "max_request_compute": None,
        "full_depth": True,
        "models": None,
        "left": {"items": 45.0},
        "retry_after_s": 0.0,
    }
    assert repr(doors) == "Access(open=False, keys=1, admin=True)"
