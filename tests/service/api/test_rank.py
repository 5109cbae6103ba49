"""`/v1/rank` in this process: pairs scored, embeddings compared, both sorted and explained."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.api.schemas import RankAnswer
from service.runtime.heads import sigmoid

QUERY = "is it good"
PASSAGES = [
    "this film is great",
    "my card is not usual",
    "",
    "it was awful, very bad!",
    "where is it?",
    "zebra 42 good",
]
LONG = "the film was good and fast but my card is not very great " * 8


@pytest.fixture
def rank_store(store_dir: Path, build_bundle: Callable[..., Path], move_alias: Callable[..., None]) -> Path:
    """The toy store with `judge`, which scores pairs, and `near`, which compares embeddings."""
    build_bundle(store_dir / "judge" / "1", task="rank", pairs="joint", name="judge")
    build_bundle(store_dir / "near" / "1", task="rank", pairs="separate", name="near")
    move_alias(store_dir, "judge", production=1)
    move_alias(store_dir, "near", production=1)
    return store_dir


@pytest.fixture
async def app(start: Any, rank_store: Path) -> AsyncIterator[Any]:
    async with start(precision="fp32") as running:
        yield running


def _student(app: Any, name: str) -> Any:
    return app.service.students.families[name].production.student


def _pair_scores(app: Any, passages: list[str]) -> np.ndarray:
    student = _student(app, "judge")
    return student.all_exits(student.encoder.encode([(QUERY, passage) for passage in passages]))[0]


async def _ask(app: Any, model: str, passages: list[Any] = PASSAGES, query: str = QUERY, **fields: Any) -> RankAnswer:
    response = await app.post("/v1/rank", {"model": model, "query": query, "passages": passages} | fields)
    assert response.status_code == 200, response.text
    return RankAnswer.model_validate_json(response.content, strict=True)


async def _refused(app: Any, status: int = 422, **fields: Any) -> Any:
    response = await app.post("/v1/rank", {"model": "judge", "query": QUERY, "passages": PASSAGES} | fields)
    assert response.status_code == status, response.text
    return response.json()


async def test_pairs_are_scored_by_the_student_and_sorted(app: Any) -> None:
    answer = await _ask(app, "judge")
    raw = _pair_scores(app, PASSAGES)
    assert [one.index for one in answer.results] == np.argsort(-raw, kind="stable").tolist()
    for one in answer.results:
        assert one.score == pytest.approx(float(sigmoid(raw[one.index])), abs=1e-5)
        assert (one.exit, one.depth, one.text, one.id, one.truncated) == ("full", 1.0, None, None, None)
    assert answer.exit.risk_applied is None


async def test_raw_scores_keep_the_order(app: Any) -> None:
    shown, raw = await _ask(app, "judge"), await _ask(app, "judge", raw_scores=True)
    assert [one.index for one in raw.results] == [one.index for one in shown.results]
    wanted = _pair_scores(app, PASSAGES)
    np.testing.assert_allclose(
        [one.score for one in raw.results], [wanted[one.index] for one in raw.results], atol=1e-4
    )


@pytest.mark.parametrize("model", ["near", "toy-embed"])
async def test_embeddings_are_compared_by_their_cosine(app: Any, model: str) -> None:
    answer = await _ask(app, model)
    student = _student(app, model)
    rows = student.all_exits(student.encoder.encode([QUERY, *PASSAGES]))[0].astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    wanted = rows[1:] @ rows[0]
    assert [one.index for one in answer.results] == np.argsort(-wanted, kind="stable").tolist()
    np.testing.assert_allclose([one.score for one in answer.results], np.sort(wanted)[::-1], atol=1e-5)
    assert answer.query_truncated is None


async def test_ids_texts_and_top_k(app: Any) -> None:
    passages = [{"id": "a", "text": "awful"}, "good", {"id": "a", "text": "great good"}, {"text": "bad"}]
    every = await _ask(app, "judge", passages, return_text=True)
    assert {(one.index, one.id, one.text) for one in every.results} == {
        (0, "a", "awful"), (1, None, "good"), (2, "a", "great good"), (3, None, "bad"),
    }  # fmt: skip
    best = await _ask(app, "judge", passages, top_k=2)
    assert [one.index for one in best.results] == [one.index for one in every.results][:2]
    assert best.usage == every.usage
    assert len((await _ask(app, "judge", passages, top_k=9)).results) == 4


@pytest.mark.parametrize("model", ["judge", "near"])
async def test_ties_keep_the_order_of_the_request(app: Any, model: str) -> None:
    answer = await _ask(app, model, ["same text"] * 70)
    assert [one.index for one in answer.results] == list(range(70))
    assert len({one.score for one in answer.results}) == 1


async def test_the_only_rank_student_needs_no_name_and_several_do(app: Any, start: Any, rank_store: Path) -> None:
    detail = (await _refused(app, model=None))["errors"][0]
    assert detail["pointer"] == "/model"
    assert "judge, near" in detail["detail"]
    (rank_store / "near" / "aliases.json").unlink()
    async with start() as other:
        response = await other.post("/v1/rank", {"query": "x", "passages": ["y"]})
        assert response.json()["model"] == "judge"


async def test_a_classifier_does_not_rank_and_a_ranker_does_nothing_else(app: Any) -> None:
    assert (await _refused(app, model="toy"))["errors"][0]["pointer"] == "/model"
    response = await app.post("/v1/embed", {"model": "near", "inputs": "x"})
    assert (response.status_code, response.json()["errors"][0]["pointer"]) == (422, "/model")


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"query": 3}, "/query"),
        ({"query": None}, "/query"),
        ({"passages": []}, "/passages"),
        ({"passages": "text"}, "/passages"),
        ({"passages": ["x", 3]}, "/passages/1"),
        ({"passages": [{"id": "x"}]}, "/passages/0/text"),
        ({"passages": [{"text": None}]}, "/passages/0/text"),
        ({"passages": [{"text": "x", "id": 7}]}, "/passages/0/id"),
        ({"passages": [{"text": "x", "id": "i" * 1025}]}, "/passages/0/id"),
        ({"passages": ["x", {"text": "x", "title": "y"}]}, "/passages/1/title"),
        ({"top_k": 0}, "/top_k"),
        ({"top_k": "3"}, "/top_k"),
        ({"truncate": "middle"}, "/truncate"),
        ({"inputs": ["x"]}, "/inputs"),
        ({"return_text": 1}, "/return_text"),
    ],
)
async def test_wrong_fields_are_named(app: Any, fields: dict[str, Any], pointer: str) -> None:
    document = await _refused(app, **fields)
    assert (document["code"], document["errors"][0]["pointer"]) == ("invalid_input", pointer)


async def test_too_many_passages(start: Any, rank_store: Path) -> None:
    async with start(max_items=3) as app:
        document = await _refused(app, 413)
        assert document["detail"] == "6 passages; one request may have 3"


@pytest.mark.parametrize("model", ["judge", "near"])
@pytest.mark.parametrize("truncate", ["end", "start"])
async def test_a_long_passage_is_cut_and_the_answer_says_so(app: Any, model: str, truncate: str) -> None:
    answer = await _ask(app, model, ["good", LONG], truncate=truncate)
    (cut,) = [one for one in answer.results if one.index == 1]
    assert cut.truncated is not None
    assert (cut.truncated.kept, cut.truncated.chunks) == (32, None)
    assert cut.truncated.dropped > 50
    student = _student(app, model)
    text = (QUERY, LONG) if model == "judge" else LONG
    (encoded,) = student.encoder.encode([text], truncate=truncate)
    assert cut.truncated.dropped == encoded.dropped


@pytest.mark.parametrize("model", ["judge", "near"])
async def test_a_long_passage_in_chunks_gets_the_best_chunks_score(app: Any, model: str) -> None:
    answer = await _ask(app, model, ["good", LONG], truncate="chunk", raw_scores=True)
    (whole,) = [one for one in answer.results if one.index == 1]
    student = _student(app, model)
    (chunked,) = student.encoder.encode_chunks([(QUERY, LONG) if model == "judge" else LONG])
    assert len(chunked.pieces) > 3
    assert whole.truncated is not None
    assert (whole.truncated.chunks, whole.truncated.dropped) == (len(chunked.pieces), 0)
    rows = student.all_exits(chunked.pieces)[0]
    if model == "near":
        query = student.all_exits(student.encoder.encode([QUERY]))[0][0]
        rows = rows @ query / np.linalg.norm(rows, axis=1) / np.linalg.norm(query)
    assert whole.score == pytest.approx(float(rows.max()), abs=1e-4)


async def test_a_text_with_few_tokens_is_one_piece_under_chunk(app: Any) -> None:
    one, other = await _ask(app, "near", truncate="chunk"), await _ask(app, "near")
    assert one.results == other.results


async def test_too_many_chunks(start: Any, rank_store: Path) -> None:
    async with start(max_items=4, max_queue_items=4) as app:
        document = await _refused(app, 413, passages=[LONG], truncate="chunk")
        assert "more than 4 chunks" in document["detail"]


async def test_a_passage_too_long_under_error_is_named(app: Any) -> None:
    for model in ("judge", "near"):
        document = await _refused(app, model=model, passages=["good", LONG, "bad", LONG], truncate="error")
        assert [problem["pointer"] for problem in document["errors"]] == ["/passages/1", "/passages/3"]
        assert "more than the 32 this student takes" in document["errors"][0]["detail"]


@pytest.mark.parametrize("model", ["judge", "near"])
async def test_errors_of_passages_come_last_and_top_k_leaves_them(app: Any, model: str) -> None:
    passages = [{"id": "long", "text": LONG}, "good", "bad", LONG]
    answer = await _ask(app, model, passages, truncate="error", on_error="item", top_k=1)
    assert len(answer.results) == 3
    first, second, third = answer.results
    assert first.index in (1, 2)
    assert [(one.index, one.id, one.error.code) for one in (second, third)] == [
        (0, "long", "invalid_input"), (3, None, "invalid_input"),
    ]  # fmt: skip
    assert second.error.errors[0].pointer == "/passages/0"


@pytest.mark.parametrize("model", ["judge", "near"])
async def test_all_passages_may_fail_and_the_query_is_answered(app: Any, model: str) -> None:
    answer = await _ask(app, model, [LONG], truncate="error", on_error="item")
    assert [one.error.code for one in answer.results] == ["invalid_input"]


@pytest.mark.parametrize("model", ["judge", "near"])
@pytest.mark.parametrize("on_error", ["fail", "item"])
async def test_a_query_too_long_under_error_fails_the_request(app: Any, model: str, on_error: str) -> None:
    document = await _refused(app, model=model, query=LONG, truncate="error", on_error=on_error)
    assert [problem["pointer"] for problem in document["errors"]] == ["/query"]


async def test_a_long_query_is_cut_and_the_answer_says_so(app: Any) -> None:
    near = await _ask(app, "near", query=LONG)
    assert near.query_truncated is not None
    assert (near.query_truncated.kept, near.query_truncated.dropped > 50) == (32, True)
    judge = await _ask(app, "judge", query=LONG, truncate="chunk")
    assert judge.query_truncated is None
    assert all(one.truncated is not None and one.truncated.dropped > 0 for one in judge.results)


@pytest.mark.parametrize("model", ["judge", "near", "toy-embed"])
async def test_one_bad_passage_fails_alone(app: Any, model: str) -> None:
    poison = _student(app, model).encoder.encode(["awful"])[0].input_ids[1]
    app.hold(model, poison=int(poison)).go.set()
    answer = await _ask(app, model, ["good", "awful", "bad"], on_error="item")
    assert [one.index for one in answer.results][:2] in ([0, 2], [2, 0])
    failed = answer.results[2]
    assert (failed.index, failed.error.code, failed.error.errors[0].pointer) == (1, "run_failed", "/passages/1")
    document = await _refused(app, 500, model=model, passages=["good", "awful", "bad"])
    assert document["errors"][0]["pointer"] == "/passages/1"


async def test_a_query_that_breaks_the_graph_is_named(app: Any) -> None:
    poison = _student(app, "near").encoder.encode(["awful"])[0].input_ids[1]
    app.hold("near", poison=int(poison)).go.set()
    document = await _refused(app, 500, model="near", query="awful", passages=["good"], on_error="item")
    assert [problem["pointer"] for problem in document["errors"]] == ["/query"]


def _spoil(app: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, items that hold the word `awful` get NaN from the graph."""
    student = _student(app, name)
    marked = int(student.encoder.encode(["awful"])[0].input_ids[1])
    run = student.run_stage

    def run_stage(stage: int, feeds: Any, wanted: Any) -> Any:
        hit = (feeds["input_ids"] == marked).any(axis=1)
        outputs = {tensor: array.copy() for tensor, array in run(stage, feeds, wanted).items()}
        for array in outputs.values():
            array[hit] = np.nan
        return outputs

    monkeypatch.setattr(student, "run_stage", run_stage)


