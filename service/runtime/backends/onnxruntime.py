"""ONNX Runtime on the CPU: the default backend."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import onnxruntime

from service.bundle.manifest import Exit, Stage, Tensor
from service.bundle.sources import TOKEN_INPUTS
from service.errors import GraphMismatch, RunFailed
from service.runtime.backends.stage import Array, Execution, Found, StageSession, check_tensors, read_graph
from service.runtime.backends.unsplit import Part, unsplit

BACKEND: Final = "onnxruntime"
PROVIDER: Final = "CPUExecutionProvider"
# of larger students the stages take so long that nothing is gained, and a copy of the weights is dear
MOST_UNSPLIT_BYTES: Final = 32 << 20
_TYPES: Final = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(int8)": "int8"}


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
        raw = read_graph(path)
        self._session = load(path, how, providers=[PROVIDER], raw=raw)
        check_tensors(path, "input", inputs, found(self._session.get_inputs()))
        check_tensors(path, "output", outputs, found(self._session.get_outputs()))
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __repr__(self) -> str:
        return f"<OnnxRuntimeSession {self._path.name}>"

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Compute outputs.

        Args:
            feeds: every input by tensor name.
            outputs: which; None: all.
        Returns: those outputs by tensor name, freshly allocated.
        Raises:
            RunFailed: ONNX Runtime failed; the message names the graph, not the input.
        """
        names = self._outputs if outputs is None else outputs
        return _run(self._session, self._path.name, names, feeds)


class UnsplitSession:
    """All stages of a pipeline as one graph, to the last exit; `run` is safe from several threads."""

    def __init__(self, raw: bytes, how: Execution) -> None:
        """Load a graph of `unsplit`. Raises: GraphMismatch: it does not load here."""
        self._session = load(Path("unsplit.onnx"), how, providers=[PROVIDER], raw=raw)
        # an input that the exits on the way alone read is none of its
        self.reads = frozenset(each.name for each in self._session.get_inputs())

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """As `OnnxRuntimeSession.run`; inputs are called by their sources, the output as the last exit's."""
        names = [output.name for output in self._session.get_outputs()] if outputs is None else outputs
        return _run(self._session, "the unsplit graph", names, {name: feeds[name] for name in self.reads})


def unsplit_session(paths: Sequence[Path], stages: Sequence[Stage], leave: Exit, how: Execution) -> StageSession | None:
    """The stages as one graph, with a copy of their weights, for what goes to full depth anyway.

    Args:
        paths: of their graphs, which have been checked.
        stages: in order.
        leave: the last exit.
        how: the cores one run may use.
    Returns: None where the graphs are large, cannot be joined, or what was joined does not load: each stage by itself
        does, so it can be done without.
    Raises: GraphMismatch: a file cannot be read.
    """
    if sum(path.stat().st_size for path in paths) > MOST_UNSPLIT_BYTES:
        return None
    try:
        raw = unsplit(
            [Part(read_graph(path), f"{one.id}/", _names(one, leave)) for path, one in zip(paths, stages, strict=True)],
            outputs=(leave.output,),
        )
        session = None if raw is None else UnsplitSession(raw, how)
    except (GraphMismatch, ValueError):
        return None
    return session if session is not None and session.reads <= set(TOKEN_INPUTS) else None


def _names(stage: Stage, leave: Exit) -> dict[str, str]:
    """What a stage's tensors are called in the unsplit graph."""
    own = {name: f"{stage.id}.{name}" for name in stage.outputs}
    return {**stage.inputs, **own} | ({leave.output: leave.output} if stage.id == leave.stage else {})


def _run(session: Any, where: str, names: Sequence[str], feeds: Mapping[str, Array]) -> dict[str, Array]:
    try:
        values = session.run(names, feeds)
    except Exception as error:  # ONNX Runtime's errors have no class in common
        raise RunFailed(f"{where}: the graph failed: {type(error).__name__}") from error
    return dict(zip(names, values, strict=True))


def load(path: Path, how: Execution, *, providers: Sequence[Any], raw: bytes | None = None) -> Any:
    """An inference session of ONNX Runtime on the providers given. Raises: GraphMismatch: it does not load.

    Args:
        path: the graph's file; names it in errors.
        how: cores of one run.
        providers: as ONNX Runtime takes them.
        raw: what to load instead of the file's bytes.
    """
    raw = read_graph(path) if raw is None else raw
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
