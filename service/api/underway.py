"""A request in the engine, and what came of it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

from service.api.answers import Answered
from service.api.charging import Bill
from service.engine.item import ItemResult, Request
from service.errors import ServiceError
from service.runtime.heads import ExitPolicy
from service.runtime.joined import Unit

_QUEUE_S: Callable[[ItemResult], float] = attrgetter("queue_s")
_COMPUTE_S: Callable[[ItemResult], float] = attrgetter("compute_s")


class Inference(NamedTuple):
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
        bill: what it costs whom.
        encoded: each item, or why it is not run.
        good: those that are run.
        tokenize_s: what tokenizing took, in seconds.
        request: the engine's; None: nothing is run.
    """

    bill: Bill
    encoded: Sequence[Unit | ServiceError]
    good: Sequence[Unit]
    tokenize_s: float
    request: Request | None


def inference_of(
    items: Iterable[Answered], *runs: Sequence[ItemResult], policy: ExitPolicy, tokenize_s: float
) -> Inference:
    """What came of a request whose items ended so, in one run or several, one after another."""
    queue_s = sum([max(map(_QUEUE_S, run), default=0.0) for run in runs])
    compute_s = sum([max(map(_COMPUTE_S, run), default=0.0) for run in runs])
    return Inference(policy, tuple(items), queue_s, compute_s, tokenize_s)
