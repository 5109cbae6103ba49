"""The report card: card.md and its plots, from measurements that were made elsewhere.

It ships inside the bundle, so it must make sense to somebody who has nothing but the bundle.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.evaluate.baseline import BaselineQuality
from models.evaluate.by_file import FileQuality
from models.evaluate.company import CompanyCheck
from models.evaluate.quality import StudentQuality
from models.evaluate.resplits import ResplitSummary
from models.evaluate.speed import SpeedReport, Timing
from models.evaluate.tables import exits_table, markdown, number, percent, setting_name, settings_table, speed_table
from models.report.plots import plot_calibration, plot_exits, plot_frontier
from models.report.seeds import SeedResult, seeds_table
from service.bundle.manifest import Certificate, DataSource, Manifest, OperatingPoint

FILE = "card.md"
FOLDER = "card"

SETTINGS_LEGEND = (
    "Settings; p is the exact test of the promise on these rows (it is refuted at p ≤ 0.05), "
    "ECE the calibration error of the shown score as a probability of being right:"
)

_RESTRICTED = re.compile(r"\b(by-)?nc\b|non-?\s?commercial|research (use )?only", re.IGNORECASE)

_LIMITS = """\
- The promise of the exits compares the student with itself at full depth. It says nothing of how often either is
  right; that is the accuracy above, measured on one test file.
- It is an average over the stated population. Another population, backend, precision or input policy is not covered;
  neither is one label, one customer, or one input.
- It was made once. When the inputs drift it no longer stands, and nothing in this bundle notices.
- Scores are calibrated on few rows; where the calibration error above is large, do not read them as probabilities.
- Where the test file is public, the teacher's own training data may have held similar texts."""


@dataclass(frozen=True, slots=True)
class GateResult:
    """One gate: what was asked, what was reached, on which rows."""

    name: str
    required: str
    reached: str
    passed: bool


@dataclass(frozen=True, slots=True)
class Card:
    """Everything the card says.

    manifest: of the version, without the card's own files.
    qualities: on the test split, one per backend and precision, the default precision on the first backend first.
    data_notes: what was removed or moved when the splits were cut, one line each.
    receipts: what each compression pass cost and gained, one line each.
    commands: what makes and measures this version.
    frontier: speeds of exits and points of the default precision, for the plot.
    seeds: the same recipe with other seeds, this version's first.
    files: each of several test files by itself.
    costs: what each step of the job cost, one line each.
    baselines: what simpler systems reach on the same rows.
    """

    manifest: Manifest
    qualities: tuple[StudentQuality, ...]
    split: str = "test"
    teacher_bytes: int | None = None
    gates: tuple[GateResult, ...] = ()
    data_notes: tuple[str, ...] = ()
    receipts: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    frontier: tuple[Timing, ...] = ()
    resplits: tuple[ResplitSummary, ...] = ()
    company: tuple[CompanyCheck, ...] = ()
    speed: SpeedReport | None = None
    seeds: tuple[SeedResult, ...] = ()
    files: tuple[FileQuality, ...] = ()
    costs: tuple[str, ...] = ()
    baselines: tuple[BaselineQuality, ...] = ()


def write_card(card: Card, folder: Path) -> tuple[str, ...]:
    """Write card.md and card/*.png into a bundle's folder.

    Returns: the paths written, relative to `folder`, for the manifest's `files`.
    Raises: OSError: the folder cannot be written.
    """
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    first, written = card.qualities[0], []
    plots: list[tuple[str, Callable[[Path], None]]] = [
        ("quality.png", lambda path: plot_frontier(path, first, speed=card.frontier)),
        ("exits.png", lambda path: plot_exits(path, first)),
    ]
    if first.reliability:
        plots.append(("calibration.png", lambda path: plot_calibration(path, first.reliability)))
    for name, plot in plots:
        plot(folder / FOLDER / name)
        written.append(f"{FOLDER}/{name}")
    (folder / FILE).write_text(render(card, plots=tuple(written)), encoding="utf-8")
    return (FILE, *written)


