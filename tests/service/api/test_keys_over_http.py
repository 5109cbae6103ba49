"""Keys, quotas and the compute of a request, as callers meet them."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from service.api.keys import digest_of

KEYS = {
    "free": {},
    "limited": {"items_per_minute": 60},
    "small": {"max_request_compute": 10},
    "shallow": {"full_depth": False},
    "embedder": {"models": ["toy-embed"]},
}
TEXT = "this film is great"


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer the key of {name}"}


@pytest.fixture
async def app(start: Any, tmp_path: Path) -> AsyncIterator[Any]:
    entries = [{"name": name, "sha256": digest_of(f"the key of {name}"), **limits} for name, limits in KEYS.items()]
    (tmp_path / "keys.json").write_text(json.dumps({"schema": 1, "keys": entries}))
    async with start(api_keys=tmp_path / "keys.json") as running:
        yield running


async def ask(app: Any, name: str, path: str = "/v1/classify", **body: Any) -> Any:
    return await app.client.post(path, json={"inputs": TEXT, **body}, headers=bearer(name))


async def test_without_a_key_nothing_but_probes_metrics_and_documentation(app: Any) -> None:
    for path in ("/health/startup", "/health/live", "/health/ready", "/metrics", "/docs", "/openapi.json"):
        assert (await app.client.get(path)).status_code == 200
    for path in ("/v1/models", "/nowhere", "/v1/classify"):
        response = await app.client.get(path)
        assert (response.status_code, response.json()["code"]) == (401, "unauthorized")
        assert response.headers["www-authenticate"] == "Bearer"
    assert (await app.client.get("/v1/models", headers=bearer("free"))).status_code == 200
    assert (await app.client.get("/nowhere", headers=bearer("free"))).status_code == 404


async def test_a_request_without_a_key_is_refused_before_its_body_is_looked_at(app: Any) -> None:
    assert (await app.client.post("/v1/classify", content=b"{")).status_code == 401


async def test_keys_are_never_told(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    response = await app.client.post("/v1/classify", json={}, headers={"x-api-key": "secretive"})
    assert response.status_code == 401
    assert "secretive" not in response.text + caplog.text


async def test_a_student_that_is_not_the_keys(app: Any) -> None:
    response = await ask(app, "embedder", model="toy@production")
    assert (response.status_code, response.json()["code"]) == (403, "forbidden")
    assert "'toy'" in response.json()["detail"]
    assert (await ask(app, "embedder", "/v1/embed")).status_code == 200


async def test_the_quota_is_used_up_and_comes_back(app: Any) -> None:
    access, now = app.service.access, time.monotonic()
    access._clock = lambda: now
    assert (await ask(app, "limited", inputs=[TEXT] * 90)).status_code == 200
    refused = await ask(app, "limited")
    assert (refused.status_code, refused.json()["code"]) == (429, "quota_exceeded")
    wait_ms = int(refused.headers["retry-after-ms"])
    assert 29_000 < wait_ms <= 31_000
    assert int(refused.headers["retry-after"]) == -(-wait_ms // 1000)
    assert (await ask(app, "free")).status_code == 200
    now += (wait_ms - 100) / 1e3
    assert (await ask(app, "limited")).status_code == 429
    now += 0.1
    assert (await ask(app, "limited")).status_code == 200
    assert await app.metric('understudy_quota_refused_total{key="limited"}') == 2


async def test_full_depth_counts_more_than_an_exit(app: Any) -> None:
    # 6 tokens each; the point certified for the default risk has a mean depth below 1
    assert (await ask(app, "small", inputs=[TEXT] * 2)).status_code == 200
    response = await ask(app, "small", inputs=[TEXT] * 2, exit="never")
    assert (response.status_code, response.json()["code"]) == (403, "forbidden")
    assert "12 full-depth tokens (12 tokens at depth 1)" in response.json()["detail"]


@pytest.mark.parametrize(
    ("exit", "status"), [("default", 200), ({"risk": 0.01}, 200), ("never", 403), ({"risk": 1e-9}, 403)]
)
async def test_full_depth_may_be_kept_from_a_key(app: Any, exit: Any, status: int) -> None:
    assert (await ask(app, "shallow", exit=exit)).status_code == status


async def test_a_student_without_early_exits_answers_keys_without_full_depth(app: Any) -> None:
    assert (await ask(app, "shallow", "/v1/embed", exit="never")).status_code == 200


async def test_what_was_really_taken_is_charged(app: Any) -> None:
    def left() -> float:
        return next(told["left"]["items"] for told in app.service.access.status() if told["name"] == "limited")

    now = time.monotonic()
    app.service.access._clock = lambda: now
    app.service.access.status()
    assert (await ask(app, "limited", inputs=[TEXT] * 5)).status_code == 200
    assert left() == 55
    assert (await ask(app, "limited", inputs=["x " * 99] * 5, truncate="error")).status_code == 422
    assert left() == 55


async def test_who_leaves_pays_what_was_expected(app: Any) -> None:
    now = time.monotonic()
    app.service.access._clock = lambda: now
    runner = app.hold("toy")
    asking = asyncio.create_task(ask(app, "limited", inputs=[TEXT] * 5))
    assert await asyncio.to_thread(runner.running.wait, 30)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    runner.go.set()
    told = next(told for told in app.service.access.status() if told["name"] == "limited")
    assert told["left"]["items"] == 55


async def test_a_ranking_is_charged_too(app: Any) -> None:
    now = time.monotonic()
    app.service.access._clock = lambda: now
    body = {"model": "toy-embed", "query": "good", "passages": [TEXT, "where is it?"]}
    response = await app.client.post("/v1/rank", json=body, headers=bearer("limited"))
    assert response.status_code == 200, response.text
    told = next(told for told in app.service.access.status() if told["name"] == "limited")
    assert told["left"]["items"] == 57
