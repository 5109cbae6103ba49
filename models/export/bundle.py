"""Graphs, tokenizer and numbers become a bundle: first a draft that runs, then the finished version.

A draft is a complete bundle without certificates, quality or card. Calibration and evaluation run on it through
`service.runtime.student.Student`, so that a certificate is made on the numbers that will be served; `finalise` then
adds what they found. Neither is visible to a service until `Store.publish` takes the directory.
"""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from models.errors import ParityFailed
from models.export.golden_texts import GOLDEN_TEXTS
from service.bundle.golden import GOLDEN_SCHEMA
from service.bundle.load import MANIFEST, Bundle, Golden, file_entry, load_bundle
from service.bundle.manifest import (
    Certificate,
    Exit,
    FileEntry,
    Manifest,
    Precision,
    Provenance,
    Quality,
    Stage,
    Task,
    Tokenizer,
    dump_manifest,
    least_format,
)
from service.runtime.encode import Encoder, Text
from service.runtime.student import Student

GOLDEN_SHARE: Final[Mapping[str, float]] = {"fp32": 1e-3, "int8": 0.1}
"""How far another processor or backend may be from the golden outputs, as a share of their root mean square.

At int8 a value that lies on the border of two levels may go the other way where sums round otherwise: on a 4x128
student such a flip moved a logit by up to 4% of the root mean square. On one processor nothing moves."""

EMBEDDING_SHARE: Final = 0.25
"""The same for an int8 embedding, where one number of hundreds may be far off while the direction holds: OpenVINO's
MiniLM was off by up to 18% in one number, at a cosine to float32 as good as ONNX Runtime's."""

_GOLDEN: Final = "golden.json"
_PENDING: Final = FileEntry(sha256="0" * 64, bytes=0)


@dataclass(frozen=True, slots=True)
class BundleParts:
    """Everything a draft is made of.

    Attributes:
        name, task, labels, max_tokens, pairs, requires, space_id, embedding_dimensions: as in the manifest.
        tokenizer_json: a Hugging Face tokenizer; its own padding and truncation are taken out.
        pad_id: the id that fills short rows.
        stages, exits: as in the manifest.
        graphs: by precision, one ONNX file for each stage id; they are copied.
        default_precision: which of them is served unless asked otherwise.
        provenance: as in the manifest.
        golden_texts: one golden sample each.
        golden_atol: tolerance of the golden outputs by precision, where it is not `GOLDEN_SHARE`'s.
    """

    name: str
    task: Task
    max_tokens: int
    tokenizer_json: bytes
    stages: tuple[Stage, ...]
    exits: tuple[Exit, ...]
    graphs: Mapping[str, Mapping[str, Path]]
    default_precision: str
    provenance: Provenance
    labels: tuple[str, ...] = ()
    pad_id: int = 0
    pairs: Literal["none", "joint", "separate"] = "none"
    requires: tuple[str, ...] = ()
    space_id: str | None = None
    embedding_dimensions: int | None = None
    golden_texts: Sequence[Text] = GOLDEN_TEXTS
    golden_atol: Mapping[str, float] = field(default_factory=dict)


def write_draft(directory: Path, parts: BundleParts) -> Bundle:
    """Write a complete, verified bundle without certificates, quality or card.

    Args:
        directory: new or empty; it becomes the bundle.
        parts: what goes in.
    Raises:
        FileExistsError: the directory holds something.
        ParityFailed: a golden output is not finite.
        BundleError: the parts do not make a valid bundle; the message says which file or field.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise FileExistsError(f"{directory} is not empty")
    (directory / "stages").mkdir()
    (directory / "tokenizer.json").write_bytes(plain_tokenizer(parts.tokenizer_json))
    for precision, graphs in parts.graphs.items():
        for stage in parts.stages:
            shutil.copyfile(graphs[stage.id], directory / graph_file(precision, stage.id))
    manifest = _manifest(directory, parts)
    golden = _golden(directory, manifest, parts.golden_texts)
    manifest = manifest.model_copy(update={"precisions": _tolerances(manifest, golden, parts.golden_atol)})
    (directory / _GOLDEN).write_text(json.dumps(golden, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return _write_manifest(directory, manifest, [_GOLDEN])


def finalise(
    draft: Path,
    *,
    certificates: Sequence[Certificate] = (),
    quality: Quality | None = None,
    temperatures: Mapping[str, float] | None = None,
    score_temperatures: Mapping[str, float | None] | None = None,
    default_risk: float | None = None,
    card_dir: Path | None = None,
    provenance: Provenance | None = None,
) -> Bundle:
    """Add to a draft what was found by running it. May be repeated; what is given replaces what was there.

    Args:
        draft: a directory that `write_draft` made.
        certificates: the operating points, per backend and precision.
        quality: measured quality.
        temperatures, score_temperatures: by exit id; exits that are not named keep theirs.
        default_risk: the risk that a request without a wish gets; None: full depth.
        card_dir: a folder with `card.md` and pictures under `card/`; every file in it is copied.
        provenance: replaces the draft's.
    Raises:
        ValueError: a temperature names no exit.
        BundleError: the result is not a valid bundle, or a graph no longer gives the golden outputs.
    """
    manifest = load_bundle(draft).manifest
    divided, shown = dict(temperatures or {}), dict(score_temperatures or {})
    unknown = sorted({*divided, *shown} - {leave.id for leave in manifest.exits})
    if unknown:
        raise ValueError(f"no exit {unknown[0]!r} to give a temperature")
    exits = tuple(
        leave.model_copy(
            update={
                "temperature": divided.get(leave.id, leave.temperature),
                "score_temperature": shown.get(leave.id, leave.score_temperature),
            }
        )
        for leave in manifest.exits
    )
    changes: dict[str, Any] = {
        "format": least_format(exits),
        "exits": exits,
        "certificates": tuple(certificates),
        "quality": quality,
        "default_risk": default_risk,
        "provenance": provenance or manifest.provenance,
    }
    added = _copy_card(draft, card_dir) if card_dir is not None else []
    return _write_manifest(draft, manifest.model_copy(update=changes), added)


def check_golden(bundle: Bundle) -> None:
    """Reproduce the golden outputs in every precision. Raises: GraphMismatch, GoldenMismatch."""
    for precision in bundle.manifest.precisions:
        Student(bundle, precision=precision).check_golden()


def graph_file(precision: str, stage_id: str) -> str:
    """The path of a stage's graph inside a bundle."""
    return f"stages/{stage_id}.{precision}.onnx"


