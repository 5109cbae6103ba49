"""What may be compared with what: recipes of one task on the same dev rows, and students that fit them."""

from collections.abc import Mapping, Sequence

from models.errors import DataInvalid, RecipeInvalid
from models.recipe.parts import Recipe
from models.refresh.grounds import Ground
from service.bundle.manifest import Manifest


def one_task(recipes: Sequence[tuple[str, Recipe]]) -> None:
    """Raises: RecipeInvalid: naming the files of two that are of different tasks."""
    (first, recipe), *others = recipes
    for file, other in others:
        if other.task != recipe.task:
            raise RecipeInvalid(f"{first} and {file}: one is of task {recipe.task}, the other of task {other.task}")


def common(grounds: Mapping[str, Ground]) -> Ground:
    """The first, which all others equal. Raises: RecipeInvalid: naming two that differ, and in what."""
    (first, ground), *others = grounds.items()
    for name, other in others:
        both = f"recipes {first} and {name}"
        if other.labels != ground.labels:
            odd = sorted(set(other.labels) ^ set(ground.labels))[0]
            raise RecipeInvalid(f"{both}: their labels differ: only one of them has {odd!r}")
        if other.digest != ground.digest:
            held = f"{ground.rows:,} and {other.rows:,} {ground.unit}"
            raise RecipeInvalid(f"{both}: their dev splits hold different rows ({held}); quality would not compare")
    return ground


def fits(where: str, manifest: Manifest, ground: Ground) -> None:
    """Raises: DataInvalid: the student is of another task, other labels or another kind of input."""
    if manifest.task != ground.task:
        raise DataInvalid(f"{where}: its task is {manifest.task}, not {ground.task}")
    if ground.task == "classify" and set(manifest.labels) != set(ground.labels):
        odd = sorted(set(manifest.labels) ^ set(ground.labels))[0]
        raise DataInvalid(f"{where}: its labels are not those of the recipes: {odd!r} is not on both sides")
    takes(where, manifest, ground)


def takes(where: str, manifest: Manifest, ground: Ground) -> None:
    """Raises: DataInvalid: the bundle is of another kind of input."""
    if (manifest.pairs != "none") != ground.paired:
        takes, wanted = ("single texts", "pairs") if ground.paired else ("pairs", "single texts")
        raise DataInvalid(f"{where}: it takes {takes}, and the dev {ground.unit} are {wanted}")
