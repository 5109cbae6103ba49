"""The engine: takes requests, forms batches, runs them on slots or itself, and answers."""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from functools import partial

from service.engine.admission import Admission, Asked, Place
from service.engine.flight import Flight, as_one, group_of, job_of
from service.engine.forecast import RUN_S
from service.engine.item import ItemResult, Request, ServedStudent
from service.engine.lane import StudentLane
from service.engine.ledger import Ledger
from service.engine.limits import EngineLimits, Priority, first_moment
from service.engine.observer import EngineObserver, SilentObserver
from service.engine.policy import Batch, Plan, plan
from service.engine.queues import Entry, StageQueue
from service.engine.slot import Report, Slots, ThreadSlots, run_job
from service.errors import DeadlineExceeded, Draining, NotReady, ServiceError
from service.runtime.heads import ExitPolicy
from service.runtime.joined import Unit
from service.runtime.pipeline import Pass, Stepped

logger = logging.getLogger(__name__)

# turns of the event loop between two runs on it: bytes that have come are read, parsed and submitted in so many
YIELDS = 3
# but no longer: under a flood one turn alone may read for as long
YIELD_S = 2e-3
# a student that had less than its share lately has so much of it left, at most
CREDIT_S = 0.02
NEVER_ONWARD = 1 << 30
# while other students wait, a batch that would take longer gives the slot up after each stage
TURN_S = 2e-3


