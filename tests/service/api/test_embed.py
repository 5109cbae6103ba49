"""`/v1/embed` in this process."""

import base64
from typing import Any

import numpy as np
import pytest

from service.api.schemas import EmbedAnswer

TEXTS = ["this film is great", "", "where is it?"]


async def test_the_embeddings_are_the_students_own(app: Any) -> None:
    student = app.service.students.families["toy-embed"].production.student
    response = await app.post("/v1/embed", {"inputs": TEXTS, "normalize": False})
    answer = EmbedAnswer.model_validate_json(response.content, strict=True)
    assert (answer.model, answer.version, answer.space_id) == ("toy-embed", 1, "toy-space-1")
    raw = student.all_exits(student.encoder.encode(TEXTS))[0]
    np.testing.assert_allclose([result.embedding for result in answer.results], raw, atol=1e-5)


async def test_normalized_unless_told_otherwise(app: Any) -> None:
    answer = (await app.post("/v1/embed", {"inputs": TEXTS})).json()
    for result in answer["results"]:
        assert set(result) == {"embedding", "exit", "depth"}
        assert np.linalg.norm(result["embedding"]) == pytest.approx(1, abs=1e-6)


async def test_base64_is_the_same_numbers(app: Any) -> None:
    plain = (await app.post("/v1/embed", {"inputs": TEXTS})).json()["results"]
    coded = (await app.post("/v1/embed", {"inputs": TEXTS, "encoding": "base64"})).json()["results"]
    for one, other in zip(plain, coded, strict=True):
        vector = np.frombuffer(base64.b64decode(other["embedding"]), dtype="<f4")
        np.testing.assert_array_equal(np.array(one["embedding"], dtype=np.float32), vector)


async def test_full_depth_always(app: Any) -> None:
    answer = (await app.post("/v1/embed", {"inputs": "x", "exit": {"risk": 0.5}})).json()
    assert answer["exit"] == {"risk_requested": 0.5, "risk_applied": None}
    assert answer["results"][0]["depth"] == 1.0


async def test_pairs_are_refused(app: Any) -> None:
    response = await app.post("/v1/embed", {"inputs": [["a", "b"]]})
    assert (response.status_code, response.json()["errors"][0]["pointer"]) == (422, "/inputs/0")


async def test_a_classifier_does_not_embed(app: Any) -> None:
    response = await app.post("/v1/embed", {"inputs": "x", "model": "toy"})
    assert (response.status_code, response.json()["errors"][0]["pointer"]) == (422, "/model")


async def test_the_unversioned_route_is_the_same(app: Any) -> None:
    one, other = [(await app.post(path, {"inputs": TEXTS})).json()["results"] for path in ("/v1/embed", "/embed")]
    assert one == other
