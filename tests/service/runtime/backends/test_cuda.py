"""CUDA: asked for and absent is an error; its binding computes the same; on a GPU the golden samples are reproduced."""

import numpy as np
import onnxruntime
import pytest

from service.bundle.manifest import Tensor
from service.errors import BackendUnavailable, GraphMismatch, RunFailed
from service.runtime.backends import cuda
from service.runtime.backends.cuda import BoundSession, cuda_session
from service.runtime.backends.onnxruntime import PROVIDER, OnnxRuntimeSession, load
from service.runtime.backends.stage import Execution
from service.runtime.session import backend_for
from service.runtime.student import Student

has_gpu = cuda.PROVIDER in onnxruntime.get_available_providers()
on_gpu = pytest.mark.skipif(not has_gpu, reason="this ONNX Runtime has no CUDA provider")
without_gpu = pytest.mark.skipif(has_gpu, reason="this ONNX Runtime has a CUDA provider")

IDS = Tensor(dtype="int64", dims=("B", "T"))
INPUTS = {"input_ids": IDS, "attention_mask": IDS}
OUTPUTS = {"hidden": Tensor(dtype="float32", dims=("B", "T", 8)), "logits": Tensor(dtype="float32", dims=("B", 3))}


@pytest.fixture
def graph(classify_bundle):
    return classify_bundle / "stages" / "00.fp32.onnx"


def bound(graph, outputs=OUTPUTS) -> BoundSession:
    session = load(graph, Execution(), providers=[PROVIDER])
    return BoundSession(graph, session, device="cpu", inputs=INPUTS, outputs=outputs)


def feeds(items: int, tokens: int, word: int = 5) -> dict[str, np.ndarray]:
    ids = np.full((items, tokens), word, np.int64)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


@without_gpu
class TestAbsence:
    def test_it_is_an_error_by_name(self):
        with pytest.raises(BackendUnavailable, match="no CUDA provider; replace it"):
            backend_for("cuda")

    def test_nothing_is_loaded_on_the_processor_instead(self, bundle, graph):
        with pytest.raises(BackendUnavailable):
            Student(bundle, backend="cuda")
        with pytest.raises(BackendUnavailable):
            cuda_session(graph, inputs=INPUTS, outputs=OUTPUTS, how=Execution())


def test_a_provider_that_did_not_start_is_an_error():
    cuda.require_active([cuda.PROVIDER, PROVIDER])
    with pytest.raises(BackendUnavailable, match="installed but not active, only CPUExecutionProvider"):
        cuda.require_active([PROVIDER])


class TestBinding:
    def test_it_computes_what_an_unbound_session_does(self, graph):
        session, reference = bound(graph), OnnxRuntimeSession(graph, inputs=INPUTS, outputs=OUTPUTS, how=Execution())
        for items, tokens in ((1, 1), (3, 7), (2, 31)):
            wanted, found = reference.run(feeds(items, tokens)), session.run(feeds(items, tokens))
            assert found.keys() == wanted.keys()
            for name, value in wanted.items():
                np.testing.assert_array_equal(found[name], value)

    def test_tensors_must_be_the_manifest_s(self, graph):
        with pytest.raises(GraphMismatch, match=r"00\.fp32\.onnx: the manifest has no output 'hidden'"):
            bound(graph, {"logits": OUTPUTS["logits"]})

    @pytest.mark.parametrize("bad", [{}, feeds(1, 2, word=10**6)])
    def test_a_run_that_fails_names_the_graph(self, graph, bad):
        session = bound(graph)
        assert repr(session) == "<BoundSession 00.fp32.onnx on cpu>"
        with pytest.raises(RunFailed, match=r"00\.fp32\.onnx") as failed:
            session.run(bad)
        assert failed.value.__cause__ is not None
        assert session.run(feeds(1, 2))["logits"].shape == (1, 3)


@on_gpu
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_golden_samples_are_reproduced(bundle, precision):
    student = Student(bundle, backend="cuda", precision=precision)
    assert student.backend == "cuda"
    student.check_golden()
