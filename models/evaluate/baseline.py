"""What a classify student must beat to be worth its trouble: logistic regression on TF-IDF of words and word pairs."""

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from models.evaluate import metrics
from models.evaluate.calibrate import gold_indices
from models.evaluate.metrics import Interval
from models.evaluate.quality import EvaluationRows

NAME: Final = "TF-IDF + logistic regression"
NGRAMS, LEAST_TEXTS, INVERSE_DECAY, MOST_ROUNDS = (1, 2), 2, 10.0, 500
"""Words and pairs of words, those of two texts or more; C; fixed beforehand, the same for every data set."""


@dataclass(frozen=True, slots=True)
class BaselineQuality:
    """What it reaches on labelled rows, and beside their teacher. `rows`: how many. `retention`: None where the teacher
    is right on none."""

    name: str
    rows: int
    accuracy: float
    macro_f1: float
    teacher_agreement: float
    retention: Interval | None


def tfidf_answers(
    texts: Sequence[str], labels: Sequence[str], asked: Sequence[Sequence[str]]
) -> tuple[tuple[str, ...], ...]:
    """Fit on labelled texts, and answer others.

    Args:
        texts, labels: the training rows.
        asked: sets of texts.
    Returns: for each set its texts' labels; the most frequent label everywhere, where no word is in two texts.
    """
    fitted = _fitted(texts, labels)
    if fitted is None:
        most = Counter(labels).most_common(1)[0][0]
        return tuple((most,) * len(part) for part in asked)
    vectors, model = fitted
    return tuple(tuple(str(answer) for answer in model.predict(vectors.transform(part))) for part in asked)


def tfidf_probabilities(
    texts: Sequence[str], labels: Sequence[str], asked: Sequence[str], *, names: Sequence[str]
) -> npt.NDArray[np.float64]:
    """Fit on labelled texts, and say how likely each label of others is.

    Args:
        texts, labels: the N training rows, of two labels or more.
        asked: M texts.
        names: the C labels, in the order of the columns.
    Returns: float64 [M, C], rows summing to 1; 0 for labels that no training row has; the labels' shares of the
        training rows, where no word is in two texts.
    """
    fitted = _fitted(texts, labels)
    if fitted is None:
        counts = Counter(labels)
        shares = np.array([counts[name] for name in names]) / len(labels)
        return np.tile(shares, (len(asked), 1))
    vectors, model = fitted
    found = np.zeros((len(asked), len(names)))
    found[:, [names.index(str(name)) for name in model.classes_]] = model.predict_proba(vectors.transform(asked))
    return found


def _fitted(texts: Sequence[str], labels: Sequence[str]) -> tuple[TfidfVectorizer, LogisticRegression] | None:
    """None: no word is in two texts."""
    vectors = TfidfVectorizer(ngram_range=NGRAMS, min_df=LEAST_TEXTS, sublinear_tf=True, strip_accents="unicode")
    try:
        known = vectors.fit_transform(texts)
    except ValueError:  # scikit-learn's word for an empty vocabulary
        return None
    model = LogisticRegression(C=INVERSE_DECAY, max_iter=MOST_ROUNDS)
    with warnings.catch_warnings():
        # a baseline that stopped a little early is one all the same
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(known, list(labels))
    return vectors, model


def baseline_quality(answers: Sequence[str], rows: EvaluationRows, *, names: Sequence[str]) -> BaselineQuality:
    """Judge answers on labelled rows with the teacher's answers beside them.

    Args:
        names: the labels.
    Raises: ValueError: the rows have no labels, or no teacher.
    """
    if rows.labels is None or rows.teacher is None:
        raise ValueError("a baseline is judged on labelled rows with the teacher's answers")
    predicted, gold, teacher = (gold_indices(each, names) for each in (answers, rows.labels, rows.teacher))
    return BaselineQuality(
        name=NAME,
        rows=len(predicted),
        accuracy=metrics.accuracy(predicted, gold),
        macro_f1=metrics.macro_f1(predicted, gold),
        teacher_agreement=metrics.agreement(predicted, teacher),
        retention=metrics.retention(predicted, teacher, gold) if len(gold) > 1 and (teacher == gold).any() else None,
    )
