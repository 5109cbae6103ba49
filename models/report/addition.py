"""What a card gets when a published version is certified on a further backend or precision: one section.

The card of the version stays as it was; its plots and tables are those of the certificates it was made with.
"""

from dataclasses import dataclass

from models.evaluate.quality import StudentQuality
from models.evaluate.tables import exits_table, settings_table
from models.report.card import SETTINGS_LEGEND, GateResult, gates_table, promise
from service.bundle.manifest import Certificate, Manifest

_BEFORE = "\n## Quality\n"


@dataclass(frozen=True, slots=True)
class Addition:
    """One added certificate.

    origin: which version it was added to, when and with what, in words; one sentence.
    quality: on the split that `split` names.
    """

    certificate: Certificate
    quality: StudentQuality
    gates: tuple[GateResult, ...]
    origin: str
    split: str = "test"


def section(manifest: Manifest, addition: Addition) -> str:
    """The section as Markdown, without a final newline."""
    certificate, quality = addition.certificate, addition.quality
    return "\n\n".join(
        [
            f"## Also certified: {certificate.precision} on {certificate.backend}",
            f"{addition.origin} Same graphs, exits and temperatures; thresholds chosen on split A and certified once "
            "on split B with the numbers of this backend. The certificates that were there before are unchanged.",
            promise(manifest, certificate),
            f"Measured once, on the {quality.rows:,} rows of the {addition.split} split. "
            "Each exit, if everybody left there:",
            exits_table(quality),
            SETTINGS_LEGEND,
            settings_table(quality),
            "On the gate split, which neither chose nor certified anything:",
            gates_table(addition.gates),
        ]
    )


def with_section(card: str, added: str) -> str:
    """The card with a section added after what the exits promise, or at its end where there is no such place.

    >>> with_section("# a\\n\\n## Quality\\n\\nfine\\n", "## new")
    '# a\\n\\n## new\\n\\n## Quality\\n\\nfine\\n'
    >>> with_section("# a\\n", "## new")
    '# a\\n\\n## new\\n'
    """
    before, found, after = card.partition(_BEFORE)
    return f"{before.rstrip()}\n\n{added}\n{found}{after}"
