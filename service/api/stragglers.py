"""What takes longer than it should, found with one timer for all instead of one for each."""

import asyncio
import time
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Stragglers(Generic[T]):
    """Calls back, once, for each thing that is still here a fixed time after it came.

    A timer costs more than most requests' parsing, and most things are gone long before; so there is one timer, for
    the oldest.

    Owner: event loop.
    Invariant: things stand in the order in which they came; while there are any, the timer runs.
    """

    def __init__(
        self, after_s: float, act: Callable[[T], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Nothing is here yet.

        Args:
            after_s: how long a thing may stay.
            act: called on the event loop with one that stayed longer; it is then no longer here.
            clock: seconds.
        """
        self._after_s = after_s
        self._act = act
        self._clock = clock
        self._since: dict[T, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._since)

    def __iter__(self) -> Iterator[T]:
        return iter(list(self._since))

    def add(self, thing: T) -> None:
        """It comes."""
        self._since[thing] = self._clock()
        if self._timer is None:
            self._arm(self._after_s)

    def discard(self, thing: T) -> None:
        """It goes, if it is still here."""
        self._since.pop(thing, None)

    def _arm(self, wait_s: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(wait_s, self._look)

    def _look(self) -> None:
        self._timer = None
        now = self._clock()
        for thing, since in list(self._since.items()):
            left_s = since + self._after_s - now
            if left_s > 0:
                self._arm(left_s)
                return
            del self._since[thing]
            self._act(thing)
