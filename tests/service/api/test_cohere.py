"""The rerank surface in this process."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

QUERY = "is it good"
DOCUMENTS = ["this film is great", "my card is not usual", "it was awful, very bad!"]
LONG = "the film was good and fast but my card is not very great " * 8
PATHS = ("/v2/rerank", "/v1/rerank", "/rerank")


@pytest.fixture
async def app(start: Any, polyglot_store: Path) -> AsyncIterator[Any]:
    async with start(store=polyglot_store) as running:
        yield running


async def _ask(app: Any, path: str = "/v2/rerank", **fields: Any) -> Any:
    response = await app.post(path, {"query": QUERY, "documents": DOCUMENTS} | fields)
    assert response.status_code == 200, response.text
    return response.json()


async def _native(app: Any, **fields: Any) -> list[tuple[int, float]]:
    response = await app.post("/v1/rank", {"query": QUERY, "passages": DOCUMENTS} | fields)
    return [(one["index"], one["score"]) for one in response.json()["results"]]


def _pairs(results: list[dict[str, Any]]) -> list[tuple[int, float]]:
    return [(one["index"], one["relevance_score"]) for one in results]


@pytest.mark.parametrize("path", PATHS)
async def test_the_one_answer_for_every_client(app: Any, path: str) -> None:
    answer = await _ask(app, path)
    assert _pairs(answer["results"]) == _pairs(answer["data"]) == await _native(app)
    assert (answer["object"], answer["model"], answer["version"]) == ("rerank", "judge", 1)
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 0
    assert answer["meta"]["billed_units"] == {"search_units": 1}
    assert answer["meta"]["api_version"] == {"version": "1" if path == "/v1/rerank" else "2"}
    assert isinstance(answer["created"], int)
    assert "warnings" not in answer["meta"]


async def test_the_id_is_the_requests(app: Any) -> None:
    response = await app.client.post(
        "/v2/rerank", json={"query": QUERY, "documents": DOCUMENTS}, headers={"x-request-id": "mine"}
    )
    assert response.json()["id"] == response.headers["x-request-id"] == "mine"


@pytest.mark.parametrize("field", ["top_n", "top_k"])
async def test_only_the_best(app: Any, field: str) -> None:
    assert _pairs((await _ask(app, **{field: 2}))["results"]) == (await _native(app))[:2]
    assert len((await _ask(app, **{field: 99}))["results"]) == 3


async def test_documents_come_back_where_asked(app: Any) -> None:
    answer = await _ask(
        app, "/v1/rerank", return_documents=True, documents=[{"text": text, "id": 5} for text in DOCUMENTS]
    )
    assert [one["document"]["text"] for one in answer["results"]] == [
        DOCUMENTS[one["index"]] for one in answer["results"]
    ]
    assert "document" not in (await _ask(app))["results"][0]


async def test_nulls_and_what_is_not_known_here(app: Any) -> None:
    optional = ("model", "top_n", "top_k", "max_tokens_per_doc", "return_documents", "priority", "exit", "truncation")
    answer = await _ask(app, **dict.fromkeys(optional), relevant_spans={"enabled": True}, rank_fields=["text"])
    assert len(answer["results"]) == 3


async def test_what_is_done_to_long_documents(app: Any) -> None:
    documents = [*DOCUMENTS, LONG]
    cut = await _ask(app, documents=documents, max_tokens_per_doc=8)
    assert cut["meta"]["warnings"] == [
        "cut at 32 tokens: documents 3",
        "max_tokens_per_doc is not kept: documents are cut at 32 tokens",
    ]
    assert (
        "warnings" not in (await _ask(app, documents=documents, max_chunks_per_doc=9, max_tokens_per_doc=4096))["meta"]
    )
    refused = await app.post("/v1/rerank", {"query": QUERY, "documents": documents, "truncation": False})
    assert (refused.status_code, "/documents/3" in refused.json()["message"]) == (400, True)


async def test_raw_scores(app: Any) -> None:
    assert _pairs((await _ask(app, raw_scores=True))["results"]) == await _native(app, raw_scores=True)


async def test_an_embed_student_that_is_named_compares(app: Any) -> None:
    assert _pairs((await _ask(app, model="toy-embed"))["results"]) == await _native(app, model="toy-embed")


async def test_many_documents(app: Any) -> None:
    answer = await _ask(app, documents=DOCUMENTS * 50)
    assert (len(answer["results"]), answer["meta"]["billed_units"]) == (150, {"search_units": 2})


@pytest.mark.parametrize(("priority", "header", "expected"), [
    (None, None, "normal"), (0, None, "normal"), (5, None, "low"), (5, "high", "high"),
])  # fmt: skip
async def test_priority(
    app: Any, monkeypatch: pytest.MonkeyPatch, priority: int | None, header: str | None, expected: str
) -> None:
    seen, begin = [], app.service.engine.begin

    def watched(*args: Any, **options: Any) -> Any:
        seen.append(options.get("priority", "normal"))
        return begin(*args, **options)

    monkeypatch.setattr(app.service.engine, "begin", watched)
    headers = {} if header is None else {"x-priority": header}
    body = {"query": QUERY, "documents": DOCUMENTS, "priority": priority}
    assert (await app.client.post("/v2/rerank", json=body, headers=headers)).status_code == 200
    assert set(seen) == {expected}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"query": None}, "/query"),
        ({"documents": []}, "/documents: must be a list of texts"),
        ({"documents": "a"}, "/documents: must be a list of texts"),
        ({"documents": ["a", 5]}, "/documents/1: must be a text"),
        ({"documents": [{"title": "a"}]}, "/documents/0: must be a text"),
        ({"top_n": 0}, "/top_n"),
        ({"top_n": "2"}, "/top_n"),
        ({"priority": 1000}, "/priority"),
        ({"model": "toy"}, "'toy' is a student for classify"),
    ],
)
async def test_a_wrong_field(app: Any, fields: dict[str, Any], said: str) -> None:
    response = await app.post("/v2/rerank", {"query": QUERY, "documents": DOCUMENTS} | fields)
    assert (response.status_code, response.json()["code"]) == (400, "invalid_input")
    assert said in response.json()["message"]


@pytest.mark.parametrize("path", PATHS)
async def test_its_shape_on_every_path(app: Any, path: str) -> None:
    response = await app.post(path, {})
    assert (response.status_code, set(response.json())) == (400, {"message", "detail", "code"})


async def test_other_errors(app: Any) -> None:
    unknown = await app.post("/v2/rerank", {"query": "a", "documents": ["b"], "model": "nobody"})
    assert (unknown.status_code, unknown.json()["message"]) == (404, "no student is named 'nobody'")
    missing = await app.post("/v2/rerank", {"query": "a"})
    assert (missing.status_code, missing.json()["message"]) == (
        400,
        "the request has wrong fields: /documents: is required",
    )
    many = await app.post("/v2/rerank", {"query": "a", "documents": ["b"] * 5000})
    assert (many.status_code, many.json()["code"]) == (413, "too_large")
    malformed = await app.client.post("/v2/rerank", content=b"{")
    assert (malformed.status_code, malformed.json()["code"]) == (400, "malformed")


@pytest.mark.parametrize("path", PATHS)
async def test_texts_make_it_teis(app: Any, path: str) -> None:
    response = await app.post(path, {"query": QUERY, "texts": DOCUMENTS})
    answer = response.json()
    assert [(one["index"], one["score"]) for one in answer] == await _native(app)
    assert response.headers["x-compute-type"] == "cpu"
    wrong = await app.post(path, {"query": QUERY, "texts": []})
    assert (wrong.status_code, wrong.json()["error_type"]) == (422, "Validation")
