"""Requests come in and go: counted, read in time, given up when their client leaves, refused when the service stops."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from service.api.body import read_body
from service.api.stragglers import Stragglers
from service.errors import BodyTimeout, Draining
from service.metrics import Metrics
from service.settings import Settings

# most answers are there before; who waits longer is watched, so that nothing is run for clients that have gone
WATCH_AFTER_S = 0.02

T = TypeVar("T")


class _Visitor:
    """A request that is inside, and the task that answers it.

    Attributes:
        reading: whether its body is still coming.
        late: whether its body was still coming after `WATCH_AFTER_S`.
        given_up: why its task was cancelled by us.
    """

    __slots__ = ("given_up", "late", "reading", "receive", "task", "watching")

    def __init__(self, receive: Receive) -> None:
        self.receive = receive
        task: asyncio.Task[object] | None = asyncio.current_task()
        assert task is not None
        self.task = task
        self.reading = True
        self.late = False
        self.given_up: Exception | None = None
        self.watching: asyncio.Task[None] | None = None

    def give_up(self, why: Exception) -> None:
        """Stop its task."""
        self.given_up = why
        self.task.cancel()

    def taken_back(self) -> bool:
        """Whether its cancellation was ours; one from outside (the server stopping) goes on."""
        return self.given_up is not None and self.task.uncancel() == 0

    async def watch(self) -> None:
        """Stop the work on its answer as soon as the client has gone."""
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self.give_up(ClientDisconnect())


class Door:
    """The requests that are inside.

    Owner: event loop.
    Invariant: who was let in is counted until it has its answer, or its error.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._max_bytes = settings.max_body_bytes
        self._inflight_requests = metrics.inflight_requests
        self._visitors: Stragglers[_Visitor] = Stragglers(WATCH_AFTER_S, self._has_waited)
        self._readers: Stragglers[_Visitor] = Stragglers(settings.body_timeout_s, self._out_of_time)
        self._idle = asyncio.Event()
        self._idle.set()
        self.inside = 0
        self.closed = False

    def __repr__(self) -> str:
        return f"<Door inside={self.inside} reading={len(self._readers)}{' closed' if self.closed else ''}>"

    async def serve(self, scope: Scope, receive: Receive, work: Callable[[bytes], Awaitable[T]]) -> T:
        """Let a request in, read its body, and work on it while its client waits.

        Args:
            scope, receive: the request's.
            work: gets the body; runs in this task; cancelled when the client leaves, which is noticed after
                `WATCH_AFTER_S`.
        Raises:
            Draining: the service is stopping, or stopped before the body had come.
            BodyTimeout: the body did not come within `body_timeout_s`.
            TooLarge, Malformed: of `read_body`.
            ClientDisconnect: the client left.
        """
        if self.closed:
            raise Draining("the service is stopping")
        visitor = _Visitor(receive)
        self._enter(visitor)
        try:
            raw = await read_body(scope["headers"], receive, max_bytes=self._max_bytes)
            visitor.reading = False
            if visitor.late:
                self._readers.discard(visitor)
                self._visitors.add(visitor)
            return await work(raw)
        except asyncio.CancelledError:
            if visitor.taken_back():
                assert visitor.given_up is not None
                raise visitor.given_up from None
            raise
        finally:
            self._leave(visitor)

    def enter(self) -> None:
        """Count in one that is answered by others; `leave` it must."""
        if self.inside == 0:
            self._idle.clear()
        self.inside += 1
        self._inflight_requests.set(self.inside)

    def leave(self) -> None:
        """Count out one that is answered."""
        self.inside -= 1
        self._inflight_requests.set(self.inside)
        if self.inside == 0:
            self._idle.set()

    def _enter(self, visitor: _Visitor) -> None:
        self._visitors.add(visitor)
        self.enter()

    def _leave(self, visitor: _Visitor) -> None:
        self._visitors.discard(visitor)
        if visitor.late:
            self._readers.discard(visitor)
        if visitor.watching is not None:
            visitor.watching.cancel()
        self.leave()

    def _has_waited(self, visitor: _Visitor) -> None:
        if visitor.reading:
            visitor.late = True
            self._readers.add(visitor)
        else:
            visitor.watching = asyncio.create_task(visitor.watch())

    def _out_of_time(self, visitor: _Visitor) -> None:
        visitor.give_up(BodyTimeout("the body did not come in time"))

    def close(self) -> None:
        """From now on, let nobody in."""
        self.closed = True

    async def empty(self, timeout_s: float) -> bool:
        """Wait until nobody is inside, for so long at most. Returns: whether nobody is."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        return self.inside == 0

    def give_up_reading(self) -> None:
        """Tell those whose body has not come that the service stopped before."""
        for visitor in (*self._visitors, *self._readers):
            if visitor.reading:
                visitor.give_up(Draining("the service stopped before the request was complete"))
