"""A comparison on the cards of published versions: written, replaced, refused; a killed writer harms no version."""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from models.errors import DataInvalid
from models.evaluate.metrics import Interval
from models.recipe.parts import digest_of
from models.refresh.cards import Target, put_on_card, require_same, targets_of
from models.report.frontier import Comparison, Point
from models.report.frontier_section import PICTURE
from service.bundle.load import load_bundle
from service.errors import DigestMismatch, StoreError, UnknownVersion
from service.runtime.student import Student
from service.store.store import STAGING, Store

COMMAND = "understudy compare toy.yaml --card toy@1"
PNG = b"\x89PNG some picture"


def compared(accuracy: float = 0.9) -> Comparison:
    quality = Interval(accuracy, accuracy - 0.01, accuracy + 0.01)
    points = (Point("toy@1", quality=quality, us_per_text=10.0), Point("other", quality=quality, us_per_text=20.0))
    return Comparison("classify", "accuracy", "100 dev rows", "some processor", points, ("Measured on dev.",))


@pytest.fixture
def store(store_dir: Path) -> Store:
    return Store(store_dir)


@pytest.fixture
def target(store: Store) -> Target:
    return Target(store.open("toy", 1), "toy@1", by_recipe=False)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_section_and_the_picture_are_part_of_the_version(store: Store, target: Target, tmp_path: Path) -> None:
    before = bytes_of(target.bundle.path)
    assert put_on_card(target, compared(), picture=PNG, command=COMMAND)
    bundle = store.open("toy", 1)
    card = (bundle.path / "card.md").read_text()
    assert card.count("## Frontier\n") == 1
    for said in ("`toy@1` in the table, beside 1 other student", f"]({PICTURE})", "| **toy@1** |", COMMAND):
        assert said in card
    assert (bundle.path / PICTURE).read_bytes() == PNG
    assert {"card.md", PICTURE} <= set(bundle.manifest.files)
    after = bytes_of(bundle.path)
    changed = {file for file in after if after[file] != before.get(file)}
    assert changed == {"manifest.json", "card.md", PICTURE}
    Student(bundle).check_golden()
    shutil.copytree(store.root, tmp_path / "served")
    assert Store(tmp_path / "served").publish(bundle.path, name="toy", alias=None) == 2
    assert (tmp_path / "served" / "toy" / "2" / PICTURE).read_bytes() == PNG


def test_a_second_comparison_replaces_the_first(store: Store, target: Target) -> None:
    put_on_card(target, compared(0.8), picture=b"old", command=COMMAND)
    old = (target.bundle.path / "card.md").read_text()
    assert put_on_card(target, compared(0.9), picture=PNG, command=COMMAND)
    card = (store.open("toy", 1).path / "card.md").read_text()
    assert card == old.replace("80.00% (79.00% to 81.00%)", "90.00% (89.00% to 91.00%)")
    assert card != old
    written = bytes_of(target.bundle.path)
    assert not put_on_card(target, compared(0.9), picture=PNG, command=COMMAND)
    assert bytes_of(target.bundle.path) == written


def test_what_stands_around_the_section_stays(store: Store, target: Target) -> None:
    folder = target.bundle.path
    plain = folder / "card.md"
    plain.write_text("# toy\n\n## Quality\n\nfine\n\n## Gates\n\nall passed\n")
    for accuracy in (0.8, 0.9):
        put_on_card(target, compared(accuracy), picture=PNG, command=COMMAND)
    headings = [line for line in plain.read_text().splitlines() if line.startswith("## ")]
    assert headings == ["## Quality", "## Frontier", "## Gates"]
    assert plain.read_text().endswith("## Gates\n\nall passed\n")


def test_whenever_its_writer_is_killed_the_version_is_whole_and_the_next_one_ends_it(
    store_dir: Path, tmp_path: Path, killed_disk: Callable
) -> None:
    clean = None
    for fatal in itertools.count(1):
        root = tmp_path / f"killed-{fatal}"
        shutil.copytree(store_dir, root)
        target = Target(Store(root).open("toy", 1), "toy@1", by_recipe=False)
        put_on_card(target, compared(0.8), picture=b"old", command=COMMAND)
        disk = killed_disk(fatal)
        try:
            put_on_card(target, compared(0.9), picture=PNG, command=COMMAND, disk=disk)
        except killed_disk.Killed:
            Student(Store(root).open("toy", 1)).check_golden()
            put_on_card(target, compared(0.9), picture=PNG, command=COMMAND)
        else:
            assert fatal > 10, "every step was tried"
            break
        found = {file: raw for file, raw in bytes_of(root / "toy" / "1").items() if file != "manifest.json"}
        clean = clean or found
        assert found == clean
        assert set(store_files(root)) == {"card.md", PICTURE} | set(store_files(store_dir))
        assert not list((root / "toy").glob(f"{STAGING}*"))


