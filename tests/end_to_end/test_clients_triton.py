"""tritonclient over HTTP against the running server."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, InferResult
from tritonclient.utils import InferenceServerException

TEXTS = ["this film is great", "où est-il ?", ""]
LONG = "good " * 100
KEY = {"authorization": "Bearer open sesame"}


@pytest.fixture
def client(spoken_server: Any) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(spoken_server.url.removeprefix("http://"), concurrency=2) as client:
        yield client


def _tensor(texts: list[Any], name: str = "text", *, binary: bool = True) -> InferInput:
    data = np.array(texts, dtype=object)
    tensor = InferInput(name, list(data.shape), "BYTES")
    tensor.set_data_from_numpy(data, binary_data=binary)
    return tensor


def _infer(client: InferenceServerClient, model: str, *tensors: InferInput, **options: Any) -> InferResult:
    # subtle: the client writes its own headers into the dict that it is given
    return client.infer(model, list(tensors), **{"headers": dict(KEY)} | options)


def test_what_is_there(client: InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("toy", headers=KEY)
    assert client.is_model_ready("toy", "1", headers=KEY)
    assert not client.is_model_ready("toy", "9", headers=KEY)
    assert client.get_server_metadata(headers=KEY)["name"] == "understudy"
    assert client.get_model_metadata("toy-embed", headers=KEY)["outputs"][1]["shape"] == [-1, 6]
    assert [one["name"] for one in client.get_model_repository_index(headers=KEY)] == ["judge", "toy", "toy-embed"]


def test_binary_by_default(client: InferenceServerClient) -> None:
    result = _infer(client, "toy", _tensor(TEXTS), request_id="mine", priority=1, timeout=30_000_000)
    assert result.get_response()["id"] == "mine"
    assert result.get_output("label")["parameters"]["binary_data_size"] > 0
    assert result.as_numpy("label").tolist()[0] == b"positive"
    assert result.as_numpy("score").dtype == np.float32
    assert result.as_numpy("exit").shape == result.as_numpy("depth").shape == (3,)


def test_json_both_ways(client: InferenceServerClient) -> None:
    outputs = [InferRequestedOutput("label", binary_data=False), InferRequestedOutput("scores", binary_data=False)]
    result = _infer(client, "toy", _tensor(TEXTS, binary=False), outputs=outputs)
    assert result.as_numpy("label")[0] == "positive"
    np.testing.assert_allclose(result.as_numpy("scores").sum(axis=1), 1, atol=1e-6)
    assert result.as_numpy("score") is None


def test_binary_and_json_mixed(client: InferenceServerClient) -> None:
    outputs = [InferRequestedOutput("score", class_count=2), InferRequestedOutput("depth", binary_data=False)]
    result = _infer(client, "toy", _tensor(TEXTS), outputs=outputs)
    assert result.as_numpy("score").shape == (3, 2)
    assert result.as_numpy("score")[0][0].endswith(b":2:positive")
    assert result.as_numpy("depth").shape == (3,)


@pytest.mark.parametrize("shaped", [TEXTS, [[text] for text in TEXTS]])
def test_embeddings(client: InferenceServerClient, shaped: list[Any]) -> None:
    vectors = _infer(client, "toy-embed", _tensor(shaped)).as_numpy("embedding")
    assert vectors.shape == (3, 6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_ranking(client: InferenceServerClient) -> None:
    result = _infer(client, "judge", _tensor(["is it good"], "query"), _tensor(TEXTS, "passages"))
    assert result.as_numpy("score").shape == (3,)


def test_versions_parameters_and_asynchronous_calls(client: InferenceServerClient) -> None:
    waiting = [
        client.async_infer("toy", [_tensor(TEXTS)], model_version="1", headers=dict(KEY), parameters={"exit": "never"})
        for _ in range(4)
    ]
    for one in waiting:
        assert set(one.get_result().as_numpy("depth").tolist()) == {1.0}


@pytest.mark.parametrize(
    ("model", "texts", "options", "status", "said"),
    [
        ("nobody", TEXTS, {}, 404, "no student is named"),
        ("toy", [LONG], {"parameters": {"truncate": "error"}}, 400, "more than the 32"),
        ("toy", TEXTS, {"outputs": [InferRequestedOutput("logits")]}, 400, "no output 'logits'"),
        ("toy", TEXTS * 100, {"timeout": 1}, 504, "deadline"),
        ("toy", TEXTS, {"headers": {"authorization": "wrong"}}, 401, "key"),
    ],
)
def test_errors_say_why(
    client: InferenceServerClient, model: str, texts: list[str], options: dict[str, Any], status: int, said: str
) -> None:
    with pytest.raises(InferenceServerException, match=said) as error:
        _infer(client, model, _tensor(texts), **options)
    assert error.value.status() == str(status)


def test_a_quota(client: InferenceServerClient) -> None:
    _infer(client, "toy", _tensor(["a"]), headers={"authorization": "Bearer triton"})
    with pytest.raises(InferenceServerException, match="used up") as error:
        _infer(client, "toy", _tensor(["a"]), headers={"authorization": "Bearer triton"})
    assert error.value.status() == "429"
