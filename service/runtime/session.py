"""Sessions: the loaded graphs of one student in one precision on one backend."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from service.bundle.load import Bundle
from service.bundle.manifest import Manifest, Stage, Tensor
from service.bundle.sources import SIDES, TOKEN_INPUTS, side_of
from service.errors import BackendUnavailable, SettingsInvalid
from service.runtime.backends import cuda, onnxruntime, openvino
from service.runtime.backends.stage import Arithmetic, Array, Execution, SessionFactory, StageSession

__all__ = ["Array", "Execution", "SessionFactory", "SessionPool", "StageSession", "load_sessions"]

TOKENS: Final = Tensor(dtype="int64", dims=("B", "T"))
AUTO: Final = "auto"
EXACT: Final = "fp32"
# a precision without graphs of its own: the fp32 graphs, computed in another arithmetic
BF16: Final = "bf16"


@dataclass(frozen=True, slots=True)
class Backend:
    """A backend: how it loads a graph, and a check that raises BackendUnavailable where it cannot be used."""

    load: SessionFactory
    require: Callable[[], None]


BACKENDS: Final[dict[str, Backend]] = {
    onnxruntime.BACKEND: Backend(onnxruntime.OnnxRuntimeSession, lambda: None),
    openvino.BACKEND: Backend(openvino.OpenVinoSession, openvino.require),
    cuda.BACKEND: Backend(cuda.cuda_session, cuda.require),
}


@dataclass(frozen=True, slots=True)
class SessionPool:
    """The sessions of a pipeline's stages, in order, each safe to run from every slot.

    Attributes:
        backend, precision: what they are.
        graphs: the manifest's precision whose graphs they run.
        sessions: one for each stage.
        unsplit: all of them as one graph, to the last exit, with weights of its own; None: there is none.
    """

    backend: str
    precision: str
    graphs: str
    sessions: tuple[StageSession, ...]
    unsplit: StageSession | None = None


@dataclass(frozen=True, slots=True)
class _Graphs:
    precision: str
    arithmetic: Arithmetic = "float32"


def load_sessions(bundle: Bundle, *, backend: str, precision: str | None, how: Execution) -> SessionPool:
    """Load every stage of a bundle, one after another.

    Args:
        bundle: verified.
        backend: a backend's name, or "auto".
        precision: one of the manifest's, or "bf16" (OpenVINO, from the fp32 graphs); None: its default.
        how: cores and slots.
    Raises:
        SettingsInvalid: no such backend, or the student has no such precision.
        BackendUnavailable: the backend, or bfloat16, cannot be used here.
        GraphMismatch: a graph does not load, or its tensors are not the manifest's.
    """
    manifest = bundle.manifest
    chosen = precision or manifest.default_precision
    graphs = _graphs(manifest, chosen)
    name = openvino.BACKEND if backend == AUTO and graphs.arithmetic == "bfloat16" else backend_for(backend)
    if graphs.arithmetic == "bfloat16" and name != openvino.BACKEND:
        raise SettingsInvalid(f"precision {chosen!r} needs backend openvino, not {name}")
    how = replace(how, arithmetic=graphs.arithmetic, longest_tokens=manifest.max_tokens)
    sessions = tuple(
        BACKENDS[name].load(
            bundle.graph_path(graphs.precision, stage.id),
            inputs=input_tensors(manifest, stage),
            outputs=stage.outputs,
            how=replace(how, fills=_fills(manifest, stage)),
        )
        for stage in manifest.stages
    )
    return SessionPool(name, chosen, graphs.precision, sessions, _unsplit(bundle, name, graphs.precision, how))


def _unsplit(bundle: Bundle, backend: str, precision: str, how: Execution) -> StageSession | None:
    """All stages as one graph, where they are several, and read one sequence."""
    manifest = bundle.manifest
    if backend != onnxruntime.BACKEND or len(manifest.stages) == 1 or manifest.apart:
        return None
    paths = [bundle.graph_path(precision, stage.id) for stage in manifest.stages]
    return onnxruntime.unsplit_session(paths, manifest.stages, manifest.exits[-1], how)


def _graphs(manifest: Manifest, chosen: str) -> _Graphs:
    if chosen in manifest.precisions:
        return _Graphs(chosen)
    if chosen == BF16 and EXACT in manifest.precisions:
        return _Graphs(EXACT, "bfloat16")
    offered = ", ".join(sorted(manifest.precisions))
    raise SettingsInvalid(f"student {manifest.name} has no precision {chosen!r}, only {offered}")


def _fills(manifest: Manifest, stage: Stage) -> dict[str, int]:
    return {tensor: manifest.tokenizer.pad_id for tensor, source in stage.inputs.items() if source == "input_ids"}


def backend_for(setting: str) -> str:
    """The backend that a setting starts with.

    Raises: SettingsInvalid: there is no such backend; BackendUnavailable: it cannot be used here, and why.
    """
    name = onnxruntime.BACKEND if setting == AUTO else setting
    if name not in BACKENDS:
        raise SettingsInvalid(f"backend {setting!r} is not one of auto, {', '.join(sorted(BACKENDS))}")
    BACKENDS[name].require()
    return name


def usable_backends() -> tuple[str, ...]:
    """The backends that can be used here, ONNX Runtime first."""
    return tuple(name for name, backend in BACKENDS.items() if _is_usable(backend))


def _is_usable(backend: Backend) -> bool:
    try:
        backend.require()
    except BackendUnavailable:
        return False
    return True


def input_tensors(manifest: Manifest, stage: Stage) -> dict[str, Tensor]:
    """What each input tensor of a stage must look like, by tensor name."""
    return {name: _source_tensor(manifest, source) for name, source in stage.inputs.items()}


def _source_tensor(manifest: Manifest, source: str) -> Tensor:
    side, own = side_of(source)
    if own in TOKEN_INPUTS:
        tensor = TOKENS
    else:
        stage_id, _, output = own.partition(".")
        tensor = manifest.stage(stage_id).outputs[output]
    if side != SIDES[0]:
        return tensor
    # the first text of a pair has a length of its own
    return tensor.model_copy(update={"dims": tuple("Q" if dim == "T" else dim for dim in tensor.dims)})
