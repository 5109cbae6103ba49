"""A directory of students: what is there, what a reference means, and how a new version gets in.

    ROOT/NAME/VERSION/       a bundle; VERSION is 1, 2, 3 ...; never rewritten once it is there, but for its report card
    ROOT/NAME/aliases.json   see `aliases.py`
    ROOT/NAME/.staging-*     a publish in progress, or what a killed one left; never shown, removed by the next

Writers take an advisory lock on ROOT/NAME; readers need none, since every change they can see is one rename.
"""

import contextlib
import errno
import re
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from service.bundle.load import MANIFEST, Bundle, load_bundle, load_manifest
from service.bundle.manifest import NAME, Manifest
from service.errors import (
    AliasInvalid,
    BundleError,
    ManifestInvalid,
    PublishFailed,
    SpaceMismatch,
    StoreError,
    UnknownVersion,
)
from service.store.aliases import (
    ALIASES,
    DEFAULT_ALIAS,
    MAX_ALIASES_BYTES,
    AliasFile,
    check_alias_name,
    dump_aliases,
    parse_aliases,
)
from service.store.disk import Disk
from service.store.lock import locked

STAGING = ".staging-"
VERSION = re.compile(r"[1-9][0-9]{0,8}")
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a reference means now: a student's version, and the alias it was asked by, if any."""

    name: str
    version: int
    alias: str | None


