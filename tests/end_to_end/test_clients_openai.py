"""openai's own client against the running server."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest

TEXTS = ["this film is great", "where is it?"]
LONG = "good " * 100


@pytest.fixture
def client(spoken_server: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{spoken_server.url}/v1", api_key="open sesame", max_retries=0) as client:
        yield client


def test_embeddings_as_it_asks_by_itself(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="toy-embed", input=TEXTS)
    assert [len(one.embedding) for one in answer.data] == [6, 6]
    assert all(isinstance(value, float) for value in answer.data[0].embedding)
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens, answer.model) == (12, 12, "toy-embed")
    plain = client.embeddings.create(model="toy-embed", input=TEXTS, encoding_format="float")
    for one, other in zip(answer.data, plain.data, strict=True):
        np.testing.assert_array_equal(np.float32(one.embedding), np.float32(other.embedding))


def test_dimensions_aliases_and_what_is_ours(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(
        model="toy-embed@production", input=TEXTS[0], dimensions=2, user="me", extra_body={"exit": "never"}
    )
    assert np.linalg.norm(answer.data[0].embedding) == pytest.approx(1, abs=1e-6)
    assert len(answer.data[0].embedding) == 2


async def test_the_asynchronous_client_and_the_other_path(spoken_server: Any) -> None:
    async with openai.AsyncOpenAI(base_url=spoken_server.url, api_key="open sesame") as client:
        answer = await client.embeddings.create(model="toy-embed", input=TEXTS)
    assert len(answer.data) == 2


def test_models(client: openai.OpenAI) -> None:
    assert {model.id for model in client.models.list()} == {"judge", "toy", "toy-embed"}
    assert client.models.retrieve("toy").owned_by == "understudy"
    with pytest.raises(openai.NotFoundError, match="no student is named 'nobody'") as error:
        client.models.retrieve("nobody")
    assert error.value.status_code == 404


def test_an_unknown_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="no student is named 'nobody'") as error:
        client.embeddings.create(model="nobody", input=TEXTS)
    assert (error.value.code, error.value.type) == ("model_not_found", "invalid_request_error")
    assert error.value.response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"input": [[1, 2, 3]]}, "check_embedding_ctx_length=False"),
        ({"input": []}, "at least one"),
        ({"input": "a", "dimensions": 1000}, "dimensions"),
        ({"input": LONG, "extra_body": {"truncate": "error"}}, "102 tokens, more than the 32"),
        ({"input": "a", "model": "toy"}, "for classify"),
    ],
)
def test_bad_input_says_why(client: openai.OpenAI, options: dict[str, Any], said: str) -> None:
    with pytest.raises(openai.BadRequestError, match=said) as error:
        client.embeddings.create(**{"model": "toy-embed"} | options)
    assert error.value.param is not None


def test_too_much(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError, match="one request may have") as error:
        client.embeddings.create(model="toy-embed", input=["a"] * 10_000)
    assert error.value.status_code == 413


def test_a_deadline_that_has_passed(client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError, match="deadline"):
        client.embeddings.create(model="toy-embed", input=TEXTS * 100, extra_headers={"x-request-deadline-ms": "0.001"})


def test_keys_and_quotas(client: openai.OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError, match="key"):
        client.with_options(api_key="wrong").embeddings.create(model="toy-embed", input="a")
    limited = client.with_options(api_key="openai")
    limited.embeddings.create(model="toy-embed", input="a")
    with pytest.raises(openai.RateLimitError, match="used up") as error:
        limited.embeddings.create(model="toy-embed", input="a")
    assert 0 < int(error.value.response.headers["retry-after-ms"]) <= 60_000
