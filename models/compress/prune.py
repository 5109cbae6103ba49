"""Structured pruning: the attention heads and feed-forward columns that a student's loss hardly feels are cut out.

What is left is a smaller student of the same kind, every layer by the same count, so that its graphs are smaller and
faster without any sparse kernel. It is worse than before until it has been trained on (the recovery).

Importance is first-order: a head's output (a column's activation) times the loss's gradient there, which is by how much
the loss would move, to first order, if that part were scaled down to nothing. It is summed over a text's tokens and
taken absolutely, text by text. That is how Michel et al. 2019, arXiv:1905.10650, section 4.1, rank heads and Molchanov
et al. 2019, arXiv:1906.10771, filters; as there, each layer's are scaled to a common size.

B items, T tokens, A width of the attention, F width of the feed-forward.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from models.students.encoder import EncoderStudent, Layer
from models.teachers.tokens import Indices

Loss = Callable[[Indices], Tensor]
"""The student's loss on some rows, float32 scalar, the mean over them; it runs the student."""

_ROWS = ("query", "key", "value")
_SLICED = {
    **{f"{part}.{kind}": ("heads", 0) for part in _ROWS for kind in ("weight", "bias")},
    "output.weight": ("heads", 1),
    "up.weight": ("columns", 0),
    "up.bias": ("columns", 0),
    "down.weight": ("columns", 1),
}
"""The parameters of a layer that lose entries: by which parts, along which dimension."""


@dataclass(frozen=True, slots=True)
class Importance:
    """A layer's parts: `heads` float32 [heads] and `columns` float32 [F]; each sums to 1, or to 0 where none counts."""

    heads: Tensor
    columns: Tensor


@dataclass(frozen=True, slots=True)
class Kept:
    """A layer's parts that stay: indices int64 of `heads` and `columns`, rising."""

    heads: Tensor
    columns: Tensor


def importance(student: EncoderStudent, loss: Loss, batches: Iterable[Indices]) -> tuple[Importance, ...]:
    """How much each head and column of each layer matters to the loss.

    Args:
        student: trained; looked at in eval mode, left as it was.
        loss: of this student.
        batches: rows to look at, in float32 for exactness.
    Raises: ValueError: no rows.
    """
    layers = _layers(student)
    heads = [torch.zeros(layer.heads) for layer in layers]
    columns = [torch.zeros(layer.down.in_features) for layer in layers]
    seen, was_training = 0, student.training
    student.eval()
    try:
        with _inputs_of([part for layer in layers for part in (layer.output, layer.down)]) as inputs:
            for rows in batches:
                inputs.clear()
                value = loss(rows) * len(rows)
                felt = torch.autograd.grad(value, inputs)
                products = [
                    (a * g).detach().reshape(len(rows), -1, a.shape[-1]) for a, g in zip(inputs, felt, strict=True)
                ]
                for at, layer in enumerate(layers):
                    heads[at] += _moved(products[2 * at], layer.heads)
                    columns[at] += _moved(products[2 * at + 1], layer.down.in_features)
                seen += len(rows)
    finally:
        student.train(was_training)
    if not seen:
        raise ValueError("importance needs at least one row")
    return tuple(Importance(_shares(a), _shares(b)) for a, b in zip(heads, columns, strict=True))


def most_important(found: Sequence[Importance], *, heads: int, columns: int) -> tuple[Kept, ...]:
    """The most important `heads` heads and `columns` columns of each layer; of equals, the first."""
    return tuple(Kept(_largest(layer.heads, heads), _largest(layer.columns, columns)) for layer in found)


def lost(found: Sequence[Importance], kept: Sequence[Kept]) -> tuple[float, float]:
    """The share of importance that goes, of heads and of columns, the mean over layers.

    Returns: two numbers of 0 to 1.
    """
    pairs = list(zip(found, kept, strict=True))
    heads = sum(float(each.heads.sum() - each.heads[stays.heads].sum()) for each, stays in pairs)
    columns = sum(float(each.columns.sum() - each.columns[stays.columns].sum()) for each, stays in pairs)
    return heads / len(pairs), columns / len(pairs)


def sliced(student: EncoderStudent, kept: Sequence[Kept]) -> EncoderStudent:
    """A copy of the student that has the kept parts alone, as if the others' outputs were 0.

    Args:
        kept: for each layer; as many heads, and as many columns, in every layer. At least one of each.
    Raises: ValueError: the layers do not keep the same counts, or keep nothing.
    """
    counts = {(len(each.heads), len(each.columns)) for each in kept}
    if len(counts) != 1 or 0 in (found := counts.pop()):
        raise ValueError("every layer must keep the same number of heads and of columns, at least one")
    config = student.config
    width = (config.attention_width or config.hidden) // config.heads
    smaller = EncoderStudent(replace(config, heads=found[0], attention_width=width * found[0], feed_forward=found[1]))
    state = student.state_dict()
    for at, stays in enumerate(kept):
        state |= _sliced_layer(state, f"layers.{at}.", stays, width=width)
    smaller.load_state_dict(state)
    return smaller.eval()


def _sliced_layer(state: Mapping[str, Tensor], prefix: str, kept: Kept, *, width: int) -> dict[str, Tensor]:
    """The layer's parameters that lose entries, without them."""
    inside = torch.arange(width)
    entries = {"heads": (kept.heads[:, None] * width + inside).reshape(-1), "columns": kept.columns}
    return {
        prefix + name: state[prefix + name].index_select(dimension, entries[parts])
        for name, (parts, dimension) in _SLICED.items()
    }


@contextmanager
def _inputs_of(parts: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """What each part is given while the context lasts, in the order of the calls."""
    inputs: list[Tensor] = []

    def watch(_: nn.Module, given: tuple[Any, ...]) -> None:
        inputs.append(given[0])

    handles = [part.register_forward_pre_hook(watch) for part in parts]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


def _moved(products: Tensor, parts: int) -> Tensor:
    """float32 [parts] of activations times gradients float [B, T, parts * width]: summed over tokens and width,
    absolutely, over the items."""
    return products.reshape(*products.shape[:2], parts, -1).sum(dim=(1, 3)).abs().sum(0).float()


def _shares(sums: Tensor) -> Tensor:
    return sums / sums.sum().clamp_min(torch.finfo(sums.dtype).tiny)


def _largest(scores: Tensor, count: int) -> Tensor:
    return scores.sort(descending=True, stable=True).indices[:count].sort().values


def _layers(student: EncoderStudent) -> list[Layer]:
    found = [layer for layer in student.layers if isinstance(layer, Layer)]
    assert len(found) == len(student.layers), "an encoder has no other layers"
    return found
