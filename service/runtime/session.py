"""Sessions: the loaded graphs of one student in one precision on one backend."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy.typing as npt

from service.bundle.load import Bundle
from service.bundle.manifest import TOKEN_INPUTS, Manifest, Stage, Tensor
from service.errors import SettingsInvalid
from service.runtime.backends import onnxruntime

Array = npt.NDArray[Any]
TOKENS: Final = Tensor(dtype="int64", dims=("B", "T"))


class StageSession(Protocol):
    """One loaded stage graph. `run` may be called from several threads at once."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Compute every output from every input, by the graph's tensor names. Raises: RunFailed."""
        ...


class SessionFactory(Protocol):
    """Loads a stage graph on one backend. Raises: GraphMismatch, naming the file."""

    def __call__(
        self, path: Path, *, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor], threads: int
    ) -> StageSession:
        """Load the graph at `path`, check its tensors, allow one run `threads` cores."""
        ...


BACKENDS: Final[dict[str, SessionFactory]] = {onnxruntime.BACKEND: onnxruntime.OnnxRuntimeSession}


@dataclass(frozen=True, slots=True)
class SessionPool:
    """The sessions of a pipeline's stages, in order, each safe to run from every slot."""

    backend: str
    precision: str
    sessions: tuple[StageSession, ...]


def load_sessions(bundle: Bundle, *, backend: str, precision: str | None, threads: int) -> SessionPool:
    """Load every stage of a bundle, one after another.

    Args:
        bundle: verified.
        backend: a backend's name, or "auto".
        precision: one of the manifest's; None: its default.
        threads: cores that one run may use.
    Raises:
        SettingsInvalid: no such backend, or the student has no such precision.
        GraphMismatch: a graph does not load, or its tensors are not the manifest's.
    """
    manifest = bundle.manifest
    chosen = precision or manifest.default_precision
    if chosen not in manifest.precisions:
        offered = ", ".join(sorted(manifest.precisions))
        raise SettingsInvalid(f"student {manifest.name} has no precision {chosen!r}, only {offered}")
    name = backend_for(backend)
    sessions = tuple(
        BACKENDS[name](
            bundle.graph_path(chosen, stage.id),
            inputs=input_tensors(manifest, stage),
            outputs=stage.outputs,
            threads=threads,
        )
        for stage in manifest.stages
    )
    return SessionPool(name, chosen, sessions)


def backend_for(setting: str) -> str:
    """The backend that a setting means. Raises: SettingsInvalid: there is no such backend."""
    name = onnxruntime.BACKEND if setting == "auto" else setting
    if name not in BACKENDS:
        raise SettingsInvalid(f"backend {setting!r} is not one of auto, {', '.join(sorted(BACKENDS))}")
    return name


def input_tensors(manifest: Manifest, stage: Stage) -> dict[str, Tensor]:
    """What each input tensor of a stage must look like, by tensor name."""
    return {name: _source_tensor(manifest, source) for name, source in stage.inputs.items()}


def _source_tensor(manifest: Manifest, source: str) -> Tensor:
    if source in TOKEN_INPUTS:
        return TOKENS
    stage_id, _, output = source.partition(".")
    return manifest.stage(stage_id).outputs[output]
