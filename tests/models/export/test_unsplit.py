"""The student as one graph: the same numbers at full depth, no exit on the way, token inputs only."""

from pathlib import Path

import numpy as np
import onnx

from models.evaluate import unsplit_command
from models.export.unsplit import unsplit
from service.bundle.load import load_bundle
from service.runtime.student import Student
from service.store.store import Store

TEXTS = ["the cat sat", "", "a dog and a cat and a bird"]


def test_it_computes_what_the_stages_compute(classify_bundle: Path, tmp_path: Path) -> None:
    bundle = load_bundle(classify_bundle)
    one = unsplit(bundle, tmp_path / "one", name="one")
    for precision in bundle.manifest.precisions:
        stages, whole = Student(bundle, precision=precision), Student(one, precision=precision)
        encoded = stages.encoder.encode(TEXTS)
        full = stages.all_exits(encoded)[-1]
        np.testing.assert_allclose(whole.all_exits(encoded)[-1], full, rtol=0, atol=1e-6)


def test_it_has_one_stage_one_exit_and_no_certificate(classify_bundle: Path, tmp_path: Path) -> None:
    one = unsplit(load_bundle(classify_bundle), tmp_path / "one", name="one").manifest
    assert (one.name, len(one.stages), len(one.exits), one.certificates) == ("one", 1, 1, ())


def test_it_does_not_compute_the_exits_on_the_way(classify_bundle: Path, tmp_path: Path) -> None:
    bundle = load_bundle(classify_bundle)
    one = unsplit(bundle, tmp_path / "one", name="one")
    precision = bundle.manifest.default_precision
    stages = sum(len(onnx.load(bundle.graph_path(precision, s.id)).graph.node) for s in bundle.manifest.stages)
    assert len(onnx.load(one.graph_path(precision, "00")).graph.node) < stages


def test_the_command_publishes_it_beside_the_student(store_dir: Path) -> None:
    unsplit_command.command("toy", store=store_dir, name=None)
    store = Store(store_dir)
    assert store.resolve("toy-unsplit").version == 1
    assert len(store.open("toy-unsplit", 1).manifest.stages) == 1
