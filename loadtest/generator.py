"""The generators: open loop (requests leave at their moments, come what may) and closed loop (N clients in turn).

Open loop is free of coordinated omission: a server that stalls is sent to all the same, and each latency counts from
the moment its request was meant to leave.
"""

import asyncio
import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from loadtest.arrivals import Moments
from loadtest.client import Sender
from loadtest.record import Recorder, Times
from loadtest.shots import Judgement, Shot, Shots
from loadtest.wire import Answer

SPIN_S = 0.0015


class _Run:
    """What both generators share. Owner: event loop."""

    def __init__(self, shots: Shots, sender: Sender, *, clock: Callable[[], float]) -> None:
        self._shots = shots
        self._sender = sender
        self._clock = clock
        self._recorder = Recorder()
        self._begin = 0.0
        self._in_flight = 0
        self._all_done = asyncio.Event()

    def _send(self, place: int, intended: float, then: Callable[[], None]) -> None:
        shot = self._shots.take(place)
        self._in_flight += 1
        done = partial(self._answered, shot, intended, self._clock() - self._begin, then)
        self._sender.send(shot.raw, done, want_body=shot.judge is not None, kind=shot.kind)

    def _answered(self, shot: Shot, intended: float, sent: float, then: Callable[[], None], answer: Answer) -> None:
        times = Times(intended, sent, self._clock() - self._begin)
        self._recorder.add(shot, times, answer, _judged(shot, answer))
        self._in_flight -= 1
        then()


def _judged(shot: Shot, answer: Answer) -> Judgement:
    if shot.judge is None or answer.body is None or answer.status != 200:
        return Judgement()
    return shot.judge(answer.body)


class OpenLoop(_Run):
    """Sends each request at its moment. One run."""

    def __init__(
        self,
        moments: Moments,
        shots: Shots,
        sender: Sender,
        *,
        clock: Callable[[], float],
        spin_s: float = SPIN_S,
    ) -> None:
        """Nothing is sent yet.

        Args:
            moments: seconds from the start, in order.
            shots: the request of each moment.
            sender: where to.
            clock: seconds.
            spin_s: timers of event loops are a millisecond wide; so close to a moment the loop turns without sleeping.
        """
        super().__init__(shots, sender, clock=clock)
        self._moments = moments.tolist()
        self._spin_s = spin_s
        self._next = 0

    async def run(self) -> Recorder:
        """Send everything and wait for every answer (the sender gives up those that never come)."""
        self._begin = self._clock()
        self._pace()
        await self._all_done.wait()
        return self._recorder

    def _pace(self) -> None:
        """Send what is due; come back for the next."""
        moments, loop = self._moments, asyncio.get_running_loop()
        while self._next < len(moments) and moments[self._next] <= self._clock() - self._begin:
            place, self._next = self._next, self._next + 1
            self._send(place, moments[place], self._check_end)
        if self._next == len(moments):
            self._check_end()
            return
        wait = moments[self._next] - (self._clock() - self._begin) - self._spin_s
        if wait > 0:
            loop.call_later(wait, self._pace)
        else:
            loop.call_soon(self._pace)

    def _check_end(self) -> None:
        if self._next == len(self._moments) and not self._in_flight:
            self._all_done.set()


class ClosedLoop(_Run):
    """So many clients, each sending its next request when it has its answer. One run."""

    def __init__(self, clients: int, shots: Shots, sender: Sender, *, clock: Callable[[], float]) -> None:
        super().__init__(shots, sender, clock=clock)
        self._clients = clients
        self._sent = 0
        self._until = 0.0

    async def run(self, seconds: float) -> Recorder:
        """Keep them busy for so long, and wait for the last answers."""
        self._begin = self._clock()
        self._until = self._begin + seconds
        for _ in range(self._clients):
            self._turn()
        await self._all_done.wait()
        return self._recorder

    def _turn(self) -> None:
        now = self._clock()
        if now < self._until:
            place, self._sent = self._sent, self._sent + 1
            self._send(place, now - self._begin, self._turn)
        elif not self._in_flight:
            self._all_done.set()


@contextmanager
def undisturbed() -> Iterator[None]:
    """No garbage collection inside: its pauses would be measured as the server's. Nothing here makes cycles."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def cpu_seconds() -> float:
    """Processor time of this process so far."""
    used = os.times()
    return used.user + used.system