@pytest.mark.parametrize("model", ["judge", "near"])
async def test_a_score_that_is_not_finite_is_an_error(app: Any, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _spoil(app, model, monkeypatch)
    answer = await _ask(app, model, ["good", "awful", "bad"], on_error="item")
    failed = answer.results[2]
    assert (failed.index, failed.error.code, failed.error.errors[0].pointer) == (1, "run_failed", "/passages/1")
    assert "finite" in failed.error.detail


async def test_a_query_embedding_that_is_not_finite_is_an_error(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _spoil(app, "near", monkeypatch)
    document = await _refused(app, 500, model="near", query="awful", passages=["good"])
    assert [problem["pointer"] for problem in document["errors"]] == ["/query"]


async def test_a_deadline_that_passes(app: Any) -> None:
    runner = app.hold("judge")
    document = await _refused(app, 504, deadline_ms=30)
    runner.go.set()
    assert document["code"] == "deadline_exceeded"


async def test_four_thousand_passages_and_a_small_request_beside_them(start: Any, rank_store: Path) -> None:
    async with start() as app:
        passages = [f"film {number} was {'good' if number % 7 else 'bad'}" for number in range(4000)]
        many = asyncio.create_task(_ask(app, "judge", passages))
        small = await app.post("/v1/classify", {"model": "toy", "inputs": "good"})
        answer = await many
        assert small.status_code == 200
        assert sorted(one.index for one in answer.results) == list(range(4000))
        scores = [one.score for one in answer.results]
        assert scores == sorted(scores, reverse=True)


async def test_usage_counts_query_and_passages(app: Any) -> None:
    student = _student(app, "near")
    own = sum(item.kept for item in student.encoder.encode([QUERY, *PASSAGES]))
    for _ in range(2):
        assert (await _ask(app, "near")).usage.tokens == own


async def test_the_unversioned_route_is_the_same(app: Any) -> None:
    body = {"model": "judge", "query": QUERY, "passages": PASSAGES}
    one, other = [(await app.post(path, body)).json()["results"] for path in ("/v1/rank", "/rank")]
    assert one == other


async def test_rank_risks_are_not_certified_so_exits_are_off(app: Any) -> None:
    answer = await _ask(app, "judge", exit={"risk": 0.05})
    assert (answer.exit.risk_requested, answer.exit.risk_applied) == (0.05, None)
