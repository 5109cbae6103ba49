"""ONNX Runtime on an NVIDIA GPU. Asked for and not active is an error, never a silent fall to the processor."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime

from service.bundle.manifest import Tensor
from service.errors import BackendUnavailable, RunFailed
from service.runtime.backends.onnxruntime import found, load
from service.runtime.backends.stage import Array, Execution, check_tensors

BACKEND: Final = "cuda"
PROVIDER: Final = "CUDAExecutionProvider"
# float32 products stay float32, and the arena grows by what is asked for, not by doubling
_OPTIONS: Final = {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}


class BoundSession:
    """One stage graph of ONNX Runtime whose tensors are bound to a device; `run` is safe from several threads."""

    def __init__(
        self, path: Path, session: Any, *, device: str, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]
    ) -> None:
        """Check a loaded session's tensors against the manifest.

        Args:
            path: names the graph in errors.
            session: an `onnxruntime.InferenceSession`.
            device: where the outputs are computed: "cuda" or "cpu".
            inputs, outputs: what the manifest says of each tensor, by name.
        Raises:
            GraphMismatch: a tensor's name, type, rank or fixed size differs.
        """
        self._path, self._session, self._device = path, session, device
        check_tensors(path, "input", inputs, found(session.get_inputs()))
        check_tensors(path, "output", outputs, found(session.get_outputs()))
        self._inputs = list(inputs)
        self._outputs = [output.name for output in session.get_outputs()]

    def __repr__(self) -> str:
        return f"<BoundSession {self._path.name} on {self._device}>"

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Compute every output, and copy those asked for.

        Args:
            feeds: every input by tensor name, in this process's memory.
            outputs: which; None: all.
        Returns: those outputs by tensor name, freshly allocated in this process's memory.
        Raises:
            RunFailed: ONNX Runtime failed; the message names the graph, not the input.
        """
        names = self._outputs if outputs is None else outputs
        try:
            binding = self._session.io_binding()
            for name in self._inputs:
                binding.bind_cpu_input(name, np.ascontiguousarray(feeds[name]))
            for name in names:
                binding.bind_output(name, self._device)
            self._session.run_with_iobinding(binding)
            values = binding.copy_outputs_to_cpu()
        except Exception as error:  # ONNX Runtime's errors have no class in common
            raise RunFailed(f"{self._path.name}: the graph failed: {type(error).__name__}") from error
        return dict(zip(names, values, strict=True))


def cuda_session(
    path: Path, *, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor], how: Execution
) -> BoundSession:
    """Load a graph on the GPU and check it against the manifest.

    Raises:
        BackendUnavailable: there is no GPU that ONNX Runtime can use.
        GraphMismatch: it does not load here, or a tensor's name, type, rank or fixed size differs.
    """
    require()
    session = load(path, how, providers=[(PROVIDER, _OPTIONS), "CPUExecutionProvider"])
    require_active(session.get_providers())
    return BoundSession(path, session, device="cuda", inputs=inputs, outputs=outputs)


def require() -> None:
    """Raises: BackendUnavailable: this ONNX Runtime was built without CUDA; says what to install."""
    if PROVIDER not in onnxruntime.get_available_providers():
        raise BackendUnavailable(
            "backend cuda: this ONNX Runtime has no CUDA provider; replace it: "
            "`pip uninstall onnxruntime && pip install 'understudy[cuda]'`"
        )
    onnxruntime.preload_dlls()


def require_active(providers: list[str]) -> None:
    """Raises: BackendUnavailable: a session that was loaded for the GPU does not use it.

    Args:
        providers: those that the session lists.
    """
    if PROVIDER not in providers:
        raise BackendUnavailable(
            f"backend cuda: the CUDA provider is installed but not active, only {', '.join(providers)}; "
            "ONNX Runtime's log above says which of the driver, CUDA or cuDNN it misses"
        )
