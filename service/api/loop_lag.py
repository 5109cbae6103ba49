"""How late the event loop is for its own clock: what every request waits for on top of its own work."""

import asyncio
import time
from collections.abc import Callable

from service.metrics import Distribution

EVERY_S = 0.25


class LoopLag:
    """Measures until it is closed. Owner: event loop."""

    def __init__(
        self, series: Distribution, *, every_s: float = EVERY_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Start; what is found goes into `series`."""
        self._series = series
        self._every_s = every_s
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._arm()

    def _arm(self) -> None:
        self._due = self._clock() + self._every_s
        self._timer = self._loop.call_later(self._every_s, self._measure)

    def _measure(self) -> None:
        # subtle: the loop's timers are precise to the millisecond only, and may be that much early
        self._series.observe(max(self._clock() - self._due, 0.0))
        self._arm()

    def close(self) -> None:
        """Measure no more."""
        self._timer.cancel()
