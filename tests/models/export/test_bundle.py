"""Drafts and finished bundles."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from tokenizers import Tokenizer

from models.errors import ParityFailed
from models.export.bundle import BundleParts, check_golden, finalise, graph_file, plain_tokenizer, write_draft
from models.export.golden_texts import GOLDEN_TEXTS
from service.bundle.load import file_entry, load_bundle
from service.bundle.manifest import Certificate, ExitShares, OperatingPoint, Quality
from service.errors import DigestMismatch, GoldenMismatch, GraphMismatch, ManifestInvalid, RunFailed
from service.runtime.student import Student

POINT = OperatingPoint(
    risk=0.01, thresholds=(0.9, None), rows=500, errors=0, p_value=0.01, exit_shares=(0.5, 0, 0.5), mean_depth=0.55
)
CERTIFICATE = Certificate(
    backend="onnxruntime",
    precision="fp32",
    confidence="max_probability",
    delta=0.05,
    population="test",
    population_digest="0" * 64,
    reference="full depth",
    input_policy="truncate end",
    points=(POINT,),
)


def test_a_draft_is_a_complete_bundle_without_promises(tmp_path: Path, parts: BundleParts):
    bundle = write_draft(tmp_path / "draft", parts)
    manifest = load_bundle(tmp_path / "draft").manifest
    assert bundle.manifest == manifest
    assert (manifest.certificates, manifest.quality, manifest.default_risk) == ((), None, None)
    assert set(manifest.files) == {"tokenizer.json", "golden.json", *(graph_file("fp32", f"0{i}") for i in range(3))}
    assert Student(bundle).policy("default").thresholds == (None, None)


def test_golden_samples_are_each_text_alone_to_full_depth(tmp_path: Path, parts: BundleParts):
    bundle = write_draft(tmp_path / "draft", parts)
    student = Student(bundle)
    assert [sample.text for sample in bundle.golden.samples] == list(GOLDEN_TEXTS)
    sample = bundle.golden.samples[3]
    raws = student.all_exits(student.encoder.encode([sample.text]))
    assert list(sample.outputs["fp32"]) == ["layer-0", "layer-1", "layer-2"]
    assert sample.outputs["fp32"]["layer-2"] == pytest.approx(raws[2][0].tolist(), abs=1e-6)
    # the longest text is cut to the student's limit
    assert max(len(sample.input_ids) for sample in bundle.golden.samples) == 24


def test_the_golden_tolerance_follows_the_outputs_size(tmp_path: Path, parts: BundleParts):
    bundle = write_draft(tmp_path / "draft", parts)
    values = [v for sample in bundle.golden.samples for exits in sample.outputs["fp32"].values() for v in exits]
    size = math.sqrt(sum(value**2 for value in values) / len(values))
    assert bundle.manifest.precisions["fp32"].golden_atol == pytest.approx(1e-3 * size, rel=0.01)
    given = dataclasses.replace(parts, golden_atol={"fp32": 0.5})
    assert write_draft(tmp_path / "given", given).manifest.precisions["fp32"].golden_atol == 0.5


def test_finishing_adds_what_was_found_and_may_be_repeated(tmp_path: Path, parts: BundleParts):
    draft = write_draft(tmp_path / "draft", parts).path
    card = tmp_path / "card_dir"
    (card / "card").mkdir(parents=True)
    (card / "card.md").write_text("# tiny\n")
    (card / "card" / "exits.png").write_bytes(b"\x89PNG")
    share = ExitShares(risk=None, exit_shares=(0, 0, 1), mean_depth=1, metrics={"accuracy": 0.5})
    quality = Quality(split="test", rows=9, by_precision={"fp32": (share,)})
    for _ in range(2):
        bundle = finalise(
            draft,
            certificates=[CERTIFICATE],
            quality=quality,
            temperatures={"layer-0": 1.7},
            default_risk=0.01,
            card_dir=card,
        )
    manifest = load_bundle(draft).manifest
    assert bundle.manifest == manifest
    assert [leave.temperature for leave in manifest.exits] == [1.7, 1.0, 1.0]
    assert manifest.certificates == (CERTIFICATE,)
    assert manifest.quality == quality
    assert {"card.md", "card/exits.png"} <= set(manifest.files)
    assert Student(bundle).policy("default").thresholds == (0.9, None)


def test_only_what_has_temperatures_of_scores_needs_a_reader_that_knows_them(tmp_path: Path, parts: BundleParts):
    draft = write_draft(tmp_path / "draft", parts).path
    assert load_bundle(draft).manifest.format == "1.0"
    assert b"score_temperature" not in (draft / "manifest.json").read_bytes()
    manifest = finalise(draft, score_temperatures={"layer-0": 1.7, "layer-1": None}).manifest
    assert manifest.format == "1.1"
    assert [leave.score_temperature for leave in manifest.exits] == [1.7, None, None]
    assert [leave.answer_temperature for leave in manifest.exits] == [1.7, 1.0, 1.0]
    assert [leave.temperature for leave in manifest.exits] == [1.0, 1.0, 1.0]
    assert (draft / "manifest.json").read_bytes().count(b"score_temperature") == 1
    assert load_bundle(draft).manifest == manifest
    assert finalise(draft, score_temperatures={"layer-0": None}).manifest.format == "1.0"


def test_a_temperature_for_no_exit_is_an_error(tmp_path: Path, parts: BundleParts):
    draft = write_draft(tmp_path / "draft", parts).path
    with pytest.raises(ValueError, match="no exit 'elsewhere'"):
        finalise(draft, score_temperatures={"elsewhere": 2.0})
    with pytest.raises(ValueError, match="no exit 'elsewhere'"):
        finalise(draft, temperatures={"elsewhere": 2.0})


def test_finishing_refuses_what_would_be_no_valid_bundle(tmp_path: Path, parts: BundleParts):
    draft = write_draft(tmp_path / "draft", parts).path
    with pytest.raises(ManifestInvalid, match="no precision 'int8'"):
        finalise(draft, certificates=[CERTIFICATE.model_copy(update={"precision": "int8"})])


def test_a_graph_swapped_after_the_draft_is_refused(tmp_path: Path, parts: BundleParts, swap_weight):
    draft = write_draft(tmp_path / "draft", parts).path
    swap_weight(draft / graph_file("fp32", "01"))
    with pytest.raises(DigestMismatch, match=r"stages/01\.fp32\.onnx"):
        finalise(draft)


def test_a_graph_swapped_with_its_digest_no_longer_gives_the_golden_outputs(
    tmp_path: Path, parts: BundleParts, swap_weight
):
    draft = write_draft(tmp_path / "draft", parts).path
    file = graph_file("fp32", "01")
    swap_weight(draft / file)
    document = json.loads((draft / "manifest.json").read_text())
    document["files"][file] = file_entry(draft / file).model_dump()
    (draft / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(GoldenMismatch, match="golden sample 0, exit 'layer-1'"):
        check_golden(load_bundle(draft))


def test_a_folder_that_holds_something_is_refused(tmp_path: Path, parts: BundleParts):
    (tmp_path / "left").write_text("x")
    with pytest.raises(FileExistsError, match="not empty"):
        write_draft(tmp_path, parts)


def test_graphs_in_the_wrong_order_are_refused(tmp_path: Path, parts: BundleParts):
    graphs = parts.graphs["fp32"]
    swapped = {"00": graphs["00"], "01": graphs["02"], "02": graphs["01"]}
    with pytest.raises(GraphMismatch, match=r"01\.fp32\.onnx: the graph has no output 'hidden'"):
        write_draft(tmp_path / "draft", dataclasses.replace(parts, graphs={"fp32": swapped}))


def test_a_tokenizer_with_ids_the_table_lacks_is_refused(tmp_path: Path, parts: BundleParts):
    document = json.loads(parts.tokenizer_json)
    vocabulary = document["model"]["vocab"]
    document["model"]["vocab"] = vocabulary | {"the": 1000}
    longer = dataclasses.replace(parts, tokenizer_json=json.dumps(document).encode(), golden_texts=("the",))
    with pytest.raises(RunFailed):
        write_draft(tmp_path / "draft", longer)


def test_outputs_that_are_not_finite_are_refused(tmp_path: Path, parts: BundleParts):
    path = tmp_path / "nan.onnx"
    model = onnx.load(parts.graphs["fp32"]["02"])
    tensor = next(entry for entry in model.graph.initializer if entry.name == "exit.logits.bias")
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(3, np.nan, np.float32), tensor.name))
    onnx.save(model, path)
    graphs = {"fp32": {**parts.graphs["fp32"], "02": path}}
    with pytest.raises(ParityFailed, match="exit 'layer-2' gives numbers that are not finite"):
        write_draft(tmp_path / "draft", dataclasses.replace(parts, graphs=graphs))


def test_the_tokenizers_own_padding_and_truncation_are_taken_out(tokenizer_json: bytes):
    own = Tokenizer.from_buffer(tokenizer_json)
    own.enable_padding(length=30)
    own.enable_truncation(4)
    plain = Tokenizer.from_buffer(plain_tokenizer(own.to_str().encode()))
    assert len(plain.encode("this film is great and good").ids) == 8