def store_files(root: Path) -> list[str]:
    return list(load_bundle(root / "toy" / "1").manifest.files)


def test_a_full_disk_is_said_and_leaves_the_version_whole(store: Store, target: Target, full_disk: Callable) -> None:
    with pytest.raises(StoreError, match=r"toy@1: its card was not written: No space left"):
        put_on_card(target, compared(), picture=PNG, command=COMMAND, disk=full_disk())
    assert store.open("toy", 1).manifest == target.bundle.manifest


def test_a_broken_version_is_not_touched(target: Target) -> None:
    (target.bundle.path / "golden.json").write_bytes(b"{}")
    before = bytes_of(target.bundle.path)
    with pytest.raises(DigestMismatch, match=r"golden\.json"):
        put_on_card(target, compared(), picture=PNG, command=COMMAND)
    assert bytes_of(target.bundle.path) == before


def test_another_student_under_the_same_number_is_not_touched(
    store: Store, target: Target, build_bundle: Callable[..., Path]
) -> None:
    shutil.rmtree(target.bundle.path)
    build_bundle(target.bundle.path, task="embed", name="toy")
    with pytest.raises(StoreError, match="not what was compared any more"):
        put_on_card(target, compared(), picture=PNG, command=COMMAND)
    assert "## Frontier" not in "".join(path.read_text() for path in target.bundle.path.glob("card.md"))


class FakeRecipe:
    """As much of a recipe as a digest."""

    def __init__(self, digest: str) -> None:
        self._digest = digest

    def digest(self) -> str:
        return self._digest


def with_recipe(store: Store, digest: str | None) -> None:
    path = store.root / "toy" / "1" / "manifest.json"
    document = json.loads(path.read_text())
    document["provenance"]["recipe_sha256"] = digest
    path.write_text(json.dumps(document))


def test_a_version_is_a_student_that_is_measured_itself_or_that_of_a_recipe(store: Store) -> None:
    ours = digest_of("ours")
    with_recipe(store, ours)
    recipes = {"toy": FakeRecipe(ours), "other": FakeRecipe(digest_of("other"))}
    students = {"toy@1": store.open("toy", 1)}
    (target,) = targets_of(["toy", "toy@1"], store=store.root, recipes=recipes, students=students)
    assert (target.point, target.by_recipe, target.shown) == ("toy@1", False, "toy@1")
    (target,) = targets_of(["toy@production"], store=store.root, recipes=recipes, students={})
    assert (target.point, target.by_recipe) == ("toy", True)


@pytest.mark.parametrize(
    ("made_by", "says"),
    [(digest_of("elder"), "names the recipe [0-9a-f]{16}, which is not"), (None, "names no recipe")],
)
def test_a_version_of_another_recipe_is_refused(store: Store, made_by: str | None, says: str) -> None:
    with_recipe(store, made_by)
    with pytest.raises(DataInvalid, match=f"--card toy@1: it is not compared: its provenance {says}"):
        targets_of(["toy@1"], store=store.root, recipes={"toy": FakeRecipe(digest_of("ours"))}, students={})


def test_a_folder_and_an_unknown_version_are_refused(store: Store) -> None:
    for folder in (store.root / "toy" / "1", Path("/nowhere")):
        with pytest.raises(DataInvalid, match="only versions of the store get it on their cards"):
            targets_of([str(folder)], store=store.root, recipes={}, students={})
    with pytest.raises(UnknownVersion, match="has no version 7"):
        targets_of(["toy@7"], store=store.root, recipes={}, students={})


def test_a_recipe_whose_student_came_out_otherwise_is_refused(
    target: Target, tmp_path: Path, build_bundle: Callable[..., Path]
) -> None:
    by_recipe = Target(target.bundle, "toy", by_recipe=True)
    require_same([by_recipe], {"toy": target.bundle.manifest})
    other = load_bundle(build_bundle(tmp_path / "other", task="embed")).manifest
    early, *later = target.bundle.manifest.exits
    scored = (early.model_copy(update={"score_temperature": 2.0}), *later)
    require_same([by_recipe], {"toy": target.bundle.manifest.model_copy(update={"exits": scored})})
    with pytest.raises(DataInvalid, match="was made by the same recipe, but its files are others"):
        require_same([by_recipe], {"toy": other})
    with pytest.raises(DataInvalid, match="the student of its recipe, toy, could not be made"):
        require_same([by_recipe], {})
    require_same([target], {})
