"""Replacing the report card of a published version in place, so that the version is whole at every moment.

The manifest lists card.md and its pictures with digests, so they are taken out of the manifest, replaced, and listed
again: each of these steps is one rename, and after each of them the version is whole. Graphs, tokenizer, golden samples
and certificates stay as they are, byte for byte.
"""

import secrets
from collections.abc import Collection, Mapping
from pathlib import Path

from service.bundle.load import MANIFEST, Bundle, file_entry, load_bundle
from service.bundle.manifest import FileEntry, Manifest, dump_manifest
from service.store.disk import Disk
from service.store.store import STAGING


def replace_card_files(
    bundle: Bundle, contents: Mapping[str, bytes], *, gone: Collection[str] = (), disk: Disk | None = None
) -> bool:
    """Put files of the card in place of those of the same names; whether anything changed.

    The caller holds the lock of the student's directory. A service that reads the version in this very moment may
    refuse it for once, and finds it whole when it looks again.

    Args:
        bundle: the version, as it is now.
        contents: by path inside the bundle; card.md, pictures, or both.
        gone: further paths that the manifest shall list no more; they are deleted, last.
    Raises:
        BundleError: the version is broken.
        OSError: the disk refused a step; the version is whole even so.
    """
    assert not set(gone) & set(contents), "a file goes or comes"
    folder, listed, on = bundle.path, bundle.manifest.files, disk or Disk()
    same = all(file in listed and (folder / file).read_bytes() == raw for file, raw in contents.items())
    if same and not set(gone) & set(listed):
        return False
    others = {file: entry for file, entry in listed.items() if file not in contents and file not in gone}
    if len(others) < len(listed):
        _put(folder / MANIFEST, _listing(bundle.manifest, others), on, beside=folder)
    for file, raw in contents.items():
        if not (folder / file).parent.is_dir():
            on.make_directory((folder / file).parent)
            on.sync_directory(folder)
        _put(folder / file, raw, on, beside=folder)
    # subtle: in the order they had, so that a second run changes no other line
    order = [*(file for file in listed if file not in gone), *(file for file in contents if file not in listed)]
    entries = {file: others[file] if file in others else file_entry(folder / file) for file in order}
    _put(folder / MANIFEST, _listing(bundle.manifest, entries), on, beside=folder)
    for file in gone:
        (folder / file).unlink(missing_ok=True)
    load_bundle(folder)
    return True


def _listing(manifest: Manifest, files: Mapping[str, FileEntry]) -> bytes:
    return dump_manifest(manifest.model_copy(update={"files": dict(files)}))


def _put(target: Path, raw: bytes, disk: Disk, *, beside: Path) -> None:
    """A file in place of another, or a new one, durable."""
    # subtle: written beside the version, where the store hides and later removes what a killed writer left
    staged = beside.parent / f"{STAGING}{secrets.token_hex(8)}.part"
    try:
        disk.write(staged, raw)
        disk.rename(staged, target)
    finally:
        staged.unlink(missing_ok=True)
    disk.sync_directory(target.parent)
