"""A measured toy student for the card."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from models.evaluate.quality import EvaluationRows, StudentQuality, evaluate_student
from service.bundle.load import load_bundle
from service.runtime.student import Student

WORDS = ("bad", "awful", "okay", "good", "great", "the", "film", "was", "not", "it")


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory, build_bundle: Callable[..., Path]) -> Student:
    """The toy classifier."""
    return Student(load_bundle(build_bundle(tmp_path_factory.mktemp("bundles") / "toy")))


@pytest.fixture(scope="session")
def rows(student: Student) -> EvaluationRows:
    """300 texts with gold and teacher labels."""
    draw = np.random.default_rng(0)
    texts = tuple(" ".join(draw.choice(WORDS, size=int(n))) for n in draw.integers(1, 8, size=300))
    names = student.manifest.labels
    gold = tuple(str(name) for name in draw.choice(names, size=300))
    return EvaluationRows(texts, gold, tuple(reversed(gold)))


@pytest.fixture(scope="session")
def quality(student: Student, rows: EvaluationRows) -> StudentQuality:
    """Measured on those rows."""
    return evaluate_student(student, rows)
