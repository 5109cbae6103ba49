"""Pairs whose texts are read apart: all texts run by themselves, then what they gave, joined.

To whoever asks that is one request: admitted once, charged once, by its pairs.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Protocol, Self, TypeVar

from service.api.access import Access
from service.api.answers import Answered
from service.api.charging import Bill, charge, charge_expected
from service.api.underway import Inference, inference_of
from service.engine.engine import Engine
from service.engine.item import ItemResult, ServedStudent
from service.errors import Draining, NotReady, Overloaded, ServiceError
from service.runtime.encode import Encoded
from service.runtime.heads import ExitPolicy
from service.runtime.joined import JoinedPair, State, Unit, texts_of
from service.runtime.student import Outcome

# what the service refuses by itself; the caller pays nothing for it
OURS = (Overloaded, Draining, NotReady)

T = TypeVar("T")


class Halves:
    """The two runs of one request: of its texts, and of the pairs that they are joined to.

    Owner: event loop. As a context: its pairs have their place in the queue from the beginning, and give it back; and
    it is charged when it ends, by its pairs, in whichever run that is: as a student of one run charges.
    """

    def __init__(self, engine: Engine, access: Access, bill: Bill) -> None:
        """Admit the request. Args: bill: of its pairs. Raises: ServiceError: as the engine."""
        self._engine, self._access, self._bill = engine, access, bill
        self._begun = self._settled = False
        # one at least: the query of a ranking may be all that is read
        self._place = engine.promise(bill.served.handle, max(1, bill.items), deadline=bill.call.deadline)

    @property
    def policy(self) -> ExitPolicy:
        """When pairs may leave."""
        return self._bill.policy

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._place.leave()
        if not self._begun or self._settled or isinstance(error, OURS):
            return
        if isinstance(error, asyncio.CancelledError):
            charge_expected(self._access, self._bill)
        else:
            charge(self._access, self._bill, ())

    async def read(self, texts: Sequence[Encoded]) -> list[ItemResult]:
        """What each text gives: its state, or why there is none. Raises: ServiceError: as the engine."""
        reading = self._bill.served.reading
        assert reading is not None, "this student reads a pair as one sequence"
        return await self._run(reading, texts)

    async def join(self, pairs: Sequence[JoinedPair]) -> list[ItemResult]:
        """What each pair gives. Raises: ServiceError: as the engine."""
        ran = await self._run(self._bill.served.handle, pairs)
        charge(self._access, self._bill, zip(pairs, ran, strict=True))
        self._settled = True
        return ran

    async def _run(self, handle: ServedStudent, units: Sequence[Unit]) -> list[ItemResult]:
        if not units:
            return []
        bill = self._bill
        request = self._engine.begin(
            handle,
            units,
            policy=bill.policy,
            deadline=bill.call.deadline,
            priority=bill.call.priority,
            place=self._place,
        )
        self._begun = True
        try:
            return await request.future
        except asyncio.CancelledError:
            self._engine.give_up(request)
            raise


class Aside(Protocol):
    """`Tokenizing.by_size`."""

    async def __call__(self, items: int, work: Callable[[], T]) -> T:
        """Do work about so many items where it holds nobody up."""
        ...


async def run_joined(
    halves: Halves, encoded: Sequence[Encoded | ServiceError], *, aside: Aside, tokenize_s: float
) -> Inference:
    """Read the different texts of all pairs, then join them; what could not be read keeps its error.

    Args:
        halves: of the request.
        encoded: each pair, or why it is not run.
        aside: where to do what takes long for many pairs.
        tokenize_s: what tokenizing took, for the record.
    Raises: ServiceError: as the engine.
    """
    pairs = [one for one in encoded if isinstance(one, Encoded)]
    read = await aside(len(pairs), partial(_different, pairs))
    first = await halves.read(read.texts)
    units = await aside(len(pairs), partial(_units, pairs, read, first))
    second = await halves.join([unit for unit in units if isinstance(unit, JoinedPair)])
    items = _ends(encoded, units, second)
    return inference_of(items, first, second, policy=halves.policy, tokenize_s=tokenize_s)


@dataclass(frozen=True, slots=True)
class _Different:
    """The different texts of pairs, and of each pair the places of its first and of its second one among them."""

    texts: Sequence[Encoded]
    places: Sequence[tuple[int, int]]


def _different(pairs: Sequence[Encoded]) -> _Different:
    """What is to be read: one text may be the first, or the second, of many pairs."""
    texts: list[Encoded] = []
    known: dict[tuple[bool, bytes], int] = {}
    places: list[tuple[int, int]] = []
    for pair in zip(*texts_of(pairs), strict=True):
        first, second = ((bool(side), text.fingerprint) for side, text in enumerate(pair))
        for key, text in zip((first, second), pair, strict=True):
            if known.setdefault(key, len(texts)) == len(texts):
                texts.append(text)
        places.append((known[first], known[second]))
    return _Different(texts, places)


def _units(pairs: Sequence[Encoded], read: _Different, ran: Sequence[ItemResult]) -> list[JoinedPair | ServiceError]:
    states = [state_or_error(result.outcome) for result in ran]
    return [
        _unit(states[first], states[second], billed=pair.billed)
        for pair, (first, second) in zip(pairs, read.places, strict=True)
    ]


def _unit(first: State | ServiceError, second: State | ServiceError, *, billed: int) -> JoinedPair | ServiceError:
    if isinstance(first, ServiceError):
        return first
    return second if isinstance(second, ServiceError) else JoinedPair(first, second, billed=billed)


def state_or_error(outcome: Outcome | ServiceError) -> State | ServiceError:
    """What a text gave, or why it gave nothing."""
    return outcome if isinstance(outcome, ServiceError) else outcome.raw


def _ends(
    encoded: Sequence[Encoded | ServiceError],
    units: Sequence[JoinedPair | ServiceError],
    ran: Sequence[ItemResult],
) -> Iterator[Answered]:
    """Each pair's end: that of its join, or why it was not joined, or not even read."""
    made, joined = iter(units), iter(ran)
    for one in encoded:
        if isinstance(one, ServiceError):
            yield Answered(None, one)
        else:
            unit = next(made)
            yield Answered(one, unit if isinstance(unit, ServiceError) else next(joined).outcome)
