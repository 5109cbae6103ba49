"""The cross-encoder student: an encoder over query and passage as one sequence, with token types and one score.

It is an `EncoderStudent` of pairs whose only exit writes a score, so it is cut and exported like any other.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from models.errors import RecipeInvalid
from models.recipe.rank import RankStudent
from models.students.encoder import EncoderConfig, EncoderStudent
from models.students.initialise import from_teacher_embeddings, from_teacher_layers
from models.students.vocabulary import Trimmed
from models.teachers.tokens import Padded

# B items


def score_pairs(student: EncoderStudent, batch: Padded) -> Tensor:
    """float [B], raw scores of the last exit; gradients flow."""
    scores: Tensor = student(batch.input_ids, batch.attention_mask, batch.token_type_ids).exits[-1][:, 0]
    return scores


def new_cross_encoder(
    settings: RankStudent, *, trimmed: Trimmed, state: Mapping[str, Tensor], teacher_heads: int, seed: int
) -> EncoderStudent:
    """Make and initialise a student.

    Args:
        settings: the recipe's `student`.
        trimmed: its vocabulary.
        state: the teacher encoder's weights by their Hugging Face names (`Teacher.encoder_state`).
        teacher_heads: attention heads of each of the teacher's layers.
        seed: decides every random weight.
    Raises: RecipeInvalid: the shape does not fit what it is to be initialised from.
    """
    torch.manual_seed(seed)
    student = EncoderStudent(
        EncoderConfig(
            vocabulary=len(trimmed.kept_ids),
            width=1,
            layers=settings.layers,
            hidden=settings.hidden,
            heads=settings.heads,
            feed_forward=settings.feed_forward,
            exits=(settings.layers,),
            max_tokens=settings.max_tokens,
            token_width=settings.token_width,
            head_width=settings.head_width,
            activation=settings.activation,
            dropout=settings.dropout,
            output="score",
            pairs=True,
        )
    )
    if settings.embeddings != "random":
        from_teacher_embeddings(student, state, trimmed.kept_ids, whole=settings.embeddings == "teacher")
    if settings.initialise == "teacher-layers":
        if settings.heads != teacher_heads:
            raise RecipeInvalid(f"student.heads: {settings.heads}, the teacher's layers have {teacher_heads}")
        from_teacher_layers(student, state, settings.teacher_layers)
    return student
