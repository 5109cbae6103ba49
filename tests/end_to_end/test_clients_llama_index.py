"""llama-index's clients for text-embeddings-inference against the running server."""

from typing import Any

import pytest
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference
from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

TEXTS = ["this film is great", "where is it?", "it was awful, very bad!"]
LONG = "good " * 100


def _embedder(server: Any, path: str = "/tei", **options: Any) -> TextEmbeddingsInference:
    plain: dict[str, Any] = {"model_name": "toy-embed", "auth_token": "open sesame"}
    return TextEmbeddingsInference(base_url=server.url + path, **plain | options)


@pytest.mark.parametrize("path", ["/tei", "/tei/toy-embed"])
def test_embeddings(spoken_server: Any, path: str) -> None:
    model = _embedder(spoken_server, path, embed_batch_size=2)
    vectors = model.get_text_embedding_batch(TEXTS)
    assert [len(vector) for vector in vectors] == [6, 6, 6]
    assert model.get_query_embedding(TEXTS[0]) == pytest.approx(vectors[0], abs=1e-6)


async def test_embeddings_asynchronously(spoken_server: Any) -> None:
    assert len(await _embedder(spoken_server).aget_text_embedding(TEXTS[0])) == 6


def _rerank(server: Any, key: str = "open sesame", texts: list[str] = TEXTS) -> list[NodeWithScore]:
    # this client puts the key into the header as it is, without `Bearer`
    ranker = TextEmbeddingInference(base_url=f"{server.url}/tei", auth_token=key, top_n=2)
    nodes = [NodeWithScore(node=TextNode(text=text), score=0.0) for text in texts]
    return ranker.postprocess_nodes(nodes, query_bundle=QueryBundle("is it good"))


def test_rerank(spoken_server: Any) -> None:
    best, second = _rerank(spoken_server)
    assert best.score is not None
    assert second.score is not None
    assert best.score >= second.score


def test_rerank_at_the_root(spoken_server: Any) -> None:
    ranker = TextEmbeddingInference(base_url=spoken_server.url, auth_token="open sesame", top_n=3)
    nodes = [NodeWithScore(node=TextNode(text=text), score=0.0) for text in TEXTS]
    assert len(ranker.postprocess_nodes(nodes, query_str="is it good")) == 3


def test_an_error_is_a_json_object(spoken_server: Any) -> None:
    # it looks at no status: the embedder hands on the answer, the ranker counts its scores
    answer: Any = _embedder(spoken_server, truncate_text=False)._call_api([LONG])
    assert (answer["error_type"], "more than the 32" in answer["error"]) == ("Validation", True)
    with pytest.raises(AssertionError):
        _rerank(spoken_server, key="wrong")


def test_a_quota(spoken_server: Any) -> None:
    model = _embedder(spoken_server, auth_token="llama-index")
    assert len(model._call_api(["a"])[0]) == 6
    answer: Any = model._call_api(["a"])
    assert answer["error_type"] == "Overloaded"
