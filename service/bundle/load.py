"""A directory becomes a verified `Bundle`, or one named error says why not.

Nothing is read before its size is bounded, nothing outside the bundle's directory is read, files that the manifest
does not list are left alone, and every listed file has the bytes that were published. Graphs are not opened here.
"""

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from service.bundle.golden import Golden, GoldenSample, parse_golden
from service.bundle.manifest import FileEntry, Manifest, parse_manifest
from service.errors import DigestMismatch, FileMissing, FileTooLarge

__all__ = ["Bundle", "Golden", "GoldenSample", "file_entry", "load_bundle", "load_manifest"]

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 16 * 2**20
MAX_GOLDEN_BYTES = 64 * 2**20
MAX_FILE_BYTES = 2 * 2**30  # what one ONNX graph without external data can be
MAX_BUNDLE_BYTES = 8 * 2**30


@dataclass(frozen=True, slots=True)
class Bundle:
    """One version of a student on disk. Invariant: every file that `manifest.files` lists had its digest at loading."""

    path: Path
    manifest: Manifest
    golden: Golden

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer.json."""
        return self.path / self.manifest.tokenizer.file

    def graph_path(self, precision: str, stage_id: str) -> Path:
        """The graph of a stage in a precision. Raises: KeyError: the manifest has no such precision or stage."""
        return self.path / self.manifest.precisions[precision].files[stage_id]


def load_bundle(path: Path) -> Bundle:
    """Read and verify a bundle's directory: schema, presence, sizes and digests, not the graphs themselves.

    Args:
        path: the directory that holds manifest.json.
    Raises:
        ManifestInvalid: manifest.json or golden.json breaks its schema, or they contradict each other.
        FormatTooNew: a newer major version, or a requirement that this reader does not know.
        FileMissing: a file is not there, is not a regular file, cannot be read, or leads outside the directory.
        FileTooLarge: a file is over its bound or larger than the manifest says; all of them together are over theirs.
        DigestMismatch: a file's bytes are not those of the manifest.
    """
    # subtle: the path is resolved once, so that what is verified here is what is opened later, whatever links change
    root = _resolved(path)
    manifest = load_manifest(root)
    _check_sizes(root, manifest.files)
    for file, entry in manifest.files.items():
        _check_digest(root, file, entry)
    golden = parse_golden(_read(root, manifest.golden, bound=MAX_GOLDEN_BYTES), manifest=manifest)
    return Bundle(root, manifest, golden)


def load_manifest(path: Path) -> Manifest:
    """The manifest of a bundle's directory, alone: no other file is looked at.

    Raises: ManifestInvalid, FormatTooNew, FileMissing, FileTooLarge: as `load_bundle` does.
    """
    return parse_manifest(_read(_resolved(path), MANIFEST, bound=MAX_MANIFEST_BYTES))


def file_entry(path: Path) -> FileEntry:
    """The manifest's entry for a file: its digest and size. Raises: OSError: it cannot be read."""
    with path.open("rb") as opened:
        return FileEntry(
            sha256=hashlib.file_digest(opened, "sha256").hexdigest(), bytes=os.fstat(opened.fileno()).st_size
        )


def _resolved(path: Path) -> Path:
    try:
        return path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise FileMissing(f"{path}: no such bundle") from error


def _size(root: Path, file: str) -> int:
    """The size in bytes of a regular file inside `root`; links are followed as long as they stay inside."""
    try:
        target = (root / file).resolve(strict=True)
        status = target.stat()
    except (OSError, RuntimeError) as error:
        raise FileMissing(f"{file}: not in the bundle {root}") from error
    if not target.is_relative_to(root):
        raise FileMissing(f"{file}: leads outside the bundle {root}")
    if not stat.S_ISREG(status.st_mode):
        raise FileMissing(f"{file}: not a regular file in the bundle {root}")
    return status.st_size


def _read(root: Path, file: str, *, bound: int) -> bytes:
    """All bytes of a file, at most `bound`."""
    _check_bound(file, _size(root, file), bound)
    try:
        with (root / file).open("rb") as opened:
            raw = opened.read(bound + 1)
    except OSError as error:
        raise FileMissing(f"{file}: cannot be read: {error.strerror}") from error
    _check_bound(file, len(raw), bound)
    return raw


def _check_bound(what: str, size: int, bound: int) -> None:
    if size > bound:
        raise FileTooLarge(f"{what}: {size} bytes, over the bound of {bound}")


def _check_sizes(root: Path, files: dict[str, FileEntry]) -> None:
    _check_bound("all files together", sum(entry.bytes for entry in files.values()), MAX_BUNDLE_BYTES)
    for file, entry in files.items():
        _check_bound(file, entry.bytes, MAX_FILE_BYTES)
        size = _size(root, file)
        if size > entry.bytes:
            raise FileTooLarge(f"{file}: {size} bytes, the manifest says {entry.bytes}")
        if size < entry.bytes:
            raise DigestMismatch(f"{file}: {size} bytes, the manifest says {entry.bytes}")


def _check_digest(root: Path, file: str, entry: FileEntry) -> None:
    try:
        found = file_entry(root / file)
    except OSError as error:
        raise FileMissing(f"{file}: cannot be read: {error.strerror}") from error
    if found != entry:
        raise DigestMismatch(f"{file}: sha256 is {found.sha256}, the manifest says {entry.sha256}")
