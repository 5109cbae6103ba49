"""The gate: what an overloaded student would refuse is refused as soon as it has been read.

A refusal that is found out step by step (every field checked, an error raised and written down) costs a good part of
what an answer costs, so that a server with twice its load would refuse half of the day instead of answering. Once the
engine has refused a request, it is asked about the next ones before anything else is.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import orjson

from service.api.access import Access
from service.api.call import DEADLINE, PRIORITY, deadline_ms_of
from service.api.dialects import error_response
from service.api.heads import Head
from service.api.logs import LOGGER
from service.api.schemas import MAX_DEADLINE_MS
from service.api.wire import header_lines
from service.engine.item import ServedStudent
from service.errors import Overloaded, ServiceError
from service.metrics import Distribution, Metrics, Value
from service.settings import Settings

# so long after its last refusal a student's requests are not looked at any more; so often its name is looked up
HOLD_S = 0.05
# parsing longer ones costs as much as refusing them in the ordinary way
MAX_BODY_BYTES = 1 << 14
# shorter deadlines may pass while they are looked at
LEAST_DEADLINE_MS = 1.0
# answers differ in their `retry-after`
MAX_KEPT = 256


class Check(Protocol):
    """Of the engine."""

    def __call__(self, student: ServedStudent, items: int, *, deadline: float | None = None) -> None:
        """Refuse what would be refused, and count it."""


@dataclass(frozen=True, slots=True)
class _Body:
    """What is read of a body."""

    model: str | None
    items: int
    deadline_ms: float | None


@dataclass(slots=True)
class _Closed:
    """A student whose requests are looked at, under one name and path.

    Attributes:
        student: which; find: what the name means now.
        requests, seconds: what counts them.
        refused: whether one was, since this was last looked at.
    """

    student: ServedStudent
    find: Callable[[], ServedStudent]
    requests: Value
    seconds: Distribution
    refused: bool = True


class Gate:
    """What refuses early.

    Owner: event loop.
    Contract:
        It is open (`closed` is false) unless a request was refused lately (twice `HOLD_S` at most), and then closed for
        that path and that name of a student alone, and no longer than the name means this student.
        What it refuses is what the engine refuses in that moment, by the same check, in the same words, counted in the
        same series. It admits nothing.
        It passes on what it does not understand at sight: a request with a priority, a body above `MAX_BODY_BYTES` or
        one that is no object with inputs; and everything where there are API keys, or the log wants a line for each.
        A field that is wrong besides is told once the load allows.
    """

    def __init__(self, settings: Settings, metrics: Metrics, *, access: Access, check: Check) -> None:
        """Open.

        Args:
            settings: the service's.
            metrics: what is refused is counted there.
            access: whether everybody may ask.
            check: of the engine.
        """
        self._settings = settings
        self._metrics = metrics
        self._access = access
        self._check = check
        self._closed: dict[tuple[str, str | None], _Closed] = {}
        self._answers: dict[tuple[str, str, float], tuple[bytes, bytes]] = {}

    @property
    def closed(self) -> bool:
        """Whether any request is to be looked at."""
        return bool(self._closed)

    def close(self, path: str, model: str | None, find: Callable[[], ServedStudent]) -> None:
        """The engine refused a request.

        Args:
            path: where it was posted to, a native route.
            model: what it called the student.
            find: what that means; asked again and again while requests are refused. May raise a ServiceError.
        """
        key = (path, model)
        if not self._access.open or key in self._closed or LOGGER.isEnabledFor(logging.DEBUG):
            return
        student = find()
        requests = self._metrics.requests.labels(path, student.name, student.version_label, str(Overloaded.status))
        closed = _Closed(student, find, requests, self._metrics.request_seconds.labels(path, student.name))
        self._closed[key] = closed
        asyncio.get_running_loop().call_later(HOLD_S, self._look_again, key, closed)

    def _look_again(self, key: tuple[str, str | None], closed: _Closed) -> None:
        if closed.refused and _means(closed.find) is closed.student:
            closed.refused = False
            asyncio.get_running_loop().call_later(HOLD_S, self._look_again, key, closed)
        else:
            del self._closed[key]

    def refusal(self, head: Head, raw: bytes, request_id: bytes, arrived: float) -> bytes | None:
        """Look at a request.

        Args:
            head, raw: of it, and its body.
            request_id: its id.
            arrived: the moment it came, on the engine's clock, in seconds.
        Returns: what follows the status line (429) of the answer, but for the server's own headers; None: it is not
            refused, or not here.
        """
        body = _body(raw, self._settings.max_items) if PRIORITY not in head.headers else None
        closed = None if body is None else self._closed.get((head.path, body.model))
        if body is None or closed is None:
            return None
        try:
            self._check(closed.student, body.items, deadline=self._deadline(head, body, arrived))
        except Overloaded as error:
            closed.refused = True
            closed.requests.inc()
            closed.seconds.observe(time.monotonic() - arrived)
            before, after = self._answer(head.path, error)
            return before + request_id + after
        except ServiceError:
            pass
        return None

    def _deadline(self, head: Head, body: _Body, arrived: float) -> float | None:
        """Raises: InvalidInput: the header says what it may not."""
        deadline_ms = body.deadline_ms
        if deadline_ms is None:
            told = head.headers.get(DEADLINE)
            deadline_ms = self._settings.default_deadline_ms if told is None else deadline_ms_of(told)
        return None if deadline_ms is None else arrived + max(deadline_ms, LEAST_DEADLINE_MS) / 1e3

    def _answer(self, path: str, error: Overloaded) -> tuple[bytes, bytes]:
        """Headers and body of an answer, around its id."""
        key = (path, error.detail, error.retry_after_s)
        known = self._answers.get(key)
        if known is None:
            response = error_response({"path": path}, error)
            known = (header_lines(response.raw_headers) + b"x-request-id: ", b"\r\n\r\n" + bytes(response.body))
            if len(self._answers) >= MAX_KEPT:
                self._answers.clear()
            self._answers[key] = known
        return known


def _means(find: Callable[[], ServedStudent]) -> ServedStudent | None:
    try:
        return find()
    except ServiceError:
        return None


def _body(raw: bytes, max_items: int) -> _Body | None:
    """What matters of a body, if that is as it should be."""
    try:
        document = orjson.loads(raw) if len(raw) <= MAX_BODY_BYTES else None
    except orjson.JSONDecodeError:
        return None
    if not isinstance(document, dict):
        return None
    inputs, model, deadline_ms = document.get("inputs"), document.get("model"), document.get("deadline_ms")
    items = 1 if isinstance(inputs, str) else len(inputs) if isinstance(inputs, list) else 0
    if not 0 < items <= max_items or not isinstance(model, str | None) or not _is_length(deadline_ms):
        return None
    return _Body(model, items, deadline_ms)


def _is_length(deadline_ms: object) -> bool:
    if deadline_ms is None:
        return True
    number = isinstance(deadline_ms, int | float) and not isinstance(deadline_ms, bool)
    return number and LEAST_DEADLINE_MS <= deadline_ms <= MAX_DEADLINE_MS  # type: ignore[operator]
