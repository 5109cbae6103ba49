"""What the engine holds: requests, their items, and what becomes of them."""

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

import numpy.typing as npt

from service.engine.policy import QueueKey
from service.errors import ServiceError
from service.runtime.encode import Encoded
from service.runtime.heads import ExitPolicy
from service.runtime.pipeline import Pass, Pipeline
from service.runtime.student import Outcome


class Runner(Protocol):
    """What the engine needs of a student; `runtime.student.Student` is one."""

    @property
    def pad_id(self) -> int:
        """The id that fills short rows."""
        ...

    @property
    def pipeline(self) -> Pipeline:
        """Its stages and exits."""
        ...

    def begin(self, feeds: Mapping[str, npt.NDArray[Any]], policies: ExitPolicy | Sequence[ExitPolicy]) -> Pass:
        """A pass of a padded batch; its `step` may run in any one thread. Raises: ServiceError."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class ServedStudent:
    """A student version in service. Two loads of one version are two of these: their items are never batched."""

    name: str
    version: int
    student: Runner


@dataclass(frozen=True, slots=True)
class ItemResult:
    """How an item ended.

    Attributes:
        outcome: its outcome, or the error that only it met.
        queue_s: seconds from admission to the start of its batch (or to its end, if it never ran).
        compute_s: seconds from the start of its batch to its answer.
    """

    outcome: Outcome | ServiceError
    queue_s: float
    compute_s: float


class State(Enum):
    """An item's phase; it only moves forward."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(slots=True, eq=False)
class Request:
    """One `submit` call. Owner: event loop."""

    student: ServedStudent
    policy: ExitPolicy
    deadline: float
    admitted: float
    future: "asyncio.Future[list[ItemResult]]"
    items: "list[Item]" = field(default_factory=list)
    results: list[ItemResult | None] = field(default_factory=list)
    pending: int = 0
    timer: asyncio.TimerHandle | None = None


@dataclass(slots=True, eq=False)
class Item:
    """One text of a request. Owner: event loop.

    Attributes:
        urgency: (moment in seconds, order of admission): the smaller, the sooner.
    """

    request: Request
    index: int
    encoded: Encoded
    key: QueueKey
    urgency: tuple[float, int]
    state: State = State.WAITING
    started: float = math.nan

    @property
    def tokens(self) -> int:
        """Its length."""
        return self.encoded.kept

    @property
    def deadline(self) -> float:
        """A moment on the event loop's clock; infinite where none was asked for."""
        return self.request.deadline

    @property
    def ended(self) -> bool:
        """Whether it has its result."""
        return self.state is State.ENDED
