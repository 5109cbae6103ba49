"""A student as a recipe describes it."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.processors import TemplateProcessing

from models.errors import RecipeInvalid
from models.recipe.over_tokens import BilstmSettings, CnnSettings
from models.recipe.student import CascadeSettings, EncoderSettings, NgramSettings, NgramShape
from models.students.bilstm import BilstmStudent
from models.students.build import new_student
from models.students.cascade import CascadeStudent
from models.students.cnn import CnnStudent
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


def assert_from_the_teacher(rows: torch.Tensor) -> None:
    """Rows lie to one another as the teacher's do, a little smaller than 1."""
    words = STATE["embeddings.word_embeddings.weight"][:12]
    centred = words - words.mean(0)
    alike = torch.corrcoef(torch.stack([(centred @ centred.T).ravel(), (rows @ rows.T).ravel()]))[0, 1]
    assert alike > 0.8
    assert rows.std() == pytest.approx(0.2, rel=0.01)


def test_a_bilstm_reads_the_teachers_rows():
    shape = BilstmSettings(architecture="bilstm", token_width=8, width=4, pooling="both", head_width=6)
    student = new_student(shape, n_labels=3, trimmed=TRIMMED, state=STATE, seed=0)
    assert isinstance(student, BilstmStudent)
    assert (student.config.states, student.config.pooled, student.logits.in_features) == (4, 16, 6)
    assert_from_the_teacher(student.tokens.weight.detach())


@pytest.mark.parametrize("channels", ["both", "trained"])
def test_a_cnn_has_the_teachers_rows_once_or_twice(channels: str):
    shape = CnnSettings(architecture="cnn", token_width=8, sizes=(1, 2), filters=4, channels=channels)
    student = new_student(shape, n_labels=3, trimmed=TRIMMED, state=STATE, seed=0)
    assert isinstance(student, CnnStudent)
    assert student.table().shape == (12, 16 if channels == "both" else 8)
    assert_from_the_teacher(student.tokens.weight.detach())
    assert student.fixed is None or torch.equal(student.fixed, student.tokens.weight)


def test_rows_that_start_at_random_are_a_function_of_the_seed():
    shape = BilstmSettings(architecture="bilstm", token_width=40, width=4, embeddings="random")
    made = [new_student(shape, n_labels=3, trimmed=TRIMMED, state={}, seed=seed).state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    assert not torch.equal(made[0]["tokens.weight"], made[2]["tokens.weight"])


@pytest.mark.parametrize(
    "shape",
    [BilstmSettings(architecture="bilstm", token_width=17), CnnSettings(architecture="cnn", token_width=17)],
    ids=["bilstm", "cnn"],
)
def test_token_rows_wider_than_the_teacher_are_refused(shape: BilstmSettings | CnnSettings):
    with pytest.raises(RecipeInvalid, match=r"student.token_width: 17; .* at most the teacher's 16"):
        new_student(shape, n_labels=3, trimmed=TRIMMED, state=STATE, seed=0)
