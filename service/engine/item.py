"""What the engine holds: requests, their items, and what becomes of them."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import numpy.typing as npt

from service.errors import ServiceError
from service.runtime.cost import StageCost
from service.runtime.heads import ExitPolicy
from service.runtime.joined import Unit
from service.runtime.pipeline import Pass
from service.runtime.plan import Pipeline
from service.runtime.student import Outcome

if TYPE_CHECKING:
    from service.engine.lane import StudentLane
    from service.engine.queues import StageQueue


class Runner(Protocol):
    """What the engine needs of a student; `runtime.student.Student` is one."""

    @property
    def pipeline(self) -> Pipeline:
        """Its stages and exits."""
        ...

    def begin(self, feeds: Mapping[str, npt.NDArray[Any]], policies: ExitPolicy | Sequence[ExitPolicy]) -> Pass:
        """A pass of a batch as `pad` or `joined_feeds` gives it; its `step` may run in any one thread.

        Raises: ServiceError.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class ServedStudent:
    """A student version in service. Two loads of one version are two of these: their items are never batched.

    Attributes:
        name, version: which.
        student: runs its stages.
        costs: what a run of each stage costs, as measured at load; empty: the engine guesses, and learns as it runs.
        full_depth: runs all stages as one, for batches of which nobody may leave on the way; None: nothing does.
        version_label: the version, in metrics.
    """

    name: str
    version: int
    student: Runner
    costs: tuple[StageCost, ...] = ()
    full_depth: Runner | None = None
    version_label: str = field(init=False)

    def __post_init__(self) -> None:
        # subtle: the class is frozen
        object.__setattr__(self, "version_label", str(self.version))


class ItemResult(NamedTuple):
    """How an item ended.

    Attributes:
        outcome: its outcome, or the error that only it met.
        queue_s: seconds from admission to the start of its first run (or to its end, if it never ran).
        compute_s: seconds from the start of its first run to its answer.
    """

    outcome: Outcome | ServiceError
    queue_s: float
    compute_s: float


# subtle: what calling the class does, without a frame for each item: every text answered is one
item_result: Callable[[tuple[Outcome | ServiceError, float, float]], ItemResult] = partial(tuple.__new__, ItemResult)


@dataclass(slots=True, eq=False)
class Request:
    """One `submit` call. Owner: event loop."""

    student: ServedStudent
    lane: "StudentLane"
    policy: ExitPolicy
    deadline: float
    admitted: float
    future: "asyncio.Future[list[ItemResult]]"
    items: "list[Item]" = field(default_factory=list)
    results: list[ItemResult | None] = field(default_factory=list)
    pending: int = 0
    timer: asyncio.TimerHandle | None = None

    def fill(self, encoded: Sequence[Unit], *, moment: float, order: int, pace_s: float) -> None:
        """Make its items, the first as urgent as the moment, the others following at the pace.

        Args:
            encoded: its texts, or pairs of texts that were read apart.
            moment: in seconds.
            order: the first one's place among all items ever admitted.
            pace_s: seconds.
        """
        deadline, now, first = self.deadline, self.admitted, self.lane.lines[0]
        self.items = [
            Item(self, i, one, one.kept, one.kept, moment + i * pace_s, order + i, deadline, now, first)
            for i, one in enumerate(encoded)
        ]
        self.results, self.pending = [None] * len(encoded), len(encoded)


@dataclass(slots=True, eq=False)
class Item:
    """One text of a request; by itself it is what waits for the first stage. Owner: event loop.

    It waits, runs or has ended; if it survives a stage it may wait again, for the next.

    Attributes:
        tokens: its length...
        real_tokens: ...twice, as a group has two.
        moment: how urgent it is, in seconds: the smaller, the sooner...
        order: ...and of equals the one that was admitted first.
        deadline: a moment on the event loop's clock; infinite where none was asked for.
        since: the moment it was admitted.
        queue: where it waits, or did last.
        group: the survivors it waits with, beyond the first stage.
        started: the moment of its first run, if it had one.
    """

    items: ClassVar[int] = 1

    request: Request
    index: int
    encoded: Unit
    tokens: int
    real_tokens: int
    moment: float
    order: int
    deadline: float
    since: float
    queue: "StageQueue"
    group: "Group | None" = None
    waits: bool = True
    ended: bool = False
    started: float | None = None

    @property
    def members(self) -> "Sequence[Item]":
        """Itself."""
        return (self,)


@dataclass(slots=True, eq=False)
class Group:
    """Survivors of one batch that wait for their next stage together. Owner: event loop.

    Attributes:
        going: their pass; its rows are the places in `members`.
        members: the items, those that have ended meanwhile included.
        moment, order: the most urgent one's.
        deadline: the last one's.
        since: the moment from which they wait.
        items, real_tokens: of those that have not ended: how many, and their lengths together.
        taken: whether they run again.
    """

    going: Pass
    members: Sequence[Item]
    moment: float
    order: int
    deadline: float
    since: float
    items: int
    real_tokens: int
    taken: bool = False

    @property
    def tokens(self) -> int:
        """The longest one's length."""
        return self.going.longest

    @property
    def ended(self) -> bool:
        """Whether all have ended."""
        return not self.items

    @property
    def waits(self) -> bool:
        """Whether any waits."""
        return self.items > 0 and not self.taken
