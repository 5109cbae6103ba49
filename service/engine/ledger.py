"""The requests under way, and how their items end: each exactly once."""

import logging
from collections.abc import Callable, Sequence

from service.engine.item import Item, Request, item_result
from service.engine.observer import Dropped, EngineObserver
from service.engine.queues import StageQueue
from service.errors import DeadlineExceeded, RunFailed, ServiceError
from service.runtime.plan import StateExit
from service.runtime.student import Outcome

logger = logging.getLogger(__name__)


class Ledger:
    """Owner: event loop.

    Invariant: an item is waiting, running or ended; a request is answered, and forgotten, when its last item ends.

    Attributes:
        requests: those under way.
        running: how many items run.
        changed: the queues that were counted anew since this was last emptied, each with its student.
    """

    def __init__(self, observer: EngineObserver, clock: Callable[[], float]) -> None:
        self.requests: set[Request] = set()
        self.running = 0
        self.changed: dict[StageQueue, Request] = {}
        self._observer = observer
        self._clock = clock

    def open(self, request: Request) -> None:
        """A request was admitted; its items wait."""
        lane = request.lane
        self.requests.add(request)
        lane.items += len(request.items)
        lane.tokens += sum([item.tokens for item in request.items])
        self.changed[lane.lines[0]] = request

    def start(self, items: Sequence[Item], line: StageQueue) -> None:
        """Items of one queue run from now on."""
        request = items[0].request
        self.running += len(items)
        request.lane.running += len(items)
        for item in items:
            item.waits = False
        self.changed[line] = request

    def wait(self, items: Sequence[Item], line: StageQueue) -> None:
        """Running items wait again."""
        request = items[0].request
        self.running -= len(items)
        request.lane.running -= len(items)
        for item in items:
            item.waits, item.queue = True, line
        self.changed[line] = request

    def answer(self, items: Sequence[Item], results: Sequence[Outcome | ServiceError], now: float) -> None:
        """Give running items of one student their results; those given up meanwhile are passed over."""
        first = items[0].request
        student, lane = first.student, first.lane
        exits: dict[int, int] = {}
        failures: list[ServiceError] = []
        ended = tokens = answered_tokens = 0
        end = self._end
        for item, result in zip(items, results, strict=True):
            if item.ended:
                continue
            ended += 1
            tokens += item.tokens
            if isinstance(result, Outcome):
                exit_index = result.exit_index
                exits[exit_index] = exits.get(exit_index, 0) + 1
                answered_tokens += item.tokens
            else:
                failures.append(result)
            end(item, result, now)
        lane.items -= ended
        lane.tokens -= tokens
        lane.running -= ended
        self.running -= ended
        for exit_index, count in exits.items():
            leave = student.student.pipeline.exits[exit_index]
            if isinstance(leave, StateExit):
                continue  # a text that was read is no answer
            self._observer.exit(student, leave.id, leave.depth, count)
        if exits:
            lane.forecast.ended(sum(exits.values()), answered_tokens)
        if failures:
            self._tell_failures(first, failures)

    def _tell_failures(self, request: Request, failures: Sequence[ServiceError]) -> None:
        student = request.student
        late = sum(isinstance(failure, DeadlineExceeded) for failure in failures)
        if late:
            self._observer.dropped(student, "deadline", late)
        broken = [failure for failure in failures if not isinstance(failure, DeadlineExceeded)]
        for _ in broken:
            self._observer.failed(student)
        if broken:
            logger.error("%d items of %s@%d failed", len(broken), student.name, student.version, exc_info=broken[0])

    def fail(self, items: Sequence[Item], error: BaseException) -> None:
        """Running items cannot be run."""
        living = [item for item in items if not item.ended]
        failures: list[ServiceError] = []
        for _ in living:
            failed = RunFailed("the batch could not be run")
            failed.__cause__ = error
            failures.append(failed)
        if living:
            self.answer(living, failures, self._clock())

    def end_all(self, request: Request, error: Callable[[], ServiceError], *, dropped: Dropped) -> None:
        """End every item of a request that has not ended."""
        now, lane = self._clock(), request.lane
        left = [item for item in request.items if not item.ended]
        for item in left:
            lane.items -= 1
            lane.tokens -= item.tokens
            if item.waits:
                item.queue.ended(item)
                self.changed[item.queue] = request
            else:
                lane.running -= 1
                self.running -= 1
            self._end(item, error(), now)
        if left:
            self._observer.dropped(request.student, dropped, len(left))

    def _end(self, item: Item, result: Outcome | ServiceError, now: float) -> None:
        """The one place where an item ends. Who calls counts it out."""
        request, started = item.request, item.started
        item.waits, item.ended = False, True
        if started is None:
            started = now
        request.results[item.index] = item_result((result, started - request.admitted, now - started))
        request.pending -= 1
        if not request.pending:
            self._close(request)

    def _close(self, request: Request) -> None:
        self.requests.discard(request)
        request.items = []  # breaks the cycle, so that a request is freed without the garbage collector
        if request.timer is not None:
            request.timer.cancel()
        if not request.future.done():
            request.future.set_result([result for result in request.results if result is not None])

    def tell_everyone(self, why: Callable[[], ServiceError]) -> None:
        """Fail every request as a whole. Relies on nothing that may have broken."""
        for request in self.requests:
            request.items = []
            if request.timer is not None:
                request.timer.cancel()
            if not request.future.done():
                request.future.set_exception(why())
        self.requests, self.running = set(), 0
