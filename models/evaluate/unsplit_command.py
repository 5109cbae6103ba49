"""`python -m models.evaluate.unsplit_command STUDENT --store STORE`: publish a student as one graph, for benchmarks."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from models.evaluate.opening import one_line_errors, open_bundle
from models.export.unsplit import unsplit
from service.store.aliases import DEFAULT_ALIAS
from service.store.store import Store


def command(
    student: Annotated[str, typer.Argument(help="NAME, NAME@VERSION or NAME@ALIAS.")],
    store: Annotated[Path, typer.Option("--store", help="The store it is in, and where the new one goes.")],
    name: Annotated[
        str | None, typer.Option("--name", help="The new student's name; NAME-unsplit if left out.")
    ] = None,
) -> None:
    """Publish the same student as one graph, without exits."""
    with one_line_errors(), tempfile.TemporaryDirectory() as scratch:
        bundle = open_bundle(student, store=store)
        new = name or f"{bundle.manifest.name}-unsplit"
        directory = Path(scratch) / "bundle"
        unsplit(bundle, directory, name=new)
        version = Store(store).publish(directory, name=new, alias=DEFAULT_ALIAS)
        typer.echo(f"published {new}@{version} as {DEFAULT_ALIAS}")


if __name__ == "__main__":
    typer.run(command)
