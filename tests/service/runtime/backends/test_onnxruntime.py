"""Loading a graph checks it against the manifest; running it translates errors."""

import numpy as np
import pytest

from service.bundle.manifest import Tensor
from service.errors import GraphMismatch, RunFailed
from service.runtime.backends.onnxruntime import OnnxRuntimeSession
from service.runtime.backends.stage import Execution

IDS = Tensor(dtype="int64", dims=("B", "T"))
HIDDEN = Tensor(dtype="float32", dims=("B", "T", 8))
LOGITS = Tensor(dtype="float32", dims=("B", 3))
INPUTS = {"input_ids": IDS, "attention_mask": IDS}
OUTPUTS = {"hidden": HIDDEN, "logits": LOGITS}


@pytest.fixture
def graph(classify_bundle):
    return classify_bundle / "stages" / "00.fp32.onnx"


def load(graph, inputs=INPUTS, outputs=OUTPUTS) -> OnnxRuntimeSession:
    return OnnxRuntimeSession(graph, inputs=inputs, outputs=outputs, how=Execution())


def feeds(items: int, tokens: int, word: int = 5) -> dict[str, np.ndarray]:
    ids = np.full((items, tokens), word, np.int64)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def test_it_runs_batches_of_any_shape(graph):
    session = load(graph)
    for items, tokens in ((1, 1), (3, 7), (2, 90)):
        outputs = session.run(feeds(items, tokens))
        assert {name: value.shape for name, value in outputs.items()} == {
            "hidden": (items, tokens, 8),
            "logits": (items, 3),
        }


@pytest.mark.parametrize("name", ["hidden", "logits"])
def test_one_output_is_the_same_without_the_others(graph, name):
    session = load(graph)
    alone = session.run(feeds(3, 7), [name])
    assert list(alone) == [name]
    np.testing.assert_array_equal(alone[name], session.run(feeds(3, 7))[name])


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        (INPUTS | {"token_type_ids": IDS}, OUTPUTS, "the graph has no input 'token_type_ids'"),
        ({"input_ids": IDS}, OUTPUTS, "the manifest has no input 'attention_mask'"),
        (INPUTS, {"hidden": HIDDEN}, "the manifest has no output 'logits'"),
        (INPUTS, OUTPUTS | {"score": LOGITS}, "the graph has no output 'score'"),
        (INPUTS | {"input_ids": Tensor(dtype="float32", dims=("B", "T"))}, OUTPUTS, "the manifest says float32"),
        (INPUTS, OUTPUTS | {"logits": Tensor(dtype="float32", dims=("B", 4))}, "size 3 at dim 1, the manifest says 4"),
        (INPUTS, OUTPUTS | {"logits": Tensor(dtype="float32", dims=("B", "T"))}, "size 3 at dim 1"),
        (INPUTS, OUTPUTS | {"hidden": Tensor(dtype="float32", dims=("B", 8))}, "has rank 3, the manifest says 2"),
    ],
)
def test_tensors_must_be_the_manifest_s(graph, inputs, outputs, message):
    with pytest.raises(GraphMismatch) as refused:
        load(graph, inputs, outputs)
    assert str(refused.value).startswith("00.fp32.onnx: ")
    assert message in str(refused.value)


def test_a_graph_that_does_not_load_is_named(graph):
    raw = graph.read_bytes()
    graph.write_bytes(raw.replace(b"ReduceSum", b"ReduceSux"))
    with pytest.raises(GraphMismatch, match=r"00\.fp32\.onnx: does not load in ONNX Runtime"):
        load(graph)


def test_a_file_that_is_not_there_is_named(graph):
    graph.unlink()
    with pytest.raises(GraphMismatch, match=r"00\.fp32\.onnx: cannot be read"):
        load(graph)


@pytest.mark.parametrize("bad", [{}, feeds(1, 2, word=10**6), {"input_ids": np.zeros(3)}])
def test_a_run_that_fails_names_the_graph(graph, bad):
    session = load(graph)
    with pytest.raises(RunFailed, match=r"00\.fp32\.onnx") as failed:
        session.run(bad)
    assert failed.value.__cause__ is not None
    assert session.run(feeds(1, 2))["logits"].shape == (1, 3)


def test_the_weights_are_held_once(graph):
    wrapper = load(graph)._session
    assert [name for name, value in vars(wrapper).items() if isinstance(value, bytes)] == []
