"""What runs next: pure functions from what waits to what to do.

Students take turns by virtual time: each run adds its predicted seconds to its student's, and the student that has
had least goes first. Within a student the most urgent entry leads a batch. Urgency is a moment: the deadline, or the
arrival plus a fixed patience, shifted by the priority; the items of one request follow each other at a fixed pace, as
if they had come one by one. Every moment is fixed at admission and later arrivals have later ones, so nobody starves.

A batch is filled with entries of nearest length while that does not lower the tokens computed a second, by the cost
model. Survivors of a stage run straight on, or wait for company where a run of the next stage would be cheaper shared.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Generic, Protocol, TypeVar

from service.engine.filling import E, Entry, fill
from service.engine.forecast import RUN_S, Outlook
from service.engine.limits import EngineLimits as EngineLimits
from service.engine.limits import Priority as Priority
from service.runtime.cost import StageCost

# work is ripe when no more than this share of its run is what a run costs whatever its size
RIPE_BASE_SHARE = 0.2
# putting survivors back, choosing them again and joining their arrays costs what a run costs around its graph: where
# graphs cost nothing but by the token, nothing is gained
MERGE_S = RUN_S
# company must save survivors this share of what their run costs alone
COMPANY_GAIN = 0.4

_VIRTUAL = attrgetter("virtual")


E_co = TypeVar("E_co", bound=Entry, covariant=True)


class Line(Protocol[E_co]):
    """What waits for one stage of one student."""

    @property
    def stage(self) -> int:
        """Which stage."""
        ...

    @property
    def entries(self) -> Sequence[E_co]:
        """Sorted by urgency; those that have ended are passed over."""
        ...

    @property
    def tokens(self) -> int:
        """All lengths together."""
        ...

    @property
    def outlook(self) -> Outlook:
        """What running it costs."""
        ...


class Lane(Protocol[E_co]):
    """One student's lines."""

    @property
    def virtual(self) -> float:
        """Predicted seconds it has had, brought up to the others' when it became active."""
        ...

    @property
    def lines(self) -> Sequence[Line[E_co]]:
        """One a stage, in order."""
        ...


@dataclass(frozen=True, slots=True)
class Batch(Generic[E]):
    """Entries of one line to run together; the first one led."""

    lane: Lane[E]
    line: Line[E]
    entries: Sequence[E]


@dataclass(frozen=True, slots=True)
class Look(Generic[E]):
    """How many entries from the front of a line were looked at; all those chosen or expired are among them."""

    line: Line[E]
    entries: int


@dataclass(frozen=True, slots=True)
class Plan(Generic[E]):
    """What to do now.

    Attributes:
        batch: what a free slot runs; None: nothing.
        wake: the moment at which a line's wait window ends, where only such lines have work.
        expired: entries whose deadline has passed.
        looks: how far each line was looked at.
    """

    batch: Batch[E] | None
    wake: float
    expired: Sequence[E]
    looks: Sequence[Look[E]]


def plan(lanes: Sequence[Lane[E]], *, now: float, limits: EngineLimits, crowded: bool = False) -> Plan[E]:
    """Decide what one free slot runs.

    Args:
        lanes: the students with waiting work.
        now: the moment, on the deadlines' clock.
        limits: the bounds.
        crowded: whether other students have work as well, waiting or running.
    """
    views: list[_View[E]] = []
    wake = math.inf
    for lane in sorted(lanes, key=_VIRTUAL) if len(lanes) > 1 else lanes:
        mine = [_View(line, now) for line in lane.lines if line.entries]
        views += mine
        ready = [view for view in mine if view.look(1)]
        held = [view for view in ready if limits.window_s and _held(view, now, limits)]
        wake = min([wake, *(view.front[0].since + limits.window_s for view in held)])
        if free := [view for view in ready if view not in held]:
            view = _choose(free, now, limits)
            view.look(limits.window_items)
            joined = limits.rebatch or view.line.stage == 0
            entries = fill(view.front, view.line.outlook, limits=limits, crowded=crowded) if joined else view.front[:1]
            return _plan(Batch(lane, view.line, entries), wake, views)
    return _plan(None, wake, views)


