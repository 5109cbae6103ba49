"""The static embedder: what it starts as, that padding and company change nothing, and that the graph is the module."""

import itertools
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.compress.token_table import quantise_token_table
from models.errors import RecipeInvalid, TeacherInvalid
from models.export.stages import export_stages
from models.recipe.embed import StaticSettings
from models.students.static import StaticConfig, StaticEmbedder, frequency_weights
from models.students.static_start import new_static, token_vectors
from models.students.vocabulary import untrimmed
from models.teachers.teacher import Matrix, Teacher, load_teacher
from models.teachers.tokens import plain_tokenizer

CONFIG = StaticConfig(vocabulary=50, width=6, token_width=4, max_tokens=12)
TEXT = st.lists(st.integers(0, 49), min_size=0, max_size=9)


def made() -> StaticEmbedder:
    torch.manual_seed(0)
    return StaticEmbedder(CONFIG).eval()


STUDENT = made()


def batch(texts: list[list[int]], *, length: int = 0, filler: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(1, length, *(len(text) for text in texts))
    ids = torch.tensor([text + [filler] * (longest - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
    return ids, mask


def vectors(student: StaticEmbedder, *tensors: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return student(*tensors).exits[0]


@given(st.lists(TEXT, min_size=1, max_size=5), st.integers(1, 20), st.integers(0, 49))
def test_it_is_the_mean_of_the_rows_whatever_padding_and_company(texts: list[list[int]], length: int, filler: int):
    found = vectors(STUDENT, *batch(texts, length=length, filler=filler))
    with torch.no_grad():
        means = [STUDENT.tokens.weight[text].mean(0) if text else torch.zeros(4) for text in texts]
        wanted = STUDENT.embedding(torch.stack(means))
    assert torch.allclose(found, wanted, atol=1e-5)


def test_the_graph_computes_what_torch_computes_and_its_rows_may_be_int8(tmp_path: Path):
    (exported,) = export_stages(STUDENT.stages(), tmp_path)
    assert list(exported.stage.outputs) == ["embedding"]
    graphs = [onnx.load(exported.path), quantise_token_table(onnx.load(exported.path))]
    assert len(graphs[1].graph.node) > len(graphs[0].graph.node)
    random = np.random.default_rng(0)
    for items, tokens in itertools.product((1, 3), (0, 1, 9)):
        ids, mask = batch([random.integers(0, 50, size=max(0, tokens - at)).tolist() for at in range(items)])
        wanted = vectors(STUDENT, ids, mask).numpy()
        for graph, most in zip(graphs, (1e-5, 0.05), strict=True):
            session = onnxruntime.InferenceSession(graph.SerializeToString())
            (found,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
            assert np.abs(found - wanted).max() < most


def test_a_token_of_the_texts_weighs_one_in_the_mean():
    counts = np.array([900, 90, 10, 0])
    weights = frequency_weights(counts, smoothing=0.01).numpy()
    assert (counts / 1000 * weights).sum() == pytest.approx(1)
    assert list(weights) == sorted(weights)
    assert weights[2] == pytest.approx(weights[3] / 2)


@pytest.fixture(scope="module")
def teacher(encoder_directory: Path) -> Teacher:
    return load_teacher(encoder_directory, max_tokens=16)


@pytest.fixture(scope="module")
def turned() -> Matrix:
    return np.linalg.qr(np.random.default_rng(0).standard_normal((16, 16)))[0].astype(np.float32)


def test_a_new_one_gives_the_teachers_vector_of_a_token_turned(teacher: Teacher, turned: Matrix):
    trimmed = untrimmed(teacher.tokenizer_json)
    counts = np.ones(len(trimmed.kept_ids), np.int64)
    settings = StaticSettings(architecture="static", token_width=16, max_tokens=16)
    student = new_static(settings, trimmed=trimmed, teacher=teacher, turned=turned, counts=counts, seed=0)
    tokenizer = plain_tokenizer(teacher.tokenizer_json)
    ids = torch.tensor([[tokenizer.token_to_id(word)] for word in ("card", "refund", "film")])
    theirs = teacher.embeddings(["card", "refund", "film"])
    wanted = theirs / np.linalg.norm(theirs, axis=1, keepdims=True) @ turned.T
    assert np.abs(vectors(student, ids, torch.ones_like(ids)).numpy() - wanted).max() < 0.02


def test_frequent_tokens_have_smaller_rows(teacher: Teacher, turned: Matrix):
    trimmed = untrimmed(teacher.tokenizer_json)
    counts = np.ones(len(trimmed.kept_ids), np.int64)
    counts[7] = 10_000
    settings = StaticSettings(architecture="static", token_width=8, max_tokens=16)
    even, uneven = (
        new_static(settings, trimmed=trimmed, teacher=teacher, turned=turned, counts=each, seed=0).tokens.weight
        for each in (np.ones_like(counts), counts)
    )
    ratios = (uneven.norm(dim=1) / even.norm(dim=1)).detach()
    assert ratios[7] < 0.1 * ratios[8]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"token_width": 17}, "student.token_width: 17 is over the teacher's 16"), ({"max_tokens": 33}, "32 positions")],
)
def test_what_the_teacher_is_too_small_for_is_refused(
    changes: dict[str, int], message: str, teacher: Teacher, turned: Matrix
):
    trimmed = untrimmed(teacher.tokenizer_json)
    settings = StaticSettings(**{"architecture": "static", "token_width": 8, "max_tokens": 16, **changes})
    with pytest.raises(RecipeInvalid, match=message):
        new_static(settings, trimmed=trimmed, teacher=teacher, turned=turned, counts=np.ones(2, np.int64), seed=0)


def test_a_teacher_without_vectors_is_refused(classifier_directory: Path):
    with pytest.raises(TeacherInvalid, match="no pooled embedding"):
        token_vectors(load_teacher(classifier_directory, max_tokens=16), np.arange(3))
