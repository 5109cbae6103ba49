"""What every backend shares: the contract of a stage session, how it is to run, and the checks on its graph.

B items, T tokens.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy.typing as npt

from service.bundle.manifest import Tensor
from service.errors import GraphMismatch
from service.runtime.backends.onnx_format import check_self_contained

Array = npt.NDArray[Any]
Arithmetic = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class Execution:
    """How a graph is to run.

    Attributes:
        threads: cores that one run may use.
        slots: runs at one time, at most, that should not wait for one another.
        arithmetic: what float32 products may be computed in; bfloat16 only where the backend says it can.
        longest_tokens: no input is longer, and none may be padded beyond it; None: not known.
        fills: what an input tensor is padded with, by name; 0 for those not named.
    """

    threads: int = 1
    slots: int = 1
    arithmetic: Arithmetic = "float32"
    longest_tokens: int | None = None
    fills: Mapping[str, int] = field(default_factory=dict)


class StageSession(Protocol):
    """One loaded stage graph. `run` may be called from several threads at once."""

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Compute the outputs named (None: all) from every input, by the graph's tensor names. Raises: RunFailed."""
        ...


class SessionFactory(Protocol):
    """Loads a stage graph on one backend.

    Raises: GraphMismatch, naming the file; BackendUnavailable: the backend cannot be used here.
    """

    def __call__(
        self, path: Path, *, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor], how: Execution
    ) -> StageSession:
        """Load the graph at `path` and check its tensors."""
        ...


@dataclass(frozen=True, slots=True)
class Found:
    """A tensor as a runtime reports it: `kind` in the runtime's words, `dtype` in ours, open sizes as None."""

    name: str
    kind: str
    dtype: str | None
    dims: tuple[int | None, ...]


def read_graph(path: Path) -> bytes:
    """The bytes of an ONNX file that needs no other file and no operator outside the standard.

    Raises: GraphMismatch: it cannot be read, or is not such a file.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise GraphMismatch(f"{path.name}: cannot be read: {error.strerror}") from error
    check_self_contained(raw, name=path.name)
    return raw


def check_tensors(path: Path, kind: str, wanted: Mapping[str, Tensor], found: Iterable[Found]) -> None:
    """Compare a graph's tensors with the manifest's.

    Args:
        path: names the file in errors.
        kind: "input" or "output".
        wanted: what the manifest says, by name.
        found: what the graph has.
    Raises:
        GraphMismatch: a tensor is missing or too many, or its type, rank or a fixed size differs.
    """
    tensors = {tensor.name: tensor for tensor in found}
    for name in sorted(tensors.keys() ^ set(wanted)):
        side = "the graph has no" if name in wanted else "the manifest has no"
        raise GraphMismatch(f"{path.name}: {side} {kind} {name!r}")
    for name, tensor in tensors.items():
        _check_tensor(f"{path.name}: {kind} {name!r}", wanted[name], tensor)


def _check_tensor(where: str, wanted: Tensor, found: Found) -> None:
    if found.dtype != wanted.dtype:
        raise GraphMismatch(f"{where} is {found.kind}, the manifest says {wanted.dtype}")
    if len(found.dims) != len(wanted.dims):
        raise GraphMismatch(f"{where} has rank {len(found.dims)}, the manifest says {len(wanted.dims)}")
    for place, (size, dim) in enumerate(zip(found.dims, wanted.dims, strict=True)):
        # a size the graph leaves open may be anything; one the manifest leaves open must be open
        if size is not None and size != dim:
            raise GraphMismatch(f"{where} has size {size} at dim {place}, the manifest says {dim}")
