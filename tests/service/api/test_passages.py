"""The passage cache: what it keeps, within its bound, and that answers do not show it."""

import asyncio
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.api.passages import ENTRY_BYTES, Embedded, PassageCache, PassageKey, Reading, Stated, passage_keys
from service.engine.item import ServedStudent
from service.metrics import Metrics
from service.runtime.student import state_of

READING = Reading(tokens=3, kept=3, chunks=1, billed=3)
KEY = [PassageKey(bytes([number])) for number in range(4)]
BODY = {"model": "toy-embed", "query": "is it good", "passages": ["great film", "bad", "", "great film"]}


def _student(name: str = "near") -> ServedStudent:
    runner: Any = object()
    return ServedStudent(name=name, version=1, student=runner)


def _entry(floats: int = 10) -> Embedded:
    return Embedded(np.ones((1, floats), np.float32), 0, READING)


def _holding(entries: int, floats: int = 10) -> int:
    return entries * (ENTRY_BYTES + 4 * floats)


class TestCache:
    def test_what_was_put_is_found_by_the_same_version_only(self) -> None:
        cache, one, other = PassageCache(1 << 20, Metrics()), _student(), _student()
        entry = _entry()
        cache.put(one, [(KEY[0], entry)])
        assert cache.get(one, KEY[:2], Embedded) == {KEY[0]: entry}
        assert cache.get(other, KEY, Embedded) == {}

    def test_what_was_not_used_for_longest_goes_first(self) -> None:
        cache, student = PassageCache(_holding(2), Metrics()), _student()
        cache.put(student, [(KEY[0], _entry()), (KEY[1], _entry())])
        cache.get(student, [KEY[0]], Embedded)
        cache.put(student, [(KEY[2], _entry())])
        assert set(cache.get(student, KEY, Embedded)) == {KEY[0], KEY[2]}
        assert cache.nbytes == _holding(2)

    def test_one_too_large_is_not_kept_and_pushes_nothing_out(self) -> None:
        cache, student = PassageCache(_holding(1), Metrics()), _student()
        cache.put(student, [(KEY[0], _entry()), (KEY[1], _entry(11))])
        assert set(cache.get(student, KEY, Embedded)) == {KEY[0]}

    def test_without_room_it_keeps_nothing(self) -> None:
        cache, student = PassageCache(0, Metrics()), _student()
        cache.put(student, [(KEY[0], _entry())])
        assert repr(cache) == "PassageCache(entries=0, bytes=0)"

    def test_the_same_again_counts_once(self) -> None:
        cache, student = PassageCache(1 << 20, Metrics()), _student()
        for _ in range(2):
            cache.put(student, [(KEY[0], _entry())])
        assert cache.nbytes == _holding(1)

    def test_a_version_is_forgotten_whole(self) -> None:
        cache, one, other = PassageCache(1 << 20, Metrics()), _student("a"), _student("b")
        for student in (one, other):
            cache.put(student, [(KEY[0], _entry()), (KEY[1], _entry())])
        cache.drop(one)
        assert cache.get(one, KEY, Embedded) == {}
        assert len(cache.get(other, KEY, Embedded)) == 2
        assert cache.nbytes == _holding(2)

    @pytest.mark.parametrize("chunks", [1, 4])
    def test_what_it_counts_is_what_it_holds(self, chunks: int) -> None:
        cache, student = PassageCache(1 << 30, Metrics()), _student()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for number in range(50):
            batch = np.ones((20, 64, 96), np.int8)
            for place, row in enumerate(batch):
                (key,) = passage_keys([f"{number} {place}"], "end")
                reading = Reading(1000 + number, 1000 + place, chunks, 2000 + number)
                states = tuple(state_of(row, 1 + place) for _ in range(chunks))
                cache.put(student, [(key, Stated(states, (1 + place,) * chunks, reading))])
        del batch, row, key, reading, states
        held = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        assert 0.8 * cache.nbytes < held <= cache.nbytes

    def test_it_is_counted(self) -> None:
        metrics = Metrics()
        cache, student = PassageCache(_holding(1), metrics), _student()
        cache.get(student, KEY, Embedded)
        cache.put(student, [(KEY[0], _entry()), (KEY[1], _entry())])
        cache.get(student, KEY, Embedded)
        text = metrics.exposition().decode()
        assert 'understudy_cache_hits_total{model="near"} 1.0' in text
        assert 'understudy_cache_misses_total{model="near"} 7.0' in text
        assert f'understudy_cache_bytes{{model="near"}} {float(_holding(1))}' in text


