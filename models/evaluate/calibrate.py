"""From calibration rows to a certificate: split A chooses, split B certifies, on the exported graphs.

A refresh calls `temperatures_of` (split A, once, on the default precision), then `certify_student` for each precision
that is shipped. What split A holds bears on how good the rule is, not on whether the promise is kept; it may be the
dev split. Split B's rows must have had no other use.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.evaluate.exits import Counts, Risks, certify, choose_path
from models.evaluate.scores import exit_logits, exit_rows
from models.evaluate.temperature import fit_score_temperatures, fit_temperatures
from service.bundle.manifest import Certificate, Confidence
from service.runtime.encode import Encoded
from service.runtime.student import Student

REFERENCE = "the label of the full-depth student"


@dataclass(frozen=True, slots=True)
class Promise:
    """What is to be certified, for which population and under which input policy.

    population: in words: which inputs the calibration rows stand for.
    population_digest: sha256 of the keys of split B's rows.
    input_policy: in words: what is done to an input before it is run (tokens kept, which end is cut).
    """

    confidence: Confidence
    risks: Risks
    population: str
    population_digest: str
    input_policy: str


def keys_digest(keys: Sequence[str]) -> str:
    """sha256 over the sorted keys, one a line: which rows a certificate stands on, whatever their order."""
    return hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Temperatures:
    """What divides each exit's logits, in pipeline order, as the manifest will carry it.

    exits: for the confidence that decides who leaves. scores: for the scores that are shown; None: the same.
    """

    exits: tuple[float, ...]
    scores: tuple[float | None, ...]


def temperatures_of(
    student: Student, split_a: Sequence[Encoded], *, gold: Sequence[int | None] | None = None
) -> Temperatures:
    """The temperatures of every exit, fitted on split A; see `models.evaluate.temperature`.

    Args:
        gold: per row its label's index, or None; None: the data has no labels.
    """
    known: NDArray[np.int64] | None = None
    if gold is not None:
        known = np.array([-1 if label is None else label for label in gold], dtype=np.int64)
    logits = exit_logits(student, split_a)
    return Temperatures(fit_temperatures(logits, gold=known), fit_score_temperatures(logits, gold=known))


def certify_student(
    student: Student,
    *,
    split_a: Sequence[Encoded],
    split_b: Sequence[Encoded],
    temperatures: Sequence[float],
    promise: Promise,
) -> Certificate:
    """The certificate of the student's backend and precision.

    Args:
        student: the quantised, exported stages that will be served.
        split_a, split_b: rows neither teacher nor student trained on; B's are used here and nowhere else.
        temperatures: one per exit, as the manifest will carry them.
    Returns: with no points, when split B is too small for every risk: then exits stay off.
    """
    depths = [leave.depth for leave in student.manifest.exits]
    rows_a, rows_b = (
        exit_rows(exit_logits(student, split), temperatures=temperatures, rule=promise.confidence)
        for split in (split_a, split_b)
    )
    path = choose_path(rows_a, depths=depths, risks=promise.risks.values)
    return Certificate(
        backend=student.backend,
        precision=student.precision,
        confidence=promise.confidence,
        delta=promise.risks.delta,
        population=promise.population,
        population_digest=promise.population_digest,
        reference=REFERENCE,
        input_policy=promise.input_policy,
        points=certify(path, rows_b, depths=depths, risks=promise.risks),
    )


def gold_indices(labels: Sequence[str | None], names: Sequence[str]) -> Counts:
    """int64 [N]: each label's index among `names`; -1 where it is None. Raises: KeyError: a label is not a name."""
    index = {name: i for i, name in enumerate(names)}
    return np.array([-1 if label is None else index[label] for label in labels], dtype=np.int64)
