"""The verb `understudy certify STUDENT --backend NAME`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from models.recipe.classify import classify_recipe
from models.recipe.read import read_recipe
from models.refresh.certify import Wish, certify
from models.refresh.progress import Reporter


def command(
    student: Annotated[str, typer.Argument(help="NAME, NAME@VERSION or NAME@ALIAS.")],
    backend: Annotated[str, typer.Option(help="The backend to certify on, such as openvino.")],
    store: Annotated[Path, typer.Option(envvar="UNDERSTUDY_STORE", help="The store; the next version goes there.")],
    precision: Annotated[
        list[str] | None, typer.Option(help="May be repeated; default: the student's default precision.")
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="Default: the recipe in the version's provenance.")] = None,
    alias: Annotated[str | None, typer.Option(help="Point this alias at the new version; default: none moves.")] = None,
) -> None:
    """Certify the exits of a published version on a further backend or precision, and publish the next version.

    The graphs stay as they are. The recipe's data must be those the version was made from, cut into the same splits.
    """
    wish = Wish(
        student=student,
        backend=backend,
        store=store,
        precisions=tuple(dict.fromkeys(precision or ())),
        recipe=None if recipe is None else classify_recipe(read_recipe(recipe)),
        alias=alias,
    )
    published = certify(wish, Reporter())
    verb = "published" if published.new else "already published"
    pointed = "" if published.alias is None else f" as {published.name}@{published.alias}"
    sys.stdout.write(f"{verb} {published.name}@{published.version}{pointed} in {store}\n")