def plain_tokenizer(tokenizer_json: bytes) -> bytes:
    """The tokenizer without padding and truncation of its own; ids must depend on the text alone."""
    document = json.loads(tokenizer_json)
    document["padding"], document["truncation"] = None, None
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def _manifest(directory: Path, parts: BundleParts) -> Manifest:
    files = {
        "tokenizer.json": file_entry(directory / "tokenizer.json"),
        _GOLDEN: _PENDING,
        **{
            graph_file(precision, stage.id): file_entry(directory / graph_file(precision, stage.id))
            for precision in parts.graphs
            for stage in parts.stages
        },
    }
    precisions = {
        precision: Precision(
            files={stage.id: graph_file(precision, stage.id) for stage in parts.stages}, golden_atol=1.0
        )
        for precision in parts.graphs
    }
    return Manifest(
        name=parts.name,
        task=parts.task,
        labels=parts.labels,
        max_tokens=parts.max_tokens,
        pairs=parts.pairs,
        requires=parts.requires,
        space_id=parts.space_id,
        embedding_dimensions=parts.embedding_dimensions,
        tokenizer=Tokenizer(pad_id=parts.pad_id),
        stages=parts.stages,
        exits=parts.exits,
        precisions=precisions,
        default_precision=parts.default_precision,
        golden=_GOLDEN,
        files=files,
        provenance=parts.provenance,
    )


def _golden(directory: Path, manifest: Manifest, texts: Sequence[Text]) -> dict[str, Any]:
    """The golden document: each text alone, to full depth, in every precision."""
    bundle = Bundle(directory, manifest, Golden(()))
    students = {precision: Student(bundle, precision=precision) for precision in manifest.precisions}
    encoder = next(iter(students.values())).encoder
    samples = [
        {
            "text": text if isinstance(text, str) else text[0],
            "text_pair": None if isinstance(text, str) else text[1],
            "input_ids": encoder.encode([text])[0].input_ids.tolist(),
            "outputs": {precision: _outputs(student, encoder, text) for precision, student in students.items()},
        }
        for text in texts
    ]
    return {"schema": GOLDEN_SCHEMA, "samples": samples}


def _outputs(student: Student, encoder: Encoder, text: Text) -> dict[str, list[float]]:
    raws = student.all_exits(encoder.encode([text]))
    outputs = {
        leave.id: [float(value) for value in raw.reshape(-1)]
        for leave, raw in zip(student.manifest.exits, raws, strict=True)
    }
    for exit_id, values in outputs.items():
        if not all(abs(value) < float("inf") for value in values):
            raise ParityFailed(f"{student.precision}: exit {exit_id!r} gives numbers that are not finite for {text!r}")
    return outputs


def _tolerances(manifest: Manifest, golden: dict[str, Any], given: Mapping[str, float]) -> dict[str, Precision]:
    """The precisions with their golden tolerance: what was given, or a share of the golden outputs' size."""
    found: dict[str, Precision] = {}
    for name, precision in manifest.precisions.items():
        values = [v for sample in golden["samples"] for exits in sample["outputs"][name].values() for v in exits]
        size = max(math.sqrt(sum(value * value for value in values) / len(values)), 1e-6)
        atol = given.get(name, _share(manifest, name) * size)
        found[name] = precision.model_copy(update={"golden_atol": float(f"{atol:.3g}")})
    return found


def _share(manifest: Manifest, precision: str) -> float:
    embeds = any(leave.output == "embedding" for leave in manifest.exits)
    return EMBEDDING_SHARE if embeds and precision != "fp32" else GOLDEN_SHARE.get(precision, GOLDEN_SHARE["int8"])


def _copy_card(draft: Path, card_dir: Path) -> list[str]:
    added = []
    for source in sorted(path for path in card_dir.rglob("*") if path.is_file()):
        file = source.relative_to(card_dir).as_posix()
        (draft / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, draft / file)
        added.append(file)
    return added


def _write_manifest(directory: Path, manifest: Manifest, changed: Sequence[str]) -> Bundle:
    """Write manifest.json with fresh entries for `changed`, then read the bundle back and prove it."""
    files = dict(manifest.files) | {file: file_entry(directory / file) for file in changed}
    (directory / MANIFEST).write_bytes(dump_manifest(manifest.model_copy(update={"files": files})))
    bundle = load_bundle(directory)
    check_golden(bundle)
    return bundle
