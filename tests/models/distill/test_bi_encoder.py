"""Distillation of a bi-encoder: vectors come nearer to the sentence encoder's, then scores to the teacher's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.distill.bi_encoder import distil_vectors, set_level, vector_list_scores
from models.distill.rank import RankTransfer, distil_ranker
from models.distill.states import Apart
from models.recipe.bi_encoder import BiEncoderStudent
from models.recipe.rank import RankDistil, StatesDistil
from models.students.bi_encoder import BiEncoder
from models.students.bi_start import new_bi_encoder
from models.students.split_start import Sample
from models.students.vocabulary import untrimmed
from models.teachers.pair_lists import SplitLists, as_second, split_lists
from models.teachers.teacher import Teacher, load_teacher
from models.teachers.tokens import tokenise

WORDS = ("card", "money", "transfer", "film", "late", "again", "good", "bad")
WORTH = {word: at - 4.0 for at, word in enumerate(WORDS)}
QUERIES, ROWS = 48, np.arange(48)
LIFTED = 30.0
"""What the teacher's scores have more than a fresh student's."""


@pytest.fixture(scope="module")
def teacher(encoder_directory: Path) -> Teacher:
    return load_teacher(encoder_directory)


@pytest.fixture(scope="module")
def lists(teacher: Teacher) -> SplitLists:
    """Lists of four passages, best first, that one word decides; the last list has two."""
    made = [[("where", f"my {WORDS[(at * 3 + k) % 8]}") for k in range(4)] for at in range(QUERIES)]
    made = [sorted(each, key=lambda pair: -WORTH[pair[1].split()[1]]) for each in made]
    made[-1] = made[-1][:2]
    return split_lists(teacher.tokenizer_json, made, [[0.0] * len(each) for each in made], max_tokens=8)


@pytest.fixture(scope="module")
def scores() -> np.ndarray:
    words = [
        sorted((WORDS[(at * 3 + k) % 8] for k in range(4)), key=lambda word: -WORTH[word]) for at in range(QUERIES)
    ]
    words[-1] = words[-1][:2]
    return np.array([WORTH[word] + LIFTED for each in words for word in each], np.float32)


def new(teacher: Teacher, lists: SplitLists, **changes: Any) -> BiEncoder:
    shape = {"layers": 1, "hidden": 16, "heads": 1, "feed_forward": 16, "teacher_layers": (0,), "max_tokens": 8}
    return new_bi_encoder(
        BiEncoderStudent.model_validate({"architecture": "bi-encoder", **shape, **changes}),
        trimmed=untrimmed(teacher.tokenizer_json),
        state=teacher.encoder_state(),
        teacher_heads=2,
        sample=Sample([lists.queries.padded(ROWS)], [lists.passages.tokens.padded(ROWS)]),
        seed=0,
    )


def scored(student: BiEncoder, lists: SplitLists) -> np.ndarray:
    """float32 [pairs], list after list."""
    with torch.no_grad():
        table = vector_list_scores(student, lists, ROWS)
    return table[lists.passages.mask(ROWS)].numpy()


def test_a_list_is_scored_pair_by_pair(teacher: Teacher, lists: SplitLists) -> None:
    student = new(teacher, lists, vector_width=12).eval()
    places = np.repeat(ROWS, np.diff(lists.passages.starts))
    with torch.no_grad():
        wanted = student(lists.queries.padded(places), lists.passages.tokens.padded(np.arange(len(places)))).numpy()
    np.testing.assert_allclose(scored(student, lists), wanted, atol=0.2)


@pytest.mark.parametrize("width", [None, 12])
def test_it_learns_its_teachers_order_and_level(
    teacher: Teacher, lists: SplitLists, scores: np.ndarray, width: int | None
) -> None:
    student = new(teacher, lists, vector_width=width)
    settings = RankDistil(
        objectives=({"margin_mse": {"weight": 0.1}}, {"listwise_kl": {}}), epochs=30, learning_rate=0.01
    )
    distil_ranker(student, RankTransfer(lists, scores), settings, seed=0)
    found = scored(student, lists)
    assert not student.training
    assert np.corrcoef(found, scores)[0, 1] > 0.97
    assert float(found.mean()) == pytest.approx(float(scores.mean()), abs=0.2)


def test_the_level_alone_moves(teacher: Teacher, lists: SplitLists, scores: np.ndarray) -> None:
    student = new(teacher, lists).eval()
    before = scored(student, lists)
    set_level(student, lists, scores)
    shift = float(scores.mean() - before.mean())
    np.testing.assert_allclose(scored(student, lists), before + shift, atol=0.2)
    assert float(student.level) == pytest.approx(shift, abs=0.2)


def test_vectors_come_nearer_to_the_sentence_encoders(teacher: Teacher, lists: SplitLists) -> None:
    student = new(teacher, lists, token_width=4)
    texts = [f"my {first} {second}" for first in WORDS for second in WORDS]
    asked, tokens = WORDS[:3], tokenise(teacher.tokenizer_json, texts, max_tokens=8)
    apart = Apart(tokenise(teacher.tokenizer_json, asked, max_tokens=8), as_second(tokens))
    targets = teacher.embeddings([*asked, *texts])

    def cosine() -> float:
        sides = (apart.queries, apart.passages)
        with torch.no_grad():
            pooled = torch.cat([student.pooled(side.padded(np.arange(len(side)))) for side in sides])
        return float(torch.cosine_similarity(pooled, torch.from_numpy(targets)).mean())

    before, scale = cosine(), student.log_scale.clone()
    distil_vectors(student, apart, targets, StatesDistil(epochs=20, batch_texts=8, learning_rate=0.01), seed=0)
    assert not student.training
    assert 1 - cosine() < 0.25 * (1 - before)
    assert torch.equal(student.log_scale, scale)
