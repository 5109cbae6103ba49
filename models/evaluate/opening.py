"""What the commands of this package share at their edge: opening a student, reading rows, one-line errors."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from models.data.rows import Row
from models.errors import DataInvalid, OfflineError
from service.bundle.load import Bundle, load_bundle
from service.errors import BundleError, InvalidInput, SettingsInvalid, StoreError
from service.store.store import Store


def open_bundle(reference: str, *, store: Path) -> Bundle:
    """A bundle by `NAME`, `NAME@VERSION` or `NAME@ALIAS` in a store, or by its own folder.

    Raises: StoreError, BundleError: it is not there, or refused.
    """
    folder = Path(reference)
    if (folder / "manifest.json").is_file():
        return load_bundle(folder)
    opened = Store(store)
    resolved = opened.resolve(reference)
    return opened.open(resolved.name, resolved.version)


def require_classify(bundle: Bundle) -> None:
    """Raises: DataInvalid: the student does not classify."""
    if bundle.manifest.task != "classify":
        raise DataInvalid(f"student {bundle.manifest.name}: its task is {bundle.manifest.task}, not classify")


def require_shape(bundle: Bundle, rows: list[Row]) -> None:
    """Raises: DataInvalid: a row is a pair and the student takes none, or the other way round."""
    wanted = bundle.manifest.pairs != "none"
    for row in rows:
        if (row.text_pair is not None) != wanted:
            says = "takes pairs" if wanted else "takes no pairs"
            raise DataInvalid(f"{row.file}:{row.line}: text_pair: student {bundle.manifest.name} {says}")


def require_known_labels(bundle: Bundle, rows: list[Row]) -> None:
    """Raises: DataInvalid: a row's label is not one of the student's; names file and line."""
    known = set(bundle.manifest.labels)
    for row in rows:
        if row.label is not None and row.label not in known:
            name = bundle.manifest.name
            raise DataInvalid(f"{row.file}:{row.line}: label: {row.label!r} is not a label of student {name}")


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what the user can mend into one line on stderr and its exit status.

    Raises: typer.Exit: 2, or the offline error's own status.
    """
    try:
        yield
    except OfflineError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_status) from error
    except (BundleError, StoreError, SettingsInvalid, InvalidInput) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error


def write_json(path: Path | None, value: Any) -> None:
    """Write `value` as indented JSON, if a path is given. Raises: DataInvalid: it cannot be written."""
    if path is None:
        return
    try:
        path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise DataInvalid(f"{path}: cannot be written: {error.strerror}") from error
