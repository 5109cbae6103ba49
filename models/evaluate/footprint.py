"""What a student takes: bytes on disk, and memory, measured in a process of its own.

`python -m models.evaluate.footprint BUNDLE --backend B --precision P < texts.json` is that process. It imports what the
service would, notes its resident set, loads the student, runs the texts once in batches of 32 and once alone, and
notes the resident set again; the difference is what the student added, its work space included. Nothing of torch is
imported there, and no other student is loaded.
"""

import argparse
import gc
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Final

from models.errors import OfflineError
from service.bundle.load import Bundle, load_bundle
from service.bundle.manifest import Manifest
from service.runtime.encode import Text
from service.runtime.heads import never
from service.runtime.memory import resident_bytes
from service.runtime.session import backend_for
from service.runtime.student import Student, batches_by_length

BATCH_ITEMS: Final = 32
MOST_TEXTS: Final = 256
METHOD: Final = (
    "resident memory after loading the student and running rows once at batch 32 and once alone, less that after the "
    "imports; each student in a fresh process without torch, so the runtime's own start is in every figure"
)
_TIMEOUT_S = 600.0
_CARD = "card"


class MeasuringFailed(OfflineError):
    """The process that measures a student's memory ended badly."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident bytes of a process: after its imports, and with a student loaded and run."""

    before_bytes: int
    after_bytes: int

    @property
    def added_bytes(self) -> int | None:
        """What the student added; None where the system does not say how much is resident."""
        return max(0, self.after_bytes - self.before_bytes) if self.before_bytes else None


def memory_of(bundle: Path, texts: Sequence[Text], *, backend: str, precision: str) -> Memory:
    """Measure a student in a fresh process, on `MOST_TEXTS` of the texts at most, evenly spread.

    Raises: MeasuringFailed: the process ended badly; the message holds its last line.
    """
    chosen = texts[:: max(1, -(-len(texts) // MOST_TEXTS))]
    options = [str(bundle), "--backend", backend, "--precision", precision]
    found = subprocess.run(
        [sys.executable, "-m", "models.evaluate.footprint", *options],
        input=json.dumps(list(chosen)),
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if found.returncode != 0:
        said = found.stderr.strip().splitlines() or [f"exit status {found.returncode}"]
        raise MeasuringFailed(f"measuring the memory of {bundle.name}: {said[-1]}")
    return Memory(**json.loads(found.stdout))


def measure_here(bundle: Path, texts: Sequence[Text], *, backend: str, precision: str) -> Memory:
    """Load and run a student in this process; only the first time in a process tells anything."""
    backend_for(backend)  # imports its library
    gc.collect()
    before = resident_bytes()
    student = Student(load_bundle(bundle), backend=backend, precision=precision)
    encoded = student.encoder.encode(texts)
    policy = never(student.manifest)
    for size in (BATCH_ITEMS, 1):
        for batch in batches_by_length(encoded, size):
            student.run([encoded[place] for place in batch], policy)
    gc.collect()
    return Memory(before, resident_bytes())


def served_bytes(manifest: Manifest) -> int:
    """Every file of the bundle but its report card, which a draft does not have yet."""
    return sum(entry.bytes for name, entry in manifest.files.items() if not name.startswith(_CARD))


def parameters_of(bundle: Bundle, precision: str) -> int:
    """Elements of the graphs' weights: every initializer with more than one element.

    Of int8 graphs the scales and zero points of channels would count too, so the fp32 graphs are counted where the
    bundle has them.
    """
    import onnx  # subtle: not at the top, for the measuring process must stay as small as the service

    precisions = bundle.manifest.precisions
    graphs = precisions.get("fp32", precisions[precision]).files.values()
    tensors = (tensor for graph in graphs for tensor in onnx.load(bundle.path / graph).graph.initializer)
    return sum(count for tensor in tensors if (count := prod(tensor.dims)) > 1)


def main(arguments: Sequence[str] | None = None) -> None:
    """The measuring process: texts as JSON on standard input, `Memory` as JSON on standard output."""
    parser = argparse.ArgumentParser(description="Measure what a student adds to this process's memory.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--backend", required=True)
    parser.add_argument("--precision", required=True)
    given = parser.parse_args(arguments)
    texts = [tuple(text) if isinstance(text, list) else text for text in json.load(sys.stdin)]
    found = measure_here(given.bundle, texts, backend=given.backend, precision=given.precision)
    sys.stdout.write(json.dumps(asdict(found)) + "\n")


if __name__ == "__main__":
    main()
