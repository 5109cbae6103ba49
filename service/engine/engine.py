"""The engine: takes requests, runs their items in batches on slots, and gives every item exactly one end."""

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from service.engine.item import Item, ItemResult, Request, ServedStudent, State
from service.engine.observer import Dropped, EngineObserver, SilentObserver
from service.engine.policy import Batch, EngineLimits, QueueKey, plan, urgencies
from service.engine.queues import Queues
from service.engine.slot import Job, Report, run_job
from service.errors import DeadlineExceeded, Draining, NotReady, Overloaded, RunFailed, ServiceError, TooLarge
from service.runtime.encode import Encoded
from service.runtime.heads import ExitPolicy
from service.runtime.student import Outcome

logger = logging.getLogger(__name__)

RETRY_UNMEASURED_S = 1.0
RETRY_BOUNDS_S = (0.05, 60.0)
THROUGHPUT_MEMORY = 0.9


@dataclass(slots=True, eq=False)
class _Running:
    """A batch on a slot."""

    batch: Batch[Item]
    started: float


class Engine:
    """Queues, batches and answers.

    Owner: event loop. Slots' threads get a `Job` and post reports; everything else happens in this object's one task.
    Invariant: an admitted item is waiting, running or ended, and moves only forward; a request is answered when its
    last item ends; when the task ends, for whatever reason, every waiter is told.
    """

    def __init__(
        self,
        limits: EngineLimits,
        *,
        observer: EngineObserver | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the engine's task on the running event loop.

        Args:
            limits: bounds; `limits.slots` threads are started when first needed.
            observer: told what happens.
            clock: the event loop's, in seconds, callable from any thread.
        """
        self._limits = limits
        self._observer: EngineObserver = observer or SilentObserver()
        self._loop = asyncio.get_running_loop()
        # subtle: not `loop.time`: every loop counts on this clock, but uvloop reads it once an iteration only
        self._clock = clock
        self._slots = ThreadPoolExecutor(limits.slots, thread_name_prefix="slot")
        self._queues = Queues()
        self._requests: set[Request] = set()
        self._busy_slots = 0
        self._in_flight = 0
        self._admitted = 0
        self._item_s = 0.0
        self._changed: set[QueueKey] = set()
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._accepting = True
        self._stopped = False
        self._task = self._loop.create_task(self._own(), name="engine")

    def __repr__(self) -> str:
        phase = " stopped" if self._stopped else "" if self._accepting else " draining"
        return (
            f"<Engine requests={len(self._requests)} queued={self._queues.items} in_flight={self._in_flight} "
            f"busy_slots={self._busy_slots}{phase}>"
        )

    @property
    def healthy(self) -> bool:
        """Whether the engine's task is alive."""
        return not self._stopped

    async def submit(
        self,
        student: ServedStudent,
        items: Sequence[Encoded],
        *,
        policy: ExitPolicy,
        deadline: float | None = None,
    ) -> list[ItemResult]:
        """Run a request's items and wait for all of them.

        Args:
            student: who answers.
            items: its encoded texts; an empty list gives an empty list.
            policy: when items may leave early.
            deadline: a moment on `loop.time()`'s clock; None: wait as long as it takes.
        Returns: one result for each item, in order; an item's own error stands in its result.
        Raises:
            DeadlineExceeded: the deadline has passed already.
            TooLarge: more items than may ever wait.
            Overloaded: the queue is full.
            Draining, NotReady: the engine takes no more work, or is dead.
        """
        if not items:
            return []
        request = self._admit(student, items, policy, math.inf if deadline is None else deadline)
        try:
            return await request.future
        except asyncio.CancelledError:
            self._end_all(request, partial(ServiceError, "the client has gone"), dropped="cancelled")
            raise

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new work and wait for what was admitted, and for the slots. Returns: whether all ended in time."""
        self._accepting = False
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Refuse new work, fail what is left, let the slots go. A graph that runs still runs to its end, unheard."""
        self._accepting = False
        self._task.cancel()
        await asyncio.wait([self._task])
        self._slots.shutdown(wait=False, cancel_futures=True)

    # Admission

    def _admit(self, student: ServedStudent, items: Sequence[Encoded], policy: ExitPolicy, deadline: float) -> Request:
        now = self._clock()
        self._refuse(student, len(items), deadline, now)
        key = QueueKey(student, 0)
        request = Request(student, policy, deadline, now, self._loop.create_future())
        moments = urgencies(len(items), order=self._admitted, now=now, deadline=deadline, limits=self._limits)
        request.items = [Item(request, i, encoded, key, moments[i]) for i, encoded in enumerate(items)]
        request.results = [None] * len(items)
        request.pending = len(items)
        if math.isfinite(deadline):
            request.timer = self._loop.call_at(deadline, self._post, partial(self._expire, request))
        self._admitted += len(items)
        self._requests.add(request)
        self._idle.clear()
        self._queues.add(key, request.items)
        self._changed.add(key)
        self._wake.set()
        return request

    def _refuse(self, student: ServedStudent, items: int, deadline: float, now: float) -> None:
        if self._stopped and self._accepting:
            raise NotReady("the engine has stopped")
        if not self._accepting:
            self._observer.dropped(student, "draining", items)
            raise Draining("the service is stopping")
        if items > self._limits.max_queue_items:
            raise TooLarge(f"{items} items, more than the {self._limits.max_queue_items} that may wait")
        if deadline <= now:
            self._observer.dropped(student, "deadline", items)
            raise DeadlineExceeded("the deadline passed before the request was admitted")
        if self._queues.items + items > self._limits.max_queue_items:
            self._observer.dropped(student, "overloaded", items)
            raise Overloaded("too many items are waiting", retry_after_s=self._retry_after_s())

    def _retry_after_s(self) -> float:
        """When the items that wait now should be done, from the measured throughput."""
        if not self._item_s:
            return RETRY_UNMEASURED_S
        low, high = RETRY_BOUNDS_S
        return min(max(self._queues.items * self._item_s / self._limits.slots, low), high)

    # The owner

    async def _own(self) -> None:
        why: Callable[[], ServiceError] = partial(Draining, "the service stopped before this was answered")
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                self._turn()
        except Exception as error:  # handed to every waiter, and to readiness
            logger.critical("the engine died", exc_info=error)
            why = partial(NotReady, "the engine died")
        finally:
            self._tell_everyone(why)

    def _tell_everyone(self, why: Callable[[], ServiceError]) -> None:
        """The end: fail every request as a whole. Relies on nothing that may have broken."""
        self._stopped = True
        for request in self._requests:
            request.items = []
            if request.timer is not None:
                request.timer.cancel()
            if not request.future.done():
                request.future.set_exception(why())
        self._requests, self._queues, self._in_flight = set(), Queues(), 0
        self._idle.set()

    def _turn(self) -> None:
        """Take in what happened, decide, act."""
        while self._inbox:
            self._inbox.popleft()()
        idle = self._limits.slots - self._busy_slots
        decided = plan(self._queues.waiting, now=self._clock(), limits=self._limits, idle_slots=idle)
        for item in decided.expired:
            self._expire(item.request)
        for batch in decided.batches:
            self._start(batch)
        self._queues.clear(decided.looked)
        self._queues.sweep()
        self._report_queues()

    def _report_queues(self) -> None:
        for key in self._changed:
            student = key.student
            assert isinstance(student, ServedStudent)
            stage = student.student.pipeline.stages[key.stage].id
            self._observer.queue_items(student, stage, self._queues.count(key))
        self._changed.clear()

    def _start(self, batch: Batch[Item]) -> None:
        running = _Running(batch, self._clock())
        for item in batch.items:
            item.state, item.started = State.RUNNING, running.started
            self._queues.left(item.key)
            self._observer.queued(item.request.student, running.started - item.request.admitted)
        self._changed.add(batch.key)
        self._in_flight += len(batch.items)
        self._busy_slots += 1
        job = Job(
            runner=batch.items[0].request.student.student,
            items=tuple(item.encoded for item in batch.items),
            policies=tuple(item.request.policy for item in batch.items),
            deadlines=np.array([item.deadline for item in batch.items]),
        )
        report = partial(self._post_from_slot, running)
        self._slots.submit(run_job, job, clock=self._clock, report=report).add_done_callback(
            partial(self._done_in_slot, running)
        )

    # Posts: the only way into the task. The first two are called in slots' threads

    def _post_from_slot(self, running: _Running, report: Report) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._post, partial(self._take, running, report))

    def _done_in_slot(self, running: _Running, done: "Future[None]") -> None:
        error = None if done.cancelled() else done.exception()
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._post, partial(self._finish, running, error))

    def _post(self, happened: Callable[[], None]) -> None:
        self._inbox.append(happened)
        self._wake.set()

    # What happens

    def _take(self, running: _Running, report: Report) -> None:
        """Answer the items of a report."""
        student = running.batch.items[0].request.student
        if report.stepped is not None:
            stepped = report.stepped
            self._observer.batch(
                student,
                student.student.pipeline.stages[stepped.stage].id,
                items=len(stepped.rows),
                padded_tokens=stepped.padded_tokens,
                real_tokens=stepped.real_tokens,
                seconds=stepped.run_s,
            )
        for answer in report.answers:
            self._answer(running.batch.items[answer.row], answer.result)

    def _answer(self, item: Item, result: Outcome | ServiceError) -> None:
        """Give a running item its result, unless it was given up meanwhile."""
        if item.ended:
            return
        student = item.request.student
        if isinstance(result, Outcome):
            leave = student.student.pipeline.exits[result.exit_index]
            self._observer.exit(student, leave.id, leave.depth)
        elif isinstance(result, DeadlineExceeded):
            self._observer.dropped(student, "deadline", 1)
        else:
            logger.error("an item of %s@%d failed", student.name, student.version, exc_info=result)
            self._observer.failed(student)
        self._end(item, result)

    def _finish(self, running: _Running, error: BaseException | None) -> None:
        """Free the slot; whatever its thread left unanswered fails."""
        self._busy_slots -= 1
        items = running.batch.items
        spent = (self._clock() - running.started) / len(items)
        self._item_s = spent if not self._item_s else THROUGHPUT_MEMORY * self._item_s + (1 - THROUGHPUT_MEMORY) * spent
        for item in items:
            if not item.ended:
                failed = RunFailed("the batch could not be run")
                failed.__cause__ = error
                self._answer(item, failed)

        self._note_idle()

    def _note_idle(self) -> None:
        if not self._requests and not self._busy_slots:
            self._idle.set()

    def _expire(self, request: Request) -> None:
        self._end_all(request, partial(DeadlineExceeded, "the deadline passed"), dropped="deadline")

    def _end_all(self, request: Request, error: Callable[[], ServiceError], *, dropped: Dropped) -> None:
        """End every item of a request that has not ended."""
        left = [item for item in request.items if not item.ended]
        for item in left:
            self._end(item, error())
        if left:
            self._observer.dropped(request.student, dropped, len(left))
            self._wake.set()

    def _end(self, item: Item, result: Outcome | ServiceError) -> None:
        """The one place where an item ends."""
        now, request = self._clock(), item.request
        if item.state is State.WAITING:
            item.started = now
            self._queues.left(item.key)
            self._changed.add(item.key)
        else:
            self._in_flight -= 1
        item.state = State.ENDED
        request.results[item.index] = ItemResult(result, item.started - request.admitted, now - item.started)
        request.pending -= 1
        if not request.pending:
            self._close_request(request)

    def _close_request(self, request: Request) -> None:
        self._requests.discard(request)
        request.items = []  # breaks the cycle, so that a request is freed without the garbage collector
        if request.timer is not None:
            request.timer.cancel()
        self._note_idle()
        if not request.future.done():
            request.future.set_result([result for result in request.results if result is not None])
