"""More seeds on the card of a version that was published with fewer: the card is replaced, the version stays."""

from pathlib import Path

from models.refresh.card_files import replace_card_files
from models.refresh.same_version import is_card_file, same_version
from models.report.card import FILE
from models.report.frontier_section import PICTURE, frontier_of, with_frontier
from models.report.seeds import seeds_told
from service.bundle.load import Bundle, load_bundle, load_manifest
from service.errors import StoreError
from service.store.disk import Disk
from service.store.lock import locked


def put_seeds_on_card(published: Path, made: Path, *, disk: Disk | None = None) -> int | None:
    """Replace a version's card by the one it was made with now, if that tells of more seeds.

    The section *Frontier* of an earlier comparison and its picture stay, and so does the date, which is the version's.
    A card that the manifest does not list, since its writer was killed, is also replaced by one of as many seeds.

    Args:
        published: the version in the store.
        made: the same version, made again, with a card.
    Returns: how many seeds the card tells of now; None where it was left as it is.
    Raises:
        BundleError: the version is broken.
        StoreError: it is not what was made, or the disk refused a step; the version is whole even so.
    """
    try:
        with locked(published.parent):
            seeds = more_seeds(published, made)
            return seeds if seeds is not None and _replaced(load_bundle(published), made, disk) else None
    except OSError as error:
        shown = f"{published.parent.name}@{published.name}"
        raise StoreError(f"{shown}: its card was not written: {error.strerror or error}") from error


def more_seeds(published: Path, made: Path) -> int | None:
    """How many seeds the card in `made` tells of, if a version's own should be replaced by it; else None.

    Raises: BundleError: a manifest is broken.
    """
    before, after = load_manifest(published), load_manifest(made)
    if FILE not in after.files:
        return None
    seeds = seeds_told((made / FILE).read_text(encoding="utf-8"), after.name)
    least = told(published) + (1 if FILE in before.files else 0)
    return seeds if seeds >= least else None


def told(version: Path) -> int:
    """How many seeds the card of a version in the store tells of; 0 where there is no card."""
    card = _card_in(version)
    return 0 if card is None else seeds_told(card, version.parent.name)


def _card_in(folder: Path) -> str | None:
    """The card; also one that the manifest does not list, since its writer was killed."""
    path = folder / FILE
    # subtle: what a person broke must not end a run that only looks at it
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None


def _replaced(bundle: Bundle, made: Path, disk: Disk | None) -> bool:
    folder, new = bundle.path, load_manifest(made)
    if not same_version(bundle.manifest, new):
        raise StoreError(f"{new.name}@{folder.name}: it is not what was made; its card was not written")
    contents = {file: (made / file).read_bytes() for file in new.files if is_card_file(file)}
    card = contents[FILE].decode().replace(new.provenance.created, bundle.manifest.provenance.created)
    section = frontier_of(_card_in(folder) or "")
    if section is not None and (folder / PICTURE).is_file():
        card = with_frontier(card, section)
        contents[PICTURE] = (folder / PICTURE).read_bytes()
    contents[FILE] = card.encode()
    gone = [file for file in bundle.manifest.files if is_card_file(file) and file not in contents]
    return replace_card_files(bundle, contents, gone=gone, disk=disk)
