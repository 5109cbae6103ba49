"""What scales that are taken anew for every batch do to answers: the same text alone and in company, by cosine.

`python -m models.evaluate.company_command STUDENT DATA` quantises the student's fp32 graphs dynamically, as the usual
recipe for a processor has it (one scale for each activation and batch), and puts them beside the shipped precisions,
whose scales are constants. It works for every task, since it looks at raw outputs only. N rows, D output numbers.
"""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import typer
from onnxruntime.quantization import QuantType, quantize_dynamic

from models.data.read import read_rows
from models.data.rows import text_of
from models.errors import DataInvalid
from models.evaluate.exits import Floats
from models.evaluate.opening import one_line_errors, open_bundle, write_json
from models.evaluate.tables import markdown
from models.evaluate.variants import require_backends
from models.recipe.parts import FIRST_BACKEND
from service.bundle.load import Bundle, Golden
from service.bundle.manifest import Precision
from service.runtime.encode import Encoded
from service.runtime.student import Student

BATCH_ITEMS: Final = 32
_FP32: Final = "fp32"
_DYNAMIC: Final = "int8"


@dataclass(frozen=True, slots=True)
class Likeness:
    """Each text's full-depth output alone against the same in batches of `batch_items` mixed texts.

    lowest, mean: cosine. below: share of texts below 0.999. flips: texts whose largest output is another one.
    """

    graphs: str
    rows: int
    batch_items: int
    lowest: float
    mean: float
    below: float
    flips: int


def likeness(student: Student, encoded: Sequence[Encoded], *, graphs: str, seed: int = 0) -> Likeness:
    """Run every text alone and in mixed batches.

    Args:
        graphs: what to call them.
        seed: shuffles the texts, so that batches mix lengths.
    """
    alone = np.concatenate([_full_depth(student, [item]) for item in encoded])
    order = np.random.default_rng(seed).permutation(len(encoded))
    batches = [order[at : at + BATCH_ITEMS] for at in range(0, len(order), BATCH_ITEMS)]
    company = np.empty_like(alone)
    for batch in batches:
        company[batch] = _full_depth(student, [encoded[i] for i in batch])
    same = _cosines(alone, company)
    return Likeness(
        graphs=graphs,
        rows=len(encoded),
        batch_items=BATCH_ITEMS,
        lowest=float(same.min()),
        mean=float(same.mean()),
        below=float((same < 0.999).mean()),
        flips=int((alone.argmax(axis=1) != company.argmax(axis=1)).sum()),
    )


def _full_depth(student: Student, batch: Sequence[Encoded]) -> Floats:
    """float64 [B, D]: the last exit's raw outputs."""
    return np.asarray(student.all_exits(batch)[-1], dtype=np.float64).reshape(len(batch), -1)


def _cosines(first: Floats, second: Floats) -> Floats:
    sizes = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return np.asarray((first * second).sum(axis=1) / np.maximum(sizes, 1e-12))


def dynamic_twin(bundle: Bundle, folder: Path) -> Bundle:
    """The same student with one precision, "int8": its fp32 graphs quantised with scales taken anew for each batch.

    Args:
        folder: where the graphs are written; it must live as long as the twin is to be loaded.
    Raises: DataInvalid: the student has no fp32 graphs.
    """
    manifest = bundle.manifest
    if _FP32 not in manifest.precisions:
        raise DataInvalid(f"student {manifest.name}: it has no fp32 graphs to quantise")
    files = {stage.id: f"{stage.id}.onnx" for stage in manifest.stages}
    for stage_id, file in files.items():
        quantize_dynamic(bundle.graph_path(_FP32, stage_id), folder / file, weight_type=QuantType.QInt8)
    shutil.copyfile(bundle.tokenizer_path, folder / manifest.tokenizer.file)
    changed = {
        "precisions": {_DYNAMIC: Precision(files=files, golden_atol=1.0)},
        "default_precision": _DYNAMIC,
        "certificates": (),
    }
    return Bundle(folder, manifest.model_copy(update=changed), Golden(()))


def table(found: Sequence[Likeness]) -> str:
    """One line for each kind of graphs."""
    head = ["graphs", "texts", "lowest cosine", "mean cosine", "below 0.999", "another largest output"]
    rows = [
        [f.graphs, f"{f.rows:,}", f"{f.lowest:.6f}", f"{f.mean:.6f}", f"{f.below:.1%}", str(f.flips)] for f in found
    ]
    return markdown(head, rows)


def command(
    student: Annotated[str, typer.Argument(help="NAME, NAME@VERSION, NAME@ALIAS, or a bundle's folder.")],
    data: Annotated[Path, typer.Argument(help="Rows: JSONL, CSV or Parquet; only their texts are used.")],
    store: Annotated[Path, typer.Option(envvar="UNDERSTUDY_STORE")] = Path("models/store"),
    backend: Annotated[str, typer.Option(help="The backend to run on.")] = FIRST_BACKEND,
    most_rows: Annotated[int, typer.Option(min=1, help="Every k-th row is run, about so many.")] = 1_000,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
) -> None:
    """Show what dynamic int8 scales do to answers in company, beside every shipped precision."""
    with one_line_errors(), tempfile.TemporaryDirectory() as scratch:
        require_backends([backend], where="--backend")
        bundle = open_bundle(student, store=store)
        texts = [text_of(row) for row in read_rows(data, task="classify", labels="optional")]
        chosen = texts[:: max(1, len(texts) // most_rows)]
        sides = {name: Student(bundle, backend=backend, precision=name) for name in sorted(bundle.manifest.precisions)}
        sides["int8, dynamic scales"] = Student(dynamic_twin(bundle, Path(scratch)), backend=backend)
        encoded = sides["int8, dynamic scales"].encoder.encode(chosen)
        found = [likeness(side, encoded, graphs=name) for name, side in sides.items()]
        typer.echo(f"{bundle.manifest.name} on {backend}: each text alone and in a mixed batch of {BATCH_ITEMS}\n")
        typer.echo(table(found))
        write_json(json_out, [asdict(each) for each in found])


if __name__ == "__main__":
    typer.run(command)
