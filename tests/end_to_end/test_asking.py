"""What users send, right and wrong, to the real server over real connections."""

import asyncio
import http.client
import json
import socket
from typing import Any

import httpx
import pytest

TEXTS = ["this film is great", "it was awful, very bad!", "where is it?", "", "zebra 42", "good " * 100]


def test_classify(client: httpx.Client) -> None:
    response = client.post("/v1/classify", json={"model": "toy", "inputs": "this film is great"})
    assert response.status_code == 200
    answer = response.json()
    assert (answer["model"], answer["version"], answer["usage"]) == ("toy", 1, {"tokens": 6})
    assert answer["results"][0]["label"] == "positive"
    assert set(answer["timing_ms"]) == {"queue", "compute", "total"}


def test_embed(client: httpx.Client) -> None:
    answer = client.post("/v1/embed", json={"inputs": ["a", "b"]}).json()
    assert [len(result["embedding"]) for result in answer["results"]] == [6, 6]
    assert answer["space_id"] == "toy-space-1"


def test_the_probes_and_the_list(client: httpx.Client) -> None:
    assert client.get("/health/live").json() == {"status": "live"}
    assert client.get("/health/ready").json()["status"] == "ready"
    assert [entry["id"] for entry in client.get("/v1/models").json()["data"]] == ["toy", "toy-embed"]
    assert "understudy_requests_total" in client.get("/metrics").text
    assert client.get("/openapi.json").status_code == 200


def _said(client: httpx.Client, status: int, code: str, **request: Any) -> dict[str, Any]:
    response = client.post("/v1/classify", **request)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = response.json()
    assert (document["status"], document["code"]) == (status, code)
    return document


class TestBadInput:
    @pytest.mark.parametrize("body", [b"", b"{", b'{"inputs": NaN}', b'{"inputs": "\\ud800"}', b"\xff", b"[" * 9999])
    def test_malformed_json(self, client: httpx.Client, body: bytes) -> None:
        _said(client, 400, "malformed", content=body)

    def test_a_wrong_field(self, client: httpx.Client) -> None:
        document = _said(client, 422, "invalid_input", json={"inputs": ["a", 5]})
        assert document["errors"] == [{"pointer": "/inputs/1", "detail": "must be a text, as the first input is"}]

    def test_an_unknown_field(self, client: httpx.Client) -> None:
        document = _said(client, 422, "invalid_input", json={"inputs": "a", "texts": "b"})
        assert document["errors"] == [{"pointer": "/texts", "detail": "unknown field"}]

    def test_no_inputs(self, client: httpx.Client) -> None:
        assert _said(client, 422, "invalid_input", json={"inputs": []})["errors"][0]["pointer"] == "/inputs"

    def test_an_unknown_model(self, client: httpx.Client) -> None:
        _said(client, 404, "unknown_model", json={"inputs": "a", "model": "nobody"})

    def test_the_wrong_task(self, client: httpx.Client) -> None:
        _said(client, 422, "invalid_input", json={"inputs": "a", "model": "toy-embed"})

    def test_empty_text_is_answered(self, client: httpx.Client) -> None:
        answer = client.post("/v1/classify", json={"inputs": ["", " ", "\u200b", "\x00"]}).json()
        assert [result["label"] is not None for result in answer["results"]] == [True] * 4

    def test_text_beyond_the_limit_is_cut_or_refused_as_asked(self, client: httpx.Client) -> None:
        long = {"inputs": "good " * 100}
        for truncate in ("end", "start"):
            answer = client.post("/v1/classify", json=long | {"truncate": truncate}).json()
            assert answer["results"][0]["truncated"] == {"kept": 32, "dropped": 70}
        _said(client, 422, "invalid_input", json=long | {"truncate": "error"})

    def test_ten_megabytes(self, client: httpx.Client) -> None:
        _said(client, 413, "too_large", content=b"x" * 10_000_000)

    def test_ten_megabytes_of_unknown_length(self, client: httpx.Client) -> None:
        _said(client, 413, "too_large", content=(b"x" * 100_000 for _ in range(100)))
        assert client.get("/health/live").status_code == 200

    def test_too_many_inputs(self, client: httpx.Client) -> None:
        _said(client, 413, "too_large", json={"inputs": ["x"] * 4097})

    def test_a_deadline_that_cannot_be_met(self, client: httpx.Client) -> None:
        _said(client, 504, "deadline_exceeded", json={"inputs": ["x"] * 512, "deadline_ms": 0.01})

    def test_a_compressed_body(self, client: httpx.Client) -> None:
        _said(client, 400, "malformed", content=b"\x1f\x8b", headers={"content-encoding": "gzip"})

    def test_no_such_route_and_no_such_method(self, client: httpx.Client) -> None:
        assert client.get("/v2/nothing").json()["code"] == "not_found"
        assert client.get("/v1/classify").json()["code"] == "method_not_allowed"

    def test_no_http_at_all(self, client: httpx.Client) -> None:
        with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=30) as raw:
            raw.sendall(b"\x16\x03\x01 this is not http\r\n\r\n")
            assert raw.recv(100).startswith(b"HTTP/1.1 400")
        assert client.get("/health/live").status_code == 200

    def test_a_client_that_leaves_in_the_middle(self, client: httpx.Client) -> None:
        with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=30) as raw:
            raw.sendall(b'POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{"inputs": ')
        assert client.post("/v1/classify", json={"inputs": "a"}).status_code == 200


def test_the_standard_librarys_client(client: httpx.Client) -> None:
    connection = http.client.HTTPConnection(client.base_url.host, client.base_url.port, timeout=30)
    for _ in range(2):
        connection.request("POST", "/v1/classify", json.dumps({"inputs": "this film is great"}))
        assert json.loads(connection.getresponse().read())["results"][0]["label"] == "positive"
    connection.close()


@pytest.mark.parametrize("exit_setting", ["never", "default"])
def test_company_changes_nothing(client: httpx.Client, exit_setting: str) -> None:
    ask = {"exit": exit_setting, "top_k": 3}
    company = client.post("/v1/classify", json=ask | {"inputs": TEXTS * 11}).json()["results"]
    for text, among in zip(TEXTS, company, strict=False):
        alone = client.post("/v1/classify", json=ask | {"inputs": text}).json()["results"][0]
        assert (alone["label"], alone["exit"]) == (among["label"], among["exit"])
        for one, other in zip(alone["labels"], among["labels"], strict=True):
            assert one["label"] == other["label"]
            assert one["score"] == pytest.approx(other["score"], abs=1e-3)


async def test_many_clients_at_once(shared_server: Any) -> None:
    expected = {}
    with shared_server.client() as client:
        for text in TEXTS:
            expected[text] = client.post("/v1/classify", json={"inputs": text}).json()["results"][0]["label"]
    async with httpx.AsyncClient(base_url=shared_server.url, timeout=60) as client:

        async def ask(number: int) -> None:
            text = TEXTS[number % len(TEXTS)]
            response = await client.post("/v1/classify", json={"inputs": text}, headers={"x-request-id": f"r{number}"})
            assert response.headers["x-request-id"] == f"r{number}"
            assert response.json()["results"][0]["label"] == expected[text]

        await asyncio.gather(*(ask(number) for number in range(300)))
