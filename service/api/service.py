"""One app's working parts: the students, the engine, the tokenizing threads; how they start, answer and stop."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from service.api.answers import Answered
from service.api.loading import Served, loader
from service.api.logs import log_event, log_failure
from service.api.observer import Observer
from service.api.problems import told, wrong_field
from service.api.schemas import Body
from service.api.students import Students
from service.engine.engine import Engine
from service.engine.policy import EngineLimits
from service.errors import DeadlineExceeded, Draining, InvalidInput, Overloaded, ServiceError
from service.metrics import Metrics
from service.runtime.encode import TOO_LONG, Encoded, Encoder, Text, Truncate, too_long
from service.runtime.heads import ExitPolicy
from service.runtime.session import backend_for
from service.settings import Settings
from service.store.store import Store

# after the drain timeout, for writing the errors of what was not finished
LAST_WORDS_S = 1.0
# tokenized in one go, some ten milliseconds: short requests pass between the portions of a long one
PORTION_CHARACTERS = 1 << 16


@dataclass(frozen=True, slots=True)
class Inference:
    """What came of one request: each item's end, the policy applied, and the seconds it took."""

    policy: ExitPolicy
    items: tuple[Answered, ...]
    queue_s: float
    compute_s: float


class Service:
    """What one app runs on.

    Owner: event loop.
    Invariant: every request that was let in is answered before `running` is left.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings = settings
        self.metrics = metrics
        store = Store(settings.store)
        self.students = Students(store, load=loader(store, settings), metrics=metrics, required=settings.required)
        limits = EngineLimits(
            max_queue_items=settings.max_queue_items, token_budget=settings.token_budget, slots=settings.slots
        )
        self._observer = Observer(metrics, backend=backend_for(settings.backend))
        self.engine = Engine(limits, observer=self._observer)
        self.draining = False
        self._failed = False
        self._tokenizers = ThreadPoolExecutor(settings.slots, thread_name_prefix="tokenize")
        self._tokenizing_items = 0
        self._inflight = 0
        self._reading: set[asyncio.Task[None]] = set()
        self._reading_is_over = False
        self._drain: asyncio.Task[None] | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    def __repr__(self) -> str:
        return f"Service(inflight={self._inflight}, draining={self.draining}, {self.students!r}, {self.engine!r})"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start following the store; on leaving, drain and close."""
        following = asyncio.create_task(self._follow())
        try:
            yield
        finally:
            await self.drain()
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            self._tokenizers.shutdown(wait=False, cancel_futures=True)

    async def _follow(self) -> None:
        try:
            await self.students.follow()
        except Exception as error:  # noqa: BLE001 - task boundary: served on, and told by the probes
            self._failed = True
            log_failure("following_failed", error)

    @property
    def ready(self) -> bool:
        """Whether new requests will be answered."""
        return self.students.ready and self.live and not self.draining

    @property
    def live(self) -> bool:
        """Whether this process can still do its work; while it drains, it can."""
        return self.draining or (self.engine.healthy and not self._failed)

    @contextlib.contextmanager
    def letting_in(self) -> Iterator[None]:
        """Count a request as under way. Raises: Draining: the service is stopping."""
        if self.draining:
            raise Draining("the service is stopping")
        self._inflight += 1
        self._idle.clear()
        self.metrics.inflight_requests.set(self._inflight)
        try:
            yield
        finally:
            self._inflight -= 1
            self.metrics.inflight_requests.set(self._inflight)
            if self._inflight == 0:
                self._idle.set()

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """While a body comes in. Raises: Draining: it had not come when the drain timeout was over."""
        task: asyncio.Task[None] | None = asyncio.current_task()
        assert task is not None
        self._reading.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if self._reading_is_over and task.uncancel() == 0:
                raise Draining("the service stopped before the request was complete") from None
            raise
        finally:
            self._reading.discard(task)

    async def drain(self) -> None:
        """Not ready; refuse what is new; let what is under way finish within the drain timeout; fail the rest.

        May be called again: it waits for the same drain.
        """
        if self._drain is None:
            self.draining = True
            self._drain = asyncio.create_task(self._stop())
        await asyncio.shield(self._drain)

    async def _stop(self) -> None:
        log_event(logging.INFO, "draining", inflight=self._inflight, timeout_s=self.settings.drain_timeout_s)
        await self._wait_until_idle(self.settings.drain_timeout_s)
        self._reading_is_over = True
        for task in self._reading:
            task.cancel()
        await self.engine.close()
        await self._wait_until_idle(LAST_WORDS_S)
        log_event(logging.INFO, "drained", unanswered=self._inflight)

    async def _wait_until_idle(self, timeout_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout_s)

    async def infer(self, served: Served, body: Body, *, deadline: float | None) -> Inference:
        """Tokenize, run and collect.

        Args:
            served: the student version.
            body: the checked request.
            deadline: a moment of the loop's clock, or None.
        Raises:
            InvalidInput: pairs for a student of single texts or the reverse; a text too long, where the request says
                so and wants to fail as a whole.
            Overloaded, Draining, DeadlineExceeded: the engine does not take the items.
        """
        self._check_inputs(served, body)
        policy = served.student.policy(body.exit)
        try:
            async with asyncio.timeout_at(deadline):
                encoded = await self._encode(served, body)
        except TimeoutError:
            self._observer.dropped(served.handle, "deadline", len(body.inputs))
            raise DeadlineExceeded("the deadline passed before the inputs were tokenized") from None
        good = [item for item in encoded if isinstance(item, Encoded)]
        if self._truncate(body) == "start" and any(item.truncated for item in good):
            # certificates are about texts that lost their end, if anything
            policy = replace(served.student.policy("never"), risk_requested=policy.risk_requested)
        ran = iter(await self.engine.submit(served.handle, good, policy=policy, deadline=deadline) if good else [])
        items, queue_s, compute_s = [], 0.0, 0.0
        for item in encoded:
            if isinstance(item, Encoded):
                result = next(ran)
                items.append(Answered(item, result.outcome))
                queue_s, compute_s = max(queue_s, result.queue_s), max(compute_s, result.compute_s)
            else:
                items.append(Answered(None, item))
        return Inference(policy, tuple(items), queue_s, compute_s)

    def _check_inputs(self, served: Served, body: Body) -> None:
        pairs, paired = served.manifest.pairs != "none", not isinstance(body.inputs[0], str)
        if paired and not pairs:
            raise wrong_field("/inputs/0", f"student {served.name!r} takes single texts, not pairs")
        if pairs and not paired:
            raise wrong_field("/inputs/0", f"student {served.name!r} takes pairs of texts")

    def _truncate(self, body: Body) -> Truncate:
        return body.truncate or self.settings.default_truncate

    async def _encode(self, served: Served, body: Body) -> Sequence[Encoded | ServiceError]:
        items = len(body.inputs)
        if self._tokenizing_items + items > self.settings.max_queue_items:
            self._observer.dropped(served.handle, "overloaded", items)
            raise Overloaded("too many inputs are waiting to be tokenized", retry_after_s=1.0)
        truncate = self._truncate(body)
        self._tokenizing_items += items
        try:
            encoded: list[Encoded | ServiceError] = []
            for portion in portions(body.inputs):
                work = partial(encode, served.student.encoder, portion, truncate, first=len(encoded))
                encoded += await asyncio.get_running_loop().run_in_executor(self._tokenizers, work)
        finally:
            self._tokenizing_items -= items
        if body.on_error == "fail":
            _refuse_whole(encoded)
        return encoded


