"""From a version in the store to one that may serve: verified, loaded on the backend, proved."""

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from service.api.logs import log_event, log_failure
from service.bundle.load import Bundle
from service.bundle.manifest import Certificate, Manifest
from service.engine.item import ServedStudent
from service.errors import BundleError, RunFailed, SettingsInvalid
from service.runtime import choice as choices
from service.runtime.backends import onnxruntime
from service.runtime.cost import StageCost, measure
from service.runtime.memory import Ledger, resident_bytes
from service.runtime.session import AUTO, BF16, EXACT, Execution, usable_backends
from service.runtime.student import Student
from service.settings import Settings, memory_quota
from service.store.store import Store

Fingerprint = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True)
class Served:
    """One version in service.

    Attributes:
        name, version: which.
        student: the loaded student.
        handle: the same for the engine.
        reading: of a student that joins pairs of texts, the stages that read one text, for the engine.
        card: what `/v1/models` says of it.
        memory_bytes: what loading it took of this process's memory.
        settled: whether no other way to run it is to be tried.
    """

    name: str
    version: int
    student: Student
    handle: ServedStudent
    card: dict[str, Any]
    memory_bytes: int = 0
    settled: bool = True
    reading: ServedStudent | None = None

    @property
    def handles(self) -> tuple[ServedStudent, ...]:
        """All that the engine knows it by."""
        return (self.handle,) if self.reading is None else (self.handle, self.reading)

    @property
    def version_label(self) -> str:
        """The version, in metrics."""
        return self.handle.version_label

    @property
    def manifest(self) -> Manifest:
        """Its manifest."""
        return self.student.manifest

    @property
    def info(self) -> tuple[str, str, str, str, str]:
        """Label values of `understudy_student_info`."""
        return (self.name, str(self.version), self.manifest.task, self.student.backend, self.student.precision)


