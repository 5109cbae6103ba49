"""Rows whose label is likely wrong, by confident learning on out-of-sample probabilities of a cheap classifier.

Every row is judged by a baseline that was fitted on the other folds: TF-IDF and logistic regression, so that no teacher
is needed. cleanlab counts, label by label, the rows that are confidently another label, and names as many of the least
likely ones: those that both its prunings name, by noise rate and by class.

Source: Northcutt et al. 2021, arXiv:1911.00068, section 3.
N rows, C labels.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from models.data.rows import Row, joined
from models.evaluate.baseline import tfidf_probabilities

FILTER: Final = "both"
"""cleanlab's `filter_by`. With 5% of the labels of 12 intents of BANKING77 made wrong, 95% of what `both` named was
wrong and 85% of what was wrong was named; `prune_by_noise_rate` 88% and 86%, `confident_learning` 93% and 77%."""

NOT_JUDGED: Final = -1


@dataclass(frozen=True, slots=True)
class LabelIssue:
    """A row whose label is likely wrong, what it likely is, and the probabilities of both labels."""

    row: Row
    suggested: str
    given_probability: float
    suggested_probability: float


@dataclass(frozen=True, slots=True)
class LabelIssues:
    """What was found, the least likely label first; how many rows were judged; the labels that were not."""

    issues: tuple[LabelIssue, ...]
    judged: int
    rare: tuple[str, ...]


def label_issues(
    rows: Sequence[Row], labels: Sequence[str], *, folds: int, family: Callable[[Row], str]
) -> LabelIssues:
    """Find rows whose label is likely wrong.

    A label with texts of fewer than `folds` families is not judged: its rows teach every fold.

    Args:
        rows: N labelled rows.
        labels: all their labels, sorted.
        folds: 2 or more.
        family: the key of rows that are judged together, as rows of the same words are.
    """
    places = {label: at for at, label in enumerate(labels)}
    given = np.array([places[str(row.label)] for row in rows], np.int64)
    dealt = deal(rows, folds=folds, family=family)
    judged = np.flatnonzero(dealt != NOT_JUDGED)
    rare = tuple(label for label in labels if not (given[judged] == places[label]).any())
    if len(labels) - len(rare) < 2:
        return LabelIssues((), 0, tuple(labels))
    probabilities = _out_of_sample(rows, labels, dealt)
    found = judged[_least_likely(given[judged], probabilities[judged])].tolist()
    issues = (_issue(rows[at], int(given[at]), probabilities[at], labels) for at in found)
    return LabelIssues(tuple(issues), len(judged), rare)


def deal(rows: Sequence[Row], *, folds: int, family: Callable[[Row], str]) -> npt.NDArray[np.int64]:
    """The fold of each row, int64 [N]; `NOT_JUDGED` for rows of labels with fewer than `folds` families.

    The families of a label (that of their first row) go to the folds in turn, in the order of their keys, so that every
    fold has some of every label and the order of the rows does not matter where a family has one label.
    """
    keys = [family(row) for row in rows]
    first = dict(zip(reversed(keys), reversed(rows), strict=True))
    of_label: dict[str, list[str]] = defaultdict(list)
    for key, row in first.items():
        of_label[str(row.label)].append(key)
    enough = {label for label, found in of_label.items() if len(found) >= folds}
    fold_of = {key: at % folds for label in enough for at, key in enumerate(sorted(of_label[label]))}
    named = (
        fold_of.get(key, NOT_JUDGED) if row.label in enough else NOT_JUDGED for key, row in zip(keys, rows, strict=True)
    )
    return np.fromiter(named, np.int64, len(rows))


def to_drop(doubtful: Sequence[Row], rows: Sequence[Row], *, least: int) -> frozenset[tuple[str, int]]:
    """The file and line of the doubtful rows, the first ones first, so far as every label keeps `least` of all rows."""
    left = Counter(row.label for row in rows)
    dropped: set[tuple[str, int]] = set()
    for row in doubtful:
        if left[row.label] > least:
            left[row.label] -= 1
            dropped.add((row.file, row.line))
    return frozenset(dropped)


def _out_of_sample(rows: Sequence[Row], labels: Sequence[str], dealt: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """float64 [N, C]: each judged row by the classifier of the other folds; 0 for the others."""
    texts = [joined(row) for row in rows]
    probabilities = np.zeros((len(rows), len(labels)))
    for fold in sorted(set(dealt.tolist()) - {NOT_JUDGED}):
        asked, known = (np.flatnonzero(each).tolist() for each in (dealt == fold, dealt != fold))
        probabilities[asked] = tfidf_probabilities(
            [texts[at] for at in known],
            [str(rows[at].label) for at in known],
            [texts[at] for at in asked],
            names=labels,
        )
    return probabilities


def _least_likely(given: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Of the judged rows those with an issue, the least likely label first.

    Args:
        given: int64 [N], labels as columns of `probabilities`.
        probabilities: float64 [N, C]; columns of labels that no judged row has are not looked at.
    """
    # here, since cleanlab brings pandas, which a refresh without this step need not wait for
    from cleanlab.filter import find_label_issues

    present, renumbered = np.unique(given, return_inverse=True)
    found = find_label_issues(
        renumbered,
        probabilities[:, present],
        filter_by=FILTER,
        return_indices_ranked_by="self_confidence",
        n_jobs=1,
    )
    return np.asarray(found, np.int64)


def _issue(row: Row, given: int, probabilities: npt.NDArray[np.float64], labels: Sequence[str]) -> LabelIssue:
    likely = int(probabilities.argmax())
    return LabelIssue(row, labels[likely], float(probabilities[given]), float(probabilities[likely]))
