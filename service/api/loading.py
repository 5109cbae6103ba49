"""From a version in the store to one that may serve: verified, loaded on the backend, proved."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.bundle.manifest import Certificate, Manifest
from service.engine.item import ServedStudent
from service.runtime.student import Student
from service.settings import Settings
from service.store.store import Store

Fingerprint = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True)
class Served:
    """One version in service.

    Attributes:
        name, version: which.
        student: the loaded student.
        handle: the same for the engine.
        card: what `/v1/models` says of it.
    """

    name: str
    version: int
    student: Student
    handle: ServedStudent
    card: dict[str, Any]

    @property
    def manifest(self) -> Manifest:
        """Its manifest."""
        return self.student.manifest

    @property
    def info(self) -> tuple[str, str, str, str, str]:
        """Label values of `understudy_student_info`."""
        return (self.name, str(self.version), self.manifest.task, self.student.backend, self.student.precision)


def loader(store: Store, settings: Settings) -> Callable[[str, int], Served]:
    """A function that loads a version from `store` as `settings` say; meant for a thread of its own.

    It raises BundleError, StoreError or SettingsInvalid, by name, where the version may not serve.
    """

    def load(name: str, version: int) -> Served:
        student = Student(
            store.open(name, version),
            backend=settings.backend,
            precision=settings.precision,
            threads=settings.threads_per_slot,
        )
        student.check_golden()
        student.prove(token_budget=settings.token_budget)
        handle = ServedStudent(name=name, version=version, student=student)
        return Served(name, version, student, handle, _card(student, version))

    return load


def fingerprint(folder: Path) -> Fingerprint:
    """Name, size and modification time (ns) of every file of a bundle: changes when somebody mends it."""
    try:
        files = [(path, path.stat()) for path in sorted(folder.rglob("*"))]
    except OSError:
        return ()
    return tuple((str(path), status.st_size, status.st_mtime_ns) for path, status in files)


def _card(student: Student, version: int) -> dict[str, Any]:
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
