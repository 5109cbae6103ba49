"""The rankers beside a student: each scores every list in its order, empty lists too."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from models.data.rank_sets import Ranking
from models.evaluate.rankers import bi_encoder_order, bm25_order, given_order, student_scores, teacher_scores
from models.teachers.cross_encoder import LABELS
from models.teachers.teacher import MeanPooled, Teacher, load_teacher
from service.bundle.load import load_bundle
from service.runtime.student import Student

RANKINGS = (
    Ranking("lost card", ("my card is lost", "a film", "card"), (1.0, 0.0, 0.0)),
    Ranking("nothing", (), ()),
    Ranking("film", ("a film", "my card is lost"), (1.0, 0.0)),
)


@pytest.fixture(scope="module")
def scorer(encoder_directory: Path) -> Teacher:
    bare = load_teacher(encoder_directory)
    torch.manual_seed(1)
    network = MeanPooled(bare.network.encoder, torch.nn.Linear(16, 1))
    return Teacher(network, bare.tokenizer_json, LABELS, max_tokens=16)


def test_the_given_order_is_kept() -> None:
    assert [scores.tolist() for scores in given_order(RANKINGS).scores] == [[0, -1, -2], [], [0, -1]]


def test_bm25_prefers_shared_words() -> None:
    first, second, third = bm25_order(RANKINGS).scores
    assert first.argmax() == 0
    assert len(second) == 0
    assert third[0] > third[1] == 0


def test_a_bi_encoder_compares_query_and_passage(scorer: Teacher) -> None:
    first, _, third = bi_encoder_order(scorer, RANKINGS).scores
    vectors = scorer.embeddings(["lost card", "my card is lost"])
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert first[0] == pytest.approx(float(unit[0] @ unit[1]), abs=1e-2)
    assert (len(first), len(third)) == (3, 2)


def test_a_teacher_scores_each_pair_once(scorer: Teacher, tmp_path: Path) -> None:
    found = teacher_scores(scorer, RANKINGS, directory=tmp_path)
    wanted = scorer.logits(list(RANKINGS[2].pairs))[:, 0]
    np.testing.assert_allclose(found.scores[2], wanted, atol=2e-2)
    assert [len(scores) for scores in found.scores] == [3, 0, 2]
    again = teacher_scores(scorer, RANKINGS, directory=tmp_path)
    assert all(np.array_equal(a, b) for a, b in zip(found.scores, again.scores, strict=True))


def test_a_split_ranker_reads_each_text_once_and_scores_as_pairs(
    tmp_path: Path, build_bundle: Callable[..., Path]
) -> None:
    path = build_bundle(tmp_path / "split", task="rank", pairs="separate", joined=True)
    student = Student(load_bundle(path), precision="fp32")
    rankings = [
        Ranking("is it good", ("this film is great", "bad", ""), (1.0, 0.0, 0.0)),
        Ranking("where is my card", ("bad", "my card is slow"), (0.0, 1.0)),
        Ranking("is it good", (), ()),
    ]
    scored = student_scores(student, rankings)
    for ranking, scores in zip(rankings, scored.scores, strict=True):
        assert len(scores) == len(ranking.passages)
        if ranking.pairs:
            wanted = student.all_exits(student.encoder.encode(ranking.pairs))[-1]
            np.testing.assert_allclose(scores, wanted, atol=1e-6)
