"""What a run saw: one row a request, kept in flat columns, and the views of it that figures are made from."""

import math
from array import array
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from loadtest.shots import Judgement, Shot
from loadtest.wire import Answer

Floats = NDArray[np.float64]
OK_FROM, OK_BELOW = 200, 300
SHED, LATE, NOT_READY, LOST = 429, 504, 503, 0


class Times(NamedTuple):
    """Moments of one request, seconds since the run's start: meant to be sent, handed to the client, answered."""

    intended: float
    sent: float
    done: float


class Recorder:
    """Columns that grow by a row a request. Owner: event loop."""

    __slots__ = ("_doubles", "_numbers", "_shorts")

    def __init__(self) -> None:
        self._doubles = tuple(array("d") for _ in range(2))
        self._numbers = tuple(array("f") for _ in range(4))
        self._shorts = tuple(array("i") for _ in range(5))

    def __len__(self) -> int:
        return len(self._doubles[0])

    def add(self, shot: Shot, times: Times, answer: Answer, judgement: Judgement) -> None:
        """Note a request's end."""
        intendeds, dones = self._doubles
        lags, queues, runs, totals = self._numbers
        kinds, sizes, statuses, rights, judgeds = self._shorts
        intendeds.append(times.intended)
        dones.append(times.done)
        lags.append(times.sent - times.intended)
        queues.append(answer.queue_ms)
        runs.append(answer.run_ms)
        totals.append(answer.total_ms)
        kinds.append(shot.kind)
        sizes.append(shot.items)
        statuses.append(answer.status)
        rights.append(judgement.right)
        judgeds.append(judgement.judged)

    def sample(self) -> "Sample":
        """What was noted, as arrays."""
        intended, done = (np.array(column, dtype=np.float64) for column in self._doubles)
        lag, queue, run, total = (np.array(column, dtype=np.float64) for column in self._numbers)
        kind, items, status, right, judged = (np.array(column, dtype=np.int64) for column in self._shorts)
        return Sample(intended, done, lag, queue, run, total, kind, items, status, right, judged)


@dataclass(frozen=True, slots=True)
class Sample:
    """Requests as arrays [N]. Seconds since the run's start, milliseconds where the name says so; NaN: not told.

    Attributes:
        intended: when each was meant to be sent; latency counts from here.
        done: when its answer was whole, or given up.
        lag: how much later than intended the generator handed it over, seconds.
        queue_ms, run_ms, total_ms: from the answer's headers.
        kind: place in the mixture. items: texts in it. status: HTTP's; 0 where no answer came.
        right, judged: items whose label was right, and items that have a label.
    """

    intended: Floats
    done: Floats
    lag: Floats
    queue_ms: Floats
    run_ms: Floats
    total_ms: Floats
    kind: NDArray[np.int64]
    items: NDArray[np.int64]
    status: NDArray[np.int64]
    right: NDArray[np.int64]
    judged: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.intended)

    def where(self, chosen: NDArray[np.bool_]) -> "Sample":
        """The chosen rows."""
        return Sample(*(getattr(self, name)[chosen] for name in self.__slots__))

    @property
    def latency_ms(self) -> Floats:
        """From the moment each request was meant to be sent to its answer's end."""
        return (self.done - self.intended) * 1e3

    @property
    def ok(self) -> NDArray[np.bool_]:
        """Answered with success."""
        return (self.status >= OK_FROM) & (self.status < OK_BELOW)

    @property
    def felt_ms(self) -> Floats:
        """The latencies that percentiles are about: answered requests, and lost ones as infinitely slow.

        A refusal is no answer and is fast: it would flatter them, and counts as an error instead.
        """
        lost: Floats = np.where(self.status == LOST, math.inf, self.latency_ms)
        felt: Floats = lost[self.ok | (self.status == LOST)]
        return felt
