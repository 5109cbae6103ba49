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


async def _vectors(app: Any, **fields: Any) -> np.ndarray:
    response = await app.post("/v1/embed", {"inputs": TEXTS} | fields)
    answer = EmbedAnswer.model_validate_json(response.content, strict=True)
    return np.array([result.embedding for result in answer.results])


async def test_dimensions_are_cut_before_the_scaling(app: Any) -> None:
    raw = await _vectors(app, normalize=False)
    np.testing.assert_array_equal(await _vectors(app, normalize=False, dimensions=4), raw[:, :4])
    cut = raw[:, :4] / np.linalg.norm(raw[:, :4], axis=1, keepdims=True)
    np.testing.assert_allclose(await _vectors(app, dimensions=4), cut, atol=1e-6)
    np.testing.assert_array_equal(await _vectors(app, dimensions=6), await _vectors(app))


@pytest.mark.parametrize("dimensions", [7, 0, -1, 2.0, "4", True, 1 << 17])
async def test_dimensions_there_are_not(app: Any, dimensions: Any) -> None:
    response = await app.post("/v1/embed", {"inputs": "x", "dimensions": dimensions})
    assert (response.status_code, response.json()["errors"][0]["pointer"]) == (422, "/dimensions")


@pytest.mark.parametrize("normalize", [True, False])
async def test_int8_is_127_times_the_unit_vector(app: Any, normalize: bool) -> None:
    unit = await _vectors(app)
    found = await _vectors(app, encoding="int8", normalize=normalize)
    assert found.dtype.kind == "i"
    np.testing.assert_allclose(found, unit * 127, atol=0.501)


@pytest.mark.parametrize("dimensions", [6, 3])
async def test_binary_is_the_signs_most_significant_first(app: Any, dimensions: int) -> None:
    raw = await _vectors(app, normalize=False)
    found = await _vectors(app, encoding="binary", dimensions=dimensions)
    assert found.shape == (len(TEXTS), 1)
    bits = np.unpackbits(found.astype(np.uint8), axis=1)
    np.testing.assert_array_equal(bits[:, :dimensions], raw[:, :dimensions] > 0)
    assert not bits[:, dimensions:].any()


@pytest.mark.parametrize("path", ["/v1/embed", "/v1/classify"])
async def test_chunks_are_for_rank(app: Any, path: str) -> None:
    response = await app.post(path, {"inputs": "x", "truncate": "chunk"})
    problem = response.json()["errors"][0]
    assert (response.status_code, problem["pointer"]) == (422, "/truncate")
    assert '"chunk" is for rank' in problem["detail"]


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
