"""Which items run next: a pure function from what waits to what to do.

The most urgent item of all queues leads a batch; items of nearest length from the same queue fill it, up to the token
budget. Urgency is a moment: the item's deadline, or its arrival plus a fixed patience. The items of one request become
urgent one after another, a fixed pace apart, as if they had come one by one: a request of thousands lets others pass.
Every moment is fixed at admission and later arrivals have later ones, so nobody starves.
"""

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """The engine's bounds.

    Attributes:
        max_queue_items: items that may wait; more are refused.
        token_budget: padded tokens of a batch; only a single item may exceed it.
        slots: batches that run at once.
        pace_s: seconds between the urgency of one item of a request and of its next.
        patience_s: an item without a deadline is as urgent as one whose deadline is so long after its arrival.
        window_items: how far down a queue a batch looks for items of its leader's length.
        padding_share: an item joins a batch only if no more than this share of it is then padding...
        padding_tokens: ...or no more than this many tokens.
    """

    max_queue_items: int
    token_budget: int
    slots: int
    pace_s: float = 0.01
    patience_s: float = 1.0
    window_items: int = 512
    padding_share: float = 0.3
    padding_tokens: int = 256


@dataclass(frozen=True, slots=True)
class QueueKey:
    """A queue: the items of one student (compared as the engine compares it) that wait for one stage."""

    student: Hashable
    stage: int


class Waiting(Protocol):
    """What the policy sees of an item."""

    @property
    def tokens(self) -> int:
        """Its length."""
        ...

    @property
    def urgency(self) -> tuple[float, int]:
        """(moment, order of admission): the smaller, the sooner."""
        ...

    @property
    def deadline(self) -> float:
        """The moment after which its answer is useless; may be infinite."""
        ...

    @property
    def ended(self) -> bool:
        """Whether it has been answered, failed or cancelled while it waited."""
        ...


W = TypeVar("W", bound=Waiting)


@dataclass(frozen=True, slots=True)
class Batch(Generic[W]):
    """Items of one queue to run together; the first one led."""

    key: QueueKey
    items: tuple[W, ...]


@dataclass(frozen=True, slots=True)
class Plan(Generic[W]):
    """What to do now.

    Attributes:
        batches: at most one for each idle slot.
        expired: items whose deadline has passed.
        looked: how many items from the front of each queue were looked at; all those above are among them.
    """

    batches: tuple[Batch[W], ...]
    expired: tuple[W, ...]
    looked: Mapping[QueueKey, int]


def urgencies(items: int, *, order: int, now: float, deadline: float, limits: EngineLimits) -> list[tuple[float, int]]:
    """The urgency of each item of a request admitted now.

    Args:
        items: how many.
        order: the first one's place among all items ever admitted.
        now, deadline: moments in seconds; the deadline may be infinite.
        limits: the pace and the patience.
    """
    first = now + limits.patience_s if math.isinf(deadline) else deadline
    return [(first + i * limits.pace_s, order + i) for i in range(items)]


def plan(waiting: Mapping[QueueKey, Sequence[W]], *, now: float, limits: EngineLimits, idle_slots: int) -> Plan[W]:
    """Decide what the idle slots run.

    Args:
        waiting: the queues, each sorted by urgency; items that have ended are passed over.
        now: the moment, on the deadlines' clock.
        limits: the bounds.
        idle_slots: how many batches can start.
    """
    lines = [_Line(key, items, now) for key, items in waiting.items()] if idle_slots else []
    batches: list[Batch[W]] = []
    while len(batches) < idle_slots and (ready := [line for line in lines if line.look(1)]):
        # the leader: most urgent, of equals the one at the deeper stage, then the one that came first
        line = min(ready, key=lambda line: (line.front[0].urgency[0], -line.key.stage, line.front[0].urgency[1]))
        line.look(limits.window_items)
        chosen = fill(line.front, limits=limits)
        batches.append(Batch(line.key, chosen))
        line.take(chosen)
    expired = tuple(item for line in lines for item in line.expired)
    return Plan(tuple(batches), expired, {line.key: line.looked for line in lines})


def fill(front: Sequence[W], *, limits: EngineLimits) -> tuple[W, ...]:
    """The batch that the first of `front` leads, filled with the items nearest to its length."""
    leader = front[0]
    chosen, longest, real = [leader], leader.tokens, leader.tokens
    # subtle: the sort is stable, so that of two items equally near the more urgent one is taken
    for item in sorted(front[1:], key=lambda item: abs(item.tokens - leader.tokens)):
        items = len(chosen) + 1
        if longest * items > limits.token_budget:
            break
        grown, total = max(longest, item.tokens), real + item.tokens
        padded = grown * items
        if padded <= limits.token_budget and _pays(padded, total, limits):
            chosen.append(item)
            longest, real = grown, total
    return tuple(chosen)


def _pays(padded: int, real: int, limits: EngineLimits) -> bool:
    return padded - real <= max(limits.padding_tokens, limits.padding_share * padded)


class _Line(Generic[W]):
    """One queue while a plan is made: the live items at its front, and how far it was looked at."""

    def __init__(self, key: QueueKey, items: Sequence[W], now: float) -> None:
        self.key = key
        self.front: list[W] = []
        self.expired: list[W] = []
        self.looked = 0
        self._rest: Iterator[W] = iter(items)
        self._now = now

    def look(self, items: int) -> bool:
        """Look until `front` holds so many items or none are left; whether it holds any."""
        while len(self.front) < items and (item := next(self._rest, None)) is not None:
            self.looked += 1
            if not item.ended:
                (self.expired if item.deadline <= self._now else self.front).append(item)
        return bool(self.front)

    def take(self, chosen: Sequence[W]) -> None:
        """Remove a batch from the front."""
        taken = {id(item) for item in chosen}
        self.front = [item for item in self.front if id(item) not in taken]
