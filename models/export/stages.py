"""Torch stages to ONNX graphs: one file each, standard operators only, any batch and length, checked against torch.

B items, T tokens, H hidden, C labels, D embedding dimensions; where two texts are apart, Q tokens of the first and T of
the second, S width of a state, or D of a vector.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from models.errors import ParityFailed
from models.export.shapes import shorten_shapes
from service.bundle.manifest import Stage
from service.bundle.manifest import Tensor as TensorEntry
from service.errors import GraphMismatch
from service.runtime.backends.onnx_format import check_self_contained

OPSET: Final = 20
"""Has LayerNormalization (17) and Gelu (20); ONNX Runtime and OpenVINO know it."""

PARITY_ATOL: Final = 1e-4
STATES: Final = "states"
"""What a graph calls the hidden states it reads; `hidden` is what it writes, and ONNX wants two names."""

FLIPPED_SHARE: Final = 0.01
"""How many of an int8 output's numbers may be one level off: those that lie on the border of two."""

_TRACED_SHAPE: Final = (2, 7)
_SHORTENING_SHAPES: Final = ((2, 7), (3, 5))
_PARITY_SHAPES: Final = ((1, 3), (3, 8), (5, 5))
_LONGER: Final = 4
"""Of two texts that are apart, how many tokens the second has more; a length of its own shows where it is mistaken."""


class StageLike(Protocol):
    """A torch module of one stage.

    `forward` takes its inputs in the order of `input_names` (`input_ids` or `hidden` first, then token inputs) and
    returns a tuple of outputs in the order of `output_names` (`hidden`, `logits`, `score`, `embedding`; `state`, int8
    [B, T, S], or `vector`, [B, D], of one text that is read apart). A stage that joins two such texts reads `first`,
    `first_mask`, `second` and `second_mask`, says in `sources` where they come from and in `state_width` what S is; or
    `first` and `second` alone, [B, D], and says in `vector_width` what D is, and in `vector_dtype` their type where it
    is not float32. `scope` and `cacheable`, where it has them, are those of the manifest.
    """

    @property
    def stage_id(self) -> str:
        """Two digits, in pipeline order."""
        ...

    @property
    def input_names(self) -> Sequence[str]:
        """`input_ids` or `hidden`, then `attention_mask`, and `token_type_ids` where it reads them."""
        ...

    @property
    def output_names(self) -> Sequence[str]:
        """What it returns."""
        ...


@dataclass(frozen=True, slots=True)
class ExportedStage:
    """A stage's manifest entry, its float32 graph, and how far that graph was from torch."""

    stage: Stage
    path: Path
    parity: float


