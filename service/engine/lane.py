"""One student in the engine: its queues, its share of the slots, its forecast and its health."""

import math
from bisect import bisect_left
from collections.abc import Sequence

from service.engine.forecast import Forecast
from service.engine.policy import company_may_pay, least_onward
from service.engine.queues import Entry, StageQueue
from service.runtime.cost import StageCost

# so many different inputs in a row that failed alone at one stage: the fault is not theirs
SICK_INPUTS = 8


class StudentLane:
    """What the engine keeps of one student. It does not hold the student, so that one unloaded is freed.

    Owner: event loop.

    Attributes:
        forecast: what its runs cost.
        lines: its queues, one a stage.
        virtual: predicted seconds it has had, brought up to the others' when it became active.
        items, tokens: of all its items that have not ended.
        running: how many of them are on slots.
        promised: how many more were admitted before they were there.
        seen: the last moment at which it was given items.
    """

    def __init__(self, costs: Sequence[StageCost], *, stages: int) -> None:
        self.forecast = Forecast(costs, stages=stages)
        self.lines = [StageQueue(stage, self.forecast) for stage in range(stages)]
        self.virtual = 0.0
        self.items = 0
        self.tokens = 0
        self.running = 0
        self.promised = 0
        self.seen = 0.0
        self._failed: list[set[int]] = [set() for _ in range(stages)]

    @property
    def waiting(self) -> int:
        """How many items wait."""
        return self.items - self.running

    @property
    def sick(self) -> bool:
        """Whether a stage fails whatever it is given."""
        return any(len(inputs) >= SICK_INPUTS for inputs in self._failed)

    def succeeded(self, stage: int) -> None:
        """A run of a stage succeeded."""
        self._failed[stage].clear()

    def failed(self, stage: int, text: bytes) -> None:
        """A stage failed on this input alone."""
        if len(self._failed[stage]) < SICK_INPUTS:
            self._failed[stage].add(hash(text))

    @property
    def promised_tokens(self) -> float:
        """Those of the items promised, roughly."""
        return self.promised * self.forecast.item_tokens

    def backlog_s(self) -> float:
        """Predicted busy seconds of everything admitted."""
        return (self.tokens + self.promised_tokens) * self.forecast.token_s

    def ahead_s(self, moment: float) -> float:
        """Predicted busy seconds of everything admitted that does not wait for the first stage with less urgency."""
        first, tokens = self.lines[0], self.tokens + self.promised_tokens
        if first.entries:
            more_urgent = bisect_left(first.entries, moment, key=_moment)
            tokens -= first.tokens * (1 - more_urgent / len(first.entries))
        return max(tokens, 0.0) * self.forecast.token_s

    def onward(self, begun: int, *, items: int, longest: int) -> list[int]:
        """For each stage, how many survivors of the one before run straight on to it at least.

        Args:
            begun: the stage at which the batch begins.
            items, longest: how many it is, tokens of the longest.
        """
        least, expected = [1] * len(self.lines), float(items)
        for stage in range(begun + 1, len(self.lines)):
            expected = max(expected * self.forecast.survive[stage - 1], 1.0)
            run = self.lines[stage].outlook.run
            if company_may_pay(run, longest=longest, items=expected / 2):
                others = self._company(stage, longest, expected)
                least[stage] = least_onward(run, longest=longest, others=others, most=items)
        return least

    def _company(self, stage: int, longest: int, expected: float) -> float:
        """Items of about that length that wait for a stage, or should come to it soon."""
        run, others = self.lines[stage].outlook.run, 0.0
        # lengths that differ more would cost more padding than a run costs whatever its size
        band = run.base_s / (2 * run.token_s * expected) if run.token_s else math.inf
        for earlier in range(stage):
            others = (others + self.lines[earlier].near(longest, band)) * self.forecast.survive[earlier]
        return others + self.lines[stage].near(longest, band)


def _moment(entry: Entry) -> float:
    return entry.moment
