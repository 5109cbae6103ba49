"""Certificates for a further backend or precision of a published version, on the rows it was calibrated on.

published version → same rows? → golden samples → certificates → gates → test → card → next version

The new version has the same graphs, tokenizer, exits, temperatures and old certificates, byte for byte.
"""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from models.data.cuts import Splits, split_sources
from models.data.rows import Row
from models.errors import GateFailed, OfflineError
from models.evaluate.quality import EvaluationRows, StudentQuality, quality_for_manifest
from models.evaluate.scores import exit_logits, labels_of
from models.evaluate.variants import Variant, backend_libraries, require_backends, variants
from models.export.bundle import finalise
from models.export.provenance import machine
from models.recipe.classify import ClassifyRecipe
from models.recipe.parts import FIRST_BACKEND
from models.refresh.progress import Reporter
from models.refresh.proving import certificates_of, judge_company, judge_promises, measure, rows_to_judge
from models.refresh.publishing import Published
from models.refresh.same_rows import recipe_in, same_splits
from models.refresh.same_version import same_student
from models.refresh.training import texts_of
from models.report.addition import Addition, section, with_section
from models.report.card import FILE, GateResult
from models.report.frontier_section import with_frontier_of
from service.bundle.load import Bundle, load_manifest
from service.bundle.manifest import Certificate, ExitShares, Manifest, Provenance, Quality, is_newer_minor
from service.store.store import Resolved, Store

KEEPS_ACCURACY = 0.99
"""The least share of its accuracy that a student must keep on another backend, at full depth, on the gate split."""


class NotCertifiable(OfflineError):
    """The version cannot get the certificate that was asked for, whatever the rows say."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be added to which version.

    student: `NAME`, `NAME@VERSION` or `NAME@ALIAS` in `store`.
    precisions: the version's; none: its default one.
    recipe: None: the one in the version's provenance.
    alias: what to point at the new version; None: nothing moves.
    """

    student: str
    backend: str
    store: Path
    precisions: tuple[str, ...] = ()
    recipe: ClassifyRecipe | None = None
    alias: str | None = None


@dataclass(frozen=True, slots=True)
class _Work:
    """One version at work: what it is, what it shall get, and the rows that decide."""

    resolved: Resolved
    bundle: Bundle
    wanted: tuple[Variant, ...]
    recipe: ClassifyRecipe
    splits: Splits


def certify(wish: Wish, reporter: Reporter) -> Published:
    """Certify, and publish the next version.

    Raises:
        OfflineError: the backend, the recipe or the data is wrong, or the version has such a certificate already.
        GateFailed: no risk could be certified, or a gate was not met. In either case nothing is published.
        BundleError: the version is broken, or the backend does not reproduce its golden samples.
        StoreError: there is no such version, or it could not be published.
    """
    require_backends([wish.backend], where="--backend")
    store = Store(wish.store)
    resolved = store.resolve(wish.student)
    bundle = store.open(resolved.name, resolved.version)
    wanted = variants([wish.backend], wish.precisions or (bundle.manifest.default_precision,))
    _may_be_certified(bundle.manifest, wanted)
    if (number := _done_before(store, resolved, bundle.manifest, wanted)) is not None:
        return _again(store, resolved.name, number, wish, reporter)
    recipe = wish.recipe or recipe_in(bundle.manifest)
    work = _Work(resolved, bundle, wanted, recipe, same_splits(recipe, bundle.manifest))
    reporter.say(f"data: dev {len(work.splits.dev):,}, calibration {len(work.splits.calibration):,}: the same rows")
    with tempfile.TemporaryDirectory() as scratch:
        made = _made(work, Path(scratch), reporter)
        version = store.publish(made, name=resolved.name, alias=wish.alias)
    return Published(resolved.name, version, wish.alias, new=True)


def _may_be_certified(manifest: Manifest, wanted: Sequence[Variant]) -> None:
    """Raises: NotCertifiable: as its message says."""
    if manifest.task != "classify":
        raise NotCertifiable(f"student {manifest.name}: its task is {manifest.task}, not classify")
    if is_newer_minor(manifest):
        raise NotCertifiable(f"student {manifest.name}: its manifest is of a newer format; writing it would lose parts")
    if len(manifest.exits) < 2:
        raise NotCertifiable(f"student {manifest.name}: it has one exit, so there is nothing to certify")
    for variant in wanted:
        if variant.precision not in manifest.precisions:
            offered = ", ".join(sorted(manifest.precisions))
            raise NotCertifiable(f"student {manifest.name}: no precision {variant.precision!r}, only {offered}")
        if manifest.certificate(backend=variant.backend, precision=variant.precision) is not None:
            says = "it has a certificate, and rows certify once"
            raise NotCertifiable(f"student {manifest.name}: {variant.precision} on {variant.backend}: {says}")


