"""Training for int8: the student computes with rounded weights and activations while gradients pass straight through.

`measure_ranges` looks, `fake_quantise` swaps the classes of the layers that the int8 graph will round (parameters
keep their names and objects, so a trainer needs no change), `bake` swaps them back and leaves rounded weights, and
`stage_ranges` hands the same ranges to `models.compress.int8.quantise_static`.

B items, T tokens, K inner dimension, N outputs, V vocabulary, H hidden.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.compress.int8 import WEIGHT_LEVELS
from models.compress.ranges import LEVELS, Range, Recorder

TokenBatch = Mapping[str, Any]


class FakeInt8Linear(nn.Linear):
    """A linear layer as the int8 graph computes it; `span` is its input's range."""

    span: Range

    def forward(self, source: Tensor) -> Tensor:
        """float [..., N] of float [..., K]; gradients stop at values beyond the range."""
        rounded = torch.fake_quantize_per_tensor_affine(source, self.span.scale, self.span.zero_point, 0, LEVELS)
        return nn.functional.linear(rounded, fake_rows(self.weight), self.bias)


class FakeInt8Embedding(nn.Embedding):
    """A table as `token_table` stores it: int8 rows, one scale each."""

    def forward(self, indices: Tensor) -> Tensor:
        """float [..., H] of int64 [...]; only the rows looked up are rounded."""
        return fake_rows(super().forward(indices))


def fake_rows(weight: Tensor) -> Tensor:
    """Round every row to s8 with a symmetric scale of its own; gradients pass straight through.

    Args:
        weight: float [..., K], a row being the last dimension (an output of a linear layer, an entry of a table).
    """
    scale = weight.detach().abs().amax(dim=-1, keepdim=True).clamp_min(1e-8) / WEIGHT_LEVELS
    rounded = (weight.detach() / scale).round().clamp(-WEIGHT_LEVELS, WEIGHT_LEVELS) * scale
    return weight + (rounded - weight).detach()


def measure_ranges(student: nn.Module, batches: Iterable[TokenBatch], *, percentile: float = 99.99) -> dict[str, Range]:
    """The input range of every linear layer that sees one row a token.

    Args:
        student: called as `student(input_ids, attention_mask)`, with pairs `token_type_ids` too; run in eval mode, left
            as it was.
        batches: `input_ids` and `attention_mask` (of pairs `token_type_ids`), int64 [B, T] arrays or tensors. At least
            one with B and T above 1.
        percentile: as `Observed.clipped` takes it.
    Returns: ranges by module name. Layers behind the pooling (one row an item) are left out: they stay float32.
    Raises: ValueError: no batches.
    """
    recorders = {name: Recorder(share=1.0) for name, part in student.named_modules() if isinstance(part, nn.Linear)}
    mask: Tensor | None = None

    def watch(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            assert mask is not None
            recorders[name].add(inputs[0].numpy(), mask.numpy())

        return hook

    handles = [student.get_submodule(name).register_forward_pre_hook(watch(name)) for name in recorders]
    was_training = student.training
    student.eval()
    seen = 0
    try:
        with torch.no_grad():
            for batch in batches:
                mask = torch.as_tensor(batch["attention_mask"])
                types = [torch.as_tensor(batch[name]) for name in ("token_type_ids",) if name in batch]
                student(torch.as_tensor(batch["input_ids"]), mask, *types)
                seen += 1
    finally:
        student.train(was_training)
        for handle in handles:
            handle.remove()
    if not seen:
        raise ValueError("measuring ranges needs at least one batch of rows")
    observed = {name: recorder.finish() for name, recorder in recorders.items() if recorder.used}
    return {name: values.clipped(percentile) for name, values in observed.items() if not values.per_item}


def fake_quantise(student: nn.Module, ranges: Mapping[str, Range], *, token_table: bool = True) -> None:
    """Let the student compute as its int8 graph will, in place. Parameters and their names stay.

    Args:
        student: as given to `measure_ranges`.
        ranges: by module name.
        token_table: also round the rows of every embedding table.
    Raises: ValueError: a range names something else than a plain linear layer.
    """
    for name, span in ranges.items():
        layer: Any = student.get_submodule(name)
        if type(student.get_submodule(name)) is not nn.Linear:
            raise ValueError(f"{name} is not a plain linear layer")
        layer.__class__ = FakeInt8Linear
        layer.span = span
    tables: list[Any] = [part for part in student.modules() if token_table and type(part) is nn.Embedding]
    for part in tables:
        part.__class__ = FakeInt8Embedding


def bake(student: nn.Module) -> None:
    """Undo `fake_quantise` in place, leaving plain layers whose weights are the rounded ones."""
    plain: dict[type[nn.Module], type[nn.Module]] = {FakeInt8Linear: nn.Linear, FakeInt8Embedding: nn.Embedding}
    parts: list[Any] = [part for part in student.modules() if type(part) in plain]
    with torch.no_grad():
        for part in parts:
            part.weight.copy_(fake_rows(part.weight))
            part.__class__ = plain[type(part)]


def stage_ranges(
    student: nn.Module, stages: Sequence[nn.Module], ranges: Mapping[str, Range]
) -> tuple[dict[str, Range], ...]:
    """The ranges by the weight names that each stage's graph will have.

    Args:
        student: whose modules `ranges` names.
        stages: modules that share their layers with the student.
        ranges: by the student's module names.
    Returns: for each stage, ranges by parameter name inside it.
    """
    by_layer = {id(student.get_submodule(name)): span for name, span in ranges.items()}
    return tuple(
        {f"{name}.weight": by_layer[id(part)] for name, part in stage.named_modules() if id(part) in by_layer}
        for stage in stages
    )
