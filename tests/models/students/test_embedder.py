"""A new embedder: the teacher itself where nothing is cut away, its head the rotation, and shapes that do not fit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.errors import RecipeInvalid
from models.recipe.embed import EmbedStudent
from models.students.embedder import new_embedder
from models.students.encoder import EmbeddingHead, EncoderStudent
from models.students.vocabulary import trim_tokenizer, untrimmed
from models.teachers.teacher import Matrix, Teacher, load_teacher
from models.teachers.tokens import tokenise

TEXTS = ["where is my card", "card lost", "a late refund again and again", "film"]
WHOLE: dict[str, Any] = {
    "layers": 2,
    "hidden": 16,
    "heads": 2,
    "feed_forward": 32,
    "teacher_layers": (0, 1),
    "max_tokens": 16,
}


@pytest.fixture(scope="module")
def teacher(encoder_directory: Path) -> Teacher:
    """Two layers, hidden 16, two heads; its norms and biases not those of a fresh one."""
    found = load_teacher(encoder_directory, max_tokens=16)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in found.network.encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return found


@pytest.fixture(scope="module")
def turned() -> Matrix:
    return np.linalg.qr(np.random.default_rng(0).standard_normal((16, 16)))[0].astype(np.float32)


def made(teacher: Teacher, turned: Matrix, *, seed: int = 0, **settings: Any) -> EncoderStudent:
    trimmed = untrimmed(teacher.tokenizer_json)
    return new_embedder(
        EmbedStudent(**WHOLE | settings), trimmed=trimmed, teacher=teacher, turned=turned, seed=seed
    ).eval()


def vectors(student: EncoderStudent, tokenizer_json: bytes) -> np.ndarray:
    tokens = tokenise(tokenizer_json, TEXTS, max_tokens=16)
    batch = tokens.padded(np.arange(len(TEXTS)))
    with torch.no_grad():
        return student(batch.input_ids, batch.attention_mask).exits[0].numpy()


def test_a_student_with_everything_of_the_teacher_is_the_teacher_turned(teacher: Teacher, turned: Matrix) -> None:
    ours = vectors(made(teacher, turned), teacher.tokenizer_json)
    tokens = tokenise(teacher.tokenizer_json, TEXTS, max_tokens=16)
    with torch.no_grad():
        theirs = teacher.network.pooled(tokens.padded(np.arange(len(TEXTS)))).numpy()  # type: ignore[operator, union-attr]
    np.testing.assert_allclose(ours, theirs @ turned.T, atol=1e-4)


def test_a_trimmed_vocabulary_changes_nothing_of_texts_it_knows(teacher: Teacher, turned: Matrix) -> None:
    trimmed = trim_tokenizer(teacher.tokenizer_json, TEXTS)
    student = new_embedder(EmbedStudent(**WHOLE), trimmed=trimmed, teacher=teacher, turned=turned, seed=0).eval()
    assert student.config.vocabulary == len(trimmed.kept_ids) < len(untrimmed(teacher.tokenizer_json).kept_ids)
    whole = vectors(made(teacher, turned), teacher.tokenizer_json)
    np.testing.assert_allclose(vectors(student, trimmed.tokenizer_json), whole, atol=1e-5)


def test_it_has_one_exit_and_the_teachers_dimensions(teacher: Teacher, turned: Matrix) -> None:
    student = made(teacher, turned, heads=1, attention_width=8, feed_forward=8)
    config = student.config
    assert (config.output, config.width, config.exits, config.attention_width) == ("embedding", 16, (2,), 8)
    (stage,) = student.stages()
    assert stage.output_names == ("embedding",)
    assert vectors(student, teacher.tokenizer_json).shape == (4, 16)


def test_a_narrower_student_writes_as_many_dimensions_from_a_random_head(teacher: Teacher, turned: Matrix) -> None:
    student = made(teacher, turned, hidden=8, heads=2, initialise="random", teacher_layers=(), embeddings="teacher-pca")
    head = student.exit_head(0)
    assert isinstance(head, EmbeddingHead)
    assert tuple(head.embedding.weight.shape) == (16, 8)
    assert vectors(student, teacher.tokenizer_json).shape == (4, 16)


def test_a_vector_depends_on_neither_batch_nor_padding(teacher: Teacher, turned: Matrix) -> None:
    student = made(teacher, turned, heads=1, attention_width=8)
    together = vectors(student, teacher.tokenizer_json)
    tokens = tokenise(teacher.tokenizer_json, TEXTS, max_tokens=16)
    for row in range(len(TEXTS)):
        alone = tokens.padded([row])
        longer = torch.nn.functional.pad(alone.input_ids, (0, 5), value=7)
        mask = torch.nn.functional.pad(alone.attention_mask, (0, 5))
        with torch.no_grad():
            one = student(alone.input_ids, alone.attention_mask).exits[0][0].numpy()
            padded = student(longer, mask).exits[0][0].numpy()
        np.testing.assert_allclose(one, together[row], atol=1e-5)
        np.testing.assert_allclose(padded, together[row], atol=1e-5)


def test_random_weights_are_decided_by_the_seed(teacher: Teacher, turned: Matrix) -> None:
    first, again, other = (made(teacher, turned, seed=seed, initialise="random").state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["layers.0.up.weight"], other["layers.0.up.weight"])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"max_tokens": 64}, "student.max_tokens: the teacher has 32 positions"),
        ({"teacher_layers": (0, 2)}, "student.teacher_layers: the teacher has no layer 2"),
        ({"heads": 3, "attention_width": 24}, "student.heads: 3 of width 8 from the teacher's 2 of width 8"),
        ({"heads": 2, "attention_width": 8}, "student.heads: 2 of width 4 from the teacher's 2 of width 8"),
        ({"feed_forward": 33}, "student.feed_forward: more than the teacher's 32"),
        ({"hidden": 8}, "student.hidden: 8 with the teacher's embeddings of width 16; `teacher` needs the same"),
        ({"token_width": 17}, "with the teacher's embeddings of width 16"),
    ],
)
def test_what_does_not_fit_the_teacher_is_refused(teacher: Teacher, turned: Matrix, settings: dict, says: str) -> None:
    with pytest.raises(RecipeInvalid, match=says):
        made(teacher, turned, **settings)
