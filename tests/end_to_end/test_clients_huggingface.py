"""huggingface_hub's InferenceClient against the running server."""

from typing import Any

import numpy as np
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

TEXT = "this film is great"
LONG = "good " * 100


def _client(server: Any, student: str = "", key: str = "open sesame") -> InferenceClient:
    return InferenceClient(model=f"{server.url}/tei{student}", token=key, timeout=60)


@pytest.mark.parametrize("student", ["", "/", "/toy-embed", "/toy-embed@production"])
def test_feature_extraction(spoken_server: Any, student: str) -> None:
    found = _client(spoken_server, student).feature_extraction(TEXT, normalize=True, truncate=True)
    assert (found.shape, found.dtype) == ((1, 6), np.float32)
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-6)


def test_feature_extraction_of_several_texts_and_fewer_dimensions(spoken_server: Any) -> None:
    texts: Any = [TEXT, "b"]
    assert _client(spoken_server).feature_extraction(texts, dimensions=3, truncation_direction="left").shape == (2, 3)


@pytest.mark.parametrize("student", ["", "/toy"])
def test_text_classification_has_every_label(spoken_server: Any, student: str) -> None:
    found = _client(spoken_server, student).text_classification(TEXT)
    assert found[0].label == "positive"
    assert sum(one.score for one in found) == pytest.approx(1.0, abs=1e-6)
    best = _client(spoken_server, student).text_classification(TEXT, top_k=1, function_to_apply="none")
    assert (len(best), best[0].label) == (1, "positive")


def test_sentence_similarity(spoken_server: Any) -> None:
    same, other = _client(spoken_server).sentence_similarity(TEXT, other_sentences=[TEXT, "it was awful"])
    assert same == pytest.approx(1.0, abs=1e-6)
    assert other < same


@pytest.mark.parametrize(
    ("student", "status", "said"),
    [("/nobody", 404, "no student is named"), ("/judge", 424, "not for embed"), ("", 422, "more than the 32")],
)
def test_errors_say_why(spoken_server: Any, student: str, status: int, said: str) -> None:
    with pytest.raises(HfHubHTTPError) as error:
        _client(spoken_server, student).feature_extraction(LONG, truncate=False)
    assert error.value.response.status_code == status
    assert said in str(error.value)


def test_keys_and_quotas(spoken_server: Any) -> None:
    with pytest.raises(HfHubHTTPError) as wrong:
        _client(spoken_server, key="wrong").feature_extraction(TEXT)
    assert wrong.value.response.status_code == 401
    limited = _client(spoken_server, key="huggingface")
    limited.feature_extraction(TEXT)
    with pytest.raises(HfHubHTTPError, match="used up") as shed:
        limited.feature_extraction(TEXT)
    assert shed.value.response.status_code == 429
