"""More seeds on the card of a published version: replaced, left alone, refused; a killed writer harms no version."""

import io
import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from models.refresh.cards import Target, put_on_card
from models.refresh.progress import Reporter
from models.refresh.publishing import Published, publish
from models.refresh.seeds_on_card import put_seeds_on_card
from models.report.frontier import Comparison, Point
from models.report.frontier_section import PICTURE, frontier_of
from models.report.seeds import refresh_command
from service.bundle.load import file_entry
from service.errors import DigestMismatch, StoreError
from service.runtime.student import Student
from service.store.store import STAGING, Store

FIRST, LATER = "2026-01-01T00:00:00Z", "2026-01-02T03:04:05Z"
PICTURES = ("card/exits.png", "card/quality.png")
PNG = b"\x89PNG some picture"


@dataclass(frozen=True)
class Toy:
    """A student of one task, its runs and its store."""

    folder: Path
    build: Callable[..., Path]
    task: str = "classify"
    name: str = "toy"

    @property
    def store(self) -> Store:
        return Store(self.folder / "store")

    def made(self, *, seeds: int, created: str = LATER, pictures: tuple[str, ...] = PICTURES, **fields: object) -> Path:
        """What the version step of a run of so many seeds leaves."""
        card = f"# {self.name}\n\n## Gates\n\nmet, with {seeds} seeds\n\n## How it was made\n\n- made on {created}\n\n"
        card += f"```\n{refresh_command(self.name, seeds=seeds)}\n```\n"
        files = {"card.md": card.encode(), **{file: f"{file} of {seeds}".encode() for file in pictures}}

        def change(document: dict) -> None:
            document["provenance"]["created"] = created
            document.update(fields)

        where = self.folder / f"made-{seeds}-{created[:10]}"
        shutil.rmtree(where, ignore_errors=True)
        pairs = "joint" if self.task == "rank" else "none"
        return self.build(where, task=self.task, name=self.name, pairs=pairs, extra_files=files, change=change)

    def publish(self, made: Path, alias: str = "canary") -> tuple[Published, str]:
        """As every job ends, and what was said."""
        said = io.StringIO()
        recipe = SimpleNamespace(name=self.name, publish=SimpleNamespace(alias=alias))
        published = publish(recipe, made, self.store, Reporter(said))
        return published, said.getvalue()

    def compare(self, version: int = 1) -> None:
        """Write a frontier onto the card."""
        found = Comparison("classify", "accuracy", "100 dev rows", "a processor", (Point("toy@1"),), ("On dev.",))
        target = Target(self.store.open(self.name, version), "toy@1", by_recipe=False)
        assert put_on_card(target, found, picture=PNG, command="understudy compare --card toy@1")

    def version(self, number: int = 1) -> Path:
        return self.store.root / self.name / str(number)

    def card(self, number: int = 1) -> str:
        return (self.version(number) / "card.md").read_text()


@pytest.fixture
def toy(tmp_path: Path, build_bundle: Callable[..., Path]) -> Toy:
    """Published with one seed."""
    made = Toy(tmp_path, build_bundle)
    made.publish(made.made(seeds=1, created=FIRST))
    return made


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("task", ["classify", "embed", "rank"])
def test_a_run_of_more_seeds_replaces_the_card_and_nothing_else(
    tmp_path: Path, build_bundle: Callable[..., Path], task: str
) -> None:
    toy = Toy(tmp_path, build_bundle, task=task, name=f"toy-{task}")
    first, said = toy.publish(toy.made(seeds=1, created=FIRST))
    assert (first.version, first.new) == (1, True)
    assert "card" not in said
    toy.compare()
    before, frontier = bytes_of(toy.version()), frontier_of(toy.card())
    again, said = toy.publish(toy.made(seeds=3))
    assert (again.version, again.new) == (1, False)
    assert toy.store.versions(toy.name) == [1]
    assert f"publish: {toy.name}@1: its card now tells of 3 seeds" in said
    after = bytes_of(toy.version())
    assert {file for file in after if after[file] != before.get(file)} == {"manifest.json", "card.md", *PICTURES}
    assert "with 3 seeds" in toy.card()
    assert frontier is not None
    assert frontier_of(toy.card()) == frontier
    assert toy.card().index("## Frontier") < toy.card().index("## Gates")
    bundle = toy.store.open(toy.name, 1)
    assert {"card.md", PICTURE, *PICTURES} <= set(bundle.manifest.files)
    assert bundle.manifest.provenance.created == FIRST
    Student(bundle).check_golden()


