"""OpenVINO on the CPU. n items, T tokens.

Measured on one core of a Zen 4 server (a 2-layer stage of 128 dimensions, int8): the first run of a shape costs 2 to
14 ms where a later one costs 0.1 to 2 ms, for a new n as for a new T, and every shape seen keeps about a megabyte of
compiled kernels. So both are rounded up to a small grid, and the kernels kept are bounded.
"""

import importlib.util
import os
import sys
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from service.bundle.manifest import Tensor
from service.errors import BackendUnavailable, GraphMismatch, RunFailed
from service.runtime.backends.stage import Array, Execution, Found, check_tensors, read_graph

BACKEND: Final = "openvino"
TELEMETRY: Final = "openvino_telemetry"
KERNELS_KEPT: Final = 64
_TYPES: Final = {"f32": "float32", "i64": "int64", "i8": "int8"}
_HINTS: Final = {"float32": "f32", "bfloat16": "bf16"}


def _steps(first: int, per_octave: int, last: int) -> tuple[int, ...]:
    """Sizes that rise by `first`, and after each doubling beyond `per_octave` steps by twice as much."""
    sizes, size, step = [], first, first
    while size <= last:
        sizes.append(size)
        if size >= 2 * per_octave * step:
            step *= 2
        size += step
    return tuple(sizes)


# 4 8 … 32 40 … 64 80 …: at most a fifth of the tokens of longer rows are padding; 1 2 3 4 6 8 12 16 24 …
TOKEN_GRID: Final = _steps(4, 4, 1 << 13)
ITEM_GRID: Final = _steps(1, 2, 1 << 20)


class OpenVinoSession:
    """One stage graph in OpenVINO; `run` is safe from several threads: each takes an infer request of its own.

    The requests share one compiled model, so that there is one copy of the weights; it has one stream for each slot,
    since runs on one stream wait for one another.
    """

    def __init__(
        self, path: Path, *, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor], how: Execution
    ) -> None:
        """Load a graph and check it against the manifest.

        Args:
            path: an ONNX file without external data or operators outside the standard.
            inputs, outputs: what the manifest says of each tensor, by name.
            how: threads, slots, arithmetic, and what shapes may be padded to and with.
        Raises:
            GraphMismatch: it does not load here, or a tensor's name, type, rank or fixed size differs.
            BackendUnavailable: OpenVINO is not installed, or the processor cannot do the arithmetic.
        """
        core = _core()
        if how.arithmetic == "bfloat16" and not has_bfloat16():
            raise BackendUnavailable("backend openvino: this processor has no bfloat16 instructions")
        self._path, self._how = path, how
        self._inputs, self._outputs = dict(inputs), dict(outputs)
        model = _read(core, path)
        check_tensors(path, "input", inputs, _found(model.inputs))
        check_tensors(path, "output", outputs, _found(model.outputs))
        self._compiled = _compile(core, model, path, how)
        self._idle: deque[Any] = deque()

    def __repr__(self) -> str:
        return f"<OpenVinoSession {self._path.name}>"

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Compute every output, and copy those asked for.

        Args:
            feeds: every input by tensor name.
            outputs: which; None: all.
        Returns: those outputs by tensor name, freshly allocated.
        Raises:
            RunFailed: OpenVINO failed; the message names the graph, not the input.
        """
        request = self._request()
        try:
            sizes = sizes_of(feeds, self._inputs)
            padded = padded_feeds(feeds, self._inputs, self._how)
            # subtle: without sharing, the binding keeps arrays of the first shape and copies into them
            found = request.infer(padded, share_inputs=True, share_outputs=True)
            names = self._outputs if outputs is None else outputs
            values = {name: _cut(np.asarray(found[name]), self._outputs[name], sizes) for name in names}
        except Exception as error:  # OpenVINO's errors are RuntimeError, TypeError, ValueError and KeyError alike
            raise RunFailed(f"{self._path.name}: the graph failed: {type(error).__name__}") from error
        # subtle: one whose run failed is not used again
        self._idle.append(request)
        return values

    def _request(self) -> Any:
        try:
            return self._idle.pop()
        except IndexError:
            return self._compiled.create_infer_request()


def require() -> None:
    """Raises: BackendUnavailable: OpenVINO is not installed; says how to install it."""
    if "openvino" not in sys.modules and importlib.util.find_spec("openvino") is None:
        raise BackendUnavailable("backend openvino: not installed here; `pip install openvino` where it has a wheel")


def version() -> str:
    """OpenVINO's version. Raises: BackendUnavailable: it is not installed."""
    return str(_openvino().__version__)


