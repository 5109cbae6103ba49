"""A file of data as a provenance names it."""

import hashlib
from pathlib import Path

from service.bundle.manifest import DataSource


def file_source(role: str, file: str, rows: int, licence: str) -> DataSource:
    """The file's name, digest and licence, for a provenance.

    Raises: OSError: it cannot be read.
    """
    with Path(file).open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return DataSource(role=role, name=_public_name(file), sha256=digest, rows=rows, licence=licence)


def _public_name(file: str) -> str:
    """A file's name and its folder's: enough to know it by, and nothing of where it lies on this machine."""
    path = Path(file).resolve()
    return f"{path.parent.name}/{path.name}".lstrip("/")
