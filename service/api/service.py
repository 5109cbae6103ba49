"""One app's working parts: the students, the engine, the tokenizing threads; how they start, answer and stop."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from functools import partial
from operator import attrgetter
from typing import TypeVar

from service.api.access import Access
from service.api.answers import Answered, answered
from service.api.call import Call as Call
from service.api.call import call_of as call_of
from service.api.charging import Bill, allow, charge, charge_expected
from service.api.door import Door
from service.api.joining import Halves, run_joined
from service.api.loading import Served, loader
from service.api.logs import log_event, log_failure
from service.api.loop_lag import LoopLag
from service.api.observer import Observer
from service.api.passages import PassageCache
from service.api.problems import wrong_field
from service.api.schemas import Body, EmbedBody
from service.api.students import Students
from service.api.tokenizing import Tokenizing, Work, are_short, encode, refuse_whole
from service.api.underway import Inference, Underway, inference_of
from service.engine.engine import Engine
from service.engine.item import ItemResult, ServedStudent
from service.engine.policy import EngineLimits
from service.errors import DeadlineExceeded, Overloaded, ServiceError, TooLarge
from service.metrics import Metrics
from service.runtime.encode import Encoded, Text, Truncate
from service.runtime.heads import ExitPolicy
from service.runtime.joined import Unit
from service.runtime.student import Outcome
from service.settings import Settings
from service.store.store import Store

# after the drain timeout, for writing the errors of what was not finished
LAST_WORDS_S = 1.0
# a silent slot is given up after so long, and after so many times the longest run that is planned
STALLED_S, STALLED_RUNS = 60.0, 10

_OUTCOME: Callable[[ItemResult], Outcome | ServiceError] = attrgetter("outcome")

E = TypeVar("E")


class Service:
    """What one app runs on.

    Owner: event loop.
    Invariant: every request that was let in is answered before `running` is left.
    """

    def __init__(self, settings: Settings, metrics: Metrics, access: Access) -> None:
        self.settings = settings
        self.metrics = metrics
        self.access = access
        store = Store(settings.store)
        self.passages = PassageCache(settings.passage_cache_mb << 20, metrics)
        self.students = Students(
            store,
            load=loader(store, settings),
            metrics=metrics,
            required=settings.required,
            retired=lambda served: self.passages.drop(served.handle),
        )
        self._observer = Observer(metrics, on_failed=self._on_failed)
        self.engine = Engine(_limits(settings), observer=self._observer)
        self.tokenizing = Tokenizing(threads=settings.slots, max_items=settings.max_queue_items)
        self.door = Door(settings, metrics)
        self.draining = False
        self._failed = False
        self._drain: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"Service(draining={self.draining}, {self.door!r}, {self.students!r}, {self.engine!r})"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start following the store; on leaving, drain and close."""
        following = asyncio.create_task(self._follow())
        lag = LoopLag(self.metrics.loop_lag_seconds)
        try:
            yield
        finally:
            await self.drain()
            lag.close()
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            self.tokenizing.close()

    async def _follow(self) -> None:
        try:
            await self.students.follow()
        except Exception as error:  # noqa: BLE001 - task boundary: served on, and told by the probes
            self._failed = True
            log_failure("following_failed", error)

    @property
    def ready(self) -> bool:
        """Whether new requests should be sent here."""
        return self.students.ready and self.live and not self.draining and not self.sick

    @property
    def live(self) -> bool:
        """Whether this process can still do its work; while it stops, it can."""
        return self.draining or (self.engine.healthy and not self._failed and not self.stalled)

    @property
    def stalled(self) -> bool:
        """Whether a slot has been silent for far longer than any run takes; its thread cannot be stopped."""
        return self.engine.silence_s > max(STALLED_S, STALLED_RUNS * self.settings.batch_ms / 1e3)

    @property
    def sick(self) -> list[str]:
        """The students in service whose graphs fail whatever they are given."""
        sick = self.engine.sick
        families = self.students.families.items() if sick else ()
        return sorted(
            name
            for name, family in families
            if any(not sick.isdisjoint(one.handles) for one in family.versions.values())
        )

    def _on_failed(self, handle: ServedStudent) -> None:
        if handle in self.engine.sick:
            # subtle: not in the engine's own turn, which an error here would end
            asyncio.get_running_loop().call_soon(self._take_out, handle)

    def _take_out(self, handle: ServedStudent) -> None:
        """Stop serving a student whose backend seems to have died; it is loaded and proved anew."""
        family = self.students.families.get(handle.name)
        served = None if family is None else family.versions.get(handle.version)
        if served is not None and handle in served.handles:
            detail = "a graph failed on many inputs in a row, whatever they were"
            self.students.take_out(handle.name, handle.version, detail=detail)

    async def drain(self) -> None:
        """Not ready; after the delay refuse what is new; let what is under way finish in time; fail the rest.

        May be called again: it waits for the same drain.
        """
        if self._drain is None:
            self.draining = True
            if not self.settings.drain_delay_s:
                self.door.close()
            self._drain = asyncio.create_task(self._stop())
        await asyncio.shield(self._drain)

    async def _stop(self) -> None:
        settings, door = self.settings, self.door
        log_event(logging.INFO, "draining", inflight=door.inside, timeout_s=settings.drain_timeout_s)
        if not door.closed:
            await asyncio.sleep(settings.drain_delay_s)
            door.close()
        await door.empty(settings.drain_timeout_s)
        door.give_up_reading()
        await self.engine.close()
        await door.empty(LAST_WORDS_S)
        log_event(logging.INFO, "drained", unanswered=door.inside)

    async def infer(self, served: Served, body: Body, *, call: Call) -> Inference:
        """Tokenize, run and collect.

        Args:
            served: the student version.
            body: the checked request.
            call: who asks, until when, how urgently.
        Raises:
            InvalidInput: pairs for a student of single texts or the reverse; a text too long, where the request says
                so and wants to fail as a whole.
            TooLarge: more tokens than one request may have.
            Forbidden, QuotaExceeded: the caller may not have so much.
            Overloaded, Draining, DeadlineExceeded: the engine does not take the items.
        """
        if are_short(body.inputs) and not served.manifest.apart:
            return await self._wait(self.begin(served, body, call=call))
        _check_inputs(served, body)
        began = time.monotonic()
        work = partial(encode, served.student.encoder, self.truncation(body))
        encoded = await self.tokenize(served, body.inputs, work, call=call)
        policy, tokenize_s = self._policy(served, body, encoded), time.monotonic() - began
        if not served.manifest.apart:
            return await self.run(served, encoded, policy=policy, call=call, tokenize_s=tokenize_s)
        billed = [pair.billed for pair in encoded if isinstance(pair, Encoded)]
        with self.halves(served, billed, policy=policy, call=call) as halves:
            return await run_joined(halves, encoded, aside=self.tokenizing.by_size, tokenize_s=tokenize_s)

    def begin(self, served: Served, body: Body, *, call: Call) -> Underway:
        """Tokenize short texts and hand them to the engine. Args and errors are `infer`'s."""
        _check_inputs(served, body)
        began = time.monotonic()
        self._admit(served, len(body.inputs), call)
        encoded = encode(served.student.encoder, self.truncation(body), body.inputs, 0)
        policy = self._policy(served, body, encoded)
        return self._begin(served, encoded, policy=policy, call=call, tokenize_s=time.monotonic() - began)

    def _policy(self, served: Served, body: Body, encoded: Sequence[Encoded | ServiceError]) -> ExitPolicy:
        """When the items may leave. Raises: InvalidInput: some are too long, and the request wants to fail whole."""
        truncate = self.truncation(body)
        if truncate == "error" and body.on_error == "fail":
            refuse_whole(encoded)
        policy = served.student.policy(body.exit)
        if truncate == "start" and any(item.truncated for item in encoded if isinstance(item, Encoded)):
            # certificates are about texts that lost their end, if anything
            return replace(served.student.policy("never"), risk_requested=policy.risk_requested)
        return policy

    def truncation(self, body: Body) -> Truncate:
        """What is done with texts that are too long."""
        return body.truncate or self.settings.default_truncate

    async def tokenize(
        self, served: Served, texts: Sequence[Text], work: Work[E], *, call: Call, items: int | None = None
    ) -> list[E]:
        """Do what is slow about texts, unless they would be refused afterwards anyway.

        Args:
            served: the student version.
            texts: all of the request's, or some.
            work: what to do with a portion and the place of its first text: one result for each.
            call: who asks, until when.
            items: how many are to be run of them; None: each.
        Raises:
            Forbidden, QuotaExceeded: the caller may not ask now.
            Overloaded, Draining, DeadlineExceeded, TooLarge: the engine would not take them, or too much waits here.
        """
        self._admit(served, len(texts) if items is None else items, call)
        if are_short(texts):
            return list(work(texts, 0))
        try:
            async with asyncio.timeout_at(call.deadline):
                return await self.tokenizing.in_thread(texts, work)
        except TimeoutError:
            self._observer.dropped(served.handle, "deadline", len(texts))
            raise DeadlineExceeded("the deadline passed before the inputs were tokenized") from None
        except Overloaded:
            self._observer.dropped(served.handle, "overloaded", len(texts))
            raise

    async def run(
        self,
        served: Served,
        encoded: Sequence[Unit | ServiceError],
        *,
        policy: ExitPolicy,
        call: Call,
        tokenize_s: float = 0.0,
    ) -> Inference:
        """Run what was tokenized; what could not be keeps its error.

        Args:
            served: the student version.
            encoded: each item, or why it is not run.
            policy: when items may leave early.
            call: who asks, until when, how urgently.
            tokenize_s: what tokenizing took, for the record.
        Raises:
            TooLarge: more tokens than one request may have.
            Forbidden, QuotaExceeded: the caller may not have so much.
            Overloaded, Draining, DeadlineExceeded: the engine does not take the items.
        """
        return await self._wait(self._begin(served, encoded, policy=policy, call=call, tokenize_s=tokenize_s))

    def halves(self, served: Served, billed: Sequence[int], *, policy: ExitPolicy, call: Call) -> Halves:
        """Let a request in whose texts are read apart.

        Args:
            served: a student that joins two texts.
            billed: of each pair its tokens.
            policy: when pairs may leave early.
            call: who asks, until when, how urgently.
        Raises: as `run`.
        """
        bill = Bill(served, policy, call, len(billed), sum(billed))
        self._allow(bill)
        return Halves(self.engine, self.access, bill)

    def _admit(self, served: Served, items: int, call: Call) -> None:
        """Raises: Forbidden, QuotaExceeded, Overloaded, Draining, DeadlineExceeded, TooLarge: as `tokenize`."""
        self.access.admit(call.caller, model=served.name)
        self.engine.check(served.handle, items, deadline=call.deadline)
        if served.reading is not None:
            self.engine.check(served.reading, items, deadline=call.deadline, room=False)

    def _begin(
        self,
        served: Served,
        encoded: Sequence[Unit | ServiceError],
        *,
        policy: ExitPolicy,
        call: Call,
        tokenize_s: float,
    ) -> Underway:
        good = [item for item in encoded if not isinstance(item, ServiceError)]
        bill = Bill(served, policy, call, len(good), sum([item.billed for item in good]))
        self._allow(bill)
        request = (
            self.engine.begin(served.handle, good, policy=policy, deadline=call.deadline, priority=call.priority)
            if good
            else None
        )
        return Underway(bill, encoded, good, tokenize_s, request)

    async def _wait(self, underway: Underway) -> Inference:
        if underway.request is None:
            return self.ended(underway, [])
        try:
            return self.ended(underway, await underway.request.future)
        except asyncio.CancelledError:
            self.give_up(underway)
            raise

    def give_up(self, underway: Underway) -> None:
        """Its client has gone."""
        if underway.request is not None:
            self.engine.give_up(underway.request)
        charge_expected(self.access, underway.bill)

    def ended(self, underway: Underway, ran: Sequence[ItemResult]) -> Inference:
        """What came of a request, whose items ended so."""
        if not self.access.open:
            charge(self.access, underway.bill, zip(underway.good, ran, strict=True))
        items = _answered(underway, ran)
        return inference_of(items, ran, policy=underway.bill.policy, tokenize_s=underway.tokenize_s)

    def _allow(self, bill: Bill) -> None:
        """Raises: TooLarge: more tokens than one request may have. Forbidden, QuotaExceeded: as `run`."""
        if bill.tokens > self.settings.max_request_tokens:
            raise TooLarge(f"{bill.tokens} tokens; one request may have {self.settings.max_request_tokens}")
        if not self.access.open:
            allow(self.access, bill)