def has_bfloat16() -> bool:
    """Whether OpenVINO computes in bfloat16 natively on this processor. Raises: BackendUnavailable."""
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@cache
def _openvino() -> Any:
    require()
    # subtle: importing openvino reports its use to its makers through this package; without it a stub is used
    telemetry, blocked = sys.modules.get(TELEMETRY), TELEMETRY not in sys.modules
    if blocked:
        sys.modules[TELEMETRY] = None  # type: ignore[assignment]
    # subtle: oneDNN's own cache outlives the compiled model, some tens of megabytes after each student that is
    # unloaded; OpenVINO caches the same kernels itself, as long as the model lives
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "0")
    try:
        import openvino
    except ImportError as error:
        raise BackendUnavailable(f"backend openvino: installed, but it does not load: {error}") from error
    finally:
        if blocked and sys.modules.get(TELEMETRY) is telemetry:
            sys.modules.pop(TELEMETRY, None)
    return openvino


@cache
def _core() -> Any:
    return _openvino().Core()


def _read(core: Any, path: Path) -> Any:
    raw = read_graph(path)
    try:
        return core.read_model(raw)
    except Exception as error:  # OpenVINO raises RuntimeError, and TypeError from its binding
        raise _refused(path, error) from error


def _compile(core: Any, model: Any, path: Path, how: Execution) -> Any:
    settings = {
        "NUM_STREAMS": how.slots,
        "INFERENCE_NUM_THREADS": how.threads * how.slots,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": _HINTS[how.arithmetic],
        "ENABLE_CPU_PINNING": False,
        "CPU_RUNTIME_CACHE_CAPACITY": KERNELS_KEPT,
        # subtle: its fused attention blocks the work by the number of items, so that sums round otherwise in company
        # and some int8 texts (5 of a thousand) answered otherwise, scores by up to 0.003; without it, to the bit alike
        "SNIPPETS_MODE": "DISABLE",
    }
    try:
        return core.compile_model(model, "CPU", settings)
    except Exception as error:  # OpenVINO raises RuntimeError, and TypeError from its binding
        raise _refused(path, error) from error


def _refused(path: Path, error: Exception) -> GraphMismatch:
    return GraphMismatch(f"{path.name}: does not load in OpenVINO: {' '.join(str(error).split())}")


def _found(ports: Sequence[Any]) -> Iterator[Found]:
    for port in ports:
        kind = port.get_element_type().get_type_name()
        shape = port.get_partial_shape()
        dims = tuple(None if dim.is_dynamic else dim.get_length() for dim in shape)
        yield Found(port.get_any_name(), kind, _TYPES.get(kind), dims)


def sizes_of(feeds: Mapping[str, Array], tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The symbolic sizes of a batch: B, and T or Q where tensors have them. Raises: KeyError, IndexError: a tensor is
    missing or flat."""
    return {
        dim: feeds[name].shape[place]
        for name, tensor in tensors.items()
        for place, dim in enumerate(tensor.dims)
        if isinstance(dim, str)
    }


def grid_sizes(sizes: Mapping[str, int], *, longest_tokens: int | None = None) -> dict[str, int]:
    """The sizes that a batch is run in: each rounded up on its grid, tokens not beyond `longest_tokens`.

    >>> grid_sizes({"B": 5, "T": 13}), grid_sizes({"B": 33, "T": 61}, longest_tokens=62)
    ({'B': 6, 'T': 16}, {'B': 48, 'T': 62})
    """
    most = longest_tokens or TOKEN_GRID[-1]
    return {
        dim: _rounded(size, ITEM_GRID) if dim == "B" else min(_rounded(size, TOKEN_GRID), max(size, most))
        for dim, size in sizes.items()
    }


def _rounded(size: int, grid: tuple[int, ...]) -> int:
    place = bisect_left(grid, size)
    return grid[place] if place < len(grid) else size


def padded_feeds(feeds: Mapping[str, Array], tensors: Mapping[str, Tensor], how: Execution) -> dict[str, Array]:
    """The feeds in their grid sizes: masked tokens on the right, and the first item again below.

    Items do not see one another, so that what is added changes nothing of what is kept.
    """
    sizes = sizes_of(feeds, tensors)
    wide = grid_sizes(sizes, longest_tokens=how.longest_tokens)
    if wide == sizes:
        return {name: np.ascontiguousarray(feeds[name]) for name in tensors}
    return {name: _padded(feeds[name], tensor, wide, how.fills.get(name, 0)) for name, tensor in tensors.items()}


def _padded(value: Array, tensor: Tensor, named: Mapping[str, int], fill: int) -> Array:
    sizes = [named[dim] if isinstance(dim, str) else dim for dim in tensor.dims]
    wide = np.full(sizes, fill, dtype=value.dtype)
    wide[tuple(slice(0, size) for size in value.shape)] = value
    wide[len(value) :] = wide[0]
    return wide


def _cut(value: Array, tensor: Tensor, kept: Mapping[str, int]) -> Array:
    """A copy of an output without what was added."""
    return np.array(value[tuple(slice(0, kept[dim]) if isinstance(dim, str) else slice(None) for dim in tensor.dims)])
