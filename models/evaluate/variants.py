"""The ways one student can be run: a backend and a precision. Each computes its own numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Final

from models.errors import OfflineError
from models.recipe.parts import FIRST_BACKEND
from service.bundle.load import Bundle
from service.errors import SettingsInvalid
from service.runtime.session import backend_for
from service.runtime.student import Student

_DISTRIBUTIONS: Final = {
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino",),
    "cuda": ("onnxruntime-gpu", "torch"),
}


class BackendRefused(OfflineError):
    """A backend that does not exist, is not installed, or is no backend of its own."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A backend by name, never "auto", and one of the student's precisions."""

    backend: str
    precision: str

    @property
    def name(self) -> str:
        """What reports call it.

        >>> Variant("onnxruntime", "int8").name, Variant("openvino", "int8").name
        ('int8', 'int8 on openvino')
        """
        return self.precision if self.backend == FIRST_BACKEND else f"{self.precision} on {self.backend}"

    def load(self, bundle: Bundle) -> Student:
        """The student, run this way on one core. Raises: SettingsInvalid, GraphMismatch: as `Student` does."""
        return Student(bundle, backend=self.backend, precision=self.precision)


def variants(backends: Sequence[str], precisions: Sequence[str]) -> tuple[Variant, ...]:
    """Every backend with every precision, the first backend's first."""
    return tuple(Variant(backend, precision) for backend in backends for precision in precisions)


def require_backends(names: Sequence[str], *, where: str) -> None:
    """Refuse what cannot certify on this machine, before any work is done.

    Args:
        where: the key or the option that names them, for the message.
    Raises:
        BackendRefused: there is no such backend, its library is not installed or not active, or it is "auto".
    """
    for name in names:
        if name == "auto":
            raise BackendRefused(f"{where}: auto: a certificate is for one backend; name it")
        try:
            backend_for(name)
        except SettingsInvalid as error:
            raise BackendRefused(f"{where}: {error}") from error


def backend_libraries(backends: Sequence[str]) -> dict[str, str]:
    """Versions of the libraries that compute on these backends, as far as they are installed."""
    found = {}
    for library in (library for backend in backends for library in _DISTRIBUTIONS.get(backend, (backend,))):
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found