def _limits(settings: Settings) -> EngineLimits:
    return EngineLimits(
        max_queue_items=settings.max_queue_items,
        token_budget=settings.token_budget,
        slots=settings.slots,
        batch_s=settings.batch_ms / 1e3,
        window_s=settings.window_ms / 1e3,
        rebatch=settings.rebatch,
    )


def _answered(underway: Underway, ran: Sequence[ItemResult]) -> list[Answered]:
    assert len(ran) == len(underway.good), "each item that was run has ended"
    outcomes = map(_OUTCOME, ran)
    return [
        answered((None, item))
        if isinstance(item, ServiceError)
        else answered((item if isinstance(item, Encoded) else None, next(outcomes)))
        for item in underway.encoded
    ]


def _check_inputs(served: Served, body: Body) -> None:
    """Raises: InvalidInput: pairs for a student of single texts or the reverse; more dimensions than there are."""
    manifest = served.student.manifest
    pairs, paired = manifest.pairs != "none", not isinstance(body.inputs[0], str)
    if paired and not pairs:
        raise wrong_field("/inputs/0", f"student {served.name!r} takes single texts, not pairs")
    if pairs and not paired:
        raise wrong_field("/inputs/0", f"student {served.name!r} takes pairs of texts")
    own = manifest.embedding_dimensions
    if isinstance(body, EmbedBody) and body.dimensions is not None and own is not None and body.dimensions > own:
        raise wrong_field("/dimensions", f"student {served.name!r} has {own}")