def test_the_date_on_the_card_stays_that_of_the_version(toy: Toy) -> None:
    toy.publish(toy.made(seeds=2))
    assert f"- made on {FIRST}" in toy.card()
    assert LATER not in toy.card()


@pytest.mark.parametrize("seeds", [1, 2])
def test_as_many_or_fewer_seeds_leave_it(toy: Toy, seeds: int) -> None:
    toy.publish(toy.made(seeds=2))
    before = bytes_of(toy.version())
    again, said = toy.publish(toy.made(seeds=seeds, pictures=("card/other.png",)))
    assert (again.version, again.new) == (1, False)
    assert "toy@1 has these bytes already" in said
    assert "its card" not in said
    assert bytes_of(toy.version()) == before


def test_a_picture_that_is_drawn_no_more_goes(toy: Toy) -> None:
    toy.compare()
    toy.publish(toy.made(seeds=2, pictures=("card/quality.png", "card/new.png")))
    listed = set(toy.store.open("toy", 1).manifest.files)
    assert {file for file in listed if file.startswith("card/")} == {"card/quality.png", "card/new.png", PICTURE}
    assert not (toy.version() / "card" / "exits.png").exists()


def test_a_section_whose_picture_was_never_written_is_not_kept(toy: Toy) -> None:
    toy.compare()
    (toy.version() / PICTURE).unlink()
    path = toy.version() / "manifest.json"
    document = json.loads(path.read_text())
    document["files"].pop(PICTURE)
    path.write_text(json.dumps(document))
    toy.publish(toy.made(seeds=2))
    assert frontier_of(toy.card()) is None
    Student(toy.store.open("toy", 1)).check_golden()


def test_other_graphs_are_another_version(toy: Toy) -> None:
    published, said = toy.publish(toy.made(seeds=2, default_risk=0.01))
    assert (published.version, published.new) == (2, True)
    assert "its card" not in said
    assert "with 1 seeds" in toy.card(1)
    with pytest.raises(StoreError, match="toy@1: it is not what was made; its card was not written"):
        put_seeds_on_card(toy.version(1), toy.version(2))


def certified(toy: Toy) -> None:
    """Publish version 2 as `certify` does: the same student, one certificate more, and a section in its card."""
    copy = toy.folder / "certified"
    shutil.copytree(toy.version(), copy)
    card = (copy / "card.md").read_text() + "\n## Also certified: int8 on louder\n\nso it is\n"
    document = json.loads((copy / "manifest.json").read_text())
    added = {**document["certificates"][-1], "backend": "louder"}
    more = [*document["certificates"], added]
    made = toy.made(seeds=1, created=FIRST, certificates=more)
    (made / "card.md").write_text(card)
    relist(made, "card.md")
    assert toy.store.publish(made, name="toy", alias=None) == 2


def relist(folder: Path, file: str) -> None:
    document = json.loads((folder / "manifest.json").read_text())
    document["files"][file] = file_entry(folder / file).model_dump()
    (folder / "manifest.json").write_text(json.dumps(document))


def test_a_certified_version_keeps_its_card_and_that_is_said(toy: Toy) -> None:
    certified(toy)
    before = bytes_of(toy.version(2))
    published, said = toy.publish(toy.made(seeds=3))
    assert (published.version, published.new) == (1, False)
    assert "publish: toy@2: its card stays, for `certify` added to it; it tells of 1 seed" in said
    assert "publish: toy@1: its card now tells of 3 seeds" in said
    assert bytes_of(toy.version(2)) == before
    _, said = toy.publish(toy.made(seeds=1))
    assert "its card" not in said


