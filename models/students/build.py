"""A new student, as the recipe describes it."""

from collections.abc import Mapping

import torch
from torch import Tensor

from models.recipe.student import Student
from models.students.encoder import EncoderConfig, EncoderStudent
from models.students.initialise import from_teacher_embeddings, from_teacher_layers
from models.students.vocabulary import Trimmed


def new_student(
    settings: Student, *, n_labels: int, trimmed: Trimmed, state: Mapping[str, Tensor], seed: int
) -> EncoderStudent:
    """Make and initialise a student.

    Args:
        settings: the recipe's `student`.
        n_labels: C.
        trimmed: its vocabulary.
        state: the teacher encoder's weights by their Hugging Face names (`Teacher.encoder_state`).
        seed: decides every random weight.
    Raises: RecipeInvalid: the shape does not fit what it is to be initialised from.
    """
    torch.manual_seed(seed)
    student = EncoderStudent(
        EncoderConfig(
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
        )
    )
    if settings.embeddings != "random":
        from_teacher_embeddings(student, state, trimmed.kept_ids, whole=settings.embeddings == "teacher")
    if settings.initialise == "teacher-layers":
        from_teacher_layers(student, state, settings.teacher_layers)
    return student
