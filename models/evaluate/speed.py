"""Speed of a student against its teacher, on the same rows, in one run, on one pinned core.

`python -m models.evaluate.speed_command` prints the table. Each side runs on its backend with one
thread, on ids that are already there, in the same batches (sorted by the teacher's lengths); the student's stages,
its exit decisions and the compaction of survivors are all timed. Repeats are interleaved (A B A B ...), so that a
slow moment of the machine meets every side, and the median is reported.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from models.errors import DataInvalid
from models.evaluate.variants import Variant, backend_libraries
from models.recipe.parts import FIRST_BACKEND
from service.runtime.encode import Encoded, Encoder, Text, pad
from service.runtime.heads import ExitPolicy, never
from service.runtime.student import Student, batches_by_length

Feeds = Mapping[str, NDArray[np.int64]]
Mode = Literal["ids", "texts"]

REPEATS = 5
BATCH_ITEMS = 32
SINGLE_ROWS = 500

_SAID = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


@dataclass(frozen=True, slots=True)
class Contender:
    """One side: how it makes ids, and how it answers a batch of them. `stride`: it runs every so many-th batch only.
    `padded`: what it answers is padded beforehand; two texts that are read apart it pads by itself."""

    name: str
    encoder: Encoder
    run: Callable[[Any], object]
    stride: int = 1
    padded: bool = True

    def ids_of(self, texts: Sequence[Text]) -> Feeds | Sequence[Encoded]:
        """A batch as `run` takes it."""
        encoded = self.encoder.encode(texts)
        return pad(encoded, pad_id=self.encoder.pad_id) if self.padded else encoded


@dataclass(frozen=True, slots=True)
class Timing:
    """One contender in one mode.

    seconds: one per repeat, over `rows` texts. mode: "ids", or "texts" with tokenizing.
    """

    contender: str
    mode: Mode
    batch_items: int
    rows: int
    seconds: tuple[float, ...]

    @property
    def texts_per_s(self) -> float:
        """By the median repeat."""
        return self.rows / statistics.median(self.seconds)

    @property
    def ms_per_text(self) -> float:
        """Mean time of a text, by the median repeat."""
        return 1000 * statistics.median(self.seconds) / self.rows

    @property
    def spread(self) -> float:
        """(slowest - fastest) ÷ median, over the repeats."""
        return (max(self.seconds) - min(self.seconds)) / statistics.median(self.seconds)


@dataclass(frozen=True, slots=True)
class SpeedReport:
    """All timings of one run, and where it ran."""

    machine: str
    core: int | None
    repeats: int
    timings: tuple[Timing, ...]

    def ratio(self, contender: str, baseline: str, *, mode: Mode, batch_items: int) -> float:
        """How many times as fast `contender` is. Raises: KeyError: one of them was not timed."""
        found = {(t.contender, t.mode, t.batch_items): t.texts_per_s for t in self.timings}
        return found[contender, mode, batch_items] / found[baseline, mode, batch_items]


@contextmanager
def pinned(core: int | None) -> Iterator[int | None]:
    """Keep this thread, and threads it starts meanwhile, on one core: `core`, or the last one allowed.

    Yields: the core; None where the system cannot pin.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield None
        return
    before = os.sched_getaffinity(0)
    chosen = max(before) if core is None else core
    os.sched_setaffinity(0, {chosen})
    try:
        yield chosen
    finally:
        os.sched_setaffinity(0, before)


def student_contenders(student: Student, risks: Sequence[float]) -> tuple[Contender, ...]:
    """The student with exits at each risk, then at full depth.

    Raises: DataInvalid: the student has no certified point of exactly that risk on its backend and precision.
    """
    name = f"{student.manifest.name} {Variant(student.backend, student.precision).name}"
    found = []
    for risk in risks:
        policy = student.policy(risk)
        if policy.risk_applied != risk:
            where = f"{student.manifest.name} {student.precision} on {student.backend}"
            raise DataInvalid(f"{where}: no operating point of risk {risk:g}")
        found.append(_contender(f"{name}, risk {risk:g}", student, policy))
    return (*found, _contender(f"{name}, full depth", student, never(student.manifest)))


def _contender(name: str, student: Student, policy: ExitPolicy) -> Contender:
    """A pipeline of one stage (a teacher) calls its graph directly, without the loop over stages."""
    if student.apart is not None:
        return Contender(name, student.encoder, lambda encoded: student.run(encoded, policy), padded=False)
    return Contender(name, student.encoder, _runner(student, policy))


def _runner(student: Student, policy: ExitPolicy) -> Callable[[Feeds], object]:
    if len(student.manifest.stages) > 1:
        return lambda feeds: student.run_padded(feeds, policy)
    inputs = student.manifest.stages[0].inputs
    return lambda feeds: student.run_stage(0, {tensor: feeds[source] for tensor, source in inputs.items()})


