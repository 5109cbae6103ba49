"""What a request costs its caller: asked before it is run, taken when it has ended, however it ended."""

from collections.abc import Iterable
from typing import NamedTuple

from service.api.access import Access
from service.api.call import Call
from service.api.loading import Served
from service.engine.item import ItemResult
from service.runtime.heads import ExitPolicy
from service.runtime.joined import Unit
from service.runtime.student import Outcome


class Bill(NamedTuple):
    """A request as its caller's quotas see it: `items` of so many `tokens` together, run by `policy`."""

    served: Served
    policy: ExitPolicy
    call: Call
    items: int
    tokens: int


def allow(access: Access, bill: Bill) -> None:
    """Before anything is run. Raises: Forbidden, QuotaExceeded: the caller may not have so much."""
    default, policy = bill.served.student.policy("default"), bill.policy
    # subtle: a risk below every certified one is full depth too; a default without early exits is nobody's wish
    asked = default.risk_applied is not None and policy.risk_requested != default.risk_requested
    full = asked and policy.risk_applied is None
    depth = _expected_depth(bill.served, policy)
    access.allow(bill.call.caller, tokens=bill.tokens, depth=depth, full_depth=full)


def charge(access: Access, bill: Bill, ran: Iterable[tuple[Unit, ItemResult]]) -> None:
    """Take what the items took that were run; those that have no answer, or are not there, count to full depth."""
    exits = bill.served.manifest.exits
    spared = sum(
        unit.billed * (1.0 - exits[result.outcome.exit_index].depth)
        for unit, result in ran
        if isinstance(result.outcome, Outcome)
    )
    access.charge(bill.call.caller, items=bill.items, compute_tokens=bill.tokens - spared)


def charge_expected(access: Access, bill: Bill) -> None:
    """Take what was expected of who leaves; else leaving just before the answer would be free."""
    expected = bill.tokens * _expected_depth(bill.served, bill.policy)
    access.charge(bill.call.caller, items=bill.items, compute_tokens=expected)


def _expected_depth(served: Served, policy: ExitPolicy) -> float:
    """The share of the full student's compute that an item takes on average, as certified; 1 where exits are off."""
    student = served.student
    certificate = served.manifest.certificate(backend=student.backend, precision=student.precision)
    points = certificate.points if certificate is not None else ()
    return next((point.mean_depth for point in points if point.risk == policy.risk_applied), 1.0)