def test_a_certified_version_that_stands_alone_is_followed_by_the_next(toy: Toy) -> None:
    certified(toy)
    shutil.rmtree(toy.version(1))
    before = bytes_of(toy.version(2))
    published, said = toy.publish(toy.made(seeds=3))
    assert (published.version, published.new) == (3, True)
    assert "toy@2: its card stays" in said
    assert bytes_of(toy.version(2)) == before
    with pytest.raises(StoreError, match="it is not what was made"):
        put_seeds_on_card(toy.version(2), toy.made(seeds=3))


def test_of_two_that_differ_in_their_date_the_newest_is_meant(toy: Toy) -> None:
    toy.store.publish(toy.made(seeds=1), name="toy", alias="canary")
    published, _ = toy.publish(toy.made(seeds=2, created="2026-02-02T00:00:00Z"))
    assert published.version == 2
    assert toy.store.resolve("toy@canary").version == 2
    assert "with 1 seeds" in toy.card(1)
    assert "with 2 seeds" in toy.card(2)


def test_whenever_its_writer_is_killed_the_version_is_whole_and_the_next_run_ends_it(
    toy: Toy, tmp_path: Path, killed_disk: Callable
) -> None:
    toy.compare()
    made = toy.made(seeds=2, pictures=("card/quality.png", "card/new.png"))
    clean = tmp_path / "clean" / "1"
    shutil.copytree(toy.version(), clean)
    assert put_seeds_on_card(clean, made) == 2
    for fatal in itertools.count(1):
        version = tmp_path / f"killed-{fatal}" / "toy" / "1"
        shutil.copytree(toy.version(), version)
        disk = killed_disk(fatal)
        try:
            assert put_seeds_on_card(version, made, disk=disk) == 2
        except killed_disk.Killed:
            opened = Store(version.parent.parent).open("toy", 1)
            Student(opened).check_golden()
            put_seeds_on_card(version, made)
        else:
            assert fatal > 15, "every step was tried"
            break
        kept = {file: raw for file, raw in bytes_of(version).items() if file in listed(version)}
        wanted = {file: raw for file, raw in bytes_of(clean).items() if file in listed(clean)}
        assert kept == wanted
        assert not list(version.parent.glob(f"{STAGING}*"))


def listed(folder: Path) -> set[str]:
    return set(json.loads((folder / "manifest.json").read_text())["files"])


def test_a_card_whose_writer_was_killed_is_listed_again_by_as_many_seeds(toy: Toy, killed_disk: Callable) -> None:
    with pytest.raises(killed_disk.Killed):
        put_seeds_on_card(toy.version(), toy.made(seeds=2), disk=killed_disk(4))
    assert "card.md" not in toy.store.open("toy", 1).manifest.files
    _, said = toy.publish(toy.made(seeds=1))
    assert "its card now tells of 1 seed\n" in said
    assert "card.md" in toy.store.open("toy", 1).manifest.files


def test_a_full_disk_is_said_and_leaves_the_version_whole(toy: Toy, full_disk: Callable) -> None:
    before = bytes_of(toy.version())
    with pytest.raises(StoreError, match=r"toy@1: its card was not written: No space left"):
        put_seeds_on_card(toy.version(), toy.made(seeds=2), disk=full_disk())
    assert bytes_of(toy.version()) == before


def test_a_broken_version_is_not_touched(toy: Toy) -> None:
    (toy.version() / "golden.json").write_bytes(b"{}")
    before = bytes_of(toy.version())
    with pytest.raises(DigestMismatch, match=r"golden\.json"):
        toy.publish(toy.made(seeds=2))
    assert bytes_of(toy.version()) == before
