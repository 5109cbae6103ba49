"""What a slot's thread does with a batch: pad it, run its stages one after another, report who ended.

A thread gets a `Job` and shares nothing else; all it knows of the engine is the function that takes its reports.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from service.engine.item import Runner
from service.errors import DeadlineExceeded, RunFailed, ServiceError
from service.runtime.encode import Encoded, pad
from service.runtime.heads import Doubles, ExitPolicy
from service.runtime.pipeline import Pass, Stepped
from service.runtime.student import Outcome


@dataclass(frozen=True, slots=True)
class Job:
    """A batch handed over. `deadlines` is float64 [B], moments on the engine's clock."""

    runner: Runner
    items: tuple[Encoded, ...]
    policies: tuple[ExitPolicy, ...]
    deadlines: Doubles


@dataclass(frozen=True, slots=True)
class Answer:
    """How the item at place `row` of the job ended."""

    row: int
    result: Outcome | ServiceError


@dataclass(frozen=True, slots=True)
class Report:
    """Items that ended, and the stage run that ended them, if one did."""

    answers: tuple[Answer, ...]
    stepped: Stepped | None = None


def run_job(job: Job, *, clock: Callable[[], float], report: Callable[[Report], None]) -> None:
    """Run a batch to its end. Every item is in exactly one report.

    A pass that fails goes on in two halves, and so on down: what breaks alone fails alone.

    Args:
        job: at least one item.
        clock: the moment now, on the deadlines' clock.
        report: called after each stage, in this thread.
    """
    waiting = [job.runner.begin(pad(job.items, pad_id=job.runner.pad_id), job.policies)]
    while waiting:
        going = waiting.pop()
        if going.stage > 0:
            _drop_late(job, going, now=clock(), report=report)
        if going.done:
            continue
        try:
            stepped = going.step()
        except Exception as error:  # noqa: BLE001 - handed to the item's waiter once it is alone
            waiting.extend(_after_failure(going, error, report))
            continue
        report(Report(_answers(stepped), stepped))
        waiting.append(going)


def _drop_late(job: Job, going: Pass, *, now: float, report: Callable[[Report], None]) -> None:
    late = job.deadlines[going.rows] <= now
    if late.any():
        rows = going.rows[late].tolist()
        report(Report(tuple(Answer(row, DeadlineExceeded("the deadline passed between two stages")) for row in rows)))
        going.drop(late)


def _after_failure(going: Pass, error: Exception, report: Callable[[Report], None]) -> tuple[Pass, ...]:
    if len(going.rows) > 1:
        return going.halves()
    failed = error if isinstance(error, RunFailed) else _translated(error)
    report(Report((Answer(int(going.rows[0]), failed),)))
    return ()


def _translated(error: Exception) -> RunFailed:
    failed = RunFailed("this input could not be run")
    failed.__cause__ = error
    return failed


def _answers(stepped: Stepped) -> tuple[Answer, ...]:
    if stepped.raw is None or stepped.exit_index is None or not stepped.leaves.any():
        return ()
    raws = stepped.raw[stepped.leaves]
    finite = np.asarray(np.isfinite(raws).reshape(len(raws), -1).all(axis=1))
    return tuple(
        Answer(int(row), Outcome(stepped.exit_index, raw) if is_finite else RunFailed("the scores are not finite"))
        for row, raw, is_finite in zip(stepped.rows[stepped.leaves], raws, finite, strict=True)
    )