class Loader:
    """Loads versions as the settings say; with `auto`, as they are best run on this machine.

    `auto` delays no start: a version is first loaded as it was best the last time or else on ONNX Runtime in its
    default precision, and `improve` looks further once it serves.

    Owner: the loading thread.
    """

    def __init__(self, store: Store, settings: Settings) -> None:
        """Load nothing yet."""
        self._store = store
        self._settings = settings
        self._auto = settings.backend == AUTO and settings.precision != BF16
        self._cache = _cache_dir(settings)
        self._how = Execution(threads=settings.threads_per_slot, slots=settings.slots)
        self.ledger = Ledger(limit_bytes=_limit_bytes(settings))

    def __repr__(self) -> str:
        return f"Loader({self.ledger!r})"

    def __call__(self, name: str, version: int) -> Served:
        """Load and prove a version.

        Raises: BundleError, StoreError or SettingsInvalid, by name: it may not serve.
        """
        bundle = self._store.open(name, version)
        earlier = self._remembered(bundle.manifest) if self._auto else None
        if earlier is not None:
            try:
                return self._serve(bundle, version, earlier)
            except (BundleError, SettingsInvalid) as error:
                log_event(logging.WARNING, "choice_not_usable", model=name, version=version, detail=str(error))
        return self._serve(bundle, version, None)

    def improve(self, served: Served) -> Served:
        """Measure what else could run a version, and load the best of it.

        Returns: the version, settled, on another backend or in another precision where that is clearly cheaper.
        Raises: BundleError, StoreError or SettingsInvalid, by name: what was chosen may not serve.
        """
        student = served.student
        weighed = [self._weigh(student, each) for each in self._candidates(student.manifest)]
        choice = self._confirmed(student, choices.decide(weighed))
        self._remember(student.manifest, choice)
        told = {"backend": choice.candidate.backend, "precision": choice.candidate.precision, "why": choice.why}
        figures = "; ".join(_words(each) for each in weighed)
        log_event(logging.INFO, "chosen", model=served.name, version=served.version, **told, weighed=figures)
        if choice.candidate == choices.Candidate(student.backend, student.precision):
            return replace(served, settled=True, card=served.card | {"chosen": choice.document()})
        return self._serve(self._store.open(served.name, served.version), served.version, choice)

    def tidy(self) -> None:
        """Give back the memory of students that are gone."""
        self.ledger.tidy()

    def _serve(self, bundle: Bundle, version: int, choice: choices.Choice | None) -> Served:
        asked = choices.Candidate(self._settings.backend, self._settings.precision or bundle.manifest.default_precision)
        student, memory_bytes = self._load(bundle, choice.candidate if choice else asked, prove=True)
        name = bundle.manifest.name
        costs, apart = _costs(student, self._how), bundle.manifest.apart
        handle = ServedStudent(
            name=name, version=version, student=student, costs=costs[apart:], full_depth=student.full_depth
        )
        reading = None
        if student.apart is not None:
            reading = ServedStudent(name=name, version=version, student=student.apart, costs=costs[:apart])
        settled = choice is not None or not self._auto or not self._has_others(bundle.manifest)
        told = choice or choices.Choice(asked, _why(settled=settled, auto=self._auto))
        card = card_of(student, version) | {"chosen": told.document(), "memory_bytes": memory_bytes}
        return Served(name, version, student, handle, card, memory_bytes=memory_bytes, settled=settled, reading=reading)

    def _load(self, bundle: Bundle, candidate: choices.Candidate, *, prove: bool) -> tuple[Student, int]:
        def make() -> Student:
            student = Student(bundle, backend=candidate.backend, precision=candidate.precision, how=self._how)
            student.check_golden()
            if prove:
                student.prove(token_budget=self._settings.token_budget)
            return student

        name = f"{bundle.manifest.name} {candidate}"
        return self.ledger.load(make, name=name, least_bytes=graph_bytes(bundle.manifest, candidate.precision))

    def _candidates(self, manifest: Manifest) -> tuple[choices.Weighed, ...]:
        return choices.candidates(manifest, backends=usable_backends(), precision=self._settings.precision)

    def _has_others(self, manifest: Manifest) -> bool:
        return any(not each.why_not for each in self._candidates(manifest)[1:])

    def _weigh(self, serving: Student, weighed: choices.Weighed) -> choices.Weighed:
        """Measure a candidate that is in question; one that is not to be had says why."""
        if weighed.why_not:
            return weighed
        candidate = weighed.candidate
        try:
            loads = candidate != choices.Candidate(serving.backend, serving.precision)
            student = self._load(serving.bundle, candidate, prove=False)[0] if loads else serving
            costs = measure(student)
        except (BundleError, SettingsInvalid, RunFailed) as error:
            return replace(weighed, why_not=str(error))
        return replace(weighed, seconds=choices.text_s(costs, choices.reach(serving.manifest, candidate)))

    def _confirmed(self, serving: Student, choice: choices.Choice) -> choices.Choice:
        """The choice, if what it takes wins against what serves now when both run in turn."""
        default = choices.Candidate(serving.backend, serving.precision)
        if choice.candidate == default:
            return choice
        challenger = self._load(serving.bundle, choice.candidate, prove=False)[0]
        ids = max((sample.input_ids for sample in serving.bundle.golden.samples), key=len)
        saved = choices.runoff(serving, challenger, ids=ids, max_tokens=serving.manifest.max_tokens)
        return choices.after_runoff(choice, default, saved)

    def _surroundings(self, manifest: Manifest) -> choices.Surroundings:
        settings = self._settings
        return choices.surroundings(
            manifest,
            backends=usable_backends(),
            threads=settings.threads_per_slot,
            slots=settings.slots,
            precision=settings.precision,
        )

    def _remembered(self, manifest: Manifest) -> choices.Choice | None:
        if self._cache is None:
            return None
        try:
            return choices.remembered(self._cache, self._surroundings(manifest))
        except ValueError as error:
            log_event(logging.WARNING, "choice_ignored", model=manifest.name, detail=str(error))
            return None

    def _remember(self, manifest: Manifest, choice: choices.Choice) -> None:
        if self._cache is None:
            return
        try:
            choices.remember(self._cache, self._surroundings(manifest), choice)
        except OSError as error:
            log_event(logging.WARNING, "choice_not_kept", folder=str(self._cache), detail=str(error))


