"""The baseline beside every student: fitted once on the training rows, asked once for every split it is judged on."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import sklearn

from models.data.rows import Row, joined
from models.evaluate.baseline import (
    INVERSE_DECAY,
    LEAST_TEXTS,
    MOST_ROUNDS,
    NGRAMS,
    BaselineQuality,
    baseline_quality,
    tfidf_answers,
)
from models.evaluate.quality import EvaluationRows
from models.refresh.training import Run

BASELINE_STEP = 2

_SPLITS = ("dev", "gate", "test")


def baseline_answers(run: Run) -> Mapping[str, tuple[str, ...]]:
    """The baseline's labels of the rows of dev, gate and test (a cached step)."""
    inputs = {
        "step": BASELINE_STEP,
        "rows": run.data_key(),
        "settings": [NGRAMS, LEAST_TEXTS, INVERSE_DECAY, MOST_ROUNDS],
        "library": sklearn.__version__,
    }

    def make(folder: Path) -> None:
        labels = [str(row.label) for row in run.splits.train]
        asked = [_words(getattr(run.splits, split)) for split in _SPLITS]
        answers = tfidf_answers(_words(run.splits.train), labels, asked)
        document = dict(zip(_SPLITS, answers, strict=True))
        (folder / "answers.json").write_text(json.dumps(document), encoding="utf-8")

    folder = run.cache.run("baseline", inputs, make)
    document = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
    return {split: tuple(answers) for split, answers in document.items()}


def _words(rows: Sequence[Row]) -> list[str]:
    return [joined(row) for row in rows]


def baseline_on(run: Run, split: str, rows: EvaluationRows) -> BaselineQuality:
    """What it reaches on the rows of a split, which carry labels and the teacher's answers."""
    return baseline_quality(baseline_answers(run)[split], rows, names=run.splits.labels)
