"""What a bundle says about how it was made: when, with which libraries, on what machine."""

import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from service.bundle.manifest import DataSource, Provenance

_LIBRARIES = ("understudy", "numpy", "onnx", "onnxruntime", "tokenizers", "torch", "transformers")


def make_provenance(
    made_by: Literal["refresh", "import", "test"],
    *,
    teacher: str = "",
    recipe_sha256: str | None = None,
    recipe: dict[str, Any] | None = None,
    data: Sequence[DataSource] = (),
    libraries: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> Provenance:
    """A provenance with the time, the library versions and the processor of this process filled in.

    Args:
        libraries: versions of further libraries, beside those that every bundle depends on.
    """
    return Provenance(
        made_by=made_by,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        teacher=teacher,
        recipe_sha256=recipe_sha256,
        recipe=recipe or {},
        data=tuple(data),
        libraries=library_versions() | dict(libraries or {}),
        machine=machine(),
        notes=tuple(notes),
    )


def library_versions() -> dict[str, str]:
    """Versions of the libraries that a bundle's numbers depend on, and of Python."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in _LIBRARIES}


def machine() -> str:
    """The processor's architecture and model, and the operating system; no host name."""
    model = next((line.partition(":")[2].strip() for line in _processor_lines() if line.startswith("model name")), "")
    return " ".join(part for part in (platform.system(), platform.machine(), model) if part)


def _processor_lines() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
