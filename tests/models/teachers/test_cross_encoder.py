"""The ranking teacher: its losses by hand, what it learns, that it is saved like any teacher."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from models.errors import TeacherInvalid
from models.recipe.rank import RankFineTune
from models.teachers.cross_encoder import (
    LABELS,
    GradedLists,
    best_is_relevant,
    binary_cross_entropy,
    cross_encoder,
    fine_tune_ranker,
    listwise_cross_entropy,
)
from models.teachers.teacher import load_teacher

WORDS = ("card", "money", "transfer", "film", "late", "again")
SETTINGS = RankFineTune(epochs=6, learning_rate=0.01, batch_items=4, max_tokens=16)


def graded(count: int) -> GradedLists:
    """Lists in which the passage with `refund` is relevant."""
    pairs, grades = [], []
    for at in range(count):
        words = [WORDS[(at + shift) % len(WORDS)] for shift in range(3)]
        passages = [f"{word} refund" if place == at % 3 else f"my {word}" for place, word in enumerate(words)]
        pairs.append(tuple((f"where is the {words[0]}", passage) for passage in passages))
        grades.append(tuple(float(place == at % 3) for place in range(3)))
    return GradedLists(tuple(pairs), tuple(grades))


def test_listwise_cross_entropy_by_hand() -> None:
    scores = torch.tensor([[1.0, 0.0, 9.0], [0.0, 1.0, 2.0], [3.0, 2.0, 1.0]])
    grades = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, False], [True, True, True], [True, True, True]])
    found = listwise_cross_entropy(scores, grades, mask).tolist()
    whole = math.log(1 + math.e + math.e**2)
    assert found == pytest.approx([math.log(1 + math.exp(-1)), (whole - 1 + whole - 2) / 2, 0.0], abs=1e-6)


def test_binary_cross_entropy_by_hand() -> None:
    scores, grades = torch.tensor([[1.0, -1.0, 50.0]]), torch.tensor([[2.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, False]])
    assert binary_cross_entropy(scores, grades, mask).tolist() == pytest.approx([math.log(1 + math.exp(-1))])


@pytest.mark.parametrize("kind", [listwise_cross_entropy, binary_cross_entropy])
def test_what_is_beyond_a_list_has_no_part_and_no_gradient(kind) -> None:
    grades, mask = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[True, True, False]])
    short = kind(torch.tensor([[0.3, 0.1]]), grades[:, :2], mask[:, :2])
    scores = torch.tensor([[0.3, 0.1, 7.0]], requires_grad=True)
    found = kind(scores, grades, mask)
    found.sum().backward()
    assert torch.allclose(found, short)
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()
    assert float(scores.grad[0, 2]) == 0


@pytest.mark.parametrize("loss", ["listwise", "binary", "both"])
def test_it_learns_which_passage_is_relevant(encoder_directory: Path, loss: str, tmp_path: Path) -> None:
    told: list[str] = []
    settings = SETTINGS.model_copy(update={"loss": loss})
    teacher = fine_tune_ranker(
        encoder_directory, graded(48), settings, dev=graded(9), progress=lambda *args: told.append(args[2])
    )
    assert best_is_relevant(teacher, graded(30)) == 1.0
    assert teacher.labels == LABELS
    assert sum(note.startswith("dev accuracy at 1") for note in told) == 6
    teacher.save(tmp_path / "teacher")
    again = cross_encoder(tmp_path / "teacher", max_tokens=8)
    assert (again.digest(), again.max_tokens) == (teacher.digest(), 16)


def test_no_dev_lists_have_no_accuracy(encoder_directory: Path) -> None:
    assert np.isnan(best_is_relevant(load_teacher(encoder_directory), GradedLists((), ())))


def test_what_is_no_encoder_or_no_ranker_is_refused(classifier_directory: Path, encoder_directory: Path) -> None:
    with pytest.raises(TeacherInvalid, match="needs a bare encoder"):
        fine_tune_ranker(classifier_directory, graded(4), SETTINGS, dev=graded(2))
    with pytest.raises(TeacherInvalid, match="one label, not 2"):
        cross_encoder(classifier_directory, max_tokens=16)
    with pytest.raises(TeacherInvalid, match="one label, not 0"):
        cross_encoder(encoder_directory, max_tokens=16)


def test_training_that_diverges_is_told(encoder_directory: Path) -> None:
    with pytest.raises(TeacherInvalid, match="fine-tuning the teacher diverged"):
        fine_tune_ranker(
            encoder_directory,
            GradedLists(graded(8).pairs, tuple((float("nan"),) * 3 for _ in range(8))),
            SETTINGS,
            dev=graded(2),
        )
