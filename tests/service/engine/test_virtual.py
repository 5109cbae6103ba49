"""The real engine on a virtual clock: deterministic, no threads, no sleeping.

A run takes as long as its cost model says: on the event loop it moves the clock on, on a slot it moves the slot's own
clock and its reports come when their moment comes.
"""

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.engine import Engine
from service.engine.item import ServedStudent
from service.engine.limits import EngineLimits
from service.errors import DeadlineExceeded, Overloaded, RunFailed, ServiceError
from service.runtime.cost import StageCost
from service.runtime.encode import Encoded
from service.runtime.heads import ExitPolicy
from service.runtime.pipeline import Pass
from service.runtime.student import Outcome

NOTHING_HELD = "<Engine requests=0 queued=0 in_flight=0 busy_slots=0 draining>"
COSTS = (StageCost(1e-4, 2e-6), StageCost(3e-4, 6e-6))
EARLY, NEVER = ExitPolicy((0.9,)), ExitPolicy((None,))


@dataclass
class Student:
    """The scripted student of `conftest`, with runs that take time and break at random."""

    world: Any
    pipeline: Any
    costs: tuple[StageCost, ...] = COSTS
    slowness: float = 1.0
    poison: frozenset[int] = frozenset()
    killers: frozenset[int] = frozenset()
    not_a_number: frozenset[int] = frozenset()
    runs: list[tuple[int, tuple[int, ...], int, float]] = field(default_factory=list)
    pad_id: int = 0

    def begin(self, feeds: Mapping[str, np.ndarray], policies: ExitPolicy | Sequence[ExitPolicy]) -> Pass:
        return Pass(self.pipeline, self.run_stage, feeds, policies, clock=self.world.clock)

    def run_stage(self, stage: int, feeds: Mapping[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        ids = feeds["ids"]
        items = tuple(ids[:, 0].tolist())
        self.runs.append((stage, items, ids.shape[1], self.world.clock()))
        self.world.spend(self.slowness * self.costs[stage].seconds(*ids.shape))
        if self.killers.intersection(items):
            raise SystemExit(1)
        if self.poison.intersection(items):
            raise ValueError("poison")
        # what an item gets depends on its own ids and hidden states only
        seen = ids.sum(axis=1) if stage == 0 else feeds["hidden"][:, :, 0].sum(axis=1)
        sure = np.where(ids[:, 0] % 2 == 0, 100.0, 0.0) if stage == 0 else seen
        logits = np.stack([sure, np.zeros(len(ids))], axis=1).astype(np.float32)
        logits[[item in self.not_a_number for item in items]] = np.nan
        return {"hidden": np.repeat(ids[:, :, None], 2, axis=2).astype(np.float32) + 1, "logits": logits}

    def expected(self, item: int, tokens: int) -> float:
        """The first logit at full depth."""
        return float(item + (tokens - 1) + tokens)


def text(item: int, tokens: int) -> Encoded:
    ids = np.ones(tokens, dtype=np.int64)
    ids[0] = item
    return Encoded(ids, np.zeros_like(ids), tokens=tokens, kept=tokens)


def engine_in(world: Any, observer: Any = None, **fields: Any) -> Engine:
    limits = {"max_queue_items": 10_000, "token_budget": 512, "slots": 1} | fields
    return Engine(EngineLimits(**limits), clock=world.clock, slots=world, observer=observer)


async def settled(engine: Engine) -> str:
    assert await engine.drain(1000)
    return repr(engine)


@dataclass(frozen=True)
class Sent:
    """One request of the property test."""

    moment: float
    student: int
    lengths: tuple[int, ...]
    deadline: float | None
    priority: Any
    policy: ExitPolicy
    gives_up: float | None


requests = st.lists(
    st.builds(
        Sent,
        moment=st.floats(0, 0.05),
        student=st.integers(0, 1),
        lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12).map(tuple),
        deadline=st.one_of(st.none(), st.none(), st.floats(1e-4, 0.1)),
        priority=st.sampled_from(["high", "normal", "low"]),
        policy=st.sampled_from([EARLY, EARLY, NEVER]),
        gives_up=st.one_of(st.none(), st.none(), st.floats(0, 0.05)),
    ),
    min_size=1,
    max_size=40,
)
limits = st.fixed_dictionaries(
    {
        "slots": st.integers(1, 3),
        "token_budget": st.sampled_from([50, 200, 4096]),
        "batch_s": st.sampled_from([1e-3, 0.02]),
        "window_s": st.sampled_from([0.0, 0.0, 0.002]),
        "inline_s": st.sampled_from([None, 0.0, 1.0]),
        "rebatch": st.booleans(),
        "max_queue_items": st.sampled_from([30, 10_000]),
    }
)
trouble = st.fixed_dictionaries(
    {
        "poison": st.frozensets(st.integers(2, 200), max_size=6),
        "killers": st.frozensets(st.integers(2, 200), max_size=2),
        "not_a_number": st.frozensets(st.integers(2, 200), max_size=6),
        "slowness": st.sampled_from([0.3, 1.0, 1.0, 5.0]),
        "costs": st.sampled_from([COSTS, (StageCost(1e-6, 5e-6),) * 2, (StageCost(2e-3, 1e-6),) * 2]),
    }
)


class TestEverything:
    """Whatever comes, each item ends exactly once, rightly, and nothing is held."""

    @settings(max_examples=150)
    @given(requests, limits, trouble, st.booleans())
    def test_each_item_ends_once(self, run, pipeline, requests, limits, trouble, measured):
        run(lambda world: self.drive(world, pipeline, requests, limits, trouble, measured))

    async def drive(self, world, pipeline, requests, limits, trouble, measured):
        engine = engine_in(world, **limits)
        runners = [Student(world, pipeline, **trouble) for _ in range(2)]
        served = [ServedStudent("s", n, one, one.costs if measured else ()) for n, one in enumerate(runners)]
        numbers = iter(range(2, 10_000))
        numbered = [tuple(next(numbers) for _ in sent.lengths) for sent in requests]
        lengths = {
            n: t for sent, own in zip(requests, numbered, strict=True) for n, t in zip(own, sent.lengths, strict=True)
        }
        ended = await asyncio.gather(
            *(self.client(world, engine, served, sent, own) for sent, own in zip(requests, numbered, strict=True)),
            return_exceptions=True,
        )
        assert {type(end) for end in ended} <= {type(None), asyncio.CancelledError, Overloaded, DeadlineExceeded}
        assert await settled(engine) == NOTHING_HELD
        assert engine.healthy
        for runner in runners:
            self.check_runs(runner, limits, lengths)

    async def client(self, world, engine, served, sent, own):
        await asyncio.sleep(sent.moment)
        deadline = None if sent.deadline is None else world.time() + sent.deadline
        student = served[sent.student]
        texts = [text(item, tokens) for item, tokens in zip(own, sent.lengths, strict=True)]
        asking = asyncio.ensure_future(
            engine.submit(student, texts, policy=sent.policy, deadline=deadline, priority=sent.priority)
        )
        if sent.gives_up is not None:
            world.call_later(sent.gives_up, asking.cancel)
        results = await asking
        assert len(results) == len(texts)
        for item, tokens, result in zip(own, sent.lengths, results, strict=True):
            assert result.queue_s >= 0 and result.compute_s >= 0
            self.check(student.student, sent, item, tokens, result.outcome)

    def check(self, runner: Student, sent: Sent, item: int, tokens: int, outcome: Outcome | ServiceError) -> None:
        if isinstance(outcome, DeadlineExceeded):
            assert sent.deadline is not None
        elif isinstance(outcome, RunFailed):
            assert item in runner.poison | runner.not_a_number or runner.killers
        else:
            assert isinstance(outcome, Outcome)
            assert item not in runner.poison | runner.not_a_number
            early = sent.policy is EARLY and item % 2 == 0
            assert outcome.exit_index == (0 if early else 1)
            assert outcome.raw[0] == (100 if early else runner.expected(item, tokens))

    def check_runs(self, runner: Student, limits: Mapping[str, Any], lengths: Mapping[int, int]) -> None:
        for _, items, longest, _ in runner.runs:
            assert longest == max(lengths[item] for item in items)
            assert len(items) == 1 or len(items) * longest <= limits["token_budget"]
        if not runner.poison and not runner.killers:
            for stage in (0, 1):
                ran = [item for at, items, *_ in runner.runs if at == stage for item in items]
                assert len(set(ran)) == len(ran)


class TestNobodyStarves:
    @pytest.mark.parametrize("rebatch", [False, True])
    @pytest.mark.parametrize("priority", ["normal", "low"])
    def test_within_a_student(self, run, pipeline, rebatch, priority):
        """An item of an odd length, in a flood that never ends, waits no longer than its patience and the backlog."""

        async def main(world):
            engine = engine_in(world, rebatch=rebatch)
            runner = Student(world, pipeline)
            served, stop = ServedStudent("s", 1, runner, COSTS), False

            async def flood(first: int) -> None:
                while not stop:
                    await engine.submit(served, [text(first, 10)], policy=EARLY, priority="high")

            crowd = [asyncio.ensure_future(flood(100 + n)) for n in range(40)]
            await asyncio.sleep(0.01)
            began = world.time()
            await engine.submit(served, [text(3, 37)], policy=EARLY, priority=priority)
            waited = world.time() - began
            stop = True
            await asyncio.gather(*crowd)
            assert waited < (3.1 if priority == "low" else 2.1)
            assert await settled(engine) == NOTHING_HELD

        run(main)

    def test_between_students(self, run, pipeline):
        """A flood on one student leaves the other its half of the slot."""

        async def main(world):
            engine = engine_in(world)
            students = [ServedStudent(str(n), 1, Student(world, pipeline), COSTS) for n in range(2)]
            stop = False

            async def flood(student: ServedStudent, items: int, tokens: int) -> None:
                while not stop:
                    await engine.submit(student, [text(3 + 2 * n, tokens) for n in range(items)], policy=NEVER)

            crowd = [asyncio.ensure_future(flood(students[0], 50, 30)) for _ in range(20)]
            crowd += [asyncio.ensure_future(flood(students[1], 20, 8)) for _ in range(4)]
            await asyncio.sleep(2.0)
            spent = [
                sum(COSTS[stage].seconds(len(items), longest) for stage, items, longest, _ in one.student.runs)
                for one in students
            ]
            stop = True
            await asyncio.gather(*crowd)
            assert spent[1] > 0.8 * spent[0]
            assert await settled(engine) == NOTHING_HELD

        run(main)

    def test_a_short_request_passes_a_flood_on_another_student(self, run, pipeline):
        async def main(world):
            engine = engine_in(world, token_budget=8192)
            flooded, calm = (ServedStudent(n, 1, Student(world, pipeline), COSTS) for n in "ab")
            flood = [
                asyncio.ensure_future(engine.submit(flooded, [text(3, 20)] * 100, policy=NEVER)) for _ in range(20)
            ]
            await engine.submit(calm, [text(3, 5)], policy=NEVER)
            waited = []
            for _ in range(20):
                began = world.time()
                await engine.submit(calm, [text(3, 5)], policy=NEVER)
                waited.append(world.time() - began)
                await asyncio.sleep(0.002)
            assert not all(one.done() for one in flood)
            assert max(waited) < 0.02
            await asyncio.gather(*flood)

        run(main)


class TestRebatching:
    STEEP = (StageCost(1e-4, 1e-6), StageCost(2e-3, 1e-6))

    def late_runs(self, run, pipeline, *, costs, rebatch, policy=EARLY) -> tuple[int, float]:
        """How often the second stage ran, and how long it all took."""
        found = []

        async def main(world):
            engine = engine_in(world, rebatch=rebatch, token_budget=100)
            runner = Student(world, pipeline, costs=costs)
            served = ServedStudent("s", 1, runner, costs)
            texts = [text(3 if n % 5 == 0 else 2, 10) for n in range(400)]
            results = await engine.submit(served, texts, policy=policy)
            assert all(isinstance(result.outcome, Outcome) for result in results)
            assert await settled(engine) == NOTHING_HELD
            found.append((sum(stage == 1 for stage, *_ in runner.runs), world.time()))

        run(main)
        return found[0]

    def test_few_survivors_wait_for_company_where_runs_are_dear(self, run, pipeline):
        apart, slow = self.late_runs(run, pipeline, costs=self.STEEP, rebatch=False)
        joined, fast = self.late_runs(run, pipeline, costs=self.STEEP, rebatch=True)
        assert (apart, joined) == (40, pytest.approx(10, abs=4))
        assert fast < 0.6 * slow

    def test_they_run_straight_on_where_cost_is_all_in_tokens(self, run, pipeline):
        linear = (StageCost(0.0, 5e-6), StageCost(0.0, 5e-6))
        (apart, slow), (joined, fast) = (
            self.late_runs(run, pipeline, costs=linear, rebatch=rebatch) for rebatch in (False, True)
        )
        assert (apart, slow) == (joined, fast)


class TestInline:
    @pytest.mark.parametrize(
        ("measured", "inline_s", "handed_over"), [(True, None, 0), (True, 0.0, 1), (False, None, 1)]
    )
    def test_short_runs_whose_cost_is_known_stay_on_the_loop(self, run, pipeline, measured, inline_s, handed_over):
        async def main(world):
            engine = engine_in(world, inline_s=inline_s)
            served = ServedStudent("s", 1, Student(world, pipeline), COSTS if measured else ())
            (result,) = await engine.submit(served, [text(3, 5)], policy=EARLY)
            assert (result.outcome.exit_index, world.handed_over) == (1, handed_over)

        run(main)

    def test_a_batch_moves_to_a_slot_when_its_next_stage_is_long(self, run, pipeline):
        async def main(world):
            engine = engine_in(world)
            costs = (StageCost(1e-5, 1e-6), StageCost(5e-3, 1e-6))
            served = ServedStudent("s", 1, Student(world, pipeline, costs=costs), costs)
            results = await engine.submit(served, [text(2, 5), text(3, 5)], policy=EARLY)
            assert [result.outcome.exit_index for result in results] == [0, 1]
            assert world.handed_over == 1

        run(main)

    def test_newcomers_are_admitted_between_two_stages(self, run, pipeline):
        async def main(world):
            engine = engine_in(world, inline_s=1e-3)
            costs = (StageCost(9e-4, 1e-7), StageCost(9e-4, 1e-7))
            served = ServedStudent("s", 1, Student(world, pipeline, costs=costs), costs)
            first = asyncio.ensure_future(engine.submit(served, [text(3, 5)], policy=EARLY))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert len(served.student.runs) == 1
            assert repr(engine) == "<Engine requests=1 queued=0 in_flight=1 busy_slots=1>"
            await first

        run(main)

    def test_one_that_kills_the_thread_fails_its_batch_only(self, run, pipeline):
        async def main(world):
            engine = engine_in(world)
            served = ServedStudent("s", 1, Student(world, pipeline, killers=frozenset({3})), COSTS)
            (failed,) = await engine.submit(served, [text(3, 5)], policy=EARLY)
            assert isinstance(failed.outcome, RunFailed)
            (well,) = await engine.submit(served, [text(5, 5)], policy=EARLY)
            assert well.outcome.exit_index == 1

        run(main)


class TestWindow:
    def test_a_free_slot_waits_for_company(self, run, pipeline):
        async def main(world):
            engine = engine_in(world, window_s=0.005)
            served = ServedStudent("s", 1, Student(world, pipeline), COSTS)
            first = asyncio.ensure_future(engine.submit(served, [text(2, 5)], policy=EARLY))
            await asyncio.sleep(0.003)
            second = asyncio.ensure_future(engine.submit(served, [text(4, 5)], policy=EARLY))
            await asyncio.gather(first, second)
            assert [(items, moment) for _, items, _, moment in served.student.runs] == [((2, 4), pytest.approx(0.005))]

        run(main)


class TestLate:
    def test_what_cannot_end_in_time_is_shed_at_once(self, run, pipeline, observer):
        async def main(world):
            engine = engine_in(world, observer)
            runner = Student(world, pipeline)
            served = ServedStudent("s", 1, runner, COSTS)
            backlog = asyncio.ensure_future(engine.submit(served, [text(3, 20)] * 2000, policy=NEVER))
            await asyncio.sleep(0)
            full_s = 2000 * 20 * 8e-6
            for ask in (self.check, self.submit):
                with pytest.raises(Overloaded, match="after the deadline") as shed:
                    await ask(engine, served, world.time() + 2 * full_s, 2000)
                assert 0.5 * full_s < shed.value.retry_after_s < 2 * full_s
            assert observer.named("dropped") == [("late", 2000), ("late", 2000)]
            # one that is more urgent than the backlog does not wait for it
            results = await engine.submit(served, [text(5, 5)], policy=EARLY, deadline=world.time() + 0.1)
            assert results[0].outcome.exit_index == 1
            await backlog

        run(main)

    async def check(self, engine, served, deadline, items):
        engine.check(served, items, deadline=deadline)

    async def submit(self, engine, served, deadline, items):
        await engine.submit(served, [text(3, 20)] * items, policy=NEVER, deadline=deadline)

    @pytest.mark.parametrize("clients", [20])
    def test_under_twice_the_load_what_is_admitted_ends_in_time(self, run, pipeline, clients):
        async def main(world):
            engine = engine_in(world)
            served = ServedStudent("s", 1, Student(world, pipeline), COSTS)
            item_s = 20 * 8e-6
            kept, shed, late = 0, 0, 0

            async def client() -> None:
                nonlocal kept, shed, late
                try:
                    (result,) = await engine.submit(served, [text(3, 20)], policy=NEVER, deadline=world.time() + 0.05)
                except Overloaded:
                    shed += 1
                else:
                    kept += isinstance(result.outcome, Outcome)
                    late += isinstance(result.outcome, DeadlineExceeded)

            asking = []
            for _ in range(4000):
                asking.append(asyncio.ensure_future(client()))
                await asyncio.sleep(item_s / 2)
            await asyncio.gather(*asking)
            assert kept + shed + late == 4000
            assert late < 0.02 * kept
            assert kept > 0.4 * 4000

        run(main)


class TestSick:
    def test_a_student_whose_every_input_fails_is_told_until_one_succeeds(self, run, pipeline):
        async def main(world):
            engine = engine_in(world)
            runner = Student(world, pipeline, poison=frozenset(range(100)))
            served = ServedStudent("s", 1, runner, COSTS)
            await engine.submit(served, [text(n, 5) for n in range(2, 8)], policy=EARLY)
            assert engine.sick == frozenset()
            await engine.submit(served, [text(n, 5) for n in range(8, 14)], policy=EARLY)
            assert engine.sick == {served}
            runner.poison = frozenset()
            await engine.submit(served, [text(2, 5)], policy=EARLY)
            assert engine.sick == frozenset()

        run(main)

    def test_a_student_that_nobody_serves_any_more_is_forgotten(self, run, pipeline):
        async def main(world):
            engine = engine_in(world)
            await engine.submit(ServedStudent("s", 1, Student(world, pipeline), COSTS), [text(2, 5)], policy=EARLY)
            for _ in range(10):
                await asyncio.sleep(0)
            assert len(engine._admission.lanes) == 0

        run(main)


def test_how_long_the_most_silent_slot_has_been_so(run, pipeline):
    async def main(world):
        engine = engine_in(world, inline_s=0.0)
        served = ServedStudent("s", 1, Student(world, pipeline, slowness=1000.0), COSTS)
        asking = asyncio.ensure_future(engine.submit(served, [text(3, 5)], policy=EARLY))
        assert engine.silence_s == 0
        await asyncio.sleep(0.05)
        assert engine.silence_s == pytest.approx(0.05)
        await asking
        assert not math.isinf(engine.silence_s)

    run(main)
