"""What a request says beside its body: until when, how urgently, and whose it is."""

from typing import NamedTuple

from service.api.access import ANYONE, Caller
from service.api.conversation import Exchange
from service.api.schemas import MAX_DEADLINE_MS
from service.engine.policy import Priority
from service.errors import InvalidInput
from service.settings import Settings

PRIORITY = b"x-priority"
DEADLINE = b"x-request-deadline-ms"
_PRIORITIES: dict[bytes, Priority] = {b"high": "high", b"normal": "normal", b"low": "low"}


class Call(NamedTuple):
    """The circumstances of a request.

    Attributes:
        deadline: a moment of the event loop's clock, in seconds, or None.
        priority: which items go first where there is a choice.
        caller: whose it is.
    """

    deadline: float | None = None
    priority: Priority = "normal"
    caller: Caller = ANYONE


def call_of(exchange: Exchange, arrived: float, deadline_ms: float | None, settings: Settings) -> Call:
    """The circumstances of a request.

    Args:
        exchange: the request's.
        arrived: a moment of the event loop's clock, in seconds; what deadlines count from.
        deadline_ms: what the body says; else the header `x-request-deadline-ms` counts, then the setting.
        settings: the service's.
    Raises: InvalidInput: one of the headers says what it may not.
    """
    headers = exchange.headers
    if deadline_ms is None:
        deadline_ms = deadline_ms_of(headers[DEADLINE]) if DEADLINE in headers else settings.default_deadline_ms
    deadline = None if deadline_ms is None else arrived + deadline_ms / 1e3
    return Call(deadline, _priority(headers[PRIORITY]) if PRIORITY in headers else "normal", exchange.caller)


def deadline_ms_of(value: bytes) -> float:
    """What the header `x-request-deadline-ms` says. Raises: InvalidInput: it says what it may not."""
    try:
        deadline_ms = float(value)
    except ValueError:
        deadline_ms = 0.0
    # subtle: written so that NaN fails
    if not 0 < deadline_ms <= MAX_DEADLINE_MS:
        raise InvalidInput(f"the header {DEADLINE.decode()} must be a number above 0 and at most {MAX_DEADLINE_MS}")
    return deadline_ms


def _priority(value: bytes) -> Priority:
    priority = _PRIORITIES.get(value.strip().lower())
    if priority is None:
        raise InvalidInput(f"the header {PRIORITY.decode()} must be high, normal or low")
    return priority
