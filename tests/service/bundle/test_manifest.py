"""The manifest: one test per way to be wrong, and what versions of the format may do."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.bundle.manifest import Manifest, dump_manifest, is_newer_minor, parse_manifest
from service.errors import FormatTooNew, ManifestInvalid

Document = dict[str, Any]
Change = Callable[[Document], None]
BuildBundle = Callable[..., Path]


@pytest.fixture(scope="module")
def classify(build_bundle: BuildBundle, tmp_path_factory: pytest.TempPathFactory) -> str:
    return (build_bundle(tmp_path_factory.mktemp("classify") / "b") / "manifest.json").read_text()


@pytest.fixture(scope="module")
def embed(build_bundle: BuildBundle, tmp_path_factory: pytest.TempPathFactory) -> str:
    return (build_bundle(tmp_path_factory.mktemp("embed") / "b", task="embed") / "manifest.json").read_text()


def changed(text: str, change: Change) -> bytes:
    document = json.loads(text)
    change(document)
    return json.dumps(document).encode()


def put(*path: str | int, value: Any) -> Change:
    """A change that sets one member."""

    def change(document: Any) -> None:
        for part in path[:-1]:
            document = document[part]
        document[path[-1]] = value

    return change


def drop(*path: str | int) -> Change:
    def change(document: Any) -> None:
        for part in path[:-1]:
            document = document[part]
        del document[path[-1]]

    return change


def listed_as(file: str) -> Change:
    """A change that lists an unused file under that path."""
    return put("files", file, value={"sha256": "0" * 64, "bytes": 1})


def swap_stages(document: Document) -> None:
    document["stages"].reverse()


def exits_reversed(document: Document) -> None:
    document["exits"].reverse()


def certificate_twice(document: Document) -> None:
    document["certificates"].append(document["certificates"][0])


def points_falling(document: Document) -> None:
    document["certificates"][0]["points"].reverse()


REQUIRED = [
    *("format", "name", "task", "max_tokens", "stages", "exits", "precisions", "default_precision", "files"),
    *("provenance", "files/sha256", "files/bytes", "stages/id", "stages/inputs", "stages/outputs", "exits/id"),
    "exits/depth",
]
UNWRITTEN = "which nothing before writes"

WRONG_CLASSIFY: list[tuple[str, Change, str]] = [
    ("name with a capital", put("name", value="Toy"), "^manifest.json: /name: "),
    ("name with a slash", put("name", value="../toy"), "/name: "),
    ("name with a newline at its end", put("name", value="toy\n"), "/name: "),
    ("unknown task", put("task", value="summarise"), "/task: "),
    ("one label", put("labels", value=["only"]), "at least two"),
    ("label twice", put("labels", value=["a", "b", "a"]), "occurs twice"),
    ("label not text", put("labels", 0, value=7), "/labels/0: "),
    ("fewer labels than logits", put("labels", value=["a", "b"]), "output 'logits' of '00' has dims"),
    ("max_tokens too small", put("max_tokens", value=2), "/max_tokens: "),
    ("max_tokens too large", put("max_tokens", value=8193), "/max_tokens: "),
    ("max_tokens as text", put("max_tokens", value="32"), "/max_tokens: "),
    ("unknown pairs", put("pairs", value="both"), "/pairs: "),
    ("negative pad", put("tokenizer", "pad_id", value=-1), "/tokenizer/pad_id: "),
    ("no stage", put("stages", value=[]), "/stages: "),
    ("stage id twice", put("stages", 1, "id", value="00"), "occurs twice"),
    ("stage id with a dot", put("stages", 0, "id", value="0.0"), "/stages/0/id: "),
    ("unknown scope", put("stages", 0, "scope", value="batch"), "/stages/0/scope: "),
    ("stage without inputs", put("stages", 0, "inputs", value={}), "'00' reads nothing"),
    ("unknown source", put("stages", 0, "inputs", "input_ids", value="characters"), UNWRITTEN),
    ("unknown output as source", put("stages", 1, "inputs", "hidden", value="00.states"), UNWRITTEN),
    ("stage before its source", swap_stages, UNWRITTEN),
    ("stage reads itself", put("stages", 1, "inputs", "hidden", value="01.hidden"), UNWRITTEN),
    ("unknown dtype", put("stages", 0, "outputs", "hidden", "dtype", value="float16"), "/outputs/hidden/dtype"),
    ("logits of integers", put("stages", 0, "outputs", "logits", "dtype", value="int64"), "must be float32"),
    ("hidden without T", put("stages", 0, "outputs", "hidden", "dims", value=["B", 8]), "'hidden' of '00' has dims"),
    ("dims without B", put("stages", 0, "outputs", "hidden", "dims", value=["T", "B", 8]), "B first"),
    ("no dims", put("stages", 0, "outputs", "hidden", "dims", value=[]), "B first"),
    ("unknown symbol", put("stages", 0, "outputs", "hidden", "dims", value=["B", "T", "H"]), "B first"),
    ("size of zero", put("stages", 0, "outputs", "hidden", "dims", value=["B", "T", 0]), "B first"),
    ("no exit", put("exits", value=[]), "/exits: "),
    ("exit id twice", put("exits", 1, "id", value="early"), "an id occurs twice"),
    ("exit at no stage", put("exits", 0, "stage", value="09"), "which does not exist"),
    ("exit without its output", drop("stages", 0, "outputs", "logits"), "has no 'logits'"),
    ("exits out of order", exits_reversed, "not in pipeline order"),
    ("two exits at one stage", put("exits", 0, "stage", value="01"), "two at one stage"),
    ("last stage no exit", drop("exits", 1), "must rise to 1.0|last stage must be an exit"),
    ("depth falls", put("exits", 0, "depth", value=1.5), "/exits/0/depth: "),
    ("last depth below 1", put("exits", 1, "depth", value=0.9), "must rise to 1.0"),
    ("temperature zero", put("exits", 0, "temperature", value=0), "/exits/0/temperature: "),
    ("score temperature before 1.1", put("exits", 0, "score_temperature", value=2.0), "which 1.0 has not"),
    ("score temperature zero", put("exits", 0, "score_temperature", value=0), "/exits/0/score_temperature: "),
    ("wrong output for the task", put("exits", 0, "output", value="embedding"), "/exits|has no 'embedding'"),
    ("no precision", put("precisions", value={}), "/precisions: "),
    ("default precision missing", put("default_precision", value="int4"), "not among precisions"),
    ("precision without a stage", drop("precisions", "fp32", "files", "01"), "one file for each stage"),
    ("precision with another stage", put("precisions", "fp32", "files", "02", value="x"), "one file for each stage"),
    ("tolerance zero", put("precisions", "fp32", "golden_atol", value=0), "/precisions/fp32/golden_atol: "),
    ("risk of 1", put("certificates", 0, "points", 0, "risk", value=1), "/certificates/0/points/0/risk: "),
    ("default risk 0", put("default_risk", value=0), "/default_risk: "),
    ("too many thresholds", put("certificates", 0, "points", 0, "thresholds", value=[0.5, 0.5]), "one threshold per"),
    ("too few shares", put("certificates", 0, "points", 0, "exit_shares", value=[1.0]), "one exit share per exit"),
    ("more errors than rows", put("certificates", 0, "points", 0, "errors", value=1001), "more errors than rows"),
    ("certificate twice", certificate_twice, "occur twice"),
    ("points falling in risk", points_falling, "must rise in risk"),
    ("certificate of no precision", put("certificates", 0, "precision", value="int4"), "no precision 'int4'"),
    ("unknown confidence", put("certificates", 0, "confidence", value="luck"), "/certificates/0/confidence: "),
    ("graph not listed", drop("files", "stages/00.fp32.onnx"), "'stages/00.fp32.onnx' is used but not listed"),
    ("tokenizer not listed", drop("files", "tokenizer.json"), "'tokenizer.json' is used but not listed"),
    ("golden not listed", drop("files", "golden.json"), "'golden.json' is used but not listed"),
    ("digest too short", put("files", "golden.json", "sha256", value="ab"), "/files/golden.json/sha256: "),
    ("digest in capitals", put("files", "golden.json", "sha256", value="A" * 64), "/files/golden.json/sha256: "),
    ("negative size", put("files", "golden.json", "bytes", value=-1), "/files/golden.json/bytes: "),
    ("unknown field", put("colour", value="red"), "/colour: "),
    ("unknown field of a stage", put("stages", 0, "colour", value="red"), "/stages/0/colour: "),
    ("unknown field of a file", put("files", "golden.json", "mode", value=1), "/files/golden.json/mode: "),
    ("format as a number", put("format", value=1.0), "/format: "),
    ("format of one part", put("format", value="1"), "/format: "),
    ("format with zeros", put("format", value="01.0"), "/format: "),
    ("format in other digits", put("format", value="١.٠"), "/format: "),
    ("requires as text", put("requires", value="rank"), "/requires: "),
    ("lone surrogate", put("provenance", "teacher", value="\ud800"), "^manifest.json: "),
    *[(f"path {file!r}", listed_as(file), "not a plain path inside the bundle") for file in (
        "", "/etc/passwd", "../x", "a/../x", "./x", "a//x", "a/", "a\\x", "C:x", ".hidden", "a\nb", "a\x00b", "é",
        "manifest.json", "a/" * 8 + "x", "x" * 129,
    )],
]  # fmt: skip


@pytest.mark.parametrize(("change", "said"), [w[1:] for w in WRONG_CLASSIFY], ids=[w[0] for w in WRONG_CLASSIFY])
def test_refuses_a_manifest_that_is_wrong(classify: str, change: Change, said: str) -> None:
    with pytest.raises(ManifestInvalid, match=said):
        parse_manifest(changed(classify, change))


@pytest.mark.parametrize("field", REQUIRED)
def test_refuses_a_manifest_without_a_required_field(classify: str, field: str) -> None:
    outer, _, inner = field.partition("/")
    path: tuple[str | int, ...] = (outer,)
    if inner:
        path = (outer, "golden.json" if outer == "files" else 0, inner)
    with pytest.raises(ManifestInvalid, match=f"/{outer}"):
        parse_manifest(changed(classify, drop(*path)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (drop("space_id"), "must carry one"),
        (put("space_id", value=""), "must carry one"),
        (drop("embedding_dimensions"), "embedding_dimensions: missing"),
        (put("exits", 0, "score_temperature", value=2.0), "has a score_temperature, which is for logits"),
        (put("embedding_dimensions", value=7), "output 'embedding' of '00' has dims"),
        (put("task", value="classify"), "wrong for classify"),
    ],
)
def test_refuses_an_embed_manifest_that_is_wrong(embed: str, change: Change, said: str) -> None:
    with pytest.raises(ManifestInvalid, match=said):
        parse_manifest(changed(embed, change))


@pytest.mark.parametrize(("answers", "pairs"), [("score", "joint"), ("embedding", "separate")])
def test_a_ranker_reads_pairs_as_its_last_exit_needs_them(
    build_bundle: BuildBundle, tmp_path: Path, answers: str, pairs: str
) -> None:
    text = (build_bundle(tmp_path / "b", task="rank", pairs=pairs) / "manifest.json").read_text()
    assert parse_manifest(text.encode()).exits[-1].output == answers
    for wrong in {"none", "joint", "separate"} - {pairs}:
        with pytest.raises(ManifestInvalid, match=f"pairs: must be {pairs!r} where {answers!r} ranks"):
            parse_manifest(changed(text, put("pairs", value=wrong)))


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff", b'{"format": "1.0", "format": "1.0"}'])
def test_refuses_what_is_not_a_json_object(raw: bytes) -> None:
    with pytest.raises(ManifestInvalid, match=r"^manifest\.json: "):
        parse_manifest(raw)


def test_a_shape_may_be_shared_between_tasks(classify: str, embed: str) -> None:
    assert parse_manifest(classify.encode()).stage("01").inputs["hidden"] == "00.hidden"
    assert parse_manifest(embed.encode()).space_id == "toy-space-1"


def test_finds_the_certificate_of_a_backend_and_precision(classify: str) -> None:
    manifest = parse_manifest(classify.encode())
    found = manifest.certificate(backend="onnxruntime", precision="int8")
    assert found is not None
    assert found.precision == "int8"
    assert manifest.certificate(backend="openvino", precision="int8") is None


def test_no_stage_of_that_id(classify: str) -> None:
    with pytest.raises(KeyError):
        parse_manifest(classify.encode()).stage("07")


def test_what_is_dumped_is_read_back_the_same(classify: str, embed: str) -> None:
    for text in (classify, embed):
        manifest = parse_manifest(text.encode())
        assert parse_manifest(dump_manifest(manifest)) == manifest
        assert dump_manifest(manifest).endswith(b"}\n")


def test_refuses_a_newer_major_before_looking_at_anything_else() -> None:
    with pytest.raises(FormatTooNew, match=r"2\.0 cannot be read by a reader of 1\."):
        parse_manifest(b'{"format": "2.0", "everything": "else"}')


def test_refuses_an_older_major() -> None:
    with pytest.raises(FormatTooNew):
        parse_manifest(b'{"format": "0.9"}')


@pytest.mark.parametrize("version", ["1.0", "1.7"])
def test_refuses_an_unknown_requirement_by_name(classify: str, version: str) -> None:
    def change(document: Document) -> None:
        document |= {"format": version, "requires": ["time-travel"]}

    with pytest.raises(FormatTooNew, match="time-travel"):
        parse_manifest(changed(classify, change))


def test_ignores_what_a_newer_minor_adds_at_any_depth(classify: str) -> None:
    def newer(document: Document) -> None:
        document |= {"format": "1.7", "colour": {"deep": [1]}}
        for part in (
            document["tokenizer"],
            document["stages"][1],
            document["stages"][0]["outputs"]["hidden"],
            document["exits"][0],
            document["precisions"]["fp32"],
            document["certificates"][1]["points"][0],
            document["files"]["golden.json"],
            document["provenance"],
        ):
            part["colour"] = None

    manifest = parse_manifest(changed(classify, newer))
    assert is_newer_minor(manifest)
    plain = parse_manifest(classify.encode())
    assert not is_newer_minor(plain)
    assert manifest == plain.model_copy(update={"format": "1.7"})


def test_a_newer_minor_must_still_be_right_in_what_is_known(classify: str) -> None:
    def newer(document: Document) -> None:
        document |= {"format": "1.7", "colour": 1, "max_tokens": 1}

    with pytest.raises(ManifestInvalid, match="/max_tokens"):
        parse_manifest(changed(classify, newer))


def test_a_newer_minor_must_not_contradict_itself(classify: str) -> None:
    def newer(document: Document) -> None:
        document |= {"format": "1.7", "colour": 1, "default_precision": "int4"}

    with pytest.raises(ManifestInvalid, match="not among precisions"):
        parse_manifest(changed(classify, newer))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The path of every member and element of a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found: list[tuple[str | int, ...]] = []
    for key, child in inner:
        found += [(*path, key), *places(child, (*path, key))]
    return found


@given(st.data())
def test_any_value_anywhere_gives_a_manifest_or_a_named_error(classify: str, data: st.DataObject) -> None:
    document = json.loads(classify)
    path = data.draw(st.sampled_from(places(document)))
    try:
        manifest = parse_manifest(changed(classify, put(*path, value=data.draw(JSON_VALUES))))
    except (ManifestInvalid, FormatTooNew) as error:
        assert str(error).startswith("manifest.json: ")
    else:
        assert isinstance(manifest, Manifest)


@given(st.data())
def test_a_field_added_by_a_newer_minor_never_changes_what_is_read(classify: str, data: st.DataObject) -> None:
    document = json.loads(classify)
    document["format"] = "1.3"
    before = parse_manifest(json.dumps(document).encode())
    closed = [path for path in places(document) if isinstance(_at(document, path), dict) and _is_closed(path)]
    target = data.draw(st.sampled_from(closed))
    value = data.draw(JSON_VALUES.filter(lambda v: v == v))
    _at(document, target)["added_by_a_newer_minor"] = value if _is_json(value) else None
    assert parse_manifest(json.dumps(document).encode()) == before


def _at(value: Any, path: tuple[str | int, ...]) -> Any:
    for part in path:
        value = value[part]
    return value


def _is_closed(path: tuple[str | int, ...]) -> bool:
    """Whether the object at `path` has a fixed set of fields, rather than being keyed by names."""
    return path[-1] not in ("inputs", "outputs", "files", "precisions", "recipe", "libraries")


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False).encode()
        json.dumps(value, ensure_ascii=False).encode()
    except ValueError:
        return False
    return True


@given(st.binary(max_size=300))
def test_any_bytes_give_a_named_error(raw: bytes) -> None:
    with pytest.raises((ManifestInvalid, FormatTooNew)):
        parse_manifest(raw)
