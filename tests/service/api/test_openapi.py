"""The documentation of the API tells the truth."""

from typing import Any

import orjson
import pytest

from service.api import examples
from service.api.body import parse
from service.api.routes import ERRORS
from service.api.schemas import ClassifyAnswer, ClassifyBody, EmbedAnswer, EmbedBody, Problem, RankAnswer, RankBody


@pytest.fixture
async def document(app: Any) -> dict[str, Any]:
    response = await app.client.get("/openapi.json")
    found: dict[str, Any] = response.json()
    return found


async def test_docs_are_served(app: Any) -> None:
    assert "swagger" in (await app.client.get("/docs")).text


async def test_every_route_is_there(document: dict[str, Any]) -> None:
    assert set(document["paths"]) >= {
        "/v1/classify", "/v1/embed", "/v1/rank", "/v1/models", "/v1/models/{name}",
        "/health/live", "/health/ready", "/metrics",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "model"), [("/v1/classify", ClassifyBody), ("/v1/embed", EmbedBody), ("/v1/rank", RankBody)]
)
async def test_bodies_answers_and_errors_are_documented(document: dict[str, Any], path: str, model: Any) -> None:
    post = document["paths"][path]["post"]
    schema = post["requestBody"]["content"]["application/json"]["schema"]
    assert set(schema["properties"]) == set(model.model_fields)
    assert schema["required"] == [name for name, field in model.model_fields.items() if field.is_required()]
    assert schema["additionalProperties"] is False
    assert all(
        "description" in field for field in schema["properties"].values() if "title" not in field or "default" in field
    )
    assert set(post["responses"]) == {"200", *map(str, ERRORS)}
    assert "application/problem+json" in post["responses"]["422"]["content"]
    assert "schema" in post["responses"]["200"]["content"]["application/json"]


@pytest.mark.parametrize(
    ("requests", "model"),
    [
        (examples.CLASSIFY_REQUESTS, ClassifyBody),
        (examples.EMBED_REQUESTS, EmbedBody),
        (examples.RANK_REQUESTS, RankBody),
    ],
)
def test_example_requests_are_taken(requests: dict[str, Any], model: Any) -> None:
    for example in requests.values():
        parse(orjson.dumps(example["value"]), model, max_items=2048)


def test_example_answers_have_their_shape() -> None:
    ClassifyAnswer.model_validate(examples.CLASSIFY_ANSWER)
    EmbedAnswer.model_validate(examples.EMBED_ANSWER)
    RankAnswer.model_validate(examples.RANK_ANSWER)
    for status, problem in examples.PROBLEMS.items():
        assert Problem.model_validate(problem).status == status


async def test_the_example_entry_has_the_fields_of_a_real_one(app: Any) -> None:
    entry = (await app.client.get("/v1/models/toy")).json()
    assert set(examples.MODELS_ANSWER["data"][0]) == set(entry)
