"""The report card of an embedder: card.md and its picture, from measurements that were made elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from models.evaluate.embedding import EmbedQuality
from models.evaluate.tables import markdown, percent
from models.report.card import FILE, FOLDER, GateResult, data_section, gates_table, made_section, size_section
from models.report.plots import plot_forms
from service.bundle.manifest import ExitShares, Manifest, Quality

_LIMITS = """\
- The correlation is with people's scores on the one test file named under Data; other texts, tasks and languages may
  go otherwise. Texts much longer than the training texts were hardly seen.
- The vectors live in a space of their own, named by the manifest's `space_id`: vectors of another version, or of the
  teacher, must not be compared with them.
- Cosines are not probabilities, and the same cosine need not mean the same in another space.
- Where the test file is public, the teacher's own training data may have held similar texts."""


@dataclass(frozen=True, slots=True)
class EmbedSeed:
    """What one seed's student reached on test, in the precision served by default."""

    seed: int
    spearman: float
    retention: float
    cosine: float

    @classmethod
    def of(cls, seed: int, quality: EmbedQuality) -> Self:
        """The short form of a measurement."""
        cosine = float("nan") if quality.likeness is None else quality.likeness.cosine
        return cls(seed, quality.full.spearman, quality.full.retention, cosine)


@dataclass(frozen=True, slots=True)
class EmbedCard:
    """Everything the card says.

    qualities: on the test pairs, one per precision, the default one first.
    data_notes, receipts, commands, costs: one line each, as in the card of a classify student.
    """

    manifest: Manifest
    qualities: tuple[EmbedQuality, ...]
    teacher_bytes: int | None = None
    gates: tuple[GateResult, ...] = ()
    data_notes: tuple[str, ...] = ()
    receipts: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    seeds: tuple[EmbedSeed, ...] = ()
    costs: tuple[str, ...] = ()


def write_embed_card(card: EmbedCard, folder: Path) -> tuple[str, ...]:
    """Write card.md and card/forms.png into a folder.

    Returns: the paths written, relative to `folder`.
    Raises: OSError: the folder cannot be written.
    """
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    plot_forms(folder / FOLDER / "forms.png", card.qualities[0])
    (folder / FILE).write_text(render_embed_card(card, plots=(f"{FOLDER}/forms.png",)), encoding="utf-8")
    return (FILE, f"{FOLDER}/forms.png")


def render_embed_card(card: EmbedCard, *, plots: Sequence[str] = ()) -> str:
    """card.md as text."""
    manifest = card.manifest
    sections = [
        ("", _summary(card)),
        ("Quality", "\n\n".join(_quality(quality) for quality in card.qualities)),
        ("Plots", "\n".join(f"![{Path(plot).stem}]({plot})" for plot in plots)),
        ("Other seeds", _seeds(card.seeds)),
        ("Gates", gates_table(card.gates)),
        ("Size", size_section(manifest, teacher_bytes=card.teacher_bytes, receipts=card.receipts)),
        ("Data", data_section(manifest, notes=card.data_notes)),
        ("How it was made", made_section(manifest, commands=card.commands, costs=card.costs)),
        ("What this card does not say", _LIMITS),
    ]
    body = "\n\n".join(f"## {title}\n\n{text}" if title else text for title, text in sections if text)
    return body + "\n"


def _summary(card: EmbedCard) -> str:
    manifest, quality = card.manifest, card.qualities[0]
    description = str(manifest.provenance.recipe.get("description", "")).strip()
    full = quality.full
    return "\n".join(
        [
            f"# {manifest.name}",
            "",
            *([description, ""] if description else []),
            f"An embed student of {manifest.embedding_dimensions} dimensions, up to {manifest.max_tokens} tokens; "
            f"teacher: {manifest.provenance.teacher or 'not stated'}.",
            f"Spearman correlation with people's scores on {quality.pairs:,} test pairs ({quality.precision}): "
            f"{full.spearman:.4f} (95% bootstrap interval {full.low:.4f} to {full.high:.4f}); "
            f"teacher {quality.teacher:.4f}, retention {full.retention:.4f}.",
        ]
    )


def _quality(quality: EmbedQuality) -> str:
    head = ["vectors", "Spearman", "95% interval", "÷ whole vectors", "÷ teacher"]
    rows = [
        [
            form.form,
            f"{form.spearman:.4f}",
            f"{form.low:.4f} to {form.high:.4f}",
            f"{form.of_full:.4f}",
            f"{form.retention:.4f}",
        ]
        for form in quality.forms
    ]
    parts = [f"### {quality.precision}", markdown(head, rows)]
    if quality.likeness is not None:
        alike = quality.likeness
        parts.append(
            f"Against the teacher, on {alike.rows:,} texts nobody trained on: mean cosine {alike.cosine:.4f} "
            f"({alike.worst:.4f} at the first percentile); rank correlation of the similarities of random pairs "
            f"{alike.similarities:.4f}; of a text's ten nearest others {percent(alike.overlap, digits=1)} are the "
            "teacher's ten."
        )
    if quality.neighbours is not None:
        near = quality.neighbours
        parts.append(
            f"Labels by the ten nearest labelled texts, {near.rows:,} test rows: {percent(near.student)} right, with "
            f"the teacher's vectors {percent(near.teacher)}."
        )
    return "\n\n".join(parts)


def _seeds(seeds: Sequence[EmbedSeed]) -> str:
    if len(seeds) < 2:
        return ""
    head = ["seed", "Spearman on test", "÷ teacher", "cosine to the teacher"]
    rows = [[str(s.seed), f"{s.spearman:.4f}", f"{s.retention:.4f}", f"{s.cosine:.4f}"] for s in seeds]
    return f"The same recipe with other seeds; the first is this version.\n\n{markdown(head, rows)}"


def quality_for_manifest(qualities: Sequence[EmbedQuality]) -> Quality:
    """The manifest's short form of the measurements, one entry per precision."""
    return Quality(
        split="test",
        rows=qualities[0].pairs,
        teacher={"spearman": qualities[0].teacher},
        by_precision={quality.precision: (_short(quality),) for quality in qualities},
    )


def _short(quality: EmbedQuality) -> ExitShares:
    found = {"spearman": quality.full.spearman, "retention": quality.full.retention}
    found |= {f"spearman_{form.form.replace(' ', '_')}": form.spearman for form in quality.forms[1:]}
    if quality.likeness is not None:
        found["cosine_teacher"] = quality.likeness.cosine
    return ExitShares(risk=None, exit_shares=(1.0,), mean_depth=1.0, metrics=found)
