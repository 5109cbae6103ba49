"""ONNX Runtime on the CPU: the default backend."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt
import onnxruntime

from service.bundle.manifest import Tensor
from service.errors import GraphMismatch, RunFailed
from service.runtime.backends.onnx_format import check_self_contained

Array = npt.NDArray[Any]
BACKEND: Final = "onnxruntime"
PROVIDER: Final = "CPUExecutionProvider"
_TYPES: Final = {"float32": "tensor(float)", "int64": "tensor(int64)"}


class OnnxRuntimeSession:
    """One stage graph in ONNX Runtime; `run` is safe from several threads."""

    def __init__(
        self, path: Path, *, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor], threads: int
    ) -> None:
        """Load a graph and check it against the manifest.

        Args:
            path: an ONNX file without external data or operators outside the standard.
            inputs, outputs: what the manifest says of each tensor, by name.
            threads: cores that one `run` may use.
        Raises:
            GraphMismatch: it does not load here, or a tensor's name, type, rank or fixed size differs.
        """
        self._path = path
        self._session = _load(path, threads)
        _check_tensors(path, "input", inputs, self._session.get_inputs())
        _check_tensors(path, "output", outputs, self._session.get_outputs())
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __repr__(self) -> str:
        return f"<OnnxRuntimeSession {self._path.name}>"

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Compute every output.

        Args:
            feeds: every input by tensor name.
        Returns: every output by tensor name, freshly allocated.
        Raises:
            RunFailed: ONNX Runtime failed; the message names the graph, not the input.
        """
        try:
            values = self._session.run(self._outputs, feeds)
        except Exception as error:  # ONNX Runtime's errors have no class in common
            raise RunFailed(f"{self._path.name}: the graph failed: {type(error).__name__}") from error
        return dict(zip(self._outputs, values, strict=True))


def _load(path: Path, threads: int) -> Any:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise GraphMismatch(f"{path.name}: cannot be read: {error.strerror}") from error
    check_self_contained(raw, name=path.name)
    try:
        return onnxruntime.InferenceSession(raw, _options(threads), providers=[PROVIDER])
    except Exception as error:  # ONNX Runtime's errors have no class in common
        raise GraphMismatch(f"{path.name}: does not load in ONNX Runtime: {' '.join(str(error).split())}") from error


def _options(threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    # subtle: every batch has another shape; a pattern would be kept for each, and the arena would keep the largest
    # sum of them for ever. Measured on a 4x128 encoder, batches of 1 and of 32: plain allocation is as fast
    options.enable_mem_pattern = False
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # subtle: without VNNI, u8 x s8 products saturate in 16 bits (VPMADDUBSW) and answers would differ between
    # machines; with it they do not, and this would only rewrite the weights to a kernel half as fast
    if not _has_vnni():
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def _has_vnni() -> bool:
    """Whether the processor adds u8 x s8 products in 32 bits. On other architectures the entry above does nothing."""
    try:
        return "_vnni" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


def _check_tensors(path: Path, kind: str, wanted: Mapping[str, Tensor], found: Sequence[Any]) -> None:
    names = {tensor.name for tensor in found}
    for name in sorted(names ^ set(wanted)):
        side = "the graph has no" if name in wanted else "the manifest has no"
        raise GraphMismatch(f"{path.name}: {side} {kind} {name!r}")
    for tensor in found:
        _check_tensor(f"{path.name}: {kind} {tensor.name!r}", wanted[tensor.name], tensor)


def _check_tensor(where: str, wanted: Tensor, found: Any) -> None:
    if found.type != _TYPES[wanted.dtype]:
        raise GraphMismatch(f"{where} is {found.type}, the manifest says {wanted.dtype}")
    if len(found.shape) != len(wanted.dims):
        raise GraphMismatch(f"{where} has rank {len(found.shape)}, the manifest says {len(wanted.dims)}")
    for place, (size, dim) in enumerate(zip(found.shape, wanted.dims, strict=True)):
        # a size the graph leaves open may be anything; one the manifest leaves open must be open
        if isinstance(size, int) and size != dim:
            raise GraphMismatch(f"{where} has size {size} at dim {place}, the manifest says {dim}")