def _plan(batch: Batch[E] | None, wake: float, views: Sequence["_View[E]"]) -> Plan[E]:
    expired = [entry for view in views for entry in view.expired]
    return Plan(batch, wake, expired, [Look(view.line, view.looked) for view in views])


def _choose(ready: Sequence["_View[E]"], now: float, limits: EngineLimits) -> "_View[E]":
    """Of one student's lines, the one to run: the most urgent that is ripe, else the one that feeds the others."""
    if len(ready) == 1:
        return ready[0]
    grown = [view for view in ready if _ripe(view.line) or _pressing(view, now, limits)]
    if not grown:
        return min(ready, key=lambda view: view.line.stage)
    # of equals the one at the deeper stage, then the one that came first
    return min(grown, key=lambda view: (view.front[0].moment, -view.line.stage, view.front[0].order))


def _ripe(line: Line[E]) -> bool:
    run = line.outlook.run
    return run.base_s <= RIPE_BASE_SHARE * (run.base_s + run.token_s * line.tokens)


def _pressing(view: "_View[E]", now: float, limits: EngineLimits) -> bool:
    """Whether the leader has waited long enough, or has no time to lose."""
    leader = view.front[0]
    if now >= leader.since + limits.ripen_s:
        return True
    return leader.moment - now <= limits.ripen_s + view.line.outlook.ahead.seconds(leader.items, leader.tokens)


def _held(view: "_View[E]", now: float, limits: EngineLimits) -> bool:
    """Whether a line's wait window holds it back."""
    leader = view.front[0]
    if now >= leader.since + limits.window_s or _ripe(view.line):
        return False
    ahead = view.line.outlook.ahead.seconds(leader.items, leader.tokens)
    return leader.moment - now > limits.window_s + ahead


def least_onward(run: StageCost, *, longest: int, others: float, most: int) -> int:
    """How many survivors at least run straight on; fewer are better off waiting for company.

    Args:
        run: what a run of the next stage costs.
        longest: tokens of the longest survivor.
        others: items that should come to the next stage soon.
        most: more than this many are not asked about.

    >>> least_onward(StageCost(base_s=1e-3, token_s=1e-5), longest=10, others=20, most=64)
    32
    >>> least_onward(StageCost(base_s=0.0, token_s=1e-5), longest=10, others=20, most=32)
    1
    """
    if others < 1:
        return 1
    return 1 + bisect_left(range(1, most + 1), True, key=lambda items: not _company_pays(run, longest, others, items))


def company_may_pay(run: StageCost, *, longest: int, items: float) -> bool:
    """Whether so many survivors would wait for company, were there any amount of it."""
    return run.base_s - MERGE_S > COMPANY_GAIN * (run.base_s + (run.token_s + run.square_s * longest) * items * longest)


def _company_pays(run: StageCost, longest: int, others: float, items: int) -> bool:
    # in company the survivors pay only their share of what a run costs whatever its size
    saved = run.base_s * others / (items + others)
    return saved - MERGE_S > COMPANY_GAIN * run.seconds(items, longest)


class _View(Generic[E]):
    """One line while a plan is made: the live entries at its front, and how far it was looked at."""

    def __init__(self, line: Line[E], now: float) -> None:
        self.line = line
        self.front: list[E] = []
        self.expired: list[E] = []
        self.looked = 0
        self._now = now

    def look(self, entries: int) -> bool:
        """Look until `front` holds so many entries or none are left; whether it holds any."""
        now, line = self._now, self.line.entries
        while len(self.front) < entries and self.looked < len(line):
            seen = line[self.looked : self.looked + entries - len(self.front)]
            self.looked += len(seen)
            fresh = [entry for entry in seen if not entry.ended and entry.deadline > now]
            self.front += fresh
            if len(fresh) < len(seen):
                self.expired += [entry for entry in seen if not entry.ended and entry.deadline <= now]
        return bool(self.front)
