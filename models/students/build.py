"""A new student, as the recipe describes it."""

import json
from collections.abc import Mapping

import torch
from tokenizers import Tokenizer
from torch import Tensor

from models.errors import RecipeInvalid
from models.recipe.over_tokens import BilstmSettings, CnnSettings
from models.recipe.student import CascadeSettings, EncoderSettings, NgramSettings, NgramShape, SiameseSettings
from models.recipe.student import Student as StudentSettings
from models.students.bilstm import BilstmConfig, BilstmStudent
from models.students.cascade import CascadeConfig, CascadeStudent
from models.students.cnn import CnnConfig, CnnStudent
from models.students.encoder import EncoderConfig, EncoderStudent
from models.students.initialise import from_teacher_embeddings, from_teacher_layers, principal_parts
from models.students.ngram import NgramConfig, NgramStudent, next_prime
from models.students.siamese import SiameseConfig, SiameseStudent, check_apart
from models.students.student import Student
from models.students.vocabulary import Trimmed

State = Mapping[str, Tensor]
"""The teacher encoder's weights by their Hugging Face names."""

_PIECES_STD = 0.2
"""Of what the n-gram rows of word pieces start from. Larger ones move too little: after two epochs of AG News's gold
labels, 89.8% of dev right from 1, 91 to 92% from 0.1 to 0.3."""

_ROWS_STD = 0.2
"""Of what the token rows of an LSTM or of filters start from."""


def new_student(
    settings: StudentSettings,
    *,
    n_labels: int,
    trimmed: Trimmed,
    state: State,
    seed: int,
    pairs: bool = False,
    teacher_heads: int | None = None,
) -> Student:
    """Make and initialise a student.

    Args:
        settings: the recipe's `student`.
        n_labels: C.
        trimmed: its vocabulary.
        state: the teacher encoder's weights by their Hugging Face names (`Teacher.encoder_state`).
        seed: decides every random weight.
        pairs: the texts are pairs, which an encoder reads as one sequence.
        teacher_heads: attention heads of each of the teacher's layers; None: the student's.
    Raises: RecipeInvalid: the shape does not fit what it is to be initialised from, or the tokenizer the student.
    """
    torch.manual_seed(seed)
    if isinstance(settings, CascadeSettings):
        shape = _ngram_config(settings.ngram, n_labels, trimmed, settings.max_tokens)
        cascade = CascadeStudent(CascadeConfig(shape, _encoder_config(settings.encoder, n_labels, trimmed)))
        _start_ngram(cascade.ngram, settings.ngram, trimmed, state)
        _start_encoder(cascade.encoder, settings.encoder, trimmed, state, teacher_heads=teacher_heads)
        return cascade
    if isinstance(settings, NgramSettings):
        bag = NgramStudent(_ngram_config(settings, n_labels, trimmed, settings.max_tokens))
        _start_ngram(bag, settings, trimmed, state)
        return bag
    if isinstance(settings, BilstmSettings):
        return _new_bilstm(settings, n_labels, trimmed, state)
    if isinstance(settings, CnnSettings):
        return _new_cnn(settings, n_labels, trimmed, state)
    if isinstance(settings, SiameseSettings):
        check_apart(trimmed.tokenizer_json)
        siamese = SiameseStudent(_siamese_config(settings, n_labels, trimmed))
        _start_encoder(siamese.encoder, settings, trimmed, state, teacher_heads=teacher_heads)
        return siamese
    encoder = EncoderStudent(_encoder_config(settings, n_labels, trimmed, pairs=pairs))
    _start_encoder(encoder, settings, trimmed, state, teacher_heads=teacher_heads)
    return encoder


def _encoder_config(
    settings: EncoderSettings, n_labels: int, trimmed: Trimmed, *, pairs: bool = False
) -> EncoderConfig:
    return EncoderConfig(
        vocabulary=len(trimmed.kept_ids),
        width=n_labels,
        layers=settings.layers,
        hidden=settings.hidden,
        heads=settings.heads,
        feed_forward=settings.feed_forward,
        exits=settings.exits,
        max_tokens=settings.max_tokens,
        token_width=settings.token_width,
        local_features=settings.local_features,
        head_width=settings.head_width,
        activation=settings.activation,
        dropout=settings.dropout,
        attention_width=settings.attention_width,
        pairs=pairs,
    )


