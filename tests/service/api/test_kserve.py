"""The Open Inference Protocol's surface in this process."""

import json
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

TEXTS = ["this film is great", "where is it?"]
LONG = "good " * 100


@pytest.fixture
async def app(start: Any, polyglot_store: Path) -> AsyncIterator[Any]:
    async with start(store=polyglot_store) as running:
        yield running


def _tensor(texts: list[str], name: str = "text", shape: list[int] | None = None) -> dict[str, Any]:
    return {"name": name, "shape": shape or [len(texts)], "datatype": "BYTES", "data": texts}


async def _ask(app: Any, model: str, *tensors: dict[str, Any], **fields: Any) -> Any:
    response = await app.post(f"/v2/models/{model}/infer", {"inputs": list(tensors)} | fields)
    assert response.status_code == 200, response.text
    return response.json()


def _data(answer: Any) -> dict[str, Any]:
    return {output["name"]: output["data"] for output in answer["outputs"]}


async def _said(app: Any, model: str, *tensors: dict[str, Any], status: int = 400, **fields: Any) -> str:
    response = await app.post(f"/v2/models/{model}/infer", {"inputs": list(tensors)} | fields)
    assert (response.status_code, set(response.json())) == (status, {"error"}), response.text
    return str(response.json()["error"])


async def test_classify(app: Any) -> None:
    answer = await _ask(app, "toy", _tensor(TEXTS), id="mine")
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("toy", "1", "mine")
    assert [(one["name"], one["datatype"], one["shape"]) for one in answer["outputs"]] == [
        ("label", "BYTES", [2]),
        ("score", "FP32", [2]),
        ("exit", "BYTES", [2]),
        ("depth", "FP32", [2]),
    ]
    native = (await app.post("/v1/classify", {"model": "toy", "inputs": TEXTS})).json()["results"]
    found = _data(answer)
    assert found["label"] == [one["label"] for one in native]
    assert found["score"] == pytest.approx([one["score"] for one in native], abs=1e-6)
    assert (found["exit"], found["depth"]) == (["early", "full"], [0.25, 1.0])


async def test_embed(app: Any) -> None:
    answer = await _ask(app, "toy-embed", _tensor(TEXTS, name="inputs", shape=[2, 1]))
    native = (await app.post("/v1/embed", {"inputs": TEXTS})).json()["results"]
    (embedding, *_) = answer["outputs"]
    assert (embedding["name"], embedding["shape"]) == ("embedding", [2, 6])
    wanted = np.array([one["embedding"] for one in native], np.float32)
    np.testing.assert_array_equal(np.array(embedding["data"], np.float32), wanted.ravel())
    assert "id" not in answer


async def test_rank_keeps_the_passages_order(app: Any) -> None:
    passages = [*TEXTS, "it was awful"]
    answer = await _ask(app, "judge", _tensor(["is it good"], "query"), _tensor(passages, "passages"))
    native = (await app.post("/v1/rank", {"query": "is it good", "passages": passages})).json()["results"]
    wanted = [one["score"] for one in sorted(native, key=lambda one: one["index"])]
    assert _data(answer)["score"] == pytest.approx(wanted, abs=1e-6)
    assert (_data(answer)["exit"], _data(answer)["depth"]) == (["full"] * 3, [1.0] * 3)


async def test_pairs_in_two_ways(app: Any) -> None:
    pairs = _tensor(["a", "good", "b", "bad"], shape=[2, 2])
    two = (_tensor(["a", "b"]), _tensor(["good", "bad"], "text_pair"))
    found, other = _data(await _ask(app, "twins@1", pairs)), _data(await _ask(app, "twins@canary", *two))
    assert found["label"] == other["label"]
    assert found["score"] == pytest.approx(other["score"])


async def test_outputs_that_are_named(app: Any) -> None:
    outputs = [{"name": "scores"}, {"name": "score", "parameters": {"classification": 2}}]
    answer = await _ask(app, "toy", _tensor(TEXTS), outputs=outputs)
    scores, classes = answer["outputs"]
    assert (scores["shape"], classes["shape"], classes["datatype"]) == ([2, 3], [2, 2], "BYTES")
    assert sum(scores["data"][:3]) == pytest.approx(1.0, abs=1e-6)
    value, place, label = classes["data"][0].split(":")
    assert (place, label) == ("2", "positive")
    assert float(value) == pytest.approx(max(scores["data"][:3]), abs=1e-5)


async def test_many_texts(app: Any) -> None:
    assert _data(await _ask(app, "toy", _tensor(TEXTS * 50)))["label"][0] == "positive"


async def _binary(app: Any, model: str, document: dict[str, Any], behind: bytes, **headers: str) -> Any:
    head = json.dumps(document).encode()
    headers = {"inference-header-content-length": str(len(head))} | headers
    return await app.client.post(f"/v2/models/{model}/infer", content=head + behind, headers=headers)