def loader(store: Store, settings: Settings) -> Loader:
    """What loads versions from `store` as `settings` say; meant for a thread of its own."""
    return Loader(store, settings)


def _costs(student: Student, how: Execution) -> tuple[StageCost, ...]:
    # subtle: where a run stays in this thread, by the seconds that it had the processor: what else runs beside a start
    # would be taken for what a run costs whatever its size, or hide that
    stays = student.backend == onnxruntime.BACKEND and how.threads == 1
    try:
        return measure(student, clock=time.thread_time if stays else time.perf_counter)
    except RunFailed as error:
        # it has reproduced its golden samples: it serves, and the engine learns its costs as it runs
        log_failure("not_measured", error, model=student.manifest.name)
        return ()


def _why(*, settled: bool, auto: bool) -> str:
    if not auto:
        return "asked for in the settings"
    return "the default; nothing else is at hand" if settled else "the default, until others are measured"


def _words(weighed: choices.Weighed) -> str:
    if weighed.seconds is None:
        return f"{weighed.candidate}: {weighed.why_not}"
    return f"{weighed.candidate}: {weighed.seconds * 1e6:.0f} us a text"


def graph_bytes(manifest: Manifest, precision: str) -> int:
    """Bytes of the graph files that a precision runs; 0 where the student has no such precision."""
    graphs = manifest.precisions.get(EXACT if precision == BF16 else precision)
    return sum(manifest.files[file].bytes for file in graphs.files.values()) if graphs else 0


def _limit_bytes(settings: Settings) -> int | None:
    """What the students may hold together: the setting, or what the container's limit leaves beside the service."""
    if settings.memory_limit_mb is not None:
        return settings.memory_limit_mb << 20
    quota = memory_quota()
    return None if quota is None else max(0, quota - resident_bytes())


def _cache_dir(settings: Settings) -> Path | None:
    try:
        return settings.cache_dir or choices.default_cache_dir()
    except RuntimeError as error:
        log_event(logging.WARNING, "choice_not_kept", folder="", detail=str(error))
        return None


def fingerprint(folder: Path) -> Fingerprint:
    """Name, size and modification time (ns) of every file of a bundle: changes when somebody mends it."""
    try:
        files = [(path, path.stat()) for path in sorted(folder.rglob("*"))]
    except OSError:
        return ()
    return tuple((str(path), status.st_size, status.st_mtime_ns) for path, status in files)


def card_of(student: Student, version: int) -> dict[str, Any]:
    """What `/v1/models` says of a version, as far as its manifest and its backend tell."""
    manifest = student.manifest
    certificate = manifest.certificate(backend=student.backend, precision=student.precision)
    return {
        "version": version,
        "task": manifest.task,
        "labels": list(manifest.labels),
        "max_tokens": manifest.max_tokens,
        "pairs": manifest.pairs,
        "space_id": manifest.space_id,
        "embedding_dimensions": manifest.embedding_dimensions,
        "backend": student.backend,
        "precision": student.precision,
        "precisions": list(manifest.precisions),
        "exits": [{"id": leave.id, "depth": leave.depth} for leave in manifest.exits],
        "default_risk": manifest.default_risk,
        "operating_points": _points(certificate),
        "quality": None if manifest.quality is None else manifest.quality.model_dump(mode="json"),
        "created": manifest.provenance.created,
    }


def _points(certificate: Certificate | None) -> list[dict[str, Any]]:
    """The certified points on the active backend and precision; none: exits are off."""
    if certificate is None:
        return []
    promise = {"delta": certificate.delta, "population": certificate.population, "reference": certificate.reference}
    return [point.model_dump(mode="json") | promise for point in certificate.points]