def render(card: Card, *, plots: Sequence[str] = ()) -> str:
    """card.md as text."""
    sections = [
        ("", _summary(card)),
        ("What the exits promise", _promises(card)),
        ("Quality", _quality(card)),
        ("Plots", "\n".join(f"![{Path(plot).stem}]({plot})" for plot in plots)),
        ("By test file", _by_file(card)),
        ("By predicted label", _label_bounds(card)),
        ("Other seeds", seeds_table(card.seeds) if len(card.seeds) > 1 else ""),
        ("Calibration drawn again", _resplits(card.resplits)),
        ("Company", _company(card.company)),
        ("Speed", _speed(card.speed)),
        ("Gates", gates_table(card.gates)),
        ("Size", size_section(card.manifest, teacher_bytes=card.teacher_bytes, receipts=card.receipts)),
        ("Data", data_section(card.manifest, notes=card.data_notes)),
        ("How it was made", made_section(card.manifest, commands=card.commands, costs=card.costs)),
        ("What this card does not say", _LIMITS),
    ]
    body = "\n\n".join(f"## {title}\n\n{text}" if title else text for title, text in sections if text)
    return body + "\n"


def _summary(card: Card) -> str:
    manifest, quality = card.manifest, card.qualities[0]
    full, served = quality.full_depth, None if manifest.default_risk is None else quality.at(manifest.default_risk)
    description = str(manifest.provenance.recipe.get("description", "")).strip()
    lines = [f"# {manifest.name}", "", *([description, ""] if description else [])]
    lines.append(
        f"A {manifest.task} student of {len(manifest.labels)} labels, {len(manifest.exits)} exits, up to "
        f"{manifest.max_tokens} tokens; teacher: {manifest.provenance.teacher or 'not stated'}."
    )
    if full.accuracy is not None:
        lines.append(
            f"Full depth ({quality.name}): {percent(full.accuracy)} of {quality.rows:,} {card.split} rows right."
        )
    if full.retention is not None and quality.teacher_accuracy is not None:
        kept = full.retention
        lines.append(
            f"Teacher: {percent(quality.teacher_accuracy)}. Retention {kept.value:.4f} "
            f"(95% paired bootstrap interval {kept.low:.4f} to {kept.high:.4f})."
        )
    if served is not None:
        lines.append(
            f"As served by default ({setting_name(served)}): {percent(served.accuracy)} right, "
            f"{percent(served.mean_depth, digits=1)} of the compute, "
            f"{percent(served.exit_shares[0], digits=1)} leave at the first exit."
        )
    return "\n".join(lines)


def _promises(card: Card) -> str:
    certificates = card.manifest.certificates
    if len(card.manifest.exits) == 1:
        return "It has one exit: every item runs to full depth, and there is nothing to promise."
    if not any(certificate.points for certificate in certificates):
        return "Nothing is certified for this version: every item runs to full depth."
    return "\n\n".join(promise(card.manifest, certificate) for certificate in certificates if certificate.points)


def promise(manifest: Manifest, certificate: Certificate) -> str:
    """What one certificate promises, in full, and its operating points."""
    rows = certificate.points[0].rows
    names = [leave.id for leave in manifest.exits]
    head = [
        "risk ε",
        "rows n",
        "errors",
        "p",
        *(f"leave at {name} from" for name in names[:-1]),
        *(f"share at {name}" for name in names),
        "mean depth",
    ]
    return (
        f"**{certificate.precision} on {certificate.backend}.** For this version, precision, backend and input policy "
        f"({certificate.input_policy}): with probability ≥ {1 - certificate.delta:g} over the draw of the {rows:,} "
        f"calibration rows, at most a share ε of all inputs from the calibrated population ({certificate.population}) "
        f"get a label other than the reference's ({certificate.reference}). It is an average over that population: "
        "not per input, class or tenant; it does not cover correctness, scores, degraded answers, or drift.\n\n"
        f"All points hold together (δ = {certificate.delta:g}, divided among them). Rule: {certificate.confidence}. "
        "Shares and depth are those of the calibration rows.\n\n"
        + markdown(head, [_point_row(point) for point in certificate.points])
    )


def _point_row(point: OperatingPoint) -> list[str]:
    return [
        f"{point.risk:g}",
        f"{point.rows:,}",
        str(point.errors),
        f"{point.p_value:.2g}",
        *("never" if threshold is None else f"{threshold:.6g}" for threshold in point.thresholds),
        *(percent(share, digits=1) for share in point.exit_shares),
        percent(point.mean_depth, digits=1),
    ]


