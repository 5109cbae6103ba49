"""A scripted student that holds each run until the test lets it go, an observer that writes down, a virtual clock."""

import asyncio
import math
import queue
import selectors
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from service.bundle.manifest import Manifest
from service.engine.engine import Engine
from service.engine.item import ServedStudent
from service.engine.policy import EngineLimits
from service.engine.slot import Post, Report
from service.runtime.encode import Encoded
from service.runtime.heads import ExitPolicy
from service.runtime.pipeline import Pass
from service.runtime.plan import Pipeline, pipeline_of, unsplit_pipeline_of

PATIENCE_S = 20.0  # a test that waits so long has failed


def _tensor(*dims: str | int) -> dict[str, Any]:
    return {"dtype": "float32", "dims": dims}


MANIFEST = Manifest.model_validate(
    {
        "name": "scripted",
        "task": "classify",
        "labels": ["no", "yes"],
        "max_tokens": 512,
        "stages": [
            {
                "id": "00",
                "inputs": {"ids": "input_ids", "mask": "attention_mask"},
                "outputs": {"hidden": _tensor("B", "T", 2), "logits": _tensor("B", 2)},
            },
            {
                "id": "01",
                "inputs": {"ids": "input_ids", "hidden": "00.hidden"},
                "outputs": {"logits": _tensor("B", 2)},
            },
        ],
        "exits": [
            {"id": "early", "stage": "00", "output": "logits", "depth": 0.5},
            {"id": "full", "stage": "01", "output": "logits", "depth": 1.0},
        ],
        "precisions": {"fp32": {"files": {"00": "0", "01": "1"}, "golden_atol": 1e-4}},
        "default_precision": "fp32",
        "files": {name: {"sha256": "0" * 64, "bytes": 1} for name in ("0", "1", "tokenizer.json", "golden.json")},
        "provenance": {"made_by": "test", "created": ""},
    }
)


