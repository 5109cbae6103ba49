"""What a student takes is measured in a process of its own, and counted in its files."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from models.evaluate.footprint import (
    MeasuringFailed,
    Memory,
    main,
    measure_here,
    memory_of,
    parameters_of,
    served_bytes,
)
from service.bundle.load import load_bundle
from service.runtime.memory import STATM


@pytest.mark.skipif(not STATM.exists(), reason="the system does not say what is resident")
def test_a_student_is_measured_in_a_fresh_process(toy_bundle: Path, texts: tuple[str, ...]) -> None:
    found = memory_of(toy_bundle, texts, backend="onnxruntime", precision="int8")
    assert found.added_bytes is not None
    assert 0 < found.added_bytes < found.after_bytes
    # this process holds torch and much else
    assert found.before_bytes < measure_here(toy_bundle, texts[:2], backend="onnxruntime", precision="int8").after_bytes


def test_the_process_reads_texts_and_pairs_and_writes_bytes(
    build_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    bundle = build_bundle(tmp_path / "pairs", pairs="joint")
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps([["good film", "bad film"], ["the card", "my card"]])))
    main([str(bundle), "--backend", "onnxruntime", "--precision", "fp32"])
    assert Memory(**json.loads(capsys.readouterr().out)).after_bytes >= 0


def test_a_process_that_fails_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(MeasuringFailed, match=r"measuring the memory of missing: .*missing"):
        memory_of(tmp_path / "missing", ["text"], backend="onnxruntime", precision="int8")


def test_where_the_system_says_nothing_nothing_is_known() -> None:
    assert Memory(0, 0).added_bytes is None
    assert Memory(10, 5).added_bytes == 0
    assert Memory(10, 25).added_bytes == 15


def test_files_and_weights_are_counted(build_bundle: Callable[..., Path], tmp_path: Path) -> None:
    folder = build_bundle(tmp_path / "toy", extra_files={"card.md": b"x" * 1000, "card/plot.png": b"x" * 1000})
    bundle = load_bundle(folder)
    bare = load_bundle(build_bundle(tmp_path / "bare"))
    assert served_bytes(bundle.manifest) == served_bytes(bare.manifest)
    weights = sum(bare.graph_path("fp32", stage.id).stat().st_size for stage in bare.manifest.stages)
    assert 0 < 4 * parameters_of(bare, "int8") < weights