async def test_binary_both_ways(app: Any) -> None:
    raw = b"".join(struct.pack("<I", len(text)) + text.encode() for text in TEXTS)
    tensor = {"name": "text", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": len(raw)}}
    document = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    response = await _binary(app, "toy-embed", document, raw)
    assert response.headers["content-type"] == "application/octet-stream"
    length = int(response.headers["inference-header-content-length"])
    embedding, leave, depth = json.loads(response.content[:length])["outputs"]
    assert embedding == {
        "name": "embedding",
        "datatype": "FP32",
        "shape": [2, 6],
        "parameters": {"binary_data_size": 48},
    }
    vectors = np.frombuffer(response.content[length : length + 48], "<f4").reshape(2, 6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert leave["parameters"]["binary_data_size"] + depth["parameters"]["binary_data_size"] == 2 * (4 + 4) + 8
    document["outputs"] = [{"name": "depth", "parameters": {"binary_data": False}}]
    response = await _binary(app, "toy-embed", document, raw)
    assert response.json()["outputs"] == [{"name": "depth", "datatype": "FP32", "shape": [2], "data": [1.0, 1.0]}]


async def test_a_wrong_header(app: Any) -> None:
    response = await _binary(app, "toy", {"inputs": []}, b"", **{"inference-header-content-length": "999"})
    assert (response.status_code, "not a length" in response.json()["error"]) == (400, True)


class TestParameters:
    async def test_exit(self, app: Any) -> None:
        async def exits(value: Any) -> list[str]:
            found = _data(await _ask(app, "toy", _tensor(TEXTS), parameters={"exit": value}))["exit"]
            return list(found)

        assert [await exits(value) for value in ("default", 0.05, "0.05")] == [["early", "full"]] * 3
        assert await exits("never") == ["full", "full"]
        for wrong in ("soon", 0.0, 1.5, "nan"):
            said = await _said(app, "toy", _tensor(TEXTS), parameters={"exit": wrong})
            assert said.startswith("/parameters/exit")

    async def test_truncate(self, app: Any) -> None:
        await _ask(app, "toy", _tensor([LONG]), parameters={"truncate": "start"})
        said = await _said(app, "toy", _tensor([LONG]), parameters={"truncate": "error"})
        assert "/inputs/0" in said

    async def test_timeout_in_microseconds(self, app: Any) -> None:
        await _ask(app, "toy", _tensor(TEXTS), parameters={"timeout": 0})
        await _ask(app, "toy", _tensor(TEXTS), parameters={"timeout": 30_000_000})
        late = await _said(app, "toy", _tensor(TEXTS * 100), parameters={"timeout": 1}, status=504)
        assert "deadline" in late

    @pytest.mark.parametrize(
        ("priority", "header", "expected"),
        [(0, None, "normal"), (1, None, "high"), (2, None, "normal"), (9, None, "low"), (9, "high", "high")],
    )
    async def test_priority(
        self, app: Any, monkeypatch: pytest.MonkeyPatch, priority: int, header: str | None, expected: str
    ) -> None:
        seen, begin = [], app.service.engine.begin

        def watched(*args: Any, **options: Any) -> Any:
            seen.append(options.get("priority", "normal"))
            return begin(*args, **options)

        monkeypatch.setattr(app.service.engine, "begin", watched)
        headers = {} if header is None else {"x-priority": header}
        body = {"inputs": [_tensor(["a"])], "parameters": {"priority": priority}}
        assert (await app.client.post("/v2/models/toy/infer", json=body, headers=headers)).status_code == 200
        assert seen == [expected]


class TestRefused:
    async def test_models(self, app: Any) -> None:
        assert await _said(app, "nobody", _tensor(TEXTS), status=404) == "no student is named 'nobody'"
        await _said(app, "toy/versions/9", _tensor(TEXTS), status=404)
        assert "not in both" in await _said(app, "toy@1/versions/1", _tensor(TEXTS))

    async def test_inputs(self, app: Any) -> None:
        assert "/inputs" in await _said(app, "toy")
        assert "not pairs" in await _said(app, "toy", _tensor(TEXTS, shape=[1, 2]))
        assert "[N, 2] for pairs" in await _said(app, "toy", _tensor(["a", "b", "c"], shape=[1, 3]))
        assert "no input `text_pair`" in await _said(app, "twins@canary", _tensor(["a"]), _tensor(["b"], "other"))
        assert "2 texts" in await _said(app, "twins@canary", _tensor(TEXTS), _tensor(["b"], "text_pair"))
        assert "no input `passages`" in await _said(app, "judge", _tensor(["a"], "query"))
        assert "one text, not 2" in await _said(app, "judge", _tensor(TEXTS, "query"), _tensor(["b"], "passages"))
        await _said(app, "toy", _tensor(["a"] * 5000), status=413)

    async def test_outputs(self, app: Any) -> None:
        assert "among label, score" in await _said(app, "toy", _tensor(TEXTS), outputs=[{"name": "logits"}])
        classes = [{"name": "embedding", "parameters": {"classification": 2}}]
        assert "students with labels" in await _said(app, "toy-embed", _tensor(TEXTS), outputs=classes)

    async def test_bodies(self, app: Any) -> None:
        response = await app.client.post("/v2/models/toy/infer", content=b"{")
        assert (response.status_code, "not JSON" in response.json()["error"]) == (400, True)

    async def test_routes(self, app: Any) -> None:
        assert (await app.client.get("/v2/models/toy/stats")).json() == {"error": "Nothing matches the given URI"}
        response = await app.client.get("/v2/models/toy/infer")
        assert (response.status_code, set(response.json())) == (405, {"error"})

    async def test_loading(self, app: Any) -> None:
        for verb in ("load", "unload"):
            response = await app.post(f"/v2/repository/models/toy/{verb}", {})
            assert (response.status_code, "aliases" in response.json()["error"]) == (400, True)

    async def test_a_text_that_breaks_the_graph(self, app: Any) -> None:
        encoder = app.service.students.families["toy"].production.student.encoder
        app.hold("toy", poison=int(encoder.encode(["zebra"])[0].input_ids[1])).go.set()
        assert "/inputs/1" in await _said(app, "toy", _tensor(["a", "zebra"]), status=500)


async def _get(app: Any, path: str) -> tuple[int, Any]:
    response = await app.client.get(path)
    return response.status_code, response.json()


async def test_what_the_server_is(app: Any) -> None:
    status, document = await _get(app, "/v2")
    assert (status, document["name"]) == (200, "understudy")
    assert "binary_tensor_data" in document["extensions"]


@pytest.mark.parametrize("path", ["/v2/models/toy", "/v2/models/toy/versions/1", "/v2/models/toy/versions/production"])
async def test_metadata(app: Any, path: str) -> None:
    _, document = await _get(app, path)
    assert (document["name"], document["versions"]) == ("toy", ["1"])
    assert document["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert {one["name"]: one["shape"] for one in document["outputs"]} == {
        "label": [-1],
        "score": [-1],
        "scores": [-1, 3],
        "exit": [-1],
        "depth": [-1],
    }


async def test_metadata_of_the_other_tasks(app: Any) -> None:
    _, twins = await _get(app, "/v2/models/twins/versions/canary")
    assert twins["inputs"][0]["shape"] == [-1, 2]
    _, embed = await _get(app, "/v2/models/toy-embed")
    assert embed["outputs"][1] == {"name": "embedding", "datatype": "FP32", "shape": [-1, 6]}
    _, judge = await _get(app, "/v2/models/judge")
    assert [(one["name"], one["shape"]) for one in judge["inputs"]] == [("query", [1]), ("passages", [-1])]
    assert [one["name"] for one in judge["outputs"]] == ["exit", "score", "depth"]


async def test_metadata_names_what_comes(app: Any) -> None:
    for model, tensors in {
        "toy": [_tensor(TEXTS)],
        "toy-embed": [_tensor(TEXTS)],
        "judge": [_tensor(["a"], "query"), _tensor(TEXTS, "passages")],
    }.items():
        _, document = await _get(app, f"/v2/models/{model}")
        outputs = [{"name": one["name"]} for one in document["outputs"]]
        answer = await _ask(app, model, *tensors, outputs=outputs)
        for found, told in zip(answer["outputs"], document["outputs"], strict=True):
            assert (found["name"], found["datatype"]) == (told["name"], told["datatype"])
            assert len(found["shape"]) == len(told["shape"])


async def test_probes(start: Any, app: Any, tmp_path: Path) -> None:
    assert await _get(app, "/v2/health/live") == (200, {"live": True})
    assert await _get(app, "/v2/health/ready") == (200, {"ready": True})
    assert await _get(app, "/v2/models/toy/ready") == (200, {"name": "toy", "ready": True})
    assert await _get(app, "/v2/models/nobody/ready") == (404, {"error": "no student is named 'nobody'"})
    (tmp_path / "empty").mkdir()
    async with start(store=tmp_path / "empty", wait=False) as waiting:
        assert await _get(waiting, "/v2/health/ready") == (503, {"error": "the service is not ready"})


async def test_the_repository(start: Any, store_dir: Path, move_alias: Callable[..., None]) -> None:
    move_alias(store_dir, "toy", production=1, canary=7)
    async with start(wait=False) as app:
        await app.service.students.until(lambda: app.service.ready)
        entries = (await app.post("/v2/repository/index", {"ready": True})).json()
    assert entries == [
        {"name": "toy", "version": "1", "state": "READY", "reason": ""},
        {"name": "toy", "version": "7", "state": "UNAVAILABLE", "reason": "unknown_version"},
        {"name": "toy-embed", "version": "1", "state": "READY", "reason": ""},
    ]
