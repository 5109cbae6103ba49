"""cohere's own clients against the running server."""

from collections.abc import Iterator
from typing import Any

import cohere
import cohere.core
import httpx
import pytest

QUERY = "is it good"
DOCUMENTS = ["this film is great", "my card is not usual", "it was awful, very bad!"]
ONCE: Any = {"max_retries": 0}


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=60) as http:
        yield http


def _v2(server: Any, http: httpx.Client, key: str = "open sesame") -> cohere.ClientV2:
    return cohere.ClientV2(api_key=key, base_url=server.url, httpx_client=http)


@pytest.fixture
def client(spoken_server: Any, http: httpx.Client) -> cohere.ClientV2:
    return _v2(spoken_server, http)


def test_rerank(client: cohere.ClientV2) -> None:
    answer = client.rerank(model="judge", query=QUERY, documents=DOCUMENTS, top_n=2)
    assert len(answer.results) == 2
    assert answer.results[0].relevance_score >= answer.results[1].relevance_score
    assert answer.meta is not None
    assert answer.meta.billed_units is not None
    assert answer.meta.billed_units.search_units == 1
    assert answer.id


def test_what_else_it_may_say(client: cohere.ClientV2) -> None:
    answer = client.rerank(model="judge", query=QUERY, documents=DOCUMENTS, max_tokens_per_doc=4096, priority=5)
    assert sorted(one.index for one in answer.results) == [0, 1, 2]


def test_version_1_with_its_documents(spoken_server: Any, http: httpx.Client) -> None:
    client = cohere.Client(api_key="open sesame", base_url=spoken_server.url, httpx_client=http)
    answer = client.rerank(
        model="judge", query=QUERY, documents=[{"text": text} for text in DOCUMENTS], return_documents=True
    )
    for one in answer.results:
        assert one.document is not None
        assert one.document.text == DOCUMENTS[one.index]
    assert answer.meta is not None
    assert answer.meta.api_version is not None
    assert answer.meta.api_version.version == "1"


async def test_the_asynchronous_client(spoken_server: Any) -> None:
    async with httpx.AsyncClient(timeout=60) as http:
        client = cohere.AsyncClientV2(api_key="open sesame", base_url=spoken_server.url, httpx_client=http)
        answer = await client.rerank(model="toy-embed", query=DOCUMENTS[1], documents=DOCUMENTS)
    assert (answer.results[0].index, answer.results[0].relevance_score) == (1, pytest.approx(1.0, abs=1e-6))


def test_errors_are_its_own(spoken_server: Any, http: httpx.Client, client: cohere.ClientV2) -> None:
    with pytest.raises(cohere.NotFoundError) as unknown:
        client.rerank(model="nobody", query=QUERY, documents=DOCUMENTS)
    assert unknown.value.body["message"] == "no student is named 'nobody'"
    with pytest.raises(cohere.BadRequestError) as empty:
        client.rerank(model="judge", query=QUERY, documents=[])
    assert "/documents" in empty.value.body["message"]
    with pytest.raises(cohere.core.ApiError) as many:
        client.rerank(model="judge", query=QUERY, documents=["a"] * 10_000)
    assert (many.value.status_code, "one request may have" in many.value.body["message"]) == (413, True)
    with pytest.raises(cohere.UnauthorizedError):
        _v2(spoken_server, http, "wrong").rerank(model="judge", query=QUERY, documents=DOCUMENTS)


def test_a_quota(spoken_server: Any, http: httpx.Client) -> None:
    client = _v2(spoken_server, http, "cohere")
    client.rerank(model="judge", query=QUERY, documents=DOCUMENTS[:1])
    with pytest.raises(cohere.TooManyRequestsError) as error:
        client.rerank(model="judge", query=QUERY, documents=DOCUMENTS[:1], request_options=ONCE)
    assert "used up" in error.value.body["message"]
