"""The engine's bounds, and how urgent an item is."""

import math
from dataclasses import dataclass
from typing import Literal

Priority = Literal["high", "normal", "low"]


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """The engine's bounds.

    Attributes:
        max_queue_items: items of one student that may wait; more are refused.
        token_budget: padded tokens of a batch; only a single item may exceed it.
        slots: batches that run at once.
        batch_s: predicted seconds of one run, at most; only a single item may exceed it.
        window_s: seconds that a free slot waits for a batch to fill; 0: it never waits.
        inline_s: a run predicted shorter runs on the event loop; None: as the number of slots suggests.
        rebatch: whether survivors of a stage may be batched anew with those of other batches.
        pace_s: seconds between the urgency of one item of a request and of its next.
        patience_s: an item without a deadline is as urgent as one whose deadline is so long after its arrival.
        priority_s: seconds by which "high" is more, and "low" less, urgent than "normal".
        ripen_s: seconds that survivors wait for company, at most, while other work runs.
        window_items: how far down a queue a batch looks for items of its leader's length.
    """

    max_queue_items: int
    token_budget: int
    slots: int
    batch_s: float = 0.02
    window_s: float = 0.0
    inline_s: float | None = None
    rebatch: bool = True
    pace_s: float = 0.01
    patience_s: float = 1.0
    priority_s: float = 1.0
    ripen_s: float = 0.005
    window_items: int = 512

    @property
    def inline_limit_s(self) -> float:
        """Seconds of a run that the event loop may do itself: handing it to a thread costs some 0.1 ms."""
        if self.inline_s is not None:
            return self.inline_s
        return 2e-3 if self.slots == 1 else 3e-4


def first_moment(*, now: float, deadline: float, priority: Priority, limits: EngineLimits) -> float:
    """The urgency of the first item of a request admitted now."""
    moment = now + limits.patience_s if deadline == math.inf else deadline
    if priority == "normal":
        return moment
    return moment - limits.priority_s if priority == "high" else moment + limits.priority_s
