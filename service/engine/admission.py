"""Whether a request may come in: bounds, its deadline, and when its items would be done."""

import math
import weakref
from typing import NamedTuple

from service.engine.forecast import Stretch
from service.engine.item import ServedStudent
from service.engine.lane import StudentLane
from service.engine.limits import EngineLimits
from service.engine.observer import EngineObserver
from service.errors import DeadlineExceeded, Overloaded, TooLarge

RETRY_BOUNDS_S, RETRY_STEP_S = (0.05, 60.0), 0.05
# what is admitted should not end late: predictions mostly come true within so much...
SAFETY = 1.25
# ...and, as batches are filled by length, others overtake it: in tests/service/engine/test_load.py at 150% of the peak
# 5.6% and 7.9% of all requests (larger, smaller student) expire at 1.25 times the work ahead, 0.2% and 1.5% at twice,
# 0 and 0.35% at this
OVERTAKEN = 2.5
# a student counts among those that share the slots for so long after its last request
CROWD_S = 0.1


class Asked(NamedTuple):
    """A request at the door.

    Attributes:
        items, tokens: how many; the tokens may be an estimate.
        deadline: the moment after which its answer is useless; may be infinite.
        moment: how urgent its last item would be.
    """

    items: int
    tokens: float
    deadline: float
    moment: float


class Place:
    """Room in a student's queue for items that are still to be made of others. Owner: event loop.

    Invariant: it is counted until it is left.
    """

    def __init__(self, lane: StudentLane, items: int) -> None:
        self.lane = lane
        self._items = items
        lane.promised += items

    def __repr__(self) -> str:
        return f"Place(items={self._items})"

    def leave(self) -> None:
        """The items are there, or will not come; may be called again."""
        self.lane.promised -= self._items
        self._items = 0


class Admission:
    """The students known to the engine, and what may be added to their work. Owner: event loop."""

    def __init__(self, limits: EngineLimits, observer: EngineObserver) -> None:
        self._limits = limits
        self._observer = observer
        # subtle: lanes do not hold their students, so that one unloaded is freed
        self.lanes: weakref.WeakKeyDictionary[ServedStudent, StudentLane] = weakref.WeakKeyDictionary()
        self.stretch = Stretch(slots=limits.slots)
        self._crowd: dict[StudentLane, None] = {}

    def lane(self, student: ServedStudent) -> StudentLane:
        """What the engine keeps of a student."""
        lane = self.lanes.get(student)
        if lane is None:
            lane = StudentLane(student.costs, stages=len(student.student.pipeline.stages))
            self.lanes[student] = lane
        return lane

    def took(self, lane: StudentLane, *, now: float) -> None:
        """Items of a student were admitted."""
        lane.seen = now
        self._crowd[lane] = None

    def crowded(self, now: float) -> bool:
        """Whether more than one student has work, or had some lately."""
        if len(self._crowd) > 1:
            self._crowd = {lane: None for lane in self._crowd if lane.items or now < lane.seen + CROWD_S}
        return len(self._crowd) > 1

    def check(self, student: ServedStudent, asked: Asked, *, now: float, room: bool = True) -> None:
        """Refuse what cannot be answered.

        Args:
            student: who would answer.
            asked: the request.
            now: the moment.
            room: whether it needs room in the queue; not if it holds a `Place` for what its items become.
        Raises:
            TooLarge: more items than may ever wait.
            DeadlineExceeded: the deadline has passed.
            Overloaded: the queue is full, or the answer would come after the deadline.
        """
        lane, most = self.lane(student), self._limits.max_queue_items
        if room and asked.items > most:
            raise TooLarge(f"{asked.items} items, more than the {most} that may wait")
        self.check_deadline(student, asked, now=now)
        if room and lane.waiting + lane.promised + asked.items > most:
            self._observer.dropped(student, "overloaded", asked.items)
            raise self._overloaded("too many items are waiting")
        if asked.deadline != math.inf and now + self.finish_s(lane, asked) > asked.deadline:
            self._observer.dropped(student, "late", asked.items)
            raise self._overloaded("the answer would come after the deadline")

    def check_deadline(self, student: ServedStudent, asked: Asked, *, now: float) -> None:
        """Refuse what is late already, and nothing else. Raises: DeadlineExceeded."""
        if asked.deadline <= now:
            self._observer.dropped(student, "deadline", asked.items)
            raise DeadlineExceeded("the deadline passed before the request was admitted")

    def finish_s(self, lane: StudentLane, asked: Asked) -> float:
        """Seconds in which the last item of a request should be done, were it admitted now.

        The slots are shared evenly with every other student that has work, while it has any.
        """
        own_s, ahead_s = asked.tokens * lane.forecast.token_s, lane.ahead_s(asked.moment)
        shared_s = sum(min(other.backlog_s(), own_s + ahead_s) for other in self._crowd if other is not lane)
        idle = not lane.items and not any(other.items for other in self._crowd)
        # subtle: the stretch is learned from runs; were nothing run because of it, it would never be unlearned
        factor = min(self.stretch.factor, 1.0) if idle else self.stretch.factor
        return factor * (SAFETY * own_s + OVERTAKEN * (ahead_s + shared_s))

    def _overloaded(self, detail: str) -> Overloaded:
        """To be tried again when all that was admitted should be done."""
        low, high = RETRY_BOUNDS_S
        drain_s = self.stretch.factor * sum(lane.backlog_s() for lane in self._crowd)
        # in steps, so that answers recur
        told_s = math.ceil(drain_s / RETRY_STEP_S) * RETRY_STEP_S
        return Overloaded(detail, retry_after_s=min(max(told_s, low), high))