def _done_before(store: Store, resolved: Resolved, before: Manifest, wanted: Sequence[Variant]) -> int | None:
    """Another version of the same graphs that has all these certificates: made by this job before."""
    for number in store.versions(resolved.name):
        other = load_manifest(store.root / resolved.name / str(number))
        has = all(other.certificate(backend=v.backend, precision=v.precision) is not None for v in wanted)
        if has and same_student(before, other):
            return number
    return None


def _again(store: Store, name: str, number: int, wish: Wish, reporter: Reporter) -> Published:
    reporter.say(f"certify: {name}@{number} has it already")
    if wish.alias is not None:
        store.set_alias(name, wish.alias, number)
    return Published(name, number, wish.alias, new=False)


def _made(work: _Work, scratch: Path, reporter: Reporter) -> Path:
    """The finished bundle of the next version, in `scratch`."""
    manifest = work.bundle.manifest
    for variant in work.wanted:
        variant.load(work.bundle).check_golden()
        reporter.say(f"golden: {variant.precision} on {variant.backend} reproduces them")
    added = certificates_of(
        work.bundle,
        work.wanted,
        work.recipe,
        temperatures=[leave.temperature for leave in manifest.exits],
        splits=(work.splits.dev, work.splits.calibration),
    )
    _tell(added, reporter)
    folder = scratch / "bundle"
    shutil.copytree(work.bundle.path, folder)
    drafted = _written(folder, manifest, added)
    gates = {variant: _judged(drafted, variant, work.splits.gate) for variant in work.wanted}
    _pass([gate for found in gates.values() for gate in found], work.resolved.name, reporter)
    return _finished(drafted, work, added, gates, scratch / "card")


def _tell(added: Sequence[Certificate], reporter: Reporter) -> None:
    """Raises: GateFailed: there were too few rows for any risk."""
    for certificate in added:
        where = f"{certificate.precision} on {certificate.backend}"
        if not certificate.points:
            raise GateFailed(f"{where}: nothing was published: no risk could be certified on these rows")
        for point in certificate.points:
            shares = ", ".join(f"{share:.1%}" for share in point.exit_shares)
            errors = f"{point.errors} of {point.rows:,} differ, p = {point.p_value:.2g}"
            reporter.say(f"certified: {where}: risk {point.risk:g}: {errors}; leave at {shares}")


def _written(
    folder: Path,
    before: Manifest,
    added: Sequence[Certificate],
    *,
    quality: Quality | None = None,
    provenance: Provenance | None = None,
    card: Path | None = None,
) -> Bundle:
    """The copy in `folder`, its manifest extended; what is not given stays as it was."""
    return finalise(
        folder,
        certificates=(*before.certificates, *added),
        quality=quality or before.quality,
        default_risk=before.default_risk,
        provenance=provenance,
        card_dir=card,
    )


def _judged(bundle: Bundle, variant: Variant, rows: Sequence[Row]) -> tuple[GateResult, ...]:
    """Every gate of one variant, on rows that neither chose nor certified anything."""
    reference = Variant(FIRST_BACKEND, bundle.manifest.default_precision)
    answers = _full_depth_labels(bundle, reference, rows)
    (quality,) = measure(bundle, [variant], rows_to_judge(rows, answers))
    return (
        _keeps_accuracy(quality, reference),
        *judge_promises(quality),
        *judge_company(bundle, [variant], rows),
    )


def _full_depth_labels(bundle: Bundle, variant: Variant, rows: Sequence[Row]) -> list[str]:
    student = variant.load(bundle)
    labels = labels_of(exit_logits(student, student.encoder.encode(texts_of(rows))))[:, -1]
    return [bundle.manifest.labels[index] for index in labels]


