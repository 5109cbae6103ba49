"""What an embedder reaches: against people's scores, and against its teacher.

N texts or pairs, D dimensions of the student, E of the teacher.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from models.data.rows import Row, ScoredPair
from service.runtime.encode import Text
from service.runtime.heads import binary_embedding, int8_embedding, unit_rows
from service.runtime.student import Student, batches_by_length

Matrix = npt.NDArray[np.float32]

NEIGHBOURS = 10
_BATCH_ITEMS = 64
RESAMPLES = 1_000


@dataclass(frozen=True, slots=True)
class PairQuality:
    """Spearman correlation with people's scores, of the cosines of one form of the vectors.

    form: "full", "first P", "int8" or "binary". low, high: 95% bootstrap interval over the pairs. of_full: ÷ the full
    vectors' correlation. retention: ÷ the teacher's.
    """

    form: str
    spearman: float
    low: float
    high: float
    of_full: float
    retention: float


@dataclass(frozen=True, slots=True)
class TeacherLikeness:
    """How alike the spaces are, on texts nobody trained on.

    cosine, worst: mean and first percentile of each text's cosine to the teacher's vector (in the student's axes).
    similarities: Spearman correlation of the cosines of random pairs. overlap: mean share of a text's ten nearest
    others that are the teacher's ten.
    """

    rows: int
    cosine: float
    worst: float
    similarities: float
    overlap: float


@dataclass(frozen=True, slots=True)
class NeighbourAccuracy:
    """Accuracy of a classifier by the ten nearest labelled texts, with the student's vectors and the teacher's."""

    rows: int
    student: float
    teacher: float


@dataclass(frozen=True, slots=True)
class EmbedQuality:
    """Everything measured of one precision. `teacher`: the teacher's Spearman correlation on the same pairs."""

    precision: str
    pairs: int
    teacher: float
    forms: tuple[PairQuality, ...]
    likeness: TeacherLikeness | None
    neighbours: NeighbourAccuracy | None

    @property
    def full(self) -> PairQuality:
        """Of the whole vectors, as floats."""
        return self.forms[0]


def vectors_of(student: Student, texts: Sequence[Text]) -> Matrix:
    """The student's embeddings at full depth, float32 [N, D], unit length, in the order of `texts`."""
    encoded = student.encoder.encode(texts)
    order: list[int] = []
    parts = []
    for batch in batches_by_length(encoded, _BATCH_ITEMS):
        order += batch
        parts.append(student.all_exits([encoded[place] for place in batch])[-1])
    return np.asarray(unit_rows(np.concatenate(parts)[np.argsort(order)]), np.float32)


def pair_texts(pairs: Sequence[ScoredPair]) -> list[str]:
    """The left texts of the pairs, then the right ones."""
    return [pair.text for pair in pairs] + [pair.text_pair for pair in pairs]


def pair_quality(
    student: Matrix, teacher: Matrix, pairs: Sequence[ScoredPair], *, prefixes: Sequence[int], seed: int = 0
) -> tuple[float, tuple[PairQuality, ...]]:
    """Correlations with people's scores: the teacher's, and those of each form of the student's vectors.

    Args:
        student: float32 [2N, D], unit rows, in the order of `pair_texts`.
        teacher: float32 [2N, E], the same.
        pairs: N pairs.
        prefixes: lengths below D to measure too.
    """
    scores = np.array([pair.score for pair in pairs])
    reference = correlation(_pair_cosines(teacher), scores)
    cosines = {name: _pair_cosines(vectors) for name, vectors in _forms(student, prefixes).items()}
    full = correlation(cosines["full"], scores)
    found = []
    for name, values in cosines.items():
        value = correlation(values, scores)
        low, high = _interval(values, scores, seed=seed)
        found.append(PairQuality(name, value, low, high, _ratio(value, full), _ratio(value, reference)))
    return reference, tuple(found)


def _ratio(value: float, whole: float) -> float:
    return value / whole if whole else math.nan


def _forms(vectors: Matrix, prefixes: Sequence[int]) -> Mapping[str, Matrix]:
    """The vectors in every form that is served, as unit rows again."""
    forms = {"full": vectors}
    forms |= {f"first {length}": _units(vectors[:, :length]) for length in sorted(prefixes, reverse=True)}
    forms["int8"] = _units(np.stack([int8_embedding(row) for row in vectors]))
    bits = np.unpackbits(np.stack([binary_embedding(row) for row in vectors]), axis=1, count=vectors.shape[1])
    forms["binary"] = _units(2.0 * bits - 1.0)
    return forms


def _units(vectors: npt.NDArray[np.number]) -> Matrix:
    return np.asarray(unit_rows(np.asarray(vectors, np.float32)), np.float32)


def _pair_cosines(vectors: Matrix) -> npt.NDArray[np.float64]:
    left, right = np.split(vectors.astype(np.float64), 2)
    return np.asarray((left * right).sum(axis=1))


def correlation(values: npt.NDArray[np.float64], scores: npt.NDArray[np.float64]) -> float:
    """Spearman's rank correlation, in [-1, 1]; NaN where either side is all the same."""
    if np.ptp(values) == 0 or np.ptp(scores) == 0:
        return math.nan
    return float(spearmanr(values, scores).statistic)


def _interval(values: npt.NDArray[np.float64], scores: npt.NDArray[np.float64], *, seed: int) -> tuple[float, float]:
    random = np.random.default_rng(seed)
    draws = (random.integers(0, len(scores), len(scores)) for _ in range(RESAMPLES))
    found = [correlation(values[rows], scores[rows]) for rows in draws]
    known = [value for value in found if not math.isnan(value)]
    if not known:
        return math.nan, math.nan
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


def likeness(student: Matrix, teacher: Matrix, *, seed: int = 0) -> TeacherLikeness:
    """Compare two sets of unit vectors of the same N texts.

    Args:
        student: float32 [N, D].
        teacher: float32 [N, D], in the student's axes.
    """
    cosines = (student.astype(np.float64) * teacher).sum(axis=1)
    random = np.random.default_rng(seed)
    left, right = random.integers(0, len(student), (2, 20 * len(student)))
    apart = left != right
    left, right = left[apart], right[apart]
    similarities = correlation(
        (student[left].astype(np.float64) * student[right]).sum(axis=1),
        (teacher[left].astype(np.float64) * teacher[right]).sum(axis=1),
    )
    return TeacherLikeness(
        rows=len(student),
        cosine=float(cosines.mean()),
        worst=float(np.percentile(cosines, 1)),
        similarities=similarities,
        overlap=_overlap(_nearest(student), _nearest(teacher)),
    )


def _nearest(vectors: Matrix) -> npt.NDArray[np.int64]:
    """int64 [N, 10]: each row's nearest others."""
    many = min(NEIGHBOURS, len(vectors) - 1)
    index = NearestNeighbors(n_neighbors=many, algorithm="brute", metric="cosine").fit(vectors)
    return np.asarray(index.kneighbors(return_distance=False), np.int64)


def _overlap(ours: npt.NDArray[np.int64], theirs: npt.NDArray[np.int64]) -> float:
    shared = [len(set(a.tolist()) & set(b.tolist())) for a, b in zip(ours, theirs, strict=True)]
    return float(np.mean(shared) / ours.shape[1])


def neighbour_accuracy(fit: Matrix, fit_rows: Sequence[Row], test: Matrix, test_rows: Sequence[Row]) -> float:
    """Accuracy on `test_rows` of the vote of the ten nearest of `fit_rows`, weighted by nearness.

    Args:
        fit, test: float32 unit rows, one for each of the rows.
    """
    classifier = KNeighborsClassifier(NEIGHBOURS, weights="distance", algorithm="brute", metric="cosine")
    classifier.fit(fit, [str(row.label) for row in fit_rows])
    return float(classifier.score(test, [str(row.label) for row in test_rows]))
