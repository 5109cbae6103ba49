"""A comparison on the report cards of published versions: which versions it is of, and rewriting a card in place.

A version's card is the one part of it that may change; `card_files` says how it is replaced.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from models.errors import DataInvalid
from models.recipe.parts import Recipe
from models.refresh.card_files import replace_card_files
from models.refresh.same_version import answers_alike, without_card
from models.report.card import FILE
from models.report.frontier import Comparison
from models.report.frontier_section import PICTURE, frontier_section, with_frontier
from service.bundle.load import MANIFEST, Bundle, load_bundle
from service.bundle.manifest import Manifest, is_newer_minor
from service.errors import StoreError
from service.store.disk import Disk
from service.store.lock import locked
from service.store.store import Store

MOST_PICTURE_BYTES: Final = 60_000


@dataclass(frozen=True, slots=True)
class Target:
    """A published version whose card gets a comparison.

    bundle: as it was when the comparison began. point: what it is called in the comparison. by_recipe: whether what
    is compared is the recipe's student, which must be the version's (`require_same`), and not the version itself.
    """

    bundle: Bundle
    point: str
    by_recipe: bool

    @property
    def shown(self) -> str:
        """NAME@VERSION."""
        return f"{self.bundle.manifest.name}@{self.bundle.path.name}"


def targets_of(
    references: Sequence[str], *, store: Path, recipes: Mapping[str, Recipe], students: Mapping[str, Bundle]
) -> tuple[Target, ...]:
    """The versions, each once.

    Args:
        references: `NAME`, `NAME@VERSION` or `NAME@ALIAS` in `store`.
        recipes: those compared, by the names of their points.
        students: the bundles compared, likewise.
    Raises:
        DataInvalid: one is no reference to a version, or is not compared: it is none of the students, and its
            provenance names none of the recipes; or its manifest is of a newer format.
        StoreError, BundleError: one is not in the store, or broken.
    """
    found = [_target(each, store=store, recipes=recipes, students=students) for each in references]
    return tuple({target.bundle.path: target for target in found}.values())


def _target(reference: str, *, store: Path, recipes: Mapping[str, Recipe], students: Mapping[str, Bundle]) -> Target:
    where = f"--card {reference}"
    if Path(reference).is_absolute() or (Path(reference) / MANIFEST).is_file():
        raise DataInvalid(f"{where}: a folder; only versions of the store get it on their cards, as NAME@VERSION")
    opened = Store(store)
    resolved = opened.resolve(reference)
    bundle = opened.open(resolved.name, resolved.version)
    if is_newer_minor(bundle.manifest):
        raise DataInvalid(f"{where}: its manifest is of a newer format; writing it would lose parts")
    point = next((name for name, student in students.items() if student.path == bundle.path), None)
    if point is not None:
        return Target(bundle, point, by_recipe=False)
    made_by = bundle.manifest.provenance.recipe_sha256
    point = next((name for name, recipe in recipes.items() if recipe.digest() == made_by), None)
    if point is None:
        digest = "names no recipe" if made_by is None else f"names the recipe {made_by[:16]}, which is not compared"
        raise DataInvalid(f"{where}: it is not compared: its provenance {digest}; give it as --student too")
    return Target(bundle, point, by_recipe=True)


def require_same(targets: Sequence[Target], made: Mapping[str, Manifest]) -> None:
    """Refuse versions that their recipe's student is not.

    Args:
        made: by the name of its point; a student that was not made is missing.
    Raises: DataInvalid: the recipe's student has other graphs, or there is none.
    """
    for target in targets:
        if not target.by_recipe:
            continue
        drafted = made.get(target.point)
        if drafted is None:
            raise DataInvalid(f"--card {target.shown}: the student of its recipe, {target.point}, could not be made")
        if not answers_alike(target.bundle.manifest, drafted):
            raise DataInvalid(
                f"--card {target.shown}: {target.point} in --runs was made by the same recipe, but its files are "
                "others; give the version as --student too"
            )


def put_on_card(target: Target, found: Comparison, *, picture: bytes, command: str, disk: Disk | None = None) -> bool:
    """Write the section and its picture, in place of those of an earlier comparison; whether anything changed.

    A service that reads the version in this very moment may refuse it for once, and finds it whole when it looks again.

    Raises:
        BundleError: the version is broken.
        StoreError: it is not what was compared any more, or the disk refused a step; the version is whole even so.
    """
    assert len(picture) <= MOST_PICTURE_BYTES, "the plot is drawn small"
    folder = target.bundle.path
    try:
        with locked(folder.parent):
            bundle = load_bundle(folder)
            if without_card(bundle.manifest) != without_card(target.bundle.manifest):
                raise StoreError(f"{target.shown}: it is not what was compared any more; its card was not written")
            section = frontier_section(found, point=target.point, command=command)
            card = with_frontier(_card_of(folder, target.bundle.manifest.name), section)
            return replace_card_files(bundle, {FILE: card.encode(), PICTURE: picture}, disk=disk)
    except OSError as error:
        raise StoreError(f"{target.shown}: its card was not written: {error.strerror or error}") from error


def _card_of(folder: Path, name: str) -> str:
    """The card; also one that the manifest does not list, since its writer was killed."""
    path = folder / FILE
    return path.read_text(encoding="utf-8") if path.is_file() else f"# {name}\n"