def export_stages(
    stages: Sequence[StageLike], out_dir: Path, *, parity_atol: float = PARITY_ATOL
) -> tuple[ExportedStage, ...]:
    """Write one float32 graph a stage, `NN.fp32.onnx`, and check each against torch.

    Args:
        stages: modules in pipeline order; each must be an `nn.Module`. They are put into eval mode for the export,
            and back.
        out_dir: made if missing.
        parity_atol: largest absolute difference allowed between torch and ONNX Runtime, at several shapes.
    Raises:
        ParityFailed: a graph computes something else, does not load, or needs more than standard operators.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    previous = ""
    exported: list[ExportedStage] = []
    for module in stages:
        assert isinstance(module, nn.Module)
        was_training = module.training
        module.eval()
        try:
            done = _export_stage(module, out_dir, previous=previous, atol=parity_atol)
        finally:
            module.train(was_training)
        exported.append(done)
        previous = done.stage.id
    return tuple(exported)


def _export_stage(module: Any, out_dir: Path, *, previous: str, atol: float) -> ExportedStage:
    path = out_dir / f"{module.stage_id}.fp32.onnx"
    inputs = {(STATES if name == "hidden" else name): name for name in module.input_names}
    hidden = _hidden_width(module)
    traced = _sample(module, _TRACED_SHAPE, hidden, seed=0)
    to_onnx(module, traced, path, inputs=tuple(inputs), outputs=tuple(module.output_names))
    _shorten(path, [_sample(module, shape, hidden, seed=0) for shape in _SHORTENING_SHAPES], tuple(inputs))
    check_graph(path)
    parity = max(
        check_parity(module, _sample(module, shape, hidden, seed=seed), path, inputs=tuple(inputs), atol=atol)
        for seed, shape in enumerate(_PARITY_SHAPES)
    )
    with torch.no_grad():
        written = module(*traced)
    sources = {tensor: f"{previous}.hidden" if name == "hidden" else name for tensor, name in inputs.items()}
    stage = Stage(
        id=module.stage_id,
        scope=getattr(module, "scope", "item"),
        inputs=getattr(module, "sources", sources),
        outputs={name: _entry(name, value) for name, value in zip(module.output_names, written, strict=True)},
        cacheable=getattr(module, "cacheable", False),
    )
    return ExportedStage(stage, path, parity)


def _entry(name: str, value: Tensor) -> TensorEntry:
    by_token: tuple[str | int, ...] = ("B", "T", value.shape[-1])
    dims: dict[str, tuple[str | int, ...]] = {"hidden": by_token, "state": by_token, "score": ("B",)}
    dtype: Literal["float32", "int8"] = "int8" if value.dtype == torch.int8 else "float32"
    return TensorEntry(dtype=dtype, dims=dims.get(name, ("B", value.shape[-1])))


def _hidden_width(module: nn.Module) -> int:
    """The width of the states a stage reads: that of its first layer norm or, failing that, of its first linear."""
    norms = [int(part.normalized_shape[-1]) for part in module.modules() if isinstance(part, nn.LayerNorm)]
    linears = [part.in_features for part in module.modules() if isinstance(part, nn.Linear)]
    config = getattr(module, "config", None)
    return int(getattr(config, "hidden", 0)) or next(iter(norms + linears), 1)


def _vocabulary(module: nn.Module) -> int:
    """How many ids a stage knows: as its config says or, failing that, the rows of its largest table."""
    tables = [part.num_embeddings for part in module.modules() if isinstance(part, nn.Embedding)]
    config = getattr(module, "config", None)
    return int(getattr(config, "vocabulary", 0)) or max(tables, default=1)


def _sample(module: Any, shape: tuple[int, int], hidden: int, *, seed: int) -> tuple[Tensor, ...]:
    """Random inputs for a stage: ids of its vocabulary, states, and masks with padding on the right."""
    draw = torch.Generator().manual_seed(seed)
    longer, width = (shape[0], shape[1] + _LONGER), int(getattr(module, "state_width", 1))
    made = {
        "attention_mask": lambda: _sampled_mask(shape, draw),
        "input_ids": lambda: torch.randint(0, _vocabulary(module), shape, generator=draw),
        "hidden": lambda: torch.randn((*shape, hidden), generator=draw),
        "token_type_ids": lambda: torch.randint(0, 2, shape, generator=draw),
        "first": lambda: torch.randint(-127, 128, (*shape, width), generator=draw).to(torch.int8),
        "first_mask": lambda: _sampled_mask(shape, draw),
        "second": lambda: torch.randint(-127, 128, (*longer, width), generator=draw).to(torch.int8),
        "second_mask": lambda: _sampled_mask(longer, draw),
    }
    if hasattr(module, "vector_width"):
        vectors = (shape[0], int(module.vector_width))
        levels = getattr(module, "vector_dtype", torch.float32) == torch.int8
        made |= dict.fromkeys(("first", "second"), lambda: _sampled_vectors(vectors, draw, levels=levels))
    return tuple(made[name]() for name in module.input_names)


def _sampled_vectors(shape: tuple[int, int], draw: torch.Generator, *, levels: bool) -> Tensor:
    if levels:
        return torch.randint(-127, 128, shape, generator=draw).to(torch.int8)
    return torch.randn(shape, generator=draw)


def _sampled_mask(shape: tuple[int, int], draw: torch.Generator) -> Tensor:
    lengths = torch.randint(1, shape[1] + 1, (shape[0],), generator=draw)
    lengths[0] = shape[1]
    return (torch.arange(shape[1])[None, :] < lengths[:, None]).to(torch.int64)


def to_onnx(
    module: nn.Module, arguments: tuple[Tensor, ...], path: Path, *, inputs: Sequence[str], outputs: Sequence[str]
) -> None:
    """Write a module as one ONNX file with B and T (of two texts, Q and T) open.

    Args:
        module: in eval mode.
        arguments: example inputs; what is read of them is their rank and type.
        path: where to write.
        inputs, outputs: the graph's tensor names, in order.
    """
    lengths = dict.fromkeys(("input_ids", "attention_mask", "token_type_ids", STATES, "hidden", "state"), "T")
    lengths |= {"first": "Q", "first_mask": "Q", "second": "T", "second_mask": "T"}
    for name, value in zip(inputs, arguments, strict=True):
        if value.ndim < 3 and value.dtype != torch.int64:
            lengths.pop(name, None)
    open_dims = {name: {0: "B", 1: lengths[name]} if name in lengths else {0: "B"} for name in (*inputs, *outputs)}
    with warnings.catch_warnings():
        # subtle: the newer exporter needs another package and names parameters after positions; training for int8
        # finds its products again by the parameters' own names
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message="Constant folding", category=UserWarning)
        torch.onnx.export(
            module,
            arguments,
            path,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes=open_dims,
            opset_version=OPSET,
            dynamo=False,
        )
    path.write_bytes(_plain(path.read_bytes()))


def _shorten(path: Path, samples: Sequence[tuple[Tensor, ...]], inputs: Sequence[str]) -> None:
    feeds = [{name: value.numpy() for name, value in zip(inputs, sample, strict=True)} for sample in samples]
    short = shorten_shapes(onnx.load(path), feeds[0], feeds[1])
    path.write_bytes(short.SerializeToString(deterministic=True))


def _plain(raw: bytes) -> bytes:
    """The same graph without the exporter's notes, which hold paths of the machine that made it."""
    model = onnx.load_from_string(raw)
    model.doc_string, model.producer_name, model.producer_version = "", "understudy", ""
    del model.metadata_props[:]
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    del model.graph.value_info[:]
    onnx.checker.check_model(model)
    serialized: bytes = model.SerializeToString(deterministic=True)
    return serialized


