"""golden.json: a few inputs with the outputs that every backend must reproduce."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from service.bundle.manifest import Manifest, is_newer_minor
from service.bundle.strict_json import read_object, validated
from service.errors import FormatTooNew, ManifestInvalid

GOLDEN_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class GoldenSample:
    """One golden input and what it gave, alone and to full depth.

    `input_ids` are its ids with special tokens, truncated to the student's limit; of a pair whose texts are read apart,
    the first one's and then the second one's. `outputs` holds, per precision and
    exit id, the raw output of that exit: logits [C] before the temperature, score [1] or embedding [D].
    """

    text: str
    text_pair: str | None
    input_ids: tuple[int, ...]
    outputs: dict[str, dict[str, tuple[float, ...]]]


@dataclass(frozen=True, slots=True)
class Golden:
    """The golden samples of a bundle, at least one."""

    samples: tuple[GoldenSample, ...]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class GoldenSampleDocument(_Part):
    """One entry of `samples` as it stands in the file."""

    text: str
    text_pair: str | None = None
    input_ids: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    outputs: dict[str, dict[str, tuple[float, ...]]]


class GoldenDocument(_Part):
    """The file as it stands."""

    schema_version: Annotated[int, Field(alias="schema")]
    samples: Annotated[tuple[GoldenSampleDocument, ...], Field(min_length=1)]


def parse_golden(raw: bytes, *, manifest: Manifest) -> Golden:
    """Read the golden file of a bundle.

    Args:
        raw: the file's bytes, UTF-8 JSON.
        manifest: the manifest of the same bundle; every precision and exit of it must have its outputs.
    Raises:
        ManifestInvalid: the file breaks its schema or contradicts the manifest; the message names it.
        FormatTooNew: its `schema` is newer than this reader.
    """
    try:
        document = read_object(raw)
        _refuse_newer(document, manifest.golden)
        golden = validated(GoldenDocument, document, ignore_unknown=is_newer_minor(manifest))
        for i, sample in enumerate(golden.samples):
            _fits(sample, manifest, f"/samples/{i}")
    except ValueError as error:
        raise ManifestInvalid(f"{manifest.golden}: {error}") from error
    return Golden(tuple(GoldenSample(s.text, s.text_pair, s.input_ids, s.outputs) for s in golden.samples))


def _refuse_newer(document: dict[str, Any], file: str) -> None:
    schema = document.get("schema")
    if not isinstance(schema, int) or schema < GOLDEN_SCHEMA:
        raise ValueError(f"/schema: must be {GOLDEN_SCHEMA}")
    if schema > GOLDEN_SCHEMA:
        raise FormatTooNew(f"{file}: /schema: {schema} cannot be read by a reader of {GOLDEN_SCHEMA}")


def _fits(sample: GoldenSampleDocument, manifest: Manifest, where: str) -> None:
    most = 2 * manifest.max_tokens if manifest.apart else manifest.max_tokens
    if len(sample.input_ids) > most:
        raise ValueError(f"{where}/input_ids: {len(sample.input_ids)} ids, over max_tokens {manifest.max_tokens}")
    if sample.text_pair is None and manifest.apart:
        raise ValueError(f"{where}/text_pair: missing; this student joins two texts")
    if sample.text_pair is not None and manifest.pairs == "none":
        raise ValueError(f"{where}/text_pair: this student takes no pairs")
    _same_keys(sample.outputs, manifest.precisions, f"{where}/outputs", "precision")
    sizes = {leave.id: _output_size(manifest, leave.stage, leave.output) for leave in manifest.exits}
    for precision, exits in sample.outputs.items():
        _same_keys(exits, sizes, f"{where}/outputs/{precision}", "exit")
        for exit_id, values in exits.items():
            if len(values) != sizes[exit_id]:
                raise ValueError(f"{where}/outputs/{precision}/{exit_id}: {len(values)} values, not {sizes[exit_id]}")


def _same_keys(found: dict[str, Any], wanted: dict[str, Any], where: str, kind: str) -> None:
    for key in sorted(set(found) ^ set(wanted)):
        raise ValueError(f"{where}: {'no' if key in wanted else 'unknown'} {kind} {key!r}")


def _output_size(manifest: Manifest, stage: str, output: str) -> int:
    """How many numbers an item gets there: C, D, or 1 for a score."""
    dims = manifest.stage(stage).outputs[output].dims
    return int(dims[1]) if len(dims) > 1 else 1