def _quality(card: Card) -> str:
    parts = [f"Measured once, on the {card.qualities[0].rows:,} rows of the {card.split} split."]
    parts += [_teacher_table(card)] if card.qualities[0].teacher_accuracy is not None else []
    for quality in card.qualities:
        parts.append(f"### {quality.precision} on {quality.backend}\n\nEach exit, if everybody left there:")
        parts.append(exits_table(quality))
        parts.append(SETTINGS_LEGEND)
        parts.append(settings_table(quality))
    return "\n\n".join(parts)


def _teacher_table(card: Card) -> str:
    head = ["", "accuracy", "macro F1", "same label as the teacher", "retention", "95% interval"]
    first = card.qualities[0]
    rows = [["teacher", percent(first.teacher_accuracy), percent(first.teacher_macro_f1), "–", "1", "–"]]
    for baseline in card.baselines:
        kept = baseline.retention
        rows.append(
            [
                f"baseline: {baseline.name}",
                percent(baseline.accuracy),
                percent(baseline.macro_f1),
                percent(baseline.teacher_agreement),
                "–" if kept is None else f"{kept.value:.4f}",
                "–" if kept is None else f"{kept.low:.4f} to {kept.high:.4f}",
            ]
        )
    for quality in card.qualities:
        for setting in quality.settings:
            kept = setting.retention
            rows.append(
                [
                    f"{quality.name}, {setting_name(setting)}",
                    percent(setting.accuracy),
                    percent(setting.macro_f1),
                    percent(setting.teacher_agreement),
                    "–" if kept is None else f"{kept.value:.4f}",
                    "–" if kept is None else f"{kept.low:.4f} to {kept.high:.4f}",
                ]
            )
    return markdown(head, rows)


def _by_file(card: Card) -> str:
    if not card.files:
        return ""
    labels = card.manifest.labels
    f1 = f"F1 of {labels[1]}" if len(labels) == 2 else "macro F1"
    head = ["file", "rows", "setting", "accuracy", f1, "accuracy ÷ teacher", "95% interval", "F1 ÷ teacher"]
    rows = [
        [
            each.file,
            f"{each.rows:,}",
            each.setting,
            percent(each.accuracy),
            percent(each.f1),
            "–" if each.retention is None else f"{each.retention.value:.4f}",
            "–" if each.retention is None else f"{each.retention.low:.4f} to {each.retention.high:.4f}",
            "–" if each.f1_retention is None else f"{each.f1_retention:.4f}",
        ]
        for each in card.files
    ]
    return markdown(head, rows)


def _label_bounds(card: Card) -> str:
    quality = card.qualities[0]
    risk = card.manifest.default_risk
    setting = None if risk is None else quality.at(risk)
    if setting is None or not setting.bounds:
        return ""
    worst = sorted(setting.bounds, key=lambda bound: -bound.upper)
    shown = worst[:20]
    rows = [[b.label, str(b.rows), str(b.errors), percent(b.upper)] for b in shown]
    rest = f" The {len(shown)} widest of {len(worst)} are shown." if len(worst) > len(shown) else ""
    return (
        f"At {setting_name(setting)} ({quality.name}), of the {card.split} answers with a label, how many differ "
        "from full depth, and a 95% upper bound on that label's true share (Clopper-Pearson, each on its own; labels "
        f"answered on fewer than 30 rows are left out).{rest}\n\n"
        + markdown(["answered label", "rows", "differ", "true share at most"], rows)
    )


def _resplits(summaries: Sequence[ResplitSummary]) -> str:
    if not summaries:
        return ""
    head = [
        "risk",
        "offered",
        "leave at the first exit",
        "mean depth",
        "mean layers",
        "differ: 5% / median / 95%",
        "above ε",
    ]
    rows = [
        [
            f"{s.risk:g}",
            percent(s.offered, digits=1),
            percent(s.exit_shares[0], digits=1),
            percent(s.mean_depth, digits=1),
            number(s.mean_layers, digits=2),
            " / ".join(percent(value) for value in s.disagreement),
            percent(s.above_risk, digits=1),
        ]
        for s in summaries
    ]
    first = summaries[0]
    return (
        f"A description, not a proof: the whole calibration repeated {first.runs:,} times on resampled rows "
        f"({first.rows_a:,} for split A, {first.rows_b:,} for split B), each measured on the same "
        f"{first.test_rows:,} test rows.\n\n" + markdown(head, rows)
    )


