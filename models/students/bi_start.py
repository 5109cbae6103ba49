"""What a bi-encoder starts from: layers of the sentence encoder that the teacher was made of, and where its vectors are
narrower than the states, the directions that hold most of them.

n texts, H hidden, D width of a vector.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from models.errors import RecipeInvalid
from models.recipe.bi_encoder import BiEncoderStudent
from models.students.bi_encoder import BiEncoder, BiEncoderConfig
from models.students.initialise import from_teacher_embeddings, from_teacher_layers
from models.students.split_start import Sample, reader_config
from models.students.vocabulary import Trimmed


def new_bi_encoder(
    settings: BiEncoderStudent,
    *,
    trimmed: Trimmed,
    state: Mapping[str, Tensor],
    teacher_heads: int,
    sample: Sample,
    seed: int,
) -> BiEncoder:
    """Make and initialise a student.

    Args:
        settings: the recipe's `student`.
        trimmed: its vocabulary.
        state: the weights of the encoder it starts from by their Hugging Face names (`Teacher.encoder_state`).
        teacher_heads: attention heads of each of that encoder's layers.
        sample: texts in the student's ids; looked at with `teacher-layers` and a `vector_width`.
        seed: decides every random weight.
    Raises: RecipeInvalid: the shape does not fit what it is to be initialised from.
    """
    torch.manual_seed(seed)
    copied = settings.initialise == "teacher-layers"
    if copied and settings.heads > teacher_heads:
        raise RecipeInvalid(f"student.heads: {settings.heads}, the teacher's layers have {teacher_heads}")
    encoder = reader_config(settings, vocabulary=len(trimmed.kept_ids), teacher_heads=teacher_heads)
    student = BiEncoder(BiEncoderConfig(encoder, settings.vector_width))
    if settings.embeddings != "random":
        from_teacher_embeddings(student.encoder, state, trimmed.kept_ids, whole=settings.embeddings == "teacher")
    _read_both_alike(student)
    if copied:
        from_teacher_layers(student.encoder, state, settings.teacher_layers, teacher_heads=teacher_heads)
        _keep_most(student, sample)
    return student


def _read_both_alike(student: BiEncoder) -> None:
    """A sentence encoder reads every text with types of 0; what tells a passage from a query is learned from there."""
    second = student.encoder.embeddings.second
    assert second is not None, "its texts have types"
    with torch.no_grad():
        second.zero_()


@torch.no_grad()
def _keep_most(student: BiEncoder, sample: Sample) -> None:
    """Set the map to a vector to the directions that hold most of the sample's unit vectors, turned at random.

    Turned, every number of a vector has its share of the whole, and int8 levels are spent on all alike.
    """
    if student.projection is None:
        return
    was_training = student.training
    student.eval()
    pooled = torch.cat([student.pooled(text) for text in (*sample.queries, *sample.passages)])
    student.train(was_training)
    units = pooled / pooled.norm(dim=1, keepdim=True).clamp_min(1e-6)
    _, vectors = torch.linalg.eigh(units.T @ units)
    width = student.config.vector
    turned, _ = torch.linalg.qr(torch.randn(width, width))
    student.projection.weight.copy_(turned @ vectors.flip(1)[:, :width].T)
    student.projection.bias.zero_()
