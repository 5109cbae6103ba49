"""A new embedder: an encoder with one exit that writes an embedding, started from its teacher."""

import torch

from models.errors import RecipeInvalid
from models.recipe.embed import EmbedStudent
from models.students.encoder import EmbeddingHead, EncoderConfig, EncoderStudent
from models.students.initialise import from_teacher_embeddings, from_teacher_layers
from models.students.vocabulary import Trimmed
from models.teachers.teacher import Matrix, Teacher

# H hidden of the student, D dimensions: the teacher's hidden


def new_embedder(
    settings: EmbedStudent, *, trimmed: Trimmed, teacher: Teacher, turned: Matrix, seed: int
) -> EncoderStudent:
    """Make and initialise an embedder.

    Args:
        settings: the recipe's `student`.
        trimmed: its vocabulary.
        teacher: what it starts from, where the settings say so.
        turned: float32 [D, D], the rotation of the teacher's space; the head starts as it where H is D.
        seed: decides every random weight.
    Raises: RecipeInvalid: the shape does not fit what it is to be initialised from.
    """
    if settings.max_tokens > int(teacher.config.max_position_embeddings):
        raise RecipeInvalid(f"student.max_tokens: the teacher has {teacher.config.max_position_embeddings} positions")
    torch.manual_seed(seed)
    student = EncoderStudent(_config(settings, vocabulary=len(trimmed.kept_ids), width=len(turned)))
    state = teacher.encoder_state()
    from_teacher_embeddings(student, state, trimmed.kept_ids, whole=settings.embeddings == "teacher")
    if settings.initialise == "teacher-layers":
        heads = int(teacher.config.num_attention_heads)
        from_teacher_layers(student, state, settings.teacher_layers, teacher_heads=heads)
    head = student.exit_head(0)
    if settings.hidden == len(turned) and isinstance(head, EmbeddingHead):
        with torch.no_grad():
            head.embedding.weight.copy_(torch.from_numpy(turned))
            head.embedding.bias.zero_()
    return student


def _config(settings: EmbedStudent, *, vocabulary: int, width: int) -> EncoderConfig:
    return EncoderConfig(
        vocabulary=vocabulary,
        width=width,
        layers=settings.layers,
        hidden=settings.hidden,
        heads=settings.heads,
        feed_forward=settings.feed_forward,
        exits=(settings.layers,),
        max_tokens=settings.max_tokens,
        token_width=settings.token_width,
        activation=settings.activation,
        dropout=settings.dropout,
        output="embedding",
        attention_width=settings.attention_width,
    )
