"""Distillation of a ranker: the objectives by hand, masks, and a student that learns its teacher's order."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from models.distill.rank import RankTransfer, distil_ranker, listwise_kl, margin_mse, rank_loss, scores_of
from models.recipe.rank import RankDistil, RankStudent, SplitRankerStudent
from models.students.cross_encoder import new_cross_encoder
from models.students.split_start import Sample, new_split_ranker
from models.students.vocabulary import untrimmed
from models.teachers.pair_lists import pair_lists, split_lists
from models.teachers.teacher import load_teacher

MASK = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
TEACHER = torch.tensor([[3.0, 1.0, 0.0], [2.0, -1.0, 9.0], [1.0, 9.0, 9.0]])


def test_margin_mse_by_hand() -> None:
    student = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 5.0], [4.0, 0.0, 0.0]])
    wanted = [((1 - 2) ** 2 + (1 - 3) ** 2) / 2, (0 - 3) ** 2, 0.0]
    assert margin_mse(student, TEACHER, MASK).tolist() == wanted


def test_listwise_kl_by_hand() -> None:
    student = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    share = 1 / (1 + math.exp(-1.5))
    entropy = -(share * math.log(share) + (1 - share) * math.log(1 - share))
    found = listwise_kl(student, TEACHER, MASK, temperature=2).tolist()
    assert found[1:] == pytest.approx([4 * (math.log(2) - entropy), 0.0], abs=1e-5)


@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_a_student_that_scores_as_its_teacher_has_no_soft_loss(shift: float) -> None:
    assert margin_mse(TEACHER + shift, TEACHER, MASK).abs().max() < 1e-6
    assert listwise_kl(TEACHER + shift, TEACHER, MASK, temperature=1).abs().max() < 1e-6


def test_what_is_beyond_a_list_has_no_gradient() -> None:
    student = torch.zeros(3, 3, requires_grad=True)
    (margin_mse(student, TEACHER, MASK) + listwise_kl(student, TEACHER, MASK, temperature=1)).sum().backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    assert (student.grad[~MASK] == 0).all()


def test_gold_counts_where_there_is_a_relevant_passage() -> None:
    settings = RankDistil(objectives=({"listwise_kl": {}},), gold_weight=1.0)
    student, grades = torch.zeros(3, 3), torch.tensor([[1.0, 0, 0], [0, 0, 1.0], [0, 0, 0]])
    soft = listwise_kl(student, TEACHER, MASK, temperature=1)
    wanted = (math.log(3) + float(soft[1]) + float(soft[2])) / 3
    assert float(rank_loss(student, TEACHER, grades, MASK, settings)) == pytest.approx(wanted, abs=1e-6)


WORDS = ("card", "money", "transfer", "film", "late", "again", "good", "bad")
WORTH = {word: at - 4.0 for at, word in enumerate(WORDS)}
LEARNED = RankDistil(objectives=({"margin_mse": {"weight": 0.1}}, {"listwise_kl": {}}), epochs=30, learning_rate=0.01)


def taught() -> tuple[list[list[tuple[str, str]]], np.ndarray]:
    """48 lists of four passages, best first, that one word decides, and the teacher's scores."""
    lists = [[("where", f"my {WORDS[(at * 3 + k) % 8]}") for k in range(4)] for at in range(48)]
    lists = [sorted(each, key=lambda pair: -WORTH[pair[1].split()[1]]) for each in lists]
    return lists, np.array([WORTH[pair[1].split()[1]] for each in lists for pair in each], np.float32)


def test_a_student_learns_its_teachers_order(encoder_directory: Path) -> None:
    lists, scores = taught()
    teacher = load_teacher(encoder_directory)
    settings = RankStudent(
        layers=1, hidden=16, heads=2, feed_forward=16, teacher_layers=(0,), max_tokens=8, head_width=16
    )
    student = new_cross_encoder(
        settings, trimmed=untrimmed(teacher.tokenizer_json), state=teacher.encoder_state(), teacher_heads=2, seed=0
    )
    tokens = pair_lists(teacher.tokenizer_json, lists, [[0.0] * 4] * 48, max_tokens=8)
    distil_ranker(student, RankTransfer(tokens, scores), LEARNED, seed=0)
    found = scores_of(student, tokens.tokens)
    assert not student.training
    assert np.corrcoef(found, scores)[0, 1] > 0.97


def test_a_student_that_reads_apart_learns_it_too(encoder_directory: Path) -> None:
    lists, scores = taught()
    teacher = load_teacher(encoder_directory)
    apart = split_lists(teacher.tokenizer_json, lists, [[0.0] * 4] * 48, max_tokens=8)
    rows = np.arange(48)
    settings = SplitRankerStudent(
        architecture="split-ranker",
        layers=1,
        hidden=16,
        heads=2,
        feed_forward=16,
        state_width=8,
        joined_layers=1,
        joined_heads=2,
        joined_feed_forward=16,
        teacher_layers=(0,),
        joined_teacher_layers=(1,),
        max_tokens=8,
        head_width=16,
    )
    student = new_split_ranker(
        settings,
        trimmed=untrimmed(teacher.tokenizer_json),
        state=teacher.encoder_state(),
        teacher_heads=2,
        sample=Sample([apart.queries.padded(rows)], [apart.passages.tokens.padded(rows)]),
        seed=0,
    )
    distil_ranker(student, RankTransfer(apart, scores), LEARNED, seed=0)
    with torch.no_grad():
        queries = apart.queries.padded(np.repeat(rows, 4))
        found = student(queries, apart.passages.tokens.padded(np.arange(192))).numpy()
    assert not student.training
    assert np.corrcoef(found, scores)[0, 1] > 0.97