class Engine:
    """Queues, batches and answers.

    Owner: event loop. Slots' threads get a job and post reports; everything else happens here, in the loop's callbacks.
    Invariant: a free slot never idles while work waits (but in its wait window); when the engine dies, for whatever
    reason, every waiter is told.
    """

    def __init__(
        self,
        limits: EngineLimits,
        *,
        observer: EngineObserver | None = None,
        clock: Callable[[], float] = time.monotonic,
        slots: Slots | None = None,
    ) -> None:
        """Start on the running event loop.

        Args:
            limits: bounds.
            observer: told what happens.
            clock: the event loop's, in seconds, callable from any thread.
            slots: where batches run that are too long for the event loop; None: `limits.slots` threads.
        """
        self._limits = limits
        self._observer: EngineObserver = observer or SilentObserver()
        self._loop = asyncio.get_running_loop()
        # subtle: not `loop.time`: every loop counts on this clock, but uvloop reads it once an iteration only
        self._clock = clock
        self._slots: Slots = slots or ThreadSlots(limits.slots)
        self._ledger = Ledger(self._observer, clock)
        self._admission = Admission(limits, self._observer)
        self._queued: dict[StudentLane, None] = {}
        self._flights: set[Flight] = set()
        self._admitted = 0
        self._virtual = 0.0
        self._turning = False
        self._waker: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._accepting = True
        self._stopped = False

    def __repr__(self) -> str:
        phase = " stopped" if self._stopped else "" if self._accepting else " draining"
        queued = 0 if self._stopped else sum(lane.waiting for lane in self._admission.lanes.values())
        return (
            f"<Engine requests={len(self._ledger.requests)} queued={queued} in_flight={self._ledger.running} "
            f"busy_slots={len(self._flights)}{phase}>"
        )

    @property
    def healthy(self) -> bool:
        """Whether the engine works."""
        return not self._stopped

    @property
    def sick(self) -> frozenset[ServedStudent]:
        """Students of which a stage fails whatever it is given. One that answers again is well again."""
        return frozenset(student for student, lane in self._admission.lanes.items() if lane.sick)

    @property
    def silence_s(self) -> float:
        """Seconds since the slot that has been silent longest was heard of; 0 where none is busy."""
        return max((self._clock() - flight.heard for flight in self._flights), default=0.0)

    def check(self, student: ServedStudent, items: int, *, deadline: float | None = None, room: bool = True) -> None:
        """Refuse, before its texts are tokenized, what `submit` would refuse; the same errors.

        `room`: whether the items need any in the queue; not if they come with a `Place` for what they become.
        """
        now, moment = self._clock(), math.inf if deadline is None else deadline
        self._check_open(student, items)
        tokens = items * self._admission.lane(student).forecast.item_tokens
        last = moment + items * self._limits.pace_s
        self._admission.check(student, Asked(items, tokens, moment, last), now=now, room=room)

    def promise(self, student: ServedStudent, items: int, *, deadline: float | None = None) -> Place:
        """Admit items that are still to be made of others, which come first.

        The place goes with both to `begin`: the others then need no room of their own, since they are bounded by what
        they become, and the items themselves are not refused any more, as what waits between two stages is not. Who
        holds it leaves it, whatever happens. Errors are `submit`'s.
        """
        self.check(student, items, deadline=deadline)
        return Place(self._admission.lane(student), items)

    async def submit(
        self,
        student: ServedStudent,
        items: Sequence[Unit],
        *,
        policy: ExitPolicy,
        deadline: float | None = None,
        priority: Priority = "normal",
    ) -> list[ItemResult]:
        """Run a request's items and wait for all of them.

        Args:
            student: who answers.
            items: its encoded texts; an empty list gives an empty list.
            policy: when items may leave early.
            deadline: a moment on `loop.time()`'s clock; None: wait as long as it takes.
            priority: shifts how urgent the items are; it starves nobody.
        Returns: one result for each item, in order; an item's own error stands in its result.
        Raises:
            DeadlineExceeded: the deadline has passed already.
            TooLarge: more items than may ever wait.
            Overloaded: the student's queue is full, or the answer would come too late.
            Draining, NotReady: the engine takes no more work, or is dead.
        """
        if not items:
            return []
        request = self.begin(student, items, policy=policy, deadline=deadline, priority=priority)
        try:
            return await request.future
        except asyncio.CancelledError:
            self.give_up(request)
            raise

    def begin(
        self,
        student: ServedStudent,
        items: Sequence[Unit],
        *,
        policy: ExitPolicy,
        deadline: float | None = None,
        priority: Priority = "normal",
        place: Place | None = None,
    ) -> Request:
        """Admit a request of at least one item; its `future` has the results, or the engine's error if it stops.

        Args and errors are `submit`'s; `place`: of `promise`, for these items or for what they become.
        """
        now, lane = self._clock(), self._admission.lane(student)
        limit = math.inf if deadline is None else deadline
        self._check_open(student, len(items))
        moment = first_moment(now=now, deadline=limit, priority=priority, limits=self._limits)
        last = moment + len(items) * self._limits.pace_s
        asked = Asked(len(items), sum([item.kept for item in items]), limit, last)
        if place is None or place.lane is not lane:
            self._admission.check(student, asked, now=now, room=place is None)
        else:
            self._admission.check_deadline(student, asked, now=now)
            place.leave()
        request = Request(student, lane, policy, limit, now, self._loop.create_future())
        request.fill(items, moment=moment, order=self._admitted, pace_s=self._limits.pace_s)
        self._enter(request, now)
        return request

    def give_up(self, request: Request) -> None:
        """Nobody waits for a request any more: what has not ended of it ends."""
        self._ledger.end_all(request, partial(ServiceError, "the client has gone"), dropped="cancelled")
        self._wake()

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
        if not self._stopped:
            self._stop(partial(Draining, "the service stopped before this was answered"))
        self._slots.close()

    def _stop(self, why: Callable[[], ServiceError]) -> None:
        self._stopped = True
        self._wake_at(math.inf)
        self._ledger.tell_everyone(why)
        self._idle.set()

    # Admission

    def _enter(self, request: Request, now: float) -> None:
        lane = request.lane
        self._admitted += len(request.items)
        if request.deadline != math.inf:
            request.timer = self._loop.call_at(request.deadline, self._guarded, self._expire, request)
        if not lane.items:
            lane.virtual = max(lane.virtual, self._virtual - CREDIT_S)
        self._admission.took(lane, now=now)
        lane.lines[0].add(request.items)
        self._ledger.open(request)
        self._idle.clear()
        self._queued[lane] = None
        self._wake()

    def _check_open(self, student: ServedStudent, items: int) -> None:
        if self._stopped and self._accepting:
            raise NotReady("the engine has stopped")
        if not self._accepting:
            self._observer.dropped(student, "draining", items)
            raise Draining("the service is stopping")

    def _expire(self, request: Request) -> None:
        late = partial(DeadlineExceeded, "the deadline passed")
        self._ledger.end_all(request, late, dropped="deadline")
        self._wake()

    # Turns: decide, act

    def _wake(self) -> None:
        if not self._turning:
            self._turning = True
            self._loop.call_soon(self._guarded, self._turn)

    def _later(self, act: Callable[[], None], turns: int = YIELDS, until: float = math.inf) -> None:
        """Act after so many turns of the event loop, or `YIELD_S`: what has come meanwhile is submitted first."""
        now = self._clock()
        if turns and now < until:
            self._loop.call_soon(self._later, act, turns - 1, min(until, now + YIELD_S))
        else:
            self._guarded(act)

    def _guarded(self, act: Callable[..., None], *args: object) -> None:
        """Every callback runs in this; an error in one is the engine's death."""
        if self._stopped:
            return
        try:
            act(*args)
        except Exception as error:  # handed to every waiter, and to readiness
            logger.critical("the engine died", exc_info=error)
            self._stop(partial(NotReady, "the engine died"))

    def _turn(self) -> None:
        """Give every free slot a batch; one that is short runs here, after the others were handed over."""
        self._turning = False
        here: Flight | None = None
        while len(self._flights) < self._limits.slots and (flight := self._next_flight()) is not None:
            if here is None and self._is_short(flight, flight.stage, len(flight.items)):
                here = flight
            else:
                self._hand_over(flight)
        self._report_queues()
        if here is not None:
            self._advance(here)
        elif not self._ledger.requests and not self._flights:
            self._idle.set()

    def _next_flight(self) -> Flight | None:
        if not self._queued:
            return None
        now = self._clock()
        self._queued = {lane: None for lane in self._queued if lane.waiting}
        lanes, crowded = tuple(self._queued), self._admission.crowded(now)
        decided: Plan[Entry] = plan(lanes, now=now, limits=self._limits, crowded=crowded)
        flight = None if decided.batch is None else self._launch(decided.batch, now, crowded=crowded)
        for request in {item.request for entry in decided.expired for item in entry.members}:
            self._expire(request)
        for look in decided.looks:
            assert isinstance(look.line, StageQueue)
            look.line.clear(look.entries)
        if flight is not None:
            flight.job.onward = self._onward(flight, crowded)
        self._wake_at(decided.wake)
        return flight

    def _work_waits(self) -> bool:
        return any(lane.waiting for lane in self._queued)

    def _wake_at(self, moment: float) -> None:
        if self._waker is not None:
            self._waker.cancel()
        self._waker = None if moment == math.inf else self._loop.call_at(moment, self._wake)

    def _report_queues(self) -> None:
        for line, request in self._ledger.changed.items():
            line.sweep()
            stage = request.student.student.pipeline.stages[line.stage].id
            self._observer.queue_items(request.student, stage, line.items)
        self._ledger.changed.clear()

    def _launch(self, batch: Batch[Entry], now: float, *, crowded: bool) -> Flight:
        line, entries = batch.line, batch.entries
        assert isinstance(line, StageQueue)
        together = as_one(entries, longest_s=self._limits.batch_s, turn_s=TURN_S if crowded else None)
        entries = together or entries
        line.left(entries)
        job, items = job_of(entries, whole=bool(together))
        flight = Flight(items, job, run_job(job, clock=self._clock), line.stage, now)
        self._ledger.start(items, line)
        if line.stage == 0:
            for item in items:
                item.started = now
            self._observer.queued(flight.student, [now - item.since for item in items])
        self._virtual = flight.lane.virtual
        flight.lane.virtual += self._predicted(flight, line.stage, len(items))
        self._flights.add(flight)
        return flight

    def _predicted(self, flight: Flight, stage: int, items: int) -> float:
        """Seconds of its next run."""
        forecast = flight.lane.forecast
        if flight.whole:
            return forecast.through(items, flight.longest)
        return forecast.seconds(stage, items, flight.longest)

    def _onward(self, flight: Flight, crowded: bool) -> Sequence[int]:
        """For each stage, how many survivors run straight on to it at least."""
        lane, longest, most = flight.lane, flight.longest, len(flight.items)
        if crowded and lane.lines[flight.stage].outlook.ahead.seconds(most, longest) > TURN_S:
            # the others have their turn between two stages
            return (NEVER_ONWARD,) * len(lane.lines)
        if not self._limits.rebatch or not lane.waiting:
            return (1,) * len(lane.lines)
        return lane.onward(flight.stage, items=most, longest=longest)

    # Runs, here and on slots

    def _is_short(self, flight: Flight, stage: int, items: int) -> bool:
        """Whether the event loop may do its next run itself."""
        return flight.lane.forecast.measured and self._predicted(flight, stage, items) <= self._limits.inline_limit_s

    def _advance(self, flight: Flight) -> None:
        """Run here, as many stages as the event loop may be kept for."""
        began = self._clock()
        while True:
            try:
                report = next(flight.reports)
            except BaseException as error:  # noqa: BLE001 - handed to the batch's waiters
                self._abort(flight, error)
                return
            self._take(flight, report)
            if not report.going:
                return
            if not self._is_short(flight, report.stage, report.going):
                self._hand_over(flight)
                return
            next_s = self._predicted(flight, report.stage, report.going)
            if self._clock() - began + next_s > self._limits.inline_limit_s:
                self._later(partial(self._advance, flight))
                return

    def _hand_over(self, flight: Flight) -> None:
        flight.on_slot = True
        self._slots.start(flight.reports, partial(self._post, flight))

    def _post(self, flight: Flight, report: Report | None, error: BaseException | None) -> None:
        """Called in slots' threads: the only way from them into the engine."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            if report is not None:
                self._loop.call_soon_threadsafe(self._guarded, self._take, flight, report)
            else:
                self._loop.call_soon_threadsafe(self._guarded, self._abort, flight, error)

    def _take(self, flight: Flight, report: Report) -> None:
        """Answer the items of a report, queue the survivors it hands back; after the last one the slot is free."""
        now = flight.heard = self._clock()
        lane = flight.lane
        if report.stepped is not None:
            self._note_run(flight, report.stepped, now)
        if report.failed_at is not None:
            lane.failed(report.failed_at, flight.items[report.rows[0]].encoded.fingerprint)
        if report.rows:
            self._ledger.answer([flight.items[row] for row in report.rows], report.results, now)
        if report.back is not None:
            self._put_back(flight, report.back, now)
        if not report.going:
            self._finish(flight)

    def _note_run(self, flight: Flight, stepped: Stepped, now: float) -> None:
        lane, items, longest = flight.lane, len(stepped.rows), stepped.longest
        lane.succeeded(stepped.stage)
        if stepped.stage != flight.stage:
            lane.virtual += lane.forecast.seconds(stepped.stage, items, longest)
        if flight.whole:
            lane.forecast.ran_through(items=items, longest=longest, seconds=stepped.run_s)
        else:
            stayed = items - stepped.leaving
            lane.forecast.ran(stepped.stage, items=items, longest=longest, stayed=stayed, seconds=stepped.run_s)
        self._admission.stretch.note(now, busy_s=stepped.run_s + RUN_S, waiting=self._work_waits())
        self._observer.batch(
            flight.student,
            flight.job.runner.pipeline.stages[stepped.stage].id,
            items=items,
            padded_tokens=stepped.padded_tokens,
            real_tokens=stepped.real_tokens,
            seconds=stepped.run_s,
        )

    def _put_back(self, flight: Flight, going: Pass, now: float) -> None:
        """Survivors wait for company, those given up meanwhile left out."""
        group = group_of([flight.items[row] for row in going.rows.tolist()], going, now)
        if group is None:
            return
        line = flight.lane.lines[going.stage]
        self._ledger.wait(group.members, line)
        flight.back.update(group.members)
        line.add((group,))
        self._queued[flight.lane] = None

    def _abort(self, flight: Flight, error: BaseException) -> None:
        """What the run left unanswered fails."""
        self._ledger.fail([item for item in flight.items if item not in flight.back], error)
        self._finish(flight)

    def _finish(self, flight: Flight) -> None:
        """Free the slot. While the event loop ran the batch itself it read nothing; that comes before the next turn."""
        self._flights.discard(flight)
        if flight.on_slot or not self._work_waits():
            self._wake()
        elif not self._turning:
            self._turning = True
            self._later(self._turn)
