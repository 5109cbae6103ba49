"""`/v1/embeddings` in this process."""

import base64
from typing import Any

import numpy as np
import pytest

TEXTS = ["this film is great", "where is it?"]
LONG = "good " * 100


def _floats(answer: Any) -> np.ndarray:
    return np.array([one["embedding"] for one in answer["data"]], np.float32)


async def _vectors(app: Any, **fields: Any) -> np.ndarray:
    response = await app.post("/v1/embed", {"inputs": TEXTS} | fields)
    return np.array([one["embedding"] for one in response.json()["results"]], np.float32)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings"])
async def test_floats(app: Any, path: str) -> None:
    response = await app.post(path, {"model": "toy-embed", "input": TEXTS})
    answer = response.json()
    assert (response.status_code, answer["object"], answer["model"]) == (200, "list", "toy-embed")
    assert (answer["version"], answer["space_id"]) == (1, "toy-space-1")
    assert answer["usage"] == {"prompt_tokens": 12, "total_tokens": 12}
    assert [(one["object"], one["index"]) for one in answer["data"]] == [("embedding", 0), ("embedding", 1)]
    np.testing.assert_array_equal(_floats(answer), await _vectors(app))


async def test_base64_is_little_endian_float32(app: Any) -> None:
    answer = (await app.post("/v1/embeddings", {"input": TEXTS, "encoding_format": "base64"})).json()
    found = [np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in answer["data"]]
    np.testing.assert_array_equal(found, await _vectors(app))


async def test_dimensions(app: Any) -> None:
    answer = (await app.post("/v1/embeddings", {"input": TEXTS, "dimensions": 4})).json()
    np.testing.assert_array_equal(_floats(answer), await _vectors(app, dimensions=4))


async def test_one_text_nulls_and_what_is_not_known_here(app: Any) -> None:
    nulls = {"model": None, "encoding_format": None, "dimensions": None, "user": None, "truncate": None}
    answer = await app.post("/v1/embeddings", {"input": "", "input_type": "query", "output_dtype": None} | nulls)
    assert (answer.status_code, len(answer.json()["data"])) == (200, 1)


async def test_many_texts(app: Any) -> None:
    answer = (await app.post("/v1/embeddings", {"input": TEXTS * 50, "encoding_format": "base64"})).json()
    assert [one["index"] for one in answer["data"]] == list(range(100))
    assert len({one["embedding"] for one in answer["data"]}) == 2


async def test_a_cut_text_is_told_of_or_refused(app: Any) -> None:
    (one, other) = (await app.post("/v1/embeddings", {"input": [LONG, "a"]})).json()["data"]
    assert (one["truncated"], "truncated" in other) == ({"kept": 32, "dropped": 70}, False)
    refused = await app.post("/v1/embeddings", {"input": ["a", LONG], "truncate": "error"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "input.1")
    assert refused.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({}, "input", "is required"),
        ({"input": []}, "input", "at least one"),
        ({"input": {"text": "a"}}, "input", "must be a text or a list of texts"),
        ({"input": ["a", None]}, "input.1", "must be a text"),
        ({"input": [1, 2]}, "input", "check_embedding_ctx_length=False"),
        ({"input": [[1, 2], [3]]}, "input", "check_embedding_ctx_length=False"),
        ({"input": "a", "dimensions": 7}, "dimensions", "6"),
        ({"input": "a", "dimensions": 0}, "dimensions", "greater"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", "base64"),
        ({"input": "a", "model": "toy"}, "model", "classify"),
        ({"input": "a", "exit": "early"}, "exit", "never"),
    ],
)
async def test_a_wrong_field(app: Any, fields: dict[str, Any], param: str, said: str) -> None:
    response = await app.post("/v1/embeddings", fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert said in error["message"]


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [(b"{", 400, "malformed"), (b"", 400, "malformed"), (b"[]", 400, "invalid_input"), (b"x" * 2000, 413, "too_large")],
)
async def test_a_wrong_body(start: Any, content: bytes, status: int, code: str) -> None:
    async with start(max_body_bytes=1024) as app:
        response = await app.client.post("/v1/embeddings", content=content)
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)


async def test_too_many_texts_or_fields(start: Any) -> None:
    async with start(max_items=2) as app:
        many = await app.post("/v1/embeddings", {"input": ["a"] * 3})
        assert (many.status_code, many.json()["error"]["message"]) == (413, "3 in `input`; one request may have 2")
        fields = await app.post("/v1/embeddings", {"input": "a"} | {f"x{i}": 0 for i in range(2000)})
        assert (fields.status_code, "more than 1024 fields" in fields.text) == (400, True)


async def test_an_unknown_model(app: Any) -> None:
    response = await app.post("/v1/embeddings", {"input": "a", "model": "nobody"})
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")


async def test_a_text_that_breaks_the_graph(app: Any) -> None:
    encoder = app.service.students.families["toy-embed"].production.student.encoder
    runner = app.hold("toy-embed", poison=int(encoder.encode(["zebra"])[0].input_ids[1]))
    runner.go.set()
    response = await app.post("/v1/embeddings", {"input": ["a", "zebra"]})
    assert (response.status_code, response.json()["error"]["param"]) == (500, "input.1")
    assert response.json()["error"]["type"] == "server_error"


async def test_headers_say_until_when_and_how_urgently(app: Any) -> None:
    async def ask(**headers: str) -> Any:
        return await app.client.post("/v1/embeddings", json={"input": TEXTS}, headers=headers)

    late = await ask(**{"x-request-deadline-ms": "0.0001"})
    assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert (await ask(**{"x-request-deadline-ms": "10000", "x-priority": "low"})).status_code == 200
    assert (await ask(**{"x-priority": "urgent"})).json()["error"]["type"] == "invalid_request_error"


async def test_it_is_counted(app: Any) -> None:
    await app.post("/v1/embeddings", {"input": "a"})
    await app.post("/v1/embeddings", {})
    series = 'understudy_requests_total{endpoint="/v1/embeddings",model="%s",status="%d",version="%s"}'
    assert await app.metric(series % ("toy-embed", 200, "1")) == 1
    assert await app.metric(series % ("unknown", 400, "")) == 1


async def test_a_missing_model_in_openais_shape_too(app: Any) -> None:
    response = await app.client.get("/v1/models/nobody")
    assert (response.status_code, response.json()["code"]) == (404, "unknown_model")
    assert response.json()["error"]["message"] == "no student is named 'nobody'"