def _company(checks: Sequence[CompanyCheck]) -> str:
    if not checks:
        return ""
    head = ["precision", "company", "rows", "worst score difference", "flips", "left elsewhere", "no tie explains"]
    groups = dict.fromkeys((check.variant, check.company) for check in checks)
    rows = []
    for variant, company in groups:
        group = [check for check in checks if (check.variant, check.company) == (variant, company)]
        worst = max(check.worst_score for check in group)
        counts = [sum(getattr(c, name) for c in group) for name in ("flips", "moved", "unexplained")]
        rows.append([variant, company, f"{group[0].rows:,}", f"{worst:.1e}", *(str(count) for count in counts)])
    text = "Each text alone against itself in other company, over all exits and the default operating point."
    return f"{text}\n\n{markdown(head, rows)}"


def _speed(speed: SpeedReport | None) -> str:
    if speed is None:
        return ""
    return (
        f"{speed.machine}; one thread pinned to one core, median of {speed.repeats} interleaved repeats, the same rows "
        f"in the same batches on every side.\n\n{speed_table(speed.timings)}"
    )


def gates_table(gates: Sequence[GateResult]) -> str:
    """The gates as a table; "" where there are none."""
    if not gates:
        return ""
    rows = [[gate.name, gate.required, gate.reached, "passed" if gate.passed else "FAILED"] for gate in gates]
    return markdown(["gate", "required", "reached", ""], rows)


def size_section(manifest: Manifest, *, teacher_bytes: int | None, receipts: Sequence[str]) -> str:
    """The bytes of a version's files, and what compressing it cost."""
    files, precisions = manifest.files, manifest.precisions
    rows = [
        [f"graphs, {name}", f"{sum(files[file].bytes for file in precision.files.values()):,}"]
        for name, precision in precisions.items()
    ]
    total = sum(entry.bytes for entry in files.values())
    rows.append(["all files", f"{total:,}"])
    if teacher_bytes:
        rows.append(["teacher's weights", f"{teacher_bytes:,} ({teacher_bytes / total:.1f} times as much)"])
    return markdown(["", "bytes"], rows) + "".join(f"\n\n{line}" for line in receipts)


def data_section(manifest: Manifest, *, notes: Sequence[str]) -> str:
    """Which data went in, under which licences, and what was taken out."""
    head = ["role", "file", "rows", "licence", "sha256"]
    sources = manifest.provenance.data
    parts = [markdown(head, [_source_row(source) for source in sources])] if sources else []
    restricted = sorted({source.licence for source in sources if _RESTRICTED.search(source.licence)})
    if restricted:
        parts.append(f"**Restricted to non-commercial use or research by its data:** {'; '.join(restricted)}.")
    unstated = sorted({source.name for source in sources if source.licence == "not stated"})
    if unstated:
        parts.append(f"No licence is stated for: {', '.join(unstated)}.")
    if notes:
        parts.append("\n".join(f"- {note}" for note in notes))
    return "\n\n".join(parts)


def _source_row(source: DataSource) -> list[str]:
    return [source.role, source.name, f"{source.rows:,}", source.licence, f"`{source.sha256[:16]}…`"]


def made_section(manifest: Manifest, *, commands: Sequence[str], costs: Sequence[str]) -> str:
    """Where, when and with what a version was made, and what each step cost."""
    provenance = manifest.provenance
    lines = [f"- made by `{provenance.made_by}` on {provenance.created}"]
    lines += [f"- machine: {provenance.machine}"] if provenance.machine else []
    lines += [f"- recipe digest: `{provenance.recipe_sha256}`"] if provenance.recipe_sha256 else []
    libraries = ", ".join(f"{name} {version}" for name, version in sorted(provenance.libraries.items()))
    lines += [f"- libraries: {libraries}"] if libraries else []
    lines += [f"- {note}" for note in provenance.notes]
    if commands:
        lines += ["", "```", *commands, "```"]
    if costs:
        lines += ["", "What each step cost:", "", *(f"- {cost}" for cost in costs)]
    return "\n".join(lines)
