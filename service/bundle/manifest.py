"""The manifest: everything the service needs to know about one version of a student.

`docs/bundle.md` is the specification of the format; this module is its reference reader. A manifest of a
known minor version is read strictly (an unknown field is an error); what a newer minor adds is ignored; a
newer major, or an entry of `requires` that is not known, is refused.
"""

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from service.bundle import consistency
from service.bundle.sources import JOINED, is_sided
from service.bundle.strict_json import read_object, validated
from service.errors import FormatTooNew, ManifestInvalid

FORMAT_MAJOR = 1
FORMAT_MINOR = 1
KNOWN_REQUIREMENTS: frozenset[str] = frozenset({JOINED})

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
FORMAT = re.compile(r"(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})")

Task = Literal["classify", "rank", "embed"]
Scope = Literal["item", "query", "passage", "pair"]
Confidence = Literal["max_probability", "margin", "entropy"]

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0, le=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FileEntry(_Part):
    """One file of the bundle, by its path relative to the bundle's folder."""

    sha256: Sha256
    bytes: Annotated[int, Field(ge=0)]


class Tokenizer(_Part):
    """How texts become ids: a Hugging Face `tokenizer.json` without padding or truncation of its own."""

    file: str = "tokenizer.json"
    pad_id: Annotated[int, Field(ge=0)] = 0


class Tensor(_Part):
    """One tensor of a stage. A symbolic dim is "B" (items) or "T" (tokens)."""

    dtype: Literal["float32", "int64", "int8"]
    dims: tuple[str | int, ...]


class Stage(_Part):
    """One graph of the pipeline.

    `inputs` maps the graph's tensor names to sources: a token input (`input_ids`, `attention_mask`,
    `token_type_ids`: int64 [B, T]) or `STAGE.OUTPUT` of an earlier stage. `outputs` names what it writes:
    `hidden` float32 [B, T, H] for later stages, and at an exit `logits` [B, C], `score` [B] or `embedding` [B, D].
    Where the texts of a pair are read apart, the stages of scope `item` run on each by itself; those of scope `pair`
    join them, and their sources name the text: `first:00.state`, `second:attention_mask`. `cacheable`: what it writes
    depends on one text alone.
    """

    id: Name
    scope: Scope = "item"
    inputs: dict[str, str]
    outputs: dict[str, Tensor]
    cacheable: bool = False


