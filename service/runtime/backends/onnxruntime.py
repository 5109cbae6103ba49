"""ONNX Runtime on the CPU: the default backend."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import onnxruntime

from service.bundle.manifest import Tensor
from service.errors import GraphMismatch, RunFailed
from service.runtime.backends.stage import Array, Execution, Found, check_tensors, read_graph

BACKEND: Final = "onnxruntime"
PROVIDER: Final = "CPUExecutionProvider"
_TYPES: Final = {"tensor(float)": "float32", "tensor(int64)": "int64"}


class OnnxRuntimeSession:
    """One stage graph in ONNX Runtime; `run` is safe from several threads."""

    def __init__(
        self, path: Path, *, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor], how: Execution
    ) -> None:
        """Load a graph and check it against the manifest.

        Args:
            path: an ONNX file without external data or operators outside the standard.
            inputs, outputs: what the manifest says of each tensor, by name.
            how: the cores one run may use; the slots share this session, and any shape is run as it comes.
        Raises:
            GraphMismatch: it does not load here, or a tensor's name, type, rank or fixed size differs.
        """
        self._path = path
        self._session = load(path, how, providers=[PROVIDER])
        check_tensors(path, "input", inputs, found(self._session.get_inputs()))
        check_tensors(path, "output", outputs, found(self._session.get_outputs()))
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


def load(path: Path, how: Execution, *, providers: Sequence[Any]) -> Any:
    """An inference session of ONNX Runtime on the providers given. Raises: GraphMismatch: it does not load."""
    raw = read_graph(path)
    try:
        session = onnxruntime.InferenceSession(raw, _options(how.threads), providers=providers)
    except Exception as error:  # ONNX Runtime's errors have no class in common
        raise GraphMismatch(f"{path.name}: does not load in ONNX Runtime: {' '.join(str(error).split())}") from error
    # subtle: the wrapper keeps the file's bytes, to load it again on another provider: a second copy of the weights
    session.disable_fallback()
    session._model_bytes = None
    return session


def found(tensors: Sequence[Any]) -> Iterator[Found]:
    """What ONNX Runtime says of a graph's tensors."""
    for tensor in tensors:
        dims = tuple(size if isinstance(size, int) else None for size in tensor.shape)
        yield Found(tensor.name, tensor.type, _TYPES.get(tensor.type), dims)


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
