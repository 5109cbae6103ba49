"""`/v1/models`, the probes, `/metrics`, and the error shape of every route."""

from typing import Any

import pytest


async def test_the_list_is_openais(app: Any) -> None:
    document = (await app.client.get("/v1/models")).json()
    assert document["object"] == "list"
    assert [entry["id"] for entry in document["data"]] == ["toy", "toy-embed"]
    for entry in document["data"]:
        assert (entry["object"], entry["owned_by"], entry["created"]) == ("model", "understudy", 1735689600)


async def test_an_entry_says_what_is_served(app: Any) -> None:
    entry = (await app.client.get("/v1/models/toy")).json()
    assert (entry["task"], entry["production"], entry["aliases"]) == ("classify", 1, {"production": 1})
    (version,) = entry["versions"]
    assert version["labels"] == ["negative", "neutral", "positive"]
    assert version["exits"] == [{"id": "early", "depth": 0.25}, {"id": "full", "depth": 1.0}]
    assert (version["backend"], version["precision"], version["precisions"]) == (
        "onnxruntime",
        "int8",
        ["fp32", "int8"],
    )
    assert [(point["risk"], point["delta"]) for point in version["operating_points"]] == [(0.01, 0.05), (0.05, 0.05)]
    assert version["quality"] is None


async def test_the_precision_is_a_setting(start: Any) -> None:
    async with start(precision="fp32") as app:
        assert (await app.client.get("/v1/models/toy")).json()["versions"][0]["precision"] == "fp32"


async def test_an_unknown_student(app: Any) -> None:
    response = await app.client.get("/v1/models/none")
    assert (response.status_code, response.json()["code"]) == (404, "unknown_model")


async def test_live_and_ready(app: Any) -> None:
    assert (await app.client.get("/health/live")).json() == {"status": "live"}
    assert (await app.client.get("/health/ready")).json() == {
        "status": "ready",
        "served": {"toy": [1], "toy-embed": [1]},
    }


async def test_a_dead_engine_is_neither(app: Any) -> None:
    await app.service.engine.close()
    for probe in ("live", "ready"):
        response = await app.client.get(f"/health/{probe}")
        assert (response.status_code, response.json()["code"]) == (503, "not_ready")
    assert (await app.post("/v1/classify", {"inputs": "x"})).status_code == 503


async def test_requests_are_counted_once_by_what_is_served(app: Any) -> None:
    for document in ({"inputs": "this film is great"}, {"inputs": ["x", ""]}, {"model": "evil\n", "inputs": "x"}, {}):
        await app.post("/v1/classify", document)
    await app.client.get("/nowhere/at/all")
    series = 'understudy_requests_total{endpoint="%s",model="%s",status="%d",version="%s"}'
    assert await app.metric(series % ("/v1/classify", "toy", 200, "1")) == 2
    assert await app.metric(series % ("/v1/classify", "unknown", 404, "")) == 1
    assert await app.metric(series % ("/v1/classify", "unknown", 422, "")) == 1
    assert await app.metric(series % ("other", "", 404, "")) == 1
    assert "evil" not in (await app.client.get("/metrics")).text


async def test_items_are_counted_by_exit_stage_and_depth(app: Any) -> None:
    await app.post("/v1/classify", {"inputs": ["this film is great", "where is it?"]})
    assert await app.metric('understudy_exits_total{exit="early",model="toy",version="1"}') == 1
    assert await app.metric('understudy_exits_total{exit="full",model="toy",version="1"}') == 1
    assert await app.metric('understudy_depth_sum{model="toy"}') == 1.25
    assert await app.metric('understudy_queue_seconds_count{model="toy"}') == 2
    assert await app.metric('understudy_batch_items_sum{model="toy",stage="00"}') == 2
    assert await app.metric('understudy_batch_items_sum{model="toy",stage="01"}') == 1
    assert await app.metric('understudy_batch_tokens_sum{model="toy",stage="00"}') == 12
    assert await app.metric('understudy_stage_seconds_count{backend="onnxruntime",model="toy",stage="01"}') == 1
    assert await app.metric('understudy_queue_items{model="toy",stage="00"}') == 0
    assert await app.metric("understudy_inflight_requests") == 0


async def test_padding_is_measured(app: Any) -> None:
    await app.post("/v1/classify", {"inputs": ["good", "good good good"], "exit": "never"})
    # one run of all stages, with 3 + 5 tokens in 2 x 5 places
    assert await app.metric('understudy_padding_ratio_sum{model="toy"}') == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1/classify", 405),
        ("PUT", "/v1/classify", 405),
        ("POST", "/v1/classify/", 404),
        ("POST", "/v1/rank", 400),
        ("POST", "/metrics", 405),
        ("POST", "/v1/classify", 400),
        ("POST", "/embed", 400),
        ("GET", "/v1/models/none", 404),
        ("GET", "/v1/models/a/b", 404),
    ],
)
async def test_one_shape_for_every_error(app: Any, method: str, path: str, status: int) -> None:
    response = await app.client.request(method, path)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert set(document) >= {"type", "title", "status", "detail", "code"}
    assert document["status"] == status
    assert document["type"].endswith(document["code"])


async def test_a_wrong_method_names_the_right_one(app: Any) -> None:
    assert (await app.client.get("/v1/classify")).headers["allow"] == "POST"
