"""Does an answer depend on its company? The same text alone, among strangers, and padded to other lengths.

`python -m models.evaluate.company STUDENT DATA` checks every shipped precision and exits with status 3 when one
fails. N rows, E exits, C labels.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from models.data.read import read_rows
from models.data.rows import text_of
from models.evaluate.exits import Counts, Floats
from models.evaluate.opening import one_line_errors, open_bundle, write_json
from models.evaluate.variants import Variant, require_backends, variants
from models.recipe.parts import FIRST_BACKEND
from service.runtime.encode import Encoded, EncodedPair, pad
from service.runtime.heads import ExitPolicy, confidence, softmax
from service.runtime.student import Student

TOLERANCE = 1e-3
BATCH_ITEMS = 64


@dataclass(frozen=True, slots=True)
class CompanyCheck:
    """One kind of company against each text alone.

    variant: the precision; and the backend, where it is not the first.
    setting: "exit E" (what that exit says of every row) or "risk R" (the answers served with exits).
    worst_score: the largest difference of any label's score. flips: rows with another label; moved: rows that left
        at another exit. `unexplained` counts those of both that no tie explains: a flip where the two best scores
        lie within the tolerance, or a confidence within it of a threshold. Scores of moved rows are not compared.
    """

    variant: str
    setting: str
    company: str
    rows: int
    worst_score: float
    flips: int
    moved: int
    unexplained: int

    @property
    def holds(self) -> bool:
        """Scores within the tolerance and no unexplained flip."""
        return self.worst_score <= TOLERANCE and self.unexplained == 0


@dataclass(frozen=True, slots=True, eq=False)
class _Answers:
    """exit_index int64 [N]; scores float64 [N, C] at that exit."""

    exit_index: Counts
    scores: Floats


@dataclass(frozen=True, slots=True)
class _Company:
    """Batches of places in the rows, each padded to at least `length` tokens."""

    name: str
    batches: tuple[tuple[int, ...], ...]
    length: int = 0


def check_company(student: Student, encoded: Sequence[Encoded], *, seed: int = 0) -> tuple[CompanyCheck, ...]:
    """Compare every text alone with itself in batches of 64 and padded: at every exit, and with the default exits.

    Args:
        seed: shuffles the rows, so that batches mix lengths.
    """
    alone, *others = _companies(len(encoded), student.manifest.max_tokens, seed)
    at_exits = _at_exits(student, encoded, alone)
    ties = [_Tied(_labels_tie(each), np.zeros(len(encoded), dtype=bool)) for each in at_exits]
    checks = []
    for company in others:
        for index, found in enumerate(_at_exits(student, encoded, company)):
            setting = f"exit {student.manifest.exits[index].id}"
            checks.append(_compared(student, setting, company.name, at_exits[index], found, ties[index]))
    served = student.policy()
    if served.risk_applied is None:
        return tuple(checks)
    answers = _served(student, encoded, alone, served)
    tied = _Tied(_labels_tie(answers), _exits_tie(student, encoded, served))
    setting = f"risk {served.risk_applied:g}"
    return (
        *checks,
        *(_compared(student, setting, c.name, answers, _served(student, encoded, c, served), tied) for c in others),
    )


def _companies(rows: int, max_tokens: int, seed: int) -> list[_Company]:
    """Alone first."""
    singles = tuple((i,) for i in range(rows))
    shuffled = np.random.default_rng(seed).permutation(rows).tolist()
    mixed = tuple(tuple(shuffled[i : i + BATCH_ITEMS]) for i in range(0, rows, BATCH_ITEMS))
    lengths = sorted({length for length in (16, 24, 48, 96, 192, 384) if length < max_tokens} | {max_tokens})
    padded = [_Company(f"alone, padded to {length}", singles, length) for length in lengths]
    return [_Company("alone", singles), _Company(f"in a mixed batch of {BATCH_ITEMS}", mixed), *padded]


def _at_exits(student: Student, encoded: Sequence[Encoded], company: _Company) -> list[_Answers]:
    """What each exit says of every row."""
    shape = len(encoded), len(student.manifest.labels)
    scores = [np.zeros(shape) for _ in student.manifest.exits]
    for batch in company.batches:
        items = [encoded[i] for i in batch]
        raws = student.all_exits(items, length=max(company.length, *map(_padded_tokens, items)))
        for found, raw, leave in zip(scores, raws, student.manifest.exits, strict=True):
            found[list(batch)] = softmax(raw, temperature=leave.answer_temperature)
    return [_Answers(np.full(len(encoded), index), found) for index, found in enumerate(scores)]


def _padded_tokens(item: Encoded) -> int:
    """Tokens of what is padded: of two texts that are read apart, the second one."""
    return item.kept - (item.first_kept if isinstance(item, EncodedPair) else 0)


def _served(student: Student, encoded: Sequence[Encoded], company: _Company, policy: ExitPolicy) -> _Answers:
    """The answers with exits."""
    shape = len(encoded), len(student.manifest.labels)
    exit_index, scores = np.zeros(len(encoded), dtype=np.int64), np.zeros(shape)
    for batch in company.batches:
        items = [encoded[i] for i in batch]
        longest = max(company.length, *(item.kept for item in items))
        outcome = student.run_padded(pad(items, pad_id=student.pad_id, length=longest), policy)
        exit_index[list(batch)] = outcome.exit_index
        for place, left, raw in zip(batch, outcome.exit_index, outcome.raw, strict=True):
            scores[place] = softmax(raw, temperature=student.manifest.exits[left].answer_temperature)
    return _Answers(exit_index, scores)


@dataclass(frozen=True, slots=True, eq=False)
class _Tied:
    """bool [N] each: the two best scores tie; a confidence met on the way ties with its threshold."""

    labels: NDArray[np.bool_]
    exits: NDArray[np.bool_]


def _labels_tie(alone: _Answers) -> NDArray[np.bool_]:
    top = np.sort(alone.scores, axis=1)
    return np.asarray(top[:, -1] - top[:, -2] <= TOLERANCE)


def _exits_tie(student: Student, encoded: Sequence[Encoded], policy: ExitPolicy) -> NDArray[np.bool_]:
    tied = np.zeros(len(encoded), dtype=bool)
    for i, item in enumerate(encoded):
        raws = student.all_exits([item])
        for raw, leave, threshold in zip(raws[:-1], student.manifest.exits[:-1], policy.thresholds, strict=True):
            sure = confidence(softmax(raw, temperature=leave.temperature), policy.confidence)[0]
            tied[i] |= threshold is not None and abs(sure - threshold) <= TOLERANCE
    return tied


def _compared(
    student: Student, setting: str, company: str, alone: _Answers, other: _Answers, tied: _Tied
) -> CompanyCheck:
    moved = alone.exit_index != other.exit_index
    flips = ~moved & (alone.scores.argmax(axis=1) != other.scores.argmax(axis=1))
    differences = np.abs(alone.scores - other.scores)[~moved]
    return CompanyCheck(
        variant=Variant(student.backend, student.precision).name,
        setting=setting,
        company=company,
        rows=len(moved),
        worst_score=float(differences.max(initial=0.0)),
        flips=int(flips.sum()),
        moved=int(moved.sum()),
        unexplained=int((flips & ~tied.labels).sum() + (moved & ~tied.exits).sum()),
    )


def table(checks: Sequence[CompanyCheck]) -> str:
    """The checks as a Markdown table."""
    head = "| precision | setting | company | rows | worst score difference | flips | moved | unexplained | holds |\n"
    lines = [
        f"| {c.variant} | {c.setting} | {c.company} | {c.rows:,} | {c.worst_score:.1e} | {c.flips} | {c.moved} "
        f"| {c.unexplained} | {'yes' if c.holds else 'NO'} |\n"
        for c in checks
    ]
    return head + "|---|---|---|---:|---:|---:|---:|---:|---|\n" + "".join(lines)


def command(
    student: Annotated[str, typer.Argument(help="NAME, NAME@VERSION, NAME@ALIAS, or a bundle's folder.")],
    data: Annotated[Path, typer.Argument(help="Rows: JSONL, CSV or Parquet.")],
    store: Annotated[Path, typer.Option(envvar="UNDERSTUDY_STORE")] = Path("models/store"),
    backend: Annotated[str, typer.Option(help="The backend to check.")] = FIRST_BACKEND,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the checks here too.")] = None,
) -> None:
    """Check that answers do not depend on their company, in every precision of a student."""
    with one_line_errors():
        require_backends([backend], where="--backend")
        bundle = open_bundle(student, store=store)
        texts = [text_of(row) for row in read_rows(data, task="classify", labels="optional")]
        checks: list[CompanyCheck] = []
        for variant in variants([backend], sorted(bundle.manifest.precisions)):
            loaded = variant.load(bundle)
            checks += check_company(loaded, loaded.encoder.encode(texts))
        typer.echo(table(checks), nl=False)
        write_json(json_out, [asdict(check) for check in checks])
    if not all(check.holds for check in checks):
        raise typer.Exit(3)


if __name__ == "__main__":
    typer.run(command)
