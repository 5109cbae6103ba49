"""A batch on its way: which items it holds, and the job that runs them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

import numpy as np

from service.engine.item import Group, Item, ServedStudent
from service.engine.lane import StudentLane
from service.engine.queues import Entry
from service.engine.slot import Job, Report
from service.runtime.heads import ExitPolicy
from service.runtime.pipeline import Pass


@dataclass(slots=True, eq=False)
class Flight:
    """A batch that a slot, or the event loop, runs. Owner: event loop.

    Attributes:
        items: in the order of the job's rows.
        job: what runs...
        reports: ...and its steps; whoever runs the job takes them one by one.
        stage: where it began.
        heard: the moment of its start or last report.
        back: items that it handed back.
        on_slot: whether a slot has it.
        longest: tokens of the longest item.
    """

    items: Sequence[Item]
    job: Job
    reports: Iterator[Report]
    stage: int
    heard: float
    back: set[Item] = field(default_factory=set)
    on_slot: bool = False
    longest: int = field(init=False)

    def __post_init__(self) -> None:
        self.longest = max([item.tokens for item in self.items])

    @property
    def student(self) -> ServedStudent:
        """Whose."""
        return self.items[0].request.student

    @property
    def whole(self) -> bool:
        """Whether all stages are run as one."""
        return self.job.runner is self.student.full_depth

    @property
    def lane(self) -> StudentLane:
        """Its student's."""
        return self.items[0].request.lane


_URGENCY = attrgetter("moment", "order")


def as_one(entries: Sequence[Entry], *, longest_s: float, turn_s: float | None) -> Sequence[Entry]:
    """How many of a batch, its leader first, are run through all stages at once: as many as one run may take.

    Args:
        entries: of one queue.
        longest_s: predicted seconds of one run, at most; only a single item may exceed it.
        turn_s: while others wait, the seconds of a turn: all of the batch or nobody, all if that takes no longer.
    Returns: none where somebody may leave before the last exit, for a later stage, or where the student cannot.
    """
    if not _is_for_full_depth(entries):
        return ()
    forecast, longest = entries[0].members[0].request.lane.forecast, max([entry.tokens for entry in entries])
    base_s, all_s = forecast.through(0, longest), forecast.through(len(entries), longest)
    if turn_s is not None:
        return entries if all_s <= turn_s else ()
    item_s = (all_s - base_s) / len(entries)
    most = int((longest_s - base_s) / item_s) if item_s > 0 else len(entries)
    return entries[: max(most, 1)]


def _is_for_full_depth(entries: Sequence[Entry]) -> bool:
    first = entries[0]
    if not isinstance(first, Item) or first.request.student.full_depth is None or not first.request.policy.is_off:
        return False
    known = first.request.policy
    policies = (entry.request.policy for entry in entries if isinstance(entry, Item))
    return all(policy is known or policy.is_off for policy in policies)


def job_of(entries: Sequence[Entry], *, whole: bool = False) -> tuple[Job, Sequence[Item]]:
    """The job that runs entries of one queue, and its items in the order of its rows; ended survivors are left out.

    Args:
        entries: at least one that has not ended.
        whole: run all stages as one.
    """
    items: list[Item] = []
    passes: list[Pass] = []
    for entry in entries:
        if isinstance(entry, Item):
            items.append(entry)
        else:
            living = _living(entry)
            items += living
            passes.append(entry.going)
    student = items[0].request.student
    runner = student.full_depth if whole and student.full_depth is not None else student.student
    deadlines = [item.deadline for item in items]
    timed = np.array(deadlines) if min(deadlines) < math.inf else None
    if passes:
        return Job(runner, passes=passes, deadlines=timed), items
    encoded = [item.encoded for item in items]
    return Job(runner, encoded, _policies(items), deadlines=timed), items


def _living(group: Group) -> Sequence[Item]:
    group.taken = True
    if group.items == len(group.members):
        return group.members
    ended = np.array([item.ended for item in group.members])
    group.going.drop(ended)
    return [item for item in group.members if not item.ended]


def _policies(items: Sequence[Item]) -> ExitPolicy | Sequence[ExitPolicy]:
    first = items[0].request.policy
    if all(item.request.policy is first for item in items):
        return first
    return [item.request.policy for item in items]


def group_of(members: Sequence[Item], going: Pass, now: float) -> Group | None:
    """The group of a pass's survivors, in the order of its rows, those that have ended left out; None: nobody."""
    ended = [item.ended for item in members]
    if any(ended):
        going.drop(np.array(ended))
        members = [item for item in members if not item.ended]
    if not members:
        return None
    first = min(members, key=_URGENCY)
    group = Group(
        Pass.merge([going]),
        members,
        moment=first.moment,
        order=first.order,
        deadline=max(item.deadline for item in members),
        since=now,
        items=len(members),
        real_tokens=sum(item.tokens for item in members),
    )
    for item in members:
        item.group = group
    return group
