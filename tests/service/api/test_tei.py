"""text-embeddings-inference's surface in this process."""

import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.api.tei_bodies import EmbedRequest, truncation
from service.settings import load_settings

TEXTS = ["this film is great", "where is it?"]
LONG = "good " * 100
QUERY = "is it good"


@pytest.fixture
async def app(start: Any, polyglot_store: Path) -> AsyncIterator[Any]:
    async with start(store=polyglot_store) as running:
        yield running


async def _ask(app: Any, path: str, **fields: Any) -> Any:
    response = await app.post(path, fields)
    assert response.status_code == 200, response.text
    return response.json()


async def _said(app: Any, path: str, status: int, kind: str, **fields: Any) -> str:
    response = await app.post(path, fields)
    assert (response.status_code, set(response.json())) == (status, {"error", "error_type"}), response.text
    assert response.json()["error_type"] == kind
    return str(response.json()["error"])


async def _vectors(app: Any, texts: list[str] = TEXTS, **fields: Any) -> np.ndarray:
    response = await app.post("/v1/embed", {"inputs": texts} | fields)
    return np.array([one["embedding"] for one in response.json()["results"]], np.float32)


class TestEmbed:
    @pytest.mark.parametrize("path", ["/tei/embed", "/tei/toy-embed/embed", "/tei/toy-embed@1/embed", "/tei", "/tei/"])
    async def test_a_bare_list(self, app: Any, path: str) -> None:
        found = await _ask(app, path, inputs=TEXTS)
        np.testing.assert_array_equal(np.array(found, np.float32), await _vectors(app))

    async def test_one_text_is_a_list_too(self, app: Any) -> None:
        assert np.shape(await _ask(app, "/tei/embed", inputs="a")) == (1, 6)

    async def test_raw_and_short(self, app: Any) -> None:
        found = await _ask(app, "/tei/embed", inputs=TEXTS, normalize=False, dimensions=3, prompt_name=None)
        wanted = await _vectors(app, normalize=False, dimensions=3)
        np.testing.assert_array_equal(np.array(found, np.float32), wanted)

    async def test_the_headers(self, app: Any) -> None:
        headers = (await app.post("/tei/embed", {"inputs": TEXTS})).headers
        assert headers["x-compute-type"] == "cpu"
        assert headers["x-compute-characters"] == str(sum(map(len, TEXTS)))
        assert headers["x-compute-tokens"] == "12"
        for name in ("compute-time", "total-time", "tokenization-time", "queue-time", "inference-time"):
            assert float(headers[f"x-{name}"]) >= 0

    async def test_long_texts(self, app: Any) -> None:
        cut = await _ask(app, "/tei/embed", inputs=LONG, truncate=True)
        assert cut == await _ask(app, "/tei/embed", inputs=LONG, truncate=True, truncation_direction="Right")
        assert "tokens" in await _said(app, "/tei/embed", 422, "Validation", inputs=["a", LONG], truncate=False)

    async def test_openais_shape(self, app: Any) -> None:
        for path in ("/tei/embeddings", "/tei/v1/embeddings", "/tei/toy-embed/v1/embeddings"):
            answer = await _ask(app, path, input=TEXTS, model="text-embeddings-inference")
            assert (answer["object"], len(answer["data"])) == ("list", 2)
        wrong = await app.post("/tei/v1/embeddings", {"input": []})
        assert (wrong.status_code, set(wrong.json())) == (422, {"message", "code", "type"})

    @pytest.mark.parametrize(
        ("fields", "said"),
        [
            ({"inputs": []}, "at least one"),
            ({"inputs": [[1, 2]]}, "token ids are not taken"),
            ({"inputs": None}, "must be a text or a list"),
            ({"inputs": "a", "dimensions": 99}, "/dimensions"),
            ({"inputs": "a", "prompt_name": "query"}, "/prompt_name"),
            ({"inputs": "a", "truncation_direction": "up"}, "/truncation_direction"),
            ({"inputs": "a", "truncate": "yes"}, "/truncate"),
        ],
    )
    async def test_a_wrong_field(self, app: Any, fields: dict[str, Any], said: str) -> None:
        assert said in await _said(app, "/tei/embed", 422, "Validation", **fields)

    async def test_what_students_do_not_do(self, app: Any) -> None:
        assert "one embedding" in await _said(app, "/tei/embed_all", 424, "Backend", inputs="a")
        assert "not for embed" in await _said(app, "/tei/toy/embed", 424, "Backend", inputs="a")

    async def test_other_errors(self, app: Any) -> None:
        await _said(app, "/tei/nobody/embed", 404, "Validation", inputs="a")
        await _said(app, "/tei/embed", 413, "Validation", inputs=["a"] * 5000)
        malformed = await app.client.post("/tei/embed", content=b"{")
        assert (malformed.status_code, malformed.json()["error_type"]) == (422, "Validation")
        missing = await app.client.post("/tei/toy/no/such/route")
        assert (missing.status_code, missing.json()["error_type"]) == (404, "Validation")


