"""A request in the engine, and what came of it."""

from collections.abc import Sequence
from dataclasses import dataclass

from service.api.answers import Answered
from service.api.call import Call
from service.api.loading import Served
from service.engine.item import Request
from service.errors import ServiceError
from service.runtime.heads import ExitPolicy
from service.runtime.joined import Unit


@dataclass(frozen=True, slots=True)
class Inference:
    """What came of one request: each item's end, the policy applied, and the seconds it took."""

    policy: ExitPolicy
    items: tuple[Answered, ...]
    queue_s: float
    compute_s: float
    tokenize_s: float = 0.0


@dataclass(slots=True)
class Underway:
    """A request in the engine.

    Attributes:
        served: who answers.
        encoded: each item, or why it is not run.
        good: those that are run, of so many `tokens` together.
        policy: when they may leave early.
        call: who asks, until when, how urgently.
        tokenize_s: what tokenizing took, in seconds.
        request: the engine's; None: nothing is run.
        charged: whether it counts against quotas; what is only read, to be joined later, counts then.
    """

    served: Served
    encoded: Sequence[Unit | ServiceError]
    good: Sequence[Unit]
    tokens: int
    policy: ExitPolicy
    call: Call
    tokenize_s: float
    request: Request | None
    charged: bool = True
