"""What a student starts from: the teacher's token embeddings (all, or their principal parts) and its layers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.errors import RecipeInvalid
from models.students.encoder import EncoderStudent, Layer

# V' tokens kept, E width of the token table, H hidden of the student, D hidden of the teacher

_TABLE_SCALE = 1.0
_NAMES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "norm": "output.LayerNorm",
}


@dataclass(frozen=True, slots=True)
class Principal:
    """The principal parts of a table: `rows` float32 [V', E] = (table - mean) @ `axes`.T, `axes` float32 [E, D]."""

    rows: Tensor
    axes: Tensor
    mean: Tensor


def principal_parts(table: Tensor, width: int, *, weights: Tensor | None = None) -> Principal:
    """Project `table` on the `width` directions of largest variance.

    Args:
        table: float32 [V', D].
        width: E, at most D.
        weights: float32 [V'], how much each row counts for mean and variance; None: all the same.
    """
    weights = torch.ones(len(table)) if weights is None else weights
    share = (weights / weights.sum())[:, None]
    mean = (table * share).sum(0)
    centred = table - mean
    _, vectors = torch.linalg.eigh((centred * share).T @ centred)
    axes = vectors.flip(1)[:, :width].T.contiguous()
    # subtle: an eigenvector's sign is arbitrary; fixed here so that the same table gives the same student
    axes = axes * torch.sign(axes.gather(1, axes.abs().argmax(1, keepdim=True)))
    return Principal(centred @ axes.T, axes, mean)


def from_teacher_embeddings(
    student: EncoderStudent, state: Mapping[str, Tensor], kept_ids: npt.NDArray[np.int64], *, whole: bool
) -> None:
    """Set the student's token and position tables from the teacher's, in place.

    Args:
        student: a fresh student; its token table has the rows `kept_ids`.
        state: the teacher encoder's weights by their Hugging Face names.
        kept_ids: int64 [V'], the teacher's id of each of the student's tokens.
        whole: copy tables and norm as they are (needs equal widths) instead of their principal parts.
    Raises: RecipeInvalid: `whole` and the widths differ, or the student is wider than the teacher.
    """
    words = state["embeddings.word_embeddings.weight"][torch.from_numpy(kept_ids)]
    positions = _positions(state, student.config.max_tokens)
    teacher_width = words.shape[1]
    hidden, width = student.config.hidden, student.config.token_width or student.config.hidden
    if max(hidden, width) > teacher_width or (whole and hidden != teacher_width):
        raise RecipeInvalid(
            f"student.hidden: {hidden} with the teacher's embeddings of width {teacher_width}; "
            "`teacher` needs the same width, `teacher-pca` at most it"
        )
    with torch.no_grad():
        if whole:
            _copy_norm(student.embeddings.norm, state, "embeddings.LayerNorm")
            _set_whole(student, words, positions)
            _set_second(student, state)
        else:
            _set_principal(
                student, words * state["embeddings.LayerNorm.weight"], positions * state["embeddings.LayerNorm.weight"]
            )


def _positions(state: Mapping[str, Tensor], max_tokens: int) -> Tensor:
    """float32 [max_tokens, D], with the row of token type 0 added."""
    table = state["embeddings.position_embeddings.weight"]
    if max_tokens > len(table):
        raise RecipeInvalid(f"student.max_tokens: {max_tokens} is over the teacher's {len(table)} positions")
    types = state.get("embeddings.token_type_embeddings.weight")
    return table[:max_tokens] + (types[0] if types is not None else 0)


def _set_whole(student: EncoderStudent, words: Tensor, positions: Tensor) -> None:
    embeddings = student.embeddings
    if embeddings.projection is None:
        embeddings.tokens.weight.copy_(words)
    else:
        _set_factors(student, words)
    embeddings.positions.copy_(positions)


def _set_second(student: EncoderStudent, state: Mapping[str, Tensor]) -> None:
    """What tells the second text of a pair, where the teacher has a row for it."""
    types = state.get("embeddings.token_type_embeddings.weight")
    if student.embeddings.second is not None and types is not None and len(types) > 1:
        student.embeddings.second.copy_(types[1] - types[0])


def _set_factors(student: EncoderStudent, words: Tensor) -> None:
    """The nearest table of rank E: principal rows, and the axes and mean as the projection."""
    embeddings = student.embeddings
    assert embeddings.projection is not None
    principal = principal_parts(words, embeddings.tokens.weight.shape[1])
    embeddings.tokens.weight.copy_(principal.rows)
    embeddings.projection.weight.copy_(principal.axes.T)
    embeddings.projection.bias.copy_(principal.mean)


def _set_principal(student: EncoderStudent, words: Tensor, positions: Tensor) -> None:
    """Principal parts of tokens; positions, less their mean, on the same axes; both scaled to unit variance a part."""
    embeddings, hidden = student.embeddings, student.config.hidden
    principal = principal_parts(words, hidden)
    scale = _TABLE_SCALE / principal.rows.std()
    rows = principal.rows * scale
    placed = ((positions - positions.mean(0)) @ principal.axes.T) * scale
    if embeddings.projection is None:
        embeddings.tokens.weight.copy_(rows)
    else:
        _set_factors(student, rows)
    embeddings.positions.copy_(placed)


def from_teacher_layers(
    student: EncoderStudent, state: Mapping[str, Tensor], layers: Sequence[int], *, teacher_heads: int | None = None
) -> None:
    """Copy the teacher's layers into the student's, in place: fewer heads are the largest ones, and a narrower
    feed-forward keeps its largest neurons.

    Args:
        student: as wide as the teacher, its heads as wide as the teacher's.
        state: the teacher encoder's weights by their Hugging Face names.
        layers: for each student layer the teacher's (0 is the first).
        teacher_heads: the teacher's number of heads; None: the student's.
    Raises: RecipeInvalid: another width, no such layer, more heads or neurons than the teacher's, or wider ones.
    """
    copy_layers(student.layers, state, layers, teacher_heads=teacher_heads)


def copy_layers(
    into: Iterable[nn.Module],
    state: Mapping[str, Tensor],
    layers: Sequence[int],
    *,
    teacher_heads: int | None = None,
    keys: str = "student.",
) -> None:
    """The same for layers that are no encoder's own.

    Args:
        into: each a `Layer`.
        keys: what the recipe's keys of these layers begin with, for errors.
    """
    for layer, number in zip(into, layers, strict=True):
        assert isinstance(layer, Layer)
        prefix = f"encoder.layer.{number}."
        if f"{prefix}{_NAMES['query']}.weight" not in state:
            raise RecipeInvalid(f"{keys}teacher_layers: the teacher has no layer {number}")
        if state[f"{prefix}{_NAMES['query']}.weight"].shape[0] != layer.query.in_features:
            raise RecipeInvalid("student.initialise: teacher-layers needs student.hidden to be the teacher's")
        with torch.no_grad():
            _copy_layer(layer, state, prefix, teacher_heads=teacher_heads or layer.heads, keys=keys)


def _copy_layer(layer: Layer, state: Mapping[str, Tensor], prefix: str, *, teacher_heads: int, keys: str) -> None:
    rows = _largest_heads(layer, state, prefix, teacher_heads, keys=keys)
    for ours, theirs in _NAMES.items():
        if ours.endswith("norm"):
            _copy_norm(layer.get_submodule(ours), state, prefix + theirs)
            continue
        part = layer.get_submodule(ours)
        assert isinstance(part, nn.Linear)
        weight, bias = state[f"{prefix}{theirs}.weight"], state[f"{prefix}{theirs}.bias"]
        part.weight.copy_(weight[:, rows] if ours == "output" else weight[rows])
        part.bias.copy_(bias if ours == "output" else bias[rows])
    up, down = state[f"{prefix}intermediate.dense.weight"], state[f"{prefix}output.dense.weight"]
    if layer.up.out_features > len(up):
        raise RecipeInvalid(f"{keys}feed_forward: more than the teacher's {len(up)}")
    kept = (up.norm(dim=1) * down.norm(dim=0)).topk(layer.up.out_features).indices.sort().values
    layer.up.weight.copy_(up[kept])
    layer.up.bias.copy_(state[f"{prefix}intermediate.dense.bias"][kept])
    layer.down.weight.copy_(down[:, kept])
    layer.down.bias.copy_(state[f"{prefix}output.dense.bias"])


def _largest_heads(layer: Layer, state: Mapping[str, Tensor], prefix: str, teacher_heads: int, *, keys: str) -> Tensor:
    """int64 [A]: rows of the teacher's heads that are kept, those whose values reach the output with most weight."""
    value, output = state[f"{prefix}{_NAMES['value']}.weight"], state[f"{prefix}{_NAMES['output']}.weight"]
    width = len(value) // teacher_heads
    if width != layer.width or layer.heads > teacher_heads:
        raise RecipeInvalid(
            f"{keys}heads: {layer.heads} of width {layer.width} from the teacher's {teacher_heads} of width {width}; "
            "heads copied from a teacher are as wide as its own, and no more of them"
        )
    sizes = (value.norm(dim=1) * output.norm(dim=0)).reshape(teacher_heads, width).sum(1)
    heads = sizes.topk(layer.heads).indices.sort().values
    rows: Tensor = (heads[:, None] * width + torch.arange(width)).reshape(-1)
    return rows


def _copy_norm(norm: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    assert isinstance(norm, nn.LayerNorm)
    norm.weight.copy_(state[f"{name}.weight"])
    norm.bias.copy_(state[f"{name}.bias"])
