"""A new static embedder: its rows from a pass of the teacher over each token of the vocabulary."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.errors import RecipeInvalid, TeacherInvalid
from models.recipe.embed import StaticSettings
from models.students.static import StaticConfig, StaticEmbedder, frequency_weights, start_static
from models.students.vocabulary import Trimmed
from models.teachers.fit import fast_matmul
from models.teachers.teacher import Matrix, MeanPooled, Teacher
from models.teachers.tokens import Padded, plain_tokenizer

# V' vocabulary, D dimensions: the teacher's hidden

_BATCH_ITEMS = 512


def new_static(
    settings: StaticSettings,
    *,
    trimmed: Trimmed,
    teacher: Teacher,
    turned: Matrix,
    counts: npt.NDArray[np.int64],
    seed: int,
) -> StaticEmbedder:
    """Make and initialise a static embedder.

    Args:
        settings: the recipe's `student`.
        trimmed: its vocabulary.
        teacher: what it starts from.
        turned: float32 [D, D], the rotation of the teacher's space.
        counts: int64 [V'], how often each token is in the training texts.
        seed: decides what is random; the start is not.
    Raises: RecipeInvalid: rows wider than the teacher. TeacherInvalid: it gives no vectors.
    """
    check_static(settings, teacher)
    torch.manual_seed(seed)
    config = StaticConfig(len(trimmed.kept_ids), len(turned), settings.token_width, settings.max_tokens)
    student = StaticEmbedder(config)
    rows = token_vectors(teacher, trimmed.kept_ids)
    weights = frequency_weights(counts, smoothing=settings.smoothing)
    start_static(student, rows, weights, torch.from_numpy(np.ascontiguousarray(turned)))
    return student


def check_static(settings: StaticSettings, teacher: Teacher) -> None:
    """Raises: RecipeInvalid: rows wider than the teacher, or texts longer than it reads."""
    hidden, positions = int(teacher.config.hidden_size), int(teacher.config.max_position_embeddings)
    if settings.token_width > hidden:
        raise RecipeInvalid(f"student.token_width: {settings.token_width} is over the teacher's {hidden}")
    if settings.max_tokens > positions:
        raise RecipeInvalid(f"student.max_tokens: the teacher has {positions} positions")


def token_vectors(teacher: Teacher, ids: npt.NDArray[np.int64]) -> Tensor:
    """The teacher's unit vector of each token between the markers of a text, float32 [V', D].

    Raises: TeacherInvalid: it is a classifier with its own pooling.
    """
    if not isinstance(teacher.network, MeanPooled):
        raise TeacherInvalid("the teacher is a sequence classifier and gives no pooled embedding")
    markers = torch.tensor(plain_tokenizer(teacher.tokenizer_json).encode("").ids, dtype=torch.int64)
    parts: list[Tensor] = []
    with torch.inference_mode(), fast_matmul():
        for begin in range(0, len(ids), _BATCH_ITEMS):
            chunk = torch.from_numpy(ids[begin : begin + _BATCH_ITEMS])
            around = markers.expand(len(chunk), -1)
            whole = torch.cat([around[:, :1], chunk[:, None], around[:, 1:]], dim=1)
            batch = Padded(whole, torch.ones_like(whole), torch.zeros_like(whole))
            parts.append(nn.functional.normalize(teacher.network.pooled(batch).float(), dim=-1))
    return torch.cat(parts).clone()
