"""OpenVINO: the contract of ONNX Runtime's session, padded shapes that change no answer, and no telemetry."""

import importlib.util
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.bundle.manifest import Tensor
from service.errors import BackendUnavailable, GoldenMismatch, GraphMismatch, RunFailed, SettingsInvalid
from service.runtime.backends import openvino
from service.runtime.backends.onnxruntime import OnnxRuntimeSession
from service.runtime.backends.openvino import OpenVinoSession, grid_sizes, padded_feeds
from service.runtime.backends.stage import Execution
from service.runtime.encode import pad
from service.runtime.student import Student

installed = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino has no wheel here")

IDS = Tensor(dtype="int64", dims=("B", "T"))
HIDDEN = Tensor(dtype="float32", dims=("B", "T", 8))
LOGITS = Tensor(dtype="float32", dims=("B", 3))
INPUTS = {"input_ids": IDS, "attention_mask": IDS}
OUTPUTS = {"hidden": HIDDEN, "logits": LOGITS}
TEXTS = ["this film is great", "it was awful, very bad!", "where is it?", "", "my card is very not usual but okay"]


@pytest.fixture
def graph(classify_bundle):
    return classify_bundle / "stages" / "00.fp32.onnx"


def load(graph, inputs=INPUTS, outputs=OUTPUTS, how=Execution(longest_tokens=32)) -> OpenVinoSession:  # noqa: B008
    return OpenVinoSession(graph, inputs=inputs, outputs=outputs, how=how)


def feeds(items: int, tokens: int, word: int = 5) -> dict[str, np.ndarray]:
    ids = np.full((items, tokens), word, np.int64)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


@installed
class TestSession:
    def test_it_computes_what_onnxruntime_does(self, graph):
        session = load(graph)
        reference = OnnxRuntimeSession(graph, inputs=INPUTS, outputs=OUTPUTS, how=Execution())
        for items, tokens in ((1, 1), (3, 7), (2, 31), (5, 32)):
            wanted, found = reference.run(feeds(items, tokens)), session.run(feeds(items, tokens))
            assert found.keys() == wanted.keys()
            for name, value in wanted.items():
                np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5)

    def test_outputs_belong_to_the_caller(self, graph):
        session = load(graph)
        first = session.run(feeds(2, 4))
        kept = first["logits"].copy()
        session.run(feeds(2, 4, word=9))
        np.testing.assert_array_equal(first["logits"], kept)
        first["hidden"][:] = 0

    def test_several_threads_may_run_it(self, graph):
        session = load(graph, how=Execution(slots=2, longest_tokens=32))
        wanted = {word: session.run(feeds(3, 5, word))["logits"] for word in range(4, 12)}
        wrong = []

        def ask(word: int) -> None:
            found = [session.run(feeds(3, 5, word))["logits"] for _ in range(25)]
            wrong.extend(word for logits in found if not np.allclose(logits, wanted[word], atol=1e-5))

        threads = [threading.Thread(target=ask, args=(word,)) for word in wanted]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []

    @pytest.mark.parametrize(
        ("inputs", "outputs", "message"),
        [
            (INPUTS | {"token_type_ids": IDS}, OUTPUTS, "the graph has no input 'token_type_ids'"),
            ({"input_ids": IDS}, OUTPUTS, "the manifest has no input 'attention_mask'"),
            (INPUTS, {"hidden": HIDDEN}, "the manifest has no output 'logits'"),
            (INPUTS | {"input_ids": Tensor(dtype="float32", dims=("B", "T"))}, OUTPUTS, "is i64, the manifest says fl"),
            (INPUTS, OUTPUTS | {"logits": Tensor(dtype="float32", dims=("B", 4))}, "size 3 at dim 1, the manifest"),
            (INPUTS, OUTPUTS | {"hidden": Tensor(dtype="float32", dims=("B", 8))}, "has rank 3, the manifest says 2"),
        ],
    )
    def test_tensors_must_be_the_manifest_s(self, graph, inputs, outputs, message):
        with pytest.raises(GraphMismatch) as refused:
            load(graph, inputs, outputs)
        assert str(refused.value).startswith("00.fp32.onnx: ")
        assert message in str(refused.value)

    def test_a_graph_that_does_not_load_is_named(self, graph):
        graph.write_bytes(graph.read_bytes().replace(b"ReduceSum", b"ReduceSux"))
        with pytest.raises(GraphMismatch, match=r"00\.fp32\.onnx: does not load in OpenVINO"):
            load(graph)

    def test_a_graph_that_does_not_compile_is_named(self, graph):
        with pytest.raises(GraphMismatch, match=r"00\.fp32\.onnx: does not load in OpenVINO"):
            load(graph, how=Execution(slots=-7))

    def test_a_file_that_is_not_there_is_named(self, graph):
        graph.unlink()
        with pytest.raises(GraphMismatch, match=r"00\.fp32\.onnx: cannot be read"):
            load(graph)

    def test_a_file_that_leads_outside_is_not_given_to_openvino(self, graph):
        graph.write_bytes(b"\0\0\0\0ORTM")
        with pytest.raises(GraphMismatch, match="not an ONNX file"):
            load(graph)

    @pytest.mark.parametrize("bad", [{}, {"input_ids": np.zeros(3), "attention_mask": np.zeros(3)}])
    def test_a_run_that_fails_names_the_graph(self, graph, bad):
        session = load(graph)
        assert repr(session) == "<OpenVinoSession 00.fp32.onnx>"
        with pytest.raises(RunFailed, match=r"00\.fp32\.onnx") as failed:
            session.run(bad)
        assert failed.value.__cause__ is not None
        assert session.run(feeds(1, 2))["logits"].shape == (1, 3)


