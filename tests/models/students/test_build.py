"""A student as a recipe describes it."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.processors import TemplateProcessing

from models.errors import RecipeInvalid
from models.recipe.student import CascadeSettings, EncoderSettings, NgramSettings, NgramShape
from models.students.build import new_student
from models.students.cascade import CascadeStudent
from models.students.encoder import EncoderStudent
from models.students.ngram import NgramStudent
from models.students.vocabulary import Trimmed

TRIMMED = Trimmed(b"{}", np.arange(12))
STATE = {
    "embeddings.word_embeddings.weight": torch.randn(30, 16, generator=torch.Generator().manual_seed(0)),
    "embeddings.position_embeddings.weight": torch.randn(16, 16, generator=torch.Generator().manual_seed(1)),
    "embeddings.LayerNorm.weight": torch.ones(16),
    "embeddings.LayerNorm.bias": torch.zeros(16),
}


def settings(**more) -> EncoderSettings:
    return EncoderSettings(layers=2, hidden=8, heads=2, feed_forward=16, exits=(0, 2), max_tokens=8, **more)


def test_the_shape_is_the_recipes():
    student = new_student(settings(local_features=6, token_width=4), n_labels=3, trimmed=TRIMMED, state=STATE, seed=0)
    assert student.embeddings.tokens.weight.shape == (12, 4)
    assert [stage.output_names[-1] for stage in student.stages()] == ["logits", "logits"]
    assert student(torch.zeros(1, 4, dtype=torch.int64), torch.ones(1, 4, dtype=torch.int64)).exits[0].shape == (1, 3)


@pytest.mark.parametrize("embeddings", ["teacher-pca", "random"])
def test_a_student_is_a_function_of_its_seed(embeddings):
    made = [
        new_student(settings(embeddings=embeddings), n_labels=3, trimmed=TRIMMED, state=STATE, seed=seed).state_dict()
        for seed in (0, 0, 1)
    ]
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    assert not torch.equal(made[0]["layers.0.up.weight"], made[2]["layers.0.up.weight"])
    same_tables = torch.equal(made[0]["embeddings.tokens.weight"], made[2]["embeddings.tokens.weight"])
    assert same_tables == (embeddings == "teacher-pca")


def tokenizer(words: int) -> bytes:
    """A WordPiece tokenizer of `words` words that puts two markers around a text."""
    vocabulary = {token: at for at, token in enumerate(["[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(words))])}
    made = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    made.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    return made.to_str().encode()


WITH_TOKENIZER = Trimmed(tokenizer(9), np.arange(12))


def test_ngram_rows_of_word_pieces_start_from_the_teachers_and_those_of_markers_are_zero():
    shape = NgramSettings(architecture="ngram", width=8, buckets=16)
    student = new_student(shape, n_labels=3, trimmed=WITH_TOKENIZER, state=STATE, seed=0)
    assert isinstance(student, NgramStudent)
    assert student.config.markers == (1, 2)
    assert student.config.buckets == 17
    rows = student.table.detach()
    assert rows.abs().sum(1).bool().tolist() == [True, False, False] + [True] * 9 + [False] * 17
    words = STATE["embeddings.word_embeddings.weight"][:12]
    wanted, found = (words - words.mean(0))[3:] @ (words - words.mean(0))[3:].T, rows[3:12] @ rows[3:12].T
    assert torch.corrcoef(torch.stack([wanted.ravel(), found.ravel()]))[0, 1] > 0.9


def test_ngram_rows_wider_than_the_teacher_are_refused():
    shape = NgramSettings(architecture="ngram", width=17)
    with pytest.raises(RecipeInvalid, match="at most the teacher's 16"):
        new_student(shape, n_labels=3, trimmed=WITH_TOKENIZER, state=STATE, seed=0)


def test_a_cascade_starts_as_its_parts_do():
    shape = CascadeSettings(architecture="cascade", ngram=NgramShape(width=8, buckets=16), encoder=settings())
    student = new_student(shape, n_labels=3, trimmed=WITH_TOKENIZER, state=STATE, seed=0)
    assert isinstance(student, CascadeStudent)
    encoder = new_student(settings(), n_labels=3, trimmed=WITH_TOKENIZER, state=STATE, seed=0)
    assert isinstance(encoder, EncoderStudent)
    assert torch.equal(student.encoder.embeddings.tokens.weight, encoder.embeddings.tokens.weight)
    assert student.ngram.table[3:12].abs().sum() > 0
