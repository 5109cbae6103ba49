"""The short road: a request that has come whole is answered from its connection, without a task and without ASGI.

Around a run of a small student most of the time goes into what every request has: a parser's callbacks, a scope, a
task, hops between them. A request to `classify` or `embed` that is there in one piece, with short texts, needs none of
it. It is parsed, checked, run and written by the very functions of the long road (`routes.py`); whatever is out of the
ordinary goes that way.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from service.api.body import parse
from service.api.call import call_of
from service.api.conversation import CLIENT_LEFT, Conversation, Exchange
from service.api.dialects import failure_response
from service.api.gate import Gate
from service.api.heads import Head, Heads
from service.api.logs import log_failure
from service.api.routes import MANY_ITEMS, Asked, InferenceRoute, written
from service.api.schemas import ClassifyBody, EmbedBody
from service.api.service import Service
from service.api.tokenizing import are_short
from service.api.underway import Underway
from service.api.wire import header_lines, ok_rest
from service.engine.item import ItemResult, ServedStudent
from service.errors import Overloaded, ServiceError
from service.metrics import UNKNOWN

SHORT_TASKS = ("classify", "embed")
# subtle: a union of types would be made anew for each request
BODIES = (ClassifyBody, EmbedBody)

# takes a status line, and what follows it: headers, an empty line, the body
Answer = Callable[[bytes, bytes], None]


class Visit:
    """A request under way; `answer` is None once it has been answered or given up. Owner: event loop."""

    __slots__ = ("answer", "arrived", "asked", "body", "exchange", "head", "underway")

    def __init__(self, head: Head, exchange: Exchange, answer: Answer, arrived: float) -> None:
        self.head = head
        self.exchange = exchange
        self.answer: Answer | None = answer
        self.arrived = arrived
        self.asked: Asked | None = None
        self.body: ClassifyBody | EmbedBody | None = None
        self.underway: Underway | None = None


class Express:
    """Takes the requests that it can answer.

    Owner: event loop.
    Invariant: a visit that was taken gets exactly one answer, unless its client leaves before, and is counted once.
    """

    def __init__(self, service: Service, conversation: Conversation, routes: Mapping[str, InferenceRoute]) -> None:
        """Answer as the long road does.

        Args:
            service: what runs.
            conversation: gives ids, and counts.
            routes: by path; those of classify and embed.
        """
        self._service = service
        self._conversation = conversation
        self._routes = routes
        self._heads = Heads(routes, max_body_bytes=service.settings.max_body_bytes)
        self.gate = Gate(service.settings, service.metrics, access=service.access, check=service.engine.check)

    def take(self, data: bytes, answer: Answer) -> Visit | None:
        """Take the request that `data` is.

        Args:
            data: all that has come on a connection on which nothing is under way.
            answer: called once, maybe before this returns.
        Returns: the visit; None: it is for the long road, and nothing has been done.
        """
        arrived = time.monotonic()
        found = self._heads.read(data)
        if found is None or self._service.door.closed:
            return None
        head, raw = found
        visit = Visit(head, Exchange(self._conversation.request_id(head.headers), head.headers), answer, arrived)
        if self.gate.closed and self._is_refused(visit, raw):
            return visit
        try:
            return visit if self._begin(visit, raw) else None
        except Exception as error:  # noqa: BLE001 - boundary: told to the caller, by name or without its words
            self._fail(visit, error)
            return visit

    def awaits(self, data: bytes) -> bool:
        """Whether `data` is the head of a request that may be taken with its body; many clients send it alone."""
        return self._heads.is_alone(data) and not self._service.door.closed

    def _begin(self, visit: Visit, raw: bytes) -> bool:
        """Whether it is on its way, or even answered. Raises: ServiceError: it has no answer."""
        service, exchange = self._service, visit.exchange
        route = self._routes[visit.head.path]
        if not service.access.open:
            exchange.caller = service.access.caller(visit.head.scope)
        exchange.endpoint, exchange.model = visit.head.path, UNKNOWN
        body = parse(raw, route.body, max_items=service.settings.max_items)
        assert isinstance(body, BODIES)
        if len(body.inputs) > MANY_ITEMS or not are_short(body.inputs):
            return False
        served = service.students.find(body.model, route.task)
        if served.manifest.apart:
            return False  # two runs one after the other
        exchange.model, exchange.version = served.name, served.version_label
        call = call_of(exchange, visit.arrived, body.deadline_ms, service.settings)
        visit.asked, visit.body = Asked(service, served, call, visit.arrived), body
        try:
            underway = visit.underway = service.begin(served, body, call=call)
        except Overloaded:
            self.gate.close(visit.head.path, body.model, partial(self._means, body.model, route))
            raise
        service.door.enter()
        if underway.request is None:
            self._end(visit, ())
        else:
            underway.request.future.add_done_callback(partial(self._ended, visit))
        return True

    def _means(self, reference: str | None, route: InferenceRoute) -> ServedStudent:
        return self._service.students.find(reference, route.task).handle

    def _is_refused(self, visit: Visit, raw: bytes) -> bool:
        """Whether the gate refuses it; then it has been answered, and counted there."""
        rest = self.gate.refusal(visit.head, raw, visit.exchange.request_id, visit.arrived)
        if rest is None or visit.answer is None:
            return False
        answer, visit.answer = visit.answer, None
        answer(STATUS_LINE[Overloaded.status], rest)
        return True

    def _ended(self, visit: Visit, future: "asyncio.Future[list[ItemResult]]") -> None:
        # subtle: an exception that nobody looks at is one more line in the log
        error = future.exception()
        if visit.answer is None:
            return
        if error is None:
            self._end(visit, future.result())
        else:
            self._fail(visit, error)

    def _end(self, visit: Visit, ran: Sequence[ItemResult]) -> None:
        assert visit.asked is not None and visit.body is not None and visit.underway is not None
        try:
            inference = self._service.ended(visit.underway, ran)
            reply = written(visit.asked, visit.body, inference)
        except Exception as error:  # noqa: BLE001 - boundary: as in `take`
            self._fail(visit, error)
            return
        visit.exchange.status = 200
        self._close(visit, STATUS_LINE[200], ok_rest(visit.exchange.request_id, reply.headers, reply.body))

    def _fail(self, visit: Visit, error: BaseException) -> None:
        scope, exchange = visit.head.scope, visit.exchange
        if not isinstance(error, ServiceError):
            log_failure("request_failed", error, request_id=exchange.request_id.decode())
        response = failure_response(scope, error)
        exchange.status = response.status_code
        headers = [*response.raw_headers, (b"x-request-id", exchange.request_id)]
        self._close(visit, STATUS_LINE[response.status_code], header_lines(headers) + b"\r\n" + bytes(response.body))

    def give_up(self, visit: Visit) -> None:
        """Its client has gone."""
        if visit.answer is None:
            return
        visit.exchange.status = CLIENT_LEFT
        self._count(visit)
        if visit.underway is not None:
            self._service.give_up(visit.underway)

    def _close(self, visit: Visit, status: bytes, rest: bytes) -> None:
        answer = visit.answer
        assert answer is not None
        self._count(visit)
        answer(status, rest)

    def _count(self, visit: Visit) -> None:
        visit.answer = None
        if visit.underway is not None:
            self._service.door.leave()
        self._conversation.counts.add(visit.head.scope, visit.exchange, time.monotonic() - visit.arrived)
