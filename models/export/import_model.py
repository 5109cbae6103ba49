"""An imported model becomes a bundle: one stage, one exit, fp32 and, with rows to calibrate on, int8.

B items, T tokens, N rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt
import onnx

from models.compress.int8 import Int8Settings
from models.compress.pipeline import final_outputs, quantise_stages
from models.compress.receipt import Receipt, make_receipt
from models.compress.smoothing import capped, evened
from models.compress.token_table import quantise_token_table
from models.export.bundle import BundleParts, write_draft
from models.export.families import ImportRefused
from models.export.golden_texts import golden_texts
from models.export.provenance import make_provenance
from models.export.sources import Imported
from models.export.stages import ExportedStage, export_stages
from service.bundle.load import Bundle
from service.bundle.manifest import DataSource, Exit, Task
from service.errors import BundleError
from service.runtime.encode import Encoder, Text, pad

INT8: Final = Int8Settings(
    percentile=99.999,
    smoothings=(*map(evened, (0.6, 0.7, 0.8, 0.9)), *map(capped, (1.0, 1.5, 2.0, 3.0))),
    sample_values=6_000_000,
)
"""Wide models hold a few large channels; part of them moves into the weights, how much is measured for each input."""

CALIBRATION_ROWS: Final = 512
_BATCH_ITEMS: Final = 16
Feeds = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Calibration:
    """Rows for the static scales, and where they come from."""

    texts: tuple[Text, ...]
    sources: tuple[DataSource, ...]


@dataclass(frozen=True, slots=True)
class ImportReport:
    """The staged bundle and, where int8 was made, how near it came on rows that its scales were not made on."""

    bundle: Bundle
    fidelity: Receipt | None


def import_model(
    imported: Imported, *, name: str, task: Task, work: Path, calibration: Calibration | None
) -> ImportReport:
    """Export, compress and stage a model.

    Args:
        imported: a loaded model.
        name: of the new student.
        task: what it is for.
        work: an empty folder for this; the bundle is staged in it.
        calibration: rows for int8; None: fp32 only, since static scales need rows.
    Raises:
        ImportRefused: what was exported does not make a valid bundle.
        ParityFailed: the graph does not compute what torch does.
    """
    exported = export_stages([imported.stage], work / "graphs")[0]
    graphs = {"fp32": {exported.stage.id: exported.path}}
    fidelity = None
    if calibration is not None:
        int8 = exported.path.with_name(f"{exported.stage.id}.int8.onnx")
        fidelity = _quantise(imported, exported, int8, calibration.texts)
        graphs["int8"] = {exported.stage.id: int8}
    parts = _parts(imported, exported, graphs, name=name, task=task, calibration=calibration, fidelity=fidelity)
    try:
        return ImportReport(write_draft(work / "bundle", parts), fidelity)
    except (BundleError, ValueError) as error:
        raise ImportRefused(f"{imported.source}: {' '.join(str(error).split())[:300]}") from error


def _parts(
    imported: Imported,
    exported: ExportedStage,
    graphs: Mapping[str, Mapping[str, Path]],
    *,
    name: str,
    task: Task,
    calibration: Calibration | None,
    fidelity: Receipt | None,
) -> BundleParts:
    output = imported.stage.output_names[0]
    return BundleParts(
        name=name,
        task=task,
        labels=imported.labels,
        max_tokens=imported.max_tokens,
        tokenizer_json=imported.tokenizer_json,
        pad_id=imported.pad_id,
        pairs="joint" if imported.pairs else "separate" if task == "rank" else "none",
        space_id=f"{name}-{imported.weights_sha256[:16]}" if task == "embed" else None,
        embedding_dimensions=int(exported.stage.outputs[output].dims[1]) if output == "embedding" else None,
        stages=(exported.stage,),
        exits=(Exit.model_validate({"id": "full", "stage": exported.stage.id, "output": output, "depth": 1.0}),),
        graphs=graphs,
        default_precision="int8" if "int8" in graphs else "fp32",
        golden_texts=golden_texts(pairs=imported.pairs),
        provenance=make_provenance(
            "import",
            teacher=f"{imported.source}, weights sha256 {imported.weights_sha256}",
            data=() if calibration is None else calibration.sources,
            notes=(*imported.notes, *(() if fidelity is None else (fidelity.line(),))),
        ),
    )


def _quantise(imported: Imported, exported: ExportedStage, int8: Path, texts: Sequence[Text]) -> Receipt:
    """Write the int8 graph from even rows, and measure it on odd ones."""
    batches = _batches(imported, texts[::2])
    unseen = _batches(imported, texts[1::2]) or batches
    table = exported.path.with_name("table.onnx")
    onnx.save(quantise_token_table(onnx.load(exported.path)), table)
    stage_id = exported.stage.id
    quantise_stages([exported.stage], fp32={stage_id: table}, int8={stage_id: int8}, batches=batches, settings=INT8)
    return make_receipt(
        f"int8, scales from {len(texts[::2])} rows",
        before=[exported.path],
        after=[int8],
        outputs_before=final_outputs([exported.stage], {stage_id: exported.path}, unseen),
        outputs_after=final_outputs([exported.stage], {stage_id: int8}, unseen),
        labels=bool(imported.labels),
    )


def _batches(imported: Imported, texts: Sequence[Text]) -> list[Feeds]:
    encoder = Encoder(imported.tokenizer_json, max_tokens=imported.max_tokens, pad_id=imported.pad_id)
    encoded = sorted(encoder.encode(texts), key=lambda item: item.kept)
    cuts = range(0, len(encoded), _BATCH_ITEMS)
    return [pad(encoded[cut : cut + _BATCH_ITEMS], pad_id=imported.pad_id) for cut in cuts]


def spread(texts: Sequence[Text], rows: int) -> tuple[Text, ...]:
    """At most `rows` of the texts, evenly from first to last."""
    stride = max(1, len(texts) / rows)
    return tuple(texts[int(i * stride)] for i in range(min(rows, len(texts))))