def portions(inputs: Sequence[Text]) -> Iterator[Sequence[Text]]:
    """Cut a request's inputs into runs of at most `PORTION_CHARACTERS`, or of one text that is longer.

    >>> [len(portion) for portion in portions(["x" * 40_000] * 3 + ["y"])]
    [1, 1, 2]
    """
    first, characters = 0, 0
    for place, text in enumerate(inputs):
        own = len(text) if isinstance(text, str) else len(text[0]) + len(text[1])
        if place > first and characters + own > PORTION_CHARACTERS:
            yield inputs[first:place]
            first, characters = place, 0
        characters += own
    yield inputs[first:]


def encode(
    encoder: Encoder, inputs: Sequence[Text], truncate: Truncate, *, first: int
) -> Sequence[Encoded | ServiceError]:
    """Tokenize some of a request's inputs; one that is to be refused gives its error in its place.

    Args:
        encoder: the student's.
        inputs: texts or pairs.
        truncate: what to do with those that are too long.
        first: the place in the request of the first of them.
    """
    if truncate != "error":
        return encoder.encode(inputs, truncate=truncate)
    encoded = encoder.encode(inputs, truncate="end")
    return [
        too_long(place, item, encoder.max_tokens) if item.truncated else item
        for place, item in enumerate(encoded, first)
    ]


def _refuse_whole(encoded: Sequence[Encoded | ServiceError]) -> None:
    errors = [item for item in encoded if isinstance(item, ServiceError)]
    if errors:
        raise InvalidInput(TOO_LONG, errors=told([problem for error in errors for problem in error.errors]))