def _start_encoder(
    student: EncoderStudent,
    settings: EncoderSettings | SiameseSettings,
    trimmed: Trimmed,
    state: State,
    *,
    teacher_heads: int | None,
) -> None:
    if settings.embeddings != "random":
        from_teacher_embeddings(student, state, trimmed.kept_ids, whole=settings.embeddings == "teacher")
    if settings.initialise == "teacher-layers":
        from_teacher_layers(student, state, settings.teacher_layers, teacher_heads=teacher_heads)


def _siamese_config(settings: SiameseSettings, n_labels: int, trimmed: Trimmed) -> SiameseConfig:
    encoder = EncoderConfig(
        vocabulary=len(trimmed.kept_ids),
        width=1,
        layers=settings.layers,
        hidden=settings.hidden,
        heads=settings.heads,
        feed_forward=settings.feed_forward,
        exits=(),
        max_tokens=settings.max_tokens,
        token_width=settings.token_width,
        activation=settings.activation,
        dropout=settings.dropout,
        attention_width=settings.attention_width,
        pairs=True,
    )
    return SiameseConfig(encoder, n_labels, settings.head_width, settings.vector_width)


def _ngram_config(settings: NgramShape, n_labels: int, trimmed: Trimmed, max_tokens: int) -> NgramConfig:
    return NgramConfig(
        vocabulary=len(trimmed.kept_ids),
        width=n_labels,
        orders=settings.orders,
        buckets=next_prime(settings.buckets),
        rows=settings.width,
        hidden=settings.hidden,
        max_tokens=max_tokens,
        markers=_markers(trimmed),
        dropout=settings.dropout,
        feature_dropout=settings.feature_dropout,
    )


def _markers(trimmed: Trimmed) -> tuple[int, ...]:
    """The ids that the tokenizer puts around every text: those of an empty one."""
    document = json.loads(trimmed.tokenizer_json) | {"padding": None, "truncation": None}
    return tuple(Tokenizer.from_str(json.dumps(document)).encode("").ids)


def _start_ngram(student: NgramStudent, settings: NgramShape, trimmed: Trimmed, state: State) -> None:
    """The word pieces' rows from the principal parts of the teacher's."""
    if settings.embeddings == "random":
        return
    student.set_pieces(_rows(state, trimmed, settings.width, std=_PIECES_STD, key="width of n-gram rows"))


def _rows(state: State, trimmed: Trimmed, width: int, *, std: float, key: str) -> Tensor:
    """float32 [V', E]: the principal parts of the teacher's rows, scaled."""
    words = state["embeddings.word_embeddings.weight"][torch.from_numpy(trimmed.kept_ids)]
    if width > words.shape[1]:
        raise RecipeInvalid(f"student.{key}: {width}; `teacher-pca` needs at most the teacher's {words.shape[1]}")
    rows = principal_parts(words, width).rows
    return rows * (std / rows.std())


def _new_bilstm(settings: BilstmSettings, n_labels: int, trimmed: Trimmed, state: State) -> BilstmStudent:
    config = BilstmConfig(
        vocabulary=len(trimmed.kept_ids),
        width=n_labels,
        token_width=settings.token_width,
        states=settings.width,
        head_width=settings.head_width,
        max_tokens=settings.max_tokens,
        pooling=settings.pooling,
        dropout=settings.dropout,
    )
    student = BilstmStudent(config)
    if settings.embeddings == "teacher-pca":
        with torch.no_grad():
            rows = _rows(state, trimmed, settings.token_width, std=_ROWS_STD, key="token_width")
            student.tokens.weight.copy_(rows)
    return student


def _new_cnn(settings: CnnSettings, n_labels: int, trimmed: Trimmed, state: State) -> CnnStudent:
    config = CnnConfig(
        vocabulary=len(trimmed.kept_ids),
        width=n_labels,
        token_width=settings.token_width,
        sizes=settings.sizes,
        filters=settings.filters,
        max_tokens=settings.max_tokens,
        fixed=settings.channels == "both",
        dropout=settings.dropout,
    )
    student = CnnStudent(config)
    if settings.embeddings == "teacher-pca":
        student.set_rows(_rows(state, trimmed, settings.token_width, std=_ROWS_STD, key="token_width"))
    return student
