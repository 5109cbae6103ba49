"""The manifest: everything the service needs to know about one version of a student.

`docs/bundle.md` is the specification of the format; this module is its reference reader. A manifest of a
known minor version is read strictly (an unknown field is an error); what a newer minor adds is ignored; a
newer major, or an entry of `requires` that is not known, is refused.
"""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.bundle.strict_json import read_object, validated
from service.errors import FormatTooNew, ManifestInvalid

FORMAT_MAJOR = 1
FORMAT_MINOR = 0
KNOWN_REQUIREMENTS: frozenset[str] = frozenset()

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
FORMAT = re.compile(r"(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})")
PLAIN_PATH = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.-]{0,127}/){0,7}[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")

Task = Literal["classify", "rank", "embed"]
Scope = Literal["item", "query", "passage", "pair"]
Confidence = Literal["max_probability", "margin", "entropy"]
TOKEN_INPUTS = ("input_ids", "attention_mask", "token_type_ids")

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

    dtype: Literal["float32", "int64"]
    dims: tuple[str | int, ...]


class Stage(_Part):
    """One graph of the pipeline.

    `inputs` maps the graph's tensor names to sources: a token input (`input_ids`, `attention_mask`,
    `token_type_ids`: int64 [B, T]) or `STAGE.OUTPUT` of an earlier stage. `outputs` names what it writes:
    `hidden` float32 [B, T, H] for later stages, and at an exit `logits` [B, C], `score` [B] or `embedding` [B, D].
    """

    id: Name
    scope: Scope = "item"
    inputs: dict[str, str]
    outputs: dict[str, Tensor]
    cacheable: bool = False


class Exit(_Part):
    """A point of the pipeline where an item may be answered.

    `depth` is the share of the full student's compute used when leaving here (the last exit has 1.0).
    `temperature` divides this exit's logits before the softmax, everywhere: scores and confidences.
    """

    id: Name
    stage: Name
    output: Literal["logits", "score", "embedding"]
    depth: Share
    temperature: Annotated[float, Field(gt=0)] = 1.0


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

    format: Annotated[str, Field(pattern=rf"^{FORMAT.pattern}$")] = f"{FORMAT_MAJOR}.{FORMAT_MINOR}"
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
        for check in _CHECKS:
            check(self)
        return self

    def stage(self, stage_id: str) -> Stage:
        """The stage of that id. Raises: KeyError: there is none."""
        for stage in self.stages:
            if stage.id == stage_id:
                return stage
        raise KeyError(stage_id)

    def certificate(self, *, backend: str, precision: str) -> Certificate | None:
        """The certificate for a backend and precision, or None: then exits are off."""
        found = (c for c in self.certificates if c.backend == backend and c.precision == precision)
        return next(found, None)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check_stages(manifest: Manifest) -> None:
    seen: set[str] = set()
    written: dict[str, Tensor] = {}
    for stage in manifest.stages:
        _require(stage.id not in seen, f"stages: id {stage.id!r} occurs twice")
        for tensor, source in stage.inputs.items():
            known = source in TOKEN_INPUTS or source in written
            _require(known, f"stages: input {tensor!r} of {stage.id!r} reads {source!r}, which nothing before writes")
        _require(bool(stage.inputs), f"stages: {stage.id!r} reads nothing")
        seen.add(stage.id)
        written |= {f"{stage.id}.{name}": tensor for name, tensor in stage.outputs.items()}


def _check_tensors(manifest: Manifest) -> None:
    """The output names that have a meaning have its dims: C labels, D embedding dimensions."""
    n_labels = len(manifest.labels) if manifest.task == "classify" else None
    shapes = {
        "hidden": ("B", "T", None),
        "logits": ("B", n_labels),
        "score": ("B",),
        "embedding": ("B", manifest.embedding_dimensions),
    }
    for stage in manifest.stages:
        for name, tensor in stage.outputs.items():
            where = f"stages: output {name!r} of {stage.id!r}"
            fine = tensor.dims[:1] == ("B",) and all(dim == "T" or _is_size(dim) for dim in tensor.dims[1:])
            _require(fine, f"{where} has dims {list(tensor.dims)}: B first, then T or sizes of 1 and more")
            _require(name not in shapes or tensor.dtype == "float32", f"{where} must be float32")
            _require(_is_shaped(tensor.dims, shapes.get(name)), f"{where} has dims {list(tensor.dims)}")


def _is_size(dim: str | int) -> bool:
    return isinstance(dim, int) and dim >= 1


def _is_shaped(dims: tuple[str | int, ...], shape: tuple[str | int | None, ...] | None) -> bool:
    """Whether `dims` are `shape`; None stands for any size, and a shape of None for any shape."""
    if shape is None:
        return True
    pairs = zip(dims, shape, strict=False)
    return len(dims) == len(shape) and all(dim == want or (want is None and _is_size(dim)) for dim, want in pairs)


def _check_exits(manifest: Manifest) -> None:
    order = [stage.id for stage in manifest.stages]
    ids = [leave.id for leave in manifest.exits]
    _require(len(set(ids)) == len(ids), "exits: an id occurs twice")
    for leave in manifest.exits:
        _require(leave.stage in order, f"exits: {leave.id!r} is at stage {leave.stage!r}, which does not exist")
        _require(
            leave.output in manifest.stage(leave.stage).outputs, f"exits: stage {leave.stage!r} has no {leave.output!r}"
        )
    places = [order.index(leave.stage) for leave in manifest.exits]
    _require(places == sorted(set(places)), "exits: not in pipeline order, or two at one stage")
    depths = [leave.depth for leave in manifest.exits]
    _require(depths == sorted(depths) and depths[-1] == 1.0, "exits: depths must rise to 1.0")
    _require(places[-1] == len(order) - 1, "exits: the last stage must be an exit")


def _check_task(manifest: Manifest) -> None:
    output = {"classify": "logits", "rank": "score", "embed": "embedding"}[manifest.task]
    for leave in manifest.exits:
        # a ranker's bi-encoder stages may exit with embeddings, whose score the runtime takes
        allowed = {output, "embedding"} if manifest.task == "rank" else {output}
        _require(leave.output in allowed, f"exits: {leave.id!r} writes {leave.output!r}, wrong for {manifest.task}")
    if manifest.task == "classify":
        _require(len(manifest.labels) >= 2, "labels: classify needs at least two")
        _require(len(set(manifest.labels)) == len(manifest.labels), "labels: one occurs twice")
    if manifest.task == "rank":
        pairs = {"score": "joint", "embedding": "separate"}[manifest.exits[-1].output]
        _require(manifest.pairs == pairs, f"pairs: must be {pairs!r} where {manifest.exits[-1].output!r} ranks")
    if manifest.task == "embed":
        _require(bool(manifest.space_id), "space_id: an embed student must carry one")
        _require(manifest.embedding_dimensions is not None, "embedding_dimensions: missing")


def _check_precisions(manifest: Manifest) -> None:
    _require(manifest.default_precision in manifest.precisions, "default_precision: not among precisions")
    ids = {stage.id for stage in manifest.stages}
    for name, precision in manifest.precisions.items():
        _require(set(precision.files) == ids, f"precisions: {name!r} must name one file for each stage")


def _check_certificates(manifest: Manifest) -> None:
    inner = len(manifest.exits) - 1
    pairs = [(c.backend, c.precision) for c in manifest.certificates]
    _require(len(set(pairs)) == len(pairs), "certificates: a backend and precision occur twice")
    for certificate in manifest.certificates:
        _require(certificate.precision in manifest.precisions, f"certificates: no precision {certificate.precision!r}")
        risks = [point.risk for point in certificate.points]
        _require(risks == sorted(set(risks)), "certificates: points must rise in risk")
        for point in certificate.points:
            _require(len(point.thresholds) == inner, "certificates: one threshold per exit but the last")
            _require(len(point.exit_shares) == inner + 1, "certificates: one exit share per exit")
            _require(point.errors <= point.rows, "certificates: more errors than rows")


def _check_files(manifest: Manifest) -> None:
    named = {manifest.tokenizer.file, manifest.golden}
    named |= {file for precision in manifest.precisions.values() for file in precision.files.values()}
    for file in sorted(named):
        _require(file in manifest.files, f"files: {file!r} is used but not listed")
    for file in manifest.files:
        plain = PLAIN_PATH.fullmatch(file) is not None and file != "manifest.json"
        _require(plain, f"files: {file!r} is not a plain path inside the bundle")


_CHECKS = (
    _check_stages,
    _check_exits,
    _check_task,
    _check_tensors,
    _check_precisions,
    _check_certificates,
    _check_files,
)


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
