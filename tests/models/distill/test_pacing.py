"""Self-paced weights: the teacher's confidence by hand, the schedule's ends, and what a weight does to the loss."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from models.distill.pacing import Pace, confidence, difficulties
from models.distill.rank import RankTransfer, distil_ranker, rank_loss
from models.recipe.dark_examples import SelfPaced
from models.recipe.rank import RankDistil, RankStudent
from models.students.cross_encoder import new_cross_encoder
from models.students.encoder import EncoderStudent
from models.students.vocabulary import untrimmed
from models.teachers.pair_lists import pair_lists
from models.teachers.teacher import Teacher, load_teacher


def test_confidence_by_hand() -> None:
    teacher = torch.tensor([[1.0, 1.0, 9.0], [0.0, math.log(3), 0.0], [50.0, 0.0, 0.0], [2.0, 7.0, 7.0]])
    known = torch.tensor([[True, True, False], [True, True, False], [True, True, True], [True, False, False]])
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75)) / math.log(2)
    assert confidence(teacher, known).tolist() == pytest.approx([0.0, 1 - entropy, 1.0, 1.0], abs=1e-5)


def test_difficulty_is_the_share_of_surer_lists() -> None:
    assert difficulties(torch.tensor([0.2, 0.9, 0.2, 0.5, 0.1])).tolist() == [0.5, 0.0, 0.5, 0.25, 1.0]
    assert difficulties(torch.tensor([0.3])).tolist() == [0.0]


def weights(difficult: list[float], *, step: int, steps: int, start: float = 0.5, end: float = 0.5) -> list[float]:
    pace = Pace(np.array(difficult, np.float32), SelfPaced(start=start, end=end), steps)
    pace.begin(step)
    return pace.weights(np.arange(len(difficult))).tolist()


def test_the_weights_by_hand() -> None:
    difficult = [0.0, 0.5, 0.75, 1.0]
    assert weights(difficult, step=0, steps=101) == [1.0, 1.0, 0.5, 0.0]
    assert weights(difficult, step=20, steps=101) == pytest.approx([1.0, 1.0, 0.9, 0.4])
    assert weights(difficult, step=50, steps=101) == [1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("start", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("end", [0.001, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_weights_rise_within_0_and_1_and_end_at_1(start: float, end: float, steps: int) -> None:
    difficult = np.linspace(0, 1, 9, dtype=np.float32).tolist()
    path = np.array([weights(difficult, step=step, steps=steps, start=start, end=end) for step in range(steps)])
    assert ((path >= 0) & (path <= 1)).all()
    assert (np.diff(path, axis=0) >= 0).all()
    assert (np.diff(path, axis=1) <= 0).all(), "a surer list never counts less"
    assert (path[-1] == 1).all()


SETTINGS = RankDistil(objectives=({"listwise_kl": {}},), gold_weight=0.5)
STUDENT, TEACHER = torch.tensor([[0.0, 1.0, 0.0], [2.0, 0.0, 1.0]]), torch.tensor([[3.0, 1.0, 0.0], [2.0, -1.0, 0.5]])
GRADES, MASK = torch.tensor([[1.0, 0, 0], [1.0, 0, 0]]), torch.ones(2, 3, dtype=torch.bool)


def test_a_weight_is_of_its_lists_whole_loss() -> None:
    alone = [rank_loss(*(t[at : at + 1] for t in (STUDENT, TEACHER, GRADES, MASK)), SETTINGS) for at in (0, 1)]
    found = rank_loss(STUDENT, TEACHER, GRADES, MASK, SETTINGS, weights=torch.tensor([1.0, 0.25]))
    assert float(found) == pytest.approx(float(alone[0] + 0.25 * alone[1]) / 2)


def test_weights_of_1_and_passages_all_known_change_no_bit() -> None:
    plain = rank_loss(STUDENT, TEACHER, GRADES, MASK, SETTINGS)
    assert torch.equal(rank_loss(STUDENT, TEACHER, GRADES, MASK, SETTINGS, known=MASK, weights=torch.ones(2)), plain)


def test_gold_says_nothing_of_what_was_made() -> None:
    hard, known = SETTINGS.model_copy(update={"gold_weight": 1.0}), MASK.clone()
    known[:, 2] = False
    student = STUDENT.clone().requires_grad_()
    rank_loss(student, TEACHER, GRADES, MASK, hard, known=known).backward()
    assert student.grad is not None
    assert (student.grad[:, 2] == 0).all() and (student.grad[:, :2] != 0).all()


WORDS = ("card", "money", "transfer", "film", "late", "again", "good", "bad")
LISTS = [[("where", f"my {WORDS[(at + k) % 8]}") for k in range(2 + at % 2)] for at in range(20)]
SHORT = RankDistil(objectives=({"listwise_kl": {}},), epochs=52, batch_lists=10, self_paced={"start": 0.1, "end": 1.0})


def new_student(teacher: Teacher) -> EncoderStudent:
    settings = RankStudent(
        layers=1, hidden=16, heads=2, feed_forward=16, teacher_layers=(0,), max_tokens=8, head_width=16
    )
    return new_cross_encoder(
        settings, trimmed=untrimmed(teacher.tokenizer_json), state=teacher.encoder_state(), teacher_heads=2, seed=0
    )


def trained(teacher: Teacher, settings: RankDistil, checkpoint: Path, *, killed_at: int | None = None) -> torch.Tensor:
    """The weights after 104 steps, or KeyboardInterrupt once `killed_at` are done."""
    data = pair_lists(teacher.tokenizer_json, LISTS, [[0.0] * len(each) for each in LISTS], max_tokens=8)
    scores = np.random.default_rng(0).normal(0, 2, len(data.tokens)).astype(np.float32)

    def progress(done: int, steps: int, note: str) -> None:
        if done == killed_at:
            raise KeyboardInterrupt

    student = new_student(teacher)
    distil_ranker(student, RankTransfer(data, scores), settings, seed=0, checkpoint=checkpoint, progress=progress)
    return torch.cat([each.detach().flatten() for each in student.parameters()])


def test_a_run_that_was_killed_goes_on_at_its_pace(encoder_directory: Path, tmp_path: Path) -> None:
    teacher = load_teacher(encoder_directory)
    whole = trained(teacher, SHORT, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(teacher, SHORT, tmp_path / "killed", killed_at=104)  # its checkpoint is of step 100
    assert (tmp_path / "killed").exists()
    assert torch.equal(trained(teacher, SHORT, tmp_path / "killed"), whole)
    assert not torch.equal(trained(teacher, SHORT.model_copy(update={"self_paced": None}), tmp_path / "other"), whole)