def test_a_key_is_of_the_text_and_of_what_is_done_with_it() -> None:
    assert passage_keys(["a", "b", "a"], "end")[0] == passage_keys(["a"], "end")[0]
    assert len(set(passage_keys(["a", "b"], "end") + passage_keys(["a"], "start"))) == 3


async def test_the_answer_is_the_same_with_and_without(start: Any) -> None:
    async with start(passage_cache_mb=0) as app:
        without = [(await app.post("/v1/rank", BODY)).json() for _ in range(2)]
        assert app.service.passages.nbytes == 0
    async with start() as app:
        # "great film" twice in a request is computed once
        withs = [(await app.post("/v1/rank", BODY)).json() for _ in range(2)]
        assert await app.metric('understudy_cache_hits_total{model="toy-embed"}') == 4
        assert await app.metric('understudy_cache_misses_total{model="toy-embed"}') == 4
        assert await app.metric('understudy_exits_total{exit="full",model="toy-embed",version="1"}') == 1 + 3 + 1
    for answer in (*without, *withs):
        for field in ("results", "usage", "exit"):
            assert answer[field] == without[0][field]


@pytest.mark.parametrize("truncate", ["end", "start", "chunk"])
async def test_what_is_said_of_a_long_passage_is_the_same_from_the_cache(app: Any, truncate: str) -> None:
    body = BODY | {"passages": ["it was not very good " * 40, "bad"], "truncate": truncate}
    one, other = [(await app.post("/v1/rank", body)).json() for _ in range(2)]
    assert (one["results"], one["usage"]) == (other["results"], other["usage"])
    assert any("truncated" in result for result in one["results"])


async def test_what_failed_is_not_kept(app: Any) -> None:
    student = app.service.students.families["toy-embed"].production.student
    poison = int(student.encoder.encode(["awful"])[0].input_ids[1])
    app.hold("toy-embed", poison=poison).go.set()
    body = BODY | {"passages": ["good", "awful"], "on_error": "item"}
    for _ in range(2):
        answer = (await app.post("/v1/rank", body)).json()
        assert [one["index"] for one in answer["results"]] == [0, 1]
        assert answer["results"][1]["error"]["code"] == "run_failed"
    assert repr(app.service.passages).startswith("PassageCache(entries=1,")


async def test_a_version_that_is_no_longer_served_leaves_nothing(
    app: Any, store_dir: Path, build_bundle: Callable[..., Path], move_alias: Callable[..., None]
) -> None:
    await app.post("/v1/rank", BODY)
    assert app.service.passages.nbytes > 0
    build_bundle(store_dir / "toy-embed" / "2", task="embed", seed=1)
    move_alias(store_dir, "toy-embed", production=2)
    async with asyncio.timeout(30):
        await app.service.students.until(lambda: app.service.students.served()["toy-embed"] == [2])
    assert app.service.passages.nbytes == 0


async def test_a_request_that_ends_after_its_version_left_keeps_nothing(app: Any, store_dir: Path) -> None:
    runner = app.hold("toy-embed")
    asking = asyncio.create_task(app.post("/v1/rank", BODY))
    await asyncio.to_thread(runner.running.wait, 30)
    (store_dir / "toy-embed" / "aliases.json").unlink()
    async with asyncio.timeout(30):
        await app.service.students.until(lambda: "toy-embed" not in app.service.students.served())
    runner.go.set()
    assert (await asking).status_code == 200
    assert app.service.passages.nbytes == 0
