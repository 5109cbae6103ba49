"""Which entries join a batch: those of nearest length, while that does not lower the tokens computed a second."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Generic, Protocol, TypeVar

from service.engine.forecast import Outlook
from service.engine.limits import EngineLimits

# a batch need not last longer than so many times what a run costs whatever its size: it would gain no more
ENOUGH_BASES = 60.0
# where other students have work as well, shorter ones let them in sooner
ENOUGH_BASES_CROWDED = 6.0
# a batch may lose this share of the best tokens a second seen while it was filled
EFFICIENCY_LOSS = 0.01

_TOKENS = attrgetter("tokens")


class Entry(Protocol):
    """What the policy sees of what waits: an item, or survivors of a batch that stay together."""

    @property
    def items(self) -> int:
        """How many items it is."""
        ...

    @property
    def tokens(self) -> int:
        """The longest one's length."""
        ...

    @property
    def real_tokens(self) -> int:
        """All lengths together."""
        ...

    @property
    def moment(self) -> float:
        """How urgent it is: the smaller, the sooner..."""
        ...

    @property
    def order(self) -> int:
        """...and of equals the one that was admitted first."""
        ...

    @property
    def since(self) -> float:
        """The moment from which it has waited here."""
        ...

    @property
    def deadline(self) -> float:
        """The moment after which its answer is useless; may be infinite."""
        ...

    @property
    def ended(self) -> bool:
        """Whether it has been answered, failed or cancelled while it waited."""
        ...


E = TypeVar("E", bound=Entry)


def most_items(outlook: Outlook, longest: int, *, limits: EngineLimits, crowded: bool = False) -> int:
    """How many items of that length a batch may hold: at least 1, within the budget and the seconds of a run."""
    peak = outlook.peak
    enough_s = peak.base_s * (ENOUGH_BASES_CROWDED if crowded else ENOUGH_BASES)
    item_s = (peak.token_s + peak.square_s * longest) * longest
    most = limits.token_budget // longest
    if item_s > 0:
        most = min(most, int((min(limits.batch_s, enough_s) - peak.base_s) / item_s))
    return max(most, 1)


def fill(front: Sequence[E], outlook: Outlook, *, limits: EngineLimits, crowded: bool = False) -> Sequence[E]:
    """The batch that the first of `front` leads.

    Walks outwards in order of length, a run of equal lengths at a time, to the side that computes more tokens a second.
    """
    if len(front) == 1:
        return front
    ordered = sorted(front, key=_TOKENS)
    place = bisect_left(ordered, front[0].tokens, key=_TOKENS)
    # subtle: the sort is stable, so that the leader is the first of its length; runs are made as they are needed
    shorter = (_run(list(run)[::-1]) for _, run in groupby(reversed(ordered[:place]), key=_TOKENS))
    longer = (_run(list(run)) for _, run in groupby(ordered[place:], key=_TOKENS))
    leader, *equal = next(longer).entries
    filling = _Filling(leader, outlook, limits, crowded)
    if not equal or filling.join(_run(equal)):
        filling.walk(shorter, longer)
    return filling.entries


@dataclass(slots=True)
class _Run(Generic[E]):
    """Entries of one length, the more urgent first; `items` and `real` tokens of all together."""

    entries: Sequence[E]
    longest: int
    items: int
    real: int


def _run(entries: Sequence[E]) -> _Run[E]:
    items = sum([entry.items for entry in entries])
    return _Run(entries, entries[0].tokens, items, sum([entry.real_tokens for entry in entries]))


class _Filling(Generic[E]):
    """A batch while it is filled. A rate is real tokens a second."""

    def __init__(self, leader: E, outlook: Outlook, limits: EngineLimits, crowded: bool) -> None:
        self.entries: list[E] = [leader]
        self._items, self._real, self._longest = leader.items, leader.real_tokens, leader.tokens
        self._outlook, self._limits, self._crowded = outlook, limits, crowded
        self._ahead = outlook.ahead
        self._best = self._real / self._ahead.seconds(self._items, self._longest)

    def walk(self, shorter: Iterator[_Run[E]], longer: Iterator[_Run[E]]) -> None:
        """Take runs from both sides, the better one first, until neither pays or there is no more room."""
        below, above = next(shorter, None), next(longer, None)
        while below is not None or above is not None:
            down = 0.0 if below is None else self._rate(below)
            up = 0.0 if above is None else self._rate(above)
            best = below if down >= up else above
            if best is None or not self.join(best):
                return
            if best is below:
                below = next(shorter, None)
            else:
                above = next(longer, None)

    def join(self, run: _Run[E]) -> bool:
        """Take as much of a run as fits, if that pays; whether all of it joined."""
        longest = max(self._longest, run.longest)
        room = most_items(self._outlook, longest, limits=self._limits, crowded=self._crowded) - self._items
        fitting = run if run.items <= room else _cut(run, room)
        if fitting is None or (rate := self._rate(fitting)) < self._best * (1 - EFFICIENCY_LOSS):
            return False
        self.entries += fitting.entries
        self._items += fitting.items
        self._real += fitting.real
        self._longest = longest
        self._best = max(self._best, rate)
        return fitting is run

    def _rate(self, run: _Run[E]) -> float:
        longest = max(self._longest, run.longest)
        return (self._real + run.real) / self._ahead.seconds(self._items + run.items, longest)


def _cut(run: _Run[E], room: int) -> _Run[E] | None:
    """As many of a run, from its first, as there is room for; None: not even that one."""
    fitting: list[E] = []
    for entry in run.entries:
        room -= entry.items
        if room < 0:
            break
        fitting.append(entry)
    return _run(fitting) if fitting else None
