"""A low-cost HTTP/1.1 client: keep-alive connections with one request in flight each, and a pool that opens them."""

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, cast

from loadtest.errors import TargetFailed
from loadtest.wire import LOST, Answer, Origin, ResponseReader

Done = Callable[[Answer], None]
SWEEP_S = 0.25


class Sender(Protocol):
    """What load generators send through."""

    def send(self, raw: bytes, done: Done, *, want_body: bool = False, kind: int = 0) -> None:
        """Send a request; `done` is called once, with its answer or `LOST`, never before this returns."""


class _Job(NamedTuple):
    """A request on its way, and the moment from which its time runs."""

    raw: bytes
    done: Done
    want_body: bool
    since: float
    retried: bool = False


class Connection(asyncio.Protocol):
    """One connection. Owner: event loop. Invariant: a job it took is given back exactly once."""

    def __init__(self, pool: "Pool") -> None:
        self._pool = pool
        self._reader = ResponseReader()
        self._transport: asyncio.Transport | None = None
        self._used = False
        self.job: _Job | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is open."""
        # uvloop's transports are asyncio's in behaviour, not by inheritance
        self._transport = cast(asyncio.Transport, transport)

    def start(self, job: _Job) -> None:
        """Send a request. The connection is open and idle."""
        assert self._transport is not None and self.job is None
        self.job = job
        self._reader.start(want_body=job.want_body)
        self._transport.write(job.raw)

    def data_received(self, data: bytes) -> None:
        """A piece of an answer."""
        job = self.job
        try:
            answer = self._reader.feed(data) if job is not None else LOST
        except ValueError:
            answer = LOST
        if answer is None:
            return
        self.job, self._used = None, True
        if answer.closes:
            self.abort()
        else:
            self._pool.freed(self)
        if job is not None:
            job.done(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        """The server closed it, or we did."""
        job, self.job = self.job, None
        self._pool.closed(self)
        if job is None:
            return
        # subtle: a server may close an idle connection in the moment we send on it; that says nothing about its answers
        if self._used and not self._reader.begun and not job.retried:
            self._pool.again(job._replace(retried=True))
        else:
            job.done(self._reader.end())

    def give_up(self) -> None:
        """The answer took too long: it is lost."""
        job, self.job = self.job, None
        self.abort()
        if job is not None:
            job.done(LOST)

    def abort(self) -> None:
        """Close without waiting."""
        if self._transport is not None:
            self._transport.abort()


class Pool:
    """Connections to one origin, opened as they are needed, up to a bound.

    Owner: event loop.
    Invariant: a request is either waiting for a connection, on one, or done.

    Attributes:
        opened: connections opened so far. limited: requests that waited because the bound was reached.
        retried: requests sent a second time because an idle connection was closed under them.
    """

    def __init__(
        self, origin: Origin, *, most: int, timeout_s: float, clock: Callable[[], float] | None = None
    ) -> None:
        """Nothing is opened yet.

        Args:
            origin: where to.
            most: connections at one time.
            timeout_s: an answer that takes longer is lost (noticed within a quarter of a second).
            clock: seconds; by default the running loop's.
        """
        self._origin = origin
        self._most = most
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._clock = clock or self._loop.time
        self._tls = ssl.create_default_context() if origin.scheme == "https" else None
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()
        self._waiting: deque[_Job] = deque()
        self._opening: set[asyncio.Task[None]] = set()
        self._sweeping: asyncio.TimerHandle | None = None
        self.opened = self.limited = self.retried = 0

    def send(self, raw: bytes, done: Done, *, want_body: bool = False, kind: int = 0) -> None:
        """Send a request of whatever kind on an idle connection, or on the next one that is free or open."""
        self._put(_Job(raw, done, want_body, self._clock()))

    def again(self, job: _Job) -> None:
        """Send a request once more."""
        self.retried += 1
        self._put(job)

    def _put(self, job: _Job) -> None:
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(SWEEP_S, self._sweep)
        if self._idle:
            self._idle.pop().start(job)
            return
        self._waiting.append(job)
        if len(self._all) + len(self._opening) < self._most:
            self._open()
        else:
            self.limited += 1

    async def open(self, connections: int) -> None:
        """Open so many before the first request. Raises: TargetFailed: the target does not accept them."""
        tasks = [self._open() for _ in range(min(connections, self._most))]
        await asyncio.gather(*tasks)
        if connections and not self._all:
            raise TargetFailed(f"cannot connect to {self._origin.host}:{self._origin.port}")

    def _open(self) -> "asyncio.Task[None]":
        task = self._loop.create_task(self._connect())
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        return task

    async def _connect(self) -> None:
        connection = Connection(self)
        try:
            await self._loop.create_connection(lambda: connection, self._origin.host, self._origin.port, ssl=self._tls)
        except OSError:
            if self._waiting and not self._all:
                self._waiting.popleft().done(LOST)
            return
        self.opened += 1
        self._all.add(connection)
        self.freed(connection)

    def freed(self, connection: Connection) -> None:
        """A connection has nothing to do."""
        if self._waiting:
            connection.start(self._waiting.popleft())
        else:
            self._idle.append(connection)

    def closed(self, connection: Connection) -> None:
        """A connection is gone."""
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if self._waiting and len(self._all) + len(self._opening) < self._most:
            self._open()

    def _sweep(self) -> None:
        """Give up what has waited longer than the timeout."""
        self._sweeping = self._loop.call_later(SWEEP_S, self._sweep)
        oldest = self._clock() - self._timeout_s
        while self._waiting and self._waiting[0].since < oldest:
            self._waiting.popleft().done(LOST)
        for connection in list(self._all):
            if connection.job is not None and connection.job.since < oldest:
                connection.give_up()

    async def close(self) -> None:
        """Close every connection; what is on its way is lost."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        for task in self._opening:
            task.cancel()
        await asyncio.gather(*self._opening, return_exceptions=True)
        while self._waiting:
            self._waiting.popleft().done(LOST)
        for connection in list(self._all):
            connection.give_up()
        # subtle: transports tell their protocols in the loop's next turn, and only then let the sockets go
        await asyncio.sleep(0)


class Pools:
    """A pool for each kind of request, so that no request waits for a connection of another kind's.

    Owner: event loop.
    """

    def __init__(self, pools: Sequence[Pool]) -> None:
        """Send through these, by kind."""
        self._pools = pools

    def send(self, raw: bytes, done: Done, *, want_body: bool = False, kind: int = 0) -> None:
        """Send a request on a connection of its kind."""
        self._pools[kind].send(raw, done, want_body=want_body)