def _keeps_accuracy(quality: StudentQuality, reference: Variant) -> GateResult:
    kept, same = quality.full_depth.retention, quality.full_depth.teacher_agreement or 0.0
    value = 0.0 if kept is None else kept.value
    return GateResult(
        f"accuracy at full depth, {quality.name}",
        f">= {KEEPS_ACCURACY:g} of {reference.precision} on {reference.backend}",
        f"{value:.4f} on {quality.rows} rows, {same:.2%} of labels the same",
        value >= KEEPS_ACCURACY,
    )


def _pass(gates: Sequence[GateResult], name: str, reporter: Reporter) -> None:
    """Raises: GateFailed: naming the gates that were not met."""
    for gate in gates:
        reporter.say(f"gate: {gate.name}: {gate.reached} ({gate.required}): {'passed' if gate.passed else 'FAILED'}")
    failed = [f"{gate.name}: {gate.reached}, required {gate.required}" for gate in gates if not gate.passed]
    if failed:
        raise GateFailed(f"{name}: nothing was published: {'; '.join(failed)}")


def _finished(
    drafted: Bundle,
    work: _Work,
    added: Sequence[Certificate],
    gates: Mapping[Variant, tuple[GateResult, ...]],
    card: Path,
) -> Path:
    """Open the test split, once, and write what was found into the manifest and the card."""
    test = work.splits.test
    rows = EvaluationRows(tuple(texts_of(test)), tuple(row.label for row in test if row.label is not None))
    qualities = measure(drafted, work.wanted, rows)
    before, origin = work.bundle.manifest, _origin(work)
    additions = [
        Addition(certificate, quality, gates[variant], origin)
        for certificate, quality, variant in zip(added, qualities, work.wanted, strict=True)
    ]
    _write_card(card, work.bundle, additions)
    provenance = _provenance(work, origin)
    merged = _merged(before.quality, qualities)
    return _written(drafted.path, before, added, quality=merged, provenance=provenance, card=card).path


def _origin(work: _Work) -> str:
    libraries = backend_libraries([variant.backend for variant in work.wanted[:1]])
    named = ", ".join([*(f"{name} {version}" for name, version in libraries.items()), machine()])
    when = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return f"Added to version {work.resolved.version} by `certify` on {when} ({named})."


def _write_card(folder: Path, before: Bundle, additions: Sequence[Addition]) -> None:
    old = before.path / FILE
    text = old.read_text(encoding="utf-8") if FILE in before.manifest.files else f"# {before.manifest.name}\n"
    text = with_frontier_of(text, int(before.path.name))
    for addition in additions:
        text = with_section(text, section(before.manifest, addition))
    folder.mkdir()
    (folder / FILE).write_text(text, encoding="utf-8")


def _provenance(work: _Work, origin: str) -> Provenance:
    before = work.bundle.manifest.provenance
    roles = {source.role for source in before.data}
    recorded = [source for source in split_sources(work.splits) if source.role not in roles]
    names = " and ".join(f"{variant.precision} on {variant.backend}" for variant in work.wanted)
    return before.model_copy(
        update={
            "data": (*before.data, *recorded),
            "libraries": before.libraries | _new_libraries(work),
            "notes": (*before.notes, f"Certificate for {names}: {origin[0].lower()}{origin[1:]}"),
        }
    )


def _new_libraries(work: _Work) -> dict[str, str]:
    """Those the provenance does not name; those it names made the graphs, and stay."""
    found = backend_libraries([variant.backend for variant in work.wanted])
    return {name: version for name, version in found.items() if name not in work.bundle.manifest.provenance.libraries}


def _merged(before: Quality | None, measured: Sequence[StudentQuality]) -> Quality:
    """The version's quality with an entry for each variant; as it was where it is of other rows."""
    found = quality_for_manifest("test", measured)
    if before is None:
        return found
    if (before.split, before.rows) != (found.split, found.rows):
        return before
    teacher = before.teacher.get("accuracy", 0.0)
    entries = {
        name: tuple(_with_retention(setting, teacher) for setting in settings)
        for name, settings in found.by_precision.items()
    }
    return before.model_copy(update={"by_precision": before.by_precision | entries})


def _with_retention(setting: ExitShares, teacher: float) -> ExitShares:
    if not teacher:
        return setting
    retention = {"retention": setting.metrics["accuracy"] / teacher}
    return setting.model_copy(update={"metrics": setting.metrics | retention})
