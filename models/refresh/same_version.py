"""What makes two versions the same: the report card and the date are no part of it."""

from models.report.card import FILE, FOLDER
from service.bundle.manifest import Exit, Manifest


def is_card_file(file: str) -> bool:
    """Whether a path inside a bundle is of its report card, the one part of a published version that may change.

    >>> is_card_file("card.md"), is_card_file("card/exits.png"), is_card_file("golden.json")
    (True, True, False)
    """
    return file == FILE or file.startswith(f"{FOLDER}/")


def without_card(manifest: Manifest) -> Manifest:
    """The manifest without the entries of the report card."""
    kept = {file: entry for file, entry in manifest.files.items() if not is_card_file(file)}
    return manifest.model_copy(update={"files": kept})


def same_version(first: Manifest, second: Manifest) -> bool:
    """Whether two manifests are of one version: all is equal but the report card and when it was made."""
    return _undated(first) == _undated(second)


def same_student(first: Manifest, second: Manifest) -> bool:
    """Whether two manifests are of the same graphs, tokenizer, exits and temperatures."""
    alike = first.exits == second.exits and first.precisions == second.precisions
    files = {file for precision in first.precisions.values() for file in precision.files.values()}
    return alike and all(first.files[file] == second.files.get(file) for file in (*files, first.tokenizer.file))


def answers_alike(first: Manifest, second: Manifest) -> bool:
    """`same_student`, but for the temperatures of scores, which move no label and no exit."""
    return same_student(*(each.model_copy(update={"exits": _unscored(each)}) for each in (first, second)))


def _unscored(manifest: Manifest) -> tuple[Exit, ...]:
    return tuple(leave.model_copy(update={"score_temperature": None}) for leave in manifest.exits)


def has_additions(manifest: Manifest, made: Manifest) -> bool:
    """Whether a version is the student `made`, with certificates that `certify` added to all that it has."""
    more = len(manifest.certificates) > len(made.certificates)
    kept = all(certificate in manifest.certificates for certificate in made.certificates)
    return more and kept and same_student(made, manifest)


def _undated(manifest: Manifest) -> Manifest:
    provenance = manifest.provenance.model_copy(update={"created": ""})
    return without_card(manifest).model_copy(update={"provenance": provenance})
