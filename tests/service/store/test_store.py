"""The store: what is listed, what references mean, and who may move an alias where."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.errors import (
    AliasInvalid,
    DigestMismatch,
    ManifestInvalid,
    SpaceMismatch,
    StoreError,
    UnknownVersion,
)
from service.store.aliases import MAX_ALIASES_BYTES, AliasEntry, AliasFile, dump_aliases, is_alias_name, parse_aliases
from service.store.disk import Disk
from service.store.store import Resolved, Store

BuildBundle = Callable[..., Path]


@pytest.fixture
def store(store_dir: Path) -> Store:
    return Store(store_dir)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_aliases(store: Store, name: str, document: Any) -> None:
    raw = document if isinstance(document, str) else json.dumps(document)
    (store.root / name / "aliases.json").write_text(raw)


def test_lists_students_and_versions(store: Store) -> None:
    assert store.students() == ["toy", "toy-embed"]
    assert store.versions("toy") == [1]
    assert repr(store) == f"Store({str(store.root)!r})"


def test_versions_rise_as_numbers_not_as_text(store: Store) -> None:
    for version in ("2", "10"):
        shutil.copytree(store.root / "toy" / "1", store.root / "toy" / version)
    assert store.versions("toy") == [1, 2, 10]


def test_a_store_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert Store(tmp_path / "nowhere").students() == []
    assert Store(tmp_path / "nowhere").versions("toy") == []


def test_a_store_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be read"):
        Store(tmp_path / "file").students()


def test_what_is_not_a_student_or_a_version_is_not_listed(store: Store) -> None:
    for folder in (".git", "lost+found", "Upper", "empty", "toy/.staging-0a", "toy/03", "toy/0", "toy/4", "toy/v5"):
        (store.root / folder).mkdir()
    (store.root / "toy" / ".staging-0a" / "manifest.json").write_text("{}")
    (store.root / "toy" / "6").write_text("a file")
    (store.root / "README.md").write_text("a file")
    assert store.students() == ["toy", "toy-embed"]
    assert store.versions("toy") == [1]


def test_a_broken_version_is_listed_and_hides_nothing(store: Store) -> None:
    (store.root / "toy" / "1" / "manifest.json").write_text("{")
    write_aliases(store, "toy", "{")
    assert store.students() == ["toy", "toy-embed"]
    assert store.versions("toy") == [1]
    assert store.open("toy-embed", 1).manifest.name == "toy-embed"


def test_a_student_with_only_an_alias_file_is_listed(store: Store) -> None:
    (store.root / "new").mkdir()
    write_aliases(store, "new", {"schema": 1, "aliases": {}, "rules": {}})
    assert store.students() == ["new", "toy", "toy-embed"]


@pytest.mark.parametrize(
    ("reference", "resolved"),
    [
        ("toy", Resolved("toy", 1, "production")),
        ("toy@production", Resolved("toy", 1, "production")),
        ("toy@1", Resolved("toy", 1, None)),
        ("toy-embed", Resolved("toy-embed", 1, "production")),
    ],
)
def test_resolves(store: Store, reference: str, resolved: Resolved) -> None:
    assert store.resolve(reference) == resolved


@pytest.mark.parametrize(
    "reference",
    [
        "",
        "@",
        "toy@",
        "toy@2",
        "toy@0",
        "toy@01",
        "toy@¹",
        "toy@canary",
        "toy@production@1",
        "other",
        "../toy",
        "Toy",
        "toy\n",
    ],
)
def test_does_not_resolve(store: Store, reference: str) -> None:
    with pytest.raises(UnknownVersion):
        store.resolve(reference)


def test_an_alias_to_a_version_that_is_gone_does_not_resolve(store: Store) -> None:
    write_aliases(store, "toy", {"schema": 1, "aliases": {"production": {"version": 7}}})
    with pytest.raises(UnknownVersion, match="no version 7"):
        store.resolve("toy")


def test_a_student_without_an_alias_file_has_no_production(store: Store) -> None:
    (store.root / "toy" / "aliases.json").unlink()
    assert store.aliases("toy") == AliasFile()
    with pytest.raises(UnknownVersion, match="no alias 'production'"):
        store.resolve("toy")
    assert store.resolve("toy@1").version == 1


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("", "not JSON"),
        ("[]", "not an object"),
        ({"schema": 2}, "/schema"),
        ({"schema": 1, "aliases": {"3": {"version": 1}}}, "'3' cannot be an alias"),
        ({"schema": 1, "aliases": {"Upper": {"version": 1}}}, "'Upper' cannot be an alias"),
        ({"schema": 1, "aliases": {"a": {"version": 0}}}, "/aliases/a/version"),
        ({"schema": 1, "aliases": {"a": {"version": "1"}}}, "/aliases/a/version"),
        ({"schema": 1, "aliases": {"a": {"version": 1, "weight": 1.5}}}, "/aliases/a/weight"),
        ({"schema": 1, "aliases": {"a": {"version": 1, "previous": [0]}}}, "/aliases/a/previous/0"),
        ({"schema": 1, "aliases": {"a": {"version": 1, "previous": [2] * 17}}}, "/aliases/a/previous"),
        ({"schema": 1, "aliases": {"a": {"version": 1, "colour": 1}}}, "/aliases/a/colour"),
        ({"schema": 1, "alias": {}}, "/alias"),
        ('{"aliases": {"a": {"version": 1}, "a": {"version": 2}}}', "'a' occurs twice"),
        (" " * (MAX_ALIASES_BYTES + 1), "over"),
    ],
)
def test_an_alias_file_that_is_wrong(store: Store, document: Any, said: str) -> None:
    write_aliases(store, "toy", document)
    with pytest.raises(AliasInvalid, match=rf"^toy/aliases\.json: .*{said}"):
        store.resolve("toy")


def test_an_alias_file_that_is_a_directory(store: Store) -> None:
    (store.root / "toy" / "aliases.json").unlink()
    (store.root / "toy" / "aliases.json").mkdir()
    with pytest.raises(AliasInvalid, match="cannot be read"):
        store.aliases("toy")


def test_an_alias_file_is_dumped_as_it_is_read() -> None:
    entries = {"production": AliasEntry(version=3, previous=(2, 1)), "canary": AliasEntry(version=4, weight=0.05)}
    aliases = AliasFile(aliases=entries, rules={"promote": {"after_s": None}})
    assert parse_aliases(dump_aliases(aliases), student="toy") == aliases
    assert json.loads(dump_aliases(aliases)) == {
        "schema": 1,
        "aliases": {"canary": {"version": 4, "weight": 0.05}, "production": {"version": 3, "previous": [2, 1]}},
        "rules": {"promote": {"after_s": None}},
    }


@pytest.mark.parametrize("alias", ["", "3", "007", "Upper", "a b", "-x", "a" * 65, "é", "a\n"])
def test_what_may_not_be_an_alias(store: Store, alias: str) -> None:
    assert not is_alias_name(alias)
    before = (store.root / "toy" / "aliases.json").read_bytes()
    with pytest.raises(AliasInvalid, match="cannot be an alias"):
        store.set_alias("toy", alias, 1)
    assert (store.root / "toy" / "aliases.json").read_bytes() == before


def test_opens_a_version(store: Store) -> None:
    assert store.open("toy", 1).manifest.name == "toy"
    with pytest.raises(UnknownVersion):
        store.open("toy", 2)
    with pytest.raises(UnknownVersion):
        store.open("../toy", 1)


def test_refuses_a_version_that_is_another_students(store: Store) -> None:
    shutil.copytree(store.root / "toy" / "1", store.root / "imposter" / "1")
    with pytest.raises(ManifestInvalid, match="/name: 'toy', but this is student 'imposter'"):
        store.open("imposter", 1)


def test_moves_an_alias_and_keeps_the_rest(store: Store, build_bundle: BuildBundle) -> None:
    build_bundle(store.root / "toy" / "2", seed=2)
    rules = {"promote": {"after_s": 60}}
    write_aliases(store, "toy", {"schema": 1, "aliases": {"production": {"version": 1}}, "rules": rules})
    store.set_alias("toy", "canary", 1, weight=0.05)
    store.set_alias("toy", "canary", 2)
    assert store.resolve("toy@canary").version == 2
    assert store.aliases("toy").aliases == {
        "production": AliasEntry(version=1),
        "canary": AliasEntry(version=2, weight=0.05, previous=(1,)),
    }
    assert store.aliases("toy").rules == rules
    assert names(store.root / "toy") == ["1", "2", "aliases.json"]


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_refuses_a_weight_that_is_no_share(store: Store, weight: float) -> None:
    with pytest.raises(AliasInvalid, match="weight"):
        store.set_alias("toy", "canary", 1, weight=weight)


def test_refuses_to_point_an_alias_at_nothing_or_at_a_broken_version(store: Store, build_bundle: BuildBundle) -> None:
    (build_bundle(store.root / "toy" / "2") / "tokenizer.json").write_text("x")
    with pytest.raises(UnknownVersion):
        store.set_alias("toy", "production", 3)
    with pytest.raises(DigestMismatch):
        store.set_alias("toy", "production", 2)
    assert store.resolve("toy").version == 1


def test_an_alias_moves_within_a_space_but_not_between_spaces(store: Store, build_bundle: BuildBundle) -> None:
    build_bundle(store.root / "toy-embed" / "2", task="embed", seed=2)
    build_bundle(store.root / "toy-embed" / "3", task="embed", space_id="toy-space-2")
    store.set_alias("toy-embed", "production", 2)
    with pytest.raises(SpaceMismatch, match="'toy-space-1' to 'toy-space-2'"):
        store.set_alias("toy-embed", "production", 3)
    assert store.resolve("toy-embed").version == 2
    store.set_alias("toy-embed", "next", 3)
    store.set_alias("toy-embed", "production", 3, allow_new_space=True)
    assert store.resolve("toy-embed").version == 3


def test_an_alias_does_not_leave_a_version_whose_space_cannot_be_read(store: Store, build_bundle: BuildBundle) -> None:
    build_bundle(store.root / "toy-embed" / "2", task="embed")
    (store.root / "toy-embed" / "1" / "manifest.json").write_text("{")
    with pytest.raises(SpaceMismatch, match="unreadable, version 1"):
        store.set_alias("toy-embed", "production", 2)
    store.set_alias("toy-embed", "production", 2, allow_new_space=True)
    assert store.resolve("toy-embed").version == 2


class FullDisk(Disk):
    """A disk on which no file can be written."""

    def write(self, target: Path, raw: bytes) -> None:
        target.write_bytes(raw[:3])
        raise OSError(28, "No space left on device", str(target))


def test_an_alias_stays_when_the_disk_is_full(store: Store) -> None:
    before = (store.root / "toy" / "aliases.json").read_bytes()
    with pytest.raises(StoreError, match="toy@canary: not moved: No space left on device"):
        Store(store.root, disk=FullDisk()).set_alias("toy", "canary", 1)
    assert (store.root / "toy" / "aliases.json").read_bytes() == before
    assert names(store.root / "toy") == ["1", "aliases.json"]
