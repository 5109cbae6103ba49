"""The items that wait, each queue sorted by urgency."""

from bisect import insort
from collections.abc import Mapping, Sequence
from operator import attrgetter

from service.engine.item import Item, State
from service.engine.policy import QueueKey

SORT_COST = 16  # an insertion costs about what sorting so many places does
_URGENCY = attrgetter("urgency")


class Queues:
    """All queues of the engine.

    Owner: event loop.
    Invariant: an item that ended while it waited is counted out at once; its place goes when it is looked at, or when
    such places are as many as the items that wait.
    """

    def __init__(self) -> None:
        self._queues: dict[QueueKey, list[Item]] = {}
        self._waiting: dict[QueueKey, int] = {}
        self._places = 0
        self.items = 0

    @property
    def waiting(self) -> Mapping[QueueKey, Sequence[Item]]:
        """The queues as the policy reads them."""
        return self._queues

    def count(self, key: QueueKey) -> int:
        """How many items wait there."""
        return self._waiting.get(key, 0)

    def add(self, key: QueueKey, items: Sequence[Item]) -> None:
        """Put waiting items of one request in their places."""
        queue = self._queues.setdefault(key, [])
        if len(items) * SORT_COST < len(queue):
            for item in items:
                insort(queue, item, key=_URGENCY)
        else:
            # subtle: the queue and the items are two sorted runs, which this sort merges in linear time
            queue.extend(items)
            queue.sort(key=_URGENCY)
        self._waiting[key] = self.count(key) + len(items)
        self.items += len(items)
        self._places += len(items)

    def left(self, key: QueueKey) -> None:
        """Count one item out that stopped waiting."""
        self._waiting[key] -= 1
        self.items -= 1

    def clear(self, looked: Mapping[QueueKey, int]) -> None:
        """Give up the places of items that no longer wait, among so many from the front of each queue."""
        for key, front in looked.items():
            queue = self._queues[key]
            before = len(queue)
            queue[:front] = [item for item in queue[:front] if item.state is State.WAITING]
            self._places -= before - len(queue)
            if not queue:
                del self._queues[key], self._waiting[key]

    def sweep(self) -> None:
        """Give up all places of items that no longer wait, once they are as many as those that do."""
        if self._places >= 2 * self.items:
            self.clear({key: len(queue) for key, queue in self._queues.items()})
