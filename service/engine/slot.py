"""How a batch runs: its stages one after another, a report after each. And the slots, the threads that run batches.

A thread gets a job and shares nothing else; all it knows of the engine is the function that takes its reports.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from service.engine.item import Runner
from service.errors import DeadlineExceeded, RunFailed, ServiceError
from service.runtime.encode import Encoded, pad
from service.runtime.heads import Doubles, ExitPolicy, Flags, Floats, likeliest
from service.runtime.joined import JoinedPair, Unit, joined_feeds
from service.runtime.pipeline import Pass, Stepped
from service.runtime.plan import Leave, Pipeline, StateExit
from service.runtime.student import Outcome, state_of, whole_outcome


@dataclass(slots=True)
class Job:
    """A batch handed over: items for the first stage, or survivors of earlier batches for a later one.

    Attributes:
        runner: the student.
        items: what begins at the first stage...
        policies: ...and when each may leave: one for all, or one for each.
        passes: or what goes on, joined in this order.
        deadlines: float64 [B], moments on the engine's clock; None: nobody has one.
        onward: for each stage, how many survivors of the one before run straight on to it at least; fewer are handed
            back. Changed only by who runs the job.
    """

    runner: Runner
    items: Sequence[Unit] = ()
    policies: ExitPolicy | Sequence[ExitPolicy] = ()
    passes: Sequence[Pass] = ()
    deadlines: Doubles | None = None
    onward: Sequence[int] = ()

    def begin(self) -> Pass:
        """The pass of all of it. Raises: ServiceError."""
        if self.passes:
            return Pass.merge(self.passes)
        return self.runner.begin(_feeds(self.items, self.runner.pipeline), self.policies)


def _feeds(items: Sequence[Unit], pipeline: Pipeline) -> Mapping[str, npt.NDArray[Any]]:
    """A batch of what a pipeline begins with: ids, or what two texts gave."""
    if pipeline.joins is None:
        return pad(cast("Sequence[Encoded]", items), pad_id=pipeline.pad_id, with_types=pipeline.reads_types)
    return joined_feeds(cast("Sequence[JoinedPair]", items), pipeline.joins)


@dataclass(slots=True)
class Report:
    """What came of one stage run.

    Attributes:
        rows: places in the job of the items that ended...
        results: ...and how each ended.
        stepped: the run; None where it failed, or where the items ended without one.
        failed_at: the stage that failed on the one item of `rows`.
        back: survivors that are to wait for company; the thread has let go of it.
        going: how many items of the job still run...
        stage: ...and the stage that some of them run next.
    """

    rows: list[int] = field(default_factory=list)
    results: list[Outcome | ServiceError] = field(default_factory=list)
    stepped: Stepped | None = None
    failed_at: int | None = None
    back: Pass | None = None
    going: int = 0
    stage: int = 0


def run_job(job: Job, *, clock: Callable[[], float]) -> Iterator[Report]:
    """Run a batch, one report a step. Every item ends in exactly one report, or is handed back in one.

    A pass that fails goes on in two halves, and so on down: what breaks alone fails alone.

    Args:
        job: at least one item.
        clock: the moment now, on the deadlines' clock.
    """
    waiting = [job.begin()]
    while waiting:
        going = waiting.pop()
        report = _step(job, going, waiting, clock())
        if waiting:
            report.going = sum(len(each.rows) for each in waiting)
            report.stage = waiting[-1].stage
        yield report


def _step(job: Job, going: Pass, waiting: list[Pass], now: float) -> Report:
    """One step of a pass; what is left of it goes back to `waiting`."""
    if going.stage > 0 and job.deadlines is not None:
        late = job.deadlines[going.rows] <= now
        if late.any():
            return _drop(going, late, waiting)
    try:
        stepped = going.step()
    except Exception as error:  # noqa: BLE001 - handed to the item's waiter once it is alone
        return _after_failure(going, error, waiting)
    report = _answers(job, stepped)
    if not going.done:
        if len(going.rows) < job.onward[going.stage]:
            report.back = going
        else:
            waiting.append(going)
    return report


def _drop(going: Pass, late: Flags, waiting: list[Pass]) -> Report:
    rows = going.rows[late].tolist()
    going.drop(late)
    if not going.done:
        waiting.append(going)
    return Report(rows, [DeadlineExceeded("the deadline passed between two stages") for _ in rows])


def _after_failure(going: Pass, error: Exception, waiting: list[Pass]) -> Report:
    if len(going.rows) > 1:
        waiting.extend(going.halves())
        return Report()
    failed = error if isinstance(error, RunFailed) else _translated(error)
    return Report([int(going.rows[0])], [failed], failed_at=going.stage)


def _translated(error: Exception) -> RunFailed:
    failed = RunFailed("this input could not be run")
    failed.__cause__ = error
    return failed


def _answers(job: Job, stepped: Stepped) -> Report:
    if stepped.raw is None or stepped.exit_index is None or not stepped.leaving:
        return Report(stepped=stepped)
    leave, exit_index = job.runner.pipeline.exits[stepped.exit_index], stepped.exit_index
    if isinstance(leave, StateExit):
        return Report(stepped.rows.tolist(), _states(stepped.raw, stepped.lengths), stepped)
    raws = stepped.raw[stepped.leaves]
    results: list[Outcome | ServiceError]
    if np.isfinite(raws).all():
        sure = None if stepped.sure is None else stepped.sure[stepped.leaves]
        results = _outcomes(leave, exit_index, raws, sure)
    else:
        finite = np.asarray(np.isfinite(raws).reshape(len(raws), -1).all(axis=1))
        results = [
            Outcome(exit_index, raw) if is_finite else RunFailed("the scores are not finite")
            for raw, is_finite in zip(raws, finite, strict=True)
        ]
    return Report(stepped.rows[stepped.leaves].tolist(), results, stepped)


def _states(raws: npt.NDArray[Any], lengths: Sequence[int]) -> list[Outcome | ServiceError]:
    """What each text gave, copied out here: a row would keep its whole batch in memory for as long as it is wanted."""
    states = [state_of(raw, tokens) for raw, tokens in zip(raws, lengths, strict=True)]
    return [
        Outcome(0, state) if np.isfinite(state).all() else RunFailed("the states are not finite") for state in states
    ]


def _outcomes(leave: Leave, exit_index: int, raws: Floats, sure: Doubles | None) -> list[Outcome | ServiceError]:
    if leave.output != "logits":
        return [Outcome(exit_index, raw) for raw in raws]
    if sure is None or leave.answer_temperature != leave.temperature:
        found = likeliest(raws, temperature=leave.answer_temperature)
        places, probabilities = found.places, found.probabilities
    else:
        places, probabilities = raws.argmax(axis=-1).tolist(), sure.tolist()
    return [
        whole_outcome(each) for each in zip(repeat(exit_index, len(raws)), raws, places, probabilities, strict=True)
    ]


Post = Callable[[Report | None, BaseException | None], None]


class Slots(Protocol):
    """Where jobs run beside the event loop."""

    def start(self, reports: Iterator[Report], post: Post) -> None:
        """Run a job to its end: every report is posted, or what stopped it. After the last one nothing comes."""
        ...

    def close(self) -> None:
        """No more jobs will come."""
        ...


class ThreadSlots:
    """Threads that run jobs, started when first needed. `post` is called in them."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._jobs: queue.SimpleQueue[tuple[Iterator[Report], Post] | None] = queue.SimpleQueue()
        self._started = False

    def start(self, reports: Iterator[Report], post: Post) -> None:
        """Run a job to its end in a thread."""
        if not self._started:
            self._started = True
            for number in range(self._slots):
                threading.Thread(target=self._work, name=f"slot-{number}", daemon=True).start()
        self._jobs.put((reports, post))

    def close(self) -> None:
        """Let the threads go once they are idle."""
        if self._started:
            for _ in range(self._slots):
                self._jobs.put(None)

    def _work(self) -> None:
        while self._run_next():
            pass

    def _run_next(self) -> bool:
        # subtle: a function of its own, so that an idle thread holds nothing of its last job
        job = self._jobs.get()
        if job is not None:
            run_to_end(*job)
        return job is not None


def run_to_end(reports: Iterator[Report], post: Post) -> None:
    """Run a job: post every report, or what stopped it."""
    try:
        for report in reports:
            post(report, None)
    except BaseException as error:  # noqa: BLE001 - handed to the job's waiters; the slot goes on
        post(None, error)
