"""What of a manifest must agree with what: the checks that make it more than well-formed JSON."""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from service.bundle.sources import JOINED, TOKEN_INPUTS, is_sided, side_of

if TYPE_CHECKING:
    from service.bundle.manifest import Manifest, Tensor

PLAIN_PATH = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.-]{0,127}/){0,7}[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


def check(manifest: "Manifest") -> None:
    """Raises: ValueError: something contradicts something else; says where."""
    for each in _CHECKS:
        each(manifest)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check_stages(manifest: "Manifest") -> None:
    seen: set[str] = set()
    written: dict[str, Tensor] = {}
    for stage in manifest.stages:
        _require(stage.id not in seen, f"stages: id {stage.id!r} occurs twice")
        for tensor, source in stage.inputs.items():
            known = side_of(source)[1] in (*TOKEN_INPUTS, *written)
            _require(known, f"stages: input {tensor!r} of {stage.id!r} reads {source!r}, which nothing before writes")
        _require(bool(stage.inputs), f"stages: {stage.id!r} reads nothing")
        seen.add(stage.id)
        written |= {f"{stage.id}.{name}": tensor for name, tensor in stage.outputs.items()}


def _check_joined(manifest: "Manifest") -> None:
    """Texts read apart are joined by stages of scope pair, the last ones, and only there are exits."""
    apart, joined = manifest.stages[: manifest.apart], manifest.stages[manifest.apart :]
    if not manifest.apart:
        first_sided = next((stage.id for stage in manifest.stages if is_sided(stage.inputs.values())), None)
        _require(first_sided is None, f"stages: {first_sided!r} joins texts that no stage before it has read")
        _require(JOINED not in manifest.requires, f"requires: {JOINED!r}, and no stage joins two texts")
        return
    _require(JOINED in manifest.requires, f"requires: must name {JOINED!r} where a stage joins two texts")
    _require(manifest.pairs == "separate", "pairs: must be 'separate' where a stage joins two texts")
    _require(manifest.task != "embed", "task: embed reads single texts; nothing joins them")
    ends = {leave.output for leave in manifest.exits}
    _require("embedding" not in ends, "exits: joined texts end in logits or in a score")
    alone = {f"{stage.id}.{name}" for stage in apart for name in stage.outputs}
    for stage in apart:
        _require(stage.scope == "item", f"stages: {stage.id!r} has scope {stage.scope!r}, and reads one text alone")
    for stage in joined:
        _require(stage.scope == "pair", f"stages: {stage.id!r} has scope {stage.scope!r}, and joins two texts")
        for source in stage.inputs.values():
            side, own = side_of(source)
            fine = own in alone or own == "attention_mask" if side else own not in (*TOKEN_INPUTS, *alone)
            _require(fine, f"stages: {stage.id!r} joins two texts, and reads {source!r}")
    read = {side_of(source)[1] for stage in joined for source in stage.inputs.values()} & alone
    _require(len(read) == 1, f"stages: joined stages read {sorted(read)} of each text, and must read one tensor")
    _require(read.pop().partition(".")[0] == apart[-1].id, "stages: what is joined must come of the last one before")
    places = {stage.id for stage in apart}
    _require(not places & {leave.stage for leave in manifest.exits}, "exits: one lies before two texts are joined")


def _check_tensors(manifest: "Manifest") -> None:
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


def _check_exits(manifest: "Manifest") -> None:
    order = [stage.id for stage in manifest.stages]
    ids = [leave.id for leave in manifest.exits]
    _require(len(set(ids)) == len(ids), "exits: an id occurs twice")
    for leave in manifest.exits:
        _require(leave.stage in order, f"exits: {leave.id!r} is at stage {leave.stage!r}, which does not exist")
        _require(
            leave.output in manifest.stage(leave.stage).outputs, f"exits: stage {leave.stage!r} has no {leave.output!r}"
        )
        if leave.score_temperature is not None:
            _require(leave.output == "logits", f"exits: {leave.id!r} has a score_temperature, which is for logits")
            _require(manifest.format != "1.0", f"exits: {leave.id!r} has a score_temperature, which 1.0 has not")
    places = [order.index(leave.stage) for leave in manifest.exits]
    _require(places == sorted(set(places)), "exits: not in pipeline order, or two at one stage")
    depths = [leave.depth for leave in manifest.exits]
    _require(depths == sorted(depths) and depths[-1] == 1.0, "exits: depths must rise to 1.0")
    _require(places[-1] == len(order) - 1, "exits: the last stage must be an exit")


def _check_task(manifest: "Manifest") -> None:
    output = {"classify": "logits", "rank": "score", "embed": "embedding"}[manifest.task]
    for leave in manifest.exits:
        # a ranker's bi-encoder stages may exit with embeddings, whose score the runtime takes
        allowed = {output, "embedding"} if manifest.task == "rank" else {output}
        _require(leave.output in allowed, f"exits: {leave.id!r} writes {leave.output!r}, wrong for {manifest.task}")
    if manifest.task == "classify":
        _require(len(manifest.labels) >= 2, "labels: classify needs at least two")
        _require(len(set(manifest.labels)) == len(manifest.labels), "labels: one occurs twice")
    if manifest.task == "rank":
        joint = manifest.exits[-1].output == "score" and not manifest.apart
        pairs = "joint" if joint else "separate"
        _require(manifest.pairs == pairs, f"pairs: must be {pairs!r} where {manifest.exits[-1].output!r} ranks")
    if manifest.task == "embed":
        _require(bool(manifest.space_id), "space_id: an embed student must carry one")
        _require(manifest.embedding_dimensions is not None, "embedding_dimensions: missing")


def _check_precisions(manifest: "Manifest") -> None:
    _require(manifest.default_precision in manifest.precisions, "default_precision: not among precisions")
    ids = {stage.id for stage in manifest.stages}
    for name, precision in manifest.precisions.items():
        _require(set(precision.files) == ids, f"precisions: {name!r} must name one file for each stage")


def _check_certificates(manifest: "Manifest") -> None:
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


def _check_files(manifest: "Manifest") -> None:
    named = {manifest.tokenizer.file, manifest.golden}
    named |= {file for precision in manifest.precisions.values() for file in precision.files.values()}
    for file in sorted(named):
        _require(file in manifest.files, f"files: {file!r} is used but not listed")
    for file in manifest.files:
        plain = PLAIN_PATH.fullmatch(file) is not None and file != "manifest.json"
        _require(plain, f"files: {file!r} is not a plain path inside the bundle")


_CHECKS: Sequence[Callable[["Manifest"], None]] = (
    _check_stages,
    _check_joined,
    _check_exits,
    _check_task,
    _check_tensors,
    _check_precisions,
    _check_certificates,
    _check_files,
)