@installed
@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("setting", ["default", "never"])
def test_an_answer_does_not_depend_on_company_or_padding(bundle, precision, setting):
    student = Student(bundle, backend="openvino", precision=precision)
    student.check_golden()
    student.prove(token_budget=100)
    policy = student.policy(setting)
    encoded = student.encoder.encode(TEXTS)
    together = student.run(encoded * 13, policy)[: len(encoded)]
    for item, mate in zip(encoded, together, strict=True):
        for length in (None, 20, 32):
            alone = student.run_padded(pad([item], pad_id=student.pad_id, length=length), policy)
            assert alone.exit_index[0] == mate.exit_index
            np.testing.assert_allclose(alone.raw[0], mate.raw, atol=1e-5)


@installed
@pytest.mark.parametrize("fields", [{"task": "embed"}, {"pairs": "joint"}])
def test_every_shape_of_student_is_reproduced(build_bundle, tmp_path, fields):
    from service.bundle.load import load_bundle

    bundle = load_bundle(build_bundle(tmp_path / "own", **fields))
    Student(bundle, backend="openvino", how=Execution(threads=2)).check_golden()


@installed
class TestBfloat16:
    def test_it_is_computed_from_the_fp32_graphs(self, bundle, monkeypatch):
        monkeypatch.setattr(openvino, "has_bfloat16", lambda: True)
        for backend in ("openvino", "auto"):
            student = Student(bundle, backend=backend, precision="bf16")
            assert (student.backend, student.precision) == ("openvino", "bf16")
            assert student.policy().risk_applied is None
            student.check_golden()

    def test_the_golden_samples_hold_it_to_a_share(self, bundle, monkeypatch):
        monkeypatch.setattr(openvino, "has_bfloat16", lambda: True)
        student = Student(bundle, backend="openvino", precision="bf16")
        monkeypatch.setattr("service.runtime.student.BF16_RTOL", -1.0)
        with pytest.raises(GoldenMismatch, match="toy bf16 on openvino: golden sample 0"):
            student.check_golden()

    def test_a_processor_without_it(self, bundle, monkeypatch):
        monkeypatch.setattr(openvino, "has_bfloat16", lambda: False)
        with pytest.raises(BackendUnavailable, match="no bfloat16 instructions"):
            Student(bundle, backend="openvino", precision="bf16")

    def test_another_backend_has_it_not(self, bundle):
        with pytest.raises(SettingsInvalid, match="'bf16' needs backend openvino, not onnxruntime"):
            Student(bundle, backend="onnxruntime", precision="bf16")

    def test_whether_the_processor_has_it_can_be_asked(self):
        assert openvino.has_bfloat16() in (True, False)


def _grid(items: int, tokens: int, longest: int | None) -> tuple[int, int]:
    sizes = grid_sizes({"B": items, "T": tokens}, longest_tokens=longest)
    return sizes["B"], sizes["T"]


class TestPadding:
    @given(st.integers(1, 3000), st.integers(1, 512), st.sampled_from([None, 64, 512]))
    def test_a_grid_shape_holds_the_batch_with_little_waste(self, items, tokens, longest):
        n, length = _grid(items, tokens, longest)
        assert items <= n < 1.5 * items + 1
        assert tokens <= length < max(1.25 * tokens, tokens + 4) + 1
        assert length <= max(tokens, longest or 1 << 30)
        assert _grid(n, length, longest) == (n, length)

    def test_the_grid_is_small(self):
        shapes = {_grid(n, t, 64) for n in range(1, 65) for t in range(1, 65)}
        assert len(shapes) <= 160

    def test_sizes_beyond_the_grid_stay(self):
        assert _grid(1 << 21, 9000, None) == (1 << 21, 9000)

    def test_padding_masks_tokens_and_repeats_an_item(self):
        ids = np.arange(10).reshape(2, 5)
        batch = {"ids": np.vstack([ids, ids, ids[:1]]), "mask": np.ones((5, 5), np.int64)}
        padded = padded_feeds(batch, {"ids": IDS, "mask": IDS}, Execution(fills={"ids": 7}))
        assert padded["ids"].shape == (6, 8)
        assert padded["ids"][0].tolist() == [0, 1, 2, 3, 4, 7, 7, 7] == padded["ids"][5].tolist()
        assert padded["mask"].sum(axis=1).tolist() == [5] * 6

    def test_a_batch_in_its_grid_shape_is_not_copied(self):
        batch = {"ids": np.zeros((2, 4), np.int64)}
        assert padded_feeds(batch, {"ids": IDS}, Execution())["ids"] is batch["ids"]


class TestAbsence:
    def test_a_missing_wheel_says_what_to_install(self, monkeypatch, bundle):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        for name in [name for name in sys.modules if name.partition(".")[0] == "openvino"]:
            monkeypatch.delitem(sys.modules, name)
        openvino._openvino.cache_clear()
        openvino._core.cache_clear()
        with pytest.raises(BackendUnavailable, match="pip install openvino"):
            Student(bundle, backend="openvino")

    def test_a_broken_wheel_says_so(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "openvino", None)
        openvino._openvino.cache_clear()
        with pytest.raises(BackendUnavailable, match="installed, but it does not load"):
            openvino.version()
        assert openvino.TELEMETRY not in sys.modules
        openvino._openvino.cache_clear()


@installed
def test_its_telemetry_is_never_loaded():
    script = (
        "import sys; from service.runtime.backends import openvino; assert 'openvino' not in sys.modules; "
        "openvino.version(); loaded = [name for name in sys.modules if name.startswith('openvino_telemetry')]; "
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
