"""Which backend and precision are loaded, and what each stage must look like."""

import pytest

from service.bundle.manifest import Tensor
from service.errors import GraphMismatch, SettingsInvalid
from service.runtime.backends.stage import Execution
from service.runtime.session import backend_for, input_tensors, load_sessions


def test_auto_is_onnxruntime():
    assert backend_for("auto") == backend_for("onnxruntime") == "onnxruntime"


def test_an_unknown_backend_is_refused(bundle):
    with pytest.raises(SettingsInvalid, match="'abacus'"):
        load_sessions(bundle, backend="abacus", precision=None, how=Execution())


def test_an_unknown_precision_is_refused(bundle):
    with pytest.raises(SettingsInvalid, match="'int2'"):
        load_sessions(bundle, backend="auto", precision="int2", how=Execution())


@pytest.mark.parametrize(("asked", "loaded"), [(None, "int8"), ("fp32", "fp32")])
def test_one_session_a_stage(bundle, asked, loaded):
    pool = load_sessions(bundle, backend="auto", precision=asked, how=Execution())
    assert (pool.backend, pool.precision, len(pool.sessions)) == ("onnxruntime", loaded, 2)


def test_inputs_take_their_shape_from_their_source(bundle):
    manifest = bundle.manifest
    assert input_tensors(manifest, manifest.stages[1]) == {
        "hidden": Tensor(dtype="float32", dims=("B", "T", 8)),
        "attention_mask": Tensor(dtype="int64", dims=("B", "T")),
    }


def test_a_graph_that_is_not_the_manifest_s_is_refused_by_name(make_student):
    def lie(document):
        document["stages"][0]["outputs"]["hidden"]["dims"][2] = 9

    with pytest.raises(GraphMismatch, match=r"00\.fp32\.onnx: output 'hidden'"):
        make_student(change=lie)
