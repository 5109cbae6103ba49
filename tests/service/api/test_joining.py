"""A request whose texts are read apart is one request: admitted and charged by its pairs, once; a text is read once."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from service.api.keys import digest_of
from service.errors import RunFailed

KEY = {"authorization": "Bearer the key"}
PAIRS = [["it is good", "it was great"], ["bad", "lovely film"], ["", "where is it?"]]
PASSAGES = ["this film is great", "my card is not usual", "it was awful, very bad!"]
BODIES = {
    "/v1/classify": {"model": "twins", "inputs": PAIRS},
    "/v1/rank": {"model": "split", "query": "is it good", "passages": PASSAGES},
}
A_MINUTE = 6000


@pytest.fixture
def joined_store(store_dir: Path, build_bundle: Callable[..., Path], move_alias: Callable[..., None]) -> Path:
    """The toy store with `split`, which joins a query with passages, and `twins`, which joins two texts to a label."""
    for name, task in (("split", "rank"), ("twins", "classify")):
        build_bundle(store_dir / name / "1", task=task, pairs="separate", joined=True, name=name)
        move_alias(store_dir, name, production=1)
    return store_dir


@pytest.fixture
async def app(start: Any, joined_store: Path, tmp_path: Path) -> AsyncIterator[Any]:
    """With a key of so many items and tokens a minute, by a clock that stands still."""
    quotas = {"items_per_minute": A_MINUTE, "compute_per_minute": A_MINUTE}
    keys = [{"name": "limited", "sha256": digest_of("the key"), **quotas}]
    (tmp_path / "keys.json").write_text(json.dumps({"schema": 1, "keys": keys}))
    async with start(precision="fp32", api_keys=tmp_path / "keys.json") as running:
        now = time.monotonic()
        running.service.access._clock = lambda: now
        running.service.access.status()
        yield running


@pytest.fixture
async def narrow(start: Any, joined_store: Path) -> AsyncIterator[Any]:
    """With room for four pairs."""
    async with start(precision="fp32", max_queue_items=4, max_items=4) as running:
        yield running


def _student(app: Any, name: str) -> Any:
    return app.service.students.families[name].production.student


async def _ask(app: Any, path: str, **fields: Any) -> Any:
    return await app.client.post(path, json=BODIES[path] | fields, headers=KEY)


def _taken(app: Any) -> tuple[float, float]:
    """Items and full-depth tokens that were charged."""
    (told,) = app.service.access.status()
    return A_MINUTE - told["left"]["items"], round(A_MINUTE - told["left"]["compute"], 6)


def _tokens(app: Any, path: str) -> int:
    """Those that the pairs of `BODIES` count for."""
    if path == "/v1/rank":
        return sum(item.kept for item in _student(app, "split").encoder.encode(PASSAGES))
    return sum(item.kept for item in _student(app, "twins").encoder.encode([tuple(pair) for pair in PAIRS]))


def _promised(app: Any) -> int:
    return sum(lane.promised for lane in app.service.engine._admission.lanes.values())


async def _until_promised(app: Any, pairs: int) -> None:
    async with asyncio.timeout(30):
        while _promised(app) != pairs:  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0)


async def _held(app: Any, path: str, **fields: Any) -> tuple[Any, "asyncio.Task[Any]"]:
    """A request whose texts are being read until the runner is let go."""
    runner = app.hold_reading(BODIES[path]["model"])
    asking = asyncio.create_task(_ask(app, path, **fields))
    assert await asyncio.to_thread(runner.running.wait, 30)
    return runner, asking


@pytest.mark.parametrize("path", BODIES)
async def test_the_answer_is_charged_by_its_pairs(app: Any, path: str) -> None:
    assert (await _ask(app, path)).status_code == 200
    assert _taken(app) == (3, _tokens(app, path))
    assert (await _ask(app, path)).status_code == 200
    assert _taken(app) == (6, 2 * _tokens(app, path)), "a known passage counts as another does"


@pytest.mark.parametrize("path", BODIES)
async def test_who_leaves_while_texts_are_read_pays_what_was_expected(app: Any, path: str) -> None:
    runner, asking = await _held(app, path)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    runner.go.set()
    assert _taken(app) == (3, _tokens(app, path))
    assert _promised(app) == 0


@pytest.mark.parametrize(("path", "status"), [("/v1/classify", 504), ("/v1/rank", 504)])
async def test_a_deadline_that_passes_while_texts_are_read_is_paid(app: Any, path: str, status: int) -> None:
    runner, asking = await _held(app, path, deadline_ms=600_000)
    for request in tuple(app.service.engine._ledger.requests):
        app.service.engine._expire(request)
    response = await asking
    runner.go.set()
    assert response.status_code == status
    assert _taken(app) == (3, _tokens(app, path))


async def test_a_text_that_breaks_the_graph_is_paid_with_its_pair(app: Any) -> None:
    student = _student(app, "twins")
    (token,) = student.encoder.encode(["lovely"])[0].input_ids[1:2]
    run = student.apart._run_stage

    def fails(stage_index: int, feeds: Any, outputs: Any) -> Any:
        if (feeds["input_ids"] == token).any():
            raise RunFailed("the graph broke on this batch")
        return run(stage_index, feeds, outputs)

    student.apart._run_stage = fails
    response = await _ask(app, "/v1/classify", on_error="item")
    assert ["error" in one for one in response.json()["results"]] == [False, True, False]
    assert _taken(app) == (3, _tokens(app, "/v1/classify"))


async def test_what_the_quota_does_not_allow_is_refused_before_anything_is_read(app: Any) -> None:
    assert (await _ask(app, "/v1/rank")).status_code == 200
    app.service.access._accounts["limited"].key = app.service.access._accounts["limited"].key.model_copy(
        update={"max_request_compute": 1.0}
    )
    reads = 'understudy_batch_items_sum{model="split",stage="00"}'
    before = await app.metric(reads)
    assert (await _ask(app, "/v1/rank", query="bad")).status_code == 403
    assert await app.metric(reads) == before, "known passages count before the query is read"


async def test_as_many_pairs_as_may_wait_are_taken(narrow: Any) -> None:
    pairs = [[f"good {number}", f"bad {number}"] for number in range(4)]
    assert (await _ask(narrow, "/v1/classify", inputs=pairs)).status_code == 200
    assert (await _ask(narrow, "/v1/rank", passages=["good", "bad", "card", "zebra"])).status_code == 200


async def test_pairs_take_their_room_while_their_texts_are_read(narrow: Any) -> None:
    runner, asking = await _held(narrow, "/v1/classify")
    assert _promised(narrow) == 3
    refused = await _ask(narrow, "/v1/classify", inputs=PAIRS[:2])
    assert (refused.status_code, refused.json()["code"]) == (429, "overloaded")
    fits = asyncio.create_task(_ask(narrow, "/v1/classify", inputs=PAIRS[:1]))
    await _until_promised(narrow, 4)
    runner.go.set()
    assert [(await each).status_code for each in (asking, fits)] == [200, 200]
    assert _promised(narrow) == 0


async def test_what_was_let_in_is_not_refused_halfway(narrow: Any) -> None:
    runner, asking = await _held(narrow, "/v1/rank")
    late = asyncio.create_task(_ask(narrow, "/v1/rank", passages=["zebra"]))
    await _until_promised(narrow, 4)
    # its own three pairs and the other's one fill the queue; nothing that has its place is turned away
    assert (await _ask(narrow, "/v1/rank", passages=["card"])).status_code == 429
    runner.go.set()
    assert [(await each).status_code for each in (asking, late)] == [200, 200]


async def test_one_text_of_many_pairs_is_read_once(app: Any) -> None:
    pairs = [["is it good", passage] for passage in (*PASSAGES, PASSAGES[0], "is it good")]
    together = (await _ask(app, "/v1/classify", inputs=pairs)).json()["results"]
    assert await app.metric('understudy_batch_items_sum{model="twins",stage="00"}') == 1 + 4
    assert await app.metric('understudy_batch_items_sum{model="twins",stage="01"}') == 5
    alone = [(await _ask(app, "/v1/classify", inputs=[pair])).json()["results"][0] for pair in pairs]
    assert [one["label"] for one in together] == [one["label"] for one in alone]
    assert [one["score"] for one in together] == pytest.approx([one["score"] for one in alone], abs=1e-6)


async def test_what_is_kept_of_passages_is_theirs_alone(app: Any) -> None:
    passages = [f"good film {number} " * (number % 5 + 1) for number in range(70)]
    assert (await _ask(app, "/v1/rank", passages=passages)).status_code == 200
    kept = [state for entry in app.service.passages._entries.values() for state in entry.states]
    assert len(kept) == 70
    assert [state.base for state in kept] == [None] * 70
    tokens = sum(item.kept for item in _student(app, "split").encoder.encode(passages))
    assert sum(state.nbytes for state in kept) == 8 * tokens