def check_graph(path: Path) -> None:
    """Refuse a graph that is not self-contained. Raises: ParityFailed."""
    try:
        check_self_contained(path.read_bytes(), name=path.name)
    except GraphMismatch as error:
        raise ParityFailed(str(error)) from error


def check_parity(
    module: nn.Module, arguments: tuple[Tensor, ...], path: Path, *, inputs: Sequence[str], atol: float
) -> float:
    """Compare a graph with its module on one input; padded states are not compared.

    Args:
        module: in eval mode.
        arguments: inputs in the order of `inputs`; `attention_mask` among them where an output has tokens.
        path: the graph.
        inputs: the graph's tensor names.
        atol: largest absolute difference allowed.
    Returns: the largest absolute difference found; of int8 outputs 0, where hardly any are a level off.
    Raises: ParityFailed: above `atol`, not finite, or the graph does not run.
    """
    with torch.no_grad():
        wanted = [value.numpy() for value in module(*arguments)]
    feeds = {name: value.numpy() for name, value in zip(inputs, arguments, strict=True)}
    found = _run(path, feeds)
    tokens = feeds["attention_mask"] > 0 if "attention_mask" in feeds else None
    worst = max(_difference(w, f, tokens) for w, f in zip(wanted, found, strict=True))
    # subtle: written so that NaN fails
    if not worst <= atol:
        raise ParityFailed(f"{path.name}: the graph differs from torch by {worst:.3g}, more than {atol:.3g}")
    return worst


def _run(path: Path, feeds: dict[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
        return list(session.run(None, feeds))
    except Exception as error:  # ONNX Runtime's errors have no class in common
        raise ParityFailed(f"{path.name}: does not run: {' '.join(str(error).split())[:200]}") from error


def _difference(wanted: npt.NDArray[Any], found: npt.NDArray[Any], tokens: npt.NDArray[np.bool_] | None) -> float:
    if wanted.shape != found.shape or wanted.dtype != found.dtype:
        return float("nan")
    if wanted.ndim == 3 and tokens is not None:
        wanted, found = wanted[tokens], found[tokens]
    apart = np.abs(wanted.astype(np.float64) - found)
    if wanted.dtype == np.int8 and apart.max(initial=0.0) <= 1 and apart.sum() <= max(1, FLIPPED_SHARE * apart.size):
        return 0.0
    return float(apart.max(initial=0.0))
