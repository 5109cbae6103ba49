"""Whether the data at hand are those a published version was made from, cut into the same splits.

A certificate added later stands on the same promise as the first: its rows are rows that nobody trained on. So the
files must be byte for byte those of the provenance, the cuts those of its recipe, and the rows of each split those
whose digest was recorded.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from models.data.cuts import Splits, prepare, role_files, split_sources
from models.data.rows import group_key
from models.errors import DataInvalid, RecipeInvalid
from models.evaluate.calibrate import keys_digest
from models.recipe.classify import ClassifyRecipe, Data, classify_recipe
from models.recipe.parts import Cut
from models.recipe.read import recipe_of
from service.bundle.manifest import DataSource, Manifest

_FILE_ROLE = re.compile(r"(train|dev|test)( \d+)?")
_CUTS = ("dev", "calibration", "gate", "parts", "allowed_overlap")


class RowsDiffer(DataInvalid):
    """A file or a split is not what the version was made from; the message says which."""


def recipe_in(manifest: Manifest) -> ClassifyRecipe:
    """The recipe in a version's provenance. Raises: RecipeInvalid: there is none, or it cannot be used."""
    written = manifest.provenance.recipe
    if not written:
        raise RecipeInvalid(f"student {manifest.name}: its provenance holds no recipe; give one with --recipe")
    return classify_recipe(recipe_of(written, where=f"the recipe of {manifest.name}"))


def same_splits(recipe: ClassifyRecipe, manifest: Manifest) -> Splits:
    """The recipe's splits, shown to be those of the version.

    Raises:
        RecipeInvalid: the recipe is another student's, or cuts otherwise.
        RowsDiffer: a file's bytes or a split's rows are others; names the file or split.
        RecipeInvalid, DataInvalid, DataLeak: as `prepare` does.
    """
    _same_student(recipe, manifest)
    recorded = {source.role: source for source in manifest.provenance.data}
    if not {"train", "train 1"} & recorded.keys():
        raise RowsDiffer(f"student {manifest.name}: its provenance does not say which rows it was trained on")
    _same_files(recipe.data, recorded)
    splits = prepare(recipe)
    _same_rows(splits, recorded, manifest)
    return splits


def _same_student(recipe: ClassifyRecipe, manifest: Manifest) -> None:
    if recipe.name != manifest.name:
        raise RecipeInvalid(f"name: the recipe makes {recipe.name!r}, not {manifest.name!r}")
    if recipe.student.max_tokens != manifest.max_tokens:
        tokens = f"{recipe.student.max_tokens}, the version was made with {manifest.max_tokens}"
        raise RecipeInvalid(f"student.max_tokens: {tokens}")
    there = _data_of(manifest)
    for key in _CUTS if there is not None else ():
        before, now = getattr(there, key), getattr(recipe.data, key)
        # subtle: dev files are told by their bytes; where they lie may differ
        if before != now and (key != "dev" or isinstance(before, Cut) or isinstance(now, Cut)):
            raise RecipeInvalid(f"data.{key}: {_said(now)}, the version was made with {_said(before)}")


def _data_of(manifest: Manifest) -> Data | None:
    """The data of the recipe in the provenance, `${NAME}` not expanded; None where it holds none."""
    written = manifest.provenance.recipe.get("data")
    try:
        return None if written is None else Data.model_validate(written)
    except ValidationError as error:
        raise RecipeInvalid(f"student {manifest.name}: the recipe in its provenance cannot be read: data") from error


def _said(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(str(each.file) for each in value)
    return f"a cut of {value.cut:g}" if isinstance(value, Cut) else f"{value}"


def _same_files(data: Data, recorded: Mapping[str, DataSource]) -> None:
    roles = {"train": data.train, "test": data.test} | ({} if isinstance(data.dev, Cut) else {"dev": data.dev})
    named = {role: file for name, files in roles.items() for role, file in role_files(name, files)}
    for role, file in named.items():
        with Path(file).open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
        if role not in recorded or recorded[role].sha256 != found:
            was = f"{recorded[role].name} {recorded[role].sha256[:16]}…" if role in recorded else "no such file"
            raise RowsDiffer(f"data.{role}: {file}: its sha256 is {found[:16]}…, the version was made from {was}")
    for role, source in recorded.items():
        if _FILE_ROLE.fullmatch(role) and role not in named:
            raise RowsDiffer(
                f"data.{role}: the version was made from {source.name} too, which the recipe does not name"
            )


def _same_rows(splits: Splits, recorded: Mapping[str, DataSource], manifest: Manifest) -> None:
    for source in split_sources(splits):
        if source.role in recorded and recorded[source.role].sha256 != source.sha256:
            raise RowsDiffer(f"{source.role}: {source.rows:,} rows, not those that the version's provenance records")
    found = keys_digest([group_key(row) for row in splits.calibration])
    for certificate in manifest.certificates:
        if certificate.population_digest != found:
            raise RowsDiffer(
                f"calibration rows: {len(splits.calibration):,} rows, not those of the certificate for "
                f"{certificate.precision} on {certificate.backend}"
            )