def student_speed(student: Student, texts: Sequence[Text], *, most_rows: int = 1_000) -> tuple[Timing, ...]:
    """A quick look: with the default exits (where there are any) and at full depth; ids given, median of 3.

    Args:
        most_rows: every k-th row is run, about so many.
    """
    chosen = texts[:: max(1, len(texts) // most_rows)]
    risk = student.policy().risk_applied
    contenders = student_contenders(student, () if risk is None else (risk,))
    return measure(contenders, chosen, order_by=student.encoder, repeats=3, modes=("ids",))


def frontier(student: Student, texts: Sequence[Text], *, most_rows: int = 1_000) -> tuple[Timing, ...]:
    """The speed of every exit (if everybody left there) and operating point, at batch 32, for the quality plot.

    The contenders are called "exit E" and "risk R"; the last exit is full depth.
    """
    chosen = texts[:: max(1, len(texts) // most_rows)]
    exits = student.manifest.exits
    certificate = student.manifest.certificate(backend=student.backend, precision=student.precision)
    policies = {f"exit {leave.id}": _all_at(index, len(exits)) for index, leave in enumerate(exits)}
    policies |= {f"risk {p.risk:g}": student.policy(p.risk) for p in (certificate.points if certificate else ())}
    contenders = [_contender(name, student, policy) for name, policy in policies.items()]
    return measure(contenders, chosen, order_by=student.encoder, repeats=3, modes=("ids",), batch_sizes=(BATCH_ITEMS,))


def _all_at(index: int, exits: int) -> ExitPolicy:
    """Everybody leaves at one exit: a confidence is never below 0."""
    return ExitPolicy(tuple(0.0 if at == index else None for at in range(exits - 1)))


def measure(
    contenders: Sequence[Contender],
    texts: Sequence[Text],
    *,
    order_by: Encoder,
    repeats: int = REPEATS,
    single_rows: int = SINGLE_ROWS,
    modes: Sequence[Mode] = ("ids", "texts"),
    batch_sizes: Sequence[int] = (BATCH_ITEMS, 1),
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Timing, ...]:
    """Time all contenders on the same rows: in batches over all of them, and one by one over a sample.

    Call it inside `pinned`, with students loaded there with one thread.

    Args:
        order_by: whose token lengths sort the rows into batches (the teacher's, the side with more to lose).
        single_rows: at batch 1 every k-th row is run, about so many.
        clock: in seconds; `time.process_time` counts the processor's time alone, on a machine that does other work too.
    """
    encoded = order_by.encode(texts)
    sample = range(0, len(texts), max(1, len(texts) // single_rows))
    timings: list[Timing] = []
    for mode in modes:
        for size in batch_sizes:
            places = batches_by_length(encoded, size) if size > 1 else [[i] for i in sample]
            timings += _interleaved(
                contenders, texts, places, mode=mode, batch_items=size, repeats=repeats, clock=clock
            )
    return tuple(timings)


def _interleaved(
    contenders: Sequence[Contender],
    texts: Sequence[Text],
    places: Sequence[Sequence[int]],
    *,
    mode: Mode,
    batch_items: int,
    repeats: int,
    clock: Callable[[], float],
) -> list[Timing]:
    own = [places[:: contender.stride] for contender in contenders]
    passes = [_pass(each, texts, batches, mode) for each, batches in zip(contenders, own, strict=True)]
    for warm_up in passes:
        warm_up()
    seconds: list[list[float]] = [[] for _ in contenders]
    for _ in range(repeats):
        for taken, once in zip(seconds, passes, strict=True):
            begin = clock()
            once()
            taken.append(clock() - begin)
    return [
        Timing(each.name, mode, batch_items, sum(map(len, batches)), tuple(taken))
        for each, batches, taken in zip(contenders, own, seconds, strict=True)
    ]


def _pass(
    contender: Contender, texts: Sequence[Text], batches: Sequence[Sequence[int]], mode: Mode
) -> Callable[[], None]:
    """One pass of a contender over its batches."""
    run = contender.run
    chosen = [[texts[i] for i in batch] for batch in batches]
    if mode == "texts":

        def over_texts() -> None:
            for batch in chosen:
                run(contender.ids_of(batch))

        return over_texts
    ready = [contender.ids_of(batch) for batch in chosen]

    def over_ids() -> None:
        for batch in ready:
            run(batch)

    return over_ids


def machine_name(backends: Sequence[str] = (FIRST_BACKEND,)) -> str:
    """The processor, the number of cores and the versions of what computes: enough to read a speed by."""
    model = platform.processor() or platform.machine()
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        lines = listing.read_text(encoding="utf-8").splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    libraries = [f"{_SAID.get(name, name)} {version}" for name, version in backend_libraries(backends).items()]
    return ", ".join([model, f"{os.cpu_count()} cores", *libraries])
