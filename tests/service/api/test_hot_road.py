"""The direct routes: what they answer is what FastAPI's road answers, for every kind of request, right and wrong."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

PATHS = ("/v1/classify", "/v1/embed", "/v1/rank", "/classify", "/embed", "/rank")


@pytest.fixture
async def roads(start: Any) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient, Any]]:
    """A client of the app, and one of the same app below another's path, where its routes are not direct ones."""
    async with start(max_items=64) as app:
        asgi = app.client._transport.app
        outer = Starlette(routes=[Mount("/below", asgi)])
        transport = httpx.ASGITransport(app=outer, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://service/below") as below:
            yield app.client, below, app


async def test_both_roads_answer_alike(roads: Any, random_bodies: Any, told: Any) -> None:
    direct, below, _ = roads
    statuses = set()
    for path, body in random_bodies(PATHS, 250):
        responses = [await client.post(path, content=body) for client in (direct, below)]
        ours, theirs = [told(one.status_code, one.headers, one.content) for one in responses]
        assert ours == theirs, (path, body)
        statuses.add(ours[0])
    assert {200, 400, 404, 413, 422} <= statuses


async def test_both_are_counted_by_their_route(roads: Any) -> None:
    direct, below, app = roads
    for client in (direct, below):
        assert (await client.post("/v1/classify", json={"inputs": "x"})).status_code == 200
    counted = 'understudy_requests_total{endpoint="/v1/classify",model="toy",status="200",version="1"}'
    assert await app.metric(counted) == 2


async def test_the_answers_times(roads: Any) -> None:
    direct, _, _ = roads
    for path, body in (
        ("classify", {"inputs": "good"}),
        ("embed", {"inputs": "x"}),
        ("classify", {"inputs": ["x"] * 64}),
    ):
        response = await direct.post(f"/v1/{path}", json=body)
        names = ("x-queue-time", "x-inference-time", "x-tokenization-time", "x-total-time")
        queue, inference, tokenization, total = (float(response.headers[name]) for name in names)
        assert 0 < tokenization <= total
        assert 0 <= queue + inference <= total + 0.01


async def test_an_id_comes_back(roads: Any) -> None:
    for client in roads[:2]:
        response = await client.post("/v1/classify", json={"inputs": "x"}, headers={"x-request-id": "mine"})
        assert response.headers.get_list("x-request-id") == ["mine"]


async def test_a_large_request_does_not_hold_up_a_small_one(start: Any) -> None:
    async with start() as app:
        large = asyncio.create_task(app.post("/v1/classify", {"inputs": ["it is not good " * 20] * 2048}))
        async with asyncio.timeout(30):
            while not app.service.tokenizing.waiting_items:  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(0)
        small = await app.post("/v1/classify", {"inputs": "good"})
        assert small.status_code == 200
        assert not large.done()
        assert len((await large).json()["results"]) == 2048


PAGE = {"origin": "https://page.example"}
PREFLIGHT = PAGE | {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}


class TestPages:
    """Browsers' pages of other origins."""

    async def test_may_not_call_by_default(self, app: Any) -> None:
        response = await app.client.post("/v1/classify", json={"inputs": "x"}, headers=PAGE)
        assert "access-control-allow-origin" not in response.headers
        assert (await app.client.options("/v1/classify", headers=PREFLIGHT)).status_code == 405

    async def test_may_where_a_setting_says_so(self, start: Any) -> None:
        async with start(cors_origins="https://page.example") as app:
            for body, status in (({"inputs": "x"}, 200), ({}, 422)):
                response = await app.client.post("/v1/classify", json=body, headers=PAGE)
                assert response.status_code == status
                assert response.headers["access-control-allow-origin"] == "https://page.example"
                assert "x-total-time" in response.headers["access-control-expose-headers"]
            allowed = await app.client.options("/v1/classify", headers=PREFLIGHT)
            assert (allowed.status_code, "POST" in allowed.headers["access-control-allow-methods"]) == (200, True)
            other = await app.client.post("/v1/classify", json={"inputs": "x"}, headers={"origin": "https://other"})
            assert "access-control-allow-origin" not in other.headers


HOSTILE = "evil\n# TYPE evil counter\nevil 1"


async def test_nothing_a_request_says_becomes_a_label(app: Any) -> None:
    for body in (
        {"model": HOSTILE, "inputs": "x"},
        {"inputs": HOSTILE},
        {HOSTILE: 1},
        {"inputs": "x", "exit": HOSTILE},
    ):
        await app.post("/v1/classify", body)
    headers = {"x-request-id": "evil-id", "x-priority": "evil", "user-agent": "evil", "x-api-key": "evil"}
    await app.client.post("/v1/classify", json={"inputs": "x"}, headers=headers)
    await app.client.post("/evil", json={})
    await app.client.request("EVIL", "/v1/classify")
    await app.client.get("/v1/models/evil")
    assert "evil" not in (await app.client.get("/metrics")).text.lower()