class ScriptedRunner:
    """A two-stage student without graphs. An item is known by its first id: even ones leave at the first exit.

    While `hold()` is on, every stage run stops until `let_go(n)` allows n of them.
    """

    pad_id = 0

    def __init__(self) -> None:
        self.pipeline = pipeline_of(MANIFEST)
        self.runs: list[tuple[int, tuple[int, ...]]] = []
        self.poison: dict[int, BaseException] = {}
        self.not_a_number: set[int] = set()
        self.begin_error: Exception | None = None
        self._begun: queue.Queue[tuple[int, tuple[int, ...]]] = queue.Queue()
        self._allowed = threading.Semaphore(0)
        self._held = False

    def hold(self) -> None:
        self._held = True

    def let_go(self, runs: int = 1_000) -> None:
        self._allowed.release(runs)

    async def begun(self) -> tuple[int, tuple[int, ...]]:
        """The next stage run that has begun: (stage, items)."""
        return await asyncio.to_thread(self._begun.get, timeout=PATIENCE_S)

    def begin(self, feeds: Mapping[str, np.ndarray], policies: ExitPolicy | Sequence[ExitPolicy]) -> Pass:
        if self.begin_error is not None:
            raise self.begin_error
        return Pass(self.pipeline, self.run_stage, feeds, policies)

    def run_stage(self, stage: int, feeds: Mapping[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        ids = feeds["ids"]
        items = tuple(ids[:, 0].tolist())
        self.runs.append((stage, items))
        self._begun.put((stage, items))
        if self._held:
            assert self._allowed.acquire(timeout=PATIENCE_S)
        for item in items:
            if item in self.poison:
                raise self.poison[item]
        even = ids[:, 0] % 2 == 0
        sure = np.where(even, 100.0, 0.0) if stage == 0 else ids[:, 0]
        logits = np.stack([sure, np.zeros(len(ids))], axis=1).astype(np.float32)
        logits[[item in self.not_a_number for item in items]] = np.nan
        return {"hidden": np.ones((*ids.shape, 2), np.float32), "logits": logits}


class WholeRunner(ScriptedRunner):
    """The same student with its stages run as one."""

    def __init__(self) -> None:
        super().__init__()
        self.pipeline = unsplit_pipeline_of(MANIFEST)

    def run_stage(self, stage: int, feeds: Mapping[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        return super().run_stage(stage, {"ids": feeds["input_ids"]}, outputs)


class RecordingObserver:
    """Every call, as (name, ...values)."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.raise_on: str = ""

    def _write(self, *event: Any) -> None:
        if event[0] == self.raise_on:
            raise ArithmeticError("the observer broke")
        self.events.append(event)

    def named(self, name: str) -> list[tuple[Any, ...]]:
        return [event[1:] for event in self.events if event[0] == name]

    def queue_items(self, student: ServedStudent, stage: str, items: int) -> None:
        self._write("queue_items", stage, items)

    def queued(self, student: ServedStudent, seconds: Sequence[float]) -> None:
        self._write("queued", tuple(seconds))

    def batch(
        self, student: ServedStudent, stage: str, *, items: int, padded_tokens: int, real_tokens: int, seconds: float
    ) -> None:
        self._write("batch", student.name, stage, items, padded_tokens, real_tokens)

    def exit(self, student: ServedStudent, exit_id: str, depth: float, items: int) -> None:
        self._write("exit", exit_id, depth, items)

    def failed(self, student: ServedStudent) -> None:
        self._write("failed")

    def dropped(self, student: ServedStudent, reason: str, items: int) -> None:
        self._write("dropped", reason, items)


def texts(*items: int, tokens: int = 4) -> list[Encoded]:
    """Encoded items of that many tokens, each known by its number."""
    made = []
    for item in items:
        ids = np.full(tokens, item, dtype=np.int64)
        made.append(Encoded(ids, np.zeros_like(ids), tokens=tokens, kept=tokens))
    return made


@pytest.fixture(scope="session")
def pipeline() -> Pipeline:
    """The scripted student's: two stages, an exit at each."""
    return pipeline_of(MANIFEST)


@dataclass(eq=False)
class Waiter:
    """What waits, as the policy sees it."""

    tokens: int = 10
    items: int = 1
    moment: float = 0.0
    order: int = 0
    since: float = 0.0
    deadline: float = math.inf
    ended: bool = False
    real_tokens: int = field(init=False)

    def __post_init__(self):
        self.real_tokens = self.tokens * self.items


@pytest.fixture(scope="session")
def waiter_class() -> type[Waiter]:
    return Waiter


@pytest.fixture
def make_waiter() -> type[Waiter]:
    return Waiter


@pytest.fixture
def line() -> Callable[..., list[Waiter]]:
    """`line(*tokens)`: waiters of those lengths, the first most urgent."""
    return lambda *tokens: [Waiter(n, moment=i, order=i) for i, n in enumerate(tokens)]


@pytest.fixture
def encoded() -> Callable[..., list[Encoded]]:
    return texts


@pytest.fixture
def early() -> ExitPolicy:
    """Sure items leave at the first exit."""
    return ExitPolicy(thresholds=(0.9,), risk_requested=0.01, risk_applied=0.01)


@pytest.fixture
def full_depth() -> ExitPolicy:
    return ExitPolicy(thresholds=(None,))


@pytest.fixture
def runner() -> ScriptedRunner:
    return ScriptedRunner()


@pytest.fixture
def whole() -> WholeRunner:
    return WholeRunner()


@pytest.fixture
def make_runner() -> Callable[[], ScriptedRunner]:
    return ScriptedRunner


@pytest.fixture
def observer() -> RecordingObserver:
    return RecordingObserver()


@pytest.fixture
def served(runner: ScriptedRunner) -> ServedStudent:
    return ServedStudent("scripted", 1, runner)


@pytest.fixture
async def make_engine(observer: RecordingObserver) -> AsyncIterator[Callable[..., Engine]]:
    """`make_engine(**fields of EngineLimits)`; every engine made is closed afterwards."""
    made: list[Engine] = []

    def make(
        *,
        max_queue_items: int = 1000,
        token_budget: int = 64,
        slots: int = 1,
        clock: Callable[[], float] = time.monotonic,
        **more: float,
    ) -> Engine:
        limits = EngineLimits(max_queue_items=max_queue_items, token_budget=token_budget, slots=slots, **more)
        made.append(Engine(limits, observer=observer, clock=clock))
        return made[-1]

    yield make
    for engine in made:
        await engine.close()


class JumpingSelector(selectors.DefaultSelector):
    """Instead of waiting, moves the clock on."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        events = super().select(0)
        if not events and timeout != 0:
            assert timeout is not None, "nothing will ever happen again"
            self.now += timeout
        return events


class World(asyncio.SelectorEventLoop):
    """An event loop whose time is virtual, and the slots on it."""

    def __init__(self) -> None:
        self.selector = JumpingSelector()
        super().__init__(self.selector)
        self.slot_now: float | None = None
        self.handed_over = 0

    def time(self) -> float:
        return self.selector.now

    def clock(self) -> float:
        return self.time() if self.slot_now is None else self.slot_now

    def spend(self, seconds: float) -> None:
        if self.slot_now is None:
            self.selector.now += seconds
        else:
            self.slot_now += seconds

    def start(self, reports: Iterator[Report], post: Post) -> None:
        self.handed_over += 1
        self.slot_now = self.time()
        try:
            for report in reports:
                self.call_at(self.slot_now, post, report, None)
        except BaseException as error:  # noqa: BLE001 - as in a slot's thread
            self.call_at(self.slot_now, post, None, error)
        self.slot_now = None

    def close(self) -> None:
        """Both the loop's and the slots': the loop's is called last."""
        if not self.is_running():
            super().close()


@pytest.fixture(scope="session")
def run() -> Callable[[Callable[[World], Coroutine[Any, Any, None]]], None]:
    """`run(main)`: run a coroutine function in a world of its own."""

    def run_it(main: Callable[[World], Coroutine[Any, Any, None]]) -> None:
        world = World()
        try:
            world.run_until_complete(main(world))
        finally:
            world.close()

    return run_it
