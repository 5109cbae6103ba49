"""An exit whose scores have a temperature of their own: it changes what every surface shows, and nobody's exit."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from service.runtime.heads import softmax

TEXTS = ["this film is great", "where is it?", "", "it was awful", "good " * 20]
FLAT = 6.0


def _flat_early_scores(document: dict[str, Any]) -> None:
    document["format"] = "1.1"
    document["exits"][0]["score_temperature"] = FLAT


@pytest.fixture
async def app(
    start: Any, tmp_path: Path, build_bundle: Callable[..., Path], move_alias: Callable[..., None]
) -> AsyncIterator[Any]:
    build_bundle(tmp_path / "toy" / "1")
    build_bundle(tmp_path / "toy" / "2", change=_flat_early_scores)
    move_alias(tmp_path, "toy", production=2, canary=1)
    async with start(store=tmp_path) as running:
        yield running


async def _results(app: Any, **body: Any) -> list[dict[str, Any]]:
    response = await app.post("/v1/classify", body)
    assert response.status_code == 200, response.text
    results: list[dict[str, Any]] = response.json()["results"]
    return results


@pytest.mark.parametrize("exit", ["default", "never", {"risk": 0.01}])
async def test_only_the_scores_of_that_exit_change(app: Any, exit: Any) -> None:
    student = app.service.students.families["toy"].production.student
    found = await _results(app, model="toy", inputs=TEXTS, exit=exit)
    plain = await _results(app, model="toy@canary", inputs=TEXTS, exit=exit)
    for text, one, other in zip(TEXTS, found, plain, strict=True):
        assert (one["label"], one["exit"], one["depth"]) == (other["label"], other["exit"], other["depth"])
        if one["exit"] == "full":
            assert one["score"] == pytest.approx(other["score"], abs=1e-6)
            continue
        raw = student.all_exits(student.encoder.encode([text]))[0][0]
        assert one["score"] == pytest.approx(softmax(raw, temperature=FLAT).max(), abs=1e-5)
        assert one["score"] < other["score"]
    assert exit == "never" or "early" in {one["exit"] for one in found}


async def test_every_surface_shows_the_same(app: Any) -> None:
    native = await _results(app, inputs=TEXTS)
    scores = [one["score"] for one in native]
    for text, score in zip(TEXTS, scores, strict=True):
        (alone,) = await _results(app, inputs=[text])
        assert alone["score"] == pytest.approx(score, abs=1e-5)
    listed = await _results(app, inputs=TEXTS, top_k=1)
    assert [one["labels"][0]["score"] for one in listed] == pytest.approx(scores, abs=1e-6)
    predicted = (await app.post("/tei/predict", {"inputs": [[text] for text in TEXTS]})).json()
    assert [best["score"] for best, *_ in predicted] == pytest.approx(scores, abs=1e-6)
    tensor = {"name": "text", "shape": [len(TEXTS)], "datatype": "BYTES", "data": TEXTS}
    outputs = [{"name": "score"}, {"name": "scores"}]
    infer = (await app.post("/v2/models/toy/infer", {"inputs": [tensor], "outputs": outputs})).json()
    score, every = (output["data"] for output in infer["outputs"])
    assert score == pytest.approx(scores, abs=1e-5)
    assert [max(every[at : at + 3]) for at in range(0, len(every), 3)] == pytest.approx(scores, abs=1e-5)
