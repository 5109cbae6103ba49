"""Students that read the texts of a pair apart and join them: a split ranker, and a siamese classifier."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.api.schemas import RankAnswer
from service.bundle.sources import JOINED
from service.errors import RunFailed
from service.runtime.heads import sigmoid, softmax

QUERY = "is it good"
PASSAGES = ["this film is great", "my card is not usual", "", "it was awful, very bad!", "zebra 42 good"]
PAIRS = [["it is good", "it was great"], ["bad", "lovely film"], ["", "where is it?"]]
LONG = "the film was good and fast but my card is not very great " * 8


@pytest.fixture
def joined_store(store_dir: Path, build_bundle: Callable[..., Path], move_alias: Callable[..., None]) -> Path:
    """The toy store with `split`, which joins a query with passages, and `twins`, which joins two texts to a label."""
    build_bundle(store_dir / "split" / "1", task="rank", pairs="separate", joined=True, name="split")
    build_bundle(store_dir / "twins" / "1", task="classify", pairs="separate", joined=True, name="twins")
    move_alias(store_dir, "split", production=1)
    move_alias(store_dir, "twins", production=1)
    return store_dir


@pytest.fixture
async def app(start: Any, joined_store: Path) -> AsyncIterator[Any]:
    async with start(precision="fp32") as running:
        yield running


def _student(app: Any, name: str) -> Any:
    return app.service.students.families[name].production.student


def _wanted(app: Any, passages: list[str], query: str = QUERY) -> np.ndarray:
    student = _student(app, "split")
    return student.all_exits(student.encoder.encode([(query, passage) for passage in passages]))[0]


async def _rank(app: Any, passages: list[Any] = PASSAGES, **fields: Any) -> RankAnswer:
    body = {"model": "split", "query": QUERY, "passages": passages, "raw_scores": True} | fields
    response = await app.post("/v1/rank", body)
    assert response.status_code == 200, response.text
    return RankAnswer.model_validate_json(response.content, strict=True)


def _by_place(answer: RankAnswer) -> list[float]:
    return [one.score for one in sorted(answer.results, key=lambda one: one.index)]


async def test_the_query_is_joined_with_each_passage(app: Any) -> None:
    answer, wanted = await _rank(app), _wanted(app, PASSAGES)
    assert [one.index for one in answer.results] == np.argsort(-wanted, kind="stable").tolist()
    np.testing.assert_allclose(_by_place(answer), wanted, atol=1e-6)
    shown = await _rank(app, raw_scores=False)
    np.testing.assert_allclose(_by_place(shown), sigmoid(wanted), atol=1e-6)
    assert {(one.exit, one.depth) for one in answer.results} == {("full", 1.0)}


async def test_known_passages_are_read_once_and_answer_alike(app: Any) -> None:
    hits, misses = (f'understudy_cache_{kind}_total{{model="split"}}' for kind in ("hits", "misses"))
    cold = await _rank(app)
    assert (await app.metric(hits), await app.metric(misses)) == (0, 5)
    warm = await _rank(app, [*PASSAGES, "good"])
    assert (await app.metric(hits), await app.metric(misses)) == (5, 6)
    assert _by_place(warm)[:5] == _by_place(cold)
    reads = await app.metric('understudy_batch_items_sum{model="split",stage="00"}')
    assert reads == 1 + 5 + 1 + 1, "two queries and six passages"
    assert await app.metric('understudy_batch_items_sum{model="split",stage="01"}') == 5 + 6
    assert await app.metric('understudy_depth_count{model="split"}') == 5 + 6, "a text that was read is no answer"
    assert await app.metric('understudy_exits_total{exit="full",model="split",version="1"}') == 5 + 6
    assert await app.metric('understudy_exits_total{exit="state",model="split",version="1"}') is None
    for stage in ("00", "01"):
        series = f'understudy_stage_seconds_count{{backend="onnxruntime",model="split",stage="{stage}"}}'
        assert await app.metric(series) == 2


async def test_what_is_kept_of_a_passage_is_its_states_in_int8(app: Any) -> None:
    await _rank(app, ["good film"])
    before = app.service.passages.nbytes
    await _rank(app, ["good film and " * 6])
    added = app.service.passages.nbytes - before
    tokens = len(_student(app, "split").encoder.encode(["good film and " * 6])[0].input_ids)
    assert added == tokens * 8 + 640 + 128


async def test_a_long_passage_counts_by_its_best_chunk(app: Any) -> None:
    answer = await _rank(app, [LONG, "bad"], truncate="chunk")
    long = next(one for one in answer.results if one.index == 0)
    assert long.truncated is not None and long.truncated.chunks > 1
    chunks = _student(app, "split").encoder.encode_chunks([LONG])[0].pieces
    assert len(chunks) == long.truncated.chunks
    assert (await _rank(app, [LONG, "bad"], truncate="chunk")).results == answer.results


async def test_many_requests_at_once_answer_as_one_does(app: Any) -> None:
    queries = ["is it good", "bad", "where is my card", "not very great film"]
    answers = await asyncio.gather(*(_rank(app, query=query) for query in queries * 4))
    for query, answer in zip(queries * 4, answers, strict=True):
        np.testing.assert_allclose(_by_place(answer), _wanted(app, PASSAGES, query), atol=1e-6)


async def test_the_same_passage_twice_has_one_score(app: Any) -> None:
    answer = await _rank(app, ["good film"] * 70)
    assert [one.index for one in answer.results] == list(range(70))
    assert len({one.score for one in answer.results}) == 1


async def test_a_passage_that_is_too_long_fails_alone(app: Any) -> None:
    answer = await _rank(app, [LONG, "good"], truncate="error", on_error="item")
    scored, failed = answer.results
    assert scored.index == 1 and failed.index == 0 and failed.error is not None
    response = await app.post("/v1/rank", {"model": "split", "query": LONG, "passages": ["x"], "truncate": "error"})
    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] == "/query"


async def test_a_passage_that_breaks_the_graph_fails_alone(app: Any, poison_reading: Callable[..., None]) -> None:
    poison_reading("split", "zebra")
    answer = await _rank(app, on_error="item")
    assert [one.index for one in answer.results if hasattr(one, "error")] == [4]
    response = await app.post("/v1/rank", {"model": "split", "query": QUERY, "passages": PASSAGES})
    assert response.status_code == 500
    assert response.json()["errors"][0]["pointer"] == "/passages/4"
    response = await app.post("/v1/rank", {"model": "split", "query": "zebra", "passages": PASSAGES[:2]})
    assert response.status_code == 500
    assert response.json()["errors"][0]["pointer"] == "/query"


@pytest.fixture
def poison_reading(app: Any) -> Callable[..., None]:
    """Make the stage that reads one text fail wherever a word occurs."""

    def poison(name: str, word: str) -> None:
        student = _student(app, name)
        (token,) = student.encoder.encode([word])[0].input_ids[1:2]
        run = student.apart._run_stage

        def fails(stage_index: int, feeds: Any, outputs: Any) -> Any:
            if (feeds["input_ids"] == token).any():
                raise RunFailed("the graph broke on this batch")
            return run(stage_index, feeds, outputs)

        student.apart._run_stage = fails

    return poison


async def test_other_surfaces_rank_with_it(app: Any) -> None:
    wanted = np.argsort(-_wanted(app, PASSAGES), kind="stable").tolist()
    cohere = await app.post("/v2/rerank", {"model": "split", "query": QUERY, "documents": PASSAGES})
    assert [one["index"] for one in cohere.json()["results"]] == wanted
    tei = await app.post("/tei/rerank", {"query": QUERY, "texts": PASSAGES})
    assert [one["index"] for one in tei.json()] == wanted


async def _classify(app: Any, inputs: Any, **fields: Any) -> Any:
    return await app.post("/v1/classify", {"model": "twins", "inputs": inputs} | fields)


async def test_two_texts_are_read_apart_and_classified(app: Any) -> None:
    response = await _classify(app, PAIRS)
    assert response.status_code == 200, response.text
    student = _student(app, "twins")
    wanted = softmax(student.all_exits(student.encoder.encode([tuple(pair) for pair in PAIRS]))[0])
    results = response.json()["results"]
    labels = student.manifest.labels
    assert [one["label"] for one in results] == [labels[place] for place in wanted.argmax(axis=1)]
    np.testing.assert_allclose([one["score"] for one in results], wanted.max(axis=1), atol=1e-6)
    tokens = sum(item.kept for item in student.encoder.encode([tuple(pair) for pair in PAIRS]))
    assert response.json()["usage"]["tokens"] == tokens


async def test_one_text_alone_is_refused(app: Any) -> None:
    response = await _classify(app, "good")
    assert response.status_code == 422
    assert response.json()["errors"][0]["detail"] == "student 'twins' takes pairs of texts"


async def test_a_pair_too_long_fails_alone(app: Any) -> None:
    response = await _classify(app, [PAIRS[0], [LONG, "good"], PAIRS[1]], truncate="error", on_error="item")
    first, failed, last = response.json()["results"]
    assert "error" in failed and "label" in first and "label" in last
    whole = await _classify(app, [PAIRS[0], PAIRS[1]])
    assert [first["score"], last["score"]] == [one["score"] for one in whole.json()["results"]]


async def test_a_text_that_breaks_the_graph_fails_its_pair(app: Any, poison_reading: Callable[..., None]) -> None:
    poison_reading("twins", "lovely")
    response = await _classify(app, PAIRS, on_error="item")
    results = response.json()["results"]
    assert ["error" in one for one in results] == [False, True, False]


async def test_lone_surrogates_name_their_pair(app: Any) -> None:
    body = json.dumps({"model": "twins", "inputs": [["a", "b"], ["a", "\ud800"]]})
    response = await app.client.post("/v1/classify", content=body, headers={"content-type": "application/json"})
    assert response.status_code in (400, 422)


async def test_models_say_that_pairs_are_read_apart(app: Any) -> None:
    entry = (await app.client.get("/v1/models/split")).json()
    assert entry["versions"][0]["pairs"] == "separate"
    manifest = _student(app, "split").manifest
    assert manifest.requires == (JOINED,) and manifest.apart == 1