class Store:
    """The students under one directory.

    Owner: nobody; every method reads the disk afresh, and writers in several processes exclude one another by name.
    Invariant: whatever fails or is killed, a reader sees a whole version or none, and the old aliases or the new.
    """

    def __init__(self, root: Path, *, disk: Disk | None = None) -> None:
        self.root = root
        self._disk = disk if disk is not None else Disk()

    def __repr__(self) -> str:
        return f"Store({str(self.root)!r})"

    def students(self) -> list[str]:
        """The names of the students, sorted; none where the directory does not exist.

        Raises: StoreError: the directory cannot be read.
        """
        names = [entry.name for entry in _entries(self.root) if NAME.fullmatch(entry.name) and entry.is_dir()]
        return sorted(name for name in names if self._is_student(name))

    def versions(self, name: str) -> list[int]:
        """The versions of a student, rising; none where there is no such student.

        Raises: StoreError: the student's directory cannot be read.
        """
        folder = self.root / _checked_name(name)
        return sorted(int(entry.name) for entry in _entries(folder) if _is_version(entry))

    def aliases(self, name: str) -> AliasFile:
        """The aliases of a student; none where it has no alias file. Raises: AliasInvalid: the file is broken."""
        try:
            with (self.root / _checked_name(name) / ALIASES).open("rb") as opened:
                raw = opened.read(MAX_ALIASES_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):
            return AliasFile()
        except OSError as error:
            raise AliasInvalid(f"{name}/{ALIASES}: cannot be read: {error.strerror}") from error
        if len(raw) > MAX_ALIASES_BYTES:
            raise AliasInvalid(f"{name}/{ALIASES}: over {MAX_ALIASES_BYTES} bytes")
        return parse_aliases(raw, student=name)

    def resolve(self, reference: str) -> Resolved:
        """The version that `name` (its production alias), `name@alias` or `name@3` means now.

        Raises:
            UnknownVersion: no such student, version or alias, or the alias points at a version that is not there.
            AliasInvalid: the student's alias file is broken.
        """
        name, at, wanted = reference.partition("@")
        versions = self.versions(name)
        if not versions:
            raise UnknownVersion(f"no student {name!r} in {self.root}")
        if wanted.isdigit():
            return Resolved(name, self._present(name, wanted, versions), None)
        alias = wanted if at else DEFAULT_ALIAS
        entry = self.aliases(name).aliases.get(alias)
        if entry is None:
            raise UnknownVersion(f"student {name!r} has no alias {alias!r}")
        return Resolved(name, self._present(name, str(entry.version), versions), alias)

    def open(self, name: str, version: int) -> Bundle:
        """A version, verified.

        Raises:
            UnknownVersion: it is not in the store.
            BundleError: it is broken; which of its kinds and the message say how.
        """
        self._present(name, str(version), self.versions(name))
        return _named(load_bundle(self.root / name / str(version)), name)

    def publish(self, staged: Path, *, name: str, alias: str | None, allow_new_space: bool = False) -> int:
        """Add a bundle as the student's next version and, last, move an alias to it.

        Only the manifest and the files it lists are copied; `staged` is left as it is. An alias that moves keeps its
        weight.

        Args:
            staged: a directory with a complete bundle, on any file system.
            name: the student, as in the manifest.
            alias: what to point at the new version; None for nothing.
            allow_new_space: let the alias move to another embedding space.
        Returns: the new version's number.
        Raises:
            BundleError: the staged bundle is broken, or carries another student's name.
            AliasInvalid, SpaceMismatch: the alias may not be moved; nothing was published.
            PublishFailed: the disk refused a step; nothing was published and the aliases are as they were.
        """
        bundle = _named(load_bundle(staged), name)
        if alias is not None:
            check_alias_name(alias)
        try:
            with self._changing(name) as folder:
                if alias is not None and not allow_new_space:
                    self._check_space(name, alias, bundle.manifest)
                return self._add(bundle, folder, alias)
        except OSError as error:
            raise PublishFailed(f"{name}: nothing was published: {_reason(error)}") from error

    def set_alias(
        self, name: str, alias: str, version: int, *, weight: float | None = None, allow_new_space: bool = False
    ) -> None:
        """Point an alias at a version, which is verified first.

        Args:
            name: the student.
            alias: made if it is new.
            version: one that is in the store.
            weight: share of traffic, 0 to 1; None keeps what the alias has.
            allow_new_space: let the alias move to another embedding space.
        Raises:
            UnknownVersion: no such student or version.
            BundleError: that version is broken.
            AliasInvalid: the name may not be an alias, the weight is out of bounds, or the alias file is broken.
            SpaceMismatch: the version's embeddings are of another space than those the alias gives now.
            StoreError: the disk refused.
        """
        check_alias_name(alias)
        if weight is not None and not 0 <= weight <= 1:
            raise AliasInvalid(f"{name}@{alias}: weight {weight} is not between 0 and 1")
        bundle = self.open(name, version)
        with self._moving(name, alias) as folder:
            if not allow_new_space:
                self._check_space(name, alias, bundle.manifest)
            self._replace_aliases(folder, self.aliases(name).pointed(alias, version, weight=weight))

    def roll_back(self, name: str, alias: str = DEFAULT_ALIAS, *, allow_new_space: bool = False) -> int:
        """Point an alias at the version before, which is verified first; the one it leaves is forgotten.

        Returns: the version it points at now.
        Raises:
            UnknownVersion: no such student or alias, no version before is known, or it is no longer in the store.
            BundleError: the version before is broken.
            AliasInvalid, SpaceMismatch, StoreError: as for `set_alias`.
        """
        before = self.resolve(f"{name}@{alias}").version
        entry = self.aliases(name).aliases[alias]
        if not entry.previous:
            raise UnknownVersion(f"{name}@{alias}: no version before {before} is known")
        version, *older = entry.previous
        bundle = self.open(name, version)
        with self._moving(name, alias) as folder:
            aliases = self.aliases(name)
            if aliases.aliases.get(alias) != entry:
                raise StoreError(f"{name}@{alias}: not rolled back: somebody else has just moved it")
            if not allow_new_space:
                self._check_space(name, alias, bundle.manifest)
            back = entry.model_copy(update={"version": version, "previous": tuple(older)})
            self._replace_aliases(folder, aliases.changed(alias, back))
        return version

    def collect(self, name: str, *, keep: int, dry_run: bool = False) -> list[int]:
        """Delete versions that nobody needs.

        Kept are those that an alias points at, the one that each would roll back to, and the `keep` newest; the
        newest of all stays in any case, so that its number is not used again.

        Returns: the versions that were deleted, or would be.
        Raises:
            UnknownVersion: no such student.
            AliasInvalid: its alias file is broken.
            StoreError: the disk refused; what was deleted before that is gone.
        """
        if not self.versions(name):
            raise UnknownVersion(f"no student {name!r} in {self.root}")
        if dry_run:
            return self._unneeded(name, keep)
        try:
            with self._changing(name) as folder:
                unneeded = self._unneeded(name, keep)
                for version in unneeded:
                    # out of sight at once, whole; its files go when the lock does
                    self._disk.rename(folder / str(version), folder / f"{STAGING}{secrets.token_hex(8)}")
                self._disk.sync_directory(folder)
        except OSError as error:
            raise StoreError(f"{name}: versions were not deleted: {_reason(error)}") from error
        return unneeded

    def _unneeded(self, name: str, keep: int) -> list[int]:
        versions = self.versions(name)
        entries = self.aliases(name).aliases.values()
        needed = {version for entry in entries for version in (entry.version, *entry.previous[:1])}
        return [version for version in versions[: -max(keep, 1)] if version not in needed]

    @contextlib.contextmanager
    def _moving(self, name: str, alias: str) -> Iterator[Path]:
        """The student's directory, locked. Raises: StoreError: the disk refused a step of what is done with it."""
        try:
            with self._changing(name) as folder:
                yield folder
        except OSError as error:
            raise StoreError(f"{name}@{alias}: not moved: {_reason(error)}") from error

    def _replace_aliases(self, folder: Path, aliases: AliasFile) -> None:
        self._disk.rename(self._prepared(folder, aliases), folder / ALIASES)
        self._disk.sync_directory(folder)

    def _is_student(self, name: str) -> bool:
        """Whether a directory is to be listed; one that cannot be read is, so that it hides no other."""
        try:
            return bool(self.versions(name)) or (self.root / name / ALIASES).is_file()
        except (StoreError, OSError):
            return True

    def _present(self, name: str, version: str, versions: list[int]) -> int:
        if not VERSION.fullmatch(version) or int(version) not in versions:
            raise UnknownVersion(f"student {name!r} has no version {version} in {self.root}")
        return int(version)

    def _check_space(self, name: str, alias: str, manifest: Manifest) -> None:
        """Refuse to move an alias between embedding spaces, and from a version whose space cannot be read."""
        entry = self.aliases(name).aliases.get(alias)
        if entry is None or manifest.space_id is None:
            return
        try:
            before = load_manifest(self.root / name / str(entry.version)).space_id
        except BundleError:
            before = f"unreadable, version {entry.version}"
        if before != manifest.space_id:
            raise SpaceMismatch(
                f"{name}@{alias}: would move from embedding space {before!r} to {manifest.space_id!r}; "
                "stored embeddings would no longer compare"
            )

    @contextlib.contextmanager
    def _changing(self, name: str) -> Iterator[Path]:
        """The student's directory, made if need be, locked, and rid of what killed writers left there.

        A directory that this call made and that stays empty is taken away again.
        """
        folder = self.root / name
        with locked(folder) as made:
            try:
                _remove_leftovers(folder)
                yield folder
            finally:
                _remove_leftovers(folder)
                if made:
                    with contextlib.suppress(OSError):
                        folder.rmdir()

    def _add(self, bundle: Bundle, folder: Path, alias: str | None) -> int:
        staging = folder / f"{STAGING}{secrets.token_hex(8)}"
        self._copy(bundle, staging)
        load_bundle(staging)
        for version in count(self._next_version(folder.name)):
            aliases = self.aliases(folder.name)
            prepared = self._prepared(folder, aliases.pointed(alias, version, weight=None)) if alias else None
            try:
                self._disk.rename(staging, folder / str(version))
            except OSError as error:
                # subtle: someone who does not take the lock (another file system's client) was first with this number
                if error.errno not in _TAKEN:
                    raise
            else:
                self._commit(folder, version, prepared)
                return version
        raise AssertionError("version numbers do not end")

    def _commit(self, folder: Path, version: int, prepared: Path | None) -> None:
        """Make a version that was just renamed into place durable and move the alias, or take it out again."""
        try:
            self._disk.sync_directory(folder)
            self._disk.sync_directory(self.root)
            if prepared is not None:
                self._disk.rename(prepared, folder / ALIASES)
        except OSError:
            (folder / str(version)).rename(folder / f"{STAGING}{secrets.token_hex(8)}")
            raise
        # subtle: the alias is seen already; should its entry not survive a power cut, the old one holds: both are whole
        with contextlib.suppress(OSError):
            self._disk.sync_directory(folder)

    def _copy(self, bundle: Bundle, staging: Path) -> None:
        self._disk.make_directory(staging)
        folders = {staging}
        for file in [*bundle.manifest.files, MANIFEST]:
            for parent in reversed((staging / file).relative_to(staging).parents):
                if staging / parent not in folders:
                    self._disk.make_directory(staging / parent)
                    folders.add(staging / parent)
            self._disk.copy(bundle.path / file, staging / file)
        for made in sorted(folders, reverse=True):
            self._disk.sync_directory(made)

    def _prepared(self, folder: Path, aliases: AliasFile) -> Path:
        """The new alias file, written aside."""
        prepared = folder / f"{STAGING}{secrets.token_hex(8)}.json"
        self._disk.write(prepared, dump_aliases(aliases))
        return prepared

    def _next_version(self, name: str) -> int:
        """One more than any number in use, or named by an alias: a number is never used twice."""
        numbers = [int(entry.name) for entry in _entries(self.root / name) if VERSION.fullmatch(entry.name)]
        named = [entry.version for entry in self.aliases(name).aliases.values()]
        return max([0, *numbers, *named]) + 1


def _checked_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise UnknownVersion(f"{name!r} is not a student's name")
    return name


def _is_version(entry: Path) -> bool:
    """Whether a directory entry is a published version; one that cannot be looked into is, and fails when opened."""
    try:
        return VERSION.fullmatch(entry.name) is not None and (entry / MANIFEST).is_file()
    except OSError:
        return True


def _named(bundle: Bundle, name: str) -> Bundle:
    if bundle.manifest.name != name:
        raise ManifestInvalid(f"{MANIFEST}: /name: {bundle.manifest.name!r}, but this is student {name!r}")
    return bundle


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"{folder}: cannot be read: {error.strerror}") from error


def _remove_leftovers(folder: Path) -> None:
    for entry in _entries(folder):
        if entry.name.startswith(STAGING):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)


def _reason(error: OSError) -> str:
    where = f": {error.filename}" if error.filename else ""
    return f"{error.strerror or error}{where}"
