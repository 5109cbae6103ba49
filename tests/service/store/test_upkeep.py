"""Going back to the version before, and deleting versions that nobody needs."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from service.errors import AliasInvalid, DigestMismatch, SpaceMismatch, StoreError, UnknownVersion
from service.store.aliases import MAX_PREVIOUS, AliasEntry
from service.store.disk import Disk
from service.store.store import Store

BuildBundle = Callable[..., Path]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def store(store_dir: Path, build_bundle: BuildBundle) -> Store:
    """A student of four versions, of which the first is in production."""
    for version in (2, 3, 4):
        build_bundle(store_dir / "toy" / str(version), seed=version)
    return Store(store_dir)


def test_a_rollback_goes_to_the_version_before_and_the_next_one_further(store: Store) -> None:
    for version in (2, 2, 4):
        store.set_alias("toy", "production", version, weight=0.5)
    assert store.aliases("toy").aliases["production"] == AliasEntry(version=4, weight=0.5, previous=(2, 1))
    assert store.roll_back("toy") == 2
    assert store.roll_back("toy") == 1
    assert store.aliases("toy").aliases["production"] == AliasEntry(version=1, weight=0.5)
    with pytest.raises(UnknownVersion, match="toy@production: no version before 1 is known"):
        store.roll_back("toy")


def test_a_rollback_of_another_alias(store: Store) -> None:
    store.set_alias("toy", "canary", 3)
    store.set_alias("toy", "canary", 4)
    assert store.roll_back("toy", "canary") == 3
    assert store.resolve("toy").version == 1


def test_a_version_stands_once_in_the_history_which_is_bounded() -> None:
    entry = AliasEntry(version=1)
    for version in (2, 1, 2, 3):
        entry = entry.moved(version)
    assert (entry.version, entry.previous) == (3, (2, 1))
    for version in range(4, 40):
        entry = entry.moved(version)
    assert entry.previous == tuple(range(38, 38 - MAX_PREVIOUS, -1))


@pytest.mark.parametrize(("name", "alias"), [("none", "production"), ("toy", "none")])
def test_no_such_student_or_alias(store: Store, name: str, alias: str) -> None:
    with pytest.raises(UnknownVersion):
        store.roll_back(name, alias)


def test_a_rollback_to_what_is_gone_or_broken_is_refused(store: Store) -> None:
    store.set_alias("toy", "production", 2)
    (store.root / "toy" / "1" / "tokenizer.json").write_text("x")
    with pytest.raises(DigestMismatch):
        store.roll_back("toy")
    (store.root / "toy" / "1").rename(store.root / "toy" / "gone")
    with pytest.raises(UnknownVersion, match="no version 1"):
        store.roll_back("toy")
    assert store.resolve("toy").version == 2


def test_a_rollback_between_spaces_must_be_asked_for(store_dir: Path, build_bundle: BuildBundle) -> None:
    store = Store(store_dir)
    build_bundle(store_dir / "toy-embed" / "2", task="embed", space_id="toy-space-2")
    store.set_alias("toy-embed", "production", 2, allow_new_space=True)
    with pytest.raises(SpaceMismatch):
        store.roll_back("toy-embed")
    assert store.roll_back("toy-embed", allow_new_space=True) == 1


class ReadOnlyDisk(Disk):
    """A disk on which nothing can be changed."""

    def write(self, target: Path, raw: bytes) -> None:
        raise OSError(30, "Read-only file system", str(target))

    def rename(self, source: Path, target: Path) -> None:
        raise OSError(30, "Read-only file system", str(target))


def test_a_store_that_cannot_be_written_says_so(store: Store) -> None:
    store.set_alias("toy", "production", 4)
    still = Store(store.root, disk=ReadOnlyDisk())
    with pytest.raises(StoreError, match="toy@production: not moved: Read-only file system"):
        still.roll_back("toy")
    with pytest.raises(StoreError, match="toy: versions were not deleted: Read-only file system"):
        still.collect("toy", keep=1)
    assert store.versions("toy") == [1, 2, 3, 4]


def test_who_was_overtaken_does_not_roll_back(store: Store) -> None:
    """Another process moves the alias while the version before is being verified."""
    store.set_alias("toy", "production", 2)

    class Overtaken(Store):
        def open(self, name: str, version: int) -> object:  # type: ignore[override]
            store.set_alias("toy", "production", 3)
            return super().open(name, version)

    with pytest.raises(StoreError, match="somebody else has just moved it"):
        Overtaken(store.root).roll_back("toy")
    assert store.resolve("toy").version == 3


def test_deletes_what_no_alias_needs(store: Store) -> None:
    store.set_alias("toy", "canary", 2)
    assert store.collect("toy", keep=1, dry_run=True) == [3]
    assert store.versions("toy") == [1, 2, 3, 4]
    assert store.collect("toy", keep=1) == [3]
    assert names(store.root / "toy") == ["1", "2", "4", "aliases.json"]
    assert store.collect("toy", keep=1) == []


def test_what_an_alias_would_roll_back_to_stays(store: Store) -> None:
    for version in (2, 3, 4):
        store.set_alias("toy", "production", version)
    assert store.collect("toy", keep=1) == [1, 2]
    assert store.roll_back("toy") == 3


@pytest.mark.parametrize(("keep", "gone"), [(0, [2, 3]), (1, [2, 3]), (2, [2]), (3, []), (100, [])])
def test_the_newest_stay(store: Store, keep: int, gone: list[int]) -> None:
    assert store.collect("toy", keep=keep) == gone


def test_a_number_is_not_used_again(store: Store, build_bundle: BuildBundle, tmp_path: Path) -> None:
    store.collect("toy", keep=0)
    assert store.publish(build_bundle(tmp_path / "staged"), name="toy", alias=None) == 5


def test_nothing_is_deleted_where_the_aliases_are_not_known(store: Store) -> None:
    (store.root / "toy" / "aliases.json").write_text("{")
    with pytest.raises(AliasInvalid):
        store.collect("toy", keep=1)
    with pytest.raises(UnknownVersion):
        store.collect("none", keep=1)
    assert store.versions("toy") == [1, 2, 3, 4]


def test_deleting_waits_for_who_moves_an_alias(store: Store) -> None:
    """An alias that moves to a version first is seen, so that the version stays."""
    deleted: list[int] = []
    deleting = threading.Thread(target=lambda: deleted.extend(store.collect("toy", keep=1)))
    with store._changing("toy") as folder:
        deleting.start()
        store._replace_aliases(folder, store.aliases("toy").pointed("canary", 3, weight=None))
    deleting.join()
    assert deleted == [2]
