"""`/v1/classify` in this process: envelopes, exits, truncation, errors per item."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest

from service.api.schemas import ClassifyAnswer, FailedResult, Problem
from service.api.tokenizing import PORTION_CHARACTERS

EARLY, LATE = "this film is great", "where is it?"
LONG = "good " * 100


def _problem(response: httpx.Response, status: int, code: str) -> Problem:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    problem = Problem.model_validate_json(response.content)
    assert (problem.status, problem.code, problem.type) == (status, code, f"urn:understudy:error:{code}")
    return problem


def _pointers(problem: Problem) -> list[str]:
    return [field.pointer for field in problem.errors or []]


async def test_one_text(app: Any) -> None:
    response = await app.post("/v1/classify", {"model": "toy", "inputs": EARLY})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    answer = ClassifyAnswer.model_validate_json(response.content, strict=True)
    assert (answer.model, answer.version) == ("toy", 1)
    (result,) = answer.results
    assert result.label == "positive"
    assert set(response.json()["results"][0]) == {"label", "score", "exit", "depth"}
    assert (result.exit, result.depth) == ("early", 0.25)
    assert (answer.exit.risk_requested, answer.exit.risk_applied) == (0.05, 0.05)
    assert answer.usage.tokens == 6
    assert 0 <= answer.timing_ms.compute <= answer.timing_ms.total


async def test_the_answer_is_the_students_own(app: Any) -> None:
    student = app.service.students.families["toy"].production.student
    texts = [EARLY, LATE, "", "zebra 42 good", LONG]
    answer = (await app.post("/v1/classify", {"inputs": texts})).json()
    for text, result in zip(texts, answer["results"], strict=True):
        (alone,) = student.run(student.encoder.encode([text]), student.policy("default"))
        leave = student.manifest.exits[alone.exit_index]
        scores = np.exp(alone.raw / leave.temperature) / np.exp(alone.raw / leave.temperature).sum()
        assert result["exit"] == leave.id
        assert result["label"] == student.manifest.labels[scores.argmax()]
        assert result["score"] == pytest.approx(scores.max(), abs=1e-5)


async def test_full_depth_is_one_run_of_all_stages(app: Any) -> None:
    texts = [EARLY, LATE, "", "zebra 42 good"]
    student = app.service.students.families["toy"].production.student
    answer = (await app.post("/v1/classify", {"inputs": texts, "exit": "never", "top_k": 3})).json()
    staged = student.run(student.encoder.encode(texts), student.policy("never"))
    for outcome, result in zip(staged, answer["results"], strict=True):
        assert (result["exit"], result["depth"]) == ("full", 1.0)
        scores = {each["label"]: each["score"] for each in result["labels"]}
        raw = outcome.raw.astype(np.float64) / student.manifest.exits[-1].answer_temperature
        wanted = np.exp(raw) / np.exp(raw).sum()
        assert scores == pytest.approx(dict(zip(student.manifest.labels, wanted, strict=True)), abs=1e-12)
    metrics = (await app.client.get("/metrics")).text
    assert 'understudy_batch_items_count{model="toy",stage="all stages"} 1.0' in metrics
    assert 'understudy_batch_items_count{model="toy",stage="00"}' not in metrics


async def test_top_k(app: Any) -> None:
    answer = (await app.post("/v1/classify", {"inputs": [EARLY, ""], "top_k": 2})).json()
    for result in answer["results"]:
        labels = result["labels"]
        assert len(labels) == 2
        assert labels[0] == {"label": result["label"], "score": result["score"]}
        assert labels[0]["score"] >= labels[1]["score"]
    every = (await app.post("/v1/classify", {"inputs": EARLY, "top_k": 99})).json()["results"][0]["labels"]
    assert [one["label"] for one in every].count("neutral") == 1
    assert sum(one["score"] for one in every) == pytest.approx(1)


@pytest.mark.parametrize(
    ("asked", "requested", "applied", "leaves"),
    [
        ("default", 0.05, 0.05, "early"),
        ("never", None, None, "full"),
        ({"risk": 0.5}, 0.5, 0.05, "early"),
        ({"risk": 0.02}, 0.02, 0.01, "full"),
        ({"risk": 0.001}, 0.001, None, "full"),
    ],
)
async def test_exits(app: Any, asked: Any, requested: float | None, applied: float | None, leaves: str) -> None:
    answer = (await app.post("/v1/classify", {"inputs": EARLY, "exit": asked})).json()
    assert answer["exit"] == {"risk_requested": requested, "risk_applied": applied}
    assert answer["results"][0]["exit"] == leaves


async def test_exits_are_off_without_a_certificate(
    start: Any, store_dir: Path, build_bundle: Any, move_alias: Any
) -> None:
    build_bundle(store_dir / "toy" / "2", certified=False)
    move_alias(store_dir, "toy", production=2)
    async with start() as app:
        answer = (await app.post("/v1/classify", {"inputs": EARLY})).json()
        assert answer["exit"] == {"risk_requested": 0.05, "risk_applied": None}
        assert answer["results"][0]["depth"] == 1.0


async def test_alone_and_in_company(app: Any) -> None:
    texts = [EARLY, LATE, "", LONG, "my card is not usual"] * 12
    company = (await app.post("/v1/classify", {"inputs": texts, "exit": "never"})).json()["results"]
    for text, result in list(zip(texts, company, strict=True))[:5]:
        alone = (await app.post("/v1/classify", {"inputs": text, "exit": "never"})).json()["results"][0]
        assert alone["label"] == result["label"]
        assert alone["score"] == pytest.approx(result["score"], abs=1e-3)


async def test_many_items_are_split_inside(app: Any) -> None:
    answer = (await app.post("/v1/classify", {"inputs": [EARLY] * 1000})).json()
    assert len(answer["results"]) == 1000
    assert {result["label"] for result in answer["results"]} == {"positive"}


class TestTruncation:
    async def test_the_end_is_cut_and_told(self, app: Any) -> None:
        answer = (await app.post("/v1/classify", {"inputs": ["good", LONG]})).json()
        assert "truncated" not in answer["results"][0]
        assert answer["results"][1]["truncated"] == {"kept": 32, "dropped": 70}
        assert answer["usage"]["tokens"] == 3 + 32

    async def test_which_end_is_kept(self, app: Any) -> None:
        inputs = "bad " * 40 + "good " * 40
        for truncate, label in (("end", "negative"), ("start", "positive")):
            body = {"inputs": inputs, "truncate": truncate}
            assert (await app.post("/v1/classify", body)).json()["results"][0]["label"] == label

    async def test_texts_that_lost_their_start_go_to_full_depth(self, app: Any) -> None:
        cut = (await app.post("/v1/classify", {"inputs": [EARLY, LONG], "truncate": "start"})).json()
        assert {result["exit"] for result in cut["results"]} == {"full"}
        assert cut["exit"]["risk_applied"] is None
        whole = (await app.post("/v1/classify", {"inputs": [EARLY], "truncate": "start"})).json()
        assert whole["results"][0]["exit"] == "early"

    async def test_refused_as_a_whole(self, app: Any) -> None:
        response = await app.post("/v1/classify", {"inputs": ["good", LONG], "truncate": "error"})
        assert _pointers(_problem(response, 422, "invalid_input")) == ["/inputs/1"]

    async def test_the_inputs_of_every_portion_are_named(self, app: Any) -> None:
        long = "good " * (PORTION_CHARACTERS // 10)
        body = {"inputs": [long, "bad", long, long, "x"]}
        response = await app.post("/v1/classify", body | {"truncate": "error"})
        assert _pointers(_problem(response, 422, "invalid_input")) == ["/inputs/0", "/inputs/2", "/inputs/3"]
        answered = await app.post("/v1/classify", body)
        assert [result["label"] for result in answered.json()["results"][:4]] == [
            "positive",
            "negative",
            "positive",
            "positive",
        ]
        many = await app.post("/v1/classify", {"inputs": [LONG] * 20, "truncate": "error"})
        assert many.json()["errors"][-1] == {"pointer": "", "detail": "and 4 more"}

    async def test_refused_alone(self, app: Any) -> None:
        body = {"inputs": [LONG, "good", LONG], "truncate": "error", "on_error": "item"}
        response = await app.post("/v1/classify", body)
        answer = ClassifyAnswer.model_validate_json(response.content)
        assert [isinstance(result, FailedResult) for result in answer.results] == [True, False, True]
        assert response.json()["results"][2]["error"]["errors"][0]["pointer"] == "/inputs/2"
        assert answer.usage.tokens == 3

    async def test_all_refused_alone(self, app: Any) -> None:
        body = {"inputs": LONG, "truncate": "error", "on_error": "item"}
        response = await app.post("/v1/classify", body)
        assert response.status_code == 200
        assert response.json()["results"][0]["error"]["status"] == 422

    async def test_the_default_is_a_setting(self, start: Any) -> None:
        async with start(default_truncate="error") as app:
            _problem(await app.post("/v1/classify", {"inputs": LONG}), 422, "invalid_input")


class TestModel:
    async def test_left_out_where_one_serves_the_task(self, app: Any) -> None:
        assert (await app.post("/v1/classify", {"inputs": "x"})).json()["model"] == "toy"
        assert (await app.post("/v1/classify", {"inputs": "x", "model": None})).json()["model"] == "toy"

    async def test_left_out_where_two_do(self, start: Any, store_dir: Path, build_bundle: Any, move_alias: Any) -> None:
        build_bundle(store_dir / "second" / "1", name="second")
        move_alias(store_dir, "second", production=1)
        async with start() as app:
            problem = _problem(await app.post("/v1/classify", {"inputs": "x"}), 422, "invalid_input")
            assert _pointers(problem) == ["/model"]
            assert "second, toy" in problem.detail

    @pytest.mark.parametrize("model", ["toy", "toy@production", "toy@1"])
    async def test_by_name_alias_and_version(self, app: Any, model: str) -> None:
        assert (await app.post("/v1/classify", {"inputs": "x", "model": model})).json()["version"] == 1

    @pytest.mark.parametrize(
        "model", ["", "nope", "toy@", "toy@canary", "toy@2", "toy@0", "toy@" + "9" * 200, "@", "../x"]
    )
    async def test_unknown(self, app: Any, model: str) -> None:
        _problem(await app.post("/v1/classify", {"inputs": "x", "model": model}), 404, "unknown_model")

    async def test_the_wrong_task(self, app: Any) -> None:
        response = await app.post("/v1/classify", {"inputs": "x", "model": "toy-embed"})
        assert _pointers(_problem(response, 422, "invalid_input")) == ["/model"]

    async def test_nothing_serves_the_task(self, start: Any, store_dir: Path) -> None:
        (store_dir / "toy").rename(store_dir / ".toy")
        async with start() as app:
            _problem(await app.post("/v1/classify", {"inputs": "x"}), 404, "unknown_model")


class TestPairs:
    @pytest.fixture
    def store_dir(self, tmp_path: Path, build_bundle: Any, move_alias: Any) -> Path:
        build_bundle(tmp_path / "pairs" / "toy" / "1", pairs="joint")
        move_alias(tmp_path / "pairs", "toy", production=1)
        return tmp_path / "pairs"

    async def test_answered(self, app: Any) -> None:
        answer = (await app.post("/v1/classify", {"inputs": [["it was great", "is it good?"], ["", ""]]})).json()
        assert len(answer["results"]) == 2
        assert answer["results"][0]["label"] == "positive"

    async def test_single_texts_are_refused(self, app: Any) -> None:
        assert _pointers(_problem(await app.post("/v1/classify", {"inputs": "x"}), 422, "invalid_input")) == [
            "/inputs/0"
        ]


async def test_pairs_for_a_student_of_texts(app: Any) -> None:
    response = await app.post("/v1/classify", {"inputs": [["a", "b"]]})
    assert _pointers(_problem(response, 422, "invalid_input")) == ["/inputs/0"]


class TestLimits:
    async def test_too_many_items(self, start: Any) -> None:
        async with start(max_items=3) as app:
            _problem(await app.post("/v1/classify", {"inputs": ["x"] * 4}), 413, "too_large")
            assert (await app.post("/v1/classify", {"inputs": ["x"] * 3})).status_code == 200

    async def test_too_many_bytes(self, start: Any) -> None:
        async with start(max_body_bytes=1024) as app:
            _problem(await app.post("/v1/classify", {"inputs": "x" * 1024}), 413, "too_large")
            assert await app.metric(
                'understudy_requests_total{endpoint="/v1/classify",model="unknown",status="413",version=""}'
            )

    async def test_a_deadline_that_has_passed(self, app: Any) -> None:
        runner = app.hold("toy")
        response = await app.post("/v1/classify", {"inputs": "x", "deadline_ms": 0.001})
        runner.go.set()
        _problem(response, 504, "deadline_exceeded")

    async def test_the_default_deadline(self, start: Any) -> None:
        async with start(default_deadline_ms=0.001) as app:
            _problem(await app.post("/v1/classify", {"inputs": "x"}), 504, "deadline_exceeded")

    async def test_shed_when_the_queue_is_full(self, start: Any) -> None:
        async with start(max_queue_items=2, max_items=2) as app:
            runner = app.hold("toy")
            running = asyncio.create_task(app.post("/v1/classify", {"inputs": "x"}))
            await asyncio.to_thread(runner.running.wait, 30)
            waiting = asyncio.create_task(app.post("/v1/classify", {"inputs": ["x", "y"]}))
            await app.queued(2)
            shed = await app.post("/v1/classify", {"inputs": "x"})
            runner.go.set()
            _problem(shed, 429, "overloaded")
            assert int(shed.headers["retry-after"]) >= 1
            assert [(await each).status_code for each in (running, waiting)] == [200, 200]
            assert await app.metric('understudy_shed_total{model="toy",reason="overloaded"}') == 1


class TestPoison:
    @pytest.fixture
    async def poisoned(self, app: Any) -> Callable[..., Any]:
        student = app.service.students.families["toy"].production.student
        (encoded,) = student.encoder.encode(["awful"])
        runner = app.hold("toy", poison=int(encoded.input_ids[1]))
        runner.go.set()
        return lambda **fields: app.post("/v1/classify", fields)

    async def test_fails_its_own_request(self, poisoned: Any) -> None:
        response = await poisoned(inputs=["good", "awful", "great"])
        assert _pointers(_problem(response, 500, "run_failed")) == ["/inputs/1"]

    async def test_or_only_itself(self, poisoned: Any) -> None:
        results = (await poisoned(inputs=["good", "awful", "great"], on_error="item")).json()["results"]
        assert [result.get("label") for result in results] == ["positive", None, "positive"]
        assert results[1]["error"]["code"] == "run_failed"

    async def test_and_never_another_request(self, poisoned: Any) -> None:
        responses = await asyncio.gather(*(poisoned(inputs="awful" if i % 5 == 0 else "good") for i in range(40)))
        assert [response.status_code for response in responses] == [500 if i % 5 == 0 else 200 for i in range(40)]


async def test_the_unversioned_route_is_the_same(app: Any) -> None:
    versioned, plain = [await app.post(path, {"inputs": EARLY}) for path in ("/v1/classify", "/classify")]
    assert plain.json()["results"] == versioned.json()["results"]


async def test_any_content_type_that_holds_json(app: Any) -> None:
    for kind in ("application/json", "text/plain", "application/x-www-form-urlencoded", ""):
        headers = {"content-type": kind} if kind else {}
        response = await app.client.post("/v1/classify", content=orjson.dumps({"inputs": "x"}), headers=headers)
        assert response.status_code == 200
