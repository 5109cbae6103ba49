"""What a student reaches on one set of rows, setting by setting, in the one measure of its task, with intervals.

classify: accuracy · embed: Spearman correlation · rank: nDCG@10. N rows, pairs or queries; C labels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from models.data.rows import ScoredPair
from models.evaluate import metrics
from models.evaluate.calibrate import gold_indices
from models.evaluate.embedding import Matrix, correlation, pair_texts, vectors_of
from models.evaluate.exits import Counts, exit_taken
from models.evaluate.metrics import Interval
from models.evaluate.quality import EvaluationRows
from models.evaluate.ranking import RankQuality
from models.evaluate.scores import exit_logits, exit_rows
from service.bundle.manifest import Task
from service.runtime.student import Student

MEASURES: Final[dict[Task, str]] = {"classify": "accuracy", "embed": "Spearman correlation", "rank": "nDCG@10"}
RESAMPLES: Final = 1_000
_PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True, slots=True)
class Standing:
    """What one setting reaches.

    risk: the operating point; None: full depth. quality: the task's measure, with a 95% bootstrap interval over the
    rows. macro_f1: of classify. retention: quality ÷ the teacher's on the same rows; None without a teacher, or where
    its quality is 0 or unknown.
    """

    risk: float | None
    quality: Interval
    macro_f1: Interval | None = None
    retention: Interval | None = None

    @property
    def setting(self) -> str:
        """ "full depth" or "risk R"."""
        return "full depth" if self.risk is None else f"risk {self.risk:g}"


def classify_standings(student: Student, rows: EvaluationRows) -> tuple[Standing, ...]:
    """A classify student at full depth, then at each of its certified operating points, risks rising.

    Args:
        rows: with labels; with the teacher's answers, where retention is wanted.
    Raises: KeyError: a label that the student does not have.
    """
    manifest = student.manifest
    logits = exit_logits(student, student.encoder.encode(rows.texts))
    certificate = manifest.certificate(backend=student.backend, precision=student.precision)
    rule = certificate.confidence if certificate else "max_probability"
    seen = exit_rows(logits, temperatures=[leave.temperature for leave in manifest.exits], rule=rule)
    never: tuple[float | None, ...] = (None,) * (len(manifest.exits) - 1)
    points = [(None, never), *((p.risk, p.thresholds) for p in (certificate.points if certificate else ()))]
    every = np.arange(len(rows.texts))
    return tuple(
        _answers(seen.labels[every, exit_taken(seen, thresholds)], rows, names=manifest.labels, risk=risk)
        for risk, thresholds in points
    )


def answers_standing(answers: Sequence[str], rows: EvaluationRows, *, names: Sequence[str]) -> Standing:
    """Labels given by anything: a teacher, a baseline.

    Args:
        answers: one label for each row.
        names: all labels.
    """
    return _answers(gold_indices(answers, names), rows, names=names, risk=None)


def _answers(answered: Counts, rows: EvaluationRows, *, names: Sequence[str], risk: float | None) -> Standing:
    assert rows.labels is not None, "a standing is on labelled rows"
    gold = gold_indices(rows.labels, names)
    retention = None
    if rows.teacher is not None:
        teacher = gold_indices(rows.teacher, names)
        if len(gold) > 1 and (teacher == gold).any():
            retention = metrics.retention(answered, teacher, gold)
    right = (answered == gold).astype(np.float64)
    return Standing(
        risk=risk,
        quality=resampled(lambda places: float(right[places].mean()), len(gold)),
        macro_f1=resampled(lambda places: _macro_f1(answered[places], gold[places], len(names)), len(gold)),
        retention=retention,
    )


def _macro_f1(answered: Counts, gold: Counts, labels: int) -> float:
    """`metrics.macro_f1`, without scikit-learn's checks: it is taken a thousand times."""
    hits, held, given = (np.bincount(each, minlength=labels) for each in (gold[answered == gold], gold, answered))
    occurs = held > 0
    return float((2 * hits[occurs] / (held + given)[occurs]).mean())


def pairs_standing(student: Student, pairs: Sequence[ScoredPair], *, teacher: Matrix | None) -> Standing:
    """An embedder at full depth.

    Args:
        pairs: N, with people's scores.
        teacher: the teacher's unit vectors of `pair_texts(pairs)`, float32 [2N, E]; None: no retention.
    """
    return vectors_standing(vectors_of(student, pair_texts(pairs)), pairs, teacher=teacher)


def vectors_standing(vectors: Matrix, pairs: Sequence[ScoredPair], *, teacher: Matrix | None = None) -> Standing:
    """Unit vectors of `pair_texts(pairs)`, made by anything."""
    scores = np.array([pair.score for pair in pairs])
    ours, theirs = _cosines(vectors), None if teacher is None else _cosines(teacher)

    def ratio(places: npt.NDArray[np.int64]) -> float:
        assert theirs is not None
        whole = correlation(theirs[places], scores[places])
        return correlation(ours[places], scores[places]) / whole if whole else math.nan

    return Standing(
        risk=None,
        quality=resampled(lambda places: correlation(ours[places], scores[places]), len(scores)),
        retention=None if theirs is None else resampled(ratio, len(scores)),
    )


def _cosines(vectors: Matrix) -> npt.NDArray[np.float64]:
    left, right = np.split(vectors.astype(np.float64), 2)
    return np.asarray((left * right).sum(axis=1))


def rank_standing(quality: RankQuality, *, against: str | None) -> Standing:
    """A ranker as `compare_rankers` measured it; `against`: the teacher's name there."""
    versus = None if against is None or quality.versus is None else quality.versus[against]
    return Standing(
        risk=None,
        quality=quality.measures["ndcg@10"],
        retention=None if versus is None else versus.ratio["ndcg@10"],
    )


def resampled(statistic: Callable[[npt.NDArray[np.int64]], float], rows: int, *, seed: int = 0) -> Interval:
    """A statistic of rows, with its 95% percentile bootstrap interval; resamples that give no number are left out.

    Args:
        statistic: of the places of the rows drawn, int64 [N].
        rows: N, at least 1.
    """
    value = statistic(np.arange(rows))
    random = np.random.default_rng(seed)
    drawn = [statistic(random.integers(0, rows, rows)) for _ in range(RESAMPLES)]
    known = [each for each in drawn if not math.isnan(each)]
    if math.isnan(value) or not known:
        return Interval(value, value, value)
    low, high = np.percentile(known, _PERCENTILES)
    return Interval(value, float(low), float(high))