class Exit(_Part):
    """A point of the pipeline where an item may be answered.

    `depth` is the share of the full student's compute used when leaving here (the last exit has 1.0).
    `temperature` divides this exit's logits before the softmax, for the confidence that decides who leaves, and for
    the scores of answers too unless `score_temperature` (since 1.1; logits alone) divides those.
    """

    id: Name
    stage: Name
    output: Literal["logits", "score", "embedding"]
    depth: Share
    temperature: Annotated[float, Field(gt=0)] = 1.0
    score_temperature: Annotated[float, Field(gt=0)] | None = None

    @property
    def answer_temperature(self) -> float:
        """What divides the logits, or the score, for the numbers that are shown."""
        return self.temperature if self.score_temperature is None else self.score_temperature

    @model_serializer(mode="wrap")
    def _without_unused(self, plainly: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = plainly(self)
        # subtle: a strict reader of 1.0 refuses the key, whatever its value
        return {key: value for key, value in found.items() if key != "score_temperature" or value is not None}


class Precision(_Part):
    """One set of graphs, and how near to the golden outputs a backend must come with it."""

    files: dict[str, str]
    golden_atol: Annotated[float, Field(gt=0)]


class OperatingPoint(_Part):
    """One certified setting of the exits.

    `thresholds` has one value per exit but the last, in pipeline order: an item leaves at the first exit whose
    confidence is >= its threshold; `null` means nobody leaves there. `rows` and `errors` are those of split B.
    `exit_shares` and `mean_depth` describe split B, the last share being full depth.
    """

    risk: Annotated[float, Field(gt=0, lt=1)]
    thresholds: tuple[float | None, ...]
    rows: Annotated[int, Field(ge=1)]
    errors: Annotated[int, Field(ge=0)]
    p_value: Share
    exit_shares: tuple[Share, ...]
    mean_depth: Share


class Certificate(_Part):
    """The operating points that hold on one backend and precision (Learn-then-Test, exact binomial).

    With probability >= 1 - `delta` over the draw of the calibration rows, for all `points` at once, at most a
    share `risk` of inputs from `population` get a label other than the `reference`'s. An average over that
    population: not per input, class or tenant; not about correctness, scores or drift.
    """

    backend: str
    precision: str
    confidence: Confidence
    delta: Annotated[float, Field(gt=0, lt=1)]
    population: str
    population_digest: Sha256
    reference: str
    input_policy: str
    points: tuple[OperatingPoint, ...]


class ExitShares(_Part):
    """What one exit setting gave on the test split. `risk` null means full depth."""

    risk: float | None
    exit_shares: tuple[Share, ...]
    mean_depth: Share
    metrics: dict[str, float]


class Quality(_Part):
    """Measured quality: per precision, what each offered setting reached on the named split."""

    split: str
    rows: Annotated[int, Field(ge=0)]
    teacher: dict[str, float] = {}
    by_precision: dict[str, tuple[ExitShares, ...]] = {}


class DataSource(_Part):
    """One data set that went into the student: where from, its digest, its licence as stated."""

    role: str
    name: str
    sha256: Sha256
    rows: Annotated[int, Field(ge=0)]
    licence: str = "not stated"


class Provenance(_Part):
    """Where the student comes from; enough to make it again."""

    made_by: Literal["refresh", "import", "test"]
    created: str
    teacher: str = ""
    recipe_sha256: Sha256 | None = None
    recipe: dict[str, Any] = {}
    data: tuple[DataSource, ...] = ()
    libraries: dict[str, str] = {}
    machine: str = ""
    notes: tuple[str, ...] = ()


class Manifest(_Part):
    """manifest.json, verified against itself. See `docs/bundle.md` for every field."""

    format: Annotated[str, Field(pattern=rf"^{FORMAT.pattern}$")] = f"{FORMAT_MAJOR}.0"
    requires: tuple[str, ...] = ()
    name: Name
    task: Task
    labels: tuple[str, ...] = ()
    max_tokens: Annotated[int, Field(ge=3, le=8192)]
    pairs: Literal["none", "joint", "separate"] = "none"
    space_id: str | None = None
    embedding_dimensions: Annotated[int, Field(ge=1)] | None = None
    tokenizer: Tokenizer = Tokenizer()
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    exits: Annotated[tuple[Exit, ...], Field(min_length=1)]
    precisions: Annotated[dict[str, Precision], Field(min_length=1)]
    default_precision: str
    default_risk: Annotated[float, Field(gt=0, lt=1)] | None = None
    certificates: tuple[Certificate, ...] = ()
    golden: str = "golden.json"
    files: dict[str, FileEntry]
    quality: Quality | None = None
    provenance: Provenance

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        consistency.check(self)
        return self

    def stage(self, stage_id: str) -> Stage:
        """The stage of that id. Raises: KeyError: there is none."""
        for stage in self.stages:
            if stage.id == stage_id:
                return stage
        raise KeyError(stage_id)

    @cached_property
    def apart(self) -> int:
        """How many stages, the first ones, read each text of a pair by itself; 0 where nothing joins them after."""
        joined = (place for place, stage in enumerate(self.stages) if is_sided(stage.inputs.values()))
        return next(joined, 0)

    def certificate(self, *, backend: str, precision: str) -> Certificate | None:
        """The certificate for a backend and precision, or None: then exits are off."""
        found = (c for c in self.certificates if c.backend == backend and c.precision == precision)
        return next(found, None)


def parse_manifest(raw: bytes) -> Manifest:
    """Read manifest.json.

    Args:
        raw: the file's bytes, UTF-8 JSON.
    Raises:
        ManifestInvalid: not JSON, or a field is missing, unknown, wrong or contradicts another.
        FormatTooNew: a newer major, or a requirement this reader does not know.
    """
    try:
        document = read_object(raw)
        newer = _minor(document) > FORMAT_MINOR
        return validated(Manifest, document, ignore_unknown=newer)
    except ValueError as error:
        raise ManifestInvalid(f"manifest.json: {error}") from error


def least_format(exits: Sequence[Exit]) -> str:
    """The oldest version of the format that has all that a manifest with these exits uses, for its `format`."""
    return f"{FORMAT_MAJOR}.{int(any(leave.score_temperature is not None for leave in exits))}"


def is_newer_minor(manifest: Manifest) -> bool:
    """Whether the manifest was written by a newer minor version, whose additions are ignored."""
    return int(manifest.format.partition(".")[2]) > FORMAT_MINOR


def _minor(document: dict[str, Any]) -> int:
    """The minor version of a document of a known major version with no unknown requirement."""
    written = document.get("format")
    if not isinstance(written, str) or not FORMAT.fullmatch(written):
        raise ValueError(f"/format: {written!r} is not MAJOR.MINOR")
    major, minor = (int(part) for part in written.split("."))
    if major != FORMAT_MAJOR:
        known = f"{FORMAT_MAJOR}.{FORMAT_MINOR}"
        raise FormatTooNew(f"manifest.json: /format: {written} cannot be read by a reader of {known}")
    requires = document.get("requires", [])
    unknown = sorted({str(r) for r in requires} - KNOWN_REQUIREMENTS) if isinstance(requires, list) else []
    if unknown:
        raise FormatTooNew(f"manifest.json: /requires: {', '.join(unknown)} not known to this reader")
    return minor


def dump_manifest(manifest: Manifest) -> bytes:
    """The manifest as indented UTF-8 JSON with a final newline, the form that is published."""
    return (manifest.model_dump_json(indent=1) + "\n").encode()