class TestPredict:
    async def test_one_text(self, app: Any) -> None:
        found = await _ask(app, "/tei/predict", inputs=TEXTS[0])
        native = (await app.post("/v1/classify", {"model": "toy", "inputs": TEXTS[0], "top_k": 3})).json()
        assert found == [{"score": one["score"], "label": one["label"]} for one in native["results"][0]["labels"]]

    async def test_a_batch(self, app: Any) -> None:
        alone = [await _ask(app, "/tei/toy/predict", inputs=text) for text in TEXTS]
        assert await _ask(app, "/tei/toy/predict", inputs=[[text] for text in TEXTS]) == alone
        assert await _ask(app, "/tei/toy/predict", inputs=[TEXTS[0]]) == alone[0]

    async def test_pairs(self, app: Any) -> None:
        path = "/tei/twins@canary/predict"
        alone = await _ask(app, path, inputs=TEXTS)
        assert isinstance(alone[0]["label"], str)
        both = await _ask(app, path, inputs=[TEXTS, TEXTS[::-1]])
        for found, wanted in zip(both, [alone, await _ask(app, path, inputs=TEXTS[::-1])], strict=True):
            assert [one["label"] for one in found] == [one["label"] for one in wanted]
            assert [one["score"] for one in found] == pytest.approx([one["score"] for one in wanted], abs=1e-6)

    async def test_raw_scores(self, app: Any) -> None:
        raw = await _ask(app, "/tei/predict", inputs=TEXTS[1], raw_scores=True)
        nested = await _ask(app, "/tei/predict", inputs=TEXTS[1], parameters={"function_to_apply": "none"})
        assert nested == [raw]
        values = np.array([one["score"] for one in raw])
        scores = [one["score"] for one in await _ask(app, "/tei/predict", inputs=TEXTS[1])]
        np.testing.assert_allclose(np.exp(values) / np.exp(values).sum(), scores, atol=1e-6)

    async def test_parameters_make_it_nested(self, app: Any) -> None:
        parameters = {"top_k": 2, "function_to_apply": "sigmoid"}
        (found,) = await _ask(app, "/tei/toy", inputs=TEXTS[1], parameters=parameters)
        raw = await _ask(app, "/tei/toy", inputs=TEXTS[1], raw_scores=True)
        assert [one["label"] for one in found] == [one["label"] for one in raw[:2]]
        for one, other in zip(found, raw, strict=False):
            assert one["score"] == pytest.approx(1 / (1 + np.exp(-other["score"])), abs=1e-6)

    @pytest.mark.parametrize(
        "inputs", [["a", "b", "c"], [["a", "b", "c"]], [[]], [], [["a"], "b"], [["a"], [5]], 5, [5]]
    )
    async def test_wrong_inputs(self, app: Any, inputs: Any) -> None:
        assert "/inputs" in await _said(app, "/tei/predict", 422, "Validation", inputs=inputs)

    async def test_a_pair_where_texts_are_taken(self, app: Any) -> None:
        assert "not pairs" in await _said(app, "/tei/toy/predict", 422, "Validation", inputs=["a", "b"])

    async def test_a_text_that_breaks_the_graph(self, app: Any) -> None:
        encoder = app.service.students.families["toy"].production.student.encoder
        runner = app.hold("toy", poison=int(encoder.encode(["zebra"])[0].input_ids[1]))
        runner.go.set()
        assert "/inputs/1" in await _said(app, "/tei/toy/predict", 424, "Backend", inputs=[["a"], ["zebra"]])

    async def test_scores_that_are_none(self, app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        student = app.service.students.families["toy"].production.student
        run = student.run_stage

        def poisoned(stage: int, feeds: Any, wanted: Any) -> Any:
            outputs = run(stage, feeds, wanted)
            return {name: value * np.nan if name == "logits" else value for name, value in outputs.items()}

        runner = app.hold("toy")
        monkeypatch.setattr(runner, "_run_stage", poisoned)
        await _said(app, "/tei/toy/predict", 424, "Backend", inputs="a")


class TestRerank:
    async def test_all_texts_the_best_first(self, app: Any) -> None:
        native = (await app.post("/v1/rank", {"query": QUERY, "passages": TEXTS})).json()["results"]
        expected = [{"index": one["index"], "score": one["score"]} for one in native]
        assert await _ask(app, "/tei/rerank", query=QUERY, texts=TEXTS) == expected
        assert await _ask(app, "/tei/judge/rerank", query=QUERY, texts=TEXTS) == expected
        assert await _ask(app, "/tei", query=QUERY, texts=TEXTS) == expected

    async def test_with_their_text_and_raw(self, app: Any) -> None:
        found = await _ask(app, "/tei/rerank", query=QUERY, texts=TEXTS, return_text=True, raw_scores=True)
        native = await app.post("/v1/rank", {"query": QUERY, "passages": TEXTS, "raw_scores": True})
        for one, other in zip(found, native.json()["results"], strict=True):
            assert (one["text"], one["score"]) == (TEXTS[one["index"]], other["score"])

    async def test_refused(self, app: Any) -> None:
        assert "/texts" in await _said(app, "/tei/rerank", 422, "Validation", query="a", texts=[])
        assert "/query" in await _said(app, "/tei/rerank", 422, "Validation", texts=["a"])
        long = {"query": "a", "texts": ["b", LONG], "truncate": False}
        assert "/texts/1" in await _said(app, "/tei/rerank", 422, "Validation", **long)


class TestSimilarity:
    @pytest.mark.parametrize("path", ["/tei/similarity", "/tei"])
    async def test_cosines(self, app: Any, path: str) -> None:
        inputs = {"source_sentence": TEXTS[0], "sentences": [TEXTS[0], TEXTS[1]]}
        first, second = await _ask(app, path, inputs=inputs, parameters={})
        vectors = await _vectors(app)
        assert first == pytest.approx(1.0, abs=1e-6)
        assert second == pytest.approx(float(vectors[0] @ vectors[1]), abs=1e-6)

    async def test_refused(self, app: Any) -> None:
        few = {"source_sentence": "a", "sentences": []}
        assert "/inputs/sentences" in await _said(app, "/tei/similarity", 422, "Validation", inputs=few)
        many = {"source_sentence": "a", "sentences": ["b"] * 5000}
        await _said(app, "/tei/similarity", 413, "Validation", inputs=many)
        long = {"source_sentence": "a", "sentences": [LONG]}
        await _said(app, "/tei/similarity", 422, "Validation", inputs=long, parameters={"truncate": False})
        await _said(app, "/tei/similarity", 422, "Validation", inputs="a")


async def test_tokenize(app: Any) -> None:
    ((first, *middle, last),) = await _ask(app, "/tei/tokenize", inputs="is it")
    assert (first["text"], first["special"], first["start"], last["text"]) == ("[CLS]", True, None, "[SEP]")
    assert [(one["text"], one["start"], one["stop"]) for one in middle] == [("is", 0, 2), ("it", 3, 5)]
    bare = await _ask(app, "/tei/toy/tokenize", inputs=["is it", ""], add_special_tokens=False)
    assert [[one["id"] for one in tokens] for tokens in bare] == [[one["id"] for one in middle], []]
    surrogate = await app.client.post("/tei/tokenize", content=b'{"inputs": "\\ud800"}')
    assert surrogate.status_code == 422


async def test_several_students_of_a_task(
    start: Any, polyglot_store: Path, tmp_path: Path, move_alias: Callable[..., None]
) -> None:
    store = shutil.copytree(polyglot_store, tmp_path / "several")
    move_alias(store, "twins", production=1)
    async with start(store=store) as app:
        said = await _said(app, "/tei/predict", 422, "Validation", inputs="a")
        assert said == "more than one student serves classify: toy, twins; name one in the path, as /tei/NAME"


async def test_a_task_that_nobody_serves(start: Any) -> None:
    async with start() as app:
        assert "serves rank" in await _said(app, "/tei/rerank", 424, "Backend", query="a", texts=["b"])


async def test_info(app: Any) -> None:
    document = (await app.client.get("/tei/info")).json()
    assert (document["model_id"], document["model_sha"], document["model_dtype"]) == ("toy-embed", "1", "int8")
    assert (document["model_type"], document["max_input_length"]) == ({"embedding": {"pooling": None}}, 32)
    assert document["students"] == ["judge", "toy", "toy-embed", "twins"]
    labels = (await app.client.get("/tei/toy/info")).json()["model_type"]["classifier"]
    assert labels["id2label"]["2"] == "positive"
    assert labels["label2id"]["negative"] == 0
    assert "reranker" in (await app.client.get("/tei/judge/info")).json()["model_type"]
    unknown = await app.client.get("/tei/nobody/info")
    assert (unknown.status_code, unknown.json()["error_type"]) == (404, "Validation")


@pytest.mark.parametrize("probe", ["health", "ping"])
async def test_probes(start: Any, tmp_path: Path, probe: str) -> None:
    async with start() as app:
        assert (await app.client.get(f"/tei/{probe}")).status_code == 200
    (tmp_path / "empty").mkdir()
    async with start(store=tmp_path / "empty", wait=False) as app:
        response = await app.client.get(f"/tei/{probe}")
        assert (response.status_code, response.json()["error_type"]) == (503, "Unhealthy")
        assert (await app.client.get("/tei/info")).json()["error_type"] == "Unhealthy"


class TestAtTheRoot:
    @pytest.fixture
    async def app(self, start: Any, polyglot_store: Path) -> AsyncIterator[Any]:
        async with start(store=polyglot_store, root_dialect="tei") as running:
            yield running

    async def test_its_paths_are_teis(self, app: Any) -> None:
        assert np.shape(await _ask(app, "/embed", inputs=TEXTS)) == (2, 6)
        assert np.shape(await _ask(app, "/", inputs="a")) == (1, 6)
        assert len(await _ask(app, "/rerank", query="a", texts=["b", "c"])) == 2
        assert len(await _ask(app, "/similarity", inputs={"source_sentence": "a", "sentences": ["b"]})) == 1
        assert (await _ask(app, "/predict", inputs="a"))[0].keys() == {"label", "score"}
        assert (await app.client.get("/info")).json()["model_id"] == "toy-embed"
        assert (await app.client.get("/health")).status_code == 200

    async def test_its_errors_too(self, app: Any) -> None:
        await _said(app, "/embed", 422, "Validation", inputs=[])
        wrong = await app.client.get("/embed")
        assert (wrong.status_code, wrong.json()["error_type"]) == (405, "Validation")

    async def test_the_others_stay_where_they_are(self, app: Any) -> None:
        assert (await app.post("/v1/embed", {"inputs": "a"})).json()["model"] == "toy-embed"
        assert (await app.post("/v1/embeddings", {"input": "a"})).json()["object"] == "list"
        assert (await app.post("/rerank", {"query": "a", "documents": ["b"]})).json()["object"] == "rerank"
        assert (await app.post("/classify", {"inputs": "a"})).status_code == 404


@pytest.mark.parametrize(
    ("default", "truncate", "direction", "expected"),
    [
        ("end", None, None, "end"),
        ("start", None, None, "start"),
        ("start", None, "right", "end"),
        ("error", None, None, "error"),
        ("error", None, "left", "error"),
        ("error", True, None, "end"),
        ("end", True, "Left", "start"),
        ("end", False, "left", "error"),
    ],
)
def test_truncation(default: str, truncate: bool | None, direction: str | None, expected: str) -> None:
    body = EmbedRequest.model_validate({"inputs": "a", "truncate": truncate, "truncation_direction": direction})
    assert truncation(body, load_settings(default_truncate=default)) == expected
