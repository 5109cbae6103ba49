"""What a split ranker starts from: the teacher's lower layers, its upper ones to join, and between them the directions
of its states that a text's own state can tell most of.

n tokens of a sample of texts, H hidden, S width of a state.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.errors import RecipeInvalid
from models.recipe.bi_encoder import BiEncoderStudent
from models.recipe.rank import SplitRankerStudent
from models.students.encoder import EncoderConfig, EncoderStudent
from models.students.initialise import copy_layers, from_teacher_embeddings, from_teacher_layers
from models.students.split_ranker import SplitConfig, SplitRanker
from models.students.vocabulary import Trimmed
from models.teachers.tokens import Padded

_SPREADS = 2.0
"""How many standard deviations of a direction the hyperbolic tangent bends at: few numbers of a state are near 1."""

_RIDGE = 1e-3


@dataclass(frozen=True, slots=True)
class Sample:
    """Texts to see states of: `queries` with token types of 0, `passages` with types of 1, each in batches."""

    queries: Sequence[Padded]
    passages: Sequence[Padded]


def new_split_ranker(
    settings: SplitRankerStudent,
    *,
    trimmed: Trimmed,
    state: Mapping[str, Tensor],
    teacher_heads: int,
    sample: Sample,
    seed: int,
) -> SplitRanker:
    """Make and initialise a student.

    Args:
        settings: the recipe's `student`.
        trimmed: its vocabulary.
        state: the teacher encoder's weights by their Hugging Face names (`Teacher.encoder_state`).
        teacher_heads: attention heads of each of the teacher's layers.
        sample: texts in the student's ids; looked at with `teacher-layers` alone.
        seed: decides every random weight.
    Raises: RecipeInvalid: the shape does not fit what it is to be initialised from.
    """
    torch.manual_seed(seed)
    copied = settings.initialise == "teacher-layers"
    for name, heads in (("heads", settings.heads), ("joined_heads", settings.joined_heads)):
        if copied and heads > teacher_heads:
            raise RecipeInvalid(f"student.{name}: {heads}, the teacher's layers have {teacher_heads}")
    if copied and settings.state_width > settings.hidden:
        raise RecipeInvalid(f"student.state_width: {settings.state_width}, more than the {settings.hidden} of hidden")
    student = SplitRanker(_config(settings, vocabulary=len(trimmed.kept_ids), teacher_heads=teacher_heads))
    if settings.embeddings != "random":
        from_teacher_embeddings(student.lower, state, trimmed.kept_ids, whole=settings.embeddings == "teacher")
    if copied:
        from_teacher_layers(student.lower, state, settings.teacher_layers, teacher_heads=teacher_heads)
        copy_layers(
            student.layers,
            state,
            settings.joined_teacher_layers,
            teacher_heads=teacher_heads,
            keys="student.joined_",
        )
        below = teacher_below(settings, trimmed=trimmed, state=state, teacher_heads=teacher_heads)
        _fit_states(student, below, sample)
    return student


def reader_config(
    settings: SplitRankerStudent | BiEncoderStudent, *, vocabulary: int, teacher_heads: int
) -> EncoderConfig:
    """The shape of what reads one text by itself, without exits.

    Args:
        settings: the recipe's student.
        vocabulary: tokens of its table.
        teacher_heads: of each of the teacher's layers.
    """
    # copied heads are as wide as the teacher's; others share the width
    copied = settings.initialise == "teacher-layers"
    return EncoderConfig(
        vocabulary=vocabulary,
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
        output="score",
        attention_width=settings.heads * (settings.hidden // teacher_heads) if copied else settings.hidden,
        pairs=True,
    )


def _config(settings: SplitRankerStudent, *, vocabulary: int, teacher_heads: int) -> SplitConfig:
    copied = settings.initialise == "teacher-layers"
    width = settings.hidden // teacher_heads
    return SplitConfig(
        lower=reader_config(settings, vocabulary=vocabulary, teacher_heads=teacher_heads),
        state_width=settings.state_width,
        joined_layers=settings.joined_layers,
        joined_heads=settings.joined_heads,
        joined_attention_width=settings.joined_heads * width if copied else settings.hidden,
        joined_feed_forward=settings.joined_feed_forward,
        head_width=settings.head_width,
    )


def teacher_below(
    settings: SplitRankerStudent, *, trimmed: Trimmed, state: Mapping[str, Tensor], teacher_heads: int
) -> EncoderStudent:
    """The teacher's own layers below the first joined one, whose states that one was trained to read."""
    layers = settings.joined_teacher_layers[0]
    whole = EncoderConfig(
        vocabulary=len(trimmed.kept_ids),
        width=1,
        layers=layers,
        hidden=settings.hidden,
        heads=teacher_heads,
        feed_forward=len(state["encoder.layer.0.intermediate.dense.bias"]),
        exits=(),
        max_tokens=settings.max_tokens,
        activation="gelu",
        output="score",
        pairs=True,
    )
    teacher = EncoderStudent(whole)
    from_teacher_embeddings(teacher, state, trimmed.kept_ids, whole=True)
    from_teacher_layers(teacher, state, range(layers))
    return teacher.eval()


def _fit_states(student: SplitRanker, teacher: EncoderStudent, sample: Sample) -> None:
    """Set the compression to the directions that tell most of the teacher's states, and the expansions to undo it.

    Reduced-rank regression: of the best linear map from the student's states to the teacher's, the principal
    directions of what it gives. Source: Izenman 1975, Journal of Multivariate Analysis 5.
    """
    sides = [[(_rows(student.lower, text), _rows(teacher, text)) for text in texts] for texts in
             (sample.queries, sample.passages)]  # fmt: skip
    query, passage = (tuple(torch.cat(each) for each in zip(*side, strict=True)) for side in sides)
    ours, theirs = (torch.cat(both) for both in zip(query, passage, strict=True))
    weight, bias = _regression(ours, theirs)
    given = ours @ weight.T + bias
    mean = given.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(given.T))
    width = student.config.state_width
    axes = vectors.flip(1)[:, :width].T / (_SPREADS * values.flip(0)[:width, None].clamp_min(1e-6).sqrt())
    with torch.no_grad():
        _set(student.compression, axes @ weight, axes @ (bias - mean))
        for expansion, (seen, wanted) in ((student.query_expansion, query), (student.passage_expansion, passage)):
            _set(expansion, *_regression(torch.tanh(student.compression(seen)), wanted))


@torch.no_grad()
def _rows(encoder: EncoderStudent, text: Padded) -> Tensor:
    """float32 [n, H]: the last states of a batch's tokens."""
    was_training = encoder.training
    encoder.eval()
    hidden = encoder(text.input_ids, text.attention_mask, text.token_type_ids).hidden[-1]
    encoder.train(was_training)
    rows: Tensor = hidden[text.attention_mask > 0]
    return rows


def _regression(seen: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Weight float32 [outputs, inputs] and bias of the linear map with the least squared error, slightly shrunken."""
    inputs, outputs = seen.double(), wanted.double()
    centred = inputs - inputs.mean(0)
    moments = centred.T @ centred / len(centred)
    moments += torch.eye(len(moments)) * (_RIDGE * moments.diagonal().mean() + 1e-9)
    weight = torch.linalg.solve(moments, centred.T @ (outputs - outputs.mean(0)) / len(centred)).T
    return weight.float(), (outputs.mean(0) - inputs.mean(0) @ weight.T).float()


def _set(linear: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    linear.weight.copy_(weight)
    linear.bias.copy_(bias)
