"""The engine under load on a virtual clock and one core: arrivals by chance, costs as measured, no noise.

What a request costs around the engine is spent on the same clock. `pytest -s` shows the figures.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from service.bundle.manifest import Manifest
from service.engine.engine import Engine
from service.engine.item import ServedStudent
from service.engine.limits import EngineLimits
from service.errors import DeadlineExceeded, Overloaded, ServiceError
from service.runtime.cost import StageCost
from service.runtime.encode import Encoded
from service.runtime.heads import ExitPolicy
from service.runtime.pipeline import Pass
from service.runtime.plan import pipeline_of

US = 1e-6
# measured on one core of an AMD EPYC (Zen 4), ONNX Runtime int8: the stages of two shipped students
LARGE = tuple(
    StageCost(base * US, token * US, 8e-9) for base, token in ((39, 0.35), (203, 4.3), (262, 4.3), (231, 4.2))
)
SMALL = tuple(StageCost(base * US, token * US, 8e-9) for base, token in ((40, 0.35), (140, 2.0), (300, 3.5)))
# the shares of a stage's items that go on
STAY = {"large": (0.6, 0.45, 0.6), "small": (0.32, 0.23)}
# around a run, and of a request: reading and checking it, answering it, refusing it
AROUND_S, READ_S, WRITE_S, REFUSE_S = 40 * US, 70 * US, 45 * US, 35 * US
WARM_S = 0.5


def _tensor(*dims: str | int) -> dict[str, Any]:
    return {"dtype": "float32", "dims": dims}


def staged(stages: int) -> Manifest:
    """A student of so many stages, an exit at each."""
    names = [f"{place:02}" for place in range(stages)]
    files = {name: {"sha256": "0" * 64, "bytes": 1} for name in (*names, "tokenizer.json", "golden.json")}
    reads = [{"ids": "input_ids"}, *({"hidden": f"{name}.hidden"} for name in names[:-1])]
    logits, hidden = {"logits": _tensor("B", 2)}, {"hidden": _tensor("B", "T", 1)}
    return Manifest.model_validate(
        {
            "name": "staged",
            "task": "classify",
            "labels": ["no", "yes"],
            "max_tokens": 128,
            "stages": [
                {"id": name, "inputs": read, "outputs": logits if name == names[-1] else logits | hidden}
                for name, read in zip(names, reads, strict=True)
            ],
            "exits": [
                {"id": name, "stage": name, "output": "logits", "depth": (place + 1) / stages}
                for place, name in enumerate(names)
            ],
            "precisions": {"fp32": {"files": {name: name for name in names}, "golden_atol": 1e-4}},
            "default_precision": "fp32",
            "files": files,
            "provenance": {"made_by": "test", "created": ""},
        }
    )


class Timed:
    """A student whose runs cost what they cost. An item's first id is the number of stages that it takes."""

    pad_id = 0

    def __init__(self, world: Any, costs: Sequence[StageCost]) -> None:
        self.world, self.costs = world, costs
        self.pipeline = pipeline_of(staged(len(costs)))

    def begin(self, feeds: Mapping[str, np.ndarray], policies: Any) -> Pass:
        return Pass(self.pipeline, self.run_stage, feeds, policies, clock=self.world.clock)

    def run_stage(self, stage: int, feeds: Mapping[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        (read,) = feeds.values()
        takes = read.reshape(*read.shape[:2], -1)[:, 0, 0]
        self.world.spend(self.costs[stage].seconds(*read.shape[:2]) + AROUND_S)
        hidden = np.zeros((*read.shape[:2], 1), np.float32)
        hidden[:, 0, 0] = takes
        logits = np.stack([np.where(takes <= stage + 1, 100.0, 0.0), np.zeros(len(takes))], axis=1)
        return {"logits": logits.astype(np.float32), "hidden": hidden}


@dataclass
class Stream:
    """Single texts for one student, so many a second."""

    student: str
    rate: float
    deadline_s: float | None = None
    answered: list[float] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)

    @property
    def p99_s(self) -> float:
        return float(np.percentile(self.answered, 99))


def some_text(chance: np.random.Generator, student: str) -> Encoded:
    takes = 1
    while takes <= len(STAY[student]) and chance.random() < STAY[student][takes - 1]:
        takes += 1
    ids = np.zeros(int(np.clip(chance.lognormal(2.7, 0.5), 3, 64)), np.int64)
    ids[0] = takes
    return Encoded(ids, np.zeros_like(ids), len(ids), len(ids))


class Server:
    """The engine, and an event loop that reads all that has come before it does anything else."""

    def __init__(self, world: Any, **limits: Any) -> None:
        self.world = world
        # on one core it makes no difference to the clock which thread has it
        base = {"max_queue_items": 4096, "token_budget": 4096, "slots": 1, "inline_s": 1.0}
        self.engine = Engine(EngineLimits(**base | limits), clock=world.clock, slots=world)
        self.served = {
            name: ServedStudent(name, 1, Timed(world, costs), costs)
            for name, costs in (("large", LARGE), ("small", SMALL))
        }
        self.policies = {name: ExitPolicy((0.9,) * len(stay)) for name, stay in STAY.items()}
        self.chance = np.random.default_rng(0)
        self.under_way = 0

    async def ask(self, stream: Stream, came: float) -> None:
        """One request of a stream, which came at that moment."""
        deadline = None if stream.deadline_s is None else self.world.time() + stream.deadline_s
        text, student = some_text(self.chance, stream.student), self.served[stream.student]
        self.under_way += 1
        try:
            self.engine.check(student, 1, deadline=deadline)
            self.world.spend(READ_S)
            (result,) = await self.engine.submit(
                student, [text], policy=self.policies[stream.student], deadline=deadline
            )
            self.world.spend(WRITE_S)
            end = type(result.outcome).__name__ if isinstance(result.outcome, ServiceError) else "answered"
        except (Overloaded, DeadlineExceeded) as error:
            self.world.spend(REFUSE_S)
            end = type(error).__name__
        self.under_way -= 1
        if came > WARM_S:
            stream.ends[end] += 1
            if end == "answered":
                stream.answered.append(self.world.time() - came)

    async def play(self, streams: Sequence[Stream], *, seconds: float) -> None:
        """Poisson arrivals; what comes while the loop is busy is read together afterwards."""
        moments = []
        for stream in streams:
            gaps = self.chance.exponential(1 / stream.rate, int(stream.rate * (seconds + WARM_S)))
            moments += [(float(moment), stream) for moment in np.cumsum(gaps)]
        moments.sort(key=lambda each: each[0])
        tasks = []
        for moment, stream in moments:
            if moment > self.world.time():
                await asyncio.sleep(moment - self.world.time())
            tasks.append(asyncio.ensure_future(self.ask(stream, moment)))
        await asyncio.gather(*tasks)
        assert await self.engine.drain(1000)


@pytest.fixture
def load(run: Any) -> Any:
    """`load(Stream(...), ..., seconds=, **limits)`: plays the streams."""

    def play(*streams: Stream, seconds: float = 2.0, **limits: Any) -> None:
        async def all_of_it(world: Any) -> None:
            await Server(world, **limits).play(streams, seconds=seconds)

        run(all_of_it)
        for stream in streams:
            p50, p99 = np.percentile(stream.answered, [50, 99]) * 1e3
            told = f"{stream.student} at {stream.rate:.0f}/s: p50 {p50:.2f}, p99 {p99:.2f} ms; {dict(stream.ends)}"
            print(f"\n  {told}")  # noqa: T201 - for `-s`

    return play


@pytest.fixture(scope="session")
def peaks(run: Any) -> dict[str, float]:
    """Requests a second of 64 clients that ask again as soon as they are answered."""
    found = {}
    for student in STAY:
        stream = Stream(student, rate=0.0)

        async def closed(world: Any, stream: Stream = stream) -> None:
            server = Server(world)

            async def client() -> None:
                while world.time() < 1.0 + WARM_S:
                    await server.ask(stream, world.time())

            await asyncio.gather(*(client() for _ in range(64)))

        run(closed)
        found[student] = len(stream.answered) / 1.0
    return found


@pytest.mark.parametrize("student", STAY)
class TestOverload:
    """At 150% of the peak, with deadlines."""

    def test_what_is_admitted_ends_in_time_and_as_much_as_at_the_peak(self, load, peaks, student):
        stream = Stream(student, 1.5 * peaks[student], deadline_s=0.1)
        load(stream)
        sent = stream.ends.total()
        assert stream.ends["answered"] >= 0.85 * sent / 1.5
        assert stream.ends["DeadlineExceeded"] <= 0.005 * sent
        assert stream.ends["Overloaded"] > 0.2 * sent

    def test_nothing_is_refused_below_the_peak(self, load, peaks, student):
        stream = Stream(student, 0.7 * peaks[student], deadline_s=0.1)
        load(stream)
        assert set(stream.ends) == {"answered"}
        assert stream.p99_s < 0.02


@pytest.mark.parametrize("deadline_s", [None, 0.2])
def test_a_flood_on_one_student_leaves_the_other_its_share(load, peaks, deadline_s):
    alone, beside = (Stream("small", 0.25 * peaks["small"]) for _ in range(2))
    flood = Stream("large", peaks["large"], deadline_s=deadline_s)
    load(alone)
    load(beside, flood)
    assert beside.ends["answered"] == beside.ends.total()
    assert beside.p99_s <= 4.5 * alone.p99_s
    assert flood.ends["answered"] > 0.4 * flood.ends.total()


@pytest.mark.parametrize("student", STAY)
def test_batching_survivors_anew_costs_nothing(run, student):
    done = {}
    for rebatch in (True, False):
        stream = Stream(student, rate=0.0)

        async def closed(world: Any, stream: Stream = stream, rebatch: bool = rebatch) -> None:
            server = Server(world, rebatch=rebatch)

            async def client() -> None:
                while world.time() < 1.0:
                    await asyncio.gather(*(server.ask(stream, world.time()) for _ in range(16)))

            await asyncio.gather(*(client() for _ in range(16)))

        run(closed)
        done[rebatch] = len(stream.answered)
    print(f"\n  {student}: re-batching against running on {done[True] / done[False]:.3f}")  # noqa: T201 - for `-s`
    assert done[True] >= 0.98 * done[False]
